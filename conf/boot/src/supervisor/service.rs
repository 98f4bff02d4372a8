//! One daemon of the plan: what it is to run with, its process if there is one, its waiting time if there is none.
//!
//! Trust: nobody; made of the plan, which is the program's own.
//! Never: keep a slice in the supervisor's own memory: it is a sealed descriptor from the beginning.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::backoff::Backoff;
use super::process::Process;
use crate::admin::{self, State};
use crate::bind::Bound;
use crate::caps::Capability;
use crate::channel::{SocketEntry, StartRecord, ToChild};
use crate::logging::LogOptions;
use crate::plan::{Bind, DaemonPlan, Ids};
use crate::sandbox::Access;
use crate::seccomp::{Mode, Profile};
use crate::start::seal;

/// What a process cannot change once it runs: a difference means a new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    ids: Option<Ids>,
    no_new_privs: bool,
    capabilities: Option<Vec<Capability>>,
    profile: Option<Profile>,
    sandbox: Mode,
    files: Vec<Access>,
    open_files: Option<u64>,
    memory: Option<u64>,
}

impl Identity {
    pub(super) fn files(&self) -> &[Access] {
        &self.files
    }

    pub(super) fn keep_files(&mut self, files: Vec<Access>) {
        self.files = files;
    }

    /// Whether a process that was started with `self` will do. It cannot get files back that it once gave up; what it may reach
    /// beyond the new list does no harm until the next start, and sessions survive.
    pub(super) fn will_do_for(&self, new: &Identity) -> bool {
        let reaches = |file: &Access| self.files.is_empty() || self.files.contains(file);
        let files = (self.files.is_empty() == new.files.is_empty()) && new.files.iter().all(reaches);
        files && Self { files: Vec::new(), ..self.clone() } == Self { files: Vec::new(), ..new.clone() }
    }
}

pub(super) struct Service {
    pub(super) role: &'static str,
    pub(super) tier: u8,
    pub(super) identity: Identity,
    pub(super) sockets: Vec<(String, Bound)>,
    /// The sealed configuration; the bytes themselves are not kept in the supervisor's memory.
    slice: OwnedFd,
    pub(super) reads_status: bool,
    grace: Duration,
    log: Option<LogOptions>,
    pub(super) process: Option<Process>,
    /// When to start it (again).
    pub(super) start_at: Option<Instant>,
    pub(super) restarts: u64,
    pub(super) backoff: Backoff,
    /// No longer in the plan.
    pub(super) leaving: bool,
}

impl Service {
    /// Takes the configuration over from the plan. `sockets` are in the order of the plan's.
    pub(super) fn new(
        plan: DaemonPlan,
        sockets: Vec<Bound>,
        grace: Duration,
        log: Option<LogOptions>,
    ) -> io::Result<Self> {
        let names = plan.sockets.into_iter().map(|spec| spec.name);
        Ok(Self {
            role: plan.role,
            tier: plan.tier,
            identity: Identity {
                ids: plan.ids,
                no_new_privs: plan.no_new_privs,
                capabilities: plan.capabilities,
                profile: plan.profile,
                sandbox: plan.sandbox,
                files: plan.files,
                open_files: plan.open_files,
                memory: plan.memory,
            },
            sockets: names.zip(sockets).collect(),
            slice: seal(&plan.slice)?,
            reads_status: plan.reads_status,
            grace,
            log,
            process: None,
            start_at: None,
            restarts: 0,
            backoff: Backoff::default(),
            leaving: false,
        })
    }

    /// Takes on the configuration of a new plan; process and counters stay.
    pub(super) fn adopt(&mut self, next: Service) {
        self.tier = next.tier;
        self.identity = next.identity;
        self.sockets = next.sockets;
        self.slice = next.slice;
        self.reads_status = next.reads_status;
        self.grace = next.grace;
        self.log = next.log;
        self.leaving = false;
    }

    /// The start record and its descriptors.
    pub(super) fn start_message(&self) -> io::Result<(ToChild, Vec<OwnedFd>)> {
        let ids = self.identity.ids.as_ref();
        let record = StartRecord {
            sockets: self.entries(),
            uid: ids.map(|ids| ids.uid),
            gid: ids.map(|ids| ids.gid),
            groups: ids.map(|ids| ids.groups.clone()).unwrap_or_default(),
            no_new_privs: self.identity.no_new_privs,
            capabilities: self.identity.capabilities.clone(),
            profile: self.identity.profile,
            sandbox: self.identity.sandbox,
            files: self.identity.files.clone(),
            open_files: self.identity.open_files,
            memory: self.identity.memory,
            grace_ms: millis(self.grace),
            log: self.log.clone(),
        };
        Ok((ToChild::Start(Box::new(record)), self.descriptors()?))
    }

    /// The reload message and its descriptors.
    pub(super) fn reload_message(&self) -> io::Result<(ToChild, Vec<OwnedFd>)> {
        Ok((ToChild::Reload { sockets: self.entries(), log: self.log.clone() }, self.descriptors()?))
    }

    /// Tells the process to stop; it is killed when the grace time is over. Telling it again changes nothing.
    pub(super) fn stop(&mut self, now: Instant) {
        let grace = self.grace;
        let Some(process) = self.process.as_mut().filter(|process| process.kill_at.is_none()) else { return };
        // A moment on top: the daemon itself ends its connections when the grace time is over.
        process.kill_at = Some(now + grace + Duration::from_millis(250));
        if let Err(error) = process.tell(&ToChild::Stop { grace_ms: millis(grace) }, Vec::new()) {
            tracing::warn!(role = self.role, error, "cannot be told to stop; killing it");
            process.kill_at = Some(now);
        }
    }

    pub(super) fn uid(&self) -> u32 {
        self.identity.ids.as_ref().map_or_else(|| nix::unistd::geteuid().as_raw(), |ids| ids.uid)
    }

    pub(super) fn status(&self) -> admin::Process {
        let process = self.process.as_ref();
        let stats = process.and_then(|process| process.stats.as_ref());
        let state = match process {
            None => State::Backoff,
            Some(process) if process.kill_at.is_some() => State::Stopping,
            Some(process) if process.ready => State::Ready,
            Some(_) => State::Starting,
        };
        admin::Process {
            role: self.role.to_owned(),
            pid: process.map(|process| process.pid),
            uid: self.uid(),
            since: process.and_then(|process| Some(process.since.duration_since(UNIX_EPOCH).ok()?.as_secs())),
            restarts: self.restarts,
            connections: stats.map(|stats| stats.connections),
            total: stats.map(|stats| stats.total),
            memory_kib: stats.and_then(|stats| stats.memory_kib),
            restricted: process.and_then(|process| process.restricted),
            sockets: self.sockets.iter().map(|(_, bound)| bound.bind.to_string()).collect(),
            state,
            answers: process.is_some_and(|process| process.answered),
            helpers: stats.map(|stats| stats.helpers.clone()).unwrap_or_default(),
            figures: stats.map(|stats| stats.figures.clone()).unwrap_or_default(),
        }
    }

    fn entries(&self) -> Vec<SocketEntry> {
        let entry = |(name, bound): &(String, Bound)| SocketEntry {
            name: name.clone(),
            unix: matches!(bound.bind, Bind::Unix { .. }),
        };
        self.sockets.iter().map(entry).collect()
    }

    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let sockets = self.sockets.iter().map(|(_, bound)| bound.share());
        std::iter::once(self.slice.try_clone()).chain(sockets).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
