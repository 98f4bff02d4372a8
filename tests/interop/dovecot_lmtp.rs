//! Stock Dovecot's LMTP server and `doveadm` on our userdb socket: delivery to users only we know.

use std::fs;
use std::path::Path;

use crate::private::{Foreground, Gate, Lines, documented, documented_gate, folder, quick, scratch};
use crate::reference::free_port;
use crate::support::{HOSTNAME, have, is_root, peer, run, show, skip, stdout, wait_for};

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\n";

fn log(w: &Path) -> String {
    fs::read_to_string(w.join("dv.log")).unwrap_or_default()
}

fn gate(w: &Path) -> Gate {
    folder(&w.join("mail"), "mail", 0o755);
    let (run, mail) = (w.join("run").display().to_string(), w.join("mail").display().to_string());
    let config = documented_gate("dovecot-lmtp.toml", w, &[("/run/postern", &run), ("/var/mail", &mail)]);
    Gate::start(w, &quick(&config), USERS)
}

fn start(w: &Path) -> (Foreground, u16) {
    let port = free_port();
    let run = w.join("run").display().to_string();
    let lines = documented("dovecot-lmtp.conf", &[("/run/postern", &run)]);
    let config = format!(
        "base_dir = {w}/dv\nstate_dir = {w}/dv-state\ninstance_name = t\nlog_path = {w}/dv.log\nprotocols = lmtp\nlisten = 127.0.0.1\nssl = no\n\
         service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
         service lmtp {{\n inet_listener lmtp {{\n port = {port}\n }}\n}}\n{lines}",
        w = w.display(),
    );
    fs::write(w.join("dovecot.conf"), config).expect("dovecot.conf");
    let mut command = peer("dovecot", w);
    command.arg("-F").arg("-c").arg(w.join("dovecot.conf"));
    let mut dovecot = Foreground::start(command, &w.join("dv.out"));
    dovecot.wait_for_port(port, || log(w));
    (dovecot, port)
}

#[test]
fn dovecots_lmtp_and_doveadm_know_our_users() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if !have(&["dovecot", "doveadm", "lmtp"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let mut gate = gate(w);
    let (_dovecot, port) = start(w);
    let told = |text: &str| {
        format!("{text}\n{}\n{}", log(w), fs::read_to_string(w.join("gate.log")).unwrap_or_default())
    };
    let session = || {
        let mut lmtp = Lines::connect(port).expect("connected");
        lmtp.reply().expect("greeting");
        lmtp.ask("LHLO client.example.test").expect("LHLO");
        let reply = lmtp.ask("MAIL FROM:<sender@elsewhere.example>").expect("MAIL");
        assert!(reply.starts_with("250"), "{reply}");
        lmtp
    };
    let mut lmtp = session();
    for (user, code) in [("alice", "250 2.1.5"), ("nobody-here", "550 5.1.1"), ("BOB", "250 2.1.5")] {
        let reply = lmtp.ask(&format!("RCPT TO:<{user}@{HOSTNAME}>")).expect("RCPT");
        assert!(reply.starts_with(code), "{user}: {}", told(&reply));
    }
    assert!(lmtp.ask("DATA").expect("DATA").starts_with("354"));
    let first = lmtp.ask("Subject: from lmtp\r\n\r\nhello\r\n.").expect("first answer");
    let second = lmtp.reply().expect("second answer");
    assert!(first.starts_with("250") && second.starts_with("250"), "{}", told(&format!("{first}\n{second}")));
    for user in ["alice", "bob"] {
        let new: Vec<_> = fs::read_dir(w.join("mail").join(user).join("Maildir/new"))
            .unwrap_or_else(|e| panic!("{user}: {e}: {}", told("")))
            .map(|entry| entry.expect("entry"))
            .collect();
        assert_eq!(new.len(), 1, "{user}");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&new[0].metadata().expect("mail")), 8, "{user}");
    }

    // Not now, instead of never: mail must not bounce.
    gate.break_backend();
    let reply = session().ask(&format!("RCPT TO:<bob@{HOSTNAME}>")).expect("RCPT");
    assert!(reply.starts_with("451 4.3.0"), "outage: {}", told(&reply));
    gate.mend_backend();
    crate::support::signal(gate.auth_pid(), nix::sys::signal::Signal::SIGKILL);
    // Dovecot keeps a connection, and finds out that it is gone by using it: temporary, once.
    wait_for("an answer after the crash", || {
        let reply = session().ask(&format!("RCPT TO:<bob@{HOSTNAME}>")).expect("RCPT");
        assert!(
            reply.starts_with("250") || reply.starts_with("451 4.3.0"),
            "after a crash: {}",
            told(&reply)
        );
        reply.starts_with("250").then_some(())
    });
    assert!(gate.admin(&["reload"], "").status.success());
    let reply = session().ask(&format!("RCPT TO:<bob@{HOSTNAME}>")).expect("RCPT");
    assert!(reply.starts_with("250"), "after a reload: {}", told(&reply));
    gate.stop();
    let reply = session().ask(&format!("RCPT TO:<bob@{HOSTNAME}>")).expect("RCPT");
    assert!(reply.starts_with("451 4.3.0"), "away: {}", told(&reply));
    gate.launch();

    // doveadm with that configuration asks the same socket.
    let doveadm = |arguments: &[&str]| {
        let mut command = peer("doveadm", w);
        command.arg("-c").arg(w.join("dovecot.conf")).args(arguments);
        let out = run(command, "");
        (out.status.code(), show(&out), stdout(&out))
    };
    let (code, all, out) = doveadm(&["user", "-f", "home", "alice"]);
    assert!(code == Some(0) && out.trim() == w.join("mail/alice").display().to_string(), "{}", told(&all));
    let (code, all, out) = doveadm(&["user", "*"]);
    assert!(code == Some(0) && out.contains(&format!("bob@{HOSTNAME}")), "{}", told(&all));
    let (code, all, _) = doveadm(&["user", "nobody-here"]);
    assert_eq!(code, Some(67), "{}", told(&all));
    // Mailbox commands ask who the user is, and become that user.
    let (code, all, out) = doveadm(&["mailbox", "status", "-u", "alice", "messages", "INBOX"]);
    assert!(code == Some(0) && out.contains("messages=1"), "{}", told(&all));
}
