//! One POP3 connection: the protocol's session on one side, login, store and socket on the other.
//!
//! Messages:  fixed at login; RETR marks `\Seen` (written when the session ends), DELE takes effect at QUIT only.
//! Trust:     the client is a stranger until the authentication daemon says who it is.
//! Never:     delete anything before QUIT.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use boot::DrainToken;
use boot::courier::{Protocol, Why};
use maildir::{FlagChange, FlagOp, Flags, FolderName, Mailbox, Mode, Uid, View};
use pop3::{Code, LoginFailure, LoginFailureCode, Maildrop, Message, Outcome, Session, Step, TlsState, Uidl};

use crate::account::Account;
use crate::client::{Answer, Client, Next, until};
use crate::login::{Denied, Welcome};
use crate::server::{Peer, Shared};
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
    let client = Client::new(Protocol::Pop3, shared, live, connection, peer);
    Host::new(client, session).serve(&mut drain).await;
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
    let mut host = Host::new(Client::new(Protocol::Pop3, shared, live, connection, peer), session);
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

struct Host {
    client: Client,
    session: Session,
    welcome: Option<Welcome>,
    drop: Option<Box<Inbox>>,
}

impl Host {
    fn new(client: Client, session: Session) -> Self {
        Self { client, session, welcome: None, drop: None }
    }

    async fn serve(mut self, drain: &mut DrainToken) {
        let ended = self.run(drain).await;
        self.client.tell_end(&ended, self.welcome.as_ref().map(|who| who.user.as_str()));
        if let Some(mut mail) = self.drop.take() {
            // What was read stays read, however the session ended.
            let files = self.client.shared.files.clone();
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
                        return self.client.relay(mailbox, &ahead, drain).await;
                    }
                }
            }
            self.client.connection.flush().await?;
            let deadline = self.session.deadline().map(tokio::time::Instant::from_std);
            let session = &mut self.session;
            tokio::select! {
                got = self.client.connection.read(|bytes| session.feed(bytes, Instant::now())) => {
                    if got? == 0 {
                        if !self.client.connection.is_to_end() {
                            return Ok("disconnected");
                        }
                        self.session.bye(Some(Code::SysTemp), "Server is shutting down.");
                    }
                }
                () = until(deadline) => self.session.expire(Instant::now()),
                () = drain.draining(), if !draining => {
                    draining = true;
                    self.session.bye(Some(Code::SysTemp), "Server is shutting down.");
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
                self.answer(answer);
            }
            Step::Respond(data) => {
                let answer = self.client.respond(data.expose().to_vec()).await;
                self.answer(answer);
            }
            Step::CancelAuthentication => {
                self.client.forget_login();
                self.welcome = None;
            }
            Step::StartTls => {
                let acceptor = self.client.shared.tls.as_ref().map(|doors| doors.pop3.clone());
                if let Err(why) = self.client.start_tls(acceptor).await {
                    return Ok(Next::End(why));
                }
                self.session.tls_established(Instant::now());
            }
            Step::Open if self.client.hands_over() => return Ok(self.hand_over().await),
            Step::Open => self.open().await,
            Step::Retrieve { index, lines } => self.retrieve(index, lines).await?,
            Step::Update { deleted } => self.update(deleted).await,
            Step::Close => {
                self.client.connection.flush().await?;
                self.client.connection.shutdown().await;
                return Ok(Next::End("closed"));
            }
            _ => return Ok(Next::End("internal error: unknown step")),
        }
        Ok(Next::Go)
    }

    fn answer(&mut self, answer: Answer) {
        let outcome = match answer {
            Answer::Challenge(data) => Outcome::Challenge(data),
            Answer::Welcome(welcome) => {
                let final_data = welcome.final_data.clone();
                self.welcome = Some(welcome);
                Outcome::LoggedIn(final_data)
            }
            Answer::Kept(final_data) => Outcome::LoggedIn(final_data),
            Answer::Denied(denied) => Outcome::LoginFailed(LoginFailure::from(match denied {
                Denied::Credentials => LoginFailureCode::Credentials,
                Denied::Authorization => LoginFailureCode::Authorization,
                Denied::Expired => LoginFailureCode::Expired,
                Denied::Disabled => LoginFailureCode::Disabled,
                Denied::Unavailable => LoginFailureCode::Unavailable,
                Denied::Malformed => LoginFailureCode::Malformed,
            })),
            Answer::NoLogin(text) => {
                Outcome::LoginFailed(LoginFailure { code: LoginFailureCode::Disabled, text })
            }
        };
        self.session.resume(outcome, Instant::now());
    }

    /// Finds whoever hosts the user's mail; otherwise the client hears why not.
    async fn hand_over(&mut self) -> Next {
        let mechanisms = self.client.live.pop3.mechanisms.clone();
        let failure = match self.client.hand_over(String::new(), mechanisms).await {
            Ok(mailbox) => return Next::Relay(mailbox),
            Err(None) => LoginFailureCode::Unavailable.into(),
            Err(Some(Why::InUse)) => LoginFailureCode::InUse.into(),
            Err(Some(Why::Denied)) => LoginFailureCode::Disabled.into(),
            Err(Some(Why::TooMany)) => LoginFailure {
                text: "Too many sessions of this user.".to_owned(),
                ..LoginFailure::from(LoginFailureCode::Mailbox)
            },
            Err(Some(_)) => LoginFailureCode::Mailbox.into(),
        };
        self.session.resume(Outcome::LoginFailed(failure), Instant::now());
        Next::Go
    }

    async fn open(&mut self) {
        let broken = || Outcome::LoginFailed(LoginFailure::from(LoginFailureCode::Mailbox));
        let Some(who) = self.welcome.clone() else {
            return self.session.resume(broken(), Instant::now());
        };
        let shared = Arc::clone(&self.client.shared);
        let places = self.client.live.places.clone();
        let user = who.user.clone();
        let open = move || anyhow::Ok(Opened::open(&places.open(&shared.store, &who)?)?);
        let opened = self.client.shared.files.run(open).await;
        let outcome = match opened {
            Some(Ok(Opened { inbox, maildrop, .. })) => {
                self.client.tell_login(&user, Some(maildrop.count()));
                self.drop = Some(inbox);
                Outcome::Opened(maildrop)
            }
            Some(Err(error)) => {
                self.client.tell_trouble(&user, &error);
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
                self.client
                    .shared
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
                tracing::error!(session = %self.client.peer.session, %error, "cannot read a message");
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
                    self.client.connection.push(bytes).await?;
                }
            }
            if !more || sent >= size {
                break;
            }
            let file = Arc::clone(file);
            let end = (sent + PIECE).min(size);
            piece = match self.client.shared.files.run(move || read_range(&file, sent, end)).await {
                Some(Ok(piece)) if !piece.is_empty() => piece,
                _ => {
                    // Half a message must not look like a whole one.
                    tracing::error!(session = %self.client.peer.session, "message cannot be read to its end");
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
            Some(mut mail) => match self.client.shared.files.run(move || mail.update(&deleted)).await {
                Some(Ok(complete)) => Outcome::Updated { complete },
                Some(Err(error)) => {
                    tracing::warn!(session = %self.client.peer.session, %error, "deleted messages were not removed");
                    Outcome::Updated { complete: false }
                }
                None => failed(),
            },
        };
        self.session.resume(outcome, Instant::now());
    }
}
