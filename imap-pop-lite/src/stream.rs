//! A client's connection: plain or TLS, with what is still to be written.
//!
//! Reading uses a buffer on the stack, so a connection that waits holds none.
//!
//! Trust: a stranger may send anything, slowly, or stop reading.
//! Never: hold more unsent output than one piece; read plain bytes behind a handshake.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use boot::courier::{self, Kind};
use tls_config::{Acceptor, ChannelBinding, HandshakeError, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};

/// Bytes read at once.
const READ: usize = 16 << 10;
/// Output collected before it is written.
const FLUSH: usize = 64 << 10;
/// Output buffer kept while nothing is to be written.
const KEEP: usize = 512;
/// A client that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// The transport.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// A client whom a front has handed over.
    Handed(Box<Handed>),
    /// Between the two, and after a failed handshake.
    Closed,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Handed(handed) => handed.poll_read(cx, buf),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
            Self::Handed(handed) => Pin::new(&mut handed.stream).poll_write(cx, bytes),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Handed(handed) => Pin::new(&mut handed.stream).poll_flush(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Handed(handed) => Pin::new(&mut handed.stream).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

/// The mailbox process's end of a hand-over: client bytes come in records, ours go out as they are.
struct Handed {
    stream: UnixStream,
    header: [u8; courier::HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Client bytes left in the record.
    left: usize,
    /// The front wants the session to end with a word.
    drain: bool,
}

impl Handed {
    /// No bytes: the end, or (see `drain`) the wish for one.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.left == 0 {
            let space = self.header.get_mut(self.have..).unwrap_or_default();
            let mut header = ReadBuf::new(space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut header))?;
            match header.filled().len() {
                0 if self.have == 0 => return Poll::Ready(Ok(())),
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.have += count,
            }
            if self.have < courier::HEADER {
                continue;
            }
            self.have = 0;
            match courier::header(self.header)? {
                (Kind::Data, length) => self.left = length,
                (Kind::Drain, _) => {
                    self.drain = true;
                    return Poll::Ready(Ok(()));
                }
                _ => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
        }
        let room = buf.remaining().min(self.left);
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let count = part.filled().len();
        buf.advance(count);
        self.left -= count;
        if count == 0 { Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())) } else { Poll::Ready(Ok(())) }
    }
}

/// The client's end for reading, beside a [`Writer`].
pub(crate) struct Reader<'a>(ReadHalf<&'a mut Stream>);

/// The client's end for writing.
pub(crate) struct Writer<'a>(WriteHalf<&'a mut Stream>);

impl Reader<'_> {
    /// Reads once; gives a record of data, or nothing at the end. Cancel-safe.
    pub(crate) async fn record(&mut self) -> io::Result<Vec<u8>> {
        let reader = &mut self.0;
        std::future::poll_fn(|cx| {
            let mut space = [0u8; READ];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            Poll::Ready(Ok(if bytes.is_empty() { Vec::new() } else { courier::data(bytes) }))
        })
        .await
    }
}

impl Writer<'_> {
    /// Writes everything within this time.
    pub(crate) async fn write(&mut self, bytes: &[u8], limit: Duration) -> io::Result<()> {
        let write = async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        };
        tokio::time::timeout(limit, write).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// What TLS adds to a login request.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    /// The name the client asked for.
    pub(crate) sni: Option<String>,
    /// For SCRAM-…-PLUS.
    pub(crate) binding: ChannelBinding,
}

/// A connection and its output buffer.
pub(crate) struct Connection {
    stream: Stream,
    out: Vec<u8>,
    /// Bytes received.
    pub(crate) received: u64,
    /// Bytes sent.
    pub(crate) sent: u64,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), out: Vec::new(), received: 0, sent: 0 }
    }

    /// A client whom a front has handed over.
    pub(crate) fn handed(stream: UnixStream) -> Self {
        let handed = Handed { stream, header: [0; courier::HEADER], have: 0, left: 0, drain: false };
        Self { stream: Stream::Handed(Box::new(handed)), out: Vec::new(), received: 0, sent: 0 }
    }

    /// Whether the last read ended because the front wants the session to end with a word. Tells it once.
    pub(crate) fn is_to_end(&mut self) -> bool {
        match &mut self.stream {
            Stream::Handed(handed) => std::mem::take(&mut handed.drain),
            _ => false,
        }
    }

    /// The two directions, to be used at once.
    pub(crate) fn halves(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (reader, writer) = tokio::io::split(&mut self.stream);
        (Reader(reader), Writer(writer))
    }

    /// The server's side of the handshake. After an error only dropping makes sense.
    pub(crate) async fn start_tls(&mut self, acceptor: &Acceptor) -> Result<(), HandshakeError> {
        match std::mem::replace(&mut self.stream, Stream::Closed) {
            Stream::Plain(stream) => {
                let tls = acceptor.accept(stream, HANDSHAKE).await?;
                self.stream = Stream::Tls(Box::new(tls));
                Ok(())
            }
            other => {
                self.stream = other;
                Ok(())
            }
        }
    }

    /// What the TLS layer knows, if there is one.
    pub(crate) fn tls_facts(&self) -> Option<TlsFacts> {
        match &self.stream {
            Stream::Tls(stream) => {
                Some(TlsFacts { sni: stream.sni().map(str::to_owned), binding: stream.channel_binding() })
            }
            _ => None,
        }
    }

    /// Protocol version and cipher, for the log.
    pub(crate) fn tls_name(&self) -> Option<String> {
        match &self.stream {
            Stream::Tls(stream) => {
                let info = stream.info();
                Some(format!("{} {}", info.protocol, info.cipher))
            }
            _ => None,
        }
    }

    /// Reads once and hands the bytes over; `Ok(0)` is the end. Cancel-safe.
    pub(crate) async fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        let stream = &mut self.stream;
        let size = std::future::poll_fn(|cx| {
            let mut space = [0u8; READ];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            take(buffer.filled());
            Poll::Ready(Ok::<usize, io::Error>(buffer.filled().len()))
        })
        .await?;
        self.received += size as u64;
        Ok(size)
    }

    /// Queues bytes; writes when much has come together.
    pub(crate) async fn push(&mut self, mut bytes: Vec<u8>) -> io::Result<()> {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.append(&mut bytes);
        }
        if self.out.len() >= FLUSH { self.flush().await } else { Ok(()) }
    }

    /// Writes everything that is queued.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let stream = &mut self.stream;
        let out = &self.out;
        let write = async {
            stream.write_all(out).await?;
            stream.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, write)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        self.sent += self.out.len() as u64;
        if self.out.capacity() > KEEP {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
        Ok(())
    }

    /// Says goodbye to the transport; a peer that is gone already is no matter.
    pub(crate) async fn shutdown(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.stream.shutdown()).await;
    }
}
