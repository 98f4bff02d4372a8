//! What each daemon is told: its slice of the settings, with key material in place of paths.
//!
//! Purpose:   the supervisor builds slices and hands them to children through sealed memory, as JSON.
//! Trust:     the supervisor makes slices from the administrator's settings; a daemon reads them from a sealed
//!            descriptor.
//! Never:     a slice holds a secret that its daemon does not need (the auth daemon gets no TLS key, a front no
//!            password file).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Auth, AuthListenerKind, Imap, Limits, Log, Mail, PassdbDriver, Pop3, Process, Secret, Settings, Smtp,
    TlsVersion,
};

/// Names of the internal sockets between the fronts and the authentication daemon.
pub(crate) const FRONTS: [(&str, AuthListenerKind); 3] = [
    ("fronts-login", AuthListenerKind::Login),
    ("fronts-session", AuthListenerKind::Session),
    ("fronts-userdb", AuthListenerKind::Userdb),
];

/// Whether this is the name of one of the sockets between the fronts and the authentication daemon.
pub fn is_fronts_socket(name: &str) -> bool {
    FRONTS.iter().any(|(own, _)| *own == name)
}

/// Names of system users and groups with their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemIds {
    /// Users.
    pub users: BTreeMap<String, u32>,
    /// Groups.
    pub groups: BTreeMap<String, u32>,
    /// Whether a worker can be asked about other names.
    pub workers: bool,
}

/// What the authentication daemon and its workers are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthSlice {
    /// See [`Settings::hostname`].
    pub hostname: String,
    /// See [`Settings::state_dir`].
    pub state_dir: PathBuf,
    /// See [`Settings::log`].
    pub log: Log,
    /// See [`Settings::grace_time`].
    pub grace_time: Duration,
    /// See [`Settings::auth`].
    pub auth: Auth,
    /// See [`Settings::mail`].
    pub mail: Mail,
    /// See [`Settings::limits`].
    pub limits: Limits,
    /// Where the pool of workers is asked for one. `None`: the daemon starts them itself.
    #[serde(default)]
    pub worker_socket: Option<PathBuf>,
    /// Names of the machine's users and groups: the daemon asks no name service.
    #[serde(default)]
    pub ids: SystemIds,
}

/// What the SMTP server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SmtpSlice {
    /// See [`Settings::hostname`].
    pub hostname: String,
    /// See [`Settings::state_dir`].
    pub state_dir: PathBuf,
    /// See [`Settings::log`].
    pub log: Log,
    /// See [`Settings::grace_time`].
    pub grace_time: Duration,
    /// See [`Settings::smtp`].
    pub smtp: Smtp,
    /// See [`Settings::mail`].
    pub mail: Mail,
    /// See [`Settings::limits`].
    pub limits: Limits,
    /// Certificates and keys.
    pub tls: TlsMaterial,
    /// The way to the authentication daemon.
    pub auth: AuthSockets,
    /// Mail is handed over on this socket. `None`: it is written by the server itself.
    #[serde(default)]
    pub delivery: Option<PathBuf>,
}

/// What the IMAP and POP3 server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImapSlice {
    /// See [`Settings::hostname`].
    pub hostname: String,
    /// See [`Settings::state_dir`].
    pub state_dir: PathBuf,
    /// See [`Settings::log`].
    pub log: Log,
    /// See [`Settings::grace_time`].
    pub grace_time: Duration,
    /// See [`Settings::imap`].
    pub imap: Imap,
    /// See [`Settings::pop3`].
    pub pop3: Pop3,
    /// See [`Settings::mail`].
    pub mail: Mail,
    /// See [`Settings::limits`].
    pub limits: Limits,
    /// Certificates and keys.
    pub tls: TlsMaterial,
    /// The way to the authentication daemon.
    pub auth: AuthSockets,
    /// Sessions are handed over on this socket once logged in. `None`: the server hosts them itself.
    #[serde(default)]
    pub broker: Option<PathBuf>,
    /// Who may hand over mail to be delivered (the SMTP server's uid). `None`: nobody.
    #[serde(default)]
    pub delivery_from: Option<u32>,
}

/// What the broker of system users' mailboxes is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BrokerSlice {
    /// See [`Settings::hostname`].
    pub hostname: String,
    /// See [`Settings::state_dir`].
    pub state_dir: PathBuf,
    /// See [`Settings::log`].
    pub log: Log,
    /// See [`Settings::grace_time`].
    pub grace_time: Duration,
    /// What is appended to user names without a domain.
    pub default_domain: String,
    /// See [`Settings::imap`].
    pub imap: Imap,
    /// See [`Settings::pop3`].
    pub pop3: Pop3,
    /// See [`Settings::mail`].
    pub mail: Mail,
    /// The way to the authentication daemon.
    pub auth: AuthSockets,
    /// See [`Settings::process`].
    pub process: Process,
    /// Who may open sessions.
    pub sessions_from: u32,
    /// Who may deliver.
    pub deliveries_from: u32,
}

/// What the process of one mailbox is told, by the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MailboxSlice {
    /// See [`Settings::hostname`].
    pub hostname: String,
    /// See [`Settings::grace_time`].
    pub grace_time: Duration,
    /// See [`Settings::imap`].
    pub imap: Imap,
    /// See [`Settings::pop3`].
    pub pop3: Pop3,
    /// See [`Settings::mail`].
    pub mail: Mail,
    /// See [`Settings::process`].
    pub process: Process,
    /// The Maildir, the only place it may touch.
    pub root: PathBuf,
}

/// Certificates and keys, read by the supervisor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TlsMaterial {
    /// See [`crate::Tls::minimum`].
    pub minimum: TlsVersion,
    /// In the order of the file; the first one is the default.
    pub certificates: Vec<PemPair>,
}

/// A certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PemPair {
    /// The chain.
    pub chain: String,
    /// The key.
    pub key: Secret,
}

/// The fronts' way to the authentication daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSockets {
    /// Logins (type `login`, minor 3).
    pub login: PathBuf,
    /// Confirming them (type `session`).
    pub session: PathBuf,
    /// User look-ups (type `userdb`).
    pub userdb: PathBuf,
}

/// Why a slice cannot be made: a file it needs is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// A certificate, key or password file.
    #[error("cannot read {} ({what}): {source}", path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A secret that should be in the environment.
    #[error("the environment variable {0} is not set, but a passdb takes its password from it")]
    Environment(String),
}

/// Counts what is written.
struct Counting(usize);

impl std::io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

macro_rules! json {
    ($($slice:ident),*) => {$(
        impl $slice {
            /// For the way to the child process.
            ///
            /// # Errors
            /// A path that is not UTF-8.
            pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
                // A vector that grows leaves what it held behind, keys among it: its length is counted first.
                let mut length = Counting(0);
                serde_json::to_writer(&mut length, self)?;
                let mut bytes = Vec::with_capacity(length.0);
                serde_json::to_writer(&mut bytes, self)?;
                Ok(bytes)
            }

            /// In the child process.
            ///
            /// # Errors
            /// Bytes that another version wrote.
            pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
                serde_json::from_slice(bytes)
            }
        }
    )*};
}
json!(AuthSlice, SmtpSlice, ImapSlice, BrokerSlice, MailboxSlice);

impl Settings {
    /// The authentication daemon's slice; reads the password files of static passdbs.
    ///
    /// # Errors
    /// A password file or variable that is not there.
    pub fn auth_slice(&self) -> Result<AuthSlice, SliceError> {
        let mut auth = self.auth.clone();
        for passdb in &mut auth.passdb {
            if let PassdbDriver::Static { password_file, password_env, password, .. } = &mut passdb.driver {
                if let Some(path) = password_file {
                    let text = read("password of a static passdb", path)?;
                    let text = text.strip_suffix('\n').unwrap_or(&text);
                    *password = Some(Secret::new(text.strip_suffix('\r').unwrap_or(text)));
                } else if let Some(name) = password_env {
                    let text = std::env::var(&*name).map_err(|_| SliceError::Environment(name.clone()))?;
                    *password = Some(Secret::new(text));
                }
            }
        }
        Ok(AuthSlice {
            hostname: self.hostname.clone(),
            state_dir: self.state_dir.clone(),
            log: self.log.clone(),
            grace_time: self.grace_time,
            auth,
            mail: self.mail.clone(),
            limits: self.limits.clone(),
            worker_socket: None,
            ids: SystemIds::default(),
        })
    }

    /// The SMTP server's slice; reads certificates and keys.
    ///
    /// # Errors
    /// A certificate or key that is not there.
    pub fn smtp_slice(&self) -> Result<SmtpSlice, SliceError> {
        Ok(SmtpSlice {
            hostname: self.hostname.clone(),
            state_dir: self.state_dir.clone(),
            log: self.log.clone(),
            grace_time: self.grace_time,
            smtp: self.smtp.clone(),
            mail: self.mail.clone(),
            limits: self.limits.clone(),
            tls: self.tls_material()?,
            auth: self.auth_sockets(),
            delivery: None,
        })
    }

    /// The IMAP and POP3 server's slice; reads certificates and keys.
    ///
    /// # Errors
    /// A certificate or key that is not there.
    pub fn imap_slice(&self) -> Result<ImapSlice, SliceError> {
        Ok(ImapSlice {
            hostname: self.hostname.clone(),
            state_dir: self.state_dir.clone(),
            log: self.log.clone(),
            grace_time: self.grace_time,
            imap: self.imap.clone(),
            pop3: self.pop3.clone(),
            mail: self.mail.clone(),
            limits: self.limits.clone(),
            tls: self.tls_material()?,
            auth: self.auth_sockets(),
            broker: None,
            delivery_from: None,
        })
    }

    /// The broker's slice, for fronts with these uids.
    pub fn broker_slice(&self, sessions_from: u32, deliveries_from: u32) -> BrokerSlice {
        let default_domain = self.auth.default_domain.clone().unwrap_or_else(|| self.hostname.clone());
        // Addresses of listeners are nothing to it.
        let imap = Imap { listener: Vec::new(), ..self.imap.clone() };
        let pop3 = Pop3 { listener: Vec::new(), ..self.pop3.clone() };
        BrokerSlice {
            hostname: self.hostname.clone(),
            state_dir: self.state_dir.clone(),
            log: self.log.clone(),
            grace_time: self.grace_time,
            default_domain,
            imap,
            pop3,
            mail: self.mail.clone(),
            auth: self.auth_sockets(),
            process: self.process.clone(),
            sessions_from,
            deliveries_from,
        }
    }

    /// Reads all certificates and keys.
    ///
    /// # Errors
    /// One that is not there.
    pub fn tls_material(&self) -> Result<TlsMaterial, SliceError> {
        let mut certificates = Vec::new();
        for certificate in &self.tls.certificate {
            certificates.push(PemPair {
                chain: read("certificate", &certificate.chain)?,
                key: Secret::new(read("key", &certificate.key)?),
            });
        }
        Ok(TlsMaterial { minimum: self.tls.minimum, certificates })
    }

    /// Where the fronts find the authentication daemon.
    pub fn auth_sockets(&self) -> AuthSockets {
        let path = |wanted: &str| {
            let listener = self.auth.listener.iter().find(|l| l.name == wanted);
            listener.and_then(|l| l.path.first()).cloned().unwrap_or_default()
        };
        let [(login, _), (session, _), (userdb, _)] = FRONTS;
        AuthSockets { login: path(login), session: path(session), userdb: path(userdb) }
    }

    /// Where the fronts find the broker of system users' mailboxes.
    pub fn broker_socket(&self) -> PathBuf {
        self.state_dir.join("sockets/broker")
    }

    /// Where mail is handed to the server that writes it, when that runs as another account than the SMTP server.
    pub fn delivery_socket(&self) -> PathBuf {
        self.state_dir.join("sockets/mail-delivery")
    }

    /// Whether a front (SMTP, IMAP or POP3) is configured.
    pub fn has_fronts(&self) -> bool {
        !(self.smtp.listener.is_empty() && self.imap.listener.is_empty() && self.pop3.listener.is_empty())
    }
}

fn read(what: &'static str, path: &std::path::Path) -> Result<String, SliceError> {
    crate::guarded::read_to_string(path).map_err(|source| SliceError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}
