//! Admission of connections: how many at all, how many from one address.
//!
//! Every front asks here before it spends memory on a connection. IPv6 peers are counted by /64, because one customer
//! normally owns that many addresses; loopback is counted like everybody else. On unix sockets an account takes the
//! place of the address.
//!
//! Trust: addresses and uids come from the kernel; strangers decide how many connections they open and nothing else.
//! Never: let one account take every place of a unix socket, or strangers take those of the stack's own processes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::Gauges;

/// Counts connections of one daemon. Cheap to clone; clones share the counters.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Mutex<Counters>>, Option<Arc<Gauges>>);

#[derive(Debug)]
struct Counters {
    total_limit: u32,
    address_limit: u32,
    total: u32,
    by_peer: HashMap<Key, u32>,
}

/// Whom connections are counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Account(u32),
}

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The daemon has as many connections as it may have.
    #[error("too many connections")]
    Total,
    /// This address (or its /64), or this account, has as many connections as one may have.
    #[error("too many connections from this address or account")]
    Address,
}

/// One admitted connection; dropping it frees the place.
#[derive(Debug)]
#[must_use = "the place is freed when the permit is dropped"]
pub struct Permit {
    /// None for places beside the limits.
    counters: Option<Arc<Mutex<Counters>>>,
    key: Option<Key>,
    _gauge: Option<crate::control::GaugeGuard>,
}

impl Admission {
    /// Limits on all connections and on those of one address. 0 means no limit.
    pub fn new(total: u32, per_address: u32) -> Self {
        let counters =
            Counters { total_limit: total, address_limit: per_address, total: 0, by_peer: HashMap::new() };
        Self(Arc::new(Mutex::new(counters)), None)
    }

    /// Every permit is also counted in these gauges (for `postern status`).
    #[must_use]
    pub fn with_gauges(mut self, gauges: Arc<Gauges>) -> Self {
        self.1 = Some(gauges);
        self
    }

    /// Asks for a place. Unix-socket peers have no address and count for the total only.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<Permit, Refused> {
        self.enter(ip.map(accounting_key), |counters| counters.address_limit)
    }

    /// Asks for a place for a process of this account on a unix socket. One account gets seven places of eight, so
    /// that it cannot shut all others out.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit_account(&self, uid: u32) -> Result<Permit, Refused> {
        self.enter(Some(Key::Account(uid)), |counters| counters.total_limit - counters.total_limit / 8)
    }

    fn enter(&self, key: Option<Key>, limit: impl FnOnce(&Counters) -> u32) -> Result<Permit, Refused> {
        self.try_enter(key, limit).inspect_err(|refused| {
            if let Some(count) = self.1.as_ref().and_then(|gauges| gauges.refused.get(*refused as usize)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    fn try_enter(&self, key: Option<Key>, limit: impl FnOnce(&Counters) -> u32) -> Result<Permit, Refused> {
        let mut counters = lock(&self.0);
        if counters.total_limit != 0 && counters.total >= counters.total_limit {
            return Err(Refused::Total);
        }
        if let Some(key) = key {
            let limit = limit(&counters);
            let here = counters.by_peer.entry(key).or_insert(0);
            if limit != 0 && *here >= limit {
                return Err(Refused::Address);
            }
            *here += 1;
        }
        counters.total += 1;
        drop(counters);
        let gauge = self.1.as_ref().map(Gauges::enter);
        Ok(Permit { counters: Some(Arc::clone(&self.0)), key, _gauge: gauge })
    }

    /// A place beside the limits, for processes of the stack itself on sockets that nobody else can open: strangers
    /// who take all other places must not cut them off.
    pub fn admit_own(&self) -> Permit {
        Permit { counters: None, key: None, _gauge: self.1.as_ref().map(Gauges::enter) }
    }

    /// New limits after a reload. Connections already admitted stay.
    pub fn set_limits(&self, total: u32, per_address: u32) {
        let mut counters = lock(&self.0);
        counters.total_limit = total;
        counters.address_limit = per_address;
    }

    /// Connections admitted now.
    pub fn connections(&self) -> u32 {
        lock(&self.0).total
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(counters) = &self.counters else { return };
        let mut counters = lock(counters);
        counters.total = counters.total.saturating_sub(1);
        let Some(key) = self.key else { return };
        let left = match counters.by_peer.get_mut(&key) {
            Some(count) => {
                *count = count.saturating_sub(1);
                *count
            }
            None => return,
        };
        if left == 0 {
            counters.by_peer.remove(&key);
        }
    }
}

/// The address connections are counted under: IPv4 as it is (also when mapped into IPv6), IPv6 by its /64.
fn accounting_key(ip: IpAddr) -> Key {
    Key::Address(match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    })
}

fn lock(counters: &Mutex<Counters>) -> MutexGuard<'_, Counters> {
    // Counters are plain numbers: valid whatever the thread that panicked was doing.
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn limits_hold_and_permits_give_back() {
        let admission = Admission::new(3, 2);
        let first = admission.admit(ip("192.0.2.1")).unwrap();
        let _mapped = admission.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.1")).unwrap_err(), Refused::Address);
        let _third = admission.admit(None).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.9")).unwrap_err(), Refused::Total);
        drop(first);
        assert_eq!(admission.connections(), 2);
        let _again = admission.admit(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn ipv6_counts_by_64_and_loopback_counts() {
        let admission = Admission::new(0, 1);
        let _a = admission.admit(ip("2001:db8:1:2::1")).unwrap();
        assert_eq!(admission.admit(ip("2001:db8:1:2:ffff::9")).unwrap_err(), Refused::Address);
        let _b = admission.admit(ip("2001:db8:1:3::1")).unwrap();
        let _l = admission.admit(ip("127.0.0.1")).unwrap();
        assert_eq!(admission.admit(ip("127.0.0.1")).unwrap_err(), Refused::Address);
    }

    #[test]
    fn new_limits_spare_who_is_in_and_nothing_leaks() {
        let admission = Admission::new(0, 0);
        let permits: Vec<_> = (0..5).map(|_| admission.admit(ip("192.0.2.1")).unwrap()).collect();
        admission.set_limits(2, 2);
        assert!(admission.admit(ip("192.0.2.2")).is_err());
        drop(permits);
        assert!(admission.admit(ip("192.0.2.1")).is_ok());
        assert_eq!(lock(&admission.0).by_peer.len(), 0);
    }

    #[test]
    fn no_account_takes_all_places_and_own_processes_need_none() {
        let admission = Admission::new(16, 0);
        let mut held: Vec<_> = (0..14).map(|_| admission.admit_account(65_533).unwrap()).collect();
        assert_eq!(admission.admit_account(65_533).unwrap_err(), Refused::Address);
        held.push(admission.admit_account(1000).unwrap());
        held.push(admission.admit(None).unwrap());
        assert_eq!(admission.admit(None).unwrap_err(), Refused::Total);
        drop(admission.admit_own());
        assert_eq!(admission.connections(), 16);
        drop(held);
        assert_eq!(admission.connections(), 0);
    }
}
