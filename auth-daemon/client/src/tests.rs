//! The client against servers made of `auth-wire`'s server half.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use auth_wire::login::Registry;
use auth_wire::server::{Reply, Session, Step as ServerStep};
use auth_wire::{Cookie, Kind, master, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;

/// A server whose users are `good` (any mechanism) and nobody else.
#[derive(Clone)]
struct Fake {
    kept: Arc<Mutex<Registry<String>>>,
    connections: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    released: Arc<AtomicUsize>,
    lookups: Arc<AtomicUsize>,
    /// Connections of the userdb socket to drop after their first request.
    flaky: Arc<AtomicUsize>,
}

struct Running {
    fake: Fake,
    folder: tempfile::TempDir,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn new() -> Self {
        let fake = Fake {
            kept: Arc::default(),
            connections: Arc::default(),
            cancelled: Arc::default(),
            released: Arc::default(),
            lookups: Arc::default(),
            flaky: Arc::default(),
        };
        Self { fake, folder: tempfile::tempdir().unwrap(), tasks: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self) {
        let (fake, path) = (self.fake.clone(), self.path("login"));
        self.tasks.push(listen(&path, move |stream| login_connection(fake.clone(), stream)));
        for (name, access) in [("session", master::Access::Session), ("userdb", master::Access::Userdb)] {
            let (fake, path) = (self.fake.clone(), self.path(name));
            self.tasks.push(listen(&path, move |stream| master_connection(fake.clone(), access, stream)));
        }
    }

    /// Ends everything, connections included, as a killed daemon would.
    async fn stop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        *self.fake.kept.lock().unwrap() = Registry::default();
        for name in ["login", "session", "userdb"] {
            let _ = std::fs::remove_file(self.path(name));
        }
    }

    fn config(&self) -> Config {
        Config::new(self.path("login"), self.path("session"), self.path("userdb"))
            .deadline(Duration::from_secs(5))
    }

    fn client(&self) -> AuthClient {
        AuthClient::new(self.config())
    }
}

fn listen<F>(path: &Path, serve: impl Fn(UnixStream) -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(serve(stream));
        }
    })
}

async fn login_connection(fake: Fake, mut stream: UnixStream) {
    let number = u32::try_from(fake.connections.fetch_add(1, Ordering::SeqCst)).unwrap();
    let mechanisms = ["PLAIN", "LOGIN", "SCRAM-SHA-256"].map(|name| Mechanism::known(name).unwrap());
    let config = server::Config::new(Kind::Login, 4, mechanisms.to_vec()).unwrap();
    let cookie = Cookie::from_bytes(u128::from(number + 7).to_be_bytes());
    let identity = server::Identity { spid: 1, cuid: number, cookie };
    let mut session = Session::new(Arc::new(config), &identity);
    let mut buffer = [0; 4096];
    let mut held = Vec::new();
    loop {
        while !session.output().is_empty() {
            let Ok(count) = stream.write(session.output()).await else { return };
            session.wrote(count);
        }
        let Ok(count @ 1..) = stream.read(&mut buffer).await else { break };
        session.feed(&buffer[..count]);
        let now = Instant::now();
        while let Some(step) = session.next(now) {
            match step {
                ServerStep::ClientPid(pid) => {
                    if !fake.kept.lock().unwrap().register(pid, cookie) {
                        return;
                    }
                }
                ServerStep::Start(request) => {
                    let text =
                        String::from_utf8_lossy(request.initial.as_deref().unwrap_or_default()).into_owned();
                    let user = text.split('\0').nth(1).unwrap_or_default().to_owned();
                    match (request.mechanism.name.as_str(), user.as_str()) {
                        ("PLAIN", "good") => {
                            let pid = session.client_pid().unwrap();
                            let record = format!("home=/h/{}", request.service);
                            fake.kept.lock().unwrap().keep(pid, request.ticket.id(), record, now);
                            let fields = [Field::new("service", request.service.as_str())];
                            let reply =
                                Reply::Ok { user: "good@x", fields: &fields, final_data: Some(b"v=1") };
                            session.reply(request.ticket, reply, now);
                        }
                        ("PLAIN", "silent") => {}
                        ("PLAIN", "hold") => held.push(request.ticket),
                        ("PLAIN", "flush") => {
                            // The held ones first, newest first: answers out of order.
                            for ticket in held.drain(..).rev().chain([request.ticket]) {
                                let user = format!("u{}", ticket.id());
                                session.reply(
                                    ticket,
                                    Reply::Ok { user: &user, fields: &[], final_data: None },
                                    now,
                                );
                            }
                        }
                        ("PLAIN", "vanish") => return,
                        ("PLAIN", _) => {
                            let code = (user == "broken").then_some(FailCode::TempFail);
                            let reply =
                                Reply::Fail { user: Some(&user), code, reason: Some("No."), fields: &[] };
                            session.reply(request.ticket, reply, now);
                        }
                        _ => {
                            let reply = Reply::Challenge { data: b"Username:", channel_binding: None };
                            session.reply(request.ticket, reply, now);
                        }
                    }
                }
                ServerStep::Continue { ticket, data, .. } => {
                    let reply = match &data[..] {
                        b"again" => {
                            Reply::Challenge { data: b"Password:", channel_binding: Some("tls-exporter") }
                        }
                        b"good" => Reply::Ok { user: "good@x", fields: &[], final_data: None },
                        _ => Reply::Fail { user: None, code: None, reason: None, fields: &[] },
                    };
                    session.reply(ticket, reply, now);
                }
                ServerStep::Cancel { .. } => {
                    fake.cancelled.fetch_add(1, Ordering::SeqCst);
                }
                ServerStep::Release(id) => {
                    fake.kept.lock().unwrap().forget(session.client_pid().unwrap(), id);
                    fake.released.fetch_add(1, Ordering::SeqCst);
                }
                ServerStep::Close(reason) => panic!("{reason:?}"),
                ServerStep::Refused(refused) => panic!("{refused:?}"),
            }
        }
    }
    if let Some(pid) = session.client_pid() {
        fake.kept.lock().unwrap().unregister(pid, &cookie);
    }
}

async fn master_connection(fake: Fake, access: master::Access, mut stream: UnixStream) {
    let mut session = master::Session::new(Arc::new(master::Config::new(access, 1)));
    let mut buffer = [0; 4096];
    loop {
        while !session.output().is_empty() {
            let Ok(count) = stream.write(session.output()).await else { return };
            session.wrote(count);
        }
        let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
        session.feed(&buffer[..count]);
        while let Some(step) = session.next() {
            match step {
                master::Step::User(lookup) => {
                    fake.lookups.fetch_add(1, Ordering::SeqCst);
                    if fake
                        .flaky
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        return;
                    }
                    match lookup.user.as_str() {
                        "good" => session.user(lookup.ticket, "good@x", &[Field::new("uid", "5")]),
                        "broken" => session.fail(lookup.ticket, Some("oops")),
                        _ => session.not_found(lookup.ticket),
                    };
                }
                master::Step::List(list) => {
                    session.list_item(list.ticket, "a@x");
                    session.list_item(list.ticket, "b@x");
                    session.list_done(list.ticket, list.service.as_deref() != Some("broken"));
                }
                master::Step::Request(login) => {
                    assert_eq!(login.session_pid, Some(std::process::id()));
                    let now = Instant::now();
                    let found = fake.kept.lock().unwrap().redeem(
                        login.client_pid,
                        login.client_id,
                        &login.cookie,
                        now,
                    );
                    match found {
                        Ok(home) => {
                            let (name, value) = home.split_once('=').unwrap();
                            let fields = [Field::new(name.to_owned(), value), Field::flag("anonymous")];
                            session.user(login.ticket, "good@x", &fields)
                        }
                        Err(_) => session.fail(login.ticket, None),
                    };
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn plain(user: &str) -> AuthRequest {
    AuthRequest::plain("imap", user.as_bytes(), b"pw")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test]
async fn logins_and_lookups() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    let names: Vec<_> = client.mechanisms().await.unwrap().iter().map(|mech| mech.name.to_string()).collect();
    assert_eq!(names, ["PLAIN", "LOGIN", "SCRAM-SHA-256"]);

    let Step::Ok(login) = client.authenticate(plain("good")).await.unwrap() else { panic!() };
    assert_eq!((login.user.as_str(), login.field("service")), ("good@x", Some("imap")));
    assert_eq!(login.final_data.as_deref(), Some(b"v=1".as_slice()));
    let record = client.session(&login).await.unwrap();
    assert_eq!((record.user.as_str(), record.home), ("good@x", Some(PathBuf::from("/h/imap"))));
    assert!(matches!(client.session(&login).await, Err(Error::Failed(None))), "fetched once");

    let Step::Failed(failure) = client.authenticate(plain("bad")).await.unwrap() else { panic!() };
    assert_eq!((failure.is_temporary(), failure.reason.as_deref()), (false, Some("No.")));
    let Step::Failed(failure) = client.authenticate(plain("broken")).await.unwrap() else { panic!() };
    assert!(failure.is_temporary());

    let record = client.user("good", "smtp").await.unwrap().unwrap();
    assert_eq!((record.user.as_str(), record.uid), ("good@x", Some(5)));
    assert_eq!(client.user("nobody", "smtp").await.unwrap(), None);
    assert!(matches!(client.user("broken", "smtp").await, Err(Error::Failed(Some(why))) if why == "oops"));
    assert_eq!(client.users(None, "x").await.unwrap(), ["a@x", "b@x"]);
    assert!(client.users(None, "broken").await.is_err());
    assert_eq!(server.fake.connections.load(Ordering::SeqCst), 1, "one connection serves everything");

    let long = AuthRequest::plain("imap", &[b'x'; 20_000], b"");
    assert!(matches!(client.authenticate(long).await, Err(Error::Request(_))));
    assert!(matches!(client.authenticate(AuthRequest::new("NO GOOD", "x")).await, Err(Error::Request(_))));
}

#[tokio::test]
async fn exchanges() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    let Step::Challenge(exchange, data) =
        client.authenticate(AuthRequest::new("login", "imap")).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(data, b"Username:");
    let Step::Challenge(exchange, data) = exchange.respond(b"again").await.unwrap() else { panic!() };
    assert_eq!(
        (data.as_slice(), exchange.channel_binding()),
        (b"Password:".as_slice(), Some("tls-exporter"))
    );
    assert!(matches!(exchange.respond_bound(b"good", b"cb").await.unwrap(), Step::Ok(_)));

    let Step::Challenge(exchange, _) = client.authenticate(AuthRequest::new("LOGIN", "imap")).await.unwrap()
    else {
        panic!()
    };
    exchange.cancel();
    let cancelled = Arc::clone(&server.fake.cancelled);
    until("cancel reaches the server", || cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn many_in_flight_on_one_connection() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let client = client.clone();
        tasks.spawn(async move { client.authenticate(plain("hold")).await });
    }
    // The server answers when it has them all; flush until it does.
    let mut users = std::collections::HashSet::new();
    while users.len() < 300 {
        client.authenticate(plain("flush")).await.unwrap();
        while let Some(done) = tasks.try_join_next() {
            let Step::Ok(login) = done.unwrap().unwrap() else { panic!() };
            assert!(users.insert(login.user));
        }
    }
    assert_eq!(server.fake.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn unfetched_logins_are_released() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    let Step::Ok(login) = client.authenticate(plain("good")).await.unwrap() else { panic!() };
    assert_eq!(server.fake.kept.lock().unwrap().len(), 1);
    drop(login);
    let kept = Arc::clone(&server.fake.kept);
    until("release reaches the server", || kept.lock().unwrap().is_empty()).await;
}

#[tokio::test]
async fn abandoned_requests_are_cancelled() {
    let mut server = Running::new();
    server.start();
    let client = AuthClient::new(server.config().deadline(Duration::from_millis(50)));
    assert!(matches!(client.authenticate(plain("silent")).await, Err(Error::Timeout)));
    let cancelled = Arc::clone(&server.fake.cancelled);
    until("cancel reaches the server", || cancelled.load(Ordering::SeqCst) == 1).await;
    assert!(matches!(client.authenticate(plain("good")).await, Ok(Step::Ok(_))));
}

#[tokio::test]
async fn a_restart_is_survived() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    let Step::Challenge(exchange, _) = client.authenticate(AuthRequest::new("LOGIN", "imap")).await.unwrap()
    else {
        panic!()
    };
    let pending = tokio::spawn({
        let client = client.clone();
        async move { client.authenticate(plain("silent")).await }
    });
    tokio::task::yield_now().await;
    assert!(client.authenticate(plain("good")).await.is_ok());
    server.stop().await;
    // Sent and lost: temporary, and at once.
    let lost = pending.await.unwrap().unwrap_err();
    assert!(matches!(lost, Error::Unavailable(_)) && lost.is_temporary());
    assert!(matches!(exchange.respond(b"x").await, Err(Error::Unavailable(_))));
    // Not sent yet: waits for the server to come back.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { (client.authenticate(plain("good")).await, client.user("good", "smtp").await) }
    });
    until("an attempt that fails", || client.0.login.is_unreachable()).await;
    server.start();
    let (login, user) = waiting.await.unwrap();
    assert!(matches!(login, Ok(Step::Ok(_))) && user.unwrap().is_some());
    let Step::Ok(login) = client.authenticate(plain("good")).await.unwrap() else { panic!() };
    assert!(client.session(&login).await.is_ok());
}

#[tokio::test]
async fn lost_lookups_are_asked_again_lost_logins_are_not() {
    let mut server = Running::new();
    server.start();
    let client = server.client();
    server.fake.flaky.store(3, Ordering::SeqCst);
    assert!(client.user("good", "smtp").await.unwrap().is_some());
    assert_eq!(server.fake.lookups.load(Ordering::SeqCst), 4);
    assert!(matches!(client.authenticate(plain("vanish")).await, Err(Error::Unavailable(_))));
    assert!(
        matches!(client.authenticate(plain("good")).await, Ok(Step::Ok(_))),
        "a new connection, a new CPID"
    );
    assert_eq!(server.fake.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn absent_servers_are_named() {
    let server = Running::new();
    let client = AuthClient::new(server.config().deadline(Duration::from_millis(80)));
    let Err(Error::Unavailable(why)) = client.mechanisms().await else { panic!() };
    assert!(why.contains("login"), "{why}");
    let Err(error) = client.user("good", "smtp").await else { panic!() };
    assert!(error.is_temporary());
    // A socket of the wrong kind.
    let mut server = server;
    server.start();
    let mut config = Config::new(server.path("userdb"), server.path("session"), server.path("login"));
    config.deadline = Duration::from_millis(80);
    let client = AuthClient::new(config);
    assert!(client.mechanisms().await.is_err());
    assert!(client.user("good", "smtp").await.is_err());
}
