//! `postern auth …` against a running stack: what scripts see.

use std::process::Output;

use serde_json::Value;

use crate::reference::Dovecot;
use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, is_root, postern, run, show, skip, stdout};

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", show(out)))
}

#[test]
fn a_login_is_tried_as_a_mail_program_does() {
    let mut stack = Stack::start();
    let canonical = format!("{USER}@{HOSTNAME}");
    for mechanism in ["PLAIN", "login"] {
        let line = [
            "auth",
            "test",
            USER,
            "--password-stdin",
            "--mechanism",
            mechanism,
            "--rip",
            "192.0.2.7",
            "--json",
        ];
        let out = stack.admin(&line, &format!("{PASSWORD}\n"));
        assert_eq!(out.status.code(), Some(0), "{}", show(&out));
        let answer = json(&out);
        assert_eq!(
            (&answer["result"], &answer["user"]),
            (&"accepted".into(), &canonical.as_str().into()),
            "{answer}"
        );
        assert!(answer["milliseconds"].is_u64() && answer["fields"].is_object(), "{answer}");
        let out = stack.admin(&line, "wrong\n");
        assert_eq!(out.status.code(), Some(1), "{}", show(&out));
        assert_eq!(json(&out)["result"], "refused");
    }
    let out = stack.admin(&["auth", "test", USER, "--password-stdin"], PASSWORD);
    assert!(stdout(&out).starts_with(&format!("accepted: {canonical} (")), "{}", show(&out));
    assert!(!show(&out).contains(PASSWORD));
    for (password, code) in [(PASSWORD, 0), ("wrong", 1)] {
        let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--mux"], password);
        assert_eq!(out.status.code(), Some(code), "{}", show(&out));
    }
    // Dovecot and other daemons are asked in the same way, by mechanisms that our embedded default does not offer.
    let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--mech", "SCRAM-SHA-256"], PASSWORD);
    assert_eq!(out.status.code(), Some(1), "not offered: {}", show(&out));
    let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--mech", "GSSAPI"], PASSWORD);
    assert_eq!(out.status.code(), Some(2), "{}", show(&out));

    let state = stack.state();
    assert_eq!(stack.stop(), Some(0));
    for line in [
        &["auth", "test", USER, "--password-stdin"][..],
        &["auth", "lookup", USER],
        &["auth", "cache", "stats"],
    ] {
        let mut command = postern();
        command.args(line).arg("--state-dir").arg(&state);
        let out = run(command, PASSWORD);
        assert_eq!(out.status.code(), Some(75), "{line:?}: {}", show(&out));
    }
}

#[test]
fn users_are_looked_up_and_explained() {
    let stack = Stack::start();
    let socket = stack.socket("auth-userdb").display().to_string();
    for line in
        [vec!["auth", "lookup", USER, "--json"], vec!["auth", "lookup", USER, "--json", "--socket", &socket]]
    {
        let out = stack.admin(&line, "");
        assert_eq!(out.status.code(), Some(0), "{}", show(&out));
        let answer = json(&out);
        assert_eq!(
            (&answer["found"], &answer["canonical"]),
            (&"yes".into(), &format!("{USER}@{HOSTNAME}").into())
        );
        let home = stack.state().join("mail").join(USER);
        assert_eq!(answer["userdb_fields"]["home"], home.display().to_string(), "{answer}");
    }
    for name in ["nobody-here", "no such\u{1}name", "../x"] {
        for line in [
            vec!["auth", "lookup", name],
            vec!["auth", "explain", name],
            vec!["auth", "lookup", name, "--socket", &socket],
        ] {
            let out = stack.admin(&line, "");
            assert_eq!(out.status.code(), Some(67), "{line:?}: {}", show(&out));
        }
    }
    let out = stack.admin(&["auth", "lookup", USER, "--socket", "/nonexistent/socket"], "");
    assert_eq!(out.status.code(), Some(75), "{}", show(&out));
    assert!(show(&out).contains("no authentication daemon answers at /nonexistent/socket"), "{}", show(&out));

    let out = stack.admin(&["auth", "explain", USER, "--service", "imap", "--ip", "192.0.2.1"], "");
    assert_eq!(out.status.code(), Some(0), "{}", show(&out));
    let text = stdout(&out);
    assert!(text.contains("password in {ARGON2ID}, checked on a hash thread: about"), "{text}");
    assert!(text.contains("userdb users: "), "{text}");
    assert!(!text.contains("$argon2"), "the hash is shown: {text}");
}

#[test]
fn cache_and_penalties_are_shown_and_cleared() {
    let stack = Stack::start();
    let ask = |line: &[&str]| {
        let mut all = line.to_vec();
        all.push("--json");
        let out = stack.admin(&all, "");
        assert_eq!(out.status.code(), Some(0), "{line:?}: {}", show(&out));
        json(&out)
    };
    let tried = |password: &str, rip: &str| {
        let line = ["auth", "test", USER, "--password-stdin", "--rip", rip];
        stack.admin(&line, password).status.code()
    };
    // The stack's own proof may have left something.
    ask(&["auth", "cache", "flush"]);
    assert_eq!(tried(PASSWORD, "192.0.2.9"), Some(0));
    let stats = ask(&["auth", "cache", "stats"]);
    assert_eq!(stats["positive"], 1, "{stats}");
    assert_eq!(tried(PASSWORD, "192.0.2.9"), Some(0));
    assert!(ask(&["auth", "cache", "stats"])["hits"].as_u64() > stats["hits"].as_u64());
    assert_eq!(ask(&["auth", "cache", "flush", "somebody-else"])["flushed"], 0);
    assert_eq!(ask(&["auth", "cache", "flush", USER])["flushed"], 1);

    assert_eq!(tried("wrong", "192.0.2.9"), Some(1));
    let list = ask(&["auth", "penalty", "list"]);
    assert!(list.to_string().contains("192.0.2.9"), "{list}");
    let peer = list["penalties"][0]["peer"].as_str().expect("a peer").to_owned();
    ask(&["auth", "penalty", "clear", "203.0.113.1"]);
    assert!(ask(&["auth", "penalty", "list"]).to_string().contains("192.0.2.9"));
    ask(&["auth", "penalty", "clear", &peer]);
    assert!(!ask(&["auth", "penalty", "list"]).to_string().contains("192.0.2.9"));
}

#[test]
fn dovecots_sockets_are_asked_with_every_mechanism() {
    if !is_root() {
        return skip("needs root to run a private Dovecot");
    }
    if !have(&["dovecot"]) {
        return;
    }
    let dovecot = Dovecot::start();
    let (socket, user) = (dovecot.auth_client(), format!("alice@{HOSTNAME}"));
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"] {
        for (password, code) in [("pw", 0), ("wrong", 1)] {
            let mut command = postern();
            command
                .args(["auth", "test", &user, "--password-stdin", "--mech", mechanism, "--socket"])
                .arg(&socket);
            let out = run(command, password);
            assert_eq!(out.status.code(), Some(code), "{mechanism} {password}: {}", show(&out));
        }
    }
    let userdb = socket.with_file_name("auth-userdb");
    for (name, code) in [(user.as_str(), 0), ("no-such-user@example.test", 67)] {
        let mut command = postern();
        command.args(["auth", "lookup", name, "--socket"]).arg(&userdb);
        let out = run(command, "");
        // Dovecot's static userdb knows everybody who is in a passdb.
        assert_eq!(out.status.code(), Some(code), "{}", show(&out));
        assert_eq!(code == 0, stdout(&out).contains("  home: "), "{}", show(&out));
    }
}

#[test]
fn stored_passwords_are_checked_with_exit_codes() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("stored");
    let mut command = postern();
    command.args(["hash", "--scheme", "SHA512-CRYPT"]);
    let made = stdout(&run(command, "summersun\n"));
    let bare = made.strip_prefix("{SHA512-CRYPT}").expect("scheme");
    let bomb = "{ARGON2ID}$argon2id$v=19$m=1048576,t=3,p=1$c29tZXNhbHQ$aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsbw";
    for (stored, password, code) in [
        (made.as_str(), "summersun", 0),
        // One newline at the end of the password does not count, a second one does.
        (&made, "summersun\n", 0),
        (&made, "summersun\n\n", 1),
        (&made, "wrong", 1),
        (bare, "summersun", 0),
        (bare, "wrong", 1),
        ("14cbfb845af1f030e372b1cb9275e6dd[34]\n", "summersun", 0),
        ("{PLAIN-MD5}14cbfb845af1f030e372b1cb9275e6dd", "summersun", 0),
        ("!$6$locked", "summersun", 1),
        ("", "summersun", 1),
        ("{NO-SUCH}x", "x", 2),
        ("{SSHA512}", "x", 2),
        ("no crypt(3) text", "x", 2),
        ("$6$rounds=999999999$ab$xx", "x", 2),
        (bomb, "x", 2),
    ] {
        std::fs::write(&file, stored).expect("write");
        for as_data in [false, true] {
            let mut command = postern();
            command.args(["hash", "verify", "--stored-file"]).arg(&file).args(as_data.then_some("--json"));
            let out = run(command, password);
            assert_eq!(out.status.code(), Some(code), "{stored} {password:?}: {}", show(&out));
            assert!(!as_data || json(&out)["exit_code"] == code, "{}", show(&out));
            assert!(!stored.contains("MD5") || show(&out).contains("weak"), "{}", show(&out));
        }
    }
    let mut command = postern();
    command.args(["hash", "verify", "--stored-file"]).arg(folder.path().join("missing"));
    assert_eq!(run(command, "x").status.code(), Some(2));
}
