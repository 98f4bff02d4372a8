//! What the checks look at: settings, accounts, the running stack, Postfix. Gathered once.
//!
//! Trust:  files and processes of this machine, which may be wrong or missing: then a check cannot tell.
//! Never:  change anything; stop a start by looking at the lock.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use boot::admin::{Process, Request, Response, Status, request};
use conf::{AuthListener, PassdbDriver, Settings};

use crate::accounts::{self, Account};
use crate::place::Place;
use crate::postfix::Postfix;
use crate::stack;

/// Longest the supervisor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine as the checks see it.
pub(super) struct Machine {
    pub(super) place: Place,
    pub(super) settings: Settings,
    /// Whether this process is root: everything can be tried.
    pub(super) root: bool,
    pub(super) me: Account,
    pub(super) stack: Stack,
    /// Postfix, where there is one that can be read.
    pub(super) postfix: Option<Postfix>,
    pub(super) now: SystemTime,
}

/// What is known of the running stack.
pub(super) enum Stack {
    Running(Status),
    /// Nobody holds the state folder. The pid of the one that did not tidy up, if there was one.
    Gone {
        left: Option<u32>,
    },
    /// A process holds it but does not answer.
    Silent {
        pid: Option<u32>,
        why: String,
    },
    /// It cannot be seen from here.
    Unknown(String),
}

/// The part of the settings a role's account stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Auth,
    Worker,
    Mail,
}

impl Machine {
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stack, Stack::Running(_))
    }

    /// The processes of the running stack.
    pub(super) fn processes(&self) -> &[Process] {
        match &self.stack {
            Stack::Running(status) => &status.processes,
            _ => &[],
        }
    }

    /// The account of a role: of the running process, else as the settings say. `None`: there is no such account.
    pub(super) fn account(&self, role: Role) -> Option<Account> {
        let names: &[&str] = match role {
            Role::Auth => &["auth"],
            Role::Worker => &["auth-workers", "auth"],
            Role::Mail => &["imap", "smtp"],
        };
        let running = names.iter().find_map(|name| {
            let process = self.processes().iter().find(|process| process.role == *name)?;
            process.pid.and_then(of_process)
        });
        running.or_else(|| planned(&self.settings, role, self.root))
    }

    /// Whether a file is missing only because the first start of an embedded default makes it.
    pub(super) fn comes_later(&self, file: &Path) -> bool {
        matches!(&self.place, Place::Embedded(folder) if file.starts_with(folder))
            && !self.is_running()
            && !file.exists()
    }

    /// How the stack is started on this machine.
    pub(super) fn start_command(&self) -> String {
        self.unit().map_or_else(|| self.postern("run"), |unit| format!("systemctl start {unit}"))
    }

    /// How it is stopped and started again.
    pub(super) fn restart_command(&self) -> String {
        self.unit().map_or_else(
            || format!("{}; {}", self.postern("stop"), self.postern("run")),
            |unit| format!("systemctl restart {unit}"),
        )
    }

    /// The unit that the running stack belongs to; where none runs, the one that is enabled, else the whole stack's. `None`:
    /// systemd does not run here, knows no unit of ours, or did not start the stack.
    pub(super) fn unit(&self) -> Option<&'static str> {
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        let supervisor = self.processes().iter().find(|process| process.role == "supervisor");
        if let Some(pid) = supervisor.and_then(|process| process.pid) {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            return unit_of_groups(&groups);
        }
        let known = |file: &str| UNIT_FOLDERS.iter().any(|folder| Path::new(folder).join(file).exists());
        let enabled = |unit: &&&str| known(&format!("multi-user.target.wants/{unit}.service"));
        let enabled = UNITS.iter().find(enabled);
        enabled.or(UNITS.iter().find(|unit| known(&format!("{unit}.service")))).copied()
    }

    /// A command of ours about the same place.
    pub(super) fn postern(&self, command: &str) -> String {
        match &self.place {
            Place::File(file) if file == Path::new("/etc/postern/postern.toml") => {
                format!("postern {command}")
            }
            Place::File(file) => format!("postern {command} --config {}", file.display()),
            Place::Embedded(folder) => format!("postern {command} --state-dir {}", folder.display()),
        }
    }

    /// The passdbs a listener asks.
    pub(super) fn chain<'a>(&'a self, listener: &'a AuthListener) -> impl Iterator<Item = &'a conf::Passdb> {
        self.settings.auth.passdb.iter().filter(|passdb| match &listener.passdb {
            None => true,
            Some(names) => names.contains(&passdb.name),
        })
    }

    /// Whether some passdb looks at system accounts, through PAM or without.
    pub(super) fn has_driver(&self, wanted: impl Fn(&PassdbDriver) -> bool) -> bool {
        self.settings.auth.passdb.iter().any(|passdb| wanted(&passdb.driver))
    }
}

/// Our units (conf/systemd).
const UNITS: [&str; 2] = ["postern", "postern-auth"];

/// Where systemd looks for units (systemd.unit(5)); the last one on machines where /usr is not merged.
pub(super) const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The unit of ours in `/proc/PID/cgroup`.
fn unit_of_groups(groups: &str) -> Option<&'static str> {
    let part = |unit: &str| format!("/{unit}.service");
    UNITS.into_iter().find(|unit| groups.lines().any(|line| line.ends_with(&part(unit))))
}

/// The account the settings give to a role, with the groups it will have.
fn planned(settings: &Settings, role: Role, root: bool) -> Option<Account> {
    let (own, separate) = match role {
        Role::Auth => (&settings.auth.run_as, "postern-auth"),
        Role::Worker => (&settings.auth.worker.run_as, "postern-authw"),
        Role::Mail => (&settings.imap.run_as, "postern-imap"),
    };
    if root
        && settings.run_as.is_none()
        && let Ok((who, _)) = crate::roles::Accounts::of(settings)
    {
        let account = match role {
            Role::Auth => who.auth,
            Role::Worker => who.workers,
            Role::Mail => who.imap,
        };
        if account.is_some() {
            return account;
        }
    }
    let shadow = || accounts::gid("shadow").ok();
    if let Some(name) = own {
        let mut account = accounts::named(name).ok()?;
        if role == Role::Worker {
            account.groups.extend(shadow());
        }
        return Some(account);
    }
    if let Some(name) = &settings.run_as {
        return accounts::named(name).ok();
    }
    // Of an embedded default started by root, the folder says who runs it.
    let owner =
        std::fs::metadata(&settings.state_dir).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).ok();
    if (root || owner == Some(0))
        && let Ok(mut account) = accounts::named(separate)
    {
        if role == Role::Worker {
            account.groups.extend(shadow());
        }
        return Some(account);
    }
    match owner {
        Some(uid) => Some(of_uid(uid)),
        None => Some(Account::current()),
    }
}

/// An account by uid, also one without a name.
pub(super) fn of_uid(uid: u32) -> Account {
    accounts::named(&accounts::name_of(uid)).unwrap_or_else(|_| Account {
        name: uid.to_string(),
        uid,
        gid: uid,
        groups: Vec::new(),
    })
}

/// Ids and groups a process has at this moment (proc(5)).
fn of_process(pid: u32) -> Option<Account> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
    };
    // Real, effective, saved, file system.
    let (uid, gid) = (*numbers("Uid")?.get(1)?, *numbers("Gid")?.get(1)?);
    Some(Account { name: accounts::name_of(uid), uid, gid, groups: numbers("Groups")? })
}

/// Asks the supervisor; finds out why it does not answer.
pub(super) fn look_at_stack(place: &Place, settings: &Settings) -> Stack {
    let socket = place.control_socket().unwrap_or_else(|_| stack::control_socket(&settings.state_dir));
    let (sender, receiver) = mpsc::channel();
    let asked = socket.clone();
    std::thread::spawn(move || {
        let _ = sender.send(request(&asked, &Request::Status));
    });
    let error = match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(Response::Status(status))) => return Stack::Running(status),
        Ok(Ok(_)) => "it answered something else; is it another version?".to_owned(),
        Ok(Err(error)) => {
            if !accounts::is_root() && is_denied(&error) {
                return Stack::Unknown(format!(
                    "cannot tell: not root, and {} is for its user",
                    socket.display()
                ));
            }
            error.to_string()
        }
        Err(_) => format!("no answer within {} seconds", PATIENCE.as_secs()),
    };
    held(&stack::pid_file(&settings.state_dir), error)
}

fn is_denied(error: &boot::Error) -> bool {
    match error {
        boot::Error::NotRunning { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
        boot::Error::Refused(_) => true,
        _ => false,
    }
}

/// Whether somebody holds the lock of the state folder.
fn held(pid_file: &Path, why: String) -> Stack {
    let file = match std::fs::File::open(pid_file) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Stack::Gone { left: None },
        Err(error) => return Stack::Unknown(format!("cannot read {}: {error}", pid_file.display())),
    };
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    match boot::StateLock::is_held(&file) {
        Ok(false) => Stack::Gone { left: pid },
        Ok(true) => Stack::Silent { pid, why },
        Err(error) => Stack::Unknown(format!("cannot lock {}: {error}", pid_file.display())),
    }
}

/// Folders that mail is written to, as far as the settings name them.
pub(super) fn mail_folders(settings: &Settings) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut add = |template: &str| {
        // What stands before the first variable, up to its last folder.
        let fixed = template.split('%').next().unwrap_or_default();
        if let Some((folder, _)) = fixed.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            folders.push(PathBuf::from(folder));
        }
    };
    add(&settings.mail.location);
    add(&settings.mail.home);
    for userdb in &settings.auth.userdb {
        let fields = userdb.rules.default_fields.iter().chain(&userdb.rules.override_fields);
        for (_, value) in fields.filter(|(name, _)| name == "home" || name == "mail") {
            add(value.trim_start_matches("maildir:"));
        }
        if userdb.driver == conf::UserdbDriver::Passwd {
            add("/home/");
        }
    }
    folders.sort();
    folders.dedup();
    folders
}

#[cfg(test)]
mod tests {
    use super::{Stack, held, mail_folders, of_process, unit_of_groups};
    use conf::Settings;
    use std::path::PathBuf;

    #[test]
    fn places_of_mail() {
        let mut settings = Settings::default();
        settings.mail.home = "/srv/mail/%{user}".to_owned();
        settings.mail.location = "%{home}/Maildir".to_owned();
        assert_eq!(mail_folders(&settings), [PathBuf::from("/srv/mail")]);
    }

    #[test]
    fn who_holds_the_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("postern.pid");
        assert!(matches!(held(&path, String::new()), Stack::Gone { left: None }));
        let lock = boot::StateLock::acquire(&path).expect("lock");
        let own = std::process::id();
        assert!(matches!(held(&path, "x".to_owned()), Stack::Silent { pid: Some(pid), .. } if pid == own));
        drop(lock);
        std::fs::write(&path, "77\n").expect("written");
        assert!(matches!(held(&path, String::new()), Stack::Gone { left: Some(77) }));
    }

    #[test]
    fn units_of_a_process() {
        let of = |path: &str| unit_of_groups(&format!("1:cpu:/\n0::{path}\n"));
        assert_eq!(of("/system.slice/postern.service"), Some("postern"));
        assert_eq!(of("/system.slice/postern-auth.service"), Some("postern-auth"));
        assert_eq!(of("/user.slice/user-0.slice/session-1.scope"), None);
    }

    #[test]
    fn ids_of_a_process() {
        let own = of_process(std::process::id()).expect("this process");
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(own.gid, nix::unistd::getegid().as_raw());
    }
}
