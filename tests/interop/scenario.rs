//! Runs the dialogues in `tests/scenarios`, against Postern and against the reference programs.
//!
//! A scenario is one folder with a file `dialogue`:
//!
//! ```text
//! # comment
//! title: two sessions see each other's expunges
//! targets: postern dovecot
//! open a imap              connect as `a`; services: smtp submission submissions imap imaps pop3 pop3s
//!                          auth-client auth-login auth-userdb auth-master mux
//! a> 1 NOOP                send a line (CRLF; LF on auth sockets); escapes \t \r \n \0 \\ \xNN {b64:text}
//! a>> bytes                send without a line end
//! a< * OK *                the next line must match; `*` is any run of characters, `\*` a star
//! a<~ 1 OK*                skip lines until one matches
//! a<! * BAD *              like `<~`, and none of the skipped lines may match this (set before it)
//! a tls                    become TLS (server name `localhost`)
//! a eof                    the peer closes
//! a eof *OK*               the peer closes after an unfinished line that matches
//! a quiet                  nothing arrives for 300 ms
//! deliver alice text       a file with that text appears in the user's `new/`
//! ```
//!
//! `{hostname}` and `{user}` stand for the test's host name and the first user. Both users, `alice` and
//! `bob`, have the password `pw`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::reference::{Dovecot, Postfix};
use crate::support::{HOSTNAME, Stack, have, is_root, skip};

const LINE_LIMIT: Duration = Duration::from_secs(15);

/// Where a scenario's services are.
pub trait Target {
    /// Address of a TCP service, or path of a socket.
    fn place(&self, service: &str) -> Place;
    /// CA that signed its certificate.
    fn ca(&self) -> PathBuf;
    /// The user's Maildir.
    fn maildir(&self, user: &str) -> PathBuf;
    /// What to show when a scenario fails.
    fn log(&self) -> String;
}

pub enum Place {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
}

/// The well-known port of a TCP service, which is an offset to the port base.
pub fn well_known(service: &str) -> Option<u16> {
    let known = [
        ("smtp", 25),
        ("submission", 587),
        ("submissions", 465),
        ("imap", 143),
        ("imaps", 993),
        ("pop3", 110),
        ("pop3s", 995),
    ];
    known.iter().find(|(name, _)| *name == service).map(|(_, port)| *port)
}

impl Target for Stack {
    fn place(&self, service: &str) -> Place {
        match (well_known(service), service) {
            (Some(offset), _) => Place::Tcp(self.address(offset)),
            (None, "mux") => Place::Unix(self.socket("saslauthd/mux")),
            (None, socket) => Place::Unix(self.socket(socket)),
        }
    }

    fn ca(&self) -> PathBuf {
        Stack::ca(self)
    }

    fn maildir(&self, user: &str) -> PathBuf {
        Stack::maildir(self, user)
    }

    fn log(&self) -> String {
        Stack::log(self)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Session {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    crlf: bool,
    forbidden: Option<String>,
}

impl Session {
    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                return Ok(String::from_utf8_lossy(text).into_owned());
            }
            let mut chunk = [0; 4096];
            match tokio::time::timeout(LINE_LIMIT, self.stream.read(&mut chunk)).await {
                Err(_) => {
                    return Err(format!("silence; got so far {:?}", String::from_utf8_lossy(&self.buffer)));
                }
                Ok(Err(e)) => return Err(format!("read: {e}")),
                Ok(Ok(0)) => {
                    return Err(format!("closed; left over {:?}", String::from_utf8_lossy(&self.buffer)));
                }
                Ok(Ok(n)) => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).await.map_err(|e| format!("write: {e}"))?;
        self.stream.flush().await.map_err(|e| format!("flush: {e}"))
    }
}

/// Runs one dialogue; the error names the line of the file.
pub async fn play(dialogue: &str, target: &dyn Target) -> Result<(), String> {
    let mut sessions: HashMap<String, Session> = HashMap::new();
    for (number, raw) in dialogue.lines().enumerate() {
        let line = raw.trim_end();
        if line.is_empty()
            || line.starts_with('#')
            || line.starts_with("title:")
            || line.starts_with("targets:")
        {
            continue;
        }
        step(line, target, &mut sessions).await.map_err(|e| format!("line {}: {line}\n  {e}", number + 1))?;
    }
    Ok(())
}

async fn step(
    line: &str,
    target: &dyn Target,
    sessions: &mut HashMap<String, Session>,
) -> Result<(), String> {
    let mut words = line.splitn(3, ' ');
    let (first, second, third) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if first == "open" {
        sessions.insert(second.to_owned(), open(third, target).await?);
        return Ok(());
    }
    if first == "deliver" {
        return deliver(&target.maildir(second), &unescape(third));
    }
    let Some((name, action)) = split_action(line) else { return Err("no such step".into()) };
    let session = sessions.get_mut(name).ok_or("no such session")?;
    match action {
        (">", text) => {
            let mut bytes = unescape(text);
            bytes.extend_from_slice(if session.crlf { b"\r\n" } else { b"\n" });
            session.send(&bytes).await
        }
        (">>", text) => session.send(&unescape(text)).await,
        ("<", pattern) => {
            let got = session.line().await?;
            let pattern = fill(pattern);
            if matches(&pattern, &got) { Ok(()) } else { Err(format!("got: {got}")) }
        }
        ("<!", pattern) => {
            session.forbidden = Some(fill(pattern));
            Ok(())
        }
        ("<~", pattern) => {
            let pattern = fill(pattern);
            let mut seen = Vec::new();
            loop {
                let got = session.line().await.map_err(|e| format!("{e}; lines before: {seen:#?}"))?;
                if matches(&pattern, &got) {
                    session.forbidden = None;
                    return Ok(());
                }
                if session.forbidden.as_deref().is_some_and(|f| matches(f, &got)) {
                    return Err(format!("forbidden line: {got}"));
                }
                seen.push(got);
            }
        }
        (_, "tls") => {
            let mut session = sessions.remove(name).ok_or("no such session")?;
            session.stream = secure(session.stream, target).await?;
            sessions.insert(name.to_owned(), session);
            Ok(())
        }
        (_, text) if text == "eof" || text.starts_with("eof ") => match session.line().await {
            Err(e) if e.starts_with("closed") || e.starts_with("read") => {
                let left = String::from_utf8_lossy(&session.buffer).into_owned();
                let pattern = text.strip_prefix("eof ").unwrap_or("");
                if matches(pattern, &left) { Ok(()) } else { Err(format!("left over: {left:?}")) }
            }
            other => Err(format!("expected the end, got {other:?}")),
        },
        (_, "quiet") => {
            let mut byte = [0];
            if !session.buffer.is_empty() {
                return Err(format!("expected silence, got {:?}", String::from_utf8_lossy(&session.buffer)));
            }
            match tokio::time::timeout(Duration::from_millis(300), session.stream.read(&mut byte)).await {
                Err(_) => Ok(()),
                Ok(got) => Err(format!("expected silence, got {got:?} {byte:?}")),
            }
        }
        (_, other) => Err(format!("no such step: {other}")),
    }
}

/// `a> text` to (`a`, (`>`, `text`)); `a tls` to (`a`, (``, `tls`)).
fn split_action(line: &str) -> Option<(&str, (&'static str, &str))> {
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    for sign in [">>", "<~", "<!", ">", "<"] {
        if let Some(name) = head.strip_suffix(sign) {
            return Some((name, (sign, rest)));
        }
    }
    Some((head, ("", rest)))
}

async fn open(service: &str, target: &dyn Target) -> Result<Session, String> {
    let (stream, crlf): (Box<dyn Stream>, bool) = match target.place(service) {
        Place::Tcp(address) => {
            let socket = tokio::net::TcpStream::connect(address)
                .await
                .map_err(|e| format!("connect {address}: {e}"))?;
            (Box::new(socket), true)
        }
        Place::Unix(path) => {
            let socket = tokio::net::UnixStream::connect(&path)
                .await
                .map_err(|e| format!("connect {}: {e}", path.display()))?;
            (Box::new(socket), false)
        }
    };
    let implicit = matches!(service, "submissions" | "imaps" | "pop3s");
    let stream = if implicit { secure(stream, target).await? } else { stream };
    Ok(Session { stream, buffer: Vec::new(), crlf, forbidden: None })
}

async fn secure(stream: Box<dyn Stream>, target: &dyn Target) -> Result<Box<dyn Stream>, String> {
    let pem = std::fs::read_to_string(target.ca()).map_err(|e| format!("CA: {e}"))?;
    let client = tls_config::Client::new(&pem).map_err(|e| e.to_string())?;
    let stream = client.connect("localhost", stream).await.map_err(|e| format!("TLS: {e}"))?;
    Ok(Box::new(stream))
}

fn deliver(maildir: &Path, text: &[u8]) -> Result<(), String> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("17000{number:05}.M{number}P1.elsewhere");
    let staged = maildir.join("tmp").join(&name);
    std::fs::write(&staged, text).map_err(|e| format!("{}: {e}", staged.display()))?;
    // The store runs as the owner of the Maildir, not as the one who runs the tests.
    let owner = std::fs::metadata(maildir.join("new")).map_err(|e| e.to_string())?;
    use std::os::unix::fs::MetadataExt;
    std::os::unix::fs::chown(&staged, Some(owner.uid()), Some(owner.gid())).map_err(|e| e.to_string())?;
    std::fs::rename(&staged, maildir.join("new").join(&name)).map_err(|e| e.to_string())
}

fn fill(text: &str) -> String {
    text.replace("{hostname}", HOSTNAME)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut text = fill(text);
    while let Some(start) = text.find("{b64:") {
        let Some(length) = text[start..].find('}') else { break };
        let inner = raw_unescape(&text[start + 5..start + length]);
        text.replace_range(start..=start + length, &base64(&inner));
    }
    raw_unescape(&text)
}

fn raw_unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\\' && at + 1 < bytes.len() {
            at += 1;
            match bytes[at] {
                b't' => out.push(b'\t'),
                b'r' => out.push(b'\r'),
                b'n' => out.push(b'\n'),
                b'0' => out.push(0),
                b'x' => {
                    let hex = text.get(at + 1..at + 3).unwrap_or("3f");
                    out.push(u8::from_str_radix(hex, 16).unwrap_or(b'?'));
                    at += 2;
                }
                other => out.push(other),
            }
        } else {
            out.push(bytes[at]);
        }
        at += 1;
    }
    out
}

pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let n = chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
            (0..4).map(move |i| {
                if i > chunk.len() { '=' } else { char::from(ALPHABET[(n >> (18 - 6 * i)) as usize & 63]) }
            })
        })
        .collect()
}

/// Glob match: `*` is any run of characters, `\*` a star, `\t` a tab.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts: Vec<String> = vec![String::new()];
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' => parts.push(String::new()),
            '\\' => {
                let next = match chars.next() {
                    Some('t') => '\t',
                    other => other.unwrap_or('\\'),
                };
                parts.last_mut().expect("never empty").push(next);
            }
            c => parts.last_mut().expect("never empty").push(c),
        }
    }
    let Some(rest) = text.strip_prefix(parts[0].as_str()) else { return false };
    let Some((last, middle)) = parts[1..].split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        let Some(at) = rest.find(part.as_str()) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last.as_str())
}

#[test]
fn glob_table() {
    for (pattern, text, want) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b*d", "abcd", true),
        ("*b*b", "ab", false),
        ("\\* OK*", "* OK x", true),
        ("a\\tb", "a\tb", true),
    ] {
        assert_eq!(matches(pattern, text), want, "{pattern} {text}");
    }
    assert_eq!(base64(b"\0a\0b"), "AGEAYg==");
    assert_eq!(unescape("x{b64:\\0a\\0b}\\x41"), b"xAGEAYg==A");
}

fn scenarios() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut out: Vec<_> = std::fs::read_dir(&folder)
        .expect("tests/scenarios")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.is_dir())
        .map(|path| {
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path.join("dialogue")).expect("dialogue"))
        })
        .collect();
    out.sort();
    assert!(!out.is_empty());
    out
}

/// Plays every scenario meant for `target_name`; each gets fresh users from `fresh`.
fn play_all<T: Target>(target_name: &str, fresh: impl Fn() -> T) {
    play_where(target_name, |_| true, fresh);
}

/// Plays those of them that `wanted` chooses against one target, with users made as new by `fresh`.
pub fn play_some<T: Target>(target_name: &str, wanted: impl Fn(&str) -> bool, target: &T, fresh: impl Fn()) {
    play_where(target_name, wanted, || {
        fresh();
        target
    });
}

impl<T: Target> Target for &T {
    fn place(&self, service: &str) -> Place {
        (**self).place(service)
    }

    fn ca(&self) -> PathBuf {
        (**self).ca()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        (**self).maildir(user)
    }

    fn log(&self) -> String {
        (**self).log()
    }
}

fn play_where<T: Target>(target_name: &str, wanted: impl Fn(&str) -> bool, fresh: impl Fn() -> T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut failures = Vec::new();
    let mut played = 0;
    for (name, dialogue) in scenarios() {
        let targets = dialogue.lines().find_map(|l| l.strip_prefix("targets:")).unwrap_or("postern");
        if !targets.split_whitespace().any(|t| t == target_name) || !wanted(&dialogue) {
            continue;
        }
        played += 1;
        let target = fresh();
        if let Err(error) = runtime.block_on(play(&dialogue, &target)) {
            let log = target.log();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            failures
                .push(format!("{name}: {error}\n  log: {:#?}", tail.into_iter().rev().collect::<Vec<_>>()));
        }
    }
    println!("{played} scenarios against {target_name}");
    assert!(played > 0);
    assert!(failures.is_empty(), "{} of {played} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn scenarios_against_postern() {
    play_all("postern", || {
        let stack = Stack::start();
        for user in ["alice", "bob"] {
            let out = stack.admin(&["user", "passwd", user, "--password-stdin"], "pw\n");
            if !out.status.success() {
                stack.add_user(user, "pw");
            }
        }
        stack
    });
}

#[test]
fn scenarios_against_dovecot() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if have(&["dovecot", "doveadm"]) {
        play_all("dovecot", Dovecot::start);
    }
}

#[test]
fn scenarios_against_postfix() {
    if !is_root() {
        return skip("needs root to run a private Postfix");
    }
    if have(&["postfix", "dovecot"]) {
        play_all("postfix", Postfix::start);
    }
}
