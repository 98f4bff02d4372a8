//! Modified UTF-7 for folder names, RFC 3501 §5.1.3. Strict: what has two spellings is refused.
//!
//! Trust: names come from clients and from directories that other programs made.
//! Never: call two spellings of one name valid.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

/// Readable text to its one modified UTF-7 spelling.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut wide: Vec<u16> = Vec::new();
    for c in text.chars() {
        if matches!(c, ' '..='~') {
            flush(&mut wide, &mut out);
            out.push(c);
            if c == '&' {
                out.push('-');
            }
        } else {
            wide.extend_from_slice(c.encode_utf16(&mut [0; 2]));
        }
    }
    flush(&mut wide, &mut out);
    out
}

fn flush(wide: &mut Vec<u16>, out: &mut String) {
    if wide.is_empty() {
        return;
    }
    out.push('&');
    let (mut bits, mut held) = (0u32, 0u32);
    for unit in wide.drain(..) {
        bits = (bits << 16) | u32::from(unit);
        held += 16;
        while held >= 6 {
            held -= 6;
            push_sextet(out, bits >> held);
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        push_sextet(out, bits << (6 - held));
    }
    out.push('-');
}

fn push_sextet(out: &mut String, bits: u32) {
    if let Some(letter) = ALPHABET.get((bits & 63) as usize) {
        out.push(char::from(*letter));
    }
}

/// Whether this is modified UTF-7 in its only spelling: what [`encode`] would give.
pub(crate) fn is_valid(text: &str) -> bool {
    if !text.contains('&') {
        return text.bytes().all(|b| (0x20..=0x7e).contains(&b));
    }
    decode(text).is_some_and(|plain| encode(&plain) == text)
}

/// For showing: the readable text, or the input when it is not valid.
pub(crate) fn decode_lossy(text: &str) -> String {
    decode(text).unwrap_or_else(|| text.to_owned())
}

fn decode(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        let (plain, shifted) = rest.split_at(start);
        out.push_str(plain);
        let (encoded, behind) = shifted.strip_prefix('&')?.split_once('-')?;
        rest = behind;
        if encoded.is_empty() {
            out.push('&');
            continue;
        }
        let mut units: Vec<u16> = Vec::with_capacity(encoded.len());
        let (mut bits, mut held) = (0u32, 0u32);
        for letter in encoded.bytes() {
            let value = ALPHABET.iter().position(|a| *a == letter)?;
            bits = (bits << 6) | u32::try_from(value).ok()?;
            held += 6;
            if held >= 16 {
                held -= 16;
                units.push(u16::try_from((bits >> held) & 0xffff).ok()?);
                bits &= (1 << held) - 1;
            }
        }
        out.push_str(&String::from_utf16(&units).ok()?);
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_pairs() {
        let pairs = [
            ("", ""),
            ("INBOX", "INBOX"),
            ("a&b", "a&-b"),
            ("ü", "&APw-"),
            ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
            ("😀", "&2D3eAA-"),
            ("ä&ö", "&AOQ-&-&APY-"),
        ];
        for (plain, coded) in pairs {
            assert_eq!(encode(plain), coded);
            assert_eq!(decode(coded).as_deref(), Some(plain));
            assert!(is_valid(coded), "{coded}");
        }
    }

    #[test]
    fn refused() {
        for bad in
            ["&", "&A", "&AGE-", "&AP-", "&APw", "&APx-", "&2D0-", "&AOQ-&APY-", "ü", "\t", "&A*A-", "\u{7f}"]
        {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(text in "\\PC{0,40}") {
            let coded = encode(&text);
            prop_assert!(is_valid(&coded));
            prop_assert_eq!(decode(&coded), Some(text));
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = is_valid(&text);
            let _ = decode_lossy(&text);
        }

        #[test]
        fn never_panics_near_misses(text in "[&A-D,+=-]{0,30}") {
            let _ = is_valid(&text);
        }
    }
}
