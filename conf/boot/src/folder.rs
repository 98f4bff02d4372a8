//! Folders that sockets are put into, held open so that nobody can exchange them for others meanwhile.
//!
//! Trust:  a folder that belongs to root, or to the supervisor, and that no one else can write to, holds only what they put
//!         there; links in it are followed. In any other folder (the daemons' state folder, a spool) a link may be a trap laid by
//!         whoever owns it: it is not followed.
//! Never:  follow a link in a folder that somebody else can write to.
//! Source: openat(2), proc(5) "/proc/pid/fd": a socket can be bound below an open folder only through its name there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};
use nix::unistd::Uid;

/// Links in a path before it counts as a circle.
const MOST_LINKS: usize = 40;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// Every folder on the way down can be changed by root or the supervisor only.
    trusted: bool,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder by its absolute path; missing ones are made by `make`.
    pub(crate) fn open(path: &Path, make: impl Fn(&Folder, &OsStr) -> io::Result<()>) -> io::Result<Self> {
        let mut here =
            Self { fd: open_path(None, OsStr::new("/"))?, trusted: true, path: PathBuf::from("/") };
        here.trusted = here.is_closed_to_others()?;
        let mut waiting = names(path)?;
        let mut links = 0;
        while let Some(name) = waiting.pop_front() {
            let next = match open_path(Some(here.fd.as_fd()), &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make(&here, &name)?;
                    open_path(Some(here.fd.as_fd()), &name)?
                }
                other => other?,
            };
            let seen = fstat(&next)?;
            match seen.st_mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    let path = here.path.join(&name);
                    here = Self { fd: next, trusted: here.trusted, path };
                    here.trusted = here.trusted && here.is_closed_to_others()?;
                }
                libc::S_IFLNK if here.trusted && is_ours(seen.st_uid) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = PathBuf::from(readlinkat(&here.fd, name.as_os_str())?);
                    for name in names(&here.path.join(target))?.into_iter().rev() {
                        waiting.push_front(name);
                    }
                    here = Self {
                        fd: open_path(None, OsStr::new("/"))?,
                        trusted: true,
                        path: PathBuf::from("/"),
                    };
                }
                libc::S_IFLNK => {
                    let owner = fstat(&here.fd)?.st_uid;
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "{} is a link in a folder that uid {owner} can change; name the folder itself",
                            here.path.join(&name).display()
                        ),
                    ));
                }
                _ => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Ok(here)
    }

    /// A descriptor for the `…at` calls.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A name for calls that know no folders. Where others could exchange a part of the path it leads through the open folder.
    pub(crate) fn place(&self, name: &OsStr) -> PathBuf {
        if self.trusted {
            self.path.join(name)
        } else {
            Path::new(&format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(name)
        }
    }

    /// Makes a folder in this one, with exactly this mode.
    pub(crate) fn make(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        match mkdirat(&self.fd, name, mode) {
            // Again: the umask may have taken something away.
            Ok(()) => Ok(fchmodat(&self.fd, name, mode, FchmodatFlags::FollowSymlink)?),
            Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Nobody else can exchange what root or the supervisor has put here. In a sticky folder (/tmp) others can add their own.
    fn is_closed_to_others(&self) -> io::Result<bool> {
        let seen = fstat(&self.fd)?;
        // Who is not root can be led nowhere that he could not go himself.
        let sticky = seen.st_mode & libc::S_ISVTX != 0;
        Ok(!Uid::effective().is_root() || (is_ours(seen.st_uid) && (seen.st_mode & 0o022 == 0 || sticky)))
    }
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw() || !Uid::effective().is_root()
}

fn open_path(at: Option<BorrowedFd<'_>>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(match at {
        Some(folder) => openat(folder, name, flags, Mode::empty())?,
        None => nix::fcntl::open(name, flags, Mode::empty())?,
    })
}

/// The names of an absolute path. A name after `..` starts from above, as the kernel reads it.
fn names(path: &Path) -> io::Result<VecDeque<OsString>> {
    let mut names = VecDeque::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push_back(name.to_owned()),
            Component::ParentDir => {
                names.pop_back();
            }
            Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    if !path.is_absolute() || path.as_os_str().as_bytes().contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn no_new(_: &Folder, _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn links_in_folders_of_others_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("real/below")).unwrap();
        std::fs::create_dir(root.path().join("open")).unwrap();
        symlink("../real", root.path().join("open/link")).unwrap();
        symlink("real", root.path().join("link")).unwrap();
        symlink("circle", root.path().join("circle")).unwrap();
        // /tmp itself is for all; what is below our own folder there is told apart by what it allows.
        let open = |path: &str| Folder::open(&root.path().join(path), no_new);
        assert!(open("real/below").is_ok());
        assert!(open("none").is_err());
        std::fs::set_permissions(root.path().join("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open("link/below").unwrap().trusted);
        assert!(open("circle").is_err());
        if !Uid::effective().is_root() {
            return;
        }
        let error = open("open/link/below").unwrap_err();
        assert!(error.to_string().contains("is a link in a folder"), "{error}");
        let made =
            Folder::open(&root.path().join("open/new/er"), |above, name| above.make(name, 0o750)).unwrap();
        assert!(!made.trusted);
        let mode = std::fs::metadata(root.path().join("open/new/er")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750);
        // Exchanged meanwhile, it is still the folder that was opened.
        std::fs::rename(root.path().join("open/new/er"), root.path().join("open/gone")).unwrap();
        std::fs::write(made.place(OsStr::new("f")), "x").unwrap();
        assert!(root.path().join("open/gone/f").exists());
    }

    #[test]
    fn roots_own_links_are_followed() {
        let run = Folder::open(Path::new("/var/run"), no_new).unwrap();
        assert_eq!((run.path.as_path(), run.trusted), (Path::new("/run"), true));
        assert!(Folder::open(Path::new("relative"), no_new).is_err());
        assert_eq!(Folder::open(Path::new("/usr/../etc"), no_new).unwrap().path, Path::new("/etc"));
    }
}
