//! Mail servers: our whole stack, and Dovecot with Postfix.
//!
//! Trust: nobody sends it bytes but the servers it starts.
//! Never: let one side acknowledge a message that the other would first write to disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::ClientConfig;

use super::{
    ACCOUNT, DOMAIN, MAIL_UID, Server, Start, certificates, cpus, folder, free_port, uid_of, write_settings,
};
use crate::load::mail::{self, Protocol};
use crate::users::Users;

/// What both sides serve, and with what clients look at them.
pub(crate) struct Mail<'a> {
    /// The users.
    pub(crate) users: &'a Users,
    /// Certificate and key.
    tls: PathBuf,
    /// A client that trusts the certificate.
    pub(crate) client: Arc<ClientConfig>,
}

impl Mail<'_> {
    /// Makes the certificate.
    pub(crate) fn new<'a>(work: &Path, users: &'a Users) -> anyhow::Result<Mail<'a>> {
        let tls = work.join("tls");
        certificates(&tls, "DNS:localhost")?;
        let client = mail::tls(&tls.join("ca.pem"))?;
        Ok(Mail { users, tls, client })
    }

    /// Certificate and key where a server reads them.
    fn copy_keys(&self, work: &Path) -> anyhow::Result<()> {
        for file in ["cert.pem", "key.pem"] {
            fs::copy(self.tls.join(file), work.join(file))?;
        }
        fs::set_permissions(work.join("key.pem"), fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// A server that can be used: somebody logs in.
    fn log_in(&self, protocol: Protocol, port: u16) -> anyhow::Result<()> {
        mail::login(protocol, port, &self.client, self.users.names.first().context("no users")?)
    }
}

/// What Dovecot is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Best {
    /// Many logins and commands: processes that serve many sessions, and some that wait for them.
    Speed,
    /// Little memory: no process waits for work, a session's process ends with it, idle sessions hibernate.
    Memory,
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
    /// Folder above the Maildirs.
    mail: PathBuf,
    /// Whose the mail is.
    owner: u32,
    /// Whether a user's folder has the name with its domain.
    domains: bool,
}

impl MailServer {
    /// All processes it was started as.
    pub(crate) fn roots(&self) -> Vec<u32> {
        self.servers.iter().flat_map(|server| server.roots().to_vec()).collect()
    }

    /// From the start of all its programs at once to the last one's first answer.
    pub(crate) fn start_seconds(&self) -> f64 {
        self.servers.iter().map(|server| server.start_seconds).fold(0.0, f64::max)
    }

    /// A user's Maildir.
    pub(crate) fn maildir(&self, user: &str) -> PathBuf {
        let local = user.split('@').next().unwrap_or_default();
        self.mail.join(if self.domains { user } else { local }).join("Maildir")
    }

    /// Gives what was put there to whom the mail belongs.
    pub(crate) fn own(&self, path: &Path) -> anyhow::Result<()> {
        chown(path, Some(self.owner), None)?;
        Ok(())
    }
}

/// Our whole stack on one configuration file.
pub(crate) fn postern_stack(program: &Path, work: &Path, mail: &Mail<'_>) -> anyhow::Result<MailServer> {
    let owner = uid_of(ACCOUNT)?;
    folder(work, None)?;
    folder(&work.join("state"), Some(owner))?;
    folder(&work.join("mail"), Some(owner))?;
    mail.copy_keys(work)?;
    let (smtp, imap, pop3) = (free_port()?, free_port()?, free_port()?);
    let settings = format!(
        "# postern run --config FILE\nversion = 1\nhostname = \"mail.{DOMAIN}\"\nstate_dir = \"$W/state\"\nrun_as = \"{ACCOUNT}\"\n\n\
         [log]\nlevel = \"warn\"\n\n\
         [[tls.certificate]]\nchain = \"$W/cert.pem\"\nkey = \"$W/key.pem\"\n\n\
         [[auth.passdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [[auth.userdb]]\ndriver = \"passwd-file\"\npath = \"$USERS\"\n\n\
         [mail]\nhome = \"$W/mail/%{{user}}\"\n\n\
         [smtp]\nlocal_domains = [\"{DOMAIN}\"]\n\n\
         [[smtp.listener]]\nname = \"submissions\"\naddress = \"127.0.0.1:{smtp}\"\ntype = \"submissions\"\n\n\
         [[imap.listener]]\nname = \"imaps\"\naddress = \"127.0.0.1:{imap}\"\ntls = \"implicit\"\n\n\
         [[pop3.listener]]\nname = \"pop3s\"\naddress = \"127.0.0.1:{pop3}\"\ntls = \"implicit\"\n\n\
         [limits]\nconnections = 10000\nconnections_per_address = 10000\n"
    );
    let config = work.join("postern.toml");
    write_settings(&config, &settings, work, Some(&mail.users.file))?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(&config);
    let start = Start { what: "Postern", command, log: &work.join("postern.log"), settings };
    let server = Server::in_front(start, || {
        mail.log_in(Protocol::Imap, imap)?;
        mail.log_in(Protocol::Pop3, pop3)?;
        mail.log_in(Protocol::Smtp, smtp)
    })?;
    Ok(MailServer { servers: vec![server], smtp, imap, pop3, mail: work.join("mail"), owner, domains: true })
}

/// Dovecot for IMAP and POP3, and Postfix with Dovecot's auth socket for submission.
pub(crate) fn dovecot_and_postfix(work: &Path, mail: &Mail<'_>, best: Best) -> anyhow::Result<MailServer> {
    folder(work, None)?;
    folder(&work.join("mail"), Some(MAIL_UID))?;
    mail.copy_keys(work)?;
    let (smtp, imap, pop3) = (free_port()?, free_port()?, free_port()?);
    let (spare, login, process) = match best {
        Best::Speed => (cpus(), "  service_count = 0\n", "  service_count = 0\n  client_limit = 1000\n"),
        Best::Memory => (0, "  service_count = 0\n", "  service_count = 1\n"),
    };
    let login = format!("{login}  process_min_avail = {spare}\n  client_limit = 20000\n");
    let process = format!("{process}  process_min_avail = {spare}\n");
    let (about, hibernate) = match best {
        Best::Speed => ("# Login and mail processes serve many sessions each.\n", String::new()),
        Best::Memory => (
            "# For memory: no process waits for work; sessions in IDLE leave theirs after a second.\n",
            "imap_hibernate_timeout = 1s\n\
             service imap-hibernate {\n  client_limit = 20000\n  unix_listener imap-hibernate {\n    mode = 0666\n  }\n}\n\
             service imap {\n  unix_listener imap-master {\n    user = $default_internal_user\n  }\n  extra_groups = $default_internal_group\n}\n"
                .to_owned(),
        ),
    };
    let settings = format!(
        "# dovecot -F -c FILE\nbase_dir = $W/run\nstate_dir = $W/state\ninstance_name = bench\nlog_path = $W/dovecot.log\n\
         protocols = imap pop3\nlisten = 127.0.0.1\nssl = required\nssl_cert = <$W/cert.pem\nssl_key = <$W/key.pem\n\
         auth_mechanisms = plain login\nauth_failure_delay = 0\n\
         mail_location = maildir:~/Maildir\nfirst_valid_uid = 1\nmail_max_userip_connections = 0\n\
         default_client_limit = 20000\ndefault_process_limit = 10000\ndefault_vsz_limit = 4 G\n\
         service anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         passdb {{\n  driver = passwd-file\n  args = username_format=%u $USERS\n}}\n\
         userdb {{\n  driver = static\n  args = uid=mail gid=mail home=$W/mail/%n\n}}\n\
         service auth {{\n  client_limit = 20000\n  unix_listener $W/auth {{\n    mode = 0666\n  }}\n}}\n\
         {about}\
         service imap-login {{\n{login}  inet_listener imap {{\n    port = 0\n  }}\n  inet_listener imaps {{\n    port = {imap}\n    ssl = yes\n  }}\n}}\n\
         service pop3-login {{\n{login}  inet_listener pop3 {{\n    port = 0\n  }}\n  inet_listener pop3s {{\n    port = {pop3}\n    ssl = yes\n  }}\n}}\n\
         service imap {{\n{process}}}\nservice pop3 {{\n{process}}}\n{hibernate}"
    );
    let config = work.join("dovecot.conf");
    write_settings(&config, &settings, work, Some(&mail.users.file))?;
    let mut command = Command::new("dovecot");
    command.args(["-F", "-c"]).arg(&config);
    let start = Start { what: "Dovecot", command, log: &work.join("dovecot.log"), settings };
    let dovecot = Server::in_front(start, || {
        mail.log_in(Protocol::Imap, imap)?;
        mail.log_in(Protocol::Pop3, pop3)
    })?;
    let postfix = postfix(work, smtp, mail)?;
    // Postfix first: it ends first, for it holds connections to Dovecot's socket.
    let servers = vec![postfix, dovecot];
    Ok(MailServer { servers, smtp, imap, pop3, mail: work.join("mail"), owner: MAIL_UID, domains: false })
}

fn postfix(work: &Path, port: u16, mail: &Mail<'_>) -> anyhow::Result<Server> {
    for name in ["etc", "queue", "data", "pflog"] {
        folder(&work.join("pf").join(name), None)?;
    }
    chown(work.join("pf/data"), Some(uid_of("postfix")?), None)?;
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = $W/pf/queue\ndata_directory = $W/pf/data\nmail_owner = postfix\n\
         setgid_group = postdrop\ncommand_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\n\
         maillog_file = $W/pf/pflog/maillog\nmaillog_file_prefixes = $W/pf/pflog\nmyhostname = mail.{DOMAIN}\nmydestination =\n\
         mynetworks =\ninet_interfaces = all\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
         # No look-ups of names, no limits by address, no delays.\n\
         disable_dns_lookups = yes\nsmtp_host_lookup = native\nsmtpd_peername_lookup = no\nsmtpd_error_sleep_time = 0\nin_flow_delay = 0\n\
         smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\nservice_throttle_time = 1s\n\
         # Processes serve many connections, not 100 each.\n\
         max_use = 100000\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
         smtpd_tls_security_level = may\nsmtpd_tls_chain_files = $W/key.pem, $W/cert.pem\n\
         smtpd_sasl_type = dovecot\nsmtpd_sasl_path = $W/auth\n\
         # Into Maildirs.\n\
         virtual_mailbox_domains = {DOMAIN}\nvirtual_mailbox_base = $W/mail\nvirtual_mailbox_maps = texthash:$W/pf/etc/vmaps\n\
         virtual_uid_maps = static:{MAIL_UID}\nvirtual_gid_maps = static:{MAIL_UID}\nvirtual_minimum_uid = 1\n\
         virtual_destination_concurrency_limit = 50\n"
    );
    let mut master = format!(
        "127.0.0.1:{port} inet n - n - 200 smtpd -o smtpd_tls_wrappermode=yes -o smtpd_sasl_auth_enable=yes\n\
         pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
         tlsmgr unix - - n 1000? 1 tlsmgr\nrewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\n\
         defer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\nvirtual unix - n n - - virtual\n\
         anvil unix - - n - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n"
    );
    for service in ["smtp", "error", "retry", "discard", "proxymap", "showq"] {
        master += &format!("{service} unix - - n - - {service}\n");
    }
    let etc = work.join("pf/etc");
    let boxes: String = mail.users.names.iter().fold(String::new(), |text, (name, _)| {
        text + &format!("{name} {}/Maildir/\n", name.split('@').next().unwrap_or_default())
    });
    fs::write(etc.join("vmaps"), boxes)?;
    write_settings(&etc.join("main.cf"), &main, work, None)?;
    fs::write(etc.join("master.cf"), &master)?;
    let mut command = Command::new("postfix");
    command.arg("-c").arg(&etc).arg("start");
    let settings = format!("# postfix -c FOLDER start\n# main.cf\n{main}# master.cf\n{master}");
    let start = Start { what: "Postfix", command, log: &work.join("pf/pflog/maillog"), settings };
    Server::behind(start, &work.join("pf/queue/pid/master.pid"), || mail.log_in(Protocol::Smtp, port))
}
