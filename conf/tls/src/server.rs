//! Acceptors: one per service, all on the same certificates.
//!
//! A service's [`ServerConfig`]s live in a generation behind an `ArcSwap`: one per certificate, all with the service's
//! own ticket keys. The certificate is chosen from the ClientHello before the handshake goes on, so what was presented
//! is known exactly (for `tls-server-end-point`). New certificates mean new ticket keys: a resumed session then never
//! stands on a certificate that is gone.
//!
//! Trust: strangers: the ClientHello chooses among certificates, by name and signature schemes, and decides nothing
//!        else.
//! Never: wait for a handshake without a limit, or change anything when one pair of a reload cannot be used.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;

use crate::certificate::{Loaded, PemPair, choose};
use crate::{Error, TlsStream};

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinimumVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// Settings of all services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The oldest version of TLS that is spoken.
    pub minimum: MinimumVersion,
    /// Refuse TLS 1.2 clients without the extended master secret (RFC 7627). Only then `tls-exporter` is offered as
    /// channel binding on TLS 1.2; on 1.3 it always is.
    pub require_ems: bool,
}

/// The TLS side of a program: certificates and one acceptor per service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    provider: Arc<CryptoProvider>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    certificates: Arc<[Loaded]>,
    options: Options,
    services: HashMap<String, Arc<Service>>,
}

#[derive(Debug)]
struct Service {
    current: ArcSwap<Generation>,
    counters: Counters,
}

/// Handshakes since the start, kept as single additions.
#[derive(Debug, Default)]
struct Counters {
    done: [[AtomicU64; 2]; 2],
    failed: [AtomicU64; 4],
}

/// Handshakes of a service since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounts {
    /// Those that succeeded: first by version (TLS 1.2, 1.3), then by resumption (no, yes).
    pub done: [[u64; 2]; 2],
    /// Those that failed: timeout, closed by the client, TLS, connection lost.
    pub failed: [u64; 4],
}

/// What a service answers new connections with.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) certificates: Arc<[Loaded]>,
    /// One per certificate, in the same order.
    configs: Vec<Arc<ServerConfig>>,
    tickets: Arc<dyn ProducesTickets>,
    alpn: Vec<Vec<u8>>,
    options: Options,
}

/// Accepts TLS connections of one service. Cheap to clone; follows [`Tls::replace`].
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<Service>);

/// Why a client did not get through the handshake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// It took longer than allowed.
    #[error("no TLS handshake within {0:?}")]
    Timeout(Duration),
    /// It went away without saying anything wrong.
    #[error("the client closed the connection during the TLS handshake")]
    Closed,
    /// It does not speak TLS, or not as we can.
    #[error("TLS handshake failed: {0}")]
    Tls(String),
    /// The connection broke.
    #[error("connection lost during the TLS handshake: {0}")]
    Io(io::Error),
}

impl Tls {
    /// Loads the certificates; the first is for clients that name no or an unknown host.
    ///
    /// # Errors
    /// The first pair that cannot be used, and why.
    pub fn new(pairs: &[PemPair<'_>], options: Options) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificates = load(pairs, &provider)?;
        let state = State { certificates, options, services: HashMap::new() };
        Ok(Self(Arc::new(Shared { provider, state: Mutex::new(state) })))
    }

    /// The acceptor of a service (`imap`, `submission` …). The same name gives the same ticket keys, another name others;
    /// protocols with several ports that may share sessions use one name.
    /// `alpn` lists the protocols offered, normally none or one such as `imap`.
    ///
    /// # Errors
    /// The TLS library refuses the settings, or there is no randomness for ticket keys.
    pub fn acceptor(&self, service: &str, alpn: &[&str]) -> Result<Acceptor, Error> {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { certificates, options, services } = &mut *state;
        if let Some(known) = services.get(service) {
            let current = known.current.load_full();
            if current.alpn != alpn {
                let tickets = Arc::clone(&current.tickets);
                known.current.store(self.generation(certificates, *options, alpn, tickets)?);
            }
            return Ok(Acceptor(Arc::clone(known)));
        }
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        let generation = self.generation(certificates, *options, alpn, tickets)?;
        let created = Arc::new(Service { current: ArcSwap::new(generation), counters: Counters::default() });
        services.insert(service.to_owned(), Arc::clone(&created));
        Ok(Acceptor(created))
    }

    /// How many handshakes each service has seen, by name.
    pub fn handshakes(&self) -> Vec<(String, HandshakeCounts)> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            state.services.iter().map(|(name, service)| (name.clone(), service.counters.read())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// New certificates and settings for all services at once. Living connections keep what they have. When anything
    /// is wrong nothing changes.
    ///
    /// # Errors
    /// The first pair that cannot be used, and why.
    pub fn replace(&self, pairs: &[PemPair<'_>], options: Options) -> Result<(), Error> {
        let loaded = load(pairs, &self.0.provider)?;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let same = same_certificates(&loaded, &state.certificates);
        let certificates = if same { Arc::clone(&state.certificates) } else { loaded };
        if same && options == state.options {
            return Ok(());
        }
        let mut next = Vec::with_capacity(state.services.len());
        for service in state.services.values() {
            let current = service.current.load_full();
            let tickets =
                if same { Arc::clone(&current.tickets) } else { rustls::crypto::aws_lc_rs::Ticketer::new()? };
            let generation = self.generation(&certificates, options, current.alpn.clone(), tickets)?;
            next.push((Arc::clone(service), generation));
        }
        for (service, generation) in next {
            service.current.store(generation);
        }
        state.certificates = certificates;
        state.options = options;
        Ok(())
    }

    fn generation(
        &self,
        certificates: &Arc<[Loaded]>,
        options: Options,
        alpn: Vec<Vec<u8>>,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<Arc<Generation>, Error> {
        let versions: &[&'static rustls::SupportedProtocolVersion] = match options.minimum {
            MinimumVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinimumVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let mut configs = Vec::with_capacity(certificates.len());
        for loaded in certificates.iter() {
            let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.0.provider))
                .with_protocol_versions(versions)?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&loaded.key))));
            config.alpn_protocols.clone_from(&alpn);
            config.require_ems = options.require_ems;
            // Tickets carry the whole session: nothing is kept here, whatever the number of clients.
            config.ticketer = Arc::clone(&tickets);
            config.session_storage = Arc::new(NoServerSessionStorage {});
            configs.push(Arc::new(config));
        }
        let certificates = Arc::clone(certificates);
        Ok(Arc::new(Generation { certificates, configs, tickets, alpn, options }))
    }
}

impl Acceptor {
    /// Performs the server's side of the handshake, at most for `limit`.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the connection is dropped.
    pub async fn accept<S>(&self, io: S, limit: Duration) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let result = match tokio::time::timeout(limit, self.handshake(io)).await {
            Ok(result) => result.map_err(HandshakeError::from),
            Err(_) => Err(HandshakeError::Timeout(limit)),
        };
        self.0.counters.count(&result);
        result
    }

    async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> io::Result<TlsStream<S>> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io).await?;
        let generation = self.0.current.load_full();
        let hello = start.client_hello();
        let index = choose(&generation.certificates, hello.server_name(), hello.signature_schemes());
        let Some(config) = generation.configs.get(index).cloned() else {
            return Err(io::Error::other("no certificate is loaded"));
        };
        let stream = start.into_stream(config).await?;
        let ems = generation.options.require_ems;
        Ok(TlsStream::new(stream, Arc::clone(&generation.certificates), index, ems))
    }
}

impl Counters {
    fn count<S>(&self, result: &Result<TlsStream<S>, HandshakeError>) {
        let count = match result {
            Ok(stream) => self
                .done
                .get(usize::from(stream.is_tls13()))
                .and_then(|row| row.get(usize::from(stream.is_resumed()))),
            Err(HandshakeError::Timeout(_)) => self.failed.first(),
            Err(HandshakeError::Closed) => self.failed.get(1),
            Err(HandshakeError::Tls(_)) => self.failed.get(2),
            Err(HandshakeError::Io(_)) => self.failed.get(3),
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> HandshakeCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HandshakeCounts {
            done: self.done.each_ref().map(|row| row.each_ref().map(load)),
            failed: self.failed.each_ref().map(load),
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => HandshakeError::Closed,
            io::ErrorKind::InvalidData => HandshakeError::Tls(error.to_string()),
            _ => HandshakeError::Io(error),
        }
    }
}

fn load(pairs: &[PemPair<'_>], provider: &CryptoProvider) -> Result<Arc<[Loaded]>, Error> {
    if pairs.is_empty() {
        return Err(Error::NoCertificates);
    }
    pairs.iter().map(|pair| Loaded::new(*pair, provider)).collect()
}

/// Same chains in the same order. A key is bound to its certificate, so it need not be compared.
fn same_certificates(one: &[Loaded], other: &[Loaded]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.key.cert == b.key.cert)
}
