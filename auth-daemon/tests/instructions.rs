//! Instructions that a PLAIN login takes, counted by callgrind: a regression shows on a noisy machine too.
//!
//! The test starts itself under valgrind twice, with few logins and with more; the difference is what the logins took.
//! Counted are server and client of one process, socket included; nothing of the kernel.

// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use auth_daemon::Daemon;

/// Set in the process that valgrind runs: how many logins it makes.
const LOGINS: &str = "POSTERN_COUNTED_LOGINS";
/// Requests written at once.
const BATCH: u64 = 20;
const FEW: u64 = 40;
const MANY: u64 = 240;

/// Most instructions of a login. Measured: 77,400 without optimisation, 16,500 with it. The room above, 8 %, is for
/// compilers that differ, not for us.
const MOST: u64 = if cfg!(debug_assertions) { 84_000 } else { 17_900 };

#[test]
fn a_plain_login_takes_few_instructions() {
    if let Some(count) = std::env::var(LOGINS).ok().and_then(|count| count.parse().ok()) {
        log_in(count);
        return;
    }
    let version = Command::new("valgrind").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var("POSTERN_TEST_SKIPS").as_deref() != Ok("fail"), "valgrind is not installed");
        println!("SKIP valgrind is not installed");
        return;
    }
    let each = (instructions(MANY) - instructions(FEW)) / (MANY - FEW);
    println!("{each} instructions per login");
    assert!(each <= MOST, "a PLAIN login takes {each} instructions, more than {MOST}");
    assert!(each > MOST / 20, "{each} instructions are too few to be a login: the bound guards nothing");
}

/// What callgrind counts in a process that makes so many logins.
fn instructions(logins: u64) -> u64 {
    let scratch = tempfile::tempdir().expect("scratch folder");
    let file = scratch.path().join("callgrind");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_plain_login_takes_few_instructions", "--test-threads=1"])
        .env(LOGINS, logins.to_string())
        .output()
        .expect("valgrind starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(file).expect("callgrind's file");
    let total =
        text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).expect("callgrind's total")
}

/// Serves a passwd-file and logs in over its socket.
fn log_in(count: u64) {
    let scratch = tempfile::tempdir().expect("scratch folder");
    let (users, socket) = (scratch.path().join("users"), scratch.path().join("auth"));
    let lines: String = (0..100).map(|n| format!("user{n}@example.test:{{PLAIN}}pw{n}\n")).collect();
    std::fs::write(&users, lines).expect("users");
    let settings = format!(
        "version = 1\nhostname = \"mail.example.test\"\nstate_dir = \"{}\"\n\
         [[auth.listener]]\nname = \"client\"\ntype = \"client\"\npath = \"{}\"\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"{}\"\n",
        scratch.path().display(),
        socket.display(),
        users.display()
    );
    let slice =
        conf::load(&settings, Path::new("postern.toml")).expect("settings").auth_slice().expect("slice");
    let listener = UnixListener::bind(&socket).expect("socket");
    // As the daemon's own main does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut daemon = Daemon::new(&slice).expect("daemon");
        daemon.listen(HashMap::from([("client".to_owned(), vec![listener])])).expect("listening");
        tokio::task::spawn_blocking(move || client(&socket, count)).await.expect("client");
        daemon.stop(Duration::from_secs(1)).await;
    });
}

fn client(socket: &Path, count: u64) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    stream.write_all(b"VERSION\t1\t1\nCPID\t1\n").expect("write");
    let mut read = String::new();
    let mut buffer = [0; 4096];
    let mut wait_for = |stream: &mut UnixStream, lines: usize, starting: &str| {
        while read.lines().filter(|line| line.starts_with(starting)).count() < lines {
            let got = stream.read(&mut buffer).expect("an answer");
            assert!(got > 0, "the daemon hung up: {read}");
            read.push_str(std::str::from_utf8(&buffer[..got]).expect("text"));
            assert!(!read.contains("FAIL"), "{read}");
        }
        read.clear();
    };
    wait_for(&mut stream, 1, "DONE");
    // "\0user7@example.test\0pw7"
    let request = "PLAIN\tservice=smtp\tsecured\trip=192.0.2.1\tresp=AHVzZXI3QGV4YW1wbGUudGVzdABwdzc=\n";
    for first in (0..count).step_by(usize::try_from(BATCH).expect("small")) {
        let batch: String = (first..first + BATCH).map(|id| format!("AUTH\t{}\t{request}", id + 1)).collect();
        stream.write_all(batch.as_bytes()).expect("write");
        wait_for(&mut stream, usize::try_from(BATCH).expect("small"), "OK\t");
    }
}
