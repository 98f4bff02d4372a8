//! `postern config check|show|reference`.
//!
//! Trust: the administrator types the command and wrote the file.
//! Never: print what secret files hold: `show` prints their paths.

use boot::{ExitCode, exit};
use conf::Settings;

use crate::cli::{ConfigCommand, PlaceArgs};
use crate::output;
use crate::place::Place;

/// Checks or prints the configuration.
pub(crate) fn config(place: &PlaceArgs, command: &ConfigCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check => check(&Place::find_for_admin(place)?, json),
        ConfigCommand::Show { defaults: true } => show(&Settings::defaults(), json),
        ConfigCommand::Show { defaults: false } => show(&Place::find_for_admin(place)?.settings()?, json),
        ConfigCommand::Reference { sample } => {
            let text = if *sample { conf::sample() } else { conf::reference() };
            if json {
                output::json(&serde_json::json!({ "text": text }))?;
            } else {
                output::raw(text);
            }
            Ok(exit::OK)
        }
    }
}

fn check(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let settings = place.settings()?;
    conf::check_files(&settings, place.origin())?;
    let mut warnings = Vec::new();
    for pair in settings.tls_material()?.certificates {
        let report = tls_config::check(&pair.chain, pair.key.as_bytes(), std::time::SystemTime::now());
        match report {
            Ok(report) => warnings.extend(report.warnings.iter().map(ToString::to_string)),
            Err(error) => {
                return Err(boot::exit::Coded::new(
                    exit::CONFIG,
                    format!("a certificate cannot be used: {error}"),
                )
                .into());
            }
        }
    }
    let origin = place.origin();
    if json {
        output::json(
            &serde_json::json!({ "ok": true, "file": origin, "problems": [], "warnings": warnings }),
        )?;
    } else {
        for warning in warnings {
            output::line(format!("warning: {warning}"));
        }
        output::line(format!("{} is right", origin.display()));
    }
    Ok(exit::OK)
}

fn show(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        output::json(settings)?;
    } else {
        output::raw(settings.to_toml());
    }
    Ok(exit::OK)
}
