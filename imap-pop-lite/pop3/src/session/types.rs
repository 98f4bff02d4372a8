//! What the driver sets, is asked and answers.
//!
//! Trust: nobody; the driver fills it in. What a `Step` carries was a client's and has been parsed.

use std::time::Duration;

use crate::maildrop::Maildrop;
use crate::secret::Secret;

/// What a session may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Octets of a command line before login, its end included. RFC 2449 §4 allows 255; an initial response may need
    /// more. Default 2 KiB.
    pub line_before_login: usize,
    /// Octets of a command line after login. Default 512.
    pub line: usize,
    /// Octets of a SASL response. Default 12 KiB.
    pub response: usize,
    /// Commands before login. Default 100.
    pub commands_before_login: u32,
    /// Bad commands in a row before login. Default 10.
    pub bad_before_login: u32,
    /// Bad commands in a row after login. Default 20.
    pub bad: u32,
    /// Failed logins. Default 5.
    pub auth_failures: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_before_login: 2 << 10,
            line: 512,
            response: 12 << 10,
            commands_before_login: 100,
            bad_before_login: 10,
            bad: 20,
            auth_failures: 5,
        }
    }
}

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in the greeting.
    pub hostname: String,
    /// Limits.
    pub limits: Limits,
    /// SASL mechanisms to offer under TLS, in upper case. USER and PASS are there when PLAIN is.
    pub mechanisms: Vec<String>,
    /// Whole time from connect to login.
    pub login_timeout: Duration,
    /// Silence allowed after login; RFC 1939 §3 wants at least ten minutes.
    pub idle_timeout: Duration,
    /// Seconds between logins that CAPA announces, if the driver insists on any.
    pub login_delay: Option<u32>,
}

impl Config {
    /// The usual settings: PLAIN and LOGIN, 60 s to log in, 10 min of silence.
    #[must_use]
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            limits: Limits::default(),
            mechanisms: vec!["PLAIN".to_owned(), "LOGIN".to_owned()],
            login_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            login_delay: None,
        }
    }
}

/// TLS of this connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsState {
    /// Not on, and cannot be had.
    Unavailable,
    /// STLS is offered.
    Offered,
    /// On.
    Active,
}

/// What the driver does next.
#[derive(Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// Write these bytes.
    Send(Vec<u8>),
    /// Begin a login; answer with `Challenge`, `LoggedIn` or `LoginFailed`. USER and PASS come as PLAIN, APOP as the
    /// mechanism `APOP` of the Dovecot protocol.
    Authenticate {
        /// Upper case.
        mechanism: String,
        /// Initial response.
        initial: Option<Secret>,
    },
    /// The client's answer to the challenge; answer as above.
    Respond(Secret),
    /// The client gave the exchange up (or spoilt it after `LoggedIn`). No answer.
    CancelAuthentication,
    /// Flush, then do the TLS handshake and call [`super::Session::tls_established`].
    StartTls,
    /// The login is complete: open the maildrop; answer with `Opened` or `LoginFailed`.
    Open,
    /// Open that message, whole or (TOP) header and that many lines; answer with `Retrieving` or `Failed`, then use
    /// [`super::Session::message`] and [`super::Session::message_end`].
    Retrieve {
        /// Index in the maildrop, from 0.
        index: usize,
        /// Lines of the body; `None` for RETR.
        lines: Option<u32>,
    },
    /// QUIT: delete these, release the maildrop; answer with `Updated` or `Failed`.
    Update {
        /// Indexes in the maildrop, ascending.
        deleted: Vec<usize>,
    },
    /// Flush and close.
    Close,
}

/// The driver's answer to a step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The mechanism has more to ask.
    Challenge(Vec<u8>),
    /// Logged in; with the mechanism's last data, if it has any.
    LoggedIn(Option<Vec<u8>>),
    /// Not logged in, or the maildrop cannot be opened.
    LoginFailed(LoginFailure),
    /// The maildrop.
    Opened(Maildrop),
    /// The message's bytes follow.
    Retrieving,
    /// The marked messages were deleted, all of them or not.
    Updated {
        /// All of them.
        complete: bool,
    },
    /// It could not be done.
    Failed {
        /// Response code.
        code: Option<Code>,
        /// Text for the client.
        text: String,
    },
}

/// Why a login failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoginFailure {
    /// The class.
    pub code: LoginFailureCode,
    /// Text for the client; empty for the usual one.
    pub text: String,
}

impl From<LoginFailureCode> for LoginFailure {
    fn from(code: LoginFailureCode) -> Self {
        Self { code, text: String::new() }
    }
}

/// Classes of failed logins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoginFailureCode {
    /// Unknown, wrong or locked: `[AUTH]`.
    Credentials,
    /// The right password, but not for this user or service: `[AUTH]`.
    Authorization,
    /// The right password, expired: `[AUTH]`.
    Expired,
    /// The right password of a disabled account: `[AUTH]`.
    Disabled,
    /// The backend is away: `[SYS/TEMP]`.
    Unavailable,
    /// The exchange itself was malformed.
    Malformed,
    /// Another session holds the maildrop: `[IN-USE]`.
    InUse,
    /// The last login was too short a time ago: `[LOGIN-DELAY]`.
    TooSoon,
    /// The maildrop cannot be opened now: `[SYS/TEMP]`.
    Mailbox,
    /// The maildrop cannot be opened until somebody repairs it: `[SYS/PERM]`.
    MailboxBroken,
}

/// Response codes (RFC 2449 §8, RFC 3206).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// `AUTH`: the credentials are at fault.
    Auth,
    /// `SYS/TEMP`
    SysTemp,
    /// `SYS/PERM`
    SysPerm,
    /// `IN-USE`
    InUse,
    /// `LOGIN-DELAY`
    LoginDelay,
}

impl Code {
    /// The code as sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "AUTH",
            Self::SysTemp => "SYS/TEMP",
            Self::SysPerm => "SYS/PERM",
            Self::InUse => "IN-USE",
            Self::LoginDelay => "LOGIN-DELAY",
        }
    }
}
