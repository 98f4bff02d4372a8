//! One POP3 connection: the protocol's session on one side, login, store and socket on the other.
//!
//! Messages:  fixed at login; RETR marks `\Seen` (written when the session ends), DELE takes effect at QUIT only.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use boot::DrainToken;
use maildir::{FlagChange, FlagOp, Flags, FolderName, Mailbox, Mode, Uid, View};
use pop3::{Code, LoginFailure, LoginFailureCode, Maildrop, Message, Outcome, Session, Step, TlsState, Uidl};

use crate::account::Places;
use crate::login::{Attempt, Denied, Exchange, Verdict, Welcome};
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
    let mut host = Host {
        shared,
        live,
        connection,
        session,
        peer,
        exchange: None,
        mechanism: String::new(),
        welcome: None,
        drop: None,
    };
    let ended = host.run(&mut drain).await;
    let reason = match &ended {
        Ok(why) => (*why).to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::info!(
        session = %host.peer.session,
        user = host.welcome.as_ref().map(|who| who.user.as_str()),
        received = host.connection.received,
        sent = host.connection.sent,
        reason,
        "pop3 connection closed"
    );
    if let Some(mut mail) = host.drop.take() {
        // What was read stays read, however the session ended.
        let files = host.shared.files.clone();
        files
            .run(move || {
                mail.mark_seen();
                drop(mail);
            })
            .await;
    }
}

/// The inbox of a logged-in user.
struct Inbox {
    mailbox: Arc<Mailbox>,
    view: View,
    uids: Vec<Uid>,
    /// Retrieved whole.
    read: Vec<Uid>,
}

impl Inbox {
    fn open(shared: &Shared, places: &Places, who: &Welcome) -> anyhow::Result<(Self, Maildrop)> {
        let account = places.open(&shared.store, who)?;
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

struct Host {
    shared: Arc<Shared>,
    live: Arc<Live>,
    connection: Connection,
    session: Session,
    peer: Peer,
    exchange: Option<Box<dyn Exchange>>,
    mechanism: String,
    welcome: Option<Welcome>,
    drop: Option<Box<Inbox>>,
}

impl Host {
    async fn run(&mut self, drain: &mut DrainToken) -> io::Result<&'static str> {
        let mut draining = false;
        loop {
            while let Some(step) = self.session.next() {
                if let Some(why) = self.step(step).await? {
                    return Ok(why);
                }
            }
            self.connection.flush().await?;
            let deadline = self.session.deadline().map(tokio::time::Instant::from_std);
            let session = &mut self.session;
            tokio::select! {
                got = self.connection.read(|bytes| session.feed(bytes, Instant::now())) => {
                    if got? == 0 {
                        return Ok("disconnected");
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

    async fn step(&mut self, step: Step) -> io::Result<Option<&'static str>> {
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
            }
            Step::StartTls => {
                self.connection.flush().await?;
                let acceptor = self.shared.pop3_tls.clone();
                match Box::pin(self.connection.start_tls(&acceptor)).await {
                    Ok(()) => self.session.tls_established(Instant::now()),
                    Err(error) => {
                        tracing::info!(session = %self.peer.session, %error, "STLS failed");
                        return Ok(Some("TLS handshake failed"));
                    }
                }
            }
            Step::Open => self.open().await,
            Step::Retrieve { index, lines } => self.retrieve(index, lines).await?,
            Step::Update { deleted } => self.update(deleted).await,
            Step::Close => {
                self.connection.flush().await?;
                self.connection.shutdown().await;
                return Ok(Some("closed"));
            }
            _ => return Ok(Some("internal error: unknown step")),
        }
        Ok(None)
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
            Verdict::Denied(denied) => {
                tracing::info!(
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

    async fn open(&mut self) {
        let broken = || Outcome::LoginFailed(LoginFailure::from(LoginFailureCode::Mailbox));
        let Some(who) = self.welcome.clone() else {
            return self.session.resume(broken(), Instant::now());
        };
        let shared = Arc::clone(&self.shared);
        let places = self.live.places.clone();
        let user = who.user.clone();
        let opened = self.shared.files.run(move || Inbox::open(&shared, &places, &who)).await;
        let outcome = match opened {
            Some(Ok((mail, maildrop))) => {
                tracing::info!(
                    session = %self.peer.session,
                    user,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    tls = self.connection.tls_name(),
                    messages = maildrop.count(),
                    "pop3 login"
                );
                self.drop = Some(Box::new(mail));
                Outcome::Opened(maildrop)
            }
            Some(Err(error)) => {
                tracing::error!(session = %self.peer.session, user, %error, "cannot open the user's mail");
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
