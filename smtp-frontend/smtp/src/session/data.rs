//! The part of a session between DATA and the answer to the message.
//!
//! Trust: every byte is a client's; what comes after a refusal is counted and not kept.
//! Never: read bytes behind a refused DATA as commands, or take a missing answer for success.

use std::time::{Duration, Instant};

use super::config::Kind;
use super::{FAULT, HELLO_FIRST, Outcome, Phase, Question, Session, Step};
use crate::command::{CommandLine, SyntaxError};
use crate::data::{BareNewline, Decoder, Violation};
use crate::reply::{Reply, Status};

/// Longest time one message may take, however steadily it drips in.
const MESSAGE_TIME: Duration = Duration::from_secs(3600);

pub(super) const TOO_BIG: Reply = Reply::new(552, Status(5, 3, 4), "Message is too big");

/// A message that is coming in.
pub(super) struct Receiving {
    decoder: Decoder,
    until: Instant,
    size: u64,
    /// Raw bytes read after the message was refused.
    discarded: u64,
    /// Why the message will be refused once its end is there.
    refusal: Option<Reply>,
}

impl Receiving {
    pub(super) fn deadline(&self, now: Instant, timeout: Duration) -> Instant {
        (now + timeout).min(self.until)
    }
}

impl Session {
    pub(super) fn data_command(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        command.no_arguments()?;
        let refusal = match &self.transaction {
            None if self.hello.is_none() => HELLO_FIRST,
            None => Reply::new(503, Status(5, 5, 1), "MAIL and RCPT first"),
            // RFC 2033 §4.2 wants 503 here, RFC 5321 §3.3 allows it.
            Some(transaction) if transaction.recipients == 0 => {
                let code = if self.config.kind == Kind::Lmtp { 503 } else { 554 };
                Reply::new(code, Status(5, 5, 1), "No valid recipients")
            }
            Some(_) => {
                self.ask(Question::Data, Step::Data);
                return Ok(());
            }
        };
        self.refuse_data(&refusal);
        Ok(())
    }

    /// DATA is not possible. RFC 2920 §3.1: DATA ends a pipelined group, so bytes behind it are a message sent
    /// without waiting; reading that as commands would let its author speak for the client.
    fn refuse_data(&mut self, refusal: &Reply) {
        if self.input.is_empty() {
            self.mistake(refusal);
        } else {
            self.close(refusal);
        }
    }

    pub(super) fn data_answered(&mut self, reply: &Reply) {
        if !reply.is_positive() {
            return self.refuse_data(reply);
        }
        self.reply(&Reply::plain(354, "End data with <CR><LF>.<CR><LF>"));
        let receiving = Receiving {
            decoder: Decoder::default(),
            until: self.now + MESSAGE_TIME,
            size: 0,
            discarded: 0,
            refusal: None,
        };
        self.deadline = receiving.deadline(self.now, self.config.timeout);
        self.phase = Phase::Data(receiving);
    }

    /// Reads the data that waits.
    pub(super) fn data(&mut self) {
        let Phase::Data(receiving) = &mut self.phase else { return };
        let piece = self.input.take();
        let mut message = Vec::with_capacity(piece.len());
        let chunk = receiving.decoder.decode(&piece, &mut message);
        receiving.size = receiving.size.saturating_add(message.len() as u64);
        let violation =
            receiving.decoder.violation().filter(|_| self.config.bare_newline == BareNewline::Reject);
        let refused_before = receiving.refusal.is_some();
        if refused_before {
            receiving.discarded = receiving.discarded.saturating_add(chunk.consumed as u64);
        } else if let Some(violation) = violation {
            receiving.refusal = Some(violation_reply(violation));
        } else if receiving.size > self.config.max_message_size {
            receiving.refusal = Some(TOO_BIG);
        }
        let refusal = receiving.refusal.clone();
        let endless =
            receiving.discarded > self.config.max_message_size.saturating_mul(2).saturating_add(1 << 20);
        self.input.push(piece.get(chunk.consumed..).unwrap_or_default());
        match refusal {
            None => {
                if !message.is_empty() {
                    self.steps.push_back(Step::Body(message));
                }
                if chunk.ended {
                    self.ask(Question::Message, Step::Message);
                }
            }
            Some(reply) => {
                if !refused_before {
                    // Nothing of it is kept from here on; its end must still be found.
                    self.steps.push_back(Step::Reset);
                }
                if chunk.ended {
                    self.message_refused(&reply);
                } else if endless {
                    self.transaction = None;
                    self.close(&reply);
                }
            }
        }
    }

    /// The end of a message the session itself refuses; the driver was told at once by [`Step::Reset`].
    fn message_refused(&mut self, reply: &Reply) {
        let recipients = self.end_transaction();
        self.wait_for_command();
        self.errors += 1;
        for _ in 0..recipients {
            self.reply(reply);
        }
        if self.errors >= self.config.max_bad_commands {
            self.close(&super::TOO_MANY_ERRORS);
        }
    }

    pub(super) fn message_answered(&mut self, outcome: Outcome) {
        let recipients = self.end_transaction();
        let (replies, each) = match outcome {
            Outcome::Accept => (vec![super::OK], false),
            Outcome::Reply(reply) => (vec![reply], false),
            Outcome::Each(replies) if self.config.kind == Kind::Lmtp => (replies, true),
            Outcome::Each(_) | Outcome::Challenge(_) | Outcome::Authenticated { .. } => {
                return self.close(&FAULT);
            }
        };
        if replies.iter().any(Reply::is_positive) {
            self.idle_commands = 0;
        }
        // RFC 2033 §4.2: exactly one reply per accepted recipient. A missing one must not read as success.
        let missing = Reply::new(451, Status(4, 3, 0), "No result for this recipient");
        for index in 0..recipients {
            self.reply(replies.get(if each { index } else { 0 }).unwrap_or(&missing));
        }
    }

    /// RFC 5321 §4.1.1.4: after the end of data all buffers are cleared, whatever the answer. Gives the number of
    /// replies due.
    fn end_transaction(&mut self) -> usize {
        self.phase = Phase::Command;
        let transaction = self.transaction.take().unwrap_or_default();
        let lmtp = self.config.kind == Kind::Lmtp;
        if lmtp { usize::try_from(transaction.recipients).unwrap_or(1) } else { 1 }
    }
}

fn violation_reply(violation: Violation) -> Reply {
    let text = match violation {
        Violation::BareLf => "Message contains a bare LF; lines must end with CRLF",
        Violation::BareCr => "Message contains a bare CR; lines must end with CRLF",
    };
    Reply::new(550, Status(5, 5, 2), text)
}
