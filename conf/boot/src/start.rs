//! What a daemon starts with.
//!
//! Trust: the supervisor, over the control channel; a slice is size-limited and sealed, so it cannot change while it
//!        is read.
//! Never: put a slice where another process finds it by a name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::channel::{self, FromChild, Outgoing, SocketEntry};
use crate::plan::Slice;
use crate::sandbox::Restricted;

/// No configuration slice is larger.
const MAX_SLICE: u64 = 64 << 20;

/// What a daemon's `main` is given.
#[derive(Debug)]
#[non_exhaustive]
pub struct Start {
    /// The role this process plays.
    pub role: String,
    /// Its configuration.
    pub slice: Slice,
    /// Its listening sockets, already listening and not blocking.
    pub sockets: Sockets,
    /// The way to the supervisor; give it to [`crate::Control::new`] inside the runtime.
    pub control: ControlFd,
    /// How long work in flight may take once the daemon is told to stop.
    pub grace: Duration,
}

/// The channel to the supervisor, before a runtime drives it.
#[derive(Debug)]
pub struct ControlFd {
    pub(crate) stream: UnixStream,
    /// Bytes and descriptors that arrived behind the start record.
    pub(crate) decoder: crate::channel::Decoder,
    pub(crate) role: String,
    pub(crate) grace: Duration,
    /// Open file to read the own memory use from, opened before any sandbox.
    pub(crate) memory: Option<File>,
    /// Process id of the supervisor; none in tests without one.
    pub(crate) supervisor: Option<u32>,
}

impl ControlFd {
    /// Tells the process that started this one what it is kept from, where its `main` adds to the start ritual.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn restricted(&self, restricted: Restricted) -> Result<(), crate::Error> {
        channel::send_blocking(&self.stream, Outgoing::new(&FromChild::Restricted(restricted), Vec::new())?)
    }
}

/// Listening sockets by listener name.
#[derive(Debug, Default)]
pub struct Sockets(pub(crate) Vec<Listening>);

#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) name: String,
    pub(crate) unix: bool,
    pub(crate) fd: OwnedFd,
}

impl Sockets {
    /// No socket yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a TCP listener (tests, and programs without a supervisor).
    pub fn add_tcp(&mut self, name: impl Into<String>, listener: TcpListener) {
        self.0.push(Listening { name: name.into(), unix: false, fd: listener.into() });
    }

    /// Adds a unix listener (tests, and programs without a supervisor).
    pub fn add_unix(&mut self, name: impl Into<String>, listener: UnixListener) {
        self.0.push(Listening { name: name.into(), unix: true, fd: listener.into() });
    }

    /// Takes out all TCP listeners of this name.
    pub fn take_tcp(&mut self, name: &str) -> Vec<TcpListener> {
        self.take(name, false).map(TcpListener::from).collect()
    }

    /// Takes out all unix listeners of this name.
    pub fn take_unix(&mut self, name: &str) -> Vec<UnixListener> {
        self.take(name, true).map(UnixListener::from).collect()
    }

    /// The names that still have sockets.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|socket| socket.name.as_str()).collect()
    }

    /// Whether all sockets were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, name: &str, unix: bool) -> impl Iterator<Item = OwnedFd> {
        let all = std::mem::take(&mut self.0);
        let (taken, kept) = all.into_iter().partition(|socket| socket.name == name && socket.unix == unix);
        self.0 = kept;
        let taken: Vec<Listening> = taken;
        taken.into_iter().map(|socket| socket.fd)
    }
}

/// A slice as a sealed file in memory: whoever holds it can read it, nobody can change it.
pub(crate) fn seal(slice: &Slice) -> io::Result<OwnedFd> {
    let file =
        File::from(memfd_create(c"postern-slice", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all_at(slice, 0)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Reads a sealed slice. By offset: the position is shared with everybody else who holds the file.
pub(crate) fn read_slice(fd: OwnedFd) -> io::Result<Slice> {
    let file = File::from(fd);
    let length = file.metadata()?.len();
    if length > MAX_SLICE {
        return Err(io::Error::other(format!("a configuration slice of {length} bytes")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Slice::from(bytes))
}

/// The descriptors of a start or reload record: the slice, then the sockets in the record's order.
pub(crate) fn unpack(entries: Vec<SocketEntry>, fds: Vec<OwnedFd>) -> io::Result<(Slice, Sockets)> {
    if fds.len() != entries.len() + 1 {
        return Err(io::Error::other(format!("{} sockets announced, {} came", entries.len() + 1, fds.len())));
    }
    let mut fds = fds.into_iter();
    let slice = fds.next().ok_or(io::ErrorKind::InvalidData)?;
    let sockets = entries.into_iter().zip(fds);
    let sockets = sockets.map(|(entry, fd)| Listening { name: entry.name, unix: entry.unix, fd }).collect();
    Ok((read_slice(slice)?, Sockets(sockets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_sealed() {
        let fd = seal(&Slice::from(b"hello".to_vec())).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(1).is_err());
        assert_eq!(&*read_slice(fd.try_clone().unwrap()).unwrap(), b"hello");
        assert_eq!(&*read_slice(fd).unwrap(), b"hello");
    }

    #[test]
    fn sockets_are_taken_by_name_and_kind() {
        let mut sockets = Sockets::new();
        for name in ["imap", "imap", "imaps"] {
            sockets.add_tcp(name, TcpListener::bind("127.0.0.1:0").unwrap());
        }
        assert_eq!(sockets.take_unix("imap").len(), 0);
        assert_eq!(sockets.take_tcp("imap").len(), 2);
        assert_eq!(sockets.names().into_iter().collect::<Vec<_>>(), ["imaps"]);
        assert_eq!(sockets.take_tcp("imap").len(), 0);
    }
}
