//! One passwd-file that follows its changes.
//!
//! A look-up costs at most one `stat`; how often is the caller's choice. A changed file is read in full and swapped
//! in; look-ups that run meanwhile keep the old index.
//!
//! Trust: the file is the administrator's; other programs write it, and may do so at any moment.
//! Never: read without a bound, hang on what is no file, or answer "unknown" for a file that cannot be read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use super::folder::open_beneath;
use super::index::{Index, ResolveIds};

/// Why a passwd-file cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is no such file. With a path made from a template: nobody of that domain is known.
    #[error("{}: no such file", .0.display())]
    Missing(PathBuf),
    /// The file cannot be opened or read. Temporary.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder, pipe, socket or device.
    #[error("{}: not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Larger than [`FileOptions::max_bytes`].
    #[error("{}: larger than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// A value that would leave the folder, or cannot be part of a file name.
    #[error("a name with this content cannot select a passwd-file")]
    UnsafeName,
    /// A file of another format that is not what it should be.
    #[error("{}: {source}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: crate::sasldb::Error,
    },
    /// Names in the uid and gid columns could not be looked up. Temporary.
    #[error("{}: {why}", path.display())]
    Ids {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The path's template is wrong or names an unknown variable.
    #[error("passwd-file path: {0}")]
    Template(String),
}

impl FileError {
    pub(super) fn from_io(path: &Path, source: io::Error) -> FileError {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileError::Missing(path.to_owned()),
            _ => FileError::Unreadable { path: path.to_owned(), source },
        }
    }
}

/// How files are read.
#[derive(Clone)]
pub struct FileOptions {
    /// Set when the file is also a userdb: resolves uid and gid names, and lines with bad ids are rejected.
    pub ids: Option<Arc<dyn ResolveIds + Send + Sync>>,
    /// Largest file read. Default 2 GiB.
    pub max_bytes: u64,
    /// How it is written. Default [`Format::Lines`].
    pub format: Format,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines, as Dovecot reads them.
    #[default]
    Lines,
    /// Cyrus' sasldb2; see [`crate::sasldb`].
    Sasldb,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions { ids: None, max_bytes: 2 << 30, format: Format::Lines }
    }
}

impl std::fmt::Debug for FileOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileOptions")
            .field("userdb", &self.ids.is_some())
            .field("max_bytes", &self.max_bytes)
            .field("format", &self.format)
            .finish()
    }
}

/// How often a look-up may ask the file system whether the file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// At every look-up.
    EveryLookup,
    /// When the last check is at least this long ago.
    AtMostEvery(Duration),
    /// Only by [`PasswdFile::reload`].
    OnReload,
}

/// Result of [`PasswdFile::poll`].
#[derive(Debug)]
pub enum Polled {
    /// The index is up to date.
    Ready(Arc<Index>),
    /// The file changed or was never read: [`PasswdFile::reload`] is due, on a thread that may block. The old index,
    /// if any, may be used meanwhile.
    Stale(Option<Arc<Index>>),
}

/// Where the file is.
#[derive(Debug)]
pub(super) enum Source {
    /// A fixed path of the administrator; links are followed.
    Path(PathBuf),
    /// A path from a template: never leaves `base`.
    Beneath { base: PathBuf, relative: PathBuf },
}

impl Source {
    fn path(&self) -> PathBuf {
        match self {
            Source::Path(path) => path.clone(),
            Source::Beneath { base, relative } => base.join(relative),
        }
    }

    fn open(&self) -> Result<File, FileError> {
        let opened = match self {
            // Non-blocking: opening a pipe somebody put there must not hang.
            Source::Path(path) => OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits())
                .open(path),
            Source::Beneath { base, relative } => open_beneath(base, relative),
        };
        opened.map_err(|error| FileError::from_io(&self.path(), error))
    }

    fn stamp(&self) -> Result<Stamp, FileError> {
        let metadata = match self {
            Source::Path(path) => std::fs::metadata(path),
            Source::Beneath { .. } => self.open()?.metadata(),
        };
        metadata.map(|metadata| Stamp::of(&metadata)).map_err(|error| FileError::from_io(&self.path(), error))
    }
}

/// What tells one content from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// File times move in steps of the kernel's tick. A file changed within the last steps may change again without
    /// a new time, so what was read of it is checked once more.
    fn is_recent(&self, now: SystemTime) -> bool {
        const STEP: i128 = 20_000_000;
        let nanos = |(seconds, nanos): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let Ok(now) = now.duration_since(UNIX_EPOCH) else { return true };
        let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
        now - nanos(self.modified).max(nanos(self.changed)) < STEP
    }
}

#[derive(Clone)]
struct Loaded {
    index: Arc<Index>,
    stamp: Stamp,
    /// The file was so young when it was read that the stamp cannot be trusted.
    recent: bool,
}

/// A passwd-file and its current index.
pub struct PasswdFile {
    source: Source,
    options: FileOptions,
    state: RwLock<Option<Loaded>>,
    /// Nanoseconds from `born` to the last check, plus one; zero is never.
    checked: AtomicU64,
    born: Instant,
    loading: Mutex<()>,
}

impl PasswdFile {
    /// A file at a fixed path. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>, options: FileOptions) -> PasswdFile {
        PasswdFile::from_source(Source::Path(path.into()), options)
    }

    pub(super) fn from_source(source: Source, options: FileOptions) -> PasswdFile {
        PasswdFile {
            source,
            options,
            state: RwLock::new(None),
            checked: AtomicU64::new(0),
            born: Instant::now(),
            loading: Mutex::new(()),
        }
    }

    /// The path, for messages.
    pub fn path(&self) -> PathBuf {
        self.source.path()
    }

    /// The index, read or read again first when that is due. May block for as long as reading takes; see
    /// [`PasswdFile::poll`] for threads that must not.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn current(&self, now: Instant, freshness: Freshness) -> Result<Arc<Index>, FileError> {
        match self.poll(now, freshness)? {
            Polled::Ready(index) => Ok(index),
            // Somebody else is reading: the old index serves until it is done.
            Polled::Stale(Some(old)) => match self.loading.try_lock() {
                Ok(guard) => self.load(&guard, now),
                Err(_) => Ok(old),
            },
            Polled::Stale(None) => {
                let guard = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
                match self.poll(now, freshness)? {
                    Polled::Ready(index) => Ok(index),
                    Polled::Stale(_) => self.load(&guard, now),
                }
            }
        }
    }

    /// Looks whether the index is up to date; at most one `stat`, never reads the file.
    ///
    /// # Errors
    /// [`FileError`] when the file is gone or cannot be reached.
    pub fn poll(&self, now: Instant, freshness: Freshness) -> Result<Polled, FileError> {
        let Some(loaded) = self.state.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Ok(Polled::Stale(None));
        };
        let since = self.nanos(now);
        let due = match freshness {
            Freshness::EveryLookup => true,
            Freshness::OnReload => false,
            Freshness::AtMostEvery(pause) => {
                let last = self.checked.load(Ordering::Relaxed);
                last == 0 || since.saturating_sub(last) >= u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX)
            }
        };
        if !due {
            return Ok(Polled::Ready(loaded.index));
        }
        let stamp = self.source.stamp()?;
        if loaded.recent || stamp != loaded.stamp {
            return Ok(Polled::Stale(Some(loaded.index)));
        }
        self.checked.store(since, Ordering::Relaxed);
        Ok(Polled::Ready(loaded.index))
    }

    /// Reads the file now, changed or not.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn reload(&self) -> Result<Arc<Index>, FileError> {
        let guard = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        self.load(&guard, Instant::now())
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }

    fn load(&self, _one_at_a_time: &MutexGuard<'_, ()>, now: Instant) -> Result<Arc<Index>, FileError> {
        let (text, stamp, recent) = self.read_text()?;
        let ids = self.options.ids.as_deref().map(|ids| ids as &dyn ResolveIds);
        let index = Arc::new(Index::build(text, ids));
        if let Some(why) = &index.report().unresolved {
            return Err(FileError::Ids { path: self.source.path(), why: why.clone() });
        }
        for note in &index.report().notes {
            tracing::warn!(file = %self.source.path().display(), "{note}");
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Loaded { index: Arc::clone(&index), stamp, recent });
        self.checked.store(self.nanos(now), Ordering::Relaxed);
        Ok(index)
    }

    /// The lines, or what a file of another format says in lines. One that is damaged is perhaps being written: its
    /// writers replace pages in place, take no lock, and may write through mmap(2) or from another machine, of which
    /// inotify(7) tells nothing. So it is looked at again a few times, as long as it is that young.
    fn read_text(&self) -> Result<(Vec<u8>, Stamp, bool), FileError> {
        const PAUSES: u32 = 3;
        const PAUSE: Duration = Duration::from_millis(10);
        let mut pauses = 0;
        loop {
            let (text, stamp, recent) = self.read()?;
            match self.options.format {
                Format::Lines => return Ok((text, stamp, recent)),
                Format::Sasldb => match crate::sasldb::to_passwd_file(&Zeroizing::new(text)) {
                    Ok(mut lines) => return Ok((std::mem::take(&mut *lines), stamp, recent)),
                    Err(_) if recent && pauses < PAUSES => std::thread::sleep(PAUSE),
                    Err(source) => return Err(FileError::Foreign { path: self.source.path(), source }),
                },
            }
            pauses += 1;
        }
    }

    /// The bytes and their stamp. A file that changes while it is read is read again; one that never rests is taken
    /// as it is and looked at again at the next check.
    fn read(&self) -> Result<(Vec<u8>, Stamp, bool), FileError> {
        const ATTEMPTS: u32 = 3;
        let path = self.source.path();
        let unreadable = |error| FileError::from_io(&path, error);
        let mut attempt = 1;
        loop {
            let mut file = self.source.open()?;
            let metadata = file.metadata().map_err(unreadable)?;
            if !metadata.is_file() {
                return Err(FileError::NotAFile(path));
            }
            let too_large = || FileError::TooLarge { path: path.clone(), max: self.options.max_bytes };
            if metadata.len() > self.options.max_bytes {
                return Err(too_large());
            }
            let mut text = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1);
            let limit = self.options.max_bytes + 1;
            let read = (&mut file).take(limit).read_to_end(&mut text).map_err(unreadable)?;
            if read as u64 >= limit {
                return Err(too_large());
            }
            let before = Stamp::of(&metadata);
            let after = Stamp::of(&file.metadata().map_err(unreadable)?);
            let recent = after.is_recent(SystemTime::now());
            if before == after || attempt == ATTEMPTS {
                return Ok((text, after, recent || before != after));
            }
            attempt += 1;
        }
    }
}

impl std::fmt::Debug for PasswdFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswdFile").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(file: &PasswdFile, name: &[u8]) -> Option<Vec<u8>> {
        let index = file.current(Instant::now(), Freshness::EveryLookup).unwrap();
        index.lookup(name).map(|entry| entry.password().to_vec())
    }

    #[test]
    fn follows_changes_of_every_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        std::fs::write(&path, "a:1\n").unwrap();
        let file = PasswdFile::new(&path, FileOptions::default());
        assert_eq!(password(&file, b"a").unwrap(), b"1");
        // Same size, within the same tick.
        std::fs::write(&path, "a:2\n").unwrap();
        assert_eq!(password(&file, b"a").unwrap(), b"2");
        // Replaced by rename, old times kept.
        let times = std::fs::metadata(&path).unwrap().modified().unwrap();
        let other = folder.path().join("new");
        std::fs::write(&other, "a:3\n").unwrap();
        File::open(&other).unwrap().set_modified(times).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(password(&file, b"a").unwrap(), b"3");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.current(Instant::now(), Freshness::EveryLookup), Err(FileError::Missing(_))));
        std::fs::write(&path, "a:4\n").unwrap();
        assert_eq!(password(&file, b"a").unwrap(), b"4");
    }

    #[test]
    fn policy_decides_how_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        std::fs::write(&path, "a:1\n").unwrap();
        let file = PasswdFile::new(&path, FileOptions::default());
        let start = Instant::now();
        let pause = Freshness::AtMostEvery(Duration::from_secs(1));
        let read = |now, freshness| {
            let index = file.current(now, freshness).unwrap();
            index.lookup(b"a").unwrap().password().to_vec()
        };
        assert_eq!(read(start, pause), b"1");
        std::fs::write(&path, "a:22\n").unwrap();
        assert_eq!(read(start + Duration::from_millis(500), pause), b"1");
        assert_eq!(read(start + Duration::from_hours(1), Freshness::OnReload), b"1");
        assert!(matches!(file.poll(start + Duration::from_secs(2), pause).unwrap(), Polled::Stale(Some(_))));
        assert_eq!(read(start + Duration::from_secs(2), pause), b"22");
        std::fs::write(&path, "a:333\n").unwrap();
        assert_eq!(file.reload().unwrap().lookup(b"a").unwrap().password(), b"333");
    }

    #[test]
    fn refuses_what_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path, max_bytes| {
            PasswdFile::new(path, FileOptions { max_bytes, ..FileOptions::default() }).reload().map(|_| ())
        };
        assert!(matches!(open(folder.path(), 9), Err(FileError::NotAFile(_) | FileError::Unreadable { .. })));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(open(&pipe, 9), Err(FileError::NotAFile(_))));
        let file = folder.path().join("users");
        std::fs::write(&file, "0123456789").unwrap();
        assert!(matches!(open(&file, 9), Err(FileError::TooLarge { .. })));
        assert!(open(&file, 10).is_ok());
        assert!(matches!(open(&folder.path().join("users/x"), 9), Err(FileError::Missing(_))));
    }
}
