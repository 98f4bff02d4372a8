//! Ids of sessions and messages: short, unique on this machine, rising with time.
//!
//! Trust: nobody sends it bytes. Everybody may see an id: it is a name, not a secret.
//! Never: give one id to two messages.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names one connection in logs, in the auth protocol and, with a number, each of its messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SessionId(Box<str>);

impl SessionId {
    /// A new id: microseconds since 1970, made unique, in base 32.
    pub(crate) fn new(now: SystemTime) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let micros = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        let mut value = micros;
        // Two connections in one microsecond, or a clock set back: take the next number.
        let previous =
            LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(micros.max(last + 1)));
        if let Ok(last) = previous {
            value = micros.max(last + 1);
        }
        Self(base32(value).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the session's message number `count`.
    pub(crate) fn message(&self, count: u32) -> String {
        format!("{}.{count}", self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn base32(mut value: u64) -> String {
    const DIGITS: [char; 32] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'j', 'k',
        'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w', 'x', 'y', 'z',
    ];
    let mut digits = Vec::with_capacity(13);
    loop {
        let index = usize::try_from(value % 32).unwrap_or(0);
        digits.push(DIGITS.get(index).copied().unwrap_or('0'));
        value /= 32;
        if value == 0 {
            return digits.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_even_within_one_moment() {
        let now = SystemTime::now();
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| SessionId::new(now).0).collect();
        assert_eq!(ids.len(), 1000);
        assert_eq!(base32(0), "0");
        assert_eq!(base32(32 * 32 + 31), "10z");
    }
}
