//! The supervisor with real processes: `examples/supervised.rs` is the program under test.

// The helpers of a test may fail it; clippy.toml's permission covers only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boot::admin::{self, Request, Response, State, Status};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// The example is built together with this test, into the folder beside it.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples/supervised");
    assert!(path.exists(), "{} is missing: cargo test builds it unless told `--test`", path.display());
    path
}

/// A running stack in its own state folder; killed and cleaned up when dropped.
struct Stack {
    folder: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
}

impl Stack {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts `base` (tier 0, a unix socket) and `front` (tier 1, a TCP and a unix socket).
    fn start_with(change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let address = free_address();
        let mut plan = default_plan(folder.path(), address);
        change(&mut plan);
        fs::write(folder.path().join("plan.json"), plan.to_string()).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program())
            .arg("run")
            .arg(folder.path().join("plan.json"))
            .env("HUNTER2", "secret")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stack = Self { folder, child, address };
        let mut line = String::new();
        BufReader::new(stack.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "READY\n", "{}", stack.log());
        stack
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn change_plan(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.path("plan.json")).unwrap();
        let mut plan: Value = serde_json::from_str(&text).unwrap();
        change(&mut plan);
        fs::write(self.path("plan.json"), plan.to_string()).unwrap();
    }

    fn admin(&self, request: &Request) -> Result<Response, boot::Error> {
        admin::request(&self.path("sockets/control"), request)
    }

    fn status(&self) -> Status {
        match self.admin(&Request::Status).unwrap() {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn process(&self, role: &str) -> admin::Process {
        self.status().processes.into_iter().find(|process| process.role == role).unwrap()
    }

    fn ask(&self, word: &str) -> String {
        ask(TcpStream::connect(self.address).unwrap(), word)
    }

    fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    fn exit_code(&mut self) -> i32 {
        let child = &mut self.child;
        wait_for("the supervisor's end", || child.try_wait().unwrap()).code().unwrap()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn default_plan(folder: &Path, address: SocketAddr) -> Value {
    json!({
        "state": folder,
        "grace_ms": 5000,
        "daemons": [
            { "role": "base", "tier": 0, "slice": "b", "unix": { folder.join("sockets/base").to_str().unwrap(): 0o666 } },
            { "role": "front", "tier": 1, "slice": "one", "tcp": { "main": address },
              "unix": { folder.join("sockets/front").to_str().unwrap(): 0o600 } },
        ],
    })
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn ask(mut stream: impl Read + Write, word: &str) -> String {
    stream.write_all(format!("{word}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn send_signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}

fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_running(pid: u32) -> bool {
    // A zombie (its parent is init or a shell that has not looked yet) is gone as far as anybody is concerned.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        !state.starts_with(['Z', 'X'])
    })
}

fn status_field(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn status_shows_every_process() {
    let stack = Stack::start();
    let _open = TcpStream::connect(stack.address).unwrap();
    assert_eq!(stack.ask("slice"), "one");
    let status = stack.status();
    let roles: Vec<&str> = status.processes.iter().map(|process| process.role.as_str()).collect();
    assert_eq!(roles, ["supervisor", "base", "front"]);
    assert_eq!(status.processes[0].pid, Some(stack.child.id()));
    for process in &status.processes {
        assert_eq!((process.state, process.restarts), (State::Ready, 0), "{process:?}");
        assert!(process.memory_kib.unwrap() > 100 && process.since.unwrap() > 1_700_000_000, "{process:?}");
    }
    let front =
        wait_for("both connections", || Some(stack.process("front")).filter(|one| one.total == Some(2)));
    assert!(front.connections >= Some(1));
    assert_eq!(fs::read_to_string(stack.path("test.pid")).unwrap(), format!("{}\n", stack.child.id()));
}

#[test]
fn sockets_have_their_modes_and_go_away_in_the_end() {
    let mut stack = Stack::start();
    for (name, wanted) in [("control", 0o600), ("base", 0o666), ("front", 0o600)] {
        assert_eq!(mode(&stack.path("sockets").join(name)), wanted, "{name}");
    }
    assert_eq!(mode(&stack.path("sockets")), 0o755);
    assert_eq!(ask(UnixStream::connect(stack.path("sockets/base")).unwrap(), "slice"), "b");
    stack.signal("INT");
    assert_eq!(stack.exit_code(), 0);
    assert_eq!(fs::read_dir(stack.path("sockets")).unwrap().count(), 0);
    assert!(!stack.path("test.pid").exists());
}

#[test]
fn a_daemon_is_confined() {
    let stack = Stack::start();
    let pid = stack.process("front").pid.unwrap();
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "Umask"), "0077");
    assert_eq!(status_field(pid, "Name"), "postern-front");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let files = limit("Max open files");
    assert_eq!(files[0], files[1]);
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(arguments.ends_with(b"\0daemon\0front\0"));
    let environment = stack.ask("environment");
    assert!(environment.contains("PATH") && !environment.contains("HUNTER2"), "{environment}");
    // Files of a process that is not dumpable belong to root; as root, that cannot be told apart here.
    if !is_root() {
        assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    }
}

#[test]
fn a_daemon_runs_as_its_own_user() {
    if !is_root() {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        return eprintln!("SKIPPED: only root can start daemons as other users");
    }
    const NOBODY: u32 = 65_534;
    let stack = Stack::start_with(|plan| plan["daemons"][1]["uid"] = NOBODY.into());
    let front = stack.process("front");
    let pid = front.pid.unwrap();
    assert_eq!(front.uid, NOBODY);
    let four = vec![NOBODY.to_string(); 4].join(" ");
    assert_eq!((status_field(pid, "Uid"), status_field(pid, "Gid")), (four.clone(), four));
    assert_eq!(status_field(pid, "Groups"), NOBODY.to_string());
    assert_eq!(status_field(pid, "CapEff"), "0000000000000000");
    assert!(front.memory_kib.is_some(), "a process must be able to report its memory under its own user");
    assert_eq!(fs::symlink_metadata(stack.path("sockets/front")).unwrap().uid(), NOBODY);
    // Not dumpable: its files in /proc stay root's.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);

    // Another user on reload means another process; the port answers all the time.
    stack.change_plan(|plan| plan["daemons"][1]["uid"] = Value::Null);
    assert_eq!(stack.admin(&Request::Reload).unwrap(), Response::Done);
    let next = wait_for("the new process", || {
        Some(stack.process("front")).filter(|one| one.state == State::Ready && one.pid != Some(pid))
    });
    assert_eq!((next.uid, next.restarts), (0, 0));
    assert_eq!(stack.ask("pid"), next.pid.unwrap().to_string());
}

#[test]
fn files_are_restricted_before_main() {
    let stack = Stack::start_with(|plan| plan["daemons"][1]["files"] = json!(["/usr", "/lib"]));
    let seen = stack.ask("read");
    if stack.log().contains("files are not restricted") {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        return eprintln!("SKIPPED: this kernel has no landlock with ABI 2 or later");
    }
    assert!(seen.contains("PermissionDenied"), "{seen}");
    assert!(stack.process("front").memory_kib.is_some());
}

#[test]
fn connections_wait_while_a_daemon_is_dead() {
    let stack = Stack::start();
    let first = stack.process("front").pid.unwrap();
    for round in 1..=2 {
        let pid = stack.process("front").pid.unwrap();
        send_signal(pid, "KILL");
        for _ in 0..20 {
            assert_eq!(stack.ask("slice"), "one");
        }
        let front = stack.process("front");
        assert_eq!((front.restarts, front.state), (round, State::Ready));
    }
    assert_ne!(stack.process("front").pid, Some(first));
    assert_eq!(stack.process("base").restarts, 0);
    let log = stack.log();
    assert!(log.contains("killed by SIGKILL") && log.contains("starting it again in 200ms"), "{log}");
}

#[test]
fn daemons_do_not_outlive_their_supervisor() {
    let mut stack = Stack::start();
    let pids: Vec<u32> =
        stack.status().processes.iter().skip(1).map(|process| process.pid.unwrap()).collect();
    // One that does nothing of its own accord any more, and one that is well.
    let mut wedged = TcpStream::connect(stack.address).unwrap();
    wedged.write_all(b"slice\nwedge\n").unwrap();
    BufReader::new(&wedged).read_line(&mut String::new()).unwrap();
    stack.signal("KILL");
    let killed = Instant::now();
    stack.child.wait().unwrap();
    for pid in pids {
        wait_for("a daemon's end", || (!is_running(pid)).then_some(()));
    }
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
}

#[test]
fn a_next_start_replaces_what_a_killed_one_left() {
    let mut stack = Stack::start();
    stack.signal("KILL");
    stack.child.wait().unwrap();
    assert!(stack.path("sockets/base").exists() && stack.path("test.pid").exists());
    let mut again = Command::new(program())
        .arg("run")
        .arg(stack.path("plan.json"))
        .stdout(Stdio::piped())
        .stderr(fs::File::create(stack.path("log2")).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(again.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "READY\n", "{}", fs::read_to_string(stack.path("log2")).unwrap());
    assert_eq!(stack.ask("slice"), "one");
    stack.admin(&Request::Stop).unwrap();
    assert_eq!(again.wait().unwrap().code(), Some(0));
}

#[test]
fn reload_swaps_slices_and_sockets_without_a_refused_connection() {
    let stack = Stack::start();
    let pid = stack.ask("pid");
    let added = free_address();
    let mut living = TcpStream::connect(stack.address).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hammer = scope.spawn(|| {
            let mut done = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || done < 50 {
                assert!(["one", "two", "three"].contains(&stack.ask("slice").as_str()));
                done += 1;
            }
        });
        stack.change_plan(|plan| {
            plan["daemons"][1]["slice"] = "two".into();
            plan["daemons"][1]["tcp"]["more"] = json!(added);
            let sockets = plan["daemons"][1]["unix"].as_object_mut().unwrap();
            sockets.clear();
            let renamed = stack.path("sockets/base").to_str().unwrap().to_owned();
            plan["daemons"][0]["unix"][renamed] = 0o600.into();
        });
        assert_eq!(stack.admin(&Request::Reload).unwrap(), Response::Done);
        assert_eq!(stack.ask("slice"), "two");
        assert_eq!(ask(TcpStream::connect(added).unwrap(), "slice"), "two");
        assert!(!stack.path("sockets/front").exists());
        assert_eq!(mode(&stack.path("sockets/base")), 0o600);

        // By signal, and the added port goes again.
        stack.change_plan(|plan| {
            plan["daemons"][1]["slice"] = "three".into();
            plan["daemons"][1]["tcp"].as_object_mut().unwrap().remove("more");
        });
        stack.signal("HUP");
        wait_for("the second reload", || (stack.status().reloads == 2).then_some(()));
        assert_eq!(stack.ask("slice"), "three");
        assert!(TcpStream::connect(added).is_err());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        hammer.join().unwrap();
    });
    assert_eq!(stack.ask("pid"), pid, "a reload must not start new processes");
    living.write_all(b"slice\n").unwrap();
    let mut line = String::new();
    BufReader::new(living).read_line(&mut line).unwrap();
    assert_eq!(line, "one\n", "a living connection keeps what it has");
}

#[test]
fn a_refused_reload_changes_nothing() {
    let stack = Stack::start();
    let good = fs::read_to_string(stack.path("plan.json")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();

    fs::write(stack.path("plan.json"), "{ nonsense").unwrap();
    let error = stack.admin(&Request::Reload).unwrap_err();
    assert!(matches!(&error, boot::Error::Refused(text) if text.contains("reading the plan")), "{error}");

    fs::write(stack.path("plan.json"), &good).unwrap();
    stack.change_plan(|plan| {
        plan["daemons"][1]["slice"] = "two".into();
        plan["daemons"][1]["tcp"]["taken"] = json!(taken.local_addr().unwrap());
        plan["daemons"][0]["unix"].as_object_mut().unwrap().clear();
    });
    let error = stack.admin(&Request::Reload).unwrap_err().to_string();
    assert!(error.contains("is already in use by"), "{error}");
    assert_eq!(stack.ask("slice"), "one");
    assert!(stack.path("sockets/base").exists());
    assert!(stack.status().last_reload_error.unwrap().contains("already in use"));

    // A daemon may refuse as well; the others go on with the new configuration.
    fs::write(stack.path("plan.json"), &good).unwrap();
    stack.change_plan(|plan| plan["daemons"][1]["slice"] = "refused".into());
    let error = stack.admin(&Request::Reload).unwrap_err().to_string();
    assert!(error.contains("front keeps its old configuration: this slice is refused"), "{error}");
    assert_eq!(stack.ask("slice"), "one");

    fs::write(stack.path("plan.json"), &good).unwrap();
    assert_eq!(stack.admin(&Request::Reload).unwrap(), Response::Done);
    assert_eq!(stack.status().last_reload_error, None);
}

#[test]
fn daemons_come_and_go_with_the_plan() {
    let stack = Stack::start();
    let address = free_address();
    stack.change_plan(|plan| {
        let other = json!({ "role": "other", "tier": 1, "slice": "o", "tcp": { "other": address } });
        plan["daemons"].as_array_mut().unwrap().push(other);
    });
    stack.admin(&Request::Reload).unwrap();
    assert_eq!(ask(TcpStream::connect(address).unwrap(), "slice"), "o");
    stack.change_plan(|plan| drop(plan["daemons"].as_array_mut().unwrap().pop()));
    stack.admin(&Request::Reload).unwrap();
    wait_for("its end", || (!stack.status().processes.iter().any(|one| one.role == "other")).then_some(()));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(stack.ask("slice"), "one");
}

#[test]
fn stop_takes_fronts_first_and_waits_for_what_is_in_flight() {
    let mut stack = Stack::start();
    let mut open = TcpStream::connect(stack.address).unwrap();
    open.write_all(b"pid\n").unwrap();
    let mut reader = BufReader::new(open.try_clone().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    stack.signal("TERM");
    wait_for("the front to stop", || (stack.process("front").state == State::Stopping).then_some(()));
    assert_eq!(stack.process("base").state, State::Ready);
    // In flight: still answered. And what the front depends on still serves.
    open.write_all(b"slice\n").unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    assert_eq!(ask(UnixStream::connect(stack.path("sockets/base")).unwrap(), "slice"), "b");
    drop((open, reader));
    assert_eq!(stack.exit_code(), 0);
    let log = stack.log();
    let ended = |role: &str| log.find(&format!("ended role={role}")).unwrap();
    assert!(ended("front") < ended("base"), "{log}");
}

#[test]
fn a_stubborn_daemon_is_killed_after_the_grace_time() {
    let mut stack = Stack::start_with(|plan| {
        plan["grace_ms"] = 200.into();
        plan["daemons"][1]["slice"] = "stubborn".into();
    });
    stack.signal("TERM");
    assert_eq!(stack.exit_code(), 0);
    assert!(stack.log().contains("did not stop in time"));
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut stack = Stack::start_with(|plan| {
        plan["grace_ms"] = 600_000.into();
        plan["daemons"][1]["slice"] = "stubborn".into();
    });
    stack.signal("INT");
    wait_for("the stop", || stack.log().contains("stopping: INT").then_some(()));
    stack.signal("TERM");
    assert_eq!(stack.exit_code(), 1);
}

#[test]
fn term_to_one_daemon_restarts_it() {
    let stack = Stack::start();
    let pid = stack.process("front").pid.unwrap();
    for ignored in ["INT", "HUP", "USR1"] {
        send_signal(pid, ignored);
    }
    assert_eq!(stack.ask("pid"), pid.to_string());
    send_signal(pid, "TERM");
    wait_for("the restart", || (stack.process("front").restarts == 1).then_some(()));
    assert_eq!(stack.ask("slice"), "one");
}

#[test]
fn a_panic_of_one_connection_is_one_log_line() {
    let stack = Stack::start();
    assert_eq!(stack.ask("panic"), "");
    wait_for("the log line", || {
        stack.log().contains("internal error (panic): asked to place=").then_some(())
    });
    assert_eq!(stack.process("front").restarts, 0);
}

#[test]
fn second_start_on_one_state_folder_says_who_holds_it() {
    let stack = Stack::start();
    let second = Command::new(program()).arg("run").arg(stack.path("plan.json")).output().unwrap();
    assert_eq!(second.status.code(), Some(i32::from(boot::exit::TEMPFAIL)));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains(&format!("is held by process {}", stack.child.id())), "{text}");
    assert_eq!(stack.ask("slice"), "one");
    assert!(stack.path("test.pid").exists());
}

#[test]
fn a_used_port_is_one_sentence_and_its_own_code() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap();
    fs::write(folder.path().join("plan.json"), default_plan(folder.path(), address).to_string()).unwrap();
    let output = Command::new(program()).arg("run").arg(folder.path().join("plan.json")).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(boot::exit::UNAVAILABLE)));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("{address} is already in use by supervise-")), "{text}");
    let hints: Vec<&str> = text.lines().skip(1).collect();
    assert!(matches!(hints.as_slice(), [hint] if hint.contains("postern doctor")), "{text}");
    assert!(!folder.path().join("test.pid").exists());
    assert_eq!(fs::read_dir(folder.path().join("sockets")).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_cannot_run_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = default_plan(folder.path(), free_address());
    plan["daemons"][1]["role"] = "broken".into();
    fs::write(folder.path().join("plan.json"), plan.to_string()).unwrap();
    let output = Command::new(program()).arg("run").arg(folder.path().join("plan.json")).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(boot::exit::CONFIG)));
    assert!(String::from_utf8(output.stderr).unwrap().contains("broken: the slice makes no sense"));
}

#[test]
fn questions_reach_their_daemon() {
    let stack = Stack::start();
    let ask = |role: &str, body: Value| stack.admin(&Request::Ask { role: role.into(), body });
    assert_eq!(ask("base", json!("slice")).unwrap(), Response::Answer(json!("b")));
    assert!(ask("base", json!("what")).unwrap_err().to_string().contains("no such command"));
    assert!(ask("nobody", json!("slice")).unwrap_err().to_string().contains("no nobody daemon is running"));
}

#[test]
fn only_root_and_the_same_user_may_use_the_admin_socket() {
    if !is_root() {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        return eprintln!("SKIPPED: only root can start a program as another user");
    }
    let stack = Stack::start();
    let copy = stack.path("program");
    fs::copy(program(), &copy).unwrap();
    let as_nobody = || {
        let mut command = Command::new(&copy);
        command.arg("status").arg(stack.path("sockets/control")).uid(65_534).gid(65_534).output().unwrap()
    };
    let output = as_nobody();
    assert_eq!(output.status.code(), Some(i32::from(boot::exit::UNAVAILABLE)), "{output:?}");
    // Even if the mode were wrong.
    fs::set_permissions(stack.path("sockets/control"), fs::Permissions::from_mode(0o666)).unwrap();
    let output = as_nobody();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only root and uid 0"), "{output:?}");
    assert!(stack.log().contains("refused on the admin socket"));
    stack.status();
}

#[test]
fn garbage_on_the_admin_socket_harms_nobody() {
    let stack = Stack::start();
    let silent: Vec<UnixStream> =
        (0..10).map(|_| UnixStream::connect(stack.path("sockets/control")).unwrap()).collect();
    for garbage in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0, 1, 0, 0, 255, 255, 255, 255],
        &[0, 1, 0, 0, 0, 0, 0, 2, b'{', b'}'],
    ] {
        let mut stream = UnixStream::connect(stack.path("sockets/control")).unwrap();
        stream.write_all(garbage).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    }
    assert_eq!(stack.status().processes.len(), 3);
    drop(silent);
}

#[test]
fn sockets_of_the_service_manager_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = passed.local_addr().unwrap();
    // The plan names another port: the name of the descriptor decides.
    let plan = default_plan(folder.path(), free_address());
    fs::write(folder.path().join("plan.json"), plan.to_string()).unwrap();
    let script = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=main exec \"$0\" run \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(program())
        .arg(folder.path().join("plan.json"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(passed)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let answer = TcpStream::connect(address).map(|stream| ask(stream, "slice"));
    send_signal(child.id(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((line.as_str(), answer.unwrap().as_str()), ("READY\n", "one"));
}

#[test]
fn the_hidden_command_is_not_for_people() {
    let output = Command::new(program()).args(["daemon", "front"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(boot::exit::EX_USAGE)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is started by the supervisor"));
}

#[test]
fn systemd_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let notify = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let plan = default_plan(folder.path(), free_address());
    fs::write(folder.path().join("plan.json"), plan.to_string()).unwrap();
    let mut child = Command::new(program())
        .arg("run")
        .arg(folder.path().join("plan.json"))
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "200000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let next = |wanted: &str| loop {
        let mut text = [0; 512];
        let length = socket.recv(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    };
    next("READY=1");
    next("WATCHDOG=1");
    send_signal(child.id(), "HUP");
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    send_signal(child.id(), "TERM");
    next("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
