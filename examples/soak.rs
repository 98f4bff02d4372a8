//! Soak of the auth socket: aborted exchanges and short connections against a running stack, with the daemon's
//! memory and descriptors before and after.
//!
//! ```sh
//! cargo run --release --example soak -- --state-dir postern-state            # the long form
//! cargo run --release --example soak -- --state-dir postern-state --exchanges 20000 --connections 2000
//! # logins through workers instead, for modules that leak: every process must stay as small as it was in the first fifth
//! cargo run --release --example soak -- --state-dir /var/lib/postern --client /run/postern/client --logins 10000 \
//!     --user alice --password-file /root/alices-password --service smtp
//! ```
//!
//! Exit code 0: flat. 1: something grew, or the daemon was replaced. The interop tests run the short form.
//!
//! Trust: started by hand or by a test; reads what the daemon under test answers, and stops when that is not expected.
//! Never: print the password, or end with 0 when a look could not be taken.
#![forbid(unsafe_code)]
// A command for developers: it prints, and it stops at the first surprise.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;

/// Memory that may stay behind: freed pages the allocator keeps, tables grown once.
const SLACK_KIB: u64 = 8 * 1024;
/// Logins under way at a time.
const IN_FLIGHT: u32 = 16;
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
    /// Right logins to do instead, each from an address of its own, so that no cache answers.
    #[arg(long, default_value_t = 0, requires_all = ["user", "password_file"])]
    logins: u32,
    /// The client socket for them. Default: `sockets/auth-client` of the state folder.
    #[arg(long)]
    client: Option<PathBuf>,
    /// Who logs in.
    #[arg(long)]
    user: Option<String>,
    /// File with the password.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Service the logins are for.
    #[arg(long, default_value = "smtp")]
    service: String,
}

fn main() {
    let args = Args::parse();
    let socket = args.client.clone().unwrap_or_else(|| args.state_dir.join("sockets/auth-client"));
    if args.logins > 0 {
        return logins(&socket, &args);
    }
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

    let after = settled(daemon, before.descriptors);
    println!("after:             {after:?}");
    assert_eq!(daemon, auth_daemon(&args.state_dir), "the daemon was replaced");
    assert!(after.descriptors <= before.descriptors, "descriptors grew");
    assert!(after.resident_kib <= before.resident_kib + SLACK_KIB, "memory grew");
    println!("flat");
}

/// Logs in again and again, and watches every process of the stack.
fn logins(socket: &Path, args: &Args) {
    let read = args.password_file.as_ref().expect("clap wants it");
    let password = fs::read_to_string(read).expect("the password file");
    let user = args.user.as_deref().unwrap_or_default();
    let response = STANDARD.encode(format!("\0{user}\0{}", password.trim_end()));
    let (mut stream, mut reader) = greeted(socket);
    let (mut sent, mut answered) = (0, 0);
    let mut early = BTreeMap::new();
    let mut late = BTreeMap::new();
    let mut workers = BTreeSet::new();
    let began = Instant::now();
    let mut line = String::new();
    while answered < args.logins {
        while sent < args.logins && sent - answered < IN_FLIGHT {
            sent += 1;
            let [_, b, c, d] = sent.to_be_bytes();
            let service = &args.service;
            stream
                .write_all(
                    format!("AUTH\t{sent}\tPLAIN\tservice={service}\trip=10.{b}.{c}.{d}\tresp={response}\n")
                        .as_bytes(),
                )
                .expect("write");
        }
        line.clear();
        assert!(reader.read_line(&mut line).expect("an answer in time") > 0, "the daemon hung up");
        assert!(line.starts_with("OK\t"), "{line}");
        answered += 1;
        if answered % 50 == 0 {
            let peaks = if answered <= args.logins / 5 { &mut early } else { &mut late };
            for (role, pid, resident) in processes(&args.state_dir) {
                if role == "auth-worker" {
                    workers.insert(pid);
                }
                let peak: &mut u64 = peaks.entry(role).or_default();
                *peak = resident.max(*peak);
            }
        }
    }
    println!("{answered} logins in {:?} by {} workers", began.elapsed(), workers.len());
    println!("KiB at most, first fifth: {early:?}");
    println!("KiB at most, then:        {late:?}");
    for (role, peak) in &late {
        let before = early.get(role).copied().unwrap_or(*peak);
        assert!(*peak <= before + before / 2 + SLACK_KIB, "{role} grew");
    }
    println!("flat");
}

/// Role, pid and resident KiB of every process below the supervisor.
fn processes(state_dir: &Path) -> Vec<(String, u32, u64)> {
    let supervisor = fs::read_to_string(state_dir.join("postern.pid")).expect("the stack runs");
    let mut open = vec![supervisor.trim().parse::<u32>().expect("a pid")];
    let mut found = Vec::new();
    while let Some(pid) = open.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for list in tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()) {
            open.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let Some(role) = words.iter().position(|word| *word == b"daemon").and_then(|at| words.get(at + 1))
        else {
            continue;
        };
        // It may be gone by now: workers come and go.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        found.extend(resident.map(|resident| (String::from_utf8_lossy(role).into_owned(), pid, resident)));
    }
    found
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

/// A look when the daemon has seen the last hang-ups, which is a moment after us; or after ten seconds.
fn settled(pid: u32, descriptors: usize) -> Look {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let look = look(pid);
        if look.descriptors <= descriptors || Instant::now() > end {
            return look;
        }
        std::thread::sleep(Duration::from_millis(50));
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
