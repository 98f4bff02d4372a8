//! The process that serves figures and health over HTTP, where `metrics.listen` asks for it.
//!
//! Purpose: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches over the stack.
//! Trust:   whoever reaches the listener may read everything it has, and do nothing. The process is unprivileged, knows no
//!          secret, and gets its figures from the supervisor over the control channel.
//! Never:   let requests of strangers reach the supervisor more often than a few times a second.

mod http;
mod text;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use boot::admin::{State, Status};
use boot::{Admission, Control, Drain, Event, Sockets, Start, StatusReader};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Role and name of the listener.
pub(crate) const ROLE: &str = "metrics";
/// Connections at a time, in all and of one address.
const CONNECTIONS: (u32, u32) = (32, 16);
/// Figures this old are still told; requests that come together share one question.
const FRESH: Duration = Duration::from_millis(200);
/// How long the supervisor may take; it waits two seconds for daemons that do not answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// The figures, asked for as rarely as possible.
pub(super) struct Source {
    reader: StatusReader,
    last: Mutex<Option<(Instant, Option<Arc<Status>>)>>,
}

impl Source {
    /// The status of about now; `None` when the supervisor does not answer.
    pub(super) async fn status(&self) -> Option<Arc<Status>> {
        let mut last = self.last.lock().await;
        if let Some((at, status)) = &*last
            && at.elapsed() < FRESH
        {
            return status.clone();
        }
        let status = self.reader.read(PATIENCE).await.map(Arc::new);
        // Silence counts as well: whoever waited for this lock would wait as long again.
        *last = Some((Instant::now(), status.clone()));
        status
    }
}

/// Why the stack is not ready, process by process. Empty: it is. Listeners are bound before a daemon starts, and a daemon
/// that says it is ready has read its configuration.
pub(super) fn not_ready(status: &Status) -> Vec<String> {
    let mut why = Vec::new();
    for process in &status.processes {
        let state = match process.state {
            State::Ready if process.answers => continue,
            State::Ready => "does not answer",
            State::Starting => "is starting",
            State::Backoff => "has ended and waits to be started again",
            State::Stopping => "is stopping",
        };
        why.push(format!("{} {state}", process.role));
    }
    why
}

/// The daemon's main, run in a child process of the supervisor.
///
/// # Errors
/// A runtime or a socket the system does not give.
pub(crate) fn main(start: Start) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(run(start));
    runtime.shutdown_background();
    result
}

async fn run(start: Start) -> anyhow::Result<()> {
    let Start { sockets, control, .. } = start;
    let mut control = Control::new(control).context("joining the supervisor")?;
    let admission = Admission::new(CONNECTIONS.0, CONNECTIONS.1).with_gauges(control.gauges());
    let source = Arc::new(Source { reader: control.status_reader(), last: Mutex::default() });
    let drain = Drain::new();
    let mut listeners = listen(&source, &admission, sockets, &drain)?;
    control.ready().await;
    loop {
        match control.event().await {
            Event::Reload { sockets, .. } => match listen(&source, &admission, sockets, &drain) {
                Ok(new) => {
                    listeners = new;
                    control.reloaded(Ok(())).await;
                }
                Err(error) => control.reloaded(Err(format!("{error:#}"))).await,
            },
            Event::Stop { grace } => {
                listeners.abort_all();
                drain.finish(grace.min(PATIENCE)).await;
                return Ok(());
            }
            Event::Lost => return Ok(()),
            _ => {}
        }
    }
}

/// Starts one task for each listening socket. Dropping the set ends them; connections go on.
fn listen(
    source: &Arc<Source>,
    admission: &Admission,
    mut sockets: Sockets,
    drain: &Drain,
) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for socket in sockets.take_tcp(ROLE) {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket).context("serving figures")?;
        let (source, admission, token) = (Arc::clone(source), admission.clone(), drain.token());
        tasks.spawn(async move {
            loop {
                let (stream, peer) = boot::accept_tcp(&listener).await;
                let Ok(permit) = admission.admit(Some(peer.ip())) else { continue };
                let local = stream.local_addr().is_ok_and(|local| local.ip().to_canonical().is_loopback());
                let (source, token) = (Arc::clone(&source), token.clone());
                tokio::spawn(async move {
                    http::serve(stream, &source, local).await;
                    drop((permit, token));
                });
            }
        });
    }
    for socket in sockets.take_unix(ROLE) {
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(socket).context("serving figures")?;
        let (source, admission, token) = (Arc::clone(source), admission.clone(), drain.token());
        tasks.spawn(async move {
            loop {
                let stream = boot::accept_unix(&listener).await;
                let Ok(permit) = admission.admit(None) else { continue };
                let (source, token) = (Arc::clone(&source), token.clone());
                tokio::spawn(async move {
                    http::serve(stream, &source, false).await;
                    drop((permit, token));
                });
            }
        });
    }
    Ok(tasks)
}
