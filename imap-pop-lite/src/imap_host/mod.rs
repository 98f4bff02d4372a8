//! One IMAP connection: the protocol's session on one side, login, store and socket on the other.
//!
//! Store:     every call that touches files runs on a blocking thread and hands back a bounded piece of
//!            output; no thread and no lock is held while the client is written to.
//! Order:     one command at a time, so that an answer never uses numbers another command changed.
//! Trust:     the client is a stranger until the authentication daemon says who it is.
//! Never:     touch a file on the runtime's threads.

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
use boot::courier::{Protocol, Why};
use imap::{
    Code, Command, Completion, LoginFailure, LoginFailureCode, Outcome, Session, Step, Tag, TlsState,
    Transition,
};
use tokio::sync::Notify;

use self::mail::{Append, Mail, Turn, Work};
use crate::account::Account;
use crate::client::{Answer, Client, Next, until};
use crate::login::{Denied, Welcome};
use crate::server::{Peer, Shared};
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
    let client = Client::new(Protocol::Imap, shared, live, connection, peer);
    Host::new(client, session).serve(&mut drain).await;
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
    let mut host = Host::new(Client::new(Protocol::Imap, shared, live, connection, peer), session);
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
    client: Client,
    session: Session,
    mail: Option<Box<Mail>>,
    append: Option<Append>,
    append_error: Option<maildir::Error>,
    append_buffer: Vec<u8>,
    idle: Option<Idle>,
}

impl Host {
    fn new(client: Client, session: Session) -> Self {
        Self {
            client,
            session,
            mail: None,
            append: None,
            append_error: None,
            append_buffer: Vec::new(),
            idle: None,
        }
    }

    async fn serve(mut self, drain: &mut DrainToken) {
        let ended = self.run(drain).await;
        self.client.tell_end(&ended, self.mail.as_ref().map(|mail| mail.account.user.as_str()));
        // Views and unfinished deliveries touch files when they go; a session that opened nothing spares the way there.
        let (mail, append) = (self.mail.take(), self.append.take());
        if append.is_some() || mail.as_ref().is_some_and(|mail| mail.view.is_some()) {
            self.client.shared.files.run(move || drop((mail, append))).await;
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
                        return self.client.relay(mailbox, &ahead, drain).await;
                    }
                }
            }
            self.client.connection.flush().await?;
            let deadline = self.session.deadline().map(tokio::time::Instant::from_std);
            let session = &mut self.session;
            let changed = self.idle.as_ref().map(|idle| Arc::clone(&idle.changed));
            tokio::select! {
                got = self.client.connection.read(|bytes| session.feed(bytes, Instant::now())) => {
                    if got? == 0 {
                        if !self.client.connection.is_to_end() {
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
            Step::Send(bytes) => self.client.connection.push(bytes).await?,
            Step::Authenticate { mechanism, initial } => {
                let initial = initial.map(|secret| secret.expose().to_vec());
                let answer = self.client.attempt(mechanism, initial).await;
                self.answer(answer).await;
            }
            Step::Respond(data) => {
                let answer = self.client.respond(data.expose().to_vec()).await;
                self.answer(answer).await;
            }
            Step::CancelAuthentication => {
                self.client.forget_login();
                self.mail = None;
            }
            Step::HandOver(tag) => return Ok(self.hand_over(&tag).await),
            Step::StartTls => {
                let acceptor = self.client.shared.tls.as_ref().map(|doors| doors.imap.clone());
                if let Err(why) = self.client.start_tls(acceptor).await {
                    return Ok(Next::End(why));
                }
                self.session.tls_established(Instant::now());
            }
            Step::ClientId(pairs) => {
                let shown: Vec<String> = pairs
                    .iter()
                    .map(|(name, value)| {
                        let value = value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                        format!("{}={value}", String::from_utf8_lossy(name))
                    })
                    .collect();
                tracing::debug!(session = %self.client.peer.session, client = ?shown, "client named itself");
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
                self.client.shared.files.run(move || drop(append)).await;
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
                self.client.connection.push(out).await?;
                self.session.resume(Outcome::Done(completion), Instant::now());
            }
            Step::Close => {
                self.client.connection.flush().await?;
                self.client.connection.shutdown().await;
                return Ok(Next::End("closed"));
            }
            _ => return Ok(Next::End("internal error: unknown step")),
        }
        Ok(Next::Go)
    }

    async fn answer(&mut self, answer: Answer) {
        let outcome = match answer {
            Answer::Challenge(data) => Outcome::Challenge(data),
            Answer::Welcome(welcome) => self.welcome(welcome).await,
            Answer::Kept(final_data) => Outcome::LoggedIn(final_data),
            Answer::Denied(denied) => denied_outcome(denied),
            Answer::NoLogin(text) => {
                Outcome::LoginFailed(LoginFailure { code: LoginFailureCode::Disabled, text })
            }
        };
        self.session.resume(outcome, Instant::now());
    }

    /// Finds whoever hosts the user's mail; otherwise the client hears why not.
    async fn hand_over(&mut self, tag: &Tag) -> Next {
        let mechanisms = self.client.live.imap.mechanisms.clone();
        let (code, text) = match self.client.hand_over(tag.as_str().to_owned(), mechanisms).await {
            Ok(mailbox) => return Next::Relay(mailbox),
            Err(None) => {
                self.session.resume(denied_outcome(Denied::Unavailable), Instant::now());
                return Next::Go;
            }
            Err(Some(Why::Denied)) => (LoginFailureCode::Disabled, "This account has no mailbox here."),
            Err(Some(Why::TooMany)) => (LoginFailureCode::Unavailable, "Too many sessions of this user."),
            Err(Some(Why::NoSpace)) => {
                (LoginFailureCode::Unavailable, "The mailbox cannot be opened: no space.")
            }
            Err(Some(_)) => (LoginFailureCode::Unavailable, "The mailbox cannot be opened now."),
        };
        let failure = LoginFailure { code, text: text.to_owned() };
        self.session.resume(Outcome::LoginFailed(failure), Instant::now());
        Next::Go
    }

    async fn welcome(&mut self, welcome: Welcome) -> Outcome {
        let places = self.client.live.places.clone();
        let store = self.client.shared.store.clone();
        let final_data = welcome.final_data.clone();
        let user = welcome.user.clone();
        let opened = self.client.shared.files.run(move || places.open(&store, &welcome)).await;
        match opened {
            Some(Ok(account)) => {
                self.client.tell_login(&user, None);
                let mail = Mail::new(
                    account,
                    self.client.shared.budget.clone(),
                    self.client.live.imap.limits.append,
                );
                self.mail = Some(Box::new(mail));
                Outcome::LoggedIn(final_data)
            }
            Some(Err(error)) => {
                self.client.tell_trouble(&user, &error);
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
            .client
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
            self.client.connection.push(out).await?;
            match turn {
                Turn::More(more) => {
                    self.client.connection.flush().await?;
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
            .client
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
        self.client.connection.push(out).await?;
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
            Some((out, Ok(()))) => self.client.connection.push(out).await?,
            Some((_, Err(maildir::Error::Gone(_)))) => {
                self.session.bye(Some(Code::NonExistent), "Mailbox was deleted or renumbered.");
            }
            Some((out, Err(error))) => {
                tracing::warn!(%error, "cannot look for changes");
                self.client.connection.push(out).await?;
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

async fn notified(changed: Option<&Notify>) {
    match changed {
        Some(changed) => changed.notified().await,
        None => std::future::pending().await,
    }
}
