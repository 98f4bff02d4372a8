//! One connection's dialogue, without sockets: bytes in, steps out.
//!
//! Purpose:   the three states of RFC 1939, login, STLS, limits, streaming of messages.
//! Driver:    see the crate's page. Commands run one at a time and in order, however they were pipelined.
//! Rules:     numbers are fixed when the maildrop is opened; DELE marks, and only [`Step::Update`] deletes, which only QUIT
//!            brings about: a session that ends in any other way deletes nothing (RFC 1939 §6).
//! Trust:     every byte fed is a client's; outcomes are the driver's.
//! Never:     take a password over a connection without TLS, obey bytes that came behind STLS in plain text, or
//!            delete but by QUIT.

mod types;

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

pub use types::{Code, Config, Limits, LoginFailure, LoginFailureCode, Outcome, Step, TlsState};

use crate::command::{Command, decode};
use crate::dots::DotWriter;
use crate::input::{Input, Line};
use crate::maildrop::{Maildrop, put_entry};
use crate::secret::Secret;

/// Long listings are sent in pieces of about this size.
const LISTING_PIECE: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Authorization,
    Transaction,
}

#[derive(Debug)]
enum Phase {
    /// Reading a command.
    Command,
    /// The driver works on a login.
    Verifying,
    /// The client owes an answer to a challenge.
    Challenged,
    /// The client owes the empty answer to the mechanism's last data.
    Final,
    /// The driver opens the maildrop.
    Opening,
    /// LIST or UIDL of everything; the next index.
    Listing { next: usize, uidl: bool },
    /// The driver opens a message.
    Fetching { index: usize, lines: Option<u32> },
    /// The driver sends a message.
    Sending(DotWriter),
    /// The driver deletes what is marked.
    Updating,
    /// The driver does the TLS handshake.
    Handshake,
    /// Nothing more.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    tls: TlsState,
    /// The timestamp of the greeting (RFC 1939 §7 on APOP).
    apop: Option<Box<str>>,
    state: State,
    phase: Phase,
    input: Input,
    out: Vec<u8>,
    step: Option<Step>,
    /// What USER said.
    user: Option<Vec<u8>>,
    maildrop: Maildrop,
    commands: u32,
    bad_in_a_row: u32,
    failures: u32,
    started: Instant,
    active: Instant,
}

impl Session {
    /// A new connection; the first step is the greeting.
    ///
    /// `apop`: the timestamp that APOP digests, `<…@…>`, if the authentication server can check one.
    #[must_use]
    pub fn new(config: Arc<Config>, tls: TlsState, apop: Option<&str>, now: Instant) -> Self {
        let apop = apop.filter(|text| text.len() < 200 && text.bytes().all(|byte| byte.is_ascii_graphic()));
        let mut session = Self {
            config,
            tls,
            apop: apop.map(Box::from),
            state: State::Authorization,
            phase: Phase::Command,
            input: Input::default(),
            out: Vec::new(),
            step: None,
            user: None,
            maildrop: Maildrop::default(),
            commands: 0,
            bad_in_a_row: 0,
            failures: 0,
            started: now,
            active: now,
        };
        let mut text = format!("{} Postern ready.", session.config.hostname);
        if let Some(timestamp) = &session.apop {
            text.push(' ');
            text.push_str(timestamp);
        }
        session.ok(&text);
        session
    }

    /// The rest of a session that logged in elsewhere, with its maildrop open: the first step is the +OK to the login.
    #[must_use]
    pub fn logged_in_elsewhere(config: Arc<Config>, maildrop: Maildrop, now: Instant) -> Self {
        let mut session = Self::new(config, TlsState::Active, None, now);
        session.out.clear();
        session.maildrop = maildrop;
        session.state = State::Transaction;
        session.ok("Logged in.");
        session
    }

    /// What the client sent ahead; nothing of it stays here.
    #[must_use]
    pub fn take_input(&mut self) -> Vec<u8> {
        self.input.take_all()
    }

    /// Takes bytes from the client.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.active = now;
        if !matches!(self.phase, Phase::Closed) {
            self.input.push(bytes);
        }
    }

    /// What to do next; `None`: feed more, or answer the step that is open.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Step> {
        loop {
            // Replies to pipelined commands are collected: one write for all of them (RFC 2449 §6.8).
            let collecting = matches!(self.phase, Phase::Command) && self.step.is_none();
            if !self.out.is_empty() && (!collecting || self.out.len() >= LISTING_PIECE) {
                return Some(Step::Send(std::mem::take(&mut self.out)));
            }
            if let Some(step) = self.step.take() {
                return Some(step);
            }
            if !self.advance() {
                return (!self.out.is_empty()).then(|| Step::Send(std::mem::take(&mut self.out)));
            }
        }
    }

    /// Does the session wait for bytes (and not for the driver)?
    #[must_use]
    pub fn wants_input(&self) -> bool {
        matches!(self.phase, Phase::Command | Phase::Challenged | Phase::Final | Phase::Listing { .. })
    }

    /// Has the client logged in, and is its maildrop open?
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.state == State::Transaction
    }

    /// When to call [`Session::expire`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.phase, self.state) {
            (Phase::Closed, _) => None,
            (_, State::Authorization) => Some(self.started + self.config.login_timeout),
            // The driver watches its own work and its writes.
            _ if !self.wants_input() => None,
            _ => Some(self.active + self.config.idle_timeout),
        }
    }

    /// The deadline may have passed.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        if self.state == State::Authorization {
            self.bye(None, "Login took too long, closing.");
        } else {
            // RFC 1939 §3: close without UPDATE and without a response.
            self.close();
        }
    }

    /// Ends the session from our side; nothing is deleted.
    pub fn bye(&mut self, code: Option<Code>, text: &str) {
        match self.phase {
            Phase::Closed => return,
            // The text would become part of a message or listing.
            Phase::Sending(_) | Phase::Listing { .. } => {}
            _ => self.err(code, text),
        }
        self.close();
    }

    /// The TLS handshake after STLS is done.
    pub fn tls_established(&mut self, now: Instant) {
        self.active = now;
        if matches!(self.phase, Phase::Handshake) {
            // RFC 2595 §4: what was learned without protection is forgotten.
            self.input.clear();
            self.user = None;
            self.commands = 0;
            self.bad_in_a_row = 0;
            self.tls = TlsState::Active;
            self.phase = Phase::Command;
        }
    }

    /// The driver's answer to an open step. An answer nobody asked for changes nothing.
    pub fn resume(&mut self, outcome: Outcome, now: Instant) {
        self.active = now;
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        match (phase, outcome) {
            (Phase::Verifying, Outcome::Challenge(data)) => {
                self.challenge(&data);
                self.phase = Phase::Challenged;
            }
            (Phase::Verifying, Outcome::LoggedIn(Some(data))) => {
                // RFC 5034 §4: the last data travels as a challenge, +OK cannot carry it.
                self.challenge(&data);
                self.phase = Phase::Final;
            }
            (Phase::Verifying, Outcome::LoggedIn(None)) => self.open(),
            (Phase::Verifying | Phase::Opening, Outcome::LoginFailed(failure)) => self.login_failed(&failure),
            (Phase::Opening, Outcome::Opened(maildrop)) => {
                self.maildrop = maildrop;
                self.state = State::Transaction;
                self.bad_in_a_row = 0;
                self.ok("Logged in.");
            }
            (Phase::Fetching { index, lines }, Outcome::Retrieving) => {
                match (lines, self.maildrop.at(index)) {
                    (None, Some(message)) => {
                        let text = format!("{} octets", message.size);
                        self.ok(&text);
                    }
                    _ => self.ok("Top of message follows."),
                }
                self.phase = Phase::Sending(lines.map_or_else(DotWriter::whole, DotWriter::top));
            }
            (Phase::Fetching { .. }, Outcome::Failed { code, text }) => self.err(code, &text),
            (Phase::Updating, Outcome::Updated { complete }) => {
                // RFC 1939 §6: an error here still ends the session.
                if complete {
                    self.ok("Logging out.");
                } else {
                    self.err(Some(Code::SysTemp), "Some deleted messages were not removed.");
                }
                self.close();
            }
            (Phase::Updating, Outcome::Failed { code, text }) => {
                self.err(code, &text);
                self.close();
            }
            (phase, _) => self.phase = phase,
        }
    }

    /// The next piece of the message's file, after [`Outcome::Retrieving`]. `false`: the rest is not wanted. Take
    /// [`Step::Send`] with [`Session::next`] in between: pieces are not held back.
    pub fn message(&mut self, piece: &[u8]) -> bool {
        let Phase::Sending(writer) = &mut self.phase else { return false };
        writer.write(piece, &mut self.out);
        !writer.is_done()
    }

    /// The message is complete.
    pub fn message_end(&mut self, now: Instant) {
        self.active = now;
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::Sending(writer) => writer.finish(&mut self.out),
            phase => self.phase = phase,
        }
    }

    /// The message cannot be completed: the connection ends, so that the client cannot take the part for the whole.
    pub fn message_abort(&mut self) {
        if matches!(self.phase, Phase::Sending(_)) {
            self.close();
        }
    }

    /// Moves on with what is in the buffer; false when nothing can be done.
    fn advance(&mut self) -> bool {
        match self.phase {
            Phase::Command => self.read_command(),
            Phase::Challenged | Phase::Final => self.read_response(),
            Phase::Listing { next, uidl } => {
                self.list_on(next, uidl);
                true
            }
            _ => false,
        }
    }

    fn read_command(&mut self) -> bool {
        let limits = &self.config.limits;
        let limit = if self.is_logged_in() { limits.line } else { limits.line_before_login };
        let mut line = match self.input.line(limit) {
            Line::Partial => return false,
            Line::Flood => {
                self.bye(None, "Line too long.");
                return true;
            }
            Line::TooLong => {
                self.bad("Line too long.");
                return true;
            }
            Line::Whole(line) => line,
        };
        self.commands = self.commands.saturating_add(1);
        if !self.is_logged_in() && self.commands > self.config.limits.commands_before_login {
            self.bye(None, "Too many commands before login.");
        } else {
            match Command::parse(&line) {
                Ok(command) => self.command(command),
                Err(bad) => self.bad(&bad.to_string()),
            }
        }
        line.zeroize();
        true
    }

    fn command(&mut self, command: Command) {
        // RFC 1939 §7: PASS may come only right after a successful USER.
        let user = self.user.take();
        let bad_before = self.bad_in_a_row;
        match (self.state, command) {
            (_, Command::Capa) => self.capabilities(),
            (State::Authorization, Command::Quit) => {
                self.ok("Logging out.");
                self.close();
            }
            (State::Authorization, Command::Stls) => self.start_tls(),
            (State::Authorization, Command::AuthList) => {
                self.ok("Mechanisms follow.");
                for mechanism in self.offered() {
                    self.out.extend_from_slice(mechanism.as_bytes());
                    self.out.extend_from_slice(b"\r\n");
                }
                self.out.extend_from_slice(b".\r\n");
            }
            (
                State::Authorization,
                Command::User(_) | Command::Pass(_) | Command::Apop { .. } | Command::Auth { .. },
            ) if self.tls != TlsState::Active => {
                // Refused unseen; the client should not try again without TLS.
                self.err(Some(Code::Auth), "Use TLS first.");
                self.count_bad();
            }
            (State::Authorization, Command::User(name)) => self.user_command(name),
            (State::Authorization, Command::Pass(password)) => match user {
                Some(user) => self.pass_command(&user, &password),
                None => self.bad("Send USER first."),
            },
            (State::Authorization, Command::Apop { user, digest }) => self.apop_command(&user, &digest),
            (State::Authorization, Command::Auth { mechanism, initial }) => {
                if self.offers(&mechanism) {
                    self.verify(mechanism, initial);
                } else {
                    self.bad("Unsupported mechanism.");
                }
            }
            (State::Transaction, Command::Stat) => {
                let text = format!("{} {}", self.maildrop.count(), self.maildrop.octets());
                self.ok(&text);
            }
            (State::Transaction, Command::List(number)) => self.list(number, false),
            (State::Transaction, Command::Uidl(number)) => self.list(number, true),
            (State::Transaction, Command::Retr(number)) => self.fetch(number, None),
            (State::Transaction, Command::Top(number, lines)) => self.fetch(number, Some(lines)),
            (State::Transaction, Command::Dele(number)) => match self.maildrop.numbered(number) {
                Some((index, _)) => {
                    self.maildrop.delete(index);
                    self.ok("Marked to be deleted.");
                }
                None => self.no_such_message(),
            },
            (State::Transaction, Command::Rset) => {
                self.maildrop.reset();
                self.ok("Marks removed.");
            }
            (State::Transaction, Command::Noop) => self.ok(""),
            (State::Transaction, Command::Quit) => {
                self.phase = Phase::Updating;
                self.step = Some(Step::Update { deleted: self.maildrop.marked() });
            }
            (State::Authorization, _) => self.bad("Log in first."),
            (State::Transaction, _) => self.bad("Not allowed after login."),
        }
        if self.bad_in_a_row == bad_before {
            self.bad_in_a_row = 0;
        }
    }

    fn start_tls(&mut self) {
        match self.tls {
            TlsState::Offered if !self.input.is_empty() => {
                // Bytes behind STLS were not protected by it: whoever sent them, they must not be obeyed.
                self.bye(None, "Nothing may follow STLS before TLS.");
            }
            TlsState::Offered => {
                self.ok("Begin TLS.");
                self.phase = Phase::Handshake;
                self.step = Some(Step::StartTls);
            }
            TlsState::Active => self.bad("TLS is active."),
            TlsState::Unavailable => self.bad("TLS is not available."),
        }
    }

    fn user_command(&mut self, name: Vec<u8>) {
        if self.offers("PLAIN") {
            self.user = Some(name);
            self.ok("");
        } else {
            self.bad("USER is not available.");
        }
    }

    /// USER and PASS are PLAIN (RFC 4616) to the driver.
    fn pass_command(&mut self, user: &[u8], password: &Secret) {
        // The parser lets no NUL through in either.
        let mut message = Vec::with_capacity(user.len() + password.expose().len() + 2);
        message.push(0);
        message.extend_from_slice(user);
        message.push(0);
        message.extend_from_slice(password.expose());
        self.verify("PLAIN".to_owned(), Some(Secret::new(message)));
    }

    /// APOP as the mechanism of Dovecot's protocol: timestamp NUL name NUL digest.
    fn apop_command(&mut self, user: &[u8], digest: &Secret) {
        let Some(timestamp) = &self.apop else {
            return self.bad("APOP is not available.");
        };
        let message = [timestamp.as_bytes(), b"\0", user, b"\0", digest.expose()].concat();
        self.verify("APOP".to_owned(), Some(Secret::new(message)));
    }

    fn verify(&mut self, mechanism: String, initial: Option<Secret>) {
        self.phase = Phase::Verifying;
        self.step = Some(Step::Authenticate { mechanism, initial });
    }

    fn open(&mut self) {
        self.phase = Phase::Opening;
        self.step = Some(Step::Open);
    }

    fn read_response(&mut self) -> bool {
        let mut line = match self.input.line(self.config.limits.response) {
            Line::Partial => return false,
            Line::TooLong | Line::Flood => {
                self.step = Some(Step::CancelAuthentication);
                self.phase = Phase::Command;
                self.bye(None, "Authentication response too long.");
                return true;
            }
            Line::Whole(line) => line,
        };
        let challenged = matches!(self.phase, Phase::Challenged);
        self.phase = Phase::Command;
        match decode(&line) {
            Ok(answer) if challenged => {
                self.phase = Phase::Verifying;
                self.step = Some(Step::Respond(answer));
            }
            Ok(answer) if answer.expose().is_empty() => self.open(),
            // RFC 5034 §4: `*` gives the exchange up.
            _ => {
                self.step = Some(Step::CancelAuthentication);
                let text = if line == b"*" { "Authentication cancelled." } else { "Invalid response." };
                self.err(None, text);
                self.count_bad();
            }
        }
        line.zeroize();
        true
    }

    fn login_failed(&mut self, failure: &LoginFailure) {
        let (code, text) = match failure.code {
            LoginFailureCode::Credentials => (Some(Code::Auth), "Authentication failed."),
            LoginFailureCode::Authorization => (Some(Code::Auth), "Authorization failed."),
            LoginFailureCode::Expired => (Some(Code::Auth), "Password has expired."),
            LoginFailureCode::Disabled => (Some(Code::Auth), "Account is disabled."),
            LoginFailureCode::Unavailable => (Some(Code::SysTemp), "Temporary authentication failure."),
            LoginFailureCode::Malformed => (None, "Invalid authentication exchange."),
            LoginFailureCode::InUse => (Some(Code::InUse), "The mailbox is in use by another session."),
            LoginFailureCode::TooSoon => (Some(Code::LoginDelay), "Logging in too often."),
            LoginFailureCode::Mailbox => (Some(Code::SysTemp), "The mailbox cannot be opened."),
            LoginFailureCode::MailboxBroken => (Some(Code::SysPerm), "The mailbox cannot be opened."),
        };
        let text = if failure.text.is_empty() { text } else { &failure.text };
        self.err(code, text);
        // What is no doubt about the credentials is not the client's fault.
        if matches!(code, Some(Code::Auth) | None) {
            self.failures += 1;
            if self.failures >= self.config.limits.auth_failures {
                self.close();
            }
        }
    }

    fn list(&mut self, number: Option<u32>, uidl: bool) {
        let Some(number) = number else {
            if uidl {
                self.ok("");
            } else {
                let text = format!("{} messages ({} octets)", self.maildrop.count(), self.maildrop.octets());
                self.ok(&text);
            }
            self.phase = Phase::Listing { next: 0, uidl };
            return;
        };
        match self.maildrop.numbered(number) {
            Some((index, message)) => {
                let mut line = String::from("+OK ");
                put_entry(&mut line, index + 1, message, uidl);
                self.out.extend_from_slice(line.as_bytes());
            }
            None => self.no_such_message(),
        }
    }

    /// Writes the next piece of a listing.
    fn list_on(&mut self, mut next: usize, uidl: bool) {
        let mut text = String::with_capacity(LISTING_PIECE + 128);
        while next < self.maildrop.len() && text.len() < LISTING_PIECE {
            if let Some(message) = self.maildrop.at(next) {
                put_entry(&mut text, next + 1, message, uidl);
            }
            next += 1;
        }
        if next == self.maildrop.len() {
            text.push_str(".\r\n");
            self.phase = Phase::Command;
        } else {
            self.phase = Phase::Listing { next, uidl };
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    fn fetch(&mut self, number: u32, lines: Option<u32>) {
        match self.maildrop.numbered(number) {
            Some((index, _)) => {
                self.phase = Phase::Fetching { index, lines };
                self.step = Some(Step::Retrieve { index, lines });
            }
            None => self.no_such_message(),
        }
    }

    /// What is whole, and nothing else (RFC 2449 §6).
    fn capabilities(&mut self) {
        let mut text = String::from("+OK\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\n");
        if self.offers("PLAIN") {
            text.push_str("USER\r\n");
        }
        let offered = self.offered();
        if !offered.is_empty() {
            text.push_str("SASL ");
            text.push_str(&offered.join(" "));
            text.push_str("\r\n");
        }
        if self.tls == TlsState::Offered && !self.is_logged_in() {
            text.push_str("STLS\r\n");
        }
        if let Some(seconds) = self.config.login_delay {
            text.push_str(&format!("LOGIN-DELAY {seconds}\r\n"));
        }
        text.push_str("IMPLEMENTATION Postern\r\n.\r\n");
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Mechanisms that may be used now: none without TLS.
    fn offered(&self) -> Vec<String> {
        if self.tls == TlsState::Active { self.config.mechanisms.clone() } else { Vec::new() }
    }

    fn offers(&self, mechanism: &str) -> bool {
        self.tls == TlsState::Active && self.config.mechanisms.iter().any(|known| known == mechanism)
    }

    fn challenge(&mut self, data: &[u8]) {
        // The space stays even if nothing follows.
        self.out.extend_from_slice(b"+ ");
        self.out.extend_from_slice(STANDARD.encode(data).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn ok(&mut self, text: &str) {
        self.reply("+OK", None, text);
    }

    fn err(&mut self, code: Option<Code>, text: &str) {
        self.reply("-ERR", code, text);
    }

    /// One status line of at most 512 octets (RFC 2449 §4); what comes from elsewhere cannot break it.
    fn reply(&mut self, word: &str, code: Option<Code>, text: &str) {
        self.out.extend_from_slice(word.as_bytes());
        if let Some(code) = code {
            self.out.extend_from_slice(b" [");
            self.out.extend_from_slice(code.as_str().as_bytes());
            self.out.push(b']');
        }
        if !text.is_empty() {
            self.out.push(b' ');
            let clean = |byte: u8| if byte < b' ' || byte == 0x7F { b' ' } else { byte };
            self.out.extend(text.bytes().take(480).map(clean));
        }
        self.out.extend_from_slice(b"\r\n");
    }

    fn no_such_message(&mut self) {
        self.err(None, "There is no such message.");
    }

    fn bad(&mut self, text: &str) {
        self.err(None, text);
        self.count_bad();
    }

    fn count_bad(&mut self) {
        self.bad_in_a_row += 1;
        let limits = &self.config.limits;
        let most = if self.is_logged_in() { limits.bad } else { limits.bad_before_login };
        if self.bad_in_a_row >= most {
            self.bye(None, "Too many invalid commands.");
        }
    }

    fn close(&mut self) {
        self.input.clear();
        self.user = None;
        self.phase = Phase::Closed;
        self.step = Some(Step::Close);
    }
}

#[cfg(test)]
mod tests;
