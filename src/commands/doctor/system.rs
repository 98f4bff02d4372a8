//! The machine below the daemons: clock, disk, accounts, files they must read, PAM, shadow.
//!
//! Trust:  files of this machine, and what its accounts may do with them.
//! Never:  print what is in a file of secrets.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use conf::{AuthListenerKind, PassdbDriver, UserdbDriver};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::check::{Advice, Cause, Check, Part, Trial};
use super::machine::{self, Machine, Role};
use super::paths::{self, allows, quoted};
use super::probe;
use crate::accounts::{self, Account};

/// A file may be a little younger than the clock: other machines write on network file systems.
const TOLERANCE: Duration = Duration::from_secs(120);
/// Most files looked at for the newest one, and how deep.
const FILES: usize = 5_000;
const DEPTH: usize = 3;
/// Where password hashes are.
const SHADOW: &str = "/etc/shadow";
/// Below this a file system counts as full, when no mail is taken.
const LEAST: u64 = 1 << 20;
/// Fewer free inodes than this: full.
const INODES: u64 = 64;
/// Modules that do not work for the workers' account as they stand in most service files, and what they need
/// (`docs/system-users.md`).
const ROOT_MODULES: [(&str, &str); 6] = [
    ("pam_faillock.so", "keeps counters in root's folder; `dir=` names one of the workers' account"),
    ("pam_tally2.so", "writes a file of root's; `pam_faillock.so` with `dir=` does the same without root"),
    (
        "pam_google_authenticator.so",
        "reads a file in the user's home; `secret=` and `user=` put it elsewhere",
    ),
    ("pam_oath.so", "writes its file of users; `usersfile=` names one of the workers' account"),
    ("pam_mkhomedir.so", "makes homes, which is root's; mail does not need it"),
    ("pam_ecryptfs.so", "mounts homes, which is root's; mail does not need it"),
];

/// The clock against what it has already seen, and against the network's.
pub(super) fn clock(machine: &Machine) -> Vec<Check> {
    let folder = &machine.settings.state_dir;
    let trial =
        Trial::new(Part::Clock, "clock", format!("compare with the newest file below {}", folder.display()));
    let mut newest = None;
    let mut left = FILES;
    newest_file(folder, DEPTH, &mut left, &mut newest);
    // Our own program cannot have been built in the future either.
    if let Ok(built) = std::fs::metadata("/proc/self/exe").and_then(|meta| meta.modified())
        && newest.as_ref().is_none_or(|(time, _)| *time < built)
        && built > machine.now + TOLERANCE
    {
        newest =
            Some((built, std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into())));
    }
    let against_files = match newest {
        Some((time, file)) => match time.duration_since(machine.now) {
            Ok(ahead) if ahead > TOLERANCE => trial.problem(
                Cause::ClockBehind,
                format!("the clock is behind: {} was written {} in the future", file.display(), words(ahead)),
                set_clock(&file),
            ),
            _ => trial.ok("no file is from the future"),
        },
        None => trial.ok("no files yet"),
    };
    vec![against_files, synchronised()]
}

fn newest_file(folder: &Path, depth: usize, left: &mut usize, newest: &mut Option<(SystemTime, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let Ok(meta) = entry.metadata() else { continue };
        if let Ok(time) = meta.modified()
            && newest.as_ref().is_none_or(|(known, _)| *known < time)
        {
            *newest = Some((time, entry.path()));
        }
        if meta.is_dir() && depth > 0 {
            newest_file(&entry.path(), depth - 1, left, newest);
        }
    }
}

fn set_clock(file: &Path) -> Advice {
    let text = format!(
        "set the clock, and let it be kept right; if it is right, the file's date is wrong: touch {}",
        quoted(file)
    );
    if Path::new("/run/systemd/system").is_dir() {
        Advice::run(text, "timedatectl set-ntp true")
    } else if Path::new("/usr/bin/chronyc").exists() {
        Advice::run(text, "chronyc makestep")
    } else {
        Advice::run(text, "date --utc --set='YYYY-MM-DD HH:MM:SS'")
    }
}

fn synchronised() -> Check {
    let trial = Trial::new(Part::Clock, "clock", "ask whether it is synchronised");
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return trial.ok("synchronised by systemd-timesyncd");
    }
    if Path::new("/run/systemd/container").exists() || Path::new("/.dockerenv").exists() {
        return trial.cannot_tell("cannot tell: this is a container, the clock is its host's");
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return trial.cannot_tell("cannot tell: systemd does not run here");
    }
    let mut ask = Command::new("timedatectl");
    ask.args(["show", "--property=NTPSynchronized", "--value"]).stdin(Stdio::null()).stderr(Stdio::null());
    match ask.output() {
        Ok(answer) if answer.stdout.starts_with(b"yes") => trial.ok("the kernel says it is synchronised"),
        Ok(answer) if answer.stdout.starts_with(b"no") => {
            let advice = Advice::run(
                "let it be kept right: tickets, one-time passwords and certificates depend on it",
                "timedatectl set-ntp true",
            );
            trial.note("not synchronised", Some(advice))
        }
        _ => trial.cannot_tell("cannot tell: timedatectl does not answer"),
    }
}

/// Seconds as people say them.
pub(super) fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Space, inodes and read-only mounts where something is written.
pub(super) fn disk(machine: &Machine) -> Vec<Check> {
    let settings = &machine.settings;
    let mail = if settings.has_fronts() { machine::mail_folders(settings) } else { Vec::new() };
    let queue = machine.postfix.as_ref().map(crate::postfix::Postfix::queue_folder);
    let mut seen = Vec::new();
    let mut checks = Vec::new();
    for folder in std::iter::once(settings.state_dir.clone()).chain(mail).chain(queue) {
        // What is not there yet will be made on the file system of what is above it.
        let Some((folder, meta)) =
            folder.ancestors().find_map(|one| Some((one, std::fs::metadata(one).ok()?)))
        else {
            continue;
        };
        if !seen.contains(&meta.dev()) {
            seen.push(meta.dev());
            checks.push(file_system(machine, folder));
        }
    }
    checks
}

#[allow(clippy::useless_conversion, reason = "narrower on some machines")]
fn file_system(machine: &Machine, folder: &Path) -> Check {
    let trial = Trial::new(Part::Disk, folder.display().to_string(), "look at its file system (statvfs)");
    let found = match statvfs(folder) {
        Ok(found) => found,
        Err(errno) => return trial.cannot_tell(format!("cannot tell: {}", std::io::Error::from(errno))),
    };
    let df = |flags: &str| format!("df {flags} {}", quoted(folder));
    if found.flags().contains(FsFlags::ST_RDONLY) {
        let mount = find_mount(folder).unwrap_or_else(|| folder.to_owned());
        let advice = Advice::run(
            "find out why in the kernel's log (dmesg), then mount it for writing",
            format!("mount -o remount,rw {}", quoted(&mount)),
        );
        return trial.problem(Cause::ReadOnly, "the file system is read-only", advice);
    }
    let free = u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size()));
    let all = u64::from(found.blocks()).saturating_mul(u64::from(found.fragment_size()));
    let (inodes, all_inodes) = (u64::from(found.files_available()), u64::from(found.files()));
    let needed = if machine.settings.smtp.listener.is_empty() {
        LEAST
    } else {
        machine.settings.smtp.max_message_size.max(LEAST)
    };
    let space = format!("{} of {} free", size(free), size(all));
    if free < needed {
        let advice = Advice::run(format!("make room: at least {} are needed", size(needed)), df("-h"));
        return trial.problem(Cause::DiskFull, format!("the disk is full: {space}"), advice);
    }
    if all_inodes > 0 && inodes < INODES {
        let advice = Advice::run("delete files: each needs an inode, however small", df("-i"));
        let text = format!("no inodes left: {inodes} of {all_inodes} free");
        return trial.problem(Cause::InodesUsedUp, text, advice);
    }
    if free < all / 20 && free < 1 << 30 {
        return trial.note(format!("nearly full: {space}"), Some(Advice::run("make room in time", df("-h"))));
    }
    if all_inodes > 0 && inodes < all_inodes / 100 && inodes < 10_000 {
        let text = format!("nearly no inodes left: {inodes} of {all_inodes} free");
        return trial.note(text, Some(Advice::run("delete files in time", df("-i"))));
    }
    let of_inodes = if all_inodes > 0 { format!(", {inodes} inodes free") } else { String::new() };
    trial.ok(format!("{space}{of_inodes}, writable"))
}

/// The topmost folder of the same file system.
fn find_mount(folder: &Path) -> Option<PathBuf> {
    let device = std::fs::metadata(folder).ok()?.dev();
    let same = |path: &&Path| std::fs::metadata(path).is_ok_and(|meta| meta.dev() == device);
    folder.ancestors().take_while(same).last().map(Path::to_owned)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Accounts that the settings name, the state folder, and the files the authentication daemon reads.
pub(super) fn accounts(machine: &Machine) -> Vec<Check> {
    let settings = &machine.settings;
    let mut checks = Vec::new();
    let run_as = [
        ("run_as", &settings.run_as),
        ("auth.run_as", &settings.auth.run_as),
        ("auth.worker.run_as", &settings.auth.worker.run_as),
        ("smtp.run_as", &settings.smtp.run_as),
        ("imap.run_as", &settings.imap.run_as),
        ("metrics.run_as", &settings.metrics.run_as),
    ];
    for (key, name) in run_as.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
        checks.push(account(name, key));
    }
    for listener in &settings.auth.listener {
        let place = |key: &str| format!("{key} of listener {}", listener.name);
        for name in listener.owner.iter().chain(&listener.allow_users) {
            checks.push(account(name, &place("owner or allow_users")));
        }
        for name in listener.group.iter().chain(&listener.allow_groups) {
            checks.push(group(name, &place("group or allow_groups")));
        }
    }
    // Numbers need no account; the same name stands in several places.
    checks.retain(|check| check.name.split(' ').nth(1).is_none_or(|name| name.parse::<u32>().is_err()));
    let mut names: Vec<(String, String)> = Vec::new();
    checks.retain(|check| {
        let key = (check.name.clone(), check.found.clone());
        let new = !names.contains(&key);
        names.push(key);
        new
    });
    checks.extend(state_folder(machine));
    checks.extend(user_files(machine));
    checks.extend(mail_folder(machine));
    checks
}

fn account(name: &str, place: &str) -> Check {
    let trial = Trial::new(Part::Accounts, format!("account {name}"), format!("look it up ({place})"));
    match accounts::uid(name) {
        Ok(uid) => trial.ok(format!("uid {uid}")),
        Err(error) => trial.problem(
            Cause::AccountMissing,
            crate::output::sentence(&error),
            Advice::run(
                "make the account, or correct the setting",
                format!("adduser --system --group --no-create-home {name}"),
            ),
        ),
    }
}

fn group(name: &str, place: &str) -> Check {
    let trial = Trial::new(Part::Accounts, format!("group {name}"), format!("look it up ({place})"));
    match accounts::gid(name) {
        Ok(gid) => trial.ok(format!("gid {gid}")),
        Err(error) => trial.problem(
            Cause::AccountMissing,
            crate::output::sentence(&error),
            Advice::run("make the group, or correct the setting", format!("addgroup --system {name}")),
        ),
    }
}

fn state_folder(machine: &Machine) -> Option<Check> {
    let folder = &machine.settings.state_dir;
    let trial = Trial::new(Part::Accounts, folder.display().to_string(), "look at the state folder");
    let meta = match std::fs::symlink_metadata(folder) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(trial.note("not there yet: the first start makes it", None));
        }
        Err(error) => return Some(trial.cannot_tell(format!("cannot tell: {error}"))),
    };
    if !meta.is_dir() {
        let advice = Advice::say("move it away, or name another folder as `state_dir`");
        return Some(trial.problem(
            Cause::StateFolder,
            format!("it is {}, not a folder", paths::kind(&meta)),
            advice,
        ));
    }
    // A stack that runs has taken the folder; one that does not refuses a folder of somebody else.
    let wanted = machine.settings.run_as.as_deref().and_then(|name| accounts::uid(name).ok());
    match wanted {
        Some(uid) if !machine.is_running() && meta.uid() != uid && !(meta.uid() == 0 && is_empty(folder)) => {
            let name = accounts::name_of(uid);
            let advice =
                Advice::run("give it to the account", format!("chown -R {name}: {}", quoted(folder)));
            let text = format!("it belongs to {}, not to {name}", accounts::name_of(meta.uid()));
            Some(trial.problem(Cause::StateFolder, text, advice))
        }
        _ => Some(trial.ok(paths::rights(&meta))),
    }
}

/// The first start gives an empty folder of root's away.
fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Where all mail belongs to one account, that account must be able to make mailboxes.
fn mail_folder(machine: &Machine) -> Option<Check> {
    let settings = &machine.settings;
    // Without homes in it, the mail's own place is what counts.
    let mail = &settings.mail;
    let place = if mail.location.starts_with('/') { &mail.location } else { &mail.home };
    let home = place.split('%').next().and_then(|fixed| fixed.rsplit_once('/')).map(|(folder, _)| folder)?;
    let folder = Path::new(home);
    if !settings.has_fronts() || settings.mail.mailboxes != conf::Mailboxes::Virtual || !folder.is_dir() {
        return None;
    }
    let account = machine.account(Role::Mail)?;
    let trial =
        Trial::new(Part::Accounts, folder.display().to_string(), "make mailboxes").whom(account.name.clone());
    if !machine.root && account.uid != machine.me.uid {
        return Some(trial.cannot_tell("cannot tell: not root"));
    }
    let place = probe::Place { account: Some(&account), ..probe::Place::default() };
    Some(match probe::write(&place, folder) {
        Ok(Ok(())) => trial.ok("it may"),
        // Told with the disk.
        Ok(Err(failure)) if !failure.is_denied() => trial.note(failure.to_string(), None),
        Ok(Err(failure)) => {
            let rights = std::fs::metadata(folder).map(|meta| paths::rights(&meta)).unwrap_or_default();
            let advice = Advice::run(
                "give it to the account that keeps the mail",
                format!("chown {}: {}", account.name, quoted(folder)),
            );
            trial.problem(
                Cause::MailFolder,
                format!("it may not: {failure}; the folder's rights are {rights}"),
                advice,
            )
        }
        Err(error) => trial.cannot_tell(format!("cannot tell: {error:#}")),
    })
}

/// The passwd-files, read as the daemon's account.
fn user_files(machine: &Machine) -> Vec<Check> {
    let settings = &machine.settings;
    let mut files: Vec<PathBuf> = Vec::new();
    for passdb in &settings.auth.passdb {
        match &passdb.driver {
            PassdbDriver::PasswdFile { path, .. } if !path.contains('%') => files.push(path.into()),
            PassdbDriver::Sasldb { path, .. } => files.push(path.clone()),
            _ => {}
        }
    }
    for userdb in &settings.auth.userdb {
        if let UserdbDriver::PasswdFile { path, .. } = &userdb.driver
            && !path.contains('%')
        {
            files.push(path.into());
        }
    }
    files.sort();
    files.dedup();
    files.iter().map(|file| readable(machine, file)).collect()
}

fn readable(machine: &Machine, file: &Path) -> Check {
    let account = machine.account(Role::Auth).unwrap_or_else(Account::current);
    let trial =
        Trial::new(Part::Accounts, file.display().to_string(), "read the users").whom(account.name.clone());
    match can_read(machine, &account, file) {
        Ok(()) => trial.ok("readable"),
        Err(Reading::Unseen(why)) => trial.cannot_tell(why),
        Err(Reading::Failed(_)) if machine.comes_later(file) => {
            trial.note("not there yet: the first start makes it", None)
        }
        Err(Reading::Failed(why)) if !file.exists() => {
            let advice = Advice::run(
                "add the first user, which makes the file, or correct the path",
                machine.postern("user add NAME"),
            );
            trial.problem(Cause::FileUnreadable, why, advice)
        }
        Err(Reading::Failed(why)) => {
            let advice = match paths::obstacle(&account, file, Path::new("/")) {
                Some(paths::Obstacle::Closed { folder, rights }) => Advice::run(
                    format!(
                        "the folder {} ({rights}) does not let {} pass; open it",
                        folder.display(),
                        account.name
                    ),
                    format!("chmod o+x {}", quoted(&folder)),
                ),
                _ => Advice::run(
                    format!("let {} read it", account.name),
                    format!("chown {} {}", account.name, quoted(file)),
                ),
            };
            trial.problem(Cause::FileUnreadable, why, advice)
        }
    }
}

/// Why something was not read.
enum Reading {
    Failed(String),
    Unseen(String),
}

/// Reads as an account: for real where this process can become it, else by the permission bits.
fn can_read(machine: &Machine, account: &Account, file: &Path) -> Result<(), Reading> {
    if machine.root || account.uid == machine.me.uid {
        let place = probe::Place { account: Some(account), ..probe::Place::default() };
        return match probe::read(&place, file) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(Reading::Failed(format!("cannot be read: {failure}"))),
            Err(error) => Err(Reading::Unseen(format!("cannot tell: {error:#}"))),
        };
    }
    match paths::obstacle(account, file, Path::new("/")) {
        Some(paths::Obstacle::Closed { folder, rights }) => {
            let text =
                format!("cannot be read: {} ({rights}) does not let {} pass", folder.display(), account.name);
            return Err(Reading::Failed(text));
        }
        Some(paths::Obstacle::Missing(folder)) => {
            return Err(Reading::Failed(format!("cannot be read: {} is missing", folder.display())));
        }
        Some(_) => return Err(Reading::Unseen("cannot tell: not root".to_owned())),
        None => {}
    }
    match std::fs::metadata(file) {
        Ok(meta) if allows(account, &meta, 4) => Ok(()),
        Ok(meta) => Err(Reading::Failed(format!("cannot be read: its rights are {}", paths::rights(&meta)))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Reading::Failed(error.to_string())),
        Err(error) => Err(Reading::Unseen(format!("cannot tell: not root ({error})"))),
    }
}

/// PAM's service files, what their modules need, and the shadow file.
pub(super) fn modules(machine: &Machine, services: &[String]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut wanted: Vec<(String, String, bool)> = Vec::new();
    let mut want = |name: String, of: String, by_login: bool| {
        if !wanted.iter().any(|(known, ..)| *known == name) {
            wanted.push((name, of, by_login));
        }
    };
    for passdb in &machine.settings.auth.passdb {
        let PassdbDriver::Pam { service, .. } = &passdb.driver else { continue };
        if !service.contains('%') {
            want(service.clone(), format!("passdb {}", passdb.name), false);
        } else if service == "%{service}" {
            for asked in services {
                want(asked.clone(), format!("passdb {}, for logins to {asked}", passdb.name), true);
            }
        } else {
            let trial = Trial::new(Part::Modules, format!("PAM service {service}"), "find its file");
            checks.push(trial.cannot_tell("cannot tell: the name depends on the login"));
        }
    }
    for listener in
        machine.settings.auth.listener.iter().filter(|one| one.kind == AuthListenerKind::Saslauthd)
    {
        for service in listener.pam_services.iter().filter(|name| *name != "*") {
            want(service.clone(), format!("pam_services of listener {}", listener.name), false);
        }
    }
    let worker = machine.account(Role::Worker).unwrap_or_else(Account::current);
    let mut needs_shadow: Vec<String> = Vec::new();
    if machine.has_driver(|driver| matches!(driver, PassdbDriver::Shadow { .. })) {
        needs_shadow.push("driver shadow".to_owned());
    }
    for (name, of, by_login) in &wanted {
        checks.push(pam_service(name, of, *by_login));
        if !system_auth::service_exists(name) {
            continue;
        }
        if system_auth::service_uses(name, "pam_unix.so") {
            needs_shadow.push(format!("pam_unix of PAM service {name}"));
        }
        for (module, why) in ROOT_MODULES {
            if worker.uid != 0 && system_auth::service_uses(name, module) {
                let trial =
                    Trial::new(Part::Modules, format!("PAM service {name}"), format!("look for {module}"));
                let advice = Advice::say(
                    "if its logins fail: change it so, or set `auth.worker.run_as = \"root\"`; then whoever takes over a worker has the machine",
                );
                let text = format!("the workers are {}, not root: {module} {why}", worker.name);
                checks.push(trial.note(text, Some(advice)));
            }
        }
    }
    if !needs_shadow.is_empty() {
        checks.push(shadow(machine, &worker, &needs_shadow.join(", ")));
    }
    checks
}

/// `by_login`: the client names the service, not the settings.
fn pam_service(name: &str, of: &str, by_login: bool) -> Check {
    let trial =
        Trial::new(Part::Modules, format!("PAM service {name}"), format!("find /etc/pam.d/{name} ({of})"));
    if system_auth::service_exists(name) {
        return trial.ok("there");
    }
    let advice = Advice::run(
        "name a service that exists, or make the file",
        format!("printf 'auth required pam_unix.so\\naccount required pam_unix.so\\n' > /etc/pam.d/{name}"),
    );
    let text = format!("there is no /etc/pam.d/{name}: PAM takes `other` in its place");
    // Debian's asks pam_unix like every other service; elsewhere it refuses everybody.
    let serves = system_auth::service_uses("other", "pam_unix.so");
    if by_login && serves {
        return trial.note(format!("{text}, which asks pam_unix"), Some(advice));
    }
    let effect = if serves { "" } else { ", which refuses everybody" };
    trial.problem(Cause::PamServiceMissing, format!("{text}{effect}"), advice)
}

fn shadow(machine: &Machine, worker: &Account, needed: &str) -> Check {
    let trial = Trial::new(Part::Modules, SHADOW, format!("read password hashes ({needed})"))
        .whom(worker.name.clone());
    match can_read(machine, worker, Path::new(SHADOW)) {
        Ok(()) => trial.ok("readable"),
        Err(Reading::Unseen(why)) => trial.cannot_tell(why),
        Err(Reading::Failed(why)) => {
            let restart = machine.restart_command();
            let advice = match std::fs::metadata(SHADOW) {
                Ok(meta) if meta.mode() & 0o040 == 0 || meta.gid() == 0 => Advice::run(
                    format!(
                        "let the group `shadow` read it, as Debian has it; the rights are {}",
                        paths::rights(&meta)
                    ),
                    format!("chgrp shadow {SHADOW} && chmod 0640 {SHADOW}"),
                ),
                _ => Advice::run(
                    "put the account of the workers into the group `shadow`, then start again as root",
                    format!("usermod --append --groups shadow {} && {restart}", worker.name),
                ),
            };
            trial.problem(
                Cause::ShadowUnreadable,
                format!("{why}: every login of a system user is a temporary failure"),
                advice,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{find_mount, newest_file, size, words};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_newest_file_is_found() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("folders");
        let future = SystemTime::now() + Duration::from_secs(86_400);
        let file = std::fs::File::create(deep.join("new")).expect("file");
        file.set_modified(future).expect("date");
        let (mut left, mut newest) = (100, None);
        newest_file(folder.path(), 3, &mut left, &mut newest);
        assert_eq!(newest, Some((future, deep.join("new"))));
    }

    #[test]
    fn numbers_as_people_say_them() {
        assert_eq!(words(Duration::from_secs(90_000)), "25 hours");
        assert_eq!(size(5 << 20), "5 MiB");
        assert_eq!(find_mount(Path::new("/")).as_deref(), Some(Path::new("/")));
    }
}
