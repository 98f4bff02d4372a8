//! Chain semantics as tables.

use conf::{AuthSlice, PassdbSkip, ResultAction, UserdbDriver};

use super::client::cram;
use super::harness::{Harness, encode, passwd_file};

/// passwd-files by name and content; the content `BROKEN` is one that cannot be read.
async fn chain(files: &[(&str, &str)], change: impl FnOnce(&mut AuthSlice)) -> Harness {
    let contents: Vec<(String, String)> =
        files.iter().map(|(n, c)| ((*n).to_owned(), (*c).to_owned())).collect();
    Harness::with(move |slice| {
        slice.auth.passdb = contents
            .iter()
            .map(|(name, content)| {
                let path = slice.state_dir.join(format!("{name}.users"));
                if content == "BROKEN" {
                    std::fs::create_dir(&path).unwrap();
                } else {
                    std::fs::write(&path, content).unwrap();
                }
                passwd_file(name, path.to_str().unwrap())
            })
            .collect();
        change(slice);
    })
    .await
}

fn summary(answer: &str) -> &str {
    match answer {
        _ if answer.starts_with("OK") => "ok",
        _ if answer.contains("code=temp_fail") => "temp",
        _ if answer.contains("code=user_disabled") => "disabled",
        _ if answer.contains("code=authz_fail") => "authz",
        _ => "fail",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_two_passdbs() {
    // Contents of both, password given, outcome with default rules.
    let cases = [
        ("u:{PLAIN}1\n", "u:{PLAIN}2\n", "1", "ok"),
        ("u:{PLAIN}1\n", "u:{PLAIN}2\n", "2", "ok"),
        ("u:{PLAIN}1\n", "u:{PLAIN}2\n", "3", "fail"),
        ("u:{PLAIN}1\n", "", "3", "fail"),
        ("BROKEN", "", "1", "temp"),
        ("BROKEN", "u:{PLAIN}2\n", "1", "temp"),
        ("BROKEN", "u:{PLAIN}2\n", "2", "ok"),
        ("u:{PLAIN}1\n", "BROKEN", "1", "ok"),
        ("u:{PLAIN}1\n", "BROKEN", "2", "temp"),
        ("u:{NOSUCH}1\n", "u:{PLAIN}2\n", "2", "ok"),
        ("u:{NOSUCH}1\n", "", "1", "fail"),
        ("u:{PLAIN}1:::::: noauthenticate\n", "u:{PLAIN}2\n", "2", "ok"),
        ("u:{PLAIN}1:::::: noauthenticate\n", "u:{PLAIN}2\n", "1", "fail"),
        ("u:{PLAIN}1:::::: fail\n", "u:{PLAIN}1\n", "1", "ok"),
        ("u:{PLAIN}1:::::: allow_nets=10.0.0.0/8\n", "u:{PLAIN}1\n", "1", "ok"),
        ("u:{PLAIN}1:::::: expires=0\n", "u:{PLAIN}1\n", "1", "disabled"),
    ];
    for (a, b, password, want) in cases {
        let harness = chain(&[("a", a), ("b", b)], |_| {}).await;
        let answer = harness.plain("u", password, "").await;
        assert_eq!(summary(&answer), want, "{a:?} {b:?} {password}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_six_actions() {
    use ResultAction::{Continue, ContinueFail, ContinueOk, Return, ReturnFail, ReturnOk};
    // Action of the first passdb on success and failure; password (1 right for the first, 2 for the second).
    let cases = [
        (ReturnOk, Continue, "1", "ok"),
        (ReturnFail, Continue, "1", "fail"),
        (Return, Continue, "1", "fail"),
        // The second does not check any more, and its default action accepts.
        (Continue, Continue, "1", "ok"),
        (ContinueOk, Continue, "1", "ok"),
        (ContinueFail, Continue, "1", "fail"),
        (ContinueFail, Continue, "2", "ok"),
        (ReturnOk, ReturnOk, "3", "ok"),
        (ReturnOk, ReturnFail, "2", "fail"),
        (ReturnOk, Return, "2", "fail"),
        (ReturnOk, ContinueOk, "3", "ok"),
        (ReturnOk, ContinueFail, "2", "ok"),
        (ReturnOk, ContinueFail, "3", "fail"),
    ];
    for (success, failure, password, want) in cases {
        let harness = chain(&[("a", "u:{PLAIN}1\n"), ("b", "u:{PLAIN}2\n")], |slice| {
            let rules = &mut slice.auth.passdb[0].rules;
            (rules.result_success, rules.result_failure) = (success, failure);
        })
        .await;
        let answer = harness.plain("u", password, "").await;
        assert_eq!(summary(&answer), want, "{success:?} {failure:?} {password}: {answer}");
    }
    // One with `continue` alone, or whose followers do not know the user, has not decided anything.
    let harness = chain(&[("a", "u:{PLAIN}1\n"), ("b", "")], |slice| {
        slice.auth.passdb[0].rules.result_success = Continue;
    })
    .await;
    assert_eq!(summary(&harness.plain("u", "1", "").await), "fail");
    let harness = chain(&[("a", "u:{PLAIN}1\n")], |slice| {
        slice.auth.passdb[0].rules.result_success = Continue;
    })
    .await;
    assert_eq!(summary(&harness.plain("u", "1", "").await), "fail");
    // A failure to answer is not forgotten because an entry without verdict follows.
    let harness =
        chain(&[("a", "BROKEN"), ("b", "u:{PLAIN}1:::::: noauthenticate\n"), ("c", "")], |_| {}).await;
    assert_eq!(summary(&harness.plain("u", "1", "").await), "temp");
}

/// Who has forgotten an `allow_nets` must find it in the log, whatever the entries behind say.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_address_is_the_reason_told() {
    let harness =
        chain(&[("a", "u:{PLAIN}1:::::: allow_nets=10.0.0.0/8\n"), ("b", "v:{PLAIN}1\n")], |_| {}).await;
    for (user, want) in [("u", "allow_nets does not include the address"), ("w", "unknown user")] {
        let question = serde_json::json!({"ask": "explain", "user": user, "ip": "192.0.2.1"});
        assert_eq!(harness.daemon.ask(&question).await.unwrap()["passdb"], want);
    }
}

/// A sasldb with users of `example.org` and a password in clear, so every mechanism can be served.
#[tokio::test(flavor = "multi_thread")]
async fn sasldb_serves_every_mechanism() {
    const SASLDB: &[u8] = include_bytes!("../../creds/testdata/sasldb-hash.db");
    let sasldb = |realm: &str| {
        let realm = realm.to_owned();
        Harness::with(move |slice| {
            let path = slice.state_dir.join("sasldb2");
            std::fs::write(&path, SASLDB).unwrap();
            slice.auth.passdb = vec![conf::Passdb {
                name: "sasldb".to_owned(),
                driver: conf::PassdbDriver::Sasldb { path, realm: Some(realm) },
                ..conf::Passdb::default()
            }];
        })
    };
    let harness = sasldb("").await;
    let mut client = harness.client("client", 1).await;
    assert!(
        client.greeting.iter().any(|line| line.starts_with("MECH|SCRAM-SHA-256")),
        "{:?}",
        client.greeting
    );
    assert!(client.greeting.iter().any(|line| line.starts_with("MECH|CRAM-MD5")), "{:?}", client.greeting);
    client.send("AUTH|1|CRAM-MD5|service=smtp\n").await;
    assert!(client.line().await.starts_with("CONT|1|"));
    assert!(
        harness.plain("user7@example.org", "pass:7", "").await.starts_with("OK|1|user=user7@example.org")
    );
    assert!(harness.plain("user7@example.org", "pass:8", "").await.starts_with("FAIL|1"));
    assert!(harness.plain("user7", "pass:7", "").await.starts_with("FAIL|1"), "another realm");
    // Names of the default domain may have been made in another realm.
    let harness = sasldb("example.org").await;
    assert!(harness.plain("user7", "pass:7", "").await.starts_with("OK|1|user=user7@mail.example.test"));
    assert!(harness.plain("user7@elsewhere.test", "pass:7", "").await.starts_with("FAIL|1"));
    // Names that are no names.
    let harness = sasldb("example.org").await;
    let long = "u".repeat(9_000);
    for name in [
        "user7@example.org:x",
        "user7@@example.org",
        "../user7",
        "%{user}",
        "user7@example.org\u{1}0",
        "@",
        "",
        &long,
    ] {
        let answer = harness.plain(name, "pass:7", "").await;
        assert!(answer.starts_with("FAIL|1") && summary(&answer) == "fail", "{name:.40}: {answer}");
    }
    // A damaged file is an outage, never a wrong password.
    let harness = sasldb("example.org").await;
    std::fs::write(harness.path("sasldb2"), &SASLDB[..1000]).unwrap();
    assert_eq!(summary(&harness.plain("user7", "pass:7", "").await), "temp");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_skips() {
    type Change = fn(&mut AuthSlice);
    let cases: [(Change, &str, &str); 9] = [
        (|s| s.auth.passdb[0].rules.services = Some(vec!["imap".into()]), "1", "fail"),
        (|s| s.auth.passdb[0].rules.services = Some(vec!["smtp".into()]), "1", "ok"),
        (|s| s.auth.passdb[0].rules.mechanisms = Some(vec!["login".into()]), "1", "fail"),
        (|s| s.auth.passdb[0].rules.mechanisms = Some(vec!["plain".into()]), "1", "ok"),
        (|s| s.auth.passdb[0].rules.username_filter = vec!["!u@*".into()], "1", "fail"),
        (|s| s.auth.passdb[0].rules.username_filter = vec!["u@*".into()], "1", "ok"),
        (|s| s.auth.passdb[0].rules.skip = PassdbSkip::Unauthenticated, "1", "fail"),
        (|s| s.auth.passdb[1].rules.skip = PassdbSkip::Unauthenticated, "2", "fail"),
        (
            |s| {
                for passdb in &mut s.auth.passdb {
                    passdb.rules.services = Some(vec!["imap".into()]);
                }
            },
            "1",
            "temp",
        ),
    ];
    for (at, (change, password, want)) in cases.into_iter().enumerate() {
        let harness = chain(&[("a", "u:{PLAIN}1\n"), ("b", "u:{PLAIN}2\n")], change).await;
        assert_eq!(summary(&harness.plain("u", password, "").await), want, "case {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deny_lists_close_the_door_and_tell_only_who_knows_the_password() {
    let deny = |slice: &mut AuthSlice| slice.auth.passdb[0].rules.deny = true;
    let harness = chain(&[("deny", "bad\n"), ("b", "bad:{PLAIN}1\ngood:{PLAIN}1\n")], deny).await;
    for (user, password, want) in [("bad", "1", "disabled"), ("bad", "2", "fail"), ("good", "1", "ok")] {
        assert_eq!(summary(&harness.plain(user, password, "").await), want, "{user} {password}");
    }
    // A list that cannot be read lets nobody in.
    let harness = chain(&[("deny", "BROKEN"), ("b", "good:{PLAIN}1\n")], deny).await;
    assert_eq!(summary(&harness.plain("good", "1", "").await), "temp");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_accumulate_and_roll_back() {
    let harness = chain(
        &[("a", "u:{PLAIN}1:::::: from_a=1 shared=a\n"), ("b", "u:{PLAIN}2:::::: from_b=%u\n")],
        |slice| {
            let rules = &mut slice.auth.passdb[1].rules;
            rules.default_fields = vec![("shared".into(), "b".into()), ("from_b".into(), "default".into())];
            rules.override_fields =
                vec![("forced".into(), "%{service}".into()), ("gone:remove".into(), String::new())];
        },
    )
    .await;
    let answer = harness.plain("u", "1", "").await;
    assert_eq!(answer, "OK|1|user=u@mail.example.test|from_a=1|shared=a|original_user=u");
    let answer = harness.plain("u", "2", "").await;
    assert_eq!(
        answer,
        "OK|1|user=u@mail.example.test|shared=b|from_b=u@mail.example.test|forced=smtp|original_user=u"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn master_users() {
    for (action, unknown_target) in [(ResultAction::ReturnOk, "ok"), (ResultAction::Continue, "authz")] {
        let harness = chain(&[("masters", "admin:{PLAIN}m\n"), ("users", "u:{PLAIN}1\n")], |slice| {
            let rules = &mut slice.auth.passdb[0].rules;
            (rules.master, rules.result_success) = (true, action);
            slice.auth.master_user_separator = Some('*');
            slice.auth.username_chars.push('*');
        })
        .await;
        let cases = [
            ("u*admin", "m", "ok"),
            ("u*admin", "1", "fail"),
            ("admin", "m", "fail"),
            ("nobody*admin", "m", unknown_target),
            ("u*u", "1", "ok"),
            ("u", "1", "ok"),
        ];
        for (user, password, want) in cases {
            let answer = harness.plain(user, password, "").await;
            assert_eq!(summary(&answer), want, "{action:?} {user} {password}: {answer}");
        }
        let host = "@mail.example.test";
        assert_eq!(
            harness.plain("u*admin", "m", "").await,
            format!("OK|1|user=u{host}|original_user=admin|auth_user=admin{host}")
        );
        let mut client = harness.client("client", 1).await;
        client.send(&format!("AUTH|1|PLAIN|service=smtp|resp={}\n", encode("u^admin^m"))).await;
        assert_eq!(summary(&client.line().await), "ok");
        // Both forms at once: the authorization id is whom the master wants to be, as with Dovecot.
        for (id, response) in [(2, "u^u*admin^m"), (3, "u^nobody*admin^m")] {
            client.send(&format!("AUTH|{id}|PLAIN|service=smtp|resp={}\n", encode(response))).await;
            let line = client.line().await;
            assert!(line.starts_with(&format!("OK|{id}|user=u{host}|")), "{line}");
        }
        // Mechanisms that never tell the password know masters, too.
        for (id, user, password, want) in [
            (4, "u*admin", "m", "ok"),
            (5, "u*admin", "1", "fail"),
            (6, "nobody*admin", "m", unknown_target),
            (7, "u*u", "1", "ok"),
        ] {
            client.send(&format!("AUTH|{id}|CRAM-MD5|service=smtp\n")).await;
            let challenge = client.line().await;
            let digest = cram(challenge.strip_prefix(&format!("CONT|{id}|")).unwrap(), password);
            client.send(&format!("CONT|{id}|{}\n", encode(&format!("{user} {digest}")))).await;
            let line = client.line().await;
            assert_eq!(summary(&line), want, "{action:?} {user} {password}: {line}");
        }
    }
    // Without master passdbs an authorization id is a plain failure.
    let harness = Harness::new().await;
    let mut client = harness.client("client", 1).await;
    client.send(&format!("AUTH|1|PLAIN|service=smtp|resp={}\n", encode("alice^bob^pw"))).await;
    assert_eq!(summary(&client.line().await), "fail");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_per_domain_stays_beneath_its_folder() {
    let harness = Harness::with(|slice| {
        let folder = slice.state_dir.join("domains");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.test"), "u:{PLAIN}1\n").unwrap();
        std::fs::write(folder.join("b.test"), "u:{PLAIN}2\n").unwrap();
        std::fs::write(slice.state_dir.join("outside"), "u:{PLAIN}3\n").unwrap();
        std::os::unix::fs::symlink("../outside", folder.join("link.test")).unwrap();
        let mut passdb = passwd_file("domains", &format!("{}/%{{user | domain}}", folder.display()));
        if let conf::PassdbDriver::PasswdFile { username_format, .. } = &mut passdb.driver {
            *username_format = Some("%n".into());
        }
        slice.auth.passdb = vec![passdb];
        slice.auth.username_chars = String::new();
    })
    .await;
    let cases = [
        ("u@a.test", "1", "ok"),
        ("u@a.test", "2", "fail"),
        ("u@b.test", "2", "ok"),
        ("u@c.test", "1", "fail"),
        ("u@../outside", "3", "fail"),
        ("u@..", "3", "fail"),
        ("u@a.test/../../outside", "3", "fail"),
    ];
    for (user, password, want) in cases {
        assert_eq!(summary(&harness.plain(user, password, "").await), want, "{user}");
    }
    assert_ne!(summary(&harness.plain("u@link.test", "3", "").await), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn mechanisms_are_offered_only_when_the_chain_can_serve_them() {
    let harness = Harness::with(|slice| {
        let path = slice.state_dir.join("static-password");
        std::fs::write(&path, "x").unwrap();
        slice.auth.passdb = vec![conf::Passdb {
            name: "pam".into(),
            driver: conf::PassdbDriver::pam("postern"),
            ..conf::Passdb::default()
        }];
        slice.auth.userdb[0].driver = UserdbDriver::Passwd;
    })
    .await;
    let mut client = harness.connect("client").await;
    client.read_greeting().await;
    let offered: Vec<&str> =
        client.greeting.iter().filter_map(|line| line.strip_prefix("MECH|")?.split('|').next()).collect();
    assert_eq!(offered, ["PLAIN", "LOGIN", "ANONYMOUS"]);
}
