//! Stock chasquid, unpacked, with its Dovecot authentication on our client and userdb sockets.

use std::fs;
use std::path::{Path, PathBuf};

use crate::private::{
    Foreground, Gate, RUN_AS, documented, documented_gate, quick, scratch, swaks, unpacked,
};
use crate::reference::{certificates, free_port};
use crate::support::{HOSTNAME, have, is_root, peer, show, skip, stdout};

/// In the manner of chasquid: accounts have a domain.
const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\ncarol:{PLAIN}pw3::::::expires=2001-01-01\n";

struct Chasquid {
    daemon: Foreground,
    /// Submission with STARTTLS, and with TLS from the first byte.
    ports: [u16; 2],
}

fn log(w: &Path) -> String {
    ["log", "maillog"].map(|name| fs::read_to_string(w.join("ch").join(name)).unwrap_or_default()).concat()
}

/// chasquid with the manual's lines, plus what keeps it private.
fn start(w: &Path, program: &Path) -> Chasquid {
    certificates(&w.join("tls"));
    let (etc, certs) = (w.join("ch/etc"), w.join("ch/etc/certs").join(HOSTNAME));
    fs::create_dir_all(&certs).expect("certs");
    fs::create_dir_all(etc.join("domains").join(HOSTNAME)).expect("domains");
    fs::create_dir_all(w.join("ch/data")).expect("data");
    fs::copy(w.join("tls/cert.pem"), certs.join("fullchain.pem")).expect("certificate");
    fs::copy(w.join("tls/key.pem"), certs.join("privkey.pem")).expect("key");
    let ports = [free_port(), free_port()];
    let run = w.join("run").display().to_string();
    let lines = documented("chasquid.conf", &[("/run/postern", &run)]);
    let config = format!(
        "hostname: \"{HOSTNAME}\"\nsmtp_address: \"127.0.0.1:0\"\nsubmission_address: \"127.0.0.1:{}\"\n\
         submission_over_tls_address: \"127.0.0.1:{}\"\ndata_dir: \"{w}/ch/data\"\nmail_log_path: \"{w}/ch/maillog\"\n\
         mail_delivery_agent_bin: \"/bin/true\"\n{lines}",
        ports[0],
        ports[1],
        w = w.display(),
    );
    fs::write(etc.join("chasquid.conf"), config).expect("chasquid.conf");
    let mut command = peer(&program.display().to_string(), w);
    command.arg("-config_dir").arg(&etc).arg("-logfile").arg(w.join("ch/log"));
    let mut daemon = Foreground::start(command, &w.join("ch/out"));
    for port in ports {
        daemon.wait_for_port(port, || log(w));
    }
    Chasquid { daemon, ports }
}

fn gate_config(w: &Path) -> String {
    let run = w.join("run").display().to_string();
    let owner = format!("owner = \"{RUN_AS}\"");
    documented_gate("chasquid.toml", w, &[("/run/postern", &run), ("owner = \"chasquid\"", &owner)])
}

#[test]
fn chasquid_asks_for_passwords_and_recipients() {
    if !is_root() {
        return skip("needs root: the sockets are another account's");
    }
    if !have(&["swaks", "openssl"]) {
        return;
    }
    let Some(root) = unpacked(&["chasquid"]) else { return };
    let program: PathBuf = root.join("usr/bin/chasquid");
    let scratch = scratch();
    let w = scratch.path();
    let mut gate = Gate::start(w, &quick(&gate_config(w)), USERS);
    let chasquid = start(w, &program);
    let ca = w.join("tls/ca.pem").display().to_string();
    let (alice, bob) = (format!("alice@{HOSTNAME}"), format!("bob@{HOSTNAME}"));
    let attempt = |way: usize, user: &str, password: &str, more: &[&str]| {
        let tls = ["--tls", "--tls-on-connect"][way];
        let port = chasquid.ports[way];
        let args = [&[tls, "--tls-verify", "--tls-ca-path", &ca, "--auth", "PLAIN"][..], more].concat();
        let out = swaks(w, port, user, password, &args);
        (out.status.code(), format!("{}\n{}{}", show(&out), log(w), chasquid.daemon.output()), stdout(&out))
    };
    for way in [0, 1] {
        for (user, password, code, reply) in [
            (alice.as_str(), "pw1", Some(0), "235 2.7.0"),
            (&alice, "wrong", Some(28), "535 "),
            ("nobody-here@mail.example.test", "pw1", Some(28), "535 "),
            ("carol@mail.example.test", "pw3", Some(28), "535 "),
        ] {
            let (got, all, out) = attempt(way, user, password, &["--quit-after", "AUTH"]);
            assert!(got == code && out.contains(reply), "{user} {password}: {all}");
        }
    }
    // Recipients are looked up on the userdb socket.
    let (got, all, out) = attempt(0, &alice, "pw1", &["--to", &bob, "--quit-after", "RCPT"]);
    assert!(got == Some(0) && out.contains("250 2.1.5"), "{all}");
    let unknown = format!("nobody-here@{HOSTNAME}");
    let (_, all, out) = attempt(0, &alice, "pw1", &["--to", &unknown, "--quit-after", "RCPT"]);
    assert!(out.contains("550 5.1.1"), "{all}");
    let (got, all, out) = attempt(1, &bob, "pw2", &["--to", &alice, "--from", &bob]);
    assert!(got == Some(0) && out.contains("250 2.0.0"), "{all}");

    // An outage is no wrong password, and no unknown recipient.
    gate.break_backend();
    let (_, all, out) = attempt(0, &alice, "pw1", &["--quit-after", "AUTH"]);
    assert!(out.contains("454 4.7.0") && !out.contains("535"), "{all}");
    gate.mend_backend();
    assert_eq!(attempt(0, &alice, "pw1", &["--quit-after", "AUTH"]).0, Some(0));

    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
    crate::support::signal(gate.auth_pid(), nix::sys::signal::Signal::SIGKILL);
    let (got, all, _) = attempt(1, &bob, "pw2", &["--quit-after", "AUTH"]);
    assert_eq!(got, Some(0), "the socket outlives the daemon: {all}");

    gate.stop();
    let (_, all, out) = attempt(0, &alice, "pw1", &["--quit-after", "AUTH"]);
    assert!(out.contains("454 4.7.0"), "away: {all}");
    gate.launch();
    assert_eq!(attempt(0, &alice, "pw1", &["--quit-after", "AUTH"]).0, Some(0), "{}", gate.log());
}
