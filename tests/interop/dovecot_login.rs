//! Stock Dovecot login and mail processes with our daemon in place of Dovecot's auth process.

use std::fs;
use std::path::{Path, PathBuf};

use crate::private::{Foreground, Gate, documented, documented_gate, folder, quick, scratch};
use crate::reference::{certificates, free_port};
use crate::support::{HOSTNAME, have, is_root, peer, run, show, skip, stdout};

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\ncarol:{PLAIN}pw3::::::expires=2001-01-01\n";

/// Dovecot with these lines, plus what keeps it private.
fn start(w: &Path, lines: &str) -> (Foreground, [u16; 3]) {
    certificates(&w.join("tls"));
    let ports = [free_port(), free_port(), free_port()];
    let config = format!(
        "base_dir = {w}/dv\nstate_dir = {w}/dv-state\ninstance_name = t\nlog_path = {w}/dv.log\nprotocols = imap pop3\nlisten = 127.0.0.1\n\
         ssl = yes\nssl_cert = <{w}/tls/cert.pem\nssl_key = <{w}/tls/key.pem\nmail_max_userip_connections = 0\n\
         service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
         service imap-login {{\n inet_listener imap {{\n port = {}\n }}\n inet_listener imaps {{\n port = {}\n ssl = yes\n }}\n}}\n\
         service pop3-login {{\n inet_listener pop3 {{\n port = {}\n }}\n inet_listener pop3s {{\n port = 0\n }}\n}}\n{lines}",
        ports[0],
        ports[1],
        ports[2],
        w = w.display(),
    );
    fs::write(w.join("dovecot.conf"), config).expect("dovecot.conf");
    let mut command = peer("dovecot", w);
    command.arg("-F").arg("-c").arg(w.join("dovecot.conf"));
    let mut dovecot = Foreground::start(command, &w.join("dv.out"));
    for port in ports {
        dovecot.wait_for_port(port, || log(w));
    }
    (dovecot, ports)
}

fn log(w: &Path) -> String {
    fs::read_to_string(w.join("dv.log")).unwrap_or_default()
}

/// The gate as the manual has it, with sockets below `run`, and further lines for `[auth]`.
fn gate(w: &Path, auth: &str) -> Gate {
    folder(&w.join("mail"), "mail", 0o755);
    let (run, mail) = (w.join("run").display().to_string(), w.join("mail").display().to_string());
    let config = documented_gate("dovecot.toml", w, &[("/run/postern", &run), ("/var/mail", &mail)]);
    Gate::start(w, &quick(&config).replacen("[auth]\n", &format!("[auth]\n{auth}"), 1), USERS)
}

/// One login and a LIST by curl; what is said goes to standard error.
fn curl(w: &Path, url: &str, user: &str, password: &str, more: &[&str]) -> (Option<i32>, String) {
    let mut command = peer("curl", w);
    command.args(["--silent", "--show-error", "--verbose", "--max-time", "30", "--cacert"]);
    command.arg(w.join("tls/ca.pem")).args(["--user", &format!("{user}:{password}")]).args(more).arg(url);
    let out = run(command, "");
    (out.status.code(), show(&out))
}

/// curl's exit code for a refused login.
const REFUSED: Option<i32> = Some(67);

#[test]
fn dovecot_logs_users_in_with_our_daemon_as_its_auth_process() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if !have(&["dovecot", "curl", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let mut gate = gate(w, "");
    let run_folder = w.join("run").display().to_string();
    let (_dovecot, ports) = start(w, &documented("dovecot.conf", &[("/run/postern", &run_folder)]));
    let imaps = format!("imaps://localhost:{}/", ports[1]);
    let pop3 = format!("pop3://localhost:{}/", ports[2]);
    let told = |got: &(Option<i32>, String)| format!("{got:?}\n{}\n{}", log(w), gate_log(w));

    for mechanism in ["AUTH=PLAIN", "AUTH=LOGIN"] {
        let got = curl(w, &imaps, "alice", "pw1", &["--login-options", mechanism]);
        assert!(got.0 == Some(0) && got.1.contains(" INBOX\r\n"), "{mechanism}: {}", told(&got));
    }
    // Mail of that user, as that user.
    let mail = w.join("message");
    fs::write(&mail, crate::support::message("from dovecot")).expect("message");
    let inbox = format!("{imaps}INBOX");
    let got =
        curl(w, &inbox, "alice@mail.example.test", "pw1", &["--upload-file", &mail.display().to_string()]);
    assert_eq!(got.0, Some(0), "{}", told(&got));
    let stored: Vec<PathBuf> = ["new", "cur"]
        .iter()
        .filter_map(|sub| fs::read_dir(w.join("mail/alice/Maildir").join(sub)).ok())
        .flatten()
        .map(|entry| entry.expect("entry").path())
        .collect();
    assert_eq!(stored.len(), 1, "{stored:?} {}", told(&got));
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&stored[0]).expect("stored")), 8);
    let got = curl(w, &pop3, "alice", "pw1", &["--ssl-reqd"]);
    assert!(got.0 == Some(0) && got.1.contains("\n1 "), "pop3: {}", told(&got));

    for (user, password, says) in [
        ("alice", "wrong", " NO "),
        ("nobody-here", "pw1", " NO "),
        ("carol", "pw3", "disabled"),
        // Who does not know the password learns nothing about the account.
        ("carol", "wrong", " NO "),
    ] {
        let got = curl(w, &imaps, user, password, &["--login-options", "AUTH=PLAIN"]);
        assert!(
            got.0 == REFUSED && got.1.contains(says) && !got.1.contains("UNAVAILABLE"),
            "{user}: {}",
            told(&got)
        );
        assert_eq!(got.1.contains("disabled"), says == "disabled", "{user}: {}", told(&got));
    }

    gate.break_backend();
    let got = curl(w, &imaps, "bob", "pw2", &["--login-options", "AUTH=PLAIN"]);
    assert!(got.0 == REFUSED && got.1.contains("NO [UNAVAILABLE]"), "outage: {}", told(&got));
    gate.mend_backend();
    let got = curl(w, &imaps, "bob", "pw2", &["--login-options", "AUTH=PLAIN"]);
    assert_eq!(got.0, Some(0), "after the outage: {}", told(&got));

    // A crash of the daemon and a reload are nothing Dovecot would notice.
    crate::support::signal(gate.auth_pid(), nix::sys::signal::Signal::SIGKILL);
    let got = curl(w, &imaps, "bob", "pw2", &["--login-options", "AUTH=PLAIN"]);
    assert_eq!(got.0, Some(0), "after a crash: {}", told(&got));
    assert!(gate.admin(&["reload"], "").status.success());
    let got = curl(w, &imaps, "alice", "pw1", &["--login-options", "AUTH=PLAIN"]);
    assert_eq!(got.0, Some(0), "after a reload: {}", told(&got));

    gate.stop();
    let got = curl(w, &imaps, "alice", "pw1", &["--login-options", "AUTH=PLAIN"]);
    assert!(got.0 != Some(0), "away: {}", told(&got));
    gate.launch();
    let got = curl(w, &imaps, "alice", "pw1", &["--login-options", "AUTH=PLAIN"]);
    assert_eq!(got.0, Some(0), "back: {}", told(&got));
    let log = log(w);
    assert!(log.contains(&format!("Login: user=<alice@{HOSTNAME}>, method=PLAIN")), "{log}");
}

fn gate_log(w: &Path) -> String {
    fs::read_to_string(w.join("gate.log")).unwrap_or_default()
}

/// APOP never leaves the login process as such: it makes the challenge of the banner from the numbers of our greeting.
#[test]
fn dovecots_pop3_logs_users_in_with_apop() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if !have(&["dovecot", "curl", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let _gate = gate(w, "mechanisms = [\"PLAIN\", \"APOP\"]\n");
    let run = w.join("run").display().to_string();
    let (_dovecot, ports) = start(w, &documented("dovecot.conf", &[("/run/postern", &run)]));
    let pop3 = format!("pop3://localhost:{}/", ports[2]);
    for (user, password, code) in [
        ("alice", "pw1", Some(0)),
        ("alice", "wrong", REFUSED),
        ("nobody-here", "pw1", REFUSED),
        ("bob", "pw2", Some(0)),
    ] {
        let got = curl(w, &pop3, user, password, &["--ssl-reqd", "--login-options", "AUTH=+APOP"]);
        assert!(got.0 == code && got.1.contains("> APOP "), "{user}: {got:?}\n{}\n{}", log(w), gate_log(w));
    }
}

/// Where the login processes' arguments cannot be changed, links in Dovecot's own folder do the same.
#[test]
fn dovecot_follows_links_to_our_sockets() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if !have(&["dovecot", "curl", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let _gate = gate(w, "");
    let stock = "service imap-login {\n chroot =\n}\nnamespace inbox {\n inbox = yes\n location = maildir:~/Maildir\n}\n\
                 passdb {\n driver = static\n}\nuserdb {\n driver = static\n}\nfirst_valid_uid = 8\n";
    let (_dovecot, ports) = start(w, stock);
    for (link, socket) in
        [("login/login", "dovecot-login"), ("auth-login", "dovecot-login"), ("auth-master", "dovecot-master")]
    {
        let link = w.join("dv").join(link);
        fs::remove_file(&link).expect("Dovecot's socket");
        std::os::unix::fs::symlink(w.join("run").join(socket), &link).expect("link");
    }
    let url = format!("imaps://localhost:{}/", ports[1]);
    let got = curl(w, &url, "alice", "pw1", &[]);
    assert!(got.0 == Some(0) && got.1.contains(" INBOX\r\n"), "{got:?}\n{}\n{}", log(w), gate_log(w));
    let got = curl(w, &url, "alice", "wrong", &[]);
    assert_eq!(got.0, REFUSED, "{got:?}\n{}", log(w));

    // Python's imaplib by a session of several commands, with a second one beside it.
    let script = "import imaplib, ssl, sys\n\
                  context = ssl.create_default_context(cafile=sys.argv[1])\n\
                  def login(user, password):\n    box = imaplib.IMAP4_SSL('localhost', int(sys.argv[2]), ssl_context=context, timeout=20)\n    box.login(user, password)\n    return box\n\
                  a, b = login('alice', 'pw1'), login('bob', 'pw2')\n\
                  print(a.select('INBOX'), b.select('INBOX'), a.list(), b.noop(), a.logout()[0], b.logout()[0])\n";
    let mut command = peer("python3", w);
    command.args(["-c", script]).arg(w.join("tls/ca.pem")).arg(ports[1].to_string());
    let out = run(command, "");
    assert!(out.status.success() && stdout(&out).contains("BYE"), "{}\n{}", show(&out), log(w));
}
