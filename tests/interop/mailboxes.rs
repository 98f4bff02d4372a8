//! Mailboxes of system users: every user's mail is read and written by a process with the user's own ids.
//!
//! The accounts, homes and shadow entries are the test's, in a private mount namespace; see `machine.rs`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::machine::{ACCOUNTS, ANYBODY, FIRST_UID, Machine, Person, QUICK, RIGHT, Setup};
use crate::private::Lines;
use crate::support::{HOSTNAME, alive, have, peer, postern, run, show, signal, skip, stdout, wait_for};

const SYSTEM: &str = "[[auth.passdb]]\ndriver = \"shadow\"\n[[auth.userdb]]\ndriver = \"passwd\"\n\
    [mail]\nmailboxes = \"system\"\nfirst_valid_uid = 1000\nlast_valid_uid = 61199\nmailbox_idle = \"60s\"\n";

/// A machine with alice and bob; `more` stands behind `[mail]`.
fn machine(more: &str) -> Option<Machine> {
    if !have(&["swaks", "curl"]) {
        return None;
    }
    let settings = format!("{QUICK}{SYSTEM}{more}");
    let people = ["alice", "bob"].map(Person::plain).to_vec();
    Machine::prepare(&Setup { people, services: Vec::new(), settings, fronts: true })
}

fn started(more: &str) -> Option<Machine> {
    let mut machine = machine(more)?;
    machine.launch(&[]).then_some(machine)
}

/// Uid (and gid) of a user.
fn uid(name: &str) -> u32 {
    FIRST_UID
        + u32::try_from(["alice", "bob"].iter().position(|known| *known == name).expect("known"))
            .expect("few")
}

fn maildir(machine: &Machine, user: &str) -> PathBuf {
    machine.path("home").join(user).join("Maildir")
}

fn send(machine: &Machine, from: &str, to: &str, subject: &str) -> Output {
    let to: Vec<String> = to.split(',').map(|name| format!("{name}@{HOSTNAME}")).collect();
    let subject = format!("Subject: {subject}");
    let from_address = format!("{from}@{HOSTNAME}");
    let mut command = peer("swaks", &machine.path("home"));
    command.args([
        "--server",
        "localhost",
        "--port",
        &machine.port(465).to_string(),
        "--timeout",
        "30",
        "--tlsc",
    ]);
    command.args(["--from", &from_address, "--to", &to.join(",")]);
    command.args(["--auth", "PLAIN", "--auth-user", from, "--auth-password", RIGHT, "--header", &subject]);
    run(command, "")
}

fn sent(machine: &Machine, from: &str, to: &str, subject: &str) {
    let out = send(machine, from, to, subject);
    assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
}

fn curl(machine: &Machine, user: &str, url: &str, more: &[&str]) -> Output {
    let mut command = peer("curl", &machine.path("home"));
    command.args(["-sS", "--max-time", "30", "--cacert"]).arg(machine.ca());
    command.args(["-u", &format!("{user}:{RIGHT}")]).args(more).arg(url);
    run(command, "")
}

fn imap(machine: &Machine, user: &str, rest: &str, more: &[&str]) -> Output {
    curl(machine, user, &format!("imaps://localhost:{}/{rest}", machine.port(993)), more)
}

fn pop3(machine: &Machine, user: &str, rest: &str, more: &[&str]) -> Output {
    curl(machine, user, &format!("pop3s://localhost:{}/{rest}", machine.port(995)), more)
}

/// Files in `new` and `cur`.
fn messages(maildir: &Path) -> Vec<PathBuf> {
    let folders = ["new", "cur"].map(|name| maildir.join(name));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    entries.map(|entry| entry.expect("entry").path()).collect()
}

/// Everything below a folder, itself included.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_symlink() || !path.is_dir() { all.push(path) } else { all.extend(tree(&path)) }
    }
    all
}

/// The user's, 0700 and 0600, all of it.
fn owned(maildir: &Path, uid: u32) {
    for path in tree(maildir) {
        let meta = fs::symlink_metadata(&path).expect("meta");
        assert_eq!((meta.uid(), meta.gid()), (uid, uid), "{}", path.display());
        let want = if meta.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(meta.permissions().mode() & 0o7777, want, "{}", path.display());
    }
}

/// A line of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn users_submit_and_read_and_own_their_mail() {
    let Some(machine) = machine("") else { return };
    // A group that alice is in beside her own.
    let group = machine.path("etc/group");
    fs::write(&group, fs::read_to_string(&group).expect("group") + "team:x:61300:alice\n").expect("group");
    let mut machine = machine;
    if !machine.launch(&[]) || !have(&["mpop", "mbsync"]) {
        return;
    }
    sent(&machine, "alice", "alice,bob", "first");
    for user in ["alice", "bob"] {
        let maildir = maildir(&machine, user);
        let [message] = &messages(&maildir)[..] else { panic!("one message of {user}:\n{}", machine.log()) };
        let text = fs::read_to_string(message).expect("message");
        assert!(text.starts_with("Return-Path: <alice@") && text.contains("\nSubject: first\n"), "{text}");
        assert!(text.contains(&format!("Delivered-To: {user}@{HOSTNAME}\n")), "{text}");
        owned(&maildir, uid(user));
    }
    // IMAP, with the folders made at the first login.
    let list = imap(&machine, "alice", "", &["-X", "LIST \"\" \"*\" RETURN (SPECIAL-USE)"]);
    let said = stdout(&list);
    for (folder, attribute) in [
        ("Sent", "\\Sent"),
        ("Drafts", "\\Drafts"),
        ("Junk", "\\Junk"),
        ("Trash", "\\Trash"),
        ("Archive", "\\Archive"),
    ] {
        let line = said.lines().find(|line| line.trim_end().ends_with(folder)).unwrap_or_default();
        assert!(line.contains(attribute), "{folder}: {}\n{}", show(&list), machine.log());
    }
    let text = stdout(&imap(&machine, "alice", "INBOX;MAILINDEX=1", &[]));
    assert!(text.contains("Subject: first\r\n"), "{text}\n{}", machine.log());
    // Ids and groups of the process, and nothing of root's.
    let processes = machine.processes("mailbox");
    let [hers] = processes
        .iter()
        .copied()
        .filter(|pid| status(*pid, "Uid").starts_with(&uid("alice").to_string()))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one process of alice: {processes:?}")
    };
    let four = |id: u32| format!("{id} {id} {id} {id}");
    assert_eq!(status(hers, "Uid"), four(uid("alice")));
    assert_eq!(status(hers, "Gid"), four(uid("alice")));
    assert_eq!(status(hers, "Groups"), format!("{} 61300", uid("alice")));
    assert_eq!(
        (status(hers, "NoNewPrivs"), status(hers, "CapPrm").as_str()),
        ("1".to_owned(), "0000000000000000")
    );
    assert_eq!(status(hers, "Seccomp"), "2");
    // POP3.
    let text = stdout(&pop3(&machine, "bob", "1", &[]));
    assert!(text.contains("Subject: first\r\n"), "{text}\n{}", machine.log());
    let mut command = peer("mpop", &machine.path("home"));
    command.args([
        "--host=localhost",
        &format!("--port={}", machine.port(995)),
        "--tls=on",
        "--tls-starttls=off",
    ]);
    command.arg(format!("--tls-trust-file={}", machine.ca().display())).arg("--user=bob");
    command.args([&format!("--passwordeval=echo {RIGHT}"), "--keep=off"]);
    // mpop renames over it: never a device.
    command.arg(format!("--uidls-file={}", machine.path("uidls").display()));
    command.arg(format!("--delivery=mbox,{}", machine.path("mbox").display()));
    let out = run(command, "");
    assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
    let mbox = fs::read_to_string(machine.path("mbox")).expect("mbox");
    assert!(mbox.contains("\nSubject: first\n"), "{mbox}");
    assert!(messages(&maildir(&machine, "bob")).is_empty());
    // A client that keeps a copy of everything.
    let store = machine.path("copy");
    fs::create_dir_all(&store).expect("folder");
    let rc = format!(
        "IMAPAccount a\nHost localhost\nPort {}\nUser alice\nPass \"{RIGHT}\"\nSSLType IMAPS\nCertificateFile {}\n\n\
         IMAPStore far\nAccount a\n\nMaildirStore near\nPath {store}/\nInbox {store}/INBOX\nSubFolders Verbatim\n\n\
         Channel c\nFar :far:\nNear :near:\nPatterns *\nCreate Near\nSyncState *\n",
        machine.port(993),
        machine.ca().display(),
        store = store.display()
    );
    fs::write(machine.path("mbsyncrc"), rc).expect("mbsyncrc");
    let mut command = peer("mbsync", &machine.path("home"));
    command.arg("-c").arg(machine.path("mbsyncrc")).arg("c");
    let out = run(command, "");
    assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
    assert_eq!(messages(&store.join("INBOX")).len(), 1);
    for user in ["alice", "bob"] {
        owned(&maildir(&machine, user), uid(user));
    }
    // What else IMAP does with files, within what the process may call and reach.
    let mut talk = Talk::imap(&machine, "alice");
    for command in [
        "CREATE Lists/rust",
        "SUBSCRIBE Lists/rust",
        "SELECT INBOX",
        "STORE 1 +FLAGS (\\Flagged $label1)",
        "COPY 1 Lists/rust",
        "MOVE 1 Archive",
        "SEARCH FLAGGED",
        "SELECT Lists/rust",
        "FETCH 1 (UID ENVELOPE BODYSTRUCTURE INTERNALDATE BODY[])",
        "STORE 1 +FLAGS (\\Deleted)",
        "EXPUNGE",
        "STATUS Archive (MESSAGES UIDNEXT UNSEEN)",
        "UNSELECT",
        "RENAME Lists/rust Lists/c",
        "DELETE Lists/c",
        "LOGOUT",
    ] {
        let answer = talk.ask("x", command);
        assert!(answer.starts_with("x OK"), "{command}: {answer}\n{}", machine.log());
    }
    let stray: Vec<_> = tree(&machine.path("home"))
        .into_iter()
        .skip(1)
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == 0))
        .collect();
    assert!(stray.is_empty(), "root's: {stray:?}");
    // The stack proves itself in this shape, too, with a user that nobody is.
    machine.stop();
    let config = machine.path("postern.toml");
    let text = fs::read_to_string(&config).expect("settings");
    fs::write(&config, text.replace(HOSTNAME, "localhost")).expect("settings");
    if let Some(mut command) = machine.command(postern().get_program().to_str().expect("path")) {
        command.args(["run", "--self-test", "--config"]).arg(config);
        let out = run(command, "");
        assert!(out.status.success(), "{}", show(&out));
    }
}

/// A client over TLS, line by line.
struct Talk {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Talk {
    fn connect(machine: &Machine, offset: u16) -> Talk {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            &format!("localhost:{}", machine.port(offset)),
        ]);
        command.arg("-CAfile").arg(machine.ca());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("openssl starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut talk = Talk { child, lines };
        assert!(talk.line().contains("Postern ready"));
        talk
    }

    /// An IMAP session of this user.
    fn imap(machine: &Machine, user: &str) -> Talk {
        let mut talk = Talk::connect(machine, 993);
        let answer = talk.ask("l", &format!("LOGIN {user} {RIGHT}"));
        assert!(answer.starts_with("l OK [CAPABILITY "), "{answer}\n{}", machine.log());
        talk
    }

    fn send(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        // Fails when the server has hung up; the next line tells.
        let _ = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
    }

    /// The next line; `None` at the end. The server has timeouts of its own, and tests ask where there is an answer.
    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        let got = self.lines.read_line(&mut line).unwrap_or(0);
        (got > 0).then(|| line.trim_end().to_owned())
    }

    fn line(&mut self) -> String {
        self.next().expect("the connection was closed")
    }

    /// Nothing but the end comes.
    fn ended(&mut self) {
        while let Some(line) = self.next() {
            assert_eq!(line, "", "no word after the last one");
        }
    }

    fn until(&mut self, what: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.line();
            if what(&line) {
                return line;
            }
        }
    }

    /// An IMAP command and the tagged line of its answer.
    fn ask(&mut self, tag: &str, command: &str) -> String {
        self.send(&format!("{tag} {command}\r\n"));
        self.until(|line| line.starts_with(&format!("{tag} ")))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn process_of(machine: &Machine, user: &str) -> Option<u32> {
    let is = |pid: &u32| status(*pid, "Uid").starts_with(&format!("{0} {0} ", uid(user)));
    machine.processes("mailbox").into_iter().find(is)
}

#[test]
fn idle_hears_of_mail_at_once_and_survives_a_reload() {
    let Some(mut machine) = started("") else { return };
    let mut idle = Talk::imap(&machine, "alice");
    assert!(idle.ask("s", "SELECT INBOX").starts_with("s OK"));
    idle.send("i IDLE\r\n");
    idle.until(|line| line.starts_with("+ "));
    sent(&machine, "bob", "alice", "one");
    idle.until(|line| line == "* 1 EXISTS");
    // What is sent ahead of the answer to the login is not lost on the way to the process.
    let mut ahead = Talk::connect(&machine, 993);
    ahead.send(&format!("a LOGIN alice {RIGHT}\r\nb SELECT INBOX\r\nc FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT)]\r\nd LOGOUT\r\n"));
    for tag in ["a OK ", "b OK ", "* 1 FETCH ", "Subject: one", "c OK ", "* BYE ", "d OK "] {
        ahead.until(|line| line.starts_with(tag));
    }
    ahead.ended();

    let pid = process_of(&machine, "alice").expect("her process");
    let reloads = machine.log().matches("reloaded").count();
    signal(machine.pid(), Signal::SIGHUP);
    wait_for("the reload", || (machine.log().matches("reloaded").count() > reloads).then_some(()));
    sent(&machine, "bob", "alice", "two");
    idle.until(|line| line == "* 2 EXISTS");
    assert_eq!(process_of(&machine, "alice"), Some(pid), "{}", machine.log());
    // A message of several packets each way.
    idle.send("DONE\r\n");
    idle.until(|line| line.starts_with("i OK"));
    let body = format!("Subject: large\r\n\r\n{}", format!("{}\r\n", "0123456789".repeat(7)).repeat(20_000));
    idle.send(&format!("p APPEND INBOX {{{}+}}\r\n{body}\r\n", body.len()));
    idle.until(|line| line.starts_with("p OK"));
    idle.send("f FETCH 3 BODY.PEEK[]\r\n");
    let mut bytes = vec![0; body.len()];
    idle.until(|line| line.starts_with("* 3 FETCH"));
    idle.lines.read_exact(&mut bytes).expect("the message");
    assert!(bytes == body.as_bytes());
    idle.until(|line| line.starts_with("f OK"));

    // The stop tells everybody, and nobody stays.
    let processes = machine.processes("mailbox");
    machine.stop();
    idle.until(|line| line.starts_with("* BYE [UNAVAILABLE]"));
    idle.ended();
    assert!(!processes.is_empty() && processes.iter().all(|pid| !alive(*pid)));
    assert!(!machine.log().contains("panicked"), "{}", machine.log());
}

/// A command in the machine's own mounts.
fn inside(machine: &Machine, script: &str) {
    let mut command = Command::new("nsenter");
    command.args([&format!("--mount=/proc/{}/ns/mnt", machine.pid()), "--", "sh", "-ec", script]);
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
}

fn refused_login(machine: &Machine, user: &str) -> String {
    Talk::connect(machine, 993).ask("l", &format!("LOGIN {user} {RIGHT}"))
}

#[test]
fn homes_that_are_missing_read_only_or_links() {
    let Some(machine) = started("") else { return };
    if !have(&["nsenter"]) {
        return;
    }
    let home = |user: &str| machine.path("home").join(user);
    // Not mounted: told as what passes, by every door; nothing is lost and nothing is made.
    fs::rename(home("bob"), machine.path("away")).expect("rename");
    let answer = refused_login(&machine, "bob");
    assert!(
        answer.starts_with("l NO [UNAVAILABLE] The mailbox cannot be opened now."),
        "{answer}\n{}",
        machine.log()
    );
    let out = pop3(&machine, "bob", "", &[]);
    assert!(!out.status.success());
    let out = send(&machine, "alice", "alice,bob", "to both");
    assert!(stdout(&out).contains("<** 451 4.3.0") || show(&out).contains("451 4.3.0"), "{}", show(&out));
    assert!(!home("bob").exists());
    // All or none.
    assert!(messages(&maildir(&machine, "alice")).is_empty(), "{}", machine.log());
    assert!(machine.log().contains("is not there"), "{}", machine.log());
    fs::rename(machine.path("away"), home("bob")).expect("rename");
    sent(&machine, "alice", "alice,bob", "again");
    assert_eq!(messages(&maildir(&machine, "bob")).len(), 1);

    // Read-only: reading goes on where the process is there already; mail waits.
    inside(&machine, "mount --bind /home/alice /home/alice; mount -o remount,bind,ro /home/alice");
    let out = send(&machine, "bob", "alice", "read-only");
    assert!(show(&out).contains("451 4.3.0"), "{}", show(&out));
    inside(&machine, "umount /home/alice");
    sent(&machine, "bob", "alice", "writable");
    assert_eq!(messages(&maildir(&machine, "alice")).len(), 2);

    // A link to where the space is.
    fs::create_dir(machine.path("volume")).expect("folder");
    fs::rename(home("alice"), machine.path("volume/alice")).expect("rename");
    symlink(machine.path("volume/alice"), home("alice")).expect("link");
    sent(&machine, "bob", "alice", "linked");
    let text = stdout(&imap(&machine, "alice", "INBOX;MAILINDEX=3", &[]));
    assert!(text.contains("Subject: linked"), "{text}\n{}", machine.log());
    owned(&machine.path("volume/alice/Maildir"), uid("alice"));

    // A Maildir that is another one now is served as well.
    fs::rename(maildir(&machine, "bob"), home("bob").join("old")).expect("rename");
    sent(&machine, "alice", "bob", "new tree");
    assert_eq!(messages(&maildir(&machine, "bob")).len(), 1);
    owned(&maildir(&machine, "bob"), uid("bob"));
}

/// The fronts say at their start when the kernel has none.
fn has_landlock(machine: &Machine) -> bool {
    !machine.log().contains("landlock is missing or too old")
}

#[test]
fn root_and_low_uids_have_no_mailbox_and_no_home_is_anybody_elses() {
    let Some(mut machine) = machine("") else { return };
    let add = |name: &str, line: &str| {
        let file = machine.path("etc").join(name);
        fs::write(&file, fs::read_to_string(&file).expect("file") + line).expect("file");
    };
    let day = crate::machine::today();
    for (name, id) in [("lowly", 500), ("high", 61_900)] {
        add("passwd", &format!("{name}:x:{id}:{id}::/home/{name}:/bin/sh\n"));
        add("group", &format!("{name}:x:{id}:\n"));
        add("shadow", &format!("{name}:{}:{day}:0:99999:7:::\n", crate::machine::YESCRYPT));
        fs::create_dir(machine.path("home").join(name)).expect("home");
        chown(machine.path("home").join(name), Some(id), Some(id)).expect("owner");
    }
    let shadow = fs::read_to_string(machine.path("etc/shadow")).expect("shadow");
    let root = format!("root:{}:{day}:0:99999:7:::", crate::machine::YESCRYPT);
    fs::write(machine.path("etc/shadow"), shadow.replace("root:*:1:0:99999:7:::", &root)).expect("shadow");
    if !machine.launch(&[]) {
        return;
    }
    for name in ["root", "lowly", "high"] {
        let answer = refused_login(&machine, name);
        assert!(
            answer.starts_with("l NO [CONTACTADMIN] This account has no mailbox here."),
            "{answer}\n{}",
            machine.log()
        );
        let out = send(&machine, "alice", name, "x");
        assert!(show(&out).contains("550 5.1.1"), "{name}: {}", show(&out));
    }
    assert!(machine.log().contains("uid 0 may have no mail"), "{}", machine.log());
    assert!(machine.processes("mailbox").is_empty());
    // A link in one user's home leads nowhere its owner could not go himself.
    sent(&machine, "alice", "bob", "secret");
    let trap = machine.path("home/alice/Maildir");
    symlink(machine.path("home/bob/Maildir"), &trap).expect("link");
    let answer = refused_login(&machine, "alice");
    assert!(answer.starts_with("l NO [UNAVAILABLE]"), "{answer}");
    fs::remove_file(&trap).expect("remove");
    fs::create_dir(&trap).expect("folder");
    for name in ["cur", "new", "tmp"] {
        symlink(machine.path("home/bob/Maildir").join(name), trap.join(name)).expect("link");
    }
    let mut talk = Talk::connect(&machine, 993);
    if talk.ask("l", &format!("LOGIN alice {RIGHT}")).starts_with("l OK") {
        let answer = talk.ask("s", "SELECT INBOX");
        assert!(answer.starts_with("s NO"), "{answer}");
    }
    assert_eq!(messages(&maildir(&machine, "bob")).len(), 1);
    drop(talk);
    // Nor does one out of the Maildir, though the folder is her own.
    let outside = machine.path("home/alice/outside");
    fs::rename(&trap, machine.path("home/alice/trap")).expect("rename");
    sent(&machine, "alice", "alice", "hers");
    fs::create_dir_all(outside.join("cur")).expect("folder");
    fs::create_dir_all(outside.join("new")).expect("folder");
    fs::create_dir_all(outside.join("tmp")).expect("folder");
    fs::write(outside.join("cur/1:2,"), "Subject: outside\n\nx\n").expect("message");
    for path in tree(&outside) {
        chown(path, Some(uid("alice")), Some(uid("alice"))).expect("owner");
    }
    symlink("../outside", maildir(&machine, "alice").join(".Outside")).expect("link");
    let mut talk = Talk::imap(&machine, "alice");
    assert!(talk.ask("i", "SELECT INBOX").starts_with("i OK"));
    let answer = talk.ask("s", "SELECT Outside");
    if has_landlock(&machine) {
        assert!(answer.starts_with("s NO"), "{answer}");
    } else {
        skip("no landlock with ABI 2 or later here");
    }
}

#[test]
fn processes_come_and_go_and_limits_hold() {
    let Some(mut machine) = started("mailbox_sessions = 2\nmailbox_processes = 1\n") else { return };
    let config = machine.path("postern.toml");
    let text = fs::read_to_string(&config).expect("settings");
    let first = Talk::imap(&machine, "alice");
    let second = Talk::imap(&machine, "alice");
    let answer = refused_login(&machine, "alice");
    assert!(answer.starts_with("l NO [UNAVAILABLE] Too many sessions of this user."), "{answer}");
    // Mail to her needs no session.
    sent(&machine, "alice", "alice", "in between");
    // The only process there may be is in use.
    let out = send(&machine, "alice", "bob", "no room");
    assert!(show(&out).contains("451 4.3.0"), "{}", show(&out));
    drop((first, second));
    // Now it is not: it makes room for another one.
    wait_for("room", || send(&machine, "alice", "bob", "room").status.success().then_some(()));
    assert!(process_of(&machine, "bob").is_some());
    wait_for("the end of the first", || process_of(&machine, "alice").is_none().then_some(()));
    drop(Talk::imap(&machine, "alice"));
    // Nobody is there, so after a while nothing is.
    fs::write(&config, text.replace("mailbox_idle = \"60s\"", "mailbox_idle = \"200ms\"")).expect("settings");
    let reloads = machine.log().matches("reloaded").count();
    signal(machine.pid(), Signal::SIGHUP);
    wait_for("the reload", || (machine.log().matches("reloaded").count() > reloads).then_some(()));
    wait_for("an idle machine", || machine.processes("mailbox").is_empty().then_some(()));
    for round in 0..3 {
        sent(&machine, "bob", "alice", &format!("round {round}"));
        wait_for("an idle machine", || machine.processes("mailbox").is_empty().then_some(()));
    }
    assert_eq!(messages(&maildir(&machine, "alice")).len(), 4);
    machine.stop();
    assert!(!machine.log().contains("panicked"), "{}", machine.log());
}

#[test]
fn killed_processes_cost_nothing_that_was_acknowledged() {
    let inbound =
        "[[smtp.listener]]\nname = \"inbound\"\ntype = \"inbound\"\naddress = \"127.0.0.1:PORT25\"\n";
    let Some(machine) = started(inbound) else { return };
    // In a session: the client hears the end, and may come back at once.
    let mut talk = Talk::imap(&machine, "alice");
    signal(process_of(&machine, "alice").expect("her process"), Signal::SIGKILL);
    while talk.next().is_some() {}
    let mut talk = Talk::imap(&machine, "alice");
    let [broker] = machine.processes("broker")[..] else { panic!("one broker") };
    signal(broker, Signal::SIGKILL);
    while talk.next().is_some() {}
    wait_for("another broker", || {
        let answer = refused_login(&machine, "alice");
        assert!(answer.starts_with("l OK") || answer.starts_with("l NO [UNAVAILABLE]"), "{answer}");
        answer.starts_with("l OK").then_some(())
    });

    // At moments of deliveries: each time when some more were answered, whatever the other senders are at.
    const KILLS: usize = 12;
    let (answered, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let (machine, answered, over) = (&machine, &answered, &over);
                scope.spawn(move || {
                    let (mut done, mut refused) = (Vec::new(), 0);
                    let (mut smtp, _) = Lines::smtp(machine.port(25)).expect("SMTP");
                    for number in 0..500 {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let subject = format!("kill-{sender}-{number}.");
                        let mut say = |line: &str| smtp.ask(line).expect("the SMTP server stays");
                        assert!(say(&format!("MAIL FROM:<x@{HOSTNAME}>")).starts_with("250"));
                        for user in ["alice", "bob"] {
                            assert!(say(&format!("RCPT TO:<{user}@{HOSTNAME}>")).starts_with("250"));
                        }
                        assert!(say("DATA").starts_with("354"));
                        // Some are longer than what is kept in memory.
                        let filler = "filler\r\n".repeat(if number % 4 == 0 { 20_000 } else { 3 });
                        let answer = say(&format!("Subject: {subject}\r\n\r\n{filler}end\r\n."));
                        if answer.starts_with("250") {
                            done.push(subject);
                        } else {
                            assert!(answer.starts_with("451 4.3.0"), "{answer}\n{}", machine.log());
                            refused += 1;
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    (done, refused)
                })
            })
            .collect();
        for kill in 0..KILLS {
            let enough = answered.load(Ordering::Relaxed) + 1 + kill % 5;
            wait_for("more answers", || (answered.load(Ordering::Relaxed) >= enough).then_some(()));
            let victims = machine.processes(if kill % 3 == 2 { "broker" } else { "mailbox" });
            victims.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
        }
        over.store(true, Ordering::Relaxed);
        for sender in senders {
            let (done, no) = sender.join().expect("sender");
            acknowledged.extend(done);
            refused += no;
        }
    });
    println!("{} acknowledged, {refused} put off, {KILLS} kills", acknowledged.len());
    assert!(!acknowledged.is_empty());
    for user in ["alice", "bob"] {
        let there: Vec<String> = messages(&maildir(&machine, user))
            .iter()
            .map(|path| fs::read_to_string(path).expect("message"))
            .collect();
        for subject in &acknowledged {
            let line = format!("Subject: {subject}\n");
            let count = there.iter().filter(|text| text.contains(&line) && text.ends_with("end\n")).count();
            assert_eq!(count, 1, "{subject} of {user}\n{}", machine.log());
        }
        owned(&maildir(&machine, user), uid(user));
    }
}

/// Programs for [`hostile`]; a Python in somebody's home would not do.
fn can_be_hostile() -> bool {
    if !Path::new("/usr/bin/python3").is_file() {
        skip("no /usr/bin/python3");
        return false;
    }
    have(&["setpriv", "nsenter"])
}

/// `mailboxes_hostile.py` with these ids, in the machine's own mounts.
fn hostile(machine: &Machine, part: &str, account: &str, groups: &str, pids: &[u32]) -> Command {
    let script = machine.path("hostile.py");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/mailboxes_hostile.py");
    fs::copy(source, &script).expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("mode");
    let (_, id) = ACCOUNTS.iter().find(|(name, _)| *name == account).expect("an account");
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut command = peer("nsenter", &machine.path("home"));
    command.args([&format!("--mount=/proc/{}/ns/mnt", machine.pid()), "--", "setpriv"]);
    command.args([&format!("--reuid={id}"), &format!("--regid={id}"), &format!("--groups={id}{groups}")]);
    command.arg("/usr/bin/python3").arg(script).arg(machine.path("state/sockets"));
    command.args([HOSTNAME, RIGHT, part, &pids.join(",")]);
    command
}

/// What it tells, one line per attempt.
fn told(machine: &Machine, part: &str, account: &str, groups: &str, pids: &[u32]) -> Vec<String> {
    let out = run(hostile(machine, part, account, groups, pids), "");
    assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
    stdout(&out).lines().map(str::to_owned).collect()
}

/// `wanted` are beginnings.
fn attempts(machine: &Machine, told: &[String], wanted: &[&str]) {
    for (told, wanted) in told.iter().zip(wanted) {
        assert!(told.starts_with(wanted), "{told:?} instead of {wanted:?}\n{}", machine.log());
    }
    assert_eq!(told.len(), wanted.len(), "{told:?}");
}

#[test]
fn a_front_that_was_taken_over_gets_only_what_it_logged_in() {
    let Some(machine) = started("") else { return };
    if !can_be_hostile() {
        return;
    }
    sent(&machine, "alice", "alice,bob", "private");
    let before = (messages(&maildir(&machine, "alice")).len(), messages(&maildir(&machine, "bob")).len());
    let others = |own: &str| -> Vec<u32> {
        let roles = ["imap", "smtp", "auth", "broker", "mailbox"];
        let pids = roles.iter().filter(|role| **role != own).flat_map(|role| machine.processes(role));
        std::iter::once(machine.pid()).chain(pids).collect()
    };
    let shut_out = |count: usize| -> Vec<String> {
        let mut lines =
            vec!["read mail: PermissionError".to_owned(), "read shadow: PermissionError".to_owned()];
        for number in 0..count {
            lines.push(format!("kill {number}: PermissionError"));
            lines.push(format!("look into {number}: PermissionError"));
        }
        lines
    };

    let pids: Vec<u32> = machine.processes("imap").into_iter().chain(others("imap")).collect();
    // Its own process is one of the same uid.
    let pids = &pids[1..];
    let mut wanted = vec![
        "login: OK",
        "own: ready alice@",
        "greeted: t OK",
        "again: refused temporary: the login is not confirmed",
        "wrong password: FAIL",
        "not logged in: refused temporary: the login is not confirmed",
        "never asked: refused temporary: the login is not confirmed",
        "login: OK",
        "another process: refused denied: the login is another process's",
        "a pid above: refused temporary: the login is not confirmed",
        "guessed: refused temporary: the login is not confirmed",
        "no cookie: refused denied: not a cookie",
        "with a uid: refused denied: not a request: unknown field `uid`",
        "with a user: refused denied: not a request: unknown field `user`",
        "under another pid: ",
        "delivery: refused denied: this server may not ask for that",
        "request: refused",
        "still good: ready alice@",
    ];
    let shut = shut_out(pids.len());
    wanted.extend(shut.iter().map(String::as_str));
    let lines = told(&machine, "imap", "postern-imap", ",61010", pids);
    attempts(&machine, &lines, &wanted);
    let other = lines.iter().find(|line| line.starts_with("under another pid")).expect("told");
    assert!(!other.contains("ready"), "{other}");

    let pids = others("smtp");
    let mut wanted = vec![
        "session: refused denied: this server may not ask for that",
        "to 'root': refused denied: root@",
        "to 'nobody-here': refused denied: no such user",
        "to '../alice': refused denied: no such user",
        "to 'alice/../bob': refused denied: no such user",
        "to '': refused denied: no such user",
        "to 'bob\\x00': refused ",
        "to 'bob\\n': refused ",
        "with a uid: refused denied: not a request: unknown field `uid`",
        "with a place: refused denied: not a request: unknown field `root`",
        "commit at once: ready closed",
        "commit before it is whole: ready closed",
        "undo of nothing: ready closed",
        "another request: ready closed",
        "a session's word: ready closed",
        "garbage: ready closed",
        "too much: ready closed",
        "appended: staged done closed",
        "taken back: staged done undone",
        "and more: staged done closed",
    ];
    let shut = shut_out(pids.len());
    wanted.extend(shut.iter().map(String::as_str));
    attempts(&machine, &told(&machine, "smtp", "postern-smtp", ",61010", &pids), &wanted);
    assert_eq!(messages(&maildir(&machine, "alice")).len(), before.0);
    assert_eq!(messages(&maildir(&machine, "bob")).len(), before.1 + 2);
    assert_eq!(fs::read_dir(maildir(&machine, "bob").join("tmp")).expect("tmp").count(), 0);

    // Nobody else is listened to, in the right group or not.
    attempts(&machine, &told(&machine, "stranger", "test-stranger", "", &[]), &["broker: PermissionError"]);
    attempts(&machine, &told(&machine, "stranger", "test-stranger", ",61010", &[]), &["broker: closed"]);
    assert!(machine.log().contains("refused a process on the broker's socket"), "{}", machine.log());
    attempts(&machine, &told(&machine, "stranger", "postern-auth", ",61010", &[]), &["broker: closed"]);

    // Garbage, then every place of one front taken: the other one is served, and the broker stays.
    let broker = machine.processes("broker");
    let mut command = hostile(&machine, "garbage", "postern-imap", ",61010", &[]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut said = String::new();
    lines.read_line(&mut said).expect("a line");
    assert!(
        matches!(said.trim_end(), "garbage: closed refused denied" | "garbage: refused denied"),
        "{said}"
    );
    said.clear();
    lines.read_line(&mut said).expect("a line");
    assert_eq!(said, "held: some\n");
    sent(&machine, "alice", "bob", "meanwhile");
    child.stdin.take();
    child.wait().expect("ended");
    wait_for("a login", || refused_login(&machine, "alice").starts_with("l OK").then_some(()));
    assert_eq!(machine.processes("broker"), broker);
}

#[test]
fn with_one_mail_account_the_imap_server_writes_what_the_smtp_server_takes() {
    if !have(&["swaks", "curl"]) || !can_be_hostile() {
        return;
    }
    let settings = format!("{QUICK}[[auth.passdb]]\ndriver = \"shadow\"\n{ANYBODY}");
    let people = ["alice", "bob"].map(Person::plain).to_vec();
    let Some(mut machine) = Machine::start(&Setup { people, services: Vec::new(), settings, fronts: true })
    else {
        return;
    };
    assert!(machine.processes("broker").is_empty());
    let mail = |user: &str| machine.path("state/mail").join(user).join("Maildir");
    sent(&machine, "alice", "alice,bob", "together");
    let (_, owner) = ACCOUNTS.iter().find(|(name, _)| *name == "postern-imap").expect("an account");
    for user in ["alice", "bob"] {
        assert_eq!(messages(&mail(user)).len(), 1, "{}", machine.log());
        owned(&mail(user), *owner);
    }
    let text = stdout(&imap(&machine, "alice", "INBOX;MAILINDEX=1", &[]));
    assert!(text.contains("Subject: together"), "{text}");
    // An idling client hears of it, and a full mailbox of nobody else's.
    let mut idle = Talk::imap(&machine, "alice");
    assert!(idle.ask("s", "SELECT INBOX").starts_with("s OK"));
    idle.send("i IDLE\r\n");
    idle.until(|line| line.starts_with("+ "));
    sent(&machine, "bob", "alice", "idle");
    idle.until(|line| line == "* 2 EXISTS");
    fs::write(mail("bob").join("maildirsize"), "1000S\n999 1\n").expect("quota");
    chown(mail("bob").join("maildirsize"), Some(*owner), Some(*owner)).expect("owner");
    let out = send(&machine, "alice", "alice,bob", "too much");
    assert!(show(&out).contains("452 4.2.2 Mailbox is full"), "{}", show(&out));
    assert_eq!((messages(&mail("alice")).len(), messages(&mail("bob")).len()), (2, 1));
    for (account, groups) in [("test-stranger", ""), ("test-stranger", ",61010"), ("postern-auth", ",61010")]
    {
        let lines = told(&machine, "stranger", account, groups, &[]);
        assert!(lines.iter().all(|line| !line.contains("ready")) && lines.len() == 2, "{lines:?}");
    }
    assert!(machine.log().contains("refused a process on the delivery socket"), "{}", machine.log());
    // The IMAP server is away for a moment: mail waits at the sender's.
    let [pid] = machine.processes("imap")[..] else { panic!("one") };
    signal(pid, Signal::SIGKILL);
    wait_for("the IMAP server", || {
        let out = send(&machine, "bob", "alice", "afterwards");
        assert!(out.status.success() || show(&out).contains("451 4.3.0"), "{}", show(&out));
        out.status.success().then_some(())
    });
    assert_eq!(messages(&mail("alice")).len(), 3);
    machine.stop();
}
