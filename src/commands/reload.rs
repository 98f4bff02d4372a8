//! `postern reload`: the running stack reads configuration, certificates and user files again.
//!
//! Trust: whoever types the command; the supervisor decides whether he is heard.
//! Never: say "reloaded" before every daemon has answered.

use boot::admin::{Request, request};
use boot::{ExitCode, exit};

use crate::cli::PlaceArgs;
use crate::output;
use crate::place::Place;

/// Asks for a reload and waits until it is done.
pub(crate) fn reload(place: &PlaceArgs, json: bool) -> anyhow::Result<ExitCode> {
    let socket = Place::find_for_admin(place)?.control_socket()?;
    request(&socket, &Request::Reload)?;
    if json {
        output::json(&serde_json::json!({ "reloaded": true }))?;
    } else {
        output::line("reloaded");
    }
    Ok(exit::OK)
}
