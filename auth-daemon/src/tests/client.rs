//! The client protocol: what Postfix, Exim, chasquid, Prosody and Dovecot's login send, and what strangers do.

use std::time::{Duration, Instant};

use super::harness::{Client, Harness, PATIENCE, encode};

const BAD: &str = "reason=Invalid user name or password";

#[tokio::test(flavor = "multi_thread")]
async fn the_greeting_needs_no_word_of_the_client() {
    let harness = Harness::new().await;
    let mut client = harness.connect("client").await;
    client.read_greeting().await;
    let mut kinds: Vec<&str> = client.greeting.iter().filter_map(|line| line.split('|').next()).collect();
    kinds.dedup();
    assert_eq!(kinds, ["VERSION", "MECH", "SPID", "CUID", "COOKIE", "DONE"]);
    assert_eq!(client.greeting.first().unwrap(), "VERSION|1|2");
    let mechanisms: Vec<&String> = client.greeting.iter().filter(|line| line.starts_with("MECH")).collect();
    assert_eq!(
        mechanisms,
        [
            "MECH|PLAIN|plaintext",
            "MECH|LOGIN|plaintext",
            "MECH|CRAM-MD5|dictionary|active",
            "MECH|SCRAM-SHA-256|mutual-auth",
            "MECH|ANONYMOUS|anonymous"
        ]
    );
    let mut other = harness.connect("client").await;
    other.read_greeting().await;
    assert_ne!(client.greeted("COOKIE"), other.greeted("COOKIE"));
    assert_ne!(client.greeted("CUID"), other.greeted("CUID"));
}

/// One transcript each; the client's minor is given.
#[tokio::test(flavor = "multi_thread")]
async fn dialogues() {
    let harness = Harness::new().await;
    let host = "@mail.example.test";
    let ok = format!("OK|1|user=bob{host}|original_user=bob");
    let cases = [
        // Postfix and Exim: minor 0, `nologin`, no ports, `resp=` always there.
        (0, format!("C: AUTH|1|PLAIN|service=smtp|nologin|lip=127.0.0.1|rip=192.0.2.1|secured|resp=b64(^bob^pw)\nS: {ok}")),
        (0, format!("C: AUTH|1|PLAIN|service=smtp|nologin|resp=\nS: CONT|1|\nC: CONT|1|b64(^bob^pw)\nS: {ok}")),
        (0, format!("C: AUTH|1|plain|service=smtp\nS: CONT|1|\nC: CONT|1|b64(^bob^pw)\nS: {ok}")),
        (0, format!("C: AUTH|1|LOGIN|service=smtp|resp=\nS: CONT|1|VXNlcm5hbWU6\nC: CONT|1|b64(bob)\nS: CONT|1|UGFzc3dvcmQ6\nC: CONT|1|b64(pw)\nS: {ok}")),
        (1, format!("C: AUTH|1|LOGIN|service=smtp|resp=b64(bob)\nS: CONT|1|UGFzc3dvcmQ6\nC: CONT|1|b64(pw)\nS: {ok}")),
        (2, format!("C: AUTH|1|LOGIN|service=smtp|resp=\nS: CONT|1|VXNlcm5hbWU6\nC: CONT|1|b64(bob)\nS: CONT|1|UGFzc3dvcmQ6\nC: CONT|1|b64(no)\nS: FAIL|1|user=bob{host}|{BAD}")),
        // chasquid sends the name twice; `protocol=` is newer Dovecot.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|secured|no-penalty|nologin|resp=b64(bob^bob^pw)\nS: {ok}")),
        (4, format!("C: AUTH|1|PLAIN|protocol=imap|session=x|resp=b64(^bob^pw)\nS: {ok}")),
        // A proxy's fields come back, and mean nothing else.
        (2, format!("C: AUTH|1|PLAIN|service=imap|forward_fields=a=b\u{1}tallow_nets=10.0.0.0/8|resp=b64(^bob^pw)\nS: OK|1|user=bob{host}|forward_a=b|forward_allow_nets=10.0.0.0/8|original_user=bob")),
        // Prosody writes `=` for nothing.
        (1, "C: AUTH|1|PLAIN|service=xmpp|resp==\nS: FAIL|1|reason=Invalid user name or password".to_owned()),
        (2, format!("C: AUTH|1|PLAIN|service=smtp|resp=\nS: FAIL|1|{BAD}")),
        // Case and domain of names; a name in another domain.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^BOB^pw)\nS: OK|1|user=bob{host}|original_user=BOB")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^bob{host}^pw)\nS: OK|1|user=bob{host}")),
        (1, "C: AUTH|1|PLAIN|service=smtp|resp=b64(^carol@other.test^summersun)\nS: OK|1|user=carol@other.test".to_owned()),
        // Fields: expanded, user database's stay inside, flags get a value.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^alice^secret)\nS: OK|1|user=alice{host}|nothing=%|note=for-alice|original_user=alice")),
        // All failures look alike.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^bob^no)\nS: FAIL|1|user=bob{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^nobody^no)\nS: FAIL|1|user=nobody{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^locked^pw)\nS: FAIL|1|user=locked{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^bomb^summersun)\nS: FAIL|1|user=bomb{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(alice^bob^pw)\nS: FAIL|1|user=bob{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^al\"ice^pw)\nS: FAIL|1|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^^pw)\nS: FAIL|1|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(bob)\nS: FAIL|1|{BAD}")),
        // Disabled and expired are told only after the right password.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^gone^no)\nS: FAIL|1|user=gone{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^gone^pw)\nS: FAIL|1|user=gone{host}|code=user_disabled|user_disabled|reason=Account is disabled")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^later^pw)\nS: OK|1|user=later{host}|original_user=later")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^away^pw)\nS: FAIL|1|user=away{host}|code=user_disabled|user_disabled|reason=Moved")),
        // Addresses.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|rip=192.0.2.9|resp=b64(^nets^pw)\nS: OK|1|user=nets{host}|original_user=nets")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|rip=198.51.100.9|resp=b64(^nets^pw)\nS: FAIL|1|user=nets{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^nets^pw)\nS: FAIL|1|user=nets{host}|{BAD}")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^nets-local^pw)\nS: OK|1|user=nets-local{host}|original_user=nets-local")),
        // Entries that rename, need no password, or have no verdict.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^renamed^pw)\nS: OK|1|user=bob{host}|original_user=renamed")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^open^anything)\nS: OK|1|user=open{host}|original_user=open")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^collect^pw)\nS: FAIL|1|user=collect{host}|code=temp_fail|temp|reason=Temporary authentication failure")),
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=b64(^badfield^pw)\nS: FAIL|1|user=badfield{host}|code=temp_fail|temp|reason=Temporary authentication failure")),
        // Broken requests touch nothing else.
        (1, format!("C: AUTH|1|PLAIN|service=smtp|resp=!!!!\nS: FAIL|1|code=invalid_base64|reason=Invalid base64 data in initial response\nC: AUTH|2|NTLM|service=smtp\nS: FAIL|2|reason=Unsupported authentication mechanism\nC: AUTH|1|PLAIN|service=smtp|resp=b64(^bob^pw)\nS: {ok}")),
        (1, "C: AUTH|1|ANONYMOUS|service=smtp|resp=b64(me)\nS: OK|1|user=anonymous|anonymous=yes".to_owned()),
    ];
    for (minor, transcript) in cases {
        let mut client = harness.client("client", minor).await;
        client.play(&transcript).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_hashes_are_checked_and_cached_and_a_changed_file_counts_at_once() {
    let harness = Harness::new().await;
    for user in ["crypted", "argon"] {
        for _ in 0..2 {
            assert!(harness.plain(user, "summersun", "").await.starts_with("OK|1|"), "{user}");
            assert!(harness.plain(user, "wrong", "").await.starts_with("FAIL|1|"), "{user}");
        }
    }
    let stats = harness.daemon.ask(&serde_json::json!({"ask": "cache-stats"})).await.unwrap();
    assert_eq!((&stats["hits"], &stats["positive"], &stats["negative"]), (&4.into(), &2.into(), &2.into()));
    std::fs::write(harness.path("users"), "crypted:{PLAIN}new\nargon:{PLAIN}new\n").unwrap();
    // Files are looked at once in some milliseconds.
    let changed = async {
        while !harness.plain("crypted", "new", "").await.starts_with("OK") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.expect("the change counts");
    for user in ["crypted", "argon"] {
        assert!(harness.plain(user, "summersun", "").await.starts_with("FAIL"), "{user}");
        assert!(harness.plain(user, "new", "").await.starts_with("OK"), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_leave_out_of_order_and_refusals_wait() {
    let harness = Harness::with(|slice| slice.auth.failure_delay = Duration::from_millis(300)).await;
    let mut client = harness.client("client", 1).await;
    let line = |id: u32, password: &str| {
        format!("AUTH|{id}|PLAIN|service=smtp|resp={}\n", encode(&format!("^bob^{password}")))
    };
    let began = Instant::now();
    client.send(&[line(1, "no"), line(2, "pw"), line(3, "no"), line(4, "pw")].concat()).await;
    let first = client.lines(2).await;
    assert!(began.elapsed() < Duration::from_millis(250));
    let last = client.lines(2).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    let ids = |lines: &[String]| -> Vec<String> {
        let mut ids: Vec<String> =
            lines.iter().map(|line| line.split('|').take(2).collect::<Vec<_>>().join(" ")).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&first), ["OK 2", "OK 4"]);
    assert_eq!(ids(&last), ["FAIL 1", "FAIL 3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_in_one_write() {
    let harness = Harness::new().await;
    let mut client = harness.client("client", 1).await;
    let mut all = String::new();
    for id in 1..=500_u32 {
        let (user, password) = match id % 4 {
            0 => ("crypted", "summersun"),
            1 => ("bob", "pw"),
            2 => ("bob", "no"),
            _ => ("argon", "summersun"),
        };
        all += &format!("AUTH|{id}|PLAIN|service=smtp|resp={}\n", encode(&format!("^{user}^{password}")));
    }
    client.send(&all).await;
    let mut seen = std::collections::HashSet::new();
    for line in client.lines(500).await {
        let mut parts = line.split('|');
        let (word, id): (&str, u32) = (parts.next().unwrap(), parts.next().unwrap().parse().unwrap());
        assert_eq!(word, if id % 4 == 2 { "FAIL" } else { "OK" }, "{line}");
        assert!(seen.insert(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_and_cancelled_exchanges() {
    let harness = Harness::new().await;
    let mut client = harness.client("client", 4).await;
    client
        .play(
            "C: AUTH|1|LOGIN|service=smtp
             S: CONT|1|VXNlcm5hbWU6
             C: AUTH|2|LOGIN|service=smtp|resp=b64(alice)
             S: CONT|2|UGFzc3dvcmQ6
             C: CONT|1|b64(bob)
             S: CONT|1|UGFzc3dvcmQ6
             C: CONT|2|b64(pw)
             S: FAIL|2|user=alice@mail.example.test|reason=Invalid user name or password
             C: CONT|1|b64(pw)
             S: OK|1|user=bob@mail.example.test|original_user=bob
             C: AUTH|3|LOGIN|service=smtp
             S: CONT|3|VXNlcm5hbWU6
             C: CANCEL|3
             S: CANCELLED|3
             C: AUTH|3|PLAIN|service=smtp|resp=b64(^bob^pw)
             S: OK|3|user=bob@mail.example.test|original_user=bob
             C: CONT|77|
             S: FAIL|77|reason=Authentication request timed out",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_one_segment_before_anything_is_read() {
    let harness = Harness::new().await;
    let mut client = harness.connect("client").await;
    let response = encode("^bob^pw");
    client.send(&format!("VERSION|1|0\nCPID|9\nAUTH|1|PLAIN|service=smtp|resp={response}\n")).await;
    client.read_greeting().await;
    assert!(client.line().await.starts_with("OK|1|user=bob@"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_lines() {
    let harness = Harness::new().await;
    let good = format!("AUTH\t9\tPLAIN\tservice=smtp\tresp={}\n", encode("^bob^pw"));
    // Input with an open exchange, so that no mistake may close the connection; answer to the bad line.
    let cases: [(Vec<u8>, &str); 4] = [
        (
            [b"AUTH\t2\tPLAIN\tservice=smtp\tresp=".to_vec(), vec![b'A'; 20_000], b"\n".to_vec()].concat(),
            "FAIL|2|",
        ),
        (b"AUTH\t2\tPLAIN\tservice=smtp\tresp=AAAA\tnologin\n".to_vec(), "FAIL|2|"),
        (b"AUTH\t2\tPLAIN\tresp=AAAA\n".to_vec(), "FAIL|2|"),
        (b"AUTH\t2\tPLAIN\tservice=a\0b\tresp=AAAA\n".to_vec(), "FAIL|2|"),
    ];
    for (input, answer) in cases {
        let mut client = harness.client("client", 1).await;
        client.play("C: AUTH|1|LOGIN|service=smtp\nS: CONT|1|VXNlcm5hbWU6").await;
        client.send_raw(&input).await;
        assert!(client.line().await.starts_with(answer));
        client.send_raw(good.as_bytes()).await;
        assert!(client.line().await.starts_with("OK|9|"));
    }
    for garbage in [b"GET / HTTP/1.0\r\n\r\n".as_slice(), b"\n", b"VERSION\t2\t0\n", &[b'x'; 70_000]] {
        let mut client = harness.connect("client").await;
        client.read_greeting().await;
        // The daemon may close before it has read all of it.
        let _ = tokio::io::AsyncWriteExt::write_all(client.stream.get_mut(), garbage).await;
        assert!(client.is_closed().await);
    }
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_and_passwords() {
    let harness = Harness::with(|slice| slice.auth.username_chars = String::new()).await;
    for user in [
        "../../etc/passwd",
        "%{home}",
        "%u",
        "bob\n",
        "bob\tx",
        "a\u{1}b",
        &"x".repeat(4000),
        "bob:",
        "@",
        "*",
    ] {
        let answer = harness.plain(user, "pw", "").await;
        assert!(answer.starts_with("FAIL|1|") && answer.contains("Invalid user"), "{user:?}: {answer}");
    }
    for password in ["p\tw", "pw\n", "pw\r", "\u{1}pw", &"x".repeat(8000)] {
        assert!(harness.plain("bob", password, "").await.starts_with("FAIL|1|"));
    }
}

/// SCRAM by hand would repeat the sasl crate's tests; what matters here is what the daemon adds.
#[tokio::test(flavor = "multi_thread")]
async fn cram_md5_and_scram_through_the_daemon() {
    let harness = Harness::new().await;
    for (user, password, good) in [("bob", "pw", true), ("bob", "no", false), ("nobody", "pw", false)] {
        for final_ok in ["", "|final-resp-ok"] {
            let mut client = harness.client("client", 2).await;
            let got = scram(&mut client, user, password, final_ok).await;
            assert_eq!(got.starts_with("OK|1|user=bob@"), good, "{user} {password}: {got}");
            assert!(good || got.starts_with(&format!("FAIL|1|user={user}@")), "{got}");
        }
        let mut client = harness.client("client", 2).await;
        client.send("AUTH|1|CRAM-MD5|service=imap\n").await;
        let challenge = client.line().await;
        let challenge = challenge.strip_prefix("CONT|1|").unwrap();
        let digest = cram(challenge, password);
        client.send(&format!("CONT|1|{}\n", encode(&format!("{user} {digest}")))).await;
        assert_eq!(client.line().await.starts_with("OK|1|"), good);
    }
}

pub(crate) fn cram(challenge: &str, password: &str) -> String {
    use base64::Engine as _;
    use hmac::{KeyInit as _, Mac as _};
    let challenge = base64::engine::general_purpose::STANDARD.decode(challenge).unwrap();
    let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(password.as_bytes()).unwrap();
    mac.update(&challenge);
    mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

/// A whole SCRAM-SHA-256 exchange; gives the last line.
async fn scram(client: &mut Client, user: &str, password: &str, params: &str) -> String {
    use base64::Engine as _;
    use hmac::{KeyInit as _, Mac as _};
    use sha2::Digest as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let mac = |key: &[u8], data: &[u8]| -> Vec<u8> {
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
        mac.update(data);
        mac.finalize().into_bytes().to_vec()
    };
    let bare = format!("n={user},r=abcdef");
    let first = encode(&format!("n,,{bare}"));
    client.send(&format!("AUTH|1|SCRAM-SHA-256|service=imap{params}|resp={first}\n")).await;
    let line = client.line().await;
    let server_first = base64.decode(line.strip_prefix("CONT|1|").unwrap()).unwrap();
    let server_first = String::from_utf8(server_first).unwrap();
    let mut parts = server_first.split(',').map(|part| part.split_at(2).1);
    let (nonce, salt) = (parts.next().unwrap(), base64.decode(parts.next().unwrap()).unwrap());
    let mut salted = mac(password.as_bytes(), &[&salt[..], &[0, 0, 0, 1]].concat());
    let mut round = salted.clone();
    for _ in 1..parts.next().unwrap().parse::<u32>().unwrap() {
        round = mac(password.as_bytes(), &round);
        salted.iter_mut().zip(&round).for_each(|(sum, byte)| *sum ^= byte);
    }
    let without_proof = format!("c=biws,r={nonce}");
    let message = format!("{bare},{server_first},{without_proof}");
    let key = mac(&salted, b"Client Key");
    let signature = mac(&sha2::Sha256::digest(&key), message.as_bytes());
    let proof: Vec<u8> = key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    let last = encode(&format!("{without_proof},p={}", base64.encode(proof)));
    client.send(&format!("CONT|1|{last}\n")).await;
    let verifier =
        base64.encode(format!("v={}", base64.encode(mac(&mac(&salted, b"Server Key"), message.as_bytes()))));
    let line = client.line().await;
    if params.contains("final-resp-ok") || line.starts_with("FAIL") {
        assert!(line.starts_with("FAIL") || line.ends_with(&format!("resp={verifier}")), "{line}");
        return line;
    }
    assert_eq!(line, format!("CONT|1|{verifier}"));
    client.send("CONT|1|\n").await;
    client.line().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_answered_once_whatever_comes_while_its_refusal_waits() {
    let harness = Harness::with(|slice| slice.auth.failure_delay = Duration::from_millis(300)).await;
    let mut client = harness.client("client", 2).await;
    let login = |id: u32, password: &str| {
        format!("AUTH|{id}|PLAIN|service=smtp|resp={}\n", encode(&format!("^bob^{password}")))
    };
    client.send(&format!("{}CONT|1|AAAA\nCONT|1|\n{}", login(1, "no"), login(2, "pw"))).await;
    let mut lines = client.lines(2).await;
    lines.sort();
    assert!(lines[0].starts_with("FAIL|1|") && lines[1].starts_with("OK|2|"), "{lines:?}");
    client.send(&login(1, "pw")).await;
    assert!(client.line().await.starts_with("OK|1|"));
    // A cancelled one may still be answered, but never after its id has a new owner.
    client.send(&format!("{}CANCEL|3\n{}", login(3, "no"), login(4, "pw"))).await;
    assert!(client.line().await.starts_with("OK|4|"));
    client.send(&login(3, "pw")).await;
    let line = client.line().await;
    assert!(line.starts_with("OK|3|"), "{line}");
    // Refusals come in the order of their requests: behind this one nothing of the cancelled one can come.
    client.send(&login(5, "no")).await;
    let line = client.line().await;
    assert!(line.starts_with("FAIL|5|"), "{line}");
}
