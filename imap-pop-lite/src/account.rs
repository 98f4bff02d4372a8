//! A user's mail: where it is, and that it is there.
//!
//! Trust:     names and paths come from the authentication daemon; they are checked once more, because a
//!            wrong one would open somebody else's mail.
//! Never:     expand what the daemon has expanded already, or give a path that is not absolute or has `..` in it.

use std::path::{Component, Path, PathBuf};

use maildir::{FolderName, Maildir, Store};

use crate::login::Welcome;

/// Why a user's mail cannot be opened. The user hears of it as a temporary failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the user has no home")]
    NoHome,
    #[error("mail location is not an absolute path: {0}")]
    Relative(String),
    #[error("mail location has `..` in it: {0}")]
    Parent(String),
    #[error("unknown variable in the mail location: %{{{0}}}")]
    Variable(String),
    #[error("user name cannot be part of a path: {0:?}")]
    User(String),
    #[error("mail location of an unknown kind: {0}")]
    Kind(String),
    #[error(transparent)]
    Store(#[from] maildir::Error),
}

/// An open account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// Canonical user name.
    pub(crate) user: String,
    pub(crate) maildir: Maildir,
    pub(crate) store: Store,
    /// Hierarchy separator on the wire.
    pub(crate) separator: char,
}

/// What is the same for all accounts.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Template of the Maildir: `mail.location`.
    pub(crate) location: String,
    /// Template of the home of users that have none.
    pub(crate) home: String,
    pub(crate) state_dir: PathBuf,
    /// Names without a domain belong to it.
    pub(crate) default_domain: String,
    /// Folders to create.
    pub(crate) folders: Vec<String>,
    /// Hierarchy separator on the wire: `imap.separator`.
    pub(crate) separator: char,
}

impl Places {
    /// The Maildir of a user. `mail` is taken as it is: the daemon has expanded it, and a user's name may be in it.
    pub(crate) fn root(&self, who: &Welcome) -> Result<PathBuf, Error> {
        let home = match &who.home {
            Some(home) => Some(home.clone()),
            None if self.home.is_empty() => None,
            None => Some(self.absolute(&self.expand(&self.home, &who.user, None)?)?),
        };
        let (place, told) = match &who.mail {
            Some(mail) => (mail.clone(), true),
            None => (self.expand(&self.location, &who.user, home.as_deref())?, false),
        };
        let place = match place.split_once(':') {
            // `maildir:~/Maildir:INDEX=…`: what follows a colon is Dovecot's business.
            Some(("maildir", path)) => path.split(':').next().unwrap_or_default(),
            Some((path, _)) if path.starts_with('~') => path,
            Some((kind, _)) if !kind.contains('/') => return Err(Error::Kind(kind.to_owned())),
            _ => &place,
        };
        let root = match place.strip_prefix('~') {
            Some("") => home.ok_or(Error::NoHome)?,
            Some(below) if below.starts_with('/') => {
                home.ok_or(Error::NoHome)?.join(below.trim_start_matches('/'))
            }
            // Only our own template may be meant from our folder.
            None if !told => self.absolute(place)?,
            _ => PathBuf::from(place),
        };
        if !root.is_absolute() {
            return Err(Error::Relative(root.display().to_string()));
        }
        if root.components().any(|part| part == Component::ParentDir) {
            return Err(Error::Parent(root.display().to_string()));
        }
        Ok(root)
    }

    fn absolute(&self, path: &str) -> Result<PathBuf, Error> {
        let path = Path::new(path);
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        if path.as_os_str().is_empty() || !self.state_dir.is_absolute() {
            return Err(Error::Relative(path.display().to_string()));
        }
        Ok(self.state_dir.join(path))
    }

    /// Expands `%{name}` and `%{name | filter}`.
    fn expand(&self, template: &str, user: &str, home: Option<&Path>) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("%{") {
            out.push_str(before);
            let (variable, after) = after.split_once('}').ok_or_else(|| Error::Variable(after.to_owned()))?;
            out.push_str(&self.value(variable, user, home)?);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, variable: &str, user: &str, home: Option<&Path>) -> Result<String, Error> {
        let unknown = || Error::Variable(variable.to_owned());
        let mut words = variable.split('|').map(str::trim);
        let mut value = match words.next().unwrap_or_default() {
            "home" => return Ok(home.ok_or(Error::NoHome)?.to_string_lossy().into_owned()),
            "state_dir" => return Ok(self.state_dir.to_string_lossy().into_owned()),
            "user" => user.to_owned(),
            "username" => local_part(user).to_owned(),
            "domain" => domain(user).to_owned(),
            _ => return Err(unknown()),
        };
        for filter in words {
            value = match filter {
                "lower" => value.to_lowercase(),
                "username" => local_part(&value).to_owned(),
                "domain" => domain(&value).to_owned(),
                "without_default_domain" => match value.rsplit_once('@') {
                    Some((local, domain)) if domain.eq_ignore_ascii_case(&self.default_domain) => {
                        local.to_owned()
                    }
                    _ => value,
                },
                _ => return Err(unknown()),
            };
        }
        // One path element and no more.
        if value.is_empty() || value.contains(['/', ':', '\0']) || value.starts_with('.') {
            return Err(Error::User(value));
        }
        Ok(value)
    }

    /// Opens the account; makes the Maildir and the usual folders when they are missing. Blocks.
    pub(crate) fn open(&self, store: &Store, who: &Welcome) -> Result<Account, Error> {
        self.open_at(store, &who.user, &self.root(who)?)
    }

    /// The same for a Maildir whose place is known.
    pub(crate) fn open_at(&self, store: &Store, user: &str, root: &Path) -> Result<Account, Error> {
        let maildir = Maildir::open_or_create(root)?;
        for name in &self.folders {
            let folder = match FolderName::from_utf8(name, self.separator) {
                Ok(folder) => folder,
                Err(error) => {
                    tracing::warn!(folder = name, %error, "mail.create_folders has a name that cannot be");
                    continue;
                }
            };
            if maildir.exists(&folder) {
                continue;
            }
            match maildir.create(&folder) {
                Ok(()) => maildir.subscribe(&folder)?,
                // Another login was faster.
                Err(maildir::Error::AlreadyExists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Account { user: user.to_owned(), maildir, store: store.clone(), separator: self.separator })
    }
}

fn local_part(user: &str) -> &str {
    user.rsplit_once('@').map_or(user, |(local, _)| local)
}

fn domain(user: &str) -> &str {
    user.rsplit_once('@').map_or("", |(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            location: "%{home}/Maildir".into(),
            home: "mail/%{user | without_default_domain}".into(),
            state_dir: "/state".into(),
            default_domain: "mail.example".into(),
            folders: Vec::new(),
            separator: '/',
        }
    }

    fn who(user: &str, home: Option<&str>, mail: Option<&str>) -> Welcome {
        Welcome {
            user: user.into(),
            home: home.map(PathBuf::from),
            mail: mail.map(str::to_owned),
            final_data: None,
        }
    }

    #[test]
    fn roots() {
        for (user, home, mail, want) in [
            ("bob@mail.example", None, None, "/state/mail/bob/Maildir"),
            ("bob@other.example", None, None, "/state/mail/bob@other.example/Maildir"),
            ("bob@mail.example", Some("/home/bob"), None, "/home/bob/Maildir"),
            ("bob@mail.example", Some("/home/bob"), Some("maildir:~/Mail"), "/home/bob/Mail"),
            ("bob@mail.example", Some("/home/bob"), Some("maildir:~/Mail:INDEX=/x"), "/home/bob/Mail"),
            ("bob@x", Some("/home/bob"), Some("maildir:~"), "/home/bob"),
            ("bob@x", Some("/home/bob"), Some("~"), "/home/bob"),
            ("bob@x", Some("/home/bob"), Some("~//Mail"), "/home/bob/Mail"),
            ("bob@x", None, Some("/a:b"), "/a:b"),
            // What the daemon says is not expanded again.
            ("bob@x", None, Some("maildir:/srv/%{domain}"), "/srv/%{domain}"),
            ("%{home}@x", None, Some("maildir:/srv/%{home"), "/srv/%{home"),
        ] {
            assert_eq!(places().root(&who(user, home, mail)).unwrap(), Path::new(want), "{user} {mail:?}");
        }
        for (user, location, want) in [
            ("bob@x", "/srv/%{domain}/%{username}", "/srv/x/bob"),
            ("Bob@x", "/srv/%{user | lower}", "/srv/bob@x"),
            ("bob@x", "mail/%{username}", "/state/mail/bob"),
        ] {
            let places = Places { location: location.into(), ..places() };
            assert_eq!(places.root(&who(user, None, None)).unwrap(), Path::new(want), "{user} {location}");
        }
    }

    #[test]
    fn names_that_would_leave_the_tree_are_refused() {
        for user in [
            "../bob@mail.example",
            "a/b@mail.example",
            "a:b@mail.example",
            ".@mail.example",
            "",
            "..@x",
            "@mail.example",
        ] {
            assert!(places().root(&who(user, None, None)).is_err(), "{user}");
        }
        assert!(matches!(places().root(&who("b@x", None, Some("mbox:~/m"))), Err(Error::Kind(_))));
        for mail in ["/srv/../etc", "maildir:/srv/..", "maildir:~/../alice", "~/.."] {
            let root = places().root(&who("b@x", Some("/home/b"), Some(mail)));
            assert!(matches!(root, Err(Error::Parent(_))), "{mail}");
        }
        for mail in ["srv/mail", "", "maildir:", "~alice/Mail", "%{home}/Mail"] {
            let root = places().root(&who("b@x", Some("/home/b"), Some(mail)));
            assert!(matches!(root, Err(Error::Relative(_))), "{mail}");
        }
        assert!(matches!(places().root(&who("b@x", Some("/home/../x"), None)), Err(Error::Parent(_))));
        for location in ["%{nope}", "/x/%{user"] {
            let places = Places { location: location.into(), ..places() };
            assert!(matches!(places.root(&who("b@x", None, None)), Err(Error::Variable(_))), "{location}");
        }
    }
}
