//! Worker processes for look-ups that block: PAM, shadow, passwd.
//!
//! Purpose: modules and NSS may hang, leak, crash or change the process; here they do it to a process of their own.
//! Shape:   a pool of children of the same executable, each at the end of a stream, one question at a time; a clock
//!          beside each question kills the worker when it is over; after so many questions it is replaced.
//! Parent:  the daemon itself, or a manager process of another account ([`workers_main`]): there every connection is
//!          one worker, and hanging up is how the daemon has it killed.
//! Records: `u32` length (little endian), `u8` version, `u8` kind, then counted strings and numbers.
//! Trust:   a worker runs other people's modules and may be taken over: its records are bounded and checked like a
//!          stranger's.
//! Never:   wait for a worker without a limit, use a worker again after an answer was missed, pass a password in an
//!          argument or the environment.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

mod backend;
mod imap;
mod lane;
mod manager;
#[cfg(test)]
mod noise;
mod process;
mod question;
mod record;

pub(crate) use backend::shadow_is_closed;
pub use backend::worker_main;
use lane::{Lanes, Place};
pub use manager::{WorkersSlice, workers_main};
pub(crate) use question::{Account, Answer, Checked, Effects, Facts, Question, StateRules};
use record::{Reply, Wanted};

/// A worker with nothing to do ends after this time.
const IDLE: Duration = Duration::from_secs(60);

/// Makes the other end of a worker.
pub(crate) type Spawner = Arc<dyn Fn() -> io::Result<(StdStream, Option<Child>)> + Send + Sync>;

/// How a question is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// When nobody waits for the answer any more.
    pub(crate) until: Option<Instant>,
    /// The peer is under suspicion: such questions share half of the workers.
    pub(crate) suspect: bool,
}

/// Words and lane of account look-ups.
const ACCOUNTS: &str = "account look-up";

/// The pool. Workers start when they are needed. Copies are the same pool.
#[derive(Clone)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

/// Numbers of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerStats {
    /// Workers there may be.
    pub(crate) max: u64,
    /// Those that answer a question.
    pub(crate) busy: u64,
    /// Those that have nothing to do.
    pub(crate) idle: u64,
    /// Questions that wait for one.
    pub(crate) waiting: u64,
    /// Questions since the start.
    pub(crate) questions: u64,
    /// Those of them that got no answer.
    pub(crate) failures: u64,
}

struct Shared {
    spawn: Spawner,
    idle: Mutex<Vec<Worker>>,
    settings: RwLock<Settings>,
    questions: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone)]
struct Settings {
    lanes: Arc<Lanes>,
    limits: conf::Workers,
    /// Which configuration this is; workers of an earlier one are not kept.
    version: u64,
}

impl Settings {
    fn new(limits: conf::Workers, version: u64) -> Settings {
        Settings { lanes: Arc::new(Lanes::new(limits.count.max(1) as usize)), limits, version }
    }
}

struct Worker {
    stream: UnixStream,
    child: Option<Child>,
    asked: u32,
    since: Instant,
}

impl Workers {
    /// A pool of children of this executable; with a manager's socket they are its children.
    pub(crate) fn new(limits: conf::Workers, manager: Option<&Path>) -> Workers {
        let Some(socket) = manager.map(Path::to_owned) else {
            return Workers::with_spawner(limits, Arc::new(process::spawn));
        };
        Workers::with_spawner(limits, Arc::new(move || Ok((manager::connect(&socket)?, None))))
    }

    /// A pool whose workers come from elsewhere.
    pub(crate) fn with_spawner(limits: conf::Workers, spawn: Spawner) -> Workers {
        let settings = RwLock::new(Settings::new(limits, 0));
        let (questions, failures) = Default::default();
        Workers { shared: Arc::new(Shared { spawn, idle: Mutex::default(), settings, questions, failures }) }
    }

    /// New limits after a reload. Workers that are busy finish under the old ones and go then; the others go at once, so
    /// that changed modules and name services are loaded anew.
    pub(crate) fn set_limits(&self, limits: &conf::Workers) {
        let mut settings = self.shared.settings.write().unwrap_or_else(PoisonError::into_inner);
        let version = settings.version + 1;
        if settings.limits.count == limits.count {
            settings.limits = limits.clone();
            settings.version = version;
        } else {
            *settings = Settings::new(limits.clone(), version);
        }
        drop(settings);
        self.shared.idle().clear();
    }

    /// Checks a password.
    pub(crate) async fn verify(
        &self,
        question: &Question,
        user: &str,
        password: &[u8],
        facts: &Facts,
        terms: Terms,
    ) -> Checked {
        let wanted = Wanted::verify(question, user, password, facts);
        match self.ask(wanted, question.describe(), terms).await {
            Ok(Reply::Answer(checked)) => checked,
            Ok(_) => Answer::Unavailable("the worker answered something else".to_owned()).into(),
            Err(why) => Answer::Unavailable(why).into(),
        }
    }

    /// Looks up a system account.
    pub(crate) async fn passwd(&self, user: &str, until: Option<Instant>) -> Result<Option<Account>, String> {
        let terms = Terms { until, suspect: false };
        match self.ask(Wanted::account(user), ACCOUNTS.to_owned(), terms).await? {
            Reply::Account(account) => Ok(account),
            Reply::Answer(Checked { answer: Answer::Unavailable(why), .. }) => Err(why),
            _ => Err("the worker answered something else".to_owned()),
        }
    }

    /// The gid of a group.
    pub(crate) async fn group(&self, name: &str) -> Result<Option<u32>, String> {
        let terms = Terms { until: None, suspect: false };
        match self.ask(Wanted::group(name), ACCOUNTS.to_owned(), terms).await? {
            Reply::Group(gid) => Ok(gid),
            Reply::Answer(Checked { answer: Answer::Unavailable(why), .. }) => Err(why),
            _ => Err("the worker answered something else".to_owned()),
        }
    }

    /// The names of all system accounts whose uid is at least `first_uid`.
    pub(crate) async fn accounts(&self, first_uid: u32) -> Result<Vec<String>, String> {
        let terms = Terms { until: None, suspect: false };
        match self.ask(Wanted::accounts(first_uid), ACCOUNTS.to_owned(), terms).await? {
            Reply::Names(names) => Ok(names),
            Reply::Answer(Checked { answer: Answer::Unavailable(why), .. }) => Err(why),
            _ => Err("the worker answered something else".to_owned()),
        }
    }

    /// Ends workers that have had nothing to do for a while.
    pub(crate) fn retire_idle(&self, now: Instant) {
        self.shared.idle().retain(|worker| now.saturating_duration_since(worker.since) < IDLE);
    }

    /// The numbers.
    pub(crate) fn stats(&self) -> WorkerStats {
        let Settings { lanes, limits, .. } = self.shared.settings();
        let (busy, waiting) = lanes.stats();
        WorkerStats {
            max: u64::from(limits.count),
            busy,
            waiting,
            idle: self.shared.idle().len() as u64,
            questions: self.shared.questions.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
        }
    }

    async fn ask(&self, wanted: Wanted, about: String, terms: Terms) -> Result<Reply, String> {
        self.shared.questions.fetch_add(1, Ordering::Relaxed);
        let answer = self.ask_one(wanted, about, terms).await;
        if answer.is_err() {
            self.shared.failures.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// The question runs in a task of its own: a client that goes away does not cost a worker.
    async fn ask_one(&self, wanted: Wanted, about: String, terms: Terms) -> Result<Reply, String> {
        let shared = Arc::clone(&self.shared);
        let Settings { lanes, limits, .. } = shared.settings();
        let latest = Instant::now() + limits.timeout;
        let until = terms.until.map_or(latest, |until| until.min(latest));
        let place = tokio::time::timeout_at(until.into(), lanes.place(&about, terms.suspect));
        let place = place.await.map_err(|_| format!("no worker was free in time for {about}"))??;
        let task =
            tokio::spawn(async move { shared.exchange(&wanted, &about, &place, &limits, until).await });
        task.await.map_err(|error| format!("worker task failed: {error}"))?
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

impl Shared {
    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(
        &self,
        wanted: &Wanted,
        about: &str,
        place: &Place,
        limits: &conf::Workers,
        until: Instant,
    ) -> Result<Reply, String> {
        let began = Instant::now();
        let version = self.settings().version;
        // A worker that died while idle is no reason to fail: the question goes to a new one.
        for reuse in [true, false] {
            let kept = if reuse { self.idle().pop() } else { None };
            let mut worker = match kept {
                Some(worker) => worker,
                None => self.start()?,
            };
            let fresh = worker.asked == 0;
            match tokio::time::timeout_at(until.into(), worker.ask(wanted)).await {
                Ok(Ok(reply)) => {
                    place.went(true, Instant::now());
                    if worker.asked < limits.max_requests {
                        self.keep(worker, version);
                    }
                    return Ok(reply);
                }
                Ok(Err(Lost::BeforeQuestion(_))) if !fresh => {}
                Ok(Err(Lost::BeforeQuestion(error) | Lost::AfterQuestion(error))) => {
                    place.went(false, Instant::now());
                    return Err(format!("the worker for {about} died: {}", worker.ended(&error).await));
                }
                Err(_) => {
                    place.went(false, Instant::now());
                    let waited = began.elapsed().as_millis();
                    return Err(format!("{about} did not answer within {waited} ms; its worker was killed"));
                }
            }
        }
        Err("no worker could be reached".to_owned())
    }

    /// Keeps a worker for the next question, unless a reload has come in between.
    fn keep(&self, worker: Worker, version: u64) {
        // Held until the worker stands where a reload looks for it.
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        if settings.version == version {
            self.idle().push(worker);
        }
    }

    fn start(&self) -> Result<Worker, String> {
        let start = || -> io::Result<Worker> {
            let (stream, child) = (self.spawn)()?;
            stream.set_nonblocking(true)?;
            Ok(Worker { stream: UnixStream::from_std(stream)?, child, asked: 0, since: Instant::now() })
        };
        start().map_err(|error| format!("cannot start a worker: {error}"))
    }
}

/// When a worker was lost.
enum Lost {
    /// It cannot have seen the question.
    BeforeQuestion(io::Error),
    /// It may have begun to answer.
    AfterQuestion(io::Error),
}

impl Worker {
    /// Asks. After an error, or when dropped half-way, the worker must not be used again.
    async fn ask(&mut self, wanted: &Wanted) -> Result<Reply, Lost> {
        self.stream.write_all(wanted.bytes()).await.map_err(Lost::BeforeQuestion)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await.map_err(Lost::AfterQuestion)?;
        let length = u32::from_le_bytes(length) as usize;
        let broken = |why| Lost::AfterQuestion(io::Error::new(io::ErrorKind::InvalidData, why));
        if length > record::MAX_REPLY {
            return Err(broken("its answer is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(Lost::AfterQuestion)?;
        let reply = Reply::decode(&body).ok_or_else(|| broken("its answer makes no sense"))?;
        if let Reply::Ended(why) = reply {
            return Err(Lost::AfterQuestion(io::Error::other(why)));
        }
        self.asked += 1;
        self.since = Instant::now();
        Ok(reply)
    }

    /// What a lost worker died of.
    async fn ended(mut self, error: &io::Error) -> String {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let hung_up = matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
        match self.child.take() {
            Some(child) if hung_up => {
                let ended = tokio::task::spawn_blocking(move || process::end(child)).await;
                ended.unwrap_or_else(|_| error.to_string())
            }
            child => {
                self.child = child;
                error.to_string()
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            process::abandon(child);
        }
    }
}

#[cfg(test)]
mod tests;
