//! Names of schemes and the `{SCHEME.ENC}data` form.
//!
//! Format: Dovecot `password-scheme.c` (`password_get_scheme`).
//! Trust:  the text comes from whoever wrote the file or row.
//! Never:  quote more of it in an error than a short, printable name.

use std::fmt;

use crate::Error;

/// A password scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// The password itself; also `CLEAR`, `CLEARTEXT`.
    Plain,
    /// `<len>-<password>`, matching longer inputs when the stored part has the declared length.
    PlainTrunc,
    /// Any crypt(3) text.
    Crypt,
    /// crypt(3) DES.
    DesCrypt,
    /// `$1$`, forced.
    Md5Crypt,
    /// `$1$`, or an unsalted MD5 in hex or base64.
    Md5,
    /// `$5$`; like Dovecot's, any crypt(3) text.
    Sha256Crypt,
    /// `$6$`; like Dovecot's, any crypt(3) text.
    Sha512Crypt,
    /// bcrypt, forced.
    BlfCrypt,
    /// Any argon2 PHC string.
    Argon2,
    /// Argon2i; the text decides.
    Argon2i,
    /// Argon2id; the text decides.
    Argon2id,
    /// `$1$salt$rounds$hex`, HMAC-SHA1.
    Pbkdf2,
    /// SHA-1; also `SHA1`.
    Sha,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// SHA-1 with salt.
    Ssha,
    /// SHA-256 with salt.
    Ssha256,
    /// SHA-512 with salt.
    Ssha512,
    /// MD5 with salt.
    Smd5,
    /// MD4, hex.
    PlainMd4,
    /// MD5, hex.
    PlainMd5,
    /// MD5, base64.
    LdapMd5,
    /// The MD5 states of HMAC-MD5.
    CramMd5,
    /// Old name of [`Scheme::CramMd5`].
    HmacMd5,
    /// `MD5(user:realm:password)`.
    DigestMd5,
    /// SCRAM keys, SHA-1.
    ScramSha1,
    /// SCRAM keys, SHA-256.
    ScramSha256,
    /// One-time password state, RFC 2289.
    Otp,
}

/// Spelling, scheme. The first spelling of a scheme is the one we write.
const NAMES: [(&str, Scheme); 32] = [
    ("PLAIN", Scheme::Plain),
    ("CRYPT", Scheme::Crypt),
    ("ARGON2ID", Scheme::Argon2id),
    ("SHA512-CRYPT", Scheme::Sha512Crypt),
    ("BLF-CRYPT", Scheme::BlfCrypt),
    ("SSHA", Scheme::Ssha),
    ("SSHA256", Scheme::Ssha256),
    ("SSHA512", Scheme::Ssha512),
    ("SHA256-CRYPT", Scheme::Sha256Crypt),
    ("SCRAM-SHA-256", Scheme::ScramSha256),
    ("SCRAM-SHA-1", Scheme::ScramSha1),
    ("CRAM-MD5", Scheme::CramMd5),
    ("DIGEST-MD5", Scheme::DigestMd5),
    ("MD5-CRYPT", Scheme::Md5Crypt),
    ("MD5", Scheme::Md5),
    ("PBKDF2", Scheme::Pbkdf2),
    ("ARGON2I", Scheme::Argon2i),
    ("ARGON2", Scheme::Argon2),
    ("SHA", Scheme::Sha),
    ("SHA1", Scheme::Sha),
    ("SHA256", Scheme::Sha256),
    ("SHA512", Scheme::Sha512),
    ("SMD5", Scheme::Smd5),
    ("PLAIN-MD4", Scheme::PlainMd4),
    ("PLAIN-MD5", Scheme::PlainMd5),
    ("LDAP-MD5", Scheme::LdapMd5),
    ("HMAC-MD5", Scheme::HmacMd5),
    ("DES-CRYPT", Scheme::DesCrypt),
    ("CLEARTEXT", Scheme::Plain),
    ("CLEAR", Scheme::Plain),
    ("PLAIN-TRUNC", Scheme::PlainTrunc),
    ("OTP", Scheme::Otp),
];

impl Scheme {
    /// All schemes, each once.
    pub fn all() -> impl Iterator<Item = Scheme> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(at, (_, scheme))| NAMES.iter().position(|(_, first)| first == scheme) == Some(*at))
            .map(|(_, (_, scheme))| *scheme)
    }

    /// Finds a scheme by name, without braces, in any case.
    pub fn from_name(name: &[u8]) -> Option<Scheme> {
        NAMES.iter().find(|(text, _)| text.as_bytes().eq_ignore_ascii_case(name)).map(|(_, scheme)| *scheme)
    }

    /// The name we write.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, scheme)| *scheme == self).map_or("", |(text, _)| text)
    }

    /// Whether the scheme as such is weak (Dovecot 2.4's list). [`Scheme::Crypt`] depends on the text.
    pub fn is_weak(self) -> bool {
        matches!(
            self,
            Scheme::DesCrypt
                | Scheme::Md5Crypt
                | Scheme::Md5
                | Scheme::Smd5
                | Scheme::PlainMd4
                | Scheme::PlainMd5
                | Scheme::LdapMd5
                | Scheme::HmacMd5
        )
    }

    /// Length of the raw digest of schemes whose text may be hex or base64 without saying which (rule F1.2).
    pub(crate) fn fixed_length(self) -> Option<usize> {
        match self {
            Scheme::PlainMd4 | Scheme::PlainMd5 | Scheme::LdapMd5 | Scheme::Md5 | Scheme::DigestMd5 => {
                Some(16)
            }
            Scheme::Sha => Some(20),
            Scheme::Sha256 | Scheme::CramMd5 | Scheme::HmacMd5 => Some(32),
            Scheme::Sha512 => Some(64),
            _ => None,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Scheme, Error> {
        Scheme::from_name(name.as_bytes()).ok_or_else(|| unknown(name.as_bytes()))
    }
}

/// How the data behind the scheme is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// The scheme's own way.
    #[default]
    Own,
    /// `.B64` or `.BASE64`.
    Base64,
    /// `.HEX`.
    Hex,
}

impl Encoding {
    /// Finds an encoding by its suffix, without the dot, in any case.
    pub fn from_name(name: &[u8]) -> Option<Encoding> {
        if name.eq_ignore_ascii_case(b"b64") || name.eq_ignore_ascii_case(b"base64") {
            Some(Encoding::Base64)
        } else if name.eq_ignore_ascii_case(b"hex") {
            Some(Encoding::Hex)
        } else {
            None
        }
    }
}

/// A stored string split into scheme, encoding and data. Borrows the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    scheme: Scheme,
    encoding: Encoding,
    data: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Splits `{SCHEME[.ENC]}data`; a text without a closed `{…}` is in the default scheme, and one that begins
    /// with `$1$` is MD5-CRYPT whatever the default.
    ///
    /// # Errors
    /// [`Error::UnknownScheme`].
    pub fn parse(text: &'a [u8], default: Scheme) -> Result<Stored<'a>, Error> {
        if text.first() == Some(&b'{')
            && let Some(end) = text.iter().position(|&b| b == b'}')
        {
            let name = text.get(1..end).unwrap_or_default();
            let data = text.get(end + 1..).unwrap_or_default();
            let (scheme, encoding) = parse_name(name).ok_or_else(|| unknown(name))?;
            return Ok(Stored { scheme, encoding, data });
        }
        if text.starts_with(b"$1$") {
            return Ok(Stored::new(Scheme::Md5Crypt, without_fifth_field(text)));
        }
        Ok(Stored::new(default, text))
    }

    /// Splits column two of a passwd-file: [`Stored::parse`], and libpam-pwdfile's `hash[13]` (crypt),
    /// `hash[34]` (hex MD5) and `hash[56]` (hex DIGEST-MD5).
    ///
    /// # Errors
    /// [`Error::UnknownScheme`].
    pub fn parse_column(text: &'a [u8], default: Scheme) -> Result<Stored<'a>, Error> {
        if !matches!(text.first(), Some(b'{' | b'$')) && text.last() == Some(&b']') {
            for (tail, scheme) in
                [(&b"[13]"[..], Scheme::Crypt), (b"[34]", Scheme::PlainMd5), (b"[56]", Scheme::DigestMd5)]
            {
                if let Some(data) = text.strip_suffix(tail) {
                    return Ok(Stored::new(scheme, data));
                }
            }
        }
        Stored::parse(text, default)
    }

    /// Data whose scheme is known from elsewhere (a `password_noscheme` field); braces are not looked at.
    pub fn new(scheme: Scheme, data: &'a [u8]) -> Stored<'a> {
        Stored { scheme, encoding: Encoding::Own, data }
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The encoding named by the prefix.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The text behind the prefix.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    pub(crate) fn malformed(&self, why: &'static str) -> Error {
        Error::Malformed { scheme: self.scheme, why }
    }
}

impl fmt::Debug for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({{{}}}…)", self.scheme)
    }
}

fn parse_name(name: &[u8]) -> Option<(Scheme, Encoding)> {
    match name.iter().position(|&b| b == b'.') {
        None => Some((Scheme::from_name(name)?, Encoding::Own)),
        Some(dot) => {
            let scheme = Scheme::from_name(name.get(..dot)?)?;
            Some((scheme, Encoding::from_name(name.get(dot + 1..)?)?))
        }
    }
}

/// Names go to logs; what does not look like a name may be a password that began with a brace.
fn unknown(name: &[u8]) -> Error {
    let plain = name.len() <= 32 && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b));
    Error::UnknownScheme(if plain { String::from_utf8_lossy(name).into_owned() } else { "?".to_owned() })
}

/// `$1$salt$hash$junk`: everything from the fourth `$` on is dropped.
fn without_fifth_field(text: &[u8]) -> &[u8] {
    let end = text.iter().enumerate().filter(|(_, b)| **b == b'$').map(|(at, _)| at).nth(3);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_prefixes() {
        type Split<'a> = Option<(Scheme, Encoding, &'a str)>;
        let cases: [(&str, Split<'_>); 16] = [
            ("{PLAIN}x", Some((Scheme::Plain, Encoding::Own, "x"))),
            ("{plain.b64}eA==", Some((Scheme::Plain, Encoding::Base64, "eA=="))),
            ("{CLEARTEXT.BASE64}eA==", Some((Scheme::Plain, Encoding::Base64, "eA=="))),
            ("{SHA1.Hex}00", Some((Scheme::Sha, Encoding::Hex, "00"))),
            ("{PLAIN}{x}y", Some((Scheme::Plain, Encoding::Own, "{x}y"))),
            ("x", Some((Scheme::Crypt, Encoding::Own, "x"))),
            ("", Some((Scheme::Crypt, Encoding::Own, ""))),
            ("{SSHA", Some((Scheme::Crypt, Encoding::Own, "{SSHA"))),
            ("$1$s$h", Some((Scheme::Md5Crypt, Encoding::Own, "$1$s$h"))),
            ("$1$s$h$junk$more", Some((Scheme::Md5Crypt, Encoding::Own, "$1$s$h"))),
            ("$1$", Some((Scheme::Md5Crypt, Encoding::Own, "$1$"))),
            ("{}abc", None),
            ("{NOSUCH}abc", None),
            ("{SSHA.}abc", None),
            ("{SSHA.foo}abc", None),
            ("{LANMAN}E0", None),
        ];
        for (text, expected) in cases {
            let parsed = Stored::parse(text.as_bytes(), Scheme::Crypt).ok();
            let parsed = parsed.map(|s| (s.scheme(), s.encoding(), std::str::from_utf8(s.data()).unwrap()));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn column_forms_of_pwdfile() {
        let cases = [
            ("abd0hcYtGqTts[13]", Scheme::Crypt, "abd0hcYtGqTts"),
            ("14cb[34]", Scheme::PlainMd5, "14cb"),
            ("14cb[56]", Scheme::DigestMd5, "14cb"),
            ("14cb[57]", Scheme::Plain, "14cb[57]"),
            ("{PLAIN}x[13]", Scheme::Plain, "x[13]"),
            ("$6$x[13]", Scheme::Plain, "$6$x[13]"),
        ];
        for (text, scheme, data) in cases {
            let stored = Stored::parse_column(text.as_bytes(), Scheme::Plain).unwrap();
            assert_eq!((stored.scheme(), stored.data()), (scheme, data.as_bytes()), "{text}");
        }
    }

    #[test]
    fn errors_do_not_quote_odd_names() {
        let error = Stored::parse(b"{my secret pass}word", Scheme::Plain).unwrap_err();
        assert_eq!(error.to_string(), "unknown password scheme {?}");
    }

    #[test]
    fn every_scheme_has_one_name_that_parses_back() {
        let all: Vec<Scheme> = Scheme::all().collect();
        assert_eq!(all.len(), 29);
        for scheme in all {
            assert_eq!(Scheme::from_name(scheme.name().to_lowercase().as_bytes()), Some(scheme));
        }
    }
}
