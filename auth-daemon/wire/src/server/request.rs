//! AUTH and CONT lines.
//!
//! Trust: every byte is the client's; what cannot be read exactly is refused, not guessed.
//! Never: take a parameter that stands behind `resp=`.

use std::fmt;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::field::split;
use crate::{FailCode, MechName, Mechanism, Params, Secret, Ticket};

/// A request to authenticate somebody.
pub struct AuthRequest {
    /// Its handle for [`super::Session::reply`].
    pub ticket: Ticket,
    /// The mechanism, one of those announced.
    pub mechanism: Mechanism,
    /// `service=`, `protocol=` or the listener's default.
    pub service: String,
    /// Everything else the client told. Boxed: it is large, and handed on a few times.
    pub params: Box<Params>,
    /// The initial response: `None` if there was none, `Some` of nothing if it was empty.
    pub initial: Option<Secret>,
    /// When the line was read: penalties count from here.
    pub arrived: Instant,
}

impl fmt::Debug for AuthRequest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AuthRequest")
            .field("ticket", &self.ticket)
            .field("mechanism", &self.mechanism.name)
            .field("service", &self.service)
            .field("params", &self.params)
            .field("initial", &self.initial)
            .finish_non_exhaustive()
    }
}

/// An AUTH that cannot be begun. It is answered already; the driver may want to tell of it.
#[derive(Debug)]
pub struct RefusedRequest {
    /// The mechanism asked for; `None` if that is no name of one.
    pub mechanism: Option<MechName>,
    /// `service=`, `protocol=` or the listener's default; empty if there is none.
    pub service: String,
    /// What else the client told, as far as the line was read.
    pub params: Box<Params>,
    /// What the client was told.
    pub reason: &'static str,
}

pub(super) struct Parsed {
    pub(super) mechanism: Option<MechName>,
    pub(super) params: Box<Params>,
    pub(super) initial: Result<Option<Secret>, Refusal>,
}

/// What makes an AUTH line unusable.
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) code: Option<FailCode>,
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self { reason, code: None }
    }
}

/// Reads what follows `AUTH<TAB>id`.
pub(super) fn parse<'a>(mut fields: impl Iterator<Item = &'a [u8]>, client_minor: u32) -> Parsed {
    let mechanism = fields.next().and_then(|name| MechName::parse(name).ok());
    let mut params = Box::<Params>::default();
    let initial = parameters(fields, &mut params, client_minor);
    Parsed { mechanism, params, initial }
}

/// Reads the parameters, and gives the initial response.
fn parameters<'a>(
    mut fields: impl Iterator<Item = &'a [u8]>,
    params: &mut Params,
    client_minor: u32,
) -> Result<Option<Secret>, Refusal> {
    let mut initial = None;
    while let Some(field) = fields.next() {
        let (name, value) = split(field);
        if name != b"resp" {
            if !params.take(field) {
                return Err("Invalid service name".into());
            }
            continue;
        }
        // Whatever followed could have been smuggled in through an unescaped value.
        if fields.next().is_some() {
            return Err("Invalid request: resp must be the last parameter".into());
        }
        initial = match value.unwrap_or_default() {
            // Exim always sends `resp=`; only since 1.2 it means "present and empty".
            b"" if client_minor < 2 => None,
            wire => match decode(wire) {
                Some(data) => Some(data),
                None => {
                    let reason = "Invalid base64 data in initial response";
                    return Err(Refusal { reason, code: Some(FailCode::InvalidBase64) });
                }
            },
        };
    }
    Ok(initial)
}

pub(super) struct Answer {
    pub(super) data: Secret,
    pub(super) channel_binding: Option<Secret>,
    pub(super) out_of_band: bool,
}

/// Reads what follows `CONT<TAB>id`; `None` for anything that is not one base64 field (and a channel binding).
pub(super) fn continuation<'a>(
    mut fields: impl Iterator<Item = &'a [u8]>,
    client_minor: u32,
) -> Option<Answer> {
    let wire = fields.next()?;
    let mut channel_binding = None;
    for field in fields {
        if client_minor < 3 {
            return None;
        }
        if let (b"channel_binding", Some(value)) = split(field) {
            channel_binding = Some(decode(value)?);
        }
    }
    let out_of_band = client_minor >= 3 && wire == b"#";
    let data = if out_of_band { Secret::default() } else { decode(wire)? };
    Some(Answer { data, channel_binding, out_of_band })
}

/// Base64 with padding; white space around it is tolerated, a single `=` is "empty" (Prosody, `AUTH PLAIN =`).
fn decode(wire: &[u8]) -> Option<Secret> {
    let wire = wire.trim_ascii();
    if wire.is_empty() || wire == b"=" {
        return Some(Secret::default());
    }
    STANDARD.decode(wire).ok().map(Secret::new)
}
