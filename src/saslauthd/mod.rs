//! `saslauthd`: this program in the place of Cyrus SASL's, with its command line.
//!
//! Purpose:   translates the flags into settings, detaches, and runs the authentication daemon with one listener.
//! Files:     below `-m`: `mux` (0777; the folder's mode decides who may connect) and `saslauthd.pid` (0600, locked).
//! Source:    reference note "auth-protocols", part D.
//! Trust:     the command line is root's; what clients send is for the daemon behind it.
//! Never:     detach before the socket answers, or leave files behind after TERM.

mod flags;
mod syslog;

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use boot::logging::{LogFormat, LogOptions};
use boot::{ExitCode, Hooks, Plan, StateLock, exit};
use conf::{AuthCache, AuthListener, AuthListenerKind, OnOutage, Passdb, PassdbDriver, Settings, Workers};

use crate::roles::Accounts;
use crate::{output, stack};
use flags::{Flags, MECHANISMS, Mechanism, Wanted};
use syslog::Forwarding;

/// The program's name, and the command of ours that stands for it.
pub(crate) const NAME: &str = "saslauthd";
/// saslauthd's code for a second instance.
const ANOTHER_INSTANCE: ExitCode = ExitCode(2);
/// Tells the detached process what it is; its standard output is the pipe that its starter waits at.
const DETACHED: &str = "POSTERN_SASLAUTHD_DETACHED";
/// What the detached process says once it serves.
const READY: &[u8] = b"ready";
/// saslauthd waits for a back-end as long as it takes; so long.
const DEADLINE: Duration = Duration::from_secs(30);

const USAGE: &str = "\
usage: saslauthd [options]

  -a <mechanism>  how passwords are checked; mandatory
  -O <option>     option of the mechanism (rimap: host or host/port; sasldb: file)
  -m <path>       run folder, absolute; the socket is `mux` in it
  -n <processes>  processes for look-ups (default 5; 0: a new one for each)
  -c              remember successes
  -s <kilobytes>  memory for that
  -t <seconds>    for how long (default 28800)
  -r              join name and realm to name@realm
  -l              accepted, without effect
  -f              stay in the foreground
  -d              stay in the foreground and tell everything on standard error
  -V              log successes as well
  -v              print version and mechanisms
  -h              print this
";

/// The arguments for saslauthd, if that is what this process was started as.
pub(crate) fn arguments(mut all: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let program = all.next()?;
    let named = Path::new(&program).file_name() == Some(OsStr::new(NAME));
    if named || all.next().as_deref() == Some(OsStr::new(NAME)) { Some(all.collect()) } else { None }
}

/// Does what the arguments say.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match flags::parse(arguments) {
        Ok(Wanted::Version) => {
            output::error_text(version());
            exit::OK
        }
        Ok(Wanted::Help) => {
            output::error_text(format!("{USAGE}\n{}", version()));
            exit::OK
        }
        Err(mistake) => {
            output::error_text(format!("saslauthd: {mistake}\n"));
            exit::FAILURE
        }
        Ok(Wanted::Run(flags)) => run(&flags).unwrap_or_else(|error| failure(&error)),
    }
}

fn version() -> String {
    format!("saslauthd (Postern {})\nauthentication mechanisms: {MECHANISMS}\n", env!("CARGO_PKG_VERSION"))
}

/// saslauthd knows three ends: all is well, another one runs, and everything else.
fn failure(error: &anyhow::Error) -> ExitCode {
    output::error_text(format!("saslauthd: {}\n", output::sentence(error)));
    code(exit::code_of(error, exit::FAILURE))
}

fn code(code: ExitCode) -> ExitCode {
    match code {
        exit::OK => exit::OK,
        // Somebody holds the pid file, or answers at the socket.
        exit::TEMPFAIL | exit::UNAVAILABLE => ANOTHER_INSTANCE,
        _ => exit::FAILURE,
    }
}

fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    if flags.foreground {
        serve(flags, None)
    } else if std::env::var_os(DETACHED).is_some() {
        nix::unistd::setsid().context("cannot leave the terminal's session")?;
        let log = Forwarding::start(flags.mechanism.name(), flags.verbose)?;
        let code = serve(flags, Some(&log)).unwrap_or_else(|error| failure(&error));
        log.finish();
        Ok(code)
    } else {
        detach()
    }
}

/// Starts this program again in the background and waits until it serves.
fn detach() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| NAME.into());
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the daemon")?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(READY.len() as u64).read_to_end(&mut said).context("cannot hear from the daemon")?;
    }
    if said == READY {
        return Ok(exit::OK);
    }
    // It has told why.
    let status = child.wait().context("cannot wait for the daemon")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).map_or(exit::FAILURE, ExitCode);
    Ok(if code.is_ok() { exit::FAILURE } else { code })
}

/// Runs the daemon until it is told to stop. `log`: this is the detached process.
fn serve(flags: &Flags, log: Option<&Forwarding>) -> anyhow::Result<ExitCode> {
    // Started through /proc/self/exe it would be called "exe", and start-stop-daemon would not know it.
    nix::sys::prctl::set_name(c"saslauthd")?;
    make_folder(&flags.run_dir)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let lock = if flags.debug { None } else { Some(take_pid_file(&flags.run_dir)?) };
    std::env::set_current_dir(&flags.run_dir)
        .with_context(|| format!("cannot enter {}", flags.run_dir.display()))?;
    let mut hooks = Hooks { lock, ..Hooks::default() };
    if let Some(log) = log {
        let quiet = log.quiet();
        hooks.on_ready = Some(Box::new(move |_| {
            quiet();
            let mut starter = std::io::stdout();
            let _ = starter.write_all(READY).and_then(|()| starter.flush());
            if let Ok(null) = File::options().write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdout(null);
            }
        }));
    }
    let detached = log.is_some();
    let planner = || plan(flags, detached);
    Ok(code(boot::supervise(planner, stack::DAEMONS, hooks)))
}

/// Made with mode 0755 if it is missing; the mode of an existing one says who may connect and stays.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .mode(0o755)
        .recursive(true)
        .create(folder)
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot make the run folder {}", folder.display()))
}

fn take_pid_file(folder: &Path) -> anyhow::Result<StateLock> {
    let path = folder.join("saslauthd.pid");
    let lock = StateLock::acquire(&path).map_err(|error| match error {
        boot::Error::Held { pid, .. } => {
            let who = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let text = format!("another instance of saslauthd is currently running{who}");
            anyhow::Error::new(exit::Coded::new(exit::TEMPFAIL, text))
        }
        other => other.into(),
    })?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(lock)
}

fn plan(flags: &Flags, detached: bool) -> anyhow::Result<Plan> {
    let settings = settings(flags);
    let mut plan = stack::plan(&settings, &Accounts::one(None))?;
    // The pid file is saslauthd's, and it has no admin socket.
    (plan.control_socket, plan.pid_file) = (PathBuf::new(), PathBuf::new());
    for daemon in &mut plan.daemons {
        // A module may start a setuid helper.
        daemon.no_new_privs = flags.mechanism != Mechanism::Pam;
    }
    let level = match (flags.debug, flags.verbose) {
        (true, _) => "debug",
        (false, true) => "info",
        // saslauthd is silent about successes; a line that is thrown away at the end costs more than the login.
        (false, false) => "info,auth::ok=warn",
    };
    let format = match (detached, flags.debug) {
        (true, _) => LogFormat::Json,
        (false, true) => LogFormat::Human,
        (false, false) => LogFormat::Auto,
    };
    plan.log = Some(LogOptions::new("supervisor", level, format));
    Ok(plan)
}

/// What saslauthd would do with these arguments, as settings of ours; or the mistake in them.
pub(crate) fn settings_for(arguments: Vec<String>) -> Result<Settings, String> {
    match flags::parse(arguments.into_iter().map(OsString::from)) {
        Ok(Wanted::Run(flags)) => Ok(settings(&flags)),
        Ok(_) => Err("they only ask for help or the version".to_owned()),
        Err(mistake) => Err(mistake.to_string()),
    }
}

/// The flags as settings of the authentication daemon.
fn settings(flags: &Flags) -> Settings {
    let driver = match &flags.mechanism {
        // What the request names.
        Mechanism::Pam => PassdbDriver::pam("%{service}"),
        Mechanism::Shadow => PassdbDriver::shadow(),
        Mechanism::Getpwent => PassdbDriver::passwd(),
        Mechanism::Sasldb { path } => PassdbDriver::Sasldb { path: path.clone(), realm: None },
        Mechanism::Rimap { host, port } => PassdbDriver::Imap { host: host.clone(), port: u32::from(*port) },
    };
    let mut settings = Settings {
        hostname: "localhost".to_owned(),
        // Nothing is kept between two starts.
        state_dir: PathBuf::new(),
        grace_time: Duration::from_secs(5),
        ..Settings::default()
    };
    let auth = &mut settings.auth;
    // Names are taken as they come, but for control characters, which never pass.
    auth.default_domain = Some(String::new());
    auth.username_chars = String::new();
    auth.username_format = "%{user}".to_owned();
    auth.listener = vec![AuthListener {
        name: NAME.to_owned(),
        path: vec![flags.run_dir.join("mux")],
        kind: AuthListenerKind::Saslauthd,
        // libpam's own name for a request without a service.
        service: Some("other".to_owned()),
        pam_services: vec!["*".to_owned()],
        mode: 0o777,
        // A sasldb has users of realms only: there the realm always counts.
        join_realm: flags.join_realm || matches!(flags.mechanism, Mechanism::Sasldb { .. }),
        reply_deadline: DEADLINE,
        on_outage: OnOutage::Close,
        ..AuthListener::default()
    }];
    auth.passdb = vec![Passdb { name: flags.mechanism.name().to_owned(), driver, ..Passdb::default() }];
    let (size, seconds) = flags.cache.unwrap_or_default();
    // saslauthd remembers successes only.
    auth.cache = AuthCache { size, ttl: Duration::from_secs(seconds), negative_ttl: Duration::ZERO };
    auth.worker = Workers {
        count: flags.workers,
        max_requests: if flags.process_per_request { 1 } else { Workers::default().max_requests },
        timeout: DEADLINE,
        ..Workers::default()
    };
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_or_by_command() {
        let asked = |line: &str| arguments(line.split(' ').map(OsString::from));
        let some = |line: &str| Some(line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(asked("saslauthd -a pam"), some("-a pam"));
        assert_eq!(asked("/usr/sbin/saslauthd"), some(""));
        assert_eq!(asked("/usr/bin/postern saslauthd -a pam"), some("-a pam"));
        assert_eq!(asked("postern run"), None);
        assert_eq!(asked("postern run saslauthd"), None);
        assert_eq!(arguments(std::iter::empty()), None);
    }

    #[test]
    fn flags_become_settings() {
        let flags = |line: &str| match flags::parse(line.split(' ').map(OsString::from)) {
            Ok(Wanted::Run(flags)) => flags,
            other => panic!("{other:?}"),
        };
        let made = settings(&flags("-a pam -r -c -t 60 -s 2 -m /run/x -n 3"));
        let listener = &made.auth.listener[0];
        assert_eq!(listener.path, [PathBuf::from("/run/x/mux")]);
        assert!(
            listener.join_realm && listener.mode == 0o777 && listener.kind == AuthListenerKind::Saslauthd
        );
        assert_eq!((made.auth.cache.size, made.auth.cache.ttl), (2048, Duration::from_secs(60)));
        assert_eq!(made.auth.worker.count, 3);
        assert_eq!(settings(&flags("-a pam")).auth.cache.size, 0);
        assert_eq!(settings(&flags("-a pam -n 0")).auth.worker.max_requests, 1);
        assert_eq!(settings(&flags("-a shadow")).auth.passdb[0].driver, PassdbDriver::shadow());
        assert_eq!(settings(&flags("-a GETPWENT")).auth.passdb[0].driver, PassdbDriver::passwd());

        let made = plan(&flags("-a pam -m /run/x"), true).expect("a plan");
        assert_eq!(made.daemons.len(), 1);
        assert!(!made.daemons[0].no_new_privs && made.pid_file.as_os_str().is_empty());
        assert!(plan(&flags("-a shadow"), false).expect("a plan").daemons[0].no_new_privs);
    }

    #[test]
    fn ends_are_saslauthds() {
        for (given, want) in
            [(exit::OK, 0), (exit::TEMPFAIL, 2), (exit::UNAVAILABLE, 2), (exit::CANTCREAT, 1)]
        {
            assert_eq!(code(given).0, want);
        }
    }
}
