//! The stack as a whole: first start, self-test, second start, double start, status, stop.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::{
    HOSTNAME, PASSWORD, Stack, USER, free_port_base, is_root, postern, run, show, stdout, wait_for,
};

#[test]
fn self_test_proves_the_way_of_a_message_and_leaves_nothing_running() {
    let scratch = tempfile::Builder::new().prefix("pst").tempdir_in("/tmp").expect("scratch");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let base = free_port_base();
    let mut command = postern();
    command.args(["run", "--self-test", "--hostname", HOSTNAME, "--listen", "127.0.0.1"]);
    command.arg("--state-dir").arg(scratch.path().join("state")).args(["--port-base", &base.to_string()]);
    let out = run(command, "");
    assert_eq!(out.status.code(), Some(0), "{}", show(&out));
    let text = stdout(&out).to_lowercase();
    for word in ["submission", "imap", "pop3", "ms"] {
        assert!(text.contains(word), "no step about {word}: {text}");
    }
    assert!(std::net::TcpStream::connect(("127.0.0.1", base + 587)).is_err(), "still listening");
    assert!(!scratch.path().join("state/postern.pid").exists(), "pid file left behind");
    // The proof user leaves no trace in the user file or the mail tree.
    let users = fs::read_to_string(scratch.path().join("state/users")).expect("users");
    assert!(!users.contains("proof"), "{users}");
}

#[test]
fn names_and_modes_that_scripts_rely_on() {
    let mut stack = Stack::start();
    let mode = |name: &str| {
        let path = stack.socket(name);
        let meta = fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode("auth-client"), 0o666);
    assert_eq!(mode("auth-login"), 0o666);
    assert_eq!(mode("auth-userdb"), 0o666);
    assert_eq!(mode("auth-master"), 0o600);
    assert_eq!(mode("saslauthd/mux"), 0o666);
    for file in ["tls/ca.pem", "users", "postern.pid"] {
        assert!(stack.state().join(file).is_file(), "{file}");
    }
    let pid = fs::read_to_string(stack.state().join("postern.pid")).expect("pid file");
    assert_eq!(pid.trim().parse::<u32>().expect("pid"), stack.pid());
    assert!(stack.maildir(USER).join("new").is_dir(), "Maildir of the first user");
    assert_eq!(
        fs::metadata(stack.state().join("tls/key.pem")).expect("key").mode() & 0o077,
        0,
        "key is private"
    );
    let users = fs::read_to_string(stack.state().join("users")).expect("users");
    assert!(users.starts_with(USER) && !users.contains(PASSWORD), "{users}");

    let status = stack.admin(&["status", "--json"], "");
    assert!(status.status.success(), "{}", show(&status));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("json");
    let text = status.to_string();
    for role in ["supervisor", "auth", "smtp", "imap"] {
        assert!(text.contains(role), "{role} missing in {text}");
    }
    assert_eq!(stack.stop(), Some(0));
    assert!(!stack.state().join("postern.pid").exists());
}

#[test]
fn second_start_reuses_the_state() {
    let mut stack = Stack::start();
    stack.add_user("bob", "bobs secret");
    let before = fs::read(stack.ca()).expect("ca");
    let users = fs::read(stack.state().join("users")).expect("users");
    assert_eq!(stack.stop(), Some(0));
    stack.launch();
    assert_eq!(before, fs::read(stack.ca()).expect("ca"), "the CA was made anew");
    assert_eq!(users, fs::read(stack.state().join("users")).expect("users"));
    assert_eq!(stack.stop(), Some(0));
}

#[test]
fn double_start_says_who_holds_the_state() {
    let stack = Stack::start();
    let out = run(stack.command(), "");
    assert!(!out.status.success());
    let text = show(&out);
    assert!(text.contains(&stack.pid().to_string()), "does not name the holder: {text}");
    // The first one is unharmed.
    stack.connect(587);
}

#[test]
fn a_user_added_or_removed_while_running_counts_at_once() {
    let stack = Stack::start();
    let tried = |password: &str| {
        let mut command = postern();
        command.args(["auth", "test", "bob", "--password-stdin", "--state-dir"]).arg(stack.state());
        run(command, &format!("{password}\n")).status.code()
    };
    assert_eq!(tried("bobs secret"), Some(1));
    stack.add_user("bob", "bobs secret");
    assert_eq!(tried("bobs secret"), Some(0));
    assert_eq!(tried("other"), Some(1));
    let list = stack.admin(&["user", "list"], "");
    assert!(stdout(&list).contains("bob"), "{}", show(&list));
    let out = stack.admin(&["user", "passwd", "bob", "--password-stdin"], "new one\n");
    assert!(out.status.success(), "{}", show(&out));
    assert_eq!(tried("bobs secret"), Some(1));
    assert_eq!(tried("new one"), Some(0));
    let out = stack.admin(&["user", "remove", "bob"], "");
    assert!(out.status.success(), "{}", show(&out));
    assert_eq!(tried("new one"), Some(1));
}

#[test]
fn processes_run_unprivileged_and_not_dumpable() {
    if !is_root() {
        return crate::support::skip("needs root to look at the processes of another user");
    }
    let stack = Stack::start();
    let children = wait_for("three daemons", || {
        let path = format!("/proc/{0}/task/{0}/children", stack.pid());
        let pids: Vec<u32> =
            fs::read_to_string(path).ok()?.split_whitespace().filter_map(|p| p.parse().ok()).collect();
        (pids.len() >= 3).then_some(pids)
    });
    for pid in children {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let uid = status.lines().find(|l| l.starts_with("Uid:")).expect("uid line");
        assert!(uid.split_whitespace().skip(1).all(|u| u != "0"), "{pid} runs as root: {uid}");
        assert!(status.contains("NoNewPrivs:\t1"), "{pid} may gain privileges");
        // The files of a process that is not dumpable belong to root.
        assert_eq!(
            fs::metadata(format!("/proc/{pid}/environ")).expect("environ").uid(),
            0,
            "{pid} is dumpable"
        );
    }
}

#[test]
fn soak_short_form_is_flat() {
    let soak =
        std::path::Path::new(env!("CARGO_BIN_EXE_postern")).parent().expect("folder").join("examples/soak");
    if !soak.exists() {
        return crate::support::skip("the soak is not built; run all tests, or `cargo build --example soak`");
    }
    let stack = Stack::start();
    let mut command = std::process::Command::new(soak);
    command.arg("--state-dir").arg(stack.state()).args(["--exchanges", "20000", "--connections", "2000"]);
    let out = run(command, "");
    assert!(out.status.success() && stdout(&out).ends_with("flat\n"), "{}", show(&out));
}

#[test]
fn a_transcript_shows_the_dialogue_and_no_secret() {
    let stack = Stack::start();
    for (extra, wanted) in [
        (&[][..], &["S: MECH PLAIN", "C: AUTH PLAIN service=smtp", "resp=(hidden)", "S: OK user="][..]),
        (&["--mech", "LOGIN"], &["S: CONT Username:", "C: CONT (hidden)", "S: CONT Password:"]),
        (&["--mux"], &["password=(hidden)", "S: OK"]),
    ] {
        let args = [&["auth", "test", USER, "--password-stdin", "--transcript"], extra].concat();
        let out = stack.admin(&args, PASSWORD);
        assert!(out.status.success(), "{}", show(&out));
        for text in wanted {
            assert!(stdout(&out).contains(text), "{text}: {}", show(&out));
        }
        assert!(!show(&out).contains(PASSWORD), "{}", show(&out));
    }
}
