//! A TLS client that trusts one CA: for the self-test, admin commands and tests.
//!
//! Trust: the server, as far as the handshake goes; nobody is believed whose certificate the one CA has not signed.
//! Never: look into the system's store of CAs, or connect without checking the name.

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;

use crate::Error;

/// Connects to servers whose certificates one CA has signed. Clones share the session tickets received.
#[derive(Clone)]
pub struct Client(TlsConnector);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Trusts the certificates in this PEM text and nothing else. Speaks TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// There is no usable certificate in the text.
    pub fn new(ca_pem: &str) -> Result<Self, Error> {
        Self::with_versions(ca_pem, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    /// Like [`Client::new`], but speaks TLS 1.2 only (tests of old clients).
    ///
    /// # Errors
    /// There is no usable certificate in the text.
    pub fn tls12_only(ca_pem: &str) -> Result<Self, Error> {
        Self::with_versions(ca_pem, &[&rustls::version::TLS12])
    }

    fn with_versions(
        ca_pem: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.map_err(|error| Error::BadPem(error.to_string()))?)?;
        }
        if roots.is_empty() {
            return Err(Error::NoCertificate);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Performs the client's side of the handshake and checks the server's certificate for `name`
    /// (a host name or an address).
    ///
    /// # Errors
    /// The name is none, or the handshake failed.
    pub async fn connect<S>(&self, name: &str, io: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, Error::BadName(name.to_owned())))?;
        self.0.connect(name, io).await
    }
}
