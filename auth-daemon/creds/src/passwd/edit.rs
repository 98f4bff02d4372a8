//! Changing one user's line.
//!
//! Locking: `flock` on the file itself, taken again when the file was replaced meanwhile; two editors never lose each
//!          other's change. Readers need no lock: the file is replaced by rename.
//! Keeps:   every byte of every other line, the mode and the owner.
//! Trust:   the name and the fields are checked for what would end a column or a line.
//! Never:   leave a file that is half written.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use super::index::bare_name;
use super::line::{Entry, KEY_FIELD};
use crate::Secret;

/// Why a change was not made. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The user is there already.
    #[error("user {0:?} is there already")]
    Exists(String),
    /// There is no such user.
    #[error("no user {0:?}")]
    Unknown(String),
    /// Something that cannot stand in a passwd-file.
    #[error("{0}")]
    Invalid(&'static str),
    /// Another program holds the lock.
    #[error("{}: another program is changing the file", .0.display())]
    Busy(PathBuf),
    /// The system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A line to be written.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// The key, with or without domain.
    pub name: String,
    /// Column two, `{SCHEME}data`.
    pub stored: Secret,
    /// Further stored strings (SCRAM keys), written as `scram=` fields.
    pub keys: Vec<Secret>,
    /// Column three.
    pub uid: Option<u32>,
    /// Column four.
    pub gid: Option<u32>,
    /// Column six.
    pub home: Option<String>,
    /// Extra fields.
    pub fields: Vec<(String, Option<String>)>,
}

/// A passwd-file opened for changing, and locked until dropped.
pub struct Editor {
    path: PathBuf,
    lock: File,
    default_domain: Vec<u8>,
    text: Zeroizing<Vec<u8>>,
}

impl Editor {
    /// Mode of a file that did not exist.
    const NEW_MODE: u32 = 0o600;

    /// Locks and reads the file, waiting at most `wait` for another editor. A file that is not there is created
    /// empty, with mode 0600 and the owner of its folder. Keys without a domain belong to `default_domain`.
    ///
    /// # Errors
    /// [`EditError::Busy`], [`EditError::Io`].
    pub fn open(path: &Path, default_domain: &str, wait: Duration) -> Result<Editor, EditError> {
        let path = follow(path)?;
        let deadline = Instant::now() + wait;
        loop {
            let mut lock = open_or_create(&path)?;
            wait_for_lock(&lock, &path, deadline)?;
            if !is_still(&lock, &path) {
                continue;
            }
            let mut text = Zeroizing::new(Vec::new());
            lock.read_to_end(&mut text).map_err(|source| io_error("read", &path, source))?;
            return Ok(Editor { path, lock, default_domain: default_domain.as_bytes().to_vec(), text });
        }
    }

    /// Whether the user is there.
    pub fn contains(&self, name: &str) -> bool {
        self.lines().any(|(_, line)| self.is_user(line, name))
    }

    /// All entries in file order, duplicates included.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.lines().filter_map(|(_, line)| Entry::parse(line))
    }

    /// Adds a line at the end.
    ///
    /// # Errors
    /// [`EditError::Exists`], [`EditError::Invalid`].
    pub fn add(&mut self, user: &NewUser) -> Result<(), EditError> {
        if self.contains(&user.name) {
            return Err(EditError::Exists(user.name.clone()));
        }
        let line = user.line()?;
        if self.text.last().is_some_and(|b| *b != b'\n') {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(&line);
        self.text.push(b'\n');
        Ok(())
    }

    /// Replaces a user's line; further lines of the same user are dropped.
    ///
    /// # Errors
    /// [`EditError::Unknown`], [`EditError::Invalid`].
    pub fn replace(&mut self, user: &NewUser) -> Result<(), EditError> {
        let line = user.line()?;
        self.rewrite(&user.name, |_| Some(line.to_vec()))
    }

    /// Removes every line of a user, so that no shadowed one comes to light. Returns how many there were.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn remove(&mut self, name: &str) -> Result<usize, EditError> {
        let count = self.lines().filter(|(_, line)| self.is_user(line, name)).count();
        self.rewrite(name, |_| None)?;
        Ok(count)
    }

    /// Changes the password: column two and, when `keys` is given, the `scram=` fields. Old keys would let the old
    /// password in, so only a rehash of the same password passes `None`. All other columns stay as they are.
    ///
    /// # Errors
    /// [`EditError::Unknown`], [`EditError::Invalid`].
    pub fn set_password(
        &mut self,
        name: &str,
        stored: &Secret,
        keys: Option<&[Secret]>,
    ) -> Result<(), EditError> {
        check_stored(stored.expose(), b":\r\n\0")?;
        for key in keys.unwrap_or_default() {
            check_stored(key.expose(), b" \r\n\0")?;
        }
        self.rewrite(name, |line| Some(with_password(line, stored.expose(), keys)))
    }

    /// Writes the file and replaces the old one. Durable when it returns.
    ///
    /// # Errors
    /// [`EditError::Io`]; the old file is untouched then.
    pub fn commit(self) -> Result<(), EditError> {
        let fail = |doing, source| io_error(doing, &self.path, source);
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let old = self.lock.metadata().map_err(|source| fail("stat", source))?;
        let temporary = temporary_path(folder, &self.path);
        let result = write_new(&temporary, &self.text, &old)
            .and_then(|()| std::fs::rename(&temporary, &self.path))
            .and_then(|()| File::open(folder)?.sync_all());
        if result.is_err() {
            // Gone already when the rename worked.
            let _ = std::fs::remove_file(&temporary);
        }
        result.map_err(|source| fail("replace", source))
    }

    /// Lines with their offsets, without LF.
    fn lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut start = 0;
        self.text.split_inclusive(|&b| b == b'\n').map(move |line| {
            let at = start;
            start += line.len();
            (at, line.strip_suffix(b"\n").unwrap_or(line))
        })
    }

    fn is_user(&self, line: &[u8], name: &str) -> bool {
        Entry::parse(line)
            .is_some_and(|entry| self.canonical(entry.name()) == self.canonical(name.as_bytes()))
    }

    /// The name without the default domain: equal for both spellings of one user.
    fn canonical<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        bare_name(name, &self.default_domain).unwrap_or(name)
    }

    /// Puts `change`'s result in place of the user's first line and drops the user's other lines. The line handed to
    /// `change` and the one returned have no line end; the line end stays as it was.
    fn rewrite(
        &mut self,
        name: &str,
        change: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), EditError> {
        let mut change = Some(change);
        let mut out = Zeroizing::new(Vec::with_capacity(self.text.len() + 256));
        for whole in self.text.split_inclusive(|&b| b == b'\n') {
            let line = whole.strip_suffix(b"\n").unwrap_or(whole);
            if !self.is_user(line, name) {
                out.extend_from_slice(whole);
                continue;
            }
            let Some(change) = change.take() else { continue };
            let bare = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(new) = change(bare).map(Zeroizing::new) {
                out.extend_from_slice(&new);
                out.extend_from_slice(whole.get(bare.len()..).unwrap_or_default());
            }
        }
        if change.is_some() {
            return Err(EditError::Unknown(name.to_owned()));
        }
        self.text = out;
        Ok(())
    }
}

impl std::fmt::Debug for Editor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Editor").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NewUser {
    /// The line without its LF; no more columns than are needed.
    fn line(&self) -> Result<Zeroizing<Vec<u8>>, EditError> {
        check_name(&self.name)?;
        check_stored(self.stored.expose(), b":\r\n\0")?;
        let mut out = Zeroizing::new(self.name.clone().into_bytes());
        out.push(b':');
        out.extend_from_slice(self.stored.expose());
        let has_fields = !self.fields.is_empty() || !self.keys.is_empty();
        if self.uid.is_none() && self.gid.is_none() && self.home.is_none() && !has_fields {
            return Ok(out);
        }
        let home = self.home.as_deref().unwrap_or_default();
        if home.bytes().any(|b| b == b':' || b.is_ascii_control()) {
            return Err(EditError::Invalid("a home cannot hold a colon or a control character"));
        }
        let id = |id: Option<u32>| id.map(|id| id.to_string()).unwrap_or_default();
        out.extend_from_slice(format!(":{}:{}::{home}::", id(self.uid), id(self.gid)).as_bytes());
        let mut first = true;
        let mut word = |parts: &[&[u8]]| {
            if !std::mem::take(&mut first) {
                out.push(b' ');
            }
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        for (name, value) in &self.fields {
            let bad = |text: &str| text.bytes().any(|b| b == b' ' || b.is_ascii_control());
            if name.is_empty() || name.contains('=') || bad(name) || value.as_deref().is_some_and(bad) {
                return Err(EditError::Invalid("an extra field cannot hold a blank or a control character"));
            }
            match value {
                Some(value) => word(&[name.as_bytes(), b"=", value.as_bytes()]),
                None => word(&[name.as_bytes()]),
            }
        }
        for key in &self.keys {
            check_stored(key.expose(), b" \r\n\0")?;
            word(&[KEY_FIELD.as_bytes(), b"=", key.expose()]);
        }
        Ok(out)
    }
}

fn check_name(name: &str) -> Result<(), EditError> {
    if name.is_empty() || name.starts_with('#') || name.starts_with(' ') || name.ends_with(' ') {
        return Err(EditError::Invalid(
            "a user name cannot be empty, begin with '#' or have blanks around it",
        ));
    }
    if name.bytes().any(|b| b == b':' || b.is_ascii_control()) {
        return Err(EditError::Invalid("a user name cannot hold a colon or a control character"));
    }
    Ok(())
}

fn check_stored(stored: &[u8], forbidden: &[u8]) -> Result<(), EditError> {
    if stored.iter().any(|b| forbidden.contains(b)) {
        return Err(EditError::Invalid(
            "this stored string cannot stand in a passwd-file, use a .B64 encoding",
        ));
    }
    Ok(())
}

/// The line with another column two and, when asked, other key fields.
fn with_password(line: &[u8], stored: &[u8], keys: Option<&[Secret]>) -> Vec<u8> {
    // Seven columns and the rest, which may hold colons.
    let mut columns: Vec<&[u8]> = line.splitn(8, |&b| b == b':').collect();
    let extra = if columns.len() == 8 { columns.pop() } else { None };
    let kept = match (extra, keys) {
        (Some(extra), Some(_)) => Some(without_keys(extra)),
        (extra, _) => extra.map(<[u8]>::to_vec),
    };
    let added = keys.unwrap_or_default();
    let count = if added.is_empty() { columns.len().max(2) } else { 7 };
    columns.resize(count, b"");
    if let Some(column) = columns.get_mut(1) {
        *column = stored;
    }
    let mut out = columns.join(&b':');
    if kept.is_some() || !added.is_empty() {
        out.push(b':');
    }
    let mut separate = kept.as_ref().is_some_and(|kept| kept.last().is_some_and(|b| *b != b' '));
    out.extend_from_slice(&kept.unwrap_or_default());
    for key in added {
        if separate {
            out.push(b' ');
        }
        separate = true;
        out.extend_from_slice(KEY_FIELD.as_bytes());
        out.push(b'=');
        out.extend_from_slice(key.expose());
    }
    out
}

/// Extra fields without the key fields; everything else keeps its bytes.
fn without_keys(extra: &[u8]) -> Vec<u8> {
    let is_key =
        |word: &&[u8]| word.strip_prefix(KEY_FIELD.as_bytes()).is_some_and(|tail| tail.starts_with(b"="));
    let words: Vec<&[u8]> = extra.split(|&b| b == b' ').filter(|word| !is_key(word)).collect();
    words.join(&b' ')
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> EditError {
    EditError::Io { doing, path: path.to_owned(), source }
}

/// A link stays a link: what it points to is replaced. An administrator's command runs as root in a folder that belongs
/// to the service, so a link the service made to a file of somebody else is not followed.
fn follow(path: &Path) -> Result<PathBuf, EditError> {
    let Ok(link) = std::fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    if !link.is_symlink() {
        return Ok(path.to_owned());
    }
    let fail = |source| io_error("follow", path, source);
    let target = std::fs::metadata(path).map_err(fail)?;
    if link.uid() != 0 && link.uid() != nix::unistd::geteuid().as_raw() && link.uid() != target.uid() {
        return Err(EditError::Invalid(
            "the passwd-file is a link made by somebody else, it is not followed",
        ));
    }
    std::fs::canonicalize(path).map_err(fail)
}

fn open_or_create(path: &Path) -> Result<File, EditError> {
    let fail = |source| io_error("open", path, source);
    let nonblocking = OFlag::O_NONBLOCK.bits();
    match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) if file.metadata().map_err(fail)?.is_file() => return Ok(file),
        Ok(_) => return Err(EditError::Invalid("the passwd-file is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    }
    let created =
        OpenOptions::new().read(true).write(true).create_new(true).mode(Editor::NEW_MODE).open(path);
    match created {
        Ok(file) => {
            give_to_folder_owner(&file, path).map_err(fail)?;
            Ok(file)
        }
        // Another editor was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(fail)
        }
        Err(error) => Err(fail(error)),
    }
}

/// An administrator's command runs as root; the daemon that reads the file does not.
fn give_to_folder_owner(file: &File, path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let (mine, folder) = (file.metadata()?, std::fs::metadata(folder)?);
    if mine.uid() == 0 && (folder.uid(), folder.gid()) != (mine.uid(), mine.gid()) {
        fchown(file, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

fn wait_for_lock(lock: &File, path: &Path, deadline: Instant) -> Result<(), EditError> {
    const PAUSE: Duration = Duration::from_millis(10);
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(EditError::Busy(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", path, source)),
        }
    }
}

/// Whether the path still names the locked file.
fn is_still(lock: &File, path: &Path) -> bool {
    match (lock.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn temporary_path(folder: &Path, path: &Path) -> PathBuf {
    let mut random = [0; 8];
    // A poor name is caught by `create_new`.
    let _ = getrandom::fill(&mut random);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    folder.join(format!(".{name}.{}.{:016x}.new", std::process::id(), u64::from_ne_bytes(random)))
}

fn write_new(path: &Path, text: &[u8], old: &std::fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(old.mode() & 0o7777))?;
    file.sync_all()
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
