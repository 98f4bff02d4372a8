//! The broker of system users' mailboxes: root, because it starts processes with the users' ids.
//!
//! Asked:   by the fronts only, on a unix socket, told by the kernel who they are. A request is one record
//!          ([`boot::courier`]); the connection it came on is the byte stream that the mailbox process gets.
//! Session: the front says which login it means; the authentication daemon, asked with the login's cookie, says whose it is.
//!          The login must be of the very process that asks. Each login opens one session.
//! Mail:    the front says a name; the authentication daemon says whether there is such a user.
//! Ids:     from the name service, looked up here. A uid that only a user database gives counts within
//!          `first_valid_uid` … `last_valid_uid`; root never.
//! Trust:   fronts may be taken over: they say which login or user they mean, and are believed about nothing that
//!          follows from it.
//! Never:   take an id or a place from a front; read a byte of what is passed on; open a file; talk to the network.

mod processes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use auth_client::{AuthClient, Config as AuthConfig, Cookie, UserRecord};
use boot::courier::{self, Answer, Ask, Kind, Refusal};
use boot::{Control, Drain, Event, Ids, Sockets};
use conf::BrokerSlice;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::processes::Processes;
use crate::account;
use crate::delivery;
use crate::login::Welcome;
use crate::mailbox::Handed;

/// Name of the broker's socket.
pub const SOCKET: &str = "broker";
/// Time for a front to say what it wants, and for the name service to answer.
const ASK: Duration = Duration::from_secs(5);
const NAMES: Duration = Duration::from_secs(20);
/// Requests of one front at a time, and those of them that are looked up: neither can keep the other one out. After an outage
/// everybody logs in again at once, so the others wait.
const REQUESTS: usize = 4096;
const LOOK_UPS: usize = 128;
/// How long they wait; the fronts do not wait longer either.
const TURN: Duration = Duration::from_secs(25);

/// The daemon: called in its own process by the supervisor.
///
/// # Errors
/// What keeps it from starting: an unreadable configuration slice, a socket.
pub fn main(start: boot::Start) -> anyhow::Result<()> {
    let slice = BrokerSlice::from_json(&start.slice).context("reading the configuration slice")?;
    // One thread: the processes it starts live as long as the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2 * LOOK_UPS)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(run(slice, start.sockets, start.control));
    // A name service that does not answer must not keep the process.
    runtime.shutdown_background();
    result
}

/// What a reload replaces.
struct Live {
    slice: BrokerSlice,
    places: account::Places,
    auth: AuthClient,
}

impl Live {
    fn new(slice: BrokerSlice) -> Self {
        let places = account::Places {
            location: slice.mail.location.clone(),
            home: slice.mail.home.clone(),
            state_dir: slice.state_dir.clone(),
            default_domain: slice.default_domain.clone(),
            folders: Vec::new(),
            separator: slice.imap.separator.letter(),
        };
        let sockets = &slice.auth;
        let auth = AuthClient::new(AuthConfig::new(&sockets.login, &sockets.session, &sockets.userdb));
        Self { slice, places, auth }
    }
}

struct Broker {
    live: ArcSwap<Live>,
    processes: Processes,
    sessions: Places,
    deliveries: Places,
}

/// What one front may have at a time.
struct Places {
    requests: Semaphore,
    look_ups: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self { requests: Semaphore::new(REQUESTS), look_ups: Semaphore::new(LOOK_UPS) }
    }
}

/// Whose a mailbox is, and where.
#[derive(Debug, PartialEq)]
struct Owner {
    ids: Ids,
    root: PathBuf,
}

async fn run(slice: BrokerSlice, mut sockets: Sockets, control: boot::ControlFd) -> anyhow::Result<()> {
    let mut control = Control::new(control).context("joining the supervisor")?;
    let drain = Drain::new();
    let live = Arc::new(Live::new(slice));
    let broker = Arc::new(Broker {
        processes: Processes::new(&live.slice, drain.token(), control.gauges()),
        live: ArcSwap::new(live),
        sessions: Places::default(),
        deliveries: Places::default(),
    });
    let mut listeners = listen(&broker, &mut sockets)?;
    control.ready().await;
    loop {
        match control.event().await {
            Event::Reload { slice, mut sockets } => {
                let reloaded =
                    BrokerSlice::from_json(&slice).map_err(anyhow::Error::from).and_then(|slice| {
                        let fresh = listen(&broker, &mut sockets)?;
                        broker.processes.reload(&slice);
                        broker.live.store(Arc::new(Live::new(slice)));
                        Ok(fresh)
                    });
                let answer = reloaded.map(|fresh| {
                    std::mem::replace(&mut listeners, fresh).iter().for_each(JoinHandle::abort);
                });
                control.reloaded(answer.map_err(|error| format!("{error:#}"))).await;
            }
            Event::Stop { grace } => {
                listeners.iter().for_each(JoinHandle::abort);
                drop(broker);
                if !drain.finish(grace).await {
                    tracing::warn!("some mailboxes were still open at the end of the grace time");
                }
                return Ok(());
            }
            Event::Lost => return Ok(()),
            Event::Ask(question) => question.refuse("the broker has no such command"),
            _ => {}
        }
    }
}

fn listen(broker: &Arc<Broker>, sockets: &mut Sockets) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut tasks = Vec::new();
    for socket in sockets.take_unix(SOCKET) {
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(socket).context("listening for the fronts")?;
        let broker = Arc::clone(broker);
        tasks.push(tokio::spawn(async move {
            loop {
                let stream = boot::accept_unix(&listener).await;
                let broker = Arc::clone(&broker);
                tokio::spawn(async move { broker.serve(stream).await });
            }
        }));
    }
    Ok(tasks)
}

impl Broker {
    async fn serve(&self, mut stream: UnixStream) {
        let live = self.live.load_full();
        let (pid, uid) = match stream.peer_cred() {
            Ok(peer) => (peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0), peer.uid()),
            Err(error) => return tracing::warn!(%error, "a peer that the kernel does not name"),
        };
        let may_open = uid == live.slice.sessions_from;
        let may_deliver = uid == live.slice.deliveries_from;
        let places = match (may_open, may_deliver) {
            (true, _) => &self.sessions,
            (false, true) => &self.deliveries,
            (false, false) => {
                return tracing::warn!(
                    pid,
                    uid,
                    "refused a process on the broker's socket: only the SMTP and IMAP servers may"
                );
            }
        };
        let Ok(_place) = places.requests.try_acquire() else {
            return tracing::warn!(pid, uid, "too many requests to the broker at a time");
        };
        let ask = match tokio::time::timeout(ASK, courier::read(&mut stream)).await {
            Ok(Ok(Some((Kind::Ask, body)))) => courier::decode::<Ask>(&body).map_err(|bad| bad.to_string()),
            Ok(Ok(Some((kind, _)))) => Err(format!("a record of kind {kind:?}")),
            Ok(Ok(None)) => return,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("nothing was asked in time".to_owned()),
        };
        let turn = tokio::time::timeout(TURN, places.look_ups.acquire()).await;
        let found = match ask {
            _ if turn.is_err() => Err(Refusal::temporary("too many requests are being looked up")),
            Ok(Ask::Session(ticket, session)) if may_open => {
                let found = confirm(&live, &ticket, pid).await;
                found.map(|record| (Handed::Session(record.user.clone(), session), record))
            }
            Ok(Ask::Delivery(asked)) if may_deliver => {
                let found = look_up(&live, &asked).await;
                found.map(|record| (Handed::Delivery(record.user.clone(), asked.session), record))
            }
            Ok(_) => Err(Refusal::denied("this server may not ask for that")),
            Err(bad) => Err(Refusal::denied(format!("not a request: {bad}"))),
        };
        let handed = match found {
            Ok((handed, record)) => self.hand_over(&live, record, handed, stream).await,
            Err(refusal) => Err((refusal, stream)),
        };
        drop(turn);
        if let Err((refusal, mut stream)) = handed {
            tracing::warn!(pid, uid, why = %refusal, "refused a mailbox");
            // Whoever asked may be gone.
            let _ = delivery::answer(&mut stream, &Answer::Refused(refusal)).await;
        }
    }

    async fn hand_over(
        &self,
        live: &Arc<Live>,
        record: UserRecord,
        handed: Handed,
        stream: UnixStream,
    ) -> Result<(), (Refusal, UnixStream)> {
        let settings = Arc::clone(live);
        let named = tokio::task::spawn_blocking(move || owner(&settings, &record));
        let owner = match tokio::time::timeout(NAMES, named).await {
            Ok(Ok(Ok(owner))) => owner,
            Ok(Ok(Err(refusal))) => return Err((refusal, stream)),
            Ok(Err(_)) => return Err((Refusal::temporary("a look-up ended early"), stream)),
            Err(_) => return Err((Refusal::temporary("the name service does not answer"), stream)),
        };
        self.processes.hand(owner.ids, owner.root, handed, stream).await
    }
}

/// Whose login it is, if it is one of the process that asks.
async fn confirm(live: &Live, ticket: &courier::Ticket, pid: u32) -> Result<UserRecord, Refusal> {
    if AuthClient::pid_of(ticket.client_pid) != pid {
        return Err(Refusal::denied("the login is another process's"));
    }
    let cookie = Cookie::parse(ticket.cookie.as_bytes()).ok_or_else(|| Refusal::denied("not a cookie"))?;
    match live.auth.session_of(ticket.client_pid, ticket.id, cookie).await {
        Ok(Some(record)) => Ok(record),
        Ok(None) => Err(Refusal::denied("logged in, but no user database knows the user")),
        Err(error) => Err(Refusal::temporary(format!("the login is not confirmed: {error}"))),
    }
}

async fn look_up(live: &Live, asked: &courier::Delivery) -> Result<UserRecord, Refusal> {
    match live.auth.user(&asked.recipient, &asked.service).await {
        Ok(Some(record)) => Ok(record),
        Ok(None) => Err(Refusal::denied("no such user")),
        Err(error) => Err(Refusal::temporary(error.to_string())),
    }
}

/// Ids and place of a user's mail. Blocks on the name service.
fn owner(live: &Live, record: &UserRecord) -> Result<Owner, Refusal> {
    let service = |error: system_auth::Error| Refusal::temporary(format!("name service: {error}"));
    let account = match system_name(&live.slice.default_domain, record) {
        Some(name) => system_auth::account(name).map_err(service)?,
        None => None,
    };
    let account = account.filter(|account| record.uid.is_none_or(|uid| uid == account.uid));
    let ids = match (&account, record.uid, record.gid) {
        (Some(account), _, _) => {
            let groups = system_auth::groups_of(&account.name, account.gid).map_err(service)?;
            Ids { uid: account.uid, gid: account.gid, groups }
        }
        (None, Some(uid), Some(gid)) => Ids { uid, gid, groups: vec![gid] },
        (None, _, _) => return Err(Refusal::denied(format!("{}: no such account", record.user))),
    };
    permitted(&live.slice.mail, &ids).map_err(|why| Refusal::denied(format!("{}: {why}", record.user)))?;
    let home = record.home.clone().or_else(|| account.map(|account| account.home));
    let who = Welcome { user: record.user.clone(), home, mail: record.mail.clone(), final_data: None };
    let root =
        live.places.root(&who).map_err(|error| Refusal::temporary(format!("{}: {error}", who.user)))?;
    // Two spellings of one place are one mailbox.
    Ok(Owner { ids, root: root.components().collect() })
}

/// The name of the account: users of other domains have none.
fn system_name<'a>(default_domain: &str, record: &'a UserRecord) -> Option<&'a str> {
    if let Some(name) = record.field("system_groups_user").filter(|name| !name.is_empty()) {
        return Some(name);
    }
    match record.user.rsplit_once('@') {
        None => Some(&record.user),
        Some((local, domain)) => domain.eq_ignore_ascii_case(default_domain).then_some(local),
    }
}

/// Whether mail may be these ids'.
fn permitted(mail: &conf::Mail, ids: &Ids) -> Result<(), String> {
    let (first, last) = (mail.first_valid_uid.max(1), mail.last_valid_uid);
    if ids.uid < first || (last != 0 && ids.uid > last) {
        return Err(format!("uid {} may have no mail (mail.first_valid_uid, mail.last_valid_uid)", ids.uid));
    }
    if ids.gid == 0 {
        return Err("root's group may have no mail".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(change: impl FnOnce(&mut BrokerSlice)) -> Live {
        let settings = conf::embedded_default(&conf::EmbeddedOptions {
            state_dir: "/state".into(),
            hostname: "mail.test".into(),
            ..conf::EmbeddedOptions::default()
        });
        let mut slice = settings.broker_slice(1, 2);
        slice.default_domain = "mail.test".into();
        (slice.mail.first_valid_uid, slice.mail.last_valid_uid) = (500, 60_000);
        change(&mut slice);
        Live::new(slice)
    }

    fn record(user: &str, fields: &[(&str, &str)]) -> UserRecord {
        let mut record = UserRecord::default();
        record.user = user.to_owned();
        record.fields =
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        record.uid = record.field("uid").and_then(|value| value.parse().ok());
        record.gid = record.field("gid").and_then(|value| value.parse().ok());
        record.home = record.field("home").map(PathBuf::from);
        record
    }

    #[test]
    fn whose_mail_and_where() {
        let live = live(|_| {});
        let virtual_user = [("uid", "5001"), ("gid", "5002"), ("home", "/srv/bob/.")];
        let found = owner(&live, &record("bob@other.test", &virtual_user)).unwrap();
        assert_eq!(found.ids, Ids { uid: 5001, gid: 5002, groups: vec![5002] });
        assert_eq!(found.root, PathBuf::from("/srv/bob/Maildir"));
        for (user, fields, why) in [
            ("root@mail.test", &[("home", "/root")][..], "uid 0 may have no mail"),
            ("root@mail.test", &[("uid", "0"), ("gid", "0"), ("home", "/root")], "uid 0"),
            ("x@other.test", &[("uid", "0"), ("gid", "5"), ("home", "/x")], "uid 0"),
            ("x@other.test", &[("uid", "499"), ("gid", "5"), ("home", "/x")], "uid 499"),
            ("x@other.test", &[("uid", "60001"), ("gid", "5"), ("home", "/x")], "uid 60001"),
            ("x@other.test", &[("uid", "5001"), ("gid", "0"), ("home", "/x")], "root's group"),
            ("x@other.test", &[("uid", "5001"), ("home", "/x")], "no such account"),
            ("x@other.test", &[("uid", "-1"), ("gid", "5"), ("home", "/x")], "no such account"),
            // Low ids of the system, by name alone.
            ("daemon@mail.test", &[("home", "/x")], "may have no mail"),
            ("x@other.test", &[("system_groups_user", "daemon"), ("home", "/x")], "may have no mail"),
            // The name of an account here, at another domain.
            ("daemon@other.test", &[("home", "/x")], "no such account"),
        ] {
            let refusal = owner(&live, &record(user, fields)).unwrap_err();
            assert_eq!(refusal.why, courier::Why::Denied, "{user} {fields:?}");
            assert!(refusal.text.contains(why), "{user}: {}", refusal.text);
        }
        let placeless = record("x@other.test", &[("uid", "5001"), ("gid", "5")]);
        assert!(owner(&live, &placeless).unwrap().root.starts_with("/state/mail"));
    }

    #[test]
    fn limits_of_uids() {
        let mut mail = conf::Mail { first_valid_uid: 0, last_valid_uid: 0, ..conf::Mail::default() };
        let ids = |uid| Ids { uid, gid: 5, groups: vec![] };
        assert!(permitted(&mail, &ids(0)).is_err());
        assert!(permitted(&mail, &ids(u32::MAX - 2)).is_ok());
        (mail.first_valid_uid, mail.last_valid_uid) = (1000, 2000);
        assert_eq!(
            [999, 1000, 2000, 2001].map(|uid| permitted(&mail, &ids(uid)).is_ok()),
            [false, true, true, false]
        );
    }
}
