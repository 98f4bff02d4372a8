//! `make bench`: Postern beside Dovecot, Postfix and saslauthd, in turn, in one run.
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

/// Groups of rows, in the order of the page.
const GROUPS: [&str; 7] = ["auth", "hashes", "users", "connections", "mail", "saslauthd", "footprint"];

#[derive(Parser)]
#[command(about = "Postern beside Dovecot, Postfix and saslauthd; writes docs/benchmarks.md")]
struct Args {
    /// Windows four times as long, and five alternations in place of three.
    #[arg(long)]
    long: bool,
    /// Only these groups of rows; the page is printed, not written.
    #[arg(long, value_parser = GROUPS)]
    only: Vec<String>,
    /// The program to measure.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Folder of the page and its charts.
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
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
        report: report::Report::default(),
    };
    bench.report.command = if args.long { "make bench ARGS=--long" } else { "make bench" }.to_owned();
    bench.report.method = format!(
        "Every figure is the median of {} alternations (ours, peer, ours, peer, …) of windows of {} s.",
        bench.rounds(),
        if args.long { "3 to 10" } else { "0.8 to 2.5" }
    );
    bench.report.load.0 = load_average();
    let wanted = |group: &str| args.only.is_empty() || args.only.iter().any(|only| only == group);
    for group in GROUPS {
        if !wanted(group) {
            continue;
        }
        println!("== {group} ({} s)", began.elapsed().as_secs());
        let result = match group {
            "auth" => bench.auth(),
            "hashes" => bench.hashes(),
            "users" => bench.users(),
            "connections" => bench.connections(),
            "mail" => bench.mail(),
            "saslauthd" => bench.mux(),
            _ => bench.footprint(),
        };
        // The other groups are worth their time all the same; the page and the exit code tell.
        if let Err(error) = result {
            println!("== {group} failed: {error:#}");
            bench.report.failures.push(format!("{group}: {error:#}"));
        }
    }
    bench.report.load.1 = load_average();
    if args.only.is_empty() {
        bench.report.write(&args.docs)?;
        println!("== wrote {} in {} s", args.docs.join("benchmarks.md").display(), began.elapsed().as_secs());
    } else {
        println!("\n{}", bench.report.markdown());
    }
    anyhow::ensure!(bench.report.failures.is_empty(), "not everything could be measured");
    Ok(())
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
