//! A daemon in a temporary folder, and a client that plays transcripts.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use conf::{AuthListener, AuthListenerKind, AuthSlice, Passdb, PassdbDriver, Userdb, UserdbDriver};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::daemon::Daemon;
use crate::worker::{Spawner, Workers};

/// Long enough for anything on a busy machine, short enough for a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon.
pub(crate) struct Harness {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) slice: AuthSlice,
    pub(crate) daemon: Daemon,
}

/// The usual users.
pub(crate) const USERS: &str = "\
bob:{PLAIN}pw
alice:{PLAIN}secret:1000:1000::/srv/mail/alice:: userdb_quota_rule=*:storage=1G nothing=%% note=for-%n
carol@other.test:{SSHA}Z+RZcoKaNliQ6I0AsTOYmkoec3CdEaoy
locked:!{PLAIN}pw
crypted:$6$PCFO1/GGChbHOVAv$ZCszAlCGdY0WXJq/aRPojk84tnyj1xLk0xs6fV2OZ.FRtujcaPXfbPWm2A2./mJWNPYhMac451cSvGSIDA4eM/
argon:{ARGON2ID}$argon2id$v=19$m=64,t=2,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c
bomb:{ARGON2ID}$argon2id$v=19$m=1048576,t=2,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c
nets:{PLAIN}pw:::::: allow_nets=192.0.2.0/24
nets-local:{PLAIN}pw:::::: allow_nets=192.0.2.0/24,local
away:{PLAIN}pw:::::: nologin reason=Moved
gone:{PLAIN}pw:::::: expires=2001-01-01
later:{PLAIN}pw:::::: expires=2999-01-01
badfield:{PLAIN}pw:::::: k=50%off
renamed:{PLAIN}pw:::::: user=bob@mail.example.test
open::::::: nopassword
collect:{PLAIN}pw:::::: noauthenticate
";

impl Harness {
    /// The embedded default's sockets with the usual users; no delays, so that tests are quick.
    pub(crate) async fn new() -> Harness {
        Harness::with(|_| {}).await
    }

    /// The same, changed.
    pub(crate) async fn with(change: impl FnOnce(&mut AuthSlice)) -> Harness {
        Harness::with_workers(change, None).await
    }

    pub(crate) async fn with_workers(
        change: impl FnOnce(&mut AuthSlice),
        workers: Option<Workers>,
    ) -> Harness {
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("users");
        std::fs::write(&users, USERS).unwrap();
        let mut slice = base_slice(folder.path());
        change(&mut slice);
        let workers = workers.unwrap_or_else(|| Workers::new(slice.auth.worker.clone(), None));
        let mut daemon = Daemon::with_workers(&slice, workers).unwrap();
        daemon.listen(bind(folder.path(), &slice)).unwrap();
        Harness { folder, slice, daemon }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn connect(&self, name: &str) -> Client {
        let stream = UnixStream::connect(self.path(name)).await.unwrap();
        Client { stream: BufReader::new(stream), greeting: Vec::new() }
    }

    /// A client connection whose handshake is done, of that minor.
    pub(crate) async fn client(&self, name: &str, minor: u32) -> Client {
        let mut client = self.connect(name).await;
        client.read_greeting().await;
        client.send(&format!("VERSION|1|{minor}\nCPID|{}\n", std::process::id())).await;
        client
    }

    /// A master connection whose handshake is done.
    pub(crate) async fn master(&self, name: &str) -> Client {
        let mut client = self.connect(name).await;
        assert_eq!(client.line().await, "VERSION|1|1");
        assert_eq!(client.line().await, format!("SPID|{}", std::process::id()));
        client.send("VERSION|1|0\n").await;
        client
    }

    /// One login over the client socket: `OK …` or `FAIL …` without the id.
    pub(crate) async fn plain(&self, user: &str, password: &str, params: &str) -> String {
        let mut client = self.client("client", 1).await;
        let response = encode(&format!("^{user}^{password}"));
        client.send(&format!("AUTH|1|PLAIN|service=smtp{params}|resp={response}\n")).await;
        client.line().await
    }
}

/// Workers that are threads of the test: `answer` makes a record of version 1 out of the body of a question.
pub(crate) fn threads(limits: conf::Workers, answer: fn(&[u8]) -> Vec<u8>) -> Workers {
    let spawner: Spawner = Arc::new(move || {
        let (ours, mut theirs) = StdStream::pair()?;
        std::thread::spawn(move || {
            let mut length = [0; 4];
            while theirs.read_exact(&mut length).is_ok() {
                let mut body = vec![0; u32::from_le_bytes(length) as usize];
                theirs.read_exact(&mut body).unwrap();
                let record = answer(&body);
                theirs.write_all(&u32::try_from(record.len()).unwrap().to_le_bytes()).unwrap();
                theirs.write_all(&record).unwrap();
            }
        });
        Ok((ours, None))
    });
    Workers::with_spawner(limits, spawner)
}

pub(crate) fn base_slice(folder: &Path) -> AuthSlice {
    let listener = |name: &str, kind: AuthListenerKind| AuthListener {
        name: name.to_owned(),
        kind,
        path: vec![folder.join(name)],
        ..AuthListener::default()
    };
    let users = folder.join("users").to_string_lossy().into_owned();
    let mut slice = AuthSlice {
        hostname: "mail.example.test".to_owned(),
        state_dir: folder.to_owned(),
        log: conf::Log::default(),
        grace_time: Duration::from_secs(5),
        auth: conf::Auth::default(),
        mail: conf::Mail::default(),
        limits: conf::Limits::default(),
        worker_socket: None,
        ids: conf::SystemIds { workers: true, ..conf::SystemIds::default() },
    };
    slice.mail.home = format!("{}/mail/%{{user | without_default_domain}}", folder.display());
    slice.auth.failure_delay = Duration::ZERO;
    slice.auth.penalty.enabled = false;
    slice.auth.mechanisms =
        ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "ANONYMOUS"].map(str::to_owned).to_vec();
    slice.auth.listener = vec![
        listener("client", AuthListenerKind::Client),
        listener("login", AuthListenerKind::Login),
        listener("userdb", AuthListenerKind::Userdb),
        listener("master", AuthListenerKind::Master),
        listener("session", AuthListenerKind::Session),
        listener("mux", AuthListenerKind::Saslauthd),
    ];
    slice.auth.passdb = vec![passwd_file("users", &users)];
    slice.auth.userdb = vec![Userdb {
        name: "users".to_owned(),
        driver: UserdbDriver::PasswdFile { path: users, username_format: None },
        ..Userdb::default()
    }];
    slice
}

pub(crate) fn passwd_file(name: &str, path: &str) -> Passdb {
    Passdb {
        name: name.to_owned(),
        driver: PassdbDriver::PasswdFile {
            path: path.to_owned(),
            scheme: "CRYPT".to_owned(),
            username_format: None,
        },
        ..Passdb::default()
    }
}

pub(crate) fn bind(folder: &Path, slice: &AuthSlice) -> HashMap<String, Vec<UnixListener>> {
    let socket = |name: &str| {
        let path = folder.join(name);
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    };
    slice.auth.listener.iter().map(|l| (l.name.clone(), vec![socket(&l.name)])).collect()
}

/// One connection. In texts `|` stands for TAB and `^` in encoded ones for NUL.
pub(crate) struct Client {
    pub(crate) stream: BufReader<UnixStream>,
    pub(crate) greeting: Vec<String>,
}

impl Client {
    pub(crate) async fn send(&mut self, text: &str) {
        self.send_raw(text.replace('|', "\t").as_bytes()).await;
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    /// The next line; empty at the end of the connection.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        match tokio::time::timeout(PATIENCE, read).await.expect("an answer in time") {
            Ok(_) => line.trim_end_matches('\n').replace('\t', "|"),
            // The other end closed with bytes of ours unread.
            Err(_) => String::new(),
        }
    }

    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.push(self.line().await);
        }
        lines
    }

    pub(crate) async fn read_greeting(&mut self) {
        loop {
            let line = self.line().await;
            assert!(!line.is_empty(), "connection closed in the greeting");
            let done = line == "DONE";
            self.greeting.push(line);
            if done {
                return;
            }
        }
    }

    pub(crate) fn greeted(&self, name: &str) -> &str {
        let prefix = format!("{name}|");
        self.greeting.iter().find_map(|line| line.strip_prefix(&prefix)).unwrap()
    }

    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(
            tokio::time::timeout(PATIENCE, self.stream.read(&mut byte)).await.expect("an end in time"),
            Ok(0) | Err(_)
        )
    }

    /// Plays `C:` and `S:` lines. `b64(…)` is encoded; `S: *` closes.
    pub(crate) async fn play(&mut self, transcript: &str) {
        for line in transcript.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_at(2) {
                ("C:", text) => self.send(&format!("{}\n", expand(text.trim_start()))).await,
                ("S:", " *") => assert!(self.is_closed().await, "not closed: {transcript}"),
                ("S:", text) => assert_eq!(self.line().await, expand(text.trim_start()), "{transcript}"),
                _ => panic!("{line}"),
            }
        }
    }
}

pub(crate) fn encode(text: &str) -> String {
    BASE64.encode(text.replace('^', "\0"))
}

fn expand(text: &str) -> String {
    match text.split_once("b64(") {
        Some((before, rest)) => {
            let (inner, after) = rest.split_once(')').unwrap();
            format!("{before}{}{}", encode(inner), expand(after))
        }
        None => text.to_owned(),
    }
}

#[test]
fn encoding() {
    assert_eq!(expand("x=b64(^a^b)!"), "x=AGEAYg==!");
}
