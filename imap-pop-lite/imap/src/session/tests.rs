//! Dialogues: what the client sends, what comes out.

use super::*;

fn config() -> Arc<Config> {
    Arc::new(Config {
        hostname: "mail.example".into(),
        limits: Limits { append: 1000, ..Limits::default() },
        mechanisms: vec!["PLAIN".into(), "LOGIN".into(), "SCRAM-SHA-256".into()],
        login_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(1800),
        separator: '.',
    })
}

/// A driver that logs `user`/`pass` in and answers every command with OK, noting what happened.
struct Peer {
    session: Session,
    now: Instant,
    out: String,
    seen: Vec<String>,
}

impl Peer {
    fn new(tls: TlsState) -> Self {
        let now = Instant::now();
        let mut peer =
            Self { session: Session::new(config(), tls, now), now, out: String::new(), seen: Vec::new() };
        peer.run();
        peer.out.clear();
        peer
    }

    fn logged_in() -> Self {
        let mut peer = Self::new(TlsState::Active);
        assert!(peer.say("l LOGIN user pass\r\n").starts_with("l OK [CAPABILITY "));
        peer.seen.clear();
        peer
    }

    fn say(&mut self, text: &str) -> String {
        self.say_bytes(text.as_bytes())
    }

    fn say_bytes(&mut self, bytes: &[u8]) -> String {
        self.session.feed(bytes, self.now);
        self.run();
        std::mem::take(&mut self.out)
    }

    fn run(&mut self) {
        while let Some(step) = self.session.next() {
            let answer = match step {
                Step::Send(bytes) => {
                    self.out.push_str(&String::from_utf8(bytes).unwrap());
                    continue;
                }
                Step::Authenticate { mechanism, initial } => match (mechanism.as_str(), initial) {
                    ("PLAIN", None) => Outcome::Challenge(Vec::new()),
                    ("SCRAM-SHA-256", _) => Outcome::Challenge(b"r=".to_vec()),
                    (_, Some(response)) => verdict(&response),
                    _ => Outcome::Challenge(b"User".to_vec()),
                },
                Step::Respond(response) if response.expose() == b"c=" => {
                    Outcome::LoggedIn(Some(b"v=".to_vec()))
                }
                Step::Respond(response) => verdict(&response),
                Step::Append(head) => {
                    self.seen.push(format!("append {} {}", head.mailbox.as_str(), head.size));
                    if head.mailbox.as_str() == "full" {
                        Outcome::Done(Completion::no("Full").code(Code::OverQuota))
                    } else {
                        Outcome::AppendAccepted
                    }
                }
                Step::AppendChunk(chunk) => {
                    self.seen.push(format!("chunk {}", String::from_utf8_lossy(&chunk)));
                    continue;
                }
                Step::Run(_, command) => {
                    self.seen.push(format!("{command:?}"));
                    let done = Completion::ok("done");
                    match command {
                        Command::Select { .. } => Outcome::Done(done.then(Transition::Selected)),
                        Command::Unselect => Outcome::Done(done.then(Transition::Unselected)),
                        _ => Outcome::Done(done),
                    }
                }
                Step::AppendEnd | Step::IdleDone => {
                    self.seen.push(format!("{step:?}"));
                    Outcome::Done(Completion::ok("done"))
                }
                step => {
                    self.seen.push(format!("{step:?}"));
                    continue;
                }
            };
            self.session.resume(answer, self.now);
        }
    }
}

/// One session logs in, another one goes on.
#[test]
fn handed_over_sessions_lose_nothing() {
    for login in ["a LOGIN user pass\r\n", "a AUTHENTICATE SCRAM-SHA-256 eA==\r\nYz0=\r\n\r\n"] {
        let mut front = Peer::new(TlsState::Active);
        front.session.hand_over_logins();
        let said = front.say(&format!("{login}b NOOP\r\nc SEL"));
        assert!(!said.contains("OK"), "{said}");
        assert_eq!(front.seen, ["HandOver(Tag(\"a\"))"]);
        assert!(!front.session.wants_input() && !front.session.is_logged_in());
        front.say("ECT");
        let ahead = front.session.take_input();
        assert_eq!(ahead, b"b NOOP\r\nc SELECT");
        let tag = Tag::new(b"a").unwrap();
        let session = Session::logged_in_elsewhere(config(), &tag, front.now);
        let mut host = Peer { session, now: front.now, out: String::new(), seen: Vec::new() };
        let said = host.say_bytes(&ahead);
        assert!(said.starts_with("a OK [CAPABILITY IMAP4rev1 ") && said.contains(" NAMESPACE "), "{said}");
        assert!(said.ends_with("] Logged in\r\nb OK done\r\n"), "{said}");
        assert!(host.say(" x\r\n").starts_with("c OK "));
    }
    // Who cannot go on is told so, and may try again.
    let mut front = Peer::new(TlsState::Active);
    front.session.hand_over_logins();
    assert_eq!(front.say("a LOGIN user pass\r\nb NOOP\r\n"), "");
    let failure = LoginFailure { code: LoginFailureCode::Unavailable, text: String::new() };
    front.session.resume(Outcome::LoginFailed(failure), front.now);
    front.run();
    assert_eq!(
        std::mem::take(&mut front.out),
        "a NO [UNAVAILABLE] Temporary authentication failure.\r\nb OK NOOP completed\r\n"
    );
}

fn verdict(response: &Secret) -> Outcome {
    if response.expose() == b"\0user\0pass" {
        Outcome::LoggedIn(None)
    } else {
        let code = match response.expose() {
            b"\0user\0down" => LoginFailureCode::Unavailable,
            b"\0user\0old" => LoginFailureCode::Expired,
            _ => LoginFailureCode::Credentials,
        };
        Outcome::LoginFailed(LoginFailure { code, text: String::new() })
    }
}

#[test]
fn greeting_and_capabilities() {
    let now = Instant::now();
    for (tls, want) in [
        (TlsState::Offered, " IDLE STARTTLS LOGINDISABLED] mail.example Postern ready.\r\n"),
        (TlsState::Active, " IDLE AUTH=PLAIN AUTH=LOGIN AUTH=SCRAM-SHA-256] mail.example Postern ready.\r\n"),
        (TlsState::Unavailable, " IDLE LOGINDISABLED] mail.example Postern ready.\r\n"),
    ] {
        let mut session = Session::new(config(), tls, now);
        let Some(Step::Send(bytes)) = session.next() else { panic!() };
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("* OK [CAPABILITY IMAP4rev1 ") && text.ends_with(want), "{text}");
        assert_eq!(session.next(), None);
    }
}

#[test]
fn nothing_is_checked_without_tls() {
    for tls in [TlsState::Offered, TlsState::Unavailable] {
        let mut peer = Peer::new(tls);
        assert!(peer.say("a LOGIN user pass\r\n").starts_with("a NO [PRIVACYREQUIRED] "));
        assert!(peer.say("b AUTHENTICATE PLAIN AHVzZXIAcGFzcw==\r\n").starts_with("b NO [PRIVACYREQUIRED] "));
        assert!(peer.say("c SELECT INBOX\r\n").starts_with("c BAD "));
        assert!(peer.seen.is_empty());
    }
}

#[test]
fn starttls_and_injection() {
    let mut peer = Peer::new(TlsState::Offered);
    assert_eq!(peer.say("a STARTTLS\r\n"), "a OK Begin TLS negotiation now.\r\n");
    assert_eq!(peer.seen, ["StartTls"]);
    peer.session.tls_established(peer.now);
    assert!(peer.say("b STARTTLS\r\n").starts_with("b BAD "));
    assert!(peer.say("c LOGIN user pass\r\n").starts_with("c OK [CAPABILITY IMAP4rev1 "));

    let mut peer = Peer::new(TlsState::Offered);
    let out = peer.say("a STARTTLS\r\nb LOGIN user pass\r\n");
    assert!(out.starts_with("a BAD ") && out.contains("* BYE "), "{out}");
    assert_eq!(peer.seen, ["Close"]);

    let mut peer = Peer::new(TlsState::Unavailable);
    assert!(peer.say("a STARTTLS\r\n").starts_with("a BAD "));
}

#[test]
fn logins() {
    for (say, want) in [
        (vec!["a LOGIN user pass\r\n"], "a OK [CAPABILITY "),
        (vec!["a LOGIN {4}\r\n", "user {4+}\r\npass\r\n"], "+ OK\r\na OK [CAPABILITY "),
        (vec!["a LOGIN user wrong\r\n"], "a NO [AUTHENTICATIONFAILED] "),
        (vec!["a LOGIN user old\r\n"], "a NO [EXPIRED] "),
        (vec!["a LOGIN user down\r\n"], "a NO [UNAVAILABLE] "),
        (vec!["a AUTHENTICATE PLAIN AHVzZXIAcGFzcw==\r\n"], "a OK "),
        (vec!["a AUTHENTICATE PLAIN\r\n", "AHVzZXIAcGFzcw==\r\n"], "+ \r\na OK "),
        (vec!["a AUTHENTICATE PLAIN\r\n", "*\r\n"], "+ \r\na BAD Authentication cancelled\r\n"),
        (vec!["a AUTHENTICATE PLAIN\r\n", "???\r\n"], "+ \r\na BAD Response is not base64\r\n"),
        (vec!["a AUTHENTICATE SCRAM-SHA-256\r\n", "Yz0=\r\n", "\r\n"], "+ cj0=\r\n+ dj0=\r\na OK "),
        (vec!["a AUTHENTICATE SCRAM-SHA-256 eA==\r\nYz0=\r\n\r\nb NOOP\r\n"], "+ cj0=\r\n+ dj0=\r\na OK "),
        (vec!["a AUTHENTICATE GSSAPI\r\n"], "a NO Unsupported"),
    ] {
        let mut peer = Peer::new(TlsState::Active);
        let out: String = say.iter().map(|line| peer.say(line)).collect();
        assert!(out.starts_with(want), "{say:?}: {out}");
    }
    let mut peer = Peer::logged_in();
    assert!(peer.say("x LOGIN user pass\r\n").starts_with("x BAD "));
    assert!(peer.say("y STARTTLS\r\n").starts_with("y BAD "));
}

#[test]
fn every_split_gives_the_same_dialogue() {
    let text = "a NOOP\r\nb LOGIN {4+}\r\nuser {4}\r\npass\r\nc SELECT INBOX\nd APPEND INBOX (\\Seen) {5+}\r\nhello\r\n\
                e IDLE\r\nDONE\r\nf FETCH 1 BODY[]\r\ng XX {3+}\r\nabc\r\nh LOGOUT\r\n";
    let whole = Peer::new(TlsState::Active).say(text);
    assert!(whole.ends_with("h OK Logout completed\r\n"), "{whole}");
    for size in 1..text.len() {
        let mut peer = Peer::new(TlsState::Active);
        let out: String = text.as_bytes().chunks(size).map(|chunk| peer.say_bytes(chunk)).collect();
        assert_eq!(out, whole, "chunks of {size}");
    }
}

#[test]
fn state_decides_what_is_allowed() {
    let mut peer = Peer::logged_in();
    for command in ["FETCH 1 FLAGS", "CLOSE", "EXPUNGE", "SEARCH ALL", "COPY 1 x", "CHECK", "UNSELECT"] {
        assert!(peer.say(&format!("a {command}\r\n")).starts_with("a BAD "), "{command}");
        peer.say("n NOOP\r\n");
    }
    assert_eq!(peer.say("b SELECT INBOX\r\n"), "b OK done\r\n");
    assert_eq!(peer.say("c FETCH 1 FLAGS\r\n"), "c OK done\r\n");
    assert_eq!(peer.say("d UNSELECT\r\n"), "d OK done\r\n");
    assert!(peer.say("e FETCH 1 FLAGS\r\n").starts_with("e BAD "));
    assert_eq!(peer.say("f ENABLE CONDSTORE\r\n"), "* ENABLED\r\nf OK Enabled\r\n");
    assert_eq!(
        peer.say("g NAMESPACE\r\n"),
        "* NAMESPACE ((\"\" \".\")) NIL NIL\r\ng OK Namespace completed\r\n"
    );
    assert_eq!(peer.say("h ID NIL\r\n"), "* ID (\"name\" \"Postern\")\r\nh OK ID completed\r\n");
}

#[test]
fn syntax_errors_are_tagged() {
    let mut peer = Peer::logged_in();
    for (say, want) in [
        ("a FROB\r\n", "a BAD Unknown command (at position 3)\r\n"),
        ("a FROB {5}\r\n", "a BAD Unknown command\r\n"),
        ("a SELECT x&\r\n", "a NO [CANNOT] Mailbox name is not valid mUTF-7\r\n"),
        ("* x\r\n", "* BAD Expected a tag (at position 1)\r\n"),
        ("\r\n", "* BAD Expected a tag (at position 1)\r\n"),
        ("a SELECT {999999}\r\n", "a BAD [TOOBIG] Literal too big\r\n"),
    ] {
        assert_eq!(peer.say(say), want, "{say}");
    }
    assert_eq!(
        peer.say("b SEARCH CHARSET x ALL\r\n"),
        "b NO [BADCHARSET (US-ASCII UTF-8)] Unknown charset (at position 18)\r\n"
    );
}

#[test]
fn bad_commands_end_the_session() {
    for (mut peer, most) in [(Peer::new(TlsState::Active), 10), (Peer::logged_in(), 20)] {
        for i in 1..=most {
            let out = peer.say("a FROB\r\n");
            assert_eq!(out.contains("* BYE"), i == most, "{i}");
        }
        assert_eq!(peer.say("a NOOP\r\n"), "");
    }
    let mut peer = Peer::new(TlsState::Active);
    for i in 1..=5 {
        assert_eq!(peer.say("a LOGIN user wrong\r\n").contains("* BYE"), i == 5);
    }
    let mut peer = Peer::new(TlsState::Active);
    for i in 1..=201 {
        assert_eq!(peer.say("a NOOP\r\n").contains("* BYE"), i == 201);
    }
}

#[test]
fn limits_before_and_after_login() {
    let long = "x".repeat(9000);
    assert!(Peer::new(TlsState::Active).say(&format!("a NOOP {long}")).starts_with("* BYE "));
    assert!(Peer::logged_in().say(&format!("a SUBSCRIBE {long}\r\n")).starts_with("a NO "));
    assert!(Peer::logged_in().say(&format!("a SUBSCRIBE {}", "x".repeat(70_000))).starts_with("* BYE "));
    assert_eq!(Peer::new(TlsState::Active).say("a LOGIN {1025}\r\n"), "a BAD [TOOBIG] Literal too big\r\n");
    assert_eq!(
        Peer::new(TlsState::Active)
            .say(&format!("a LOGIN {{1025+}}\r\n{} x\r\nb NOOP\r\n", "x".repeat(1025))),
        "a BAD [TOOBIG] Literal too big\r\nb OK NOOP completed\r\n"
    );
    assert!(Peer::new(TlsState::Active).say("a LOGIN {99999999+}\r\n").starts_with("* BYE [TOOBIG]"));
    assert!(Peer::new(TlsState::Active).say("a APPEND x {9}\r\n").starts_with("a BAD "));
    assert!(
        Peer::new(TlsState::Active)
            .say("a LOGIN {99999999999999999999999}\r\n")
            .starts_with("a BAD [TOOBIG]")
    );
}

#[test]
fn appends() {
    let mut peer = Peer::logged_in();
    assert_eq!(peer.say("a APPEND INBOX {5}\r\n"), "+ OK\r\n");
    assert_eq!(peer.say("he"), "");
    assert_eq!(peer.say("llo"), "");
    assert_eq!(peer.say("\r\n"), "a OK done\r\n");
    assert_eq!(peer.seen, ["append INBOX 5", "chunk he", "chunk llo", "AppendEnd"]);
    peer.seen.clear();
    for (say, want) in [
        ("a APPEND full {5}\r\nb NOOP\r\n", "a NO [OVERQUOTA] Full\r\nb OK done\r\n"),
        ("a APPEND full {5+}\r\nhello\r\nb NOOP\r\n", "a NO [OVERQUOTA] Full\r\nb OK done\r\n"),
        ("a APPEND x {1001}\r\nb NOOP\r\n", "a NO [TOOBIG] Message is too big\r\nb OK done\r\n"),
        ("a APPEND x {0}\r\n", "a NO [CANNOT] Can't save a zero byte message\r\n"),
        ("a APPEND x {0+}\r\n\r\n", "a NO [CANNOT] Can't save a zero byte message\r\n"),
        (
            "a APPEND x (\\Foo) {3+}\r\nabc\r\nb NOOP\r\n",
            "a BAD Expected a known flag (at position 13)\r\nb OK done\r\n",
        ),
        // More messages (RFC 3502) are not offered: nothing is kept.
        (
            "a APPEND x {3+}\r\nabc {2+}\r\nxx\r\nb NOOP\r\n",
            "a BAD Unexpected text after the message\r\nb OK done\r\n",
        ),
        ("a APPEND {1+}\r\nx {3+}\r\nabc\r\n", "a OK done\r\n"),
    ] {
        assert_eq!(peer.say(say), want, "{say}");
    }
    let big = format!("a APPEND x {{1500+}}\r\n{}\r\nb NOOP\r\n", "x".repeat(1500));
    assert_eq!(peer.say(&big), "a NO [TOOBIG] Message is too big\r\nb OK done\r\n");
    assert!(peer.say("a APPEND x {99999+}\r\n").starts_with("* BYE [TOOBIG]"));
}

#[test]
fn idling() {
    let mut peer = Peer::logged_in();
    assert_eq!(peer.say("a IDLE\r\n"), "+ idling\r\n");
    assert!(peer.session.is_idling());
    assert_eq!(peer.say("done\r\nb NOOP\r\n"), "a OK done\r\nb OK done\r\n");
    assert_eq!(peer.seen, ["Idle", "IdleDone", "Noop"]);
    assert_eq!(peer.say("c IDLE\r\nd NOOP\r\n"), "+ idling\r\nc BAD Expected DONE\r\n");

    assert_eq!(peer.say("e IDLE\r\n"), "+ idling\r\n");
    for _ in 0..40 {
        peer.now = peer.session.deadline().unwrap();
        peer.session.expire(peer.now);
        peer.run();
        assert_eq!(std::mem::take(&mut peer.out), "* OK Still here\r\n");
    }
    assert_eq!(peer.say("DONE\r\n"), "e OK done\r\n");
}

#[test]
fn timeouts() {
    let mut peer = Peer::new(TlsState::Active);
    peer.now += Duration::from_secs(50);
    peer.say("a NOOP\r\n");
    assert_eq!(peer.session.deadline(), Some(peer.session.started + Duration::from_secs(60)));
    peer.session.expire(peer.now);
    assert_eq!(peer.say(""), "");
    peer.now += Duration::from_secs(10);
    peer.session.expire(peer.now);
    assert!(peer.say("").starts_with("* BYE "));
    assert_eq!(peer.seen, ["Close"]);

    let mut peer = Peer::logged_in();
    peer.now += Duration::from_secs(1800);
    peer.session.expire(peer.now);
    assert_eq!(peer.say(""), "* BYE Disconnected for inactivity.\r\n");
    assert_eq!(peer.session.deadline(), None);
}

#[test]
fn nothing_stays_allocated_while_quiet() {
    let mut peer = Peer::logged_in();
    peer.say(&format!("a SEARCH SUBJECT {{50000+}}\r\n{}\r\n", "x".repeat(50_000)));
    peer.say("b IDLE\r\n");
    assert!(peer.session.input.is_empty());
    assert_eq!(peer.session.out.capacity(), 0);
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_bytes_in_any_split(
            raw in proptest::collection::vec(prop_oneof![
                4 => proptest::sample::select(vec![
                    &b"a1 "[..], b"LOGIN user pass", b"APPEND INBOX ", b"{3}", b"{5+}", b"{99999+}", b"\r\n", b"\r\n", b"IDLE",
                    b"DONE", b"FETCH 1 BODY[]", b"AUTHENTICATE PLAIN", b"STARTTLS", b"SELECT INBOX", b"*", b"x", b"LOGOUT",
                ]).prop_map(<[u8]>::to_vec),
                1 => proptest::collection::vec(any::<u8>(), 0..6),
            ], 0..40),
            size in 1usize..20,
            tls in proptest::sample::select(vec![TlsState::Active, TlsState::Offered]),
        ) {
            let raw = raw.concat();
            let run = |size: usize| {
                let now = Instant::now();
                let mut session = Session::new(config(), tls, now);
                let mut out = Vec::new();
                let mut drive = |session: &mut Session| {
                    while let Some(step) = session.next() {
                        let answer = match step {
                            Step::Send(bytes) => { out.extend_from_slice(&bytes); continue }
                            Step::Authenticate { .. } | Step::Respond(_) => Outcome::LoggedIn(None),
                            Step::Append(_) => Outcome::AppendAccepted,
                            Step::Run(_, Command::Select { .. }) => {
                                Outcome::Done(Completion::ok("x").then(Transition::Selected))
                            }
                            Step::Run(..) | Step::AppendEnd | Step::IdleDone => Outcome::Done(Completion::ok("x")),
                            Step::StartTls => { session.tls_established(now); continue }
                            _ => continue,
                        };
                        session.resume(answer, now);
                    }
                };
                drive(&mut session);
                for chunk in raw.chunks(size) {
                    session.feed(chunk, now);
                    drive(&mut session);
                }
                assert!(session.input_len() <= 200_000);
                out
            };
            let once = run(raw.len().max(1));
            // Text behind STARTTLS is seen as an injection only when it came along with it.
            if !raw.to_ascii_uppercase().windows(8).any(|w| w == b"STARTTLS") {
                assert_eq!(run(size), once);
            } else {
                run(size);
            }
        }
    }
}
