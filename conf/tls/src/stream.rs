//! An accepted TLS connection and what is known about it.
//!
//! Trust: the peer is a stranger whose bytes are intact, no more; the host name it asked for is its word.
//! Never: offer a channel binding that is not unique to the connection (RFC 9266 §4.2).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server;

use crate::certificate::Loaded;

/// The label of RFC 9266 §2.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// A TLS connection of a client. A client that goes away without `close_notify` reads as end of file: mail protocols
/// mark their ends themselves, and many clients never send it.
#[derive(Debug)]
pub struct TlsStream<S> {
    inner: server::TlsStream<S>,
    certificates: Arc<[Loaded]>,
    presented: usize,
    ems_required: bool,
}

/// What was negotiated, for `Received:` lines, logs and the auth protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub protocol: &'static str,
    /// The IANA name, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// Strength of the cipher: 128 or 256.
    pub bits: u16,
    /// The host name the client asked for.
    pub sni: Option<String>,
    /// The protocol agreed by ALPN.
    pub alpn: Option<String>,
    /// Whether the session was resumed by a ticket.
    pub resumed: bool,
}

/// Channel-binding data of a connection (RFC 5929, RFC 9266); what is `None` must not be offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelBinding {
    /// `tls-exporter`.
    pub exporter: Option<[u8; 32]>,
    /// `tls-server-end-point`.
    pub server_end_point: Option<Vec<u8>>,
}

impl<S> TlsStream<S> {
    pub(crate) fn new(
        inner: server::TlsStream<S>,
        certificates: Arc<[Loaded]>,
        presented: usize,
        ems_required: bool,
    ) -> Self {
        Self { inner, certificates, presented, ems_required }
    }

    /// What was negotiated.
    pub fn info(&self) -> TlsInfo {
        let connection = self.connection();
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        // The library writes TLS13_… where IANA, OpenSSL and every log reader say TLS_….
        let cipher = suite
            .and_then(|suite| suite.as_str())
            .map_or_else(|| "unknown".to_owned(), |name| name.replacen("TLS13_", "TLS_", 1));
        let bits = if cipher.contains("AES_128") { 128 } else { 256 };
        TlsInfo {
            protocol: protocol(connection),
            cipher,
            bits,
            sni: connection.server_name().map(str::to_owned),
            alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    pub(crate) fn is_tls13(&self) -> bool {
        self.connection().protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.connection().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The host name the client asked for.
    pub fn sni(&self) -> Option<&str> {
        self.connection().server_name()
    }

    /// Channel-binding data for SCRAM-…-PLUS.
    pub fn channel_binding(&self) -> ChannelBinding {
        let connection = self.connection();
        // RFC 9266 §4.2: on TLS 1.2 only with the extended master secret.
        let unique = protocol(connection) == "TLSv1.3" || self.ems_required;
        let exporter = if unique {
            connection.export_keying_material([0_u8; 32], EXPORTER_LABEL, Some(b"")).ok()
        } else {
            None
        };
        let presented = self.certificates.get(self.presented);
        let server_end_point = presented.and_then(|one| one.end_point.as_deref()).map(<[u8]>::to_vec);
        ChannelBinding { exporter, server_end_point }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        self.inner.get_ref().0
    }

    fn connection(&self) -> &ServerConnection {
        self.inner.get_ref().1
    }
}

fn protocol(connection: &ServerConnection) -> &'static str {
    match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.inner).poll_read(context, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
