//! Sockets that the service manager has opened for us (sd_listen_fds(3)).
//!
//! They are matched with the plan's sockets by address, else by the name in `LISTEN_FDNAMES`
//! (`FileDescriptorName=` of the socket unit), and then used instead of binding.
//!
//! Trust: the service manager that started this process, and only if LISTEN_PID names it.
//! Never: take descriptors twice, or use one that is no stream socket or that no listener of the plan asks for.

#![allow(unsafe_code)]

use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;

use crate::plan::{Bind, SocketSpec};

/// Sockets passed in and not yet claimed.
#[derive(Debug, Default)]
pub(crate) struct Activated(Vec<Passed>);

#[derive(Debug)]
struct Passed {
    name: String,
    address: Option<Address>,
    fd: OwnedFd,
}

#[derive(Debug, PartialEq, Eq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Activated {
    /// The sockets passed to this process; from the second call on, none.
    pub(crate) fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Self::default();
        }
        match sd_notify::listen_fds_with_names() {
            Ok(passed) => {
                let own = passed.map(|(fd, name)| {
                    // SAFETY: the service manager passed these open descriptors to this very process (LISTEN_PID was
                    // compared), nothing else here uses them, and the flag above lets this happen once.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    (name, fd)
                });
                Self::new(own)
            }
            Err(error) => {
                tracing::warn!(%error, "sockets passed by the service manager cannot be used");
                Self::default()
            }
        }
    }

    fn new(passed: impl Iterator<Item = (String, OwnedFd)>) -> Self {
        Self(passed.map(|(name, fd)| Passed { name, address: address_of(&fd), fd }).collect())
    }

    /// The socket for this place, if one was passed.
    pub(crate) fn claim(&mut self, spec: &SocketSpec) -> Option<OwnedFd> {
        let by_address = self.0.iter().position(|passed| match (&passed.address, &spec.bind) {
            (Some(Address::Tcp(have)), Bind::Tcp(want)) => have == want,
            (Some(Address::Unix(have)), Bind::Unix { path, .. }) => have == path,
            _ => false,
        });
        let by_name = || {
            self.0.iter().position(|passed| {
                let same_kind = matches!(
                    (&passed.address, &spec.bind),
                    (Some(Address::Tcp(_)), Bind::Tcp(_)) | (Some(Address::Unix(_)), Bind::Unix { .. })
                );
                same_kind && passed.name == spec.name
            })
        };
        let fd = self.0.swap_remove(by_address.or_else(by_name)?).fd;
        if let Err(error) = SockRef::from(&fd).set_nonblocking(true) {
            tracing::warn!(%error, name = spec.name, "socket passed by the service manager stays blocking");
        }
        Some(fd)
    }

    /// Says which sockets nobody wanted.
    pub(crate) fn report_unclaimed(&self) {
        for passed in &self.0 {
            let (name, address) = (&passed.name, &passed.address);
            tracing::warn!(name, ?address, "a socket passed by the service manager matches no listener");
        }
    }
}

fn address_of(fd: &OwnedFd) -> Option<Address> {
    let socket = SockRef::from(fd);
    if socket.r#type().ok()? != socket2::Type::STREAM {
        return None;
    }
    let address = socket.local_addr().ok()?;
    if let Some(tcp) = address.as_socket() {
        return Some(Address::Tcp(tcp));
    }
    address.as_pathname().map(|path| Address::Unix(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    fn spec(name: &str, bind: Bind) -> SocketSpec {
        SocketSpec { name: name.to_owned(), bind }
    }

    #[test]
    fn address_comes_before_name_and_kind_must_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (one, two) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let at_two = two.local_addr().unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let passed: [(String, OwnedFd); 3] =
            [("imap".into(), one.into()), ("imap".into(), two.into()), ("auth".into(), unix.into())];
        let mut activated = Activated::new(passed.into_iter());

        let got = activated.claim(&spec("other", Bind::Tcp(at_two))).unwrap();
        assert_eq!(TcpListener::from(got).local_addr().unwrap(), at_two);
        let elsewhere = Bind::Tcp("127.0.0.1:1".parse().unwrap());
        assert!(activated.claim(&spec("auth", elsewhere.clone())).is_none());
        assert!(activated.claim(&spec("imap", elsewhere.clone())).is_some());
        assert!(activated.claim(&spec("imap", elsewhere)).is_none());
        let unix = Bind::Unix { path, mode: 0o600, owner: None, group: None };
        assert!(activated.claim(&spec("x", unix)).is_some());
        activated.report_unclaimed();
    }
}
