//! Deliveries that fail late, and deliveries that never end: what they cost the other recipients, and the sessions.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::machine::{Machine, Person, QUICK, RIGHT, Setup};
use crate::private::Lines;
use crate::support::{HOSTNAME, Stack, USER, have, peer, run, show, wait_for};

const SYSTEM: &str = "[[auth.passdb]]\ndriver = \"shadow\"\n[[auth.userdb]]\ndriver = \"passwd\"\n\
    [[smtp.listener]]\nname = \"inbound\"\ntype = \"inbound\"\naddress = \"127.0.0.1:PORT25\"\n\
    [[smtp.listener]]\nname = \"lmtp\"\ntype = \"lmtp\"\naddress = \"127.0.0.1:PORT143\"\n\
    [mail]\nmailboxes = \"system\"\nfirst_valid_uid = 1000\nlast_valid_uid = 61199\n";

fn system(people: &[String], more: &str) -> Option<Machine> {
    let people = people.iter().map(|name| Person::plain(name)).collect();
    let settings = format!("{QUICK}{SYSTEM}{more}");
    Machine::start(&Setup { people, services: Vec::new(), settings, fronts: true })
}

/// A transaction up to the 354.
fn begun(port: u16, users: &[&str]) -> Lines {
    let (mut smtp, _) = Lines::smtp(port).expect("SMTP");
    let mut say = |line: &str| smtp.ask(line).expect("a reply");
    assert!(say("MAIL FROM:<x@far.test>").starts_with("250"));
    for user in users {
        assert!(say(&format!("RCPT TO:<{user}@{HOSTNAME}>")).starts_with("250"));
    }
    assert!(say("DATA").starts_with("354"));
    smtp
}

fn sent(port: u16, users: &[&str], subject: &str) -> String {
    begun(port, users).ask(&format!("Subject: {subject}\r\n\r\nx\r\n.")).expect("a reply")
}

/// Messages in `new` and `cur`, and files in `tmp`.
fn counts(maildir: &Path) -> (usize, usize) {
    let count = |sub: &str| fs::read_dir(maildir.join(sub)).map_or(0, Iterator::count);
    (count("new") + count("cur"), count("tmp"))
}

/// Whoever could not get it, in whatever order: the message is sent again to all, and nobody has it twice.
fn nobody_has_it_twice(port: u16, maildir: impl Fn(&str) -> std::path::PathBuf) {
    assert!(sent(port, &["alice", "bob", "carol"], "first").starts_with("250"));
    // Written and synced in `tmp`, but not to be renamed into `new`.
    let new = maildir("bob").join("new");
    fs::set_permissions(&new, Permissions::from_mode(0o500)).expect("mode");
    for order in [["alice", "bob", "carol"], ["bob", "carol", "alice"], ["carol", "alice", "bob"]] {
        let answer = sent(port, &order, "late");
        assert!(answer.starts_with("451 4.3.0"), "{answer}");
        for user in order {
            assert_eq!(counts(&maildir(user)), (1, 0), "{user} of {order:?}");
        }
    }
    fs::set_permissions(&new, Permissions::from_mode(0o700)).expect("mode");
    assert!(sent(port, &["alice", "bob", "carol"], "again").starts_with("250"));
    for user in ["alice", "bob", "carol"] {
        assert_eq!(counts(&maildir(user)), (2, 0), "{user}");
    }
}

#[test]
fn a_recipient_who_fails_late_gives_nobody_a_second_copy() {
    let stack = Stack::start();
    assert_eq!(USER, "alice");
    for user in ["bob", "carol"] {
        stack.add_user(user, "some secret 1");
    }
    nobody_has_it_twice(stack.port(25), |user| stack.maildir(user));
}

#[test]
fn nor_does_one_with_a_process_of_his_own() {
    let Some(machine) = system(&["alice", "bob", "carol"].map(str::to_owned), "") else { return };
    let maildir = |user: &str| machine.path("home").join(user).join("Maildir");
    nobody_has_it_twice(machine.port(25), maildir);
    // LMTP has an answer for each: only he is told, and only he gets it again.
    fs::set_permissions(maildir("bob").join("new"), Permissions::from_mode(0o500)).expect("mode");
    let mut lmtp = Lines::connect(machine.port(143)).expect("LMTP");
    assert!(lmtp.reply().expect("greeting").starts_with("220"));
    let mut say = |line: &str| lmtp.ask(line).expect("a reply");
    assert!(say("LHLO far.test").starts_with("250"));
    assert!(say("MAIL FROM:<x@far.test>").starts_with("250"));
    for user in ["alice", "bob", "carol"] {
        assert!(say(&format!("RCPT TO:<{user}@{HOSTNAME}>")).starts_with("250"));
    }
    assert!(say("DATA").starts_with("354"));
    assert!(say("Subject: each\r\n\r\nx\r\n.").starts_with("250"));
    assert!(lmtp.reply().expect("bob's").starts_with("451 4.3.0"));
    assert!(lmtp.reply().expect("carol's").starts_with("250"));
    assert_eq!(["alice", "bob", "carol"].map(|user| counts(&maildir(user)).0), [3, 2, 3]);
}

#[test]
fn messages_that_never_end_leave_places_for_sessions() {
    if !have(&["curl"]) {
        return;
    }
    let people: Vec<String> = (1..=9).map(|number| format!("user{number}")).collect();
    let Some(machine) = system(&people, "mailbox_processes = 8\n") else { return };
    // Enough to be passed on; the end never comes.
    let piece = format!("Subject: endless\r\n\r\n{}", format!("{}\r\n", "x".repeat(78)).repeat(2000));
    let mut held = Vec::new();
    for name in &people[..7] {
        let mut smtp = begun(machine.port(25), &[name]);
        smtp.send(&piece).expect("write");
        held.push(smtp);
    }
    wait_for("seven mailbox processes", || (machine.processes("mailbox").len() == 7).then_some(()));
    let answer = sent(machine.port(25), &["user8"], "one too many");
    assert!(answer.starts_with("451 4.3.0"), "{answer}");
    assert!(machine.log().contains("7 mailboxes have deliveries"), "{}", machine.log());
    // A session gets the last place, and those that are held anyway.
    for user in ["user9", "user1"] {
        let mut command = peer("curl", &machine.path("home"));
        command.args(["-sS", "--max-time", "30", "--cacert"]).arg(machine.ca());
        command.args(["-u", &format!("{user}:{RIGHT}"), "-X", "NOOP"]);
        command.arg(format!("imaps://localhost:{}/INBOX", machine.port(993)));
        let out = run(command, "");
        assert!(out.status.success(), "{user}: {}\n{}", show(&out), machine.log());
    }
    // One message ends: its place is free for another.
    let answer = held.remove(0).ask(".").expect("a reply");
    assert!(answer.starts_with("250"), "{answer}");
    wait_for("a place", || sent(machine.port(25), &["user8"], "now").starts_with("250").then_some(()));
}
