//! saslauthd's mux.

use std::time::Duration;

use auth_wire::Secret;
use auth_wire::mux::{ReplyParser, Request, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::harness::{Harness, PATIENCE};

fn request(login: &str, password: &str, service: &str, realm: &str) -> Vec<u8> {
    let request = Request {
        login: login.into(),
        password: Secret::from(password.as_bytes()),
        service: service.into(),
        realm: realm.into(),
        address: None,
    };
    request.encode().unwrap().to_vec()
}

/// Sends bytes; the text of the reply, or `None` when the connection was closed without one.
async fn ask(harness: &Harness, bytes: &[u8]) -> Option<String> {
    let mut stream = UnixStream::connect(harness.path("mux")).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    match ReplyParser::new().feed(&all).unwrap()? {
        Verdict::Ok(text) => Some(format!("OK {text}")),
        Verdict::No(text) => Some(format!("NO {text}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers() {
    let harness = Harness::new().await;
    let refused = Some("NO authentication failed".to_owned());
    let cases = [
        (request("bob", "pw", "smtp", ""), Some("OK Success.".to_owned())),
        (request("bob", "pw", "", ""), Some("OK Success.".to_owned())),
        (request("bob", "pw", "smtp", "other.test"), Some("OK Success.".to_owned())),
        (request("bob@mail.example.test", "pw", "smtp", ""), Some("OK Success.".to_owned())),
        (request("bob", "no", "smtp", ""), refused.clone()),
        (request("nobody", "pw", "smtp", ""), refused.clone()),
        (request("gone", "pw", "smtp", ""), refused.clone()),
        (request("away", "pw", "smtp", ""), refused.clone()),
        (request(&"x".repeat(300), "pw", "smtp", ""), refused.clone()),
        (request("bob", &"x".repeat(3000), "smtp", ""), refused.clone()),
        (request("", "pw", "smtp", ""), Some("NO NULL login received".to_owned())),
        (request("bob", "", "smtp", ""), Some("NO NULL password received".to_owned())),
        (b"\0\x03bob\0\x04pw\0x\0\0\0\0".to_vec(), Some("NO request contains a NUL byte".to_owned())),
        (
            [&request("bob", "pw", "smtp", "")[..], b"\0\x0b192.0.2.1;9"].concat(),
            Some("OK Success.".to_owned()),
        ),
        (
            [&request("nets", "pw", "smtp", "")[..], b"\0\x0b192.0.2.1;9"].concat(),
            Some("OK Success.".to_owned()),
        ),
        (request("nets", "pw", "smtp", ""), refused.clone()),
        // An outage has no answer.
        (request("collect", "pw", "smtp", ""), None),
    ];
    for (bytes, want) in cases {
        assert_eq!(ask(&harness, &bytes).await, want, "{}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn realms_are_joined_only_on_request() {
    let harness = Harness::with(|slice| {
        for listener in &mut slice.auth.listener {
            listener.join_realm = true;
        }
    })
    .await;
    for (login, realm, password, want) in [
        ("carol", "other.test", "summersun", "OK"),
        ("carol", "", "summersun", "NO"),
        ("bob", "", "pw", "OK"),
        ("bob", "mail.example.test", "pw", "OK"),
        ("bob", "other.test", "pw", "NO"),
    ] {
        let answer = ask(&harness, &request(login, password, "imap", realm)).await.unwrap();
        assert!(answer.starts_with(want), "{login} {realm}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_truncation_and_probes() {
    let harness = Harness::new().await;
    let bytes = request("bob", "pw", "smtp", "");
    let mut stream = UnixStream::connect(harness.path("mux")).await.unwrap();
    for byte in &bytes {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(&all[..4], b"\0\x0bOK");
    for cut in [0, 1, 5, bytes.len() - 1] {
        let mut stream = UnixStream::connect(harness.path("mux")).await.unwrap();
        stream.write_all(&bytes[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
        assert!(all.is_empty(), "cut {cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_wait_here_too() {
    let harness = Harness::with(|slice| slice.auth.failure_delay = Duration::from_millis(200)).await;
    let began = std::time::Instant::now();
    assert!(ask(&harness, &request("bob", "pw", "smtp", "")).await.unwrap().starts_with("OK"));
    assert!(began.elapsed() < Duration::from_millis(150));
    assert!(ask(&harness, &request("bob", "no", "smtp", "")).await.unwrap().starts_with("NO"));
    assert!(began.elapsed() >= Duration::from_millis(200));
}
