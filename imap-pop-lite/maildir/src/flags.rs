//! Flags and keywords of a message, as the Maildir file name carries them.
//!
//! Format: reference note "maildir-imap-pop3", section 2 (flag letters).
//! Trust:  letters stand in file names that other programs write, keywords come from clients; what is no flag is no
//!         error.
//! Never:  take a keyword that would not survive as one word in `dovecot-keywords` or in an IMAP answer.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};
use std::sync::Arc;

use crate::error::Error;

/// System flags. `\Recent` is not among them: it belongs to a session, see [`crate::Message::recent`].
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// `\Draft`, letter D.
    pub const DRAFT: Self = Self(1);
    /// `\Flagged`, letter F.
    pub const FLAGGED: Self = Self(2);
    /// "Passed", letter P: kept, not shown as an IMAP flag.
    pub const PASSED: Self = Self(4);
    /// `\Answered`, letter R.
    pub const ANSWERED: Self = Self(8);
    /// `\Seen`, letter S.
    pub const SEEN: Self = Self(16);
    /// `\Deleted`, letter T.
    pub const DELETED: Self = Self(32);
    /// The five flags a client can set.
    pub const SETTABLE: Self = Self(1 | 2 | 8 | 16 | 32);

    /// Letter of each flag in ASCII order, which is the order in a file name.
    const LETTERS: [(u8, Self); 6] = [
        (b'D', Self::DRAFT),
        (b'F', Self::FLAGGED),
        (b'P', Self::PASSED),
        (b'R', Self::ANSWERED),
        (b'S', Self::SEEN),
        (b'T', Self::DELETED),
    ];

    /// Whether all of `other` are set here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flag a file name letter stands for.
    pub(crate) fn from_letter(letter: u8) -> Option<Self> {
        Self::LETTERS.iter().find(|(l, _)| *l == letter).map(|(_, flag)| *flag)
    }

    /// Letters of the set flags in ASCII order.
    pub(crate) fn letters(self) -> impl Iterator<Item = u8> {
        Self::LETTERS.iter().filter(move |(_, flag)| self.contains(*flag)).map(|(letter, _)| *letter)
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Flags {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Flags {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.letters().try_for_each(|letter| fmt::Write::write_char(f, char::from(letter)))
    }
}

/// A keyword as a client writes it: not empty, at most 255 bytes, no blanks, control or 8-bit bytes, none of
/// the characters an IMAP atom excludes, no leading `\`. Compared without regard to ASCII case.
#[derive(Clone, Debug)]
pub struct Keyword(Box<str>);

impl Keyword {
    /// Longest keyword stored.
    pub const MAX_LEN: usize = 255;

    /// The keyword's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Keyword {
    type Error = Error;
    fn try_from(text: &str) -> Result<Self, Error> {
        let fits = |b: u8| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b);
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(fits) {
            return Err(Error::BadKeyword);
        }
        Ok(Self(text.into()))
    }
}

impl PartialEq for Keyword {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Keyword {}

/// Which of a folder's 26 keywords a message has: bit n is the letter `a` + n.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct KeywordSet(u32);

impl KeywordSet {
    /// How many keywords a Maildir folder can name.
    pub const LIMIT: usize = 26;
    /// No keyword.
    pub const NONE: Self = Self(0);

    /// The set of one keyword; `None` when the index is not below [`Self::LIMIT`].
    #[must_use]
    pub fn single(index: usize) -> Option<Self> {
        if index < Self::LIMIT { Some(Self(1 << index)) } else { None }
    }

    /// Whether all of `other` are set here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Indexes into [`KeywordNames`], ascending.
    pub fn indexes(self) -> impl Iterator<Item = usize> {
        (0..Self::LIMIT).filter(move |index| self.0 & (1 << index) != 0)
    }

    /// Letters in ASCII order.
    pub(crate) fn letters(self) -> impl Iterator<Item = u8> {
        (b'a'..=b'z').filter(move |letter| self.0 & (1 << (letter - b'a')) != 0)
    }

    /// The keyword a lower-case letter stands for.
    pub(crate) fn from_letter(letter: u8) -> Option<Self> {
        if letter.is_ascii_lowercase() { Some(Self(1 << (letter - b'a'))) } else { None }
    }
}

impl BitOr for KeywordSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for KeywordSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for KeywordSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The names of a folder's keywords, by index. Cheap to clone; a snapshot, replaced when the file changes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeywordNames {
    names: Arc<[Option<Box<str>>]>,
}

impl KeywordNames {
    pub(crate) fn new(mut names: Vec<Option<Box<str>>>) -> Self {
        names.truncate(KeywordSet::LIMIT);
        while matches!(names.last(), Some(None)) {
            names.pop();
        }
        Self { names: names.into() }
    }

    /// The name at an index. A letter that no name was written for yet is `unknown-<n>`, as Dovecot calls it.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        match self.names.get(index) {
            Some(Some(name)) => name.to_string(),
            _ => format!("unknown-{index}"),
        }
    }

    /// The names of a message's keywords.
    pub fn names_of(&self, set: KeywordSet) -> impl Iterator<Item = String> + '_ {
        set.indexes().map(|index| self.name(index))
    }

    /// All named keywords: what FLAGS and PERMANENTFLAGS list.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter_map(Option::as_deref)
    }

    /// The bit of a keyword, when the folder knows it. Without regard to case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<KeywordSet> {
        let same = |slot: &Option<Box<str>>| slot.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name));
        self.names.iter().position(same).and_then(KeywordSet::single)
    }

    /// Whether a new keyword can still be named: `\*` in PERMANENTFLAGS.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.names.iter().flatten().count() < KeywordSet::LIMIT
    }
}

/// How STORE combines the given flags with those a message has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FlagOp {
    /// `+FLAGS`
    Add,
    /// `-FLAGS`
    Remove,
    /// `FLAGS`
    Replace,
}

/// One STORE: what to do with which flags and keywords.
#[derive(Clone, Debug)]
pub struct FlagChange {
    /// Add, remove or replace.
    pub op: FlagOp,
    /// System flags; [`Flags::PASSED`] is never replaced away, because clients cannot see it.
    pub flags: Flags,
    /// Keywords by name; unknown ones are added to the folder by Add and Replace.
    pub keywords: Vec<Keyword>,
}

impl FlagChange {
    /// The flags after this change; `set` is the letters of [`Self::keywords`] in the folder at hand.
    pub(crate) fn apply(&self, flags: Flags, keywords: KeywordSet, set: KeywordSet) -> (Flags, KeywordSet) {
        let given = self.flags & Flags::SETTABLE;
        match self.op {
            FlagOp::Add => (flags | given, keywords | set),
            FlagOp::Remove => (flags - given, keywords - set),
            FlagOp::Replace => ((flags - Flags::SETTABLE) | given, set),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_sorted() {
        let all = Flags::SETTABLE | Flags::PASSED;
        assert_eq!(all.letters().collect::<Vec<_>>(), b"DFPRST");
        assert_eq!(format!("{:?}", Flags::SEEN | Flags::DRAFT), "DS");
        assert_eq!(Flags::from_letter(b'S'), Some(Flags::SEEN));
        assert_eq!(Flags::from_letter(b's'), None);
        let set = KeywordSet::single(25).unwrap() | KeywordSet::single(0).unwrap();
        assert_eq!(set.letters().collect::<Vec<_>>(), b"az");
        assert_eq!(set.indexes().collect::<Vec<_>>(), [0, 25]);
        assert_eq!(KeywordSet::single(26), None);
        assert_eq!(KeywordSet::from_letter(b'A'), None);
    }

    #[test]
    fn change_table() {
        let (a, b) = (KeywordSet::single(0).unwrap(), KeywordSet::single(1).unwrap());
        let start = Flags::SEEN | Flags::PASSED;
        let cases = [
            (FlagOp::Add, Flags::DRAFT, b, (start | Flags::DRAFT, a | b)),
            (FlagOp::Remove, Flags::SEEN, a, (Flags::PASSED, KeywordSet::NONE)),
            (FlagOp::Replace, Flags::FLAGGED, b, (Flags::FLAGGED | Flags::PASSED, b)),
            (FlagOp::Replace, Flags::NONE, KeywordSet::NONE, (Flags::PASSED, KeywordSet::NONE)),
            (FlagOp::Remove, Flags::PASSED, KeywordSet::NONE, (start, a)),
        ];
        for (op, flags, set, expected) in cases {
            let change = FlagChange { op, flags, keywords: Vec::new() };
            assert_eq!(change.apply(start, a, set), expected, "{op:?} {flags:?}");
        }
    }

    #[test]
    fn keyword_text() {
        for good in ["$Forwarded", "a", "NonJunk", "$label1", "a/b:c;d=e"] {
            assert!(Keyword::try_from(good).is_ok(), "{good}");
        }
        for bad in ["", "\\Seen", "a b", "a\nb", "a(b", "ü", "a]", "a\"", "a*", "a%", "\u{7f}"] {
            assert!(Keyword::try_from(bad).is_err(), "{bad}");
        }
        assert!(Keyword::try_from("x".repeat(256).as_str()).is_err());
        assert_eq!(Keyword::try_from("Junk").unwrap(), Keyword::try_from("jUNK").unwrap());
    }

    #[test]
    fn keyword_names() {
        let names = KeywordNames::new(vec![Some("a".into()), None, Some("$X".into()), None]);
        assert_eq!(names.names.len(), 3);
        assert_eq!(names.name(1), "unknown-1");
        assert_eq!(names.name(25), "unknown-25");
        assert_eq!(names.find("$x"), KeywordSet::single(2));
        assert_eq!(names.find("nope"), None);
        assert_eq!(names.all().collect::<Vec<_>>(), ["a", "$X"]);
        assert!(names.has_room());
        assert!(!KeywordNames::new(vec![Some("k".into()); 30]).has_room());
    }
}
