//! Stock Postfix with `smtpd_sasl_type = dovecot`, in depth: chroot, outages, restarts under load, mechanisms, logs.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::postfix_server::{PostfixServer, Service};
use crate::private::{Gate, Lines, account, documented, documented_gate, quick, scratch, swaks};
use crate::support::{HOSTNAME, have, is_root, peer, run, show, signal, skip, stdout, wait_for, wait_within};

const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\ncarol:{PLAIN}pw3::::::expires=2001-01-01\nmallory:{PLAIN}pw4::::::nologin\n";

/// Services every test may use, all in a chroot but the last: two for plain conversations, STARTTLS, implicit TLS.
const SERVICES: [Service; 4] = [
    Service { chroot: true, options: "-o smtpd_tls_auth_only=no" },
    Service { chroot: true, options: "" },
    Service { chroot: true, options: "-o smtpd_tls_wrappermode=yes" },
    Service { chroot: false, options: "-o smtpd_tls_auth_only=no" },
];
const PLAINTEXT: usize = 0;
const STARTTLS: usize = 1;
const TLS: usize = 2;
const NO_CHROOT: usize = 3;

fn possible() -> bool {
    if !is_root() {
        skip("needs root to run a private Postfix");
        return false;
    }
    have(&["postfix", "swaks", "openssl"])
}

/// The manual's configuration of Postern for this queue folder.
fn gate_config(w: &Path) -> String {
    let queue = w.join("queue").display().to_string();
    documented_gate("postfix.toml", w, &[("/var/spool/postfix", &queue)])
}

fn start(w: &Path, more: &str) -> (Gate, PostfixServer) {
    PostfixServer::queue(w);
    let gate = Gate::start(w, &quick(&gate_config(w)), USERS);
    let postfix = PostfixServer::start(w, &(documented("postfix-main.cf", &[]) + more), &SERVICES);
    (gate, postfix)
}

#[test]
fn chrooted_smtpd_answers_as_the_manual_says() {
    if !possible() {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let more = documented("postfix-senders.cf", &[]) + &documented("postfix-old-clients.cf", &[]);
    let (gate, postfix) = start(w, &more);
    let ca = postfix.ca().display().to_string();
    for (index, tls) in [(STARTTLS, "--tls"), (TLS, "--tls-on-connect")] {
        for (mechanism, password, code, reply) in [
            ("PLAIN", "pw1", 0, "235 2.7.0 Authentication successful"),
            ("LOGIN", "pw1", 0, "235 2.7.0 Authentication successful"),
            ("PLAIN", "wrong", 28, "535 5.7.8 Error: authentication failed: Invalid user name or password"),
        ] {
            let args = [tls, "--tls-verify", "--tls-ca-path", &ca, "--auth", mechanism];
            let out = swaks(w, postfix.port(index), "alice", password, &args);
            assert!(
                out.status.code() == Some(code) && stdout(&out).contains(reply),
                "{tls} {mechanism} {password}: {}\n{}\n{}",
                show(&out),
                postfix.log(),
                gate.log()
            );
        }
    }
    // No password without TLS, where the manual says so.
    let (mut smtp, said) = Lines::smtp(postfix.port(STARTTLS)).expect("EHLO");
    assert!(!said.contains("AUTH"), "{said}");
    assert!(smtp.auth("alice", "pw1").expect("reply").starts_with('5'));

    for index in [PLAINTEXT, NO_CHROOT] {
        let (mut smtp, said) = Lines::smtp(postfix.port(index)).expect("EHLO");
        assert!(said.contains("250-AUTH PLAIN LOGIN\n") && said.contains("250-AUTH=PLAIN LOGIN\n"), "{said}");
        for (user, password, reply) in [
            ("alice", "wrong", "535 5.7.8 Error: authentication failed: Invalid user name or password"),
            ("nobody-here", "pw1", "535 5.7.8 Error: authentication failed: Invalid user name or password"),
            ("carol", "pw3", "535 5.7.8 Error: authentication failed: "),
            ("mallory", "pw4", "535 5.7.8 Error: authentication failed: Account is disabled"),
            // Who does not know the password learns nothing about the account.
            ("mallory", "wrong", "535 5.7.8 Error: authentication failed: Invalid user name or password"),
        ] {
            let got = smtp.auth(user, password).expect("reply");
            assert!(got.starts_with(reply), "{user}: {got}\n{}", gate.log());
        }
        assert!(smtp.auth("ALICE", "pw1").expect("reply").starts_with("235 2.7.0"));
        // The name that counts is the canonical one.
        let foreign = smtp.ask(&format!("MAIL FROM:<bob@{HOSTNAME}>")).expect("reply");
        assert!(foreign.starts_with("250"), "{foreign}");
        let foreign = smtp.ask(&format!("RCPT TO:<bob@{HOSTNAME}>")).expect("reply");
        assert!(
            foreign.starts_with("553 5.7.1")
                && foreign.contains(&format!("not owned by user alice@{HOSTNAME}")),
            "{foreign}\n{}",
            postfix.log()
        );
        smtp.ask("RSET").expect("reply");
        smtp.ask(&format!("MAIL FROM:<alice@{HOSTNAME}>")).expect("reply");
        let own = smtp.ask("RCPT TO:<somebody@elsewhere.example>").expect("reply");
        assert!(own.starts_with("250"), "{own}\n{}", postfix.log());
        smtp.ask("QUIT").expect("reply");
    }
    postfix.wait_for_log(&format!("sasl_method=PLAIN, sasl_username=alice@{HOSTNAME}"));
    let refused = "SASL PLAIN authentication failed: Invalid user name or password, sasl_username=";
    postfix.wait_for_log(&format!("{refused}alice@{HOSTNAME}"));
    postfix.wait_for_log(&format!("{refused}nobody-here@{HOSTNAME}"));
    let log = gate.log();
    assert!(log.contains("reason=\"wrong password\"") && log.contains("reason=\"unknown user\""), "{log}");
}

#[test]
fn outages_are_temporary_also_after_an_aborted_login() {
    if !possible() {
        return;
    }
    let scratch = scratch();
    let (mut gate, postfix) = start(scratch.path(), "");
    let (mut smtp, _) = Lines::smtp(postfix.port(PLAINTEXT)).expect("EHLO");
    // An exchange the client gives up stays open at the daemon: Postfix has no way to cancel it.
    assert_eq!(smtp.ask("AUTH LOGIN").expect("reply"), "334 VXNlcm5hbWU6");
    let aborted = smtp.ask("*").expect("reply");
    assert!(aborted.starts_with("501 5.7.0"), "{aborted}");
    gate.break_backend();
    let temporary = |reply: &str| reply.starts_with("454 4.7.0 Temporary authentication failure");
    for round in 0..2 {
        let reply = smtp.auth("alice", "pw1").expect("reply");
        assert!(temporary(&reply), "round {round}: {reply}\n{}\n{}", postfix.log(), gate.log());
    }
    // The same in the middle of an exchange.
    assert_eq!(smtp.ask("AUTH LOGIN YWxpY2U=").expect("reply"), "334 UGFzc3dvcmQ6");
    let reply = smtp.ask("cHcx").expect("reply");
    assert!(temporary(&reply), "LOGIN: {reply}\n{}", postfix.log());
    gate.mend_backend();
    assert!(smtp.auth("alice", "pw1").expect("reply").starts_with("235"), "{}", gate.log());

    // Away altogether, after Postfix has seen us: temporary, and over when we are back.
    let (mut smtp, _) = Lines::smtp(postfix.port(PLAINTEXT)).expect("EHLO");
    gate.stop();
    let reply = smtp.auth("bob", "pw2").expect("reply");
    assert!(temporary(&reply), "away: {reply}\n{}", postfix.log());
    gate.launch();
    assert!(smtp.auth("bob", "pw2").expect("reply").starts_with("235"), "{}", postfix.log());

    // The daemon dies between two requests of a session.
    let (mut smtp, _) = Lines::smtp(postfix.port(PLAINTEXT)).expect("EHLO");
    let before = gate.auth_pid();
    signal(before, Signal::SIGKILL);
    wait_for("another daemon", || (gate.auth_pid() != before).then_some(()));
    let reply = smtp.auth("bob", "pw2").expect("reply");
    assert!(reply.starts_with("235"), "{reply}\n{}", postfix.log());
    assert!(!postfix.log().contains("no SASL authentication mechanisms"), "{}", postfix.log());
}

/// Sessions under way at a time.
const AT_ONCE: u32 = 6;
/// Longest time between two steps of the trouble.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of many sessions, each with a right password.
struct Load {
    failures: Vec<String>,
    /// Sessions that had to ask again after a temporary failure.
    retried: u32,
}

/// Runs sessions on several connections while `trouble` happens; it gets the number of sessions done.
fn load(port: u16, sessions: u32, trouble: impl FnOnce(&dyn Fn() -> u32) + Send) -> Load {
    let (begun, done, retried) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let session = |number: u32| -> Result<(), String> {
        let (user, password) = [("alice", "pw1"), ("bob", "pw2")][number as usize % 2];
        let (mut smtp, said) = Lines::smtp(port).map_err(|e| format!("no session: {e}"))?;
        if !said.contains("AUTH PLAIN LOGIN") {
            return Err(format!("no mechanisms: {said}"));
        }
        for again in [false, true] {
            let reply = smtp.auth(user, password).map_err(|e| format!("session broke: {e}"))?;
            if reply.starts_with("235") {
                return smtp.ask("QUIT").map(|_| ()).map_err(|e| e.to_string());
            }
            // Postfix lost its connection to the daemon that was killed; nothing else may happen, and no second time:
            // the socket is there all the time, and who connects to it is served by the next daemon.
            if !reply.starts_with("454 4.7.0") || again {
                return Err(reply);
            }
            retried.fetch_add(1, Ordering::Relaxed);
        }
        unreachable!()
    };
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    loop {
                        let number = begun.fetch_add(1, Ordering::Relaxed);
                        if number >= sessions {
                            return failures;
                        }
                        failures.extend(session(number).err());
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let done = &done;
        let trouble = scope.spawn(move || trouble(&|| done.load(Ordering::Relaxed)));
        let failures = workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect();
        trouble.join().expect("trouble");
        failures
    });
    Load { failures, retried: retried.into_inner() }
}

#[test]
fn restarts_and_reloads_under_load_refuse_nobody() {
    const SESSIONS: u32 = 1_000;
    if !possible() {
        return;
    }
    let scratch = scratch();
    let (gate, postfix) = start(scratch.path(), "");
    let load = load(postfix.port(PLAINTEXT), SESSIONS, |done| {
        // Spread over the load: reloads all the time, three deaths, one of them without a warning.
        for (at, how) in [(150, Signal::SIGTERM), (400, Signal::SIGKILL), (650, Signal::SIGTERM)] {
            wait_within(
                PATIENCE,
                || gate.log(),
                || {
                    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
                    (done() >= at).then_some(())
                },
            );
            signal(gate.auth_pid(), how);
        }
    });
    let log = postfix.log();
    assert!(load.failures.is_empty(), "of {SESSIONS}: {:?}\n{log}\n{}", load.failures, gate.log());
    assert!(!log.contains("no SASL authentication mechanisms") && !log.contains("fatal:"), "{log}");
    // At most the sessions in flight at a death have to ask again.
    assert!(load.retried <= 3 * AT_ONCE, "{} sessions with temporary failures", load.retried);
}

/// Where the service manager holds the socket, all of Postern may be stopped and started again.
#[test]
fn with_a_socket_of_the_service_manager_a_full_restart_refuses_nobody() {
    const SESSIONS: u32 = 200;
    if !possible() {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let path = PostfixServer::queue(w).join("private/auth");
    let socket = UnixListener::bind(&path).expect("socket");
    let (uid, gid) = account("postfix");
    std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
    let mut gate = Gate::start_with(w, &quick(&gate_config(w)), USERS, Some(socket.into()));
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &SERVICES);
    let gate = &mut gate;
    let load = load(postfix.port(PLAINTEXT), SESSIONS, |done| {
        for at in [30, 80, 130] {
            wait_within(PATIENCE, || gate.log(), || (done() >= at).then_some(()));
            gate.stop();
            gate.launch();
        }
    });
    let log = postfix.log();
    assert!(load.failures.is_empty(), "of {SESSIONS}: {:?}\n{log}\n{}", load.failures, gate.log());
    assert!(!log.contains("no SASL authentication mechanisms") && !log.contains("fatal:"), "{log}");
    assert!(load.retried <= 3 * AT_ONCE, "{} sessions with temporary failures", load.retried);
}

#[test]
fn wrong_logins_do_not_delay_a_right_one() {
    if !possible() {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    PostfixServer::queue(w);
    // With the delays of a default configuration.
    let gate = Gate::start(w, &gate_config(w), USERS);
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &SERVICES);
    let port = postfix.port(NO_CHROOT);
    let right = |when: &str| {
        let (mut smtp, _) = Lines::smtp(port).expect("EHLO");
        let start = Instant::now();
        let reply = smtp.auth("alice", "pw1").expect("reply");
        let took = start.elapsed();
        assert!(reply.starts_with("235") && took < Duration::from_secs(1), "{when}: {reply} after {took:?}");
    };
    std::thread::scope(|scope| {
        let wrong: Vec<_> = (0..20)
            .map(|number| {
                scope.spawn(move || {
                    let (mut smtp, _) = Lines::smtp(port)?;
                    smtp.auth(["alice", "bob"][number % 2], "guess")
                })
            })
            .collect();
        right("while the guesses wait");
        for reply in wrong {
            let reply = reply.join().expect("thread").expect("reply");
            assert!(reply.starts_with("535 5.7.8"), "a guess is never a 454: {reply}\n{}", gate.log());
        }
    });
    right("after the guesses");
}

/// One address, one session after the other, as a program that guesses does; then its owner comes.
#[test]
fn fifty_wrong_logins_one_after_another_do_not_delay_a_right_one() {
    if !possible() {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    PostfixServer::queue(w);
    // Refusals are not held back here, or fifty of them would take minutes; they are counted all the same.
    let config =
        format!("{}\n[auth]\nfailure_delay = \"0s\"\n[auth.penalty]\nmax_delay = \"20ms\"\n", gate_config(w));
    let gate = Gate::start(w, &config, USERS);
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &SERVICES);
    let port = postfix.port(NO_CHROOT);
    for number in 0..50 {
        let (mut smtp, _) = Lines::smtp(port).expect("EHLO");
        let reply = smtp.auth("alice", &format!("guess{number}")).expect("reply");
        assert!(reply.starts_with("535 5.7.8"), "{number}: {reply}\n{}", gate.log());
        smtp.ask("QUIT").expect("reply");
    }
    let listed = gate.admin(&["auth", "penalty", "list"], "");
    assert!(stdout(&listed).contains("peer=127.0.0.1"), "{}", show(&listed));
    let (mut smtp, _) = Lines::smtp(port).expect("EHLO");
    let start = Instant::now();
    let reply = smtp.auth("alice", "pw1").expect("reply");
    let took = start.elapsed();
    assert!(reply.starts_with("235") && took < Duration::from_secs(1), "{reply} after {took:?}");
}

#[test]
fn challenge_mechanisms_pass_through_postfix() {
    if !possible() || !have(&["gsasl", "msmtp"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    PostfixServer::queue(w);
    let config = quick(&gate_config(w)).replace("[auth]\n", &documented("mechanisms.toml", &[]));
    let gate = Gate::start(w, &config, USERS);
    // One user whose password nobody keeps, only keys made from it.
    let keys = gate.admin(&["hash", "--scheme", "SCRAM-SHA-256"], "pw5");
    assert!(keys.status.success(), "{}", show(&keys));
    gate.set_users(&format!("{USERS}dave:{}\n", stdout(&keys).trim()));
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &SERVICES);

    let (_, said) = Lines::smtp(postfix.port(PLAINTEXT)).expect("EHLO");
    assert!(said.contains("250-AUTH PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256"), "{said}");
    let gsasl = |port: u16, mechanism: &str, user: &str, password: &str| {
        let mut command = peer("gsasl", w);
        command.args(["--smtp", &format!("--connect=localhost:{port}"), "--mechanism", mechanism, "--no-cb"]);
        command.args([
            "--authentication-id",
            user,
            "--authorization-id",
            user,
            "--password",
            password,
            "--quiet",
        ]);
        command.arg("--x509-ca-file").arg(postfix.ca());
        if port == postfix.port(PLAINTEXT) {
            command.arg("--no-starttls");
        }
        run(command, "")
    };
    for (index, mechanism, user, password, want) in [
        (PLAINTEXT, "CRAM-MD5", "alice", "pw1", "235 2.7.0"),
        (PLAINTEXT, "CRAM-MD5", "alice", "wrong", "535 5.7.8"),
        (PLAINTEXT, "CRAM-MD5", "nobody-here", "pw1", "535 5.7.8"),
        (PLAINTEXT, "SCRAM-SHA-256", "bob", "pw2", "235 2.7.0"),
        (PLAINTEXT, "SCRAM-SHA-256", "dave", "pw5", "235 2.7.0"),
        (PLAINTEXT, "SCRAM-SHA-256", "dave", "wrong", "535 5.7.8"),
        (PLAINTEXT, "SCRAM-SHA-256", "nobody-here", "pw5", "535 5.7.8"),
        // Keys for one mechanism are none for another.
        (PLAINTEXT, "CRAM-MD5", "dave", "pw5", "535 5.7.8"),
        (STARTTLS, "SCRAM-SHA-256", "dave", "pw5", "235 2.7.0"),
        (STARTTLS, "PLAIN", "dave", "pw5", "235 2.7.0"),
    ] {
        let out = gsasl(postfix.port(index), mechanism, user, password);
        assert!(
            stdout(&out).contains(want) && out.status.success() == want.starts_with('2'),
            "{mechanism} {user} {password}: {}\n{}\n{}",
            show(&out),
            postfix.log(),
            gate.log()
        );
    }
    for (method, user, password, code) in [
        ("scram-sha-256", "dave", "pw5", 0),
        ("cram-md5", "bob", "pw2", 0),
        ("scram-sha-256", "dave", "x", 77),
    ] {
        let mut command = peer("msmtp", w);
        command.args(["--host=localhost", &format!("--port={}", postfix.port(TLS)), "--tls=on"]);
        command.args(["--tls-starttls=off", &format!("--tls-trust-file={}", postfix.ca().display())]);
        command.args([&format!("--auth={method}"), &format!("--user={user}"), "--timeout=20"]);
        command.arg(format!("--passwordeval=echo {password}"));
        command.args([&format!("--from=alice@{HOSTNAME}"), &format!("alice@{HOSTNAME}")]);
        let out = run(command, "Subject: x\n\nx\n");
        assert_eq!(out.status.code(), Some(code), "{method} {user}: {}\n{}", show(&out), postfix.log());
    }
    postfix.wait_for_log(&format!("sasl_method=SCRAM-SHA-256, sasl_username=dave@{HOSTNAME}"));
    postfix.wait_for_log(&format!("sasl_method=CRAM-MD5, sasl_username=bob@{HOSTNAME}"));
}

/// A machine's very first start: Postern is there before Postfix has made its queue folders.
#[test]
fn postern_may_start_before_the_first_postfix() {
    if !possible() {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    // As the manual says: users first, then the start; the state folder is made on the way.
    let mut gate = Gate::prepare(w, &gate_config(w));
    for _ in 0..2 {
        let out =
            gate.admin(&["user", "add", "alice", "--password-stdin", "--scheme", "SHA512-CRYPT"], "pw1\n");
        assert!(out.status.success() || show(&out).contains("is there already"), "{}", show(&out));
    }
    gate.launch();
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &SERVICES);
    let (mut smtp, _) = Lines::smtp(postfix.port(PLAINTEXT)).expect("EHLO");
    let reply = smtp.auth("alice", "pw1").expect("reply");
    assert!(reply.starts_with("235"), "{reply}\n{}\n{}", postfix.log(), gate.log());
}
