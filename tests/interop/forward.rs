//! `auth-daemon forward`: stock programs at a local socket, the daemon behind mutual TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::reference::Postfix;
use crate::scenario::Target;
use crate::support::{
    HOSTNAME, PASSWORD, Stack, USER, have, is_root, peer, postern, run, show, signal, skip, stdout, wait_for,
};

/// A CA with a certificate for each end.
fn certificates(folder: &Path) {
    fs::create_dir_all(folder).expect("folder");
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.pem"), params.self_signed(&key).expect("CA").pem()).expect("written");
    let issuer = Issuer::new(params, key);
    for name in ["far", "near"] {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![format!("{name}.example.test")]).expect("name");
        let made = params.signed_by(&key, &issuer).expect("signed");
        fs::write(folder.join(format!("{name}.pem")), made.pem()).expect("written");
        let path = folder.join(format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    }
}

/// A running forwarder; ends with the value.
struct Forwarder(Child);

impl Forwarder {
    fn start(log: &Path, arguments: &[&str]) -> Forwarder {
        let log = fs::File::options().create(true).append(true).open(log).expect("log");
        let mut command = postern();
        command.args(["auth-daemon", "forward"]).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("started");
        Forwarder(child)
    }

    fn stop(&mut self) {
        signal(self.0.id(), Signal::SIGTERM);
        assert!(self.0.wait().expect("wait").success());
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.0.id(), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

struct Tunnel {
    near: Forwarder,
    far: Forwarder,
    stack: Stack,
    socket: PathBuf,
    port: u16,
}

impl Tunnel {
    fn start() -> Tunnel {
        let stack = Stack::start();
        let w = stack.scratch();
        certificates(&w.join("pki"));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let socket = w.join("near/auth");
        let far = Tunnel::far(&stack, port);
        let near = Forwarder::start(
            &w.join("near.log"),
            &[
                "--socket",
                text(&socket),
                "--mode",
                "0666",
                "--connect",
                &format!("localhost:{port}"),
                "--server-name",
                "far.example.test",
                "--ca",
                text(&w.join("pki/ca.pem")),
                "--cert",
                text(&w.join("pki/near.pem")),
                "--key",
                text(&w.join("pki/near.key")),
            ],
        );
        let tunnel = Tunnel { near, far, socket, port, stack };
        wait_for("the near end", || UnixStream::connect(&tunnel.socket).ok());
        tunnel.wait_for_far();
        tunnel
    }

    fn far(stack: &Stack, port: u16) -> Forwarder {
        let w = stack.scratch();
        Forwarder::start(
            &w.join("far.log"),
            &[
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--client-ca",
                text(&w.join("pki/ca.pem")),
                "--to",
                text(&stack.socket("auth-client")),
                "--cert",
                text(&w.join("pki/far.pem")),
                "--key",
                text(&w.join("pki/far.key")),
            ],
        )
    }

    fn wait_for_far(&self) {
        wait_for("the far end", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.stack.scratch().join(name)).unwrap_or_default();
        format!("--- near\n{}--- far\n{}", read("near.log"), read("far.log"))
    }

    fn tried(&self, password: &str) -> Option<i32> {
        let mut command = postern();
        command.args(["auth", "test", USER, "--password-stdin", "--socket"]).arg(&self.socket);
        run(command, password).status.code()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn logins_through_the_tunnel_survive_a_restart_of_the_far_end() {
    let mut tunnel = Tunnel::start();
    let mode = fs::metadata(&tunnel.socket).expect("socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o666);
    assert_eq!(tunnel.tried(PASSWORD), Some(0), "{}", tunnel.log());
    assert_eq!(tunnel.tried("wrong"), Some(1), "{}", tunnel.log());
    if have(&["doveadm"]) {
        let config = tunnel.stack.scratch().join("doveadm.conf");
        let base = tunnel.stack.scratch().join("none");
        fs::write(&config, format!("base_dir = {}\nlog_path = /dev/stderr\nssl = no\n", base.display()))
            .expect("config");
        for (password, code) in [(PASSWORD, 0), ("wrong", 77)] {
            let mut command = peer("doveadm", tunnel.stack.scratch());
            command.arg("-c").arg(&config).args(["auth", "test", "-a", text(&tunnel.socket), USER, password]);
            let out = run(command, "");
            assert_eq!(out.status.code(), Some(code), "{}\n{}", show(&out), tunnel.log());
        }
    }

    // An established connection breaks with the far end; the near socket stays.
    let mut held = UnixStream::connect(&tunnel.socket).expect("connect");
    held.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut greeting = [0; 1024];
    assert!(held.read(&mut greeting).expect("greeting") > 0);
    tunnel.far.stop();
    assert_eq!(held.read(&mut greeting).expect("closed"), 0);
    // Nobody is there: the connection ends without a word, which every client takes for a temporary failure.
    let mut waiting = UnixStream::connect(&tunnel.socket).expect("the near end is there");
    waiting.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    assert_eq!(waiting.read(&mut greeting).expect("closed"), 0);
    tunnel.far = Tunnel::far(&tunnel.stack, tunnel.port);
    // No waiting here: a new connection waits for the far end by itself.
    assert_eq!(tunnel.tried(PASSWORD), Some(0), "{}", tunnel.log());

    tunnel.near.stop();
    assert!(!tunnel.socket.exists());
}

#[test]
fn strangers_are_refused() {
    if !have(&["openssl"]) {
        return;
    }
    let tunnel = Tunnel::start();
    let pki = tunnel.stack.scratch().join("pki");
    let other = tunnel.stack.scratch().join("other");
    certificates(&other);
    let greeting = |extra: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "far.example.test"]);
        command.args([
            "-connect",
            &format!("127.0.0.1:{}", tunnel.port),
            "-CAfile",
            text(&pki.join("ca.pem")),
        ]);
        command.args(extra);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let mut said = [0; 256];
        let count = child.stdout.as_mut().expect("stdout").read(&mut said).expect("read");
        let _ = child.kill();
        let _ = child.wait();
        String::from_utf8_lossy(&said[..count]).into_owned()
    };
    let (cert, key) = (pki.join("near.pem"), pki.join("near.key"));
    assert!(
        greeting(&["-cert", text(&cert), "-key", text(&key)]).starts_with("VERSION\t1\t"),
        "{}",
        tunnel.log()
    );
    assert_eq!(greeting(&[]), "", "without a certificate");
    let (cert, key) = (other.join("near.pem"), other.join("near.key"));
    assert_eq!(greeting(&["-cert", text(&cert), "-key", text(&key)]), "", "of another CA");
    assert_eq!(greeting(&["-tls1_2"]), "", "an older TLS");
    // Clear text gets nothing either.
    let mut socket = TcpStream::connect(("127.0.0.1", tunnel.port)).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    socket.write_all(b"VERSION\t1\t1\nCPID\t1\n").expect("written");
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said);
    assert!(!String::from_utf8_lossy(&said).contains("VERSION"), "{said:?}");
    assert!(tunnel.log().contains("refused"), "{}", tunnel.log());
    assert_eq!(tunnel.tried(PASSWORD), Some(0), "{}", tunnel.log());
}

#[test]
fn postfix_authenticates_through_the_tunnel() {
    if !is_root() {
        return skip("needs root to run a private Postfix");
    }
    if !have(&["postfix", "swaks"]) {
        return;
    }
    let mut tunnel = Tunnel::start();
    let postfix = Postfix::with_backend(&tunnel.socket, None, &[USER]);
    let address = format!("{USER}@{HOSTNAME}");
    let send = |password: &str| {
        let mut command = peer("swaks", tunnel.stack.scratch());
        command.args([
            "--server",
            "localhost",
            "--port",
            &postfix.port("submissions").to_string(),
            "--tls-on-connect",
        ]);
        command.args(["--from", &address, "--to", &address, "--timeout", "20"]);
        command.args(["--auth", "PLAIN", "--auth-user", USER, "--auth-password", password]);
        run(command, "")
    };
    let out = send(PASSWORD);
    assert!(out.status.success(), "{}\n{}\n{}", show(&out), postfix.log(), tunnel.log());
    postfix.wait_for_messages(USER, 1);
    let out = send("wrong");
    assert!(stdout(&out).contains("535 5.7.8"), "{}", show(&out));

    // Within a session that has seen the mechanisms: the connection breaks, which is no wrong password.
    let mut session = {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-quiet",
            "-crlf",
            "-connect",
            &format!("localhost:{}", postfix.port("submissions")),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl")
    };
    let mut input = session.stdin.take().expect("stdin");
    let mut output = std::io::BufReader::new(session.stdout.take().expect("stdout"));
    let mut answer = |last: &str| {
        let mut line = String::new();
        while !line.starts_with(last) {
            line.clear();
            assert!(
                std::io::BufRead::read_line(&mut output, &mut line).expect("read") > 0,
                "{}",
                postfix.log()
            );
        }
        line
    };
    answer("220 ");
    input.write_all(b"EHLO client.example.test\n").expect("written");
    answer("250 ");
    tunnel.far.stop();
    // alice NUL alice NUL wrong
    input.write_all(b"AUTH PLAIN YWxpY2UAYWxpY2UAd3Jvbmc=\n").expect("written");
    let line = answer("4");
    assert!(line.starts_with("454 4.7.0"), "{line}");
    let _ = session.kill();
    let _ = session.wait();

    tunnel.far = Tunnel::far(&tunnel.stack, tunnel.port);
    tunnel.wait_for_far();
    let out = send(PASSWORD);
    assert!(out.status.success(), "{}\n{}\n{}", show(&out), postfix.log(), tunnel.log());
}

#[test]
fn mistakes_of_the_administrator_are_told() {
    let scratch = tempfile::tempdir().expect("scratch");
    certificates(scratch.path());
    let at = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    let forward = |key: &str, ca: &str, cert: &str| {
        let mut command = postern();
        command.args(["auth-daemon", "forward", "--socket", &at("s"), "--connect", "localhost:1"]);
        command.args(["--ca", ca, "--cert", cert, "--key", key]);
        run(command, "")
    };
    let out = forward(&at("far.key"), &at("ca.pem"), &at("near.pem"));
    assert!(out.status.code() == Some(78) && show(&out).contains("does not belong"), "{}", show(&out));
    let out = forward(&at("near.key"), &at("none.pem"), &at("near.pem"));
    assert!(out.status.code() == Some(78) && show(&out).contains("none.pem"), "{}", show(&out));
    fs::set_permissions(at("near.key"), fs::Permissions::from_mode(0o644)).expect("mode");
    let out = forward(&at("near.key"), &at("ca.pem"), &at("near.pem"));
    assert!(out.status.code() == Some(78) && show(&out).contains("chmod 600"), "{}", show(&out));
}
