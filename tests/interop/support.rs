//! Starting and stopping stacks, running peers with a time limit, skipping with a reason.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Host name of every test stack: the default domain, and a name in its certificate.
pub const HOSTNAME: &str = "mail.example.test";
/// First user of every test stack.
pub const USER: &str = "alice";
/// Her password.
pub const PASSWORD: &str = "correct horse 7";
/// Longest time a peer program may run.
const PEER_LIMIT: Duration = Duration::from_secs(60);
/// Longest time a stack may take to start or to stop.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest time a daemon may take to stop that is of no more use.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Says why a test did nothing; fails instead where skips are forbidden.
pub fn skip(reason: &str) {
    assert!(
        std::env::var("POSTERN_TEST_SKIPS").as_deref() != Ok("fail"),
        "SKIP is not allowed here: {reason}"
    );
    println!("SKIP {reason}");
}

/// Are all these programs installed? Otherwise the test skips.
#[must_use]
pub fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|p| find_program(p).is_none()).collect();
    if !missing.is_empty() {
        skip(&format!("not installed: {missing:?}"));
    }
    missing.is_empty()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/lib/dovecot".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A running `postern run` on a scratch state folder.
pub struct Stack {
    scratch: tempfile::TempDir,
    child: Option<Child>,
    pub port_base: u16,
    extra: Vec<String>,
}

/// The ports of the embedded default, as offsets to the port base.
pub const OFFSETS: [u16; 7] = [25, 110, 143, 465, 587, 993, 995];

impl Stack {
    /// A stack with user [`USER`], ready to be talked to.
    pub fn start() -> Stack {
        Stack::start_with(&[])
    }

    /// The same with further arguments of `postern run`.
    pub fn start_with(extra: &[&str]) -> Stack {
        let scratch = tempfile::Builder::new().prefix("pst").tempdir_in("/tmp").expect("scratch folder");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
            .expect("mode of the scratch folder");
        fs::write(scratch.path().join("password"), PASSWORD).expect("password file");
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut stack = Stack { scratch, child: None, port_base: free_port_base(), extra };
        stack.launch();
        stack
    }

    /// Starts the program (again) and waits for all ports.
    pub fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("postern starts");
        self.child = Some(child);
        self.wait_for_ports();
    }

    /// The command line of this stack, not yet started.
    pub fn command(&self) -> Command {
        let mut command = postern();
        command
            .args(["run", "--hostname", HOSTNAME, "--first-user", USER, "--listen", "127.0.0.1"])
            .arg("--state-dir")
            .arg(self.state())
            .arg("--first-password-file")
            .arg(self.scratch.path().join("password"))
            .args(["--port-base", &self.port_base.to_string()])
            .args(&self.extra);
        command
    }

    fn wait_for_ports(&mut self) {
        let (path, addresses) = (self.log_path(), OFFSETS.map(|offset| self.address(offset)));
        let log = || fs::read_to_string(&path).unwrap_or_default();
        for address in addresses {
            wait_within(START_LIMIT, log, || {
                let exited = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
                assert!(exited.is_none(), "stack not up ({exited:?}):\n{}", log());
                TcpStream::connect(address).ok()
            });
        }
        // Ports answer as soon as they are bound; daemons are up when each has greeted.
        for offset in [25, 110, 143] {
            let mut socket = self.connect(offset);
            let mut byte = [0];
            socket
                .read_exact(&mut byte)
                .unwrap_or_else(|e| panic!("no greeting on +{offset}: {e}\n{}", self.log()));
        }
    }

    /// Sends TERM and waits for an orderly exit; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let ended = end_within(START_LIMIT, self.child.take()?);
        ended.unwrap_or_else(|| panic!("stack did not stop in time:\n{}", self.log())).code()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("the stack runs")
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.state().join("sockets").join(name)
    }

    pub fn ca(&self) -> PathBuf {
        self.state().join("tls/ca.pem")
    }

    pub fn maildir(&self, user: &str) -> PathBuf {
        self.state().join("mail").join(user).join("Maildir")
    }

    pub fn port(&self, offset: u16) -> u16 {
        self.port_base + offset
    }

    pub fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port(offset)))
    }

    pub fn connect(&self, offset: u16) -> TcpStream {
        let socket = TcpStream::connect(self.address(offset)).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("read timeout");
        socket
    }

    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Runs an admin command on this stack's state folder.
    pub fn admin(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = postern();
        command.args(args).arg("--state-dir").arg(self.state());
        run(command, stdin)
    }

    pub fn add_user(&self, name: &str, password: &str) {
        let out = self.admin(&["user", "add", name, "--password-stdin"], &format!("{password}\n"));
        assert!(out.status.success(), "user add: {}", show(&out));
    }

    /// Messages in `new` and `cur` of the user's INBOX.
    pub fn messages(&self, user: &str) -> Vec<PathBuf> {
        ["new", "cur"]
            .iter()
            .filter_map(|sub| fs::read_dir(self.maildir(user).join(sub)).ok())
            .flatten()
            .map(|entry| entry.expect("entry").path())
            .collect()
    }

    /// Waits until the user's INBOX holds `count` messages.
    pub fn wait_for_messages(&self, user: &str, count: usize) -> Vec<PathBuf> {
        wait_for(&format!("{count} messages of {user}"), || {
            let found = self.messages(user);
            (found.len() >= count).then_some(found)
        })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

/// The program under test.
pub fn postern() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    for name in ["POSTERN_CONFIG", "POSTERN_STATE_DIR", "SUDO_USER", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// A peer program with a clean, private environment.
pub fn peer(program: &str, home: &Path) -> Command {
    let mut command = Command::new(find_program(program).unwrap_or_else(|| program.into()));
    command.env("HOME", home).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").current_dir(home);
    command
}

/// Runs a command to its end with `stdin`; kills it after a minute.
pub fn run(mut command: Command, stdin: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut pipe = child.stdin.take().expect("stdin");
    let text = stdin.to_owned();
    let writer = std::thread::spawn(move || {
        let _ = pipe.write_all(text.as_bytes());
    });
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if finished.recv_timeout(PEER_LIMIT).is_err() {
            signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("wait");
    let _ = done.send(());
    let _ = watchdog.join();
    let _ = writer.join();
    output
}

pub fn show(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid"));
    let _ = nix::sys::signal::kill(pid, signal);
}

/// Polls until `probe` gives something or the time is over. The one place that sleeps between looks.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        let last = Instant::now() >= end;
        let found = probe();
        if found.is_some() || last {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls until `probe` gives something; fails after `limit`, saying `what`.
pub fn wait_within<T>(limit: Duration, what: impl Fn() -> String, probe: impl FnMut() -> Option<T>) -> T {
    poll(limit, probe).unwrap_or_else(|| panic!("{limit:?} waited in vain: {}", what()))
}

/// Polls until `probe` gives something; fails after half a minute.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_within(Duration::from_secs(30), || what.to_owned(), probe)
}

/// Waits until the last of these processes is gone; fails after `limit`, naming who outlived `whom`.
pub fn wait_for_end(limit: Duration, whom: &str, pids: &[u32]) {
    let left = || pids.iter().copied().filter(|pid| alive(*pid)).collect::<Vec<_>>();
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let told = || format!("{:?} outlived {whom}", left().iter().map(name).collect::<Vec<_>>());
    wait_within(limit, told, || left().is_empty().then_some(()));
}

/// Sends TERM and waits for the end; a child that stays is killed after a while.
pub fn end(child: Child) {
    end_within(STOP_LIMIT, child);
}

/// The same; `None` if it had to be killed.
pub fn end_within(limit: Duration, mut child: Child) -> Option<ExitStatus> {
    signal(child.id(), nix::sys::signal::Signal::SIGTERM);
    let ended = poll(limit, || child.try_wait().expect("wait"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

/// A request as saslauthd's clients send it: strings with their lengths.
pub fn mux_request<F: AsRef<[u8]>>(fields: impl IntoIterator<Item = F>) -> Vec<u8> {
    let mut request = Vec::new();
    for field in fields {
        let field = field.as_ref();
        request.extend_from_slice(&u16::try_from(field.len()).expect("short").to_be_bytes());
        request.extend_from_slice(field);
    }
    request
}

/// saslauthd's answer: `OK …`, `NO …`, or nothing for a connection that was closed without one.
pub fn mux_answer(path: &Path, user: &str, password: &str, service: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("mux");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    stream.write_all(&mux_request([user, password, service, ""])).expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    String::from_utf8_lossy(answer.get(2..).unwrap_or_default()).into_owned()
}

/// A port base whose ports are all free now. Tests run in parallel threads and draw different ones: steps of 101
/// never let two bases share a port, whatever the offsets; all stay below the range of outgoing connections.
pub fn free_port_base() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..108 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id();
        let base = 20_000 + u16::try_from(step % 108).expect("small") * 101;
        let free = |offset: &u16| TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, base + offset)).is_ok();
        if OFFSETS.iter().all(free) {
            return base;
        }
    }
    panic!("no free ports");
}

/// A small message with a marker in its subject.
pub fn message(marker: &str) -> String {
    format!(
        "From: {USER}@{HOSTNAME}\r\nTo: {USER}@{HOSTNAME}\r\nSubject: {marker}\r\n\r\nfirst line\r\n.leading dot\r\n\r\nlast line\r\n"
    )
}

/// A command that runs in a private mount namespace where each first path is mounted over the second one; add the
/// program and its arguments. `None` where that is not possible.
pub fn private_mounts(mounts: &[(PathBuf, PathBuf)]) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command
    };
    let possible = unshare().args(["mount", "--bind", "/tmp", "/tmp"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut script = String::new();
    for (from, over) in mounts {
        script += &format!("mount --bind '{}' '{}' && ", from.display(), over.display());
    }
    let mut command = unshare();
    command.args(["sh", "-c", &format!("{script}exec \"$@\""), "private"]);
    Some(command)
}

/// Children, their children, and so on, from the top.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<u32> = children
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        all.extend(children);
        next += 1;
    }
    all.split_off(1)
}

/// Whether the process runs; zombies do not.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}
