//! The front's end of a delivery channel: hands a message to whoever may write the mailbox.
//!
//! Use:     on blocking threads only. Several recipients: all are staged before the first is committed, and a committed message
//!          can be taken back as long as the channel is open and nobody has picked it up.
//! Trust:   the other end is a mailbox's owner's process: it may lie, hang or die, and then this message has failed.
//! Durable: [`Channel::done`] without an error means that the message is in the mailbox and synced. A connection that ends
//!          earlier leaves nothing, unless the commit was under way: then the message may be there twice, never lost.
//! Never:   wait without a limit.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use boot::courier::{self, Answer, Ask, Delivery, Kind, Refusal};

/// Longest time for an answer: name services and disks may be slow.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest time for the other end to take a piece.
const WRITE: Duration = Duration::from_secs(60);

/// A message on its way to one mailbox.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

/// Why it does not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("delivery channel: {0}")]
    Lost(#[from] io::Error),
}

impl Channel {
    /// Opens the mailbox of a user.
    pub(crate) fn open(socket: &Path, asked: Delivery) -> Result<Self, Trouble> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(WRITE))?;
        let mut channel = Self(stream);
        let record = courier::encode(Kind::Ask, &Ask::Delivery(asked)).map_err(io::Error::from)?;
        channel.0.write_all(&record)?;
        match channel.answer()? {
            Answer::Ready { .. } => Ok(channel),
            other => Err(unexpected(&other)),
        }
    }

    /// More of the message.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if bytes.is_empty() {
            return Ok(());
        }
        Ok(self.0.write_all(&courier::data(bytes))?)
    }

    /// The message is whole: asks for it to be put on disk.
    pub(crate) fn stage(&mut self) -> Result<(), Trouble> {
        Ok(self.0.write_all(&courier::bare(Kind::Stage))?)
    }

    /// Waits until it is on disk.
    pub(crate) fn staged(&mut self) -> Result<(), Trouble> {
        match self.answer()? {
            Answer::Staged => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for it to be made visible.
    pub(crate) fn commit(&mut self) -> Result<(), Trouble> {
        Ok(self.0.write_all(&courier::bare(Kind::Commit))?)
    }

    /// Waits until it is delivered.
    pub(crate) fn done(&mut self) -> Result<(), Trouble> {
        match self.answer()? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for it to be taken back.
    pub(crate) fn undo(&mut self) -> Result<(), Trouble> {
        Ok(self.0.write_all(&courier::bare(Kind::Undo))?)
    }

    /// Waits until it is gone again.
    pub(crate) fn undone(&mut self) -> Result<(), Trouble> {
        match self.answer()? {
            Answer::Undone => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn answer(&mut self) -> Result<Answer, Trouble> {
        match courier::read_blocking(&mut self.0)? {
            Some((Kind::Answer, body)) => match courier::decode(&body).map_err(io::Error::from)? {
                Answer::Refused(refusal) => Err(refusal.into()),
                answer => Ok(answer),
            },
            Some((kind, _)) => Err(io::Error::other(format!("a record of kind {kind:?}")).into()),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

fn unexpected(answer: &Answer) -> Trouble {
    io::Error::other(format!("an answer out of turn: {answer:?}")).into()
}
