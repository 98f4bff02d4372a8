//! Accounts of the machine against the daemons' unix sockets: garbage, fast and slow, at every one of them, from
//! strangers and from the account of a daemon that was taken over.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::hostile::{Client, Held, base64, bounded, memory};
use crate::machine::{Machine, Person, QUICK, RIGHT, SOCKETS, Setup, UNIX, id_of};
use crate::support::{descendants, have, run, show, skip};

/// Python that throws what `KINDS` rounds hold at the sockets in its arguments, keeps some connections open and drips
/// on them, and tells how many connections each socket took. It goes on dripping until its input ends.
const GARBAGE: &str = r#"
import os, random, select, socket, sys, threading
random.seed(11)
record = lambda body: len(body).to_bytes(4, "little") + body
frame = lambda body: b"\0\1\0\0" + len(body).to_bytes(4, "big") + body
kinds = [
    random.randbytes(100000), b"A" * 200000, b"\n" * 50000, b"\0" * 100000, b"\xff" * 100000,
    b"VERSION\t9\t9\n", b"VERSION\t1\t2\nCPID\t1\nUSER\t1\t../../x\nPASS\t1\tx\nLIST\t1\nREQUEST\t1\t1\t1\t" + b"0" * 32 + b"\n",
    b"\0\4bob\0" * 5000, record(b"\1\1\2\0\0\0\0\0\0"), record(b"\1\3\0\0\0\0"), frame(b'{"status":{}}'), frame(b'"stop"'),
    frame(b'{"start":{}}'), (b"\x7f\xff\xff\xff" * 1000), b"{" * 100000, b"",
]
taken, held = {}, []
for name in sys.argv[1:]:
    taken[name] = 0
    for round in range(48):
        s = socket.socket(socket.AF_UNIX); s.settimeout(2)
        try: s.connect(name)
        except OSError: continue
        taken[name] += 1
        try: s.sendall(kinds[round % len(kinds)])
        except OSError: pass
        if round % 4 == 0: held.append(s)
        elif round % 4 == 1: s.shutdown(socket.SHUT_WR); held.append(s)
        else: s.close()
        # Descriptors nobody asked for.
        if round % 16 == 3:
            s = socket.socket(socket.AF_UNIX); s.settimeout(2)
            try:
                s.connect(name)
                socket.send_fds(s, [b"\0\1\0\2\0\0\0\2{}"], [0, 1])
            except OSError: pass
            s.close()
print(";".join("%s=%d" % item for item in sorted(taken.items())), flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for s in held:
        try: s.send(b"V")
        except OSError: pass
"#;

/// An account that goes on throwing until it is dropped.
struct Thrower {
    /// Ends with it.
    _program: Held,
    /// Connections taken, by socket.
    taken: BTreeMap<PathBuf, u32>,
}

impl Thrower {
    fn start(id: u32, groups: &str, sockets: &[PathBuf]) -> Thrower {
        let mut command = Command::new("setpriv");
        let id = id.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--groups", groups, "/usr/bin/python3", "-c", GARBAGE]);
        command.args(sockets).current_dir("/");
        let program = Held::start(command);
        let taken = program.said.split(';').filter_map(|item| item.rsplit_once('='));
        let taken = taken.map(|(name, count)| (name.into(), count.parse().expect("a number"))).collect();
        Thrower { _program: program, taken }
    }

    /// Names of the sockets that took connections.
    fn reached(&self) -> Vec<String> {
        let reached = self.taken.iter().filter(|(_, count)| **count > 0);
        reached.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }
}

/// Every socket below a folder.
fn sockets(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_socket() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Everybody else is served on every door.
async fn serves(machine: &Machine) {
    let plain = base64(format!("\0bob\0{RIGHT}"));
    let mut client = Client::auth(machine.socket("client")).await;
    client.send(format!("AUTH\t1\tPLAIN\tservice=smtp\tresp={plain}\n")).await;
    client.expect("OK\t1\t").await;
    let mut smtp = Client::tls_at(machine.address(465), machine.ca()).await;
    smtp.expect("220").await;
    smtp.ask("EHLO client.test").await;
    let answer = smtp.ask(&format!("AUTH PLAIN {plain}")).await;
    assert!(answer.starts_with("235"), "{answer}\n{}", machine.log());
    let mut imap = Client::tls_at(machine.address(993), machine.ca()).await;
    imap.expect("* OK").await;
    imap.send(format!("a LOGIN bob {RIGHT}\r\nb SELECT INBOX\r\n")).await;
    let lines = imap.until("b ").await;
    assert!(lines.last().is_some_and(|line| line.starts_with("b OK")), "{lines:?}\n{}", machine.log());
    let mut pop3 = Client::tls_at(machine.address(995), machine.ca()).await;
    pop3.expect("+OK").await;
    pop3.send(format!("USER bob\r\nPASS {RIGHT}\r\nSTAT\r\n")).await;
    for _ in 0..3 {
        pop3.expect("+OK").await;
    }
}

/// The machine of the sample: system users with mailboxes of their own.
fn machine(settings: &str) -> Option<Machine> {
    Machine::start(&Setup {
        people: ["bob", "carol"].map(Person::plain).to_vec(),
        services: vec![("postern", UNIX.to_owned())],
        settings: format!(
            "{settings}[[auth.passdb]]\ndriver = \"shadow\"\n[[auth.userdb]]\ndriver = \"passwd\"\n\
             [mail]\nmailboxes = \"system\"\nfirst_valid_uid = 1000\n\
             [metrics]\nlisten = \"SCRATCH/run/metrics\"\nmode = \"0666\"\n"
        ),
        fronts: true,
    })
}

fn can_become_others() -> bool {
    if !Path::new("/usr/bin/python3").is_file() {
        skip("no /usr/bin/python3");
        return false;
    }
    have(&["setpriv"])
}

#[test]
fn garbage_from_every_account_at_every_socket_stops_nobody() {
    if !can_become_others() {
        return;
    }
    let Some(machine) = machine(&format!("{QUICK}{SOCKETS}")) else { return };
    let mut all = sockets(&machine.path("state"));
    all.extend(sockets(&machine.path("run")));
    for wanted in ["auth-workers", "broker", "control", "fronts-login", "client", "mux", "userdb", "metrics"]
    {
        assert!(all.iter().any(|path| path.ends_with(wanted)), "{wanted}: {all:?}");
    }
    bounded(serves(&machine));
    let roles = ["auth", "auth-workers", "smtp", "imap", "broker", "metrics"];
    let before: Vec<_> = roles.map(|role| machine.processes(role)).to_vec();
    assert!(before.iter().all(|pids| pids.len() == 1), "{before:?}");
    let group = fs::read_to_string(machine.path("etc/group")).expect("groups");
    let postern = group.lines().find_map(|line| line.strip_prefix("postern:x:")).expect("the group");
    let postern = postern.split(':').next().expect("a gid");

    let own = |path: &&PathBuf| path.starts_with(machine.path("run"));
    let public: Vec<String> =
        all.iter().filter(own).filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
    let mut throwers = Vec::new();
    for (account, groups) in [
        ("test-stranger", "65534"),
        ("postern-authw", "42"),
        ("postern-smtp", postern),
        ("postern-imap", postern),
    ] {
        let thrower = Thrower::start(id_of(account), groups, &all);
        let reached = thrower.reached();
        // What is for everybody can be reached by everybody; what is between the daemons only by whom it is for.
        assert!(public.iter().all(|name| reached.contains(name)), "{account}: {reached:?}");
        for closed in ["control", "auth-workers"] {
            assert!(!reached.iter().any(|name| name == closed), "{account} reached {closed}");
        }
        let inner = reached.iter().any(|name| name.starts_with("fronts-"));
        assert_eq!(inner, groups == postern, "{account}: {reached:?}");
        bounded(serves(&machine));
        throwers.push(thrower);
    }
    // All of them at once, still dripping.
    bounded(serves(&machine));
    let after: Vec<_> = roles.map(|role| machine.processes(role)).to_vec();
    assert_eq!(before, after, "a daemon was replaced:\n{}", machine.log());
    for pid in after.concat() {
        assert!(memory(pid) < 150 * 1024, "{pid} holds {} KiB", memory(pid));
    }
    drop(throwers);
    bounded(serves(&machine));
    assert!(descendants(machine.pid()).len() < 40);
}

/// Guesses the passwords in its arguments on a socket, one after another and on connections of their own, and prints
/// the milliseconds until each refusal.
const GUESS: &str = r#"
import base64, socket, sys, time
kind, path, user, *passwords = sys.argv[1:]
for password in passwords:
    s = socket.socket(socket.AF_UNIX); s.settimeout(15)
    s.connect(path)
    began = time.monotonic()
    if kind == "mux":
        fields = [user, password, "smtp", ""]
        s.sendall(b"".join(len(f).to_bytes(2, "big") + f.encode() for f in fields))
        answer = s.recv(200)[2:]
    else:
        f = s.makefile("rb")
        while f.readline() != b"DONE\n": pass
        began = time.monotonic()
        resp = base64.b64encode(("\0%s\0%s" % (user, password)).encode()).decode()
        # Whatever address the client makes up.
        s.sendall(("VERSION\t1\t2\nCPID\t1\nAUTH\t1\tPLAIN\tservice=smtp\tno-penalty\trip=203.0.113.%d\tresp=%s\n" % (len(password), resp)).encode())
        answer = f.readline()
    print(int((time.monotonic() - began) * 1000), answer.decode().split("\t")[0].split(" ")[0], flush=True)
"#;

#[test]
fn no_socket_tells_a_local_user_quickly_that_a_password_is_wrong() {
    if !can_become_others() {
        return;
    }
    // With the delays of the defaults.
    let Some(machine) = machine(SOCKETS) else { return };
    let guess = |kind: &str, socket: &str, user: &str| {
        let id = id_of("test-stranger").to_string();
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            &id,
            "--regid",
            &id,
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            GUESS,
            kind,
        ]);
        command.arg(machine.socket(socket)).args([user, "one", "two!"]).current_dir("/");
        let out = run(command, "");
        assert!(out.status.success(), "{}", show(&out));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let times: Vec<(u64, String)> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(time, word)| (time.parse().expect("a number"), word.to_owned()))
            .collect();
        assert_eq!(times.len(), 2, "{text}");
        times
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut all = Vec::new();
        for (kind, socket) in [("client", "client"), ("mux", "mux")] {
            for user in ["bob", "nobody-here", "root"] {
                all.push(scope.spawn(move || (kind, user, guess(kind, socket, user))));
            }
        }
        for one in all {
            let (kind, user, times) = one.join().expect("guesses");
            for (time, word) in &times {
                assert_eq!(word, if kind == "mux" { "NO" } else { "FAIL" }, "{kind} {user}");
                assert!(*time >= 1_900, "{kind} {user}: refused after {time} ms: {times:?}");
            }
        }
    });
    assert!(began.elapsed() < Duration::from_secs(30));
    // The owner is not made to wait for that.
    let began = Instant::now();
    assert!(machine.plain("bob", RIGHT, "smtp").starts_with("OK\t1\t"), "{}", machine.log());
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    // The look-ups answer no stranger at all.
    let mode = fs::metadata(machine.socket("userdb")).expect("socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o666, "the mode lets strangers in, the list does not");
}
