//! Bytes that are never printed and are wiped when dropped.
//!
//! Trust: what is in here is secret, whoever sent it.
//! Never: print it, or leave it in memory that is given back.

use std::fmt;

use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

/// Overwrites what functions that have returned left on the stack. Hash functions keep the bytes they are fed in blocks of
/// their own, which are moved about and not wiped; called where they were, this is deeper than they went.
#[inline(never)]
pub fn wipe_stack() {
    let mut deep = [0_u8; 32 << 10];
    // The compiler must believe that somebody reads it.
    std::hint::black_box(&mut deep);
}

/// A password, a stored string or a key.
///
/// `Debug` never shows the bytes, comparison takes constant time for equal lengths.
#[derive(Clone, Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text.into_bytes())
    }
}

impl From<&[u8]> for Secret {
    fn from(bytes: &[u8]) -> Secret {
        Secret(bytes.to_vec())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_and_equality_compares() {
        let secret = Secret::from(&b"pw"[..]);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret, Secret::new(b"pw".to_vec()));
        assert_ne!(secret, Secret::new(b"px".to_vec()));
        assert_ne!(secret, Secret::new(b"pw2".to_vec()));
    }
}
