//! Stored mail as an attacker would have it: MIME bombs, and a Maildir whose own files lie.

use std::fs;
use std::time::{Duration, Instant};

use crate::hostile::{
    Client, Noise, assert_same_processes, bounded, memory, plant, processes, serves, start,
};
use crate::support::{PASSWORD, USER};

/// Time for everything a client asks about one bomb.
const PER_BOMB: Duration = Duration::from_secs(10);

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let part = "--b\nContent-Type: text/plain\n\nx\n";
    let many_parts = format!("Content-Type: multipart/mixed; boundary=b\n\n{}--b--\n", part.repeat(50_000));
    let mut levels = String::new();
    for level in 0..10_000 {
        levels.push_str(&format!("Content-Type: multipart/mixed; boundary=b{level}\n\n--b{level}\n"));
    }
    let mut prefixes = String::new();
    for level in 0..3_000 {
        // Every boundary is the beginning of all that follow.
        let boundary = "a".repeat(level % 70 + 1);
        prefixes.push_str(&format!("Content-Type: multipart/mixed; boundary={boundary}\n\n--{boundary}\n"));
    }
    let messages = "Content-Type: message/rfc822\n\n".repeat(10_000);
    let long_line = format!("Subject: {}\n\nx\n", "A".repeat(2 << 20));
    let fields = format!("{}\nx\n", "X: y\n".repeat(1_000_000));
    let folded = format!("Subject: a\n{}\nx\n", " b\n".repeat(500_000));
    let addresses = format!("To: {}z@x\n\nx\n", "a@b, ".repeat(200_000));
    let nested = format!("To: {}\nFrom: {}\n\nx\n", "(".repeat(500_000), "\"\\".repeat(250_000));
    let groups = format!("To: {}\n\nx\n", "g:a@b;".repeat(100_000));
    let parameters = format!("Content-Type: text/plain{}\n\nx\n", "; a*0*=\"b\"".repeat(100_000));
    let references =
        format!("References: {}\nIn-Reply-To: {}\n\nx\n", "<a@b> ".repeat(200_000), "<".repeat(500_000));
    let dashes =
        format!("Content-Type: multipart/mixed; boundary=\"{}\"\n\n{}", "-".repeat(60), "-".repeat(4 << 20));
    let newlines = format!("Content-Type: multipart/mixed; boundary=b\n\n{}", "\n".repeat(4 << 20));
    let mut raw = Noise::new(99).bytes(1 << 20);
    raw.splice(0..0, b"Content-Type: multipart/mixed; boundary=\"\xff\"\n\n".iter().copied());
    vec![
        ("50,000 parts", many_parts.into_bytes()),
        ("10,000 levels", levels.into_bytes()),
        ("boundaries that begin alike", prefixes.into_bytes()),
        ("messages in messages", messages.into_bytes()),
        ("a header line of 2 MB", long_line.into_bytes()),
        ("1,000,000 header fields", fields.into_bytes()),
        ("500,000 folded lines", folded.into_bytes()),
        ("200,000 addresses", addresses.into_bytes()),
        ("500,000 open comments", nested.into_bytes()),
        ("100,000 groups", groups.into_bytes()),
        ("100,000 parameters", parameters.into_bytes()),
        ("200,000 references", references.into_bytes()),
        ("4 MB of dashes", dashes.into_bytes()),
        ("4 MB of line ends", newlines.into_bytes()),
        ("1 MB of random bytes", raw),
        ("nothing", Vec::new()),
    ]
}

#[test]
fn mime_bombs_are_answered_in_bounded_time_and_memory() {
    let stack = start();
    let before = processes(&stack);
    let bombs = bombs();
    for (number, (_, bytes)) in bombs.iter().enumerate() {
        plant(&stack.maildir(USER).join(format!("cur/17000000{number:02}.M{number}P1.bomb:2,S")), bytes);
    }
    bounded(async {
        let mut client = Client::imap(&stack, USER, PASSWORD).await;
        client.send("a SELECT INBOX\r\n").await;
        let lines = client.until("a ").await.join("\n");
        assert!(lines.contains(&format!("* {} EXISTS", bombs.len())), "{lines}");
        for (number, (name, bytes)) in bombs.iter().enumerate() {
            let sequence = number + 1;
            let started = Instant::now();
            for items in [
                "(ENVELOPE BODYSTRUCTURE RFC822.SIZE)",
                "BODY",
                "BODY.PEEK[HEADER.FIELDS (SUBJECT FROM X)]",
                "BODY.PEEK[1.2.3.4.5.6.7.8.9]",
                "BODY.PEEK[1.MIME]",
            ] {
                client.send(format!("b FETCH {sequence} {items}\r\n")).await;
                let mut size = 0;
                loop {
                    let line = client.line().await.unwrap_or_else(|| panic!("{name}: closed at {items}"));
                    size += line.len();
                    if line.starts_with("b ") {
                        assert!(
                            line.starts_with("b OK") || line.starts_with("b NO"),
                            "{name} {items}: {line}"
                        );
                        break;
                    }
                }
                // A group of six bytes makes three addresses of up to thirty.
                assert!(size <= bytes.len() * 12 + 4_096, "{name} {items}: an answer of {size} bytes");
            }
            client.send(format!("c SEARCH {sequence} OR SUBJECT zzzz OR FROM zzzz BODY zzzz\r\n")).await;
            client.until("c ").await;
            assert!(started.elapsed() < PER_BOMB, "{name} took {:?}", started.elapsed());
        }
        let started = Instant::now();
        client.send("d SORT (SUBJECT) UTF-8 ALL\r\ne FETCH 1:* (ENVELOPE)\r\n").await;
        client.until("e ").await;
        assert!(started.elapsed() < PER_BOMB, "all of them: {:?}", started.elapsed());
        let held = memory(before["imap"]);
        assert!(held < 400 * 1024, "{held} KiB");
        // The same by POP3, and in by SMTP as far as its limits allow.
        let mut pop3 = Client::tls(&stack, 995).await;
        pop3.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\n")).await;
        for _ in 0..3 {
            pop3.expect("+OK").await;
        }
        let started = Instant::now();
        for sequence in 1..=bombs.len() {
            pop3.send(format!("TOP {sequence} 0\r\n")).await;
            pop3.expect("+OK").await;
            while pop3.line().await.expect("a line") != "." {}
        }
        assert!(started.elapsed() < PER_BOMB, "TOP: {:?}", started.elapsed());
        serves(&stack).await;
    });
    assert_same_processes(&stack, &before);
}

/// What a `dovecot-uidlist` of an enemy may hold. The store must come up with UIDs that are right.
fn uidlists() -> Vec<Vec<u8>> {
    let record = "1 :1700000000.M0P1.one\n";
    let mut lists: Vec<Vec<u8>> = [
        "",
        "\n",
        "3",
        "3 V0 N0\n",
        "3 V4294967295 N4294967295 Gxyz\n",
        "3 V1 N4294967295\n4294967294 :1700000000.M0P1.one\n",
        "3 V99999999999999999999 N1\n",
        "3 V-1 N-1\n",
        "9 V1 N2\n1 :a\n",
        "3 V1 N1\n1 :../../../../etc/passwd\n",
        "3 V1 N3\n1 :a/b\n2 :..\n",
        "3 V1 N5\n4 :1700000000.M0P1.one\n2 :1700000000.M0P1.one\n",
        "3 V1 N3\n1 :1700000000.M0P1.one\n1 :1700000001.M1P1.two\n",
        "3 V1 N2\n1 S999999999999999999999 W-5 :1700000000.M0P1.one\n",
        "3 V1 N2\n1 S0 W0 :1700000000.M0P1.one\n",
        "3 V1 N2\n1\n1 :\n :\n1 :\0\n",
        "3 V1 N10 G%s%n\n2 P:\n3 Pnn :x\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    lists.push([b"3 V1 N9\n".as_slice(), &vec![b'1'; 1 << 20]].concat());
    lists.push(format!("3 V1 N100000\n{}", record.repeat(100_000)).into_bytes());
    lists.push(Noise::new(5).bytes(100_000));
    lists.push([b"3 V1 N2\n".as_slice(), &Noise::new(6).bytes(1_000_000)].concat());
    lists
}

#[test]
fn hostile_uidlists_and_keyword_files_give_right_answers_or_none() {
    let stack = start();
    let before = processes(&stack);
    let root = stack.maildir(USER);
    bounded(async {
        Client::imap(&stack, USER, PASSWORD).await;
        for (name, body) in [("1700000000.M0P1.one", "one"), ("1700000001.M1P1.two:2,Sab", "two")] {
            plant(&root.join("cur").join(name), format!("Subject: {body}\n\n{body}\n"));
        }
        for (number, list) in uidlists().into_iter().enumerate() {
            plant(&root.join("dovecot-uidlist"), &list);
            plant(
                &root.join("dovecot-keywords"),
                match number % 6 {
                    0 => b"0 \0\n1 $A\"B\n99999999999 x\n-1 y\n".to_vec(),
                    1 => vec![b'k'; 1 << 20],
                    2 => Noise::new(number as u64).bytes(10_000),
                    3 => b"0 a) BAD (b\n1 \\Seen\n2 a b c\n".to_vec(),
                    4 => b"0 x\r\n* BYE injected\r\n".to_vec(),
                    _ => format!("0 {}\n", "z".repeat(5_000)).into_bytes(),
                },
            );
            plant(
                &root.join("subscriptions"),
                match number % 4 {
                    0 => b"V\t2\n\n../../bob\nDrafts\r\n* BYE injected\r\n".to_vec(),
                    1 => Noise::new(number as u64).bytes(50_000),
                    2 => b"a\n".repeat(50_000),
                    _ => vec![b's'; 1 << 20],
                },
            );
            let started = Instant::now();
            let mut client = Client::imap(&stack, USER, PASSWORD).await;
            client.send("a SELECT INBOX\r\n").await;
            let lines = client.until("a ").await;
            let text = lines.join("\n");
            let shown: String = text.chars().take(2_000).collect();
            assert!(!lines.iter().any(|line| line.starts_with("* BYE")), "{number}: {shown}");
            if lines.last().is_some_and(|line| line.starts_with("a NO")) {
                // Refused whole: the administrator is asked, and no message is lost.
                continue;
            }
            assert!(text.contains("* 2 EXISTS"), "{number}: {shown}");
            client
                .send(
                    "b FETCH 1:* (UID FLAGS BODY.PEEK[TEXT])\r\nc LSUB \"\" *\r\nd LIST \"\" *\r\ne NOOP\r\n",
                )
                .await;
            let fetched = client.until("b ").await;
            let uids: Vec<u32> = fetched
                .iter()
                .filter_map(|line| line.split_once("UID ")?.1.split([' ', ')']).next()?.parse().ok())
                .collect();
            assert!(uids.len() == 2 && uids[0] > 0 && uids[0] < uids[1], "{number}: {fetched:#?}");
            let text = fetched.join("\n");
            assert!(text.contains("one") && text.contains("two"), "{number}: {text}");
            let rest = client.until("e OK").await;
            for line in &rest {
                assert!(
                    ["* LSUB ", "* LIST ", "c ", "d ", "e "].iter().any(|start| line.starts_with(start)),
                    "{number}: {line:?}"
                );
                assert!(!line.contains("../"), "{number}: {line:?}");
            }
            assert!(started.elapsed() < Duration::from_secs(8), "{number}: {:?}", started.elapsed());
            client.send("f LOGOUT\r\n").await;
            client.rest(Duration::from_secs(5)).await;
        }
        serves(&stack).await;
        assert!(fs::read(root.join("cur/1700000000.M0P1.one")).is_ok_and(|text| text.ends_with(b"one\n")));
    });
    assert_same_processes(&stack, &before);
}

#[test]
fn hostile_file_names_are_listed_or_left_alone() {
    use std::os::unix::ffi::OsStrExt as _;
    let stack = start();
    let before = processes(&stack);
    let root = stack.maildir(USER);
    let long = [b'n'; 240];
    let names: Vec<&[u8]> = vec![
        b"plain",
        b"with space:2,S",
        b"new\nline:2,S",
        b"carriage\rreturn",
        b"tab\there:2,",
        b"\xff\xfe\x80:2,S",
        b"\x1b[2J:2,F",
        b"colon:colon:2,S",
        b"bad:info",
        b"bad:1,S",
        b"flags:2,SSSSSSzzzzQQQ",
        b"size,S=99999999999999999999:2,S",
        b"size,S=-1,W=-1:2,S",
        b"size,S=1,W=1:2,S",
        b"percent%s%n:2,S",
        b"%{home}:2,S",
        b"-rf",
        &long,
    ];
    for (number, name) in names.iter().enumerate() {
        for folder in ["cur", "new"] {
            let path = root.join(folder).join(std::ffi::OsStr::from_bytes(name));
            plant(&path, format!("Subject: {folder}{number}\n\nbody\n"));
        }
    }
    // Folders of the Maildir with names no client may have given.
    for name in [
        &b".\xff\xfe"[..],
        b".a\nb",
        b".a\rb",
        b"...",
        b".a..b",
        b".&",
        b".%",
        b".*",
        b".\"quoted\"",
        b".a\\b",
    ] {
        let folder = root.join(std::ffi::OsStr::from_bytes(name));
        for sub in ["", "cur", "new", "tmp"] {
            fs::create_dir_all(folder.join(sub)).expect("folder");
            if !sub.is_empty() {
                crate::hostile::give(&folder);
                crate::hostile::give(&folder.join(sub));
            }
        }
    }
    bounded(async {
        let mut client = Client::imap(&stack, USER, PASSWORD).await;
        client.send("a LIST \"\" *\r\n").await;
        let lines = client.until("a ").await;
        let mut literal = false;
        for line in &lines {
            assert!(literal || line.starts_with("* LIST ") || line.starts_with("a OK"), "{line:?}");
            literal = line.starts_with("* LIST ") && line.ends_with('}');
        }
        client.send("b SELECT INBOX\r\nc FETCH 1:* (UID FLAGS RFC822.SIZE BODY.PEEK[])\r\nd NOOP\r\n").await;
        let lines = client.until("d OK").await;
        assert!(
            !lines.iter().any(|line| line.starts_with("c BAD") || line.starts_with("* BYE")),
            "{lines:#?}"
        );
        let bodies = lines.iter().filter(|line| line.starts_with("Subject: ")).count();
        assert!(bodies >= 10, "{bodies} of {} messages: {lines:#?}", names.len() * 2);
        client.send("e STORE 1:* +FLAGS (\\Flagged)\r\nf NOOP\r\ng SELECT INBOX\r\nh NOOP\r\n").await;
        client.until("h OK").await;
        let mut pop3 = Client::tls(&stack, 995).await;
        pop3.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\nUIDL\r\nNOOP\r\n")).await;
        for _ in 0..4 {
            pop3.expect("+OK").await;
        }
        loop {
            let line = pop3.line().await.expect("a line");
            if line == "." {
                break;
            }
            assert!(line.bytes().all(|b| (0x20..0x7f).contains(&b)), "{line:?}");
        }
        pop3.expect("+OK").await;
        serves(&stack).await;
    });
    assert_same_processes(&stack, &before);
    assert!(!stack.log().contains('\u{1b}'), "control bytes in the log");
}
