//! The login socket: AUTH, challenges, kept logins.
//!
//! Trust: the server is believed about users; answers to ids nobody asked for are dropped.
//! Never: send an answer or a CANCEL on another connection than the one its request was made on.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use auth_wire::client::{Client, Event, Server};
use auth_wire::{Cookie, MechName, Params, Secret};
use tokio::sync::{mpsc, oneshot};

use crate::link::{Link, Protocol, Settings, call};
use crate::types::pairs;
use crate::{AuthRequest, Error, Failure};

/// Connections made by this process so far: tells them apart and makes the CPID unique.
static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
/// Linux pids are below 2^22.
pub(crate) const PID_BITS: u32 = 22;

/// Where a login stands.
#[derive(Debug)]
pub enum Step {
    /// The mechanism wants an answer to these bytes.
    Challenge(Exchange, Vec<u8>),
    /// Logged in.
    Ok(Login),
    /// Refused.
    Failed(Failure),
}

/// A finished login.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// Canonical name.
    pub user: String,
    /// The server's other fields; bare words have an empty value.
    pub fields: Vec<(String, String)>,
    /// The mechanism's final data for the user's program (SCRAM's `v=`).
    pub final_data: Option<Vec<u8>>,
    kept: Arc<Kept>,
}

impl Login {
    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// What names this login to [`AuthClient::session_of`], in this process or another: client pid, id, cookie.
    /// `None` when the server keeps no logins.
    ///
    /// [`AuthClient::session_of`]: crate::AuthClient::session_of
    pub fn ticket(&self) -> Option<(u32, u32, Cookie)> {
        self.kept.cookie.map(|cookie| (self.kept.cpid, self.kept.id, cookie))
    }

    /// The login was fetched by its ticket: dropping it does not cancel it any more.
    pub fn fetched(&self) {
        self.kept.fetched.store(true, Ordering::Relaxed);
    }
}

/// A login the server keeps until it is fetched; dropping it tells the server to forget it.
struct Kept {
    queue: mpsc::Sender<Command>,
    connection: u32,
    cpid: u32,
    id: u32,
    cookie: Option<Cookie>,
    fetched: AtomicBool,
}

impl fmt::Debug for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Kept({})", self.id)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.cookie.is_some() && !self.fetched.load(Ordering::Relaxed) {
            // A full queue loses this; the server forgets by itself after a while.
            let _ = self.queue.try_send(Command::Cancel { connection: self.connection, id: self.id });
        }
    }
}

/// A login that waits for the user's program. Dropping it cancels the login.
pub struct Exchange {
    handle: Handle,
    deadline: std::time::Duration,
    channel_binding: Option<String>,
    out_of_band: bool,
    open: bool,
}

impl Exchange {
    /// The kind of channel binding data the server wants with the answer.
    pub fn channel_binding(&self) -> Option<&str> {
        self.channel_binding.as_deref()
    }

    /// Whether only channel binding is wanted; the user's program must not be asked.
    pub fn is_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// Passes the answer of the user's program on.
    pub async fn respond(self, data: &[u8]) -> Result<Step, Error> {
        self.send(data, None).await
    }

    /// The same with channel binding data.
    pub async fn respond_bound(self, data: &[u8], binding: &[u8]) -> Result<Step, Error> {
        self.send(data, Some(binding)).await
    }

    /// Gives the login up.
    pub fn cancel(self) {}

    async fn send(mut self, data: &[u8], binding: Option<&[u8]>) -> Result<Step, Error> {
        self.open = false;
        let deadline = tokio::time::Instant::now() + self.deadline;
        let answer = call(&self.handle.queue, deadline, |reply| Command::Respond {
            connection: self.handle.connection,
            id: self.handle.id,
            data: Secret::from(data),
            binding: binding.map(Secret::from),
            reply,
        })
        .await?;
        Ok(answer.into_step(&self.handle.queue, self.deadline))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.open {
            let cancel = Command::Cancel { connection: self.handle.connection, id: self.handle.id };
            // A full queue loses this; the server forgets silent exchanges.
            let _ = self.handle.queue.try_send(cancel);
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Exchange({})", self.handle.id)
    }
}

struct Handle {
    queue: mpsc::Sender<Command>,
    connection: u32,
    id: u32,
}

pub(crate) async fn server(link: &Link<LoginLink>) -> Result<Server, Error> {
    link.call(link.deadline(), Command::Server).await
}

pub(crate) async fn authenticate(link: &Link<LoginLink>, request: AuthRequest) -> Result<Step, Error> {
    let mechanism = MechName::parse(request.mechanism.as_bytes()).map_err(Error::Request)?;
    let (params, initial) = request.into_params();
    let deadline = link.deadline();
    let start = Box::new(Start { mechanism, params, initial });
    let answer = link.call(deadline, |reply| Command::Start { start, reply }).await?;
    Ok(answer.into_step(&link.queue(), link.patience()))
}

type Reply = oneshot::Sender<Result<Answer, Error>>;

pub(crate) struct Start {
    mechanism: MechName,
    params: Params,
    initial: Option<Secret>,
}

pub(crate) enum Command {
    Server(oneshot::Sender<Result<Server, Error>>),
    Start { start: Box<Start>, reply: Reply },
    Respond { connection: u32, id: u32, data: Secret, binding: Option<Secret>, reply: Reply },
    Cancel { connection: u32, id: u32 },
}

/// What the task hands to the caller.
pub(crate) enum Answer {
    Challenge { connection: u32, id: u32, data: Vec<u8>, channel_binding: Option<String>, out_of_band: bool },
    Ok { connection: u32, cpid: u32, cookie: Option<Cookie>, success: auth_wire::client::Success },
    Failed(Failure),
}

impl Answer {
    fn into_step(self, queue: &mpsc::Sender<Command>, deadline: std::time::Duration) -> Step {
        let queue = queue.clone();
        match self {
            Self::Challenge { connection, id, data, channel_binding, out_of_band } => {
                let handle = Handle { queue, connection, id };
                Step::Challenge(Exchange { handle, deadline, channel_binding, out_of_band, open: true }, data)
            }
            Self::Ok { connection, cpid, cookie, success } => Step::Ok(Login {
                user: success.user,
                fields: pairs(success.fields),
                final_data: success.final_data,
                kept: Arc::new(Kept {
                    queue,
                    connection,
                    cpid,
                    id: success.id,
                    cookie,
                    fetched: AtomicBool::new(false),
                }),
            }),
            Self::Failed(failure) => Step::Failed(failure),
        }
    }
}

/// One connection to the login socket.
pub(crate) struct LoginLink {
    client: Client,
    connection: u32,
    cpid: u32,
    pending: HashMap<u32, Reply>,
}

impl Protocol for LoginLink {
    type Command = Command;

    fn new(settings: &Settings) -> Self {
        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        let cpid = std::process::id() | (connection << PID_BITS);
        Self { client: Client::new(settings.minor, cpid), connection, cpid, pending: HashMap::new() }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.client.feed(bytes);
        loop {
            let (id, answer) = match self.client.next() {
                Ok(None) => return Ok(()),
                Err(error) => return Err(Error::Unavailable(error.to_string())),
                Ok(Some(Event::Challenge { id, data, channel_binding, out_of_band })) => {
                    let connection = self.connection;
                    (id, Answer::Challenge { connection, id, data, channel_binding, out_of_band })
                }
                Ok(Some(Event::Ok(success))) => {
                    let (connection, cpid, cookie) =
                        (self.connection, self.cpid, self.client.server().cookie);
                    (success.id, Answer::Ok { connection, cpid, cookie, success })
                }
                Ok(Some(Event::Fail(failure))) => {
                    let auth_wire::client::Failure { id, user, code, reason, .. } = failure;
                    (id, Answer::Failed(Failure { code, reason, user }))
                }
                Ok(Some(_)) => continue,
            };
            let finished = matches!(answer, Answer::Failed(_));
            // Nobody waits: an open exchange or a kept login must not stay behind at the server.
            let unwanted = match self.pending.remove(&id) {
                Some(reply) => reply.send(Ok(answer)).is_err(),
                None => true,
            };
            if unwanted && !finished {
                self.client.cancel(id);
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.client.is_ready()
    }

    fn submit(&mut self, command: Command) {
        match command {
            Command::Server(reply) => {
                let _ = reply.send(Ok(self.client.server().clone()));
            }
            Command::Start { reply, .. } if reply.is_closed() => {}
            Command::Start { start, reply } => {
                match self.client.start(start.mechanism, &start.params, start.initial.as_deref()) {
                    Ok(id) => {
                        self.pending.insert(id, reply);
                    }
                    Err(error) => {
                        let _ = reply.send(Err(Error::Request(error)));
                    }
                }
            }
            Command::Respond { connection, reply, .. } if connection != self.connection => {
                let _ = reply.send(Err(exchange_lost()));
            }
            Command::Respond { id, data, binding, reply, .. } => {
                match self.client.respond(id, &data, binding.as_deref()) {
                    Ok(()) => {
                        self.pending.insert(id, reply);
                    }
                    Err(error) => {
                        self.client.cancel(id);
                        let _ = reply.send(Err(Error::Request(error)));
                    }
                }
            }
            Command::Cancel { connection, id } => {
                if connection == self.connection {
                    self.client.cancel(id);
                }
            }
        }
    }

    fn sweep(&mut self) {
        let client = &mut self.client;
        self.pending.retain(|id, reply| {
            let wanted = !reply.is_closed();
            if !wanted {
                client.cancel(*id);
            }
            wanted
        });
    }

    fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    fn output(&self) -> &[u8] {
        self.client.output()
    }

    fn wrote(&mut self, bytes: usize) {
        self.client.wrote(bytes);
    }

    fn lost(self, why: &str) {
        for reply in self.pending.into_values() {
            let _ = reply.send(Err(Error::Unavailable(why.to_owned())));
        }
    }

    fn waits(command: Command) -> Option<Command> {
        match command {
            Command::Server(ref reply) => (!reply.is_closed()).then_some(command),
            Command::Start { ref reply, .. } => (!reply.is_closed()).then_some(command),
            // These belong to a connection that is gone.
            Command::Respond { reply, .. } => {
                let _ = reply.send(Err(exchange_lost()));
                None
            }
            Command::Cancel { .. } => None,
        }
    }
}

fn exchange_lost() -> Error {
    Error::Unavailable("the connection was lost during the exchange".to_owned())
}
