//! The authentication daemon: noise, garbage from other accounts, cache keys, starvation, cost bombs, limits, leaks.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::hostile::{
    Client, Held, Noise, STRANGER, assert_same_processes, auth_line, base64, bounded, descriptors, log_in,
    memory, processes, serves, start, write_users,
};
use crate::support::{
    HOSTNAME, PASSWORD, Stack, USER, have, is_root, mux_request, run, show, skip, wait_for,
};

#[test]
fn noise_with_interleaved_ids_harms_nobody() {
    let stack = start();
    let before = processes(&stack);
    bounded(async {
        let mut noise = Noise::new(4_711);
        let mut sent = 0;
        let mut connections = 0;
        while sent < 10_000 {
            connections += 1;
            let mut client = Client::auth(stack.socket("auth-client")).await;
            // The server may close at any time; then the rest goes to a new connection.
            for _ in 0..500 {
                sent += 1;
                let line = noise_line(&mut noise);
                if client.try_send(&line).await.is_err() {
                    break;
                }
            }
            let said = client.arrives(Duration::from_millis(5)).await;
            for line in said.lines() {
                let known = ["FAIL\t", "CONT\t", "OK\t"].iter().any(|start| line.starts_with(start));
                assert!(known || !said.ends_with(line) || !said.contains('\n'), "{line:?}");
                assert!(!line.starts_with("OK\t"), "noise was let in: {line:?}");
            }
        }
        assert!(connections < 5_000, "no connection took more than a few lines");
        serves(&stack).await;
        // One connection that stays open in spite of noise in other ids: its right login is answered.
        let mut client = Client::auth(stack.socket("auth-client")).await;
        client.send("AUTH\t1\tLOGIN\tservice=smtp\n").await;
        client.expect("CONT\t1\t").await;
        for id in 2..400 {
            client
                .send(format!(
                    "AUTH\t{id}\tLOGIN\tservice=smtp\nCONT\t{id}\t!!!\nCANCEL\t{id}\nCONT\t{id}\tAAAA\n"
                ))
                .await;
        }
        client.send(format!("CONT\t1\t{}\n", base64(USER))).await;
        let lines = client.until("CONT\t1\t").await;
        assert!(!lines.iter().any(|line| line.starts_with("OK")));
        client.send(format!("CONT\t1\t{}\n", base64(PASSWORD))).await;
        client.until("OK\t1\t").await;
    });
    assert_same_processes(&stack, &before);
}

fn noise_line(noise: &mut Noise) -> Vec<u8> {
    let mechanisms = ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "ANONYMOUS", "", "X\u{1}"];
    let id = noise.below(12);
    let response = base64(noise.bytes(usize::try_from(id * 5).unwrap_or(0)));
    let mut line = match noise.below(12) {
        0..=3 => {
            format!("AUTH\t{id}\t{}\tservice=smtp\tresp={response}", noise.pick(&mechanisms)).into_bytes()
        }
        4 => format!("AUTH\t{id}\t{}\tservice=smtp", noise.pick(&mechanisms)).into_bytes(),
        5..=7 => format!("CONT\t{id}\t{response}").into_bytes(),
        8 => format!("CANCEL\t{id}").into_bytes(),
        9 => format!("AUTH\t{}\tPLAIN\tresp=\tservice=smtp", noise.next()).into_bytes(),
        10 => [b"AUTH\t3\t", noise.bytes(40).as_slice()].concat(),
        _ => noise.bytes(30),
    };
    line.retain(|byte| *byte != b'\n');
    line.push(b'\n');
    line
}

#[test]
fn cached_verdicts_belong_to_one_user_one_password_and_one_address() {
    let stack = start();
    let hash = |password: &str| {
        let out = stack.admin(&["hash", "--scheme", "SHA512-CRYPT"], password);
        assert!(out.status.success(), "{}", show(&out));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let same = hash("same");
    let users = |carol: &str| {
        format!(
            "alice:{}::::::\ncarol:{carol}::::::marker=carols\ndave:{same}::::::marker=daves\nerin:{same}::::::allow_nets=192.0.2.0/24\nfrank:{same}::::::nologin reason=closed\n",
            hash(PASSWORD)
        )
    };
    write_users(&stack, users(&same));
    bounded(async {
        let socket = stack.socket("auth-client");
        // Two users with one stored string: each gets his own name and fields, however often.
        for _ in 0..3 {
            for (user, field, foreign) in
                [("carol", "marker=carols", "marker=daves"), ("dave", "marker=daves", "marker=carols")]
            {
                for service in ["smtp", "imap"] {
                    let mut client = Client::auth(&socket).await;
                    let response = base64(format!("\0{user}\0same"));
                    client.send(format!("AUTH\t1\tPLAIN\tservice={service}\tresp={response}\n")).await;
                    let line = client.line().await.expect("an answer");
                    assert!(line.starts_with(&format!("OK\t1\tuser={user}@{HOSTNAME}")), "{line}");
                    assert!(!line.contains(foreign), "{line} ({field})");
                }
            }
        }
        // A right password from a wrong network is refused, also after it was right from the right one.
        for (rip, want) in [("192.0.2.7", "OK"), ("198.51.100.7", "FAIL"), ("192.0.2.8", "OK"), ("", "FAIL")]
        {
            let extra = if rip.is_empty() { String::new() } else { format!("rip={rip}\t") };
            let line = log_in(&socket, "erin", "same", &extra).await;
            assert!(line.starts_with(want), "{rip}: {line}");
        }
        // Closed accounts stay closed although the cache knows the password of their twins.
        assert!(log_in(&socket, "frank", "same", "").await.starts_with("FAIL"));
        // A changed password counts at once, for both the old and the new one, on the mux and by IMAP too.
        write_users(&stack, users(&hash("changed")));
        assert!(log_in(&socket, "carol", "changed", "").await.starts_with("OK"));
        assert!(log_in(&socket, "carol", "same", "").await.starts_with("FAIL"));
        assert!(log_in(&socket, "dave", "same", "").await.starts_with("OK"));
        let out = stack.admin(&["user", "passwd", "dave", "--password-stdin"], "newer\n");
        assert!(out.status.success(), "{}", show(&out));
        assert!(log_in(&socket, "dave", "newer", "").await.starts_with("OK"));
        assert!(log_in(&socket, "dave", "same", "").await.starts_with("FAIL"));
        // A user who was removed is gone at once.
        let out = stack.admin(&["user", "remove", "dave"], "");
        assert!(out.status.success(), "{}", show(&out));
        assert!(log_in(&socket, "dave", "newer", "").await.starts_with("FAIL"));
    });
}

#[test]
fn cost_bombs_in_the_user_file_are_refused_before_computing() {
    let stack = start();
    let salt = "c2FsdHNhbHRzYWx0c2FsdA";
    let key = "XiaoY6/ijadf+5V2vpOGIzuNjKQsxTNKXI4zHucXwX4";
    let out = stack.admin(&["hash", "--scheme", "ARGON2ID"], PASSWORD);
    let good = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let bombs = [
        format!("{{ARGON2ID}}$argon2id$v=19$m=1048576,t=3,p=1${salt}${key}"),
        format!("{{ARGON2ID}}$argon2id$v=19$m=4294967295,t=3,p=1${salt}${key}"),
        format!("{{ARGON2ID}}$argon2id$v=19$m=65536,t=4294967295,p=1${salt}${key}"),
        format!("{{ARGON2ID}}$argon2id$v=19$m=65536,t=100000,p=4${salt}${key}"),
        format!("{{ARGON2I}}$argon2i$v=19$m=2097152,t=1,p=16777215${salt}${key}"),
        "{SHA512-CRYPT}$6$rounds=999999999$saltsalt$yfJ5kMRpZBPh7aAWcCcAVj9Kl4bX6w4nVOg1wtAJ0dpKfFpZBPh7aAWcCcAVj9Kl4bX6w4nVOg1wtAJ0dpKfF.".into(),
        "{BLF-CRYPT}$2y$31$abcdefghijklmnopqrstuuKqHPYnC7BzVfRZ1Y0uoIxJbqEJ1R5Xu".into(),
        "{PBKDF2}$1$saltsalt$4294967295$0123456789abcdef0123456789abcdef01234567".into(),
        "{SCRAM-SHA-256}4294967295,c2FsdHNhbHQ=,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into(),
        "{CRYPT}$y$jFT$saltsaltsaltsalt$k4sFNDnGnWcSjIyrNaEMkYQ1Ddbs9O8wGVFWdmRrL1A".into(),
        format!("{{CRYPT}}$7$zzzzzzzzzz{salt}${key}"),
    ];
    let mut users = format!("alice:{good}::::::\n");
    for (number, bomb) in bombs.iter().enumerate() {
        users.push_str(&format!("bomb{number}:{bomb}::::::\n"));
    }
    write_users(&stack, &users);
    let before = processes(&stack);
    let auth = before["auth"];
    bounded(async {
        // Warm: one right login shows what one good hash costs.
        assert!(log_in(stack.socket("auth-client"), USER, PASSWORD, "").await.starts_with("OK"));
        let resident = memory(auth);
        let started = Instant::now();
        let mut client = Client::auth(stack.socket("auth-client")).await;
        for number in 0..bombs.len() {
            client
                .send(auth_line(u32::try_from(number).expect("few") + 1, &format!("bomb{number}"), "x", ""))
                .await;
        }
        let mut peak = 0;
        let mut open: HashSet<String> = (1..=bombs.len()).map(|id| id.to_string()).collect();
        while !open.is_empty() {
            let line = client.line().await.expect("an answer to each");
            peak = peak.max(memory(auth));
            let mut fields = line.split('\t');
            assert_eq!(fields.next(), Some("FAIL"), "{line}");
            open.remove(fields.next().expect("an id"));
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(peak < resident + 200 * 1024, "{resident} KiB before, {peak} KiB while refusing");
        assert!(log_in(stack.socket("auth-client"), USER, PASSWORD, "").await.starts_with("OK"));
    });
    assert_same_processes(&stack, &before);
}

/// Hundredths of a second that a process has computed.
fn cpu_ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields = text.rsplit(')').next().expect("fields behind the name").split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn guessing_from_one_address_starves_nobody() {
    let stack = start();
    stack.add_user("bob", "bobs secret");
    stack.add_user("carol", "carols secret");
    bounded(async {
        let socket = stack.socket("auth-client");
        // Bob has logged in from the guesser's address before. Alice, whose password is guessed, and carol have not from
        // anywhere: their hashes must be computed now.
        assert!(log_in(&socket, "bob", "bobs secret", "rip=192.0.2.66\t").await.starts_with("OK"));
        let mut guesser = Client::auth(&socket).await;
        let auth = processes(&stack)["auth"];
        let idle = cpu_ticks(auth);
        for id in 0..200 {
            guesser.send(auth_line(id + 1, USER, &format!("guess{id}"), "rip=192.0.2.66\t")).await;
        }
        // The hashes of theirs are being computed.
        wait_for("the daemon to compute", || (cpu_ticks(auth) > idle + 2).then_some(()));
        for (user, password, rip) in [
            ("bob", "bobs secret", "192.0.2.66"),
            (USER, PASSWORD, "198.51.100.1"),
            ("carol", "carols secret", "192.0.2.66"),
        ] {
            let started = Instant::now();
            let line = log_in(&socket, user, password, &format!("rip={rip}\t")).await;
            let took = started.elapsed();
            assert!(line.starts_with("OK"), "{user} from {rip}: {line}");
            // The guesses take far longer than that on two cores; the bound only tells waiting from not waiting.
            assert!(took < Duration::from_secs(4), "{user} from {rip} waited {took:?}");
        }
        // The guesses are refused, late, and none of them is let in.
        let started = Instant::now();
        let line = guesser.line().await.expect("an answer");
        assert!(line.starts_with("FAIL") && started.elapsed() < Duration::from_secs(15), "{line}");
    });
}

#[test]
fn refusals_are_slow_and_right_passwords_are_not() {
    let stack = start();
    bounded(async {
        let socket = stack.socket("auth-client");
        assert!(log_in(&socket, USER, PASSWORD, "rip=192.0.2.9\t").await.starts_with("OK"));
        // Wrong password and unknown user look alike, in words and in time.
        let mut times = Vec::new();
        for user in [USER, "nobody-here"] {
            let started = Instant::now();
            let line = log_in(&socket, user, "wrong", "rip=192.0.2.10\t").await;
            times.push(started.elapsed());
            let words: Vec<&str> = line.split('\t').filter(|field| !field.starts_with("user=")).collect();
            assert_eq!(words, ["FAIL", "1", words.get(2).copied().unwrap_or_default()], "{line}");
        }
        for time in &times {
            assert!(*time >= Duration::from_millis(1_900) && *time < Duration::from_secs(6), "{times:?}");
        }
        let started = Instant::now();
        assert!(log_in(&socket, USER, PASSWORD, "rip=192.0.2.10\t").await.starts_with("OK"));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    });
}

#[test]
fn unknown_wrong_and_locked_look_alike_on_every_door() {
    let stack = start();
    let mut users = fs::read_to_string(stack.state().join("users")).expect("users");
    // Locked as usermod -L does it, locked with nothing, and a hash nobody can have the password of.
    users.push_str("locked:!{PLAIN}pw::::::\nstar:*::::::\nbroken:{SHA512-CRYPT}$6$::::::\n");
    write_users(&stack, &users);
    bounded(async {
        let mut said: BTreeMap<&str, HashSet<String>> = BTreeMap::new();
        let mut clients = Vec::new();
        // Side by side: each refusal waits for its time.
        for (user, password) in
            [("nobody-here", "pw"), (USER, "wrong"), ("locked", "pw"), ("star", "*"), ("broken", "")]
        {
            let plain = base64(format!("\0{user}\0{password}"));
            let mut smtp = Client::tls(&stack, 465).await;
            smtp.send(format!("EHLO x\r\nAUTH PLAIN {plain}\r\nQUIT\r\n")).await;
            let mut imap = Client::tls(&stack, 993).await;
            imap.send(format!("a LOGIN {user} \"{password}\"\r\nb LOGOUT\r\n")).await;
            let mut pop3 = Client::tls(&stack, 995).await;
            pop3.send(format!("AUTH PLAIN {plain}\r\nQUIT\r\n")).await;
            let mut mux = Client::unix(stack.socket("saslauthd/mux")).await;
            let password = if password.is_empty() { "x" } else { password };
            mux.send(mux_request([user, password, "smtp", ""])).await;
            clients.push([("smtp", smtp), ("imap", imap), ("pop3", pop3), ("mux", mux)]);
        }
        for (door, mut client) in clients.into_iter().flatten() {
            let answer =
                client.rest(Duration::from_secs(10)).await.unwrap_or_else(|| panic!("{door} is silent"));
            let answer = String::from_utf8_lossy(&answer).into_owned();
            said.entry(door)
                .or_default()
                .insert(answer.split_inclusive('\n').filter(|line| !line.starts_with("* OK")).collect());
        }
        for (door, mark) in [
            ("smtp", "535 5.7.8"),
            ("imap", "a NO [AUTHENTICATIONFAILED]"),
            ("pop3", "-ERR [AUTH]"),
            ("mux", "NO "),
        ] {
            let answers = &said[door];
            assert!(
                answers.len() == 1 && answers.iter().all(|text| text.contains(mark)),
                "{door}: {answers:#?}"
            );
        }
    });
}

/// Programs for [`as_stranger`]; a Python in somebody's home would not do.
fn can_be_stranger() -> bool {
    if !std::path::Path::new("/usr/bin/python3").is_file() {
        skip("no /usr/bin/python3");
        return false;
    }
    have(&["setpriv"])
}

/// A Python program run by an account that has nothing to do with the stack.
fn as_stranger(script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &STRANGER.to_string(), "--regid", &STRANGER.to_string(), "--clear-groups"]);
    command.args(["/usr/bin/python3", "-c", script]);
    command
}

#[test]
fn garbage_from_other_accounts_stops_no_daemon() {
    if !is_root() {
        return skip("needs root to become another account");
    }
    if !can_be_stranger() {
        return;
    }
    let stack = start();
    let before = processes(&stack);
    let sockets = stack.state().join("sockets");
    let script = format!(
        r#"
import os, socket, random, sys, time
random.seed(7)
root = {root:?}
names = [os.path.join(d, f) for d, _, fs in os.walk(root) for f in fs]
reached = {{}}
keep = []
for name in sorted(names):
    label = os.path.relpath(name, root)
    reached[label] = 0
    for round in range(40):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(3)
        try:
            s.connect(name)
        except OSError:
            continue
        reached[label] += 1
        kind = round % 8
        try:
            if kind == 0: s.sendall(random.randbytes(100000))
            elif kind == 1: s.sendall(b"A" * 200000)
            elif kind == 2: s.sendall(b"\n" * 50000)
            elif kind == 3: s.sendall(b"VERSION\t9\t9\n")
            elif kind == 4: s.sendall(b"\xff\xff" * 20000)
            elif kind == 5: s.sendall(b"VERSION\t1\t2\nCPID\t1\nUSER\t1\t../../x\nPASS\t1\tx\nLIST\t1\nREQUEST\t1\t1\t1\t" + b"0" * 32 + b"\n")
            elif kind == 6:
                # Byte by byte, each in a read of its own: the pause is what is tried.
                for byte in b"VERSION\t1\t":
                    s.sendall(bytes([byte])); time.sleep(0.001)
                keep.append(s); continue
            else: keep.append(s); continue
        except OSError:
            pass
        s.close()
print(",".join("%s=%d" % item for item in sorted(reached.items())), flush=True)
sys.stdin.read()
"#,
        root = sockets.display().to_string()
    );
    let thrower = Held::start(as_stranger(&script));
    // While the connections that hang are there.
    bounded(serves(&stack));
    let reached: BTreeMap<String, u32> = thrower
        .said
        .split(',')
        .filter_map(|item| item.split_once('='))
        .map(|(name, count)| (name.to_owned(), count.parse().expect("a number")))
        .collect();
    // Only what is meant for everybody can be reached at all.
    for (name, count) in &reached {
        let open = ["auth-client", "auth-login", "auth-userdb", "saslauthd/mux"].contains(&name.as_str());
        assert_eq!(*count > 0, open, "{reached:?}");
    }
    assert!(reached.contains_key("control") && reached.contains_key("auth-master"), "{reached:?}");
    // The look-ups are not for strangers, although the mode lets them connect.
    let script = format!(
        r#"
import socket
for name in ("auth-userdb", "auth-login"):
    s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect({root:?} + "/" + name)
    said = b""
    try:
        s.sendall(b"VERSION\t1\t2\nUSER\t1\talice\tservice=smtp\n")
        while True:
            got = s.recv(4096)
            if not got: break
            said += got
    except OSError:
        pass
    assert b"USER" not in said and b"COOKIE" not in said, said
"#,
        root = sockets.display().to_string()
    );
    let out = run(as_stranger(&script), "");
    assert!(out.status.success(), "{}", show(&out));
    bounded(serves(&stack));
    assert_same_processes(&stack, &before);
}

#[test]
fn sockets_and_secrets_have_the_narrowest_modes() {
    let stack = start();
    bounded(serves(&stack));
    let mut open = vec![stack.state()];
    let mut sockets = 0;
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            let meta = path.symlink_metadata().expect("metadata");
            let mode = meta.permissions().mode() & 0o7777;
            let name = path.strip_prefix(stack.state()).expect("below").display().to_string();
            if meta.is_dir() {
                assert_eq!(mode & 0o022, 0, "{name} {mode:o}: others may write");
                if name.starts_with("mail") {
                    assert_eq!(mode & 0o077, 0, "{name} {mode:o}");
                }
                open.push(path);
            } else if meta.file_type().is_socket() {
                sockets += 1;
                let public = [
                    "sockets/auth-client",
                    "sockets/auth-login",
                    "sockets/auth-userdb",
                    "sockets/saslauthd/mux",
                ];
                let want = if public.contains(&name.as_str()) { 0o666 } else { 0o600 };
                assert_eq!(mode, want, "{name} {mode:o}");
            } else {
                // As Dovecot makes it: empty, and its folder is closed.
                let public = ["tls/ca.pem", "tls/cert.pem", "postern.pid"].contains(&name.as_str())
                    || name.contains("/dovecot-uidvalidity.");
                assert_eq!(mode & if public { 0o022 } else { 0o077 }, 0, "{name} {mode:o}");
            }
        }
    }
    assert!(sockets >= 9, "{sockets}");
    // The daemons cannot be read by each other's account, give no core, and know no secret in their environment.
    for (role, pid) in processes(&stack) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        if is_root() {
            // /proc/PID of a process that is not dumpable belongs to root, whatever account it runs as.
            assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).expect("mem").uid(), 0, "{role} is dumpable");
            if role != "supervisor" {
                let uids = status.lines().find(|line| line.starts_with("Uid:")).expect("Uid");
                assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{role} {uids}");
                let caps = status.lines().find(|line| line.starts_with("CapEff:")).expect("CapEff");
                assert!(caps.trim_end().ends_with("0000000000000000"), "{role} {caps}");
            }
            let environment = fs::read(format!("/proc/{pid}/environ")).expect("environ");
            let line = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
            for text in [environment, line] {
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(!text.contains(PASSWORD) && !text.contains("PRIVATE KEY"), "{role}: {text}");
            }
        }
        let no_new = status.lines().find(|line| line.starts_with("NoNewPrivs:")).expect("NoNewPrivs");
        if role != "supervisor" && role != "auth" {
            assert!(no_new.ends_with('1'), "{role} {no_new}");
        }
    }
}

#[test]
fn aborted_exchanges_leak_nothing() {
    if !is_root() {
        return skip("needs root to count the daemons' descriptors");
    }
    let stack = start();
    let before = processes(&stack);
    bounded(async {
        serves(&stack).await;
        let count = |roles: &BTreeMap<String, u32>| -> BTreeMap<String, usize> {
            roles.iter().map(|(role, pid)| (role.clone(), descriptors(*pid))).collect()
        };
        // Once around, so that pools and caches have what they keep.
        abort(&stack, 40).await;
        // The same at six looks in a row.
        let settled = |limit: Option<&BTreeMap<String, usize>>| {
            let (mut last, mut same) = (BTreeMap::new(), 0);
            wait_for("descriptors to settle", || {
                let now = count(&before);
                same = if now == last { same + 1 } else { 0 };
                last = now;
                let low = limit.is_none_or(|limit| last.iter().all(|(role, n)| *n <= limit[role] + 3));
                (same >= 5 && low).then(|| last.clone())
            })
        };
        let baseline = settled(None);
        let resident = memory(before["auth"]);
        abort(&stack, 2_000).await;
        settled(Some(&baseline));
        let grown = memory(before["auth"]).saturating_sub(resident);
        assert!(grown < 20 * 1024, "the auth daemon grew by {grown} KiB");
        serves(&stack).await;
    });
    assert_same_processes(&stack, &before);
}

/// Connections that end in the middle of something.
async fn abort(stack: &Stack, count: usize) {
    for number in 0..count {
        match number % 8 {
            0..=2 => {
                let mut client = Client::unix(stack.socket("auth-client")).await;
                client.send("VERSION\t1\t2\nCPID\t1\nAUTH\t1\tLOGIN\tservice=smtp\n").await;
                if number % 2 == 0 {
                    client.until("CONT\t1").await;
                }
            }
            3 => {
                let mut client = Client::unix(stack.socket("auth-client")).await;
                client
                    .send(auth_line(1, "nobody-here", "wrong", &format!("rip=10.0.0.{}\t", number % 250)))
                    .await;
            }
            4 => {
                let mut client = Client::unix(stack.socket("saslauthd/mux")).await;
                client.send(b"\0\x05ali").await;
            }
            5 => {
                let mut client = Client::tcp(stack, 25).await;
                client
                    .send(
                        "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@mail.example.test>\r\nDATA\r\nhalf a mess",
                    )
                    .await;
            }
            6 => {
                let mut client = Client::tcp(stack, 993).await;
                client.send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").await;
            }
            _ => {
                let mut client = Client::tcp(stack, 110).await;
                client.send("STLS\r\n").await;
            }
        }
    }
}

#[test]
fn the_auth_sockets_take_three_thousand_connections_and_not_one_more() {
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("limit");
    if hard < 4_000 {
        return skip("the limit on open files is below 4,000");
    }
    if soft < 4_000 {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)
            .expect("limit");
    }
    let stack = start();
    let before = processes(&stack);
    bounded(async {
        let socket = stack.socket("auth-client");
        let mut held = Vec::new();
        let mut refused = 0;
        for _ in 0..3_010 {
            let mut client = Client::unix(&socket).await;
            match client.line().await {
                Some(line) => {
                    assert!(line.starts_with("VERSION"), "{line}");
                    held.push(client);
                }
                None => refused += 1,
            }
        }
        assert_eq!((held.len(), refused), (3_000, 10));
        // Those who are in are served, and mail is not cut off: the fronts have places of their own.
        for client in held.iter_mut().step_by(500) {
            client.until("DONE").await;
            client.send(format!("VERSION\t1\t2\nCPID\t1\n{}", auth_line(1, USER, PASSWORD, ""))).await;
            client.expect("OK\t1\t").await;
        }
        Client::imap(&stack, USER, PASSWORD).await;
        let mut smtp = Client::tcp(&stack, 25).await;
        smtp.expect("220").await;
        smtp.ask("EHLO client.test").await;
        smtp.ask("MAIL FROM:<>").await;
        let answer = smtp.ask(&format!("RCPT TO:<{USER}@{HOSTNAME}>")).await;
        assert!(answer.starts_with("250"), "{answer}");
        // A place that comes free is given to the next.
        drop(held.split_off(2_000));
        wait_for("a free place", || {
            let stream = std::os::unix::net::UnixStream::connect(&socket).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            let mut byte = [0];
            (std::io::Read::read(&mut &stream, &mut byte).ok()? == 1).then_some(())
        });
    });
    assert_same_processes(&stack, &before);
}

#[test]
fn one_account_cannot_take_all_places_on_the_auth_sockets() {
    if !is_root() {
        return skip("needs root to become another account");
    }
    if !can_be_stranger() {
        return;
    }
    let stack = start();
    let before = processes(&stack);
    let script = format!(
        r#"
import socket, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for i in range(3100):
    s = socket.socket(socket.AF_UNIX); s.settimeout(5)
    try:
        s.connect({path:?})
        if s.recv(1): held.append(s)
    except OSError: pass
# Every one of them also holds exchanges open.
for s in held[:100]:
    s.sendall(b"VERSION\t1\t2\nCPID\t1\n" + b"".join(b"AUTH\t%d\tLOGIN\tservice=smtp\n" % i for i in range(1, 3000)))
print(len(held), flush=True)
sys.stdin.read()
"#,
        path = stack.socket("auth-client").display().to_string()
    );
    let holder = Held::start(as_stranger(&script));
    let held: u32 = holder.said.parse().unwrap_or_else(|_| panic!("{:?}", holder.said));
    bounded(serves(&stack));
    let resident = memory(before["auth"]);
    drop(holder);
    println!("{held} connections, {resident} KiB");
    assert!(held > 1_000 && held < 3_000, "{held}");
    assert!(resident < 150 * 1024, "{resident} KiB held by one account's open exchanges");
    assert_same_processes(&stack, &before);
}
