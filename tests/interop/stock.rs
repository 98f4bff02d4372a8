//! A machine as it comes from the distribution: `/etc`, `/run`, `/var` and the network are the test's own, in namespaces
//! that nobody else sees. Programs inside may be changed, started and stopped as on a machine; all of them end with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;

use crate::private::scratch;
use crate::support::{have, is_root, peer, postern, run, show, signal, skip, wait_for};

/// Her password is [`PASSWORD`].
pub const USER: &str = "alice";
pub const PASSWORD: &str = "summersun";
const YESCRYPT: &str = "$y$j75$LCO3SRoFMgw7uWFPZq2Gm1$xlttnW5nPK.8MrGMCHCWziJOKKuolUfI0g75dG9UOQ.";
const UID: u32 = 61_100;

/// What is mounted where, and then nothing more happens.
const ENTER: &str = "set -e\n\
    [ -z \"$ROOT\" ] || mount -t overlay postern -o \"lowerdir=$ROOT/usr:/usr\" /usr\n\
    for name in etc run; do mount --bind \"$PLACE/$name\" /$name; done\n\
    for name in lib spool log mail; do mount --bind \"$PLACE/var-$name\" /var/$name; done\n\
    mount --bind \"$PLACE/home\" /home\n\
    ip link set lo up\n\
    touch \"$PLACE/ready\"\n\
    exec sleep 1000\n";

/// The machine.
pub struct Stock {
    scratch: tempfile::TempDir,
    holder: Child,
    init: u32,
    daemon: Option<Child>,
}

impl Stock {
    /// A machine with user [`USER`]; packages unpacked below `root` are installed. `None` after a skip.
    pub fn start(root: Option<&Path>) -> Option<Stock> {
        if !is_root() {
            skip("needs root for a machine of its own");
            return None;
        }
        if !have(&["unshare", "nsenter", "ip"]) {
            return None;
        }
        let scratch = scratch();
        let w = scratch.path();
        let copy = |from: &Path, to: &Path| {
            let mut command = Command::new("cp");
            command.args(["-a", "--"]).arg(from).arg(to);
            let out = run(command, "");
            assert!(out.status.success(), "{}", show(&out));
        };
        copy(Path::new("/etc"), &w.join("etc"));
        if let Some(root) = root.filter(|root| root.join("etc").exists()) {
            copy(&root.join("etc/."), &w.join("etc"));
        }
        for (name, mode) in [
            ("run", 0o755),
            ("home", 0o755),
            ("var-lib", 0o755),
            ("var-spool", 0o755),
            ("var-log", 0o755),
            ("var-mail", 0o1777),
        ] {
            fs::create_dir(w.join(name)).expect("folder");
            fs::set_permissions(w.join(name), fs::Permissions::from_mode(mode)).expect("mode");
        }
        let add = |name: &str, line: &str| {
            let path = w.join("etc").join(name);
            let text = fs::read_to_string(&path).expect("file") + line;
            fs::write(&path, text).expect("file");
        };
        add("passwd", &format!("{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh\n"));
        add("group", &format!("{USER}:x:{UID}:\n"));
        add("shadow", &format!("{USER}:{YESCRYPT}:20000:0:99999:7:::\n"));
        fs::create_dir(w.join("home").join(USER)).expect("home");
        chown(w.join("home").join(USER), Some(UID), Some(UID)).expect("owner");
        fs::write(w.join("enter"), ENTER).expect("script");

        let mut command = peer("unshare", w);
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["--propagation", "private", "sh"]).arg(w.join("enter"));
        command.env("PLACE", w).env("ROOT", root.unwrap_or(Path::new("")));
        let said = fs::File::create(w.join("enter.log")).expect("log");
        command.stdin(Stdio::null()).stdout(said.try_clone().expect("log")).stderr(said);
        let mut holder = command.spawn().expect("unshare");
        let ready = || w.join("ready").exists();
        let ended = wait_for("the machine", || {
            let ended = holder.try_wait().expect("wait").is_some();
            (ended || ready()).then_some(ended)
        });
        if ended {
            let said = fs::read_to_string(w.join("enter.log")).unwrap_or_default();
            skip(&format!("no machine of its own here: {said}"));
            return None;
        }
        let pid = holder.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
        let init =
            children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("first process");
        Some(Stock { scratch, holder, init, daemon: None })
    }

    /// The scratch folder; it has the same path inside.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// A file inside, seen from outside: below `/etc`, `/run`, `/home` or `/var`.
    pub fn file(&self, path: &str) -> PathBuf {
        let inner = path
            .strip_prefix("/var/")
            .map_or_else(|| path.trim_start_matches('/').to_owned(), |rest| format!("var-{rest}"));
        self.path().join(inner)
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A command on the machine.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--"]);
        command.arg(program).args(args).current_dir("/");
        command.env("LC_ALL", "C.UTF-8").env("HOME", "/root").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        for name in ["POSTERN_CONFIG", "POSTERN_STATE_DIR", "SUDO_USER", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        run(self.command(program, args), "")
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn sure(&self, program: &str, args: &[&str]) -> String {
        let out = self.run(program, args);
        assert!(out.status.success(), "{program} {args:?}: {}", show(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The program under test, where everybody may enter.
    pub fn program(&self) -> String {
        program()
    }

    /// `postern …` on the machine.
    pub fn postern(&self, line: &str) -> Output {
        self.run(&program(), &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Starts what detaches itself: it gets files, no pipes.
    pub fn service(&self, program: &str, args: &[&str]) {
        let mut command = self.command(program, args);
        let out = fs::File::create(self.path().join("service.log")).expect("log");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("log")).stderr(out);
        let status = command.status().expect("service");
        let said = fs::read_to_string(self.path().join("service.log")).unwrap_or_default();
        assert!(status.success(), "{program} {args:?}: {said}");
    }

    /// `postern run` with the system's configuration file, until it is ready.
    pub fn start_postern(&mut self) {
        let log = fs::File::create(self.path().join("postern.log")).expect("log");
        let mut command = self.command(&program(), &["run"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let mut child = command.spawn().expect("postern");
        wait_for("Postern", || {
            let ended = child.try_wait().expect("wait");
            assert!(ended.is_none(), "Postern ended ({ended:?}):\n{}", self.log());
            self.log().contains("all daemons are ready").then_some(())
        });
        self.daemon = Some(child);
    }

    /// After Postern was told to stop.
    pub fn ended(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            wait_for("the end of Postern", || daemon.try_wait().expect("wait"));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("postern.log")).unwrap_or_default()
    }

    /// One swaks call with a login, and its exit code.
    pub fn swaks(&self, user: &str, password: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut args = vec!["--server", "localhost", "--timeout", "20", "--auth-user", user];
        args.extend([
            "--auth-password",
            password,
            "--from",
            "alice@example.test",
            "--to",
            "alice@example.test",
        ]);
        args.extend(more);
        let out = self.run("swaks", &args);
        (out.status.code(), show(&out))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // The first process goes with its holder, and everything inside with the first process.
        signal(self.holder.id(), Signal::SIGKILL);
        let _ = self.holder.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
    }
}

fn program() -> String {
    postern().get_program().to_string_lossy().into_owned()
}
