//! A private Postfix for the tests in depth: services, chroot column and main.cf lines as each test says.
//! It takes mail for the test's host name and throws it away.

use std::fs;
use std::path::{Path, PathBuf};

use crate::private::{Lines, folder};
use crate::reference::{certificates, free_port, stop_by_pid_file};
use crate::support::{HOSTNAME, peer, wait_for};

/// The smtpd services of a test.
pub struct Service {
    /// In a chroot?
    pub chroot: bool,
    /// `-o` options.
    pub options: &'static str,
}

pub struct PostfixServer {
    folder: PathBuf,
    ports: Vec<u16>,
}

impl PostfixServer {
    /// The queue folder below `folder`, made with `private` in it as Postfix makes it.
    pub fn queue(folder: &Path) -> PathBuf {
        let queue = folder.join("queue");
        if !queue.exists() {
            fs::create_dir(&queue).expect("queue");
            self::folder(&queue.join("private"), "postfix", 0o700);
        }
        queue
    }

    pub fn start(folder: &Path, main: &str, services: &[Service]) -> PostfixServer {
        let w = folder;
        certificates(&w.join("tls"));
        fs::create_dir_all(w.join("etc")).expect("etc");
        fs::create_dir_all(w.join("maillog")).expect("maillog");
        fs::create_dir_all(w.join("queue")).expect("queue");
        self::folder(&w.join("data"), "postfix", 0o700);
        fs::write(
            w.join("etc/main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {w}/queue\ndata_directory = {w}/data\nmail_owner = postfix\nsetgid_group = postdrop\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmaillog_file = {w}/maillog/log\nmaillog_file_prefixes = {w}/maillog\n\
                 myhostname = {HOSTNAME}\nmydestination =\nmynetworks =\ninet_interfaces = all\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
                 disable_dns_lookups = yes\nsmtp_host_lookup = native\nsmtpd_peername_lookup = no\nsmtpd_error_sleep_time = 0\nservice_throttle_time = 1s\n\
                 relay_domains = {HOSTNAME}\nrelay_transport = discard:\nrelay_recipient_maps =\nlocal_recipient_maps =\n\
                 smtpd_client_connection_count_limit = 0\nsmtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination\n\
                 smtpd_tls_chain_files = {w}/tls/key.pem, {w}/tls/cert.pem\n{main}",
                w = w.display(),
            ),
        )
        .expect("main.cf");
        let ports: Vec<u16> = services.iter().map(|_| free_port()).collect();
        let mut master = String::new();
        for (service, port) in services.iter().zip(&ports) {
            let chroot = if service.chroot { 'y' } else { 'n' };
            master += &format!("127.0.0.1:{port} inet n - {chroot} - 100 smtpd {}\n", service.options);
        }
        master += "pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
                   rewrite unix - - n - - trivial-rewrite\nanvil unix - - n - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n";
        for service in ["bounce", "defer", "trace"] {
            master += &format!("{service} unix - - n - 0 bounce\n");
        }
        for service in ["smtp", "lmtp", "error", "retry", "discard", "proxymap", "showq"] {
            master += &format!("{service} unix - - n - - {service}\n");
        }
        fs::write(w.join("etc/master.cf"), master).expect("master.cf");
        let mut command = peer("postfix", w);
        command.arg("-c").arg(w.join("etc")).arg("start");
        // The master detaches: it gets files, no pipes.
        command
            .stdout(fs::File::create(w.join("postfix.out")).expect("out"))
            .stderr(fs::File::create(w.join("postfix.err")).expect("err"));
        let status = command.status().expect("postfix");
        let postfix = PostfixServer { folder: w.to_owned(), ports };
        assert!(status.success(), "postfix: {}", postfix.log());
        for port in &postfix.ports {
            // Implicit TLS greets nobody; a connection is all there is to see.
            wait_for("Postfix", || Lines::connect(*port).ok());
        }
        postfix
    }

    pub fn port(&self, index: usize) -> u16 {
        self.ports[index]
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.join("tls/ca.pem")
    }

    pub fn log(&self) -> String {
        ["maillog/log", "postfix.out", "postfix.err"]
            .map(|f| fs::read_to_string(self.folder.join(f)).unwrap_or_default())
            .concat()
    }

    /// Waits until the mail log holds this text.
    pub fn wait_for_log(&self, text: &str) {
        wait_for(&format!("{text:?} in the mail log:\n{}", self.log()), || {
            self.log().contains(text).then_some(())
        });
    }
}

impl Drop for PostfixServer {
    fn drop(&mut self) {
        stop_by_pid_file(&self.folder.join("queue/pid/master.pid"));
    }
}
