//! Readable text of headers and bodies, for SEARCH only.
//!
//! Trust:     anything can stand in a message; what cannot be decoded is searched as it is.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Lenient: mail is full of cut padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Text prepared for comparing without regard to case.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// A header value: unfolded, encoded-words decoded (RFC 2047).
pub(super) fn header_value(value: &[u8]) -> String {
    let value = mime::unfold(value);
    let text = utf8(&value);
    let mut out = String::with_capacity(text.len());
    let mut rest: &str = &text;
    let mut after_word = false;
    while let Some(at) = rest.find("=?") {
        let (before, from) = rest.split_at(at);
        // RFC 2047 §6.2: white space between two encoded-words is not there.
        if !(after_word && before.chars().all(|c| c.is_ascii_whitespace())) {
            out.push_str(before);
        }
        match encoded_word(from) {
            Some((decoded, length)) => {
                out.push_str(&decoded);
                rest = from.get(length..).unwrap_or_default();
                after_word = true;
            }
            None => {
                out.push_str("=?");
                rest = from.get(2..).unwrap_or_default();
                after_word = false;
            }
        }
    }
    out.push_str(rest);
    out
}

/// `=?charset?Q?text?=` at the start: the decoded text and the length of the word.
fn encoded_word(text: &str) -> Option<(String, usize)> {
    let inner = text.strip_prefix("=?")?;
    let (charset, rest) = inner.split_once('?')?;
    let (encoding, rest) = rest.split_once('?')?;
    let (body, _) = rest.split_once("?=")?;
    if body.contains([' ', '\t']) || charset.is_empty() {
        return None;
    }
    let bytes = match encoding {
        "B" | "b" => LENIENT.decode(body).ok()?,
        "Q" | "q" => {
            quoted_printable(&body.bytes().map(|b| if b == b'_' { b' ' } else { b }).collect::<Vec<_>>())
        }
        _ => return None,
    };
    // RFC 2231 §5: a language tag may follow the charset.
    let charset = charset.split('*').next().unwrap_or_default();
    let length = 2 + charset_len(inner) + 1 + encoding.len() + 1 + body.len() + 2;
    Some((decode(&bytes, charset), length))
}

fn charset_len(inner: &str) -> usize {
    inner.find('?').unwrap_or(0)
}

/// A body or body part as text.
pub(super) fn body_text(bytes: &[u8], part: &mime::Part) -> String {
    let encoding = part.encoding.trim_ascii();
    let charset = part.content_type.param(b"charset").unwrap_or(b"us-ascii");
    let charset = String::from_utf8_lossy(charset);
    if encoding.eq_ignore_ascii_case(b"base64") {
        let clean: Vec<u8> =
            bytes.iter().copied().filter(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')).collect();
        // A last single character carries no byte.
        let usable = clean.len() - usize::from(clean.len() % 4 == 1);
        let decoded = LENIENT.decode(clean.get(..usable).unwrap_or_default()).unwrap_or_default();
        decode(&decoded, &charset)
    } else if encoding.eq_ignore_ascii_case(b"quoted-printable") {
        decode(&quoted_printable(bytes), &charset)
    } else {
        decode(bytes, &charset)
    }
}

fn quoted_printable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memchr(b'=', rest) {
        out.extend_from_slice(rest.get(..at).unwrap_or_default());
        let after = rest.get(at + 1..).unwrap_or_default();
        rest = match after {
            [b'\r', b'\n', tail @ ..] | [b'\n', tail @ ..] => tail,
            [high, low, tail @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    tail
                }
                _ => {
                    out.push(b'=');
                    after
                }
            },
            _ => {
                out.push(b'=');
                after
            }
        };
    }
    out.extend_from_slice(rest);
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Bytes of a charset as text. Charsets other than these are rare in what people search for.
fn decode(bytes: &[u8], charset: &str) -> String {
    let latin = ["iso-8859-1", "iso-8859-15", "windows-1252", "latin1", "cp1252"];
    if latin.iter().any(|name| charset.eq_ignore_ascii_case(name)) {
        bytes.iter().map(|b| char::from(*b)).collect()
    } else {
        utf8(bytes)
    }
}

/// UTF-8, or else every byte a character, so that plain ASCII in it is still found.
fn utf8(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}

/// The calendar day of a Date field as written, zone and time left out (RFC 3501 §6.4.4 SENTON).
pub(super) fn sent_day(value: &[u8]) -> Option<imap::Date> {
    const MONTHS: [&str; 12] =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let text = utf8(&mime::unfold(value));
    let text = text.split_once(',').map_or(text.as_str(), |(_, rest)| rest);
    let mut words = text.split_ascii_whitespace();
    let day: u8 = words.next()?.parse().ok()?;
    let month = words.next()?.to_ascii_lowercase();
    let month = MONTHS.iter().position(|m| month.starts_with(m))?;
    let year: u16 = words.next()?.parse().ok()?;
    // RFC 5322 §4.3: two and three digits.
    let year = match year {
        0..=49 => year + 2000,
        50..=999 => year + 1900,
        _ => year,
    };
    imap::Date::new(year, u8::try_from(month + 1).ok()?, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values() {
        for (raw, want) in [
            ("plain", "plain"),
            ("=?utf-8?Q?Gr=C3=BC=C3=9Fe?= aus", "Grüße aus"),
            ("=?UTF-8?B?w6Q=?= =?utf-8?q?_b?=", "ä b"),
            ("=?iso-8859-1?q?=E4?=", "ä"),
            ("=?utf-8*de?q?x?=", "x"),
            ("a =?broken?", "a =?broken?"),
            ("=?x?z?y?=", "=?x?z?y?="),
            ("=?utf-8?q?a b?=", "=?utf-8?q?a b?="),
            ("one\r\n two", "one two"),
            ("=?utf-8?B?w6Q?=", "ä"),
        ] {
            assert_eq!(header_value(raw.as_bytes()), want, "{raw}");
        }
    }

    #[test]
    fn quoted_printable_text() {
        assert_eq!(quoted_printable(b"a=\r\nb=3D=zz=4"), b"ab==zz=4");
    }

    #[test]
    fn days() {
        for (raw, want) in [
            ("Fri, 21 Nov 1997 09:55:06 -0600", Some((1997, 11, 21))),
            (" 1 Jan 99 00:00 GMT", Some((1999, 1, 1))),
            ("3 March 2024 x", Some((2024, 3, 3))),
            ("nonsense", None),
            ("", None),
            ("31 Feb 2024", None),
        ] {
            let want = want.and_then(|(y, m, d)| imap::Date::new(y, m, d));
            assert_eq!(sent_day(raw.as_bytes()), want, "{raw}");
        }
    }
}
