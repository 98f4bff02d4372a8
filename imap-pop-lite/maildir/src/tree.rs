//! One account's folders: list, create, delete, rename, clean.
//!
//! Layout: Maildir++, reference note "maildir-imap-pop3", section 3: the root is the INBOX, folder `A/B` is the
//!         directory `.A.B`; every other folder carries an empty `maildirfolder`.
//! Trust:  folder names are a checked type; what lies in the root may be other programs' doing.
//! Never:  create `maildirfolder` in the root, follow a link when deleting, touch names beginning with `..`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::delivery::{Delivery, Target};
use crate::dirs::{self, Listing, Rights};
use crate::error::{Context, Error};
use crate::folder::FolderName;
use crate::lock::{self, Dotlock};
use crate::{keywords, name, quota, subscriptions, uidlist};

/// Files in `tmp` older than this were abandoned.
const TMP_AGE: Duration = Duration::from_secs(36 * 3600);
/// How long a folder operation waits for the INBOX's lock.
const LOCK_WAIT: Duration = Duration::from_secs(30);
const SUBDIRS: [&str; 3] = ["tmp", "new", "cur"];

/// SPECIAL-USE attributes (RFC 6154).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SpecialUse {
    /// `\All`
    All,
    /// `\Archive`
    Archive,
    /// `\Drafts`
    Drafts,
    /// `\Flagged`
    Flagged,
    /// `\Junk`
    Junk,
    /// `\Sent`
    Sent,
    /// `\Trash`
    Trash,
}

impl SpecialUse {
    /// Names clients and other servers use, best first; compared without case.
    const WELL_KNOWN: [(Self, &'static [&'static str]); 5] = [
        (Self::Archive, &["Archive", "Archives"]),
        (Self::Drafts, &["Drafts"]),
        (Self::Junk, &["Junk", "Spam"]),
        (Self::Sent, &["Sent", "Sent Messages", "Sent Items"]),
        (Self::Trash, &["Trash", "Deleted Messages", "Deleted Items"]),
    ];

    /// The attribute as LIST shows it.
    #[must_use]
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::All => "\\All",
            Self::Archive => "\\Archive",
            Self::Drafts => "\\Drafts",
            Self::Flagged => "\\Flagged",
            Self::Junk => "\\Junk",
            Self::Sent => "\\Sent",
            Self::Trash => "\\Trash",
        }
    }
}

/// One line of a folder listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FolderEntry {
    /// The folder.
    pub name: FolderName,
    /// False: only a parent of others (`\NonExistent`).
    pub exists: bool,
    /// `\HasChildren` or `\HasNoChildren`.
    pub has_children: bool,
    /// At most one folder per use carries it.
    pub special_use: Option<SpecialUse>,
}

/// One account's mail tree.
#[derive(Clone, Debug)]
pub struct Maildir {
    root: PathBuf,
}

impl Maildir {
    /// Opens the tree; makes root, `cur`, `new` and `tmp` when missing (0700).
    pub fn open_or_create(root: &Path) -> Result<Self, Error> {
        // `cur` is made last: a tree that has it has all of it.
        if !root.join("cur").is_dir() {
            if !root.is_dir() {
                use std::os::unix::fs::DirBuilderExt;
                fs::DirBuilder::new().recursive(true).mode(0o700).create(root).ctx("create", root)?;
            }
            make_subdirs(root, root)?;
            if let Some(parent) = root.parent() {
                dirs::sync_dir(parent).ctx("sync", parent)?;
            }
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Opens a tree that must exist.
    pub fn open(root: &Path) -> Result<Self, Error> {
        match fs::metadata(root.join("cur")) {
            Ok(meta) if meta.is_dir() => Ok(Self { root: root.to_owned() }),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("open", root, e)),
            _ => Err(Error::NoSuchFolder("INBOX".to_owned())),
        }
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts a delivery into the INBOX.
    pub fn delivery(&self) -> Result<Delivery, Error> {
        self.delivery_to(&FolderName::inbox())
    }

    /// Starts a delivery into a folder that exists.
    pub fn delivery_to(&self, folder: &FolderName) -> Result<Delivery, Error> {
        Delivery::start(Target::new(&self.root, folder))
    }

    /// All folders sorted by name, INBOX first, with missing parents.
    /// `special` = configured special uses, which win over the well-known names.
    pub fn folders(&self, special: &[(FolderName, SpecialUse)]) -> Result<Vec<FolderEntry>, Error> {
        let existing = self.existing()?;
        let mut all: BTreeMap<FolderName, FolderEntry> = BTreeMap::new();
        let entry =
            |name: FolderName, exists| FolderEntry { name, exists, has_children: false, special_use: None };
        for name in existing {
            let mut child = name.clone();
            while let Some(parent) = child.parent() {
                all.entry(parent.clone()).or_insert_with(|| entry(parent.clone(), false)).has_children = true;
                child = parent;
            }
            all.entry(name.clone()).or_insert_with(|| entry(name.clone(), true)).exists = true;
        }
        mark_special(&mut all, special);
        let mut list: Vec<FolderEntry> = Vec::with_capacity(all.len());
        list.extend(all.remove(&FolderName::inbox()));
        list.extend(all.into_values());
        Ok(list)
    }

    /// Whether the folder is there.
    #[must_use]
    pub fn exists(&self, folder: &FolderName) -> bool {
        self.dir(folder).join("cur").is_dir()
    }

    /// Creates a folder (parents are not needed). `AlreadyExists` when it is there.
    pub fn create(&self, folder: &FolderName) -> Result<(), Error> {
        let dir = self.dir(folder);
        if self.exists(folder) {
            return Err(Error::AlreadyExists(folder.to_string()));
        }
        let mode = Rights::of(&self.root).ctx("read", &self.root)?.dir_mode;
        dirs::make_dir(&dir, mode).ctx("create", &dir)?;
        if !folder.is_inbox() {
            let marker = dir.join("maildirfolder");
            let rights = Rights::of(&dir).ctx("read", &dir)?;
            match dirs::create_new(&marker, rights) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("create", &marker, e));
                }
                _ => {}
            }
        }
        make_subdirs(&self.root, &dir)?;
        dirs::sync_dir(&self.root).ctx("sync", &self.root)
    }

    /// Deletes a folder and its messages; children stay. INBOX: `Cannot`.
    pub fn delete(&self, folder: &FolderName) -> Result<(), Error> {
        if folder.is_inbox() {
            return Err(Error::Cannot("INBOX cannot be deleted"));
        }
        if !self.exists(folder) {
            return Err(Error::NoSuchFolder(folder.to_string()));
        }
        // Out of the way in one step; other programs ignore directories beginning with two dots.
        let dir = self.dir(folder);
        let trash = self.root.join(format!("..postern-trashed-{}", name::unique_base(SystemTime::now())));
        fs::rename(&dir, &trash).map_err(|e| missing(e, "rename", &dir, folder))?;
        let removed = if trash.is_symlink() { fs::remove_file(&trash) } else { fs::remove_dir_all(&trash) };
        if let Err(e) = removed {
            tracing::warn!(path = %trash.display(), error = %e, "cannot remove all of a deleted folder");
        }
        if quota::is_kept(&self.root) {
            // What was in it is not known any more; negative totals lead to a recount.
            quota::adjust(&self.root, i64::MIN / 2, 0);
        }
        dirs::sync_dir(&self.root).ctx("sync", &self.root)
    }

    /// Renames a folder with its children. INBOX: moves its messages into the new folder (RFC 3501 §6.3.5).
    pub fn rename(&self, from: &FolderName, to: &FolderName) -> Result<(), Error> {
        if to.is_inbox() || self.exists(to) {
            return Err(Error::AlreadyExists(to.to_string()));
        }
        if from.is_inbox() {
            return self.move_inbox(to);
        }
        if to.is_below(from) || to == from {
            return Err(Error::Cannot("a folder cannot be renamed below itself"));
        }
        let existing = self.existing()?;
        let moves: Vec<(FolderName, FolderName)> = existing
            .iter()
            .filter(|f| *f == from || f.is_below(from))
            .map(|f| Ok((f.clone(), f.moved(from, to)?)))
            .collect::<Result<_, Error>>()?;
        if moves.is_empty() {
            return Err(Error::NoSuchFolder(from.to_string()));
        }
        if let Some((_, taken)) = moves.iter().find(|(_, new)| existing.contains(new)) {
            return Err(Error::AlreadyExists(taken.to_string()));
        }
        for (done, (old, new)) in moves.iter().enumerate() {
            let path = self.dir(old);
            if let Err(e) = dirs::rename_new(&path, &self.dir(new)) {
                for (old, new) in moves.iter().take(done).rev() {
                    let _ = dirs::rename_new(&self.dir(new), &self.dir(old));
                }
                return Err(missing(e, "rename", &path, old));
            }
        }
        dirs::sync_dir(&self.root).ctx("sync", &self.root)
    }

    /// Subscribed folders in file order.
    pub fn subscriptions(&self) -> Result<Vec<FolderName>, Error> {
        subscriptions::list(&self.root)
    }

    /// Subscribes; does not check that the folder exists.
    pub fn subscribe(&self, folder: &FolderName) -> Result<(), Error> {
        subscriptions::set(&self.root, folder, true)
    }

    /// Unsubscribes; no error when it was not subscribed.
    pub fn unsubscribe(&self, folder: &FolderName) -> Result<(), Error> {
        subscriptions::set(&self.root, folder, false)
    }

    /// Removes files older than 36 h from the `tmp` of all folders; returns how many. Call now and then.
    pub fn clean_tmp(&self, now: SystemTime) -> Result<usize, Error> {
        let mut removed = 0;
        for folder in self.existing()? {
            let tmp = self.dir(&folder).join("tmp");
            let Ok(listing) = Listing::read(&tmp) else { continue };
            for file in listing.iter() {
                let path = dirs::join(&tmp, file);
                let Ok(meta) = fs::symlink_metadata(&path) else { continue };
                let changed = Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
                let age = now.duration_since(SystemTime::UNIX_EPOCH + changed).unwrap_or_default();
                if age > TMP_AGE && fs::remove_file(&path).is_ok() {
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    pub(crate) fn dir(&self, folder: &FolderName) -> PathBuf {
        if folder.is_inbox() { self.root.clone() } else { self.root.join(folder.dir()) }
    }

    fn existing(&self) -> Result<BTreeSet<FolderName>, Error> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.root).ctx("read", &self.root)? {
            let entry = entry.ctx("read", &self.root)?;
            let name = entry.file_name();
            let folder =
                name.to_str().filter(|n| n.starts_with('.')).and_then(|n| FolderName::from_dir(n).ok());
            if let Some(folder) = folder
                && self.exists(&folder)
            {
                found.insert(folder);
            }
        }
        if self.exists(&FolderName::inbox()) {
            found.insert(FolderName::inbox());
        }
        Ok(found)
    }

    /// The INBOX stays, empty; its messages get new UIDs in a new folder.
    fn move_inbox(&self, to: &FolderName) -> Result<(), Error> {
        self.create(to)?;
        let inbox = self.root.clone();
        let target = self.dir(to);
        let _lock = Dotlock::acquire(&uidlist::path(&inbox), lock::UIDLIST, LOCK_WAIT)?;
        // The letters in the names mean the same in the new folder.
        let names = keywords::path(&inbox);
        if names.exists() {
            fs::copy(&names, keywords::path(&target)).ctx("copy", &names)?;
        }
        for sub in ["cur", "new"] {
            let (from, into) = (inbox.join(sub), target.join(sub));
            for file in Listing::read(&from).ctx("read", &from)?.iter() {
                let path = dirs::join(&from, file);
                match dirs::rename_new(&path, &dirs::join(&into, file)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("rename", &path, e));
                    }
                    _ => {}
                }
            }
            dirs::sync_dir(&into).ctx("sync", &into)?;
            dirs::sync_dir(&from).ctx("sync", &from)?;
        }
        Ok(())
    }
}

/// `tmp` and `new`, then `cur`, with the rights of the root.
fn make_subdirs(root: &Path, dir: &Path) -> Result<(), Error> {
    let mode = Rights::of(root).ctx("read", root)?.dir_mode;
    for sub in SUBDIRS {
        let path = dir.join(sub);
        dirs::make_dir(&path, mode).ctx("create", &path)?;
    }
    dirs::sync_dir(dir).ctx("sync", dir)
}

fn missing(e: io::Error, what: &'static str, path: &Path, folder: &FolderName) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => Error::NoSuchFolder(folder.to_string()),
        io::ErrorKind::AlreadyExists => Error::AlreadyExists(folder.to_string()),
        _ => Error::io(what, path, e),
    }
}

fn mark_special(all: &mut BTreeMap<FolderName, FolderEntry>, configured: &[(FolderName, SpecialUse)]) {
    let mut used: Vec<SpecialUse> = Vec::new();
    for (name, special) in configured {
        if let Some(entry) = all.get_mut(name).filter(|e| e.exists && e.special_use.is_none())
            && !used.contains(special)
        {
            entry.special_use = Some(*special);
            used.push(*special);
        }
    }
    for (special, names) in SpecialUse::WELL_KNOWN.iter().filter(|(special, _)| !used.contains(special)) {
        let position = |e: &FolderEntry| names.iter().position(|n| n.eq_ignore_ascii_case(e.name.disk()));
        let found = all
            .values_mut()
            .filter(|e| e.exists && e.special_use.is_none() && position(e).is_some())
            .min_by_key(|e| position(e));
        if let Some(entry) = found {
            entry.special_use = Some(*special);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Maildir) {
        let dir = tempfile::tempdir().unwrap();
        let maildir = Maildir::open_or_create(&dir.path().join("a/b/Maildir")).unwrap();
        (dir, maildir)
    }

    fn name(text: &str) -> FolderName {
        FolderName::from_imap(text, '/').unwrap()
    }

    fn shown(maildir: &Maildir) -> Vec<String> {
        let mark = |e: &FolderEntry| {
            let special = e.special_use.map_or("", SpecialUse::attribute);
            let missing = if e.exists { "" } else { "!" };
            let children = if e.has_children { "+" } else { "" };
            format!("{missing}{}{children}{special}", e.name.to_imap('/'))
        };
        maildir.folders(&[]).unwrap().iter().map(mark).collect()
    }

    #[test]
    fn open() {
        let (dir, maildir) = tree();
        let mode = fs::metadata(maildir.root().join("cur")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        Maildir::open(maildir.root()).unwrap();
        Maildir::open_or_create(maildir.root()).unwrap();
        assert!(matches!(Maildir::open(&dir.path().join("none")), Err(Error::NoSuchFolder(_))));
        assert!(!maildir.root().join("maildirfolder").exists());
    }

    #[test]
    fn listing() {
        let (_dir, maildir) = tree();
        for folder in ["Z/x/y", "Sent Items", "Sent", "a", "INBOX/sub", "trash", "Drafts/old"] {
            maildir.create(&name(folder)).unwrap();
        }
        fs::create_dir_all(maildir.root().join("..DOVECOT-TRASHED/cur")).unwrap();
        fs::create_dir_all(maildir.root().join(".INBOX/cur")).unwrap();
        fs::create_dir_all(maildir.root().join(".bad&/cur")).unwrap();
        fs::create_dir_all(maildir.root().join(".nomail")).unwrap();
        fs::write(maildir.root().join(".dovecot.sieve"), "").unwrap();
        assert_eq!(
            shown(&maildir),
            [
                "INBOX+",
                "!Drafts+",
                "Drafts/old",
                "INBOX/sub",
                "Sent\\Sent",
                "Sent Items",
                "!Z+",
                "!Z/x+",
                "Z/x/y",
                "a",
                "trash\\Trash"
            ]
        );
        let special = [(name("a"), SpecialUse::Sent), (name("none"), SpecialUse::Junk)];
        let list = maildir.folders(&special).unwrap();
        let of = |n: &str| list.iter().find(|e| e.name == name(n)).unwrap().special_use;
        assert_eq!((of("a"), of("Sent")), (Some(SpecialUse::Sent), None));
    }

    #[test]
    fn create_delete() {
        let (_dir, maildir) = tree();
        let folder = name("A/B");
        maildir.create(&folder).unwrap();
        assert!(maildir.root().join(".A.B/maildirfolder").exists());
        assert!(matches!(maildir.create(&folder), Err(Error::AlreadyExists(_))));
        assert!(matches!(maildir.create(&FolderName::inbox()), Err(Error::AlreadyExists(_))));
        assert!(matches!(maildir.delete(&name("A")), Err(Error::NoSuchFolder(_))));
        maildir.create(&name("A")).unwrap();
        maildir.delete(&name("A")).unwrap();
        assert_eq!(shown(&maildir), ["INBOX", "!A+", "A/B"]);
        assert!(matches!(maildir.delete(&FolderName::inbox()), Err(Error::Cannot(_))));
        assert!(
            fs::read_dir(maildir.root()).unwrap().all(|e| !e
                .unwrap()
                .path()
                .to_string_lossy()
                .contains("trashed"))
        );
    }

    #[test]
    fn delete_does_not_follow_links() {
        let (dir, maildir) = tree();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("cur")).unwrap();
        fs::write(outside.join("cur/precious"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, maildir.root().join(".link")).unwrap();
        maildir.delete(&name("link")).unwrap();
        assert!(outside.join("cur/precious").exists());
    }

    #[test]
    fn renames() {
        let (_dir, maildir) = tree();
        for folder in ["A", "A/B", "A/B/C", "AB", "X"] {
            maildir.create(&name(folder)).unwrap();
        }
        for (from, to) in [("A", "A/B/D"), ("A", "A")] {
            assert!(maildir.rename(&name(from), &name(to)).is_err());
        }
        assert!(matches!(maildir.rename(&name("A"), &name("X")), Err(Error::AlreadyExists(_))));
        assert!(matches!(maildir.rename(&name("A"), &name("inbox")), Err(Error::AlreadyExists(_))));
        assert!(matches!(maildir.rename(&name("no"), &name("Y")), Err(Error::NoSuchFolder(_))));
        maildir.rename(&name("A"), &name("New/Place")).unwrap();
        assert_eq!(
            shown(&maildir),
            ["INBOX", "AB", "!New+", "New/Place+", "New/Place/B+", "New/Place/B/C", "X"]
        );
        // A parent that is no folder can be renamed for its children.
        maildir.rename(&name("New"), &name("N")).unwrap();
        assert_eq!(shown(&maildir)[2..4], ["!N+", "N/Place+"]);
    }

    #[test]
    fn rename_inbox_moves_messages() {
        let (_dir, maildir) = tree();
        fs::write(maildir.root().join("cur/1.a:2,Sa"), "x").unwrap();
        fs::write(maildir.root().join("new/2.b"), "y").unwrap();
        fs::write(maildir.root().join("dovecot-keywords"), "0 k\n").unwrap();
        maildir.create(&name("INBOX/child")).unwrap();
        maildir.rename(&FolderName::inbox(), &name("Old")).unwrap();
        assert_eq!(shown(&maildir), ["INBOX+", "INBOX/child", "Old"]);
        let old = maildir.root().join(".Old");
        assert!(old.join("cur/1.a:2,Sa").exists() && old.join("new/2.b").exists());
        assert_eq!(fs::read(old.join("dovecot-keywords")).unwrap(), b"0 k\n");
        assert_eq!(fs::read_dir(maildir.root().join("cur")).unwrap().count(), 0);
    }

    #[test]
    fn tmp_is_cleaned_by_age() {
        let (_dir, maildir) = tree();
        maildir.create(&name("A")).unwrap();
        for path in ["tmp/x", ".A/tmp/y"] {
            fs::write(maildir.root().join(path), "").unwrap();
        }
        let now = SystemTime::now();
        assert_eq!(maildir.clean_tmp(now + Duration::from_secs(35 * 3600)).unwrap(), 0);
        assert_eq!(maildir.clean_tmp(now + Duration::from_secs(37 * 3600)).unwrap(), 2);
    }
}
