//! One folder, shared by all sessions of the process.
//!
//! Locking: `disk` serialises everything that looks at or changes the directory, and is held while waiting for
//!          the uidlist lock; `table` guards the messages in memory and is held for moments only. Order: `disk`,
//!          then the uidlist lock, then `table`, then `wakers`. Operations on two mailboxes never hold both
//!          `disk` locks.
//! Trust:   sessions of this process; the directory is shared with other programs.
//! Never:   hold any of them while a waker runs or while waiting for a client.

mod change;
mod read;
mod sync;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::delivery::{Delivery, Target};
use crate::error::Error;
use crate::flags::KeywordNames;
use crate::folder::FolderName;
use crate::ids::UidValidity;
use crate::lock::{self, Dotlock};
use crate::table::{Table, ViewId};
use crate::uidlist;
use crate::view::{Mode, View};
use crate::watch::{Watch, Watcher};

pub use change::Copied;
pub use read::{OpenMessage, PopMessage, Status};

/// How long a look for changes that nobody needs at once waits for another program's lock.
const BRIEF: Duration = Duration::from_secs(1);

/// One folder. All methods block on the file system; none waits for a client.
#[derive(Debug)]
pub struct Mailbox {
    root: PathBuf,
    dir: PathBuf,
    name: FolderName,
    lock_timeout: Duration,
    disk: Mutex<sync::Disk>,
    table: Mutex<Table>,
    gone: AtomicBool,
    next_view: AtomicU32,
    wakers: Mutex<Wakers>,
    watcher: Arc<Watcher>,
    /// When the watcher will wake the sessions to look again.
    recheck: Mutex<Option<Instant>>,
    /// The watcher saw something arrive in `new`.
    delivered: AtomicBool,
    /// Itself, for the watcher.
    this: Weak<Self>,
}

type Waker = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Wakers {
    last: u64,
    list: Vec<(u64, Waker)>,
    watch: Option<Watch>,
}

impl std::fmt::Debug for Wakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wakers", self.list.len())
    }
}

/// Ends the notifications when dropped.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Weak<Mailbox>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            let mut wakers = guard(&mailbox.wakers);
            wakers.list.retain(|(id, _)| *id != self.id);
            let watch = if wakers.list.is_empty() { wakers.watch.take() } else { None };
            drop(wakers);
            drop(watch);
        }
    }
}

/// A poisoned lock only means that another session's thread panicked; the data is checked at every use.
pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    /// An unread mailbox; [`Self::load`] reads it.
    pub(crate) fn new(
        root: &Path,
        name: &FolderName,
        lock_timeout: Duration,
        watcher: Arc<Watcher>,
    ) -> Arc<Self> {
        let target = Target::new(root, name);
        Arc::new_cyclic(|this| Self {
            root: root.to_owned(),
            dir: target.dir,
            name: name.clone(),
            lock_timeout,
            disk: Mutex::default(),
            table: Mutex::default(),
            gone: AtomicBool::new(false),
            next_view: AtomicU32::new(1),
            wakers: Mutex::default(),
            watcher,
            recheck: Mutex::default(),
            delivered: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// The folder's name.
    #[must_use]
    pub fn name(&self) -> &FolderName {
        &self.name
    }

    /// The root of the account's tree.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// UIDVALIDITY.
    #[must_use]
    pub fn uid_validity(&self) -> UidValidity {
        // A mailbox is not handed out before it is read, so the value is there.
        guard(&self.table).validity.unwrap_or(UidValidity::ONE)
    }

    /// UIDNEXT.
    #[must_use]
    pub fn uid_next(&self) -> u32 {
        u32::try_from(guard(&self.table).next).unwrap_or(u32::MAX)
    }

    /// The mailbox GUID (MAILBOXID), 32 hex digits.
    #[must_use]
    pub fn guid(&self) -> String {
        guard(&self.table).guid.map(|g| g.to_string()).unwrap_or_default()
    }

    /// Keyword names at this moment.
    #[must_use]
    pub fn keywords(&self) -> KeywordNames {
        guard(&self.table).names.clone()
    }

    /// Begins a session: syncs and announces everything there is. `Mode::ReadOnly` for EXAMINE.
    pub fn view(self: &Arc<Self>, mode: Mode) -> Result<View, Error> {
        let id = ViewId(self.next_view.fetch_add(1, Ordering::Relaxed));
        View::begin(self.clone(), mode, id)
    }

    /// Looks for changes on disk. Views see them at their next refresh.
    pub fn sync(&self) -> Result<(), Error> {
        self.look(false, BRIEF)
    }

    /// Calls `waker` (from any thread; must not block or call back) after every change, ours or foreign.
    /// The session then calls `View::refresh`. It may be called when nothing changed.
    pub fn subscribe(self: &Arc<Self>, waker: Box<dyn Fn() + Send + Sync>) -> Result<Subscription, Error> {
        let mut wakers = guard(&self.wakers);
        wakers.last += 1;
        let id = wakers.last;
        wakers.list.push((id, waker.into()));
        if wakers.watch.is_none() {
            wakers.watch = Some(self.watcher.watch(self, &self.dir));
        }
        drop(wakers);
        // Something may have come between the last look and the watch.
        self.recheck_soon(Duration::ZERO);
        Ok(Subscription { mailbox: Arc::downgrade(self), id })
    }

    /// Starts an APPEND: write, `finish`, then [`Self::append`].
    pub fn delivery(&self) -> Result<Delivery, Error> {
        Delivery::start(self.target())
    }

    /// Whether the folder went away or was renumbered below us.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Number of messages in memory.
    pub(crate) fn weight(&self) -> usize {
        guard(&self.table).len()
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        guard(&self.table)
    }

    /// Wakes all sessions.
    pub(crate) fn notify(&self) {
        let list: Vec<Waker> = guard(&self.wakers).list.iter().map(|(_, waker)| waker.clone()).collect();
        list.iter().for_each(|waker| waker());
    }

    /// The watcher saw a file appear in `new`, or a change in `cur`.
    pub(crate) fn changed_on_disk(&self, in_new: bool) {
        if in_new {
            self.delivered.store(true, Ordering::Release);
        }
        self.notify();
    }

    /// The watcher's timer fired.
    pub(crate) fn recheck_due(&self) {
        {
            let mut planned = guard(&self.recheck);
            if planned.is_some_and(|at| at <= Instant::now()) {
                *planned = None;
            }
        }
        self.notify();
    }

    /// Has the sessions look again a little later.
    fn recheck_soon(&self, after: Duration) {
        if guard(&self.wakers).list.is_empty() {
            return;
        }
        let at = Instant::now() + after;
        {
            let mut planned = guard(&self.recheck);
            if planned.is_some_and(|planned| planned <= at) {
                return;
            }
            *planned = Some(at);
        }
        self.watcher.recheck(self.this.clone(), at);
    }

    fn target(&self) -> Target {
        Target { root: self.root.clone(), dir: self.dir.clone(), folder: self.name.clone() }
    }

    fn gone_error(&self) -> Error {
        self.gone.store(true, Ordering::Release);
        Error::Gone(self.name.to_string())
    }

    fn lock_list(&self, wait: Duration) -> Result<Dotlock, Error> {
        match Dotlock::acquire(&uidlist::path(&self.dir), lock::UIDLIST, wait) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(self.gone_error())
            }
            other => other,
        }
    }
}
