//! FETCH: sizes, line ends, sections, partials, structure.

use super::*;

const MIXED: &str = "From: =?utf-8?q?=C3=84?= <a@a.test>\nTo: G: b@b.test, c@c.test;\nSubject: say \"hi\"\nReply-To:\n\
                     Date: Fri, 21 Nov 1997 09:55:06 -0600\nMIME-Version: 1.0\n\
                     Content-Type: multipart/mixed; boundary=\"x\"\n\npreamble\n--x\nContent-Type: text/plain\n\none\ntwo\n\
                     --x\nContent-Type: message/rfc822\n\nSubject: inner\n\nin\n--x\n\
                     Content-Type: application/octet-stream; name=\"a.bin\"\n\
                     Content-Disposition: attachment; filename=\"a.bin\"\nContent-Transfer-Encoding: base64\n\nAAEC\n--x--\n";

/// The literal behind the first `{n}` of the answer to `command`.
async fn literal(peer: &mut Peer, command: &str) -> Vec<u8> {
    peer.send(&format!("l {command}\r\n")).await;
    let head = peer.line().await;
    let size =
        head.rsplit_once('{').unwrap_or_else(|| panic!("{head}")).1.trim_end_matches('}').parse().unwrap();
    let bytes = peer.exact(size).await;
    let rest = peer.until("l ").await;
    assert!(rest.last().unwrap().starts_with("l OK"), "{rest:?}");
    bytes
}

fn crlf(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_what_is_sent() {
    let server = Server::start();
    for text in [MIXED, "Subject: no body\n", "\nno header\n", "x", "a: b\r\n\r\nmixed\nline\r\nends\n\n"] {
        server.deliver(text);
    }
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    for number in 1..=5 {
        let size = peer.ask(&format!("b FETCH {number} RFC822.SIZE")).await.remove(0);
        let size: usize = size.rsplit_once(' ').unwrap().1.trim_end_matches(')').parse().unwrap();
        let whole = literal(&mut peer, &format!("FETCH {number} BODY.PEEK[]")).await;
        assert_eq!(whole.len(), size, "{number}");
        let mut joined = literal(&mut peer, &format!("FETCH {number} BODY.PEEK[HEADER]")).await;
        joined.extend(literal(&mut peer, &format!("FETCH {number} BODY.PEEK[TEXT]")).await);
        assert_eq!(joined, whole, "{number}");
        // A client that reads in pieces, and one piece more.
        let mut pieces = Vec::new();
        loop {
            let piece =
                literal(&mut peer, &format!("UID FETCH {number} (UID BODY.PEEK[]<{}.7>)", pieces.len()))
                    .await;
            if piece.is_empty() {
                break;
            }
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole, "{number}");
    }
    assert_eq!(literal(&mut peer, "FETCH 1 BODY.PEEK[]").await, crlf(MIXED));
    let lines = peer.ask("c FETCH 1 (BODY.PEEK[]<100000.5>)").await;
    assert_eq!(lines[0], "* 1 FETCH (BODY[]<100000> {0}");
    assert_eq!(lines[1], ")");
}

#[tokio::test(flavor = "multi_thread")]
async fn sections() {
    let server = Server::start();
    server.deliver(MIXED);
    server.deliver("Subject: plain\n\nbody\n");
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    for (section, want) in [
        ("1", "one\ntwo"),
        ("1.MIME", "Content-Type: text/plain\n\n"),
        ("2", "Subject: inner\n\nin"),
        ("2.HEADER", "Subject: inner\n\n"),
        ("2.TEXT", "in"),
        ("2.1", "in"),
        ("2.MIME", "Content-Type: message/rfc822\n\n"),
        ("3", "AAEC"),
        ("4", ""),
        ("1.1", ""),
        (
            "HEADER.FIELDS (subject X-None DATE)",
            "Subject: say \"hi\"\nDate: Fri, 21 Nov 1997 09:55:06 -0600\n\n",
        ),
        ("HEADER.FIELDS (X-None)", "\n"),
        ("2.HEADER.FIELDS.NOT (Subject)", "\n"),
    ] {
        let got = literal(&mut peer, &format!("FETCH 1 BODY.PEEK[{section}]")).await;
        assert_eq!(String::from_utf8(got).unwrap(), want.replace('\n', "\r\n"), "{section}");
    }
    for (section, want) in [("1", "body\n"), ("1.MIME", "Subject: plain\n\n"), ("2", "")] {
        let got = literal(&mut peer, &format!("FETCH 2 BODY.PEEK[{section}]")).await;
        assert_eq!(String::from_utf8(got).unwrap(), want.replace('\n', "\r\n"), "{section}");
    }
    let got = literal(&mut peer, "FETCH 1 BODY.PEEK[HEADER.FIELDS (Subject)]<9.3>").await;
    assert_eq!(got, b"say");
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_and_structure() {
    let server = Server::start();
    server.deliver(MIXED);
    server
        .play(
            r#"A> a SELECT INBOX
               A<< a
               A> b FETCH 1 ENVELOPE
               A< * 1 FETCH (ENVELOPE ("Fri, 21 Nov 1997 09:55:06 -0600" {8}
               A< say "hi" (("=?utf-8?q?=C3=84?=" NIL "a" "a.test")) (("=?utf-8?q?=C3=84?=" NIL "a" "a.test")) (("=?utf-8?q?=C3=84?=" NIL "a" "a.test")) ((NIL NIL "G" NIL)(NIL NIL "b" "b.test")(NIL NIL "c" "c.test")(NIL NIL NIL NIL)) NIL NIL NIL NIL))
               A< b OK …
               A> c FETCH 1 BODY
               A< * 1 FETCH (BODY (("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 8 1)("message" "rfc822" NIL NIL NIL "7bit" 20 (NIL "inner" NIL NIL NIL NIL NIL NIL NIL NIL) ("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 2 0) 2)("application" "octet-stream" ("name" "a.bin") NIL NIL "base64" 4) "mixed"))
               A< c OK …
               A> d FETCH 1 BODYSTRUCTURE
               A< * 1 FETCH (BODYSTRUCTURE (("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 8 1 NIL NIL NIL NIL)("message" "rfc822" NIL NIL NIL "7bit" 20 (NIL "inner" NIL NIL NIL NIL NIL NIL NIL NIL) ("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 2 0 NIL NIL NIL NIL) 2 NIL NIL NIL NIL)("application" "octet-stream" ("name" "a.bin") NIL NIL "base64" 4 NIL ("attachment" ("filename" "a.bin")) NIL NIL) "mixed" ("boundary" "x") NIL NIL NIL))
               A< d OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_marks_and_peeking_does_not() {
    let server = Server::start();
    server.deliver("Subject: x\n\nbody\n");
    server
        .play(
            r#"A> a SELECT INBOX
               A<< a
               A> b FETCH 1 (BODY.PEEK[TEXT] RFC822.HEADER)
               A< * 1 FETCH (BODY[TEXT] {6}
               A< body
               A<  RFC822.HEADER {14}
               A< Subject: x
               A<
               A< )
               A< b OK …
               A> c FETCH 1 FLAGS
               A< * 1 FETCH (FLAGS (\Recent))
               A< c OK …
               A> d FETCH 1 RFC822.TEXT
               A< * 1 FETCH (RFC822.TEXT {6}
               A< body
               A<  FLAGS (\Seen \Recent))
               A< d OK …
               A> e FETCH 1 BODY[TEXT]
               A< * 1 FETCH (BODY[TEXT] {6}
               A< body
               A< )
               A< e OK …
               A> f STORE 1 -FLAGS.SILENT (\Seen)
               A< f OK …
               A> g EXAMINE INBOX
               A<< g
               A> h FETCH 1 BODY[TEXT]
               A< * 1 FETCH (BODY[TEXT] {6}
               A< body
               A< )
               A< h OK …
               A> i FETCH 1 FLAGS
               A< * 1 FETCH (FLAGS (…))
               A< i OK …
               A> j SEARCH SEEN
               A< * SEARCH
               A< j OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nul_bytes_are_replaced() {
    let server = Server::start();
    server.imap_client().await;
    let new = server.maildir().join("new/1700000000.M1P1.other");
    std::fs::write(new, b"Subject: x\0y\n\na\0b\n").unwrap();
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    assert_eq!(literal(&mut peer, "FETCH 1 BODY[]").await, b"Subject: x\x80y\r\n\r\na\x80b\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_streamed() {
    let server = Server::start();
    let line = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz\n";
    let text = format!("Subject: big\n\n{}", line.repeat(50_000));
    server.deliver(&text);
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    let want = crlf(&text);
    assert!(literal(&mut peer, "FETCH 1 BODY.PEEK[]").await == want);
    // In pieces, going on and going back.
    for offset in [0usize, 100_000, 200_000, 150_000, 3_000_000, 3_100_000] {
        let got = literal(&mut peer, &format!("FETCH 1 BODY.PEEK[]<{offset}.100000>")).await;
        assert!(got == want[offset..offset + 100_000], "{offset}");
    }
    assert!(literal(&mut peer, "FETCH 1 BODY.PEEK[1]").await == want[16..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_in_one_fetch() {
    let server = Server::start();
    for n in 0..300 {
        server.deliver(&format!("Subject: {n}\n\n{}\n", "x".repeat(1000)));
    }
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    let lines = peer.ask("b UID FETCH 1:* (FLAGS BODY[])").await;
    assert_eq!(lines.iter().filter(|l| l.contains(" FETCH (UID ")).count(), 300);
    assert_eq!(lines.iter().filter(|l| l.contains("\\Seen")).count(), 300, "told once each");
    assert_eq!(peer.ask("c SEARCH UNSEEN").await[0], "* SEARCH");
}
