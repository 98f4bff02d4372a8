//! Sessions that a process of the user's own hosts are the sessions of every other Postern: the same dialogues, byte for byte,
//! however the client cuts what it sends; and a user who stops the own process harms nobody else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::machine::{ANYBODY, FIRST_UID, Machine, Person, QUICK, RIGHT, Setup, today};
use crate::scenario::{Place, Target, base64, play_some, well_known};
use crate::support::{HOSTNAME, have, signal, wait_for};

const SHADOW: &str = "[[auth.passdb]]\ndriver = \"shadow\"\n";
const SYSTEM: &str = "[[auth.userdb]]\ndriver = \"passwd\"\n\
    [mail]\nmailboxes = \"system\"\nfirst_valid_uid = 1000\nlast_valid_uid = 61199\n";
/// Beside those of [`Setup::fronts`].
const LISTENERS: &str = "[smtp]\npostmaster = \"alice\"\n\
    [[smtp.listener]]\nname = \"smtp\"\naddress = \"127.0.0.1:PORT25\"\ntype = \"inbound\"\n\
    [[smtp.listener]]\nname = \"submission\"\naddress = \"127.0.0.1:PORT587\"\ntype = \"submission\"\n\
    [[imap.listener]]\nname = \"imap\"\ntls = \"starttls\"\naddress = \"127.0.0.1:PORT143\"\n\
    [[pop3.listener]]\nname = \"pop3\"\ntls = \"starttls\"\naddress = \"127.0.0.1:PORT110\"\n";
/// `pw`, the password of the scenarios.
const PW: &str =
    "$6$scenario$Qmte/w8wUUl7IPsY79Lyzx6mYkSsDhbMgLx3xWAzF0zxSCr0MDZ3tBtlUnM.H3VGXSXTjjZO9XRDGvD6Rto6X/";
/// Longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(30);

fn machine(settings: &str, people: Vec<Person>) -> Option<Machine> {
    let settings = format!("{QUICK}{SHADOW}{settings}{LISTENERS}");
    Machine::start(&Setup { people, services: Vec::new(), settings, fronts: true })
}

impl Target for Machine {
    fn place(&self, service: &str) -> Place {
        Place::Tcp(self.address(well_known(service).unwrap_or_else(|| panic!("no {service}"))))
    }

    fn ca(&self) -> PathBuf {
        Machine::ca(self)
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.path("home").join(user).join("Maildir")
    }

    fn log(&self) -> String {
        Machine::log(self)
    }
}

#[test]
fn scenarios_with_mailboxes_of_system_users() {
    let person =
        |name: &str| Person { shadow: Some(format!("{PW}:{}:0:99999:7:::", today())), ..Person::plain(name) };
    let people: Vec<Person> = ["alice", "bob"].map(person).to_vec();
    let Some(mut machine) = machine(SYSTEM, people) else { return };
    let speaks = |dialogue: &str| {
        let opened: Vec<&str> = dialogue
            .lines()
            .filter_map(|line| line.strip_prefix("open ")?.split_once(' '))
            .map(|(_, service)| service)
            .collect();
        opened.iter().any(|service| service.starts_with("imap") || service.starts_with("pop3"))
            && opened.iter().all(|service| !service.starts_with("auth") && *service != "mux")
    };
    play_some("postern", speaks, &machine, || {
        // Mailboxes as new; the processes see that theirs is another one.
        for (number, user) in (FIRST_UID..).zip(["alice", "bob"]) {
            let maildir = machine.maildir(user);
            if maildir.exists() {
                fs::remove_dir_all(&maildir).expect("removed");
            }
            for folder in ["", "cur", "new", "tmp"] {
                let folder = maildir.join(folder);
                fs::create_dir_all(&folder).expect("folder");
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("mode");
                chown(&folder, Some(number), Some(number)).expect("owner");
            }
        }
    });
    assert!(!machine.log().contains("panicked"), "{}", machine.log());
    machine.stop();
}

/// Plays pieces and gives all that comes until the end; the last thing that is sent is the end, where `hang_up` says so.
async fn transcript(machine: &Machine, service: &str, pieces: &[Vec<u8>], hang_up: bool) -> Vec<u8> {
    let Place::Tcp(address) = machine.place(service) else { panic!("not a port") };
    let pem = fs::read_to_string(machine.ca()).expect("CA");
    let client = tls_config::Client::new(&pem).expect("TLS client");
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    stream.set_nodelay(true).expect("socket");
    let stream = client.connect("localhost", Box::new(stream)).await.expect("TLS");
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        for piece in pieces {
            // Fails when the server has hung up: what it said tells.
            if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        if hang_up {
            let _ = writer.shutdown().await;
        }
    };
    let receive = async {
        let mut all = Vec::new();
        let mut space = vec![0; 16 << 10];
        loop {
            match tokio::time::timeout(PATIENCE, reader.read(&mut space)).await {
                Ok(Ok(0) | Err(_)) => return all,
                Ok(Ok(count)) => all.extend_from_slice(&space[..count]),
                Err(_) => {
                    all.extend_from_slice(b"<silence>");
                    return all;
                }
            }
        }
    };
    tokio::join!(send, receive).1
}

/// Long numbers are times and validities.
fn comparable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut digits = String::new();
    for one in text.chars().chain(['\0']) {
        if one.is_ascii_digit() {
            digits.push(one);
            continue;
        }
        out += if digits.len() > 8 { "N" } else { &digits };
        digits.clear();
        out.push(one);
    }
    out
}

struct Dialogue {
    name: &'static str,
    service: &'static str,
    pieces: Vec<Vec<u8>>,
    hang_up: bool,
}

fn dialogues() -> Vec<Dialogue> {
    let login = format!("a LOGIN alice {RIGHT}\r\n");
    let plain = base64(format!("\0alice\0{RIGHT}").as_bytes());
    let whole = |name, service, text: String| Dialogue {
        name,
        service,
        pieces: vec![text.into_bytes()],
        hang_up: false,
    };
    let cut = |name, service, text: &str| {
        let pieces = text.as_bytes().chunks(1).map(<[u8]>::to_vec).collect();
        Dialogue { name, service, pieces, hang_up: false }
    };
    let message = "Subject: x\r\n\r\nbody\r\n";
    let append = format!("b APPEND INBOX {{{}+}}\r\n{message}\r\n", message.len());
    let half = append.len() / 2;
    let large = format!("Subject: large\r\n\r\n{}", format!("{}\r\n", "0123456789".repeat(7)).repeat(6000));
    let pop_login = format!("USER alice\r\nPASS {RIGHT}\r\n");
    let many: String = (0..4000).map(|n| format!("n{n} NOOP\r\n")).collect();
    vec![
        whole(
            "all in one piece",
            "imaps",
            format!("{login}{append}c SELECT INBOX\r\nd FETCH 1 (FLAGS BODY.PEEK[])\r\ne LOGOUT\r\n"),
        ),
        cut("byte by byte", "imaps", &format!("{login}c EXAMINE INBOX\r\ne LOGOUT\r\n")),
        Dialogue {
            name: "a literal on both sides",
            service: "imaps",
            pieces: vec![
                format!("{login}{}", &append[..half]).into(),
                append[half..].into(),
                b"c STATUS INBOX (MESSAGES)\r\ne LOGOUT\r\n".to_vec(),
            ],
            hang_up: false,
        },
        whole(
            "login with literals",
            "imaps",
            format!("a LOGIN {{5+}}\r\nalice {{{}+}}\r\n{RIGHT}\r\nc NOOP\r\ne LOGOUT\r\n", RIGHT.len()),
        ),
        whole(
            "initial response",
            "imaps",
            format!("a AUTHENTICATE PLAIN {plain}\r\nc CAPABILITY\r\nd NAMESPACE\r\ne LOGOUT\r\n"),
        ),
        whole(
            "response ahead",
            "imaps",
            format!("a AUTHENTICATE PLAIN\r\n{plain}\r\nc CAPABILITY\r\ne LOGOUT\r\n"),
        ),
        whole(
            "wrong, then right",
            "imaps",
            format!("x LOGIN alice wrong\r\ny AUTHENTICATE NONE\r\n{login}c LIST \"\" *\r\ne LOGOUT\r\n"),
        ),
        whole(
            "what belongs before a login",
            "imaps",
            format!(
                "x SELECT INBOX\r\n{login}c LOGIN alice x\r\nd AUTHENTICATE PLAIN\r\nf STARTTLS\r\ng ID NIL\r\nh ENABLE CONDSTORE\r\ne LOGOUT\r\n"
            ),
        ),
        whole(
            "garbage",
            "imaps",
            format!(
                "{login}\r\n\u{1}\u{fffd} x\r\nc\r\nd FETCH\r\nf NONSENSE {{3+}}\r\nabc\r\ng UID\r\ne LOGOUT\r\n"
            ),
        ),
        whole("a NUL", "imaps", format!("{login}c SELECT \0INBOX\r\ne LOGOUT\r\n")),
        whole("a line without end", "imaps", format!("{login}c {}\r\ne LOGOUT\r\n", "x".repeat(100_000))),
        whole("a large pipeline", "imaps", format!("{login}c SELECT INBOX\r\n{many}e LOGOUT\r\n")),
        whole(
            "large both ways",
            "imaps",
            format!(
                "{login}b APPEND INBOX {{{}+}}\r\n{large}\r\nc SELECT INBOX\r\n{}e LOGOUT\r\n",
                large.len(),
                "d FETCH 1:* BODY.PEEK[TEXT]\r\n".repeat(20)
            ),
        ),
        whole(
            "idle and done in one piece",
            "imaps",
            format!("{login}c SELECT INBOX\r\nd IDLE\r\nDONE\r\nf IDLE\r\nnot done\r\ne LOGOUT\r\n"),
        ),
        Dialogue {
            name: "hung up behind a command",
            service: "imaps",
            pieces: vec![format!("{login}c NOOP\r\n").into()],
            hang_up: true,
        },
        Dialogue {
            name: "hung up in a command",
            service: "imaps",
            pieces: vec![format!("{login}c NOO").into()],
            hang_up: true,
        },
        Dialogue {
            name: "hung up in a literal",
            service: "imaps",
            pieces: vec![format!("{login}c APPEND INBOX {{100+}}\r\nabc").into()],
            hang_up: true,
        },
        whole(
            "pop3 in one piece",
            "pop3s",
            format!(
                "CAPA\r\n{pop_login}CAPA\r\nSTAT\r\nLIST\r\nTOP 1 0\r\nDELE 1\r\nRSET\r\nLIST 99\r\nQUIT\r\n"
            ),
        ),
        cut("pop3 byte by byte", "pop3s", &format!("{pop_login}STAT\r\nRETR 1\r\nQUIT\r\n")),
        whole("pop3 initial response", "pop3s", format!("AUTH PLAIN {plain}\r\nSTAT\r\nQUIT\r\n")),
        whole(
            "pop3 wrong, then right",
            "pop3s",
            format!(
                "USER alice\r\nPASS no\r\n{pop_login}USER alice\r\nSTLS\r\nAUTH\r\nNONSENSE\r\nRETR\r\nRETR 0\r\nDELE 1\r\nDELE 1\r\nQUIT\r\n"
            ),
        ),
        whole("pop3 large", "pop3s", format!("{pop_login}{}QUIT\r\n", "RETR 2\r\nRETR 1\r\n".repeat(10))),
        Dialogue {
            name: "pop3 hung up",
            service: "pop3s",
            pieces: vec![format!("{pop_login}STAT\r\nDELE 1\r\n").into()],
            hang_up: true,
        },
    ]
}

#[test]
fn who_hosts_a_session_makes_no_difference_to_the_client() {
    let people = || vec![Person::plain("alice")];
    let Some(mut theirs) = machine(SYSTEM, people()) else { return };
    let Some(mut ours) = machine(ANYBODY, people()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut differences = Vec::new();
    for Dialogue { name, service, pieces, hang_up } in dialogues() {
        let (one, other) = runtime.block_on(async {
            tokio::join!(
                transcript(&ours, service, &pieces, hang_up),
                transcript(&theirs, service, &pieces, hang_up)
            )
        });
        let (one, other) = (comparable(&one), comparable(&other));
        assert!(
            !one.contains("<silence>") && !other.contains("<silence>"),
            "{name}:\n{one:.2000}\n---\n{other:.2000}"
        );
        if one != other {
            let differs = one.lines().zip(other.lines()).find(|(a, b)| a != b);
            let lengths = (one.lines().count(), other.lines().count());
            differences.push(format!("{name}: {differs:?} {lengths:?}"));
        }
    }
    assert!(differences.is_empty(), "{}\n{}", differences.join("\n"), theirs.log());
    for machine in [&mut ours, &mut theirs] {
        assert!(!machine.log().contains("panicked"), "{}", machine.log());
        machine.stop();
    }
}

#[test]
fn a_user_who_stops_the_own_process_holds_up_nobody_else() {
    if !have(&["swaks"]) {
        return;
    }
    let people = ["alice", "bob"].map(Person::plain).to_vec();
    let Some(mut machine) = machine(SYSTEM, people) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let login = |user: &str| format!("a LOGIN {user} {RIGHT}\r\nc SELECT INBOX\r\n");
    let ask = |user: &str, rest: &str| {
        let pieces = [format!("{}{rest}", login(user)).into_bytes()];
        String::from_utf8_lossy(&runtime.block_on(transcript(&machine, "imaps", &pieces, true))).into_owned()
    };
    assert!(ask("alice", "").contains("a OK "), "{}", machine.log());
    let stopped = machine.processes("mailbox");
    let [pid] = stopped[..] else { panic!("one process: {stopped:?}") };
    signal(pid, Signal::SIGSTOP);
    // More than its channel takes at once; nobody waits for ever, and nothing comes in twice.
    let address = machine.address(25);
    let send = move |to: &'static str| {
        std::thread::spawn(move || {
            let text =
                format!("EHLO c.test\r\nMAIL FROM:<x@y.test>\r\nRCPT TO:<{to}@{HOSTNAME}>\r\nDATA\r\n");
            smtp(address, &text)
        })
    };
    let waiting: Vec<_> = (0..40).map(|_| send("alice")).collect();
    let began = Instant::now();
    assert_eq!(send("bob").join().expect("sent"), 250, "{}", machine.log());
    assert!(
        waiting.iter().any(|one| !one.is_finished()),
        "bob's mail waited for alice's: {:?}",
        began.elapsed()
    );
    for one in waiting {
        let code = one.join().expect("sent");
        assert!(code == 250 || code == 451, "{code}");
    }
    wait_for("another process", || machine.processes("mailbox").iter().all(|one| *one != pid).then_some(()));
    assert!(machine.log().contains("killing a mailbox process"), "{}", machine.log());
    assert!(ask("alice", "").contains("a OK "), "{}", machine.log());
    // Stopped at the end, it ends all the same.
    for pid in machine.processes("mailbox") {
        signal(pid, Signal::SIGSTOP);
    }
    let left = machine.processes("mailbox");
    machine.stop();
    wait_for("the end", || left.iter().all(|pid| !crate::support::alive(*pid)).then_some(()));
}

/// Every file that a mailbox may have beside its messages, as something that nobody ever writes to or reads from.
#[test]
fn fifos_in_the_own_mailbox_make_nobody_wait() {
    let Some(mut machine) = machine(SYSTEM, vec![Person::plain("alice")]) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let maildir = machine.maildir("alice");
    for name in [
        "maildirsize",
        "dovecot-keywords",
        "dovecot-uidvalidity",
        "subscriptions",
        "maildirfolder",
        "dovecot-uidlist",
        "new/1700000000.M1P1.x",
        "cur/1700000001.M1P1.x:2,S",
        "tmp/1700000002.M1P1.x",
        "new",
    ] {
        if maildir.exists() {
            fs::remove_dir_all(&maildir).expect("removed");
        }
        for folder in ["", "cur", "new", "tmp"] {
            let folder = maildir.join(folder);
            if folder.ends_with(name) {
                continue;
            }
            fs::create_dir_all(&folder).expect("folder");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("mode");
            chown(&folder, Some(FIRST_UID), Some(FIRST_UID)).expect("owner");
        }
        let fifo = maildir.join(name);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        chown(&fifo, Some(FIRST_UID), Some(FIRST_UID)).expect("owner");
        let began = Instant::now();
        let text = format!("EHLO c.test\r\nMAIL FROM:<x@y.test>\r\nRCPT TO:<alice@{HOSTNAME}>\r\nDATA\r\n");
        let code = smtp(machine.address(25), &text);
        assert!([250, 451, 452].contains(&code), "{name}: {code}");
        let message = "Subject: x\r\n\r\nx\r\n";
        let text = format!(
            "a LOGIN alice {RIGHT}\r\nb SELECT INBOX\r\nc APPEND INBOX ($New) {{{}+}}\r\n{message}\r\nd NOOP\r\n\
             e STORE 1 +FLAGS ($Word)\r\nf SUBSCRIBE INBOX\r\ng CREATE Other\r\nh FETCH 1:* (FLAGS BODY.PEEK[])\r\n\
             i LSUB \"\" *\r\nj EXPUNGE\r\nk LOGOUT\r\n",
            message.len()
        );
        let said = runtime.block_on(transcript(&machine, "imaps", &[text.into_bytes()], true));
        let text = format!("USER alice\r\nPASS {RIGHT}\r\nLIST\r\nUIDL\r\nRETR 1\r\nQUIT\r\n");
        let also = runtime.block_on(transcript(&machine, "pop3s", &[text.into_bytes()], true));
        for said in [said, also] {
            let said = String::from_utf8_lossy(&said);
            assert!(!said.contains("<silence>"), "{name}: {said}\n{}", machine.log());
        }
        assert!(began.elapsed() < PATIENCE, "{name}: {:?}\n{}", began.elapsed(), machine.log());
    }
    assert!(!machine.log().contains("panicked"), "{}", machine.log());
    machine.stop();
}

/// Sends a message; the reply to its end.
fn smtp(address: std::net::SocketAddr, before: &str) -> u16 {
    use std::io::{BufRead, BufReader, Write};
    let stream = std::net::TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(150))).expect("timeout");
    let mut reader = BufReader::new(stream.try_clone().expect("socket"));
    let mut stream = stream;
    let mut reply = move || {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line in time");
            assert!(line.len() > 4, "closed");
            if line.as_bytes()[3] == b' ' {
                return line[..3].parse::<u16>().expect("a code");
            }
        }
    };
    assert_eq!(reply(), 220);
    for line in before.split_inclusive("\r\n") {
        stream.write_all(line.as_bytes()).expect("sent");
        let code = reply();
        if !(200..400).contains(&code) {
            return code;
        }
    }
    stream.write_all(b"Subject: x\r\n\r\nx\r\n.\r\n").expect("sent");
    reply()
}
