//! `postern auth`: logins tried from outside, and questions to the running authentication daemon.
//!
//! Trust:     another daemon's answers are length-limited.
//! Never:     a password among the arguments or in what is printed.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use auth_client::{AuthClient, AuthRequest, Config, Failure, Secured, Server, Step};
use boot::ExitCode;
use boot::admin::{Request, Response, request};
use boot::exit::{self, Coded};
use conf::AuthListenerKind;
use creds::Secret;
use serde_json::{Value, json};

use crate::cli::{AuthCommand, AuthLookupArgs, AuthTestArgs, CacheCommand, PenaltyCommand, PlaceArgs};
use crate::commands::userdb;
use crate::place::Place;
use crate::{output, passwords};

/// How long a login may take; more than the longest delay of a refusal.
const DEADLINE: Duration = Duration::from_secs(30);

/// Tries a login or asks the daemon.
pub(crate) fn auth(place: &PlaceArgs, command: &AuthCommand, json: bool) -> anyhow::Result<ExitCode> {
    let question = match command {
        AuthCommand::Test(args) => return test(place, args, json),
        AuthCommand::Lookup(args @ AuthLookupArgs { socket: Some(socket), .. }) => {
            return userdb::lookup(socket, args, json);
        }
        AuthCommand::Lookup(args) => about_user("lookup", args),
        AuthCommand::Explain(args) => about_user("explain", args),
        AuthCommand::Cache(CacheCommand::Stats) => json!({ "ask": "cache-stats" }),
        AuthCommand::Cache(CacheCommand::Flush { users }) => json!({ "ask": "cache-flush", "users": users }),
        AuthCommand::Penalty(PenaltyCommand::List) => json!({ "ask": "penalty-list" }),
        AuthCommand::Penalty(PenaltyCommand::Clear { peer }) => {
            json!({ "ask": "penalty-clear", "peer": peer })
        }
    };
    let socket = Place::find_for_admin(place)?.control_socket()?;
    let asked = Request::Ask { role: "auth".to_owned(), body: question };
    let Response::Answer(answer) = request(&socket, &asked).map_err(away)? else {
        anyhow::bail!(
            "the running stack gave an answer that does not fit; is it another version? restart it"
        );
    };
    if json {
        output::json(&answer)?;
    } else {
        match command {
            AuthCommand::Lookup(_) => output::raw(lookup_text(&answer)),
            _ => output::raw(text(&answer, 0)),
        }
    }
    let word = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    if let AuthCommand::Explain(AuthLookupArgs { ip: None, .. }) = command
        && word("reason").starts_with("allow_")
    {
        output::note("no address was given; with --ip ADDR it is looked at whether that one is allowed");
    }
    Ok(match (word("found"), word("result")) {
        ("no", _) => userdb::NOUSER,
        ("unavailable", _) | (_, "unavailable") => exit::TEMPFAIL,
        (_, "refused") => exit::FAILURE,
        _ => exit::OK,
    })
}

/// For who asks the daemon, its absence is something that passes.
fn away(error: boot::Error) -> anyhow::Error {
    match error {
        boot::Error::NotRunning { .. } => Coded::new(exit::TEMPFAIL, error.to_string()).into(),
        other => other.into(),
    }
}

fn about_user(ask: &str, args: &AuthLookupArgs) -> Value {
    json!({
        "ask": ask, "user": args.user, "service": args.service, "ip": args.ip, "listener": args.listener,
    })
}

/// An answer for people: one `name: value` per line.
fn text(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| match value {
                Value::Array(list) if list.is_empty() => format!("{indent}{name}: none\n"),
                Value::Object(map) if map.is_empty() => format!("{indent}{name}: none\n"),
                Value::Array(_) | Value::Object(_) => format!("{indent}{name}:\n{}", text(value, depth + 1)),
                other => format!("{indent}{name}: {}\n", shown(other)),
            })
            .collect(),
        Value::Array(list) => list
            .iter()
            .map(|value| match value {
                Value::Object(map) => {
                    let pairs: Vec<String> =
                        map.iter().map(|(name, v)| format!("{name}={}", shown(v))).collect();
                    format!("{indent}{}\n", pairs.join("  "))
                }
                other => format!("{indent}{}\n", shown(other)),
            })
            .collect(),
        other => format!("{indent}{}\n", shown(other)),
    }
}

fn lookup_text(answer: &Value) -> String {
    let mut short = serde_json::Map::new();
    for name in ["user", "canonical", "final", "passdb", "userdb", "userdb_fields", "result", "reason"] {
        if let Some(value) = answer.get(name) {
            short.insert(name.to_owned(), value.clone());
        }
    }
    text(&Value::Object(short), 0)
}

/// What a login came to.
enum Outcome {
    Accepted { user: Option<String>, fields: Vec<(String, String)> },
    Refused(String),
    Undecided(String),
}

fn test(place: &PlaceArgs, args: &AuthTestArgs, json: bool) -> anyhow::Result<ExitCode> {
    let (socket, mux) = match &args.socket {
        Some(path) => (path.clone(), args.mux),
        None => default_socket(place, args.mux)?,
    };
    let password =
        if args.password_stdin { passwords::from_stdin()? } else { passwords::from_terminal_once()? };
    let began = std::time::Instant::now();
    let mut said = Vec::new();
    let outcome = if mux {
        by_mux(&socket, args, &password, &mut said)?
    } else {
        by_dovecot(&socket, args, &password, &mut said)?
    };
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (result, code, reason, user, fields) = match outcome {
        Outcome::Accepted { user, fields } => ("accepted", exit::OK, None, user, fields),
        Outcome::Refused(reason) => ("refused", exit::FAILURE, Some(reason), None, Vec::new()),
        Outcome::Undecided(reason) => ("undecided", exit::TEMPFAIL, Some(reason), None, Vec::new()),
    };
    if json {
        let fields: serde_json::Map<String, Value> =
            fields.into_iter().map(|(k, v)| (k, Value::String(v))).collect();
        output::json(&json!({
            "result": result, "reason": reason, "user": user, "fields": fields, "socket": socket,
            "milliseconds": milliseconds, "exit_code": code.0,
            "transcript": args.transcript.then_some(said),
        }))?;
    } else {
        for line in said.iter().filter(|_| args.transcript) {
            output::line(line);
        }
        let detail = reason.or(user).filter(|text| !text.is_empty());
        let detail = detail.map_or_else(|| result.to_owned(), |detail| format!("{result}: {detail}"));
        output::line(format!("{detail} ({milliseconds} ms)"));
        for (name, value) in fields {
            output::line(format!("  {name}={value}"));
        }
        if code == exit::TEMPFAIL {
            output::note(output::DOCTOR);
        }
    }
    Ok(code)
}

fn default_socket(place: &PlaceArgs, mux: bool) -> anyhow::Result<(PathBuf, bool)> {
    let wanted = if mux { AuthListenerKind::Saslauthd } else { AuthListenerKind::Client };
    let settings = Place::find_for_admin(place)?.settings()?;
    let listeners = settings.auth.listener.iter();
    let found =
        listeners.filter(|listener| listener.kind == wanted).find_map(|listener| listener.path.first());
    match found {
        Some(path) => Ok((path.clone(), mux)),
        None => {
            let text =
                format!("the configuration has no listener of type {wanted}; name a socket with --socket");
            Err(Coded::new(exit::CONFIG, text).into())
        }
    }
}

/// The server's greeting, line by line; the cookie is the right to fetch logins of this connection.
fn greeting(server: &Server) -> Vec<String> {
    let mut lines = vec![format!("S: VERSION 1 {}", server.minor)];
    for mechanism in &server.mechanisms {
        let flags = mechanism.flags.names().fold(String::new(), |all, flag| all + " " + flag);
        lines.push(format!("S: MECH {}{flags}", mechanism.name));
    }
    lines.extend(server.spid.map(|pid| format!("S: SPID {pid}")));
    lines.extend(server.cuid.map(|number| format!("S: CUID {number}")));
    lines.extend(server.cookie.map(|_| "S: COOKIE (hidden)".to_owned()));
    lines.push("S: DONE".to_owned());
    lines
}

/// Why the mechanism cannot be tried on this socket.
fn not_offered(server: &Server, mechanism: sasl::Name) -> Option<String> {
    let offered = server.mechanisms.iter().map(|known| known.name.to_string());
    let offered: Vec<String> = offered.collect();
    if offered.iter().any(|name| name == mechanism.as_str()) {
        return None;
    }
    let mut text =
        format!("the socket does not offer {}; it offers {}", mechanism.as_str(), offered.join(", "));
    if mechanism.is_plus() && server.minor < 3 {
        text += "; channel binding needs a listener with `minor = 3`";
    }
    Some(text)
}

/// The client's side of the mechanism. `channel`: stands for the TLS channel of a mail program.
fn sasl_client(
    args: &AuthTestArgs,
    mechanism: sasl::Name,
    password: &Secret,
    server: &Server,
    channel: &[u8],
) -> anyhow::Result<sasl::Client> {
    let (user, password) = (args.user.as_bytes(), password.expose());
    if mechanism == sasl::Name::Apop {
        let (Some(spid), Some(cuid)) = (server.spid, server.cuid) else {
            let text = "the daemon's greeting has no SPID or no CUID; APOP needs both";
            return Err(Coded::new(exit::TEMPFAIL, text).into());
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        return Ok(sasl::Client::apop(user, password, spid, cuid, now, "localhost"));
    }
    let nonce = passwords::random_bytes::<18>()?.map(|byte| format!("{byte:02x}")).concat();
    let kind = sasl::BindingType::TlsExporter;
    sasl::Client::bound(mechanism, user, password, &nonce, kind, channel)
        .or_else(|| sasl::Client::new(mechanism, user, password, &nonce))
        .map(|client| client.service(&args.service, "localhost"))
        .with_context(|| format!("{} cannot be tried here", mechanism.as_str()))
}

/// A FAIL as it came.
fn refusal(failure: &Failure) -> String {
    let user = failure.user.as_deref().map(|user| format!(" user={user}")).unwrap_or_default();
    let code = failure.code.map(|code| format!(" code={}", code.as_str().unwrap_or("(unknown)")));
    let reason = failure.reason.as_deref().map(|reason| format!(" reason={reason}")).unwrap_or_default();
    format!("S: FAIL{user}{}{reason}", code.unwrap_or_default())
}

/// What a challenge says, as far as it can be shown.
fn shown(challenge: &[u8]) -> String {
    if challenge.is_empty() { "(empty)".to_owned() } else { challenge.escape_ascii().to_string() }
}

fn by_dovecot(
    socket: &Path,
    args: &AuthTestArgs,
    password: &Secret,
    said: &mut Vec<String>,
) -> anyhow::Result<Outcome> {
    let Some(mechanism) = sasl::Name::parse(&args.mech) else {
        let all = sasl::Name::ALL.map(sasl::Name::as_str).join(", ");
        let text = format!("{} cannot be tried here; known are: {all}", args.mech);
        return Err(Coded::new(exit::USAGE, text).into());
    };
    userdb::somebody_listens(socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Only the login socket is used.
        let mut config = Config::new(socket, socket, socket).deadline(DEADLINE);
        // Every server of the protocol's first major version knows minor 1; channel binding came with 3.
        config.minor = if mechanism.is_plus() { 3 } else { 1 };
        said.push(format!("C: VERSION 1 {}", config.minor));
        said.push(format!("C: CPID {}", std::process::id()));
        let client = AuthClient::new(config);
        let server = client.server().await.map_err(|error| userdb::nobody(socket, &error))?;
        said.extend(greeting(&server));
        if let Some(why) = not_offered(&server, mechanism) {
            return Ok(Outcome::Refused(why));
        }
        let channel = passwords::random_bytes::<32>()?;
        let mut sasl = sasl_client(args, mechanism, password, &server, &channel)?;
        let mut request = AuthRequest::new(mechanism.as_str(), args.service.as_str());
        let secured = if mechanism.is_plus() { Secured::Tls } else { Secured::Plain };
        let word = if secured == Secured::Tls { "secured=tls" } else { "secured" };
        let mut line = format!("C: AUTH {} service={} {word}", mechanism.as_str(), args.service);
        if let Some(rip) = args.rip {
            line += &format!(" rip={rip}");
        }
        if let Some(first) = sasl.initial() {
            request = request.initial_response(first.expose().to_vec());
            line += " resp=(hidden)";
        }
        request.secured = Some(secured);
        request.rip = args.rip;
        said.push(line);
        let mut step = client.authenticate(request).await;
        loop {
            step = match step {
                Ok(Step::Challenge(exchange, challenge)) => {
                    let binding = exchange.channel_binding().map(str::to_owned);
                    let kind =
                        binding.as_ref().map(|kind| format!(" channel_binding={kind}")).unwrap_or_default();
                    said.push(format!("S: CONT {}{kind}", shown(&challenge)));
                    match (sasl.respond(&challenge), binding) {
                        (Ok(answer), Some(_)) => {
                            said.push("C: CONT (hidden) channel_binding=(hidden)".to_owned());
                            exchange.respond_bound(answer.expose(), &channel).await
                        }
                        (Ok(answer), None) => {
                            said.push("C: CONT (hidden)".to_owned());
                            exchange.respond(answer.expose()).await
                        }
                        (Err(error), _) => return Ok(Outcome::Refused(error.to_string())),
                    }
                }
                Ok(Step::Ok(login)) => {
                    said.push(format!("S: OK user={}", login.user));
                    return Ok(match sasl.finish(login.final_data.as_deref()) {
                        Ok(()) => Outcome::Accepted { user: Some(login.user), fields: login.fields },
                        Err(error) => Outcome::Refused(error.to_string()),
                    });
                }
                Ok(Step::Failed(failure)) => {
                    said.push(refusal(&failure));
                    let reason = failure.reason.clone().unwrap_or_default();
                    return Ok(if failure.is_temporary() {
                        Outcome::Undecided(reason)
                    } else {
                        Outcome::Refused(reason)
                    });
                }
                Err(error) if error.is_temporary() => return Ok(Outcome::Undecided(error.to_string())),
                Err(error) => return Err(Coded::new(exit::USAGE, error.to_string()).into()),
            };
        }
    })
}

/// Four counted strings, answered by one: `OK` or `NO` and a reason.
fn by_mux(
    socket: &Path,
    args: &AuthTestArgs,
    password: &Secret,
    said: &mut Vec<String>,
) -> anyhow::Result<Outcome> {
    let unavailable = |error: std::io::Error| {
        Coded::new(
            exit::TEMPFAIL,
            format!("no saslauthd answers at {}: {error}; {}", socket.display(), output::DOCTOR),
        )
    };
    // libsasl2 sends the realm by itself: what stands behind the last `@`.
    let (user, realm) = args.user.rsplit_once('@').unwrap_or((&args.user, ""));
    let mut bytes = Vec::new();
    for field in [user.as_bytes(), password.expose(), args.service.as_bytes(), realm.as_bytes()] {
        let Ok(length) = u16::try_from(field.len()) else {
            return Err(Coded::new(exit::USAGE, "name or password are too long for saslauthd").into());
        };
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(field);
    }
    let mut stream = UnixStream::connect(socket).map_err(unavailable)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(unavailable)?;
    stream.write_all(&bytes).map_err(unavailable)?;
    said.push(format!("C: login={user} password=(hidden) service={} realm={realm}", args.service));
    let mut length = [0; 2];
    if stream.read_exact(&mut length).is_err() {
        return Ok(Outcome::Undecided("the daemon closed the connection without an answer".to_owned()));
    }
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).map_err(unavailable)?;
    let answer = String::from_utf8_lossy(&answer).trim_end_matches('\0').to_owned();
    said.push(format!("S: {answer}"));
    Ok(match answer.strip_prefix("OK") {
        Some(_) => Outcome::Accepted { user: None, fields: Vec::new() },
        None => Outcome::Refused(answer.strip_prefix("NO").unwrap_or(&answer).trim().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Outcome, by_mux, text};
    use crate::cli::AuthTestArgs;
    use creds::Secret;
    use serde_json::json;
    use std::io::{Read as _, Write as _};

    #[test]
    fn answers_for_people() {
        let value =
            json!({ "a": 1, "b": [], "c": { "d": "x" }, "e": [{ "peer": "::1", "count": 2 }], "f": null });
        assert_eq!(text(&value, 0), "a: 1\nb: none\nc:\n  d: x\ne:\n  count=2  peer=::1\nf: -\n");
    }

    #[test]
    fn mux_answers_are_judged() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("mux");
        let args = AuthTestArgs {
            user: "bob@example.org".to_owned(),
            password_stdin: true,
            service: "imap".to_owned(),
            mech: "PLAIN".to_owned(),
            rip: None,
            socket: Some(path.clone()),
            mux: true,
            transcript: false,
        };
        assert!(by_mux(&path, &args, &Secret::new(b"pw".to_vec()), &mut Vec::new()).is_err(), "nobody there");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let server = std::thread::spawn(move || {
            for answer in [&b"\0\x02OK"[..], b"\0\x09NO locked", b""] {
                let (mut stream, _) = listener.accept().expect("accepted");
                let mut seen = vec![0; b"\0\x03bob\0\x02pw\0\x04imap\0\x0bexample.org".len()];
                stream.read_exact(&mut seen).expect("a request");
                assert_eq!(seen, b"\0\x03bob\0\x02pw\0\x04imap\0\x0bexample.org");
                stream.write_all(answer).expect("written");
            }
        });
        let ask = || by_mux(&path, &args, &Secret::new(b"pw".to_vec()), &mut Vec::new()).expect("an answer");
        assert!(matches!(ask(), Outcome::Accepted { .. }));
        assert!(matches!(ask(), Outcome::Refused(reason) if reason == "locked"));
        assert!(matches!(ask(), Outcome::Undecided(_)));
        server.join().expect("no mismatch");
    }
}
