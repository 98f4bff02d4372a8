//! Cache of verdicts.
//!
//! Purpose: do not compute an expensive hash, or ask a worker, twice for the same question.
//! Keys:    an HMAC under a key of this process over *every* input of the verdict, each with its length. A stored
//!          string is one of them, so a changed password misses by construction; two users with the same password
//!          and hash scheme have different stored strings, and the user name is an input as well.
//! Size:    by memory, in two generations: what is used stays, the older generation goes as a whole.
//! Trust:   inputs are strangers' words: but for the user's name they are kept as a keyed hash only, and memory is
//!          bounded.
//! Never:   hold a password or a stored string, or answer for an input that is not part of the key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Memory of an entry beside its payload and user name, tables included.
const OVERHEAD: usize = 160;
/// How long after its end an entry may still stand in for a backend that is down.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The key of a question.
pub(crate) type Key = [u8; 32];

/// Makes keys.
pub(crate) struct Keyer([u8; 32]);

impl Keyer {
    /// A keyer with a key of this process.
    pub(crate) fn new(key: [u8; 32]) -> Keyer {
        Keyer(key)
    }

    /// The key of all these inputs, in this order.
    #[allow(clippy::expect_used)]
    pub(crate) fn key(&self, domain: &str, inputs: &[&[u8]]) -> Key {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("RFC 2104 §2: keys of any length");
        for input in std::iter::once(&domain.as_bytes()).chain(inputs) {
            mac.update(&(input.len() as u64).to_le_bytes());
            mac.update(input);
        }
        let key = mac.finalize().into_bytes().into();
        creds::wipe_stack();
        key
    }
}

impl std::fmt::Debug for Keyer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyer(…)")
    }
}

/// A cached verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The password is right; a driver that renames users says the name.
    Right(Option<Box<str>>),
    /// It is not, or there is no such user.
    Wrong,
}

#[derive(Debug, Clone)]
struct Entry {
    verdict: Verdict,
    user: Box<str>,
    until: Instant,
}

impl Entry {
    fn size(&self) -> usize {
        let payload = match &self.verdict {
            Verdict::Right(Some(name)) => name.len(),
            _ => 0,
        };
        OVERHEAD + payload + self.user.len()
    }
}

/// Limits of the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) size: usize,
    /// Life of a success.
    pub(crate) ttl: Duration,
    /// Life of a refusal.
    pub(crate) negative_ttl: Duration,
}

/// Numbers for `auth cache stats` and `CACHE-STATUS`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) positive: u64,
    pub(crate) negative: u64,
    pub(crate) positive_bytes: u64,
    pub(crate) negative_bytes: u64,
    pub(crate) max_bytes: u64,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache(Mutex<State>);

#[derive(Debug)]
struct State {
    limits: Limits,
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
    young_bytes: usize,
    hits: u64,
    misses: u64,
}

impl Cache {
    /// An empty cache.
    pub(crate) fn new(limits: Limits) -> Cache {
        Cache(Mutex::new(State {
            limits,
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            hits: 0,
            misses: 0,
        }))
    }

    /// New limits after a reload. Entries stay: their keys hold everything their verdict depended on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        let mut state = self.lock();
        state.limits = limits;
        if limits.size == 0 {
            state.clear();
        }
    }

    /// The verdict for this question, if it is fresh.
    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Verdict> {
        let mut state = self.lock();
        let found = state.find(key).filter(|entry| entry.until > now).map(|entry| entry.verdict.clone());
        match found {
            Some(_) => state.hits += 1,
            None => state.misses += 1,
        }
        found
    }

    /// The last verdict for this question, however old: for when the backend cannot be asked.
    pub(crate) fn find_stale(&self, key: &Key, now: Instant) -> Option<Verdict> {
        let mut state = self.lock();
        state.find(key).filter(|entry| entry.until + STALE > now).map(|entry| entry.verdict.clone())
    }

    /// Remembers a verdict.
    pub(crate) fn store(&self, key: Key, user: &str, verdict: Verdict, now: Instant) {
        let mut state = self.lock();
        let life = match verdict {
            Verdict::Right(_) => state.limits.ttl,
            Verdict::Wrong => state.limits.negative_ttl,
        };
        if life.is_zero() || state.limits.size == 0 {
            return;
        }
        let entry = Entry { verdict, user: user.into(), until: now + life };
        state.old.remove(&key);
        state.insert(key, entry);
    }

    /// Forgets all, or the verdicts on these users. Returns how many went.
    pub(crate) fn flush(&self, users: &[String]) -> usize {
        let mut state = self.lock();
        let before = state.young.len() + state.old.len();
        if users.is_empty() {
            state.clear();
        } else {
            let keep = |_: &Key, entry: &mut Entry| !users.iter().any(|user| **user == *entry.user);
            state.young.retain(keep);
            state.old.retain(keep);
            state.young_bytes = state.young.values().map(Entry::size).sum();
        }
        before - state.young.len() - state.old.len()
    }

    /// The numbers.
    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        let mut stats = Stats {
            hits: state.hits,
            misses: state.misses,
            max_bytes: state.limits.size as u64,
            ..Stats::default()
        };
        for entry in state.young.values().chain(state.old.values()) {
            let size = entry.size() as u64;
            if matches!(entry.verdict, Verdict::Right(_)) {
                stats.positive += 1;
                stats.positive_bytes += size;
            } else {
                stats.negative += 1;
                stats.negative_bytes += size;
            }
        }
        stats
    }

    /// Starts counting hits and misses anew.
    pub(crate) fn reset_stats(&self) {
        let mut state = self.lock();
        state.hits = 0;
        state.misses = 0;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // An interrupted insert leaves at worst a wrong byte count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Finds an entry; one of the old generation moves to the young one.
    fn find(&mut self, key: &Key) -> Option<&Entry> {
        if let Some(entry) = self.old.remove(key) {
            self.insert(*key, entry);
        }
        self.young.get(key)
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        let size = entry.size();
        if self.young_bytes + size > self.limits.size / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if size > self.limits.size / 2 {
            return;
        }
        self.young_bytes += size;
        if let Some(replaced) = self.young.insert(key, entry) {
            self.young_bytes = self.young_bytes.saturating_sub(replaced.size());
        }
    }

    fn clear(&mut self) {
        self.young = HashMap::new();
        self.old = HashMap::new();
        self.young_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(size: usize) -> Cache {
        let ttl = Duration::from_secs(60);
        Cache::new(Limits { size, ttl, negative_ttl: ttl / 2 })
    }

    #[test]
    fn keys_depend_on_every_input_and_its_borders() {
        let keyer = Keyer::new([1; 32]);
        let base = keyer.key("d", &[b"ab", b"c"]);
        assert_eq!(base, keyer.key("d", &[b"ab", b"c"]));
        for other in [
            keyer.key("d", &[b"a", b"bc"]),
            keyer.key("d", &[b"ab", b"c", b""]),
            keyer.key("e", &[b"ab", b"c"]),
            Keyer::new([2; 32]).key("d", &[b"ab", b"c"]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn verdicts_live_their_time_and_stand_in_when_stale() {
        let cache = cache(10_000);
        let now = Instant::now();
        cache.store([1; 32], "bob", Verdict::Right(None), now);
        cache.store([2; 32], "bob", Verdict::Wrong, now);
        let half = now + Duration::from_secs(31);
        assert_eq!(cache.find(&[1; 32], half), Some(Verdict::Right(None)));
        assert_eq!(cache.find(&[2; 32], half), None);
        let late = now + Duration::from_secs(3600);
        assert_eq!(cache.find(&[1; 32], late), None);
        assert_eq!(cache.find_stale(&[1; 32], late), Some(Verdict::Right(None)));
        assert_eq!(cache.find_stale(&[1; 32], late + STALE), None);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.positive, stats.negative), (1, 2, 1, 1));
    }

    #[test]
    fn memory_is_bounded_and_used_entries_survive() {
        let cache = cache(100 * OVERHEAD);
        let now = Instant::now();
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            key
        };
        for n in 0..1_000 {
            cache.store(key(n), "", Verdict::Wrong, now);
            if n > 0 {
                assert!(cache.find(&key(0), now).is_some(), "{n}");
            }
        }
        let stats = cache.stats();
        assert!(stats.negative_bytes <= stats.max_bytes, "{stats:?}");
    }

    #[test]
    fn flush_takes_users_literally() {
        let cache = cache(10_000);
        let now = Instant::now();
        cache.store([1; 32], "bob", Verdict::Wrong, now);
        cache.store([2; 32], "alice", Verdict::Wrong, now);
        assert_eq!(cache.flush(&["bo".into()]), 0);
        assert_eq!(cache.flush(&["bob".into()]), 1);
        assert_eq!(cache.flush(&[]), 1);
    }

    #[test]
    fn no_size_no_cache() {
        let cache = cache(0);
        cache.store([1; 32], "bob", Verdict::Wrong, Instant::now());
        assert_eq!(cache.stats().negative, 0);
    }
}
