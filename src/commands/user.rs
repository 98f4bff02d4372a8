//! `postern user add|passwd|remove|list`: the daemon notices the changed file by itself.
//!
//! Trust: the administrator; passwords come from the terminal or standard input.
//! Never: take a password from an argument.

use boot::{ExitCode, exit};
use conf::Settings;
use creds::Secret;

use crate::cli::{PassdbArgs, PasswordArgs, PlaceArgs, UserCommand};
use crate::place::Place;
use crate::roles::Accounts;
use crate::users::UserFile;
use crate::{accounts, output, passwords, state};

/// Whether the folder is root's: that of a stack with an account for each daemon.
fn is_roots(folder: &std::path::Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Changes or lists the users.
pub(crate) fn user(place: &PlaceArgs, command: &UserCommand, json: bool) -> anyhow::Result<ExitCode> {
    let open = |which: &PassdbArgs| -> anyhow::Result<(Settings, UserFile)> {
        let settings = Place::find_for_admin(place)?.settings()?;
        let file = UserFile::of(&settings, which.passdb.as_deref())?;
        Ok((settings, file))
    };
    let embedded = matches!(Place::find_for_admin(place)?, Place::Embedded(_));
    let file = |which: &PassdbArgs| -> anyhow::Result<UserFile> {
        let (settings, file) = open(which)?;
        // Before the first start: what root makes here must be the daemons' own.
        if accounts::is_root()
            && file.path().starts_with(&settings.state_dir)
            && (settings.run_as.is_some() || !embedded || is_roots(&settings.state_dir))
            && let Ok((who, _)) = Accounts::of(&settings)
        {
            state::claim(&settings.state_dir, who.owner())?;
            return Ok(file.readable_for(who));
        }
        // A file elsewhere that this makes is for the daemon; the rights of one that is there are somebody's choice.
        if accounts::is_root()
            && !embedded
            && matches!(file.path().try_exists(), Ok(false))
            && let Ok((who, _)) = Accounts::of(&settings)
        {
            return Ok(file.made_for(who));
        }
        Ok(file)
    };
    match command {
        UserCommand::Add { name, password, which } => {
            let file = file(which)?;
            let key = file.key(name)?;
            let (stored, keys) = stored(&file, &key, password)?;
            file.add(&key, stored, keys)?;
            done(&file, &key, "added", json)
        }
        UserCommand::Passwd { name, password, which } => {
            let file = file(which)?;
            let key = file.key(name)?;
            let (stored, keys) = stored(&file, &key, password)?;
            file.set_password(&key, &stored, &keys)?;
            done(&file, &key, "changed", json)
        }
        UserCommand::Remove { name, which } => {
            let file = file(which)?;
            let key = file.key(name)?;
            file.remove(&key)?;
            done(&file, &key, "removed", json)
        }
        UserCommand::List { which } => {
            let listed = open(which)?.1.list()?;
            if json {
                output::json(&listed)?;
            } else {
                let rows: Vec<Vec<String>> = listed
                    .into_iter()
                    .map(|user| vec![user.user, user.scheme, user.home.unwrap_or_default()])
                    .collect();
                output::raw(output::table(&["USER", "SCHEME", "HOME"], &rows));
            }
            Ok(exit::OK)
        }
    }
}

/// Schemes of the keys that `--scram` keeps.
const SCRAM: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-1"];

/// What is kept of a password: the stored string, and further keys.
fn stored(file: &UserFile, key: &str, args: &PasswordArgs) -> anyhow::Result<(Secret, Vec<Secret>)> {
    // A wrong scheme is told before anybody types a password.
    passwords::scheme(&args.scheme)?;
    let password = if args.password_stdin { passwords::from_stdin()? } else { passwords::from_terminal()? };
    if password.expose().is_empty() {
        return Err(exit::Coded::new(exit::USAGE, "the password is empty; give one").into());
    }
    let user = file.canonical(key);
    let schemes = if args.scram { &SCRAM[..] } else { &[] };
    let keys = schemes.iter().map(|scheme| passwords::stored(scheme, &user, &password));
    Ok((passwords::stored(&args.scheme, &user, &password)?, keys.collect::<anyhow::Result<_>>()?))
}

fn done(file: &UserFile, key: &str, what: &str, json: bool) -> anyhow::Result<ExitCode> {
    let user = file.canonical(key);
    if json {
        output::json(&serde_json::json!({ "user": user, "done": what, "file": file.path() }))?;
    } else {
        output::line(format!("{what} {user} in {}", file.path().display()));
    }
    Ok(exit::OK)
}
