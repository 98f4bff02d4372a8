//! The server's side of one SMTP or LMTP connection.
//!
//! Purpose:   decides what every byte of a client means and what is answered; asks the driver for verdicts.
//! Standard:  RFC 5321 (sequence §4.1.4, state after each command §3 and §4.1.1), RFC 2033, 2920, 3207, 4954.
//! Driver:    `feed` bytes, then call `next` until it gives `None`. A step marked *answer* stops the session until
//!            `resume`. `None` means: more bytes are wanted, or an answer, or (after `Close`) nothing any more.
//! Trust:     every byte fed is a client's; outcomes are the driver's.
//! Never:     reads a byte behind STARTTLS as a command; carries a sender or recipient over EHLO, RSET, STARTTLS or
//!            the end of data; keeps more than one line and one piece of data.

mod auth;
mod config;
mod data;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use config::{Config, Kind, Outcome, Step};

use self::data::Receiving;
use crate::command::{ClientName, CommandLine, MailCommand, RcptCommand, SyntaxError, Verb};
use crate::line::{Input, Line};
use crate::reply::{Reply, Status};

/// Time for the TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(60);
/// Time a submission client has from its first byte to a successful AUTH.
const LOGIN_TIME: Duration = Duration::from_secs(300);
/// Commands without progress (NOOP, RSET, VRFY …) before each further one counts as an error.
const IDLE_COMMANDS: u32 = 100;

/// State of one connection. See the module header for how to drive it.
pub struct Session {
    config: Arc<Config>,
    input: Input,
    steps: VecDeque<Step>,
    phase: Phase,
    now: Instant,
    deadline: Instant,
    /// Until when a submission client must have logged in.
    login_by: Instant,
    hello: Option<Hello>,
    secured: bool,
    authenticated: bool,
    mechanisms: Vec<String>,
    transaction: Option<Transaction>,
    stopping: bool,
    errors: u32,
    idle_commands: u32,
    auth_failures: u32,
    refused_recipients: u32,
}

struct Hello {
    name: ClientName,
    /// EHLO or LHLO, not HELO.
    extended: bool,
}

/// What MAIL began.
#[derive(Default)]
struct Transaction {
    smtputf8: bool,
    recipients: u32,
}

enum Phase {
    /// Between commands.
    Command,
    /// Inside AUTH, waiting for the client's response.
    AuthResponse(auth::Exchange),
    /// Waiting for the driver.
    Waiting(Question),
    /// STARTTLS was answered; no byte is read until the driver reports the handshake.
    Handshake,
    /// Between DATA and CRLF.CRLF.
    Data(Receiving),
    Closed,
}

enum Question {
    Auth,
    Mail { smtputf8: bool },
    Rcpt,
    Data,
    Message,
}

impl Session {
    /// A new connection. `secured` when TLS was there before the first byte. The greeting is the first step.
    pub fn new(config: Arc<Config>, secured: bool, now: Instant) -> Self {
        let greeting = match config.kind {
            Kind::Lmtp => format!("{} LMTP Postern", config.hostname),
            Kind::Inbound | Kind::Submission => format!("{} ESMTP Postern", config.hostname),
        };
        let mut session = Self {
            deadline: now,
            login_by: now + LOGIN_TIME,
            now,
            config,
            input: Input::default(),
            steps: VecDeque::new(),
            phase: Phase::Command,
            hello: None,
            secured,
            authenticated: false,
            mechanisms: Vec::new(),
            transaction: None,
            stopping: false,
            errors: 0,
            idle_commands: 0,
            auth_failures: 0,
            refused_recipients: 0,
        };
        session.reply(&Reply::plain(220, greeting));
        session.wait_for_command();
        session
    }

    /// The SASL mechanisms to announce and accept. May be called at any time; counts from the next EHLO or AUTH.
    pub fn set_mechanisms(&mut self, names: impl IntoIterator<Item = String>) {
        self.mechanisms = names.into_iter().map(|name| name.to_ascii_uppercase()).collect();
    }

    /// Adds bytes from the client. Call it only when `next` gave `None` and [`Session::wants_input`] holds.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.now = now;
        match &mut self.phase {
            Phase::Closed | Phase::Handshake => return,
            Phase::Data(receiving) => self.deadline = receiving.deadline(now, self.config.timeout),
            Phase::Command | Phase::AuthResponse(_) | Phase::Waiting(_) => {}
        }
        self.input.push(bytes);
    }

    /// Whether more bytes are what the session waits for.
    pub fn wants_input(&self) -> bool {
        self.steps.is_empty()
            && matches!(self.phase, Phase::Command | Phase::AuthResponse(_) | Phase::Data(_))
    }

    /// When [`Session::expire`] is due, unless something happens before.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to do next.
    #[allow(clippy::should_implement_trait)] // Not an iterator: `None` is not the end.
    pub fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Some(step);
            }
            match self.phase {
                Phase::Closed | Phase::Waiting(_) | Phase::Handshake => return None,
                Phase::Command if self.stopping => self.close(&STOPPING),
                Phase::AuthResponse(_) if self.stopping => {
                    self.steps.push_back(Step::AuthCancelled);
                    self.close(&STOPPING);
                }
                Phase::Command => {
                    let line = self.input.line(false)?;
                    self.command_line(line);
                }
                Phase::AuthResponse(_) => {
                    let line = self.input.line(true)?;
                    self.auth_line(line);
                }
                Phase::Data(_) if self.input.is_empty() => return None,
                Phase::Data(_) => self.data(),
            }
        }
    }

    /// The driver's answer to the step that asked. An answer that does not fit is a fault of the driver; the
    /// client gets 421 and the session ends, which loses nothing.
    pub fn resume(&mut self, outcome: Outcome, now: Instant) {
        self.now = now;
        let Phase::Waiting(question) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return self.close(&FAULT);
        };
        self.wait_for_command();
        match (question, outcome) {
            (Question::Auth, outcome) => self.auth_outcome(outcome),
            (Question::Mail { smtputf8 }, outcome) => match outcome.into_reply(&SENDER_OK) {
                Some(reply) => self.mail_answered(smtputf8, &reply),
                None => self.close(&FAULT),
            },
            (Question::Rcpt, outcome) => match outcome.into_reply(&RECIPIENT_OK) {
                Some(reply) => self.rcpt_answered(&reply),
                None => self.close(&FAULT),
            },
            (Question::Data, outcome) => match outcome.into_reply(&GO_ON) {
                Some(reply) => self.data_answered(&reply),
                None => self.close(&FAULT),
            },
            (Question::Message, outcome) => self.message_answered(outcome),
        }
    }

    /// The TLS handshake after [`Step::StartTls`] is done. RFC 3207 §4.2: nothing learned before counts.
    pub fn tls_started(&mut self, now: Instant) {
        self.now = now;
        if !matches!(self.phase, Phase::Handshake) {
            return self.close(&FAULT);
        }
        self.input.clear();
        self.hello = None;
        self.transaction = None;
        self.authenticated = false;
        self.secured = true;
        self.phase = Phase::Command;
        self.wait_for_command();
    }

    /// The deadline has passed.
    pub fn expire(&mut self) {
        match self.phase {
            // The client is in the middle of a handshake: nothing can be said.
            Phase::Handshake => self.finish(),
            Phase::Closed => {}
            _ => self.close(&TIMEOUT),
        }
    }

    /// The server stops: 421 at the next command boundary.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether a message is coming in: larger reads pay off.
    pub fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Data(_))
    }

    /// How many mistakes the client has made.
    pub fn mistakes(&self) -> u32 {
        self.errors
    }

    /// What the client called itself.
    pub fn client_name(&self) -> Option<&ClientName> {
        self.hello.as_ref().map(|hello| &hello.name)
    }

    /// Whether TLS is on.
    pub fn is_secured(&self) -> bool {
        self.secured
    }

    /// Whether AUTH succeeded.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// The keyword for the `with` clause of `Received:` (RFC 3848, RFC 6531 §4.3).
    pub fn protocol(&self) -> String {
        let utf8 = self.transaction.as_ref().is_some_and(|transaction| transaction.smtputf8);
        let extended = self.hello.as_ref().is_some_and(|hello| hello.extended);
        let base = match (self.config.kind, utf8, extended) {
            (Kind::Lmtp, true, _) => "UTF8LMTP",
            (Kind::Lmtp, false, _) => "LMTP",
            (_, true, _) => "UTF8SMTP",
            (_, false, true) => "ESMTP",
            (_, false, false) => "SMTP",
        };
        // RFC 3848 knows no suffixed form of plain SMTP.
        let secured = if self.secured && base != "SMTP" { "S" } else { "" };
        let authenticated = if self.authenticated && base != "SMTP" { "A" } else { "" };
        format!("{base}{secured}{authenticated}")
    }

    fn reply(&mut self, reply: &Reply) {
        if let Some(Step::Reply(bytes)) = self.steps.back_mut() {
            reply.write_to(bytes);
        } else {
            self.steps.push_back(Step::Reply(reply.to_bytes()));
        }
    }

    /// A client's mistake: counted, and too many end the connection (the last one is answered with 421).
    fn mistake(&mut self, reply: &Reply) {
        self.errors += 1;
        if self.errors >= self.config.max_bad_commands {
            self.close(&TOO_MANY_ERRORS);
        } else {
            self.reply(reply);
        }
    }

    /// Says a last word and ends.
    fn close(&mut self, reply: &Reply) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.reset_transaction();
        self.reply(reply);
        self.finish();
    }

    fn finish(&mut self) {
        self.phase = Phase::Closed;
        self.input.clear();
        self.steps.push_back(Step::Close);
    }

    fn ask(&mut self, question: Question, step: Step) {
        self.phase = Phase::Waiting(question);
        self.steps.push_back(step);
    }

    fn reset_transaction(&mut self) {
        if self.transaction.take().is_some() {
            self.steps.push_back(Step::Reset);
        }
    }

    fn wait_for_command(&mut self) {
        let command_by = self.now + self.config.timeout;
        let must_log_in = self.config.kind == Kind::Submission && !self.authenticated;
        self.deadline = if must_log_in { command_by.min(self.login_by) } else { command_by };
    }

    fn command_line(&mut self, line: Line) {
        self.wait_for_command();
        let Line::Text { bytes, crlf } = line else {
            return self.mistake(&LINE_TOO_LONG);
        };
        let bytes = zeroize::Zeroizing::new(bytes);
        match CommandLine::parse(&bytes) {
            // The two commands behind which bytes change their meaning must end exactly as the RFC says
            // (RFC 5321 §2.3.8); elsewhere a bare LF, as people type it, harms nobody.
            Ok(command) if !crlf && matches!(command.verb, Verb::Data | Verb::StartTls) => {
                self.mistake(&BARE_LF);
            }
            Ok(command) => {
                if let Err(error) = self.command(command) {
                    self.mistake(&error.reply());
                }
            }
            Err(error) => self.mistake(&error.reply()),
        }
    }

    fn command(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        if matches!(
            command.verb,
            Verb::Rset | Verb::Noop | Verb::Help | Verb::Vrfy | Verb::Ehlo | Verb::Helo | Verb::Lhlo
        ) {
            self.idle_commands += 1;
            if self.idle_commands > IDLE_COMMANDS {
                self.errors += 1;
                if self.errors >= self.config.max_bad_commands {
                    self.close(&TOO_MANY_ERRORS);
                    return Ok(());
                }
            }
        }
        let lmtp = self.config.kind == Kind::Lmtp;
        match command.verb {
            Verb::Lhlo if lmtp => self.hello(command, true)?,
            Verb::Ehlo if !lmtp => self.hello(command, true)?,
            Verb::Helo if !lmtp => self.hello(command, false)?,
            Verb::StartTls => self.start_tls(command)?,
            Verb::Auth => self.auth(command)?,
            Verb::Mail => self.mail(command)?,
            Verb::Rcpt => self.rcpt(command)?,
            Verb::Data => self.data_command(command)?,
            Verb::Rset => {
                command.no_arguments()?;
                self.reset_transaction();
                self.reply(&OK);
            }
            Verb::Noop => self.reply(&OK),
            Verb::Quit => {
                command.no_arguments()?;
                self.close(&BYE);
            }
            Verb::Help => self.reply(&Reply::new(214, Status(2, 0, 0), self.config.help())),
            Verb::Vrfy if command.arguments.is_empty() => return Err(SyntaxError::MissingArgument),
            // RFC 5321 §3.5.3: an address is neither confirmed nor denied.
            Verb::Vrfy => self.reply(&VRFY),
            Verb::Expn => self.mistake(&NOT_IMPLEMENTED),
            Verb::Foreign => self.close(&FOREIGN),
            Verb::Ehlo | Verb::Helo | Verb::Lhlo | Verb::Unknown => self.mistake(&UNKNOWN),
        }
        Ok(())
    }

    fn hello(&mut self, command: CommandLine<'_>, extended: bool) -> Result<(), SyntaxError> {
        // RFC 5321 §4.1.4: a refused EHLO leaves everything as it was.
        let name = ClientName::try_from(command.arguments)?;
        self.reset_transaction();
        self.hello = Some(Hello { name, extended });
        let mut reply = Reply::plain(250, self.config.hostname.clone());
        if extended {
            reply = reply.line("PIPELINING").line(format!("SIZE {}", self.config.max_message_size));
            if self.config.starttls && !self.secured {
                reply = reply.line("STARTTLS");
            }
            if self.may_authenticate() && !self.mechanisms.is_empty() {
                reply = reply.line(format!("AUTH {}", self.mechanisms.join(" ")));
            }
            reply = reply.line("8BITMIME").line("SMTPUTF8").line("ENHANCEDSTATUSCODES");
        }
        self.reply(&reply);
        Ok(())
    }

    fn start_tls(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        command.no_arguments()?;
        if self.secured {
            self.mistake(&Reply::new(503, Status(5, 5, 1), "TLS is already active"));
        } else if !self.config.starttls {
            self.mistake(&NOT_IMPLEMENTED);
        } else if !self.input.is_empty() {
            // Whoever sent them could not have seen our answer; inside TLS they would be read as the client's.
            self.close(&Reply::new(554, Status(5, 5, 1), "Bytes behind STARTTLS; closing connection"));
        } else {
            self.reset_transaction();
            self.reply(&Reply::new(220, Status(2, 0, 0), "Ready to start TLS"));
            self.steps.push_back(Step::StartTls);
            self.phase = Phase::Handshake;
            self.deadline = self.now + HANDSHAKE_TIME;
        }
        Ok(())
    }

    fn mail(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        if self.hello.is_none() {
            self.mistake(&HELLO_FIRST);
            return Ok(());
        }
        if self.config.kind == Kind::Submission && !self.authenticated {
            let reply = if self.secured { &AUTH_FIRST } else { &TLS_FIRST };
            self.mistake(reply);
            return Ok(());
        }
        if self.transaction.is_some() {
            self.mistake(&Reply::new(503, Status(5, 5, 1), "Nested MAIL command"));
            return Ok(());
        }
        let mail = MailCommand::parse(command.arguments, self.config.kind == Kind::Submission)?;
        if mail.parameters.size.is_some_and(|size| size > self.config.max_message_size) {
            // RFC 1870 §6.1
            self.reply(&data::TOO_BIG);
            return Ok(());
        }
        let smtputf8 = mail.parameters.smtputf8;
        self.ask(Question::Mail { smtputf8 }, Step::Mail(mail));
        Ok(())
    }

    fn mail_answered(&mut self, smtputf8: bool, reply: &Reply) {
        if reply.is_positive() {
            self.transaction = Some(Transaction { smtputf8, recipients: 0 });
        }
        self.reply(reply);
    }

    fn rcpt(&mut self, command: CommandLine<'_>) -> Result<(), SyntaxError> {
        let Some(transaction) = &self.transaction else {
            self.mistake(&Reply::new(503, Status(5, 5, 1), "MAIL first"));
            return Ok(());
        };
        let rcpt = RcptCommand::parse(command.arguments, transaction.smtputf8)?;
        if transaction.recipients >= self.config.max_recipients {
            // RFC 5321 §4.5.3.1.10
            self.reply(&Reply::new(452, Status(4, 5, 3), "Too many recipients"));
            return Ok(());
        }
        self.ask(Question::Rcpt, Step::Rcpt(rcpt.to));
        Ok(())
    }

    fn rcpt_answered(&mut self, reply: &Reply) {
        if reply.is_positive() {
            if let Some(transaction) = &mut self.transaction {
                transaction.recipients += 1;
            }
        } else if reply.code() >= 500 {
            // Guessing addresses has a cap of its own, so that one big list with dead entries still goes through.
            self.refused_recipients += 1;
            if self.refused_recipients > self.config.max_refused_recipients() {
                return self.close(&TOO_MANY_ERRORS);
            }
        }
        self.reply(reply);
    }
}

const OK: Reply = Reply::new(250, Status(2, 0, 0), "Ok");
const SENDER_OK: Reply = Reply::new(250, Status(2, 1, 0), "Ok");
const RECIPIENT_OK: Reply = Reply::new(250, Status(2, 1, 5), "Ok");
const GO_ON: Reply = Reply::new(354, Status(2, 0, 0), "");
const BYE: Reply = Reply::new(221, Status(2, 0, 0), "Bye");
const VRFY: Reply = Reply::new(252, Status(2, 5, 0), "Cannot verify, but will accept the message and try");
const UNKNOWN: Reply = Reply::new(500, Status(5, 5, 1), "Command not recognized");
const NOT_IMPLEMENTED: Reply = Reply::new(502, Status(5, 5, 1), "Command not implemented");
const LINE_TOO_LONG: Reply = Reply::new(500, Status(5, 5, 2), "Line too long");
const BARE_LF: Reply = Reply::new(500, Status(5, 5, 2), "Line must end with CRLF");
const HELLO_FIRST: Reply = Reply::new(503, Status(5, 5, 1), "Say hello first");
const TLS_FIRST: Reply = Reply::new(530, Status(5, 7, 0), "Must issue a STARTTLS command first");
const AUTH_FIRST: Reply = Reply::new(530, Status(5, 7, 0), "Authentication required");
const FOREIGN: Reply = Reply::new(421, Status(4, 7, 0), "This is a mail server");
const TOO_MANY_ERRORS: Reply = Reply::new(421, Status(4, 7, 0), "Too many errors");
const TIMEOUT: Reply = Reply::new(421, Status(4, 4, 2), "Timeout");
const STOPPING: Reply = Reply::new(421, Status(4, 3, 2), "Service shutting down");
const FAULT: Reply = Reply::new(421, Status(4, 3, 0), "Internal error");
