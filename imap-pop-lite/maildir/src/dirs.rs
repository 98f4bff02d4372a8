//! Directory work every part of the store shares: stamps, listings, careful create and rename, fsync.
//!
//! Trust: other programs of the mailbox's owner may put anything there: links, pipes, huge files.
//! Never: follow a symbolic link in the last component when creating, replace an existing message by a rename.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::{Dir, Type};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// What identifies one state of a file or directory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// `None` when there is no such file.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Some(Self::from(&meta))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.inode == other.inode && self.device == other.device
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Time since the change; 0 for times in the future.
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        let seconds = Duration::from_secs(u64::try_from(self.seconds).unwrap_or(0));
        let changed = seconds + Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0));
        now.duration_since(SystemTime::UNIX_EPOCH + changed).unwrap_or_default()
    }

    /// Two changes further apart than this show different times. File systems that keep fractions take them from
    /// a clock that ticks at least a hundred times a second; others keep whole (or two) seconds.
    pub(crate) fn granularity(&self) -> Duration {
        if self.nanoseconds == 0 { Duration::from_secs(2) } else { Duration::from_millis(100) }
    }
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            seconds: meta.mtime(),
            nanoseconds: meta.mtime_nsec(),
        }
    }
}

/// Access rights new files take over from their directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    /// Mode of the directory.
    pub(crate) dir_mode: u32,
    gid: u32,
}

impl Rights {
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let meta = fs::metadata(dir)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { dir_mode: meta.mode() & 0o7777, gid: meta.gid() })
    }

    fn file_mode(self) -> u32 {
        self.dir_mode & 0o666
    }

    /// Gives an open file the directory's group and mode where they differ. A group we are not in stays as it
    /// is: the owner can read the mail all the same.
    fn apply(self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        if meta.gid() != self.gid {
            let _ = std::os::unix::fs::fchown(file, None, Some(self.gid));
        }
        if meta.mode() & 0o777 != self.file_mode() {
            file.set_permissions(Permissions::from_mode(self.file_mode()))?;
        }
        Ok(())
    }
}

/// A new file: `O_CREAT|O_EXCL|O_NOFOLLOW`, with the rights of its directory.
pub(crate) fn create_new(path: &Path, rights: Rights) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(rights.file_mode())
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    rights.apply(&file)?;
    Ok(file)
}

/// Opens a regular file for reading; a link, FIFO or device in a mail tree is not a message.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta)) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Reads a small side file, at most `limit` bytes. `None` when missing. A FIFO there must not make anybody wait.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    match OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Ok(file) if !file.metadata()?.is_file() => Err(io::ErrorKind::InvalidInput.into()),
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes one directory; no error when it is there already.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode & 0o777).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes renames and unlinks in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(path)?.sync_all()
}

/// Renames, but never over an existing file. Where the file system cannot promise that in one step, the check
/// comes first.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Path of a file whose name is raw bytes.
pub(crate) fn join(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(name))
}

/// The names in a directory, in one block of memory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Listing {
    /// Reads `cur` or `new`: no names with a leading dot, no directories. Names with line ends cannot be listed
    /// in the uidlist and are left alone, as Dovecot does.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::open(path, flags, Mode::empty())?;
        let mut listing = Self::default();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.starts_with(b".") || entry.file_type() == Some(Type::Directory) {
                continue;
            }
            if memchr::memchr2(b'\n', b'\r', name).is_some() {
                tracing::warn!(dir = %path.display(), "ignoring a message file with a line end in its name");
                continue;
            }
            listing.bytes.extend_from_slice(name);
            listing.ends.push(listing.bytes.len());
        }
        Ok(listing)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        let mut kept = Self::default();
        for name in self.iter().filter(|name| keep(name)) {
            kept.bytes.extend_from_slice(name);
            kept.ends.push(kept.bytes.len());
        }
        *self = kept;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().filter_map(move |end| {
            let name = self.bytes.get(start..*end);
            start = *end;
            name
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&b).unwrap(), b"b");
        rename_new(&a, &dir.path().join("c")).unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn create_takes_directory_rights() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o770)).unwrap();
        let rights = Rights::of(dir.path()).unwrap();
        let file = create_new(&dir.path().join("x"), rights).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o660);
        assert!(create_new(&dir.path().join("x"), rights).is_err());
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("link")).unwrap();
        assert!(create_new(&dir.path().join("link"), rights).is_err());
    }

    #[test]
    fn listing_skips_what_is_no_message() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a:2,S", ".hidden", "bad\nname"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("sub")).unwrap();
        let listing = Listing::read(dir.path()).unwrap();
        let mut names: Vec<_> = listing.iter().collect();
        names.sort();
        assert_eq!(names, [&b"a:2,S"[..], b"b"]);
        assert!(Listing::read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn only_regular_files_open() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(open_regular(&fifo).is_err());
        assert!(read_limited(&fifo, 10).is_err());
        assert!(read_limited(&dir.path().join("none"), 10).unwrap().is_none());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert!(open_regular(&dir.path().join("link")).is_err());
        assert!(open_regular(dir.path()).is_err());
    }

    #[test]
    fn ages() {
        let stamp = |seconds, nanoseconds| Stamp { seconds, nanoseconds, ..Stamp::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(stamp(999, 500_000_000).age(now), Duration::from_millis(500));
        assert_eq!(stamp(1001, 0).age(now), Duration::ZERO);
        assert_eq!(stamp(-5, -1).age(now), Duration::from_secs(1000));
        assert!(stamp(999, 0).granularity() > stamp(999, 1).granularity());
    }
}
