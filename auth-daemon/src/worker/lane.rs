//! Fair shares of the pool.
//!
//! Purpose: one PAM service that hangs must not take all workers, one address that guesses must not fill the queue.
//! Trust:   clients choose service names and how many questions they ask.
//! Never:   wait in a full queue, or take permits in two orders.
//! Lanes:   questions of one kind (a PAM service, shadow, account look-ups …) share a lane. A lane may hold all workers
//!          but a quarter, and after a look-up that hung or crashed only a quarter, until one is answered again.
//!          Peers under suspicion share half of the workers, whatever they ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Questions that may wait for each worker.
const WAITING_PER_WORKER: usize = 64;
/// How long a lane is distrusted after a look-up that hung or crashed.
const TROUBLE: Duration = Duration::from_secs(60);
/// Lanes that are kept though nobody uses them.
const LANES: usize = 64;

/// All shares of one pool.
pub(super) struct Lanes {
    count: usize,
    places: Arc<Semaphore>,
    suspects: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_suspects: Arc<AtomicUsize>,
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

struct Lane {
    most: Arc<Semaphore>,
    few: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    trouble: Mutex<Option<Instant>>,
}

impl Lane {
    fn new(count: usize) -> Lane {
        let quarter = (count / 4).max(1);
        Lane {
            most: Arc::new(Semaphore::new(count.saturating_sub(quarter).max(1))),
            few: Arc::new(Semaphore::new(quarter)),
            waiting: Arc::default(),
            trouble: Mutex::default(),
        }
    }

    fn is_troubled(&self, now: Instant) -> bool {
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.is_some_and(|since| now.saturating_duration_since(since) < TROUBLE)
    }
}

/// The right to use one worker. Goes back when dropped.
pub(super) struct Place {
    lane: Arc<Lane>,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Place {
    /// Tells how the look-up went: `false` after one that hung or crashed.
    pub(super) fn went(&self, well: bool, now: Instant) {
        *self.lane.trouble.lock().unwrap_or_else(PoisonError::into_inner) = (!well).then_some(now);
    }
}

impl Lanes {
    /// Shares of a pool of `count` workers.
    pub(super) fn new(count: usize) -> Lanes {
        Lanes {
            count,
            places: Arc::new(Semaphore::new(count)),
            suspects: Arc::new(Semaphore::new(count.div_ceil(2))),
            waiting: Arc::default(),
            waiting_suspects: Arc::default(),
            lanes: Mutex::default(),
        }
    }

    /// Waits for a worker. A queue that is full is an error at once.
    pub(super) async fn place(&self, kind: &str, suspect: bool) -> Result<Place, String> {
        let lane = self.lane(kind);
        let limit = self.count * WAITING_PER_WORKER;
        let mut waiting = vec![
            Waiting::enter(&self.waiting, limit)?,
            // The rest of the queue is for questions of other kinds.
            Waiting::enter(&lane.waiting, limit - limit / 4)?,
        ];
        let mut wanted = Vec::new();
        if suspect {
            waiting.push(Waiting::enter(&self.waiting_suspects, limit / 2)?);
            wanted.push(&self.suspects);
        }
        if lane.is_troubled(Instant::now()) {
            wanted.push(&lane.few);
        }
        // Always in this order, so that no two wait for each other.
        wanted.extend([&lane.most, &self.places]);
        let mut permits = Vec::new();
        for semaphore in wanted {
            let permit = Arc::clone(semaphore).acquire_owned().await;
            permits.push(permit.map_err(|_| "the worker pool is closed".to_owned())?);
        }
        drop(waiting);
        Ok(Place { lane, _permits: permits })
    }

    /// Workers in use, and questions that wait for one.
    pub(super) fn stats(&self) -> (u64, u64) {
        let busy = self.count.saturating_sub(self.places.available_permits());
        (busy as u64, self.waiting.load(Ordering::Relaxed) as u64)
    }

    fn lane(&self, kind: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(kind) {
            return Arc::clone(lane);
        }
        if lanes.len() >= LANES {
            // Clients of a mux may name many services.
            let now = Instant::now();
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.is_troubled(now));
        }
        let lane = Arc::new(Lane::new(self.count));
        lanes.insert(kind.to_owned(), Arc::clone(&lane));
        lane
    }
}

/// One that waits.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn enter(count: &Arc<AtomicUsize>, limit: usize) -> Result<Waiting, String> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(count));
        if before >= limit {
            return Err("too many look-ups are waiting for a worker".to_owned());
        }
        Ok(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    fn fill(lanes: &Lanes, kind: &str, suspect: bool) -> Vec<Place> {
        std::iter::from_fn(|| now_or_never(lanes.place(kind, suspect))).map(Result::unwrap).collect()
    }

    #[test]
    fn one_kind_leaves_room_for_others() {
        // Workers; what one lane gets; what it gets after trouble; what suspects get.
        for (count, most, few, suspects) in [(1, 1, 1, 1), (2, 1, 1, 1), (4, 3, 1, 2), (8, 6, 2, 4)] {
            let lanes = Lanes::new(count);
            let places = fill(&lanes, "pam a", false);
            assert_eq!(places.len(), most, "{count}");
            assert_eq!(fill(&lanes, "pam b", false).len(), count - most);
            places[0].went(false, Instant::now());
            drop(places);
            let places = fill(&lanes, "pam a", false);
            assert_eq!(places.len(), few, "{count}");
            places[0].went(true, Instant::now());
            drop(places);
            assert_eq!(fill(&lanes, "pam a", false).len(), most);
            assert_eq!(fill(&lanes, "pam a", true).len(), suspects.min(most));
        }
    }

    #[test]
    fn trouble_is_forgotten_after_a_while() {
        let lanes = Lanes::new(8);
        let now = Instant::now();
        fill(&lanes, "a", false)[0].went(false, now);
        assert!(lanes.lane("a").is_troubled(now));
        assert!(!lanes.lane("a").is_troubled(now + TROUBLE));
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once_and_keeps_room() {
        let lanes = Arc::new(Lanes::new(1));
        let held = lanes.place("a", false).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let mut start = |kind: &'static str, suspect| {
            let lanes = Arc::clone(&lanes);
            tasks.spawn(async move { lanes.place(kind, suspect).await.map(drop) });
        };
        (0..100).for_each(|_| start("a", true));
        while lanes.waiting_suspects.load(Ordering::Relaxed) < 32 {
            tokio::task::yield_now().await;
        }
        // Suspects have half of the queue, one kind three quarters of it.
        tokio::task::yield_now().await;
        assert_eq!(lanes.waiting.load(Ordering::Relaxed), 32);
        assert!(now_or_never(lanes.place("a", true)).unwrap().is_err());
        let others: Vec<_> = (0..16).map(|_| Box::pin(lanes.place("a", false))).collect();
        let mut others = others;
        for other in &mut others {
            assert!(now_or_never(other.as_mut()).is_none());
        }
        assert!(now_or_never(lanes.place("a", false)).unwrap().is_err());
        assert!(now_or_never(lanes.place("b", false)).is_none());
        drop((held, others));
        let results = tasks.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 32);
    }
}
