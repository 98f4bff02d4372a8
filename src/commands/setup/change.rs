//! Changes to files of the machine: shown as a diff, made in one step each, remembered, taken back.
//!
//! Purpose:   every `postern setup` command makes a list of changes here and nothing else touches the machine.
//! Trust:     files belong to the administrator; what stands in them is looked at again right before it is replaced.
//! Never:     change a file that is not as it was when the changes were made up, lose owner or mode, write without a
//!            backup beside.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use boot::exit::{self, Coded};
use serde::{Deserialize, Serialize};
use similar::{ChangeTag, TextDiff};

use crate::accounts;

/// Longer files are no configuration.
const MOST_BYTES: u64 = 8 << 20;
/// What stands behind the name of a backup.
const BACKUP: &str = "postern-backup";

/// A file to write.
#[derive(Clone, Debug)]
pub(crate) struct FileChange {
    /// The file itself, links followed.
    path: PathBuf,
    /// What is in it now; `None`: it is made.
    before: Option<String>,
    /// What will be in it.
    after: String,
    /// Permissions of a new file.
    mode: u32,
}

impl FileChange {
    /// A change of what `path` holds, or a new file of this mode.
    pub(crate) fn new(path: &Path, before: Option<String>, after: String, mode: u32) -> anyhow::Result<Self> {
        Ok(Self { path: resolved(path)?, before, after, mode })
    }

    fn is_idle(&self) -> bool {
        self.before.as_ref() == Some(&self.after)
    }

    /// As `diff -u` prints it.
    pub(crate) fn diff(&self) -> String {
        let path = self.path.display().to_string();
        let old = if self.before.is_some() { path.as_str() } else { "/dev/null" };
        let before = self.before.as_deref().unwrap_or_default();
        let diff = TextDiff::from_lines(before, self.after.as_str());
        diff.unified_diff().context_radius(3).header(old, &path).to_string()
    }
}

/// A folder to make.
#[derive(Clone, Debug)]
pub(crate) struct FolderChange {
    /// The folder.
    pub(crate) path: PathBuf,
    /// Owner and group, by name.
    pub(crate) owner: (String, String),
    /// Permissions.
    pub(crate) mode: u32,
}

/// A group or account to make, or a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccountChange {
    /// `groupadd --system`.
    Group(String),
    /// `useradd --system`, in these further groups.
    User(String, Vec<String>),
    /// The account becomes a member of the group.
    Member(String, String),
}

impl AccountChange {
    fn command(&self) -> Vec<String> {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        match self {
            Self::Group(name) => words(&["groupadd", "--system", name]),
            Self::User(name, groups) => {
                let mut line = words(&[
                    "useradd",
                    "--system",
                    "--user-group",
                    "--no-create-home",
                    "--shell",
                    "/usr/sbin/nologin",
                ]);
                if !groups.is_empty() {
                    line.extend(["--groups".to_owned(), groups.join(",")]);
                }
                line.push(name.clone());
                line
            }
            Self::Member(user, group) => words(&["usermod", "--append", "--groups", group, user]),
        }
    }
}

/// Everything one command would do.
#[derive(Debug)]
pub(crate) struct Changes {
    /// `postfix`, `exim` or `saslauthd`.
    name: &'static str,
    /// Where what was done is kept.
    record: PathBuf,
    /// In this order.
    pub(crate) accounts: Vec<AccountChange>,
    /// In this order.
    pub(crate) folders: Vec<FolderChange>,
    files: Vec<FileChange>,
    /// What to know; nothing is done about it.
    pub(crate) remarks: Vec<String>,
}

/// What was done, beside our file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    version: u32,
    files: Vec<Recorded>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    path: PathBuf,
    /// `None`: the file was made.
    backup: Option<PathBuf>,
    /// What was written last.
    after: String,
}

/// What taking back did to a file.
#[derive(Debug, Serialize)]
pub(crate) struct Undone {
    pub(crate) path: PathBuf,
    /// `restored`, `removed` or `kept`.
    pub(crate) what: &'static str,
    /// Why it was kept.
    pub(crate) why: String,
}

impl Changes {
    /// An empty list for `name`; `ours` is our configuration file.
    pub(crate) fn new(name: &'static str, ours: &Path) -> Self {
        let (accounts, folders, files, remarks) = Default::default();
        Self { name, record: record_of(name, ours), accounts, folders, files, remarks }
    }

    /// Adds a change, unless it changes nothing.
    pub(crate) fn file(&mut self, change: FileChange) {
        if !change.is_idle() {
            self.files.push(change);
        }
    }

    /// Adds a folder unless it is there with this owner and mode.
    pub(crate) fn folder(&mut self, change: FolderChange) {
        let right = std::fs::metadata(&change.path).is_ok_and(|meta| {
            let ids = ids(&change.owner).ok();
            meta.is_dir() && ids == Some((meta.uid(), meta.gid())) && meta.mode() & 0o7777 == change.mode
        });
        if !right {
            self.folders.push(change);
        }
    }

    /// Adds what is missing so that the account exists.
    pub(crate) fn account(&mut self, name: &str, groups: &[&str]) -> anyhow::Result<()> {
        for group in groups {
            let change = AccountChange::Group((*group).to_owned());
            if accounts::find_group(group)?.is_none() && !self.accounts.contains(&change) {
                self.accounts.push(change);
            }
        }
        if accounts::find(name)?.is_none() {
            let groups = groups.iter().map(|&group| group.to_owned()).collect();
            self.accounts.push(AccountChange::User(name.to_owned(), groups));
        }
        Ok(())
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.accounts.is_empty() && self.folders.is_empty() && self.files.is_empty()
    }

    /// Whether this file is changed.
    pub(crate) fn touches(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.path.file_name().is_some_and(|found| found == name))
    }

    /// Whether the file at this path is changed.
    pub(crate) fn touches_file(&self, path: &Path) -> bool {
        resolved(path).is_ok_and(|path| self.files.iter().any(|file| file.path == path))
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for change in &self.accounts {
            out.push_str(&format!("# {}\n", change.command().join(" ")));
        }
        for folder in &self.folders {
            let (owner, group) = &folder.owner;
            let path = folder.path.display();
            out.push_str(&format!("# install -d -o {owner} -g {group} -m {:04o} {path}\n", folder.mode));
        }
        for file in &self.files {
            out.push_str(&file.diff());
        }
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> serde_json::Value {
        let files = self.files.iter().map(|file| {
            serde_json::json!({ "path": file.path, "made": file.before.is_none(), "diff": file.diff() })
        });
        let accounts: Vec<_> = self.accounts.iter().map(|change| change.command().join(" ")).collect();
        let folders = self.folders.iter().map(|folder| {
            serde_json::json!({
                "path": folder.path, "owner": folder.owner.0, "group": folder.owner.1,
                "mode": format!("{:04o}", folder.mode),
            })
        });
        serde_json::json!({
            "command": self.name, "files": files.collect::<Vec<_>>(), "accounts": accounts, "folders": folders.collect::<Vec<_>>(), "remarks": self.remarks,
        })
    }

    /// Does everything. A file that fails leaves those before it changed; the record knows them.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        for file in &self.files {
            file.unchanged()?;
        }
        for change in &self.accounts {
            run(&change.command())?;
        }
        for folder in &self.folders {
            make(folder)?;
        }
        let mut record = Record::read(&self.record)?.unwrap_or_default();
        record.version = 1;
        for file in &self.files {
            let known = record.files.iter_mut().find(|known| known.path == file.path);
            match known {
                // The oldest backup is the one to go back to.
                Some(known) => known.after.clone_from(&file.after),
                None => {
                    let backup = match &file.before {
                        Some(text) => Some(back_up(&file.path, text)?),
                        None => None,
                    };
                    let after = file.after.clone();
                    record.files.push(Recorded { path: file.path.clone(), backup, after });
                }
            }
            if let Some(parent) = self.record.parent() {
                folder_for(parent)?;
            }
            // Before the file itself: what was begun can be taken back.
            let text = serde_json::to_string_pretty(&record)?;
            write(&self.record, &text, 0o600)
                .with_context(|| format!("cannot write {}", self.record.display()))?;
            file.unchanged()?;
            if let Some(parent) = file.path.parent() {
                folder_for(parent)?;
            }
            write(&file.path, &file.after, file.mode).map_err(|error| cannot_write(&file.path, &error))?;
        }
        Ok(())
    }
}

impl FileChange {
    /// Makes sure that nobody has written into the file since.
    fn unchanged(&self) -> anyhow::Result<()> {
        if read(&self.path)? == self.before {
            return Ok(());
        }
        let text =
            format!("{} has just been changed by somebody else; run the command again", self.path.display());
        Err(Coded::new(exit::TEMPFAIL, text).into())
    }
}

/// Takes back what `setup NAME --apply` did. `None`: there is nothing.
pub(crate) fn undo(name: &'static str, ours: &Path) -> anyhow::Result<Option<Vec<Undone>>> {
    let path = record_of(name, ours);
    let Some(record) = Record::read(&path)? else { return Ok(None) };
    let mut plans = Vec::new();
    // All or nothing: first see whether every file can go back.
    for file in record.files.iter().rev() {
        let current = read(&file.path)?;
        let before = match &file.backup {
            Some(backup) => {
                Some(read(backup)?.with_context(|| format!("the backup {} is gone", backup.display()))?)
            }
            None => None,
        };
        plans.push((file, way_back(file, current, before)?));
    }
    let mut done = Vec::new();
    for (file, way) in plans {
        let (what, why) = match way {
            Way::Write(text) => {
                write(&file.path, &text, 0o644).map_err(|error| cannot_write(&file.path, &error))?;
                ("restored", String::new())
            }
            Way::Remove => {
                std::fs::remove_file(&file.path).map_err(|error| cannot_write(&file.path, &error))?;
                ("removed", String::new())
            }
            Way::Keep(why) => ("kept", why),
        };
        if let Some(backup) = &file.backup {
            std::fs::remove_file(backup).with_context(|| format!("cannot remove {}", backup.display()))?;
        }
        done.push(Undone { path: file.path.clone(), what, why });
    }
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(Some(done))
}

enum Way {
    Write(String),
    Remove,
    Keep(String),
}

fn way_back(file: &Recorded, current: Option<String>, before: Option<String>) -> anyhow::Result<Way> {
    let Some(current) = current else { return Ok(Way::Keep("it is gone".to_owned())) };
    match before {
        None if current == file.after => Ok(Way::Remove),
        None => Ok(Way::Keep("it has been changed since it was made".to_owned())),
        Some(before) if current == before => Ok(Way::Keep("it is as it was already".to_owned())),
        Some(before) if current == file.after => Ok(Way::Write(before)),
        // Somebody has worked on it since: only our lines go.
        Some(before) => match without(&current, &before, &file.after) {
            Some(text) => Ok(Way::Write(text)),
            None => {
                let text = format!(
                    "{} has been changed since, and our lines cannot be told apart any more; nothing was taken back. \
                     Its backup is {}",
                    file.path.display(),
                    file.backup.as_deref().unwrap_or(Path::new("gone")).display()
                );
                Err(Coded::new(exit::FAILURE, text).into())
            }
        },
    }
}

/// `current` with every change from `before` to `after` taken back, each found by its own lines.
fn without(current: &str, before: &str, after: &str) -> Option<String> {
    let diff = TextDiff::from_lines(before, after);
    let mut text = current.to_owned();
    for group in diff.grouped_ops(0) {
        let (mut old, mut new) = (String::new(), String::new());
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            match change.tag() {
                ChangeTag::Delete => old.push_str(change.value()),
                ChangeTag::Insert => new.push_str(change.value()),
                ChangeTag::Equal => {}
            }
        }
        // Whole lines, once.
        let mut found = text
            .match_indices(&new)
            .filter(|(at, _)| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n'));
        let at = match (new.is_empty(), found.next(), found.next()) {
            (false, Some((at, _)), None) => at,
            _ => return None,
        };
        text.replace_range(at..at + new.len(), &old);
    }
    Some(text)
}

impl Record {
    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some((file, meta)) = regular(path, nix::libc::O_NOFOLLOW)? else { return Ok(None) };
        // Files are written as it says.
        let is_ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
        if !is_ours || meta.mode() & 0o022 != 0 || meta.nlink() != 1 {
            let text = format!(
                "{} may have been written by somebody else; nothing is done by it. The files named there have backups beside them",
                path.display()
            );
            return Err(Coded::new(exit::NOPERM, text).into());
        }
        let record = serde_json::from_str(&text_of(file, path)?)
            .with_context(|| format!("{} is no record", path.display()))?;
        Ok(Some(record))
    }
}

fn record_of(name: &str, ours: &Path) -> PathBuf {
    ours.with_file_name(format!("setup-{name}.undo"))
}

/// The text of a file that may be changed; `None` where there is none.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match regular(path, 0)? {
        Some((file, _)) => text_of(file, path).map(Some),
        None => Ok(None),
    }
}

/// Opens a regular file; with these flags of open(2).
fn regular(path: &Path, flags: nix::libc::c_int) -> anyhow::Result<Option<(File, Metadata)>> {
    // Nothing waits for the other end of a FIFO.
    let flags = flags | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot_read(path, &error)),
    };
    let meta = file.metadata().map_err(|error| cannot_read(path, &error))?;
    // Also an empty /dev/null, which a new file would replace for the whole machine.
    if !meta.is_file() {
        anyhow::bail!("{} is no regular file; it stays as it is", path.display());
    }
    Ok(Some((file, meta)))
}

/// The text of a file, a pipe or a device that is only read.
pub(crate) fn read_input(path: &Path) -> anyhow::Result<Option<String>> {
    match File::open(path) {
        Ok(file) => text_of(file, path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_read(path, &error)),
    }
}

fn text_of(file: File, path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| cannot_read(path, &error))?;
    if bytes.len() as u64 > MOST_BYTES {
        anyhow::bail!("{} is larger than 8 MiB", path.display());
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => anyhow::bail!("{} is no text in UTF-8; it stays as it is", path.display()),
    }
}

/// Where a file is, links followed; for one that is not there yet its folder is.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.join(name)),
        _ => Ok(path),
    }
}

/// Writes a file in one step. An existing one keeps owner and mode.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(std::io::Error::other("it is no regular file; it stays as it is"));
    }
    let fresh = path.with_file_name(format!(".{name}.postern-new"));
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written = (|| {
        file.write_all(text.as_bytes())?;
        let mode = match std::fs::symlink_metadata(path) {
            Ok(meta) => {
                if (meta.uid(), meta.gid()) != file.metadata().map(|new| (new.uid(), new.gid()))? {
                    std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
                }
                meta.mode() & 0o7777
            }
            Err(_) => mode,
        };
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

/// A copy beside the file, with its owner and mode, under a name that is free.
fn back_up(path: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    let meta = std::fs::metadata(path).map_err(|error| cannot_read(path, &error))?;
    for number in 1..1000 {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let backup = path.with_file_name(format!("{name}.{BACKUP}{suffix}"));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&backup);
        let mut file = match made {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(cannot_write(&backup, &error)),
        };
        let mut copy = || -> std::io::Result<()> {
            file.write_all(text.as_bytes())?;
            if (meta.uid(), meta.gid()) != file.metadata().map(|new| (new.uid(), new.gid()))? {
                std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
            }
            file.set_permissions(std::fs::Permissions::from_mode(meta.mode() & 0o7777))?;
            file.sync_all()
        };
        copy().map_err(|error| cannot_write(&backup, &error))?;
        return Ok(backup);
    }
    anyhow::bail!("there are too many backups beside {}", path.display())
}

fn folder_for(path: &Path) -> anyhow::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| cannot_write(path, &error))
}

fn make(folder: &FolderChange) -> anyhow::Result<()> {
    folder_for(&folder.path)?;
    let (uid, gid) = ids(&folder.owner)?;
    let set = || -> std::io::Result<()> {
        let flags = (nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&folder.path)?;
        std::os::unix::fs::fchown(&opened, Some(uid), Some(gid))?;
        opened.set_permissions(std::fs::Permissions::from_mode(folder.mode))
    };
    set().map_err(|error| cannot_write(&folder.path, &error))
}

fn ids(owner: &(String, String)) -> anyhow::Result<(u32, u32)> {
    Ok((accounts::uid(&owner.0)?, accounts::gid(&owner.1)?))
}

/// Runs a command of the system; what it says on failure is the error.
pub(crate) fn run(words: &[String]) -> anyhow::Result<String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(String::new()) };
    let out = command(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}; is its package installed, and is this root?"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() {
        return Ok(said);
    }
    let text = format!("`{}` failed: {}", words.join(" "), said.trim());
    Err(Coded::new(exit::FAILURE, text).into())
}

/// A program of the system, also where `PATH` lacks its folder.
pub(crate) fn command(program: &str) -> Command {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    command
}

fn cannot_read(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let code = if error.kind() == ErrorKind::PermissionDenied { exit::NOPERM } else { exit::FAILURE };
    Coded::new(code, format!("cannot read {}: {error}", path.display())).into()
}

fn cannot_write(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let (code, hint) = match error.kind() {
        ErrorKind::PermissionDenied => (exit::NOPERM, "; run this as root"),
        _ => (exit::CANTCREAT, ""),
    };
    Coded::new(code, format!("cannot write {}: {error}{hint}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(folder: &Path, files: &[(&str, Option<&str>, &str)]) -> Changes {
        let mut changes = Changes::new("postfix", &folder.join("postern.toml"));
        for (name, before, after) in files {
            let path = folder.join(name);
            let change = FileChange::new(&path, before.map(str::to_owned), (*after).to_owned(), 0o640);
            changes.file(change.expect("a path"));
        }
        changes
    }

    #[test]
    fn there_and_back() {
        let folder = tempfile::tempdir().expect("folder");
        let w = folder.path();
        std::fs::write(w.join("main.cf"), "a = 1\nb = 2\n").expect("written");
        std::fs::set_permissions(w.join("main.cf"), std::fs::Permissions::from_mode(0o604)).expect("mode");
        let made =
            changes(w, &[("main.cf", Some("a = 1\nb = 2\n"), "a = 1\nb = 3\nc = 4\n"), ("new", None, "x\n")]);
        assert!(made.text().contains("-b = 2\n+b = 3\n+c = 4\n") && made.text().contains("--- /dev/null"));
        made.apply().expect("applied");
        let mode = |name: &str| std::fs::metadata(w.join(name)).expect("there").mode() & 0o7777;
        assert_eq!((mode("main.cf"), mode("main.cf.postern-backup"), mode("new")), (0o604, 0o604, 0o640));
        // A second round keeps the first backup.
        changes(w, &[("main.cf", Some("a = 1\nb = 3\nc = 4\n"), "a = 1\nb = 3\nc = 5\n")])
            .apply()
            .expect("again");
        let undone = undo("postfix", &w.join("postern.toml")).expect("undone").expect("something");
        assert_eq!(undone.iter().map(|one| one.what).collect::<Vec<_>>(), ["removed", "restored"]);
        assert_eq!(read(&w.join("main.cf")).expect("read").as_deref(), Some("a = 1\nb = 2\n"));
        assert_eq!(std::fs::read_dir(w).expect("folder").count(), 1, "nothing else is left");
        assert!(undo("postfix", &w.join("postern.toml")).expect("nothing").is_none());
    }

    #[test]
    fn other_hands_are_respected() {
        let folder = tempfile::tempdir().expect("folder");
        let w = folder.path();
        let write = |text: &str| std::fs::write(w.join("main.cf"), text).expect("written");
        write("a = 1\n");
        let made = changes(w, &[("main.cf", Some("a = 1\n"), "a = 1\nb = 2\n")]);
        write("a = 9\n");
        assert!(made.apply().expect_err("changed").to_string().contains("changed by somebody else"));
        write("a = 1\n");
        made.apply().expect("applied");
        // Lines of others stay, ours go.
        write("z = 0\na = 1\nb = 2\nc = 3\n");
        undo("postfix", &w.join("postern.toml")).expect("undone");
        assert_eq!(read(&w.join("main.cf")).expect("read").as_deref(), Some("z = 0\na = 1\nc = 3\n"));
        assert!(made.touches("main.cf") && !made.touches("master.cf") && !made.is_empty());
    }

    #[test]
    fn records_of_others_are_not_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let w = folder.path();
        std::fs::write(w.join("main.cf"), "a = 1\n").expect("written");
        changes(w, &[("main.cf", Some("a = 1\n"), "a = 2\n")]).apply().expect("applied");
        let record = w.join("setup-postfix.undo");
        let refused = || {
            let error = undo("postfix", &w.join("postern.toml")).expect_err("refused").to_string();
            assert_eq!(read(&w.join("main.cf")).expect("read").as_deref(), Some("a = 2\n"), "{error}");
        };
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o666)).expect("mode");
        refused();
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o600)).expect("mode");
        std::fs::rename(&record, w.join("elsewhere")).expect("renamed");
        std::os::unix::fs::symlink(w.join("elsewhere"), &record).expect("link");
        refused();
        std::fs::remove_file(&record).expect("removed");
        std::fs::hard_link(w.join("elsewhere"), &record).expect("link");
        refused();
        std::fs::remove_file(w.join("elsewhere")).expect("removed");
        assert!(undo("postfix", &w.join("postern.toml")).expect("undone").is_some());
    }

    #[test]
    fn lines_that_cannot_be_told_apart_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let w = folder.path();
        std::fs::write(w.join("main.cf"), "a = 1\n").expect("written");
        changes(w, &[("main.cf", Some("a = 1\n"), "a = 1\nb = 2\n"), ("new", None, "x\n")])
            .apply()
            .expect("applied");
        std::fs::write(w.join("main.cf"), "a = 1\nb = 5\n").expect("written");
        let error = undo("postfix", &w.join("postern.toml")).expect_err("refused").to_string();
        assert!(error.contains("nothing was taken back") && w.join("new").exists(), "{error}");
    }

    #[test]
    fn only_texts_are_touched() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("f");
        for bytes in [&b"\xff\xfe"[..], b"a\0b"] {
            std::fs::write(&file, bytes).expect("written");
            assert!(read(&file).is_err());
        }
    }

    #[test]
    fn devices_and_sockets_are_not_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(read(std::path::Path::new("/dev/null")).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("linked");
        assert!(read(&link).is_err());
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(read(&fifo).is_err());
        assert_eq!(super::read_input(&link).expect("empty").as_deref(), Some(""));
        let socket = folder.path().join("socket");
        let _held = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        for path in [fifo, socket] {
            assert!(super::write(&path, "text", 0o644).is_err());
            assert!(!std::fs::symlink_metadata(&path).expect("still there").is_file());
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 3);
    }
}
