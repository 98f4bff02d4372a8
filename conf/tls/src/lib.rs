//! One place for TLS: certificates, SNI, reload, tickets, channel binding.
//!
//! Purpose:   every service of the stack gets its acceptor here; all of them share the certificates, none the tickets.
//! Provider:  rustls with aws-lc-rs, always named explicitly; TLS 1.2 and 1.3 only.
//! Reload:    [`Tls::replace`] swaps certificates under living connections; the next handshake uses the new ones.
//! Trust:     strangers, before anything else has seen their bytes; the library parses them. Certificates are the
//!            administrator's.
//! Never:     print a key, share session tickets between services, wait for a silent client without a limit.
#![forbid(unsafe_code)]

mod certificate;
mod client;
mod error;
#[cfg(test)]
mod handshake_tests;
mod mutual;
mod server;
mod stream;
#[cfg(test)]
mod testing;

pub use certificate::{PemPair, Report, Warning, check};
pub use client::{Client, TlsStream as ClientStream};
pub use error::Error;
pub use mutual::{MutualClient, MutualServer, check_name};
pub use server::{Acceptor, HandshakeCounts, HandshakeError, MinimumVersion, Options, Tls};
pub use stream::{ChannelBinding, TlsInfo, TlsStream};

/// Turns Nagle's algorithm off: replies of mail protocols are small and waited for.
pub fn set_nodelay(socket: &tokio::net::TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        // The connection works without it, only slower; it fails when the peer is gone already.
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
}
