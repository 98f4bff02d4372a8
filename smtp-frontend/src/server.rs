//! The server without its supervisor: settings that can be swapped, and connections.
//!
//! Trust: whoever can connect; connections are counted in all and by address before a byte is read.
//! Never: keep a connection without a place of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use auth_client::AuthClient;
use boot::{Admission, DrainToken, Refused};
use conf::{SmtpKind, SmtpSlice};
use tls_config::Tls;
use tokio::net::TcpStream;

use crate::connection::{self, Context};
use crate::figures::Figures;
use crate::policy::{Error, Policy, load_tls};

/// An SMTP server. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: ArcSwap<Generation>,
    admission: Admission,
    tls: Mutex<Option<Tls>>,
    figures: Arc<Figures>,
}

#[derive(Debug)]
struct Generation {
    policy: Arc<Policy>,
    auth: AuthClient,
}

impl Server {
    /// A server with this configuration that asks `auth` for logins and users.
    ///
    /// # Errors
    /// What in the configuration cannot be used.
    pub fn new(slice: &SmtpSlice, auth: AuthClient, admission: Admission) -> Result<Self, Error> {
        Policy::check(slice)?;
        let tls = load_tls(slice, None)?;
        let policy = Arc::new(Policy::new(slice, tls.as_ref())?);
        admission.set_limits(slice.limits.connections, slice.limits.connections_per_address);
        let current = ArcSwap::from_pointee(Generation { policy, auth });
        let figures = Arc::default();
        Ok(Self(Arc::new(Inner { current, admission, tls: Mutex::new(tls), figures })))
    }

    /// New settings and certificates for new connections; those that are there keep the settings they began with.
    /// With an error nothing changes.
    ///
    /// # Errors
    /// What in the configuration cannot be used.
    pub fn reload(&self, slice: &SmtpSlice, auth: AuthClient) -> Result<(), Error> {
        Policy::check(slice)?;
        let mut tls = self.0.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let next = load_tls(slice, tls.clone())?;
        let policy = Arc::new(Policy::new(slice, next.as_ref())?);
        *tls = next;
        self.0.admission.set_limits(slice.limits.connections, slice.limits.connections_per_address);
        self.0.current.store(Arc::new(Generation { policy, auth }));
        Ok(())
    }

    /// What the server has counted, for metrics.
    pub(crate) fn report(&self, to: &mut Vec<boot::figures::Sample>) {
        self.0.figures.samples(to);
        let tls = self.0.tls.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, counts) in tls.iter().flat_map(Tls::handshakes) {
            boot::figures::handshakes(&service, &counts.done, &counts.failed, to);
        }
    }

    /// Takes one accepted connection: turns it away, or serves it in a task of its own.
    pub fn accept(
        &self,
        listener: &Arc<str>,
        kind: SmtpKind,
        stream: TcpStream,
        peer: SocketAddr,
        drain: DrainToken,
    ) {
        let permit = match self.0.admission.admit(Some(peer.ip())) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::info!(%listener, client = %peer, why = %refused, "connection refused");
                return turn_away(stream, kind, refused);
            }
        };
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(%listener, client = %peer, %error, "connection was gone at once");
                return;
            }
        };
        let current = self.0.current.load_full();
        let context = Context {
            policy: Arc::clone(&current.policy),
            service: current.policy.service(kind).clone(),
            auth: current.auth.clone(),
            listener: Arc::clone(listener),
            peer,
            local,
            drain,
            figures: Arc::clone(&self.0.figures),
        };
        tokio::spawn(async move {
            connection::serve(stream, kind == SmtpKind::Submissions, context).await;
            drop(permit);
        });
    }
}

/// Says why, without waiting for anybody. Inside implicit TLS nothing can be said this early.
fn turn_away(stream: TcpStream, kind: SmtpKind, refused: Refused) {
    use std::io::Write as _;
    if kind == SmtpKind::Submissions {
        return;
    }
    let text: &[u8] = match refused {
        Refused::Total => b"421 4.7.0 Too many connections, try again later\r\n",
        Refused::Address => b"421 4.7.0 Too many connections from your address\r\n",
    };
    if let Ok(mut stream) = stream.into_std() {
        // Not blocking; an empty socket buffer takes one line.
        let _ = stream.write(text);
    }
}
