//! A machine of its own: accounts, shadow entries, PAM services and homes of the test in a private mount namespace,
//! and a Postern on it. Sockets and ports are the test machine's, so the test talks to them from outside.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::reference::self_signed;
use crate::scenario::base64;
use crate::support::{
    HOSTNAME, descendants, end, free_port_base, have, is_root, mux_answer, private_mounts, run, show, skip,
    wait_for,
};

/// Password of every user.
pub const RIGHT: &str = "summersun";
/// Of [`RIGHT`], as `chpasswd` of Debian writes it, but cheaper.
pub const YESCRYPT: &str = "$y$j75$LCO3SRoFMgw7uWFPZq2Gm1$xlttnW5nPK.8MrGMCHCWziJOKKuolUfI0g75dG9UOQ.";
/// Uid of the first user; they follow each other.
pub const FIRST_UID: u32 = 61_100;
/// The daemons' accounts, with their ids. The second one is in group `shadow`.
pub const ACCOUNTS: [(&str, u32); 7] = [
    ("postern-auth", 61_000),
    ("postern-authw", 61_001),
    ("postern-smtp", 61_002),
    ("postern-imap", 61_003),
    ("postern-relay", 61_004),
    ("test-stranger", 61_005),
    ("postern-metrics", 61_006),
];
/// The group of the daemons' own sockets.
const POSTERN_GROUP: u32 = 61_010;

/// The uid, and gid, of one of them.
pub fn id_of(account: &str) -> u32 {
    ACCOUNTS.iter().find(|(name, _)| *name == account).map(|(_, id)| *id).expect("an account")
}

/// Days since 1970.
pub fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs() / 86_400
}

/// A system user.
#[derive(Clone, Debug)]
pub struct Person {
    pub name: String,
    /// What stands behind the name in shadow; `None`: no line at all.
    pub shadow: Option<String>,
    pub shell: String,
}

impl Person {
    /// With the right password and nothing special.
    pub fn plain(name: &str) -> Person {
        let shadow = Some(format!("{YESCRYPT}:{}:0:99999:7:::", today()));
        Person { name: name.to_owned(), shadow, shell: "/bin/sh".to_owned() }
    }
}

/// What the machine is to be like.
#[derive(Default)]
pub struct Setup {
    pub people: Vec<Person>,
    /// Files in `/etc/pam.d`; `SCRATCH` and `MODULE` stand for the folder and the module that misbehaves.
    pub services: Vec<(&'static str, String)>,
    /// `postern.toml` behind hostname and state folder; `SCRATCH` as above, `PORT` and an offset as in `PORT993`.
    pub settings: String,
    /// SMTP, IMAP and POP3 as well, over TLS.
    pub fronts: bool,
}

pub const UNIX: &str = "auth required pam_unix.so\naccount required pam_unix.so\n";

/// Sockets for a client, a libsasl2 program and look-ups.
pub const SOCKETS: &str = "[[auth.listener]]\nname = \"client\"\ntype = \"client\"\npath = \"SCRATCH/run/client\"\nmode = \"0666\"\nreply_deadline = \"4s\"\non_outage = \"fail\"\n\
    [[auth.listener]]\nname = \"mux\"\ntype = \"saslauthd\"\npath = \"SCRATCH/run/mux\"\nmode = \"0666\"\nreply_deadline = \"4s\"\npam_services = [\"*\"]\n\
    [[auth.listener]]\nname = \"userdb\"\ntype = \"userdb\"\npath = \"SCRATCH/run/userdb\"\nmode = \"0666\"\nallow_users = [\"0\"]\n";
/// Answers at once to those who are wrong.
pub const QUICK: &str = "[auth]\nfailure_delay = \"20ms\"\n[auth.penalty]\nmax_delay = \"60ms\"\n";
/// Homes below the state folder, whoever the user is.
pub const ANYBODY: &str = "[[auth.userdb]]\ndriver = \"static\"\nallow_all_users = true\n";

/// The machine.
pub struct Machine {
    scratch: tempfile::TempDir,
    child: Option<Child>,
    port_base: u16,
    /// What lies over what.
    mounts: Vec<(PathBuf, PathBuf)>,
    /// Path of the settings on the machine.
    settings: PathBuf,
}

impl Machine {
    /// Makes it and waits until Postern serves; `None` after a skip.
    pub fn start(setup: &Setup) -> Option<Machine> {
        let mut machine = Machine::prepare(setup)?;
        machine.launch(&[]).then_some(machine)
    }

    /// Without a Postern on it.
    pub fn prepare(setup: &Setup) -> Option<Machine> {
        if !is_root() {
            skip("needs root for a private mount namespace");
            return None;
        }
        if !have(&["unshare", "openssl"]) {
            return None;
        }
        let scratch = tempfile::Builder::new().prefix("psm").tempdir_in("/tmp").expect("scratch folder");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let at = |name: &str| scratch.path().join(name);
        let etc = |name: &str| (at("etc").join(name), PathBuf::from("/etc").join(name));
        let mut mounts = ["passwd", "shadow", "group", "pam.d"].map(etc).to_vec();
        mounts.push((at("home"), "/home".into()));
        let settings = at("postern.toml");
        let machine = Machine { scratch, child: None, port_base: free_port_base(), mounts, settings };
        if setup.services.iter().any(|(_, text)| text.contains("MODULE")) && !machine.compile_module() {
            return None;
        }
        machine.write_etc(setup);
        let mut text = format!(
            "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{}\"\n",
            machine.path("state").display()
        );
        text += &machine.fill(&setup.settings);
        if setup.fronts {
            machine.write_certificate();
            text += &machine.fill(
                "[[tls.certificate]]\nchain = \"SCRATCH/tls/cert.pem\"\nkey = \"SCRATCH/tls/key.pem\"\n\
                 [[smtp.listener]]\nname = \"submissions\"\naddress = \"127.0.0.1:PORT465\"\ntype = \"submissions\"\n\
                 [[imap.listener]]\nname = \"imaps\"\ntls = \"implicit\"\naddress = \"127.0.0.1:PORT993\"\n\
                 [[pop3.listener]]\nname = \"pop3s\"\ntls = \"implicit\"\naddress = \"127.0.0.1:PORT995\"\n",
            );
        }
        fs::write(machine.path("postern.toml"), text).expect("settings");
        Some(machine)
    }

    /// As after the installation of the system: a copy of `/etc` to write in, empty `/home`, `/var/lib`, `/var/log` and
    /// `/var/mail`. Settings are expected in `/etc/postern`; a certificate for `localhost` lies there.
    pub fn clean() -> Option<Machine> {
        if !is_root() {
            skip("needs root for a private mount namespace");
            return None;
        }
        if !have(&["unshare", "openssl", "useradd", "chpasswd"]) {
            return None;
        }
        let scratch = tempfile::Builder::new().prefix("psm").tempdir_in("/tmp").expect("scratch folder");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let mut mounts = Vec::new();
        for folder in ["etc", "home", "var/lib", "var/log", "var/mail"] {
            fs::create_dir_all(scratch.path().join(folder)).expect("folder");
            mounts.push((scratch.path().join(folder), Path::new("/").join(folder)));
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "/etc/."]).arg(scratch.path().join("etc"));
        let out = run(copy, "");
        assert!(out.status.success(), "{}", show(&out));
        // Whatever this machine has of them.
        for file in ["passwd", "shadow", "group", "gshadow"] {
            let file = scratch.path().join("etc").join(file);
            let text = fs::read_to_string(&file).expect("accounts");
            let kept: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with("postern") && !line.starts_with("alice:"))
                .collect();
            fs::write(&file, kept.join("\n") + "\n").expect("accounts");
        }
        let settings = PathBuf::from("/etc/postern/postern.toml");
        let machine = Machine { scratch, child: None, port_base: free_port_base(), mounts, settings };
        machine.write_certificate();
        let folder = machine.path("etc/postern");
        fs::create_dir_all(&folder).expect("folder");
        fs::copy(machine.path("tls/cert.pem"), folder.join("fullchain.pem")).expect("certificate");
        fs::copy(machine.path("tls/key.pem"), folder.join("privkey.pem")).expect("key");
        Some(machine)
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text
            .replace("SCRATCH", &self.scratch.path().display().to_string())
            .replace("MODULE", &self.path("module.so").display().to_string());
        for offset in [25, 110, 143, 465, 587, 993, 995] {
            text = text.replace(&format!("PORT{offset}"), &self.port(offset).to_string());
        }
        text
    }

    fn compile_module(&self) -> bool {
        if !have(&["gcc"]) {
            return false;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("auth-daemon/system/tests/module.c");
        let mut command = Command::new("gcc");
        command
            .args(["-Wall", "-shared", "-fPIC", "-o"])
            .arg(self.path("module.so"))
            .arg(source)
            .arg("-lpam");
        let out = run(command, "");
        assert!(out.status.success(), "{}", show(&out));
        // Workers load it.
        fs::set_permissions(self.path("module.so"), fs::Permissions::from_mode(0o755)).expect("mode");
        true
    }

    fn write_certificate(&self) {
        let folder = self.path("tls");
        fs::create_dir_all(&folder).expect("folder");
        let mut command = Command::new("openssl");
        command.current_dir(&folder).args(self_signed("key.pem", "cert.pem"));
        let out = run(command, "");
        assert!(out.status.success(), "{}", show(&out));
        fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    fn write_etc(&self, setup: &Setup) {
        let etc = self.path("etc");
        fs::create_dir_all(etc.join("pam.d")).expect("folder");
        fs::create_dir_all(self.path("home")).expect("folder");
        for (name, text) in &setup.services {
            fs::write(etc.join("pam.d").join(name), self.fill(text)).expect("service");
        }
        fs::write(etc.join("pam.d/other"), "auth required pam_deny.so\naccount required pam_deny.so\n")
            .expect("service");
        let mut passwd = "root:x:0:0:root:/root:/bin/sh\n\
                          nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
            .to_owned();
        let mut group = format!(
            "root:x:0:\nshadow:x:42:postern-authw\nnogroup:x:65534:\npostern:x:{POSTERN_GROUP}:postern-auth,postern-smtp,postern-imap,postern-relay\n"
        );
        for (name, id) in ACCOUNTS {
            writeln!(passwd, "{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin").expect("text");
            writeln!(group, "{name}:x:{id}:").expect("text");
        }
        let mut shadow = "root:*:1:0:99999:7:::\n".to_owned();
        for (number, person) in setup.people.iter().enumerate() {
            let (name, shell) = (&person.name, &person.shell);
            let uid = FIRST_UID + u32::try_from(number).expect("few");
            writeln!(passwd, "{name}:x:{uid}:{uid}::/home/{name}:{shell}").expect("text");
            writeln!(group, "{name}:x:{uid}:").expect("text");
            if let Some(fields) = &person.shadow {
                writeln!(shadow, "{name}:{fields}").expect("text");
            }
            let home = self.path("home").join(name);
            fs::create_dir_all(&home).expect("home");
            chown(&home, Some(uid), Some(uid)).expect("owner");
            fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("mode");
        }
        for (name, text, mode) in [
            ("passwd", passwd, 0o644),
            ("group", group, 0o644),
            ("shadow", shadow, 0o640),
            ("gshadow", String::new(), 0o640),
        ] {
            fs::write(etc.join(name), text).expect("file");
            fs::set_permissions(etc.join(name), fs::Permissions::from_mode(mode)).expect("mode");
        }
        chown(etc.join("shadow"), Some(0), Some(42)).expect("owner");
    }

    /// A command on the machine.
    pub fn command(&self, program: &str) -> Option<Command> {
        let Some(mut command) = private_mounts(&self.mounts) else {
            skip("no private mount namespace here");
            return None;
        };
        command.arg(program);
        for name in ["POSTERN_CONFIG", "POSTERN_STATE_DIR", "SUDO_USER", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        Some(command)
    }

    /// Starts Postern (again); `false` after a skip.
    pub fn launch(&mut self, more: &[&str]) -> bool {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("log");
        let before = self.log().len();
        let program = crate::support::postern().get_program().to_owned();
        let Some(mut command) = self.command(program.to_str().expect("path")) else { return false };
        command.args(["run", "--config"]).arg(&self.settings);
        command.args(["--log-format", "human"]).args(more);
        let copy = log.try_clone().expect("log");
        self.child = Some(command.stdout(copy).stderr(log).spawn().expect("unshare starts"));
        wait_for("Postern", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none(), "ended with {ended:?}:\n{}", self.log());
            self.log()[before..].contains("all daemons are ready").then_some(())
        });
        true
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.path("run").join(name)
    }

    pub fn port(&self, offset: u16) -> u16 {
        self.port_base + offset
    }

    pub fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port(offset)))
    }

    pub fn ca(&self) -> PathBuf {
        self.path("tls/cert.pem")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("it runs")
    }

    /// Processes that run as `daemon ROLE`.
    pub fn processes(&self, role: &str) -> Vec<u32> {
        let end = format!("daemon\0{role}\0");
        let is = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(end.as_bytes()))
        };
        descendants(self.pid()).into_iter().filter(is).collect()
    }

    /// The answer to one PLAIN login on the client socket.
    pub fn plain(&self, user: &str, password: &str, service: &str) -> String {
        let mut client = Login::connect(&self.socket("client"));
        client.ask(1, user, password, service, "192.0.2.1");
        client.line()
    }

    /// `OK …`, `NO …`, or nothing for a connection that was closed without an answer.
    pub fn mux(&self, user: &str, password: &str, service: &str) -> String {
        mux_answer(&self.socket("mux"), user, password, service)
    }

    /// Stops Postern and waits for its end.
    pub fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A connection to a client socket, its handshake done.
pub struct Login {
    stream: BufReader<UnixStream>,
}

impl Login {
    pub fn connect(path: &Path) -> Login {
        let stream = UnixStream::connect(path).expect("client socket");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut client = Login { stream: BufReader::new(stream) };
        while client.line() != "DONE" {}
        client.stream.get_mut().write_all(b"VERSION\t1\t2\nCPID\t1\n").expect("write");
        client
    }

    pub fn ask(&mut self, id: u32, user: &str, password: &str, service: &str, rip: &str) {
        let response = base64(format!("\0{user}\0{password}").as_bytes());
        let line = format!("AUTH\t{id}\tPLAIN\tservice={service}\trip={rip}\tresp={response}\n");
        self.stream.get_mut().write_all(line.as_bytes()).expect("write");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).expect("an answer in time");
        assert!(read > 0, "the connection was closed");
        line.trim_end().to_owned()
    }
}
