//! libsasl2 on our mux: `testsaslauthd`, and stock Postfix with `smtpd_sasl_type = cyrus`.

use std::fs;
use std::path::Path;

use crate::postfix_server::{PostfixServer, Service};
use crate::private::{Gate, Lines, documented, documented_gate, quick, scratch, swaks};
use crate::support::{HOSTNAME, have, is_root, peer, run, show, skip, stdout};

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\ncarol:{PLAIN}pw3::::::expires=2001-01-01\n";

/// The manual's listener, for programs outside and inside the chroot of Postfix.
fn gate(w: &Path) -> Gate {
    let mux = w.join("run/saslauthd/mux").display().to_string();
    let inside = PostfixServer::queue(w).display().to_string() + &mux;
    let both = "[\"/run/saslauthd/mux\", \"/var/spool/postfix/run/saslauthd/mux\"]";
    let replaced = format!("[\"{mux}\", \"{inside}\"]");
    Gate::start(w, &quick(&documented_gate("saslauthd.toml", w, &[(both, &replaced)])), USERS)
}

#[test]
fn testsaslauthd_through_restart_and_outage() {
    if !is_root() {
        return skip("needs root: the socket belongs to Postfix");
    }
    if !have(&["testsaslauthd", "postfix"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let mut gate = gate(w);
    let ask = |user: &str, password: &str| {
        let mut command = peer("testsaslauthd", w);
        command.arg("-f").arg(w.join("run/saslauthd/mux")).args(["-u", user, "-p", password, "-s", "smtp"]);
        let out = run(command, "");
        (out.status.success(), show(&out))
    };
    for (user, password, want) in [
        ("alice", "pw1", true),
        ("bob@mail.example.test", "pw2", true),
        ("alice", "pw2", false),
        ("nobody-here", "pw1", false),
        ("carol", "pw3", false),
    ] {
        let got = ask(user, password);
        assert_eq!(got.0, want, "{user} {password}: {}", got.1);
        assert_eq!(got.1.contains("0: NO"), !want, "{user} {password}: {}", got.1);
    }
    // An outage is no NO: the connection ends without an answer.
    gate.break_backend();
    let got = ask("alice", "pw1");
    assert!(!got.0 && !got.1.contains("NO \""), "{}", got.1);
    gate.mend_backend();
    assert!(ask("alice", "pw1").0);
    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
    assert!(ask("alice", "pw1").0, "after a reload:\n{}", gate.log());
    crate::support::signal(gate.auth_pid(), nix::sys::signal::Signal::SIGKILL);
    assert!(ask("alice", "pw1").0, "the socket outlives the daemon:\n{}", gate.log());
    gate.stop();
    assert!(!ask("alice", "pw1").0);
    gate.launch();
    assert!(ask("alice", "pw1").0);
}

#[test]
fn postfix_by_way_of_libsasl2() {
    if !is_root() {
        return skip("needs root to run a private Postfix");
    }
    if !have(&["postfix", "swaks", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let mut gate = gate(w);
    fs::create_dir_all(w.join("etc/sasl")).expect("sasl");
    let mux = w.join("run/saslauthd/mux").display().to_string();
    let smtpd = documented("postfix-sasl-smtpd.conf", &[("/run/saslauthd/mux", &mux)]);
    fs::write(w.join("etc/sasl/smtpd.conf"), smtpd).expect("smtpd.conf");
    let services = [
        Service { chroot: false, options: "" },
        Service { chroot: true, options: "" },
        Service { chroot: false, options: "-o smtpd_tls_auth_only=no" },
    ];
    let postfix = PostfixServer::start(w, &documented("postfix-cyrus-main.cf", &[]), &services);
    let ca = postfix.ca().display().to_string();
    for index in [0, 1] {
        for (mechanism, user, password, code, reply) in [
            ("PLAIN", "alice", "pw1", 0, "235 2.7.0"),
            ("LOGIN", "bob", "pw2", 0, "235 2.7.0"),
            ("PLAIN", "alice", "wrong", 28, "535 5.7.8"),
            ("LOGIN", "nobody-here", "pw1", 28, "535 5.7.8"),
            ("PLAIN", "carol", "pw3", 28, "535 5.7.8"),
        ] {
            let tls = ["--tls", "--tls-verify", "--tls-ca-path", &ca, "--auth", mechanism];
            let out = swaks(w, postfix.port(index), user, password, &tls);
            assert!(
                out.status.code() == Some(code) && stdout(&out).contains(reply),
                "service {index} {mechanism} {user}: {}\n{}\n{}",
                show(&out),
                postfix.log(),
                gate.log()
            );
        }
    }
    postfix.wait_for_log("sasl_method=PLAIN, sasl_username=alice");

    // Only what saslauthd's protocol can carry is offered.
    let (mut smtp, said) = Lines::smtp(postfix.port(2)).expect("EHLO");
    assert!(
        said.lines().any(|line| line == "250-AUTH PLAIN LOGIN" || line == "250-AUTH LOGIN PLAIN"),
        "{said}"
    );
    // A connection that ends without an answer is a "generic failure", which Postfix takes as temporary.
    gate.break_backend();
    let reply = smtp.auth("alice", "pw1").expect("reply");
    assert!(reply.starts_with("454 4.7.0 Temporary authentication failure"), "{reply}\n{}", postfix.log());
    gate.mend_backend();
    let reply = smtp.auth("alice", "pw1").expect("reply");
    assert!(reply.starts_with("235"), "{reply}\n{}", postfix.log());

    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
    let (mut smtp, _) = Lines::smtp(postfix.port(2)).expect("EHLO after a reload");
    let reply = smtp.auth("bob", "pw2").expect("reply");
    assert!(reply.starts_with("235"), "after a reload: {reply}\n{}", postfix.log());

    gate.stop();
    let (mut smtp, _) = Lines::smtp(postfix.port(2)).expect("sessions go on without us");
    let reply = smtp.auth("alice", "pw1").expect("reply");
    assert!(reply.starts_with("454 4.7.0 Temporary authentication failure"), "{reply}\n{}", postfix.log());
    gate.launch();
    let reply = smtp.auth(&format!("alice@{HOSTNAME}"), "pw1").expect("reply");
    assert!(reply.starts_with("235"), "{reply}\n{}", postfix.log());
}
