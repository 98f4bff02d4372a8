//! AUTH: one exchange with the daemon, and what the client is told about its end.
//!
//! Outcomes:  wrong, unknown and locked look alike: 535 5.7.8, one text. Only behind a right password does the client
//!            learn that it expired or that the account is disabled. An outage is 454, never 535.
//! Binding:   the daemon asks for channel-binding data when a mechanism wants it; it never comes from the client.
//! Trust:     the daemon's word; the client's bytes are passed on as they are.
//! Never:     say who exists.

use auth_client::{AuthClient, AuthRequest, Exchange, FailCode, Failure, Flags, Mechanism, Step};
use smtp::{Outcome, Reply, Status};
use tls_config::ChannelBinding;

const OUTAGE: Reply = Reply::new(454, Status(4, 7, 0), "Temporary authentication failure");

/// Mechanisms announced while the daemon cannot be reached: it will answer 454, which clients try again after;
/// no AUTH line at all makes them give up.
pub(crate) const USUAL_MECHANISMS: [&str; 2] = ["PLAIN", "LOGIN"];

/// Where an exchange stands.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The client must answer.
    Going(Waiting, Outcome),
    /// It is over, and this user is logged in once the client has taken note of the success data, if any.
    LoggedIn(String, Outcome),
    /// It is over without a login.
    Failed(Outcome, Reason),
}

/// An exchange that waits for the client. Dropping it cancels it.
#[derive(Debug)]
pub(crate) struct Waiting {
    exchange: Exchange,
    /// Goes along with the client's next response.
    binding: Option<Vec<u8>>,
}

/// Why a login failed, for the log.
#[derive(Debug)]
pub(crate) enum Reason {
    Refused(Failure),
    /// `nologin`, for this user.
    NoLogin(String),
    Outage(String),
}

/// Begins an exchange.
pub(crate) async fn begin(auth: &AuthClient, request: AuthRequest, bindings: &ChannelBinding) -> Progress {
    judge(auth.authenticate(request).await, bindings).await
}

/// Hands the client's response on.
pub(crate) async fn respond(waiting: Waiting, response: &[u8], bindings: &ChannelBinding) -> Progress {
    let answer = match &waiting.binding {
        Some(binding) => waiting.exchange.respond_bound(response, binding).await,
        None => waiting.exchange.respond(response).await,
    };
    judge(answer, bindings).await
}

async fn judge(answer: Result<Step, auth_client::Error>, bindings: &ChannelBinding) -> Progress {
    let mut answer = answer;
    loop {
        match answer {
            Ok(Step::Challenge(exchange, data)) => {
                let binding = match exchange.channel_binding() {
                    None => None,
                    Some(kind) => match binding(bindings, kind) {
                        Some(binding) => Some(binding),
                        None => return refused(FailCode::Other, "no such channel binding"),
                    },
                };
                if exchange.is_out_of_band() {
                    // The question is for us alone; the client is not asked.
                    answer = exchange.respond_bound(b"", &binding.unwrap_or_default()).await;
                    continue;
                }
                return Progress::Going(Waiting { exchange, binding }, Outcome::Challenge(data));
            }
            // The right password, but the user may not log in, or is served elsewhere.
            Ok(Step::Ok(login)) if login.field("nologin").or(login.field("proxy")).is_some() => {
                let reason = login.field("reason").map(str::to_owned);
                let reply = reply(Some(FailCode::UserDisabled), reason.as_deref());
                return Progress::Failed(Outcome::Reply(reply), Reason::NoLogin(login.user.clone()));
            }
            Ok(Step::Ok(login)) => {
                let final_data = login.final_data.clone();
                return Progress::LoggedIn(login.user, Outcome::Authenticated { final_data });
            }
            Ok(Step::Failed(failure)) => {
                let reply = reply(failure.code, failure.reason.as_deref());
                return Progress::Failed(Outcome::Reply(reply), Reason::Refused(failure));
            }
            Err(error) if error.is_temporary() => {
                return Progress::Failed(Outcome::Reply(OUTAGE), Reason::Outage(error.to_string()));
            }
            // What the client sent does not fit into any request: no user could have it as a password.
            Err(error) => return refused(FailCode::Other, &error.to_string()),
        }
    }
}

fn refused(code: FailCode, why: &str) -> Progress {
    Progress::Failed(Outcome::Reply(reply(Some(code), None)), Reason::Outage(why.to_owned()))
}

fn binding(bindings: &ChannelBinding, kind: &str) -> Option<Vec<u8>> {
    match kind {
        "tls-exporter" => bindings.exporter.map(|data| data.to_vec()),
        "tls-server-end-point" => bindings.server_end_point.clone(),
        _ => None,
    }
}

/// The reply to a FAIL. The daemon's reason is appended, unless it only says the same again.
fn reply(code: Option<FailCode>, reason: Option<&str>) -> Reply {
    let (number, status, text) = match code {
        Some(FailCode::TempFail) => return OUTAGE,
        Some(FailCode::PassExpired) => (535, Status(5, 7, 8), "Password expired"),
        // RFC 5248 §3: X.7.13
        Some(FailCode::UserDisabled) => (535, Status(5, 7, 13), "Account disabled"),
        Some(FailCode::InvalidBase64) => return Reply::new(501, Status(5, 5, 2), "Invalid base64"),
        _ => (535, Status(5, 7, 8), "Authentication failed"),
    };
    match reason.map(str::trim).filter(|reason| !reason.is_empty() && !says_the_same(reason, text)) {
        Some(reason) => Reply::with_text(number, status, format!("{text}: {reason}")),
        None => Reply::new(number, status, text),
    }
}

fn says_the_same(reason: &str, text: &str) -> bool {
    reason.trim_end_matches('.').eq_ignore_ascii_case(text)
}

/// The names to announce, of those the daemon lists: what must not be shown is left out, and what needs a channel
/// binding where there is none.
pub(crate) fn announced(listed: &[Mechanism], bindings: &ChannelBinding) -> Vec<String> {
    let can_bind = bindings.exporter.is_some() || bindings.server_end_point.is_some();
    let fits = |mechanism: &&Mechanism| {
        !mechanism.flags.contains(Flags::PRIVATE) && (can_bind || !mechanism.name.as_str().ends_with("-PLUS"))
    };
    listed.iter().filter(fits).map(|mechanism| mechanism.name.as_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_outcomes() {
        for (code, reason, wire) in [
            (None, None, "535 5.7.8 Authentication failed\r\n"),
            (None, Some("Authentication failed."), "535 5.7.8 Authentication failed\r\n"),
            (None, Some("Come by the office"), "535 5.7.8 Authentication failed: Come by the office\r\n"),
            (Some(FailCode::AuthzFail), None, "535 5.7.8 Authentication failed\r\n"),
            (Some(FailCode::PassExpired), None, "535 5.7.8 Password expired\r\n"),
            (Some(FailCode::UserDisabled), Some("unpaid"), "535 5.7.13 Account disabled: unpaid\r\n"),
            (Some(FailCode::TempFail), Some("sql down"), "454 4.7.0 Temporary authentication failure\r\n"),
        ] {
            assert_eq!(String::from_utf8(reply(code, reason).to_bytes()).unwrap(), wire);
        }
    }

    #[test]
    fn only_mechanisms_that_can_succeed_are_announced() {
        let known = ["PLAIN", "SCRAM-SHA-256-PLUS", "LOGIN"].map(|name| Mechanism::known(name).unwrap());
        assert_eq!(announced(&known, &ChannelBinding::default()), ["PLAIN", "LOGIN"]);
        let bindings = ChannelBinding { exporter: Some([0; 32]), server_end_point: None };
        assert_eq!(announced(&known, &bindings), ["PLAIN", "SCRAM-SHA-256-PLUS", "LOGIN"]);
    }
}
