//! One client's connection: carries bytes between the socket and the session, and answers the session's questions.
//!
//! Trust: the client is a stranger, also when it has logged in: then it may send, and no more.
//! Never: say 250 to a message before it is durable for every recipient that is told so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use auth_client::{AuthClient, AuthRequest, Secured};
use boot::DrainToken;
use smtp::{ForwardPath, Kind, MailCommand, Mechanism, Outcome, Reply, ReversePath, Secret, Session, Step};
use tls_config::{ChannelBinding, TlsInfo, TlsStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::deliver::{Completion, Delivered, Envelope, Incoming, Target};
use crate::figures::Figures;
use crate::id::SessionId;
use crate::login::{self, Progress, Reason, Waiting};
use crate::policy::{Policy, Service};
use crate::recipient::{self, Verdict};
use crate::trace::{self, Hop};

/// Time for the TLS handshake, the implicit one and that after STARTTLS.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Room for one read between commands: thousands of connections wait there.
const SMALL_READ: usize = 2 * 1024;
/// Room for one read while a message comes in.
const LARGE_READ: usize = 32 * 1024;
/// Replies collected before they are sent although more input waits.
const OUTPUT: usize = 16 * 1024;

/// What a connection is served with.
pub(crate) struct Context {
    pub(crate) policy: Arc<Policy>,
    pub(crate) service: Service,
    pub(crate) auth: AuthClient,
    pub(crate) listener: Arc<str>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) drain: DrainToken,
    pub(crate) figures: Arc<Figures>,
}

/// The byte stream, before and after TLS.
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Being upgraded, or given up.
    Gone,
}

/// What TLS told.
#[derive(Default)]
struct Secrecy {
    info: Option<TlsInfo>,
    bindings: ChannelBinding,
}

/// The sender and recipients of the transaction going on.
struct Transaction {
    mail: MailCommand,
    recipients: Vec<(ForwardPath, Target)>,
}

struct Connection {
    context: Context,
    id: SessionId,
    session: Session,
    wire: Wire,
    secrecy: Secrecy,
    /// Logged in as; counts only when the session says so too, which waits for the client to take note of the
    /// mechanism's last words.
    user: Option<String>,
    exchange: Option<Waiting>,
    transaction: Option<Transaction>,
    incoming: Option<Incoming>,
    messages: u32,
}

/// Why a connection ended before the session said so.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Handshake(#[from] tls_config::HandshakeError),
    #[error("the client does not read what it is sent")]
    Stuck,
    #[error("connection closed by client")]
    Closed,
}

/// Serves one connection to its end. `implicit`: TLS comes first.
pub(crate) async fn serve(stream: TcpStream, implicit: bool, context: Context) {
    let id = SessionId::new(SystemTime::now());
    tls_config::set_nodelay(&stream);
    let (peer, listener) = (context.peer, Arc::clone(&context.listener));
    tracing::debug!(session = %id, %listener, client = %peer, "connected");
    let mut wire = Wire::Plain(stream);
    let mut secrecy = Secrecy::default();
    if implicit && let Err(error) = handshake(&mut wire, &mut secrecy, &context.service).await {
        tracing::info!(session = %id, %listener, client = %peer, %error, "connection ended");
        return;
    }
    let session = Session::new(Arc::clone(&context.service.session), implicit, Instant::now());
    let mut connection = Connection {
        context,
        id,
        session,
        wire,
        secrecy,
        user: None,
        exchange: None,
        transaction: None,
        incoming: None,
        messages: 0,
    };
    let end = connection.run().await;
    connection.reset();
    let Connection { id, session, messages, user, .. } = &connection;
    let (user, mistakes) = (user.as_deref().unwrap_or("-"), session.mistakes());
    match end {
        Ok(()) | Err(Lost::Closed) if mistakes == 0 => {
            tracing::debug!(session = %id, %listener, client = %peer, user, messages, "disconnected");
        }
        Ok(()) => {
            tracing::info!(session = %id, %listener, client = %peer, user, messages, mistakes,
                "disconnected after protocol mistakes");
        }
        Err(error) => {
            tracing::info!(session = %id, %listener, client = %peer, user, messages, mistakes, %error,
                "connection ended");
        }
    }
}

impl Connection {
    async fn run(&mut self) -> Result<(), Lost> {
        self.announce_mechanisms().await;
        let mut output = Vec::new();
        let mut buffer = Vec::new();
        let mut told_to_stop = false;
        loop {
            while let Some(step) = self.session.next() {
                match step {
                    Step::Reply(bytes) => {
                        output.extend_from_slice(&bytes);
                        if output.len() >= OUTPUT {
                            self.send(&mut output).await?;
                        }
                    }
                    Step::StartTls => {
                        self.send(&mut output).await?;
                        handshake(&mut self.wire, &mut self.secrecy, &self.context.service).await?;
                        self.session.tls_started(Instant::now());
                        self.announce_mechanisms().await;
                    }
                    Step::Close => {
                        // The last word may meet a client that is gone already.
                        let _ = self.send(&mut output).await;
                        self.wire.shutdown().await;
                        return Ok(());
                    }
                    step => self.answer(step).await,
                }
            }
            self.send(&mut output).await?;
            output = Vec::new();
            let room = if self.session.is_receiving() { LARGE_READ } else { SMALL_READ };
            if buffer.len() != room {
                buffer = vec![0; room];
            }
            let deadline = tokio::time::Instant::from_std(self.session.deadline());
            tokio::select! {
                read = self.wire.read(&mut buffer) => match read? {
                    0 => return Err(Lost::Closed),
                    count => self.session.feed(buffer.get(..count).unwrap_or_default(), Instant::now()),
                },
                () = tokio::time::sleep_until(deadline) => self.session.expire(),
                () = self.context.drain.draining(), if !told_to_stop => {
                    told_to_stop = true;
                    self.session.stop();
                }
            }
        }
    }

    async fn send(&mut self, output: &mut Vec<u8>) -> Result<(), Lost> {
        if output.is_empty() {
            return Ok(());
        }
        let limit = self.context.service.session.timeout;
        tokio::time::timeout(limit, self.wire.write(output)).await.map_err(|_| Lost::Stuck)??;
        output.clear();
        Ok(())
    }

    /// Does what a step asks for and tells the session.
    async fn answer(&mut self, step: Step) {
        let outcome = match step {
            Step::Auth { mechanism, initial } => self.auth_begin(&mechanism, initial).await,
            Step::AuthResponse(response) => self.auth_respond(&response).await,
            Step::AuthCancelled => {
                self.exchange = None;
                self.user = None;
                tracing::info!(session = %self.id, client = %self.context.peer.ip(), "login cancelled by client");
                return;
            }
            Step::Mail(mail) => self.mail(mail),
            Step::Rcpt(path) => self.rcpt(path).await,
            Step::Data => self.data(),
            Step::Body(bytes) => {
                if let Some(incoming) = self.incoming.take() {
                    self.incoming = Some(incoming.write(&bytes).await);
                }
                return;
            }
            Step::Message => self.message().await,
            Step::Reset => return self.reset(),
            // Handled by the loop.
            Step::Reply(_) | Step::StartTls | Step::Close => return,
        };
        self.session.resume(outcome, Instant::now());
    }

    /// Tells the session which mechanisms there are, where AUTH is possible at all.
    async fn announce_mechanisms(&mut self) {
        if self.context.service.session.kind != Kind::Submission || !self.session.is_secured() {
            return;
        }
        let names = match self.context.auth.mechanisms().await {
            Ok(listed) => login::announced(&listed, &self.secrecy.bindings),
            Err(error) => {
                tracing::warn!(session = %self.id, %error, "mechanisms unknown; run `postern doctor`");
                login::USUAL_MECHANISMS.map(str::to_owned).to_vec()
            }
        };
        self.session.set_mechanisms(names);
    }

    async fn auth_begin(&mut self, mechanism: &Mechanism, initial: Option<Secret>) -> Outcome {
        let Context { peer, local, service, .. } = &self.context;
        let mut request = AuthRequest::new(mechanism.as_str(), service.name);
        request.session = Some(self.id.as_str().to_owned());
        request.lip = Some(local.ip().to_canonical());
        request.rip = Some(peer.ip().to_canonical());
        request.lport = Some(local.port());
        request.rport = Some(peer.port());
        request.secured = self.secrecy.info.is_some().then_some(Secured::Tls);
        request.sni = self.secrecy.info.as_ref().and_then(|info| info.sni.clone());
        request.initial_response = initial.map(|secret| secret.expose().into());
        let progress = login::begin(&self.context.auth, request, &self.secrecy.bindings).await;
        self.auth_progress(progress)
    }

    async fn auth_respond(&mut self, response: &Secret) -> Outcome {
        let Some(waiting) = self.exchange.take() else {
            // The session ends on an answer that does not fit.
            return Outcome::Accept;
        };
        let progress = login::respond(waiting, response.expose(), &self.secrecy.bindings).await;
        self.auth_progress(progress)
    }

    fn auth_progress(&mut self, progress: Progress) -> Outcome {
        let (session, client) = (&self.id, self.context.peer.ip());
        match progress {
            Progress::Going(waiting, outcome) => {
                self.exchange = Some(waiting);
                outcome
            }
            Progress::LoggedIn(user, outcome) => {
                // What was decided stands in the log line of the authentication daemon, under the same session.
                tracing::debug!(%session, %client, %user, "logged in");
                self.user = Some(user);
                outcome
            }
            Progress::Failed(outcome, Reason::Refused(failure)) => {
                let user = failure.user.as_deref().unwrap_or("-");
                tracing::debug!(%session, %client, user, code = ?failure.code, "login refused");
                outcome
            }
            Progress::Failed(outcome, Reason::NoLogin(user)) => {
                tracing::info!(%session, %client, %user, "login refused by nologin");
                outcome
            }
            Progress::Failed(outcome, Reason::Outage(why)) => {
                tracing::warn!(%session, %client, why, "login not decided; run `postern doctor`");
                outcome
            }
        }
    }

    fn mail(&mut self, mail: MailCommand) -> Outcome {
        if let (Some(user), ReversePath::Mailbox(address)) = (&self.user, &mail.from)
            && !address.to_string().eq_ignore_ascii_case(user)
        {
            // Whose addresses a user may send from is not configured anywhere yet.
            tracing::info!(session = %self.id, %user, from = %mail.from, "sender is not the user's own name");
        }
        self.transaction = Some(Transaction { mail, recipients: Vec::new() });
        Outcome::Accept
    }

    async fn rcpt(&mut self, path: ForwardPath) -> Outcome {
        let Context { policy, auth, local, service, .. } = &self.context;
        let verdict = recipient::resolve(policy, auth, &path, local.ip(), service.name).await;
        let Some(transaction) = &mut self.transaction else { return Outcome::Reply(NO_TRANSACTION) };
        match verdict {
            Verdict::Local(target) => {
                transaction.recipients.push((path, target));
                Outcome::Accept
            }
            Verdict::Refused(reply) => {
                self.context.figures.recipient_refused();
                tracing::info!(session = %self.id, client = %self.context.peer.ip(), from = %transaction.mail.from,
                    to = %path, user = self.user.as_deref().unwrap_or("-"), code = reply.code(), why = reply.text(),
                    "recipient refused");
                Outcome::Reply(reply)
            }
        }
    }

    fn data(&mut self) -> Outcome {
        let Some(transaction) = &self.transaction else { return Outcome::Reply(NO_TRANSACTION) };
        self.messages += 1;
        let envelope = self.envelope(transaction);
        let targets = transaction.recipients.iter().map(|(_, target)| target.clone()).collect();
        self.incoming = Some(Incoming::new(envelope, targets));
        Outcome::Accept
    }

    fn envelope(&self, transaction: &Transaction) -> Envelope {
        let utf8 = transaction.mail.parameters.smtputf8;
        let date = date();
        let id = self.id.message(self.messages);
        let hostname = &self.context.policy.hostname;
        let only_recipient = match transaction.recipients.as_slice() {
            [(path, _)] => Some(path),
            _ => None,
        };
        let tls = self.secrecy.info.as_ref();
        let tls =
            tls.map(|t| format!("{} with cipher {} ({}/{} bits)", t.protocol, t.cipher, t.bits, t.bits));
        let received = trace::received(&Hop {
            client_name: self.session.client_name().map_or("unknown", |name| name.as_str()),
            client_ip: self.context.peer.ip(),
            hostname,
            protocol: &self.session.protocol(),
            tls: tls.as_deref(),
            id: &id,
            only_recipient,
            utf8,
            date: &date,
        });
        let submission = self.context.service.session.kind == Kind::Submission;
        let complete = submission.then(|| Completion { date, id: id.clone(), hostname: hostname.clone() });
        Envelope { id, return_path: trace::return_path(&transaction.mail.from, utf8), received, complete }
    }

    async fn message(&mut self) -> Outcome {
        let (Some(transaction), Some(incoming)) = (self.transaction.take(), self.incoming.take()) else {
            return Outcome::Reply(NO_TRANSACTION);
        };
        let each = self.context.service.session.kind == Kind::Lmtp;
        let (started, size) = (Instant::now(), incoming.size());
        let id = self.id.message(self.messages);
        let accepted = Reply::with_text(250, smtp::Status(2, 0, 0), format!("Ok: delivered as {id}"));
        let client = self.context.peer.ip();
        let (from, user) = (&transaction.mail.from, self.user.as_deref().unwrap_or("-"));
        let results = match incoming.finish(each).await {
            Delivered::Refused(reply) => {
                self.context.figures.message(reply.code(), 0);
                tracing::info!(%id, %client, %from, user, size, code = reply.code(), why = reply.text(),
                    "message refused");
                return if each {
                    Outcome::Each(vec![reply; transaction.recipients.len()])
                } else {
                    Outcome::Reply(reply)
                };
            }
            Delivered::Each(results) => results,
        };
        let mut delivered = Vec::new();
        let mut replies = Vec::with_capacity(results.len());
        for ((path, target), result) in transaction.recipients.iter().zip(results) {
            match result {
                Ok(()) => {
                    delivered.push(target.user.as_str());
                    replies.push(accepted.clone());
                }
                Err(failure) if failure.is_minor => {
                    tracing::warn!(%id, %client, %from, to = %path, user = %target.user, error = %failure,
                        "delivery failed");
                    replies.push(failure.reply);
                }
                Err(failure) => {
                    tracing::error!(%id, %client, %from, to = %path, user = %target.user, error = %failure,
                        "delivery failed");
                    replies.push(failure.reply);
                }
            }
        }
        if !delivered.is_empty() {
            let took = started.elapsed();
            tracing::info!(%id, %client, %from, user, size, to = delivered.join(","), ?took, "message delivered");
        }
        let code = replies.iter().map(Reply::code).max().unwrap_or(250);
        self.context.figures.message(code, delivered.len());
        if each {
            return Outcome::Each(replies);
        }
        // One answer for all: only when every recipient has it.
        let worst = replies.into_iter().find(|reply| !reply.is_positive());
        Outcome::Reply(worst.unwrap_or(accepted))
    }

    fn reset(&mut self) {
        self.transaction = None;
        if let Some(incoming) = self.incoming.take() {
            tracing::info!(id = %self.id.message(self.messages), client = %self.context.peer.ip(), size = incoming.size(),
                "message not taken");
            incoming.abandon();
        }
    }
}

impl Wire {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
            Self::Gone => Ok(0),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        async fn all(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
            stream.write_all(bytes).await?;
            stream.flush().await
        }
        match self {
            Self::Plain(stream) => all(stream, bytes).await,
            Self::Tls(stream) => all(stream, bytes).await,
            Self::Gone => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }

    /// Ends our side in order; reads what the client still sends for a moment, so that the kernel does not turn an
    /// unread byte into a reset that swallows our last reply.
    async fn shutdown(&mut self) {
        async fn orderly(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
            if stream.shutdown().await.is_err() {
                return;
            }
            let mut rest = [0; 1024];
            for _ in 0..64 {
                if matches!(stream.read(&mut rest).await, Ok(0) | Err(_)) {
                    return;
                }
            }
        }
        let limit = Duration::from_secs(1);
        // Over time: the socket is simply dropped.
        let _ = match self {
            Self::Plain(stream) => tokio::time::timeout(limit, orderly(stream)).await,
            Self::Tls(stream) => tokio::time::timeout(limit, orderly(stream.as_mut())).await,
            Self::Gone => Ok(()),
        };
    }
}

async fn handshake(wire: &mut Wire, secrecy: &mut Secrecy, service: &Service) -> Result<(), Lost> {
    let Wire::Plain(stream) = std::mem::replace(wire, Wire::Gone) else { return Err(Lost::Closed) };
    let Some(acceptor) = &service.tls else { return Err(Lost::Closed) };
    let stream = acceptor.accept(stream, HANDSHAKE).await?;
    *secrecy = Secrecy { info: Some(stream.info()), bindings: stream.channel_binding() };
    *wire = Wire::Tls(Box::new(stream));
    Ok(())
}

/// The time in the form of RFC 5322 §3.3.
fn date() -> String {
    jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

const NO_TRANSACTION: Reply = Reply::new(451, smtp::Status(4, 3, 0), "The transaction was lost, try again");

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;
