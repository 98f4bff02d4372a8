//! Threads for work on files.
//!
//! Store calls take microseconds, unless they wait for a lock that another program holds. So a few threads
//! do all the work, and more are started only when work has waited for a while; those go again when idle.
//! (The runtime's own pool starts a thread whenever none happens to be idle, and soon has hundreds.)
//!
//! Trust: the work is ours; how long it takes is up to disks, and to programs that hold locks.
//! Never: run on the runtime's threads; let work that panics take a thread along.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Most threads, however many wait for locks.
const MOST: usize = 128;
/// Work that waits longer than this gets another thread.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long a thread beyond the usual number stays idle.
const LINGER: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Cheap to clone; threads end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Files(Arc<Handle>);

struct Handle(Arc<Pool>);

struct Pool {
    /// Threads kept.
    usual: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Files {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let pool = Pool { usual: (2 * cores).clamp(4, 32), state: Mutex::default(), work: Condvar::new() };
        Self(Arc::new(Handle(Arc::new(pool))))
    }

    /// Runs the work on a thread. `None` when it panicked, or no thread can be had.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let job: Job = Box::new(move || {
            begins.store(true, Ordering::Relaxed);
            let _ = done.send(work());
        });
        let pool = &self.0.0;
        pool.submit(job);
        let mut result = pin!(result);
        loop {
            match tokio::time::timeout(PATIENCE, &mut result).await {
                Ok(finished) => return finished.ok(),
                // It runs; more threads would not make it faster.
                Err(_) if begun.load(Ordering::Relaxed) => return result.await.ok(),
                // Still in the queue. An idle thread may be waking up for it, so ask again until it begins.
                Err(_) => pool.help(),
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        state.queue.push_back(job);
        if state.queue.len() > state.idle && state.threads < self.usual {
            self.spawn(&mut state);
        }
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.work.notify_one();
        }
    }

    /// Work has waited: another thread, if that can help.
    fn help(self: &Arc<Self>) {
        let mut state = self.lock();
        if !state.queue.is_empty() && state.idle == 0 && state.threads < MOST {
            self.spawn(&mut state);
        }
    }

    fn spawn(self: &Arc<Self>, state: &mut State) {
        let pool = Arc::clone(self);
        let started = std::thread::Builder::new().name("files".to_owned()).spawn(move || pool.serve());
        match started {
            Ok(_) => state.threads += 1,
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread for file work");
                if state.threads == 0 {
                    // Nobody would ever take them: dropping tells those who wait.
                    state.queue.clear();
                }
            }
        }
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                // Whoever waits for a job that panicked learns of it by the dropped channel.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let extra = state.threads > self.usual;
            let timed_out;
            (state, timed_out) = if extra {
                let (state, waited) =
                    self.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
                (state, waited.timed_out())
            } else {
                (self.work.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            };
            state.idle -= 1;
            if timed_out && state.threads > self.usual && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quick_work_needs_few_threads_and_slow_work_gets_more() {
        let files = Files::new();
        for n in 0..1000 {
            assert_eq!(files.run(move || n).await, Some(n));
        }
        let usual = files.0.0.usual;
        assert!(files.0.0.lock().threads <= usual);
        // More jobs than usual threads, each waiting for all the others: only extra threads can end this.
        let barrier = Arc::new(std::sync::Barrier::new(usual + 3));
        let waiting: Vec<_> = (0..usual + 3)
            .map(|_| {
                let (files, barrier) = (files.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    files.run(move || barrier.wait().is_leader()).await;
                })
            })
            .collect();
        for task in waiting {
            task.await.unwrap();
        }
        assert!(files.0.0.lock().threads > usual);
    }

    #[tokio::test]
    async fn a_panic_is_told_and_spoils_nothing() {
        let files = Files::new();
        assert_eq!(files.run(|| panic!("on purpose")).await, None::<()>);
        assert_eq!(files.run(|| 7).await, Some(7));
    }
}
