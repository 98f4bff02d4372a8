//! Our own file: a new one for a machine that has none, or one listener more in an existing one.
//!
//! Trust:     the file is the administrator's; what is added to it is loaded as a whole before it is written.
//! Never:     print an existing file anew: lines are added or exchanged, the rest stays as it was written.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use boot::exit::{self, Coded};
use conf::{AuthListener, AuthListenerKind, PassdbDriver, Settings};

use super::change::{self, Changes, FileChange};
use crate::accounts;
use crate::cli::PlaceArgs;

/// The system's file.
pub(crate) const SYSTEM_FILE: &str = "/etc/postern/postern.toml";

/// Where passwords of a new file come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// `/etc/shadow`.
    Shadow,
    /// PAM, with this service.
    Pam,
    /// A passwd-file.
    File(PathBuf),
}

impl Users {
    /// What was asked for; else the system's users, or a file where this is not root.
    pub(crate) fn choose(wanted: Option<&str>) -> anyhow::Result<Self> {
        Ok(match wanted {
            Some("shadow" | "system") => Self::Shadow,
            Some("pam") => Self::Pam,
            Some(path) if path.starts_with('/') => Self::File(path.into()),
            Some(other) => {
                let text = format!("--users {other}: write `shadow`, `pam` or the path of a passwd-file");
                return Err(Coded::new(exit::USAGE, text).into());
            }
            None if accounts::is_root() => Self::Shadow,
            None => Self::File(PathBuf::from("users")),
        })
    }
}

/// The listener that a command wants.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Name, if it is free.
    pub(crate) name: &'static str,
    /// What it speaks.
    pub(crate) kind: AuthListenerKind,
    /// Its sockets.
    pub(crate) paths: Vec<PathBuf>,
    /// Owner, where that matters.
    pub(crate) owner: Option<String>,
    /// Group, where that matters.
    pub(crate) group: Option<String>,
    /// Permissions.
    pub(crate) mode: u32,
    /// Further lines for a new listener.
    pub(crate) more: Vec<String>,
}

/// What a new file says beside its listener.
#[derive(Clone, Debug)]
pub(crate) struct Fresh {
    /// For the first line: `Postfix`.
    pub(crate) program: &'static str,
    /// Name of the server.
    pub(crate) hostname: String,
    /// Domain of names without one, if it is another one.
    pub(crate) domain: Option<String>,
    /// Lines of `[auth]`, behind `default_domain`.
    pub(crate) auth: Vec<String>,
    /// `[auth.cache]` and the like, and the passdb; instead of `users`.
    pub(crate) tables: Option<String>,
    /// Where passwords are.
    pub(crate) users: Users,
}

/// Our file as it is now.
#[derive(Debug)]
pub(crate) struct Ours {
    /// Where it is, or will be.
    pub(crate) path: PathBuf,
    /// Its text.
    text: Option<String>,
    /// Its settings.
    pub(crate) settings: Option<Settings>,
}

impl Ours {
    /// The file that is meant: `--config`, else `$POSTERN_CONFIG`, else the system's.
    pub(crate) fn find(place: &PlaceArgs) -> anyhow::Result<Self> {
        let path = Self::place(place)?;
        let text = change::read(&path)?;
        let settings = match &text {
            Some(text) => Some(conf::load(text, &path)?),
            None => None,
        };
        Ok(Self { path, text, settings })
    }

    /// Where that file is, whatever is in it.
    pub(crate) fn place(place: &PlaceArgs) -> anyhow::Result<PathBuf> {
        if place.state_dir.is_some() {
            let text = "`setup` writes a configuration file: name it with --config instead of --state-dir";
            return Err(Coded::new(exit::USAGE, text).into());
        }
        let variable =
            std::env::var_os("POSTERN_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = place.config.clone().or(variable).unwrap_or_else(|| SYSTEM_FILE.into());
        Ok(std::path::absolute(path)?)
    }

    /// The listener of this kind with one of these sockets, if the file has it.
    pub(crate) fn listener(&self, wanted: &Wanted) -> Option<&AuthListener> {
        let all = self.settings.iter().flat_map(|settings| &settings.auth.listener);
        all.filter(|known| known.kind == wanted.kind)
            .find(|known| known.path.iter().any(|path| wanted.paths.contains(path)))
    }

    /// Adds to `changes` what makes this file serve `wanted`, and the accounts it runs as.
    pub(crate) fn serve(&self, wanted: &Wanted, fresh: &Fresh, changes: &mut Changes) -> anyhow::Result<()> {
        let after = match (&self.text, self.listener(wanted)) {
            (None, _) => whole(wanted, fresh, &self.path),
            (Some(text), None) => self.added(text, wanted),
            (Some(text), Some(known)) => self.corrected(text, known, wanted)?,
        };
        let settings = self.right(&after, wanted)?;
        changes.file(FileChange::new(&self.path, self.text.clone(), after, 0o644)?);
        if self.settings.is_none() && fresh.tables.is_none() {
            users(&fresh.users, &settings, changes)?;
        }
        if accounts::is_root() && settings.run_as.is_none() && settings.auth.run_as.is_none() {
            // Those who have one account for everything are asked nothing.
            if accounts::find("postern-auth")?.is_some() || accounts::find("postern")?.is_none() {
                changes.account("postern-auth", &["postern"])?;
                changes.account("postern-authw", &[])?;
            }
        }
        Ok(())
    }

    /// The file with one listener more at its end.
    fn added(&self, text: &str, wanted: &Wanted) -> String {
        let taken: Vec<&str> =
            self.settings.iter().flat_map(|s| &s.auth.listener).map(|l| l.name.as_str()).collect();
        let mut name = wanted.name.to_owned();
        let mut number = 2;
        while taken.contains(&name.as_str()) {
            name = format!("{}-{number}", wanted.name);
            number += 1;
        }
        let gap = if text.ends_with('\n') { "\n" } else { "\n\n" };
        format!("{text}{gap}{}", listener(wanted, &name))
    }

    /// The file with owner, group and mode of this listener set right.
    fn corrected(&self, text: &str, known: &AuthListener, wanted: &Wanted) -> anyhow::Result<String> {
        let same = |have: &Option<String>, want: &Option<String>, id: &dyn Fn(&str) -> Option<u32>| match (
            have, want,
        ) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(have), Some(want)) => have == want || (id(have).is_some() && id(have) == id(want)),
        };
        let mut lines: Vec<(&str, String)> = Vec::new();
        if !same(&known.owner, &wanted.owner, &|name| accounts::uid(name).ok()) {
            lines.push(("owner", quoted(wanted.owner.as_deref().unwrap_or_default())));
        }
        if !same(&known.group, &wanted.group, &|name| accounts::gid(name).ok()) {
            lines.push(("group", quoted(wanted.group.as_deref().unwrap_or_default())));
        }
        // More than asked for is somebody's decision; less is why this command was called.
        if known.mode & wanted.mode != wanted.mode {
            lines.push(("mode", format!("\"{:04o}\"", known.mode | wanted.mode)));
        }
        if lines.is_empty() {
            return Ok(text.to_owned());
        }
        let at = self.settings.iter().flat_map(|s| &s.auth.listener).position(|l| l.name == known.name);
        at.and_then(|at| exchanged(text, at, &lines)).ok_or_else(|| {
            let list: Vec<String> = lines.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            let text = format!(
                "the listener `{}` in {} needs {}; its lines cannot be found, so please write them by hand",
                known.name,
                self.path.display(),
                list.join(", ")
            );
            Coded::new(exit::CONFIG, text).into()
        })
    }

    /// The settings of a text that is to be written: it must be right, and serve `wanted`.
    fn right(&self, text: &str, wanted: &Wanted) -> anyhow::Result<Settings> {
        let settings = conf::load(text, &self.path)?;
        let there = |path: &PathBuf| {
            settings.auth.listener.iter().any(|l| l.kind == wanted.kind && l.path.contains(path))
        };
        if !wanted.paths.iter().any(there) {
            let text = format!(
                "{} cannot be extended; please add by hand:\n{}",
                self.path.display(),
                listener(wanted, wanted.name)
            );
            return Err(Coded::new(exit::CONFIG, text).into());
        }
        Ok(settings)
    }
}

/// The lines of the `index`-th `[[auth.listener]]` with these keys set.
fn exchanged(text: &str, index: usize, keys: &[(&str, String)]) -> Option<String> {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let header =
        |line: &str| line.split('#').next().unwrap_or_default().split_whitespace().collect::<String>();
    let start = (0..lines.len())
        .filter(|&at| lines.get(at).is_some_and(|line| header(line) == "[[auth.listener]]"))
        .nth(index)?;
    for (key, value) in keys {
        let end = (start + 1..lines.len())
            .find(|&at| lines.get(at).is_some_and(|line| line.trim_start().starts_with('[')))
            .unwrap_or(lines.len());
        let known = (start + 1..end).find(|&at| {
            let name = lines.get(at).and_then(|line| line.split_once('=')).map(|(name, _)| name.trim());
            name == Some(*key)
        });
        let line = format!("{key} = {value}\n");
        match known.and_then(|at| lines.get_mut(at)) {
            Some(old) => *old = line,
            None => lines.insert(start + 1, line),
        }
    }
    Some(lines.concat())
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A `[[auth.listener]]`.
fn listener(wanted: &Wanted, name: &str) -> String {
    let mut out = String::from("[[auth.listener]]\n");
    let paths: Vec<String> = wanted.paths.iter().map(|path| quoted(&path.to_string_lossy())).collect();
    let paths = match paths.as_slice() {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    let _ = writeln!(out, "name = {}\ntype = \"{}\"\npath = {paths}", quoted(name), wanted.kind);
    for (key, value) in [("owner", &wanted.owner), ("group", &wanted.group)] {
        if let Some(value) = value {
            let _ = writeln!(out, "{key} = {}", quoted(value));
        }
    }
    let _ = writeln!(out, "mode = \"{:04o}\"", wanted.mode);
    for line in &wanted.more {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// A whole file: the authentication daemon and nothing else.
pub(crate) fn whole(wanted: &Wanted, fresh: &Fresh, path: &Path) -> String {
    let mut out = format!(
        "# Postern checks passwords for {}, and does nothing else. Written by `postern setup`.\n\
         # Every key: `postern config reference`. Is it right? `postern config check`, `postern auth test USER`.\n\n\
         version = 1\nhostname = {}\n",
        fresh.program,
        quoted(&fresh.hostname)
    );
    if !accounts::is_root() {
        let state = path.with_file_name("postern-state");
        let _ = writeln!(out, "state_dir = {}", quoted(&state.to_string_lossy()));
    }
    if fresh.domain.is_some() || !fresh.auth.is_empty() {
        out.push_str("\n[auth]\n");
        if let Some(domain) = &fresh.domain {
            let _ = writeln!(out, "default_domain = {}", quoted(domain));
        }
        for line in &fresh.auth {
            let _ = writeln!(out, "{line}");
        }
    }
    let _ = write!(out, "\n{}", listener(wanted, wanted.name));
    out.push_str(&match (&fresh.tables, &fresh.users) {
        (Some(tables), _) => format!("\n{tables}"),
        (None, Users::Shadow) => "\n# Users of this machine, with the passwords of /etc/shadow.\n[[auth.passdb]]\ndriver = \"shadow\"\n\n\
                                  [[auth.userdb]]\ndriver = \"passwd\"\n"
            .to_owned(),
        (None, Users::Pam) => "\n# Users of this machine, as /etc/pam.d/postern says.\n[[auth.passdb]]\ndriver = \"pam\"\n\n\
                               [[auth.userdb]]\ndriver = \"passwd\"\n"
            .to_owned(),
        (None, Users::File(file)) => {
            let file = quoted(&file.to_string_lossy());
            format!(
                "\n# Users of their own: `postern user add NAME`.\n[[auth.passdb]]\ndriver = \"passwd-file\"\npath = {file}\n\n\
                 [[auth.userdb]]\ndriver = \"passwd-file\"\npath = {file}\n"
            )
        }
    });
    out
}

/// What the users of a new file need beside it.
fn users(users: &Users, settings: &Settings, changes: &mut Changes) -> anyhow::Result<()> {
    match users {
        Users::Shadow => {}
        Users::Pam => {
            let path = Path::new("/etc/pam.d/postern");
            if change::read(path)?.is_none() {
                let text = "# Who may log in to mail. Written by `postern setup`.\n@include common-auth\n@include common-account\n";
                let plain = "# Who may log in to mail. Written by `postern setup`.\nauth     required pam_unix.so\naccount  required pam_unix.so\n";
                let debian = Path::new("/etc/pam.d/common-auth").exists();
                let text = if debian { text } else { plain };
                changes.file(FileChange::new(path, None, text.to_owned(), 0o644)?);
            }
        }
        Users::File(_) => {
            let files = settings.auth.passdb.iter().filter_map(|passdb| match &passdb.driver {
                PassdbDriver::PasswdFile { path, .. } => Some(PathBuf::from(path)),
                _ => None,
            });
            for path in files {
                if change::read(&path)?.is_none() {
                    changes.remarks.push(format!(
                        "{} does not exist yet: `postern user add NAME` makes it; Postern does not start without",
                        path.display()
                    ));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENERS: &str = "version = 1\nhostname = \"a.example\"\n[[auth.listener]] # first\nname = \"a\"\ntype = \"client\"\n\
                             path = \"/a\"\n\n[[ auth.listener ]]\nname = \"b\"\ntype = \"client\"\npath = \"/b\"\nowner = \"x\"\n\
                             # last words\n[[auth.passdb]]\ndriver = \"shadow\"\n";

    fn wanted() -> Wanted {
        Wanted {
            name: "postfix",
            kind: AuthListenerKind::Client,
            paths: vec!["/q/private/auth".into()],
            owner: Some("root".into()),
            group: Some("daemon".into()),
            mode: 0o660,
            more: Vec::new(),
        }
    }

    fn ours(text: &str) -> Ours {
        let path = PathBuf::from("/etc/postern/postern.toml");
        let settings = conf::load(text, &path).map_err(|error| error.render(false)).expect("right");
        Ours { path, text: Some(text.to_owned()), settings: Some(settings) }
    }

    #[test]
    fn keys_are_set_in_their_own_table() {
        let keys = [("owner", "\"y\"".to_owned()), ("mode", "\"0660\"".to_owned())];
        let made = exchanged(LISTENERS, 1, &keys).expect("found");
        assert!(
            made.contains("[[ auth.listener ]]\nmode = \"0660\"\nname = \"b\"")
                && made.contains("owner = \"y\"\n# last")
        );
        assert_eq!(made.matches("owner").count(), 1);
        assert!(exchanged(LISTENERS, 2, &keys).is_none());
    }

    #[test]
    fn a_listener_more_and_a_listener_corrected() {
        let file = ours(LISTENERS);
        let made = file.added(LISTENERS, &wanted());
        assert!(
            made.starts_with(LISTENERS) && made.contains("path = \"/q/private/auth\"\nowner = \"root\""),
            "{made}"
        );
        file.right(&made, &wanted()).expect("right");

        let again = ours(&made);
        let known = again.listener(&wanted()).expect("there").clone();
        assert_eq!(again.corrected(&made, &known, &wanted()).expect("nothing to do"), made);
        let other = Wanted { owner: Some("daemon".into()), mode: 0o666, ..wanted() };
        let corrected = again.corrected(&made, &known, &other).expect("corrected");
        let settings = conf::load(&corrected, Path::new("/x")).expect("right");
        let found = settings.auth.listener.iter().find(|l| l.name == "postfix").expect("there");
        assert_eq!((found.owner.as_deref(), found.mode), (Some("daemon"), 0o666));
    }

    #[test]
    fn a_new_file_has_one_daemon() {
        let fresh = |users| Fresh {
            program: "Postfix",
            hostname: "mail.example.org".into(),
            domain: Some("example.org".into()),
            auth: Vec::new(),
            tables: None,
            users,
        };
        for users in [Users::Shadow, Users::Pam, Users::File("/etc/postern/users".into())] {
            let text = whole(&wanted(), &fresh(users), Path::new("/etc/postern/postern.toml"));
            let settings = conf::load(&text, Path::new("/x")).map_err(|e| e.render(false)).expect("right");
            assert!(settings.smtp.listener.is_empty() && settings.imap.listener.is_empty());
            assert_eq!((settings.auth.listener.len(), settings.auth.passdb.len()), (1, 1));
            assert_eq!(settings.auth.default_domain.as_deref(), Some("example.org"));
        }
    }
}
