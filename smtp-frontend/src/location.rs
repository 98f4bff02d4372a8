//! Where a user's Maildir is.
//!
//! The daemon answers a look-up with `mail` and `home`, templates already expanded. Both are taken as they are, but
//! only as absolute paths without `..`: nothing that came from a user may climb out of the mail tree.
//!
//! Trust: the authentication daemon; values in its templates may be what a client typed.
//! Never: give a path that is not absolute or has `..` in it.

use std::path::{Component, Path, PathBuf};

/// Folder below the home of a user for whom nothing else is said.
const DEFAULT_FOLDER: &str = "Maildir";

/// The root of the Maildir, from the daemon's `mail` (`maildir:/path[:options]`, or just a path, `~` for the
/// home) and `home`. `None`: there is none, or it is nowhere safe.
pub(crate) fn maildir_root(mail: Option<&str>, home: Option<&Path>) -> Option<PathBuf> {
    let root = match mail.filter(|mail| !mail.is_empty()) {
        None => home?.join(DEFAULT_FOLDER),
        Some(mail) => {
            let path = match mail.split_once(':') {
                Some(("maildir", rest)) => rest.split(':').next().unwrap_or_default(),
                Some((path, _)) if path.starts_with('~') => path,
                // Another kind of store, such as `mbox:`.
                Some((kind, _)) if !kind.contains('/') => return None,
                _ => mail,
            };
            match path.strip_prefix('~') {
                Some("") => home?.to_owned(),
                Some(below) => home?.join(below.strip_prefix('/')?.trim_start_matches('/')),
                None => PathBuf::from(path),
            }
        }
    };
    let plain = root.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (root.is_absolute() && plain).then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots() {
        let home = Some(Path::new("/m/bob"));
        for (mail, home, root) in [
            (None, home, Some("/m/bob/Maildir")),
            (Some(""), home, Some("/m/bob/Maildir")),
            (Some("/x/y"), None, Some("/x/y")),
            (Some("maildir:/x/y"), None, Some("/x/y")),
            (Some("maildir:~/Mail:LAYOUT=fs"), home, Some("/m/bob/Mail")),
            (Some("~/Mail:INDEX=/x"), home, Some("/m/bob/Mail")),
            (Some("~//Mail"), home, Some("/m/bob/Mail")),
            (Some("~"), home, Some("/m/bob")),
            (Some("/a:b"), None, Some("/a:b")),
            (Some("mbox:~/mail"), home, None),
            (Some("~other/Maildir"), home, None),
            (Some("~/x"), None, None),
            (Some("relative"), home, None),
            (Some("/x/../../etc"), home, None),
            (None, Some(Path::new("m/bob")), None),
            (None, None, None),
        ] {
            assert_eq!(maildir_root(mail, home), root.map(PathBuf::from), "{mail:?} {home:?}");
        }
    }
}
