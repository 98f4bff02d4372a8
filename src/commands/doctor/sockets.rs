//! The authentication daemon's sockets: file, rights, the way to them, connecting, greeting, a login.
//!
//! Order:     the kernel is asked first, as the account that will ask it every day; only when it says no are the bits
//!            looked at, to say why.
//! Trust:     the sockets may be anybody's by now: connecting is done by a process with the rights of the account
//!            that will ask.
//! Never:     try a password of a user on a socket unless one was given, or change a file.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use conf::{AuthListener, AuthListenerKind, PassdbDriver};
use creds::Secret;

use super::check::{Advice, Cause, Check, Outcome, Part, Trial};
use super::machine::{Machine, Stack};
use super::paths::{self, Obstacle, Standing, quoted};
use super::probe::{self, Login, Protocol, Talk, Verdict};
use crate::accounts::{self, Account};

/// Who asks on a socket, and from where.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    /// For messages: `Postfix submission/inet`.
    pub(super) name: String,
    pub(super) account: Account,
    /// The root of its file system.
    pub(super) chroot: Option<PathBuf>,
    /// The folder that a relative path begins at.
    pub(super) folder: Option<PathBuf>,
    /// The path as it says it.
    pub(super) written: PathBuf,
    /// Where that is, seen from outside.
    pub(super) real: PathBuf,
    /// The service it names.
    pub(super) service: String,
}

/// A login to try: the user's own, or one that must be refused.
pub(super) struct Attempt {
    pub(super) user: String,
    pub(super) password: Secret,
    pub(super) made_up: bool,
}

/// Every socket of the settings.
pub(super) fn sockets(machine: &Machine, consumers: &[Consumer], attempt: &Attempt) -> Vec<Check> {
    let mut checks = Vec::new();
    let asking = |path: &PathBuf| -> Vec<Consumer> {
        consumers.iter().filter(|one| same(&one.real, path)).cloned().collect()
    };
    // One made-up login says enough about a chain: each is answered as slowly as every refusal.
    let chain =
        |listener: &AuthListener| (listener.kind == AuthListenerKind::Saslauthd, listener.passdb.clone());
    let listeners = &machine.settings.auth.listener;
    let used = listeners.iter().filter(|listener| listener.path.iter().any(|path| !asking(path).is_empty()));
    let mut tried: Vec<_> = used.map(chain).collect();
    for listener in listeners {
        for path in &listener.path {
            let asking = asking(path);
            let again = asking.is_empty() && attempt.made_up && tried.contains(&chain(listener));
            if Protocol::of(listener).is_some() {
                tried.push(chain(listener));
            }
            checks.extend(socket(machine, listener, path, asking, (!again).then_some(attempt)));
        }
    }
    checks
}

impl Protocol {
    /// What is spoken there, if logins are.
    fn of(listener: &AuthListener) -> Option<Self> {
        match listener.kind {
            AuthListenerKind::Client | AuthListenerKind::Login => Some(Self::Client),
            AuthListenerKind::Saslauthd => Some(Self::Mux),
            _ => None,
        }
    }
}

/// Whether both are the same place, links resolved.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().and_then(|folder| std::fs::canonicalize(folder).ok());
        folder.zip(path.file_name()).map_or_else(|| path.to_owned(), |(folder, name)| folder.join(name))
    };
    a == b || place(a) == place(b)
}

fn socket(
    machine: &Machine,
    listener: &AuthListener,
    path: &Path,
    mut asking: Vec<Consumer>,
    attempt: Option<&Attempt>,
) -> Vec<Check> {
    let name = format!("socket {}", path.display());
    let trial =
        Trial::new(Part::Sockets, name.clone(), format!("look at the file of listener {}", listener.name));
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![missing(machine, trial, path)];
        }
        Err(error) if machine.root => {
            let advice = Advice::say("see what stands in the way");
            return vec![trial.problem(Cause::ParentClosed, error.to_string(), advice)];
        }
        Err(error) => return vec![trial.cannot_tell(format!("cannot tell: not root ({error})"))],
    };
    if !meta.file_type().is_socket() {
        let advice = Advice::run(
            "move it away, then start Postern again",
            format!("mv {0} {0}.away && {1}", quoted(path), machine.restart_command()),
        );
        return vec![trial.problem(
            Cause::NotASocket,
            format!("it is {}, not a socket", paths::kind(&meta)),
            advice,
        )];
    }
    if asking.is_empty() {
        asking.push(likely(machine, listener, path));
    }
    let mut checks = Vec::new();
    let mut connected = true;
    for consumer in &asking {
        checks.extend(way(path, consumer));
        let (found, talk) = connect(machine, listener, path, consumer, attempt);
        connected &= found.outcome != Outcome::Problem;
        checks.push(found);
        if let Some(talk) = talk {
            checks.extend(conversation(machine, listener, path, consumer, attempt, &talk));
        }
    }
    checks.insert(0, rights(machine, listener, path, &meta, trial, connected));
    checks
}

/// Every folder above a socket, for the one who must pass through. Where one is closed, connecting says so.
fn way(path: &Path, consumer: &Consumer) -> Option<Check> {
    let root = consumer.chroot.as_deref().unwrap_or(Path::new("/"));
    if paths::obstacle(&consumer.account, path, root).is_some() {
        return None;
    }
    let mut folders: Vec<String> = path
        .ancestors()
        .skip(1)
        .take_while(|folder| folder.starts_with(root))
        .map(|folder| folder.display().to_string())
        .collect();
    folders.reverse();
    let trial =
        Trial::new(Part::Sockets, format!("socket {}", path.display()), "pass through every folder above it")
            .whom(consumer.account.name.clone());
    Some(trial.ok(format!("open: {}", folders.join(" "))))
}

/// Who will ask on a socket that Postfix does not use: the account that the listener is for.
fn likely(machine: &Machine, listener: &AuthListener, path: &Path) -> Consumer {
    let owner = listener.owner.as_deref().and_then(|name| accounts::named(name).ok());
    let account = owner.filter(|account| account.uid != 0).unwrap_or_else(|| machine.me.clone());
    Consumer {
        name: account.name.clone(),
        account,
        chroot: None,
        folder: None,
        written: path.to_owned(),
        real: path.to_owned(),
        service: listener.service.clone().unwrap_or_else(|| "smtp".to_owned()),
    }
}

fn missing(machine: &Machine, trial: Trial, path: &Path) -> Check {
    if matches!(machine.stack, Stack::Gone { .. } | Stack::Silent { .. }) {
        return trial.note("not there: it comes with the start of Postern", None);
    }
    if matches!(machine.stack, Stack::Unknown(_)) {
        return trial.cannot_tell("not there; cannot tell whether Postern runs");
    }
    let root = Account { uid: 0, ..machine.me.clone() };
    if let Some(Obstacle::Missing(folder) | Obstacle::NoFolder(folder)) =
        paths::obstacle(&root, path, Path::new("/"))
    {
        // Postfix's own folder; others are open.
        let made = if folder.file_name().is_some_and(|name| name == "private") {
            let owner =
                machine.postfix.as_ref().map_or_else(|| "postfix".to_owned(), crate::postfix::Postfix::owner);
            format!("install -d -o {owner} -m 0700 {}", quoted(&folder))
        } else {
            format!("install -d -m 0755 {}", quoted(&folder))
        };
        let advice = Advice::run(
            "make the folder and start Postern again",
            format!("{made} && {}", machine.restart_command()),
        );
        return trial.problem(
            Cause::ParentMissing,
            format!("the folder {} is missing", folder.display()),
            advice,
        );
    }
    let text = "it is missing, though Postern runs: somebody has removed it";
    trial.problem(Cause::SocketMissing, text, Advice::run("start Postern again", machine.restart_command()))
}

/// Owner, group and mode beside what the settings want.
fn rights(
    machine: &Machine,
    listener: &AuthListener,
    path: &Path,
    meta: &std::fs::Metadata,
    trial: Trial,
    connected: bool,
) -> Check {
    let found = paths::rights(meta);
    let wanted = Wanted::of(listener);
    let (owner, mode) = (wanted.owner_differs(meta), wanted.mode_differs(meta));
    // The way in is what counts; where it is closed, that check says why.
    if !(owner || mode) || !connected || !machine.is_running() {
        return trial.ok(found);
    }
    if let Some(unit) = unit_of(path) {
        return trial.note(format!("{found}: as {unit} has it, not as the settings have it"), None);
    }
    let text = format!("its rights are {found}, but the settings say {}", wanted.words());
    let cause = if owner { Cause::WrongOwner } else { Cause::WrongMode };
    trial.problem(cause, text, Advice::run("set them right", wanted.command(path)))
}

/// The rights a listener's settings ask for.
struct Wanted {
    owner: Option<(String, u32)>,
    group: Option<(String, u32)>,
    mode: Option<u32>,
}

impl Wanted {
    fn of(listener: &AuthListener) -> Self {
        let ours = conf::is_fronts_socket(&listener.name);
        let owner = listener.owner.as_ref().and_then(|name| Some((name.clone(), accounts::uid(name).ok()?)));
        let group = listener.group.as_ref().and_then(|name| Some((name.clone(), accounts::gid(name).ok()?)));
        Self { owner, group, mode: (!ours).then_some(listener.mode) }
    }

    fn owner_differs(&self, meta: &std::fs::Metadata) -> bool {
        self.owner.as_ref().is_some_and(|(_, uid)| *uid != meta.uid())
            || self.group.as_ref().is_some_and(|(_, gid)| *gid != meta.gid())
    }

    fn mode_differs(&self, meta: &std::fs::Metadata) -> bool {
        self.mode.is_some_and(|mode| mode != meta.mode() & 0o7777)
    }

    /// Whether they would let an account write, which is what connecting needs.
    fn lets_in(&self, account: &Account, meta: &std::fs::Metadata) -> bool {
        let uid = self.owner.as_ref().map_or(meta.uid(), |(_, uid)| *uid);
        let gid = self.group.as_ref().map_or(meta.gid(), |(_, gid)| *gid);
        let mode = self.mode.unwrap_or(meta.mode());
        let shift = if account.uid == 0 {
            return true;
        } else if account.uid == uid {
            6
        } else if account.gid == gid || account.groups.contains(&gid) {
            3
        } else {
            0
        };
        mode >> shift & 2 == 2
    }

    fn words(&self) -> String {
        let name = |one: &Option<(String, u32)>| {
            one.as_ref().map_or_else(|| "*".to_owned(), |(name, _)| name.clone())
        };
        let mode = self.mode.map_or_else(|| "*".to_owned(), |mode| format!("{mode:04o}"));
        format!("{mode} {}:{}", name(&self.owner), name(&self.group))
    }

    fn command(&self, path: &Path) -> String {
        let path = quoted(path);
        let mut commands = Vec::new();
        match (&self.owner, &self.group) {
            (Some((owner, _)), Some((group, _))) => commands.push(format!("chown {owner}:{group} {path}")),
            (Some((owner, _)), None) => commands.push(format!("chown {owner} {path}")),
            (None, Some((group, _))) => commands.push(format!("chgrp {group} {path}")),
            (None, None) => {}
        }
        commands.extend(self.mode.map(|mode| format!("chmod {mode:04o} {path}")));
        commands.join(" && ")
    }
}

/// The systemd socket unit that holds a path: its own settings count then.
fn unit_of(path: &Path) -> Option<String> {
    let line = format!("ListenStream={}", path.display());
    super::machine::UNIT_FOLDERS
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "socket"))
        .find(|entry| {
            std::fs::read_to_string(entry.path()).is_ok_and(|text| text.lines().any(|one| one.trim() == line))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Connects as the consumer; where login and greeting can be had, they are tried on the way.
fn connect(
    machine: &Machine,
    listener: &AuthListener,
    path: &Path,
    consumer: &Consumer,
    attempt: Option<&Attempt>,
) -> (Check, Option<Talk>) {
    let account = &consumer.account;
    let inside =
        consumer.chroot.as_ref().map(|root| format!(" in the chroot {}", root.display())).unwrap_or_default();
    let trial = Trial::new(
        Part::Sockets,
        format!("socket {}", path.display()),
        format!("connect to {}{inside} for {}", consumer.written.display(), consumer.name),
    )
    .whom(account.name.clone());
    let possible = machine.root || (account.uid == machine.me.uid && consumer.chroot.is_none());
    if !possible {
        return (by_bits(listener, path, consumer, trial), None);
    }
    let place = probe::Place {
        account: Some(account),
        chroot: consumer.chroot.as_deref(),
        folder: consumer.folder.as_deref(),
    };
    let login = attempt.map(|attempt| {
        let (user, service) = (attempt.user.clone(), consumer.service.clone());
        (Login { user, service, made_up: attempt.made_up }, &attempt.password)
    });
    let protocol = Protocol::of(listener).unwrap_or(Protocol::Silent);
    let talk = match probe::talk(&place, &consumer.written, protocol, login) {
        Ok(talk) => talk,
        Err(error) => return (trial.cannot_tell(format!("cannot tell: {error:#}")), None),
    };
    match &talk.connect {
        Ok(()) => (trial.ok("connected"), Some(talk)),
        Err(failure) if failure.is_refused() => (stale(machine, trial), None),
        Err(failure) if failure.is_denied() => (denied(machine, listener, path, consumer, trial), None),
        Err(failure) => {
            let advice =
                Advice::say("see whether the path leads elsewhere for it: links, mounts, the chroot");
            (trial.problem(Cause::ChrootView, failure.to_string(), advice), None)
        }
    }
}

fn stale(machine: &Machine, trial: Trial) -> Check {
    match machine.stack {
        Stack::Gone { .. } => {
            let text =
                "refused: a stale socket, nobody listens behind the file, because Postern does not run";
            trial.problem(
                Cause::StaleSocket,
                text,
                Advice::run("start Postern: it replaces the file", machine.start_command()),
            )
        }
        _ => {
            let text = "refused: a stale socket, nobody listens behind the file; it is not the one that Postern made";
            trial.problem(
                Cause::StaleSocket,
                text,
                Advice::run("start Postern again: it replaces the file", machine.restart_command()),
            )
        }
    }
}

/// Without root: what the bits say.
fn by_bits(listener: &AuthListener, path: &Path, consumer: &Consumer, trial: Trial) -> Check {
    let way = paths::obstacle(&consumer.account, path, consumer.chroot.as_deref().unwrap_or(Path::new("/")));
    match (way, std::fs::symlink_metadata(path)) {
        (None, Ok(meta)) if paths::allows(&consumer.account, &meta, 2) => {
            trial.cannot_tell("cannot tell: not root; the permission bits would let it")
        }
        (Some(Obstacle::Unseen(..)), _) | (_, Err(_)) => trial.cannot_tell("cannot tell: not root"),
        (way, Ok(meta)) => closed(listener, path, consumer, trial, way, &meta),
    }
}

/// Why the kernel said no.
fn denied(
    machine: &Machine,
    listener: &AuthListener,
    path: &Path,
    consumer: &Consumer,
    trial: Trial,
) -> Check {
    let way = paths::obstacle(&consumer.account, path, consumer.chroot.as_deref().unwrap_or(Path::new("/")));
    let Ok(meta) = std::fs::symlink_metadata(path) else { return missing(machine, trial, path) };
    if way.is_none() && paths::allows(&consumer.account, &meta, 2) {
        let text = format!(
            "denied, though the rights ({}) would let it: mandatory access control",
            paths::rights(&meta)
        );
        return trial.problem(Cause::MandatoryAccess, text, mandatory(path));
    }
    closed(listener, path, consumer, trial, way, &meta)
}

fn closed(
    listener: &AuthListener,
    path: &Path,
    consumer: &Consumer,
    trial: Trial,
    way: Option<Obstacle>,
    meta: &std::fs::Metadata,
) -> Check {
    let name = &consumer.account.name;
    if let Some(obstacle) = way {
        let (folder, rights) = match obstacle {
            Obstacle::Closed { folder, rights } => (folder, rights),
            Obstacle::Missing(folder) | Obstacle::NoFolder(folder) => (folder, "missing".to_owned()),
            Obstacle::Unseen(folder, error) => (folder, error),
        };
        let private = folder.file_name().is_some_and(|last| last == "private");
        let command = if private && consumer.name.starts_with("Postfix") {
            format!("chown {name} {0} && chmod 0700 {0}", quoted(&folder))
        } else {
            format!("chmod o+x {}", quoted(&folder))
        };
        let text = format!("denied: the folder {} ({rights}) does not let {name} pass", folder.display());
        return trial.problem(Cause::ParentClosed, text, Advice::run("let it pass", command));
    }
    let wanted = Wanted::of(listener);
    let found = paths::rights(meta);
    // What the settings ask for would let it in: then somebody has changed the file.
    if wanted.lets_in(&consumer.account, meta) {
        let owner = wanted.owner_differs(meta);
        let (cause, what) = if owner { (Cause::WrongOwner, "owner") } else { (Cause::WrongMode, "mode") };
        let text =
            format!("denied: wrong {what}: its rights are {found}, the settings say {}", wanted.words());
        return trial.problem(cause, text, Advice::run("set them right", wanted.command(path)));
    }
    let reload = "then reload Postern: postern reload";
    match paths::standing(&consumer.account, meta) {
        Standing::Other | Standing::Root => {
            let group = paths::group_name(consumer.account.gid);
            let advice = Advice::say(format!(
                "write into the listener {}: owner = \"{name}\", group = \"{group}\", mode = \"0660\"; {reload}",
                listener.name
            ));
            let text = format!(
                "denied: wrong owner: its rights are {found}, and {name} is neither owner nor in the group"
            );
            trial.problem(Cause::WrongOwner, text, advice)
        }
        Standing::Owner | Standing::Group => {
            let advice =
                Advice::say(format!("write into the listener {}: mode = \"0660\"; {reload}", listener.name));
            let text =
                format!("denied: wrong mode: its rights are {found}; connecting needs the right to write");
            trial.problem(Cause::WrongMode, text, advice)
        }
    }
}

/// What to look at when SELinux or AppArmor stands in the way.
fn mandatory(path: &Path) -> Advice {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return Advice::run(
            "SELinux: look at the refusals, restore the labels, and allow what is left",
            format!("ausearch -m avc -ts recent; ls -Z {0}; restorecon -v {0}", quoted(path)),
        );
    }
    Advice::run(
        "AppArmor: look at the refusals, and add the path to the profile",
        "journalctl -k -g apparmor=.DENIED",
    )
}

/// SELinux and AppArmor, where they are on: the probes run unconfined, so they do not see them.
pub(super) fn confinement() -> Vec<Check> {
    let mut checks = Vec::new();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let trial = || Trial::new(Part::Sockets, "mandatory access control", "look for SELinux and AppArmor");
    if read("/sys/fs/selinux/enforce").trim() == "1" {
        let advice = Advice::run(
            "if Postfix is denied while everything here is well, SELinux is the reason",
            "ausearch -m avc -c smtpd -ts recent",
        );
        checks.push(
            trial().note("SELinux is enforcing; what it says to Postfix is not seen from here", Some(advice)),
        );
    }
    if read("/sys/module/apparmor/parameters/enabled").trim() == "Y" {
        let profiles = read("/sys/kernel/security/apparmor/profiles");
        let mut ours = profiles.lines().filter(|line| {
            ["postfix", "smtpd", "exim", "saslauthd", "postern"].iter().any(|name| line.contains(name))
                && line.ends_with("(enforce)")
        });
        checks.push(match ours.next() {
            Some(profile) => {
                let advice = Advice::run(
                    "if it is denied while everything here is well, AppArmor is the reason",
                    "journalctl -k -g apparmor=.DENIED",
                );
                trial().note(format!("AppArmor is enforcing {profile}"), Some(advice))
            }
            None => trial().ok("AppArmor is on, without a profile for mail programs"),
        });
    }
    if checks.is_empty() {
        checks.push(trial().ok("neither is on"));
    }
    checks
}

fn conversation(
    machine: &Machine,
    listener: &AuthListener,
    path: &Path,
    consumer: &Consumer,
    attempt: Option<&Attempt>,
    talk: &Talk,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let name = format!("socket {}", path.display());
    if let Some(greeting) = &talk.greeting {
        let trial = Trial::new(Part::Sockets, name.clone(), "wait for the greeting")
            .whom(consumer.account.name.clone());
        checks.push(match greeting {
            Ok(mechanisms) if mechanisms.is_empty() => {
                let advice = Advice::say("list mechanisms in `auth.mechanisms` that the passdbs of the listener can serve: PLAIN always works");
                trial.problem(Cause::NoMechanisms, "no mechanism is offered: Postfix says `no SASL authentication mechanisms`", advice)
            }
            Ok(mechanisms) => trial.ok(format!("offers {}", mechanisms.join(" "))),
            Err(_) if !admitted(machine, listener, &consumer.account) => {
                let advice = Advice::say(format!("add \"{}\" to `allow_users` of listener {}, then: postern reload", consumer.account.name, listener.name));
                trial.problem(Cause::AccessControl, "closed at once: `allow_users` and `allow_groups` do not let it in", advice)
            }
            Err(failure) => {
                let advice = Advice::run("see what the daemons do; start them again if they hang", machine.postern("status"));
                trial.problem(Cause::NoAnswer, format!("no greeting: {failure}"), advice)
            }
        });
    }
    if let (Some(verdict), Some(attempt)) = (&talk.login, attempt) {
        checks.push(login(machine, listener, consumer, attempt, verdict, talk.milliseconds));
    }
    checks
}

fn admitted(machine: &Machine, listener: &AuthListener, account: &Account) -> bool {
    if listener.allow_users.is_empty() && listener.allow_groups.is_empty() {
        return true;
    }
    let own = machine.account(super::machine::Role::Auth).is_some_and(|auth| auth.uid == account.uid);
    account.uid == 0
        || own
        || listener.allow_users.iter().any(|name| accounts::uid(name).is_ok_and(|uid| uid == account.uid))
        || listener.allow_groups.iter().any(|name| {
            accounts::gid(name).is_ok_and(|gid| gid == account.gid || account.groups.contains(&gid))
        })
}

fn login(
    machine: &Machine,
    listener: &AuthListener,
    consumer: &Consumer,
    attempt: &Attempt,
    verdict: &Verdict,
    milliseconds: u64,
) -> Check {
    let service = &consumer.service;
    let who = if attempt.made_up { "a made-up user".to_owned() } else { attempt.user.clone() };
    let trial = Trial::new(
        Part::Login,
        format!("login on listener {}", listener.name),
        format!("log {who} in to service {service}"),
    )
    .whom(consumer.account.name.clone());
    let took = format!("({milliseconds} ms)");
    match verdict {
        Verdict::Refused(_) if attempt.made_up => {
            trial.ok(format!("refused, as it must be: the whole chain answers {took}"))
        }
        Verdict::Accepted(_) if attempt.made_up => {
            let open = machine
                .chain(listener)
                .any(|passdb| matches!(passdb.driver, PassdbDriver::Static { nopassword: true, .. }));
            if open {
                return trial.note("accepted: a static passdb with `nopassword` takes any password", None);
            }
            let advice = Advice::run(
                "find the passdb that accepts everybody",
                machine.postern(&format!("auth explain {} --service {service}", attempt.user)),
            );
            trial.problem(Cause::AcceptsAnybody, "accepted: everybody can log in with any password", advice)
        }
        Verdict::Accepted(user) => trial.ok(format!("accepted as {user} {took}")),
        Verdict::Refused(reason) => {
            let advice = Advice::run(
                "follow the way through the chain; the log has the reason",
                machine.postern(&format!("auth explain {} --service {service}", attempt.user)),
            );
            trial.problem(Cause::LoginRefused, format!("refused: {reason} {took}"), advice)
        }
        Verdict::Temporary(reason) => {
            let advice = Advice::run(
                "a database cannot answer: the log names it (`result=outage`)",
                machine.postern(&format!("auth explain {} --service {service}", attempt.user)),
            );
            trial.problem(Cause::CannotDecide, format!("cannot be decided now: {reason} {took}"), advice)
        }
        Verdict::NoAnswer(why) => {
            let advice = Advice::run("see what the daemons do; the log says more", machine.postern("status"));
            trial.problem(Cause::NoAnswer, format!("{why} {took}"), advice)
        }
        Verdict::NoMechanism => trial.cannot_tell("cannot tell: neither PLAIN nor LOGIN is offered here"),
    }
}

/// Whether the passdbs of each listener know the services that will be asked for.
pub(super) fn services(machine: &Machine, consumers: &[Consumer]) -> Vec<Check> {
    let settings = &machine.settings;
    let mut checks = Vec::new();
    let mut asked: Vec<(&AuthListener, String, String)> = Vec::new();
    for listener in &settings.auth.listener {
        let mut ask = |service: &str, by: &str| {
            if !asked.iter().any(|(one, known, _)| one.name == listener.name && known == service) {
                asked.push((listener, service.to_owned(), by.to_owned()));
            }
        };
        for consumer in consumers.iter().filter(|one| listener.path.iter().any(|path| same(&one.real, path)))
        {
            ask(&consumer.service, &consumer.name);
        }
        if listener.name == "fronts-login" {
            let fronts =
                [
                    (
                        "smtp",
                        settings.smtp.listener.iter().any(|one| {
                            one.kind != conf::SmtpKind::Inbound && one.kind != conf::SmtpKind::Lmtp
                        }),
                    ),
                    ("imap", !settings.imap.listener.is_empty()),
                    ("pop3", !settings.pop3.listener.is_empty()),
                ];
            fronts
                .iter()
                .filter(|(_, there)| *there)
                .for_each(|(service, _)| ask(service, "our own servers"));
        }
    }
    for (listener, service, by) in asked {
        let trial = Trial::new(
            Part::Modules,
            format!("service {service}"),
            format!("find a passdb that is asked, on listener {} (for {by})", listener.name),
        );
        let takes =
            |passdb: &conf::Passdb| passdb.rules.services.as_ref().is_none_or(|list| list.contains(&service));
        let usable: Vec<&conf::Passdb> =
            machine.chain(listener).filter(|passdb| !passdb.rules.deny && !passdb.rules.master).collect();
        if let Some(passdb) = usable.iter().find(|passdb| takes(passdb)) {
            checks.push(trial.ok(format!("passdb {} is asked", passdb.name)));
            continue;
        }
        let listed: Vec<String> =
            usable.iter().filter_map(|passdb| passdb.rules.services.clone()).flatten().collect();
        let advice = Advice::run(
            format!(
                "add \"{service}\" to `services` of the passdb (it has {}), or let {by} name one of these",
                listed.join(", ")
            ),
            machine.postern("reload"),
        );
        let text = format!("wrong service name: no passdb is asked for {service}, so every login is refused");
        checks.push(trial.problem(Cause::ServiceName, text, advice));
    }
    checks
}
