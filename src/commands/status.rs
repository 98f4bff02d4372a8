//! `postern status`: each process of the running stack.

use std::time::{SystemTime, UNIX_EPOCH};

use boot::admin::{Process, Request, Response, State, request};
use boot::{ExitCode, exit};

use crate::cli::PlaceArgs;
use crate::output;
use crate::place::Place;

/// Prints the processes.
pub(crate) fn status(place: &PlaceArgs, json: bool) -> anyhow::Result<ExitCode> {
    let socket = Place::find_for_admin(place)?.control_socket()?;
    let Response::Status(status) = request(&socket, &Request::Status)? else {
        anyhow::bail!(
            "the running stack gave an answer that does not fit; is it another version? restart it"
        );
    };
    if json {
        output::json(&status)?;
        return Ok(exit::OK);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let rows: Vec<Vec<String>> = status.processes.iter().map(|process| row(process, now)).collect();
    let header = ["ROLE", "STATE", "PID", "USER", "UP", "RESTARTS", "CONNECTIONS", "TOTAL", "MEMORY"];
    output::raw(output::table(&header, &rows));
    output::line(format!("reloads: {}", status.reloads));
    if let Some(error) = status.last_reload_error {
        output::line(format!("the last reload failed: {error}"));
    }
    Ok(exit::OK)
}

fn row(process: &Process, now: u64) -> Vec<String> {
    let or_dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let state = match process.state {
        State::Starting => "starting",
        State::Ready => "ready",
        State::Backoff => "waiting to restart",
        State::Stopping => "stopping",
    };
    vec![
        process.role.clone(),
        state.to_owned(),
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
    use super::{memory, up};

    #[test]
    fn numbers_as_people_say_them() {
        for (seconds, expected) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_700, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(up(seconds), expected);
        }
        assert_eq!(memory(5_632), "5.5 MiB");
    }
}
