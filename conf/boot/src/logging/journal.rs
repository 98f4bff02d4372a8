//! Events for systemd's journal, by its native protocol.
//!
//! Format:  one datagram per event; `NAME=value` and LF, or NAME, LF, length (u64, little endian), value, LF.
//! Source:  systemd's docs/JOURNAL_NATIVE_PROTOCOL.md.
//! Message: the whole line as people read it, so that `journalctl`, fail2ban and CrowdSec see the fields; each of them is
//!          a field of the entry as well (`POSTERN_RESULT`).
//! Trust:   values come from strangers; one with a line end is sent with its length, so it cannot become a field of
//!          its own.
//! Never:   hold mail up for longer than `PATIENCE` because the journal does not read.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use serde_json::Value;
use tracing::Level;

use super::Fields;

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long the first entry waits for a journal that does not read. Those behind it wait no more: mail goes on without
/// them.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest value; a datagram holds many of them.
const MAX_VALUE: usize = 16 << 10;

/// The way to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    role: String,
    /// Entries that were not taken since the last one that was.
    lost: AtomicU64,
}

impl Journal {
    /// Connects; the socket stays open when the sandbox closes the way to it.
    pub(super) fn connect(role: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, role: role.to_owned(), lost: AtomicU64::new(0) })
    }

    /// Writes one event.
    pub(super) fn write(&self, level: Level, target: &str, fields: &Fields) {
        let taken = self.send(&entry(&self.role, level, target, fields));
        if !taken {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("{lost} entries before this one were lost: the journal did not read");
            let fields = Fields(vec![("message", text.into())]);
            if !self.send(&entry(&self.role, Level::WARN, module_path!(), &fields)) {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }

    fn send(&self, entry: &[u8]) -> bool {
        let flags = match self.lost.load(Ordering::Relaxed) {
            0 => MsgFlags::MSG_NOSIGNAL,
            _ => MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        };
        let send = || send(self.socket.as_raw_fd(), entry, flags);
        match send() {
            Ok(_) => true,
            // What does not fit into its queue in time.
            Err(Errno::EAGAIN) => false,
            // It was started anew.
            Err(_) => self.socket.connect(SOCKET).is_ok() && send().is_ok(),
        }
    }
}

pub(super) fn entry(role: &str, level: Level, target: &str, fields: &Fields) -> Vec<u8> {
    // syslog(3); `notice` is not used.
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    let mut message = format!("{role}:");
    fields.text(&mut message);
    let mut entry = Vec::with_capacity(1024);
    put(&mut entry, "MESSAGE", &message);
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", "postern");
    put(&mut entry, "POSTERN_DAEMON", role);
    put(&mut entry, "POSTERN_TARGET", target);
    for (name, value) in fields.0.iter().filter(|(name, _)| *name != "message") {
        // systemd.journal-fields(7): capitals, digits and underscores.
        let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = "POSTERN_".chars().chain(name.chars().map(upper)).take(64).collect();
        match value {
            Value::String(text) => put(&mut entry, &name, text),
            other => put(&mut entry, &name, &other.to_string()),
        }
    }
    entry
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default();
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_does_not_read_costs_one_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let reader = UnixDatagram::bind(&path).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(&path).unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let journal = Journal { socket, role: "auth".into(), lost: AtomicU64::new(0) };
        let fields = Fields(vec![("message", "x".into())]);
        // Far more than any queue takes: with a wait for each this would take minutes.
        for _ in 0..5000 {
            journal.write(Level::INFO, "auth", &fields);
        }
        let lost = journal.lost.load(Ordering::Relaxed);
        assert!(lost > 0);
        let mut buffer = [0; 4096];
        reader.set_nonblocking(true).unwrap();
        while reader.recv(&mut buffer).is_ok() {}
        journal.write(Level::INFO, "auth", &fields);
        reader.recv(&mut buffer).unwrap();
        let length = reader.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(
            told.starts_with(&format!("MESSAGE=auth: {lost} entries before this one were lost")),
            "{told}"
        );
    }

    #[test]
    fn entries_cannot_be_forged() {
        let fields = Fields(vec![
            ("message", "login".into()),
            ("user", "a\nPRIORITY=0".into()),
            ("micros", 3.into()),
            ("long", "é".repeat(MAX_VALUE).into()),
        ]);
        let entry = entry("auth", Level::INFO, "auth", &fields);
        let text = String::from_utf8_lossy(&entry);
        let (head, rest) = text.split_once("POSTERN_USER\n").unwrap();
        assert!(head.starts_with("MESSAGE=auth: login user=\"a\\nPRIORITY=0\" micros=3 long="), "{head}");
        assert!(head.ends_with(
            "\nPRIORITY=6\nSYSLOG_IDENTIFIER=postern\nPOSTERN_DAEMON=auth\nPOSTERN_TARGET=auth\n"
        ));
        assert!(rest.starts_with("\u{c}\0\0\0\0\0\0\0a\nPRIORITY=0\nPOSTERN_MICROS=3\n"), "{rest:?}");
        assert!(entry.len() < 3 * MAX_VALUE);
    }
}
