//! Mailbox names: the wire form (modified UTF-7, RFC 3501 §5.1.3) and the decoded one.
//!
//! Trust:     names come from clients; only names whose encoding is the one canonical form are taken,
//!            so that two spellings never name two folders.

use base64::Engine as _;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};

const ENGINE: GeneralPurpose = GeneralPurpose::new(&IMAP_MUTF7, NO_PAD);

/// Longest name in decoded bytes; longer ones cannot be a directory anyway.
const MAX_NAME: usize = 1000;

/// Why a mailbox name was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// Not canonical modified UTF-7.
    #[error("Mailbox name is not valid mUTF-7")]
    Encoding,
    /// A control character, or too long.
    #[error("Mailbox name has characters that are not allowed")]
    Characters,
    /// Nothing.
    #[error("Mailbox name is empty")]
    Empty,
}

/// A mailbox name, decoded. `INBOX` is always in upper case.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MailboxName(String);

impl MailboxName {
    /// Reads the form that goes over the wire.
    ///
    /// # Errors
    /// When the name is empty, not canonical mUTF-7, or has control characters.
    pub fn from_wire(raw: &[u8]) -> Result<Self, BadName> {
        Self::from_decoded(&decode_mutf7(raw).ok_or(BadName::Encoding)?)
    }

    /// Takes a decoded name.
    ///
    /// # Errors
    /// When the name is empty, too long or has control characters.
    pub fn from_decoded(name: &str) -> Result<Self, BadName> {
        if name.is_empty() {
            return Err(BadName::Empty);
        }
        if name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(BadName::Characters);
        }
        // RFC 3501 §5.1: INBOX in any case is the same mailbox; clients see it as `INBOX` only.
        if name.eq_ignore_ascii_case("INBOX") {
            return Ok(Self("INBOX".to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The decoded name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as it goes over the wire.
    #[must_use]
    pub fn to_wire(&self) -> String {
        encode_mutf7(&self.0)
    }

    /// Is it the inbox?
    #[must_use]
    pub fn is_inbox(&self) -> bool {
        self.0 == "INBOX"
    }
}

/// Decodes modified UTF-7; `None` unless it is the canonical encoding of its content.
#[must_use]
pub fn decode_mutf7(raw: &[u8]) -> Option<String> {
    if raw.len() > 8 * MAX_NAME {
        return None;
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        match first {
            b'&' => {
                let end = tail.iter().position(|b| *b == b'-')?;
                let (code, after) = (tail.get(..end)?, tail.get(end + 1..)?);
                if code.is_empty() {
                    out.push('&');
                } else {
                    let bytes = ENGINE.decode(code).ok()?;
                    let (units, odd) = bytes.as_chunks::<2>();
                    if !odd.is_empty() {
                        return None;
                    }
                    for c in char::decode_utf16(units.iter().map(|u| u16::from_be_bytes(*u))) {
                        out.push(c.ok()?);
                    }
                }
                rest = after;
            }
            0x20..=0x7e => {
                out.push(char::from(first));
                rest = tail;
            }
            _ => return None,
        }
    }
    // Everything that is legal but not canonical (`&AGE-`, `&AOk-&AOk-`, stray bits) fails here.
    (encode_mutf7(&out).as_bytes() == raw).then_some(out)
}

/// Encodes to modified UTF-7.
#[must_use]
pub fn encode_mutf7(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut shifted: Vec<u8> = Vec::new();
    let flush = |shifted: &mut Vec<u8>, out: &mut String| {
        if !shifted.is_empty() {
            out.push('&');
            ENGINE.encode_string(&*shifted, out);
            out.push('-');
            shifted.clear();
        }
    };
    for c in name.chars() {
        match c {
            '&' => {
                flush(&mut shifted, &mut out);
                out.push_str("&-");
            }
            '\x20'..='\x7e' => {
                flush(&mut shifted, &mut out);
                out.push(c);
            }
            _ => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    shifted.extend_from_slice(&unit.to_be_bytes());
                }
            }
        }
    }
    flush(&mut shifted, &mut out);
    out
}

/// A LIST pattern, decoded: `*` matches anything, `%` anything but the separator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListPattern(String);

impl ListPattern {
    /// Reads the wire form. A pattern that is no mUTF-7 is kept as text and matches nothing real.
    #[must_use]
    pub fn from_wire(raw: &[u8]) -> Self {
        let text = decode_mutf7(raw).unwrap_or_else(|| String::from_utf8_lossy(raw).into_owned());
        Self(text)
    }

    /// The reference name put in front: `LIST "a." "%"` is `LIST "" "a.%"`.
    #[must_use]
    pub fn with_reference(&self, reference: &Self, separator: char) -> Self {
        // A pattern that starts with the separator stands at the top (RFC 9051 §6.3.9 leaves it to us).
        match self.0.strip_prefix(separator) {
            Some(absolute) => Self(absolute.to_owned()),
            None => Self(format!("{}{}", reference.0, self.0)),
        }
    }

    /// The decoded text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it the empty pattern, which asks for the separator only?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does the pattern match the decoded name? `INBOX` is compared without case.
    #[must_use]
    pub fn matches(&self, name: &str, separator: char) -> bool {
        let fold = name == "INBOX";
        let same = |p: char, n: char| p == n || (fold && p.eq_ignore_ascii_case(&n));
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        // reachable[j]: the pattern so far can match the first j characters. Linear in both, whatever
        // the number of wildcards.
        let mut reachable = vec![false; name.len() + 1];
        if let Some(first) = reachable.first_mut() {
            *first = true;
        }
        for p in pattern {
            let mut next = vec![false; name.len() + 1];
            let mut open = false;
            for (j, slot) in next.iter_mut().enumerate() {
                let here = reachable.get(j).copied().unwrap_or(false);
                let before = j.checked_sub(1).and_then(|k| name.get(k).copied().map(|c| (k, c)));
                *slot = match (p, before) {
                    ('*', _) => {
                        open |= here;
                        open
                    }
                    ('%', before) => {
                        let stops = before.is_some_and(|(_, c)| c == separator);
                        open = here || (open && !stops);
                        open
                    }
                    (p, Some((k, c))) => reachable.get(k).copied().unwrap_or(false) && same(p, c),
                    (_, None) => false,
                };
            }
            reachable = next;
        }
        reachable.last().copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (wire, decoded) in [
            ("Sent", "Sent"),
            ("Entw&APw-rfe", "Entwürfe"),
            ("&ZeVnLIqe-", "日本語"),
            ("~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
            ("a&-b", "a&b"),
            ("&2D3cqQ-", "💩"),
        ] {
            assert_eq!(decode_mutf7(wire.as_bytes()).as_deref(), Some(decoded), "{wire}");
            assert_eq!(encode_mutf7(decoded), wire);
        }
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        for wire in [
            "&",
            "a&b",
            "&AGE-",
            "&APw-&APw-",
            "&APx-",
            "&AP-",
            "&2D0-",
            "&AA",
            "\u{fc}",
            "a\tb",
            "&APw",
            "&AOk=-",
        ] {
            assert_eq!(decode_mutf7(wire.as_bytes()), None, "{wire}");
        }
        assert_eq!(MailboxName::from_wire(b""), Err(BadName::Empty));
        assert_eq!(MailboxName::from_wire(b"&AAo-"), Err(BadName::Characters));
        assert_eq!(MailboxName::from_wire(b"x&").unwrap_err(), BadName::Encoding);
    }

    #[test]
    fn inbox_has_one_spelling() {
        assert_eq!(MailboxName::from_wire(b"inBox").unwrap().as_str(), "INBOX");
        assert!(!MailboxName::from_wire(b"inbox.a").unwrap().is_inbox());
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*", "a.b.c", true),
            ("%", "a", true),
            ("%", "a.b", false),
            ("%.%", "a.b", true),
            ("a.%", "a.b.c", false),
            ("a*c", "a.b.c", true),
            ("a.*", "a", false),
            ("inbox", "INBOX", true),
            ("iN%", "INBOX", true),
            ("sent", "Sent", false),
            ("", "", true),
            ("%%%%%%%%%%%%%%%%%%%%%%b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("*.%", "a.b.c", true),
            ("%.c", "a.b.c", false),
        ] {
            assert_eq!(
                ListPattern::from_wire(pattern.as_bytes()).matches(name, '.'),
                want,
                "{pattern} {name}"
            );
        }
        let joined = ListPattern::from_wire(b"%").with_reference(&ListPattern::from_wire(b"a."), '.');
        assert_eq!(joined.as_str(), "a.%");
    }
}
