//! PAM against real modules, with accounts and services of its own.
//!
//! The test starts itself again inside a private mount namespace, where `/etc/pam.d`, `/etc/passwd`, `/etc/shadow` and
//! `/etc/group` are replaced; nothing outside sees them. That needs root; without, the test says so and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use system_auth::{
    PamPhase, PamReport, PamRequest, PamText, PamVerdict, PasswordField, PasswordState, authenticate, crypt,
    service_exists, shadow,
};

/// Set inside the namespace; holds the scratch folder.
const INSIDE: &str = "SYSTEM_AUTH_TEST_SCRATCH";
const RIGHT: &[u8] = "pa$$wörd-1".as_bytes();

#[test]
fn real_modules_in_a_private_namespace() {
    if let Some(scratch) = std::env::var_os(INSIDE) {
        let scratch = PathBuf::from(scratch);
        unix_account_states(&scratch);
        every_result_of_both_phases();
        items_and_sessions(&scratch);
        texts_and_prompts();
        broken_configurations();
        faillock_locks(&scratch);
        times_and_files();
        modules_of_the_test(&scratch);
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path());
    let mounts = "mount --bind \"$0/pam.d\" /etc/pam.d && for f in passwd shadow group; do \
                  mount --bind \"$0/$f\" \"/etc/$f\" || exit 99; done && exec \"$@\"";
    let Ok(output) = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", mounts])
        .arg(scratch.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "real_modules_in_a_private_namespace", "--nocapture"])
        .env(INSIDE, scratch.path())
        .output()
    else {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        eprintln!("SKIPPED: unshare is not installed");
        return;
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !text.contains("running 1 test") {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        eprintln!("SKIPPED: needs root for a private mount namespace: {}", text.trim());
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn today() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400).unwrap()
}

/// Account, shadow fields behind the name (`HASH` is the hash of the right password), and what each door says to
/// the right password: PAM's verdict, and the native evaluation (`None`: disabled by the field).
fn accounts() -> Vec<(&'static str, String, PamVerdict, Option<PasswordState>)> {
    let day = today();
    let aged = |changed: i64, rest: &str| format!("HASH:{}:0:{rest}:", day - changed);
    vec![
        ("good", aged(1, "99999:7::"), PamVerdict::Granted, Some(PasswordState::Valid)),
        ("noage", "HASH:::::::".to_owned(), PamVerdict::Granted, Some(PasswordState::Valid)),
        ("soon", aged(8, "10:7::"), PamVerdict::Granted, Some(PasswordState::ChangeSoon(2))),
        ("locked", format!("!HASH:{day}:0:99999:7:::"), PamVerdict::Refused, None),
        ("star", format!("*:{day}:0:99999:7:::"), PamVerdict::Refused, None),
        ("empty", format!(":{day}:0:99999:7:::"), PamVerdict::Refused, None),
        (
            "change",
            "HASH:0:0:99999:7:::".to_owned(),
            PamVerdict::MustChangePassword,
            Some(PasswordState::MustChange),
        ),
        ("aged", aged(11, "10:7::"), PamVerdict::MustChangePassword, Some(PasswordState::MustChange)),
        ("grace", aged(15, "10:7:5:"), PamVerdict::MustChangePassword, Some(PasswordState::MustChange)),
        ("inactive", aged(16, "10:7:5:"), PamVerdict::PasswordExpired, Some(PasswordState::Inactive)),
        (
            "expired",
            format!("HASH:{day}:0:99999:7::{day}:"),
            PamVerdict::AccountExpired,
            Some(PasswordState::AccountExpired),
        ),
        (
            "tomorrow",
            format!("HASH:{day}:0:99999:7::{}:", day + 1),
            PamVerdict::Granted,
            Some(PasswordState::Valid),
        ),
    ]
}

const UNIX: &str = "auth required pam_unix.so\naccount required pam_unix.so\n";
const PERMIT: &str =
    "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n";

fn prepare(scratch: &Path) {
    let folder = scratch.join("pam.d");
    fs::create_dir(&folder).unwrap();
    let script = scratch.join("record");
    let record = format!(
        "#!/bin/sh\necho \"$PAM_TYPE $PAM_SERVICE $PAM_USER $PAM_RUSER $PAM_RHOST $PAM_TTY\" >>{}/seen\n",
        scratch.display()
    );
    fs::write(&script, record).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let exec = format!("pam_exec.so quiet {}", script.display());
    let faillock = format!("pam_faillock.so dir={}/tally deny=3 unlock_time=600", scratch.display());
    for (service, text) in [
        ("unix", UNIX.to_owned()),
        ("unix-null", UNIX.replace("pam_unix.so", "pam_unix.so nullok")),
        ("permit", PERMIT.to_owned()),
        ("other", "auth required pam_deny.so\naccount required pam_deny.so\n".to_owned()),
        ("nomodule", "auth required pam_no_such_module.so\naccount required pam_permit.so\n".to_owned()),
        ("garbage", "this is not a pam file\n".to_owned()),
        ("noaccount", "auth required pam_permit.so\n".to_owned()),
        (
            "execfail",
            "auth required pam_exec.so quiet /bin/false\naccount required pam_permit.so\n".to_owned(),
        ),
        ("always", format!("{UNIX}account required pam_time.so conffile={}/always\n", scratch.display())),
        ("never", format!("{UNIX}account required pam_time.so conffile={}/never\n", scratch.display())),
        (
            "maintenance",
            format!(
                "account requisite pam_nologin.so file={0}/nologin\nauth requisite pam_nologin.so file={0}/nologin\n{UNIX}",
                scratch.display()
            ),
        ),
        (
            "no-maintenance",
            format!("auth requisite pam_nologin.so file={}/nothing-here\n{UNIX}", scratch.display()),
        ),
        ("echo", format!("auth optional pam_echo.so hello %u\n{UNIX}")),
        (
            "record",
            format!("{PERMIT}auth required {exec}\naccount required {exec}\nsession required {exec}\n"),
        ),
        (
            "lock",
            format!(
                "auth requisite {faillock} preauth\nauth sufficient pam_unix.so\nauth [default=die] {faillock} authfail\n\
                 account required {faillock}\naccount required pam_unix.so\n"
            ),
        ),
    ] {
        fs::write(folder.join(service), text).unwrap();
    }
    fs::write(scratch.join("always"), "*;*;*;Al0000-2400\n").unwrap();
    fs::write(scratch.join("never"), "*;*;*;!Al0000-2400\n").unwrap();
    fs::write(scratch.join("nologin"), "the mail server is being moved\n").unwrap();
    for (service, auth, account, _) in results() {
        let text =
            format!("auth required pam_debug.so auth={auth}\naccount required pam_debug.so acct={account}\n");
        fs::write(folder.join(service), text).unwrap();
    }

    let hash = String::from_utf8(crypt(RIGHT, b"$6$rounds=1000$abcdefgh$").unwrap()).unwrap();
    let system = fs::read_to_string("/etc/passwd").unwrap();
    let root: String =
        system.lines().filter(|line| line.starts_with("root:")).map(|line| line.to_owned() + "\n").collect();
    let (mut passwd, mut shadow) = (root, "root:*:1:0:99999:7:::\n".to_owned());
    for (number, (name, fields, _, _)) in accounts().into_iter().enumerate() {
        passwd += &format!("{name}:x:{0}:{0}::/nonexistent:/bin/sh\n", 30_000 + number);
        shadow += &format!("{name}:{}\n", fields.replace("HASH", &hash));
    }
    fs::write(scratch.join("passwd"), passwd).unwrap();
    fs::write(scratch.join("shadow"), shadow).unwrap();
    fs::set_permissions(scratch.join("shadow"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(scratch.join("group"), "root:x:0:\n").unwrap();
    if compile(&scratch.join("module.so")) {
        let module = scratch.join("module.so");
        for (service, words, account) in MODULES {
            let line = |words: &str| format!("required {} {words}\n", module.display());
            fs::write(folder.join(service), format!("auth {}account {}", line(words), line(account)))
                .unwrap();
        }
    }
}

/// Service, what the test's module does when authenticating, and in the account phase.
const MODULES: [(&str, &str, &str); 8] = [
    ("module-many", "many=200", ""),
    ("module-rename", "rename=noage", ""),
    ("module-impossible", "rename=a:b", ""),
    ("module-late-rename", "", "rename=soon"),
    ("module-delay", "delay refuse", ""),
    ("module-say", "say=first say=second refuse", ""),
    ("module-say-later", "say=first", "say=later refuse"),
    ("module-state", "state", ""),
];

/// Compiles the module that misbehaves; `false` (and a skip) without a compiler.
fn compile(to: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module.c");
    let status = Command::new("gcc")
        .args(["-Wall", "-shared", "-fPIC", "-o"])
        .arg(to)
        .arg(source)
        .arg("-lpam")
        .status();
    let compiled = status.is_ok_and(|status| status.success());
    if !compiled {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        eprintln!("SKIPPED in part: gcc is not installed");
    }
    compiled
}

fn ask(service: &str, user: &str, password: &[u8]) -> PamReport {
    authenticate(&PamRequest {
        service,
        user,
        password,
        rhost: Some("192.0.2.7"),
        tty: Some("imap"),
        ruser: Some(user),
        setcred: false,
        session: false,
    })
}

fn unix_account_states(_scratch: &Path) {
    for (name, _, verdict, state) in accounts() {
        let report = ask("unix", name, RIGHT);
        assert_eq!(report.verdict, verdict, "{name}: {report:?}");
        // A wrong password never learns more than "no", whatever the account's state.
        let started = Instant::now();
        let report = ask("unix", name, b"wrong");
        assert_eq!(report.verdict, PamVerdict::Refused, "{name}: {report:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "pam_unix was allowed to sleep");
        // Empty passwords do not get in, not even with nullok.
        for service in ["unix", "unix-null"] {
            assert_eq!(ask(service, name, b"").verdict, PamVerdict::Refused, "{service} {name}");
        }

        let entry = shadow(name).unwrap().unwrap();
        let native = match PasswordField::of(entry.hash.expose()) {
            PasswordField::Hash => Some(entry.state_on(today())),
            PasswordField::Disabled | PasswordField::Shadowed => None,
        };
        assert_eq!(native, state, "{name}");
        if state.is_some() {
            assert_eq!(crypt(RIGHT, entry.hash.expose()).as_deref(), Some(entry.hash.expose()));
        }
    }
    assert_eq!(ask("unix", "stranger", RIGHT).verdict, PamVerdict::UnknownUser);
    assert!(shadow("stranger").unwrap().is_none());
    let granted = ask("unix", "good", RIGHT);
    assert_eq!((granted.phase, granted.user.as_deref()), (PamPhase::Done, Some("good")));
}

/// Service, result of the authentication, result of the account phase, verdict.
fn results() -> Vec<(String, &'static str, &'static str, PamVerdict)> {
    use PamVerdict::{
        AccountDenied, AccountExpired, Granted, MustChangePassword, PasswordExpired, Refused, Temporary,
        UnknownUser,
    };
    [
        ("success", "success", Granted),
        ("success", "acct_expired", AccountExpired),
        ("success", "perm_denied", AccountDenied),
        ("success", "auth_err", AccountDenied),
        ("success", "maxtries", AccountDenied),
        ("success", "user_unknown", UnknownUser),
        ("success", "new_authtok_reqd", MustChangePassword),
        ("success", "authtok_expired", PasswordExpired),
        ("success", "authinfo_unavail", Temporary),
        ("success", "service_err", Temporary),
        ("success", "system_err", Temporary),
        ("success", "abort", Temporary),
        ("success", "module_unknown", Temporary),
        ("success", "cred_err", Temporary),
        ("auth_err", "success", Refused),
        ("auth_err", "acct_expired", Refused),
        ("perm_denied", "success", Refused),
        ("acct_expired", "success", Refused),
        ("authtok_expired", "success", Refused),
        ("maxtries", "success", Refused),
        ("user_unknown", "success", UnknownUser),
        ("authinfo_unavail", "success", Temporary),
        ("cred_insufficient", "success", Temporary),
        ("system_err", "success", Temporary),
        ("service_err", "success", Temporary),
        ("open_err", "success", Temporary),
        ("symbol_err", "success", Temporary),
        ("abort", "success", Temporary),
        ("conv_err", "success", Temporary),
        ("buf_err", "success", Temporary),
    ]
    .into_iter()
    .enumerate()
    .map(|(at, (auth, account, verdict))| (format!("result{at}"), auth, account, verdict))
    .collect()
}

fn every_result_of_both_phases() {
    for (service, auth, account, verdict) in results() {
        let report = ask(&service, "good", RIGHT);
        assert_eq!(report.verdict, verdict, "auth={auth} acct={account}: {report:?}");
        let phase = if verdict == PamVerdict::Granted {
            PamPhase::Done
        } else if auth == "success" {
            PamPhase::Account
        } else {
            PamPhase::Authenticate
        };
        assert_eq!(report.phase, phase, "auth={auth} acct={account}: {report:?}");
    }
}

fn items_and_sessions(scratch: &Path) {
    let report = authenticate(&PamRequest {
        service: "record",
        user: "good",
        password: RIGHT,
        rhost: Some("192.0.2.7"),
        tty: Some("smtp"),
        ruser: Some("remote"),
        setcred: false,
        session: true,
    });
    assert_eq!(report.verdict, PamVerdict::Granted, "{report:?}");
    let seen = fs::read_to_string(scratch.join("seen")).unwrap();
    for kind in ["auth", "account", "open_session", "close_session"] {
        let line = format!("{kind} record good remote 192.0.2.7 smtp\n");
        assert!(seen.contains(&line), "{kind}: {seen}");
    }
    let report = authenticate(&PamRequest {
        service: "permit",
        user: "good",
        password: RIGHT,
        rhost: None,
        tty: None,
        ruser: None,
        setcred: true,
        session: false,
    });
    assert_eq!(report.verdict, PamVerdict::Granted, "{report:?}");
}

fn texts_and_prompts() {
    let report = ask("echo", "good", RIGHT);
    assert_eq!(report.verdict, PamVerdict::Granted, "{report:?}");
    let has = |wanted: &dyn Fn(&PamText) -> bool| report.texts.iter().any(wanted);
    assert!(has(&|text| matches!(text, PamText::Info(text) if text.contains("hello good"))), "{report:?}");
    assert!(has(&|text| matches!(text, PamText::Prompt(text) if text.contains("assword"))), "{report:?}");
    // The warning of an ageing password arrives as a text.
    let report = ask("unix", "soon", RIGHT);
    assert!(report.texts.iter().any(|text| !matches!(text, PamText::Prompt(_))), "{report:?}");
}

fn broken_configurations() {
    for service in ["nomodule", "execfail"] {
        let report = ask(service, "good", RIGHT);
        assert_eq!(report.verdict, PamVerdict::Temporary, "{service}: {report:?}");
    }
    // libpam gives PERM_DENIED for a line it cannot read, as pam_access does for a real "no".
    assert_eq!(ask("garbage", "good", RIGHT).verdict, PamVerdict::Refused);
    // No account lines: libpam takes them from `other`, which denies.
    assert_ne!(ask("noaccount", "good", RIGHT).verdict, PamVerdict::Granted);
    // No such service: libpam uses `other` without a word; the daemon can ask beforehand.
    assert!(!service_exists("nosuch") && service_exists("unix"));
    assert_eq!(ask("nosuch", "good", RIGHT).verdict, PamVerdict::Refused);
}

fn faillock_locks(scratch: &Path) {
    fs::create_dir(scratch.join("tally")).unwrap();
    assert_eq!(ask("lock", "good", RIGHT).verdict, PamVerdict::Granted);
    for _ in 0..3 {
        assert_eq!(ask("lock", "good", b"wrong").verdict, PamVerdict::Refused);
    }
    assert_eq!(ask("lock", "good", RIGHT).verdict, PamVerdict::Refused);
    assert_eq!(ask("lock", "noage", RIGHT).verdict, PamVerdict::Granted);
}

fn times_and_files() {
    for (service, verdict) in [
        ("always", PamVerdict::Granted),
        ("never", PamVerdict::AccountDenied),
        ("maintenance", PamVerdict::Refused),
        ("no-maintenance", PamVerdict::Granted),
    ] {
        let report = ask(service, "good", RIGHT);
        assert_eq!(report.verdict, verdict, "{service}: {report:?}");
        // Who does not know the password does not learn at which hours it would work.
        assert_eq!(ask(service, "good", b"wrong").verdict, PamVerdict::Refused, "{service}");
    }
    let text = PamText::Error("the mail server is being moved ".to_owned());
    assert!(ask("maintenance", "good", RIGHT).texts.contains(&text));
}

fn modules_of_the_test(scratch: &Path) {
    if !scratch.join("module.so").exists() {
        return;
    }
    let user = |service: &str| {
        let report = ask(service, "good", b"summersun");
        (report.verdict, report.user)
    };
    // Many messages in one conversation: every prompt gets its answer, every text is heard (up to a bound).
    assert_eq!(user("module-many"), (PamVerdict::Granted, Some("good".to_owned())));
    let report = ask("module-many", "good", b"wrong");
    assert_eq!(report.verdict, PamVerdict::Refused);
    assert_eq!(report.texts.len(), 32);
    // The user is whom the modules say, in whatever phase they say it; but nobody impossible.
    assert_eq!(user("module-rename"), (PamVerdict::Granted, Some("noage".to_owned())));
    assert_eq!(user("module-late-rename"), (PamVerdict::Granted, Some("soon".to_owned())));
    assert_eq!(user("module-impossible"), (PamVerdict::Temporary, None));
    // A delay that a module asks for is the daemon's to keep.
    let began = Instant::now();
    assert_eq!(user("module-delay").0, PamVerdict::Refused);
    assert!(began.elapsed() < Duration::from_secs(10));
    let said = |service: &str| ask(service, "good", RIGHT).texts;
    let info = |text: &str| PamText::Info(text.to_owned());
    assert_eq!(said("module-say"), [info("first"), info("second")]);
    assert_eq!(said("module-say-later"), [info("first"), info("later")]);
    assert_eq!(user("module-say-later").0, PamVerdict::AccountDenied);
    // Last: from here on signals are blocked and the folder is another.
    assert_eq!(user("module-state").0, PamVerdict::Granted);
    assert_eq!(ask("unix", "good", RIGHT).verdict, PamVerdict::Granted);
}
