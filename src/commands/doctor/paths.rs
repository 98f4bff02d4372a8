//! Who may do what with a path, by its permission bits; and the words for it.
//!
//! The kernel has the last word (ACLs, mounts, mandatory access control): checks try first and look at bits to say why.
//!
//! Trust: nobody; made of what the kernel says of files.
//! Never: be the reason to call a path open or closed where the kernel could be asked itself.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::accounts::{Account, name_of};

/// What stands in the way to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A folder on the way is missing.
    Missing(PathBuf),
    /// A folder on the way does not let the account pass.
    Closed { folder: PathBuf, rights: String },
    /// Something on the way is no folder.
    NoFolder(PathBuf),
    /// It cannot be seen from here.
    Unseen(PathBuf, String),
}

/// What stands in the way of an account to `path`: every folder above it, from `root` on (`/`, or a chroot).
pub(super) fn obstacle(account: &Account, path: &Path, root: &Path) -> Option<Obstacle> {
    let mut folders: Vec<&Path> =
        path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)).collect();
    folders.reverse();
    for folder in folders {
        match std::fs::metadata(folder) {
            Ok(meta) if !meta.is_dir() => return Some(Obstacle::NoFolder(folder.to_owned())),
            Ok(meta) if !allows(account, &meta, 1) => {
                return Some(Obstacle::Closed { folder: folder.to_owned(), rights: rights(&meta) });
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some(Obstacle::Missing(folder.to_owned()));
            }
            Err(error) => return Some(Obstacle::Unseen(folder.to_owned(), error.to_string())),
        }
    }
    None
}

/// Whether the permission bits let the account do this: 4 read, 2 write, 1 pass through.
pub(super) fn allows(account: &Account, meta: &Metadata, wanted: u32) -> bool {
    let shift = match standing(account, meta) {
        Standing::Root => return true,
        Standing::Owner => 6,
        Standing::Group => 3,
        Standing::Other => 0,
    };
    meta.mode() >> shift & wanted == wanted
}

/// What an account is to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Root,
    Owner,
    Group,
    Other,
}

/// What the account is to this file.
pub(super) fn standing(account: &Account, meta: &Metadata) -> Standing {
    if account.uid == 0 {
        Standing::Root
    } else if account.uid == meta.uid() {
        Standing::Owner
    } else if account.gid == meta.gid() || account.groups.contains(&meta.gid()) {
        Standing::Group
    } else {
        Standing::Other
    }
}

/// `0660 postfix:postfix`.
pub(super) fn rights(meta: &Metadata) -> String {
    format!("{:04o} {}:{}", meta.permissions().mode() & 0o7777, name_of(meta.uid()), group_name(meta.gid()))
}

/// The name of a gid, or its digits.
pub(super) fn group_name(gid: u32) -> String {
    let known = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)).ok().flatten();
    known.map_or_else(|| gid.to_string(), |group| group.name)
}

/// What kind of thing it is, in words.
pub(super) fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_socket() {
        "a socket"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_file() {
        "a plain file"
    } else {
        "something else"
    }
}

/// A word for a shell.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::{Obstacle, allows, obstacle, quoted};
    use crate::accounts::Account;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    #[test]
    fn the_first_closed_folder_is_named() {
        let scratch = tempfile::tempdir().expect("temporary folder");
        let root = scratch.path();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
        };
        std::fs::create_dir_all(root.join("a/b")).expect("folders");
        for folder in [root, &root.join("a"), &root.join("a/b")] {
            set(folder, 0o755);
        }
        let stranger = Account { name: "x".into(), uid: 54_321, gid: 54_321, groups: vec![54_321] };
        let socket = root.join("a/b/socket");
        assert_eq!(obstacle(&stranger, &socket, root), None);
        set(&root.join("a"), 0o750);
        assert!(
            matches!(obstacle(&stranger, &socket, root), Some(Obstacle::Closed { folder, .. }) if folder == root.join("a"))
        );
        set(&root.join("a"), 0o755);
        let missing = obstacle(&stranger, &root.join("a/c/d/socket"), root);
        assert_eq!(missing, Some(Obstacle::Missing(root.join("a/c"))));
        std::fs::write(root.join("file"), "").expect("file");
        assert_eq!(
            obstacle(&stranger, &root.join("file/socket"), root),
            Some(Obstacle::NoFolder(root.join("file")))
        );
        let meta = std::fs::metadata(root.join("file")).expect("file");
        let root_account = Account { uid: 0, ..stranger.clone() };
        assert!(allows(&root_account, &meta, 6) && !allows(&stranger, &meta, 2));
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted(Path::new("/a b")), "'/a b'");
        assert_eq!(quoted(Path::new("/a.b")), "/a.b");
    }
}
