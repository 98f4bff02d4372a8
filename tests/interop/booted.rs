//! The units under a systemd that runs: the first process of a machine of its own, in name spaces, with the programs of this one
//! and an `/etc`, `/var` and `/run` of nobody else's. What an administrator does by docs/service-files.md is done there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::private::scratch;
use crate::support::{
    alive, descendants, have, is_root, poll, postern, private_mounts, run, show, signal, skip, stdout,
    wait_for, wait_within,
};

/// Where systemd-socket and Postern are to meet Postfix.
const SOCKET: &str = "/var/spool/postfix/private/auth";
/// Longest a boot, or a command of systemctl, may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Becomes the parent of the machine's first process, and tidies up its control groups.
const OUTER: &str = r#"
set -eu
at=$1
mkdir "$at/root" "$at/groups"
mount --bind / "$at/root"
mount -o remount,bind,ro "$at/root"
! mountpoint -q /usr || mount --rbind /usr "$at/root/usr"
mount -t cgroup2 cgroup2 "$at/groups"
group=$at/groups/postern-test-$$
mkdir "$group"
export at group
sh -euc 'echo $$ >"$group/cgroup.procs"
  exec unshare --cgroup --pid --mount --uts --ipc --net --fork --kill-child sh -euc "$0"' "$2" || true
find "$group" -depth -type d -exec rmdir {} \;
"#;

/// Makes the machine and becomes its first process.
const INNER: &str = r#"
cd "$at/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for own in run etc var dev root; do mount -t tmpfs -o mode=755 tmpfs $own; done
mount --bind "$at/install/usr/local" usr/local
cp -a "$at/etc/." "$at/install/etc/." etc/
mkdir -p var/lib var/log var/tmp var/spool/postfix/private
ln -s /run var/run
chown postfix var/spool/postfix/private
chmod 700 var/spool/postfix/private
for name in null zero full random urandom tty; do touch dev/$name; mount --bind "/dev/$name" dev/$name; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir tmp/before
pivot_root . tmp/before
cd /
umount -l /tmp/before
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --log-target=journal --show-status=0 --unit=basic.target
"#;

/// What a machine like this cannot have, or has no use for.
const MASKED: [&str; 9] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "tmp.mount",
];

struct Machine {
    outer: Child,
    first: u32,
}

impl Machine {
    fn boot(at: &Path) -> Machine {
        install(at);
        let log = fs::File::create(at.join("log")).expect("log");
        let outer = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", OUTER, "machine"])
            .arg(at)
            .arg(INNER)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        let mut machine = Machine { outer, first: 0 };
        let of = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let what = || format!("the machine: {}", fs::read_to_string(at.join("log")).unwrap_or_default());
        machine.first = wait_within(PATIENCE, what, || {
            descendants(machine.outer.id()).into_iter().find(|pid| of(*pid, "comm") == "systemd\n")
        });
        wait_within(PATIENCE, what, || {
            machine.run("systemctl is-active basic.target").status.success().then_some(())
        });
        machine
    }

    /// A shell inside.
    fn run(&self, script: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.first.to_string()).args(["-a", "env", "-i"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["HOME=/root", "SYSTEMD_PAGER=", "sh", "-c", &format!("cd /root; {script}")]);
        run(command, "geheim77\n")
    }

    /// The same, for what must succeed.
    fn done(&self, script: &str) -> String {
        let out = self.run(script);
        assert!(out.status.success(), "{script}: {}\n{}", show(&out), self.log());
        stdout(&out)
    }

    fn log(&self) -> String {
        stdout(&self.run("journalctl --no-pager -o cat -n 60; systemctl --no-pager --failed; systemctl --no-pager status 'postern*'"))
    }

    /// A path inside, from here.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// Asks as Postfix would; waits out a start.
    fn logs_in(&self) {
        let ask = || -> std::io::Result<bool> {
            let stream = UnixStream::connect(self.path(SOCKET))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            (&stream).write_all(
                b"VERSION\t1\t2\nCPID\t7\nAUTH\t1\tPLAIN\tservice=smtp\tresp=AGJvYgBnZWhlaW03Nw==\n",
            )?;
            let lines = BufReader::new(stream).lines();
            Ok(lines.map_while(Result::ok).any(|line| line.starts_with("OK\t1\tuser=bob")))
        };
        // A connection that the killed daemon had taken already is lost.
        let what = || format!("a login: {}", self.log());
        wait_within(PATIENCE, what, || ask().is_ok_and(|accepted| accepted).then_some(()));
    }

    /// Mail is there, over TLS.
    fn reads_mail(&self) {
        let out = self
            .done("curl -sSk --max-time 30 -u bob:geheim77 imaps://127.0.0.1/ -X 'STATUS INBOX (MESSAGES)'");
        assert!(out.contains("MESSAGES 0"), "{out}\n{}", self.log());
    }

    /// Process id, outside, of a unit's first process.
    fn main_of(&self, unit: &str) -> u32 {
        let wanted = self.done(&format!("systemctl show -P MainPID {unit}"));
        let inside = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            ids.split_whitespace().last() == Some(wanted.trim())
        };
        descendants(self.first).into_iter().find(inside).unwrap_or_else(|| panic!("{unit}: {}", self.log()))
    }

    /// Killed daemons, and a killed supervisor, are replaced.
    fn survives_kills(&self, unit: &str) {
        let supervisor = self.main_of(unit);
        for child in descendants(supervisor) {
            signal(child, Signal::SIGKILL);
            wait_for("its end", || (!alive(child)).then_some(()));
        }
        self.logs_in();
        signal(supervisor, Signal::SIGKILL);
        wait_for("its end", || (!alive(supervisor)).then_some(()));
        self.logs_in();
        wait_within(
            PATIENCE,
            || format!("{unit}: {}", self.log()),
            || self.run(&format!("systemctl is-active {unit}")).status.success().then_some(()),
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.first == 0 {
            let _ = self.outer.kill();
        } else {
            // The first process of a name space takes all others with it.
            signal(self.first, Signal::SIGKILL);
        }
        // It tidies up.
        if poll(PATIENCE, || self.outer.try_wait().ok().flatten()).is_none() {
            let _ = self.outer.kill();
            let _ = self.outer.wait();
        }
    }
}

/// `make install`, and an `/etc` with the accounts of this machine.
fn install(at: &Path) {
    let mut make = Command::new("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-s", "install"]);
    make.arg(format!("BINARY={}", postern().get_program().display()));
    make.arg(format!("DESTDIR={}", at.join("install").display()));
    make.args(["SYSUSERSDIR=/etc/sysusers.d", "TMPFILESDIR=/etc/tmpfiles.d"]);
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let out = run(make, "");
    assert!(out.status.success(), "{}", show(&out));
    let units = at.join("etc/systemd/system");
    fs::create_dir_all(&units).expect("folder");
    for name in MASKED {
        std::os::unix::fs::symlink("/dev/null", units.join(name)).expect("masked");
    }
    for name in
        ["passwd", "group", "shadow", "gshadow", "nsswitch.conf", "ld.so.cache", "pam.d", "alternatives"]
    {
        let from = Path::new("/etc").join(name);
        if from.exists() {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(from).arg(at.join("etc"));
            assert!(run(copy, "").status.success(), "{name}");
        }
    }
    // Without one systemd would enable everything there is, as at a first boot.
    fs::write(at.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").expect("written");
    fs::write(at.join("etc/hostname"), "machine\n").expect("written");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "60",
        ])
        .args(["-subj", "/CN=mail.example.org", "-keyout"])
        .arg(at.join("etc/key.pem"))
        .arg("-out")
        .arg(at.join("etc/cert.pem"))
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl").success());
}

/// May control groups be made here? Many containers have none to give, which no package mends.
fn has_control_groups(at: &Path) -> bool {
    let script = r#"mkdir "$1/probe" && mount -t cgroup2 cgroup2 "$1/probe" && mkdir "$1/probe/postern-probe-$$" &&
        rmdir "$1/probe/postern-probe-$$""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "probe"]).arg(at);
    run(command, "").status.success()
}

/// The configuration of docs/service-files.md.
fn documented() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/service-files.md");
    let page = fs::read_to_string(page).expect("docs/service-files.md");
    let (_, block) = page.split_once("```toml\n").expect("a configuration");
    block.split_once("```").expect("its end").0.to_owned()
}

#[test]
fn systemd_runs_the_units_as_the_manual_says() {
    if !is_root() || private_mounts(&[]).is_none() {
        return skip("needs root for name spaces");
    }
    if !have(&["make", "unshare", "nsenter", "systemctl", "systemd-sysusers", "openssl", "curl", "postconf"])
    {
        return;
    }
    let scratch = scratch();
    if !has_control_groups(scratch.path()) {
        println!("SKIP no control groups can be made here: systemd cannot be started");
        return;
    }
    let machine = Machine::boot(scratch.path());
    machine.done("systemd-sysusers postern.conf && systemd-tmpfiles --create postern.conf");
    let settings = machine.path("/etc/postern/postern.toml");
    fs::write(&settings, documented()).expect("settings");
    machine.done("postern user add bob --password-stdin");

    // No process is root; the socket is systemd's.
    machine.done("systemctl enable --now postern-auth");
    machine.logs_in();
    machine.done("systemctl reload postern-auth && systemctl restart postern-auth");
    machine.survives_kills("postern-auth");
    machine.done("systemctl stop postern-auth");
    machine.logs_in();
    let account = fs::metadata(machine.path("/var/lib/postern")).expect("there").uid();
    let supervisor = machine.main_of("postern-auth");
    for pid in descendants(supervisor).into_iter().chain([supervisor]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        assert!(account != 0 && status.contains(&format!("Uid:\t{account}\t")), "{status}");
    }
    machine.done("systemctl disable --now postern-auth.socket postern-auth.service");
    assert!(!machine.path(SOCKET).exists());

    // Started by root: first only what Postfix needs, then everything, without a moment of absence.
    let told = machine.run("systemctl enable --now postern");
    assert!(!told.status.success(), "the folder is another account's");
    let advice = machine.done("journalctl --no-pager -o cat -u postern");
    let advice = advice.lines().find_map(|line| line.split_once("chown root: ")).expect("advice").1;
    let folders = advice.split(';').next().unwrap_or_default();
    machine.done(&format!("chown root: {folders} && systemctl start postern"));
    machine.logs_in();
    machine.done("systemctl restart postern && systemctl restart postern");
    machine.logs_in();
    let more = "\n[[tls.certificate]]\nchain = \"/etc/cert.pem\"\nkey = \"/etc/key.pem\"\n\
                [[smtp.listener]]\nname = \"smtp\"\ntype = \"inbound\"\naddress = \"127.0.0.1:25\"\n\
                [[imap.listener]]\nname = \"imaps\"\naddress = \"127.0.0.1:993\"\ntls = \"implicit\"\n";
    fs::write(&settings, documented() + more).expect("settings");
    machine.done("systemctl reload postern");
    machine.reads_mail();
    machine.survives_kills("postern");
    machine.reads_mail();
    // The ports stay the stack's business: nothing takes them at the next boot.
    assert!(!machine.run("systemctl is-enabled postern.socket").status.success());
    machine.done("systemctl stop postern");
    assert_eq!(machine.done("systemctl show -P Result postern").trim(), "success");

    // One account for all: the folder stays its own at every start.
    machine.done("rm -r /var/lib/postern && chgrp postern /etc/postern/users");
    fs::write(&settings, documented().replace("version = 1", "version = 1\nrun_as = \"postern\"") + more)
        .expect("settings");
    for _ in 0..2 {
        machine.done("systemctl restart postern");
        machine.reads_mail();
    }
    machine.done("systemctl stop postern");

    // No root at all, with the ports of postern.socket.
    machine.done(
        "mkdir /etc/systemd/system/postern.service.d && rm -r /var/lib/postern && chown postern /etc/key.pem && \
         cp /usr/local/share/doc/postern/examples/one-account.conf /etc/systemd/system/postern.service.d/",
    );
    let own = documented().replace(SOCKET, "/run/postern/auth");
    let own: String = own
        .lines()
        .filter(|line| !["owner", "group"].iter().any(|key| line.starts_with(key)))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&settings, own + &more.replace("127.0.0.1:", "0.0.0.0:")).expect("settings");
    machine.done("systemctl daemon-reload && systemctl enable --now postern.socket postern.service");
    machine.done("systemctl restart postern");
    machine.reads_mail();
}
