//! Commands and their arguments.
//!
//! Standard:  RFC 5321 §4.1.1, RFC 1870 (SIZE), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 4954 §4 and §5 (AUTH),
//!            RFC 3461 §4 (xtext), RFC 2033 (LHLO).
//! Trust:     a line is UTF-8 without control characters before anything else is looked at.

use std::fmt;

use crate::address::{Address, AddressError, Domain, ForwardPath, ReversePath};
use crate::reply::{Reply, Status};
use crate::secret::Secret;

/// Longest name a client may give itself.
const MAX_CLIENT_NAME: usize = 255;
/// Longest SASL mechanism name (RFC 4422 §3.1).
const MAX_MECHANISM: usize = 20;

/// Why a command line could not be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SyntaxError {
    /// Control characters, bare CR, or bytes that are not UTF-8.
    #[error("the line holds characters no command may hold")]
    Characters,
    /// An argument is missing.
    #[error("an argument is missing")]
    MissingArgument,
    /// The command takes no argument.
    #[error("the command takes no argument")]
    ExtraArgument,
    /// Not a name or address literal.
    #[error("a host name or address literal is wanted")]
    ClientName,
    /// The word `FROM:` or `TO:` is missing.
    #[error("wrong keyword behind the command")]
    Keyword,
    /// The sender's address.
    #[error("sender: {0}")]
    Sender(AddressError),
    /// The recipient's address.
    #[error("recipient: {0}")]
    Recipient(AddressError),
    /// A known parameter with a wrong value, or given twice.
    #[error("malformed parameter")]
    Parameter,
    /// A parameter that was not announced.
    #[error("unknown parameter")]
    UnknownParameter,
    /// Non-ASCII address without SMTPUTF8.
    #[error("the address needs SMTPUTF8")]
    NeedsUtf8,
    /// Malformed mechanism name or too many words behind AUTH.
    #[error("malformed AUTH command")]
    Auth,
}

impl SyntaxError {
    /// What the client is told.
    pub fn reply(self) -> Reply {
        match self {
            Self::Characters => Reply::new(500, Status(5, 5, 2), "Invalid characters in command line"),
            Self::MissingArgument => Reply::new(501, Status(5, 5, 4), "Argument missing"),
            Self::ExtraArgument => Reply::new(501, Status(5, 5, 4), "Command takes no argument"),
            Self::ClientName => Reply::new(501, Status(5, 5, 4), "Host name or address literal expected"),
            Self::Keyword => {
                Reply::new(501, Status(5, 5, 4), "Syntax: MAIL FROM:<address> or RCPT TO:<address>")
            }
            Self::Sender(error) => {
                Reply::with_text(501, Status(5, 1, 7), format!("Bad sender address: {error}"))
            }
            Self::Recipient(error) => {
                Reply::with_text(501, Status(5, 1, 3), format!("Bad recipient address: {error}"))
            }
            Self::Parameter => Reply::new(501, Status(5, 5, 4), "Malformed parameter"),
            // RFC 5321 §4.1.1.11
            Self::UnknownParameter => {
                Reply::new(555, Status(5, 5, 4), "Parameter not recognized or not implemented")
            }
            // RFC 6531 §3.5
            Self::NeedsUtf8 => Reply::new(553, Status(5, 6, 7), "Address needs SMTPUTF8"),
            Self::Auth => Reply::new(501, Status(5, 5, 4), "Syntax: AUTH mechanism [initial-response]"),
        }
    }
}

/// A command's name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(missing_docs)] // The names are the protocol's.
pub enum Verb {
    Ehlo,
    Helo,
    Lhlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Rset,
    Noop,
    Quit,
    Help,
    Vrfy,
    Expn,
    /// A request of another protocol: somebody's browser or proxy was pointed here.
    Foreign,
    Unknown,
}

impl Verb {
    fn parse(word: &str) -> Self {
        const VERBS: [(&str, Verb); 19] = [
            ("EHLO", Verb::Ehlo),
            ("HELO", Verb::Helo),
            ("LHLO", Verb::Lhlo),
            ("STARTTLS", Verb::StartTls),
            ("AUTH", Verb::Auth),
            ("MAIL", Verb::Mail),
            ("RCPT", Verb::Rcpt),
            ("DATA", Verb::Data),
            ("RSET", Verb::Rset),
            ("NOOP", Verb::Noop),
            ("QUIT", Verb::Quit),
            ("HELP", Verb::Help),
            ("VRFY", Verb::Vrfy),
            ("EXPN", Verb::Expn),
            ("GET", Verb::Foreign),
            ("POST", Verb::Foreign),
            ("PUT", Verb::Foreign),
            ("OPTIONS", Verb::Foreign),
            ("CONNECT", Verb::Foreign),
        ];
        VERBS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(word))
            .map_or(Self::Unknown, |(_, verb)| *verb)
    }
}

/// A line split into its verb and the rest.
///
/// `Debug` shows the verb only: what stands behind AUTH is a password.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct CommandLine<'a> {
    /// The command.
    pub verb: Verb,
    /// What follows, without the blanks around it.
    pub arguments: &'a str,
}

impl fmt::Debug for CommandLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandLine").field("verb", &self.verb).finish_non_exhaustive()
    }
}

impl<'a> CommandLine<'a> {
    /// Splits a line without its end.
    pub fn parse(line: &'a [u8]) -> Result<Self, SyntaxError> {
        let text = std::str::from_utf8(line).map_err(|_| SyntaxError::Characters)?;
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(SyntaxError::Characters);
        }
        let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        Ok(Self { verb: Verb::parse(word), arguments: rest.trim_matches([' ', '\t']) })
    }

    /// For commands that take nothing.
    pub fn no_arguments(&self) -> Result<(), SyntaxError> {
        if self.arguments.is_empty() { Ok(()) } else { Err(SyntaxError::ExtraArgument) }
    }
}

/// What a client calls itself in EHLO, HELO or LHLO.
///
/// One word of printable characters that cannot break out of a `Received:` field. Whether it is true is not
/// checked: RFC 5321 §4.1.4 forbids to refuse mail for that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientName(Box<str>);

impl ClientName {
    /// As given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ClientName {
    type Error = SyntaxError;

    fn try_from(raw: &str) -> Result<Self, SyntaxError> {
        if raw.is_empty() {
            return Err(SyntaxError::MissingArgument);
        }
        let literal = raw.starts_with('[');
        let fits = raw.len() <= MAX_CLIENT_NAME
            && raw.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"()<>@,;\\\"".contains(c))
            && (!literal || Domain::parse(raw).is_ok())
            && (literal || !raw.contains(['[', ']']));
        if fits { Ok(Self(raw.into())) } else { Err(SyntaxError::ClientName) }
    }
}

/// `BODY=` of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BodyType {
    /// `7BIT`, also without the parameter.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBit,
}

/// `AUTH=` of MAIL (RFC 4954 §5): who submitted the message first, as the client tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthIdentity {
    /// `<>`: unknown.
    Unknown,
    /// A mailbox.
    Mailbox(Address),
}

/// The parameters of MAIL.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MailParameters {
    /// `SIZE=`: how big the client says the message is.
    pub size: Option<u64>,
    /// `BODY=`.
    pub body: BodyType,
    /// `SMTPUTF8`.
    pub smtputf8: bool,
    /// `AUTH=`.
    pub auth: Option<AuthIdentity>,
}

/// Arguments of MAIL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MailCommand {
    /// The sender.
    pub from: ReversePath,
    /// What stood behind it.
    pub parameters: MailParameters,
}

impl MailCommand {
    /// Reads `FROM:<…> [parameters]`, also after HELO, which announced none. `auth` says whether `AUTH=` is known.
    pub fn parse(arguments: &str, auth: bool) -> Result<Self, SyntaxError> {
        let path = keyword(arguments, "FROM:")?;
        let (from, rest) = ReversePath::parse_prefix(path).map_err(SyntaxError::Sender)?;
        let mut parameters = MailParameters::default();
        let mut seen = 0_u8;
        for (name, value) in words(rest)? {
            let bit = match name.to_ascii_uppercase().as_str() {
                "SIZE" => {
                    parameters.size = Some(size(value)?);
                    1
                }
                "BODY" => {
                    parameters.body = body(value)?;
                    2
                }
                "SMTPUTF8" if value.is_none() => {
                    parameters.smtputf8 = true;
                    4
                }
                "SMTPUTF8" => return Err(SyntaxError::Parameter),
                "AUTH" if auth => {
                    parameters.auth = Some(auth_identity(value)?);
                    8
                }
                _ => return Err(SyntaxError::UnknownParameter),
            };
            if seen & bit != 0 {
                return Err(SyntaxError::Parameter);
            }
            seen |= bit;
        }
        if !parameters.smtputf8 && !from.is_ascii() {
            return Err(SyntaxError::NeedsUtf8);
        }
        Ok(Self { from, parameters })
    }
}

/// Arguments of RCPT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RcptCommand {
    /// The recipient.
    pub to: ForwardPath,
}

impl RcptCommand {
    /// Reads `TO:<…>`. No parameter is announced, so none is accepted. `smtputf8` is what MAIL said.
    pub fn parse(arguments: &str, smtputf8: bool) -> Result<Self, SyntaxError> {
        let path = keyword(arguments, "TO:")?;
        let (to, rest) = ForwardPath::parse_prefix(path).map_err(SyntaxError::Recipient)?;
        if words(rest)?.next().is_some() {
            return Err(SyntaxError::UnknownParameter);
        }
        if !smtputf8 && !to.is_ascii() {
            return Err(SyntaxError::NeedsUtf8);
        }
        Ok(Self { to })
    }
}

/// A SASL mechanism's name, in upper case (RFC 4422 §3.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mechanism(Box<str>);

impl Mechanism {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Mechanism {
    type Error = SyntaxError;

    fn try_from(raw: &str) -> Result<Self, SyntaxError> {
        let fits = matches!(raw.len(), 1..=MAX_MECHANISM)
            && raw.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if fits { Ok(Self(raw.to_ascii_uppercase().into())) } else { Err(SyntaxError::Auth) }
    }
}

/// Arguments of AUTH.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthCommand {
    /// The mechanism wanted.
    pub mechanism: Mechanism,
    /// The initial response, still in base64 (`=` for an empty one).
    pub initial: Option<Secret>,
}

impl AuthCommand {
    /// Reads `mechanism [initial-response]`.
    pub fn parse(arguments: &str) -> Result<Self, SyntaxError> {
        let mut words = arguments.split([' ', '\t']).filter(|word| !word.is_empty());
        let mechanism = words.next().ok_or(SyntaxError::Auth)?.try_into()?;
        let initial = words.next().map(|word| Secret::new(word.as_bytes().to_vec()));
        if words.next().is_some() {
            return Err(SyntaxError::Auth);
        }
        Ok(Self { mechanism, initial })
    }
}

/// Steps over `FROM:` or `TO:`, and over blanks behind it, which many clients send.
fn keyword<'a>(arguments: &'a str, word: &str) -> Result<&'a str, SyntaxError> {
    let matches = arguments.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let rest = arguments.get(word.len()..).filter(|_| matches).ok_or(SyntaxError::Keyword)?;
    Ok(rest.trim_start_matches([' ', '\t']))
}

/// The parameters behind a path: `NAME` or `NAME=VALUE`, each after a blank.
fn words(rest: &str) -> Result<impl Iterator<Item = (&str, Option<&str>)>, SyntaxError> {
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return Err(SyntaxError::Parameter);
    }
    Ok(rest.split([' ', '\t']).filter(|word| !word.is_empty()).map(|word| match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    }))
}

/// `size-value` of RFC 1870 §3: up to 20 digits.
fn size(value: Option<&str>) -> Result<u64, SyntaxError> {
    let digits = value.filter(|v| matches!(v.len(), 1..=20) && v.bytes().all(|b| b.is_ascii_digit()));
    // Twenty digits may exceed u64; such a message is over every limit anyway.
    digits.map(|v| v.parse().unwrap_or(u64::MAX)).ok_or(SyntaxError::Parameter)
}

fn body(value: Option<&str>) -> Result<BodyType, SyntaxError> {
    match value {
        Some(v) if v.eq_ignore_ascii_case("7BIT") => Ok(BodyType::SevenBit),
        Some(v) if v.eq_ignore_ascii_case("8BITMIME") => Ok(BodyType::EightBit),
        // RFC 5321 §4.1.1.11: BINARYMIME and what else there may be is not implemented.
        Some(v) if !v.is_empty() => Err(SyntaxError::UnknownParameter),
        _ => Err(SyntaxError::Parameter),
    }
}

fn auth_identity(value: Option<&str>) -> Result<AuthIdentity, SyntaxError> {
    let decoded = xtext(value.ok_or(SyntaxError::Parameter)?).ok_or(SyntaxError::Parameter)?;
    // RFC 4954 §5: what cannot be used counts as `<>`; clients send bare user names too.
    Ok(Address::parse(&decoded).map_or(AuthIdentity::Unknown, AuthIdentity::Mailbox))
}

/// Decodes xtext (RFC 3461 §4).
fn xtext(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => {
                let high = upper_hex(bytes.next()?)?;
                let low = upper_hex(bytes.next()?)?;
                high * 16 + low
            }
            b'!'..=b'~' if byte != b'=' => byte,
            _ => return None,
        });
    }
    String::from_utf8(decoded).ok().filter(|text| !text.chars().any(char::is_control))
}

fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_into_verb_and_rest() {
        for (line, verb, rest) in [
            ("EHLO a", Verb::Ehlo, "a"),
            ("ehlo   a  ", Verb::Ehlo, "a"),
            ("Mail\tFROM:<>", Verb::Mail, "FROM:<>"),
            ("QUIT ", Verb::Quit, ""),
            ("", Verb::Unknown, ""),
            (" EHLO a", Verb::Unknown, "EHLO a"),
            ("MAILFROM:<>", Verb::Unknown, ""),
            ("GET / HTTP/1.1", Verb::Foreign, "/ HTTP/1.1"),
        ] {
            let parsed = CommandLine::parse(line.as_bytes()).unwrap();
            assert_eq!((parsed.verb, parsed.arguments), (verb, rest), "{line}");
        }
        for line in [&b"NOOP \0"[..], b"NOOP\rQUIT", b"NOOP \x7f", b"NOOP \xff", b"EHLO \xc2\x85"] {
            assert_eq!(CommandLine::parse(line), Err(SyntaxError::Characters), "{line:?}");
        }
    }

    #[test]
    fn client_names() {
        for name in ["a", "my_host", "[127.0.0.1]", "[IPv6:::1]", "büro-pc", "x.example.org.", "a:b"] {
            assert!(ClientName::try_from(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "a(b", "[nonsense]", "a]", "<a>", "a\u{a0}b", &"x".repeat(256)] {
            assert!(ClientName::try_from(name).is_err(), "{name}");
        }
    }

    #[test]
    fn mail_arguments() {
        let ok = |text: &str| MailCommand::parse(text, true).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(ok("FROM:<>").from, ReversePath::Null);
        assert_eq!(ok("from: <a@x>").from.to_string(), "<a@x>");
        let all = ok("FROM:<ü@x> size=5000 Body=8bitmime SMTPUTF8 AUTH=a+2Borg@y").parameters;
        assert_eq!((all.size, all.body, all.smtputf8), (Some(5000), BodyType::EightBit, true));
        for unknown in ["<>", "alice", "a+20b@x"] {
            let text = format!("FROM:<a@x> AUTH={unknown}");
            assert_eq!(ok(&text).parameters.auth, Some(AuthIdentity::Unknown), "{text}");
        }
        assert_eq!(ok("FROM: a@x SIZE=1").from.to_string(), "<a@x>");
        assert_eq!(ok("FROM:<a@x> SIZE=99999999999999999999").parameters.size, Some(u64::MAX));

        use SyntaxError as E;
        for (text, error) in [
            ("", E::Keyword),
            ("TO:<a@x>", E::Keyword),
            ("FROM <a@x>", E::Keyword),
            ("FROM:", E::Sender(AddressError::Missing)),
            ("FROM:a@x,b@x", E::Sender(AddressError::Domain)),
            ("FROM:<a@x>SIZE=1", E::Parameter),
            ("FROM:<a@x> SIZE", E::Parameter),
            ("FROM:<a@x> SIZE=", E::Parameter),
            ("FROM:<a@x> SIZE=-1", E::Parameter),
            ("FROM:<a@x> SIZE=1 SIZE=1", E::Parameter),
            ("FROM:<a@x> BODY=BINARYMIME", E::UnknownParameter),
            ("FROM:<a@x> BODY=", E::Parameter),
            ("FROM:<a@x> SMTPUTF8=1", E::Parameter),
            ("FROM:<a@x> AUTH=a+4", E::Parameter),
            ("FROM:<a@x> AUTH=a+0D+0A@x", E::Parameter),
            ("FROM:<a@x> RET=FULL", E::UnknownParameter),
            ("FROM:<a@x> =", E::UnknownParameter),
            ("FROM:<ü@x>", E::NeedsUtf8),
        ] {
            assert_eq!(MailCommand::parse(text, true), Err(error), "{text}");
        }
        assert_eq!(MailCommand::parse("FROM:<a@x> AUTH=<>", false), Err(E::UnknownParameter));
    }

    #[test]
    fn rcpt_arguments() {
        assert_eq!(RcptCommand::parse("TO:<Postmaster>", false).unwrap().to, ForwardPath::Postmaster);
        assert_eq!(RcptCommand::parse("to: <a@x>", false).unwrap().to.to_string(), "<a@x>");
        assert_eq!(RcptCommand::parse("TO:<a@x> NOTIFY=NEVER", false), Err(SyntaxError::UnknownParameter));
        assert_eq!(RcptCommand::parse("TO:<ü@x>", false), Err(SyntaxError::NeedsUtf8));
        assert!(RcptCommand::parse("TO:<ü@x>", true).is_ok());
    }

    #[test]
    fn auth_arguments() {
        let parsed = AuthCommand::parse("plain AGEAYg==").unwrap();
        assert_eq!(
            (parsed.mechanism.as_str(), parsed.initial.unwrap().expose()),
            ("PLAIN", &b"AGEAYg=="[..])
        );
        assert!(AuthCommand::parse("LOGIN").unwrap().initial.is_none());
        for text in ["", "PLAIN a b", "PLA!N", "ABCDEFGHIJKLMNOPQRSTU"] {
            assert_eq!(AuthCommand::parse(text), Err(SyntaxError::Auth), "{text}");
        }
    }
}
