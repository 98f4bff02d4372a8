//! The messages of one folder in memory, shared by all sessions on it.
//!
//! Pure: no files, no locks. Rules kept here: UIDs ascend, a message is only ever added above the highest UID
//! seen, expunged messages stay known until every view has announced them.
//!
//! Trust: nobody; file names in it come from the directory by way of the scan.
//! Never: number a message below one that was seen, or forget an expunged one that a view still counts.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::dirs;
use crate::flags::{Flags, KeywordNames, KeywordSet};
use crate::ids::{Uid, UidValidity};
use crate::name::{self, BaseName};
use crate::uidlist::{Keys, MailboxGuid};

/// How many changes are remembered; a view that is further behind compares everything.
const JOURNAL: usize = 1024;

/// Which session shows a message as `\Recent`: nobody, the next read-write one, or a certain one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Recent {
    No,
    Unclaimed,
    Of(ViewId),
}

/// A session on this mailbox; never used twice. Changes of no session carry [`ViewId::NONE`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ViewId(pub(crate) u32);

impl ViewId {
    pub(crate) const NONE: Self = Self(0);
}

/// Which directory a message file is in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    New,
    Cur,
}

impl Place {
    pub(crate) fn dir(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Cur => "cur",
        }
    }
}

/// One message.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) uid: Uid,
    pub(crate) base: BaseName,
    pub(crate) keys: Keys,
    pub(crate) flags: Flags,
    pub(crate) keywords: KeywordSet,
    pub(crate) place: Place,
    pub(crate) recent: Recent,
    /// The file name, where it is not what base, place and flags give.
    odd: Option<Box<[u8]>>,
    /// Generation of the last flag change.
    changed: u64,
    /// Last directory scan that saw the file.
    pub(crate) scan: u32,
    /// Size with CRLF, when it was worked out.
    pub(crate) virtual_size: Option<u64>,
    pub(crate) date: Option<SystemTime>,
}

impl Record {
    /// A message that was listed but not found yet.
    pub(crate) fn listed(uid: Uid, base: BaseName, keys: Keys) -> Self {
        Self {
            uid,
            base,
            keys,
            flags: Flags::NONE,
            keywords: KeywordSet::NONE,
            place: Place::Cur,
            recent: Recent::No,
            odd: None,
            changed: 0,
            scan: 0,
            virtual_size: None,
            date: None,
        }
    }

    pub(crate) fn file_name(&self) -> Vec<u8> {
        match (&self.odd, self.place) {
            (Some(name), _) => name.to_vec(),
            (None, Place::New) => self.base.bytes().to_vec(),
            (None, Place::Cur) => {
                let mut name = Vec::with_capacity(self.base.bytes().len() + 12);
                name.extend_from_slice(self.base.bytes());
                name.extend_from_slice(b":2,");
                name.extend(self.flags.letters());
                name.extend(self.keywords.letters());
                name
            }
        }
    }

    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        dirs::join(&dir.join(self.place.dir()), &self.file_name())
    }

    /// Whether this is the record's file name, without building it.
    fn has_name(&self, place: Place, file: &[u8]) -> bool {
        if self.place != place {
            return false;
        }
        if let Some(odd) = &self.odd {
            return **odd == *file;
        }
        let Some(info) = file.strip_prefix(self.base.bytes()) else { return false };
        match place {
            Place::New => info.is_empty(),
            Place::Cur => info
                .strip_prefix(b":2,")
                .is_some_and(|l| l.iter().copied().eq(self.flags.letters().chain(self.keywords.letters()))),
        }
    }

    /// Takes over a file name. True when flags or keywords are others than before.
    pub(crate) fn set_file(&mut self, place: Place, file: &[u8]) -> bool {
        if self.has_name(place, file) {
            return false;
        }
        let old = (self.flags, self.keywords);
        (self.flags, self.keywords) = name::parse_info(file);
        self.place = place;
        self.odd = None;
        if !self.has_name(place, file) {
            self.odd = Some(file.into());
        }
        old != (self.flags, self.keywords)
    }

    /// Size on disk as name or list tell it.
    pub(crate) fn noted_size(&self) -> Option<u64> {
        let listed = || self.keys.find(b'S').and_then(name::parse_decimal);
        name::noted_size(self.base.bytes(), b'S').or_else(listed)
    }

    /// Size with CRLF, if it is known without reading the file.
    pub(crate) fn known_virtual_size(&self) -> Option<u64> {
        let listed = || self.keys.find(b'W').and_then(name::parse_decimal);
        self.virtual_size.or_else(|| name::noted_size(self.base.bytes(), b'W')).or_else(listed)
    }

    /// GUID: survives copies.
    pub(crate) fn guid(&self) -> &[u8] {
        self.keys.find(b'G').unwrap_or_else(|| self.base.bytes())
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum What {
    Added,
    Flags,
    Gone,
}

/// One remembered change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    generation: u64,
    pub(crate) uid: Uid,
    pub(crate) what: What,
    /// The session that did it and needs not be told.
    pub(crate) origin: ViewId,
}

/// An expunged message some view still shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ghost {
    generation: u64,
    pub(crate) flags: Flags,
    pub(crate) keywords: KeywordSet,
    pub(crate) recent: Recent,
}

/// Where a base name's message is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    uid: Uid,
    /// Where its record probably is; checked before use.
    index: u32,
}

/// Whether a directory scan knows a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Known {
    /// The file of a message; seen the first time in this scan.
    Message,
    /// A second file with the same base name.
    Twice(Uid),
    No,
}

/// All messages of a folder.
#[derive(Debug, Default)]
pub(crate) struct Table {
    records: Vec<Record>,
    by_base: HashMap<BaseName, Slot>,
    ghosts: BTreeMap<Uid, Ghost>,
    journal: VecDeque<Event>,
    /// Changes up to this generation are not in the journal any more.
    forgotten: u64,
    pub(crate) generation: u64,
    /// The next change begins a new generation.
    fresh: bool,
    /// Generation of the last change of the keyword names.
    pub(crate) names_changed: u64,
    /// Highest UID that was ever in here.
    highest: u32,
    pub(crate) next: u64,
    pub(crate) validity: Option<UidValidity>,
    pub(crate) guid: Option<MailboxGuid>,
    pub(crate) names: KeywordNames,
    /// Up to which generation each view has announced expunges.
    views: HashMap<ViewId, u64>,
    unclaimed: usize,
    in_new: usize,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn highest(&self) -> u32 {
        self.highest
    }

    /// `\Recent` messages no session has taken.
    pub(crate) fn unclaimed(&self) -> usize {
        self.unclaimed
    }

    /// Messages still in `new`.
    pub(crate) fn in_new(&self) -> usize {
        self.in_new
    }

    fn position(&self, uid: Uid) -> Option<usize> {
        self.records.binary_search_by_key(&uid, |r| r.uid).ok()
    }

    pub(crate) fn get(&self, uid: Uid) -> Option<&Record> {
        self.position(uid).and_then(|at| self.records.get(at))
    }

    pub(crate) fn get_mut(&mut self, uid: Uid) -> Option<&mut Record> {
        let at = self.position(uid)?;
        self.records.get_mut(at)
    }

    pub(crate) fn ghost(&self, uid: Uid) -> Option<&Ghost> {
        self.ghosts.get(&uid)
    }

    pub(crate) fn find(&self, base: &[u8]) -> Option<Uid> {
        self.by_base.get(base).map(|slot| slot.uid)
    }

    /// Letters any message carries.
    pub(crate) fn used_keywords(&self) -> KeywordSet {
        self.records.iter().fold(KeywordSet::NONE, |all, r| all | r.keywords)
    }

    /// Fills an empty table with what the list says; [`Self::settle`] then drops what no scan found. Of two lines
    /// with one name the later counts, as for Dovecot; true when there were such.
    pub(crate) fn fill(&mut self, listed: impl ExactSizeIterator<Item = Record>) -> bool {
        self.records.reserve(listed.len());
        self.by_base.reserve(listed.len());
        let mut twice: Vec<Uid> = Vec::new();
        for record in listed {
            twice.extend(self.insert(record));
        }
        if !twice.is_empty() {
            self.records.retain(|r| twice.binary_search(&r.uid).is_err());
        }
        !twice.is_empty()
    }

    /// Returns the UID the same base name had before.
    fn insert(&mut self, record: Record) -> Option<Uid> {
        let index = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        let before = self.by_base.insert(record.base.clone(), Slot { uid: record.uid, index });
        self.highest = self.highest.max(record.uid.get());
        self.next = self.next.max(u64::from(record.uid.get()) + 1);
        self.count(record.place, record.recent, 1);
        self.records.push(record);
        before.map(|slot| slot.uid)
    }

    fn count(&mut self, place: Place, recent: Recent, by: isize) {
        if place == Place::New {
            self.in_new = self.in_new.saturating_add_signed(by);
        }
        if recent == Recent::Unclaimed {
            self.unclaimed = self.unclaimed.saturating_add_signed(by);
        }
    }

    /// Begins a batch of changes: what follows, if anything, belongs to a new generation.
    pub(crate) fn begin(&mut self) {
        self.fresh = true;
    }

    fn changing(&mut self) -> u64 {
        if std::mem::take(&mut self.fresh) {
            self.generation += 1;
        }
        self.generation
    }

    fn note(&mut self, uid: Uid, what: What, origin: ViewId) {
        self.changing();
        if self.journal.len() >= JOURNAL
            && let Some(old) = self.journal.pop_front()
        {
            self.forgotten = old.generation;
        }
        self.journal.push_back(Event { generation: self.generation, uid, what, origin });
    }

    /// A scan saw this file.
    pub(crate) fn saw(&mut self, place: Place, file: &[u8], scan: u32) -> Known {
        let Some(slot) = self.by_base.get(name::base_of(file)).copied() else { return Known::No };
        let hint = usize::try_from(slot.index).unwrap_or(usize::MAX);
        let at = match self.records.get(hint) {
            Some(record) if record.uid == slot.uid => hint,
            _ => match self.position(slot.uid) {
                Some(at) => at,
                None => return Known::No,
            },
        };
        let Some(record) = self.records.get_mut(at) else { return Known::No };
        if record.scan == scan {
            return Known::Twice(slot.uid);
        }
        // Moved out of `new` by another program: that program showed it as recent.
        let (old, recent) = (record.place, record.recent);
        let shown = old == Place::New && place == Place::Cur && recent == Recent::Unclaimed;
        // The first time a listed message is met.
        let unseen = std::mem::replace(&mut record.scan, scan) == 0 && place == Place::New;
        let uid = slot.uid;
        if shown {
            self.set_recent(uid, Recent::No);
        } else if unseen {
            self.set_recent(uid, Recent::Unclaimed);
        }
        self.moved_at(at, place, file, ViewId::NONE);
        Known::Message
    }

    /// A message's file has this name now.
    pub(crate) fn moved(&mut self, uid: Uid, place: Place, file: &[u8], origin: ViewId) {
        if let Some(at) = self.position(uid) {
            self.moved_at(at, place, file, origin);
        }
    }

    fn moved_at(&mut self, at: usize, place: Place, file: &[u8], origin: ViewId) {
        let Some(record) = self.records.get_mut(at) else { return };
        let (uid, old_place, recent) = (record.uid, record.place, record.recent);
        let changed = record.set_file(place, file);
        if old_place != place {
            self.count(old_place, recent, -1);
            self.count(place, recent, 1);
        }
        if changed {
            let generation = self.changing();
            if let Some(record) = self.records.get_mut(at) {
                record.changed = generation;
            }
            self.note(uid, What::Flags, origin);
        }
    }

    /// Adds messages; they must ascend and lie above everything that was ever here.
    pub(crate) fn add(&mut self, records: Vec<Record>) {
        for record in records {
            if record.uid.get() <= self.highest {
                tracing::error!(uid = record.uid.get(), "UID would be used twice; message left out");
                continue;
            }
            let uid = record.uid;
            let _ = self.insert(record);
            self.note(uid, What::Added, ViewId::NONE);
        }
    }

    /// Removes messages; views that show them go on doing so.
    pub(crate) fn remove(&mut self, uids: &[Uid], origin: ViewId) -> Vec<Record> {
        if uids.is_empty() {
            return Vec::new();
        }
        let mut uids = uids.to_vec();
        uids.sort_unstable();
        let generation = self.changing();
        let removed: Vec<Record> =
            self.records.extract_if(.., |r| uids.binary_search(&r.uid).is_ok()).collect();
        for record in &removed {
            self.count(record.place, record.recent, -1);
            if self.by_base.get(record.base.bytes()).is_some_and(|slot| slot.uid == record.uid) {
                self.by_base.remove(record.base.bytes());
            }
            if !self.views.is_empty() {
                let Record { flags, keywords, recent, .. } = *record;
                self.ghosts.insert(record.uid, Ghost { generation, flags, keywords, recent });
            }
            self.note(record.uid, What::Gone, origin);
        }
        removed
    }

    /// After the first scan: takes out what was listed but is not there.
    pub(crate) fn settle(&mut self, scan: u32) -> Vec<Record> {
        let missing: Vec<Record> = self.records.extract_if(.., |r| r.scan != scan).collect();
        for record in &missing {
            self.by_base.remove(record.base.bytes());
        }
        for (index, record) in self.records.iter().enumerate() {
            if missing.is_empty() {
                break;
            }
            if let Some(slot) = self.by_base.get_mut(record.base.bytes()) {
                slot.index = u32::try_from(index).unwrap_or(u32::MAX);
            }
        }
        self.journal.clear();
        self.forgotten = self.generation;
        (self.in_new, self.unclaimed) = (0, 0);
        for at in 0..self.records.len() {
            if let Some(record) = self.records.get(at) {
                let (place, recent) = (record.place, record.recent);
                self.count(place, recent, 1);
            }
        }
        missing
    }

    /// Marks a message `\Recent` for the next session, or not.
    pub(crate) fn set_recent(&mut self, uid: Uid, recent: Recent) {
        if let Some(at) = self.position(uid)
            && let Some(record) = self.records.get_mut(at)
        {
            let (place, old) = (record.place, std::mem::replace(&mut record.recent, recent));
            self.count(place, old, -1);
            self.count(place, recent, 1);
        }
    }

    /// A read-write session takes all unclaimed `\Recent` flags. What is still in `new` stays unclaimed.
    pub(crate) fn claim(&mut self, owner: Recent) -> Vec<Uid> {
        if self.unclaimed == 0 {
            return Vec::new();
        }
        let mut claimed = Vec::new();
        for record in &mut self.records {
            if record.recent == Recent::Unclaimed && record.place == Place::Cur {
                record.recent = owner;
                claimed.push(record.uid);
            }
        }
        self.unclaimed = self.unclaimed.saturating_sub(claimed.len());
        claimed
    }

    /// The names of the keywords changed.
    pub(crate) fn set_names(&mut self, names: KeywordNames) {
        if names != self.names {
            self.names = names;
            self.names_changed = self.changing();
        }
    }

    pub(crate) fn enter(&mut self, view: ViewId) {
        self.views.insert(view, self.generation);
    }

    pub(crate) fn leave(&mut self, view: ViewId) {
        self.views.remove(&view);
        self.forget_ghosts();
    }

    /// A view has announced all expunges up to now.
    pub(crate) fn announced(&mut self, view: ViewId) {
        self.views.insert(view, self.generation);
        self.forget_ghosts();
    }

    fn forget_ghosts(&mut self) {
        if !self.ghosts.is_empty() {
            let oldest = self.views.values().min().copied().unwrap_or(u64::MAX);
            self.ghosts.retain(|_, ghost| ghost.generation > oldest);
        }
    }

    /// Changes after a generation, oldest first; `None` when they are not all remembered.
    pub(crate) fn since(&self, generation: u64) -> Option<impl Iterator<Item = &Event>> {
        if generation < self.forgotten {
            return None;
        }
        let start = self.journal.partition_point(|event| event.generation <= generation);
        Some(self.journal.range(start..))
    }

    /// Without the journal: messages whose flags changed after a generation.
    pub(crate) fn changed_since(&self, generation: u64) -> impl Iterator<Item = Uid> {
        self.records.iter().filter(move |r| r.changed > generation).map(|r| r.uid)
    }

    /// Messages with a UID above this one.
    pub(crate) fn above(&self, uid: u32) -> &[Record] {
        let start = self.records.partition_point(|r| r.uid.get() <= uid);
        self.records.get(start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: u32, base: &str, file: &str) -> Record {
        let base = BaseName::of(base.as_bytes()).unwrap();
        let mut record = Record::listed(Uid::new(uid).unwrap(), base, Keys::default());
        let place = if file.contains(':') { Place::Cur } else { Place::New };
        record.set_file(place, file.as_bytes());
        record
    }

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
    }

    #[test]
    fn file_names_are_kept_exactly() {
        for file in ["x:2,", "x:2,FS", "x:2,Sab", "x", "x:2,SF", "x:2,SX", "x:2,S,more", "x:1,y", "x:y:2,S"] {
            let record = record(1, "x", file);
            assert_eq!(record.file_name(), file.as_bytes());
            assert_eq!(
                record.odd.is_some(),
                ["x:2,SF", "x:2,SX", "x:2,S,more", "x:1,y", "x:y:2,S"].contains(&file)
            );
        }
        // A name without info in `cur`, and one with info in `new`.
        let mut odd = record(1, "x", "x");
        odd.set_file(Place::Cur, b"x");
        assert_eq!(odd.path(Path::new("/d")), Path::new("/d/cur/x"));
        odd.set_file(Place::New, b"x:2,S");
        assert_eq!(odd.path(Path::new("/d")), Path::new("/d/new/x:2,S"));
    }

    #[test]
    fn scan_and_settle() {
        let mut table = Table::default();
        let listed: Vec<Record> = (1..=4)
            .map(|n| {
                Record::listed(uid(n), BaseName::of(format!("m{n}").as_bytes()).unwrap(), Keys::default())
            })
            .collect();
        table.fill(listed.into_iter());
        assert_eq!(table.saw(Place::Cur, b"m1:2,S", 7), Known::Message);
        assert_eq!(table.saw(Place::Cur, b"m1:2,", 7), Known::Twice(uid(1)));
        assert_eq!(table.saw(Place::New, b"m3", 7), Known::Message);
        assert_eq!(table.saw(Place::Cur, b"other:2,", 7), Known::No);
        let missing: Vec<u32> = table.settle(7).iter().map(|r| r.uid.get()).collect();
        assert_eq!(missing, [2, 4]);
        assert_eq!((table.len(), table.in_new(), table.highest(), table.next), (2, 1, 4, 5));
        assert_eq!(table.find(b"m2"), None);
        assert_eq!(table.saw(Place::Cur, b"m3:2,", 8), Known::Message);
        assert_eq!(table.in_new(), 0);
        assert_eq!(table.get(uid(1)).unwrap().flags, Flags::SEEN);
    }

    #[test]
    fn journal_and_its_limit() {
        let mut table = Table::default();
        table.begin();
        table.add(vec![record(1, "a", "a:2,"), record(2, "b", "b")]);
        let seen = table.generation;
        table.begin();
        table.moved(uid(1), Place::Cur, b"a:2,F", ViewId(9));
        let events: Vec<_> = table.since(seen).unwrap().map(|e| (e.uid.get(), e.what, e.origin)).collect();
        assert_eq!(events, [(1, What::Flags, ViewId(9))]);
        for round in 0..JOURNAL {
            table.begin();
            let name: &[u8] = if round % 2 == 0 { b"a:2," } else { b"a:2,F" };
            table.moved(uid(1), Place::Cur, name, ViewId::NONE);
        }
        assert!(table.since(seen).is_none());
        assert_eq!(table.changed_since(seen).collect::<Vec<_>>(), [uid(1)]);
    }

    #[test]
    fn no_uid_twice() {
        let mut table = Table::default();
        table.begin();
        table.add(vec![record(5, "a", "a:2,")]);
        table.remove(&[uid(5)], ViewId::NONE);
        table.add(vec![record(5, "b", "b:2,"), record(4, "c", "c:2,"), record(6, "d", "d:2,")]);
        assert_eq!(table.records().iter().map(|r| r.uid.get()).collect::<Vec<_>>(), [6]);
        assert_eq!(table.next, 7);
    }

    #[test]
    fn ghosts_live_as_long_as_a_view_needs_them() {
        let mut table = Table::default();
        table.begin();
        table.add(vec![record(1, "a", "a:2,S"), record(2, "b", "b:2,")]);
        table.enter(ViewId(1));
        table.enter(ViewId(2));
        table.begin();
        assert_eq!(table.remove(&[uid(1)], ViewId(1)).len(), 1);
        table.announced(ViewId(1));
        assert_eq!(table.ghost(uid(1)).unwrap().flags, Flags::SEEN);
        table.leave(ViewId(2));
        assert!(table.ghost(uid(1)).is_none());
    }

    #[test]
    fn recent_is_claimed_once() {
        let mut table = Table::default();
        table.begin();
        table.add(vec![record(1, "a", "a:2,"), record(2, "b", "b"), record(3, "c", "c:2,")]);
        table.set_recent(uid(1), Recent::Unclaimed);
        table.set_recent(uid(2), Recent::Unclaimed);
        assert_eq!((table.unclaimed(), table.in_new()), (2, 1));
        assert_eq!(table.claim(Recent::Of(ViewId(1))), [uid(1)]);
        assert_eq!(table.claim(Recent::Of(ViewId(2))), []);
        table.moved(uid(2), Place::Cur, b"b:2,", ViewId::NONE);
        assert_eq!(table.claim(Recent::Of(ViewId(2))), [uid(2)]);
        assert_eq!((table.unclaimed(), table.in_new()), (0, 0));
    }
}
