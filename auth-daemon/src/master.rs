//! One connection of the master protocol: USER, PASS, LIST, REQUEST and cache control.
//!
//! Trust: the peer's ids come from the kernel; what a socket allows is decided by its kind, its mode and those ids.
//! Never: hand out a login to another process than the one it was made for, or an entry to a stranger on a world-writable
//!        socket.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_wire::Field;
use auth_wire::master::{CacheStatus, ListRequest, LoginRequest, Lookup, Session, Step};
use boot::DrainToken;
use hmac::{Hmac, KeyInit as _, Mac as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::chain::{self, Ask, Said};
use crate::config::{Compiled, Listener, UserdbDriver};
use crate::engine::{Engine, Kept};
use crate::outcome::client_fields;
use crate::request::{PeerCredentials, Request};
use crate::userdb::{self, Found};
use crate::username;

/// Longest time a peer may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Text of a failure without a reason that may be told.
const TEMPORARY: &str = "Temporary failure";

/// Serves a connection until it ends.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    mut stream: UnixStream,
    peer: PeerCredentials,
    mut drain: DrainToken,
) -> io::Result<()> {
    let Some(wire) = listener.master.clone() else { return Ok(()) };
    let asker = Asker { engine, listener, peer };
    let mut session = Session::new(wire);
    let mut jobs: JoinSet<Job> = JoinSet::new();
    let mut buffer = vec![0; 4096];
    let (mut open, mut draining) = (true, false);
    loop {
        while let Some(step) = session.next() {
            match asker.begin(step, &mut session) {
                Begun::Job(job) => {
                    jobs.spawn(job);
                }
                Begun::Nothing => {}
                Begun::Close => return Ok(()),
            }
        }
        flush(&mut session, &mut stream).await?;
        if jobs.is_empty() && !open {
            return Ok(());
        }
        tokio::select! {
            read = stream.read(&mut buffer), if open && !session.is_listing() => match read? {
                0 => open = false,
                count => session.feed(buffer.get(..count).unwrap_or_default()),
            },
            Some(done) = jobs.join_next(), if !jobs.is_empty() => {
                if let Ok(job) = done {
                    deliver(job, &mut session, &mut stream).await?;
                }
            }
            () = drain.draining(), if !draining => {
                draining = true;
                open = false;
            }
        }
    }
}

/// A finished job.
struct Job {
    ticket: auth_wire::Ticket,
    result: Done,
}

enum Done {
    User(String, Vec<Field>),
    Pass(String, Vec<Field>),
    NotFound,
    Fail(Option<String>),
    List(Option<Vec<String>>),
}

type JobFuture = std::pin::Pin<Box<dyn Future<Output = Job> + Send>>;

enum Begun {
    Job(JobFuture),
    Nothing,
    Close,
}

/// Writes everything; a peer that does not read is given up.
async fn flush(session: &mut Session, stream: &mut UnixStream) -> io::Result<()> {
    while !session.output().is_empty() {
        let count = tokio::time::timeout(WRITE_TIMEOUT, stream.write(session.output())).await??;
        session.wrote(count);
    }
    Ok(())
}

async fn deliver(job: Job, session: &mut Session, stream: &mut UnixStream) -> io::Result<()> {
    let Job { ticket, result } = job;
    match result {
        Done::User(user, fields) => drop(session.user(ticket, &user, &fields)),
        Done::Pass(user, fields) => drop(session.pass(ticket, &user, &fields)),
        Done::NotFound => drop(session.not_found(ticket)),
        Done::Fail(reason) => drop(session.fail(ticket, reason.as_deref())),
        Done::List(None) => drop(session.list_done(ticket, false)),
        Done::List(Some(users)) => {
            for user in users {
                session.list_item(ticket, &user);
                if session.output().len() > 32 * 1024 {
                    flush(session, stream).await?;
                }
            }
            session.list_done(ticket, true);
        }
    }
    Ok(())
}

/// Who asks, through which socket.
#[derive(Clone)]
struct Asker {
    engine: Arc<Engine>,
    listener: Arc<Listener>,
    peer: PeerCredentials,
}

impl Asker {
    fn begin(&self, step: Step, session: &mut Session) -> Begun {
        let asker = self.clone();
        let compiled = self.engine.config();
        Begun::Job(match step {
            Step::User(lookup) => Box::pin(async move {
                Job { ticket: lookup.ticket, result: asker.user(&compiled, *lookup).await }
            }),
            Step::Pass(lookup) => Box::pin(async move {
                Job { ticket: lookup.ticket, result: asker.pass(&compiled, *lookup).await }
            }),
            Step::List(list) => Box::pin(async move {
                Job { ticket: list.ticket, result: Done::List(asker.list(&compiled, list).await) }
            }),
            Step::Request(login) => {
                // Redeemed in the order of arrival, whatever happens after.
                let kept = self.redeem(&login);
                Box::pin(async move {
                    let result = match kept {
                        Ok(kept) => asker.login(&compiled, &login, kept).await,
                        Err(why) => {
                            tracing::warn!(target: "auth", client_pid = login.client_pid, id = login.client_id,
                                peer = asker.peer.pid, why, "REQUEST refused");
                            Done::Fail(None)
                        }
                    };
                    Job { ticket: login.ticket, result }
                })
            }
            Step::CacheFlush { ticket, users } => {
                let users: Vec<String> = users
                    .iter()
                    .map(|user| compiled.rules.canonical(user).unwrap_or_else(|_| user.clone()))
                    .collect();
                session.flushed(ticket, self.engine.cache.flush(&users) as u64);
                return Begun::Nothing;
            }
            Step::CacheStatus { ticket, reset } => {
                session.cache_status(ticket, &cache_status(&self.engine));
                if reset {
                    self.engine.cache.reset_stats();
                }
                return Begun::Nothing;
            }
            Step::Cancel(_) => return Begun::Nothing,
            Step::Close(reason) => {
                tracing::debug!(listener = self.listener.name, ?reason, "master client broke the protocol");
                return Begun::Close;
            }
        })
    }

    /// The request of a look-up, if its name is one.
    fn named(&self, compiled: &Compiled, lookup: Lookup) -> Option<Request> {
        let now = Instant::now();
        let mut request = Request::new(lookup.params, lookup.service, self.peer, now);
        request.until = Some(now + self.listener.deadline);
        userdb::named(compiled, request, &lookup.user).ok()
    }

    async fn user(&self, compiled: &Compiled, lookup: Lookup) -> Done {
        let Some(mut request) = self.named(compiled, lookup) else { return Done::NotFound };
        match userdb::walk(&self.engine, compiled, &self.listener, &mut request, false).await {
            Found::Yes => {
                let own = request.userdb.value("uid").and_then(|uid| uid.parse().ok()) == Some(self.peer.uid);
                if self.listener.is_restricted(self.peer.uid, self.peer.gid) && !own {
                    tracing::warn!(target: "auth", user = request.user, uid = self.peer.uid,
                        "look-up by another user on a world-writable socket refused");
                    return Done::Fail(Some("Not permitted for this user".to_owned()));
                }
                Done::User(request.user.clone(), userdb_fields(&request))
            }
            Found::No => Done::NotFound,
            Found::Unavailable(why) => Done::Fail(Some(why)),
        }
    }

    async fn pass(&self, compiled: &Compiled, lookup: Lookup) -> Done {
        if self.listener.is_restricted(self.peer.uid, self.peer.gid) {
            return Done::Fail(Some("Not permitted for this user".to_owned()));
        }
        let Some(mut request) = self.named(compiled, lookup) else { return Done::NotFound };
        let chain = &self.listener.chain;
        let walk = chain::walk(&self.engine, compiled, chain, &mut request, Ask::Existence, false).await;
        match walk.said {
            Said::Ok => {
                let mut fields = client_fields(&request, false, true);
                // Who asks knows what was asked for.
                fields.retain(|field| field.name != "original_user");
                Done::Pass(request.user.clone(), fields)
            }
            Said::Internal(_) | Said::Next => Done::Fail(Some(TEMPORARY.to_owned())),
            _ if walk.no_lookups => {
                Done::Fail(Some("Configured passdbs don't support credentials lookups".to_owned()))
            }
            _ => Done::NotFound,
        }
    }

    /// All users of the user databases that can be listed.
    async fn list(&self, compiled: &Arc<Compiled>, list: ListRequest) -> Option<Vec<String>> {
        if self.listener.is_restricted(self.peer.uid, self.peer.gid) {
            return None;
        }
        let mut all: Option<Vec<String>> = None;
        for (at, userdb) in compiled.userdbs.iter().enumerate() {
            let names = match &userdb.driver {
                UserdbDriver::PasswdFile { .. } => read_names(Arc::clone(compiled), at).await,
                UserdbDriver::Passwd => self.engine.workers.accounts(compiled.first_uid).await.map(Some),
                UserdbDriver::Static { .. } | UserdbDriver::Prefetch => Ok(None),
            };
            match names {
                Ok(Some(names)) => all.get_or_insert_default().extend(names),
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(target: "auth", userdb = userdb.name, why, "users cannot be listed");
                    return None;
                }
            }
        }
        let mut seen = HashSet::new();
        let canonical = |name: String| compiled.rules.canonical(&name).ok();
        let fits = |user: &String| list.mask.as_deref().is_none_or(|mask| username::wildcard(mask, user));
        let names = all?.into_iter().filter_map(canonical).filter(fits);
        Some(names.filter(|name| seen.insert(name.clone())).collect())
    }

    fn redeem(&self, login: &LoginRequest) -> Result<Kept, String> {
        if let Some(pid) = login.session_pid
            && i64::from(pid) != i64::from(self.peer.pid.unwrap_or(-1))
        {
            return Err("session_pid is not the process that asks".to_owned());
        }
        self.engine
            .logins()
            .redeem(login.client_pid, login.client_id, &login.cookie, Instant::now())
            .map_err(|refused| refused.to_string())
    }

    async fn login(&self, compiled: &Compiled, login: &LoginRequest, kept: Kept) -> Done {
        let Kept { mut request, anonymous } = kept;
        request.until = Some(Instant::now() + self.listener.deadline);
        // Dovecot's order: what the passdb prefetched, then the user databases.
        let user = request.user.clone();
        match userdb::walk(&self.engine, compiled, &self.listener, &mut request, true).await {
            Found::Yes => {}
            Found::No => {
                tracing::warn!(target: "auth", user, "logged in, but no user database knows the user");
                return Done::NotFound;
            }
            Found::Unavailable(why) => return Done::Fail(Some(why)),
        }
        let mut fields = userdb_fields(&request);
        if let Some(master) = &request.master {
            fields.push(Field::new("master_user", master.clone()));
        }
        fields.push(Field::new("auth_mech", request.mechanism_name()));
        if anonymous {
            fields.push(Field::flag("anonymous"));
        }
        if let (Some(pid), true) = (login.session_pid, login.request_auth_token) {
            fields.push(Field::new("auth_token", token(&self.engine, &request, pid)));
        }
        // Who really authenticated; without a master user, under the name as typed.
        let auth_user = request.master.as_ref().unwrap_or(&request.original);
        if !anonymous {
            fields.push(Field::new("auth_user", auth_user.clone()));
        }
        Done::User(request.user.clone(), fields)
    }
}

/// The names in a passwd-file. A family of files cannot be listed.
async fn read_names(compiled: Arc<Compiled>, at: usize) -> Result<Option<Vec<String>>, String> {
    match compiled.userdbs.get(at).map(|userdb| &userdb.driver) {
        Some(UserdbDriver::PasswdFile { source, .. }) => source.list(Instant::now()).await,
        _ => Ok(None),
    }
}

fn userdb_fields(request: &Request) -> Vec<Field> {
    // uid, gid and home first, as Dovecot sends them.
    let order =
        |name: &str| ["system_groups_user", "uid", "gid", "home", "mail"].iter().position(|n| *n == name);
    let mut fields: Vec<(usize, Field)> = request
        .userdb
        .iter()
        .filter(|(name, _)| !matches!(*name, "user" | "username" | "domain" | "userdb_import" | "password"))
        .map(|(name, value)| {
            let field = Field { name: name.to_owned().into(), value: value.map(str::to_owned) };
            (order(name).unwrap_or(usize::MAX), field)
        })
        .collect();
    fields.sort_by_key(|(order, _)| *order);
    fields.into_iter().map(|(_, field)| field).collect()
}

/// Dovecot's token: HMAC-SHA1 under the user name over session process, session id, service and the secret.
#[allow(clippy::expect_used)]
fn token(engine: &Engine, request: &Request, session_pid: u32) -> String {
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(request.user.as_bytes())
        .expect("RFC 2104 §2: HMAC takes keys of any length");
    mac.update(session_pid.to_string().as_bytes());
    mac.update(request.params.session.as_deref().unwrap_or_default().as_bytes());
    mac.update(request.service.as_bytes());
    mac.update(&engine.secret);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cache_status(engine: &Engine) -> CacheStatus {
    let stats = engine.cache.stats();
    let mut status = CacheStatus::default();
    status.hits = stats.hits;
    status.misses = stats.misses;
    status.pos_entries = stats.positive;
    status.neg_entries = stats.negative;
    status.pos_size = stats.positive_bytes;
    status.neg_size = stats.negative_bytes;
    status.used_size = stats.positive_bytes + stats.negative_bytes;
    status.max_size = stats.max_bytes;
    status
}
