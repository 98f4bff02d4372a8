//! Which configuration and which state folder a command is about.
//!
//! Order: `--config`, `--state-dir`, `$POSTERN_CONFIG`, `$POSTERN_STATE_DIR`, the system's file, `./postern-state`.
//! Trust: arguments and environment of whoever types the command.
//! Never: take another folder's stack for the one that was named.

use std::path::{Path, PathBuf};

use boot::exit::{self, Coded};
use conf::{EmbeddedOptions, Settings, embedded_default};

use crate::accounts::{self, Account};
use crate::cli::PlaceArgs;

/// The system's file.
const SYSTEM_FILE: &str = "/etc/postern/postern.toml";
/// State of the embedded default, in the current folder.
const STATE_DIR: &str = "postern-state";
/// State of the embedded default when root's daemons cannot reach the current folder.
const ROOT_STATE_DIR: &str = "/var/lib/postern-embedded";
/// The settings an embedded default runs with, in its state folder; admin commands read them.
pub(crate) const EMBEDDED_COPY: &str = "postern.toml";

/// Where the settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file.
    File(PathBuf),
    /// No file: everything below this folder.
    Embedded(PathBuf),
}

/// What the environment says.
#[derive(Debug, Default)]
struct Environment {
    config: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    system_file: Option<PathBuf>,
}

impl Place {
    /// The place a command is about. `embedded` names an option that only the embedded default has.
    /// `run_as` is the account wanted for the daemons.
    pub(crate) fn find(
        args: &PlaceArgs,
        embedded: Option<&str>,
        run_as: Option<&str>,
    ) -> anyhow::Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let environment = Environment {
            config: variable("POSTERN_CONFIG"),
            state_dir: variable("POSTERN_STATE_DIR"),
            system_file: Some(PathBuf::from(SYSTEM_FILE)).filter(|file| file.exists()),
        };
        match choose(args, embedded, environment)? {
            Some(place) => place.absolute(),
            None => Ok(Self::Embedded(default_state_dir(accounts::run_as(run_as)?.as_ref())?)),
        }
    }

    /// The place an admin command is about: that of a stack started by the same account without further options.
    pub(crate) fn find_for_admin(args: &PlaceArgs) -> anyhow::Result<Self> {
        Self::find(args, None, None)
    }

    fn absolute(self) -> anyhow::Result<Self> {
        Ok(match self {
            Self::File(file) => Self::File(std::path::absolute(file)?),
            Self::Embedded(folder) => Self::Embedded(std::path::absolute(folder)?),
        })
    }

    /// Name for messages.
    pub(crate) fn origin(&self) -> &Path {
        match self {
            Self::File(file) => file,
            Self::Embedded(folder) => folder,
        }
    }

    /// The settings, for admin commands: of an embedded default those it was last started with.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        match self {
            Self::File(file) => Ok(conf::load_file(file)?),
            Self::Embedded(folder) => {
                let copy = folder.join(EMBEDDED_COPY);
                // A copy that another version wrote may not load; what does not depend on options still holds.
                let known = if copy.exists() { conf::load_file(&copy).ok() } else { None };
                Ok(known.unwrap_or_else(|| {
                    embedded_default(&EmbeddedOptions {
                        state_dir: folder.clone(),
                        ..EmbeddedOptions::default()
                    })
                }))
            }
        }
    }

    /// The running stack's admin socket.
    pub(crate) fn control_socket(&self) -> anyhow::Result<PathBuf> {
        match self {
            // The folder alone decides, even if the copy of the settings cannot be read.
            Self::Embedded(folder) => Ok(crate::stack::control_socket(folder)),
            Self::File(_) => Ok(crate::stack::control_socket(&self.settings()?.state_dir)),
        }
    }
}

fn choose(
    args: &PlaceArgs,
    embedded: Option<&str>,
    environment: Environment,
) -> anyhow::Result<Option<Place>> {
    if let Some(file) = &args.config {
        if let Some(flag) = embedded {
            let text = format!("{flag} is for the embedded default; with --config put it into the file");
            return Err(Coded::new(exit::USAGE, text).into());
        }
        return Ok(Some(Place::File(file.clone())));
    }
    if let Some(folder) = &args.state_dir {
        return Ok(Some(Place::Embedded(folder.clone())));
    }
    if embedded.is_none()
        && let Some(file) = environment.config
    {
        return Ok(Some(Place::File(file)));
    }
    if let Some(folder) = environment.state_dir {
        return Ok(Some(Place::Embedded(folder)));
    }
    if embedded.is_none()
        && let Some(file) = environment.system_file
    {
        return Ok(Some(Place::File(file)));
    }
    Ok(None)
}

/// `./postern-state`, or for root, where the account of the daemons cannot reach that, a folder it can reach.
fn default_state_dir(run_as: Option<&Account>) -> anyhow::Result<PathBuf> {
    let here = std::path::absolute(STATE_DIR)?;
    let Some(account) = run_as else { return Ok(here) };
    let parent = here.parent().unwrap_or(Path::new("/"));
    if accounts::reaches(account, parent)? { Ok(here) } else { Ok(PathBuf::from(ROOT_STATE_DIR)) }
}

#[cfg(test)]
mod tests {
    use super::{Environment, Place, choose};
    use crate::cli::PlaceArgs;

    #[test]
    fn order_of_places() {
        let file = |name: &str| Some(Place::File(name.into()));
        let folder = |name: &str| Some(Place::Embedded(name.into()));
        // (--config, --state-dir, embedded option, POSTERN_CONFIG, POSTERN_STATE_DIR, system file) → place
        let cases = [
            ((Some("a"), None, None, Some("b"), Some("c"), Some("d")), file("a")),
            ((None, Some("s"), None, Some("b"), Some("c"), Some("d")), folder("s")),
            ((None, None, None, Some("b"), Some("c"), Some("d")), file("b")),
            ((None, None, None, None, Some("c"), Some("d")), folder("c")),
            ((None, None, None, None, None, Some("d")), file("d")),
            ((None, None, Some("--port-base"), Some("b"), None, Some("d")), None),
            ((None, None, Some("--port-base"), Some("b"), Some("c"), None), folder("c")),
            ((None, None, None, None, None, None), None),
        ];
        for ((config, state_dir, embedded, env_config, env_state, system), expected) in cases {
            let args = PlaceArgs { config: config.map(Into::into), state_dir: state_dir.map(Into::into) };
            let environment = Environment {
                config: env_config.map(Into::into),
                state_dir: env_state.map(Into::into),
                system_file: system.map(Into::into),
            };
            assert_eq!(choose(&args, embedded, environment).expect("a place"), expected);
        }
    }

    #[test]
    fn a_file_and_options_of_the_embedded_default_do_not_mix() {
        let args = PlaceArgs { config: Some("a".into()), state_dir: None };
        let error = choose(&args, Some("--listen"), Environment::default()).expect_err("refused");
        assert!(error.to_string().contains("--listen is for the embedded default"), "{error}");
    }
}
