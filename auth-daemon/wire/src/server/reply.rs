//! CONT, OK and FAIL lines.
//!
//! Rules: one line is built and judged before it becomes output: an OK that a client could misread (too long, or a user
//!        name that needs escaping, which Postfix, Exim and others do not undo) becomes a temporary FAIL.
//! Trust: names and texts may come from a stranger or a user file; every one is escaped or refused.
//! Never: send an OK that names somebody else to a client that does not unescape.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::escape::needs_escape;
use crate::field::{Field, write_number, write_pair};
use crate::{FailCode, Kind, MAX_REPLY};

/// The driver's answer to a request.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// The mechanism wants more. May be empty.
    Challenge {
        /// What the mechanism says.
        data: &'a [u8],
        /// Asks a client of minor ≥ 3 for channel binding data of that type (`tls-exporter`).
        channel_binding: Option<&'a str>,
    },
    /// Authenticated.
    Ok {
        /// The canonical user name.
        user: &'a str,
        /// Further fields. On a [`Kind::Client`] socket bare words become `word=yes`: some clients stumble over them.
        fields: &'a [Field],
        /// Final data of the mechanism, only for clients that said `final-resp-ok`; all others get it in one more
        /// [`Reply::Challenge`] and must answer that with nothing.
        final_data: Option<&'a [u8]>,
    },
    /// Not authenticated.
    Fail {
        /// The name, if one was understood; for the client's log.
        user: Option<&'a str>,
        /// What kind of failure, if it may be told. The bare form for old clients is added.
        code: Option<FailCode>,
        /// Text for the remote user.
        reason: Option<&'a str>,
        /// Further fields.
        fields: &'a [Field],
    },
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// It is in the output.
    Delivered,
    /// The request was gone; nothing was sent.
    Stale,
    /// The reply could not be expressed; a temporary FAIL was sent in its place.
    Replaced,
}

/// Appends the reply to `out`.
pub(super) fn write(out: &mut Vec<u8>, kind: Kind, id: u32, reply: &Reply<'_>) -> Sent {
    let start = out.len();
    let fits = match reply {
        Reply::Challenge { data, channel_binding } => {
            write_challenge(out, id, data, *channel_binding);
            true
        }
        Reply::Ok { user, fields, final_data } => {
            write_ok(out, kind, id, user, fields, *final_data);
            !user.is_empty() && !user.bytes().any(needs_escape)
        }
        Reply::Fail { user, code, reason, fields } => {
            write_fail(out, id, *user, *code, *reason, fields);
            true
        }
    };
    if fits && out.len() - start <= MAX_REPLY {
        return Sent::Delivered;
    }
    out.truncate(start);
    if let Reply::Fail { code, reason, .. } = reply {
        // The failure itself stays what it is; only what does not fit is left out.
        write_fail(out, id, None, *code, reason.filter(|text| text.len() < 512), &[]);
    } else {
        write_fail(out, id, None, Some(FailCode::TempFail), Some("Internal error"), &[]);
    }
    Sent::Replaced
}

fn begin(out: &mut Vec<u8>, command: &str, id: u32) {
    out.extend_from_slice(command.as_bytes());
    out.push(b'\t');
    write_number(out, id);
}

fn write_challenge(out: &mut Vec<u8>, id: u32, data: &[u8], channel_binding: Option<&str>) {
    begin(out, "CONT", id);
    // The third field is there even when it is empty: Exim 4.96 loops without it.
    out.push(b'\t');
    push_base64(out, data);
    if let Some(kind) = channel_binding {
        write_pair(out, "channel_binding", kind);
    }
    out.push(b'\n');
}

fn write_ok(out: &mut Vec<u8>, kind: Kind, id: u32, user: &str, fields: &[Field], final_data: Option<&[u8]>) {
    begin(out, "OK", id);
    // First: Exim looks at 16 fields only.
    write_pair(out, "user", user);
    for field in fields.iter().filter(|field| !matches!(field.name.as_ref(), "" | "user" | "resp")) {
        field.write(out);
        if field.value.is_none() && kind == Kind::Client {
            out.extend_from_slice(b"=yes");
        }
    }
    if let Some(data) = final_data {
        out.extend_from_slice(b"\tresp=");
        push_base64(out, data);
    }
    out.push(b'\n');
}

pub(super) fn write_fail(
    out: &mut Vec<u8>,
    id: u32,
    user: Option<&str>,
    code: Option<FailCode>,
    reason: Option<&str>,
    fields: &[Field],
) {
    begin(out, "FAIL", id);
    if let Some(user) = user {
        write_pair(out, "user", user);
    }
    if let Some(name) = code.and_then(FailCode::as_str) {
        write_pair(out, "code", name);
    }
    if let Some(word) = code.and_then(FailCode::legacy) {
        out.push(b'\t');
        out.extend_from_slice(word.as_bytes());
    }
    if let Some(reason) = reason {
        write_pair(out, "reason", reason);
    }
    for field in fields {
        if !matches!(field.name.as_ref(), "" | "user" | "code" | "reason" | "resp") {
            field.write(out);
        }
    }
    out.push(b'\n');
}

fn push_base64(out: &mut Vec<u8>, data: &[u8]) {
    let start = out.len();
    out.resize(start + data.len().div_ceil(3) * 4, b'=');
    if let Some(slot) = out.get_mut(start..) {
        // The slot has exactly the encoded size, so this cannot fail.
        let written = STANDARD.encode_slice(data, slot).unwrap_or_default();
        out.truncate(start + written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, reply: &Reply<'_>) -> (Sent, String) {
        let mut out = Vec::new();
        let sent = write(&mut out, kind, 7, reply);
        (sent, String::from_utf8(out).unwrap())
    }

    fn ok<'a>(user: &'a str, fields: &'a [Field], final_data: Option<&'a [u8]>) -> Reply<'a> {
        Reply::Ok { user, fields, final_data }
    }

    #[test]
    fn lines() {
        let fields =
            [Field::flag("anonymous"), Field::new("original_user", "A\tB"), Field::new("user", "evil")];
        let fail = |code| Reply::Fail { user: Some("a"), code, reason: Some("No"), fields: &[] };
        for (kind, reply, expected) in [
            (Kind::Client, ok("a", &fields, None), "OK\t7\tuser=a\tanonymous=yes\toriginal_user=A\u{1}tB\n"),
            (Kind::Login, ok("a", &fields, None), "OK\t7\tuser=a\tanonymous\toriginal_user=A\u{1}tB\n"),
            (Kind::Login, ok("a", &[], Some(b"v=x")), "OK\t7\tuser=a\tresp=dj14\n"),
            (Kind::Client, Reply::Challenge { data: b"", channel_binding: None }, "CONT\t7\t\n"),
            (
                Kind::Client,
                Reply::Challenge { data: b"Username:", channel_binding: None },
                "CONT\t7\tVXNlcm5hbWU6\n",
            ),
            (
                Kind::Login,
                Reply::Challenge { data: b"", channel_binding: Some("tls-exporter") },
                "CONT\t7\t\tchannel_binding=tls-exporter\n",
            ),
            (Kind::Client, fail(None), "FAIL\t7\tuser=a\treason=No\n"),
            (
                Kind::Client,
                fail(Some(FailCode::TempFail)),
                "FAIL\t7\tuser=a\tcode=temp_fail\ttemp\treason=No\n",
            ),
            (
                Kind::Client,
                fail(Some(FailCode::AuthzFail)),
                "FAIL\t7\tuser=a\tcode=authz_fail\tauthz\treason=No\n",
            ),
            (
                Kind::Client,
                fail(Some(FailCode::UserDisabled)),
                "FAIL\t7\tuser=a\tcode=user_disabled\tuser_disabled\treason=No\n",
            ),
            (
                Kind::Client,
                fail(Some(FailCode::PassExpired)),
                "FAIL\t7\tuser=a\tcode=pass_expired\tpass_expired\treason=No\n",
            ),
            (
                Kind::Client,
                fail(Some(FailCode::InvalidBase64)),
                "FAIL\t7\tuser=a\tcode=invalid_base64\treason=No\n",
            ),
        ] {
            assert_eq!(line(kind, &reply), (Sent::Delivered, expected.to_owned()));
        }
    }

    #[test]
    fn what_clients_would_misread_becomes_temporary() {
        let temporary = "FAIL\t7\tcode=temp_fail\ttemp\treason=Internal error\n";
        let huge = [Field::new("x", "y".repeat(9000))];
        for reply in
            [ok("a\tb", &[], None), ok("a\nOK\t8", &[], None), ok("", &[], None), ok("a", &huge, None)]
        {
            assert_eq!(line(Kind::Client, &reply), (Sent::Replaced, temporary.to_owned()));
        }
        let reply = Reply::Fail { user: None, code: None, reason: Some("No"), fields: &huge };
        assert_eq!(line(Kind::Client, &reply), (Sent::Replaced, "FAIL\t7\treason=No\n".to_owned()));
    }
}
