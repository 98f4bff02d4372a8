//! The typed settings of every daemon: the contract between the file and the programs.
//!
//! Purpose:   one declaration per key; see `schema.rs` for what is made of it.
//! Trust:     values here have passed the walker; paths are absolute, templates (`%{…}`) still text.
//! Never:     a key without documentation: the manual is printed from here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::codec::{
    Address, Choice, Count, CountIn, Fields, Flag, Letter, Mode, Names, Opt, Path, SecretText, Size, Table,
    Tables, Template, Text, TextList, Time, Wide,
};
use crate::schema::{choices, drivers, tables};

/// The only version of the file's format so far.
pub const VERSION: u32 = 1;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

tables! {
    /// The whole of `postern.toml`.
    pub struct Settings {
        /// Version of the file's format. Always 1.
        version: u32 => Count = VERSION, required "1";
        /// Name of this server: greeting, `Received:` lines, certificate, default domain.
        hostname: String => Text = String::new(), described "the machine's full name" "\"mail.example.org\"";
        /// Everything the stack writes lives below this folder. Relative paths elsewhere in the file are below it.
        state_dir: PathBuf => Path = PathBuf::from("/var/lib/postern");
        /// One account for all processes but the supervisor. Unset, and started as root: an account for each of them
        /// (`postern-auth`, `postern-authw`, `postern-smtp`, `postern-imap`), where these exist. Needs a start as root.
        run_as: Option<String> => Opt<Text> = None, optional "\"postern\"";
        /// How long daemons may finish what is in flight when they are told to stop.
        grace_time: Duration => Time = Duration::from_secs(10);
        /// How the processes are kept apart.
        process: Process => Table<Process> = Process::default();
        /// What is logged, and how.
        log: Log => Table<Log> = Log::default();
        /// Certificates and protocol versions, for all listeners.
        tls: Tls => Table<Tls> = Tls::default();
        /// The authentication daemon.
        auth: Auth => Table<Auth> = Auth::default();
        /// Where mail is kept.
        mail: Mail => Table<Mail> = Mail::default();
        /// The SMTP server: inbound mail, submission, LMTP.
        smtp: Smtp => Table<Smtp> = Smtp::default();
        /// The IMAP server.
        imap: Imap => Table<Imap> = Imap::default();
        /// The POP3 server.
        pop3: Pop3 => Table<Pop3> = Pop3::default();
        /// Limits of each daemon.
        limits: Limits => Table<Limits> = Limits::default();
        /// Figures for Prometheus and health checks, over HTTP.
        metrics: Metrics => Table<Metrics> = Metrics::default();
    }

    /// How the processes are kept apart.
    pub struct Process {
        /// Restriction of the processes to the system calls (seccomp) and the files (landlock) they need. `on`: anything
        /// else fails. `log`: it succeeds, and the kernel logs the system calls that would have failed. `off`: neither.
        sandbox: SandboxMode => Choice<SandboxMode> = SandboxMode::On;
        /// Further files and folders that the daemons may reach, with what is below: mailboxes whose place only a user
        /// database knows, file systems that are mounted later.
        reachable: Option<Vec<PathBuf>> => Opt<Paths> = None, optional "[\"/srv/mail\"]";
    }

    /// What is logged, and how.
    pub struct Log {
        /// A level (`error`, `warn`, `info`, `debug`, `trace`), or levels by part: `auth=debug,info`.
        level: String => Text = "info".to_owned();
        /// `human` and `json` go to standard error. `auto` is `journald` where standard error is the journal, else `human`.
        format: LogFormat => Choice<LogFormat> = LogFormat::Auto;
    }

    /// Certificates and protocol versions, for all listeners.
    pub struct Tls {
        /// Certificates, chosen by the name the client asks for; the first one also for clients that ask for none.
        certificate: Vec<Certificate> => Tables<Certificate> = Vec::new();
        /// Oldest version of TLS that is spoken.
        minimum: TlsVersion => Choice<TlsVersion> = TlsVersion::V1_2;
    }

    /// One certificate with its key, both PEM.
    pub struct Certificate {
        /// The server's certificate followed by its intermediate certificates.
        chain: PathBuf => Path = PathBuf::new(), required "\"/etc/postern/fullchain.pem\"";
        /// The private key. Must not be readable by others.
        key: PathBuf => Path = PathBuf::new(), required "\"/etc/postern/privkey.pem\"";
    }

    /// The authentication daemon.
    pub struct Auth {
        /// Account of the authentication daemon, if not the common one.
        run_as: Option<String> => Opt<Text> = None, optional "\"postern-auth\"";
        /// Domain added to user names without one. Empty: names stay bare.
        default_domain: Option<String> => Opt<Text> = None, described "`hostname`" "\"example.org\"";
        /// Characters a user name may hold. Empty: any.
        username_chars: String => Text =
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@".to_owned();
        /// Characters to replace in a user name: pairs of from and to, `#@/@` turns `#` and `/` into `@`.
        username_translation: String => Text = String::new();
        /// How a user name is rewritten after that.
        username_format: String => Template = "%{user | lower}".to_owned();
        /// Character between user and master user in `user*master`. Unset: master logins only by SASL authorization id.
        master_user_separator: Option<char> => Opt<Letter> = None, optional "\"*\"";
        /// SASL mechanisms offered, as far as the passdbs can serve them.
        mechanisms: Vec<String> => Names = names(&["PLAIN", "LOGIN"]);
        /// Realms for mechanisms that have them (DIGEST-MD5).
        realms: Vec<String> => TextList = Vec::new();
        /// User name of logins by ANONYMOUS.
        anonymous_username: String => Text = "anonymous".to_owned();
        /// Accept stored passwords in weak schemes (DES, the MD4 and MD5 family).
        allow_weak_schemes: bool => Flag = false;
        /// Shortest time until a refusal is answered, counted from the arrival of the request.
        failure_delay: Duration => Time = Duration::from_secs(2);
        /// Unix sockets that the daemon answers on.
        listener: Vec<AuthListener> => Tables<AuthListener> = Vec::new();
        /// Where passwords are checked, in this order.
        passdb: Vec<Passdb> => Tables<Passdb> = Vec::new();
        /// Where home, uid and further facts of a user come from, in this order.
        userdb: Vec<Userdb> => Tables<Userdb> = Vec::new();
        /// Cache of verdicts.
        cache: AuthCache => Table<AuthCache> = AuthCache::default();
        /// Slowing down those who guess.
        penalty: Penalty => Table<Penalty> = Penalty::default();
        /// Limits for computing password hashes.
        hash: HashLimits => Table<HashLimits> = HashLimits::default();
        /// Processes for blocking look-ups (PAM, passwd, shadow).
        worker: Workers => Table<Workers> = Workers::default();
    }

    /// A Unix socket (or several with the same behaviour) of the authentication daemon.
    pub struct AuthListener {
        /// Name in logs and status; unique in the file.
        name: String => Text = String::new(), required "\"postfix\"";
        /// Where the socket appears; one path or a list.
        path: Vec<PathBuf> => Paths = Vec::new(), required "\"/var/spool/postfix/private/auth\"";
        /// What is spoken on it: `client` (Dovecot's client protocol: Postfix, Exim …), `login` (the same plus logins
        /// that a `session` socket can ask for), `userdb` (user look-ups), `master` (all look-ups and administration),
        /// `session` (only confirming logins) or `saslauthd` (the mux of Cyrus libsasl2).
        kind as "type": AuthListenerKind => Choice<AuthListenerKind> = AuthListenerKind::Client, required "\"client\"";
        /// Minor version of Dovecot's protocol. From 3 on, mechanisms with channel binding are offered.
        minor: u32 => CountIn<0, 4> = 2;
        /// Service name of requests that name none.
        service: Option<String> => Opt<Text> = None, optional "\"smtp\"";
        /// Mechanisms offered here, narrower than `auth.mechanisms`.
        mechanisms: Option<Vec<String>> => Opt<Names> = None, optional "[\"PLAIN\"]";
        /// Names of the passdbs asked for logins on this socket, in their order in the file. Unset: all.
        passdb: Option<Vec<String>> => Opt<TextList> = None, optional "[\"system\"]";
        /// Users (names or uids) that may connect, told by the kernel. Empty here and in `allow_groups`: everybody the mode lets in.
        allow_users: Vec<String> => TextList = Vec::new();
        /// Groups (names or gids) that may connect.
        allow_groups: Vec<String> => TextList = Vec::new();
        /// Owner of the socket: a name or uid.
        owner: Option<String> => Opt<Text> = None, optional "\"postfix\"";
        /// Group of the socket: a name or gid.
        group: Option<String> => Opt<Text> = None, optional "\"postfix\"";
        /// Permissions of the socket.
        mode: u32 => Mode = 0o600;
        /// Longest time until a request is answered; clients that wait 5 s need `4500ms`.
        reply_deadline: Duration => Time = Duration::from_secs(9);
        /// What a client sees while a backend is down: `fail` (temporary failure), `close` (connection closed, for clients
        /// that take every failure for a wrong password), or `auto`.
        on_outage: OnOutage => Choice<OnOutage> = OnOutage::Auto;
        /// Join user and realm to `user@realm`, as `saslauthd -r` does (type `saslauthd`).
        join_realm: bool => Flag = false;
        /// PAM services a request may name (type `saslauthd`). Empty: the request's service is not used for PAM.
        pam_services: Vec<String> => TextList = Vec::new();
    }

    /// How a passdb takes part in the chain.
    pub struct PassdbRules {
        /// What follows when this passdb accepts.
        result_success: ResultAction => Choice<ResultAction> = ResultAction::ReturnOk;
        /// What follows when it refuses or does not know the user.
        result_failure: ResultAction => Choice<ResultAction> = ResultAction::Continue;
        /// What follows when it cannot answer.
        result_internalfail: ResultAction => Choice<ResultAction> = ResultAction::Continue;
        /// Do not ask it when an earlier one has, or has not, accepted the password.
        skip: PassdbSkip => Choice<PassdbSkip> = PassdbSkip::Never;
        /// A list of users to refuse: whoever is found here is disabled. The password is still checked by the other entries; only
        /// a right one hears that the account is disabled.
        deny: bool => Flag = false;
        /// Holds master users, who may log in as others.
        master: bool => Flag = false;
        /// Only for these mechanisms; `lookup` stands for look-ups without one. Unset: all.
        mechanisms: Option<Vec<String>> => Opt<Names> = None, optional "[\"PLAIN\", \"LOGIN\"]";
        /// Only for these services. Unset: all.
        services: Option<Vec<String>> => Opt<TextList> = None, optional "[\"imap\", \"smtp\"]";
        /// Only for these users: wildcard patterns, `!pattern` excludes. Empty: all.
        username_filter: Vec<String> => TextList = Vec::new();
        /// Fields that hold when the driver gives none; values are templates.
        default_fields: Vec<(String, String)> => Fields = Vec::new();
        /// Fields that hold whatever the driver gives; values are templates.
        override_fields: Vec<(String, String)> => Fields = Vec::new();
    }

    /// How a userdb takes part in the chain.
    pub struct UserdbRules {
        /// What follows when this userdb knows the user.
        result_success: ResultAction => Choice<ResultAction> = ResultAction::ReturnOk;
        /// What follows when it does not.
        result_failure: ResultAction => Choice<ResultAction> = ResultAction::Continue;
        /// What follows when it cannot answer.
        result_internalfail: ResultAction => Choice<ResultAction> = ResultAction::Continue;
        /// Do not ask it when an earlier one has, or has not, found the user.
        skip: UserdbSkip => Choice<UserdbSkip> = UserdbSkip::Never;
        /// Only for these users: wildcard patterns, `!pattern` excludes. Empty: all.
        username_filter: Vec<String> => TextList = Vec::new();
        /// Fields that hold when the driver gives none; values are templates.
        default_fields: Vec<(String, String)> => Fields = Vec::new();
        /// Fields that hold whatever the driver gives; values are templates.
        override_fields: Vec<(String, String)> => Fields = Vec::new();
    }

    /// Cache of verdicts.
    pub struct AuthCache {
        /// Memory it may take. 0: no cache.
        size: u64 => Size = 16 * MIB;
        /// How long a success is believed. A changed passwd-file is noticed at once, whatever stands here.
        ttl: Duration => Time = Duration::from_secs(60);
        /// How long a refusal is believed.
        negative_ttl: Duration => Time = Duration::from_secs(60);
    }

    /// Slowing down those who guess. A right password is never delayed.
    pub struct Penalty {
        /// Whether refusals get slower with every one before.
        enabled: bool => Flag = true;
        /// Longest delay of a refusal.
        max_delay: Duration => Time = Duration::from_secs(4);
    }

    /// Limits for computing password hashes.
    pub struct HashLimits {
        /// Threads that compute hashes. 0: one per core.
        threads: u32 => Count = 0;
        /// Logins that may wait for a thread; further ones get a temporary failure.
        queue: u32 => CountIn<1, 1_000_000> = 1024;
        /// Memory that all hashes being computed may take together.
        memory: u64 => Size = 512 * MIB;
        /// Most memory one stored hash may ask for; a hash that asks for more is refused.
        max_memory: u64 => Size = 256 * MIB;
        /// Most rounds a stored SHA-crypt, PBKDF2 or SCRAM hash may ask for.
        max_rounds: u32 => Count = 1_000_000;
        /// Most passes a stored Argon2 hash may ask for.
        max_passes: u32 => Count = 32;
        /// Highest cost a stored bcrypt hash may ask for.
        max_bcrypt_cost: u32 => CountIn<4, 31> = 15;
    }

    /// Processes for blocking look-ups (PAM, passwd, shadow).
    pub struct Workers {
        /// Account of these processes, if not the common one. For system users it must be able to read `/etc/shadow`:
        /// the group `shadow` is given to it where there is one. Some PAM modules need `root`, which gives whoever takes over a
        /// worker the machine.
        run_as: Option<String> => Opt<Text> = None, optional "\"postern-authw\"";
        /// Most processes at a time.
        count: u32 => CountIn<1, 1000> = 8;
        /// Look-ups until a process is replaced by a new one.
        max_requests: u32 => CountIn<1, 1_000_000_000> = 100;
        /// Time after which a look-up counts as failed and its process is killed.
        timeout: Duration => Time = Duration::from_secs(30);
    }

    /// Where mail is kept.
    pub struct Mail {
        /// Maildir of a user.
        location: String => Template = "%{home}/Maildir".to_owned();
        /// Home of a user where the userdb gives none.
        home: String => Template = "mail/%{user | without_default_domain}".to_owned(),
            described "`mail/%{user | without_default_domain}` below `state_dir`" "\"/srv/mail/%{user}\"";
        /// Whose the mail is: `virtual` (one account for all mail, that of the IMAP server) or `system` (every user's mail
        /// belongs to the user; it is read and written by a process with the user's own ids). `system` needs a start as root.
        mailboxes: Mailboxes => Choice<Mailboxes> = Mailboxes::Virtual;
        /// Smallest uid mail may belong to.
        first_valid_uid: u32 => Count = 500;
        /// Largest uid mail may belong to. 0: no limit.
        last_valid_uid: u32 => Count = 0;
        /// How long the process of a mailbox stays when nobody uses it (mailboxes of system users).
        mailbox_idle: Duration => Time = Duration::from_secs(60);
        /// Most processes of mailboxes at a time (mailboxes of system users). From 8 on sessions can use all but an
        /// eighth of them, and so can deliveries: neither takes the last places of the other.
        mailbox_processes: u32 => CountIn<1, 1_000_000> = 1000;
        /// Most IMAP and POP3 sessions of one user at a time (mailboxes of system users).
        mailbox_sessions: u32 => CountIn<1, 1_000_000> = 50;
        /// Folders every user gets beside INBOX; these names also tell clients what they are for.
        create_folders: Vec<String> => TextList = names(&["Drafts", "Sent", "Junk", "Trash", "Archive"]);
    }

    /// The SMTP server: inbound mail, submission, LMTP.
    pub struct Smtp {
        /// Account of the SMTP server, if not the common one.
        run_as: Option<String> => Opt<Text> = None, optional "\"postern-smtp\"";
        /// Addresses it listens on.
        listener: Vec<SmtpListener> => Tables<SmtpListener> = Vec::new();
        /// Largest message taken.
        max_message_size: u64 => Size = 25 * MIB;
        /// Most recipients of one message.
        max_recipients: u32 => CountIn<1, 100_000> = 100;
        /// Domains whose mail is delivered here.
        local_domains: Vec<String> => TextList = Vec::new(), described "`[hostname]`" "[\"example.org\"]";
        /// User who gets mail for `postmaster` where no user has that name: RFC 5321 wants it to arrive somewhere.
        postmaster: Option<String> => Opt<Text> = None, optional "\"alice\"";
        /// What happens to messages with line ends other than CRLF, which many scripts send: `normalize` sets them
        /// right (a bare LF is a line end, a bare CR a blank), `reject` refuses the message. Only CRLF.CRLF ends a
        /// message either way.
        bare_newline: BareNewline => Choice<BareNewline> = BareNewline::Normalize;
        /// Longest silence of a client.
        timeout: Duration => Time = Duration::from_secs(300);
        /// Mistakes after which a client is disconnected.
        max_bad_commands: u32 => CountIn<1, 100_000> = 20;
        /// Refused logins after which a client is disconnected.
        max_auth_failures: u32 => CountIn<1, 1000> = 3;
    }

    /// Addresses of the SMTP server with one behaviour.
    pub struct SmtpListener {
        /// Name in logs and status; unique in the file.
        name: String => Text = String::new(), required "\"submission\"";
        /// Address and port; one or a list.
        address: Vec<SocketAddr> => Addresses = Vec::new(), required "\"0.0.0.0:587\"";
        /// `inbound` (port 25), `submission` (587, STARTTLS), `submissions` (465, TLS from the first byte) or `lmtp`.
        kind as "type": SmtpKind => Choice<SmtpKind> = SmtpKind::Inbound, required "\"submission\"";
    }

    /// The IMAP server.
    pub struct Imap {
        /// Account of the IMAP and POP3 server, if not the common one. Where there is one account for all mail, the mail is its.
        run_as: Option<String> => Opt<Text> = None, optional "\"postern-imap\"";
        /// Addresses it listens on.
        listener: Vec<ImapListener> => Tables<ImapListener> = Vec::new();
        /// Longest silence of a client before login.
        login_timeout: Duration => Time = Duration::from_secs(60);
        /// Longest silence after login; RFC 9051 wants at least 30 minutes.
        idle_timeout: Duration => Time = Duration::from_secs(1800);
        /// Largest literal (a message to append) taken after login.
        max_literal: u64 => Size = 64 * MIB;
        /// Longest command line.
        max_line: u64 => Size = 64 * KIB;
        /// What stands between the levels of a folder name. Names cannot hold it, nor a `.`, which is what
        /// Maildirs use. A Dovecot without a `separator` setting shows `.`: keep that for clients that come from one.
        separator: Separator => Choice<Separator> = Separator::Slash;
    }

    /// Addresses of the IMAP server with one behaviour.
    pub struct ImapListener {
        /// Name in logs and status; unique in the file.
        name: String => Text = String::new(), required "\"imaps\"";
        /// Address and port; one or a list.
        address: Vec<SocketAddr> => Addresses = Vec::new(), required "\"0.0.0.0:993\"";
        /// `implicit` (TLS from the first byte, port 993) or `starttls` (port 143).
        tls: ListenerTls => Choice<ListenerTls> = ListenerTls::Implicit, required "\"implicit\"";
    }

    /// The POP3 server.
    pub struct Pop3 {
        /// Addresses it listens on.
        listener: Vec<Pop3Listener> => Tables<Pop3Listener> = Vec::new();
        /// Longest silence of a client before login.
        login_timeout: Duration => Time = Duration::from_secs(60);
        /// Longest silence after login; RFC 1939 wants at least 10 minutes.
        idle_timeout: Duration => Time = Duration::from_secs(600);
    }

    /// Addresses of the POP3 server with one behaviour.
    pub struct Pop3Listener {
        /// Name in logs and status; unique in the file.
        name: String => Text = String::new(), required "\"pop3s\"";
        /// Address and port; one or a list.
        address: Vec<SocketAddr> => Addresses = Vec::new(), required "\"0.0.0.0:995\"";
        /// `implicit` (TLS from the first byte, port 995) or `starttls` (STLS, port 110).
        tls: ListenerTls => Choice<ListenerTls> = ListenerTls::Implicit, required "\"implicit\"";
    }

    /// Figures for Prometheus and health checks, over HTTP, by a process of its own.
    pub struct Metrics {
        /// Where `/metrics`, `/healthz` and `/readyz` are served: an address with a port, or the path of a Unix socket.
        /// Unset: nowhere.
        listen: Option<String> => Opt<Text> = None, optional "\"127.0.0.1:9154\"";
        /// Allow an address that other machines can reach. There is no password and no TLS: whoever reaches it reads all figures.
        public: bool => Flag = false;
        /// Account of the process that serves them, if not the common one.
        run_as: Option<String> => Opt<Text> = None, optional "\"nobody\"";
        /// Group of the Unix socket: a name or gid.
        group: Option<String> => Opt<Text> = None, optional "\"prometheus\"";
        /// Permissions of the Unix socket.
        mode: u32 => Mode = 0o660;
    }

    /// Limits of each daemon.
    pub struct Limits {
        /// Connections of each network daemon in all.
        connections: u32 => CountIn<1, 10_000_000> = 10_000;
        /// Connections of each network daemon from one address.
        connections_per_address: u32 => CountIn<1, 10_000_000> = 100;
        /// Connections on the sockets of the authentication daemon in all.
        auth_connections: u32 => CountIn<1, 10_000_000> = 3_000;
        /// Open files a daemon may have; raised as far as the system allows.
        open_files: u64 => Wide = 65_536;
    }
}

choices! {
    /// How strictly the processes are restricted.
    pub enum SandboxMode {
        /// What is not needed fails.
        On = "on" default,
        /// What is not needed is logged.
        Log = "log",
        /// No restriction of system calls and files.
        Off = "off",
    }

    /// How log lines look, and where they go.
    pub enum LogFormat {
        /// journald where standard error is the journal, else human.
        Auto = "auto" default,
        /// Lines for people.
        Human = "human",
        /// One JSON object per line.
        Json = "json",
        /// Fields for systemd's journal.
        Journald = "journald",
    }

    /// Whose the mail is.
    pub enum Mailboxes {
        /// One account's.
        Virtual = "virtual" default,
        /// Each user's own.
        System = "system",
    }

    /// Hierarchy separator of folder names on the wire.
    pub enum Separator {
        /// `Lists/rust`.
        Slash = "/" default,
        /// `Lists.rust`, as Maildirs have it on disk.
        Dot = ".",
    }

    /// A version of TLS.
    pub enum TlsVersion {
        /// RFC 5246.
        V1_2 = "1.2" default,
        /// RFC 8446.
        V1_3 = "1.3",
    }

    /// What a socket of the authentication daemon speaks.
    pub enum AuthListenerKind {
        /// Dovecot's client protocol.
        Client = "client" default,
        /// The same, for login processes: successes can be asked for on a session socket.
        Login = "login",
        /// User look-ups.
        Userdb = "userdb",
        /// All look-ups and administration.
        Master = "master",
        /// Confirming logins (REQUEST) only.
        Session = "session",
        /// The mux of Cyrus `saslauthd`.
        Saslauthd = "saslauthd",
    }

    /// What a client of the authentication daemon sees while a backend is down.
    pub enum OnOutage {
        /// Closes for clients of minor 0, else answers a temporary failure.
        Auto = "auto" default,
        /// Closes the connection.
        Close = "close",
        /// Answers a temporary failure.
        Fail = "fail",
    }

    /// What follows a chain entry's verdict.
    pub enum ResultAction {
        /// Success, done.
        ReturnOk = "return-ok" default,
        /// Failure, done.
        ReturnFail = "return-fail",
        /// Done, as decided so far.
        Return = "return",
        /// Success so far; later entries add fields without checking the password.
        ContinueOk = "continue-ok",
        /// Failure so far; later entries check.
        ContinueFail = "continue-fail",
        /// As decided so far; the next entry is asked.
        Continue = "continue",
    }

    /// When a passdb is not asked.
    pub enum PassdbSkip {
        /// It is always asked.
        Never = "never" default,
        /// When the password has been accepted already.
        Authenticated = "authenticated",
        /// When it has not.
        Unauthenticated = "unauthenticated",
    }

    /// When a userdb is not asked.
    pub enum UserdbSkip {
        /// It is always asked.
        Never = "never" default,
        /// When the user has been found already.
        Found = "found",
        /// When not.
        NotFound = "notfound",
    }

    /// What a right password is worth while its account is in some state.
    pub enum StateRule {
        /// The login is refused.
        Refuse = "refuse" default,
        /// It counts as ever.
        Accept = "accept",
    }

    /// What happens to messages with bare CR or LF.
    pub enum BareNewline {
        /// They are taken, with CRLF everywhere.
        Normalize = "normalize" default,
        /// They are refused.
        Reject = "reject",
    }

    /// What an SMTP listener is for.
    pub enum SmtpKind {
        /// Mail from other servers; STARTTLS.
        Inbound = "inbound" default,
        /// Mail from users; STARTTLS, then AUTH (RFC 6409).
        Submission = "submission",
        /// Mail from users; TLS from the first byte (RFC 8314).
        Submissions = "submissions",
        /// Local delivery (RFC 2033).
        Lmtp = "lmtp",
    }

    /// When TLS begins.
    pub enum ListenerTls {
        /// From the first byte.
        Implicit = "implicit" default,
        /// When the client asks for it; no login before.
        Starttls = "starttls",
    }
}

drivers! {
    /// Where a passdb looks.
    pub enum PassdbDriver {
        /// A file of lines `user:{SCHEME}hash:…` as Dovecot reads it. Changes are noticed at the next login.
        PasswdFile = "passwd-file" {
            /// The file; a template, so that each domain may have its own: `/etc/postern/users/%{user | domain}`.
            path: String => Template = String::new(), required "\"users\"";
            /// Scheme of passwords that stand without `{SCHEME}`.
            scheme: String => Text = "CRYPT".to_owned();
            /// What is looked up in the file.
            username_format: Option<String> => Opt<Template> = None, described "`auth.username_format`'s result" "\"%{user | username}\"";
        }
        /// One password, or none, for every user name.
        Static = "static" {
            /// File that holds the password (one trailing newline does not count).
            password_file: Option<PathBuf> => Opt<Path> = None, optional "\"/etc/postern/static-password\"";
            /// Environment variable that holds the password.
            password_env: Option<String> => Opt<Text> = None, optional "\"POSTERN_STATIC_PASSWORD\"";
            /// The password, from one of the two above.
            password: Option<crate::Secret> => SecretText = None;
            /// Any password is right.
            nopassword: bool => Flag = false;
        }
        /// The user file of Cyrus SASL as `saslpasswd2` makes it (Berkeley DB), with passwords in clear. Changes are
        /// noticed at the next login. The daemon's account must be able to read it: on Debian, be in group `sasl`.
        Sasldb = "sasldb" {
            /// The file.
            path: PathBuf => Path = PathBuf::from("/etc/sasldb2");
            /// Realm in which users of `auth.default_domain` are looked for where the file does not know them under
            /// that domain. `saslpasswd2` without `-u` takes the machine's host name.
            realm: Option<String> => Opt<Text> = None, described "the machine's host name" "\"mail\"";
        }
        /// The system's accounts through NSS, with the hash in the passwd entry.
        Passwd = "passwd" {
            /// Whether a user whose login shell is `nologin` or `false` may use mail: `accept` or `refuse`.
            nologin_shell: StateRule => Choice<StateRule> = StateRule::Accept;
        }
        /// The system's shadow passwords, with their expiry dates. An empty or locked (`!`, `*`) password lets nobody in.
        Shadow = "shadow" {
            /// A password that must be changed: too old, or a change was demanded (`chage -d 0`). `refuse` or `accept`.
            must_change: StateRule => Choice<StateRule> = StateRule::Refuse;
            /// A password that was not changed within its days of grace either.
            inactive: StateRule => Choice<StateRule> = StateRule::Refuse;
            /// An account whose day of expiry has come.
            account_expired: StateRule => Choice<StateRule> = StateRule::Refuse;
            /// Whether a user whose login shell is `nologin` or `false` may use mail.
            nologin_shell: StateRule => Choice<StateRule> = StateRule::Accept;
        }
        /// Pluggable authentication modules.
        Pam = "pam" {
            /// Name of the file below `/etc/pam.d`; a template.
            service: String => Template = "postern".to_owned();
            /// Also open and close a session.
            session: bool => Flag = false;
            /// Also establish credentials.
            setcred: bool => Flag = false;
            /// Tell a refused user what the modules say (such as how long he is locked out) instead of the usual text.
            /// Who guesses reads it as well.
            show_messages: bool => Flag = false;
            /// Whether a user whose login shell is `nologin` or `false` may use mail: `accept` or `refuse`.
            nologin_shell: StateRule => Choice<StateRule> = StateRule::Accept;
        }
        /// A login at an IMAP server, in clear text: for servers of this machine or a network you trust.
        Imap = "imap" {
            /// Name or address of the server.
            host: String => Text = String::new(), required "\"127.0.0.1\"";
            /// Its port.
            port: u32 => CountIn<1, 65_535> = 143;
        }
    }
}

drivers! {
    /// Where a userdb looks.
    pub enum UserdbDriver {
        /// The file of a passdb with driver `passwd-file`, or another one in the same form.
        PasswdFile = "passwd-file" {
            /// The file; a template.
            path: String => Template = String::new(), required "\"users\"";
            /// What is looked up in the file.
            username_format: Option<String> => Opt<Template> = None, described "`auth.username_format`'s result" "\"%{user | username}\"";
        }
        /// The same for all, from `default_fields` and `override_fields`.
        Static = "static" {
            /// Do not ask the passdbs whether the user exists.
            allow_all_users: bool => Flag = false;
        }
        /// The system's accounts through NSS.
        Passwd = "passwd"
        /// The `userdb_…` fields that the passdb has just given.
        Prefetch = "prefetch"
    }
}

/// `[[auth.passdb]]`: one place where passwords are checked.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Passdb {
    /// Name in logs and in `passdb` of listeners. Default: the driver's, made unique.
    pub name: String,
    /// How it takes part in the chain.
    pub rules: PassdbRules,
    /// Where it looks.
    pub driver: PassdbDriver,
}

/// `[[auth.userdb]]`: one place where facts of a user come from.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Userdb {
    /// Name in logs. Default: the driver's, made unique.
    pub name: String,
    /// How it takes part in the chain.
    pub rules: UserdbRules,
    /// Where it looks.
    pub driver: UserdbDriver,
}

impl PassdbDriver {
    /// `pam` with this service and nothing special.
    pub fn pam(service: &str) -> Self {
        Self::Pam {
            service: service.to_owned(),
            session: false,
            setcred: false,
            show_messages: false,
            nologin_shell: StateRule::Accept,
        }
    }

    /// `shadow` with its usual rules.
    pub fn shadow() -> Self {
        let (must_change, inactive, account_expired) = Default::default();
        Self::Shadow { must_change, inactive, account_expired, nologin_shell: StateRule::Accept }
    }

    /// `passwd` with its usual rules.
    pub fn passwd() -> Self {
        Self::Passwd { nologin_shell: StateRule::Accept }
    }
}

impl Default for PassdbDriver {
    fn default() -> Self {
        Self::PasswdFile { path: String::new(), scheme: "CRYPT".to_owned(), username_format: None }
    }
}

impl Default for UserdbDriver {
    fn default() -> Self {
        Self::PasswdFile { path: String::new(), username_format: None }
    }
}

type Paths = crate::codec::OneOrMore<Path>;
type Addresses = crate::codec::OneOrMore<Address>;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&name| name.to_owned()).collect()
}

impl Separator {
    /// The character itself.
    pub fn letter(self) -> char {
        match self {
            Separator::Slash => '/',
            Separator::Dot => '.',
        }
    }
}
