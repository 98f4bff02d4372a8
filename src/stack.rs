//! From settings to processes: the plan the supervisor carries out.
//!
//! Trust: nobody; made of the administrator's settings and the machine's accounts.
//! Never: tell a daemon another one's settings: each gets its own slice.

use std::path::{Path, PathBuf};

use boot::exit::{self, Coded};
use boot::logging::LogOptions;
use boot::{Bind, Daemon, DaemonPlan, Plan, SocketSpec};
use conf::{AuthListener, AuthListenerKind, Mailboxes, MetricsEndpoint, Settings};

use crate::accounts::{self, Account};
use crate::metrics;
use crate::roles::{self, Accounts};

/// Hidden command that makes this executable one of its daemons.
pub(crate) const DAEMON_COMMAND: &str = "daemon";

/// Every daemon this executable can be.
pub(crate) const DAEMONS: &[Daemon] = &[
    Daemon { role: "auth", main: auth_daemon::main },
    Daemon { role: WORKERS, main: auth_daemon::workers_main },
    Daemon { role: "smtp", main: smtp_frontend::main },
    Daemon { role: "imap", main: imap_pop_lite::main },
    Daemon { role: BROKER, main: imap_pop_lite::broker::main },
    Daemon { role: "mailbox", main: imap_pop_lite::mailbox::main },
    Daemon { role: FORWARD, main: auth_daemon::forward_main },
    Daemon { role: metrics::ROLE, main: metrics::main },
];

/// The role of `auth-daemon forward`, which runs alone.
pub(crate) const FORWARD: &str = "forward";

/// The role of the process that starts these helpers where they have an account of their own; also its socket.
const WORKERS: &str = "auth-workers";

/// The role of the process that starts those of system users' mailboxes; also its socket.
const BROKER: &str = imap_pop_lite::broker::SOCKET;

/// The role of the authentication daemon's own helpers, which it starts itself.
pub(crate) const WORKER: &str = "auth-worker";

/// Where a stack's supervisor listens for admin commands.
pub(crate) fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("sockets/control")
}

/// Where a stack's supervisor keeps its pid; also the lock of the folder.
pub(crate) fn pid_file(state_dir: &Path) -> PathBuf {
    state_dir.join("postern.pid")
}

/// The plan for these settings, run as these accounts.
pub(crate) fn plan(settings: &Settings, who: &Accounts) -> anyhow::Result<Plan> {
    let mut daemons = Vec::new();
    let daemon = |role: &'static str, slice: Vec<u8>, sockets: Vec<SocketSpec>| DaemonPlan {
        sockets,
        ..roles::daemon(role, slice, settings, who)
    };

    // Its own requests end last: the fronts ask it until they are gone.
    let mut sockets = Vec::new();
    let mut auth = settings.auth_slice()?;
    auth.state_dir = roles::auth_folder(settings, who);
    for listener in &mut auth.auth.listener {
        between_ourselves(listener, settings, who);
        sockets.extend(auth_sockets(listener, who.auth.as_ref())?);
    }
    auth.auth.listener.iter_mut().try_for_each(accounts::by_number)?;
    auth.ids = accounts::system_ids(&auth.auth, roles::needs_workers(settings));
    let pool = roles::has_pool(settings, who);
    auth.worker_socket = pool.then(|| workers_socket(&settings.state_dir));
    daemons.push(DaemonPlan { tier: 0, ..daemon("auth", auth.to_json()?, sockets) });

    let mail = Writers::of(settings, who)?;
    let smtp = settings.smtp.listener.iter().map(|l| (&l.name, &l.address));
    let sockets = tcp_sockets(smtp);
    let has_smtp = !sockets.is_empty();
    if has_smtp {
        let mut slice = settings.smtp_slice()?;
        slice.delivery = match mail {
            Writers::Fronts => None,
            Writers::Imap => Some(settings.delivery_socket()),
            Writers::Users => Some(settings.broker_socket()),
        };
        daemons.push(daemon("smtp", slice.to_json()?, sockets));
    }
    let imap = settings.imap.listener.iter().map(|l| (&l.name, &l.address));
    let pop3 = settings.pop3.listener.iter().map(|l| (&l.name, &l.address));
    let mut sockets = tcp_sockets(imap.chain(pop3));
    let mut slice = settings.imap_slice()?;
    if has_smtp && mail == Writers::Imap {
        slice.delivery_from = Some(who.uid("smtp"));
        let name = imap_pop_lite::DELIVERY_SOCKET;
        sockets.push(internal_socket(name, settings.delivery_socket(), who.imap.as_ref(), who));
    }
    if !sockets.is_empty() {
        slice.broker = (mail == Writers::Users).then(|| settings.broker_socket());
        daemons.push(daemon("imap", slice.to_json()?, sockets));
    }
    if mail == Writers::Users && settings.has_fronts() {
        daemons.push(broker(settings, who)?);
    }

    if let Some(socket) = metrics_socket(settings, who)? {
        // Told last to stop, so that it can say that the stack is not ready.
        let plan = daemon(metrics::ROLE, b"{}".to_vec(), vec![socket]);
        daemons.push(DaemonPlan { tier: 0, reads_status: true, ..plan });
    }

    if pool {
        // It ends last: the authentication daemon asks it until that is gone.
        daemons.iter_mut().for_each(|daemon| daemon.tier = daemon.tier.saturating_add(1));
        let (slice, sockets) = worker_pool(settings, who)?;
        daemons.push(DaemonPlan { tier: 0, ..daemon(WORKERS, slice, sockets) });
    }

    Ok(Plan {
        daemons,
        grace: settings.grace_time,
        control_socket: control_socket(&settings.state_dir),
        pid_file: pid_file(&settings.state_dir),
        log: Some(LogOptions::new("supervisor", settings.log.level.clone(), log_format(settings.log.format))),
    })
}

/// Who writes mail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Writers {
    /// The SMTP and IMAP servers themselves: they are one account.
    Fronts,
    /// The IMAP server: all mail is its account's, and the SMTP server has another one.
    Imap,
    /// A process of each user's own.
    Users,
}

impl Writers {
    fn of(settings: &Settings, who: &Accounts) -> anyhow::Result<Self> {
        match settings.mail.mailboxes {
            Mailboxes::System if !accounts::is_root() => {
                let text = "mail.mailboxes is \"system\", which needs a start as root: each user's mail is read and written \
                            by a process with the user's ids";
                Err(Coded::new(exit::CONFIG, text).into())
            }
            Mailboxes::System => Ok(Self::Users),
            Mailboxes::Virtual if who.uid("smtp") != who.uid("imap") => Ok(Self::Imap),
            Mailboxes::Virtual => Ok(Self::Fronts),
        }
    }
}

/// A socket for our own daemons; who listens on it checks who connects.
fn internal_socket(name: &str, path: PathBuf, owner: Option<&Account>, who: &Accounts) -> SocketSpec {
    let group =
        who.group.or_else(|| (!who.distinct()).then(|| who.imap.as_ref().map(|one| one.gid)).flatten());
    let mode = if group.is_some() || !who.distinct() { 0o660 } else { 0o666 };
    let owner = owner.map(|account| account.uid);
    SocketSpec { name: name.to_owned(), bind: Bind::Unix { path, mode, owner, group } }
}

/// The process that starts mailbox processes: root, and in the group of the sockets between the daemons.
fn broker(settings: &Settings, who: &Accounts) -> anyhow::Result<DaemonPlan> {
    let slice = settings.broker_slice(who.uid("imap"), who.uid("smtp")).to_json()?;
    let socket = internal_socket(BROKER, settings.broker_socket(), None, who);
    let mut groups = vec![0];
    groups.extend(who.group.or_else(|| who.auth.as_ref().map(|account| account.gid)));
    Ok(DaemonPlan {
        // It ends after the fronts, which ask it until they are gone.
        tier: 0,
        ids: Some(boot::Ids { uid: 0, gid: 0, groups }),
        sockets: vec![socket],
        ..roles::daemon(BROKER, slice, settings, who)
    })
}

/// Where figures are served.
fn metrics_socket(settings: &Settings, who: &Accounts) -> anyhow::Result<Option<SocketSpec>> {
    let bind = match settings.metrics_endpoint() {
        None => return Ok(None),
        Some(MetricsEndpoint::Tcp(address)) => Bind::Tcp(address),
        Some(MetricsEndpoint::Unix(path)) => Bind::Unix {
            path,
            mode: settings.metrics.mode,
            owner: who.metrics.as_ref().map(|account| account.uid),
            group: match &settings.metrics.group {
                Some(name) => Some(accounts::gid(name)?),
                None => who.metrics.as_ref().map(|account| account.gid),
            },
        },
    };
    Ok(Some(SocketSpec { name: metrics::ROLE.to_owned(), bind }))
}

/// Where the authentication daemon asks for workers.
fn workers_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("sockets").join(WORKERS)
}

/// What the workers' manager is told, and its socket: for the authentication daemon alone.
fn worker_pool(settings: &Settings, who: &Accounts) -> anyhow::Result<(Vec<u8>, Vec<SocketSpec>)> {
    let slice = auth_daemon::WorkersSlice {
        socket: WORKERS.to_owned(),
        front: who.uid("auth"),
        count: settings.auth.worker.count,
        needs_shadow: auth_daemon::needs_shadow(&settings.auth).is_some(),
    };
    let bind = Bind::Unix {
        path: workers_socket(&settings.state_dir),
        mode: 0o600,
        owner: Some(slice.front),
        group: who.auth.as_ref().map(|account| account.gid),
    };
    Ok((slice.to_json()?, vec![SocketSpec { name: WORKERS.to_owned(), bind }]))
}

fn tcp_sockets<'a>(
    listeners: impl Iterator<Item = (&'a String, &'a Vec<std::net::SocketAddr>)>,
) -> Vec<SocketSpec> {
    listeners
        .flat_map(|(name, addresses)| addresses.iter().map(move |address| (name, address)))
        .map(|(name, address)| SocketSpec { name: name.clone(), bind: Bind::Tcp(*address) })
        .collect()
}

/// The fronts' own sockets, where the fronts are other accounts: for the group, and of that for the fronts alone. With
/// mailboxes of system users the broker asks as well, and only it fetches logins.
fn between_ourselves(listener: &mut AuthListener, settings: &Settings, who: &Accounts) {
    let broker = settings.mail.mailboxes == Mailboxes::System;
    if !(who.distinct() || broker) || !conf::is_fronts_socket(&listener.name) {
        return;
    }
    let group =
        who.group.or_else(|| (!who.distinct()).then(|| who.auth.as_ref().map(|one| one.gid)).flatten());
    listener.mode = if group.is_some() || !who.distinct() { 0o660 } else { 0o666 };
    listener.group = group.map(|group| group.to_string());
    listener.allow_users = match (broker, listener.kind) {
        (true, AuthListenerKind::Session) => vec!["0".to_owned()],
        (true, AuthListenerKind::Userdb) => [who.fronts(), vec!["0".to_owned()]].concat(),
        _ => who.fronts(),
    };
}

fn auth_sockets(listener: &AuthListener, account: Option<&Account>) -> anyhow::Result<Vec<SocketSpec>> {
    // Without an owner of its own a socket belongs to whom the daemons run as: the fronts are that account.
    let owner = match &listener.owner {
        Some(name) => Some(accounts::uid(name)?),
        None => account.map(|account| account.uid),
    };
    let group = match &listener.group {
        Some(name) => Some(accounts::gid(name)?),
        None => account.map(|account| account.gid),
    };
    let specs = listener.path.iter().map(|path| SocketSpec {
        name: listener.name.clone(),
        bind: Bind::Unix { path: path.clone(), mode: listener.mode, owner, group },
    });
    Ok(specs.collect())
}

fn log_format(format: conf::LogFormat) -> boot::logging::LogFormat {
    match format {
        conf::LogFormat::Auto => boot::logging::LogFormat::Auto,
        conf::LogFormat::Human => boot::logging::LogFormat::Human,
        conf::LogFormat::Json => boot::logging::LogFormat::Json,
        conf::LogFormat::Journald => boot::logging::LogFormat::Journald,
    }
}

#[cfg(test)]
mod tests {
    use super::plan;
    use crate::accounts::Account;
    use crate::roles::Accounts;
    use boot::Bind;
    use conf::{EmbeddedOptions, SmtpKind, embedded_default};

    #[test]
    fn daemons_only_where_there_are_listeners() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let state_dir = folder.path().to_owned();
        crate::certificate::ensure(folder.path(), "localhost", std::time::SystemTime::now()).expect("made");
        let mut settings = embedded_default(&EmbeddedOptions { state_dir, ..EmbeddedOptions::default() });
        settings.tls.certificate[0].chain = folder.path().join("cert.pem");
        settings.tls.certificate[0].key = folder.path().join("key.pem");
        let account = Account { name: "x".into(), uid: 7, gid: 8, groups: vec![8] };
        let one = Accounts::one(Some(&account));
        let made = plan(&settings, &one).expect("a plan");
        assert_eq!(made.daemons.iter().map(|d| d.role).collect::<Vec<_>>(), ["auth", "smtp", "imap"]);
        assert!(made.daemons.iter().all(|d| d.ids.as_ref().is_some_and(|ids| ids.uid == 7)));
        let auth = &made.daemons[0];
        assert_eq!(auth.tier, 0);
        assert!(
            auth.sockets.iter().all(|s| matches!(s.bind, Bind::Unix { owner: Some(7), group: Some(8), .. }))
        );
        assert_eq!(made.daemons[2].sockets.len(), 4);

        // An account each: the fronts' sockets are for their group, and of that for them alone.
        let of = |uid: u32| Some(Account { name: "x".into(), uid, gid: uid, groups: vec![uid, 90] });
        let each = Accounts {
            auth: of(11),
            workers: of(12),
            smtp: of(13),
            imap: of(14),
            metrics: of(11),
            group: Some(90),
            own: true,
        };
        let made = plan(&settings, &each).expect("a plan");
        let uids: Vec<_> = made.daemons.iter().filter_map(|d| Some((d.role, d.ids.as_ref()?.uid))).collect();
        assert_eq!(uids, [("auth", 11), ("smtp", 13), ("imap", 14)]);
        let auth = &made.daemons[0];
        let slice = conf::AuthSlice::from_json(&auth.slice).expect("a slice");
        assert!(slice.state_dir.ends_with("auth"));
        for (socket, listener) in auth.sockets.iter().zip(&slice.auth.listener) {
            let fronts = socket.name.starts_with("fronts-");
            let Bind::Unix { mode, owner, group, .. } = socket.bind else { panic!("not a path") };
            assert_eq!(
                (mode == 0o660, owner, group == Some(90)),
                (fronts, Some(11), fronts),
                "{}",
                socket.name
            );
            assert!(!fronts || listener.allow_users == ["13", "14"], "{:?}", listener.allow_users);
        }

        // Mail is the IMAP server's, so the other one hands it over.
        let delivery =
            made.daemons[2].sockets.iter().find(|socket| socket.name == "mail-delivery").expect("a socket");
        assert!(matches!(delivery.bind, Bind::Unix { mode: 0o660, owner: Some(14), group: Some(90), .. }));
        assert_eq!(
            conf::ImapSlice::from_json(&made.daemons[2].slice).expect("a slice").delivery_from,
            Some(13)
        );
        let slice = conf::SmtpSlice::from_json(&made.daemons[1].slice).expect("a slice");
        assert_eq!(slice.delivery, Some(settings.delivery_socket()));

        // Mail is the users': a broker between, which alone fetches logins.
        settings.mail.mailboxes = conf::Mailboxes::System;
        if crate::accounts::is_root() {
            let made = plan(&settings, &each).expect("a plan");
            let broker = made.daemons.iter().find(|daemon| daemon.role == "broker").expect("a broker");
            let ids = broker.ids.as_ref().expect("ids");
            assert_eq!((ids.uid, ids.groups.contains(&90), broker.sockets.len()), (0, true, 1));
            let slice = conf::BrokerSlice::from_json(&broker.slice).expect("a slice");
            assert_eq!((slice.sessions_from, slice.deliveries_from), (14, 13));
            let slice = conf::AuthSlice::from_json(&made.daemons[0].slice).expect("a slice");
            let session = slice.auth.listener.iter().find(|one| one.name == "fronts-session").expect("there");
            assert_eq!(session.allow_users, ["0"]);
        } else {
            let text = plan(&settings, &each).expect_err("needs root").to_string();
            assert!(text.contains("needs a start as root"), "{text}");
        }
        settings.mail.mailboxes = conf::Mailboxes::Virtual;

        settings.imap.listener.clear();
        settings.pop3.listener.clear();
        settings.smtp.listener.retain(|l| l.kind == SmtpKind::Inbound);
        settings.auth.listener[0].owner = Some("root".into());
        let made = plan(&settings, &Accounts::one(None)).expect("a plan");
        assert_eq!(made.daemons.iter().map(|d| d.role).collect::<Vec<_>>(), ["auth", "smtp"]);
        assert!(matches!(made.daemons[0].sockets[0].bind, Bind::Unix { owner: Some(0), group: None, .. }));
    }
}
