//! The pid file, which is also the lock of the state folder.
//!
//! The lock is flock(2) on the file, so a dead holder holds nothing, whatever the file says. flock(2) has no way to ask who holds
//! it: whoever only wants to know ([`StateLock::is_held`]) shares the lock for an instant, and a start lets that pass.
//!
//! Trust:  the folder's owner may have put anything in the file's place; it is neither followed nor believed.
//! Never:  two supervisors for one folder; a start that fails because somebody looked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::Error;

/// Longest a look may take, on a machine under load.
const LOOK: Duration = Duration::from_secs(2);

/// The lock of a state folder, held until dropped. The file holds the pid and a newline.
#[derive(Debug)]
pub struct StateLock {
    file: Flock<File>,
    path: PathBuf,
}

impl StateLock {
    /// Takes the lock and writes the own pid.
    ///
    /// # Errors
    /// [`Error::Held`] when another process has it, [`Error::PidFile`] when the file cannot be written.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::PidFile { path: path.to_owned(), source };
        let end = Instant::now() + LOOK;
        loop {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create(true)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = options.open(path).map_err(failed)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    if Instant::now() < end && !is_held(&file).map_err(failed)? {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    return Err(Error::Held { pid_file: path.to_owned(), pid: read_pid(&mut file) });
                }
                Err((_, error)) => return Err(failed(error.into())),
            };
            // The folder's owner may have put something else there: another name of a file elsewhere, or a device.
            let found = file.metadata().map_err(failed)?;
            if !found.is_file() || found.nlink() > 1 {
                return Err(failed(io::Error::other("it is not a file of its own")));
            }
            // The former holder removes the file when it ends: then this one is no longer the file others see.
            if !is_at(&file, path).map_err(failed)? {
                continue;
            }
            write_pid(&mut file).map_err(failed)?;
            return Ok(Self { file, path: path.to_owned() });
        }
    }

    /// Whether somebody holds the lock of a folder whose pid file this is.
    ///
    /// # Errors
    /// The lock cannot be tried.
    pub fn is_held(pid_file: &File) -> io::Result<bool> {
        is_held(pid_file)
    }

    /// The locked file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // Removed while still locked, so nobody else's file is hit.
        if is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A lock can be shared with those who look, not with a holder. It ends with the copy of the descriptor.
fn is_held(file: &File) -> io::Result<bool> {
    match Flock::lock(file.try_clone()?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(seen) => Ok((held.dev(), held.ino()) == (seen.dev(), seen.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_learns_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postern.pid");
        let lock = StateLock::acquire(&path).unwrap();
        let own = std::process::id();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{own}\n"));
        let error = StateLock::acquire(&path).unwrap_err();
        assert!(matches!(&error, Error::Held { pid: Some(pid), .. } if *pid == own));
        assert_eq!(error.exit_code(), crate::exit::TEMPFAIL);
        assert!(error.to_string().contains(&format!("process {own}")), "{error}");
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn a_look_stops_no_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postern.pid");
        let file = File::create(&path).unwrap();
        let look = Flock::lock(file, FlockArg::LockSharedNonblock).unwrap();
        let starting = std::thread::spawn({
            let path = path.clone();
            move || StateLock::acquire(&path)
        });
        // It has opened the file, so it finds the lock taken.
        let opened = || {
            let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path)).count()
        };
        while opened() < 2 && !starting.is_finished() {
            std::thread::yield_now();
        }
        assert!(!StateLock::is_held(&File::open(&path).unwrap()).unwrap());
        assert!(!starting.is_finished(), "it did not wait");
        drop(look);
        let lock = starting.join().unwrap().unwrap();
        assert!(StateLock::is_held(&File::open(&path).unwrap()).unwrap());
        drop(lock);
    }

    #[test]
    fn a_dead_holders_file_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postern.pid");
        std::fs::write(&path, "999999 and more text than fits\n").unwrap();
        let _lock = StateLock::acquire(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, path) = (folder.path().join("target"), folder.path().join("postern.pid"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(StateLock::acquire(&path), Err(Error::PidFile { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&target, &path).unwrap();
        assert!(matches!(StateLock::acquire(&path), Err(Error::PidFile { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }
}
