//! Header fields this server adds, and the one look it takes at a message's own header.
//!
//! Standard:  RFC 5321 §4.4 (`Return-Path:`, `Received:`), RFC 3848 and RFC 6531 §4.3 (`with`), RFC 6409 §8
//!            (`Date:` and `Message-ID:` on submission only).
//! Trust:     the client's name and the addresses are typed values that cannot hold a line break; whatever is not
//!            ASCII is replaced unless the message was announced as SMTPUTF8.
//! Never:     changes a byte the client sent.

use std::net::IpAddr;

use smtp::{ForwardPath, ReversePath};

/// A message that has passed more servers than this runs in a circle (RFC 5321 §6.3).
const MAX_HOPS: usize = 100;

/// What is told about the way a message came.
pub(crate) struct Hop<'a> {
    /// What the client called itself.
    pub(crate) client_name: &'a str,
    /// Where it came from.
    pub(crate) client_ip: IpAddr,
    /// Our name.
    pub(crate) hostname: &'a str,
    /// `ESMTPSA` and the like.
    pub(crate) protocol: &'a str,
    /// TLS in words, when it was on.
    pub(crate) tls: Option<&'a str>,
    /// The message's id.
    pub(crate) id: &'a str,
    /// The recipient, when there is only one: the others' names are nobody's business.
    pub(crate) only_recipient: Option<&'a ForwardPath>,
    /// Whether addresses may be written in UTF-8.
    pub(crate) utf8: bool,
    /// RFC 5322 date.
    pub(crate) date: &'a str,
}

/// The `Received:` field.
pub(crate) fn received(hop: &Hop<'_>) -> String {
    let address = match hop.client_ip.to_canonical() {
        IpAddr::V4(ip) => format!("[{ip}]"),
        IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    };
    let name = presentable(hop.client_name, hop.utf8);
    let mut field = format!("Received: from {name} ({address})\r\n");
    if let Some(tls) = hop.tls {
        field.push_str(&format!("\t(using {tls})\r\n"));
    }
    field.push_str(&format!("\tby {} (Postern) with {} id {}", hop.hostname, hop.protocol, hop.id));
    if let Some(recipient) = hop.only_recipient {
        field.push_str(&format!("\r\n\tfor {}", presentable(&recipient.to_string(), hop.utf8)));
    }
    field.push_str(&format!(";\r\n\t{}\r\n", hop.date));
    field
}

/// The `Return-Path:` field; final delivery writes it first.
pub(crate) fn return_path(from: &ReversePath, utf8: bool) -> String {
    format!("Return-Path: {}\r\n", presentable(&from.to_string(), utf8))
}

/// The `Delivered-To:` field.
pub(crate) fn delivered_to(user: &str) -> String {
    format!("Delivered-To: {}\r\n", presentable(user, true))
}

/// `Date:` and `Message-ID:` where a submitted message has none.
pub(crate) fn missing_fields(header: &Header, date: &str, id: &str, hostname: &str) -> String {
    let mut fields = String::new();
    if !header.date {
        fields.push_str(&format!("Date: {date}\r\n"));
    }
    if !header.message_id {
        fields.push_str(&format!("Message-ID: <{id}@{hostname}>\r\n"));
    }
    fields
}

/// What was found in a message's header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Header {
    pub(crate) date: bool,
    pub(crate) message_id: bool,
    received: usize,
}

impl Header {
    /// Looks at the front of a message. `whole` says that nothing follows `bytes`. Of a header longer than `bytes`
    /// nothing is claimed to be missing: a second `Date:` would be worse than none.
    pub(crate) fn scan(bytes: &[u8], whole: bool) -> Self {
        let mut found = Self::default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
            let Some(text) = text else { break };
            let Some(name) = field_name(text) else {
                if text.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
                    continue;
                }
                // An empty line, or one that belongs to no header: the body begins.
                return found;
            };
            if name.eq_ignore_ascii_case(b"Date") {
                found.date = true;
            } else if name.eq_ignore_ascii_case(b"Message-ID") {
                found.message_id = true;
            } else if name.eq_ignore_ascii_case(b"Received") {
                found.received += 1;
            }
        }
        if !whole {
            found.date = true;
            found.message_id = true;
        }
        found
    }

    /// Whether the message has been passed on so often that it must be running in a circle.
    pub(crate) fn loops(&self) -> bool {
        self.received > MAX_HOPS
    }
}

/// The name of a header field (RFC 5322 §2.2), without blanks before the colon (§4.5.1 has them).
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line.get(..colon)?.trim_ascii_end();
    (!name.is_empty() && name.iter().all(|byte| matches!(byte, b'!'..=b'~'))).then_some(name)
}

/// Text for a header field: no controls, and ASCII unless UTF-8 was agreed on.
fn presentable(text: &str, utf8: bool) -> String {
    text.chars().map(|c| if c.is_control() || (!utf8 && !c.is_ascii()) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop<'a>() -> Hop<'a> {
        Hop {
            client_name: "me.test",
            client_ip: "192.0.2.7".parse().unwrap(),
            hostname: "mx.test",
            protocol: "ESMTPSA",
            tls: Some("TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"),
            id: "abc.1",
            only_recipient: None,
            utf8: false,
            date: "Fri, 20 Nov 2026 18:00:00 +0000",
        }
    }

    #[test]
    fn received_fields() {
        assert_eq!(
            received(&hop()),
            "Received: from me.test ([192.0.2.7])\r\n\
             \t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))\r\n\
             \tby mx.test (Postern) with ESMTPSA id abc.1;\r\n\
             \tFri, 20 Nov 2026 18:00:00 +0000\r\n"
        );
        let (to, _) = ForwardPath::parse_prefix("<ü@x>").unwrap();
        let field = received(&Hop {
            client_name: "büro",
            client_ip: "2001:db8::1".parse().unwrap(),
            protocol: "SMTP",
            tls: None,
            only_recipient: Some(&to),
            ..hop()
        });
        assert!(field.starts_with(
            "Received: from b?ro ([IPv6:2001:db8::1])\r\n\tby mx.test (Postern) with SMTP id abc.1"
        ));
        assert!(field.contains("\r\n\tfor <?@x>;\r\n"));
        let mapped = received(&Hop { client_ip: "::ffff:192.0.2.7".parse().unwrap(), ..hop() });
        assert!(mapped.contains("([192.0.2.7])"));
    }

    #[test]
    fn header_scan() {
        let scan = |text: &str| {
            let found = Header::scan(text.as_bytes(), true);
            (found.date, found.message_id)
        };
        for (text, found) in [
            ("", (false, false)),
            ("Subject: x\r\n\r\nDate: body\r\n", (false, false)),
            ("dAtE: x\r\nMESSAGE-id : y\r\n\r\n", (true, true)),
            ("Subject: x\r\n Date: folded\r\n\r\n", (false, false)),
            ("X-Date: x\r\nResent-Date: y\r\n\r\n", (false, false)),
            ("no header here\r\nDate: x\r\n", (false, false)),
            ("Date: x", (false, false)),
            ("Subject: x\r\nDate: y\r\n", (true, false)),
        ] {
            assert_eq!(scan(text), found, "{text:?}");
        }
        // The header goes on behind what was seen.
        assert_eq!(
            Header::scan(b"Subject: x\r\n", false),
            Header { date: true, message_id: true, received: 0 }
        );
        assert!(Header::scan("Received: x\r\n".repeat(101).as_bytes(), true).loops());
        assert!(!Header::scan("Received: x\r\n".repeat(100).as_bytes(), true).loops());
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let none = Header::default();
        assert_eq!(missing_fields(&none, "D", "i.1", "h"), "Date: D\r\nMessage-ID: <i.1@h>\r\n");
        assert_eq!(missing_fields(&Header { date: true, message_id: true, received: 0 }, "D", "i", "h"), "");
    }
}
