//! The receiving end of a delivery channel: takes one message for one mailbox.
//!
//! Trust:   the SMTP server, told by the kernel who it is; it may be taken over. What it sends is a stranger's message.
//! Durable: `Staged` is said when the message is written and synced in `tmp`, `Done` when it is renamed into `new` and the
//!          folder is synced. Whatever ends the connection before `Commit` leaves nothing, afterwards the message.
//! Undo:    the front may take back the message it has just delivered here, and only as long as nobody has picked it up: SMTP
//!          has one answer for all recipients.
//! Never:   tell the other end anything about the mailbox but whether the message fits; do anything but append.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use auth_client::{AuthClient, Config as AuthConfig};
use boot::Drain;
use boot::courier::{self, Answer, Ask, Kind, Refusal, Why};
use maildir::{Maildir, Placed, Staged};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::files::Files;
use crate::login::Welcome;
use crate::server::Shared;

/// A front that says nothing for so long is gone: its own client may think for five minutes.
const SILENCE: Duration = Duration::from_secs(600);
/// Time for a front to take an answer.
const WRITE: Duration = Duration::from_secs(30);

/// Where this daemon takes deliveries, when it owns the mail and the SMTP server is another account.
pub const SOCKET: &str = "mail-delivery";
/// Time for the SMTP server to say whom a message is for.
const ASK: Duration = Duration::from_secs(5);
/// Deliveries at a time.
const MOST: usize = 1024;

/// Takes deliveries from the SMTP server; the authentication daemon says where its users' mail is.
pub(crate) async fn accept(shared: Arc<Shared>, listener: UnixListener, drain: Arc<Drain>) {
    let sockets = &shared.live().slice.auth;
    let auth = AuthClient::new(AuthConfig::new(&sockets.login, &sockets.session, &sockets.userdb));
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let mut stream = boot::accept_unix(&listener).await;
        let from = shared.live().slice.delivery_from;
        match stream.peer_cred() {
            Ok(peer) if Some(peer.uid()) == from => {}
            peer => {
                let (pid, uid) = peer.map_or((None, None), |peer| (peer.pid(), Some(peer.uid())));
                tracing::warn!(
                    pid,
                    uid,
                    "refused a process on the delivery socket: only the SMTP server may"
                );
                continue;
            }
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (shared, auth, token) = (Arc::clone(&shared), auth.clone(), drain.token());
        tokio::spawn(token.track(async move {
            match open(&shared, &auth, &mut stream).await {
                Ok((root, user, session)) => serve(&shared.files, root, user, session, stream).await,
                Err(refusal) => {
                    tracing::warn!(why = %refusal, "refused a delivery");
                    // Whoever asked may be gone.
                    let _ = answer(&mut stream, &Answer::Refused(refusal)).await;
                }
            }
            drop(place);
        }));
    }
}

/// Whom it is for: place, name, and how the message is called in the log.
async fn open(
    shared: &Shared,
    auth: &AuthClient,
    stream: &mut UnixStream,
) -> Result<(PathBuf, String, String), Refusal> {
    let asked = match tokio::time::timeout(ASK, courier::read(stream)).await {
        Ok(Ok(Some((Kind::Ask, body)))) => courier::decode::<Ask>(&body).map_err(|bad| bad.to_string()),
        Ok(Ok(_)) => Err("nothing was asked".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("nothing was asked in time".to_owned()),
    };
    let Ask::Delivery(asked) = asked.map_err(|bad| Refusal::denied(format!("not a request: {bad}")))? else {
        return Err(Refusal::denied("only deliveries are taken here"));
    };
    let record = match auth.user(&asked.recipient, &asked.service).await {
        Ok(Some(record)) => record,
        Ok(None) => return Err(Refusal::denied(format!("{}: no such user", asked.recipient))),
        Err(error) => return Err(Refusal::temporary(error.to_string())),
    };
    let who = Welcome { user: record.user, home: record.home, mail: record.mail, final_data: None };
    match shared.live().places.root(&who) {
        Ok(root) => Ok((root, who.user, asked.session)),
        Err(error) => Err(Refusal::temporary(format!("{}: {error}", who.user))),
    }
}

/// How far a message is.
enum Stage {
    Open(Box<maildir::Delivery>),
    Staged(Box<Staged>),
    /// In the mailbox, with its size.
    Done(Box<Placed>, u64),
    /// Failed, told when the front asks.
    Failed(Refusal),
}

/// Takes a message for the Maildir at `root`. `user`: whose it is.
pub(crate) async fn serve(
    files: &Files,
    root: PathBuf,
    user: String,
    session: String,
    mut stream: UnixStream,
) {
    let ended = take(files, root, &user, &session, &mut stream).await;
    match ended {
        Ok(Some(size)) => tracing::debug!(session, user, size, "message stored"),
        Ok(None) => tracing::debug!(session, user, "delivery given up by the front"),
        Err(error) => tracing::warn!(session, user, %error, "delivery ended early"),
    }
}

async fn take(
    files: &Files,
    root: PathBuf,
    user: &str,
    session: &str,
    stream: &mut UnixStream,
) -> io::Result<Option<u64>> {
    let opened = files.run(move || Maildir::open_or_create(&root)?.delivery()).await;
    let mut stage = match opened {
        Some(Ok(delivery)) => Stage::Open(Box::new(delivery)),
        failed => {
            let refusal = refusal(failed.and_then(Result::err));
            tracing::debug!(session, user, error = %refusal, "not opened");
            answer(stream, &Answer::Refused(refusal)).await?;
            return Ok(None);
        }
    };
    answer(stream, &Answer::Ready { user: user.to_owned() }).await?;
    loop {
        let record = tokio::time::timeout(SILENCE, courier::read(stream)).await;
        let record = match record.map_err(io::Error::from).flatten() {
            // However the connection ends, the message is in the mailbox.
            Err(_) if matches!(stage, Stage::Done(..)) => None,
            record => record?,
        };
        stage = match (record, stage) {
            (None, Stage::Done(_, size)) => return Ok(Some(size)),
            (None, stage) => {
                // Removing the file is file work, too.
                files.run(move || drop(stage)).await;
                return Ok(None);
            }
            (Some((Kind::Data, bytes)), Stage::Open(mut delivery)) => {
                let written = files.run(move || delivery.write(&bytes).map(|()| delivery)).await;
                match written {
                    Some(Ok(delivery)) => Stage::Open(delivery),
                    failed => Stage::Failed(refusal(failed.and_then(Result::err))),
                }
            }
            // The front learns of it when it has sent everything.
            (Some((Kind::Data, _)), Stage::Failed(refusal)) => Stage::Failed(refusal),
            (Some((Kind::Stage, _)), Stage::Open(delivery)) => {
                match files.run(move || delivery.finish()).await {
                    Some(Ok(staged)) => {
                        answer(stream, &Answer::Staged).await?;
                        Stage::Staged(Box::new(staged))
                    }
                    failed => {
                        let refusal = refusal(failed.and_then(Result::err));
                        answer(stream, &Answer::Refused(refusal.clone())).await?;
                        Stage::Failed(refusal)
                    }
                }
            }
            (Some((Kind::Stage, _)), Stage::Failed(refusal)) => {
                answer(stream, &Answer::Refused(refusal.clone())).await?;
                Stage::Failed(refusal)
            }
            (Some((Kind::Commit, _)), Stage::Staged(staged)) => {
                let size = staged.size();
                match files.run(move || staged.commit()).await {
                    Some(Ok(placed)) => {
                        // It is in the mailbox, whether the front still wants to know or not.
                        answer(stream, &Answer::Done).await?;
                        Stage::Done(Box::new(placed), size)
                    }
                    failed => {
                        let refusal = refusal(failed.and_then(Result::err));
                        answer(stream, &Answer::Refused(refusal)).await?;
                        return Ok(None);
                    }
                }
            }
            (Some((Kind::Undo, _)), Stage::Done(placed, size)) => {
                let undone = files.run(move || placed.take_back()).await;
                let (said, stays) = match undone {
                    Some(Ok(())) => (Answer::Undone, None),
                    failed => (Answer::Refused(refusal(failed.and_then(Result::err))), Some(size)),
                };
                answer(stream, &said).await?;
                return Ok(stays);
            }
            (Some((kind, _)), stage) => {
                files.run(move || drop(stage)).await;
                return Err(io::Error::other(format!("a record out of turn: {kind:?}")));
            }
        };
    }
}

/// Sends an answer.
pub(crate) async fn answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let record = courier::encode(Kind::Answer, answer)?;
    tokio::time::timeout(WRITE, stream.write_all(&record)).await?
}

/// What the front is told; `None`: the thread that should have done it is gone.
pub(crate) fn refusal(error: Option<maildir::Error>) -> Refusal {
    let Some(error) = error else { return Refusal::temporary("internal error") };
    let why = match &error {
        maildir::Error::NoSpace(_) => Why::NoSpace,
        maildir::Error::OverQuota => Why::OverQuota,
        maildir::Error::Locked(_) => Why::InUse,
        _ => Why::Temporary,
    };
    Refusal { why, text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(front: &mut UnixStream) -> Answer {
        let (kind, body) = courier::read(front).await.unwrap().unwrap();
        assert_eq!(kind, Kind::Answer);
        courier::decode(&body).unwrap()
    }

    /// Delivers a message, lets `between` happen, asks for it back; the answer.
    async fn taken_back(root: &std::path::Path, between: impl FnOnce()) -> Answer {
        let (mut front, ours) = UnixStream::pair().unwrap();
        let root = root.to_owned();
        let served = tokio::spawn(async move {
            serve(&Files::new(), root, "u".to_owned(), "s".to_owned(), ours).await;
        });
        assert!(matches!(heard(&mut front).await, Answer::Ready { .. }));
        front.write_all(&courier::data(b"Subject: x\r\n\r\nx\r\n")).await.unwrap();
        for (kind, want) in [(Kind::Stage, Answer::Staged), (Kind::Commit, Answer::Done)] {
            front.write_all(&courier::bare(kind)).await.unwrap();
            assert_eq!(heard(&mut front).await, want);
        }
        between();
        front.write_all(&courier::bare(Kind::Undo)).await.unwrap();
        let said = heard(&mut front).await;
        served.await.unwrap();
        said
    }

    #[tokio::test]
    async fn a_delivery_is_taken_back_unless_somebody_picked_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("Maildir");
        let files = |sub: &str| -> Vec<PathBuf> {
            std::fs::read_dir(root.join(sub)).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let count = |sub: &str| files(sub).len();
        let said = taken_back(&root, || assert_eq!(count("new"), 1)).await;
        assert_eq!((said, count("new")), (Answer::Undone, 0));
        let seen = || {
            let message = files("new").remove(0);
            let mut name = message.file_name().unwrap().to_owned();
            name.push(":2,S");
            std::fs::rename(&message, root.join("cur").join(name)).unwrap();
        };
        let said = taken_back(&root, seen).await;
        assert!(matches!(said, Answer::Refused(_)), "{said:?}");
        assert_eq!((count("new"), count("cur"), count("tmp")), (0, 1, 0));
    }
}
