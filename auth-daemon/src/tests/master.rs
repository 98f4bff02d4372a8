//! USER, PASS, LIST, REQUEST and cache control.

use std::time::Duration;

use super::harness::{Harness, encode};

const HOST: &str = "@mail.example.test";

#[tokio::test(flavor = "multi_thread")]
async fn look_ups() {
    let harness = Harness::new().await;
    let mail = harness.path("mail");
    let mail = mail.display();
    let mut client = harness.master("userdb").await;
    let transcript = format!(
        "C: USER|1|alice|service=doveadm
         S: USER|1|alice{HOST}|uid=1000|gid=1000|home=/srv/mail/alice|mail=maildir:/srv/mail/alice/Maildir|quota_rule=*:storage=1G
         C: USER|2|BOB|service=smtp
         S: USER|2|bob{HOST}|home={mail}/bob|mail=maildir:{mail}/bob/Maildir
         C: USER|0|carol@other.test|service=lmtp|rip=192.0.2.1
         S: USER|0|carol@other.test|home={mail}/carol@other.test|mail=maildir:{mail}/carol@other.test/Maildir
         C: USER|3|nobody|service=smtp
         S: NOTFOUND|3
         C: USER|4|al\"ice|service=smtp
         S: NOTFOUND|4
         C: USER|5|alice*bob|service=smtp
         S: NOTFOUND|5
         C: USER|6|bob
         S: FAIL|6|reason=Missing service name
         C: PASS|7|alice|service=doveadm
         S: PASS|7|user=alice{HOST}|nothing=%|note=for-alice
         C: PASS|8|nobody|service=doveadm
         S: NOTFOUND|8
         C: PASS|9|nets|service=doveadm
         S: NOTFOUND|9
         C: PASS|10|gone|service=doveadm
         S: NOTFOUND|10"
    );
    client.play(&transcript).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists() {
    let harness = Harness::new().await;
    let mut client = harness.master("userdb").await;
    client.send("LIST|1|user=*ocke*|service=doveadm\nLIST|2|user=c*@other.test|service=doveadm\n").await;
    assert_eq!(
        client.lines(4).await,
        [&format!("LIST|1|locked{HOST}"), "DONE|1|", "LIST|2|carol@other.test", "DONE|2|"]
    );
    client.send("LIST|3|service=doveadm\n").await;
    let mut count = 0;
    while client.line().await.starts_with("LIST|3|") {
        count += 1;
    }
    assert_eq!(count, super::harness::USERS.lines().count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_fetched_once_by_the_right_process() {
    let harness = Harness::new().await;
    let pid = std::process::id();
    let mut login = harness.client("login", 2).await;
    let cookie = login.greeted("COOKIE").to_owned();
    login
        .play(&format!(
            "C: AUTH|1|PLAIN|service=imap|session=s1|resp=b64(^alice^secret)
             S: OK|1|user=alice{HOST}|nothing=%|note=for-alice|original_user=alice
             C: AUTH|2|PLAIN|service=imap|resp=b64(^alice^wrong)
             S: FAIL|2|user=alice{HOST}"
        ))
        .await;
    let wrong = "0".repeat(32);
    for socket in ["session", "master"] {
        let mut master = harness.master(socket).await;
        master
            .play(&format!(
                "C: REQUEST|1|{pid}|1|{wrong}
                 S: FAIL|1
                 C: REQUEST|2|{}|1|{cookie}
                 S: FAIL|2
                 C: REQUEST|3|{pid}|2|{cookie}
                 S: FAIL|3
                 C: REQUEST|4|{pid}|1|{cookie}|session_pid=1
                 S: FAIL|4",
                pid + 1
            ))
            .await;
    }
    let mut master = harness.master("session").await;
    master.send(&format!("REQUEST|5|{pid}|1|{cookie}|session_pid={pid}|request_auth_token\n")).await;
    let answer = master.line().await;
    let fields: Vec<&str> = answer.split('|').collect();
    assert_eq!(
        fields[..9],
        [
            "USER",
            "5",
            &format!("alice{HOST}"),
            "uid=1000",
            "gid=1000",
            "home=/srv/mail/alice",
            "mail=maildir:/srv/mail/alice/Maildir",
            "quota_rule=*:storage=1G",
            "auth_mech=PLAIN"
        ]
    );
    let token = fields[9].strip_prefix("auth_token=").unwrap();
    assert!(token.len() == 40 && token.bytes().all(|b| b.is_ascii_hexdigit()));
    master.play(&format!("C: REQUEST|6|{pid}|1|{cookie}\nS: FAIL|6\nC: USER|7|bob|service=x\nS: FAIL|7|reason=Not permitted on this socket")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_logins_go_with_cancel_and_with_their_connection() {
    let harness = Harness::new().await;
    let pid = std::process::id();
    let mut login = harness.client("login", 2).await;
    let cookie = login.greeted("COOKIE").to_owned();
    let auth = |id: u32| format!("AUTH|{id}|PLAIN|service=imap|resp={}\n", encode("^bob^pw"));
    login.send(&format!("{}{}{}", auth(1), auth(2), auth(3))).await;
    assert!(login.lines(3).await.iter().all(|line| line.starts_with("OK|")));
    // A second connection with this CPID is turned away, and does not take the first one's logins along.
    let mut second = harness.client("login", 2).await;
    assert!(second.is_closed().await);
    let mut master = harness.master("session").await;
    master.send(&format!("REQUEST|1|{pid}|1|{cookie}|session_pid={pid}\n")).await;
    assert!(master.line().await.starts_with(&format!("USER|1|bob{HOST}|home=")));
    login.send("CANCEL|2\nAUTH|9|PLAIN|service=imap|resp=\n").await;
    assert!(login.line().await.starts_with("FAIL|9"));
    master.play(&format!("C: REQUEST|2|{pid}|2|{cookie}\nS: FAIL|2")).await;
    drop(login);
    // The daemon notices the closed connection by itself; ask until it has.
    for id in 3.. {
        master.send(&format!("REQUEST|{id}|{pid}|77|{cookie}\n")).await;
        assert_eq!(master.line().await, format!("FAIL|{id}"));
        if harness.daemon_logins() == 0 {
            break;
        }
        assert!(id < 1000);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    master.play(&format!("C: REQUEST|5000|{pid}|3|{cookie}\nS: FAIL|5000")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_control_is_for_masters() {
    let harness = Harness::new().await;
    for user in ["crypted", "argon"] {
        assert!(harness.plain(user, "summersun", "").await.starts_with("OK"));
    }
    let mut master = harness.master("master").await;
    master
        .play(
            "C: CACHE-FLUSH|1|crypted
             S: OK|1|1
             C: CACHE-FLUSH|2
             S: OK|2|1
             C: CACHE-FLUSH|3
             S: OK|3|0",
        )
        .await;
    master.send("CACHE-STATUS|4\n").await;
    assert!(master.line().await.starts_with("OK|4|hits=0|misses=2|pos_entries=0|neg_entries=0|"));
    let mut userdb = harness.master("userdb").await;
    userdb.play("C: CACHE-FLUSH|1\nS: FAIL|1|reason=Not permitted on this socket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_show_the_walk_and_no_secret() {
    let harness = Harness::new().await;
    let asked = serde_json::json!({"ask": "explain", "user": "Alice", "service": "smtp", "ip": "192.0.2.1"});
    let answer = harness.daemon.ask(&asked).await.unwrap();
    assert_eq!(answer["canonical"], "alice@mail.example.test");
    let steps =
        ["passdb users: password in {PLAIN}, checked at once", "passdb users: ok", "userdb users: found"];
    assert_eq!(answer["steps"], serde_json::json!(steps));
    assert_eq!(answer["userdb_fields"]["home"], "/srv/mail/alice");
    assert!(!answer.to_string().contains("secret"));
    let asked = serde_json::json!({"ask": "explain", "user": "nets", "service": "smtp"});
    let answer = harness.daemon.ask(&asked).await.unwrap();
    assert!(answer["passdb"].as_str().unwrap().contains("allow_nets"));
    assert!(harness.daemon.ask(&serde_json::json!({"ask": "nonsense"})).await.is_err());
}

impl Harness {
    fn daemon_logins(&self) -> usize {
        self.daemon.kept_logins()
    }
}

/// Names that are no plain part of a path, where the settings let them in.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_its_folder() {
    use conf::{Userdb, UserdbDriver};
    const OUTSIDE: [&str; 6] = ["..", ".", "../x", "a/b", "a/../b", "a:b"];
    let fields =
        |list: &[(&str, &str)]| list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let server = async |defaults: &[(&str, &str)], overrides: &[(&str, &str)], in_file: Option<&str>| {
        let (defaults, overrides) = (fields(defaults), fields(overrides));
        Harness::with(|slice| {
            slice.auth.username_chars = String::new();
            slice.auth.default_domain = Some(String::new());
            let mut userdb = Userdb {
                name: "u".to_owned(),
                driver: UserdbDriver::Static { allow_all_users: true },
                ..Userdb::default()
            };
            if let Some(fields) = in_file {
                let lines = [&["bob"][..], &OUTSIDE].concat().into_iter().filter(|name| !name.contains(':'));
                let lines: String = lines.map(|name| format!("{name}:{{PLAIN}}pw:{fields}\n")).collect();
                let path = slice.state_dir.join("users");
                std::fs::write(&path, lines).unwrap();
                let path = path.to_string_lossy().into_owned();
                userdb.driver = UserdbDriver::PasswdFile { path, username_format: None };
            }
            userdb.rules.default_fields = defaults;
            userdb.rules.override_fields = overrides;
            slice.auth.userdb = vec![userdb];
        })
        .await
    };
    for (defaults, overrides, in_file, home, mail) in [
        (&[("home", "/srv/%u")][..], &[][..], None, "/srv/bob", "/srv/bob/Maildir"),
        (&[], &[("home", "/srv/%{user | lower}")], None, "/srv/bob", "/srv/bob/Maildir"),
        (&[("home", "/h")], &[("mail", "maildir:/srv/%n/M")], None, "/h", "/srv/bob/M"),
        (&[("home", "/h"), ("mail", "/srv/%n/M")], &[], None, "/h", "/srv/bob/M"),
        (&[("home", "/srv/%n"), ("mail", "%{home}/M")], &[], None, "/srv/bob", "/srv/bob/M"),
        (&[("userdb_import", "home=/srv/%u")], &[], None, "/srv/bob", "/srv/bob/Maildir"),
        (&[], &[], Some("5:5::/h:: userdb_mail=/srv/%u"), "/h", "/srv/bob"),
        (&[], &[], Some("5:5::::: userdb_home=/srv/%u"), "/srv/bob", "/srv/bob/Maildir"),
    ] {
        let harness = server(defaults, overrides, in_file).await;
        let mut client = harness.master("userdb").await;
        client.send("USER|1|bob|service=smtp\n").await;
        let line = client.line().await;
        let told: Vec<_> = line.split('|').collect();
        assert!(told.contains(&format!("home={home}").as_str()), "{line}");
        assert!(told.contains(&format!("mail=maildir:{mail}").as_str()), "{line}");
        for name in OUTSIDE {
            client.send(&format!("USER|2|{name}|service=smtp\n")).await;
            assert_eq!(client.line().await, "NOTFOUND|2", "{name}: {defaults:?} {overrides:?} {in_file:?}");
        }
    }
    // What the entry says itself stays as it was written, and stands in for a default that cannot be had.
    let harness = server(&[("home", "/srv/%u")], &[], Some("5:5::/h/../x:: userdb_mail=/m/a:b")).await;
    let mut client = harness.master("userdb").await;
    client.send("USER|1|..|service=smtp\n").await;
    assert_eq!(client.line().await, "USER|1|..|uid=5|gid=5|home=/h/../x|mail=maildir:/m/a:b");
}

/// The same for what a passdb says of the user: nobody logs in to somewhere else.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_its_folder_by_a_passdb() {
    let harness = Harness::with(|slice| {
        slice.auth.username_chars = String::new();
        slice.auth.default_domain = Some(String::new());
        std::fs::write(slice.state_dir.join("users"), "bob:{PLAIN}pw\n..:{PLAIN}pw\na/b:{PLAIN}pw\n")
            .unwrap();
        slice.auth.passdb[0].rules.override_fields = vec![("userdb_home".to_owned(), "/srv/%u".to_owned())];
    })
    .await;
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK|1|user=bob"));
    for name in ["..", "a/b"] {
        let answer = harness.plain(name, "pw", "").await;
        assert!(answer.starts_with("FAIL|1|") && answer.contains("code=temp_fail"), "{answer}");
    }
}

/// One file for both, with a mail that stands below the home of the entry: the passdb need not know it.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_made_of_the_home_is_the_userdbs() {
    use conf::{Userdb, UserdbDriver};
    let harness = Harness::with(|slice| {
        let path = slice.state_dir.join("users");
        std::fs::write(&path, "bob:{PLAIN}pw:5:5::/home/bob::userdb_mail=maildir:%h/mail\n").unwrap();
        let path = path.to_string_lossy().into_owned();
        let driver = UserdbDriver::PasswdFile { path, username_format: None };
        let mut userdb = Userdb { name: "u".to_owned(), driver, ..Userdb::default() };
        userdb.rules.default_fields = vec![("quota_rule".to_owned(), "*:storage=1G".to_owned())];
        slice.auth.userdb = vec![userdb];
    })
    .await;
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK|1|user=bob"));
    let mut client = harness.master("userdb").await;
    client.send("USER|1|bob|service=smtp\n").await;
    let line = client.line().await;
    assert!(line.contains("|home=/home/bob|") && line.contains("mail=maildir:/home/bob/mail"), "{line}");
}
