//! One connection's dialogue, without sockets: bytes in, steps out.
//!
//! Purpose:   framing (lines and literals), limits, login, STARTTLS, IDLE, APPEND streaming, state checks.
//! Driver:    calls [`Session::next`] until it is empty, does what each [`Step`] says, answers those that
//!            need it by [`Session::resume`], and feeds more bytes only then. Commands run one at a time,
//!            in their order, so that no pipelined command can renumber messages under another.
//! Trust:     every byte fed is a client's; outcomes are the driver's.
//! Never:     look at a password, or take one over a connection without TLS.

mod input;
mod types;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

use crate::command::{AppendHead, Command, Tag};
use crate::parse::{Problem, Rejected, parse};
use crate::response::{Code, Completion, Response, Status, Transition, put_id, put_status};
use crate::secret::Secret;
use input::Input;
pub use types::{Config, Limits, LoginFailure, LoginFailureCode, Outcome, Step, TlsState};

/// `* OK Still here` while a client idles: keeps NAT tables warm and finds dead peers.
const KEEPALIVE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    NotAuthenticated,
    Authenticated,
    Selected,
    Logout,
}

#[derive(Debug)]
enum Phase {
    /// Reading a command.
    Command,
    /// Throwing away a refused command; `left` octets of the current literal, then the rest of its lines.
    Skip { left: u64, reply: Vec<u8> },
    /// The driver works on a login.
    Verifying { tag: Tag },
    /// The client owes an answer to a challenge.
    Challenged { tag: Tag },
    /// The client owes the empty answer to the mechanism's last data.
    Final { tag: Tag },
    /// The driver runs a command.
    Running { tag: Tag },
    /// The driver decides about an APPEND.
    Deciding { tag: Tag, size: u64, non_sync: bool },
    /// The message comes in.
    Appending { tag: Tag, left: u64 },
    /// The line end behind the message.
    AppendTail { tag: Tag },
    /// IDLE; `asked`: something other than DONE came.
    Idling { tag: Tag },
    /// IDLE is over; the driver pushes what is left.
    IdleEnding { tag: Tag, bad: bool },
    /// The driver hands the session over.
    HandingOver { tag: Tag },
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
    state: State,
    phase: Phase,
    input: Input,
    out: Vec<u8>,
    step: Option<Step>,
    commands: u32,
    bad_in_a_row: u32,
    failures: u32,
    started: Instant,
    active: Instant,
    keepalive: Instant,
    hands_over: bool,
}

impl Session {
    /// A new connection; the first step is the greeting.
    #[must_use]
    pub fn new(config: Arc<Config>, tls: TlsState, now: Instant) -> Self {
        let mut session = Self {
            config,
            tls,
            state: State::NotAuthenticated,
            phase: Phase::Command,
            input: Input::default(),
            out: Vec::new(),
            step: None,
            commands: 0,
            bad_in_a_row: 0,
            failures: 0,
            started: now,
            active: now,
            keepalive: now,
            hands_over: false,
        };
        let capability = Some(Code::Capability(session.capability()));
        let text = format!("{} Postern ready.", session.config.hostname);
        put_status(&mut session.out, "*", Status::Ok, capability.as_ref(), &text);
        session
    }

    /// The rest of a session that logged in elsewhere (there, [`Step::HandOver`] told the tag): the first step is the
    /// tagged OK.
    #[must_use]
    pub fn logged_in_elsewhere(config: Arc<Config>, tag: &Tag, now: Instant) -> Self {
        let mut session = Self::new(config, TlsState::Active, now);
        session.out.clear();
        session.logged_in(tag);
        session
    }

    /// Logins end with [`Step::HandOver`] in place of the tagged OK.
    pub fn hand_over_logins(&mut self) {
        self.hands_over = true;
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
    #[expect(clippy::should_implement_trait, reason = "not an iterator: `None` means feed me")]
    pub fn next(&mut self) -> Option<Step> {
        loop {
            if !self.out.is_empty() {
                return Some(Step::Send(std::mem::take(&mut self.out)));
            }
            if let Some(step) = self.step.take() {
                return Some(step);
            }
            if !self.advance() {
                self.input.shrink();
                return None;
            }
        }
    }

    /// Does the session wait for bytes (and not for the driver)?
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Verifying { .. }
                | Phase::Running { .. }
                | Phase::Deciding { .. }
                | Phase::IdleEnding { .. }
                | Phase::HandingOver { .. }
                | Phase::Handshake
                | Phase::Closed
        )
    }

    /// Is the client in IDLE?
    #[must_use]
    pub fn is_idling(&self) -> bool {
        matches!(self.phase, Phase::Idling { .. })
    }

    /// Has the client logged in?
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        matches!(self.state, State::Authenticated | State::Selected)
    }

    /// When to call [`Session::expire`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.phase, self.state) {
            (Phase::Closed, _) => None,
            (_, State::NotAuthenticated) => Some(self.started + self.config.login_timeout),
            (Phase::Idling { .. }, _) => Some(self.keepalive),
            _ if !self.wants_input() => None,
            _ => Some(self.active + self.config.idle_timeout),
        }
    }

    /// The deadline may have passed.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        if self.is_idling() {
            self.keepalive = now + KEEPALIVE;
            put_status(&mut self.out, "*", Status::Ok, None, "Still here");
            return;
        }
        let text = if self.is_logged_in() {
            "Disconnected for inactivity."
        } else {
            "Login took too long, closing."
        };
        self.bye(None, text);
    }

    /// Ends the session from our side.
    pub fn bye(&mut self, code: Option<Code>, text: &str) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        if matches!(self.phase, Phase::Appending { .. } | Phase::AppendTail { .. }) {
            // The driver drops the unfinished message when it closes.
            self.step = None;
        }
        Response::Bye(code, text.to_owned()).put(&mut self.out);
        self.close();
    }

    /// The TLS handshake after STARTTLS is done.
    pub fn tls_established(&mut self, now: Instant) {
        self.active = now;
        if matches!(self.phase, Phase::Handshake) {
            // RFC 3501 §6.2.1: what was learned without protection is forgotten.
            self.input.clear();
            self.tls = TlsState::Active;
            self.commands = 0;
            self.phase = Phase::Command;
        }
    }

    /// The driver's answer to an open step.
    pub fn resume(&mut self, outcome: Outcome, now: Instant) {
        self.active = now;
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        match (phase, outcome) {
            (Phase::Verifying { tag }, Outcome::Challenge(data)) => {
                self.challenge(&data);
                self.phase = Phase::Challenged { tag };
            }
            (Phase::Verifying { tag }, Outcome::LoggedIn(Some(data))) => {
                // The mechanism's last data travels as a challenge; IMAP's OK cannot carry it.
                self.challenge(&data);
                self.phase = Phase::Final { tag };
            }
            (Phase::Verifying { tag }, Outcome::LoggedIn(None)) => self.logged_in(&tag),
            (Phase::Verifying { tag } | Phase::HandingOver { tag }, Outcome::LoginFailed(failure)) => {
                self.login_failed(&tag, &failure);
            }
            (Phase::Running { tag }, Outcome::Done(completion)) => self.finish(&tag, &completion),
            (Phase::IdleEnding { tag, bad }, Outcome::Done(completion)) => {
                if bad {
                    self.bad(&tag, "Expected DONE");
                } else {
                    self.finish(&tag, &completion);
                }
            }
            (Phase::Deciding { tag, size, non_sync }, Outcome::AppendAccepted) => {
                if !non_sync {
                    self.out.extend_from_slice(b"+ OK\r\n");
                }
                self.phase = Phase::Appending { tag, left: size };
            }
            (Phase::Deciding { tag, size, non_sync }, Outcome::Done(completion)) => {
                let mut reply = Vec::new();
                completion.put(&mut reply, &tag);
                self.refuse(size, non_sync, reply);
            }
            // An answer nobody asked for changes nothing.
            (phase, _) => self.phase = phase,
        }
    }

    fn close(&mut self) {
        self.input.clear();
        self.state = State::Logout;
        self.phase = Phase::Closed;
        self.step = Some(Step::Close);
    }

    fn logged_in(&mut self, tag: &Tag) {
        if self.hands_over {
            self.phase = Phase::HandingOver { tag: tag.clone() };
            self.step = Some(Step::HandOver(tag.clone()));
            return;
        }
        self.state = State::Authenticated;
        self.bad_in_a_row = 0;
        let completion = Completion::ok("Logged in").code(Code::Capability(self.capability()));
        completion.put(&mut self.out, tag);
    }

    fn login_failed(&mut self, tag: &Tag, failure: &LoginFailure) {
        let (code, text) = match failure.code {
            LoginFailureCode::Credentials => (Some(Code::AuthenticationFailed), "Authentication failed."),
            LoginFailureCode::Authorization => (Some(Code::AuthorizationFailed), "Authorization failed."),
            LoginFailureCode::Expired => (Some(Code::Expired), "Password has expired."),
            LoginFailureCode::Disabled => (Some(Code::ContactAdmin), "Account is disabled."),
            LoginFailureCode::Unavailable => (Some(Code::Unavailable), "Temporary authentication failure."),
            LoginFailureCode::Malformed => (None, "Invalid authentication exchange."),
        };
        let text = if failure.text.is_empty() { text } else { &failure.text };
        let status = if failure.code == LoginFailureCode::Malformed { Status::Bad } else { Status::No };
        Completion { status, code, text: text.to_owned(), transition: Transition::Stay }
            .put(&mut self.out, tag);
        // An outage is not the client's fault.
        if failure.code != LoginFailureCode::Unavailable {
            self.failures += 1;
            if self.failures >= self.config.limits.auth_failures {
                self.bye(None, "Too many failed logins.");
            }
        }
    }

    fn finish(&mut self, tag: &Tag, completion: &Completion) {
        match completion.transition {
            Transition::Stay => {}
            Transition::Selected => self.state = State::Selected,
            Transition::Unselected => self.state = State::Authenticated,
        }
        completion.put(&mut self.out, tag);
        if completion.status == Status::Bad {
            self.count_bad();
        }
    }

    fn bad(&mut self, tag: &Tag, text: &str) {
        Completion::bad(text).put(&mut self.out, tag);
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

    fn challenge(&mut self, data: &[u8]) {
        // Always `+` and a space: a bare `+` trips old clients.
        self.out.extend_from_slice(b"+ ");
        self.out.extend_from_slice(STANDARD.encode(data).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// What is whole, and nothing else.
    fn capability(&self) -> String {
        let mut list = "IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE".to_owned();
        if self.is_logged_in() {
            list.push_str(
                " NAMESPACE UIDPLUS MOVE UNSELECT CHILDREN SPECIAL-USE LIST-EXTENDED LIST-STATUS ESEARCH WITHIN STATUS=SIZE",
            );
            list.push_str(&format!(" APPENDLIMIT={}", self.config.limits.append));
            return list;
        }
        match self.tls {
            TlsState::Active => {
                // LOGIN is carried to the daemon as PLAIN.
                if !self.offers("PLAIN") {
                    list.push_str(" LOGINDISABLED");
                }
                for mechanism in &self.config.mechanisms {
                    list.push_str(" AUTH=");
                    list.push_str(mechanism);
                }
            }
            TlsState::Offered => list.push_str(" STARTTLS LOGINDISABLED"),
            TlsState::Unavailable => list.push_str(" LOGINDISABLED"),
        }
        list
    }

    fn offers(&self, mechanism: &str) -> bool {
        self.config.mechanisms.iter().any(|m| m == mechanism)
    }

    /// Moves on with what is in the buffer; false when nothing can be done.
    fn advance(&mut self) -> bool {
        match &mut self.phase {
            Phase::Command => self.read_command(),
            Phase::Skip { .. } => self.skip(),
            Phase::Challenged { .. } | Phase::Final { .. } => self.read_response(),
            Phase::Appending { left, tag } => {
                let chunk = self.input.take(*left);
                if chunk.is_empty() {
                    return false;
                }
                *left = left.saturating_sub(chunk.len() as u64);
                if *left == 0 {
                    self.phase = Phase::AppendTail { tag: tag.clone() };
                }
                self.step = Some(Step::AppendChunk(chunk));
                true
            }
            Phase::AppendTail { tag } => {
                let tag = tag.clone();
                match self.input.line(self.config.limits.line) {
                    input::Line::Partial => false,
                    input::Line::TooLong => {
                        self.bye(None, "Command line too long.");
                        true
                    }
                    input::Line::Whole(line) if line.iter().all(|b| *b == b' ') => {
                        self.step = Some(Step::AppendEnd);
                        self.phase = Phase::Running { tag };
                        true
                    }
                    input::Line::Whole(line) => {
                        self.step = Some(Step::AppendAbort);
                        let mut reply = Vec::new();
                        Completion::bad("Unexpected text after the message").put(&mut reply, &tag);
                        self.phase = Phase::Skip { left: 0, reply };
                        match input::literal_at_end(&line) {
                            Some((size, true)) => self.skip_more(size),
                            _ => self.finish_skip(),
                        }
                        true
                    }
                }
            }
            Phase::Idling { .. } => self.read_done(),
            _ => false,
        }
    }

    fn read_done(&mut self) -> bool {
        let bad = match self.input.line(self.config.limits.line_before_login) {
            input::Line::Partial => return false,
            input::Line::TooLong => {
                self.bye(None, "Command line too long.");
                return true;
            }
            input::Line::Whole(line) => !line.eq_ignore_ascii_case(b"DONE"),
        };
        if let Phase::Idling { tag } = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.phase = Phase::IdleEnding { tag, bad };
            self.step = Some(Step::IdleDone);
        }
        true
    }

    fn read_response(&mut self) -> bool {
        let mut line = match self.input.line(self.config.limits.line_before_login) {
            input::Line::Partial => return false,
            input::Line::TooLong => {
                self.bye(None, "Authentication response too long.");
                return true;
            }
            input::Line::Whole(line) => line,
        };
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::Final { tag } => {
                if line == b"*" {
                    self.step = Some(Step::CancelAuthentication);
                    self.bad(&tag, "Authentication cancelled");
                } else {
                    self.logged_in(&tag);
                }
            }
            Phase::Challenged { tag } => match STANDARD.decode(&line) {
                Ok(data) => {
                    self.step = Some(Step::Respond(Secret::new(data)));
                    self.phase = Phase::Verifying { tag };
                }
                Err(_) => {
                    self.step = Some(Step::CancelAuthentication);
                    let text =
                        if line == b"*" { "Authentication cancelled" } else { "Response is not base64" };
                    self.bad(&tag, text);
                }
            },
            phase => self.phase = phase,
        }
        line.zeroize();
        true
    }

    /// A refused command: with a literal that comes anyhow, its octets are thrown away first.
    fn refuse(&mut self, size: u64, non_sync: bool, reply: Vec<u8>) {
        if non_sync {
            self.phase = Phase::Skip { left: size, reply };
        } else {
            self.out.extend_from_slice(&reply);
            self.phase = Phase::Command;
        }
    }

    fn finish_skip(&mut self) {
        if let Phase::Skip { reply, .. } = std::mem::replace(&mut self.phase, Phase::Command) {
            self.out.extend_from_slice(&reply);
            self.count_bad_reply(&reply);
        }
    }

    fn count_bad_reply(&mut self, reply: &[u8]) {
        // Refusals by NO are the store's opinion, not bad syntax.
        if reply.splitn(3, |b| *b == b' ').nth(1) == Some(b"BAD") {
            self.count_bad();
        }
    }

    fn skip(&mut self) -> bool {
        let Phase::Skip { left, .. } = &mut self.phase else { return false };
        if *left > 0 {
            let gone = self.input.discard(*left);
            *left -= gone;
            return gone > 0;
        }
        match self.input.line(self.config.limits.line) {
            input::Line::Partial => false,
            input::Line::TooLong => {
                self.bye(None, "Command line too long.");
                true
            }
            input::Line::Whole(mut line) => {
                match input::literal_at_end(&line) {
                    Some((size, true)) => self.skip_more(size),
                    _ => self.finish_skip(),
                }
                line.zeroize();
                true
            }
        }
    }

    fn skip_more(&mut self, size: u64) {
        if size > self.skippable() {
            self.bye(Some(Code::TooBig), "Literal too big.");
        } else if let Phase::Skip { left, .. } = &mut self.phase {
            *left = size;
        }
    }

    /// Largest literal that is read only to be thrown away.
    fn skippable(&self) -> u64 {
        let limits = &self.config.limits;
        if self.is_logged_in() { limits.append.saturating_mul(2) } else { limits.line as u64 }
    }

    /// Reads one command, literals included.
    fn read_command(&mut self) -> bool {
        let limits = &self.config.limits;
        let (line, literal) = if self.is_logged_in() {
            (limits.line, limits.literal)
        } else {
            (limits.line_before_login, limits.literal_before_login)
        };
        match self.input.command(line) {
            input::Framed::Partial => false,
            input::Framed::TooLong => {
                self.bye(None, "Command line too long.");
                true
            }
            input::Framed::Literal { size, non_sync } => {
                self.literal(size, non_sync, literal);
                true
            }
            input::Framed::Whole(mut raw) => {
                self.command(&raw);
                raw.zeroize();
                true
            }
        }
    }

    /// A literal is announced: let it in, stream it, or refuse the command.
    fn literal(&mut self, size: u64, non_sync: bool, most: usize) {
        let head = self.input.command_so_far();
        let (tag, word) = crate::parse::peek_word(head);
        let Some(tag) = tag else {
            let mut reply = Vec::new();
            put_status(&mut reply, "*", Status::Bad, None, "Expected a tag");
            return self.refuse_literal(size, non_sync, reply);
        };
        let known = word.as_deref().is_some_and(crate::parse::is_command);
        let mut reply = Vec::new();
        if word.as_deref() == Some("APPEND") && self.is_logged_in() {
            match crate::parse::parse_append_head(head) {
                Ok(None) => {}
                Ok(Some(head)) => return self.append(head),
                Err(rejected) => {
                    rejection(&rejected).put(&mut reply, &tag);
                    return self.refuse_literal(size, non_sync, reply);
                }
            }
        }
        if !known || (word.as_deref() == Some("APPEND") && !self.is_logged_in()) {
            let text = if known { "Log in first" } else { "Unknown command" };
            Completion::bad(text).put(&mut reply, &tag);
            return self.refuse_literal(size, non_sync, reply);
        }
        match usize::try_from(size).ok().filter(|n| n.saturating_add(self.input.literal_octets()) <= most) {
            Some(octets) => {
                self.input.expect_literal(octets);
                if !non_sync {
                    self.out.extend_from_slice(b"+ OK\r\n");
                }
            }
            None => {
                Completion::bad("Literal too big").code(Code::TooBig).put(&mut reply, &tag);
                self.refuse_literal(size, non_sync, reply);
            }
        }
    }

    fn refuse_literal(&mut self, size: u64, non_sync: bool, reply: Vec<u8>) {
        self.input.drop_command();
        if non_sync && size > self.skippable() {
            return self.bye(Some(Code::TooBig), "Literal too big.");
        }
        if !non_sync {
            self.count_bad_reply(&reply);
            if matches!(self.phase, Phase::Closed) {
                // The BYE is written already; the reply would come after it.
                return;
            }
        }
        self.refuse(size, non_sync, reply);
    }

    fn append(&mut self, head: AppendHead) {
        let mut reply = Vec::new();
        // Decided before the continuation, so that nothing is sent for nothing.
        if head.size > self.config.limits.append {
            Completion::no("Message is too big").code(Code::TooBig).put(&mut reply, &head.tag);
            return self.refuse_literal(head.size, head.non_sync, reply);
        }
        if head.size == 0 {
            Completion::no("Can't save a zero byte message").code(Code::Cannot).put(&mut reply, &head.tag);
            return self.refuse_literal(head.size, head.non_sync, reply);
        }
        self.input.drop_command();
        self.bad_in_a_row = 0;
        self.phase = Phase::Deciding { tag: head.tag.clone(), size: head.size, non_sync: head.non_sync };
        self.step = Some(Step::Append(head));
    }

    fn command(&mut self, raw: &[u8]) {
        if !self.is_logged_in() {
            self.commands += 1;
            if self.commands > self.config.limits.commands_before_login {
                return self.bye(None, "Too many commands before login.");
            }
        }
        match parse(raw) {
            Ok((tag, command)) => self.dispatch(tag, command),
            Err(rejected) => match &rejected.tag {
                Some(tag) => {
                    let completion = rejection(&rejected);
                    completion.put(&mut self.out, tag);
                    if completion.status == Status::Bad {
                        self.count_bad();
                    }
                }
                None => {
                    put_status(&mut self.out, "*", Status::Bad, None, &rejected.error.to_string());
                    self.count_bad();
                }
            },
        }
    }

    fn dispatch(&mut self, tag: Tag, command: Command) {
        let allowed = match &command {
            Command::Capability | Command::Noop | Command::Logout | Command::Id(_) => true,
            Command::StartTls | Command::Authenticate { .. } | Command::Login { .. } => !self.is_logged_in(),
            Command::Check
            | Command::Close
            | Command::Unselect
            | Command::Expunge(_)
            | Command::Search(_)
            | Command::Fetch { .. }
            | Command::Store(_)
            | Command::Copy { .. } => self.state == State::Selected,
            _ => self.is_logged_in(),
        };
        if !allowed {
            let text = match self.state {
                State::NotAuthenticated => "Log in first",
                State::Authenticated => "No mailbox is selected, or already logged in",
                _ => "Already logged in",
            };
            return self.bad(&tag, text);
        }
        self.bad_in_a_row = 0;
        match command {
            Command::Capability => {
                let line = format!("* CAPABILITY {}\r\n", self.capability());
                self.out.extend_from_slice(line.as_bytes());
                Completion::ok("Capability completed").put(&mut self.out, &tag);
            }
            Command::Noop if !self.is_logged_in() => {
                Completion::ok("NOOP completed").put(&mut self.out, &tag);
            }
            Command::Logout => {
                Response::Bye(None, "Logging out".to_owned()).put(&mut self.out);
                Completion::ok("Logout completed").put(&mut self.out, &tag);
                self.close();
            }
            Command::Id(pairs) => {
                put_id(&mut self.out, &[("name", "Postern")]);
                Completion::ok("ID completed").put(&mut self.out, &tag);
                self.step = Some(Step::ClientId(pairs));
            }
            Command::Enable(_) => {
                // Nothing we have needs enabling (RFC 5161 §3.2: an empty list is the answer).
                self.out.extend_from_slice(b"* ENABLED\r\n");
                Completion::ok("Enabled").put(&mut self.out, &tag);
            }
            Command::Namespace => {
                Response::Namespace(self.config.separator).put(&mut self.out);
                Completion::ok("Namespace completed").put(&mut self.out, &tag);
            }
            Command::StartTls => self.start_tls(&tag),
            Command::Login { user, password } => self.login(tag, &user, &password),
            Command::Authenticate { mechanism, initial } => self.authenticate(tag, mechanism, initial),
            Command::Idle => {
                self.out.extend_from_slice(b"+ idling\r\n");
                self.keepalive = self.active + KEEPALIVE;
                self.step = Some(Step::Idle);
                self.phase = Phase::Idling { tag };
            }
            command => {
                self.phase = Phase::Running { tag: tag.clone() };
                self.step = Some(Step::Run(tag, command));
            }
        }
    }

    fn start_tls(&mut self, tag: &Tag) {
        match self.tls {
            TlsState::Active => self.bad(tag, "TLS is already active"),
            TlsState::Unavailable => self.bad(tag, "TLS is not available"),
            TlsState::Offered => {
                // Whatever follows the command was not protected: command injection.
                if !self.input.is_empty() {
                    Completion::bad("Text after STARTTLS").put(&mut self.out, tag);
                    return self.bye(None, "Data sent before the TLS handshake.");
                }
                Completion::ok("Begin TLS negotiation now.").put(&mut self.out, tag);
                self.phase = Phase::Handshake;
                self.step = Some(Step::StartTls);
            }
        }
    }

    fn login(&mut self, tag: Tag, user: &[u8], password: &Secret) {
        if !self.private(&tag) {
            return;
        }
        if !self.offers("PLAIN") {
            return Completion::no("LOGIN is disabled.").put(&mut self.out, &tag);
        }
        let mut initial = Vec::with_capacity(user.len() + password.expose().len() + 2);
        initial.push(0);
        initial.extend_from_slice(user);
        initial.push(0);
        initial.extend_from_slice(password.expose());
        self.step =
            Some(Step::Authenticate { mechanism: "PLAIN".to_owned(), initial: Some(Secret::new(initial)) });
        self.phase = Phase::Verifying { tag };
    }

    fn authenticate(&mut self, tag: Tag, mechanism: String, initial: Option<Secret>) {
        if !self.private(&tag) {
            return;
        }
        if !self.offers(&mechanism) {
            Completion::no("Unsupported authentication mechanism.").put(&mut self.out, &tag);
            return self.count_bad();
        }
        self.step = Some(Step::Authenticate { mechanism, initial });
        self.phase = Phase::Verifying { tag };
    }

    /// RFC 5530 §3: without TLS nothing is checked, whatever the client sent.
    fn private(&mut self, tag: &Tag) -> bool {
        if self.tls == TlsState::Active {
            return true;
        }
        Completion::no("Plaintext authentication is not allowed without TLS.")
            .code(Code::PrivacyRequired)
            .put(&mut self.out, tag);
        self.count_bad();
        false
    }
}

#[cfg(test)]
impl Session {
    fn input_len(&self) -> usize {
        self.input.len()
    }
}

/// The tagged line for a command that could not be read.
fn rejection(rejected: &Rejected) -> Completion {
    let text = rejected.error.to_string();
    match rejected.error.problem {
        // Well formed, but such a mailbox cannot exist.
        Problem::Mailbox(bad) => Completion::no(bad.to_string()).code(Code::Cannot),
        Problem::Charset => Completion::no(text).code(Code::BadCharset),
        _ => Completion::bad(text),
    }
}

#[cfg(test)]
mod tests;
