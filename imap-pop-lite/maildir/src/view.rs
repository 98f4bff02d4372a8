//! What one session has announced: the mapping of sequence numbers to messages.
//!
//! Rules: reference note "maildir-imap-pop3", section 9.3. Numbers change only in [`View::refresh`]; a message that
//!        is gone keeps its number until the session may send EXPUNGE; EXISTS only grows; changes come in the
//!        order flags, expunges, EXISTS, RECENT.
//! Trust: sets are a client's and are resolved against what was announced to it.
//! Never: change a number between two announcements.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::flags::{FlagChange, Flags, KeywordSet};
use crate::ids::Uid;
use crate::mailbox::{Copied, Mailbox};
use crate::table::{Recent, Table, ViewId, What};

/// How long a refresh waits for another program's lock before it leaves the news for later.
const PATIENCE: Duration = Duration::from_secs(1);

/// SELECT or EXAMINE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// SELECT: takes `\Recent`, moves messages from `new` to `cur`, may change.
    ReadWrite,
    /// EXAMINE: changes nothing but gives UIDs.
    ReadOnly,
}

/// What the numbers of a set are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Numbers {
    /// Sequence numbers of this view.
    Sequence,
    /// UIDs.
    Uid,
}

/// `from:to` of a sequence set; `None` is `*`; a single number has both ends equal. Either order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SetRange {
    /// One end.
    pub from: Option<u32>,
    /// The other.
    pub to: Option<u32>,
}

/// A message as the session may show it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// Its number in this view.
    pub seq: u32,
    /// UID.
    pub uid: Uid,
    /// System flags.
    pub flags: Flags,
    /// Keywords; names from [`Mailbox::keywords`].
    pub keywords: KeywordSet,
    /// `\Recent` for this session.
    pub recent: bool,
    /// Gone from disk, but its EXPUNGE has not been sent yet.
    pub expunged: bool,
}

/// One untagged response, in the order they must be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// New keyword names: send FLAGS and PERMANENTFLAGS.
    Keywords,
    /// FETCH with FLAGS (numbers are those before the expunges of the same batch).
    Flags(Message),
    /// EXPUNGE (or VANISHED); highest number first.
    Expunged {
        /// Number to send.
        seq: u32,
        /// For VANISHED.
        uid: Uid,
    },
    /// EXISTS
    Exists(u32),
    /// RECENT
    Recent(u32),
}

/// One session's numbering of a mailbox.
#[derive(Debug)]
pub struct View {
    mailbox: Arc<Mailbox>,
    id: ViewId,
    mode: Mode,
    /// Announced messages, ascending; sequence number − 1 is the index.
    uids: Vec<Uid>,
    /// Highest UID announced.
    highest: u32,
    /// Generation of the table up to which everything but expunges is announced.
    seen: u64,
    /// Announced messages that are gone and not yet expunged here.
    gone: BTreeSet<Uid>,
    /// `\Recent` messages of this session (read-write).
    recents: BTreeSet<Uid>,
    /// What was announced as RECENT.
    recent: u32,
}

impl View {
    pub(crate) fn begin(mailbox: Arc<Mailbox>, mode: Mode, id: ViewId) -> Result<Self, Error> {
        mailbox.look(mode == Mode::ReadWrite, PATIENCE)?;
        let mut view = Self {
            mailbox,
            id,
            mode,
            uids: Vec::new(),
            highest: 0,
            seen: 0,
            gone: BTreeSet::new(),
            recents: BTreeSet::new(),
            recent: 0,
        };
        let mut table = view.mailbox.table();
        table.enter(id);
        view.uids = table.records().iter().map(|r| r.uid).collect();
        view.highest = table.highest();
        view.seen = table.generation;
        if mode == Mode::ReadWrite {
            view.recents.extend(table.claim(Recent::Of(id)));
        }
        view.recent = recent_count(&table, mode, &view.recents);
        drop(table);
        Ok(view)
    }

    /// The shared mailbox.
    #[must_use]
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// SELECT or EXAMINE.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Number of announced messages.
    #[must_use]
    pub fn exists(&self) -> u32 {
        number(self.uids.len())
    }

    /// Number of announced `\Recent` messages.
    #[must_use]
    pub fn recent(&self) -> u32 {
        self.recent
    }

    /// First message without `\Seen`.
    #[must_use]
    pub fn first_unseen(&self) -> Option<u32> {
        let table = self.mailbox.table();
        let mut unseen = table.records().iter().filter(|r| !r.flags.contains(Flags::SEEN));
        unseen.find_map(|r| self.seq(r.uid))
    }

    /// UID of a sequence number.
    #[must_use]
    pub fn uid(&self, seq: u32) -> Option<Uid> {
        self.uids.get(usize::try_from(seq.checked_sub(1)?).ok()?).copied()
    }

    /// Sequence number of a UID.
    #[must_use]
    pub fn seq(&self, uid: Uid) -> Option<u32> {
        self.uids.binary_search(&uid).ok().map(|at| number(at + 1))
    }

    /// The messages of a set, ascending, each once. Sequence numbers beyond the end or 0: `BadSequence`;
    /// unknown UIDs are left out. `*` is the last message; `500:*` always includes it.
    pub fn resolve(&self, set: &[SetRange], numbers: Numbers) -> Result<Vec<(u32, Uid)>, Error> {
        let last = match numbers {
            Numbers::Sequence => self.exists(),
            Numbers::Uid => self.uids.last().map_or(0, |uid| uid.get()),
        };
        // Half-open ranges of indexes.
        let mut ranges: Vec<(usize, usize)> = Vec::with_capacity(set.len());
        for range in set {
            let (a, b) = (range.from.unwrap_or(last), range.to.unwrap_or(last));
            let (low, high) = (a.min(b), a.max(b));
            match numbers {
                // `*` in an empty mailbox names nothing; numbers do not either (RFC 9051 §9, seq-number).
                Numbers::Sequence => {
                    if low == 0 || high > last {
                        return Err(Error::BadSequence);
                    }
                    ranges.push((index(low - 1), index(high)));
                }
                Numbers::Uid => {
                    if range.from == Some(0) || range.to == Some(0) {
                        return Err(Error::BadSequence);
                    }
                    let start = self.uids.partition_point(|uid| uid.get() < low);
                    let end = self.uids.partition_point(|uid| uid.get() <= high);
                    ranges.push((start, end));
                }
            }
        }
        ranges.sort_unstable();
        let mut found = Vec::new();
        let mut next = 0;
        for (start, end) in ranges {
            let start = start.max(next);
            for (at, uid) in self.uids.iter().enumerate().take(end).skip(start) {
                found.push((number(at + 1), *uid));
            }
            next = next.max(end);
        }
        Ok(found)
    }

    /// Current flags of a message of this view.
    #[must_use]
    pub fn message(&self, uid: Uid) -> Option<Message> {
        let seq = self.seq(uid)?;
        self.show(&self.mailbox.table(), seq, uid)
    }

    /// Current flags of the messages of a set (from [`Self::resolve`]), in one step.
    #[must_use]
    pub fn messages(&self, pairs: &[(u32, Uid)]) -> Vec<Message> {
        let table = self.mailbox.table();
        pairs.iter().filter_map(|(seq, uid)| self.show(&table, *seq, *uid)).collect()
    }

    /// Looks at the disk (cheap when nothing changed) and returns what to send, in order. Without
    /// `allow_expunge` messages that are gone keep their numbers and stay visible.
    ///
    /// `Gone` when the folder was deleted, renamed or renumbered: the session cannot go on with it.
    pub fn refresh(&mut self, allow_expunge: bool) -> Result<Vec<Change>, Error> {
        self.mailbox.look(self.mode == Mode::ReadWrite, PATIENCE)?;
        Ok(self.announce(allow_expunge))
    }

    /// The same without looking at the disk: what other sessions and earlier looks brought.
    pub fn announce(&mut self, allow_expunge: bool) -> Vec<Change> {
        let mailbox = self.mailbox.clone();
        let mut table = mailbox.table();
        if self.mode == Mode::ReadWrite {
            self.recents.extend(table.claim(Recent::Of(self.id)));
        }
        let mut changes = Vec::new();
        if table.names_changed > self.seen {
            changes.push(Change::Keywords);
        }
        let mut exists = false;
        if table.generation != self.seen {
            let flagged = self.take_news(&table);
            for uid in flagged {
                if let Some(message) = self.seq(uid).and_then(|seq| self.show(&table, seq, uid)) {
                    changes.push(Change::Flags(message));
                }
            }
        }
        if allow_expunge && !self.gone.is_empty() {
            self.take_out(&mut changes);
        }
        let new = table.above(self.highest);
        if !new.is_empty() {
            self.uids.extend(new.iter().map(|r| r.uid));
            exists = true;
        }
        self.highest = self.highest.max(table.highest());
        self.seen = table.generation;
        if self.gone.is_empty() {
            table.announced(self.id);
        }
        if exists {
            changes.push(Change::Exists(self.exists()));
        }
        let recent = recent_count(&table, self.mode, &self.recents);
        if recent != self.recent {
            self.recent = recent;
            changes.push(Change::Recent(recent));
        }
        changes
    }

    /// STORE. Returns every message of `uids` that still is there with its new flags (print them unless
    /// .SILENT); this view's `refresh` does not report them again. Before printing, call `announce(false)`: a new
    /// keyword must be made known first (RFC 9051 §7.3.5), and that reports it.
    pub fn store(&mut self, uids: &[Uid], change: &FlagChange) -> Result<Vec<Message>, Error> {
        self.must_be_writable()?;
        self.mailbox.store_as(uids, change, self.id)?;
        let table = self.mailbox.table();
        let shown = uids.iter().filter_map(|uid| self.show(&table, self.seq(*uid)?, *uid));
        Ok(shown.filter(|m| !m.expunged).collect())
    }

    /// EXPUNGE (`None`) or UID EXPUNGE: removes messages with `\Deleted`. Follow with `refresh(true)`, which
    /// reports them. Messages this view has not announced yet are left alone.
    pub fn expunge(&mut self, only: Option<&[Uid]>) -> Result<Vec<Uid>, Error> {
        self.must_be_writable()?;
        let shown: Vec<Uid> = match only {
            Some(only) => only.iter().copied().filter(|uid| self.seq(*uid).is_some()).collect(),
            None => self.uids.clone(),
        };
        self.mailbox.expunge_as(Some(&shown), self.id)
    }

    /// COPY, all or nothing.
    pub fn copy_to(&self, uids: &[Uid], target: &Arc<Mailbox>) -> Result<Copied, Error> {
        self.mailbox.copy_to(uids, target)
    }

    /// MOVE: copy, then remove here. Follow with `refresh(true)` after sending COPYUID.
    pub fn move_to(&mut self, uids: &[Uid], target: &Arc<Mailbox>) -> Result<Copied, Error> {
        self.must_be_writable()?;
        let copied = self.mailbox.copy_to(uids, target)?;
        let sources: Vec<Uid> = copied.uids.iter().map(|(source, _)| *source).collect();
        self.mailbox.remove_as(&sources, Flags::NONE, self.id)?;
        Ok(copied)
    }

    /// Sorts what happened since the last time: returns messages with other flags, notes those gone.
    fn take_news(&mut self, table: &Table) -> BTreeSet<Uid> {
        let mut flagged = BTreeSet::new();
        if let Some(events) = table.since(self.seen) {
            for event in events.filter(|e| e.uid.get() <= self.highest) {
                match event.what {
                    What::Added => {}
                    What::Flags if event.origin == self.id => {}
                    What::Flags => {
                        flagged.insert(event.uid);
                    }
                    What::Gone => {
                        if self.uids.binary_search(&event.uid).is_ok() {
                            self.gone.insert(event.uid);
                        }
                    }
                }
            }
        } else {
            flagged.extend(table.changed_since(self.seen).filter(|uid| uid.get() <= self.highest));
            let mut records = table.records().iter().map(|r| r.uid).peekable();
            for uid in &self.uids {
                while records.next_if(|other| other < uid).is_some() {}
                if records.peek() != Some(uid) {
                    self.gone.insert(*uid);
                }
            }
        }
        flagged.retain(|uid| !self.gone.contains(uid));
        flagged
    }

    /// Announces the expunges, highest number first, so that the others need no correction.
    fn take_out(&mut self, changes: &mut Vec<Change>) {
        let gone = std::mem::take(&mut self.gone);
        changes.extend(
            gone.iter().rev().filter_map(|uid| Some(Change::Expunged { seq: self.seq(*uid)?, uid: *uid })),
        );
        self.uids.retain(|uid| !gone.contains(uid));
        self.recents.retain(|uid| !gone.contains(uid));
    }

    fn show(&self, table: &Table, seq: u32, uid: Uid) -> Option<Message> {
        let (flags, keywords, recent, expunged) = match (table.get(uid), table.ghost(uid)) {
            (Some(r), _) => (r.flags, r.keywords, r.recent, false),
            (None, Some(g)) => (g.flags, g.keywords, g.recent, true),
            (None, None) => return None,
        };
        let recent = match recent {
            Recent::No => false,
            Recent::Unclaimed => self.mode == Mode::ReadOnly,
            Recent::Of(owner) => owner == self.id,
        };
        Some(Message { seq, uid, flags, keywords, recent, expunged })
    }

    fn must_be_writable(&self) -> Result<(), Error> {
        if self.mode == Mode::ReadOnly { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.mailbox.table().leave(self.id);
    }
}

/// A read-only session sees the flag on what no session has taken, but does not take it.
fn recent_count(table: &Table, mode: Mode, own: &BTreeSet<Uid>) -> u32 {
    number(if mode == Mode::ReadWrite { own.len() } else { table.unclaimed() })
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
