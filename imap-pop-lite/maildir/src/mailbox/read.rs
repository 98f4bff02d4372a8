//! Reading messages and counting them.
//!
//! Trust: sizes in names and in the list are other programs' words; what does not fit the file is measured anew.
//! Never: give a message's bytes under another one's UID.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::dirs;
use crate::error::{Context, Error};
use crate::flags::Flags;
use crate::ids::{Uid, UidValidity};
use crate::mailbox::{BRIEF, Mailbox};
use crate::name;
use crate::table::{Recent, Record, Table};

/// How often a message is looked for under a new name before giving up.
const TRIES: usize = 10;

/// An open message.
#[derive(Debug)]
pub struct OpenMessage {
    /// Positioned at the start. Line ends are as on disk: LF or CRLF, also mixed.
    pub file: File,
    /// Bytes on disk.
    pub size: u64,
    /// Bytes with every line ending in CRLF; equals what must be sent for `BODY[]`.
    pub virtual_size: u64,
    /// INTERNALDATE.
    pub date: SystemTime,
}

/// Answers for STATUS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// MESSAGES
    pub messages: u32,
    /// RECENT
    pub recent: u32,
    /// UNSEEN
    pub unseen: u32,
    /// DELETED
    pub deleted: u32,
    /// Sum of virtual sizes; `None` unless asked for.
    pub size: Option<u64>,
    /// UIDNEXT
    pub uid_next: u32,
    /// UIDVALIDITY
    pub uid_validity: UidValidity,
}

/// One message of a POP3 session, in POP3 order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PopMessage {
    /// Its UID.
    pub uid: Uid,
    /// Octets with CRLF.
    pub size: u64,
    /// A UIDL that replaces the usual one (`P` record: migrated accounts).
    pub uidl: Option<String>,
    /// Base name of the file (for UIDL formats that use it).
    pub name: String,
}

impl Mailbox {
    /// STATUS; `size` needs every message's virtual size.
    pub fn status(&self, size: bool) -> Result<Status, Error> {
        self.look(false, BRIEF)?;
        let (mut status, unsized_uids) = {
            let table = self.table();
            let count =
                |wanted: fn(&Record) -> bool| narrow(table.records().iter().filter(|r| wanted(r)).count());
            let status = Status {
                messages: narrow(table.len()),
                recent: narrow(table.unclaimed()),
                unseen: count(|r| !r.flags.contains(Flags::SEEN)),
                deleted: count(|r| r.flags.contains(Flags::DELETED)),
                size: None,
                uid_next: u32::try_from(table.next).unwrap_or(u32::MAX),
                uid_validity: table.validity.unwrap_or(UidValidity::ONE),
            };
            (status, if size { without_size(&table) } else { Vec::new() })
        };
        if size {
            self.learn_sizes(&unsized_uids)?;
            let table = self.table();
            status.size = Some(table.records().iter().filter_map(Record::known_virtual_size).sum());
        }
        Ok(status)
    }

    /// The message list of a POP3 session. Like a read-write session it moves messages out of `new`.
    pub fn pop3_snapshot(&self) -> Result<Vec<PopMessage>, Error> {
        self.look(true, self.lock_timeout)?;
        let unsized_uids = {
            let mut table = self.table();
            table.claim(Recent::No);
            without_size(&table)
        };
        self.learn_sizes(&unsized_uids)?;
        let table = self.table();
        let mut list: Vec<(u64, PopMessage)> = table.records().iter().map(pop_message).collect();
        // Numbered messages come first; the rest keeps the order of UIDs.
        list.sort_by_key(|(order, _)| *order);
        Ok(list.into_iter().map(|(_, message)| message).collect())
    }

    /// Opens a message. `Expunged` when it is gone.
    pub fn open(&self, uid: Uid) -> Result<OpenMessage, Error> {
        let (file, meta) = self.with_file(uid, |path| dirs::open_regular(path))?;
        let size = meta.len();
        let date = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let known = {
            let mut table = self.table();
            let record = table.get_mut(uid);
            record.and_then(|record| {
                record.date = Some(date);
                // Sizes in a name that belong to other bytes are worth nothing.
                let fits =
                    record.virtual_size.is_some() || record.noted_size().is_none_or(|noted| noted == size);
                record.known_virtual_size().filter(|virtual_size| fits && *virtual_size >= size)
            })
        };
        let virtual_size = match known {
            Some(known) => known,
            None => self.measure(uid, &file, &meta)?,
        };
        Ok(OpenMessage { file, size, virtual_size, date })
    }

    /// RFC822.SIZE; reads the file once when nobody noted it.
    pub fn virtual_size(&self, uid: Uid) -> Result<u64, Error> {
        let known = self.table().get(uid).map(Record::known_virtual_size);
        match known {
            Some(Some(size)) => Ok(size),
            _ => self.open(uid).map(|open| open.virtual_size),
        }
    }

    /// INTERNALDATE.
    pub fn internal_date(&self, uid: Uid) -> Result<SystemTime, Error> {
        if let Some(Some(date)) = self.table().get(uid).map(|r| r.date) {
            return Ok(date);
        }
        let meta = self.with_file(uid, |path| path.symlink_metadata())?;
        let date = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some(record) = self.table().get_mut(uid) {
            record.date = Some(date);
        }
        Ok(date)
    }

    /// Message GUID (EMAILID): survives COPY.
    pub fn message_guid(&self, uid: Uid) -> Result<String, Error> {
        let table = self.table();
        let record = table.get(uid).ok_or(Error::Expunged(uid))?;
        Ok(String::from_utf8_lossy(record.guid()).into_owned())
    }

    /// Does something with a message's file, whatever its name is by now.
    fn with_file<T>(&self, uid: Uid, work: impl Fn(&PathBuf) -> io::Result<T>) -> Result<T, Error> {
        for _ in 0..TRIES {
            let Some(path) = self.table().get(uid).map(|r| r.path(&self.dir)) else {
                return Err(Error::Expunged(uid));
            };
            match work(&path) {
                Ok(value) => return Ok(value),
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.find_again()?,
                Err(e) => return Err(Error::io("open", &path, e)),
            }
        }
        Err(Error::Busy(uid))
    }

    /// Works out the virtual size and remembers it.
    fn measure(&self, uid: Uid, file: &File, meta: &Metadata) -> Result<u64, Error> {
        let path = &self.dir;
        let bare = count_bare(file).ctx("read a message of", path)?;
        let size = meta.len() + bare;
        if let Some(record) = self.table().get_mut(uid) {
            record.virtual_size = Some(size);
            if name::noted_size(record.base.bytes(), b'W').is_none() {
                record.keys.set(b'W', size);
            }
        }
        Ok(size)
    }

    /// Sizes of messages that carry none; the list keeps them for next time.
    fn learn_sizes(&self, uids: &[Uid]) -> Result<(), Error> {
        let mut learned = 0;
        for uid in uids {
            match self.virtual_size(*uid) {
                Ok(_) => learned += 1,
                Err(Error::Expunged(_)) => {}
                Err(e) => return Err(e),
            }
        }
        if learned == 0 {
            return Ok(());
        }
        let kept = self.with_disk(|disk| {
            disk.learned += learned;
            let mut lock = self.lock_list(BRIEF)?;
            self.sync_locked(disk, &mut lock, false, false)?;
            self.write_list(disk, &[], &[], &[])
        });
        if let Err(error) = kept {
            tracing::debug!(folder = %self.dir.display(), %error, "cannot note sizes in the UID list");
        }
        Ok(())
    }
}

/// LFs without a CR in front; leaves the position at the start.
fn count_bare(mut file: &File) -> io::Result<u64> {
    use std::io::Seek as _;
    let mut buffer = vec![0; 64 * 1024];
    let (mut bare, mut after_cr) = (0u64, false);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', bytes) {
            let cr = at.checked_sub(1).map_or(after_cr, |before| bytes.get(before) == Some(&b'\r'));
            bare += u64::from(!cr);
        }
        after_cr = bytes.last() == Some(&b'\r');
    }
    file.rewind()?;
    Ok(bare)
}

fn without_size(table: &Table) -> Vec<Uid> {
    table.records().iter().filter(|r| r.known_virtual_size().is_none()).map(|r| r.uid).collect()
}

fn pop_message(record: &Record) -> (u64, PopMessage) {
    let name = String::from_utf8_lossy(record.base.bytes()).into_owned();
    let uidl = record.keys.find(b'P').map(|value| {
        if value.is_empty() { name.clone() } else { String::from_utf8_lossy(value).into_owned() }
    });
    let order = record.keys.find(b'O').and_then(name::parse_decimal).unwrap_or(u64::MAX);
    let size = record.known_virtual_size().unwrap_or(0);
    (order, PopMessage { uid: record.uid, size, uidl, name })
}

/// A folder cannot hold 2^32 messages.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn bare_line_ends() {
        let cases: [(&[u8], u64); 6] =
            [(b"", 0), (b"\n", 1), (b"a\r\nb\n", 1), (b"\r\n", 0), (b"\r", 0), (b"\n\n\r\r\n", 2)];
        for (text, expected) in cases {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            file.rewind().unwrap();
            assert_eq!(count_bare(&file).unwrap(), expected, "{text:?}");
            assert_eq!(file.stream_position().unwrap(), 0);
        }
        // CRLF across the buffer's end.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 64 * 1024 - 1]).unwrap();
        file.write_all(b"\r\n\n").unwrap();
        file.rewind().unwrap();
        assert_eq!(count_bare(&file).unwrap(), 1);
    }
}
