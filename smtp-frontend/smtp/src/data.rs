//! The message as it comes in behind DATA.
//!
//! Purpose:   finds the end, undoes dot-stuffing, makes every line end CRLF. Takes whatever pieces arrive; holds no
//!            message bytes of its own.
//! Standard:  RFC 5321 §2.3.8 (only CRLF ends a line), §4.1.1.4 (only CRLF.CRLF ends the data), §4.5.2.
//! Peers:     Postfix from 3.9 on (`smtpd_forbid_bare_newline = normalize`, `cleanup_replace_stray_cr_lf = yes`).
//! Trust:     every byte is a client's.
//! Never:     takes `LF.LF`, `LF.CRLF`, `CR.CR` or any other look-alike for the end, and never gives out a bare CR or
//!            LF: those are the ways a second message is smuggled past a server that reads differently.
//!
//! What stands for what, byte for byte:
//!
//! | On the wire | In the message |
//! | --- | --- |
//! | CRLF `.` CRLF (the CRLF of the DATA command counts as the first) | the end |
//! | LF | CRLF, a line end in every way but that one |
//! | CR, several CR, before LF | part of that line end |
//! | CR, several CR, elsewhere | one blank |
//! | `.` and more at the start of a line, behind CRLF or LF alike | the line without its first dot |
//! | `.` alone on a line, LF on at least one side | `.` alone on a line; whoever sends it on stuffs it again |

/// What happens to a message with bare CR or LF in it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BareNewline {
    /// It is taken, with its line ends set right.
    #[default]
    Normalize,
    /// It is refused.
    Reject,
}

/// A line-end rule broken inside a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Violation {
    /// LF without CR before it.
    BareLf,
    /// CR without LF behind it.
    BareCr,
}

/// What one piece of input held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Bytes used up. Behind them, after the end, stand the next commands.
    pub consumed: usize,
    /// Whether CRLF.CRLF was found.
    pub ended: bool,
}

/// `strict`: every line end so far around the dot was CRLF, so it may be the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// At the start of a line.
    LineStart { strict: bool },
    /// A `.` at the start of a line.
    Dot { strict: bool },
    /// `.` CR at the start of a line.
    DotCr { strict: bool },
    /// Inside a line.
    Text,
    /// CR inside a line.
    Cr,
}

/// Reads one message's data stream.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    violation: Option<Violation>,
}

impl Default for Decoder {
    fn default() -> Self {
        // The CRLF of the DATA command itself counts: a message may be just `.` CRLF.
        Self { state: State::LineStart { strict: true }, violation: None }
    }
}

impl Decoder {
    /// The first rule the message broke. It makes no difference to where the end is.
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Appends the message bytes in `input` to `out`. At most two for each byte, and one for those before.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Chunk {
        let mut rest = input;
        loop {
            if self.state == State::Text {
                let length = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                let (run, behind) = rest.split_at(length);
                out.extend_from_slice(run);
                rest = behind;
            }
            let Some((byte, behind)) = rest.split_first() else {
                return Chunk { consumed: input.len(), ended: false };
            };
            rest = behind;
            if self.step(*byte, out) {
                return Chunk { consumed: input.len() - rest.len(), ended: true };
            }
        }
    }

    /// Answers whether the byte was the last of the data.
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        use State::{Cr, Dot, DotCr, LineStart, Text};
        self.state = match (self.state, byte) {
            (DotCr { strict: true }, b'\n') => return true,
            (LineStart { strict }, b'.') => Dot { strict },
            (Dot { strict }, b'\r') => DotCr { strict },
            (DotCr { .. }, b'\r') => {
                self.note(Violation::BareCr);
                DotCr { strict: false }
            }
            (DotCr { strict: false }, b'\n') => {
                out.extend_from_slice(b".\r\n");
                LineStart { strict: true }
            }
            (Dot { .. }, b'\n') => {
                self.note(Violation::BareLf);
                out.extend_from_slice(b".\r\n");
                LineStart { strict: false }
            }
            (Cr, b'\n') => {
                out.extend_from_slice(b"\r\n");
                LineStart { strict: true }
            }
            (Cr, b'\r') => {
                self.note(Violation::BareCr);
                Cr
            }
            (LineStart { .. } | Text, b'\n') => {
                self.note(Violation::BareLf);
                out.extend_from_slice(b"\r\n");
                LineStart { strict: false }
            }
            (LineStart { .. } | Text, b'\r') => Cr,
            (Cr | DotCr { .. }, _) => {
                self.note(Violation::BareCr);
                out.extend_from_slice(&[b' ', byte]);
                Text
            }
            (LineStart { .. } | Dot { .. } | Text, _) => {
                out.push(byte);
                Text
            }
        };
        false
    }

    fn note(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Decoded = (Vec<u8>, Option<Violation>, Option<Vec<u8>>);

    /// Decodes `wire` cut at `cut`; gives message, violation, and what was left behind the end.
    fn decode(wire: &[u8], cut: usize) -> Decoded {
        let mut decoder = Decoder::default();
        let mut message = Vec::new();
        let (first, second) = wire.split_at(cut);
        let mut pieces = [first, second].into_iter();
        while let Some(piece) = pieces.next() {
            let before = message.len();
            let chunk = decoder.decode(piece, &mut message);
            assert!(message.len() - before <= 2 * piece.len() + 1);
            if chunk.ended {
                let mut rest = piece[chunk.consumed..].to_vec();
                rest.extend(pieces.flatten());
                return (message, decoder.violation(), Some(rest));
            }
            assert_eq!(chunk.consumed, piece.len());
        }
        (message, decoder.violation(), None)
    }

    /// What a client does that sends `message` on.
    fn encode(message: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        for line in message.split_inclusive(|byte| *byte == b'\n') {
            if line.starts_with(b".") {
                wire.push(b'.');
            }
            wire.extend_from_slice(line);
        }
        wire.extend_from_slice(b".\r\n");
        wire
    }

    #[test]
    fn well_formed_messages_at_every_cut() {
        let table: [(&[u8], &[u8], &[u8]); 8] = [
            (b".\r\n", b"", b""),
            (b"\r\n.\r\n", b"\r\n", b""),
            (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
            (b"..\r\n.\r\n", b".\r\n", b""),
            (b"...a\r\n.\r\n", b"..a\r\n", b""),
            (b".a\r\n.\r\n", b"a\r\n", b""),
            (b"a.\r\n.b.\r\n.\r\n.\r\n", b"a.\r\nb.\r\n", b".\r\n"),
            (b"a\0\xff\r\n.\r\n", b"a\0\xff\r\n", b""),
        ];
        for (wire, message, rest) in table {
            for cut in 0..=wire.len() {
                assert_eq!(
                    decode(wire, cut),
                    (message.to_vec(), None, Some(rest.to_vec())),
                    "{wire:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn bare_line_ends_at_every_cut() {
        use Violation::{BareCr, BareLf};
        let table: [(&[u8], &[u8], Violation); 19] = [
            (b"a\nb\r\n.\r\n", b"a\r\nb\r\n", BareLf),
            (b"\n\n.\n\r\n.\r\n", b"\r\n\r\n.\r\n\r\n", BareLf),
            // Stuffed behind LF as behind CRLF.
            (b"a\n.b\n..c\n..\n...\n\r\n.\r\n", b"a\r\nb\r\n.c\r\n.\r\n..\r\n\r\n", BareLf),
            (b"a\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n", BareLf),
            (b"a\n.\r\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n", BareLf),
            (b"a\r\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n", BareLf),
            (b".\nb\r\n.\r\n", b".\r\nb\r\n", BareLf),
            // The line end behind a dot that was content may begin the end.
            (b"a\n.\r\n.\r\n", b"a\r\n.\r\n", BareLf),
            (b"a\r\n.\n.\r\n.\r\n", b"a\r\n.\r\n.\r\n", BareLf),
            (b"a\n\r\n.\r\n", b"a\r\n\r\n", BareLf),
            (b"a\rb\r\n.\r\n", b"a b\r\n", BareCr),
            (b"\r\rb\r\n.\r\n", b" b\r\n", BareCr),
            (b"a\r\r\r\nb\r\n.\r\n", b"a\r\nb\r\n", BareCr),
            (b"a\r\n\r.\r\nb\r\n.\r\n", b"a\r\n .\r\nb\r\n", BareCr),
            (b"a\r\n.\rb\r\n.\r\n", b"a\r\n b\r\n", BareCr),
            (b"a\r\n.\r.\r\nb\r\n.\r\n", b"a\r\n .\r\nb\r\n", BareCr),
            (b"a\r\n.\r\r\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n", BareCr),
            (b"a\r\n.\r\rb\r\n.\r\n", b"a\r\n b\r\n", BareCr),
            (b"a\r.\r\n.\n\r\n.\r\n", b"a .\r\n.\r\n\r\n", BareCr),
        ];
        for (wire, message, violation) in table {
            for cut in 0..=wire.len() {
                assert_eq!(
                    decode(wire, cut),
                    (message.to_vec(), Some(violation), Some(Vec::new())),
                    "{wire:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn look_alikes_never_end_the_data_at_any_cut() {
        use Violation::{BareCr, BareLf};
        let ends: [(&[u8], Violation); 14] = [
            (b"\n.\n", BareLf),
            (b"\n.\r\n", BareLf),
            (b"\r\n.\n", BareLf),
            (b"\r.\r", BareCr),
            (b"\r.\r\n", BareCr),
            (b"\r\n.\r", BareCr),
            (b"\n.\r", BareLf),
            (b"\r.\n", BareCr),
            (b"\r\r\n.\n", BareCr),
            (b"\n\n.\r\n", BareLf),
            (b"\r\n\x00.\r\n\n", BareLf),
            (b"\r\n.\r\r\n", BareCr),
            (b"\r\n. \r\n\n", BareLf),
            (b"\n\r.\r\n", BareLf),
        ];
        for (end, violation) in ends {
            let mut wire = b"first".to_vec();
            wire.extend_from_slice(end);
            wire.extend_from_slice(b"MAIL FROM:<smuggled@x>\r\n.\r\nQUIT\r\n");
            for cut in 0..=wire.len() {
                let (message, found, rest) = decode(&wire, cut);
                assert_eq!(rest.as_deref(), Some(&b"QUIT\r\n"[..]), "{end:?} at {cut}");
                assert_eq!(found, Some(violation), "{end:?} at {cut}");
                assert!(message.ends_with(b"MAIL FROM:<smuggled@x>\r\n"), "{end:?} at {cut}");
                // What comes out has no bare line end left, so sent on it arrives as it is, wherever it goes.
                assert_eq!(decode(&encode(&message), 0), (message, None, Some(Vec::new())));
            }
        }
    }

    #[test]
    fn a_real_end_behind_a_doubled_cr_is_still_the_end() {
        let (message, violation, rest) = decode(b"a\r\r\n.\r\nNOOP\r\n", 3);
        assert_eq!((violation, rest), (Some(Violation::BareCr), Some(b"NOOP\r\n".to_vec())));
        assert_eq!(message, b"a\r\n");
    }

    /// All short strings over the bytes that matter, against the rules said in another way.
    #[test]
    fn every_short_stream() {
        const LETTERS: [u8; 4] = [b'\r', b'\n', b'.', b'a'];
        for length in 0..=8_u32 {
            for number in 0..4_u32.pow(length) {
                let mut wire: Vec<u8> =
                    (0..length).map(|at| LETTERS[(number / 4_u32.pow(at)) as usize % 4]).collect();
                wire.extend_from_slice(b"\r\n.\r\nrest");
                let (message, violation, rest) = decode(&wire, wire.len() / 2);
                let framed = [b"\r\n", &wire[..]].concat();
                let end = memchr::memmem::find(&framed, b"\r\n.\r\n").unwrap() + 5 - 2;
                assert_eq!(rest.as_deref(), Some(&wire[end..]), "{wire:?}");
                let bare =
                    message.split(|byte| *byte == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"))
                        || message.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
                assert!(!bare, "{wire:?}: {message:?}");
                assert_eq!(decode(&encode(&message), 0), (message, None, Some(Vec::new())), "{wire:?}");
                let taken = &wire[..end];
                let lf = taken
                    .iter()
                    .enumerate()
                    .any(|(at, b)| *b == b'\n' && (at == 0 || taken[at - 1] != b'\r'));
                let cr = taken.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
                assert_eq!(violation.is_some(), lf || cr, "{wire:?}");
            }
        }
    }
}
