//! The pool's manager: a daemon that starts workers with more rights than the authentication daemon has.
//!
//! Purpose: the authentication daemon parses what strangers send and cannot read shadow; its workers can. Between them
//!          stands this process, which runs as the workers' account and reads nothing at all.
//! Shape:   every connection on its socket is one worker: the connection becomes the worker's channel. Whoever hangs up
//!          has the worker killed; when a worker ends by itself, a last record says of what.
//! Trust:   only the uid of the authentication daemon may connect, told by the kernel. What it says is not looked at here.
//! Never:   start more workers than the settings allow, or leave one behind.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use boot::{Control, Event, GaugeGuard, Gauges, Sockets};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, socket};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::process;
use super::record::Reply;
use crate::refusal::{self, Refusals};
use crate::request::PeerCredentials;

/// Stack of the thread that stands beside a worker.
const STACK: usize = 128 << 10;
/// How long a connection waits for the place of a worker that is being killed: after a reload the daemon gives all idle
/// ones up at once.
const GOING: Duration = Duration::from_secs(1);

/// What the manager is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersSlice {
    /// Name of its socket in the plan.
    pub socket: String,
    /// The only uid that may connect: the authentication daemon's.
    pub front: u32,
    /// Most workers at a time.
    pub count: u32,
    /// The passdbs need `/etc/shadow`.
    pub needs_shadow: bool,
}

impl WorkersSlice {
    /// For the way to the child process.
    ///
    /// # Errors
    /// None that could happen with these fields.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// While a reload goes on, the daemon gives idle workers up and asks for new ones before the old ones are gone.
    fn most(&self) -> usize {
        self.count.max(1) as usize * 2
    }
}

/// The front's way to a new worker. Never waits: a manager that does not accept is as good as none.
pub(super) fn connect(path: &Path) -> io::Result<StdStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect_to(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?).map_err(|errno| {
        io::Error::new(io::Error::from(errno).kind(), format!("{}: {}", path.display(), errno.desc()))
    })?;
    Ok(StdStream::from(fd))
}

/// The main of the role `auth-workers`, run in a child process of the supervisor.
///
/// # Errors
/// A slice of another version, or a system that refuses something basic.
pub fn workers_main(start: boot::Start) -> anyhow::Result<()> {
    let slice: WorkersSlice =
        serde_json::from_slice(&start.slice).context("the configuration slice cannot be read")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(start, slice))
}

async fn run(start: boot::Start, slice: WorkersSlice) -> anyhow::Result<()> {
    let mut control = Control::new(start.control).context("cannot reach the supervisor")?;
    let pool = Arc::new(Pool {
        gauges: control.gauges(),
        running: AtomicUsize::new(0),
        waiting: AtomicUsize::new(0),
        freed: Notify::new(),
        emptied: Notify::new(),
        refusals: Refusals::default(),
    });
    tell_rights(&slice);
    let mut listeners = listen(&pool, &slice, start.sockets)?;
    control.ready().await;
    tracing::info!(count = slice.count, uid = nix::unistd::geteuid().as_raw(), "workers start on request");
    loop {
        match control.event().await {
            Event::Reload { slice, sockets } => {
                let result = reload(&pool, &slice, sockets);
                match result {
                    Ok(new) => {
                        listeners = new;
                        control.reloaded(Ok(())).await;
                    }
                    Err(error) => control.reloaded(Err(format!("{error:#}"))).await,
                }
            }
            Event::Stop { grace } => {
                // Whoever asks is told to stop after everybody who asks him; his last questions are still answered.
                let _ = tokio::time::timeout(grace, pool.empty()).await;
                drop(listeners);
                return Ok(());
            }
            // The workers see this process go, and end.
            Event::Lost => return Ok(()),
            _ => {}
        }
    }
}

fn reload(pool: &Arc<Pool>, slice: &[u8], sockets: Sockets) -> anyhow::Result<JoinSet<()>> {
    let slice: WorkersSlice =
        serde_json::from_slice(slice).context("the configuration slice cannot be read")?;
    listen(pool, &slice, sockets)
}

/// One task for each socket; they end with the set.
fn listen(pool: &Arc<Pool>, slice: &WorkersSlice, mut sockets: Sockets) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for listener in sockets.take_unix(&slice.socket) {
        let listener = UnixListener::from_std(listener).context("cannot serve the socket")?;
        let (pool, slice) = (Arc::clone(pool), slice.clone());
        tasks.spawn(async move {
            loop {
                let connection = boot::accept_unix(&listener).await;
                if let Err(error) = pool.admit(&slice, connection) {
                    tell_failed_start(&error);
                }
            }
        });
    }
    Ok(tasks)
}

/// Says at the start, not at the first login, that these rights are not enough.
fn tell_rights(slice: &WorkersSlice) {
    if slice.needs_shadow
        && let Some(why) = super::shadow_is_closed()
    {
        tracing::warn!(why, "passwords of system users cannot be checked; run `postern doctor`");
    }
}

struct Pool {
    gauges: Arc<Gauges>,
    running: AtomicUsize,
    /// Connections that wait for a place.
    waiting: AtomicUsize,
    freed: Notify,
    /// The last place that was taken is free.
    emptied: Notify,
    refusals: Refusals,
}

/// One place in the pool.
struct Place {
    pool: Arc<Pool>,
    _counted: GaugeGuard,
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.pool.running.fetch_sub(1, Ordering::SeqCst);
        self.pool.freed.notify_one();
        if before == 1 {
            self.pool.emptied.notify_one();
        }
    }
}

impl Pool {
    fn admit(self: &Arc<Self>, slice: &WorkersSlice, connection: tokio::net::UnixStream) -> io::Result<()> {
        let peer = connection.peer_cred()?;
        if peer.uid() != slice.front {
            let peer = PeerCredentials { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
            self.refusals.tell_internal(&slice.socket, &peer, slice.front);
            refusal::hang_up(&connection);
            return Ok(());
        }
        match self.enter(slice.most()) {
            Some(place) => start(connection.into_std()?, place),
            None => {
                self.wait(slice.most(), connection);
                Ok(())
            }
        }
    }

    /// A place, if one is free.
    fn enter(self: &Arc<Self>, most: usize) -> Option<Place> {
        let free = |running: usize| (running < most).then_some(running + 1);
        self.running.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
        Some(Place { pool: Arc::clone(self), _counted: self.gauges.enter() })
    }

    /// The next place that is free.
    async fn place(self: &Arc<Self>, most: usize) -> Place {
        loop {
            if let Some(place) = self.enter(most) {
                return place;
            }
            self.freed.notified().await;
        }
    }

    /// Until no worker runs.
    async fn empty(&self) {
        while self.running.load(Ordering::SeqCst) > 0 {
            self.emptied.notified().await;
        }
    }

    /// Starts the worker as soon as a place is free, or says that there is none.
    fn wait(self: &Arc<Self>, most: usize, connection: tokio::net::UnixStream) {
        let pool = Arc::clone(self);
        let crowded = self.waiting.fetch_add(1, Ordering::SeqCst) >= most;
        tokio::spawn(async move {
            let patience = if crowded { Duration::ZERO } else { GOING };
            let place = tokio::time::timeout(patience, pool.place(most)).await;
            pool.waiting.fetch_sub(1, Ordering::SeqCst);
            let done = connection.into_std().and_then(|connection| match place {
                Ok(place) => start(connection, place),
                Err(_) => {
                    farewell(&connection, format!("all {most} workers are busy"));
                    Ok(())
                }
            });
            if let Err(error) = done {
                tell_failed_start(&error);
            }
        });
    }
}

fn tell_failed_start(error: &io::Error) {
    tracing::warn!(%error, "a worker could not be started");
}

/// The connection becomes a worker's.
fn start(connection: StdStream, place: Place) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    let (rope, child) = process::spawn_for(connection.try_clone()?)?;
    let beside = move || {
        process::wait_for_hang_up(&[connection.as_fd(), rope.as_fd()]);
        // It ends by itself or is killed; if it was dead already, this tells of what it died.
        let ended = process::end(child);
        farewell(&connection, ended);
        drop(place);
    };
    let started = std::thread::Builder::new().name("beside".into()).stack_size(STACK).spawn(beside);
    // Without the thread the worker sees its rope drop, and ends; nobody reaps it before this process ends.
    started.map(drop)
}

/// The last record on a connection. Whoever does not read it is not waited for.
fn farewell(mut connection: &StdStream, why: String) {
    let _ = connection.set_nonblocking(true);
    let _ = connection.write_all(&Reply::Ended(why).encode());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_nobody_serves_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth-workers");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Nobody accepts: as soon as the queue is full, no more waiting.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut held = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 10_000);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        assert!(error.to_string().contains("auth-workers"));
    }

    #[tokio::test]
    async fn who_comes_while_a_worker_ends_waits_for_its_place() {
        let (running, waiting) = Default::default();
        let pool = Arc::new(Pool {
            gauges: Arc::default(),
            running,
            waiting,
            freed: Notify::new(),
            emptied: Notify::new(),
            refusals: Refusals::default(),
        });
        let held: Vec<Place> = (0..2).filter_map(|_| pool.enter(2)).collect();
        assert!(held.len() == 2 && pool.enter(2).is_none());
        let next = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { (pool.place(2).await, pool.place(2).await) }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(held);
        let next = next.await.unwrap();
        assert!(pool.enter(2).is_none());
        // Who waits for the last one is told.
        let (second, first) = next;
        drop(second);
        let emptied = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.empty().await }
        });
        tokio::task::yield_now().await;
        assert!(!emptied.is_finished());
        drop(first);
        emptied.await.unwrap();
        assert_eq!(pool.running.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn slices_round_trip() {
        let slice = WorkersSlice { socket: "auth-workers".into(), front: 7, count: 8, needs_shadow: true };
        assert_eq!(serde_json::from_slice::<WorkersSlice>(&slice.to_json().unwrap()).unwrap(), slice);
        assert_eq!(slice.most(), 16);
    }
}
