//! Starting and stopping both sides, each with the settings that the report shows.
//!
//! Purpose: everything lies in a scratch folder and listens on unix sockets and 127.0.0.1. Peers are set up for their
//!          best: see the comments at their settings, which the report repeats.
//! Trust:   nobody sends it bytes but the servers it starts.
//! Never:   leave a process behind; stop one that it did not start.

pub(crate) mod auth;
pub(crate) mod mail;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::proc;

/// Longest time a server may take to answer its first question; reading a million users is the slowest.
const START: Duration = Duration::from_secs(60);
/// Longest time a server may take to end.
const END: Duration = Duration::from_secs(10);
/// Domain of all users.
pub(crate) const DOMAIN: &str = "example.test";
/// Account that Postern's daemons run as.
const ACCOUNT: &str = "nobody";
/// Debian's account for mail.
const MAIL_UID: u32 = 8;

/// A server that runs.
pub(crate) struct Server {
    roots: Vec<u32>,
    child: Option<Child>,
    /// Its settings, scratch paths written as `$W`.
    pub(crate) settings: String,
    /// From the start of the program to its first answer.
    pub(crate) start_seconds: f64,
}

/// A program, what it is called in errors, where its log lies and what its settings are.
struct Start<'a> {
    what: &'a str,
    command: Command,
    /// Where the program itself writes, for errors.
    log: &'a Path,
    settings: String,
}

impl Server {
    /// Starts a program that stays in front, and waits until it answers.
    fn in_front(start: Start<'_>, mut ready: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Server> {
        let began = Instant::now();
        let child = spawn(start.command, &start.log.with_extension("out"))?;
        let mut server = Server {
            roots: vec![child.id()],
            child: Some(child),
            settings: start.settings,
            start_seconds: 0.0,
        };
        wait_until(start.what, start.log, || {
            let ended = server.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            match ended {
                Some(status) => Err(Wait::Over(anyhow::anyhow!("it ended: {status}"))),
                None => ready().map_err(Wait::More),
            }
        })?;
        server.start_seconds = began.elapsed().as_secs_f64();
        Ok(server)
    }

    /// Runs a program that goes to the background and leaves its number in a file.
    fn behind(
        start: Start<'_>,
        pid_file: &Path,
        mut ready: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Server> {
        let began = Instant::now();
        let out = start.log.with_extension("out");
        let status = spawn(start.command, &out)?.wait()?;
        if !status.success() {
            bail!("{}: {}", start.what, fs::read_to_string(&out).unwrap_or_default());
        }
        let mut pid = None;
        wait_until(start.what, start.log, || {
            let text = fs::read_to_string(pid_file).map_err(|error| Wait::More(error.into()))?;
            pid =
                Some(text.trim().parse().map_err(|_| Wait::More(anyhow::anyhow!("no number in its file")))?);
            Ok(())
        })?;
        let mut server = Server {
            roots: pid.into_iter().collect(),
            child: None,
            settings: start.settings,
            start_seconds: 0.0,
        };
        wait_until(start.what, start.log, || ready().map_err(Wait::More))?;
        server.start_seconds = began.elapsed().as_secs_f64();
        Ok(server)
    }

    /// The processes it was started as.
    pub(crate) fn roots(&self) -> &[u32] {
        &self.roots
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let family = proc::tree(&self.roots);
        for pid in &self.roots {
            signal(*pid, Signal::SIGTERM);
        }
        // Most are not children of ours, so no wait(2) tells of their end.
        let ended = patiently(END, Duration::from_millis(10), || {
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            !family.iter().any(|pid| alive(*pid))
        });
        if !ended {
            for pid in family.iter().filter(|pid| alive(**pid)) {
                signal(*pid, Signal::SIGKILL);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Looks every so often whether something is so; gives up after `limit`.
pub(crate) fn patiently(limit: Duration, every: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(every);
    }
}

/// Why a server does not answer.
enum Wait {
    /// Not yet.
    More(anyhow::Error),
    /// It never will.
    Over(anyhow::Error),
}

fn wait_until(what: &str, log: &Path, mut ready: impl FnMut() -> Result<(), Wait>) -> anyhow::Result<()> {
    let mut last = Ok(());
    // Often: the time until the first answer is one of the figures.
    patiently(START, Duration::from_millis(2), || {
        last = ready();
        !matches!(last, Err(Wait::More(_)))
    });
    last.map_err(|(Wait::More(error) | Wait::Over(error))| {
        let text = [log.to_owned(), log.with_extension("out")]
            .map(|file| fs::read_to_string(file).unwrap_or_default())
            .concat();
        error.context(format!("{what} did not come up\n{text}"))
    })
}

/// A folder that every account can pass through.
pub(crate) fn folder(path: &Path, owner: Option<u32>) -> anyhow::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if owner.is_some() {
        chown(path, owner, None)?;
    }
    Ok(())
}

/// A port nobody listens on now.
fn free_port() -> anyhow::Result<u16> {
    // Below the range of outgoing connections, which the load takes its ports from.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if port > 30_000 {
            bail!("no free port");
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

fn spawn(mut command: Command, out: &Path) -> anyhow::Result<Child> {
    // A file, not a pipe: daemons keep it open.
    let file = fs::File::create(out)?;
    let name = format!("{:?}", command.get_program());
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("POSTERN_CONFIG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .spawn()
        .with_context(|| format!("starting {name}"))
}

fn uid_of(account: &str) -> anyhow::Result<u32> {
    Ok(User::from_name(account)?.with_context(|| format!("no account {account}"))?.uid.as_raw())
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Writes a settings file; `$W` and `$USERS` become paths.
fn write_settings(path: &Path, text: &str, work: &Path, users: Option<&Path>) -> anyhow::Result<()> {
    let mut text = text.replace("$W", &work.display().to_string());
    if let Some(users) = users {
        text = text.replace("$USERS", &users.display().to_string());
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// A CA, and a P-256 certificate it has signed for these names (as `subjectAltName` wants them), in a new folder:
/// `ca.pem`, `cert.pem`, `key.pem`.
///
/// # Errors
/// What openssl says.
pub fn certificates(folder: &Path, names: &str) -> anyhow::Result<()> {
    self::folder(folder, None)?;
    let openssl = |args: &[&str]| output(Command::new("openssl").args(args).current_dir(folder)).map(drop);
    fs::write(folder.join("ext"), format!("subjectAltName={names}\nextendedKeyUsage=serverAuth\n"))?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"];
    // OpenSSL's own configuration already names basicConstraints.
    let ca_ext = ["-addext", "keyUsage=critical,keyCertSign"];
    openssl(&[&ca[..], &key[..], &ca_ext[..]].concat())?;
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "csr.pem"];
    openssl(&[&request[..], &key[..]].concat())?;
    let sign = ["x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-days", "2", "-extfile", "ext", "-out", "cert.pem"]].concat())
}
