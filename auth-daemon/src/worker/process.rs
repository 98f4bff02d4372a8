//! Worker processes from outside (starting, killing, what they died of) and the ropes inside one that tie it to its
//! daemon.
//!
//! Groups: a worker leads a process group of its own, so that a Ctrl-C at the terminal is not for it.
//! Helpers: what its modules started goes with it, also what left the group (`pam_exec` starts sessions).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{self, Signal, killpg, raise};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, getpgrp, getpid, getppid};

/// The role behind `daemon`.
const ROLE: &str = "auth-worker";
/// No module starts more.
const MOST_HELPERS: usize = 256;

/// Starts `EXECUTABLE daemon auth-worker` with one end of a socket pair as its standard input.
pub(super) fn spawn() -> io::Result<(UnixStream, Option<Child>)> {
    let (ours, theirs) = UnixStream::pair()?;
    // Also right after the file was replaced by an upgrade: the link leads to the running program.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("postern")
        .args(["daemon", ROLE])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    Ok((ours, Some(command.spawn()?)))
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

/// Inside a worker: takes over the channel to the daemon, and makes sure that the process ends with it.
pub(super) fn settle() -> anyhow::Result<UnixStream> {
    let by_hand = || boot::Error::NotSupervised(ROLE.to_owned());
    let stdin = io::stdin();
    // A terminal, pipe or file has no peer; the peer of a socket pair is the process that made it.
    let peer = getsockopt(&stdin, sockopt::PeerCredentials).map_err(|_| by_hand())?;
    if peer.pid() != getppid().as_raw() {
        return Err(by_hand().into());
    }
    let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    // A module that reads standard input must not get the next question.
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    // Passwords pass through: no core file, no look by others of the same uid.
    prctl::set_dumpable(false)?;
    let _ = prctl::set_name(c"postern-authw");
    watch(stream.try_clone()?)?;
    Ok(stream)
}

/// How long [`watch`] may need to end the process.
pub(super) const ENDING: Duration = Duration::from_millis(500);

/// A thread that waits for the end of the channel, whatever the thread that answers is blocked in.
fn watch(channel: UnixStream) -> io::Result<()> {
    let watch = move || {
        loop {
            let mut watched = [PollFd::new(channel.as_fd(), PollFlags::empty())];
            match poll(&mut watched, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => {}
                // Only hang-up and error are reported when nothing is asked for.
                _ => break,
            }
        }
        // Again and again: the other thread may be starting one, and goes on in its module when one is gone.
        for _ in 0..10 {
            kill_helpers(getpid());
            std::thread::sleep(Duration::from_millis(10));
        }
        if getpgrp() == getpid() {
            let _ = killpg(getpgrp(), Signal::SIGKILL);
        }
        let _ = raise(Signal::SIGKILL);
    };
    std::thread::Builder::new().name("lifeline".into()).stack_size(64 << 10).spawn(watch).map(drop)
}
