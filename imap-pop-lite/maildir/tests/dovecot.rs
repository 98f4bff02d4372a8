//! The same directory served by a real Dovecot: both must agree on every UID, flag and keyword, and Dovecot must
//! find nothing wrong.
//!
//! Needs root and an installed Dovecot; says so and passes when it cannot run. `POSTERN_TEST_SKIPS=fail` turns that
//! into a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maildir::{
    FlagChange, FlagOp, Flags, FolderName, Keyword, Mailbox, Maildir, Mode, Numbers, Options, SetRange,
    Store, Uid, View,
};

/// The account mail belongs to in these tests: `mail` on every Debian.
const MAIL: u32 = 8;

struct Dovecot {
    dir: tempfile::TempDir,
    port: u16,
    master: Child,
}

impl Dovecot {
    fn start() -> Option<Self> {
        let missing = |why: &str| {
            assert!(std::env::var_os("POSTERN_TEST_SKIPS").is_none_or(|v| v != "fail"), "cannot run: {why}");
            eprintln!("SKIPPED: {why}");
        };
        if !nix::unistd::geteuid().is_root() {
            missing("starting a private Dovecot needs root");
            return None;
        }
        if !Path::new("/usr/lib/dovecot/imap").exists() {
            missing("Dovecot is not installed (packages dovecot-core and dovecot-imapd)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path();
        fs::set_permissions(work, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(work.join("mail")).unwrap();
        chown(work.join("mail"), Some(MAIL), Some(MAIL)).unwrap();
        fs::write(work.join("users"), "alice:{PLAIN}pw\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let w = work.display();
        let config = format!(
            "base_dir = {w}/run\nstate_dir = {w}/state\ninstance_name = t{port}\nlog_path = {w}/log\n\
             protocols = imap\nlisten = 127.0.0.1\nssl = no\nauth_mechanisms = plain\nauth_failure_delay = 0\n\
             mail_location = maildir:~/Maildir\nfirst_valid_uid = 1\nmail_max_userip_connections = 0\n\
             passdb {{\n driver = passwd-file\n args = {w}/users\n}}\n\
             userdb {{\n driver = static\n args = uid=mail gid=mail home={w}/mail/%n\n}}\n\
             namespace inbox {{\n inbox = yes\n separator = /\n}}\n\
             service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
             service imap-login {{\n inet_listener imap {{\n port = {port}\n }}\n inet_listener imaps {{\n port = 0\n }}\n}}\n"
        );
        fs::write(work.join("dovecot.conf"), config).unwrap();
        let mut command = Command::new("dovecot");
        command.arg("-F").arg("-c").arg(work.join("dovecot.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let master = command.spawn().unwrap();
        let dovecot = Self { dir, port, master };
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "dovecot does not listen: {}", log(dovecot.dir.path()));
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(dovecot)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mail/alice/Maildir")
    }

    /// What the log says beyond logins. Its complaint about the disabled penalty listener is known.
    fn complaints(&self) -> Vec<String> {
        log(self.dir.path())
            .lines()
            .filter(|l| {
                l.contains("Error") || l.contains("Warning") || l.contains("Panic") || l.contains("Fatal")
            })
            .filter(|l| !l.contains("anvil-auth-penalty"))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.master.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.master.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

fn log(work: &Path) -> String {
    fs::read_to_string(work.join("log")).unwrap_or_default()
}

/// A very small IMAP client.
struct Client {
    stream: BufReader<TcpStream>,
    tag: u32,
}

impl Client {
    fn login(dovecot: &Dovecot) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", dovecot.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut client = Self { stream: BufReader::new(stream), tag: 0 };
        client.line();
        client.run("LOGIN alice pw");
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stream.read_line(&mut line).unwrap() > 0, "connection closed");
        line.trim_end().to_owned()
    }

    /// Untagged answers; the command must succeed.
    fn run(&mut self, command: &str) -> Vec<String> {
        let (lines, last) = self.attempt(command);
        assert!(last.starts_with("OK"), "{command}: {last}");
        lines
    }

    fn attempt(&mut self, command: &str) -> (Vec<String>, String) {
        self.tag += 1;
        let tag = format!("t{}", self.tag);
        self.stream.get_mut().write_all(format!("{tag} {command}\r\n").as_bytes()).unwrap();
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if let Some(rest) = line.strip_prefix(&format!("{tag} ")) {
                return (lines, rest.to_owned());
            }
            lines.push(line);
        }
    }

    fn append(&mut self, flags: &str, text: &str) {
        self.tag += 1;
        let tag = format!("t{}", self.tag);
        let head = format!("{tag} APPEND INBOX ({flags}) {{{}+}}\r\n{text}\r\n", text.len());
        self.stream.get_mut().write_all(head.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if let Some(rest) = line.strip_prefix(&format!("{tag} ")) {
                assert!(rest.starts_with("OK"), "APPEND: {rest}");
                return;
            }
        }
    }

    /// `uid:flags` of all messages, flags sorted, without `\Recent`.
    fn messages(&mut self) -> Vec<String> {
        let lines = self.run("UID FETCH 1:* (UID FLAGS)");
        let mut all: Vec<(u32, String)> = lines
            .iter()
            .filter(|l| l.contains(" FETCH (UID "))
            .map(|l| {
                let uid = l.split("(UID ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                let flags = l.split("FLAGS (").nth(1).unwrap().split(')').next().unwrap();
                let mut flags: Vec<&str> =
                    flags.split(' ').filter(|f| !f.is_empty() && *f != "\\Recent").collect();
                flags.sort_unstable();
                (uid, flags.join(" "))
            })
            .collect();
        all.sort();
        all.into_iter().map(|(uid, flags)| format!("{uid}:{flags}")).collect()
    }

    fn response_code(lines: &[String], code: &str) -> u32 {
        let found = lines.iter().find_map(|l| l.split(&format!("[{code} ")).nth(1));
        found.unwrap().split(']').next().unwrap().parse().unwrap()
    }
}

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn everything(view: &View) -> Vec<(u32, Uid)> {
    view.resolve(&[SetRange { from: Some(1), to: None }], Numbers::Uid).unwrap()
}

/// The same text as [`Client::messages`].
fn ours(view: &View) -> Vec<String> {
    let names = view.mailbox().keywords();
    let table = [
        (Flags::ANSWERED, "\\Answered"),
        (Flags::DELETED, "\\Deleted"),
        (Flags::DRAFT, "\\Draft"),
        (Flags::FLAGGED, "\\Flagged"),
        (Flags::SEEN, "\\Seen"),
    ];
    view.messages(&everything(view))
        .iter()
        .map(|m| {
            let mut flags: Vec<String> = names.names_of(m.keywords).collect();
            flags.extend(table.iter().filter(|(f, _)| m.flags.contains(*f)).map(|(_, n)| (*n).to_owned()));
            flags.sort_unstable();
            format!("{}:{}", m.uid, flags.join(" "))
        })
        .collect()
}

fn change(op: FlagOp, flags: Flags, keywords: &[&str]) -> FlagChange {
    FlagChange { op, flags, keywords: keywords.iter().map(|k| Keyword::try_from(*k).unwrap()).collect() }
}

fn deliver(maildir: &Maildir, n: u32) {
    let mut delivery = maildir.delivery().unwrap();
    delivery.write(format!("Subject: {n}\r\n\r\nbody {n}\r\n").as_bytes()).unwrap();
    delivery.finish().unwrap().commit().unwrap();
}

fn append(mailbox: &Mailbox, n: u32) -> Uid {
    let mut delivery = mailbox.delivery().unwrap();
    delivery.write(format!("Subject: {n}\r\n\r\nappended {n}\r\n").as_bytes()).unwrap();
    mailbox.append(vec![delivery.finish().unwrap()]).unwrap()[0]
}

fn seteuid(uid: u32) {
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(uid)).unwrap();
}

/// Gives everything under a directory to the mail account, so that both programs can work on it.
fn give(path: &Path) {
    chown(path, Some(MAIL), Some(MAIL)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|e| give(&e.unwrap().path()));
    }
}

/// All parts change the process's user, so they are one test.
#[test]
fn beside_dovecot() {
    let Some(dovecot) = Dovecot::start() else { return };
    // From here on as the mail account, as in production; back to root for stopping Dovecot.
    give(&dovecot.dir.path().join("mail"));
    nix::unistd::setegid(nix::unistd::Gid::from_raw(MAIL)).unwrap();
    seteuid(MAIL);
    let result = std::panic::catch_unwind(|| {
        same_uids_and_flags(&dovecot);
        folders_and_subscriptions(&dovecot);
        under_load(&dovecot);
    });
    seteuid(0);
    nix::unistd::setegid(nix::unistd::Gid::from_raw(0)).unwrap();
    let complaints = dovecot.complaints();
    if let Err(panic) = result {
        eprintln!("Dovecot's log: {complaints:#?}");
        std::panic::resume_unwind(panic);
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

fn same_uids_and_flags(dovecot: &Dovecot) {
    let root = dovecot.root();
    fs::create_dir_all(root.parent().unwrap()).unwrap();
    let maildir = Maildir::open_or_create(&root).unwrap();
    let store = Store::new(Options::default()).unwrap();
    // Ours first.
    (1..=3).for_each(|n| deliver(&maildir, n));
    let inbox = store.mailbox(&root, &FolderName::inbox()).unwrap();
    let mut view = inbox.view(Mode::ReadWrite).unwrap();
    assert_eq!(append(&inbox, 4), uid(4));
    view.store(&[uid(2)], &change(FlagOp::Add, Flags::SEEN | Flags::FLAGGED, &["$Label1", "Ours"])).unwrap();
    let mut client = Client::login(dovecot);
    let select = client.run("SELECT INBOX");
    assert_eq!(Client::response_code(&select, "UIDVALIDITY"), inbox.uid_validity().get());
    assert_eq!(Client::response_code(&select, "UIDNEXT"), 5);
    view.refresh(true).unwrap();
    assert_eq!(client.messages(), ours(&view));
    assert_eq!(ours(&view)[1], "2:$Label1 Ours \\Flagged \\Seen");
    // Its sizes are ours.
    let sizes = client.run("UID FETCH 1:4 (UID RFC822.SIZE)");
    for n in 1..=4 {
        let size = inbox.virtual_size(uid(n)).unwrap();
        assert!(
            sizes.iter().any(|l| l.contains(&format!("UID {n} RFC822.SIZE {size})"))),
            "{n} {size} {sizes:?}"
        );
    }
    // Theirs: append, flags, keywords, a copy, an expunge.
    client.append("\\Draft Theirs", "Subject: 5\r\n\r\nfrom Dovecot\r\n");
    client.run("UID STORE 1 +FLAGS (\\Answered Theirs)");
    client.run("UID COPY 2 INBOX");
    client.run("UID STORE 3 +FLAGS (\\Deleted)");
    client.run("EXPUNGE");
    view.refresh(true).unwrap();
    assert_eq!(
        ours(&view),
        [
            "1:Theirs \\Answered",
            "2:$Label1 Ours \\Flagged \\Seen",
            "4:",
            "5:Theirs \\Draft",
            "6:$Label1 Ours \\Flagged \\Seen"
        ]
    );
    assert_eq!(client.messages(), ours(&view));
    assert_eq!(inbox.message_guid(uid(6)).unwrap(), inbox.message_guid(uid(2)).unwrap());
    // Ours again: expunge, copy, move into the same folder, a delivery; Dovecot follows.
    view.store(&[uid(4)], &change(FlagOp::Add, Flags::DELETED, &[])).unwrap();
    view.expunge(None).unwrap();
    assert_eq!(view.copy_to(&[uid(5)], &inbox).unwrap().uids, [(uid(5), uid(7))]);
    assert_eq!(view.move_to(&[uid(1)], &inbox).unwrap().uids, [(uid(1), uid(8))]);
    deliver(&maildir, 9);
    view.refresh(true).unwrap();
    client.run("NOOP");
    assert_eq!(client.messages(), ours(&view));
    assert_eq!(ours(&view).len(), 6);
    client.run("LOGOUT");
}

fn folders_and_subscriptions(dovecot: &Dovecot) {
    let maildir = Maildir::open(&dovecot.root()).unwrap();
    let name = |n: &str| FolderName::from_utf8(n, '/').unwrap();
    let mut client = Client::login(dovecot);
    maildir.create(&name("Entwürfe/2024")).unwrap();
    maildir.subscribe(&name("Entwürfe/2024")).unwrap();
    client.run("CREATE Theirs/Sub");
    client.run("SUBSCRIBE Theirs/Sub");
    let listed = client.run("LIST \"\" *");
    for folder in ["Entw&APw-rfe/2024", "Theirs/Sub"] {
        assert!(listed.iter().any(|l| l.ends_with(folder)), "{listed:?}");
    }
    let names: Vec<String> = maildir.folders(&[]).unwrap().iter().map(|e| e.name.to_imap('/')).collect();
    assert!(names.iter().any(|n| n == "Theirs/Sub"), "{names:?}");
    let subscribed: Vec<String> = maildir.subscriptions().unwrap().iter().map(|f| f.to_imap('/')).collect();
    assert_eq!(subscribed, ["Entw&APw-rfe/2024", "Theirs/Sub"]);
    let theirs = client.run("LSUB \"\" *");
    assert!(theirs.iter().any(|l| l.ends_with("Entw&APw-rfe/2024")), "{theirs:?}");
    // A folder of ours renamed by them, one of theirs by us; numbers stay.
    client.run("STATUS Theirs/Sub (UIDVALIDITY)");
    let validity = |folder: &str, client: &mut Client| {
        client.run(&format!("STATUS {folder} (UIDVALIDITY)"))[0]
            .clone()
            .split("UIDVALIDITY ")
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let before = validity("Theirs/Sub", &mut client);
    maildir.rename(&name("Theirs/Sub"), &name("Moved")).unwrap();
    assert_eq!(validity("Moved", &mut client), before);
    let store = Store::new(Options::default()).unwrap();
    let ours = store.mailbox(&dovecot.root(), &name("Moved")).unwrap();
    assert_eq!(format!("{})", ours.uid_validity()), before);
    maildir.delete(&name("Moved")).unwrap();
    client.run("CREATE Moved");
    assert_ne!(validity("Moved", &mut client), before);
    client.run("LOGOUT");
}

/// Three of our sessions, three of Dovecot's, and deliveries, all at once for some seconds.
fn under_load(dovecot: &Dovecot) {
    let root = dovecot.root();
    let maildir = Maildir::open(&root).unwrap();
    (100..200).for_each(|n| deliver(&maildir, n));
    let store = Store::new(Options::default()).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    // Lists as they were at some moments: a UID must never come to mean another file.
    let mut known: std::collections::HashMap<u32, String> = std::collections::HashMap::new();
    std::thread::scope(|scope| {
        for n in 0..3usize {
            let inbox: Arc<Mailbox> = store.mailbox(&root, &FolderName::inbox()).unwrap();
            scope.spawn(move || {
                let mut view = inbox.view(Mode::ReadWrite).unwrap();
                let mut round = 0;
                while Instant::now() < end {
                    round += 1;
                    view.refresh(true).unwrap();
                    let all = everything(&view);
                    let some: Vec<Uid> = all.iter().skip(n).step_by(5).map(|(_, uid)| *uid).collect();
                    let op = if round % 2 == 0 { FlagOp::Add } else { FlagOp::Remove };
                    view.store(&some, &change(op, Flags::FLAGGED, &["Ours"])).unwrap();
                    match n {
                        0 => {
                            append(&inbox, round);
                        }
                        1 => {
                            let oldest: Vec<Uid> = all.iter().take(2).map(|(_, uid)| *uid).collect();
                            view.store(&oldest, &change(FlagOp::Add, Flags::DELETED, &[])).unwrap();
                            view.expunge(None).unwrap();
                        }
                        _ => {
                            let last: Vec<Uid> = all.iter().rev().take(1).map(|(_, uid)| *uid).collect();
                            view.copy_to(&last, &inbox).unwrap();
                        }
                    }
                }
            });
        }
        for n in 0..3 {
            scope.spawn(move || {
                let mut client = Client::login(dovecot);
                client.run("SELECT INBOX");
                let mut round = 0;
                while Instant::now() < end {
                    round += 1;
                    client.run("NOOP");
                    let sign = if round % 2 == 0 { '+' } else { '-' };
                    client.run(&format!("UID STORE 1:* {sign}FLAGS.SILENT (\\Seen Theirs)"));
                    if n == 0 {
                        client.append("", "Subject: x\r\n\r\nfrom Dovecot\r\n");
                    }
                    if n == 1 {
                        client.run("UID COPY * INBOX");
                    }
                    if n == 2 {
                        client.run("EXPUNGE");
                    }
                }
                client.run("LOGOUT");
            });
        }
        scope.spawn(|| {
            let mut n = 1000;
            while Instant::now() < end {
                deliver(&maildir, n);
                n += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        while Instant::now() < end {
            let mut list = String::new();
            fs::File::open(root.join("dovecot-uidlist")).unwrap().read_to_string(&mut list).unwrap();
            // The last line may be half written at this moment.
            let whole = list.rsplit_once('\n').map_or("", |(whole, _)| whole);
            for line in whole.lines().skip(1) {
                let uid: u32 = line.split(' ').next().unwrap().parse().unwrap();
                let file = line.split_once(" :").or_else(|| line.split_once(':')).unwrap().1.to_owned();
                let before = known.entry(uid).or_insert_with(|| file.clone());
                assert_eq!(*before, file, "UID {uid} changed its message");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut files: Vec<&String> = known.values().collect();
    files.sort();
    let count = files.len();
    files.dedup();
    assert_eq!(files.len(), count, "a file got two UIDs");
    eprintln!("{count} UIDs handed out under load");
    let inbox = store.mailbox(&root, &FolderName::inbox()).unwrap();
    let view = inbox.view(Mode::ReadWrite).unwrap();
    let mut client = Client::login(dovecot);
    client.run("SELECT INBOX");
    assert_eq!(client.messages(), ours(&view));
    let again = Store::new(Options::default()).unwrap().mailbox(&root, &FolderName::inbox()).unwrap();
    assert_eq!(ours(&again.view(Mode::ReadOnly).unwrap()), ours(&view));
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    client.run("LOGOUT");
}
