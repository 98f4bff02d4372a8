//! The whole service over loopback and TLS, with a temporary Maildir and logins that need no daemon.
//!
//! Dialogues are texts: `A> line` sends as client A, `A< line` is the next line A must get (`…` stands for
//! anything), `A<< tag` reads on to the tagged OK, `A+ n` expects that nothing comes within n milliseconds.

mod clients;
mod daemon;
mod imap_commands;
mod imap_fetch;
mod imap_sessions;
mod pop3;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boot::{Admission, Drain, Sockets};
use conf::{ImapListener, ImapSlice, ListenerTls, Pop3Listener};
use tls_config::{Client, ClientStream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::login::{Attempt, Denied, Exchange, Later, Logins, Verdict, Welcome};
use crate::server::{Listeners, Shared};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Knows `user`/`pass`, and passwords that stand for each way to fail.
struct Fake;

impl Logins for Fake {
    fn mechanisms(&self) -> Later<'_, Option<Vec<String>>> {
        Box::pin(async { Some(vec!["PLAIN".to_owned(), "LOGIN".to_owned()]) })
    }

    fn attempt(&self, attempt: Attempt) -> Later<'_, Verdict> {
        assert!(attempt.tls.is_some(), "a password went to the daemon without TLS");
        Box::pin(async move {
            match (attempt.mechanism.as_str(), attempt.initial) {
                ("PLAIN", Some(data)) => check(&data),
                ("PLAIN", None) => Verdict::Challenge(Box::new(FakeExchange), Vec::new()),
                _ => Verdict::Challenge(Box::new(FakeExchange), b"User Name\0".to_vec()),
            }
        })
    }
}

struct FakeExchange;

impl Exchange for FakeExchange {
    fn respond(self: Box<Self>, data: Vec<u8>) -> Later<'static, Verdict> {
        Box::pin(async move { check(&data) })
    }
}

fn check(data: &[u8]) -> Verdict {
    let mut words = data.split(|b| *b == 0).skip(1);
    let user = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
    Verdict::Denied(match words.next().unwrap_or_default() {
        b"pass" => {
            return Verdict::Welcome(Welcome { user: format!("{user}@mail.test"), ..Welcome::default() });
        }
        b"down" => Denied::Unavailable,
        b"old" => Denied::Expired,
        b"off" => Denied::Disabled,
        _ => Denied::Credentials,
    })
}

/// A running service.
struct Server {
    imap: u16,
    imaps: u16,
    pop3: u16,
    pop3s: u16,
    state: tempfile::TempDir,
    pem: String,
    client: Client,
    drain: Option<Arc<Drain>>,
    listeners: Option<Listeners>,
    _shared: Arc<Shared>,
}

/// Listeners of the tests.
const DOORS: [(&str, ListenerTls); 4] = [
    ("imap", ListenerTls::Starttls),
    ("imaps", ListenerTls::Implicit),
    ("pop3", ListenerTls::Starttls),
    ("pop3s", ListenerTls::Implicit),
];

/// Settings below `state`, and the certificate to trust.
fn slice(state: &Path) -> (ImapSlice, String) {
    let names = ["mail.test", "localhost", "127.0.0.1"].map(str::to_owned).to_vec();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let mut settings = conf::embedded_default(&conf::EmbeddedOptions {
        state_dir: state.to_owned(),
        hostname: "mail.test".to_owned(),
        ..conf::EmbeddedOptions::default()
    });
    settings.imap.listener = DOORS[..2]
        .iter()
        .map(|(name, tls)| ImapListener { name: (*name).to_owned(), address: vec![], tls: *tls })
        .collect();
    settings.pop3.listener = DOORS[2..]
        .iter()
        .map(|(name, tls)| Pop3Listener { name: (*name).to_owned(), address: vec![], tls: *tls })
        .collect();
    let slice = ImapSlice {
        hostname: settings.hostname,
        state_dir: settings.state_dir,
        log: settings.log,
        grace_time: settings.grace_time,
        imap: settings.imap,
        pop3: settings.pop3,
        mail: settings.mail,
        limits: settings.limits,
        tls: conf::TlsMaterial {
            certificates: vec![conf::PemPair {
                chain: cert.pem(),
                key: conf::Secret::new(key.serialize_pem()),
            }],
            ..conf::TlsMaterial::default()
        },
        auth: conf::AuthSockets::default(),
        broker: None,
        delivery_from: None,
    };
    (slice, cert.pem())
}

impl Server {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut ImapSlice)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (mut slice, pem) = slice(state.path());
        change(&mut slice);
        let mut sockets = Sockets::new();
        let mut ports = HashMap::new();
        for (name, _) in DOORS {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            ports.insert(name, listener.local_addr().unwrap().port());
            sockets.add_tcp(name, listener);
        }
        let shared = Shared::new(slice, Admission::new(0, 0), Some(Arc::new(Fake))).unwrap();
        let drain = Arc::new(Drain::new());
        let listeners = Listeners::start(&shared, &mut sockets, &drain).unwrap();
        Self {
            imap: ports["imap"],
            imaps: ports["imaps"],
            pop3: ports["pop3"],
            pop3s: ports["pop3s"],
            state,
            client: Client::new(&pem).unwrap(),
            pem,
            drain: Some(drain),
            listeners: Some(listeners),
            _shared: shared,
        }
    }

    /// The Maildir of `user`.
    fn maildir(&self) -> PathBuf {
        self.state.path().join("mail/user/Maildir")
    }

    /// A client that has connected with TLS and read the greeting.
    async fn tls(&self, port: u16) -> Peer {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let tls = self.client.connect("mail.test", tcp).await.unwrap();
        let mut peer = Peer { io: Io::Tls(Box::new(BufReader::new(tls))), ended: false };
        peer.line().await;
        peer
    }

    /// A logged-in IMAP client.
    async fn imap_client(&self) -> Peer {
        let mut peer = self.tls(self.imaps).await;
        peer.send("login LOGIN user pass\r\n").await;
        assert!(peer.line().await.starts_with("login OK [CAPABILITY IMAP4rev1 "));
        peer
    }

    /// Puts a message into `new`, as a local delivery does.
    fn deliver(&self, text: &str) {
        let maildir = maildir::Maildir::open_or_create(&self.maildir()).unwrap();
        let mut delivery = maildir.delivery().unwrap();
        delivery.write(text.as_bytes()).unwrap();
        delivery.finish().unwrap().commit().unwrap();
    }

    /// Plays a dialogue with as many logged-in clients as it names.
    async fn play(&self, script: &str) {
        let mut clients: HashMap<char, Peer> = HashMap::new();
        for (number, line) in script.lines().enumerate() {
            let line = line.trim_start();
            let Some(who) = line.chars().next() else { continue };
            let client = match clients.entry(who) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.imap_client().await),
            };
            client.act(&line[who.len_utf8()..], number).await;
        }
    }
}

enum Io {
    Plain(Box<BufReader<TcpStream>>),
    Tls(Box<BufReader<ClientStream<TcpStream>>>),
}

/// The client's end of a connection.
struct Peer {
    io: Io,
    /// The server has closed the connection.
    ended: bool,
}

impl Peer {
    async fn plain(port: u16) -> Self {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        Self { io: Io::Plain(Box::new(BufReader::new(tcp))), ended: false }
    }

    /// Goes on under TLS.
    async fn upgrade(self, client: &Client) -> Self {
        let Io::Plain(io) = self.io else { panic!("TLS already") };
        let tls = client.connect("mail.test", io.into_inner()).await.unwrap();
        Self { io: Io::Tls(Box::new(BufReader::new(tls))), ended: false }
    }

    async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        match &mut self.io {
            Io::Plain(io) => io.write_all(bytes).await.unwrap(),
            Io::Tls(io) => {
                io.write_all(bytes).await.unwrap();
                io.flush().await.unwrap();
            }
        }
    }

    /// The next line without its end; empty at the end of the connection.
    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = async {
            match &mut self.io {
                Io::Plain(io) => io.read_until(b'\n', &mut line).await,
                Io::Tls(io) => io.read_until(b'\n', &mut line).await,
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer in time").unwrap();
        self.ended = line.is_empty();
        let text = String::from_utf8_lossy(&line);
        text.strip_suffix("\r\n").unwrap_or(&text).to_owned()
    }

    async fn exact(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let read = async {
            match &mut self.io {
                Io::Plain(io) => io.read_exact(&mut bytes).await,
                Io::Tls(io) => io.read_exact(&mut bytes).await,
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer in time").unwrap();
        bytes
    }

    /// Lines up to the one that starts with `end`, which is the last.
    async fn until(&mut self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            let last = line.starts_with(end) || self.ended;
            lines.push(line);
            if last {
                return lines;
            }
        }
    }

    /// Sends a command and returns all lines of its answer.
    async fn ask(&mut self, text: &str) -> Vec<String> {
        self.send(&format!("{text}\r\n")).await;
        let tag = text.split(' ').next().unwrap();
        self.until(&format!("{tag} ")).await
    }

    async fn act(&mut self, action: &str, number: usize) {
        if let Some(text) = action.strip_prefix("> ") {
            self.send(&format!("{}\r\n", text.replace("\\r\\n", "\r\n"))).await;
        } else if let Some(tag) = action.strip_prefix("<< ") {
            let lines = self.until(&format!("{tag} ")).await;
            let last = lines.last().unwrap();
            assert!(last.starts_with(&format!("{tag} OK")), "line {number}: {lines:?}");
        } else if let Some(want) = action.strip_prefix("< ").or((action == "<").then_some("")) {
            let got = self.line().await;
            assert!(fits(want, &got), "line {number}: wanted {want:?}, got {got:?}");
        } else if let Some(time) = action.strip_prefix("+ ") {
            let quiet = Duration::from_millis(time.parse().unwrap());
            let got = tokio::time::timeout(quiet, self.line()).await;
            assert!(got.is_err(), "line {number}: nothing was to come, got {got:?}");
        } else {
            panic!("line {number}: {action:?}");
        }
    }
}

/// Does the line fit the pattern? `…` stands for anything.
fn fits(pattern: &str, line: &str) -> bool {
    let mut pieces = pattern.split('…');
    let first = pieces.next().unwrap();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for piece in pieces {
        last = Some(piece);
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    match last {
        None => rest.is_empty(),
        Some(piece) => line.len() >= first.len() + piece.len() && line.ends_with(piece),
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_says_bye() {
    let mut server = Server::start();
    let mut imap = server.imap_client().await;
    let mut idle = server.imap_client().await;
    idle.send("i IDLE\r\n").await;
    assert_eq!(idle.line().await, "+ idling");
    let mut pop3 = server.tls(server.pop3s).await;
    drop(server.listeners.take());
    let drain = server.drain.take().unwrap();
    drain.begin();
    assert!(imap.line().await.starts_with("* BYE [UNAVAILABLE] "));
    assert!(idle.line().await.starts_with("* BYE [UNAVAILABLE] "));
    assert!(pop3.line().await.starts_with("-ERR [SYS/TEMP] "));
    for peer in [&mut imap, &mut idle, &mut pop3] {
        assert_eq!(peer.line().await, "");
    }
}
