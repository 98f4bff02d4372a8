//! Our mechanisms on our own fronts, spoken by independent clients: GNU SASL, msmtp, mpop.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::private::Gate;
use crate::support::{HOSTNAME, Stack, have, message, peer, run, show, stdout, wait_for};

const ALL: [&str; 8] = [
    "PLAIN",
    "LOGIN",
    "CRAM-MD5",
    "DIGEST-MD5",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256-PLUS",
];

/// A whole stack that offers everything: the embedded default as the program prints it, with one line changed.
struct Everything {
    // Before the folder it lives in.
    gate: Gate,
    stack: Stack,
}

impl Everything {
    fn start() -> Everything {
        let mut stack = Stack::start();
        let shown = stack.admin(&["config", "show"], "");
        assert!(shown.status.success(), "{}", show(&shown));
        let keys = stack.admin(&["hash", "--scheme", "SCRAM-SHA-256"], "pw3");
        assert!(keys.status.success(), "{}", show(&keys));
        // dave has a hash, and keys beside it.
        let added = stack.admin(&["user", "add", "dave", "--password-stdin", "--scram"], "pw4\n");
        assert!(added.status.success(), "{}", show(&added));
        let file = fs::read_to_string(stack.state().join("users")).expect("users");
        let dave = file.lines().find(|line| line.starts_with("dave:")).expect("dave").to_owned();
        assert_eq!(stack.stop(), Some(0));
        let all = format!("mechanisms = {ALL:?}");
        let config = stdout(&shown).replacen("mechanisms = [\"PLAIN\", \"LOGIN\"]", &all, 1);
        assert!(config.contains(&all), "{config}");
        // alice and bob have passwords that every mechanism can use, of carol there are only keys.
        let users = format!("alice:{{PLAIN}}pw1\nbob:{{PLAIN}}pw2\ncarol:{}\n{dave}\n", stdout(&keys).trim());
        let gate = Gate::start(stack.scratch(), &config, &users);
        Everything { gate, stack }
    }

    fn gsasl(&self, front: &str, mechanism: &str, user: &str, password: &str) -> (bool, String) {
        let port = self.stack.port(if front == "imap" { 143 } else { 587 });
        let mut command = peer("gsasl", self.stack.scratch());
        command.args([
            &format!("--{front}"),
            &format!("--connect=localhost:{port}"),
            "--mechanism",
            mechanism,
        ]);
        command.args(["--authentication-id", user, "--authorization-id", user, "--password", password]);
        command.args(["--realm", "", "--quality-of-protection=qop-auth", "--quiet"]);
        command.arg("--x509-ca-file").arg(self.stack.ca());
        if !mechanism.ends_with("-PLUS") {
            // Otherwise this client insists on the -PLUS form.
            command.arg("--no-cb");
        }
        let out = run(command, "");
        (out.status.success(), show(&out))
    }
}

#[test]
fn gnu_sasl_logs_in_with_every_mechanism() {
    if !have(&["gsasl"]) {
        return;
    }
    let everything = Everything::start();
    std::thread::scope(|scope| {
        let fronts: Vec<_> = [("imap", "NO [AUTHENTICATIONFAILED]"), ("smtp", "535 5.7.8")]
            .into_iter()
            .map(|(front, refused)| {
                let everything = &everything;
                scope.spawn(move || {
                    let ask = |mechanism: &str, user: &str, password: &str, want: bool| {
                        let (ok, told) = everything.gsasl(front, mechanism, user, password);
                        assert!(
                            ok == want && (want || told.contains(refused)),
                            "{front} {mechanism} {user} {password}: {told}\n{}",
                            everything.gate.log()
                        );
                    };
                    for mechanism in ALL {
                        ask(mechanism, "alice", "pw1", true);
                        ask(mechanism, &format!("bob@{HOSTNAME}"), "pw2", true);
                    }
                    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "PLAIN"] {
                        ask(mechanism, "carol", "pw3", true);
                    }
                    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256", "PLAIN"] {
                        ask(mechanism, "dave", "pw4", true);
                    }
                    // A refusal takes seconds; one of each kind is enough.
                    ask("SCRAM-SHA-256-PLUS", "alice", "wrong", false);
                    ask("SCRAM-SHA-256", "nobody-here", "pw1", false);
                    ask("CRAM-MD5", "alice", "wrong", false);
                    ask("DIGEST-MD5", "alice", "wrong", false);
                    ask("SCRAM-SHA-1", "carol", "pw3", false);
                })
            })
            .collect();
        for front in fronts {
            front.join().expect("a front");
        }
    });
}

#[test]
fn msmtp_and_mpop_with_challenge_mechanisms() {
    if !have(&["msmtp", "mpop"]) {
        return;
    }
    let everything = Everything::start();
    let stack = &everything.stack;
    let rc = |name: &str, text: String| -> PathBuf {
        let path = stack.scratch().join(name);
        fs::write(&path, text).expect("rc");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        path
    };
    let ca = stack.ca().display().to_string();
    let mut sent = 0;
    for (mechanism, user, password, code) in [
        ("cram-md5", "alice", "pw1", 0),
        ("scram-sha-1", "alice", "pw1", 0),
        ("scram-sha-256", "alice", "pw1", 0),
        ("scram-sha-256", "carol", "pw3", 0),
        ("scram-sha-256", "carol", "wrong", 77),
        ("cram-md5", "nobody-here", "pw1", 77),
    ] {
        // A refusal takes seconds; one door is enough for it.
        let doors = [(465, "off"), (587, "on")];
        for (port, starttls) in doors.into_iter().take(if code == 0 { 2 } else { 1 }) {
            let rc = rc(
                "msmtprc",
                format!(
                    "account a\nhost localhost\nport {}\ntls on\ntls_starttls {starttls}\ntls_trust_file {ca}\nauth {mechanism}\n\
                     user {user}\npassword {password}\nfrom {user}@{HOSTNAME}\ntimeout 20\naccount default : a\n",
                    stack.port(port)
                ),
            );
            let mut command = peer("msmtp", stack.scratch());
            command.arg("-C").arg(rc).arg(format!("alice@{HOSTNAME}"));
            let out = run(command, &message("x").replace('\r', "").replace("alice@", &format!("{user}@")));
            assert_eq!(
                out.status.code(),
                Some(code),
                "{mechanism} {user}: {}\n{}",
                show(&out),
                everything.gate.log()
            );
            sent += usize::from(code == 0);
        }
    }
    stack.wait_for_messages("alice", sent);

    for sub in ["", "got", "got/new", "got/cur", "got/tmp"] {
        fs::create_dir_all(stack.scratch().join(sub)).expect("maildir");
    }
    for (mechanism, user, password, code) in [
        ("cram-md5", "alice", "pw1", 0),
        ("scram-sha-1", "alice", "pw1", 0),
        ("scram-sha-256", "alice", "pw1", 0),
        ("apop", "alice", "pw1", 77),
        ("cram-md5", "alice", "wrong", 77),
        ("scram-sha-256", "nobody-here", "pw1", 77),
    ] {
        let rc = rc(
            "mpoprc",
            format!(
                "account a\nhost localhost\nport {}\ntls on\ntls_starttls on\ntls_trust_file {ca}\nauth {mechanism}\nuser {user}\n\
                 password {password}\ndelivery maildir {}\nkeep on\nuidls_file {}/uidls-{mechanism}\ntimeout 20\naccount default : a\n",
                stack.port(110),
                stack.scratch().join("got").display(),
                stack.scratch().display(),
            ),
        );
        let mut command = peer("mpop", stack.scratch());
        command.arg("-C").arg(rc);
        let out = run(command, "");
        assert_eq!(
            out.status.code().map_or(1, |c| i32::from(c != 0)),
            i32::from(code != 0),
            "{mechanism} {user}: {}\n{}",
            show(&out),
            everything.gate.log()
        );
    }
    wait_for("mail fetched three times", || {
        (fs::read_dir(stack.scratch().join("got/new")).ok()?.count() == 3 * sent).then_some(())
    });
}
