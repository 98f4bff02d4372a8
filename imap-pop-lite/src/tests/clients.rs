//! Programs people use, each against the running service. A program that is not installed is skipped with
//! a line that says so.

use std::process::Output;

use tokio::process::Command;

use super::*;

const MESSAGE: &str = "From: Ann <ann@a.test>\nTo: user@mail.test\nSubject: first\n\
                       Date: Fri, 21 Nov 1997 09:55:06 -0600\nMessage-ID: <1@a.test>\n\nHello\n.dot\n";

/// Runs a program; `None` when it is not installed.
async fn run(command: &mut Command) -> Option<Output> {
    match tokio::time::timeout(Duration::from_secs(60), command.kill_on_drop(true).output()).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: {:?} is not installed", command.as_std().get_program());
            None
        }
        Ok(output) => Some(output.unwrap()),
        Err(_) => panic!("{command:?} did not end"),
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a Python program with the ports as arguments.
async fn python(server: &Server, script: &str) {
    let certificate = server.state.path().join("cert.pem");
    std::fs::write(&certificate, &server.pem).unwrap();
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(&certificate);
    command.args([server.imap, server.imaps, server.pop3, server.pop3s].map(|port| port.to_string()));
    if let Some(output) = run(&mut command).await {
        assert!(output.status.success(), "{}", said(&output));
    }
}

const IMAPLIB: &str = r#"
import imaplib, ssl, sys, time
cert, imap, imaps, pop3, pop3s = sys.argv[1], *map(int, sys.argv[2:])
ctx = ssl.create_default_context(cafile=cert)
def ok(result):
    assert result[0] == 'OK', result
    return result[1]
c = imaplib.IMAP4('localhost', imap)
try:
    c.login('user', 'pass')
    raise SystemExit('login without TLS')
except imaplib.IMAP4.error as e:
    assert 'PRIVACYREQUIRED' in str(e), e
ok(c.starttls(ssl_context=ctx))
try:
    c.login('user', 'wrong')
    raise SystemExit('wrong password')
except imaplib.IMAP4.error as e:
    assert 'AUTHENTICATIONFAILED' in str(e), e
ok(c.login('user', 'pass'))
c.logout()
c = imaplib.IMAP4_SSL('localhost', imaps, ssl_context=ctx)
ok(c.authenticate('PLAIN', lambda _: b'\0user\0pass'))
assert any(b'Sent' in line for line in ok(c.list()))
assert ok(c.select()) == [b'1']
data = ok(c.fetch('1', '(UID FLAGS ENVELOPE BODYSTRUCTURE RFC822.SIZE BODY.PEEK[])'))
body = data[0][1]
assert body.startswith(b'From: Ann') and body.endswith(b'.dot\r\n'), body
assert b'RFC822.SIZE %d' % len(body) in data[0][0] + data[1], data
ok(c.append('Sent', r'(\Seen)', imaplib.Time2Internaldate(time.time()), b'Subject: x\r\n\r\nsent\r\n'))
ok(c.store('1', '+FLAGS', r'(\Flagged $Tag)'))
assert ok(c.search(None, 'FLAGGED', 'SUBJECT', '"FIRST"')) == [b'1']
assert ok(c.uid('SEARCH', None, 'KEYWORD', '$Tag')) == [b'1']
ok(c.copy('1', 'Archive'))
ok(c.store('1', '+FLAGS.SILENT', r'\Deleted'))
assert ok(c.expunge()) == [b'1']
ok(c.status('Archive', '(MESSAGES UIDNEXT)'))
ok(c.create('New')); ok(c.rename('New', 'Old')); ok(c.subscribe('Old')); ok(c.lsub()); ok(c.unsubscribe('Old')); ok(c.delete('Old'))
ok(c.select('Archive', readonly=True))
ok(c.noop()); ok(c.check()); ok(c.close())
assert c.logout()[0] == 'BYE'
"#;

#[tokio::test(flavor = "multi_thread")]
async fn python_imaplib() {
    let server = Server::start();
    server.deliver(MESSAGE);
    python(&server, IMAPLIB).await;
}

const POPLIB: &str = r#"
import poplib, ssl, sys
cert, imap, imaps, pop3, pop3s = sys.argv[1], *map(int, sys.argv[2:])
ctx = ssl.create_default_context(cafile=cert)
c = poplib.POP3('localhost', pop3)
c.stls(ctx)
c.user('user'); c.pass_('pass')
assert c.stat()[0] == 1
assert c.retr(1)[1][-1] == b'.dot'
assert c.top(1, 1)[1][-1] == b'Hello'
c.uidl(); c.list(); c.capa(); c.noop(); c.dele(1); c.rset(); c.quit()
c = poplib.POP3_SSL('localhost', pop3s, context=ctx)
try:
    c.user('user'); c.pass_('wrong')
    raise SystemExit('wrong password')
except poplib.error_proto as e:
    assert b'[AUTH]' in e.args[0], e
c.user('user'); c.pass_('pass'); c.dele(1); c.quit()
c = poplib.POP3_SSL('localhost', pop3s, context=ctx)
c.user('user'); c.pass_('pass')
assert c.stat()[0] == 0
c.quit()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn python_poplib() {
    let server = Server::start();
    server.deliver(MESSAGE);
    python(&server, POPLIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl() {
    let server = Server::start();
    server.deliver(MESSAGE);
    let certificate = server.state.path().join("cert.pem");
    std::fs::write(&certificate, &server.pem).unwrap();
    let upload = server.state.path().join("upload.eml");
    std::fs::write(&upload, "Subject: uploaded\r\n\r\nby curl\r\n").unwrap();
    for (url, args, want) in [
        (format!("imaps://localhost:{}/", server.imaps), vec![], "\"INBOX\"|INBOX"),
        (format!("imaps://localhost:{}/INBOX;UID=1", server.imaps), vec![], "Hello"),
        (
            format!("imaps://localhost:{}/INBOX;UID=1;SECTION=HEADER.FIELDS%20(SUBJECT)", server.imaps),
            vec![],
            "first",
        ),
        (format!("imaps://localhost:{}/INBOX?SUBJECT%20first", server.imaps), vec![], "* SEARCH 1"),
        (
            format!("imap://localhost:{}/INBOX", server.imap),
            vec!["--ssl-reqd", "-X", "EXAMINE INBOX"],
            "1 EXISTS",
        ),
        (format!("imaps://localhost:{}/Sent", server.imaps), vec!["-T", upload.to_str().unwrap()], ""),
        (format!("imaps://localhost:{}/Sent;UID=1", server.imaps), vec![], "by curl"),
        (format!("pop3s://localhost:{}/1", server.pop3s), vec![], ".dot"),
        (format!("pop3://localhost:{}/", server.pop3), vec!["--ssl-reqd"], "1 "),
    ] {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "20", "-u", "user:pass", "--cacert"])
            .arg(&certificate)
            .args(args)
            .arg(&url);
        let Some(output) = run(&mut command).await else { return };
        let text = said(&output);
        assert!(output.status.success(), "{url}: {text}");
        assert!(want.split('|').any(|want| text.contains(want)), "{url}: {text}");
    }
    let mut command = Command::new("curl");
    command.args(["-sS", "-u", "user:wrong", "--cacert"]).arg(&certificate);
    command.arg(format!("imaps://localhost:{}/", server.imaps));
    if let Some(output) = run(&mut command).await {
        assert_eq!(output.status.code(), Some(67), "{}", said(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mbsync_both_ways() {
    let server = Server::start();
    server.deliver(MESSAGE);
    server.deliver("Subject: second\n\nmore\n");
    let state = server.state.path();
    std::fs::write(state.join("cert.pem"), &server.pem).unwrap();
    let local = state.join("local");
    std::fs::create_dir(&local).unwrap();
    let config = format!(
        "IMAPAccount a\nHost localhost\nPort {}\nUser user\nPass pass\nSSLType IMAPS\nCertificateFile {cert}\n\n\
         IMAPStore far\nAccount a\n\nMaildirStore near\nPath {local}/\nInbox {local}/INBOX\nSubFolders Verbatim\n\n\
         Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nExpunge Both\nSyncState *\n",
        server.imaps,
        cert = state.join("cert.pem").display(),
        local = local.display(),
    );
    let file = state.join("mbsyncrc");
    std::fs::write(&file, config).unwrap();
    let sync = async || {
        let mut command = Command::new("mbsync");
        command.arg("-c").arg(&file).args(["-a", "-V"]).env("HOME", state);
        run(&mut command).await
    };
    let Some(output) = sync().await else { return };
    assert!(output.status.success(), "{}", said(&output));
    let count = |folder: &str| {
        ["cur", "new"].iter().map(|sub| files(&local.join(folder).join(sub)).len()).sum::<usize>()
    };
    assert_eq!(count("INBOX"), 2, "{}", said(&output));
    // A local message goes up, a local flag as well, and a deletion here comes down.
    std::fs::write(local.join("Sent/new/1700000000.1.here"), "Subject: from here\n\nup\n").unwrap();
    let mut imap = server.imap_client().await;
    imap.ask("a SELECT INBOX").await;
    imap.ask("b STORE 1 +FLAGS (\\Deleted)").await;
    imap.ask("c EXPUNGE").await;
    let output = sync().await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(count("INBOX"), 1, "{}", said(&output));
    assert_eq!(imap.ask("d STATUS Sent (MESSAGES)").await[0], "* STATUS Sent (MESSAGES 1)");
}
