//! What `make install` puts in place: units, accounts, manual pages; and sockets handed over by the service manager.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::private::scratch;
use crate::reference::self_signed;
use crate::support::{
    HOSTNAME, alive, descendants, have, is_root, postern, run, show, signal, skip, stdout, wait_for,
    wait_within,
};

const UNITS: [&str; 4] = ["postern.service", "postern.socket", "postern-auth.service", "postern-auth.socket"];
/// An account without any right.
const NOBODY: u32 = 65_534;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `make install` into this folder.
fn install(destination: &Path, more: &[&str]) {
    let mut command = Command::new("make");
    command.current_dir(root()).args(["-s", "install", "PREFIX=/usr"]);
    command.arg(format!("BINARY={}", postern().get_program().display()));
    command.arg(format!("DESTDIR={}", destination.display())).args(more);
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
}

#[test]
fn make_install_puts_everything_in_its_place() {
    if !have(&["make"]) {
        return;
    }
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name);
    install(scratch.path(), &[]);
    for (name, mode) in [
        ("usr/bin/postern", 0o755),
        ("usr/lib/systemd/system/postern.service", 0o644),
        ("usr/lib/systemd/system/postern-auth.socket", 0o644),
        ("usr/lib/sysusers.d/postern.conf", 0o644),
        ("usr/lib/tmpfiles.d/postern.conf", 0o644),
        ("etc/pam.d/postern", 0o644),
        ("etc/fail2ban/filter.d/postern.conf", 0o644),
        ("usr/share/man/man1/postern.1", 0o644),
        ("usr/share/man/man1/postern-run.1", 0o644),
        ("usr/share/bash-completion/completions/postern", 0o644),
        ("usr/share/zsh/site-functions/_postern", 0o644),
        ("usr/share/fish/vendor_completions.d/postern.fish", 0o644),
        ("usr/share/doc/postern/examples/postern.toml", 0o644),
        ("usr/share/doc/postern/examples/postern.openrc", 0o755),
    ] {
        let found = fs::metadata(at(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}");
    }
    let mut version = Command::new(at("usr/bin/postern"));
    version.arg("--version");
    assert!(stdout(&run(version, "")).starts_with("postern "));
    // What an administrator may have changed stays; another place for the program is in the units.
    fs::write(at("etc/pam.d/postern"), "mine").expect("written");
    install(scratch.path(), &["BINDIR=/opt/bin"]);
    assert_eq!(fs::read_to_string(at("etc/pam.d/postern")).expect("there"), "mine");
    let unit = fs::read_to_string(at("usr/lib/systemd/system/postern.service")).expect("there");
    assert!(unit.contains("ExecStart=/opt/bin/postern run") && !unit.contains("/usr/bin/postern"), "{unit}");
}

/// The units below a folder, with a program that is there.
fn units(folder: &Path) -> Vec<PathBuf> {
    let program = postern().get_program().to_str().expect("path").to_owned();
    let copy = |name: &&str| {
        let text = fs::read_to_string(root().join("conf/systemd").join(name)).expect("a unit");
        let file = folder.join(name);
        fs::write(&file, text.replace("/usr/bin/postern", &program)).expect("written");
        file
    };
    UNITS.iter().map(copy).collect()
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !have(&["systemd-analyze", "systemd-sysusers", "systemd-tmpfiles"]) {
        return;
    }
    let scratch = scratch();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(units(scratch.path()));
    let out = run(verify, "");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", show(&out));
    // With the drop-in as well.
    let drop_in = scratch.path().join("postern.service.d");
    fs::create_dir(&drop_in).expect("folder");
    fs::copy(root().join("conf/systemd/one-account.conf"), drop_in.join("one-account.conf")).expect("copied");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(scratch.path().join("postern.service"));
    let out = run(verify, "");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", show(&out));

    for (program, file) in
        [("systemd-sysusers", "sysusers.d/postern.conf"), ("systemd-tmpfiles", "tmpfiles.d/postern.conf")]
    {
        let mut command = Command::new(program);
        let place = scratch.path().join(program);
        fs::create_dir_all(place.join("etc")).expect("folder");
        command.arg(format!("--root={}", place.display()));
        if program == "systemd-tmpfiles" {
            command.arg("--create");
        }
        let out = run(
            {
                command.arg(root().join("conf").join(file));
                command
            },
            "",
        );
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let fault = ["ignoring", "not a valid", "Failed", "Unknown"].iter().any(|word| said.contains(word));
        assert!(out.status.success() && !fault || !is_root(), "{program}: {}", show(&out));
    }
    if is_root() {
        let made = fs::read_to_string(scratch.path().join("systemd-sysusers/etc/passwd")).expect("accounts");
        for name in ["postern", "postern-auth", "postern-authw", "postern-smtp", "postern-imap"] {
            let line = made
                .lines()
                .find(|line| line.starts_with(&format!("{name}:")))
                .unwrap_or_else(|| panic!("{made}"));
            assert!(line.ends_with("nologin"), "{line}");
        }
        let groups = fs::read_to_string(scratch.path().join("systemd-sysusers/etc/group")).expect("groups");
        let members = groups.lines().find(|line| line.starts_with("postern:")).expect("the group");
        for name in ["postern-auth", "postern-smtp", "postern-imap"] {
            assert!(members.contains(name), "{members}");
        }
        assert!(scratch.path().join("systemd-tmpfiles/etc/postern").is_dir());
    }
}

#[test]
fn exposure_is_what_the_manual_says() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let scratch = scratch();
    let manual = fs::read_to_string(root().join("docs/service-files.md")).expect("docs/service-files.md");
    for unit in
        units(scratch.path()).iter().filter(|unit| unit.extension().is_some_and(|kind| kind == "service"))
    {
        let name = unit.file_name().and_then(|name| name.to_str()).expect("a name");
        let row = manual.lines().find_map(|line| line.strip_prefix(&format!("| `{name}` | ")));
        let told = row.and_then(|row| row.trim_end_matches([' ', '|']).parse::<f64>().ok());
        let told = told.unwrap_or_else(|| panic!("docs/service-files.md has no figure for {name}"));
        let bound = format!("--threshold={}", (told * 10.0).round());
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", &bound]).arg(unit);
        let out = run(command, "");
        // The code says whether the figure is above the bound.
        assert!(out.status.success(), "{name} is more exposed than {told}: {}", show(&out));
        assert!(stdout(&out).contains("Overall exposure level"), "{}", show(&out));
    }
}

/// Reads lines until one begins like this.
fn until(reader: &mut impl BufRead, wanted: &str) -> String {
    loop {
        let mut line = String::new();
        let count = reader.read_line(&mut line).expect("a line in time");
        assert!(count > 0, "closed before {wanted}");
        if line.starts_with(wanted) {
            return line;
        }
    }
}

#[test]
fn with_the_sockets_of_the_service_manager_no_process_is_root() {
    if !is_root() {
        return skip("needs root to give it up");
    }
    if !have(&["systemd-socket-activate", "setpriv", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name);
    // Reachable for an account without rights, wherever the program was built.
    fs::copy(postern().get_program(), at("postern")).expect("copied");
    // A port that only root can bind.
    let port = (900..1000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port below 1024");
    fs::create_dir(at("run")).expect("folder");
    fs::create_dir(at("state")).expect("folder");
    chown(at("state"), Some(NOBODY), Some(NOBODY)).expect("owner");
    let mut certificate = Command::new("openssl");
    certificate.current_dir(scratch.path()).args(self_signed("key.pem", "cert.pem"));
    assert!(run(certificate, "").status.success());
    chown(at("key.pem"), Some(NOBODY), Some(NOBODY)).expect("owner");
    let path = |name: &str| at(name).display().to_string();
    fs::write(
        at("postern.toml"),
        format!(
            "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{}\"\n\
             [[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n\
             [[auth.listener]]\nname = \"postfix\"\ntype = \"client\"\npath = \"{}\"\n\
             [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
             [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
             [[smtp.listener]]\nname = \"smtp\"\naddress = \"127.0.0.1:{port}\"\ntype = \"inbound\"\n",
            path("state"),
            path("cert.pem"),
            path("key.pem"),
            path("run/auth"),
        ),
    )
    .expect("settings");
    fs::write(at("state/users"), "alice:{PLAIN}secret::::::\n").expect("users");
    chown(at("state/users"), Some(NOBODY), Some(NOBODY)).expect("owner");
    let notify = UnixDatagram::bind(at("notify")).expect("notify");
    fs::set_permissions(at("notify"), fs::Permissions::from_mode(0o777)).expect("mode");
    notify.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let told = |wanted: &str| loop {
        let mut text = [0; 512];
        let length = notify.recv(&mut text).unwrap_or_else(|error| panic!("{wanted}: {error}"));
        if String::from_utf8_lossy(&text[..length]).contains(wanted) {
            return;
        }
    };

    let log = fs::File::create(at("log")).expect("log");
    let nobody = NOBODY.to_string();
    let mut child = Command::new("systemd-socket-activate")
        .args(["-l", &format!("127.0.0.1:{port}"), "-l", &path("run/auth"), "--fdname=smtp:postfix"])
        .arg(format!("--setenv=NOTIFY_SOCKET={}", path("notify")))
        .args([
            "--setenv=WATCHDOG_USEC=1000000",
            "setpriv",
            "--reuid",
            &nobody,
            "--regid",
            &nobody,
            "--clear-groups",
        ])
        .args(["--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"])
        .arg(at("postern"))
        .args(["run", "--log-format", "human", "--config"])
        .arg(at("postern.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("systemd-socket-activate");
    let text = || fs::read_to_string(at("log")).unwrap_or_default();
    let socket = wait_for("the socket", || {
        assert!(child.try_wait().expect("wait").is_none(), "{}", text());
        UnixStream::connect(at("run/auth")).ok()
    });
    // The first connection starts the program and is served by it.
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let mut client = BufReader::new(socket);
    wait_within(Duration::from_secs(20), text, || text().contains("all daemons are ready").then_some(()));
    until(&mut client, "DONE");
    client
        .get_mut()
        .write_all(b"VERSION\t1\t2\nCPID\t7\nAUTH\t1\tPLAIN\tservice=smtp\tresp=AGFsaWNlAHNlY3JldA==\n")
        .expect("write");
    assert!(until(&mut client, "OK\t1").contains("alice"), "{}", text());
    told("READY=1");
    told("WATCHDOG=1");
    let smtp = TcpStream::connect(("127.0.0.1", port)).expect("smtp");
    smtp.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    until(&mut BufReader::new(smtp), "220 ");

    let mut all = descendants(child.id());
    all.push(child.id());
    assert!(all.len() >= 3, "{all:?}");
    for pid in all {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let uids: Vec<&str> = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .expect("uids")
            .split_whitespace()
            .collect();
        assert!(uids.iter().all(|uid| *uid == nobody), "process {pid} has {uids:?}");
        assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "{status}");
    }
    // The sockets are the service manager's: they stay as they are.
    assert_eq!(fs::metadata(at("run/auth")).expect("there").uid(), 0);
    signal(child.id(), Signal::SIGHUP);
    told("RELOADING=1");
    told("READY=1");
    signal(child.id(), Signal::SIGTERM);
    told("STOPPING=1");
    let pid = child.id();
    let ended = child.wait().expect("wait");
    assert!(ended.success() && !alive(pid), "{ended}: {}", text());
    assert!(at("run/auth").exists(), "it belongs to the service manager");
}
