//! Processes that a daemon starts itself, as another account: the mailboxes of system users.
//!
//! The child goes through the same ritual as a daemon of the supervisor's; its supervisor is the daemon that started it,
//! and it ends when that does. It takes streams ([`Helper::hand`]) and tells what it likes to ([`Control::note`]).
//!
//! Trust:  a helper may be taken over by whoever it serves; what it says is size-limited and carries no descriptors.
//! Never:  let a helper outlive the daemon that started it, or take descriptors from one.
//!
//! [`Control::note`]: crate::Control::note

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::channel::{self, Decoder, Descriptors, FromChild, Outgoing, StartRecord, ToChild};
use crate::logging::LogOptions;
use crate::plan::{Ids, Slice};
use crate::sandbox::Restricted;
use crate::seccomp::{Mode, Profile};
use crate::start::seal;

/// How a helper is set up.
#[derive(Clone, Debug)]
pub struct HelperPlan {
    /// Role: one of the executable's daemons.
    pub role: &'static str,
    /// Whom it runs as.
    pub ids: Ids,
    /// Its configuration.
    pub slice: Slice,
    /// How it logs. `None`: not at all.
    pub log: Option<LogOptions>,
    /// Time for what is in flight when it is told to stop.
    pub grace: Duration,
    /// Limit on open files.
    pub open_files: Option<u64>,
    /// Limit on its memory in bytes.
    pub memory: Option<u64>,
    /// Which system calls it may make.
    pub profile: Option<Profile>,
    /// How strictly it is restricted.
    pub sandbox: Mode,
}

/// A process this one has started.
#[derive(Debug)]
pub struct Helper {
    stream: tokio::net::UnixStream,
    decoder: Decoder,
    child: Child,
    ready: bool,
}

/// What a helper says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Said {
    /// What it is kept from; once more when it has restricted itself further. Nothing it says after [`Said::Ready`].
    Restricted(Restricted),
    /// It is ready.
    Ready,
    /// What its role means by it.
    Note(Value),
}

impl Helper {
    /// Starts it. Call on the main thread, inside its runtime: the helper's life is tied to the calling thread's.
    ///
    /// # Errors
    /// What the system refuses.
    pub async fn start(plan: &HelperPlan) -> io::Result<Self> {
        let slice = seal(&plan.slice)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(ours)?;
        let child = crate::supervisor::spawn_role(plan.role, theirs.into())?;
        let mut helper = Self { stream, decoder: Decoder::new(Descriptors::Refused), child, ready: false };
        let record = StartRecord {
            uid: Some(plan.ids.uid),
            gid: Some(plan.ids.gid),
            groups: plan.ids.groups.clone(),
            no_new_privs: true,
            profile: plan.profile,
            sandbox: plan.sandbox,
            open_files: plan.open_files,
            memory: plan.memory,
            grace_ms: millis(plan.grace),
            log: plan.log.clone(),
            ..StartRecord::default()
        };
        if let Err(error) = helper.tell(&ToChild::Start(Box::new(record)), vec![slice]).await {
            helper.kill();
            let _ = helper.child.wait();
            return Err(error);
        }
        Ok(helper)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands over a stream, with what its role needs to know about it; or only tells it something.
    ///
    /// # Errors
    /// It is gone.
    pub async fn hand(&self, body: Value, stream: Option<OwnedFd>) -> io::Result<()> {
        self.tell(&ToChild::Hand { body }, stream.into_iter().collect()).await
    }

    /// Gives it a new configuration.
    ///
    /// # Errors
    /// It is gone.
    pub async fn reload(&self, slice: &Slice, log: Option<LogOptions>) -> io::Result<()> {
        self.tell(&ToChild::Reload { sockets: Vec::new(), log }, vec![seal(slice)?]).await
    }

    /// Tells it to finish within this time.
    ///
    /// # Errors
    /// It is gone.
    pub async fn stop(&self, grace: Duration) -> io::Result<()> {
        self.tell(&ToChild::Stop { grace_ms: millis(grace) }, Vec::new()).await
    }

    /// What it says next; `None`: it has ended, or talks nonsense. Cancel-safe.
    pub async fn said(&mut self) -> Option<Said> {
        loop {
            let frame = match channel::recv(&self.stream, &mut self.decoder).await {
                Ok(frame) => frame?,
                Err(error) => {
                    tracing::warn!(pid = self.child.id(), %error, "a helper's channel is broken");
                    return None;
                }
            };
            match frame.parse::<FromChild>() {
                Ok(FromChild::Ready) => {
                    self.ready = true;
                    return Some(Said::Ready);
                }
                // One that is taken over later must not change what is shown of it.
                Ok(FromChild::Restricted(restricted)) if !self.ready => {
                    return Some(Said::Restricted(restricted));
                }
                Ok(FromChild::Note { body }) => return Some(Said::Note(body)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(pid = self.child.id(), %error, "a helper's channel is broken");
                    return None;
                }
            }
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It is not reaped yet, so the pid is its own; an error means that it has ended.
        let _ = self.child.kill();
    }

    /// Waits for its end. Cancel-safe.
    ///
    /// # Errors
    /// What the system refuses.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        // Listened to before the first look: no end falls in between.
        let mut ends = signal(SignalKind::child())?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ends.recv().await;
        }
    }

    async fn tell(&self, message: &ToChild, fds: Vec<OwnedFd>) -> io::Result<()> {
        let frame = Outgoing::new(message, fds).map_err(io::Error::other)?;
        channel::send(&self.stream, frame).await.map_err(io::Error::other)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Whoever it runs as may have stopped it; then it could not end with this process.
        if matches!(self.child.try_wait(), Ok(None))
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGCONT);
        }
    }
}

/// The descriptor of a connection, for [`Helper::hand`].
///
/// # Errors
/// When the system gives no further descriptor.
pub fn descriptor(stream: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
