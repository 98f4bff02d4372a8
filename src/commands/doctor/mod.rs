//! `postern doctor`: walks the way of a login and says what was tried, as whom, what came back, and what to do first.
//!
//! Purpose:   the hour lost to "permission denied" becomes one line with a command.
//! Shape:     each part of the walk gives [`Check`]s; the order of the parts is the order of cause and effect.
//! Trust:     as root, everything is tried as the account that does it every day, by a child that becomes it.
//! Never:     change anything; fail because something cannot be seen from here.

mod check;
mod daemon;
mod machine;
mod paths;
mod postfix;
mod probe;
mod sockets;
mod system;
mod tls;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use boot::ExitCode;
use clap::Args;
use creds::Secret;
use std::io::IsTerminal as _;

use self::check::{Advice, Cause, Check, Part, Report, Trial};
use self::machine::Machine;
use self::sockets::Attempt;
use crate::accounts::{self, Account};
use crate::cli::PlaceArgs;
use crate::passwords;
use crate::place::Place;
use crate::postfix::Postfix;

pub(crate) use probe::{COMMAND as PROBE, main as probe};

/// `postern doctor`
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DoctorArgs {
    /// Log this user in for real; the password comes from standard input, or is asked for.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Read the password from standard input; one trailing newline does not count.
    #[arg(long, requires = "user")]
    pub(crate) password_stdin: bool,
    /// Folder of Postfix's main.cf and master.cf [default: $MAIL_CONFIG, else /etc/postfix].
    #[arg(long, value_name = "DIR")]
    pub(crate) postfix: Option<PathBuf>,
}

/// Walks the whole way.
pub(crate) fn doctor(place: &PlaceArgs, args: &DoctorArgs, json: bool) -> anyhow::Result<ExitCode> {
    let place = Place::find_for_admin(place)?;
    let attempt = attempt(args)?;
    let mut report = Report::default();
    let origin = place.origin().to_owned();
    let Some(settings) = settings(&place, &mut report) else { return report.print(&origin, json) };
    let look_up = daemon::LookUp::of(&settings.hostname);
    let stack = machine::look_at_stack(&place, &settings);
    let mut machine = Machine {
        root: accounts::is_root(),
        me: Account::current(),
        postfix: None,
        now: SystemTime::now(),
        place,
        settings,
        stack,
    };
    machine.postfix = find_postfix(args.postfix.as_deref(), &mut report);
    let view = postfix::look(&machine);
    let mut services: Vec<String> = view.consumers.iter().map(|consumer| consumer.service.clone()).collect();
    if services.is_empty() {
        services.push("smtp".to_owned());
    }
    report.extend(system::clock(&machine));
    report.extend(system::disk(&machine));
    report.extend(tls::certificates(&machine));
    report.extend(system::accounts(&machine));
    report.extend(sockets::services(&machine, &view.consumers));
    report.extend(system::modules(&machine, &services));
    report.extend(daemon::processes(&machine));
    report.extend(daemon::ports(&machine));
    report.extend(sockets::sockets(&machine, &view.consumers, &attempt));
    report.extend(sockets::confinement());
    report.extend(view.checks);
    report.add(daemon::host_name(&look_up));
    report.print(&origin, json)
}

/// The login to try: the user's, or one that nobody can have.
fn attempt(args: &DoctorArgs) -> anyhow::Result<Attempt> {
    let Some(user) = &args.user else {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let user = format!("postern-doctor-{}", hex(&passwords::random_bytes::<4>()?));
        return Ok(Attempt { user, password: passwords::generated()?, made_up: true });
    };
    let password: Secret = if !args.password_stdin && std::io::stdin().is_terminal() {
        passwords::from_terminal_once()?
    } else {
        passwords::from_stdin()?
    };
    Ok(Attempt { user: user.clone(), password, made_up: false })
}

/// The settings, if they can be used: every mistake in them is a problem.
fn settings(place: &Place, report: &mut Report) -> Option<conf::Settings> {
    let name = place.origin().display().to_string();
    let trial = |tried: &str| Trial::new(Part::Configuration, name.clone(), tried);
    let settings = match place.settings() {
        Ok(settings) => settings,
        Err(error) => {
            match error.downcast_ref::<conf::Errors>() {
                Some(errors) => report.extend(errors.problems().iter().map(|problem| {
                    let place = if problem.line > 0 {
                        format!("line {}, column {}: ", problem.line, problem.column)
                    } else {
                        String::new()
                    };
                    let closed = !accounts::is_root() && problem.title.contains("Permission denied");
                    let help = if closed { "root can read it: sudo postern doctor" } else { &problem.help };
                    mistake(trial("read it"), format!("{place}{}", problem.title), help)
                })),
                None => report.add(mistake(
                    trial("read it"),
                    crate::output::sentence(&error),
                    "see that it can be read",
                )),
            }
            return None;
        }
    };
    report.add(match place {
        Place::File(_) => trial("read it").ok("no mistakes"),
        Place::Embedded(_) => trial("look for a configuration file")
            .ok("none: the embedded default, with everything in this folder; name another with --config or --state-dir"),
    });
    if let Err(errors) = conf::check_files(&settings, place.origin()) {
        for problem in errors.problems() {
            // Looked at below, as the account that reads them.
            let elsewhere = ["the certificate ", "the key ", "the passwd-file ", "the sasldb "];
            if elsewhere.iter().any(|start| problem.title.starts_with(start)) {
                continue;
            }
            let trial = trial("look at the files it names");
            report.add(if problem.title.starts_with("the environment variable") {
                trial.cannot_tell(format!("cannot tell: {}; the daemons may have it", problem.title))
            } else if !accounts::is_root() && problem.title.contains("Permission denied") {
                trial.cannot_tell(format!("cannot tell: not root: {}", problem.title))
            } else {
                trial.problem(Cause::FileUnreadable, problem.title.clone(), Advice::say(problem.help.clone()))
            });
        }
    }
    Some(settings)
}

fn mistake(trial: Trial, found: String, help: &str) -> Check {
    trial.problem(Cause::ConfigurationWrong, found, Advice::say(help))
}

/// Postfix, where there is one. Its absence is no problem.
fn find_postfix(folder: Option<&Path>, report: &mut Report) -> Option<Postfix> {
    let named = folder.map_or_else(|| "Postfix".to_owned(), |folder| format!("Postfix {}", folder.display()));
    let trial = Trial::new(Part::Postfix, named, "find main.cf and master.cf");
    match Postfix::find(folder) {
        Ok(Some(postfix)) => Some(postfix),
        Ok(None) => {
            report.add(trial.ok("there is none here"));
            None
        }
        Err(error) => {
            report.add(trial.cannot_tell(format!("cannot tell: {error:#}")));
            None
        }
    }
}
