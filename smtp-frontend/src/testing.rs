//! A configuration, a certificate and an authentication daemon for tests.
//!
//! Trust: nobody; the daemon here answers what the tests want.
//! Never: be part of a program: compiled for tests only.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use auth_client::AuthClient;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conf::{Limits, Log, Mail, PemPair, Smtp, SmtpKind, SmtpListener, SmtpSlice, TlsMaterial};

pub(crate) const HOST: &str = "mx.test";

/// Listeners of all kinds, one self-signed certificate for `localhost`.
pub(crate) fn slice(state: &Path) -> SmtpSlice {
    let listener = |name: &str, kind| SmtpListener { name: name.into(), address: Vec::new(), kind };
    SmtpSlice {
        hostname: HOST.into(),
        state_dir: state.to_owned(),
        log: Log::default(),
        grace_time: std::time::Duration::from_secs(5),
        smtp: Smtp {
            listener: vec![
                listener("smtp", SmtpKind::Inbound),
                listener("submission", SmtpKind::Submission),
                listener("submissions", SmtpKind::Submissions),
                listener("lmtp", SmtpKind::Lmtp),
            ],
            max_message_size: 300_000,
            ..Smtp::default()
        },
        mail: Mail::default(),
        limits: Limits::default(),
        tls: TlsMaterial { certificates: vec![certificate()], ..TlsMaterial::default() },
        auth: conf::AuthSockets::default(),
        delivery: None,
    }
}

pub(crate) fn certificate() -> PemPair {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    PemPair { chain: made.cert.pem(), key: conf::Secret::new(made.signing_key.serialize_pem()) }
}

/// A daemon that knows `alice`, `bob`, `postmaster` and `bob+exact` at [`HOST`]. The password decides: `right`,
/// `down` (outage), `expired`, `disabled`; anything else is wrong. User `broken` cannot be looked up.
pub(crate) struct FakeAuth {
    state: PathBuf,
    down: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl FakeAuth {
    pub(crate) fn start(state: &Path) -> Self {
        let fake = Self {
            state: state.to_owned(),
            down: Arc::default(),
            open: Arc::default(),
            seen: Arc::default(),
        };
        let seen = Arc::clone(&fake.seen);
        fake.listen("login", move |stream| login(stream, &seen));
        let home = state.join("mail");
        fake.listen("userdb", move |stream| userdb(stream, &home));
        fake
    }

    /// From now on both sockets hang up at once.
    pub(crate) fn go_down(&self) {
        self.down.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().iter() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn listen(&self, name: &str, serve: impl Fn(UnixStream) + Clone + Send + 'static) {
        let listener = UnixListener::bind(self.state.join(name)).unwrap();
        let (down, open) = (Arc::clone(&self.down), Arc::clone(&self.open));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut open = open.lock().unwrap();
                if down.load(Ordering::SeqCst) {
                    continue;
                }
                open.push(stream.try_clone().unwrap());
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
    }

    pub(crate) fn client(&self) -> AuthClient {
        let (login, userdb) = (self.state.join("login"), self.state.join("userdb"));
        let config = auth_client::Config::new(login, self.state.join("session"), userdb);
        AuthClient::new(config.deadline(std::time::Duration::from_millis(700)))
    }

    /// The AUTH lines that came, without their responses.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The messages in a user's INBOX, with CRLF.
    pub(crate) fn inbox(&self, user: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.state.join("mail").join(user).join("Maildir/new")) else {
            return Vec::new();
        };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap().replace('\n', "\r\n")).collect()
    }

    /// Files in a user's `tmp`.
    pub(crate) fn staged(&self, user: &str) -> usize {
        std::fs::read_dir(self.state.join("mail").join(user).join("Maildir/tmp")).map_or(0, Iterator::count)
    }

    pub(crate) fn home(&self, user: &str) -> PathBuf {
        self.state.join("mail").join(user)
    }
}

fn login(mut stream: UnixStream, seen: &Mutex<Vec<String>>) {
    let greeting = format!(
        "VERSION\t1\t3\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t{}\nDONE\n",
        "ab".repeat(16)
    );
    let _ = stream.write_all(greeting.as_bytes());
    let mut name = String::new();
    for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
        let fields: Vec<&str> = line.split('\t').collect();
        let decode = |text: &str| STANDARD.decode(text).unwrap();
        let reply = match fields.as_slice() {
            ["AUTH", id, mechanism, rest @ ..] => {
                let told = rest.iter().filter(|field| !field.starts_with("resp=")).copied();
                seen.lock().unwrap().push(told.collect::<Vec<_>>().join(" "));
                match (*mechanism, rest.iter().find_map(|field| field.strip_prefix("resp="))) {
                    ("PLAIN", Some(response)) => plain(id, &decode(response)),
                    ("LOGIN", _) => format!("CONT\t{id}\t{}\n", STANDARD.encode("Username:")),
                    _ => format!("CONT\t{id}\t\n"),
                }
            }
            ["CONT", id, response] => {
                let response = decode(response);
                if response.contains(&0) {
                    plain(id, &response)
                } else if name.is_empty() {
                    name = String::from_utf8(response).unwrap();
                    format!("CONT\t{id}\t{}\n", STANDARD.encode("Password:"))
                } else {
                    verdict(id, &std::mem::take(&mut name), &String::from_utf8(response).unwrap())
                }
            }
            _ => continue,
        };
        let _ = stream.write_all(reply.as_bytes());
    }
}

fn plain(id: &str, response: &[u8]) -> String {
    let parts: Vec<&str> =
        response.split(|byte| *byte == 0).map(|part| std::str::from_utf8(part).unwrap()).collect();
    match parts.as_slice() {
        [_, user, password] => verdict(id, user, password),
        _ => format!("FAIL\t{id}\n"),
    }
}

fn verdict(id: &str, user: &str, password: &str) -> String {
    let user = if user.contains('@') { user.to_owned() } else { format!("{user}@{HOST}") };
    match password {
        "right" => format!("OK\t{id}\tuser={user}\n"),
        "down" => format!("FAIL\t{id}\tuser={user}\ttemp\tcode=temp_fail\n"),
        "expired" => format!("FAIL\t{id}\tuser={user}\tcode=pass_expired\treason=Renew it on the intranet\n"),
        "disabled" => format!("FAIL\t{id}\tuser={user}\tcode=user_disabled\n"),
        _ => format!("FAIL\t{id}\tuser={user}\treason=Authentication failed\n"),
    }
}

fn userdb(mut stream: UnixStream, homes: &Path) {
    let _ = stream.write_all(b"VERSION\t1\t1\nSPID\t1\n");
    for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
        let fields: Vec<&str> = line.split('\t').collect();
        let ["USER", id, name, ..] = fields.as_slice() else { continue };
        let local = name.strip_suffix(&format!("@{HOST}")).unwrap_or_default();
        let reply = match local {
            "alice" | "bob" | "postmaster" | "bob+exact" => {
                format!("USER\t{id}\t{name}\thome={}\n", homes.join(local).display())
            }
            "broken" => format!("FAIL\t{id}\tsql down\n"),
            _ => format!("NOTFOUND\t{id}\n"),
        };
        let _ = stream.write_all(reply.as_bytes());
    }
}
