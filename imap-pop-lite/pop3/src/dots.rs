//! Messages on the wire: CRLF line ends, dots doubled, a single dot at the end.
//!
//! Rules: LF becomes CRLF and CRLF stays; a CR elsewhere is left alone; what a file lacks at its end (the last line end)
//!        is added and not counted. The octets written, doubled dots and the end aside, are those [`Octets`] counts.
//! Trust: messages are strangers' text.
//! Never: let a line of a message end the transfer.

/// Counts the octets a message has on the wire (RFC 1939 §11), in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Octets {
    total: u64,
    after_cr: bool,
}

impl Octets {
    /// Counts the next piece of the file.
    pub fn feed(&mut self, piece: &[u8]) {
        self.total += piece.len() as u64;
        for at in memchr::memchr_iter(b'\n', piece) {
            let after_cr = match at.checked_sub(1) {
                Some(before) => piece.get(before) == Some(&b'\r'),
                None => self.after_cr,
            };
            self.total += u64::from(!after_cr);
        }
        if let Some(last) = piece.last() {
            self.after_cr = *last == b'\r';
        }
    }

    /// The octets so far.
    pub fn total(self) -> u64 {
        self.total
    }
}

/// Turns the bytes of a message file into what a client is sent, in pieces.
#[derive(Clone, Debug)]
pub struct DotWriter {
    /// Body lines still wanted (TOP); `None` for all.
    lines: Option<u32>,
    line_start: bool,
    after_cr: bool,
    /// Nothing but perhaps a CR in this line so far.
    blank: bool,
    in_header: bool,
    done: bool,
}

impl DotWriter {
    /// A writer for a whole message.
    pub fn whole() -> Self {
        Self { lines: None, line_start: true, after_cr: false, blank: true, in_header: true, done: false }
    }

    /// A writer for the header, the blank line behind it and that many lines of the body.
    pub fn top(lines: u32) -> Self {
        Self { lines: Some(lines), ..Self::whole() }
    }

    /// Whether more of the file is of no use.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Appends the next piece of the file to `out`.
    pub fn write(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        if self.done {
            return;
        }
        out.reserve(piece.len() + piece.len() / 32);
        while !piece.is_empty() {
            let end = memchr::memchr(b'\n', piece);
            let line = piece.get(..end.unwrap_or(piece.len())).unwrap_or_default();
            if self.line_start && line.first() == Some(&b'.') {
                out.push(b'.');
            }
            out.extend_from_slice(line);
            if let Some(last) = line.last() {
                self.blank &= !self.after_cr && line == b"\r";
                self.after_cr = *last == b'\r';
                self.line_start = false;
            }
            let Some(end) = end else { return };
            if !self.after_cr {
                out.push(b'\r');
            }
            out.push(b'\n');
            piece = piece.get(end + 1..).unwrap_or_default();
            if self.end_line() {
                return;
            }
        }
    }

    /// Appends what is missing at the end and the final dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        if !self.line_start {
            out.extend_from_slice(b"\r\n");
        }
        if self.lines.is_some() && self.in_header {
            // TOP of a message without a body: old clients wait for the blank line.
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }

    /// A line ended; `true` when TOP has enough.
    fn end_line(&mut self) -> bool {
        let blank = self.blank;
        self.line_start = true;
        self.after_cr = false;
        self.blank = true;
        if self.in_header {
            self.in_header = !blank;
        } else if let Some(lines) = &mut self.lines {
            *lines = lines.saturating_sub(1);
        }
        self.done = !self.in_header && self.lines == Some(0);
        self.done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(mut writer: DotWriter, file: &[u8], piece: usize) -> String {
        let mut out = Vec::new();
        for part in file.chunks(piece) {
            writer.write(part, &mut out);
        }
        writer.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn whole_messages() {
        for (file, expected) in [
            ("", ".\r\n"),
            ("A: b\n\nhi\n", "A: b\r\n\r\nhi\r\n.\r\n"),
            ("A: b\r\n\r\nhi\r\n", "A: b\r\n\r\nhi\r\n.\r\n"),
            ("A: b\n\nhi", "A: b\r\n\r\nhi\r\n.\r\n"),
            ("A: b\n\n.\n..\n.x\n", "A: b\r\n\r\n..\r\n...\r\n..x\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            ("a\rb\r\r\n\rc\n", "a\rb\r\r\n\rc\r\n.\r\n"),
            ("a\n\n\n", "a\r\n\r\n\r\n.\r\n"),
        ] {
            for piece in 1..=file.len().max(1) {
                assert_eq!(
                    render(DotWriter::whole(), file.as_bytes(), piece),
                    expected,
                    "{file:?} by {piece}"
                );
            }
        }
    }

    #[test]
    fn top() {
        let file = "A: b\nC: d\n\n1\n.2\n3\n";
        for (lines, expected) in [
            (0, "A: b\r\nC: d\r\n\r\n.\r\n"),
            (1, "A: b\r\nC: d\r\n\r\n1\r\n.\r\n"),
            (2, "A: b\r\nC: d\r\n\r\n1\r\n..2\r\n.\r\n"),
            (9, "A: b\r\nC: d\r\n\r\n1\r\n..2\r\n3\r\n.\r\n"),
            (u32::MAX, "A: b\r\nC: d\r\n\r\n1\r\n..2\r\n3\r\n.\r\n"),
        ] {
            for piece in 1..=file.len() {
                assert_eq!(
                    render(DotWriter::top(lines), file.as_bytes(), piece),
                    expected,
                    "{lines} by {piece}"
                );
            }
        }
        for (file, expected) in [
            ("A: b\n", "A: b\r\n\r\n.\r\n"),
            ("A: b", "A: b\r\n\r\n.\r\n"),
            ("A: b\r\n\r\n", "A: b\r\n\r\n.\r\n"),
            ("\n1\n", "\r\n.\r\n"),
        ] {
            assert_eq!(render(DotWriter::top(0), file.as_bytes(), 100), expected, "{file:?}");
        }
        let mut writer = DotWriter::top(0);
        writer.write(b"A: b\n\nrest", &mut Vec::new());
        assert!(writer.is_done());
    }

    /// What a client does with a multi-line reply.
    fn unstuff(wire: &str) -> String {
        let body = wire.strip_suffix(".\r\n").unwrap();
        let mut out = String::new();
        for line in body.split_inclusive("\r\n") {
            out.push_str(line.strip_prefix('.').unwrap_or(line));
        }
        out
    }

    proptest! {
        #[test]
        fn octets_are_exact_and_only_the_end_is_a_lone_dot(file in "[a.\r\n ]{0,80}", piece in 1usize..20) {
            let wire = render(DotWriter::whole(), file.as_bytes(), piece);
            let mut octets = Octets::default();
            for part in file.as_bytes().chunks(piece) {
                octets.feed(part);
            }
            prop_assert_eq!(format!("\r\n{wire}").find("\r\n.\r\n"), Some(wire.len() - 3));
            let received = unstuff(&wire);
            let added = if file.is_empty() || file.ends_with('\n') { 0 } else { 2 };
            prop_assert_eq!(received.len() as u64, octets.total() + added);
        }
    }
}
