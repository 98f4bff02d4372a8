//! saslauthd's mux: one request, one answer.
//!
//! Rules:   an outage closes without an answer, which libsasl takes for "try later"; every other text than OK is a wrong
//!          password to it. Realms are joined as `saslauthd -r` does.
//! Timeout: a request must be there within a few seconds, or idle clients would hold all places.
//! Trust:   any local account that may reach the socket; requests are bounded, one to a connection.
//! Never:   answer an outage with a refusal.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_wire::Params;
use auth_wire::mux::{MAX_REQUEST, Parser, Request as MuxRequest, encode_no, encode_ok};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use zeroize::Zeroize as _;

use crate::config::Listener;
use crate::connection::sleep_until;
use crate::engine::Engine;
use crate::exchange::check_password;
use crate::listener::watched;
use crate::outcome::{self, Decision, Outcome, Refusal};
use crate::request::{PeerCredentials, Request};

/// Time for the whole request to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read at a time.
const CHUNK: usize = 4096;
/// Reads for a fifth field, which may be 64 KiB long. A client that goes on sending must not keep the thread.
const BEYOND: usize = 18;
/// What saslauthd's clients are told of any refusal.
const REFUSED: &str = "authentication failed";

/// Serves a connection. The runtime watches it only if something has to be waited for.
///
/// A request that is here as a whole is looked at where it is, and taken off the socket after its answer: taking it wakes
/// a client that sleeps in read(2), for the room in the socket, and once is enough.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    stream: StdStream,
    peer: PeerCredentials,
) -> io::Result<()> {
    let mut parser = Parser::new();
    let mut socket = Socket::Bare(stream);
    let mut wanted = take(socket.as_raw_fd(), &mut parser, MsgFlags::MSG_PEEK);
    let looked_at = !matches!(&wanted, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    if !looked_at {
        parser = Parser::new();
        let Ok(whole) = tokio::time::timeout(READ_TIMEOUT, read(&mut socket, &mut parser)).await else {
            tracing::debug!(listener = listener.name, "a mux client did not finish its request in time");
            return Ok(());
        };
        wanted = whole;
    }
    drop(parser);
    let answer = match wanted? {
        Wanted::Nothing => None,
        Wanted::Refuse(text) => Some(encode_no(&text)),
        // No answer is an outage: the closed connection tells it.
        Wanted::Check(request) => check(&engine, &listener, peer, request).await,
    };
    let answer = answer.unwrap_or_default();
    // Straight into the socket, which has room for so little.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = if answer.is_empty() { 0 } else { send(socket.as_raw_fd(), &answer, flags).unwrap_or(0) };
    if looked_at {
        // Left there, the client would see a broken connection in place of a closed one.
        take_all(socket.as_raw_fd());
    }
    match answer.get(sent..) {
        None | Some([]) => Ok(()),
        Some(rest) => socket.watch()?.write_all(rest).await,
    }
}

/// A connection as it was accepted, or watched by the runtime.
enum Socket {
    Bare(StdStream),
    Watched(UnixStream),
    /// It could not be watched.
    Closed,
}

impl Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::Bare(stream) => stream.as_raw_fd(),
            Socket::Watched(stream) => stream.as_raw_fd(),
            // Every call on it fails with EBADF.
            Socket::Closed => -1,
        }
    }

    fn watch(&mut self) -> io::Result<&mut UnixStream> {
        if let Socket::Bare(_) = self
            && let Socket::Bare(stream) = std::mem::replace(self, Socket::Closed)
        {
            *self = Socket::Watched(watched(stream)?);
        }
        match self {
            Socket::Watched(stream) => Ok(stream),
            Socket::Bare(_) | Socket::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

enum Wanted {
    /// The client went away.
    Nothing,
    /// The request makes no sense.
    Refuse(String),
    /// The request.
    Check(MuxRequest),
}

thread_local! {
    /// One per thread, so that a waiting connection owns no buffer.
    static INPUT: RefCell<[u8; CHUNK]> = const { RefCell::new([0; CHUNK]) };
}

/// Takes what is there, or looks at it; the request is not complete as long as that would block.
fn take(socket: RawFd, parser: &mut Parser, how: MsgFlags) -> io::Result<Wanted> {
    let looks = how.contains(MsgFlags::MSG_PEEK);
    INPUT.with_borrow_mut(|buffer| {
        let (mut more, mut beyond) = (true, 0);
        while more {
            let count = match recv(socket, &mut buffer[..], MsgFlags::MSG_DONTWAIT | how) {
                // Larger ones are not looked at.
                Ok(CHUNK) if looks => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(0) => return Ok(Wanted::Nothing),
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                // What is complete without it is complete.
                Err(_) if parser.is_complete() => break,
                Err(error) => return Err(error.into()),
            };
            let bytes = buffer.get_mut(..count).unwrap_or_default();
            let fed = parser.feed(bytes);
            // It held a password.
            bytes.zeroize();
            match fed {
                Ok(false) if looks => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(false) => {}
                // A fifth field counts only if its bytes are here already; a short read has taken all there is.
                Ok(true) => {
                    beyond += 1;
                    more = count == CHUNK && beyond < BEYOND;
                }
                Err(malformed) => return Ok(Wanted::Refuse(malformed.to_string())),
            }
        }
        Ok(match parser.take() {
            Ok(Some(request)) => Wanted::Check(request),
            Ok(None) => Wanted::Nothing,
            Err(malformed) => Wanted::Refuse(malformed.to_string()),
        })
    })
}

/// Takes all that is there, unread.
fn take_all(socket: RawFd) {
    INPUT.with_borrow_mut(|buffer| {
        for _ in 0..=MAX_REQUEST / CHUNK {
            let count = recv(socket, &mut buffer[..], MsgFlags::MSG_DONTWAIT).unwrap_or(0);
            buffer.get_mut(..count).unwrap_or_default().zeroize();
            if count < CHUNK {
                return;
            }
        }
    });
}

/// Waits for the rest of the request.
async fn read(socket: &mut Socket, parser: &mut Parser) -> io::Result<Wanted> {
    let stream = socket.watch()?;
    let fd = stream.as_raw_fd();
    stream.async_io(Interest::READABLE, || take(fd, parser, MsgFlags::empty())).await
}

/// The answer; `None` for an outage.
async fn check(
    engine: &Arc<Engine>,
    listener: &Listener,
    peer: PeerCredentials,
    wanted: MuxRequest,
) -> Option<Vec<u8>> {
    let began = Instant::now();
    let compiled = engine.config();
    let current = compiled.listeners.get(&listener.name).cloned();
    let listener = current.as_deref().unwrap_or(listener);
    let login = if listener.join_realm { wanted.joined_login() } else { wanted.login.clone() };
    let malformed = wanted.refusal().or_else(|| std::str::from_utf8(&login).err().map(|_| REFUSED));
    let login = String::from_utf8_lossy(&login).into_owned();
    let service = std::str::from_utf8(&wanted.service).unwrap_or_default();
    let mut params = Params::default();
    params.rip = wanted.address.as_deref().and_then(address);
    let mut request = Request::new(params, service_name(listener, service), peer, began);
    request.pam_service = Some(pam_service(listener, service));
    request.mechanism = Some(sasl::Name::Plain);
    let deadline = began + listener.deadline;
    request.until = Some(deadline);
    if let Some(text) = malformed {
        request.original = login;
        let outcome = Outcome::failed(&request, Decision::Refused(Refusal::Credentials), "malformed request");
        outcome::audit(engine, &request, &outcome, &listener.name, began.elapsed());
        return Some(encode_no(text));
    }
    let checked = tokio::time::timeout_at(
        deadline.into(),
        check_password(engine, &compiled, listener, &mut request, &login, None, &wanted.password),
    )
    .await;
    let outcome = checked.unwrap_or_else(|_| {
        Outcome::failed(&request, Decision::Outage, "no answer within the listener's reply_deadline")
    });
    outcome::audit(engine, &request, &outcome, &listener.name, began.elapsed());
    if outcome.not_before.is_some() {
        sleep_until(outcome.not_before).await;
    }
    match outcome.decision {
        Decision::Ok => Some(encode_ok("Success.")),
        Decision::Refused(_) => Some(encode_no(REFUSED)),
        Decision::Outage => None,
    }
}

/// What stands for an empty or odd service.
const DEFAULT_SERVICE: &str = "saslauthd";

/// The service of the request, for rules and logs.
fn service_name(listener: &Listener, wanted: &str) -> String {
    let plain = (1..=64).contains(&wanted.len())
        && wanted.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !wanted.starts_with('.');
    let default = listener.service.as_deref().unwrap_or(DEFAULT_SERVICE);
    if plain { wanted.to_owned() } else { default.to_owned() }
}

/// What stands for `%{service}` in the names of PAM files: only what the listener allows; `*` allows all.
fn pam_service(listener: &Listener, wanted: &str) -> String {
    let name = service_name(listener, wanted);
    if listener.pam_services.iter().any(|allowed| *allowed == name || allowed == "*") {
        // libpam folds the case as well.
        return name.to_ascii_lowercase();
    }
    listener.service.clone().unwrap_or_else(|| DEFAULT_SERVICE.to_owned())
}

/// `ip;port`.
fn address(text: &[u8]) -> Option<std::net::IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.split(';').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_client_that_never_stops_sending_does_not_keep_the_thread() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let writers: Vec<_> = (0..3)
            .map(|number| {
                let mut theirs = theirs.try_clone().unwrap();
                if number == 0 {
                    theirs.write_all(b"\0\x05alice\0\x02pw\0\x04imap\0\0").unwrap();
                }
                // Ends when the other end does.
                std::thread::spawn(move || while theirs.write_all(&[0; 64 << 10]).is_ok() {})
            })
            .collect();
        let taken = take(ours.as_raw_fd(), &mut Parser::new(), MsgFlags::empty());
        assert!(matches!(taken, Ok(Wanted::Check(_))));
        drop(ours);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}
