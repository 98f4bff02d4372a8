//! What a session is set up with, what it asks for and what it is told.
//!
//! Trust: nobody; the driver fills it in. What a `Step` carries was a client's and has been parsed.

use std::time::Duration;

use crate::address::ForwardPath;
use crate::command::{MailCommand, Mechanism};
use crate::data::BareNewline;
use crate::reply::Reply;
use crate::secret::Secret;

/// What a listener is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Port 25: mail from other servers. STARTTLS, no AUTH.
    Inbound,
    /// 587 and 465: mail from users (RFC 6409). AUTH before MAIL, TLS before AUTH.
    Submission,
    /// LMTP (RFC 2033): LHLO, and one reply per recipient at the end of data.
    Lmtp,
}

/// Rules and limits of a session; one value is shared by all connections of a listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name in greeting and EHLO.
    pub hostname: String,
    /// What the listener is for.
    pub kind: Kind,
    /// Whether STARTTLS can succeed.
    pub starttls: bool,
    /// Largest message taken, in bytes after dot-unstuffing.
    pub max_message_size: u64,
    /// Most recipients of one message; at least 100 by RFC 5321 §4.5.3.1.8.
    pub max_recipients: u32,
    /// Mistakes before 421.
    pub max_bad_commands: u32,
    /// Failed logins before 421.
    pub max_auth_failures: u32,
    /// What happens to messages with bare CR or LF.
    pub bare_newline: BareNewline,
    /// Longest wait for a command or a piece of data.
    pub timeout: Duration,
}

impl Config {
    pub(super) fn max_refused_recipients(&self) -> u32 {
        self.max_recipients.max(100)
    }

    pub(super) fn help(&self) -> &'static str {
        match self.kind {
            Kind::Inbound => "EHLO HELO STARTTLS MAIL RCPT DATA RSET NOOP QUIT HELP VRFY",
            Kind::Submission => "EHLO HELO STARTTLS AUTH MAIL RCPT DATA RSET NOOP QUIT HELP VRFY",
            Kind::Lmtp => "LHLO STARTTLS MAIL RCPT DATA RSET NOOP QUIT HELP VRFY",
        }
    }
}

/// What the driver has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Send these bytes. Several may be joined into one write.
    Reply(Vec<u8>),
    /// Send everything, do the TLS handshake on the same connection, then call `Session::tls_started`.
    StartTls,
    /// *Answer*: begin an exchange.
    Auth {
        /// The mechanism, one of those set.
        mechanism: Mechanism,
        /// The decoded initial response.
        initial: Option<Secret>,
    },
    /// *Answer*: the client's decoded response within an exchange.
    AuthResponse(Secret),
    /// The exchange that was going on is over without a result. No answer.
    AuthCancelled,
    /// *Answer*: may this sender begin a transaction?
    Mail(MailCommand),
    /// *Answer*: is this recipient taken?
    Rcpt(ForwardPath),
    /// *Answer*: may the message come? A refusal leaves the transaction as it is.
    Data,
    /// Message bytes, decoded.
    Body(Vec<u8>),
    /// *Answer*: the message is complete. A 2xx takes responsibility. For LMTP answer with
    /// [`Outcome::Each`], in the order of the accepted recipients. Either way the transaction is over.
    Message,
    /// The transaction is over without a result: forget sender, recipients and bytes. No answer.
    Reset,
    /// Send what is left and close.
    Close,
}

/// The driver's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Yes, with the usual words.
    Accept,
    /// This reply; 2xx means yes.
    Reply(Reply),
    /// One reply per accepted recipient (LMTP, at the end of data).
    Each(Vec<Reply>),
    /// AUTH goes on with this challenge.
    Challenge(Vec<u8>),
    /// AUTH succeeded; some mechanisms have last words for the client.
    Authenticated {
        /// The mechanism's data that accompanies success.
        final_data: Option<Vec<u8>>,
    },
}

impl Outcome {
    pub(super) fn into_reply(self, accept: &Reply) -> Option<Reply> {
        match self {
            Self::Accept => Some(accept.clone()),
            Self::Reply(reply) => Some(reply),
            Self::Each(_) | Self::Challenge(_) | Self::Authenticated { .. } => None,
        }
    }
}
