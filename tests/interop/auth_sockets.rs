//! The auth sockets with the field's own tools: doveadm, testsaslauthd, and raw dialogues.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, peer, run, show, stdout};

#[test]
fn testsaslauthd_passes() {
    if !have(&["testsaslauthd"]) {
        return;
    }
    let stack = Stack::start();
    for (user, realm, password, want) in [
        (USER, "", PASSWORD, true),
        (USER, HOSTNAME, PASSWORD, true),
        (USER, "", "wrong", false),
        ("nobody-here", "", PASSWORD, false),
    ] {
        let mut command = peer("testsaslauthd", stack.scratch());
        command.arg("-f").arg(stack.socket("saslauthd/mux"));
        command.args(["-u", user, "-p", password, "-s", "smtp", "-r", realm]);
        let out = run(command, "");
        assert_eq!(out.status.success(), want, "{user}@{realm} {password}: {}", show(&out));
        assert!(stdout(&out).starts_with(if want { "0: OK" } else { "0: NO" }), "{}", show(&out));
    }
}

#[test]
fn doveadm_works_against_our_sockets() {
    if !have(&["doveadm"]) {
        return;
    }
    let stack = Stack::start();
    let config = stack.scratch().join("doveadm.conf");
    fs::write(
        &config,
        format!(
            "base_dir = {}/none\nlog_path = /dev/stderr\nssl = no\nmail_location = maildir:~/Maildir\n",
            stack.scratch().display()
        ),
    )
    .expect("config");
    let doveadm = |args: &[&str]| {
        let mut command = peer("doveadm", stack.scratch());
        command.arg("-c").arg(&config).args(args);
        run(command, "")
    };
    let client = stack.socket("auth-client").display().to_string();
    let userdb = stack.socket("auth-userdb").display().to_string();
    let login = stack.socket("auth-login").display().to_string();
    let master = stack.socket("auth-master").display().to_string();

    let out = doveadm(&["auth", "test", "-a", &client, USER, PASSWORD]);
    assert!(out.status.success() && stdout(&out).contains("auth succeeded"), "{}", show(&out));
    let out = doveadm(&["auth", "test", "-a", &client, USER, "wrong"]);
    assert_eq!(out.status.code(), Some(77), "{}", show(&out));

    let out = doveadm(&["auth", "login", "-a", &login, "-m", &master, USER, PASSWORD]);
    assert!(out.status.success() && stdout(&out).contains("home"), "{}", show(&out));

    let out = doveadm(&["user", "-a", &userdb, USER]);
    let home = stack.state().join("mail").join(USER).display().to_string();
    assert!(out.status.success() && stdout(&out).contains(&home), "{}", show(&out));
    let out = doveadm(&["user", "-a", &userdb, "nobody-here"]);
    assert_eq!(out.status.code(), Some(67), "{}", show(&out));
    let out = doveadm(&["user", "-a", &userdb, "*"]);
    assert!(stdout(&out).contains(&format!("{USER}@{HOSTNAME}")), "{}", show(&out));
    let out = doveadm(&["auth", "lookup", "-a", &userdb, USER]);
    assert!(out.status.success(), "{}", show(&out));
}

/// Sends, and reads until all of this has come.
fn dialogue(stack: &Stack, socket: &str, send: &[u8], wanted: &[&str]) {
    let mut stream = UnixStream::connect(stack.socket(socket)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    stream.write_all(send).expect("write");
    let mut got = String::new();
    let mut buffer = [0; 4096];
    while !wanted.iter().all(|wanted| got.contains(wanted)) {
        let length = stream.read(&mut buffer).unwrap_or_default();
        assert!(length > 0, "{wanted:?} did not come: {got}");
        got += &String::from_utf8_lossy(&buffer[..length]);
    }
}

#[test]
fn greeting_is_one_write_that_everybody_understands() {
    let stack = Stack::start();
    let mut stream = UnixStream::connect(stack.socket("auth-client")).expect("connect");
    let mut buffer = [0; 4096];
    // One read must be enough: some clients do exactly one recv of 1,024 bytes.
    let length = stream.read(&mut buffer).expect("greeting");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(length <= 1024 && text.ends_with("DONE\n") && text.starts_with("VERSION\t1\t2\n"), "{text}");
    let mech = text.find("MECH\tPLAIN\tplaintext\n").expect("PLAIN");
    assert!(mech < text.find("SPID\t").expect("SPID"), "{text}");
    assert!(
        text.contains("\nCUID\t") && text.contains("\nCOOKIE\t") && text.contains("MECH\tLOGIN\tplaintext\n")
    );
    assert!(!text.contains('\r'));
}

#[test]
fn plain_and_login_by_hand() {
    let stack = Stack::start();
    fs::OpenOptions::new()
        .append(true)
        .open(stack.state().join("users"))
        .and_then(|mut f| f.write_all(b"carol:{PLAIN}pw1\n"))
        .expect("users");
    // carol NUL carol NUL pw1, pipelined with the handshake; ids answered independently.
    dialogue(
        &stack,
        "auth-client",
        b"VERSION\t1\t1\nCPID\t4711\nAUTH\t7\tPLAIN\tservice=smtp\tnologin\tresp=AGNhcm9sAHB3MQ==\nAUTH\t8\tLOGIN\tservice=smtp\n",
        &[&format!("OK\t7\tuser=carol@{HOSTNAME}"), "CONT\t8\tVXNlcm5hbWU6\n"],
    );
    // An empty challenge keeps its tab.
    dialogue(
        &stack,
        "auth-client",
        b"VERSION\t1\t0\nCPID\t1\nAUTH\t1\tplain\tservice=smtp\tresp=\n",
        &["CONT\t1\t\n"],
    );
    // One bad request harms no other.
    dialogue(
        &stack,
        "auth-client",
        b"VERSION\t1\t2\nCPID\t1\nAUTH\t1\tNOSUCH\tservice=smtp\nAUTH\t2\tPLAIN\tservice=smtp\tresp=AGNhcm9sAHB3MQ==\n",
        &["FAIL\t1", "OK\t2\t"],
    );
}
