//! What the consumer tests share: a Postern with a configuration file, packages that are unpacked instead of
//! installed, private `/usr`, `/etc` and `/run`, foreground daemons with an owner, the blocks of `docs/interop.md`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::{HOSTNAME, end, is_root, peer, postern, run, skip, wait_for, wait_within};

/// Account of the daemons in these tests.
pub const RUN_AS: &str = "nobody";

/// The block of `docs/interop.md` below `<!-- tested: NAME -->`, with the paths of a test in place of the system's.
pub fn documented(name: &str, replace: &[(&str, &str)]) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/interop.md");
    let page = fs::read_to_string(page).expect("docs/interop.md");
    let marker = format!("<!-- tested: {name} -->\n```");
    let (_, rest) = page.split_once(&marker).unwrap_or_else(|| panic!("docs/interop.md has no block {name}"));
    let block =
        rest.split_once('\n').and_then(|(_, rest)| rest.split_once("\n```")).expect("a fenced block").0;
    let mut text = block.to_owned() + "\n";
    for (from, to) in replace {
        assert!(text.contains(from), "{name} has no {from}:\n{text}");
        text = text.replace(from, to);
    }
    text
}

/// A configuration of Postern from `docs/interop.md`, with the state folder and the account of a test.
pub fn documented_gate(name: &str, folder: &Path, replace: &[(&str, &str)]) -> String {
    let account = format!("run_as = \"{RUN_AS}\"\nstate_dir = \"{}\"", folder.join("state").display());
    let mut all = vec![("run_as = \"postern\"", account.as_str()), ("mail.example.org", HOSTNAME)];
    all.extend(replace);
    documented(name, &all)
}

/// The same configuration with refusals answered at once, for tests of many of them.
pub fn quick(config: &str) -> String {
    format!("{config}\n[auth]\nfailure_delay = \"20ms\"\n[auth.penalty]\nenabled = false\n")
}

/// A scratch folder that every account can reach.
pub fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::Builder::new().prefix("psi").tempdir_in("/tmp").expect("scratch");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    scratch
}

/// uid and gid of an account of the machine.
pub fn account(name: &str) -> (u32, u32) {
    let user = nix::unistd::User::from_name(name).expect("accounts").unwrap_or_else(|| panic!("no {name}"));
    (user.uid.as_raw(), user.gid.as_raw())
}

/// Makes this account the owner, if that can be done at all.
fn give(path: &Path, owner: &str) {
    if is_root() {
        let (uid, gid) = account(owner);
        chown(path, Some(uid), Some(gid)).expect("chown");
    }
}

/// A folder of this owner (as root) and mode.
pub fn folder(path: &Path, owner: &str, mode: u32) {
    fs::create_dir_all(path).expect("folder");
    give(path, owner);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

/// `postern run --config` with a state folder in a test's scratch folder, and the users in it.
pub struct Gate {
    folder: PathBuf,
    child: Option<Child>,
    /// A listening socket as the service manager hands it over.
    activated: Option<OwnedFd>,
}

impl Gate {
    /// Starts with this configuration and these lines in `state/users`.
    pub fn start(folder: &Path, config: &str, users: &str) -> Gate {
        Gate::start_with(folder, config, users, None)
    }

    /// The same with a socket that stays when Postern goes.
    pub fn start_with(folder: &Path, config: &str, users: &str, activated: Option<OwnedFd>) -> Gate {
        self::folder(&folder.join("state"), RUN_AS, 0o755);
        fs::write(folder.join("postern.toml"), config).expect("postern.toml");
        let mut gate = Gate { folder: folder.to_owned(), child: None, activated };
        gate.set_users(users);
        gate.launch();
        gate
    }

    /// A configuration file and nothing else yet.
    pub fn prepare(folder: &Path, config: &str) -> Gate {
        fs::write(folder.join("postern.toml"), config).expect("postern.toml");
        Gate { folder: folder.to_owned(), child: None, activated: None }
    }

    /// Replaces the users.
    pub fn set_users(&self, users: &str) {
        let staged = self.folder.join("state/users.new");
        fs::write(&staged, users).expect("users");
        give(&staged, RUN_AS);
        fs::rename(&staged, self.users()).expect("users");
    }

    fn users(&self) -> PathBuf {
        self.folder.join("state/users")
    }

    /// From now on nobody can read the users: nothing can be decided.
    pub fn break_backend(&self) {
        fs::rename(self.users(), self.folder.join("state/users.away")).expect("users");
        fs::create_dir(self.users()).expect("folder in place of the users");
    }

    /// The users are back.
    pub fn mend_backend(&self) {
        fs::remove_dir(self.users()).expect("folder in place of the users");
        fs::rename(self.folder.join("state/users.away"), self.users()).expect("users");
    }

    /// Starts the program (again) and waits until it is ready.
    pub fn launch(&mut self) {
        let before = self.log().len();
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let program = postern();
        let mut command = match &self.activated {
            None => {
                let mut command = program;
                command.stdin(Stdio::null());
                command
            }
            // The socket comes as standard input and is moved to where systemd puts the first one.
            Some(socket) => {
                let mut command = Command::new("sh");
                command.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 </dev/null", "sh"]);
                command.arg(program.get_program()).stdin(socket.try_clone().expect("socket"));
                command
            }
        };
        let child = command
            .args(["run", "--config"])
            .arg(self.folder.join("postern.toml"))
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("postern starts");
        let child = self.child.insert(child);
        wait_for("Postern", || {
            let text = fs::read_to_string(self.folder.join("gate.log")).unwrap_or_default();
            let exited = child.try_wait().expect("wait");
            assert!(exited.is_none(), "Postern ended ({exited:?}):\n{text}");
            text.get(before..).is_some_and(|new| new.contains("all daemons are ready")).then_some(())
        });
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }

    /// An admin command on this configuration.
    pub fn admin(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = postern();
        command.args(args).arg("--config").arg(self.folder.join("postern.toml"));
        run(command, stdin)
    }

    /// Process id of the supervisor.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("Postern runs")
    }

    /// Process id of the authentication daemon of this moment.
    pub fn auth_pid(&self) -> u32 {
        let supervisor = self.pid();
        wait_for("the auth daemon", || {
            let children =
                fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split(|&b| b == 0).any(|word| word == b"auth")
            })
        })
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("gate.log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A peer daemon in the foreground, stopped when dropped. Its output goes to a file: children that outlive it
/// must not hold a pipe open.
pub struct Foreground {
    child: Option<Child>,
    log: PathBuf,
}

impl Foreground {
    pub fn start(mut command: Command, log: &Path) -> Foreground {
        let file = fs::File::create(log).expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Foreground { child: Some(child), log: log.to_owned() }
    }

    /// Waits until this port of 127.0.0.1 takes connections; `log` says why not.
    pub fn wait_for_port(&mut self, port: u16, log: impl Fn() -> String) {
        let Foreground { child, log: file } = self;
        let output = || fs::read_to_string(&file).unwrap_or_default();
        let told = || format!("port {port} does not answer:\n{}\n{}", output(), log());
        wait_within(Duration::from_secs(20), told, || {
            let exited = child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(exited.is_none(), "ended with {exited:?}: {}", told());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }

    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

/// Debian packages unpacked into a cache, below one root; `None` (and a skip) where they cannot be had.
pub fn unpacked(packages: &[&str]) -> Option<PathBuf> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/packages");
    let mut command = Command::new("sh");
    command.arg(script).arg("unpack").arg(&root).args(packages).current_dir("/");
    let out = run(command, "");
    if !out.status.success() {
        skip(&format!("cannot unpack {packages:?}: {}", String::from_utf8_lossy(&out.stderr)));
        return None;
    }
    Some(root)
}

/// A mount namespace in which `/usr` is the machine's with unpacked packages over it, `/etc` has files of its own,
/// and `/run` is private. Nobody else sees any of it.
pub struct Namespace {
    folder: PathBuf,
    root: PathBuf,
}

impl Namespace {
    /// In `folder`, with accounts `(name, id)` added, over the packages in `root`.
    pub fn new(folder: &Path, root: &Path, accounts: &[(&str, u32)]) -> Namespace {
        let etc = folder.join("etc");
        fs::create_dir_all(&etc).expect("etc");
        fs::create_dir_all(folder.join("run")).expect("run");
        let (mut passwd, mut group) = (
            fs::read_to_string("/etc/passwd").expect("passwd"),
            fs::read_to_string("/etc/group").expect("group"),
        );
        for (name, id) in accounts {
            passwd += &format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
            group += &format!("{name}:x:{id}:\n");
        }
        fs::write(etc.join("passwd"), passwd).expect("passwd");
        fs::write(etc.join("group"), group).expect("group");
        let script = "set -e\n\
                      mount -t overlay postern -o \"lowerdir=$ROOT/usr:/usr\" /usr\n\
                      mount -t overlay postern -o \"lowerdir=$PLACE/etc:/etc\" /etc\n\
                      mount --bind \"$PLACE/run\" /run\n\
                      exec \"$@\"\n";
        fs::write(folder.join("enter"), script).expect("script");
        Namespace { folder: folder.to_owned(), root: root.to_owned() }
    }

    /// The folder that is `/etc/NAME` inside.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.folder.join("etc").join(name)
    }

    /// The folder that is `/run` inside.
    pub fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Can namespaces with overlays be made here? Otherwise the test skips.
    pub fn possible(&self) -> bool {
        let out = run(self.command("true"), "");
        if !out.status.success() {
            skip(&format!("no private mounts here: {}", String::from_utf8_lossy(&out.stderr)));
        }
        out.status.success()
    }

    /// A command inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = peer("unshare", &self.folder);
        command.env("ROOT", &self.root).env("PLACE", &self.folder);
        command
            .args(["--mount", "--propagation", "private", "sh"])
            .arg(self.folder.join("enter"))
            .arg(program);
        command
    }
}

/// A client of SMTP or IMAP by hand, line by line, without TLS.
pub struct Lines {
    reader: BufReader<TcpStream>,
}

impl Lines {
    pub fn connect(port: u16) -> std::io::Result<Lines> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        socket.set_nodelay(true)?;
        Ok(Lines { reader: BufReader::new(socket) })
    }

    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    pub fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.reader.get_mut().write_all(format!("{line}\r\n").as_bytes())
    }

    /// An SMTP reply, its lines joined by newlines.
    pub fn reply(&mut self) -> std::io::Result<String> {
        let mut all = String::new();
        loop {
            let line = self.line()?;
            let last = line.as_bytes().get(3) != Some(&b'-');
            all += &line;
            if last {
                return Ok(all);
            }
            all.push('\n');
        }
    }

    /// An SMTP command and its reply.
    pub fn ask(&mut self, line: &str) -> std::io::Result<String> {
        self.send(line)?;
        self.reply()
    }

    /// An SMTP session after EHLO; gives what EHLO said.
    pub fn smtp(port: u16) -> std::io::Result<(Lines, String)> {
        let mut smtp = Lines::connect(port)?;
        smtp.reply()?;
        let said = smtp.ask("EHLO client.example.test")?;
        Ok((smtp, said))
    }

    /// `AUTH PLAIN` with its reply.
    pub fn auth(&mut self, user: &str, password: &str) -> std::io::Result<String> {
        self.ask(&format!(
            "AUTH PLAIN {}",
            crate::scenario::base64(format!("\0{user}\0{password}").as_bytes())
        ))
    }
}

/// One swaks call as `user`: gives output and exit code.
pub fn swaks(home: &Path, port: u16, user: &str, password: &str, more: &[&str]) -> Output {
    let mut command = peer("swaks", home);
    let sender = format!("alice@{HOSTNAME}");
    command.args(["--server", "localhost", "--port", &port.to_string(), "--timeout", "20"]);
    command.args(["--from", &sender, "--to", &sender, "--auth-user", user, "--auth-password", password]);
    command.args(more);
    run(command, "")
}
