//! SMTP: smuggling, injection before TLS, state that must not leak from one transaction into the next.

use std::fs;
use std::time::Duration;

use crate::hostile::{Client, address, base64, bounded, start};
use crate::support::{HOSTNAME, PASSWORD, Stack, USER, wait_for};

/// An inbound connection that has sent DATA.
async fn data(stack: &Stack, to: &str) -> Client {
    let mut client = Client::tcp(stack, 25).await;
    client.expect("220").await;
    client.ask("EHLO client.test").await;
    for line in ["MAIL FROM:<a@remote.test>", &format!("RCPT TO:<{}>", address(to))] {
        let answer = client.ask(line).await;
        assert!(answer.starts_with("250"), "{line}: {answer}");
    }
    let answer = client.ask("DATA").await;
    assert!(answer.starts_with("354"), "{answer}");
    client
}

/// Waits until the server has read what was sent to this port: what comes next is a read of its own.
fn all_read(stack: &Stack, offset: u16) {
    // `sl local_address rem_address st tx_queue:rx_queue …`, in hexadecimal.
    let local = format!(":{:04X}", stack.port(offset));
    wait_for("the server to read", || {
        let table = fs::read_to_string("/proc/net/tcp").expect("table");
        let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let unread = sockets.any(|fields| {
            let [_, address, _, state, queues, ..] = fields[..] else { return false };
            // The queue of a socket that listens is of connections.
            address.ends_with(&local) && state != "0A" && !queues.ends_with(":00000000")
        });
        (!unread).then_some(())
    });
}

/// Submission over TLS, logged in.
async fn submission(stack: &Stack) -> Client {
    let mut client = Client::tls(stack, 465).await;
    client.expect("220").await;
    client.ask("EHLO client.test").await;
    let answer = client.ask(&format!("AUTH PLAIN {}", base64(format!("\0{USER}\0{PASSWORD}")))).await;
    assert!(answer.starts_with("235"), "{answer}");
    client
}

/// Everything that was taken for the end of the data somewhere, but is not CRLF.CRLF.
const FALSE_ENDS: [&str; 16] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r.\r\n",
    "\r\n.\r",
    "\n.\r",
    "\r.\n",
    "\r\n.\r\r\n",
    "\r\r\n.\r\r\n",
    "\r\n\0.\r\n",
    "\r\n.\0\r\n",
    "\r\n. \r\n",
    "\r\n..\r\n",
    "\r\n.\x0b\r\n",
    "\n\r\n.\n\r\n",
];

#[test]
fn smuggled_messages_stay_inside_the_first_one() {
    let stack = start();
    stack.add_user("bob", "bobs secret");
    bounded(async {
        for (number, end) in FALSE_ENDS.into_iter().enumerate() {
            let mut client = data(&stack, USER).await;
            // In pieces, cut inside the false end: what is read together must not matter.
            let head = format!("Subject: outer{number}\r\n\r\nbody{}", &end[..1]);
            let tail = format!(
                "{}MAIL FROM:<evil@remote.test>\r\nRCPT TO:<{}>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil\r\n.\r\nNOOP\r\n",
                &end[1..],
                address("bob")
            );
            client.send(head).await;
            all_read(&stack, 25);
            client.send(tail).await;
            let verdict = client.reply().await;
            assert!(verdict.starts_with(['2', '4', '5']), "{end:?}: {verdict}");
            // One answer for the data, one for NOOP: no line in between was a command.
            let noop = client.reply().await;
            assert!(noop.starts_with("250 2.0.0"), "{end:?}: {noop}");
            assert_eq!(client.arrives(Duration::from_millis(20)).await, "", "{end:?}");
            assert!(client.ask("QUIT").await.starts_with("221"), "{end:?}");
        }
        assert_eq!(stack.messages("bob"), Vec::<std::path::PathBuf>::new(), "a smuggled message arrived");
        for file in stack.messages(USER) {
            let bytes = fs::read(&file).expect("message");
            assert!(
                bytes.starts_with(b"Return-Path: <a@remote.test>"),
                "{}",
                String::from_utf8_lossy(&bytes)
            );
            // Whoever reads it later, or sends it on, finds no line end to disagree about.
            let text = String::from_utf8_lossy(&bytes).replace("\r\n", "");
            let bare = text.contains('\r') || (bytes.windows(2).any(|w| w == b"\r\n") && text.contains('\n'));
            assert!(!bare, "a bare CR or LF was stored: {text:?}");
        }
    });
}

#[test]
fn smuggling_through_submission_and_pipelined_data_fails_too() {
    let stack = start();
    bounded(async {
        let mut client = submission(&stack).await;
        for end in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n"] {
            for line in
                [&format!("MAIL FROM:<{}>", address(USER)), &format!("RCPT TO:<{}>", address(USER)), "DATA"]
            {
                let answer = client.ask(line).await;
                assert!(answer.starts_with(['2', '3']), "{line}: {answer}");
            }
            client
                .send(format!("Subject: x\r\n\r\nbody{end}MAIL FROM:<root@{HOSTNAME}>\r\n.\r\nNOOP\r\n"))
                .await;
            let (verdict, noop) = (client.reply().await, client.reply().await);
            assert!(verdict.starts_with(['2', '5']) && noop.starts_with("250 2.0.0"), "{verdict} {noop}");
        }
        // A refused DATA with the message already behind it: its lines are not commands.
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        client.ask("EHLO client.test").await;
        client
            .send(format!(
                "MAIL FROM:<a@remote.test>\r\nRCPT TO:<nobody-here@{HOSTNAME}>\r\nDATA\r\nRSET\r\nMAIL FROM:<evil@remote.test>\r\nRCPT TO:<{}>\r\nDATA\r\nevil\r\n.\r\n",
                address(USER)
            ))
            .await;
        let said = client.rest(Duration::from_secs(10)).await.expect("closed");
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("354"), "{said}");
        assert!(
            !stack
                .messages(USER)
                .iter()
                .any(|file| { fs::read_to_string(file).is_ok_and(|text| text.contains("evil@remote.test")) })
        );
    });
}

#[test]
fn nothing_sent_before_tls_counts_after_it() {
    let stack = start();
    bounded(async {
        for (offset, start, injected, greeting) in [
            (587, "EHLO before.test\r\n", "STARTTLS\r\nEHLO injected.test\r\n", "220"),
            (587, "EHLO before.test\r\n", "STARTTLS\r\n\r\n", "220"),
            (25, "EHLO before.test\r\n", "STARTTLS\r\nMAIL FROM:<evil@remote.test>\r\n", "220"),
            (143, "", "s STARTTLS\r\nx LOGIN alice evil\r\n", "* OK"),
            (143, "", "s STARTTLS\r\nx NOOP\r\n", "* OK"),
            (110, "", "STLS\r\nUSER evil\r\n", "+OK"),
            (110, "", "STLS\r\nCAPA\r\n", "+OK"),
        ] {
            // In one packet: the connection ends, and nothing injected is answered.
            let mut client = Client::tcp(&stack, offset).await;
            client.expect(greeting).await;
            if !start.is_empty() {
                client.send(start).await;
                client.reply().await;
            }
            client.send(injected).await;
            let said = client.rest(Duration::from_secs(5)).await;
            let said = said.unwrap_or_else(|| panic!("+{offset} {injected:?}: still open"));
            let said = String::from_utf8_lossy(&said);
            // The last words may be two, but none is about the injected command.
            let answered = said
                .lines()
                .any(|line| ["250", "x ", "+OK", "."].iter().any(|start| line.starts_with(start)));
            assert!(!answered && said.lines().count() <= 2, "+{offset} {injected:?}: {said}");

            // In two packets: the second is taken for a handshake and fails it.
            let mut client = Client::tcp(&stack, offset).await;
            client.expect(greeting).await;
            if !start.is_empty() {
                client.send(start).await;
                client.reply().await;
            }
            let (first, second) = injected.split_once("\r\n").expect("two lines");
            client.send(format!("{first}\r\n")).await;
            client.line().await.expect("go ahead");
            client.send(second).await;
            let after = client.rest(Duration::from_secs(5)).await;
            let after = after.unwrap_or_else(|| panic!("+{offset} {second:?}: still open"));
            let readable = after.iter().filter(|b| b.is_ascii_alphanumeric()).count();
            assert!(readable < 8, "+{offset}: answered in clear: {:?}", String::from_utf8_lossy(&after));
        }
    });
}

#[test]
fn what_was_said_before_tls_is_forgotten() {
    let stack = start();
    bounded(async {
        // Sender and recipient before STARTTLS: gone. So is the greeting's name.
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        client.ask("EHLO before.test").await;
        client.ask("MAIL FROM:<before@remote.test>").await;
        client.ask(&format!("RCPT TO:<{}>", address(USER))).await;
        assert!(client.ask("STARTTLS").await.starts_with("220"));
        let mut client = client.secure(&stack).await;
        assert!(client.ask("DATA").await.starts_with("503"));
        assert!(client.ask("MAIL FROM:<x@remote.test>").await.starts_with("503"), "EHLO is needed again");
        client.ask("EHLO after.test").await;
        assert!(client.ask("DATA").await.starts_with("503"));
        assert!(client.ask("STARTTLS").await.starts_with("503"), "TLS in TLS");

        // IMAP: a client that believed an answer in clear must not be misled: the capabilities change.
        let mut client = Client::tcp(&stack, 143).await;
        let clear = client.expect("* OK").await;
        assert!(clear.contains("STARTTLS") && clear.contains("LOGINDISABLED"), "{clear}");
        client.send("a STARTTLS\r\n").await;
        client.expect("a OK").await;
        let mut client = client.secure(&stack).await;
        client.send("b CAPABILITY\r\n").await;
        let inside = client.until("b ").await.join(" ");
        assert!(!inside.contains("STARTTLS") && !inside.contains("LOGINDISABLED"), "{inside}");
        client.send("c STARTTLS\r\n").await;
        let again = client.until("c ").await.join(" ");
        assert!(again.starts_with("c BAD") || again.starts_with("c NO"), "{again}");

        // POP3: USER before STLS does not meet PASS after it.
        let mut client = Client::tcp(&stack, 110).await;
        client.expect("+OK").await;
        client.send(format!("USER {USER}\r\n")).await;
        client.expect("-ERR").await;
        client.send("STLS\r\n").await;
        client.expect("+OK").await;
        let mut client = client.secure(&stack).await;
        client.send(format!("PASS {PASSWORD}\r\n")).await;
        client.expect("-ERR").await;
    });
}

#[test]
fn transactions_leak_nothing_into_the_next() {
    let stack = start();
    stack.add_user("bob", "bobs secret");
    bounded(async {
        let open =
            |from: &str, to: &str| [format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{}>", address(to))];
        // After each of these there is no sender and no recipient.
        for reset in ["RSET", "EHLO again.test", "HELO again.test"] {
            let mut client = Client::tcp(&stack, 25).await;
            client.expect("220").await;
            client.ask("EHLO client.test").await;
            for line in open("first@remote.test", "bob") {
                assert!(client.ask(&line).await.starts_with("250"));
            }
            assert!(client.ask(reset).await.starts_with("250"), "{reset}");
            assert!(client.ask("DATA").await.starts_with("503"), "{reset}");
            assert!(
                client.ask(&open("x", "bob")[1]).await.starts_with("503"),
                "{reset}: recipient without sender"
            );
            for line in open("second@remote.test", USER) {
                assert!(client.ask(&line).await.starts_with("250"));
            }
            client.ask("DATA").await;
            let answer = client.ask("Subject: second\r\n\r\nx\r\n.").await;
            assert!(answer.starts_with("250"), "{reset}: {answer}");
        }
        // A refused EHLO and a refused MAIL change nothing.
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        client.ask("EHLO client.test").await;
        for line in open("kept@remote.test", USER) {
            client.ask(&line).await;
        }
        assert!(client.ask("EHLO").await.starts_with("501"));
        assert!(client.ask("MAIL FROM:<nested@remote.test>").await.starts_with("503"));
        client.ask("DATA").await;
        assert!(client.ask("Subject: kept\r\n\r\nx\r\n.").await.starts_with("250"));
        // After the message the next one starts from nothing.
        assert!(client.ask("DATA").await.starts_with("503"));
        assert!(client.ask(&open("x", "bob")[1]).await.starts_with("503"));

        // A message that was refused for its size takes its recipients with it.
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        client.ask("EHLO client.test").await;
        assert!(client.ask("MAIL FROM:<big@remote.test> SIZE=999999999").await.starts_with("552"));
        assert!(client.ask(&open("x", "bob")[1]).await.starts_with("503"));

        // AUTH: not inside a transaction, not twice, and cancelled ones leave nobody logged in.
        let mut client = Client::tls(&stack, 465).await;
        client.expect("220").await;
        client.ask("EHLO client.test").await;
        assert!(client.ask("AUTH LOGIN").await.starts_with("334"));
        assert!(client.ask("*").await.starts_with("501"));
        assert!(client.ask("MAIL FROM:<>").await.starts_with("530"));
        assert!(client.ask("AUTH LOGIN").await.starts_with("334"));
        assert!(client.ask(&base64(USER)).await.starts_with("334"));
        assert!(client.ask("EHLO not-a-command").await.starts_with("501"), "a command inside AUTH");
        assert!(client.ask("MAIL FROM:<>").await.starts_with("530"));
        let plain = format!("AUTH PLAIN {}", base64(format!("\0{USER}\0{PASSWORD}")));
        assert!(client.ask(&plain).await.starts_with("235"));
        assert!(client.ask(&plain).await.starts_with("503"), "AUTH twice");
        client.ask(&format!("MAIL FROM:<{}>", address(USER))).await;
        assert!(client.ask(&plain).await.starts_with("503"), "AUTH inside a transaction");

        // Nothing of bob's aborted transactions reached him, and the senders are those of the last MAIL.
        assert!(stack.messages("bob").is_empty());
        let texts: Vec<_> =
            stack.messages(USER).iter().map(|file| fs::read_to_string(file).expect("message")).collect();
        assert_eq!(texts.len(), 4, "{texts:#?}");
        for text in texts {
            assert!(!text.contains("first@remote.test"), "{text}");
        }
    });
}

#[test]
fn addresses_cannot_carry_headers_or_commands() {
    let stack = start();
    bounded(async {
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        client.ask("EHLO client.test").await;
        for line in [
            "MAIL FROM:<a\0b@remote.test>",
            "MAIL FROM:<a\tb@remote.test>",
            "MAIL FROM:<a@remote.test>\rRCPT TO:<x@y>",
            "MAIL FROM:<a@remote.test\n>",
            "MAIL FROM:<\"a\rBcc: x\"@remote.test>",
            "MAIL FROM:<a@remote.test> SIZE=1\0",
            "MAIL FROM:<a@remote.test> AUTH=<\x01>",
        ] {
            // A bare LF ends a command line early; whatever follows is a mistake of its own.
            client.send(format!("{line}\r\nNOOP\r\n")).await;
            let mut answers = client.until("250 2.0.0").await;
            answers.pop();
            assert!(
                !answers.is_empty() && answers.iter().all(|answer| answer.starts_with('5')),
                "{answers:?}"
            );
        }
        // The EHLO name ends in a header; only what RFC 5321 allows gets there.
        let mut client = Client::tcp(&stack, 25).await;
        client.expect("220").await;
        for name in ["a\rX-Evil: 1", "a\tb", "a (b\0)", "a\u{1b}[2J"] {
            client.send(format!("EHLO {name}\r\n")).await;
            assert!(client.reply().await.starts_with('5'), "{name:?}");
        }
    });
}
