//! Dotlocks as Dovecot takes them.
//!
//! Rules:   reference note "maildir-imap-pop3", sections 4.2, 4.8 and 5.
//! Trust:   a lock file may be left over, empty, or from another machine or PID namespace.
//! Never:   hold a lock while waiting for a client; break a lock whose holder may be alive.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::dirs::{self, Rights};
use crate::error::{Context, Error};

/// Touch the lock when it was not touched for this long.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A lock of a dead process on this machine is overridden when it is at least this old.
const DEAD_HOLDER: Duration = Duration::from_secs(2);
/// First and longest pause between two looks at a lock in our way.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How one kind of lock file behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Whether the file holds `<pid>:<host>` (otherwise it holds the next content of the file it guards).
    pub(crate) names_holder: bool,
    /// Without a holder that can be asked, a lock nothing happened to for this long is left over.
    pub(crate) stale: Duration,
}

/// `dovecot-uidlist.lock`
pub(crate) const UIDLIST: Rules = Rules { names_holder: true, stale: Duration::from_secs(120) };
/// `dovecot-keywords.lock`, only ever taken under the uidlist lock.
pub(crate) const KEYWORDS: Rules = Rules { names_holder: false, stale: Duration::from_secs(120) };
/// `subscriptions.lock`
pub(crate) const SUBSCRIPTIONS: Rules = Rules { names_holder: false, stale: Duration::from_secs(30) };

/// A held lock; released when dropped.
#[derive(Debug)]
pub(crate) struct Dotlock {
    path: PathBuf,
    file: File,
    touched: Instant,
    released: bool,
}

impl Dotlock {
    /// Takes `<guarded>.lock`, waiting at most `wait`.
    pub(crate) fn acquire(guarded: &Path, rules: Rules, wait: Duration) -> Result<Self, Error> {
        let mut path = guarded.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let dir = guarded.parent().unwrap_or(guarded);
        let mut pause = FIRST_PAUSE;
        let mut deadline = None;
        let rights = Rights::of(dir).ctx("read", dir)?;
        loop {
            match dirs::create_new(&path, rights) {
                Ok(file) => {
                    let mut lock = Self { path, file, touched: Instant::now(), released: false };
                    if rules.names_holder {
                        let holder = format!("{}:{}", std::process::id(), our_host());
                        lock.file.write_all(holder.as_bytes()).ctx("write", &lock.path)?;
                    }
                    return Ok(lock);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", &path, e)),
            }
            if break_if_stale(&path, guarded, rules) {
                // Another breaker may have seen the same old lock; who waits here cannot remove its new one.
                let jitter = u64::from(getrandom::u32().unwrap_or(0) % 100);
                std::thread::sleep(Duration::from_millis(100 + jitter));
                continue;
            }
            let now = Instant::now();
            let end = *deadline.get_or_insert(now + wait);
            if now >= end {
                return Err(Error::Locked(path));
            }
            std::thread::sleep(pause.min(end - now));
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// To be called now and then during long work: others must see that the lock is alive.
    pub(crate) fn keep_alive(&mut self) {
        if self.touched.elapsed() >= KEEP_ALIVE {
            self.touched = Instant::now();
            if let Err(e) = self.file.set_modified(SystemTime::now()) {
                tracing::debug!(path = %self.path.display(), error = %e, "cannot touch a lock");
            }
        }
    }

    /// For locks that hold the next content: writes it and renames the lock over the guarded file.
    pub(crate) fn replace(
        mut self,
        guarded: &Path,
        content: &[u8],
        modified: Option<SystemTime>,
    ) -> Result<(), Error> {
        self.file.write_all(content).ctx("write", &self.path)?;
        if let Some(modified) = modified {
            self.file.set_modified(modified).ctx("touch", &self.path)?;
        }
        self.file.sync_all().ctx("sync", &self.path)?;
        if !self.is_ours() {
            return Err(Error::Locked(self.path.clone()));
        }
        fs::rename(&self.path, guarded).ctx("rename", &self.path)?;
        self.released = true;
        Ok(())
    }

    /// Whether the file at the path is the one we made: a breaker may have replaced it.
    fn is_ours(&self) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
            _ => false,
        }
    }
}

impl Drop for Dotlock {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if !self.is_ours() {
            tracing::warn!(path = %self.path.display(), "our lock was overridden by somebody else");
        } else if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a lock");
        }
    }
}

/// Who holds a lock, as far as it can be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Holder {
    /// A process of this machine that runs.
    Alive,
    /// A process of this machine that does not run any more.
    Dead,
    /// Another machine, another PID namespace, not written yet, or nonsense.
    Unknown,
}

/// Removes a lock that nobody can hold any more. False: it is in use, or somebody else just removed it.
fn break_if_stale(path: &Path, guarded: &Path, rules: Rules) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    let now = SystemTime::now();
    let content = if rules.names_holder { dirs::read_limited(path, 300).ok().flatten() } else { None };
    let holder = holder_of(content.as_deref().unwrap_or_default(), our_host(), is_alive);
    let guarded_age = fs::metadata(guarded).map_or(Duration::MAX, |m| age(&m, now));
    if !is_stale(holder, age(&meta, now), guarded_age, rules) {
        return false;
    }
    // Only remove what was judged.
    match fs::symlink_metadata(path) {
        Ok(again) if again.ino() == meta.ino() && again.ctime_nsec() == meta.ctime_nsec() => {}
        _ => return false,
    }
    tracing::warn!(path = %path.display(), ?holder, "overriding a lock that was left behind");
    fs::remove_file(path).is_ok()
}

/// Time since the last change; the younger of mtime and ctime, and 0 for times in the future.
fn age(meta: &Metadata, now: SystemTime) -> Duration {
    let (seconds, nanoseconds) = (meta.mtime(), meta.mtime_nsec()).max((meta.ctime(), meta.ctime_nsec()));
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let changed = seconds + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    now.duration_since(SystemTime::UNIX_EPOCH + changed).unwrap_or_default()
}

fn is_stale(holder: Holder, lock_age: Duration, guarded_age: Duration, rules: Rules) -> bool {
    match holder {
        Holder::Alive => false,
        Holder::Dead => lock_age >= DEAD_HOLDER,
        Holder::Unknown => lock_age >= rules.stale && guarded_age >= rules.stale,
    }
}

fn holder_of(content: &[u8], our_host: &str, alive: impl Fn(i32) -> bool) -> Holder {
    let parts = std::str::from_utf8(content).ok().and_then(|text| text.split_once(':'));
    match parts.map(|(pid, host)| (pid.parse::<i32>(), host)) {
        Some((Ok(pid), host)) if pid > 0 && host == our_host => {
            if alive(pid) {
                Holder::Alive
            } else {
                Holder::Dead
            }
        }
        _ => Holder::Unknown,
    }
}

fn is_alive(pid: i32) -> bool {
    !matches!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH))
}

/// The host part of our locks. Inside a PID namespace of its own a pid means nothing to processes outside that
/// share the host name, so there the name says which namespace.
fn our_host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        match namespace.to_str() {
            // The initial namespace's fixed inode number (PROC_PID_INIT_INO).
            Some("pid:[4026531836]") => name,
            Some(other) => format!("{name}/{}", other.trim_matches(|c: char| !c.is_ascii_digit())),
            None => format!("{name}/unknown"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_table() {
        let s = Duration::from_secs;
        let cases = [
            (Holder::Alive, s(1000), s(1000), false),
            (Holder::Dead, s(1), s(0), false),
            (Holder::Dead, s(2), s(0), true),
            (Holder::Unknown, s(2), s(1000), false),
            (Holder::Unknown, s(119), s(1000), false),
            (Holder::Unknown, s(120), s(119), false),
            (Holder::Unknown, s(120), s(120), true),
            (Holder::Unknown, s(120), Duration::MAX, true),
        ];
        for (holder, lock, guarded, expected) in cases {
            assert_eq!(is_stale(holder, lock, guarded, UIDLIST), expected, "{holder:?} {lock:?} {guarded:?}");
        }
        assert!(is_stale(Holder::Unknown, s(30), s(30), SUBSCRIPTIONS));
    }

    #[test]
    fn holders() {
        let cases: [(&[u8], Holder); 10] = [
            (b"12:here", Holder::Alive),
            (b"13:here", Holder::Dead),
            (b"12:there", Holder::Unknown),
            (b"12:here\n", Holder::Unknown),
            (b"", Holder::Unknown),
            (b"12", Holder::Unknown),
            (b"-1:here", Holder::Unknown),
            (b"0:here", Holder::Unknown),
            (b"99999999999:here", Holder::Unknown),
            (b"\xff:here", Holder::Unknown),
        ];
        for (content, expected) in cases {
            assert_eq!(holder_of(content, "here", |pid| pid == 12), expected, "{content:?}");
        }
    }

    fn dead_pid() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn take_wait_release() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let held = Dotlock::acquire(&file, UIDLIST, Duration::ZERO).unwrap();
        let content = fs::read_to_string(dir.path().join("list.lock")).unwrap();
        assert_eq!(content, format!("{}:{}", std::process::id(), our_host()));
        let started = Instant::now();
        let busy = Dotlock::acquire(&file, UIDLIST, Duration::from_millis(30));
        assert!(matches!(busy, Err(Error::Locked(_))));
        assert!(started.elapsed() >= Duration::from_millis(30));
        drop(held);
        assert!(!dir.path().join("list.lock").exists());
        Dotlock::acquire(&file, UIDLIST, Duration::ZERO).unwrap();
    }

    #[test]
    fn left_behind_is_overridden_and_live_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let lock = dir.path().join("list.lock");
        fs::write(&lock, format!("{}:{}", dead_pid(), our_host())).unwrap();
        // ctime cannot be set back: the lock counts as dead only after two seconds.
        assert!(Dotlock::acquire(&file, UIDLIST, Duration::from_millis(10)).is_err());
        Dotlock::acquire(&file, UIDLIST, Duration::from_secs(5)).unwrap();
        fs::write(&lock, "1:elsewhere").unwrap();
        assert!(Dotlock::acquire(&file, UIDLIST, Duration::from_millis(10)).is_err());
        assert!(lock.exists());
    }

    #[test]
    fn foreign_lock_at_our_path_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let lock = dir.path().join("list.lock");
        let held = Dotlock::acquire(&file, UIDLIST, Duration::ZERO).unwrap();
        fs::remove_file(&lock).unwrap();
        fs::write(&lock, "somebody").unwrap();
        drop(held);
        assert_eq!(fs::read(&lock).unwrap(), b"somebody");
    }

    #[test]
    fn replace_takes_the_guarded_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subscriptions");
        let lock = Dotlock::acquire(&file, SUBSCRIPTIONS, Duration::ZERO).unwrap();
        lock.replace(&file, b"INBOX\n", None).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"INBOX\n");
        assert!(!dir.path().join("subscriptions.lock").exists());
    }

    #[test]
    fn missing_directory_is_an_error() {
        assert!(Dotlock::acquire(Path::new("/nonexistent/list"), UIDLIST, Duration::ZERO).is_err());
    }
}
