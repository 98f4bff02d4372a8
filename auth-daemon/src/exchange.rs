//! One SASL exchange from AUTH to its outcome.
//!
//! Purpose: drive the mechanism's state machine, ask the chain what the mechanism needs, judge the result.
//! Rules:   an unknown user of a key mechanism goes through the whole exchange and fails at its end; an outage ends it at
//!          once; final data goes inside OK to clients that can take it there, in one more challenge to all others.
//! Never:   let a password outlive the check it is for.
//! Trust:   every response is a stranger's; only a password or a proof that was checked makes a user of it.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use auth_wire::{Secret, Secured};
use creds::KeyKind;
use sasl::{BindingType, Credentials, Exchange, Step};

use crate::chain::{self, Ask, Said, Walk};
use crate::config::{Compiled, Listener};
use crate::engine::{Engine, unix_now};
use crate::outcome::{self, Decision, Outcome, Refusal};
use crate::request::Request;

/// A login with the state of its exchange.
pub(crate) struct Login {
    compiled: Arc<Compiled>,
    listener: Arc<Listener>,
    /// The facts.
    pub(crate) request: Request,
    exchange: Option<Exchange>,
    /// Number of this connection, for APOP.
    cuid: u32,
    /// What the chain said when it was asked for a key.
    looked_up: Option<LookedUp>,
    /// Success that waits for the client to acknowledge final data.
    acknowledged: Option<Outcome>,
    /// Time worked on it, without waiting for the client.
    spent: Duration,
    /// When the work for the client's last line began; once that is answered, when it ended.
    pub(crate) clock: Instant,
    /// Set by ANONYMOUS.
    pub(crate) anonymous: bool,
}

struct LookedUp {
    said: Said,
    /// Whom a master user wants to be.
    target: Option<String>,
    go_on: bool,
}

/// What the client sent.
pub(crate) enum Input {
    /// AUTH, with or without an initial response.
    Start(Option<Secret>),
    /// CONT.
    Continue { data: Secret, binding: Option<Secret> },
}

/// What the client gets.
#[derive(Debug)]
pub(crate) enum Answer {
    /// CONT.
    Challenge { data: Vec<u8>, binding: Option<&'static str> },
    /// The end.
    Finished(Outcome),
}

impl Login {
    /// A login that has not begun.
    pub(crate) fn new(
        compiled: Arc<Compiled>,
        listener: Arc<Listener>,
        mut request: Request,
        mechanism: sasl::Name,
        cuid: u32,
    ) -> Login {
        request.mechanism = Some(mechanism);
        // What a proxy passed on goes to whoever gets the OK.
        for field in std::mem::take(&mut request.params.forward_fields) {
            request.fields.set(&format!("forward_{}", field.name), field.value.as_deref());
        }
        request.default_domain = compiled.rules.default_domain();
        let clock = request.arrived;
        Login {
            compiled,
            listener,
            request,
            exchange: None,
            cuid,
            looked_up: None,
            acknowledged: None,
            spent: Duration::ZERO,
            clock,
            anonymous: false,
        }
    }

    /// Takes what the client sent to the next answer.
    pub(crate) async fn advance(
        mut self: Box<Self>,
        engine: Arc<Engine>,
        input: Input,
    ) -> (Box<Self>, Answer) {
        let deadline = self.request.arrived + self.listener.deadline;
        self.request.until = Some(deadline);
        let answer = {
            let mut run = pin!(self.run(&engine, input));
            // Most answers need no waiting, and so no timer.
            match poll_fn(|context| Poll::Ready(run.as_mut().poll(context))).await {
                Poll::Ready(answer) => Ok(answer),
                Poll::Pending => tokio::time::timeout_at(deadline.into(), run).await,
            }
        };
        let answer = answer.unwrap_or_else(|_| {
            let why = "no answer within the listener's reply_deadline";
            Answer::Finished(Outcome::failed(&self.request, Decision::Outage, why))
        });
        let ended = Instant::now();
        self.spent += ended.saturating_duration_since(self.clock);
        self.clock = ended;
        if let Answer::Finished(outcome) = &answer {
            outcome::audit(&engine, &self.request, outcome, &self.listener.name, self.spent);
        }
        (self, answer)
    }

    async fn run(&mut self, engine: &Engine, input: Input) -> Answer {
        let mut step = match input {
            Input::Continue { data, .. } if self.acknowledged.is_some() => {
                return self.acknowledge(&data);
            }
            Input::Start(initial) => match self.request.mechanism {
                Some(name) => {
                    let (exchange, step) =
                        self.with_context(engine, |ctx| Exchange::start(name, initial.as_deref(), ctx));
                    self.exchange = Some(exchange);
                    step
                }
                None => Step::Failure(sasl::Failure::OutOfOrder),
            },
            Input::Continue { data, binding } => {
                self.exchange_step(engine, |exchange, ctx| exchange.respond(&data, binding.as_deref(), ctx))
            }
        };
        loop {
            step = match step {
                Step::Challenge(challenge) => {
                    return Answer::Challenge {
                        data: challenge.data,
                        binding: challenge.binding.map(BindingType::as_str),
                    };
                }
                Step::NeedVerify(verify) => {
                    let outcome = check_password(
                        engine,
                        &self.compiled,
                        &self.listener,
                        &mut self.request,
                        &verify.authcid,
                        verify.authzid.as_deref(),
                        verify.password.expose(),
                    )
                    .await;
                    return Answer::Finished(outcome);
                }
                Step::NeedCredentials(lookup) => match self.look_up(engine, &lookup).await {
                    Ok(credentials) => {
                        self.exchange_step(engine, |exchange, ctx| exchange.credentials(&credentials, ctx))
                    }
                    Err(outcome) => return Answer::Finished(outcome),
                },
                Step::Success(success) => return self.succeed(engine, success).await,
                Step::Failure(failure) => {
                    let why = match &self.looked_up {
                        Some(LookedUp { said: Said::Ok, .. }) | None => failure.to_string(),
                        Some(LookedUp { said, .. }) => describe(said),
                    };
                    return self.finish(engine, Decision::Refused(Refusal::Credentials), why);
                }
            };
        }
    }

    fn exchange_step(
        &mut self,
        engine: &Engine,
        call: impl FnOnce(&mut Exchange, &mut sasl::Context<'_>) -> Step,
    ) -> Step {
        match self.exchange.take() {
            Some(mut exchange) => {
                let step = self.with_context(engine, |ctx| call(&mut exchange, ctx));
                self.exchange = Some(exchange);
                step
            }
            None => Step::Failure(sasl::Failure::OutOfOrder),
        }
    }

    fn with_context<T>(&self, engine: &Engine, call: impl FnOnce(&mut sasl::Context<'_>) -> T) -> T {
        // Only a client that has a TLS channel can have been offered channel binding.
        let offered = self.listener.minor >= 3
            && self.request.params.secured == Some(Secured::Tls)
            && self.listener.mechanisms.iter().any(|name| name.is_plus());
        let bindings: &[BindingType] =
            if offered { &[BindingType::TlsExporter, BindingType::TlsServerEndPoint] } else { &[] };
        let mut random = |out: &mut [u8]| {
            for chunk in out.chunks_mut(32) {
                let bytes = crate::engine::random::<32>();
                for (slot, byte) in chunk.iter_mut().zip(bytes) {
                    *slot = byte;
                }
            }
        };
        call(&mut sasl::Context {
            hostname: &self.compiled.hostname,
            realms: &self.compiled.realms,
            secret: &engine.secret,
            bindings,
            now: unix_now(),
            apop: Some(sasl::ApopSeed {
                spid: crate::engine::pid(),
                cuid: self.cuid,
                started: engine.started,
            }),
            random: &mut random,
        })
    }

    /// Asks the chain for a key. An error ends the exchange.
    async fn look_up(&mut self, engine: &Engine, lookup: &sasl::Lookup) -> Result<Credentials, Outcome> {
        let compiled = Arc::clone(&self.compiled);
        let kind = match lookup.kind {
            sasl::KeyKind::Plain => KeyKind::Plain,
            sasl::KeyKind::CramMd5 => KeyKind::CramMd5,
            sasl::KeyKind::DigestMd5 => KeyKind::DigestMd5,
            sasl::KeyKind::ScramSha1 => KeyKind::ScramSha1,
            sasl::KeyKind::ScramSha256 => KeyKind::ScramSha256,
        };
        let named = name_login(&compiled, &mut self.request, &lookup.user, lookup.authzid.as_deref());
        let target = match named {
            Ok(target) => target,
            Err(why) => {
                self.looked_up = Some(LookedUp { said: Said::Unknown(why), target: None, go_on: false });
                return Ok(Credentials::Unknown);
            }
        };
        let chain = if target.is_some() { &self.listener.masters } else { &self.listener.chain };
        self.request.login_user.clone_from(&target);
        let Walk { mut said, key, go_on, .. } = if target.is_some() && chain.is_empty() {
            no_masters()
        } else {
            chain::walk(engine, &compiled, chain, &mut self.request, Ask::Key(kind), false).await
        };
        let go_on = go_on && target.is_some();
        if go_on {
            said = Said::Ok;
        }
        if let Said::Internal(why) = said {
            return Err(Outcome::failed(&self.request, Decision::Outage, why));
        }
        let credentials = match (&said, key) {
            (Said::Ok | Said::Disabled(_), Some(key)) => self.key_for(engine, lookup, key).await?,
            _ => Credentials::Unknown,
        };
        self.looked_up = Some(LookedUp { said, target, go_on });
        Ok(credentials)
    }

    async fn key_for(
        &self,
        engine: &Engine,
        lookup: &sasl::Lookup,
        key: creds::Key,
    ) -> Result<Credentials, Outcome> {
        let secret = |secret: &creds::Secret| sasl::Secret::new(secret.expose().to_vec());
        Ok(match key {
            creds::Key::Plain(password) => {
                let hash = match lookup.kind {
                    sasl::KeyKind::ScramSha1 => sasl::Hash::Sha1,
                    sasl::KeyKind::ScramSha256 => sasl::Hash::Sha256,
                    _ => return Ok(Credentials::Plain(secret(&password))),
                };
                let keys = engine.scram_keys(&self.request, hash, &lookup.user, password.expose());
                let keys = Box::pin(keys).await;
                Credentials::Scram(keys.map_err(|why| Outcome::failed(&self.request, Decision::Outage, why))?)
            }
            creds::Key::CramMd5(states) => Credentials::CramMd5(secret(&states)),
            creds::Key::DigestMd5(digest) => Credentials::DigestMd5(secret(&digest)),
            creds::Key::Scram(keys) => Credentials::Scram(sasl::ScramKeys {
                iterations: keys.iterations,
                salt: keys.salt.clone(),
                stored_key: secret(&keys.stored_key),
                server_key: secret(&keys.server_key),
            }),
        })
    }

    /// The client has proved who it is.
    async fn succeed(&mut self, engine: &Engine, success: sasl::Success) -> Answer {
        if self.request.mechanism == Some(sasl::Name::Anonymous) {
            self.anonymous = true;
            self.request.original = success.user;
            self.request.user.clone_from(&self.compiled.anonymous);
            let trace = format!("trace {}", outcome::printable(&self.request.original));
            let mut outcome = Outcome::ok(&self.request);
            outcome.why = trace;
            return Answer::Finished(outcome);
        }
        let compiled = Arc::clone(&self.compiled);
        let looked_up = self.looked_up.take();
        let mut outcome = match looked_up {
            Some(LookedUp { said: Said::Ok, target: Some(target), go_on }) => {
                let (listener, request) = (&self.listener, &mut self.request);
                Box::pin(become_target(engine, &compiled, listener, request, target, go_on)).await
            }
            Some(LookedUp { said, .. }) => judge(&self.request, &said),
            None => Outcome::failed(&self.request, Decision::Outage, "success without a look-up"),
        };
        finish_ok(&self.listener, &mut self.request, &mut outcome);
        engine.settle(&compiled, &self.listener, &self.request, &mut outcome, None);
        match success.final_data {
            Some(data) if outcome.decision == Decision::Ok => {
                if self.request.params.final_resp_ok {
                    outcome.final_data = Some(data);
                    Answer::Finished(outcome)
                } else {
                    self.acknowledged = Some(outcome);
                    Answer::Challenge { data, binding: None }
                }
            }
            _ => Answer::Finished(outcome),
        }
    }

    /// RFC 5802 §5.1 leaves nothing for the client to say here.
    fn acknowledge(&mut self, data: &[u8]) -> Answer {
        match self.acknowledged.take() {
            Some(outcome) if data.is_empty() => Answer::Finished(outcome),
            _ => Answer::Finished(Outcome::failed(
                &self.request,
                Decision::Refused(Refusal::Credentials),
                "the client answered the server's final message",
            )),
        }
    }

    fn finish(&self, engine: &Engine, decision: Decision, why: String) -> Answer {
        let mut outcome = Outcome::failed(&self.request, decision, why);
        engine.settle(&self.compiled, &self.listener, &self.request, &mut outcome, None);
        Answer::Finished(outcome)
    }
}

/// Checks a password, for PLAIN, LOGIN, the mux and admin commands.
pub(crate) async fn check_password(
    engine: &Engine,
    compiled: &Compiled,
    listener: &Listener,
    request: &mut Request,
    authcid: &str,
    authzid: Option<&str>,
    password: &[u8],
) -> Outcome {
    let mut outcome = judge_password(engine, compiled, listener, request, authcid, authzid, password).await;
    finish_ok(listener, request, &mut outcome);
    if outcome.decision == Decision::Ok
        && (request.fields.has("proxy") || request.fields.has("proxy_maybe"))
        && let Ok(text) = std::str::from_utf8(password)
    {
        // A login process that proxies logs in there with the same password. Only login sockets show this field.
        request.fields.set_default("pass", Some(text));
    }
    engine.settle(compiled, listener, request, &mut outcome, Some(password));
    outcome
}

async fn judge_password(
    engine: &Engine,
    compiled: &Compiled,
    listener: &Listener,
    request: &mut Request,
    authcid: &str,
    authzid: Option<&str>,
    password: &[u8],
) -> Outcome {
    let refused = |request: &Request, why: String| {
        Outcome::failed(request, Decision::Refused(Refusal::Credentials), why)
    };
    let target = match name_login(compiled, request, authcid, authzid) {
        Ok(target) => target,
        Err(why) => return refused(request, why),
    };
    if creds::check_password_bytes(password).is_err() {
        return refused(request, "the password holds a character no client can send".to_owned());
    }
    let Some(target) = target else {
        let walk =
            chain::walk(engine, compiled, &listener.chain, request, Ask::Password(password), false).await;
        return judge(request, &walk.said);
    };
    request.login_user = Some(target.clone());
    let walk = if listener.masters.is_empty() {
        no_masters()
    } else {
        chain::walk(engine, compiled, &listener.masters, request, Ask::Password(password), false).await
    };
    match walk.said {
        said if walk.go_on || said == Said::Ok => {
            Box::pin(become_target(engine, compiled, listener, request, target, walk.go_on)).await
        }
        said => judge(request, &said),
    }
}

/// A master's password was right: he becomes whom he wants to be.
async fn become_target(
    engine: &Engine,
    compiled: &Compiled,
    listener: &Listener,
    request: &mut Request,
    target: String,
    go_on: bool,
) -> Outcome {
    request.master = Some(std::mem::replace(&mut request.user, target));
    request.login_user = None;
    if !go_on {
        return judge(request, &Said::Ok);
    }
    let walk = chain::walk(engine, compiled, &listener.chain, request, Ask::Password(b""), true).await;
    match walk.said {
        Said::Ok => judge(request, &Said::Ok),
        Said::Internal(why) => Outcome::failed(request, Decision::Outage, why),
        said => Outcome::failed(request, Decision::Refused(Refusal::Authorization), describe(&said)),
    }
}

/// Sets the request's names. Gives the canonical target of a master login.
fn name_login(
    compiled: &Compiled,
    request: &mut Request,
    authcid: &str,
    authzid: Option<&str>,
) -> Result<Option<String>, String> {
    // `user*master`. Who also sends an authorization id means that one.
    let (authcid, authzid) = match compiled.rules.split_master(authcid) {
        Some((login, master)) => (master, authzid.or(Some(login))),
        None => (authcid, authzid),
    };
    request.default_domain = compiled.rules.default_domain();
    request.original = authcid.to_owned();
    request.user = compiled.rules.canonical(authcid).map_err(|why| why.to_string())?;
    let Some(authzid) = authzid else { return Ok(None) };
    let target = compiled.rules.canonical(authzid).map_err(|why| format!("authorization id: {why}"))?;
    Ok((target != request.user).then_some(target))
}

fn no_masters() -> Walk {
    Walk {
        said: Said::Unknown("there are no master users".to_owned()),
        key: None,
        go_on: false,
        known: false,
        no_lookups: false,
        blind: false,
    }
}

/// The chain's verdict as an outcome.
fn judge(request: &Request, said: &Said) -> Outcome {
    let decision = match said {
        Said::Ok => return Outcome::ok(request),
        Said::Mismatch(_) | Said::Unknown(_) | Said::NoScheme(_) => Decision::Refused(Refusal::Credentials),
        Said::Disabled(_) => Decision::Refused(Refusal::Disabled),
        Said::Expired(_) => Decision::Refused(Refusal::PasswordExpired),
        Said::Internal(_) | Said::Next => Decision::Outage,
    };
    let mut outcome = Outcome::failed(request, decision, describe(said));
    if matches!(decision, Decision::Refused(_)) {
        // Only drivers whose settings ask for it leave one.
        outcome.reason.clone_from(&request.message);
    }
    outcome
}

fn describe(said: &Said) -> String {
    match said {
        Said::Ok => String::new(),
        Said::Mismatch(why) | Said::Unknown(why) | Said::NoScheme(why) | Said::Disabled(why) => why.clone(),
        Said::Internal(why) => why.clone(),
        Said::Expired(why) => format!("password expired ({why})"),
        Said::Next => "no passdb decided".to_owned(),
    }
}

/// `nologin` is for login processes to honour. Doors without them would let the user in, so it is a refusal there;
/// a user who is to be proxied elsewhere is none of theirs.
fn finish_ok(listener: &Listener, request: &mut Request, outcome: &mut Outcome) {
    if outcome.decision == Decision::Ok {
        hold_back(listener, request, outcome);
    }
    let proxied = request.fields.has("proxy") || request.fields.has("proxy_maybe");
    if outcome.decision == Decision::Ok && request.fields.has("nologin") && !listener.is_login() && !proxied {
        outcome.decision = Decision::Refused(Refusal::Disabled);
        outcome.reason = request.fields.value("reason").map(str::to_owned);
        "nologin is set".clone_into(&mut outcome.why);
    }
}

/// `delay_until`: a success waits, as long as the client does. What cannot be kept is an outage, never an early success.
fn hold_back(listener: &Listener, request: &mut Request, outcome: &mut Outcome) {
    if !request.fields.has("delay_until") {
        return;
    }
    let random = u64::from_le_bytes(crate::engine::random());
    let delay = crate::guards::delay(request, SystemTime::now(), random).and_then(|delay| {
        let due = Instant::now() + delay;
        if due > request.arrived + listener.deadline {
            return Err("field `delay_until` lies beyond the listener's reply_deadline".to_owned());
        }
        Ok((!delay.is_zero()).then_some(due))
    });
    match delay {
        Ok(due) => outcome.not_before = due,
        Err(why) => {
            outcome.decision = Decision::Outage;
            outcome.why = why;
        }
    }
}
