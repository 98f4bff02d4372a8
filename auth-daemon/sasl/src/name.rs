//! Names of mechanisms and what they need.
//!
//! Purpose: one table of the mechanisms: spelling, flags as Dovecot announces them, credentials they live on.
//! Trust:   names come from a client; one that is not in the table is no mechanism.
//! Never:   take one spelling for another mechanism.

/// A mechanism this crate implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// PLAIN, RFC 4616.
    Plain,
    /// LOGIN, the unwritten two-prompt mechanism.
    Login,
    /// CRAM-MD5, RFC 2195.
    CramMd5,
    /// DIGEST-MD5, RFC 2831.
    DigestMd5,
    /// SCRAM-SHA-1, RFC 5802.
    ScramSha1,
    /// SCRAM-SHA-1-PLUS, RFC 5802.
    ScramSha1Plus,
    /// SCRAM-SHA-256, RFC 7677.
    ScramSha256,
    /// SCRAM-SHA-256-PLUS, RFC 7677.
    ScramSha256Plus,
    /// ANONYMOUS, RFC 4505.
    Anonymous,
    /// APOP, RFC 1939 §7, in Dovecot's internal form.
    Apop,
}

/// A key a mechanism can live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// The password in clear.
    Plain,
    /// The MD5 states of CRAM-MD5, or the password.
    CramMd5,
    /// The DIGEST-MD5 hash, or the password.
    DigestMd5,
    /// SCRAM keys for SHA-1, or the password.
    ScramSha1,
    /// SCRAM keys for SHA-256, or the password.
    ScramSha256,
}

/// What a mechanism needs from the password database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Nothing at all.
    Nothing,
    /// A password check.
    Verify,
    /// A stored key.
    Key(KeyKind),
}

impl Name {
    /// All mechanisms, in the order they are announced.
    pub const ALL: [Name; 10] = [
        Name::Plain,
        Name::Login,
        Name::CramMd5,
        Name::DigestMd5,
        Name::ScramSha1,
        Name::ScramSha1Plus,
        Name::ScramSha256,
        Name::ScramSha256Plus,
        Name::Anonymous,
        Name::Apop,
    ];

    /// Finds a mechanism; the case does not matter (RFC 4422 §3.1 knows upper case only, clients do not).
    pub fn parse(text: &str) -> Option<Name> {
        Name::ALL.into_iter().find(|name| name.as_str().eq_ignore_ascii_case(text))
    }

    /// The registered spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Plain => "PLAIN",
            Name::Login => "LOGIN",
            Name::CramMd5 => "CRAM-MD5",
            Name::DigestMd5 => "DIGEST-MD5",
            Name::ScramSha1 => "SCRAM-SHA-1",
            Name::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Name::ScramSha256 => "SCRAM-SHA-256",
            Name::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Name::Anonymous => "ANONYMOUS",
            Name::Apop => "APOP",
        }
    }

    /// Flags of the `MECH` line, in Dovecot's order.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Name::Plain | Name::Login => &["plaintext"],
            Name::CramMd5 => &["dictionary", "active"],
            Name::DigestMd5 => &["dictionary", "active", "mutual-auth"],
            Name::ScramSha1 | Name::ScramSha256 => &["mutual-auth"],
            Name::ScramSha1Plus | Name::ScramSha256Plus => &["mutual-auth", "channel-binding"],
            Name::Anonymous => &["anonymous"],
            Name::Apop => &["private", "dictionary", "active"],
        }
    }

    /// What the mechanism needs.
    pub fn needs(self) -> Needs {
        match self {
            Name::Plain | Name::Login => Needs::Verify,
            Name::CramMd5 => Needs::Key(KeyKind::CramMd5),
            Name::DigestMd5 => Needs::Key(KeyKind::DigestMd5),
            Name::ScramSha1 | Name::ScramSha1Plus => Needs::Key(KeyKind::ScramSha1),
            Name::ScramSha256 | Name::ScramSha256Plus => Needs::Key(KeyKind::ScramSha256),
            Name::Anonymous => Needs::Nothing,
            Name::Apop => Needs::Key(KeyKind::Plain),
        }
    }

    /// Whether the mechanism binds to the TLS channel.
    pub fn is_plus(self) -> bool {
        matches!(self, Name::ScramSha1Plus | Name::ScramSha256Plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_ignore_case() {
        for name in Name::ALL {
            assert_eq!(Name::parse(name.as_str()), Some(name));
            assert_eq!(Name::parse(&name.as_str().to_lowercase()), Some(name));
        }
        assert_eq!(Name::parse("GSSAPI"), None);
        assert_eq!(Name::parse(""), None);
    }
}
