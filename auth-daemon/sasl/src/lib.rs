//! SASL server mechanisms as state machines.
//!
//! Purpose:   turn client responses into one of three questions for the daemon: check this password
//!            ([`Step::NeedVerify`]), give me this user's key ([`Step::NeedCredentials`]), or nothing more
//!            ([`Step::Success`], [`Step::Failure`]).
//! Standards: RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5), RFC 2831 (DIGEST-MD5), RFC 5802 and 7677 (SCRAM),
//!            RFC 9266 (tls-exporter), RFC 4505 (ANONYMOUS), RFC 1939 §7 (APOP).
//! Trust:     every response is written by a stranger; sizes are bounded by the caller's line limit.
//! Never:     does I/O, reads a clock, keeps a password after the step that hands it out, or tells an unknown
//!            user from a wrong key before the last step.

#![forbid(unsafe_code)]

mod anonymous;
mod apop;
mod client;
mod cram;
mod digest;
mod login;
mod name;
mod plain;
mod scram;

use std::fmt;

pub use apop::ApopSeed;
pub use client::{Client, ClientError};
pub use name::{KeyKind, Name, Needs};
pub use scram::{BindingType, Hash, SCRAM_ITERATIONS, ScramKeys};
use zeroize::Zeroize;

/// Bytes that must not be printed and are wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Secret(bytes)
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What a mechanism may know about the server. Borrowed for one call.
pub struct Context<'a> {
    /// Host name for CRAM-MD5 challenges and the default realm.
    pub hostname: &'a str,
    /// Realms announced by DIGEST-MD5.
    pub realms: &'a [String],
    /// Server-wide key from which salts of unknown users are made; stable over restarts.
    pub secret: &'a [u8],
    /// Channel bindings this connection can supply; empty when `-PLUS` is not offered.
    pub bindings: &'a [BindingType],
    /// Seconds since the epoch.
    pub now: u64,
    /// What APOP challenges must contain; `None` where APOP is not possible.
    pub apop: Option<ApopSeed>,
    /// Source of random bytes.
    pub random: &'a mut dyn FnMut(&mut [u8]),
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// What the caller must do next.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Send this to the client and hand its answer to [`Exchange::respond`].
    Challenge(Challenge),
    /// Check a password; the mechanism is finished whatever the answer.
    NeedVerify(Verify),
    /// Look up a key and hand it to [`Exchange::credentials`].
    NeedCredentials(Lookup),
    /// The client proved who it is.
    Success(Success),
    /// The exchange failed.
    Failure(Failure),
}

/// A server challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The challenge, not yet base64.
    pub data: Vec<u8>,
    /// Channel binding data of this type must come with the answer.
    pub binding: Option<BindingType>,
}

/// A password to check.
#[derive(Debug)]
pub struct Verify {
    /// The name whose password this is.
    pub authcid: String,
    /// The name to act as, when it differs.
    pub authzid: Option<String>,
    /// The password.
    pub password: Secret,
}

/// A key to look up.
#[derive(Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The name as the client gave it (with `@realm` where the mechanism adds one).
    pub user: String,
    /// The name to act as, when it differs.
    pub authzid: Option<String>,
    /// The key that serves the mechanism.
    pub kind: KeyKind,
}

/// Proof accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct Success {
    /// The name as the client gave it.
    pub user: String,
    /// The name to act as, when it differs.
    pub authzid: Option<String>,
    /// Data the client must still receive (SCRAM `v=`, DIGEST-MD5 `rspauth=`).
    pub final_data: Option<Vec<u8>>,
}

/// Why an exchange failed. The peer learns only that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The response does not follow the mechanism's grammar.
    #[error("malformed response")]
    Malformed,
    /// The response is well formed and wrong: bad proof, unknown user.
    #[error("wrong credentials")]
    Mismatch,
    /// Channel binding is missing, not offered, downgraded or different.
    #[error("channel binding refused")]
    ChannelBinding,
    /// The client demands an extension this server does not have (`m=`, a foreign `qop`).
    #[error("unsupported extension")]
    Unsupported,
    /// A response came when none was asked for.
    #[error("response out of order")]
    OutOfOrder,
}

/// A stored key as the daemon found it.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// The password itself; every key is derived from it.
    Plain(Secret),
    /// The two MD5 states of a `{CRAM-MD5}` entry: outer, then inner, 32 bytes.
    CramMd5(Secret),
    /// `MD5(user:realm:password)`, 16 bytes.
    DigestMd5(Secret),
    /// SCRAM keys of the mechanism's hash.
    Scram(ScramKeys),
    /// No such user, or no usable key: the exchange goes on and fails at its end.
    Unknown,
}

/// One running exchange.
#[derive(Debug)]
pub struct Exchange {
    name: Name,
    state: State,
}

#[derive(Debug)]
enum State {
    Plain,
    Login(login::Login),
    Cram(cram::Cram),
    Digest(Box<digest::Digest>),
    Scram(Box<scram::Scram>),
    Anonymous,
    Apop(apop::Apop),
    Done,
}

impl Exchange {
    /// Begins an exchange. `initial` is the initial response, `None` when the client sent none.
    pub fn start(name: Name, initial: Option<&[u8]>, ctx: &mut Context<'_>) -> (Exchange, Step) {
        let mut exchange = Exchange { name, state: State::Done };
        let (state, step) = match name {
            Name::Plain => client_first(State::Plain, initial),
            Name::Login => {
                let (login, step) = login::Login::start(initial);
                (State::Login(login), Some(step))
            }
            Name::CramMd5 => {
                let (cram, step) = cram::Cram::start(ctx);
                (State::Cram(cram), Some(step))
            }
            Name::DigestMd5 => {
                let (digest, step) = digest::Digest::start(ctx);
                (State::Digest(Box::new(digest)), Some(step))
            }
            Name::ScramSha1 | Name::ScramSha1Plus => {
                client_first(State::Scram(Box::new(scram::Scram::new(Hash::Sha1, name.is_plus()))), initial)
            }
            Name::ScramSha256 | Name::ScramSha256Plus => {
                client_first(State::Scram(Box::new(scram::Scram::new(Hash::Sha256, name.is_plus()))), initial)
            }
            Name::Anonymous => client_first(State::Anonymous, initial),
            Name::Apop => client_first(State::Apop(apop::Apop::default()), initial),
        };
        exchange.state = state;
        let step = match (step, initial) {
            (Some(step), _) => exchange.settle(step),
            (None, Some(data)) => exchange.respond(data, None, ctx),
            (None, None) => exchange.settle(challenge(Vec::new())),
        };
        (exchange, step)
    }

    /// The mechanism.
    pub fn name(&self) -> Name {
        self.name
    }

    /// Takes the client's answer to a challenge. `binding` is the channel binding data that came with it.
    pub fn respond(&mut self, data: &[u8], binding: Option<&[u8]>, ctx: &mut Context<'_>) -> Step {
        let step = match &mut self.state {
            State::Plain => plain::respond(data),
            State::Login(login) => login.respond(data),
            State::Cram(cram) => cram.respond(data),
            State::Digest(digest) => digest.respond(data),
            State::Scram(scram) => scram.respond(data, binding, ctx),
            State::Anonymous => anonymous::respond(data),
            State::Apop(apop) => apop.respond(data, ctx),
            State::Done => Step::Failure(Failure::OutOfOrder),
        };
        self.settle(step)
    }

    /// Takes the key asked for by [`Step::NeedCredentials`].
    pub fn credentials(&mut self, credentials: &Credentials, ctx: &mut Context<'_>) -> Step {
        let step = match &mut self.state {
            State::Cram(cram) => cram.credentials(credentials),
            State::Digest(digest) => digest.credentials(credentials),
            State::Scram(scram) => scram.credentials(credentials, ctx),
            State::Apop(apop) => apop.credentials(credentials),
            State::Plain | State::Login(_) | State::Anonymous | State::Done => {
                Step::Failure(Failure::OutOfOrder)
            }
        };
        self.settle(step)
    }

    /// Terminal steps drop the state, and with it everything the client sent.
    fn settle(&mut self, step: Step) -> Step {
        if matches!(step, Step::NeedVerify(_) | Step::Success(_) | Step::Failure(_)) {
            self.state = State::Done;
        }
        step
    }
}

fn client_first(state: State, _initial: Option<&[u8]>) -> (State, Option<Step>) {
    (state, None)
}

fn challenge(data: Vec<u8>) -> Step {
    Step::Challenge(Challenge { data, binding: None })
}

/// A name from the wire: UTF-8 without NUL, not empty.
fn user_name(raw: &[u8]) -> Result<String, Failure> {
    match std::str::from_utf8(raw) {
        Ok(text) if !text.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(Failure::Malformed),
    }
}

/// An authorization name that differs from the authentication name.
fn other_name(authzid: &str, authcid: &str) -> Option<String> {
    (!authzid.is_empty() && authzid != authcid).then(|| authzid.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .filter_map(|nibble| DIGITS.get(usize::from(nibble)).copied().map(char::from))
        .collect()
}

/// Exactly `N` bytes written as hexadecimal digits of either case.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *slot = digit(high)? << 4 | digit(low)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests;
