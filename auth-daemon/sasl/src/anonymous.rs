//! ANONYMOUS, RFC 4505: the response is trace text, at most 255 characters.
//!
//! Trust: the text is a stranger's, for the log only.
//! Never: let it name a user.

use crate::{Failure, Step, Success};

pub(crate) fn respond(data: &[u8]) -> Step {
    match std::str::from_utf8(data) {
        // The caller maps the empty name to its configured anonymous user; the trace is only for logs.
        Ok(trace) if trace.chars().count() <= 255 => {
            Step::Success(Success { user: trace.to_owned(), authzid: None, final_data: None })
        }
        _ => Step::Failure(Failure::Malformed),
    }
}
