//! Worker processes from outside (starting, killing, what they died of) and the ropes inside one that tie it to its
//! daemon.
//!
//! Trust:  modules are other people's programs: they hang, crash, close descriptors and start processes.
//! Never:  outlive the daemon, leave a helper behind, or signal a number that may be another process's by now.
//! Groups: a worker leads a process group of its own, so that a Ctrl-C at the terminal is not for it.
//! Helpers: what its modules started goes with it, also what left the group (`pam_exec` starts sessions).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{self, Signal, killpg, raise};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, getpgrp, getpid, getppid};

/// The role behind `daemon`.
const ROLE: &str = "auth-worker";
/// `FD_SETSIZE`: what modules that use `select` can take.
const MOST_FILES: u64 = 1024;
/// A module that leaks without end hits this before the machine does.
const MOST_MEMORY: u64 = 1 << 30;
/// No module starts more.
const MOST_HELPERS: usize = 256;

/// Starts `EXECUTABLE daemon auth-worker` with one end of a socket pair as its standard input.
pub(super) fn spawn() -> io::Result<(UnixStream, Option<Child>)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, Some(start(theirs, Stdio::null())?)))
}

/// Starts a worker that answers on a connection of somebody else. It also gets one end of a socket pair: by the other
/// end it sees this process go, and this process sees it go.
pub(super) fn spawn_for(connection: UnixStream) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = start(connection, Stdio::from(OwnedFd::from(theirs)))?;
    Ok((ours, child))
}

fn start(channel: UnixStream, stdout: Stdio) -> io::Result<Child> {
    // Also right after the file was replaced by an upgrade: the link leads to the running program.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("postern")
        .args(["daemon", ROLE])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(channel)))
        .stdout(stdout);
    command.spawn()
}

/// Kills the process and its helpers. It may hang in a module, so it is not asked to end. Gives what it died of, if
/// it was dead already.
pub(super) fn end(mut child: Child) -> String {
    kill(&mut child);
    match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => format!("its end could not be seen: {error}"),
    }
}

fn kill(child: &mut Child) {
    // Not reaped yet, so the number is still this process's own.
    if let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) {
        // Stopped, it starts no more helpers.
        let _ = signal::kill(pid, Signal::SIGSTOP);
        kill_helpers(pid);
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let _ = child.kill();
}

/// Kills everything that descends from a process. Each is stopped before its own children are looked for: then none
/// of them is reaped, and no number is used anew.
fn kill_helpers(pid: Pid) {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        for helper in children(parent) {
            if found.len() < MOST_HELPERS {
                let _ = signal::kill(helper, Signal::SIGSTOP);
                found.push(helper);
            }
        }
    }
    // The deepest first: a module that waits for its helper goes on only when all are gone.
    for helper in found.into_iter().skip(1).rev() {
        let _ = signal::kill(helper, Signal::SIGKILL);
    }
}

/// Kernels without `CONFIG_PROC_CHILDREN` name none; the group is killed there as everywhere.
fn children(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(parse).collect::<Vec<_>>()).collect()
}

fn parse(text: &str) -> Option<Pid> {
    text.parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

/// Kills the process; a thread waits for its end.
pub(super) fn abandon(mut child: Child) {
    kill(&mut child);
    std::thread::Builder::new()
        .name("reaper".into())
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map(drop)
        .unwrap_or_else(|error| tracing::warn!(%error, "a dead worker could not be reaped"));
}

/// Inside a worker: takes over the channel to the daemon, and makes sure that the process ends with it. The thread that
/// sees to that never returns; it ends the process.
pub(super) fn settle() -> anyhow::Result<(UnixStream, JoinHandle<()>)> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut watched = Vec::new();
    if !from_parent(stdin.as_fd()) {
        // A manager's worker: the channel is a connection, and the rope to the manager is the other descriptor.
        if !from_parent(stdout.as_fd()) {
            return Err(boot::Error::NotSupervised(ROLE.to_owned()).into());
        }
        watched.push(stdout.as_fd().try_clone_to_owned()?);
        nix::unistd::dup2_stdout(std::fs::File::options().write(true).open("/dev/null")?)?;
    }
    let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    // A module that reads standard input must not get the next question.
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    // Passwords pass through: no core file, no look by others of the same uid.
    prctl::set_dumpable(false)?;
    set_limits();
    let _ = prctl::set_name(c"postern-authw");
    watched.push(stream.try_clone()?.into());
    let lifeline = watch(watched)?;
    Ok((stream, lifeline))
}

/// A terminal, pipe or file has no peer; the peer of a socket pair is the process that made it.
fn from_parent(fd: BorrowedFd<'_>) -> bool {
    getsockopt(&fd, sockopt::PeerCredentials).is_ok_and(|peer| peer.pid() == getppid().as_raw())
}

/// Modules are other people's programs: some count on `select`, some close every descriptor there could be, some leak.
fn set_limits() {
    let lower = |resource, to: u64| {
        if let Ok((_, hard)) = getrlimit(resource) {
            let _ = setrlimit(resource, to.min(hard), to.min(hard));
        }
    };
    lower(Resource::RLIMIT_CORE, 0);
    lower(Resource::RLIMIT_NOFILE, MOST_FILES);
    lower(Resource::RLIMIT_DATA, MOST_MEMORY);
}

/// Waits until somebody hangs up at the other end of one of these.
pub(super) fn wait_for_hang_up(watched: &[BorrowedFd<'_>]) {
    loop {
        let mut watched: Vec<PollFd<'_>> =
            watched.iter().map(|fd| PollFd::new(*fd, PollFlags::empty())).collect();
        match poll(&mut watched, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            // Only hang-up and error are reported when nothing is asked for.
            _ => return,
        }
    }
}

/// A thread that waits for the end of a channel, whatever the thread that answers is blocked in.
fn watch(channels: Vec<OwnedFd>) -> io::Result<JoinHandle<()>> {
    let watch = move || {
        let channels: Vec<_> = channels.iter().map(std::os::fd::AsFd::as_fd).collect();
        wait_for_hang_up(&channels);
        // Again and again, for nothing tells when the last helper was started: the other thread may be starting one, and
        // goes on in its module when one is gone.
        for _ in 0..10 {
            kill_helpers(getpid());
            std::thread::sleep(Duration::from_millis(10));
        }
        if getpgrp() == getpid() {
            let _ = killpg(getpgrp(), Signal::SIGKILL);
        }
        let _ = raise(Signal::SIGKILL);
    };
    std::thread::Builder::new().name("lifeline".into()).stack_size(64 << 10).spawn(watch)
}
