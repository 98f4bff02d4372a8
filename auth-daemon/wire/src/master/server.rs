//! The server's end of the master protocol.
//!
//! Rules: what a connection may ask depends on its socket ([`Access`]); anything else is answered FAIL. Answers leave in
//!        any order; an id gets at most one final answer; one LIST runs at a time, and input stops while it runs.
//! Trust: a peer may do what its socket's [`Access`] says, whatever it asks for.
//! Never: answer an id twice, or answer what the socket does not admit.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::field::{Field, number, split, strict_text, write_number, write_pair};
use crate::line::{LineReader, ReadLine};
use crate::server::{MAX_BAD_LINES, OUTPUT_HIGH_WATER, Sent};
use crate::table::Table;
use crate::{MAX_MASTER_LINE, MAX_REPLY, Params, Secret, Ticket};

/// What a socket lets its peers do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    /// Everything.
    Master,
    /// USER, PASS and LIST.
    Userdb,
    /// REQUEST only.
    Session,
}

/// What all connections of one listener share.
#[derive(Clone, Debug)]
pub struct Config {
    /// The rights of the socket.
    pub access: Access,
    /// Announced minor version: 1 suits every known peer.
    pub minor: u32,
    /// Process id of the server.
    pub spid: u32,
    /// Service of lookups that name none; without it they fail.
    pub default_service: Option<String>,
    /// Most requests open at once on one connection.
    pub max_open: usize,
}

impl Config {
    /// The usual settings for a socket of that kind.
    pub fn new(access: Access, spid: u32) -> Self {
        Self { access, minor: 1, spid, default_service: None, max_open: 4096 }
    }
}

/// USER or PASS.
#[derive(Debug)]
pub struct Lookup {
    /// Handle for the answer.
    pub ticket: Ticket,
    /// The name as asked for.
    pub user: String,
    /// `service=`, `protocol=` or the listener's default.
    pub service: String,
    /// Everything else the peer told.
    pub params: Params,
}

/// LIST. Answer with any number of [`Session::list_item`], then [`Session::list_done`].
#[derive(Debug)]
pub struct ListRequest {
    /// Handle for the answers.
    pub ticket: Ticket,
    /// `user=`: a mask with `*` and `?`; older peers filter for themselves.
    pub mask: Option<String>,
    /// The service, if one was named.
    pub service: Option<String>,
}

/// REQUEST: a mail process fetches a finished login.
#[derive(Debug)]
pub struct LoginRequest {
    /// Handle for the answer.
    pub ticket: Ticket,
    /// CPID of the login connection.
    pub client_pid: u32,
    /// Id of the request on the login connection.
    pub client_id: u32,
    /// The cookie as sent; compare with [`crate::login::Registry::redeem`].
    pub cookie: Secret,
    /// Process that will serve the user; must be the process at the other end of this connection.
    pub session_pid: Option<u32>,
    /// The peer vouches for `session_pid` (Dovecot 2.4). Ours never believes that.
    pub session_pid_trusted: bool,
    /// A token for the mail process is wanted.
    pub request_auth_token: bool,
}

/// Numbers for CACHE-STATUS.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct CacheStatus {
    /// Lookups answered from the cache.
    pub hits: u64,
    /// Lookups that were not.
    pub misses: u64,
    /// Positive entries.
    pub pos_entries: u64,
    /// Negative entries.
    pub neg_entries: u64,
    /// Bytes of positive entries.
    pub pos_size: u64,
    /// Bytes of negative entries.
    pub neg_size: u64,
    /// Bytes in use.
    pub used_size: u64,
    /// Most bytes.
    pub max_size: u64,
}

/// What the driver has to do next.
#[derive(Debug)]
pub enum Step {
    /// USER: answer with [`Session::user`], [`Session::not_found`] or [`Session::fail`].
    User(Box<Lookup>),
    /// PASS: answer with [`Session::pass`], [`Session::not_found`] or [`Session::fail`].
    Pass(Box<Lookup>),
    /// LIST
    List(ListRequest),
    /// REQUEST: answer with [`Session::user`], [`Session::not_found`] or [`Session::fail`].
    Request(LoginRequest),
    /// CACHE-FLUSH of some users, or of everything: answer with [`Session::flushed`].
    CacheFlush {
        /// Handle for the answer.
        ticket: Ticket,
        /// Whose entries; empty for all.
        users: Vec<String>,
    },
    /// CACHE-STATUS: answer with [`Session::cache_status`].
    CacheStatus {
        /// Handle for the answer.
        ticket: Ticket,
        /// Start counting anew.
        reset: bool,
    },
    /// The peer used the id again; its FAIL was sent. Nothing more may be answered.
    Cancel(Ticket),
    /// Close the connection. Nothing follows.
    Close(CloseReason),
}

/// Why the session wants the connection closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// Another major version.
    Version,
    /// Lines that are not this protocol.
    Garbage,
    /// A line without end.
    Flood,
}

/// Command of an open request: its answer depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Command {
    User,
    Pass,
    List,
    Request,
    CacheFlush,
    CacheStatus,
}

impl Command {
    fn parse(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"USER" => Self::User,
            b"PASS" => Self::Pass,
            b"LIST" => Self::List,
            b"REQUEST" => Self::Request,
            b"CACHE-FLUSH" => Self::CacheFlush,
            b"CACHE-STATUS" => Self::CacheStatus,
            _ => return None,
        })
    }

    fn allowed(self, access: Access) -> bool {
        match access {
            Access::Master => true,
            Access::Userdb => matches!(self, Self::User | Self::Pass | Self::List),
            Access::Session => self == Self::Request,
        }
    }
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
    table: Table<Command>,
    list: Option<Ticket>,
    bad_lines: u32,
    closed: bool,
}

impl Session {
    /// A new connection; the greeting is the first output.
    pub fn new(config: Arc<Config>) -> Self {
        let mut output = Vec::with_capacity(64);
        output.extend_from_slice(b"VERSION\t1\t");
        write_number(&mut output, config.minor);
        output.extend_from_slice(b"\nSPID\t");
        write_number(&mut output, config.spid);
        output.push(b'\n');
        Self {
            lines: LineReader::new(MAX_MASTER_LINE),
            core: Core {
                steps: VecDeque::new(),
                output,
                written: 0,
                table: Table::new(config.max_open.max(1)),
                list: None,
                bad_lines: 0,
                closed: false,
                config,
            },
        }
    }

    /// Takes bytes from the peer. Call [`Session::next`] until `None` before feeding again, but note that lines stay
    /// buffered while a LIST runs: feed nothing while [`Session::is_listing`].
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.core.closed {
            self.lines.feed(bytes);
        }
    }

    /// The next thing to do.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.core.steps.pop_front() {
                return Some(step);
            }
            if self.core.closed || self.core.list.is_some() || self.output().len() > OUTPUT_HIGH_WATER {
                return None;
            }
            match self.lines.next()? {
                ReadLine::Line(line) => self.core.line(line),
                ReadLine::Overlong(head) => self.core.overlong(head),
                ReadLine::Flood => self.core.close(CloseReason::Flood),
            }
        }
    }

    /// Bytes for the peer.
    pub fn output(&self) -> &[u8] {
        self.core.output.get(self.core.written..).unwrap_or_default()
    }

    /// The driver wrote that many bytes of [`Session::output`].
    pub fn wrote(&mut self, bytes: usize) {
        let core = &mut self.core;
        core.written = core.written.saturating_add(bytes).min(core.output.len());
        if core.written == core.output.len() || core.written > OUTPUT_HIGH_WATER {
            core.output.drain(..core.written);
            core.output.shrink_to(64 * 1024);
            core.written = 0;
        }
    }

    /// Whether a LIST is being answered.
    pub fn is_listing(&self) -> bool {
        self.core.list.is_some()
    }

    /// Number of open requests.
    pub fn open(&self) -> usize {
        self.core.table.len()
    }

    /// A found user: `USER` for USER and REQUEST. A reply beyond the line limit becomes FAIL.
    pub fn user(&mut self, ticket: Ticket, user: &str, fields: &[Field]) -> Sent {
        self.core.answer(ticket, &[Command::User, Command::Request], |out, id| {
            begin(out, "USER", id);
            out.push(b'\t');
            crate::escape_into(out, user.as_bytes());
            write_fields(out, fields);
        })
    }

    /// A found password entry: `PASS`.
    pub fn pass(&mut self, ticket: Ticket, user: &str, fields: &[Field]) -> Sent {
        self.core.answer(ticket, &[Command::Pass], |out, id| {
            begin(out, "PASS", id);
            write_pair(out, "user", user);
            for field in fields.iter().filter(|field| field.name != "user") {
                write_fields(out, std::slice::from_ref(field));
            }
        })
    }

    /// There is no such user.
    pub fn not_found(&mut self, ticket: Ticket) -> Sent {
        let commands = [Command::User, Command::Pass, Command::Request];
        self.core.answer(ticket, &commands, |out, id| begin(out, "NOTFOUND", id))
    }

    /// The lookup could not be made, or is refused.
    pub fn fail(&mut self, ticket: Ticket, reason: Option<&str>) -> Sent {
        let Some(command) = self.core.table.get(ticket).copied() else { return Sent::Stale };
        if command == Command::List {
            return self.list_done(ticket, false);
        }
        self.core.answer(ticket, &[command], |out, id| {
            begin(out, "FAIL", id);
            if let Some(reason) = reason {
                write_pair(out, "reason", reason.get(..512).unwrap_or(reason));
            }
        })
    }

    /// One name of a LIST. Write [`Session::output`] in between; names are not held back.
    pub fn list_item(&mut self, ticket: Ticket, user: &str) -> Sent {
        if self.core.list != Some(ticket) {
            return Sent::Stale;
        }
        let out = &mut self.core.output;
        begin(out, "LIST", ticket.id());
        out.push(b'\t');
        crate::escape_into(out, user.as_bytes());
        out.push(b'\n');
        Sent::Delivered
    }

    /// The end of a LIST.
    pub fn list_done(&mut self, ticket: Ticket, complete: bool) -> Sent {
        if self.core.list != Some(ticket) {
            return Sent::Stale;
        }
        self.core.list = None;
        self.core.table.finish(ticket);
        write_list_done(&mut self.core.output, ticket.id(), complete);
        Sent::Delivered
    }

    /// The cache was flushed of that many entries.
    pub fn flushed(&mut self, ticket: Ticket, count: u64) -> Sent {
        self.core.answer(ticket, &[Command::CacheFlush], |out, id| {
            begin(out, "OK", id);
            out.push(b'\t');
            out.extend_from_slice(count.to_string().as_bytes());
        })
    }

    /// The state of the cache.
    pub fn cache_status(&mut self, ticket: Ticket, status: &CacheStatus) -> Sent {
        self.core.answer(ticket, &[Command::CacheStatus], |out, id| {
            begin(out, "OK", id);
            for (name, value) in [
                ("hits", status.hits),
                ("misses", status.misses),
                ("pos_entries", status.pos_entries),
                ("neg_entries", status.neg_entries),
                ("pos_size", status.pos_size),
                ("neg_size", status.neg_size),
                ("used_size", status.used_size),
                ("max_size", status.max_size),
            ] {
                write_pair(out, name, &value.to_string());
            }
        })
    }
}

impl Core {
    fn close(&mut self, reason: CloseReason) {
        if !self.closed {
            self.closed = true;
            self.steps.push_back(Step::Close(reason));
        }
    }

    fn bad_line(&mut self) {
        self.bad_lines += 1;
        if self.table.len() == 0 || self.bad_lines > MAX_BAD_LINES {
            self.close(CloseReason::Garbage);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let mut fields = line.split(|byte| *byte == b'\t');
        let word = fields.next().unwrap_or_default();
        if word == b"VERSION" {
            return match (fields.next().and_then(number), fields.next().and_then(number)) {
                (Some(1), Some(_)) => {}
                _ => self.close(CloseReason::Version),
            };
        }
        let (Some(command), Some(id)) = (Command::parse(word), fields.next().and_then(number)) else {
            return self.bad_line();
        };
        if let Some(ticket) = self.table.ticket(id) {
            // Two requests under one id cannot both be answered: both end with this one FAIL.
            self.table.finish(ticket);
            self.steps.push_back(Step::Cancel(ticket));
            return self.refuse(command, id, "Request id is already in use");
        }
        if memchr::memchr(0, line).is_some() {
            return self.refuse(command, id, "Invalid request");
        }
        if !command.allowed(self.config.access) {
            return self.refuse(command, id, "Not permitted on this socket");
        }
        if self.table.is_full() {
            return self.refuse(command, id, "Too many requests");
        }
        let step = match command {
            Command::User | Command::Pass => self.lookup(command, id, fields),
            Command::List => Ok(self.start_list(id, fields)),
            Command::Request => self.login_request(id, fields),
            Command::CacheFlush => self.cache_flush(id, fields),
            Command::CacheStatus => {
                let reset = fields.any(|field| field == b"reset");
                Ok(Step::CacheStatus { ticket: self.table.insert(id, command), reset })
            }
        };
        match step {
            Ok(step) => self.steps.push_back(step),
            Err(reason) => self.refuse(command, id, reason),
        }
    }

    fn overlong(&mut self, head: &[u8]) {
        let mut fields = head.split(|byte| *byte == b'\t');
        let command = fields.next().and_then(Command::parse);
        let id = fields.next().filter(|_| fields.next().is_some()).and_then(number);
        match (command, id) {
            (Some(command), Some(id)) if !self.table.contains_id(id) => {
                self.refuse(command, id, "Request is too long");
            }
            _ => self.bad_line(),
        }
    }

    fn lookup<'a>(
        &mut self,
        command: Command,
        id: u32,
        mut fields: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Step, &'static str> {
        let user = fields.next().and_then(strict_text).ok_or("Invalid user name")?;
        let mut params = Params::default();
        for field in fields {
            if !params.take(field) {
                return Err("Invalid service name");
            }
        }
        let service = params
            .service
            .clone()
            .or_else(|| self.config.default_service.clone())
            .ok_or("Missing service name")?;
        let lookup = Box::new(Lookup { ticket: self.table.insert(id, command), user, service, params });
        Ok(if command == Command::User { Step::User(lookup) } else { Step::Pass(lookup) })
    }

    fn start_list<'a>(&mut self, id: u32, fields: impl Iterator<Item = &'a [u8]>) -> Step {
        let (mut mask, mut service) = (None, None);
        for field in fields {
            match split(field) {
                (b"user", Some(value)) => mask = Some(crate::field::text(value)),
                (b"service" | b"protocol", Some(value)) => service = Some(crate::field::text(value)),
                _ => {}
            }
        }
        let ticket = self.table.insert(id, Command::List);
        self.list = Some(ticket);
        Step::List(ListRequest { ticket, mask, service })
    }

    fn login_request<'a>(
        &mut self,
        id: u32,
        mut fields: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Step, &'static str> {
        let client_pid = fields.next().and_then(number).ok_or("Invalid request")?;
        let client_id = fields.next().and_then(number).ok_or("Invalid request")?;
        let cookie = fields.next().map(Secret::from).ok_or("Invalid request")?;
        let (mut session_pid, mut session_pid_trusted, mut request_auth_token) = (None, false, false);
        for field in fields {
            match split(field) {
                (b"session_pid", Some(value)) => session_pid = Some(number(value).ok_or("Invalid request")?),
                (b"session_pid_trusted", _) => session_pid_trusted = true,
                (b"request_auth_token", _) => request_auth_token = true,
                _ => {}
            }
        }
        let ticket = self.table.insert(id, Command::Request);
        Ok(Step::Request(LoginRequest {
            ticket,
            client_pid,
            client_id,
            cookie,
            session_pid,
            session_pid_trusted,
            request_auth_token,
        }))
    }

    fn cache_flush<'a>(
        &mut self,
        id: u32,
        fields: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Step, &'static str> {
        let mut users = Vec::new();
        for field in fields.filter(|field| !field.is_empty()) {
            users.push(strict_text(field).ok_or("Invalid user name")?);
        }
        Ok(Step::CacheFlush { ticket: self.table.insert(id, Command::CacheFlush), users })
    }

    /// The one answer to a request that never opened.
    fn refuse(&mut self, command: Command, id: u32, reason: &str) {
        if command == Command::List {
            write_list_done(&mut self.output, id, false);
        } else {
            begin(&mut self.output, "FAIL", id);
            write_pair(&mut self.output, "reason", reason);
            self.output.push(b'\n');
        }
    }

    fn answer(&mut self, ticket: Ticket, fitting: &[Command], write: impl FnOnce(&mut Vec<u8>, u32)) -> Sent {
        let Some(command) = self.table.get(ticket).copied() else { return Sent::Stale };
        let start = self.output.len();
        write(&mut self.output, ticket.id());
        self.output.push(b'\n');
        self.table.finish(ticket);
        if fitting.contains(&command) && self.output.len() - start <= MAX_REPLY {
            return Sent::Delivered;
        }
        self.output.truncate(start);
        if command == Command::List {
            self.list = None;
        }
        self.refuse(command, ticket.id(), "Internal error");
        Sent::Replaced
    }
}

fn begin(out: &mut Vec<u8>, word: &str, id: u32) {
    out.extend_from_slice(word.as_bytes());
    out.push(b'\t');
    write_number(out, id);
}

fn write_fields(out: &mut Vec<u8>, fields: &[Field]) {
    for field in fields.iter().filter(|field| !field.name.is_empty()) {
        field.write(out);
    }
}

fn write_list_done(out: &mut Vec<u8>, id: u32, complete: bool) {
    begin(out, "DONE", id);
    // Success has an empty third field, as Dovecot sends it.
    out.extend_from_slice(if complete { b"\t\n".as_slice() } else { b"\tfail\n" });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(access: Access) -> Session {
        let mut session = Session::new(Arc::new(Config::new(access, 42)));
        assert_eq!(session.output(), b"VERSION\t1\t1\nSPID\t42\n");
        session.wrote(100);
        session
    }

    fn output(session: &mut Session) -> String {
        let text = String::from_utf8(session.output().to_vec()).unwrap();
        session.wrote(text.len());
        text
    }

    #[test]
    fn lookups_are_answered_in_any_order() {
        let mut session = session(Access::Userdb);
        session
            .feed(b"VERSION\t1\t0\nUSER\t0\tbob\tservice=smtp\nPASS\t7\teve\tprotocol=imap\trip=192.0.2.1\n");
        let Some(Step::User(user)) = session.next() else { panic!() };
        let Some(Step::Pass(pass)) = session.next() else { panic!() };
        assert!(session.next().is_none());
        assert_eq!((user.user.as_str(), user.service.as_str()), ("bob", "smtp"));
        assert!(pass.params.rip.is_some());
        session.pass(pass.ticket, "eve", &[Field::flag("nologin"), Field::new("host", "h")]);
        let fields = [Field::new("uid", "8"), Field::new("home", "/a\tb")];
        assert_eq!(session.user(user.ticket, "bob@x", &fields), Sent::Delivered);
        assert_eq!(session.user(user.ticket, "bob@x", &fields), Sent::Stale);
        assert_eq!(
            output(&mut session),
            "PASS\t7\tuser=eve\tnologin\thost=h\nUSER\t0\tbob@x\tuid=8\thome=/a\u{1}tb\n"
        );
    }

    #[test]
    fn a_list_stops_input_until_it_is_done() {
        let mut session = session(Access::Master);
        session.feed(b"LIST\t1\tuser=*\tservice=x\nLIST\t2\nUSER\t3\ta\tservice=y\n");
        let Some(Step::List(list)) = session.next() else { panic!() };
        assert_eq!(list.mask.as_deref(), Some("*"));
        assert!(session.next().is_none() && session.is_listing());
        session.list_item(list.ticket, "bob");
        session.list_item(list.ticket, "e\tve");
        session.list_done(list.ticket, true);
        assert_eq!(session.list_item(list.ticket, "late"), Sent::Stale);
        let Some(Step::List(second)) = session.next() else { panic!() };
        session.fail(second.ticket, None);
        assert!(matches!(session.next(), Some(Step::User(_))));
        assert_eq!(output(&mut session), "LIST\t1\tbob\nLIST\t1\te\u{1}tve\nDONE\t1\t\nDONE\t2\tfail\n");
    }

    #[test]
    fn access_classes() {
        for (access, line, allowed) in [
            (Access::Userdb, "USER\t1\ta\tservice=x\n", true),
            (Access::Userdb, "PASS\t1\ta\tservice=x\n", true),
            (Access::Userdb, "REQUEST\t1\t2\t3\tc\n", false),
            (Access::Userdb, "CACHE-FLUSH\t1\n", false),
            (Access::Session, "REQUEST\t1\t2\t3\tc\n", true),
            (Access::Session, "USER\t1\ta\tservice=x\n", false),
            (Access::Session, "LIST\t1\n", false),
            (Access::Master, "CACHE-FLUSH\t1\ta\tb\n", true),
            (Access::Master, "CACHE-STATUS\t1\treset\n", true),
            (Access::Master, "REQUEST\t1\t2\t3\tc\tsession_pid=9\trequest_auth_token\n", true),
        ] {
            let mut session = session(access);
            session.feed(line.as_bytes());
            assert_eq!(session.next().is_some(), allowed, "{access:?} {line}");
            let answer = output(&mut session);
            let expected = if allowed {
                ""
            } else if line.starts_with("LIST") {
                "DONE\t1\tfail\n"
            } else {
                "FAIL\t1\treason=Not permitted on this socket\n"
            };
            assert_eq!(answer, expected, "{access:?} {line}");
        }
    }

    #[test]
    fn bad_requests_are_failed_one_by_one() {
        let mut session = session(Access::Master);
        session.feed(b"USER\t1\ta\tservice=x\nUSER\t2\tb\nUSER\t3\tb\xff\tservice=x\nREQUEST\t4\tx\n");
        session.feed(b"USER\t5\ta\0b\tservice=x\nREQUEST\t6\t1\t2\tc\tsession_pid=x\n");
        let long = [b"USER\t7\t".as_slice(), &[b'a'; 9000], b"\tservice=x\n"].concat();
        session.feed(&long);
        session.feed(b"NONSENSE\nUSER\t8\tz\tservice=x\n");
        let mut users = Vec::new();
        while let Some(step) = session.next() {
            let Step::User(lookup) = step else { panic!("{step:?}") };
            users.push(lookup.user.clone());
        }
        assert_eq!(users, ["a", "z"]);
        let ids: Vec<_> =
            output(&mut session).lines().map(|line| line.split('\t').nth(1).unwrap().to_owned()).collect();
        assert_eq!(ids, ["2", "3", "4", "5", "6", "7"]);
    }

    #[test]
    fn duplicates_end_with_one_fail() {
        let mut session = session(Access::Master);
        session.feed(b"USER\t1\ta\tservice=x\nUSER\t1\tb\tservice=x\nUSER\t2\tc\tservice=x\n");
        let Some(Step::User(first)) = session.next() else { panic!() };
        let Some(Step::Cancel(gone)) = session.next() else { panic!() };
        assert_eq!(first.ticket, gone);
        assert!(matches!(session.next(), Some(Step::User(_))));
        assert_eq!(session.not_found(first.ticket), Sent::Stale);
        assert_eq!(output(&mut session), "FAIL\t1\treason=Request id is already in use\n");
    }

    #[test]
    fn garbage_closes() {
        for (input, reason) in [
            (b"\n".as_slice(), CloseReason::Garbage),
            (b"GET / HTTP/1.1\r\n", CloseReason::Garbage),
            (b"CPID\t1\n", CloseReason::Garbage),
            (b"VERSION\t2\t0\n", CloseReason::Version),
            (b"VERSION\t1\n", CloseReason::Version),
            (&[b'x'; 70_000], CloseReason::Flood),
        ] {
            let mut session = session(Access::Master);
            session.feed(input);
            assert!(matches!(session.next(), Some(Step::Close(found)) if found == reason));
            session.feed(b"USER\t1\ta\tservice=x\n");
            assert!(session.next().is_none());
        }
    }

    #[test]
    fn cache_and_oversized_replies() {
        let mut session = session(Access::Master);
        session.feed(b"CACHE-FLUSH\t1\ta\nCACHE-STATUS\t2\nUSER\t3\ta\tservice=x\nUSER\t4\ta\tservice=x\n");
        let Some(Step::CacheFlush { ticket, users }) = session.next() else { panic!() };
        assert_eq!(users, ["a"]);
        session.flushed(ticket, 12);
        let Some(Step::CacheStatus { ticket, reset: false }) = session.next() else { panic!() };
        session.cache_status(ticket, &CacheStatus { hits: 3, ..CacheStatus::default() });
        let Some(Step::User(lookup)) = session.next() else { panic!() };
        assert_eq!(session.user(lookup.ticket, "a", &[Field::new("x", "y".repeat(9000))]), Sent::Replaced);
        let Some(Step::User(lookup)) = session.next() else { panic!() };
        session.not_found(lookup.ticket);
        assert_eq!(
            output(&mut session),
            "OK\t1\t12\nOK\t2\thits=3\tmisses=0\tpos_entries=0\tneg_entries=0\tpos_size=0\tneg_size=0\tused_size=0\t\
             max_size=0\nFAIL\t3\treason=Internal error\nNOTFOUND\t4\n"
        );
    }
}
