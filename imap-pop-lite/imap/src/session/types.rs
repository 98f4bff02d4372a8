//! What a driver sets, is asked and answers.
//!
//! Trust: nobody; the driver fills it in. What a `Step` carries was a client's and has been parsed.

use std::time::Duration;

use crate::command::{AppendHead, Command, Tag};
use crate::response::Completion;
use crate::secret::Secret;

/// What a session may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Octets of one command outside literals, before login. Default 8 KiB.
    pub line_before_login: usize,
    /// Octets of all literals of one command before login. Default 1 KiB.
    pub literal_before_login: usize,
    /// Octets of one command outside literals. Default 64 KiB.
    pub line: usize,
    /// Octets of all literals of one command but APPEND. Default 128 KiB.
    pub literal: usize,
    /// Largest message APPEND takes. Default 64 MiB.
    pub append: u64,
    /// Commands before login. Default 200.
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
            line_before_login: 8 << 10,
            literal_before_login: 1 << 10,
            line: 64 << 10,
            literal: 128 << 10,
            append: 64 << 20,
            commands_before_login: 200,
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
    /// SASL mechanisms to offer under TLS, in upper case.
    pub mechanisms: Vec<String>,
    /// Whole time from connect to login.
    pub login_timeout: Duration,
    /// Silence allowed after login, outside IDLE.
    pub idle_timeout: Duration,
    /// Hierarchy separator.
    pub separator: char,
}

/// TLS of this connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsState {
    /// Not on, and cannot be had.
    Unavailable,
    /// STARTTLS is offered.
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
    /// Begin a SASL exchange; answer with `Challenge`, `LoggedIn` or `LoginFailed`.
    Authenticate {
        /// Upper case.
        mechanism: String,
        /// Initial response.
        initial: Option<Secret>,
    },
    /// The client's answer to the challenge; answer as above.
    Respond(Secret),
    /// The client gave the exchange up. No answer.
    CancelAuthentication,
    /// Flush, then do the TLS handshake and call [`super::Session::tls_established`].
    StartTls,
    /// The client named itself (RFC 2971), for the log. No answer.
    ClientId(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    /// Run a command; answer with `Done`.
    Run(Tag, Command),
    /// Look at mailbox, size and flags; answer with `AppendAccepted` or `Done` to refuse.
    Append(AppendHead),
    /// More of the message. No answer.
    AppendChunk(Vec<u8>),
    /// The message is whole; answer with `Done`.
    AppendEnd,
    /// The message is not to be kept. No answer.
    AppendAbort,
    /// Logged in: give the session and what [`super::Session::take_input`] has to whoever goes on with it, or answer with
    /// `LoginFailed`. Only after [`super::Session::hand_over_logins`].
    HandOver(Tag),
    /// Start pushing changes while more bytes are fed. No answer.
    Idle,
    /// Stop pushing, push what is left; answer with `Done`.
    IdleDone,
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
    /// Not logged in.
    LoginFailed(LoginFailure),
    /// A command is finished.
    Done(Completion),
    /// Let the message come.
    AppendAccepted,
}

/// Why a login failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoginFailure {
    /// The class.
    pub code: LoginFailureCode,
    /// Text for the client; empty for the usual one.
    pub text: String,
}

/// Classes of failed logins, one response code each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoginFailureCode {
    /// Unknown, wrong or locked.
    Credentials,
    /// The right password, but not for this user or service.
    Authorization,
    /// The right password, expired.
    Expired,
    /// The right password of a disabled account.
    Disabled,
    /// The backend is away.
    Unavailable,
    /// The exchange itself was malformed.
    Malformed,
}
