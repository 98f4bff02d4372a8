//! Slowing down those who guess.
//!
//! Purpose: every wrong login makes the next refusal to the same peer slower and moves its hashes to the back of the
//!          queue. A right password is never delayed.
//! Keys:    the user's address (IPv6 by /64), the account together with the address, or, where the client tells no
//!          address, the uid of the process that asked.
//! Trust:   addresses and account names are strangers'; `CAPACITY` bounds how many are remembered.
//! Never:   lock anybody out: an attacker on one account from many addresses touches only his own keys.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Each counted failure adds this to the delay of the next refusal.
const STEP: Duration = Duration::from_millis(500);
/// A count halves in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Counts below this are forgotten.
const FORGET: f32 = 0.25;
/// From this count on a peer's hashes wait behind those of others.
const SUSPECT: f32 = 5.0;
/// Counts grow no further.
const CEILING: f32 = 100.0;
/// Peers remembered at most.
const CAPACITY: usize = 65_536;

/// Who is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// The remote user's address; IPv6 is cut to /64.
    Address(IpAddr),
    /// A local process's uid, where no address was told.
    Uid(u32),
}

impl Peer {
    /// The peer of a request.
    pub(crate) fn of(rip: Option<IpAddr>, uid: u32) -> Peer {
        match rip.map(|ip| ip.to_canonical()) {
            Some(IpAddr::V4(v4)) => Peer::Address(IpAddr::V4(v4)),
            Some(IpAddr::V6(v6)) => {
                Peer::Address(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))))
            }
            None => Peer::Uid(uid),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Address(IpAddr::V6(ip)) => write!(f, "{ip}/64"),
            Peer::Address(ip) => write!(f, "{ip}"),
            Peer::Uid(uid) => write!(f, "uid {uid}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(Peer, Option<Box<str>>);

#[derive(Debug, Clone, Copy)]
struct Count {
    value: f32,
    at: Instant,
    /// Marks of the last wrong passwords: a program that repeats one is not guessing.
    marks: [u32; 2],
}

impl Count {
    fn now(&self, now: Instant) -> f32 {
        let halves = now.saturating_duration_since(self.at).as_secs_f32() / HALF_LIFE.as_secs_f32();
        self.value * (-halves).exp2()
    }
}

/// What was counted against a peer.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Address or uid.
    pub(crate) peer: String,
    /// The account, where it is counted by account.
    pub(crate) account: Option<String>,
    /// How much.
    pub(crate) count: f32,
}

/// The counts of all peers.
#[derive(Debug, Default)]
pub(crate) struct Penalties(Mutex<HashMap<Key, Count>>);

impl Penalties {
    /// Counts a failure and says how long the refusal must wait, from the arrival of its request.
    pub(crate) fn failed(
        &self,
        peer: &Peer,
        account: &str,
        mark: u32,
        base: Duration,
        max: Duration,
        now: Instant,
    ) -> Duration {
        let mut counts = self.lock();
        let mut worst = 0.0_f32;
        // A request that named nobody counts by address alone.
        let by_account = (!account.is_empty()).then(|| Key(peer.clone(), Some(account.into())));
        for key in [Some(Key(peer.clone(), None)), by_account].into_iter().flatten() {
            if counts.len() >= CAPACITY && !counts.contains_key(&key) {
                make_room(&mut counts, now);
            }
            let count = counts.entry(key).or_insert(Count { value: 0.0, at: now, marks: [0; 2] });
            let value = count.now(now);
            worst = worst.max(value);
            let repeated = count.marks.contains(&mark);
            let [last, _] = count.marks;
            *count = Count {
                value: if repeated { value } else { (value + 1.0).min(CEILING) },
                at: now,
                marks: if repeated { count.marks } else { [mark, last] },
            };
        }
        base.saturating_add(STEP.mul_f32(worst.floor().max(0.0))).min(max)
    }

    /// A right password: this account is its owner's at this address.
    pub(crate) fn succeeded(&self, peer: &Peer, account: &str) {
        let mut counts = self.lock();
        if counts.is_empty() {
            return;
        }
        counts.remove(&Key(peer.clone(), Some(account.into())));
        if let Some(count) = counts.get_mut(&Key(peer.clone(), None)) {
            count.value /= 2.0;
        }
    }

    /// Whether the peer's work waits behind that of others.
    pub(crate) fn is_suspect(&self, peer: &Peer, now: Instant) -> bool {
        let counts = self.lock();
        !counts.is_empty()
            && counts.get(&Key(peer.clone(), None)).is_some_and(|count| count.now(now) >= SUSPECT)
    }

    /// How many counts there are by address, and by account at an address: as many as [`Penalties::list`] shows.
    pub(crate) fn sizes(&self, now: Instant) -> (u64, u64) {
        let counts = self.lock();
        counts.iter().filter(|(_, count)| count.now(now) >= FORGET).fold(
            (0, 0),
            |(peers, accounts), (Key(_, account), _)| {
                if account.is_none() { (peers + 1, accounts) } else { (peers, accounts + 1) }
            },
        )
    }

    /// Everything that is counted now.
    pub(crate) fn list(&self, now: Instant) -> Vec<Listed> {
        let counts = self.lock();
        let mut all: Vec<Listed> = counts
            .iter()
            .map(|(Key(peer, account), count)| Listed {
                peer: peer.to_string(),
                account: account.as_deref().map(str::to_owned),
                count: count.now(now),
            })
            .filter(|listed| listed.count >= FORGET)
            .collect();
        all.sort_by(|a, b| b.count.total_cmp(&a.count));
        all
    }

    /// Forgets one peer (as [`Penalties::list`] writes it), or all. Returns how many counts went.
    pub(crate) fn clear(&self, peer: Option<&str>) -> usize {
        let mut counts = self.lock();
        let before = counts.len();
        counts.retain(|Key(known, _), _| peer.is_some_and(|peer| known.to_string() != peer));
        before - counts.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Count>> {
        // Plain numbers: valid whatever the thread that panicked was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(counts: &mut HashMap<Key, Count>, now: Instant) {
    counts.retain(|_, count| count.now(now) >= FORGET);
    if counts.len() >= CAPACITY {
        let some: Vec<Key> = counts.keys().take(CAPACITY / 16).cloned().collect();
        for key in some {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_secs(2);
    const MAX: Duration = Duration::from_secs(4);

    fn peer(text: &str) -> Peer {
        Peer::of(Some(text.parse().unwrap()), 0)
    }

    #[test]
    fn delays_grow_to_the_limit_and_decay() {
        let penalties = Penalties::default();
        let now = Instant::now();
        let attacker = peer("192.0.2.1");
        let delays: Vec<u128> =
            (1..=6).map(|n| penalties.failed(&attacker, "bob", n, BASE, MAX, now).as_millis()).collect();
        assert_eq!(delays, [2000, 2500, 3000, 3500, 4000, 4000]);
        assert!(penalties.is_suspect(&attacker, now));
        let later = now + HALF_LIFE * 6;
        assert!(!penalties.is_suspect(&attacker, later));
        assert_eq!(penalties.failed(&attacker, "bob", 9, BASE, MAX, later), BASE);
    }

    #[test]
    fn who_names_nobody_counts_by_address_alone() {
        let penalties = Penalties::default();
        let now = Instant::now();
        let scanner = peer("192.0.2.1");
        assert_eq!(penalties.failed(&scanner, "", 1, BASE, MAX, now), BASE);
        assert!(penalties.failed(&scanner, "", 2, BASE, MAX, now) > BASE);
        let listed = penalties.list(now);
        assert_eq!(listed.iter().map(|row| row.account.as_deref()).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn repeating_one_wrong_password_is_no_guessing() {
        let penalties = Penalties::default();
        let now = Instant::now();
        let phone = peer("192.0.2.1");
        for _ in 0..10 {
            assert!(penalties.failed(&phone, "bob", 7, BASE, MAX, now).as_millis() <= 2500);
        }
        assert!(!penalties.is_suspect(&phone, now));
    }

    #[test]
    fn others_are_not_touched() {
        let penalties = Penalties::default();
        let now = Instant::now();
        for n in 0..50 {
            let attacker = peer(&format!("198.51.100.{n}"));
            penalties.failed(&attacker, "bob", n, BASE, MAX, now);
        }
        assert_eq!(penalties.failed(&peer("192.0.2.1"), "bob", 1, BASE, MAX, now), BASE);
    }

    #[test]
    fn ipv6_counts_by_prefix_and_mapped_addresses_as_ipv4() {
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_eq!(Peer::of(None, 33), Peer::Uid(33));
    }

    #[test]
    fn success_forgives_the_account_and_listing_and_clearing_work() {
        let penalties = Penalties::default();
        let now = Instant::now();
        let home = peer("192.0.2.1");
        for n in 1..=4 {
            penalties.failed(&home, "bob", n, BASE, MAX, now);
        }
        penalties.succeeded(&home, "bob");
        let listed = penalties.list(now);
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].peer.as_str(), listed[0].count), ("192.0.2.1", 2.0));
        assert_eq!(penalties.clear(Some("10.0.0.1")), 0);
        assert_eq!(penalties.clear(Some("192.0.2.1")), 1);
        assert!(penalties.list(now).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let penalties = Penalties::default();
        let now = Instant::now();
        for n in (0..).take(CAPACITY + 10) {
            penalties.failed(&Peer::Uid(n), "a", 1, BASE, MAX, now);
        }
        assert!(penalties.lock().len() <= CAPACITY);
    }
}
