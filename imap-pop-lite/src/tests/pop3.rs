//! POP3 on the same mail.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_session() {
    let server = Server::start();
    server.deliver("Subject: 1\n\n.dot\nbody\n");
    server.deliver("Subject: 2\n\nbody\n");
    let mut peer = Peer::plain(server.pop3).await;
    assert!(peer.line().await.starts_with("+OK "));
    peer.send("USER user\r\n").await;
    assert!(peer.line().await.starts_with("-ERR "));
    peer.send("STLS\r\n").await;
    assert!(peer.line().await.starts_with("+OK "));
    let mut peer = peer.upgrade(&server.client).await;
    for (send, want) in [
        ("USER user", "+OK"),
        ("PASS wrong", "-ERR [AUTH]"),
        ("USER user", "+OK"),
        ("PASS pass", "+OK"),
        ("STAT", "+OK 2 46"),
        ("LIST 1", "+OK 1 26"),
        ("RETR 1", "+OK 26 octets"),
        ("", "Subject: 1"),
        ("", ""),
        ("", "..dot"),
        ("", "body"),
        ("", "."),
        ("TOP 2 0", "+OK"),
        ("", "Subject: 2"),
        ("", ""),
        ("", "."),
        ("DELE 2", "+OK"),
        ("QUIT", "+OK"),
    ] {
        if !send.is_empty() {
            peer.send(&format!("{send}\r\n")).await;
        }
        let got = peer.line().await;
        assert!(got.starts_with(want), "{send}: {got}");
    }
    let mut imap = server.imap_client().await;
    imap.ask("a SELECT INBOX").await;
    assert_eq!(imap.ask("b FETCH 1:* (UID FLAGS)").await[0], "* 1 FETCH (UID 1 FLAGS (\\Seen))");
    assert_eq!(imap.ask("c STATUS INBOX (MESSAGES)").await[0], "* STATUS INBOX (MESSAGES 1)");
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_ids_and_a_lost_connection() {
    let server = Server::start();
    server.deliver("Subject: 1\n\nbody\n");
    let mut imap = server.imap_client().await;
    let validity = imap.ask("a STATUS INBOX (UIDVALIDITY)").await.remove(0);
    let validity: u32 = validity.rsplit_once(' ').unwrap().1.trim_end_matches(')').parse().unwrap();
    for _ in 0..2 {
        let mut peer = server.tls(server.pop3s).await;
        peer.send("AUTH PLAIN AHVzZXIAcGFzcw==\r\nUIDL\r\nDELE 1\r\n").await;
        assert!(peer.line().await.starts_with("+OK"));
        let lines = peer.until(".").await;
        assert_eq!(lines[1], format!("1 {:08x}{validity:08x}", 1));
        assert!(peer.line().await.starts_with("+OK"));
        // Gone without QUIT: the message stays.
    }
    assert_eq!(imap.ask("b STATUS INBOX (MESSAGES)").await[0], "* STATUS INBOX (MESSAGES 1)");
}
