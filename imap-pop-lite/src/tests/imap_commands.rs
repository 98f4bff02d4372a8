//! Login, mailboxes, flags, APPEND, COPY, SEARCH.

use super::*;

const MESSAGE: &str = "From: Ann <ann@a.test>\nTo: user@mail.test\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?= one\n\
                       Date: Fri, 21 Nov 1997 09:55:06 -0600\nMessage-ID: <1@a.test>\n\nHello World\nsecond line\n";

#[tokio::test(flavor = "multi_thread")]
async fn login_needs_tls() {
    let server = Server::start();
    let mut peer = Peer::plain(server.imap).await;
    let greeting = peer.line().await;
    assert!(greeting.contains(" STARTTLS LOGINDISABLED]") && !greeting.contains("AUTH="), "{greeting}");
    assert!(peer.ask("a LOGIN user pass").await[0].starts_with("a NO [PRIVACYREQUIRED] "));
    assert_eq!(peer.ask("b STARTTLS").await, ["b OK Begin TLS negotiation now."]);
    let mut peer = peer.upgrade(&server.client).await;
    let capabilities = peer.ask("c CAPABILITY").await;
    assert!(capabilities[0].ends_with(" AUTH=PLAIN AUTH=LOGIN"), "{capabilities:?}");
    assert!(peer.ask("d LOGIN user wrong").await[0].starts_with("d NO [AUTHENTICATIONFAILED] "));
    assert!(peer.ask("e LOGIN user down").await[0].starts_with("e NO [UNAVAILABLE] "));
    assert!(peer.ask("f LOGIN user old").await[0].starts_with("f NO [EXPIRED] "));
    assert!(peer.ask("g LOGIN user off").await[0].starts_with("g NO [CONTACTADMIN] "));
    peer.send("h AUTHENTICATE PLAIN\r\n").await;
    assert_eq!(peer.line().await, "+ ");
    peer.send("AHVzZXIAcGFzcw==\r\n").await;
    assert!(
        peer.line()
            .await
            .starts_with("h OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE NAMESPACE ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn injected_commands_end_the_connection() {
    let server = Server::start();
    let mut peer = Peer::plain(server.imap).await;
    peer.line().await;
    peer.send("a STARTTLS\r\nb LOGIN user pass\r\n").await;
    let lines = peer.until("nothing").await;
    assert!(lines[0].starts_with("a BAD ") && lines[1].starts_with("* BYE "), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_login_makes_the_folders() {
    let server = Server::start();
    let mut peer = server.imap_client().await;
    let mut lines = peer.ask("a LIST \"\" *").await;
    assert_eq!(lines.pop().as_deref(), Some("a OK List completed."));
    lines.sort();
    assert_eq!(
        lines,
        [
            "* LIST (\\HasNoChildren \\Archive) \"/\" Archive",
            "* LIST (\\HasNoChildren \\Drafts) \"/\" Drafts",
            "* LIST (\\HasNoChildren \\Junk) \"/\" Junk",
            "* LIST (\\HasNoChildren \\Sent) \"/\" Sent",
            "* LIST (\\HasNoChildren \\Trash) \"/\" Trash",
            "* LIST (\\HasNoChildren) \"/\" INBOX",
        ]
    );
    assert_eq!(peer.ask("b LSUB \"\" *").await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders() {
    Server::start()
        .play(
            r#"A> a LIST "" ""
               A< * LIST (\Noselect) "/" ""
               A< a OK …
               A> b NAMESPACE
               A< * NAMESPACE (("" "/")) NIL NIL
               A< b OK …
               A> c CREATE Lists/rust/
               A< c OK …
               A> c2 CREATE Lists/rust
               A< c2 NO [ALREADYEXISTS] …
               A> d LIST "" %
               A<< d
               A> e LIST "" Lists*
               A< * LIST (\Noselect \HasChildren) "/" Lists
               A< * LIST (\HasNoChildren) "/" Lists/rust
               A< e OK …
               A> f LIST Lists/ %
               A< * LIST (\HasNoChildren) "/" Lists/rust
               A< f OK …
               A> g SELECT Lists
               A< g NO [NONEXISTENT] …
               A> h SUBSCRIBE Lists/rust
               A< h OK …
               A> i LIST (SUBSCRIBED RECURSIVEMATCH) "" L%
               A< * LIST (\NonExistent \HasChildren) "/" Lists ("CHILDINFO" ("SUBSCRIBED"))
               A< i OK …
               A> j LSUB "" L%
               A< * LSUB (\Noselect) "/" Lists
               A< j OK …
               A> k RENAME Lists/rust "Entw&APw-rfe"
               A< k OK …
               A> l LIST "" Entw* RETURN (STATUS (MESSAGES UIDNEXT SIZE) SUBSCRIBED)
               A< * LIST (\HasNoChildren) "/" Entw&APw-rfe
               A< * STATUS Entw&APw-rfe (MESSAGES 0 UIDNEXT 1 SIZE 0)
               A< l OK …
               A> m LIST (SPECIAL-USE) "" * RETURN (SPECIAL-USE)
               A<< m
               A> n DELETE "Entw&APw-rfe"
               A< n OK …
               A> o DELETE "Entw&APw-rfe"
               A< o NO [NONEXISTENT] …
               A> p DELETE INBOX
               A< p NO [CANNOT] …
               A> q CREATE a.b
               A< q NO [CANNOT] …
               A> r CREATE ../x
               A< r NO [CANNOT] …
               A> s CREATE "x&"
               A< s NO [CANNOT] …
               A> t STATUS INBOX (MESSAGES UNSEEN APPENDLIMIT)
               A< * STATUS INBOX (MESSAGES 0 UNSEEN 0 APPENDLIMIT 67108864)
               A< t OK …
               A> u SUBSCRIBE nowhere
               A< u NO [NONEXISTENT] …
               A> v LIST (SUBSCRIBED) "" Lists*
               A< * LIST (\NonExistent \HasNoChildren \Subscribed) "/" Lists/rust
               A< v OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_selected_folder_may_be_renamed_and_deleted() {
    let server = Server::start();
    server
        .play(
            r#"A> a CREATE one
               A< a OK …
               A> b SELECT one
               A<< b
               A> c RENAME one two
               A< * OK [CLOSED] …
               A< c OK …
               A> d FETCH 1:* FLAGS
               A< d BAD …
               A> e SELECT two
               A<< e
               A> f DELETE two
               A< * OK [CLOSED] …
               A< f OK …
               A> g CLOSE
               A< g BAD …
               A> h LIST "" two
               A< h OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn selecting() {
    let server = Server::start();
    server.deliver(MESSAGE);
    server
        .play(
            r#"A> a EXAMINE INBOX
               A< * FLAGS (\Answered \Flagged \Deleted \Seen \Draft)
               A< * OK [PERMANENTFLAGS ()] …
               A< * 1 EXISTS
               A< * 1 RECENT
               A< * OK [UNSEEN 1] …
               A< * OK [UIDVALIDITY …
               A< * OK [UIDNEXT 2] …
               A< a OK [READ-ONLY] …
               A> b STORE 1 +FLAGS (\Seen)
               A< b NO [READ-ONLY] …
               A> c SELECT inbox
               A< * OK [CLOSED] …
               A< * FLAGS (\Answered \Flagged \Deleted \Seen \Draft)
               A< * OK [PERMANENTFLAGS (\Answered \Flagged \Deleted \Seen \Draft \*)] …
               A< * 1 EXISTS
               A< * 1 RECENT
               A< * OK [UNSEEN 1] …
               A< * OK [UIDVALIDITY …
               A< * OK [UIDNEXT 2] …
               A< c OK [READ-WRITE] …
               A> d SELECT nowhere
               A< * OK [CLOSED] …
               A< d NO [NONEXISTENT] …
               A> e FETCH 1 FLAGS
               A< e BAD …
               A> f SELECT INBOX
               A<< f
               A> g UNSELECT
               A< g OK …
               A> h CLOSE
               A< h BAD …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storing_and_expunging() {
    let server = Server::start();
    for _ in 0..5 {
        server.deliver(MESSAGE);
    }
    server
        .play(
            r#"A> a SELECT INBOX
               A<< a
               A> b STORE 1:2 +FLAGS (\Deleted)
               A< * 1 FETCH (FLAGS (\Deleted \Recent))
               A< * 2 FETCH (FLAGS (\Deleted \Recent))
               A< b OK …
               A> c STORE 3 FLAGS.SILENT ($Work \Seen)
               A< * FLAGS (\Answered \Flagged \Deleted \Seen \Draft $Work)
               A< * OK [PERMANENTFLAGS (\Answered \Flagged \Deleted \Seen \Draft $Work \*)] …
               A< c OK …
               A> d UID STORE 3 -FLAGS (\Seen)
               A< * 3 FETCH (UID 3 FLAGS ($Work \Recent))
               A< d OK …
               A> e UID EXPUNGE 2:5
               A< * 2 EXPUNGE
               A< * 4 RECENT
               A< e OK …
               A> f FETCH 1:* UID
               A< * 1 FETCH (UID 1)
               A< * 2 FETCH (UID 3)
               A< * 3 FETCH (UID 4)
               A< * 4 FETCH (UID 5)
               A< f OK …
               A> g EXPUNGE
               A< * 1 EXPUNGE
               A< * 3 RECENT
               A< g OK …
               A> h STORE 9 +FLAGS (\Seen)
               A< h BAD …
               A> i UID STORE 99 +FLAGS (\Seen)
               A< i OK …
               A> j STORE 1 +FLAGS (\Recent)
               A< j BAD …
               A> k STORE 1:2 +FLAGS.SILENT (\Deleted)
               A< k OK …
               A> l CLOSE
               A< l OK …
               A> m STATUS INBOX (MESSAGES)
               A< * STATUS INBOX (MESSAGES 1)
               A< m OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appending() {
    Server::start()
        .play(
            r#"A> a APPEND INBOX (\Seen $x) "01-Feb-2020 10:00:00 +0100" {5}
               A< + OK
               A> hello
               A< a OK [APPENDUID … 1] …
               A> b APPEND nowhere {5}
               A< b NO [TRYCREATE] …
               A> c APPEND nowhere {5+}\r\nhello
               A< c NO [TRYCREATE] …
               A> d APPEND INBOX {99999999999}
               A< d NO [TOOBIG] …
               A> e APPEND INBOX {0}
               A< e NO …
               A> f SELECT INBOX
               A<< f
               A> g FETCH 1 (FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])
               A< * 1 FETCH (FLAGS (\Seen $x…) INTERNALDATE "01-Feb-2020 09:00:00 +0000" RFC822.SIZE 5 BODY[] {5}
               A< hello)
               A< g OK …
               A> h APPEND INBOX {14+}\r\nSubject: x\r\n\r\n
               A< * 2 EXISTS
               A< …
               A<< h
               A> i APPEND INBOX (\Bad) {3+}\r\nabc
               A< i BAD …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_a_message_is_refused() {
    let server = Server::start();
    let mut peer = server.imap_client().await;
    peer.send_bytes(b"a APPEND INBOX {3+}\r\na\0b\r\n").await;
    assert!(peer.line().await.starts_with("a NO "));
    assert_eq!(peer.ask("b STATUS INBOX (MESSAGES)").await[0], "* STATUS INBOX (MESSAGES 0)");
    assert_eq!(files(&server.maildir().join("tmp")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn copying_and_moving() {
    let server = Server::start();
    for _ in 0..4 {
        server.deliver(MESSAGE);
    }
    server
        .play(
            r#"A> a SELECT INBOX
               A<< a
               A> b COPY 1:2,4 Archive
               A< b OK [COPYUID … 1:2,4 1:3] …
               A> c COPY 1 nowhere
               A< c NO [TRYCREATE] …
               A> d UID MOVE 2:3 Trash
               A< * OK [COPYUID … 2:3 1:2] …
               A< * 3 EXPUNGE
               A< * 2 EXPUNGE
               A< * 2 RECENT
               A< d OK …
               A> e UID COPY 77 Archive
               A< e OK …
               A> f COPY 77 Archive
               A< f BAD …
               A> g UID FETCH 1:* FLAGS
               A< * 1 FETCH (UID 1 FLAGS (\Recent))
               A< * 2 FETCH (UID 4 FLAGS (\Recent))
               A< g OK …
               A> h STATUS Archive (MESSAGES UIDNEXT)
               A< * STATUS Archive (MESSAGES 3 UIDNEXT 4)
               A< h OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn searching() {
    let server = Server::start();
    server.deliver(MESSAGE);
    server.deliver(
        "From: Bob <bob@b.test>\nSubject: zwei\nDate: 1 Feb 2024 00:30 +0900\nMIME-Version: 1.0\n\
         Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain; charset=utf-8\n\
         Content-Transfer-Encoding: base64\n\nw4TDlsOc\n--x\nContent-Type: text/plain; charset=iso-8859-1\n\
         Content-Transfer-Encoding: quoted-printable\n\nna=EFve so=\nft\n--x--\n",
    );
    let mut peer = server.imap_client().await;
    peer.ask("a SELECT INBOX").await;
    peer.ask("b STORE 2 +FLAGS.SILENT (\\Flagged $k)").await;
    for (search, want) in [
        ("ALL", "* SEARCH 1 2"),
        ("1:* NOT DELETED", "* SEARCH 1 2"),
        ("FLAGGED", "* SEARCH 2"),
        ("UNFLAGGED", "* SEARCH 1"),
        ("KEYWORD $K", "* SEARCH 2"),
        ("UNKEYWORD $k", "* SEARCH 1"),
        ("NEW", "* SEARCH 1 2"),
        ("OLD", "* SEARCH"),
        ("FROM ANN@", "* SEARCH 1"),
        ("SUBJECT {6+}\r\ngr\u{fc}\u{df}", "* SEARCH 1"),
        ("HEADER message-id \"\"", "* SEARCH 1"),
        ("HEADER X-None \"\"", "* SEARCH"),
        ("BODY \"hello world\"", "* SEARCH 1"),
        ("BODY subject", "* SEARCH"),
        ("TEXT subject", "* SEARCH 1 2"),
        ("CHARSET UTF-8 BODY {6+}\r\näöü", "* SEARCH 2"),
        ("CHARSET UTF-8 BODY \"naïve soft\"", "* SEARCH 2"),
        ("SENTON 21-Nov-1997", "* SEARCH 1"),
        ("SENTSINCE 1-Feb-2024", "* SEARCH 2"),
        ("SENTBEFORE 1-Feb-2024", "* SEARCH 1"),
        ("SINCE 1-Jan-2020", "* SEARCH 1 2"),
        ("BEFORE 1-Jan-2020", "* SEARCH"),
        ("YOUNGER 3600", "* SEARCH 1 2"),
        ("OLDER 3600", "* SEARCH"),
        ("LARGER 150 SMALLER 250", "* SEARCH 1"),
        ("OR SUBJECT zwei (FROM ann UNSEEN)", "* SEARCH 1 2"),
        ("UID 2:99", "* SEARCH 2"),
        ("UID *", "* SEARCH 2"),
        ("*", "* SEARCH 2"),
        ("RETURN (MIN MAX COUNT ALL) ALL", "* ESEARCH (TAG \"s\") MIN 1 MAX 2 ALL 1:2 COUNT 2"),
        ("RETURN () DELETED", "* ESEARCH (TAG \"s\")"),
        ("RETURN (COUNT) DELETED", "* ESEARCH (TAG \"s\") COUNT 0"),
    ] {
        let lines = peer.ask(&format!("s SEARCH {search}")).await;
        assert_eq!(lines, [want, "s OK Search completed."], "{search}");
    }
    assert_eq!(peer.ask("s UID SEARCH RETURN (ALL) 2").await[0], "* ESEARCH (TAG \"s\") UID ALL 2");
    assert!(peer.ask("s SEARCH 3").await[0].starts_with("s BAD "));
    assert!(peer.ask("s SEARCH CHARSET koi8-r ALL").await[0].starts_with("s NO [BADCHARSET "));
    peer.ask("c SELECT Trash").await;
    assert_eq!(peer.ask("s UID SEARCH 1:* NOT DELETED").await[0], "* SEARCH");
    assert_eq!(peer.ask("s FETCH 1:* FLAGS").await, ["s OK Fetch completed."]);
    assert!(peer.ask("s FETCH 1 FLAGS").await[0].starts_with("s BAD "));
}
