//! The mailbox processes that are there: found or started, told to go when nobody needs them.
//!
//! Trust:   the streams are handed over by the broker, who knows whose they are. A mailbox process is its user's: it may lie about
//!          what it serves, and then holds the place that it has, no other.
//! Key:     uid and place. Mailboxes of one uid in several places do not share a process, for each can reach its own only.
//! Order:   whoever is handed to a process that is about to go is served by it; it goes when it has no one left. So nothing is
//!          lost between "nobody is there" and "go".
//! Kept:    a stream is kept here until its process says that it took it. One that a process could not serve, because it died before
//!          or because the Maildir is another one now, goes to the next process.
//! Stuck:   whoever owns a process can stop it. One that takes nothing any more is killed, and those who wait are told.
//! Crash:   the streams a process had taken are closed with it: the fronts tell their clients to try again.
//! Shares:  neither front can take the places of all: see [`share`].
//! Never:   start more processes than the settings say; let one mailbox hold up another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use boot::courier::{Answer, Refusal};
use boot::logging::LogOptions;
use boot::seccomp::Mode;
use boot::spawn::{Helper, HelperPlan, Said, descriptor};
use boot::{DrainToken, Gauges, Ids};
use conf::{BrokerSlice, MailboxSlice, SandboxMode};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::client::until;
use crate::delivery;
use crate::mailbox::{Handed, Note, Told, Uses};

/// Streams that wait for a process to start.
const WAITING: usize = 64;
/// How long a process may take to accept one: its disk may hang.
const TAKE: Duration = Duration::from_secs(5);
/// How long a process may take to say that it took one, or to end when nobody is there: less than the fronts wait.
const STUCK: Duration = Duration::from_secs(20);
/// How often a stream looks for another process when its own has just gone.
const ATTEMPTS: usize = 5;
/// How long a process that has closed its channel may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// A stream and what it is for.
struct Hand {
    handed: Handed,
    stream: UnixStream,
    /// Processes it has been given to.
    tries: usize,
    /// Since when the last one has it.
    given: Option<Instant>,
}

impl Hand {
    /// Whoever waits may try again.
    async fn refuse(&mut self, why: &str) {
        // The front may be gone.
        let _ = delivery::answer(&mut self.stream, &Answer::Refused(Refusal::temporary(why))).await;
    }
}

type Key = (u32, PathBuf);

/// All processes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Processes(Arc<Inner>);

struct Inner {
    table: Mutex<HashMap<Key, Entry>>,
    settings: watch::Sender<Arc<BrokerSlice>>,
    started: AtomicU64,
    drain: DrainToken,
    gauges: Arc<Gauges>,
}

#[derive(Clone)]
struct Entry {
    /// Tells two processes with one key apart.
    number: u64,
    hands: mpsc::Sender<Hand>,
    state: Arc<Mutex<State>>,
    /// Somebody wants it gone.
    leave: Arc<Notify>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Nobody has been there since.
    idle: Option<Instant>,
    /// What it is used for, or will be by what was handed over.
    uses: Uses,
}

/// How many processes may serve sessions, and how many deliveries, of so many in all. An eighth is left for the other front: one that
/// is taken over could keep all of them busy, with messages that never end.
fn share(most: usize) -> usize {
    most - most / 8
}

/// Whether there is a place for another process: a free one, or that of the process that is idle longest.
fn room<'a, K: Clone + 'a>(
    table: impl Iterator<Item = (&'a K, State)> + Clone,
    most: usize,
) -> Result<Option<K>, Refusal> {
    if table.clone().count() < most {
        return Ok(None);
    }
    let idle = table.filter_map(|(key, state)| Some((state.idle?, key)));
    match idle.min_by_key(|(since, _)| *since) {
        Some((_, oldest)) => Ok(Some(oldest.clone())),
        None => {
            Err(Refusal::temporary(format!("{most} mailboxes are in use, which is mail.mailbox_processes")))
        }
    }
}

/// Whether one more process may be put to this use.
fn within_share(table: impl Iterator<Item = State>, wanted: Uses, most: usize) -> Result<(), Refusal> {
    let (mut sessions, mut deliveries) = (0, 0);
    for State { uses, .. } in table {
        sessions += usize::from(uses.sessions);
        deliveries += usize::from(uses.deliveries);
    }
    let (what, used) = if wanted.sessions { ("sessions", sessions) } else { ("deliveries", deliveries) };
    if used < share(most) {
        return Ok(());
    }
    Err(Refusal::temporary(format!(
        "{used} mailboxes have {what}, which is all but an eighth of mail.mailbox_processes"
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values: right whatever a thread that panicked was doing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processes {
    pub(super) fn new(slice: &BrokerSlice, drain: DrainToken, gauges: Arc<Gauges>) -> Self {
        let (settings, _) = watch::channel(Arc::new(slice.clone()));
        Self(Arc::new(Inner { table: Mutex::default(), settings, started: AtomicU64::new(0), drain, gauges }))
    }

    /// New settings, for those that run as well.
    pub(super) fn reload(&self, slice: &BrokerSlice) {
        self.0.settings.send_replace(Arc::new(slice.clone()));
    }

    /// Hands a stream to the process of these ids and this place, and starts that if need be.
    pub(super) async fn hand(
        &self,
        ids: Ids,
        root: PathBuf,
        handed: Handed,
        stream: UnixStream,
    ) -> Result<(), (Refusal, UnixStream)> {
        self.pass(&ids, &root, Hand { handed, stream, tries: 0, given: None }).await
    }

    async fn pass(&self, ids: &Ids, root: &Path, mut hand: Hand) -> Result<(), (Refusal, UnixStream)> {
        while hand.tries < ATTEMPTS {
            hand.tries += 1;
            let entry = match self.find_or_start(ids, root, hand.handed.uses()) {
                Ok(entry) => entry,
                Err(refusal) => return Err((refusal, hand.stream)),
            };
            match entry.hands.send_timeout(hand, TAKE).await {
                Ok(()) => return Ok(()),
                // It went in this moment.
                Err(SendTimeoutError::Closed(back)) => hand = back,
                Err(SendTimeoutError::Timeout(back)) => {
                    return Err((Refusal::temporary("the mailbox process takes nothing more"), back.stream));
                }
            }
        }
        Err((Refusal::temporary("mailbox processes end as soon as they are started"), hand.stream))
    }

    /// The same in the background, for streams that came back.
    fn pass_again(&self, ids: &Ids, root: &Path, hands: impl IntoIterator<Item = Hand>) {
        for hand in hands {
            let (processes, ids, root) = (self.clone(), ids.clone(), root.to_owned());
            tokio::spawn(async move {
                if let Err((refusal, mut stream)) = processes.pass(&ids, &root, hand).await {
                    let _ = delivery::answer(&mut stream, &Answer::Refused(refusal)).await;
                }
            });
        }
    }

    fn find_or_start(&self, ids: &Ids, root: &Path, wanted: Uses) -> Result<Entry, Refusal> {
        let key = (ids.uid, root.to_owned());
        let mut table = lock(&self.0.table);
        let slice = Arc::clone(&self.0.settings.borrow());
        let most = usize::try_from(slice.mail.mailbox_processes).unwrap_or(usize::MAX);
        let states = || table.values().map(|entry| *lock(&entry.state));
        if let Some(entry) = table.get(&key) {
            let uses = lock(&entry.state).uses;
            if uses.with(wanted) != uses {
                within_share(states(), wanted, most)?;
            }
            lock(&entry.state).uses = uses.with(wanted);
            return Ok(entry.clone());
        }
        let oldest = room(table.iter().map(|(key, entry)| (key, *lock(&entry.state))), most)?;
        within_share(states(), wanted, most)?;
        if let Some(entry) = oldest.and_then(|oldest| table.remove(&oldest)) {
            entry.leave.notify_one();
        }
        let (hands, waiting) = mpsc::channel(WAITING);
        let number = self.0.started.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(Mutex::new(State { idle: None, uses: wanted }));
        let entry = Entry { number, hands, state, leave: Arc::default() };
        table.insert(key.clone(), entry.clone());
        drop(table);
        let driver = Driver {
            processes: self.clone(),
            key,
            ids: ids.clone(),
            number,
            state: Arc::clone(&entry.state),
            leave: Arc::clone(&entry.leave),
            settings: self.0.settings.subscribe(),
            drain: self.0.drain.clone(),
        };
        tokio::spawn(driver.run(waiting));
        Ok(entry)
    }

    fn forget(&self, key: &Key, number: u64) {
        let mut table = lock(&self.0.table);
        if table.get(key).is_some_and(|entry| entry.number == number) {
            table.remove(key);
        }
    }
}

/// The task beside one process.
struct Driver {
    processes: Processes,
    key: Key,
    ids: Ids,
    number: u64,
    state: Arc<Mutex<State>>,
    leave: Arc<Notify>,
    settings: watch::Receiver<Arc<BrokerSlice>>,
    drain: DrainToken,
}

impl Driver {
    async fn run(mut self, mut waiting: mpsc::Receiver<Hand>) {
        let slice = self.settings.borrow_and_update().clone();
        let plan = self.plan(&slice);
        let started = match plan {
            Ok(plan) => Helper::start(&plan).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        let why = match started {
            Ok(mut helper) => {
                let _counted = self.processes.0.gauges.enter();
                tracing::debug!(uid = self.ids.uid, pid = helper.pid(), root = %self.key.1.display(), "mailbox process started");
                let left = self.drive(&mut helper, &mut waiting).await;
                self.processes.0.gauges.helper(helper.pid(), None);
                self.processes.forget(&self.key, self.number);
                if !self.drain.is_draining() {
                    self.processes.pass_again(&self.ids, &self.key.1, left.into_values());
                }
                reap(&mut helper).await;
                "the mailbox process ended"
            }
            Err(error) => {
                tracing::error!(uid = self.ids.uid, %error, "cannot start a mailbox process");
                self.processes.forget(&self.key, self.number);
                "no mailbox process can be started"
            }
        };
        // Nobody served these.
        waiting.close();
        while let Some(mut hand) = waiting.recv().await {
            hand.refuse(why).await;
        }
    }

    /// Gives back what the process did not take.
    async fn drive(&mut self, helper: &mut Helper, waiting: &mut mpsc::Receiver<Hand>) -> HashMap<u64, Hand> {
        let (mut given, mut last) = (HashMap::<u64, Hand>::new(), 0);
        let (mut leaving, mut retired, mut stopping, mut killed) = (false, None::<Instant>, false, false);
        loop {
            let patience = self.settings.borrow().mail.mailbox_idle;
            let idle = lock(&self.state).idle;
            let tired = idle.map(|since| since + patience);
            let oldest = given.values().filter_map(|hand| hand.given).min();
            let stuck = oldest.or(retired.filter(|_| idle.is_some())).map(|since| since + STUCK);
            tokio::select! {
                hand = waiting.recv(), if retired.is_none() => match hand {
                    // It takes its time to die: its disk hangs.
                    Some(mut hand) if killed => hand.refuse("the mailbox process hangs").await,
                    Some(mut hand) => {
                        lock(&self.state).idle = None;
                        last += 1;
                        let told = json!(Told::Serve(last, hand.handed.clone()));
                        let told = match descriptor(&hand.stream) {
                            Ok(fd) => timeout(TAKE, helper.hand(told, Some(fd))).await,
                            Err(error) => Ok(Err(error)),
                        };
                        match told {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => {
                                tracing::warn!(uid = self.ids.uid, pid = helper.pid(), %error, "cannot hand a stream over");
                            }
                            Err(_) => {
                                killed = true;
                                self.kill(helper, "takes nothing more");
                            }
                        }
                        hand.given = Some(Instant::now());
                        given.insert(last, hand);
                    }
                    None => {
                        retired = Some(Instant::now());
                        let _ = timeout(TAKE, helper.hand(json!(Told::Retire), None)).await;
                    }
                },
                said = helper.said() => match said {
                    None => return given,
                    Some(Said::Note(note)) => match serde_json::from_value(note) {
                        Ok(Note::Took(number)) => drop(given.remove(&number)),
                        Ok(Note::Moved(number)) => {
                            tracing::info!(uid = self.ids.uid, root = %self.key.1.display(), "the Maildir is another one now");
                            leaving = true;
                            self.processes.forget(&self.key, self.number);
                            self.processes.pass_again(&self.ids, &self.key.1, given.remove(&number));
                        }
                        Ok(Note::Serves(uses)) => {
                            *lock(&self.state) = State { idle: uses.is_none().then(Instant::now), uses };
                        }
                        Ok(Note::Broken) => {
                            self.processes.forget(&self.key, self.number);
                            waiting.close();
                        }
                        Err(_) if killed => {}
                        Err(error) => {
                            killed = true;
                            self.kill(helper, &format!("talks nonsense: {error}"));
                        }
                    },
                    Some(Said::Restricted(restricted)) => {
                        self.processes.0.gauges.helper(helper.pid(), Some(restricted));
                    }
                    Some(_) => {}
                },
                () = until(stuck), if !killed => {
                    killed = true;
                    self.kill(helper, "hangs, or was stopped");
                }
                () = until(tired), if !leaving => leaving = true,
                () = self.leave.notified(), if !leaving => leaving = true,
                changed = self.settings.changed() => {
                    let slice = self.settings.borrow_and_update().clone();
                    if let (Ok(()), Ok(plan)) = (changed, self.plan(&slice)) {
                        let _ = timeout(TAKE, helper.reload(&plan.slice, plan.log)).await;
                    }
                }
                () = self.drain.draining(), if !stopping => {
                    stopping = true;
                    self.processes.forget(&self.key, self.number);
                    waiting.close();
                    let grace = self.settings.borrow().grace_time;
                    let _ = timeout(TAKE, helper.stop(grace)).await;
                }
            }
            if killed {
                for (_, mut hand) in given.drain() {
                    hand.refuse("the mailbox process hangs").await;
                }
            }
            if leaving {
                self.processes.forget(&self.key, self.number);
                waiting.close();
            }
        }
    }

    fn kill(&self, helper: &mut Helper, why: &str) {
        tracing::warn!(uid = self.ids.uid, pid = helper.pid(), why, "killing a mailbox process");
        helper.kill();
    }

    fn plan(&self, slice: &BrokerSlice) -> Result<HelperPlan, serde_json::Error> {
        let mailbox = MailboxSlice {
            hostname: slice.hostname.clone(),
            grace_time: slice.grace_time,
            imap: slice.imap.clone(),
            pop3: slice.pop3.clone(),
            mail: slice.mail.clone(),
            process: slice.process.clone(),
            root: self.key.1.clone(),
        };
        let format = match slice.log.format {
            conf::LogFormat::Auto => boot::logging::LogFormat::Auto,
            conf::LogFormat::Human => boot::logging::LogFormat::Human,
            conf::LogFormat::Json => boot::logging::LogFormat::Json,
            conf::LogFormat::Journald => boot::logging::LogFormat::Journald,
        };
        Ok(HelperPlan {
            role: "mailbox",
            ids: self.ids.clone(),
            slice: mailbox.to_json()?.into(),
            log: Some(LogOptions::new("mailbox", slice.log.level.clone(), format)),
            grace: slice.grace_time,
            open_files: None,
            memory: Some(crate::mailbox::MEMORY),
            // It restricts itself, when it has looked at the Maildir.
            profile: None,
            sandbox: match slice.process.sandbox {
                SandboxMode::On => Mode::On,
                SandboxMode::Log => Mode::Log,
                SandboxMode::Off => Mode::Off,
            },
        })
    }
}

/// Waits for the end of a process that has closed its channel.
async fn reap(helper: &mut Helper) {
    let pid = helper.pid();
    let ended = match timeout(LAST_BREATH, helper.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!(pid, "a mailbox process does not end; killing it");
            helper.kill();
            helper.wait().await
        }
    };
    match ended {
        Ok(status) if status.success() => tracing::debug!(pid, "mailbox process ended"),
        Ok(status) => tracing::error!(pid, "mailbox process ended: {status}"),
        Err(error) => tracing::error!(pid, %error, "cannot wait for a mailbox process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Uses = Uses { sessions: true, deliveries: false };
    const DELIVERY: Uses = Uses { sessions: false, deliveries: true };

    fn state(uses: Uses, idle: Option<Instant>) -> State {
        State { idle, uses }
    }

    #[test]
    fn neither_front_takes_the_places_of_all() {
        let table = |deliveries: usize, sessions: usize| {
            let both = deliveries.min(sessions);
            (0..deliveries.max(sessions)).map(move |n| match n {
                n if n < both => state(SESSION.with(DELIVERY), None),
                _ if deliveries > sessions => state(DELIVERY, None),
                _ => state(SESSION, None),
            })
        };
        for (most, deliveries, sessions, may_deliver, may_open) in [
            (1000, 874, 0, true, true),
            (1000, 875, 0, false, true),
            (1000, 0, 875, true, false),
            // Those that serve both count for both.
            (1000, 875, 875, false, false),
            (8, 7, 0, false, true),
            // Few places: nothing can be kept back.
            (7, 6, 0, true, true),
            (1, 0, 0, true, true),
            (1, 1, 0, false, true),
        ] {
            let fits = |wanted| within_share(table(deliveries, sessions), wanted, most).is_ok();
            assert_eq!(
                (fits(DELIVERY), fits(SESSION)),
                (may_deliver, may_open),
                "{most} {deliveries} {sessions}"
            );
        }
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let used = state(DELIVERY, None);
        let full =
            [(1, used), (2, state(Uses::default(), Some(later))), (3, state(Uses::default(), Some(now)))];
        let room = |table: &[(u32, State)], most| room(table.iter().map(|(key, state)| (key, *state)), most);
        assert_eq!(room(&full, 4).unwrap(), None);
        assert_eq!(room(&full, 3).unwrap(), Some(3));
        assert_eq!(room(&full[..2], 2).unwrap(), Some(2));
        assert!(room(&full[..1], 1).unwrap_err().text.contains("mail.mailbox_processes"));
    }
}
