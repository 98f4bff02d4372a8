//! Bytes that came in and the lines in them.
//!
//! Standard:  RFC 5321 §2.3.8 and §4.5.3.1.4, RFC 4954 §4 (12,288 bytes for AUTH).
//! Trust:     a line longer than its cap is never kept: it is reported once and dropped up to its LF.
//! Never:     leave a password in memory that is given back: what is read, moved or outgrown is wiped.

use zeroize::Zeroize as _;

/// Longest command line with CRLF: 512 and what the extensions add (SIZE, BODY, SMTPUTF8, AUTH=), rounded up.
pub(crate) const MAX_COMMAND: usize = 2_048;
/// Longest AUTH command or response line with CRLF (RFC 4954 §4).
pub(crate) const MAX_AUTH: usize = 12_288;

/// One line taken from the input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// A whole line without its end.
    Text {
        /// The bytes before the line end.
        bytes: Vec<u8>,
        /// Whether it ended with CRLF, not with a bare LF.
        crlf: bool,
    },
    /// A line over the cap. It has been, or will be, dropped up to its LF.
    TooLong,
}

/// Unread bytes of one connection.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Start of what has not been read.
    at: usize,
    /// Bytes behind `at` that are known to hold no LF.
    scanned: usize,
    /// In the middle of a line over the cap.
    skipping: bool,
}

impl Input {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        let wanted = self.bytes.len() + bytes.len();
        if wanted > self.bytes.capacity() {
            let mut larger = Vec::with_capacity(wanted.max(2 * self.bytes.len()));
            larger.extend_from_slice(&self.bytes);
            self.bytes.zeroize();
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything that waits.
    pub fn take(&mut self) -> Vec<u8> {
        self.compact();
        self.scanned = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Drops and wipes everything that waits.
    pub fn clear(&mut self) {
        self.bytes.zeroize();
        self.at = 0;
        self.scanned = 0;
    }

    /// Takes the next line. AUTH lines have a higher cap: `auth` says that one is expected, and a line that starts
    /// with `AUTH ` is recognised.
    pub fn line(&mut self, auth: bool) -> Option<Line> {
        loop {
            let waiting = self.bytes.get(self.at..).unwrap_or_default();
            let cap = if auth || starts_with_auth(waiting) { MAX_AUTH } else { MAX_COMMAND };
            let unseen = waiting.get(self.scanned..).unwrap_or_default();
            let Some(end) = memchr::memchr(b'\n', unseen).map(|found| self.scanned + found) else {
                self.scanned = waiting.len();
                if self.skipping {
                    self.clear();
                    return None;
                }
                if waiting.len() < cap {
                    return None;
                }
                self.clear();
                self.skipping = true;
                return Some(Line::TooLong);
            };
            let raw = waiting.get(..end).unwrap_or_default();
            let too_long = end + 1 > cap;
            let text = raw.strip_suffix(b"\r");
            let line = Line::Text { bytes: text.unwrap_or(raw).to_vec(), crlf: text.is_some() };
            self.consume(end + 1);
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            return Some(if too_long { Line::TooLong } else { line });
        }
    }

    /// Steps over bytes and wipes them: they may have been a password.
    fn consume(&mut self, count: usize) {
        let end = (self.at + count).min(self.bytes.len());
        if let Some(read) = self.bytes.get_mut(self.at..end) {
            read.zeroize();
        }
        self.at = end;
        self.scanned = 0;
        if self.is_empty() {
            // An idle connection keeps no buffer.
            self.bytes = Vec::new();
            self.at = 0;
        }
    }

    fn compact(&mut self) {
        if self.at > 0 {
            let waiting = self.move_down();
            self.bytes.truncate(waiting);
        }
    }

    /// Moves what waits to the beginning, with zeros behind it. Returns its length.
    fn move_down(&mut self) -> usize {
        let waiting = self.len();
        self.bytes.copy_within(self.at.., 0);
        if let Some(stale) = self.bytes.get_mut(waiting..) {
            stale.fill(0);
        }
        self.at = 0;
        waiting
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

fn starts_with_auth(line: &[u8]) -> bool {
    line.get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"AUTH "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &mut Input) -> Vec<String> {
        std::iter::from_fn(|| input.line(false))
            .map(|line| match line {
                Line::Text { bytes, crlf } => {
                    format!("{}{}", String::from_utf8_lossy(&bytes), if crlf { "" } else { "|LF" })
                }
                Line::TooLong => "TOO LONG".into(),
            })
            .collect()
    }

    #[test]
    fn splits_and_keeps_the_rest() {
        let mut input = Input::default();
        input.push(b"one\r\ntwo\nthr");
        assert_eq!(lines(&mut input), ["one", "two|LF"]);
        input.push(b"ee\r");
        assert!(lines(&mut input).is_empty());
        input.push(b"\n");
        assert_eq!(lines(&mut input), ["three"]);
        assert!(input.is_empty());
    }

    #[test]
    fn what_is_read_or_moved_is_wiped() {
        let mut input = Input::default();
        input.push(b"AUTH pw\r\nnext");
        assert_eq!(lines(&mut input), ["AUTH pw"]);
        assert_eq!(input.bytes, b"\0\0\0\0\0\0\0\0\0next");
        assert_eq!(input.move_down(), 4);
        assert_eq!(input.bytes, b"next\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn caps_with_any_split() {
        for (length, auth_word, fits) in [
            (MAX_COMMAND, false, true),
            (MAX_COMMAND + 1, false, false),
            (MAX_AUTH, true, true),
            (MAX_AUTH + 1, true, false),
            (300_000, true, false),
        ] {
            let start = if auth_word { "AUTH " } else { "NOOP " };
            let line = format!("{start}{}\r\nnext\r\n", "x".repeat(length - start.len() - 2));
            for step in [1, 7, 2048, usize::MAX] {
                let mut input = Input::default();
                let mut got = Vec::new();
                for chunk in line.as_bytes().chunks(step.min(line.len())) {
                    input.push(chunk);
                    got.extend(lines(&mut input));
                    assert!(step == usize::MAX || input.len() <= MAX_AUTH + step, "kept {}", input.len());
                }
                assert_eq!(got.len(), 2, "{length} {step}");
                assert_eq!(got[0] != "TOO LONG", fits, "{length} {step}");
                assert_eq!(got[1], "next");
            }
        }
    }
}
