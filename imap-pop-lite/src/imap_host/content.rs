//! One message's content while it is being fetched or searched: read as little as the question needs.
//!
//! Trust: the bytes are a stranger's message, and another program may change the file meanwhile.
//! Never: hold a whole message while a client is waited for.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use maildir::{Mailbox, Uid};

use crate::budget::{Budget, Share};
use crate::wire::{read_range, wire_size};

/// Messages up to this size are read whole at once.
const SMALL: u64 = 64 << 10;
/// Headers are looked for in pieces of at least this size.
const PIECE: u64 = 32 << 10;

/// An opened message.
pub(super) struct Content {
    pub(super) file: Arc<File>,
    /// Bytes on disk.
    pub(super) size: u64,
    /// Bytes on the wire.
    pub(super) virtual_size: u64,
    header: Option<Vec<u8>>,
    whole: Option<(Vec<u8>, Share)>,
    parsed: Option<mime::Message>,
}

/// A stretch of the message and its size on the wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Region {
    pub(super) range: Range<u64>,
    pub(super) octets: u64,
}

impl Content {
    pub(super) fn open(mailbox: &Mailbox, uid: Uid, budget: &Budget) -> Result<Self, maildir::Error> {
        let opened = mailbox.open(uid)?;
        let mut content = Self {
            file: Arc::new(opened.file),
            size: opened.size,
            virtual_size: opened.virtual_size,
            header: None,
            whole: None,
            parsed: None,
        };
        if content.size <= SMALL {
            // Errors show again, and are told, when the bytes are asked for.
            let _ = content.load(budget);
        }
        Ok(content)
    }

    fn load(&mut self, budget: &Budget) -> io::Result<()> {
        if self.whole.is_none() {
            let share = budget.take(self.size);
            let bytes = read_range(&self.file, 0, self.size)?;
            self.whole = Some((bytes, share));
        }
        Ok(())
    }

    /// All bytes and the tree of parts.
    pub(super) fn parts(&mut self, budget: &Budget) -> io::Result<(&[u8], &mime::Message)> {
        self.load(budget)?;
        let bytes = self.whole.as_ref().map(|(bytes, _)| bytes.as_slice()).unwrap_or_default();
        let parsed = self.parsed.get_or_insert_with(|| mime::parse(bytes));
        Ok((bytes, parsed))
    }

    /// The message's header with its blank line, as stored.
    pub(super) fn header(&mut self) -> io::Result<Cow<'_, [u8]>> {
        if let Some((bytes, _)) = &self.whole {
            return Ok(Cow::Borrowed(bytes.get(..mime::header_end(bytes)).unwrap_or_default()));
        }
        if self.header.is_none() {
            let mut read: Vec<u8> = Vec::new();
            loop {
                // Each piece doubles what is there, so that a huge header is not searched again and again.
                let start = read.len() as u64;
                read.extend(read_range(&self.file, start, (start + start.max(PIECE)).min(self.size))?);
                let end = mime::header_end(&read);
                // A blank line at the very end of a piece is found as well: then it ends the piece.
                let found = end < read.len() || read.ends_with(b"\n\n") || read.ends_with(b"\n\r\n");
                if found || read.len() as u64 >= self.size || read.len() as u64 == start {
                    read.truncate(end);
                    break;
                }
            }
            self.header = Some(read);
        }
        Ok(Cow::Borrowed(self.header.as_deref().unwrap_or_default()))
    }

    /// Where a section is; `None` when there is no such part.
    pub(super) fn region(
        &mut self,
        path: &[u32],
        selector: mime::Selector,
        budget: &Budget,
    ) -> io::Result<Option<Region>> {
        if path.is_empty() {
            let whole = Region { range: 0..self.size, octets: self.virtual_size };
            if selector == mime::Selector::All {
                return Ok(Some(whole));
            }
            let (end, octets) = {
                let header = self.header()?;
                (header.len() as u64, wire_size(&header))
            };
            return Ok(match selector {
                mime::Selector::Header => Some(Region { range: 0..end, octets }),
                mime::Selector::Text => {
                    Some(Region { range: end..self.size, octets: self.virtual_size.saturating_sub(octets) })
                }
                _ => None,
            });
        }
        if self.parsed.is_none() {
            self.parts(budget)?;
        }
        let found = self.parsed.as_ref().and_then(|message| message.section(path, selector));
        Ok(found
            .map(|(range, size)| Region { range: range.start as u64..range.end as u64, octets: size.octets }))
    }

    /// The bytes of a stretch, as stored.
    pub(super) fn slice(&self, range: &Range<u64>) -> io::Result<Cow<'_, [u8]>> {
        if let Some((bytes, _)) = &self.whole {
            let start = usize::try_from(range.start).unwrap_or(usize::MAX);
            let end = usize::try_from(range.end).unwrap_or(usize::MAX);
            return Ok(Cow::Borrowed(bytes.get(start..end.min(bytes.len())).unwrap_or_default()));
        }
        Ok(Cow::Owned(read_range(&self.file, range.start, range.end)?))
    }

    /// Before a client is waited for: give back what others may need.
    pub(super) fn release(&mut self) {
        self.whole = None;
    }
}
