//! From the scanner's offsets to the printer's structs.
//!
//! Trust: anything can stand in a message; the scanner has bounded depth and number of parts.
//! Never: index by an offset without looking.

use std::borrow::Cow;

use imap::{Address, Body, BodyKind, Disposition, Envelope, Fields, MultiPart, SinglePart};

/// The envelope of a header.
pub(super) fn envelope(header: &[u8]) -> Envelope<'static> {
    let found = mime::envelope(header);
    Envelope {
        date: found.date.map(Cow::Owned),
        subject: found.subject.map(Cow::Owned),
        from: addresses(found.from),
        sender: addresses(found.sender),
        reply_to: addresses(found.reply_to),
        to: addresses(found.to),
        cc: addresses(found.cc),
        bcc: addresses(found.bcc),
        in_reply_to: found.in_reply_to.map(Cow::Owned),
        message_id: found.message_id.map(Cow::Owned),
    }
}

fn addresses(list: Vec<mime::Address>) -> Vec<Address<'static>> {
    list.into_iter()
        .map(|address| match address {
            mime::Address::Mailbox { name, route, mailbox, host } => Address {
                name: name.map(Cow::Owned),
                route: route.map(Cow::Owned),
                mailbox: Some(Cow::Owned(mailbox)),
                host: Some(Cow::Owned(host)),
            },
            mime::Address::GroupStart(name) => {
                Address { mailbox: Some(Cow::Owned(name)), ..Address::default() }
            }
            mime::Address::GroupEnd => Address::default(),
        })
        .collect()
}

/// The structure of a part. The scanner caps the depth.
pub(super) fn body<'a>(bytes: &[u8], part: &'a mime::Part) -> Body<'a> {
    let disposition = part
        .disposition
        .as_ref()
        .map(|d| Disposition { kind: Cow::Borrowed(d.kind.as_slice()), params: fields(&d.params) });
    let language = part.languages.iter().map(|l| Cow::Borrowed(l.as_slice())).collect();
    let location = part.location.as_deref().map(Cow::Borrowed);
    let kind = match &part.content {
        mime::Body::Multipart(children) => {
            return Body::Multi(MultiPart {
                parts: children.iter().map(|child| body(bytes, child)).collect(),
                subtype: Cow::Borrowed(part.content_type.subtype.as_slice()),
                params: fields(&part.content_type.params),
                disposition,
                language,
                location,
            });
        }
        mime::Body::Message(inner) => BodyKind::Message {
            envelope: Box::new(envelope(bytes.get(inner.header.clone()).unwrap_or_default())),
            body: body(bytes, inner),
            lines: part.body_size.lines,
        },
        mime::Body::Leaf if part.content_type.is_kind(b"text") => BodyKind::Text(part.body_size.lines),
        mime::Body::Leaf => BodyKind::Basic,
    };
    Body::Single(Box::new(SinglePart {
        media: Cow::Borrowed(part.content_type.kind.as_slice()),
        subtype: Cow::Borrowed(part.content_type.subtype.as_slice()),
        params: fields(&part.content_type.params),
        id: part.id.as_deref().map(Cow::Borrowed),
        description: part.description.as_deref().map(Cow::Borrowed),
        encoding: Cow::Borrowed(part.encoding.as_slice()),
        octets: part.body_size.octets,
        kind,
        md5: part.md5.as_deref().map(Cow::Borrowed),
        disposition,
        language,
        location,
    }))
}

fn fields(params: &[mime::Param]) -> Fields<'_> {
    params.iter().map(|p| (Cow::Borrowed(p.name.as_slice()), Cow::Borrowed(p.value.as_slice()))).collect()
}
