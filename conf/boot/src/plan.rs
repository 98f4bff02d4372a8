//! What the supervisor is to run: daemons, their sockets, ids and configuration.
//!
//! Trust: a plan is made by the program itself from the administrator's settings.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::Start;
use crate::caps::Capability;
use crate::logging::LogOptions;
use crate::sandbox::Access;
use crate::seccomp::{Mode, Profile};

/// One daemon program the supervisor can run: role name and its main, called in the child process.
#[derive(Clone, Copy)]
pub struct Daemon {
    /// Name on the hidden command line `daemon ROLE`, in logs and in `postern status`.
    pub role: &'static str,
    /// The daemon. It runs on the main thread of its own process and makes its own runtime.
    /// Returning `Ok` ends the process with code 0.
    pub main: fn(Start) -> anyhow::Result<()>,
}

/// The whole of what should be running.
#[derive(Debug, Default)]
pub struct Plan {
    /// Daemons in the order they are started.
    pub daemons: Vec<DaemonPlan>,
    /// How long a daemon may finish what is in flight once told to stop. Zero: 10 s.
    pub grace: Duration,
    /// The supervisor's admin socket (mode 0600), normally `STATE/sockets/control`.
    pub control_socket: PathBuf,
    /// Pid file, also the lock of the state folder, normally `STATE/postern.pid`.
    pub pid_file: PathBuf,
    /// How supervisor and daemons log. `None`: the caller has set up logging, and daemons do it themselves.
    pub log: Option<LogOptions>,
}

/// One daemon of a plan.
#[derive(Debug)]
pub struct DaemonPlan {
    /// Which [`Daemon`].
    pub role: &'static str,
    /// Its configuration, opaque here.
    pub slice: Slice,
    /// Its listening sockets.
    pub sockets: Vec<SocketSpec>,
    /// Whom it runs as. `None`: as the supervisor does.
    pub ids: Option<Ids>,
    /// Lower tiers stop later: fronts have 1 (the default), what they depend on has 0.
    pub tier: u8,
    /// Set `no_new_privs` (default). Off only for what must start setuid helpers.
    pub no_new_privs: bool,
    /// What it keeps of root's power; `None`: what the supervisor has. A process of another uid keeps nothing whatever
    /// stands here.
    pub capabilities: Option<Vec<Capability>>,
    /// Which system calls it may make. `None`: not restricted here.
    pub profile: Option<Profile>,
    /// How `profile` and `files` are applied.
    pub sandbox: Mode,
    /// Files it may reach, applied by landlock before its `main`. Empty: not restricted here.
    pub files: Vec<Access>,
    /// Limit on open files. `None`: as many as the hard limit allows.
    pub open_files: Option<u64>,
    /// Limit on its memory in bytes (`RLIMIT_DATA`), for roles whose use does not grow with the number of connections.
    pub memory: Option<u64>,
    /// It may ask for the figures of the whole stack ([`crate::StatusReader`]).
    pub reads_status: bool,
}

impl DaemonPlan {
    /// A daemon of this role and configuration; everything else as it is by default.
    pub fn new(role: &'static str, slice: impl Into<Slice>) -> Self {
        Self { role, slice: slice.into(), ..Self::default() }
    }
}

impl Default for DaemonPlan {
    fn default() -> Self {
        Self {
            role: "",
            slice: Slice::default(),
            sockets: Vec::new(),
            ids: None,
            tier: 1,
            no_new_privs: true,
            capabilities: None,
            profile: None,
            sandbox: Mode::On,
            files: Vec::new(),
            open_files: None,
            memory: None,
            reads_status: false,
        }
    }
}

/// User, group and all supplementary groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, complete: nothing is added to them.
    pub groups: Vec<u32>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// The listener's name from the settings; several sockets may share it.
    pub name: String,
    /// Where it listens.
    pub bind: Bind,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A TCP address. `::` covers IPv6 only.
    Tcp(SocketAddr),
    /// A path.
    Unix {
        /// Absolute path; missing folders are made with mode 0755.
        path: PathBuf,
        /// Permission bits, such as `0o660`.
        mode: u32,
        /// Owning uid; `None`: the supervisor's.
        owner: Option<u32>,
        /// Owning gid; `None`: the supervisor's.
        group: Option<u32>,
    },
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Tcp(address) => write!(f, "{address}"),
            Bind::Unix { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A daemon's configuration as bytes. May hold keys: never printed, wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Slice(Zeroizing<Vec<u8>>);

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_is_never_printed() {
        let plan = DaemonPlan::new("auth", b"key=hunter2".to_vec());
        let shown = format!("{plan:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
    }
}
