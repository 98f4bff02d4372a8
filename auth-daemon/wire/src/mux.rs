//! saslauthd's `mux`: one request, one reply, counted strings.
//!
//! Format: login, password, service, realm, each a u16 (big-endian) and that many bytes (`saslauthd/ipc_unix.c`). The
//!         unreleased 2.2 line adds the client's address as a fifth; a client that sends four would wait for ever if it
//!         were demanded, so it is taken only when its bytes are already here.
//! Trust:  anybody whom the directory's mode lets in; the total is capped, NUL in a string refuses the request (C code
//!         would cut the password there).
//! Never:  read a second request from a connection.

use std::fmt;

use zeroize::Zeroize;

use crate::{Error, Secret};

/// Cap on a whole request. Fields may exceed saslauthd's 256 bytes; libsasl sends less than 8192 in all.
pub const MAX_REQUEST: usize = 32 * 1024;
/// libsasl's reply buffer is 1024 bytes.
const MAX_TEXT: usize = 1_000;

/// A request to check a password.
#[derive(Clone, Eq, PartialEq)]
pub struct Request {
    /// Name without the realm.
    pub login: Vec<u8>,
    /// The password.
    pub password: Secret,
    /// SASL service name; may be empty.
    pub service: Vec<u8>,
    /// Realm; may be empty.
    pub realm: Vec<u8>,
    /// `ip;port` of the remote user, from clients that send it.
    pub address: Option<Vec<u8>>,
}

impl Request {
    /// Refusals that need no lookup, in saslauthd's words.
    pub fn refusal(&self) -> Option<&'static str> {
        if self.login.is_empty() {
            Some("NULL login received")
        } else if self.password.is_empty() {
            Some("NULL password received")
        } else {
            None
        }
    }

    /// `login@realm` if a realm was given, as saslauthd's `-r` joins them.
    pub fn joined_login(&self) -> Vec<u8> {
        if self.realm.is_empty() {
            return self.login.clone();
        }
        [self.login.as_slice(), b"@", &self.realm].concat()
    }

    /// The bytes of the request. [`Error::TooLong`] when a field or the whole exceeds what a server takes.
    pub fn encode(&self) -> Result<Secret, Error> {
        let mut fields = vec![&self.login[..], &self.password, &self.service, &self.realm];
        fields.extend(self.address.as_deref());
        let total: usize = fields.iter().map(|field| field.len() + 2).sum();
        if total > MAX_REQUEST {
            return Err(Error::TooLong);
        }
        let mut out = Vec::with_capacity(total);
        for field in fields {
            if field.contains(&0) {
                out.zeroize();
                return Err(Error::Nul);
            }
            let length = u16::try_from(field.len()).map_err(|_| Error::TooLong)?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(field);
        }
        Ok(Secret::new(out))
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Request")
            .field("login", &String::from_utf8_lossy(&self.login))
            .field("service", &String::from_utf8_lossy(&self.service))
            .field("realm", &String::from_utf8_lossy(&self.realm))
            .finish_non_exhaustive()
    }
}

/// Why a request is refused. Answer with [`encode_no`] and its text, then close.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// More than [`MAX_REQUEST`] bytes.
    #[error("request is too long")]
    TooLong,
    /// A string contains NUL.
    #[error("request contains a NUL byte")]
    Nul,
}

/// Collects the bytes of one request.
#[derive(Default)]
pub struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    /// A parser for a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes; `true` once the four fields are complete. A driver may then look once, without waiting, whether more
    /// bytes are there (a fifth field), and calls [`Parser::take`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        if self.buffer.len() + bytes.len() > MAX_REQUEST {
            // What came behind a complete request is nothing of ours.
            return if self.is_complete() { Ok(true) } else { Err(Malformed::TooLong) };
        }
        let wanted = self.buffer.len() + bytes.len();
        if wanted > self.buffer.capacity() {
            let mut larger = Vec::with_capacity(wanted.max(512).next_power_of_two());
            larger.extend_from_slice(&self.buffer);
            self.buffer.zeroize();
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
        if self.is_complete() {
            return Ok(true);
        }
        // A count that can never be satisfied is refused before its bytes arrive.
        if needed(&self.buffer) > MAX_REQUEST { Err(Malformed::TooLong) } else { Ok(false) }
    }

    /// Whether the four fields are here.
    pub fn is_complete(&self) -> bool {
        let mut rest = self.buffer.as_slice();
        (0..4).all(|_| take_field(&mut rest).is_some())
    }

    /// Whether nothing was sent at all (a probe).
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The request, if complete.
    pub fn take(&self) -> Result<Option<Request>, Malformed> {
        let mut rest = self.buffer.as_slice();
        let mut next = || take_field(&mut rest);
        let (Some(login), Some(password), Some(service), Some(realm)) = (next(), next(), next(), next())
        else {
            return Ok(None);
        };
        let address = next();
        if [login, password, service, realm].iter().any(|field| memchr::memchr(0, field).is_some()) {
            return Err(Malformed::Nul);
        }
        Ok(Some(Request {
            login: login.to_vec(),
            password: Secret::from(password),
            service: service.to_vec(),
            realm: realm.to_vec(),
            // Trailing bytes are ignored by saslauthd too; an address is only taken if it can be one.
            address: address
                .filter(|text| !text.is_empty() && text.is_ascii() && !text.contains(&0))
                .map(<[u8]>::to_vec),
        }))
    }
}

impl Drop for Parser {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

impl fmt::Debug for Parser {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Parser({} bytes)", self.buffer.len())
    }
}

/// `OK`, with a text if there is one to tell.
pub fn encode_ok(text: &str) -> Vec<u8> {
    encode_reply("OK", text)
}

/// `NO` and why. A temporary failure has no reply: close the connection instead.
pub fn encode_no(text: &str) -> Vec<u8> {
    encode_reply("NO", text)
}

fn encode_reply(word: &str, text: &str) -> Vec<u8> {
    let text = text.as_bytes().get(..MAX_TEXT).unwrap_or(text.as_bytes());
    let separator: &[u8] = if text.is_empty() { b"" } else { b" " };
    let length = word.len() + separator.len() + text.len();
    let mut out = Vec::with_capacity(length + 2);
    out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(separator);
    out.extend_from_slice(text);
    out
}

/// What a server answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The password is right.
    Ok(String),
    /// It is not, or the server would not say.
    No(String),
}

/// The client's end: collects one reply. End of file before [`ReplyParser::feed`] gave one is a temporary failure.
#[derive(Debug, Default)]
pub struct ReplyParser {
    buffer: Vec<u8>,
}

impl ReplyParser {
    /// A parser for a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes; gives the verdict once it is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, Error> {
        self.buffer.extend_from_slice(bytes);
        let mut rest = self.buffer.as_slice();
        let Some(reply) = take_field(&mut rest) else { return Ok(None) };
        let (word, text) = reply.split_at_checked(2).ok_or(Error::Peer("reply of saslauthd is too short"))?;
        let text = String::from_utf8_lossy(text).trim_start().to_owned();
        // libsasl takes whatever starts with OK for success, anything else for a refusal.
        Ok(Some(if word == b"OK" { Verdict::Ok(text) } else { Verdict::No(text) }))
    }
}

/// Splits a counted string off the front.
fn take_field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (count, tail) = rest.split_first_chunk::<2>()?;
    let (field, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*count)))?;
    *rest = tail;
    Some(field)
}

/// The least number of bytes the request will have, going by the counts seen so far.
fn needed(buffer: &[u8]) -> usize {
    let (mut at, mut fields) = (0, 0);
    while fields < 4 {
        let Some(count) = buffer.get(at..).and_then(<[u8]>::first_chunk::<2>) else { break };
        at += 2 + usize::from(u16::from_be_bytes(*count));
        fields += 1;
    }
    at + (4 - fields) * 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(login: &str, password: &str, service: &str, realm: &str) -> Request {
        Request {
            login: login.into(),
            password: Secret::from(password.as_bytes()),
            service: service.into(),
            realm: realm.into(),
            address: None,
        }
    }

    #[test]
    fn four_fields_byte_by_byte_and_at_once() {
        let wanted = request("bob", "pw", "imap", "");
        let bytes = wanted.encode().unwrap();
        assert_eq!(&bytes[..], b"\0\x03bob\0\x02pw\0\x04imap\0\0");
        let mut parser = Parser::new();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(parser.feed(&[*byte]), Ok(at + 1 == bytes.len()));
        }
        assert_eq!(parser.take(), Ok(Some(wanted)));
        let mut parser = Parser::new();
        assert!(parser.feed(&bytes).unwrap() && parser.take().unwrap().unwrap().address.is_none());
    }

    #[test]
    fn a_fifth_field_only_if_it_is_here() {
        let mut wanted = request("bob", "pw", "imap", "r");
        wanted.address = Some(b"192.0.2.1;99".to_vec());
        let bytes = wanted.encode().unwrap();
        let mut parser = Parser::new();
        parser.feed(&bytes).unwrap();
        assert_eq!(parser.take(), Ok(Some(wanted.clone())));
        for cut in 1..=13 {
            let mut parser = Parser::new();
            assert_eq!(parser.feed(&bytes[..bytes.len() - cut]), Ok(true));
            assert_eq!(parser.take().unwrap().unwrap().address, None, "cut {cut}");
        }
        let mut parser = Parser::new();
        parser
            .feed(&[&request("a", "b", "c", "d").encode().unwrap()[..], b"\xff\xffgarbage"].concat())
            .unwrap();
        assert_eq!(parser.take(), Ok(Some(request("a", "b", "c", "d"))));
    }

    #[test]
    fn limits() {
        let long = "x".repeat(300);
        let wanted = request(&long, &long, &long, &long);
        let mut parser = Parser::new();
        assert_eq!(parser.feed(&wanted.encode().unwrap()), Ok(true));
        assert_eq!(parser.take(), Ok(Some(wanted)));
        assert_eq!(Parser::new().feed(b"\xff\xff"), Err(Malformed::TooLong));
        assert_eq!(Parser::new().feed(b"\x7f\xfb"), Err(Malformed::TooLong));
        assert_eq!(Parser::new().feed(b"\x7f\xf0"), Ok(false));
        assert_eq!(Parser::new().feed(&[0xFF; 40_000]), Err(Malformed::TooLong));
        let mut parser = Parser::new();
        parser.feed(b"\0\x03b\0b\0\x02pw\0\0\0\0").unwrap();
        assert_eq!(parser.take(), Err(Malformed::Nul));
        assert_eq!(request("a", "b\0c", "", "").encode(), Err(Error::Nul));
        assert_eq!(request(&"x".repeat(40_000), "", "", "").encode(), Err(Error::TooLong));
        assert_eq!(request("", "x", "", "").refusal(), Some("NULL login received"));
        assert_eq!(request("x", "", "", "").refusal(), Some("NULL password received"));
        assert_eq!(request("x", "x", "", "").refusal(), None);
        assert_eq!(request("at@user", "", "", "foo").joined_login(), b"at@user@foo");
        assert_eq!(request("bob", "", "", "").joined_login(), b"bob");
    }

    #[test]
    fn replies() {
        assert_eq!(encode_ok(""), b"\0\x02OK");
        assert_eq!(encode_no("PAM auth error"), b"\0\x11NO PAM auth error");
        assert!(encode_no(&"x".repeat(5000)).len() < 1024);
        for (bytes, verdict) in [
            (b"\0\x02OK".as_slice(), Some(Verdict::Ok(String::new()))),
            (b"\0\x05OK hi", Some(Verdict::Ok("hi".into()))),
            (b"\0\x03NO ", Some(Verdict::No(String::new()))),
            (b"\0\x05wrong", Some(Verdict::No("ong".into()))),
            (b"\0\x05OK", None),
        ] {
            assert_eq!(ReplyParser::new().feed(bytes), Ok(verdict));
        }
        assert!(ReplyParser::new().feed(b"\0\x01O").is_err());
    }

    #[test]
    fn debug_hides_the_password() {
        let shown =
            format!("{:?} {:?}", request("bob", "hunter2", "", ""), Parser { buffer: b"hunter2".to_vec() });
        assert!(!shown.contains("hunter2"));
    }

    proptest! {
        #[test]
        fn roundtrip(login in "[^\0]{0,400}", password in "[^\0]{0,400}", service in "[a-z]{0,9}", realm in "[^\0]{0,40}",
                     piece in 1usize..50) {
            let wanted = request(&login, &password, &service, &realm);
            let bytes = wanted.encode().unwrap();
            let mut parser = Parser::new();
            let mut complete = false;
            for part in bytes.chunks(piece) {
                complete = parser.feed(part).unwrap();
            }
            prop_assert!(complete);
            prop_assert_eq!(parser.take(), Ok(Some(wanted)));
        }

        #[test]
        fn any_bytes(parts: Vec<Vec<u8>>) {
            let mut parser = Parser::new();
            for part in parts {
                if parser.feed(&part).is_err() { break; }
                let _ = parser.take();
            }
        }
    }
}
