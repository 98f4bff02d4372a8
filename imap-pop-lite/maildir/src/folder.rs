//! Folder names: wire, readable and on-disk forms, and the one type that is safe to make a path from.
//!
//! Format: Maildir++; reference note "maildir-imap-pop3", section 3. Modified UTF-7: RFC 3501 §5.1.3.
//! Trust:  names come from clients and from directory listings; both go through [`FolderName`].
//! Never:  build a path of a mail tree from any other text.

use std::fmt;
use std::sync::Arc;

use crate::mutf7;

/// Why a folder name cannot be stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// Nothing, or two separators side by side, or one in front.
    #[error("empty hierarchy level")]
    EmptyLevel,
    /// `.` or `/` inside a level, NUL or another control character.
    #[error("character not allowed")]
    Character,
    /// `~` in front.
    #[error("leading ~ not allowed")]
    Tilde,
    /// The wire form is not modified UTF-7.
    #[error("not valid modified UTF-7")]
    Encoding,
    /// More than 255 bytes on disk.
    #[error("name too long")]
    TooLong,
}

/// A folder of one account: `INBOX`, or levels in modified UTF-7 joined by `.` as they are on disk.
///
/// No level is empty or contains `.`, `/` or control bytes, the name does not start with `~`, and the directory
/// name fits 255 bytes. A first level `inbox` in any case is `INBOX`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FolderName(Arc<str>);

impl FolderName {
    /// Longest directory name: `.` and the levels.
    const MAX_LEN: usize = 255;

    /// The INBOX, the root of the tree.
    #[must_use]
    pub fn inbox() -> Self {
        Self(Arc::from("INBOX"))
    }

    /// From the wire: modified UTF-7 with `separator` between levels. One trailing separator is dropped
    /// (`CREATE "lists/"`).
    pub fn from_imap(name: &str, separator: char) -> Result<Self, BadName> {
        let name = name.strip_suffix(separator).unwrap_or(name);
        Self::from_levels(name.split(separator))
    }

    /// From readable text (IMAP with UTF8=ACCEPT, configuration, command line) with `separator` between levels.
    pub fn from_utf8(name: &str, separator: char) -> Result<Self, BadName> {
        let name = name.strip_suffix(separator).unwrap_or(name);
        let encoded: Vec<String> = name.split(separator).map(mutf7::encode).collect();
        Self::from_levels(encoded.iter().map(String::as_str))
    }

    /// From the name of a directory in the tree, `.A.B`.
    pub fn from_dir(dir: &str) -> Result<Self, BadName> {
        let name = dir.strip_prefix('.').ok_or(BadName::Character)?;
        let folder = Self::from_levels(name.split('.'))?;
        // `.INBOX` is not the INBOX: the root is. `.inbox.x` would come back as `.INBOX.x`.
        if folder.is_inbox() || &*folder.0 != name { Err(BadName::Character) } else { Ok(folder) }
    }

    /// From levels in modified UTF-7.
    pub fn from_levels<'a>(levels: impl IntoIterator<Item = &'a str>) -> Result<Self, BadName> {
        let mut name = String::new();
        for (depth, level) in levels.into_iter().enumerate() {
            if level.is_empty() {
                return Err(BadName::EmptyLevel);
            }
            if level.bytes().any(|b| b == b'.' || b == b'/' || b < 0x20 || b == 0x7f) {
                return Err(BadName::Character);
            }
            if !mutf7::is_valid(level) {
                return Err(BadName::Encoding);
            }
            if depth == 0 {
                if level.starts_with('~') {
                    return Err(BadName::Tilde);
                }
                if level.eq_ignore_ascii_case("INBOX") {
                    name.push_str("INBOX");
                    continue;
                }
            } else {
                name.push('.');
            }
            name.push_str(level);
            if name.len() >= Self::MAX_LEN {
                return Err(BadName::TooLong);
            }
        }
        if name.is_empty() { Err(BadName::EmptyLevel) } else { Ok(Self(name.into())) }
    }

    /// Whether this is the INBOX itself.
    #[must_use]
    pub fn is_inbox(&self) -> bool {
        &*self.0 == "INBOX"
    }

    /// The levels in modified UTF-7.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The wire form, modified UTF-7.
    #[must_use]
    pub fn to_imap(&self, separator: char) -> String {
        self.levels().collect::<Vec<_>>().join(separator.encode_utf8(&mut [0; 4]))
    }

    /// The readable form.
    #[must_use]
    pub fn to_utf8(&self, separator: char) -> String {
        let levels: Vec<String> = self.levels().map(mutf7::decode_lossy).collect();
        levels.join(separator.encode_utf8(&mut [0; 4]))
    }

    /// The name of the directory below the root; empty for the INBOX.
    #[must_use]
    pub fn dir(&self) -> String {
        if self.is_inbox() { String::new() } else { format!(".{}", self.0) }
    }

    /// On-disk text without the leading dot, as `subscriptions` version 1 holds it.
    pub(crate) fn disk(&self) -> &str {
        &self.0
    }

    /// The folder one level up, if there is one.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('.').map(|(parent, _)| Self(parent.into()))
    }

    /// Whether this is somewhere below `other`.
    #[must_use]
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The same place below another parent: `old.x.y` moved from `old` to `new` is `new.x.y`.
    pub(crate) fn moved(&self, old: &Self, new: &Self) -> Result<Self, BadName> {
        let rest = self.0.strip_prefix(&*old.0).unwrap_or_default();
        if new.0.len() + rest.len() >= Self::MAX_LEN {
            return Err(BadName::TooLong);
        }
        Ok(Self(format!("{}{rest}", new.0).into()))
    }
}

impl fmt::Display for FolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_wire() {
        let cases = [
            ("INBOX", Ok("INBOX")),
            ("inbox", Ok("INBOX")),
            ("Inbox/Sub", Ok("INBOX.Sub")),
            ("Sent", Ok("Sent")),
            ("A/B/C", Ok("A.B.C")),
            ("A/", Ok("A")),
            ("a b*%\\", Ok("a b*%\\")),
            ("cur", Ok("cur")),
            ("Entw&APw-rfe", Ok("Entw&APw-rfe")),
            ("A&-B", Ok("A&-B")),
            ("", Err(BadName::EmptyLevel)),
            ("/", Err(BadName::EmptyLevel)),
            ("/A", Err(BadName::EmptyLevel)),
            ("A//B", Err(BadName::EmptyLevel)),
            (".", Err(BadName::Character)),
            ("..", Err(BadName::Character)),
            ("../x", Err(BadName::Character)),
            ("A.B", Err(BadName::Character)),
            ("A\0", Err(BadName::Character)),
            ("A\r\nB", Err(BadName::Character)),
            ("~root", Err(BadName::Tilde)),
            ("A&B", Err(BadName::Encoding)),
            ("&AGE-", Err(BadName::Encoding)),
            ("ü", Err(BadName::Encoding)),
        ];
        for (given, expected) in cases {
            let got = FolderName::from_imap(given, '/').map(|f| f.to_string());
            assert_eq!(got.as_deref(), expected.as_ref().map(|e| *e), "{given:?}");
        }
        assert_eq!(FolderName::from_imap(&"x".repeat(255), '/'), Err(BadName::TooLong));
        assert!(FolderName::from_imap(&"x".repeat(254), '/').is_ok());
        assert_eq!(FolderName::from_imap("A/B", '.'), Err(BadName::Character));
    }

    #[test]
    fn forms() {
        let folder = FolderName::from_utf8("Entwürfe/日本", '/').unwrap();
        assert_eq!(folder.to_imap('/'), "Entw&APw-rfe/&ZeVnLA-");
        assert_eq!(folder.dir(), ".Entw&APw-rfe.&ZeVnLA-");
        assert_eq!(folder.to_utf8('/'), "Entwürfe/日本");
        assert_eq!(FolderName::from_dir(&folder.dir()), Ok(folder.clone()));
        assert_eq!(folder.parent().unwrap().dir(), ".Entw&APw-rfe");
        assert!(folder.is_below(&folder.parent().unwrap()));
        assert_eq!(FolderName::inbox().dir(), "");
        let encoded = FolderName::from_utf8("a&b", '/').unwrap();
        assert_eq!(encoded.to_imap('/'), "a&-b");
    }

    #[test]
    fn directory_names() {
        for bad in
            ["", ".", "..", "...", "x", ".INBOX", ".inbox.x", "..DOVECOT-TRASHED", ".a..b", ".&", ".\u{fc}"]
        {
            assert!(FolderName::from_dir(bad).is_err(), "{bad:?}");
        }
        assert_eq!(FolderName::from_dir(".INBOX.x").unwrap().to_imap('/'), "INBOX/x");
    }

    #[test]
    fn relations() {
        let name = |n: &str| FolderName::from_imap(n, '/').unwrap();
        assert!(!name("AB").is_below(&name("A")));
        assert!(name("A/B/C").is_below(&name("A")));
        assert_eq!(name("A/B/C").moved(&name("A"), &name("X/Y")).unwrap(), name("X/Y/B/C"));
        assert_eq!(name("A").moved(&name("A"), &name("X")).unwrap(), name("X"));
        assert!(name("A/B").moved(&name("A"), &name(&"x".repeat(254))).is_err());
    }
}
