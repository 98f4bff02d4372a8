//! Logins over SMTP, IMAP and POP3 with TLS from the first byte: a new connection and a full handshake for each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use super::{Timing, Window, in_threads};

/// The dialogue after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// EHLO, AUTH PLAIN, QUIT.
    Smtp,
    /// LOGIN, LOGOUT.
    Imap,
    /// USER, PASS, QUIT.
    Pop3,
}

/// A client that trusts this CA and never resumes a session.
pub(crate) fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Keeps `threads` logins in flight, over these users (name, password) in turn.
pub(crate) fn run(
    protocol: Protocol,
    port: u16,
    tls: &Arc<ClientConfig>,
    users: &[(String, String)],
    threads: usize,
    timing: Timing,
    server: &[u32],
) -> anyhow::Result<Window> {
    in_threads(threads, timing, server, |number| {
        let (user, password) = users.get(number % users.len().max(1)).context("no users")?;
        login(protocol, port, tls, user, password)
    })
}

/// One login.
pub(crate) fn login(
    protocol: Protocol,
    port: u16,
    tls: &Arc<ClientConfig>,
    user: &str,
    password: &str,
) -> anyhow::Result<()> {
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let client = ClientConnection::new(Arc::clone(tls), ServerName::try_from("localhost")?)?;
    let mut lines = BufReader::new(StreamOwned::new(client, socket));
    let mut line = String::new();
    let mut expect = |lines: &mut BufReader<StreamOwned<ClientConnection, TcpStream>>, start: &str| {
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                bail!("the server hung up before {start:?}");
            }
            if line.starts_with(start) {
                return Ok(());
            }
            // Further lines of a reply, and untagged responses.
            let more = line.starts_with('*') || line.as_bytes().get(3) == Some(&b'-');
            if !more {
                bail!("expected {start:?}, got {line:?}");
            }
        }
    };
    let say = |lines: &mut BufReader<StreamOwned<ClientConnection, TcpStream>>, text: &str| {
        lines.get_mut().write_all(text.as_bytes())
    };
    match protocol {
        Protocol::Smtp => {
            expect(&mut lines, "220 ")?;
            say(&mut lines, "EHLO localhost\r\n")?;
            expect(&mut lines, "250 ")?;
            let response = STANDARD.encode(format!("\0{user}\0{password}"));
            say(&mut lines, &format!("AUTH PLAIN {response}\r\n"))?;
            expect(&mut lines, "235 ")?;
            say(&mut lines, "QUIT\r\n")?;
            expect(&mut lines, "221 ")?;
        }
        Protocol::Imap => {
            expect(&mut lines, "* OK")?;
            say(&mut lines, &format!("a LOGIN {user} {password}\r\n"))?;
            expect(&mut lines, "a OK")?;
            say(&mut lines, "b LOGOUT\r\n")?;
            expect(&mut lines, "b OK")?;
        }
        Protocol::Pop3 => {
            expect(&mut lines, "+OK")?;
            say(&mut lines, &format!("USER {user}\r\n"))?;
            expect(&mut lines, "+OK")?;
            say(&mut lines, &format!("PASS {password}\r\n"))?;
            expect(&mut lines, "+OK")?;
            say(&mut lines, "QUIT\r\n")?;
            expect(&mut lines, "+OK")?;
        }
    }
    Ok(())
}
