//! Everything a connection needs to know from the configuration, made once per reload.
//!
//! Trust: the supervisor's configuration, checked before it came here.
//! Never: change under a connection: each keeps the policy it began with.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use conf::{SmtpKind, SmtpSlice, TlsVersion};
use smtp::{Config, Domain, DomainName, Kind};
use tls_config::{Acceptor, MinimumVersion, Options, PemPair, Tls};

/// Why a configuration cannot be used. What was in use before goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The slice is not what this version writes.
    #[error("the configuration from the supervisor cannot be read: {0}")]
    Slice(#[from] serde_json::Error),
    /// Certificate or key.
    #[error("TLS: {0}")]
    Tls(#[from] tls_config::Error),
    /// A listener that is TLS from the first byte, and no certificate.
    #[error("listener `{0}` needs TLS, but there is no [[tls.certificate]]")]
    NoCertificate(String),
    /// Not a domain name.
    #[error("smtp.local_domains: `{0}` is not a domain name")]
    Domain(String),
}

/// One generation of settings. Connections keep the one they began with.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) hostname: String,
    pub(crate) local: LocalDomains,
    /// Who reads the postmaster's mail where no user has that name.
    pub(crate) postmaster: Option<String>,
    /// Mail is handed over here; `None`: this process writes it.
    pub(crate) delivery: Option<Arc<Path>>,
    /// Mailboxes of system users: first and last uid that may have mail (0: no limit).
    uids: Option<(u32, u32)>,
    inbound: Service,
    submission: Service,
    lmtp: Service,
}

/// What connections of one kind share.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) session: Arc<Config>,
    pub(crate) tls: Option<Acceptor>,
    /// Name told to the authentication daemon.
    pub(crate) name: &'static str,
}

/// The domains mail is delivered for.
#[derive(Debug)]
pub(crate) struct LocalDomains {
    names: HashSet<String>,
    /// The domain of addresses that have none: `<postmaster>`, address literals.
    main: String,
}

impl LocalDomains {
    fn new(slice: &SmtpSlice) -> Result<Self, Error> {
        let listed = &slice.smtp.local_domains;
        let all: Vec<&String> =
            if listed.is_empty() { vec![&slice.hostname] } else { listed.iter().collect() };
        let mut names = HashSet::new();
        let mut main = None;
        for text in all {
            let name = DomainName::try_from(text.as_str()).map_err(|_| Error::Domain(text.clone()))?;
            main.get_or_insert_with(|| name.ascii().to_owned());
            names.insert(name.ascii().to_owned());
        }
        Ok(Self { names, main: main.unwrap_or_else(|| slice.hostname.clone()) })
    }

    /// The local domain an address belongs to, as user names are written with it; `None`: it is elsewhere.
    /// A literal is local when it is the address the client connected to.
    pub(crate) fn resolve(&self, domain: &Domain, own_ip: IpAddr) -> Option<&str> {
        match domain {
            Domain::Name(name) => self.names.get(name.ascii()).map(String::as_str),
            Domain::Literal(ip) => (ip.to_canonical() == own_ip.to_canonical()).then_some(self.main.as_str()),
        }
    }

    /// The domain of addresses that have none.
    pub(crate) fn main(&self) -> &str {
        &self.main
    }
}

impl Policy {
    /// Whether an account with this uid may have mail.
    pub(crate) fn may_have_mail(&self, uid: u32) -> bool {
        match self.uids {
            Some((first, last)) => uid != 0 && uid >= first && (last == 0 || uid <= last),
            // One account has all mail, whatever the user database says.
            None => true,
        }
    }

    /// Finds what is wrong with a configuration apart from its certificates, before anything is changed.
    pub(crate) fn check(slice: &SmtpSlice) -> Result<(), Error> {
        LocalDomains::new(slice)?;
        let implicit = slice.smtp.listener.iter().find(|listener| listener.kind == SmtpKind::Submissions);
        match implicit.filter(|_| slice.tls.certificates.is_empty()) {
            Some(listener) => Err(Error::NoCertificate(listener.name.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn new(slice: &SmtpSlice, tls: Option<&Tls>) -> Result<Self, Error> {
        let service = |kind, name| -> Result<Service, Error> {
            let session = Arc::new(Config {
                hostname: slice.hostname.clone(),
                kind,
                starttls: tls.is_some(),
                max_message_size: slice.smtp.max_message_size,
                max_recipients: slice.smtp.max_recipients,
                max_bad_commands: slice.smtp.max_bad_commands,
                max_auth_failures: slice.smtp.max_auth_failures,
                bare_newline: match slice.smtp.bare_newline {
                    conf::BareNewline::Normalize => smtp::BareNewline::Normalize,
                    conf::BareNewline::Reject => smtp::BareNewline::Reject,
                },
                timeout: slice.smtp.timeout,
            });
            // One name per service: its session tickets are good for no other.
            let tls = tls.map(|tls| tls.acceptor(name, &[])).transpose()?;
            Ok(Service { session, tls, name })
        };
        Ok(Self {
            hostname: slice.hostname.clone(),
            local: LocalDomains::new(slice)?,
            postmaster: slice.smtp.postmaster.clone(),
            delivery: slice.delivery.as_deref().map(Arc::from),
            uids: (slice.mail.mailboxes == conf::Mailboxes::System)
                .then_some((slice.mail.first_valid_uid, slice.mail.last_valid_uid)),
            inbound: service(Kind::Inbound, "smtp")?,
            submission: service(Kind::Submission, "submission")?,
            lmtp: service(Kind::Lmtp, "lmtp")?,
        })
    }

    pub(crate) fn service(&self, kind: SmtpKind) -> &Service {
        match kind {
            SmtpKind::Inbound => &self.inbound,
            SmtpKind::Submission | SmtpKind::Submissions => &self.submission,
            SmtpKind::Lmtp => &self.lmtp,
        }
    }
}

/// Loads the certificates, or swaps them under living connections; `None` when there are none.
pub(crate) fn load_tls(slice: &SmtpSlice, current: Option<Tls>) -> Result<Option<Tls>, Error> {
    let certificates = &slice.tls.certificates;
    let pairs: Vec<PemPair<'_>> = certificates
        .iter()
        .map(|pair| PemPair { chain: &pair.chain, key: pair.key.expose().as_bytes() })
        .collect();
    let minimum = match slice.tls.minimum {
        TlsVersion::V1_2 => MinimumVersion::Tls12,
        TlsVersion::V1_3 => MinimumVersion::Tls13,
    };
    let options = Options { minimum, ..Options::default() };
    match current {
        _ if pairs.is_empty() => Ok(None),
        Some(tls) => {
            tls.replace(&pairs, options)?;
            Ok(Some(tls))
        }
        None => Ok(Some(Tls::new(&pairs, options)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn local_domains() {
        let mut slice = testing::slice(std::path::Path::new("/nowhere"));
        slice.smtp.local_domains = vec!["Example.org".into(), "bücher.example".into()];
        let local = LocalDomains::new(&slice).unwrap();
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        for (domain, resolved) in [
            ("EXAMPLE.ORG", Some("example.org")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("BÜCHER.example", Some("xn--bcher-kva.example")),
            ("sub.example.org", None),
            ("[127.0.0.1]", Some("example.org")),
            ("[127.0.0.2]", None),
            ("[IPv6:::ffff:127.0.0.1]", Some("example.org")),
        ] {
            assert_eq!(local.resolve(&Domain::parse(domain).unwrap(), own), resolved, "{domain}");
        }
        slice.smtp.local_domains = vec!["not a domain".into()];
        assert!(matches!(LocalDomains::new(&slice), Err(Error::Domain(_))));
        slice.smtp.local_domains.clear();
        assert_eq!(LocalDomains::new(&slice).unwrap().main(), slice.hostname);
    }

    #[test]
    fn implicit_tls_needs_a_certificate() {
        let mut slice = testing::slice(std::path::Path::new("/nowhere"));
        assert!(Policy::check(&slice).is_ok());
        slice.tls.certificates.clear();
        assert!(matches!(Policy::check(&slice), Err(Error::NoCertificate(name)) if name == "submissions"));
    }
}
