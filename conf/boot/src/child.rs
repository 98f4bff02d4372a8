//! The start ritual of a daemon process, and the ropes that tie it to its supervisor.
//!
//! Trust:  descriptor 0 is the control channel if, and only if, its peer is the parent process.
//! Never:  run a daemon's `main` with ids, limits or sandbox other than the start record says.

#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::channel::{self, Decoder, Descriptors, FromChild, Outgoing, StartRecord, ToChild};
use crate::control::{open_memory, parent};
use crate::exit::{self, ExitCode};
use crate::plan::Daemon;
use crate::sandbox::{self, Restricted, Status};
use crate::seccomp;
use crate::start::{ControlFd, Start};
use crate::{Error, caps, logging};

/// How long a daemon may use for its own ending once the supervisor is gone.
const AFTER_LOSS: Duration = Duration::from_millis(500);

/// Runs `daemon ROLE`: what the hidden subcommand calls, first thing in `main`, before any thread is started.
pub fn child_main(role: &str, daemons: &[Daemon]) -> ExitCode {
    match run(role, daemons) {
        Ok(()) => exit::OK,
        Err(error) => {
            if logging::is_set_up() {
                tracing::error!("{error:#}");
            } else {
                // Nothing better exists yet, and stderr may be closed.
                let _ = writeln!(io::stderr(), "{role}: {error:#}");
            }
            exit::code_of(&error, exit::FAILURE)
        }
    }
}

/// The ritual: slice, sockets, ids, sandbox, loop.
fn run(role: &str, daemons: &[Daemon]) -> anyhow::Result<()> {
    let daemon = daemons.iter().find(|daemon| daemon.role == role);
    let daemon = daemon.ok_or_else(|| Error::UnknownRole(role.to_owned()))?;
    let (stream, supervisor) = control_channel(role)?;
    let watched = stream.try_clone()?;
    let mut decoder = Decoder::new(Descriptors::Accepted);
    let frame = channel::recv_blocking(&stream, &mut decoder)?.context("the supervisor went away")?;
    let ToChild::Start(record) = frame.parse()? else {
        return Err(Error::Protocol("no start record".into()).into());
    };
    let mut record = *record;
    start_logging(role, &mut record)?;

    // Slice and sockets.
    let (slice, sockets) = crate::start::unpack(std::mem::take(&mut record.sockets), frame.fds)?;
    let memory = open_memory();

    // Ids.
    set_limits(role, &record)?;
    // While it is still root: later it may not.
    if let Some(kept) = &record.capabilities {
        caps::bound(kept).context("giving up capabilities")?;
    }
    become_user(&record).context("changing to the daemon's own user")?;
    tie_to(supervisor)?;

    // Sandbox.
    if let Some(kept) = &record.capabilities {
        caps::keep(kept).context("giving up capabilities")?;
    }
    let restricted = FromChild::Restricted(restrict(role, &record)?);
    watch_supervisor(watched)?;
    channel::send_blocking(&stream, Outgoing::new(&restricted, Vec::new())?)?;

    // Loop.
    let grace = Duration::from_millis(record.grace_ms);
    let role = role.to_owned();
    let supervisor = Some(supervisor);
    let control = ControlFd { stream, decoder, role: role.clone(), grace, memory, supervisor };
    (daemon.main)(Start { role, slice, sockets, control, grace })
}

/// Descriptor 0, moved away from where a library might read from it.
fn control_channel(role: &str) -> anyhow::Result<(UnixStream, u32)> {
    let by_hand = || Error::NotSupervised(role.to_owned());
    let stdin = io::stdin();
    // A terminal, pipe or file has no peer; the peer of a socket pair is the process that made it.
    let peer = getsockopt(&stdin, sockopt::PeerCredentials).map_err(|_| by_hand())?;
    let supervisor = parent();
    if u32::try_from(peer.pid()) != Ok(supervisor) {
        return Err(by_hand().into());
    }
    let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok((stream, supervisor))
}

fn start_logging(role: &str, record: &mut StartRecord) -> anyhow::Result<()> {
    let Some(mut options) = record.log.take() else { return Ok(()) };
    role.clone_into(&mut options.role);
    logging::init(&options).map_err(anyhow::Error::msg)
}

fn set_limits(role: &str, record: &StartRecord) -> anyhow::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("forbidding core files")?;
    raise_open_files(record.open_files);
    // Code of others (PAM modules) may lock memory; ours has no use for either.
    if record.profile != Some(seccomp::Profile::Worker) {
        setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).context("forbidding locked memory")?;
        setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0).context("forbidding message queues")?;
    }
    if let Some(memory) = record.memory {
        let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
        let memory = memory.min(hard);
        setrlimit(Resource::RLIMIT_DATA, memory, memory).context("limiting the memory")?;
    }
    for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        // The terminal sends these to the whole group; the supervisor decides what they mean.
        // SAFETY: ignoring a signal installs no handler, so no code runs in signal context; no other thread exists.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    // Started through /proc/self/exe, the process would be called "exe". The kernel keeps 15 bytes.
    if let Ok(name) = std::ffi::CString::new(format!("postern-{role:.7}")) {
        prctl::set_name(&name)?;
    }
    Ok(())
}

/// Raises the limit on open files to `wanted`, or as far as it goes.
pub(crate) fn raise_open_files(wanted: Option<u64>) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let goal = wanted.unwrap_or(hard);
    // Only root may go beyond the hard limit; without that right, up to it.
    if goal > hard && setrlimit(Resource::RLIMIT_NOFILE, goal, goal).is_ok() {
        return;
    }
    let goal = goal.min(hard);
    if goal > soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, goal, hard)
    {
        tracing::warn!(%error, "the limit on open files stays at {soft}");
    }
}

/// Groups, group, user: the other order would lack the rights for the rest. Checked afterwards, because a half-done
/// change is worse than none.
fn become_user(record: &StartRecord) -> anyhow::Result<()> {
    let (Some(uid), Some(gid)) = (record.uid, record.gid) else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if Uid::effective().is_root() {
        let groups: Vec<Gid> = record.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    let (users, groups) = (getresuid()?, getresgid()?);
    let users_right = [users.real, users.effective, users.saved].iter().all(|one| *one == uid);
    let groups_right = [groups.real, groups.effective, groups.saved].iter().all(|one| *one == gid);
    if !users_right || !groups_right {
        anyhow::bail!(exit::Coded::new(exit::NOPERM, format!("could not become uid {uid}, gid {gid}")));
    }
    if !uid.is_root() && setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        anyhow::bail!(exit::Coded::new(exit::NOPERM, "root could be regained after giving it up"));
    }
    Ok(())
}

/// Not dumpable, and TERM when the supervisor dies. A change of ids resets both, so it comes after that.
fn tie_to(supervisor: u32) -> anyhow::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    anyhow::ensure!(parent() == supervisor, "the supervisor went away");
    Ok(())
}

fn restrict(role: &str, record: &StartRecord) -> anyhow::Result<Restricted> {
    if record.no_new_privs {
        prctl::set_no_new_privs()?;
    }
    let mut restricted = Restricted { dumpable: prctl::get_dumpable()?, ..Restricted::default() };
    if !record.files.is_empty() && record.sandbox == seccomp::Mode::On {
        let status = sandbox::restrict_files(&record.files).context("restricting files")?;
        restricted.landlock = Some(status);
        match status {
            Status::Full => {}
            Status::Partial => tracing::debug!(role, "this kernel restricts files only in part"),
            Status::None => {
                tracing::warn!(role, "files are not restricted: landlock is missing or too old here");
            }
        }
    }
    // seccomp(2): a process that may still gain rights gets a filter only with CAP_SYS_ADMIN, which nobody here keeps.
    if let Some(profile) = record.profile.filter(|_| record.no_new_privs) {
        match seccomp::restrict(profile, record.sandbox) {
            Ok(true) => {
                restricted.seccomp = Some(profile);
                restricted.log_only = record.sandbox == seccomp::Mode::Log;
            }
            Ok(false) => {}
            // A kernel without filters is no reason to refuse mail.
            Err(error) => tracing::warn!(role, %error, "system calls are not restricted on this kernel"),
        }
    }
    Ok(restricted)
}

/// The rope that holds whatever the daemon's runtime is doing: a thread that waits for the end of the channel only.
fn watch_supervisor(channel: UnixStream) -> io::Result<()> {
    let watch = move || {
        loop {
            let mut watched = [PollFd::new(channel.as_fd(), PollFlags::empty())];
            match poll(&mut watched, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => {}
                // Only hang-up and error are reported when nothing is asked for.
                _ => break,
            }
        }
        std::thread::sleep(AFTER_LOSS);
        // Not `exit`: its handlers may wait for a lock that a busy thread holds.
        let _ = raise(Signal::SIGKILL);
    };
    std::thread::Builder::new().name("lifeline".into()).stack_size(64 << 10).spawn(watch)?;
    Ok(())
}
