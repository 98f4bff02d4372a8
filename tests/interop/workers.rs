//! The pool of workers as a process of its own: whose rights they have, what a module may do to them, what the rest of
//! the machine gets to see of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::account_states::ask as ask_at;
use crate::hostile::{bounded, memory};
use crate::machine::{ANYBODY, Login, Machine, Person, QUICK, RIGHT, SOCKETS, Setup, UNIX, id_of};
use crate::support::{descendants, have, peer, run, show, signal, skip, wait_for, wait_for_end, wait_within};

/// Whoever depends on a process ends with it: nobody waits out a deadline, which is longer.
const END_LIMIT: Duration = Duration::from_secs(2);
const PERMIT: &str = "account required pam_permit.so\n";

/// PAM services of misbehaving modules and of those that administrators add.
fn services() -> Vec<(&'static str, String)> {
    let module = |words: &str| format!("auth required MODULE {words}\n{PERMIT}");
    let script = "pam_exec.so quiet SCRATCH/record";
    vec![
        ("postern", UNIX.to_owned()),
        ("smtp", UNIX.to_owned()),
        ("crash", module("crash")),
        ("crash-later", "auth required pam_permit.so\naccount required MODULE crash\n".to_owned()),
        ("exit", module("exit")),
        ("hang", module("hang")),
        ("state", module("state")),
        ("leak", format!("auth required MODULE leak=256\n{UNIX}")),
        ("rename", format!("{UNIX}account required MODULE rename=carol\n")),
        ("say", format!("auth optional MODULE say=hello\n{UNIX}account required MODULE say=later\n")),
        (
            "record",
            format!("auth required {script}\n{UNIX}account required {script}\nsession required {script}\n"),
        ),
        ("maintenance", format!("auth requisite pam_nologin.so file=SCRATCH/closed\n{UNIX}")),
        ("hours", format!("{UNIX}account required pam_time.so conffile=SCRATCH/hours\n")),
        (
            "lock",
            "auth requisite pam_faillock.so dir=SCRATCH/tally deny=3 unlock_time=600 preauth\n\
             auth sufficient pam_unix.so\n\
             auth [default=die] pam_faillock.so dir=SCRATCH/tally deny=3 unlock_time=600 authfail\n\
             account required pam_faillock.so dir=SCRATCH/tally\naccount required pam_unix.so\n"
                .to_owned(),
        ),
    ]
}

fn setup(passdb: &str) -> Setup {
    Setup {
        people: ["bob", "carol", "dave"].map(Person::plain).to_vec(),
        services: services(),
        settings: format!("{QUICK}{SOCKETS}{passdb}{ANYBODY}"),
        fronts: false,
    }
}

const PAM: &str = "[[auth.passdb]]\ndriver = \"pam\"\nservice = \"%{service}\"\n";

/// A line of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn workers_have_an_account_of_their_own_and_no_more_rights_than_they_need() {
    let Some(machine) = Machine::start(&setup(PAM)) else { return };
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"), "{}", machine.log());
    let [front] = machine.processes("auth")[..] else { panic!("one authentication daemon") };
    let [manager] = machine.processes("auth-workers")[..] else { panic!("one manager") };
    let [worker] = machine.processes("auth-worker")[..] else { panic!("one worker") };
    assert_eq!(status(worker, "PPid"), manager.to_string());
    // Who parses what strangers send cannot read hashes; who can read hashes parses nothing of strangers' protocols.
    let uids = |account: &str| [id_of(account); 4].map(|id| id.to_string()).join(" ");
    assert_eq!(status(front, "Uid"), uids("postern-auth"));
    assert!(!status(front, "Groups").split(' ').any(|gid| gid == "42"));
    for pid in [manager, worker] {
        assert_eq!(status(pid, "Uid"), uids("postern-authw"));
        assert!(status(pid, "Groups").split(' ').any(|gid| gid == "42"), "{}", status(pid, "Groups"));
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "CapEff"), "0000000000000000");
        assert_eq!(status(pid, "CapPrm"), "0000000000000000");
        // Not dumpable: what is below /proc is root's, though the process is not.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).expect("mem").uid(), 0);
    }
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).expect("limits");
    for (limit, value) in
        [("Max core file size", "0"), ("Max open files", "1024"), ("Max data size", "1073741824")]
    {
        let line = limits.lines().find(|line| line.starts_with(limit)).expect("a limit");
        assert!(line.split_whitespace().any(|word| word == value), "{line}");
    }
    // Nothing is open in a worker but the log, its channel and its rope.
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{worker}/fd")).expect("descriptors").flatten() {
        let target = fs::read_link(entry.path()).expect("target").display().to_string();
        if target.starts_with("socket:") {
            sockets.insert(target);
        } else {
            assert!(
                ["/dev/null".to_owned(), machine.path("log").display().to_string()].contains(&target),
                "{target}"
            );
        }
    }
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    let environment = fs::read(format!("/proc/{worker}/environ")).expect("environment");
    assert_eq!(environment, b"PATH=/usr/sbin:/usr/bin:/sbin:/bin\0");
}

/// The socket of the pool, below the state folder.
fn pool(machine: &Machine) -> PathBuf {
    machine.path("state/sockets/auth-workers")
}

#[test]
fn only_the_authentication_daemon_may_ask_the_pool() {
    let Some(machine) = Machine::start(&setup(PAM)) else { return };
    let socket = pool(&machine);
    let meta = fs::symlink_metadata(&socket).expect("the pool's socket");
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, id_of("postern-auth")));
    // Root passes every mode; the kernel's word about the peer still counts.
    let mut stranger = UnixStream::connect(&socket).expect("as root");
    stranger.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let _ = stranger.write_all(b"\x0f\0\0\0\x01\x02\x04\0\0\0root");
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let refused = "has no business on the socket `auth-workers`, which is for uid 61000 alone";
    wait_for("a line about it", || machine.log().contains(refused).then_some(()));
    assert!(machine.processes("auth-worker").is_empty());
    // The other daemons' accounts do not get that far.
    if !have(&["setpriv"]) || !Path::new("/usr/bin/python3").is_file() {
        return;
    }
    for account in ["postern-smtp", "postern-imap", "postern-authw", "test-stranger"] {
        let id = id_of(account).to_string();
        let mut command = peer("setpriv", machine.path("").as_path());
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/python3", "-c"]);
        command.arg(format!(
            "import socket\ns = socket.socket(socket.AF_UNIX)\ntry: s.connect({:?})\nexcept PermissionError: print('closed')",
            socket.display().to_string()
        ));
        let out = run(command, "");
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "closed", "{account}: {}", show(&out));
    }
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"));
}

#[test]
fn what_modules_do_to_a_worker_costs_one_login_and_one_line() {
    let Some(machine) = Machine::start(&setup(PAM)) else { return };
    let count = |text: &str| machine.log().matches(text).count();
    for (service, line) in [
        ("crash", "the worker for PAM service `crash` died: signal: 11 (SIGSEGV)"),
        ("crash-later", "the worker for PAM service `crash-later` died: signal: 11 (SIGSEGV)"),
        ("exit", "the worker for PAM service `exit` died: exit status: 0"),
    ] {
        for round in 1..=2 {
            let answer = machine.plain("bob", RIGHT, service);
            assert!(answer.contains("\tcode=temp_fail\t"), "{service}: {answer}");
            assert_eq!(count(line), round, "{service}\n{}", machine.log());
            assert!(machine.plain("carol", RIGHT, "postern").starts_with("OK\t1\t"));
        }
        assert_eq!(machine.mux("bob", RIGHT, service), "", "{service}");
    }
    assert_eq!(count("SIGSEGV"), 6, "{}", machine.log());
    // One that hangs is killed when its client would be gone; others are not kept waiting.
    let mut hanging = Login::connect(&machine.socket("client"));
    for id in 1..=20 {
        hanging.ask(id, "bob", RIGHT, "hang", "192.0.2.9");
    }
    wait_for("hanging workers", || (machine.processes("auth-worker").len() >= 6).then_some(()));
    let began = Instant::now();
    assert!(machine.plain("dave", RIGHT, "postern").starts_with("OK\t1\t"), "{}", machine.log());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for _ in 1..=20 {
        assert!(hanging.line().contains("\tcode=temp_fail\t"));
    }
    assert!(count("PAM service `hang` did not answer within") > 0, "{}", machine.log());
    // A module that changes signals, umask, folder and environment changes its own process only.
    assert!(machine.plain("bob", RIGHT, "state").starts_with("OK\t1\t"), "{}", machine.log());
    assert!(machine.plain("bob", "wrong", "postern").starts_with("FAIL\t1\t"));
    wait_for("the end of all that hang", || (machine.processes("auth-worker").len() <= 3).then_some(()));
    // The manager has not been replaced, and the front neither.
    assert!(!machine.log().contains("ended unexpectedly"), "{}", machine.log());
}

#[test]
fn workers_go_with_whoever_they_belong_to() {
    let Some(machine) = Machine::start(&setup(PAM)) else { return };
    for victim in ["auth", "auth-workers", "auth-worker"] {
        let mut hanging = Login::connect(&machine.socket("client"));
        hanging.ask(1, "bob", RIGHT, "hang", "192.0.2.9");
        wait_for("a hanging worker", || (!machine.processes("auth-worker").is_empty()).then_some(()));
        let workers = machine.processes("auth-worker");
        let victims = machine.processes(victim);
        signal(victims[0], Signal::SIGKILL);
        wait_for_end(END_LIMIT, victim, &workers);
        drop(hanging);
        wait_for("a login after the crash", || {
            let answer = std::panic::catch_unwind(|| machine.plain("carol", RIGHT, "postern")).ok()?;
            answer.starts_with("OK\t1\t").then_some(())
        });
    }
    // And all with the supervisor.
    let all = descendants(machine.pid());
    signal(machine.pid(), Signal::SIGKILL);
    wait_for_end(END_LIMIT, "the supervisor", &all);
}

#[test]
fn every_door_has_its_own_service_and_modules_learn_who_asks() {
    let settings =
        format!("{QUICK}{SOCKETS}[auth.cache]\nsize = \"0\"\n{PAM}session = true\nsetcred = true\n{ANYBODY}");
    let mut services = services();
    let (_, record) = services.iter().find(|(name, _)| *name == "record").cloned().expect("record");
    for name in ["submission", "imap", "pop3"] {
        services.retain(|(known, _)| *known != name);
        services.push((name, record.clone()));
    }
    let setup = Setup { people: vec![Person::plain("bob")], services, settings, fronts: true };
    let Some(mut machine) = Machine::prepare(&setup) else { return };
    let script = format!(
        "#!/bin/sh\necho \"$PAM_TYPE $PAM_SERVICE $PAM_USER $PAM_RUSER $PAM_RHOST $PAM_TTY\" >>{}\n",
        machine.path("seen").display()
    );
    fs::write(machine.path("record"), script).expect("script");
    fs::set_permissions(machine.path("record"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    fs::write(machine.path("seen"), "").expect("file");
    fs::set_permissions(machine.path("seen"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("mode");
    if !machine.launch(&[]) {
        return;
    }
    let answer = machine.plain("bob", RIGHT, "record");
    assert!(answer.starts_with("OK\t1\t"), "{answer}\n{}", machine.log());
    bounded(async {
        for (door, let_in) in [("smtp", "235"), ("imap", "a OK"), ("pop3", "+OK")] {
            let answer = ask_at(&machine, door, "bob", RIGHT).await;
            assert!(answer.starts_with(let_in), "{door}: {answer}\n{}", machine.log());
        }
    });
    let seen = fs::read_to_string(machine.path("seen")).expect("seen");
    for (service, host) in
        [("record", "192.0.2.1"), ("submission", "127.0.0.1"), ("imap", "127.0.0.1"), ("pop3", "127.0.0.1")]
    {
        for kind in ["auth", "account", "open_session", "close_session"] {
            let line = format!("{kind} {service} bob bob {host} {service}\n");
            assert!(seen.contains(&line), "{line}: {seen}");
        }
    }
}

#[test]
fn a_module_may_rename_the_user_and_speak_only_where_it_is_asked_to() {
    let quiet = Machine::start(&setup(PAM));
    let Some(quiet) = quiet else { return };
    let answer = quiet.plain("bob", RIGHT, "rename");
    assert!(answer.starts_with("OK\t1\tuser=carol@mail.example.test"), "{answer}");
    let answer = quiet.plain("bob", "wrong", "say");
    assert!(answer.ends_with("\treason=Invalid user name or password"), "{answer}");
    drop(quiet);
    let Some(loud) = Machine::start(&setup(&format!("{PAM}show_messages = true\n"))) else { return };
    let answer = loud.plain("bob", "wrong", "say");
    assert!(answer.ends_with("\treason=hello"), "{answer}");
    // Nothing is said to who is let in, and nothing is made up for modules that are silent.
    let answer = loud.plain("bob", RIGHT, "say");
    assert!(answer.starts_with("OK\t1\t") && !answer.contains("hello"), "{answer}");
    let answer = loud.plain("bob", "wrong", "postern");
    assert!(answer.ends_with("\treason=Invalid user name or password"), "{answer}");
}

#[test]
fn faillock_locks_in_a_folder_of_the_workers() {
    let setup = setup(&format!("[auth.cache]\nsize = \"0\"\n{PAM}show_messages = true\n"));
    let Some(mut machine) = Machine::prepare(&setup) else { return };
    let tally = machine.path("tally");
    fs::create_dir(&tally).expect("folder");
    let id = id_of("postern-authw");
    std::os::unix::fs::chown(&tally, Some(id), Some(id)).expect("owner");
    if !machine.launch(&[]) {
        return;
    }
    assert!(machine.plain("bob", RIGHT, "lock").starts_with("OK\t1\t"), "{}", machine.log());
    for number in 0..3 {
        let answer = machine.plain("bob", &format!("guess {number}"), "lock");
        assert!(answer.starts_with("FAIL\t1\t") && !answer.contains("temp_fail"), "{answer}");
    }
    // Now the right one is refused too, and the one who is locked out is told why: the settings ask for it.
    let answer = machine.plain("bob", RIGHT, "lock");
    assert!(answer.starts_with("FAIL\t1\t") && answer.contains("locked"), "{answer}\n{}", machine.log());
    assert!(machine.plain("carol", RIGHT, "lock").starts_with("OK\t1\t"));
    let meta = fs::metadata(tally.join("bob")).expect("a tally");
    assert_eq!(meta.uid(), id);
    // `faillock --reset` lets him in again.
    let Some(mut command) = machine.command("faillock") else { return };
    command.arg("--dir").arg(&tally).args(["--user", "bob", "--reset"]);
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));
    assert!(machine.plain("bob", RIGHT, "lock").starts_with("OK\t1\t"), "{}", machine.log());
}

#[test]
fn maintenance_and_hours_are_modules_business() {
    let setup = setup(&format!("[auth.cache]\nsize = \"0\"\n{PAM}show_messages = true\n"));
    let Some(mut machine) = Machine::prepare(&setup) else { return };
    // Bob never, everybody else always.
    fs::write(machine.path("hours"), "*;*;bob;!Al0000-2400\n*;*;!bob;Al0000-2400\n").expect("hours");
    if !machine.launch(&[]) {
        return;
    }
    let refused = "\treason=Invalid user name or password";
    // pam_nologin: open, closed for everybody with the words of the file, and open again at once.
    assert!(machine.plain("bob", RIGHT, "maintenance").starts_with("OK\t1\t"), "{}", machine.log());
    fs::write(machine.path("closed"), "the mail server is being moved\n").expect("file");
    for password in [RIGHT, "wrong"] {
        let answer = machine.plain("bob", password, "maintenance");
        let right = answer.starts_with("FAIL\t1\t") && answer.contains("the mail server is being moved");
        assert!(right && !answer.contains("temp_fail"), "{password}: {answer}\n{}", machine.log());
    }
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"), "another service is open");
    fs::remove_file(machine.path("closed")).expect("file");
    assert!(machine.plain("bob", RIGHT, "maintenance").starts_with("OK\t1\t"), "{}", machine.log());
    // pam_time: the right password is not enough, and a wrong one does not tell at which hours it would be right.
    let answer = machine.plain("bob", RIGHT, "hours");
    assert!(answer.contains("\tcode=user_disabled\t"), "{answer}\n{}", machine.log());
    let answer = machine.plain("bob", "wrong", "hours");
    assert!(answer.ends_with(refused), "{answer}");
    assert!(machine.plain("carol", RIGHT, "hours").starts_with("OK\t1\t"), "{}", machine.log());
    fs::write(machine.path("hours"), "*;*;*;Al0000-2400\n").expect("hours");
    assert!(machine.plain("bob", RIGHT, "hours").starts_with("OK\t1\t"), "{}", machine.log());
}

/// Logins through the leaking module; the long form is 10,000.
fn soak_logins() -> String {
    std::env::var("POSTERN_TEST_LOGINS").unwrap_or_else(|_| "2000".to_owned())
}

#[test]
fn recycling_keeps_a_leaking_module_small() {
    let soak = Path::new(env!("CARGO_BIN_EXE_postern")).parent().expect("folder").join("examples/soak");
    if !soak.exists() {
        return skip("the soak is not built; run all tests, or `cargo build --example soak`");
    }
    let extra = "[auth.worker]\ncount = 4\nmax_requests = 50\n";
    let Some(machine) = Machine::start(&setup(&format!("{extra}{PAM}"))) else { return };
    fs::write(machine.path("password"), RIGHT).expect("password");
    let mut command = Command::new(soak);
    command.arg("--state-dir").arg(machine.path("state")).arg("--client").arg(machine.socket("client"));
    command.args(["--user", "bob", "--service", "leak", "--logins", &soak_logins()]);
    command.arg("--password-file").arg(machine.path("password"));
    let out = run(command, "");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.ends_with("flat\n"), "{}\n{}", show(&out), machine.log());
    println!("{text}");
    // 50 logins of 256 KiB each and what the program itself needs; without recycling it would be 125 MiB each.
    for worker in machine.processes("auth-worker") {
        assert!(memory(worker) < 40 * 1024, "a worker grew to {} KiB", memory(worker));
    }
    assert!(machine.processes("auth-worker").len() <= 4);
}

/// Failed logins a second, and for how long.
const STORM: (u32, u32) = (150, 4);

#[test]
fn a_pool_of_eight_answers_the_right_password_during_a_storm_of_wrong_ones() {
    let extra = "[auth.cache]\nsize = \"0\"\n";
    for passdb in [PAM, "[[auth.passdb]]\ndriver = \"shadow\"\n"] {
        let Some(machine) = Machine::start(&setup(&format!("{extra}{passdb}"))) else { return };
        let socket = machine.socket("client");
        let (rate, seconds) = STORM;
        std::thread::scope(|scope| {
            let storm = scope.spawn(|| {
                let mut client = Login::connect(&socket);
                let began = Instant::now();
                for number in 1..=rate * seconds {
                    // Many addresses and many users, known and not: no single penalty holds this up.
                    let user = ["bob", "carol", "dave", "nobody-here"][number as usize % 4];
                    let address = format!("198.51.{}.{}", number % 40, number % 250 + 1);
                    client.ask(number, user, &format!("guess {number}"), "smtp", &address);
                    // A storm of this rate, not one of as many as fit: only so is its length known.
                    let due = began + Duration::from_secs(1) * number / rate;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                for _ in 1..=rate * seconds {
                    assert!(client.line().starts_with("FAIL\t"));
                }
            });
            let mut slowest = Duration::ZERO;
            let mut right = 0;
            while !storm.is_finished() {
                let began = Instant::now();
                let answer = machine.plain("bob", RIGHT, "smtp");
                assert!(answer.starts_with("OK\t1\t"), "{answer}\n{}", machine.log());
                slowest = slowest.max(began.elapsed());
                right += 1;
            }
            // The deadline of the listener.
            assert!(slowest < Duration::from_secs(4), "{slowest:?}");
            println!(
                "{right} right logins beside {} wrong ones, the slowest after {slowest:?}",
                rate * seconds
            );
            storm.join().expect("the storm");
        });
    }
}

#[test]
fn workers_as_root_only_when_the_settings_say_so_and_with_a_warning() {
    let setup = setup(&format!("[auth.worker]\nrun_as = \"root\"\n{PAM}"));
    let Some(machine) = Machine::start(&setup) else { return };
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"), "{}", machine.log());
    let log = machine.log();
    assert!(log.contains("auth.worker.run_as is root") && log.contains("has the machine"), "{log}");
    let [worker] = machine.processes("auth-worker")[..] else { panic!("one worker") };
    assert_eq!(status(worker, "Uid"), "0 0 0 0");
    let [front] = machine.processes("auth")[..] else { panic!("one authentication daemon") };
    assert!(!status(front, "Uid").split(' ').any(|uid| uid == "0"));
    assert!(machine.plain("bob", "wrong", "postern").starts_with("FAIL\t1\t"));
}

#[test]
fn one_account_for_all_but_the_workers() {
    let setup = setup(PAM);
    let Some(mut machine) = Machine::prepare(&setup) else { return };
    let file = machine.path("postern.toml");
    let text = fs::read_to_string(&file).expect("settings");
    // Keys of the file's own table come first.
    let text = text.replacen("version = 1\n", "version = 1\nrun_as = \"nobody\"\n", 1)
        + "[auth.worker]\nrun_as = \"postern-authw\"\n";
    fs::write(&file, text).expect("settings");
    if !machine.launch(&[]) {
        return;
    }
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"), "{}", machine.log());
    let [front] = machine.processes("auth")[..] else { panic!("one authentication daemon") };
    let [worker] = machine.processes("auth-worker")[..] else { panic!("one worker") };
    assert_eq!(status(front, "Uid"), "65534 65534 65534 65534");
    assert_eq!(status(worker, "Uid").split(' ').next(), Some(id_of("postern-authw").to_string().as_str()));
    // A service without a file is PAM's `other`, which an administrator rarely wants: said once.
    for _ in 0..2 {
        assert!(machine.plain("bob", RIGHT, "no-such").starts_with("FAIL\t1\t"));
    }
    assert_eq!(machine.log().matches("there is no PAM file of this name").count(), 1, "{}", machine.log());
}

#[test]
fn a_reload_changes_the_pool_and_loses_no_login() {
    let Some(machine) = Machine::start(&setup(&format!("[auth.worker]\ncount = 2\n{PAM}"))) else { return };
    let before = [machine.processes("auth"), machine.processes("auth-workers")].concat();
    let file = machine.path("postern.toml");
    let text = fs::read_to_string(&file).expect("settings");
    std::thread::scope(|scope| {
        let logins = scope.spawn(|| {
            for number in 0..100 {
                let mut client = Login::connect(&machine.socket("client"));
                client.ask(1, "bob", RIGHT, "postern", &format!("192.0.2.{}", number % 200 + 1));
                let answer = client.line();
                assert!(answer.starts_with("OK\t1\t"), "{answer}\n{}", machine.log());
            }
        });
        let changes = [
            ("count = 2", "count = 6"),
            ("driver = \"pam\"\nservice = \"%{service}\"\n", "driver = \"shadow\"\n"),
            ("count = 2", "count = 1"),
        ];
        for (from, to) in changes {
            assert!(text.contains(from), "{text}");
            fs::write(&file, text.replace(from, to)).expect("settings");
            let mut command = crate::support::postern();
            command.args(["reload", "--config"]).arg(&file);
            let out = run(command, "");
            assert!(out.status.success(), "{}\n{}", show(&out), machine.log());
        }
        logins.join().expect("the logins");
    });
    assert_eq!(before, [machine.processes("auth"), machine.processes("auth-workers")].concat());
    wait_for("one worker", || (machine.processes("auth-worker").len() <= 1).then_some(()));
}

/// What an authentication daemon that was taken over could try at the pool's socket: connections without end, records
/// that make no sense, every question there is. Prints how many connections were turned away and all it was told.
const TAKEN_OVER: &str = r#"
import socket, struct, sys
text = lambda t: struct.pack("<I", len(t)) + t
record = lambda body: struct.pack("<I", len(body)) + body
verify = lambda kind, service, user, password: record(
    b"\1\1" + bytes([kind, 7, 15]) + struct.pack("<I", 0) + text(service) + text(user) + text(password) + text(b"") + text(b""))
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]); return s
def heard(s):
    said = b""
    try:
        while True:
            part = s.recv(65536)
            if not part: break
            said += part
    except OSError: pass
    return said
held = [connect() for _ in range(60)]
away = 0
# The first eight have places; a few wait a moment for one.
for s in held[8:]:
    s.settimeout(5)
    try: away += b"busy" in s.recv(200)
    except OSError: pass
told = b""
for s in held[:10]:
    for question in (record(b"\1\2" + text(b"bob")), record(b"\1\3" + struct.pack("<I", 0)), record(b"\1\2" + text(b"root")),
                     verify(2, b"", b"bob", b"x"), verify(3, b"", b"bob", b"x"), verify(1, b"../su", b"root", b"x"),
                     verify(1, b"postern", b"bob\0", b"x"), verify(2, b"", b"", b"")):
        try: s.sendall(question)
        except OSError: pass
for number, s in enumerate(held[10:20]):
    try: s.sendall([b"\xff" * 5000, record(b"\2\1"), record(b""), struct.pack("<I", 1 << 30), b"\0"][number % 5])
    except OSError: pass
for s in held[:20]:
    s.settimeout(2); s.shutdown(socket.SHUT_WR); told += heard(s)
print(away, told)
"#;

#[test]
fn an_authentication_daemon_that_was_taken_over_gets_no_hash_and_no_more_workers() {
    if !have(&["setpriv"]) || !Path::new("/usr/bin/python3").is_file() {
        return skip("no /usr/bin/python3");
    }
    let Some(machine) = Machine::start(&setup(&format!("[auth.worker]\ncount = 4\n{PAM}"))) else { return };
    let [manager] = machine.processes("auth-workers")[..] else { panic!("one manager") };
    let id = id_of("postern-auth").to_string();
    let mut command = peer("setpriv", machine.path("").as_path());
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/python3", "-c", TAKEN_OVER]);
    let socket = pool(&machine);
    let out = std::thread::scope(|scope| {
        let attack = scope.spawn(move || {
            run(
                {
                    command.arg(socket);
                    command
                },
                "",
            )
        });
        wait_within(
            Duration::from_secs(60),
            || "the end of the attack".to_owned(),
            || {
                assert!(machine.processes("auth-worker").len() <= 8);
                attack.is_finished().then_some(())
            },
        );
        attack.join().expect("the attack")
    });
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let away: u32 = said
        .split(' ')
        .next()
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("{}", show(&out)));
    assert_eq!(away, 52, "{}", show(&out));
    // It was told uids and names, as any process may ask NSS; no hash in any form.
    assert!(said.contains("/home/bob") && !said.contains("$y$") && !said.contains("LCO3SRoF"), "{said}");
    assert_eq!(machine.processes("auth-workers"), [manager], "{}", machine.log());
    wait_for("the end of the workers", || machine.processes("auth-worker").is_empty().then_some(()));
    assert!(machine.plain("bob", RIGHT, "postern").starts_with("OK\t1\t"), "{}", machine.log());
}
