//! `BODY[section]` to a region of the message (RFC 9051 §6.4.5.1).
//!
//! Trust: paths are a client's, the tree was made from a stranger's message.
//! Never: name a region of a part that is not there.

use std::ops::Range;

use crate::tree::{Body, Message, Part, Size};

/// What of the addressed part is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Selector {
    /// `BODY[]` or `BODY[1.2]`.
    All,
    /// `HEADER` (also the block for `HEADER.FIELDS`): of the message, or of a nested message.
    Header,
    /// `TEXT`: the body below that header.
    Text,
    /// `1.2.MIME`: the part's own header.
    Mime,
}

impl Message {
    /// The region of section `path` with its size on the wire; `None` when there is no such part.
    pub fn section(&self, path: &[u32], selector: Selector) -> Option<(Range<usize>, Size)> {
        if path.is_empty() {
            return match selector {
                Selector::All => Some((self.root.header.start..self.root.body.end, self.size)),
                Selector::Header => Some(header_of(&self.root)),
                Selector::Text => Some(body_of(&self.root)),
                Selector::Mime => None,
            };
        }
        let part = self.part(path)?;
        match (selector, &part.content) {
            (Selector::All, _) => Some(body_of(part)),
            (Selector::Mime, _) => Some(header_of(part)),
            (Selector::Header, Body::Message(inner)) => Some(header_of(inner)),
            (Selector::Text, Body::Message(inner)) => Some(body_of(inner)),
            (Selector::Header | Selector::Text, _) => None,
        }
    }

    /// The part with that number, e.g. `[1, 2]`. Part 1 of a message without multiparts is its body.
    pub fn part(&self, path: &[u32]) -> Option<&Part> {
        let mut part = &self.root;
        let mut at_message = true;
        for &number in path {
            let index = usize::try_from(number).ok()?.checked_sub(1)?;
            // Numbers below a nested message count the parts of that message.
            if !at_message && let Body::Message(inner) = &part.content {
                part = inner;
                at_message = true;
            }
            match &part.content {
                Body::Multipart(children) => part = children.get(index)?,
                _ if at_message && index == 0 => {}
                _ => return None,
            }
            at_message = false;
        }
        Some(part)
    }
}

fn header_of(part: &Part) -> (Range<usize>, Size) {
    (part.header.clone(), part.header_size)
}

fn body_of(part: &Part) -> (Range<usize>, Size) {
    (part.body.clone(), part.body_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    const NESTED: &[u8] = b"Subject: top\nContent-Type: multipart/mixed; boundary=b\n\npreamble\n--b\n\nplain\n--b\n\
Content-Type: message/rfc822\n\nSubject: inner\nContent-Type: multipart/alternative; boundary=c\n\n--c\n\nA\n--c\n\
Content-Type: text/html\n\nB\n--c--\n--b\nContent-Type: message/rfc822\n\nSubject: flat\n\nlast\n--b--\nepilogue\n";

    #[test]
    fn section_table() {
        let message = parse(NESTED);
        let cut = |path: &[u32], s| {
            message.section(path, s).map(|(r, _)| String::from_utf8_lossy(&NESTED[r]).into_owned())
        };
        use Selector::{All, Header, Mime, Text};
        for (path, selector, want) in [
            (&[1][..], All, Some("plain")),
            (&[1], Mime, Some("\n")),
            (&[1], Header, None),
            (&[1, 1], All, None),
            (&[2], Header, Some("Subject: inner\nContent-Type: multipart/alternative; boundary=c\n\n")),
            (&[2, 1], All, Some("A")),
            (&[2, 2], All, Some("B")),
            (&[2, 2], Mime, Some("Content-Type: text/html\n\n")),
            (&[2, 3], All, None),
            (&[3], All, Some("Subject: flat\n\nlast")),
            (&[3], Mime, Some("Content-Type: message/rfc822\n\n")),
            (&[3], Text, Some("last")),
            (&[3, 1], All, Some("last")),
            (&[3, 1], Mime, Some("Subject: flat\n\n")),
            (&[3, 2], All, None),
            (&[4], All, None),
            (&[0], All, None),
        ] {
            assert_eq!(cut(path, selector).as_deref(), want, "{path:?} {selector:?}");
        }
        assert_eq!(cut(&[], All).map(|t| t.len()), Some(NESTED.len()));
        assert_eq!(
            message.size.octets,
            (NESTED.len() + NESTED.iter().filter(|&&b| b == b'\n').count()) as u64
        );
    }

    #[test]
    fn part_one_of_a_simple_message_is_its_body() {
        let raw = b"A: b\r\n\r\nx\r\n";
        let message = parse(raw);
        assert_eq!(message.section(&[1], Selector::All).map(|s| s.0), Some(8..11));
        assert_eq!(message.section(&[1], Selector::Mime).map(|s| s.0), Some(0..8));
        assert_eq!(message.section(&[2], Selector::All), None);
        assert_eq!(message.root.body_size, Size { octets: 3, lines: 1 });
    }
}
