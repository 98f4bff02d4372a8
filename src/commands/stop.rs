//! `postern stop`: ends the running stack in order.
//!
//! Trust: whoever types the command; the supervisor decides whether he is heard.
//! Never: signal a process by its number: only the admin socket is asked.

use boot::admin::{Request, request};
use boot::{ExitCode, exit};

use crate::cli::PlaceArgs;
use crate::output;
use crate::place::Place;

/// Asks the stack to stop and waits for its end.
pub(crate) fn stop(place: &PlaceArgs, json: bool) -> anyhow::Result<ExitCode> {
    let socket = Place::find_for_admin(place)?.control_socket()?;
    request(&socket, &Request::Stop)?;
    if json {
        output::json(&serde_json::json!({ "stopped": true }))?;
    } else {
        output::line("stopped");
    }
    Ok(exit::OK)
}
