//! The admin socket of the supervisor: status, reload, stop, and questions to one daemon.
//!
//! Trust:  only the supervisor's own uid and root are heard (SO_PEERCRED), besides the socket's mode 0600.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::Error;
use crate::channel::{self, Decoder, Descriptors, Outgoing};
use crate::sandbox::Restricted;

/// How long an admin command waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long it waits for the stack to stop; grace times may be long.
const STOP_TIMEOUT: Duration = Duration::from_secs(600);
/// How long an admin connection may say nothing; it takes up one of few places.
const SILENCE: Duration = Duration::from_secs(10);
/// Admin connections served at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 16;

/// What an admin command asks of the running stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Every process with its numbers.
    Status,
    /// Read the configuration again.
    Reload,
    /// Stop the stack; answered when it is stopped.
    Stop,
    /// A question to one daemon, passed on as it is.
    Ask {
        /// The daemon.
        role: String,
        /// The question.
        body: serde_json::Value,
    },
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Reload`] and [`Request::Stop`].
    Done,
    /// To [`Request::Ask`]: what the daemon said.
    Answer(serde_json::Value),
}

/// The running stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor first, then the daemons in start order.
    pub processes: Vec<Process>,
    /// Reloads done since the start.
    pub reloads: u64,
    /// Why the last reload failed, if it did.
    pub last_reload_error: Option<String>,
}

/// One process of the stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// `supervisor` or the daemon's role.
    pub role: String,
    /// Process id; none while it waits to be started again.
    pub pid: Option<u32>,
    /// User it runs as.
    pub uid: u32,
    /// Seconds since 1970 at which it started.
    pub since: Option<u64>,
    /// How often it was started again.
    pub restarts: u64,
    /// Connections open now.
    pub connections: Option<u64>,
    /// Connections since it started.
    pub total: Option<u64>,
    /// Memory in KiB (proportional set size), as the process itself reports it.
    pub memory_kib: Option<u64>,
    /// What it is doing.
    pub state: State,
    /// What the start ritual has done; none until it has.
    #[serde(default)]
    pub restricted: Option<Restricted>,
    /// Where it listens.
    #[serde(default)]
    pub sockets: Vec<String>,
    /// Whether it answered when it was asked for its figures.
    #[serde(default)]
    pub answers: bool,
    /// What the start ritual of the processes that it has started has done, by process id, where they tell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub helpers: BTreeMap<u32, Restricted>,
    /// Its figures.
    #[serde(default)]
    pub figures: Vec<crate::figures::Sample>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Started, not yet ready.
    Starting,
    /// Serving.
    Ready,
    /// It died and waits to be started again.
    Backoff,
    /// Told to stop.
    Stopping,
}

/// Asks the supervisor behind this admin socket. Blocks.
///
/// # Errors
/// [`Error::NotRunning`] when nobody answers, [`Error::Refused`] with the supervisor's own text.
pub fn request(path: &Path, request: &Request) -> Result<Response, Error> {
    let not_running = |source| Error::NotRunning { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(not_running)?;
    let timeout = match request {
        Request::Stop => STOP_TIMEOUT,
        _ => TIMEOUT,
    };
    stream.set_read_timeout(Some(timeout)).map_err(not_running)?;
    stream.set_write_timeout(Some(timeout)).map_err(not_running)?;
    let late = |error| match error {
        Error::System { source, .. } if source.kind() == io::ErrorKind::WouldBlock => {
            Error::Refused(format!("no answer within {} seconds", timeout.as_secs()))
        }
        other => other,
    };
    match channel::send_blocking(&stream, Outgoing::new(request, Vec::new())?) {
        // A refused peer is answered and hung up on without being heard: the answer is there to be read.
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.map_err(late)?,
    }
    let mut decoder = Decoder::new(Descriptors::Refused);
    let Some(frame) = channel::recv_blocking(&stream, &mut decoder).map_err(late)? else {
        return Err(not_running(io::ErrorKind::UnexpectedEof.into()));
    };
    let answer: Answer = frame.parse()?;
    let response = answer.map_err(Error::Refused)?;
    if *request == Request::Stop {
        // The supervisor's end closes when its process is gone.
        channel::recv_blocking(&stream, &mut decoder).map_err(late)?;
    }
    Ok(response)
}

/// What goes over the socket in answer to a [`Request`].
pub(crate) type Answer = Result<Response, String>;

/// A request on its way to the supervisor's loop.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Answer>,
}

/// Serves the admin socket until the runtime ends.
pub(crate) async fn serve(listener: UnixListener, requests: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = crate::accept::accept_unix(&listener).await;
        let requests = requests.clone();
        tokio::spawn(async move {
            let _place = place;
            match tokio::time::timeout(STOP_TIMEOUT, session(&stream, &requests)).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an admin connection broke"),
            }
        });
    }
}

/// One connection: requests and answers until the other side closes or falls silent.
async fn session(stream: &tokio::net::UnixStream, requests: &mpsc::Sender<Asked>) -> Result<(), Error> {
    let peer = stream.peer_cred().map_err(|source| Error::System { doing: "SO_PEERCRED".into(), source })?;
    let own = nix::unistd::geteuid().as_raw();
    if !may_steer(peer.uid(), own) {
        tracing::warn!(uid = peer.uid(), pid = ?peer.pid(), "refused on the admin socket: only root and uid {own} may use it");
        let answer: Answer = Err(format!("only root and uid {own} may steer this stack"));
        return channel::send(stream, Outgoing::new(&answer, Vec::new())?).await;
    }
    let mut decoder = Decoder::new(Descriptors::Refused);
    while let Ok(received) = tokio::time::timeout(SILENCE, channel::recv(stream, &mut decoder)).await {
        let Some(frame) = received? else { return Ok(()) };
        let request: Request = frame.parse()?;
        let stop = request == Request::Stop;
        let (reply, answer) = oneshot::channel();
        let gone = || Err("the supervisor is stopping".to_owned());
        let answer = match requests.send(Asked { request, reply }).await {
            Ok(()) => answer.await.unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        };
        channel::send(stream, Outgoing::new(&answer, Vec::new())?).await?;
        if stop {
            // The asker waits for the end of this process.
            std::future::pending::<()>().await;
        }
    }
    Ok(())
}

fn may_steer(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_same_user_may_steer() {
        assert!(may_steer(0, 1000) && may_steer(1000, 1000) && may_steer(0, 0));
        assert!(!may_steer(1001, 1000) && !may_steer(1000, 0));
    }

    #[test]
    fn nobody_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = request(&folder.path().join("control"), &Request::Status).unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    }
}
