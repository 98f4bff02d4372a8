//! Process start and supervision: sockets, privileges, sandbox, signals, logging.
//!
//! Purpose:   one supervisor starts every daemon as a child process of the same executable, hands it its listening
//!            sockets and its configuration slice, brings it back when it dies, and swaps both on reload.
//! Parent:    [`supervise`] is the whole life of the supervisor; it binds, starts, restarts, reloads, stops.
//! Child:     [`child_main`] performs the start ritual (slice, sockets, ids, sandbox, loop) and calls the daemon's
//!            `main` with a [`Start`]; inside its runtime the daemon talks to the supervisor through [`Control`].
//! Trust:     a child may be taken over by whoever talks to it. What it sends is size-limited and never a command;
//!            descriptors are accepted from the supervisor only.
//! Never:     put a secret into an argument or the environment, close a listening socket because a child died,
//!            run two supervisors on one state folder.

#[cfg(not(target_os = "linux"))]
compile_error!("Postern needs Linux: it relies on memfd, SO_PEERCRED, parent-death signals and landlock");

mod accept;
mod activation;
pub mod admin;
mod admission;
mod bind;
pub mod caps;
mod channel;
mod child;
mod control;
pub mod courier;
mod drain;
mod error;
pub mod exit;
pub mod figures;
mod folder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod harness;
mod lock;
pub mod logging;
mod plan;
pub mod sandbox;
pub mod seccomp;
pub mod spawn;
mod start;
mod supervisor;
mod trim;

pub use accept::{BareUnixListener, accept_tcp, accept_unix};
pub use admission::{Admission, Permit, Refused};
pub use bind::{holder_of, ip_available, listens_on};
pub use child::child_main;
pub use control::{Control, Event, GaugeGuard, Gauges, Question, StatusReader};
pub use drain::{Drain, DrainToken};
pub use error::{BindError, Error};
pub use exit::ExitCode;
pub use harness::{Standalone, standalone};
pub use lock::StateLock;
pub use plan::{Bind, Daemon, DaemonPlan, Ids, Plan, Slice, SocketSpec};
pub use start::{ControlFd, Sockets, Start};
pub use supervisor::{ChildExit, Handle, Hooks, OnChildExit, OnReady, SUPERVISOR, supervise};
