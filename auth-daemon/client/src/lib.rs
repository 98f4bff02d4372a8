//! Async client for the Dovecot auth protocol: pooled, reconnecting, with deadlines.
//!
//! Purpose:   what a mail front needs of its authentication server: mechanisms, logins, user lookups.
//! Sockets:   `login` (client protocol, kept logins), `session` (REQUEST), `userdb` (USER, LIST). Each is connected on
//!            first use, kept, shared by all requests of all clones, and connected again after a loss.
//! Failures:  the server is restarted, reloaded and killed under us. A request that was not sent yet waits for the next
//!            connection within its deadline; one that was sent and lost is [`Error::Unavailable`], because a verdict
//!            may have been counted. Every [`Error`] but [`Error::Request`] means "try again later" to the user.
//! Trust:     the server is believed about users, not about sizes: its lines are bounded by `auth_wire`.
//! Never:     log or print a password, a challenge answer or a reply field's value.
//!
//! # CPID
//!
//! A login socket wants a client pid that no other live connection has, and a lost connection may still be alive at the
//! server when its successor arrives. The first connection of a process says its pid; later ones add a counter above
//! bit 22 (Linux pids end below it). `session_pid` in REQUEST is always the real pid: the server compares it with the
//! credentials of the session socket.
//!
//! # Example
//!
//! ```no_run
//! use auth_client::{AuthClient, AuthRequest, Config, Step};
//!
//! # async fn example() -> Result<(), auth_client::Error> {
//! let client = AuthClient::new(Config::new("/run/auth/fronts-login", "/run/auth/fronts-session", "/run/auth/userdb"));
//!
//! let mut request = AuthRequest::new("PLAIN", "imap").initial_response(b"\0alice\0secret".to_vec());
//! request.rip = "192.0.2.7".parse().ok();
//! match client.authenticate(request).await? {
//!     Step::Ok(login) => {
//!         let record = client.session(&login).await?;
//!         println!("{} lives in {:?}", record.user, record.home);
//!     }
//!     Step::Challenge(exchange, data) => {
//!         // Give `data` to the user's program, and what it answers to `exchange.respond(…)`.
//!         println!("{} bytes of challenge", data.len());
//!         exchange.cancel();
//!     }
//!     Step::Failed(failure) if failure.is_temporary() => println!("454 4.7.0 try again later"),
//!     Step::Failed(_) => println!("535 5.7.8 authentication failed"),
//! }
//!
//! // Is there such a mailbox?
//! if client.user("bob@example.org", "smtp").await?.is_none() {
//!     println!("550 5.1.1 no such user");
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

/// The examples of the README are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod link;
mod login;
mod lookup;
#[cfg(test)]
mod tests;
mod types;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use auth_wire::client::Server;
pub use auth_wire::{Cookie, FailCode, Field, Flags, MechName, Mechanism, Secret, Secured};
pub use login::{Exchange, Login, Step};
pub use types::{AuthRequest, Error, Failure, UserRecord, UserRequest};

use link::Link;
use login::LoginLink;
use lookup::{Ask, LookupLink};

/// Where the server is and how patient the client is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Socket of type login (or client, if [`AuthClient::session`] is not used).
    pub login: PathBuf,
    /// Socket on which finished logins are fetched (session or master).
    pub session: PathBuf,
    /// Socket of type userdb (or master).
    pub userdb: PathBuf,
    /// Time for each request, connecting included. Default 9 s.
    pub deadline: Duration,
    /// Time for connecting and the greeting, per attempt. Default 3 s.
    pub handshake: Duration,
    /// Minor version to speak on the login socket; 3 allows channel binding. Default 3.
    pub minor: u32,
}

impl Config {
    /// The usual settings for these three sockets.
    pub fn new(login: impl Into<PathBuf>, session: impl Into<PathBuf>, userdb: impl Into<PathBuf>) -> Self {
        Self {
            login: login.into(),
            session: session.into(),
            userdb: userdb.into(),
            deadline: Duration::from_secs(9),
            handshake: Duration::from_secs(3),
            minor: 3,
        }
    }

    /// Changes the time for each request.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// A client of an authentication server. Clones share the connections.
///
/// Methods must be called within a tokio runtime.
#[derive(Clone, Debug)]
pub struct AuthClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    login: Link<LoginLink>,
    session: Link<LookupLink>,
    userdb: Link<LookupLink>,
}

impl AuthClient {
    /// Makes a client; nothing is connected yet.
    pub fn new(config: Config) -> Self {
        let settings =
            link::Settings { deadline: config.deadline, handshake: config.handshake, minor: config.minor };
        Self(Arc::new(Inner {
            login: Link::new(config.login, settings),
            session: Link::new(config.session, settings),
            userdb: Link::new(config.userdb, settings),
        }))
    }

    /// The mechanisms the server offers, in its order. Asks the server only if there is no connection.
    pub async fn mechanisms(&self) -> Result<Vec<Mechanism>, Error> {
        Ok(self.server().await?.mechanisms)
    }

    /// What the server told in its greeting on the login socket: for logs, and for APOP, whose challenge holds its numbers.
    pub async fn server(&self) -> Result<Server, Error> {
        login::server(&self.0.login).await
    }

    /// Starts a login.
    pub async fn authenticate(&self, request: AuthRequest) -> Result<Step, Error> {
        login::authenticate(&self.0.login, request).await
    }

    /// Fetches the user record of a login, once. [`Error::NoUser`] when the server knows no record for it.
    pub async fn session(&self, login: &Login) -> Result<UserRecord, Error> {
        let (cpid, id, cookie) = login.ticket().ok_or(Error::NotKept)?;
        let record = lookup::ask(&self.0.session, Ask::Login { cpid, id, cookie }).await?;
        login.fetched();
        record.ok_or(Error::NoUser)
    }

    /// The same for a login that another process made: see [`Login::ticket`].
    pub async fn session_of(&self, cpid: u32, id: u32, cookie: Cookie) -> Result<Option<UserRecord>, Error> {
        lookup::ask(&self.0.session, Ask::Login { cpid, id, cookie }).await
    }

    /// The process that made the logins of this client pid (see "CPID" above).
    pub fn pid_of(cpid: u32) -> u32 {
        cpid & ((1 << login::PID_BITS) - 1)
    }

    /// Looks a user up by name; `None` if there is no such user.
    pub async fn user(&self, name: &str, service: &str) -> Result<Option<UserRecord>, Error> {
        self.user_with(UserRequest::new(name, service)).await
    }

    /// Looks a user up by name, telling more about the occasion.
    pub async fn user_with(&self, request: UserRequest) -> Result<Option<UserRecord>, Error> {
        lookup::ask(&self.0.userdb, Ask::User(Box::new(request))).await
    }

    /// All users, or those that match `mask` (`*` and `?`) if the server filters.
    pub async fn users(&self, mask: Option<&str>, service: &str) -> Result<Vec<String>, Error> {
        lookup::list(&self.0.userdb, mask.map(str::to_owned), service.to_owned()).await
    }
}
