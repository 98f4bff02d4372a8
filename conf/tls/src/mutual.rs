//! TLS between two programs of ours that both show a certificate: for `auth-daemon forward`.
//!
//! Rules:  TLS 1.3 only; each side trusts one CA and nothing else; no session is resumed, so a certificate that is
//!         not trusted any more gets in nowhere after a reload.
//! Trust:  anybody can begin a handshake; who ends it has a certificate of the other side's CA.
//! Never:  talk to a peer without a certificate, not even to say why.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::certificate::{Loaded, PemPair};
use crate::{Error, HandshakeError};

/// The connecting side.
#[derive(Clone)]
pub struct MutualClient(TlsConnector);

/// The accepting side.
#[derive(Clone)]
pub struct MutualServer(TlsAcceptor);

impl std::fmt::Debug for MutualClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MutualClient")
    }
}

impl std::fmt::Debug for MutualServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MutualServer")
    }
}

impl MutualClient {
    /// Shows `pair`, and trusts servers whose certificate this CA has signed.
    ///
    /// # Errors
    /// A certificate or key that cannot be used.
    pub fn new(ca_pem: &str, pair: PemPair<'_>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let loaded = Loaded::new(pair, &provider)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(ca_pem)?)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(loaded.key)));
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Performs the handshake with the server called `name` (a host name or an address), at most for `limit`.
    /// Whether it accepts our certificate shows only when it answers.
    ///
    /// # Errors
    /// The name is none, or see [`HandshakeError`].
    pub async fn connect<S>(
        &self,
        name: &str,
        io: S,
        limit: Duration,
    ) -> Result<client::TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(name).map_err(|error| HandshakeError::Tls(error.to_string()))?;
        match tokio::time::timeout(limit, self.0.connect(name, io)).await {
            Ok(result) => result.map_err(HandshakeError::from),
            Err(_) => Err(HandshakeError::Timeout(limit)),
        }
    }
}

impl MutualServer {
    /// Shows `pair`, and lets clients in whose certificate this CA has signed.
    ///
    /// # Errors
    /// A certificate or key that cannot be used.
    pub fn new(client_ca_pem: &str, pair: PemPair<'_>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let loaded = Loaded::new(pair, &provider)?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots(client_ca_pem)?.into(), Arc::clone(&provider))
                .build()
                .map_err(|error| Error::BadCertificate(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(loaded.key)));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Performs the handshake, at most for `limit`. Also tells the SHA-256 of the client's certificate, in hex.
    ///
    /// # Errors
    /// See [`HandshakeError`]; a client without a certificate of the CA is one.
    pub async fn accept<S>(
        &self,
        io: S,
        limit: Duration,
    ) -> Result<(server::TlsStream<S>, String), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = match tokio::time::timeout(limit, self.0.accept(io)).await {
            Ok(result) => result?,
            Err(_) => return Err(HandshakeError::Timeout(limit)),
        };
        // The verifier demands one; should that ever change, nobody gets in.
        let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
            return Err(HandshakeError::Io(io::Error::other("the client showed no certificate")));
        };
        let fingerprint = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((stream, fingerprint))
    }
}

/// Whether this is a host name or an address that a certificate can be checked for.
///
/// # Errors
/// It is not.
pub fn check_name(name: &str) -> Result<(), Error> {
    server_name(name).map(drop)
}

fn server_name(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|_| Error::BadName(name.to_owned()))
}

fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| Error::BadPem(error.to_string()))?)?;
    }
    if roots.is_empty() { Err(Error::NoCertificate) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, ca};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const LIMIT: Duration = Duration::from_secs(5);

    fn pair(made: &Made) -> PemPair<'_> {
        PemPair { chain: &made.chain, key: made.key.as_bytes() }
    }

    #[tokio::test]
    async fn both_certificates_count() {
        let (ours, theirs) = (ca(), ca());
        let (server, client, stranger) =
            (ours.issue(&["auth.example"]), ours.issue(&["mx.example"]), theirs.issue(&["mx.example"]));
        let accept = MutualServer::new(&ours.pem, pair(&server)).unwrap();
        let cases = [
            (&ours.pem, &client, "auth.example", true),
            (&ours.pem, &client, "other.example", false),
            (&theirs.pem, &client, "auth.example", false),
            (&ours.pem, &stranger, "auth.example", false),
        ];
        for (ca, shown, name, works) in cases {
            let (near, far) = tokio::io::duplex(1 << 16);
            let connect = MutualClient::new(ca, pair(shown)).unwrap();
            let client = async {
                let mut stream = connect.connect(name, near, LIMIT).await.ok()?;
                stream.write_all(b"hello").await.ok()?;
                let mut answer = [0; 5];
                stream.read_exact(&mut answer).await.ok()?;
                Some(answer)
            };
            let server = async {
                let (mut stream, fingerprint) = accept.accept(far, LIMIT).await.ok()?;
                assert_eq!(fingerprint.len(), 64);
                let mut said = [0; 5];
                stream.read_exact(&mut said).await.ok()?;
                stream.write_all(b"world").await.ok()?;
                stream.shutdown().await.ok()
            };
            let (client, server) = tokio::join!(client, server);
            assert_eq!((client == Some(*b"world"), server.is_some()), (works, works), "{name}");
        }
    }

    #[tokio::test]
    async fn no_certificate_no_entry() {
        let ours = ca();
        let made = ours.issue(&["auth.example"]);
        let accept = MutualServer::new(&ours.pem, pair(&made)).unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let plain = crate::Client::new(&ours.pem).unwrap();
        let client = async {
            let mut stream = plain.connect("auth.example", near).await.ok()?;
            stream.read_u8().await.ok()
        };
        let (client, server) = tokio::join!(client, accept.accept(far, LIMIT));
        assert_eq!(client, None);
        assert!(matches!(server, Err(HandshakeError::Tls(_))), "{:?}", server.err());
    }

    #[test]
    fn mistakes_are_told() {
        let ours = ca();
        let (one, two) = (ours.issue(&["a"]), ours.issue(&["b"]));
        let mixed = PemPair { chain: &one.chain, key: two.key.as_bytes() };
        assert!(matches!(MutualServer::new(&ours.pem, mixed), Err(Error::KeyMismatch)));
        assert!(matches!(MutualClient::new("", pair(&one)), Err(Error::NoCertificate)));
        assert!(
            check_name("192.0.2.1").is_ok() && check_name("a.example").is_ok() && check_name("a b").is_err()
        );
    }
}
