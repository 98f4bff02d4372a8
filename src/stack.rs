//! From settings to processes: the plan the supervisor carries out.

use std::path::{Path, PathBuf};

use boot::logging::LogOptions;
use boot::{Bind, Daemon, DaemonPlan, Plan, SocketSpec};
use conf::{AuthListener, Settings};

use crate::accounts::{self, Account};

/// Hidden command that makes this executable one of its daemons.
pub(crate) const DAEMON_COMMAND: &str = "daemon";

/// Every daemon this executable can be.
pub(crate) const DAEMONS: &[Daemon] = &[
    Daemon { role: "auth", main: auth_daemon::main },
    Daemon { role: "smtp", main: smtp_frontend::main },
    Daemon { role: "imap", main: imap_pop_lite::main },
    Daemon { role: FORWARD, main: auth_daemon::forward_main },
];

/// The role of `auth-daemon forward`, which runs alone.
pub(crate) const FORWARD: &str = "forward";

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

/// The plan for these settings, run as `account` (`None`: as this process).
pub(crate) fn plan(settings: &Settings, account: Option<&Account>) -> anyhow::Result<Plan> {
    let mut daemons = Vec::new();
    let daemon = |role: &'static str, slice: Vec<u8>, sockets: Vec<SocketSpec>| DaemonPlan {
        ids: account.map(Account::ids),
        sockets,
        open_files: Some(settings.limits.open_files),
        ..DaemonPlan::new(role, slice)
    };

    // Its own requests end last: the fronts ask it until they are gone.
    let mut sockets = Vec::new();
    for listener in &settings.auth.listener {
        sockets.extend(auth_sockets(listener, account)?);
    }
    daemons.push(DaemonPlan { tier: 0, ..daemon("auth", settings.auth_slice()?.to_json()?, sockets) });

    let smtp = settings.smtp.listener.iter().map(|l| (&l.name, &l.address));
    let sockets = tcp_sockets(smtp);
    if !sockets.is_empty() {
        daemons.push(daemon("smtp", settings.smtp_slice()?.to_json()?, sockets));
    }
    let imap = settings.imap.listener.iter().map(|l| (&l.name, &l.address));
    let pop3 = settings.pop3.listener.iter().map(|l| (&l.name, &l.address));
    let sockets = tcp_sockets(imap.chain(pop3));
    if !sockets.is_empty() {
        daemons.push(daemon("imap", settings.imap_slice()?.to_json()?, sockets));
    }

    Ok(Plan {
        daemons,
        grace: settings.grace_time,
        control_socket: control_socket(&settings.state_dir),
        pid_file: pid_file(&settings.state_dir),
        log: Some(LogOptions::new("supervisor", settings.log.level.clone(), log_format(settings.log.format))),
    })
}

fn tcp_sockets<'a>(
    listeners: impl Iterator<Item = (&'a String, &'a Vec<std::net::SocketAddr>)>,
) -> Vec<SocketSpec> {
    listeners
        .flat_map(|(name, addresses)| addresses.iter().map(move |address| (name, address)))
        .map(|(name, address)| SocketSpec { name: name.clone(), bind: Bind::Tcp(*address) })
        .collect()
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
        let made = plan(&settings, Some(&account)).expect("a plan");
        assert_eq!(made.daemons.iter().map(|d| d.role).collect::<Vec<_>>(), ["auth", "smtp", "imap"]);
        assert!(made.daemons.iter().all(|d| d.ids.as_ref().is_some_and(|ids| ids.uid == 7)));
        let auth = &made.daemons[0];
        assert_eq!(auth.tier, 0);
        assert!(
            auth.sockets.iter().all(|s| matches!(s.bind, Bind::Unix { owner: Some(7), group: Some(8), .. }))
        );
        assert_eq!(made.daemons[2].sockets.len(), 4);

        settings.imap.listener.clear();
        settings.pop3.listener.clear();
        settings.smtp.listener.retain(|l| l.kind == SmtpKind::Inbound);
        settings.auth.listener[0].owner = Some("root".into());
        let made = plan(&settings, None).expect("a plan");
        assert_eq!(made.daemons.iter().map(|d| d.role).collect::<Vec<_>>(), ["auth", "smtp"]);
        assert!(matches!(made.daemons[0].sockets[0].bind, Bind::Unix { owner: Some(0), group: None, .. }));
    }
}
