//! The daemons, their ports, and the name of this server.
//!
//! Trust:  the supervisor, on its admin socket; what a port answers is read up to a limit.
//! Never:  change anything: a check only looks.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use boot::admin::State;

use super::check::{Advice, Cause, Check, Part, Trial};
use super::machine::{Machine, Stack};
use super::system::words;

/// Longest a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who holds the ports of `postern.socket`.
const SERVICE_MANAGER: &str = "systemd (process 1)";
/// Longest the resolver may take.
const RESOLVER: Duration = Duration::from_secs(3);

/// The supervisor and each of its daemons.
pub(super) fn processes(machine: &Machine) -> Vec<Check> {
    let control = crate::stack::control_socket(&machine.settings.state_dir);
    let trial = Trial::new(Part::Daemon, "daemons", format!("ask the supervisor at {}", control.display()));
    let status = match &machine.stack {
        Stack::Running(status) => status,
        Stack::Gone { left } => {
            let stale = machine
                .settings
                .auth
                .listener
                .iter()
                .flat_map(|listener| &listener.path)
                .filter(|path| path.exists());
            let stale: Vec<String> = stale.map(|path| path.display().to_string()).collect();
            let mut text = match left {
                Some(pid) => format!("Postern does not run: process {pid} has ended without tidying up"),
                None => "Postern does not run: nobody holds the state folder".to_owned(),
            };
            if !stale.is_empty() {
                text +=
                    &format!("; stale sockets are left, files that nobody listens on: {}", stale.join(", "));
            }
            let advice = Advice::run("start it", machine.start_command());
            return vec![trial.problem(Cause::NotRunning, text, advice)];
        }
        Stack::Silent { pid, why } => {
            let holder = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
            let text = format!("{holder} holds the state folder but does not answer: {why}");
            let words = "if it has just been started, wait a moment; else end it and start again";
            let advice = match pid {
                Some(pid) => Advice::run(words, format!("kill {pid}")),
                None => Advice::say(words),
            };
            return vec![trial.problem(Cause::NotAnswering, text, advice)];
        }
        Stack::Unknown(why) => return vec![trial.cannot_tell(why.clone())],
    };
    let mut checks = Vec::new();
    if let Some(error) = &status.last_reload_error {
        let advice = Advice::run("correct it, then reload", machine.postern("reload"));
        let text = format!("the last reload failed, so older settings are in use: {error}");
        checks.push(Trial::new(Part::Daemon, "daemons", "ask for the last reload").problem(
            Cause::ReloadFailed,
            text,
            advice,
        ));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for process in &status.processes {
        let name = format!("daemon {}", process.role);
        let trial = Trial::new(Part::Daemon, name, "ask for its state");
        let up = process.since.map_or_else(String::new, |since| {
            format!(", up for {}", words(Duration::from_secs(now.saturating_sub(since))))
        });
        let who = crate::accounts::name_of(process.uid);
        checks.push(match process.state {
            State::Ready if !process.answers => {
                let words = "it hangs or is stopped; end it, and the supervisor starts another";
                let advice = match process.pid {
                    Some(pid) => Advice::run(words, format!("kill -9 {pid}")),
                    None => Advice::say(words),
                };
                trial.problem(Cause::NotAnswering, format!("it runs as {who} but does not answer"), advice)
            }
            State::Ready if process.restarts > 0 => {
                let advice = see_log(machine);
                trial.note(
                    format!("serving as {who}{up}; started again {} times", process.restarts),
                    Some(advice),
                )
            }
            State::Ready => trial.ok(format!("serving as {who}{up}")),
            State::Starting | State::Stopping => trial.note("starting or stopping at this moment", None),
            State::Backoff => {
                let advice = see_log(machine);
                let text = format!(
                    "it keeps dying: started {} times, waiting to be started again",
                    process.restarts
                );
                trial.problem(Cause::DaemonDies, text, advice)
            }
        });
    }
    checks
}

/// Where the daemons' last words are.
fn see_log(machine: &Machine) -> Advice {
    let words = "the log says what it died of";
    if let Some(unit) = machine.unit() {
        Advice::run(words, format!("journalctl -u {unit} -n 50"))
    } else {
        Advice::say(format!("{words}: the standard error of `postern run`"))
    }
}

/// Every address that mail programs connect to.
pub(super) fn ports(machine: &Machine) -> Vec<Check> {
    let settings = &machine.settings;
    let smtp = settings
        .smtp
        .listener
        .iter()
        .map(|one| (&one.name, &one.address, one.kind != conf::SmtpKind::Submissions));
    let imap = settings
        .imap
        .listener
        .iter()
        .map(|one| (&one.name, &one.address, one.tls == conf::ListenerTls::Starttls));
    let pop3 = settings
        .pop3
        .listener
        .iter()
        .map(|one| (&one.name, &one.address, one.tls == conf::ListenerTls::Starttls));
    let metrics: Option<SocketAddr> = settings.metrics.listen.as_deref().and_then(|text| text.parse().ok());
    let metrics = metrics.map(|address| port(machine, "metrics", address, false));
    let all = smtp.chain(imap).chain(pop3);
    all.flat_map(|(name, addresses, greets)| addresses.iter().map(move |address| (name, *address, greets)))
        .map(|(name, address, greets)| port(machine, name, address, greets))
        .chain(metrics)
        .collect()
}

fn port(machine: &Machine, listener: &str, address: SocketAddr, greets: bool) -> Check {
    let name = format!("port {address}");
    let holder = boot::holder_of(address.port());
    if !machine.is_running() {
        let trial = Trial::new(Part::Ports, name, format!("see whether it is free for listener {listener}"));
        return match holder {
            Some(holder) if holder == SERVICE_MANAGER => {
                trial.note(format!("held by {holder}: a socket unit keeps it for the service"), None)
            }
            Some(holder) if !matches!(machine.stack, Stack::Silent { .. } | Stack::Unknown(_)) => {
                taken(trial, &holder)
            }
            Some(holder) => trial.note(format!("held by {holder}"), None),
            None => trial.ok("free"),
        };
    }
    let trial = Trial::new(Part::Ports, name, format!("connect to listener {listener}"));
    // Only root sees who it is; the name alone says nothing.
    let pid = holder
        .as_deref()
        .and_then(|text| text.rsplit_once("(process ")?.1.strip_suffix(')')?.parse::<u32>().ok());
    // Sockets of a unit are the service manager's as well.
    let ours = |pid: u32| boot::listens_on(pid, address.port());
    if let (Some(_), Some(holder)) = (pid, &holder)
        && !machine.processes().iter().filter_map(|process| process.pid).any(ours)
    {
        return taken(trial, holder);
    }
    let reached = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (IpAddr::from(std::net::Ipv6Addr::LOCALHOST), v6.port()).into()
        }
        other => other,
    };
    let mut stream = match TcpStream::connect_timeout(&reached, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => {
            let advice = Advice::run(
                "is the listener newer than the running daemons? load the settings, and look for a packet filter (nft list ruleset)",
                machine.postern("reload"),
            );
            return trial.problem(Cause::PortClosed, format!("cannot connect: {error}"), advice);
        }
    };
    if !greets {
        return trial.ok("connected");
    }
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut bytes = [0; 200];
    match stream.read(&mut bytes) {
        Ok(count) if count > 0 => {
            let said = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()).into_owned();
            trial.ok(format!("greets with {}", said.lines().next().unwrap_or_default()))
        }
        Ok(_) => trial.problem(
            Cause::NoAnswer,
            "closed without a greeting: too many connections from this address?",
            Advice::run("see what the daemons do", machine.postern("status")),
        ),
        Err(error) => trial.problem(
            Cause::NoAnswer,
            format!("no greeting: {error}"),
            Advice::run("see what the daemons do", machine.postern("status")),
        ),
    }
}

fn taken(trial: Trial, holder: &str) -> Check {
    let advice = Advice::say("stop that program for good, or give the listener another port");
    trial.problem(Cause::PortTaken, format!("held by {holder}"), advice)
}

/// A question to the resolver, asked while everything else is looked at.
pub(super) struct LookUp {
    name: String,
    began: Instant,
    /// `None`: the name is one that no resolver knows.
    answer: Option<mpsc::Receiver<std::io::Result<Vec<IpAddr>>>>,
}

impl LookUp {
    /// Asks.
    pub(super) fn of(name: &str) -> Self {
        // RFC 6761: never in the DNS; asking would only be waited for.
        let special = ["localhost", "test", "invalid", "example"];
        let last = name.rsplit('.').next().unwrap_or_default();
        let answer = (!special.contains(&last)).then(|| {
            let (sender, receiver) = mpsc::channel();
            let asked = name.to_owned();
            std::thread::spawn(move || {
                let found = (asked.as_str(), 0).to_socket_addrs();
                let _ = sender.send(found.map(|all| all.map(|address| address.ip()).collect()));
            });
            receiver
        });
        Self { name: name.to_owned(), began: Instant::now(), answer }
    }
}

/// The host name, where there is a resolver. Never a problem: mail programs may know it by other means.
pub(super) fn host_name(look_up: &LookUp) -> Check {
    let trial = Trial::new(Part::Names, format!("host name {}", look_up.name), "look it up");
    let Some(answer) = &look_up.answer else {
        return trial.ok("a name for this machine or for tests alone");
    };
    match answer.recv_timeout(RESOLVER.saturating_sub(look_up.began.elapsed())) {
        Ok(Ok(mut addresses)) if !addresses.is_empty() => {
            addresses.sort();
            addresses.dedup();
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let own = addresses.iter().any(|address| boot::ip_available(*address));
            let list = list.join(", ");
            if own {
                trial.ok(format!("{list}: this machine"))
            } else {
                trial.note(
                    format!("{list}: not an address of this machine itself; behind NAT that is well"),
                    None,
                )
            }
        }
        Ok(_) => {
            let advice = Advice::say("mail programs of others need it: let the domain's name server know it");
            trial.note("no address, or no resolver here", Some(advice))
        }
        Err(_) => trial.cannot_tell(format!(
            "cannot tell: the resolver did not answer within {} seconds",
            RESOLVER.as_secs()
        )),
    }
}
