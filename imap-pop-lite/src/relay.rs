//! The front's half of a session that a mailbox process hosts: it keeps TLS and login, and carries bytes.
//!
//! Flow:    both directions run at once, each holding at most one piece: whoever does not read stops the other side, and
//!          nothing can stand still because the opposite direction is full. A connection that waits holds no buffer.
//! Ends:    the client's end is passed on as the end of our sending; the mailbox process answers what it has and closes. When
//!          this daemon stops, `Drain` asks it for a word to the client first.
//! Trust:   what comes from the mailbox process is the user's own mail and goes to the user's own connection.
//! Never:   look at what is passed on, or hold more than one piece of it each way.

use std::io;
use std::path::Path;
use std::time::Duration;

use boot::DrainToken;
use boot::courier::{self, Answer, Ask, Kind, Refusal, Why};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::stream::Connection;

/// Time for the broker and the mailbox process to open a mailbox: a login may have to wait for a name service.
const OPEN: Duration = Duration::from_secs(30);
/// Bytes carried at once to the client.
const PIECE: usize = 64 << 10;
/// A client that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a mailbox process may still answer a client that will say nothing more.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Asks at a socket for a mailbox; gives the connection to it and the user's name.
pub(crate) async fn open(socket: &Path, ask: &Ask) -> Result<(UnixStream, String), Refusal> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&courier::encode(Kind::Ask, ask)?).await?;
        match courier::read(&mut stream).await? {
            Some((Kind::Answer, body)) => Ok((stream, courier::decode(&body)?)),
            Some(_) => Err(io::Error::other("an answer that is none")),
            None => Err(io::Error::other("the connection was closed without an answer")),
        }
    };
    let failed = |error: io::Error| Refusal::temporary(format!("{}: {error}", socket.display()));
    match tokio::time::timeout(OPEN, asked).await {
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok((stream, Answer::Ready { user }))) => Ok((stream, user)),
        Ok(Ok((_, Answer::Refused(refusal)))) => Err(refusal),
        Ok(Ok(_)) => Err(failed(io::Error::other("an answer that is none"))),
    }
}

/// Tells the administrator why a user with the right password has no session.
pub(crate) fn refused(session: &str, user: &str, refusal: &Refusal) {
    match refusal.why {
        Why::Denied | Why::TooMany | Why::InUse => {
            tracing::warn!(session, user, error = %refusal, "the user's mail is not opened");
        }
        _ => {
            tracing::error!(session, user, error = %refusal, "cannot open the user's mail; run `postern doctor`");
        }
    }
}

/// Carries bytes until either end is through. `ahead`: what the client has sent already.
pub(crate) async fn run(
    connection: &mut Connection,
    mailbox: UnixStream,
    ahead: &[u8],
    drain: &mut DrainToken,
) -> io::Result<&'static str> {
    let (mut received, mut sent) = (0, 0);
    let ended = {
        let (from_mailbox, mut to_mailbox) = mailbox.into_split();
        let (mut from_client, mut to_client) = connection.halves();
        let upward = async {
            if !ahead.is_empty() {
                to_mailbox.write_all(&courier::data(ahead)).await?;
            }
            let mut told = false;
            loop {
                tokio::select! {
                    record = from_client.record() => {
                        let record = record?;
                        if record.is_empty() {
                            // Dropping it would not do: the other half keeps the socket open.
                            return to_mailbox.shutdown().await;
                        }
                        received += (record.len() - courier::HEADER) as u64;
                        to_mailbox.write_all(&record).await?;
                    }
                    () = drain.draining(), if !told => {
                        told = true;
                        to_mailbox.write_all(&courier::bare(Kind::Drain)).await?;
                    }
                }
            }
        };
        let downward = async {
            loop {
                from_mailbox.readable().await?;
                let mut piece = Vec::with_capacity(PIECE);
                match from_mailbox.try_read_buf(&mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(count) => {
                        to_client.write(&piece, WRITE_TIMEOUT).await?;
                        sent += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let mut downward = std::pin::pin!(downward);
        tokio::select! {
            ended = &mut downward => ended.map(|()| "closed"),
            ended = upward => match ended {
                // The mailbox process closes when it has said everything; it may have done so before we wrote to it.
                Ok(()) => match tokio::time::timeout(LAST_WORDS, &mut downward).await {
                    Ok(ended) => ended.map(|()| "disconnected"),
                    Err(_) => Ok("disconnected"),
                },
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    match tokio::time::timeout(LAST_WORDS, &mut downward).await {
                        Ok(ended) => ended.map(|()| "closed"),
                        Err(_) => Ok("closed"),
                    }
                }
                Err(error) => Err(error),
            },
        }
    };
    connection.received += received;
    connection.sent += sent;
    connection.shutdown().await;
    ended
}
