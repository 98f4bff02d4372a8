//! The ten fields of ENVELOPE (RFC 9051 §7.5.2), from the header alone.
//!
//! Trust: every byte is a stranger's.
//! Never: refuse a header, however broken: a field that makes no sense is missing.

use crate::address::{Address, parse_addresses};
use crate::header::{fields, unfold};

/// Fields in the order IMAP prints them; text is unfolded and otherwise as written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)] // the names are the header fields
pub struct Envelope {
    pub date: Option<Vec<u8>>,
    pub subject: Option<Vec<u8>>,
    pub from: Vec<Address>,
    pub sender: Vec<Address>,
    pub reply_to: Vec<Address>,
    pub to: Vec<Address>,
    pub cc: Vec<Address>,
    pub bcc: Vec<Address>,
    pub in_reply_to: Option<Vec<u8>>,
    pub message_id: Option<Vec<u8>>,
}

/// Reads the envelope fields of `header` (a whole message works as well).
pub fn envelope(header: &[u8]) -> Envelope {
    let mut out = Envelope::default();
    for field in fields(header) {
        let name = field.name.to_ascii_lowercase();
        match name.as_slice() {
            b"date" => first(&mut out.date, field.value),
            b"subject" => first(&mut out.subject, field.value),
            b"in-reply-to" => first(&mut out.in_reply_to, field.value),
            b"message-id" => first(&mut out.message_id, field.value),
            // Repeated address fields count as one comma-separated field.
            b"from" => out.from.extend(parse_addresses(field.value)),
            b"sender" => out.sender.extend(parse_addresses(field.value)),
            b"reply-to" => out.reply_to.extend(parse_addresses(field.value)),
            b"to" => out.to.extend(parse_addresses(field.value)),
            b"cc" => out.cc.extend(parse_addresses(field.value)),
            b"bcc" => out.bcc.extend(parse_addresses(field.value)),
            _ => {}
        }
    }
    // RFC 9051 §7.5.2: a missing or empty Sender or Reply-To is that of From.
    if out.sender.is_empty() {
        out.sender.clone_from(&out.from);
    }
    if out.reply_to.is_empty() {
        out.reply_to.clone_from(&out.from);
    }
    out
}

fn first(slot: &mut Option<Vec<u8>>, value: &[u8]) {
    if slot.is_none() {
        *slot = Some(unfold(value).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_sender_and_empty_reply_to_are_copies_of_from() {
        let e = envelope(b"From: a@b\nReply-To:\nSubject: one\n\ttwo\nSubject: later\n\nTo: no@body\n");
        assert_eq!(e.sender, e.from);
        assert_eq!(e.reply_to, e.from);
        assert_eq!(e.subject.as_deref(), Some(&b"one two"[..]));
        assert!(e.to.is_empty() && e.date.is_none());
    }

    #[test]
    fn empty_message_has_an_empty_envelope() {
        assert_eq!(envelope(b""), Envelope::default());
    }
}
