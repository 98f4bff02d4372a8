//! What all connections share: configuration, files, cache, penalties, hash threads, workers, kept logins.
//!
//! Purpose: the one place where passwords are checked, whatever door the question came through.
//! Locking: every part has its own short lock; none is held across an await.
//! Trust:   names and passwords in requests are strangers' words; stored passwords are the administrator's.
//! Never:   hold a lock while something is waited for, tell one client what another asked.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use auth_wire::login::Registry;
use creds::{Cost, Scratch, Verdict, Verifier};

use crate::cache::{self, Cache, Keyer};
use crate::chain::{CheckError, StoredText};
use crate::config::{Compiled, Listener};
use crate::figures::Figures;
use crate::files::Files;
use crate::hashpool::{HashPool, HashStats, Whom};
use crate::ids::Ids;
use crate::open::Exchanges;
use crate::outcome::{Decision, Outcome};
use crate::penalty::{Peer, Penalties};
use crate::request::Request;
use crate::worker::{self, Checked, Workers};

/// What a hash thread answers.
pub(crate) type Hashed = Result<HashAnswer, creds::Error>;

/// Work of the hash threads.
#[derive(Debug, Clone)]
pub(crate) enum HashAnswer {
    /// Of a verification.
    Verdict(Verdict),
    /// SCRAM keys derived from a password.
    Keys(sasl::ScramKeys),
}

/// A finished login that waits for its `REQUEST`.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// The request with its fields.
    pub(crate) request: Request,
    /// It was ANONYMOUS.
    pub(crate) anonymous: bool,
}

/// The shared state.
#[derive(Debug)]
pub(crate) struct Engine {
    config: ArcSwap<Compiled>,
    pub(crate) files: Files,
    pub(crate) cache: Cache,
    pub(crate) keyer: Keyer,
    pub(crate) penalties: Penalties,
    pub(crate) workers: Workers,
    /// Those that wait for their clients.
    pub(crate) exchanges: Exchanges,
    /// What is counted for all connections.
    pub(crate) figures: Figures,
    pool: HashPool<Hashed>,
    logins: Mutex<Registry<Kept>>,
    /// PAM services without a file, as far as the log knows of them.
    strange: Mutex<BTreeSet<String>>,
    /// Names of system users and groups.
    pub(crate) ids: Ids,
    /// Survives restarts: salts of unknown users and tokens depend on it.
    pub(crate) secret: [u8; 32],
    /// Seconds since the epoch.
    pub(crate) started: u64,
    cuid: AtomicU32,
}

impl Engine {
    /// An engine with its first configuration.
    pub(crate) fn new(
        config: Compiled,
        files: Files,
        ids: Ids,
        workers: Workers,
        secret: [u8; 32],
    ) -> Engine {
        Engine {
            cache: Cache::new(config.cache),
            pool: HashPool::new(config.hashes),
            config: ArcSwap::from_pointee(config),
            files,
            keyer: Keyer::new(random()),
            penalties: Penalties::default(),
            workers,
            exchanges: Exchanges::default(),
            figures: Figures::default(),
            logins: Mutex::default(),
            strange: Mutex::default(),
            ids,
            secret,
            started: unix_now(),
            cuid: AtomicU32::new(0),
        }
    }

    /// The configuration of now.
    pub(crate) fn config(&self) -> Arc<Compiled> {
        self.config.load_full()
    }

    /// Swaps the configuration in.
    pub(crate) fn reload(&self, config: Compiled) {
        self.cache.set_limits(config.cache);
        self.pool.set_limits(config.hashes);
        self.workers.set_limits(&config.workers);
        self.config.store(Arc::new(config));
        self.files.forget_unused();
    }

    /// A number for a new connection.
    pub(crate) fn next_cuid(&self) -> u32 {
        self.cuid.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The kept logins.
    pub(crate) fn logins(&self) -> MutexGuard<'_, Registry<Kept>> {
        // The registry's own operations leave it whole.
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of the hash threads.
    pub(crate) fn hash_stats(&self) -> HashStats {
        self.pool.stats()
    }

    /// Regular small work.
    pub(crate) fn tidy(&self, now: Instant) {
        self.logins().expire(now);
        self.workers.retire_idle(now);
    }

    /// Checks a password against a stored string: cheap ones at once, others by cache and hash threads.
    pub(crate) async fn check(
        &self,
        compiled: &Compiled,
        request: &Request,
        text: StoredText<'_>,
        given: &[u8],
    ) -> Result<Verdict, CheckError> {
        let verifier = &compiled.verifier;
        let stored = text.parse().map_err(check_error)?;
        let cost = verifier.cost(&stored).map_err(check_error)?;
        let typed = request.original.as_bytes();
        if cost.is_cheap() {
            return verifier.verify(&stored, typed, given, &mut Scratch::default()).map_err(check_error);
        }
        // Boxed: the state of a cheap login stays small.
        Box::pin(self.check_slowly(verifier, request, text, given, cost)).await
    }

    /// By the cache, or a hash thread.
    async fn check_slowly(
        &self,
        verifier: &Verifier,
        request: &Request,
        text: StoredText<'_>,
        given: &[u8],
        cost: Cost,
    ) -> Result<Verdict, CheckError> {
        let typed = request.original.as_bytes();
        let flags = [u8::from(text.no_scheme)];
        let inputs: [&[u8]; 6] = [
            text.text.expose(),
            text.default.name().as_bytes(),
            &flags,
            request.user.as_bytes(),
            typed,
            given,
        ];
        let key = self.keyer.key("hash", &inputs);
        match self.cache.find(&key, request.arrived) {
            Some(cache::Verdict::Right(_)) => return Ok(Verdict::Match),
            Some(cache::Verdict::Wrong) => return Ok(Verdict::Mismatch),
            None => {}
        }
        let work = {
            let (verifier, stored) = (verifier.clone(), text.text.clone());
            let (default, no_scheme) = (text.default, text.no_scheme);
            let (typed, given) = (request.original.clone(), creds::Secret::from(given));
            move |scratch: &mut Scratch| {
                let text = StoredText { text: &stored, default, no_scheme };
                let verdict = verifier.verify(&text.parse()?, typed.as_bytes(), given.expose(), scratch)?;
                Ok(HashAnswer::Verdict(verdict))
            }
        };
        let suspect = self.is_suspect(request);
        let answer = self
            .pool
            .submit(key, cost, self.whom(request), suspect, work)
            .map_err(|busy| CheckError::Busy(busy.to_string()))?
            .await
            .map_err(|_| CheckError::Busy("the computation was given up".to_owned()))?;
        match answer.map_err(check_error)? {
            HashAnswer::Verdict(verdict) => {
                let remembered = match verdict {
                    Verdict::Match => Some(cache::Verdict::Right(None)),
                    Verdict::Mismatch => Some(cache::Verdict::Wrong),
                    Verdict::Locked => None,
                };
                if let Some(remembered) = remembered {
                    self.cache.store(key, &request.user, remembered, Instant::now());
                }
                Ok(verdict)
            }
            HashAnswer::Keys(_) => {
                Err(CheckError::Busy("the hash threads answered something else".to_owned()))
            }
        }
    }

    /// SCRAM keys of a password that is stored in clear.
    pub(crate) async fn scram_keys(
        &self,
        request: &Request,
        hash: sasl::Hash,
        user: &str,
        password: &[u8],
    ) -> Result<sasl::ScramKeys, String> {
        let salt = hash.invented_salt(&self.secret, user);
        let key = self.keyer.key("scram", &[&salt, password]);
        let cost = creds::Cost { memory: 0, micros: 2_000 };
        let password = creds::Secret::from(password);
        let work = move |_: &mut Scratch| {
            let keys = sasl::ScramKeys::derive(hash, password.expose(), &salt, sasl::SCRAM_ITERATIONS);
            Ok(HashAnswer::Keys(keys))
        };
        let answer = self.pool.submit(key, cost, self.whom(request), self.is_suspect(request), work);
        match answer.map_err(|busy| busy.to_string())?.await {
            Ok(Ok(HashAnswer::Keys(keys))) => Ok(keys),
            _ => Err("the computation was given up".to_owned()),
        }
    }

    /// Asks a worker, with the cache around it.
    pub(crate) async fn ask_worker(
        &self,
        compiled: &Compiled,
        request: &Request,
        passdb: &str,
        question: worker::Question,
        given: &[u8],
    ) -> Checked {
        use worker::{Answer, Question};
        let user = crate::chain::local_name(request);
        let rhost = request.params.rip.map(|ip| ip.to_string()).unwrap_or_default();
        let (kind, service) = match &question {
            Question::Pam { service, .. } => ("pam", service.as_str()),
            Question::Imap { host, .. } => ("imap", host.as_str()),
            Question::Shadow(_) => ("shadow", ""),
            Question::Passwd(_) => ("passwd", ""),
        };
        let rules = [question.rules().bits()];
        let inputs: [&[u8]; 8] = [
            passdb.as_bytes(),
            kind.as_bytes(),
            &rules,
            service.as_bytes(),
            request.service.as_bytes(),
            user.as_bytes(),
            rhost.as_bytes(),
            given,
        ];
        let key = self.keyer.key("worker", &inputs);
        let from_cache = |verdict: cache::Verdict| match verdict {
            cache::Verdict::Right(name) => Checked::from(Answer::Ok(name.map(String::from))),
            cache::Verdict::Wrong => Checked::from(Answer::Mismatch),
        };
        if let Some(verdict) = self.cache.find(&key, request.arrived) {
            return from_cache(verdict);
        }
        // A session or credentials are effects: those questions are asked every time.
        let effects = matches!(&question, Question::Pam { effects, .. } if effects.any());
        let facts = worker::Facts { rhost, service: request.service.clone() };
        if let Question::Pam { service, .. } = &question {
            self.look_at_service(service);
        }
        let terms = worker::Terms { until: patience(request), suspect: self.is_suspect(request) };
        let checked = self.workers.verify(&question, &user, given, &facts, terms).await;
        let remembered = match &checked.answer {
            Answer::Ok(name) => Some(cache::Verdict::Right(name.as_deref().map(Box::from))),
            Answer::Mismatch | Answer::Refused(_) | Answer::Unknown => Some(cache::Verdict::Wrong),
            Answer::Locked | Answer::Disabled(_) | Answer::Expired(_) => None,
            Answer::Unavailable(why) => {
                // Better yesterday's answer than none; only for the very same password.
                if let Some(verdict) = self.cache.find_stale(&key, request.arrived) {
                    tracing::warn!(target: "auth", passdb, why, "answering from an expired cache entry");
                    return from_cache(verdict);
                }
                None
            }
        };
        if let Some(remembered) = remembered.filter(|_| !effects && compiled.cache.size > 0) {
            self.cache.store(key, &request.user, remembered, Instant::now());
        }
        checked
    }

    /// Looks up a system account for a request.
    pub(crate) async fn account(&self, request: &Request) -> Result<Option<worker::Account>, String> {
        self.workers.passwd(&crate::chain::local_name(request), patience(request)).await
    }

    /// Says once that PAM answers for a service without a file by the file `other`.
    fn look_at_service(&self, service: &str) {
        /// Clients of a mux may name many.
        const MOST: usize = 64;
        // A sandbox that hides the folder proves nothing.
        if system_auth::service_exists(service) || std::fs::read_dir("/etc/pam.d").is_err() {
            return;
        }
        let mut strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if strange.len() < MOST && strange.insert(service.to_owned()) {
            tracing::warn!(target: "auth", service, "there is no PAM file of this name in /etc/pam.d; PAM uses `other`; run `postern doctor`");
        }
    }

    /// Counts the end of a login, and sets the time before which a refusal is not answered. `given`: the password, where
    /// the mechanism tells it.
    pub(crate) fn settle(
        &self,
        compiled: &Compiled,
        listener: &Listener,
        request: &Request,
        outcome: &mut Outcome,
        given: Option<&[u8]>,
    ) {
        let params = &request.params;
        let counts = compiled.penalty.enabled && !params.no_penalty;
        match outcome.decision {
            Decision::Ok if counts => self.penalties.succeeded(&self.peer(request), &request.user),
            Decision::Refused(_) if request.nodelay => {}
            Decision::Refused(_) => {
                let base = compiled.failure_delay;
                let delay = if counts {
                    let mark = match given {
                        Some(given) => {
                            let key = self.keyer.key("mark", &[request.user.as_bytes(), given]);
                            key.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
                        }
                        // Proofs of one password differ each time, so nobody can tell a repetition from a guess.
                        None => u32::from_le_bytes(random()),
                    };
                    let max = compiled.penalty.max_delay.max(base);
                    self.penalties.failed(&self.peer(request), &request.user, mark, base, max, Instant::now())
                } else {
                    base
                };
                // The client must still be waiting when the answer comes.
                let latest = listener.deadline.mul_f32(0.9);
                outcome.not_before = (!delay.is_zero()).then(|| request.arrived + delay.min(latest));
            }
            Decision::Ok | Decision::Outage => {}
        }
    }

    fn peer(&self, request: &Request) -> Peer {
        Peer::of(request.params.rip, request.peer.uid)
    }

    /// Whose turn a hash takes.
    fn whom(&self, request: &Request) -> Whom {
        Whom::new(request.peer.uid, &self.peer(request), &request.user)
    }

    fn is_suspect(&self, request: &Request) -> bool {
        !request.params.no_penalty && self.penalties.is_suspect(&self.peer(request), request.arrived)
    }
}

impl std::fmt::Debug for HashPool<Hashed> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashPool")
    }
}

/// A worker must be given up before its client is: then the log says what it was waiting for.
fn patience(request: &Request) -> Option<Instant> {
    request.until.map(|until| until - until.saturating_duration_since(request.arrived) / 20)
}

fn check_error(error: creds::Error) -> CheckError {
    match error {
        creds::Error::Memory(_) | creds::Error::Random(_) => CheckError::Busy(error.to_string()),
        other => CheckError::Unusable(other.to_string()),
    }
}

/// Random bytes of the system. The kernel's generator does not fail once the system is up; a process without it
/// must not go on.
#[allow(clippy::expect_used)]
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom(2) works on every supported kernel");
    bytes
}

/// Our process id, asked for once: libc has no copy of it.
pub(crate) fn pid() -> u32 {
    static PID: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *PID.get_or_init(std::process::id)
}

/// The account we run as, asked for once: rights are given up before any socket is served.
pub(crate) fn euid() -> u32 {
    static EUID: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *EUID.get_or_init(|| nix::unistd::geteuid().as_raw())
}

/// Seconds since the epoch.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
