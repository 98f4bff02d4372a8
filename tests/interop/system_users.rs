//! System users: PAM, shadow and passwd through real worker processes.
//!
//! `postern run` is started in a private mount namespace with accounts, shadow entries and PAM services of the test;
//! nothing outside sees them. Sockets lie in a scratch folder, so the test itself talks to them from outside.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::machine::Login;
use crate::support::{
    HOSTNAME, descendants, end, have, is_root, mux_answer, peer, private_mounts, run, show, signal, skip,
    stderr, stdout, wait_for, wait_for_end,
};

const RIGHT: &str = "summersun";
/// Of [`RIGHT`].
const YESCRYPT: &str = "$y$j75$LCO3SRoFMgw7uWFPZq2Gm1$xlttnW5nPK.8MrGMCHCWziJOKKuolUfI0g75dG9UOQ.";
const SHA512: &str = "$6$uNrb5xmFXorQhWTt$vjW96cNajX/qCSvDZTFb3KkhqBpQaSeGmwRwJdym2MaDK/nzVDHM5W7NyfathwU.QW7zpxD6BVNQavZ6IIIwN1";
/// In group `shadow`; the other one is not.
const WORKER: &str = "test-authw";
const STRANGER: &str = "test-stranger";
/// Whoever depends on a process ends with it: nobody waits out a deadline or a `sleep`, which are longer.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What a client is told of the right password.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Ok,
    Refused,
    Expired,
    Disabled,
}

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs() / 86_400
}

/// Account, what stands behind its name in shadow, and what its owner is told (design: one table for all doors).
fn accounts() -> Vec<(&'static str, String, Told)> {
    let day = today();
    vec![
        ("good", format!("{YESCRYPT}:{day}:0:99999:7:::"), Told::Ok),
        ("older", format!("{SHA512}:{day}:0:99999:7:::"), Told::Ok),
        ("tomorrow", format!("{YESCRYPT}:{day}:0:99999:7::{}:", day + 1), Told::Ok),
        ("ended", format!("{YESCRYPT}:{day}:0:99999:7::{day}:"), Told::Disabled),
        ("change", format!("{YESCRYPT}:0:0:99999:7:::"), Told::Expired),
        ("aged", format!("{YESCRYPT}:{}:0:10:7:::", day - 20), Told::Expired),
        ("inactive", format!("{YESCRYPT}:{}:0:10:7:5::", day - 20), Told::Expired),
        ("locked", format!("!{YESCRYPT}:{day}:0:99999:7:::"), Told::Refused),
        ("star", format!("*:{day}:0:99999:7:::"), Told::Refused),
        ("empty", format!(":{day}:0:99999:7:::"), Told::Refused),
    ]
}

struct System {
    scratch: tempfile::TempDir,
    child: Option<Child>,
    /// Seconds a hanging module sleeps: told apart from every other `sleep` of the machine.
    hang: String,
}

impl System {
    /// Starts the daemons as `account` with these passdbs; `None` after a skip.
    fn start(account: &str, passdb: &str) -> Option<System> {
        if !is_root() {
            skip("needs root for a private mount namespace");
            return None;
        }
        if !have(&["unshare"]) {
            return None;
        }
        let scratch = tempfile::Builder::new().prefix("psu").tempdir_in("/tmp").expect("scratch folder");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let hang = format!("{}.{}", 600 + STARTED.fetch_add(1, Ordering::Relaxed), std::process::id());
        let system = System { scratch, child: None, hang };
        system.write_etc();
        let listener = |name: &str, kind: &str, more: &str| {
            format!(
                "[[auth.listener]]\nname = \"{name}\"\ntype = \"{kind}\"\npath = \"{}\"\nmode = \"0666\"\n\
                 reply_deadline = \"3s\"\n{more}\n",
                system.socket(name).display()
            )
        };
        let text = format!(
            "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{}\"\nrun_as = \"{account}\"\n\
             [auth]\nfailure_delay = \"20ms\"\n[auth.penalty]\nmax_delay = \"60ms\"\n{}{}{}{passdb}\n\
             [[auth.userdb]]\ndriver = \"passwd\"\n",
            system.path("state").display(),
            listener("client", "client", "on_outage = \"fail\""),
            listener("mux", "saslauthd", "pam_services = [\"postern\", \"slow\", \"crash\"]"),
            listener("userdb", "userdb", "allow_users = [\"0\"]"),
        );
        fs::write(system.path("postern.toml"), text).expect("settings");
        system.launch()
    }

    fn launch(mut self) -> Option<System> {
        let log = fs::File::create(self.path("log")).expect("log");
        let etc = self.path("etc");
        let mounts = ["passwd", "shadow", "group", "pam.d"]
            .map(|name| (etc.join(name), PathBuf::from("/etc").join(name)))
            .to_vec();
        let Some(mut command) = private_mounts(&mounts) else {
            skip("no private mount namespace here");
            return None;
        };
        let program = crate::support::postern().get_program().to_owned();
        command.arg(program).args(["run", "--config"]).arg(self.path("postern.toml"));
        command.args(["--log-format", "human"]);
        for name in ["POSTERN_CONFIG", "POSTERN_STATE_DIR", "SUDO_USER", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        let copy = log.try_clone().expect("log");
        self.child = Some(command.stdout(copy).stderr(log).spawn().expect("unshare starts"));
        wait_for("the auth daemon", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none(), "ended with {ended:?}:\n{}", self.log());
            self.log().contains("serving").then_some(())
        });
        Some(self)
    }

    fn write_etc(&self) {
        let etc = self.path("etc");
        fs::create_dir_all(etc.join("pam.d")).expect("folder");
        let script = |name: &str, text: &str| {
            let path = self.path(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
            format!("auth required pam_exec.so quiet {}\naccount required pam_permit.so\n", path.display())
        };
        let unix = "auth required pam_unix.so\naccount required pam_unix.so\n";
        for (name, text) in [
            ("postern", unix.to_owned()),
            ("slow", script("hang", &format!("sleep {}; true", self.hang))),
            // The parent of a helper is the worker that loaded the module.
            // The first signal only makes the runtime take its own handler away, as a real fault would go on.
            ("crash", script("crash", "kill -SEGV $PPID; sleep 0.2; kill -SEGV $PPID; sleep 5")),
            ("other", "auth required pam_deny.so\naccount required pam_deny.so\n".to_owned()),
        ] {
            fs::write(etc.join("pam.d").join(name), text).expect("service");
        }
        let mut passwd = format!(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n\
             {WORKER}:x:61000:61000::/nonexistent:/usr/sbin/nologin\n\
             {STRANGER}:x:61001:61001::/nonexistent:/usr/sbin/nologin\n"
        );
        let mut shadow = "root:*:1:0:99999:7:::\n".to_owned();
        for (number, (name, fields, _)) in accounts().into_iter().enumerate() {
            passwd += &format!("{name}:x:{0}:{0}::/home/{name}:/bin/sh\n", 61_100 + number);
            shadow += &format!("{name}:{fields}\n");
        }
        let group = format!(
            "root:x:0:\nshadow:x:42:{WORKER}\nnogroup:x:65534:\n{WORKER}:x:61000:\n{STRANGER}:x:61001:\n"
        );
        for (name, text, mode) in
            [("passwd", passwd, 0o644), ("group", group, 0o644), ("shadow", shadow, 0o640)]
        {
            fs::write(etc.join(name), text).expect("file");
            fs::set_permissions(etc.join(name), fs::Permissions::from_mode(mode)).expect("mode");
        }
        std::os::unix::fs::chown(etc.join("shadow"), Some(0), Some(42)).expect("owner");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.path("run").join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("it runs")
    }

    /// The answer to one PLAIN login, without its id.
    fn plain(&self, user: &str, password: &str, service: &str) -> String {
        let mut client = Login::connect(&self.socket("client"));
        client.ask(1, user, password, service, "192.0.2.1");
        client.line()
    }

    /// `OK …`, `NO …`, or nothing for a connection that was closed without an answer.
    fn mux(&self, user: &str, password: &str, service: &str) -> String {
        mux_answer(&self.socket("mux"), user, password, service)
    }

    /// Hanging modules.
    fn sleepers(&self) -> usize {
        let commands = fs::read_dir("/proc")
            .expect("proc")
            .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
        commands.filter(|line| line.ends_with(format!("sleep\0{}\0", self.hang).as_bytes())).count()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        end(child);
        // Nothing that modules started stays behind, however the test ended.
        if !std::thread::panicking() {
            wait_for("the end of all helpers", || (self.sleepers() == 0).then_some(()));
        }
    }
}

const PAM: &str = "[[auth.passdb]]\ndriver = \"pam\"\nservice = \"%{service}\"\n";
const SHADOW: &str = "[[auth.passdb]]\ndriver = \"shadow\"\n";

#[test]
fn every_state_of_an_account_is_told_alike_on_every_door() {
    for passdb in [PAM, SHADOW] {
        let Some(system) = System::start(WORKER, passdb) else { return };
        for (name, _, told) in accounts() {
            let user = format!("user={name}@{HOSTNAME}");
            let refused = format!("FAIL\t1\t{user}\treason=Invalid user name or password");
            let right = system.plain(name, RIGHT, "postern");
            match told {
                Told::Ok => assert!(right.starts_with(&format!("OK\t1\t{user}")), "{name}: {right}"),
                Told::Refused => assert_eq!(right, refused, "{name}"),
                Told::Expired => assert!(right.contains("\tcode=pass_expired\t"), "{name}: {right}"),
                Told::Disabled => assert!(right.contains("\tcode=user_disabled\t"), "{name}: {right}"),
            }
            // Who does not know the password learns nothing, whatever the state; nor does an empty one help.
            for wrong in ["wrong", "", "x", "!", "*"] {
                assert_eq!(
                    system.plain(name, wrong, "postern"),
                    refused,
                    "{name} {wrong:?}\n{}",
                    system.log()
                );
            }
            let want = if told == Told::Ok { "OK Success." } else { "NO authentication failed" };
            assert_eq!(system.mux(name, RIGHT, "postern"), want, "{name}");
            assert_eq!(system.mux(name, "wrong", "postern"), "NO authentication failed", "{name}");
        }
        for (name, password) in [("nobody-here", RIGHT), ("root", "x"), ("root", "*"), ("GOOD ", RIGHT)] {
            let answer = system.plain(name, password, "postern");
            assert!(answer.ends_with("\treason=Invalid user name or password"), "{name}: {answer}");
            assert_eq!(system.mux(name, password, "postern"), "NO authentication failed", "{name}");
        }
        // Case and domain as everywhere.
        for name in ["GOOD".to_owned(), format!("good@{HOSTNAME}")] {
            let answer = system.plain(&name, RIGHT, "postern");
            assert!(answer.starts_with(&format!("OK\t1\tuser=good@{HOSTNAME}")), "{answer}");
        }
        let answer = system.plain("good@other.test", RIGHT, "postern");
        assert!(answer.starts_with("FAIL\t1\tuser=good@other.test\treason=Invalid"), "{answer}");
        assert!(!system.log().contains(RIGHT));
    }
}

#[test]
fn system_accounts_are_found_and_listed() {
    let Some(system) = System::start(WORKER, SHADOW) else { return };
    let mut client = UnixStream::connect(system.socket("userdb")).map(BufReader::new).expect("userdb");
    client.get_mut().set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    client
        .get_mut()
        .write_all(b"VERSION\t1\t0\nUSER\t1\tGood\tservice=smtp\nUSER\t2\tnobody-here\tservice=smtp\nLIST\t3\tservice=smtp\n")
        .expect("write");
    let mut lines = Vec::new();
    // Answers come in any order.
    while lines.iter().filter(|line: &&String| line.starts_with(['U', 'N', 'D'])).count() < 3 {
        let mut line = String::new();
        assert!(client.read_line(&mut line).expect("an answer in time") > 0);
        lines.push(line.trim_end_matches('\n').to_owned());
    }
    let user = format!(
        "USER\t1\tgood@{HOSTNAME}\tsystem_groups_user=good\tuid=61100\tgid=61100\thome=/home/good\tmail=maildir:/home/good/Maildir"
    );
    assert!(lines.contains(&user), "{lines:#?}");
    assert!(lines.contains(&"NOTFOUND\t2".to_owned()), "{lines:#?}");
    let listed: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("LIST\t3\t")).collect();
    assert!(listed.contains(&format!("older@{HOSTNAME}").as_str()), "{lines:#?}");
    assert!(!listed.contains(&format!("root@{HOSTNAME}").as_str()), "accounts of the system: {lines:#?}");

    if !have(&["doveadm"]) {
        return;
    }
    let config = system.path("doveadm.conf");
    let text =
        format!("base_dir = {}/none\nlog_path = /dev/stderr\nssl = no\n", system.scratch.path().display());
    fs::write(&config, text).expect("config");
    let doveadm = |args: &[&str]| {
        let mut command = peer("doveadm", system.scratch.path());
        command.arg("-c").arg(&config).args(args);
        run(command, "")
    };
    let (socket, client) = (system.socket("userdb"), system.socket("client"));
    let (socket, client) = (socket.to_str().expect("path"), client.to_str().expect("path"));
    let out = doveadm(&["user", "-a", socket, "good"]);
    assert!(out.status.success() && stdout(&out).contains("/home/good"), "{}", show(&out));
    let out = doveadm(&["user", "-a", socket, "nobody-here"]);
    assert_eq!(out.status.code(), Some(67), "{}", show(&out));
    let out = doveadm(&["user", "-a", socket, "old*"]);
    assert_eq!(stdout(&out).trim(), format!("older@{HOSTNAME}"), "{}", show(&out));
    for (user, password, code) in [("good", RIGHT, 0), ("good", "wrong", 77), ("ended", RIGHT, 77)] {
        let out = doveadm(&["auth", "test", "-a", client, user, password]);
        assert_eq!(out.status.code(), Some(code), "{user} {password}: {}", show(&out));
    }
}

#[test]
fn a_module_that_hangs_stops_nobody_else() {
    let Some(system) = System::start(WORKER, PAM) else { return };
    let began = Instant::now();
    let mut hanging = Login::connect(&system.socket("client"));
    for id in 1..=30 {
        hanging.ask(id, "good", RIGHT, "slow", "192.0.2.9");
    }
    // All workers the service may have are busy now.
    wait_for("hanging modules", || (system.sleepers() >= 6).then_some(()));
    for user in ["good", "older", "locked", "nobody-here"].iter().cycle().take(12) {
        let one = Instant::now();
        let answer = system.plain(user, RIGHT, "postern");
        assert!(!answer.contains("temp_fail"), "{user}: {answer}\n{}", system.log());
        assert!(one.elapsed() < Duration::from_millis(1500), "{user} waited {:?}", one.elapsed());
    }
    // Each of the others gets a temporary failure, none later than the deadline.
    for _ in 1..=30 {
        let answer = hanging.line();
        assert!(answer.starts_with("FAIL\t") && answer.contains("\tcode=temp_fail\ttemp\t"), "{answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(system.log().contains("PAM service `slow` did not answer within"), "{}", system.log());
    // Their helpers are gone, too.
    wait_for("the end of all helpers", || (system.sleepers() == 0).then_some(()));
    // saslauthd's clients are told by a closed connection.
    assert_eq!(system.mux("good", RIGHT, "slow"), "");
    assert_eq!(system.mux("good", RIGHT, "postern"), "OK Success.");
}

#[test]
fn a_module_that_crashes_costs_one_login_and_one_log_line() {
    let Some(system) = System::start(WORKER, PAM) else { return };
    assert!(system.plain("good", RIGHT, "postern").starts_with("OK\t1\t"));
    for round in 1..=2 {
        let answer = system.plain("good", RIGHT, "crash");
        assert!(answer.contains("\tcode=temp_fail\t"), "{answer}");
        let log = system.log();
        assert_eq!(log.matches("SIGSEGV").count(), round, "{log}");
        assert!(log.contains("the worker for PAM service `crash` died: signal: 11 (SIGSEGV)"), "{log}");
        assert!(system.plain("older", RIGHT, "postern").starts_with("OK\t1\t"));
    }
}

#[test]
fn guessing_does_not_starve_a_right_password() {
    for passdb in [PAM, SHADOW] {
        let Some(system) = System::start(WORKER, passdb) else { return };
        // One after another, as one client does it, and then the right one.
        for number in 0..50 {
            let answer = system.plain("good", &format!("guess {number}"), "postern");
            assert!(answer.starts_with("FAIL\t1\t") && !answer.contains("temp_fail"), "{answer}");
        }
        let began = Instant::now();
        assert!(system.plain("good", RIGHT, "postern").starts_with("OK\t1\t"));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        // All at once from one address; the owner comes from another.
        let mut attacker = Login::connect(&system.socket("client"));
        for id in 1..=50 {
            attacker.ask(id, "older", &format!("guess {id}"), "postern", "198.51.100.66");
        }
        let began = Instant::now();
        assert!(system.plain("older", RIGHT, "postern").starts_with("OK\t1\t"), "{}", system.log());
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        for _ in 1..=50 {
            assert!(attacker.line().starts_with("FAIL\t"));
        }
    }
}

#[test]
fn an_account_that_cannot_read_shadow_is_an_outage_with_advice() {
    for passdb in [SHADOW, PAM] {
        let Some(system) = System::start(STRANGER, passdb) else { return };
        assert!(
            system.log().contains("cannot read /etc/shadow; put the account of the workers") || passdb == PAM,
            "{}",
            system.log()
        );
        for password in [RIGHT, "wrong"] {
            let answer = system.plain("good", password, "postern");
            assert!(answer.contains("\tcode=temp_fail\t"), "{passdb} {password}: {answer}");
            assert_eq!(system.mux("good", password, "postern"), "");
        }
        assert!(system.log().contains(
            "cannot read /etc/shadow; put the account of the workers (`auth.worker.run_as`, else `run_as`)"
        ));
    }
}

#[test]
fn root_may_be_asked_for() {
    let Some(system) = System::start("root", PAM) else { return };
    assert!(system.plain("good", RIGHT, "postern").starts_with("OK\t1\t"), "{}", system.log());
    assert!(system.plain("ended", RIGHT, "postern").contains("code=user_disabled"));
    assert!(system.plain("good", "wrong", "postern").contains("reason=Invalid"));
}

#[test]
fn a_worker_holds_nothing_but_its_channel() {
    let Some(system) = System::start(WORKER, PAM) else { return };
    assert!(system.plain("good", RIGHT, "postern").starts_with("OK\t1\t"));
    let [_, worker] = descendants(system.pid())[..] else { panic!("not one daemon and one worker") };
    let proc = PathBuf::from(format!("/proc/{worker}"));
    let mut sockets = Vec::new();
    for entry in fs::read_dir(proc.join("fd")).expect("descriptors") {
        let entry = entry.expect("descriptor");
        let target = fs::read_link(entry.path()).expect("target").display().to_string();
        if target.starts_with("socket:") {
            sockets.push(target);
        } else {
            // Standard error is where the daemons log to.
            let allowed = ["/dev/null".to_owned(), system.path("log").display().to_string()];
            assert!(allowed.contains(&target), "{target}");
        }
    }
    sockets.dedup();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    assert_eq!(fs::read_link(proc.join("fd/0")).expect("stdin"), Path::new("/dev/null"));
    let environment = fs::read(proc.join("environ")).expect("environment");
    assert_eq!(environment, b"PATH=/usr/sbin:/usr/bin:/sbin:/bin\0");
    let arguments = fs::read(proc.join("cmdline")).expect("arguments");
    assert_eq!(arguments, b"postern\0daemon\0auth-worker\0");
    // Not dumpable: its files below /proc are root's, though the process is not.
    let status = fs::read_to_string(proc.join("status")).expect("status");
    assert!(status.contains("Uid:\t61000\t61000\t61000\t61000"), "{status}");
    assert_eq!(fs::metadata(proc.join("environ")).expect("environment").uid(), 0);
}

#[test]
fn a_worker_cannot_be_started_by_hand() {
    let mut command = crate::support::postern();
    command.args(["daemon", "auth-worker"]);
    let out = run(command, "");
    assert!(!out.status.success() && stderr(&out).contains("is started by the supervisor"), "{}", show(&out));
}

#[test]
fn workers_end_with_their_daemon_and_with_the_supervisor() {
    for victim_is_supervisor in [false, true] {
        let Some(system) = System::start(WORKER, PAM) else { return };
        let mut hanging = Login::connect(&system.socket("client"));
        hanging.ask(1, "good", RIGHT, "slow", "192.0.2.9");
        wait_for("a hanging module", || (system.sleepers() > 0).then_some(()));
        let all = descendants(system.pid());
        let daemon = descendants(system.pid()).first().copied().expect("the auth daemon");
        // The daemon, a worker, the module's shell and its sleep.
        assert!(all.len() >= 4, "{all:?}");
        let victim = if victim_is_supervisor { system.pid() } else { daemon };
        signal(victim, Signal::SIGKILL);
        wait_for_end(END_LIMIT, if victim_is_supervisor { "the supervisor" } else { "the daemon" }, &all);
        if !victim_is_supervisor {
            // The daemon comes back, and so do workers.
            wait_for("a login after the crash", || {
                let answer = std::panic::catch_unwind(|| system.plain("good", RIGHT, "postern")).ok()?;
                answer.starts_with("OK\t1\t").then_some(())
            });
        }
    }
}
