//! Files that root reads for daemons of another account.
//!
//! Trust:  a folder of root's that nobody else can write to is what it seems. In any other folder (the state folder of the
//!         daemons' account, a home) a link may lead to a key of root's, put there by a daemon that was taken over: from there on
//!         no link is followed, and a file with a second name must belong to the folder's owner.
//! Never:  make this any different for a reader who is not root: he can be led nowhere he could not go himself.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_at_once, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

/// Larger files are no certificate and no key.
const MOST: u64 = 4 << 20;
/// sticky(7): only a file's owner can rename or remove it.
const STICKY: u32 = 0o1000;
/// Links in a path before it counts as a circle.
const MOST_LINKS: usize = 40;

/// Reads a text that the supervisor hands on.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    let file = open(path)?;
    // A string that grows leaves what it held behind, and it may be a key.
    let length = file.metadata()?.len().min(MOST);
    let mut text = String::with_capacity(usize::try_from(length).unwrap_or_default().saturating_add(64));
    if file.take(MOST + 1).read_to_string(&mut text)? as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large"));
    }
    Ok(text)
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if !nix::unistd::geteuid().is_root() || !path.is_absolute() {
        return File::open(path);
    }
    walk(path, &|folder: &FileStat| {
        let sticky = folder.st_mode & STICKY != 0;
        folder.st_uid == 0 && (folder.st_mode & 0o022 == 0 || sticky)
    })
}

/// Opens a file by its absolute path. `trusted`: nobody else can exchange what is in this folder.
fn walk(path: &Path, trusted: &dyn Fn(&FileStat) -> bool) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let top = || -> io::Result<OwnedFd> { Ok(open_at_once("/", flags, Mode::empty())?) };
    let mut waiting = names(path)?;
    let (mut here, mut place) = (top()?, PathBuf::from("/"));
    let mut safe = true;
    let mut links = 0;
    while let Some(name) = waiting.pop_front() {
        let folder = fstat(&here)?;
        safe = safe && trusted(&folder);
        let next = openat(&here, name.as_os_str(), flags, Mode::empty())?;
        let found = fstat(&next)?;
        match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFLNK if safe && found.st_uid == 0 => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = PathBuf::from(readlinkat(&here, name.as_os_str())?);
                for name in names(&place.join(target))?.into_iter().rev() {
                    waiting.push_front(name);
                }
                (here, place) = (top()?, PathBuf::from("/"));
            }
            SFlag::S_IFLNK => {
                let text = format!(
                    "{} is a link in a folder that uid {} can change, where root follows none; name the file itself",
                    place.join(&name).display(),
                    folder.st_uid
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            SFlag::S_IFDIR if !waiting.is_empty() => {
                place.push(name);
                here = next;
            }
            _ if !waiting.is_empty() => return Err(Errno::ENOTDIR.into()),
            _ => {
                // Not blocking: what pretends to be a file may be a pipe.
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = File::from(openat(&here, name.as_os_str(), flags, Mode::empty())?);
                let found = file.metadata()?;
                if !safe && (!found.is_file() || (found.nlink() > 1 && found.uid() != folder.st_uid)) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file of its own"));
                }
                return Ok(file);
            }
        }
    }
    Err(Errno::EISDIR.into())
}

/// The names of an absolute path.
fn names(path: &Path) -> io::Result<VecDeque<OsString>> {
    let mut names = VecDeque::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push_back(name.to_owned()),
            Component::ParentDir => drop(names.pop_back()),
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_second_names_are_refused_below_a_foreign_folder() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        std::fs::create_dir_all(state.join("tls")).unwrap();
        let precious = root.path().join("precious");
        std::fs::write(&precious, "key").unwrap();
        std::fs::write(state.join("tls/key.pem"), "own").unwrap();
        symlink(&precious, state.join("tls/link.pem")).unwrap();
        symlink(root.path(), state.join("folder")).unwrap();
        symlink("tls", state.join("tls-link")).unwrap();
        std::fs::hard_link(&precious, state.join("tls/second.pem")).unwrap();
        nix::unistd::mkfifo(&state.join("tls/pipe"), Mode::S_IRWXU).unwrap();
        // As if the state folder, and all below, were somebody else's.
        let theirs = std::fs::metadata(&state).unwrap().ino();
        let read = |name: &str, trusted: &dyn Fn(&FileStat) -> bool| {
            let mut text = String::new();
            walk(&state.join(name), trusted)?.read_to_string(&mut text)?;
            io::Result::Ok(text)
        };
        let foreign = |folder: &FileStat| folder.st_ino != theirs;
        assert_eq!(read("tls/key.pem", &foreign).unwrap(), "own");
        let own = nix::unistd::geteuid().is_root();
        for name in ["tls/link.pem", "folder/precious", "tls-link/key.pem", "tls", ""] {
            assert!(read(name, &foreign).is_err(), "{name}");
        }
        // A pipe is never waited for; the folder's owner may give his own file a second name.
        assert!(read("tls/pipe", &foreign).is_err());
        assert_eq!(read("tls/second.pem", &foreign).unwrap(), "key");
        // A folder of the reader's own is his own business.
        if own {
            assert_eq!(read("tls/link.pem", &|_| true).unwrap(), "key");
            assert_eq!(read_to_string(&precious).unwrap(), "key");
            std::os::unix::fs::lchown(&state, Some(12_345), None).unwrap();
            std::os::unix::fs::lchown(state.join("tls"), Some(12_345), None).unwrap();
            for name in ["tls/link.pem", "folder/precious", "tls/second.pem", "tls/pipe"] {
                assert!(read_to_string(&state.join(name)).is_err(), "{name}");
            }
            assert_eq!(read_to_string(&state.join("tls/key.pem")).unwrap(), "own");
        }
        assert!(walk(Path::new("/../etc/passwd"), &|_| true).is_ok());
    }

    #[test]
    fn endless_files_are_not_read_to_their_end() {
        assert!(read_to_string(Path::new("/dev/zero")).is_err());
    }
}
