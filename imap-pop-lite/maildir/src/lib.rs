//! The Maildir store: delivery, uidlist, keywords, flags, folders, locks.
//!
//! Purpose: the only code that touches a mail tree. A running Dovecot may work on the same directory at the same
//!          time: both share `dovecot-uidlist`, `dovecot-keywords`, `subscriptions`, `maildirsize` and their locks.
//! Trust:   file names and side files are written by others; all of them are validated, none can make this crate
//!          panic or use unbounded memory.
//! Never:   lose an acknowledged message, hand out a UID twice, change the bytes or times of a delivered file, hold
//!          a lock while waiting for a client.
//!
//! Everything blocks on the file system: asynchronous callers use a thread. Three entrances:
//!
//! - [`Maildir`]: one account's tree. Delivery ([`Maildir::delivery`] → [`Delivery::write`] → [`Delivery::finish`] →
//!   [`Staged::commit`] or [`commit_all`]), folders, subscriptions.
//! - [`Store`]: one per process; gives the shared [`Mailbox`] of a folder, which opens messages, appends, answers
//!   STATUS and POP3, and wakes subscribers ([`Mailbox::subscribe`]) when anything changes, by whomever.
//! - [`View`]: one IMAP session's numbering of a mailbox. Only [`View::refresh`] and [`View::announce`] change it,
//!   and they return what must be sent, in the order in which it must be sent.
//!
//! ```
//! use maildir::{FlagChange, FlagOp, Flags, FolderName, Maildir, Mode, Options, Store};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let root = dir.path().join("Maildir");
//! let maildir = Maildir::open_or_create(&root)?;
//! let mut delivery = maildir.delivery()?;
//! delivery.write(b"Subject: hello\r\n\r\nworld\r\n")?;
//! delivery.finish()?.commit()?; // now it is safe to say 250
//!
//! let store = Store::new(Options::default())?;
//! let inbox = store.mailbox(&root, &FolderName::inbox())?;
//! let mut view = inbox.view(Mode::ReadWrite)?;
//! let uid = view.uid(1).ok_or("no message")?;
//! let seen = FlagChange { op: FlagOp::Add, flags: Flags::SEEN, keywords: Vec::new() };
//! assert!(view.store(&[uid], &seen)?.iter().all(|m| m.flags.contains(Flags::SEEN)));
//! assert_eq!(inbox.open(uid)?.virtual_size, 25);
//! # Ok(())
//! # }
//! ```
//!
//! How a look for changes works is told in `mailbox/sync.rs`; which lock protects what, in `mailbox/mod.rs`.
#![forbid(unsafe_code)]

mod delivery;
mod dirs;
mod error;
mod flags;
mod folder;
mod ids;
mod keywords;
mod lock;
mod mailbox;
mod mutf7;
mod name;
mod quota;
mod store;
mod subscriptions;
mod table;
mod tree;
mod uidlist;
mod uidvalidity;
mod view;
mod watch;

pub use delivery::{CommitError, Delivery, Placed, Staged, commit_all};
pub use error::Error;
pub use flags::{FlagChange, FlagOp, Flags, Keyword, KeywordNames, KeywordSet};
pub use folder::{BadName, FolderName};
pub use ids::{Uid, UidValidity};
pub use mailbox::{Copied, Mailbox, OpenMessage, PopMessage, Status, Subscription};
pub use store::{Options, Store};
pub use tree::{FolderEntry, Maildir, SpecialUse};
pub use view::{Change, Message, Mode, Numbers, SetRange, View};
