//! The client against a real Dovecot (2.3 or 2.4's defaults): logins, exchanges, hand-over, lookups, a restart.
//!
//! Says `SKIP …` where Dovecot is missing or may not be started; `POSTERN_TEST_SKIPS=fail` makes that a failure.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use auth_client::{AuthClient, AuthRequest, Config, Error, Step};

struct Dovecot {
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Dovecot {
    /// A private Dovecot, or `None` where there is none.
    fn start() -> Option<Self> {
        let root =
            fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0);
        let present = Command::new("dovecot").arg("--version").stdout(Stdio::null()).status().is_ok();
        if !root || !present {
            let reason = "needs root and an installed Dovecot";
            assert_ne!(
                std::env::var("POSTERN_TEST_SKIPS").as_deref(),
                Ok("fail"),
                "SKIP is not allowed: {reason}"
            );
            println!("SKIP {reason}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().display();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("users"), "bob@example.test:{PLAIN}right\n").unwrap();
        let config = format!(
            "base_dir = {base}/run\nstate_dir = {base}/state\ninstance_name = auth-client-test\nlog_path = {base}/log\n\
             protocols =\nssl = no\nauth_mechanisms = plain login scram-sha-256\nauth_failure_delay = 0\n\
             first_valid_uid = 1\n\
             passdb {{\n driver = passwd-file\n args = username_format=%u {base}/users\n}}\n\
             userdb {{\n driver = static\n args = uid=mail gid=mail home={base}/mail/%n allow_all_users=no\n}}\n\
             service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
             service auth {{\n unix_listener auth-login {{\n mode = 0600\n }}\n unix_listener auth-master {{\n mode = 0600\n }}\n\
             unix_listener auth-userdb {{\n mode = 0600\n }}\n}}\n"
        );
        fs::write(folder.path().join("dovecot.conf"), config).unwrap();
        let mut dovecot = Self { folder, process: None };
        dovecot.launch();
        Some(dovecot)
    }

    fn launch(&mut self) {
        let mut command = Command::new("dovecot");
        command.arg("-F").arg("-c").arg(self.folder.path().join("dovecot.conf"));
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(quiet.spawn().unwrap());
        let socket = self.folder.path().join("run/auth-userdb");
        let end = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < end, "Dovecot does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let pid = process.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(process.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = process.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self) -> AuthClient {
        let run = self.folder.path().join("run");
        let config = Config::new(run.join("auth-login"), run.join("auth-master"), run.join("auth-userdb"));
        AuthClient::new(config.deadline(Duration::from_secs(20)))
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        self.stop();
    }
}

fn plain(password: &str) -> AuthRequest {
    AuthRequest::plain("imap", b"bob@example.test", password.as_bytes())
}

#[tokio::test]
async fn a_real_dovecot() {
    let Some(mut dovecot) = Dovecot::start() else { return };
    let client = dovecot.client();
    let names: Vec<_> = client.mechanisms().await.unwrap().iter().map(|mech| mech.name.to_string()).collect();
    for name in ["PLAIN", "LOGIN", "SCRAM-SHA-256"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }

    let Step::Ok(login) = client.authenticate(plain("right")).await.unwrap() else { panic!() };
    assert_eq!(login.user, "bob@example.test");
    let record = client.session(&login).await.unwrap();
    assert_eq!((record.user.as_str(), record.uid), ("bob@example.test", Some(8)));
    assert!(record.home.is_some_and(|home| home.ends_with("mail/bob")));
    assert!(matches!(client.session(&login).await, Err(Error::Failed(_))), "fetched once");

    let Step::Failed(failure) = client.authenticate(plain("wrong")).await.unwrap() else { panic!() };
    assert!(!failure.is_temporary());
    assert_eq!(failure.user.as_deref(), Some("bob@example.test"));

    let Step::Challenge(exchange, data) =
        client.authenticate(AuthRequest::new("login", "imap")).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(data, b"Username:");
    let Step::Challenge(exchange, _) = exchange.respond(b"bob@example.test").await.unwrap() else { panic!() };
    assert!(matches!(exchange.respond(b"right").await.unwrap(), Step::Ok(_)));

    assert!(client.user("bob@example.test", "smtp").await.unwrap().is_some());
    assert!(client.user("nobody@example.test", "smtp").await.unwrap().is_none());

    // Thirty at once over the one connection, right and wrong ones mixed.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..30 {
        let client = client.clone();
        tasks.spawn(async move {
            let right = n % 2 == 0;
            let step = client.authenticate(plain(if right { "right" } else { "wrong" })).await.unwrap();
            assert_eq!(matches!(step, Step::Ok(_)), right);
        });
    }
    tasks.join_all().await;

    dovecot.stop();
    dovecot.launch();
    let Step::Ok(login) = client.authenticate(plain("right")).await.unwrap() else { panic!() };
    assert!(client.session(&login).await.is_ok());
}
