//! Clients of SMTP, IMAP and POP3 with TLS from the first byte.
//!
//! Every connection makes a full handshake, with the same version, cipher and key exchange on both sides.
//!
//! Trust: what the measured servers answer; it is compared with what must come, nothing else.
//! Never: resume a session, or count an answer that is not the expected one.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use super::{Crowd, Timing, Window};

/// Longest time until an answer; the slowest reads 100,000 messages.
const PATIENCE: Duration = Duration::from_secs(120);

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

/// A client that trusts this CA, never resumes a session and knows one version, one cipher and one key exchange.
pub(crate) fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A connection.
pub(crate) struct Client {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    line: Vec<u8>,
}

impl Client {
    /// Connects and reads the greeting.
    pub(crate) fn open(protocol: Protocol, port: u16, tls: &Arc<ClientConfig>) -> anyhow::Result<Client> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let client = ClientConnection::new(Arc::clone(tls), ServerName::try_from("localhost")?)?;
        let stream = BufReader::with_capacity(32 << 10, StreamOwned::new(client, socket));
        let mut client = Client { stream, line: Vec::new() };
        client.expect(match protocol {
            Protocol::Smtp => "220 ",
            Protocol::Imap => "* OK",
            Protocol::Pop3 => "+OK",
        })?;
        Ok(client)
    }

    /// Connects and logs in.
    pub(crate) fn log_in(
        protocol: Protocol,
        port: u16,
        tls: &Arc<ClientConfig>,
        (user, password): &(String, String),
    ) -> anyhow::Result<Client> {
        let mut client = Client::open(protocol, port, tls)?;
        match protocol {
            Protocol::Smtp => {
                client.ask("EHLO localhost\r\n", "250 ")?;
                let response = STANDARD.encode(format!("\0{user}\0{password}"));
                client.ask(&format!("AUTH PLAIN {response}\r\n"), "235 ")?;
            }
            Protocol::Imap => client.ask(&format!("a LOGIN {user} {password}\r\n"), "a OK")?,
            Protocol::Pop3 => {
                client.ask(&format!("USER {user}\r\n"), "+OK")?;
                client.ask(&format!("PASS {password}\r\n"), "+OK")?;
            }
        }
        Ok(client)
    }

    /// Says good-bye and hears it.
    pub(crate) fn log_out(mut self, protocol: Protocol) -> anyhow::Result<()> {
        match protocol {
            Protocol::Smtp => self.ask("QUIT\r\n", "221 "),
            Protocol::Imap => self.ask("z LOGOUT\r\n", "z OK"),
            Protocol::Pop3 => self.ask("QUIT\r\n", "+OK"),
        }
    }

    /// Sends.
    pub(crate) fn say(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    /// Sends, and reads on to the line that must come.
    pub(crate) fn ask(&mut self, text: &str, start: &str) -> anyhow::Result<()> {
        self.say(text)?;
        self.expect(start)
    }

    /// Reads on to a line with this start. Before it only further lines of a reply, and untagged responses with
    /// whatever literals they bring.
    pub(crate) fn expect(&mut self, start: &str) -> anyhow::Result<()> {
        self.until(start, |line| line.starts_with(start.as_bytes()))
    }

    /// The same with a line that is told by a function.
    pub(crate) fn until(&mut self, what: &str, is_it: impl Fn(&[u8]) -> bool) -> anyhow::Result<()> {
        let mut inside = false;
        loop {
            self.line.clear();
            if self.stream.read_until(b'\n', &mut self.line)? == 0 {
                bail!("the server hung up before {what:?}");
            }
            if !inside && is_it(&self.line) {
                return Ok(());
            }
            let more = self.line.starts_with(b"*") || self.line.get(3) == Some(&b'-');
            if !inside && !more {
                bail!("expected {what:?}, got {:?}", String::from_utf8_lossy(&self.line));
            }
            // RFC 9051 §4.3: a line that ends in a literal's length goes on behind it.
            inside = match literal(&self.line) {
                Some(length) => {
                    self.skip(length)?;
                    true
                }
                None => false,
            };
        }
    }

    /// Reads so many bytes and forgets them.
    pub(crate) fn skip(&mut self, bytes: u64) -> anyhow::Result<()> {
        let had = std::io::copy(&mut self.stream.by_ref().take(bytes), &mut std::io::sink())?;
        if had < bytes {
            bail!("the server hung up");
        }
        Ok(())
    }

    /// Bytes until so many lines with a single dot have come (RFC 1939 §3).
    pub(crate) fn count_until_dots(&mut self, mut dots: usize) -> anyhow::Result<u64> {
        let mut bytes = 0;
        while dots > 0 {
            self.line.clear();
            match self.stream.read_until(b'\n', &mut self.line)? {
                0 => bail!("the server hung up"),
                count => bytes += count as u64,
            }
            if self.line.starts_with(b"-ERR") {
                bail!("{:?}", String::from_utf8_lossy(&self.line));
            }
            if self.line == b".\r\n" {
                dots -= 1;
            }
        }
        Ok(bytes)
    }
}

/// `…{123}` and a line end.
fn literal(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"}\r\n")?;
    let at = line.iter().rposition(|&byte| byte == b'{')?;
    std::str::from_utf8(line.get(at + 1..)?).ok()?.parse().ok()
}

/// A message of about this size.
pub(crate) fn message(user: &str, size: usize) -> String {
    let mut text = format!(
        "From: <{user}>\r\nTo: <{user}>\r\nSubject: figures of the third quarter\r\n\
         Date: Mon, 2 Mar 2026 10:00:00 +0000\r\nMessage-ID: <bench@example.test>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\r\n"
    );
    while text.len() < size {
        text.push_str("The quick brown fox jumps over the lazy dog, again and again and again.\r\n");
    }
    text
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
    let one = |(): &mut (), number: usize| {
        let user = users.get(number % users.len().max(1)).context("no users")?;
        login(protocol, port, tls, user)
    };
    Crowd { threads, timing, server }.run(|_| Ok(()), one, None)
}

/// One login.
pub(crate) fn login(
    protocol: Protocol,
    port: u16,
    tls: &Arc<ClientConfig>,
    user: &(String, String),
) -> anyhow::Result<()> {
    Client::log_in(protocol, port, tls, user)?.log_out(protocol)
}

/// Hands a message in on a connection with a login: RFC 2920, so two round trips.
pub(crate) fn submit(client: &mut Client, user: &str, message: &str) -> anyhow::Result<()> {
    client.ask(&format!("MAIL FROM:<{user}>\r\nRCPT TO:<{user}>\r\nDATA\r\n"), "250 ")?;
    client.expect("250 ")?;
    client.expect("354 ")?;
    client.ask(&format!("{message}.\r\n"), "250 ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_literals() {
        assert_eq!(literal(b"* 1 FETCH (BODY[] {342}\r\n"), Some(342));
        assert_eq!(literal(b"* OK [CAPABILITY] ready {}\r\n"), None);
        assert_eq!(literal(b" UID 7)\r\n"), None);
    }

    #[test]
    fn messages_are_as_long_as_asked() {
        assert!((4096..4200).contains(&message("a@example.test", 4096).len()));
    }
}
