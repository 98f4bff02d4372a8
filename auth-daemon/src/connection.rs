//! One connection of the client protocol: socket, timers and running requests around `auth_wire::server::Session`.
//!
//! Purpose: many requests in flight, answered as they are ready; refusals held back for their delay.
//! Speed:   a request that needs to wait for nothing is answered without a task, a timer or a lock of the connection.
//! Never:   answer after the client cancelled, let one request's outage close others that are being verified.
//! Trust:   the client is whoever may reach the socket; the session bounds its lines and its open requests.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use auth_wire::server::{AuthRequest, CancelCause, Identity, RefusedRequest, Reply, Session, Step};
use auth_wire::{Cookie, FailCode, Field, MechName, Ticket};
use boot::DrainToken;
use conf::OnOutage;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{Compiled, Listener};
use crate::engine::{Engine, Kept};
use crate::exchange::{Answer, Input, Login};
use crate::open::Place;
use crate::outcome::{Decision, OUTAGE_TEXT, Outcome, audit_refused, client_fields};
use crate::request::{PeerCredentials, Request};

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Output above this is written before more input is taken.
const OUTPUT_PAUSE: usize = 64 * 1024;

type Work = Pin<Box<dyn Future<Output = (Box<Login>, Answer)> + Send>>;

/// Serves a connection until it ends.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    stream: UnixStream,
    peer: PeerCredentials,
    mut drain: DrainToken,
) -> io::Result<()> {
    let Some(wire) = listener.wire.clone() else { return Ok(()) };
    let identity = Identity {
        spid: std::process::id(),
        cuid: engine.next_cuid(),
        cookie: Cookie::from_bytes(crate::engine::random()),
    };
    let mut connection = Connection {
        session: Session::new(wire, &identity),
        engine,
        listener,
        peer,
        identity,
        registered: None,
        waiting: HashMap::new(),
        running: HashMap::new(),
        jobs: JoinSet::new(),
        delayed: BinaryHeap::new(),
        serial: 0,
        clock: Instant::now(),
        ending: None,
    };
    connection.run(&stream, &mut drain).await
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client has gone, or broke the protocol: nothing more is answered.
    Now,
    /// The client said all it will say, or the daemon stops: open requests are answered first.
    AfterAnswers,
}

struct Connection {
    session: Session,
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    peer: PeerCredentials,
    identity: Identity,
    /// The CPID this login connection is registered with.
    registered: Option<u32>,
    /// Exchanges that wait for their client.
    waiting: HashMap<Ticket, (Box<Login>, Place)>,
    running: HashMap<Ticket, AbortHandle>,
    jobs: JoinSet<(Ticket, Box<Login>, Answer)>,
    delayed: BinaryHeap<Reverse<Held>>,
    serial: u64,
    /// When the work on the request at hand began.
    clock: Instant,
    ending: Option<Ending>,
}

/// An answer that waits for its time.
struct Held {
    due: Instant,
    serial: u64,
    ticket: Ticket,
    answer: HeldAnswer,
}

enum HeldAnswer {
    Refusal(Refusal),
    /// With `delay_until`.
    Success(Box<(Box<Login>, Outcome)>),
}

struct Refusal {
    user: Option<String>,
    code: Option<FailCode>,
    text: String,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.serial) == (other.due, other.serial)
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.serial).cmp(&(other.due, other.serial))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(cpid) = self.registered {
            self.engine.logins().unregister(cpid, &self.identity.cookie);
        }
    }
}

impl Connection {
    async fn run(&mut self, stream: &UnixStream, drain: &mut DrainToken) -> io::Result<()> {
        let mut draining = false;
        let mut told_to_drain = pin!(drain.draining());
        loop {
            let now = Instant::now();
            self.steps(now);
            self.release(now, draining);
            write(stream, &mut self.session)?;
            if self.is_over() {
                return Ok(());
            }
            let pending = self.session.output().len();
            let reading = self.ending.is_none() && pending < OUTPUT_PAUSE;
            let interest = match (reading, pending > 0) {
                (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, false) => Some(Interest::READABLE),
                (false, true) => Some(Interest::WRITABLE),
                (false, false) => None,
            };
            let due = self.next_due();
            tokio::select! {
                ready = stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    let ready = ready?;
                    if reading && ready.is_readable() && !read(stream, &mut self.session)? {
                        // Always writable at once; what counts is whether the other end is gone altogether.
                        let gone = stream.ready(Interest::WRITABLE).await?.is_write_closed();
                        self.end_of_input(gone);
                    }
                }
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    // An aborted job was cancelled by its client; a job that panicked has no request to answer any
                    // more and is forgotten by its client's timeout.
                    if let Ok((ticket, login, answer)) = done {
                        self.running.remove(&ticket);
                        self.answer(ticket, login, answer, Instant::now());
                    }
                }
                () = sleep_until(due), if due.is_some() => {}
                () = &mut told_to_drain, if !draining => {
                    draining = true;
                    self.ending.get_or_insert(Ending::AfterAnswers);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        match self.ending {
            None => false,
            Some(Ending::Now) => true,
            Some(Ending::AfterAnswers) => {
                self.session.output().is_empty() && self.jobs.is_empty() && self.delayed.is_empty()
            }
        }
    }

    /// A client that shuts only its sending side still waits for answers.
    fn end_of_input(&mut self, gone: bool) {
        self.ending = Some(if gone { Ending::Now } else { Ending::AfterAnswers });
    }

    fn next_due(&self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|Reverse(delayed)| delayed.due);
        match (delayed, self.session.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Everything the session has for us.
    fn steps(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        self.clock = now;
        let mut rules = None;
        while let Some(step) = self.session.next(now) {
            match step {
                Step::ClientPid(pid) => self.client_pid(pid),
                Step::Start(request) => {
                    let (compiled, listener) = rules.get_or_insert_with(|| self.rules()).clone();
                    self.start(request, compiled, listener, now);
                }
                Step::Refused(request) => self.tell_refused(*request, now),
                Step::Continue { ticket, data, channel_binding, .. } => {
                    if let Some((mut login, _)) = self.waiting.remove(&ticket) {
                        login.request.arrived = now;
                        self.advance(ticket, login, Input::Continue { data, binding: channel_binding }, now);
                    }
                }
                Step::Cancel { ticket, cause } => {
                    let waited = self.waiting.remove(&ticket);
                    if let (Some((login, _)), CancelCause::Malformed) = (waited, cause) {
                        self.tell_broken(&login.request);
                    }
                    if let Some(job) = self.running.remove(&ticket) {
                        job.abort();
                    }
                    // A refusal may wait on: it has been counted, and nobody is told about it.
                    let wanted =
                        |held: &Held| held.ticket != ticket || matches!(held.answer, HeldAnswer::Refusal(_));
                    self.delayed.retain(|Reverse(held)| wanted(held));
                }
                Step::Release(id) => self.forget_kept(id),
                Step::Close(reason) => {
                    tracing::debug!(listener = self.listener.name, ?reason, "client broke the protocol");
                    self.ending = Some(Ending::Now);
                }
            }
            if self.ending.is_some() {
                return;
            }
        }
    }

    fn client_pid(&mut self, pid: u32) {
        if !self.listener.is_login() {
            return;
        }
        if self.engine.logins().register(pid, self.identity.cookie) {
            self.registered = Some(pid);
        } else {
            tracing::warn!(listener = self.listener.name, pid, "two login connections with one client pid");
            self.ending = Some(Ending::Now);
        }
    }

    fn forget_kept(&mut self, id: u32) {
        if let Some(cpid) = self.registered {
            self.engine.logins().forget(cpid, id);
        }
    }

    /// The configuration of now. After a reload the connection goes on under the listener's new rules.
    fn rules(&self) -> (Arc<Compiled>, Arc<Listener>) {
        let compiled = self.engine.config();
        let listener = Arc::clone(compiled.listeners.get(&self.listener.name).unwrap_or(&self.listener));
        (compiled, listener)
    }

    fn start(&mut self, auth: AuthRequest, compiled: Arc<Compiled>, listener: Arc<Listener>, now: Instant) {
        let AuthRequest { ticket, mechanism, service, params, initial, arrived, .. } = auth;
        self.forget_kept(ticket.id());
        let request = Request::new(params, service, self.peer, arrived);
        let Some(mechanism) = sasl::Name::parse(mechanism.name.as_str()) else {
            let reply =
                Reply::Fail { user: None, code: None, reason: Some("Unsupported mechanism"), fields: &[] };
            self.session.reply(ticket, reply, now);
            return;
        };
        let login = Box::new(Login::new(compiled, listener, request, mechanism, self.identity.cuid));
        self.advance(ticket, login, Input::Start(initial), now);
    }

    /// A request that the session has refused by itself makes a line in the log like any other.
    fn tell_refused(&self, refused: RefusedRequest, now: Instant) {
        let RefusedRequest { mechanism, service, params, reason, .. } = refused;
        let request = Request::new(params, service, self.peer, now);
        audit_refused(&self.engine, &request, mechanism, reason, &self.listener.name);
    }

    /// The same for an exchange that the client broke.
    fn tell_broken(&self, request: &Request) {
        let mechanism = MechName::parse(request.mechanism_name().as_bytes()).ok();
        let why = "the answer to a challenge made no sense";
        audit_refused(&self.engine, request, mechanism, why, &self.listener.name);
    }

    /// Runs an exchange to its next answer, here if that needs no waiting.
    fn advance(&mut self, ticket: Ticket, mut login: Box<Login>, input: Input, now: Instant) {
        login.clock = self.clock;
        let mut work: Work = Box::pin(login.advance(Arc::clone(&self.engine), input));
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((login, answer)) => {
                self.clock = login.clock;
                self.answer(ticket, login, answer, now);
            }
            Poll::Pending => {
                let job = self.jobs.spawn(async move {
                    let (login, answer) = work.await;
                    (ticket, login, answer)
                });
                self.running.insert(ticket, job);
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, login: Box<Login>, answer: Answer, now: Instant) {
        match answer {
            Answer::Challenge { data, binding } => {
                let Some(place) = self.engine.exchanges.enter(self.peer.uid) else {
                    tracing::warn!(
                        listener = self.listener.name,
                        uid = self.peer.uid,
                        "too many open exchanges"
                    );
                    let (code, reason) = (Some(FailCode::TempFail), Some("Too many requests"));
                    self.session.reply(ticket, Reply::Fail { user: None, code, reason, fields: &[] }, now);
                    return;
                };
                self.waiting.insert(ticket, (login, place));
                self.session.reply(ticket, Reply::Challenge { data: &data, channel_binding: binding }, now);
            }
            Answer::Finished(outcome) => {
                let due = outcome.not_before.filter(|due| *due > now);
                match outcome.decision {
                    Decision::Ok => match due {
                        Some(due) => self.hold(due, ticket, HeldAnswer::Success(Box::new((login, outcome)))),
                        None => self.accept(ticket, &login, &outcome, now),
                    },
                    Decision::Refused(refusal) => {
                        let text = outcome.text().to_owned();
                        let refusal = Refusal { user: outcome.user, code: refusal.code(), text };
                        match due {
                            Some(due) => self.hold(due, ticket, HeldAnswer::Refusal(refusal)),
                            None => self.refuse(ticket, &refusal, now),
                        }
                    }
                    Decision::Outage => self.outage(ticket, &outcome, now),
                }
            }
        }
    }

    fn hold(&mut self, due: Instant, ticket: Ticket, answer: HeldAnswer) {
        self.delayed.push(Reverse(Held { due, serial: self.serial, ticket, answer }));
        self.serial += 1;
    }

    fn accept(&mut self, ticket: Ticket, login: &Login, outcome: &Outcome, now: Instant) {
        let request = &login.request;
        let fields: Vec<Field> = client_fields(request, login.anonymous, self.listener.is_login());
        // As with Dovecot: a login that is to go elsewhere, or nowhere, cannot be fetched.
        if let Some(cpid) = self.registered.filter(|_| !request.ends_at_the_door()) {
            let kept = Kept { request: request.clone(), anonymous: login.anonymous };
            self.engine.logins().keep(cpid, ticket.id(), kept, now);
        }
        let user = outcome.user.as_deref().unwrap_or_default();
        let reply = Reply::Ok { user, fields: &fields, final_data: outcome.final_data.as_deref() };
        self.session.reply(ticket, reply, now);
    }

    fn refuse(&mut self, ticket: Ticket, refusal: &Refusal, now: Instant) {
        let Refusal { user, code, text } = refusal;
        // Dovecot's login processes show a reason as `NO [ALERT]`, which mail programs pop up; without one they
        // say `[AUTHENTICATIONFAILED]`. Our own fronts (minor 3) know better.
        let usual = code.is_none() && text == crate::outcome::Refusal::Credentials.text();
        let reason =
            Some(text.as_ref()).filter(|_| !(usual && self.listener.is_login() && self.listener.minor < 3));
        let reply = Reply::Fail { user: user.as_deref(), code: *code, reason, fields: &[] };
        self.session.reply(ticket, reply, now);
    }

    /// Postfix and Exim turn every FAIL into a permanent refusal; a closed connection they take for what it is.
    fn outage(&mut self, ticket: Ticket, outcome: &Outcome, now: Instant) {
        let alone = self.session.verifying() <= 1;
        let compiled = self.engine.config();
        let rules = compiled.listeners.get(&self.listener.name).unwrap_or(&self.listener);
        let close = match rules.on_outage {
            OnOutage::Close => true,
            OnOutage::Fail => false,
            OnOutage::Auto => self.session.client_minor() == 0 && alone,
        };
        if close {
            self.ending = Some(Ending::Now);
            return;
        }
        let reply = Reply::Fail {
            user: outcome.user.as_deref(),
            code: Some(FailCode::TempFail),
            reason: Some(OUTAGE_TEXT),
            fields: &[],
        };
        self.session.reply(ticket, reply, now);
    }

    /// Sends answers whose time has come. When the daemon stops: all refusals, and no success before its time.
    fn release(&mut self, now: Instant, all: bool) {
        while let Some(Reverse(held)) = self.delayed.peek() {
            let early = held.due > now;
            if early && !all {
                return;
            }
            let Some(Reverse(held)) = self.delayed.pop() else { return };
            match held.answer {
                HeldAnswer::Refusal(refusal) => self.refuse(held.ticket, &refusal, now),
                HeldAnswer::Success(success) if early => self.outage(held.ticket, &success.1, now),
                HeldAnswer::Success(success) => self.accept(held.ticket, &success.0, &success.1, now),
            }
        }
    }
}

/// Waits until then; for ever without a time.
pub(crate) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

thread_local! {
    /// One per thread, so that an idle connection owns no buffer.
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Feeds what is there. `false`: the client has said everything.
fn read(stream: &UnixStream, session: &mut Session) -> io::Result<bool> {
    INPUT.with_borrow_mut(|buffer| {
        let mut taken = None;
        let result = stream.try_io(Interest::READABLE, || {
            let count = nix::unistd::read(stream, buffer)?;
            taken = Some(count);
            // A short read has emptied the socket: saying so spares the call that would only find that out. What
            // comes from now on is a new event.
            if (1..CHUNK).contains(&count) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (taken, result) {
            (Some(0), _) => Ok(false),
            (Some(count), _) => {
                let bytes = buffer.get_mut(..count).unwrap_or_default();
                session.feed(bytes);
                // It held passwords. The buffer lives on, so this is not left out.
                bytes.fill(0);
                Ok(true)
            }
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            (None, _) => Ok(true),
        }
    })
}

/// Writes what the client takes.
fn write(stream: &UnixStream, session: &mut Session) -> io::Result<()> {
    while !session.output().is_empty() {
        match stream.try_write(session.output()) {
            Ok(count) => session.wrote(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
