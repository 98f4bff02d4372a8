//! Stock Exim, unpacked into a private mount namespace, with its dovecot driver and with its saslauthd condition.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::private::{
    Foreground, Gate, Namespace, documented, documented_gate, quick, scratch, swaks, unpacked,
};
use crate::reference::{certificates, free_port};
use crate::support::{HOSTNAME, have, is_root, show, signal, skip, stdout, wait_for};

const PACKAGES: &[&str] = &["exim4-daemon-heavy", "exim4-base", "libmariadb3", "libspf2-2"];
/// The uid and gid that Debian's account gets in the private `/etc`.
const EXIM: u32 = 64_998;

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\nmallory:{PLAIN}pw3::::::nologin\n";

pub struct Exim {
    daemon: Foreground,
    pub port: u16,
}

/// Starts Exim with this `begin authenticators` section.
pub fn start(w: &Path, namespace: &Namespace, authenticators: &str) -> Exim {
    certificates(&w.join("tls"));
    for folder in ["spool", "exim"] {
        fs::create_dir(w.join(folder)).expect("folder");
        chown(w.join(folder), Some(EXIM), Some(EXIM)).expect("chown");
    }
    // Exim reads its key as its own account.
    chown(w.join("tls/key.pem"), Some(EXIM), Some(EXIM)).expect("chown");
    let port = free_port();
    let config = format!(
        "primary_hostname = {HOSTNAME}\nspool_directory = {w}/spool\nlog_file_path = {w}/exim/%slog\npid_file_path = {w}/exim/pid\n\
         local_interfaces = 127.0.0.1\ndaemon_smtp_ports = {port}\ntls_advertise_hosts = *\ntls_certificate = {w}/tls/cert.pem\n\
         tls_privatekey = {w}/tls/key.pem\nkeep_environment =\nhost_lookup =\nrfc1413_hosts =\ndaemon_startup_retries = 0\n\
         smtp_enforce_sync = false\nacl_smtp_rcpt = rcpt\n\
         begin acl\nrcpt:\n  accept authenticated = *\n  deny message = relay not permitted\n\
         begin routers\nlocal:\n  driver = accept\n  transport = md\n\
         begin transports\nmd:\n  driver = appendfile\n  maildir_format\n  create_directory\n  user = mail\n  group = mail\n  directory = {w}/mail\n\
         begin authenticators\n{authenticators}",
        w = w.display(),
    );
    crate::private::folder(&w.join("mail"), "mail", 0o755);
    let etc = namespace.etc("exim4");
    fs::create_dir(&etc).expect("exim4");
    fs::write(etc.join("exim4.conf"), config).expect("exim4.conf");
    let mut command = namespace.command("exim4");
    command.args(["-bdf", "-q15s"]);
    let mut daemon = Foreground::start(command, &w.join("exim.out"));
    daemon.wait_for_port(port, || log(w));
    Exim { daemon, port }
}

fn log(w: &Path) -> String {
    ["mainlog", "paniclog"].map(|f| fs::read_to_string(w.join("exim").join(f)).unwrap_or_default()).concat()
}

/// One attempt: swaks ends with this exit code and has seen this reply.
fn attempt(w: &Path, exim: &Exim, mechanism: &str, user: &str, password: &str, code: i32, reply: &str) {
    let tls = ["--tls", "--tls-verify", "--tls-ca-path"];
    let ca = w.join("tls/ca.pem").display().to_string();
    let out = swaks(w, exim.port, user, password, &[&tls[..], &[&ca, "--auth", mechanism]].concat());
    assert!(
        out.status.code() == Some(code) && stdout(&out).contains(reply),
        "{mechanism} {user} {password}: expected {code}, {reply}: {}\n{}{}",
        show(&out),
        log(w),
        exim.daemon.output()
    );
}

/// What both ways have in common. `refused`: exit code and reply of swaks for a wrong password.
fn all_answers(w: &Path, gate: &mut Gate, exim: &Exim) {
    for mechanism in ["PLAIN", "LOGIN"] {
        attempt(w, exim, mechanism, "alice", "pw1", 0, "235 ");
        attempt(w, exim, mechanism, "alice", "wrong", 28, "535 ");
    }
    attempt(w, exim, "PLAIN", "nobody-here", "pw1", 28, "535 ");
    attempt(w, exim, "PLAIN", "mallory", "pw3", 28, "535 ");
    let folder = w.join("mail/new");
    wait_for("delivery by Exim", || (fs::read_dir(&folder).ok()?.count() >= 2).then_some(()));

    gate.break_backend();
    attempt(w, exim, "PLAIN", "alice", "pw1", 28, "435 ");
    attempt(w, exim, "LOGIN", "bob", "pw2", 28, "435 ");
    gate.mend_backend();
    attempt(w, exim, "PLAIN", "bob", "pw2", 0, "235 ");

    // Neither a reload nor a crash of the daemon is anything Exim would notice.
    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
    attempt(w, exim, "LOGIN", "alice", "pw1", 0, "235 ");
    signal(gate.auth_pid(), Signal::SIGKILL);
    attempt(w, exim, "PLAIN", "bob", "pw2", 0, "235 ");

    gate.stop();
    attempt(w, exim, "PLAIN", "alice", "pw1", 28, "435 ");
    gate.launch();
    attempt(w, exim, "LOGIN", "alice", "pw1", 0, "235 ");
}

/// Where Exim is installed, and nobody else sees it; `None` after a skip.
pub fn private() -> Option<(tempfile::TempDir, Namespace)> {
    if !is_root() {
        skip("needs root to run a private Exim");
        return None;
    }
    if !have(&["swaks", "openssl", "unshare"]) {
        return None;
    }
    let root = unpacked(PACKAGES)?;
    let scratch = scratch();
    let namespace = Namespace::new(scratch.path(), &root, &[("Debian-exim", EXIM)]);
    namespace.possible().then_some((scratch, namespace))
}

#[test]
fn exim_with_its_dovecot_driver() {
    let Some((scratch, namespace)) = private() else { return };
    let w = scratch.path();
    // Outside the namespace the account has no name.
    let (socket, id) = (w.join("run/postern/exim").display().to_string(), EXIM.to_string());
    let config = documented_gate("exim.toml", w, &[("/run/postern/exim", &socket), ("Debian-exim", &id)]);
    let mut gate = Gate::start(w, &quick(&config), USERS);
    let exim = start(w, &namespace, &documented("exim-dovecot.conf", &[]));
    all_answers(w, &mut gate, &exim);
    let log = log(w);
    assert!(
        log.contains(&format!("A=postern_plain:alice@{HOSTNAME}")),
        "the canonical name is logged:\n{log}"
    );
    assert!(gate.log().contains("rip=127.0.0.1 mech=LOGIN"), "{}", gate.log());
}

#[test]
fn exim_with_its_saslauthd_condition() {
    let Some((scratch, namespace)) = private() else { return };
    let w = scratch.path();
    let socket = format!("\"{}\"", namespace.run().join("saslauthd/mux").display());
    let id = format!("owner = \"{EXIM}\"");
    let both = "[\"/run/saslauthd/mux\", \"/var/spool/postfix/run/saslauthd/mux\"]";
    let config = documented_gate("saslauthd.toml", w, &[(both, &socket), ("owner = \"postfix\"", &id)]);
    let mut gate = Gate::start(w, &quick(&config), USERS);
    let exim = start(w, &namespace, &documented("exim-saslauthd.conf", &[]));
    all_answers(w, &mut gate, &exim);
}
