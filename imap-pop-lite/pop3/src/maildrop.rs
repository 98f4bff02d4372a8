//! The messages of a session, fixed at login.
//!
//! Trust: the driver makes it from the store; numbers are a client's and may be any.
//! Never: give a message another number, or show one that is marked.

use std::fmt::{self, Write as _};

/// A unique id as UIDL shows it: 1 to 70 bytes from `!` to `~` (RFC 1939 §7).
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Uidl(Box<str>);

/// The text cannot be a unique id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a unique id has 1 to 70 printable characters and no space")]
pub struct BadUidl;

impl Uidl {
    /// Dovecot's default form: UID, then UIDVALIDITY, eight hex digits each.
    pub fn from_uid(uid: u32, uid_validity: u32) -> Self {
        Self(format!("{uid:08x}{uid_validity:08x}").into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Uidl {
    type Error = BadUidl;

    fn try_from(text: &str) -> Result<Self, BadUidl> {
        let fits = (1..=70).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(text.into())) } else { Err(BadUidl) }
    }
}

impl fmt::Debug for Uidl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A message as the session shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Octets on the wire: each LF without CR counts as two. Wrong sizes make clients hang or truncate.
    pub size: u64,
    /// Its unique id.
    pub uidl: Uidl,
}

/// All messages, and which are marked for deletion. Indexes are from 0, numbers on the wire from 1.
#[derive(Debug, Default)]
pub struct Maildrop {
    messages: Vec<Message>,
    deleted: Vec<bool>,
    count: usize,
    octets: u64,
}

impl Maildrop {
    /// The messages in the order of their numbers.
    pub fn new(messages: Vec<Message>) -> Self {
        let octets = messages.iter().map(|message| message.size).sum();
        Self { deleted: vec![false; messages.len()], count: messages.len(), octets, messages }
    }

    /// Number of messages that are not marked.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Octets of the messages that are not marked.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Number of all messages.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The message of that number, if it is there and not marked.
    pub(crate) fn numbered(&self, number: u32) -> Option<(usize, &Message)> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Some((index, self.at(index)?))
    }

    /// The message of that index, if it is not marked.
    pub(crate) fn at(&self, index: usize) -> Option<&Message> {
        self.messages.get(index).filter(|_| self.deleted.get(index) == Some(&false))
    }

    pub(crate) fn delete(&mut self, index: usize) {
        if let (Some(message), Some(mark @ false)) = (self.messages.get(index), self.deleted.get_mut(index)) {
            *mark = true;
            self.count -= 1;
            self.octets = self.octets.saturating_sub(message.size);
        }
    }

    pub(crate) fn reset(&mut self) {
        self.deleted.fill(false);
        self.count = self.messages.len();
        self.octets = self.messages.iter().map(|message| message.size).sum();
    }

    pub(crate) fn marked(&self) -> Vec<usize> {
        self.deleted.iter().enumerate().filter(|(_, mark)| **mark).map(|(index, _)| index).collect()
    }
}

/// Appends one line of LIST or UIDL.
pub(crate) fn put_entry(out: &mut String, number: usize, message: &Message, uidl: bool) {
    // Writing to a String does not fail.
    let _ = if uidl {
        write!(out, "{number} {}\r\n", message.uidl.as_str())
    } else {
        write!(out, "{number} {}\r\n", message.size)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids() {
        assert_eq!(Uidl::from_uid(1, 0x6b00_7103).as_str(), "000000016b007103");
        assert!(Uidl::try_from("UID1-2").is_ok());
        for bad in ["", "a b", "a\n", "é", &"x".repeat(71)] {
            assert_eq!(Uidl::try_from(bad), Err(BadUidl), "{bad}");
        }
    }

    #[test]
    fn marks() {
        let message = |size| Message { size, uidl: Uidl::from_uid(1, 1) };
        let mut drop = Maildrop::new(vec![message(10), message(20), message(30)]);
        drop.delete(1);
        drop.delete(1);
        drop.delete(9);
        assert_eq!((drop.count(), drop.octets(), drop.marked()), (2, 40, vec![1]));
        assert!(drop.numbered(0).is_none() && drop.numbered(2).is_none() && drop.numbered(4).is_none());
        assert!(drop.numbered(3).is_some());
        drop.reset();
        assert_eq!((drop.count(), drop.octets(), drop.marked()), (3, 60, vec![]));
    }
}
