//! Soak of the auth socket: aborted exchanges and short connections against a running stack, with the daemon's
//! memory and descriptors before and after.
//!
//! ```sh
//! cargo run --release --example soak -- --state-dir postern-state            # the long form
//! cargo run --release --example soak -- --state-dir postern-state --exchanges 20000 --connections 2000
//! ```
//!
//! Exit code 0: flat. 1: something grew, or the daemon was replaced. The interop tests run the short form.
#![forbid(unsafe_code)]
// A command for developers: it prints, and it stops at the first surprise.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;

/// Memory that may stay behind: freed pages the allocator keeps, tables grown once.
const SLACK_KIB: u64 = 8 * 1024;
/// Exchanges on one connection before the next one is opened.
const BATCH: u64 = 500;

#[derive(Parser)]
struct Args {
    /// State folder of the running stack.
    #[arg(long, default_value = "postern-state")]
    state_dir: PathBuf,
    /// LOGIN exchanges to begin and abandon.
    #[arg(long, default_value_t = 1_000_000)]
    exchanges: u64,
    /// Connections to open and close, one after another.
    #[arg(long, default_value_t = 100_000)]
    connections: u64,
}

fn main() {
    let args = Args::parse();
    let socket = args.state_dir.join("sockets/auth-client");
    let daemon = auth_daemon(&args.state_dir);
    // What is made once (threads, tables) is made before the first look.
    exchanges(&socket, BATCH * 4);
    connections(&socket, 200);
    let before = look(daemon);
    println!("before:            {before:?}");

    let began = Instant::now();
    exchanges(&socket, args.exchanges);
    println!("{} exchanges:  {:?} in {:?}", args.exchanges, look(daemon), began.elapsed());
    let began = Instant::now();
    connections(&socket, args.connections);
    println!("{} connections: {:?} in {:?}", args.connections, look(daemon), began.elapsed());

    // The daemon sees the last hang-ups a moment after us.
    let end = Instant::now() + Duration::from_secs(10);
    let mut after = look(daemon);
    while after.descriptors > before.descriptors && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        after = look(daemon);
    }
    println!("after:             {after:?}");
    assert_eq!(daemon, auth_daemon(&args.state_dir), "the daemon was replaced");
    assert!(after.descriptors <= before.descriptors, "descriptors grew");
    assert!(after.resident_kib <= before.resident_kib + SLACK_KIB, "memory grew");
    println!("flat");
}

/// Begins LOGIN exchanges and leaves them, in all the ways a client can: by CANCEL, and by going away.
fn exchanges(socket: &Path, count: u64) {
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        let (mut stream, mut reader) = greeted(socket);
        for id in 1..=batch {
            let end = if id % 2 == 0 { format!("CANCEL\t{id}\n") } else { String::new() };
            stream.write_all(format!("AUTH\t{id}\tLOGIN\tservice=smtp\n{end}").as_bytes()).expect("write");
        }
        // A cancelled exchange may have been asked for its user name before; the others all are.
        let mut line = String::new();
        for _ in 0..batch.div_ceil(2) {
            line.clear();
            assert!(reader.read_line(&mut line).expect("read") > 0, "the daemon hung up");
            assert!(line.starts_with("CONT\t"), "{line}");
        }
        left -= batch;
    }
}

fn connections(socket: &Path, count: u64) {
    for _ in 0..count {
        drop(greeted(socket));
    }
}

fn greeted(socket: &Path) -> (UnixStream, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(socket).expect("the stack runs");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    let mut line = String::new();
    while line != "DONE\n" {
        line.clear();
        assert!(reader.read_line(&mut line).expect("read") > 0, "no greeting");
    }
    stream.write_all(b"VERSION\t1\t2\nCPID\t1\n").expect("write");
    (stream, reader)
}

#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // printed
struct Look {
    resident_kib: u64,
    /// 0 where the descriptors of another account's process may not be listed.
    descriptors: usize,
}

fn look(pid: u32) -> Look {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    Look {
        resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
    }
}

/// The supervisor's child whose command line ends in `daemon auth`.
fn auth_daemon(state_dir: &Path) -> u32 {
    let supervisor = fs::read_to_string(state_dir.join("postern.pid")).expect("the stack runs");
    let supervisor = supervisor.trim();
    let children =
        fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).expect("children");
    let found = children.split_whitespace().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"daemon\0auth\0"))
    });
    found.and_then(|pid| pid.parse().ok()).expect("an auth daemon")
}
