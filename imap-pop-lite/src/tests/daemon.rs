//! The daemon's `main` as the supervisor runs it, with an authentication server that is a few lines of text.

use std::io::{BufRead as _, BufReader as LineReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

const COOKIE: &str = "00112233445566778899aabbccddeeff";

/// Answers every AUTH of `user`/`pass` with OK, and every REQUEST with a home.
fn auth_server(state: &Path) -> conf::AuthSockets {
    let sockets = conf::AuthSockets {
        login: state.join("login"),
        session: state.join("session"),
        userdb: state.join("userdb"),
    };
    let greeting = format!(
        "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t{COOKIE}\nDONE\n"
    );
    serve(&sockets.login, greeting, |words| {
        let [b"AUTH", id, b"PLAIN", params @ ..] = words else { return None };
        for needed in ["service=imap", "secured=tls", "lip=127.0.0.1", "rip=127.0.0.1"] {
            assert!(params.contains(&needed.as_bytes()), "{needed} is missing");
        }
        let right = params.contains(&b"resp=AHVzZXIAcGFzcw==".as_slice());
        let id = String::from_utf8_lossy(id).into_owned();
        Some(if right {
            format!("OK\t{id}\tuser=user@mail.test\n")
        } else {
            format!("FAIL\t{id}\tuser=user\n")
        })
    });
    let home = state.join("home/user");
    serve(&sockets.session, "VERSION\t1\t1\nSPID\t1\n".to_owned(), move |words| {
        let [b"REQUEST", id, ..] = words else { return None };
        let id = String::from_utf8_lossy(id).into_owned();
        Some(format!("USER\t{id}\tuser@mail.test\thome={}\n", home.display()))
    });
    sockets
}

fn serve(
    path: &Path,
    greeting: String,
    answer: impl Fn(&[&[u8]]) -> Option<String> + Clone + Send + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            let answer = answer.clone();
            thread::spawn(move || {
                for line in LineReader::new(stream.try_clone().unwrap()).split(b'\n') {
                    let Ok(line) = line else { return };
                    let words: Vec<&[u8]> = line.split(|b| *b == b'\t').collect();
                    if let Some(text) = answer(&words) {
                        stream.write_all(text.as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn start_reload_stop() {
    let state = tempfile::tempdir().unwrap();
    let (mut settings, pem) = slice(state.path());
    settings.auth = auth_server(state.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut sockets = Sockets::new();
    sockets.add_tcp("imaps", listener.try_clone().unwrap());
    let (start, mut supervisor) = boot::standalone("imap", settings.to_json().unwrap(), sockets).unwrap();
    let daemon = thread::spawn(move || crate::main(start));
    let mut supervisor = tokio::task::spawn_blocking(move || {
        supervisor.wait_ready(PATIENCE).unwrap();
        supervisor
    })
    .await
    .unwrap();

    let client = Client::new(&pem).unwrap();
    let connect = async || {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let tls = client.connect("mail.test", tcp).await.unwrap();
        Peer { io: Io::Tls(Box::new(BufReader::new(tls))), ended: false }
    };
    let mut peer = connect().await;
    assert!(peer.line().await.ends_with("] mail.test Postern ready."));
    assert!(peer.ask("a LOGIN user wrong").await[0].starts_with("a NO [AUTHENTICATIONFAILED] "));
    assert!(peer.ask("b LOGIN user pass").await[0].starts_with("b OK "));
    assert!(state.path().join("home/user/Maildir/cur").is_dir());
    peer.ask("c SELECT INBOX").await;
    peer.send("d IDLE\r\n").await;
    assert_eq!(peer.line().await, "+ idling");

    // A reload changes what new connections see; the idling one goes on.
    settings.hostname = "other.test".to_owned();
    let mut sockets = Sockets::new();
    sockets.add_tcp("imaps", listener.try_clone().unwrap());
    let json = settings.to_json().unwrap();
    let mut supervisor = tokio::task::spawn_blocking(move || {
        supervisor.reload(json, sockets, PATIENCE).unwrap().unwrap();
        let refused = supervisor.reload(b"{}".to_vec(), Sockets::new(), PATIENCE).unwrap();
        assert!(refused.is_err());
        supervisor
    })
    .await
    .unwrap();
    let mut second = connect().await;
    assert!(second.line().await.ends_with("] other.test Postern ready."));
    let maildir = maildir::Maildir::open(&state.path().join("home/user/Maildir")).unwrap();
    let mut delivery = maildir.delivery().unwrap();
    delivery.write(b"Subject: x\n\n").unwrap();
    delivery.finish().unwrap().commit().unwrap();
    assert_eq!(peer.line().await, "* 1 EXISTS");
    assert_eq!(peer.line().await, "* 1 RECENT");

    supervisor.stop(Duration::from_secs(5)).unwrap();
    assert!(peer.line().await.starts_with("* BYE [UNAVAILABLE] "));
    assert!(second.line().await.starts_with("* BYE [UNAVAILABLE] "));
    tokio::task::spawn_blocking(move || daemon.join().unwrap().unwrap()).await.unwrap();
    drop(supervisor);
}
