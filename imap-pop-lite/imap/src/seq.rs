//! Sequence sets: `1,3:5,7:*`.
//!
//! Trust: sets are a client's text.
//! Never: expand a range: `1:4294967295` stays two numbers.

use std::fmt::Write as _;
use std::num::NonZeroU32;

/// One end of a range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SeqNum {
    /// A message number or UID.
    Number(NonZeroU32),
    /// `*`: the largest one in use.
    Star,
}

/// A sequence set as the client wrote it. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeqSet(Vec<(SeqNum, SeqNum)>);

impl SeqSet {
    /// Reads `raw`, all of it. RFC 9051 §9 `sequence-set` without `$`.
    #[must_use]
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let mut ranges = Vec::new();
        for piece in raw.split(|b| *b == b',') {
            let mut ends = piece.splitn(2, |b| *b == b':');
            let first = number(ends.next()?)?;
            let second = match ends.next() {
                Some(end) => number(end)?,
                None => first,
            };
            ranges.push((first, second));
        }
        Some(Self(ranges))
    }

    /// The ranges in numbers, sorted and merged; `last` stands for `*` (0 in an empty mailbox).
    #[must_use]
    pub fn resolve(&self, last: u32) -> Ranges {
        let value = |n: SeqNum| match n {
            SeqNum::Number(n) => n.get(),
            SeqNum::Star => last,
        };
        let mut pairs: Vec<(u32, u32)> = self
            .0
            .iter()
            .map(|&(a, b)| {
                let (a, b) = (value(a), value(b));
                (a.min(b), a.max(b))
            })
            .collect();
        pairs.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(pairs.len());
        for (low, high) in pairs {
            match merged.last_mut() {
                Some(top) if low <= top.1.saturating_add(1) => top.1 = top.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Ranges(merged)
    }

    /// The ranges as written.
    pub fn ranges(&self) -> impl Iterator<Item = (SeqNum, SeqNum)> + '_ {
        self.0.iter().copied()
    }

    /// The largest number written out; a message number above EXISTS is an error.
    #[must_use]
    pub fn largest_number(&self) -> Option<u32> {
        let value = |n: SeqNum| match n {
            SeqNum::Number(n) => Some(n.get()),
            SeqNum::Star => None,
        };
        self.0.iter().flat_map(|&(a, b)| [value(a), value(b)]).flatten().max()
    }

    /// The set as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let put = |n: SeqNum| match n {
            SeqNum::Number(n) => n.to_string(),
            SeqNum::Star => "*".to_owned(),
        };
        for (i, &(a, b)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(&put(a));
            if a != b {
                out.push(':');
                out.push_str(&put(b));
            }
        }
        out
    }
}

fn number(raw: &[u8]) -> Option<SeqNum> {
    if raw == b"*" {
        return Some(SeqNum::Star);
    }
    // No leading zero: nz-number (RFC 3501 §9).
    if raw.is_empty() || raw.first() == Some(&b'0') || !raw.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(raw).ok()?.parse().ok().map(SeqNum::Number)
}

/// Sorted, merged ranges of numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Is the number in one of the ranges?
    #[must_use]
    pub fn contains(&self, n: u32) -> bool {
        let at = self.0.partition_point(|&(_, high)| high < n);
        self.0.get(at).is_some_and(|&(low, _)| low <= n)
    }

    /// The ranges, ascending, both ends included.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }
}

/// Numbers in the given order as a set, neighbours joined: `5,6,7,2` becomes `5:7,2`.
#[must_use]
pub fn compress(numbers: &[u32]) -> String {
    let mut out = String::new();
    let mut rest = numbers.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while rest.peek().is_some_and(|n| Some(*n) == last.checked_add(1)) {
            last = rest.next().unwrap_or(last);
        }
        if !out.is_empty() {
            out.push(',');
        }
        // Writing to a String cannot fail.
        let _ = if first == last { write!(out, "{first}") } else { write!(out, "{first}:{last}") };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_resolves() {
        for (text, last, want) in [
            ("1", 9, vec![(1, 1)]),
            ("1:3,2:5,9", 9, vec![(1, 5), (9, 9)]),
            ("3:1", 9, vec![(1, 3)]),
            ("500:*", 7, vec![(7, 500)]),
            ("*", 7, vec![(7, 7)]),
            ("*:2", 7, vec![(2, 7)]),
            ("1:*", 0, vec![(0, 1)]),
            ("4294967295,1", 7, vec![(1, 1), (4_294_967_295, 4_294_967_295)]),
        ] {
            let set = SeqSet::parse(text.as_bytes()).unwrap();
            assert_eq!(set.resolve(last).iter().collect::<Vec<_>>(), want, "{text}");
            assert_eq!(set.to_text(), text);
        }
    }

    #[test]
    fn refuses_what_is_not_a_set() {
        for text in
            ["", "0", "1,", ",1", "1:", ":1", "01", "a", "1:2:3", "4294967296", "1 2", "**", "-1", "1:0"]
        {
            assert!(SeqSet::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn membership_and_compression() {
        let ranges = SeqSet::parse(b"2:4,8,10:*").unwrap().resolve(12);
        let inside: Vec<u32> = (0..15).filter(|n| ranges.contains(*n)).collect();
        assert_eq!(inside, [2, 3, 4, 8, 10, 11, 12]);
        assert_eq!(compress(&[5, 6, 7, 2, 9, 10]), "5:7,2,9:10");
        assert_eq!(compress(&[]), "");
        assert_eq!(compress(&[u32::MAX]), "4294967295");
    }
}
