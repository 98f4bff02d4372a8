//! Several sessions on one mailbox, IDLE, and changes by others.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn numbers_stay_until_told() {
    let server = Server::start();
    for n in 1..=5 {
        server.deliver(&format!("Subject: {n}\n\nbody\n"));
    }
    server
        .play(
            r#"A> a SELECT INBOX
               A<< a
               B> a SELECT INBOX
               B<< a
               A> b STORE 2 +FLAGS.SILENT (\Deleted)
               A< b OK …
               A> c EXPUNGE
               A< * 2 EXPUNGE
               A< * 4 RECENT
               A< c OK …
               B> b FETCH 1:5 UID
               B< * 1 FETCH (UID 1)
               B< * 2 FETCH (UID 2)
               B< * 3 FETCH (UID 3)
               B< * 4 FETCH (UID 4)
               B< * 5 FETCH (UID 5)
               B< b OK …
               B> c SEARCH ALL
               B< * SEARCH 1 2 3 4 5
               B< c OK …
               B> d FETCH 2 BODY[]
               B< * 2 FETCH (BODY[] NIL)
               B< d OK [EXPUNGEISSUED] …
               B> e STORE 3 +FLAGS (\Flagged)
               B< * 3 FETCH (FLAGS (\Flagged))
               B< e OK …
               B> f NOOP
               B< * 2 EXPUNGE
               B< f OK …
               B> g FETCH 2 UID
               B< * 2 FETCH (UID 3)
               B< g OK …
               A> d NOOP
               A< * 2 FETCH (FLAGS (\Flagged \Recent))
               A< d OK …
               A> e UID STORE 4 +FLAGS.SILENT (\Deleted)
               A< e OK …
               A> f UID EXPUNGE 4
               A< * 3 EXPUNGE
               A< * 3 RECENT
               A< f OK …
               B> h UID FETCH 5 UID
               B< * 4 FETCH (UID 5)
               B< * 3 EXPUNGE
               B< h OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_pushes_everything() {
    let server = Server::start();
    server.deliver("Subject: 1\n\nbody\n");
    let mut idle = server.imap_client().await;
    idle.ask("a SELECT INBOX").await;
    idle.send("b IDLE\r\n").await;
    assert_eq!(idle.line().await, "+ idling");

    // A delivery by somebody else.
    server.deliver("Subject: 2\n\nbody\n");
    assert_eq!(idle.line().await, "* 2 EXISTS");
    assert_eq!(idle.line().await, "* 2 RECENT");

    // Another session's changes.
    let mut other = server.imap_client().await;
    other.ask("a SELECT INBOX").await;
    other.ask("b STORE 1 +FLAGS.SILENT (\\Deleted)").await;
    assert_eq!(idle.line().await, "* 1 FETCH (FLAGS (\\Deleted \\Recent))");
    other.ask("c EXPUNGE").await;
    assert_eq!(idle.line().await, "* 1 EXPUNGE");
    assert_eq!(idle.line().await, "* 1 RECENT");
    other.ask("d APPEND INBOX {10+}\r\nSubject: 3").await;
    assert_eq!(idle.line().await, "* 2 EXISTS");

    idle.send("DONE\r\n").await;
    let lines = idle.until("b ").await;
    assert_eq!(lines.last().unwrap(), "b OK Idle completed.");
    // Afterwards nothing comes unasked.
    server.deliver("Subject: 4\n\nbody\n");
    idle.act("+ 200", 0).await;
    assert_eq!(idle.ask("c NOOP").await[0], "* 3 EXISTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_without_a_mailbox() {
    Server::start()
        .play(
            "A> a IDLE
             A< + idling
             A> DONE
             A< a OK …
             A> b IDLE
             A< + idling
             A> c NOOP
             A< b BAD …
             A> d NOOP
             A< d OK …",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_commands_are_answered_in_order() {
    let server = Server::start();
    server.deliver("Subject: 1\n\nbody\n");
    server
        .play(
            r#"A> a SELECT INBOX\r\nb STORE 1 +FLAGS (\Deleted)\r\nc EXPUNGE\r\nd FETCH 1:* UID\r\ne NOOP
               A<< a
               A< * 1 FETCH (FLAGS (\Deleted \Recent))
               A< b OK …
               A< * 1 EXPUNGE
               A< * 0 RECENT
               A< c OK …
               A< d OK …
               A< e OK …"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_mailbox_ends_its_selection() {
    let server = Server::start();
    server
        .play(
            r#"A> a CREATE x
               A< a OK …
               A> b SELECT x
               A<< b
               B> a DELETE x
               B< a OK …
               A> c NOOP
               A< c NO …
               A> d FETCH 1:* FLAGS
               A< d BAD …
               A> e SELECT INBOX
               A<< e"#,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn literals_and_limits_over_the_wire() {
    let server = Server::start_with(|slice| slice.imap.max_literal = 1000);
    let mut peer = server.imap_client().await;
    assert!(peer.ask("a APPEND INBOX {1001}").await[0].starts_with("a NO [TOOBIG]"));
    let big = "x".repeat(1001);
    assert!(peer.ask(&format!("b APPEND INBOX {{1001+}}\r\n{big}")).await[0].starts_with("b NO [TOOBIG]"));
    assert_eq!(peer.ask("c NOOP").await, ["c OK Completed."]);
    assert!(peer.ask("d FROB").await[0].starts_with("d BAD Unknown command"));
    assert_eq!(peer.ask("e ID (\"name\" \"test\")").await[0], "* ID (\"name\" \"Postern\")");
}
