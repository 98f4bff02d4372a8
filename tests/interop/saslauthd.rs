//! This program as `saslauthd`: its flags and files, `testsaslauthd`, Debian's init script.
//!
//! Accounts, shadow passwords and PAM files of the tests exist in a private mount namespace only.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{have, is_root, run, show, signal, skip, stderr, stdout, wait_for};

/// A private /etc with our accounts, and this program under saslauthd's name.
struct Etc {
    scratch: tempfile::TempDir,
    /// Daemons to end, by pid file.
    runs: Vec<PathBuf>,
}

/// Name, password and further shadow fields of each account.
const ACCOUNTS: [(&str, &str, &str); 3] = [
    ("tester", "pw1", "19000:0:99999:7:::"),
    ("joined@example.test", "pw2", "19000:0:99999:7:::"),
    ("gone", "pw3", "19000:0:99999:7::19100:"),
];

impl Etc {
    fn new() -> Option<Etc> {
        if !is_root() {
            skip("needs root for a private mount namespace");
            return None;
        }
        if !have(&["testsaslauthd", "unshare", "openssl"]) {
            return None;
        }
        if !Command::new("unshare")
            .args(["--mount", "--propagation", "private", "true"])
            .status()
            .is_ok_and(|s| s.success())
        {
            skip("mount namespaces are not allowed here");
            return None;
        }
        let scratch = tempfile::Builder::new().prefix("psa").tempdir_in("/tmp").expect("scratch folder");
        let at = |name: &str| scratch.path().join(name);
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        for folder in ["etc/pam.d", "etc/default", "usr/sbin"] {
            fs::create_dir_all(at(folder)).expect("folder");
        }
        let (mut passwd, mut shadow) = (
            fs::read_to_string("/etc/passwd").expect("passwd"),
            fs::read_to_string("/etc/shadow").expect("shadow"),
        );
        for (number, (name, password, rest)) in ACCOUNTS.iter().enumerate() {
            let mut command = Command::new("openssl");
            command.args(["passwd", "-6", "-stdin"]);
            let hash = stdout(&run(command, password)).trim().to_owned();
            passwd += &format!("{name}:x:{0}:{0}::/nonexistent:/usr/sbin/nologin\n", 61_000 + number);
            shadow += &format!("{name}:{hash}:{rest}\n");
        }
        fs::write(at("etc/passwd"), passwd).expect("passwd");
        fs::write(at("etc/shadow"), shadow).expect("shadow");
        fs::set_permissions(at("etc/shadow"), fs::Permissions::from_mode(0o640)).expect("mode");
        let unix = "auth required pam_unix.so nodelay\naccount required pam_unix.so\n";
        fs::write(at("etc/pam.d/smtp"), unix).expect("PAM file");
        let deny = "auth required pam_deny.so\naccount required pam_deny.so\n";
        fs::write(at("etc/pam.d/sieve"), deny).expect("PAM file");
        fs::write(at("etc/pam.d/other"), unix).expect("PAM file");
        symlink(env!("CARGO_BIN_EXE_postern"), at("usr/sbin/saslauthd")).expect("link");
        Some(Etc { scratch, runs: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A shell script inside.
    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!(
            "mount -t overlay o -o lowerdir=$ETC:/etc /etc && mount -t overlay o -o lowerdir=$USR:/usr /usr && {script}"
        ));
        command.env("ETC", self.path("etc")).env("USR", self.path("usr")).env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs `saslauthd FLAGS -m FOLDER`.
    fn start(&mut self, folder: &str, flags: &str) -> Output {
        let folder = self.path(folder);
        let out = run(self.shell(&format!("exec saslauthd {flags} -m {}", folder.display())), "");
        self.runs.push(folder);
        out
    }

    fn pid(folder: &Path) -> Option<u32> {
        fs::read_to_string(folder.join("saslauthd.pid")).ok()?.trim().parse().ok()
    }

    fn test(&self, folder: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new("testsaslauthd");
        command.arg("-f").arg(self.path(folder).join("mux")).args(arguments);
        let out = run(command, "");
        let ok = out.status.success();
        assert!(
            stdout(&out).starts_with(if ok { "0: OK" } else { "0: NO" }),
            "{arguments:?}: {}",
            show(&out)
        );
        ok
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        for pid in self.runs.iter().filter_map(|folder| Etc::pid(folder)) {
            signal(pid, Signal::SIGTERM);
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn shadow_and_pam_answer_testsaslauthd() {
    let Some(mut etc) = Etc::new() else { return };
    for mechanism in ["shadow", "pam"] {
        let out = etc.start(mechanism, &format!("-a {mechanism}"));
        assert!(out.status.success(), "{}", show(&out));
        // It has detached and serves already.
        let folder = etc.path(mechanism);
        let pid = Etc::pid(&folder).expect("pid file");
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).expect("the process");
        assert_eq!(comm.trim(), "saslauthd");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).expect("cwd"), folder);
        assert_eq!((mode(&folder), mode(&folder.join("mux"))), (0o755, 0o777));
        assert_eq!(mode(&folder.join("saslauthd.pid")), 0o600);

        assert!(etc.test(mechanism, &["-u", "tester", "-p", "pw1", "-s", "smtp"]));
        assert!(!etc.test(mechanism, &["-u", "tester", "-p", "wrong", "-s", "smtp"]));
        assert!(!etc.test(mechanism, &["-u", "nobody-here", "-p", "pw1", "-s", "smtp"]));
        assert!(!etc.test(mechanism, &["-u", "gone", "-p", "pw3", "-s", "smtp"]), "the account has expired");
        // Without -r a realm says nothing, as with saslauthd.
        assert!(etc.test(mechanism, &["-u", "tester", "-p", "pw1", "-r", "any.test", "-s", "smtp"]));
        let allowed = mechanism == "shadow";
        assert_eq!(
            etc.test(mechanism, &["-u", "tester", "-p", "pw1", "-s", "sieve"]),
            allowed,
            "{mechanism}"
        );
        // No PAM file of that name: libpam takes `other`.
        assert!(etc.test(mechanism, &["-u", "tester", "-p", "pw1", "-s", "IMAP"]));

        let out = etc.start(mechanism, &format!("-a {mechanism}"));
        assert_eq!(out.status.code(), Some(2), "{}", show(&out));
        let text = stderr(&out);
        assert!(text.contains("another instance") && text.contains(&pid.to_string()), "{text}");
        assert!(
            etc.test(mechanism, &["-u", "tester", "-p", "pw1", "-s", "smtp"]),
            "the first one is unharmed"
        );

        signal(pid, Signal::SIGTERM);
        wait_for("saslauthd to end", || gone(pid).then_some(()));
        let left: Vec<_> =
            fs::read_dir(&folder).expect("folder").map(|e| e.expect("entry").file_name()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[test]
fn realms_are_joined_with_r() {
    let Some(mut etc) = Etc::new() else { return };
    let joined = ["-u", "joined", "-r", "example.test", "-p", "pw2", "-s", "smtp"];
    for (folder, flags, want) in
        [("a", "-a shadow -r", true), ("b", "-a SHADOW", false), ("c", "-ra pam", true)]
    {
        let out = etc.start(folder, flags);
        assert!(out.status.success(), "{}", show(&out));
        assert_eq!(etc.test(folder, &joined), want, "{flags}");
        assert!(
            etc.test(folder, &["-u", "tester", "-p", "pw1", "-s", "smtp"]),
            "an empty realm joins nothing"
        );
    }
}

#[test]
fn the_cache_remembers_successes_only() {
    let Some(mut etc) = Etc::new() else { return };
    let out = etc.start("cached", "-a shadow -c -t 600 -s 64 -n 1");
    assert!(out.status.success(), "{}", show(&out));
    assert!(etc.test("cached", &["-u", "tester", "-p", "pw1"]));
    assert!(!etc.test("cached", &["-u", "tester", "-p", "new"]));
    // The namespace sees changes of this file, for it is replaced in its own folder only by writing into it.
    let path = etc.path("etc/shadow");
    let mut command = Command::new("openssl");
    command.args(["passwd", "-6", "-stdin"]);
    let hash = stdout(&run(command, "new")).trim().to_owned();
    let shadow = fs::read_to_string(&path).expect("shadow");
    let changed: String = shadow
        .lines()
        .map(|line| match line.starts_with("tester:") {
            true => format!("tester:{hash}:19000:0:99999:7:::\n"),
            false => format!("{line}\n"),
        })
        .collect();
    fs::File::options()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(changed.as_bytes()))
        .expect("written");
    assert!(etc.test("cached", &["-u", "tester", "-p", "pw1"]), "remembered");
    assert!(etc.test("cached", &["-u", "tester", "-p", "new"]), "the failure before was not");
    assert!(!etc.test("cached", &["-u", "tester", "-p", "other"]));
}

#[test]
fn sasldb_is_read_as_saslpasswd2_writes_it() {
    let Some(mut etc) = Etc::new() else { return };
    if !have(&["saslpasswd2", "db5.3_load"]) {
        return;
    }
    let db = etc.path("etc/sasldb2");
    let set = |arguments: &[&str], password: &str| {
        let mut command = Command::new("saslpasswd2");
        command.arg("-p").arg("-f").arg(&db).args(arguments);
        let out = run(command, &format!("{password}\n"));
        assert!(out.status.success(), "{arguments:?}: {}", show(&out));
    };
    set(&["-c", "-u", "example.test", "bob"], "bob's");
    set(&["-c", "-u", "other.test", "bob"], "the other's");
    set(&["-c", "bare"], "bare's");
    let out = etc.start("sasldb", "-a sasldb");
    assert!(out.status.success(), "{}", show(&out));
    let host = nix::unistd::gethostname().expect("host name").to_string_lossy().into_owned();
    for (arguments, want) in [
        (&["-u", "bob", "-r", "example.test", "-p", "bob's"][..], true),
        (&["-u", "bob", "-r", "example.test", "-p", "the other's"], false),
        (&["-u", "bob", "-r", "other.test", "-p", "the other's"], true),
        (&["-u", "bob", "-p", "bob's"], false),
        (&["-u", "bare", "-p", "bare's"], true),
        (&["-u", "bare", "-r", &host, "-p", "bare's"], true),
        (&["-u", "bare", "-r", "example.test", "-p", "bare's"], false),
        (&["-u", "bare", "-p", "wrong"], false),
    ] {
        assert_eq!(etc.test("sasldb", arguments), want, "{arguments:?}");
    }
    // Changes count at once; so does a user who is gone.
    set(&["-u", "example.test", "bob"], "changed");
    assert!(etc.test("sasldb", &["-u", "bob", "-r", "example.test", "-p", "changed"]));
    assert!(!etc.test("sasldb", &["-u", "bob", "-r", "example.test", "-p", "bob's"]));
    set(&["-d", "-u", "example.test", "bob"], "");
    assert!(!etc.test("sasldb", &["-u", "bob", "-r", "example.test", "-p", "changed"]));

    // Two thousand users over many pages, as a btree.
    let mut dump = "VERSION=3\nformat=print\ntype=btree\nHEADER=END\n".to_owned();
    for number in 0..2_000 {
        dump += &format!(" user{number}\\00example.test\\00userPassword\n pw{number}\n");
    }
    let tree = etc.path("tree.db");
    let mut command = Command::new("db5.3_load");
    command.arg(&tree);
    let out = run(command, &(dump + "DATA=END\n"));
    assert!(out.status.success(), "{}", show(&out));
    let out = etc.start("tree", &format!("-a sasldb -O {}", tree.display()));
    assert!(out.status.success(), "{}", show(&out));
    for number in [0, 777, 1_999] {
        let (user, password) = (format!("user{number}"), format!("pw{number}"));
        assert!(etc.test("tree", &["-u", &user, "-r", "example.test", "-p", &password]));
    }
    // What is no sasldb is an outage, and an outage is no answer.
    fs::write(&tree, "alice:pw\n").expect("written");
    // Files are looked at every few milliseconds, so the very first question may still be answered from before.
    let deadline = Instant::now() + Duration::from_secs(5);
    let out = loop {
        let mut command = Command::new("testsaslauthd");
        command.arg("-f").arg(etc.path("tree/mux")).args(["-u", "user0", "-r", "example.test", "-p", "pw0"]);
        let out = run(command, "");
        if !out.status.success() || Instant::now() > deadline {
            break out;
        }
    };
    assert!(!out.status.success() && !stdout(&out).contains("0: NO"), "{}", show(&out));
}

#[test]
fn debians_init_script_runs_it() {
    let Some(etc) = Etc::new() else { return };
    let (Ok(defaults), Ok(_)) =
        (fs::read_to_string("/etc/default/saslauthd"), fs::metadata("/etc/init.d/saslauthd"))
    else {
        return skip("Debian's sasl2-bin is not installed here");
    };
    fs::write(etc.path("etc/default/saslauthd"), format!("{defaults}\nSTART=yes\n")).expect("defaults");
    // All of /run, as after a boot: the script makes its folder.
    let script = "
        mount -t tmpfs none /run || exit 99
        try() { echo \"$@\"; \"$@\" </dev/null; echo \"= $?\"; }
        init=/etc/init.d/saslauthd
        try $init start
        try $init start
        try stat -c '%a %U:%G %n' /run/saslauthd /run/saslauthd/mux /run/saslauthd/saslauthd.pid
        try testsaslauthd -u tester -p pw1 -s smtp
        try $init reload
        try testsaslauthd -u tester -p pw1 -s smtp
        try testsaslauthd -u tester -p wrong -s smtp
        try $init status
        try $init stop
        try $init status
        try ls -A /run/saslauthd";
    let out = run(etc.shell(script), "");
    let text = stdout(&out);
    let answer = |start: &str, which: usize| -> String {
        let mut found =
            text.split_inclusive('\n').skip_while(|line| !line.starts_with(start)).collect::<String>();
        for _ in 0..which {
            let (_, behind) = found.split_once('\n').unwrap_or_default();
            found = behind.split_inclusive('\n').skip_while(|line| !line.starts_with(start)).collect();
        }
        let behind = found.split_once('\n').map(|(_, behind)| behind.to_owned()).unwrap_or_default();
        let end = behind.find("\n= ").map_or(0, |at| at + 1);
        let code = behind.get(end..).unwrap_or_default().lines().next().unwrap_or_default().to_owned();
        format!("{}{code}", behind.get(..end).unwrap_or_default())
    };
    let all = show(&out);
    assert!(answer("/etc/init.d/saslauthd start", 0).contains("= 0"), "{all}");
    assert!(answer("/etc/init.d/saslauthd start", 1).contains("already running"), "{all}");
    let stat = answer("stat", 0);
    assert!(
        stat.contains("710 root:sasl /run/saslauthd\n") && stat.contains("777 root:root /run/saslauthd/mux"),
        "{all}"
    );
    assert!(stat.contains("600 root:root /run/saslauthd/saslauthd.pid"), "{all}");
    assert!(answer("testsaslauthd", 0).contains("0: OK"), "{all}");
    assert!(answer("testsaslauthd", 1).contains("0: OK"), "{all}");
    assert!(answer("testsaslauthd", 2).contains("0: NO"), "{all}");
    assert!(answer("/etc/init.d/saslauthd status", 0).contains("(running)"), "{all}");
    assert!(answer("/etc/init.d/saslauthd stop", 0).contains("= 0"), "{all}");
    assert!(answer("/etc/init.d/saslauthd status", 1).contains("(not running)"), "{all}");
    assert_eq!(answer("ls", 0), "= 0", "{all}");
}

#[test]
fn rimap_asks_an_imap_server() {
    let Some(mut etc) = Etc::new() else { return };
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = server.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(b"* OK hello\r\n");
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let answer = match line.trim_end() {
                "a LOGIN \"bob@example.test\" \"p \\\"w\"" => "a OK in\r\n",
                line if line.ends_with("\"later\"") => "a NO [UNAVAILABLE] later\r\n",
                _ => "a NO who\r\n",
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let out = etc.start("rimap", &format!("-a rimap -O 127.0.0.1/{port} -r"));
    assert!(out.status.success(), "{}", show(&out));
    assert!(etc.test("rimap", &["-u", "bob", "-r", "example.test", "-p", "p \"w"]));
    assert!(!etc.test("rimap", &["-u", "bob", "-r", "example.test", "-p", "wrong"]));
    assert!(!etc.test("rimap", &["-u", "bob", "-p", "p \"w"]));
    // An outage is no refusal: the connection is closed without an answer.
    let mut command = Command::new("testsaslauthd");
    command.arg("-f").arg(etc.path("rimap/mux")).args(["-u", "bob", "-p", "later"]);
    let out = run(command, "");
    assert!(!out.status.success() && !stdout(&out).contains("0: NO"), "{}", show(&out));
}

#[test]
fn words_and_codes_of_the_command_line() {
    let saslauthd = |arguments: &[&str]| {
        let mut command = crate::support::postern();
        command.arg("saslauthd").args(arguments);
        run(command, "")
    };
    for flag in ["-v", "-h"] {
        let out = saslauthd(&[flag]);
        assert!(out.status.success() && out.stdout.is_empty(), "{}", show(&out));
        assert!(
            stderr(&out).contains("authentication mechanisms: ") && stderr(&out).contains("shadow"),
            "{}",
            show(&out)
        );
    }
    for arguments in [
        &["-a", "ldap"][..],
        &["-a", "kerberos5"],
        &["-a", "httpform"],
        &["-a", "sasldb", "-O", "relative.db"],
        &["-a", "pam", "-a", "pam"],
        &["-m", "relative", "-a", "pam"],
        &["-n", "5"],
    ] {
        let out = saslauthd(arguments);
        assert_eq!(out.status.code(), Some(1), "{arguments:?}: {}", show(&out));
        assert_eq!(stderr(&out).lines().count(), 1, "{arguments:?}: {}", show(&out));
    }
    // A start that fails is told by the process that was started, before it detaches.
    let folder = tempfile::tempdir().expect("scratch");
    fs::write(folder.path().join("mux"), "no socket").expect("written");
    let path = folder.path().to_string_lossy().into_owned();
    let out = saslauthd(&["-a", "shadow", "-m", &path]);
    assert_eq!(out.status.code(), Some(1), "{}", show(&out));
    assert!(stderr(&out).contains("mux"), "{}", show(&out));
    assert!(!folder.path().join("saslauthd.pid").exists());
}
