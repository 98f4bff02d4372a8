//! The userdb and session sockets: USER, LIST, REQUEST.
//!
//! Trust: the server is believed about users; an answer to an id nobody waits for is dropped.
//! Never: ask REQUEST again after a loss: its login may be spent.

use std::collections::HashMap;
use std::time::Duration;

use auth_wire::Cookie;
use auth_wire::master::{Client, Event};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::link::{Link, Protocol, Settings};
use crate::{Error, UserRecord, UserRequest};

/// A question with one record as its answer.
#[derive(Clone)]
pub(crate) enum Ask {
    User(Box<UserRequest>),
    Login { cpid: u32, id: u32, cookie: Cookie },
}

/// Asks; a user lookup that was lost with its connection is asked again, for it changes nothing at the server.
pub(crate) async fn ask(link: &Link<LookupLink>, question: Ask) -> Result<Option<UserRecord>, Error> {
    let deadline = link.deadline();
    let mut pause = Duration::from_millis(10);
    loop {
        let again = question.clone();
        match link.call(deadline, |reply| Command::Ask(again, reply)).await {
            Err(Error::Unavailable(_))
                if matches!(question, Ask::User(_)) && Instant::now() + pause < deadline =>
            {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            answer => return answer,
        }
    }
}

pub(crate) async fn list(
    link: &Link<LookupLink>,
    mask: Option<String>,
    service: String,
) -> Result<Vec<String>, Error> {
    link.call(link.deadline(), |reply| Command::List { mask, service, reply }).await
}

type Reply = oneshot::Sender<Result<Option<UserRecord>, Error>>;
type ListReply = oneshot::Sender<Result<Vec<String>, Error>>;

pub(crate) enum Command {
    Ask(Ask, Reply),
    List { mask: Option<String>, service: String, reply: ListReply },
}

enum Pending {
    Record(Reply),
    List(ListReply, Vec<String>),
}

impl Pending {
    fn fail(self, error: Error) {
        // A caller that went away needs no answer.
        match self {
            Self::Record(reply) => drop(reply.send(Err(error))),
            Self::List(reply, _) => drop(reply.send(Err(error))),
        }
    }
}

/// One connection to a master-protocol socket.
pub(crate) struct LookupLink {
    client: Client,
    ready: bool,
    pending: HashMap<u32, Pending>,
}

impl LookupLink {
    fn answer(&mut self, id: u32, answer: Result<Option<UserRecord>, Error>) {
        match self.pending.remove(&id) {
            Some(Pending::Record(reply)) => drop(reply.send(answer)),
            Some(list @ Pending::List(..)) => list.fail(answer.err().unwrap_or(Error::Failed(None))),
            None => {}
        }
    }
}

impl Protocol for LookupLink {
    type Command = Command;

    fn new(_: &Settings) -> Self {
        Self { client: Client::new(), ready: false, pending: HashMap::new() }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.client.feed(bytes);
        loop {
            match self.client.next() {
                Ok(None) => return Ok(()),
                Err(error) => return Err(Error::Unavailable(error.to_string())),
                Ok(Some(Event::Ready { .. })) => self.ready = true,
                Ok(Some(Event::User { id, user, fields })) => {
                    self.answer(id, Ok(Some(UserRecord::from_wire(user, fields))));
                }
                Ok(Some(Event::NotFound(id))) => self.answer(id, Ok(None)),
                Ok(Some(Event::Fail { id, reason })) => self.answer(id, Err(Error::Failed(reason))),
                Ok(Some(Event::ListItem { id, user })) => {
                    if let Some(Pending::List(_, users)) = self.pending.get_mut(&id) {
                        users.push(user);
                    }
                }
                Ok(Some(Event::ListDone { id, complete })) => match self.pending.remove(&id) {
                    Some(Pending::List(reply, users)) if complete => drop(reply.send(Ok(users))),
                    Some(other) => other.fail(Error::Failed(Some("users cannot be listed".to_owned()))),
                    None => {}
                },
                Ok(Some(_)) => {}
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    fn submit(&mut self, command: Command) {
        let (asked, pending) = match command {
            Command::Ask(_, reply) if reply.is_closed() => return,
            Command::Ask(Ask::User(request), reply) => {
                (self.client.user(&request.user, &request.params()), Pending::Record(reply))
            }
            Command::Ask(Ask::Login { cpid, id, cookie }, reply) => {
                (self.client.login(cpid, id, &cookie, Some(std::process::id())), Pending::Record(reply))
            }
            Command::List { mask, service, reply } => {
                (self.client.list(mask.as_deref(), &service), Pending::List(reply, Vec::new()))
            }
        };
        match asked {
            Ok(id) => drop(self.pending.insert(id, pending)),
            Err(error) => pending.fail(Error::Request(error)),
        }
    }

    fn sweep(&mut self) {
        self.pending.retain(|_, pending| match pending {
            Pending::Record(reply) => !reply.is_closed(),
            Pending::List(reply, _) => !reply.is_closed(),
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
        for pending in self.pending.into_values() {
            pending.fail(Error::Unavailable(why.to_owned()));
        }
    }

    fn waits(command: Command) -> Option<Command> {
        let wanted = match &command {
            Command::Ask(_, reply) => !reply.is_closed(),
            Command::List { reply, .. } => !reply.is_closed(),
        };
        wanted.then_some(command)
    }
}
