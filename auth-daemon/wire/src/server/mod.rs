//! The server's end of the client protocol.
//!
//! Purpose: one connection of a mail program that authenticates users: greeting, AUTH, CONT, CANCEL, replies.
//! Facts:   Dovecot's `auth_protocol`, and what Postfix, Exim, chasquid, Prosody and Dovecot's login really send.
//! Rules:   the greeting is one buffer and needs no byte of the client; VERSION, CPID and AUTH may come in any order and
//!          pipelined; answers leave in any order; an id gets at most one answer; a bad request is answered with FAIL
//!          for its id and touches no other request.
//! Never:   close because of one bad line while other requests are open (until [`MAX_BAD_LINES`]).
//! Trust:   the client is hostile; lines, ids, open requests and output are bounded.

mod reply;
mod request;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use reply::{Reply, Sent};
pub use request::{AuthRequest, RefusedRequest};

use crate::field::{Fields, number, write_number};
use crate::line::{LineReader, ReadLine};
use crate::table::Table;
use crate::{Cookie, Error, FailCode, Kind, MAX_GREETING, MAX_LINE, Mechanism, Secret, Ticket};
use request::{Parsed, Refusal};

/// Lines that make no sense before the connection is closed even though requests are open.
pub const MAX_BAD_LINES: u32 = 20;
/// A request waiting for its client is forgotten after this time (Dovecot: login timeout 180 s less 30 s).
pub const IDLE_EXCHANGE: Duration = Duration::from_secs(150);
/// `next` yields nothing while this much output waits for the client to read.
pub const OUTPUT_HIGH_WATER: usize = 256 * 1024;
/// Written output above this is given back at once.
const OUTPUT_KEEP: usize = 64 * 1024;

/// What all connections of one listener share.
#[derive(Clone, Debug)]
pub struct Config {
    kind: Kind,
    minor: u32,
    mechanisms: Vec<Mechanism>,
    /// VERSION and MECH lines.
    preamble: Vec<u8>,
    /// Service of requests that name none; without it they fail.
    pub default_service: Option<String>,
    /// Most requests open at once on one connection. Default 4096.
    pub max_open: usize,
    /// See [`IDLE_EXCHANGE`].
    pub idle_exchange: Duration,
}

impl Config {
    /// Checks that the greeting will fit and is acceptable to all known clients.
    ///
    /// `minor` is what is announced: 2 for everybody, 3 only where channel binding is offered.
    pub fn new(kind: Kind, minor: u32, mechanisms: Vec<Mechanism>) -> Result<Self, Error> {
        if mechanisms.is_empty() {
            return Err(Error::NoMechanisms);
        }
        let mut preamble = Vec::with_capacity(512);
        preamble.extend_from_slice(b"VERSION\t1\t");
        write_number(&mut preamble, minor);
        preamble.push(b'\n');
        // Postfix and Exim take SPID before any MECH for an auth-master socket and give up: mechanisms go first.
        for mechanism in &mechanisms {
            mechanism.write(&mut preamble);
        }
        // SPID and CUID of ten digits, COOKIE, DONE.
        let rest = "SPID\t4294967295\nCUID\t4294967295\nCOOKIE\t\nDONE\n".len() + 32;
        if preamble.len() + rest > MAX_GREETING {
            return Err(Error::GreetingTooLong);
        }
        Ok(Self {
            kind,
            minor,
            mechanisms,
            preamble,
            default_service: None,
            max_open: 4096,
            idle_exchange: IDLE_EXCHANGE,
        })
    }

    /// What the socket is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The announced minor version.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// The announced mechanisms.
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms
    }

    fn greeting(&self, identity: &Identity) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_GREETING);
        out.extend_from_slice(&self.preamble);
        out.extend_from_slice(b"SPID\t");
        write_number(&mut out, identity.spid);
        out.extend_from_slice(b"\nCUID\t");
        write_number(&mut out, identity.cuid);
        out.extend_from_slice(b"\nCOOKIE\t");
        out.extend_from_slice(identity.cookie.as_str().as_bytes());
        out.extend_from_slice(b"\nDONE\n");
        out
    }
}

/// Who the server is on this connection.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Process id of the server.
    pub spid: u32,
    /// Number of this connection, unique within the process (APOP challenges contain it).
    pub cuid: u32,
    /// Random per connection.
    pub cookie: Cookie,
}

/// What the driver has to do next.
#[derive(Debug)]
pub enum Step {
    /// The client named its process. On a login socket: register it with [`crate::login::Registry::register`] and
    /// close the connection if that fails. Otherwise for logs only.
    ClientPid(u32),
    /// A new request. Answer it with [`Session::reply`] under its ticket.
    Start(AuthRequest),
    /// A request that was refused, for the driver to tell: nothing is to be answered.
    Refused(Box<RefusedRequest>),
    /// The client's answer to a challenge.
    Continue {
        /// The request.
        ticket: Ticket,
        /// What the client's mechanism says; empty if `out_of_band`.
        data: Secret,
        /// Channel binding data that came with it (minor ≥ 3).
        channel_binding: Option<Secret>,
        /// The data was `#`.
        out_of_band: bool,
    },
    /// The request is gone: drop its exchange or work. Nothing may be answered, and nothing would be sent.
    Cancel {
        /// The request.
        ticket: Ticket,
        /// What happened to it.
        cause: CancelCause,
    },
    /// CANCEL for an id that is not open: on a login socket drop the kept login of that id.
    Release(u32),
    /// Close the connection. Nothing follows.
    Close(CloseReason),
}

/// Why a request went away without the driver's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CancelCause {
    /// The client said CANCEL.
    Client,
    /// The client broke the exchange (FAIL was sent).
    Malformed,
    /// The client opened the same id again (one FAIL was sent for both).
    Duplicate,
    /// The client did not continue in time.
    Idle,
    /// Too many are open, and this one waited longest for its client.
    Evicted,
}

/// Why the session wants the connection closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// Another major version.
    Version,
    /// A CPID that cannot be used on a login socket.
    ClientPid,
    /// Lines that are not this protocol.
    Garbage,
    /// A line without end.
    Flood,
}

#[derive(Debug)]
pub(crate) enum State {
    /// The driver is working on it.
    Verifying,
    /// A challenge was sent at that time.
    Waiting(Instant),
}

/// One connection. Feed bytes, take steps, answer, write the output.
#[derive(Debug)]
pub struct Session {
    lines: LineReader,
    core: Core,
}

#[derive(Debug)]
struct Core {
    config: Arc<Config>,
    steps: VecDeque<Step>,
    output: Vec<u8>,
    written: usize,
    table: Table<State>,
    verifying: usize,
    sweep: Option<Instant>,
    version_seen: bool,
    client_minor: u32,
    client_pid: Option<u32>,
    bad_lines: u32,
    closed: bool,
}

impl Session {
    /// A new connection; the greeting is the first output.
    pub fn new(config: Arc<Config>, identity: &Identity) -> Self {
        let output = config.greeting(identity);
        Self {
            lines: LineReader::new(MAX_LINE),
            core: Core {
                steps: VecDeque::new(),
                output,
                written: 0,
                table: Table::new(config.max_open.max(1)),
                verifying: 0,
                sweep: None,
                version_seen: false,
                client_minor: 0,
                client_pid: None,
                bad_lines: 0,
                closed: false,
                config,
            },
        }
    }

    /// Takes bytes from the client. Call [`Session::next`] until `None` before feeding again.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.core.closed {
            self.lines.feed(bytes);
        }
    }

    /// The next thing to do. `None`: feed more, or write [`Session::output`] first if there is much of it.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
        self.core.expire(now);
        loop {
            if let Some(step) = self.core.steps.pop_front() {
                return Some(step);
            }
            if self.core.closed || self.core.output_len() > OUTPUT_HIGH_WATER {
                return None;
            }
            match self.lines.next()? {
                ReadLine::Line(line) => self.core.line(line, now),
                ReadLine::Overlong(head) => self.core.overlong(head),
                ReadLine::Flood => self.core.close(CloseReason::Flood),
            }
        }
    }

    /// Answers a request. Answers to requests that are gone are dropped ([`Sent::Stale`]).
    pub fn reply(&mut self, ticket: Ticket, reply: Reply<'_>, now: Instant) -> Sent {
        self.core.reply(ticket, &reply, now)
    }

    /// Bytes for the client.
    pub fn output(&self) -> &[u8] {
        self.core.output.get(self.core.written..).unwrap_or_default()
    }

    /// The driver wrote that many bytes of [`Session::output`].
    pub fn wrote(&mut self, bytes: usize) {
        let core = &mut self.core;
        core.written = core.written.saturating_add(bytes).min(core.output.len());
        if core.written == core.output.len() {
            core.output.clear();
            core.output.shrink_to(OUTPUT_KEEP);
            core.written = 0;
        } else if core.written > OUTPUT_KEEP {
            core.output.drain(..core.written);
            core.written = 0;
        }
    }

    /// When [`Session::next`] has to be called even without input: a forgotten exchange ends then.
    pub fn deadline(&self) -> Option<Instant> {
        self.core.sweep
    }

    /// Number of open requests.
    pub fn open(&self) -> usize {
        self.core.table.len()
    }

    /// Number of requests the driver works on; those waiting for their client do not count. A driver that signals an
    /// outage by closing may do so when its request is the only one.
    pub fn verifying(&self) -> usize {
        self.core.verifying
    }

    /// Tickets of all open requests, for a driver that gives up the connection.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.core.table.iter().map(|(ticket, _)| ticket)
    }

    /// The client's minor version; 0 until it said one.
    pub fn client_minor(&self) -> u32 {
        self.core.client_minor
    }

    /// What the client gave as CPID, if it was a usable number.
    pub fn client_pid(&self) -> Option<u32> {
        self.core.client_pid
    }
}

impl Core {
    fn output_len(&self) -> usize {
        self.output.len() - self.written
    }

    fn close(&mut self, reason: CloseReason) {
        if !self.closed {
            self.closed = true;
            self.steps.push_back(Step::Close(reason));
        }
    }

    /// A line that no request can be blamed for.
    fn bad_line(&mut self) {
        self.bad_lines += 1;
        if self.table.len() == 0 || self.bad_lines > MAX_BAD_LINES {
            self.close(CloseReason::Garbage);
        }
    }

    fn line(&mut self, line: &[u8], now: Instant) {
        let mut fields = Fields::of(line);
        let command = fields.next().unwrap_or_default();
        if memchr::memchr(0, line).is_some() {
            // Dovecot cuts the line at NUL, which hides what follows from it but not from others.
            return match (command, fields.next().and_then(number)) {
                (b"AUTH" | b"CONT", Some(id)) => self.blame(id, "Invalid request"),
                _ => self.bad_line(),
            };
        }
        match command {
            b"AUTH" => self.auth(fields, now),
            b"CONT" => self.cont(fields),
            b"CANCEL" => self.cancel(fields.next()),
            b"VERSION" => self.version(fields.next(), fields.next()),
            b"CPID" => self.cpid(fields.next()),
            _ => self.bad_line(),
        }
    }

    fn overlong(&mut self, head: &[u8]) {
        let mut fields = Fields::of(head);
        let command = fields.next();
        // The id is whole only if a TAB ends it.
        let id = fields.next().filter(|_| fields.next().is_some()).and_then(number);
        match (command, id) {
            (Some(b"AUTH" | b"CONT"), Some(id)) => self.blame(id, "Request is too long"),
            _ => self.bad_line(),
        }
    }

    fn version(&mut self, major: Option<&[u8]>, minor: Option<&[u8]>) {
        match (major.and_then(number), minor.and_then(number)) {
            (Some(1), Some(minor)) if !self.version_seen => {
                self.version_seen = true;
                self.client_minor = minor;
            }
            (Some(1), Some(_)) => self.bad_line(),
            _ => self.close(CloseReason::Version),
        }
    }

    fn cpid(&mut self, pid: Option<&[u8]>) {
        let pid = pid.and_then(number).filter(|pid| *pid != 0);
        match (pid, self.config.kind) {
            (Some(pid), _) if self.client_pid.is_none() => {
                self.client_pid = Some(pid);
                self.steps.push_back(Step::ClientPid(pid));
            }
            (Some(_), _) => self.bad_line(),
            // Old Prosody modules send a pointer here; nothing depends on it.
            (None, Kind::Client) => {}
            (None, Kind::Login) => self.close(CloseReason::ClientPid),
        }
    }

    fn auth<'a>(&mut self, mut fields: impl Iterator<Item = &'a [u8]>, now: Instant) {
        let Some(id) = fields.next().and_then(number).filter(|id| *id != 0) else {
            return self.bad_line();
        };
        if self.table.contains_id(id) {
            // Two requests under one id cannot both be answered: both end with this one FAIL.
            return self.abort(id, "Request id is already in use", None, CancelCause::Duplicate);
        }
        let Parsed { mechanism, params, initial } = request::parse(fields, self.client_minor);
        let service = params.service.clone().or_else(|| self.config.default_service.clone());
        let known = self.config.mechanisms.iter().find(|known| Some(known.name) == mechanism).copied();
        let (initial, known, service) = match (initial, known, service) {
            (Ok(initial), Some(known), Some(service)) => (initial, known, service),
            (wrong, known, service) => {
                let Refusal { reason, code } = match (wrong, known) {
                    (Err(refusal), _) => refusal,
                    (Ok(_), None) => "Unsupported authentication mechanism".into(),
                    (Ok(_), Some(_)) => "Missing service name".into(),
                };
                self.refuse(id, reason, code);
                let service = service.unwrap_or_default();
                let refused = Box::new(RefusedRequest { mechanism, service, params, reason });
                return self.steps.push_back(Step::Refused(refused));
            }
        };
        if self.table.is_full() && !self.evict() {
            return self.refuse(id, "Too many requests", Some(FailCode::TempFail));
        }
        let ticket = self.table.insert(id, State::Verifying);
        self.verifying += 1;
        let mechanism = known;
        let request = AuthRequest { ticket, mechanism, service, params, initial, arrived: now };
        self.steps.push_back(Step::Start(request));
    }

    fn cont<'a>(&mut self, mut fields: impl Iterator<Item = &'a [u8]>) {
        let Some(id) = fields.next().and_then(number).filter(|id| *id != 0) else {
            return self.bad_line();
        };
        let Some(ticket) = self.table.ticket(id) else {
            // An id that was answered lately is not answered again.
            if !self.table.was_finished(id) {
                self.refuse(id, "Authentication request timed out", None);
            }
            return;
        };
        if !matches!(self.table.get(ticket), Some(State::Waiting(_))) {
            return self.abort(id, "Unexpected continuation", None, CancelCause::Malformed);
        }
        match request::continuation(fields, self.client_minor) {
            Some(answer) => {
                if let Some(state) = self.table.get_mut(ticket) {
                    *state = State::Verifying;
                    self.verifying += 1;
                }
                self.steps.push_back(Step::Continue {
                    ticket,
                    data: answer.data,
                    channel_binding: answer.channel_binding,
                    out_of_band: answer.out_of_band,
                });
            }
            None => {
                let reason = "Invalid base64 data in continued response";
                self.abort(id, reason, Some(FailCode::InvalidBase64), CancelCause::Malformed);
            }
        }
    }

    fn cancel(&mut self, id: Option<&[u8]>) {
        let Some(id) = id.and_then(number).filter(|id| *id != 0) else {
            return self.bad_line();
        };
        match self.table.ticket(id) {
            Some(ticket) => self.drop_request(ticket, CancelCause::Client),
            None => self.steps.push_back(Step::Release(id)),
        }
        if self.client_minor >= 4 {
            self.output.extend_from_slice(b"CANCELLED\t");
            write_number(&mut self.output, id);
            self.output.push(b'\n');
        }
    }

    /// Removes an open request and tells the driver.
    fn drop_request(&mut self, ticket: Ticket, cause: CancelCause) {
        if let Some(state) = self.table.forget(ticket) {
            self.verifying -= usize::from(matches!(state, State::Verifying));
            self.steps.push_back(Step::Cancel { ticket, cause });
        }
    }

    /// Room for one more: the request that waits longest for its client goes (Postfix abandons them silently).
    fn evict(&mut self) -> bool {
        let oldest = self
            .table
            .iter()
            .filter_map(|(ticket, state)| match state {
                State::Waiting(since) => Some((*since, ticket)),
                State::Verifying => None,
            })
            .min_by_key(|(since, ticket)| (*since, ticket.id()));
        let Some((_, ticket)) = oldest else { return false };
        self.drop_request(ticket, CancelCause::Evicted);
        true
    }

    /// A line of that id is unusable: its request, if one is open, ends; the id gets its one FAIL.
    fn blame(&mut self, id: u32, reason: &'static str) {
        if id == 0 {
            self.bad_line();
        } else if self.table.contains_id(id) {
            self.abort(id, reason, None, CancelCause::Malformed);
        } else {
            self.refuse(id, reason, None);
        }
    }

    fn abort(&mut self, id: u32, reason: &str, code: Option<FailCode>, cause: CancelCause) {
        if let Some(ticket) = self.table.ticket(id) {
            self.drop_request(ticket, cause);
            self.refuse(id, reason, code);
        }
    }

    /// FAIL for an id that is not open.
    fn refuse(&mut self, id: u32, reason: &str, code: Option<FailCode>) {
        reply::write_fail(&mut self.output, id, None, code, Some(reason), &[]);
        self.table.remember(id);
    }

    fn reply(&mut self, ticket: Ticket, reply: &Reply<'_>, now: Instant) -> Sent {
        if self.table.get(ticket).is_none() || self.closed {
            return Sent::Stale;
        }
        let sent = reply::write(&mut self.output, self.config.kind, ticket.id(), reply);
        if let (Reply::Challenge { .. }, Sent::Delivered) = (reply, sent) {
            if let Some(state) = self.table.get_mut(ticket) {
                self.verifying -= usize::from(matches!(state, State::Verifying));
                *state = State::Waiting(now);
                self.sweep.get_or_insert(now + self.config.idle_exchange);
            }
        } else if let Some(state) = self.table.finish(ticket) {
            self.verifying -= usize::from(matches!(state, State::Verifying));
        }
        sent
    }

    /// Forgets exchanges whose client went silent. No answer: nobody is waiting for one (Dovecot does the same).
    fn expire(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| now < due) {
            return;
        }
        let limit = self.config.idle_exchange;
        let mut next: Option<Instant> = None;
        let mut late = Vec::new();
        for (ticket, state) in self.table.iter() {
            if let State::Waiting(since) = state {
                let due = *since + limit;
                if due <= now {
                    late.push(ticket);
                } else {
                    next = Some(next.map_or(due, |known| known.min(due)));
                }
            }
        }
        for ticket in late {
            self.drop_request(ticket, CancelCause::Idle);
        }
        // Not more than one sweep a second, however many exchanges end shortly after each other.
        self.sweep = next.map(|due| due.max(now + Duration::from_secs(1)));
    }
}

#[cfg(test)]
mod tests;
