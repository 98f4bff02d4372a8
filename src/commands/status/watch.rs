//! `postern status --watch`: the figures again and again, on a terminal in place, elsewhere line by line.
//!
//! Terminal: the other screen is used and left again, whatever ends the view: a key, a signal, a mistake.
//! Trust:    the supervisor answers; keys come from the terminal.
//! Never:    leave the terminal in the state the view needs.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use boot::admin::{State, Status};
use boot::{ExitCode, exit};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::summary::{Latency, Rates, Summary};
use crate::output;

/// Looks that the rates on the screen are taken over.
const WINDOW: usize = 10;

/// How to watch.
pub(super) struct Options {
    /// Between two looks.
    pub(super) interval: Duration,
    /// Looks until the end; `None`: until somebody ends it.
    pub(super) count: Option<u64>,
    /// One JSON object per look.
    pub(super) json: bool,
}

/// One look at the stack.
struct Look {
    at: Instant,
    what: Result<(Status, Summary), String>,
}

/// Shows the figures until a key, a signal or the count ends it.
pub(super) fn watch(socket: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    // Nobody to watch at all is a mistake to tell at once.
    super::look(socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(show(socket, options));
    runtime.shutdown_background();
    result
}

async fn show(socket: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let mut ends =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let [interrupt, terminate, hangup] = &mut ends;
    let live = !options.json && std::io::stdout().is_terminal();
    let screen = if live { Some(Screen::open()?) } else { None };
    let mut keys = keys(screen.as_ref().is_some_and(|screen| screen.before.is_some()));
    let mut looks = looks(socket, options.interval);
    let mut before: VecDeque<(Instant, Summary)> = VecDeque::new();
    let mut shown = 0;
    loop {
        let look = tokio::select! {
            look = looks.recv() => look,
            Some(key) = keys.recv() => {
                if matches!(key, b'q' | b'Q' | 3 | 4) {
                    return Ok(exit::OK);
                }
                continue;
            }
            _ = interrupt.recv() => return Ok(exit::OK),
            _ = terminate.recv() => return Ok(exit::OK),
            _ = hangup.recv() => return Ok(exit::OK),
        };
        let Some(look) = look else { return Ok(exit::FAILURE) };
        // On the screen over the last looks, so that rare logins can be seen; for programs since the one before.
        let since = if live { before.front() } else { before.back() };
        let rates = match (&look.what, since) {
            (Ok((_, now)), Some((at, then))) => {
                Some(Rates::between(then, now, look.at.duration_since(*at).as_secs_f64()))
            }
            _ => None,
        };
        if options.json {
            output::json_line(&as_json(&look, rates.as_ref()));
        } else if live {
            output::raw(page(&look, rates.as_ref(), options.interval));
        } else {
            output::line(line(&look, rates.as_ref()));
        }
        if let Ok((_, now)) = look.what {
            before.push_back((look.at, now));
            if before.len() > WINDOW {
                before.pop_front();
            }
        }
        shown += 1;
        if options.count.is_some_and(|count| shown >= count) {
            return Ok(exit::OK);
        }
    }
}

/// Looks from a thread of its own: a stack that answers late must not keep a key from ending the view.
fn looks(socket: &Path, interval: Duration) -> mpsc::Receiver<Look> {
    let (sender, receiver) = mpsc::channel(1);
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        loop {
            let at = Instant::now();
            let what = super::look(&socket).map_err(|error| format!("{error:#}"));
            if sender.blocking_send(Look { at, what }).is_err() {
                return;
            }
            std::thread::sleep(interval.saturating_sub(at.elapsed()));
        }
    });
    receiver
}

fn keys(wanted: bool) -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(8);
    if wanted {
        std::thread::spawn(move || {
            let mut key = [0];
            while let Ok(1) = std::io::stdin().read(&mut key) {
                let [key] = key;
                if sender.blocking_send(key).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// The terminal's other screen. Dropping it leaves the terminal as it was.
struct Screen {
    /// Settings of a terminal that gives us its keys.
    before: Option<Termios>,
}

impl Screen {
    fn open() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = if stdin.is_terminal() {
            let before = termios::tcgetattr(stdin.as_fd())?;
            let mut now = before.clone();
            now.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            // ctrl-C stays a signal; ctrl-Z and ctrl-\ would leave the screen as it is.
            for unused in [SpecialCharacterIndices::VSUSP, SpecialCharacterIndices::VQUIT] {
                if let Some(character) = now.control_chars.get_mut(unused as usize) {
                    *character = 0;
                }
            }
            termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &now)?;
            Some(before)
        } else {
            None
        };
        // The other screen, no cursor, no line wrap.
        output::raw("\x1b[?1049h\x1b[?25l\x1b[?7l");
        Ok(Self { before })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        output::raw("\x1b[?7h\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.before {
            // Keys typed meanwhile were for us.
            let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSAFLUSH, before);
        }
    }
}

fn as_json(look: &Look, rates: Option<&Rates>) -> serde_json::Value {
    let time = jiff::Timestamp::now().to_string();
    match &look.what {
        Ok((status, summary)) => {
            let processes: Vec<_> = status
                .processes
                .iter()
                .map(|one| {
                    json!({ "role": one.role, "state": one.state, "answers": one.answers, "pid": one.pid,
                        "restarts": one.restarts, "connections": one.connections, "memory_kib": one.memory_kib })
                })
                .collect();
            json!({ "time": time, "processes": processes, "summary": summary, "rates": rates })
        }
        Err(error) => json!({ "time": time, "error": error }),
    }
}

fn line(look: &Look, rates: Option<&Rates>) -> String {
    let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    let (status, summary) = match &look.what {
        Ok(what) => what,
        Err(error) => return format!("{time} {error}"),
    };
    let mut line = time;
    // Writing to a String cannot fail.
    let _ = match rates {
        Some(rates) => write!(
            line,
            " ok {:.1}/s refused {:.1}/s undecided {:.1}/s latency {} messages {:.1}/s",
            rates.ok,
            rates.refused,
            rates.undecided,
            latency(&rates.latency),
            rates.messages
        ),
        None => write!(
            line,
            " ok {} refused {} undecided {} latency {} messages {}",
            summary.logins_with("ok"),
            summary.refused(),
            summary.logins_with("outage"),
            latency(&summary.latency),
            super::summary::sum(summary.messages.values())
        ),
    };
    let _ = write!(
        line,
        " connections {} hashes {}+{} workers {}+{}/{}",
        summary.connections,
        summary.hashes.running,
        summary.hashes.waiting,
        summary.workers.busy,
        summary.workers.waiting,
        summary.workers.max
    );
    for guessing in summary.guessing.iter().take(3) {
        let _ = write!(line, " guessing {} ({:.1})", guessing.peer, guessing.count);
    }
    for process in status.processes.iter().filter(|one| one.state != State::Ready || !one.answers) {
        let _ = write!(line, " {} {}", process.role, super::state(process));
    }
    line
}

/// `50% 0.5ms 99% 10ms`.
fn latency(latency: &Latency) -> String {
    let shown = |seconds: Option<f64>| match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{}ms", seconds * 1e3),
        Some(seconds) => format!("{seconds}s"),
    };
    format!("50% {} 99% {}", shown(latency.p50_seconds), shown(latency.p99_seconds))
}

/// The whole screen, at most 24 lines.
fn page(look: &Look, rates: Option<&Rates>, interval: Duration) -> String {
    let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let mut lines =
        vec![format!("Postern   {now}   every {} s   q quits", interval.as_secs_f64()), String::new()];
    match &look.what {
        Err(error) => lines.push(error.clone()),
        Ok((status, summary)) => {
            lines.extend(super::processes(status).lines().take(9).map(str::to_owned));
            lines.push(String::new());
            lines.extend(super::figures(summary, rates));
        }
    }
    let mut page = "\x1b[H".to_owned();
    for line in lines.iter().take(24) {
        page.push_str(line);
        page.push_str("\x1b[K\r\n");
    }
    // Not below the last line, where a line feed would scroll.
    page.truncate(page.len() - 2);
    page.push_str("\x1b[J");
    page
}
