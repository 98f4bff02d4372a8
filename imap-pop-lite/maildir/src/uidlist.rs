//! `dovecot-uidlist` version 3: reading, appending, replacing.
//!
//! Purpose:  stable UIDs for the files of one Maildir folder, shared with Dovecot.
//! Format:   reference note "maildir-imap-pop3", section 4.
//! Trust:    the file is written by other programs; every line is validated, a bad line costs that line only,
//!           memory is bounded by [`LARGEST`].
//! Locking:  all writes need the lock on [`path`]; reads do not.
//! Never:    change existing bytes, hand out a UID twice, write a line Dovecot would reject.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::dirs::{self, Rights, Stamp};
use crate::error::{Context, Error};
use crate::ids::{Uid, UidValidity};
use crate::name::{BaseName, parse_decimal};

/// A list of a million messages takes some 80 MB; more is not believed.
pub(crate) const LARGEST: u64 = 256 * 1024 * 1024;
/// Longest line: a name of 255 bytes and keys.
const LONGEST_LINE: usize = 4096;
/// How far beyond the last good UID a number in a bad line is taken for a UID that was handed out.
const PLAUSIBLE_GAP: u64 = 1_000_000;

/// The list of a folder.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("dovecot-uidlist")
}

/// A mailbox GUID: 128 bits, 32 hex digits in the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MailboxGuid([u8; 16]);

impl MailboxGuid {
    pub(crate) fn new() -> Self {
        let mut bytes = [0; 16];
        if getrandom::fill(&mut bytes).is_err() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            bytes = (now.as_nanos() ^ (u128::from(std::process::id()) << 96)).to_be_bytes();
        }
        Self(bytes)
    }

    fn parse(hex: &[u8]) -> Option<Self> {
        if hex.len() != 32 || !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u128::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok().map(|n| Self(n.to_be_bytes()))
    }
}

impl std::fmt::Display for MailboxGuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// First line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    pub(crate) version: u8,
    pub(crate) validity: UidValidity,
    /// Next UID at the time of the last rewrite: a lower bound.
    pub(crate) next: u32,
    pub(crate) guid: Option<MailboxGuid>,
    /// Keys of others, verbatim, each with its blank in front.
    pub(crate) other: Vec<u8>,
}

impl Header {
    /// The header of a list that never was.
    pub(crate) fn new(validity: UidValidity) -> Self {
        Self { version: 3, validity, next: 1, guid: Some(MailboxGuid::new()), other: Vec::new() }
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|b| *b == b' ');
        let version = match words.next()? {
            b"1" => 1,
            b"3" => 3,
            _ => return None,
        };
        if version == 1 {
            let validity = uid_validity(words.next()?)?;
            let next = next_uid(words.next()?)?;
            return Some(Self { version, validity, next, guid: None, other: Vec::new() });
        }
        let (mut validity, mut next, mut guid, mut other) = (None, 1, None, Vec::new());
        for word in words {
            match word.split_first() {
                Some((b'V', value)) => validity = Some(uid_validity(value)?),
                Some((b'N', value)) => next = next_uid(value)?,
                Some((b'G', value)) => guid = MailboxGuid::parse(value),
                Some((b'A'..=b'Z', _)) => {
                    other.push(b' ');
                    other.extend_from_slice(word);
                }
                _ => {}
            }
        }
        Some(Self { version, validity: validity?, next, guid, other })
    }

    fn print(&self, next: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("3 V{} N{next}", self.validity).as_bytes());
        if let Some(guid) = self.guid {
            out.extend_from_slice(format!(" G{guid}").as_bytes());
        }
        out.extend_from_slice(&self.other);
        out.push(b'\n');
    }
}

fn uid_validity(digits: &[u8]) -> Option<UidValidity> {
    parse_decimal(digits).and_then(|n| u32::try_from(n).ok()).and_then(UidValidity::new)
}

fn next_uid(digits: &[u8]) -> Option<u32> {
    parse_decimal(digits).and_then(|n| u32::try_from(n).ok()).filter(|n| *n != 0)
}

/// The keys of a record, verbatim: letter and value, separated by single blanks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Keys(Option<Box<[u8]>>);

impl Keys {
    /// Drops words that do not begin with a capital letter, as Dovecot does.
    fn parse(text: &[u8]) -> Self {
        let mut kept = Vec::new();
        for word in text.split(|b| *b == b' ').filter(|w| w.first().is_some_and(u8::is_ascii_uppercase)) {
            if !kept.is_empty() {
                kept.push(b' ');
            }
            kept.extend_from_slice(word);
        }
        if kept.is_empty() { Self(None) } else { Self(Some(kept.into())) }
    }

    /// One key; the value must not hold blanks or line ends.
    pub(crate) fn single(key: u8, value: &[u8]) -> Self {
        if value.iter().any(|b| matches!(b, b' ' | b'\n' | b'\r')) {
            return Self(None);
        }
        Self(Some([&[key], value].concat().into()))
    }

    pub(crate) fn find(&self, key: u8) -> Option<&[u8]> {
        let text = self.0.as_deref()?;
        text.split(|b| *b == b' ').find_map(|w| w.split_first().filter(|(k, _)| **k == key).map(|(_, v)| v))
    }

    /// Sets a numeric key.
    pub(crate) fn set(&mut self, key: u8, value: u64) {
        let mut text: Vec<u8> = Vec::new();
        for word in self.bytes().split(|b| *b == b' ').filter(|w| !w.is_empty() && w.first() != Some(&key)) {
            text.extend_from_slice(word);
            text.push(b' ');
        }
        text.push(key);
        text.extend_from_slice(value.to_string().as_bytes());
        self.0 = Some(text.into());
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// One message line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) uid: Uid,
    pub(crate) keys: Keys,
    pub(crate) base: BaseName,
}

impl Entry {
    fn parse(line: &[u8], version: u8) -> Option<Self> {
        let (digits, rest) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let uid = parse_decimal(digits).and_then(|n| u32::try_from(n).ok()).and_then(Uid::new)?;
        if version == 1 {
            return Some(Self { uid, keys: Keys::default(), base: BaseName::of(rest.get(1..)?)? });
        }
        // ` :name` or ` K1 K2 :name`; the first " :" ends the keys.
        let at = memchr::memmem::find(rest, b" :")?;
        let (keys, name) = rest.split_at_checked(at)?;
        let base = BaseName::of(name.get(2..)?)?;
        Some(Self { uid, keys: Keys::parse(keys), base })
    }

    pub(crate) fn print(&self, out: &mut Vec<u8>) {
        print_line(self.uid, &self.keys, &self.base, out);
    }
}

fn print_line(uid: Uid, keys: &Keys, base: &BaseName, out: &mut Vec<u8>) {
    out.extend_from_slice(uid.to_string().as_bytes());
    out.push(b' ');
    if !keys.bytes().is_empty() {
        out.extend_from_slice(keys.bytes());
        out.push(b' ');
    }
    out.push(b':');
    out.extend_from_slice(base.bytes());
    out.push(b'\n');
}

/// Lines after the header, or after what was read before.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Ascending by UID.
    pub(crate) entries: Vec<Entry>,
    /// Lines that were not understood; the list must be rewritten.
    pub(crate) bad: usize,
    /// Smallest number no line has handed out yet.
    pub(crate) next: u64,
    /// Bytes up to the end of the last whole line.
    length: u64,
    /// Bytes without a line end at the end: being written right now, or torn by a crash.
    pub(crate) torn: bool,
}

fn parse_lines(bytes: &[u8], version: u8, after: u32) -> Lines {
    let mut lines = Lines { next: u64::from(after) + 1, ..Lines::default() };
    let mut rest = bytes;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, behind) = rest.split_at(end);
        rest = behind.get(1..).unwrap_or_default();
        let short = line.len() <= LONGEST_LINE;
        match if short { Entry::parse(line, version) } else { None } {
            Some(entry) if u64::from(entry.uid.get()) >= lines.next => {
                lines.next = u64::from(entry.uid.get()) + 1;
                lines.entries.push(entry);
            }
            _ => {
                lines.bad += 1;
                let digits = line.split(|b| !b.is_ascii_digit()).next().unwrap_or_default();
                // The line may have been a message's: its UID must not be given to another.
                if let Some(number) = parse_decimal(digits)
                    && number >= lines.next
                    && number - lines.next < PLAUSIBLE_GAP
                {
                    lines.next = number + 1;
                }
            }
        }
    }
    lines.length = (bytes.len() - rest.len()) as u64;
    lines.torn = !rest.is_empty();
    lines
}

/// What a look at the file found.
#[derive(Debug)]
pub(crate) enum Found {
    /// No file.
    Missing,
    /// No usable header (or an absurd size): the UIDs are lost.
    Unusable,
    /// Nothing new.
    Unchanged,
    /// The same file has grown.
    Tail(Lines),
    /// Another file.
    Whole(Header, Lines),
}

/// Where reading stopped.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    stamp: Stamp,
    length: u64,
    version: u8,
    last: u32,
}

/// Reads what is new since `position`.
pub(crate) fn read(dir: &Path, position: &mut Option<Position>) -> Result<Found, Error> {
    let path = path(dir);
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let meta = file.metadata().ctx("read", &path)?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Ok(Found::Unusable);
    }
    let stamp = Stamp::from(&meta);
    if let Some(position) = position {
        if position.stamp == stamp {
            return Ok(Found::Unchanged);
        }
        // Existing bytes are immutable: a file that only grew needs only its tail read.
        if position.stamp.same_file(&stamp) && position.version == 3 && stamp.size() > position.length {
            file.seek(SeekFrom::Start(position.length)).ctx("read", &path)?;
            let bytes = read_all(file, &path)?;
            let lines = parse_lines(&bytes, 3, position.last);
            if lines.bad == 0 {
                position.advance(stamp, &lines);
                return Ok(Found::Tail(lines));
            }
            file = OpenOptions::new().read(true).custom_flags(flags).open(&path).ctx("open", &path)?;
        }
    }
    let bytes = read_all(file, &path)?;
    let end = memchr::memchr(b'\n', bytes.get(..LONGEST_LINE.min(bytes.len())).unwrap_or_default());
    let header = end.and_then(|end| bytes.get(..end)).and_then(Header::parse);
    let (Some(end), Some(header)) = (end, header) else {
        tracing::warn!(path = %path.display(), "no usable header in the UID list");
        return Ok(Found::Unusable);
    };
    let lines = parse_lines(bytes.get(end + 1..).unwrap_or_default(), header.version, 0);
    if lines.bad > 0 {
        tracing::warn!(path = %path.display(), lines = lines.bad, "unusable lines in the UID list");
    }
    let mut new = Position { stamp, length: end as u64 + 1, version: header.version, last: 0 };
    new.advance(stamp, &lines);
    *position = Some(new);
    Ok(Found::Whole(header, lines))
}

fn read_all(file: File, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).ctx("read", path)?;
    Ok(bytes)
}

impl Position {
    fn advance(&mut self, stamp: Stamp, lines: &Lines) {
        self.stamp = stamp;
        self.length += lines.length;
        if let Some(last) = lines.entries.last() {
            self.last = last.uid.get();
        }
    }

    /// Whether the file at the path is the one read last, unchanged.
    pub(crate) fn is_current(&self, dir: &Path) -> bool {
        matches!(Stamp::of(&path(dir)), Ok(Some(stamp)) if stamp == self.stamp)
    }
}

/// Adds lines at the end, in one write, and makes them durable. Needs the lock and an up-to-date position.
pub(crate) fn append(dir: &Path, position: &mut Position, entries: &[Entry]) -> Result<(), Error> {
    let Some(last) = entries.last() else { return Ok(()) };
    let path = path(dir);
    let mut bytes = Vec::with_capacity(entries.len() * 80);
    entries.iter().for_each(|entry| entry.print(&mut bytes));
    let mut file = OpenOptions::new()
        .append(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&path)
        .ctx("open", &path)?;
    let before = file.metadata().ctx("read", &path)?.len();
    let written = file.write_all(&bytes).and_then(|()| file.sync_data());
    if let Err(e) = written {
        // Half a line would spoil the next one. The bytes are ours and the lock is held.
        if let Err(e) = file.set_len(before) {
            tracing::warn!(path = %path.display(), error = %e, "cannot take back a torn line");
        }
        return Err(Error::io("write", &path, e));
    }
    let meta = file.metadata().ctx("read", &path)?;
    position.stamp = Stamp::from(&meta);
    position.length = meta.len();
    position.last = last.uid.get();
    Ok(())
}

/// Writes the whole list anew and renames it into place. Needs the lock. `entries` ascend by UID.
pub(crate) fn rewrite<'a>(
    dir: &Path,
    header: &Header,
    next: u32,
    entries: impl Iterator<Item = (Uid, &'a Keys, &'a BaseName)>,
) -> Result<Position, Error> {
    let path = path(dir);
    let tmp = dir.join("dovecot-uidlist.tmp");
    let mut bytes = Vec::new();
    header.print(next, &mut bytes);
    let mut last = 0;
    for (uid, keys, base) in entries {
        print_line(uid, keys, base, &mut bytes);
        last = uid.get();
    }
    let rights = Rights::of(dir).ctx("read", dir)?;
    let _ = fs::remove_file(&tmp);
    let mut file = dirs::create_new(&tmp, rights).ctx("create", &tmp)?;
    let written =
        file.write_all(&bytes).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&tmp, &path));
    if let Err(e) = written {
        let _ = fs::remove_file(&tmp);
        return Err(Error::io("write", &tmp, e));
    }
    dirs::sync_dir(dir).ctx("sync", dir)?;
    let meta = file.metadata().ctx("read", &path)?;
    Ok(Position { stamp: Stamp::from(&meta), length: meta.len(), version: 3, last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUID: &str = "6052a8040371006b3924000083ecc375";

    fn header(line: &str) -> Option<(u8, u32, u32, bool, String)> {
        Header::parse(line.as_bytes()).map(|h| {
            (h.version, h.validity.get(), h.next, h.guid.is_some(), String::from_utf8(h.other).unwrap())
        })
    }

    #[test]
    fn headers() {
        let full = format!("3 V1795191043 N7 G{GUID} Pxyz Qodd");
        assert_eq!(header(&full), Some((3, 1_795_191_043, 7, true, " Pxyz Qodd".into())));
        assert_eq!(header("3 V1 Gshort x9"), Some((3, 1, 1, false, String::new())));
        assert_eq!(header("1 5 9"), Some((1, 5, 9, false, String::new())));
        for bad in [
            "",
            "3",
            "2 V1 N1",
            "3 N1",
            "3 V0 N1",
            "3 V1 N0",
            "3 Vx",
            "3 V4294967296",
            "1 5",
            "1 0 1",
            "V1",
            "3  ",
        ] {
            assert_eq!(header(bad), None, "{bad:?}");
        }
        let mut out = Vec::new();
        Header::parse(full.as_bytes()).unwrap().print(12, &mut out);
        assert_eq!(out, full.replace("N7", "N12").into_bytes().into_iter().chain(*b"\n").collect::<Vec<_>>());
    }

    #[test]
    fn records() {
        let cases: [(&str, Option<&str>); 17] = [
            ("1 :a.b,S=1,W=2", Some("1 :a.b,S=1,W=2")),
            ("4 W32 :x", Some("4 W32 :x")),
            ("7 G1.M1.a PUID15-1234 :x", Some("7 G1.M1.a PUID15-1234 :x")),
            ("7 P O3 :x", Some("7 P O3 :x")),
            ("7 w9 W1 :x", Some("7 W1 :x")),
            ("1 :a:2,S", Some("1 :a")),
            ("1 :a b", Some("1 :a b")),
            ("1 :a :b", Some("1 :a ")),
            ("4294967294 :x", Some("4294967294 :x")),
            ("4294967295 :x", None),
            ("0 :x", None),
            ("x :x", None),
            ("1", None),
            ("1 :", None),
            ("1 x", None),
            ("1 :a/b", None),
            ("-1 :x", None),
        ];
        for (line, expected) in cases {
            let got = Entry::parse(line.as_bytes(), 3).map(|entry| {
                let mut out = Vec::new();
                entry.print(&mut out);
                String::from_utf8(out).unwrap()
            });
            assert_eq!(got, expected.map(|e| format!("{e}\n")), "{line:?}");
        }
        let v1 = Entry::parse(b"12 1.M2.h:2,S", 1).unwrap();
        assert_eq!((v1.uid.get(), v1.base.bytes()), (12, &b"1.M2.h"[..]));
        let keys = Keys::parse(b" W32 P G");
        assert_eq!(
            (keys.find(b'W'), keys.find(b'P'), keys.find(b'X')),
            (Some(&b"32"[..]), Some(&b""[..]), None)
        );
    }

    #[test]
    fn bad_lines_cost_only_themselves() {
        let text = b"1 :a\ngarbage\n2 :b\n2 :c\n1 :d\n9 :e/\n10 :f\n4294967295 :g\n11 :torn";
        let lines = parse_lines(text, 3, 0);
        let kept: Vec<u32> = lines.entries.iter().map(|e| e.uid.get()).collect();
        assert_eq!(kept, [1, 2, 10]);
        assert_eq!((lines.bad, lines.next, lines.torn), (5, 11, true));
        assert_eq!(lines.length, text.len() as u64 - 8);
        // The number of a spoiled last line is not handed out again.
        assert_eq!(parse_lines(b"1 :a\n7 :x/y\n", 3, 0).next, 8);
        // But an absurd one does not use up the numbers.
        assert_eq!(parse_lines(b"1 :a\n4000000000 :x/y\n", 3, 0).next, 2);
        let long = [b"1 :".as_slice(), &[b'x'; 5000], b"\n"].concat();
        assert_eq!(parse_lines(&long, 3, 0).bad, 1);
    }

    fn entry(uid: u32, base: &str) -> Entry {
        Entry {
            uid: Uid::new(uid).unwrap(),
            keys: Keys::default(),
            base: BaseName::of(base.as_bytes()).unwrap(),
        }
    }

    fn uids(found: &Found) -> Vec<u32> {
        match found {
            Found::Tail(lines) | Found::Whole(_, lines) => {
                lines.entries.iter().map(|e| e.uid.get()).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn write_read_append() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = None;
        assert!(matches!(read(dir.path(), &mut at), Ok(Found::Missing)));
        let header = Header::parse(format!("3 V5 N1 G{GUID} Zkeep").as_bytes()).unwrap();
        let first = [entry(1, "a"), entry(4, "b")];
        let mut ours =
            rewrite(dir.path(), &header, 5, first.iter().map(|e| (e.uid, &e.keys, &e.base))).unwrap();
        assert!(ours.is_current(dir.path()));
        let found = read(dir.path(), &mut at).unwrap();
        assert!(matches!(&found, Found::Whole(h, _) if h.next == 5 && h.other == b" Zkeep"));
        assert_eq!(uids(&found), [1, 4]);
        append(dir.path(), &mut ours, &[entry(5, "c"), entry(6, "d")]).unwrap();
        assert!(ours.is_current(dir.path()));
        let found = read(dir.path(), &mut at).unwrap();
        assert!(matches!(found, Found::Tail(_)));
        assert_eq!(uids(&found), [5, 6]);
        assert!(matches!(read(dir.path(), &mut at), Ok(Found::Unchanged)));
        // A tail that makes no sense leads to a whole read.
        let mut file = OpenOptions::new().append(true).open(path(dir.path())).unwrap();
        file.write_all(b"3 :late\n7 :e\n").unwrap();
        let found = read(dir.path(), &mut at).unwrap();
        assert!(matches!(&found, Found::Whole(_, lines) if lines.bad == 1));
        assert_eq!(uids(&found), [1, 4, 5, 6, 7]);
    }

    #[test]
    fn unusable_files() {
        let dir = tempfile::tempdir().unwrap();
        for text in [&b""[..], b"garbage\n", b"3 V1 N1", b"3 V0 N1\n", &[0xff; 10000], &[b'\n'; 100]] {
            fs::write(path(dir.path()), text).unwrap();
            assert!(matches!(read(dir.path(), &mut None), Ok(Found::Unusable)), "{text:?}");
        }
        let file = File::create(path(dir.path())).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        assert!(matches!(read(dir.path(), &mut None), Ok(Found::Unusable)));
        fs::remove_file(path(dir.path())).unwrap();
        fs::create_dir(path(dir.path())).unwrap();
        assert!(matches!(read(dir.path(), &mut None), Ok(Found::Unusable)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::parse(&bytes);
            let _ = parse_lines(&bytes, 3, 0);
            let _ = parse_lines(&bytes, 1, 77);
        }

        #[test]
        fn what_is_printed_is_what_is_read(text in "([0-9]{1,11} ?[A-Zw0-9 ]{0,6} ?:[a-z.:/]{0,6}\n){0,8}") {
            let lines = parse_lines(text.as_bytes(), 3, 0);
            let mut out = Vec::new();
            lines.entries.iter().for_each(|e| e.print(&mut out));
            let again = parse_lines(&out, 3, 0);
            prop_assert_eq!(again.bad, 0);
            prop_assert_eq!(again.entries, lines.entries);
        }
    }
}
