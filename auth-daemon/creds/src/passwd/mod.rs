//! passwd-files: reading, finding, following changes, editing.
//!
//! Format:  `user:password:uid:gid:gecos:home:shell:extra fields` (Dovecot `db-passwd-file.c`).
//! Reading: [`PasswdFile`] holds one file and rereads it when it changed; [`PasswdFolder`] holds one file per
//!          domain (or user) beneath a folder; both hand out an [`Index`], which finds an [`Entry`] in constant time.
//! Writing: [`Editor`] changes one user's line, keeps every other byte and replaces the file atomically.
//! Trust:   the file is the administrator's; what a client put into a look-up or into a path is not.
//! Never:   follows a path out of its folder, rewrites a byte it was not asked to change.

mod edit;
mod file;
mod folder;
mod index;
mod line;

pub use edit::{EditError, Editor, NewUser};
pub use file::{FileError, FileOptions, Format, Freshness, PasswdFile, Polled};
pub use folder::{PasswdFolder, Selected, is_template};
pub use index::{Ids, Index, NumericIds, Report, ResolveIds, UnresolvedId};
pub use line::{Entry, KEY_FIELD};
