//! Outages, guessing, clients that vanish, reloads, workers.

use std::time::{Duration, Instant};

use conf::{OnOutage, PassdbDriver};

use super::harness::{Harness, bind, encode, passwd_file, threads};
use crate::worker::Workers;

async fn broken(on_outage: OnOutage) -> Harness {
    Harness::with(move |slice| {
        let path = slice.state_dir.join("folder-not-file");
        std::fs::create_dir(&path).unwrap();
        slice.auth.passdb = vec![passwd_file("broken", path.to_str().unwrap())];
        slice.auth.listener[0].on_outage = on_outage;
    })
    .await
}

/// What a client proves in a challenge mechanism differs each time; so each refusal is a guess.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_by_challenge_mechanisms_are_counted() {
    let harness = Harness::with(|slice| {
        slice.auth.penalty.enabled = true;
        slice.auth.penalty.max_delay = Duration::from_millis(1);
    })
    .await;
    let mut client = harness.client("client", 1).await;
    for id in 1..=6 {
        client.send(&format!("AUTH|{id}|CRAM-MD5|service=smtp|rip=192.0.2.9\n")).await;
        assert!(client.line().await.starts_with(&format!("CONT|{id}|")));
        let guess = encode(&format!("bob {id:032x}"));
        client.send(&format!("CONT|{id}|{guess}\n")).await;
        assert!(client.line().await.starts_with(&format!("FAIL|{id}|")));
    }
    let listed = harness.daemon.ask(&serde_json::json!({"ask": "penalty-list"})).await.unwrap();
    let count = listed["penalties"][0]["count"].as_f64().unwrap();
    assert!(count > 5.0, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_so_that_each_client_understands_it() {
    let fail =
        "S: FAIL|1|user=bob@mail.example.test|code=temp_fail|temp|reason=Temporary authentication failure";
    let auth = "C: AUTH|1|PLAIN|service=smtp|resp=b64(^bob^pw)";
    for (on_outage, minor, answer) in [
        (OnOutage::Auto, 0, "S: *"),
        (OnOutage::Auto, 1, fail),
        (OnOutage::Fail, 0, fail),
        (OnOutage::Close, 2, "S: *"),
    ] {
        let harness = broken(on_outage).await;
        let mut client = harness.client("client", minor).await;
        client.play(&format!("{auth}\n{answer}")).await;
    }
    // An exchange that only waits for its client does not keep an old client's connection open.
    let harness = broken(OnOutage::Auto).await;
    let mut client = harness.client("client", 0).await;
    client.play(&format!("C: AUTH|7|LOGIN|service=smtp\nS: CONT|7|VXNlcm5hbWU6\n{auth}\nS: *")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_slows_refusals_and_never_a_right_password() {
    let harness = Harness::with(|slice| {
        slice.auth.penalty.enabled = true;
        slice.auth.failure_delay = Duration::from_millis(1);
        slice.auth.penalty.max_delay = Duration::from_millis(700);
    })
    .await;
    let mut client = harness.client("client", 1).await;
    let line = |id: u32, password: &str| {
        let response = encode(&format!("^bob^{password}"));
        format!("AUTH|{id}|PLAIN|service=smtp|rip=192.0.2.1|resp={response}\n")
    };
    let began = Instant::now();
    let wrong: String = (1..=50).map(|id| line(id, &format!("guess{id}"))).collect();
    client.send(&format!("{wrong}{}", line(51, "pw"))).await;
    // The first refusals are quick, the right password overtakes all that are slowed.
    let mut refused = 0;
    while !client.line().await.starts_with("OK|51|") {
        refused += 1;
        assert!(refused < 25, "the right password waits behind the wrong ones");
    }
    assert!(client.lines(50 - refused).await.iter().all(|line| line.starts_with("FAIL|")));
    assert!(began.elapsed() >= Duration::from_millis(500));
    // Another address is not concerned.
    let began = Instant::now();
    assert!(harness.plain("bob", "no", "|rip=198.51.100.1").await.starts_with("FAIL"));
    assert!(began.elapsed() < Duration::from_millis(400));
    let listed = harness.daemon.ask(&serde_json::json!({"ask": "penalty-list"})).await.unwrap();
    assert!(listed["penalties"].as_array().unwrap().iter().any(|entry| entry["peer"] == "192.0.2.1"));
    harness.daemon.ask(&serde_json::json!({"ask": "penalty-clear"})).await.unwrap();
    let began = Instant::now();
    assert!(harness.plain("bob", "x", "|rip=192.0.2.1").await.starts_with("FAIL"));
    assert!(began.elapsed() < Duration::from_millis(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_leave_nothing_behind() {
    let harness = Harness::with(|slice| slice.auth.failure_delay = Duration::from_secs(3600)).await;
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    for round in 0..300 {
        let mut client = harness.connect(if round % 2 == 0 { "client" } else { "mux" }).await;
        let text = match round % 3 {
            0 => "VERSION|1|1\nCPID|1\nAUTH|1|LOGIN|service=smtp\n".to_owned(),
            1 => format!("VERSION|1|1\nCPID|1\nAUTH|1|PLAIN|service=smtp|resp={}\n", encode("^argon^no")),
            _ => String::new(),
        };
        client.send(&text).await;
    }
    // Not even refusals that would wait for an hour keep their connections. Other tests open files, too.
    for _ in 0..1000 {
        if open_files() <= before + 60 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} descriptors before, {} after", before, open_files());
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_changes_rules_for_open_connections_and_refuses_nobody() {
    let mut harness = Harness::new().await;
    let mut client = harness.client("client", 1).await;
    client.play("C: AUTH|1|LOGIN|service=smtp|resp=b64(bob)\nS: CONT|1|UGFzc3dvcmQ6").await;
    let mut slice = harness.slice.clone();
    slice.auth.default_domain = Some("new.test".into());
    harness.daemon.reload(&slice).unwrap();
    harness.daemon.listen(bind(harness.folder.path(), &slice)).unwrap();
    // The exchange that was open finishes under the old rules, the next one runs under the new ones.
    client
        .play(
            "C: CONT|1|b64(pw)
             S: OK|1|user=bob@mail.example.test|original_user=bob
             C: AUTH|2|PLAIN|service=smtp|resp=b64(^bob^pw)
             S: OK|2|user=bob@new.test|original_user=bob",
        )
        .await;
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK|1|user=bob@new.test"));
    // Settings that cannot work change nothing.
    slice.auth.mechanisms = vec!["NONSENSE".into()];
    let error = harness.daemon.reload(&slice).unwrap_err();
    assert!(format!("{error:#}").contains("NONSENSE"), "{error:#}");
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK|1|user=bob@new.test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_answers_what_is_in_flight() {
    let harness = Harness::with(|slice| slice.auth.failure_delay = Duration::from_secs(3600)).await;
    let mut client = harness.client("client", 1).await;
    client.send(&format!("AUTH|1|PLAIN|service=smtp|resp={}\n", encode("^bob^no"))).await;
    client.send(&format!("AUTH|2|PLAIN|service=smtp|resp={}\n", encode("^bob^pw"))).await;
    assert!(client.line().await.starts_with("OK|2|"));
    assert!(harness.daemon.stop(Duration::from_secs(10)).await);
    assert!(client.line().await.starts_with("FAIL|1|"));
    assert!(client.is_closed().await);
}

/// A worker that answers by the user's name, in the records of version 1.
fn scripted() -> Workers {
    let limits = conf::Workers { count: 2, timeout: Duration::from_millis(300), ..conf::Workers::default() };
    threads(limits, |body| {
        let has = |text: &str| body.windows(text.len()).any(|part| part == text.as_bytes());
        let code = match () {
            () if has("slow") => loop {
                std::thread::park();
            },
            () if has("expired") => 5,
            () if has("disabled") => 4,
            () if has("down") => 6,
            () if has("good-password") => 0,
            () => 1,
        };
        [&[1, 1, code][..], &[0; 8]].concat()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_of_workers() {
    let change = |slice: &mut conf::AuthSlice| {
        slice.auth.passdb = vec![conf::Passdb {
            name: "pam".into(),
            driver: PassdbDriver::pam("%s"),
            ..conf::Passdb::default()
        }];
    };
    let harness = Harness::with_workers(change, Some(scripted())).await;
    for (user, want) in [
        ("bob", "OK|1|user=bob@mail.example.test|original_user=bob"),
        (
            "expired",
            "FAIL|1|user=expired@mail.example.test|code=pass_expired|pass_expired|reason=Password expired",
        ),
        (
            "disabled",
            "FAIL|1|user=disabled@mail.example.test|code=user_disabled|user_disabled|reason=Account is disabled",
        ),
        (
            "down",
            "FAIL|1|user=down@mail.example.test|code=temp_fail|temp|reason=Temporary authentication failure",
        ),
        (
            "slow",
            "FAIL|1|user=slow@mail.example.test|code=temp_fail|temp|reason=Temporary authentication failure",
        ),
    ] {
        assert_eq!(harness.plain(user, "good-password", "").await, want);
    }
    assert!(
        harness.plain("bob", "no", "").await.starts_with("FAIL|1|user=bob@mail.example.test|reason=Invalid")
    );
    let stats = harness.daemon.ask(&serde_json::json!({"ask": "cache-stats"})).await.unwrap();
    assert_eq!((&stats["positive"], &stats["negative"]), (&1.into(), &1.into()));
    let mut userdb = harness.master("userdb").await;
    userdb
        .play(
            "C: PASS|1|bob|service=x
             S: FAIL|1|reason=Configured passdbs don't support credentials lookups",
        )
        .await;
}

/// A worker that accepts exactly the PAM service it is told to expect.
#[tokio::test(flavor = "multi_thread")]
async fn a_mux_request_names_only_allowed_pam_services() {
    let change = |slice: &mut conf::AuthSlice| {
        slice.auth.passdb = vec![conf::Passdb {
            name: "pam".into(),
            driver: PassdbDriver::pam("good-password-%s"),
            ..conf::Passdb::default()
        }];
        slice.auth.cache.size = 0;
        for listener in &mut slice.auth.listener {
            listener.pam_services = vec!["smtp".into()];
            // Marks the fallback as one that the scripted worker calls down.
            listener.service = Some("down".into());
        }
    };
    let harness = Harness::with_workers(change, Some(scripted())).await;
    for (service, answered) in [("smtp", true), ("sshd", false), ("../smtp", false), ("", false)] {
        let mut stream = harness.connect("mux").await;
        let mut bytes = Vec::new();
        for field in ["bob", "pw", service, ""] {
            bytes.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
            bytes.extend(field.as_bytes());
        }
        stream.send_raw(&bytes).await;
        let mut reply = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream.stream, &mut reply).await.unwrap();
        assert_eq!(reply.get(2..4) == Some(b"OK"), answered, "{service}");
    }
}
