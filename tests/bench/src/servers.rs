//! Starting and stopping both sides, each with the settings that the report shows.
//!
//! Everything lies in a scratch folder and listens on unix sockets and 127.0.0.1. Peers are set up for their best: see
//! the comments at their settings, which the report repeats.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::load::{auth, mux};
use crate::proc;

/// Longest time a server may take to answer its first question; reading a million users is the slowest.
const START: Duration = Duration::from_secs(60);
/// Domain of all users.
pub(crate) const DOMAIN: &str = "example.test";
/// Account that Postern's daemons run as.
const ACCOUNT: &str = "nobody";
/// Debian's account for mail.
const MAIL_UID: u32 = 8;

/// A server that runs.
pub(crate) struct Server {
    roots: Vec<u32>,
    child: Option<Child>,
    /// Its settings, scratch paths written as `$W`.
    pub(crate) settings: String,
    /// From the start of the program to its first answer.
    pub(crate) start_seconds: f64,
}

impl Server {
    /// The processes it was started as.
    pub(crate) fn roots(&self) -> &[u32] {
        &self.roots
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let family = proc::tree(&self.roots);
        for pid in &self.roots {
            signal(*pid, Signal::SIGTERM);
        }
        let limit = Instant::now() + Duration::from_secs(10);
        let mut ended = false;
        while !ended && Instant::now() < limit {
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            std::thread::sleep(Duration::from_millis(10));
            ended = !family.iter().any(|pid| alive(*pid));
        }
        if !ended {
            for pid in family.iter().filter(|pid| alive(**pid)) {
                signal(*pid, Signal::SIGKILL);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A folder that every account can pass through.
pub(crate) fn folder(path: &Path, owner: Option<u32>) -> anyhow::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if owner.is_some() {
        chown(path, owner, None)?;
    }
    Ok(())
}

/// A port nobody listens on now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    // Below the range of outgoing connections, which the load takes its ports from.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if port > 30_000 {
            bail!("no free port");
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let file = fs::File::create(log)?;
    let name = format!("{:?}", command.get_program());
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("POSTERN_CONFIG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .spawn()
        .with_context(|| format!("starting {name}"))
}

fn wait_until(what: &str, log: &Path, mut ready: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let limit = Instant::now() + START;
    loop {
        let Err(error) = ready() else { return Ok(()) };
        if Instant::now() > limit {
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("{what} did not come up: {error:#}\n{text}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn uid_of(account: &str) -> anyhow::Result<u32> {
    Ok(User::from_name(account)?.with_context(|| format!("no account {account}"))?.uid.as_raw())
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// What an authentication server is asked to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AuthOptions<'a> {
    /// `user:{SCHEME}…` lines.
    pub(crate) users: &'a Path,
    /// Verdicts may be remembered.
    pub(crate) cache: bool,
    /// Dovecot: the same users in SQLite, asked by as many workers as there are CPUs.
    pub(crate) sql: bool,
    /// One log line per login.
    pub(crate) audit: bool,
    /// A login that must succeed once the server is up.
    pub(crate) proof: &'a [u8],
}

/// An authentication server and the socket it answers on.
pub(crate) struct AuthServer {
    /// The server.
    pub(crate) server: Server,
    /// Its socket for Dovecot's client protocol.
    pub(crate) socket: PathBuf,
}

/// Our daemon, with a listener and a passwd-file and nothing else.
pub(crate) fn postern_auth(
    program: &Path,
    work: &Path,
    options: AuthOptions<'_>,
) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    folder(&work.join("state"), Some(uid_of(ACCOUNT)?))?;
    let settings = format!(
        "version = 1\nhostname = \"mail.{DOMAIN}\"\nstate_dir = \"$W/state\"\nrun_as = \"{ACCOUNT}\"\n\n\
         [log]\nlevel = \"{level}\"\n\n\
         [auth]\nmechanisms = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\", \"SCRAM-SHA-256\"]\nfailure_delay = \"0s\"\n\n\
         [auth.penalty]\nenabled = false\n\n\
         [auth.cache]\n{cache}\n\n\
         [[auth.listener]]\nname = \"bench\"\ntype = \"client\"\npath = \"$W/auth\"\nmode = \"0666\"\nreply_deadline = \"60s\"\n\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [limits]\nauth_connections = 20000\nopen_files = 65536\n",
        level = if options.audit { "info" } else { "warn" },
        cache = if options.cache { "ttl = \"1h\"" } else { "size = \"0\"" },
    );
    let config = work.join("postern.toml");
    write_settings(&config, &settings, work, Some(options.users))?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(&config);
    let log = work.join("log");
    let socket = work.join("auth");
    let began = Instant::now();
    let child = spawn(command, &log)?;
    let mut server = Server { roots: vec![child.id()], child: Some(child), settings, start_seconds: 0.0 };
    wait_until("Postern", &log, || auth::login_once(&socket, options.proof))?;
    server.start_seconds = began.elapsed().as_secs_f64();
    Ok(AuthServer { server, socket })
}

/// Dovecot with its auth service and nothing else.
pub(crate) fn dovecot_auth(work: &Path, options: AuthOptions<'_>) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let passdb = if options.sql {
        fs::write(
            work.join("sql.conf"),
            format!(
                "driver = sqlite\nconnect = {}/users.db\npassword_query = SELECT password FROM users WHERE name = '%u'\n",
                work.display()
            ),
        )?;
        sqlite(&work.join("users.db"), options.users)?;
        "driver = sql\n  args = $W/sql.conf".to_owned()
    } else {
        "driver = passwd-file\n  args = username_format=%u $USERS".to_owned()
    };
    let cache = if options.cache {
        "auth_cache_size = 64 M\nauth_cache_verify_password_with_worker = yes\n"
    } else {
        ""
    };
    let settings = format!(
        "base_dir = $W/run\nstate_dir = $W/state\ninstance_name = bench\nlog_path = $W/dovecot.log\n\
         protocols =\nlisten = 127.0.0.1\nssl = no\n\
         auth_mechanisms = plain login cram-md5 scram-sha-256\n\
         # No delays: neither the fixed one nor the penalty by address.\n\
         auth_failure_delay = 0\nservice anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         # Limits above the load.\n\
         default_client_limit = 20000\ndefault_process_limit = 1000\ndefault_vsz_limit = 4 G\n\
         # As many workers as CPUs (used by SQL only).\n\
         auth_worker_max_count = {cpus}\n{cache}{verbose}\
         passdb {{\n  {passdb}\n}}\nuserdb {{\n  driver = static\n  args = uid=mail gid=mail home=/nonexistent\n}}\n\
         service auth {{\n  client_limit = 20000\n  unix_listener $W/auth {{\n    mode = 0666\n  }}\n}}\n",
        verbose = if options.audit { "auth_verbose = yes\n" } else { "" },
    );
    let config = work.join("dovecot.conf");
    write_settings(&config, &settings, work, Some(options.users))?;
    let mut command = Command::new("dovecot");
    command.args(["-F", "-c"]).arg(&config);
    let log = work.join("log");
    let socket = work.join("auth");
    let began = Instant::now();
    let child = spawn(command, &log)?;
    let mut server = Server { roots: vec![child.id()], child: Some(child), settings, start_seconds: 0.0 };
    wait_until("Dovecot", &work.join("dovecot.log"), || auth::login_once(&socket, options.proof))?;
    server.start_seconds = began.elapsed().as_secs_f64();
    Ok(AuthServer { server, socket })
}

/// Writes a settings file; `$W` and `$USERS` become paths.
fn write_settings(path: &Path, text: &str, work: &Path, users: Option<&Path>) -> anyhow::Result<()> {
    let mut text = text.replace("$W", &work.display().to_string());
    if let Some(users) = users {
        text = text.replace("$USERS", &users.display().to_string());
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// A table `users(name primary key, password)` from a passwd-file.
fn sqlite(database: &Path, users: &Path) -> anyhow::Result<()> {
    let script = "import sqlite3,sys\n\
                  c=sqlite3.connect(sys.argv[1])\n\
                  c.execute('create table users(name text primary key, password text)')\n\
                  c.executemany('insert into users values(?,?)',(l.rstrip('\\n').split(':',1) for l in open(sys.argv[2])))\n\
                  c.commit()\n";
    output(Command::new("python3").args(["-c", script]).arg(database).arg(users))?;
    fs::set_permissions(database, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// A CA, and a P-256 certificate for `localhost`: `ca.pem`, `cert.pem`, `key.pem`.
pub(crate) fn certificates(folder: &Path) -> anyhow::Result<()> {
    self::folder(folder, None)?;
    let openssl = |args: &[&str]| output(Command::new("openssl").args(args).current_dir(folder)).map(drop);
    fs::write(folder.join("ext"), "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=bench CA", "-keyout", "ca.key", "-out", "ca.pem"];
    let ca_ext = ["-addext", "keyUsage=critical,keyCertSign"];
    openssl(&[&ca[..], &key[..], &ca_ext[..]].concat())?;
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "csr.pem"];
    openssl(&[&request[..], &key[..]].concat())?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "csr.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "ext",
        "-out",
        "cert.pem",
    ])
}

/// A mail server and its ports.
pub(crate) struct MailServer {
    /// Its processes.
    pub(crate) servers: Vec<Server>,
    /// Submission with TLS from the first byte.
    pub(crate) smtp: u16,
    /// IMAP with TLS from the first byte.
    pub(crate) imap: u16,
    /// POP3 with TLS from the first byte.
    pub(crate) pop3: u16,
}

impl MailServer {
    /// All processes it was started as.
    pub(crate) fn roots(&self) -> Vec<u32> {
        self.servers.iter().flat_map(|server| server.roots().to_vec()).collect()
    }
}

fn wait_for_port(port: u16, log: &Path) -> anyhow::Result<()> {
    wait_until(&format!("port {port}"), log, || {
        TcpStream::connect(("127.0.0.1", port))?;
        Ok(())
    })
}

/// Our whole stack on one configuration file.
pub(crate) fn postern_stack(
    program: &Path,
    work: &Path,
    users: &Path,
    tls: &Path,
) -> anyhow::Result<MailServer> {
    let uid = uid_of(ACCOUNT)?;
    folder(work, None)?;
    folder(&work.join("state"), Some(uid))?;
    folder(&work.join("mail"), Some(uid))?;
    for file in ["cert.pem", "key.pem"] {
        fs::copy(tls.join(file), work.join(file))?;
    }
    fs::set_permissions(work.join("key.pem"), fs::Permissions::from_mode(0o600))?;
    let (smtp, imap, pop3) = (free_port()?, free_port()?, free_port()?);
    let settings = format!(
        "version = 1\nhostname = \"mail.{DOMAIN}\"\nstate_dir = \"$W/state\"\nrun_as = \"{ACCOUNT}\"\n\n\
         [log]\nlevel = \"warn\"\n\n\
         [[tls.certificate]]\nchain = \"$W/cert.pem\"\nkey = \"$W/key.pem\"\n\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [mail]\nhome = \"$W/mail/%{{user}}\"\n\n\
         [[smtp.listener]]\nname = \"submissions\"\naddress = \"127.0.0.1:{smtp}\"\ntype = \"submissions\"\n\n\
         [[imap.listener]]\nname = \"imaps\"\naddress = \"127.0.0.1:{imap}\"\ntls = \"implicit\"\n\n\
         [[pop3.listener]]\nname = \"pop3s\"\naddress = \"127.0.0.1:{pop3}\"\ntls = \"implicit\"\n\n\
         [limits]\nconnections = 10000\nconnections_per_address = 10000\n"
    );
    let config = work.join("postern.toml");
    write_settings(&config, &settings, work, Some(users))?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(&config);
    let log = work.join("log");
    let began = Instant::now();
    let child = spawn(command, &log)?;
    let mut server = Server { roots: vec![child.id()], child: Some(child), settings, start_seconds: 0.0 };
    wait_until("Postern", &log, || {
        let text = fs::read_to_string(&log)?;
        if text.contains("all daemons are ready") || all_ready(&[smtp, imap, pop3]) {
            Ok(())
        } else {
            bail!("not ready")
        }
    })?;
    server.start_seconds = began.elapsed().as_secs_f64();
    Ok(MailServer { servers: vec![server], smtp, imap, pop3 })
}

/// With log level `warn` readiness is not logged: every port greets through TLS only once its daemon runs, so a
/// handshake's first byte back is the sign.
fn all_ready(ports: &[u16]) -> bool {
    use std::io::{Read as _, Write as _};
    ports.iter().all(|port| {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", *port)) else { return false };
        let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
        // No TLS record: the server answers with an alert, or hangs up.
        let _ = socket.write_all(b"\x15\x03\x01\x00\x02\x02\x28");
        let mut byte = [0];
        socket.read(&mut byte).is_ok()
    })
}

/// Dovecot for IMAP and POP3, and Postfix with Dovecot's auth socket for submission.
pub(crate) fn dovecot_and_postfix(work: &Path, users: &Path, tls: &Path) -> anyhow::Result<MailServer> {
    folder(work, None)?;
    folder(&work.join("mail"), Some(MAIL_UID))?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (smtp, imap, pop3) = (free_port()?, free_port()?, free_port()?);
    for file in ["cert.pem", "key.pem"] {
        fs::copy(tls.join(file), work.join(file))?;
    }
    fs::set_permissions(work.join("key.pem"), fs::Permissions::from_mode(0o600))?;
    let login = format!("  service_count = 0\n  process_min_avail = {cpus}\n  client_limit = 20000\n");
    let settings = format!(
        "base_dir = $W/run\nstate_dir = $W/state\ninstance_name = bench\nlog_path = $W/dovecot.log\n\
         protocols = imap pop3\nlisten = 127.0.0.1\nssl = required\nssl_cert = <$W/cert.pem\nssl_key = <$W/key.pem\n\
         auth_mechanisms = plain login\nauth_failure_delay = 0\n\
         mail_location = maildir:~/Maildir\nfirst_valid_uid = 1\nmail_max_userip_connections = 0\n\
         default_client_limit = 20000\ndefault_process_limit = 1000\ndefault_vsz_limit = 4 G\n\
         service anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         passdb {{\n  driver = passwd-file\n  args = username_format=%u $USERS\n}}\n\
         userdb {{\n  driver = static\n  args = uid=mail gid=mail home=$W/mail/%n\n}}\n\
         service auth {{\n  client_limit = 20000\n  unix_listener $W/auth {{\n    mode = 0666\n  }}\n}}\n\
         # Login and mail processes serve many sessions each.\n\
         service imap-login {{\n{login}  inet_listener imap {{\n    port = 0\n  }}\n  inet_listener imaps {{\n    port = {imap}\n    ssl = yes\n  }}\n}}\n\
         service pop3-login {{\n{login}  inet_listener pop3 {{\n    port = 0\n  }}\n  inet_listener pop3s {{\n    port = {pop3}\n    ssl = yes\n  }}\n}}\n\
         service imap {{\n  service_count = 0\n  process_min_avail = {cpus}\n  client_limit = 1000\n}}\n\
         service pop3 {{\n  service_count = 0\n  process_min_avail = {cpus}\n  client_limit = 1000\n}}\n"
    );
    let config = work.join("dovecot.conf");
    write_settings(&config, &settings, work, Some(users))?;
    let mut command = Command::new("dovecot");
    command.args(["-F", "-c"]).arg(&config);
    let log = work.join("dovecot.log");
    let began = Instant::now();
    let child = spawn(command, &work.join("log"))?;
    let mut dovecot = Server { roots: vec![child.id()], child: Some(child), settings, start_seconds: 0.0 };
    wait_for_port(imap, &log)?;
    wait_for_port(pop3, &log)?;
    dovecot.start_seconds = began.elapsed().as_secs_f64();
    let postfix = postfix(work, smtp)?;
    Ok(MailServer { servers: vec![dovecot, postfix], smtp, imap, pop3 })
}

fn postfix(work: &Path, port: u16) -> anyhow::Result<Server> {
    for name in ["etc", "queue", "data", "pflog"] {
        folder(&work.join("pf").join(name), None)?;
    }
    chown(work.join("pf/data"), Some(uid_of("postfix")?), None)?;
    let main = "compatibility_level = 3.6\nqueue_directory = $W/pf/queue\ndata_directory = $W/pf/data\nmail_owner = postfix\n\
         setgid_group = postdrop\ncommand_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\n\
         maillog_file = $W/pf/pflog/maillog\nmaillog_file_prefixes = $W/pf/pflog\nmyhostname = mail.example.test\nmydestination =\n\
         mynetworks =\ninet_interfaces = all\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
         # No look-ups of names, no limits by address, no delays.\n\
         disable_dns_lookups = yes\nsmtp_host_lookup = native\nsmtpd_peername_lookup = no\nsmtpd_error_sleep_time = 0\nin_flow_delay = 0\n\
         smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\nservice_throttle_time = 1s\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
         smtpd_tls_security_level = may\nsmtpd_tls_chain_files = $W/key.pem, $W/cert.pem\n\
         smtpd_sasl_type = dovecot\nsmtpd_sasl_path = $W/auth\n";
    let mut master = format!(
        "127.0.0.1:{port} inet n - n - 200 smtpd -o smtpd_tls_wrappermode=yes -o smtpd_sasl_auth_enable=yes\n\
         pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
         tlsmgr unix - - n 1000? 1 tlsmgr\nrewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\n\
         defer unix - - n - 0 bounce\nanvil unix - - n - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n"
    );
    for service in ["smtp", "error", "retry", "discard", "proxymap", "showq"] {
        master += &format!("{service} unix - - n - - {service}\n");
    }
    let etc = work.join("pf/etc");
    write_settings(&etc.join("main.cf"), main, work, None)?;
    fs::write(etc.join("master.cf"), &master)?;
    let began = Instant::now();
    // Its children must not hold a pipe of ours open.
    let log = work.join("pf/log");
    let mut command = Command::new("postfix");
    command.arg("-c").arg(&etc).arg("start");
    let status = spawn(command, &log)?.wait()?;
    if !status.success() {
        bail!("postfix start: {}", fs::read_to_string(&log).unwrap_or_default());
    }
    wait_for_port(port, &log)?;
    let start_seconds = began.elapsed().as_secs_f64();
    let pid = fs::read_to_string(work.join("pf/queue/pid/master.pid"))?;
    let pid = pid.trim().parse().context("Postfix's pid file")?;
    let settings = format!("# main.cf\n{main}# master.cf\n{master}");
    Ok(Server { roots: vec![pid], child: None, settings, start_seconds })
}

/// A private `/etc` with one account `tester`, password `pw1`, for PAM and shadow.
pub(crate) fn private_etc(work: &Path) -> anyhow::Result<()> {
    folder(work, None)?;
    folder(&work.join("etc/pam.d"), None)?;
    let hash = output(Command::new("openssl").args(["passwd", "-6", "pw1"]))?;
    let passwd = fs::read_to_string("/etc/passwd")?;
    let shadow = fs::read_to_string("/etc/shadow")?;
    fs::write(work.join("etc/passwd"), passwd + "tester:x:61000:61000::/nonexistent:/usr/sbin/nologin\n")?;
    fs::write(work.join("etc/shadow"), shadow + &format!("tester:{hash}:19000:0:99999:7:::\n"))?;
    fs::set_permissions(work.join("etc/shadow"), fs::Permissions::from_mode(0o640))?;
    fs::write(
        work.join("etc/pam.d/smtp"),
        "auth required pam_unix.so nodelay\naccount required pam_unix.so\n",
    )?;
    Ok(())
}

/// saslauthd, or Postern under its name, with the same flags in the private `/etc`.
pub(crate) fn saslauthd(
    ours: Option<&Path>,
    work: &Path,
    etc: &Path,
    name: &str,
    flags: &str,
) -> anyhow::Result<AuthServer> {
    folder(work, None)?;
    let program = match ours {
        Some(program) => {
            let link = work.join("saslauthd");
            if !link.exists() {
                symlink(program, &link)?;
            }
            link
        }
        None => PathBuf::from("/usr/sbin/saslauthd"),
    };
    let place = work.join(name);
    folder(&place, None)?;
    let script = format!(
        "mount -t overlay o -o lowerdir={}:/etc /etc && exec {} {flags} -m {}",
        etc.display(),
        program.display(),
        place.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let began = Instant::now();
    let log = work.join(format!("{name}.log"));
    let status = spawn(command, &log)?.wait()?;
    if !status.success() {
        bail!("saslauthd {flags}: {}", fs::read_to_string(&log).unwrap_or_default());
    }
    let socket = place.join("mux");
    let request = mux::request("tester", "pw1", "smtp");
    wait_until("the mux", &log, || mux::ask(&socket, &request))?;
    let start_seconds = began.elapsed().as_secs_f64();
    let pid = fs::read_to_string(place.join("saslauthd.pid"))?;
    let pid = pid.trim().parse().context("saslauthd.pid")?;
    let settings = format!("saslauthd {flags} -m $W/{name}\n");
    Ok(AuthServer { server: Server { roots: vec![pid], child: None, settings, start_seconds }, socket })
}
