//! ENVELOPE and BODYSTRUCTURE: plain structs in, IMAP syntax out.
//!
//! The scanner of messages is another crate; what it found comes here as slices of raw header text.
//!
//! Trust: header text is whatever a stranger put into a message; it is printed as strings only.
//! Never: write a name, address or parameter as an atom.

use std::borrow::Cow;
use std::io::Write as _;

use crate::print::{put_nstring, put_string};

/// Text of a header, raw but unfolded.
pub(crate) type Text<'a> = Cow<'a, [u8]>;

/// One address, or the start (`mailbox` only) or end (nothing) of a group (RFC 3501 §7.4.2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Address<'a> {
    /// Display name.
    pub name: Option<Text<'a>>,
    /// Source route; nobody writes one any more.
    pub route: Option<Text<'a>>,
    /// Left of the `@`, or the group's name.
    pub mailbox: Option<Text<'a>>,
    /// Right of the `@`.
    pub host: Option<Text<'a>>,
}

/// The envelope.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Envelope<'a> {
    /// Date
    pub date: Option<Text<'a>>,
    /// Subject
    pub subject: Option<Text<'a>>,
    /// From
    pub from: Vec<Address<'a>>,
    /// Sender; the caller puts a copy of From where it is missing.
    pub sender: Vec<Address<'a>>,
    /// Reply-To; likewise.
    pub reply_to: Vec<Address<'a>>,
    /// To
    pub to: Vec<Address<'a>>,
    /// Cc
    pub cc: Vec<Address<'a>>,
    /// Bcc
    pub bcc: Vec<Address<'a>>,
    /// In-Reply-To
    pub in_reply_to: Option<Text<'a>>,
    /// Message-ID
    pub message_id: Option<Text<'a>>,
}

impl Envelope<'_> {
    /// Writes the parenthesised form.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(b'(');
        put_nstring(out, self.date.as_deref());
        out.push(b' ');
        put_nstring(out, self.subject.as_deref());
        for list in [&self.from, &self.sender, &self.reply_to, &self.to, &self.cc, &self.bcc] {
            out.push(b' ');
            put_addresses(out, list);
        }
        out.push(b' ');
        put_nstring(out, self.in_reply_to.as_deref());
        out.push(b' ');
        put_nstring(out, self.message_id.as_deref());
        out.push(b')');
    }
}

fn put_addresses(out: &mut Vec<u8>, list: &[Address<'_>]) {
    if list.is_empty() {
        out.extend_from_slice(b"NIL");
        return;
    }
    out.push(b'(');
    for address in list {
        out.push(b'(');
        put_nstring(out, address.name.as_deref());
        out.push(b' ');
        put_nstring(out, address.route.as_deref());
        out.push(b' ');
        put_nstring(out, address.mailbox.as_deref());
        out.push(b' ');
        put_nstring(out, address.host.as_deref());
        out.push(b')');
    }
    out.push(b')');
}

/// Parameters: names and values in their order.
pub type Fields<'a> = Vec<(Text<'a>, Text<'a>)>;

/// Content-Disposition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disposition<'a> {
    /// `attachment`, `inline` …
    pub kind: Text<'a>,
    /// Parameters.
    pub params: Fields<'a>,
}

/// A body or body part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body<'a> {
    /// multipart/*
    Multi(MultiPart<'a>),
    /// Everything else.
    Single(Box<SinglePart<'a>>),
}

/// multipart/*
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MultiPart<'a> {
    /// At least one; an empty multipart shows one empty text part.
    pub parts: Vec<Body<'a>>,
    /// `mixed`, `alternative` …
    pub subtype: Text<'a>,
    /// Parameters.
    pub params: Fields<'a>,
    /// Content-Disposition
    pub disposition: Option<Disposition<'a>>,
    /// Content-Language
    pub language: Vec<Text<'a>>,
    /// Content-Location
    pub location: Option<Text<'a>>,
}

/// A part that is no multipart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SinglePart<'a> {
    /// `text`
    pub media: Text<'a>,
    /// `plain`
    pub subtype: Text<'a>,
    /// Parameters.
    pub params: Fields<'a>,
    /// Content-ID
    pub id: Option<Text<'a>>,
    /// Content-Description
    pub description: Option<Text<'a>>,
    /// Content-Transfer-Encoding, never absent.
    pub encoding: Text<'a>,
    /// Size of the body as it goes over the wire.
    pub octets: u64,
    /// What the media type adds.
    pub kind: BodyKind<'a>,
    /// Content-MD5
    pub md5: Option<Text<'a>>,
    /// Content-Disposition
    pub disposition: Option<Disposition<'a>>,
    /// Content-Language
    pub language: Vec<Text<'a>>,
    /// Content-Location
    pub location: Option<Text<'a>>,
}

/// What the media type adds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BodyKind<'a> {
    /// Nothing.
    Basic,
    /// text/*: number of lines.
    Text(u64),
    /// message/rfc822: the message inside, and its lines.
    Message {
        /// Envelope of the message inside.
        envelope: Box<Envelope<'a>>,
        /// Its body.
        body: Body<'a>,
        /// Lines.
        lines: u64,
    },
}

impl Body<'_> {
    /// Writes BODY (`extended` false) or BODYSTRUCTURE (true). Depth is bounded by the scanner that
    /// built the tree.
    pub fn put(&self, out: &mut Vec<u8>, extended: bool) {
        out.push(b'(');
        match self {
            Self::Multi(part) => {
                for child in &part.parts {
                    child.put(out, extended);
                }
                out.push(b' ');
                put_string(out, &part.subtype);
                if extended {
                    out.push(b' ');
                    put_fields(out, &part.params);
                    put_tail(out, part.disposition.as_ref(), &part.language, part.location.as_deref());
                }
            }
            Self::Single(part) => part.put(out, extended),
        }
        out.push(b')');
    }
}

impl SinglePart<'_> {
    fn put(&self, out: &mut Vec<u8>, extended: bool) {
        put_string(out, &self.media);
        out.push(b' ');
        put_string(out, &self.subtype);
        out.push(b' ');
        put_fields(out, &self.params);
        out.push(b' ');
        put_nstring(out, self.id.as_deref());
        out.push(b' ');
        put_nstring(out, self.description.as_deref());
        out.push(b' ');
        put_string(out, &self.encoding);
        let _ = write!(out, " {}", self.octets);
        match &self.kind {
            BodyKind::Basic => {}
            BodyKind::Text(lines) => {
                let _ = write!(out, " {lines}");
            }
            BodyKind::Message { envelope, body, lines } => {
                out.push(b' ');
                envelope.put(out);
                out.push(b' ');
                body.put(out, extended);
                let _ = write!(out, " {lines}");
            }
        }
        if extended {
            out.push(b' ');
            put_nstring(out, self.md5.as_deref());
            put_tail(out, self.disposition.as_ref(), &self.language, self.location.as_deref());
        }
    }
}

fn put_fields(out: &mut Vec<u8>, fields: &Fields<'_>) {
    if fields.is_empty() {
        out.extend_from_slice(b"NIL");
        return;
    }
    out.push(b'(');
    for (i, (name, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        put_string(out, name);
        out.push(b' ');
        put_string(out, value);
    }
    out.push(b')');
}

fn put_tail(
    out: &mut Vec<u8>,
    disposition: Option<&Disposition<'_>>,
    language: &[Text<'_>],
    location: Option<&[u8]>,
) {
    out.push(b' ');
    match disposition {
        None => out.extend_from_slice(b"NIL"),
        Some(disposition) => {
            out.push(b'(');
            put_string(out, &disposition.kind);
            out.push(b' ');
            put_fields(out, &disposition.params);
            out.push(b')');
        }
    }
    out.push(b' ');
    if language.is_empty() {
        out.extend_from_slice(b"NIL");
    } else {
        // body-fld-lang: one string, or a list; the list form is right for one too (RFC 3501 §9).
        out.push(b'(');
        for (i, tag) in language.iter().enumerate() {
            if i > 0 {
                out.push(b' ');
            }
            put_string(out, tag);
        }
        out.push(b')');
    }
    out.push(b' ');
    put_nstring(out, location);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Text<'_> {
        Cow::Borrowed(s.as_bytes())
    }

    fn plain(octets: u64, lines: u64) -> SinglePart<'static> {
        SinglePart {
            media: text("text"),
            subtype: text("plain"),
            params: vec![(text("charset"), text("us-ascii"))],
            id: None,
            description: None,
            encoding: text("7bit"),
            octets,
            kind: BodyKind::Text(lines),
            md5: None,
            disposition: None,
            language: Vec::new(),
            location: None,
        }
    }

    fn shown(body: &Body<'_>, extended: bool) -> String {
        let mut out = Vec::new();
        body.put(&mut out, extended);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn empty_envelope_is_ten_nils() {
        let mut out = Vec::new();
        Envelope::default().put(&mut out);
        assert_eq!(out, b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)");
    }

    #[test]
    fn groups_and_literals_in_envelopes() {
        let address = |m: &'static str, h: &'static str| Address {
            mailbox: Some(text(m)),
            host: Some(text(h)),
            ..Address::default()
        };
        let envelope = Envelope {
            subject: Some(text("say \"hi\"")),
            to: vec![
                Address { mailbox: Some(text("G")), ..Address::default() },
                address("a", "b"),
                Address::default(),
            ],
            ..Envelope::default()
        };
        let mut out = Vec::new();
        envelope.put(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "(NIL {8}\r\nsay \"hi\" NIL NIL NIL ((NIL NIL \"G\" NIL)(NIL NIL \"a\" \"b\")(NIL NIL NIL NIL)) NIL NIL NIL NIL)"
        );
    }

    #[test]
    fn structures() {
        let one = Body::Single(Box::new(plain(0, 0)));
        assert_eq!(
            shown(&one, false),
            "(\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 0 0)"
        );
        assert_eq!(
            shown(&one, true),
            "(\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 0 0 NIL NIL NIL NIL)"
        );
        let mut attached = plain(3, 1);
        attached.disposition =
            Some(Disposition { kind: text("attachment"), params: vec![(text("filename"), text("a.txt"))] });
        attached.language = vec![text("en"), text("de")];
        let multi = Body::Multi(MultiPart {
            parts: vec![one.clone(), Body::Single(Box::new(attached))],
            subtype: text("mixed"),
            params: vec![(text("boundary"), text("x"))],
            disposition: None,
            language: Vec::new(),
            location: None,
        });
        assert_eq!(
            shown(&multi, true),
            "((\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 0 0 NIL NIL NIL NIL)\
             (\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 3 1 NIL \
             (\"attachment\" (\"filename\" \"a.txt\")) (\"en\" \"de\") NIL) \
             \"mixed\" (\"boundary\" \"x\") NIL NIL NIL)"
        );
        let message = Body::Single(Box::new(SinglePart {
            media: text("message"),
            subtype: text("rfc822"),
            params: Vec::new(),
            kind: BodyKind::Message { envelope: Box::default(), body: one, lines: 2 },
            ..plain(9, 0)
        }));
        assert_eq!(
            shown(&message, false),
            "(\"message\" \"rfc822\" NIL NIL NIL \"7bit\" 9 (NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL) \
             (\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 0 0) 2)"
        );
    }
}
