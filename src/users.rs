//! The passwd-file of the settings, and changes to it.
//!
//! Trust:     the administrator names users; a name is checked because it also names a folder.
//! Never:     keep a password in clear, rewrite a line that was not asked for (see `creds::passwd::Editor`).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use boot::exit::{self, Coded};
use conf::{PassdbDriver, Settings};
use creds::Secret;
use creds::passwd::{EditError, Editor, NewUser, is_template};

use crate::accounts::{self, Account};
use crate::roles::Accounts;
use crate::state;

/// How long another editor may take.
const WAIT: Duration = Duration::from_secs(10);

/// A passwd-file that commands may change.
#[derive(Debug)]
pub(crate) struct UserFile {
    path: PathBuf,
    default_domain: String,
    username_chars: String,
    lower: bool,
    /// Who must be able to read it, where that is not its owner.
    reader: Option<Account>,
}

/// One line of `user list`.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Listed {
    /// The canonical name.
    pub(crate) user: String,
    /// Scheme of the stored password; empty when there is none.
    pub(crate) scheme: String,
    /// Where the file gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) home: Option<String>,
}

impl UserFile {
    /// The file of the passdb called `wanted`, or of the first passdb with driver `passwd-file`.
    pub(crate) fn of(settings: &Settings, wanted: Option<&str>) -> anyhow::Result<Self> {
        let mut files = settings.auth.passdb.iter().filter_map(|passdb| match &passdb.driver {
            PassdbDriver::PasswdFile { path, .. } => Some((passdb.name.as_str(), path)),
            _ => None,
        });
        let found = match wanted {
            Some(name) => files.find(|(found, _)| *found == name),
            None => files.find(|(_, path)| !is_template(path)),
        };
        let Some((_, path)) = found else {
            let text = match wanted {
                Some(name) => {
                    format!("there is no passdb {name} with driver passwd-file in the configuration")
                }
                None => "the configuration has no passdb with driver passwd-file and one file for all users"
                    .to_owned(),
            };
            return Err(
                Coded::new(exit::CONFIG, format!("{text}; manage the users where they are kept (`useradd` and `passwd` for those of the machine)")).into()
            );
        };
        if is_template(path) {
            let text = format!(
                "the file {path} differs by user; edit the files with a program for that, or by hand"
            );
            return Err(Coded::new(exit::CONFIG, text).into());
        }
        Ok(Self {
            path: PathBuf::from(path),
            default_domain: settings.auth.default_domain.clone().unwrap_or_default(),
            username_chars: settings.auth.username_chars.clone(),
            lower: settings.auth.username_format.contains("lower"),
            reader: None,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same file, which after a change the authentication daemon must still be able to read.
    pub(crate) fn readable_for(self, who: Accounts) -> Self {
        Self { reader: if who.distinct() { who.auth } else { None }, ..self }
    }

    /// A file that is not there yet: whoever the authentication daemon is may read it.
    pub(crate) fn made_for(self, who: Accounts) -> Self {
        Self { reader: who.auth, ..self }
    }

    /// The name as the daemon looks it up, with the domain if it is not the default one.
    pub(crate) fn key(&self, name: &str) -> anyhow::Result<String> {
        let name = if self.lower { name.to_lowercase() } else { name.to_owned() };
        let name = match name.split_once('@') {
            Some((local, domain)) if domain == self.default_domain => local.to_owned(),
            _ => name,
        };
        let refuse = |why: String| Err(Coded::new(exit::USAGE, why).into());
        if let Some(wrong) =
            name.chars().find(|c| !self.username_chars.is_empty() && !self.username_chars.contains(*c))
        {
            return refuse(format!(
                "the name {name:?} holds {wrong:?}, which `auth.username_chars` does not allow"
            ));
        }
        // A name is also the name of the user's folder.
        if name.is_empty() || name.starts_with(['.', '#', '@', '/']) || name.contains('/') {
            return refuse(format!("{name:?} cannot be a user name; begin with a letter or a digit"));
        }
        Ok(name)
    }

    /// The name everybody else sees.
    pub(crate) fn canonical(&self, key: &str) -> String {
        if key.contains('@') || self.default_domain.is_empty() {
            key.to_owned()
        } else {
            format!("{key}@{}", self.default_domain)
        }
    }

    /// Opens the file for changing; as root with the rights of its folder's owner.
    fn edit<T>(&self, work: impl FnOnce(Editor) -> Result<T, EditError>) -> anyhow::Result<T> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let owner = std::fs::metadata(folder).map(|meta| meta.uid()).unwrap_or_default();
        let account =
            if accounts::is_root() && owner != 0 { Some(accounts::named(&owner.to_string())?) } else { None };
        accounts::acting_as(account.as_ref(), || {
            Editor::open(&self.path, &self.default_domain, WAIT).and_then(work)
        })?
        .map_err(|error| match error {
            EditError::Exists(name) => Coded::new(
                exit::FAILURE,
                format!("user {name} is there already; change the password with `user passwd {name}`"),
            )
            .into(),
            EditError::Unknown(name) => {
                Coded::new(exit::FAILURE, format!("there is no user {name}; see `user list`")).into()
            }
            other => anyhow::Error::new(other),
        })
        .and_then(|done| {
            state::readable_for(&self.path, self.reader.as_ref())
                .with_context(|| format!("cannot make {} readable for the daemon", self.path.display()))?;
            Ok(done)
        })
    }

    /// Adds a user; `keys` are stored strings for challenge-response mechanisms.
    pub(crate) fn add(&self, key: &str, stored: Secret, keys: Vec<Secret>) -> anyhow::Result<()> {
        // An empty home is written so that the line has every column: it then answers userdb look-ups too.
        let home = Some(String::new());
        let user = NewUser { name: key.to_owned(), stored, keys, home, ..NewUser::default() };
        self.edit(|mut editor| {
            editor.add(&user)?;
            editor.commit()
        })
    }

    /// Changes a password; keys of the old one go.
    pub(crate) fn set_password(&self, key: &str, stored: &Secret, keys: &[Secret]) -> anyhow::Result<()> {
        self.edit(|mut editor| {
            editor.set_password(key, stored, Some(keys))?;
            editor.commit()
        })
    }

    /// Removes a user.
    pub(crate) fn remove(&self, key: &str) -> anyhow::Result<()> {
        self.edit(|mut editor| {
            editor.remove(key)?;
            editor.commit()
        })
    }

    /// All users in the order of the file.
    pub(crate) fn list(&self) -> anyhow::Result<Vec<Listed>> {
        let text = std::fs::read(&self.path)
            .with_context(|| format!("cannot read {}; is it yours, or are you root?", self.path.display()))?;
        let index = creds::passwd::Index::build(text, None);
        let listed = index.entries().map(|entry| Listed {
            user: self.canonical(&String::from_utf8_lossy(entry.name())),
            scheme: entry.stored(creds::Scheme::Crypt).map(|s| s.scheme().to_string()).unwrap_or_default(),
            home: entry
                .home()
                .filter(|home| !home.is_empty())
                .map(|home| String::from_utf8_lossy(home).into_owned()),
        });
        Ok(listed.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::UserFile;
    use conf::{EmbeddedOptions, embedded_default};
    use creds::Secret;

    fn file(folder: &std::path::Path) -> UserFile {
        let options = EmbeddedOptions {
            state_dir: folder.to_owned(),
            hostname: "mx.example.org".to_owned(),
            ..EmbeddedOptions::default()
        };
        UserFile::of(&embedded_default(&options), None).expect("a file")
    }

    #[test]
    fn names_become_keys() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = file(folder.path());
        for (name, key) in
            [("Bob", "bob"), ("bob@mx.example.org", "bob"), ("bob@other.example", "bob@other.example")]
        {
            assert_eq!(file.key(name).expect("a name"), key);
        }
        for name in ["", "..", "a/b", "a:b", "a b", "#x", "@x", "ä", "a\nb"] {
            assert!(file.key(name).is_err(), "{name}");
        }
    }

    #[test]
    fn added_changed_listed_removed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = file(folder.path());
        std::fs::write(file.path(), "# keep me\n").expect("written");
        file.add("bob", Secret::new(b"{SSHA}x".to_vec()), Vec::new()).expect("added");
        let again = file.add("bob", Secret::new(b"{SSHA}x".to_vec()), Vec::new()).expect_err("is there");
        assert!(again.to_string().contains("user passwd bob"), "{again}");
        file.set_password("bob", &Secret::new(b"{PLAIN}new".to_vec()), &[]).expect("changed");
        let text = std::fs::read_to_string(file.path()).expect("read");
        assert_eq!(text, "# keep me\nbob:{PLAIN}new::::::\n");
        let listed = file.list().expect("listed");
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].user.as_str(), listed[0].scheme.as_str()), ("bob@mx.example.org", "PLAIN"));
        file.remove("bob").expect("removed");
        assert!(file.remove("bob").is_err());
        assert_eq!(std::fs::read_to_string(file.path()).expect("read"), "# keep me\n");
    }
}
