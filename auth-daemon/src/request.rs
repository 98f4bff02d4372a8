//! One login or look-up on its way through the chains.
//!
//! Purpose: the facts the client told, the names in all their forms, the fields collected so far.
//! Never:   hold a password; it travels beside the request and is wiped with it.
//! Trust:   what the client told is its word; what the chains found is the administrator's.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use auth_wire::{Params, Secured};

use crate::fields::Fields;
use crate::template::{Values, after_first_at, before_at, named_part};

/// Credentials of the process at the other end, told by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// Effective user id.
    pub(crate) uid: u32,
    /// Effective group id.
    pub(crate) gid: u32,
    /// Process id, where known.
    pub(crate) pid: Option<i32>,
}

/// A login or look-up.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What the client told. Boxed: it is the larger part.
    pub(crate) params: Box<Params>,
    /// Service name.
    pub(crate) service: String,
    /// What stands for the service in names of PAM files, where the client may not choose freely.
    pub(crate) pam_service: Option<String>,
    /// The mechanism; `None` for look-ups without one.
    pub(crate) mechanism: Option<sasl::Name>,
    /// Who asks.
    pub(crate) peer: PeerCredentials,
    /// When the client's last line came: delays count from here.
    pub(crate) arrived: Instant,
    /// When the client is answered at the latest.
    pub(crate) until: Option<Instant>,
    /// The domain of bare names.
    pub(crate) default_domain: Option<Arc<str>>,
    /// The canonical name; drivers may rename.
    pub(crate) user: String,
    /// The name as typed.
    pub(crate) original: String,
    /// The master user who logs in as `user`; set once his password was right.
    pub(crate) master: Option<String>,
    /// While a master's password is checked: whom he wants to be.
    pub(crate) login_user: Option<String>,
    /// Fields for the client.
    pub(crate) fields: Fields,
    /// Fields for the user database.
    pub(crate) userdb: Fields,
    /// Home, once the user database said one.
    pub(crate) home: Option<String>,
    /// The entry that decided, for the log.
    pub(crate) driver: String,
    /// An entry asks for no delay.
    pub(crate) nodelay: bool,
    /// A text for the remote user that the settings let a driver tell him, instead of the usual one.
    pub(crate) message: Option<String>,
    /// What happened, entry by entry, for `auth explain`.
    pub(crate) trace: Option<Vec<String>>,
}

impl Request {
    /// A request without a name yet.
    pub(crate) fn new(
        params: impl Into<Box<Params>>,
        service: String,
        peer: PeerCredentials,
        arrived: Instant,
    ) -> Request {
        Request {
            params: params.into(),
            service,
            pam_service: None,
            mechanism: None,
            peer,
            arrived,
            until: None,
            default_domain: None,
            user: String::new(),
            original: String::new(),
            master: None,
            login_user: None,
            fields: Fields::default(),
            userdb: Fields::default(),
            home: None,
            driver: String::new(),
            nodelay: false,
            message: None,
            trace: None,
        }
    }

    /// Notes a step for `auth explain`.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    /// The name of the mechanism, or `lookup`.
    pub(crate) fn mechanism_name(&self) -> &'static str {
        self.mechanism.map_or("lookup", sasl::Name::as_str)
    }

    /// The right password opens no mailbox here: `nologin`, or the login process passes the user on.
    pub(crate) fn ends_at_the_door(&self) -> bool {
        self.fields.has("nologin") || self.fields.has("proxy")
    }

    fn session_names(&self, variable: &str) -> Option<String> {
        let login = self.login_user.as_deref().unwrap_or_default();
        let auth = self.master.as_deref().unwrap_or(&self.user);
        Some(match variable {
            "login_user" => login.to_owned(),
            "login_username" => before_at(login).to_owned(),
            "login_domain" => after_first_at(login).to_owned(),
            "master_user" => self.master.clone().unwrap_or_default(),
            "orig_user" => self.original.clone(),
            "orig_username" => before_at(&self.original).to_owned(),
            "orig_domain" => after_first_at(&self.original).to_owned(),
            "auth_user" => auth.to_owned(),
            "auth_username" => before_at(auth).to_owned(),
            "auth_domain" => after_first_at(auth).to_owned(),
            _ => return None,
        })
    }
}

impl Values for Request {
    fn named(&self, name: &str) -> String {
        let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        let port = |port: Option<u16>| port.map(|port| port.to_string()).unwrap_or_default();
        let params = &self.params;
        match name {
            "service" => self.service.clone(),
            "home" => self.home.as_deref().or(self.userdb.value("home")).unwrap_or_default().to_owned(),
            "lip" => ip(params.lip),
            "rip" => ip(params.rip),
            "lport" => port(params.lport),
            "rport" => port(params.rport),
            "real_lip" => ip(params.real_lip.or(params.lip)),
            "real_rip" => ip(params.real_rip.or(params.rip)),
            "mech" => self.mechanism.map_or(String::new(), |mechanism| mechanism.as_str().to_owned()),
            "secured" => match params.secured {
                Some(Secured::Tls) => "TLS".to_owned(),
                Some(Secured::Plain) => "secured".to_owned(),
                None => String::new(),
            },
            "cert" => {
                if params.valid_client_cert {
                    "valid".to_owned()
                } else {
                    String::new()
                }
            }
            "session" => params.session.clone().unwrap_or_default(),
            "local_name" => params.local_name.clone().unwrap_or_default(),
            "client_id" => params.client_id.clone().unwrap_or_default(),
            _ => named_part(name, &self.user).or_else(|| self.session_names(name)).unwrap_or_default(),
        }
    }

    fn passdb_field(&self, name: &str) -> Option<String> {
        self.fields.value(name).map(str::to_owned)
    }

    fn userdb_field(&self, name: &str) -> Option<String> {
        self.userdb.value(name).map(str::to_owned)
    }

    fn default_domain(&self) -> Option<&str> {
        self.default_domain.as_deref()
    }
}
