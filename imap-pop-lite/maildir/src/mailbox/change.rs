//! Changing messages: flags, expunge, append, copy.
//!
//! Every change is made under the uidlist lock, by the name the file has at that moment (reference note
//! "maildir-imap-pop3", section 10, steps 7 and 8). A name that is not there any more leads to a new scan.
//!
//! Trust: sessions, for what their user may do; other programs may rename or remove any file at any moment.
//! Never: change a message by a name remembered from before, or remove one that lacks the flags asked for.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::Arc;

use crate::delivery::{self, Placed, Source, Staged};
use crate::dirs;
use crate::error::Error;
use crate::flags::{FlagChange, FlagOp, Flags, Keyword, KeywordSet};
use crate::ids::{Uid, UidValidity};
use crate::keywords;
use crate::lock::Dotlock;
use crate::mailbox::Mailbox;
use crate::mailbox::sync::Disk;
use crate::name::{self, BaseName};
use crate::quota;
use crate::table::{Place, Recent, Record, ViewId};
use crate::uidlist::{Entry, Keys};

/// How often a message is looked for under a new name before giving up.
const TRIES: usize = 10;

/// What COPY and MOVE did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copied {
    /// UIDVALIDITY of the target.
    pub uid_validity: UidValidity,
    /// (source, target) in the order asked for; messages that were gone are missing.
    pub uids: Vec<(Uid, Uid)>,
}

/// What happens to the file of one message.
enum Step {
    /// Flags as they should be already.
    Keep,
    Rename {
        from: Place,
        old: Vec<u8>,
        new: Vec<u8>,
    },
}

impl Mailbox {
    /// STORE outside of a view (POP3's `\Seen`). Messages that are gone are left out.
    pub fn store(&self, uids: &[Uid], change: &FlagChange) -> Result<(), Error> {
        self.store_as(uids, change, ViewId::NONE)
    }

    pub(crate) fn store_as(&self, uids: &[Uid], change: &FlagChange, origin: ViewId) -> Result<(), Error> {
        self.changing(|disk, lock| {
            let set = self.letters_for(disk, change)?;
            self.retrying(disk, lock, uids, |_, lock, uids| self.store_round(lock, uids, change, set, origin))
        })
    }

    /// EXPUNGE: messages with `\Deleted`, of all or of those given.
    pub(crate) fn expunge_as(&self, only: Option<&[Uid]>, origin: ViewId) -> Result<Vec<Uid>, Error> {
        let deleted: Vec<Uid> = {
            let table = self.table();
            let only: Option<HashSet<Uid>> = only.map(|only| only.iter().copied().collect());
            let wanted = |uid: &Uid| only.as_ref().is_none_or(|only| only.contains(uid));
            let records = table.records().iter().filter(|r| r.flags.contains(Flags::DELETED));
            records.map(|r| r.uid).filter(wanted).collect()
        };
        self.remove_as(&deleted, Flags::DELETED, origin)
    }

    /// Removes messages whatever their flags (POP3 QUIT); returns those that were there.
    pub fn remove(&self, uids: &[Uid]) -> Result<Vec<Uid>, Error> {
        self.remove_as(uids, Flags::NONE, ViewId::NONE)
    }

    pub(crate) fn remove_as(&self, uids: &[Uid], having: Flags, origin: ViewId) -> Result<Vec<Uid>, Error> {
        if uids.is_empty() {
            return Ok(Vec::new());
        }
        let mut removed = Vec::new();
        self.changing(|disk, lock| {
            self.retrying(disk, lock, uids, |disk, lock, uids| {
                self.remove_round(disk, lock, uids, having, origin, &mut removed)
            })
        })?;
        Ok(removed)
    }

    /// Adds staged messages of this folder, all or none; returns their UIDs in order.
    pub fn append(&self, staged: Vec<Staged>) -> Result<Vec<Uid>, Error> {
        if staged.is_empty() {
            return Ok(Vec::new());
        }
        if staged.iter().any(|s| s.dir() != self.dir) {
            return Err(Error::Cannot("message was staged for another folder"));
        }
        self.changing(|disk, _| self.append_locked(disk, staged))
    }

    /// COPY to another folder (or this one), all or nothing. Order of `uids` is kept.
    pub(crate) fn copy_to(&self, uids: &[Uid], target: &Arc<Self>) -> Result<Copied, Error> {
        let mut sources = Vec::with_capacity(uids.len());
        let mut staged = Vec::with_capacity(uids.len());
        if quota::is_kept(&target.root) {
            let table = self.table();
            let records = uids.iter().filter_map(|uid| table.get(*uid));
            let bytes = records.map(|r| r.noted_size().unwrap_or(0)).sum();
            drop(table);
            quota::check(&target.root, bytes, i64::try_from(uids.len()).unwrap_or(i64::MAX))?;
        }
        for uid in uids {
            if let Some(message) = self.stage_copy(*uid, target)? {
                sources.push(*uid);
                staged.push(message);
            }
        }
        let copies = target.append(staged)?;
        Ok(Copied { uid_validity: target.uid_validity(), uids: sources.into_iter().zip(copies).collect() })
    }

    /// Runs a change: alone in this process, under the lock, with the list read to its end.
    fn changing<T>(
        &self,
        work: impl FnOnce(&mut Disk, &mut Dotlock) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.with_disk(|disk| {
            let mut lock = self.lock_list(self.lock_timeout)?;
            self.sync_locked(disk, &mut lock, false, false)?;
            self.table().begin();
            let result = work(disk, &mut lock);
            let noted = self.note_own(disk);
            result.and_then(|value| noted.map(|()| value))
        })
    }

    /// Repeats a round for the messages whose files had other names, after a scan for these.
    fn retrying(
        &self,
        disk: &mut Disk,
        lock: &mut Dotlock,
        uids: &[Uid],
        mut round: impl FnMut(&mut Disk, &mut Dotlock, &[Uid]) -> Result<Vec<Uid>, Error>,
    ) -> Result<(), Error> {
        let mut left = uids.to_vec();
        for _ in 0..TRIES {
            left = round(disk, lock, &left)?;
            if left.is_empty() {
                return Ok(());
            }
            self.rescan(disk, lock)?;
            self.table().begin();
        }
        left.first().map_or(Ok(()), |uid| Err(Error::Busy(*uid)))
    }

    fn letters_for(&self, disk: &mut Disk, change: &FlagChange) -> Result<KeywordSet, Error> {
        let known = self.keywords();
        if change.op == FlagOp::Remove {
            let found = change.keywords.iter().filter_map(|k| known.find(k.as_str()));
            return Ok(found.fold(KeywordSet::NONE, |all, one| all | one));
        }
        self.letters(disk, &change.keywords)
    }

    /// Letters of keywords, new ones included.
    fn letters(&self, disk: &mut Disk, keywords: &[Keyword]) -> Result<KeywordSet, Error> {
        let known = self.keywords();
        let found: Option<Vec<KeywordSet>> = keywords.iter().map(|k| known.find(k.as_str())).collect();
        if let Some(found) = found {
            return Ok(found.into_iter().fold(KeywordSet::NONE, |all, one| all | one));
        }
        let used = self.table().used_keywords();
        let set = keywords::assign(&self.dir, keywords, used)?;
        self.reread_names(disk)?;
        Ok(set)
    }

    fn store_round(
        &self,
        lock: &mut Dotlock,
        uids: &[Uid],
        change: &FlagChange,
        set: KeywordSet,
        origin: ViewId,
    ) -> Result<Vec<Uid>, Error> {
        let steps: Vec<(Uid, Step)> = {
            let table = self.table();
            uids.iter().filter_map(|uid| table.get(*uid)).map(|r| (r.uid, step(r, change, set))).collect()
        };
        let (new_dir, cur_dir) = (self.dir.join("new"), self.dir.join("cur"));
        let mut done: Vec<(Uid, Vec<u8>)> = Vec::with_capacity(steps.len());
        let mut again = Vec::new();
        let mut failed = None;
        for (uid, step) in steps {
            let Step::Rename { from, old, new } = step else { continue };
            lock.keep_alive();
            let source = dirs::join(if from == Place::New { &new_dir } else { &cur_dir }, &old);
            match dirs::rename_new(&source, &dirs::join(&cur_dir, &new)) {
                Ok(()) => done.push((uid, new)),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                    again.push(uid);
                }
                Err(e) => {
                    failed = Some(Error::io("rename", &source, e));
                    break;
                }
            }
        }
        let mut table = self.table();
        for (uid, name) in done {
            table.moved(uid, Place::Cur, &name, origin);
        }
        drop(table);
        failed.map_or(Ok(again), Err)
    }

    fn remove_round(
        &self,
        disk: &mut Disk,
        lock: &mut Dotlock,
        uids: &[Uid],
        having: Flags,
        origin: ViewId,
        removed: &mut Vec<Uid>,
    ) -> Result<Vec<Uid>, Error> {
        let counted = quota::is_kept(&self.root);
        let files: Vec<_> = {
            let table = self.table();
            let records = uids.iter().filter_map(|uid| table.get(*uid)).filter(|r| r.flags.contains(having));
            records.map(|r| (r.uid, r.path(&self.dir), r.noted_size())).collect()
        };
        let (mut bytes, mut gone, mut again, mut failed) = (0i64, Vec::new(), Vec::new(), None);
        for (uid, path, size) in files {
            lock.keep_alive();
            if counted {
                let size = size.or_else(|| fs::symlink_metadata(&path).ok().map(|m| m.len())).unwrap_or(0);
                bytes = bytes.saturating_sub(i64::try_from(size).unwrap_or(0));
            }
            match fs::remove_file(&path) {
                Ok(()) => gone.push(uid),
                Err(e) if e.kind() == io::ErrorKind::NotFound => again.push(uid),
                Err(e) => {
                    failed = Some(Error::io("remove", &path, e));
                    break;
                }
            }
        }
        if counted && !gone.is_empty() {
            quota::adjust(&self.root, bytes, -i64::try_from(gone.len()).unwrap_or(0));
        }
        // Their lines stay in the list until it is rewritten; that a name does not come back is known from here on.
        let records = self.table().remove(&gone, origin);
        disk.forget(records);
        removed.extend(gone);
        failed.map_or(Ok(again), Err)
    }

    fn append_locked(&self, disk: &mut Disk, mut staged: Vec<Staged>) -> Result<Vec<Uid>, Error> {
        let sets: Vec<KeywordSet> =
            staged.iter().map(|s| self.letters(disk, s.keywords())).collect::<Result<_, _>>()?;
        let Some(uids) = self.next_uids(staged.len()) else { return self.renumber(disk) };
        let mut placed: Vec<Placed> = Vec::with_capacity(staged.len());
        let done = place_all(&mut staged, &sets, &mut placed).and_then(|()| {
            let entries = entries(&staged, &uids);
            self.write_list(disk, &[], &entries, &[])?;
            Ok(entries)
        });
        let entries = match done {
            Ok(entries) => entries,
            Err(e) => {
                placed.iter().for_each(|p| {
                    p.undo();
                });
                return Err(e);
            }
        };
        placed.iter().for_each(Placed::count);
        let mut records = Vec::with_capacity(staged.len());
        for ((entry, message), set) in entries.into_iter().zip(&staged).zip(sets) {
            let (sub, file) = message.final_name(set);
            let mut record = Record::listed(entry.uid, entry.base, entry.keys);
            record.set_file(if sub == "new" { Place::New } else { Place::Cur }, &file);
            record.scan = disk.scan;
            record.recent = Recent::Unclaimed;
            records.push(record);
        }
        self.table().add(records);
        Ok(uids)
    }

    /// Links one message into the target's `tmp`. `None`: it is gone.
    fn stage_copy(&self, uid: Uid, target: &Arc<Self>) -> Result<Option<Staged>, Error> {
        for _ in 0..TRIES {
            let found = {
                let table = self.table();
                table.get(uid).map(|r| {
                    let keywords =
                        table.names.names_of(r.keywords).filter_map(|n| Keyword::try_from(n.as_str()).ok());
                    let (size, virtual_size) = (r.noted_size(), r.known_virtual_size());
                    (r.path(&self.dir), r.guid().to_vec(), size, virtual_size, r.flags, keywords.collect())
                })
            };
            let Some((path, guid, size, virtual_size, flags, keywords)) = found else { return Ok(None) };
            let source = Source { size, virtual_size, flags, keywords, guid: &guid };
            match Staged::of_message(target.target(), &path, &source) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    self.find_again()?;
                }
                other => return other.map(Some),
            }
        }
        Err(Error::Busy(uid))
    }

    /// A file was not there under its name: scan for it.
    pub(super) fn find_again(&self) -> Result<(), Error> {
        self.with_disk(|disk| {
            let mut lock = self.lock_list(self.lock_timeout)?;
            self.rescan(disk, &mut lock)
        })
    }
}

fn step(record: &Record, change: &FlagChange, set: KeywordSet) -> Step {
    let (flags, keywords) = change.apply(record.flags, record.keywords, set);
    if (flags, keywords) == (record.flags, record.keywords) {
        return Step::Keep;
    }
    let old = record.file_name();
    let new = name::with_info(&old, flags, keywords);
    Step::Rename { from: record.place, old, new }
}

fn place_all(staged: &mut [Staged], sets: &[KeywordSet], placed: &mut Vec<Placed>) -> Result<(), Error> {
    for (message, set) in staged.iter_mut().zip(sets) {
        placed.push(message.place(*set)?);
    }
    delivery::sync_placed(placed)
}

fn entries(staged: &[Staged], uids: &[Uid]) -> Vec<Entry> {
    let entry = |(message, uid): (&Staged, &Uid)| {
        let keys = message.guid().map_or_else(Keys::default, |guid| Keys::single(b'G', guid));
        Some(Entry { uid: *uid, keys, base: BaseName::of(message.base().as_bytes())? })
    };
    staged.iter().zip(uids).filter_map(entry).collect()
}

impl Disk {
    /// Remembers removed messages: a file of that name that comes back is another message.
    fn forget(&mut self, records: Vec<Record>) {
        for record in records {
            self.absent.insert(record.base, (record.uid, record.keys));
        }
    }
}
