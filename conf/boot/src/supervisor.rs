//! The supervisor: one loop that owns sockets, processes and reloads.
//!
//! Start:    plan, lock, sockets, admin socket, daemons. A mistake before the first daemon runs ends it with an exit
//!           code; afterwards a daemon that dies is started again, and its sockets stay open meanwhile.
//! Reload:   the planner is asked again. All that can fail is done before anything changes; then sockets that stayed
//!           the same are handed over as they are, new ones added, old ones closed when every daemon has acknowledged.
//! Stop:     highest tier first, the next tier when that one is gone; KILL when the grace time is over.
//! Threads:  everything runs on the caller's thread, which must stay alive: the kernel ties the daemons to it
//!           (PR_SET_PDEATHSIG).
//! Trust:    daemons may be taken over: what breaks the protocol is killed, figures are cut to what is believable,
//!           and only the daemon whose plan says so may ask for the status. Admin requests come from root and the own
//!           uid (`admin.rs`).
//! Never:    read a byte of a mail client, or close a listening socket because its daemon has died.

mod backoff;
mod process;
mod reload;
mod service;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::activation::Activated;
use crate::admin::{self, Answer, Asked, Request, Response, State, Status};
use crate::bind::Bound;
use crate::caps::{self, Capability};
use crate::channel::{FromChild, Stats, ToChild};
use crate::control::{memory_kib, open_memory};
use crate::exit::{self, ExitCode};
use crate::lock::StateLock;
use crate::plan::{Bind, Daemon, Plan};
use crate::sandbox::Restricted;
use crate::{Error, logging};
pub(crate) use process::spawn as spawn_role;
use process::{Process, describe};
use reload::Reloading;
use service::Service;

/// Grace time of a plan that gives none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// How long `postern status` waits for the daemons' numbers.
const STATS_WITHIN: Duration = Duration::from_secs(2);
/// How long a daemon may think about an admin question.
const ANSWER_WITHIN: Duration = Duration::from_secs(50);
/// These codes of a daemon that was never ready mean that starting it again cannot help.
const HOPELESS: [ExitCode; 4] = [exit::EX_USAGE, exit::CANTCREAT, exit::NOPERM, exit::CONFIG];

/// What a supervisor that is root keeps of its power: ids for the daemons and signals to them, sockets in folders of others
/// with the right owners, privileged ports, high limits. Workers that run as root for the sake of their PAM modules get no
/// more.
pub const SUPERVISOR: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysResource,
    Capability::AuditWrite,
];

/// Steers a running supervisor from another thread.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::UnboundedSender<Command>);

impl Handle {
    /// Stops the stack in order; [`supervise`] then returns this code.
    pub fn stop(&self, code: ExitCode) {
        // Fails when the supervisor has ended, which is what was wanted.
        let _ = self.0.send(Command::Stop(code));
    }

    /// Asks for a reload, as HUP does.
    pub fn reload(&self) {
        let _ = self.0.send(Command::Reload);
    }
}

#[derive(Debug)]
enum Command {
    Stop(ExitCode),
    Reload,
}

/// A daemon process that ended.
#[derive(Clone, Debug)]
pub struct ChildExit {
    /// Its role.
    pub role: &'static str,
    /// Its pid.
    pub pid: u32,
    /// In words: `code 1`, `killed by SIGKILL`.
    pub how: String,
    /// Whether it was told to stop.
    pub expected: bool,
}

/// See [`Hooks::on_ready`].
pub type OnReady = Box<dyn FnOnce(Handle) + Send>;
/// See [`Hooks::on_child_exit`].
pub type OnChildExit = Box<dyn FnMut(&ChildExit) + Send>;

/// What the caller wants to be told.
#[derive(Default)]
pub struct Hooks {
    /// Called once, on its own thread, when every daemon has said that it is ready.
    pub on_ready: Option<OnReady>,
    /// Called for every daemon process that ends. Must not block.
    pub on_child_exit: Option<OnChildExit>,
    /// The lock of the state folder when the caller took it already (before writing there).
    pub lock: Option<StateLock>,
}

/// Runs the stack until it is told to stop. Call on the main thread, outside any runtime.
///
/// TERM and INT stop it (a second one at once), HUP reloads it, USR1 does nothing.
pub fn supervise(
    planner: impl FnMut() -> anyhow::Result<Plan>,
    daemons: &[Daemon],
    hooks: Hooks,
) -> ExitCode {
    match start(planner, daemons, hooks) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            let code = exit::code_of(&error, exit::FAILURE);
            // Rights, folders, sockets: the reason is often somewhere else than where it hurts.
            if [exit::UNAVAILABLE, exit::CANTCREAT, exit::NOPERM].contains(&code)
                || format!("{error:#}").contains("Permission denied")
            {
                report(&anyhow::anyhow!("run `postern doctor`: it looks at everything on the way"));
            }
            code
        }
    }
}

fn start<P: FnMut() -> anyhow::Result<Plan>>(
    mut planner: P,
    daemons: &[Daemon],
    mut hooks: Hooks,
) -> anyhow::Result<ExitCode> {
    // The supervisor holds keys while it makes slices of them.
    umask(Mode::from_bits_truncate(0o077));
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    crate::child::raise_open_files(None);

    let plan = planner().map_err(|error| match exit::code_of(&error, exit::FAILURE) {
        exit::FAILURE => error.context(exit::Coded::new(exit::CONFIG, "the configuration cannot be used")),
        _ => error,
    })?;
    if let Some(options) = &plan.log {
        logging::init(options).map_err(anyhow::Error::msg)?;
    }
    let lock = match hooks.lock.take() {
        Some(lock) => Some(lock),
        None if plan.pid_file.as_os_str().is_empty() => None,
        None => Some(StateLock::acquire(&plan.pid_file)?),
    };
    reload::check(&plan, daemons)?;
    let mut activated = Activated::take();
    let specs: Vec<_> = plan.daemons.iter().flat_map(|daemon| &daemon.sockets).collect();
    let sockets = crate::bind::obtain(&specs, &[], &mut activated).map_err(Error::Bind)?;
    activated.report_unclaimed();
    let admin = (!plan.control_socket.as_os_str().is_empty())
        .then(|| Bind::Unix { path: plan.control_socket.clone(), mode: 0o600, owner: None, group: None })
        .map(|bind| Bound::new(&bind).map_err(|error| Error::Bind(vec![error])))
        .transpose()?;

    // From here on; who holds a port that is taken could be seen with root's whole power only.
    if nix::unistd::geteuid().is_root() {
        caps::bound(SUPERVISOR).and_then(|()| caps::keep(SUPERVISOR)).map_err(|source| Error::System {
            doing: "giving up capabilities that are not needed".into(),
            source,
        })?;
    }
    if plan.daemons.iter().all(|daemon| daemon.no_new_privs) {
        prctl::set_no_new_privs()?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let (commands, wanted) = mpsc::unbounded_channel();
        let (inputs, happened) = mpsc::channel(256);
        let mut supervisor = Supervisor {
            planner,
            daemons: daemons.iter().map(|daemon| daemon.role).collect(),
            hooks,
            control_socket: plan.control_socket.clone(),
            pid_file: plan.pid_file.clone(),
            services: reload::services(plan, sockets)?,
            activated,
            commands,
            inputs,
            phase: Phase::Starting,
            reloading: None,
            reloads: 0,
            last_reload_error: None,
            counting: None,
            questions: Vec::new(),
            next_id: 0,
            since: SystemTime::now(),
            memory: open_memory(),
        };
        supervisor.run(admin.as_ref(), wanted, happened).await
    });
    // Admin commands that wait for the end see it when everything is cleaned up: sockets first, the lock last.
    drop(admin);
    drop(lock);
    runtime.shutdown_background();
    code
}

/// Which process of a service: never reused, unlike a pid.
type Instance = u64;

/// What reaches the loop from its tasks.
enum Input {
    Said { instance: Instance, message: FromChild },
    Broken { instance: Instance, error: String },
    Asked(Asked),
}

enum Phase {
    /// Not every daemon has been ready yet.
    Starting,
    Running,
    Stopping {
        code: ExitCode,
    },
}

/// Askers of `status` that wait for numbers.
struct Counting {
    waiting: HashSet<Instance>,
    until: Instant,
    replies: Vec<oneshot::Sender<Answer>>,
}

/// An admin question that a daemon has not answered yet.
struct Pending {
    id: u64,
    instance: Instance,
    until: Instant,
    reply: oneshot::Sender<Answer>,
}

struct Supervisor<P> {
    planner: P,
    daemons: Vec<&'static str>,
    hooks: Hooks,
    control_socket: std::path::PathBuf,
    pid_file: std::path::PathBuf,
    /// In start order.
    services: Vec<Service>,
    activated: Activated,
    commands: mpsc::UnboundedSender<Command>,
    inputs: mpsc::Sender<Input>,
    phase: Phase,
    reloading: Option<Reloading>,
    reloads: u64,
    last_reload_error: Option<String>,
    counting: Option<Counting>,
    questions: Vec<Pending>,
    next_id: u64,
    since: SystemTime,
    memory: Option<File>,
}

impl<P: FnMut() -> anyhow::Result<Plan>> Supervisor<P> {
    async fn run(
        &mut self,
        admin: Option<&Bound>,
        mut wanted: mpsc::UnboundedReceiver<Command>,
        mut happened: mpsc::Receiver<Input>,
    ) -> anyhow::Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut user = signal(SignalKind::user_defined1())?;
        let mut child = signal(SignalKind::child())?;
        let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        let mut alive = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
        if let Some(admin) = admin {
            self.serve_admin(admin)?;
        }
        let now = Instant::now();
        for service in &mut self.services {
            service.start_at = Some(now);
        }
        loop {
            self.tick(Instant::now());
            if let Phase::Stopping { code } = self.phase
                && self.services.iter().all(|service| service.process.is_none())
            {
                return Ok(code);
            }
            let wake = self.next_deadline();
            tokio::select! {
                _ = terminate.recv() => self.terminate("TERM"),
                _ = interrupt.recv() => self.terminate("INT"),
                _ = hangup.recv() => self.reload(None),
                _ = user.recv() => {}
                _ = child.recv() => self.reap(),
                _ = alive.tick(), if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
                Some(command) = wanted.recv() => match command {
                    Command::Stop(code) => self.begin_stop(code),
                    Command::Reload => self.reload(None),
                },
                Some(input) = happened.recv() => self.input(input),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn serve_admin(&self, admin: &Bound) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(admin.unix_listener()?)?;
        let (asked, mut requests) = mpsc::channel(16);
        let inputs = self.inputs.clone();
        tokio::spawn(admin::serve(listener, asked));
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                if inputs.send(Input::Asked(request)).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        for index in 0..self.services.len() {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let Some(service) = self.services.get_mut(index) else { continue };
            if due(service.start_at) {
                service.start_at = None;
                if !stopping {
                    self.start_daemon(index, now);
                }
            } else if let Some(process) = &mut service.process
                && due(process.kill_at)
            {
                tracing::warn!(role = service.role, pid = process.pid, "did not stop in time; killing it");
                process.signal(Signal::SIGKILL);
                // Not again, unless even that takes long (a process in an uninterruptible wait).
                process.kill_at = Some(now + Duration::from_secs(5));
            }
        }
        if stopping {
            self.stop_highest_tier(now);
        }
        if self.counting.as_ref().is_some_and(|counting| counting.waiting.is_empty() || counting.until <= now)
        {
            self.answer_status();
        }
        self.finish_reload(now);
        let (late, waiting) =
            std::mem::take(&mut self.questions).into_iter().partition(|one| one.until <= now);
        self.questions = waiting;
        let late: Vec<Pending> = late;
        for question in late {
            let _ = question.reply.send(Err("the daemon does not answer".to_owned()));
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let services = self.services.iter().flat_map(|service| {
            [service.start_at, service.process.as_ref().and_then(|process| process.kill_at)]
        });
        let others = [
            self.counting.as_ref().map(|counting| counting.until),
            self.reloading.as_ref().map(|reloading| reloading.until),
            self.questions.iter().map(|question| question.until).min(),
        ];
        services.chain(others).flatten().min()
    }

    fn start_daemon(&mut self, index: usize, now: Instant) {
        self.next_id += 1;
        let (instance, inputs) = (self.next_id, self.inputs.clone());
        let Some(service) = self.services.get_mut(index) else { return };
        let role = service.role;
        match Process::start(role, instance, inputs) {
            Ok(process) => {
                let told = service
                    .start_message()
                    .map_err(|error| error.to_string())
                    .and_then(|(message, fds)| process.tell(&message, fds));
                match told {
                    Ok(()) => tracing::debug!(role, pid = process.pid, "started"),
                    Err(error) => {
                        tracing::error!(role, error, "cannot be given its start record");
                        process.signal(Signal::SIGKILL);
                    }
                }
                service.process = Some(process);
            }
            Err(source) => {
                let pause = service.backoff.after(Duration::ZERO);
                tracing::error!("{}; next try in {pause:?}", Error::Spawn { role: role.to_owned(), source });
                service.start_at = Some(now + pause);
            }
        }
    }

    fn reap(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (index, service) in self.services.iter_mut().enumerate() {
            let Some(process) = &mut service.process else { continue };
            if let Some(status) = process.ended() {
                ended.push((index, status));
            }
        }
        for (index, status) in ended {
            self.ended(index, status, now);
        }
        self.services.retain(|service| !service.leaving || service.process.is_some());
    }

    fn ended(&mut self, index: usize, status: std::process::ExitStatus, now: Instant) {
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        let starting = matches!(self.phase, Phase::Starting);
        let Some(service) = self.services.get_mut(index) else { return };
        let Some(process) = service.process.take() else { return };
        let (role, expected) = (service.role, stopping || process.kill_at.is_some());
        let end = ChildExit { role, pid: process.pid, how: describe(status), expected };
        let mut give_up = None;
        if service.leaving || stopping {
            tracing::debug!(role, pid = end.pid, how = end.how, "ended");
        } else if expected {
            service.start_at = Some(now);
        } else {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).map(ExitCode);
            if starting && !process.ready {
                give_up = code.filter(|code| HOPELESS.contains(code));
            }
            let pause = service.backoff.after(now.saturating_duration_since(process.started));
            service.start_at = Some(now + pause);
            service.restarts += 1;
            if give_up.is_none() {
                tracing::error!(role, pid = end.pid, how = end.how, "ended; starting it again in {pause:?}");
            }
        }
        self.forget(process.instance, role);
        if let Some(hook) = &mut self.hooks.on_child_exit {
            hook(&end);
        }
        if let Some(code) = give_up {
            tracing::error!(role, how = end.how, "cannot run as it is configured; stopping");
            self.begin_stop(code);
        }
    }

    /// Nothing more is to be expected of this process.
    fn forget(&mut self, instance: Instance, role: &str) {
        if let Some(counting) = &mut self.counting {
            counting.waiting.remove(&instance);
        }
        if let Some(reloading) = &mut self.reloading {
            // Its successor starts with the new configuration.
            reloading.waiting.remove(&instance);
        }
        let (lost, waiting) =
            std::mem::take(&mut self.questions).into_iter().partition(|one| one.instance == instance);
        self.questions = waiting;
        let lost: Vec<Pending> = lost;
        for question in lost {
            let _ = question.reply.send(Err(format!("the {role} daemon ended before it answered")));
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Asked(asked) => self.asked(asked),
            Input::Said { instance, message } => self.said(instance, message),
            Input::Broken { instance, error } => {
                if let Some(service) = self.service_of(instance)
                    && let Some(process) = &service.process
                {
                    tracing::error!(
                        role = service.role,
                        pid = process.pid,
                        error,
                        "broke the rules; killing it"
                    );
                    process.signal(Signal::SIGKILL);
                }
            }
        }
    }

    fn said(&mut self, instance: Instance, message: FromChild) {
        let Some(service) = self.service_of(instance) else { return };
        let role = service.role;
        match message {
            FromChild::Restricted(restricted) => {
                // Once, by the start ritual: one that is taken over later must not change what is shown of it.
                if let Some(process) = &mut service.process {
                    process.restricted.get_or_insert(restricted);
                }
            }
            FromChild::Ready => {
                if let Some(process) = &mut service.process
                    && !process.ready
                {
                    process.ready = true;
                    let took = process.started.elapsed();
                    tracing::debug!(role, pid = process.pid, "ready after {took:?}");
                    self.maybe_all_ready();
                }
            }
            FromChild::Stats(stats) => {
                if let Some(process) = &mut service.process {
                    let figures = crate::figures::believable(stats.figures);
                    process.stats = Some(Stats { figures, ..stats });
                    process.answered = true;
                }
                if let Some(counting) = &mut self.counting {
                    counting.waiting.remove(&instance);
                }
            }
            FromChild::Status { id } => {
                let allowed = service.reads_status;
                let (reply, answer) = oneshot::channel();
                match &service.process {
                    Some(process) if allowed => process.tell_status(id, answer),
                    _ => {
                        tracing::error!(role, "asked for the status without being allowed to");
                        return;
                    }
                }
                self.count(reply);
            }
            FromChild::Reloaded { error } => {
                let Some(reloading) = &mut self.reloading else { return };
                if reloading.waiting.remove(&instance)
                    && let Some(error) = error
                {
                    reloading.errors.push(format!("{role} keeps its old configuration: {error}"));
                }
            }
            // Daemons have nothing to note to the supervisor.
            FromChild::Note { .. } => {}
            FromChild::Answer { id, result } => {
                let asked = self.questions.iter().position(|one| one.id == id && one.instance == instance);
                if let Some(at) = asked {
                    let question = self.questions.swap_remove(at);
                    let _ = question.reply.send(result.map(Response::Answer));
                }
            }
        }
    }

    fn maybe_all_ready(&mut self) {
        let ready = |service: &Service| {
            service.leaving || service.process.as_ref().is_some_and(|process| process.ready)
        };
        if !matches!(self.phase, Phase::Starting) || !self.services.iter().all(ready) {
            return;
        }
        self.phase = Phase::Running;
        notify(&[NotifyState::Ready, NotifyState::Status("all daemons are ready")]);
        tracing::info!(pid = std::process::id(), "all daemons are ready");
        crate::trim::give_back_after_start();
        if let Some(hook) = self.hooks.on_ready.take() {
            let handle = Handle(self.commands.clone());
            let thread = std::thread::Builder::new().name("on-ready".into()).spawn(|| hook(handle));
            if let Err(error) = thread {
                tracing::error!(%error, "no thread for what comes after the start; stopping");
                self.begin_stop(exit::FAILURE);
            }
        }
    }

    fn asked(&mut self, asked: Asked) {
        let Asked { request, reply } = asked;
        match request {
            Request::Status => self.count(reply),
            Request::Reload => self.reload(Some(reply)),
            Request::Stop => {
                let _ = reply.send(Ok(Response::Done));
                tracing::info!("stopping: asked to on the admin socket");
                self.begin_stop(exit::OK);
            }
            Request::Ask { role, body } => self.ask(&role, body, reply),
        }
    }

    fn ask(&mut self, role: &str, body: serde_json::Value, reply: oneshot::Sender<Answer>) {
        self.next_id += 1;
        let id = self.next_id;
        let process = self.services.iter().find(|one| one.role == role).and_then(|one| one.process.as_ref());
        let Some(process) = process else {
            let _ = reply.send(Err(format!("no {role} daemon is running")));
            return;
        };
        match process.tell(&ToChild::Ask { id, body }, Vec::new()) {
            Ok(()) => {
                let until = Instant::now() + ANSWER_WITHIN;
                self.questions.push(Pending { id, instance: process.instance, until, reply });
            }
            Err(error) => {
                let _ = reply.send(Err(format!("the {role} daemon cannot be asked: {error}")));
            }
        }
    }

    fn count(&mut self, reply: oneshot::Sender<Answer>) {
        let until = Instant::now() + STATS_WITHIN;
        let counting = self.counting.get_or_insert_with(|| Counting {
            waiting: HashSet::new(),
            until,
            replies: Vec::new(),
        });
        if counting.replies.is_empty() {
            let running = self.services.iter_mut().filter_map(|service| service.process.as_mut());
            for process in running.filter(|process| process.ready) {
                process.answered = false;
                if process.tell(&ToChild::Stats, Vec::new()).is_ok() {
                    counting.waiting.insert(process.instance);
                }
            }
        }
        counting.replies.push(reply);
    }

    fn answer_status(&mut self) {
        let Some(counting) = self.counting.take() else { return };
        let own = admin::Process {
            role: "supervisor".to_owned(),
            pid: Some(std::process::id()),
            uid: nix::unistd::geteuid().as_raw(),
            since: self.since.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()),
            restarts: 0,
            connections: None,
            total: None,
            memory_kib: self.memory.as_ref().and_then(memory_kib),
            state: match self.phase {
                Phase::Starting => State::Starting,
                Phase::Running => State::Ready,
                Phase::Stopping { .. } => State::Stopping,
            },
            restricted: Some(Restricted::default()),
            sockets: vec![self.control_socket.display().to_string()],
            answers: true,
            helpers: BTreeMap::new(),
            figures: Vec::new(),
        };
        let daemons = self.services.iter().map(Service::status);
        let status = Status {
            processes: std::iter::once(own).chain(daemons).collect(),
            reloads: self.reloads,
            last_reload_error: self.last_reload_error.clone(),
        };
        for reply in counting.replies {
            let _ = reply.send(Ok(Response::Status(status.clone())));
        }
    }

    fn terminate(&mut self, signal: &str) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            tracing::warn!("stopping at once: {signal} came a second time");
            self.phase = Phase::Stopping { code: exit::FAILURE };
            for process in self.services.iter().filter_map(|service| service.process.as_ref()) {
                process.signal(Signal::SIGKILL);
            }
        } else {
            tracing::info!("stopping: {signal}");
            self.begin_stop(exit::OK);
        }
    }

    fn begin_stop(&mut self, code: ExitCode) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        self.phase = Phase::Stopping { code };
        notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
        for service in &mut self.services {
            service.start_at = None;
        }
        if let Some(reloading) = self.reloading.take() {
            reloading.answer(&Err("the supervisor is stopping".to_owned()));
        }
    }

    /// Tells the highest tier that still runs; the next one has its turn when these are gone.
    fn stop_highest_tier(&mut self, now: Instant) {
        let running = self.services.iter().filter(|service| service.process.is_some());
        let Some(tier) = running.map(|service| service.tier).max() else { return };
        for service in self.services.iter_mut().filter(|service| service.tier == tier) {
            service.stop(now);
        }
    }

    fn service_of(&mut self, instance: Instance) -> Option<&mut Service> {
        self.services
            .iter_mut()
            .find(|service| service.process.as_ref().is_some_and(|process| process.instance == instance))
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd; elsewhere nobody listens, and that is no error.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Every error of a chain on its own line; texts that hold several (all configuration errors) line by line.
fn report(error: &anyhow::Error) {
    let text = format!("{error:#}");
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if logging::is_set_up() || tracing::dispatcher::has_been_set() {
            tracing::error!("{line}");
        } else {
            // Logging is part of the configuration that could not be read.
            let _ = io::Write::write_all(&mut io::stderr(), format!("error: {line}\n").as_bytes());
        }
    }
}
