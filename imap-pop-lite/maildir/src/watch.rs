//! Learning of changes other programs make: one thread and one inotify instance for all mailboxes.
//!
//! An event only wakes the sessions; what changed is found out by the sync that follows. Where no watch can be had
//! (limits of the system, no inotify), the sessions are woken every two seconds instead.
//!
//! Trust: other programs cause events; an event is a hint and carries no fact.
//! Never: hold the lock while a mailbox is woken, or keep a mailbox alive.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::error::{Context, Error};
use crate::mailbox::{Mailbox, guard};

/// How often unwatched mailboxes look for themselves.
const POLL: Duration = Duration::from_secs(2);

/// Handle on the thread; it ends when the last one is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    /// Wakes the thread; closed, it ends it.
    wake: PipeWriter,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watches: Option<Watches>,
    /// Who is told about which directory; true for `new`.
    watched: HashMap<WatchDescriptor, Vec<(Weak<Mailbox>, bool)>>,
    unwatched: Vec<Weak<Mailbox>>,
    polled: Option<Instant>,
    timers: Vec<(Instant, Weak<Mailbox>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} watches, {} without, {} timers",
            self.watched.len(),
            self.unwatched.len(),
            self.timers.len()
        )
    }
}

/// A mailbox's place with the watcher; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Weak<Shared>,
    mailbox: Weak<Mailbox>,
    descriptors: Vec<WatchDescriptor>,
}

impl Watcher {
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        let path = Path::new("inotify");
        let inotify = match Inotify::init() {
            Ok(inotify) => Some(inotify),
            Err(e) => {
                tracing::warn!(error = %e, "no inotify: changes of other programs are noticed every two seconds");
                None
            }
        };
        let shared = Arc::new(Shared::default());
        guard(&shared.state).watches = inotify.as_ref().map(Inotify::watches);
        let (woken, wake) = io::pipe().ctx("make a pipe for", path)?;
        let thread = shared.clone();
        std::thread::Builder::new()
            .name("maildir-watch".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || thread.run(inotify, woken))
            .ctx("start a thread for", path)?;
        Ok(Arc::new(Self { shared, wake }))
    }

    /// Has a mailbox told about changes in its directories.
    pub(crate) fn watch(&self, mailbox: &Arc<Mailbox>, dir: &Path) -> Watch {
        let this = Arc::downgrade(mailbox);
        let mut state = guard(&self.shared.state);
        let mut descriptors = Vec::new();
        let arriving = WatchMask::CREATE | WatchMask::MOVED_TO;
        let gone = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let changing = arriving | WatchMask::MOVED_FROM | WatchMask::DELETE;
        let mut watches = state.watches.clone();
        for (sub, mask) in [("new", arriving | gone), ("cur", changing | gone), ("", gone)] {
            match watches.as_mut().map(|w| w.add(dir.join(sub), mask)) {
                Some(Ok(descriptor)) => {
                    state.watched.entry(descriptor.clone()).or_default().push((this.clone(), sub == "new"));
                    descriptors.push(descriptor);
                }
                Some(Err(e)) => tracing::debug!(dir = %dir.display(), error = %e, "cannot watch"),
                None => {}
            }
        }
        if descriptors.len() < 3 {
            state.unwatched.push(this.clone());
            drop(state);
            self.wake();
        }
        Watch { shared: Arc::downgrade(&self.shared), mailbox: this, descriptors }
    }

    /// Wakes a mailbox's sessions at that time.
    pub(crate) fn recheck(&self, mailbox: Weak<Mailbox>, at: Instant) {
        guard(&self.shared.state).timers.push((at, mailbox));
        self.wake();
    }

    fn wake(&self) {
        // A full pipe wakes just as well, but is never full: the thread reads all of it.
        if let Err(e) = (&self.wake).write_all(b"x") {
            tracing::warn!(error = %e, "the watcher has ended");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = guard(&shared.state);
        let mut watches = state.watches.clone();
        for descriptor in self.descriptors.drain(..) {
            let Some(list) = state.watched.get_mut(&descriptor) else { continue };
            list.retain(|(other, _)| !other.ptr_eq(&self.mailbox));
            if list.is_empty() {
                state.watched.remove(&descriptor);
                // Fails when the directory is gone, and the watch with it.
                let _ = watches.as_mut().map(|w| w.remove(descriptor));
            }
        }
        state.unwatched.retain(|other| !other.ptr_eq(&self.mailbox));
    }
}

impl Shared {
    fn run(&self, mut inotify: Option<Inotify>, mut woken: PipeReader) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let timeout = self.due();
            let ready = wait(inotify.as_ref(), &woken, timeout);
            let Ok((events, wake)) = ready else {
                tracing::error!("the watcher cannot wait for events and ends");
                return;
            };
            if wake {
                match woken.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
            if events && let Some(inotify) = inotify.as_mut() {
                self.read_events(inotify, &mut buffer);
            }
        }
    }

    /// Runs what is due; returns when the next thing is.
    fn due(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut polled = Vec::new();
        {
            let mut state = guard(&self.state);
            state.timers.retain(|(at, mailbox)| {
                if *at <= now {
                    due.push(mailbox.clone());
                }
                *at > now
            });
            if state.polled.is_none_or(|last| now.duration_since(last) >= POLL) {
                polled.clone_from(&state.unwatched);
                state.polled = Some(now);
            }
        }
        due.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.recheck_due());
        polled.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.changed_on_disk(true));
        // A timer set by those just woken counts too.
        let state = guard(&self.state);
        let poll = (!state.unwatched.is_empty()).then(|| state.polled.map_or(now, |last| last + POLL));
        let next = state.timers.iter().map(|(at, _)| *at).chain(poll).min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn read_events(&self, inotify: &mut Inotify, buffer: &mut [u8]) {
        let mut told: Vec<(Weak<Mailbox>, bool)> = Vec::new();
        match inotify.read_events(buffer) {
            Ok(events) => {
                let mut state = guard(&self.state);
                for event in events {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        let all = state.watched.values().flatten();
                        told = all.map(|(mailbox, _)| (mailbox.clone(), true)).collect();
                    } else if let Some(list) = state.watched.get(&event.wd) {
                        for (mailbox, new) in list {
                            match told.iter_mut().find(|(other, _)| other.ptr_eq(mailbox)) {
                                Some((_, any_new)) => *any_new |= *new,
                                None => told.push((mailbox.clone(), *new)),
                            }
                        }
                    }
                    if event.mask.contains(EventMask::IGNORED) {
                        state.watched.remove(&event.wd);
                    }
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => tracing::warn!(error = %e, "cannot read inotify events"),
        }
        for (mailbox, new) in told {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.changed_on_disk(new);
            }
        }
    }
}

/// (inotify has events, the pipe was written to or closed)
fn wait(
    inotify: Option<&Inotify>,
    woken: &PipeReader,
    timeout: Option<Duration>,
) -> io::Result<(bool, bool)> {
    let timeout = match timeout {
        // Rounded up, or the last millisecond would be spent spinning.
        Some(timeout) => {
            PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
    fds.extend(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
    match nix::poll::poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut ready = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
    let wake = ready.next().unwrap_or(false);
    Ok((ready.next().unwrap_or(false), wake))
}
