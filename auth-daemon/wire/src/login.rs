//! Logins that wait to be fetched by `REQUEST`.
//!
//! Purpose: a login process authenticates on one socket, the mail process it starts fetches the result on another. What
//!          ties both together is (CPID of the login connection, request id, cookie of the login connection).
//! Rules:   a login is handed out once; it goes when its connection ends, when it is cancelled, when its id is used
//!          again, after [`KEPT_FOR`], and when a connection keeps more than its share (oldest first).
//! Use:     one registry per daemon behind a lock; the login connections write, the session and master sockets redeem.
//! Trust:   whoever shows id, CPID and cookie: the cookie is random and goes to that login connection alone.
//! Never:   hand a login out twice, or to another connection's cookie.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::Cookie;

/// How long a login waits to be fetched.
pub const KEPT_FOR: Duration = Duration::from_secs(150);
/// How many logins one connection may keep. Programs that never fetch (Prosody) pile them up.
pub const KEPT_PER_CONNECTION: usize = 4096;

/// Why a `REQUEST` is refused. The peer is told FAIL for each; the difference is for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No live login connection has that CPID.
    #[error("no login connection with this client pid")]
    UnknownClient,
    /// The cookie belongs to another connection.
    #[error("wrong cookie")]
    WrongCookie,
    /// Never finished, fetched already, cancelled or too old.
    #[error("no finished login with this id")]
    UnknownLogin,
}

/// All kept logins of a daemon, with the driver's record `T` for each.
#[derive(Debug)]
pub struct Registry<T> {
    connections: HashMap<u32, Connection<T>>,
    per_connection: usize,
    kept_for: Duration,
}

#[derive(Debug)]
struct Connection<T> {
    cookie: Cookie,
    logins: HashMap<u32, (Instant, T)>,
    /// (kept at, id) in order of time; entries whose login went or was replaced are skipped.
    order: VecDeque<(Instant, u32)>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self::new(KEPT_PER_CONNECTION, KEPT_FOR)
    }
}

impl<T> Registry<T> {
    /// A registry with its own limits.
    pub fn new(per_connection: usize, kept_for: Duration) -> Self {
        Self { connections: HashMap::new(), per_connection: per_connection.max(1), kept_for }
    }

    /// A login connection said its CPID. `false`: another live connection has it, so close the new one.
    #[must_use]
    pub fn register(&mut self, cpid: u32, cookie: Cookie) -> bool {
        if self.connections.contains_key(&cpid) {
            return false;
        }
        self.connections.insert(cpid, Connection { cookie, logins: HashMap::new(), order: VecDeque::new() });
        true
    }

    /// The login connection ended; its logins go. The cookie keeps a refused duplicate from removing the first one.
    pub fn unregister(&mut self, cpid: u32, cookie: &Cookie) {
        if self.connections.get(&cpid).is_some_and(|connection| connection.cookie == *cookie) {
            self.connections.remove(&cpid);
        }
    }

    /// Keeps a login. Call this **before** its OK is written, or the mail process may be faster.
    pub fn keep(&mut self, cpid: u32, id: u32, record: T, now: Instant) {
        let (limit, kept_for) = (self.per_connection, self.kept_for);
        let Some(connection) = self.connections.get_mut(&cpid) else { return };
        connection.logins.insert(id, (now, record));
        connection.order.push_back((now, id));
        connection.trim(limit, kept_for, now);
    }

    /// Drops a kept login: CANCEL came, or its id starts a new request.
    pub fn forget(&mut self, cpid: u32, id: u32) {
        if let Some(connection) = self.connections.get_mut(&cpid) {
            connection.logins.remove(&id);
        }
    }

    /// Hands out a login, once.
    pub fn redeem(&mut self, cpid: u32, id: u32, cookie: &[u8], now: Instant) -> Result<T, Refused> {
        let kept_for = self.kept_for;
        let connection = self.connections.get_mut(&cpid).ok_or(Refused::UnknownClient)?;
        if Cookie::parse(cookie).is_none_or(|cookie| cookie != connection.cookie) {
            return Err(Refused::WrongCookie);
        }
        match connection.logins.remove(&id) {
            Some((since, record)) if now.saturating_duration_since(since) < kept_for => Ok(record),
            _ => Err(Refused::UnknownLogin),
        }
    }

    /// Drops what is too old on every connection; call it now and then.
    pub fn expire(&mut self, now: Instant) {
        for connection in self.connections.values_mut() {
            connection.trim(self.per_connection, self.kept_for, now);
        }
    }

    /// Number of kept logins.
    pub fn len(&self) -> usize {
        self.connections.values().map(|connection| connection.logins.len()).sum()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Connection<T> {
    fn trim(&mut self, limit: usize, kept_for: Duration, now: Instant) {
        while let Some((since, id)) = self.order.front().copied() {
            let current = self.logins.get(&id).is_some_and(|(kept, _)| *kept == since);
            let expired = now.saturating_duration_since(since) >= kept_for;
            if current && !expired && self.logins.len() <= limit {
                break;
            }
            self.order.pop_front();
            if current {
                self.logins.remove(&id);
            }
        }
        // Redeemed logins leave their order entries behind an old one that stays: keep those bounded too.
        if self.order.len() > limit.saturating_mul(2) {
            let logins = &self.logins;
            self.order.retain(|(since, id)| logins.get(id).is_some_and(|(kept, _)| kept == since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(byte: u8) -> Cookie {
        Cookie::from_bytes([byte; 16])
    }

    #[test]
    fn a_login_is_handed_out_once_and_only_with_the_cookie() {
        let now = Instant::now();
        let mut registry = Registry::default();
        assert!(registry.register(10, cookie(1)));
        assert!(!registry.register(10, cookie(2)), "a duplicate CPID is refused");
        registry.unregister(10, &cookie(2));
        registry.keep(10, 1, "bob", now);
        let right = cookie(1);
        let right = right.as_str().as_bytes();
        assert_eq!(registry.redeem(11, 1, right, now), Err(Refused::UnknownClient));
        assert_eq!(registry.redeem(10, 1, cookie(2).as_str().as_bytes(), now), Err(Refused::WrongCookie));
        assert_eq!(registry.redeem(10, 1, b"", now), Err(Refused::WrongCookie));
        assert_eq!(registry.redeem(10, 2, right, now), Err(Refused::UnknownLogin));
        assert_eq!(registry.redeem(10, 1, right, now), Ok("bob"));
        assert_eq!(registry.redeem(10, 1, right, now), Err(Refused::UnknownLogin));
        registry.keep(10, 3, "eve", now);
        registry.forget(10, 3);
        assert_eq!(registry.redeem(10, 3, right, now), Err(Refused::UnknownLogin));
        registry.keep(10, 4, "eve", now);
        registry.unregister(10, &cookie(1));
        assert_eq!(registry.redeem(10, 4, right, now), Err(Refused::UnknownClient));
    }

    #[test]
    fn old_and_surplus_logins_go() {
        let start = Instant::now();
        let mut registry = Registry::new(3, KEPT_FOR);
        assert!(registry.register(1, cookie(1)));
        let key = cookie(1);
        let key = key.as_str().as_bytes();
        for id in 1..=5 {
            registry.keep(1, id, id, start);
        }
        assert_eq!(registry.len(), 3);
        assert_eq!(registry.redeem(1, 2, key, start), Err(Refused::UnknownLogin));
        assert_eq!(registry.redeem(1, 5, key, start), Ok(5));
        let later = start + KEPT_FOR;
        assert_eq!(registry.redeem(1, 4, key, later), Err(Refused::UnknownLogin));
        registry.expire(later);
        assert!(registry.is_empty());
        registry.keep(1, 100, 100, later);
        for id in 0..1000 {
            registry.keep(1, id, id, later);
            let _ = registry.redeem(1, id, key, later);
        }
        assert!(registry.connections[&1].order.len() <= 8);
    }

    #[test]
    fn a_reused_id_keeps_the_new_login() {
        let start = Instant::now();
        let mut registry = Registry::new(10, KEPT_FOR);
        assert!(registry.register(1, cookie(1)));
        registry.keep(1, 5, "old", start);
        registry.keep(1, 5, "new", start + Duration::from_secs(100));
        registry.expire(start + Duration::from_secs(160));
        let now = start + Duration::from_secs(170);
        assert_eq!(registry.redeem(1, 5, cookie(1).as_str().as_bytes(), now), Ok("new"));
    }
}
