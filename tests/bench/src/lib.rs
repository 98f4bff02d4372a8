//! `make bench`: Postern beside Dovecot, Postfix and saslauthd, in turn, in one run.
//!
//! Purpose: say what is faster and what it costs, so that anybody can check it on a machine of their own.
//! Trust:   nobody sends it bytes but the servers it has started itself, on loopback and unix sockets.
//! Never:   count what was not answered as expected; give one side settings, warmth or load that the other lacks.
#![forbid(unsafe_code)]
// A program for developers and administrators: it prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod load;
mod proc;
mod report;
mod rows;
mod servers;
mod stats;
mod svg;
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use rows::Bench;

pub use servers::certificates;

/// Groups of rows, in the order of the page.
const GROUPS: [&str; 10] = [
    "auth",
    "hashes",
    "users",
    "connections",
    "mail",
    "submission",
    "mailbox",
    "saslauthd",
    "footprint",
    "idle",
];

const EXAMPLES: &str = "\
Groups:
  auth         cheap passwords and stored keys on Dovecot's auth protocol
  hashes       SHA512-CRYPT and ARGON2ID; cheap and cached logins while the hash threads are busy
  users        1,000, 100,000 and 1,000,000 users
  connections  1 to 3,000 connections
  mail         logins over SMTP, IMAP and POP3 with TLS
  submission   messages into Maildirs, each on disk before it counts; with --long also on new connections
  mailbox      notification in IDLE; SELECT and FETCH of 100,000 messages; with --long also ENVELOPE,
               the commands of a session, and RETR
  saslauthd    PAM, shadow, and the cache
  footprint    start-up time and idle memory
  idle         memory of IMAP connections in IDLE

Examples:
  make bench                                             everything, into docs/benchmarks.md
  make bench ARGS=--long                                 the same with long windows, and more rows
  make bench ARGS='--only auth,hashes'                   two groups, on the terminal
  make bench ARGS='--only auth --rows \"1 in flight\"'     rows with these words in their titles
  make bench ARGS='--only auth --rounds 1 --windows 0.5' a first look";

/// What a run is asked for.
#[derive(Debug, Parser)]
#[command(
    name = "postern-bench",
    about = "Postern beside Dovecot, Postfix and saslauthd; writes docs/benchmarks.md",
    after_help = EXAMPLES
)]
pub struct Args {
    /// Windows four times as long, five alternations in place of three, and further rows.
    #[arg(long)]
    long: bool,
    /// Only these groups of rows; the page is printed, not written.
    #[arg(long, value_name = "GROUP", value_delimiter = ',', value_parser = GROUPS)]
    only: Vec<String>,
    /// Only rows whose title contains this (any case), or one of these; the page is printed, not written.
    #[arg(long, value_name = "TEXT")]
    rows: Vec<String>,
    /// How often each side has its turn in a row.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: Option<u16>,
    /// Windows so many times as long as those of the short form.
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    windows: Option<f64>,
    /// The program to measure.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Folder of the page and its charts; named, also a part of the page is written.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.01..=100.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.01 to 100".to_owned()),
    }
}

/// Runs what the arguments ask for.
///
/// # Errors
/// When something could not be measured; the page names it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let beside = std::env::current_exe()?.with_file_name("postern");
    let program = fs::canonicalize(args.program.as_ref().unwrap_or(&beside)).unwrap_or(beside);
    rows::check(&program)?;
    raise_limits();
    let scratch = tempfile::Builder::new().prefix("pbench").tempdir_in("/tmp")?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    // Daemons under other accounts must be able to start it, wherever the build lies.
    let copy = scratch.path().join("postern");
    fs::copy(&program, &copy)?;
    let mut bench = Bench {
        program: copy,
        work: scratch.path().to_owned(),
        long: args.long,
        rounds: args.rounds.map_or(if args.long { 5 } else { 3 }, usize::from),
        factor: args.windows.unwrap_or(if args.long { 4.0 } else { 1.0 }),
        rows: args.rows.iter().map(|text| text.to_lowercase()).collect(),
        report: report::Report::default(),
    };
    bench.report.command = command(args);
    bench.report.method = format!(
        "Every figure is the median of {} alternations (ours, peer, peer, ours, …) of windows of {} to {} s.",
        bench.rounds,
        report::short(0.8 * bench.factor),
        report::short(2.5 * bench.factor)
    );
    bench.report.load.0 = load_average();
    for group in GROUPS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == group) {
            continue;
        }
        println!("== {group} ({} s)", began.elapsed().as_secs());
        let result = match group {
            "auth" => bench.auth(),
            "hashes" => bench.hashes(),
            "users" => bench.users(),
            "connections" => bench.connections(),
            "mail" => bench.mail(),
            "submission" => bench.submission(),
            "mailbox" => bench.mailbox(),
            "saslauthd" => bench.mux(),
            "footprint" => bench.footprint(),
            _ => bench.idle(),
        };
        // The other groups are worth their time all the same; the page and the exit code tell.
        if let Err(error) = result {
            println!("== {group} failed: {error:#}");
            bench.report.failures.push(format!("{group}: {error:#}"));
        }
    }
    bench.report.load.1 = load_average();
    let part = !args.only.is_empty() || !args.rows.is_empty();
    bench.report.seconds = began.elapsed().as_secs();
    match &args.docs {
        None if part => println!("\n{}", bench.report.markdown()),
        folder => {
            let folder = folder.clone().unwrap_or_else(|| "docs".into());
            bench.report.write(&folder)?;
            println!(
                "== wrote {} in {} s",
                folder.join("benchmarks.md").display(),
                began.elapsed().as_secs()
            );
        }
    }
    anyhow::ensure!(bench.report.failures.is_empty(), "not everything could be measured");
    Ok(())
}

/// The command that gives this page again.
fn command(args: &Args) -> String {
    let mut words = Vec::new();
    if args.long {
        words.push("--long".to_owned());
    }
    if !args.only.is_empty() {
        words.push(format!("--only {}", args.only.join(",")));
    }
    for rows in &args.rows {
        words.push(format!("--rows \"{rows}\""));
    }
    if let Some(rounds) = args.rounds {
        words.push(format!("--rounds {rounds}"));
    }
    if let Some(factor) = args.windows {
        words.push(format!("--windows {factor}"));
    }
    match words.as_slice() {
        [] => "make bench".to_owned(),
        words => format!("make bench ARGS='{}'", words.join(" ")),
    }
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Open files, for us and for the servers we start.
fn raise_limits() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(65_536).max(soft);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_its_own_command() {
        let of = |words: &[&str]| {
            Args::try_parse_from(["postern-bench"].iter().chain(words)).map(|args| command(&args))
        };
        assert_eq!(of(&[]).unwrap_or_default(), "make bench");
        assert_eq!(
            of(&["--long", "--only", "auth,mail", "--rows", "1 in"]).unwrap_or_default(),
            "make bench ARGS='--long --only auth,mail --rows \"1 in\"'"
        );
        assert!(of(&["--only", "weather"]).is_err());
        assert!(of(&["--rounds", "0"]).is_err());
        assert!(of(&["--windows", "0"]).is_err());
    }

    #[test]
    fn nothing_is_measured_without_a_program() {
        let args = Args::try_parse_from(["postern-bench", "--program", "/nonexistent/postern"]);
        let error = args.map(|args| run(&args)).map(|ran| ran.map_err(|error| error.to_string()));
        assert!(matches!(error, Ok(Err(text)) if text.contains("not there") || text.contains("root")));
    }
}
