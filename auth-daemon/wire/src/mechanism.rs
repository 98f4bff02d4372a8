//! Mechanism names and the flags of `MECH` lines.
//!
//! Trust: names come from the peer; only those of RFC 4422 §3.1 are taken.
//! Never: put another byte than theirs on the wire.

use std::fmt;
use std::ops::BitOr;

use crate::Error;

/// A SASL mechanism name (RFC 4422 §3.1): 1 to 20 of `A-Z 0-9 - _`, kept in upper case.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MechName {
    bytes: [u8; 20],
    length: u8,
}

impl MechName {
    /// Reads a name in any case.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let length = u8::try_from(text.len()).map_err(|_| Error::MechanismName)?;
        if length == 0 || length > 20 {
            return Err(Error::MechanismName);
        }
        let mut bytes = [0; 20];
        for (slot, byte) in bytes.iter_mut().zip(text) {
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_') {
                return Err(Error::MechanismName);
            }
            *slot = byte.to_ascii_uppercase();
        }
        Ok(Self { bytes, length })
    }

    /// The name in upper case.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.length))
            .and_then(|name| std::str::from_utf8(name).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for MechName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Display for MechName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl PartialEq<str> for MechName {
    fn eq(&self, other: &str) -> bool {
        self.as_str().eq_ignore_ascii_case(other)
    }
}

/// Properties of a mechanism as announced.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flags(u8);

impl Flags {
    /// Not to be shown to remote users.
    pub const PRIVATE: Self = Self(1);
    /// Anonymous access.
    pub const ANONYMOUS: Self = Self(1 << 1);
    /// The password travels as it is.
    pub const PLAINTEXT: Self = Self(1 << 2);
    /// Open to a dictionary attack by who listens.
    pub const DICTIONARY: Self = Self(1 << 3);
    /// Open to an active attack.
    pub const ACTIVE: Self = Self(1 << 4);
    /// Sessions stay secret when a key is lost later.
    pub const FORWARD_SECRECY: Self = Self(1 << 5);
    /// The server proves itself too.
    pub const MUTUAL_AUTH: Self = Self(1 << 6);
    /// Bound to the TLS channel.
    pub const CHANNEL_BINDING: Self = Self(1 << 7);

    /// Names in the order Dovecot emits them.
    const NAMES: [(Self, &'static str); 8] = [
        (Self::PRIVATE, "private"),
        (Self::ANONYMOUS, "anonymous"),
        (Self::PLAINTEXT, "plaintext"),
        (Self::DICTIONARY, "dictionary"),
        (Self::ACTIVE, "active"),
        (Self::FORWARD_SECRECY, "forward-secrecy"),
        (Self::MUTUAL_AUTH, "mutual-auth"),
        (Self::CHANNEL_BINDING, "channel-binding"),
    ];

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the set flags, in Dovecot's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| name)
    }

    /// The flag of that name; unknown names are no flags.
    pub fn named(name: &[u8]) -> Self {
        Self::NAMES.into_iter().find(|(_, known)| known.as_bytes() == name).map_or(Self(0), |(flag, _)| flag)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An announced mechanism.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mechanism {
    /// Its name.
    pub name: MechName,
    /// Its properties.
    pub flags: Flags,
}

impl Mechanism {
    /// A mechanism with the flags Dovecot 2.3 and 2.4 announce for it; `None` for names it does not know.
    pub fn known(name: &str) -> Option<Self> {
        let name = MechName::parse(name.as_bytes()).ok()?;
        let flags = match name.as_str() {
            "PLAIN" | "LOGIN" | "XOAUTH2" | "OAUTHBEARER" => Flags::PLAINTEXT,
            "CRAM-MD5" | "NTLM" => Flags::DICTIONARY | Flags::ACTIVE,
            "DIGEST-MD5" => Flags::DICTIONARY | Flags::ACTIVE | Flags::MUTUAL_AUTH,
            "APOP" => Flags::PRIVATE | Flags::DICTIONARY | Flags::ACTIVE,
            "ANONYMOUS" => Flags::ANONYMOUS,
            "SCRAM-SHA-1" | "SCRAM-SHA-256" => Flags::MUTUAL_AUTH,
            "SCRAM-SHA-1-PLUS" | "SCRAM-SHA-256-PLUS" => Flags::MUTUAL_AUTH | Flags::CHANNEL_BINDING,
            "DOVECOT-TOKEN" => Flags::PRIVATE,
            "EXTERNAL" | "GSSAPI" | "GSS-SPNEGO" => Flags::default(),
            _ => return None,
        };
        Some(Self { name, flags })
    }

    /// Appends `MECH<TAB>name<TAB>flag…<LF>`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"MECH\t");
        out.extend_from_slice(self.name.as_str().as_bytes());
        for flag in self.flags.names() {
            out.push(b'\t');
            out.extend_from_slice(flag.as_bytes());
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_dovecot() {
        for line in [
            "MECH\tPLAIN\tplaintext\n",
            "MECH\tLOGIN\tplaintext\n",
            "MECH\tCRAM-MD5\tdictionary\tactive\n",
            "MECH\tDIGEST-MD5\tdictionary\tactive\tmutual-auth\n",
            "MECH\tAPOP\tprivate\tdictionary\tactive\n",
            "MECH\tANONYMOUS\tanonymous\n",
            "MECH\tSCRAM-SHA-1\tmutual-auth\n",
            "MECH\tSCRAM-SHA-256\tmutual-auth\n",
            "MECH\tSCRAM-SHA-256-PLUS\tmutual-auth\tchannel-binding\n",
            "MECH\tEXTERNAL\n",
            "MECH\tOAUTHBEARER\tplaintext\n",
        ] {
            let name = line.split(['\t', '\n']).nth(1).unwrap();
            let mut out = Vec::new();
            Mechanism::known(name).unwrap().write(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
        assert_eq!(Mechanism::known("NOPE"), None);
    }

    #[test]
    fn names() {
        assert_eq!(MechName::parse(b"plain").unwrap().as_str(), "PLAIN");
        assert!(MechName::parse(b"scram-sha-256-plus").is_ok());
        for bad in [b"".as_slice(), b"A B", b"PLAIN\t", b"\xff", b"ABCDEFGHIJKLMNOPQRSTU"] {
            assert_eq!(MechName::parse(bad), Err(Error::MechanismName));
        }
    }
}
