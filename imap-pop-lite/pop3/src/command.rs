//! Commands as a client writes them.
//!
//! Trust: every byte is a client's; the session has bounded the line.
//! Never: hold a password, digest or response other than as a `Secret`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Secret;

/// A command of RFC 1939, 2449, 2595 or 5034. Message numbers are as given, from 1.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// `USER name`: the rest of the line, spaces included.
    User(Vec<u8>),
    /// `PASS string`: the rest of the line, spaces included.
    Pass(Secret),
    /// `APOP name digest`
    Apop {
        /// The name.
        user: Vec<u8>,
        /// The 16 bytes that the client wrote as 32 hex digits.
        digest: Secret,
    },
    /// `AUTH mechanism [initial-response]`
    Auth {
        /// In upper case.
        mechanism: String,
        /// `=` is a present but empty response.
        initial: Option<Secret>,
    },
    /// `AUTH` alone: which mechanisms are there? (older than CAPA)
    AuthList,
    /// `CAPA`
    Capa,
    /// `STLS`
    Stls,
    /// `STAT`
    Stat,
    /// `LIST [n]`
    List(Option<u32>),
    /// `UIDL [n]`
    Uidl(Option<u32>),
    /// `RETR n`
    Retr(u32),
    /// `TOP n lines`
    Top(u32, u32),
    /// `DELE n`
    Dele(u32),
    /// `RSET`
    Rset,
    /// `NOOP`
    Noop,
    /// `QUIT`
    Quit,
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadCommand {
    /// No such command.
    #[error("Unknown command.")]
    Unknown,
    /// The arguments do not fit.
    #[error("Invalid arguments.")]
    Arguments,
    /// Not base64.
    #[error("Invalid base64 data.")]
    Base64,
    /// The line contains NUL.
    #[error("NUL is not allowed.")]
    Nul,
}

impl Command {
    /// Reads a line without its line end.
    pub fn parse(line: &[u8]) -> Result<Self, BadCommand> {
        if memchr::memchr(0, line).is_some() {
            return Err(BadCommand::Nul);
        }
        let (word, rest) = match memchr::memchr(b' ', line) {
            Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..)),
            None => (line, None),
        };
        let mut upper = [0; 4];
        let word = match upper.get_mut(..word.len()) {
            Some(slot) => {
                slot.copy_from_slice(word);
                slot.make_ascii_uppercase();
                &*slot
            }
            None => return Err(BadCommand::Unknown),
        };
        // Names and passwords keep their spaces (RFC 1939 §7 on PASS); numbers do not mind surplus ones.
        let raw = || rest.filter(|text| !text.is_empty()).ok_or(BadCommand::Arguments);
        let mut words = rest.unwrap_or_default().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let command = match word {
            b"USER" => return Ok(Self::User(raw()?.trim_ascii_end().to_vec())).and_then(not_empty),
            b"PASS" => return Ok(Self::Pass(Secret::new(raw()?.to_vec()))),
            b"APOP" => return apop(raw()?),
            b"AUTH" => match words.next() {
                None => Self::AuthList,
                Some(name) => auth(name, words.next())?,
            },
            b"CAPA" => Self::Capa,
            b"STLS" => Self::Stls,
            b"STAT" => Self::Stat,
            b"LIST" => Self::List(words.next().map(number).transpose()?),
            b"UIDL" => Self::Uidl(words.next().map(number).transpose()?),
            b"RETR" => Self::Retr(required(words.next())?),
            b"TOP" => Self::Top(required(words.next())?, required(words.next())?),
            b"DELE" => Self::Dele(required(words.next())?),
            b"RSET" => Self::Rset,
            b"NOOP" => Self::Noop,
            b"QUIT" => Self::Quit,
            _ => return Err(BadCommand::Unknown),
        };
        if words.next().is_some() { Err(BadCommand::Arguments) } else { Ok(command) }
    }
}

fn not_empty(command: Command) -> Result<Command, BadCommand> {
    match &command {
        Command::User(name) if name.is_empty() => Err(BadCommand::Arguments),
        _ => Ok(command),
    }
}

fn required(word: Option<&[u8]>) -> Result<u32, BadCommand> {
    number(word.ok_or(BadCommand::Arguments)?)
}

fn number(word: &[u8]) -> Result<u32, BadCommand> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return Err(BadCommand::Arguments);
    }
    let mut value: u32 = 0;
    for digit in word {
        // More lines or messages than that is the same as all of them, or none.
        value = value.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    }
    Ok(value)
}

fn auth(name: &[u8], initial: Option<&[u8]>) -> Result<Command, BadCommand> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.len() > 20 || !name.iter().all(legal) {
        return Err(BadCommand::Arguments);
    }
    let mechanism = String::from_utf8_lossy(name).to_ascii_uppercase();
    let initial = match initial {
        None => None,
        // RFC 5034 §4: a lone `=` is an empty initial response.
        Some(b"=") => Some(Secret::default()),
        Some(text) => Some(decode(text)?),
    };
    Ok(Command::Auth { mechanism, initial })
}

fn apop(rest: &[u8]) -> Result<Command, BadCommand> {
    // The digest has no space; the name may have some.
    let rest = rest.trim_ascii_end();
    let at = memchr::memrchr(b' ', rest).ok_or(BadCommand::Arguments)?;
    let (user, digits) = (rest.get(..at).unwrap_or_default(), rest.get(at + 1..).unwrap_or_default());
    if user.is_empty() || digits.len() != 32 {
        return Err(BadCommand::Arguments);
    }
    let nibble = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut digest = Vec::with_capacity(16);
    for pair in digits.chunks_exact(2) {
        match pair {
            [high, low] => match (nibble(high), nibble(low)) {
                (Some(high), Some(low)) => digest.push(high << 4 | low),
                _ => return Err(BadCommand::Arguments),
            },
            _ => return Err(BadCommand::Arguments),
        }
    }
    Ok(Command::Apop { user: user.to_vec(), digest: Secret::new(digest) })
}

/// A SASL response in base64.
pub(crate) fn decode(text: &[u8]) -> Result<Secret, BadCommand> {
    STANDARD.decode(text).map(Secret::new).map_err(|_| BadCommand::Base64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &[u8]) -> Secret {
        Secret::new(text.to_vec())
    }

    #[test]
    fn table() {
        use BadCommand::{Arguments, Base64, Nul, Unknown};
        let plain = |initial| Command::Auth { mechanism: "PLAIN".into(), initial };
        for (line, expected) in [
            ("USER joe", Ok(Command::User(b"joe".to_vec()))),
            ("user joe user ", Ok(Command::User(b"joe user".to_vec()))),
            ("USER", Err(Arguments)),
            ("USER ", Err(Arguments)),
            ("USER  ", Err(Arguments)),
            ("PASS  a b ", Ok(Command::Pass(secret(b" a b ")))),
            ("PASS", Err(Arguments)),
            ("PASS a\0b", Err(Nul)),
            (
                "APOP mrose c4c9334bac560ecc979e58001b3e22fb",
                Ok(Command::Apop {
                    user: b"mrose".to_vec(),
                    digest: secret(b"\xc4\xc9\x33\x4b\xac\x56\x0e\xcc\x97\x9e\x58\x00\x1b\x3e\x22\xfb"),
                }),
            ),
            ("APOP mrose", Err(Arguments)),
            ("APOP mrose zzc9334bac560ecc979e58001b3e22fb", Err(Arguments)),
            ("APOP mrose c4c9", Err(Arguments)),
            ("AUTH", Ok(Command::AuthList)),
            ("AUTH plain", Ok(plain(None))),
            ("AUTH PLAIN =", Ok(plain(Some(secret(b""))))),
            ("auth plain AGEAYg==", Ok(plain(Some(secret(b"\0a\0b"))))),
            ("AUTH PLAIN AGEAYg", Err(Base64)),
            ("AUTH PLAIN AGEAYg== x", Err(Arguments)),
            ("AUTH A(B", Err(Arguments)),
            ("CAPA", Ok(Command::Capa)),
            ("capa ", Ok(Command::Capa)),
            ("STLS x", Err(Arguments)),
            ("LIST", Ok(Command::List(None))),
            ("LIST 7 ", Ok(Command::List(Some(7)))),
            ("UIDL  2", Ok(Command::Uidl(Some(2)))),
            ("RETR", Err(Arguments)),
            ("RETR -1", Err(Arguments)),
            ("RETR 1x", Err(Arguments)),
            ("RETR 99999999999999999999", Ok(Command::Retr(u32::MAX))),
            ("TOP 1", Err(Arguments)),
            ("TOP 1 0", Ok(Command::Top(1, 0))),
            ("TOP 1 0 0", Err(Arguments)),
            ("DELE 3", Ok(Command::Dele(3))),
            ("quit", Ok(Command::Quit)),
            ("", Err(Unknown)),
            (" NOOP", Err(Unknown)),
            ("XTND XMIT", Err(Unknown)),
            ("QUITE", Err(Unknown)),
            ("GET / HTTP/1.1", Err(Unknown)),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(Command::parse(b"USER \xff"), Ok(Command::User(vec![0xff])));
    }

    proptest! {
        #[test]
        fn any_line(line: Vec<u8>) {
            let _ = Command::parse(&line);
        }
    }
}
