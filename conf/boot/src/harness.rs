//! Running a daemon's `main` without a supervisor: for the daemons' own tests.
//!
//! Trust: the daemon under test, in the same process.
//! Never: wait for an answer without a limit.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Error;
use crate::channel::{self, Decoder, Descriptors, FromChild, Outgoing, SocketEntry, ToChild};
use crate::plan::Slice;
use crate::start::{ControlFd, Sockets, Start, seal};

/// The grace time in [`Start`] and after TERM.
const GRACE: Duration = Duration::from_secs(10);

/// The supervisor's end of a stand-alone daemon. Dropping it is the death of the supervisor ([`crate::Event::Lost`]).
#[derive(Debug)]
pub struct Standalone {
    stream: UnixStream,
    decoder: Decoder,
    asked: u64,
}

/// A [`Start`] as the supervisor would hand it over, and the other end of its control channel.
///
/// # Errors
/// When the system gives no socket pair.
pub fn standalone(role: &str, slice: impl Into<Slice>, sockets: Sockets) -> io::Result<(Start, Standalone)> {
    let (ours, theirs) = UnixStream::pair()?;
    let control = ControlFd {
        stream: theirs,
        decoder: Decoder::new(Descriptors::Accepted),
        role: role.to_owned(),
        grace: GRACE,
        memory: crate::control::open_memory(),
        supervisor: None,
    };
    for socket in &sockets.0 {
        nonblocking(&socket.fd)?;
    }
    let start = Start { role: role.to_owned(), slice: slice.into(), sockets, control, grace: GRACE };
    let standalone = Standalone { stream: ours, decoder: Decoder::new(Descriptors::Refused), asked: 0 };
    Ok((start, standalone))
}

impl Standalone {
    /// Waits until the daemon says it is ready. Blocks.
    ///
    /// # Errors
    /// The daemon ended, or was not ready within the time.
    pub fn wait_ready(&mut self, within: Duration) -> io::Result<()> {
        self.wait(within, |message| matches!(message, FromChild::Ready).then_some(()))
    }

    /// Sends [`crate::Event::Reload`] and waits for the acknowledgement. Blocks.
    ///
    /// # Errors
    /// The daemon ended, or the time is over. The inner result is the daemon's.
    pub fn reload(
        &mut self,
        slice: impl Into<Slice>,
        sockets: Sockets,
        within: Duration,
    ) -> io::Result<Result<(), String>> {
        let mut fds = vec![seal(&slice.into())?];
        let mut entries = Vec::new();
        for socket in sockets.0 {
            nonblocking(&socket.fd)?;
            entries.push(SocketEntry { name: socket.name, unix: socket.unix });
            fds.push(socket.fd);
        }
        self.send(&ToChild::Reload { sockets: entries, log: None }, fds)?;
        self.wait(within, |message| match message {
            FromChild::Reloaded { error } => Some(error.map_or(Ok(()), Err)),
            _ => None,
        })
    }

    /// Sends [`crate::Event::Stop`].
    ///
    /// # Errors
    /// The daemon has ended.
    pub fn stop(&mut self, grace: Duration) -> io::Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.send(&ToChild::Stop { grace_ms }, Vec::new())
    }

    /// Sends [`crate::Event::Ask`] and waits for the answer. Blocks.
    ///
    /// # Errors
    /// The daemon ended, or the time is over. The inner error is the daemon's refusal.
    pub fn ask(&mut self, body: Value, within: Duration) -> io::Result<Result<Value, String>> {
        self.asked += 1;
        let wanted = self.asked;
        self.send(&ToChild::Ask { id: wanted, body }, Vec::new())?;
        self.wait(within, |message| match message {
            FromChild::Answer { id, result } if id == wanted => Some(result),
            _ => None,
        })
    }

    fn send(&mut self, message: &ToChild, fds: Vec<std::os::fd::OwnedFd>) -> io::Result<()> {
        let frame = Outgoing::new(message, fds).map_err(io::Error::other)?;
        channel::send_blocking(&self.stream, frame).map_err(io::Error::other)
    }

    fn wait<T>(&mut self, within: Duration, mut wanted: impl FnMut(FromChild) -> Option<T>) -> io::Result<T> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let frame = match channel::recv_blocking(&self.stream, &mut self.decoder) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(io::Error::other(error)),
            };
            if let Some(found) = wanted(frame.parse().map_err(io::Error::other)?) {
                return Ok(found);
            }
        }
    }
}

fn nonblocking(fd: &std::os::fd::OwnedFd) -> io::Result<()> {
    socket2::SockRef::from(fd).set_nonblocking(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Control, Event};
    use serde_json::json;

    const WITHIN: Duration = Duration::from_secs(10);

    /// A daemon that keeps its slice and tells it when asked.
    fn daemon(start: Start) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut control = Control::new(start.control).unwrap();
            let mut slice = start.slice;
            control.ready().await;
            loop {
                match control.event().await {
                    Event::Reload { slice: next, .. } if next.is_empty() => {
                        control.reloaded(Err("empty".into())).await;
                    }
                    Event::Reload { slice: next, .. } => {
                        slice = next;
                        control.reloaded(Ok(())).await;
                    }
                    Event::Ask(question) if question.body() == "slice" => {
                        question.answer(json!(String::from_utf8_lossy(&slice)));
                    }
                    Event::Ask(_) | Event::Hand { .. } => {}
                    Event::Stop { .. } | Event::Lost => return,
                }
            }
        });
    }

    #[test]
    fn events_reach_a_daemon_and_answers_come_back() {
        let (start, mut supervisor) = standalone("test", b"one".to_vec(), Sockets::new()).unwrap();
        let thread = std::thread::spawn(|| daemon(start));
        supervisor.wait_ready(WITHIN).unwrap();
        assert_eq!(supervisor.ask(json!("slice"), WITHIN).unwrap(), Ok(json!("one")));
        assert_eq!(supervisor.reload(b"two".to_vec(), Sockets::new(), WITHIN).unwrap(), Ok(()));
        assert_eq!(supervisor.reload(vec![], Sockets::new(), WITHIN).unwrap(), Err("empty".into()));
        assert_eq!(supervisor.ask(json!("slice"), WITHIN).unwrap(), Ok(json!("two")));
        assert!(supervisor.ask(json!("what"), WITHIN).unwrap().unwrap_err().contains("no such command"));
        supervisor.stop(WITHIN).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_lost_supervisor_is_noticed() {
        let (start, supervisor) = standalone("test", vec![], Sockets::new()).unwrap();
        let thread = std::thread::spawn(|| daemon(start));
        drop(supervisor);
        thread.join().unwrap();
    }
}
