//! What is asked and what is answered.
//!
//! Trust: requests are the caller's, answers the server's.
//! Never: hold an initial response other than as a secret, or print a field's value.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use auth_wire::{FailCode, Field, Params, Secret, Secured};

/// What can go wrong. All but [`Error::Request`] and [`Error::NoUser`] are temporary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made in time, or it was lost while the request was under way.
    #[error("the authentication server is not available: {0}")]
    Unavailable(String),
    /// The server took the request and did not answer in time.
    #[error("the authentication server did not answer in time")]
    Timeout,
    /// The server could not do what was asked.
    #[error("the authentication server failed{}", .0.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Failed(Option<String>),
    /// The login is right, but there is no such user (a passdb entry without a userdb entry).
    #[error("the user has no record")]
    NoUser,
    /// The login socket keeps no logins.
    #[error("the server gave no cookie: this is not a login socket")]
    NotKept,
    /// The request cannot be expressed in the protocol (too long, not a mechanism name).
    #[error("cannot ask the authentication server: {0}")]
    Request(auth_wire::Error),
}

impl Error {
    /// Whether the same request may succeed later: 4xx, `[UNAVAILABLE]`, `[SYS/TEMP]`.
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::Request(_) | Self::NoUser)
    }
}

/// A login to try.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuthRequest {
    /// SASL mechanism, in any case.
    pub mechanism: String,
    /// smtp, imap, pop3, …
    pub service: String,
    /// Session id, for the server's log.
    pub session: Option<String>,
    /// Address the user connected to.
    pub lip: Option<IpAddr>,
    /// Address of the user.
    pub rip: Option<IpAddr>,
    /// Port the user connected to.
    pub lport: Option<u16>,
    /// Port of the user.
    pub rport: Option<u16>,
    /// Our end of the hop, if `lip` was told by a proxy.
    pub real_lip: Option<IpAddr>,
    /// The hop's address, if `rip` was told by a proxy.
    pub real_rip: Option<IpAddr>,
    /// How the user's connection is protected.
    pub secured: Option<Secured>,
    /// TLS server name the user asked for.
    pub sni: Option<String>,
    /// What the user's program says it is.
    pub client_id: Option<String>,
    /// Initial response; `Some` of nothing is a present but empty one.
    pub initial_response: Option<Secret>,
    /// Neither look up nor count a penalty.
    pub no_penalty: bool,
    /// Anything else to send along.
    pub extra: Vec<Field>,
}

impl AuthRequest {
    /// A request with nothing but the necessary.
    pub fn new(mechanism: impl Into<String>, service: impl Into<String>) -> Self {
        Self {
            mechanism: mechanism.into(),
            service: service.into(),
            session: None,
            lip: None,
            rip: None,
            lport: None,
            rport: None,
            real_lip: None,
            real_rip: None,
            secured: None,
            sni: None,
            client_id: None,
            initial_response: None,
            no_penalty: false,
            extra: Vec::new(),
        }
    }

    /// A PLAIN request for a name and password (RFC 4616). Neither may contain NUL; the server refuses those.
    pub fn plain(service: impl Into<String>, user: &[u8], password: &[u8]) -> Self {
        let mut message = Vec::with_capacity(user.len() + password.len() + 2);
        message.push(0);
        message.extend_from_slice(user);
        message.push(0);
        message.extend_from_slice(password);
        Self::new("PLAIN", service).initial_response(message)
    }

    /// Adds the initial response.
    #[must_use]
    pub fn initial_response(mut self, data: impl Into<Secret>) -> Self {
        self.initial_response = Some(data.into());
        self
    }

    pub(crate) fn into_params(self) -> (Params, Option<Secret>) {
        let mut params = Params::default();
        params.service = Some(self.service);
        params.session = self.session;
        params.lip = self.lip;
        params.rip = self.rip;
        params.lport = self.lport;
        params.rport = self.rport;
        params.real_lip = self.real_lip;
        params.real_rip = self.real_rip;
        params.secured = self.secured;
        params.local_name = self.sni;
        params.client_id = self.client_id;
        params.no_penalty = self.no_penalty;
        params.final_resp_ok = true;
        params.extra = self.extra;
        (params, self.initial_response)
    }
}

/// A lookup of a user.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UserRequest {
    /// The name or address.
    pub user: String,
    /// smtp, lmtp, …
    pub service: String,
    /// Session id, for the server's log.
    pub session: Option<String>,
    /// Address the peer connected to.
    pub lip: Option<IpAddr>,
    /// Address of the peer.
    pub rip: Option<IpAddr>,
}

impl UserRequest {
    /// A lookup with nothing but the necessary.
    pub fn new(user: impl Into<String>, service: impl Into<String>) -> Self {
        Self { user: user.into(), service: service.into(), session: None, lip: None, rip: None }
    }

    pub(crate) fn params(&self) -> Params {
        let mut params = Params::default();
        params.service = Some(self.service.clone());
        params.session.clone_from(&self.session);
        params.lip = self.lip;
        params.rip = self.rip;
        params
    }
}

/// A login that was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Failure {
    /// What kind, if it may be told.
    pub code: Option<FailCode>,
    /// Text for the user.
    pub reason: Option<String>,
    /// The name the server understood.
    pub user: Option<String>,
}

impl Failure {
    /// Whether the same login may succeed later.
    pub fn is_temporary(&self) -> bool {
        self.code == Some(FailCode::TempFail)
    }
}

/// What the server knows of a user. `Debug` shows the name and which fields there are, not their values.
#[derive(Clone, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct UserRecord {
    /// Canonical name.
    pub user: String,
    /// `uid=`, if it is a number.
    pub uid: Option<u32>,
    /// `gid=`, if it is a number.
    pub gid: Option<u32>,
    /// `home=`
    pub home: Option<PathBuf>,
    /// `mail=`
    pub mail: Option<String>,
    /// All fields as sent, those above among them; bare words have an empty value.
    pub fields: Vec<(String, String)>,
}

impl UserRecord {
    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn from_wire(user: String, fields: Vec<Field>) -> Self {
        let fields = pairs(fields);
        let mut record = Self { user, fields, ..Self::default() };
        record.uid = record.field("uid").and_then(|value| value.parse().ok());
        record.gid = record.field("gid").and_then(|value| value.parse().ok());
        record.home = record.field("home").filter(|value| !value.is_empty()).map(PathBuf::from);
        record.mail = record.field("mail").filter(|value| !value.is_empty()).map(str::to_owned);
        record
    }
}

impl fmt::Debug for UserRecord {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        out.debug_struct("UserRecord").field("user", &self.user).field("fields", &names).finish()
    }
}

pub(crate) fn pairs(fields: Vec<Field>) -> Vec<(String, String)> {
    fields.into_iter().map(|field| (field.name.into_owned(), field.value.unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let record = UserRecord::from_wire(
            "a@b".into(),
            vec![
                Field::new("uid", "1000"),
                Field::new("gid", "vmail"),
                Field::new("home", "/home/a"),
                Field::flag("nologin"),
                Field::new("mail", ""),
            ],
        );
        assert_eq!((record.uid, record.gid, record.mail.as_deref()), (Some(1000), None, None));
        assert_eq!(record.home, Some(PathBuf::from("/home/a")));
        assert_eq!(record.field("nologin"), Some(""));
        assert_eq!(record.field("gid"), Some("vmail"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let record =
            UserRecord::from_wire("a@b".into(), vec![Field::new("pass", "hunter2"), Field::flag("nologin")]);
        assert_eq!(format!("{record:?}"), r#"UserRecord { user: "a@b", fields: ["pass", "nologin"] }"#);
        let request = AuthRequest::plain("imap", b"alice", b"hunter2");
        assert!(!format!("{request:?}").contains("hunter2"));
        let (params, initial) = request.into_params();
        assert_eq!(initial.as_deref(), Some(b"\0alice\0hunter2".as_slice()));
        assert!(!format!("{params:?} {initial:?}").contains("hunter2"));
    }
}
