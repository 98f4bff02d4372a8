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
use boot::sandbox::{Access, Restricted, Status};
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

/// Messages that may come in at a time: each takes two descriptors, and sessions need some as well.
const DELIVERIES: usize = 256;
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

/// Limit on the memory of one process: a mailbox that makes it grow without end takes itself down, not the machine.
pub const MEMORY: u64 = 4 << 30;

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
    /// Who is served now: told after every stream that was handed over, and at every change.
    Serves(Uses),
}

/// What a mailbox process is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub(crate) sessions: bool,
    pub(crate) deliveries: bool,
}

impl Uses {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn with(self, other: Self) -> Self {
        Self { sessions: self.sessions || other.sessions, deliveries: self.deliveries || other.deliveries }
    }
}

impl Handed {
    pub(crate) fn uses(&self) -> Uses {
        match self {
            Self::Session(..) => Uses { sessions: true, deliveries: false },
            Self::Delivery(..) => Uses { sessions: false, deliveries: true },
        }
    }
}

/// The daemon: called in its own process by the broker.
///
/// # Errors
/// What keeps it from starting: an unreadable configuration slice, a runtime.
pub fn main(start: boot::Start) -> anyhow::Result<()> {
    let slice = MailboxSlice::from_json(&start.slice).context("reading the configuration slice")?;
    let place = prepare(&slice.root);
    let restricted = confine(&slice, place.is_ok())?;
    start.control.restricted(restricted).context("telling the broker")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(run(slice, place, start.control));
    // Threads that still wait for a lock must not keep the process.
    runtime.shutdown_background();
    result
}

/// The rest of the start ritual: it has to wait until the Maildir is there. The threads that work on files come after this, so
/// it holds for them.
fn confine(slice: &MailboxSlice, is_open: bool) -> anyhow::Result<Restricted> {
    let mode = match slice.process.sandbox {
        SandboxMode::On => Mode::On,
        SandboxMode::Log => Mode::Log,
        SandboxMode::Off => Mode::Off,
    };
    let mut restricted = Restricted::default();
    if mode == Mode::On {
        // Where there is no mailbox, nothing at all.
        let files = if is_open { reachable(slice) } else { vec![Access::ReadOnly("/proc/self/stat".into())] };
        let status = boot::sandbox::restrict_files(&files).context("restricting files")?;
        restricted.landlock = Some(status);
        if status == Status::None {
            // The fronts warn at their start.
            tracing::debug!("files are not restricted: landlock is missing or too old here");
        }
    }
    // A kernel without filters is no reason to refuse mail.
    match boot::seccomp::restrict(Profile::Mailbox, mode) {
        Ok(true) => {
            restricted.seccomp = Some(Profile::Mailbox);
            restricted.log_only = mode == Mode::Log;
        }
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "system calls are not restricted on this kernel"),
    }
    Ok(restricted)
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
    deliveries: AtomicUsize,
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
        deliveries: AtomicUsize::new(0),
        changed: Notify::new(),
    });
    let drain = Drain::new();
    let mut grace = slice.grace_time;
    control.ready().await;
    let (mut told, mut retiring) = (Some(Uses::default()), false);
    let grace = loop {
        let uses = process.uses();
        if retiring && uses.is_none() {
            break Duration::ZERO;
        }
        if told != Some(uses) {
            told = Some(uses);
            control.note(json!(Note::Serves(uses)));
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
                        told = None;
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

impl Process {
    fn uses(&self) -> Uses {
        let any = |count: &AtomicUsize| count.load(Ordering::Relaxed) > 0;
        Uses { sessions: any(&self.sessions), deliveries: any(&self.deliveries) }
    }

    fn count(&self, is_session: bool) -> &AtomicUsize {
        if is_session { &self.sessions } else { &self.deliveries }
    }
}

/// Counts one stream; woken waiters see the number.
struct Served {
    process: Arc<Process>,
    is_session: bool,
    /// How many of its kind there were before it.
    others: usize,
}

impl Served {
    fn new(process: &Arc<Process>, is_session: bool) -> Self {
        let others = process.count(is_session).fetch_add(1, Ordering::Relaxed);
        Self { process: Arc::clone(process), is_session, others }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.process.count(self.is_session).fetch_sub(1, Ordering::Relaxed);
        self.process.changed.notify_one();
    }
}

fn accept(process: &Arc<Process>, handed: Handed, stream: OwnedFd, drain: DrainToken) {
    let stream = match adopt(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::error!(%error, "a stream from the broker cannot be used"),
    };
    let served = Served::new(process, handed.uses().sessions);
    tokio::spawn(async move {
        let process = &served.process;
        match handed {
            Handed::Session(user, session) => host(&served, user, session, stream, drain).await,
            Handed::Delivery(user, session) if served.others >= DELIVERIES => {
                tracing::warn!(session, user, "{DELIVERIES} deliveries to one mailbox are open");
                let refusal = Refusal::temporary("too many messages come in for this mailbox at a time");
                // The front may be gone.
                let _ = delivery::answer(&mut { stream }, &Answer::Refused(refusal)).await;
            }
            Handed::Delivery(user, session) => {
                let root = process.root.clone();
                drain.track(delivery::serve(&process.shared.files, root, user, session, stream)).await;
            }
        }
    });
}

/// What a session begins with.
enum Begun {
    Imap(imap::Tag, Account),
    Pop3(Opened),
}

async fn host(
    served: &Served,
    user: String,
    session: courier::Session,
    mut stream: UnixStream,
    drain: DrainToken,
) {
    let shared = &served.process.shared;
    let limit = usize::try_from(shared.live().slice.mail.mailbox_sessions).unwrap_or(usize::MAX);
    let begun = if served.others >= limit {
        Err(Refusal { why: Why::TooMany, text: format!("{limit} sessions of this user are open") })
    } else {
        begin(&served.process, &user, &session).await
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

#[cfg(test)]
mod tests {
    use super::*;

    fn process(root: &Path) -> Arc<Process> {
        let settings = conf::embedded_default(&conf::EmbeddedOptions {
            state_dir: root.to_owned(),
            hostname: "mail.test".into(),
            ..conf::EmbeddedOptions::default()
        });
        let broker = settings.broker_slice(1, 2);
        let slice = MailboxSlice {
            hostname: broker.hostname,
            grace_time: broker.grace_time,
            imap: broker.imap,
            pop3: broker.pop3,
            mail: broker.mail,
            process: broker.process,
            root: root.to_owned(),
        };
        Arc::new(Process {
            shared: Shared::hosting(hosting(&slice)).unwrap(),
            root: slice.root,
            sessions: AtomicUsize::new(0),
            deliveries: AtomicUsize::new(0),
            changed: Notify::new(),
        })
    }

    /// What a delivery hears first; the stream to go on with.
    async fn delivery(process: &Arc<Process>, drain: &Drain) -> (Answer, UnixStream) {
        let (mut front, ours) = UnixStream::pair().unwrap();
        let ours = ours.into_std().unwrap().into();
        accept(process, Handed::Delivery("u".into(), "s".into()), ours, drain.token());
        let (_, body) = courier::read(&mut front).await.unwrap().unwrap();
        (courier::decode(&body).unwrap(), front)
    }

    #[tokio::test]
    async fn so_many_messages_at_a_time_and_the_broker_hears_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(&dir.path().join("Maildir"));
        let drain = Drain::new();
        let uses = Uses { sessions: false, deliveries: true };
        let (said, front) = delivery(&process, &drain).await;
        assert!(matches!(said, Answer::Ready { .. }), "{said:?}");
        assert_eq!(process.uses(), uses);
        // As if as many were open as may be.
        process.deliveries.fetch_add(DELIVERIES - 1, Ordering::Relaxed);
        let (said, _) = delivery(&process, &drain).await;
        assert!(matches!(said, Answer::Refused(Refusal { why: Why::Temporary, .. })), "{said:?}");
        // One ends: there is room for another.
        drop(front);
        while process.deliveries.load(Ordering::Relaxed) >= DELIVERIES {
            process.changed.notified().await;
        }
        let (said, _front) = delivery(&process, &drain).await;
        assert!(matches!(said, Answer::Ready { .. }), "{said:?}");
        process.deliveries.fetch_sub(DELIVERIES - 1, Ordering::Relaxed);
        assert_eq!(process.uses(), uses);
    }
}
