//! One socket: a task that owns the connection, and a queue in front of it.
//!
//! Purpose: many callers, one connection, requests in flight side by side. The task connects when there is something to
//!          send, keeps the connection, and starts over when it is lost.
//! Rules:   callers guard their own deadline; a caller that went away leaves a closed reply channel behind, which is how
//!          the task learns of it.
//! Trust:   the server, bounded by the protocol's parser; nothing it sends makes the queue or the pause longer.
//! Never:   send a command twice: one that was written and lost is answered as lost.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use zeroize::Zeroize as _;

use crate::Error;

/// Requests that may wait for the task.
const QUEUE: usize = 1024;
/// Requests moved from the queue to the connection at once.
const BATCH: usize = 64;
/// First and longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// How often abandoned requests are looked for.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) handshake: Duration,
    pub(crate) minor: u32,
}

/// The protocol on a connection.
pub(crate) trait Protocol: Send + Sized + 'static {
    /// What callers ask for.
    type Command: Send + 'static;

    /// A fresh connection.
    fn new(settings: &Settings) -> Self;
    /// Bytes from the server; answers go to their callers.
    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Whether commands may be submitted.
    fn is_ready(&self) -> bool;
    /// Sends a command.
    fn submit(&mut self, command: Self::Command);
    /// Drops requests whose caller went away.
    fn sweep(&mut self);
    /// Whether any request is under way.
    fn is_busy(&self) -> bool;
    /// Bytes for the server.
    fn output(&self) -> &[u8];
    /// Written bytes.
    fn wrote(&mut self, bytes: usize);
    /// The connection is gone: answers every caller.
    fn lost(self, why: &str);

    /// While there is no connection: gives back what is still worth connecting for.
    fn waits(command: Self::Command) -> Option<Self::Command>;
}

/// A socket path with at most one connection.
pub(crate) struct Link<P: Protocol> {
    path: PathBuf,
    settings: Settings,
    queue: Mutex<Option<mpsc::Sender<P::Command>>>,
    /// Why there is no connection, while there is none.
    trouble: Arc<Mutex<Option<String>>>,
}

impl<P: Protocol> fmt::Debug for Link<P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Link({})", self.path.display())
    }
}

impl<P: Protocol> Link<P> {
    pub(crate) fn new(path: PathBuf, settings: Settings) -> Self {
        Self { path, settings, queue: Mutex::new(None), trouble: Arc::default() }
    }

    /// The queue of the task, which is started on first use (and again if its runtime ended).
    pub(crate) fn queue(&self) -> mpsc::Sender<P::Command> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = queue.as_ref().filter(|sender| !sender.is_closed()) {
            return sender.clone();
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let task = Task::<P> {
            path: self.path.clone(),
            settings: self.settings,
            inbox: receiver,
            waiting: VecDeque::new(),
            trouble: Arc::clone(&self.trouble),
        };
        tokio::spawn(task.run());
        *queue = Some(sender.clone());
        sender
    }

    /// The last attempt to connect has failed.
    #[cfg(test)]
    pub(crate) fn is_unreachable(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_deref().is_some_and(|why| why.starts_with(&self.path.display().to_string()))
    }

    /// When a request made now has to be answered.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.settings.deadline
    }

    /// Time for each request.
    pub(crate) fn patience(&self) -> Duration {
        self.settings.deadline
    }

    /// Sends a command and waits for its answer until `deadline`.
    pub(crate) async fn call<A>(
        &self,
        deadline: Instant,
        command: impl FnOnce(oneshot::Sender<Result<A, Error>>) -> P::Command,
    ) -> Result<A, Error> {
        call(&self.queue(), deadline, command).await.map_err(|error| match error {
            Error::Timeout => {
                let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                trouble.clone().map_or(Error::Timeout, Error::Unavailable)
            }
            other => other,
        })
    }
}

/// See [`Link::call`].
pub(crate) async fn call<C, A>(
    queue: &mpsc::Sender<C>,
    deadline: Instant,
    command: impl FnOnce(oneshot::Sender<Result<A, Error>>) -> C,
) -> Result<A, Error> {
    let (reply, answer) = oneshot::channel();
    match timeout_at(deadline, queue.send(command(reply))).await {
        Err(_) => return Err(Error::Timeout),
        Ok(Err(_)) => return Err(Error::Unavailable("the client was shut down".to_owned())),
        Ok(Ok(())) => {}
    }
    match timeout_at(deadline, answer).await {
        Err(_) => Err(Error::Timeout),
        Ok(Err(_)) => Err(Error::Unavailable("the client was shut down".to_owned())),
        Ok(Ok(result)) => result,
    }
}

struct Task<P: Protocol> {
    path: PathBuf,
    settings: Settings,
    inbox: mpsc::Receiver<P::Command>,
    /// Commands that no connection has seen.
    waiting: VecDeque<P::Command>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl<P: Protocol> Task<P> {
    async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match self.inbox.recv().await {
                    Some(command) => self.waiting.extend(P::waits(command)),
                    None => return,
                }
                continue;
            }
            let Some((stream, protocol)) = self.connect().await else { continue };
            self.note(None);
            tracing::debug!(socket = %self.path.display(), "connected to the authentication server");
            let Some(why) = self.serve(stream, protocol).await else { return };
            tracing::debug!(socket = %self.path.display(), "lost the authentication server: {why}");
            self.note(Some(why));
        }
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Tries until it works or nobody waits any more.
    async fn connect(&mut self) -> Option<(UnixStream, P)> {
        let mut pause = BACKOFF.0;
        loop {
            let attempt =
                timeout(self.settings.handshake, shake_hands::<P>(&self.path, &self.settings)).await;
            let why = match attempt {
                Ok(Ok(connection)) => return Some(connection),
                Ok(Err(why)) => why,
                Err(_) => "no greeting".to_owned(),
            };
            tracing::debug!(socket = %self.path.display(), "cannot reach the authentication server: {why}");
            self.note(Some(format!("{}: {why}", self.path.display())));
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
            while let Ok(command) = self.inbox.try_recv() {
                self.waiting.push_back(command);
            }
            self.waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(P::waits).collect();
            if self.waiting.is_empty() {
                return None;
            }
        }
    }

    /// Runs a connection until it is lost (and why), or until no caller can come any more (`None`).
    async fn serve(&mut self, mut stream: UnixStream, mut protocol: P) -> Option<String> {
        for command in self.waiting.drain(..).filter_map(P::waits) {
            protocol.submit(command);
        }
        let (mut reader, mut writer) = stream.split();
        let mut buffer = vec![0; 16 * 1024];
        let mut batch = Vec::with_capacity(BATCH);
        let mut sweep = Instant::now() + SWEEP;
        let mut orphaned = false;
        let why = loop {
            if orphaned && protocol.output().is_empty() {
                return None;
            }
            tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(0) => break "connection closed".to_owned(),
                    Err(error) => break error.to_string(),
                    Ok(count) => {
                        let result = protocol.receive(buffer.get(..count).unwrap_or_default());
                        if let Err(error) = result {
                            break error.to_string();
                        }
                    }
                },
                written = writer.write(protocol.output()), if !protocol.output().is_empty() => match written {
                    Ok(count) => protocol.wrote(count),
                    Err(error) => break error.to_string(),
                },
                count = self.inbox.recv_many(&mut batch, BATCH), if !orphaned => {
                    orphaned = count == 0;
                    for command in batch.drain(..) {
                        protocol.submit(command);
                    }
                }
                () = tokio::time::sleep_until(sweep), if protocol.is_busy() => {
                    protocol.sweep();
                    sweep = Instant::now() + SWEEP;
                }
            }
        };
        buffer.zeroize();
        protocol.lost(&why);
        Some(why)
    }
}

/// Connects and waits for the greeting.
async fn shake_hands<P: Protocol>(path: &Path, settings: &Settings) -> Result<(UnixStream, P), String> {
    let mut stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
    let mut protocol = P::new(settings);
    let mut buffer = [0; 2048];
    while !protocol.output().is_empty() {
        let count = stream.write(protocol.output()).await.map_err(|error| error.to_string())?;
        protocol.wrote(count);
    }
    while !protocol.is_ready() {
        match stream.read(&mut buffer).await.map_err(|error| error.to_string())? {
            0 => return Err("connection closed during the greeting".to_owned()),
            count => {
                let received = buffer.get(..count).unwrap_or_default();
                protocol.receive(received).map_err(|error| error.to_string())?;
            }
        }
    }
    Ok((stream, protocol))
}
