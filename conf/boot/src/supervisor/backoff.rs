//! How long a daemon that died waits before it is started again.
//!
//! Trust: nobody; made of how long processes ran.
//! Never: start a daemon that died at once again without a pause.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// A daemon that ran this long had a good start: its next death counts as the first.
const STABLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The pause after a process that ran for `uptime`.
    pub(super) fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= STABLE {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_limit_and_starts_anew() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..11).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.after(STABLE).as_millis(), 100);
        assert_eq!(backoff.after(STABLE - Duration::from_nanos(1)).as_millis(), 200);
    }
}
