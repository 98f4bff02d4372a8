//! Peers that a listener does not let in: closed cleanly, and told once in a while.
//!
//! Trust:  a peer chooses its own name (`/proc/PID/comm`) and may be gone when it is looked up: it is shown, never believed.
//! Never:  write a line for every refusal, or end a connection with a reset where it can be closed.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};

use crate::request::PeerCredentials;

/// At most one line in this time for each account and listener.
const QUIET: Duration = Duration::from_secs(60);
/// Accounts that are remembered.
const MOST: usize = 1024;
/// What a peer may have said before it was refused.
const UNHEARD: usize = 64 << 10;

/// Who was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<(String, u32), Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    told: Instant,
    /// Since then.
    more: u64,
}

impl Refusals {
    /// Tells that a peer was not let in, with what to change, unless that was told just now.
    pub(crate) fn tell(&self, listener: &str, peer: &PeerCredentials) {
        let Some(more) = self.due(listener, peer.uid, Instant::now()) else { return };
        let process = peer
            .pid
            .map_or_else(|| "a process".to_owned(), |pid| name_of(pid).unwrap_or_else(|| "a process".into()));
        let (pid, uid, gid) = (peer.pid.unwrap_or_default(), peer.uid, peer.gid);
        let again =
            if more == 0 { String::new() } else { format!(" ({more} more times since the last such line)") };
        tracing::warn!(
            listener,
            pid,
            uid,
            gid,
            "connection refused: {process} (process {pid}, uid {uid}, gid {gid}) is neither in allow_users nor in allow_groups of \
             listener `{listener}`; to let it in, add it there: allow_users = [\"{uid}\"]{again}"
        );
    }

    /// The same at a socket between the daemons: there is nothing to change, it is for one account.
    pub(crate) fn tell_internal(&self, socket: &str, peer: &PeerCredentials, allowed: u32) {
        let Some(more) = self.due(socket, peer.uid, Instant::now()) else { return };
        let process = peer.pid.and_then(name_of).unwrap_or_else(|| "a process".to_owned());
        let (pid, uid, gid) = (peer.pid.unwrap_or_default(), peer.uid, peer.gid);
        tracing::warn!(
            listener = socket,
            pid,
            uid,
            gid,
            more,
            "connection refused: {process} (process {pid}, uid {uid}, gid {gid}) has no business on the socket `{socket}`, which is \
             for uid {allowed} alone"
        );
    }

    /// How often it happened since the last line, if it is time for another one.
    fn due(&self, listener: &str, uid: u32, now: Instant) -> Option<u64> {
        // Plain numbers: valid whatever the thread that panicked was doing.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        let key = (listener.to_owned(), uid);
        match all.get_mut(&key) {
            Some(seen) if now.saturating_duration_since(seen.told) < QUIET => {
                seen.more = seen.more.saturating_add(1);
                None
            }
            Some(seen) => Some(std::mem::replace(seen, Seen { told: now, more: 0 }).more),
            None => {
                all.insert(key, Seen { told: now, more: 0 });
                Some(0)
            }
        }
    }
}

/// What the process calls itself.
fn name_of(pid: i32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name: String = String::from_utf8_lossy(&name).chars().filter(|c| !c.is_control()).take(32).collect();
    (!name.is_empty()).then_some(name)
}

/// Hangs up. What the peer has said already is taken off the socket: left there, the kernel would tell the peer of a broken
/// connection instead of a closed one.
pub(crate) fn hang_up(stream: &impl AsRawFd) {
    let socket = stream.as_raw_fd();
    let _ = shutdown(socket, Shutdown::Both);
    let mut unheard = [0; 4096];
    for _ in 0..UNHEARD / unheard.len() {
        if !matches!(recv(socket, &mut unheard, MsgFlags::MSG_DONTWAIT), Ok(count) if count > 0) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_minute_for_each_account_and_listener() {
        let refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.due("a", 1, start), Some(0));
        for _ in 0..5 {
            assert_eq!(refusals.due("a", 1, start + Duration::from_secs(59)), None);
        }
        assert_eq!(refusals.due("b", 1, start), Some(0));
        assert_eq!(refusals.due("a", 2, start), Some(0));
        assert_eq!(refusals.due("a", 1, start + QUIET), Some(5));
        assert_eq!(refusals.due("a", 1, start + QUIET), None);
        for uid in 0..3000 {
            refusals.due("a", uid, start);
        }
        assert!(refusals.0.lock().unwrap().len() <= MOST);
    }

    #[tokio::test]
    async fn who_spoke_before_he_was_refused_reads_an_end_not_an_error() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tokio::net::UnixStream;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[b'x'; 10_000]).await.unwrap();
        hang_up(&ours);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 10]).await.unwrap(), 0);
    }

    #[test]
    fn names_of_processes() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!name_of(own).unwrap().is_empty());
        assert_eq!(name_of(i32::MAX), None);
    }
}
