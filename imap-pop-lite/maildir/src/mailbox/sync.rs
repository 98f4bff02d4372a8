//! Bringing the table and the directory together.
//!
//! Source: reference note "maildir-imap-pop3", sections 1, 4.5 and 10. The order matters: look at the times, take
//! the lock, read the list, scan, assign UIDs, make the list durable, only then show the messages.
//!
//! Trust: names and lists are what other programs left there; whatever is no message is passed over.
//! Never: show a message before its UID is on disk, or give a UID twice.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use crate::dirs::{self, Listing, Stamp};
use crate::error::{Context, Error};
use crate::ids::Uid;
use crate::keywords::{self, KeywordFile};
use crate::lock::Dotlock;
use crate::mailbox::{Mailbox, guard};
use crate::name::{self, BaseName};
use crate::table::{Known, Place, Recent, Record, ViewId};
use crate::uidlist::{self, Entry, Found, Header, Keys, Lines, MailboxGuid, Position};
use crate::uidvalidity;

/// When to look again after another program held the lock.
const BUSY: Duration = Duration::from_secs(1);
/// After a change of our own under the lock, only programs that ignore the lock can have changed something in the
/// same moment. That is looked after later, and much later where it costs more.
const AFTER_OWN: [(usize, Duration); 2] =
    [(10_000, Duration::from_secs(2)), (usize::MAX, Duration::from_secs(10))];
/// How often `new` is read again because more came while messages were moved out of it.
const NEW_ROUNDS: usize = 16;

/// What is known about the directory; only its lock's holder touches it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    loaded: bool,
    pub(super) position: Option<Position>,
    header: Option<Header>,
    /// Message lines in the list, dead ones included.
    pub(super) lines: usize,
    /// The list must be replaced at the next chance.
    rewrite: bool,
    /// Virtual sizes worked out that the list does not hold yet.
    pub(super) learned: usize,
    /// Listed names without a file, in case one comes that was never seen.
    pub(super) absent: HashMap<BaseName, (Uid, Keys)>,
    new: Seen,
    cur: Seen,
    keywords: Option<Stamp>,
    pub(super) scan: u32,
    /// Two messages share a file name; a read-write session must give one of them another.
    doubles: bool,
}

/// State of a directory when it was read last.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    /// Read again when the stamp is this old: until then a change could have left it the same. `None`: any later
    /// change must show.
    again: Option<Duration>,
}

impl Seen {
    fn is_current(&self, stamp: Stamp, now: SystemTime) -> bool {
        self.stamp == Some(stamp) && self.again.is_none_or(|again| stamp.age(now) < again)
    }

    /// Read at `now` with this stamp.
    fn read(stamp: Stamp, now: SystemTime) -> Self {
        let granularity = stamp.granularity();
        Self { stamp: Some(stamp), again: (stamp.age(now) < granularity).then_some(granularity) }
    }
}

/// Times of everything that can change.
#[derive(Clone, Copy, Debug)]
struct Look {
    new: Stamp,
    cur: Stamp,
    keywords: Option<Stamp>,
    now: SystemTime,
}

/// A file no record stands for.
struct Stranger {
    base: BaseName,
    place: Place,
    file: Vec<u8>,
}

/// A listed message whose file was found.
struct Appeared {
    uid: Uid,
    keys: Keys,
    stranger: Stranger,
}

/// What a pass over the directories found.
#[derive(Default)]
struct Scan {
    strangers: Vec<Stranger>,
    appeared: Vec<Appeared>,
    twice: Vec<(Uid, Place, Vec<u8>)>,
    new: bool,
    cur: bool,
    /// We renamed something into or out of `cur`.
    moved: bool,
    /// `new` as it was when it was last read and found to hold nothing more.
    emptied: Option<Stamp>,
}

impl Mailbox {
    /// First look: makes the mailbox usable.
    pub(crate) fn load(&self) -> Result<(), Error> {
        self.look(false, self.lock_timeout)
    }

    /// Sees whether anything changed and takes it over. When another program keeps the folder locked and nothing
    /// depends on it, tries again later.
    pub(crate) fn look(&self, writable: bool, wait: Duration) -> Result<(), Error> {
        self.with_disk(|disk| {
            if self.is_current(disk, writable)? {
                return Ok(());
            }
            let wait = if disk.loaded { wait } else { self.lock_timeout };
            let mut lock = match self.lock_list(wait) {
                Ok(lock) => lock,
                Err(Error::Locked(_)) if disk.loaded => {
                    self.recheck_soon(BUSY);
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            self.sync_locked(disk, &mut lock, writable, true)
        })
    }

    /// Runs something that may change the table, then wakes the sessions if it did.
    pub(super) fn with_disk<T>(&self, work: impl FnOnce(&mut Disk) -> Result<T, Error>) -> Result<T, Error> {
        let before = (self.table().generation, self.is_gone());
        let result = work(&mut guard(&self.disk));
        if (self.table().generation, self.is_gone()) != before {
            self.notify();
        }
        result
    }

    /// Step 1 of section 10: nothing changed, so nothing is to do.
    fn is_current(&self, disk: &Disk, writable: bool) -> Result<bool, Error> {
        if self.is_gone() {
            return Err(self.gone_error());
        }
        if !disk.loaded {
            return Ok(false);
        }
        let look = self.times()?;
        let current = disk.new.is_current(look.new, look.now)
            && disk.cur.is_current(look.cur, look.now)
            && disk.keywords == look.keywords
            && disk.position.as_ref().is_some_and(|p| p.is_current(&self.dir))
            && !(writable && (disk.doubles || self.table().in_new() > 0))
            && !self.delivered.load(Ordering::Acquire);
        if current {
            self.plan_recheck(disk);
        }
        Ok(current)
    }

    fn plan_recheck(&self, disk: &Disk) {
        if let Some(soonest) = [disk.new.again, disk.cur.again].into_iter().flatten().min() {
            self.recheck_soon(soonest + Duration::from_millis(20));
        }
    }

    fn times(&self) -> Result<Look, Error> {
        let stamp = |sub: &str| {
            let path = self.dir.join(sub);
            match Stamp::of(&path).ctx("read", &path)? {
                Some(stamp) => Ok(stamp),
                None => Err(self.gone_error()),
            }
        };
        let names = keywords::path(&self.dir);
        let keywords = Stamp::of(&names).ctx("read", &names)?;
        // The clock first: a change after it cannot be taken for an old one.
        Ok(Look { now: SystemTime::now(), new: stamp("new")?, cur: stamp("cur")?, keywords })
    }

    /// The whole of section 10 with the lock held; unless `changed` is known already, only if the times say so.
    pub(super) fn sync_locked(
        &self,
        disk: &mut Disk,
        lock: &mut Dotlock,
        writable: bool,
        changed: bool,
    ) -> Result<(), Error> {
        if !changed && self.is_current(disk, false)? {
            return Ok(());
        }
        let result = self.sync_steps(disk, lock, writable, false);
        self.plan_recheck(disk);
        result
    }

    /// The same, reading both directories whatever their times say.
    pub(super) fn rescan(&self, disk: &mut Disk, lock: &mut Dotlock) -> Result<(), Error> {
        self.sync_steps(disk, lock, false, true)
    }

    fn sync_steps(
        &self,
        disk: &mut Disk,
        lock: &mut Dotlock,
        writable: bool,
        force: bool,
    ) -> Result<(), Error> {
        if self.is_gone() {
            return Err(self.gone_error());
        }
        self.table().begin();
        let delivered = self.delivered.swap(false, Ordering::AcqRel);
        let first = !disk.loaded;
        let force = self.read_list(disk)? || force || first || (writable && disk.doubles);
        let look = self.times()?;
        let mut found = Scan {
            new: force
                || delivered
                || !disk.new.is_current(look.new, look.now)
                || (writable && self.table().in_new() > 0),
            cur: force || !disk.cur.is_current(look.cur, look.now),
            ..Scan::default()
        };
        disk.scan = disk.scan.wrapping_add(1).max(1);
        self.scan(disk, lock, &mut found)?;
        if writable && !first {
            self.move_new(disk, lock, &mut found)?;
        }
        let missing = self.missing(disk, &look, &found)?;
        if first {
            for record in self.table().settle(disk.scan) {
                disk.absent.insert(record.base, (record.uid, record.keys));
            }
            if writable {
                // Only now is it known which names are taken.
                self.move_new(disk, lock, &mut found)?;
            }
        }
        self.keep_apart(disk, &mut found, writable)?;
        let (moved, emptied, new, cur) = (found.moved, found.emptied, found.new, found.cur);
        self.finish(disk, lock, found, if first { &[] } else { &missing })?;
        self.read_names(disk, &look)?;
        disk.loaded = true;
        // Times as of before the reading, so that nothing that came meanwhile is overlooked.
        if let Some(stamp) = emptied {
            disk.new = Seen::read(stamp, SystemTime::now());
        } else if new {
            disk.new = Seen::read(look.new, look.now);
        }
        if cur {
            disk.cur = Seen::read(look.cur, look.now);
        }
        if moved {
            self.note_own(disk)?;
        }
        Ok(())
    }

    /// We changed `cur` ourselves, under the lock: its new time is no news.
    pub(super) fn note_own(&self, disk: &mut Disk) -> Result<(), Error> {
        let path = self.dir.join("cur");
        if let Some(stamp) = Stamp::of(&path).ctx("read", &path)? {
            let size = self.table().len();
            let again = AFTER_OWN.iter().find(|(limit, _)| size <= *limit).map(|(_, again)| *again);
            disk.cur = Seen { stamp: Some(stamp), again };
        }
        Ok(())
    }

    /// Takes over what is new in the uidlist. True when the directories must be read whatever their times.
    fn read_list(&self, disk: &mut Disk) -> Result<bool, Error> {
        match uidlist::read(&self.dir, &mut disk.position)? {
            Found::Unchanged => Ok(false),
            Found::Missing | Found::Unusable if disk.loaded => {
                tracing::warn!(folder = %self.dir.display(), "the UID list was lost; written anew from memory");
                disk.position = None;
                disk.rewrite = true;
                Ok(false)
            }
            Found::Missing | Found::Unusable => {
                let validity = uidvalidity::allocate(&self.root, SystemTime::now())?;
                self.set_header(disk, Header::new(validity));
                disk.rewrite = true;
                Ok(true)
            }
            Found::Tail(lines) => {
                disk.lines += lines.entries.len();
                Ok(self.take_lines(disk, lines))
            }
            Found::Whole(header, lines) => self.take_list(disk, header, lines),
        }
    }

    fn set_header(&self, disk: &mut Disk, header: Header) {
        let mut table = self.table();
        table.validity = Some(header.validity);
        table.guid = header.guid;
        table.next = table.next.max(u64::from(header.next)).max(1);
        disk.header = Some(header);
    }

    fn take_list(&self, disk: &mut Disk, mut header: Header, lines: Lines) -> Result<bool, Error> {
        if disk.loaded && self.table().validity != Some(header.validity) {
            return Err(self.gone_error());
        }
        disk.rewrite = header.version != 3 || header.guid.is_none() || lines.bad > 0;
        if header.guid.is_none() {
            header.guid = Some(self.table().guid.unwrap_or_else(MailboxGuid::new));
        }
        self.set_header(disk, header);
        disk.lines = lines.entries.len() + lines.bad;
        disk.absent.clear();
        if !disk.loaded {
            disk.rewrite |= lines.torn;
            let mut table = self.table();
            table.next = table.next.max(lines.next);
            let records = lines.entries.into_iter().map(|e| Record::listed(e.uid, e.base, e.keys));
            disk.rewrite |= table.fill(records);
            return Ok(true);
        }
        let listed: HashMap<&[u8], Uid> = lines.entries.iter().map(|e| (e.base.bytes(), e.uid)).collect();
        let mut table = self.table();
        let unlisted = |r: &&Record| listed.get(r.base.bytes()) != Some(&r.uid);
        let unlisted: Vec<Uid> = table.records().iter().filter(unlisted).map(|r| r.uid).collect();
        let again = !table.remove(&unlisted, ViewId::NONE).is_empty();
        drop(table);
        Ok(self.take_lines(disk, lines) || again)
    }

    fn take_lines(&self, disk: &mut Disk, lines: Lines) -> bool {
        disk.rewrite |= lines.torn || lines.bad > 0;
        let mut table = self.table();
        table.next = table.next.max(lines.next);
        let mut renumbered = false;
        for entry in lines.entries {
            match table.find(entry.base.bytes()) {
                Some(uid) if uid == entry.uid => {
                    if let Some(record) = table.get_mut(uid) {
                        record.keys = entry.keys;
                    }
                    continue;
                }
                Some(uid) => {
                    table.remove(&[uid], ViewId::NONE);
                    renumbered = true;
                    disk.rewrite = true;
                }
                None => {}
            }
            disk.absent.insert(entry.base, (entry.uid, entry.keys));
        }
        renumbered
    }

    /// Steps 4 and 5: reads the directories and matches every file. `new` first: what moves on meanwhile is then
    /// met in `cur`.
    fn scan(&self, disk: &mut Disk, lock: &mut Dotlock, found: &mut Scan) -> Result<(), Error> {
        let list = |wanted: bool, place: Place| -> Result<Listing, Error> {
            if wanted { self.list(place) } else { Ok(Listing::default()) }
        };
        let new = list(found.new, Place::New)?;
        let cur = list(found.cur, Place::Cur)?;
        lock.keep_alive();
        self.match_files(disk, Place::Cur, &cur, found);
        self.match_files(disk, Place::New, &new, found);
        Ok(())
    }

    fn list(&self, place: Place) -> Result<Listing, Error> {
        let path = self.dir.join(place.dir());
        Listing::read(&path).ctx("read", &path)
    }

    fn match_files(&self, disk: &mut Disk, place: Place, files: &Listing, found: &mut Scan) {
        let mut table = self.table();
        if files.len() > table.len() {
            found.strangers.reserve(files.len() - table.len());
        }
        let highest = if disk.loaded { table.highest() } else { 0 };
        for file in files.iter() {
            match table.saw(place, file, disk.scan) {
                Known::Message => {}
                Known::Twice(uid) => found.twice.push((uid, place, file.to_vec())),
                Known::No => {
                    let Some(base) = BaseName::of(file) else { continue };
                    let stranger = Stranger { base, place, file: file.to_vec() };
                    match disk.absent.remove(&stranger.base) {
                        // Handed out by another program since we looked last.
                        Some((uid, keys)) if uid.get() > highest => {
                            found.appeared.push(Appeared { uid, keys, stranger });
                        }
                        // It was expunged, or lies below what sessions have seen: never insert there.
                        Some(_) => {
                            disk.rewrite = true;
                            found.strangers.push(stranger);
                        }
                        None => found.strangers.push(stranger),
                    }
                }
            }
        }
    }

    /// A read-write session takes the messages out of `new`, and those that come while it does so.
    fn move_new(&self, disk: &mut Disk, lock: &mut Dotlock, found: &mut Scan) -> Result<(), Error> {
        if !found.new {
            return Ok(());
        }
        for _ in 0..NEW_ROUNDS {
            if !self.move_found(disk, lock, found)? {
                break;
            }
            let path = self.dir.join("new");
            let stamp = Stamp::of(&path).ctx("read", &path)?;
            let mut files = self.list(Place::New)?;
            {
                // What could not be moved was met before.
                let table = self.table();
                let waits = |file: &[u8]| {
                    let known = table.find(name::base_of(file)).and_then(|uid| table.get(uid));
                    let strange = |s: &Stranger| s.place == Place::New && s.file == file;
                    known.is_some_and(|r| {
                        r.scan == disk.scan && r.place == Place::New && r.file_name() == file
                    }) || found.strangers.iter().any(strange)
                        || found.appeared.iter().any(|a| strange(&a.stranger))
                        || found.twice.iter().any(|(_, place, name)| *place == Place::New && name == file)
                };
                files.retain(|file| !waits(file));
            }
            found.emptied = stamp;
            if files.len() == 0 {
                break;
            }
            self.match_files(disk, Place::New, &files, found);
        }
        Ok(())
    }

    /// One round; true when anything moved.
    fn move_found(&self, disk: &Disk, lock: &mut Dotlock, found: &mut Scan) -> Result<bool, Error> {
        let known: Vec<(Uid, Vec<u8>)> = {
            let table = self.table();
            let waiting = if table.in_new() == 0 { &[] } else { table.records() };
            let here = |r: &&Record| r.place == Place::New && r.scan == disk.scan;
            waiting.iter().filter(here).map(|r| (r.uid, r.file_name())).collect()
        };
        let mut moved = false;
        for (uid, file) in known {
            lock.keep_alive();
            if let Some(target) = self.move_to_cur(&file)? {
                moved = true;
                self.table().moved(uid, Place::Cur, &target, ViewId::NONE);
            }
        }
        let appeared = found.appeared.iter_mut().map(|a| &mut a.stranger);
        for stranger in found.strangers.iter_mut().chain(appeared).filter(|s| s.place == Place::New) {
            lock.keep_alive();
            if let Some(target) = self.move_to_cur(&stranger.file)? {
                moved = true;
                stranger.place = Place::Cur;
                stranger.file = target;
            }
        }
        found.moved |= moved;
        Ok(moved)
    }

    /// `None`: gone, or its name is taken, or we may not; it stays where it is for now.
    fn move_to_cur(&self, file: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let (flags, keywords) = name::parse_info(file);
        let target = name::with_info(file, flags, keywords);
        let from = dirs::join(&self.dir.join("new"), file);
        match dirs::rename_new(&from, &dirs::join(&self.dir.join("cur"), &target)) {
            Ok(()) => Ok(Some(target)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => Ok(None),
            Err(e) => match Error::io("rename", &from, e) {
                Error::Permission(_) | Error::NoSpace(_) => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Messages without a file, ascending. Reading a directory while others rename in it can miss a file, so what
    /// seems missing is looked for again, unless nothing can have moved.
    fn missing(&self, disk: &Disk, look: &Look, found: &Scan) -> Result<Vec<Uid>, Error> {
        if !found.new && !found.cur {
            return Ok(Vec::new());
        }
        let unseen = || -> Vec<Uid> {
            let table = self.table();
            let looked = |place| if place == Place::New { found.new } else { found.cur };
            table.records().iter().filter(|r| r.scan != disk.scan && looked(r.place)).map(|r| r.uid).collect()
        };
        let missing = unseen();
        if missing.is_empty() || (found.new && found.cur && !found.moved && self.is_quiet(look)?) {
            return Ok(missing);
        }
        for place in [Place::New, Place::Cur] {
            let files = self.list(place)?;
            let mut table = self.table();
            for file in files.iter() {
                table.saw(place, file, disk.scan);
            }
        }
        let table = self.table();
        Ok(missing.into_iter().filter(|uid| table.get(*uid).is_some_and(|r| r.scan != disk.scan)).collect())
    }

    /// Whether the directories certainly did not change since these times were taken.
    fn is_quiet(&self, look: &Look) -> Result<bool, Error> {
        let after = self.times()?;
        let settled = |stamp: Stamp| stamp.age(look.now) >= stamp.granularity();
        Ok(settled(look.new) && settled(look.cur) && after.new == look.new && after.cur == look.cur)
    }

    /// Two files with one base name: one message linked twice is left alone, two messages get two names.
    fn keep_apart(&self, disk: &mut Disk, found: &mut Scan, writable: bool) -> Result<(), Error> {
        disk.doubles = false;
        let path = |s: &Stranger| dirs::join(&self.dir.join(s.place.dir()), &s.file);
        let mut seconds: Vec<(PathBuf, PathBuf)> = Vec::new();
        for (uid, place, file) in found.twice.drain(..) {
            let first = self.table().get(uid).map(|r| r.path(&self.dir));
            seconds.extend(first.map(|first| (first, dirs::join(&self.dir.join(place.dir()), &file))));
        }
        if !found.appeared.is_empty() {
            let listed: HashMap<&BaseName, &Stranger> =
                found.appeared.iter().map(|a| (&a.stranger.base, &a.stranger)).collect();
            for second in found.strangers.extract_if(.., |s| listed.contains_key(&s.base)) {
                if let Some(first) = listed.get(&second.base) {
                    seconds.push((path(first), path(&second)));
                }
            }
        }
        found.strangers.sort_by(|a, b| name::delivery_order(a.base.bytes(), b.base.bytes()));
        found.strangers.dedup_by(|second, first| {
            let same = second.base == first.base;
            if same {
                seconds.push((path(first), path(second)));
            }
            same
        });
        for (first, second) in seconds {
            let (Ok(a), Ok(b)) = (fs::symlink_metadata(&first), fs::symlink_metadata(&second)) else {
                continue;
            };
            if Stamp::from(&a).same_file(&Stamp::from(&b)) {
                continue;
            }
            if !writable {
                disk.doubles = true;
                continue;
            }
            tracing::warn!(path = %second.display(), "second message with the same file name gets a new one");
            let fresh = name::unique_base(SystemTime::now()).into_bytes();
            match dirs::rename_new(&second, &dirs::join(&self.dir.join("new"), &fresh)) {
                Ok(()) => {
                    found.moved = true;
                    if let Some(base) = BaseName::of(&fresh) {
                        found.strangers.push(Stranger { base, place: Place::New, file: fresh });
                    }
                }
                Err(e) => tracing::warn!(path = %second.display(), error = %e, "cannot rename"),
            }
        }
        Ok(())
    }

    /// Gives UIDs, makes them durable, then shows all changes.
    fn finish(
        &self,
        disk: &mut Disk,
        lock: &mut Dotlock,
        mut found: Scan,
        removed: &[Uid],
    ) -> Result<(), Error> {
        found.appeared.sort_by_key(|a| a.uid);
        let Some(uids) = self.next_uids(found.strangers.len()) else { return self.renumber(disk) };
        let entries: Vec<Entry> = uids
            .into_iter()
            .zip(&found.strangers)
            .map(|(uid, s)| Entry { uid, keys: Keys::default(), base: s.base.clone() })
            .collect();
        lock.keep_alive();
        let listed: Vec<Entry> = found
            .appeared
            .iter()
            .map(|a| Entry { uid: a.uid, keys: a.keys.clone(), base: a.stranger.base.clone() })
            .collect();
        let written = self.write_list(disk, &listed, &entries, removed);
        let mut table = self.table();
        for record in table.remove(removed, ViewId::NONE) {
            disk.absent.insert(record.base, (record.uid, record.keys));
        }
        let scan = disk.scan;
        let record = |uid, keys, stranger: Stranger, fresh: bool| {
            let mut record = Record::listed(uid, stranger.base, keys);
            record.set_file(stranger.place, &stranger.file);
            record.scan = scan;
            // What another program listed and moved to `cur` was shown as recent there.
            if fresh || stranger.place == Place::New {
                record.recent = Recent::Unclaimed;
            }
            record
        };
        let appeared = found.appeared.into_iter().map(|a| record(a.uid, a.keys, a.stranger, false));
        let mut added: Vec<Record> = appeared.collect();
        let strangers = entries.into_iter().zip(found.strangers).map(|(e, s)| record(e.uid, e.keys, s, true));
        match written {
            Ok(()) => added.extend(strangers),
            Err(e) if !disk.loaded => return Err(e),
            Err(error) => {
                tracing::warn!(folder = %self.dir.display(), %error, "new messages cannot be listed yet");
                disk.rewrite = true;
            }
        }
        table.add(added);
        Ok(())
    }

    /// The next `count` UIDs; `None` when there are not that many left.
    pub(super) fn next_uids(&self, count: usize) -> Option<Vec<Uid>> {
        let next = self.table().next.max(1);
        (next..).take(count).map(|n| u32::try_from(n).ok().and_then(Uid::new)).collect()
    }

    /// Appends `entries`, or replaces the list where that is due. `listed` are in it already but not in the table,
    /// `removed` (ascending) still are in the table.
    pub(super) fn write_list(
        &self,
        disk: &mut Disk,
        listed: &[Entry],
        entries: &[Entry],
        removed: &[Uid],
    ) -> Result<(), Error> {
        let live = (self.table().len() + listed.len()).saturating_sub(removed.len());
        let dead = disk.lines.saturating_sub(live);
        let many_dead = dead > 50 && dead * 3 > live && !entries.is_empty();
        let many_learned =
            disk.learned > 0 && ((live < 1000 && !entries.is_empty()) || disk.learned * 8 > live);
        if !(disk.rewrite || many_dead || many_learned)
            && let Some(position) = disk.position.as_mut()
        {
            uidlist::append(&self.dir, position, entries)?;
            disk.lines += entries.len();
            return Ok(());
        }
        let mut all: Vec<(Uid, Keys, BaseName)> = {
            let table = self.table();
            let stays = |r: &&Record| removed.binary_search(&r.uid).is_err();
            table.records().iter().filter(stays).map(|r| (r.uid, r.keys.clone(), r.base.clone())).collect()
        };
        all.extend(listed.iter().chain(entries).map(|e| (e.uid, e.keys.clone(), e.base.clone())));
        let highest = all.last().map_or(0, |(uid, ..)| u64::from(uid.get()));
        let next = u32::try_from(self.table().next.max(highest + 1)).unwrap_or(u32::MAX);
        let Some(header) = &disk.header else { return Err(self.gone_error()) };
        let lines = all.iter().map(|(uid, keys, base)| (*uid, keys, base));
        disk.position = Some(uidlist::rewrite(&self.dir, header, next, lines)?);
        disk.lines = all.len();
        disk.rewrite = false;
        disk.learned = 0;
        // Whatever the old list held beyond this is not listed any more.
        disk.absent.clear();
        Ok(())
    }

    /// All UIDs are used up: a new UIDVALIDITY and an empty list, which the next opening fills from 1.
    pub(super) fn renumber<T>(&self, disk: &mut Disk) -> Result<T, Error> {
        tracing::warn!(folder = %self.dir.display(), "out of UIDs: the folder gets a new UIDVALIDITY");
        let validity = uidvalidity::allocate(&self.root, SystemTime::now())?;
        disk.position = Some(uidlist::rewrite(&self.dir, &Header::new(validity), 1, std::iter::empty())?);
        Err(self.gone_error())
    }

    fn read_names(&self, disk: &mut Disk, look: &Look) -> Result<(), Error> {
        if !disk.loaded || disk.keywords != look.keywords {
            let names = KeywordFile::read(&self.dir)?.names();
            self.table().set_names(names);
            disk.keywords = look.keywords;
        }
        Ok(())
    }

    /// After a change of the keyword file by ourselves.
    pub(super) fn reread_names(&self, disk: &mut Disk) -> Result<(), Error> {
        let look = self.times()?;
        self.read_names(disk, &look)
    }
}
