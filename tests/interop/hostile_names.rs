//! Hostile user names on every door, and hostile mailbox names: nothing outside the Maildir appears.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::hostile::{
    Client, assert_same_processes, auth_line, base64, bounded, plant, processes, serves, start, tree,
    write_users,
};
use crate::support::{HOSTNAME, PASSWORD, Stack, USER, mux_request};

/// None of them is a user. `%…` would be one if a template were expanded a second time.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "",
        " ",
        ".",
        "..",
        "../alice",
        "alice/../alice",
        "/etc/passwd",
        "mail/alice",
        "alice\u{0}",
        "alice\u{0}bob",
        "alice\tuser=bob",
        "alice\nOK\t1\tuser=alice",
        "alice\r\nAUTH\t2",
        "alice:bob",
        "alice\u{1}t\u{1}n",
        "alice%",
        "%u",
        "%{user}",
        "%n@%d",
        "%{system:hostname}",
        "\"alice\"",
        "'alice'",
        "alice'--",
        "*",
        "alice*",
        "a)(uid=*",
        "$(id)",
        "`id`",
        "alice;id",
        "alice|id",
        "@",
        "@@",
        "alice@",
        "@mail.example.test",
        "alice@mail.example.test@evil.test",
        "alice@../..",
        "#alice",
        "alice\u{7f}",
        "alice\u{1b}[2J",
        "\u{202e}ecila",
        "al\u{0131}ce",
        "аlice",
        "ａlice",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(b"alice\xff\xfe".to_vec());
    names.push(vec![b'a'; 10 * 1024]);
    names.push(b"../".repeat(3_000));
    names.push(vec![0xc3; 200]);
    names
}

/// Makes every name that can stand in the user file a user with the first user's password: what is refused now is
/// refused for its name. Names of ordinary characters are left out, but for `dots`.
fn make_them_users(stack: &Stack, dots: bool) {
    let mut users = std::fs::read(stack.state().join("users")).expect("users");
    for name in names() {
        let ordinary = name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_@".contains(byte));
        let possible = !name.starts_with(b"#") && !name.iter().any(|byte| b":\n\r\0".contains(byte));
        if possible && (!ordinary || (dots && (name == b"." || name == b".."))) {
            users.extend_from_slice(&name);
            users.extend_from_slice(format!(":{{PLAIN}}{PASSWORD}::::::\n").as_bytes());
        }
    }
    write_users(stack, users);
}

/// What the mail tree holds, without the files that deliveries and indexes bring.
fn folders(stack: &Stack) -> BTreeSet<(PathBuf, char)> {
    tree(stack.scratch()).into_iter().filter(|(_, kind)| *kind == 'd').collect()
}

#[test]
fn hostile_user_names_are_refused_on_the_auth_socket_and_the_mux() {
    let stack = start();
    make_them_users(&stack, false);
    let before = processes(&stack);
    let seen = folders(&stack);
    bounded(async {
        // One connection, all in flight at once; the answers may come in any order, one for each.
        let mut client = Client::auth(stack.socket("auth-client")).await;
        let mut open = BTreeSet::new();
        for (id, name) in (1_u32..).zip(names()) {
            let response = base64([b"\0", &name[..], b"\0", PASSWORD.as_bytes()].concat());
            client.send(format!("AUTH\t{id}\tPLAIN\tservice=smtp\tnologin\tresp={response}\n")).await;
            open.insert(id);
        }
        while !open.is_empty() {
            let line = client.line().await.expect("an answer to each");
            let mut fields = line.split('\t');
            assert_eq!(fields.next(), Some("FAIL"), "{line:?}");
            let id = fields.next().and_then(|id| id.parse().ok()).expect("an id");
            assert!(open.remove(&id), "answered twice: {line:?}");
            // Nothing of the name gets into the line as a field or a line of its own.
            assert!(!line.contains("user=bob") && line.len() < 64 * 1024, "{line:?}");
            for field in fields {
                let name = field.split('=').next().unwrap_or_default();
                let known = [
                    "user",
                    "original_user",
                    "code",
                    "reason",
                    "temp",
                    "authz",
                    "user_disabled",
                    "pass_expired",
                ];
                assert!(known.contains(&name), "{line:?}");
            }
        }
        // The right one on the same connection.
        client.send(auth_line(4_000, USER, PASSWORD, "")).await;
        client.expect("OK\t4000\tuser=alice@mail.example.test").await;

        // A raw name in the fields that other software fills in.
        let mut client = Client::auth(stack.socket("auth-client")).await;
        for (id, field) in (1_u32..).zip([
            "service=../../etc/passwd",
            "service=%{user}",
            "rip=127.0.0.1%eth0",
            "rip=999.1.1.1",
            "lip=\u{1}t",
            "session=\u{1}n\u{1}r",
            "user=bob",
            "original_user=\u{1}0",
        ]) {
            let response = base64(format!("\0{USER}\0{PASSWORD}"));
            client.send(format!("AUTH\t{id}\tPLAIN\tservice=smtp\t{field}\tresp={response}\n")).await;
            let line = client.line().await.expect("an answer");
            // As if the field were not there, or a refusal; never somebody else's name.
            let want = format!("OK\t{id}\tuser=alice@{HOSTNAME}\toriginal_user=alice");
            assert!(line == want || line.starts_with("FAIL"), "{field}: {line:?}");
        }

        let mut refused = 0;
        for name in names() {
            let mut client = Client::unix(stack.socket("saslauthd/mux")).await;
            client.send(mux_request([&name[..], PASSWORD.as_bytes(), b"smtp", b""])).await;
            // Not waited for one after the other: each refusal is delayed.
            refused += 1;
            tokio::task::yield_now().await;
            let answer = client.rest(Duration::from_secs(10));
            let answer = if refused <= 3 { answer.await } else { None };
            if let Some(answer) = answer {
                assert!(answer.len() > 2 && &answer[2..4] == b"NO", "{name:?}: {answer:?}");
            }
        }
        // A name cut at NUL would be alice's.
        let mut client = Client::unix(stack.socket("saslauthd/mux")).await;
        client.send(mux_request([&b"alice\0x"[..], PASSWORD.as_bytes(), b"smtp", b""])).await;
        let answer = client.rest(Duration::from_secs(10)).await.expect("an answer");
        assert!(answer.len() > 2 && &answer[2..4] == b"NO", "{answer:?}");
        serves(&stack).await;
    });
    assert_new_folders_are_alices(&stack, &seen);
    assert_same_processes(&stack, &before);
    let log = stack.log();
    assert!(!log.contains('\u{1b}') && !log.contains('\0'), "control bytes in the log");
}

fn assert_new_folders_are_alices(stack: &Stack, before: &BTreeSet<(PathBuf, char)>) {
    let home = stack.maildir(USER);
    for (path, _) in folders(stack).difference(before) {
        assert!(path.starts_with(&home), "made by a hostile name: {}", path.display());
    }
}

#[test]
fn hostile_user_names_are_refused_by_smtp_imap_and_pop3() {
    let stack = start();
    make_them_users(&stack, true);
    let before = processes(&stack);
    let seen = folders(&stack);
    bounded(async {
        // All at a time as far as the connections of one address allow: each refusal waits two to four seconds.
        let all = names();
        for some in all.chunks(25) {
            let mut waiting = Vec::new();
            for name in some {
                let plain = base64([b"\0", &name[..], b"\0", PASSWORD.as_bytes()].concat());
                let mut smtp = Client::tls(&stack, 465).await;
                smtp.send(format!("EHLO client.test\r\nAUTH PLAIN {plain}\r\nQUIT\r\n")).await;
                let mut imap = Client::tls(&stack, 993).await;
                imap.send(format!("a AUTHENTICATE PLAIN {plain}\r\nx LOGOUT\r\n")).await;
                let mut literal = Client::tls(&stack, 993).await;
                let mut line = format!("a LOGIN {{{}+}}\r\n", name.len()).into_bytes();
                line.extend_from_slice(name);
                line.extend_from_slice(format!(" \"{PASSWORD}\"\r\nx LOGOUT\r\n").as_bytes());
                literal.send(line).await;
                let mut pop3 = Client::tls(&stack, 995).await;
                // A line end in it is a line end there, and what is before it may be a user.
                let shown: Vec<u8> = name.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
                let mut line = b"USER ".to_vec();
                line.extend_from_slice(&shown);
                line.extend_from_slice(format!("\r\nPASS {PASSWORD}\r\nQUIT\r\n").as_bytes());
                pop3.send(line).await;
                waiting.push((name, smtp, imap, literal, pop3));
            }
            for (name, mut smtp, mut imap, mut literal, mut pop3) in waiting {
                for (door, client) in [
                    ("smtp", &mut smtp),
                    ("imap", &mut imap),
                    ("imap LOGIN", &mut literal),
                    ("pop3", &mut pop3),
                ] {
                    let said = client.rest(Duration::from_secs(10)).await;
                    let said = said.unwrap_or_else(|| panic!("{door} does not answer {name:?}"));
                    let said = String::from_utf8_lossy(&said).into_owned();
                    let welcome = said.lines().any(|line| {
                        line.starts_with("235") || line.starts_with("a OK") || line.contains("ogged in")
                    });
                    // `..` is a user here. He has no place for mail, so only SMTP, which opens none, may know him.
                    let known = door == "smtp" && (name == b"." || name == b"..");
                    assert!(known || !welcome, "{door} let {name:?} in: {said}");
                }
            }
        }
        serves(&stack).await;
        // RCPT and the look-up behind it.
        let mut smtp = Client::tcp(&stack, 25).await;
        smtp.expect("220").await;
        smtp.ask("EHLO client.test").await;
        smtp.ask("MAIL FROM:<>").await;
        for local in [
            "../alice",
            "\"../alice\"",
            "\"alice\\\"\"",
            "%u",
            "alice%bob",
            "\"alice\u{1}\"",
            "..",
            "\"\"",
            "a/b",
        ] {
            let answer = smtp.ask(&format!("RCPT TO:<{local}@{HOSTNAME}>")).await;
            assert!(answer.starts_with('5'), "{local}: {answer}");
        }
    });
    assert_new_folders_are_alices(&stack, &seen);
    assert_same_processes(&stack, &before);
    let log = stack.log();
    assert!(!log.contains('\u{1b}') && !log.contains('\0'), "control bytes in the log");
}

#[test]
fn mailbox_names_cannot_leave_the_maildir() {
    let stack = start();
    stack.add_user("bob", "bobs secret");
    bounded(async {
        // Both accounts exist with all their folders before the comparison.
        Client::imap(&stack, "bob", "bobs secret").await;
        let mut client = Client::imap(&stack, USER, PASSWORD).await;
        // Bait: a mailbox of bob's that a traversal would reach.
        let before = tree(stack.scratch());
        for name in [
            "../evil",
            "..",
            ".",
            "../../bob/Maildir/.Trash",
            "a/../../../evil",
            "/tmp/postern-evil",
            "~/evil",
            "~bob/evil",
            "~root",
            "evil/../../x",
            "..evil",
            ".evil",
            "evil..x",
            "evil.",
            ".....",
            "cur",
            "new",
            "tmp",
            "Drafts.cur/../../x",
            "&AC8-etc&AC8-passwd",
            "&AC4ALg-/evil",
            "&AC4ALgAv-evil",
            "&AAA-evil",
            "evil&AAo-x",
            "&invalid",
            "evil%",
            "evil*",
            "%{user}",
            "\u{1}",
            "#shared/bob",
            "dovecot-uidlist",
            "\\\\evil",
        ] {
            for command in ["CREATE", "RENAME Drafts", "SUBSCRIBE", "SELECT", "DELETE", "STATUS", "COPY 1"] {
                let tail = if command == "STATUS" { " (MESSAGES)" } else { "" };
                client.send(format!("x {command} \"{name}\"{tail}\r\n")).await;
                let answer = client.until("x ").await;
                let answer = answer.last().expect("one");
                if command == "CREATE" && answer.starts_with("x OK") {
                    // Some of these are only odd: then they are folders of the Maildir, and go away again.
                    client.send(format!("y DELETE \"{name}\"\r\n")).await;
                    client.until("y ").await;
                }
                if command.starts_with("RENAME") && answer.starts_with("x OK") {
                    client.send(format!("y RENAME \"{name}\" Drafts\r\n")).await;
                    client.until("y OK").await;
                }
            }
        }
        // A literal with bytes a quoted string cannot hold.
        for name in [
            &b"ev\0il"[..],
            b"ev\nil",
            b"ev\ril",
            b"\xff\xfe",
            &[b'a'; 5_000],
            &b"a/".repeat(300),
            &b"../".repeat(300),
        ] {
            let mut line = format!("x CREATE {{{}+}}\r\n", name.len()).into_bytes();
            line.extend_from_slice(name);
            line.extend_from_slice(b"\r\n");
            client.send(line).await;
            let answer = client.until("x ").await;
            assert!(!answer.last().expect("one").starts_with("x OK"), "{:?}", String::from_utf8_lossy(name));
        }
        client.send("z NOOP\r\n").await;
        client.until("z OK").await;
        let root = stack.maildir(USER);
        for (path, _) in tree(stack.scratch()).symmetric_difference(&before) {
            assert!(path.starts_with(&root), "outside the Maildir: {}", path.display());
            let inside = path.strip_prefix(&root).expect("inside");
            let first =
                inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
            let ok = first.starts_with('.')
                || first.starts_with("dovecot")
                || ["subscriptions", "maildirfolder", "cur", "new", "tmp"].contains(&first.as_str());
            assert!(ok, "not a folder's place: {}", path.display());
        }
        assert!(!std::path::Path::new("/tmp/postern-evil").exists());
    });
}

#[test]
fn planted_links_lead_nobody_out_of_the_maildir() {
    let stack = start();
    stack.add_user("bob", "bobs secret");
    bounded(async {
        Client::imap(&stack, "bob", "bobs secret").await;
        Client::imap(&stack, USER, PASSWORD).await;
        let root = stack.maildir(USER);
        let secret = stack.scratch().join("secret");
        plant(&secret, "Subject: secret\n\nnot yours\n");
        // A user with a shell can plant these in a Maildir of his own; the server must not follow them out.
        std::os::unix::fs::symlink("../../bob/Maildir", root.join(".Bobs")).expect("link");
        std::os::unix::fs::symlink(&secret, root.join("cur/1700000001.M1P1.evil:2,S")).expect("link");
        std::os::unix::fs::symlink("/dev/zero", root.join("cur/1700000002.M2P1.evil:2,S")).expect("link");
        nix::unistd::mkfifo(&root.join("cur/1700000003.M3P1.evil:2,S"), nix::sys::stat::Mode::S_IRWXU)
            .expect("fifo");
        crate::hostile::give(&root.join("cur/1700000003.M3P1.evil:2,S"));
        std::fs::create_dir(root.join("cur/1700000004.M4P1.evil:2,S")).expect("folder");
        crate::hostile::give(&root.join("cur/1700000004.M4P1.evil:2,S"));
        // Where all mail is one account's, no right of the system keeps her from his: only that links are not followed.
        let his = stack.maildir("bob").join("cur/1700000005.M5P1.his:2,S");
        plant(&his, "Subject: his\n\nnot yours\n");
        std::os::unix::fs::symlink(&his, root.join("cur/1700000005.M5P1.evil:2,S")).expect("link");
        let swapped = root.join("cur/1700000006.M6P1.swapped:2,S");
        plant(&swapped, "Subject: own\n\nmine\n");
        plant(&root.join("cur/1700000007.M7P1.last:2,S"), "Subject: last\n\nstill there\n");
        let mut client = Client::imap(&stack, USER, PASSWORD).await;
        client.send("a SELECT INBOX\r\n").await;
        client.until("a ").await;
        // The one she owns becomes a link when it is a message already.
        std::fs::remove_file(&swapped).expect("removed");
        std::os::unix::fs::symlink(&his, &swapped).expect("link");
        // One by one: what cannot be read ends a command.
        let mut said = String::new();
        for number in 1..=8 {
            client.send(format!("b{number} FETCH {number} (RFC822.SIZE BODY.PEEK[])\r\n")).await;
            said += &client.until(&format!("b{number} ")).await.join("\n");
        }
        assert!(!said.contains("not yours"), "followed a link: {said}");
        assert!(said.contains("still there"), "what is no link is read: {said}");
        client.send("c SELECT Bobs\r\n").await;
        client.until("c ").await;
        client.send("d NOOP\r\n").await;
        client.until("d OK").await;
    });
}
