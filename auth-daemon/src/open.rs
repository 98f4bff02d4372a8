//! How many exchanges may wait for their clients at a time.
//!
//! Trust: the uid is the kernel's word; its processes may do as they like.
//! Never: let one account take the places of another.
//!
//! A connection may have thousands open, and there may be thousands of connections: without a common limit any account
//! that reaches a socket could fill the memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// For root and the daemon's own account: what busy fronts and mail programs need.
const OURS: u32 = 65_536;
/// For any other account.
const THEIRS: u32 = 16_384;

/// The counts, by account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchanges(Arc<Mutex<HashMap<u32, u32>>>);

/// One exchange; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    exchanges: Exchanges,
    uid: u32,
}

impl Exchanges {
    /// A place for an exchange of this account's process; `None` when it has too many.
    pub(crate) fn enter(&self, uid: u32) -> Option<Place> {
        let ours = uid == 0 || uid == crate::engine::euid();
        let mut counts = self.lock();
        let count = counts.entry(uid).or_insert(0);
        if *count >= if ours { OURS } else { THEIRS } {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { exchanges: self.clone(), uid })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.lock().values().map(|count| u64::from(*count)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        // Plain numbers: valid whatever the thread that panicked was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.exchanges.lock();
        let left = counts.get(&self.uid).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.remove(&self.uid);
        } else {
            counts.insert(self.uid, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_has_all_its_places_hinders_no_other() {
        let exchanges = Exchanges::default();
        let mut held: Vec<_> = (0..THEIRS).map(|_| exchanges.enter(65_533).unwrap()).collect();
        assert!(exchanges.enter(65_533).is_none());
        let other = exchanges.enter(65_532).unwrap();
        let root = exchanges.enter(0).unwrap();
        held.pop();
        assert!(exchanges.enter(65_533).is_some());
        drop((held, other, root));
        assert!(exchanges.lock().is_empty());
    }
}
