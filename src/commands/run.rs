//! `postern run`: the whole stack in the foreground.
//!
//! Purpose:   settings, state folder, plan, supervision; for the embedded default (and `--self-test`) the proof.
//! Trust:     whoever starts the stack. As root the state folder may be another account's, and is then entered with
//!            that account's rights.
//! Never:     write into the state folder before its lock is held.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use boot::exit::{self, Coded};
use boot::{ExitCode, Handle, Hooks};
use conf::{EmbeddedOptions, Ports, Settings, embedded_default};

use crate::accounts::{self, Account};
use crate::certificate::Made;
use crate::cli::{PlaceArgs, RunArgs};
use crate::place::Place;
use crate::proof::{Proof, Step};
use crate::roles::{self, Accounts};
use crate::state::{self, FirstUser, Prepared};
use crate::{hints, output, passwords, stack};

/// How long a self-test waits for the daemons, and for the proof (which has its own limits per step).
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Runs until told to stop.
pub(crate) fn run(place: &PlaceArgs, args: &RunArgs, json: bool) -> anyhow::Result<ExitCode> {
    match Place::find(place, args.asks_for_embedded(), args.run_as.as_deref())? {
        Place::File(file) => run_file(&file, args, json),
        Place::Embedded(folder) => run_embedded(&folder, args, json),
    }
}

fn run_file(file: &Path, args: &RunArgs, json: bool) -> anyhow::Result<ExitCode> {
    let file = file.to_owned();
    let overrides = args.clone();
    let read = move || -> anyhow::Result<Settings> {
        let mut settings = conf::load_file(&file)?;
        conf::check_files(&settings, &file)?;
        apply(&overrides, &mut settings);
        Ok(settings)
    };
    let settings = read()?;
    let (who, notes) = Accounts::of(&settings)?;
    notes.iter().for_each(output::note);
    let account = who.owner().cloned();
    state::claim(&settings.state_dir, account.as_ref())?;
    let report = Report { json, self_test: args.self_test, hints: None };
    // Taken with the rights of the folder's owner: a link or device he puts there leads root nowhere.
    let lock = accounts::acting_as(account.as_ref(), || {
        boot::StateLock::acquire(&stack::pid_file(&settings.state_dir))
    })??;
    state::lay_out(&settings, &who)?;
    let first = who.clone();
    // What a reload changes about the workers' account counts at once.
    let of = move |settings: &Settings| -> anyhow::Result<Accounts> {
        let (who, _) = Accounts::of(settings)?;
        if !who.keeps_files_of(&first) {
            let text = "the accounts of the daemons have changed, and with them whose the files are: stop and start instead";
            return Err(Coded::new(exit::CONFIG, text).into());
        }
        // A daemon that was not there before may need its folder.
        state::lay_out(settings, &who)?;
        Ok(who)
    };
    if !args.self_test {
        let hooks = Hooks { lock: Some(lock), ..Hooks::default() };
        return Ok(supervise(read, of, None, hooks, report));
    }
    // The proof user's files are written before the daemons start, under the lock of the folder.
    let proof = Proof::arrange(&settings, &who)?;
    let hooks = Hooks { lock: Some(lock), ..Hooks::default() };
    Ok(supervise(read, of, Some(Proving { proof, settings }), hooks, report))
}

/// Root's daemons have an account each where these exist, unless one is named or the folder is somebody's already. `None`
/// stands for that, an account for one account.
fn embedded_account(folder: &Path, args: &RunArgs) -> anyhow::Result<(Option<Account>, bool)> {
    let account = accounts::run_as(args.run_as.as_deref())?;
    if args.run_as.is_some() || !accounts::is_root() || accounts::person_behind_sudo().is_some() {
        return Ok((account, false));
    }
    if !Accounts::exist()? {
        output::note(format!(
            "the daemons share the account {}; for an account each, so that none can harm another, run `{}` (or: {})",
            account.as_ref().map_or("root", |account| &account.name),
            roles::MAKE_ACCOUNTS,
            roles::MAKE_BY_HAND
        ));
        return Ok((account, false));
    }
    let theirs =
        std::fs::symlink_metadata(folder).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) != 0);
    if theirs { Ok((account, false)) } else { Ok((None, true)) }
}

fn run_embedded(folder: &Path, args: &RunArgs, json: bool) -> anyhow::Result<ExitCode> {
    let (account, each) = embedded_account(folder, args)?;
    let hostname = args.hostname.clone().unwrap_or_default();
    if !hostname.is_empty() && !conf::is_domain(&hostname) {
        let text = format!("--hostname {hostname} is not a host name; write one such as mail.example.org");
        return Err(Coded::new(exit::USAGE, text).into());
    }
    let port_base = args.port_base.unwrap_or(1000);
    let options = EmbeddedOptions {
        state_dir: folder.to_owned(),
        hostname,
        port_base,
        listen: listen(args),
        run_as: account.as_ref().map(|account| account.name.clone()),
        allow_users: allowed(account.as_ref()),
    };
    let mut settings = embedded_default(&options);
    apply(args, &mut settings);
    let password = match &args.first_password_file {
        Some(file) => Some(passwords::from_file(file)?),
        None => None,
    };
    let first = FirstUser { name: args.first_user.clone(), password };
    let who = if each { Accounts::of(&settings)?.0 } else { Accounts::one(account.as_ref()) };
    let Prepared { lock, user, generated, certificates } =
        state::prepare(&mut settings, first, &who, SystemTime::now())?;

    let ca = folder.join("tls/ca.pem");
    if !json {
        output::line(format!(
            "Postern {} as {} with its state in {}",
            env!("CARGO_PKG_VERSION"),
            settings.hostname,
            folder.display()
        ));
        match certificates {
            Made::Kept => {}
            Made::Server => output::line("made a new server certificate"),
            Made::All => {
                output::line(format!("made a certificate and the CA that signs it: {}", ca.display()));
            }
        }
        if let Some(account) = &account {
            output::line(format!("the daemons run as {}", account.name));
        } else if each {
            output::line("each daemon runs under an account of its own");
        }
        match &generated {
            Some(password) => {
                let password = String::from_utf8_lossy(password.expose());
                output::line(format!("first user: {user}  password: {password}  (shown only now)"));
            }
            None => output::line(format!("user: {user}")),
        }
    } else {
        let password = generated.as_ref().map(|password| String::from_utf8_lossy(password.expose()));
        output::json_line(&serde_json::json!({
            "event": "starting", "hostname": settings.hostname, "state_dir": folder, "ca": ca, "user": user,
            "generated_password": password,
        }));
    }
    drop(generated);

    let host = if options.listen.iter().any(IpAddr::is_loopback) {
        "localhost".to_owned()
    } else {
        settings.hostname.clone()
    };
    let hints =
        hints::lines(&hints::Facts { user: &user, ca: &ca, ports: Ports::new(port_base), host: &host });
    let proof = Proof::arrange(&settings, &who)?;
    let report = Report { json, self_test: args.self_test, hints: Some(hints) };
    let hooks = Hooks { lock: Some(lock), ..Hooks::default() };
    let proving = Proving { proof, settings: settings.clone() };
    Ok(supervise(move || Ok(settings.clone()), move |_| Ok(who.clone()), Some(proving), hooks, report))
}

/// What stands on the command line beats the file.
fn apply(args: &RunArgs, settings: &mut Settings) {
    if let Some(name) = &args.run_as {
        settings.run_as = Some(name.clone());
    }
    if let Some(format) = args.log_format {
        settings.log.format = format.into();
    }
    if let Some(level) = &args.log_level {
        settings.log.level.clone_from(level);
    }
}

/// Where the embedded default listens: as told, else on both loopback addresses, as far as the machine has them.
fn listen(args: &RunArgs) -> Vec<IpAddr> {
    if !args.listen.is_empty() {
        let mut listen = args.listen.clone();
        listen.sort();
        listen.dedup();
        return listen;
    }
    let mut listen = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if boot::ip_available(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        listen.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    } else {
        output::note("this machine has no IPv6, so only 127.0.0.1 is listened on");
    }
    listen
}

/// Who may ask the login and userdb sockets: whoever started the stack, and whom it runs as.
fn allowed(account: Option<&Account>) -> Vec<String> {
    let mut allowed = vec![Account::current().uid.to_string()];
    allowed.extend(account.map(|account| account.uid.to_string()));
    allowed.extend(std::env::var("SUDO_UID").ok().filter(|uid| uid.parse::<u32>().is_ok()));
    allowed.sort();
    allowed.dedup();
    allowed
}

/// What the proof needs.
struct Proving {
    proof: Proof,
    settings: Settings,
}

/// How a start is told.
struct Report {
    json: bool,
    self_test: bool,
    hints: Option<String>,
}

/// Hands over to the supervisor; proves the stack once it is ready.
fn supervise(
    settings: impl Fn() -> anyhow::Result<Settings>,
    who: impl Fn(&Settings) -> anyhow::Result<Accounts>,
    proving: Option<Proving>,
    mut hooks: Hooks,
    report: Report,
) -> ExitCode {
    let proving = proving.map(Arc::new);
    // While this is set the daemons know the proof user; a reload after the proof makes them forget it.
    let proof_is_on = Arc::new(AtomicBool::new(proving.is_some()));
    let (still_on, self_test) = (Arc::clone(&proof_is_on), report.self_test);
    if let Some(proving) = &proving {
        let (proving, proof_is_on) = (Arc::clone(proving), Arc::clone(&proof_is_on));
        hooks.on_ready = Some(Box::new(move |handle| after_ready(&handle, &proving, &proof_is_on, &report)));
    }
    let planned = proving.clone();
    let watched = Arc::clone(&proof_is_on);
    let planner = move || {
        let mut settings = settings()?;
        let who = who(&settings)?;
        if proof_is_on.load(Ordering::SeqCst)
            && let Some(proving) = &planned
        {
            proving.proof.admit(&mut settings);
        }
        stack::plan(&settings, &who)
    };
    if self_test {
        watch(watched);
    }
    let code = boot::supervise(planner, stack::DAEMONS, hooks);
    if let Some(proving) = proving {
        proving.proof.remove();
    }
    // Stopped before the proof was done: that is not what `--self-test` calls a success.
    if self_test && still_on.load(Ordering::SeqCst) && code.is_ok() { exit::FAILURE } else { code }
}

/// Ends a self-test whose daemons do not get ready.
fn watch(proof_is_on: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        std::thread::sleep(READY_WITHIN);
        if proof_is_on.load(Ordering::SeqCst) {
            output::note(format!(
                "not every daemon was ready within {} s; the log says why",
                READY_WITHIN.as_secs()
            ));
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGTERM);
        }
    });
}

fn after_ready(handle: &Handle, proving: &Proving, proof_is_on: &AtomicBool, report: &Report) {
    let json = report.json;
    let ok = proving.proof.run(&proving.settings, &mut |step| tell(&step, json));
    proof_is_on.store(false, Ordering::SeqCst);
    proving.proof.remove();
    if json {
        output::json_line(&serde_json::json!({ "event": "proved", "ok": ok }));
    }
    if report.self_test {
        handle.stop(if ok { exit::OK } else { exit::FAILURE });
        return;
    }
    handle.reload();
    if json {
        return;
    }
    if !ok {
        output::line("The proof failed, but the stack stays up; the log says more. Ctrl-C stops it.");
    }
    if let Some(hints) = &report.hints {
        output::raw(hints);
    }
    if ok {
        output::line("Running. Ctrl-C stops it.");
    }
}

fn tell(step: &Step, json: bool) {
    if json {
        output::json_line(&serde_json::json!({ "event": "step", "step": step }));
        return;
    }
    let mark = if step.ok { "ok    " } else { "FAILED" };
    output::line(format!("{mark} {} ({} ms)", step.step, step.milliseconds));
    if let Some(error) = &step.error {
        output::line(format!("       {error}"));
    }
}
