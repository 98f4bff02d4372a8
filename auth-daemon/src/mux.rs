//! saslauthd's mux: one request, one answer.
//!
//! Rules:   an outage closes without an answer, which libsasl takes for "try later"; every other text than OK is a wrong
//!          password to it. Realms are joined as `saslauthd -r` does.
//! Timeout: a request must be there within a few seconds, or idle clients would hold all places.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_wire::Params;
use auth_wire::mux::{Parser, Request as MuxRequest, encode_no, encode_ok};
use nix::sys::socket::{MsgFlags, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::config::Listener;
use crate::connection::sleep_until;
use crate::engine::Engine;
use crate::exchange::check_password;
use crate::outcome::{self, Decision, Outcome, Refusal};
use crate::request::{PeerCredentials, Request};

/// Time for the whole request to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// What saslauthd's clients are told of any refusal.
const REFUSED: &str = "authentication failed";

/// Serves a connection.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    mut stream: UnixStream,
    peer: PeerCredentials,
) -> io::Result<()> {
    let Ok(wanted) = tokio::time::timeout(READ_TIMEOUT, read(&mut stream)).await else {
        tracing::debug!(listener = listener.name, "a mux client did not finish its request in time");
        return Ok(());
    };
    let answer = match wanted? {
        Wanted::Nothing => return Ok(()),
        Wanted::Refuse(text) => encode_no(&text),
        Wanted::Check(request) => match check(&engine, &listener, peer, request).await {
            Some(answer) => answer,
            // Outage: the closed connection is the answer.
            None => return Ok(()),
        },
    };
    // For the same reason straight into the socket, which has room for so little.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = send(stream.as_raw_fd(), &answer, flags).unwrap_or(0);
    stream.write_all(answer.get(sent..).unwrap_or_default()).await
}

enum Wanted {
    /// The client went away.
    Nothing,
    /// The request makes no sense.
    Refuse(String),
    /// The request.
    Check(MuxRequest),
}

async fn read(stream: &mut UnixStream) -> io::Result<Wanted> {
    let mut parser = Parser::new();
    let mut buffer = zeroize::Zeroizing::new(vec![0; 4096]);
    // The request is mostly there as soon as the connection is: to look costs less than to wait for being told.
    let mut there = nix::unistd::read(&*stream, &mut buffer[..]).ok();
    loop {
        let count = match there.take() {
            Some(count) => count,
            None => stream.read(&mut buffer[..]).await?,
        };
        if count == 0 {
            return Ok(Wanted::Nothing);
        }
        match parser.feed(buffer.get(..count).unwrap_or_default()) {
            Ok(false) => {}
            Ok(true) => break,
            Err(malformed) => return Ok(Wanted::Refuse(malformed.to_string())),
        }
    }
    // A fifth field counts only if its bytes are here already.
    if let Ok(count) = stream.try_read(&mut buffer[..]) {
        let _ = parser.feed(buffer.get(..count).unwrap_or_default());
    }
    Ok(match parser.take() {
        Ok(Some(request)) => Wanted::Check(request),
        Ok(None) => Wanted::Nothing,
        Err(malformed) => Wanted::Refuse(malformed.to_string()),
    })
}

/// The answer; `None` for an outage.
async fn check(
    engine: &Arc<Engine>,
    listener: &Listener,
    peer: PeerCredentials,
    wanted: MuxRequest,
) -> Option<Vec<u8>> {
    let began = Instant::now();
    let compiled = engine.config();
    let current = compiled.listeners.get(&listener.name).cloned();
    let listener = current.as_deref().unwrap_or(listener);
    let login = if listener.join_realm { wanted.joined_login() } else { wanted.login.clone() };
    let malformed = wanted.refusal().or_else(|| std::str::from_utf8(&login).err().map(|_| REFUSED));
    let login = String::from_utf8_lossy(&login).into_owned();
    let service = std::str::from_utf8(&wanted.service).unwrap_or_default();
    let mut params = Params::default();
    params.rip = wanted.address.as_deref().and_then(address);
    let mut request = Request::new(params, service_name(listener, service), peer, began);
    request.pam_service = Some(pam_service(listener, service));
    request.mechanism = Some(sasl::Name::Plain);
    let deadline = began + listener.deadline;
    request.until = Some(deadline);
    if let Some(text) = malformed {
        request.original = login;
        let outcome = Outcome::failed(&request, Decision::Refused(Refusal::Credentials), "malformed request");
        outcome::audit(engine, &request, &outcome, &listener.name, began.elapsed());
        return Some(encode_no(text));
    }
    let checked = tokio::time::timeout_at(
        deadline.into(),
        check_password(engine, &compiled, listener, &mut request, &login, None, &wanted.password),
    )
    .await;
    let outcome = checked.unwrap_or_else(|_| {
        Outcome::failed(&request, Decision::Outage, "no answer within the listener's reply_deadline")
    });
    outcome::audit(engine, &request, &outcome, &listener.name, began.elapsed());
    if outcome.not_before.is_some() {
        sleep_until(outcome.not_before).await;
    }
    match outcome.decision {
        Decision::Ok => Some(encode_ok("Success.")),
        Decision::Refused(_) => Some(encode_no(REFUSED)),
        Decision::Outage => None,
    }
}

/// What stands for an empty or odd service.
const DEFAULT_SERVICE: &str = "saslauthd";

/// The service of the request, for rules and logs.
fn service_name(listener: &Listener, wanted: &str) -> String {
    let plain = (1..=64).contains(&wanted.len())
        && wanted.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !wanted.starts_with('.');
    let default = listener.service.as_deref().unwrap_or(DEFAULT_SERVICE);
    if plain { wanted.to_owned() } else { default.to_owned() }
}

/// What stands for `%{service}` in the names of PAM files: only what the listener allows; `*` allows all.
fn pam_service(listener: &Listener, wanted: &str) -> String {
    let name = service_name(listener, wanted);
    if listener.pam_services.iter().any(|allowed| *allowed == name || allowed == "*") {
        // libpam folds the case as well.
        return name.to_ascii_lowercase();
    }
    listener.service.clone().unwrap_or_else(|| DEFAULT_SERVICE.to_owned())
}

/// `ip;port`.
fn address(text: &[u8]) -> Option<std::net::IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.split(';').next()?.parse().ok()
}
