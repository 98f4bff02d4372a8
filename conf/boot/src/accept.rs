//! Accepting connections without ever giving up.
//!
//! `accept` fails for reasons of one connection (it is gone again: next, please) and for lack of descriptors or memory
//! (the listener stays readable, so trying again at once would spin). The second kind pauses and logs once in a while.
//!
//! Trust: whoever reaches the listener; no byte of a connection is read here, so all it can do is come and go.
//! Never: end an accept loop, or spin while descriptors or memory are short.

#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long to wait when descriptors or memory are short.
const PAUSE: Duration = Duration::from_millis(100);
/// At most one warning in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The next TCP connection. Cancel-safe.
pub async fn accept_tcp(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    accept(|| listener.accept()).await
}

/// The next connection on a unix socket. Cancel-safe.
pub async fn accept_unix(listener: &UnixListener) -> UnixStream {
    accept(|| listener.accept()).await.0
}

/// A unix socket whose connections are not watched by the runtime yet. Who answers a connection at once spares the calls
/// that register it and take it out again.
#[derive(Debug)]
pub struct BareUnixListener(AsyncFd<StdUnixListener>);

impl BareUnixListener {
    /// Serves this socket. Call inside a tokio runtime.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime.
    pub fn new(listener: StdUnixListener) -> io::Result<BareUnixListener> {
        listener.set_nonblocking(true)?;
        // SAFETY: the listener owns its descriptor, names the same one each time, and is lent out by shared reference only,
        // which cannot close it: it stays open until the `AsyncFd` that holds it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        Ok(BareUnixListener(watched?))
    }

    /// The next connection, a socket that blocks. Cancel-safe; under load others get their turn in between.
    pub async fn accept(&self) -> StdUnixStream {
        let next = || self.0.async_io(Interest::READABLE, StdUnixListener::accept);
        accept(next).await.0
    }
}

async fn accept<T, F: Future<Output = io::Result<T>>>(mut next: impl FnMut() -> F) -> T {
    loop {
        match next().await {
            Ok(accepted) => return accepted,
            Err(error) if needs_pause(&error) => {
                warn_now_and_then(&error);
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
        }
    }
}

/// accept(2): these say the peer or the network gave up; everything else lasts until something is freed.
fn needs_pause(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

fn warn_now_and_then(error: &io::Error) {
    static STARTED: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    /// Milliseconds since `STARTED` before which nothing is logged.
    static QUIET_UNTIL: AtomicU64 = AtomicU64::new(0);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let now = millis(STARTED.get_or_init(Instant::now).elapsed());
    let quiet = QUIET_UNTIL.load(Ordering::Relaxed);
    if now < quiet {
        return;
    }
    let next = now + millis(WARN_EVERY);
    if QUIET_UNTIL.compare_exchange(quiet, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::warn!(%error, "cannot accept connections for the moment; raise limits.open_files if this stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn survives_both_kinds_of_errors() {
        let mut script = [libc::ECONNABORTED, libc::EMFILE, 0].into_iter();
        let started = Instant::now();
        let value = accept(|| {
            let code = script.next().unwrap();
            async move { if code == 0 { Ok(7) } else { Err(io::Error::from_raw_os_error(code)) } }
        })
        .await;
        assert_eq!(value, 7);
        assert!(started.elapsed() >= PAUSE);
    }
}
