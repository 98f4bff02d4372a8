//! Graceful drain: connection tasks are counted, told that the daemon stops, and waited for.
//!
//! Trust: nobody; connection tasks of this process take tokens and drop them.
//! Never: wait longer than the grace time for a connection that does not end.

use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Held by the accept loop. Each connection gets a [`DrainToken`]; [`Drain::finish`] tells all and waits for them.
#[derive(Debug)]
pub struct Drain {
    stop: watch::Sender<bool>,
    /// Kept only to be cloned into tokens: the channel closes when the last token is gone.
    alive: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

/// Held by a connection's task for as long as it lives.
#[derive(Clone, Debug)]
pub struct DrainToken {
    stop: watch::Receiver<bool>,
    /// Its existence is what [`Drain::finish`] waits for.
    _alive: mpsc::Sender<()>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nothing tracked yet.
    pub fn new() -> Self {
        let (stop, _) = watch::channel(false);
        let (alive, gone) = mpsc::channel(1);
        Self { stop, alive, gone }
    }

    /// A token for one connection.
    pub fn token(&self) -> DrainToken {
        DrainToken { stop: self.stop.subscribe(), _alive: self.alive.clone() }
    }

    /// Tells all connections to finish, without waiting.
    pub fn begin(&self) {
        self.stop.send_replace(true);
    }

    /// Tells all connections to finish and waits until they have, at most `grace`. True: all are gone.
    pub async fn finish(self, grace: Duration) -> bool {
        let Self { stop, alive, mut gone } = self;
        stop.send_replace(true);
        drop(alive);
        tokio::time::timeout(grace, gone.recv()).await.is_ok()
    }
}

impl DrainToken {
    /// Waits until the daemon wants this connection to end. Cancel-safe; for a `select!` beside reading.
    pub async fn draining(&mut self) {
        // An error means that the drain was dropped without a word: the accept loop is gone, so this ends too.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }

    /// Whether the daemon wants this connection to end.
    pub fn is_draining(&self) -> bool {
        *self.stop.borrow()
    }

    /// Runs `work`, holding the token until it ends.
    pub async fn track<F: Future>(self, work: F) -> F::Output {
        let result = work.await;
        drop(self);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_tokens() {
        let drain = Drain::new();
        let mut token = drain.token();
        let task = tokio::spawn(async move {
            token.draining().await;
            assert!(token.is_draining());
        });
        assert!(drain.finish(Duration::from_secs(5)).await);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn gives_up_after_the_grace_time() {
        let drain = Drain::new();
        let token = drain.token();
        assert!(!drain.finish(Duration::from_millis(20)).await);
        drop(token);
    }

    #[tokio::test]
    async fn nothing_tracked_ends_at_once() {
        assert!(Drain::new().finish(Duration::from_secs(5)).await);
    }
}
