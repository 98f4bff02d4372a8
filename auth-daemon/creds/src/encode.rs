//! Hex, base64 and the crypt alphabets.
//!
//! Trust: texts come from whoever wrote the file or row.
//! Never: take half of a text that is not right as a whole.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::{Encoding, Error, Stored};

/// The alphabet of crypt(3) salts and numbers.
pub(crate) const CRYPT64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The alphabet of bcrypt.
pub(crate) const BCRYPT64: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Longest text of a digest scheme: a salt beyond that is no salt.
const MAX_DIGEST_TEXT: usize = 2048;

/// Data of a scheme that has its own text form (crypt, PLAIN, SCRAM …), with an explicit encoding undone.
pub(crate) enum Text<'a> {
    Borrowed(&'a [u8]),
    Owned(Zeroizing<Vec<u8>>),
}

impl Text<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Text::Borrowed(bytes) => bytes,
            Text::Owned(bytes) => bytes,
        }
    }
}

pub(crate) fn text<'a>(stored: &Stored<'a>) -> Result<Text<'a>, Error> {
    match stored.encoding() {
        Encoding::Own => Ok(Text::Borrowed(stored.data())),
        Encoding::Base64 => Ok(Text::Owned(Zeroizing::new(
            base64(stored.data()).ok_or_else(|| stored.malformed("not base64"))?,
        ))),
        Encoding::Hex => Ok(Text::Owned(Zeroizing::new(
            unhex(stored.data()).ok_or_else(|| stored.malformed("not hexadecimal"))?,
        ))),
    }
}

/// Raw bytes of a digest scheme (rules F1.2 to F1.4).
pub(crate) fn raw(stored: &Stored<'_>) -> Result<Vec<u8>, Error> {
    let data = stored.data();
    if data.len() > MAX_DIGEST_TEXT {
        return Err(stored.malformed("too long"));
    }
    let fixed = stored.scheme().fixed_length();
    let bytes = match stored.encoding() {
        Encoding::Hex => unhex(data).ok_or_else(|| stored.malformed("not hexadecimal"))?,
        Encoding::Own if fixed.is_some_and(|length| data.len() == 2 * length) => unhex(data)
            .or_else(|| base64(data))
            .ok_or_else(|| stored.malformed("neither hexadecimal nor base64"))?,
        Encoding::Own | Encoding::Base64 => base64(data).ok_or_else(|| stored.malformed("not base64"))?,
    };
    if fixed.is_some_and(|length| length != bytes.len()) {
        return Err(stored.malformed("wrong length"));
    }
    Ok(bytes)
}

/// Padded base64; blanks around it are ignored.
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim_ascii()).ok()
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2)
        .map(|pair| match *pair {
            [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
            _ => None,
        })
        .collect()
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|n| char::from_digit(u32::from(n), 16)).collect()
}

/// Value of a digit of the crypt alphabet.
pub(crate) fn crypt64_value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'.' => 0,
        b'/' => 1,
        b'0'..=b'9' => digit - b'0' + 2,
        b'A'..=b'Z' => digit - b'A' + 12,
        b'a'..=b'z' => digit - b'a' + 38,
        _ => return None,
    };
    Some(u32::from(value))
}

/// Bytes in the crypt alphabet, three at a time, low bits first: the salts of yescrypt and scrypt.
pub(crate) fn to_crypt64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 2);
    for group in bytes.chunks(3) {
        let value = group.iter().rev().fold(0_u32, |value, b| value << 8 | u32::from(*b));
        push_digits(&mut out, CRYPT64, (0..=group.len()).map(|at| value >> (6 * at)));
    }
    out
}

/// Bytes in the bcrypt alphabet, high bits first.
pub(crate) fn to_bcrypt64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 2);
    for group in bytes.chunks(3) {
        let value = (0..3).fold(0_u32, |value, at| value << 8 | group.get(at).map_or(0, |b| u32::from(*b)));
        push_digits(&mut out, BCRYPT64, (0..=group.len()).map(|at| value >> (18 - 6 * at)));
    }
    out
}

fn push_digits(out: &mut String, alphabet: &[u8; 64], values: impl Iterator<Item = u32>) {
    for value in values {
        let digit = usize::try_from(value & 63).ok().and_then(|at| alphabet.get(at));
        out.extend(digit.map(|b| char::from(*b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    #[test]
    fn crypt_alphabets() {
        assert_eq!(to_crypt64(&[0xff; 16]).len(), 22);
        assert_eq!(to_crypt64(&[1, 0, 0]), "/...");
        assert_eq!(to_crypt64(&[0xff]), "z1");
        // The salt of the first bcrypt example in crypt(5)'s own test set begins like this.
        assert_eq!(to_bcrypt64(&[0; 16]), ".".repeat(22));
        assert_eq!(to_bcrypt64(&[0xff; 16]).len(), 22);
        assert_eq!(to_bcrypt64(&[0xff]), "9u");
        for (at, digit) in CRYPT64.iter().enumerate() {
            assert_eq!(crypt64_value(*digit), u32::try_from(at).ok());
        }
        assert_eq!(crypt64_value(b'$'), None);
    }

    #[test]
    fn raw_bytes() {
        let sha = |text: &'static str| raw(&Stored::parse(text.as_bytes(), Scheme::Crypt).unwrap());
        let hex = "029e5354d5b9f07a85cda26db694c0f4b1be53ef";
        assert_eq!(to_hex(&sha("{SHA}029E5354D5B9F07A85CDA26DB694C0F4B1BE53EF").unwrap()), hex);
        assert_eq!(to_hex(&sha("{SHA} Ap5TVNW58HqFzaJttpTA9LG+U+8= ").unwrap()), hex);
        assert!(sha("{SHA}Ap5TVNW58HqFzaJttpTA9LG+U+8").is_err());
        assert!(sha("{SHA.HEX}02").is_err());
        assert!(sha("{SHA.HEX}0").is_err());
    }
}
