//! Numbers that name messages: UID and UIDVALIDITY.
//!
//! Both are 32 bits and never zero (RFC 9051 §2.3.1.1); a zero read from a file is refused where it is parsed.
//!
//! Trust: nobody; made of numbers that were parsed elsewhere.
//! Never: be zero.

use std::fmt;
use std::num::NonZeroU32;

/// A message's unique identifier inside one folder and one [`UidValidity`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Uid(NonZeroU32);

impl Uid {
    /// Largest UID that may be given to a message. Dovecot refuses 2^32 − 1 and destroys the list that holds it.
    pub const MAX: u32 = u32::MAX - 1;

    /// `None` for 0 and for 2^32 − 1.
    #[must_use]
    pub fn new(value: u32) -> Option<Self> {
        if value > Self::MAX { None } else { NonZeroU32::new(value).map(Self) }
    }

    /// The number as the protocol shows it.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value that, together with a [`Uid`], names a message for ever.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UidValidity(NonZeroU32);

impl UidValidity {
    pub(crate) const ONE: Self = Self(NonZeroU32::MIN);

    /// `None` for 0.
    #[must_use]
    pub fn new(value: u32) -> Option<Self> {
        NonZeroU32::new(value).map(Self)
    }

    /// The number as the protocol shows it.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for UidValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(Uid::new(0), None);
        assert_eq!(Uid::new(1).map(Uid::get), Some(1));
        assert_eq!(Uid::new(u32::MAX - 1).map(Uid::get), Some(u32::MAX - 1));
        assert_eq!(Uid::new(u32::MAX), None);
        assert_eq!(UidValidity::new(0), None);
        assert_eq!(UidValidity::new(u32::MAX).map(UidValidity::get), Some(u32::MAX));
    }
}
