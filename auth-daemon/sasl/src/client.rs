//! The client's side of the mechanisms that have a password, for tools that try a login: `postern auth test`.
//!
//! Standards: RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN), RFC 2195 (CRAM-MD5), RFC 2831 (DIGEST-MD5),
//!            RFC 5802 and 7677 (SCRAM), RFC 4505 (ANONYMOUS: the user is the trace), RFC 1939 §7 (APOP).
//! Trust:     the server's challenges are checked as the standards say; a SCRAM server that asks for an unreasonable
//!            number of iterations, or cannot prove that it knows the keys, is refused.
//! Never:     answer a server with the password in clear unless the mechanism is PLAIN or LOGIN.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};

use crate::cram::{hmac_from_states, key_states};
use crate::digest;
use crate::scram::{BindingType, Hash, prepared};
use crate::{Name, Secret};

/// More iterations would keep the caller's processor busy for minutes.
const MOST_ITERATIONS: u32 = 10_000_000;

/// Why a client cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The mechanism does not ask, or asks for nothing any more.
    #[error("the server asks for more than the mechanism has")]
    Unexpected,
    /// The challenge does not have the form of the mechanism.
    #[error("the server's challenge makes no sense")]
    Malformed,
    /// The server does not know the user's keys: it is not who it says it is.
    #[error("the server could not prove that it knows the user")]
    NotProved,
}

/// One login as the client sees it.
#[derive(Debug)]
pub struct Client {
    user: Vec<u8>,
    password: Secret,
    /// `service/host`, for DIGEST-MD5.
    uri: String,
    nonce: String,
    /// SCRAM's header (RFC 5802 §7, `gs2-header`), and the channel binding data behind it.
    header: String,
    binding: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    Plain,
    LoginUser,
    LoginPassword,
    Cram,
    Anonymous,
    Digest,
    /// The server's challenge.
    Apop(String),
    /// Client-first-bare.
    ScramFirst(Hash, String),
    /// What the server's last message must hold.
    ScramFinal(Vec<u8>),
    /// The same, all of it.
    DigestFinal(Vec<u8>),
    Done,
}

impl Client {
    /// A client of this mechanism. `nonce`: random printable text without a comma, for SCRAM and DIGEST-MD5. `None`: the
    /// mechanism needs a channel binding ([`Client::bound`]) or a challenge of another protocol ([`Client::apop`]).
    pub fn new(mechanism: Name, user: &[u8], password: &[u8], nonce: &str) -> Option<Client> {
        let state = match mechanism {
            Name::Plain => State::Plain,
            Name::Login => State::LoginUser,
            Name::CramMd5 => State::Cram,
            Name::DigestMd5 => State::Digest,
            Name::Anonymous => State::Anonymous,
            Name::ScramSha1 => scram_first(Hash::Sha1, user, nonce),
            Name::ScramSha256 => scram_first(Hash::Sha256, user, nonce),
            _ => return None,
        };
        // RFC 5802 §6: no channel binding.
        Some(Client::in_state(state, user, password, nonce, "n,,".to_owned(), Vec::new()))
    }

    /// A client of a `-PLUS` mechanism that is bound to a channel with this data; `None` for any other mechanism.
    pub fn bound(
        mechanism: Name,
        user: &[u8],
        password: &[u8],
        nonce: &str,
        kind: BindingType,
        data: &[u8],
    ) -> Option<Client> {
        let state = match mechanism {
            Name::ScramSha1Plus => scram_first(Hash::Sha1, user, nonce),
            Name::ScramSha256Plus => scram_first(Hash::Sha256, user, nonce),
            _ => return None,
        };
        let header = format!("p={},,", kind.as_str());
        Some(Client::in_state(state, user, password, nonce, header, data.to_vec()))
    }

    /// A client of APOP. The numbers are those of the greeting on this connection, `now` seconds since the epoch.
    pub fn apop(user: &[u8], password: &[u8], spid: u32, cuid: u32, now: u64, host: &str) -> Client {
        let challenge = format!("<{spid:x}.{cuid:x}.{now:x}@{host}>");
        Client::in_state(State::Apop(challenge), user, password, "", String::new(), Vec::new())
    }

    fn in_state(
        state: State,
        user: &[u8],
        password: &[u8],
        nonce: &str,
        header: String,
        binding: Vec<u8>,
    ) -> Client {
        Client {
            user: user.to_vec(),
            password: Secret::new(password.to_vec()),
            uri: "imap/localhost".to_owned(),
            nonce: nonce.to_owned(),
            header,
            binding,
            state,
        }
    }

    /// Names service and host, as DIGEST-MD5 wants to hear them.
    #[must_use]
    pub fn service(mut self, service: &str, host: &str) -> Client {
        self.uri = format!("{service}/{host}").replace(['"', '\\'], "");
        self
    }

    /// What goes with the request, if the client speaks first.
    pub fn initial(&mut self) -> Option<Secret> {
        match &self.state {
            State::Plain => {
                let message = [b"\0", self.user.as_slice(), b"\0", self.password.expose()].concat();
                self.state = State::Done;
                Some(Secret::new(message))
            }
            State::Anonymous => {
                self.state = State::Done;
                Some(Secret::new(self.user.clone()))
            }
            State::ScramFirst(_, bare) => Some(Secret::new(format!("{}{bare}", self.header).into_bytes())),
            State::Apop(challenge) => {
                let digest =
                    Md5::new().chain_update(challenge).chain_update(self.password.expose()).finalize();
                let parts = [challenge.as_bytes(), b"\0", &self.user, b"\0", digest.as_slice()];
                let message = parts.concat();
                self.state = State::Done;
                Some(Secret::new(message))
            }
            _ => None,
        }
    }

    /// The answer to a challenge.
    ///
    /// # Errors
    /// See [`ClientError`]; the exchange is to be given up.
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Secret, ClientError> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::LoginUser => {
                self.state = State::LoginPassword;
                Ok(Secret::new(self.user.clone()))
            }
            State::LoginPassword => Ok(self.password.clone()),
            State::Cram => {
                let states = key_states(self.password.expose());
                let digest = hmac_from_states(states.expose(), challenge).ok_or(ClientError::Malformed)?;
                let mut out = self.user.clone();
                out.push(b' ');
                out.extend(digest.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
                Ok(Secret::new(out))
            }
            State::ScramFirst(hash, bare) => self.scram(hash, &bare, challenge),
            State::ScramFinal(signature) => {
                proved(&signature, challenge)?;
                Ok(Secret::new(Vec::new()))
            }
            State::Digest => {
                let (user, realm) = match self.user.iter().position(|byte| *byte == b'@') {
                    Some(at) => (self.user.get(..at), self.user.get(at + 1..)),
                    None => (Some(self.user.as_slice()), None),
                };
                let said = digest::Client {
                    user: user.unwrap_or_default(),
                    realm,
                    password: self.password.expose(),
                    cnonce: &self.nonce,
                    uri: &self.uri,
                };
                let (answer, expected) = said.respond(challenge).ok_or(ClientError::Malformed)?;
                self.state = State::DigestFinal(expected);
                Ok(Secret::new(answer))
            }
            State::DigestFinal(expected) if challenge == expected => Ok(Secret::new(Vec::new())),
            State::DigestFinal(_) => Err(ClientError::NotProved),
            State::Plain | State::Anonymous | State::Apop(_) | State::Done => Err(ClientError::Unexpected),
        }
    }

    /// Checks data that came with the success itself.
    ///
    /// # Errors
    /// The server did not prove itself where the mechanism wants it to.
    pub fn finish(&mut self, data: Option<&[u8]>) -> Result<(), ClientError> {
        match (std::mem::replace(&mut self.state, State::Done), data) {
            (State::ScramFinal(signature), Some(data)) => proved(&signature, data),
            (State::DigestFinal(expected), Some(data)) if data == expected => Ok(()),
            (State::DigestFinal(_) | State::Digest, _) => Err(ClientError::NotProved),
            (State::ScramFinal(_) | State::ScramFirst(..), _) => Err(ClientError::NotProved),
            _ => Ok(()),
        }
    }

    /// RFC 5802 §3 and §7.
    fn scram(&mut self, hash: Hash, bare: &str, challenge: &[u8]) -> Result<Secret, ClientError> {
        let first = std::str::from_utf8(challenge).map_err(|_| ClientError::Malformed)?;
        let mut parts = first.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i=")) else {
            return Err(ClientError::Malformed);
        };
        let own = bare.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
        let iterations: u32 = iterations.parse().map_err(|_| ClientError::Malformed)?;
        let salt = BASE64.decode(salt).map_err(|_| ClientError::Malformed)?;
        if !nonce.starts_with(own) || nonce.len() == own.len() || !(1..=MOST_ITERATIONS).contains(&iterations)
        {
            return Err(ClientError::Malformed);
        }
        let bound = [self.header.as_bytes(), &self.binding].concat();
        let without_proof = format!("c={},r={nonce}", BASE64.encode(bound));
        let message = format!("{bare},{first},{without_proof}");
        let password = prepared(self.password.expose());
        let salted = Secret::new(hash.salted_password(&password, &salt, iterations));
        let client_key = Secret::new(hash.hmac(salted.expose(), b"Client Key"));
        let stored_key = Secret::new(hash.digest(client_key.expose()));
        let signature = hash.hmac(stored_key.expose(), message.as_bytes());
        let proof: Vec<u8> = client_key.expose().iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_key = Secret::new(hash.hmac(salted.expose(), b"Server Key"));
        self.state = State::ScramFinal(hash.hmac(server_key.expose(), message.as_bytes()));
        Ok(Secret::new(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes()))
    }
}

/// Client-first-bare of this user.
fn scram_first(hash: Hash, user: &[u8], nonce: &str) -> State {
    // RFC 5802 §5.1: these two are the only characters to be escaped.
    let name = String::from_utf8_lossy(user).replace('=', "=3D").replace(',', "=2C");
    State::ScramFirst(hash, format!("n={name},r={nonce}"))
}

fn proved(signature: &[u8], data: &[u8]) -> Result<(), ClientError> {
    let told = data.strip_prefix(b"v=").and_then(|text| BASE64.decode(text).ok());
    if told.as_deref() == Some(signature) { Ok(()) } else { Err(ClientError::NotProved) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(mechanism: &str, user: &str, password: &str, nonce: &str) -> Client {
        Client::new(Name::parse(mechanism).unwrap(), user.as_bytes(), password.as_bytes(), nonce).unwrap()
    }

    fn said(result: Result<Secret, ClientError>) -> String {
        String::from_utf8(result.unwrap().expose().to_vec()).unwrap()
    }

    #[test]
    fn scram_sha_1_of_rfc_5802() {
        let mut client = client("SCRAM-SHA-1", "user", "pencil", "fyko+d2lbbFgONRv9qkxdawL");
        assert_eq!(client.initial().unwrap().expose(), b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL");
        let first = "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
        assert_eq!(
            said(client.respond(first.as_bytes())),
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
        );
        assert_eq!(said(client.respond(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")), "");
        assert_eq!(client.finish(None), Ok(()));
    }

    #[test]
    fn digest_md5_of_rfc_2831() {
        let challenge = b"realm=\"elwood.innosoft.com\",nonce=\"OA6MG9tEQGm2hh\",qop=\"auth\",\
                          algorithm=md5-sess,charset=utf-8";
        let start = || client("DIGEST-MD5", "chris", "secret", "OA6MHXh6VqTrRk");
        let mut client = start().service("imap", "elwood.innosoft.com");
        assert!(client.initial().is_none());
        let answer = said(client.respond(challenge));
        assert!(answer.contains("response=d388dad90d4bbd760a152321f2143af7"), "{answer}");
        assert!(answer.contains("realm=\"elwood.innosoft.com\""), "{answer}");
        assert_eq!(said(client.respond(b"rspauth=ea40f60335c427b5527b84dbabcdfffd")), "");
        assert_eq!(client.finish(None), Ok(()));
        for (challenge, last, error) in [
            (&b"nonce=\"x\",qop=\"auth-conf\""[..], &b""[..], ClientError::Malformed),
            (b"realm=\"r\",qop=\"auth\"", b"", ClientError::Malformed),
            (b"nonce=\"x\"", b"rspauth=00", ClientError::NotProved),
        ] {
            let mut client = start();
            let first = client.respond(challenge).map(drop);
            assert_eq!(first.and_then(|()| client.finish(Some(last))), Err(error));
        }
    }

    #[test]
    fn scram_sha_256_of_rfc_7677() {
        let mut client = client("SCRAM-SHA-256", "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        client.initial().unwrap();
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(
            said(client.respond(first.as_bytes())),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.finish(Some(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")), Ok(()));
    }

    #[test]
    fn servers_that_lie_are_refused() {
        for first in [
            "r=other123,s=QSXCR+Q6sek8bf92,i=4096",
            "r=abc,s=QSXCR+Q6sek8bf92,i=4096",
            "r=abcdef,s=QSXCR+Q6sek8bf92,i=99999999",
            "r=abcdef,s=QSXCR+Q6sek8bf92,i=0",
            "r=abcdef,s=***,i=4096",
            "r=abcdef",
            "",
        ] {
            let mut client = client("SCRAM-SHA-1", "user", "pencil", "abc");
            client.initial();
            assert_eq!(client.respond(first.as_bytes()).unwrap_err(), ClientError::Malformed, "{first}");
        }
        for last in [None, Some(&b"v=AAAA"[..]), Some(b"e=other-error"), Some(b"")] {
            let mut client = client("SCRAM-SHA-1", "user", "pencil", "abc");
            client.initial();
            client.respond(b"r=abcdef,s=QSXCR+Q6sek8bf92,i=16").unwrap();
            assert_eq!(client.finish(last), Err(ClientError::NotProved), "{last:?}");
            // The same words at once, without a challenge before them.
            let mut client = self::client("SCRAM-SHA-1", "user", "pencil", "abc");
            client.initial();
            assert_eq!(client.finish(last), Err(ClientError::NotProved), "{last:?}");
        }
    }

    #[test]
    fn the_others() {
        let mut plain = client("PLAIN", "bob", "pw", "");
        assert_eq!(plain.initial().unwrap().expose(), b"\0bob\0pw");
        assert_eq!(plain.respond(b"").unwrap_err(), ClientError::Unexpected);
        let mut login = client("LOGIN", "bob", "pw", "");
        assert!(login.initial().is_none());
        assert_eq!(said(login.respond(b"Username:")), "bob");
        assert_eq!(said(login.respond(b"Password:")), "pw");
        assert_eq!(login.respond(b"More:").unwrap_err(), ClientError::Unexpected);
        // RFC 2195 §2
        let mut cram = client("CRAM-MD5", "tim", "tanstaaftanstaaf", "");
        assert_eq!(
            said(cram.respond(b"<1896.697170952@postoffice.reston.mci.net>")),
            "tim b913a602c7eda7a495b4e6e7334d3890"
        );
        let mut odd = client("SCRAM-SHA-1", "a=b,c", "x", "n");
        assert_eq!(odd.initial().unwrap().expose(), b"n,,n=a=3Db=2Cc,r=n");
        for name in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "APOP"] {
            assert!(Client::new(Name::parse(name).unwrap(), b"u", b"p", "n").is_none(), "{name}");
        }
        let kind = BindingType::TlsExporter;
        assert!(Client::bound(Name::ScramSha1, b"u", b"p", "n", kind, b"x").is_none());
        let mut bound = Client::bound(Name::ScramSha1Plus, b"u", b"p", "n", kind, b"data").unwrap();
        assert_eq!(bound.initial().unwrap().expose(), b"p=tls-exporter,,n=u,r=n");
        let last = said(bound.respond(b"r=nmore,s=QSXCR+Q6sek8bf92,i=16"));
        let shown = BASE64.encode("p=tls-exporter,,data");
        assert!(last.starts_with(&format!("c={shown},r=nmore,p=")), "{last}");
        // RFC 1939 §7, in the form of the auth protocol.
        let mut apop = Client::apop(b"u", b"p", 0x1f, 2, 0x11, "host");
        let first = apop.initial().unwrap();
        assert!(first.expose().starts_with(b"<1f.2.11@host>\0u\0") && first.expose().len() == 33);
        assert_eq!(apop.respond(b"").unwrap_err(), ClientError::Unexpected);
        assert!(!format!("{plain:?}").contains("pw"));
    }
}
