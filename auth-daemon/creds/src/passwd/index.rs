//! The file in memory: its bytes once, and a hash table of line offsets.
//!
//! A million lines cost their own bytes and 16 MiB of table. Keys come from clients, so the table is keyed with
//! random SipHash keys.
//!
//! Trust: lines are whatever the file holds; a line that is not understood is told of and left out.
//! Never: let names that clients choose make look-ups slow.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use memchr::memchr;
use zeroize::Zeroizing;

use super::line::Entry;

/// Turns names in the uid and gid columns into numbers. NSS may only be asked in some processes, so it is handed in.
pub trait ResolveIds {
    /// The uid of a system user; `None`: there is none.
    ///
    /// # Errors
    /// Nobody can say now.
    fn uid(&self, name: &str) -> Result<Option<u32>, String>;
    /// The gid of a system group.
    ///
    /// # Errors
    /// Nobody can say now.
    fn gid(&self, name: &str) -> Result<Option<u32>, String>;
}

/// Knows no names; only numbers are accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct NumericIds;

impl ResolveIds for NumericIds {
    fn uid(&self, _name: &str) -> Result<Option<u32>, String> {
        Ok(None)
    }

    fn gid(&self, _name: &str) -> Result<Option<u32>, String> {
        Ok(None)
    }
}

/// Numeric ids of an entry; `None` where the column is empty or absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids {
    /// The uid.
    pub uid: Option<u32>,
    /// The gid.
    pub gid: Option<u32>,
}

/// A uid or gid column that is zero or an unknown name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the uid or gid is zero or unknown")]
pub struct UnresolvedId;

/// What building the index found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Users that can be looked up.
    pub users: usize,
    /// Lines ignored because an earlier one has the same name.
    pub duplicates: usize,
    /// Lines rejected because of a bad uid or gid.
    pub rejected: usize,
    /// The first few of those in words.
    pub notes: Vec<String>,
    /// Names could not be looked up at all, so the index is not to be used; why.
    pub unresolved: Option<String>,
}

impl Report {
    const MAX_NOTES: usize = 10;

    fn note(&mut self, line: usize, name: &[u8], what: &str) {
        if self.notes.len() < Report::MAX_NOTES {
            self.notes.push(format!("line {line}: user {:?} {what}", String::from_utf8_lossy(name)));
        }
    }
}

/// A file's users.
pub struct Index {
    text: Zeroizing<Vec<u8>>,
    /// Offset of the line plus one in the low 40 bits, a tag of the hash above; zero is empty.
    slots: Box<[u64]>,
    hasher: RandomState,
    /// Names in uid (`u…`) and gid (`g…`) columns.
    names: HashMap<Vec<u8>, u32>,
    report: Report,
}

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

impl Index {
    /// Builds the index. With `ids` the file is also a userdb, and a line with a bad uid or gid is rejected whole.
    pub fn build(text: Vec<u8>, ids: Option<&dyn ResolveIds>) -> Index {
        let text = Zeroizing::new(text);
        let lines = memchr::memchr_iter(b'\n', &text).count() + 1;
        let capacity = (lines + lines / 4 + 8).next_power_of_two();
        let mut index = Index {
            text,
            slots: vec![0; capacity].into_boxed_slice(),
            hasher: RandomState::new(),
            names: HashMap::new(),
            report: Report::default(),
        };
        let mut start = 0;
        let mut number = 0;
        while let Some(line) = index.line_at(start).filter(|_| index.report.unresolved.is_none()) {
            number += 1;
            let next = start + line.len() + 1;
            index.insert(start, number, ids);
            start = next;
        }
        index
    }

    /// Finds an entry by its exact key.
    pub fn lookup(&self, key: &[u8]) -> Option<Entry<'_>> {
        self.find(key).map(|(_, entry)| entry)
    }

    /// Finds an entry by canonical name: the key itself, or the bare local part when the domain is the default
    /// one. When both are there the earlier line wins, as with any duplicate.
    pub fn lookup_user(&self, name: &[u8], default_domain: &[u8]) -> Option<Entry<'_>> {
        let full = self.find(name);
        let bare = bare_name(name, default_domain).and_then(|local| self.find(local));
        match (full, bare) {
            (Some(full), Some(bare)) => Some(if full.0 < bare.0 { full.1 } else { bare.1 }),
            (full, bare) => full.or(bare).map(|(_, entry)| entry),
        }
    }

    /// All users in file order, each once.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let line = self.line_at(start)?;
            let at = start;
            start += line.len() + 1;
            Some((at, Entry::parse(line)))
        })
        .filter_map(|(at, entry)| {
            let entry = entry?;
            (self.find(entry.name())?.0 == at).then_some(entry)
        })
    }

    /// The ids of an entry of this index.
    ///
    /// # Errors
    /// [`UnresolvedId`]; cannot happen when the index was built as a userdb.
    pub fn ids(&self, entry: &Entry<'_>) -> Result<Ids, UnresolvedId> {
        let one = |kind: u8, text: &[u8]| match number(text) {
            Column::Empty => Ok(None),
            Column::Number(0) => Err(UnresolvedId),
            Column::Number(id) => Ok(Some(id)),
            Column::Name => self.names.get(&name_key(kind, text)).copied().map(Some).ok_or(UnresolvedId),
        };
        Ok(Ids { uid: one(b'u', entry.uid())?, gid: one(b'g', entry.gid())? })
    }

    /// What building found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Bytes held, for statistics.
    pub fn memory(&self) -> usize {
        self.text.capacity() + self.slots.len() * size_of::<u64>()
    }

    fn insert(&mut self, start: usize, number: usize, ids: Option<&dyn ResolveIds>) {
        match self.consider(start, ids) {
            Line::Nothing => {}
            Line::Rejected(name) => {
                self.report.rejected += 1;
                self.report.note(number, &name, "has a zero or unknown uid or gid and is ignored");
            }
            Line::Duplicate(name) => {
                self.report.duplicates += 1;
                self.report.note(number, &name, "is there twice, the first line counts");
            }
            Line::Unresolved(why) => self.report.unresolved = Some(why),
            Line::User { slot, tag, learned } => {
                self.names.extend(learned);
                if let Some(free) = self.slots.get_mut(slot) {
                    *free = tag << OFFSET_BITS | (start as u64 + 1) & OFFSET_MASK;
                    self.report.users += 1;
                }
            }
        }
    }

    fn consider(&self, start: usize, ids: Option<&dyn ResolveIds>) -> Line {
        let Some(entry) = self.line_at(start).and_then(Entry::parse) else { return Line::Nothing };
        let mut learned = Vec::new();
        match ids.map_or(Ok(true), |resolver| learn(&self.names, resolver, &entry, &mut learned)) {
            Ok(true) => {}
            Ok(false) => return Line::Rejected(entry.name().to_vec()),
            Err(why) => return Line::Unresolved(why),
        }
        let (mut slot, tag) = self.place(entry.name());
        // The table is never full, so an empty slot ends the walk.
        while let Some(&held) = self.slots.get(slot).filter(|held| **held != 0) {
            if held >> OFFSET_BITS == tag
                && self.at(held).is_some_and(|(_, other)| other.name() == entry.name())
            {
                return Line::Duplicate(entry.name().to_vec());
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        Line::User { slot, tag, learned }
    }

    fn find(&self, key: &[u8]) -> Option<(usize, Entry<'_>)> {
        let (mut slot, tag) = self.place(key);
        loop {
            let held = *self.slots.get(slot)?;
            if held == 0 {
                return None;
            }
            if held >> OFFSET_BITS == tag
                && let Some(found) = self.at(held)
                && found.1.name() == key
            {
                return Some(found);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// First slot and tag of a key.
    fn place(&self, key: &[u8]) -> (usize, u64) {
        let hash = self.hasher.hash_one(key);
        let slot = usize::try_from(hash & (self.slots.len() as u64 - 1)).unwrap_or_default();
        (slot, hash >> OFFSET_BITS)
    }

    fn at(&self, held: u64) -> Option<(usize, Entry<'_>)> {
        let start = usize::try_from((held & OFFSET_MASK).checked_sub(1)?).ok()?;
        Some((start, Entry::parse(self.line_at(start)?)?))
    }

    fn line_at(&self, start: usize) -> Option<&[u8]> {
        let rest = self.text.get(start..).filter(|rest| !rest.is_empty())?;
        Some(memchr(b'\n', rest).and_then(|end| rest.get(..end)).unwrap_or(rest))
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("report", &self.report).finish_non_exhaustive()
    }
}

/// The local part of a name in the default domain.
pub(super) fn bare_name<'a>(name: &'a [u8], default_domain: &[u8]) -> Option<&'a [u8]> {
    let local = name.strip_suffix(default_domain)?.strip_suffix(b"@")?;
    (!default_domain.is_empty() && !local.is_empty() && !local.contains(&b'@')).then_some(local)
}

/// What a line means for the index.
enum Line {
    Nothing,
    Rejected(Vec<u8>),
    Unresolved(String),
    Duplicate(Vec<u8>),
    User { slot: usize, tag: u64, learned: Vec<(Vec<u8>, u32)> },
}

/// What a uid or gid column holds.
enum Column {
    Empty,
    Number(u32),
    Name,
}

fn number(text: &[u8]) -> Column {
    if text.is_empty() {
        return Column::Empty;
    }
    let digits = text.iter().all(u8::is_ascii_digit);
    match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
        Some(id) if digits => Column::Number(id),
        // More digits than an id has: not a name either, and no system has such a user.
        _ => Column::Name,
    }
}

fn name_key(kind: u8, text: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(text.len() + 1);
    key.push(kind);
    key.extend_from_slice(text);
    key
}

/// Checks both columns; names not seen before are resolved and put into `learned`.
fn learn(
    known: &HashMap<Vec<u8>, u32>,
    resolver: &dyn ResolveIds,
    entry: &Entry<'_>,
    learned: &mut Vec<(Vec<u8>, u32)>,
) -> Result<bool, String> {
    for (kind, text) in [(b'u', entry.uid()), (b'g', entry.gid())] {
        match number(text) {
            Column::Empty => {}
            Column::Number(0) => return Ok(false),
            Column::Number(_) => {}
            Column::Name => {
                let key = name_key(kind, text);
                if known.contains_key(&key) {
                    continue;
                }
                let Ok(name) = std::str::from_utf8(text) else { return Ok(false) };
                let found = if kind == b'u' { resolver.uid(name)? } else { resolver.gid(name)? };
                match found {
                    Some(id) if id != 0 => learned.push((key, id)),
                    _ => return Ok(false),
                }
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Names;

    impl ResolveIds for Names {
        fn uid(&self, name: &str) -> Result<Option<u32>, String> {
            match name {
                "away" => Err("the name service is away".to_owned()),
                _ => Ok([("vmail", 5000), ("root", 0)].iter().find(|(n, _)| *n == name).map(|(_, id)| *id)),
            }
        }

        fn gid(&self, name: &str) -> Result<Option<u32>, String> {
            Ok((name == "mail").then_some(8))
        }
    }

    fn names(index: &Index) -> Vec<&str> {
        index.entries().map(|entry| std::str::from_utf8(entry.name()).unwrap()).collect()
    }

    #[test]
    fn a_name_service_that_is_away_makes_the_index_useless() {
        let index = Index::build(b"a::vmail:mail\nb::away:mail\nc::::\n".to_vec(), Some(&Names));
        assert_eq!(index.report().unresolved.as_deref(), Some("the name service is away"));
        let index = Index::build(b"a::vmail:mail\nb::away:mail\n".to_vec(), Some(&NumericIds));
        assert_eq!((index.report().unresolved.as_deref(), index.report().rejected), (None, 2));
    }

    #[test]
    fn finds_first_of_duplicates_and_last_line_without_lf() {
        let index = Index::build(b"# c\na:1\n\nb:2\r\na:3\n:x\nlast:9".to_vec(), None);
        assert_eq!(index.lookup(b"a").unwrap().password(), b"1");
        assert_eq!(index.lookup(b"b").unwrap().password(), b"2");
        assert_eq!(index.lookup(b"last").unwrap().password(), b"9");
        for absent in [&b""[..], b"#", b"# c", b"x", b"A", b"a:1"] {
            assert!(index.lookup(absent).is_none());
        }
        assert_eq!(names(&index), ["a", "b", "last"]);
        assert_eq!((index.report().users, index.report().duplicates), (3, 1));
        assert_eq!(index.report().notes, ["line 5: user \"a\" is there twice, the first line counts"]);
    }

    #[test]
    fn bare_keys_are_in_the_default_domain() {
        let index = Index::build(b"bob:1\namy@h.test:2\nbob@h.test:3\namy:4\ncy@x.test:5\n".to_vec(), None);
        let found = |name: &str| index.lookup_user(name.as_bytes(), b"h.test").map(|e| e.password().to_vec());
        assert_eq!(found("bob@h.test").unwrap(), b"1");
        assert_eq!(found("amy@h.test").unwrap(), b"2");
        assert_eq!(found("cy@x.test").unwrap(), b"5");
        assert_eq!(found("cy@h.test"), None);
        assert_eq!(found("bob@x.test"), None);
        assert_eq!(found("@h.test"), None);
        assert_eq!(found("bob").unwrap(), b"1");
        assert_eq!(found("bob@bob@h.test"), None);
    }

    #[test]
    fn bad_ids_reject_the_line() {
        let text =
            b"a:x:vmail:mail\nb:x:0:1\nc:x:1:nogroup\nd:x:root:8\ne:x::\nf:x\ng:x:99999999999:1\nb:y:7:7\n";
        let index = Index::build(text.to_vec(), Some(&Names));
        assert_eq!(names(&index), ["a", "e", "f", "b"]);
        assert_eq!(index.report().rejected, 4);
        let ids = |name: &[u8]| index.ids(&index.lookup(name).unwrap());
        assert_eq!(ids(b"a"), Ok(Ids { uid: Some(5000), gid: Some(8) }));
        assert_eq!(ids(b"b"), Ok(Ids { uid: Some(7), gid: Some(7) }));
        assert_eq!(ids(b"e"), Ok(Ids::default()));
        // As a passdb only, the same lines are fine.
        let index = Index::build(text.to_vec(), None);
        assert_eq!(index.report().rejected, 0);
        assert_eq!(index.ids(&index.lookup(b"a").unwrap()), Err(UnresolvedId));
    }

    #[test]
    fn many_lines() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for number in 0..20_000 {
            writeln!(text, "user{number}@example.test:{{PLAIN}}pw{number}").unwrap();
        }
        let index = Index::build(text.into_bytes(), None);
        assert_eq!(index.report().users, 20_000);
        for number in (0..20_000).step_by(97) {
            let entry = index.lookup(format!("user{number}@example.test").as_bytes()).unwrap();
            assert_eq!(entry.password(), format!("{{PLAIN}}pw{number}").as_bytes());
        }
        assert!(index.lookup(b"user20000@example.test").is_none());
        assert_eq!(index.entries().count(), 20_000);
    }

    #[test]
    fn empty_and_odd_files() {
        for text in [&b""[..], b"\n", b"\n\n\n", b"#", b":", b"\xff\xfe:\x00\n", b"\0"] {
            let index = Index::build(text.to_vec(), Some(&NumericIds));
            assert!(index.entries().count() <= 1);
        }
    }
    proptest::proptest! {
        /// The table agrees with reading the lines one by one.
        #[test]
        fn look_ups_agree_with_a_plain_walk(text in "[ab@:#\\r\\n .]{0,80}", key in "[ab@.]{0,3}") {
            let index = Index::build(text.clone().into_bytes(), None);
            let walk = text.split('\n').filter_map(|line| Entry::parse(line.as_bytes()))
                .find(|entry| entry.name() == key.as_bytes());
            let found = index.lookup(key.as_bytes());
            proptest::prop_assert_eq!(found.map(|e| e.password().to_vec()), walk.map(|e| e.password().to_vec()));
            proptest::prop_assert_eq!(index.entries().count(), index.report().users);
        }
    }
}
