//! Line framing with bounds.
//!
//! Purpose: cut the byte stream into LF-terminated lines without ever holding more than one line and one read.
//! Trust:   a line over the limit is reported with its first bytes (so that its id can be answered) and thrown
//!          away up to LF; one over [`MAX_DISCARD`] ends the connection.
//! Secrets: consumed bytes are overwritten; a buffer that grows wipes the old one.
//! Never:   hold more than one line and one read of a peer that sends no LF.

use zeroize::Zeroize;

use crate::MAX_DISCARD;

/// How much of an overlong line is kept: command, id and a little more.
const HEAD: usize = 64;
/// Buffers above this are given back to the allocator when they become empty.
const KEEP_CAPACITY: usize = 8_192;

/// One item of the stream.
#[derive(Debug, Eq, PartialEq)]
pub enum ReadLine<'a> {
    /// A line without its LF and without one CR before it.
    Line(&'a [u8]),
    /// A line longer than the limit; these are its first bytes. The rest is gone.
    Overlong(&'a [u8]),
    /// A line beyond [`MAX_DISCARD`]: close the connection.
    Flood,
}

/// Cuts a byte stream into lines.
#[derive(Debug)]
pub struct LineReader {
    buffer: Vec<u8>,
    /// Start of the next line.
    start: usize,
    /// Everything before this was searched for LF.
    searched: usize,
    limit: usize,
    /// Bytes of an overlong line thrown away so far; its head is at the front of the buffer.
    discarding: Option<usize>,
    /// Set once the flood limit is passed.
    flooded: bool,
}

impl LineReader {
    /// A reader for lines of at most `limit` bytes, LF included.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, limit, discarding: None, flooded: false }
    }

    /// Adds bytes. Take all lines before feeding again, or memory grows with what is fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.flooded {
            return;
        }
        self.compact();
        let wanted = self.buffer.len() + bytes.len();
        if wanted > self.buffer.capacity() {
            let mut larger = Vec::with_capacity(wanted.max(512).next_power_of_two());
            larger.extend_from_slice(&self.buffer);
            self.buffer.zeroize();
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, if a whole one is here.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<ReadLine<'_>> {
        if self.flooded {
            return Some(ReadLine::Flood);
        }
        let found = memchr::memchr(b'\n', self.buffer.get(self.searched..).unwrap_or_default());
        if let Some(gone) = self.discarding {
            return self.next_discarding(gone, found.map(|at| self.searched + at));
        }
        match found {
            Some(at) => {
                let end = self.searched + at;
                let begin = self.start;
                self.start = end + 1;
                self.searched = end + 1;
                let line = self.buffer.get(begin..end).unwrap_or_default();
                if end + 1 - begin > self.limit {
                    return Some(if end + 1 - begin > MAX_DISCARD {
                        self.flooded = true;
                        ReadLine::Flood
                    } else {
                        ReadLine::Overlong(line.get(..HEAD).unwrap_or(line))
                    });
                }
                Some(ReadLine::Line(line.strip_suffix(b"\r").unwrap_or(line)))
            }
            None => {
                self.searched = self.buffer.len();
                let pending = self.buffer.len() - self.start;
                if pending < self.limit {
                    return None;
                }
                if pending > MAX_DISCARD {
                    self.flooded = true;
                    return Some(ReadLine::Flood);
                }
                self.compact();
                self.cut(HEAD);
                self.discarding = Some(pending);
                None
            }
        }
    }

    /// Whether no unread byte is buffered.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len() && self.discarding.is_none()
    }

    /// Inside an overlong line: the buffer starts with its head, then come unread bytes.
    fn next_discarding(&mut self, gone: usize, end: Option<usize>) -> Option<ReadLine<'_>> {
        let fresh = end.map_or(self.buffer.len(), |end| end + 1) - self.searched;
        if gone + fresh > MAX_DISCARD {
            self.flooded = true;
            return Some(ReadLine::Flood);
        }
        match end {
            None => {
                self.cut(HEAD);
                self.discarding = Some(gone + fresh);
                None
            }
            Some(end) => {
                self.discarding = None;
                self.start = end + 1;
                self.searched = end + 1;
                Some(ReadLine::Overlong(self.buffer.get(..HEAD).unwrap_or_default()))
            }
        }
    }

    /// Overwrites consumed bytes and moves the rest to the front.
    fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        let rest = self.buffer.len() - self.start;
        self.buffer.copy_within(self.start.., 0);
        if let Some(stale) = self.buffer.get_mut(rest..) {
            stale.fill(0);
        }
        self.buffer.truncate(rest);
        self.searched -= self.start;
        self.start = 0;
        if rest == 0 && self.buffer.capacity() > KEEP_CAPACITY {
            self.buffer = Vec::new();
        }
    }

    /// Wipes and drops everything from `length` on.
    fn cut(&mut self, length: usize) {
        if let Some(stale) = self.buffer.get_mut(length..) {
            stale.fill(0);
        }
        self.buffer.truncate(length);
        self.searched = self.buffer.len();
    }
}

impl Drop for LineReader {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(reader: &mut LineReader) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(item) = reader.next() {
            lines.push(match item {
                ReadLine::Line(line) => String::from_utf8_lossy(line).into_owned(),
                ReadLine::Overlong(head) => format!("overlong {}", head.len()),
                ReadLine::Flood => "flood".into(),
            });
            if lines.last().is_some_and(|line| line == "flood") {
                break;
            }
        }
        lines
    }

    #[test]
    fn splits_in_any_pieces() {
        let text = b"one\r\ntwo\n\nthree\rx\nrest";
        for piece in 1..text.len() {
            let mut reader = LineReader::new(100);
            let mut lines = Vec::new();
            for part in text.chunks(piece) {
                reader.feed(part);
                lines.extend(all(&mut reader));
            }
            assert_eq!(lines, ["one", "two", "", "three\rx"], "pieces of {piece}");
            assert!(!reader.is_empty());
        }
    }

    #[test]
    fn limit_is_exact() {
        let mut reader = LineReader::new(16_384);
        reader.feed(&[b'x'; 16_383]);
        reader.feed(b"\n");
        assert_eq!(all(&mut reader).first().map(String::len), Some(16_383));
        reader.feed(&[b'x'; 16_384]);
        reader.feed(b"\nok\n");
        assert_eq!(all(&mut reader), ["overlong 64", "ok"]);
    }

    #[test]
    fn overlong_is_discarded_in_pieces_and_flood_closes() {
        for piece in [1, 7, 100, 4096, 20_000] {
            let mut reader = LineReader::new(16_384);
            let mut lines = Vec::new();
            let mut text = vec![b'y'; 50_000];
            text.extend_from_slice(b"\nnext\n");
            for part in text.chunks(piece) {
                reader.feed(part);
                lines.extend(all(&mut reader));
                assert!(reader.buffer.capacity() <= 65_536);
            }
            assert_eq!(lines, ["overlong 64", "next"], "pieces of {piece}");
            let mut reader = LineReader::new(16_384);
            let mut last = Vec::new();
            for part in [b'z'; 70_000].chunks(piece) {
                reader.feed(part);
                last = all(&mut reader);
            }
            assert_eq!(last, ["flood"], "pieces of {piece}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_any_pieces(text: Vec<u8>, piece in 1usize..40, limit in 70usize..200) {
            let mut whole = LineReader::new(limit);
            whole.feed(&text);
            let expected = all(&mut whole);
            let mut reader = LineReader::new(limit);
            let mut lines = Vec::new();
            for part in text.chunks(piece) {
                reader.feed(part);
                lines.extend(all(&mut reader));
            }
            prop_assert_eq!(lines, expected);
        }
    }
}
