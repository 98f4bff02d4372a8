//! Records between the fronts, the broker and whoever writes mailboxes.
//!
//! Format:   version (u8), kind (u8), length (u32, big-endian); then the body. Bodies are JSON, but for [`Kind::Data`].
//! Session:  a front asks ([`Ask::Session`]) and waits for [`Answer::Ready`]. From then on the bytes to the front are the
//!           client's as they are; those from it come as `Data`, so that `Drain` can stand between them.
//! Delivery: `Ask::Delivery`, `Ready`; `Data`…, `Stage` → [`Answer::Staged`] (written and synced in `tmp`), `Commit` →
//!           [`Answer::Done`] (renamed, folder synced). Whatever ends the connection before `Commit` ends the delivery
//!           without a trace. After `Done`, `Undo` → [`Answer::Undone`] takes this very message back if nobody has picked it
//!           up, because another recipient of it failed. There is no record that reads or lists, or removes anything else.
//! Trust:    both ends check version, kind and length before anything is allocated. Names and texts are data: who reads
//!           them decides what they mean. The broker takes exactly one record off the connection, never a byte more.
//! Never:    have a record that reads or lists a mailbox, or removes more than the message just delivered.

use std::io;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Version of these records. Both ends are the same executable, except across an upgrade.
const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER: usize = 6;
/// Largest body of a record that is not data.
pub const MAX_RECORD: usize = 16 << 10;
/// Largest body of [`Kind::Data`].
pub const MAX_DATA: usize = 256 << 10;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An [`Ask`], the first record.
    Ask,
    /// An [`Answer`].
    Answer,
    /// Bytes.
    Data,
    /// Session: end with a word to the client.
    Drain,
    /// Delivery: the message is whole.
    Stage,
    /// Delivery: make it visible.
    Commit,
    /// Delivery: take it away again.
    Undo,
}

/// What a front wants. It names people, never ids or places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Host a session of the login that the authentication daemon keeps for us.
    Session(Ticket, Session),
    /// Take a message for a user.
    Delivery(Delivery),
}

/// The right to fetch a finished login, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// As whom the front introduced itself to the authentication daemon.
    pub client_pid: u32,
    /// The login's number.
    pub id: u32,
    /// The login connection's cookie.
    pub cookie: String,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({}, {})", self.client_pid, self.id)
    }
}

/// A session of a logged-in user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// What is spoken.
    pub protocol: Protocol,
    /// IMAP: tag of the command that logged in; its OK is still to be sent.
    pub tag: String,
    /// Mechanisms the front offers.
    pub mechanisms: Vec<String>,
    /// Names the session in the log.
    pub session: String,
    /// Our address.
    pub local: SocketAddr,
    /// The client's.
    pub remote: SocketAddr,
}

/// A mail protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
}

/// A message on its way to one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// The user's name.
    pub recipient: String,
    /// `smtp` or `lmtp`.
    pub service: String,
    /// Names the message in the log.
    pub session: String,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The mailbox is open.
    Ready {
        /// Whose it is: the canonical name.
        user: String,
    },
    /// The message is on disk, not visible yet.
    Staged,
    /// The message is delivered.
    Done,
    /// The message is gone again.
    Undone,
    /// It cannot be.
    Refused(Refusal),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What kind of trouble.
    pub why: Why,
    /// In words, for the log.
    pub text: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Why {
    /// Not now.
    Temporary,
    /// Another program holds a lock (POP3 tells so).
    InUse,
    /// This user has as many sessions as one may have.
    TooMany,
    /// No such user, or one whose ids may not have mail.
    Denied,
    /// The disk is full.
    NoSpace,
    /// The mailbox is full.
    OverQuota,
}

impl Refusal {
    /// A refusal that passes.
    pub fn temporary(text: impl Into<String>) -> Self {
        Self { why: Why::Temporary, text: text.into() }
    }

    /// A refusal for good.
    pub fn denied(text: impl Into<String>) -> Self {
        Self { why: Why::Denied, text: text.into() }
    }
}

/// What cannot be a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// Written by another program, or by another version.
    #[error("version {0} instead of {VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("records of kind {0} do not exist")]
    Kind(u8),
    /// More than such a record may hold.
    #[error("a record of {0} bytes")]
    Long(u32),
    /// The body says nothing that is understood.
    #[error("{0}")]
    Body(String),
}

impl From<BadRecord> for io::Error {
    fn from(bad: BadRecord) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, bad)
    }
}

impl Kind {
    const ALL: [(u8, Self); 7] = [
        (1, Self::Ask),
        (2, Self::Answer),
        (3, Self::Data),
        (4, Self::Drain),
        (5, Self::Stage),
        (6, Self::Commit),
        (7, Self::Undo),
    ];

    fn most(self) -> usize {
        match self {
            Self::Data => MAX_DATA,
            Self::Ask | Self::Answer => MAX_RECORD,
            Self::Drain | Self::Stage | Self::Commit | Self::Undo => 0,
        }
    }
}

/// Reads a header: what follows, and how much of it.
///
/// # Errors
/// A header of no record.
pub fn header(bytes: [u8; HEADER]) -> Result<(Kind, usize), BadRecord> {
    let [version, kind, l1, l2, l3, l4] = bytes;
    if version != VERSION {
        return Err(BadRecord::Version(version));
    }
    let known = Kind::ALL.into_iter().find(|(number, _)| *number == kind);
    let (_, kind) = known.ok_or(BadRecord::Kind(kind))?;
    let length = u32::from_be_bytes([l1, l2, l3, l4]);
    match usize::try_from(length) {
        Ok(size) if size <= kind.most() => Ok((kind, size)),
        _ => Err(BadRecord::Long(length)),
    }
}

/// The header of a record with a body of this length.
pub fn head(kind: Kind, length: usize) -> [u8; HEADER] {
    let number = Kind::ALL.into_iter().find(|(_, known)| *known == kind).map_or(0, |(number, _)| number);
    let [l1, l2, l3, l4] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [VERSION, number, l1, l2, l3, l4]
}

/// A record with a JSON body.
///
/// # Errors
/// What is longer than a record may be.
pub fn encode(kind: Kind, body: &impl Serialize) -> Result<Vec<u8>, BadRecord> {
    let body = serde_json::to_vec(body).map_err(|error| BadRecord::Body(error.to_string()))?;
    if body.len() > kind.most() {
        return Err(BadRecord::Long(u32::try_from(body.len()).unwrap_or(u32::MAX)));
    }
    let mut record = head(kind, body.len()).to_vec();
    record.extend_from_slice(&body);
    Ok(record)
}

/// A record without a body.
pub fn bare(kind: Kind) -> [u8; HEADER] {
    head(kind, 0)
}

/// Records of data for these bytes.
pub fn data(bytes: &[u8]) -> Vec<u8> {
    let mut records = Vec::with_capacity(bytes.len() + HEADER);
    for piece in bytes.chunks(MAX_DATA) {
        records.extend_from_slice(&head(Kind::Data, piece.len()));
        records.extend_from_slice(piece);
    }
    records
}

/// Reads a JSON body.
///
/// # Errors
/// A body that is not one.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadRecord> {
    serde_json::from_slice(body).map_err(|error| BadRecord::Body(error.to_string()))
}

/// Reads one record, and nothing behind it. `None`: the other end is closed.
///
/// # Errors
/// The connection's, and those of [`header`]. An end in the middle of a record is one.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut bytes = [0; HEADER];
    let got = stream.read(&mut bytes).await?;
    if got == 0 {
        return Ok(None);
    }
    if let Some(rest) = bytes.get_mut(got..) {
        stream.read_exact(rest).await?;
    }
    let (kind, length) = header(bytes)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((kind, body)))
}

/// [`read`] for a blocking stream.
///
/// # Errors
/// As there.
pub fn read_blocking(stream: &mut impl io::Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut bytes = [0; HEADER];
    let got = loop {
        match stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            got => break got?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    if let Some(rest) = bytes.get_mut(got..) {
        stream.read_exact(rest)?;
    }
    let (kind, length) = header(bytes)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Ask {
        Ask::Session(
            Ticket { client_pid: 7, id: 1, cookie: "c".into() },
            Session {
                protocol: Protocol::Imap,
                tag: "a1".into(),
                mechanisms: vec!["PLAIN".into()],
                session: "s".into(),
                local: "127.0.0.1:993".parse().unwrap(),
                remote: "[::1]:4000".parse().unwrap(),
            },
        )
    }

    #[tokio::test]
    async fn records_arrive_one_by_one() {
        let delivery =
            Ask::Delivery(Delivery { recipient: "a@b".into(), service: "smtp".into(), session: "s".into() });
        let mut bytes = encode(Kind::Ask, &session()).unwrap();
        bytes.extend(encode(Kind::Ask, &delivery).unwrap());
        bytes.extend(data(&vec![7; MAX_DATA + 1]));
        bytes.extend(bare(Kind::Stage));
        let mut stream = bytes.as_slice();
        let mut blocking = bytes.as_slice();
        let mut kinds = Vec::new();
        while let Some((kind, body)) = read(&mut stream).await.unwrap() {
            assert_eq!(read_blocking(&mut blocking).unwrap(), Some((kind, body.clone())));
            kinds.push((kind, body.len()));
            match kinds.len() {
                1 => assert_eq!(decode::<Ask>(&body).unwrap(), session()),
                2 => assert_eq!(decode::<Ask>(&body).unwrap(), delivery),
                _ => {}
            }
        }
        assert_eq!(kinds[2..], [(Kind::Data, MAX_DATA), (Kind::Data, 1), (Kind::Stage, 0)]);
    }

    #[tokio::test]
    async fn garbage_is_no_record() {
        for (bytes, what) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "version 71"),
            (b"\x01\x09\0\0\0\0", "kind 9"),
            (b"\x01\x00\0\0\0\0", "kind 0"),
            (b"\x01\x01\xff\xff\xff\xff", "4294967295 bytes"),
            (b"\x01\x01\0\0\x40\x01", "16385 bytes"),
            (b"\x01\x05\0\0\0\x01x", "1 bytes"),
        ] {
            let error = read(&mut &bytes[..]).await.unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        for cut in [&b"\x01"[..], b"\x01\x01\0\0\0\x05ab"] {
            assert_eq!(read(&mut &cut[..]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        for body in [
            "",
            "{}",
            "{\"session\":[]}",
            "{\"delivery\":{\"recipient\":\"a\",\"service\":\"\",\"session\":\"\",\"uid\":0}}",
        ] {
            assert!(decode::<Ask>(body.as_bytes()).is_err(), "{body}");
        }
        let long =
            Delivery { recipient: "x".repeat(MAX_RECORD), service: String::new(), session: String::new() };
        assert!(matches!(encode(Kind::Ask, &Ask::Delivery(long)), Err(BadRecord::Long(_))));
    }
}
