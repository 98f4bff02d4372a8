//! Fields that guard the door, through every kind of socket and with drivers that have no fields of their own.

use std::time::{Duration, Instant};

use conf::{AuthSlice, PassdbDriver, UserdbDriver};

use super::harness::{Harness, encode, threads};
use crate::engine::unix_now;
use crate::worker::Workers;

async fn with_user(fields: &str) -> Harness {
    let line = format!("u:{{PLAIN}}pw:::::: {fields}\n");
    Harness::with(move |slice| std::fs::write(slice.state_dir.join("users"), line).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_until_holds_a_success_back() {
    let harness = with_user(&format!("delay_until={}", unix_now() + 2)).await;
    let began = Instant::now();
    let answer = harness.plain("u", "pw", "").await;
    assert!(answer.starts_with("OK|1|user=u@mail.example.test"), "{answer}");
    assert!(!answer.contains("delay_until"), "{answer}");
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&began.elapsed()));
    // In the past: at once.
    let began = Instant::now();
    let answer = with_user("delay_until=1000").await.plain("u", "pw", "").await;
    assert!(answer.starts_with("OK|1|") && began.elapsed() < Duration::from_secs(1), "{answer}");
    // Longer than the client waits, too far ahead, no time at all: nobody gets in.
    for text in [
        format!("delay_until={}", unix_now() + 60),
        format!("delay_until={}", unix_now() + 3600),
        "delay_until=tomorrow".to_owned(),
        "delay_until".to_owned(),
    ] {
        let harness = with_user(&text).await;
        let answer = harness.plain("u", "pw", "").await;
        assert!(answer.contains("|code=temp_fail|"), "{text}: {answer}");
        let answer = harness.plain("u", "no", "").await;
        assert!(answer.contains("reason=Invalid user name or password"), "{text}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_waits_can_be_cancelled_and_is_not_kept() {
    let harness = with_user(&format!("delay_until={}", unix_now() + 2)).await;
    let mut login = harness.client("login", 4).await;
    let response = encode("^u^pw");
    login.send(&format!("AUTH|1|PLAIN|service=imap|resp={response}\n")).await;
    login.send("CANCEL|1\n").await;
    assert_eq!(login.line().await, "CANCELLED|1");
    login.send(&format!("AUTH|2|PLAIN|service=imap|resp={response}\n")).await;
    assert!(login.line().await.starts_with("OK|2|"));
    assert_eq!(harness.daemon.kept_logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_nobody_in_before_the_time() {
    let harness = with_user(&format!("delay_until={}", unix_now() + 6)).await;
    let mut client = harness.client("client", 1).await;
    client.send(&format!("AUTH|1|PLAIN|service=smtp|resp={}\n", encode("^u^pw"))).await;
    // An answer to a later request: the first one is being held by now.
    client.send(&format!("AUTH|2|PLAIN|service=smtp|resp={}\n", encode("^u^no"))).await;
    assert!(client.line().await.starts_with("FAIL|2|"));
    assert!(harness.daemon.stop(Duration::from_secs(10)).await);
    assert!(client.line().await.contains("code=temp_fail"));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_compared_over_tls_only() {
    let harness = with_user("check_client_cert_fp=AA:BB").await;
    for (params, ok) in [
        ("|secured=tls|valid-client-cert|ssl_client_cert_fp=aabb", true),
        ("|secured=tls|ssl_client_cert_fp=aabc", false),
        ("|secured|ssl_client_cert_fp=aabb", false),
        ("", false),
    ] {
        let answer = harness.plain("u", "pw", params).await;
        assert_eq!(answer.starts_with("OK|"), ok, "{params}: {answer}");
        assert!(!answer.contains("check_client"), "{answer}");
    }
}

/// A worker that says yes to every password and knows every account.
fn willing() -> Workers {
    threads(conf::Workers::default(), |body| {
        let record: &[u8] = match body[1] {
            2 => b"\x01\x02\x01\x01\0\0\0u\x07\0\0\0\x08\0\0\0\x02\0\0\0/h",
            4 => b"\x01\x05\x01\x08\0\0\0",
            3 => b"\x01\x03\x02\0\0\0\x01\0\0\0u\x01\0\0\0v",
            _ => b"\x01\x01\x00\0\0\0\0\0\0\0\0",
        };
        record.to_vec()
    })
}

async fn system(driver: PassdbDriver, fields: &[(&str, &str)]) -> Harness {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let change = move |slice: &mut AuthSlice| {
        let mut passdb = conf::Passdb { name: "system".into(), driver, ..conf::Passdb::default() };
        passdb.rules.override_fields = fields;
        slice.auth.passdb = vec![passdb];
        slice.auth.userdb[0].driver = UserdbDriver::Passwd;
    };
    Harness::with_workers(change, Some(willing())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_in_the_settings_hold_for_system_users() {
    let pam = || PassdbDriver::pam("x");
    for (name, value, want) in [
        ("note", "1", "OK|"),
        ("allow_nets", "192.0.2.0/24", "OK|"),
        ("allow_nets", "198.51.100.0/24", "reason=Invalid"),
        ("allow_nets", "", "reason=Invalid"),
        ("expires", "2001-01-01", "code=user_disabled"),
        ("expires", "soon", "code=user_disabled"),
        ("delay_until", "soon", "code=temp_fail"),
        ("check_client_fp", "aabb", "reason=Invalid"),
        ("fail", "", "reason=Invalid"),
        ("noauthenticate", "", "code=temp_fail"),
        ("nologin", "", "code=user_disabled"),
    ] {
        for driver in [pam(), PassdbDriver::shadow(), PassdbDriver::passwd()] {
            let harness = system(driver, &[(name, value)]).await;
            let answer = harness.plain("u", "pw", "|rip=192.0.2.1").await;
            assert!(answer.contains(want), "{name}={value}: {answer}");
        }
    }
    // Look-ups without a password see them, too.
    for (name, value, want) in [("note", "1", "PASS|1|user=u"), ("allow_nets", "10.0.0.0/8", "NOTFOUND|1")] {
        let harness = system(PassdbDriver::shadow(), &[(name, value)]).await;
        let mut userdb = harness.master("userdb").await;
        userdb.send("PASS|1|u|service=x\n").await;
        let answer = userdb.line().await;
        assert!(answer.starts_with(want), "{name}: {answer}");
    }
}

/// Dovecot's `uid=vmail gid=vmail`.
#[tokio::test(flavor = "multi_thread")]
async fn ids_may_be_names() {
    let change = |slice: &mut AuthSlice| {
        slice.auth.userdb[0].driver = UserdbDriver::Static { allow_all_users: true };
        slice.auth.userdb[0].rules.default_fields =
            [("uid", "u"), ("gid", "v"), ("home", "/h")].map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    };
    let harness = Harness::with_workers(change, Some(willing())).await;
    let mut userdb = harness.master("userdb").await;
    userdb.send("USER|1|bob|service=x\n").await;
    let answer = userdb.line().await;
    assert!(answer.starts_with("USER|1|bob@mail.example.test|uid=7|gid=8|home=/h"), "{answer}");
    // A passwd-file's columns as well, and no name means no user.
    let harness = Harness::with_workers(|_| {}, Some(willing())).await;
    std::fs::write(harness.path("users"), "bob:{PLAIN}pw:u:v::/h::\n").unwrap();
    let mut userdb = harness.master("userdb").await;
    userdb.send("USER|1|bob|service=x\n").await;
    let answer = userdb.line().await;
    assert!(answer.starts_with("USER|1|bob@mail.example.test|uid=7|gid=8|home=/h"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn system_users_are_found_and_listed() {
    let harness = system(PassdbDriver::shadow(), &[]).await;
    let mut userdb = harness.master("userdb").await;
    userdb
        .play(
            "C: USER|1|U@mail.example.test|service=x
             S: USER|1|u@mail.example.test|system_groups_user=u|uid=7|gid=8|home=/h|mail=maildir:/h/Maildir
             C: LIST|2|service=x
             S: LIST|2|u@mail.example.test
             S: LIST|2|v@mail.example.test
             S: DONE|2|
             C: LIST|3|user=v*|service=x
             S: LIST|3|v@mail.example.test
             S: DONE|3|",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deny_list_of_system_users_knows_them_without_the_domain() {
    let change = |slice: &mut AuthSlice| {
        let mut deny =
            conf::Passdb { name: "deny".into(), driver: PassdbDriver::passwd(), ..conf::Passdb::default() };
        deny.rules.deny = true;
        slice.auth.passdb.insert(0, deny);
    };
    let harness = Harness::with_workers(change, Some(by_name())).await;
    let answer = harness.plain("bob", "pw", "").await;
    assert!(answer.contains("code=user_disabled"), "{answer}");
    assert!(harness.plain("alice", "secret", "").await.starts_with("OK|"));
}

/// A worker that knows the account `bob` and no other.
fn by_name() -> Workers {
    threads(conf::Workers::default(), |body| {
        let record: &[u8] = match body.ends_with(b"\x03\0\0\0bob") {
            true => b"\x01\x02\x01\x03\0\0\0bob\x07\0\0\0\x08\0\0\0\x02\0\0\0/h",
            false => b"\x01\x02\x00",
        };
        record.to_vec()
    })
}
