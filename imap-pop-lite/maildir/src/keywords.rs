//! `dovecot-keywords`: the names behind the letters `a`–`z` in file names.
//!
//! Format:  `<0-25> <name>` lines; reference note "maildir-imap-pop3", section 4.8.
//! Locking: written only under the uidlist lock, through `dovecot-keywords.lock`.
//! Order:   a new name is written before the first file gets its letter, so that no reader meets a letter
//!          without a name.
//! Trust:   others write the file; names that are no keywords are kept in it but never shown.
//! Never:   give a letter that some file still carries to a new name.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::dirs;
use crate::error::{Context, Error};
use crate::flags::{Keyword, KeywordNames, KeywordSet};
use crate::lock::{self, Dotlock};
use crate::name::parse_decimal;
use crate::uidlist;

/// 26 names of at most 255 bytes fit with room to spare.
const LARGEST: u64 = 64 * 1024;

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("dovecot-keywords")
}

/// The file as it is: slot n is the name of letter `a` + n, whatever it looks like.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct KeywordFile {
    slots: [Option<Box<[u8]>>; KeywordSet::LIMIT],
}

impl KeywordFile {
    pub(crate) fn read(dir: &Path) -> Result<Self, Error> {
        let path = path(dir);
        let bytes = dirs::read_limited(&path, LARGEST).ctx("read", &path)?;
        Ok(Self::parse(bytes.as_deref().unwrap_or_default()))
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut file = Self::default();
        for line in bytes.split(|b| *b == b'\n') {
            let mut parts = line.splitn(2, |b| *b == b' ');
            let index = parts.next().and_then(parse_decimal).and_then(|n| usize::try_from(n).ok());
            let slot = index.and_then(|index| file.slots.get_mut(index));
            if let (Some(slot @ None), Some(name)) = (slot, parts.next())
                && !name.is_empty()
            {
                *slot = Some(name.into());
            }
        }
        file
    }

    /// What sessions see.
    pub(crate) fn names(&self) -> KeywordNames {
        let shown = |raw: &[u8]| -> Option<Box<str>> {
            let text = std::str::from_utf8(raw).ok()?;
            Keyword::try_from(text).is_ok().then(|| text.into())
        };
        KeywordNames::new(self.slots.iter().map(|slot| slot.as_deref().and_then(shown)).collect())
    }

    fn print(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, name) in self.slots.iter().enumerate() {
            if let Some(name) = name {
                out.extend_from_slice(format!("{index} ").as_bytes());
                out.extend_from_slice(name);
                out.push(b'\n');
            }
        }
        out
    }

    /// Gives every keyword a letter, new ones the first that no name and no file (`used`) has.
    fn assign(&mut self, keywords: &[Keyword], used: KeywordSet) -> Result<(KeywordSet, bool), Error> {
        let mut set = KeywordSet::NONE;
        let mut grown = false;
        for keyword in keywords {
            let wanted = keyword.as_str().as_bytes();
            let known =
                |slot: &Option<Box<[u8]>>| slot.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(wanted));
            let free = |(index, slot): (usize, &Option<Box<[u8]>>)| {
                slot.is_none() && KeywordSet::single(index).is_some_and(|bit| (used & bit).is_empty())
            };
            let index = match self.slots.iter().position(known) {
                Some(index) => index,
                None => self.slots.iter().enumerate().position(free).ok_or(Error::TooManyKeywords)?,
            };
            if let Some(slot @ None) = self.slots.get_mut(index) {
                *slot = Some(wanted.into());
                grown = true;
            }
            set = set | KeywordSet::single(index).unwrap_or_default();
        }
        Ok((set, grown))
    }
}

/// The letters of these keywords in a folder; new names are written. Needs the uidlist lock.
pub(crate) fn assign(dir: &Path, keywords: &[Keyword], used: KeywordSet) -> Result<KeywordSet, Error> {
    if keywords.is_empty() {
        return Ok(KeywordSet::NONE);
    }
    let mut file = KeywordFile::read(dir)?;
    let (set, grown) = file.assign(keywords, used)?;
    if grown {
        let path = path(dir);
        // Readers compare whole seconds, so the time must grow by one.
        let old = fs::metadata(&path).and_then(|m| m.modified()).ok();
        let modified = old.map(|old| SystemTime::now().max(old + Duration::from_secs(1)));
        let lock = Dotlock::acquire(&path, lock::KEYWORDS, Duration::from_secs(5))?;
        lock.replace(&path, &file.print(), modified)?;
    }
    Ok(set)
}

/// The same for a delivery, which holds no lock.
pub(crate) fn assign_locked(dir: &Path, keywords: &[Keyword]) -> Result<KeywordSet, Error> {
    let names = KeywordFile::read(dir)?.names();
    let mut set = KeywordSet::NONE;
    for keyword in keywords {
        let Some(known) = names.find(keyword.as_str()) else {
            let _lock = Dotlock::acquire(&uidlist::path(dir), lock::UIDLIST, Duration::from_secs(30))?;
            return assign(dir, keywords, KeywordSet::NONE);
        };
        set = set | known;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keyword(name: &str) -> Keyword {
        Keyword::try_from(name).unwrap()
    }

    #[test]
    fn hostile_files() {
        let file = KeywordFile::parse(
            b"0 $Forwarded\n1 a b)\n2 \n26 no\n-1 no\nx\n99999999999999999999 no\n3 NonJunk\n3 twice\n25 \xff\n\n4 torn",
        );
        let names = file.names();
        assert_eq!(names.all().collect::<Vec<_>>(), ["$Forwarded", "NonJunk", "torn"]);
        assert_eq!(names.name(1), "unknown-1");
        // What is not shown stays in the file.
        assert_eq!(file.print(), b"0 $Forwarded\n1 a b)\n3 NonJunk\n4 torn\n25 \xff\n");
    }

    #[test]
    fn letters_are_given_once() {
        let mut file = KeywordFile::parse(b"1 b\n");
        let used = KeywordSet::single(2).unwrap();
        let (set, grown) =
            file.assign(&[keyword("a"), keyword("B"), keyword("c"), keyword("A")], used).unwrap();
        assert_eq!(set.indexes().collect::<Vec<_>>(), [0, 1, 3]);
        assert!(grown);
        assert_eq!(file.print(), b"0 a\n1 b\n3 c\n");
        assert!(!file.assign(&[keyword("C")], used).unwrap().1);
    }

    #[test]
    fn the_27th_is_refused() {
        let mut file = KeywordFile::default();
        let all: Vec<Keyword> = (0..26).map(|n| keyword(&format!("k{n}"))).collect();
        assert_eq!(file.assign(&all, KeywordSet::NONE).unwrap().0.indexes().count(), 26);
        assert!(matches!(file.assign(&[keyword("one-more")], KeywordSet::NONE), Err(Error::TooManyKeywords)));
    }

    #[test]
    fn mtime_grows() {
        let dir = tempfile::tempdir().unwrap();
        assign(dir.path(), &[keyword("a")], KeywordSet::NONE).unwrap();
        let first = fs::metadata(path(dir.path())).unwrap().modified().unwrap();
        assign(dir.path(), &[keyword("b")], KeywordSet::NONE).unwrap();
        let second = fs::metadata(path(dir.path())).unwrap().modified().unwrap();
        assert!(second >= first + Duration::from_secs(1));
        assert_eq!(fs::read(path(dir.path())).unwrap(), b"0 a\n1 b\n");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let file = KeywordFile::parse(&bytes);
            prop_assert_eq!(KeywordFile::parse(&file.print()), file.clone());
            let _ = file.names();
        }
    }
}
