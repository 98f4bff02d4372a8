//! `postern status --security`: what each process of the running stack could do if it were taken over.
//!
//! Sources:  the supervisor names its daemons, their sockets and what their start ritual did, a daemon the same of those it has
//!           started; everything else is read from `/proc`, so a process cannot make itself look better than it is.
//! Trust:    the running stack, on its admin socket. A daemon that is taken over could tell more than is true of what landlock
//!           leaves its helpers, and of nothing else.
//! Never:    a figure from the settings: they say what was wanted.

use std::collections::BTreeMap;

use boot::admin::{Process, Status};
use boot::caps::Capability;
use boot::sandbox::{self, Restricted};
use boot::{ExitCode, exit};
use serde::Serialize;

use crate::accounts::name_of;
use crate::output;
use crate::roles::{self, Files};

/// One process.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    role: String,
    pid: u32,
    user: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Effective, by name.
    capabilities: Vec<String>,
    /// What a program it starts could have at most.
    bounding: Vec<String>,
    no_new_privs: bool,
    /// `filter`, `log` or `none`.
    seccomp: &'static str,
    /// Kind of the filter, where its process has told.
    profile: Option<boot::seccomp::Profile>,
    /// `full`, `partial`, `none`; not there: unknown, or not asked for.
    landlock: Option<sandbox::Status>,
    /// Whether other processes of its uid can look into it; not there: unknown.
    dumpable: Option<bool>,
    /// Hard limits (setrlimit(2)).
    limits: Limits,
    /// Where it listens.
    sockets: Vec<String>,
    /// What is weaker than the table of docs/architecture.md says.
    weaker: Vec<String>,
}

/// Hard limits of a process, in bytes and descriptors; not there: none.
#[derive(Clone, Debug, Default, Serialize)]
struct Limits {
    core: Option<u64>,
    open_files: Option<u64>,
    memory: Option<u64>,
    locked_memory: Option<u64>,
}

impl Limits {
    /// `/proc/PID/limits`.
    fn of(pid: u32) -> Self {
        Self::read(&std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default())
    }

    fn read(text: &str) -> Self {
        let hard = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        Self {
            core: hard("Max core file size"),
            open_files: hard("Max open files"),
            memory: hard("Max data size"),
            locked_memory: hard("Max locked memory"),
        }
    }

    fn words(&self) -> String {
        let files = self.open_files.map(|count| format!("files {count}"));
        let memory = self.memory.map(|bytes| format!("memory {} MiB", bytes >> 20));
        let all: Vec<String> = files.into_iter().chain(memory).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }
}

/// Prints them.
pub(crate) fn security(status: &Status, json: bool) -> anyhow::Result<ExitCode> {
    let all = look(status);
    if json {
        output::json(&serde_json::json!({ "processes": all }))?;
        return Ok(exit::OK);
    }
    let header = [
        "ROLE",
        "PID",
        "USER",
        "GROUPS",
        "CAPABILITIES",
        "NEW PRIVS",
        "SECCOMP",
        "LANDLOCK",
        "DUMPABLE",
        "LIMITS",
        "LISTENS",
    ];
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    output::raw(output::table(&header, &rows));
    for one in all.iter().filter(|one| !one.sockets.is_empty()) {
        output::line("");
        let kind = roles::role(&one.role).map_or("", |role| role.network);
        output::line(format!("{} ({kind}):", one.role));
        one.sockets.iter().for_each(|socket| output::line(format!("  {socket}")));
    }
    if all.iter().any(|one| !one.weaker.is_empty()) {
        output::line("");
    }
    for one in &all {
        one.weaker
            .iter()
            .for_each(|what| output::line(format!("note: {} (process {}): {what}", one.role, one.pid)));
    }
    Ok(exit::OK)
}

fn row(one: &Shown) -> Vec<String> {
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(",") };
    let groups: Vec<String> = one.groups.iter().map(|gid| group_name(*gid)).collect();
    let capabilities = match one.capabilities.len() {
        // More than a line holds; --json names them.
        n if n > 4 => format!("{n} of 41"),
        _ => list(&one.capabilities),
    };
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let seccomp = match one.profile {
        Some(profile) => format!("{} ({})", one.seccomp, word(&profile)),
        None => one.seccomp.to_owned(),
    };
    vec![
        one.role.clone(),
        one.pid.to_string(),
        one.user.clone(),
        list(&groups),
        capabilities,
        if one.no_new_privs { "no" } else { "possible" }.to_owned(),
        seccomp,
        one.landlock.map_or_else(|| "-".to_owned(), |status| word(&status)),
        one.dumpable.map_or_else(|| "?".to_owned(), yes),
        one.limits.words(),
        one.sockets.len().to_string(),
    ]
}

/// The word a value is written with.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

fn group_name(gid: u32) -> String {
    let known = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)).ok().flatten();
    known.map_or_else(|| gid.to_string(), |group| group.name)
}

/// Every process of the stack: those the supervisor knows, and those that these have started.
fn look(status: &Status) -> Vec<Shown> {
    let mut all = Vec::new();
    let parents = parents();
    for process in &status.processes {
        let Some(pid) = process.pid else { continue };
        all.extend(shown(pid, Told::Daemon(process)));
        // The supervisor's children are the daemons.
        let daemon = process.role != "supervisor";
        let helpers = if daemon { below(pid, &parents) } else { Vec::new() };
        all.extend(helpers.into_iter().filter_map(|pid| shown(pid, Told::Helper(process))));
    }
    all
}

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, Facts::of(pid)?.number("PPid:")?))).collect()
}

fn below(top: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut waiting = vec![top];
    while let Some(parent) = waiting.pop() {
        let children = parents.iter().filter(|(_, its)| **its == parent).map(|(pid, _)| *pid);
        for child in children.filter(|child| !found.contains(child)).collect::<Vec<_>>() {
            found.push(child);
            waiting.push(child);
        }
    }
    found.sort_unstable();
    found
}

/// `/proc/PID/status`.
struct Facts(String);

impl Facts {
    fn of(pid: u32) -> Option<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/status")).ok().map(Self)
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(field)).map(str::trim)
    }

    fn number(&self, field: &str) -> Option<u32> {
        self.text(field)?.split_ascii_whitespace().next()?.parse().ok()
    }

    fn set(&self, field: &str) -> u64 {
        self.text(field).and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or_default()
    }
}

/// Who has told about a process.
#[derive(Clone, Copy)]
enum Told<'a> {
    /// It is a daemon of the supervisor's.
    Daemon(&'a Process),
    /// This daemon has started it.
    Helper(&'a Process),
}

impl Told<'_> {
    /// What a process is kept from, and whether that is all: what its daemon was kept from when it started it, it has inherited
    /// (seccomp(2), landlock(7)); it may have given up more since.
    fn restricted(self, pid: u32) -> (Option<Restricted>, bool) {
        match self {
            Self::Daemon(own) => (own.restricted, own.restricted.is_some()),
            Self::Helper(by) => match by.helpers.get(&pid) {
                Some(own) => (Some(*own), true),
                None => (by.restricted, false),
            },
        }
    }
}

fn shown(pid: u32, told: Told<'_>) -> Option<Shown> {
    use std::os::unix::fs::MetadataExt as _;
    let facts = Facts::of(pid)?;
    let uid = facts.number("Uid:")?;
    let known = match told {
        Told::Daemon(own) => Some(own),
        Told::Helper(_) => None,
    };
    let role =
        known.map_or_else(|| role_of(facts.text("Name:").unwrap_or_default()), |known| known.role.clone());
    let (restricted, complete) = told.restricted(pid);
    let seccomp = match (facts.number("Seccomp:")?, restricted) {
        (2, Some(restricted)) if restricted.log_only => "log",
        (2, _) => "filter",
        _ => "none",
    };
    // proc(5): the files of a process that is not dumpable are root's.
    let owner = std::fs::metadata(format!("/proc/{pid}/status")).ok().map(|meta| meta.uid());
    let dumpable = match owner {
        Some(owner) if uid != 0 => Some(owner == uid),
        // The supervisor makes itself so before it does anything.
        _ => restricted.filter(|_| complete).map(|restricted| restricted.dumpable),
    };
    let groups = facts.text("Groups:").unwrap_or_default();
    let mut shown = Shown {
        role,
        pid,
        user: name_of(uid),
        uid,
        gid: facts.number("Gid:")?,
        groups: groups.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect(),
        capabilities: names(facts.set("CapEff:")),
        bounding: names(facts.set("CapBnd:")),
        no_new_privs: facts.number("NoNewPrivs:") == Some(1),
        seccomp,
        profile: restricted.and_then(|restricted| restricted.seccomp),
        landlock: restricted.and_then(|restricted| restricted.landlock),
        dumpable,
        limits: Limits::of(pid),
        sockets: known.map(|known| known.sockets.clone()).unwrap_or_default(),
        weaker: Vec::new(),
    };
    shown.weaker = weaker(&shown, complete);
    Some(shown)
}

/// The role of a process that a daemon has started, by the name it gave itself.
fn role_of(name: &str) -> String {
    match name {
        "postern-authw" => "auth-worker".to_owned(),
        "postern-mailbox" => "mailbox".to_owned(),
        other => other.to_owned(),
    }
}

/// Capabilities by name; those Postern has no name for by number.
fn names(set: u64) -> Vec<String> {
    let numbers = (0..64_u8).filter(|number| set >> number & 1 == 1);
    let name = |number: u8| {
        let known = Capability::ALL.iter().find(|one| **one as u8 == number);
        known.map_or_else(|| number.to_string(), |one| one.name().to_owned())
    };
    numbers.map(name).collect()
}

fn weaker(one: &Shown, told: bool) -> Vec<String> {
    let Some(role) = roles::role(&one.role) else { return Vec::new() };
    let mut notes = Vec::new();
    let supervisor = one.role == "supervisor";
    if one.uid == 0 && !supervisor && role.account != "root" {
        notes.push("runs as root".to_owned());
    }
    let kept: Vec<&str> = role.capabilities.iter().map(|one| one.name()).collect();
    let more: Vec<&str> =
        one.capabilities.iter().map(String::as_str).filter(|name| !kept.contains(name)).collect();
    if !more.is_empty() {
        notes.push(format!("has the capabilities {}", more.join(", ")));
    }
    if !one.no_new_privs && !supervisor {
        notes.push("may gain privileges by starting setuid programs".to_owned());
    }
    if role.profile.is_some() && one.seccomp == "none" {
        notes.push("system calls are not restricted (process.sandbox, or the kernel)".to_owned());
    }
    if one.seccomp == "log" {
        notes.push("system calls that should be refused are only logged (process.sandbox)".to_owned());
    }
    if told && role.files != Files::Unrestricted && one.landlock != Some(sandbox::Status::Full) {
        let why = match one.landlock {
            None if one.role == "auth" => {
                "files are not restricted (it starts its workers itself, or process.sandbox)"
            }
            None => "files are not restricted (process.sandbox)",
            Some(sandbox::Status::None) => "files are not restricted: the kernel has no landlock",
            Some(_) => "files are restricted as far as this kernel can",
        };
        notes.push(why.to_owned());
    }
    if one.limits.core != Some(0) && !supervisor {
        notes.push("a crash may leave a core file with secrets in it".to_owned());
    }
    if one.limits.memory.is_none() && role.memory.is_some() {
        notes.push("may use all memory of the machine".to_owned());
    }
    if one.dumpable == Some(true) {
        notes.push("can be looked into by processes of the same uid".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_of_this_process() {
        let process: Process = serde_json::from_str(
            r#"{"role":"broker","pid":1,"uid":0,"since":1,"restarts":0,"connections":0,"total":0,"memory_kib":4,"state":"ready",
                "restricted":{"landlock":null,"seccomp":"broker","log_only":false,"dumpable":false},
                "helpers":{"7":{"landlock":"full","seccomp":"mailbox","log_only":false,"dumpable":false}}}"#,
        )
        .expect("a process");
        // What nobody tells of is what was inherited.
        let (told, complete) = Told::Helper(&process).restricted(7);
        assert_eq!((told.and_then(|told| told.landlock), complete), (Some(sandbox::Status::Full), true));
        let (told, complete) = Told::Helper(&process).restricted(8);
        assert_eq!((told, complete), (process.restricted, false));
        let own = shown(std::process::id(), Told::Helper(&process)).expect("it runs");
        assert_eq!(own.uid, nix::unistd::getuid().as_raw());
        assert_eq!(own.gid, nix::unistd::getgid().as_raw());
        assert_eq!(names(0b1000_0001), ["chown", "setuid"]);
        assert_eq!(names(1 << 21), ["21"]);
        assert_eq!(role_of("postern-authw"), "auth-worker");
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 2), (5, 4), (6, 9)]);
        assert_eq!(below(2, &parents), [3, 4, 5]);
    }

    #[test]
    fn what_is_weaker_is_told() {
        let strong = || Shown {
            role: "imap".into(),
            pid: 1,
            user: "x".into(),
            uid: 7,
            gid: 7,
            groups: vec![],
            capabilities: vec![],
            bounding: vec![],
            no_new_privs: true,
            seccomp: "filter",
            profile: None,
            landlock: Some(sandbox::Status::Full),
            dumpable: Some(false),
            limits: Limits { core: Some(0), ..Limits::default() },
            sockets: vec![],
            weaker: vec![],
        };
        assert!(weaker(&strong(), true).is_empty());
        type Change = fn(&mut Shown);
        let changes: [(Change, &str); 8] = [
            (|one| one.limits.core = None, "core file"),
            (|one| one.role = "metrics".into(), "all memory"),
            (|one| one.uid = 0, "runs as root"),
            (|one| one.capabilities = vec!["kill".into()], "has the capabilities kill"),
            (|one| one.no_new_privs = false, "setuid programs"),
            (|one| one.seccomp = "none", "not restricted"),
            (|one| one.landlock = None, "files are not restricted"),
            (|one| one.dumpable = Some(true), "looked into"),
        ];
        for (change, text) in changes {
            let mut one = strong();
            change(&mut one);
            let notes = weaker(&one, true);
            assert!(notes.len() == 1 && notes[0].contains(text), "{notes:?}");
        }
    }
}
