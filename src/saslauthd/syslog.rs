//! The way of a detached daemon's log lines to syslog, in saslauthd's own words where a program may look for them.
//!
//! Purpose:   supervisor and daemons write JSON lines to standard error, which is a pipe; a thread reads it, renders
//!            each line and sends it to `/dev/log`, facility auth, as `saslauthd[PID]`.
//! Trust:     names in the lines come from strangers; they are escaped already when they get here.
//! Never:     stop the daemon because nobody takes its log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value};

/// Where syslog listens.
pub(super) const DEV_LOG: &str = "/dev/log";
/// `LOG_AUTH` of `syslog.h`.
const FACILITY: u8 = 4;
/// RFC 3164 §4.1 allows 1024 bytes in all.
const MAX_TEXT: usize = 900;
/// Longest line read from a daemon.
const MAX_LINE: u64 = 64 * 1024;
/// How long the last lines may take at the end.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Standard error on its way to syslog.
pub(super) struct Forwarding {
    /// What standard error was before.
    before: Arc<Mutex<Option<OwnedFd>>>,
    ended: Receiver<()>,
}

impl Forwarding {
    /// Replaces standard error. Until [`Forwarding::quiet`] is called, errors go to the former one as well.
    pub(super) fn start(mechanism: &'static str, verbose: bool) -> anyhow::Result<Self> {
        let (read, write) = nix::unistd::pipe().context("cannot make a pipe for the log")?;
        let former = nix::unistd::dup(std::io::stderr()).context("cannot keep standard error")?;
        nix::unistd::dup2_stderr(write).context("cannot replace standard error")?;
        // Daemons inherit descriptor 2 and nothing else.
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        let before = Arc::new(Mutex::new(Some(former)));
        let (done, ended) = channel();
        let (terminal, render) = (Arc::clone(&before), Render { mechanism, verbose });
        let work = move || {
            forward(read, &render, &terminal);
            let _ = done.send(());
        };
        std::thread::Builder::new().name("syslog".into()).spawn(work).context("cannot start a thread")?;
        Ok(Self { before, ended })
    }

    /// What another thread calls when nothing more shall reach the terminal.
    pub(super) fn quiet(&self) -> impl FnOnce() + Send + 'static {
        let before = Arc::clone(&self.before);
        move || drop(before.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    /// Waits a moment for the last lines.
    pub(super) fn finish(self) {
        // The pipe's other end is closed with this; a daemon that still has it is about to die.
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stderr(null);
        }
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

fn forward(pipe: OwnedFd, render: &Render, terminal: &Mutex<Option<OwnedFd>>) {
    let mut syslog = Syslog::new(Path::new(DEV_LOG));
    let mut pipe = BufReader::new(File::from(pipe));
    loop {
        let mut line = Vec::new();
        match std::io::Read::take(&mut pipe, MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Some((severity, text)) = render.line(&String::from_utf8_lossy(&line)) else { continue };
        let former = {
            let held = terminal.lock().unwrap_or_else(PoisonError::into_inner);
            held.as_ref().and_then(|fd| fd.try_clone().ok())
        };
        if let Some(former) = former.filter(|_| severity <= Severity::Warning) {
            let _ = writeln!(File::from(former), "saslauthd: {text}");
        }
        syslog.send(severity, &text);
    }
}

/// Severities of syslog (RFC 5424 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
    Debug = 7,
}

/// How lines look.
struct Render {
    mechanism: &'static str,
    verbose: bool,
}

impl Render {
    /// A daemon's line as syslog gets it; `None` for what only `-V` shows.
    fn line(&self, line: &str) -> Option<(Severity, String)> {
        let line = line.trim_end();
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
            let line = line.strip_prefix("saslauthd: ").unwrap_or(line);
            return (!line.is_empty()).then(|| (Severity::Error, escaped(line)));
        };
        let field = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let severity = match field("level") {
            "error" => Severity::Error,
            "warn" => Severity::Warning,
            "info" => Severity::Info,
            _ => Severity::Debug,
        };
        if field("target") == "auth" && field("message") == "login" {
            return self.login(&fields);
        }
        if severity > Severity::Info && !self.verbose {
            return None;
        }
        let mut text = field("message").to_owned();
        for (name, value) in &fields {
            if !["time", "level", "daemon", "target", "message"].contains(&name.as_str()) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text.push_str(&format!(" {name}={value}"));
            }
        }
        Some((severity, escaped(&text)))
    }

    /// saslauthd's own two lines, which log watchers know.
    fn login(&self, fields: &Map<String, Value>) -> Option<(Severity, String)> {
        let field = |name: &str| match fields.get(name).and_then(Value::as_str) {
            None | Some("-") => "",
            Some(text) => text,
        };
        let user = if field("user").is_empty() { field("typed") } else { field("user") };
        let realm = user.split_once('@').map_or("", |(_, realm)| realm);
        let facts =
            format!("[user={user}] [service={}] [realm={realm}] [mech={}]", field("service"), self.mechanism);
        if field("result") == "ok" {
            return self.verbose.then(|| (Severity::Info, escaped(&format!("auth success: {facts}"))));
        }
        let severity = if field("result") == "outage" { Severity::Error } else { Severity::Notice };
        Some((severity, escaped(&format!("auth failure: {facts} [reason={}]", field("reason")))))
    }
}

fn escaped(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A connection to syslog, made anew when it breaks.
struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    tag: String,
}

impl Syslog {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), socket: None, tag: format!("saslauthd[{}]", std::process::id()) }
    }

    fn send(&mut self, severity: Severity, text: &str) {
        let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_TEXT);
        let text = text.get(..end.last().unwrap_or(0)).unwrap_or_default();
        let time = jiff::Zoned::now().strftime("%b %e %H:%M:%S");
        let message = format!("<{}>{time} {}: {text}", FACILITY * 8 + severity as u8, self.tag);
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = UnixDatagram::unbound()
                    .and_then(|socket| {
                        socket.connect(&self.path)?;
                        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
                        Ok(socket)
                    })
                    .ok();
            }
            match self.socket.as_ref().map(|socket| socket.send(message.as_bytes())) {
                // Nobody listens, which is no reason to stop.
                None | Some(Ok(_)) => return,
                Some(Err(_)) => self.socket = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(verbose: bool, line: &str) -> Option<(Severity, String)> {
        Render { mechanism: "pam", verbose }.line(line)
    }

    #[test]
    fn logins_in_saslauthds_words() {
        let line = |result: &str| {
            format!(
                r#"{{"level":"info","target":"auth","daemon":"auth","message":"login","result":"{result}","user":"bob@x","typed":"bob@x","service":"smtp","reason":"wrong password"}}"#
            )
        };
        assert_eq!(
            shown(false, &line("refused")),
            Some((
                Severity::Notice,
                "auth failure: [user=bob@x] [service=smtp] [realm=x] [mech=pam] [reason=wrong password]"
                    .to_owned()
            ))
        );
        assert_eq!(shown(false, &line("ok")), None);
        assert_eq!(
            shown(true, &line("ok")),
            Some((
                Severity::Info,
                "auth success: [user=bob@x] [service=smtp] [realm=x] [mech=pam]".to_owned()
            ))
        );
        assert_eq!(shown(false, &line("outage")).map(|(severity, _)| severity), Some(Severity::Error));
    }

    #[test]
    fn other_lines() {
        let line = r#"{"level":"warn","daemon":"auth","target":"x","message":"a\nb","n":3,"time":"t"}"#;
        assert_eq!(shown(false, line), Some((Severity::Warning, "a?b n=3".to_owned())));
        assert_eq!(shown(false, r#"{"level":"debug","message":"x"}"#), None);
        assert_eq!(
            shown(true, r#"{"level":"debug","message":"x"}"#),
            Some((Severity::Debug, "x".to_owned()))
        );
        assert_eq!(shown(false, "error: plain\n"), Some((Severity::Error, "error: plain".to_owned())));
        assert_eq!(shown(false, "\n"), None);
    }

    #[test]
    fn datagrams_and_a_syslog_that_comes_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("log");
        let mut syslog = Syslog::new(&path);
        syslog.send(Severity::Error, "lost");
        let mut buffer = [0; 2048];
        for _ in 0..2 {
            let _ = std::fs::remove_file(&path);
            let server = UnixDatagram::bind(&path).expect("bound");
            syslog.send(Severity::Notice, &"ä".repeat(1000));
            let length = server.recv(&mut buffer).expect("a datagram");
            let text = std::str::from_utf8(&buffer[..length]).expect("whole characters");
            assert!(text.starts_with("<37>") && length < 1024, "{text}");
            assert!(text.contains(&format!(" saslauthd[{}]: ää", std::process::id())), "{text}");
        }
    }
}
