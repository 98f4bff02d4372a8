//! A disk that is full, read-only, or somebody else's: the client hears 4xx, nothing is left behind, the log says why.
//!
//! Each case runs this test program again, in a mount namespace of its own or as another user, and reads what it logs.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use boot::logging::{LogFormat, LogOptions};
use conf::SmtpKind;

use super::tests::{Client, Rig};

/// uid and gid of Debian's `nobody`.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Says why a test did nothing; fails instead where skips are forbidden.
fn skip(reason: &str) {
    assert!(
        std::env::var("POSTERN_TEST_SKIPS").as_deref() != Ok("fail"),
        "SKIP is not allowed here: {reason}"
    );
    println!("SKIP {reason}");
}

/// Runs one of the inner tests below with `start` in front of it.
fn inner(mut start: Command, name: &str) -> Option<Output> {
    let test = format!("connection::disk_tests::{name}");
    let output = start.args(["--exact", &test, "--ignored", "--nocapture"]).current_dir("/").output().ok()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
    Some(output)
}

fn logged(output: &Output, parts: &[&str]) {
    let log = String::from_utf8_lossy(&output.stderr);
    let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "no line with {parts:?} in:\n{log}");
}

fn log_to_stderr() {
    boot::logging::init(&LogOptions::new("smtp", "info", LogFormat::Human)).unwrap();
}

async fn ready(rig: &Rig) -> Client {
    let mut client = rig.client(SmtpKind::Inbound).await;
    client.say("EHLO me", "250-").await;
    client
}

async fn send(client: &mut Client, lines: usize, reply: &str) {
    client
        .talk(&[
            ("MAIL FROM:<a@x>", "250"),
            ("RCPT TO:<alice@mx.test>", "250"),
            ("RCPT TO:<bob@mx.test>", "250"),
            ("DATA", "354"),
        ])
        .await;
    client.send(format!("{}\r\n", "x".repeat(78)).repeat(lines).as_bytes()).await;
    client.say(".", reply).await;
}

fn mount(args: &[&str], place: &Path) {
    let status = Command::new("mount").args(args).arg(place).status().unwrap();
    assert!(status.success(), "mount {args:?}");
}

fn nothing_is_left(rig: &Rig, delivered: usize) {
    for user in ["alice", "bob"] {
        assert_eq!((rig.auth.staged(user), rig.auth.inbox(user).len()), (0, delivered), "{user}");
    }
}

#[test]
fn full_and_read_only_disks() {
    if !is_root() {
        return skip("needs root for a mount namespace");
    }
    let mut start = Command::new("unshare");
    start.args(["--mount", "--"]).arg(std::env::current_exe().unwrap());
    match inner(start, "in_a_mount_namespace") {
        Some(output) => {
            logged(&output, &["ERROR", "delivery failed", "no space", "alice@mx.test"]);
            logged(&output, &["ERROR", "delivery failed", "permission denied"]);
        }
        None => skip("there is no unshare"),
    }
}

#[tokio::test]
#[ignore = "started by full_and_read_only_disks"]
async fn in_a_mount_namespace() {
    log_to_stderr();
    let rig = Rig::new();
    let mail = rig.auth.home("");
    std::fs::create_dir_all(&mail).unwrap();
    // Room for two small messages with their folders, not for a large one.
    mount(&["-t", "tmpfs", "-o", "size=64k,nr_inodes=40", "none"], &mail);
    let mut client = ready(&rig).await;
    send(&mut client, 10, "250 2.0.0").await;
    send(&mut client, 2_000, "452 4.3.1").await;
    nothing_is_left(&rig, 1);
    // So small that it is written only at its end.
    std::fs::write(mail.join("ballast"), vec![0; 64 * 1024]).unwrap_err();
    send(&mut client, 10, "452 4.3.1").await;
    nothing_is_left(&rig, 1);
    std::fs::remove_file(mail.join("ballast")).unwrap();
    // No inodes left: not even an empty file can be made.
    let files = (0..40).map_while(|n| std::fs::write(mail.join(n.to_string()), "").ok().map(|()| n));
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty());
    send(&mut client, 10, "452 4.3.1").await;
    nothing_is_left(&rig, 1);
    mount(&["-o", "remount,ro"], &mail);
    send(&mut client, 10, "451 4.3.0").await;
    nothing_is_left(&rig, 1);
    mount(&["-o", "remount,rw"], &mail);
    for number in files {
        std::fs::remove_file(mail.join(number.to_string())).unwrap();
    }
    send(&mut client, 10, "250 2.0.0").await;
    nothing_is_left(&rig, 2);
}

#[test]
fn a_maildir_of_somebody_else() {
    // A copy in a place that everybody may enter: the build may lie below a private folder.
    let place = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = place.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut start = Command::new(program);
    if is_root() {
        start.uid(NOBODY).gid(NOBODY);
    }
    match inner(start, "as_nobody") {
        Some(output) => logged(&output, &["ERROR", "delivery failed", "permission denied", "bob@mx.test"]),
        None => skip("another user cannot run this test program"),
    }
}

#[tokio::test]
#[ignore = "started by a_maildir_of_somebody_else"]
async fn as_nobody() {
    use std::os::unix::fs::PermissionsExt as _;
    log_to_stderr();
    let rig = Rig::new();
    let mut client = ready(&rig).await;
    send(&mut client, 10, "250 2.0.0").await;
    let home = rig.auth.home("bob");
    let allow = |place: &Path, mode| {
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (place, without) in [
        ("Maildir/tmp", 0o500),
        ("Maildir/tmp", 0o000),
        ("Maildir/new", 0o500),
        ("Maildir/new", 0o000),
        ("Maildir", 0o000),
        ("", 0o000),
    ] {
        let place = home.join(place);
        allow(&place, without);
        send(&mut client, 10, "451 4.3.0").await;
        allow(&place, 0o700);
        assert_eq!((rig.auth.staged("alice"), rig.auth.staged("bob")), (0, 0), "{}", place.display());
        assert_eq!(rig.auth.inbox("bob").len(), 1, "{}", place.display());
    }
    send(&mut client, 10, "250 2.0.0").await;
    assert_eq!(rig.auth.inbox("bob").len(), 2);
}
