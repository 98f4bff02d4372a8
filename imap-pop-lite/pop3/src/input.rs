//! Lines from the client, bounded.
//!
//! Trust:   a line over its limit is reported once and thrown away up to LF; one over [`MAX_DISCARD`] ends the session.
//! Secrets: consumed bytes are overwritten, buffers are wiped when they grow or go.

use zeroize::Zeroize;

/// Bytes of one line that are read only to be thrown away.
const MAX_DISCARD: usize = 64 * 1024;

/// One look at the input.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Line {
    /// More bytes are needed.
    Partial,
    /// A line without its CRLF (or bare LF). Wipe it after use.
    Whole(Vec<u8>),
    /// A line over the limit ended; it is gone.
    TooLong,
    /// A line without end.
    Flood,
}

#[derive(Default)]
pub(crate) struct Input {
    buffer: Vec<u8>,
    start: usize,
    searched: usize,
    /// Bytes of the current line thrown away so far.
    discarded: usize,
}

impl Input {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.compact();
        let wanted = self.buffer.len() + bytes.len();
        if wanted > self.buffer.capacity() {
            let mut larger = Vec::with_capacity(wanted.next_power_of_two().max(256));
            larger.extend_from_slice(&self.buffer);
            self.buffer.zeroize();
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<u8> {
        self.compact();
        self.searched = 0;
        std::mem::take(&mut self.buffer)
    }

    /// The next line of at most `limit` bytes, its end included.
    pub(crate) fn line(&mut self, limit: usize) -> Line {
        let fresh = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = memchr::memchr(b'\n', fresh) else {
            self.searched = self.buffer.len();
            let pending = self.buffer.len() - self.start;
            if self.discarded + pending > MAX_DISCARD {
                return Line::Flood;
            }
            if self.discarded > 0 || pending >= limit {
                self.discarded += pending;
                self.start = self.buffer.len();
                self.compact();
            }
            return Line::Partial;
        };
        let end = self.searched + at;
        let begin = self.start;
        self.start = end + 1;
        self.searched = end + 1;
        let discarded = std::mem::take(&mut self.discarded);
        if discarded > 0 || end + 1 - begin > limit {
            return if discarded + end - begin > MAX_DISCARD { Line::Flood } else { Line::TooLong };
        }
        let line = self.buffer.get(begin..end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
        self.compact_if_drained();
        Line::Whole(line)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.buffer.len() && self.discarded == 0
    }

    pub(crate) fn clear(&mut self) {
        self.buffer.zeroize();
        self.buffer = Vec::new();
        self.start = 0;
        self.searched = 0;
        self.discarded = 0;
    }

    fn compact_if_drained(&mut self) {
        if self.start == self.buffer.len() {
            self.compact();
        }
    }

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
        if rest == 0 {
            // An idle connection holds no buffer.
            self.buffer = Vec::new();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Input({} bytes)", self.buffer.len() - self.start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &mut Input, limit: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        loop {
            match input.line(limit) {
                Line::Partial => return lines,
                Line::Flood => {
                    lines.push(Line::Flood);
                    return lines;
                }
                line => lines.push(line),
            }
        }
    }

    #[test]
    fn lines_and_limits() {
        let mut input = Input::default();
        input.push(b"NOOP\r\nSTAT\n\r\n");
        assert_eq!(
            all(&mut input, 20),
            [Line::Whole(b"NOOP".to_vec()), Line::Whole(b"STAT".to_vec()), Line::Whole(b"".to_vec())]
        );
        assert!(input.is_empty());
        input.push(&[b'x'; 30]);
        assert_eq!(all(&mut input, 20), []);
        assert!(!input.is_empty());
        input.push(b"\r\nNOOP\r\n");
        assert_eq!(all(&mut input, 20), [Line::TooLong, Line::Whole(b"NOOP".to_vec())]);
        for _ in 0..70 {
            input.push(&[b'x'; 1000]);
            if all(&mut input, 20) == [Line::Flood] {
                return;
            }
        }
        panic!("no flood");
    }

    proptest! {
        #[test]
        fn any_pieces(text in "[a-c\r\n]{0,120}", piece in 1usize..9) {
            let mut whole = Input::default();
            whole.push(text.as_bytes());
            let expected = all(&mut whole, 12);
            let mut input = Input::default();
            let mut lines = Vec::new();
            for part in text.as_bytes().chunks(piece) {
                input.push(part);
                lines.extend(all(&mut input, 12));
            }
            prop_assert_eq!(lines, expected);
        }
    }
}
