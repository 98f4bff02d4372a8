//! The daemon as a whole: its main under a supervisor's control channel, the fronts' own client, long runs.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use auth_client::{AuthClient, AuthRequest, Config, Step};
use boot::Sockets;

use super::harness::{Harness, PATIENCE, USERS, base_slice, encode};

fn client(folder: &Path) -> AuthClient {
    AuthClient::new(Config::new(folder.join("login"), folder.join("session"), folder.join("userdb")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fronts_client_logs_in_and_fetches_the_record() {
    let harness = Harness::new().await;
    let client = client(harness.folder.path());
    let offered = client.mechanisms().await.unwrap();
    assert!(offered.iter().any(|mechanism| mechanism.name == *"PLAIN"));
    let Step::Ok(login) = client.authenticate(AuthRequest::plain("imap", b"Alice", b"secret")).await.unwrap()
    else {
        panic!()
    };
    assert_eq!((login.user.as_str(), login.field("note")), ("alice@mail.example.test", Some("for-alice")));
    let record = client.session(&login).await.unwrap();
    assert_eq!((record.uid, record.mail.as_deref()), (Some(1000), Some("maildir:/srv/mail/alice/Maildir")));
    // `nologin` reaches login processes as a field, with the text for the user.
    let Step::Ok(away) = client.authenticate(AuthRequest::plain("imap", b"away", b"pw")).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(away.field("reason"), Some("Moved"));
    // One that overlooks the field gets no mailbox to open.
    assert!(matches!(client.session(&away).await, Err(auth_client::Error::Failed(None))));
    let Step::Failed(failure) = client.authenticate(AuthRequest::plain("imap", b"bob", b"no")).await.unwrap()
    else {
        panic!()
    };
    assert!(!failure.is_temporary() && failure.code.is_none());
    let Step::Failed(failure) =
        client.authenticate(AuthRequest::plain("imap", b"collect", b"pw")).await.unwrap()
    else {
        panic!()
    };
    assert!(failure.is_temporary());
    assert!(client.user("nobody", "smtp").await.unwrap().is_none());
    let bob = client.user("bob", "smtp").await.unwrap().unwrap();
    assert_eq!((bob.user.as_str(), bob.uid), ("bob@mail.example.test", None));
    assert_eq!(bob.home, Some(harness.path("mail/bob")));
    let all = client.users(Some("*@other.test"), "smtp").await.unwrap();
    assert_eq!(all, ["carol@other.test"]);
}

#[test]
fn main_serves_reloads_answers_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), USERS).unwrap();
    let mut slice = base_slice(folder.path());
    let mut sockets = Sockets::new();
    let mut again = Sockets::new();
    for listener in &slice.auth.listener {
        let socket = UnixListener::bind(folder.path().join(&listener.name)).unwrap();
        again.add_unix(listener.name.clone(), socket.try_clone().unwrap());
        sockets.add_unix(listener.name.clone(), socket);
    }
    let (start, mut supervisor) = boot::standalone("auth", slice.to_json().unwrap(), sockets).unwrap();
    let daemon = std::thread::spawn(move || crate::main(start));
    supervisor.wait_ready(PATIENCE).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let login = |path: &Path| {
        runtime.block_on(async {
            match client(path).authenticate(AuthRequest::plain("imap", b"bob", b"pw")).await.unwrap() {
                Step::Ok(login) => login.user,
                other => panic!("{other:?}"),
            }
        })
    };
    assert_eq!(login(folder.path()), "bob@mail.example.test");

    slice.auth.default_domain = Some("new.test".to_owned());
    supervisor.reload(slice.to_json().unwrap(), again, PATIENCE).unwrap().unwrap();
    assert_eq!(login(folder.path()), "bob@new.test");
    let refused = supervisor.reload(b"nonsense".to_vec(), Sockets::new(), PATIENCE).unwrap().unwrap_err();
    assert!(refused.contains("configuration"), "{refused}");
    assert_eq!(login(folder.path()), "bob@new.test");

    let stats = supervisor.ask(serde_json::json!({"ask": "cache-stats"}), PATIENCE).unwrap().unwrap();
    assert_eq!(stats["hits"], 0);
    supervisor.stop(Duration::from_secs(5)).unwrap();
    daemon.join().unwrap().unwrap();
    assert!(folder.path().join("auth-secret").metadata().unwrap().len() == 32);
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The short form of the soak: aborted exchanges on one connection, connections one after another.
#[tokio::test(flavor = "multi_thread")]
async fn aborted_exchanges_and_short_connections_leave_nothing() {
    let harness = Harness::new().await;
    let mut client = harness.client("client", 1).await;
    let round = |from: u32| -> String {
        (from..from + 500).map(|id| format!("AUTH|{id}|LOGIN|service=smtp\nCANCEL|{id}\n")).collect()
    };
    let mut after_warm_up = 0;
    for n in 0..40 {
        client.send(&round(n * 500 + 1)).await;
        for line in client.lines(500).await {
            assert!(line.starts_with("CONT|"), "{line}");
        }
        if n == 5 {
            after_warm_up = resident();
        }
    }
    for _ in 0..1_000 {
        drop(harness.connect("client").await);
        let mut mux = harness.connect("mux").await;
        mux.send_raw(b"\0\x03bo").await;
    }
    assert!(harness.plain("bob", "pw", "").await.starts_with("OK"));
    // Other tests run in this process, so only a leak of kilobytes per exchange would show here for certain.
    let grown = resident().saturating_sub(after_warm_up);
    assert!(grown < 100 * 1024, "{grown} KiB more");
}

/// Logins at the memory limit do not slow those that need no hash.
#[tokio::test(flavor = "multi_thread")]
async fn cheap_logins_overtake_expensive_ones() {
    const COSTLY: &str = "$6$rounds=60000$abcdefgh$";
    let harness = Harness::with(|slice| {
        // The hash is never right; what counts is that computing it takes its time.
        let mut users = USERS.to_owned();
        for n in 0..40 {
            users += &format!("costly{n}:{{SHA512-CRYPT}}{COSTLY}{}\n", ".".repeat(86));
        }
        std::fs::write(slice.state_dir.join("users"), users).unwrap();
    })
    .await;
    let mut slow = harness.client("client", 1).await;
    for n in 0..40 {
        let response = encode(&format!("^costly{n}^pw"));
        slow.send(&format!("AUTH|{}|PLAIN|service=smtp|resp={response}\n", n + 1)).await;
    }
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert!(harness.plain("bob", "pw", "").await.starts_with("OK"));
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
    assert!(slow.lines(40).await.iter().all(|line| line.starts_with("FAIL|")));
}
