//! Bytes that must not be printed or left in memory: what a client sends during AUTH.
//!
//! Trust: what is in here is secret, whoever sent it.
//! Never: show it in `Debug`, or leave it in memory after drop.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes: `Debug` never shows them, dropping wipes them.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "…");
    }
}
