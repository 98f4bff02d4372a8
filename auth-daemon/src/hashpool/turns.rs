//! Whose turn it is among jobs that wait.
//!
//! Rules: the asking account, within it the address, within that the user served longest ago comes first; among equals
//!        the earliest. However many jobs one of them has waiting, another's waits for one turn and not for all.
//! Cost:  a scan of the waiting jobs for each turn, which is little beside a password hash.
//! Trust: addresses and users are what clients say; they are hashed under a key of this process, and bounded in number.
//! Never: let one who asks more often be served more often.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

use crate::penalty::Peer;

/// Served ones that are remembered at least, and at most twice as many.
const REMEMBERED: u64 = 2048;

/// Who asks, from the coarse to the fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whom([u64; 3]);

impl Whom {
    /// `uid` of the process that asks, the peer it names, the user whose password it is.
    pub(crate) fn new(uid: u32, peer: &Peer, user: &str) -> Whom {
        // Equal hashes of different ones would only share their turns.
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Whom([HASHER.hash_one(uid), HASHER.hash_one((uid, peer)), HASHER.hash_one((uid, peer, user))])
    }

    /// The same process and address.
    pub(crate) fn is_neighbour(&self, other: &Whom) -> bool {
        self.0.get(1) == other.0.get(1)
    }
}

/// When whom was served last.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    served: HashMap<u64, u64>,
    clock: u64,
}

impl Turns {
    /// Lower comes first.
    pub(crate) fn rank(&self, whom: &Whom) -> [u64; 3] {
        whom.0.map(|one| self.served.get(&one).copied().unwrap_or(0))
    }

    /// It had its turn.
    pub(crate) fn serve(&mut self, whom: &Whom) {
        self.clock += 1;
        for one in whom.0 {
            self.served.insert(one, self.clock);
        }
        if self.served.len() as u64 > REMEMBERED * 2 {
            let oldest = self.clock.saturating_sub(REMEMBERED / 3);
            self.served.retain(|_, at| *at > oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whom(uid: u32, peer: &str, user: &str) -> Whom {
        Whom::new(uid, &Peer::of(Some(peer.parse().unwrap()), uid), user)
    }

    /// Serves all in the order of their turns.
    fn order(mut waiting: Vec<(&'static str, Whom)>) -> Vec<&'static str> {
        let mut turns = Turns::default();
        let mut out = Vec::new();
        while !waiting.is_empty() {
            let at = (0..waiting.len()).min_by_key(|at| turns.rank(&waiting[*at].1)).unwrap();
            let (name, whom) = waiting.remove(at);
            turns.serve(&whom);
            out.push(name);
        }
        out
    }

    #[test]
    fn a_crowd_waits_for_itself_only() {
        let mut waiting: Vec<_> = (0..50).map(|_| ("guess", whom(1, "192.0.2.1", "alice"))).collect();
        waiting.push(("other address", whom(1, "192.0.2.2", "alice")));
        waiting.push(("other user", whom(1, "192.0.2.1", "bob")));
        waiting.push(("other process", whom(2, "192.0.2.1", "alice")));
        let order = order(waiting);
        for name in ["other address", "other user", "other process"] {
            assert!(order.iter().position(|one| *one == name).unwrap() < 6, "{name}: {order:?}");
        }
    }

    #[test]
    fn a_process_that_invents_addresses_takes_one_share() {
        let addresses: Vec<String> = (0..100).map(|n| format!("198.51.100.{n}")).collect();
        let mut waiting: Vec<_> = addresses.iter().map(|ip| ("invented", whom(1, ip, "alice"))).collect();
        waiting.extend((0..3).map(|_| ("front", whom(2, "192.0.2.1", "bob"))));
        let order = order(waiting);
        let last = order.iter().rposition(|one| *one == "front").unwrap();
        assert!(last < 7, "{order:?}");
    }

    #[test]
    fn equals_keep_their_order_and_memory_is_bounded() {
        let turns = Turns::default();
        assert_eq!(turns.rank(&whom(1, "192.0.2.1", "a")), turns.rank(&whom(9, "192.0.2.9", "z")));
        let mut turns = Turns::default();
        for n in 0..20_000_u32 {
            turns.serve(&whom(n, "192.0.2.1", "a"));
            assert!(turns.served.len() as u64 <= REMEMBERED * 2 + 3);
        }
    }
}
