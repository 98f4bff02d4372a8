//! Private copies of the reference programs: Dovecot and Postfix in a scratch folder on free ports.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::scenario::{Place, Target};
use crate::support::{HOSTNAME, peer, poll, signal, wait_for, wait_within};

/// uid and gid of Debian's account `mail`.
const MAIL: u32 = 8;

fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::Builder::new().prefix("psr").tempdir_in("/tmp").expect("scratch");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    scratch
}

/// A free port, and never the same one twice in this process.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("lock");
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
        let port = listener.local_addr().expect("address").port();
        if given.insert(port) {
            return port;
        }
    }
}

/// Arguments of openssl that make a key and a certificate for `localhost`, signed by nobody else.
pub fn self_signed<'a>(key: &'a str, certificate: &'a str) -> Vec<&'a str> {
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
                 -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost";
    words.split(' ').chain(["-keyout", key, "-out", certificate]).collect()
}

/// A CA and a certificate for `localhost`, made with openssl.
pub fn certificates(folder: &Path) {
    let names = format!("DNS:localhost,DNS:{HOSTNAME},IP:127.0.0.1");
    postern_bench::certificates(folder, &names).expect("certificates");
}

fn wait_for_port(port: u16, log: impl Fn() -> String) {
    let told = || format!("port {port} does not answer:\n{}", log());
    wait_within(Duration::from_secs(20), told, || TcpStream::connect(("127.0.0.1", port)).ok());
}

/// Stops a daemon by the pid in its file and waits until it is gone.
pub fn stop_by_pid_file(path: &Path) {
    let Some(pid) = fs::read_to_string(path).ok().and_then(|p| p.trim().parse::<u32>().ok()) else { return };
    signal(pid, nix::sys::signal::Signal::SIGTERM);
    let gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    if poll(Duration::from_secs(10), gone).is_none() {
        signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

/// A private Dovecot with users alice and bob, password `pw`.
pub struct Dovecot {
    scratch: tempfile::TempDir,
    ports: [u16; 4],
}

impl Dovecot {
    pub fn start() -> Dovecot {
        let scratch = scratch();
        let w = scratch.path();
        certificates(&w.join("tls"));
        let ports = [free_port(), free_port(), free_port(), free_port()];
        fs::create_dir(w.join("mail")).expect("mail folder");
        chown(w.join("mail"), Some(MAIL), Some(MAIL)).expect("chown");
        let users = ["alice", "bob"].map(|u| format!("{u}@{HOSTNAME}:{{PLAIN}}pw\n")).concat();
        fs::write(w.join("users"), users).expect("users");
        for user in ["alice", "bob"] {
            for folder in ["", "/Maildir", "/Maildir/new", "/Maildir/cur", "/Maildir/tmp"] {
                let path = w.join("mail").join(user.to_owned() + folder);
                fs::create_dir(&path).expect("maildir");
                chown(&path, Some(MAIL), Some(MAIL)).expect("chown");
            }
        }
        let folders = ["Sent", "Drafts", "Junk", "Trash"]
            .map(|f| format!("  mailbox {f} {{\n auto = create\n special_use = \\{f}\n }}\n"))
            .concat();
        let text = format!(
            "base_dir = {w}/run\nstate_dir = {w}/state\ninstance_name = t\nlog_path = {w}/log\nprotocols = imap pop3\nlisten = 127.0.0.1\n\
             ssl = yes\nssl_cert = <{w}/tls/cert.pem\nssl_key = <{w}/tls/key.pem\nauth_mechanisms = plain login cram-md5 scram-sha-256\n\
             auth_failure_delay = 0\nauth_default_realm = {HOSTNAME}\nmail_location = maildir:~/Maildir\nfirst_valid_uid = 1\n\
             disable_plaintext_auth = yes\nmail_max_userip_connections = 0\nimap_idle_notify_interval = 2 mins\n\
             passdb {{\n driver = passwd-file\n args = username_format=%u {w}/users\n}}\n\
             userdb {{\n driver = static\n args = uid=mail gid=mail home={w}/mail/%n\n}}\n\
             namespace inbox {{\n inbox = yes\n separator = /\n{folders}}}\n\
             service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
             service auth {{\n unix_listener {w}/auth-client {{\n mode = 0666\n }}\n unix_listener {w}/auth-userdb {{\n mode = 0666\n }}\n}}\n\
             service imap-login {{\n inet_listener imap {{\n port = {}\n }}\n inet_listener imaps {{\n port = {}\n ssl = yes\n }}\n}}\n\
             service pop3-login {{\n inet_listener pop3 {{\n port = {}\n }}\n inet_listener pop3s {{\n port = {}\n ssl = yes\n }}\n}}\n",
            ports[0],
            ports[1],
            ports[2],
            ports[3],
            w = w.display(),
        );
        fs::write(w.join("dovecot.conf"), text).expect("dovecot.conf");
        let mut command = peer("dovecot", w);
        command.arg("-c").arg(w.join("dovecot.conf"));
        // dovecot detaches: its pipes would stay open, so it gets none.
        command
            .stdout(fs::File::create(w.join("out")).expect("out"))
            .stderr(fs::File::create(w.join("err")).expect("err"));
        let status = command.status().expect("dovecot");
        let dovecot = Dovecot { scratch, ports };
        assert!(status.success(), "dovecot: {}", dovecot.log());
        for port in ports {
            wait_for_port(port, || dovecot.log());
        }
        dovecot
    }

    pub fn auth_client(&self) -> PathBuf {
        self.scratch.path().join("auth-client")
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        stop_by_pid_file(&self.scratch.path().join("run/master.pid"));
    }
}

impl Target for Dovecot {
    fn place(&self, service: &str) -> Place {
        let index = match service {
            "imap" => 0,
            "imaps" => 1,
            "pop3" => 2,
            "pop3s" => 3,
            socket => return Place::Unix(self.scratch.path().join(socket)),
        };
        Place::Tcp(SocketAddr::from(([127, 0, 0, 1], self.ports[index])))
    }

    fn ca(&self) -> PathBuf {
        self.scratch.path().join("tls/ca.pem")
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.scratch.path().join("mail").join(user).join("Maildir")
    }

    fn log(&self) -> String {
        ["log", "out", "err"]
            .map(|f| fs::read_to_string(self.scratch.path().join(f)).unwrap_or_default())
            .concat()
    }
}

/// A private Postfix: submission with STARTTLS and implicit TLS, inbound, local Maildirs. Its users come from
/// an auth socket in the Dovecot protocol.
pub struct Postfix {
    scratch: tempfile::TempDir,
    /// Kept running as long as Postfix asks it.
    _auth: Option<Dovecot>,
    ports: [u16; 3],
}

impl Postfix {
    /// With Dovecot as its backend.
    pub fn start() -> Postfix {
        let dovecot = Dovecot::start();
        let socket = dovecot.auth_client();
        Postfix::with_backend(&socket, Some(dovecot), &["alice", "bob"])
    }

    /// With any socket that speaks the Dovecot auth protocol.
    pub fn with_backend(auth_socket: &Path, auth: Option<Dovecot>, users: &[&str]) -> Postfix {
        let scratch = scratch();
        let w = scratch.path();
        certificates(&w.join("tls"));
        let ports = [free_port(), free_port(), free_port()];
        for folder in ["etc", "queue", "data", "log", "mail"] {
            fs::create_dir(w.join(folder)).expect("folder");
        }
        chown(w.join("mail"), Some(MAIL), Some(MAIL)).expect("chown");
        let status = Command::new("chown").arg("postfix").arg(w.join("data")).status().expect("chown");
        assert!(status.success());
        let maps: String = users.iter().map(|u| format!("{u}@{HOSTNAME} {u}/Maildir/\n")).collect();
        fs::write(w.join("etc/vmaps"), maps).expect("maps");
        fs::write(
            w.join("etc/main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {w}/queue\ndata_directory = {w}/data\nmail_owner = postfix\nsetgid_group = postdrop\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmaillog_file = {w}/log/maillog\nmaillog_file_prefixes = {w}/log\n\
                 myhostname = {HOSTNAME}\nmydestination =\nmynetworks =\ninet_interfaces = all\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
                 disable_dns_lookups = yes\nsmtp_host_lookup = native\nsmtpd_peername_lookup = no\nsmtpd_error_sleep_time = 0\nservice_throttle_time = 1s\n\
                 virtual_mailbox_domains = {HOSTNAME}\nvirtual_mailbox_base = {w}/mail\nvirtual_mailbox_maps = texthash:{w}/etc/vmaps\n\
                 virtual_uid_maps = static:8\nvirtual_gid_maps = static:8\nvirtual_minimum_uid = 1\nsmtpd_client_connection_count_limit = 0\n\
                 smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination\nsmtpd_tls_security_level = may\n\
                 smtpd_sasl_type = dovecot\nsmtpd_sasl_path = {socket}\nsmtpd_tls_auth_only = yes\n\
                 smtpd_tls_chain_files = {w}/tls/key.pem, {w}/tls/cert.pem\n",
                w = w.display(),
                socket = auth_socket.display(),
            ),
        )
        .expect("main.cf");
        let mut master = format!(
            "127.0.0.1:{} inet n - n - 100 smtpd\n\
             127.0.0.1:{} inet n - n - 100 smtpd -o smtpd_tls_security_level=encrypt -o smtpd_sasl_auth_enable=yes\n\
             127.0.0.1:{} inet n - n - 100 smtpd -o smtpd_tls_wrappermode=yes -o smtpd_sasl_auth_enable=yes\n\
             pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
             rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\n\
             virtual unix - n n - - virtual\nanvil unix - - n - 1 anvil\nshowq unix n - n - - showq\npostlog unix-dgram n - n - 1 postlogd\n",
            ports[0], ports[1], ports[2]
        );
        for service in ["smtp", "lmtp", "error", "retry", "discard", "proxymap"] {
            master += &format!("{service} unix - - n - - {service}\n");
        }
        fs::write(w.join("etc/master.cf"), master).expect("master.cf");
        let mut command = peer("postfix", w);
        command.arg("-c").arg(w.join("etc")).arg("start");
        command
            .stdout(fs::File::create(w.join("out")).expect("out"))
            .stderr(fs::File::create(w.join("err")).expect("err"));
        let status = command.status().expect("postfix");
        let postfix = Postfix { scratch, _auth: auth, ports };
        assert!(status.success(), "postfix: {}", postfix.log());
        for port in postfix.ports {
            wait_for_port(port, || postfix.log());
        }
        postfix
    }

    pub fn port(&self, service: &str) -> u16 {
        self.ports[match service {
            "smtp" => 0,
            "submission" => 1,
            _ => 2,
        }]
    }

    pub fn wait_for_messages(&self, user: &str, count: usize) {
        let folder = self.maildir(user).join("new");
        wait_for("delivery by Postfix", || (fs::read_dir(&folder).ok()?.count() >= count).then_some(()));
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        stop_by_pid_file(&self.scratch.path().join("queue/pid/master.pid"));
    }
}

impl Target for Postfix {
    fn place(&self, service: &str) -> Place {
        Place::Tcp(SocketAddr::from(([127, 0, 0, 1], self.port(service))))
    }

    fn ca(&self) -> PathBuf {
        self.scratch.path().join("tls/ca.pem")
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.scratch.path().join("mail").join(user).join("Maildir")
    }

    fn log(&self) -> String {
        ["log/maillog", "out", "err"]
            .map(|f| fs::read_to_string(self.scratch.path().join(f)).unwrap_or_default())
            .concat()
    }
}
