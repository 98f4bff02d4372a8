//! Envelope addresses.
//!
//! Purpose:   mailbox, domain and path as types that cannot hold anything invalid.
//! Standard:  RFC 5321 §4.1.2 and §4.1.3; UTF-8 by RFC 6531 §3.3. Source routes are read and dropped
//!            (RFC 5321 §3.6.1, appendix C).
//! Deviation: what real clients send and other servers take. Local parts up to 256 bytes instead of 64 (VERP, BATV);
//!            dots anywhere in them (`a..b@x`; shown quoted); `_` in domain names and one dot behind them; blanks
//!            inside the brackets, and no brackets at all.
//! Trust:     every byte is a client's.
//! Never:     hold what the grammar, with the deviations above, does not allow.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest local part kept.
const MAX_LOCAL: usize = 256;
/// Longest domain (RFC 5321 §4.5.3.1.2).
const MAX_DOMAIN: usize = 255;
/// What may stand around an address.
const BLANKS: [char; 2] = [' ', '\t'];
/// Longest label of a domain name (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// Why an address was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing at all.
    #[error("there is none")]
    Missing,
    /// No `>` at the end of the path.
    #[error("the address does not end with '>'")]
    Unterminated,
    /// Malformed source route.
    #[error("malformed source route")]
    Route,
    /// Malformed local part.
    #[error("malformed local part")]
    Local,
    /// Nothing behind the `@`, or no `@`.
    #[error("the address has no domain")]
    NoDomain,
    /// Malformed domain or address literal.
    #[error("malformed domain")]
    Domain,
    /// Longer than any address may be.
    #[error("the address is too long")]
    TooLong,
    /// The null path where a recipient is wanted.
    #[error("a recipient cannot be empty")]
    Null,
}

/// What stands before the `@`, without its quoting.
///
/// Two spellings of one mailbox (`"a"@x`, `a@x`) are equal, as RFC 5321 §4.1.2 demands. Not empty unless it was
/// written as `""`; no control characters; at most 256 bytes of UTF-8.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LocalPart(Box<str>);

impl LocalPart {
    /// The unquoted text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a local part from the front of `text`; gives the rest behind it.
    fn parse_prefix(text: &str) -> Result<(Self, &str), AddressError> {
        let (local, rest) = match text.strip_prefix('"') {
            Some(quoted) => Self::quoted(quoted)?,
            None => Self::dotted(text)?,
        };
        if local.0.len() > MAX_LOCAL {
            return Err(AddressError::TooLong);
        }
        Ok((local, rest))
    }

    /// `Dot-string` of RFC 5321 §4.1.2, with dots at any place.
    fn dotted(text: &str) -> Result<(Self, &str), AddressError> {
        let end = text.find(|c| !(is_atext(c) || c == '.')).unwrap_or(text.len());
        let (local, rest) = text.split_at(end);
        if local.is_empty() {
            return Err(AddressError::Local);
        }
        Ok((Self(local.into()), rest))
    }

    /// `Quoted-string` of RFC 5321 §4.1.2; `text` starts behind the opening quote.
    fn quoted(text: &str) -> Result<(Self, &str), AddressError> {
        let mut local = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let kept = match character {
                '"' => return Ok((Self(local.into()), characters.as_str())),
                '\\' => characters.next().filter(|c| matches!(c, ' '..='~')),
                other => Some(other).filter(|c| matches!(c, ' '..='~') || is_utf8_text(*c)),
            };
            local.push(kept.ok_or(AddressError::Local)?);
        }
        Err(AddressError::Local)
    }

    fn is_dotted(&self) -> bool {
        !self.0.split('.').any(|atom| atom.is_empty() || !atom.chars().all(is_atext))
    }
}

impl fmt::Display for LocalPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        if self.is_dotted() {
            return f.write_str(&self.0);
        }
        f.write_char('"')?;
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        f.write_char('"')
    }
}

/// A domain name: labels of letters, digits, `-` and `_`, or U-labels that IDNA accepts. Lower case.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DomainName {
    text: Box<str>,
    /// The A-label form where it differs from `text`.
    ascii: Option<Box<str>>,
}

impl DomainName {
    /// As written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form to compare and to look up: A-labels.
    pub fn ascii(&self) -> &str {
        self.ascii.as_deref().unwrap_or(&self.text)
    }
}

impl TryFrom<&str> for DomainName {
    type Error = AddressError;

    fn try_from(raw: &str) -> Result<Self, AddressError> {
        if raw.len() > MAX_DOMAIN {
            return Err(AddressError::TooLong);
        }
        if raw.is_empty() {
            return Err(AddressError::NoDomain);
        }
        let text = raw.strip_suffix('.').unwrap_or(raw).to_lowercase();
        if text.is_ascii() {
            return if is_ldh_name(&text) {
                Ok(Self { text: text.into(), ascii: None })
            } else {
                Err(AddressError::Domain)
            };
        }
        let ascii = idna::domain_to_ascii_strict(&text).map_err(|_| AddressError::Domain)?;
        if !is_ldh_name(&ascii) {
            return Err(AddressError::Domain);
        }
        Ok(Self { text: text.into(), ascii: Some(ascii.into()) })
    }
}

/// What stands behind the `@`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Domain {
    /// A name.
    Name(DomainName),
    /// An address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
    Literal(IpAddr),
}

impl Domain {
    /// Reads a domain that ends where `text` ends.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let Some(bracketed) = text.strip_prefix('[') else {
            return DomainName::try_from(text).map(Self::Name);
        };
        let inner = bracketed.strip_suffix(']').ok_or(AddressError::Domain)?;
        // The tag is compared without case; a general literal with any other tag has no meaning to us.
        let tagged =
            inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:")).and_then(|_| inner.get(5..));
        match tagged {
            Some(six) => six.parse::<Ipv6Addr>().map(|ip| Self::Literal(ip.into())),
            None => inner.parse::<Ipv4Addr>().map(|ip| Self::Literal(ip.into())),
        }
        .map_err(|_| AddressError::Domain)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name.as_str()),
            Self::Literal(IpAddr::V4(ip)) => write!(f, "[{ip}]"),
            Self::Literal(IpAddr::V6(ip)) => write!(f, "[IPv6:{ip}]"),
        }
    }
}

/// A mailbox: local part and domain.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    local: LocalPart,
    domain: Domain,
}

impl Address {
    /// Reads `local@domain`, without brackets.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, rest) = LocalPart::parse_prefix(text)?;
        let domain = rest.strip_prefix('@').ok_or(AddressError::NoDomain)?;
        Ok(Self { local, domain: Domain::parse(domain)? })
    }

    /// The part before the `@`.
    pub fn local(&self) -> &LocalPart {
        &self.local
    }

    /// The part behind the `@`.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether the address may be used without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        let domain_is_ascii = match &self.domain {
            Domain::Name(name) => name.as_str().is_ascii(),
            Domain::Literal(_) => true,
        };
        domain_is_ascii && self.local.as_str().is_ascii()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

/// Who a message is from: `<>` or a mailbox.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ReversePath {
    /// `<>`: a bounce or another message nobody should answer.
    Null,
    /// A mailbox.
    Mailbox(Address),
}

impl ReversePath {
    /// Reads `<…>`, or an address without brackets, from the front of `text`; gives the rest behind it.
    pub fn parse_prefix(text: &str) -> Result<(Self, &str), AddressError> {
        match parse_path(text)? {
            (Path::Null, rest) => Ok((Self::Null, rest)),
            (Path::Mailbox(address), rest) => Ok((Self::Mailbox(address), rest)),
            (Path::Bare(_), _) => Err(AddressError::NoDomain),
        }
    }

    /// Whether the path may be used without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Mailbox(address) => address.is_ascii(),
        }
    }
}

impl fmt::Display for ReversePath {
    /// With its angle brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

/// Who a message is for: a mailbox, or the bare `<postmaster>` every server knows (RFC 5321 §4.5.1).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ForwardPath {
    /// `<Postmaster>` without a domain, in any case.
    Postmaster,
    /// A mailbox.
    Mailbox(Address),
}

impl ForwardPath {
    /// Reads `<…>`, or an address without brackets, from the front of `text`; gives the rest behind it.
    pub fn parse_prefix(text: &str) -> Result<(Self, &str), AddressError> {
        match parse_path(text)? {
            (Path::Null, _) => Err(AddressError::Null),
            (Path::Mailbox(address), rest) => Ok((Self::Mailbox(address), rest)),
            (Path::Bare(local), rest) if local.as_str().eq_ignore_ascii_case("postmaster") => {
                Ok((Self::Postmaster, rest))
            }
            (Path::Bare(_), _) => Err(AddressError::NoDomain),
        }
    }

    /// Whether the path may be used without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        match self {
            Self::Postmaster => true,
            Self::Mailbox(address) => address.is_ascii(),
        }
    }
}

impl fmt::Display for ForwardPath {
    /// With its angle brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postmaster => f.write_str("<postmaster>"),
            Self::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

enum Path {
    Null,
    Bare(LocalPart),
    Mailbox(Address),
}

fn parse_path(text: &str) -> Result<(Path, &str), AddressError> {
    let Some(text) = text.strip_prefix('<') else { return without_brackets(text) };
    let text = text.trim_start_matches(BLANKS);
    if let Some(rest) = text.strip_prefix('>') {
        return Ok((Path::Null, rest));
    }
    let text = if text.starts_with('@') { skip_route(text)? } else { text };
    let (local, rest) = LocalPart::parse_prefix(text)?;
    if let Some(rest) = rest.trim_start_matches(BLANKS).strip_prefix('>') {
        return Ok((Path::Bare(local), rest));
    }
    let rest = rest.strip_prefix('@').ok_or(AddressError::Local)?;
    let end = rest.find('>').ok_or(AddressError::Unterminated)?;
    let (domain, rest) = rest.split_at(end);
    let address = Address { local, domain: Domain::parse(domain.trim_end_matches(BLANKS))? };
    Ok((Path::Mailbox(address), rest.strip_prefix('>').unwrap_or(rest)))
}

/// `local@domain`, or a local part alone, up to the next blank.
fn without_brackets(text: &str) -> Result<(Path, &str), AddressError> {
    if text.is_empty() {
        return Err(AddressError::Missing);
    }
    let (local, rest) = LocalPart::parse_prefix(text)?;
    if rest.is_empty() || rest.starts_with(BLANKS) {
        return Ok((Path::Bare(local), rest));
    }
    let rest = rest.strip_prefix('@').ok_or(AddressError::Local)?;
    let (domain, rest) = rest.split_at(rest.find(BLANKS).unwrap_or(rest.len()));
    Ok((Path::Mailbox(Address { local, domain: Domain::parse(domain)? }), rest))
}

/// Reads `@a,@b:` and gives what follows it.
fn skip_route(text: &str) -> Result<&str, AddressError> {
    let mut rest = text;
    loop {
        let hop = rest.strip_prefix('@').ok_or(AddressError::Route)?;
        // A literal may hold colons of its own.
        let from = if hop.starts_with('[') { hop.find(']').ok_or(AddressError::Route)? } else { 0 };
        let tail = hop.get(from..).ok_or(AddressError::Route)?;
        let end = from + tail.find([',', ':', '>']).ok_or(AddressError::Route)?;
        let (domain, separator) = hop.split_at(end);
        Domain::parse(domain).map_err(|_| AddressError::Route)?;
        if let Some(mailbox) = separator.strip_prefix(':') {
            return Ok(mailbox);
        }
        rest = separator.strip_prefix(',').ok_or(AddressError::Route)?;
    }
}

fn is_atext(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(character) || is_utf8_text(character)
}

/// `UTF8-non-ascii` of RFC 6531, without the C1 controls and the separators that print as line breaks.
fn is_utf8_text(character: char) -> bool {
    !character.is_ascii() && !character.is_control() && !matches!(character, '\u{2028}' | '\u{2029}')
}

fn is_ldh_name(name: &str) -> bool {
    // `192.0.2.1` is an address without its brackets: no top-level domain is a number (RFC 3696 §2).
    let number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    !number
        && name.len() <= MAX_DOMAIN
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= MAX_LABEL
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_paths_that_are_right() {
        let table = [
            ("<a@example.org>", "<a@example.org>"),
            ("<a@EXAMPLE.org>", "<a@example.org>"),
            ("<A.b+c=d@x>", "<A.b+c=d@x>"),
            ("<\"a b\"@x.org>", "<\"a b\"@x.org>"),
            ("<\"a\"@x.org>", "<a@x.org>"),
            ("<\"a\\\"b\\\\\"@x.org>", "<\"a\\\"b\\\\\"@x.org>"),
            ("<\"a@b>c\"@x.org>", "<\"a@b>c\"@x.org>"),
            ("<\"\"@x.org>", "<\"\"@x.org>"),
            ("<a@[127.0.0.1]>", "<a@[127.0.0.1]>"),
            ("<a@[IPv6:::1]>", "<a@[IPv6:::1]>"),
            ("<a@[ipv6:2001:DB8::1]>", "<a@[IPv6:2001:db8::1]>"),
            ("<@one,@two:a@x.org>", "<a@x.org>"),
            ("<@[IPv6:::1],@two.org:a@x.org>", "<a@x.org>"),
            ("<postmaster>", "<postmaster>"),
            ("<PostMaster>", "<postmaster>"),
            ("<δοκιμή@παράδειγμα.δοκιμή>", "<δοκιμή@παράδειγμα.δοκιμή>"),
            ("<under_score@my_host.org>", "<under_score@my_host.org>"),
            ("< a@x.org >", "<a@x.org>"),
            ("<\tpostmaster >", "<postmaster>"),
            ("<a..b@x.org>", "<\"a..b\"@x.org>"),
            ("<.a.@x.org>", "<\".a.\"@x.org>"),
            ("<a@x.org.>", "<a@x.org>"),
            ("<a@1.2.3.4.org>", "<a@1.2.3.4.org>"),
            ("a@x.org", "<a@x.org>"),
            ("\"a b\"@x.org", "<\"a b\"@x.org>"),
            ("postmaster", "<postmaster>"),
        ];
        for (text, shown) in table {
            let (path, rest) = ForwardPath::parse_prefix(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((path.to_string().as_str(), rest), (shown, ""), "{text}");
            // Printing and reading again is stable.
            assert_eq!(ForwardPath::parse_prefix(&path.to_string()).unwrap().0, path);
        }
    }

    #[test]
    fn forward_paths_that_are_wrong() {
        use AddressError as E;
        let long_local = format!("<{}@x>", "a".repeat(257));
        let long_domain = format!("<a@{}>", "a.".repeat(130));
        let long_label = format!("<a@{}.org>", "a".repeat(64));
        let table: [(&str, E); 30] = [
            ("", E::Missing),
            ("a", E::NoDomain),
            ("a>@x", E::Local),
            ("a@x>", E::Domain),
            ("Name <a@x>", E::NoDomain),
            ("\"Name\" <a@x>", E::NoDomain),
            ("<<a@x>>", E::Local),
            ("<>", E::Null),
            ("<", E::Local),
            ("<a", E::Local),
            ("<a@x", E::Unterminated),
            ("<a>", E::NoDomain),
            ("<a@>", E::NoDomain),
            ("<@x>", E::Route),
            ("<@x:a>", E::NoDomain),
            ("<@x,:a@y>", E::Route),
            ("<a b@x>", E::Local),
            ("<\"a@x>", E::Local),
            ("<\"a\u{1}\"@x>", E::Local),
            ("<a@x..y>", E::Domain),
            ("<a@-x.org>", E::Domain),
            ("<a@x..>", E::Domain),
            ("<a@.>", E::Domain),
            ("<a@1.2.3.4>", E::Domain),
            ("<a@b@c>", E::Domain),
            ("<a@[300.0.0.1]>", E::Domain),
            ("<a@[IPv6:zz]>", E::Domain),
            (&long_local, E::TooLong),
            (&long_domain, E::TooLong),
            (&long_label, E::Domain),
        ];
        for (text, error) in table {
            assert_eq!(ForwardPath::parse_prefix(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn reverse_paths() {
        assert_eq!(ReversePath::parse_prefix("<> SIZE=1").unwrap(), (ReversePath::Null, " SIZE=1"));
        assert_eq!(ReversePath::parse_prefix("<postmaster>").unwrap_err(), AddressError::NoDomain);
        for text in ["<a@x> BODY=7BIT", "a@x BODY=7BIT"] {
            let (path, rest) = ReversePath::parse_prefix(text).unwrap();
            assert_eq!((path.to_string().as_str(), rest), ("<a@x>", " BODY=7BIT"));
        }
    }

    #[test]
    fn international_names_compare_by_a_labels() {
        let name = DomainName::try_from("BÜCHER.example").unwrap();
        assert_eq!((name.as_str(), name.ascii()), ("bücher.example", "xn--bcher-kva.example"));
        assert!(!Address::parse("a@bücher.example").unwrap().is_ascii());
        assert!(Address::parse("a@xn--bcher-kva.example").unwrap().is_ascii());
    }
}
