//! `postern status`: each process of the running stack, and its figures; once, or again and again.
//!
//! Trust: the supervisor answers; figures of daemons have been cut to what is believable by then.
//! Never: change anything: it only asks.

mod summary;
mod watch;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boot::admin::{Process, Request, Response, State, Status, request};
use boot::{ExitCode, exit};
use serde::Serialize;
use serde_json::json;

use crate::cli::{PlaceArgs, StatusArgs};
use crate::output;
use crate::place::Place;
use summary::{Latency, Rates, Summary};

/// Addresses shown of those that fail most.
const GUESSING: usize = 5;

/// Prints processes and figures.
pub(crate) fn status(place: &PlaceArgs, args: &StatusArgs, json: bool) -> anyhow::Result<ExitCode> {
    let socket = Place::find_for_admin(place)?.control_socket()?;
    if args.watch {
        let interval = Duration::try_from_secs_f64(args.interval).unwrap_or(Duration::from_secs(1));
        return watch::watch(&socket, &watch::Options { interval, count: args.count, json });
    }
    let (status, summary) = look(&socket)?;
    if args.security {
        return super::security::security(&status, json);
    }
    if json {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            status: &'a Status,
            summary: &'a Summary,
        }
        output::json(&Shown { status: &status, summary: &summary })?;
        return Ok(exit::OK);
    }
    output::raw(processes(&status));
    output::line(format!("reloads: {}", status.reloads));
    if let Some(error) = &status.last_reload_error {
        output::line(format!("the last reload failed: {error}"));
    }
    output::line("");
    for line in figures(&summary, None) {
        output::line(line);
    }
    Ok(exit::OK)
}

/// Asks the running stack.
fn look(socket: &Path) -> anyhow::Result<(Status, Summary)> {
    let Response::Status(status) = request(socket, &Request::Status)? else {
        anyhow::bail!(
            "the running stack gave an answer that does not fit; is it another version? restart it"
        );
    };
    let penalties = if status.processes.iter().any(|one| one.role == "auth" && one.answers) {
        let body = json!({ "ask": "penalty-list", "top": GUESSING });
        match request(socket, &Request::Ask { role: "auth".to_owned(), body }) {
            Ok(Response::Answer(answer)) => Some(answer),
            // Everything else can be shown without it.
            _ => None,
        }
    } else {
        None
    };
    let summary = Summary::of(&status, penalties.as_ref());
    Ok((status, summary))
}

/// The table of processes.
fn processes(status: &Status) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let rows: Vec<Vec<String>> = status.processes.iter().map(|process| row(process, now)).collect();
    let header = ["ROLE", "STATE", "PID", "USER", "UP", "RESTARTS", "CONNECTIONS", "TOTAL", "MEMORY"];
    output::table(&header, &rows)
}

/// The figures, line by line: sums since the start, or what happened in the last interval.
fn figures(all: &Summary, rates: Option<&Rates>) -> Vec<String> {
    let per_second = |rate: Option<f64>| rate.map_or_else(String::new, |rate| format!(" ({rate:.1}/s)"));
    let mut lines = Vec::new();
    let mut put = |name: &str, text: String| lines.push(format!("{name:<9} {text}"));
    put(
        "logins",
        format!(
            "ok {}{}, refused {}{}, undecided {}{}",
            all.logins_with("ok"),
            per_second(rates.map(|r| r.ok)),
            all.refused(),
            per_second(rates.map(|r| r.refused)),
            all.logins_with("outage"),
            per_second(rates.map(|r| r.undecided)),
        ),
    );
    if !all.services.is_empty() {
        let service = |(name, count): (&String, &u64)| {
            format!(
                "{name} {count}{}",
                per_second(rates.map(|r| r.services.get(name).copied().unwrap_or(0.0)))
            )
        };
        put("services", all.services.iter().map(service).collect::<Vec<_>>().join(", "));
    }
    let shown = |latency: &Latency| match (latency.p50_seconds, latency.p99_seconds) {
        (Some(half), Some(most)) => format!("half within {}, 99 % within {}", span(half), span(most)),
        (Some(half), None) => format!("half within {}", span(half)),
        (None, _) => "no logins".to_owned(),
    };
    let latency = match rates {
        Some(rates) if rates.latency.p50_seconds.is_some() => {
            format!("{} (since the start: {})", shown(&rates.latency), shown(&all.latency))
        }
        _ => shown(&all.latency),
    };
    put("latency", latency);
    let hits = rates.map_or_else(
        || format!("{} hits, {} misses", all.cache.hits, all.cache.misses),
        |rates| {
            rates.cache_hits.map_or("not asked".to_owned(), |share| format!("{:.0} % hits", share * 100.0))
        },
    );
    let memory = |bytes: u64| memory(bytes / 1024);
    let (used, max) = (memory(all.cache.bytes), memory(all.cache.max_bytes));
    put("cache", format!("{hits}, {} entries, {used} of {max}", all.cache.entries));
    put(
        "hashes",
        format!(
            "{} running, {} waiting, {} computed{}, {} refused",
            all.hashes.running,
            all.hashes.waiting,
            all.hashes.computed,
            per_second(rates.map(|r| r.hashes)),
            all.hashes.refused
        ),
    );
    let workers = &all.workers;
    put(
        "workers",
        format!(
            "{} busy, {} idle of {}, {} waiting, {} questions, {} failures",
            workers.busy, workers.idle, workers.max, workers.waiting, workers.questions, workers.failures
        ),
    );
    let mut text = format!(
        "{} open, {} in all{}, {} refused",
        all.connections,
        all.connections_total,
        per_second(rates.map(|r| r.connections)),
        all.connections_refused
    );
    if !all.tls.is_empty() {
        let of = |version: &str| all.tls.get(version).copied().unwrap_or(0);
        // Writing to a String cannot fail.
        let _ = write!(text, "; TLS 1.3 {}, 1.2 {}, failed {}", of("1.3"), of("1.2"), all.tls_failures);
    }
    put("network", text);
    if !all.messages.is_empty() {
        let of = |result: &str| all.messages.get(result).copied().unwrap_or(0);
        put(
            "messages",
            format!(
                "{} delivered{}, {} refused, {} deferred",
                of("delivered"),
                per_second(rates.map(|r| r.messages)),
                of("refused"),
                of("deferred")
            ),
        );
    }
    let listed: Vec<String> =
        all.guessing.iter().take(GUESSING).map(|one| format!("{} ({:.1})", one.peer, one.count)).collect();
    put(
        "guessing",
        match listed.is_empty() {
            true => "nobody".to_owned(),
            false if all.penalties == 1 => format!("one address: {}", listed.join(", ")),
            false => format!("{} addresses: {}", all.penalties, listed.join(", ")),
        },
    );
    lines
}

/// A short time as people say it.
fn span(seconds: f64) -> String {
    if seconds < 1.0 { format!("{} ms", (seconds * 1e6).round() / 1e3) } else { format!("{seconds} s") }
}

fn state(process: &Process) -> &'static str {
    match process.state {
        State::Starting => "starting",
        State::Ready if !process.answers => "silent",
        State::Ready => "ready",
        State::Backoff => "waiting to restart",
        State::Stopping => "stopping",
    }
}

fn row(process: &Process, now: u64) -> Vec<String> {
    let or_dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    vec![
        process.role.clone(),
        state(process).to_owned(),
        or_dash(process.pid.map(u64::from)),
        crate::accounts::name_of(process.uid),
        process.since.map_or_else(|| "-".to_owned(), |since| up(now.saturating_sub(since))),
        process.restarts.to_string(),
        or_dash(process.connections),
        or_dash(process.total),
        process.memory_kib.map_or_else(|| "-".to_owned(), memory),
    ]
}

/// Seconds as people say them.
fn up(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn memory(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
}

#[cfg(test)]
mod tests {
    use super::{memory, span, up};

    #[test]
    fn numbers_as_people_say_them() {
        for (seconds, expected) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_700, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(up(seconds), expected);
        }
        assert_eq!(memory(5_632), "5.5 MiB");
        assert_eq!(
            (span(0.0001).as_str(), span(0.025).as_str(), span(2.5).as_str()),
            ("0.1 ms", "25 ms", "2.5 s")
        );
    }
}
