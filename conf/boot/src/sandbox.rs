//! What a process may reach: landlock rules for files.
//!
//! Source:  landlock(7). Renaming between folders (Maildir's `tmp` to `new`) is ABI 2; on older kernels every such
//!          rename would fail under any rule set, so there it is left off as a whole, with a warning by the caller.
//! Trust:   nobody; rules are made from the administrator's settings before a byte of a stranger is read.
//! Never:   take a kernel without landlock for one with it: the status says what is enforced.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

use crate::seccomp::Profile;

/// The newest kind of file rules known here; the kernel takes what it knows of them.
const NEWEST: ABI = ABI::V5;

/// One file or folder (with everything below it) and what may be done there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Read, list, execute.
    ReadOnly(PathBuf),
    /// Also write, make, remove, rename and link between such folders.
    ReadWrite(PathBuf),
}

/// How much of the restriction the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All of it.
    Full,
    /// An older kernel: files are restricted, some kinds of access are not.
    Partial,
    /// Nothing: landlock is missing or too old (ABI < 2 cannot rename between folders).
    None,
}

/// What a process says its start ritual has done; `/proc` does not show all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restricted {
    /// Restriction of files; none was asked for.
    pub landlock: Option<Status>,
    /// Filter of system calls; none was asked for or there is none on this machine.
    pub seccomp: Option<Profile>,
    /// Whether the filter only logs.
    pub log_only: bool,
    /// Whether others of its uid may look into it, and a crash leaves a core file.
    pub dumpable: bool,
}

/// Restricts this thread, and all threads it starts from now on, to these files. Call before the runtime starts.
/// Paths that do not exist are skipped. Implies `no_new_privs`.
///
/// # Errors
/// The kernel offers landlock but refuses the rules.
pub fn restrict_files(rules: &[Access]) -> io::Result<Status> {
    let renames =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer);
    if renames.and_then(Ruleset::create).is_err() {
        return Ok(Status::None);
    }
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        // No signal to a process outside, also to one of the same uid.
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for rule in rules {
        let (path, access) = match rule {
            Access::ReadOnly(path) => (path, AccessFs::from_read(NEWEST)),
            Access::ReadWrite(path) => (path, AccessFs::from_all(NEWEST)),
        };
        if !path.exists() {
            tracing::debug!(path = %path.display(), "does not exist, so nothing is allowed there");
        }
        ruleset = ruleset.add_rules(path_beneath_rules([path], access)).map_err(io::Error::other)?;
    }
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Status::Full,
        RulesetStatus::PartiallyEnforced => Status::Partial,
        RulesetStatus::NotEnforced => Status::None,
    })
}

/// What nearly every daemon needs to read: libraries, resolver and name-service files, time zones, `/dev/urandom`;
/// and `/dev/null` to write.
pub fn system_files() -> Vec<Access> {
    let read = [
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/usr/share/zoneinfo",
        "/etc/localtime",
        "/etc/ld.so.cache",
        "/etc/nsswitch.conf",
        "/etc/passwd",
        "/etc/group",
        "/etc/hosts",
        "/etc/host.conf",
        "/etc/gai.conf",
        "/etc/resolv.conf",
        "/run/systemd/resolve",
        "/dev/urandom",
    ];
    let read = read.into_iter().map(|path| Access::ReadOnly(path.into()));
    read.chain([Access::ReadWrite("/dev/null".into())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_outside_are_out_of_reach() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["open", "open/tmp", "open/new", "shown", "closed"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("shown/f"), "s").unwrap();
        fs::write(at("closed/f"), "c").unwrap();
        let rules =
            [Access::ReadWrite(at("open")), Access::ReadOnly(at("shown")), Access::ReadOnly(at("missing"))];
        // A thread of its own: the restriction can never be taken off it again.
        let restricted = move || {
            let status = restrict_files(&rules).unwrap();
            if status == Status::None {
                assert_ne!(
                    std::env::var("POSTERN_TEST_SKIPS").as_deref(),
                    Ok("fail"),
                    "a skip is not allowed here"
                );
                eprintln!("SKIPPED: this kernel has no landlock with ABI 2 or later");
                return;
            }
            fs::write(at("open/tmp/m"), "mail").unwrap();
            fs::rename(at("open/tmp/m"), at("open/new/m")).unwrap();
            assert_eq!(fs::read(at("shown/f")).unwrap(), b"s");
            for refused in [fs::write(at("shown/f"), "x"), fs::read(at("closed/f")).map(drop)] {
                assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
        };
        std::thread::scope(|scope| scope.spawn(restricted).join().unwrap());
    }
}
