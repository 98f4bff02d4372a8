//! The settings of a start without any file: everything on loopback, below one folder.
//!
//! Trust: whoever types the command line that starts the stack.
//! Never: listen beyond loopback unless told to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::{
    AuthListener, AuthListenerKind, Certificate, Imap, ImapListener, ListenerTls, Mail, Passdb, PassdbDriver,
    PassdbRules, Pop3, Pop3Listener, Settings, Smtp, SmtpKind, SmtpListener, Tls, Userdb, UserdbDriver,
    UserdbRules,
};

/// What can be chosen on the command line.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Where everything lives; absolute.
    pub state_dir: PathBuf,
    /// Name of the server. Empty: the machine's.
    pub hostname: String,
    /// Ports are this plus the well-known one.
    pub port_base: u16,
    /// Addresses to listen on.
    pub listen: Vec<IpAddr>,
    /// Account of the daemons, when started as root.
    pub run_as: Option<String>,
    /// Users that may connect to the login and userdb sockets.
    pub allow_users: Vec<String>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/postern"),
            hostname: String::new(),
            port_base: 1000,
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            run_as: None,
            allow_users: Vec::new(),
        }
    }
}

/// The ports of the embedded default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Inbound SMTP.
    pub smtp: u16,
    /// Submission with STARTTLS.
    pub submission: u16,
    /// Submission with TLS from the first byte.
    pub submissions: u16,
    /// IMAP with STARTTLS.
    pub imap: u16,
    /// IMAP with TLS from the first byte.
    pub imaps: u16,
    /// POP3 with STLS.
    pub pop3: u16,
    /// POP3 with TLS from the first byte.
    pub pop3s: u16,
}

impl Ports {
    /// Highest base with which every port is one.
    pub const MAX_BASE: u16 = u16::MAX - 995;

    /// Base plus well-known port; `base` above [`Self::MAX_BASE`] is taken for it.
    pub fn new(base: u16) -> Self {
        let base = base.min(Self::MAX_BASE);
        Self {
            smtp: base + 25,
            submission: base + 587,
            submissions: base + 465,
            imap: base + 143,
            imaps: base + 993,
            pop3: base + 110,
            pop3s: base + 995,
        }
    }
}

/// The settings of a start without a file.
pub fn embedded_default(options: &EmbeddedOptions) -> Settings {
    let state = &options.state_dir;
    let ports = Ports::new(options.port_base);
    let at = |port: u16| options.listen.iter().map(|ip| SocketAddr::new(*ip, port)).collect::<Vec<_>>();
    let smtp = |name: &str, port: u16, kind: SmtpKind| SmtpListener {
        name: name.to_owned(),
        address: at(port),
        kind,
    };
    let imap = |name: &str, port: u16, tls: ListenerTls| ImapListener {
        name: name.to_owned(),
        address: at(port),
        tls,
    };
    let pop3 = |name: &str, port: u16, tls: ListenerTls| Pop3Listener {
        name: name.to_owned(),
        address: at(port),
        tls,
    };
    let users = state.join("users").to_string_lossy().into_owned();

    let mut settings = Settings {
        hostname: options.hostname.clone(),
        state_dir: state.clone(),
        run_as: options.run_as.clone(),
        tls: Tls {
            certificate: vec![Certificate {
                chain: state.join("tls/cert.pem"),
                key: state.join("tls/key.pem"),
            }],
            ..Tls::default()
        },
        smtp: Smtp {
            listener: vec![
                smtp("smtp", ports.smtp, SmtpKind::Inbound),
                smtp("submission", ports.submission, SmtpKind::Submission),
                smtp("submissions", ports.submissions, SmtpKind::Submissions),
            ],
            ..Smtp::default()
        },
        imap: Imap {
            listener: vec![
                imap("imap", ports.imap, ListenerTls::Starttls),
                imap("imaps", ports.imaps, ListenerTls::Implicit),
            ],
            ..Imap::default()
        },
        pop3: Pop3 {
            listener: vec![
                pop3("pop3", ports.pop3, ListenerTls::Starttls),
                pop3("pop3s", ports.pop3s, ListenerTls::Implicit),
            ],
            ..Pop3::default()
        },
        // One account owns everything, whatever its uid.
        mail: Mail { first_valid_uid: 1, ..Mail::default() },
        ..Settings::default()
    };
    settings.auth.listener = listeners(state, &options.allow_users);
    settings.auth.passdb = vec![Passdb {
        name: "users".to_owned(),
        rules: PassdbRules::default(),
        driver: PassdbDriver::PasswdFile {
            path: users.clone(),
            scheme: "CRYPT".to_owned(),
            username_format: None,
        },
    }];
    settings.auth.userdb = vec![Userdb {
        name: "users".to_owned(),
        rules: UserdbRules::default(),
        driver: UserdbDriver::PasswdFile { path: users, username_format: None },
    }];
    settings.resolve();
    settings
}

/// The sockets for programs of this machine. The first and the last are open to all, so that any mail program
/// can be tried against them; the look-ups are for the account that started the stack.
fn listeners(state: &Path, allow_users: &[String]) -> Vec<AuthListener> {
    let one = |name: &str, file: &str, kind: AuthListenerKind, mode: u32| AuthListener {
        name: name.to_owned(),
        path: vec![state.join("sockets").join(file)],
        kind,
        mode,
        ..AuthListener::default()
    };
    let guarded = |mut listener: AuthListener| {
        listener.allow_users = allow_users.to_vec();
        listener
    };
    vec![
        one("auth-client", "auth-client", AuthListenerKind::Client, 0o666),
        guarded(one("auth-login", "auth-login", AuthListenerKind::Login, 0o666)),
        guarded(one("auth-userdb", "auth-userdb", AuthListenerKind::Userdb, 0o666)),
        one("auth-master", "auth-master", AuthListenerKind::Master, 0o600),
        one("saslauthd", "saslauthd/mux", AuthListenerKind::Saslauthd, 0o666),
    ]
}
