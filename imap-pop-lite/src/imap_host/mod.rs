//! One IMAP connection: the protocol's session on one side, login, store and socket on the other.
//!
//! Store:     every call that touches files runs on a blocking thread and hands back a bounded piece of
//!            output; no thread and no lock is held while the client is written to.
//! Order:     one command at a time, so that an answer never uses numbers another command changed.

mod content;
mod fetch;
mod list;
mod mail;
mod reply;
mod search;
mod structure;
mod text;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use boot::DrainToken;
use boot::courier::{self, Ask, Protocol, Why};
use imap::{
    Code, Command, Completion, LoginFailure, LoginFailureCode, Outcome, Session, Step, Tag, TlsState,
    Transition,
};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use self::mail::{Append, Mail, Turn, Work};
use crate::account::Account;
use crate::login::{Attempt, Denied, Exchange, Kept, Verdict, Welcome};
use crate::relay;
use crate::server::{Live, Peer, Shared};
use crate::stream::Connection;

/// Message bytes collected before they are written to the store.
const APPEND_PIECE: usize = 128 << 10;

/// Serves one client to the end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    peer: Peer,
    tls: TlsState,
    mut drain: DrainToken,
) {
    let live = shared.live();
    let mut session = Session::new(Arc::clone(&live.imap), tls, Instant::now());
    if live.slice.broker.is_some() {
        session.hand_over_logins();
    }
    Host::new(shared, live, connection, session, peer).serve(&mut drain).await;
}

/// Serves a client who logged in at a front, by the command with this tag, to the end.
pub(crate) async fn go_on(
    shared: Arc<Shared>,
    connection: Connection,
    peer: Peer,
    tag: &Tag,
    account: Account,
    mut drain: DrainToken,
) {
    let live = shared.live();
    let session = Session::logged_in_elsewhere(Arc::clone(&live.imap), tag, Instant::now());
    let mail = Mail::new(account, shared.budget.clone(), live.imap.limits.append);
    let mut host = Host::new(shared, live, connection, session, peer);
    host.mail = Some(Box::new(mail));
    host.serve(&mut drain).await;
}
/// A mailbox being watched for a client in IDLE.
struct Idle {
    changed: Arc<Notify>,
    /// Ends the notifications when dropped.
    _subscription: Option<maildir::Subscription>,
}

struct Host {
    shared: Arc<Shared>,
    live: Arc<Live>,
    connection: Connection,
    session: Session,
    peer: Peer,
    mail: Option<Box<Mail>>,
    /// Logged in, to be handed over.
    kept: Option<Box<Kept>>,
    /// Whose session was handed over.
    relayed: Option<String>,
    exchange: Option<Box<dyn Exchange>>,
    mechanism: String,
    append: Option<Append>,
    append_error: Option<maildir::Error>,
    append_buffer: Vec<u8>,
    idle: Option<Idle>,
}

/// What a step means for the connection.
enum Next {
    Go,
    End(&'static str),
    /// Somebody else hosts the session.
    Relay(UnixStream),
}

impl Host {
    fn new(
        shared: Arc<Shared>,
        live: Arc<Live>,
        connection: Connection,
        session: Session,
        peer: Peer,
    ) -> Self {
        Self {
            shared,
            live,
            connection,
            session,
            peer,
            mail: None,
            kept: None,
            relayed: None,
            exchange: None,
            mechanism: String::new(),
            append: None,
            append_error: None,
            append_buffer: Vec::new(),
            idle: None,
        }
    }

    async fn serve(mut self, drain: &mut DrainToken) {
        let ended = self.run(drain).await;
        let reason = match &ended {
            Ok(why) => (*why).to_owned(),
            Err(error) => error.to_string(),
        };
        let own = self.mail.as_ref().map(|mail| mail.account.user.as_str());
        let user = own.or(self.relayed.as_deref());
        let (session, received, sent) = (&self.peer.session, self.connection.received, self.connection.sent);
        // Of a session that was handed over, the front tells.
        if self.shared.tls.is_some() {
            tracing::info!(session, user, received, sent, reason, "imap connection closed");
        } else {
            tracing::debug!(session, user, received, sent, reason, "imap connection closed");
        }
        // Views and unfinished deliveries touch files when they go.
        let (mail, append) = (self.mail.take(), self.append.take());
        if mail.is_some() || append.is_some() {
            self.shared.files.run(move || drop((mail, append))).await;
        }
    }

    async fn run(&mut self, drain: &mut DrainToken) -> io::Result<&'static str> {
        let mut draining = false;
        loop {
            while let Some(step) = self.session.next() {
                match self.step(step).await? {
                    Next::Go => {}
                    Next::End(why) => return Ok(why),
                    Next::Relay(mailbox) => {
                        let ahead = self.session.take_input();
                        self.connection.flush().await?;
                        return relay::run(&mut self.connection, mailbox, &ahead, drain).await;
                    }
                }
            }
            self.connection.flush().await?;
            let deadline = self.session.deadline().map(tokio::time::Instant::from_std);
            let session = &mut self.session;
            let changed = self.idle.as_ref().map(|idle| Arc::clone(&idle.changed));
            tokio::select! {
                got = self.connection.read(|bytes| session.feed(bytes, Instant::now())) => {
                    if got? == 0 {
                        if !self.connection.is_to_end() {
                            return Ok("disconnected");
                        }
                        self.session.bye(Some(Code::Unavailable), "Server is shutting down.");
                    }
                }
                () = until(deadline) => self.session.expire(Instant::now()),
                () = notified(changed.as_deref()) => self.push_changes().await?,
                () = drain.draining(), if !draining => {
                    draining = true;
                    self.session.bye(Some(Code::Unavailable), "Server is shutting down.");
                }
            }
        }
    }

    async fn step(&mut self, step: Step) -> io::Result<Next> {
        match step {
            Step::Send(bytes) => self.connection.push(bytes).await?,
            Step::Authenticate { mechanism, initial } => {
                self.mechanism.clone_from(&mechanism);
                let attempt = Attempt {
                    mechanism,
                    initial: initial.map(|secret| secret.expose().to_vec()),
                    service: "imap",
                    session: self.peer.session.clone(),
                    local: self.peer.local,
                    remote: self.peer.remote,
                    tls: self.connection.tls_facts(),
                };
                let verdict = self.live.logins.attempt(attempt).await;
                self.verdict(verdict).await;
            }
            Step::Respond(answer) => {
                if let Some(exchange) = self.exchange.take() {
                    let verdict = exchange.respond(answer.expose().to_vec()).await;
                    self.verdict(verdict).await;
                } else {
                    self.verdict(Verdict::Denied(Denied::Malformed)).await;
                }
            }
            Step::CancelAuthentication => {
                self.exchange = None;
                self.mail = None;
                self.kept = None;
            }
            Step::HandOver(tag) => return Ok(self.hand_over(&tag).await),
            Step::StartTls => {
                self.connection.flush().await?;
                let Some(acceptor) = self.shared.tls.as_ref().map(|doors| doors.imap.clone()) else {
                    return Ok(Next::End("internal error: no TLS here"));
                };
                match Box::pin(self.connection.start_tls(&acceptor)).await {
                    Ok(()) => self.session.tls_established(Instant::now()),
                    Err(error) => {
                        tracing::info!(session = %self.peer.session, %error, "STARTTLS failed");
                        return Ok(Next::End("TLS handshake failed"));
                    }
                }
            }
            Step::ClientId(pairs) => {
                let shown: Vec<String> = pairs
                    .iter()
                    .map(|(name, value)| {
                        let value = value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                        format!("{}={value}", String::from_utf8_lossy(name))
                    })
                    .collect();
                tracing::debug!(session = %self.peer.session, client = ?shown, "client named itself");
            }
            Step::Run(tag, command) => self.command(tag, command).await?,
            Step::Append(head) => {
                let result = self
                    .with_mail(move |mail| match mail.append(&head) {
                        Ok(append) => Ok(append),
                        Err(completion) => Err(completion),
                    })
                    .await;
                let outcome = match result {
                    Some(Ok(append)) => {
                        self.append = Some(append);
                        self.append_error = None;
                        Outcome::AppendAccepted
                    }
                    Some(Err(completion)) => Outcome::Done(completion),
                    None => Outcome::Done(broken()),
                };
                self.session.resume(outcome, Instant::now());
            }
            Step::AppendChunk(mut chunk) => {
                self.append_buffer.append(&mut chunk);
                if self.append_buffer.len() >= APPEND_PIECE {
                    self.append_write().await;
                }
            }
            Step::AppendEnd => self.append_end().await?,
            Step::AppendAbort => {
                self.append_buffer = Vec::new();
                let append = self.append.take();
                self.shared.files.run(move || drop(append)).await;
            }
            Step::Idle => self.idle_start().await?,
            Step::IdleDone => {
                self.idle = None;
                let result = self
                    .with_mail(|mail| {
                        let mut out = Vec::new();
                        let completion = mail.sync(true, &mut out, Completion::ok("Idle completed."));
                        (out, completion)
                    })
                    .await;
                let (out, completion) = result.unwrap_or_else(|| (Vec::new(), broken()));
                self.connection.push(out).await?;
                self.session.resume(Outcome::Done(completion), Instant::now());
            }
            Step::Close => {
                self.connection.flush().await?;
                self.connection.shutdown().await;
                return Ok(Next::End("closed"));
            }
            _ => return Ok(Next::End("internal error: unknown step")),
        }
        Ok(Next::Go)
    }

    async fn verdict(&mut self, verdict: Verdict) {
        let outcome = match verdict {
            Verdict::Challenge(exchange, data) => {
                self.exchange = Some(exchange);
                Outcome::Challenge(data)
            }
            Verdict::Welcome(welcome) => self.welcome(welcome).await,
            Verdict::Kept(mut kept) => {
                let final_data = kept.final_data.take();
                self.kept = Some(kept);
                Outcome::LoggedIn(final_data)
            }
            Verdict::Denied(denied) => {
                tracing::debug!(
                    session = %self.peer.session,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    reason = ?denied,
                    "imap login failed"
                );
                denied_outcome(denied)
            }
            Verdict::NoLogin(text) => {
                tracing::info!(session = %self.peer.session, reason = text, "imap login refused by nologin");
                Outcome::LoginFailed(LoginFailure { code: LoginFailureCode::Disabled, text })
            }
        };
        self.session.resume(outcome, Instant::now());
    }

    /// Finds whoever hosts the user's mail; otherwise the client hears why not.
    async fn hand_over(&mut self, tag: &Tag) -> Next {
        let (Some(broker), Some(kept)) = (&self.live.slice.broker, self.kept.take()) else {
            self.session.resume(denied_outcome(Denied::Unavailable), Instant::now());
            return Next::Go;
        };
        let session = courier::Session {
            protocol: Protocol::Imap,
            tag: tag.as_str().to_owned(),
            mechanisms: self.live.imap.mechanisms.clone(),
            session: self.peer.session.clone(),
            local: self.peer.local,
            remote: self.peer.remote,
        };
        let opened = relay::open(broker, &Ask::Session(kept.ticket.clone(), session)).await;
        kept.fetched();
        match opened {
            Ok((mailbox, user)) => {
                tracing::info!(
                    session = %self.peer.session,
                    user,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    tls = self.connection.tls_name(),
                    "imap login"
                );
                self.relayed = Some(user);
                Next::Relay(mailbox)
            }
            Err(refusal) => {
                relay::refused(&self.peer.session, &kept.user, &refusal);
                let (code, text) = match refusal.why {
                    Why::Denied => (LoginFailureCode::Disabled, "This account has no mailbox here."),
                    Why::TooMany => (LoginFailureCode::Unavailable, "Too many sessions of this user."),
                    Why::NoSpace => {
                        (LoginFailureCode::Unavailable, "The mailbox cannot be opened: no space.")
                    }
                    _ => (LoginFailureCode::Unavailable, "The mailbox cannot be opened now."),
                };
                let failure = LoginFailure { code, text: text.to_owned() };
                self.session.resume(Outcome::LoginFailed(failure), Instant::now());
                Next::Go
            }
        }
    }

    async fn welcome(&mut self, welcome: Welcome) -> Outcome {
        let places = self.live.places.clone();
        let store = self.shared.store.clone();
        let final_data = welcome.final_data.clone();
        let user = welcome.user.clone();
        let opened = self.shared.files.run(move || places.open(&store, &welcome)).await;
        match opened {
            Some(Ok(account)) => {
                tracing::info!(
                    session = %self.peer.session,
                    user,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    tls = self.connection.tls_name(),
                    "imap login"
                );
                let mail = Mail::new(account, self.shared.budget.clone(), self.live.imap.limits.append);
                self.mail = Some(Box::new(mail));
                Outcome::LoggedIn(final_data)
            }
            Some(Err(error)) => {
                tracing::error!(session = %self.peer.session, user, %error, "cannot open the user's mail; run `postern doctor`");
                denied_outcome(Denied::Unavailable)
            }
            None => denied_outcome(Denied::Unavailable),
        }
    }

    /// Runs blocking work on the account. `None` when the work panicked (or nobody is logged in); the
    /// account is lost then.
    async fn with_mail<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Mail) -> T + Send + 'static,
    ) -> Option<T> {
        let mut mail = self.mail.take()?;
        let (mail, result) = self
            .shared
            .files
            .run(move || {
                let result = work(&mut mail);
                (mail, result)
            })
            .await?;
        self.mail = Some(mail);
        Some(result)
    }

    async fn command(&mut self, tag: Tag, command: Command) -> io::Result<()> {
        let mut work = Work::Command(Box::new(command), tag);
        loop {
            let turned = self
                .with_mail(move |mail| {
                    let mut out = Vec::new();
                    let turn = work.turn(mail, &mut out);
                    (out, turn)
                })
                .await;
            let Some((out, turn)) = turned else {
                self.session.bye(Some(Code::ServerBug), "Internal error.");
                return Ok(());
            };
            self.connection.push(out).await?;
            match turn {
                Turn::More(more) => {
                    self.connection.flush().await?;
                    work = more;
                }
                Turn::Done(completion) => {
                    self.session.resume(Outcome::Done(completion), Instant::now());
                    return Ok(());
                }
                Turn::Broken => return Err(io::Error::other("a message could not be read to its end")),
            }
        }
    }

    async fn append_write(&mut self) {
        let bytes = std::mem::take(&mut self.append_buffer);
        let Some(mut append) = self.append.take() else { return };
        if self.append_error.is_some() {
            self.append = Some(append);
            return;
        }
        let written = self
            .shared
            .files
            .run(move || {
                let result = append.write(&bytes);
                (append, result)
            })
            .await;
        if let Some((append, result)) = written {
            self.append = Some(append);
            self.append_error = result.err();
        }
    }

    async fn append_end(&mut self) -> io::Result<()> {
        self.append_write().await;
        let append = self.append.take();
        let error = self.append_error.take();
        let result = self
            .with_mail(move |mail| {
                let mut out = Vec::new();
                let completion = match (append, error) {
                    (Some(_), Some(error)) => reply::refused_target(&error),
                    (Some(append), None) => mail.append_end(append, &mut out),
                    (None, _) => broken(),
                };
                (out, completion)
            })
            .await;
        let (out, completion) = result.unwrap_or_else(|| (Vec::new(), broken()));
        self.connection.push(out).await?;
        self.session.resume(Outcome::Done(completion), Instant::now());
        Ok(())
    }

    async fn idle_start(&mut self) -> io::Result<()> {
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        let subscription = self
            .with_mail(move |mail| {
                let mailbox = mail.view.as_ref().map(|view| Arc::clone(view.mailbox()))?;
                match mailbox.subscribe(Box::new(move || wake.notify_one())) {
                    Ok(subscription) => Some(subscription),
                    Err(error) => {
                        tracing::warn!(%error, "mailbox cannot be watched; changes show after DONE");
                        None
                    }
                }
            })
            .await
            .flatten();
        self.idle = Some(Idle { changed, _subscription: subscription });
        // What happened before the watch began.
        self.push_changes().await
    }

    /// Something changed while the client idles.
    async fn push_changes(&mut self) -> io::Result<()> {
        let result = self
            .with_mail(|mail| {
                let mut out = Vec::new();
                let result = mail.refresh(true, &mut out);
                (out, result)
            })
            .await;
        match result {
            Some((out, Ok(()))) => self.connection.push(out).await?,
            Some((_, Err(maildir::Error::Gone(_)))) => {
                self.session.bye(Some(Code::NonExistent), "Mailbox was deleted or renumbered.");
            }
            Some((out, Err(error))) => {
                tracing::warn!(%error, "cannot look for changes");
                self.connection.push(out).await?;
            }
            None => self.session.bye(Some(Code::ServerBug), "Internal error."),
        }
        Ok(())
    }
}

fn broken() -> Completion {
    Completion::no("Internal error.").code(Code::ServerBug).then(Transition::Unselected)
}

fn denied_outcome(denied: Denied) -> Outcome {
    let code = match denied {
        Denied::Credentials => LoginFailureCode::Credentials,
        Denied::Authorization => LoginFailureCode::Authorization,
        Denied::Expired => LoginFailureCode::Expired,
        Denied::Disabled => LoginFailureCode::Disabled,
        Denied::Unavailable => LoginFailureCode::Unavailable,
        Denied::Malformed => LoginFailureCode::Malformed,
    };
    Outcome::LoginFailed(LoginFailure { code, text: String::new() })
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn notified(changed: Option<&Notify>) {
    match changed {
        Some(changed) => changed.notified().await,
        None => std::future::pending().await,
    }
}
