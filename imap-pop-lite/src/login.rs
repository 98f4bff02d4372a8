//! Logins: what the two protocols need of the authentication daemon.
//!
//! The daemon decides; nothing here knows a password or a user file. The trait exists so that the
//! protocols can be tried without a daemon.
//!
//! Trust: the authentication daemon's word about who somebody is. What the client sent is passed on, never looked at.
//! Never: say that a password is wrong when nobody could decide.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use auth_client::{AuthClient, AuthRequest, FailCode, Flags, Secured, Step};
use boot::courier::Ticket;
use tls_config::ChannelBinding;

use crate::stream::TlsFacts;

/// A boxed future; logins are rare enough.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A login to try.
pub(crate) struct Attempt {
    pub(crate) mechanism: String,
    pub(crate) initial: Option<Vec<u8>>,
    pub(crate) service: &'static str,
    pub(crate) session: String,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Nothing without TLS.
    pub(crate) tls: Option<TlsFacts>,
}

/// Where a login stands.
pub(crate) enum Verdict {
    Challenge(Box<dyn Exchange>, Vec<u8>),
    Welcome(Welcome),
    /// The right password; the record is left for the broker to fetch.
    Kept(Box<Kept>),
    Denied(Denied),
    /// The right password of a user who may not log in here; with a text for the user, if there is one.
    NoLogin(String),
}

/// Who logged in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Welcome {
    /// Canonical name.
    pub(crate) user: String,
    pub(crate) home: Option<PathBuf>,
    pub(crate) mail: Option<String>,
    /// The mechanism's last data.
    pub(crate) final_data: Option<Vec<u8>>,
}

/// A login that the authentication daemon keeps for the broker.
pub(crate) struct Kept {
    pub(crate) user: String,
    /// The mechanism's last data.
    pub(crate) final_data: Option<Vec<u8>>,
    pub(crate) ticket: Ticket,
    /// Dropping it makes the daemon forget the login, if it was not fetched.
    login: auth_client::Login,
}

impl Kept {
    /// The broker has it.
    pub(crate) fn fetched(&self) {
        self.login.fetched();
    }
}

/// Why not, in the classes every door shares.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Denied {
    /// Unknown, wrong, locked: one answer for all.
    Credentials,
    /// The right password, but not as that other user.
    Authorization,
    /// The right password, expired.
    Expired,
    /// The right password of a disabled account.
    Disabled,
    /// Try again later.
    Unavailable,
    /// The exchange itself was broken.
    Malformed,
}

/// A login that waits for the client. Dropping it cancels the login.
pub(crate) trait Exchange: Send {
    fn respond(self: Box<Self>, data: Vec<u8>) -> Later<'static, Verdict>;
}

/// The authentication daemon.
pub(crate) trait Logins: Send + Sync {
    /// Mechanisms to offer, upper case.
    fn mechanisms(&self) -> Later<'_, Option<Vec<String>>>;
    fn attempt(&self, attempt: Attempt) -> Later<'_, Verdict>;
}

/// Lets nobody in.
pub(crate) struct Nobody;

impl Logins for Nobody {
    fn mechanisms(&self) -> Later<'_, Option<Vec<String>>> {
        Box::pin(std::future::ready(None))
    }

    fn attempt(&self, _: Attempt) -> Later<'_, Verdict> {
        Box::pin(std::future::ready(Verdict::Denied(Denied::Unavailable)))
    }
}

/// The real daemon.
#[derive(Clone)]
pub(crate) struct Daemon {
    pub(crate) client: AuthClient,
    /// Records are left for the broker.
    pub(crate) keeps: bool,
}

impl Logins for Daemon {
    fn mechanisms(&self) -> Later<'_, Option<Vec<String>>> {
        Box::pin(async {
            match self.client.mechanisms().await {
                Ok(list) => Some(
                    list.iter()
                        .filter(|m| !m.flags.contains(Flags::PRIVATE))
                        .map(|m| m.name.as_str().to_owned())
                        .collect(),
                ),
                Err(error) => {
                    tracing::warn!(%error, "cannot ask for mechanisms; run `postern doctor`");
                    None
                }
            }
        })
    }

    fn attempt(&self, attempt: Attempt) -> Later<'_, Verdict> {
        let mut request = AuthRequest::new(attempt.mechanism, attempt.service);
        request.session = Some(attempt.session);
        request.lip = Some(attempt.local.ip().to_canonical());
        request.lport = Some(attempt.local.port());
        request.rip = Some(attempt.remote.ip().to_canonical());
        request.rport = Some(attempt.remote.port());
        request.initial_response = attempt.initial.map(Into::into);
        let mut binding = ChannelBinding::default();
        if let Some(tls) = attempt.tls {
            request.secured = Some(Secured::Tls);
            request.sni = tls.sni;
            binding = tls.binding;
        }
        Box::pin(async move {
            let answer = self.client.authenticate(request).await;
            settle(self.clone(), binding, answer).await
        })
    }
}

/// A login at the real daemon.
struct Pending {
    daemon: Daemon,
    binding: ChannelBinding,
    exchange: auth_client::Exchange,
}

impl Exchange for Pending {
    fn respond(self: Box<Self>, data: Vec<u8>) -> Later<'static, Verdict> {
        Box::pin(async move {
            let Self { daemon, binding, exchange } = *self;
            let answer = match exchange.channel_binding().map(|kind| bound(&binding, kind)) {
                None => exchange.respond(&data).await,
                Some(Some(bytes)) => exchange.respond_bound(&data, &bytes).await,
                Some(None) => return Verdict::Denied(Denied::Malformed),
            };
            settle(daemon, binding, answer).await
        })
    }
}

fn bound(binding: &ChannelBinding, kind: &str) -> Option<Vec<u8>> {
    match kind {
        "tls-exporter" => binding.exporter.map(|bytes| bytes.to_vec()),
        "tls-server-end-point" => binding.server_end_point.clone(),
        _ => None,
    }
}

async fn settle(
    daemon: Daemon,
    binding: ChannelBinding,
    mut answer: Result<Step, auth_client::Error>,
) -> Verdict {
    loop {
        match answer {
            // Only the channel binding is wanted: the client is not asked.
            Ok(Step::Challenge(exchange, _)) if exchange.is_out_of_band() => {
                let bytes = exchange.channel_binding().and_then(|kind| bound(&binding, kind));
                match bytes {
                    Some(bytes) => answer = exchange.respond_bound(b"", &bytes).await,
                    None => return Verdict::Denied(Denied::Malformed),
                }
            }
            Ok(Step::Challenge(exchange, data)) => {
                return Verdict::Challenge(Box::new(Pending { daemon, binding, exchange }), data);
            }
            Ok(Step::Failed(failure)) => {
                return Verdict::Denied(match failure.code {
                    Some(FailCode::TempFail) => Denied::Unavailable,
                    Some(FailCode::AuthzFail) => Denied::Authorization,
                    Some(FailCode::UserDisabled) => Denied::Disabled,
                    Some(FailCode::PassExpired) => Denied::Expired,
                    Some(FailCode::InvalidBase64) => Denied::Malformed,
                    _ => Denied::Credentials,
                });
            }
            // A user who is proxied elsewhere has no mail here.
            Ok(Step::Ok(login)) if login.field("nologin").or(login.field("proxy")).is_some() => {
                return Verdict::NoLogin(login.field("reason").unwrap_or_default().to_owned());
            }
            Ok(Step::Ok(login)) if daemon.keeps => return keep(login),
            Ok(Step::Ok(login)) => return fetch(&daemon.client, login).await,
            Err(error) => {
                let temporary = error.is_temporary();
                tracing::warn!(%error, "login could not be checked; run `postern doctor`");
                return Verdict::Denied(if temporary { Denied::Unavailable } else { Denied::Malformed });
            }
        }
    }
}

fn keep(login: auth_client::Login) -> Verdict {
    let Some((client_pid, id, cookie)) = login.ticket() else {
        tracing::error!(user = login.user, "the authentication daemon keeps no logins");
        return Verdict::Denied(Denied::Unavailable);
    };
    let ticket = Ticket { client_pid, id, cookie: cookie.as_str().to_owned() };
    Verdict::Kept(Box::new(Kept {
        user: login.user.clone(),
        final_data: login.final_data.clone(),
        ticket,
        login,
    }))
}

/// The right password is not enough: home and mail come from the session socket.
async fn fetch(client: &AuthClient, login: auth_client::Login) -> Verdict {
    match client.session(&login).await {
        Ok(record) => Verdict::Welcome(Welcome {
            user: record.user,
            home: record.home,
            mail: record.mail,
            final_data: login.final_data,
        }),
        Err(error) => {
            // Also a user without a record: the password was right, so this is ours to repair.
            tracing::error!(%error, user = login.user, "no user record after a login");
            Verdict::Denied(Denied::Unavailable)
        }
    }
}
