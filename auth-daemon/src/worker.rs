//! Worker processes for look-ups that block: PAM, shadow, passwd.
//!
//! Purpose: modules and NSS may hang, leak, crash or change the process; here they do it to a process of their own.
//! Shape:   a pool of children of the same executable, each at the end of a socket pair, one question at a time;
//!          a clock beside each question kills the worker when it is over; after so many questions it is replaced.
//! Records: `u32` length (little endian), `u8` version, `u8` kind, then counted strings and numbers.
//! Never:   wait for a worker without a limit, use a worker again after an answer was missed, pass a password in an
//!          argument or the environment.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

mod backend;
mod record;

pub use backend::worker_main;
use record::{Reply, Wanted};

/// A worker with nothing to do ends after this time.
const IDLE: Duration = Duration::from_secs(60);
/// Questions that may wait for each worker.
const WAITING_PER_WORKER: usize = 64;

/// What a driver in a worker is asked to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// PAM with this service file.
    Pam { service: String, session: bool, setcred: bool },
    /// The shadow entry.
    Shadow,
    /// The hash in the passwd entry.
    Passwd,
}

/// Facts about the remote user that modules may look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Remote address.
    pub(crate) rhost: String,
    /// Mail service, what PAM modules see as terminal.
    pub(crate) service: String,
}

/// A worker's verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The password is right; the name as the system spells it.
    Ok(Option<String>),
    /// It is not.
    Mismatch,
    /// There is no such user.
    Unknown,
    /// The password is locked: none would be right.
    Locked,
    /// The password is right, the account has expired or may not log in.
    Disabled,
    /// The password is right and has expired.
    Expired,
    /// Nobody can say.
    Unavailable(String),
}

/// A system account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

/// Makes the other end of a worker.
pub(crate) type Spawner = Arc<dyn Fn() -> io::Result<(StdStream, Option<Child>)> + Send + Sync>;

/// The pool. Workers start when they are needed.
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    spawn: Spawner,
    idle: Mutex<Vec<Worker>>,
    places: Arc<Semaphore>,
    /// Peers under suspicion share half of the places.
    suspects: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Mutex<conf::Workers>,
}

struct Worker {
    stream: UnixStream,
    child: Option<Child>,
    asked: u32,
    since: Instant,
}

impl Workers {
    /// A pool of children of this executable.
    pub(crate) fn new(limits: conf::Workers) -> Workers {
        Workers::with_spawner(limits, Arc::new(spawn_child))
    }

    /// A pool whose workers come from elsewhere.
    pub(crate) fn with_spawner(limits: conf::Workers, spawn: Spawner) -> Workers {
        let count = limits.count.max(1) as usize;
        Workers {
            shared: Arc::new(Shared {
                spawn,
                idle: Mutex::default(),
                places: Arc::new(Semaphore::new(count)),
                suspects: Arc::new(Semaphore::new(count.div_ceil(2))),
                waiting: AtomicUsize::new(0),
                limits: Mutex::new(limits),
            }),
        }
    }

    /// New limits after a reload. The number of workers only grows in place; fewer take effect at the next start.
    pub(crate) fn set_limits(&self, limits: &conf::Workers) {
        let mut known = self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let more = limits.count.saturating_sub(known.count) as usize;
        self.shared.places.add_permits(more);
        self.shared.suspects.add_permits(more / 2);
        let count = known.count.max(limits.count);
        *known = limits.clone();
        known.count = count;
    }

    /// Checks a password.
    pub(crate) async fn verify(
        &self,
        question: &Question,
        user: &str,
        password: &[u8],
        facts: &Facts,
        suspect: bool,
    ) -> Answer {
        let wanted = Wanted::verify(question, user, password, facts);
        match self.ask(wanted, suspect).await {
            Ok(Reply::Answer(answer)) => answer,
            Ok(Reply::Account(_)) => Answer::Unavailable("the worker answered something else".to_owned()),
            Err(why) => Answer::Unavailable(why),
        }
    }

    /// Looks up a system account.
    pub(crate) async fn passwd(&self, user: &str) -> Result<Option<Account>, String> {
        match self.ask(Wanted::account(user), false).await? {
            Reply::Account(account) => Ok(account),
            Reply::Answer(Answer::Unavailable(why)) => Err(why),
            Reply::Answer(_) => Err("the worker answered something else".to_owned()),
        }
    }

    /// Ends workers that have had nothing to do for a while.
    pub(crate) fn retire_idle(&self, now: Instant) {
        let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|worker| now.saturating_duration_since(worker.since) < IDLE);
    }

    /// The question runs in a task of its own: a client that goes away does not cost a worker.
    async fn ask(&self, wanted: Wanted, suspect: bool) -> Result<Reply, String> {
        let shared = Arc::clone(&self.shared);
        let waiting = shared.enter()?;
        let slow_lane = match suspect {
            true => Some(permit(&shared.suspects).await?),
            false => None,
        };
        let place = permit(&shared.places).await?;
        drop(waiting);
        let task = tokio::spawn(async move {
            let reply = shared.exchange(&wanted).await;
            drop((place, slow_lane));
            reply
        });
        task.await.map_err(|error| format!("worker task failed: {error}"))?
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, String> {
    Arc::clone(semaphore).acquire_owned().await.map_err(|_| "the worker pool is closed".to_owned())
}

struct Waiting(Arc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn enter(self: &Arc<Self>) -> Result<Waiting, String> {
        let limit = self.limits().count.max(1) as usize * WAITING_PER_WORKER;
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(self));
        if before >= limit {
            Err("too many look-ups are waiting for a worker".to_owned())
        } else {
            Ok(waiting)
        }
    }

    fn limits(&self) -> conf::Workers {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn exchange(&self, wanted: &Wanted) -> Result<Reply, String> {
        let limits = self.limits();
        // A worker that died while idle is no reason to fail: the question goes to a new one, once.
        for reused in [true, false] {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let worker = match kept {
                Some(worker) if reused => worker,
                _ => self.start()?,
            };
            let fresh = worker.asked == 0;
            match tokio::time::timeout(limits.timeout, worker.ask(wanted)).await {
                Ok(Ok((reply, worker))) => {
                    if worker.asked < limits.max_requests {
                        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                    }
                    return Ok(reply);
                }
                Ok(Err(Lost::BeforeQuestion(_))) if !fresh && reused => {}
                Ok(Err(Lost::BeforeQuestion(error) | Lost::AfterQuestion(error))) => {
                    return Err(format!("a worker died: {error}"));
                }
                Err(_) => return Err(format!("a look-up took longer than {:?}", limits.timeout)),
            }
        }
        Err("no worker could be reached".to_owned())
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
    /// Asks; the worker comes back only with a whole answer. Dropped half-way it is killed.
    async fn ask(mut self, wanted: &Wanted) -> Result<(Reply, Worker), Lost> {
        self.stream.write_all(wanted.bytes()).await.map_err(Lost::BeforeQuestion)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await.map_err(Lost::AfterQuestion)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > record::MAX {
            return Err(Lost::AfterQuestion(io::ErrorKind::InvalidData.into()));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(Lost::AfterQuestion)?;
        let reply = Reply::decode(&body)
            .ok_or_else(|| Lost::AfterQuestion(io::Error::new(io::ErrorKind::InvalidData, "bad record")))?;
        self.asked += 1;
        self.since = Instant::now();
        Ok((reply, self))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may hang in a module: it is not asked to end.
            let _ = child.kill();
            std::thread::Builder::new()
                .name("reaper".into())
                .spawn(move || child.wait())
                .map(drop)
                .unwrap_or_else(|error| tracing::warn!(%error, "a dead worker could not be reaped"));
        }
    }
}

/// Starts `EXECUTABLE daemon auth-worker` with one end of a socket pair as its standard input.
fn spawn_child() -> io::Result<(StdStream, Option<Child>)> {
    let (ours, theirs) = StdStream::pair()?;
    let child = Command::new(std::env::current_exe()?)
        .args(["daemon", "auth-worker"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((ours, Some(child)))
}

#[cfg(test)]
mod tests;
