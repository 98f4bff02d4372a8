//! curl for imaps, pop3s and smtps; openssl s_client on every port.

use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, message, peer, run, show, stdout};

#[test]
fn curl_sends_lists_and_reads() {
    if !have(&["curl"]) {
        return;
    }
    let stack = Stack::start();
    let login = format!("{USER}:{PASSWORD}");
    let curl = |args: &[&str]| {
        let mut command = peer("curl", stack.scratch());
        command.args(["-sS", "--max-time", "30", "--cacert"]).arg(stack.ca()).args(args);
        run(command, "")
    };
    let file = stack.scratch().join("mail.txt");
    std::fs::write(&file, message("by curl")).expect("message file");
    let address = format!("{USER}@{HOSTNAME}");
    let url = |scheme: &str, offset| format!("{scheme}://localhost:{}", stack.port(offset));
    let path = file.display().to_string();
    for (scheme, offset) in [("smtps", 465), ("smtp", 587)] {
        let out = curl(&[
            "--ssl-reqd",
            &url(scheme, offset),
            "--user",
            &login,
            "--mail-from",
            &address,
            "--mail-rcpt",
            &address,
            "-T",
            &path,
        ]);
        assert!(out.status.success(), "{scheme}: {}", show(&out));
    }
    stack.wait_for_messages(USER, 2);

    for (scheme, offset) in [("imaps", 993), ("imap", 143)] {
        let out = curl(&["--ssl-reqd", &format!("{}/INBOX;UID=1", url(scheme, offset)), "--user", &login]);
        assert!(
            stdout(&out).contains("Subject: by curl") && stdout(&out).contains("\r\n.leading dot\r\n"),
            "{}",
            show(&out)
        );
    }
    for (scheme, offset) in [("pop3s", 995), ("pop3", 110)] {
        let out = curl(&["--ssl-reqd", &url(scheme, offset), "--user", &login]);
        assert!(stdout(&out).starts_with("1 "), "{}", show(&out));
        let out = curl(&["--ssl-reqd", &format!("{}/2", url(scheme, offset)), "--user", &login]);
        assert!(stdout(&out).contains("Subject: by curl"), "{}", show(&out));
    }
    // APPEND, and a wrong password.
    let out = curl(&[&format!("{}/INBOX", url("imaps", 993)), "--user", &login, "-T", &path]);
    assert!(out.status.success(), "{}", show(&out));
    stack.wait_for_messages(USER, 3);
    let out = curl(&[&url("imaps", 993), "--user", &format!("{USER}:wrong")]);
    assert_eq!(out.status.code(), Some(67), "{}", show(&out));
}

#[test]
fn openssl_verifies_every_port() {
    if !have(&["openssl"]) {
        return;
    }
    let stack = Stack::start();
    for (offset, starttls, bye, want) in [
        (465, None, "QUIT", "220 "),
        (587, Some("smtp"), "QUIT", "221 "),
        (25, Some("smtp"), "QUIT", "221 "),
        (993, None, "a LOGOUT", "* BYE"),
        (143, Some("imap"), "a LOGOUT", "* BYE"),
        (995, None, "QUIT", "+OK"),
        (110, Some("pop3"), "QUIT", "+OK"),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let mut command = peer("openssl", stack.scratch());
            command.args(["s_client", "-quiet", "-ign_eof", "-crlf", "-verify_return_error", version]);
            command.args([
                "-verify_hostname",
                HOSTNAME,
                "-connect",
                &format!("127.0.0.1:{}", stack.port(offset)),
            ]);
            command.arg("-CAfile").arg(stack.ca());
            if let Some(protocol) = starttls {
                command.args(["-starttls", protocol]);
            }
            let out = run(command, &format!("{bye}\n"));
            assert!(stdout(&out).contains(want), "+{offset} {version}: {}", show(&out));
        }
    }
}
