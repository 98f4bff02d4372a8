//! How many bytes of whole messages may be in memory at once, for all sessions together.
//!
//! Trust: sizes are those of stored messages, which strangers sent.
//! Never: wait for a client while a share is held.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The common purse. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    size: u64,
    free: Mutex<u64>,
    returned: Condvar,
}

/// Bytes taken; given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    purse: Arc<Purse>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(size: u64) -> Self {
        Self(Arc::new(Purse { size, free: Mutex::new(size), returned: Condvar::new() }))
    }

    /// Waits until that much is free. What is larger than the whole purse waits for all of it. Holders
    /// never wait for a client, so nobody waits long.
    pub(crate) fn take(&self, bytes: u64) -> Share {
        let bytes = bytes.min(self.0.size);
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.0.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Share { purse: Arc::clone(&self.0), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut free = self.purse.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free += self.bytes;
        drop(free);
        self.purse.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_others_hold() {
        let budget = Budget::new(10);
        let whole = budget.take(1000);
        let other = budget.clone();
        let waiting = std::thread::spawn(move || drop(other.take(4)));
        assert!(!waiting.is_finished());
        drop(whole);
        waiting.join().unwrap();
        assert_eq!(*budget.0.free.lock().unwrap(), 10);
    }
}
