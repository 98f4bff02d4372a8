//! The AUTH part of a session (RFC 4954).
//!
//! Trust: mechanism and responses are a client's; only the driver's outcome makes it authenticated.
//! Never: take a response over a connection without TLS, or read one as a command.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::config::Kind;
use super::{FAULT, HELLO_FIRST, NOT_IMPLEMENTED, Outcome, Phase, Question, Session, Step};
use crate::command::{AuthCommand, CommandLine, SyntaxError};
use crate::line::Line;
use crate::reply::{Reply, Status};
use crate::secret::Secret;

/// What the client's next line is for.
pub(super) enum Exchange {
    /// A response for the mechanism.
    Response,
    /// The empty response that acknowledges data sent with success.
    Acknowledge,
}

impl Session {
    pub(super) fn may_authenticate(&self) -> bool {
        self.config.kind == Kind::Submission && self.secured && !self.authenticated
    }

    pub(super) fn auth(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        let refusal = if self.config.kind != Kind::Submission {
            NOT_IMPLEMENTED
        } else if self.hello.is_none() {
            HELLO_FIRST
        } else if !self.secured {
            // RFC 4954 §4 and §6: no password crosses the wire in clear.
            Reply::new(538, Status(5, 7, 11), "Encryption required: issue STARTTLS first")
        } else if self.authenticated {
            // RFC 4954 §4: no AUTH after success
            Reply::new(503, Status(5, 5, 1), "Already authenticated")
        } else if self.transaction.is_some() {
            Reply::new(503, Status(5, 5, 1), "AUTH is not possible during a mail transaction")
        } else {
            return self.auth_begin(command);
        };
        self.mistake(&refusal);
        Ok(())
    }

    fn auth_begin(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        let AuthCommand { mechanism, initial } = AuthCommand::parse(command.arguments)?;
        if !self.mechanisms.iter().any(|name| name == mechanism.as_str()) {
            self.mistake(&Reply::new(504, Status(5, 5, 4), "Mechanism not available"));
            return Ok(());
        }
        let initial = match initial.as_ref().map(Secret::expose) {
            None => None,
            // RFC 4954 §4: `=` is an empty initial response.
            Some(b"=") => Some(Secret::new(Vec::new())),
            Some(text) => match decode(text) {
                Some(secret) => Some(secret),
                None => {
                    self.mistake(&BAD_BASE64);
                    return Ok(());
                }
            },
        };
        self.ask(Question::Auth, Step::Auth { mechanism, initial });
        Ok(())
    }

    pub(super) fn auth_line(&mut self, line: Line) {
        let Phase::AuthResponse(exchange) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        self.wait_for_command();
        let Line::Text { bytes, .. } = line else {
            self.steps.push_back(Step::AuthCancelled);
            // RFC 4954 §6
            return self.mistake(&Reply::new(
                500,
                Status(5, 5, 6),
                "Authentication exchange line is too long",
            ));
        };
        let bytes = zeroize::Zeroizing::new(bytes);
        let response =
            if bytes.as_slice() == b"*" { Err(CANCELLED) } else { decode(&bytes).ok_or(BAD_BASE64) };
        match (exchange, response) {
            (_, Err(reply)) => {
                self.steps.push_back(Step::AuthCancelled);
                self.mistake(&reply);
            }
            (Exchange::Response, Ok(response)) => self.ask(Question::Auth, Step::AuthResponse(response)),
            (Exchange::Acknowledge, Ok(response)) if response.expose().is_empty() => self.auth_success(),
            (Exchange::Acknowledge, Ok(_)) => {
                self.steps.push_back(Step::AuthCancelled);
                self.mistake(&Reply::new(501, Status(5, 5, 2), "Empty response expected"));
            }
        }
    }

    pub(super) fn auth_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Challenge(data) => self.challenge(&data, Exchange::Response),
            // RFC 4954 §4: data that comes with success is sent as one more challenge.
            Outcome::Authenticated { final_data: Some(data) } => self.challenge(&data, Exchange::Acknowledge),
            Outcome::Authenticated { final_data: None } => self.auth_success(),
            Outcome::Reply(reply) if !reply.is_positive() => {
                self.reply(&reply);
                if reply.code() >= 500 {
                    self.auth_failures += 1;
                }
                if self.auth_failures >= self.config.max_auth_failures {
                    self.close(&Reply::new(421, Status(4, 7, 0), "Too many authentication failures"));
                }
            }
            Outcome::Accept | Outcome::Reply(_) | Outcome::Each(_) => self.close(&FAULT),
        }
    }

    fn challenge(&mut self, data: &[u8], exchange: Exchange) {
        self.reply(&Reply::plain(334, STANDARD.encode(data)));
        self.phase = Phase::AuthResponse(exchange);
    }

    fn auth_success(&mut self) {
        self.authenticated = true;
        self.wait_for_command();
        self.reply(&Reply::new(235, Status(2, 7, 0), "Authentication successful"));
    }
}

/// Strict base64: padded, no stray bits, no blanks. An empty line is an empty response.
fn decode(text: &[u8]) -> Option<Secret> {
    STANDARD.decode(text).ok().map(Secret::new)
}

const BAD_BASE64: Reply = Reply::new(501, Status(5, 5, 2), "Invalid base64");
const CANCELLED: Reply = Reply::new(501, Status(5, 7, 0), "Authentication cancelled");
