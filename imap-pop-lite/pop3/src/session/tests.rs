//! Dialogues: lines in, steps and lines out.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{Message, Uidl};

const MAILS: [&[u8]; 3] = [b"A: 1\n\nfirst\n", b"A: 2\r\n\r\n.second\r\n.\r\n", b"A: 3\n\nthird"];

struct Bench {
    session: Session,
    now: Instant,
    /// Steps other than Send, in words.
    steps: Vec<String>,
    broken: bool,
}

impl Bench {
    fn with(config: Config, tls: TlsState, apop: Option<&str>) -> Self {
        let now = Instant::now();
        let session = Session::new(Arc::new(config), tls, apop, now);
        Self { session, now, steps: Vec::new(), broken: false }
    }

    fn greeted(tls: TlsState) -> Self {
        let mut bench = Self::with(Config::new("mx"), tls, None);
        assert_eq!(bench.run(), "+OK mx Postern ready.\r\n");
        bench
    }

    fn logged_in() -> Self {
        let mut bench = Self::greeted(TlsState::Active);
        assert_eq!(bench.say("USER joe\r\nPASS good\r\n"), "+OK\r\n+OK Logged in.\r\n");
        bench.steps.clear();
        bench
    }

    fn say(&mut self, text: &str) -> String {
        self.session.feed(text.as_bytes(), self.now);
        self.run()
    }

    fn maildrop() -> Maildrop {
        let messages = MAILS.iter().zip(1..).map(|(file, uid)| {
            let mut octets = crate::Octets::default();
            octets.feed(file);
            Message { size: octets.total(), uidl: Uidl::from_uid(uid, 9) }
        });
        Maildrop::new(messages.collect())
    }

    /// Plays the driver until nothing is left to do.
    fn run(&mut self) -> String {
        let mut sent = Vec::new();
        while let Some(step) = self.session.next() {
            let outcome = match step {
                Step::Send(bytes) => {
                    sent.extend_from_slice(&bytes);
                    continue;
                }
                Step::Authenticate { mechanism, initial } => {
                    let text =
                        initial.map(|secret| String::from_utf8_lossy(secret.expose()).replace('\0', "|"));
                    self.steps.push(format!("auth {mechanism} {}", text.as_deref().unwrap_or("none")));
                    match text.as_deref() {
                        Some("|joe|good") => Outcome::LoggedIn(None),
                        Some("scram") => Outcome::LoggedIn(Some(b"v=1".to_vec())),
                        Some("|joe|busy") => Outcome::LoginFailed(LoginFailureCode::InUse.into()),
                        Some("|joe|down") => Outcome::LoginFailed(LoginFailureCode::Unavailable.into()),
                        None => Outcome::Challenge(b"Username:".to_vec()),
                        _ => Outcome::LoginFailed(LoginFailureCode::Credentials.into()),
                    }
                }
                Step::Respond(secret) => {
                    self.steps.push(format!("respond {}", String::from_utf8_lossy(secret.expose())));
                    match secret.expose() {
                        b"good" => Outcome::LoggedIn(None),
                        b"more" => Outcome::Challenge(Vec::new()),
                        _ => Outcome::LoginFailed(LoginFailureCode::Credentials.into()),
                    }
                }
                Step::Open => Outcome::Opened(Self::maildrop()),
                Step::Retrieve { index, lines } => {
                    self.steps.push(format!("retrieve {index} {lines:?}"));
                    if self.broken {
                        Outcome::Failed { code: Some(Code::SysTemp), text: "Gone.".into() }
                    } else {
                        self.session.resume(Outcome::Retrieving, self.now);
                        for piece in MAILS[index].chunks(3) {
                            if !self.session.message(piece) {
                                break;
                            }
                        }
                        self.session.message_end(self.now);
                        continue;
                    }
                }
                Step::Update { deleted } => {
                    self.steps.push(format!("update {deleted:?}"));
                    Outcome::Updated { complete: !self.broken }
                }
                Step::StartTls => {
                    self.steps.push("tls".into());
                    continue;
                }
                Step::CancelAuthentication => {
                    self.steps.push("cancel".into());
                    continue;
                }
                Step::Close => {
                    self.steps.push("close".into());
                    continue;
                }
            };
            self.session.resume(outcome, self.now);
        }
        String::from_utf8(sent).unwrap()
    }
}

#[test]
fn handed_over_sessions_lose_nothing() {
    let mut front = Bench::greeted(TlsState::Active);
    front.session.feed(b"USER joe\r\nPASS good\r\nSTAT\r\nRE", front.now);
    loop {
        match front.session.next().unwrap() {
            Step::Authenticate { .. } => front.session.resume(Outcome::LoggedIn(None), front.now),
            Step::Open => break,
            _ => {}
        }
    }
    front.session.feed(b"TR 1\r\n", front.now);
    let ahead = front.session.take_input();
    assert_eq!(ahead, b"STAT\r\nRETR 1\r\n");
    let session = Session::logged_in_elsewhere(Arc::new(Config::new("mx")), Bench::maildrop(), front.now);
    let mut host = Bench { session, now: front.now, steps: Vec::new(), broken: false };
    host.session.feed(&ahead, host.now);
    let said = host.run();
    assert!(said.starts_with("+OK Logged in.\r\n+OK 3 "), "{said}");
    assert_eq!(host.steps, ["retrieve 0 None"]);
}

#[test]
fn a_whole_session_in_one_packet() {
    let mut bench = Bench::greeted(TlsState::Active);
    let answer = bench.say(
        "USER joe\r\nPASS good\r\nSTAT\r\nLIST\r\nUIDL\r\nLIST 2\r\nUIDL 3\r\nRETR 2\r\nTOP 1 0\r\nDELE 1\r\nLIST\r\n\
         NOOP\r\nQUIT\r\nSTAT\r\n",
    );
    assert_eq!(
        answer,
        "+OK\r\n+OK Logged in.\r\n+OK 3 48\r\n+OK 3 messages (48 octets)\r\n1 15\r\n2 20\r\n3 13\r\n.\r\n\
         +OK\r\n1 0000000100000009\r\n2 0000000200000009\r\n3 0000000300000009\r\n.\r\n+OK 2 20\r\n\
         +OK 3 0000000300000009\r\n+OK 20 octets\r\nA: 2\r\n\r\n..second\r\n..\r\n.\r\n\
         +OK Top of message follows.\r\nA: 1\r\n\r\n.\r\n+OK Marked to be deleted.\r\n\
         +OK 2 messages (33 octets)\r\n2 20\r\n3 13\r\n.\r\n+OK\r\n+OK Logging out.\r\n"
    );
    assert_eq!(
        bench.steps,
        ["auth PLAIN |joe|good", "retrieve 1 None", "retrieve 0 Some(0)", "update [0]", "close"]
    );
}

#[test]
fn any_pieces_give_the_same_dialogue() {
    let text = "USER joe\r\nPASS good\r\nRETR 3\r\nDELE 2\r\nRSET\r\nQUIT\r\n";
    let mut whole = Bench::greeted(TlsState::Active);
    let expected = whole.say(text);
    assert!(expected.contains("+OK 13 octets\r\nA: 3\r\n\r\nthird\r\n.\r\n"), "{expected}");
    for piece in 1..text.len() {
        let mut bench = Bench::greeted(TlsState::Active);
        let mut answer = String::new();
        for part in text.as_bytes().chunks(piece) {
            answer.push_str(&bench.say(std::str::from_utf8(part).unwrap()));
        }
        assert_eq!((answer, bench.steps), (expected.clone(), whole.steps.clone()));
    }
}

#[test]
fn nothing_is_taken_without_tls() {
    for tls in [TlsState::Offered, TlsState::Unavailable] {
        let mut bench = Bench::greeted(tls);
        for line in
            ["USER joe", "PASS good", "AUTH PLAIN AGpvZQBnb29k", "APOP a c4c9334bac560ecc979e58001b3e22fb"]
        {
            assert_eq!(bench.say(&format!("{line}\r\n")), "-ERR [AUTH] Use TLS first.\r\n");
        }
        assert_eq!(bench.say("AUTH\r\n"), "+OK Mechanisms follow.\r\n.\r\n");
        let capabilities = bench.say("CAPA\r\n");
        assert!(!capabilities.contains("USER") && !capabilities.contains("SASL"));
        assert_eq!(capabilities.contains("STLS"), tls == TlsState::Offered);
        assert!(bench.steps.is_empty());
    }
}

#[test]
fn capabilities() {
    let mut bench = Bench::greeted(TlsState::Active);
    let expected = "+OK\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\nUSER\r\nSASL PLAIN LOGIN\r\n\
                    IMPLEMENTATION Postern\r\n.\r\n";
    assert_eq!(bench.say("capa\r\n"), expected);
    assert_eq!(bench.say("AUTH\r\n"), "+OK Mechanisms follow.\r\nPLAIN\r\nLOGIN\r\n.\r\n");
}

#[test]
fn stls() {
    let mut bench = Bench::greeted(TlsState::Offered);
    assert_eq!(bench.say("STLS\r\n"), "+OK Begin TLS.\r\n");
    assert!(!bench.session.wants_input());
    bench.session.tls_established(bench.now);
    assert!(bench.say("CAPA\r\n").contains("USER\r\n"));
    assert_eq!(bench.say("STLS\r\n"), "-ERR TLS is active.\r\n");
    assert_eq!(bench.say("USER joe\r\nPASS good\r\n"), "+OK\r\n+OK Logged in.\r\n");
    assert_eq!(bench.say("STLS\r\n"), "-ERR Not allowed after login.\r\n");

    for behind in ["USER joe\r\n", "x", "\r\n"] {
        let mut bench = Bench::greeted(TlsState::Offered);
        assert_eq!(bench.say(&format!("STLS\r\n{behind}")), "-ERR Nothing may follow STLS before TLS.\r\n");
        assert_eq!(bench.steps, ["close"]);
    }
    let mut bench = Bench::greeted(TlsState::Unavailable);
    assert_eq!(bench.say("STLS\r\n"), "-ERR TLS is not available.\r\n");
}

#[test]
fn sasl() {
    for (dialogue, answer, steps) in [
        ("AUTH PLAIN AGpvZQBnb29k\r\n", "+OK Logged in.\r\n", vec!["auth PLAIN |joe|good"]),
        (
            "AUTH LOGIN\r\nbW9yZQ==\r\nZ29vZA==\r\n",
            "+ VXNlcm5hbWU6\r\n+ \r\n+OK Logged in.\r\n",
            vec!["auth LOGIN none", "respond more", "respond good"],
        ),
        (
            "AUTH LOGIN\r\n*\r\nNOOP\r\n",
            "+ VXNlcm5hbWU6\r\n-ERR Authentication cancelled.\r\n-ERR Log in first.\r\n",
            vec!["auth LOGIN none", "cancel"],
        ),
        (
            "AUTH LOGIN\r\n???\r\n",
            "+ VXNlcm5hbWU6\r\n-ERR Invalid response.\r\n",
            vec!["auth LOGIN none", "cancel"],
        ),
        ("AUTH PLAIN c2NyYW0=\r\n\r\n", "+ dj0x\r\n+OK Logged in.\r\n", vec!["auth PLAIN scram"]),
        (
            "AUTH PLAIN c2NyYW0=\r\n*\r\n",
            "+ dj0x\r\n-ERR Authentication cancelled.\r\n",
            vec!["auth PLAIN scram", "cancel"],
        ),
        (
            "AUTH PLAIN c2NyYW0=\r\neA==\r\n",
            "+ dj0x\r\n-ERR Invalid response.\r\n",
            vec!["auth PLAIN scram", "cancel"],
        ),
        ("AUTH PLAIN =\r\n", "-ERR [AUTH] Authentication failed.\r\n", vec!["auth PLAIN "]),
        ("AUTH CRAM-MD5\r\n", "-ERR Unsupported mechanism.\r\n", vec![]),
        ("AUTH PLAIN x\r\n", "-ERR Invalid base64 data.\r\n", vec![]),
        (
            "USER joe\r\nPASS  a b \r\n",
            "+OK\r\n-ERR [AUTH] Authentication failed.\r\n",
            vec!["auth PLAIN |joe| a b "],
        ),
        (
            "USER joe\r\nPASS busy\r\n",
            "+OK\r\n-ERR [IN-USE] The mailbox is in use by another session.\r\n",
            vec!["auth PLAIN |joe|busy"],
        ),
        (
            "USER joe\r\nPASS down\r\n",
            "+OK\r\n-ERR [SYS/TEMP] Temporary authentication failure.\r\n",
            vec!["auth PLAIN |joe|down"],
        ),
        ("PASS good\r\n", "-ERR Send USER first.\r\n", vec![]),
        (
            "USER joe\r\nCAPA x\r\nNOOP\r\nPASS good\r\n",
            "+OK\r\n-ERR Invalid arguments.\r\n-ERR Log in first.\r\n-ERR Send USER first.\r\n",
            vec![],
        ),
    ] {
        let mut bench = Bench::greeted(TlsState::Active);
        assert_eq!(bench.say(dialogue), answer, "{dialogue}");
        assert_eq!(bench.steps, steps, "{dialogue}");
    }
}

#[test]
fn apop() {
    let digest = "c4c9334bac560ecc979e58001b3e22fb";
    let mut bench = Bench::with(Config::new("mx"), TlsState::Active, Some("<1.2.3@mx>"));
    assert_eq!(bench.run(), "+OK mx Postern ready. <1.2.3@mx>\r\n");
    bench.say(&format!("APOP joe {digest}\r\n"));
    assert!(bench.steps[0].starts_with("auth APOP <1.2.3@mx>|joe|"), "{:?}", bench.steps);
    let mut bench = Bench::greeted(TlsState::Active);
    assert_eq!(bench.say(&format!("APOP joe {digest}\r\n")), "-ERR APOP is not available.\r\n");
}

#[test]
fn messages_that_are_not_there() {
    let mut bench = Bench::logged_in();
    let none = "-ERR There is no such message.\r\n";
    for line in ["RETR 0", "RETR 4", "TOP 4 1", "DELE 4", "LIST 4", "UIDL 99999999999999"] {
        assert_eq!(bench.say(&format!("{line}\r\n")), none, "{line}");
    }
    assert_eq!(
        bench.say("DELE 2\r\nDELE 2\r\nRETR 2\r\n"),
        format!("+OK Marked to be deleted.\r\n{none}{none}")
    );
    assert_eq!(bench.say("STAT\r\nRSET\r\nSTAT\r\n"), "+OK 2 28\r\n+OK Marks removed.\r\n+OK 3 48\r\n");
    bench.broken = true;
    assert_eq!(bench.say("RETR 1\r\n"), "-ERR [SYS/TEMP] Gone.\r\n");
    assert_eq!(bench.say("QUIT\r\n"), "-ERR [SYS/TEMP] Some deleted messages were not removed.\r\n");
    assert_eq!(bench.steps.last().map(String::as_str), Some("close"));
}

#[test]
fn a_message_that_breaks_off_ends_the_connection() {
    let mut bench = Bench::logged_in();
    bench.session.feed(b"RETR 1\r\nNOOP\r\n", bench.now);
    assert!(matches!(bench.session.next(), Some(Step::Retrieve { .. })));
    assert!(!bench.session.wants_input());
    bench.session.resume(Outcome::Retrieving, bench.now);
    assert!(bench.session.message(b"A: 1\n"));
    bench.session.message_abort();
    assert_eq!(bench.run(), "+OK 15 octets\r\nA: 1\r\n");
    assert_eq!(bench.steps, ["close"]);
    // The same at shutdown: no reply inside a message.
    let mut bench = Bench::logged_in();
    bench.session.feed(b"RETR 1\r\n", bench.now);
    bench.session.next();
    bench.session.resume(Outcome::Retrieving, bench.now);
    bench.session.message(b"A: 1\n");
    bench.session.bye(Some(Code::SysTemp), "Shutting down.");
    assert_eq!(bench.run(), "+OK 15 octets\r\nA: 1\r\n");
}

#[test]
fn long_listings_come_in_pieces() {
    let mut bench = Bench::greeted(TlsState::Active);
    bench.session.feed(b"AUTH PLAIN AGpvZQBnb29k\r\nUIDL\r\n", bench.now);
    let mut sent = String::new();
    let mut pieces = 0;
    while let Some(step) = bench.session.next() {
        match step {
            Step::Send(bytes) => {
                assert!(bytes.len() < 2 * LISTING_PIECE);
                pieces += 1;
                sent.push_str(std::str::from_utf8(&bytes).unwrap());
            }
            Step::Authenticate { .. } => bench.session.resume(Outcome::LoggedIn(None), bench.now),
            Step::Open => {
                let messages = (1..=10_000).map(|uid| Message { size: 1, uidl: Uidl::from_uid(uid, 1) });
                bench.session.resume(Outcome::Opened(Maildrop::new(messages.collect())), bench.now);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(pieces > 10);
    assert_eq!(sent.lines().count(), 10_000 + 3);
    assert!(sent.ends_with("10000 0000271000000001\r\n.\r\n"));
}

#[test]
fn limits() {
    let mut bench = Bench::greeted(TlsState::Active);
    assert_eq!(bench.say(&format!("USER {}\r\n", "x".repeat(3000))), "-ERR Line too long.\r\n");
    assert_eq!(bench.say(&"x".repeat(70_000)), "-ERR Line too long.\r\n");
    assert_eq!(bench.steps, ["close"]);

    let mut bench = Bench::greeted(TlsState::Active);
    let answer = bench.say(&"FOO\r\n".repeat(50));
    assert_eq!(answer.lines().count(), 11);
    assert!(answer.ends_with("-ERR Too many invalid commands.\r\n"));
    assert_eq!(bench.steps, ["close"]);
    assert_eq!(bench.say("CAPA\r\n"), "");

    let mut bench = Bench::logged_in();
    assert_eq!(bench.say(&"FOO\r\n".repeat(19)).lines().count(), 19);
    assert_eq!(bench.say("NOOP\r\n"), "+OK\r\n", "a good command starts the count anew");
    assert_eq!(bench.say(&"FOO\r\n".repeat(50)).lines().count(), 21);

    let mut bench = Bench::greeted(TlsState::Active);
    assert!(bench.say(&"CAPA\r\n".repeat(101)).ends_with("-ERR Too many commands before login.\r\n"));

    let mut bench = Bench::greeted(TlsState::Active);
    let answer = bench.say(&"USER joe\r\nPASS bad\r\n".repeat(9));
    assert_eq!(answer.matches("[AUTH]").count(), 5);
    assert_eq!(bench.steps.last().map(String::as_str), Some("close"));

    let mut bench = Bench::greeted(TlsState::Active);
    let answer = bench.say(&format!("AUTH LOGIN\r\n{}\r\n", "A".repeat(20_000)));
    assert!(answer.ends_with("-ERR Authentication response too long.\r\n"));
}

#[test]
fn silence() {
    let mut bench = Bench::greeted(TlsState::Active);
    bench.now += Duration::from_secs(59);
    assert_eq!(bench.say("CAPA\r\nUSER joe\r\n").lines().next(), Some("+OK"));
    bench.session.expire(bench.now);
    assert_eq!(bench.run(), "");
    bench.now += Duration::from_secs(1);
    bench.session.expire(bench.now);
    assert_eq!(bench.run(), "-ERR Login took too long, closing.\r\n");
    assert_eq!((bench.steps.as_slice(), bench.session.deadline()), (["close".to_owned()].as_slice(), None));

    let mut bench = Bench::logged_in();
    bench.say("DELE 1\r\n");
    bench.now += Duration::from_secs(600);
    bench.session.expire(bench.now);
    assert_eq!(bench.run(), "", "no response");
    assert_eq!(bench.steps, ["close"], "and no update");
}

#[test]
fn replies_cannot_be_broken_by_their_text() {
    let mut bench = Bench::logged_in();
    bench.session.feed(b"RETR 1\r\n", bench.now);
    bench.session.next();
    let text = format!("a\r\n+OK b{}", "x".repeat(2000));
    bench.session.resume(Outcome::Failed { code: None, text }, bench.now);
    let answer = bench.run();
    assert!(answer.starts_with("-ERR a  +OK b") && answer.len() <= 512 && answer.lines().count() == 1);
}

#[test]
fn nothing_secret_is_printed() {
    let mut bench = Bench::greeted(TlsState::Active);
    bench.session.feed(b"USER joe\r\nPASS hunter2\r\nPASS hunter2", bench.now);
    let steps: Vec<_> = std::iter::from_fn(|| bench.session.next()).collect();
    assert!(!format!("{steps:?} {:?}", bench.session).contains("hunter2"));
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("USER joe\r\n".to_owned()),
        Just("PASS good\r\n".to_owned()),
        Just("AUTH LOGIN\r\n".to_owned()),
        Just("Z29vZA==\r\n".to_owned()),
        Just("*\r\n".to_owned()),
        Just("STLS\r\n".to_owned()),
        Just("RETR 1\r\n".to_owned()),
        Just("LIST\r\n".to_owned()),
        Just("DELE 1\r\n".to_owned()),
        Just("QUIT\r\n".to_owned()),
        "[ -~]{0,20}\n",
        "\\PC{0,8}",
    ]
}

proptest! {
    #[test]
    fn any_dialogue(lines in proptest::collection::vec(any_line(), 0..40), offered: bool) {
        let mut bench = Bench::greeted(if offered { TlsState::Offered } else { TlsState::Active });
        for line in lines {
            let answer = bench.say(&line);
            prop_assert!(answer.is_empty() || answer.ends_with("\r\n"));
            if bench.steps.last().is_some_and(|step| step == "tls") {
                bench.steps.push("done".into());
                bench.session.tls_established(bench.now);
            }
        }
        // Nothing is deleted but by QUIT, once.
        prop_assert!(bench.steps.iter().filter(|step| step.starts_with("update")).count() <= 1);
    }
}
