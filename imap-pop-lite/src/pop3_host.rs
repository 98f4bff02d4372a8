//! One POP3 connection: the protocol's session on one side, login, store and socket on the other.
//!
//! Messages:  fixed at login; RETR marks `\Seen` (written when the session ends), DELE takes effect at QUIT only.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use boot::DrainToken;
use boot::courier::{self, Ask, Protocol, Why};
use maildir::{FlagChange, FlagOp, Flags, FolderName, Mailbox, Mode, Uid, View};
use pop3::{Code, LoginFailure, LoginFailureCode, Maildrop, Message, Outcome, Session, Step, TlsState, Uidl};
use tokio::net::UnixStream;

use crate::account::Account;
use crate::login::{Attempt, Denied, Exchange, Kept, Verdict, Welcome};
use crate::relay;
use crate::server::{Live, Peer, Shared};
use crate::stream::Connection;
use crate::wire::read_range;

/// Bytes of a message read at once.
const PIECE: u64 = 128 << 10;

/// Serves one client to the end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    peer: Peer,
    tls: TlsState,
    mut drain: DrainToken,
) {
    let live = shared.live();
    let session = Session::new(Arc::clone(&live.pop3), tls, None, Instant::now());
    Host::new(shared, live, connection, session, peer).serve(&mut drain).await;
}

/// Serves a client who logged in at a front, to the end.
pub(crate) async fn go_on(
    shared: Arc<Shared>,
    connection: Connection,
    peer: Peer,
    mechanisms: Vec<String>,
    opened: Opened,
    mut drain: DrainToken,
) {
    let live = shared.live();
    // CAPA is the same before and after login.
    let config = pop3::Config { mechanisms, ..pop3::Config::clone(&live.pop3) };
    let Opened { user, inbox, maildrop } = opened;
    let session = Session::logged_in_elsewhere(Arc::new(config), maildrop, Instant::now());
    let mut host = Host::new(shared, live, connection, session, peer);
    host.welcome = Some(Welcome { user, ..Welcome::default() });
    host.drop = Some(inbox);
    host.serve(&mut drain).await;
}

/// A maildrop that is open.
pub(crate) struct Opened {
    user: String,
    inbox: Box<Inbox>,
    maildrop: Maildrop,
}

impl Opened {
    /// Opens the account's. Blocks.
    pub(crate) fn open(account: &Account) -> Result<Self, maildir::Error> {
        let user = account.user.clone();
        let (inbox, maildrop) = Inbox::open(account)?;
        Ok(Self { user, inbox: Box::new(inbox), maildrop })
    }
}

/// The inbox of a logged-in user.
pub(crate) struct Inbox {
    mailbox: Arc<Mailbox>,
    view: View,
    uids: Vec<Uid>,
    /// Retrieved whole.
    read: Vec<Uid>,
}

impl Inbox {
    fn open(account: &Account) -> Result<(Self, Maildrop), maildir::Error> {
        let mailbox = account.store.mailbox(account.maildir.root(), &FolderName::inbox())?;
        // A read-write view moves new messages to `cur`, as any reader of mail does.
        let view = mailbox.view(Mode::ReadWrite)?;
        let snapshot = mailbox.pop3_snapshot()?;
        let validity = mailbox.uid_validity().get();
        let mut uids = Vec::with_capacity(snapshot.len());
        let mut messages = Vec::with_capacity(snapshot.len());
        for message in snapshot {
            let kept = message.uidl.as_deref().and_then(|text| Uidl::try_from(text).ok());
            uids.push(message.uid);
            messages.push(Message {
                size: message.size,
                uidl: kept.unwrap_or_else(|| Uidl::from_uid(message.uid.get(), validity)),
            });
        }
        Ok((Self { mailbox, view, uids, read: Vec::new() }, Maildrop::new(messages)))
    }

    fn mark_seen(&mut self) {
        if self.read.is_empty() {
            return;
        }
        let change = FlagChange { op: FlagOp::Add, flags: Flags::SEEN, keywords: Vec::new() };
        // The view may not have messages that came after it, but those were not listed either.
        if let Err(error) = self.view.store(&self.read, &change) {
            tracing::warn!(%error, "cannot mark retrieved messages as seen");
        }
        self.read.clear();
    }

    /// QUIT: false when something is left.
    fn update(&mut self, deleted: &[usize]) -> Result<bool, maildir::Error> {
        self.read.retain(|uid| !deleted.iter().any(|index| self.uids.get(*index) == Some(uid)));
        self.mark_seen();
        let uids: Vec<Uid> = deleted.iter().filter_map(|index| self.uids.get(*index).copied()).collect();
        if !uids.is_empty() {
            // Those another session removed meanwhile are gone as well.
            self.mailbox.remove(&uids)?;
        }
        Ok(uids.len() == deleted.len())
    }
}

/// What a step means for the connection.
enum Next {
    Go,
    End(&'static str),
    /// Somebody else hosts the session.
    Relay(UnixStream),
}

struct Host {
    shared: Arc<Shared>,
    live: Arc<Live>,
    connection: Connection,
    session: Session,
    peer: Peer,
    exchange: Option<Box<dyn Exchange>>,
    mechanism: String,
    welcome: Option<Welcome>,
    /// Logged in, to be handed over.
    kept: Option<Box<Kept>>,
    /// Whose session was handed over.
    relayed: Option<String>,
    drop: Option<Box<Inbox>>,
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
            exchange: None,
            mechanism: String::new(),
            welcome: None,
            kept: None,
            relayed: None,
            drop: None,
        }
    }

    async fn serve(mut self, drain: &mut DrainToken) {
        let ended = self.run(drain).await;
        let reason = match &ended {
            Ok(why) => (*why).to_owned(),
            Err(error) => error.to_string(),
        };
        let own = self.welcome.as_ref().map(|who| who.user.as_str());
        let user = own.or(self.relayed.as_deref());
        let (session, received, sent) = (&self.peer.session, self.connection.received, self.connection.sent);
        // Of a session that was handed over, the front tells.
        if self.shared.tls.is_some() {
            tracing::info!(session, user, received, sent, reason, "pop3 connection closed");
        } else {
            tracing::debug!(session, user, received, sent, reason, "pop3 connection closed");
        }
        if let Some(mut mail) = self.drop.take() {
            // What was read stays read, however the session ended.
            let files = self.shared.files.clone();
            files
                .run(move || {
                    mail.mark_seen();
                    drop(mail);
                })
                .await;
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
            tokio::select! {
                got = self.connection.read(|bytes| session.feed(bytes, Instant::now())) => {
                    if got? == 0 {
                        if !self.connection.is_to_end() {
                            return Ok("disconnected");
                        }
                        self.session.bye(Some(Code::SysTemp), "Server is shutting down.");
                    }
                }
                () = async {
                    match deadline {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => self.session.expire(Instant::now()),
                () = drain.draining(), if !draining => {
                    draining = true;
                    self.session.bye(Some(Code::SysTemp), "Server is shutting down.");
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
                    service: "pop3",
                    session: self.peer.session.clone(),
                    local: self.peer.local,
                    remote: self.peer.remote,
                    tls: self.connection.tls_facts(),
                };
                let verdict = self.live.logins.attempt(attempt).await;
                self.verdict(verdict);
            }
            Step::Respond(answer) => {
                let verdict = match self.exchange.take() {
                    Some(exchange) => exchange.respond(answer.expose().to_vec()).await,
                    None => Verdict::Denied(Denied::Malformed),
                };
                self.verdict(verdict);
            }
            Step::CancelAuthentication => {
                self.exchange = None;
                self.welcome = None;
                self.kept = None;
            }
            Step::StartTls => {
                self.connection.flush().await?;
                let Some(acceptor) = self.shared.tls.as_ref().map(|doors| doors.pop3.clone()) else {
                    return Ok(Next::End("internal error: no TLS here"));
                };
                match Box::pin(self.connection.start_tls(&acceptor)).await {
                    Ok(()) => self.session.tls_established(Instant::now()),
                    Err(error) => {
                        tracing::info!(session = %self.peer.session, %error, "STLS failed");
                        return Ok(Next::End("TLS handshake failed"));
                    }
                }
            }
            Step::Open if self.kept.is_some() => return Ok(self.hand_over().await),
            Step::Open => self.open().await,
            Step::Retrieve { index, lines } => self.retrieve(index, lines).await?,
            Step::Update { deleted } => self.update(deleted).await,
            Step::Close => {
                self.connection.flush().await?;
                self.connection.shutdown().await;
                return Ok(Next::End("closed"));
            }
            _ => return Ok(Next::End("internal error: unknown step")),
        }
        Ok(Next::Go)
    }

    fn verdict(&mut self, verdict: Verdict) {
        let outcome = match verdict {
            Verdict::Challenge(exchange, data) => {
                self.exchange = Some(exchange);
                Outcome::Challenge(data)
            }
            Verdict::Welcome(welcome) => {
                let final_data = welcome.final_data.clone();
                self.welcome = Some(welcome);
                Outcome::LoggedIn(final_data)
            }
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
                    "pop3 login failed"
                );
                Outcome::LoginFailed(LoginFailure::from(match denied {
                    Denied::Credentials => LoginFailureCode::Credentials,
                    Denied::Authorization => LoginFailureCode::Authorization,
                    Denied::Expired => LoginFailureCode::Expired,
                    Denied::Disabled => LoginFailureCode::Disabled,
                    Denied::Unavailable => LoginFailureCode::Unavailable,
                    Denied::Malformed => LoginFailureCode::Malformed,
                }))
            }
            Verdict::NoLogin(text) => {
                tracing::info!(session = %self.peer.session, reason = text, "pop3 login refused by nologin");
                Outcome::LoginFailed(LoginFailure { code: LoginFailureCode::Disabled, text })
            }
        };
        self.session.resume(outcome, Instant::now());
    }

    /// Finds whoever hosts the user's mail; otherwise the client hears why not.
    async fn hand_over(&mut self) -> Next {
        let (Some(broker), Some(kept)) = (&self.live.slice.broker, self.kept.take()) else {
            let failure = LoginFailure::from(LoginFailureCode::Unavailable);
            self.session.resume(Outcome::LoginFailed(failure), Instant::now());
            return Next::Go;
        };
        let session = courier::Session {
            protocol: Protocol::Pop3,
            tag: String::new(),
            mechanisms: self.live.pop3.mechanisms.clone(),
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
                    "pop3 login"
                );
                self.relayed = Some(user);
                Next::Relay(mailbox)
            }
            Err(refusal) => {
                relay::refused(&self.peer.session, &kept.user, &refusal);
                let code = match refusal.why {
                    Why::InUse => LoginFailureCode::InUse,
                    Why::Denied => LoginFailureCode::Disabled,
                    _ => LoginFailureCode::Mailbox,
                };
                let mut failure = LoginFailure::from(code);
                if refusal.why == Why::TooMany {
                    failure.text = "Too many sessions of this user.".to_owned();
                }
                self.session.resume(Outcome::LoginFailed(failure), Instant::now());
                Next::Go
            }
        }
    }

    async fn open(&mut self) {
        let broken = || Outcome::LoginFailed(LoginFailure::from(LoginFailureCode::Mailbox));
        let Some(who) = self.welcome.clone() else {
            return self.session.resume(broken(), Instant::now());
        };
        let shared = Arc::clone(&self.shared);
        let places = self.live.places.clone();
        let user = who.user.clone();
        let open = move || anyhow::Ok(Opened::open(&places.open(&shared.store, &who)?)?);
        let opened = self.shared.files.run(open).await;
        let outcome = match opened {
            Some(Ok(Opened { inbox, maildrop, .. })) => {
                tracing::info!(
                    session = %self.peer.session,
                    user,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    tls = self.connection.tls_name(),
                    messages = maildrop.count(),
                    "pop3 login"
                );
                self.drop = Some(inbox);
                Outcome::Opened(maildrop)
            }
            Some(Err(error)) => {
                tracing::error!(session = %self.peer.session, user, %error, "cannot open the user's mail; run `postern doctor`");
                let locked = matches!(error.downcast_ref(), Some(maildir::Error::Locked(_)));
                let code = if locked { LoginFailureCode::InUse } else { LoginFailureCode::Mailbox };
                Outcome::LoginFailed(LoginFailure::from(code))
            }
            None => broken(),
        };
        self.session.resume(outcome, Instant::now());
    }

    async fn retrieve(&mut self, index: usize, lines: Option<u32>) -> io::Result<()> {
        let found =
            self.drop.as_ref().and_then(|mail| Some((Arc::clone(&mail.mailbox), *mail.uids.get(index)?)));
        let opened = match found {
            None => None,
            Some((mailbox, uid)) => {
                self.shared
                    .files
                    .run(move || {
                        let opened = mailbox.open(uid)?;
                        let first =
                            read_range(&opened.file, 0, opened.size.min(PIECE)).map_err(|source| {
                                maildir::Error::Io { what: "read", path: "message".into(), source }
                            })?;
                        Ok::<_, maildir::Error>((uid, Arc::new(opened.file), opened.size, first))
                    })
                    .await
            }
        };
        match opened {
            Some(Ok((uid, file, size, first))) => {
                self.session.resume(Outcome::Retrieving, Instant::now());
                let whole = self.send_message(&file, size, first).await?;
                if let (true, None, Some(mail)) = (whole, lines, self.drop.as_mut()) {
                    mail.read.push(uid);
                }
            }
            Some(Err(maildir::Error::Expunged(_))) => {
                let text = "Message is gone, removed by another session.".to_owned();
                self.session.resume(Outcome::Failed { code: None, text }, Instant::now());
            }
            Some(Err(error)) => {
                tracing::error!(session = %self.peer.session, %error, "cannot read a message");
                let text = "Cannot read the message now.".to_owned();
                self.session.resume(Outcome::Failed { code: Some(Code::SysTemp), text }, Instant::now());
            }
            None => {
                let text = "Internal error.".to_owned();
                self.session.resume(Outcome::Failed { code: Some(Code::SysTemp), text }, Instant::now());
            }
        }
        Ok(())
    }

    /// Sends the file in pieces; true when all of it went.
    async fn send_message(&mut self, file: &Arc<File>, size: u64, first: Vec<u8>) -> io::Result<bool> {
        let mut sent = 0;
        let mut piece = first;
        loop {
            sent += piece.len() as u64;
            let more = self.session.message(&piece);
            while let Some(step) = self.session.next() {
                if let Step::Send(bytes) = step {
                    self.connection.push(bytes).await?;
                }
            }
            if !more || sent >= size {
                break;
            }
            let file = Arc::clone(file);
            let end = (sent + PIECE).min(size);
            piece = match self.shared.files.run(move || read_range(&file, sent, end)).await {
                Some(Ok(piece)) if !piece.is_empty() => piece,
                _ => {
                    // Half a message must not look like a whole one.
                    tracing::error!(session = %self.peer.session, "message cannot be read to its end");
                    self.session.message_abort();
                    return Ok(false);
                }
            };
        }
        self.session.message_end(Instant::now());
        Ok(sent >= size)
    }

    async fn update(&mut self, deleted: Vec<usize>) {
        let failed = || Outcome::Failed { code: Some(Code::SysTemp), text: "Internal error.".to_owned() };
        let outcome = match self.drop.take() {
            None => failed(),
            Some(mut mail) => match self.shared.files.run(move || mail.update(&deleted)).await {
                Some(Ok(complete)) => Outcome::Updated { complete },
                Some(Err(error)) => {
                    tracing::warn!(session = %self.peer.session, %error, "deleted messages were not removed");
                    Outcome::Updated { complete: false }
                }
                None => failed(),
            },
        };
        self.session.resume(outcome, Instant::now());
    }
}
