//! Figures, health and the live view: what they say, that they agree with each other, and what their listener withstands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::private::{Gate, scratch, unpacked};
use crate::seeing::{NO_PENALTY, Ports, USERS, config, curl, dovecot, mux, outage};
use crate::support::{alive, descendants, have, postern, run, show, signal, stdout, wait_for};

/// An answer of the listener: status and body.
fn get(port: u16, path: &str) -> (u16, String) {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"))
}

fn ask(port: u16, request: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("listener");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    socket.write_all(request.as_bytes()).expect("request");
    answer(&mut socket)
}

fn answer(socket: &mut impl Read) -> (u16, String) {
    let mut text = Vec::new();
    socket.read_to_end(&mut text).expect("answer");
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    if !body.is_empty() {
        assert_eq!(length, Some(body.len().to_string().as_str()), "{head}");
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

/// Every series with its value; the format is checked on the way.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let (mut name, mut kind) = ("", "");
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            name = rest.split_once(' ').expect("help").0;
            assert!(seen.insert(name), "{name} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (same, its) = rest.split_once(' ').expect("type");
            assert_eq!(same, name);
            kind = its;
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let own = key.split('{').next().expect("name");
            let fits = match kind {
                "histogram" => ["_bucket", "_sum", "_count"].iter().any(|end| own == format!("{name}{end}")),
                _ => own == name,
            };
            assert!(fits, "{line} below {name} ({kind})");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} twice");
        }
    }
    series
}

fn figures(port: u16) -> BTreeMap<String, f64> {
    let (status, body) = get(port, "/metrics");
    assert_eq!(status, 200, "{body}");
    parse(&body)
}

/// The sum over all series of this name whose labels hold these texts.
fn sum(series: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let wanted =
        |key: &&String| key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label));
    series.iter().filter(|(key, _)| wanted(key)).map(|(_, value)| value).sum()
}

fn start(auth: &str) -> (tempfile::TempDir, Gate, Ports) {
    let scratch = scratch();
    let (text, ports) = config(scratch.path(), "format = \"human\"", auth);
    let gate = Gate::start(scratch.path(), &text, USERS);
    (scratch, gate, ports)
}

fn json(gate: &Gate, args: &[&str]) -> Value {
    let out = gate.admin(&[args, &["--json"]].concat(), "");
    assert!(out.status.success(), "{}", show(&out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", show(&out)))
}

#[test]
fn figures_tell_what_happened_and_agree_with_every_other_view() {
    if !have(&["curl", "openssl"]) {
        return;
    }
    let (scratch, gate, ports) = start("");
    let w = scratch.path();
    for (scheme, port) in [("imaps", ports.imaps), ("pop3s", ports.pop3s), ("smtps", ports.smtps)] {
        assert!(curl(w, "127.0.0.1", scheme, port, "alice", "pw1"), "{scheme}\n{}", gate.log());
    }
    for n in 0..3 {
        dovecot(w, "alice", &format!("wrong{n}"), "rip=192.0.2.1\t");
    }
    dovecot(w, "nobody-here", "x", "rip=2001:db8::5\t");
    dovecot(w, "carol", "pw3", "rip=192.0.2.2\t");
    mux(w, "alice", "pw1", None);
    outage(&gate, w);
    gate.mend_backend();
    let mail = w.join("mail.txt");
    fs::write(&mail, "Subject: x\r\n\r\nx\r\n").expect("mail");
    let mut send = Command::new("curl");
    send.args(["-sk", "--max-time", "30", "-u", "alice:pw1", "--mail-from", "alice@mail.example.test"]);
    send.args(["--mail-rcpt", "alice@mail.example.test", "--upload-file"]).arg(&mail);
    send.arg(format!("smtps://127.0.0.1:{}/", ports.smtps));
    let sent = run(send, "");
    assert!(sent.status.success(), "{}\n{}", show(&sent), gate.log());

    let all = figures(ports.metrics);
    let logins = |labels: &[&str]| sum(&all, "postern_auth_logins_total", labels);
    assert_eq!(
        logins(&["service=\"imap\"", "mechanism=\"PLAIN\"", "driver=\"passwd-file\"", "result=\"ok\""]),
        1.0,
        "{all:#?}"
    );
    assert_eq!(logins(&["service=\"pop3\"", "result=\"ok\""]), 1.0);
    assert_eq!(logins(&["service=\"submission\"", "result=\"ok\""]), 2.0);
    assert_eq!(logins(&["service=\"smtp\"", "driver=\"passwd-file\"", "result=\"refused\""]), 3.0);
    assert_eq!(logins(&["driver=\"none\"", "result=\"refused\""]), 1.0);
    assert_eq!(
        (logins(&["result=\"disabled\""]), logins(&["result=\"outage\""])),
        (1.0, 1.0),
        "{}",
        gate.log()
    );
    assert_eq!(sum(&all, "postern_auth_login_duration_seconds_count", &[]), logins(&[]));
    assert_eq!(sum(&all, "postern_auth_refusals_delayed_total", &[]), 5.0);
    assert_eq!(sum(&all, "postern_tls_handshakes_total", &["version=\"1.3\""]), 4.0);
    assert_eq!(sum(&all, "postern_smtp_messages_total", &["result=\"delivered\""]), 1.0);
    assert_eq!(sum(&all, "postern_smtp_deliveries_total", &[]), 1.0);
    assert!(sum(&all, "postern_process_memory_bytes", &["role=\"auth\""]) > 1e6);
    for role in ["supervisor", "auth", "smtp", "imap", "metrics"] {
        assert_eq!(sum(&all, "postern_process_up", &[&format!("role=\"{role}\"")]), 1.0, "{role}");
    }
    // One line in the log for each login that was counted.
    #[allow(clippy::cast_precision_loss)]
    let lines = gate.log().lines().filter(|line| line.contains("auth: login result=")).count() as f64;
    assert_eq!(lines, logins(&[]));
    assert!(!get(ports.metrics, "/metrics").1.contains("alice"), "no user names");

    // The other views.
    let cache = json(&gate, &["auth", "cache", "stats"]);
    assert_eq!(cache["hits"].as_f64(), Some(sum(&all, "postern_auth_cache_hits_total", &[])));
    assert_eq!(cache["misses"].as_f64(), Some(sum(&all, "postern_auth_cache_misses_total", &[])));
    assert_eq!(cache["positive"].as_f64(), Some(sum(&all, "postern_auth_cache_entries", &["positive"])));
    let penalties = json(&gate, &["auth", "penalty", "list"]);
    let listed = penalties["penalties"].as_array().expect("a list");
    #[allow(clippy::cast_precision_loss)]
    let count = |of_accounts: bool| {
        listed.iter().filter(|one| one["account"].is_null() != of_accounts).count() as f64
    };
    assert_eq!(count(false), sum(&all, "postern_auth_penalties", &["address"]));
    assert_eq!(count(true), sum(&all, "postern_auth_penalties", &["account"]));
    let status = json(&gate, &["status"]);
    assert_eq!(status["summary"]["logins"]["refused"].as_f64(), Some(logins(&["result=\"refused\""])));
    assert_eq!(status["summary"]["messages"]["delivered"], 1);
    let guessing = status["summary"]["guessing"].as_array().expect("a list");
    assert_eq!(guessing[0]["peer"], "192.0.2.1", "{guessing:?}");
    assert!(guessing.iter().any(|one| one["peer"] == "2001:db8::/64"), "{guessing:?}");
    let shown = stdout(&gate.admin(&["status"], ""));
    let line = format!("logins    ok {}, refused 5, undecided 1", logins(&["result=\"ok\""]));
    assert!(shown.contains("192.0.2.1 (") && shown.contains(&line), "{line}\n{shown}");
}

#[test]
fn promtool_and_the_dashboard_find_nothing_wrong() {
    let (scratch, gate, ports) = start(NO_PENALTY);
    let w = scratch.path();
    dovecot(w, "alice", "pw1", "rip=192.0.2.1\t");
    mux(w, "alice", "wrong", None);
    let (_, text) = get(ports.metrics, "/metrics");
    parse(&text);
    // Every metric of the table is there, and nothing else.
    let shown: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let table: BTreeSet<&str> = boot::figures::METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, table, "{}", gate.log());

    // The manual has the same table.
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("manual");
    let mut expected =
        "<!-- all metrics -->\n| Metric | Kind | Labels | Meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for metric in boot::figures::METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", metric.kind).to_lowercase();
        expected += &format!("| `{}` | {kind} | {} | {} |\n", metric.name, labels.join(", "), metric.help);
    }
    assert!(page.contains(&expected), "docs/metrics.md should hold\n{expected}");

    // The dashboard asks for nothing that does not exist, and for everything that does but a few.
    let board = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/grafana/postern.json"))
        .expect("dashboard");
    let board: Value = serde_json::from_str(&board).expect("JSON");
    let mut asked = BTreeSet::new();
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let words = target["expr"]
                .as_str()
                .expect("an expression")
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            asked.extend(words.filter(|word| word.starts_with("postern_")).map(|word| {
                ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| word.strip_suffix(end))
                    .unwrap_or(word)
                    .to_owned()
            }));
        }
    }
    let missing: Vec<_> = asked.iter().filter(|name| !table.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "the dashboard asks for {missing:?}");
    let unused: Vec<_> = table.iter().filter(|name| !asked.contains(**name)).collect();
    assert!(unused.len() <= 3, "the dashboard does not show {unused:?}");

    let Some(root) = unpacked(&["prometheus"]) else { return };
    let mut promtool = Command::new(root.join("usr/bin/promtool"));
    promtool.args(["check", "metrics"]);
    let out = run(promtool, &text);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", show(&out));
}

/// Waits until this path answers with this status.
fn wait_until(port: u16, path: &str, status: u16) -> String {
    wait_for(&format!("{path} to answer {status}"), || {
        TcpStream::connect(("127.0.0.1", port)).ok()?;
        let (got, body) = get(port, path);
        (got == status).then_some(body)
    })
}

#[test]
fn health_follows_the_daemons() {
    let (scratch, mut gate, ports) = start(NO_PENALTY);
    let port = ports.metrics;
    assert_eq!(get(port, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(port, "/readyz"), (200, "ready\n".to_owned()));

    // A daemon that hangs.
    let auth = gate.auth_pid();
    signal(auth, Signal::SIGSTOP);
    let body = wait_until(port, "/readyz", 503);
    signal(auth, Signal::SIGCONT);
    assert_eq!(body, "auth does not answer\n");
    assert_eq!(wait_until(port, "/readyz", 200), "ready\n");

    // One that is gone.
    signal(auth, Signal::SIGKILL);
    wait_for("the daemon's end", || (!alive(auth)).then_some(()));
    wait_for("its successor", || {
        let restarts = sum(&figures(port), "postern_process_restarts_total", &["role=\"auth\""]);
        (restarts > 0.5).then_some(())
    });
    wait_until(port, "/readyz", 200);
    assert_eq!(get(port, "/healthz").0, 200);

    // A reload that is refused changes nothing but what is said about it.
    let file = scratch.path().join("postern.toml");
    let good = fs::read_to_string(&file).expect("config");
    fs::write(&file, "rubbish").expect("config");
    signal(gate.pid(), Signal::SIGHUP);
    // What is told may be a moment old.
    let tells = |text: &str| {
        wait_for(text, || (get(port, "/readyz") == (200, format!("{text}\n"))).then_some(()));
    };
    tells("ready; the last reload was refused");
    assert_eq!(sum(&figures(port), "postern_last_reload_successful", &[]), 0.0);
    fs::write(&file, &good).expect("config");
    let out = gate.admin(&["reload"], "");
    assert!(out.status.success(), "{}", show(&out));
    tells("ready");

    // Switched to a unix socket, and off.
    let path = scratch.path().join("state/sockets/metrics");
    let listen = format!("listen = \"127.0.0.1:{port}\"");
    fs::write(&file, good.replace(&listen, "listen = \"sockets/metrics\"")).expect("config");
    let out = gate.admin(&["reload"], "");
    assert!(out.status.success(), "{}", show(&out));
    let mut socket = UnixStream::connect(&path).expect("unix socket");
    socket.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").expect("request");
    assert_eq!(answer(&mut socket), (200, "ready\n".to_owned()));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    fs::write(&file, good.replace(&listen, "")).expect("config");
    let out = gate.admin(&["reload"], "");
    assert!(out.status.success(), "{}", show(&out));
    wait_for("the end of the metrics process", || {
        let status = json(&gate, &["status"]);
        let roles = status["processes"].as_array()?.iter().filter(|one| one["role"] == "metrics").count();
        (roles == 0).then_some(())
    });
    gate.stop();
}

#[test]
fn the_listener_withstands_strangers() {
    let (_scratch, gate, ports) = start(NO_PENALTY);
    let port = ports.metrics;
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 405),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 421),
        ("\x16\x03\x01\x02\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000)), 431),
        ("HEAD /metrics HTTP/1.1\r\n\r\n".to_owned(), 200),
    ] {
        let (got, body) = ask(port, &request);
        assert_eq!(got, status, "{request:.60}: {body}");
    }
    // Silent and slow ones hold few places, and not for ever; others are served as soon as there is one.
    let began = Instant::now();
    let mut held: Vec<TcpStream> =
        (0..40).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    for socket in &mut held {
        let _ = socket.write_all(b"GET /metr");
    }
    wait_for("a place", || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        socket.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.1 200").then_some(())
    });
    drop(held);
    assert!(began.elapsed() < Duration::from_secs(25));
    assert_eq!(get(port, "/readyz").0, 200, "{}", gate.log());
}

#[test]
fn scrapes_under_load_are_whole_and_only_grow() {
    let (scratch, gate, ports) = start(NO_PENALTY);
    let w = scratch.path();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut done = 0_u32;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let password = if n == 0 { "wrong" } else { "pw1" };
                        dovecot(w, "alice", password, "rip=192.0.2.1\t");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut before = 0.0;
        for _ in 0..30 {
            let now = sum(&figures(ports.metrics), "postern_auth_logins_total", &[]);
            assert!(now >= before, "{now} after {before}");
            before = now;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let done: u32 = workers.into_iter().map(|worker| worker.join().expect("worker")).sum();
        wait_for("all logins to be counted", || {
            let now = sum(&figures(ports.metrics), "postern_auth_logins_total", &[]);
            ((now - f64::from(done)).abs() < 0.5).then_some(())
        });
    });
    drop(gate);
}

#[test]
fn watching_without_a_terminal_gives_lines_and_objects() {
    let (scratch, gate, _) = start("");
    let w = scratch.path();
    for n in 0..3 {
        dovecot(w, "alice", &format!("wrong{n}"), "rip=192.0.2.7\t");
    }
    let out = gate.admin(&["status", "--watch", "--count", "3", "--interval", "0.1"], "");
    let text = stdout(&out);
    assert!(out.status.success() && text.lines().count() == 3, "{}", show(&out));
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(text.contains("refused 3") && text.contains("refused 0.0/s"), "{text}");
    assert!(text.contains("guessing 192.0.2.7 ("), "{text}");
    let out = gate.admin(&["status", "--watch", "--count", "2", "--interval", "0.1", "--json"], "");
    let lines: Vec<Value> =
        stdout(&out).lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["rates"].is_null() && lines[1]["rates"]["ok"] == 0.0, "{lines:?}");
    assert_eq!(lines[1]["summary"]["logins"]["refused"], 3);
    assert_eq!(lines[1]["summary"]["guessing"][0]["peer"], "192.0.2.7");
    // Nobody to watch.
    let mut command = postern();
    command.args(["status", "--watch", "--state-dir"]).arg(w.join("nowhere"));
    assert_eq!(run(command, "").status.code(), Some(69));
    let out = gate.admin(&["status", "--interval", "2"], "");
    assert_eq!(out.status.code(), Some(2), "{}", show(&out));
}

/// Runs a shell command on a terminal of its own; `keys` are typed when `until` has appeared. Gives all output.
fn on_a_terminal(w: &Path, line: &str, until: &str, keys: &str) -> String {
    // script(1) of util-linux makes the terminal.
    let mut command = Command::new("script");
    command.args(["-qefc", line, "/dev/null"]).env("TERM", "xterm").current_dir(w);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("script");
    let mut output = child.stdout.take().expect("output");
    let mut input = child.stdin.take().expect("input");
    let (sender, chunks) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut chunk) {
            let _ = sender.send(chunk[..count].to_vec());
        }
    });
    let mut all = Vec::new();
    let end = Instant::now() + Duration::from_secs(30);
    let mut typed = false;
    loop {
        match chunks.recv_timeout(Duration::from_millis(100)) {
            Ok(chunk) => all.extend(chunk),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
        }
        if !typed && String::from_utf8_lossy(&all).contains(until) {
            input.write_all(keys.as_bytes()).expect("typed");
            typed = true;
        }
        if Instant::now() > end {
            for pid in descendants(child.id()) {
                signal(pid, Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
            panic!("it did not end: {}", String::from_utf8_lossy(&all));
        }
    }
    let _ = child.wait();
    let _ = reader.join();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn the_live_view_leaves_the_terminal_as_it_was() {
    if !have(&["script", "stty"]) {
        return;
    }
    let (scratch, gate, _) = start("");
    let w = scratch.path();
    dovecot(w, "alice", "wrong", "rip=192.0.2.7\t");
    let program = postern().get_program().to_string_lossy().into_owned();
    // ctrl-C reaches the shell too, and some end with it.
    let command = format!(
        "trap : INT; stty -a > before; '{program}' status --watch --interval 0.1 --config '{}'; echo code $?; stty -a > after",
        w.join("postern.toml").display()
    );
    for (keys, what) in [("q", "q"), ("\u{3}", "ctrl-C")] {
        let shown = on_a_terminal(w, &command, "/s)", keys);
        assert!(shown.contains("\u{1b}[?1049h") && shown.contains("192.0.2.7 ("), "{what}: {shown:?}");
        let (_, after) = shown.rsplit_once("\u{1b}[?1049l").unwrap_or_else(|| panic!("{what}: {shown:?}"));
        assert!(after.contains("code 0"), "{what}: {after:?}");
        assert!(shown.contains("\u{1b}[?25h") && shown.contains("\u{1b}[?7h"), "{what}: {shown:?}");
        let read = |name: &str| fs::read_to_string(w.join(name)).expect("stty");
        assert_eq!(read("before"), read("after"), "{what}");
    }
    drop(gate);
}

#[test]
fn a_listener_for_others_needs_a_word_of_the_administrator() {
    let scratch = scratch();
    let (text, ports) = config(scratch.path(), "format = \"human\"", "");
    fs::write(scratch.path().join("state/users"), USERS).expect("users");
    let listen = format!("listen = \"127.0.0.1:{}\"", ports.metrics);
    let check = |lines: &str| {
        fs::write(scratch.path().join("c.toml"), text.replace(&listen, lines)).expect("config");
        let mut command = postern();
        command.args(["config", "check", "--config"]).arg(scratch.path().join("c.toml"));
        run(command, "")
    };
    let open = check("listen = \"0.0.0.0:9154\"");
    assert!(open.status.code() == Some(78) && show(&open).contains("without a password"), "{}", show(&open));
    let open = check("listen = \"0.0.0.0:9154\"\npublic = true");
    assert!(open.status.success(), "{}", show(&open));
}
