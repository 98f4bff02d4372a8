//! What can go wrong in the store, in the words a protocol reply is chosen by.
//!
//! Trust: nobody; made of paths of the mail tree and what the system said.
//! Never: hold a byte of a message.

use std::io;
use std::path::{Path, PathBuf};

use crate::folder::BadName;
use crate::ids::Uid;

/// Every failure of the store. Each maps to one protocol reply; see [`Error::is_temporary`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder (or, in a folder, `cur`, `new` or `tmp`) is not there. `NO [NONEXISTENT]` / `[TRYCREATE]`.
    #[error("no such folder: {0}")]
    NoSuchFolder(String),
    /// A folder of that name exists. `NO [ALREADYEXISTS]`.
    #[error("folder exists: {0}")]
    AlreadyExists(String),
    /// The folder name cannot be stored. `NO [CANNOT]`.
    #[error("bad folder name: {0}")]
    BadName(#[from] BadName),
    /// The operation makes no sense on that folder (delete INBOX, rename below itself). `NO [CANNOT]`.
    #[error("{0}")]
    Cannot(&'static str),
    /// Another program held the folder's lock for longer than the timeout. `NO [INUSE]`.
    #[error("mailbox is locked: {0}")]
    Locked(PathBuf),
    /// Disk full or file system quota. `NO [OVERQUOTA]`, SMTP 452 4.2.2 / 4.3.1; nothing was changed.
    #[error("no space: {0}")]
    NoSpace(PathBuf),
    /// The Maildir++ quota of the account does not allow it. `NO [OVERQUOTA]`.
    #[error("over quota")]
    OverQuota,
    /// The file system refuses us. `NO [NOPERM]`, temporary for SMTP.
    #[error("permission denied: {0}")]
    Permission(PathBuf),
    /// A change was asked of a view opened with EXAMINE. `NO [READ-ONLY]`.
    #[error("mailbox is open read-only")]
    ReadOnly,
    /// The folder was deleted, renamed or renumbered below an open session: end the session (or unselect).
    #[error("mailbox was deleted or renumbered: {0}")]
    Gone(String),
    /// The message is expunged. `[EXPUNGEISSUED]`.
    #[error("message {0} is gone")]
    Expunged(Uid),
    /// The name of a message kept changing for too long. Temporary.
    #[error("message {0} is being changed by others")]
    Busy(Uid),
    /// All 26 keywords of the folder are in use. `NO [LIMIT]`.
    #[error("too many keywords in this folder")]
    TooManyKeywords,
    /// A keyword that cannot be stored (empty, blank or control bytes, too long). `BAD`.
    #[error("bad keyword")]
    BadKeyword,
    /// A sequence number that the view does not hold (RFC 9051 §9 seq-number). `BAD`.
    #[error("sequence number out of range")]
    BadSequence,
    /// An APPEND of no bytes at all. `NO`, nothing stored.
    #[error("empty message")]
    EmptyMessage,
    /// Anything else the file system said.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was being done, as a verb: `open`, `rename`.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl Error {
    /// Sorts a system error into the kinds a reply is chosen by.
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind as K;
        match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::NoSpace(path.to_owned()),
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::Permission(path.to_owned()),
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }

    /// Whether trying again later may help: 4xx in SMTP, `[SYS/TEMP]`, `[UNAVAILABLE]` or `[INUSE]` elsewhere.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Locked(_)
                | Self::NoSpace(_)
                | Self::OverQuota
                | Self::Permission(_)
                | Self::Busy(_)
                | Self::Gone(_)
                | Self::Io { .. }
        )
    }
}

/// `.ctx("open", path)` on an [`io::Result`].
pub(crate) trait Context<T> {
    fn ctx(self, what: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn ctx(self, what: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|e| Error::io(what, path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let path = Path::new("/x");
        let of = |code| Error::io("open", path, io::Error::from_raw_os_error(code));
        use nix::errno::Errno as E;
        assert!(matches!(of(E::ENOSPC as i32), Error::NoSpace(_)));
        assert!(matches!(of(E::EDQUOT as i32), Error::NoSpace(_)));
        assert!(matches!(of(E::EACCES as i32), Error::Permission(_)));
        assert!(matches!(of(E::EROFS as i32), Error::Permission(_)));
        assert!(matches!(of(E::EIO as i32), Error::Io { .. }));
        assert!(of(E::EIO as i32).is_temporary());
        assert!(!Error::ReadOnly.is_temporary());
    }
}
