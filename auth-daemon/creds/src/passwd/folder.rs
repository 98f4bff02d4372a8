//! Passwd-files whose path depends on the user: one file per domain, beneath one folder.
//!
//! Trust: the template is the administrator's, the values put into it come from clients. Each value must be one
//! harmless file name part, and the file is opened so that no link leads out of the folder.
//! Never: follow a link out of the folder, or open what is no regular file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use super::file::{FileError, FileOptions, Freshness, PasswdFile, Polled, Source};
use super::index::Index;

/// Longest part of a path.
const MAX_NAME: usize = 255;

/// Most files kept in memory; beyond it all are forgotten and read again as they are needed.
const MAX_FILES: usize = 1024;

/// Whether a passwd-file path contains variables and so needs a [`PasswdFolder`].
pub fn is_template(path: &str) -> bool {
    parse(path).is_ok_and(|parts| parts.iter().any(|part| matches!(part, Part::Variable(_))))
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// What stands between `%{` and `}`, or the letter of a short form.
    Variable(String),
}

/// A file of a [`PasswdFolder`]: its path beneath the folder, made of harmless names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected(PathBuf);

/// A family of passwd-files.
pub struct PasswdFolder {
    base: PathBuf,
    parts: Vec<Part>,
    options: FileOptions,
    files: Mutex<HashMap<PathBuf, Arc<PasswdFile>>>,
}

impl PasswdFolder {
    /// Takes a path with variables (`%{user | domain}`, `%d`; `%%` is a percent sign). Everything before the last `/`
    /// in front of the first variable is the folder.
    ///
    /// # Errors
    /// [`FileError::Template`] when the path has no variable, no folder, or an unclosed brace.
    pub fn new(template: &str, options: FileOptions) -> Result<PasswdFolder, FileError> {
        let mut parts = parse(template).map_err(|why| FileError::Template(why.to_owned()))?;
        let Some(Part::Literal(first)) = parts.first_mut() else {
            return Err(FileError::Template("must begin with a folder".to_owned()));
        };
        let (base, rest) = match first.rsplit_once('/') {
            Some((base, rest)) if first.starts_with('/') => (base.to_owned(), rest.to_owned()),
            _ => return Err(FileError::Template("must be absolute".to_owned())),
        };
        *first = rest;
        if parts.len() < 2 {
            return Err(FileError::Template("has no variable".to_owned()));
        }
        let base = PathBuf::from(if base.is_empty() { "/" } else { &base });
        Ok(PasswdFolder { base, parts, options, files: Mutex::new(HashMap::new()) })
    }

    /// The index of the file the variables select. `expand` gets the text between `%{` and `}` (or the letter of a
    /// short form) and returns the value for this user.
    ///
    /// # Errors
    /// [`FileError::Missing`] when there is no such file (nobody of that domain is known),
    /// [`FileError::UnsafeName`] when a value cannot be part of a file name, and everything of
    /// [`PasswdFile::current`].
    pub fn current(
        &self,
        expand: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
        now: Instant,
        freshness: Freshness,
    ) -> Result<Arc<Index>, FileError> {
        self.current_of(&self.select(expand)?, now, freshness)
    }

    /// Which file the variables select; there need not be one. `expand` as for [`PasswdFolder::current`].
    ///
    /// # Errors
    /// [`FileError::UnsafeName`], [`FileError::Template`].
    pub fn select(&self, expand: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Result<Selected, FileError> {
        self.relative(expand).map(Selected)
    }

    /// Looks whether the index of a file is up to date; see [`PasswdFile::poll`].
    ///
    /// # Errors
    /// As [`PasswdFile::poll`].
    pub fn poll(&self, file: &Selected, now: Instant, freshness: Freshness) -> Result<Polled, FileError> {
        match self.known(file) {
            Some(known) => known.poll(now, freshness),
            None => Ok(Polled::Stale(None)),
        }
    }

    fn known(&self, file: &Selected) -> Option<Arc<PasswdFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&file.0).cloned()
    }

    /// The index of a file, read first if that is due. May block.
    ///
    /// # Errors
    /// As [`PasswdFolder::current`].
    pub fn current_of(
        &self,
        file: &Selected,
        now: Instant,
        freshness: Freshness,
    ) -> Result<Arc<Index>, FileError> {
        let relative = file.0.clone();
        if let Some(file) = self.known(file) {
            let result = file.current(now, freshness);
            if matches!(result, Err(FileError::Missing(_))) {
                self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&relative);
            }
            return result;
        }
        let source = Source::Beneath { base: self.base.clone(), relative: relative.clone() };
        let file = Arc::new(PasswdFile::from_source(source, self.options.clone()));
        // Only files that are there are remembered: clients choose the names.
        let index = file.current(now, freshness)?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MAX_FILES {
            files.clear();
        }
        files.insert(relative, file);
        Ok(index)
    }

    /// Forgets everything read, so that the next look-up reads again.
    pub fn reload(&self) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn relative(&self, expand: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Result<PathBuf, FileError> {
        let mut path = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => path.extend_from_slice(text.as_bytes()),
                Part::Variable(name) => {
                    let value = expand(name)
                        .ok_or_else(|| FileError::Template(format!("unknown variable {name:?}")))?;
                    let hidden = matches!(path.last(), None | Some(b'/')) && value.first() == Some(&b'.');
                    let plain = !value.iter().any(|b| *b == b'/' || b.is_ascii_control());
                    if value.is_empty() || hidden || !plain {
                        return Err(FileError::UnsafeName);
                    }
                    path.extend_from_slice(&value);
                }
            }
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let good = path.components().all(|part| match part {
            Component::Normal(name) => name.len() <= MAX_NAME,
            _ => false,
        });
        if good { Ok(path) } else { Err(FileError::UnsafeName) }
    }
}

impl std::fmt::Debug for PasswdFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswdFolder")
            .field("base", &self.base)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

fn parse(template: &str) -> Result<Vec<Part>, &'static str> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        rest = if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            after
        } else {
            let (name, after) = match after.strip_prefix('{') {
                Some(after) => after.split_once('}').ok_or("unclosed %{")?,
                None => {
                    let length = after.chars().next().map_or(0, char::len_utf8);
                    after
                        .split_at_checked(length)
                        .filter(|(name, _)| !name.is_empty())
                        .ok_or("% at the end")?
                }
            };
            parts.push(Part::Literal(std::mem::take(&mut literal)));
            parts.push(Part::Variable(name.trim().to_owned()));
            after
        };
    }
    literal.push_str(rest);
    parts.push(Part::Literal(literal));
    // A path without variables is one literal; an empty tail behind a variable says nothing.
    if parts.len() > 1 && matches!(parts.last(), Some(Part::Literal(tail)) if tail.is_empty()) {
        parts.pop();
    }
    Ok(parts)
}

const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// A folder on the way: passing through it is enough, listing it is not needed.
const PASS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens `relative` for reading; neither `..` nor a link leads out of `base`.
pub(super) fn open_beneath(base: &Path, relative: &Path) -> io::Result<File> {
    let folder = OpenOptions::new().read(true).custom_flags(PASS.bits()).open(base)?;
    let how =
        OpenHow::new().flags(READ).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&folder, relative, how) {
        Ok(file) => Ok(File::from(file)),
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => open_stepwise(folder, relative),
        Err(error) => Err(error.into()),
    }
}

/// One name after the other, and no links at all.
fn open_stepwise(folder: File, relative: &Path) -> io::Result<File> {
    let mut at = folder;
    let mut components = relative.components().peekable();
    while let Some(Component::Normal(name)) = components.next() {
        let last = components.peek().is_none();
        let flags = OFlag::O_NOFOLLOW | if last { READ } else { PASS };
        at = File::from(openat(&at, name, flags, Mode::empty())?);
        if last {
            return Ok(at);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let cases: [(&str, bool); 6] = [
            ("/etc/users", false),
            ("/etc/100%%/users", false),
            ("/etc/%d/users", true),
            ("/etc/%{user | domain}/users", true),
            ("/etc/%{user", false),
            ("/etc/x%", false),
        ];
        for (path, expected) in cases {
            assert_eq!(is_template(path), expected, "{path}");
        }
        for bad in ["%d/users", "users/%d", "/etc/users", "/etc/%{d"] {
            assert!(PasswdFolder::new(bad, FileOptions::default()).is_err(), "{bad}");
        }
        let folder =
            PasswdFolder::new("/etc/mail/x-%{user | domain}/%n.users", FileOptions::default()).unwrap();
        assert_eq!(folder.base, Path::new("/etc/mail"));
        let mut seen = Vec::new();
        let path = folder.relative(&mut |name| {
            seen.push(name.to_owned());
            Some(b"v".to_vec())
        });
        assert_eq!(path.unwrap(), Path::new("x-v/v.users"));
        assert_eq!(seen, ["user | domain", "n"]);
    }

    #[test]
    fn hostile_values_select_nothing() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("base");
        std::fs::create_dir_all(base.join("good.test")).unwrap();
        std::fs::write(base.join("good.test/users"), "a:1\n").unwrap();
        std::fs::write(root.path().join("users"), "evil:1\n").unwrap();
        std::os::unix::fs::symlink(root.path(), base.join("link.test")).unwrap();
        std::os::unix::fs::symlink("good.test", base.join("alias.test")).unwrap();
        let template = format!("{}/%d/users", base.display());
        let folder = PasswdFolder::new(&template, FileOptions::default()).unwrap();
        let open = |value: &[u8]| {
            folder.current(&mut |_| Some(value.to_vec()), Instant::now(), Freshness::EveryLookup)
        };
        assert!(open(b"good.test").unwrap().lookup(b"a").is_some());
        assert!(open(b"good.test").unwrap().lookup(b"a").is_some());
        assert!(open(b"alias.test").unwrap().lookup(b"a").is_some());
        for value in
            [&b".."[..], b".", b"", b"../", b"a/../..", b"/etc", b".hidden", b"a\0", b"a\n", &[b'x'; 300]]
        {
            assert!(matches!(open(value), Err(FileError::UnsafeName)), "{value:?}");
        }
        // A link out of the folder is an error, not a look-up elsewhere.
        assert!(open(b"link.test").is_err());
        assert!(matches!(open(b"absent.test"), Err(FileError::Missing(_))));
        assert_eq!(folder.files.lock().unwrap().len(), 2);
        assert!(matches!(
            folder.current(&mut |_| None, Instant::now(), Freshness::EveryLookup),
            Err(FileError::Template(_))
        ));
        std::fs::remove_file(base.join("good.test/users")).unwrap();
        assert!(matches!(open(b"good.test"), Err(FileError::Missing(_))));
    }
    #[test]
    fn step_by_step_without_links() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::write(root.path().join("a/b/users"), "x").unwrap();
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("users", root.path().join("a/b/alias")).unwrap();
        let open = |path: &str| open_stepwise(File::open(root.path()).unwrap(), Path::new(path));
        assert!(open("a/b/users").is_ok());
        for path in ["link/b/users", "a/b/alias", "a/../a/b/users", "/etc/passwd", "a/b/none", ".."] {
            assert!(open(path).is_err(), "{path}");
        }
    }
}
