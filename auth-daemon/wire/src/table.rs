//! The requests that are open on one connection.
//!
//! Purpose: bind an answer to the request it was made for. An id may be used again as soon as its request is gone, so
//!          work that finishes late must not answer the new owner of the id: that is what [`Ticket`] is for.
//! Trust:   the client chooses ids; how many are open is bounded, and how they are hashed is not its to know.
//! Never:   give an answer to another request than its own.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;

use foldhash::fast::RandomState;

/// How many finished ids are remembered so that a stray continuation gets no second answer.
const REMEMBERED: usize = 64;

/// One request on one connection: its id, and a serial number that is never used twice.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Ticket {
    id: u32,
    serial: u64,
}

impl Ticket {
    /// The id the client chose.
    pub fn id(self) -> u32 {
        self.id
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}#{}", self.id, self.serial)
    }
}

/// Open requests with a state each.
#[derive(Debug)]
pub(crate) struct Table<S> {
    /// With a seed that no client knows, so that none can choose ids that collide. The standard hasher takes several
    /// times as long, and every request needs four look-ups.
    open: HashMap<u32, (u64, S), RandomState>,
    finished: VecDeque<u32>,
    serial: u64,
    capacity: usize,
}

impl<S> Table<S> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { open: HashMap::default(), finished: VecDeque::new(), serial: 0, capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open.len() >= self.capacity
    }

    pub(crate) fn contains_id(&self, id: u32) -> bool {
        self.open.contains_key(&id)
    }

    /// Whether this id was answered lately and not opened again.
    pub(crate) fn was_finished(&self, id: u32) -> bool {
        self.finished.contains(&id)
    }

    /// Opens `id`, which must not be open.
    pub(crate) fn insert(&mut self, id: u32, state: S) -> Ticket {
        self.serial += 1;
        // Ids mostly count up: then there is nothing to take out.
        if self.finished.contains(&id) {
            self.finished.retain(|old| *old != id);
        }
        self.open.insert(id, (self.serial, state));
        Ticket { id, serial: self.serial }
    }

    pub(crate) fn ticket(&self, id: u32) -> Option<Ticket> {
        self.open.get(&id).map(|(serial, _)| Ticket { id, serial: *serial })
    }

    /// The state of the request that is open under this very ticket.
    pub(crate) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut S> {
        self.open.get_mut(&ticket.id).filter(|(serial, _)| *serial == ticket.serial).map(|(_, state)| state)
    }

    pub(crate) fn get(&self, ticket: Ticket) -> Option<&S> {
        self.open.get(&ticket.id).filter(|(serial, _)| *serial == ticket.serial).map(|(_, state)| state)
    }

    /// Closes the request without an answer; its id is unknown afterwards.
    pub(crate) fn forget(&mut self, ticket: Ticket) -> Option<S> {
        match self.open.entry(ticket.id) {
            Entry::Occupied(entry) if entry.get().0 == ticket.serial => Some(entry.remove().1),
            _ => None,
        }
    }

    /// Closes the request because it was answered.
    pub(crate) fn finish(&mut self, ticket: Ticket) -> Option<S> {
        let state = self.forget(ticket)?;
        self.remember(ticket.id);
        Some(state)
    }

    /// Notes that `id` has had its answer.
    pub(crate) fn remember(&mut self, id: u32) {
        if self.finished.len() == REMEMBERED {
            self.finished.pop_front();
        }
        self.finished.push_back(id);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ticket, &S)> {
        self.open.iter().map(|(id, (serial, state))| (Ticket { id: *id, serial: *serial }, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_work_cannot_answer_a_reused_id() {
        let mut table = Table::new(2);
        let first = table.insert(5, "first");
        assert_eq!(table.finish(first), Some("first"));
        assert!(table.was_finished(5));
        let second = table.insert(5, "second");
        assert!(!table.was_finished(5));
        assert_eq!(table.get(first), None);
        assert_eq!(table.finish(first), None);
        assert_eq!(table.finish(second), Some("second"));
    }

    #[test]
    fn remembers_a_bounded_number() {
        let mut table = Table::new(10);
        for id in 1..1000 {
            let ticket = table.insert(id, ());
            table.finish(ticket);
        }
        assert!(table.finished.len() <= REMEMBERED && table.was_finished(999) && !table.was_finished(1));
    }
}
