//! The log line of a login as others read it: fail2ban, CrowdSec, the journal; and what must never stand in a log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::hostile::{self, auth_line, base64};
use crate::postfix_server::{PostfixServer, Service};
use crate::private::{
    Foreground, Gate, RUN_AS, documented, documented_gate, folder, quick, scratch, swaks, unpacked,
};
use crate::reference::{certificates, free_port};
use crate::support::{
    HOSTNAME, have, is_root, mux_request, peer, postern, private_mounts, run, show, skip, stderr, stdout,
    wait_for,
};

pub const USERS: &str = "alice:{PLAIN}pw1\nbob:{PLAIN}pw2\ncarol:{PLAIN}pw3::::::expires=2001-01-01\n";

/// Where the services of [`config`] are.
pub struct Ports {
    pub smtps: u16,
    pub imaps: u16,
    pub pop3s: u16,
    pub metrics: u16,
}

/// Every door, refusals answered at once; further lines go below the top.
pub fn config(w: &Path, log: &str, auth: &str) -> (String, Ports) {
    certificates(&w.join("tls"));
    folder(&w.join("state"), RUN_AS, 0o755);
    folder(&w.join("state/mail"), RUN_AS, 0o700);
    let ports = Ports { smtps: free_port(), imaps: free_port(), pop3s: free_port(), metrics: free_port() };
    let run_as = if is_root() { format!("run_as = \"{RUN_AS}\"\n") } else { String::new() };
    let text = format!(
        "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{w}/state\"\n{run_as}[log]\n{log}\n\
         [metrics]\nlisten = \"127.0.0.1:{metrics}\"\n\
         [[tls.certificate]]\nchain = \"{w}/tls/cert.pem\"\nkey = \"{w}/tls/key.pem\"\n\
         [auth]\nfailure_delay = \"20ms\"\n{auth}\n[auth.cache]\nttl = \"60s\"\n\
         [[auth.listener]]\nname = \"client\"\ntype = \"client\"\npath = \"sockets/client\"\nmode = \"0666\"\n\
         [[auth.listener]]\nname = \"mux\"\ntype = \"saslauthd\"\npath = \"sockets/mux\"\nmode = \"0666\"\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
         [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
         [[smtp.listener]]\nname = \"submissions\"\ntype = \"submissions\"\naddress = \"127.0.0.1:{smtps}\"\n\
         [[imap.listener]]\nname = \"imaps\"\naddress = \"127.0.0.1:{imaps}\"\ntls = \"implicit\"\n\
         [[pop3.listener]]\nname = \"pop3s\"\naddress = \"127.0.0.1:{pop3s}\"\ntls = \"implicit\"\n",
        w = w.display(),
        metrics = ports.metrics,
        smtps = ports.smtps,
        imaps = ports.imaps,
        pop3s = ports.pop3s,
    );
    (text, ports)
}

pub const NO_PENALTY: &str = "[auth.penalty]\nenabled = false";

/// A login over TLS from this address of the loopback.
pub fn curl(w: &Path, from: &str, scheme: &str, port: u16, user: &str, password: &str) -> bool {
    let mut command = peer("curl", w);
    command.args(["-sk", "--max-time", "30", "--interface", from, "-u", &format!("{user}:{password}")]);
    if scheme != "pop3s" {
        command.args(["-X", "NOOP"]);
    }
    command.arg(format!("{scheme}://127.0.0.1:{port}/"));
    run(command, "").status.success()
}

/// One login at the Dovecot socket; `extra` as in the AUTH line.
pub fn dovecot(w: &Path, user: &str, password: &str, extra: &str) -> String {
    hostile::bounded(hostile::log_in(w.join("state/sockets/client"), user, password, extra))
}

/// The answer to one line at the Dovecot socket.
fn told(w: &Path, line: &str) -> String {
    let mut socket = UnixStream::connect(w.join("state/sockets/client")).expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    write!(socket, "VERSION\t1\t1\nCPID\t1\n{line}").expect("request");
    let mut lines = BufReader::new(socket).lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("FAIL") || line.starts_with("OK")).unwrap_or_default()
}

/// One login at the mux; the address is the fifth field.
pub fn mux(w: &Path, user: &str, password: &str, address: Option<&str>) -> String {
    let request = mux_request([user, password, "sieve", ""].into_iter().chain(address));
    let mut socket = UnixStream::connect(w.join("state/sockets/mux")).expect("mux");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    socket.write_all(&request).expect("request");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("answer");
    String::from_utf8_lossy(answer.get(2..).unwrap_or_default()).into_owned()
}

/// From now on nobody can decide; waits until this shows it.
fn outage_at(gate: &Gate, shows: impl Fn() -> bool) {
    gate.break_backend();
    wait_for("the outage", || shows().then_some(()));
}

/// From now on nobody can decide; the daemon has noticed.
pub fn outage(gate: &Gate, w: &Path) {
    outage_at(gate, || !dovecot(w, "alice", "pw1", "rip=192.0.2.103\t").starts_with("OK"));
}

/// Names made to look like the end of one line and the beginning of another.
fn forged() -> Vec<String> {
    let line = "login result=refused rip=198.51.100.66 mech=PLAIN service=smtp session=- user=x ";
    vec![
        format!("x\n2026-11-20 21:34:50.123Z  INFO auth: {line}"),
        format!("x 2026-11-20 21:34:50.123Z  INFO auth: {line}"),
        format!("x\"\r\nNov 20 21:34:50 mail postern[1]: auth: {line}"),
        "x\",\"message\":\"login\",\"result\":\"refused\",\"rip\":\"198.51.100.66\",\"y\":\"".to_owned(),
        "\\\",\"message\":\"login\",\"result\":\"refused\",\"rip\":\"198.51.100.66\",".to_owned(),
        format!("x\u{2028}INFO auth: {line}"),
        format!("\u{1b}[2K\u{202e}{line}"),
    ]
}

/// Wrong and right logins at every door. Gives how often each address must be found.
fn attack(gate: &Gate, w: &Path, ports: &Ports) -> BTreeMap<String, usize> {
    let mut expected = BTreeMap::new();
    let mut wrong = |address: &str| *expected.entry(address.to_owned()).or_insert(0) += 1;
    // Through the fronts.
    for (from, scheme, port) in [
        ("127.0.0.11", "imaps", ports.imaps),
        ("127.0.0.12", "pop3s", ports.pop3s),
        ("127.0.0.13", "smtps", ports.smtps),
    ] {
        assert!(!curl(w, from, scheme, port, "alice", "wrong"), "{scheme}\n{}", gate.log());
        wrong(from);
        assert!(curl(w, "127.0.0.21", scheme, port, "alice", "pw1"), "{scheme}\n{}", gate.log());
    }
    // At the sockets.
    for (user, password, rip) in [("alice", "wrong", "192.0.2.1"), ("nobody-here", "pw1", "2001:db8::5")] {
        assert!(dovecot(w, user, password, &format!("rip={rip}\t")).starts_with("FAIL"));
        wrong(rip);
    }
    // Mechanisms nobody offers, and what is none.
    for (mechanism, rest, rip) in
        [("NTLM", "service=smtp\t", "192.0.2.3"), ("PLAIN", "service=smtp\tresp=!\t", "192.0.2.4")]
    {
        let line = format!("AUTH\t1\t{mechanism}\trip={rip}\t{rest}").trim_end().to_owned() + "\n";
        assert!(told(w, &line).starts_with("FAIL\t1"), "{line}");
        wrong(rip);
    }
    assert!(dovecot(w, "alice", "pw1", "rip=192.0.2.101\t").starts_with("OK"));
    assert!(dovecot(w, "carol", "pw3", "rip=192.0.2.102\t").contains("user_disabled"));
    assert!(mux(w, "alice", "wrong", Some("192.0.2.2;4242")).starts_with("NO"));
    wrong("192.0.2.2");
    assert!(mux(w, "alice", "wrong", None).starts_with("NO"));
    assert!(mux(w, "alice", "pw1", Some("192.0.2.104;4242")).starts_with("OK"));
    // Names that look like log lines, with a wrong password; and as service and session, with a right one.
    for name in forged() {
        assert!(dovecot(w, &name, "wrong", "rip=192.0.2.3\t").starts_with("FAIL"), "{name:?}");
        wrong("192.0.2.3");
        let plain = name.replace(['\n', '\r', '\t', '\0'], " ");
        let answer = dovecot(w, "alice", "pw1", &format!("session={plain}\trip=192.0.2.105\t"));
        assert!(answer.starts_with("OK"), "{plain:?}: {answer}");
    }
    // One who guesses, and one who tries names.
    for n in 0..7 {
        dovecot(w, "alice", &format!("guess{n}"), "rip=192.0.2.50\t");
        wrong("192.0.2.50");
        dovecot(w, &format!("user{n}"), "guess", "rip=192.0.2.60\t");
        wrong("192.0.2.60");
    }
    // An outage is nobody's fault.
    outage(gate, w);
    for n in 0..8 {
        let answer = dovecot(w, "alice", &format!("pw{n}"), "rip=192.0.2.103\t");
        assert!(!answer.starts_with("OK"), "{answer}");
    }
    assert!(!curl(w, "127.0.0.31", "imaps", ports.imaps, "alice", "pw1"));
    gate.mend_backend();
    expected
}

fn conf(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(file)
}

/// The addresses that Debian's fail2ban finds in this log with our filter.
fn fail2ban(root: &Path, log: &Path) -> BTreeMap<String, usize> {
    let mut command = Command::new("python3");
    // Its own zone must not shift the lines' times.
    command.env("PYTHONPATH", root.join("usr/lib/python3/dist-packages")).env("TZ", "America/New_York");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(root.join("usr/bin/fail2ban-regex")).arg("-c").arg(root.join("etc/fail2ban"));
    command.args(["-o", "<ip> <time>"]).arg(log).arg(conf("fail2ban/filter.d/postern.conf"));
    let out = run(command, "");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_secs_f64();
    let mut found = BTreeMap::new();
    for line in stdout(&out).lines() {
        let (ip, time) = line.split_once(' ').unwrap_or_else(|| panic!("{line}: {}", show(&out)));
        let time: f64 = time.parse().unwrap_or_else(|_| panic!("{line}: {}", show(&out)));
        assert!((now - time).abs() < 600.0, "{line}: the time was not understood");
        *found.entry(ip.to_owned()).or_insert(0) += 1;
    }
    assert!(!found.is_empty(), "{}", show(&out));
    found
}

/// Whom Debian's CrowdSec would ban, and why, after this log; with its own parsers for raw lines and dates.
fn crowdsec(root: &Path, w: &Path, log: &Path, kind: &str) -> Vec<(String, String)> {
    let place = w.join("crowdsec");
    let _ = fs::remove_dir_all(&place);
    let hub = root.join("usr/share/crowdsec/hub");
    for below in ["data", "hub", "parsers/s00-raw", "parsers/s01-parse", "parsers/s02-enrich", "scenarios"] {
        fs::create_dir_all(place.join(below)).expect("folder");
    }
    let copies = [
        (hub.join("parsers/s00-raw/crowdsecurity/syslog-logs.yaml"), "parsers/s00-raw/syslog-logs.yaml"),
        (hub.join("parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml"), "parsers/s02-enrich/dates.yaml"),
        (conf("crowdsec/parsers/s01-parse/postern-logs.yaml"), "parsers/s01-parse/postern-logs.yaml"),
        (conf("crowdsec/scenarios/postern-bf.yaml"), "scenarios/postern-bf.yaml"),
        (root.join("etc/crowdsec/simulation.yaml"), "simulation.yaml"),
        (root.join("etc/crowdsec/profiles.yaml"), "profiles.yaml"),
        (hub.join(".index.json"), "hub/.index.json"),
    ];
    for (from, to) in copies {
        fs::copy(&from, place.join(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    std::os::unix::fs::symlink(root.join("etc/crowdsec/patterns"), place.join("patterns")).expect("patterns");
    fs::write(place.join("acquis.yaml"), "").expect("acquis");
    let (p, port) = (place.display(), free_port());
    let config = format!(
        "common: {{daemonize: false, log_media: stdout, log_level: info, working_dir: .}}\n\
         config_paths: {{config_dir: {p}/, data_dir: {p}/data/, simulation_path: {p}/simulation.yaml, hub_dir: {p}/hub/, index_path: {p}/hub/.index.json}}\n\
         crowdsec_service: {{acquisition_path: {p}/acquis.yaml, parser_routines: 1}}\ncscli: {{output: human}}\n\
         db_config: {{type: sqlite, db_path: {p}/data/crowdsec.db}}\n\
         api: {{client: {{credentials_path: {p}/creds.yaml}}, server: {{log_level: error, listen_uri: \"127.0.0.1:{port}\", profiles_path: {p}/profiles.yaml}}}}\n\
         prometheus: {{enabled: false}}\n"
    );
    fs::write(place.join("config.yaml"), config).expect("config");
    fs::write(
        place.join("creds.yaml"),
        format!("url: http://127.0.0.1:{port}\nlogin: test\npassword: test\n"),
    )
    .expect("creds");
    let tool = |program: &str| {
        let mut command = Command::new(root.join("usr/bin").join(program));
        command.env("HOME", &place).current_dir(&place).arg("-c").arg(place.join("config.yaml"));
        command
    };
    let mut machine = tool("cscli");
    machine.args(["machines", "add", "test", "-p", "test", "-u", &format!("http://127.0.0.1:{port}"), "-f"]);
    machine.arg(place.join("creds.yaml"));
    let out = run(machine, "");
    assert!(out.status.success(), "{}", show(&out));
    let mut read = tool("crowdsec");
    read.arg("-dsn").arg(format!("file://{}", log.display())).args(["-type", kind]);
    let out = run(read, "");
    let text = stdout(&out) + &stderr(&out);
    assert!(out.status.success() && text.contains("Loaded 2 scenarios"), "{}", show(&out));
    let mut found: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("msg=\"Ip ")?;
            let (ip, rest) = rest.split_once(" performed 'postern/")?;
            Some((ip.to_owned(), rest.split_once('\'')?.0.to_owned()))
        })
        .collect();
    found.sort();
    found
}

/// The log by itself, where others may read it.
fn saved(w: &Path, name: &str, text: &str) -> PathBuf {
    let path = w.join(name);
    fs::write(&path, text).expect("log");
    path
}

#[test]
fn wrong_logins_at_every_door_are_found_by_fail2ban_and_crowdsec() {
    if !have(&["curl", "openssl", "python3"]) {
        return;
    }
    let Some(fail2ban_root) = unpacked(&["fail2ban"]) else { return };
    let Some(root) = unpacked(&["crowdsec"]) else { return };
    for format in ["human", "json"] {
        let scratch = scratch();
        let w = scratch.path();
        let (text, ports) = config(w, &format!("format = \"{format}\""), NO_PENALTY);
        let mut gate = Gate::start(w, &text, USERS);
        let expected = attack(&gate, w, &ports);
        gate.stop();
        let log = gate.log();
        assert!(!log.contains("\u{1b}") && !log.contains("\u{202e}") || format == "json", "{log}");
        for line in log.lines() {
            let whole = if format == "json" { line.starts_with('{') } else { line.starts_with("20") };
            assert!(whole, "a line was torn: {line:?}\n{log}");
        }
        let file = saved(w, "saved.log", &log);
        assert_eq!(fail2ban(&fail2ban_root, &file), expected, "{format}\n{log}");
        let bans = crowdsec(&root, w, &file, "postern");
        let expected = [
            ("192.0.2.3", "postern-bf"),
            ("192.0.2.3", "postern-user-enum"),
            ("192.0.2.50", "postern-bf"),
            ("192.0.2.60", "postern-bf"),
            ("192.0.2.60", "postern-user-enum"),
        ];
        assert_eq!(bans, expected.map(|(ip, why)| (ip.to_owned(), why.to_owned())), "{format}");
    }
}

/// What fail2ban's systemd backend makes of an entry: host, identifier, pid, message.
fn journal_lines(entries: &[Vec<u8>]) -> String {
    let mut text = String::new();
    let now = syslog_time();
    for entry in entries {
        let entry = String::from_utf8_lossy(entry);
        let field = |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let (message, identifier) = (field("MESSAGE="), field("SYSLOG_IDENTIFIER="));
        text += &format!("{now} mail {identifier}[77]: {message}\n");
    }
    text
}

/// As syslog writes it, in the zone fail2ban is started in.
fn syslog_time() -> String {
    let mut command = Command::new("date");
    command.env("LC_ALL", "C").env("TZ", "America/New_York").arg("+%b %e %H:%M:%S");
    stdout(&run(command, "")).trim().to_owned()
}

#[test]
fn the_journal_gets_lines_and_fields_that_fail2ban_understands() {
    if !is_root() {
        return skip("needs root for a journal of its own");
    }
    if !have(&["openssl", "python3", "unshare"]) {
        return;
    }
    let Some(root) = unpacked(&["fail2ban"]) else { return };
    let scratch = scratch();
    let w = scratch.path();
    fs::create_dir_all(w.join("run/systemd/journal")).expect("run");
    let journal = UnixDatagram::bind(w.join("run/systemd/journal/socket")).expect("journal");
    fs::set_permissions(w.join("run/systemd/journal/socket"), fs::Permissions::from_mode(0o666))
        .expect("mode");
    let Some(mut command) = private_mounts(&[(w.join("run"), "/run".into())]) else {
        return skip("no private mounts here");
    };
    let (text, _) = config(w, "format = \"journald\"", NO_PENALTY);
    folder(&w.join("state"), RUN_AS, 0o755);
    fs::write(w.join("state/users"), USERS).expect("users");
    fs::write(w.join("postern.toml"), text).expect("config");
    // A journal reads all the time: only few entries fit into its queue.
    journal.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (ended, mut entries) = (std::sync::Arc::clone(&done), Vec::new());
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        loop {
            // What was sent before the end is there when the end is told.
            let last = ended.load(std::sync::atomic::Ordering::Acquire);
            match journal.recv(&mut buffer) {
                Ok(length) => entries.push(buffer[..length].to_vec()),
                Err(_) if last => return entries,
                Err(_) => {}
            }
        }
    });
    command.arg(postern().get_program()).args(["run", "--config"]).arg(w.join("postern.toml"));
    let running = Foreground::start(command, &w.join("out"));
    wait_for("the client socket", || UnixStream::connect(w.join("state/sockets/client")).ok());
    dovecot(w, "alice", "wrong", "rip=192.0.2.1\tsession=abc\t");
    dovecot(w, &forged()[0], "wrong", "rip=192.0.2.3\t");
    assert!(dovecot(w, "alice", "pw1", "rip=192.0.2.101\t").starts_with("OK"), "{}", running.output());
    for n in 0..7 {
        dovecot(w, "alice", &format!("guess{n}"), "rip=192.0.2.50\t");
    }
    drop(running);
    done.store(true, std::sync::atomic::Ordering::Release);
    let entries = reader.join().expect("journal");
    let logins: Vec<_> = entries
        .iter()
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .filter(|entry| entry.starts_with("MESSAGE=auth: login "))
        .collect();
    assert_eq!(logins.len(), 10, "{logins:#?}");
    for field in [
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=postern",
        "POSTERN_DAEMON=auth",
        "POSTERN_RESULT=refused",
        "POSTERN_RIP=192.0.2.1",
        "POSTERN_SESSION=abc",
        "POSTERN_USER=alice@mail.example.test",
        "POSTERN_TYPED=alice",
        "POSTERN_REASON=wrong password",
        "POSTERN_MECH=PLAIN",
    ] {
        assert!(logins[0].lines().any(|line| line == field), "{field}\n{}", logins[0]);
    }
    // The human form may reach the journal as well, by a unit that logs to it.
    let now = syslog_time();
    let text = journal_lines(&entries)
        + &format!(
            "{now} mail postern[7]: 2026-11-20 21:34:50.123Z  INFO auth: login result=refused rip=192.0.2.4 mech=PLAIN\n"
        );
    let file = saved(w, "journal.log", &text);
    let expected = [("192.0.2.1", 1), ("192.0.2.3", 1), ("192.0.2.4", 1), ("192.0.2.50", 7)];
    assert_eq!(fail2ban(&root, &file), expected.map(|(ip, count)| (ip.to_owned(), count)).into(), "{text}");
    let Some(root) = unpacked(&["crowdsec"]) else { return };
    let bans = crowdsec(&root, w, &file, "syslog");
    assert_eq!(bans, [("192.0.2.50".to_owned(), "postern-bf".to_owned())], "{text}");
}

#[test]
fn wrong_logins_through_postfix_are_found_with_the_clients_address() {
    if !is_root() {
        return skip("needs root to run a private Postfix");
    }
    if !have(&["postfix", "swaks", "openssl", "python3"]) {
        return;
    }
    let Some(root) = unpacked(&["fail2ban"]) else { return };
    let scratch = scratch();
    let w = scratch.path();
    let queue = PostfixServer::queue(w).display().to_string();
    let text = documented_gate("postfix.toml", w, &[("/var/spool/postfix", &queue)]);
    let gate = Gate::start(w, &quick(&text), USERS);
    let services = [Service { chroot: true, options: "-o smtpd_tls_auth_only=no" }];
    let postfix = PostfixServer::start(w, &documented("postfix-main.cf", &[]), &services);
    let login = |from: &str, user: &str, password: &str| {
        let out = swaks(w, postfix.port(0), user, password, &["--auth", "PLAIN", "--local-interface", from]);
        out.status.code()
    };
    for (from, user, password, code) in [
        ("127.0.0.41", "alice", "wrong", 28),
        ("127.0.0.42", "nobody-here", "pw1", 28),
        ("127.0.0.43", "alice", "pw1", 0),
        ("127.0.0.44", "carol", "pw3", 28),
    ] {
        assert_eq!(login(from, user, password), Some(code), "{from}\n{}{}", postfix.log(), gate.log());
    }
    outage_at(&gate, || login("127.0.0.45", "alice", "pw1") != Some(0));
    assert_eq!(login("127.0.0.45", "alice", "pw1"), Some(28), "{}", gate.log());
    gate.mend_backend();
    let found = fail2ban(&root, &saved(w, "saved.log", &gate.log()));
    assert_eq!(found, [("127.0.0.41".to_owned(), 1), ("127.0.0.42".to_owned(), 1)].into(), "{}", gate.log());
}

/// The fields of the log line, in the order of the manual.
fn documented_fields() -> Vec<String> {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/logging.md")).expect("manual");
    let (_, table) = page.split_once("<!-- fields of a login -->").expect("the table");
    let rows =
        table.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    rows.filter_map(|row| Some(row.split('`').nth(1)?.to_owned())).collect()
}

#[test]
fn the_manual_names_every_field_of_a_login_in_order() {
    let scratch = scratch();
    let w = scratch.path();
    let (text, _) = config(w, "format = \"human\"", NO_PENALTY);
    let mut gate = Gate::start(w, &text, USERS);
    dovecot(w, "alice", "wrong", "rip=192.0.2.1\t");
    gate.stop();
    let log = gate.log();
    let line = log.lines().find(|line| line.contains("auth: login ")).expect("a login");
    let (_, line) = line.split_once("auth: login ").expect("a login");
    let mut fields = Vec::new();
    let mut quoted = false;
    let mut word = String::new();
    for c in line.chars().chain([' ']) {
        quoted ^= c == '"';
        if c == ' ' && !quoted {
            fields.extend(word.split_once('=').map(|(name, _)| name.to_owned()));
            word.clear();
        } else {
            word.push(c);
        }
    }
    assert_eq!(fields, documented_fields(), "{line}");
}

/// All the client said in one exchange at the Dovecot socket, responses as they went over the wire.
async fn exchange(path: PathBuf, mechanism: sasl::Name, user: &str, password: &str) -> Vec<String> {
    use base64::Engine as _;
    let mut said = Vec::new();
    let mut client =
        sasl::Client::new(mechanism, user.as_bytes(), password.as_bytes(), "cN0nceXyz").expect("known");
    let mut wire = hostile::Client::auth(path).await;
    let initial = client.initial().map(|initial| base64(initial.expose()));
    let resp = initial.as_ref().map_or_else(String::new, |initial| format!("\tresp={initial}"));
    wire.send(format!("AUTH\t1\t{}\tservice=imap\trip=192.0.2.9{resp}\n", mechanism.as_str())).await;
    // A first SCRAM message holds no secret.
    said.extend(initial.filter(|_| mechanism == sasl::Name::Plain));
    loop {
        let line = wire.line().await.expect("an answer");
        let Some(data) = line.strip_prefix("CONT\t1\t") else { return said };
        let challenge = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        let response = client.respond(&challenge).expect("response");
        said.extend(String::from_utf8(response.expose().to_vec()).ok());
        said.push(base64(response.expose()));
        wire.send(format!("CONT\t1\t{}\n", base64(response.expose()))).await;
    }
}

#[test]
fn nothing_secret_is_logged_at_any_level() {
    if !have(&["curl", "openssl"]) {
        return;
    }
    const SECRET: &str = "s3kr1t-Passw0rd";
    const WRONG: &str = "wr0ng-Passw0rd";
    for format in ["human", "json"] {
        let scratch = scratch();
        let w = scratch.path();
        let mechanisms = "mechanisms = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\", \"DIGEST-MD5\", \"SCRAM-SHA-1\", \"SCRAM-SHA-256\"]\n";
        let (text, ports) = config(
            w,
            &format!("format = \"{format}\"\nlevel = \"trace\""),
            &(mechanisms.to_owned() + NO_PENALTY),
        );
        let mut gate = Gate::start(w, &text, &format!("alice:{{PLAIN}}{SECRET}\n"));
        let socket = w.join("state/sockets/client");
        let mut secrets = Vec::new();
        for password in [SECRET, WRONG] {
            for mechanism in [
                sasl::Name::Plain,
                sasl::Name::Login,
                sasl::Name::CramMd5,
                sasl::Name::DigestMd5,
                sasl::Name::ScramSha1,
                sasl::Name::ScramSha256,
            ] {
                secrets.extend(hostile::bounded(exchange(socket.clone(), mechanism, "alice", password)));
            }
            for (scheme, port) in [("imaps", ports.imaps), ("pop3s", ports.pop3s), ("smtps", ports.smtps)] {
                assert_eq!(curl(w, "127.0.0.1", scheme, port, "alice", password), password == SECRET);
            }
            mux(w, "alice", password, None);
            secrets.push(password.to_owned());
            secrets.push(base64(password));
            secrets.push(base64(format!("\0alice\0{password}")));
        }
        gate.stop();
        let log = gate.log();
        assert!(
            log.contains("SCRAM-SHA-256") && log.to_lowercase().contains("debug"),
            "not much was logged:\n{log}"
        );
        for secret in secrets {
            // The user name alone is none; a piece of what was sent is one as well.
            if secret.len() < 8 || secret == base64("alice") {
                continue;
            }
            assert!(!log.contains(&secret), "{format}: the log holds {secret}");
            let middle = &secret[secret.len() / 4..secret.len() * 3 / 4];
            let known = ["alice", "localhost", "mail.example"].iter().any(|word| middle.contains(word));
            assert!(known || middle.len() < 10 || !log.contains(middle), "{format}: the log holds {middle}");
        }
    }
}

#[test]
fn a_session_has_one_name_in_the_front_and_in_the_daemon() {
    if !have(&["curl", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    let (text, ports) = config(w, "format = \"json\"\nlevel = \"debug\"", NO_PENALTY);
    let mut gate = Gate::start(w, &text, USERS);
    for (scheme, port) in [("imaps", ports.imaps), ("pop3s", ports.pop3s), ("smtps", ports.smtps)] {
        assert!(curl(w, "127.0.0.1", scheme, port, "alice", "pw1"), "{}", gate.log());
    }
    gate.stop();
    let lines: Vec<serde_json::Value> =
        gate.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let logins: Vec<_> =
        lines.iter().filter(|line| line["daemon"] == "auth" && line["message"] == "login").collect();
    assert_eq!(logins.len(), 3, "one line for each login: {logins:#?}");
    for login in logins {
        let role = if login["service"] == "submission" { "smtp" } else { "imap" };
        let same = |line: &&serde_json::Value| line["daemon"] == role && line["session"] == login["session"];
        assert!(login["session"] != "-" && lines.iter().any(|line| same(&line)), "{login:#}");
    }
}

#[test]
fn an_empty_or_broken_mux_request_leaves_the_log_whole() {
    let scratch = scratch();
    let w = scratch.path();
    let (text, _) = config(w, "format = \"human\"", NO_PENALTY);
    let mut gate = Gate::start(w, &text, USERS);
    assert!(mux(w, "", "x", None).starts_with("NO"));
    assert!(mux(w, "alice", "", None).starts_with("NO"));
    let mut socket = UnixStream::connect(w.join("state/sockets/client")).expect("socket");
    socket.write_all(auth_line(1, "a", "b", "rip=rubbish\t").as_bytes()).expect("written");
    drop(socket);
    gate.stop();
    assert!(gate.log().lines().all(|line| line.starts_with("20")), "{}", gate.log());
}
