//! `dovecot-uidvalidity`: UIDVALIDITY values that are never given out twice in one tree.
//!
//! Format: reference note "maildir-imap-pop3", section 4.6: a file with eight hex digits and an empty marker
//!         file that carries the same digits in its name. Renaming the marker is the lock.
//! Trust:  file and markers are shared with other programs; digits that make no sense count as none.
//! Never:  give out a value that this tree's file or markers show as used.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;

use crate::dirs::{self, Rights};
use crate::error::{Context, Error};
use crate::ids::UidValidity;

const NAME: &str = "dovecot-uidvalidity";
/// How many other processes may take the next value before ours.
const TRIES: usize = 10;

/// Takes the next value of a tree.
pub(crate) fn allocate(root: &Path, now: SystemTime) -> Result<UidValidity, Error> {
    let path = root.join(NAME);
    let noted = dirs::read_limited(&path, 64).ctx("read", &path)?;
    let noted = noted.as_deref().and_then(|text| parse_hex(text.get(..8)?));
    let mut current = match noted {
        Some(value) => Some(value),
        None => largest_marker(root)?,
    };
    for _ in 0..TRIES {
        let Some(value) = current else { break };
        let next = value.checked_add(1).and_then(UidValidity::new);
        let Some(next) = next else { break };
        match fs::rename(marker(root, value), marker(root, next.get())) {
            Ok(()) => {
                note(root, next)?;
                return Ok(next);
            }
            // Somebody else went on, or only the file was copied here.
            Err(e) if e.kind() == io::ErrorKind::NotFound => current = Some(next.get()),
            Err(e) => return Err(Error::io("rename", &path, e)),
        }
    }
    // No marker near the noted value: start a new line above everything known.
    let clock = now.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let clock = u32::try_from(clock).unwrap_or(1);
    let known = [noted, largest_marker(root)?].into_iter().flatten().filter_map(|v| v.checked_add(1)).max();
    let mut value = UidValidity::new(known.unwrap_or(0).max(clock).max(1));
    while let Some(candidate) = value {
        let marker = marker(root, candidate.get());
        let rights = Rights::of(root).ctx("read", root)?;
        match dirs::create_new(&marker, rights) {
            // Its name is all there is to it; with Dovecot everybody may read it.
            Ok(_) => {
                note(root, candidate)?;
                return Ok(candidate);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                value = candidate.get().checked_add(1).and_then(UidValidity::new);
            }
            Err(e) => return Err(Error::io("create", &marker, e)),
        }
    }
    Err(Error::Cannot("all UIDVALIDITY values are used up"))
}

fn note(root: &Path, value: UidValidity) -> Result<(), Error> {
    let path = root.join(NAME);
    let text = format!("{:08x}", value.get());
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    match fs::OpenOptions::new().write(true).custom_flags(flags).open(&path) {
        Ok(mut file) => io::Write::write_all(&mut file, text.as_bytes()).ctx("write", &path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let rights = Rights::of(root).ctx("read", root)?;
            match dirs::create_new(&path, rights) {
                Ok(mut file) => io::Write::write_all(&mut file, text.as_bytes()).ctx("write", &path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(e) => Err(Error::io("create", &path, e)),
            }
        }
        Err(e) => Err(Error::io("write", &path, e)),
    }
}

fn marker(root: &Path, value: u32) -> PathBuf {
    root.join(format!("{NAME}.{value:08x}"))
}

fn largest_marker(root: &Path) -> Result<Option<u32>, Error> {
    let mut largest = None;
    for entry in fs::read_dir(root).ctx("read", root)? {
        let entry = entry.ctx("read", root)?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|n| n.strip_prefix(NAME)).and_then(|n| n.strip_prefix('.'));
        largest = largest.max(digits.and_then(|d| parse_hex(d.as_bytes())));
    }
    Ok(largest)
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().filter(|v| *v != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn take(root: &Path) -> u32 {
        allocate(root, at(1000)).unwrap().get()
    }

    #[test]
    fn values_grow() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!((take(root), take(root), take(root)), (1000, 1001, 1002));
        assert_eq!(fs::read(root.join(NAME)).unwrap(), b"000003ea");
        assert!(marker(root, 1002).exists());
        assert!(!marker(root, 1001).exists());
    }

    #[test]
    fn losses() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        take(root);
        // The file is lost: the marker tells.
        fs::remove_file(root.join(NAME)).unwrap();
        assert_eq!(take(root), 1001);
        // The marker is lost: the file tells.
        fs::remove_file(marker(root, 1001)).unwrap();
        assert_eq!(take(root), 1002);
        // The file lags behind the marker.
        fs::write(root.join(NAME), "000003e8").unwrap();
        assert_eq!(take(root), 1003);
        // Nonsense in the file.
        fs::write(root.join(NAME), "zz\n").unwrap();
        assert_eq!(take(root), 1004);
        // The highest value: there is no next one.
        fs::write(root.join(NAME), "ffffffff").unwrap();
        assert!(take(root) > 1004);
    }

    #[test]
    fn two_takers_never_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        take(root);
        let mut all: Vec<u32> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(move || (0..5).filter_map(|_| allocate(root, at(1000)).ok()).collect::<Vec<_>>())
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).map(UidValidity::get).collect()
        });
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
