//! Dialogues as tables, and noise.

use proptest::prelude::*;

use super::*;
use crate::address::ForwardPath;
use crate::data::BareNewline;

/// A driver with a fixed policy: `PLAIN` succeeds for `\0u\0p`; recipients named `no…` are unknown, `tmp…` fail
/// for now; everything else is accepted.
struct Talk {
    session: Session,
    now: Instant,
    body: Vec<u8>,
    /// Whole messages the session handed over, and `RESET` for each reset.
    delivered: Vec<String>,
    recipients: Vec<String>,
    closed: bool,
    tls: bool,
}

fn config(kind: Kind) -> Config {
    Config {
        hostname: "mx.test".into(),
        kind,
        starttls: true,
        max_message_size: 1000,
        max_recipients: 3,
        max_bad_commands: 5,
        max_auth_failures: 2,
        bare_newline: BareNewline::Normalize,
        timeout: Duration::from_secs(300),
    }
}

impl Talk {
    fn new(kind: Kind, secured: bool) -> (Self, String) {
        Self::with(config(kind), secured)
    }

    fn with(config: Config, secured: bool) -> (Self, String) {
        let now = Instant::now();
        let mut session = Session::new(Arc::new(config), secured, now);
        session.set_mechanisms(["plain".to_owned(), "LOGIN".to_owned(), "SCRAM-SHA-256".to_owned()]);
        let mut talk = Self {
            session,
            now,
            body: Vec::new(),
            delivered: Vec::new(),
            recipients: Vec::new(),
            closed: false,
            tls: false,
        };
        let greeting = talk.raw(b"");
        (talk, greeting)
    }

    /// EHLO done, logged in where that is needed.
    fn ready(kind: Kind) -> Self {
        let (mut talk, _) = Self::new(kind, true);
        talk.say(if kind == Kind::Lmtp { "LHLO me" } else { "EHLO me" });
        if kind == Kind::Submission {
            assert_eq!(talk.say("AUTH PLAIN AHUAcA=="), "235 2.7.0 Authentication successful\r\n");
        }
        talk
    }

    fn say(&mut self, line: &str) -> String {
        self.raw(format!("{line}\r\n").as_bytes())
    }

    fn raw(&mut self, bytes: &[u8]) -> String {
        let mut said = Vec::new();
        self.session.feed(bytes, self.now);
        while let Some(step) = self.session.next() {
            match step {
                Step::Reply(bytes) => said.extend(bytes),
                Step::StartTls => {
                    self.tls = true;
                    self.session.tls_started(self.now);
                }
                Step::Auth { mechanism, initial } => {
                    let outcome = match (mechanism.as_str(), initial) {
                        ("PLAIN", Some(secret)) => Self::plain(secret.expose()),
                        ("SCRAM-SHA-256", _) => Outcome::Authenticated { final_data: Some(b"v=1".to_vec()) },
                        ("LOGIN", None) => Outcome::Challenge(b"Username:".to_vec()),
                        (_, _) => Outcome::Challenge(Vec::new()),
                    };
                    self.session.resume(outcome, self.now);
                }
                Step::AuthResponse(secret) => self.session.resume(Self::plain(secret.expose()), self.now),
                Step::AuthCancelled => self.delivered.push("CANCELLED".into()),
                Step::Mail(_) => self.session.resume(Outcome::Accept, self.now),
                Step::Rcpt(path) => {
                    let text = path.to_string();
                    let outcome = match text.as_str() {
                        t if t.starts_with("<no") => {
                            Outcome::Reply(Reply::new(550, Status(5, 1, 1), "Unknown"))
                        }
                        t if t.starts_with("<tmp") => {
                            Outcome::Reply(Reply::new(451, Status(4, 3, 0), "Later"))
                        }
                        _ => {
                            self.recipients.push(text);
                            Outcome::Accept
                        }
                    };
                    self.session.resume(outcome, self.now);
                }
                Step::Data => self.session.resume(Outcome::Accept, self.now),
                Step::Body(bytes) => self.body.extend(bytes),
                Step::Message => {
                    let replies = self
                        .recipients
                        .iter()
                        .map(|r| Reply::with_text(250, Status(2, 0, 0), format!("ok {r}")));
                    let outcome = match self.session.config.kind {
                        Kind::Lmtp => Outcome::Each(replies.collect()),
                        _ => Outcome::Accept,
                    };
                    self.delivered.push(String::from_utf8_lossy(&self.body).into_owned());
                    self.forget();
                    self.session.resume(outcome, self.now);
                }
                Step::Reset => {
                    self.delivered.push("RESET".into());
                    self.forget();
                }
                Step::Close => self.closed = true,
            }
        }
        String::from_utf8(said).unwrap()
    }

    fn plain(response: &[u8]) -> Outcome {
        match response {
            b"\0u\0p" => Outcome::Authenticated { final_data: None },
            b"\0u\0down" => {
                Outcome::Reply(Reply::new(454, Status(4, 7, 0), "Temporary authentication failure"))
            }
            _ => Outcome::Reply(Reply::new(535, Status(5, 7, 8), "Authentication failed")),
        }
    }

    fn forget(&mut self) {
        self.body.clear();
        self.recipients.clear();
    }

    /// Says each line and checks how each answer starts.
    fn table(&mut self, lines: &[(&str, &str)]) {
        for (line, start) in lines {
            let said = self.say(line);
            assert!(said.starts_with(start), "{line:?}: {said:?} does not start with {start:?}");
        }
    }
}

#[test]
fn greeting_and_ehlo_offer_what_can_succeed() {
    let (mut talk, greeting) = Talk::new(Kind::Submission, false);
    assert_eq!(greeting, "220 mx.test ESMTP Postern\r\n");
    let common = "250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n";
    let head = "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n";
    assert_eq!(talk.say("EHLO me"), format!("{head}250-STARTTLS\r\n{common}"));
    assert_eq!(talk.say("HELO me"), "250 mx.test\r\n");
    assert_eq!(talk.say("STARTTLS"), "220 2.0.0 Ready to start TLS\r\n");
    assert_eq!(talk.say("EHLO me"), format!("{head}250-AUTH PLAIN LOGIN SCRAM-SHA-256\r\n{common}"));
    talk.say("AUTH PLAIN AHUAcA==");
    assert_eq!(talk.say("EHLO me"), format!("{head}{common}"));

    let (mut talk, _) = Talk::new(Kind::Inbound, true);
    assert_eq!(talk.say("EHLO me"), format!("{head}{common}"));
    let (_, greeting) = Talk::new(Kind::Lmtp, false);
    assert_eq!(greeting, "220 mx.test LMTP Postern\r\n");
}

#[test]
fn one_message_from_start_to_end() {
    let mut talk = Talk::ready(Kind::Inbound);
    talk.table(&[
        ("MAIL FROM:<a@x> SIZE=10 BODY=8BITMIME", "250 2.1.0 Ok\r\n"),
        ("RCPT TO:<b@y>", "250 2.1.5 Ok\r\n"),
        ("RCPT TO:<no@y>", "550 5.1.1 Unknown\r\n"),
        ("RCPT TO:<tmp@y>", "451 4.3.0 Later\r\n"),
        ("DATA", "354 "),
        ("Subject: x", ""),
        ("", ""),
        ("..dot", ""),
        (".", "250 2.0.0 Ok\r\n"),
        ("QUIT", "221 2.0.0 Bye\r\n"),
    ]);
    assert_eq!(talk.delivered, ["Subject: x\r\n\r\n.dot\r\n"]);
    assert!(talk.closed);
    assert_eq!(talk.say("NOOP"), "");
}

#[test]
fn commands_out_of_order_and_wrong() {
    let roomy = |kind| Config { max_bad_commands: 1000, ..config(kind) };
    let (mut talk, _) = Talk::with(roomy(Kind::Inbound), false);
    talk.table(&[
        ("MAIL FROM:<a@x>", "503 5.5.1"),
        ("RCPT TO:<a@x>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("EHLO", "501 5.5.4"),
        ("EHLO a b", "501 5.5.4"),
        ("LHLO me", "500 5.5.1"),
        ("EHLO me", "250-"),
        ("DATA", "503 5.5.1"),
        ("RCPT TO:<a@x>", "503 5.5.1"),
        ("MAIL FROM:<a@x> FOO=BAR", "555 5.5.4"),
        ("MAIL FROM:<a@x> AUTH=<>", "555 5.5.4"),
        ("MAIL FROM:<a@x> SIZE=1001", "552 5.3.4"),
        ("MAIL FROM:<a@", "501 5.1.7"),
        ("MAIL FROM:<ü@x>", "553 5.6.7"),
        ("MAIL FROM:<a@x>", "250 2.1.0"),
        ("MAIL FROM:<b@x>", "503 5.5.1"),
        ("RCPT TO:<a@", "501 5.1.3"),
        ("RCPT TO:<ü@x>", "553 5.6.7"),
        ("RCPT TO:<a@x> NOTIFY=NEVER", "555 5.5.4"),
        ("DATA", "554 5.5.1"),
        ("DATA x", "501 5.5.4"),
        ("RSET x", "501 5.5.4"),
        ("RSET", "250 2.0.0"),
        ("VRFY", "501 5.5.4"),
        ("VRFY a", "252 2.5.0"),
        ("EXPN a", "502 5.5.1"),
        ("HELP", "214 2.0.0"),
        ("NOOP whatever", "250 2.0.0"),
        ("AUTH PLAIN", "502 5.5.1"),
        ("WHAT", "500 5.5.1"),
        ("", "500 5.5.1"),
        ("QUIT x", "501 5.5.4"),
        ("HELO me", "250 mx.test"),
        ("MAIL FROM:<a@x> SIZE=1", "250 2.1.0"),
        ("RSET", "250 2.0.0"),
        ("MAIL FROM:<>", "250 2.1.0"),
        ("RCPT TO:<POSTMASTER>", "250 2.1.5"),
        ("STARTTLS x", "501 5.5.4"),
        ("STARTTLS", "220 2.0.0"),
        ("MAIL FROM:<>", "503 5.5.1"),
        ("EHLO me", "250-"),
        ("STARTTLS", "503 5.5.1"),
    ]);
    let (mut talk, _) = Talk::with(Config { starttls: false, ..roomy(Kind::Inbound) }, false);
    assert!(!talk.say("EHLO me").contains("STARTTLS"));
    talk.table(&[("STARTTLS", "502 5.5.1")]);
}

#[test]
fn a_transaction_ends_where_the_rfc_says() {
    let open: &[(&str, &str)] = &[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<b@y>", "250")];
    let big = "x".repeat(1100);
    for enders in [&["RSET"][..], &["EHLO other"], &["HELO other"], &["DATA", "."], &["DATA", &big, "."]] {
        let mut talk = Talk::ready(Kind::Inbound);
        talk.table(open);
        for line in enders {
            talk.say(line);
        }
        assert!(talk.recipients.is_empty(), "{enders:?}");
        talk.table(&[("RCPT TO:<c@y>", "503 5.5.1"), ("DATA", "503 5.5.1"), ("MAIL FROM:<n@x>", "250")]);
    }
    // What does not end it: errors, NOOP, VRFY, HELP, a refused EHLO, DATA refused for want of recipients.
    let mut talk = Talk::ready(Kind::Inbound);
    talk.table(&[
        ("MAIL FROM:<a@x>", "250"),
        ("DATA", "554"),
        ("NOOP", "250"),
        ("HELP", "214"),
        ("VRFY x", "252"),
    ]);
    talk.table(&[("EHLO", "501"), ("MAIL FROM:<z@x>", "503"), ("RCPT TO:<b@y>", "250"), ("DATA", "354")]);
    // STARTTLS: nothing said before it counts (RFC 3207 §4.2).
    let (mut talk, _) = Talk::new(Kind::Inbound, false);
    talk.table(&[
        ("EHLO me", "250-"),
        ("MAIL FROM:<a@x>", "250"),
        ("RCPT TO:<b@y>", "250"),
        ("STARTTLS", "220"),
    ]);
    assert_eq!(talk.delivered, ["RESET"]);
    talk.table(&[("RCPT TO:<c@y>", "503"), ("MAIL FROM:<a@x>", "503")]);
    // SMTPUTF8 of one transaction does not leak into the next.
    let mut talk = Talk::ready(Kind::Inbound);
    talk.table(&[("MAIL FROM:<a@x> SMTPUTF8", "250"), ("RCPT TO:<ü@y>", "250"), ("RSET", "250")]);
    talk.table(&[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<ü@y>", "553")]);
}

#[test]
fn bytes_behind_starttls_end_the_connection() {
    let (mut talk, _) = Talk::new(Kind::Submission, false);
    talk.say("EHLO me");
    let said = talk.raw(b"STARTTLS\r\nEHLO injected\r\nMAIL FROM:<a@x>\r\n");
    assert!(said.starts_with("554 5.5.1") && said.lines().count() == 1, "{said}");
    assert!(talk.closed && !talk.tls);
    // Bytes fed while the handshake goes on are dropped, not kept for later.
    let config = Arc::new(config(Kind::Inbound));
    let now = Instant::now();
    let mut session = Session::new(config, false, now);
    session.feed(b"STARTTLS\r\n", now);
    while session.next().is_some() {}
    session.feed(b"NOOP\r\n", now);
    session.tls_started(now);
    assert_eq!(session.next(), None);
}

#[test]
fn auth_rules() {
    let (mut talk, _) = Talk::with(
        Config { max_bad_commands: 100, max_auth_failures: 10, ..config(Kind::Submission) },
        false,
    );
    talk.table(&[
        ("AUTH PLAIN AHUAcA==", "503 5.5.1"),
        ("EHLO me", "250-"),
        ("AUTH PLAIN AHUAcA==", "538 5.7.11"),
        ("MAIL FROM:<a@x>", "530 5.7.0 Must issue a STARTTLS"),
        ("STARTTLS", "220"),
        ("HELO me", "250 "),
        ("AUTH PLAIN AHUAeA==", "535 5.7.8"),
        ("EHLO me", "250-"),
        ("MAIL FROM:<a@x>", "530 5.7.0 Authentication required"),
        ("AUTH", "501 5.5.4"),
        ("AUTH NTLM", "504 5.5.4"),
        ("AUTH PLAIN AHUAcA", "501 5.5.2"),
        ("AUTH PLAIN !!!!", "501 5.5.2"),
        ("AUTH PLAIN a b", "501 5.5.4"),
        ("AUTH PLAIN", "334 \r\n"),
        ("*", "501 5.7.0"),
        ("AUTH PLAIN", "334 \r\n"),
        ("not base64", "501 5.5.2"),
        ("AUTH LOGIN", "334 VXNlcm5hbWU6\r\n"),
        ("AHUAZG93bg==", "454 4.7.0"),
        ("AUTH PLAIN =", "535 5.7.8"),
        ("AUTH SCRAM-SHA-256 =", "334 dj0x\r\n"),
        ("eA==", "501 5.5.2"),
        ("MAIL FROM:<a@x>", "530"),
        ("AUTH SCRAM-SHA-256 =", "334 dj0x\r\n"),
        ("", "235 2.7.0"),
        ("AUTH PLAIN AHUAcA==", "503 5.5.1"),
        ("MAIL FROM:<a@x> AUTH=<>", "250 2.1.0"),
        ("AUTH PLAIN AHUAcA==", "503 5.5.1"),
        ("EHLO again", "250-"),
        ("MAIL FROM:<a@x>", "250 2.1.0"),
    ]);
    assert_eq!(talk.delivered, ["CANCELLED", "CANCELLED", "CANCELLED", "RESET"]);
    assert_eq!(talk.session.protocol(), "ESMTPSA");
}

#[test]
fn failed_logins_have_a_cap() {
    let (mut talk, _) = Talk::new(Kind::Submission, true);
    talk.table(&[
        ("EHLO me", "250-"),
        ("AUTH PLAIN AHUAeA==", "535 5.7.8"),
        ("AUTH PLAIN AHUAZG93bg==", "454"),
    ]);
    let said = talk.say("AUTH PLAIN AHUAeA==");
    assert!(said.starts_with("535 5.7.8") && said.contains("\r\n421 4.7.0 "), "{said}");
    assert!(talk.closed);
}

#[test]
fn mistakes_have_a_cap() {
    let (mut talk, _) = Talk::new(Kind::Inbound, false);
    for _ in 0..4 {
        assert!(talk.say("WHAT").starts_with("500"));
    }
    assert_eq!(talk.say("WHAT"), "421 4.7.0 Too many errors\r\n");
    assert!(talk.closed);
    // Commands that change nothing are free up to a point.
    let (mut talk, _) = Talk::new(Kind::Inbound, false);
    let said = talk.raw("NOOP\r\n".repeat(200).as_bytes());
    assert!(talk.closed);
    assert_eq!(said.matches("250 2.0.0").count(), 104);
    // Guessing recipients too.
    let (mut talk, _) = Talk::new(Kind::Inbound, false);
    talk.table(&[("EHLO me", "250-"), ("MAIL FROM:<>", "250")]);
    let said = talk.raw("RCPT TO:<nobody@x>\r\n".repeat(200).as_bytes());
    assert_eq!(said.matches("550 5.1.1").count(), 100);
    assert!(talk.closed);
}

#[test]
fn recipients_have_a_cap() {
    let mut talk = Talk::ready(Kind::Inbound);
    talk.say("MAIL FROM:<a@x>");
    for (name, code) in
        [("a", "250"), ("no", "550"), ("b", "250"), ("c", "250"), ("d", "452 4.5.3"), ("e", "452 4.5.3")]
    {
        assert!(talk.say(&format!("RCPT TO:<{name}@y>")).starts_with(code), "{name}");
    }
    talk.table(&[("DATA", "354"), (".", "250 2.0.0")]);
}

#[test]
fn messages_over_the_limit_are_dropped_and_the_session_goes_on() {
    let mut talk = Talk::ready(Kind::Inbound);
    for _ in 0..3 {
        talk.table(&[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<b@y>", "250"), ("DATA", "354")]);
        for _ in 0..30 {
            assert_eq!(talk.say(&"x".repeat(60)), "");
        }
        assert!(talk.body.len() <= 1000);
        assert_eq!(talk.say("."), "552 5.3.4 Message is too big\r\n");
    }
    talk.table(&[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<b@y>", "250"), ("DATA", "354")]);
    // Exactly the limit still fits.
    assert_eq!(talk.raw(format!("{}\r\n.\r\n", "y".repeat(998)).as_bytes()), "250 2.0.0 Ok\r\n");
    // A client that never stops is not listened to for ever.
    talk.table(&[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<b@y>", "250"), ("DATA", "354")]);
    let mut said = String::new();
    for _ in 0..200 {
        said += &talk.raw(&[b'z'; 16_384]);
    }
    assert!(said.starts_with("552 5.3.4") && talk.closed, "{said}");
}

#[test]
fn smuggling_makes_one_message_or_none_and_nothing_behind_it_is_a_command() {
    let ends: [&[u8]; 8] =
        [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n"];
    for end in ends {
        let mut wire = b"Subject: first\r\n\r\nbody".to_vec();
        wire.extend_from_slice(end);
        wire.extend_from_slice(b"MAIL FROM:<evil@x>\r\nRCPT TO:<b@y>\r\nDATA\r\nevil\r\n.\r\nNOOP\r\n");
        for cut in 0..=wire.len() {
            for (bare_newline, code) in
                [(BareNewline::Normalize, "250 2.0.0"), (BareNewline::Reject, "550 5.5.2")]
            {
                let (mut talk, _) = Talk::with(Config { bare_newline, ..config(Kind::Inbound) }, true);
                talk.say("EHLO me");
                talk.table(&[("MAIL FROM:<a@x>", "250"), ("RCPT TO:<b@y>", "250"), ("DATA", "354")]);
                let mut said = talk.raw(&wire[..cut]);
                said += &talk.raw(&wire[cut..]);
                let codes: Vec<_> = said.lines().map(|line| &line[..9]).collect();
                assert_eq!(codes, [code, "250 2.0.0"], "{end:?} at {cut}");
                // One message that holds everything, or none.
                match talk.delivered.as_slice() {
                    [only] if bare_newline == BareNewline::Reject => assert_eq!(only, "RESET"),
                    [only] => assert!(
                        only.starts_with("Subject: first\r\n\r\nbody") && only.ends_with("\r\nevil\r\n")
                    ),
                    other => panic!("{end:?} at {cut}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_message_sent_without_waiting_is_never_read_as_commands() {
    let mut talk = Talk::ready(Kind::Inbound);
    let group = b"MAIL FROM:<a@x>\r\nRCPT TO:<no@y>\r\nDATA\r\nRSET\r\nMAIL FROM:<evil@x>\r\n.\r\n";
    let said = talk.raw(group);
    let codes: Vec<_> = said.lines().map(|line| &line[..3]).collect();
    assert_eq!(codes, ["250", "550", "554"]);
    assert!(talk.closed);
    // A pipelined group that ends with DATA, as RFC 2920 allows, goes on.
    let mut talk = Talk::ready(Kind::Inbound);
    talk.raw(b"MAIL FROM:<a@x>\r\nRCPT TO:<no@y>\r\nDATA\r\n");
    assert!(!talk.closed);
    // Everything at once is fine when it is accepted.
    let mut talk = Talk::ready(Kind::Inbound);
    let said = talk.raw(b"RSET\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n");
    assert_eq!(
        said.lines().map(|line| &line[..3]).collect::<Vec<_>>(),
        ["250", "250", "250", "354", "250", "221"]
    );
}

#[test]
fn long_lines_and_bad_bytes() {
    let mut talk = Talk::ready(Kind::Inbound);
    talk.table(&[(&format!("NOOP {}", "x".repeat(3000)), "500 5.5.2"), ("NOOP \0", "500 5.5.2")]);
    assert_eq!(talk.raw(b"NOOP\n"), "250 2.0.0 Ok\r\n");
    assert!(talk.raw(b"DATA\n").starts_with("500 5.5.2"));
    assert!(talk.raw(b"NOOP\rQUIT\r\n").starts_with("500 5.5.2"));
    let (mut talk, _) = Talk::new(Kind::Submission, true);
    talk.say("EHLO me");
    assert!(talk.say("AUTH PLAIN").starts_with("334"));
    assert!(talk.say(&"A".repeat(12_000)).starts_with("535"));
    assert!(talk.say("AUTH PLAIN").starts_with("334"));
    assert!(talk.say(&"A".repeat(13_000)).starts_with("500 5.5.6"));
    assert!(talk.say("GET / HTTP/1.1").starts_with("421") && talk.closed);
}

#[test]
fn lmtp_answers_each_recipient() {
    let strict = Config { bare_newline: BareNewline::Reject, ..config(Kind::Lmtp) };
    let (mut talk, _) = Talk::with(strict, false);
    talk.table(&[
        ("EHLO me", "500 5.5.1"),
        ("LHLO me", "250-"),
        ("MAIL FROM:<>", "250"),
        ("DATA", "503 5.5.1"),
    ]);
    talk.table(&[
        ("RCPT TO:<a@y>", "250"),
        ("RCPT TO:<no@y>", "550"),
        ("RCPT TO:<b@y>", "250"),
        ("DATA", "354"),
    ]);
    assert_eq!(talk.raw(b"hi\r\n.\r\n"), "250 2.0.0 ok <a@y>\r\n250 2.0.0 ok <b@y>\r\n");
    talk.table(&[
        ("MAIL FROM:<>", "250"),
        ("RCPT TO:<a@y>", "250"),
        ("RCPT TO:<b@y>", "250"),
        ("DATA", "354"),
    ]);
    let refused = "550 5.5.2 Message contains a bare LF; lines must end with CRLF\r\n";
    assert_eq!(talk.raw(b"hi\n\r\n.\r\n"), refused.repeat(2));
}

#[test]
fn a_missing_lmtp_result_is_a_failure() {
    let now = Instant::now();
    let mut session = Session::new(Arc::new(config(Kind::Lmtp)), false, now);
    session.feed(b"LHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@y>\r\nRCPT TO:<b@y>\r\nDATA\r\n.\r\n", now);
    let mut last = Vec::new();
    while let Some(step) = session.next() {
        match step {
            Step::Reply(bytes) => last = bytes,
            Step::Message => {
                session.resume(Outcome::Each(vec![Reply::new(250, Status(2, 0, 0), "one")]), now);
            }
            Step::Mail(_) | Step::Rcpt(ForwardPath::Mailbox(_)) | Step::Data => {
                session.resume(Outcome::Accept, now);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        String::from_utf8(last).unwrap(),
        "250 2.0.0 one\r\n451 4.3.0 No result for this recipient\r\n"
    );
}

#[test]
fn deadlines_and_stopping() {
    let start = Instant::now();
    let (talk, _) = Talk::new(Kind::Inbound, false);
    assert!(talk.session.deadline() >= start + Duration::from_secs(299));
    // Half a command does not buy time.
    let mut talk = Talk::ready(Kind::Inbound);
    let before = talk.session.deadline();
    talk.now += Duration::from_secs(200);
    talk.raw(b"NO");
    assert_eq!(talk.session.deadline(), before);
    talk.raw(b"OP\r\n");
    assert!(talk.session.deadline() > before);
    talk.session.expire();
    assert_eq!(talk.raw(b""), "421 4.4.2 Timeout\r\n");
    assert!(talk.closed);
    // A submission client must log in within a fixed time, whatever it chats about.
    let (mut talk, _) = Talk::new(Kind::Submission, true);
    let login_by = talk.session.deadline();
    talk.now += Duration::from_secs(250);
    talk.say("EHLO me");
    assert_eq!(talk.session.deadline(), login_by);
    talk.say("AUTH PLAIN AHUAcA==");
    assert!(talk.session.deadline() > login_by);
    // A message must not drip for ever.
    let mut talk = Talk::ready(Kind::Inbound);
    talk.raw(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n");
    for _ in 0..40 {
        talk.now += Duration::from_secs(100);
        talk.raw(b"x");
    }
    assert!(talk.session.deadline() < talk.now);
    talk.session.expire();
    assert_eq!(talk.raw(b""), "421 4.4.2 Timeout\r\n");
    assert_eq!(talk.delivered, ["RESET"]);
    // Stopping waits for the end of a message and says 421 at the boundary.
    let mut talk = Talk::ready(Kind::Inbound);
    talk.raw(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n");
    talk.session.stop();
    assert_eq!(talk.raw(b"hi\r\n"), "");
    assert_eq!(talk.raw(b".\r\n"), "250 2.0.0 Ok\r\n421 4.3.2 Service shutting down\r\n");
    let mut talk = Talk::ready(Kind::Inbound);
    talk.session.stop();
    assert_eq!(talk.raw(b""), "421 4.3.2 Service shutting down\r\n");
}

#[test]
fn protocol_names() {
    for (kind, secured, hello, mail, name) in [
        (Kind::Inbound, false, "HELO a", "", "SMTP"),
        (Kind::Inbound, true, "HELO a", "", "SMTP"),
        (Kind::Inbound, false, "EHLO a", "", "ESMTP"),
        (Kind::Inbound, true, "EHLO a", "", "ESMTPS"),
        (Kind::Inbound, true, "EHLO a", " SMTPUTF8", "UTF8SMTPS"),
        (Kind::Lmtp, false, "LHLO a", "", "LMTP"),
        (Kind::Lmtp, true, "LHLO a", " SMTPUTF8", "UTF8LMTPS"),
    ] {
        let (mut talk, _) = Talk::new(kind, secured);
        talk.say(hello);
        talk.say(&format!("MAIL FROM:<>{mail}"));
        assert_eq!(talk.session.protocol(), name);
    }
}

#[test]
fn an_answer_that_does_not_fit_ends_the_session() {
    let now = Instant::now();
    let mut session = Session::new(Arc::new(config(Kind::Inbound)), false, now);
    session.resume(Outcome::Accept, now);
    let steps: Vec<_> = std::iter::from_fn(|| session.next()).collect();
    assert!(
        matches!(steps.as_slice(), [Step::Reply(bytes), Step::Close] if bytes.ends_with(b"421 4.3.0 Internal error\r\n"))
    );
}

/// Pieces of dialogue a hostile client would try, mixed with plain noise.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "EHLO a\r\n",
        "LHLO a\r\n",
        "HELO a\n",
        "MAIL FROM:<a@x>\r\n",
        "MAIL FROM:<>",
        " SMTPUTF8",
        "RCPT TO:<b@y>\r\n",
        "RCPT TO:<no@y>\r\n",
        "DATA\r\n",
        "DATA\n",
        ".\r\n",
        "\r\n.\r\n",
        "\n.\n",
        "\r.\r",
        "..",
        "STARTTLS\r\n",
        "AUTH PLAIN\r\n",
        "AUTH PLAIN AHUAcA==\r\n",
        "AUTH LOGIN =\r\n",
        "*\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "QUIT\r\n",
        "=\r\n",
        "\"",
        "<@a:b@c>",
        "\0",
        "\r",
        "\n",
        "é",
        "[IPv6:",
        "GET / HTTP\r\n",
    ])
    .prop_map(|text| text.as_bytes().to_vec());
    let piece =
        prop_oneof![4 => words, 1 => prop::collection::vec(any::<u8>(), 0..40), 1 => Just(vec![b'A'; 5000])];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any bytes in any split: no panic, bounded output, bounded memory, and the split changes nothing.
    #[test]
    fn any_bytes_in_any_split(bytes in noise(), cuts in prop::collection::vec(1_usize..50, 1..20), kind in 0_u8..3, secured: bool) {
        let kind = match kind { 0 => Kind::Inbound, 1 => Kind::Submission, _ => Kind::Lmtp };
        let (mut split, _) = Talk::new(kind, secured);
        let mut said = String::new();
        let mut rest = &bytes[..];
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            said += &split.raw(piece);
            prop_assert!(split.session.input.len() <= 12_288 + 50);
            rest = tail;
        }
        prop_assert!(said.len() <= 400 * (bytes.len() + 4));
        for line in said.lines() {
            prop_assert!(line.len() <= 510 && line.as_bytes()[..3].iter().all(u8::is_ascii_digit), "{line}");
        }
        // STARTTLS and refused DATA look at what is behind them, so only without those must the whole match the parts.
        let (mut whole, _) = Talk::new(kind, secured);
        let at_once = whole.raw(&bytes);
        if !at_once.contains("554 ") && !said.contains("554 ") && !at_once.contains("503 ") && !said.contains("220 ") {
            prop_assert_eq!(at_once, said);
            prop_assert_eq!(whole.delivered, split.delivered);
        }
    }
}
