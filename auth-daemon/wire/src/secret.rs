//! Bytes that must not be printed or left behind, and the connection cookie.
//!
//! Trust: a cookie shown by a peer is a claim, compared in constant time.
//! Never: print a secret, or free it as it is.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroizing;

/// Bytes that are wiped when dropped and never printed.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<&[u8]> for Secret {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Secret {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("…")
    }
}

/// 128 random bits of one login connection, written as 32 hex digits: the right to `REQUEST` its logins.
#[derive(Clone, Copy, Eq)]
pub struct Cookie([u8; 32]);

impl Cookie {
    /// Makes the text form of 16 random bytes; the caller owns the randomness.
    pub fn from_bytes(random: [u8; 16]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(random) {
            for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
            }
        }
        Self(text)
    }

    /// Reads 32 hex digits as a server sent them.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: [u8; 32] = text.try_into().ok()?;
        text.iter().all(u8::is_ascii_hexdigit).then_some(Self(text))
    }

    /// The 32 hex digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl PartialEq for Cookie {
    /// Takes the same time wherever the first difference is.
    fn eq(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(other.0).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Cookie(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_is_hex_and_compares() {
        let cookie = Cookie::from_bytes([0xA5; 16]);
        assert_eq!(cookie.as_str(), "a5".repeat(16));
        assert_eq!(Cookie::parse(cookie.as_str().as_bytes()), Some(cookie));
        assert_ne!(cookie, Cookie::from_bytes([0xA4; 16]));
        for bad in ["", "a5", &"g5".repeat(16), &"a5".repeat(17)] {
            assert_eq!(Cookie::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(
            format!("{:?} {:?}", Secret::from(b"pw".as_slice()), Cookie::from_bytes([1; 16])),
            "… Cookie(…)"
        );
    }
}
