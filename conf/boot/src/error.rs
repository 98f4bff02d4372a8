//! What can stop the supervisor or an admin request. One sentence each, with what to do.
//!
//! Trust: nobody; made of paths, roles and what the system said. Most of it is shown to the administrator as it is.
//! Never: hold a part of a configuration slice.

use std::io;
use std::path::PathBuf;

use crate::exit::{self, ExitCode};

/// Everything that goes wrong in this crate and that a caller can tell apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another supervisor runs on this state folder.
    #[error("{} is held by process {}: this state folder is already in use; stop that one first or choose another --state-dir",
        pid_file.display(), pid.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string()))]
    Held {
        /// The locked file.
        pid_file: PathBuf,
        /// Who holds it, if the file says so.
        pid: Option<u32>,
    },
    /// The pid file cannot be opened or written.
    #[error("cannot write {}: {source}; the state folder must belong to the user that starts this program", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Sockets that cannot be bound; all of them, not only the first.
    #[error("{}", lines(.0))]
    Bind(Vec<BindError>),
    /// A daemon is to run as somebody the supervisor may not become.
    #[error(
        "{role} is to run as uid {uid}, which only root may arrange; start as root or remove the setting (run_as, --run-as)"
    )]
    NotRoot {
        /// The daemon.
        role: String,
        /// The user it should have.
        uid: u32,
    },
    /// The plan names a role this program has no daemon for.
    #[error("this program has no daemon called {0:?}")]
    UnknownRole(String),
    /// A daemon process cannot be started.
    #[error("cannot start {role}: {source}")]
    Spawn {
        /// The daemon.
        role: String,
        /// What the system said.
        source: io::Error,
    },
    /// The hidden command was called by hand.
    #[error("`daemon {0}` is started by the supervisor, not by hand; use `postern run`")]
    NotSupervised(String),
    /// A frame on an internal channel breaks the rules (size, version, descriptors).
    #[error("internal channel: {0}")]
    Protocol(String),
    /// No supervisor answers at the admin socket.
    #[error("no running stack answers at {}: {source}; is it started, and are you its user or root?", path.display())]
    NotRunning {
        /// The admin socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor refused an admin request.
    #[error("{0}")]
    Refused(String),
    /// Anything else the system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The exit code for a program that ends because of this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Error::Held { .. } => exit::TEMPFAIL,
            Error::PidFile { source, .. } => code_for(source, exit::CANTCREAT),
            Error::Bind(all) => all.first().map_or(exit::FAILURE, BindError::exit_code),
            Error::NotRoot { .. } => exit::NOPERM,
            Error::UnknownRole(_) | Error::NotSupervised(_) => exit::EX_USAGE,
            Error::NotRunning { .. } => exit::UNAVAILABLE,
            Error::Spawn { .. } | Error::Protocol(_) | Error::Refused(_) | Error::System { .. } => {
                exit::FAILURE
            }
        }
    }
}

/// Why one socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody else listens there.
    #[error("{address} is already in use{}; choose other ports with --port-base or stop it", holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    TcpInUse {
        /// The wanted address.
        address: String,
        /// The other program, if it can be seen.
        holder: Option<String>,
    },
    /// The port needs root or CAP_NET_BIND_SERVICE.
    #[error(
        "{address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; start as root, use socket activation, or choose other ports with --port-base"
    )]
    Privileged {
        /// The wanted address.
        address: String,
    },
    /// The machine has no such address.
    #[error("{address}: this machine has no such address; correct the listener's address or --listen")]
    NoSuchAddress {
        /// The wanted address.
        address: String,
    },
    /// A live program listens at the path.
    #[error("{} is already in use by another program; stop it or choose another path", path.display())]
    UnixInUse {
        /// The wanted path.
        path: PathBuf,
    },
    /// There is something at the path that is not a socket.
    #[error("{} exists and is not a socket; move it away or choose another path", path.display())]
    NotASocket {
        /// The wanted path.
        path: PathBuf,
    },
    /// Paths of sockets are limited by the system.
    #[error("{} is too long for a socket path (at most 105 bytes); choose a shorter state folder", path.display())]
    PathTooLong {
        /// The wanted path.
        path: PathBuf,
    },
    /// Folder, file or owner cannot be made as wanted.
    #[error("{what}: {doing}: {source}")]
    Io {
        /// Address or path.
        what: String,
        /// The step that failed.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BindError {
    fn exit_code(&self) -> ExitCode {
        match self {
            BindError::TcpInUse { .. } | BindError::UnixInUse { .. } => exit::UNAVAILABLE,
            BindError::Privileged { .. } => exit::NOPERM,
            BindError::NoSuchAddress { .. } | BindError::PathTooLong { .. } => exit::CONFIG,
            BindError::NotASocket { .. } => exit::CANTCREAT,
            BindError::Io { source, .. } => code_for(source, exit::CANTCREAT),
        }
    }
}

fn code_for(source: &io::Error, otherwise: ExitCode) -> ExitCode {
    if source.kind() == io::ErrorKind::PermissionDenied { exit::NOPERM } else { otherwise }
}

fn lines(errors: &[BindError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
