//! The process-wide registry of open mailboxes.
//!
//! One folder is one [`Mailbox`] for all sessions of the process. Mailboxes no session uses stay in memory for a
//! while, up to a number of messages, so that the next STATUS or SELECT needs only a look at the directory's times.
//!
//! Trust: the root is the caller's decision; folder names are a checked type.
//! Never: hand out a `Mailbox` whose folder is known to be deleted or renumbered.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::error::Error;
use crate::folder::FolderName;
use crate::mailbox::{Mailbox, guard};
use crate::watch::Watcher;

/// How often an opening is tried again when the folder is renumbered while it is read.
const TRIES: usize = 3;
/// Mailboxes kept without a session, whatever their size.
const IDLE_MAILBOXES: usize = 512;

/// Settings of a [`Store`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How long to wait for another program's lock before `Error::Locked`. Default: 30 s.
    pub lock_timeout: Duration,
    /// How many messages of mailboxes without a session stay in memory. Default: 200,000.
    pub idle_messages: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_secs(30), idle_messages: 200_000 }
    }
}

/// All open mailboxes of this process; one per process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    open: Mutex<Open>,
    watcher: Arc<Watcher>,
}

#[derive(Debug, Default)]
struct Open {
    known: HashMap<(PathBuf, FolderName), Weak<Mailbox>>,
    /// Used last comes last.
    idle: VecDeque<Arc<Mailbox>>,
    /// Size of `known` at which dead entries are swept out.
    sweep: usize,
}

impl Store {
    /// An empty registry with its change watcher (one thread, one inotify instance).
    pub fn new(options: Options) -> Result<Self, Error> {
        let inner = Inner { options, open: Mutex::default(), watcher: Watcher::start()? };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The shared mailbox of a folder; read from disk when no session has it. `NoSuchFolder` when missing.
    pub fn mailbox(&self, root: &Path, folder: &FolderName) -> Result<Arc<Mailbox>, Error> {
        let mut result = Err(Error::NoSuchFolder(folder.to_string()));
        for _ in 0..TRIES {
            if !root.join(folder.dir()).join("cur").is_dir() {
                return Err(Error::NoSuchFolder(folder.to_string()));
            }
            let mailbox = self.find(root, folder);
            result = match mailbox.load() {
                Ok(()) => Ok(mailbox),
                Err(e) => Err(e),
            };
            match &result {
                Ok(mailbox) => {
                    self.keep(mailbox);
                    break;
                }
                // Deleted and made anew, or renumbered: the next object sees the new folder.
                Err(Error::Gone(_)) => {}
                Err(_) => break,
            }
        }
        result
    }

    fn find(&self, root: &Path, folder: &FolderName) -> Arc<Mailbox> {
        let mut open = guard(&self.inner.open);
        let key = (root.to_owned(), folder.clone());
        if let Some(mailbox) = open.known.get(&key).and_then(Weak::upgrade)
            && !mailbox.is_gone()
        {
            return mailbox;
        }
        if open.known.len() >= open.sweep {
            open.known.retain(|_, mailbox| mailbox.strong_count() > 0);
            open.sweep = (open.known.len() * 2).max(64);
        }
        let mailbox = Mailbox::new(root, folder, self.inner.options.lock_timeout, self.inner.watcher.clone());
        open.known.insert(key, Arc::downgrade(&mailbox));
        mailbox
    }

    /// Keeps a mailbox in memory and lets go of those used longest ago.
    fn keep(&self, mailbox: &Arc<Mailbox>) {
        let mut dropped = Vec::new();
        let mut open = guard(&self.inner.open);
        if open.idle.back().is_some_and(|last| Arc::ptr_eq(last, mailbox)) {
            return;
        }
        open.idle.retain(|other| !Arc::ptr_eq(other, mailbox) && !other.is_gone());
        open.idle.push_back(mailbox.clone());
        let mut weight: usize = open.idle.iter().map(|m| m.weight()).sum();
        while weight > self.inner.options.idle_messages || open.idle.len() > IDLE_MAILBOXES {
            let Some(oldest) = open.idle.pop_front() else { break };
            weight = weight.saturating_sub(oldest.weight());
            dropped.push(oldest);
        }
        drop(open);
    }
}
