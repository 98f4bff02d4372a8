//! `postern setup …`: other programs' files and ours, so that they meet.
//!
//! Purpose:   without `--apply` a command says what it would do, as a diff; with it, it does that; `--undo` takes it back.
//! Trust:     the administrator; other programs' files are read with care and written only as their diff shows.
//! Never:     change anything that was not shown.

mod change;
mod exim;
mod import;
mod ours;
mod postfix;
mod saslauthd;

use boot::{ExitCode, exit};
use clap::{Args, Subcommand};

use crate::accounts;
use crate::cli::PlaceArgs;
use crate::output;
use change::Changes;
use ours::Ours;

/// `postern setup …`
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Make Postfix ask Postern for passwords (`smtpd_sasl_type = dovecot`).
    Postfix(postfix::PostfixArgs),
    /// Make Exim ask Postern for passwords (its `dovecot` authenticator).
    Exim(exim::EximArgs),
    /// Take the place of saslauthd with the settings of `/etc/default/saslauthd`.
    Saslauthd(saslauthd::SaslauthdArgs),
    /// Print Dovecot's configuration as ours, with what cannot be carried over.
    DovecotImport(import::DovecotArgs),
    /// Print the users of a Cyrus sasldb as a passwd-file.
    SasldbImport(import::SasldbArgs),
}

/// What is still to be done where Postern does not run; `enable --now` leaves a service alone that does.
const START: &str = "start Postern: postern run (or: systemctl enable --now postern; if it ran before: systemctl restart postern)";

/// What all commands that change something understand.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct CommonArgs {
    /// Do it; without, it is only shown.
    #[arg(long, conflicts_with = "undo")]
    pub(crate) apply: bool,
    /// Take back what `--apply` did.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Whose passwords, if postern.toml is new: `shadow` (this machine's users), `pam`, or the path of a passwd-file
    /// [default: shadow; not as root: a passwd-file].
    #[arg(long, value_name = "WHERE")]
    pub(crate) users: Option<String>,
}

/// Does what the command says.
pub(crate) fn setup(place: &PlaceArgs, command: &SetupCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        SetupCommand::Postfix(args) => {
            if args.common.undo {
                let done = undo("postfix", place, json)?;
                if done && !args.no_reload && postfix::reload(args)? {
                    told(json, "Postfix has read its files again");
                }
                return Ok(exit::OK);
            }
            let ours = Ours::find(place)?;
            let (changes, next) = postfix::plan(args, &ours)?;
            carry_out(&args.common, &ours, &changes, next, json, |reloaded| {
                if args.no_reload || !(changes.touches("main.cf") || changes.touches("master.cf")) {
                    return Ok(());
                }
                if postfix::reload(args)? {
                    reloaded.push("Postfix".to_owned());
                }
                Ok(())
            })
        }
        SetupCommand::Exim(args) => {
            if args.common.undo {
                if undo("exim", place, json)? {
                    for program in exim::reload(args)? {
                        told(json, &format!("{program} has read its files again"));
                    }
                }
                return Ok(exit::OK);
            }
            let ours = Ours::find(place)?;
            let (changes, next) = exim::plan(args, &ours)?;
            carry_out(&args.common, &ours, &changes, next, json, |reloaded| {
                match exim::reload(args) {
                    Ok(programs) => reloaded.extend(programs),
                    Err(error) => {
                        // Exim does not start with such a file: back to the one that it had.
                        change::undo("exim", &ours.path)?;
                        return Err(error.context(
                            "Exim does not take the new configuration, so everything is as before",
                        ));
                    }
                }
                Ok(())
            })
        }
        SetupCommand::Saslauthd(args) if args.import.is_some() => saslauthd::import(args, json),
        SetupCommand::Saslauthd(args) => {
            if args.common.undo {
                undo("saslauthd", place, json)?;
                return Ok(exit::OK);
            }
            let ours = Ours::find(place)?;
            let (changes, next) = saslauthd::plan(args, &ours)?;
            carry_out(&args.common, &ours, &changes, next, json, |_| Ok(()))
        }
        SetupCommand::DovecotImport(args) => import::dovecot(args, json),
        SetupCommand::SasldbImport(args) => import::sasldb(args, json),
    }
}

/// Shows or applies; `afterwards` makes the other program read its files.
fn carry_out(
    common: &CommonArgs,
    ours: &Ours,
    changes: &Changes,
    next: Vec<String>,
    json: bool,
    afterwards: impl FnOnce(&mut Vec<String>) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let idle = changes.is_empty();
    let mut reloaded = Vec::new();
    let mut next = next;
    if common.apply && !idle {
        changes.apply()?;
        // Postern first: the others must find their socket.
        if ours.settings.is_some() && changes.touches_file(&ours.path) && reload_ours(ours) {
            reloaded.push("Postern".to_owned());
        }
        afterwards(&mut reloaded)?;
    }
    if ours.path != std::path::Path::new(ours::SYSTEM_FILE) {
        let run = format!("postern run --config {}", ours.path.display());
        next.iter_mut().for_each(|line| *line = line.replace("postern run", &run));
    }
    if runs(ours) {
        next.retain(|line| !line.starts_with("start Postern"));
    }
    if json {
        let mut value = changes.json();
        if let Some(map) = value.as_object_mut() {
            map.insert("nothing_to_do".to_owned(), idle.into());
            map.insert("applied".to_owned(), (common.apply && !idle).into());
            map.insert("reloaded".to_owned(), reloaded.into());
            map.insert("next".to_owned(), next.into());
        }
        output::json(&value)?;
        return Ok(exit::OK);
    }
    for remark in &changes.remarks {
        output::note(remark);
    }
    if idle {
        output::line("nothing to do: everything is set up");
        return Ok(exit::OK);
    }
    output::raw(changes.text());
    if !common.apply {
        output::line("\nNothing has been changed; --apply does it.");
        return Ok(exit::OK);
    }
    output::line("\nDone; --undo takes it back.");
    for program in reloaded {
        output::line(format!("{program} has read its files again."));
    }
    if !next.is_empty() {
        output::line("Next:");
        for line in next {
            output::line(format!("  {line}"));
        }
    }
    Ok(exit::OK)
}

/// Whether the stack of this file is running.
fn runs(ours: &Ours) -> bool {
    let socket = ours.settings.as_ref().map(|settings| crate::stack::control_socket(&settings.state_dir));
    socket.is_some_and(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok())
}

fn reload_ours(ours: &Ours) -> bool {
    let Some(settings) = &ours.settings else { return false };
    let socket = crate::stack::control_socket(&settings.state_dir);
    runs(ours) && boot::admin::request(&socket, &boot::admin::Request::Reload).is_ok()
}

fn undo(name: &'static str, place: &PlaceArgs, json: bool) -> anyhow::Result<bool> {
    // The file need not be right for this.
    let path = Ours::place(place)?;
    let done = change::undo(name, &path)?;
    let any = done.is_some();
    let done = done.unwrap_or_default();
    if json {
        output::json(&serde_json::json!({ "nothing_to_do": !any, "files": done }))?;
        return Ok(any);
    }
    if !any {
        output::line("nothing to do: there is nothing to take back");
    }
    for file in done {
        let why = if file.why.is_empty() { String::new() } else { format!(": {}", file.why) };
        output::line(format!("{} {}{why}", file.what, file.path.display()));
    }
    Ok(any)
}

fn told(json: bool, text: &str) {
    if !json {
        output::line(text);
    }
}

/// Name of an account's own group.
fn primary_group(account: &str) -> anyhow::Result<String> {
    let account = accounts::named(account)?;
    let group = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(account.gid))?;
    Ok(group.map_or_else(|| account.gid.to_string(), |group| group.name))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    /// Every command line of the manual is one that this program takes.
    #[test]
    fn lines_of_the_manual() {
        let page = include_str!("../../../docs/setup.md");
        let mut seen = 0;
        for line in page.lines().filter_map(|line| Some(&line[line.find("postern setup ")?..])) {
            let line = line.split(" #").next().unwrap_or_default().split('>').next().unwrap_or_default();
            let words: Vec<&str> = line.split('`').next().unwrap_or_default().split_whitespace().collect();
            let parsed = crate::cli::Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err().map(|error| error.to_string()));
            seen += 1;
        }
        assert!(seen > 12, "{seen}");
        for wrong in [
            "postern setup",
            "postern setup postfix --apply --undo",
            "postern setup saslauthd --import --apply",
        ] {
            assert!(crate::cli::Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }
}
