//! Threads for expensive password hashes.
//!
//! Purpose: as many hashes at a time as there are cores, within a memory budget; the sockets are served elsewhere.
//! Sharing: the same question asked again while it waits or runs gets the same answer.
//! Order:   in turns by who asks (see [`turns`]), so that two hundred guesses of one address delay nobody else's login;
//!          a hash that does not fit into the free memory is overtaken by smaller ones, but only so often; peers under
//!          suspicion get every eighth turn while others wait.
//! Trust:   who asks is a stranger until the hash says otherwise; costs are capped before they come here.
//! Never:   queue without bound, compute for clients that are all gone, keep scratch memory while idle.

mod turns;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boot::figures::Durations;
use creds::{Cost, Scratch};
use tokio::sync::oneshot;

use crate::cache::Key;
use turns::Turns;
pub(crate) use turns::Whom;

/// A thread with nothing to do gives its memory back after this time.
const IDLE: Duration = Duration::from_secs(5);
/// How often a large hash may be overtaken.
const OVERTAKEN: u32 = 32;
/// One turn in so many goes to suspects while others wait.
const SUSPECT_TURN: u32 = 8;

/// Limits of the pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Threads.
    pub(crate) threads: usize,
    /// Hashes that may wait.
    pub(crate) queue: usize,
    /// Bytes all running hashes may take.
    pub(crate) memory: u64,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many password hashes are waiting")]
pub(crate) struct Busy;

/// Numbers of the pool.
#[derive(Debug)]
pub(crate) struct HashStats {
    /// Threads that run.
    pub(crate) threads: u64,
    /// Hashes being computed.
    pub(crate) running: u64,
    /// Hashes that wait.
    pub(crate) waiting: u64,
    /// Bytes that those being computed take.
    pub(crate) memory: u64,
    /// Hashes that found the queue full.
    pub(crate) refused: u64,
    /// How long hashes took.
    pub(crate) durations: Arc<Durations>,
}

type Work<R> = Box<dyn FnOnce(&mut Scratch) -> R + Send>;

struct Job<R> {
    key: Key,
    cost: Cost,
    work: Work<R>,
    whom: Whom,
    overtaken: u32,
}

struct State<R> {
    limits: Limits,
    running: usize,
    /// In the order they came.
    queue: Vec<Job<R>>,
    suspects: Vec<Job<R>>,
    turns: Turns,
    /// Who waits for the answer to a question that is queued or running.
    flights: HashMap<Key, Vec<oneshot::Sender<R>>>,
    memory: u64,
    threads: usize,
    idle: usize,
    turn: u32,
    closed: bool,
}

/// The pool; clones share it.
pub(crate) struct HashPool<R: Clone + Send + 'static>(Arc<Shared<R>>);

struct Shared<R> {
    state: Mutex<State<R>>,
    wake: Condvar,
    /// How long hashes took.
    durations: Arc<Durations>,
    /// Hashes that found the queue full.
    refused: AtomicU64,
}

impl<R: Clone + Send + 'static> HashPool<R> {
    /// A pool without threads; they start when work comes.
    pub(crate) fn new(limits: Limits) -> HashPool<R> {
        let state = State {
            limits,
            running: 0,
            queue: Vec::new(),
            suspects: Vec::new(),
            turns: Turns::default(),
            flights: HashMap::new(),
            memory: 0,
            threads: 0,
            idle: 0,
            turn: 0,
            closed: false,
        };
        let (durations, refused) = Default::default();
        HashPool(Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), durations, refused }))
    }

    /// New limits after a reload; threads too many end when they have nothing to do.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.0.lock().limits = limits;
        self.0.wake.notify_all();
    }

    /// Asks a question. The receiver fails only when the pool shuts down.
    pub(crate) fn submit(
        &self,
        key: Key,
        cost: Cost,
        whom: Whom,
        suspect: bool,
        work: impl FnOnce(&mut Scratch) -> R + Send + 'static,
    ) -> Result<oneshot::Receiver<R>, Busy> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.0.lock();
        if let Some(waiting) = state.flights.get_mut(&key) {
            waiting.push(answer);
            return Ok(receiver);
        }
        let limit = state.limits.queue;
        // Suspects may fill a quarter of the queue, one address half of it; the rest stays free for others.
        let neighbours = state.queue.iter().filter(|job| job.whom.is_neighbour(&whom)).count();
        if state.queue.len() + state.suspects.len() >= limit
            || (suspect && state.suspects.len() >= limit.div_ceil(4))
            || (!suspect && neighbours >= limit.div_ceil(2))
        {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Busy);
        }
        state.flights.insert(key, vec![answer]);
        let job = Job { key, cost, work: Box::new(work), whom, overtaken: 0 };
        if suspect {
            state.suspects.push(job);
        } else {
            state.queue.push(job);
        }
        if state.idle == 0 && state.threads < state.limits.threads.max(1) {
            let shared = Arc::clone(&self.0);
            let started = std::thread::Builder::new().name("hash".into()).spawn(move || shared.run());
            match started {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::error!(%error, "cannot start a thread for password hashes");
                    state.flights.clear();
                    state.queue.clear();
                    state.suspects.clear();
                    return Err(Busy);
                }
                Err(error) => tracing::warn!(%error, "cannot start another thread for password hashes"),
            }
        }
        drop(state);
        self.0.wake.notify_one();
        Ok(receiver)
    }

    /// The numbers.
    pub(crate) fn stats(&self) -> HashStats {
        let state = self.0.lock();
        HashStats {
            threads: state.threads as u64,
            running: state.running as u64,
            waiting: (state.queue.len() + state.suspects.len()) as u64,
            memory: state.memory,
            refused: self.0.refused.load(Ordering::Relaxed),
            durations: Arc::clone(&self.0.durations),
        }
    }

    /// How many hashes wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let state = self.0.lock();
        state.queue.len() + state.suspects.len()
    }
}

impl<R: Clone + Send + 'static> Drop for HashPool<R> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_all();
    }
}

impl<R: Clone + Send + 'static> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // Work runs outside the lock; nothing inside it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn run(&self) {
        let mut scratch = Scratch::default();
        let mut state = self.lock();
        while !state.closed && state.threads <= state.limits.threads.max(1) {
            let Some(job) = state.pick() else {
                state.idle += 1;
                let (again, timeout) =
                    self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = again;
                state.idle -= 1;
                if timeout.timed_out() {
                    scratch = Scratch::default();
                }
                continue;
            };
            state.memory += job.cost.memory;
            state.running += 1;
            drop(state);
            let (key, memory) = (job.key, job.cost.memory);
            // A panic must not take the thread, and with it a share of all cores, away.
            let began = Instant::now();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (job.work)(&mut scratch)));
            self.durations.observe(began.elapsed());
            state = self.lock();
            state.running -= 1;
            state.memory = state.memory.saturating_sub(memory);
            let waiting = state.flights.remove(&key).unwrap_or_default();
            if let Ok(result) = result {
                for answer in waiting {
                    let _ = answer.send(result.clone());
                }
            } else {
                tracing::error!("a password hash panicked; its login gets a temporary failure");
                scratch = Scratch::default();
            }
            // Memory came free: somebody else's hash may fit now.
            self.wake.notify_one();
        }
        state.threads -= 1;
    }
}

impl<R> State<R> {
    /// The next hash to compute.
    fn pick(&mut self) -> Option<Job<R>> {
        self.turn = self.turn.wrapping_add(1);
        let free = if self.memory == 0 { u64::MAX } else { self.limits.memory.saturating_sub(self.memory) };
        let suspects_first = self.turn.is_multiple_of(SUSPECT_TURN);
        let (flights, turns) = (&mut self.flights, &self.turns);
        let mut from = |queue| pick_from(queue, flights, turns, free);
        let job = if suspects_first {
            from(&mut self.suspects).or_else(|| from(&mut self.queue))
        } else {
            from(&mut self.queue).or_else(|| from(&mut self.suspects))
        }?;
        self.turns.serve(&job.whom);
        Some(job)
    }
}

fn pick_from<R>(
    queue: &mut Vec<Job<R>>,
    flights: &mut HashMap<Key, Vec<oneshot::Sender<R>>>,
    turns: &Turns,
    free: u64,
) -> Option<Job<R>> {
    let first = |queue: &[Job<R>], most: u64| {
        let fitting = queue.iter().enumerate().filter(|(_, job)| job.cost.memory <= most);
        fitting.min_by_key(|(_, job)| turns.rank(&job.whom)).map(|(at, _)| at)
    };
    let mut forget_if_unwanted = |queue: &mut Vec<Job<R>>, at: usize| {
        let key = queue.get(at).map(|job| job.key);
        let waiting = key.and_then(|key| flights.get(&key));
        if waiting.is_some_and(|waiting| waiting.iter().any(|answer| !answer.is_closed())) {
            return false;
        }
        if let Some(key) = key {
            flights.remove(&key);
            queue.remove(at);
        }
        true
    };
    loop {
        let next = first(queue, u64::MAX)?;
        if forget_if_unwanted(queue, next) {
            continue;
        }
        let job = queue.get(next)?;
        if job.cost.memory <= free {
            return Some(queue.remove(next));
        }
        if job.overtaken >= OVERTAKEN {
            return None;
        }
        let smaller = first(queue, free)?;
        if forget_if_unwanted(queue, smaller) {
            continue;
        }
        if let Some(job) = queue.get_mut(next) {
            job.overtaken += 1;
        }
        return Some(queue.remove(smaller));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(threads: usize, queue: usize, memory: u64) -> Limits {
        Limits { threads, queue, memory }
    }

    fn key(n: u8) -> Key {
        [n; 32]
    }

    fn cost(memory: u64) -> Cost {
        Cost { memory, micros: 1000 }
    }

    fn whom(n: u8) -> Whom {
        Whom::new(u32::from(n), &crate::penalty::Peer::Uid(u32::from(n)), "alice")
    }

    /// A hash that waits until it is let go.
    fn gate() -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
        mpsc::channel()
    }

    #[test]
    fn the_same_question_is_computed_once() {
        let pool = HashPool::<usize>::new(limits(1, 10, MIB));
        let runs = Arc::new(AtomicUsize::new(0));
        let (go, wait) = gate();
        let counted = Arc::clone(&runs);
        let mut receivers = vec![
            pool.submit(key(1), cost(0), whom(0), false, move |_| {
                wait.recv().unwrap();
                counted.fetch_add(1, Ordering::SeqCst) + 1
            })
            .unwrap(),
        ];
        for _ in 0..50 {
            receivers.push(pool.submit(key(1), cost(0), whom(0), false, |_| panic!()).unwrap());
        }
        go.send(()).unwrap();
        for receiver in receivers {
            assert_eq!(receiver.blocking_recv().unwrap(), 1);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_queue_is_bounded_and_suspects_get_a_quarter() {
        let pool = HashPool::<()>::new(limits(1, 8, MIB));
        let (go, wait) = gate();
        let (started, running) = gate();
        let _first = pool
            .submit(key(0), cost(0), whom(0), false, move |_| {
                started.send(()).unwrap();
                let _ = wait.recv();
            })
            .unwrap();
        running.recv().unwrap();
        let mut held = Vec::new();
        for n in 1..=2 {
            held.push(pool.submit(key(n), cost(0), whom(0), true, |_| ()).unwrap());
        }
        assert_eq!(pool.submit(key(3), cost(0), whom(0), true, |_| ()).unwrap_err(), Busy);
        for n in 4..=9 {
            held.push(pool.submit(key(n), cost(0), whom(n % 2), false, |_| ()).unwrap());
        }
        assert_eq!(pool.submit(key(10), cost(0), whom(9), false, |_| ()).unwrap_err(), Busy);
        go.send(()).unwrap();
        for receiver in held {
            receiver.blocking_recv().unwrap();
        }
    }

    #[test]
    fn memory_stays_within_the_budget_and_small_hashes_overtake() {
        let pool = HashPool::<()>::new(limits(4, 500, 100 * MIB));
        let (used, peak) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let receivers: Vec<_> = (0..120_u8)
            .map(|n| {
                let memory = if n % 3 == 0 { MIB } else { 64 * MIB };
                let (used, peak) = (Arc::clone(&used), Arc::clone(&peak));
                pool.submit(key(n), cost(memory), whom(n), false, move |_| {
                    let now = used.fetch_add(memory, Ordering::SeqCst) + memory;
                    peak.fetch_max(now, Ordering::SeqCst);
                    std::thread::yield_now();
                    used.fetch_sub(memory, Ordering::SeqCst);
                })
                .unwrap()
            })
            .collect();
        for receiver in receivers {
            receiver.blocking_recv().unwrap();
        }
        assert!(peak.load(Ordering::SeqCst) <= 100 * MIB);
    }

    #[test]
    fn one_address_fills_half_of_the_queue_and_delays_others_by_one_turn() {
        let pool = HashPool::<()>::new(limits(1, 200, MIB));
        let done = Arc::new(Mutex::new(Vec::new()));
        let (go, wait) = gate();
        let (started, running) = gate();
        let mut held = vec![
            pool.submit(key(0), cost(0), whom(1), false, move |_| {
                started.send(()).unwrap();
                let _ = wait.recv();
            })
            .unwrap(),
        ];
        running.recv().unwrap();
        let note = |n: u8| {
            let done = Arc::clone(&done);
            move |_: &mut Scratch| done.lock().unwrap().push(n)
        };
        for n in 1..=100 {
            held.push(pool.submit(key(n), cost(0), whom(1), false, note(n)).unwrap());
        }
        assert_eq!(pool.submit(key(101), cost(0), whom(1), false, |_| ()).unwrap_err(), Busy);
        held.push(pool.submit(key(201), cost(0), whom(2), false, note(201)).unwrap());
        go.send(()).unwrap();
        for receiver in held {
            receiver.blocking_recv().unwrap();
        }
        assert_eq!(done.lock().unwrap().iter().position(|n| *n == 201), Some(0));
    }

    #[test]
    fn nobody_waits_nobody_computes() {
        let pool = HashPool::<()>::new(limits(1, 10, MIB));
        let (go, wait) = gate();
        let first = pool.submit(key(0), cost(0), whom(0), false, move |_| wait.recv().unwrap()).unwrap();
        drop(pool.submit(key(1), cost(0), whom(0), false, |_| panic!("computed for nobody")).unwrap());
        let last = pool.submit(key(2), cost(0), whom(0), false, |_| ()).unwrap();
        go.send(()).unwrap();
        first.blocking_recv().unwrap();
        last.blocking_recv().unwrap();
        assert_eq!(pool.waiting(), 0);
    }

    #[test]
    fn a_panic_costs_only_its_own_answer() {
        let pool = HashPool::<()>::new(limits(1, 10, MIB));
        let bad = pool.submit(key(0), cost(0), whom(0), false, |_| panic!("on purpose")).unwrap();
        assert!(bad.blocking_recv().is_err());
        pool.submit(key(1), cost(0), whom(0), false, |_| ()).unwrap().blocking_recv().unwrap();
    }
}
