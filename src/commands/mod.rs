//! The commands, one file each, and the way from arguments to an exit code.
//!
//! Trust: whoever types the command; arguments are parsed by clap before anything is done.
//! Never: run a daemon of the stack in this process: that is `main.rs`'s to decide.

mod auth;
mod completions;
mod config;
mod doctor;
mod forward;
mod hash;
mod man;
mod reload;
mod run;
mod security;
mod setup;
mod status;
mod stop;
mod user;
mod userdb;

use std::ffi::OsString;

use boot::ExitCode;
use clap::{CommandFactory as _, Parser as _};

use crate::cli::{AuthDaemonCommand, Cli, Command};
use crate::output;

pub(crate) use doctor::{DoctorArgs, PROBE, probe};
pub(crate) use forward::ForwardArgs;
#[cfg(test)]
pub(crate) use security::word;
pub(crate) use setup::SetupCommand;

/// Parses the arguments and does what they say.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(with_default_command(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, the rest are mistakes; clap prints both and knows which.
            let _ = error.print();
            return if error.use_stderr() { boot::exit::USAGE } else { boot::exit::OK };
        }
    };
    let json = cli.json;
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => output::failure(&error, json),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let (place, json) = (&cli.place, cli.json);
    match cli.command {
        Command::Run(args) => run::run(place, &args, json),
        Command::Status(args) => status::status(place, &args, json),
        Command::Reload => reload::reload(place, json),
        Command::Stop => stop::stop(place, json),
        Command::Doctor(args) => doctor::doctor(place, &args, json),
        Command::Config(command) => config::config(place, &command, json),
        Command::User(command) => user::user(place, &command, json),
        Command::Auth(command) => auth::auth(place, &command, json),
        Command::Setup(command) => setup::setup(place, &command, json),
        Command::Hash(args) => hash::hash(&args, json),
        Command::AuthDaemon(AuthDaemonCommand::Forward(args)) => forward::forward(&args),
        Command::Saslauthd { flags } => Ok(crate::saslauthd::main(flags)),
        Command::Completions { shell } => completions::completions(shell),
        Command::Man { folder } => man::man(folder.as_deref()),
    }
}

/// Without a command the stack is run: `postern --port-base 2000` is `postern run --port-base 2000`.
fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let asks_clap = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        matches!(arg.as_ref(), "-h" | "--help" | "-V" | "--version" | "help")
            || Cli::command().get_subcommands().any(|command| command.get_name() == arg)
    };
    let mistyped = args.get(1).is_some_and(|arg| !arg.to_string_lossy().starts_with('-'));
    // Called by the name of one daemon, that daemon is meant. Help then shows what can be typed under either name.
    let program = args.first().map(std::path::Path::new).and_then(std::path::Path::file_name);
    if program.is_some_and(|name| name == "auth-daemon") {
        args.splice(..1, ["postern".into(), "auth-daemon".into()]);
        return args;
    }
    if !mistyped && !args.iter().skip(1).any(asks_clap) {
        args.insert(1.min(args.len()), "run".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::with_default_command;
    use crate::cli::{Cli, Command};
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_run() {
        for (given, expected) in [
            (vec!["postern"], vec!["postern", "run"]),
            (vec!["postern", "--port-base", "2000"], vec!["postern", "run", "--port-base", "2000"]),
            (vec!["postern", "--json", "status"], vec!["postern", "--json", "status"]),
            (vec!["postern", "--help"], vec!["postern", "--help"]),
            (vec!["postern", "statsu"], vec!["postern", "statsu"]),
            (vec!["/usr/sbin/auth-daemon", "forward"], vec!["postern", "auth-daemon", "forward"]),
        ] {
            let made = with_default_command(given.iter().map(Into::into).collect());
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn a_daemons_own_name_has_a_version_and_help() {
        let say = |option: &str| {
            let args = with_default_command(["/usr/sbin/auth-daemon", option].map(Into::into).to_vec());
            let answer = Cli::try_parse_from(args).expect_err("an answer instead of a command");
            assert!(!answer.use_stderr(), "{answer}");
            answer.to_string()
        };
        assert_eq!(say("--version"), format!("auth-daemon {}\n", env!("CARGO_PKG_VERSION")));
        let help = say("--help");
        assert!(help.contains("Usage: postern auth-daemon") && help.contains("forward"), "{help}");
    }

    #[test]
    fn arguments_as_documented() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let line = "postern run --state-dir d --hostname h.example --port-base 0 --listen 127.0.0.1,::1 \
                    --first-user bob --first-password-file f --run-as nobody --self-test --log-level debug";
        let Command::Run(args) = parse(line).expect("right").command else { panic!("not run") };
        assert_eq!((args.port_base, args.listen.len(), args.self_test), (Some(0), 2, true));
        for right in [
            "postern user add bob --password-stdin --state-dir d",
            "postern --config c user list --json",
            "postern auth test bob --password-stdin --state-dir d",
            "postern auth test bob --mech LOGIN --service imap --socket /run/saslauthd/mux --mux",
            "postern auth explain bob --service smtp --ip 192.0.2.1",
            "postern auth explain bob --rip 192.0.2.1",
            "postern auth test bob --mech SCRAM-SHA-256-PLUS --ip 192.0.2.1",
            "postern auth cache flush bob eve",
            "postern auth penalty clear",
            "postern hash --scheme SSHA256",
            "postern hash --scheme DIGEST-MD5 --user bob@example.org",
            "postern hash verify --user bob --stored-file f",
            "postern hash verify-table f.tsv",
            "postern config show --defaults",
            "postern config reference --sample",
            "postern doctor --user bob --password-stdin --postfix /etc/postfix --json",
            "postern completions bash",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in [
            "postern run --port-base 65000",
            "postern run --listen localhost",
            "postern run --config c --state-dir d",
            "postern user add",
            "postern hash",
            "postern hash --scheme X verify --stored-file f",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
