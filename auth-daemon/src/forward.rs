//! The auth protocol over the network: a local unix socket carried by mutual TLS to a daemon elsewhere.
//!
//! Purpose:  Postfix and Exim speak the protocol in clear text only, so between machines both ends of the connection
//!           are this program: near the mail server it listens on a unix socket, near the daemon on TLS.
//! Shape:    one TLS connection for each unix connection; bytes are copied as they are, nothing is looked at.
//! Breaks:   when one side ends, so does the other: a mail server sees a closed connection, which it takes for a
//!           temporary failure. Only a new connection waits a moment for a daemon that is just being restarted.
//! Trust:    whoever shows a certificate of the client CA. To the daemon all of them are this process: peer credentials
//!           and the confirmation of logins by process id do not reach through.
//! Never:    pass a byte on before the other end has shown its certificate.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use boot::{Admission, Control, Drain, DrainToken, Event, Sockets, Start};
use conf::Secret;
use serde::{Deserialize, Serialize};
use tls_config::{MutualClient, MutualServer, PemPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Name of the one listener in the plan.
pub const LISTENER: &str = "forward";
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// How long a new connection waits for the other end. Postfix waits 10 s for an answer, others 5 s.
const REACH: Duration = Duration::from_millis(4_500);
/// Pause between two attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// How long answers may take after the client has said all.
const LINGER: Duration = Duration::from_secs(30);
/// Bytes copied at a time.
const CHUNK: usize = 16 * 1024;

/// What a forwarder is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForwardSlice {
    /// Which end, and its other end.
    pub end: End,
    /// Own certificate, PEM.
    pub chain: String,
    /// Its key, PEM.
    pub key: Secret,
    /// Certificate of the CA that the other end's certificate must come from, PEM.
    pub ca: String,
    /// Connections at a time.
    pub connections: u32,
    /// Connections at a time from one address.
    pub connections_per_address: u32,
    /// Silence after which a connection is closed.
    pub idle: Duration,
}

/// The two ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Near the mail server: from the unix socket to TLS.
    Near {
        /// Name or address of the daemon's machine.
        host: String,
        /// Port there.
        port: u16,
        /// Name in its certificate.
        server_name: String,
    },
    /// Near the daemon: from TLS to its socket.
    Far {
        /// The daemon's socket.
        to: PathBuf,
    },
}

impl ForwardSlice {
    /// For the way to the child process.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Whether certificates and names can be used.
    ///
    /// # Errors
    /// What is wrong, for the administrator.
    pub fn check(&self) -> anyhow::Result<()> {
        Rules::new(self).map(drop)
    }
}

/// What connections share; swapped at a reload.
#[derive(Debug)]
struct Rules {
    tls: Tls,
    idle: Duration,
}

#[derive(Debug)]
enum Tls {
    Near { tls: MutualClient, host: String, port: u16, server_name: String },
    Far { tls: MutualServer, to: PathBuf },
}

impl Rules {
    fn new(slice: &ForwardSlice) -> anyhow::Result<Rules> {
        let pair = PemPair { chain: &slice.chain, key: slice.key.as_bytes() };
        let tls = match &slice.end {
            End::Near { host, port, server_name } => {
                tls_config::check_name(server_name).context("the server's name")?;
                Tls::Near {
                    tls: MutualClient::new(&slice.ca, pair)?,
                    host: host.clone(),
                    port: *port,
                    server_name: server_name.clone(),
                }
            }
            End::Far { to } => Tls::Far { tls: MutualServer::new(&slice.ca, pair)?, to: to.clone() },
        };
        Ok(Rules { tls, idle: slice.idle })
    }
}

/// The forwarder's main, run in a child process of the supervisor.
///
/// # Errors
/// Certificates that cannot be used, or a system that refuses something basic.
pub fn forward_main(start: Start) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(start));
    runtime.shutdown_background();
    result
}

async fn run(start: Start) -> anyhow::Result<()> {
    let slice = parse(&start.slice)?;
    let mut control = Control::new(start.control).context("cannot reach the supervisor")?;
    let admission =
        Admission::new(slice.connections, slice.connections_per_address).with_gauges(control.gauges());
    let rules = Arc::new(ArcSwap::from_pointee(Rules::new(&slice)?));
    let drain = Drain::new();
    let mut listening = listen(start.sockets, &rules, &admission, &drain)?;
    control.ready().await;
    match &slice.end {
        End::Near { host, port, .. } => tracing::info!(host, port, "forwarding to TLS"),
        End::Far { to } => tracing::info!(to = %to.display(), "forwarding from TLS"),
    }
    loop {
        match control.event().await {
            Event::Reload { slice, sockets } => {
                let result = parse(&slice).and_then(|slice| {
                    let next = Rules::new(&slice)?;
                    let accepting = listen(sockets, &rules, &admission, &drain)?;
                    admission.set_limits(slice.connections, slice.connections_per_address);
                    rules.store(Arc::new(next));
                    listening = accepting;
                    Ok(())
                });
                control.reloaded(result.map_err(|error| format!("{error:#}"))).await;
            }
            Event::Stop { grace } => {
                drop(listening);
                drain.finish(grace).await;
                return Ok(());
            }
            Event::Lost => return Ok(()),
            Event::Ask(question) => question.refuse("the forwarder has no such command"),
            _ => {}
        }
    }
}

fn parse(slice: &[u8]) -> anyhow::Result<ForwardSlice> {
    serde_json::from_slice(slice).context("the configuration slice cannot be read")
}

/// Starts a task for each listening socket. Dropping the set ends them; connections are not theirs.
fn listen(
    mut sockets: Sockets,
    rules: &Arc<ArcSwap<Rules>>,
    admission: &Admission,
    drain: &Drain,
) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for socket in sockets.take_unix(LISTENER) {
        socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(socket)?;
        let (rules, admission, token) = (Arc::clone(rules), admission.clone(), drain.token());
        tasks.spawn(async move {
            loop {
                let stream = boot::accept_unix(&socket).await;
                let (rules, token) = (rules.load_full(), token.clone());
                match admission.admit(None) {
                    Ok(permit) => drop(tokio::spawn(async move {
                        tell(near(&rules, stream, token).await);
                        drop(permit);
                    })),
                    Err(refused) => tracing::warn!("connection refused: {refused}"),
                }
            }
        });
    }
    for socket in sockets.take_tcp(LISTENER) {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let (rules, admission, token) = (Arc::clone(rules), admission.clone(), drain.token());
        tasks.spawn(async move {
            loop {
                let (stream, peer) = boot::accept_tcp(&socket).await;
                let (rules, token) = (rules.load_full(), token.clone());
                match admission.admit(Some(peer.ip())) {
                    Ok(permit) => drop(tokio::spawn(async move {
                        tell(far(&rules, stream, token).await.with_context(|| format!("client {peer}")));
                        drop(permit);
                    })),
                    Err(refused) => tracing::warn!(%peer, "connection refused: {refused}"),
                }
            }
        });
    }
    Ok(tasks)
}

fn tell(result: anyhow::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{error:#}");
    }
}

/// From a unix connection to the daemon's machine.
async fn near(rules: &Rules, stream: UnixStream, token: DrainToken) -> anyhow::Result<()> {
    let Tls::Near { tls, host, port, server_name } = &rules.tls else { return Ok(()) };
    let reached = reach(|| TcpStream::connect((host.as_str(), *port))).await;
    let socket = reached.with_context(|| format!("cannot reach {host} port {port}"))?;
    prepare(&socket);
    let secured = tls.connect(server_name, socket, HANDSHAKE).await;
    let secured = secured.with_context(|| format!("cannot trust {host} port {port} as {server_name}"))?;
    copy(stream, secured, rules.idle, token).await;
    Ok(())
}

/// From a TLS connection to the daemon.
async fn far(rules: &Rules, socket: TcpStream, token: DrainToken) -> anyhow::Result<()> {
    let Tls::Far { tls, to } = &rules.tls else { return Ok(()) };
    prepare(&socket);
    let (secured, fingerprint) = tls.accept(socket, HANDSHAKE).await.context("refused")?;
    let reached = reach(|| UnixStream::connect(to)).await;
    let stream = reached.with_context(|| format!("cannot reach the daemon at {}", to.display()))?;
    tracing::debug!(fingerprint, "client connected");
    copy(stream, secured, rules.idle, token).await;
    Ok(())
}

/// Tries until the other end is there, but not for long.
async fn reach<T, F: Future<Output = io::Result<T>>>(connect: impl Fn() -> F) -> io::Result<T> {
    let until = Instant::now() + REACH;
    loop {
        let failed = match timeout_at(until, connect()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if Instant::now() + AGAIN > until {
            return Err(failed);
        }
        sleep(AGAIN).await;
    }
}

/// Small lines are waited for, and a peer whose machine is gone must be noticed.
fn prepare(socket: &TcpStream) {
    tls_config::set_nodelay(socket);
    let socket = socket2::SockRef::from(socket);
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let set = socket
        .set_tcp_keepalive(&alive)
        .and_then(|()| socket.set_tcp_user_timeout(Some(Duration::from_secs(30))));
    if let Err(error) = set {
        tracing::debug!(%error, "keep-alive could not be set");
    }
}

/// Copies both ways until both are silent for too long, one breaks, or the daemon's side has said all.
async fn copy<A, B>(client: A, daemon: B, idle: Duration, mut token: DrainToken)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let last = ArcSwap::from_pointee(Instant::now());
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_daemon, mut to_daemon) = tokio::io::split(daemon);
    let both = async {
        let there = one_way(&mut from_client, &mut to_daemon, &last);
        let back = one_way(&mut from_daemon, &mut to_client, &last);
        tokio::pin!(there, back);
        tokio::select! {
            // A client that has said all still waits for answers.
            result = &mut there => if result.is_ok() { let _ = timeout(LINGER, back).await; },
            // From a daemon that has gone none will come; a client that is idle learns it when it writes.
            _ = &mut back => {}
        }
    };
    let silence = async {
        loop {
            let until = **last.load() + idle;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    tokio::select! {
        () = both => {}
        () = silence => tracing::debug!("closing an idle connection"),
        // Auth exchanges take a moment; a connection that only waits for the next one would hold the end up.
        () = async { token.draining().await; quiet(&last).await } => {}
    }
    let _ =
        timeout(Duration::from_secs(1), async { tokio::join!(to_client.shutdown(), to_daemon.shutdown()) })
            .await;
}

/// Until nothing was said for a moment.
async fn quiet(last: &ArcSwap<Instant>) {
    const MOMENT: Duration = Duration::from_millis(500);
    loop {
        let until = **last.load() + MOMENT;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    last: &ArcSwap<Instant>,
) -> io::Result<()> {
    // Passwords pass through here.
    let mut buffer = zeroize::Zeroizing::new(vec![0; CHUNK]);
    loop {
        let count = from.read(&mut buffer[..]).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        last.store(Arc::new(Instant::now()));
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn bytes_and_ends_go_both_ways() {
        let drain = Drain::new();
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut server) = tokio::io::duplex(64);
        let copied = tokio::spawn(copy(near, far, HOUR, drain.token()));
        let question = vec![b'q'; 100_000];
        let serve = async {
            let mut seen = Vec::new();
            server.read_to_end(&mut seen).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            seen
        };
        let ask = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let (seen, answer) = tokio::join!(serve, ask);
        assert_eq!((seen.len(), answer.as_slice()), (100_000, &b"answer"[..]));
        copied.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed() {
        let drain = Drain::new();
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut server) = tokio::io::duplex(64);
        let copied = tokio::spawn(copy(near, far, HOUR, drain.token()));
        let mut byte = [0];
        for _ in 0..3 {
            sleep(HOUR / 2).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut byte).await.unwrap();
        }
        assert_eq!(client.read(&mut byte).await.unwrap(), 0);
        copied.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_waits_a_moment_for_the_daemon() {
        let left = std::cell::Cell::new(3);
        let connect = || async {
            left.set(left.get() - 1);
            if left.get() > 0 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(()) }
        };
        assert!(reach(connect).await.is_ok());
        let began = Instant::now();
        let error =
            reach(|| async { Err::<(), _>(io::ErrorKind::ConnectionRefused.into()) }).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(began.elapsed() <= REACH);
        let hangs = reach(std::future::pending::<io::Result<()>>).await.unwrap_err();
        assert_eq!(hangs.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_idle_connections() {
        let drain = Drain::new();
        let (_client, near) = tokio::io::duplex(64);
        let (far, _server) = tokio::io::duplex(64);
        tokio::spawn(copy(near, far, HOUR, drain.token()));
        assert!(drain.finish(Duration::from_secs(5)).await);
    }
}
