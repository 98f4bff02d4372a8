//! The terminals of answers: quoted strings, literals, NIL.
//!
//! Trust: strings may be any bytes out of messages and names.
//! Never: let one end its quotes or its line: what is not plain goes as a literal.

use std::io::Write as _;

/// Longest quoted string sent; anything longer goes as a literal, which no client limits.
const MAX_QUOTED: usize = 1000;

/// A number in decimal. Answers to large mailboxes are mostly numbers, so this does not go through `fmt`.
pub(crate) fn put_number(out: &mut Vec<u8>, mut n: u64) {
    let start = out.len();
    loop {
        // A remainder of ten fits.
        out.push(b'0' + u8::try_from(n % 10).unwrap_or(0));
        n /= 10;
        if n == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// Writes `{n}` and its line end; the caller sends exactly `size` octets next.
pub fn literal_header(out: &mut Vec<u8>, size: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{{{size}}}\r\n");
}

/// A string: quoted when that needs no escaping, else a literal. NUL cannot be in either
/// (RFC 3501 §9 CHAR8) and becomes 0x80.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |b: &u8| matches!(b, 0x20..=0x7e) && !matches!(b, b'"' | b'\\');
    if text.len() <= MAX_QUOTED && text.iter().all(plain) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        literal_header(out, text.len() as u64);
        out.extend(text.iter().map(|b| if *b == 0 { 0x80 } else { *b }));
    }
}

/// A string or NIL.
pub fn put_nstring(out: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        Some(text) => put_string(out, text),
        None => out.extend_from_slice(b"NIL"),
    }
}

/// An atom when the text is one, else a string.
pub fn put_astring(out: &mut Vec<u8>, text: &[u8]) {
    if !text.is_empty()
        && text.iter().all(|b| crate::parse::is_astring_char(*b))
        && !text.eq_ignore_ascii_case(b"NIL")
    {
        out.extend_from_slice(text);
    } else {
        put_string(out, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for n in [0, 1, 9, 10, 99, 100, 4_294_967_295, u64::MAX] {
            let mut out = b"x".to_vec();
            put_number(&mut out, n);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{n}"));
        }
    }

    #[test]
    fn strings_take_the_form_they_need() {
        for (text, want) in [
            (&b"plain text"[..], &b"\"plain text\""[..]),
            (b"", b"\"\""),
            (b"a\"b", b"{3}\r\na\"b"),
            (b"a\\b", b"{3}\r\na\\b"),
            (b"\xfc", b"{1}\r\n\xfc"),
            (b"a\0b", b"{3}\r\na\x80b"),
            (b"a\r\nb", b"{4}\r\na\r\nb"),
        ] {
            let mut out = Vec::new();
            put_string(&mut out, text);
            assert_eq!(out, want);
        }
        let mut out = Vec::new();
        put_astring(&mut out, b"Sent");
        put_astring(&mut out, b"nil");
        put_astring(&mut out, b"a b");
        put_nstring(&mut out, None);
        assert_eq!(out, b"Sent\"nil\"\"a b\"NIL");
    }
}
