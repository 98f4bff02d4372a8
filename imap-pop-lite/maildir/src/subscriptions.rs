//! `subscriptions`: the folders a user subscribed to, in Dovecot's two formats.
//!
//! Format:  reference note "maildir-imap-pop3", section 5. A version 1 file stays version 1.
//! Locking: `subscriptions.lock` is the next content, renamed over.
//! Trust:   lines that are no folder name are kept when the file is rewritten, and not shown.
//! Never:   lose a line that another program wrote.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dirs;
use crate::error::{Context, Error};
use crate::folder::FolderName;
use crate::lock::{self, Dotlock};

const LARGEST: u64 = 4 * 1024 * 1024;
const LOCK_WAIT: Duration = Duration::from_secs(30);
const VERSION_2: &[u8] = b"V\t2";

fn path(root: &Path) -> PathBuf {
    root.join("subscriptions")
}

#[derive(Debug, Eq, PartialEq)]
struct Subscriptions {
    version_2: bool,
    lines: Vec<Vec<u8>>,
}

impl Subscriptions {
    fn parse(text: Option<&[u8]>) -> Self {
        let mut lines = text.unwrap_or_default().split(|b| *b == b'\n').filter(|l| !l.is_empty()).peekable();
        let version_2 = match lines.peek() {
            Some(first) => *first == VERSION_2,
            None => true,
        };
        if version_2 {
            lines.next();
        }
        Self { version_2, lines: lines.map(<[u8]>::to_vec).collect() }
    }

    fn print(&self) -> Vec<u8> {
        let mut out = if self.version_2 { [VERSION_2, b"\n\n"].concat() } else { Vec::new() };
        for line in &self.lines {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out
    }

    fn folder(&self, line: &[u8]) -> Option<FolderName> {
        let text = std::str::from_utf8(line).ok()?;
        if !self.version_2 {
            return FolderName::from_levels(text.split('.')).ok();
        }
        let levels: Vec<String> = text.split('\t').map(unescape).collect();
        FolderName::from_levels(levels.iter().map(String::as_str)).ok()
    }

    fn line(&self, folder: &FolderName) -> Vec<u8> {
        if self.version_2 {
            // No level holds a byte that needs escaping.
            folder.levels().collect::<Vec<_>>().join("\t").into_bytes()
        } else {
            folder.disk().as_bytes().to_vec()
        }
    }
}

fn unescape(level: &str) -> String {
    let mut out = String::with_capacity(level.len());
    let mut chars = level.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\u{1}' => match chars.next() {
                Some('0') => '\0',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('n') => '\n',
                _ => '\u{1}',
            },
            c => c,
        });
    }
    out
}

/// Subscribed folders, in file order, each once.
pub(crate) fn list(root: &Path) -> Result<Vec<FolderName>, Error> {
    let path = path(root);
    let text = dirs::read_limited(&path, LARGEST).ctx("read", &path)?;
    let file = Subscriptions::parse(text.as_deref());
    let mut seen = std::collections::HashSet::new();
    Ok(file.lines.iter().filter_map(|l| file.folder(l)).filter(|f| seen.insert(f.clone())).collect())
}

/// Adds or removes one folder.
pub(crate) fn set(root: &Path, folder: &FolderName, subscribed: bool) -> Result<(), Error> {
    let path = path(root);
    let lock = Dotlock::acquire(&path, lock::SUBSCRIPTIONS, LOCK_WAIT)?;
    let text = dirs::read_limited(&path, LARGEST).ctx("read", &path)?;
    let mut file = Subscriptions::parse(text.as_deref());
    let named: Vec<bool> = file.lines.iter().map(|l| file.folder(l).as_ref() == Some(folder)).collect();
    if named.contains(&true) == subscribed {
        return Ok(());
    }
    if subscribed {
        let line = file.line(folder);
        file.lines.push(line);
    } else {
        let mut keep = named.iter().map(|named| !named);
        file.lines.retain(|_| keep.next().unwrap_or(true));
    }
    lock.replace(&path, &file.print(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn name(text: &str) -> FolderName {
        FolderName::from_imap(text, '/').unwrap()
    }

    fn shown(root: &Path) -> Vec<String> {
        list(root).unwrap().iter().map(|f| f.to_imap('/')).collect()
    }

    #[test]
    fn new_file_is_version_2() {
        let dir = tempfile::tempdir().unwrap();
        assert!(shown(dir.path()).is_empty());
        for folder in ["Sent", "A/B c", "INBOX", "Sent"] {
            set(dir.path(), &name(folder), true).unwrap();
        }
        assert_eq!(fs::read(path(dir.path())).unwrap(), b"V\t2\n\nSent\nA\tB c\nINBOX\n");
        assert_eq!(shown(dir.path()), ["Sent", "A/B c", "INBOX"]);
        set(dir.path(), &name("Sent"), false).unwrap();
        set(dir.path(), &name("nothing"), false).unwrap();
        assert_eq!(shown(dir.path()), ["A/B c", "INBOX"]);
        assert!(!dir.path().join("subscriptions.lock").exists());
    }

    #[test]
    fn version_1_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), b"A.B\nbad&\n~x\ninbox\nA.B\n").unwrap();
        assert_eq!(shown(dir.path()), ["A/B", "INBOX"]);
        set(dir.path(), &name("C/D"), true).unwrap();
        assert_eq!(fs::read(path(dir.path())).unwrap(), b"A.B\nbad&\n~x\ninbox\nA.B\nC.D\n");
        set(dir.path(), &name("A/B"), false).unwrap();
        assert_eq!(fs::read(path(dir.path())).unwrap(), b"bad&\n~x\ninbox\nC.D\n");
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\u{1}1b\u{1}tc\u{1}"), "a\u{1}b\tc\u{1}");
        let file = Subscriptions::parse(Some(b"V\t2\n\nA\x01tB\nA\t..\tB\n"));
        assert!(file.lines.iter().all(|l| file.folder(l).is_none()));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let file = Subscriptions::parse(Some(&bytes));
            for line in &file.lines {
                let _ = file.folder(line);
            }
            prop_assert_eq!(Subscriptions::parse(Some(&file.print())), file);
        }
    }
}
