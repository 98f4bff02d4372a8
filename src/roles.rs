//! Every process of the stack and what it may: the one table that the supervisor, `postern status --security` and the manual
//! take it from.
//!
//! Columns:  account, groups, what is kept of root's power, filter of system calls, files, network.
//! Trust:    an account is looked up here, when a plan is made; the processes themselves know numbers only.
//! Never:    a process that reads from strangers with root's uid, a capability, or the account of another one, where the
//!           accounts exist.

use std::path::{Path, PathBuf};

use boot::caps::Capability;
use boot::exit::{self, Coded};
use boot::sandbox::{Access, system_files};
use boot::seccomp::{Mode, Profile};
use boot::{DaemonPlan, Ids};
use conf::{Mailboxes, PassdbDriver, SandboxMode, Settings, UserdbDriver};

use crate::accounts::{self, Account};

/// The group of the sockets between the daemons.
pub(crate) const GROUP: &str = "postern";
/// The group that may read the shadow file.
const SHADOW: &str = "shadow";
/// How the accounts are made where the package's files are installed, and everywhere else.
pub(crate) const MAKE_ACCOUNTS: &str = "systemd-sysusers postern.conf";
pub(crate) const MAKE_BY_HAND: &str = "groupadd --system postern; for part in auth authw smtp imap metrics; do useradd --system --no-create-home \
                            --shell /usr/sbin/nologin postern-$part; done; \
                            for part in auth smtp imap; do usermod --append --groups postern postern-$part; done";

/// Which files a process may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// As its user may: no landlock.
    Unrestricted,
    /// The passwd-files, and its own folder.
    Users,
    /// The mail tree, if it is the one that writes mail.
    Mail,
    /// The one Maildir it is there for.
    Maildir,
    /// Libraries and the like.
    System,
}

/// One kind of process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    /// Name behind `daemon`, in the log and in `postern status`.
    pub(crate) name: &'static str,
    /// Account of its own, where it exists.
    pub(crate) account: &'static str,
    /// Groups beside its account's.
    pub(crate) groups: &'static [&'static str],
    /// What it keeps of root's power when it is root at all.
    pub(crate) capabilities: &'static [Capability],
    /// Filter of system calls.
    pub(crate) profile: Option<Profile>,
    /// What landlock leaves it.
    pub(crate) files: Files,
    /// Limit on its memory, where that does not grow with the connections.
    pub(crate) memory: Option<u64>,
    /// For people: whom it listens to and talks to.
    pub(crate) network: &'static str,
}

/// The table. The supervisor starts what the plan names; a worker is started by `auth-workers` (or `auth`, where both have the same
/// account), a mailbox by the broker.
pub(crate) const ROLES: &[Role] = &[
    Role {
        name: "supervisor",
        account: "root, or who started it",
        groups: &[],
        capabilities: boot::SUPERVISOR,
        profile: None,
        files: Files::Unrestricted,
        memory: None,
        network: "binds all sockets; the admin socket",
    },
    Role {
        name: "auth",
        account: "postern-auth",
        groups: &[GROUP],
        capabilities: &[],
        profile: Some(Profile::Front),
        files: Files::Users,
        memory: None,
        network: "unix sockets",
    },
    Role {
        name: "auth-workers",
        account: "postern-authw",
        groups: &[SHADOW],
        // Used only where `auth.worker.run_as` is root.
        capabilities: boot::SUPERVISOR,
        profile: Some(Profile::Worker),
        files: Files::Unrestricted,
        memory: None,
        network: "one unix socket, for `auth`",
    },
    Role {
        name: "auth-worker",
        account: "postern-authw",
        groups: &[SHADOW],
        capabilities: boot::SUPERVISOR,
        profile: Some(Profile::Worker),
        files: Files::Unrestricted,
        memory: None,
        network: "as its modules need",
    },
    Role {
        name: "smtp",
        account: "postern-smtp",
        groups: &[GROUP],
        capabilities: &[],
        profile: Some(Profile::Front),
        files: Files::Mail,
        memory: None,
        network: "accepts on 25, 465, 587",
    },
    Role {
        name: "imap",
        account: "postern-imap",
        groups: &[GROUP],
        capabilities: &[],
        profile: Some(Profile::Front),
        files: Files::Mail,
        memory: None,
        network: "accepts on 143, 993, 110, 995",
    },
    Role {
        name: "broker",
        account: "root",
        groups: &[],
        capabilities: &[Capability::Setuid, Capability::Setgid, Capability::Setpcap, Capability::Kill],
        profile: Some(Profile::Broker),
        files: Files::Unrestricted,
        // Those it starts inherit it.
        memory: Some(imap_pop_lite::mailbox::MEMORY),
        network: "one unix socket, for the fronts",
    },
    Role {
        name: "mailbox",
        account: "the mailbox's",
        groups: &[],
        capabilities: &[],
        profile: Some(Profile::Mailbox),
        files: Files::Maildir,
        memory: Some(imap_pop_lite::mailbox::MEMORY),
        network: "none; streams from the broker",
    },
    Role {
        name: "metrics",
        account: "postern-metrics",
        groups: &[],
        capabilities: &[],
        profile: Some(Profile::Front),
        files: Files::System,
        memory: Some(1 << 30),
        network: "accepts on `metrics.listen`",
    },
];

/// The row of a role.
pub(crate) fn role(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.name == name)
}

/// The mode of the sandbox as `boot` knows it.
pub(crate) fn mode(settings: &Settings) -> Mode {
    match settings.process.sandbox {
        SandboxMode::On => Mode::On,
        SandboxMode::Log => Mode::Log,
        SandboxMode::Off => Mode::Off,
    }
}

/// Who the processes are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    /// The authentication daemon. `None`, here and below: whoever the supervisor is.
    pub(crate) auth: Option<Account>,
    /// Its workers; `None` also: as the daemon itself.
    pub(crate) workers: Option<Account>,
    /// The SMTP server.
    pub(crate) smtp: Option<Account>,
    /// The IMAP and POP3 server; with one account for all mail, the mail is its.
    pub(crate) imap: Option<Account>,
    /// The process that serves the figures.
    pub(crate) metrics: Option<Account>,
    /// Group of the sockets between the daemons, where these have different accounts.
    pub(crate) group: Option<u32>,
    /// Root starts them, and each has the account of its own name: also where only one of them runs, so that a second one
    /// changes nothing about whose the files are.
    pub(crate) own: bool,
}

impl Accounts {
    /// One account for all (`None`: the supervisor's).
    pub(crate) fn one(account: Option<&Account>) -> Self {
        let account = account.cloned();
        Self {
            auth: account.clone(),
            workers: None,
            smtp: account.clone(),
            imap: account.clone(),
            metrics: account,
            group: None,
            own: false,
        }
    }

    /// The accounts for these settings, with what the administrator should be told.
    ///
    /// Root's daemons have an account each where these exist; where they do not, one that is named must do.
    pub(crate) fn of(settings: &Settings) -> anyhow::Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let root = accounts::is_root();
        let mut missing = Vec::new();
        let common = match &settings.run_as {
            Some(name) => Some(accounts::run_as(Some(name))?),
            None => None,
        };
        let mut part = |wanted: Option<&String>, own: &str, used: bool| -> anyhow::Result<Option<Account>> {
            match (wanted, &common) {
                (Some(name), _) => accounts::run_as(Some(name)),
                (None, Some(account)) => Ok(account.clone()),
                (None, None) if !root || !used => Ok(None),
                (None, None) => {
                    let found = accounts::find(own)?;
                    if found.is_none() {
                        missing.push(own.to_owned());
                    }
                    Ok(found)
                }
            }
        };
        let has_imap = !(settings.imap.listener.is_empty() && settings.pop3.listener.is_empty());
        let has_smtp = !settings.smtp.listener.is_empty();
        let own = root && common.is_none();
        let mut all = Self {
            own,
            auth: part(settings.auth.run_as.as_ref(), "postern-auth", true)?,
            smtp: part(settings.smtp.run_as.as_ref(), "postern-smtp", has_smtp)?,
            // Mail belongs to it also where only SMTP is served.
            imap: part(settings.imap.run_as.as_ref(), "postern-imap", has_imap || has_smtp)?,
            ..Self::default()
        };
        if !missing.is_empty() {
            // Half of them would mix up who owns what.
            let Some(account) = accounts::find("postern")? else { return Err(no_accounts(&missing)) };
            notes.push(format!(
                "there is no account {}, so the daemons share the account postern; for an account each run `{MAKE_ACCOUNTS}` \
                 (or: {MAKE_BY_HAND}) and see docs/service-files.md for the owners of existing files",
                missing.join(", ")
            ));
            all = Self::one(Some(&account));
        }
        all.metrics = match &settings.metrics.run_as {
            Some(name) => accounts::run_as(Some(name))?,
            // Workers listen to the daemon's own account; who serves figures should not have it.
            None if root && common.is_none() && settings.metrics.listen.is_some() => {
                accounts::find("postern-metrics")?.or_else(|| all.auth.clone())
            }
            None => all.auth.clone(),
        };
        all.workers = match &settings.auth.worker.run_as {
            Some(name) => {
                let account = accounts::named(name)?;
                if account.uid != 0 && !root && account.uid != Account::current().uid {
                    // The usual text about who may become somebody else.
                    accounts::run_as(Some(name))?;
                }
                Some(account)
            }
            None if root && common.is_none() && needs_workers(settings) && missing.is_empty() => {
                let found = accounts::find("postern-authw")?;
                if found.is_none() {
                    notes.push(format!(
                        "there is no account postern-authw, so workers run as the authentication daemon itself, which cannot read \
                         the shadow file; run `{MAKE_ACCOUNTS}` (or: useradd --system --no-create-home --shell \
                         /usr/sbin/nologin postern-authw)"
                    ));
                }
                found
            }
            None => None,
        };
        if root && let Some(workers) = all.workers.as_mut().filter(|workers| workers.uid != 0) {
            join_groups(workers, "auth-worker")?;
        }
        if all.workers.as_ref().is_some_and(|workers| workers.uid == 0) && root {
            notes.push(
                "auth.worker.run_as is root: whoever takes over a worker (through a fault in a PAM module, say) has the machine; \
                 an account in the group `shadow` is enough for pam_unix and the shadow driver"
                    .to_owned(),
            );
        }
        if all.distinct() {
            all.group = accounts::find_group(GROUP)?;
            for (account, role) in [(&mut all.auth, "auth"), (&mut all.smtp, "smtp"), (&mut all.imap, "imap")]
            {
                if let Some(account) = account.as_mut().filter(|account| root && account.uid != 0) {
                    join_groups(account, role)?;
                }
            }
        }
        Ok((all, notes))
    }

    /// Whether there is an account for each daemon on this machine.
    pub(crate) fn exist() -> anyhow::Result<bool> {
        for name in ["postern-auth", "postern-smtp", "postern-imap"] {
            if accounts::find(name)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the daemons are who they were, as far as files are theirs. With accounts of their own, one more or less changes
    /// nothing for the others.
    pub(crate) fn keeps_files_of(&self, before: &Self) -> bool {
        let uids = |who: &Self| [&who.auth, &who.smtp, &who.imap].map(|one| one.as_ref().map(|one| one.uid));
        let own = self.own && before.own;
        self.own == before.own
            && uids(self)
                .iter()
                .zip(uids(before))
                .all(|(now, then)| *now == then || (own && (now.is_none() || then.is_none())))
    }

    /// Whether the parts that share files and sockets have different accounts.
    pub(crate) fn distinct(&self) -> bool {
        if self.own {
            return true;
        }
        let uids: Vec<u32> =
            [&self.auth, &self.smtp, &self.imap].into_iter().flatten().map(|one| one.uid).collect();
        uids.windows(2).any(|pair| pair.first() != pair.last())
    }

    /// Whose the state folder is: the one account's, or root's where each daemon has its own.
    pub(crate) fn owner(&self) -> Option<&Account> {
        if self.distinct() { None } else { self.auth.as_ref().or(self.imap.as_ref()) }
    }

    /// The account of a role.
    pub(crate) fn of_role(&self, role: &str) -> Option<&Account> {
        match role {
            "auth" => self.auth.as_ref(),
            "auth-workers" => self.workers.as_ref().or(self.auth.as_ref()),
            "smtp" => self.smtp.as_ref(),
            "imap" => self.imap.as_ref(),
            "metrics" => self.metrics.as_ref(),
            _ => None,
        }
    }

    /// The uid of a role.
    pub(crate) fn uid(&self, role: &str) -> u32 {
        self.of_role(role).map_or_else(|| nix::unistd::geteuid().as_raw(), |account| account.uid)
    }

    /// Who may connect to the sockets between the daemons, as `allow_users` has it.
    pub(crate) fn fronts(&self) -> Vec<String> {
        let mut uids = vec![self.uid("smtp"), self.uid("imap")];
        uids.sort_unstable();
        uids.dedup();
        uids.iter().map(u32::to_string).collect()
    }
}

/// Gives an account the groups of its role, as far as they exist.
fn join_groups(account: &mut Account, name: &str) -> anyhow::Result<()> {
    for group in role(name).map_or(&[][..], |role| role.groups) {
        let found = accounts::find_group(group)?;
        account.groups.extend(found.filter(|gid| !account.groups.contains(gid)));
    }
    Ok(())
}

/// Whether a look-up of these settings can block.
pub(crate) fn needs_workers(settings: &Settings) -> bool {
    let passdb = settings.auth.passdb.iter().any(|passdb| {
        matches!(
            passdb.driver,
            PassdbDriver::Pam { .. }
                | PassdbDriver::Shadow { .. }
                | PassdbDriver::Passwd { .. }
                | PassdbDriver::Imap { .. }
        )
    });
    passdb || settings.auth.userdb.iter().any(|userdb| matches!(userdb.driver, UserdbDriver::Passwd))
}

fn no_accounts(missing: &[String]) -> anyhow::Error {
    let text = format!(
        "started as root, but there is no account {} for the daemons to run as: make the accounts with `{MAKE_ACCOUNTS}` (or: \
         {MAKE_BY_HAND}), or name one account for all with a line such as `run_as = \"postern\"` (or \"root\", if you mean it) in \
         the file or --run-as",
        missing.join(", ")
    );
    Coded::new(exit::CONFIG, text).into()
}

/// A daemon of this role with everything the table says about it.
pub(crate) fn daemon(
    name: &'static str,
    slice: Vec<u8>,
    settings: &Settings,
    accounts: &Accounts,
) -> DaemonPlan {
    let plan = DaemonPlan {
        ids: accounts.of_role(name).map(Account::ids),
        open_files: Some(settings.limits.open_files),
        sandbox: mode(settings),
        ..DaemonPlan::new(name, slice)
    };
    let Some(role) = role(name) else { return plan };
    // An authentication daemon that starts its workers itself must leave them what they need; filters are inherited.
    let starts_workers = name == "auth" && needs_workers(settings) && !has_pool(settings, accounts);
    let (profile, files) = match starts_workers {
        true => (Some(Profile::Worker), Files::Unrestricted),
        // Mail of another account is handed over.
        false if name == "smtp" && accounts.uid("smtp") != accounts.uid("imap") => {
            (role.profile, Files::System)
        }
        false => (role.profile, role.files),
    };
    let capabilities = if starts_workers { boot::SUPERVISOR } else { role.capabilities };
    let ids = match (name, &plan.ids) {
        ("broker", _) => Some(Ids { uid: 0, gid: 0, groups: vec![0] }),
        (_, ids) => ids.clone(),
    };
    DaemonPlan {
        ids,
        profile,
        capabilities: Some(capabilities.to_vec()),
        memory: role.memory,
        files: reach(files, settings, accounts),
        ..plan
    }
}

/// Whether workers have a process of their own that starts them.
pub(crate) fn has_pool(settings: &Settings, accounts: &Accounts) -> bool {
    needs_workers(settings)
        && accounts.workers.as_ref().is_some_and(|workers| workers.uid != accounts.uid("auth"))
}

/// The landlock rules of a kind; empty: none.
fn reach(files: Files, settings: &Settings, accounts: &Accounts) -> Vec<Access> {
    let mut rules = system_files();
    // What the standard library asks for the number of threads.
    rules.extend(["/proc/self", "/sys/fs/cgroup", "/dev/random"].map(|path| Access::ReadOnly(path.into())));
    match files {
        Files::Unrestricted => return Vec::new(),
        Files::System => return rules,
        // The broker knows which.
        Files::Maildir => {}
        Files::Users => {
            // Names of refused peers.
            rules.push(Access::ReadOnly("/proc".into()));
            // Which services PAM has a file for.
            rules.push(Access::ReadOnly("/etc/pam.d".into()));
            rules.push(Access::ReadWrite(auth_folder(settings, accounts)));
            rules.extend(user_files(settings).into_iter().map(Access::ReadOnly));
        }
        Files::Mail => rules.extend(mail_folders(settings).into_iter().map(Access::ReadWrite)),
    }
    let further = settings.process.reachable.iter().flatten();
    rules.extend(further.map(|path| Access::ReadWrite(path.clone())));
    rules
}

/// Where the authentication daemon keeps its own files.
pub(crate) fn auth_folder(settings: &Settings, accounts: &Accounts) -> PathBuf {
    if accounts.distinct() { settings.state_dir.join("auth") } else { settings.state_dir.clone() }
}

/// The folders of the files that name users: a file is replaced by another one when it is changed.
fn user_files(settings: &Settings) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let passdbs = settings.auth.passdb.iter().filter_map(|passdb| match &passdb.driver {
        PassdbDriver::PasswdFile { path, .. } => Some(path.clone()),
        PassdbDriver::Sasldb { path, .. } => Some(path.to_string_lossy().into_owned()),
        _ => None,
    });
    let userdbs = settings.auth.userdb.iter().filter_map(|userdb| match &userdb.driver {
        UserdbDriver::PasswdFile { path, .. } => Some(path.clone()),
        _ => None,
    });
    for path in passdbs.chain(userdbs) {
        let fixed = before_variables(&path);
        let real = std::fs::canonicalize(&fixed).unwrap_or_else(|_| fixed.clone());
        folders.extend([fixed, real].iter().filter_map(|file| {
            if file.is_dir() { Some(file.clone()) } else { file.parent().map(Path::to_owned) }
        }));
    }
    folders.sort();
    folders.dedup();
    folders
}

/// The part of a path template that is the same for all users.
fn before_variables(template: &str) -> PathBuf {
    match template.split_once('%') {
        None => PathBuf::from(template),
        Some((fixed, _)) => PathBuf::from(fixed.rsplit_once('/').map_or("/", |(folder, _)| folder)),
    }
}

/// Folders below which mail may lie. Where a user database alone knows, everything but the system's own folders.
fn mail_folders(settings: &Settings) -> Vec<PathBuf> {
    if settings.mail.mailboxes == Mailboxes::System {
        // Others write it.
        return Vec::new();
    }
    let mut folders = vec![settings.state_dir.join("proof")];
    let mut known = true;
    let mut template = |text: &str| {
        let text = text.split_once(':').map_or(text, |(_, path)| path);
        let folder = before_variables(text);
        match folder.parent() {
            _ if !text.starts_with('/') => {}
            // `/%{user}`: anywhere.
            None => known = false,
            Some(_) => folders.push(folder),
        }
    };
    template(&settings.mail.home);
    template(&settings.mail.location);
    let passdb = settings
        .auth
        .passdb
        .iter()
        .flat_map(|one| one.rules.default_fields.iter().chain(&one.rules.override_fields));
    let userdb = settings
        .auth
        .userdb
        .iter()
        .flat_map(|one| one.rules.default_fields.iter().chain(&one.rules.override_fields));
    for (name, value) in passdb.chain(userdb) {
        if matches!(name.as_str(), "home" | "mail" | "userdb_home" | "userdb_mail") {
            template(value);
        }
    }
    for userdb in &settings.auth.userdb {
        known &= match &userdb.driver {
            UserdbDriver::PasswdFile { path, .. } => homes(path).is_some_and(|homes| {
                folders.extend(homes);
                true
            }),
            UserdbDriver::Static { .. } => true,
            _ => false,
        };
    }
    if !known {
        folders.extend(not_the_systems());
    }
    folders.sort();
    folders.dedup();
    // The folders above: a home may have to be made, and is then no longer the one that was missing at the start.
    let missing = folders.iter().filter(|folder| !folder.exists());
    let above: Vec<PathBuf> = missing.filter_map(|folder| folder.parent().map(Path::to_owned)).collect();
    folders
        .extend(above.into_iter().filter(|folder| folder != Path::new("/") && *folder != settings.state_dir));
    folders
}

/// The folders of the homes that a passwd-file names; `None` where that cannot be told.
fn homes(path: &str) -> Option<Vec<PathBuf>> {
    if path.contains('%') {
        return None;
    }
    let text = match std::fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    let mut homes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(':').collect();
        if let Some(home) = fields.get(5).filter(|home| home.starts_with('/')) {
            homes.push(Path::new(home).parent().unwrap_or(Path::new("/")).to_owned());
        }
        // Further fields may move the mail anywhere.
        if fields
            .get(7..)
            .is_some_and(|extra| extra.iter().any(|one| one.contains("mail=") || one.contains("home=")))
        {
            return None;
        }
    }
    homes.sort();
    homes.dedup();
    if homes.iter().any(|home| home == Path::new("/")) { None } else { Some(homes) }
}

/// The folders of the root that are not the system's.
fn not_the_systems() -> Vec<PathBuf> {
    const SYSTEM: [&str; 11] =
        ["bin", "boot", "dev", "etc", "proc", "root", "run", "sbin", "sys", "usr", "lost+found"];
    let Ok(all) = std::fs::read_dir("/") else { return Vec::new() };
    let names = all.flatten().filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let names = names.filter(|name| {
        let name = name.to_string_lossy();
        !SYSTEM.contains(&name.as_ref()) && !name.starts_with("lib")
    });
    names.map(|name| Path::new("/").join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_one_row() {
        for daemon in crate::stack::DAEMONS.iter().filter(|daemon| daemon.role != crate::stack::FORWARD) {
            assert!(role(daemon.role).is_some(), "{} is not in the table", daemon.role);
        }
        let mut names: Vec<_> = ROLES.iter().map(|role| role.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROLES.len());
        // Whoever reads from strangers keeps nothing of root's power.
        for name in ["auth", "smtp", "imap", "mailbox", "metrics"] {
            let role = role(name).expect("a row");
            assert!(role.capabilities.is_empty() && role.profile.is_some(), "{name}");
        }
    }

    /// The table of docs/architecture.md.
    fn manual() -> String {
        let mut text =
            "| Process | Account | Groups | Kept of root's power | System calls | Files | Memory | Network |\n\
                        | --- | --- | --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for role in ROLES {
            let list = |names: Vec<&str>| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
            let kept = list(role.capabilities.iter().map(|one| one.name()).collect());
            let profile =
                role.profile.map_or_else(|| "-".to_owned(), |profile| crate::commands::word(&profile));
            let files = match role.files {
                Files::Unrestricted => "-",
                Files::Users => "passwd-files; its own folder",
                Files::Mail => "the mail tree, if it writes mail",
                Files::Maildir => "one Maildir",
                Files::System => "libraries",
            };
            let groups = list(role.groups.to_vec());
            let memory = role.memory.map_or_else(|| "-".to_owned(), |bytes| format!("{} GiB", bytes >> 30));
            text += &format!(
                "| `{}` | {} | {groups} | {kept} | {profile} | {files} | {memory} | {} |\n",
                role.name, role.account, role.network
            );
        }
        text
    }

    #[test]
    fn the_manual_has_this_table() {
        const BEGIN: &str = "<!-- processes: generated from src/roles.rs -->\n";
        const END: &str = "<!-- end of processes -->";
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
        let text = std::fs::read_to_string(&page).expect("docs/architecture.md");
        let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
        let (table, after) = rest.split_once(END).expect("where it ends");
        if std::env::var_os("POSTERN_WRITE_GENERATED").is_some() {
            std::fs::write(&page, format!("{before}{BEGIN}{}{END}{after}", manual())).expect("written");
            return;
        }
        assert_eq!(
            table,
            manual(),
            "stale: POSTERN_WRITE_GENERATED=1 cargo test -p postern the_manual_has_this_table"
        );
    }

    #[test]
    fn what_is_the_same_for_all_users() {
        for (template, fixed) in [
            ("/srv/mail/%{user}/Maildir", "/srv/mail"),
            ("/srv/mail-%{domain}", "/srv"),
            ("/%{user}", ""),
            ("/etc/postern/users", "/etc/postern/users"),
        ] {
            assert_eq!(before_variables(template), Path::new(fixed), "{template}");
        }
    }

    #[test]
    fn homes_of_a_passwd_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("users");
        let of = |text: &str| {
            std::fs::write(&file, text).expect("written");
            homes(&file.to_string_lossy())
        };
        assert_eq!(of("a:{PLAIN}x\n#b:::::/x/b\n"), Some(vec![]));
        assert_eq!(of("a:x:1:1::/srv/a:\nb:x:1:1::/srv/b::nice=1\n"), Some(vec!["/srv".into()]));
        assert_eq!(of("a:x:1:1::/a:\n"), None);
        assert_eq!(of("a:x:1:1::/srv/a::userdb_mail=maildir:/x\n"), None);
        assert_eq!(homes("/etc/%{domain}/users"), None);
    }
}
