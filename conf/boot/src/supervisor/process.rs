//! One daemon process as the supervisor sees it.
//!
//! Trust:  the daemon at the other end may be taken over: it may send no descriptors, and one broken frame ends the
//!         reading.
//! Never:  put anything about the configuration into arguments or environment; leave a descriptor of the supervisor
//!         open in a daemon.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::{Input, Instance};
use crate::channel::{self, Decoder, Descriptors, FromChild, Outgoing, Stats, ToChild};
use crate::sandbox::Restricted;

/// What daemons inherit; everything else may hold secrets or mean something else to a library.
const ENVIRONMENT: [&str; 11] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "TZ",
    "TERM",
    "NO_COLOR",
    "RUST_BACKTRACE",
    "JOURNAL_STREAM",
    "LD_LIBRARY_PATH",
];
/// Frames that may wait for a daemon that does not read. Descriptors wait with them, so there are few.
const QUEUE: usize = 32;

pub(super) struct Process {
    pub(super) instance: Instance,
    pub(super) pid: u32,
    pub(super) since: SystemTime,
    pub(super) started: Instant,
    pub(super) ready: bool,
    /// When it was told to stop, the moment it will be killed.
    pub(super) kill_at: Option<Instant>,
    pub(super) stats: Option<Stats>,
    /// What it says its start ritual has done.
    pub(super) restricted: Option<Restricted>,
    /// It has answered the last question for its figures.
    pub(super) answered: bool,
    child: Child,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Process {
    /// Starts `daemon ROLE` of this executable, with the control channel as descriptor 0.
    /// Must run on the supervisor's main thread: the parent-death signal follows the thread that forks.
    pub(super) fn start(role: &str, instance: Instance, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(ours)?;
        let child = spawn(role, theirs.into())?;
        let pid = child.id();
        let (outgoing, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(drive(stream, instance, waiting, inputs));
        Ok(Self {
            instance,
            pid,
            since: SystemTime::now(),
            started: Instant::now(),
            ready: false,
            kill_at: None,
            stats: None,
            restricted: None,
            answered: false,
            child,
            outgoing,
        })
    }

    /// Queues a message. An error is its own sentence.
    pub(super) fn tell(&self, message: &ToChild, fds: Vec<OwnedFd>) -> Result<(), String> {
        let frame = Outgoing::new(message, fds).map_err(|error| error.to_string())?;
        self.outgoing.try_send(frame).map_err(|_| "it does not read its control channel".to_owned())
    }

    /// Sends the status when the answer is there, if the process is still.
    pub(super) fn tell_status(&self, id: u64, answer: tokio::sync::oneshot::Receiver<crate::admin::Answer>) {
        let outgoing = self.outgoing.clone();
        tokio::spawn(async move {
            let Ok(Ok(crate::admin::Response::Status(status))) = answer.await else { return };
            match Outgoing::new(&ToChild::Status { id, status }, Vec::new()) {
                // A full queue: it asks faster than it reads.
                Ok(frame) => drop(outgoing.try_send(frame)),
                Err(error) => tracing::warn!(%error, "the status is too long to be told"),
            }
        });
    }

    /// Whether it has ended, and how.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        match self.child.try_wait() {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(%error, pid = self.pid, "waiting for a daemon failed");
                None
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // The child is not reaped yet, so the pid is still its own.
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// `code 1`, `killed by SIGSEGV`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
        (None, None) => "for an unknown reason".to_owned(),
    }
}

pub(crate) fn spawn(role: &str, control: OwnedFd) -> io::Result<Child> {
    // Also right after the file was replaced by an upgrade: the link leads to the running program.
    let mut command = Command::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_else(|| OsString::from("postern"));
    command.arg0(name).arg("daemon").arg(role);
    command.env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.current_dir("/").stdin(Stdio::from(control)).stdout(Stdio::null());
    let limit = open_files_limit();
    // SAFETY: between fork and exec the closure only makes system calls (close_range, fcntl) on plain numbers: it does not
    // allocate, lock or touch memory of other threads.
    unsafe { command.pre_exec(move || close_on_exec(limit)) };
    command.spawn()
}

fn open_files_limit() -> RawFd {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    limit.ok().and_then(|(soft, _)| RawFd::try_from(soft).ok()).unwrap_or(RawFd::MAX).min(1 << 16)
}

/// Marks all descriptors above 2 close-on-exec, also those this program was itself started with.
fn close_on_exec(limit: RawFd) -> io::Result<()> {
    // SAFETY: marking a descriptor close-on-exec closes nothing here and touches no memory; closed numbers are skipped.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Linux before 5.11.
    for fd in 3..limit {
        // SAFETY: as above; an error means that the number is not open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Carries frames both ways until the process closes its end or the supervisor forgets it.
async fn drive(
    stream: tokio::net::UnixStream,
    instance: Instance,
    mut waiting: mpsc::Receiver<Outgoing>,
    inputs: mpsc::Sender<Input>,
) {
    let write = async {
        while let Some(frame) = waiting.recv().await {
            if channel::send(&stream, frame).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut decoder = Decoder::new(Descriptors::Refused);
        loop {
            let message = match channel::recv(&stream, &mut decoder).await {
                Ok(None) => return,
                Ok(Some(frame)) => frame.parse::<FromChild>(),
                Err(error) => Err(error),
            };
            let broken = message.is_err();
            let input = match message {
                Ok(message) => Input::Said { instance, message },
                Err(error) => Input::Broken { instance, error: error.to_string() },
            };
            if inputs.send(input).await.is_err() || broken {
                return;
            }
        }
    };
    // The channel lives as long as the supervisor wants to say something, even to a daemon that says nothing more:
    // its end would be our death to the other side.
    tokio::join!(write, read);
}
