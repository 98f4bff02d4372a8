//! Tab escaping: how field values carry TAB, CR, LF, NUL and 0x01 itself.
//!
//! Format: 0x01 followed by `0` NUL, `1` 0x01, `t` TAB, `r` CR, `n` LF; 0x01 before any other byte is that byte,
//!         0x01 at the end is dropped (Dovecot `lib/strescape.c`).
//! Trust:  the bytes are the peer's; every sequence has one meaning, broken ones lose a byte and nothing else.
//! Never:  let a TAB, CR or LF of a value through as itself.

use std::borrow::Cow;

/// The escape byte.
const ESC: u8 = 1;

/// Appends `raw` to `out`, escaped.
pub fn escape_into(out: &mut Vec<u8>, raw: &[u8]) {
    if !raw.iter().any(|&byte| needs_escape(byte)) {
        out.extend_from_slice(raw);
        return;
    }
    for &byte in raw {
        match byte {
            0 => out.extend_from_slice(&[ESC, b'0']),
            ESC => out.extend_from_slice(&[ESC, b'1']),
            b'\t' => out.extend_from_slice(&[ESC, b't']),
            b'\r' => out.extend_from_slice(&[ESC, b'r']),
            b'\n' => out.extend_from_slice(&[ESC, b'n']),
            other => out.push(other),
        }
    }
}

/// Undoes [`escape_into`]; borrows when nothing was escaped.
pub fn unescape(wire: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(ESC, wire).is_none() {
        return Cow::Borrowed(wire);
    }
    let mut raw = Vec::with_capacity(wire.len());
    let mut bytes = wire.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != ESC {
            raw.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'0') => raw.push(0),
            Some(b'1') => raw.push(ESC),
            Some(b't') => raw.push(b'\t'),
            Some(b'r') => raw.push(b'\r'),
            Some(b'n') => raw.push(b'\n'),
            Some(other) => raw.push(other),
            None => break,
        }
    }
    Cow::Owned(raw)
}

/// Whether a byte travels as an escape pair; clients that do not unescape would see another name.
pub(crate) fn needs_escape(byte: u8) -> bool {
    matches!(byte, 0 | ESC | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table() {
        for (raw, wire) in [
            (b"plain".as_slice(), b"plain".as_slice()),
            (b"", b""),
            (b"a\tb", b"a\x01tb"),
            (b"\0\x01\r\n", b"\x010\x011\x01r\x01n"),
        ] {
            let mut out = Vec::new();
            escape_into(&mut out, raw);
            assert_eq!(out, wire);
            assert_eq!(unescape(wire).as_ref(), raw);
        }
        assert_eq!(unescape(b"ab\x01").as_ref(), b"ab");
        assert_eq!(unescape(b"\x01x\x01l").as_ref(), b"xl");
    }

    proptest! {
        #[test]
        fn roundtrip(raw: Vec<u8>) {
            let mut out = Vec::new();
            escape_into(&mut out, &raw);
            prop_assert!(!out.iter().any(|b| matches!(b, 0 | b'\t' | b'\r' | b'\n')));
            let back = unescape(&out);
            prop_assert_eq!(back.as_ref(), raw.as_slice());
        }

        #[test]
        fn unescape_takes_anything(wire: Vec<u8>) {
            prop_assert!(unescape(&wire).len() <= wire.len());
        }
    }
}
