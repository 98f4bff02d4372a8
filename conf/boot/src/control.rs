//! The daemon's side of the channel to the supervisor.
//!
//! A task of the daemon's runtime drives the channel: it answers requests for numbers by itself and turns everything
//! else into [`Event`]s. The loss of the supervisor is also noticed outside the runtime, see `child::watch_supervisor`.
//!
//! Trust: the process at the other end of descriptor 0, which started this one; frames are checked by `channel.rs`.
//! Never: go on serving without the supervisor, or leave a question without an answer.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::admin::Status;
use crate::channel::{self, Decoder, FromChild, MAX_BODY, Outgoing, Stats, ToChild};
use crate::figures::Sample;
use crate::logging;
use crate::plan::Slice;
use crate::sandbox::Restricted;
use crate::start::{ControlFd, Sockets};

/// The daemon's link to its supervisor.
#[derive(Debug)]
pub struct Control {
    gauges: Arc<Gauges>,
    asked: Asked,
    outgoing: mpsc::UnboundedSender<FromChild>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// Questions for the status that the supervisor has not answered yet.
type Asked = Arc<Mutex<HashMap<u64, oneshot::Sender<Status>>>>;

/// Asks the supervisor for the figures of the whole stack. For the one daemon whose plan allows it. Clones share the
/// channel.
#[derive(Clone, Debug)]
pub struct StatusReader {
    outgoing: mpsc::UnboundedSender<FromChild>,
    asked: Asked,
    next: Arc<AtomicU64>,
}

impl StatusReader {
    /// The status of now; `None` when the supervisor does not answer in time.
    pub async fn read(&self, within: Duration) -> Option<Status> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        lock(&self.asked).insert(id, reply);
        let sent = self.outgoing.send(FromChild::Status { id }).is_ok();
        let answer = if sent { tokio::time::timeout(within, answer).await.ok() } else { None };
        // An answer that comes later finds nobody.
        lock(&self.asked).remove(&id);
        answer?.ok()
    }
}

fn lock(asked: &Asked) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Status>>> {
    // Inserting and removing leave the map whole.
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes of a daemon's own that it tells about at most.
const MOST_HELPERS: usize = 4096;

/// What the supervisor wants.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// New configuration, and the complete set of listening sockets: drop the old listeners, listen on these.
    /// Those that did not change are the same kernel sockets, so no connection is refused. Answer with
    /// [`Control::reloaded`].
    Reload {
        /// The new configuration.
        slice: Slice,
        /// All sockets of the new plan.
        sockets: Sockets,
    },
    /// Accept nothing more, finish what is in flight within `grace`, return from `main`.
    Stop {
        /// Time for what is in flight.
        grace: Duration,
    },
    /// Something for this role, from the daemon that started this process ([`crate::spawn::Helper::hand`]).
    Hand {
        /// What; its shape is agreed between the two.
        body: Value,
        /// A stream to be served, if there is one.
        stream: Option<OwnedFd>,
    },
    /// The supervisor is gone: return from `main` at once. The process is ended within a second anyway.
    Lost,
    /// An admin command for this daemon (`auth cache stats`, `auth penalty list` …).
    /// A daemon without such commands just drops it; the asker is told so.
    Ask(Question),
}

/// An admin command on its way through the supervisor.
#[derive(Debug)]
pub struct Question {
    id: u64,
    body: Value,
    /// Taken when answered.
    reply: Option<mpsc::UnboundedSender<FromChild>>,
}

impl Question {
    /// What is asked; its shape is agreed between the admin command and the daemon.
    pub fn body(&self) -> &Value {
        &self.body
    }

    /// Answers.
    pub fn answer(mut self, answer: Value) {
        let size = serde_json::to_vec(&answer).map_or(usize::MAX, |text| text.len());
        if size > MAX_BODY - 1024 {
            return self.finish(Err(format!("the answer is too long ({size} bytes); ask for less")));
        }
        self.finish(Ok(answer));
    }

    /// Answers with an error text.
    pub fn refuse(mut self, text: impl Into<String>) {
        self.finish(Err(text.into()));
    }

    fn finish(&mut self, result: Result<Value, String>) {
        if let Some(reply) = self.reply.take() {
            // Fails only when the channel is gone, and with it whoever asked.
            let _ = reply.send(FromChild::Answer { id: self.id, result });
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.finish(Err("this daemon has no such command".to_owned()));
    }
}

/// Makes a daemon's own samples.
type Report = Box<dyn Fn(&mut Vec<Sample>) + Send + Sync>;

/// Numbers a daemon keeps for `postern status` and `/metrics`.
#[derive(Default)]
pub struct Gauges {
    /// Connections open now.
    pub connections: AtomicU64,
    /// Connections accepted since the process started.
    pub total: AtomicU64,
    /// Connections turned away because there were too many of all, and too many of one address or account.
    pub(crate) refused: [AtomicU64; 2],
    helpers: Mutex<BTreeMap<u32, Restricted>>,
    report: OnceLock<Report>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gauges").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Gauges {
    /// What the daemon tells beside its connections. Called once; it is asked for often and must be quick.
    pub fn report(&self, report: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static) {
        if self.report.set(Box::new(report)).is_err() {
            tracing::error!("a daemon set up its report twice");
        }
    }

    fn samples(&self, role: &str) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (count, reason) in self.refused.iter().zip(["total", "address"]) {
            let value = count.load(Ordering::Relaxed);
            samples.push(Sample::new("postern_connections_refused_total", &[role, reason], value));
        }
        if let Some(report) = self.report.get() {
            report(&mut samples);
        }
        samples
    }

    /// Passes on what a process that this one has started is kept from, for `postern status --security`; `None`: it has ended.
    pub fn helper(&self, pid: u32, restricted: Option<Restricted>) {
        let mut helpers = self.helpers();
        match restricted {
            // A status has a greatest length; who has more is told by the others.
            Some(restricted) if helpers.len() < MOST_HELPERS || helpers.contains_key(&pid) => {
                helpers.insert(pid, restricted);
            }
            Some(_) => {}
            None => drop(helpers.remove(&pid)),
        }
    }

    fn helpers(&self) -> MutexGuard<'_, BTreeMap<u32, Restricted>> {
        // Inserting and removing leave the map whole.
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one connection until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> GaugeGuard {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(Arc::clone(self))
    }
}

/// One counted connection.
#[derive(Debug)]
#[must_use = "the connection is counted until this is dropped"]
pub struct GaugeGuard(Arc<Gauges>);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Control {
    /// Takes over the channel; call inside the daemon's tokio runtime. From now on TERM means [`Event::Stop`].
    ///
    /// # Errors
    /// When the channel or the signal cannot be registered with the runtime.
    pub fn new(fd: ControlFd) -> io::Result<Control> {
        fd.stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(fd.stream)?;
        let gauges = Arc::new(Gauges::default());
        let (outgoing, waiting) = mpsc::unbounded_channel();
        let (happened, events) = mpsc::unbounded_channel();
        let asked = Asked::default();
        let driver = Driver {
            stream,
            asked: Arc::clone(&asked),
            decoder: fd.decoder,
            role: fd.role,
            grace: fd.grace,
            supervisor: fd.supervisor,
            memory: fd.memory,
            gauges: Arc::clone(&gauges),
            replies: outgoing.clone(),
            events: happened,
            terminate: signal(SignalKind::terminate())?,
        };
        tokio::spawn(driver.run(waiting));
        Ok(Self { gauges, asked, outgoing, events })
    }

    /// Tells the supervisor that the daemon serves its sockets.
    pub async fn ready(&mut self) {
        let _ = self.outgoing.send(FromChild::Ready);
        crate::trim::give_back_after_start();
    }

    /// Tells the daemon that started this process something. The supervisor does not listen to it.
    pub fn note(&self, body: Value) {
        let _ = self.outgoing.send(FromChild::Note { body });
    }

    /// The next wish of the supervisor. Cancel-safe.
    pub async fn event(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Lost)
    }

    /// Acknowledges [`Event::Reload`]. With an error the daemon goes on with its old configuration; the text is
    /// logged by the supervisor and shown to whoever asked for the reload.
    pub async fn reloaded(&mut self, result: Result<(), String>) {
        let _ = self.outgoing.send(FromChild::Reloaded { error: result.err() });
    }

    /// For the daemon that shows the figures of all.
    pub fn status_reader(&self) -> StatusReader {
        let next = Arc::default();
        StatusReader { outgoing: self.outgoing.clone(), asked: Arc::clone(&self.asked), next }
    }

    /// The numbers shown in `postern status`.
    pub fn gauges(&self) -> Arc<Gauges> {
        Arc::clone(&self.gauges)
    }
}

struct Driver {
    stream: UnixStream,
    asked: Asked,
    decoder: Decoder,
    role: String,
    grace: Duration,
    supervisor: Option<u32>,
    memory: Option<File>,
    gauges: Arc<Gauges>,
    replies: mpsc::UnboundedSender<FromChild>,
    events: mpsc::UnboundedSender<Event>,
    terminate: Signal,
}

impl Driver {
    /// Ends when the supervisor does; the closed event queue then reads as [`Event::Lost`].
    async fn run(mut self, mut outgoing: mpsc::UnboundedReceiver<FromChild>) {
        loop {
            tokio::select! {
                frame = channel::recv(&self.stream, &mut self.decoder) => match frame {
                    Ok(Some(frame)) => if !self.heard(frame) { return },
                    Ok(None) => return,
                    Err(error) => {
                        tracing::error!(%error, "the channel to the supervisor is broken");
                        return;
                    }
                },
                Some(message) = outgoing.recv() => {
                    let sent = match Outgoing::new(&message, Vec::new()) {
                        Ok(frame) => channel::send(&self.stream, frame).await,
                        Err(error) => Err(error),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
                _ = self.terminate.recv() => {
                    // TERM also arrives when the supervisor dies (PR_SET_PDEATHSIG).
                    if self.supervisor.is_some_and(|pid| pid != parent()) {
                        return;
                    }
                    let _ = self.events.send(Event::Stop { grace: self.grace });
                }
            }
        }
    }

    fn heard(&mut self, frame: channel::Frame) -> bool {
        let message = match frame.parse::<ToChild>() {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, "the channel to the supervisor is broken");
                return false;
            }
        };
        match message {
            ToChild::Stop { grace_ms } => {
                let _ = self.events.send(Event::Stop { grace: Duration::from_millis(grace_ms) });
            }
            ToChild::Stats => {
                let _ = self.replies.send(FromChild::Stats(self.stats()));
            }
            ToChild::Status { id, status } => {
                if let Some(reply) = lock(&self.asked).remove(&id) {
                    let _ = reply.send(status);
                }
            }
            ToChild::Hand { body } => {
                let stream = frame.fds.into_iter().next();
                let _ = self.events.send(Event::Hand { body, stream });
            }
            ToChild::Ask { id, body } => {
                let question = Question { id, body, reply: Some(self.replies.clone()) };
                let _ = self.events.send(Event::Ask(question));
            }
            ToChild::Reload { sockets, log } => {
                if let Some(mut log) = log {
                    log.role.clone_from(&self.role);
                    if let Err(error) = logging::init(&log) {
                        tracing::error!(%error, "the log level stays as it was");
                    }
                }
                match crate::start::unpack(sockets, frame.fds) {
                    Ok((slice, sockets)) => {
                        let _ = self.events.send(Event::Reload { slice, sockets });
                    }
                    Err(error) => {
                        let _ = self.replies.send(FromChild::Reloaded { error: Some(error.to_string()) });
                    }
                }
            }
            ToChild::Start(_) => {
                tracing::error!("the supervisor sent a second start record");
                return false;
            }
        }
        true
    }

    fn stats(&self) -> Stats {
        Stats {
            connections: self.gauges.connections.load(Ordering::Relaxed),
            total: self.gauges.total.load(Ordering::Relaxed),
            memory_kib: self.memory.as_ref().and_then(memory_kib),
            helpers: self.gauges.helpers().clone(),
            figures: self.gauges.samples(&self.role),
        }
    }
}

/// The parent's process id.
pub(crate) fn parent() -> u32 {
    u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or(0)
}

/// Opens what [`memory_kib`] reads. To be done before a sandbox forbids it.
pub(crate) fn open_memory() -> Option<File> {
    File::open("/proc/self/smaps_rollup").ok()
}

/// The proportional set size of the process that opened the file.
pub(crate) fn memory_kib(file: &File) -> Option<u64> {
    let mut text = [0_u8; 4096];
    let length = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_again_and_again() {
        let file = open_memory().unwrap();
        assert!(memory_kib(&file).unwrap() > 100);
        assert!(memory_kib(&file).unwrap() > 100);
    }

    #[tokio::test]
    async fn a_question_without_an_answer_leaves_nothing_behind() {
        let (outgoing, waiting) = mpsc::unbounded_channel();
        let asked = Asked::default();
        let reader = StatusReader { outgoing, asked: Arc::clone(&asked), next: Arc::default() };
        assert_eq!(reader.read(Duration::from_millis(1)).await, None);
        assert!(lock(&asked).is_empty());
        drop(waiting);
        assert_eq!(reader.read(Duration::from_secs(60)).await, None);
        assert!(lock(&asked).is_empty());
    }

    #[test]
    fn gauges_count_down() {
        let gauges = Arc::new(Gauges::default());
        let guards = [gauges.enter(), gauges.enter()];
        assert_eq!(gauges.connections.load(Ordering::Relaxed), 2);
        drop(guards);
        assert_eq!(gauges.connections.load(Ordering::Relaxed), 0);
        assert_eq!(gauges.total.load(Ordering::Relaxed), 2);
    }
}
