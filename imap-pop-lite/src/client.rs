//! What an IMAP and a POP3 connection have in common: the socket, the login, handing the session over, and what the
//! log says about each.
//!
//! Trust:   the client is a stranger until the authentication daemon says who it is.
//! Never:   a password or a user file; the authentication daemon decides.

use std::io;
use std::sync::Arc;

use boot::DrainToken;
use boot::courier::{self, Ask, Protocol, Why};
use tls_config::Acceptor;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::login::{Attempt, Denied, Exchange, Kept, Verdict, Welcome};
use crate::relay;
use crate::server::{Live, Peer, Shared};
use crate::stream::Connection;

/// Waits until then; without an end where there is none.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a step of a session means for its connection.
pub(crate) enum Next {
    Go,
    End(&'static str),
    /// Somebody else hosts the session.
    Relay(UnixStream),
}

/// Where a login stands, for the protocol to tell.
pub(crate) enum Answer {
    Challenge(Vec<u8>),
    Welcome(Welcome),
    /// The right password, to be handed over; with the mechanism's last data.
    Kept(Option<Vec<u8>>),
    Denied(Denied),
    /// The right password of a user who may not log in here; with a text for the user, if there is one.
    NoLogin(String),
}

/// One client.
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
    pub(crate) connection: Connection,
    pub(crate) peer: Peer,
    protocol: Protocol,
    mechanism: String,
    exchange: Option<Box<dyn Exchange>>,
    /// Logged in, to be handed over.
    kept: Option<Box<Kept>>,
    /// Whose session was handed over.
    relayed: Option<String>,
}

impl Client {
    pub(crate) fn new(
        protocol: Protocol,
        shared: Arc<Shared>,
        live: Arc<Live>,
        connection: Connection,
        peer: Peer,
    ) -> Self {
        Self {
            shared,
            live,
            connection,
            peer,
            protocol,
            mechanism: String::new(),
            exchange: None,
            kept: None,
            relayed: None,
        }
    }

    /// The protocol's name, as the authentication daemon and the log know it.
    fn service(&self) -> &'static str {
        match self.protocol {
            Protocol::Imap => "imap",
            Protocol::Pop3 => "pop3",
        }
    }

    /// Tries a login.
    pub(crate) async fn attempt(&mut self, mechanism: String, initial: Option<Vec<u8>>) -> Answer {
        self.mechanism.clone_from(&mechanism);
        let attempt = Attempt {
            mechanism,
            initial,
            service: self.service(),
            session: self.peer.session.clone(),
            local: self.peer.local,
            remote: self.peer.remote,
            tls: self.connection.tls_facts(),
        };
        let verdict = self.live.logins.attempt(attempt).await;
        self.settle(verdict)
    }

    /// Goes on with the login that waits for the client.
    pub(crate) async fn respond(&mut self, data: Vec<u8>) -> Answer {
        let verdict = match self.exchange.take() {
            Some(exchange) => exchange.respond(data).await,
            None => Verdict::Denied(Denied::Malformed),
        };
        self.settle(verdict)
    }

    /// The client gave up, or the login did not fit: nothing is left of it.
    pub(crate) fn forget_login(&mut self) {
        self.exchange = None;
        self.kept = None;
    }

    fn settle(&mut self, verdict: Verdict) -> Answer {
        let service = self.service();
        match verdict {
            Verdict::Challenge(exchange, data) => {
                self.exchange = Some(exchange);
                Answer::Challenge(data)
            }
            Verdict::Welcome(welcome) => Answer::Welcome(welcome),
            Verdict::Kept(mut kept) => {
                let final_data = kept.final_data.take();
                self.kept = Some(kept);
                Answer::Kept(final_data)
            }
            Verdict::Denied(denied) => {
                tracing::debug!(
                    session = %self.peer.session,
                    remote = %self.peer.remote.ip().to_canonical(),
                    mechanism = self.mechanism,
                    reason = ?denied,
                    "{service} login failed"
                );
                Answer::Denied(denied)
            }
            Verdict::NoLogin(text) => {
                tracing::info!(session = %self.peer.session, reason = text, "{service} login refused by nologin");
                Answer::NoLogin(text)
            }
        }
    }

    /// Whether a login waits to be handed over.
    pub(crate) fn hands_over(&self) -> bool {
        self.kept.is_some()
    }

    /// Finds whoever hosts the user's mail.
    ///
    /// # Errors
    /// Why nobody does. `None`: there is no broker, or no login.
    pub(crate) async fn hand_over(
        &mut self,
        tag: String,
        mechanisms: Vec<String>,
    ) -> Result<UnixStream, Option<Why>> {
        let (Some(broker), Some(kept)) = (&self.live.slice.broker, self.kept.take()) else {
            return Err(None);
        };
        let session = courier::Session {
            protocol: self.protocol,
            tag,
            mechanisms,
            session: self.peer.session.clone(),
            local: self.peer.local,
            remote: self.peer.remote,
        };
        let opened = relay::open(broker, &Ask::Session(kept.ticket.clone(), session)).await;
        kept.fetched();
        match opened {
            Ok((mailbox, user)) => {
                self.tell_login(&user, None);
                self.relayed = Some(user);
                Ok(mailbox)
            }
            Err(refusal) => {
                relay::refused(&self.peer.session, &kept.user, &refusal);
                Err(Some(refusal.why))
            }
        }
    }

    /// From now on somebody else hosts the session; `ahead` is what the client has sent and nobody has read.
    pub(crate) async fn relay(
        &mut self,
        mailbox: UnixStream,
        ahead: &[u8],
        drain: &mut DrainToken,
    ) -> io::Result<&'static str> {
        self.connection.flush().await?;
        relay::run(&mut self.connection, mailbox, ahead, drain).await
    }

    /// Says who logged in, where the protocol knows it with the number of messages.
    pub(crate) fn tell_login(&self, user: &str, messages: Option<usize>) {
        let service = self.service();
        tracing::info!(
            session = %self.peer.session,
            user,
            remote = %self.peer.remote.ip().to_canonical(),
            mechanism = self.mechanism,
            tls = self.connection.tls_name(),
            messages,
            "{service} login"
        );
    }

    /// Says that a user's mail cannot be opened.
    pub(crate) fn tell_trouble(&self, user: &str, error: &dyn std::fmt::Display) {
        tracing::error!(session = %self.peer.session, user, %error, "cannot open the user's mail; run `postern doctor`");
    }

    /// Says how the connection ended; `own` is the user served here.
    pub(crate) fn tell_end(&self, ended: &io::Result<&'static str>, own: Option<&str>) {
        let service = self.service();
        let reason = match ended {
            Ok(why) => (*why).to_owned(),
            Err(error) => error.to_string(),
        };
        let user = own.or(self.relayed.as_deref());
        let (session, received, sent) = (&self.peer.session, self.connection.received, self.connection.sent);
        // Of a session that was handed over, the front tells.
        if self.shared.tls.is_some() {
            tracing::info!(session, user, received, sent, reason, "{service} connection closed");
        } else {
            tracing::debug!(session, user, received, sent, reason, "{service} connection closed");
        }
    }

    /// The handshake that the client asked for.
    ///
    /// # Errors
    /// Why the connection ends.
    pub(crate) async fn start_tls(&mut self, acceptor: Option<Acceptor>) -> Result<(), &'static str> {
        self.connection.flush().await.map_err(|_| "disconnected")?;
        let acceptor = acceptor.ok_or("internal error: no TLS here")?;
        Box::pin(self.connection.start_tls(&acceptor)).await.map_err(|error| {
            tracing::info!(session = %self.peer.session, %error, "TLS handshake failed after the client asked for it");
            "TLS handshake failed"
        })
    }
}
