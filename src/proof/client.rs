//! Small SMTP, IMAP and POP3 clients: just enough to send one message and read it back.
//!
//! Trust:     our own servers, over loopback or the configured addresses; lines and messages they send are limited.
//! Never:     log in before TLS, go on with bytes that came in plain text behind the start of TLS.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use conf::ListenerTls;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;

/// Longest line and longest message a server may answer with.
const LONGEST: u64 = 1024 * 1024;

/// Whom to trust, and under which name.
pub(crate) struct Trust {
    pub(crate) client: tls_config::Client,
    pub(crate) name: String,
}

/// Who logs in.
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// Lines over a stream.
struct Wire<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let stream = self.0.get_mut();
        stream.write_all(text.as_bytes()).await?;
        Ok(stream.flush().await?)
    }

    /// A line without CRLF.
    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None if line.is_empty() => bail!("the server closed the connection"),
            None => bail!("the server sent a line without its end"),
        }
    }

    /// The stream, if nothing was sent behind the line read last.
    fn into_inner(self) -> anyhow::Result<S> {
        if !self.0.buffer().is_empty() {
            bail!("the server sent plain text behind its go-ahead for TLS");
        }
        Ok(self.0.into_inner())
    }

    /// All lines of an SMTP reply, which must have this code.
    async fn smtp(&mut self, command: &str, code: &str) -> anyhow::Result<Vec<String>> {
        if !command.is_empty() {
            self.send(&format!("{command}\r\n")).await?;
        }
        let mut lines = Vec::new();
        loop {
            let line = self.line().await?;
            if !line.starts_with(code) {
                bail!("expected {code}, the server said: {line}");
            }
            let last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if last {
                return Ok(lines);
            }
        }
    }

    /// A POP3 reply, which must be `+OK`.
    async fn pop3(&mut self, command: &str) -> anyhow::Result<String> {
        if !command.is_empty() {
            self.send(&format!("{command}\r\n")).await?;
        }
        let line = self.line().await?;
        match line.strip_prefix("+OK") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("the server said: {line}"),
        }
    }

    /// An IMAP command: its untagged lines, and the first literal among them.
    async fn imap(&mut self, command: &str) -> anyhow::Result<(Vec<String>, Option<Vec<u8>>)> {
        self.send(&format!("p {command}\r\n")).await?;
        let (mut lines, mut literal) = (Vec::new(), None);
        loop {
            let line = self.line().await?;
            if let Some(answer) = line.strip_prefix("p ") {
                if answer.starts_with("OK") {
                    return Ok((lines, literal));
                }
                bail!("the server said: {answer}");
            }
            if let Some(length) = literal_length(&line) {
                if length > LONGEST {
                    bail!("the server announced {length} bytes");
                }
                let mut bytes = vec![0; usize::try_from(length)?];
                self.0.read_exact(&mut bytes).await.context("the message ended early")?;
                literal.get_or_insert(bytes);
            }
            lines.push(line);
        }
    }
}

fn literal_length(line: &str) -> Option<u64> {
    line.strip_suffix('}')?.rsplit_once('{')?.1.parse().ok()
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))
}

async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    trust: &Trust,
) -> anyhow::Result<impl AsyncRead + AsyncWrite + Unpin + use<S>> {
    trust.client.connect(&trust.name, stream).await.context("TLS")
}

/// Sends a message to oneself.
pub(crate) async fn submit(
    address: SocketAddr,
    tls: ListenerTls,
    trust: &Trust,
    login: &Login,
    message: &[u8],
) -> anyhow::Result<()> {
    let stream = connect(address).await?;
    match tls {
        ListenerTls::Implicit => {
            let mut wire = Wire::new(secure(stream, trust).await?);
            wire.smtp("", "220").await?;
            send_message(wire, login, message).await
        }
        ListenerTls::Starttls => {
            let mut wire = Wire::new(stream);
            wire.smtp("", "220").await?;
            let offers = wire.smtp("EHLO localhost", "250").await?;
            if offers.iter().any(|offer| offer.starts_with("AUTH")) {
                bail!("the server offers AUTH before TLS");
            }
            wire.smtp("STARTTLS", "220").await?;
            let stream = secure(wire.into_inner()?, trust).await?;
            send_message(Wire::new(stream), login, message).await
        }
    }
}

async fn send_message<S: AsyncRead + AsyncWrite + Unpin>(
    mut wire: Wire<S>,
    login: &Login,
    message: &[u8],
) -> anyhow::Result<()> {
    let offers = wire.smtp("EHLO localhost", "250").await?;
    if !offers.iter().any(|offer| offer.starts_with("AUTH ") && offer.contains("PLAIN")) {
        bail!("the server does not offer AUTH PLAIN");
    }
    let plain = format!("\0{}\0{}", login.user, login.password);
    let plain = base64::engine::general_purpose::STANDARD.encode(plain);
    wire.smtp(&format!("AUTH PLAIN {plain}"), "235").await.context("AUTH")?;
    let eight_bit = if offers.iter().any(|offer| offer == "8BITMIME") { " BODY=8BITMIME" } else { "" };
    wire.smtp(&format!("MAIL FROM:<{}>{eight_bit}", login.user), "250").await.context("MAIL")?;
    wire.smtp(&format!("RCPT TO:<{}>", login.user), "250").await.context("RCPT")?;
    wire.smtp("DATA", "354").await?;
    let mut stuffed = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|b| *b == b'\n') {
        // RFC 5321 §4.5.2
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    wire.0.get_mut().write_all(&stuffed).await?;
    wire.0.get_mut().flush().await?;
    wire.smtp("", "250").await.context("the message")?;
    wire.smtp("QUIT", "221").await?;
    Ok(())
}

/// The only message in INBOX, by IMAP.
pub(crate) async fn read_by_imap(
    address: SocketAddr,
    tls: ListenerTls,
    trust: &Trust,
    login: &Login,
) -> anyhow::Result<Vec<u8>> {
    let stream = connect(address).await?;
    match tls {
        ListenerTls::Implicit => {
            let mut wire = Wire::new(secure(stream, trust).await?);
            imap_greeting(&mut wire).await?;
            imap_fetch(wire, login).await
        }
        ListenerTls::Starttls => {
            let mut wire = Wire::new(stream);
            imap_greeting(&mut wire).await?;
            wire.imap("STARTTLS").await?;
            imap_fetch(Wire::new(secure(wire.into_inner()?, trust).await?), login).await
        }
    }
}

async fn imap_greeting<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> anyhow::Result<()> {
    let line = wire.line().await?;
    if !line.starts_with("* OK") {
        bail!("the server said: {line}");
    }
    Ok(())
}

async fn imap_fetch<S: AsyncRead + AsyncWrite + Unpin>(
    mut wire: Wire<S>,
    login: &Login,
) -> anyhow::Result<Vec<u8>> {
    wire.imap(&format!("LOGIN \"{}\" \"{}\"", login.user, login.password)).await.context("LOGIN")?;
    let (lines, _) = wire.imap("SELECT INBOX").await.context("SELECT")?;
    if !lines.iter().any(|line| line == "* 1 EXISTS") {
        bail!("INBOX should hold one message");
    }
    let (_, message) = wire.imap("FETCH 1 BODY.PEEK[]").await.context("FETCH")?;
    wire.imap("LOGOUT").await.context("LOGOUT")?;
    message.context("FETCH answered without the message")
}

/// The only message, by POP3.
pub(crate) async fn read_by_pop3(
    address: SocketAddr,
    tls: ListenerTls,
    trust: &Trust,
    login: &Login,
) -> anyhow::Result<Vec<u8>> {
    let stream = connect(address).await?;
    match tls {
        ListenerTls::Implicit => {
            let mut wire = Wire::new(secure(stream, trust).await?);
            wire.pop3("").await?;
            pop3_retr(wire, login).await
        }
        ListenerTls::Starttls => {
            let mut wire = Wire::new(stream);
            wire.pop3("").await?;
            wire.pop3("STLS").await?;
            pop3_retr(Wire::new(secure(wire.into_inner()?, trust).await?), login).await
        }
    }
}

async fn pop3_retr<S: AsyncRead + AsyncWrite + Unpin>(
    mut wire: Wire<S>,
    login: &Login,
) -> anyhow::Result<Vec<u8>> {
    wire.pop3(&format!("USER {}", login.user)).await?;
    wire.pop3(&format!("PASS {}", login.password)).await.context("PASS")?;
    let stat = wire.pop3("STAT").await.context("STAT")?;
    if !stat.starts_with("1 ") {
        bail!("there should be one message, STAT says {stat}");
    }
    wire.pop3("RETR 1").await.context("RETR")?;
    let mut message = Vec::new();
    loop {
        let mut line = Vec::new();
        (&mut wire.0).take(LONGEST).read_until(b'\n', &mut line).await?;
        if line == b".\r\n" {
            break;
        }
        if line.is_empty() || u64::try_from(message.len())? > LONGEST {
            bail!("the message does not end");
        }
        // RFC 1939 §3
        message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
    wire.pop3("QUIT").await.context("QUIT")?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::{Wire, literal_length};

    #[test]
    fn literals_are_announced() {
        for (line, expected) in [
            ("* 1 FETCH (BODY[] {310}", Some(310)),
            ("* 1 FETCH (FLAGS ())", None),
            ("{x}", None),
            ("}", None),
            ("{99999999999999999999}", None),
        ] {
            assert_eq!(literal_length(line), expected, "{line}");
        }
    }

    #[tokio::test]
    async fn replies_are_read_and_judged() {
        let wire = |text: &'static str| {
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut far, text.as_bytes()).await;
            });
            Wire::new(near)
        };
        let lines = wire("250-a\r\n250 b c\r\n").smtp("", "250").await.expect("a reply");
        assert_eq!(lines, ["a", "b c"]);
        assert!(wire("550 no\r\n").smtp("", "250").await.is_err());
        assert!(wire("250-a\r\n").smtp("", "250").await.is_err());
        assert!(wire("-ERR no\r\n").pop3("").await.is_err());
        let mut early = wire("220 go\r\n250 injected\r\n");
        early.smtp("", "220").await.expect("a reply");
        // Whether both lines arrived at once is up to the runtime; when they did, the second must not be lost.
        if !early.0.buffer().is_empty() {
            assert!(early.into_inner().is_err());
        }
        let (lines, literal) = {
            let mut wire = wire("* 1 FETCH (BODY[] {3}\r\na\r\n)\r\np OK done\r\n");
            wire.imap("FETCH").await.expect("a reply")
        };
        assert_eq!((lines.len(), literal), (2, Some(b"a\r\n".to_vec())));
    }
}
