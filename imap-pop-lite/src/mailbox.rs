//! The process of one mailbox: runs with the ids of the user whose mail it is, and reaches nothing else.
//!
//! Start:   makes the Maildir where there is none (0700), takes every other file away from itself (landlock) and every system
//!          call it does not need (seccomp), then serves what the broker hands it: IMAP and POP3 sessions of clients who logged in at a front, and deliveries.
//! Trust:   who hands something over was checked by the broker. What comes then are a client's bytes, as ever.
//! Ends:    when the broker says so (it knows since when nobody is there), or is gone. A Maildir that cannot be reached is told to
//!          everybody who wants it, and the process ends, so that the next one looks again.
//! Never:   ask who somebody is, open a socket, become somebody else.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use boot::courier::{self, Answer, Protocol, Refusal, Why};
use boot::sandbox::{Access, Status};
use boot::seccomp::{Mode, Profile};
use boot::{Control, Drain, DrainToken, Event};
use conf::{ImapSlice, MailboxSlice, SandboxMode};
use maildir::Maildir;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::account::Account;
use crate::delivery;
use crate::pop3_host::Opened;
use crate::server::{Peer, Shared};
use crate::stream::Connection;
use crate::{imap_host, pop3_host};

/// Time for last words to clients when the broker is gone: the process is killed soon after.
const AFTER_LOSS: Duration = Duration::from_millis(300);

/// What the broker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A stream, by a number that [`Note::Took`] or [`Note::Moved`] repeats.
    Serve(u64, Handed),
    /// Nothing more will come; end when the last one is through.
    Retire,
}

/// What a stream is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Handed {
    /// A session of this user.
    Session(String, courier::Session),
    /// A message for this user; with its name for the log.
    Delivery(String, String),
}

/// What the process tells the broker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Note {
    /// The stream with this number is served, or told that it cannot be.
    Took(u64),
    /// It is not: the Maildir is another one than that the process was started for, and out of its reach.
    Moved(u64),
    /// The Maildir cannot be opened; the process ends.
    Broken,
    /// Whether anybody is served.
    Busy(bool),
}

/// The daemon: called in its own process by the broker.
///
/// # Errors
/// What keeps it from starting: an unreadable configuration slice, a runtime.
pub fn main(start: boot::Start) -> anyhow::Result<()> {
    let slice = MailboxSlice::from_json(&start.slice).context("reading the configuration slice")?;
    let place = prepare(&slice.root);
    confine(&slice, place.is_ok())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(run(slice, place, start.control));
    // Threads that still wait for a lock must not keep the process.
    runtime.shutdown_background();
    result
}

/// The rest of the start ritual: it has to wait until the Maildir is there. The threads that work on files come after this, so
/// it holds for them.
fn confine(slice: &MailboxSlice, is_open: bool) -> anyhow::Result<()> {
    let mode = match slice.process.sandbox {
        SandboxMode::On => Mode::On,
        SandboxMode::Log => Mode::Log,
        SandboxMode::Off => Mode::Off,
    };
    if mode == Mode::On {
        // Where there is no mailbox, nothing at all.
        let files = if is_open { reachable(slice) } else { vec![Access::ReadOnly("/proc/self/stat".into())] };
        let status = boot::sandbox::restrict_files(&files).context("restricting files")?;
        if status == Status::None {
            // The fronts warn at their start.
            tracing::debug!("files are not restricted: landlock is missing or too old here");
        }
    }
    // A kernel without filters is no reason to refuse mail.
    if let Err(error) = boot::seccomp::restrict(Profile::Mailbox, mode) {
        tracing::debug!(%error, "system calls are not restricted on this kernel");
    }
    Ok(())
}

fn reachable(slice: &MailboxSlice) -> Vec<Access> {
    let mut files = vec![Access::ReadWrite(slice.root.clone())];
    files.extend(slice.process.reachable.iter().flatten().cloned().map(Access::ReadWrite));
    files.extend(["/etc/localtime", "/usr/share/zoneinfo"].map(|path| Access::ReadOnly(path.into())));
    files
}

/// Makes the Maildir if need be; gives its device and inode.
fn prepare(root: &Path) -> Result<(u64, u64), Refusal> {
    let open = || -> Result<(u64, u64), Refusal> {
        // Homes are made by whoever makes users; one that is missing may just not be mounted.
        if let Some(home) = root.parent()
            && !home.is_dir()
        {
            return Err(Refusal::temporary(format!("the folder {} is not there", home.display())));
        }
        Maildir::open_or_create(root).map_err(|error| delivery::refusal(Some(error)))?;
        is_at(root).ok_or_else(|| Refusal::temporary("the Maildir went away"))
    };
    open().map_err(|refusal| Refusal { text: format!("{}: {}", root.display(), refusal.text), ..refusal })
}

/// Device and inode of what is at this path now.
fn is_at(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The slice that session hosting knows.
fn hosting(slice: &MailboxSlice) -> ImapSlice {
    ImapSlice {
        hostname: slice.hostname.clone(),
        state_dir: slice.root.clone(),
        log: conf::Log::default(),
        grace_time: slice.grace_time,
        imap: slice.imap.clone(),
        pop3: slice.pop3.clone(),
        mail: slice.mail.clone(),
        limits: conf::Limits::default(),
        tls: conf::TlsMaterial::default(),
        auth: conf::AuthSockets::default(),
        broker: None,
        delivery_from: None,
    }
}

/// What all streams of the process share.
struct Process {
    shared: Arc<Shared>,
    root: PathBuf,
    sessions: AtomicUsize,
    served: AtomicUsize,
    /// Wakes the main loop when somebody begins or ends.
    changed: Notify,
}

async fn run(
    slice: MailboxSlice,
    place: Result<(u64, u64), Refusal>,
    control: boot::ControlFd,
) -> anyhow::Result<()> {
    let mut control = Control::new(control).context("joining the broker")?;
    let place = match place {
        Ok(place) => place,
        Err(refusal) => {
            refuse_all(&mut control, &refusal).await;
            return Ok(());
        }
    };
    let process = Arc::new(Process {
        shared: Shared::hosting(hosting(&slice))?,
        root: slice.root.clone(),
        sessions: AtomicUsize::new(0),
        served: AtomicUsize::new(0),
        changed: Notify::new(),
    });
    let drain = Drain::new();
    let mut grace = slice.grace_time;
    control.ready().await;
    let (mut busy, mut retiring) = (false, false);
    let grace = loop {
        let served = process.served.load(Ordering::Relaxed);
        if retiring && served == 0 {
            break Duration::ZERO;
        }
        if busy != (served > 0) {
            busy = served > 0;
            control.note(json!(Note::Busy(busy)));
        }
        tokio::select! {
            event = control.event() => match event {
                Event::Hand { body, stream } => match (serde_json::from_value(body), stream) {
                    (Ok(Told::Retire), _) => retiring = true,
                    (Ok(Told::Serve(number, _)), Some(_)) if is_at(&process.root) != Some(place) => {
                        control.note(json!(Note::Moved(number)));
                    }
                    (Ok(Told::Serve(number, handed)), Some(stream)) => {
                        // Told first: a stream that has been answered must never come to another process.
                        control.note(json!(Note::Took(number)));
                        accept(&process, handed, stream, drain.token());
                    }
                    (bad, _) => tracing::error!(?bad, "the broker said something that is not understood"),
                },
                Event::Reload { slice, .. } => {
                    let reloaded = MailboxSlice::from_json(&slice)
                        .map_err(anyhow::Error::from)
                        .and_then(|slice| {
                            grace = slice.grace_time;
                            process.shared.reload(hosting(&slice))
                        });
                    control.reloaded(reloaded.map_err(|error| format!("{error:#}"))).await;
                }
                Event::Stop { grace: given } => break if given.is_zero() { grace } else { given },
                Event::Lost => break AFTER_LOSS,
                _ => {}
            },
            () = process.changed.notified() => {}
        }
    };
    if !drain.finish(grace).await {
        tracing::warn!("some sessions did not end within the grace time");
    }
    Ok(())
}

/// Nobody can be served: everybody is told, until the broker has understood.
async fn refuse_all(control: &mut Control, refusal: &Refusal) {
    control.ready().await;
    control.note(json!(Note::Broken));
    loop {
        match control.event().await {
            Event::Hand { body, stream } => match (serde_json::from_value(body), stream) {
                (Ok(Told::Serve(number, _)), Some(stream)) => {
                    if let Ok(mut stream) = adopt(stream) {
                        let _ = delivery::answer(&mut stream, &Answer::Refused(refusal.clone())).await;
                    }
                    control.note(json!(Note::Took(number)));
                }
                _ => return,
            },
            Event::Stop { .. } | Event::Lost => return,
            _ => {}
        }
    }
}

fn adopt(stream: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Counts one stream; woken waiters see the number.
struct Served(Arc<Process>);

impl Served {
    fn new(process: &Arc<Process>) -> Self {
        process.served.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(process))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.served.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// One place of [`conf::Mail::mailbox_sessions`].
struct Place(Arc<Process>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accept(process: &Arc<Process>, handed: Handed, stream: OwnedFd, drain: DrainToken) {
    let stream = match adopt(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::error!(%error, "a stream from the broker cannot be used"),
    };
    let served = Served::new(process);
    let process = Arc::clone(process);
    tokio::spawn(async move {
        match handed {
            Handed::Session(user, session) => host(&process, user, session, stream, drain).await,
            Handed::Delivery(user, session) => {
                let root = process.root.clone();
                drain.track(delivery::serve(&process.shared.files, root, user, session, stream)).await;
            }
        }
        drop(served);
    });
}

/// What a session begins with.
enum Begun {
    Imap(imap::Tag, Account),
    Pop3(Opened),
}

async fn host(
    process: &Arc<Process>,
    user: String,
    session: courier::Session,
    mut stream: UnixStream,
    drain: DrainToken,
) {
    let shared = &process.shared;
    let limit = usize::try_from(shared.live().slice.mail.mailbox_sessions).unwrap_or(usize::MAX);
    let place = Place(Arc::clone(process));
    let begun = if process.sessions.fetch_add(1, Ordering::Relaxed) >= limit {
        Err(Refusal { why: Why::TooMany, text: format!("{limit} sessions of this user are open") })
    } else {
        begin(process, &user, &session).await
    };
    let peer = Peer { local: session.local, remote: session.remote, session: session.session };
    let said = match &begun {
        Ok(_) => Answer::Ready { user: user.clone() },
        Err(refusal) => {
            // The front says so, too, in the log and to the client.
            tracing::debug!(session = peer.session, user, error = %refusal, "not opened");
            Answer::Refused(refusal.clone())
        }
    };
    if let Err(error) = delivery::answer(&mut stream, &said).await {
        return tracing::warn!(session = peer.session, user, %error, "the front went away");
    }
    let shared = Arc::clone(shared);
    let connection = Connection::handed(stream);
    match begun {
        Ok(Begun::Imap(tag, account)) => {
            imap_host::go_on(shared, connection, peer, &tag, account, drain).await;
        }
        Ok(Begun::Pop3(opened)) => {
            pop3_host::go_on(shared, connection, peer, session.mechanisms, opened, drain).await;
        }
        Err(_) => {}
    }
    drop(place);
}

async fn begin(process: &Arc<Process>, user: &str, session: &courier::Session) -> Result<Begun, Refusal> {
    let tag = imap::Tag::new(session.tag.as_bytes());
    let (shared, root, user) = (Arc::clone(&process.shared), process.root.clone(), user.to_owned());
    let places = shared.live().places.clone();
    let files = shared.files.clone();
    let protocol = session.protocol;
    let open = move || match places.open_at(&shared.store, &user, &root) {
        Ok(account) => match (protocol, tag) {
            (Protocol::Imap, Some(tag)) => Ok(Begun::Imap(tag, account)),
            (Protocol::Imap, None) => Err(Refusal::temporary("a session without a tag")),
            (Protocol::Pop3, _) => match Opened::open(&account) {
                Ok(opened) => Ok(Begun::Pop3(opened)),
                Err(error) => Err(delivery::refusal(Some(error))),
            },
        },
        Err(crate::account::Error::Store(error)) => Err(delivery::refusal(Some(error))),
        Err(error) => Err(Refusal::temporary(error.to_string())),
    };
    files.run(open).await.unwrap_or_else(|| Err(Refusal::temporary("internal error")))
}
