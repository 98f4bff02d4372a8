//! Files that root reads for daemons of another account.
//!
//! Trust:  what lies in a folder of that account may be a link to a key of root's, put there by a daemon that was taken
//!         over. Below such a folder no link is followed, and a file with a second name must belong to the account.
//! Never:  make this any different for folders of root or of the reader itself.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Larger files are no certificate and no key.
const MOST: u64 = 4 << 20;

/// Reads a text that the supervisor hands on. `state`: the folder that may belong to the daemons' account.
pub(crate) fn read_to_string(path: &Path, state: &Path) -> io::Result<String> {
    let reader = nix::unistd::geteuid().as_raw();
    let owner = std::fs::metadata(state).map_or(reader, |meta| meta.uid());
    let file = match path.strip_prefix(state) {
        Ok(below) if owner != reader => open_beneath(state, below, owner)?,
        _ => File::open(path)?,
    };
    let mut text = String::new();
    if file.take(MOST + 1).read_to_string(&mut text)? as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large"));
    }
    Ok(text)
}

fn open_beneath(state: &Path, below: &Path, owner: u32) -> io::Result<File> {
    let link = |error: nix::errno::Errno| match error {
        nix::errno::Errno::ELOOP | nix::errno::Errno::ENOTDIR => io::Error::new(
            io::ErrorKind::InvalidInput,
            "the folder belongs to the daemons' account, and no link is followed there; name the file itself",
        ),
        other => other.into(),
    };
    let common = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mut here = open(state, common | OFlag::O_DIRECTORY, Mode::empty()).map_err(link)?;
    let mut names = below.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of its folder"));
        };
        // Not blocking: what pretends to be a file may be a pipe.
        let kind = if names.peek().is_some() { OFlag::O_DIRECTORY } else { OFlag::O_NONBLOCK };
        here = openat(here.as_fd(), name, common | kind, Mode::empty()).map_err(link)?;
    }
    let file = File::from(here);
    let found = file.metadata()?;
    if !found.is_file() || (found.nlink() > 1 && found.uid() != owner) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file of its own"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// An owner that nobody here is: every file counts as foreign.
    const OTHER: u32 = 4_294_967_000;

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
        std::fs::hard_link(&precious, state.join("tls/second.pem")).unwrap();
        nix::unistd::mkfifo(&state.join("tls/pipe"), Mode::S_IRWXU).unwrap();
        let read = |name: &str| {
            let mut text = String::new();
            open_beneath(&state, Path::new(name), OTHER)?.read_to_string(&mut text)?;
            io::Result::Ok(text)
        };
        assert_eq!(read("tls/key.pem").unwrap(), "own");
        for name in
            ["tls/link.pem", "folder/precious", "tls/second.pem", "tls/pipe", "../precious", "tls", ""]
        {
            assert!(read(name).is_err(), "{name}");
        }
        // A folder of the reader's own is his own business.
        assert_eq!(read_to_string(&state.join("tls/link.pem"), &state).unwrap(), "key");
        assert_eq!(read_to_string(&precious, &state).unwrap(), "key");
    }

    #[test]
    fn endless_files_are_not_read_to_their_end() {
        assert!(read_to_string(Path::new("/dev/zero"), Path::new("/nonexistent")).is_err());
    }
}
