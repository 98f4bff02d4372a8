//! Durable delivery of one message to local recipients.
//!
//! Order:     for every recipient write and fsync in `tmp`; then rename all, fsync the directories; then 250.
//!            A failure before the first rename leaves nothing behind, one among the renames takes the others back.
//! Memory:    at most [`PIECE`] of the message is held; more goes to disk while it comes in.
//! Threads:   all file work runs on blocking threads; small messages take one hop.
//! Others:    who owns a mailbox can make its process slow. That holds up deliveries to this mailbox only.
//! Partly:    SMTP has one answer for all (RFC 5321 §4.1.1.4), so one recipient's trouble fails all: the sender sends again to all,
//!            and nobody shall have the message twice. What somebody has picked up in between stays. LMTP answers each.
//! Trust:     the message is a stranger's; the recipients are known users. Owners of mailboxes may hinder deliveries to their own.
//! Never:     say that a message is delivered before it is durable for everybody it is said for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use boot::courier::{self, Why};
use maildir::{Delivery, Maildir, Placed, Staged};
use smtp::{Reply, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::channel::{Channel, Trouble};
use crate::trace::{self, Header};

/// Message bytes collected before they go to disk.
const PIECE: usize = 64 * 1024;
/// Threads that may wait for the process of one mailbox: a small part of all of them.
const AT_A_TIME: usize = 32;
/// How long a message waits for its turn.
const TURN: Duration = Duration::from_secs(60);

/// Where one recipient's copy goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    /// Canonical user name.
    pub(crate) user: String,
    pub(crate) place: Place,
}

/// Where mail is written.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub(crate) enum Place {
    /// By this process, into the Maildir with this root.
    Folder(PathBuf),
    /// By the process behind this socket, for the user of this name.
    Channel { socket: Arc<Path>, user: String, service: &'static str },
}

/// The fields put in front of the message.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    /// Names the message in the log.
    pub(crate) id: String,
    /// `Return-Path:`, first of all.
    pub(crate) return_path: String,
    /// `Received:`.
    pub(crate) received: String,
    /// On submission: what `Date:` and `Message-ID:` are made of.
    pub(crate) complete: Option<Completion>,
}

/// Material for the fields a submitted message may lack.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) date: String,
    pub(crate) id: String,
    pub(crate) hostname: String,
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// One result for each accepted recipient, in order.
    Each(Vec<Result<(), Failure>>),
    /// The message itself is refused.
    Refused(Reply),
}

/// Why one recipient did not get it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    pub(crate) reply: Reply,
    /// No trouble of this server: a full mailbox, or a neighbour's failure that is told on its own.
    pub(crate) is_minor: bool,
    text: String,
}

/// A message on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    envelope: Envelope,
    /// For each accepted recipient, which of `copies` is its own: two addresses of one user share a copy.
    recipients: Vec<usize>,
    copies: Vec<Copy>,
    pending: Vec<u8>,
    started: bool,
    size: u64,
    refused: Option<Reply>,
}

#[derive(Debug)]
struct Copy {
    target: Target,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Open(Sink),
    Staged(Box<Staged>),
    /// On disk, in other hands.
    Ready(Channel),
    /// In the mailbox; kept to take it back until all others are, too.
    Done(Stored),
    Failed(Failure),
}

/// Where a delivered copy is.
#[derive(Debug)]
enum Stored {
    Folder(Box<Placed>),
    Channel(Channel),
}

/// What a copy is written to.
#[derive(Debug)]
enum Sink {
    Folder(Box<Delivery>),
    Channel(Channel),
}

impl Sink {
    fn open(place: &Place, message: &str) -> Result<Self, Failure> {
        match place {
            Place::Folder(root) => {
                let delivery = Maildir::open_or_create(root).and_then(|maildir| maildir.delivery())?;
                Ok(Self::Folder(Box::new(delivery)))
            }
            Place::Channel { socket, user, service } => {
                let asked = courier::Delivery {
                    recipient: user.clone(),
                    service: (*service).to_owned(),
                    session: message.to_owned(),
                };
                Ok(Self::Channel(Channel::open(socket, asked)?))
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Folder(delivery) => Ok(delivery.write(bytes)?),
            Self::Channel(channel) => Ok(channel.write(bytes)?),
        }
    }
}

impl Incoming {
    pub(crate) fn new(envelope: Envelope, targets: Vec<Target>) -> Self {
        let mut copies: Vec<Copy> = Vec::new();
        let mut known = HashMap::new();
        let mut recipients = Vec::with_capacity(targets.len());
        for target in targets {
            let index = *known.entry(target.place.clone()).or_insert(copies.len());
            if index == copies.len() {
                copies.push(Copy { target, state: State::Waiting });
            }
            recipients.push(index);
        }
        Self { envelope, recipients, copies, pending: Vec::new(), started: false, size: 0, refused: None }
    }

    /// Bytes taken so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// More of the message.
    pub(crate) async fn write(self, bytes: &[u8]) -> Self {
        let mut message = self;
        message.size = message.size.saturating_add(bytes.len() as u64);
        message.pending.extend_from_slice(bytes);
        if message.pending.len() < PIECE {
            return message;
        }
        let _turns = message.turns(TURN).await;
        let fallback = message.emptied();
        blocking(move || {
            message.flush(false);
            message
        })
        .await
        .unwrap_or(fallback)
    }

    /// The end. `each`: recipients fail on their own (LMTP).
    pub(crate) async fn finish(mut self, each: bool) -> Delivered {
        let _turns = self.turns(TURN).await;
        let fallback = self.emptied();
        let message = blocking(move || {
            let mut message = self;
            message.flush(true);
            if message.refused.is_none() {
                message.stage();
                message.commit(each);
            }
            message
        })
        .await
        .unwrap_or(fallback);
        match message.refused {
            Some(reply) => Delivered::Refused(reply),
            None => Delivered::Each(message.recipients.iter().map(|index| message.result(*index)).collect()),
        }
    }

    /// The right to let a thread wait for each of the mailbox processes. Copies that do not get it fail.
    async fn turns(&mut self, patience: Duration) -> Vec<OwnedSemaphorePermit> {
        let mut order: Vec<(&mut Copy, Mailbox)> = Vec::new();
        for copy in &mut self.copies {
            if let Place::Channel { socket, user, .. } = &copy.target.place
                && !matches!(copy.state, State::Failed(_))
            {
                let mailbox = (Arc::clone(socket), user.clone());
                order.push((copy, mailbox));
            }
        }
        // All in one order, or two messages could wait for each other.
        order.sort_by(|(_, a), (_, b)| a.cmp(b));
        let mut turns = Vec::with_capacity(order.len());
        let end = tokio::time::Instant::now() + patience;
        for (copy, mailbox) in order {
            match tokio::time::timeout_at(end, queue(mailbox).acquire_owned()).await {
                Ok(Ok(turn)) => turns.push(turn),
                _ => {
                    let failure = Failure::internal("the mailbox is slow, and many messages wait for it");
                    copy.state = State::Failed(failure);
                }
            }
        }
        turns
    }

    /// Throws away what was written, off the runtime's threads.
    pub(crate) fn abandon(self) {
        if self.started {
            drop(tokio::task::spawn_blocking(move || drop(self)));
        }
    }

    /// What stands in should a blocking task die: every recipient failed.
    fn emptied(&self) -> Self {
        let copies = self.copies.iter().map(|copy| Copy {
            target: copy.target.clone(),
            state: State::Failed(Failure::internal("a delivery thread ended early")),
        });
        Self {
            envelope: self.envelope.clone(),
            recipients: self.recipients.clone(),
            copies: copies.collect(),
            pending: Vec::new(),
            started: true,
            size: self.size,
            refused: None,
        }
    }

    fn result(&self, index: usize) -> Result<(), Failure> {
        match self.copies.get(index).map(|copy| &copy.state) {
            Some(State::Done(_)) => Ok(()),
            Some(State::Failed(failure)) => Err(failure.clone()),
            _ => Err(Failure::internal("the message was not delivered")),
        }
    }

    /// Writes what is pending to every copy; the first time with the fields in front.
    fn flush(&mut self, whole: bool) {
        let pending = std::mem::take(&mut self.pending);
        if !self.started {
            self.started = true;
            self.open(&pending, whole);
        }
        for copy in &mut self.copies {
            if let State::Open(sink) = &mut copy.state
                && let Err(failure) = sink.write(&pending)
            {
                copy.state = State::Failed(failure);
            }
        }
    }

    fn open(&mut self, front: &[u8], whole: bool) {
        let header = Header::scan(front, whole);
        if header.loops() {
            // RFC 5321 §6.3
            self.refused =
                Some(Reply::new(554, Status(5, 4, 6), "Too many hops: the message runs in a circle"));
            self.copies.clear();
            return;
        }
        let mut common = self.envelope.received.clone();
        if let Some(Completion { date, id, hostname }) = &self.envelope.complete {
            common.push_str(&trace::missing_fields(&header, date, id, hostname));
        }
        for copy in &mut self.copies {
            let own = format!("{}{}", self.envelope.return_path, trace::delivered_to(&copy.target.user));
            let opened = Sink::open(&copy.target.place, &self.envelope.id).and_then(|mut sink| {
                sink.write(format!("{own}{common}").as_bytes())?;
                Ok(sink)
            });
            copy.state = match opened {
                Ok(sink) => State::Open(sink),
                Err(failure) => State::Failed(failure),
            };
        }
    }

    fn stage(&mut self) {
        // Others sync their copies while this process syncs its own.
        for copy in &mut self.copies {
            if let State::Open(Sink::Channel(channel)) = &mut copy.state
                && let Err(trouble) = channel.stage()
            {
                copy.state = State::Failed(trouble.into());
            }
        }
        for copy in &mut self.copies {
            copy.state = match std::mem::replace(&mut copy.state, State::Waiting) {
                State::Open(Sink::Folder(delivery)) => match delivery.finish() {
                    Ok(staged) => State::Staged(Box::new(staged)),
                    Err(error) => State::Failed(error.into()),
                },
                State::Open(Sink::Channel(mut channel)) => match channel.staged() {
                    Ok(()) => State::Ready(channel),
                    Err(trouble) => State::Failed(trouble.into()),
                },
                other => other,
            };
        }
    }

    fn commit(&mut self, each: bool) {
        if !each && let Some(failure) = self.failure() {
            return self.fail_all(&failure);
        }
        self.commit_channels();
        if each {
            for copy in &mut self.copies {
                copy.commit_folder();
            }
        } else {
            if self.failure().is_none() {
                self.commit_folders();
            }
            if let Some(failure) = self.failure() {
                self.take_back();
                self.fail_all(&failure);
            }
        }
    }

    fn failure(&self) -> Option<Failure> {
        self.copies.iter().find_map(|copy| match &copy.state {
            State::Failed(failure) => Some(failure.clone()),
            _ => None,
        })
    }

    /// What one recipient's trouble means for the others.
    fn fail_all(&mut self, failure: &Failure) {
        for copy in &mut self.copies {
            if !matches!(copy.state, State::Failed(_)) {
                copy.state = State::Failed(failure.for_others());
            }
        }
    }

    /// All at once, each in its own process.
    fn commit_channels(&mut self) {
        for copy in &mut self.copies {
            if let State::Ready(channel) = &mut copy.state
                && let Err(trouble) = channel.commit()
            {
                copy.state = State::Failed(trouble.into());
            }
        }
        for copy in &mut self.copies {
            copy.state = match std::mem::replace(&mut copy.state, State::Waiting) {
                State::Ready(mut channel) => match channel.done() {
                    Ok(()) => State::Done(Stored::Channel(channel)),
                    Err(trouble) => State::Failed(trouble.into()),
                },
                other => other,
            };
        }
    }

    /// All or none.
    fn commit_folders(&mut self) {
        let (mut staged, mut owners) = (Vec::new(), Vec::new());
        for copy in &mut self.copies {
            match std::mem::replace(&mut copy.state, State::Waiting) {
                State::Staged(one) => {
                    staged.push(*one);
                    owners.push(copy);
                }
                other => copy.state = other,
            }
        }
        match maildir::commit_all(staged) {
            Ok(placed) => {
                for (copy, placed) in owners.into_iter().zip(placed) {
                    copy.state = State::Done(Stored::Folder(Box::new(placed)));
                }
            }
            Err(error) => {
                for index in error.kept {
                    if let Some(copy) = owners.get(index) {
                        copy.stays("it was picked up at once");
                    }
                }
                if let Some(copy) = owners.get_mut(error.failed) {
                    copy.state = State::Failed(error.error.into());
                }
            }
        }
    }

    /// Takes away what some have got of a message that others cannot get.
    fn take_back(&mut self) {
        let mut asked = Vec::new();
        for copy in &mut self.copies {
            let taken = match std::mem::replace(&mut copy.state, State::Waiting) {
                State::Done(Stored::Folder(placed)) => placed.take_back().map_err(|error| error.to_string()),
                State::Done(Stored::Channel(mut channel)) => match channel.undo() {
                    Ok(()) => {
                        asked.push((copy, channel));
                        continue;
                    }
                    Err(trouble) => Err(trouble.to_string()),
                },
                other => {
                    copy.state = other;
                    continue;
                }
            };
            if let Err(why) = taken {
                copy.stays(&why);
            }
        }
        for (copy, mut channel) in asked {
            if let Err(trouble) = channel.undone() {
                copy.stays(&trouble.to_string());
            }
        }
    }
}

impl Copy {
    fn commit_folder(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Waiting) {
            State::Staged(staged) => match staged.commit() {
                Ok(placed) => State::Done(Stored::Folder(Box::new(placed))),
                Err(error) => State::Failed(error.into()),
            },
            other => other,
        };
    }

    /// The sender will be told that nobody has the message, and send it again.
    fn stays(&self, why: &str) {
        tracing::warn!(user = %self.target.user, why, "a message that others could not get stays: it may come twice");
    }
}

impl Failure {
    /// What it means for the other recipients of the same message.
    fn for_others(&self) -> Self {
        let text = "another recipient of the message could not get it".to_owned();
        Self { reply: self.reply.clone(), is_minor: true, text }
    }

    fn internal(text: &str) -> Self {
        Self { reply: LATER, is_minor: false, text: text.to_owned() }
    }
}

impl From<maildir::Error> for Failure {
    fn from(error: maildir::Error) -> Self {
        let reply = match &error {
            maildir::Error::NoSpace(_) => NO_SPACE,
            maildir::Error::OverQuota => FULL,
            _ => LATER,
        };
        Self { reply, is_minor: matches!(error, maildir::Error::OverQuota), text: error.to_string() }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let why = match &trouble {
            Trouble::Refused(refusal) => refusal.why,
            Trouble::Lost(_) => Why::Temporary,
        };
        let reply = match why {
            Why::NoSpace => NO_SPACE,
            Why::OverQuota => FULL,
            _ => LATER,
        };
        Self { reply, is_minor: why == Why::OverQuota, text: trouble.to_string() }
    }
}

const NO_SPACE: Reply = Reply::new(452, Status(4, 3, 1), "Insufficient system storage");
const FULL: Reply = Reply::new(452, Status(4, 2, 2), "Mailbox is full");
const LATER: Reply = Reply::new(451, Status(4, 3, 0), "Delivery failed for now, try again later");

/// A socket, and a user behind it.
type Mailbox = (Arc<Path>, String);

/// Where messages for this mailbox wait for their turn.
fn queue(mailbox: Mailbox) -> Arc<Semaphore> {
    static QUEUES: LazyLock<Mutex<HashMap<Mailbox, Weak<Semaphore>>>> = LazyLock::new(Mutex::default);
    // Each change leaves the map whole.
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = queues.get(&mailbox).and_then(Weak::upgrade) {
        return queue;
    }
    queues.retain(|_, queue| queue.strong_count() > 0);
    let queue = Arc::new(Semaphore::new(AT_A_TIME));
    queues.insert(mailbox, Arc::downgrade(&queue));
    queue
}

/// Runs file work on a blocking thread; `None` when that thread panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Some(result),
        Err(error) => {
            tracing::error!(%error, "a delivery thread ended early");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(complete: bool) -> Envelope {
        let complete =
            complete.then(|| Completion { date: "D".into(), id: "i.1".into(), hostname: "h".into() });
        Envelope {
            id: "i.1".into(),
            return_path: "Return-Path: <>\r\n".into(),
            received: "Received: x\r\n".into(),
            complete,
        }
    }

    fn target(root: &Path, user: &str) -> Target {
        Target { user: user.into(), place: Place::Folder(root.join(user).join("Maildir")) }
    }

    fn stored(root: &Path, user: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(root.join(user).join("Maildir/new")) else { return Vec::new() };
        entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    fn leftovers(root: &Path, user: &str) -> usize {
        std::fs::read_dir(root.join(user).join("Maildir/tmp")).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn every_recipient_gets_a_copy_and_two_addresses_of_one_user_share_it() {
        let root = tempfile::tempdir().unwrap();
        let targets = vec![target(root.path(), "a"), target(root.path(), "b"), target(root.path(), "a")];
        let message = Incoming::new(envelope(true), targets);
        let message = message.write(b"Subject: x\r\n\r\nhel").await.write(b"lo\r\n").await;
        assert_eq!(message.size(), 21);
        let Delivered::Each(results) = message.finish(false).await else { panic!() };
        assert!(results.len() == 3 && results.iter().all(Result::is_ok));
        for user in ["a", "b"] {
            let text = format!(
                "Return-Path: <>\nDelivered-To: {user}\nReceived: x\nDate: D\nMessage-ID: <i.1@h>\nSubject: x\n\nhello\n"
            );
            assert_eq!(stored(root.path(), user), [text]);
        }
    }

    #[tokio::test]
    async fn long_messages_arrive_whole() {
        let root = tempfile::tempdir().unwrap();
        let mut message = Incoming::new(envelope(false), vec![target(root.path(), "a")]);
        let body = format!("{}\r\n", "0123456789".repeat(7)).repeat(10_000);
        for piece in body.as_bytes().chunks(10_007) {
            message = message.write(piece).await;
            assert!(message.pending.len() < PIECE);
        }
        assert!(matches!(message.finish(false).await, Delivered::Each(r) if r.iter().all(Result::is_ok)));
        let text = stored(root.path(), "a").remove(0).replace('\n', "\r\n");
        assert_eq!(
            text.strip_prefix("Return-Path: <>\r\nDelivered-To: a\r\nReceived: x\r\n"),
            Some(body.as_str())
        );
    }

    #[tokio::test]
    async fn one_failure_fails_all_and_leaves_nothing_unless_each_is_answered() {
        let root = tempfile::tempdir().unwrap();
        // A file where the second user's folder should be.
        std::fs::write(root.path().join("b"), "").unwrap();
        let targets = || vec![target(root.path(), "a"), target(root.path(), "b")];
        let message = Incoming::new(envelope(false), targets()).write(&[b'x'; 100_000]).await;
        let Delivered::Each(results) = message.finish(false).await else { panic!() };
        assert!(results.iter().all(|r| r.as_ref().is_err_and(|f| f.reply.code() == 451)), "{results:?}");
        assert!(stored(root.path(), "a").is_empty());
        assert_eq!(leftovers(root.path(), "a"), 0);

        let message = Incoming::new(envelope(false), targets()).write(b"x\r\n").await;
        let Delivered::Each(results) = message.finish(true).await else { panic!() };
        assert!(results[0].is_ok() && results[1].is_err());
        assert_eq!(stored(root.path(), "a").len(), 1);
    }

    #[tokio::test]
    async fn a_failure_after_staging_takes_back_what_others_have_got() {
        let root = tempfile::tempdir().unwrap();
        let ready = async || {
            let targets = ["a", "b", "c"].map(|user| target(root.path(), user)).to_vec();
            let mut message = Incoming::new(envelope(false), targets).write(b"x\r\n").await;
            message.flush(true);
            message.stage();
            message
        };
        // The folder of the second goes away in the very moment.
        let mut message = ready().await;
        let (new, away) = (root.path().join("b/Maildir/new"), root.path().join("b/away"));
        std::fs::rename(&new, &away).unwrap();
        message.commit(false);
        for index in 0..3 {
            assert!(message.result(index).is_err_and(|failure| failure.reply.code() == 451), "{index}");
        }
        assert!(message.result(0).unwrap_err().is_minor && !message.result(1).unwrap_err().is_minor);
        drop(message);
        for user in ["a", "b", "c"] {
            assert!(stored(root.path(), user).is_empty() && leftovers(root.path(), user) == 0, "{user}");
        }
        // LMTP: nobody else is touched.
        std::fs::rename(&away, &new).unwrap();
        let mut message = ready().await;
        std::fs::rename(&new, &away).unwrap();
        message.commit(true);
        assert_eq!([0, 1, 2].map(|index| message.result(index).is_ok()), [true, false, true]);
        assert_eq!(["a", "c"].map(|user| stored(root.path(), user).len()), [1, 1]);
    }

    #[tokio::test]
    async fn a_failure_behind_a_channel_takes_back_what_is_behind_others() {
        let root = tempfile::tempdir().unwrap();
        let socket: Arc<Path> = root.path().join("courier").into();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // Says what each asked for, and fails one at the commit.
        let peer = std::thread::spawn(move || {
            let mut served = Vec::new();
            for stream in listener.incoming().take(3) {
                let mut stream = stream.unwrap();
                served.push(std::thread::spawn(move || {
                    let (mut user, mut heard) = (String::new(), Vec::new());
                    while let Some((kind, body)) = courier::read_blocking(&mut stream).unwrap() {
                        let refused = courier::Answer::Refused(courier::Refusal::temporary("no"));
                        let answer = match kind {
                            courier::Kind::Ask => {
                                let courier::Ask::Delivery(asked) = courier::decode(&body).unwrap() else {
                                    panic!()
                                };
                                user.clone_from(&asked.recipient);
                                courier::Answer::Ready { user: asked.recipient }
                            }
                            courier::Kind::Stage => courier::Answer::Staged,
                            courier::Kind::Commit if user == "b" => refused,
                            courier::Kind::Commit => courier::Answer::Done,
                            // Somebody has seen it.
                            courier::Kind::Undo if user == "c" => refused,
                            courier::Kind::Undo => courier::Answer::Undone,
                            _ => continue,
                        };
                        heard.push(kind);
                        let record = courier::encode(courier::Kind::Answer, &answer).unwrap();
                        std::io::Write::write_all(&mut stream, &record).unwrap();
                    }
                    (user, heard.last().copied().unwrap())
                }));
            }
            let mut last: Vec<_> = served.into_iter().map(|thread| thread.join().unwrap()).collect();
            last.sort_by(|(a, _), (b, _)| a.cmp(b));
            last
        });
        let to = |user: &str| {
            let place = Place::Channel { socket: Arc::clone(&socket), user: user.into(), service: "smtp" };
            Target { user: user.into(), place }
        };
        let message = Incoming::new(envelope(false), vec![to("a"), to("b"), to("c")]).write(b"x\r\n").await;
        let Delivered::Each(results) = message.finish(false).await else { panic!() };
        assert!(results.iter().all(Result::is_err), "{results:?}");
        let last = peer.join().unwrap();
        let undo = courier::Kind::Undo;
        let want = [("a", undo), ("b", courier::Kind::Commit), ("c", undo)];
        assert_eq!(last, want.map(|(user, kind)| (user.to_owned(), kind)));
    }

    #[tokio::test]
    async fn abandoned_messages_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let message =
            Incoming::new(envelope(false), vec![target(root.path(), "a")]).write(&[b'x'; 100_000]).await;
        assert_eq!(leftovers(root.path(), "a"), 1);
        message.abandon();
        for _ in 0..1000 {
            if leftovers(root.path(), "a") == 0 {
                return;
            }
            tokio::task::yield_now().await;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the staged file is still there");
    }

    #[tokio::test]
    async fn a_slow_mailbox_takes_some_threads_and_not_those_of_others() {
        let socket: Arc<Path> = Path::new("/nowhere/slow").into();
        let to = |user: &str| {
            let place = Place::Channel { socket: Arc::clone(&socket), user: user.into(), service: "smtp" };
            Target { user: user.into(), place }
        };
        let mut first = Vec::new();
        for _ in 0..AT_A_TIME {
            first.push(Incoming::new(envelope(false), vec![to("slow")]).turns(TURN).await);
        }
        let mut one_more = Incoming::new(envelope(false), vec![to("slow"), to("quick")]);
        assert_eq!(one_more.turns(Duration::ZERO).await.len(), 1);
        assert!(one_more.result(0).is_err_and(|failure| failure.reply.code() == 451));
        assert!(matches!(one_more.copies[1].state, State::Waiting));
        first.pop();
        let mut again = Incoming::new(envelope(false), vec![to("slow"), to("quick")]);
        assert_eq!(again.turns(TURN).await.len(), 2);
    }

    #[tokio::test]
    async fn loops_are_refused_and_store_nothing() {
        let root = tempfile::tempdir().unwrap();
        let message = Incoming::new(envelope(false), vec![target(root.path(), "a")]);
        let message = message.write("Received: x\r\n".repeat(101).as_bytes()).await;
        assert!(matches!(message.finish(false).await, Delivered::Refused(reply) if reply.code() == 554));
        assert!(stored(root.path(), "a").is_empty());
    }

    #[test]
    fn replies_to_store_errors() {
        for (error, code, detail) in [
            (maildir::Error::NoSpace("x".into()), 452, Status(4, 3, 1)),
            (maildir::Error::OverQuota, 452, Status(4, 2, 2)),
            (maildir::Error::Permission("x".into()), 451, Status(4, 3, 0)),
        ] {
            let failure = Failure::from(error);
            assert_eq!((failure.reply.code(), failure.reply.status()), (code, Some(detail)));
        }
    }
}
