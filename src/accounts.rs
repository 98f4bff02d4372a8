//! Accounts of the system: who starts the stack, who runs the daemons, whose files they are.
//!
//! Trust:     names come from the settings, the command line and sudo's variables; each is looked up before it is
//!            used.
//! Never:     as root, write into a folder that somebody else owns: such work is done as that account.

use anyhow::Context as _;
use boot::exit::{self, Coded};
use nix::unistd::{Gid, Group, Uid, User};
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// An account with everything a process of it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Name, or the uid in digits where it has none.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// All groups.
    pub(crate) groups: Vec<u32>,
}

impl Account {
    fn from_user(user: &User) -> anyhow::Result<Self> {
        let name = CString::new(user.name.as_str())?;
        let groups = nix::unistd::getgrouplist(&name, user.gid)
            .with_context(|| format!("cannot read the groups of {}", user.name))?;
        Ok(Self {
            name: user.name.clone(),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.iter().map(|gid| gid.as_raw()).collect(),
        })
    }

    /// The account this process runs as.
    pub(crate) fn current() -> Self {
        let uid = nix::unistd::geteuid();
        let known = User::from_uid(uid).ok().flatten().and_then(|user| Self::from_user(&user).ok());
        known.unwrap_or_else(|| Self {
            name: uid.to_string(),
            uid: uid.as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: vec![nix::unistd::getegid().as_raw()],
        })
    }

    /// For a daemon of this account.
    pub(crate) fn ids(&self) -> boot::Ids {
        boot::Ids { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Looks up an account by name or uid.
pub(crate) fn named(name: &str) -> anyhow::Result<Account> {
    let by_uid =
        || name.parse::<u32>().ok().and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    let user = User::from_name(name).with_context(|| format!("cannot look up the account {name}"))?;
    match user.or_else(by_uid) {
        Some(user) => Account::from_user(&user),
        None => Err(Coded::new(
            exit::CONFIG,
            format!("there is no account {name}; create it (adduser --system {name}) or name another one"),
        )
        .into()),
    }
}

/// The account of this name, if there is one.
pub(crate) fn find(name: &str) -> anyhow::Result<Option<Account>> {
    let user = User::from_name(name).with_context(|| format!("cannot look up the account {name}"))?;
    user.as_ref().map(Account::from_user).transpose()
}

/// The gid of the group of this name, if there is one.
pub(crate) fn find_group(name: &str) -> anyhow::Result<Option<u32>> {
    let group = Group::from_name(name).with_context(|| format!("cannot look up the group {name}"))?;
    Ok(group.map(|group| group.gid.as_raw()))
}

/// The name of a uid, or its digits.
pub(crate) fn name_of(uid: u32) -> String {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

/// The uid of a name or of digits.
pub(crate) fn uid(name: &str) -> anyhow::Result<u32> {
    match name.parse() {
        Ok(uid) => Ok(uid),
        Err(_) => Ok(named(name)?.uid),
    }
}

/// The gid of a group's name or of digits.
pub(crate) fn gid(name: &str) -> anyhow::Result<u32> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let group = Group::from_name(name).with_context(|| format!("cannot look up the group {name}"))?;
    match group {
        Some(group) => Ok(group.gid.as_raw()),
        None => {
            Err(Coded::new(exit::CONFIG, format!("there is no group {name}; create it or name another one"))
                .into())
        }
    }
}

/// Turns the names of a listener into numbers: the authentication daemon, which strangers talk to, asks no name
/// service. The kernel tells a peer's primary group only, so members of a group are admitted as users as well.
pub(crate) fn by_number(listener: &mut conf::AuthListener) -> anyhow::Result<()> {
    if let Some(owner) = &mut listener.owner {
        *owner = uid(owner)?.to_string();
    }
    if let Some(group) = &mut listener.group {
        *group = gid(group)?.to_string();
    }
    for user in &mut listener.allow_users {
        *user = uid(user)?.to_string();
    }
    for text in &mut listener.allow_groups {
        let gid = gid(text)?;
        *text = gid.to_string();
        let known =
            Group::from_gid(Gid::from_raw(gid)).with_context(|| format!("cannot look up the group {gid}"))?;
        // A member without an account cannot connect.
        let members = known.map(|group| group.mem).unwrap_or_default();
        listener
            .allow_users
            .extend(members.iter().filter_map(|name| uid(name).ok()).map(|uid| uid.to_string()));
    }
    Ok(())
}

/// What the names of users and groups stand for: those of the machine's own files, and those that settings name. A
/// directory has more; workers, where there are any, ask it.
pub(crate) fn system_ids(auth: &conf::Auth, workers: bool) -> conf::SystemIds {
    let mut ids = conf::SystemIds { workers, ..conf::SystemIds::default() };
    for (path, known) in [("/etc/passwd", &mut ids.users), ("/etc/group", &mut ids.groups)] {
        // Without the file nobody is known by name.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            let mut columns = line.split(':');
            let (name, id) = (columns.next().unwrap_or_default(), columns.nth(1));
            if let Some(id) = id.and_then(|id| id.parse().ok()).filter(|_| !name.is_empty()) {
                // The first line of a name counts, as with getpwnam(3).
                known.entry(name.to_owned()).or_insert(id);
            }
        }
    }
    let passdbs =
        auth.passdb.iter().flat_map(|db| db.rules.default_fields.iter().chain(&db.rules.override_fields));
    let userdbs =
        auth.userdb.iter().flat_map(|db| db.rules.default_fields.iter().chain(&db.rules.override_fields));
    for (field, value) in passdbs.chain(userdbs).filter(|(_, value)| !value.contains('%')) {
        let known = match field.split(':').next().unwrap_or_default() {
            "uid" | "userdb_uid" => uid(value).ok().map(|id| (&mut ids.users, id)),
            "gid" | "userdb_gid" => gid(value).ok().map(|id| (&mut ids.groups, id)),
            _ => None,
        };
        if let Some((names, id)) = known {
            names.entry(value.clone()).or_insert(id);
        }
    }
    ids
}

/// Whom the daemons run as: `wanted`, else for root the sudo user or nobody. `None`: as this process.
pub(crate) fn run_as(wanted: Option<&str>) -> anyhow::Result<Option<Account>> {
    let current = Account::current();
    let account = match wanted {
        Some(name) => named(name)?,
        None if current.uid != 0 => return Ok(None),
        None => match std::env::var("SUDO_USER") {
            Ok(user) if user != "root" && !user.is_empty() => named(&user)?,
            _ => named("nobody")?,
        },
    };
    if account.uid == current.uid {
        return Ok(None);
    }
    if current.uid != 0 {
        let text = format!(
            "only root can run the daemons as {}; start as root, or without --run-as and `run_as`",
            account.name
        );
        return Err(Coded::new(exit::NOPERM, text).into());
    }
    Ok(Some(account))
}

/// Who called sudo, unless it was root.
pub(crate) fn person_behind_sudo() -> Option<String> {
    std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty() && name != "root")
}

/// Name of the person at the keyboard, for the first user: the sudo user or the account, unless it is root.
pub(crate) fn person() -> Option<String> {
    let sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    sudo.or_else(|| Some(Account::current().name)).filter(|name| name != "root" && name != "nobody")
}

/// Does `work` with the rights of `account`, so that links planted in its folders lead nowhere it could not go
/// itself. Only before any thread is started: ids belong to the whole process.
pub(crate) fn acting_as<T>(account: Option<&Account>, work: impl FnOnce() -> T) -> anyhow::Result<T> {
    let Some(account) = account.filter(|account| account.uid != nix::unistd::geteuid().as_raw()) else {
        return Ok(work());
    };
    let back = Back { gid: nix::unistd::getegid(), groups: nix::unistd::getgroups()? };
    let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let become_it = || -> nix::Result<()> {
        nix::unistd::setgroups(&groups)?;
        nix::unistd::setegid(Gid::from_raw(account.gid))?;
        nix::unistd::seteuid(Uid::from_raw(account.uid))
    };
    become_it().with_context(|| format!("cannot act as {}", account.name))?;
    let done = work();
    drop(back);
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("cannot become root again after acting as {}", account.name);
    }
    Ok(done)
}

/// Gives the rights of root back, also when the work panicked.
struct Back {
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Back {
    fn drop(&mut self) {
        // The saved uid is still root's, so these cannot fail; the caller checks nevertheless.
        let _ = nix::unistd::seteuid(Uid::from_raw(0));
        let _ = nix::unistd::setegid(self.gid);
        let _ = nix::unistd::setgroups(&self.groups);
    }
}

/// Whether `account` can pass through every folder down to `path` (those that exist).
pub(crate) fn reaches(account: &Account, path: &Path) -> anyhow::Result<bool> {
    let mut here = std::path::PathBuf::new();
    for part in path.components() {
        here.push(part);
        let Ok(meta) = std::fs::metadata(&here) else { return Ok(true) };
        if !passes(
            account,
            std::os::unix::fs::MetadataExt::uid(&meta),
            std::os::unix::fs::MetadataExt::gid(&meta),
            meta.permissions().mode(),
        ) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn passes(account: &Account, owner: u32, group: u32, mode: u32) -> bool {
    let shift = if account.uid == 0 {
        return true;
    } else if account.uid == owner {
        6
    } else if account.gid == group || account.groups.contains(&group) {
        3
    } else {
        0
    };
    mode >> shift & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::{Account, by_number, passes};

    #[test]
    fn names_of_the_machine_and_of_settings() {
        let mut auth = conf::Auth::default();
        auth.userdb.push(conf::Userdb::default());
        auth.userdb[0].rules.default_fields = [("uid", "daemon"), ("gid", "no-such-group"), ("home", "/x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let ids = super::system_ids(&auth, true);
        assert_eq!(
            (ids.users.get("root"), ids.users.get("daemon"), ids.groups.get("root")),
            (Some(&0), Some(&1), Some(&0))
        );
        assert!(ids.workers && !ids.groups.contains_key("no-such-group") && !ids.users.contains_key(""));
    }

    #[test]
    fn listeners_by_number() {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut listener = conf::AuthListener {
            owner: Some("root".to_owned()),
            group: Some("daemon".to_owned()),
            allow_users: names(&["daemon", "4000000"]),
            allow_groups: names(&["root", "4000001"]),
            ..conf::AuthListener::default()
        };
        by_number(&mut listener).expect("known names");
        assert_eq!((listener.owner.as_deref(), listener.group.as_deref()), (Some("0"), Some("1")));
        assert_eq!(listener.allow_users.get(..2), Some(&names(&["1", "4000000"])[..]));
        assert_eq!(listener.allow_groups, names(&["0", "4000001"]));
        for wrong in [
            conf::AuthListener { owner: Some("no-such-user".to_owned()), ..conf::AuthListener::default() },
            conf::AuthListener { allow_groups: names(&["no-such-group"]), ..conf::AuthListener::default() },
        ] {
            let text = by_number(&mut wrong.clone()).expect_err("nobody has that name").to_string();
            assert!(text.contains("no-such-"), "{text}");
        }
    }

    #[test]
    fn who_passes_through_a_folder() {
        let account = Account { name: "a".into(), uid: 1000, gid: 100, groups: vec![100, 200] };
        for (owner, group, mode, expected) in [
            (0, 0, 0o755, true),
            (0, 0, 0o700, false),
            (1000, 0, 0o700, true),
            (1000, 0, 0o077, false),
            (0, 200, 0o710, true),
            (0, 300, 0o710, false),
            (0, 200, 0o701, false),
        ] {
            assert_eq!(passes(&account, owner, group, mode), expected, "{owner} {group} {mode:o}");
        }
        let root = Account { uid: 0, ..account };
        assert!(passes(&root, 1, 1, 0));
    }
}
