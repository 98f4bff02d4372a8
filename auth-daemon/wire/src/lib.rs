//! Dovecot auth and saslauthd wire protocols as state machines without I/O.
//!
//! Purpose:   every byte of the authentication sockets, both ends, for a driver that owns the socket and the clock.
//! Standards: Dovecot auth protocol 1.0–1.4 (`doc/auth-protocol`), Cyrus `saslauthd/ipc_unix.c`.
//! Trust:     the peer is hostile on every socket; lines, ids, counts and field lists are bounded before they are used.
//! Never:     answer an id twice, let one bad request touch another, hand out or print a secret by accident.
//!
//! | Module | Socket | Ends |
//! | --- | --- | --- |
//! | [`server`] | auth-client, auth-login | [`server::Session`] |
//! | [`client`] | auth-client, auth-login | [`client::Client`] |
//! | [`master`] | auth-master, auth-userdb, session | [`master::Session`], [`master::Client`] |
//! | [`login`] | what a login socket keeps for a later `REQUEST` | [`login::Registry`] |
//! | [`mux`] | saslauthd's `mux` | [`mux::Parser`], [`mux::ReplyParser`] |
//!
//! A driver reads bytes and calls `feed`, takes steps with `next` until there is none, answers with `reply`, and
//! writes what `output` holds:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Instant;
//! use auth_wire::server::{Config, Identity, Reply, Session, Step};
//! use auth_wire::{Cookie, Kind, Mechanism};
//!
//! let config = Arc::new(Config::new(Kind::Client, 2, vec![Mechanism::known("PLAIN").unwrap()]).unwrap());
//! let identity = Identity { spid: 7, cuid: 1, cookie: Cookie::from_bytes([3; 16]) };
//! let now = Instant::now();
//! let mut session = Session::new(config, &identity);
//! assert!(session.output().ends_with(b"\nDONE\n"));
//! session.wrote(session.output().len());
//!
//! session.feed(b"VERSION\t1\t2\nCPID\t9\nAUTH\t1\tPLAIN\tservice=smtp\tresp=AGEAYg==\n");
//! while let Some(step) = session.next(now) {
//!     if let Step::Start(request) = step {
//!         assert_eq!(request.initial.as_deref(), Some(b"\0a\0b".as_slice()));
//!         session.reply(request.ticket, Reply::Ok { user: "a", fields: &[], final_data: None }, now);
//!     }
//! }
//! assert_eq!(session.output(), b"OK\t1\tuser=a\n");
//! ```
#![forbid(unsafe_code)]

/// The examples of the README are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod client;
mod escape;
mod field;
mod line;
pub mod login;
pub mod master;
mod mechanism;
pub mod mux;
mod params;
mod secret;
pub mod server;
mod table;

pub use escape::{escape_into, unescape};
pub use field::{Field, FieldName};
pub use line::{LineReader, ReadLine};
pub use mechanism::{Flags, MechName, Mechanism};
pub use params::{Params, Secured};
pub use secret::{Cookie, Secret};
pub use table::Ticket;

/// Longest accepted line on a client socket, LF included (Dovecot's `AUTH_CLIENT_MAX_LINE_LENGTH`).
pub const MAX_LINE: usize = 16_384;
/// Longest accepted line on a master socket, LF included. Dovecot takes 1024; names and forwarded fields may need more.
pub const MAX_MASTER_LINE: usize = 8_192;
/// A line that grows beyond this closes the connection; shorter ones are discarded up to LF.
pub const MAX_DISCARD: usize = 65_536;
/// Longest line we send, LF included: Exim and Dovecot's master client read into 8192 bytes.
pub const MAX_REPLY: usize = 8_191;
/// The greeting must fit here: old Radicale reads it with a single `recv(1024)`.
pub const MAX_GREETING: usize = 1_024;

/// What a socket of the client protocol is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Replies are final; bare flags never appear in OK.
    Client,
    /// OK'd requests are kept for a `REQUEST` on the session or master socket; CPID must be a usable number.
    Login,
}

/// Why a request failed, in the form that programs read (`code=`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FailCode {
    /// `temp_fail`: an internal error, try again later.
    TempFail,
    /// `authz_fail`: the credentials are right, acting as that other user is not allowed.
    AuthzFail,
    /// `user_disabled`
    UserDisabled,
    /// `pass_expired`
    PassExpired,
    /// `invalid_base64`
    InvalidBase64,
    /// A code this version does not know (received only).
    Other,
}

impl FailCode {
    /// The value of `code=`; `None` for [`FailCode::Other`].
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::TempFail => Some("temp_fail"),
            Self::AuthzFail => Some("authz_fail"),
            Self::UserDisabled => Some("user_disabled"),
            Self::PassExpired => Some("pass_expired"),
            Self::InvalidBase64 => Some("invalid_base64"),
            Self::Other => None,
        }
    }

    /// The bare word that clients from before Dovecot 2.3 (and Prosody's module) look for.
    pub fn legacy(self) -> Option<&'static str> {
        match self {
            Self::TempFail => Some("temp"),
            Self::AuthzFail => Some("authz"),
            Self::UserDisabled => Some("user_disabled"),
            Self::PassExpired => Some("pass_expired"),
            Self::InvalidBase64 | Self::Other => None,
        }
    }

    fn parse(value: &str) -> Self {
        match value {
            "temp_fail" => Self::TempFail,
            "authz_fail" => Self::AuthzFail,
            "user_disabled" => Self::UserDisabled,
            "pass_expired" => Self::PassExpired,
            "invalid_base64" => Self::InvalidBase64,
            _ => Self::Other,
        }
    }

    fn parse_legacy(word: &str) -> Option<Self> {
        match word {
            "temp" => Some(Self::TempFail),
            "authz" => Some(Self::AuthzFail),
            "user_disabled" => Some(Self::UserDisabled),
            "pass_expired" => Some(Self::PassExpired),
            _ => None,
        }
    }
}

/// What can go wrong at this crate's boundary.
#[derive(Debug, thiserror::Error, Eq, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Not a SASL mechanism name (RFC 4422 §3.1).
    #[error("not a SASL mechanism name")]
    MechanismName,
    /// No mechanisms: Postfix and Exim give up on such a greeting, and Postfix is throttled for a minute.
    #[error("a socket needs at least one mechanism")]
    NoMechanisms,
    /// The greeting would not fit into [`MAX_GREETING`].
    #[error("the greeting exceeds {MAX_GREETING} bytes: offer fewer mechanisms")]
    GreetingTooLong,
    /// The server broke the protocol.
    #[error("the authentication server broke the protocol: {0}")]
    Peer(&'static str),
    /// The server speaks another major version.
    #[error("the authentication server speaks protocol version {0}, not 1")]
    Version(u32),
    /// The request does not fit into a line that servers accept.
    #[error("the request is too long for the protocol")]
    TooLong,
    /// A name or value contains a byte that the protocol cannot carry.
    #[error("the request contains a NUL byte")]
    Nul,
    /// All ids are in use.
    #[error("too many requests are open")]
    TooMany,
}
