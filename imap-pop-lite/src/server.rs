//! Listeners, admission, reload and stop.
//!
//! Trust: whoever can connect; nobody is known before the login, so connections are counted in all and by address.
//! Never: refuse those who are connected for the sake of new ones; let a reload end a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use auth_client::{AuthClient, Config as AuthConfig};
use boot::{Admission, Control, Drain, DrainToken, Event, Sockets};
use conf::{ImapSlice, ListenerTls, TlsVersion};
use tls_config::{Acceptor, MinimumVersion, Options, Tls};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;

use crate::account::Places;
use crate::budget::Budget;
use crate::delivery;
use crate::files::Files;
use crate::login::{Daemon, Logins, Nobody};
use crate::stream::Connection;
use crate::{imap_host, pop3_host};

/// Whole messages in memory, all sessions together.
const MESSAGE_MEMORY: u64 = 256 << 20;
/// How often the daemon is asked for its mechanisms once it has answered, and before.
const MECHANISMS_AGAIN: Duration = Duration::from_secs(60);
const MECHANISMS_RETRY: Duration = Duration::from_secs(1);
/// Offered until the daemon has been asked: logins then fail as unavailable, not as unknown.
const MECHANISMS_FIRST: [&str; 2] = ["PLAIN", "LOGIN"];

/// What all connections share.
pub(crate) struct Shared {
    live: ArcSwap<Live>,
    pub(crate) store: maildir::Store,
    /// None where sessions only come handed over.
    pub(crate) tls: Option<Doors>,
    pub(crate) budget: Budget,
    pub(crate) files: Files,
    admission: Admission,
    connections: AtomicU64,
}

/// What TLS needs.
pub(crate) struct Doors {
    certificates: Tls,
    pub(crate) imap: Acceptor,
    pub(crate) pop3: Acceptor,
}

impl Doors {
    fn new(slice: &ImapSlice) -> anyhow::Result<Self> {
        let certificates = Tls::new(&pairs(slice), tls_options(slice)).context("loading the certificates")?;
        let imap = certificates.acceptor("imap", &["imap"])?;
        let pop3 = certificates.acceptor("pop3", &["pop3"])?;
        Ok(Self { certificates, imap, pop3 })
    }
}

/// What a reload replaces; a connection keeps what it began with.
pub(crate) struct Live {
    pub(crate) imap: Arc<imap::Config>,
    pub(crate) pop3: Arc<pop3::Config>,
    pub(crate) places: Places,
    pub(crate) logins: Arc<dyn Logins>,
    pub(crate) slice: Arc<ImapSlice>,
}

/// The two ends of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Names the connection in every log line, here and at the daemon.
    pub(crate) session: String,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug)]
struct Door {
    protocol: Protocol,
    tls: ListenerTls,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Protocol {
    Imap,
    Pop3,
}

impl Live {
    fn new(slice: ImapSlice, mechanisms: &[String], logins: Arc<dyn Logins>) -> Self {
        let limits = imap::Limits {
            append: slice.imap.max_literal,
            line: usize::try_from(slice.imap.max_line).unwrap_or(usize::MAX).max(8 << 10),
            ..imap::Limits::default()
        };
        let imap = imap::Config {
            hostname: slice.hostname.clone(),
            limits,
            mechanisms: mechanisms.to_vec(),
            login_timeout: slice.imap.login_timeout,
            idle_timeout: slice.imap.idle_timeout,
            separator: slice.imap.separator.letter(),
        };
        let mut pop3 = pop3::Config::new(slice.hostname.clone());
        pop3.mechanisms = mechanisms.to_vec();
        pop3.login_timeout = slice.pop3.login_timeout;
        pop3.idle_timeout = slice.pop3.idle_timeout;
        let places = Places {
            location: slice.mail.location.clone(),
            home: slice.mail.home.clone(),
            state_dir: slice.state_dir.clone(),
            default_domain: slice.hostname.clone(),
            folders: slice.mail.create_folders.clone(),
            separator: slice.imap.separator.letter(),
        };
        Self { imap: Arc::new(imap), pop3: Arc::new(pop3), places, logins, slice: Arc::new(slice) }
    }
}

fn daemon(slice: &ImapSlice) -> Arc<dyn Logins> {
    let sockets = &slice.auth;
    let client = AuthClient::new(AuthConfig::new(&sockets.login, &sockets.session, &sockets.userdb));
    Arc::new(Daemon { client, keeps: slice.broker.is_some() })
}

/// Whether anybody but the SMTP server may connect.
fn has_clients(slice: &ImapSlice) -> bool {
    !(slice.imap.listener.is_empty() && slice.pop3.listener.is_empty())
}

fn tls_options(slice: &ImapSlice) -> Options {
    let minimum = match slice.tls.minimum {
        TlsVersion::V1_3 => MinimumVersion::Tls13,
        _ => MinimumVersion::Tls12,
    };
    Options { minimum, ..Options::default() }
}

fn pairs(slice: &ImapSlice) -> Vec<tls_config::PemPair<'_>> {
    slice
        .tls
        .certificates
        .iter()
        .map(|pair| tls_config::PemPair { chain: &pair.chain, key: pair.key.as_bytes() })
        .collect()
}

impl Shared {
    /// Everything but the listeners.
    pub(crate) fn new(
        slice: ImapSlice,
        admission: Admission,
        logins: Option<Arc<dyn Logins>>,
    ) -> anyhow::Result<Arc<Self>> {
        // A daemon that only takes deliveries has no certificate.
        let needs_tls = has_clients(&slice) || !slice.tls.certificates.is_empty();
        let tls = if needs_tls { Some(Doors::new(&slice)?) } else { None };
        let store = maildir::Store::new(maildir::Options::default()).context("starting the mail store")?;
        admission.set_limits(slice.limits.connections, slice.limits.connections_per_address);
        let logins = logins.unwrap_or_else(|| daemon(&slice));
        let live = Live::new(slice, &MECHANISMS_FIRST.map(str::to_owned), logins);
        Ok(Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            store,
            tls,
            budget: Budget::new(MESSAGE_MEMORY),
            files: Files::new(),
            admission,
            connections: AtomicU64::new(0),
        }))
    }

    /// For sessions that are handed over: nobody logs in here.
    pub(crate) fn hosting(slice: ImapSlice) -> anyhow::Result<Arc<Self>> {
        let store = maildir::Store::new(maildir::Options::default()).context("starting the mail store")?;
        let live = Live::new(slice, &MECHANISMS_FIRST.map(str::to_owned), Arc::new(Nobody));
        Ok(Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            store,
            tls: None,
            budget: Budget::new(MESSAGE_MEMORY),
            files: Files::new(),
            admission: Admission::new(0, 0),
            connections: AtomicU64::new(0),
        }))
    }

    /// What the daemon has counted, for metrics.
    fn report(&self, to: &mut Vec<boot::figures::Sample>) {
        for (service, counts) in self.tls.iter().flat_map(|doors| doors.certificates.handshakes()) {
            boot::figures::handshakes(&service, &counts.done, &counts.failed, to);
        }
    }

    /// The settings of this moment.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Takes new settings; when anything is wrong nothing changes.
    pub(crate) fn reload(&self, slice: ImapSlice) -> anyhow::Result<()> {
        if let Some(doors) = &self.tls {
            doors
                .certificates
                .replace(&pairs(&slice), tls_options(&slice))
                .context("loading the certificates")?;
        } else if has_clients(&slice) {
            anyhow::bail!("this server was started without a certificate; restart it to speak TLS");
        }
        self.admission.set_limits(slice.limits.connections, slice.limits.connections_per_address);
        let before = self.live();
        let logins = if slice.auth == before.slice.auth && slice.broker == before.slice.broker {
            Arc::clone(&before.logins)
        } else {
            daemon(&slice)
        };
        let mechanisms = before.imap.mechanisms.clone();
        self.live.store(Arc::new(Live::new(slice, &mechanisms, logins)));
        Ok(())
    }

    /// Asks the daemon what it offers; true when it answered.
    pub(crate) async fn refresh_mechanisms(&self) -> bool {
        let live = self.live();
        let Some(mechanisms) = live.logins.mechanisms().await else { return false };
        let now = self.live();
        if mechanisms != now.imap.mechanisms {
            tracing::debug!(?mechanisms, "mechanisms of the authentication daemon");
            let logins = Arc::clone(&now.logins);
            self.live.store(Arc::new(Live::new(ImapSlice::clone(&now.slice), &mechanisms, logins)));
        }
        true
    }

    fn session_id(&self) -> String {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Unique in the logs of one machine: no two processes have the same pid in the same second.
        format!("{seconds:x}.{:x}.{number:x}", std::process::id())
    }
}

/// Accept loops of one configuration.
pub(crate) struct Listeners(Vec<JoinHandle<()>>);

impl Listeners {
    /// Starts an accept loop for each socket whose listener the settings name.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        sockets: &mut Sockets,
        drain: &Arc<Drain>,
    ) -> anyhow::Result<Self> {
        let live = shared.live();
        let mut doors = Vec::new();
        for listener in &live.slice.imap.listener {
            doors.push((listener.name.clone(), Door { protocol: Protocol::Imap, tls: listener.tls }));
        }
        for listener in &live.slice.pop3.listener {
            doors.push((listener.name.clone(), Door { protocol: Protocol::Pop3, tls: listener.tls }));
        }
        let mut tasks = Vec::new();
        for (name, door) in doors {
            for socket in sockets.take_tcp(&name) {
                socket.set_nonblocking(true)?;
                let listener =
                    TcpListener::from_std(socket).with_context(|| format!("listening on {name}"))?;
                tracing::debug!(listener = name, address = ?listener.local_addr().ok(), "listening");
                tasks.push(tokio::spawn(accept(Arc::clone(shared), listener, door, Arc::clone(drain))));
            }
        }
        for socket in sockets.take_unix(delivery::SOCKET) {
            socket.set_nonblocking(true)?;
            let listener = UnixListener::from_std(socket).context("listening for deliveries")?;
            tasks.push(tokio::spawn(delivery::accept(Arc::clone(shared), listener, Arc::clone(drain))));
        }
        for name in sockets.names() {
            tracing::warn!(listener = name, "a socket without a listener in the settings");
        }
        Ok(Self(tasks))
    }
}

impl std::ops::Drop for Listeners {
    fn drop(&mut self) {
        // accept() is cancel-safe; the supervisor keeps the sockets open.
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, door: Door, drain: Arc<Drain>) {
    loop {
        let (stream, remote) = boot::accept_tcp(&listener).await;
        let permit = match shared.admission.admit(Some(remote.ip())) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::warn!(remote = %remote.ip().to_canonical(), %refused, "connection refused");
                refuse(&stream, door);
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        let token = drain.token();
        tokio::spawn(async move {
            connection(shared, stream, remote, door, token).await;
            drop(permit);
        });
    }
}

/// One line, as far as it fits into the socket's buffer; nothing waits for a client that is not admitted.
fn refuse(stream: &TcpStream, door: Door) {
    let text: &[u8] = match (door.tls, door.protocol) {
        (ListenerTls::Implicit, _) => return,
        (_, Protocol::Imap) => b"* BYE [UNAVAILABLE] Too many connections.\r\n",
        (_, Protocol::Pop3) => b"-ERR [SYS/TEMP] Too many connections.\r\n",
    };
    let _ = stream.try_write(text);
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    remote: SocketAddr,
    door: Door,
    drain: DrainToken,
) {
    tls_config::set_nodelay(&stream);
    let local = match stream.local_addr() {
        Ok(local) => local,
        // The client is gone already.
        Err(_) => return,
    };
    let peer = Peer { local, remote, session: shared.session_id() };
    tracing::debug!(session = peer.session, %remote, %local, "connection");
    let mut connection = Connection::new(stream);
    let implicit = door.tls == ListenerTls::Implicit;
    if implicit {
        let acceptor = match door.protocol {
            Protocol::Imap => shared.tls.as_ref().map(|doors| &doors.imap),
            Protocol::Pop3 => shared.tls.as_ref().map(|doors| &doors.pop3),
        };
        // Boxed: the handshake's state is large, and the connection lives long after it.
        let Some(acceptor) = acceptor else { return };
        if let Err(error) = Box::pin(connection.start_tls(acceptor)).await {
            tracing::debug!(session = peer.session, %remote, %error, "no TLS");
            return;
        }
    }
    match door.protocol {
        Protocol::Imap => {
            let tls = if implicit { imap::TlsState::Active } else { imap::TlsState::Offered };
            imap_host::serve(shared, connection, peer, tls, drain).await;
        }
        Protocol::Pop3 => {
            let tls = if implicit { pop3::TlsState::Active } else { pop3::TlsState::Offered };
            pop3_host::serve(shared, connection, peer, tls, drain).await;
        }
    }
}

/// The daemon's life inside its runtime.
pub(crate) async fn run(slice: ImapSlice, mut sockets: Sockets, mut control: Control) -> anyhow::Result<()> {
    let admission = Admission::new(slice.limits.connections, slice.limits.connections_per_address)
        .with_gauges(control.gauges());
    let mut grace = slice.grace_time;
    let shared = Shared::new(slice, admission, None)?;
    let counted = Arc::clone(&shared);
    control.gauges().report(move |samples| counted.report(samples));
    let drain = Arc::new(Drain::new());
    let mut listeners = Listeners::start(&shared, &mut sockets, &drain)?;
    let asking = tokio::spawn(ask_for_mechanisms(Arc::clone(&shared)));
    control.ready().await;
    let stop = loop {
        match control.event().await {
            Event::Reload { slice, sockets } => {
                let result = reload(&shared, &slice, sockets, &drain);
                match result {
                    Ok((fresh, new_grace)) => {
                        listeners = fresh;
                        grace = new_grace;
                        control.reloaded(Ok(())).await;
                    }
                    Err(error) => control.reloaded(Err(format!("{error:#}"))).await,
                }
            }
            Event::Stop { grace: given } => break Some(given),
            Event::Lost => break None,
            _ => {}
        }
    };
    drop(listeners);
    asking.abort();
    if let Some(given) = stop {
        let grace = if given.is_zero() { grace } else { given };
        // Accept tasks hold clones for a moment longer than their abort.
        drain.begin();
        for _ in 0..100 {
            if Arc::strong_count(&drain) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(drain) = Arc::into_inner(drain)
            && !drain.finish(grace).await
        {
            tracing::warn!("some connections did not end within the grace time");
        }
    }
    Ok(())
}

fn reload(
    shared: &Arc<Shared>,
    slice: &[u8],
    mut sockets: Sockets,
    drain: &Arc<Drain>,
) -> anyhow::Result<(Listeners, Duration)> {
    let slice = ImapSlice::from_json(slice).context("reading the configuration slice")?;
    let grace = slice.grace_time;
    shared.reload(slice)?;
    Ok((Listeners::start(shared, &mut sockets, drain)?, grace))
}

async fn ask_for_mechanisms(shared: Arc<Shared>) {
    loop {
        let pause = if shared.refresh_mechanisms().await { MECHANISMS_AGAIN } else { MECHANISMS_RETRY };
        tokio::time::sleep(pause).await;
    }
}
