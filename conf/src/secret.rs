//! A text nobody may see by accident.
//!
//! Purpose:   carry passwords and private keys from a file to the one place that uses them.
//! Trust:     what is in here is secret, whoever wrote it.
//! Never:     show the text in `Debug`, leave it in memory after drop.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A password or a private key. `Debug` prints `…`; serialising writes the text (slices travel by memfd).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. The name makes every use visible in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "…");
        assert_eq!(Secret::new("hunter2").expose(), "hunter2");
    }
}
