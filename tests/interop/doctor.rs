//! `postern doctor` on a machine that is well, and on one broken in every way that costs people an evening.
//!
//! Each test breaks one thing beside a running Postern and Postfix's own files, and wants the cause as the first thing
//! to do. Where the advice is a command that can be typed here, it is typed, and everything must be well again.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::private::{Gate, RUN_AS, account, folder, scratch};
use crate::reference::{certificates, free_port};
use crate::support::{
    HOSTNAME, have, is_root, peer, postern, run, show, signal, skip, stderr, stdout, wait_for,
};

const USERS: &str = "alice:{PLAIN}pw1\n";

/// A Postern, and the files of a Postfix that asks it.
struct Rig {
    // Stopped before its folder goes.
    gate: Gate,
    folder: tempfile::TempDir,
}

/// What differs from one test to the next.
struct Shape<'a> {
    /// Lines of the listener, beside name and type.
    listener: &'a str,
    /// Tables after it.
    passdb: &'a str,
    /// main.cf, beside the usual lines.
    main: &'a str,
    /// Column five of master.cf.
    chroot: char,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Shape {
            listener: "path = \"{W}/queue/private/auth\"\nowner = \"postfix\"\ngroup = \"postfix\"\nmode = \"0660\"",
            passdb: "[[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"",
            main: "smtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth",
            chroot: 'y',
        }
    }
}

impl Rig {
    fn start(shape: &Shape<'_>) -> Option<Rig> {
        if !is_root() {
            skip("needs root: sockets get owners, and probes become other accounts");
            return None;
        }
        if !have(&["postfix", "openssl"]) {
            return None;
        }
        let scratch = scratch();
        let w = scratch.path();
        folder(&w.join("queue"), "root", 0o755);
        folder(&w.join("queue/private"), "postfix", 0o700);
        certificates(&w.join("tls"));
        fs::create_dir(w.join("etc")).expect("etc");
        let place = |text: &str| text.replace("{W}", &w.display().to_string());
        fs::write(
            w.join("etc/main.cf"),
            place(&format!(
                "compatibility_level = 3.6\nqueue_directory = {{W}}/queue\nmyhostname = {HOSTNAME}\nsmtpd_sasl_auth_enable = yes\n\
                 smtpd_tls_security_level = may\nsmtpd_tls_auth_only = yes\nsmtpd_tls_chain_files = {{W}}/tls/key.pem,\n    {{W}}/tls/cert.pem\n{}\n",
                shape.main
            )),
        )
        .expect("main.cf");
        fs::write(w.join("etc/master.cf"), format!("smtp inet n - {} - - smtpd\n", shape.chroot))
            .expect("master.cf");
        let config = place(&format!(
            "version = 1\nhostname = \"{HOSTNAME}\"\nrun_as = \"{RUN_AS}\"\nstate_dir = \"{{W}}/state\"\n\
             [auth]\nfailure_delay = \"20ms\"\n\
             [[auth.listener]]\nname = \"postfix\"\ntype = \"client\"\n{}\n{}\n",
            shape.listener, shape.passdb
        ));
        let gate = Gate::start(w, &config, USERS);
        Some(Rig { gate, folder: scratch })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("queue/private/auth")
    }

    fn doctor(&self, more: &[&str], stdin: &str) -> Output {
        let etc = self.path("etc").display().to_string();
        self.gate.admin(&[&["doctor", "--postfix", &etc], more].concat(), stdin)
    }

    fn doctor_of_an_ordinary_user(&self) -> Output {
        // The build folder may be closed to others.
        let program = self.path("postern");
        fs::copy(postern().get_program(), &program).expect("copied");
        let (uid, gid) = account("daemon");
        let mut command = peer("setpriv", Path::new("/"));
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        command.arg(&program).args(["doctor", "--config"]).arg(self.path("postern.toml"));
        command.arg("--postfix").arg(self.path("etc"));
        run(command, "")
    }

    /// Everything is well.
    fn well(&self) {
        let out = self.doctor(&[], "");
        assert!(
            out.status.code() == Some(0) && stdout(&out).ends_with("Nothing to do.\n"),
            "{}\n{}",
            show(&out),
            self.gate.log()
        );
    }

    /// The cause, and what the first thing to do says in full.
    fn first(&self) -> First {
        first(&self.doctor(&["--json"], ""), 1)
    }
}

/// The first thing to do.
#[derive(Debug)]
struct First {
    cause: String,
    /// Name, finding and advice.
    text: String,
    command: String,
}

impl First {
    fn is(&self, cause: &str, words: &[&str]) {
        assert!(
            self.cause == cause && words.iter().all(|word| self.text.contains(word)),
            "{cause} {words:?}: {self:#?}"
        );
    }

    /// Does what it says.
    fn follow(&self) {
        let status = Command::new("sh").args(["-c", &self.command]).status().expect("sh");
        assert!(status.success(), "{self:#?}");
    }
}

fn first(out: &Output, code: i32) -> First {
    assert_eq!(out.status.code(), Some(code), "{}", show(out));
    let value: Value = serde_json::from_str(&stdout(out)).unwrap_or_else(|e| panic!("{e}: {}", show(out)));
    assert_eq!((value["ok"].as_bool(), value["exit_code"].as_i64()), (Some(false), Some(i64::from(code))));
    let first = &value["first"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    First {
        cause: word(&first["cause"]),
        text: format!(
            "{}: {}\n{}\n{}",
            word(&first["name"]),
            word(&first["found"]),
            word(&first["advice"]["text"]),
            word(&first["advice"]["command"])
        ),
        command: word(&first["advice"]["command"]),
    }
}

/// A certificate for the test's host name and its key, valid for these days from now on.
fn certificate(folder: &Path, from: i64, until: i64) {
    let at = |days: i64| {
        let distance = Duration::from_secs(days.unsigned_abs() * 86_400);
        if days < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
    };
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::new([HOSTNAME.to_owned()]).expect("names");
    (params.not_before, params.not_after) = (at(from).into(), at(until).into());
    fs::create_dir_all(folder).expect("folder");
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).expect("file");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).expect("mode");
    };
    write("cert.pem", &params.self_signed(&key).expect("certificate").pem());
    write("key.pem", &key.serialize_pem());
}

/// A user database and an IMAP listener with a certificate of its own.
fn with_imap() -> String {
    format!(
        "[[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n[[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n\
         [mail]\nhome = \"{{W}}/mail/%{{user}}\"\n\
         [[tls.certificate]]\nchain = \"{{W}}/imap/cert.pem\"\nkey = \"{{W}}/imap/key.pem\"\n\
         [[imap.listener]]\nname = \"imaps\"\naddress = \"127.0.0.1:{}\"\ntls = \"implicit\"",
        free_port()
    )
}

/// A rig with [`with_imap`]; the certificate is made before the start.
fn imap_rig() -> Option<Rig> {
    let keep = scratch();
    certificate(keep.path(), -1, 90);
    let passdb = with_imap().replace("{W}/imap", &keep.path().display().to_string());
    let rig = Rig::start(&Shape { passdb: &passdb, ..Shape::default() })?;
    folder(&rig.path("mail"), RUN_AS, 0o700);
    // The certificate lives as long as the rig.
    let link = rig.path("imap");
    std::os::unix::fs::symlink(keep.keep(), &link).expect("link");
    rig.gate.admin(&["reload"], "");
    Some(rig)
}

impl Rig {
    /// Folder of the IMAP certificate.
    fn imap_tls(&self) -> PathBuf {
        fs::read_link(self.path("imap")).expect("link")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Ok(kept) = fs::read_link(self.path("imap")) {
            let _ = fs::remove_dir_all(kept);
        }
    }
}

#[test]
fn doctor_finds_nothing_on_a_healthy_machine() {
    let Some(rig) = imap_rig() else { return };
    rig.well();
    let out = rig.doctor(&["--json"], "");
    let value: Value = serde_json::from_str(&stdout(&out)).expect("JSON");
    assert!(value["ok"] == true && value["first"].is_null() && value["counts"]["problem"] == 0, "{value:#}");
    let checks = value["checks"].as_array().expect("checks");
    for check in checks {
        for key in ["part", "name", "tried", "as", "outcome", "found"] {
            assert!(check[key].is_string(), "{key}: {check}");
        }
    }
    let has = |name: &str, tried: &str, whom: &str, found: &str| {
        checks.iter().any(|check| {
            let holds = |key: &str, part: &str| check[key].as_str().is_some_and(|text| text.contains(part));
            check["outcome"] == "ok"
                && holds("name", name)
                && holds("tried", tried)
                && holds("as", whom)
                && holds("found", found)
        })
    };
    let socket = rig.socket().display().to_string();
    for (name, tried, whom, found) in [
        ("postern.toml", "read it", "root", "no mistakes"),
        (&socket, "look at the file", "root", "0660 postfix:postfix"),
        (&socket, "connect to private/auth in the chroot", "postfix", "connected"),
        (&socket, "every folder above", "postfix", "queue/private"),
        (&socket, "greeting", "postfix", "PLAIN LOGIN"),
        ("listener postfix", "a made-up user in to service smtp", "postfix", "refused, as it must be"),
        ("users", "read the users", RUN_AS, "readable"),
        ("cert.pem", "load certificate", "root", "the key belongs to it"),
        ("certificate", "look for mail.example.test", "root", "it is for mail.example.test"),
        ("port 127.0.0.1", "connect to listener imaps", "root", "connected"),
        ("daemon auth", "state", "root", "serving as"),
        ("Postfix smtp/inet", "smtpd_sasl_path", "root", "where Postern listens"),
        ("service smtp", "find a passdb", "root", "is asked"),
    ] {
        assert!(has(name, tried, whom, found), "{name} / {tried} / {whom} / {found} in\n{value:#}");
    }
    // Nobody is slowed down, and nobody is banned, because of the made-up user.
    assert!(!stdout(&rig.gate.admin(&["auth", "penalty", "list"], "")).contains("postern-doctor"));
}

#[test]
fn doctor_logs_a_user_in_for_real() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    let right = rig.doctor(&["--user", "alice", "--password-stdin"], "pw1\n");
    assert!(
        right.status.success() && stdout(&right).contains(&format!("accepted as alice@{HOSTNAME}")),
        "{}",
        show(&right)
    );
    let wrong = rig.doctor(&["--json", "--user", "alice"], "guessed-wrong\n");
    let wrong_text = stdout(&wrong);
    first(&wrong, 1).is("login-refused", &["Invalid user name or password", "auth explain alice"]);
    assert!(!wrong_text.contains("guessed-wrong"));
}

#[test]
fn doctor_names_the_wrong_owner() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    chown(rig.socket(), Some(0), Some(0)).expect("chown");
    let first = rig.first();
    first.is("wrong-owner", &["queue/private/auth", "denied", "0660 root:root", "chown postfix:postfix"]);
    first.follow();
    rig.well();
    // In the settings.
    drop(rig);
    let listener = "path = \"{W}/queue/private/auth\"\nowner = \"root\"\ngroup = \"root\"\nmode = \"0660\"";
    let Some(rig) = Rig::start(&Shape { listener, ..Shape::default() }) else { return };
    rig.first()
        .is("wrong-owner", &["neither owner nor in the group", "owner = \"postfix\"", "listener postfix"]);
}

#[test]
fn doctor_names_the_wrong_mode() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    fs::set_permissions(rig.socket(), fs::Permissions::from_mode(0o440)).expect("mode");
    let first = rig.first();
    first.is("wrong-mode", &["denied", "0440 postfix:postfix", "chmod 0660"]);
    first.follow();
    rig.well();
    // Too wide is wrong as well.
    fs::set_permissions(rig.socket(), fs::Permissions::from_mode(0o666)).expect("mode");
    rig.first().is("wrong-mode", &["0666", "the settings say 0660"]);
}

#[test]
fn doctor_names_the_missing_and_the_closed_folder() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    fs::set_permissions(rig.path("queue/private"), fs::Permissions::from_mode(0o600)).expect("mode");
    let closed = rig.first();
    closed.is("parent-closed", &["queue/private (0600 postfix:", "does not let postfix pass"]);
    closed.follow();
    rig.well();
    fs::remove_dir_all(rig.path("queue/private")).expect("removed");
    let made = format!("install -d -o postfix -m 0700 {}", rig.path("queue/private").display());
    rig.first().is("parent-missing", &["queue/private is missing", &made, "postern run"]);
}

#[test]
fn doctor_names_the_chroot_mismatch() {
    let outside = Shape {
        listener: "path = \"{W}/run/auth\"\nowner = \"postfix\"\ngroup = \"postfix\"\nmode = \"0660\"",
        main: "smtpd_sasl_type = dovecot\nsmtpd_sasl_path = {W}/run/auth",
        ..Shape::default()
    };
    let Some(rig) = Rig::start(&Shape { chroot: 'n', ..outside }) else { return };
    rig.well();
    let etc = rig.path("etc/master.cf");
    fs::write(&etc, "smtp inet n - y - - smtpd\n").expect("master.cf");
    let seen = rig.path("queue").join(rig.path("run/auth").strip_prefix("/").expect("absolute"));
    rig.first()
        .is("chroot-view", &["chroot mismatch", "fifth column", &seen.display().to_string(), "reload"]);
    // What it says, done: the socket is in both places.
    let config = fs::read_to_string(rig.path("postern.toml")).expect("settings");
    let one = format!("path = \"{}\"", rig.path("run/auth").display());
    let both = format!("path = [\"{}\", \"{}\"]", rig.path("run/auth").display(), seen.display());
    fs::write(rig.path("postern.toml"), config.replace(&one, &both)).expect("settings");
    let reload = rig.gate.admin(&["reload"], "");
    assert!(reload.status.success(), "{}", show(&reload));
    rig.well();
}

#[test]
fn doctor_names_only_sockets_that_are_for_postfix() {
    let Some(rig) = imap_rig() else { return };
    // Left are a mux and the sockets between our own daemons.
    let file = rig.path("postern.toml");
    let config = fs::read_to_string(&file).expect("settings");
    fs::write(&file, config.replace("type = \"client\"", "type = \"saslauthd\"")).expect("settings");
    let reload = rig.gate.admin(&["reload"], "");
    assert!(reload.status.success(), "{}", show(&reload));
    let main = fs::read_to_string(rig.path("etc/main.cf"))
        .expect("main.cf")
        .replace("private/auth", "private/other");
    fs::write(rig.path("etc/main.cf"), main).expect("main.cf");
    let first = rig.first();
    first.is("wrong-path", &["queue/private/other", "Postern has no listener of type client"]);
    assert!(!first.text.contains("fronts-") && !first.text.contains("listens at"), "{first:#?}");
}

#[test]
fn doctor_mends_a_path_through_the_queue_folder() {
    let main = "smtpd_sasl_type = dovecot\nsmtpd_sasl_path = {W}/queue/private/auth";
    let Some(rig) = Rig::start(&Shape { main, ..Shape::default() }) else { return };
    let first = rig.first();
    first.is("chroot-view", &["smtpd_sasl_path=private/auth"]);
    // Without a Postfix that runs there is nothing to reload.
    let edit = first.command.split(" && ").next().expect("postconf");
    assert!(Command::new("sh").args(["-c", edit]).status().expect("sh").success(), "{edit}");
    rig.well();
    let main = fs::read_to_string(rig.path("etc/main.cf"))
        .expect("main.cf")
        .replace("private/auth", "private/other");
    fs::write(rig.path("etc/main.cf"), main).expect("main.cf");
    rig.first()
        .is("wrong-path", &["queue/private/other", "Postern listens at", "smtpd_sasl_path=private/auth"]);
    // Somebody else's, who may know what he does.
    let _other = UnixListener::bind(rig.path("queue/private/other")).expect("bound");
    let out = rig.doctor(&[], "");
    assert!(out.status.success() && stdout(&out).contains("another program answers there"), "{}", show(&out));
}

#[test]
fn doctor_names_what_postfix_cannot_use() {
    let main = "smtpd_sasl_type = cyrus\nsmtpd_sasl_path = private/auth";
    let Some(rig) = Rig::start(&Shape { main, ..Shape::default() }) else { return };
    rig.first().is("postfix-setting", &["smtpd_sasl_type is cyrus", "smtpd_sasl_type=dovecot"]);
    let main = fs::read_to_string(rig.path("etc/main.cf")).expect("main.cf").replace("cyrus", "dovecot");
    fs::write(rig.path("etc/main.cf"), format!("{main}\nrubbish\n")).expect("main.cf");
    rig.first().is("postfix-setting", &["cannot read its own files", "rubbish"]);
}

#[test]
fn doctor_names_the_wrong_service_name() {
    let only_imap = "[[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\nservices = [\"imap\"]";
    let Some(rig) = Rig::start(&Shape { passdb: only_imap, ..Shape::default() }) else { return };
    rig.first().is("service-name", &["service smtp", "wrong service name", "it has imap"]);
    drop(rig);
    let pam = "[[auth.passdb]]\ndriver = \"pam\"\nservice = \"no-such-postern\"";
    let Some(rig) = Rig::start(&Shape { passdb: pam, ..Shape::default() }) else { return };
    rig.first().is("pam-service-missing", &["/etc/pam.d/no-such-postern", "other"]);
}

#[test]
fn doctor_names_the_dead_daemon() {
    let Some(mut rig) = Rig::start(&Shape::default()) else { return };
    rig.gate.stop();
    rig.first().is("not-running", &["Postern does not run", "postern run --config"]);
    rig.gate.launch();
    rig.well();
    // Killed, it leaves its files.
    let pid_file = rig.path("state/postern.pid");
    let pid: u32 = fs::read_to_string(&pid_file).expect("pid file").trim().parse().expect("pid");
    signal(pid, Signal::SIGKILL);
    wait_for("the daemons to be gone", || {
        std::os::unix::net::UnixStream::connect(rig.socket()).is_err().then_some(())
    });
    let first = rig.first();
    first.is(
        "not-running",
        &["stale", &format!("process {pid} has ended"), &rig.socket().display().to_string()],
    );
}

#[test]
fn doctor_names_the_stale_socket() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    fs::remove_file(rig.socket()).expect("removed");
    rig.first().is("socket-missing", &["though Postern runs"]);
    drop(UnixListener::bind(rig.socket()).expect("bound"));
    let (uid, gid) = account("postfix");
    chown(rig.socket(), Some(uid), Some(gid)).expect("chown");
    rig.first().is("stale-socket", &["nobody listens behind the file"]);
    fs::remove_file(rig.socket()).expect("removed");
    fs::write(rig.socket(), "").expect("file");
    rig.first().is("not-a-socket", &["a plain file, not a socket"]);
}

#[test]
fn doctor_names_the_expired_certificate() {
    let Some(rig) = imap_rig() else { return };
    certificate(&rig.imap_tls(), -30, -3);
    rig.first().is("certificate-expired", &["cert.pem", "expired 3 days ago", "postern reload"]);
    certificate(&rig.imap_tls(), 2, 90);
    rig.first().is("certificate-not-yet-valid", &["valid only", "clock"]);
    certificate(&rig.imap_tls(), -1, 90);
    rig.well();
    // Postfix's own is what its clients see.
    certificate(&rig.path("tls"), -30, -3);
    rig.first().is("certificate-expired", &["/tls/cert.pem", "postfix reload"]);
}

#[test]
fn doctor_names_the_wrong_key() {
    let Some(rig) = imap_rig() else { return };
    let other = scratch();
    certificate(other.path(), -1, 90);
    fs::copy(other.path().join("key.pem"), rig.imap_tls().join("key.pem")).expect("copied");
    rig.first().is("key-mismatch", &["key.pem does not belong to the certificate", "openssl pkey"]);
    certificate(&rig.imap_tls(), -1, 90);
    fs::set_permissions(rig.imap_tls().join("key.pem"), fs::Permissions::from_mode(0o644)).expect("mode");
    let open = rig.first();
    open.is("key-open", &["everybody can read it", "chmod 0600"]);
    open.follow();
    rig.well();
}

#[test]
fn doctor_names_the_unreadable_shadow() {
    let shadow = "[[auth.passdb]]\ndriver = \"shadow\"";
    let Some(rig) = Rig::start(&Shape { passdb: shadow, ..Shape::default() }) else { return };
    let first = rig.first();
    first.is("shadow-unreadable", &["/etc/shadow", "Permission denied", "shadow"]);
}

#[test]
fn doctor_names_the_full_disk() {
    let Some(rig) = imap_rig() else { return };
    let mail = rig.path("mail").display().to_string();
    let script = "mount -t tmpfs -o size=256k,mode=0700 tmpfs \"$MAIL\" || exit 99\n\
                  if [ \"$HOW\" = full ]; then dd if=/dev/zero of=\"$MAIL/fill\" bs=4k 2>/dev/null; else mount -o remount,ro \"$MAIL\"; fi\n\
                  exec \"$@\"\n";
    for (how, cause, words) in [
        ("full", "disk-full", &["/mail", "the disk is full: 0 bytes of 256 KiB free", "df -h"]),
        ("ro", "read-only", &["/mail", "read-only", "remount,rw"]),
    ] {
        let mut command = peer("unshare", rig.folder.path());
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "doctor"]);
        command
            .arg(postern().get_program())
            .args(["doctor", "--json", "--config"])
            .arg(rig.path("postern.toml"));
        command.arg("--postfix").arg(rig.path("etc")).env("MAIL", &mail).env("HOW", how);
        let out = run(command, "");
        if out.status.code() == Some(99) {
            skip(&format!("no private mounts here: {}", stderr(&out)));
            return;
        }
        first(&out, 1).is(cause, words);
    }
}

#[test]
fn doctor_names_the_clock_that_is_behind() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    let users = fs::File::options().write(true).open(rig.path("state/users")).expect("users");
    users.set_modified(SystemTime::now() + Duration::from_secs(3 * 86_400 + 3_600)).expect("date");
    rig.first().is("clock-behind", &["the clock is behind", "state/users", "3 days in the future"]);
}

#[test]
fn doctor_follows_the_way_through_libsasl2() {
    let mux = Shape {
        listener: "path = \"{W}/run/auth\"\nowner = \"postfix\"\nmode = \"0660\"\n\
                   [[auth.listener]]\nname = \"mux\"\ntype = \"saslauthd\"\npath = \"{W}/sasl/mux\"\nowner = \"postfix\"\nmode = \"0660\"",
        main: "smtpd_sasl_type = cyrus\nsmtpd_sasl_path = smtpd",
        chroot: 'n',
        ..Shape::default()
    };
    let Some(rig) = Rig::start(&mux) else { return };
    fs::create_dir(rig.path("etc/sasl")).expect("folder");
    let conf = |path: &str| {
        let text = format!(
            "pwcheck_method: saslauthd\nsaslauthd_path: {}\nmech_list: PLAIN LOGIN\n",
            rig.path(path).display()
        );
        fs::write(rig.path("etc/sasl/smtpd.conf"), text).expect("smtpd.conf");
    };
    conf("sasl/mux");
    rig.well();
    let text = stdout(&rig.doctor(&[], ""));
    assert!(
        text.contains("log a made-up user in to service smtp, as postfix: refused, as it must be"),
        "{text}"
    );
    conf("sasl");
    rig.first().is("sasl-file", &["is a folder, not the socket", "/mux"]);
    conf("sasl/other");
    rig.first().is("wrong-path", &["sasl/other", "sasl/mux"]);
    fs::write(rig.path("etc/sasl/smtpd.conf"), "pwcheck_method: auxprop\n").expect("smtpd.conf");
    rig.first().is("sasl-file", &["pwcheck_method is auxprop"]);
    // What cannot be read says nothing about its contents.
    if have(&["setpriv"]) {
        fs::set_permissions(rig.path("etc/sasl/smtpd.conf"), fs::Permissions::from_mode(0o600))
            .expect("mode");
        let out = rig.doctor_of_an_ordinary_user();
        let text = stdout(&out);
        let told = text.contains("smtpd.conf: cannot tell: not root: Permission denied");
        assert!(out.status.success() && told, "{}", show(&out));
    }
}

#[test]
fn doctor_as_an_ordinary_user_says_what_it_cannot_tell() {
    let Some(rig) = Rig::start(&Shape::default()) else { return };
    if !have(&["setpriv"]) {
        return;
    }
    let out = rig.doctor_of_an_ordinary_user();
    let text = stdout(&out);
    assert!(
        out.status.success()
            && text.contains("cannot tell: not root")
            && text.contains("Nothing to do as far as can be seen"),
        "{}",
        show(&out)
    );
}

#[test]
fn doctor_lists_every_mistake_in_the_settings() {
    let folder = scratch();
    let file = folder.path().join("postern.toml");
    fs::write(&file, "version = 1\nhostnam = \"x\"\n[auth]\nfailure_dela = 1\n").expect("settings");
    let mut command = postern();
    command.args(["doctor", "--json", "--config"]).arg(&file);
    let out = run(command, "");
    let first = first(&out, 78);
    first.is("configuration-wrong", &["line 2", "hostnam"]);
    let value: Value = serde_json::from_str(&stdout(&out)).expect("JSON");
    assert!(value["counts"]["problem"].as_u64().is_some_and(|count| count >= 2), "{value:#}");
}

#[test]
fn a_state_folder_of_another_account_names_the_line_that_mends_it() {
    if !is_root() {
        return skip("needs root: the stack starts as another account");
    }
    if !have(&["setpriv"]) {
        return;
    }
    let scratch = scratch();
    let w = scratch.path();
    folder(&w.join("state"), "root", 0o755);
    fs::write(w.join("state/users"), USERS).expect("users");
    let text = format!(
        "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"{0}/state\"\n\
         [[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"{0}/state/c\"\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"users\"\n",
        w.display()
    );
    fs::write(w.join("postern.toml"), text).expect("settings");
    // The build folder may be closed to others.
    let program = w.join("postern");
    fs::copy(postern().get_program(), &program).expect("copied");
    let (uid, gid) = account("daemon");
    let mut command = peer("setpriv", Path::new("/"));
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    command.arg(&program).args(["run", "--config"]).arg(w.join("postern.toml"));
    let out = run(command, "");
    let line = format!("chown -R daemon: {}/state", w.display());
    assert!(out.status.code() == Some(77) && stderr(&out).contains(&line), "{}", show(&out));
}

#[test]
fn errors_about_rights_and_sockets_point_to_the_doctor() {
    let folder = scratch();
    let told = |args: &[&str], stdin: &str, code: i32| {
        let mut command = postern();
        command.args(args).current_dir(folder.path());
        let out = run(command, stdin);
        assert!(
            out.status.code() == Some(code) && stderr(&out).contains("run `postern doctor`"),
            "{args:?}: {}",
            show(&out)
        );
    };
    told(&["auth", "test", "alice", "--password-stdin", "--socket", "/nowhere/auth"], "x", 75);
    told(&["auth", "test", "alice", "--password-stdin", "--mux", "--socket", "/nowhere/mux"], "x", 75);
    told(&["status", "--state-dir", "nowhere"], "", 69);
    // A port that another program holds.
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let text = format!(
        "version = 1\nhostname = \"{HOSTNAME}\"\nstate_dir = \"state\"\n{}\
         [[auth.passdb]]\ndriver = \"static\"\nnopassword = true\n[[auth.userdb]]\ndriver = \"static\"\n\
         [[smtp.listener]]\nname = \"in\"\ntype = \"inbound\"\naddress = \"{}\"\n",
        if is_root() { format!("run_as = \"{RUN_AS}\"\n") } else { String::new() },
        held.local_addr().expect("address")
    );
    fs::write(folder.path().join("postern.toml"), text).expect("settings");
    told(&["run", "--config", "postern.toml"], "", 69);
}
