//! Header blocks: where they end, their fields, unfolding (RFC 5322 §2.2).
//!
//! Trust: every byte is a stranger's.
//! Never: refuse a header: lines that are no field are passed over.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr;

/// One header field; both slices point into the message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Field<'a> {
    /// Field name as written, without the colon and without blanks before it.
    pub name: &'a [u8],
    /// Everything behind the colon, folding included, without the final line end.
    pub value: &'a [u8],
    /// The whole field with its line ends, relative to the scanned block.
    pub range: Range<usize>,
}

/// Iterator over the fields of a header block. Lines that are no field are passed over.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    block: &'a [u8],
    at: usize,
}

/// The fields of `block`, up to its blank line or its end.
pub fn fields(block: &[u8]) -> Fields<'_> {
    Fields { block, at: 0 }
}

/// Offset just behind the blank line that ends the header, or the length when there is none:
/// then all of the message is header.
pub fn header_end(message: &[u8]) -> usize {
    let mut at = 0;
    while at < message.len() {
        let next = line_end(message, at);
        if is_blank(&message[at..next]) {
            return next;
        }
        at = next;
    }
    message.len()
}

/// The fields of `block` with one of `names` (or, with `not`, all others), in their order and
/// spelling, without a blank line at the end (RFC 9051 §6.4.5.1, `HEADER.FIELDS`).
pub fn select_fields(block: &[u8], names: &[impl AsRef<[u8]>], not: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields(block) {
        let named = names.iter().any(|n| n.as_ref().eq_ignore_ascii_case(field.name));
        if named != not {
            out.extend_from_slice(&block[field.range]);
        }
    }
    out
}

/// Joins folded lines by one space and trims blanks at both ends.
pub fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    if !value.iter().any(|&b| b == b'\n' || b == b'\r') {
        return Cow::Borrowed(value);
    }
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(&byte) = rest.first() {
        if byte == b'\r' || byte == b'\n' {
            rest = rest.trim_ascii_start();
            out.push(b' ');
        } else {
            out.push(byte);
            rest = &rest[1..];
        }
    }
    Cow::Owned(out)
}

/// Offset behind the line that starts at `at`.
pub(crate) fn line_end(bytes: &[u8], at: usize) -> usize {
    memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |i| at + i + 1)
}

pub(crate) fn is_blank(line: &[u8]) -> bool {
    matches!(line, b"\n" | b"\r\n")
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        while self.at < self.block.len() {
            let start = self.at;
            let mut end = line_end(self.block, start);
            if is_blank(&self.block[start..end]) {
                self.at = self.block.len();
                return None;
            }
            // RFC 5322 §2.2.3: a line that begins with a blank continues the field before it.
            while end < self.block.len() && matches!(self.block[end], b' ' | b'\t') {
                end = line_end(self.block, end);
            }
            self.at = end;
            let raw = &self.block[start..end];
            let Some(colon) = memchr(b':', raw) else { continue };
            let name = raw[..colon].trim_ascii_end();
            if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
                continue;
            }
            return Some(Field { name, value: without_line_end(&raw[colon + 1..]), range: start..end });
        }
        None
    }
}

fn without_line_end(raw: &[u8]) -> &[u8] {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    raw.strip_suffix(b"\r").unwrap_or(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_order_spelling_and_folding() {
        let block = b"From me\nSUBJECT : a\r\n\tb\r\nbroken line\nTo: x@y\n\nBody: no\n";
        let got: Vec<_> = fields(block).map(|f| (f.name, f.value)).collect();
        assert_eq!(got, [(&b"SUBJECT"[..], &b" a\r\n\tb"[..]), (b"To", b" x@y")]);
        assert_eq!(select_fields(block, &["to"], false), b"To: x@y\n");
        assert_eq!(select_fields(block, &["to"], true), b"SUBJECT : a\r\n\tb\r\n");
    }

    #[test]
    fn header_end_table() {
        for (message, end) in [
            (&b""[..], 0),
            (b"A: b", 4),
            (b"A: b\n\nbody", 6),
            (b"A: b\r\n\r\nbody", 8),
            (b"\nbody", 1),
            (b"A: b\n \nB: c\n", 12),
        ] {
            assert_eq!(header_end(message), end, "{message:?}");
        }
    }

    #[test]
    fn unfold_table() {
        for (value, plain) in [
            (&b" a b "[..], &b"a b"[..]),
            (b" a\r\n\t b", b"a b"),
            (b"a\n b\n  c", b"a b c"),
            (b"\r\n x", b"x"),
            (b"", b""),
        ] {
            assert_eq!(unfold(value).as_ref(), plain, "{value:?}");
        }
    }
}
