//! `postern auth …` against a running stack: what scripts see.

use std::io::{BufRead as _, Write as _};
use std::process::Output;

use serde_json::Value;

use crate::private::{Gate, RUN_AS, scratch};
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
    let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--transcript"], PASSWORD);
    let said = stdout(&out);
    let mut lines = said.lines();
    for expected in [
        "C: VERSION 1 1",
        "C: CPID ",
        "S: VERSION 1 2",
        "S: MECH PLAIN plaintext",
        "S: MECH LOGIN plaintext",
        "S: SPID ",
        "S: CUID ",
        "S: COOKIE (hidden)",
        "S: DONE",
        "C: AUTH PLAIN service=smtp secured resp=(hidden)",
        &format!("S: OK user={canonical}"),
        &format!("accepted: {canonical}"),
    ] {
        let line = lines.next().unwrap_or_default();
        assert!(line.starts_with(expected), "{expected}: {said}");
    }
    assert!(!said.contains(PASSWORD), "{said}");
    for (password, code) in [(PASSWORD, 0), ("wrong", 1)] {
        let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--mux"], password);
        assert_eq!(out.status.code(), Some(code), "{}", show(&out));
    }
    // Dovecot and other daemons are asked in the same way, by mechanisms that our embedded default does not offer.
    for (mechanism, code, says) in [
        ("SCRAM-SHA-256", 1, "does not offer SCRAM-SHA-256; it offers PLAIN, LOGIN"),
        ("scram-sha-256-plus", 1, "channel binding needs a listener with `minor = 3`"),
        ("APOP", 1, "does not offer APOP"),
        ("GSSAPI", 2, "known are: PLAIN, LOGIN, "),
    ] {
        let out = stack.admin(&["auth", "test", USER, "--password-stdin", "--mech", mechanism], PASSWORD);
        assert_eq!(out.status.code(), Some(code), "{mechanism}: {}", show(&out));
        assert!(show(&out).contains(says), "{mechanism}: {}", show(&out));
    }

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
fn explain_tells_who_would_be_refused_whatever_the_password_is() {
    let stack = Stack::start();
    let users = "nets:{PLAIN}pw::::::allow_nets=192.0.2.0/24\naway:{PLAIN}pw::::::nologin reason=Moved\n\
                 gone:{PLAIN}pw::::::expires=2001-01-01\n";
    std::fs::OpenOptions::new()
        .append(true)
        .open(stack.state().join("users"))
        .and_then(|mut file| file.write_all(users.as_bytes()))
        .expect("users");
    for (line, code, result, says) in [
        (&["nets", "--ip", "192.0.2.7"][..], 0, "possible", ""),
        (&["nets", "--rip", "198.51.100.7"], 1, "refused", "allow_nets does not include the address"),
        (&["nets"], 1, "refused", "allow_nets is set, the client told no address"),
        (&["away"], 1, "refused", "nologin is set: Moved"),
        (&["gone"], 1, "refused", "account has expired"),
        (&[USER], 0, "possible", ""),
        (&["nobody-here"], 67, "refused", "unknown user"),
    ] {
        let line = [&["auth", "explain"][..], line].concat();
        let out = stack.admin(&line, "");
        assert_eq!(out.status.code(), Some(code), "{line:?}: {}", show(&out));
        assert!(stdout(&out).contains(&format!("\nresult: {result}\n")), "{line:?}: {}", show(&out));
        let hint = show(&out).contains("no address was given; with --ip ADDR");
        assert_eq!(hint, says.contains("told no address"), "{line:?}: {}", show(&out));
        let out = stack.admin(&[&line[..], &["--json"]].concat(), "");
        assert_eq!(out.status.code(), Some(code), "{line:?}: {}", show(&out));
        assert!(json(&out)["reason"].as_str().unwrap_or_default().starts_with(says), "{}", show(&out));
    }
    // A look-up asks the user databases, which know all of them.
    for name in ["nets", "away", "gone"] {
        let out = stack.admin(&["auth", "lookup", name], "");
        assert_eq!(out.status.code(), Some(0), "{name}: {}", show(&out));
        assert!(!stdout(&out).contains("result: "), "{name}: {}", show(&out));
    }
}

/// What Dovecot's login processes and our own fronts use, tried without them.
#[test]
fn channel_binding_and_apop_are_tried_over_the_socket() {
    let scratch = scratch();
    let w = scratch.path();
    let run_as = if is_root() { format!("run_as = \"{RUN_AS}\"\n") } else { String::new() };
    let config = format!(
        "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{w}/state\"\n{run_as}[auth]\nfailure_delay = \"20ms\"\n\
         mechanisms = [\"PLAIN\", \"APOP\", \"SCRAM-SHA-1\", \"SCRAM-SHA-1-PLUS\", \"SCRAM-SHA-256-PLUS\"]\n\
         [[auth.listener]]\nname = \"client\"\ntype = \"client\"\npath = \"client\"\nminor = 3\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
         [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n",
        w = w.display()
    );
    let gate = Gate::start(w, &config, "alice:{PLAIN}pw\n");
    for mechanism in ["APOP", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"] {
        for (password, code) in [("pw", 0), ("wrong", 1)] {
            let line = ["auth", "test", "alice", "--password-stdin", "--transcript", "--mech", mechanism];
            let out = gate.admin(&line, password);
            assert_eq!(out.status.code(), Some(code), "{mechanism}: {}\n{}", show(&out), gate.log());
            let bound = show(&out).contains("C: CONT (hidden) channel_binding=(hidden)");
            assert_eq!(bound, mechanism.ends_with("-PLUS"), "{mechanism}: {}", show(&out));
        }
    }
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
    // Who names nobody is an address and no account.
    let mut nameless = std::os::unix::net::UnixStream::connect(stack.socket("auth-client")).expect("socket");
    nameless.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("timeout");
    nameless
        .write_all(b"VERSION\t1\t1\nCPID\t1\nAUTH\t1\tPLAIN\tservice=smtp\trip=192.0.2.8\tresp=AAAA\n")
        .expect("request");
    let answers = std::io::BufReader::new(nameless).lines().map_while(Result::ok);
    assert!(answers.into_iter().any(|line| line.starts_with("FAIL\t1")));
    let list = ask(&["auth", "penalty", "list"]);
    let of = |peer: &str| {
        let rows = list["penalties"].as_array().expect("rows").iter();
        rows.filter(|row| row["peer"] == peer).map(|row| row["account"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("192.0.2.8"), [Value::Null], "{list}");
    assert_eq!(of("192.0.2.9").len(), 2, "{list}");
    let out = stack.admin(&["auth", "penalty", "list"], "");
    let row = |line: &str| line.trim().starts_with("account=-  count=") && line.ends_with("peer=192.0.2.8");
    assert!(stdout(&out).lines().any(row), "{}", show(&out));
    assert!(list.to_string().contains("192.0.2.9"), "{list}");
    ask(&["auth", "penalty", "clear", "203.0.113.1"]);
    assert!(ask(&["auth", "penalty", "list"]).to_string().contains("192.0.2.9"));
    ask(&["auth", "penalty", "clear", "192.0.2.9"]);
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
    for empty in ["", "\n"] {
        let mut command = postern();
        command.args(["hash", "--scheme", "SHA512-CRYPT"]);
        let out = run(command, empty);
        assert!(out.status.code() == Some(2) && stdout(&out).is_empty(), "{}", show(&out));
        assert!(show(&out).contains("the password is empty"), "{}", show(&out));
    }
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
