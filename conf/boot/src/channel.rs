//! Frames on the internal channels: supervisor and daemon, supervisor and admin command.
//!
//! Format:  version (u16), number of descriptors (u16), length (u32), all big-endian; then a JSON body.
//! Trust:   sizes and version are checked before anything is allocated or parsed. Who does not expect descriptors
//!          gives the kernel no room for them, so it closes them itself.
//! Never:   keep a descriptor that nobody expects.
//! Source:  unix(7), "SCM_RIGHTS"; the kernel takes at most 253 descriptors per message.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use crate::Error;
use crate::caps::Capability;
use crate::logging::LogOptions;
use crate::sandbox::{Access, Restricted};
use crate::seccomp::{Mode, Profile};

/// Version of everything said on these channels. Both ends are the same executable, except across an upgrade.
const VERSION: u16 = 1;
/// Largest body. A configuration slice travels as a descriptor, so bodies are small.
pub(crate) const MAX_BODY: usize = 4 << 20;
const HEADER: usize = 8;
/// Below the kernel's 253.
const FDS_PER_MESSAGE: usize = 200;
const READ_SIZE: usize = 16 << 10;

/// What the supervisor says to a daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToChild {
    /// First frame. Descriptors: slice, then the sockets in order.
    Start(Box<StartRecord>),
    /// Descriptors as for `Start`.
    Reload { sockets: Vec<SocketEntry>, log: Option<LogOptions> },
    /// Stop within this many milliseconds.
    Stop { grace_ms: u64 },
    /// Report the numbers.
    Stats,
    /// An admin command.
    Ask { id: u64, body: serde_json::Value },
    /// Something for its role; with a descriptor, a stream to be served.
    Hand { body: serde_json::Value },
    /// The answer to [`FromChild::Status`].
    Status { id: u64, status: crate::admin::Status },
}

/// How a daemon process is to set itself up.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StartRecord {
    pub(crate) sockets: Vec<SocketEntry>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Vec<u32>,
    pub(crate) no_new_privs: bool,
    pub(crate) capabilities: Option<Vec<Capability>>,
    pub(crate) profile: Option<Profile>,
    pub(crate) sandbox: Mode,
    pub(crate) files: Vec<Access>,
    pub(crate) open_files: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) grace_ms: u64,
    pub(crate) log: Option<LogOptions>,
}

/// One socket of a start or reload record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SocketEntry {
    pub(crate) name: String,
    pub(crate) unix: bool,
}

/// What a daemon says to the supervisor. Reports and answers; the one wish is to read the status, of a daemon whose
/// plan allows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromChild {
    /// What the start ritual has done; comes before `Ready`.
    Restricted(Restricted),
    Ready,
    Reloaded {
        error: Option<String>,
    },
    Stats(Stats),
    Answer {
        id: u64,
        result: Result<serde_json::Value, String>,
    },
    /// A helper's word to the daemon that started it.
    Note {
        body: serde_json::Value,
    },
    Status {
        id: u64,
    },
}

/// Numbers of one daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    pub(crate) connections: u64,
    pub(crate) total: u64,
    pub(crate) memory_kib: Option<u64>,
    /// Processes it has started that say what their start ritual has done.
    #[serde(default)]
    pub(crate) helpers: BTreeMap<u32, Restricted>,
    #[serde(default)]
    pub(crate) figures: Vec<crate::figures::Sample>,
}

/// One received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Frame {
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Protocol(error.to_string()))
    }
}

/// Collects bytes and descriptors until a frame is complete.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    descriptors: Descriptors,
}

/// Whether the other end may send descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptors {
    Accepted,
    Refused,
}

impl Decoder {
    pub(crate) fn new(descriptors: Descriptors) -> Self {
        Self { bytes: Vec::new(), fds: VecDeque::new(), descriptors }
    }

    /// As if these bytes had been received.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Receives once. 0 is the end of the stream.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut chunk = [0_u8; READ_SIZE];
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let mut space = nix::cmsg_space!([RawFd; 253]);
        let room = (self.descriptors == Descriptors::Accepted).then_some(space.as_mut_slice());
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, room, MsgFlags::MSG_CMSG_CLOEXEC)?;
        let received = message.bytes;
        if self.descriptors == Descriptors::Accepted {
            for control in message.cmsgs()? {
                let ControlMessageOwned::ScmRights(fds) = control else { continue };
                // SAFETY: the kernel has just installed these descriptors in this process for this message, and
                // nothing else knows their numbers yet.
                self.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            if message.flags.contains(MsgFlags::MSG_CTRUNC) {
                return Err(io::Error::other("descriptors were lost; raise the limit on open files"));
            }
        }
        self.bytes.extend_from_slice(chunk.get(..received).unwrap_or_default());
        Ok(received)
    }

    /// The next complete frame.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Error> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [v1, v2, n1, n2, l1, l2, l3, l4] = *header;
        let version = u16::from_be_bytes([v1, v2]);
        if version != VERSION {
            return Err(Error::Protocol(format!("version {version} instead of {VERSION}")));
        }
        let length = usize::try_from(u32::from_be_bytes([l1, l2, l3, l4])).unwrap_or(usize::MAX);
        if length > MAX_BODY {
            return Err(Error::Protocol(format!("a frame of {length} bytes")));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let count = usize::from(u16::from_be_bytes([n1, n2]));
        if count > self.fds.len() {
            return Err(Error::Protocol(format!("{count} descriptors announced, {} came", self.fds.len())));
        }
        let body = body.to_vec();
        self.bytes.drain(..HEADER + length);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(Some(Frame { body, fds: self.fds.drain(..count).collect() }))
    }
}

/// A frame on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    bytes_sent: usize,
    fds_sent: usize,
}

impl Outgoing {
    pub(crate) fn new(message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let body = serde_json::to_vec(message).map_err(|error| Error::Protocol(error.to_string()))?;
        let too_big =
            || Error::Protocol(format!("a frame of {} bytes, {} descriptors", body.len(), fds.len()));
        let length = u32::try_from(body.len()).map_err(|_| too_big())?;
        let count = u16::try_from(fds.len()).map_err(|_| too_big())?;
        // Every further message of descriptors must carry a byte; the header alone has enough for 1,600.
        if body.len() > MAX_BODY || fds.len() > FDS_PER_MESSAGE * HEADER {
            return Err(too_big());
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&body);
        Ok(Self { bytes, fds, bytes_sent: 0, fds_sent: 0 })
    }

    /// Sends once. True when all is sent.
    fn write_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let waiting = self.fds.get(self.fds_sent..).unwrap_or_default();
        let batch: Vec<RawFd> = waiting.iter().take(FDS_PER_MESSAGE).map(AsRawFd::as_raw_fd).collect();
        let mut bytes = self.bytes.get(self.bytes_sent..).unwrap_or_default();
        if waiting.len() > batch.len() {
            bytes = bytes.get(..1).unwrap_or_default();
        }
        let rights = [ControlMessage::ScmRights(&batch)];
        let control = if batch.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        // Descriptors go with the first byte of a message, so they are through even if not all bytes are.
        self.bytes_sent += sent;
        self.fds_sent += batch.len();
        Ok(self.bytes_sent >= self.bytes.len() && self.fds_sent >= self.fds.len())
    }
}

/// Receives a frame. `None`: the other end is closed. Cancel-safe, the decoder keeps what came.
pub(crate) async fn recv(
    stream: &tokio::net::UnixStream,
    decoder: &mut Decoder,
) -> Result<Option<Frame>, Error> {
    loop {
        if let Some(frame) = decoder.next()? {
            return Ok(Some(frame));
        }
        stream.readable().await.map_err(broken)?;
        match stream.try_io(Interest::READABLE, || decoder.fill(stream.as_fd())) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if retry(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Sends a frame completely.
pub(crate) async fn send(stream: &tokio::net::UnixStream, mut frame: Outgoing) -> Result<(), Error> {
    loop {
        stream.writable().await.map_err(broken)?;
        match stream.try_io(Interest::WRITABLE, || frame.write_some(stream.as_fd())) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if retry(&error) => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Receives a frame on a blocking socket; its read timeout applies to each piece.
pub(crate) fn recv_blocking(stream: &UnixStream, decoder: &mut Decoder) -> Result<Option<Frame>, Error> {
    loop {
        if let Some(frame) = decoder.next()? {
            return Ok(Some(frame));
        }
        match decoder.fill(stream.as_fd()) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Sends a frame on a blocking socket.
pub(crate) fn send_blocking(stream: &UnixStream, mut frame: Outgoing) -> Result<(), Error> {
    loop {
        match frame.write_some(stream.as_fd()) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn broken(source: io::Error) -> Error {
    Error::System { doing: "internal channel".into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn frames_and_descriptors_arrive_together() {
        let (left, right) = UnixStream::pair().unwrap();
        let many: Vec<OwnedFd> = (0..450).map(|_| null()).collect();
        send_blocking(&left, Outgoing::new(&"first", many).unwrap()).unwrap();
        send_blocking(&left, Outgoing::new(&"second", vec![null()]).unwrap()).unwrap();
        drop(left);
        let mut decoder = Decoder::new(Descriptors::Accepted);
        let first = recv_blocking(&right, &mut decoder).unwrap().unwrap();
        assert_eq!((first.parse::<String>().unwrap().as_str(), first.fds.len()), ("first", 450));
        let second = recv_blocking(&right, &mut decoder).unwrap().unwrap();
        assert_eq!((second.parse::<String>().unwrap().as_str(), second.fds.len()), ("second", 1));
        assert!(recv_blocking(&right, &mut decoder).unwrap().is_none());
    }

    #[test]
    fn hostile_frames_are_refused() {
        let header = |version: u16, fds: u16, length: u32| {
            [&version.to_be_bytes()[..], &fds.to_be_bytes(), &length.to_be_bytes()].concat()
        };
        for (bytes, what) in [
            (header(2, 0, 2), "version"),
            (header(1, 0, u32::MAX), "bytes"),
            (header(1, 0, 4 << 20 | 1), "bytes"),
            ([header(1, 3, 2), b"{}".to_vec()].concat(), "descriptors"),
        ] {
            let (mut left, right) = UnixStream::pair().unwrap();
            left.write_all(&bytes).unwrap();
            let error = recv_blocking(&right, &mut Decoder::new(Descriptors::Accepted)).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn unwanted_descriptors_never_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        send_blocking(&left, Outgoing::new(&"x", vec![null(), null()]).unwrap()).unwrap();
        let error = recv_blocking(&right, &mut Decoder::new(Descriptors::Refused)).unwrap_err();
        assert!(error.to_string().contains("2 descriptors announced, 0 came"), "{error}");
    }
}
