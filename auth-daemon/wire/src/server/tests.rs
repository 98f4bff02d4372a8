//! Dialogues: bytes in, steps and bytes out.

use proptest::prelude::*;

use super::*;
use crate::{Field, MechName, Params, Secured};

fn config(kind: Kind) -> Config {
    let mechanisms = ["PLAIN", "LOGIN", "SCRAM-SHA-256"].map(|name| Mechanism::known(name).unwrap());
    Config::new(kind, 2, mechanisms.to_vec()).unwrap()
}

fn identity() -> Identity {
    Identity { spid: 1234, cuid: 5, cookie: Cookie::from_bytes([0xAB; 16]) }
}

struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn with(config: Config) -> Self {
        let mut session = Session::new(Arc::new(config), &identity());
        session.wrote(usize::MAX);
        Self { session, now: Instant::now() }
    }

    fn new() -> Self {
        Self::with(config(Kind::Client))
    }

    fn hello(minor: u32) -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.say(format!("VERSION\t1\t{minor}\nCPID\t9\n").as_bytes()), ["pid 9"]);
        bench
    }

    /// Feeds bytes and describes the steps.
    fn say(&mut self, bytes: &[u8]) -> Vec<String> {
        self.session.feed(bytes);
        self.steps().iter().map(describe).collect()
    }

    fn steps(&mut self) -> Vec<Step> {
        std::iter::from_fn(|| self.session.next(self.now)).collect()
    }

    fn start(&mut self, line: &str) -> AuthRequest {
        self.session.feed(line.as_bytes());
        match self.session.next(self.now) {
            Some(Step::Start(request)) => request,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn ok(&mut self, ticket: Ticket) -> Sent {
        self.session.reply(ticket, Reply::Ok { user: "u", fields: &[], final_data: None }, self.now)
    }

    fn challenge(&mut self, ticket: Ticket) -> Sent {
        self.session.reply(ticket, Reply::Challenge { data: b"c", channel_binding: None }, self.now)
    }

    fn output(&mut self) -> String {
        let text = String::from_utf8(self.session.output().to_vec()).unwrap();
        self.session.wrote(text.len());
        text
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::ClientPid(pid) => format!("pid {pid}"),
        Step::Start(request) => format!(
            "start {} {} {} {}",
            request.ticket.id(),
            request.mechanism.name,
            request.service,
            request
                .initial
                .as_ref()
                .map_or("none".to_owned(), |data| String::from_utf8_lossy(data).replace('\0', "|"))
        ),
        Step::Refused(request) => {
            let mechanism = request.mechanism.map_or_else(|| "-".to_owned(), |name| name.to_string());
            format!("refused {mechanism} {}: {}", request.service, request.reason)
        }
        Step::Continue { ticket, data, .. } => {
            format!("cont {} {}", ticket.id(), String::from_utf8_lossy(data))
        }
        Step::Cancel { ticket, cause } => format!("cancel {} {cause:?}", ticket.id()),
        Step::Release(id) => format!("release {id}"),
        Step::Close(reason) => format!("close {reason:?}"),
    }
}

#[test]
fn greeting_is_one_small_buffer_in_the_order_clients_need() {
    let session = Session::new(Arc::new(config(Kind::Client)), &identity());
    assert_eq!(
        String::from_utf8(session.output().to_vec()).unwrap(),
        "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nMECH\tSCRAM-SHA-256\tmutual-auth\n\
         SPID\t1234\nCUID\t5\nCOOKIE\tabababababababababababababababab\nDONE\n"
    );
    assert_eq!(Config::new(Kind::Client, 2, vec![]).err(), Some(Error::NoMechanisms));
    let many = vec![Mechanism::known("DIGEST-MD5").unwrap(); 25];
    assert_eq!(Config::new(Kind::Client, 2, many).err(), Some(Error::GreetingTooLong));
}

#[test]
fn real_clients() {
    // Postfix, Exim (one write, `resp=` empty), Prosody (`=`), chasquid, Dovecot's login.
    for (bytes, expected) in [
        (
            b"VERSION\t1\t0\nCPID\t77\nAUTH\t2\tplain\tservice=smtp\tnologin\tlip=\trip=\tsecured\tresp=AGEAYg==\n".as_slice(),
            vec!["pid 77", "start 2 PLAIN smtp |a|b"],
        ),
        (
            b"VERSION\t1\t0\nCPID\t77\nAUTH\t1\tLOGIN\tservice=smtp\trip=192.0.2.1\tlip=192.0.2.2\tnologin\tresp=\n",
            vec!["pid 77", "start 1 LOGIN smtp none"],
        ),
        (
            b"VERSION\t1\t1\nCPID\t94287000000000\nAUTH\t1\tPLAIN\tservice=xmpp\tresp==\n",
            vec!["start 1 PLAIN xmpp "],
        ),
        (b"AUTH\t1\tPLAIN\tprotocol=imap\tresp=AGEAYg==\nCPID\t3\nVERSION\t1\t2\n", vec![
            "start 1 PLAIN imap |a|b",
            "pid 3",
        ]),
        (b"VERSION\t1\t99\r\nCPID\t1\r\nAUTH\t4294967295\tPLAIN\tservice=x\r\n", vec![
            "pid 1",
            "start 4294967295 PLAIN x none",
        ]),
    ] {
        for piece in [1, 3, bytes.len()] {
            let mut bench = Bench::new();
            let mut steps = Vec::new();
            for part in bytes.chunks(piece) {
                steps.extend(bench.say(part));
            }
            assert_eq!(steps, expected);
            assert_eq!(bench.output(), "");
        }
    }
}

#[test]
fn initial_response_depends_on_the_minor_version() {
    for (minor, field, expected) in [
        (0, "", "none"),
        (1, "\tresp=", "none"),
        (2, "\tresp=", ""),
        (0, "\tresp==", ""),
        (2, "\tresp==", ""),
        (2, "\tresp", ""),
        (1, "\tresp= YQ== ", "a"),
    ] {
        let mut bench = Bench::hello(minor);
        let steps = bench.say(format!("AUTH\t1\tPLAIN\tservice=x{field}\n").as_bytes());
        assert_eq!(steps, [format!("start 1 PLAIN x {expected}")], "minor {minor} {field}");
    }
}

#[test]
fn bad_requests_fail_alone() {
    let long = format!("AUTH\t9\tPLAIN\tservice=x\tresp={}\n", "A".repeat(20_000));
    for (line, answer) in [
        ("AUTH\t9\tNOSUCH\tservice=x\n", "FAIL\t9\treason=Unsupported authentication mechanism\n"),
        ("AUTH\t9\tBAD MECH\tservice=x\n", "FAIL\t9\treason=Unsupported authentication mechanism\n"),
        ("AUTH\t9\n", "FAIL\t9\treason=Unsupported authentication mechanism\n"),
        ("AUTH\t9\tPLAIN\n", "FAIL\t9\treason=Missing service name\n"),
        (
            "AUTH\t9\tPLAIN\tservice=x\tresp=AGEAYg==\tsecured\n",
            "FAIL\t9\treason=Invalid request: resp must be the last parameter\n",
        ),
        (
            "AUTH\t9\tPLAIN\tservice=x\tresp=AGEAYg\n",
            "FAIL\t9\tcode=invalid_base64\treason=Invalid base64 data in initial response\n",
        ),
        ("AUTH\t9\tPLAIN\tservice=x\0\tresp=AGEAYg==\n", "FAIL\t9\treason=Invalid request\n"),
        ("CONT\t9\tAA==\n", "FAIL\t9\treason=Authentication request timed out\n"),
        (&long, "FAIL\t9\treason=Request is too long\n"),
        ("AUTH\t0\tPLAIN\tservice=x\n", ""),
        ("AUTH\t4294967296\tPLAIN\tservice=x\n", ""),
        ("AUTH\t\tPLAIN\tservice=x\n", ""),
        ("NONSENSE\n", ""),
        ("\n", ""),
        ("CPID\t12\n", ""),
        ("CANCEL\tx\n", ""),
    ] {
        let mut bench = Bench::hello(1);
        let other = bench.start("AUTH\t1\tPLAIN\tservice=x\n").ticket;
        let steps = bench.say(line.as_bytes());
        // What can be told of a request is told to the driver with the words of the answer.
        let told = steps.first().and_then(|step| step.strip_prefix("refused ")?.split_once(": "));
        assert!(steps.is_empty() || answer.ends_with(&format!("reason={}\n", told.unwrap().1)), "{steps:?}");
        assert_eq!(bench.output(), answer, "{line:.40}");
        assert_eq!(bench.ok(other), Sent::Delivered);
        assert_eq!(bench.output(), "OK\t1\tuser=u\n");
        assert_eq!(bench.say(b"AUTH\t2\tPLAIN\tservice=x\n"), ["start 2 PLAIN x none"]);
    }
}

#[test]
fn what_cannot_be_begun_is_told_with_all_that_was_read() {
    let mut bench = Bench::hello(2);
    bench.session.feed(b"AUTH\t1\tntlm\tservice=smtp\trip=192.0.2.1\tresp=AAAA\n");
    let Some(Step::Refused(request)) = bench.session.next(bench.now) else { panic!() };
    assert_eq!(request.mechanism, MechName::parse(b"NTLM").ok());
    assert_eq!((request.service.as_str(), request.params.rip), ("smtp", "192.0.2.1".parse().ok()));
    for (line, expected) in [
        ("AUTH\t1\tBAD MECH\tservice=x\n", "refused - x: Unsupported authentication mechanism"),
        ("AUTH\t1\tPLAIN\trip=::1\n", "refused PLAIN : Missing service name"),
        ("AUTH\t1\tPLAIN\tservice=x\tresp=!\n", "refused PLAIN x: Invalid base64 data in initial response"),
    ] {
        assert_eq!(bench.say(line.as_bytes()), [expected]);
    }
    // Dovecot takes an empty service for one.
    assert_eq!(bench.say(b"AUTH\t1\tPLAIN\tservice=\n"), ["start 1 PLAIN  none"]);
}

#[test]
fn non_utf8_names_nothing_by_accident() {
    let mut bench = Bench::hello(2);
    assert_eq!(bench.say(b"AUTH\t1\tPLAIN\tservice=\xff\n"), ["refused PLAIN : Invalid service name"]);
    assert_eq!(bench.output(), "FAIL\t1\treason=Invalid service name\n");
}

#[test]
fn garbage_without_requests_closes() {
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n".as_slice(), "close Garbage"),
        (b"\n", "close Garbage"),
        (b"AUTH\t0\tPLAIN\tservice=x\n", "close Garbage"),
        (b"VERSION\t2\t0\n", "close Version"),
        (b"VERSION\t1\n", "close Version"),
        (b"VERSION\t1\tx\n", "close Version"),
        (&[b'A'; 70_000], "close Flood"),
    ] {
        let mut bench = Bench::new();
        assert_eq!(bench.say(bytes), [reason]);
        assert!(bench.say(b"AUTH\t1\tPLAIN\tservice=x\n").is_empty(), "nothing follows a close");
    }
    let mut bench = Bench::with(config(Kind::Login));
    assert_eq!(bench.say(b"VERSION\t1\t2\nCPID\t0\n"), ["close ClientPid"]);
    let mut bench = Bench::hello(2);
    bench.start("AUTH\t1\tPLAIN\tservice=x\n");
    assert_eq!(bench.say(&b"?\n".repeat(50)), ["close Garbage"], "bad lines are capped");
}

#[test]
fn five_hundred_pipelined_answered_backwards() {
    let mut bench = Bench::hello(2);
    let mut text = String::new();
    for id in 1..=500 {
        text.push_str(&format!("AUTH\t{id}\tPLAIN\tservice=x\tresp=AGEAYg==\n"));
    }
    bench.session.feed(text.as_bytes());
    let tickets: Vec<_> = bench
        .steps()
        .into_iter()
        .map(|step| match step {
            Step::Start(request) => request.ticket,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((tickets.len(), bench.session.verifying()), (500, 500));
    for ticket in tickets.iter().rev() {
        assert_eq!(bench.ok(*ticket), Sent::Delivered);
        assert_eq!(bench.ok(*ticket), Sent::Stale, "one answer per id");
    }
    assert_eq!(bench.session.open(), 0);
    let ids: Vec<u32> =
        bench.output().lines().map(|l| l.split('\t').nth(1).unwrap().parse().unwrap()).collect();
    assert!(ids.iter().copied().eq((1..=500).rev()));
}

#[test]
fn exchanges_interleave() {
    let mut bench = Bench::hello(2);
    let one = bench.start("AUTH\t1\tLOGIN\tservice=x\n").ticket;
    let two = bench.start("AUTH\t2\tLOGIN\tservice=x\n").ticket;
    bench.challenge(two);
    bench.challenge(one);
    assert_eq!(bench.session.verifying(), 0);
    assert_eq!(bench.say(b"CONT\t1\tYQ==\nCONT\t2\tYg==\n"), ["cont 1 a", "cont 2 b"]);
    bench.challenge(one);
    bench.ok(two);
    assert_eq!(bench.say(b"CONT\t1\t\nCONT\t2\t\n"), ["cont 1 "], "a finished id is not answered twice");
    bench.ok(one);
    assert_eq!(bench.output(), "CONT\t2\tYw==\nCONT\t1\tYw==\nCONT\t1\tYw==\nOK\t2\tuser=u\nOK\t1\tuser=u\n");
}

#[test]
fn continuations_out_of_place() {
    // While the lookup runs: the request ends, its late verdict is dropped.
    let mut bench = Bench::hello(2);
    let ticket = bench.start("AUTH\t1\tPLAIN\tservice=x\tresp=AGEAYg==\n").ticket;
    assert_eq!(bench.say(b"CONT\t1\tAA==\n"), ["cancel 1 Malformed"]);
    assert_eq!(bench.ok(ticket), Sent::Stale);
    assert_eq!(bench.output(), "FAIL\t1\treason=Unexpected continuation\n");
    // Unknown ids get one FAIL, however often they are named.
    assert!(bench.say(b"CONT\t77\tAA==\nCONT\t77\tAA==\n").is_empty());
    assert_eq!(bench.output(), "FAIL\t77\treason=Authentication request timed out\n");
    for (minor, line, good) in [
        (2, "CONT\t2\t=\n", true),
        (2, "CONT\t2\n", false),
        (2, "CONT\t2\tYQ\n", false),
        (2, "CONT\t2\tYQ==\tchannel_binding=YQ==\n", false),
        (3, "CONT\t2\tYQ==\tchannel_binding=YQ==\n", true),
        (3, "CONT\t2\t#\tchannel_binding=YQ==\n", true),
        (3, "CONT\t2\tYQ==\tchannel_binding=Y\n", false),
        (2, "CONT\t2\t#\n", false),
    ] {
        let mut bench = Bench::hello(minor);
        let ticket = bench.start("AUTH\t2\tLOGIN\tservice=x\n").ticket;
        bench.challenge(ticket);
        bench.output();
        bench.session.feed(line.as_bytes());
        match bench.session.next(bench.now) {
            Some(Step::Continue { channel_binding, .. }) => {
                assert!(good, "{line}");
                assert_eq!(channel_binding.is_some(), line.contains("channel_binding"));
            }
            Some(Step::Cancel { cause: CancelCause::Malformed, .. }) => {
                assert!(!good, "{line}");
                assert_eq!(
                    bench.output(),
                    "FAIL\t2\tcode=invalid_base64\treason=Invalid base64 data in continued response\n"
                );
            }
            other => panic!("{line} {other:?}"),
        }
    }
}

#[test]
fn cancel_frees_the_id_and_late_verdicts_do_not_reach_its_new_owner() {
    for (minor, confirmation) in [(2, ""), (4, "CANCELLED\t1\nCANCELLED\t8\n")] {
        let mut bench = Bench::hello(minor);
        let old = bench.start("AUTH\t1\tPLAIN\tservice=x\tresp=AGEAYg==\n").ticket;
        assert_eq!(bench.say(b"CANCEL\t1\nCANCEL\t8\n"), ["cancel 1 Client", "release 8"]);
        assert_eq!(bench.output(), confirmation);
        let new = bench.start("AUTH\t1\tPLAIN\tservice=x\tresp=AGUAYg==\n").ticket;
        assert_eq!(bench.ok(old), Sent::Stale);
        assert_eq!(bench.output(), "");
        assert_eq!(bench.ok(new), Sent::Delivered);
    }
}

#[test]
fn a_duplicate_id_ends_both_with_one_fail() {
    let mut bench = Bench::hello(2);
    let one = bench.start("AUTH\t1\tPLAIN\tservice=x\n").ticket;
    let two = bench.start("AUTH\t2\tPLAIN\tservice=x\n").ticket;
    assert_eq!(bench.say(b"AUTH\t1\tPLAIN\tservice=x\n"), ["cancel 1 Duplicate"]);
    assert_eq!((bench.ok(one), bench.ok(two)), (Sent::Stale, Sent::Delivered));
    assert_eq!(bench.output(), "FAIL\t1\treason=Request id is already in use\nOK\t2\tuser=u\n");
}

#[test]
fn silent_clients_are_forgotten_and_full_tables_evict_them() {
    let mut settings = config(Kind::Client);
    settings.max_open = 3;
    let mut bench = Bench::with(settings);
    assert_eq!(bench.session.deadline(), None);
    let one = bench.start("AUTH\t1\tLOGIN\tservice=x\n").ticket;
    bench.challenge(one);
    bench.now += Duration::from_secs(10);
    let two = bench.start("AUTH\t2\tLOGIN\tservice=x\n").ticket;
    bench.challenge(two);
    let three = bench.start("AUTH\t3\tPLAIN\tservice=x\n").ticket;
    assert_eq!(bench.say(b"AUTH\t4\tPLAIN\tservice=x\n"), ["cancel 1 Evicted", "start 4 PLAIN x none"]);
    assert_eq!(bench.say(b"AUTH\t5\tPLAIN\tservice=x\n"), ["cancel 2 Evicted", "start 5 PLAIN x none"]);
    bench.output();
    assert!(bench.say(b"AUTH\t6\tPLAIN\tservice=x\n").is_empty());
    assert_eq!(bench.output(), "FAIL\t6\tcode=temp_fail\ttemp\treason=Too many requests\n");
    bench.challenge(three);
    bench.output();
    bench.now += IDLE_EXCHANGE - Duration::from_secs(1);
    assert!(bench.steps().is_empty());
    bench.now += Duration::from_secs(1);
    assert!(bench.session.deadline().is_some_and(|due| due <= bench.now));
    assert_eq!(bench.steps().iter().map(describe).collect::<Vec<_>>(), ["cancel 3 Idle"]);
    assert_eq!(bench.output(), "", "nobody waits for an answer");
    assert!(bench.say(b"CONT\t3\tAA==\n").is_empty());
    assert_eq!(bench.output(), "FAIL\t3\treason=Authentication request timed out\n");
}

#[test]
fn a_reader_that_does_not_read_stops_the_session() {
    let mut bench = Bench::hello(2);
    let line = "CONT\t1\tAA==\nAUTH\t1\tNOSUCH\tservice=x\n";
    let mut fed = 0;
    while bench.session.output().len() <= OUTPUT_HIGH_WATER {
        bench.say(line.repeat(100).as_bytes());
        fed += 1;
        assert!(fed < 10_000);
    }
    let before = bench.session.output().len();
    assert!(bench.say(line.as_bytes()).is_empty());
    assert_eq!(bench.session.output().len(), before);
    bench.session.wrote(before);
    assert!(!bench.steps().is_empty());
    assert!(!bench.session.output().is_empty());
}

#[test]
fn both_ends_understand_each_other() {
    let mut bench = Bench::hello(4);
    let mut client = crate::client::Client::new(4, 9);
    client.feed(Session::new(Arc::new(config(Kind::Login)), &identity()).output());
    assert!(matches!(client.next(), Ok(Some(crate::client::Event::Ready))));
    client.wrote(usize::MAX);
    let params = Params {
        service: Some("imap".into()),
        session: Some("a\tb".into()),
        rip: Some("2001:db8::1".parse().unwrap()),
        rport: Some(4000),
        secured: Some(Secured::Tls),
        final_resp_ok: true,
        extra: vec![Field::new("x", "y=z"), Field::flag("word")],
        ..Params::default()
    };
    let scram = MechName::parse(b"SCRAM-SHA-256").unwrap();
    let id = client.start(scram, &params, Some(b"n,,n=a,r=b")).unwrap();
    bench.session.feed(client.output());
    client.wrote(usize::MAX);
    let Some(Step::Start(request)) = bench.session.next(bench.now) else { panic!() };
    assert_eq!((request.ticket.id(), request.initial.as_deref()), (id, Some(b"n,,n=a,r=b".as_slice())));
    assert_eq!(*request.params, params);
    bench.challenge(request.ticket);
    client.feed(bench.output().as_bytes());
    assert!(matches!(client.next(), Ok(Some(crate::client::Event::Challenge { data, .. })) if data == b"c"));
    client.respond(id, b"answer", None).unwrap();
    assert_eq!(bench.say(client.output()), ["cont 1 answer"]);
    let reply = Reply::Fail {
        user: Some("a"),
        code: Some(FailCode::PassExpired),
        reason: Some("Password expired"),
        fields: &[],
    };
    bench.session.reply(request.ticket, reply, bench.now);
    client.feed(bench.output().as_bytes());
    let Ok(Some(crate::client::Event::Fail(failure))) = client.next() else { panic!() };
    assert_eq!(
        (failure.code, failure.reason.as_deref()),
        (Some(FailCode::PassExpired), Some("Password expired"))
    );
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![Just("1"), Just("2"), Just("0"), Just("x"), Just("4294967295"), Just("")];
    let rest = prop_oneof![
        Just("PLAIN\tservice=x\tresp=AGEAYg=="),
        Just("LOGIN\tservice=x"),
        Just("YQ=="),
        Just(""),
        Just("="),
        Just("1"),
        Just("PLAIN\tresp=AA==\tx")
    ];
    let command =
        prop_oneof![Just("AUTH"), Just("CONT"), Just("CANCEL"), Just("VERSION"), Just("CPID"), Just("")];
    prop_oneof![
        8 => (command, id, rest).prop_map(|(c, i, r)| format!("{c}\t{i}\t{r}\n").into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    /// Whatever is said and answered: every id gets at most one final answer per time it was opened, nothing panics.
    #[test]
    fn one_answer_per_request(lines in proptest::collection::vec((any_line(), 0u8..6), 1..60)) {
        let mut bench = Bench::hello(2);
        let mut open: Vec<Ticket> = Vec::new();
        let mut started = std::collections::HashMap::<u32, u32>::new();
        let mut text = String::new();
        for (line, answer) in lines {
            bench.session.feed(&line);
            for step in bench.steps() {
                match step {
                    Step::Start(request) => {
                        *started.entry(request.ticket.id()).or_default() += 1;
                        open.push(request.ticket);
                    }
                    Step::Cancel { ticket, .. } => {
                        prop_assert!(open.contains(&ticket));
                        prop_assert_eq!(bench.ok(ticket), Sent::Stale);
                        open.retain(|other| *other != ticket);
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(bench.session.open() <= open.len(), true);
            if let Some(ticket) = open.last().copied() {
                match answer {
                    0 => { bench.challenge(ticket); }
                    1 if bench.ok(ticket) == Sent::Delivered => { open.pop(); }
                    _ => {}
                }
            }
            text.push_str(&String::from_utf8_lossy(bench.session.output()));
            bench.session.wrote(usize::MAX);
        }
        for (id, times) in started {
            let oks = text.lines().filter(|l| l.split('\t').take(2).eq(["OK", &id.to_string()])).count();
            prop_assert!(oks <= times as usize);
        }
    }

    #[test]
    fn any_bytes(parts: Vec<Vec<u8>>) {
        let mut bench = Bench::new();
        for part in parts {
            bench.session.feed(&part);
            bench.steps();
        }
    }
}
