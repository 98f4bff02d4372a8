//! Delivery: a message is written into `tmp`, made durable, then renamed into place.
//!
//! Order:   create in `tmp` → write → fsync file → rename → fsync directory; reference note
//!          "maildir-imap-pop3", section 2. Only after the last step may a client be told "250".
//! Content: CRLF is stored as LF, everything else byte for byte, so that reading with LF → CRLF gives back
//!          exactly what was sent. `,S=` and `,W=` in the name tell both sizes.
//! Locks:   none for a message without keywords.
//! Trust:   the message is a stranger's; where it goes was decided by the caller.
//! Never:   leave a file behind in `tmp` after an error, show a message before its bytes are durable.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::dirs::{self, Rights};
use crate::error::{Context, Error};
use crate::flags::{Flags, Keyword, KeywordSet};
use crate::folder::FolderName;
use crate::keywords;
use crate::name;
use crate::quota;
use crate::tree::Maildir;

/// Bytes collected before they are written.
const BUFFER: usize = 64 * 1024;

/// Where a message is going: a folder of a tree.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) root: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) folder: FolderName,
}

impl Target {
    pub(crate) fn new(root: &Path, folder: &FolderName) -> Self {
        let dir = if folder.is_inbox() { root.to_owned() } else { root.join(folder.dir()) };
        Self { root: root.to_owned(), dir, folder: folder.clone() }
    }

    /// A missing directory is a missing folder.
    fn error(&self, what: &'static str, path: &Path, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::NotFound {
            Error::NoSuchFolder(self.folder.to_string())
        } else {
            Error::io(what, path, source)
        }
    }
}

/// A file in `tmp`; removed when dropped.
#[derive(Debug)]
struct TmpFile {
    path: PathBuf,
    moved: bool,
}

impl TmpFile {
    fn create(target: &Target, rights: Rights) -> Result<(File, String, Self), Error> {
        let tmp = target.dir.join("tmp");
        loop {
            let base = name::unique_base(SystemTime::now());
            let path = tmp.join(&base);
            match dirs::create_new(&path, rights) {
                Ok(file) => return Ok((file, base, Self { path, moved: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(target.error("create", &path, e)),
            }
        }
    }

    /// Another name in `tmp` for a file that is there already.
    fn link(target: &Target, source: &Path) -> Result<(String, Self), io::Error> {
        let tmp = target.dir.join("tmp");
        loop {
            let base = name::unique_base(SystemTime::now());
            let path = tmp.join(&base);
            match fs::hard_link(source, &path) {
                Ok(()) => return Ok((base, Self { path, moved: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.moved
            && let Err(e) = fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove an abandoned delivery");
        }
    }
}

/// Turns CRLF into LF and counts, whatever the pieces the bytes come in.
///
/// A CR in front of CRLF stays together with that CRLF: the file then holds CR CR LF, whose LF is not bare, and
/// reads back as it came.
#[derive(Debug, Default)]
struct LineEnds {
    /// CRs seen last, not passed on yet; only the number up to 2 matters, more are passed on at once.
    pending: u8,
    size: u64,
    bare: u64,
}

impl LineEnds {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some((first, rest)) = bytes.split_first() {
            match *first {
                b'\r' => {
                    if self.pending == 2 {
                        self.put(b"\r", out);
                    } else {
                        self.pending += 1;
                    }
                    bytes = rest;
                }
                b'\n' if self.pending > 0 => {
                    if self.pending == 2 {
                        self.put(b"\r\r\n", out);
                    } else {
                        self.bare += 1;
                        self.put(b"\n", out);
                    }
                    self.pending = 0;
                    bytes = rest;
                }
                _ => {
                    self.flush(out);
                    let end = memchr::memchr(b'\r', bytes).unwrap_or(bytes.len());
                    let (run, rest) = bytes.split_at(end);
                    self.bare += u64::try_from(memchr::memchr_iter(b'\n', run).count()).unwrap_or(0);
                    self.put(run, out);
                    bytes = rest;
                }
            }
        }
    }

    /// CRs no LF followed.
    fn flush(&mut self, out: &mut Vec<u8>) {
        for _ in 0..std::mem::take(&mut self.pending) {
            self.put(b"\r", out);
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.size += bytes.len() as u64;
        out.extend_from_slice(bytes);
    }
}

/// A message being written into `tmp`. Dropping it removes the file.
#[derive(Debug)]
pub struct Delivery {
    target: Target,
    file: File,
    base: String,
    tmp: TmpFile,
    buffer: Vec<u8>,
    ends: LineEnds,
    date: Option<SystemTime>,
    flags: Flags,
    keywords: Vec<Keyword>,
}

impl Delivery {
    pub(crate) fn start(target: Target) -> Result<Self, Error> {
        let tmp = target.dir.join("tmp");
        let rights = Rights::of(&tmp).map_err(|e| target.error("read", &tmp, e))?;
        let (file, base, tmp) = TmpFile::create(&target, rights)?;
        Ok(Self {
            target,
            file,
            base,
            tmp,
            buffer: Vec::new(),
            ends: LineEnds::default(),
            date: None,
            flags: Flags::NONE,
            keywords: Vec::new(),
        })
    }

    /// Writes more of the message. CRLF is stored as LF; sizes count both forms.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(BUFFER) {
            self.ends.feed(piece, &mut self.buffer);
            if self.buffer.len() >= BUFFER {
                self.write_out()?;
            }
        }
        Ok(())
    }

    /// INTERNALDATE; without it the time of delivery.
    pub fn set_date(&mut self, date: SystemTime) {
        self.date = Some(date);
    }

    /// Flags and keywords: with any, the message goes straight to `cur`.
    pub fn set_flags(&mut self, flags: Flags, keywords: Vec<Keyword>) {
        self.flags = flags;
        self.keywords = keywords;
    }

    /// Bytes written so far, as they are on disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ends.size + u64::from(self.ends.pending)
    }

    /// Ends the message and makes its bytes durable (fsync). It is still in `tmp`.
    ///
    /// `EmptyMessage` when nothing was written, `OverQuota` when the account's `maildirsize` has no room.
    pub fn finish(mut self) -> Result<Staged, Error> {
        self.ends.flush(&mut self.buffer);
        if self.ends.size == 0 {
            return Err(Error::EmptyMessage);
        }
        quota::check(&self.target.root, self.ends.size, 1)?;
        self.write_out()?;
        if let Some(date) = self.date {
            self.file.set_modified(date).ctx("set the date of", &self.tmp.path)?;
        }
        self.file.sync_all().ctx("sync", &self.tmp.path)?;
        let (size, virtual_size) = (self.ends.size, self.ends.size + self.ends.bare);
        Ok(Staged {
            base: format!("{},S={size},W={virtual_size}", self.base),
            target: self.target,
            tmp: self.tmp,
            size,
            virtual_size,
            flags: self.flags,
            keywords: self.keywords,
            guid: None,
        })
    }

    fn write_out(&mut self) -> Result<(), Error> {
        self.file.write_all(&self.buffer).ctx("write", &self.tmp.path)?;
        self.buffer.clear();
        Ok(())
    }
}

impl io::Write for Delivery {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A complete, durable message in `tmp`. Dropping it removes the file.
#[derive(Debug)]
pub struct Staged {
    target: Target,
    tmp: TmpFile,
    /// Final base name, with sizes.
    base: String,
    size: u64,
    virtual_size: u64,
    flags: Flags,
    keywords: Vec<Keyword>,
    guid: Option<Vec<u8>>,
}

impl Staged {
    /// A hard link (or a copy) of an existing message file, for COPY.
    pub(crate) fn of_message(target: Target, source: &Path, copied: &Source<'_>) -> Result<Self, Error> {
        let (base, tmp) = match TmpFile::link(&target, source) {
            Ok(linked) => linked,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Either the message was renamed or the target folder is gone.
                return Err(if target.dir.join("tmp").is_dir() {
                    Error::io("link", source, e)
                } else {
                    Error::NoSuchFolder(target.folder.to_string())
                });
            }
            Err(e) if cannot_link(&e) => copy_bytes(&target, source)?,
            Err(e) => return Err(target.error("link", source, e)),
        };
        let mut name = base;
        let (size, virtual_size) = (copied.size, copied.virtual_size);
        if let Some(size) = size {
            name.push_str(&format!(",S={size}"));
        }
        if let Some(virtual_size) = virtual_size {
            name.push_str(&format!(",W={virtual_size}"));
        }
        Ok(Self {
            target,
            tmp,
            base: name,
            size: size.unwrap_or(0),
            virtual_size: virtual_size.unwrap_or(0),
            flags: copied.flags,
            keywords: copied.keywords.clone(),
            guid: Some(copied.guid.to_vec()),
        })
    }

    /// Size on disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size with CRLF line ends: what RFC822.SIZE shows.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// The staged file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.tmp.path
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn keywords(&self) -> &[Keyword] {
        &self.keywords
    }

    pub(crate) fn guid(&self) -> Option<&[u8]> {
        self.guid.as_deref()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.target.dir
    }

    /// Another staged message with the same bytes for another account or folder: a hard link where the
    /// file system and ownership allow, else a copy. Flags and keywords are taken over.
    pub fn share(&self, maildir: &Maildir, folder: &FolderName) -> Result<Self, Error> {
        let target = Target::new(maildir.root(), folder);
        quota::check(&target.root, self.size, 1)?;
        let (base, tmp) = match TmpFile::link(&target, &self.tmp.path) {
            Ok(linked) => linked,
            Err(e) if cannot_link(&e) => copy_bytes(&target, &self.tmp.path)?,
            Err(e) => return Err(target.error("link", &self.tmp.path, e)),
        };
        let (size, virtual_size) = (self.size, self.virtual_size);
        Ok(Self {
            base: format!("{base},S={size},W={virtual_size}"),
            target,
            tmp,
            size,
            virtual_size,
            flags: self.flags,
            keywords: self.keywords.clone(),
            guid: None,
        })
    }

    /// Moves the message into `new` (or `cur`) and makes the directory durable. After `Ok` the message is safe; after an
    /// error it is gone, unless another program was quicker to pick it up.
    pub fn commit(mut self) -> Result<Placed, Error> {
        let keywords = self.named_keywords()?;
        let placed = self.place(keywords)?;
        match sync_placed(std::slice::from_ref(&placed)) {
            Ok(()) => {
                placed.count();
                Ok(placed)
            }
            Err(error) => {
                if !placed.undo() {
                    placed.count();
                }
                Err(error)
            }
        }
    }

    /// The sub-directory and file name this message goes to, with these keywords.
    pub(crate) fn final_name(&self, keywords: KeywordSet) -> (&'static str, Vec<u8>) {
        if self.flags.is_empty() && keywords.is_empty() {
            ("new", self.base.clone().into_bytes())
        } else {
            ("cur", name::with_info(self.base.as_bytes(), self.flags, keywords))
        }
    }

    /// The rename. Not durable before the directory is synced.
    pub(crate) fn place(&mut self, keywords: KeywordSet) -> Result<Placed, Error> {
        let (sub, file) = self.final_name(keywords);
        let dir = self.target.dir.join(sub);
        let path = dirs::join(&dir, &file);
        dirs::rename_new(&self.tmp.path, &path).map_err(|e| self.target.error("rename", &path, e))?;
        self.tmp.moved = true;
        Ok(Placed { dir, path, root: self.target.root.clone(), size: self.size })
    }

    fn named_keywords(&self) -> Result<KeywordSet, Error> {
        if self.keywords.is_empty() {
            return Ok(KeywordSet::NONE);
        }
        keywords::assign_locked(&self.target.dir, &self.keywords)
    }
}

/// What a copy takes over from its source.
pub(crate) struct Source<'a> {
    pub(crate) size: Option<u64>,
    pub(crate) virtual_size: Option<u64>,
    pub(crate) flags: Flags,
    pub(crate) keywords: Vec<Keyword>,
    pub(crate) guid: &'a [u8],
}

/// A message in its final place.
#[derive(Debug)]
pub struct Placed {
    pub(crate) dir: PathBuf,
    pub(crate) path: PathBuf,
    root: PathBuf,
    size: u64,
}

impl Placed {
    /// Takes a message away again whose sender has to be told that it was not delivered.
    ///
    /// # Errors
    /// The message stays: another program was quicker to pick it up, so somebody may have seen it.
    pub fn take_back(self) -> Result<(), Error> {
        fs::remove_file(&self.path).ctx("take back", &self.path)?;
        quota::adjust(&self.root, i64::try_from(self.size).unwrap_or(0).saturating_neg(), -1);
        // Without it, a crash at once may bring the message back: once too often, which is what an error means too.
        let _ = dirs::sync_dir(&self.dir);
        Ok(())
    }

    /// The same before it was counted. True when no trace of it is left.
    pub(crate) fn undo(&self) -> bool {
        match fs::remove_file(&self.path) {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!(path = %self.path.display(), error = %e, "cannot take back a delivery");
                false
            }
        }
    }

    pub(crate) fn count(&self) {
        quota::adjust(&self.root, i64::try_from(self.size).unwrap_or(0), 1);
    }
}

/// Not all of several staged messages could be committed.
#[derive(Debug, thiserror::Error)]
#[error("message {failed}: {error}; {} others stay delivered", kept.len())]
pub struct CommitError {
    /// Which message stopped it, by its place in the list.
    pub failed: usize,
    /// What did.
    pub error: Error,
    /// Which messages are delivered all the same: another program was quicker to pick them up.
    pub kept: Vec<usize>,
}

/// Commits several staged messages (one for each local recipient), all or none: all renames, then one fsync per directory.
///
/// When one fails, those renamed before are taken back, as far as nobody has picked them up.
pub fn commit_all(mut staged: Vec<Staged>) -> Result<Vec<Placed>, CommitError> {
    let mut placed: Vec<Placed> = Vec::with_capacity(staged.len());
    match place_all(&mut staged, &mut placed) {
        Ok(()) => {
            placed.iter().for_each(Placed::count);
            Ok(placed)
        }
        Err(error) => {
            let failed = placed.len().min(staged.len().saturating_sub(1));
            let mut kept = Vec::new();
            for (index, message) in placed.iter().enumerate() {
                if !message.undo() {
                    message.count();
                    kept.push(index);
                }
            }
            let _ = sync_placed(&placed);
            Err(CommitError { failed, error, kept })
        }
    }
}

fn place_all(staged: &mut [Staged], placed: &mut Vec<Placed>) -> Result<(), Error> {
    // Everything that can fail for other reasons comes before the first rename.
    let keywords: Vec<KeywordSet> = staged.iter().map(Staged::named_keywords).collect::<Result<_, _>>()?;
    for (message, keywords) in staged.iter_mut().zip(keywords) {
        placed.push(message.place(keywords)?);
    }
    sync_placed(placed)
}

/// Makes the renames durable, each directory once.
pub(crate) fn sync_placed(placed: &[Placed]) -> Result<(), Error> {
    let mut dirs: Vec<&Path> = placed.iter().map(|p| p.dir.as_path()).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs.into_iter().try_for_each(|dir| dirs::sync_dir(dir).ctx("sync", dir))
}

fn cannot_link(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(e.kind(), K::CrossesDevices | K::PermissionDenied | K::TooManyLinks | K::Unsupported)
}

fn copy_bytes(target: &Target, source: &Path) -> Result<(String, TmpFile), Error> {
    let (mut from, meta) = dirs::open_regular(source).ctx("open", source)?;
    let tmp = target.dir.join("tmp");
    let rights = Rights::of(&tmp).map_err(|e| target.error("read", &tmp, e))?;
    let (mut to, base, tmp) = TmpFile::create(target, rights)?;
    io::copy(&mut from, &mut to).ctx("write", &tmp.path)?;
    if let Ok(date) = meta.modified() {
        to.set_modified(date).ctx("set the date of", &tmp.path)?;
    }
    to.sync_all().ctx("sync", &tmp.path)?;
    Ok((base, tmp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn convert(pieces: &[&[u8]]) -> (Vec<u8>, u64, u64) {
        let (mut ends, mut out) = (LineEnds::default(), Vec::new());
        for piece in pieces {
            ends.feed(piece, &mut out);
        }
        ends.flush(&mut out);
        (out, ends.size, ends.size + ends.bare)
    }

    /// What IMAP sends: every bare LF as CRLF.
    fn with_crlf(stored: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, b) in stored.iter().enumerate() {
            if *b == b'\n' && (i == 0 || stored[i - 1] != b'\r') {
                out.push(b'\r');
            }
            out.push(*b);
        }
        out
    }

    #[test]
    fn line_ends() {
        type Case<'a> = (&'a [&'a [u8]], &'a [u8], u64);
        let cases: [Case<'_>; 8] = [
            (&[b"a\r\nb\r\n"], b"a\nb\n", 6),
            (&[b"a\r", b"\nb\r", b"\n"], b"a\nb\n", 6),
            (&[b"a\nb"], b"a\nb", 4),
            (&[b"a\rb\r"], b"a\rb\r", 4),
            (&[b"a\r\r\nb"], b"a\r\r\nb", 5),
            (&[b"\r", b"\r", b"\r", b"\n"], b"\r\r\r\n", 4),
            (&[b"\n\r\n\n"], b"\n\n\n", 6),
            (&[], b"", 0),
        ];
        for (pieces, stored, virtual_size) in cases {
            assert_eq!(convert(pieces), (stored.to_vec(), stored.len() as u64, virtual_size), "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn line_ends_round_trip(text in "[ab\r\n]{0,40}", cut in 0usize..40) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let (stored, size, virtual_size) = convert(&[&bytes[..cut], &bytes[cut..]]);
            let shown = with_crlf(&stored);
            prop_assert_eq!(size, stored.len() as u64);
            prop_assert_eq!(virtual_size, shown.len() as u64);
            // What came in with CRLF line ends only comes out byte for byte.
            if with_crlf(bytes) == bytes {
                prop_assert_eq!(shown, bytes);
            }
        }
    }

    fn tree() -> (tempfile::TempDir, Maildir) {
        let dir = tempfile::tempdir().unwrap();
        let maildir = Maildir::open_or_create(&dir.path().join("Maildir")).unwrap();
        (dir, maildir)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn stage(maildir: &Maildir, text: &[u8]) -> Staged {
        let mut delivery = maildir.delivery().unwrap();
        delivery.write(text).unwrap();
        delivery.finish().unwrap()
    }

    #[test]
    fn through_tmp_into_new() {
        let (_dir, maildir) = tree();
        let root = maildir.root().to_owned();
        let mut delivery = maildir.delivery().unwrap();
        assert_eq!(names(&root.join("tmp")).len(), 1);
        delivery.write(b"Subject: x\r\n\r\n").unwrap();
        delivery.write(b"body\r\n").unwrap();
        assert_eq!(delivery.size(), 17);
        let staged = delivery.finish().unwrap();
        assert_eq!((staged.size(), staged.virtual_size()), (17, 20));
        assert!(names(&root.join("new")).is_empty());
        staged.commit().unwrap();
        let new = names(&root.join("new"));
        assert_eq!(new.len(), 1);
        assert!(new[0].ends_with(",S=17,W=20"), "{new:?}");
        assert_eq!(fs::read(root.join("new").join(&new[0])).unwrap(), b"Subject: x\n\nbody\n");
        assert!(names(&root.join("tmp")).is_empty());
    }

    #[test]
    fn dropping_at_each_step_leaves_nothing() {
        let (_dir, maildir) = tree();
        let count =
            || -> usize { ["tmp", "new", "cur"].iter().map(|d| names(&maildir.root().join(d)).len()).sum() };
        drop(maildir.delivery().unwrap());
        assert_eq!(count(), 0);
        let mut delivery = maildir.delivery().unwrap();
        delivery.write(&[b'x'; 200_000]).unwrap();
        drop(delivery);
        assert_eq!(count(), 0);
        drop(stage(&maildir, b"x"));
        assert_eq!(count(), 0);
        assert!(matches!(maildir.delivery().unwrap().finish(), Err(Error::EmptyMessage)));
        assert_eq!(count(), 0);
        stage(&maildir, b"x").commit().unwrap();
        assert_eq!(count(), 1);
    }

    #[test]
    fn flags_and_date() {
        let (_dir, maildir) = tree();
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let mut delivery = maildir.delivery().unwrap();
        delivery.set_date(date);
        delivery.set_flags(Flags::SEEN | Flags::DRAFT, vec![Keyword::try_from("$label1").unwrap()]);
        delivery.write(b"x\r\n").unwrap();
        delivery.finish().unwrap().commit().unwrap();
        let cur = names(&maildir.root().join("cur"));
        assert!(cur[0].ends_with(",S=2,W=3:2,DSa"), "{cur:?}");
        let meta = fs::metadata(maildir.root().join("cur").join(&cur[0])).unwrap();
        assert_eq!(meta.modified().unwrap(), date);
        assert_eq!(fs::read(maildir.root().join("dovecot-keywords")).unwrap(), b"0 $label1\n");
        assert!(!maildir.root().join("dovecot-uidlist.lock").exists());
    }

    #[test]
    fn all_or_nothing() {
        let (_dir, a) = tree();
        let (dir_b, b) = tree();
        let inbox = FolderName::inbox();
        let first = stage(&a, b"hello\r\n");
        let second = first.share(&b, &inbox).unwrap();
        commit_all(vec![first, second]).unwrap();
        for maildir in [&a, &b] {
            assert_eq!(names(&maildir.root().join("new")).len(), 1);
        }
        // The second folder vanishes between staging and commit: the first message is taken back.
        let first = stage(&a, b"hello\r\n");
        let second = first.share(&b, &inbox).unwrap();
        fs::rename(b.root().join("new"), dir_b.path().join("away")).unwrap();
        let error = commit_all(vec![first, second]).unwrap_err();
        assert_eq!((error.failed, &error.kept[..]), (1, &[][..]));
        assert!(matches!(error.error, Error::NoSuchFolder(_)));
        assert_eq!(names(&a.root().join("new")).len(), 1);
        assert!(names(&a.root().join("tmp")).is_empty());
        assert!(names(&b.root().join("tmp")).is_empty());
    }

    #[test]
    fn taken_back_unless_somebody_has_seen_it() {
        let (_dir, maildir) = tree();
        let root = maildir.root().to_owned();
        fs::write(root.join("maildirsize"), "1000S\n0 0\n").unwrap();
        stage(&maildir, b"hello\r\n").commit().unwrap().take_back().unwrap();
        assert!(names(&root.join("new")).is_empty());
        assert_eq!(fs::read(root.join("maildirsize")).unwrap(), b"1000S\n0 0\n6 1\n-6 -1\n");
        let placed = stage(&maildir, b"hello\r\n").commit().unwrap();
        let name = names(&root.join("new")).remove(0);
        fs::rename(root.join("new").join(&name), root.join("cur").join(format!("{name}:2,S"))).unwrap();
        placed.take_back().unwrap_err();
        assert_eq!(names(&root.join("cur")).len(), 1);
        assert_eq!(fs::read(root.join("maildirsize")).unwrap(), b"1000S\n0 0\n6 1\n-6 -1\n6 1\n");
    }

    #[test]
    fn missing_folder() {
        let (_dir, maildir) = tree();
        let folder = FolderName::from_imap("Nope", '/').unwrap();
        assert!(matches!(maildir.delivery_to(&folder), Err(Error::NoSuchFolder(_))));
        assert!(matches!(stage(&maildir, b"x").share(&maildir, &folder), Err(Error::NoSuchFolder(_))));
    }
}
