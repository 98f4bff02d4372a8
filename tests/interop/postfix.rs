//! Stock Postfix with `smtpd_sasl_type = dovecot` on our socket: the first reason people come.

use crate::reference::Postfix;
use crate::scenario::Target;
use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, is_root, peer, run, show, skip, stdout};

#[test]
fn postfix_authenticates_against_our_socket() {
    if !is_root() {
        return skip("needs root to run a private Postfix");
    }
    if !have(&["postfix", "swaks"]) {
        return;
    }
    let mut stack = Stack::start();
    let postfix = Postfix::with_backend(&stack.socket("auth-client"), None, &[USER]);
    let send = |tls: &str, service: &str, mechanism: &str, password: &str| {
        let mut command = peer("swaks", stack.scratch());
        command.args(["--server", "localhost", "--port", &postfix.port(service).to_string(), tls]);
        command.args(["--from", &format!("{USER}@{HOSTNAME}"), "--to", &format!("{USER}@{HOSTNAME}")]);
        command.args([
            "--auth",
            mechanism,
            "--auth-user",
            USER,
            "--auth-password",
            password,
            "--timeout",
            "20",
        ]);
        run(command, "")
    };
    for (tls, service) in [("--tls", "submission"), ("--tls-on-connect", "submissions")] {
        for mechanism in ["PLAIN", "LOGIN"] {
            let out = send(tls, service, mechanism, PASSWORD);
            assert!(out.status.success(), "{service} {mechanism}: {}\n{}", show(&out), postfix.log());
        }
    }
    postfix.wait_for_messages(USER, 4);
    let out = send("--tls", "submission", "PLAIN", "wrong");
    assert_eq!(out.status.code(), Some(28), "{}", show(&out));
    assert!(stdout(&out).contains("535 5.7.8"), "{}", show(&out));
    let log = postfix.log();
    assert!(log.contains(&format!("sasl_method=PLAIN, sasl_username={USER}@{HOSTNAME}")), "{log}");

    // A restart of our daemons is invisible to a running Postfix.
    assert_eq!(stack.stop(), Some(0));
    stack.launch();
    let out = {
        let mut command = peer("swaks", stack.scratch());
        command.args(["--server", "localhost", "--port", &postfix.port("submission").to_string(), "--tls"]);
        command.args(["--from", &format!("{USER}@{HOSTNAME}"), "--to", &format!("{USER}@{HOSTNAME}")]);
        command.args([
            "--auth",
            "PLAIN",
            "--auth-user",
            USER,
            "--auth-password",
            PASSWORD,
            "--timeout",
            "20",
        ]);
        run(command, "")
    };
    assert!(out.status.success(), "{}\n{}", show(&out), postfix.log());
}
