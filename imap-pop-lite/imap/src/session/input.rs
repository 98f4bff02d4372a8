//! The input buffer: lines and literals.
//!
//! Trust: every byte is a client's; the caller says how much of a line or literal may be here.
//! Never: return part of a line as a whole one, or leave a password in memory that is given back.

use zeroize::Zeroize;

/// Capacity kept while nothing is buffered.
const KEEP: usize = 256;

/// A line.
pub(super) enum Line {
    /// Not all here yet.
    Partial,
    /// Longer than allowed.
    TooLong,
    /// Without its line end.
    Whole(Vec<u8>),
}

/// A command.
pub(super) enum Framed {
    /// Not all here yet.
    Partial,
    /// Longer than allowed.
    TooLong,
    /// A line ends in a literal header: [`Input::expect_literal`] or [`Input::drop_command`] must follow.
    Literal { size: u64, non_sync: bool },
    /// All of it, without the last line end.
    Whole(Vec<u8>),
}

/// Bytes from the client, and how far the current command is read.
#[derive(Default)]
pub(super) struct Input {
    buffer: Vec<u8>,
    /// Start of the current line of the current command.
    line: usize,
    /// No line end before here.
    scanned: usize,
    /// End of the line that announced the literal (its line end excluded, included).
    announced: Option<(usize, usize)>,
    /// Octets of literals in the current command.
    literals: usize,
}

impl Input {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let wanted = self.buffer.len() + bytes.len();
        if wanted > self.buffer.capacity() {
            let mut larger = Vec::with_capacity(wanted.max(2 * self.buffer.len()));
            larger.extend_from_slice(&self.buffer);
            self.buffer.zeroize();
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<u8> {
        self.reset();
        std::mem::take(&mut self.buffer)
    }

    pub(super) fn clear(&mut self) {
        self.buffer.zeroize();
        self.reset();
    }

    /// Gives memory back when nothing is buffered.
    pub(super) fn shrink(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP {
            self.buffer = Vec::new();
        }
    }

    fn reset(&mut self) {
        self.line = 0;
        self.scanned = 0;
        self.announced = None;
        self.literals = 0;
    }

    /// Removes and returns the first `len` bytes where they stand: wiping them is up to the caller.
    fn remove(&mut self, len: usize) -> Vec<u8> {
        let mut removed = self.detach(len);
        removed.truncate(len);
        removed
    }

    /// Moves what comes after the first `len` bytes away, and returns the old buffer with zeros in its place.
    fn detach(&mut self, len: usize) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Some(after) = self.buffer.get_mut(len..) {
            rest.extend_from_slice(after);
            after.fill(0);
        }
        self.reset();
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Up to `most` bytes, for streams.
    pub(super) fn take(&mut self, most: u64) -> Vec<u8> {
        self.remove(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// Throws up to `most` bytes away and says how many.
    pub(super) fn discard(&mut self, most: u64) -> u64 {
        self.take(most).len() as u64
    }

    /// The next line end at or after `from`: (end of the text, start of the next line).
    fn line_end(&mut self, from: usize) -> Option<(usize, usize)> {
        let start = self.scanned.max(from);
        match memchr::memchr(b'\n', self.buffer.get(start..)?) {
            Some(at) => {
                let lf = start + at;
                let cr = lf > from && self.buffer.get(lf.wrapping_sub(1)) == Some(&b'\r');
                Some((lf - usize::from(cr), lf + 1))
            }
            None => {
                self.scanned = self.buffer.len();
                None
            }
        }
    }

    /// One line, no literals.
    pub(super) fn line(&mut self, most: usize) -> Line {
        match self.line_end(0) {
            Some((end, next)) if end <= most => {
                let mut line = self.remove(next);
                line.truncate(end);
                Line::Whole(line)
            }
            None if self.buffer.len() <= most => Line::Partial,
            _ => Line::TooLong,
        }
    }

    /// Goes on reading a command; at most `most` octets outside literals.
    pub(super) fn command(&mut self, most: usize) -> Framed {
        // Still inside a literal that was let in.
        if self.line > self.buffer.len() {
            return Framed::Partial;
        }
        let Some((end, next)) = self.line_end(self.line) else {
            return if self.buffer.len() - self.literals > most { Framed::TooLong } else { Framed::Partial };
        };
        if end - self.literals > most {
            return Framed::TooLong;
        }
        let line = self.buffer.get(self.line..end).unwrap_or_default();
        if let Some((size, non_sync)) = literal_at_end(line) {
            self.announced = Some((end, next));
            return Framed::Literal { size, non_sync };
        }
        let mut raw = self.remove(next);
        raw.truncate(end);
        Framed::Whole(raw)
    }

    /// The command up to the literal header just announced.
    pub(super) fn command_so_far(&self) -> &[u8] {
        let end = self.announced.map_or(0, |(end, _)| end);
        self.buffer.get(..end).unwrap_or_default()
    }

    /// Octets of literals let in so far.
    pub(super) fn literal_octets(&self) -> usize {
        self.literals
    }

    /// The announced literal is part of the command.
    pub(super) fn expect_literal(&mut self, octets: usize) {
        if let Some((_, next)) = self.announced.take() {
            self.line = next + octets;
            self.scanned = self.line;
            self.literals += octets;
        }
    }

    /// The command up to the announced literal is not wanted (any more).
    pub(super) fn drop_command(&mut self) {
        if let Some((_, next)) = self.announced.take() {
            self.remove(next).zeroize();
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
        write!(out, "Input({} bytes)", self.buffer.len())
    }
}

/// `{n}` or `{n+}` at the end of a line.
pub(super) fn literal_at_end(line: &[u8]) -> Option<(u64, bool)> {
    let inner = line.strip_suffix(b"}")?;
    let (inner, non_sync) = match inner.strip_suffix(b"+") {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let open = inner.iter().rposition(|b| *b == b'{')?;
    let digits = inner.get(open + 1..)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // More digits than a number has: surely too big.
    let size = std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some((size, non_sync))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_line_is_not_left_behind_it() {
        let mut input = Input::default();
        input.push(b"NOOP\r\nLOGIN b pw\r\n");
        assert_eq!(input.detach(6), b"NOOP\r\n\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(format!("{input:?}"), "Input(12 bytes)");
        let Line::Whole(line) = input.line(100) else { panic!("no line") };
        assert_eq!(line, b"LOGIN b pw");
        assert!(input.is_empty() && input.take(5).is_empty());
    }

    #[test]
    fn growing_keeps_what_is_there() {
        let mut input = Input::default();
        for piece in b"a line that grows and grows\r\nnext".chunks(3) {
            input.push(piece);
        }
        assert_eq!(input.take(7), b"a line ");
        let Line::Whole(line) = input.line(100) else { panic!("no line") };
        assert_eq!(line, b"that grows and grows");
        assert_eq!(input.take_all(), b"next");
    }
}
