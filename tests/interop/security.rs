//! What each process of the stack may do, and what one that was taken over cannot: read from `/proc`, compared with the
//! manual, and tried by a hostile program under the ids of a front.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{ACCOUNTS, Machine, Person, QUICK, RIGHT, SOCKETS, Setup};
use crate::support::{have, peer, run, show, stdout, wait_for};

/// Users in a file, and system users whose passwords a worker looks up.
const SETTINGS: &str = "[[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
    [[auth.passdb]]\ndriver = \"shadow\"\n\
    [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
    [[auth.userdb]]\ndriver = \"static\"\n";
/// Where every account can start it.
const PYTHON: &str = "/usr/bin/python3";
/// The group of the sockets between the daemons.
const GROUP: &str = "postern";

fn id(name: &str) -> u32 {
    ACCOUNTS.iter().find(|(known, _)| *known == name).map(|(_, id)| *id).expect("an account")
}

/// A stack with an account for each daemon, user alice in a file and sam in shadow.
fn machine(more: &str) -> Option<Machine> {
    let settings = format!("{more}{QUICK}{SOCKETS}{SETTINGS}");
    let people = vec![Person::plain("sam")];
    let mut machine = Machine::prepare(&Setup { people, settings, fronts: true, ..Setup::default() })?;
    let mut add = postern(&machine)?;
    add.args(["user", "add", "alice", "--password-stdin", "--config"]).arg(machine.path("postern.toml"));
    let out = run(add, &format!("{RIGHT}\n"));
    assert!(out.status.success(), "{}", show(&out));
    machine.launch(&[]).then_some(machine)
}

fn postern(machine: &Machine) -> Option<std::process::Command> {
    let program = crate::support::postern().get_program().to_owned();
    machine.command(program.to_str().expect("path"))
}

/// The processes of `postern status --security --json`, by role.
fn security(machine: &Machine) -> Vec<Value> {
    let mut command = postern(machine).expect("a command");
    command.args(["status", "--security", "--json", "--config"]).arg(machine.path("postern.toml"));
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
    let told: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", show(&out)));
    told["processes"].as_array().expect("processes").clone()
}

fn of<'a>(processes: &'a [Value], role: &str) -> &'a Value {
    processes.iter().find(|one| one["role"] == role).unwrap_or_else(|| panic!("no {role}: {processes:?}"))
}

fn words(value: &Value) -> BTreeSet<String> {
    value.as_array().expect("a list").iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The rows of the table in docs/architecture.md, by role.
fn manual() -> Vec<(String, Vec<String>)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = fs::read_to_string(page).expect("docs/architecture.md");
    let (_, table) = page.split_once("<!-- processes: generated").expect("the table");
    let (table, _) = table.split_once("<!-- end of processes -->").expect("its end");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        (cells[0].trim_matches('`').to_owned(), cells)
    })
    .collect()
}

/// Sockets that a process listens on, from `/proc` alone.
fn listening(pid: u64) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("as root").flatten();
    let links = links.filter_map(|fd| fs::read_link(fd.path()).ok());
    let inodes: BTreeSet<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let net = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let tcp = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(3) == Some(&"0A")).then(|| fields[9].to_owned())
    };
    // proc(5): the flag 0x10000 is that of a listening socket.
    let unix = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(3) == Some(&"00010000")).then(|| fields[6].to_owned())
    };
    let mut listening: BTreeSet<String> = net("tcp").lines().skip(1).filter_map(tcp).collect();
    listening.extend(net("tcp6").lines().skip(1).filter_map(tcp));
    listening.extend(net("unix").lines().skip(1).filter_map(unix));
    inodes.intersection(&listening).count()
}

#[test]
fn every_process_is_what_the_manual_and_proc_say() {
    let Some(machine) = machine("") else { return };
    // A worker is started by the first that needs one.
    assert!(machine.plain("sam", RIGHT, "smtp").starts_with("OK"), "{}", machine.log());
    let processes = security(&machine);
    let manual = manual();
    let roles: BTreeSet<&str> = processes.iter().filter_map(|one| one["role"].as_str()).collect();
    let expected = BTreeSet::from(["supervisor", "auth", "auth-workers", "auth-worker", "smtp", "imap"]);
    assert_eq!(roles, expected, "{processes:?}");
    let mut uids = BTreeSet::new();
    for one in &processes {
        let role = one["role"].as_str().expect("a role");
        let pid = one["pid"].as_u64().expect("a pid");
        // As /proc has it.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}"))
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let same_four = |ids: Vec<String>| {
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 1, "{role} can change back: {ids:?}");
            ids[0].parse::<u64>().expect("an id")
        };
        let uid = same_four(field("Uid:"));
        assert_eq!(one["uid"], uid, "{role}");
        assert_eq!(one["gid"], same_four(field("Gid:")), "{role}");
        let groups: Vec<u64> = field("Groups:").iter().map(|gid| gid.parse().expect("a gid")).collect();
        assert_eq!(one["groups"], json!(groups), "{role}");
        assert_eq!(one["no_new_privs"], json!(field("NoNewPrivs:") == ["1"]), "{role}");
        assert_eq!(one["no_new_privs"], json!(true), "{role}");
        assert_eq!(one["seccomp"] == "filter", field("Seccomp:") == ["2"], "{role}");
        let effective = u64::from_str_radix(&field("CapEff:")[0], 16).expect("hex");
        assert_eq!(words(&one["capabilities"]).len(), effective.count_ones() as usize, "{role}");
        let owner = fs::metadata(format!("/proc/{pid}/status")).expect("it runs").uid();
        assert_eq!((owner, &one["dumpable"]), (0, &json!(false)), "{role} is dumpable");
        // The supervisor holds those of all.
        if !["auth-worker", "supervisor"].contains(&role) {
            assert_eq!(one["sockets"].as_array().map(Vec::len), Some(listening(pid)), "{role}: {one}");
        }
        assert_eq!(one["weaker"], json!([]), "{role}");

        // As the manual has it.
        let (_, row) = manual
            .iter()
            .find(|(name, _)| name == role)
            .unwrap_or_else(|| panic!("{role} is not in the manual"));
        let [_, account, groups, kept, calls, files, _, _] = &row[..] else { panic!("{row:?}") };
        let split = |cell: &str| -> BTreeSet<String> {
            if cell == "-" { BTreeSet::new() } else { cell.split(", ").map(str::to_owned).collect() }
        };
        if role == "supervisor" {
            assert!(words(&one["capabilities"]).is_subset(&split(kept)), "{one}");
            continue;
        }
        assert_eq!((&one["user"], uid), (&json!(account), u64::from(id(account))), "{role}");
        uids.insert(uid);
        let gids: BTreeSet<u64> = split(groups)
            .iter()
            .map(|name| if name == GROUP { 61_010 } else { 42 })
            .chain([u64::from(id(account))])
            .collect();
        let have: BTreeSet<u64> =
            one["groups"].as_array().expect("groups").iter().filter_map(Value::as_u64).collect();
        // Workers of the machine's account are in its group, too.
        assert!(
            gids.is_subset(&have) && have.iter().all(|gid| gids.contains(gid) || *gid == 61_010),
            "{role}: {have:?}"
        );
        assert_eq!(words(&one["capabilities"]), BTreeSet::new(), "{role} is not root");
        assert_eq!(one["seccomp"], "filter", "{role}");
        assert_eq!(one["profile"], calls.as_str(), "{role}");
        assert_eq!(one["landlock"] == "full", files != "-", "{role}: {one}");
        let bounding = words(&one["bounding"]);
        assert!(bounding.is_subset(&split(kept)), "{role}: {bounding:?}");
    }
    // The manager of the workers is one of them.
    assert_eq!(uids.len(), 4, "{uids:?}");
}

#[test]
fn the_processes_of_mailboxes_and_figures_are_what_the_manual_and_proc_say() {
    if !have(&["curl"]) {
        return;
    }
    let settings = format!(
        "{QUICK}[[auth.passdb]]\ndriver = \"shadow\"\n[[auth.userdb]]\ndriver = \"passwd\"\n\
         [metrics]\nlisten = \"SCRATCH/metrics\"\n\
         [mail]\nmailboxes = \"system\"\nfirst_valid_uid = 1000\nlast_valid_uid = 61199\n"
    );
    let people = vec![Person::plain("sam")];
    let Some(machine) = Machine::start(&Setup { people, settings, fronts: true, ..Setup::default() }) else {
        return;
    };
    // The process of a mailbox is started by its user's login.
    let mut curl = peer("curl", &machine.path("home"));
    curl.args(["-sS", "--max-time", "30", "-u", &format!("sam:{RIGHT}"), "--cacert"]).arg(machine.ca());
    curl.arg(format!("imaps://localhost:{}/", machine.port(993)));
    let out = run(curl, "");
    assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
    let processes = security(&machine);
    let manual = manual();
    for (role, account) in
        [("broker", 0), ("mailbox", crate::machine::FIRST_UID), ("metrics", id("postern-metrics"))]
    {
        let one = of(&processes, role);
        let pid = one["pid"].as_u64().expect("a pid");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), vec![account.to_string(); 4], "{role}");
        assert_eq!((&one["uid"], &one["weaker"]), (&json!(account), &json!([])), "{role}");
        assert_eq!((field("Seccomp:"), &one["seccomp"]), (vec!["2".to_owned()], &json!("filter")), "{role}");
        assert_eq!(
            (field("NoNewPrivs:"), &one["no_new_privs"]),
            (vec!["1".to_owned()], &json!(true)),
            "{role}"
        );
        assert_eq!(one["dumpable"], json!(false), "{role}");
        let effective = u64::from_str_radix(&field("CapEff:")[0], 16).expect("hex");
        let (_, row) = manual.iter().find(|(name, _)| name == role).expect("in the manual");
        let kept: BTreeSet<String> =
            row[3].split(", ").filter(|one| *one != "-").map(str::to_owned).collect();
        assert_eq!(words(&one["capabilities"]), kept, "{role}");
        assert_eq!(effective.count_ones() as usize, kept.len(), "{role}");
        // A mailbox listens nowhere.
        let listens = usize::from(role != "mailbox");
        assert_eq!(
            (one["sockets"].as_array().map(Vec::len), listening(pid)),
            (Some(listens), listens),
            "{role}"
        );
        // What a mailbox is kept from its broker tells: it restricts itself when it has found its Maildir.
        assert_eq!(one["profile"], row[4].as_str(), "{role}");
        assert_eq!(one["landlock"] == "full", row[5] != "-", "{role}: {one}");
        let gigabytes =
            row[6].strip_suffix(" GiB").and_then(|count| count.parse::<u64>().ok()).expect("a limit");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let hard = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
            line.split_ascii_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok())
        };
        assert_eq!(hard("Max data size"), Some(gigabytes << 30), "{role}");
        assert_eq!(one["limits"]["memory"], json!(gigabytes << 30), "{role}");
        assert_eq!((hard("Max core file size"), hard("Max locked memory")), (Some(0), Some(0)), "{role}");
    }
}

#[test]
fn a_front_that_was_taken_over_reaches_nothing_of_the_others() {
    if !have(&["python3", "setpriv"]) {
        return;
    }
    let Some(machine) = machine("") else { return };
    assert!(machine.plain("sam", RIGHT, "smtp").starts_with("OK"), "{}", machine.log());
    let processes = security(&machine);
    let pid = |role: &str| of(&processes, role)["pid"].as_u64().expect("a pid");
    let state = machine.path("state");
    let at = |name: &str| state.join(name).display().to_string();
    let sockets = ["control", "auth-workers", "fronts-login", "fronts-session", "fronts-userdb"];
    let sockets: Vec<String> = sockets.iter().map(|name| at(&format!("sockets/{name}"))).collect();
    let wanted = json!({
        "read": ["/etc/shadow", at("users"), at("auth/auth-secret"), machine.path("tls/key.pem"), "/etc/passwd"],
        "list": [at("auth"), at("mail"), at("sockets")],
        "remove": sockets,
        "pids": processes.iter().map(|one| one["pid"].clone()).collect::<Vec<_>>(),
        "connect": sockets,
        "become": [0, id("postern-auth"), id("postern-imap"), id("postern-authw")],
    });
    let hostile = |account: &str, groups: &str| -> Value {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/hostile_front.py");
        // Reachable for every account.
        let copy = machine.path("hostile_front.py");
        fs::copy(script, &copy).expect("copied");
        let mut command = machine.command("setpriv").expect("a command");
        let number = id(account).to_string();
        command.args(["--reuid", &number, "--regid", &number, "--groups", groups, "--bounding-set", "-all"]);
        command.args(["--inh-caps", "-all", PYTHON]).arg(copy);
        let out = run(command, &wanted.to_string());
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", show(&out)))
    };

    // With the ids of the SMTP server, and nothing of its sandbox.
    let done = hostile("postern-smtp", "61002,61010");
    assert_eq!(done["read"], json!(["/etc/passwd"]));
    assert_eq!(done["list"], json!([at("sockets")]));
    // Itself it may stop, for it is the same uid.
    assert_eq!(done["signal"], json!([pid("smtp")]));
    for nothing in ["remove", "trace", "memory", "look", "become"] {
        assert_eq!(done[nothing], json!([]), "{nothing}");
    }
    let fronts: Vec<&String> = sockets.iter().filter(|path| path.contains("fronts-")).collect();
    assert_eq!(done["connect"], json!(fronts));
    assert_eq!(done["served"], json!(fronts));

    // Another account of the group gets through the mode, and is refused by its uid; a stranger does not get so far.
    let done = hostile("postern-relay", "61004,61010");
    assert_eq!((&done["connect"], &done["served"]), (&json!(fronts), &json!([])));
    let done = hostile("test-stranger", "61005");
    assert_eq!((&done["connect"], &done["signal"]), (&json!([]), &json!([])));
    wait_for("a line about the refused", || {
        let line =
            format!("uid {}, gid {}) is neither in allow_users", id("postern-relay"), id("postern-relay"));
        machine.log().contains(&line).then_some(())
    });
    // These checks can see a success: with the daemon's own uid there is one.
    let done = hostile("postern-auth", "61000,61010");
    assert_eq!(done["signal"], json!([pid("auth")]));
    assert!(done["read"].as_array().is_some_and(|read| read.contains(&json!(at("users")))), "{done}");
    assert!(
        done["connect"].as_array().is_some_and(|all| all.contains(&json!(at("sockets/auth-workers")))),
        "{done}"
    );
    assert_eq!(done["trace"], json!([]));
    // Nobody was harmed.
    assert!(machine.plain("alice", RIGHT, "smtp").starts_with("OK"));
    assert_eq!(security(&machine), processes);
}

#[test]
fn a_refused_peer_reads_an_end_and_the_log_names_it_once() {
    let Some(machine) = machine("") else { return };
    let listener = "userdb";
    // The machine's strangers are root's children here: a program under another uid, called as it likes.
    let mut command = machine.command("setpriv").expect("a command");
    let number = id("test-stranger").to_string();
    command.args(["--reuid", &number, "--regid", &number, "--clear-groups", PYTHON, "-c"]);
    command.arg(
        "import socket, sys\n\
         open('/proc/self/comm', 'w').write('curious')\n\
         for _ in range(20):\n\
         \x20   peer = socket.socket(socket.AF_UNIX)\n\
         \x20   peer.settimeout(10)\n\
         \x20   peer.connect(sys.argv[1])\n\
         \x20   try: peer.send(b'VERSION\\t1\\t1\\n')\n\
         \x20   except BrokenPipeError: pass\n\
         \x20   assert peer.recv(10) == b'', 'heard something'\n\
         print('closed')\n",
    );
    command.arg(machine.socket(listener));
    let out = run(command, "");
    assert!(stdout(&out).contains("closed"), "{}", show(&out));
    let lines: Vec<String> = machine
        .log()
        .lines()
        .filter(|line| line.contains("connection refused: curious"))
        .map(str::to_owned)
        .collect();
    let [line] = &lines[..] else { panic!("{lines:?}\n{}", machine.log()) };
    for part in ["listener `userdb`", &format!("uid {number}"), &format!("allow_users = [\"{number}\"]")] {
        assert!(line.contains(part), "{line}");
    }
    // Who is let in is served.
    let mut stream = UnixStream::connect(machine.socket(listener)).expect("userdb");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    stream.write_all(b"VERSION\t1\t1\nUSER\t1\talice\tservice=smtp\n").expect("write");
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).expect("greeting");
    assert_eq!(&answer, b"VERSION");
}

#[test]
fn the_sandbox_can_log_only_or_be_off() {
    for (mode, seccomp, landlock) in [("log", "log", Value::Null), ("off", "none", Value::Null)] {
        let Some(machine) = machine(&format!("[process]\nsandbox = \"{mode}\"\n")) else { return };
        assert!(machine.plain("alice", RIGHT, "smtp").starts_with("OK"));
        let processes = security(&machine);
        for role in ["auth", "smtp", "imap"] {
            let one = of(&processes, role);
            assert_eq!((&one["seccomp"], &one["landlock"]), (&json!(seccomp), &landlock), "{mode} {role}");
            assert!(one["weaker"].as_array().is_some_and(|notes| !notes.is_empty()), "{one}");
        }
    }
}

#[test]
fn without_accounts_root_is_told_how_to_make_them() {
    let Some(mut machine) = Machine::prepare(&Setup {
        settings: format!("{QUICK}{SOCKETS}{}", SETTINGS.replace("\"users\"", "\"SCRATCH/users\"")),
        fronts: true,
        ..Setup::default()
    }) else {
        return;
    };
    fs::write(machine.path("users"), "").expect("users");
    let passwd = machine.path("etc/passwd");
    let text = fs::read_to_string(&passwd).expect("passwd");
    let without: String = text
        .lines()
        .filter(|line| !line.starts_with("postern-smtp:"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&passwd, &without).expect("passwd");
    let mut command = postern(&machine).expect("a command");
    command.args(["run", "--config"]).arg(machine.path("postern.toml"));
    let out = run(command, "");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(78), "{}", show(&out));
    for part in ["postern-smtp", "systemd-sysusers", "useradd", "run_as"] {
        assert!(told.contains(part), "{told}");
    }
    // An account for all of them is enough, with one warning.
    let one = format!("{without}postern:x:61050:61010::/nonexistent:/usr/sbin/nologin\n");
    fs::write(&passwd, one).expect("passwd");
    assert!(machine.launch(&[]));
    assert_eq!(machine.log().matches("systemd-sysusers").count(), 1, "{}", machine.log());
    assert_eq!(fs::metadata(machine.path("state")).expect("made").uid(), 61_050);
}

#[test]
fn the_embedded_default_uses_the_accounts_that_are_there() {
    let Some(machine) = Machine::prepare(&Setup::default()) else { return };
    let state = machine.path("embedded");
    let start = || {
        let mut command = postern(&machine).expect("a command");
        command.args([
            "run",
            "--self-test",
            "--first-user",
            "alice",
            "--hostname",
            "mail.example.test",
            "--state-dir",
        ]);
        command.arg(&state).args(["--listen", "127.0.0.1"]);
        let base = crate::support::free_port_base().to_string();
        command.args(["--port-base", &base]);
        run(command, "")
    };
    let out = start();
    assert!(out.status.success(), "{}", show(&out));
    assert!(stdout(&out).contains("each daemon runs under an account of its own"), "{}", show(&out));
    let owner =
        |name: &str| fs::symlink_metadata(state.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")).uid();
    for (name, account) in [
        ("", 0),
        ("sockets", 0),
        ("users", 0),
        ("auth/auth-secret", id("postern-auth")),
        ("mail", id("postern-imap")),
    ] {
        assert_eq!(owner(name), account, "{name}");
    }
    assert_eq!(owner("mail/alice/Maildir"), id("postern-imap"));
    // Again, and with one more user that root adds.
    let mut add = postern(&machine).expect("a command");
    add.args(["user", "add", "bob", "--password-stdin", "--state-dir"]).arg(&state);
    let out = run(add, "secret of bob\n");
    assert!(out.status.success(), "{}", show(&out));
    let users = fs::metadata(state.join("users")).expect("users");
    assert_eq!((users.gid(), users.mode() & 0o777), (id("postern-auth"), 0o640));
    let out = start();
    assert!(out.status.success(), "{}", show(&out));
}

/// How often the bytes stand in the memory of a process.
fn in_memory(pid: u64, wanted: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("as root");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("as root");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, rest) = line.split_once('-').expect("a range");
        let to = rest.split(' ').next().expect("a range");
        let number = |hex: &str| u64::from_str_radix(hex, 16).expect("hex");
        let (from, to) = (number(from), number(to));
        // Reserved by the allocator, most of it never touched.
        let mut bytes = vec![0; 1 << 20];
        let mut at = from;
        while at < to {
            let length = usize::try_from((to - at).min(1 << 20)).expect("small");
            if memory.read_exact_at(&mut bytes[..length], at).is_ok() {
                found += bytes[..length].windows(wanted.len()).filter(|part| *part == wanted).count();
            }
            at += length as u64;
        }
    }
    found
}

#[test]
fn passwords_are_not_left_in_memory() {
    if !have(&["curl"]) {
        return;
    }
    let Some(machine) = machine("") else { return };
    let secret = "wiped-Zq7kPm42";
    let mut change = postern(&machine).expect("a command");
    change.args(["user", "passwd", "alice", "--password-stdin", "--scheme", "SSHA256", "--config"]);
    change.arg(machine.path("postern.toml"));
    let out = run(change, &format!("{secret}\n"));
    assert!(out.status.success(), "{}", show(&out));
    let urls = [("imaps", 993), ("pop3s", 995), ("smtps", 465)];
    for (scheme, offset) in urls {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--user", &format!("alice:{secret}")]);
        curl.arg(format!("{scheme}://127.0.0.1:{}/", machine.port(offset)));
        if scheme == "smtps" {
            curl.args(["--mail-from", "alice@mail.example.test", "--mail-rcpt", "alice@mail.example.test"]);
            curl.args(["--upload-file", "-"]);
        }
        let out = run(curl, "Subject: x\r\n\r\nx\r\n");
        assert!(out.status.success(), "{scheme}: {}\n{}", show(&out), machine.log());
    }
    assert!(machine.plain("alice", secret, "smtp").starts_with("OK"), "{}", machine.log());
    assert_eq!(machine.mux("alice", secret, "smtp").get(..2), Some("OK"));
    for process in security(&machine) {
        let pid = process["pid"].as_u64().expect("a pid");
        assert_eq!(in_memory(pid, secret.as_bytes()), 0, "{process}");
        // What is looked for could be found.
        assert!(in_memory(pid, b"127.0.0.1") + in_memory(pid, b"postern") > 0, "{process}");
    }
}
