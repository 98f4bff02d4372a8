//! Mail programs that people use: msmtp, mpop, mbsync, fetchmail, mutt.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{HOSTNAME, PASSWORD, Stack, USER, have, message, peer, run, show};

fn private_file(stack: &Stack, name: &str, text: &str) -> String {
    let path = stack.scratch().join(name);
    fs::write(&path, text).expect("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    path.display().to_string()
}

fn files(folder: std::path::PathBuf) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn msmtp_sends_and_mpop_fetches() {
    if !have(&["msmtp", "mpop"]) {
        return;
    }
    let stack = Stack::start();
    let text = message("by msmtp").replace("\r\n", "\n");
    for (offset, starttls) in [(587, "on"), (465, "off")] {
        let rc = private_file(
            &stack,
            "msmtprc",
            &format!(
                "account default\nhost localhost\nport {}\nfrom {USER}@{HOSTNAME}\ntls on\ntls_starttls {starttls}\n\
                 tls_trust_file {}\nauth plain\nuser {USER}\npassword \"{PASSWORD}\"\n",
                stack.port(offset),
                stack.ca().display()
            ),
        );
        let mut command = peer("msmtp", stack.scratch());
        command.args(["-C", &rc, &format!("{USER}@{HOSTNAME}")]);
        let out = run(command, &text);
        assert!(out.status.success(), "{}", show(&out));
    }
    stack.wait_for_messages(USER, 2);
    let target = stack.scratch().join("popped");
    for folder in ["cur", "new", "tmp"] {
        fs::create_dir_all(target.join(folder)).expect("maildir");
    }
    let rc = private_file(
        &stack,
        "mpoprc",
        &format!(
            "account default\nhost localhost\nport {}\ntls on\ntls_starttls off\ntls_trust_file {}\nauth plain\nuser {USER}\n\
             password \"{PASSWORD}\"\nkeep off\nuidls_file {}\ndelivery maildir {}\n",
            stack.port(995),
            stack.ca().display(),
            stack.scratch().join("uidls").display(),
            target.display()
        ),
    );
    let mut command = peer("mpop", stack.scratch());
    command.args(["-C", &rc]);
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
    assert_eq!(files(target.join("new")), 2);
    assert_eq!(stack.messages(USER).len(), 0, "mpop deletes what it fetched");
}

#[test]
fn mbsync_mirrors_both_ways() {
    if !have(&["mbsync", "curl"]) {
        return;
    }
    let stack = Stack::start();
    let mail = private_file(&stack, "mail.txt", &message("for mbsync"));
    let mut command = peer("curl", stack.scratch());
    command.args(["-sS", "--cacert"]).arg(stack.ca()).args([
        "-T",
        &mail,
        "--user",
        &format!("{USER}:{PASSWORD}"),
        &format!("imaps://localhost:{}/INBOX", stack.port(993)),
    ]);
    assert!(run(command, "").status.success());
    let local = stack.scratch().join("local");
    fs::create_dir(&local).expect("folder");
    let rc = private_file(
        &stack,
        "mbsyncrc",
        &format!(
            "IMAPAccount a\nHost localhost\nPort {port}\nUser {USER}\nPass \"{PASSWORD}\"\nSSLType IMAPS\nCertificateFile {ca}\n\
             SystemCertificates no\n\nIMAPStore far\nAccount a\n\nMaildirStore near\nPath {local}/\nInbox {local}/INBOX\n\
             SubFolders Verbatim\n\nChannel c\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nSyncState *\n",
            port = stack.port(993),
            ca = stack.ca().display(),
            local = local.display(),
        ),
    );
    let sync = || {
        let mut command = peer("mbsync", stack.scratch());
        command.args(["-c", &rc, "-a"]);
        let out = run(command, "");
        assert!(out.status.success(), "{}", show(&out));
    };
    sync();
    let inbox = local.join("INBOX");
    assert_eq!(files(inbox.join("new")) + files(inbox.join("cur")), 1);
    fs::write(inbox.join("cur/1.2.host:2,S"), message("pushed").replace("\r\n", "\n")).expect("message");
    sync();
    stack.wait_for_messages(USER, 2);
    sync();
    assert_eq!(stack.messages(USER).len(), 2, "nothing is copied twice");
}

#[test]
fn fetchmail_fetches_by_imap_and_pop3() {
    if !have(&["fetchmail"]) {
        return;
    }
    for (protocol, offset) in [("imap", 993), ("pop3", 995)] {
        let stack = Stack::start();
        let mail = message("for fetchmail");
        let folder = stack.maildir(USER).join("new");
        fs::write(folder.join("1700000000.M1P1.elsewhere"), mail.replace("\r\n", "\n")).expect("message");
        // fetchmail may run the mda in a shell: one plain file is the proof.
        let rc = private_file(
            &stack,
            "fetchmailrc",
            &format!(
                "set no syslog\npoll localhost protocol {protocol} port {} auth password\n user {USER} password \"{PASSWORD}\" ssl sslcertck\n \
                 sslcertfile {} sslproto TLS1.2+ no rewrite mda \"/bin/sh -c 'cat >> {}/fetched'\"\n",
                stack.port(offset),
                stack.ca().display(),
                stack.scratch().display()
            ),
        );
        let mut command = peer("fetchmail", stack.scratch());
        command.args(["-f", &rc, "--nodetach", "--pidfile"]).arg(stack.scratch().join("fm.pid"));
        command.arg("-i").arg(stack.scratch().join("ids"));
        let out = run(command, "");
        assert!(out.status.success(), "{protocol}: {}", show(&out));
        let got = fs::read_to_string(stack.scratch().join("fetched")).expect("fetched");
        assert!(got.contains("Subject: for fetchmail") && got.contains(".leading dot"), "{got}");
        assert_eq!(stack.messages(USER).len(), 0, "{protocol}: fetched mail is deleted");
    }
}

#[test]
fn mutt_opens_the_inbox_and_saves_a_copy() {
    if !have(&["mutt", "script"]) {
        return;
    }
    let stack = Stack::start();
    let folder = stack.maildir(USER).join("new");
    fs::write(folder.join("1700000000.M1P1.elsewhere"), message("for mutt").replace("\r\n", "\n"))
        .expect("message");
    let rc = private_file(
        &stack,
        "muttrc",
        &format!(
            "set folder=imaps://{USER}@localhost:{0}/\nset spoolfile=imaps://{USER}@localhost:{0}/INBOX\nset imap_pass=\"{PASSWORD}\"\n\
             set certificate_file={1}\nset ssl_starttls=yes\nset quit=yes\nset delete=yes\nset move=no\nset wait_key=no\nset sleep_time=0\n\
             set confirmappend=no\nset confirmcreate=no\nset mail_check=0\n",
            stack.port(993),
            stack.ca().display()
        ),
    );
    let mut command = peer("script", stack.scratch());
    command.env("TERM", "xterm");
    command.args([
        "-qec",
        &format!(
            "mutt -n -F {rc} -e 'push \"<copy-message>=Archive<enter><flag-message><sync-mailbox><quit>\"'"
        ),
        "/dev/null",
    ]);
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
    let copied = stack.maildir(USER).join(".Archive");
    assert_eq!(files(copied.join("cur")) + files(copied.join("new")), 1, "{}\n{}", show(&out), stack.log());
    let flagged = stack.messages(USER);
    assert!(flagged.iter().any(|f| f.to_string_lossy().contains(":2,F")), "{flagged:?}");
}
