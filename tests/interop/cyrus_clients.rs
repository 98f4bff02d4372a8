//! Cyrus' own clients, unpacked, on our IMAP, POP3 and submission: libsasl2's side of each mechanism.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::private::{Gate, unpacked};
use crate::support::{PASSWORD, Stack, USER, have, peer, run, show, stdout};

pub const PACKAGES: &[&str] = &["cyrus-clients", "cyrus-common", "libpcre3"];

const MECHANISMS: [&str; 6] = ["PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"];

/// One login by a program of those unpacked in `root`.
#[allow(clippy::too_many_arguments)] // they are the program's own
pub fn attempt(
    root: &Path,
    home: &Path,
    program: &str,
    port: u16,
    tls: &[&str],
    mechanism: &str,
    user: &str,
    password: &str,
) -> Output {
    let library = root.join("usr/lib/x86_64-linux-gnu");
    let library = if library.is_dir() { library } else { root.join("usr/lib/aarch64-linux-gnu") };
    // One program under many names; packages bring links, which tools may have copied.
    let mut command = peer(&root.join("usr/lib/cyrus/bin").join(program).display().to_string(), home);
    command.env("LD_LIBRARY_PATH", &library).args(tls).args(["-p", &port.to_string()]);
    // No protection layer of the mechanism's own: TLS is there.
    command.args(["-l", "0", "-u", user, "-a", user, "-w", password, "-m", mechanism, "localhost"]);
    run(command, if program == "imtest" { ". LOGOUT\r\n" } else { "QUIT\r\n" })
}

#[test]
fn imtest_pop3test_and_smtptest_log_in() {
    // The mechanisms are plugins of libsasl2; sasl2-bin has them installed.
    if !have(&["saslpasswd2"]) {
        return;
    }
    let Some(root) = unpacked(PACKAGES) else { return };
    let mut stack = Stack::start();
    let shown = stack.admin(&["config", "show"], "");
    assert!(shown.status.success(), "{}", show(&shown));
    assert_eq!(stack.stop(), Some(0));
    let all = format!("mechanisms = {MECHANISMS:?}");
    let config = stdout(&shown).replacen("mechanisms = [\"PLAIN\", \"LOGIN\"]", &all, 1);
    assert!(config.contains(&all), "{config}");
    // The second user logs in only after the outage: no cache knows him.
    let users = format!("{USER}:{{PLAIN}}{PASSWORD}\nlate:{{PLAIN}}{PASSWORD}\n");
    let gate = Gate::start(stack.scratch(), &config, &users);

    let attempt = |program: &str, port: u16, tls: &[&str], mechanism: &str, user: &str, password: &str| {
        let port = stack.port(port);
        let out = self::attempt(&root, stack.scratch(), program, port, tls, mechanism, user, password);
        (stdout(&out).contains("\nAuthenticated."), show(&out))
    };
    let starttls: &[&str] = &["-t", ""];
    std::thread::scope(|scope| {
        for (program, port, refused) in [
            ("imtest", 143, "AUTHENTICATIONFAILED"),
            ("pop3test", 110, "-ERR [AUTH]"),
            ("smtptest", 587, "535 5.7.8"),
        ] {
            let attempt = &attempt;
            scope.spawn(move || {
                for mechanism in MECHANISMS {
                    let (ok, told) = attempt(program, port, starttls, mechanism, USER, PASSWORD);
                    assert!(ok, "{program} {mechanism}: {told}");
                }
                for (mechanism, user, password) in [
                    ("PLAIN", USER, "wrong"),
                    ("SCRAM-SHA-256", USER, "wrong"),
                    ("PLAIN", "nobody-here", PASSWORD),
                ] {
                    let (ok, told) = attempt(program, port, starttls, mechanism, user, password);
                    assert!(!ok && told.contains(refused), "{program} {mechanism} {user}: {told}");
                }
            });
        }
    });
    // TLS from the first byte.
    for (program, port) in [("imtest", 993), ("pop3test", 995), ("smtptest", 465)] {
        let (ok, told) = attempt(program, port, &["-s"], "PLAIN", USER, PASSWORD);
        assert!(ok, "{program} -s: {told}");
    }
    // An outage is no wrong password; a reload is nothing at all.
    let doors =
        [("imtest", 143, "[UNAVAILABLE]"), ("pop3test", 110, "[SYS/TEMP]"), ("smtptest", 587, "454 4.7.0")];
    gate.break_backend();
    for (program, port, outage) in doors {
        let (ok, told) = attempt(program, port, starttls, "PLAIN", "late", PASSWORD);
        assert!(!ok && told.contains(outage), "{program} in an outage: {told}");
    }
    gate.mend_backend();
    assert!(gate.admin(&["reload"], "").status.success(), "{}", gate.log());
    for (program, port, _) in doors {
        let (ok, told) = attempt(program, port, starttls, "PLAIN", "late", PASSWORD);
        assert!(ok, "{program} after outage and reload: {told}\n{}", gate.log());
    }
    assert!(fs::exists(stack.ca()).expect("state folder"));
}
