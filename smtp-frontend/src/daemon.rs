//! The daemon: listeners by name, and what the supervisor says.
//!
//! Trust: the supervisor alone tells it what to do; who connects is a stranger.
//! Never: lose a message it has acknowledged, whenever it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use auth_client::AuthClient;
use boot::{Admission, Control, Drain, Event, Sockets, Start};
use conf::{AuthSockets, SmtpKind, SmtpSlice};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::server::Server;

/// Most threads that may wait for disks at once.
const DISK_THREADS: usize = 128;
/// How long an unused disk thread is kept.
const DISK_THREAD_IDLE: Duration = Duration::from_secs(10);

/// The SMTP daemon, from its start to its end.
///
/// # Errors
/// A configuration that cannot be used; a runtime or a socket the system does not give.
pub fn main(start: Start) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("smtp")
        .max_blocking_threads(DISK_THREADS)
        .thread_keep_alive(DISK_THREAD_IDLE)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(run(start));
    // A delivery that is still going on finishes or not; nobody was told that it did.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run(start: Start) -> anyhow::Result<()> {
    let Start { slice, mut sockets, control, .. } = start;
    let mut control = Control::new(control).context("joining the supervisor")?;
    let slice = SmtpSlice::from_json(&slice).context("reading the configuration from the supervisor")?;
    let admission = Admission::new(slice.limits.connections, slice.limits.connections_per_address)
        .with_gauges(control.gauges());
    let mut auth = AuthLink::new(&slice.auth);
    let server = Server::new(&slice, auth.client(), admission)?;
    let counted = server.clone();
    control.gauges().report(move |samples| counted.report(samples));
    let drain = Drain::new();
    let mut listeners = listen(&server, adopt(&slice, &mut sockets)?, &drain);
    control.ready().await;
    loop {
        match control.event().await {
            Event::Reload { slice, mut sockets } => {
                let result = reload(&server, &mut auth, &slice, &mut sockets, &drain);
                let answer = result.map(|new| listeners = new).map_err(|error| format!("{error:#}"));
                control.reloaded(answer).await;
            }
            Event::Stop { grace } => {
                listeners.abort_all();
                if !drain.finish(grace).await {
                    tracing::warn!("connections were still open at the end of the grace time");
                }
                return Ok(());
            }
            Event::Lost => return Ok(()),
            Event::Ask(question) => question.refuse("the SMTP server has no such command"),
            _ => {}
        }
    }
}

/// All or nothing: with an error the old settings and the old listeners stay.
fn reload(
    server: &Server,
    auth: &mut AuthLink,
    slice: &[u8],
    sockets: &mut Sockets,
    drain: &Drain,
) -> anyhow::Result<JoinSet<()>> {
    let slice = SmtpSlice::from_json(slice).context("reading the configuration from the supervisor")?;
    let next = auth.for_sockets(&slice.auth);
    let adopted = adopt(&slice, sockets)?;
    server.reload(&slice, next.client())?;
    *auth = next;
    Ok(listen(server, adopted, drain))
}

/// A listening socket and what it is for.
struct Listening {
    name: Arc<str>,
    kind: SmtpKind,
    socket: TcpListener,
}

/// Takes the sockets of all configured listeners over into the runtime.
fn adopt(slice: &SmtpSlice, sockets: &mut Sockets) -> anyhow::Result<Vec<Listening>> {
    let mut adopted = Vec::new();
    for listener in &slice.smtp.listener {
        for socket in sockets.take_tcp(&listener.name) {
            let described = || format!("listener `{}`", listener.name);
            socket.set_nonblocking(true).with_context(described)?;
            let socket = TcpListener::from_std(socket).with_context(described)?;
            adopted.push(Listening { name: listener.name.as_str().into(), kind: listener.kind, socket });
        }
    }
    Ok(adopted)
}

/// Starts one task for each listening socket. Dropping the set ends them; connections are not theirs.
fn listen(server: &Server, adopted: Vec<Listening>, drain: &Drain) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for Listening { name, kind, socket } in adopted {
        let (server, token) = (server.clone(), drain.token());
        tasks.spawn(async move {
            loop {
                let (stream, peer) = boot::accept_tcp(&socket).await;
                server.accept(&name, kind, stream, peer, token.clone());
            }
        });
    }
    tasks
}

/// The client of the authentication daemon and the sockets it was made for.
struct AuthLink {
    sockets: AuthSockets,
    client: AuthClient,
}

impl AuthLink {
    fn new(sockets: &AuthSockets) -> Self {
        let config = auth_client::Config::new(&sockets.login, &sockets.session, &sockets.userdb);
        Self { sockets: sockets.clone(), client: AuthClient::new(config) }
    }

    fn client(&self) -> AuthClient {
        self.client.clone()
    }

    /// The same connections while the sockets stay where they are.
    fn for_sockets(&self, sockets: &AuthSockets) -> Self {
        if *sockets == self.sockets {
            Self { sockets: self.sockets.clone(), client: self.client() }
        } else {
            Self::new(sockets)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::testing;

    const LIMIT: Duration = Duration::from_secs(10);

    fn greeting(address: SocketAddr) -> (BufReader<TcpStream>, String) {
        let mut stream = BufReader::new(TcpStream::connect(address).unwrap());
        stream.get_ref().set_read_timeout(Some(LIMIT)).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        (stream, line)
    }

    #[test]
    fn starts_reloads_and_stops() {
        let state = tempfile::tempdir().unwrap();
        let mut slice = testing::slice(state.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = |listener: &std::net::TcpListener| {
            let mut sockets = Sockets::new();
            sockets.add_tcp("smtp", listener.try_clone().unwrap());
            sockets
        };
        let (start, mut supervisor) =
            boot::standalone("smtp", slice.to_json().unwrap(), sockets(&listener)).unwrap();
        let daemon = std::thread::spawn(|| main(start));
        supervisor.wait_ready(LIMIT).unwrap();
        let (mut old, line) = greeting(address);
        assert_eq!(line, "220 mx.test ESMTP Postern\r\n");

        slice.hostname = "new.test".into();
        let answer = supervisor.reload(slice.to_json().unwrap(), sockets(&listener), LIMIT).unwrap();
        assert_eq!(answer, Ok(()));
        assert_eq!(greeting(address).1, "220 new.test ESMTP Postern\r\n");
        slice.smtp.local_domains = vec!["not a domain".into()];
        let answer = supervisor.reload(slice.to_json().unwrap(), sockets(&listener), LIMIT).unwrap();
        assert!(answer.unwrap_err().contains("not a domain"));
        assert_eq!(greeting(address).1, "220 new.test ESMTP Postern\r\n");

        supervisor.stop(LIMIT).unwrap();
        let mut line = String::new();
        old.read_line(&mut line).unwrap();
        assert!(line.starts_with("421 4.3.2"), "{line}");
        daemon.join().unwrap().unwrap();
    }

    #[test]
    fn ends_with_its_supervisor() {
        let state = tempfile::tempdir().unwrap();
        let slice = testing::slice(state.path()).to_json().unwrap();
        let (start, mut supervisor) = boot::standalone("smtp", slice, Sockets::new()).unwrap();
        let daemon = std::thread::spawn(|| main(start));
        supervisor.wait_ready(LIMIT).unwrap();
        drop(supervisor);
        daemon.join().unwrap().unwrap();
    }
}
