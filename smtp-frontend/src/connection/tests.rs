//! Dialogues with a whole connection: TLS, AUTH, delivery.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boot::{Admission, Drain};
use conf::{SmtpKind, SmtpSlice};
use tokio::net::TcpListener;

use super::*;
use crate::Server;
use crate::testing::{FakeAuth, HOST, certificate, slice};

/// A server on a loopback port for each connection asked for.
pub(super) struct Rig {
    _state: tempfile::TempDir,
    pub(super) auth: FakeAuth,
    server: Server,
    slice: SmtpSlice,
    drain: Drain,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut SmtpSlice)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let auth = FakeAuth::start(state.path());
        let mut slice = slice(state.path());
        change(&mut slice);
        let server = Server::new(&slice, auth.client(), Admission::new(0, 0)).unwrap();
        Self { _state: state, auth, server, slice, drain: Drain::new() }
    }

    /// A listener whose connections the server takes; gives its address.
    async fn port(&self, kind: SmtpKind) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, token) = (self.server.clone(), self.drain.token());
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                server.accept(&"test".into(), kind, stream, peer, token.clone());
            }
        });
        address
    }

    async fn raw(&self, kind: SmtpKind) -> TcpStream {
        TcpStream::connect(self.port(kind).await).await.unwrap()
    }

    pub(super) async fn client(&self, kind: SmtpKind) -> Client {
        let mut client = Client { wire: Some(Box::new(self.raw(kind).await)), left: Vec::new() };
        client.expect("220 mx.test ").await;
        client
    }

    /// After STARTTLS and EHLO.
    async fn secured(&self, kind: SmtpKind) -> Client {
        let mut stream = self.raw(kind).await;
        let mut early = Client { wire: None, left: Vec::new() };
        for (line, last) in [("", "220 "), ("EHLO me.test\r\n", "250 "), ("STARTTLS\r\n", "220 ")] {
            stream.write_all(line.as_bytes()).await.unwrap();
            let reply = early.reply_from(&mut stream).await;
            assert!(reply.lines().last().unwrap().starts_with(last), "{reply}");
        }
        let mut client = self.over_tls(stream).await;
        client.say("EHLO me.test", "250-mx.test").await;
        client
    }

    async fn over_tls(&self, stream: TcpStream) -> Client {
        let tls = tls_config::Client::new(&self.slice.tls.certificates[0].chain).unwrap();
        let stream = tls.connect("localhost", stream).await.unwrap();
        Client { wire: Some(Box::new(stream)), left: Vec::new() }
    }

    async fn logged_in(&self) -> Client {
        let mut client = self.secured(SmtpKind::Submission).await;
        client.say(&plain("alice", "right"), "235 2.7.0").await;
        client
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub(super) struct Client {
    wire: Option<Box<dyn Stream>>,
    left: Vec<u8>,
}

impl Client {
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let wire = self.wire.as_mut().unwrap();
        wire.write_all(bytes).await.unwrap();
        wire.flush().await.unwrap();
    }

    /// One whole reply.
    async fn reply(&mut self) -> String {
        let mut wire = self.wire.take().unwrap();
        let reply = self.reply_from(&mut wire).await;
        self.wire = Some(wire);
        reply
    }

    async fn reply_from(&mut self, wire: &mut (impl AsyncRead + Unpin)) -> String {
        let mut reply = String::new();
        loop {
            while let Some(end) = self.left.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.left.drain(..=end).collect();
                reply += std::str::from_utf8(&line).unwrap();
                if line.get(3) != Some(&b'-') {
                    return reply;
                }
            }
            let mut buffer = [0; 4096];
            let limit = Duration::from_secs(10);
            let count =
                tokio::time::timeout(limit, wire.read(&mut buffer)).await.expect("no reply").unwrap_or(0);
            if count == 0 {
                return reply + "<closed>";
            }
            self.left.extend_from_slice(&buffer[..count]);
        }
    }

    async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "{reply:?} does not start with {start:?}");
        reply
    }

    pub(super) async fn say(&mut self, line: &str, start: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "{line:?}: {reply:?} does not start with {start:?}");
        reply
    }

    pub(super) async fn talk(&mut self, table: &[(&str, &str)]) {
        for (line, start) in table {
            self.say(line, start).await;
        }
    }
}

fn plain(user: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{user}\0{password}")))
}

const MESSAGE: &str =
    "Date: Fri, 20 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@me.test>\r\nSubject: x\r\n\r\n.dot\r\nend\r\n";

fn stuffed(message: &str) -> String {
    format!("{}.", message.replace("\r\n.", "\r\n.."))
}

#[tokio::test]
async fn submission_delivers_what_was_sent() {
    let rig = Rig::new();
    let mut client = rig.logged_in().await;
    client
        .talk(&[
            ("MAIL FROM:<alice@mx.test> SIZE=200 BODY=8BITMIME", "250 2.1.0"),
            ("RCPT TO:<bob@mx.test>", "250 2.1.5"),
            ("DATA", "354 "),
        ])
        .await;
    let reply = client.say(&stuffed(MESSAGE), "250 2.0.0 Ok: delivered as ").await;
    client.say("QUIT", "221 2.0.0").await;
    let id = reply.trim_end().rsplit(' ').next().unwrap();

    let [stored] = rig.auth.inbox("bob").try_into().unwrap();
    let trace = stored.strip_suffix(MESSAGE).expect("the message arrives byte for byte");
    let lines: Vec<&str> = trace.split("\r\n").collect();
    assert_eq!(lines[0], "Return-Path: <alice@mx.test>");
    assert_eq!(lines[1], "Delivered-To: bob@mx.test");
    assert_eq!(lines[2], "Received: from me.test ([127.0.0.1])");
    assert!(lines[3].starts_with("\t(using TLSv1.3 with cipher TLS_"), "{}", lines[3]);
    assert_eq!(lines[4], format!("\tby mx.test (Postern) with ESMTPSA id {id}"));
    assert_eq!(lines[5], "\tfor <bob@mx.test>;");
    assert_eq!((lines[7], lines.len()), ("", 8));
    assert_eq!(rig.auth.staged("bob"), 0);

    let seen = rig.auth.seen();
    let told = &seen[0];
    for field in
        ["service=submission", "secured=tls", "lip=127.0.0.1", "rip=127.0.0.1", "local_name=localhost"]
    {
        assert!(told.split(' ').any(|one| one == field), "{field} is missing in {told}");
    }
    for field in ["session=", "lport=", "rport="] {
        assert!(told.contains(field), "{field} is missing in {told}");
    }
}

#[tokio::test]
async fn implicit_tls_adds_missing_fields() {
    let rig = Rig::new();
    let mut client = {
        let stream = rig.raw(SmtpKind::Submissions).await;
        rig.over_tls(stream).await
    };
    client.expect("220 mx.test ESMTP").await;
    client.say("EHLO me.test", "250-").await;
    client.say("AUTH LOGIN", "334 VXNlcm5hbWU6").await;
    client.say(&STANDARD.encode("alice"), "334 UGFzc3dvcmQ6").await;
    client.say(&STANDARD.encode("right"), "235 2.7.0").await;
    client
        .talk(&[("MAIL FROM:<alice@mx.test>", "250"), ("RCPT TO:<alice@mx.test>", "250"), ("DATA", "354")])
        .await;
    client.say("Subject: x\r\n\r\nhello\r\n.", "250 2.0.0").await;
    let stored = rig.auth.inbox("alice").remove(0);
    assert!(stored.contains("\r\nDate: ") && stored.contains("\r\nMessage-ID: <"), "{stored}");
    assert!(stored.contains(&format!("@{HOST}>\r\nSubject: x\r\n\r\nhello\r\n")));
}

#[tokio::test]
async fn auth_is_offered_only_where_it_is_safe() {
    let rig = Rig::new();
    let mut clear = rig.client(SmtpKind::Submission).await;
    let hello = clear.say("EHLO me", "250-").await;
    assert!(hello.contains("STARTTLS") && !hello.contains("AUTH"), "{hello}");
    clear.talk(&[(&plain("alice", "right"), "538 5.7.11"), ("MAIL FROM:<a@x>", "530 5.7.0")]).await;
    let mut inbound = rig.secured(SmtpKind::Inbound).await;
    let hello = inbound.say("EHLO me", "250-").await;
    assert!(!hello.contains("STARTTLS") && !hello.contains("AUTH"), "{hello}");
    inbound.say(&plain("alice", "right"), "502 5.5.1").await;
    let mut secured = rig.secured(SmtpKind::Submission).await;
    assert!(secured.say("EHLO me", "250-").await.contains("250-AUTH PLAIN LOGIN\r\n"));
    assert!(rig.auth.seen().is_empty());
}

#[tokio::test]
async fn logins_that_fail_and_outages() {
    let rig = Rig::with(|slice| slice.smtp.max_auth_failures = 10);
    let mut client = rig.secured(SmtpKind::Submission).await;
    for (user, password, reply) in [
        ("alice", "wrong", "535 5.7.8 Authentication failed\r\n"),
        ("nobody", "x", "535 5.7.8 Authentication failed\r\n"),
        ("alice", "expired", "535 5.7.8 Password expired: Renew it on the intranet\r\n"),
        ("alice", "disabled", "535 5.7.13 Account disabled\r\n"),
        ("alice", "down", "454 4.7.0 Temporary authentication failure\r\n"),
    ] {
        client.say(&plain(user, password), reply).await;
    }
    client
        .talk(&[("MAIL FROM:<alice@mx.test>", "530 5.7.0"), ("AUTH PLAIN", "334 "), ("*", "501 5.7.0")])
        .await;
    client.talk(&[("AUTH PLAIN !", "501 5.5.2"), ("AUTH GSSAPI", "504 5.5.4")]).await;
    rig.auth.go_down();
    client.say(&plain("alice", "right"), "454 4.7.0").await;
    // A new connection still announces AUTH: no AUTH line would make clients give up for good.
    let mut late = rig.secured(SmtpKind::Submission).await;
    assert!(late.say("EHLO me", "250-").await.contains("AUTH PLAIN LOGIN"));
    late.say(&plain("alice", "right"), "454 4.7.0").await;
}

#[tokio::test]
async fn failed_logins_end_the_connection() {
    let rig = Rig::with(|slice| slice.smtp.max_auth_failures = 2);
    let mut client = rig.secured(SmtpKind::Submission).await;
    client.talk(&[(&plain("alice", "a"), "535"), (&plain("alice", "b"), "535")]).await;
    client.expect("421 4.7.0").await;
    assert_eq!(client.reply().await, "<closed>");
}

#[tokio::test]
async fn recipients() {
    let rig = Rig::new();
    let table = [
        ("RCPT TO:<bob@mx.test>", "250 2.1.5"),
        ("RCPT TO:<bob@MX.TEST>", "250 2.1.5"),
        ("RCPT TO:<bob+detail@mx.test>", "250 2.1.5"),
        ("RCPT TO:<bob+exact@mx.test>", "250 2.1.5"),
        ("RCPT TO:<bob@[127.0.0.1]>", "250 2.1.5"),
        ("RCPT TO:<postmaster>", "250 2.1.5"),
        ("RCPT TO:<bob@[127.0.0.9]>", "550 5.7.1"),
        ("RCPT TO:<bob@elsewhere.test>", "550 5.7.1"),
        ("RCPT TO:<bob%elsewhere.test@mx.test>", "550 5.1.1"),
        ("RCPT TO:<\"bob@elsewhere.test\"@mx.test>", "550 5.1.1"),
        ("RCPT TO:<@relay.test:bob@elsewhere.test>", "550 5.7.1"),
        ("RCPT TO:<nobody@mx.test>", "550 5.1.1"),
        ("RCPT TO:<broken@mx.test>", "451 4.3.0"),
    ];
    let mut inbound = rig.client(SmtpKind::Inbound).await;
    inbound.talk(&[("EHLO me", "250-"), ("MAIL FROM:<>", "250 2.1.0")]).await;
    inbound.talk(&table).await;
    let mut user = rig.logged_in().await;
    user.say("MAIL FROM:<alice@mx.test>", "250").await;
    user.talk(&table).await;
    inbound.say("DATA", "354").await;
    inbound.say("Subject: x\r\n\r\nhi\r\n.", "250 2.0.0").await;
    assert_eq!(rig.auth.inbox("bob").len(), 1);
    assert_eq!(rig.auth.inbox("bob+exact").len(), 1);
    assert_eq!(rig.auth.inbox("postmaster").len(), 1);
    assert!(!rig.auth.inbox("bob")[0].contains("\tfor "));
    assert!(!rig.auth.inbox("bob")[0].contains("Message-ID"));
    rig.auth.go_down();
    user.say("RCPT TO:<bob@mx.test>", "451 4.3.0").await;
}

#[tokio::test]
async fn all_recipients_or_none() {
    let rig = Rig::new();
    // The second recipient's home cannot be made.
    std::fs::create_dir_all(rig.auth.home("")).unwrap();
    std::fs::write(rig.auth.home("bob"), "").unwrap();
    let mut client = rig.client(SmtpKind::Inbound).await;
    let open = [
        ("MAIL FROM:<a@x>", "250"),
        ("RCPT TO:<alice@mx.test>", "250"),
        ("RCPT TO:<bob@mx.test>", "250"),
        ("DATA", "354"),
    ];
    client.say("EHLO me", "250-").await;
    client.talk(&open).await;
    client.say("hi\r\n.", "451 4.3.0").await;
    assert!(rig.auth.inbox("alice").is_empty());
    assert_eq!(rig.auth.staged("alice"), 0);
    std::fs::remove_file(rig.auth.home("bob")).unwrap();
    client.talk(&open).await;
    client.say("hi\r\n.", "250 2.0.0").await;
    assert_eq!((rig.auth.inbox("alice").len(), rig.auth.inbox("bob").len()), (1, 1));
}

#[tokio::test]
async fn lmtp_answers_for_each() {
    let rig = Rig::new();
    std::fs::create_dir_all(rig.auth.home("")).unwrap();
    std::fs::write(rig.auth.home("bob"), "").unwrap();
    let mut client = rig.client(SmtpKind::Lmtp).await;
    client.talk(&[("LHLO me", "250-"), ("MAIL FROM:<a@x>", "250"), ("RCPT TO:<bob@mx.test>", "250")]).await;
    client
        .talk(&[("RCPT TO:<nobody@mx.test>", "550"), ("RCPT TO:<alice@mx.test>", "250"), ("DATA", "354")])
        .await;
    client.say("hi\r\n.", "451 4.3.0").await;
    client.expect("250 2.0.0").await;
    assert_eq!(rig.auth.inbox("alice").len(), 1);
    assert!(rig.auth.inbox("alice")[0].contains(" with LMTP id "));
}

#[tokio::test]
async fn refused_messages_leave_nothing_and_the_session_goes_on() {
    let rig = Rig::with(|slice| slice.smtp.bare_newline = conf::BareNewline::Reject);
    let mut client = rig.client(SmtpKind::Inbound).await;
    client.say("EHLO me", "250-").await;
    let open = [("MAIL FROM:<a@x>", "250"), ("RCPT TO:<bob@mx.test>", "250"), ("DATA", "354")];
    client.talk(&open).await;
    // Enough to have a file in `tmp`, then the smuggling attempt.
    client.send(format!("{}\r\n", "x".repeat(70)).repeat(1500).as_bytes()).await;
    client.send(b"end\n.\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<bob@mx.test>\r\nDATA\r\nevil\r\n.\r\n").await;
    client.expect("550 5.5.2").await;
    client.talk(&open).await;
    client.send(format!("{}\r\n", "x".repeat(70)).repeat(5000).as_bytes()).await;
    client.send(b".\r\n").await;
    client.expect("552 5.3.4").await;
    client.talk(&[("MAIL FROM:<a@x> SIZE=300001", "552 5.3.4"), ("NOOP", "250")]).await;
    client.talk(&open).await;
    // The client vanishes in the middle.
    client.send(format!("{}\r\n", "x".repeat(70)).repeat(1500).as_bytes()).await;
    drop(client);
    for _ in 0..2000 {
        if rig.auth.staged("bob") == 0 && rig.auth.home("bob").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((rig.auth.inbox("bob").len(), rig.auth.staged("bob")), (0, 0));
}

#[tokio::test]
async fn bare_line_ends_are_set_right_and_smuggle_nothing() {
    let rig = Rig::new();
    let mut client = rig.client(SmtpKind::Inbound).await;
    let evil = "MAIL FROM:<evil@x>\r\nRCPT TO:<alice@mx.test>\r\nDATA\r\nevil";
    client
        .talk(&[
            ("EHLO me", "250-"),
            ("MAIL FROM:<a@x>", "250"),
            ("RCPT TO:<bob@mx.test>", "250"),
            ("DATA", "354"),
        ])
        .await;
    client.send(format!("Subject: x\n\nbare\rcr\n..dot\n.\n{evil}\n.\r\n{evil}\r\n.\r\n").as_bytes()).await;
    client.expect("250 2.0.0").await;
    client.say("NOOP", "250 2.0.0").await;
    let [stored] = rig.auth.inbox("bob").try_into().unwrap();
    let wanted = format!("Subject: x\r\n\r\nbare cr\r\n.dot\r\n.\r\n{evil}\r\n.\r\n{evil}\r\n");
    assert!(stored.ends_with(&wanted), "{stored}");
    assert!(rig.auth.inbox("alice").is_empty());
}

#[tokio::test]
async fn the_postmaster_is_always_there() {
    let rig = Rig::with(|slice| {
        slice.smtp.local_domains = vec!["other.test".into(), HOST.into()];
        slice.smtp.postmaster = Some(format!("alice@{HOST}"));
    });
    let mut client = rig.client(SmtpKind::Inbound).await;
    client
        .talk(&[
            ("EHLO me", "250-"),
            ("MAIL FROM:<>", "250"),
            ("RCPT TO:<Postmaster>", "250 2.1.5"),
            ("RCPT TO:<POSTMASTER+x@other.test>", "250 2.1.5"),
            ("RCPT TO:<postmaster@mx.test>", "250 2.1.5"),
            ("RCPT TO:<postmaster@elsewhere.test>", "550 5.7.1"),
            ("RCPT TO:<abuse@other.test>", "550 5.1.1"),
            ("DATA", "354"),
            ("hi\r\n.", "250 2.0.0"),
        ])
        .await;
    // The one who stands in, and the user of that name.
    assert_eq!((rig.auth.inbox("alice").len(), rig.auth.inbox("postmaster").len()), (1, 1));
    // A stand-in who is no user: the mail is put off, not lost.
    let rig = Rig::with(|slice| {
        slice.smtp.local_domains = vec!["other.test".into()];
        slice.smtp.postmaster = Some("nobody".into());
    });
    let mut client = rig.client(SmtpKind::Inbound).await;
    client.talk(&[("EHLO me", "250-"), ("MAIL FROM:<>", "250"), ("RCPT TO:<postmaster>", "451 4.3.0")]).await;
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    let rig = Rig::new();
    let mut client = rig.logged_in().await;
    client
        .talk(&[("MAIL FROM:<alice@mx.test>", "250"), ("RCPT TO:<bob@mx.test>", "250"), ("DATA", "354")])
        .await;
    let message = format!("{MESSAGE}{}", "line of text, with a dot in front\r\n.and so on\r\n".repeat(6000));
    client.say(&stuffed(&message), "250 2.0.0").await;
    assert!(rig.auth.inbox("bob")[0].ends_with(&message));
}

#[tokio::test]
async fn injected_bytes_behind_starttls_end_the_connection() {
    let rig = Rig::new();
    let mut client = rig.client(SmtpKind::Submission).await;
    client.say("EHLO me", "250-").await;
    client.send(b"STARTTLS\r\nEHLO evil\r\n").await;
    client.expect("554 5.5.1").await;
    assert_eq!(client.reply().await, "<closed>");
}

#[tokio::test]
async fn too_many_connections() {
    let rig = Rig::with(|slice| slice.limits.connections_per_address = 2);
    let _one = rig.client(SmtpKind::Inbound).await;
    let _two = rig.client(SmtpKind::Submission).await;
    let mut three = Client { wire: Some(Box::new(rig.raw(SmtpKind::Inbound).await)), left: Vec::new() };
    three.expect("421 4.7.0").await;
    assert_eq!(three.reply().await, "<closed>");
}

#[tokio::test]
async fn reload_swaps_certificates_and_settings_for_new_connections() {
    let mut rig = Rig::new();
    let mut old = rig.client(SmtpKind::Inbound).await;
    rig.slice.tls.certificates = vec![certificate()];
    rig.slice.hostname = "new.test".into();
    rig.slice.smtp.local_domains = vec![HOST.into()];
    rig.server.reload(&rig.slice, rig.auth.client()).unwrap();
    old.say("EHLO me", "250-mx.test").await;
    let mut stream = rig.raw(SmtpKind::Submissions).await;
    stream.flush().await.unwrap();
    rig.over_tls(stream).await.expect("220 new.test").await;
    // A configuration that cannot be used changes nothing.
    let mut broken = rig.slice.clone();
    broken.hostname = "broken.test".into();
    broken.tls.certificates[0].key = conf::Secret::new("nonsense");
    assert!(rig.server.reload(&broken, rig.auth.client()).is_err());
    broken.tls.certificates.clear();
    assert!(rig.server.reload(&broken, rig.auth.client()).is_err());
    let stream = rig.raw(SmtpKind::Submissions).await;
    rig.over_tls(stream).await.expect("220 new.test").await;
}

#[tokio::test]
async fn stopping_lets_a_message_finish_and_ends_idle_clients() {
    let rig = Rig::new();
    let mut idle = rig.client(SmtpKind::Inbound).await;
    let mut busy = rig.client(SmtpKind::Inbound).await;
    busy.talk(&[
        ("EHLO me", "250-"),
        ("MAIL FROM:<a@x>", "250"),
        ("RCPT TO:<bob@mx.test>", "250"),
        ("DATA", "354"),
    ])
    .await;
    rig.drain.begin();
    idle.expect("421 4.3.2").await;
    assert_eq!(idle.reply().await, "<closed>");
    busy.say("hi\r\n.", "250 2.0.0").await;
    busy.expect("421 4.3.2").await;
    assert_eq!(rig.auth.inbox("bob").len(), 1);
}

#[tokio::test]
async fn silent_clients_are_dismissed() {
    let rig = Rig::with(|slice| slice.smtp.timeout = Duration::from_millis(50));
    let mut client = rig.client(SmtpKind::Inbound).await;
    client.expect("421 4.4.2").await;
    assert_eq!(client.reply().await, "<closed>");
}

#[tokio::test]
async fn an_independent_client_delivers() {
    use lettre::{SmtpTransport, Transport as _, address::Envelope};
    let rig = Rig::new();
    let port = rig.port(SmtpKind::Inbound).await.port();
    let sent = tokio::task::spawn_blocking(move || {
        let to = ["bob@mx.test", "alice@mx.test"].map(|address| address.parse().unwrap()).to_vec();
        let envelope = Envelope::new(Some("somebody@elsewhere.test".parse().unwrap()), to).unwrap();
        // The client ends the message's last line itself.
        let message = b"Subject: hello\r\n\r\na line\r\n.\r\n..dots";
        let transport = SmtpTransport::builder_dangerous("127.0.0.1").port(port).build();
        transport.send_raw(&envelope, message).map(|reply| reply.code().to_string())
    });
    assert_eq!(sent.await.unwrap().unwrap(), "250");
    for user in ["alice", "bob"] {
        assert!(rig.auth.inbox(user)[0].contains("\r\n\r\na line\r\n.\r\n..dots\r\n"));
    }
}
