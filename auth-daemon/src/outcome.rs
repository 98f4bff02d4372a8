//! What a login ended with, and what each door says about it.
//!
//! Rules: unknown user, wrong password and locked password are one text. Only after a right password may a client
//!        learn that the password expired or the account is disabled. An outage is never a refusal.
//! Trust: names and services in the log are what strangers sent; [`printable`] is the way in.
//! Never: a password or a checked field in an answer or in the log.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use auth_wire::{FailCode, Field, MechName};

use crate::engine::Engine;
use crate::figures;
use crate::request::Request;

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Logged in.
    Ok,
    /// Refused for good.
    Refused(Refusal),
    /// Nobody can say right now.
    Outage,
}

impl Decision {
    /// Its name in the log and in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Decision::Ok => "ok",
            Decision::Refused(Refusal::Credentials) => "refused",
            Decision::Refused(Refusal::Authorization) => "not-authorized",
            Decision::Refused(Refusal::Disabled) => "disabled",
            Decision::Refused(Refusal::PasswordExpired) => "expired",
            Decision::Outage => "outage",
        }
    }
}

/// How a login was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Unknown user, wrong password, locked password, malformed response: one answer for all.
    Credentials,
    /// A master user's password was right, the user he wants to be is none.
    Authorization,
    /// Right password, account disabled, expired or not allowed to log in.
    Disabled,
    /// Right password, and it has expired.
    PasswordExpired,
}

impl Refusal {
    /// The code programs read.
    pub(crate) fn code(self) -> Option<FailCode> {
        match self {
            Refusal::Credentials => None,
            Refusal::Authorization => Some(FailCode::AuthzFail),
            Refusal::Disabled => Some(FailCode::UserDisabled),
            Refusal::PasswordExpired => Some(FailCode::PassExpired),
        }
    }

    /// The text people read.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Refusal::Credentials => "Invalid user name or password",
            Refusal::Authorization => "Not allowed to log in as this user",
            Refusal::Disabled => "Account is disabled",
            Refusal::PasswordExpired => "Password expired",
        }
    }
}

/// The text of a temporary failure.
pub(crate) const OUTAGE_TEXT: &str = "Temporary authentication failure";

/// The end of a login.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// The decision.
    pub(crate) decision: Decision,
    /// The canonical name, if one was understood.
    pub(crate) user: Option<String>,
    /// A text of the administrator's for the user, instead of the usual one.
    pub(crate) reason: Option<String>,
    /// Why, for the log.
    pub(crate) why: String,
    /// Data the client must still receive on success.
    pub(crate) final_data: Option<Vec<u8>>,
    /// When a refusal may be answered at the earliest.
    pub(crate) not_before: Option<Instant>,
}

impl Outcome {
    /// A success.
    pub(crate) fn ok(request: &Request) -> Outcome {
        Outcome {
            decision: Decision::Ok,
            user: Some(request.user.clone()),
            reason: None,
            why: String::new(),
            final_data: None,
            not_before: None,
        }
    }

    /// A refusal or an outage.
    pub(crate) fn failed(request: &Request, decision: Decision, why: impl Into<String>) -> Outcome {
        Outcome {
            decision,
            user: (!request.user.is_empty()).then(|| request.user.clone()),
            reason: None,
            why: why.into(),
            final_data: None,
            not_before: None,
        }
    }

    /// The text for the remote user.
    pub(crate) fn text(&self) -> &str {
        match (&self.reason, self.decision) {
            (Some(reason), _) => reason,
            (None, Decision::Refused(refusal)) => refusal.text(),
            (None, Decision::Outage) => OUTAGE_TEXT,
            (None, Decision::Ok) => "Success.",
        }
    }
}

/// Fields that never leave the daemon.
const HIDDEN: &[&str] = &[
    "user",
    "username",
    "domain",
    "login_user",
    "allow_nets",
    "allow_real_nets",
    "check_client_fp",
    "check_client_cert_fp",
    "check_client_pubkey_fp",
    "delay_until",
    "expires",
    "fail",
    "noauthenticate",
    "nopassword",
    "password",
    "password_noscheme",
    "passdb_import",
];

/// Fields of OK and PASS replies. `login`: the socket is for login processes, which may see proxy passwords.
pub(crate) fn client_fields(request: &Request, anonymous: bool, login: bool) -> Vec<Field> {
    let mut out = Vec::new();
    for (name, value) in request.fields.iter() {
        let hidden = name.is_empty()
            || HIDDEN.contains(&name)
            || name.starts_with("userdb_")
            || (!login && matches!(name, "pass" | "master"));
        if !hidden {
            out.push(Field { name: name.to_owned().into(), value: value.map(str::to_owned) });
        }
    }
    if anonymous {
        out.push(Field::flag("anonymous"));
    }
    match &request.master {
        Some(master) => {
            out.push(Field::new("original_user", request.original.clone()));
            out.push(Field::new("auth_user", master.clone()));
        }
        None if request.original != request.user && !anonymous && !request.original.is_empty() => {
            out.push(Field::new("original_user", request.original.clone()));
        }
        None => {}
    }
    out
}

/// Writes the one line each login gets in the log, and counts it.
///
/// Fields and their order are a promise (`docs/logging.md`): what a filter may act on, result and address, comes
/// before everything that a client chooses.
pub(crate) fn audit(engine: &Engine, request: &Request, outcome: &Outcome, listener: &str, took: Duration) {
    let mechanism = request.mechanism_name();
    engine.figures.login(request, mechanism, outcome, took);
    write_line(request, mechanism, outcome, listener, took);
}

/// The same for a request that could not be begun. `mechanism`: what the client asked for, ours or not.
pub(crate) fn audit_refused(
    engine: &Engine,
    request: &Request,
    mechanism: Option<MechName>,
    why: &str,
    listener: &str,
) {
    let outcome = Outcome::failed(request, Decision::Refused(Refusal::Credentials), why);
    let name = mechanism.as_ref().map_or("-", MechName::as_str);
    let counted = sasl::Name::parse(name).map_or(figures::OTHER, sasl::Name::as_str);
    engine.figures.login(request, counted, &outcome, Duration::ZERO);
    write_line(request, name, &outcome, listener, Duration::ZERO);
}

fn write_line(request: &Request, mechanism: &str, outcome: &Outcome, listener: &str, took: Duration) {
    // `auth::ok=warn` in the log level: successes are counted, not written.
    if outcome.decision == Decision::Ok && !tracing::enabled!(target: "auth::ok", tracing::Level::INFO) {
        return;
    }
    let params = &request.params;
    let ip =
        |ip: Option<std::net::IpAddr>| ip.map_or_else(|| "-".to_owned(), |ip| ip.to_canonical().to_string());
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let until = |due: Instant| due.saturating_duration_since(Instant::now()).as_millis();
    let delay_ms = outcome.not_before.map_or(0, |due| u64::try_from(until(due)).unwrap_or(u64::MAX));
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "auth",
                result = outcome.decision.as_str(),
                rip = ip(params.rip),
                mech = mechanism,
                service = &*printable(&request.service),
                session = &*printable(params.session.as_deref().unwrap_or_default()),
                user = &*printable(outcome.user.as_deref().unwrap_or_default()),
                typed = &*printable(&request.original),
                master = &*printable(request.master.as_deref().unwrap_or_default()),
                driver = &*printable(&request.driver),
                reason = &*printable(&outcome.why),
                listener,
                secured = params.secured.is_some(),
                proxied = params.is_proxied(),
                peer_uid = request.peer.uid,
                delay_ms,
                micros,
                "login"
            )
        };
    }
    if outcome.decision == Decision::Outage { line!(warn) } else { line!(info) }
}

/// Text from outside for the log: no control characters, not too long, `-` for nothing.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.is_empty() {
        return Cow::Borrowed("-");
    }
    let clean = |c: char| if c.is_control() { '?' } else { c };
    if text.len() <= 256 && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().take(256).map(clean).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PeerCredentials;

    #[test]
    fn secrets_and_checks_stay_inside() {
        let peer = PeerCredentials { uid: 0, gid: 0, pid: None };
        let mut request = Request::new(auth_wire::Params::default(), "imap".into(), peer, Instant::now());
        request.user = "bob@x".into();
        request.original = "Bob".into();
        for (name, value) in [
            ("password", Some("x")),
            ("allow_nets", Some("10.0.0.0/8")),
            ("userdb_home", Some("/x")),
            ("pass", Some("clear")),
            ("proxy", None),
            ("host", Some("10.0.0.1")),
        ] {
            request.fields.set(name, value);
        }
        let names = |login| -> Vec<String> {
            client_fields(&request, false, login).iter().map(|field| field.name.to_string()).collect()
        };
        assert_eq!(names(false), ["proxy", "host", "original_user"]);
        assert_eq!(names(true), ["pass", "proxy", "host", "original_user"]);
    }

    #[test]
    fn log_text_is_one_line() {
        assert_eq!(printable("a\nb\u{1b}c"), "a?b?c");
        assert_eq!(printable(""), "-");
        assert_eq!(printable(&"x".repeat(1000)).len(), 256);
    }
}
