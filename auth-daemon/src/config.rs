//! The compiled configuration: everything that can be decided before a request comes.
//!
//! Purpose: made at start and at every reload, swapped as a whole; requests in flight keep the one they began with.
//! Trust:   the supervisor, with the administrator's settings.
//! Never:   fail half-way: either all of it is valid, or the old one stays.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use auth_wire::{Kind, MechName, Mechanism};
use conf::{AuthListener, AuthListenerKind, AuthSlice, OnOutage, PassdbRules, UserdbRules};
use creds::{Caps, Policy, Scheme, Verifier};

use crate::files::{Files, Source};
use crate::template::Template;
use crate::username::Rules;
use crate::worker::{Effects, StateRules};
use crate::{cache, hashpool};

/// The compiled configuration.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) hostname: String,
    pub(crate) rules: Rules,
    pub(crate) realms: Vec<String>,
    pub(crate) anonymous: String,
    pub(crate) failure_delay: Duration,
    pub(crate) penalty: conf::Penalty,
    pub(crate) passdbs: Vec<Passdb>,
    pub(crate) userdbs: Vec<Userdb>,
    pub(crate) home: Template,
    pub(crate) location: Template,
    /// System accounts below this one are not listed.
    pub(crate) first_uid: u32,
    pub(crate) verifier: Verifier,
    pub(crate) listeners: HashMap<String, Arc<Listener>>,
    pub(crate) cache: cache::Limits,
    pub(crate) hashes: hashpool::Limits,
    pub(crate) workers: conf::Workers,
}

/// A passdb with its rules.
#[derive(Debug)]
pub(crate) struct Passdb {
    pub(crate) name: String,
    pub(crate) rules: PassdbRules,
    pub(crate) defaults: Vec<(String, Template)>,
    pub(crate) overrides: Vec<(String, Template)>,
    pub(crate) driver: PassdbDriver,
}

/// Where a passdb looks.
#[derive(Debug)]
pub(crate) enum PassdbDriver {
    PasswdFile {
        source: Arc<Source>,
        scheme: Scheme,
        format: Option<Template>,
    },
    /// A file of another program that reads as a passwd-file; `realm`: where else users of the default domain are.
    Sasldb {
        source: Arc<Source>,
        realm: String,
    },
    Static {
        password: Option<creds::Secret>,
        nopassword: bool,
    },
    Passwd {
        rules: StateRules,
    },
    Shadow {
        rules: StateRules,
    },
    Pam {
        service: Template,
        effects: Effects,
        rules: StateRules,
        messages: bool,
    },
    Imap {
        host: String,
        port: u16,
    },
}

/// A userdb with its rules.
#[derive(Debug)]
pub(crate) struct Userdb {
    pub(crate) name: String,
    pub(crate) rules: UserdbRules,
    pub(crate) defaults: Vec<(String, Template)>,
    pub(crate) overrides: Vec<(String, Template)>,
    pub(crate) driver: UserdbDriver,
}

/// Where a userdb looks.
#[derive(Debug)]
pub(crate) enum UserdbDriver {
    PasswdFile { source: Arc<Source>, format: Option<Template> },
    Static { allow_all_users: bool },
    Passwd,
    Prefetch,
}

/// A listener with everything its connections share.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) kind: AuthListenerKind,
    pub(crate) minor: u32,
    pub(crate) service: Option<String>,
    pub(crate) deadline: Duration,
    pub(crate) on_outage: OnOutage,
    pub(crate) join_realm: bool,
    pub(crate) pam_services: Vec<String>,
    pub(crate) mode: u32,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
    /// Indices of the passdbs of its chain.
    pub(crate) chain: Vec<usize>,
    /// Those of master users.
    pub(crate) masters: Vec<usize>,
    pub(crate) mechanisms: Vec<sasl::Name>,
    acl: Option<Acl>,
    /// For client and login sockets.
    pub(crate) wire: Option<Arc<auth_wire::server::Config>>,
    /// For master, userdb and session sockets.
    pub(crate) master: Option<Arc<auth_wire::master::Config>>,
}

#[derive(Debug, Default)]
struct Acl {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Compiled {
    /// Compiles a slice.
    pub(crate) fn new(
        slice: &AuthSlice,
        crypt: impl creds::Crypt + Send + Sync + 'static,
        files: &Files,
    ) -> anyhow::Result<Compiled> {
        let auth = &slice.auth;
        let passdbs =
            auth.passdb.iter().map(|entry| passdb(entry, files)).collect::<anyhow::Result<Vec<_>>>()?;
        let userdbs =
            auth.userdb.iter().map(|entry| userdb(entry, files)).collect::<anyhow::Result<Vec<_>>>()?;
        let hash = &auth.hash;
        let caps = Caps {
            memory: hash.max_memory,
            argon2_passes: hash.max_passes,
            bcrypt_cost: hash.max_bcrypt_cost,
            crypt_rounds: hash.max_rounds,
            pbkdf2_rounds: hash.max_rounds,
            scram_iterations: hash.max_rounds,
            ..Caps::default()
        };
        let mut compiled = Compiled {
            hostname: slice.hostname.clone(),
            rules: Rules::new(auth, &slice.hostname).context("auth.username_format")?,
            realms: auth.realms.clone(),
            anonymous: auth.anonymous_username.clone(),
            failure_delay: auth.failure_delay,
            penalty: auth.penalty.clone(),
            home: Template::parse(&slice.mail.home).context("mail.home")?,
            location: Template::parse(&slice.mail.location).context("mail.location")?,
            first_uid: slice.mail.first_valid_uid,
            verifier: Verifier::new(Policy { allow_weak: auth.allow_weak_schemes, caps }, crypt)
                .with_argon2(fast_argon2),
            cache: cache::Limits {
                size: usize::try_from(auth.cache.size).unwrap_or(usize::MAX),
                ttl: auth.cache.ttl,
                negative_ttl: auth.cache.negative_ttl,
            },
            hashes: hashpool::Limits {
                threads: match hash.threads {
                    0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                    n => n as usize,
                },
                queue: hash.queue as usize,
                memory: hash.memory,
            },
            workers: auth.worker.clone(),
            passdbs,
            userdbs,
            listeners: HashMap::new(),
        };
        for listener in &auth.listener {
            let compiled_listener = compiled
                .listener(auth, listener)
                .with_context(|| format!("auth.listener `{}`", listener.name))?;
            compiled.listeners.insert(listener.name.clone(), Arc::new(compiled_listener));
        }
        Ok(compiled)
    }

    fn listener(&self, auth: &conf::Auth, listener: &AuthListener) -> anyhow::Result<Listener> {
        let in_chain = |passdb: &Passdb| match &listener.passdb {
            Some(names) => names.contains(&passdb.name),
            None => true,
        };
        let select = |master: bool| -> Vec<usize> {
            let fits = |(_, passdb): &(usize, &Passdb)| in_chain(passdb) && passdb.rules.master == master;
            self.passdbs.iter().enumerate().filter(fits).map(|(at, _)| at).collect()
        };
        let (chain, masters) = (select(false), select(true));
        let wanted = listener.mechanisms.as_ref().unwrap_or(&auth.mechanisms);
        let mechanisms = self.mechanisms(wanted, &chain, listener.minor)?;
        let mut out = Listener {
            name: listener.name.clone(),
            kind: listener.kind,
            minor: listener.minor,
            service: listener.service.clone(),
            deadline: listener.reply_deadline,
            on_outage: listener.on_outage,
            join_realm: listener.join_realm,
            pam_services: listener.pam_services.clone(),
            mode: listener.mode,
            owner: listener.owner.as_deref().map(id).transpose()?,
            group: listener.group.as_deref().map(id).transpose()?,
            chain,
            masters,
            mechanisms,
            acl: acl(&listener.allow_users, &listener.allow_groups)?,
            wire: None,
            master: None,
        };
        let spid = std::process::id();
        match listener.kind {
            AuthListenerKind::Client | AuthListenerKind::Login => {
                let kind = if listener.kind == AuthListenerKind::Login { Kind::Login } else { Kind::Client };
                let mut config =
                    auth_wire::server::Config::new(kind, listener.minor, out.announced()).context(
                        "no passdb of its chain can serve any of its mechanisms, or there are too many of them",
                    )?;
                config.default_service.clone_from(&listener.service);
                out.wire = Some(Arc::new(config));
            }
            AuthListenerKind::Userdb | AuthListenerKind::Master | AuthListenerKind::Session => {
                let access = match listener.kind {
                    AuthListenerKind::Master => auth_wire::master::Access::Master,
                    AuthListenerKind::Session => auth_wire::master::Access::Session,
                    _ => auth_wire::master::Access::Userdb,
                };
                let mut config = auth_wire::master::Config::new(access, spid);
                config.default_service.clone_from(&listener.service);
                out.master = Some(Arc::new(config));
            }
            AuthListenerKind::Saslauthd => {}
        }
        Ok(out)
    }

    /// The mechanisms that are wanted and that the chain can serve.
    fn mechanisms(&self, wanted: &[String], chain: &[usize], minor: u32) -> anyhow::Result<Vec<sasl::Name>> {
        let mut out = Vec::new();
        for text in wanted {
            let Some(name) = sasl::Name::parse(text) else {
                bail!(
                    "mechanism `{text}` is not one of {}",
                    sasl::Name::ALL.map(sasl::Name::as_str).join(", ")
                );
            };
            let served = match name.needs() {
                sasl::Needs::Nothing => true,
                needs => chain
                    .iter()
                    .filter_map(|at| self.passdbs.get(*at))
                    .any(|passdb| !passdb.rules.deny && passdb.serves(name, needs)),
            };
            if served && (minor >= 3 || !name.is_plus()) && !out.contains(&name) {
                out.push(name);
            }
        }
        Ok(out)
    }
}

impl Passdb {
    /// Whether it could ever serve this mechanism.
    fn serves(&self, name: sasl::Name, needs: sasl::Needs) -> bool {
        self.admits_mechanism(name.as_str())
            && match &self.driver {
                PassdbDriver::PasswdFile { .. } | PassdbDriver::Sasldb { .. } => true,
                PassdbDriver::Static { password, nopassword } => {
                    needs == sasl::Needs::Verify && (*nopassword || password.is_some())
                        || password.as_ref().is_some_and(can_serve_all)
                }
                PassdbDriver::Passwd { .. }
                | PassdbDriver::Shadow { .. }
                | PassdbDriver::Pam { .. }
                | PassdbDriver::Imap { .. } => needs == sasl::Needs::Verify,
            }
    }

    /// Its `mechanisms` rule.
    pub(crate) fn admits_mechanism(&self, name: &str) -> bool {
        self.rules
            .mechanisms
            .as_ref()
            .is_none_or(|list| list.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }

    /// Its `services` rule.
    pub(crate) fn admits_service(&self, service: &str) -> bool {
        self.rules.services.as_ref().is_none_or(|list| list.iter().any(|known| known == service))
    }
}

/// A password in clear serves every mechanism.
fn can_serve_all(password: &creds::Secret) -> bool {
    creds::Stored::parse(password.expose(), Scheme::Plain)
        .is_ok_and(|stored| creds::can_serve(stored.scheme(), creds::KeyKind::Plain))
}

impl Listener {
    /// The mechanisms as announced.
    fn announced(&self) -> Vec<Mechanism> {
        self.mechanisms
            .iter()
            .filter_map(|name| {
                Mechanism::known(name.as_str()).or_else(|| {
                    MechName::parse(name.as_str().as_bytes())
                        .ok()
                        .map(|name| Mechanism { name, flags: auth_wire::Flags::default() })
                })
            })
            .collect()
    }

    /// Whether a process with these ids may connect.
    pub(crate) fn admits(&self, uid: u32, gid: u32) -> bool {
        self.is_trusted(uid)
            || self.acl.as_ref().is_none_or(|acl| acl.users.contains(&uid) || acl.groups.contains(&gid))
    }

    /// Whether everybody may connect whom the mode lets in.
    pub(crate) fn is_for_all(&self) -> bool {
        self.acl.is_none()
    }

    /// Root and the daemon's own account.
    fn is_trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == nix::unistd::geteuid().as_raw()
    }

    /// Whether a peer of a userdb socket may see only entries of its own uid: Dovecot's rule for mode 0666. Who is
    /// named in the ACL was let in on purpose and sees everything.
    pub(crate) fn is_restricted(&self, uid: u32, gid: u32) -> bool {
        self.kind == AuthListenerKind::Userdb
            && self.mode & 0o777 == 0o666
            && self.acl.is_none()
            && !self.is_trusted(uid)
            && self.owner != Some(uid)
            && self.group != Some(gid)
    }

    /// Whether APOP and CUID make sense, and successes wait for a `REQUEST`.
    pub(crate) fn is_login(&self) -> bool {
        self.kind == AuthListenerKind::Login
    }
}

fn templates(fields: &[(String, String)]) -> anyhow::Result<Vec<(String, Template)>> {
    fields
        .iter()
        .map(|(name, value)| {
            Ok((name.clone(), Template::parse(value).with_context(|| format!("field `{name}`"))?))
        })
        .collect()
}

fn passdb(passdb: &conf::Passdb, files: &Files) -> anyhow::Result<Passdb> {
    let context = || format!("auth.passdb `{}`", passdb.name);
    let driver = match &passdb.driver {
        conf::PassdbDriver::PasswdFile { path, scheme, username_format } => PassdbDriver::PasswdFile {
            source: files.source(path).with_context(context)?,
            scheme: Scheme::from_name(scheme.as_bytes())
                .with_context(|| format!("{}: unknown scheme `{scheme}`", context()))?,
            format: username_format.as_deref().map(Template::parse).transpose().with_context(context)?,
        },
        conf::PassdbDriver::Sasldb { path, realm } => PassdbDriver::Sasldb {
            source: files.sasldb(path).with_context(context)?,
            realm: realm.clone().unwrap_or_else(host_name),
        },
        conf::PassdbDriver::Static { password, nopassword, .. } => PassdbDriver::Static {
            password: password.as_ref().map(|password| creds::Secret::from(password.as_bytes())),
            nopassword: *nopassword,
        },
        conf::PassdbDriver::Passwd { nologin_shell } => PassdbDriver::Passwd {
            rules: StateRules { nologin_shell: *nologin_shell, ..StateRules::default() },
        },
        conf::PassdbDriver::Shadow { must_change, inactive, account_expired, nologin_shell } => {
            PassdbDriver::Shadow {
                rules: StateRules {
                    must_change: *must_change,
                    inactive: *inactive,
                    account_expired: *account_expired,
                    nologin_shell: *nologin_shell,
                },
            }
        }
        conf::PassdbDriver::Pam { service, session, setcred, show_messages, nologin_shell } => {
            PassdbDriver::Pam {
                service: Template::parse(service).with_context(context)?,
                effects: Effects { session: *session, setcred: *setcred },
                rules: StateRules { nologin_shell: *nologin_shell, ..StateRules::default() },
                messages: *show_messages,
            }
        }
        conf::PassdbDriver::Imap { host, port } => PassdbDriver::Imap {
            host: host.clone(),
            port: u16::try_from(*port).with_context(|| format!("{}: port {port}", context()))?,
        },
    };
    Ok(Passdb {
        name: passdb.name.clone(),
        defaults: templates(&passdb.rules.default_fields).with_context(context)?,
        overrides: templates(&passdb.rules.override_fields).with_context(context)?,
        rules: passdb.rules.clone(),
        driver,
    })
}

/// What the kernel calls this machine, as `saslpasswd2` asks it.
fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn userdb(userdb: &conf::Userdb, files: &Files) -> anyhow::Result<Userdb> {
    let context = || format!("auth.userdb `{}`", userdb.name);
    let driver = match &userdb.driver {
        conf::UserdbDriver::PasswdFile { path, username_format } => UserdbDriver::PasswdFile {
            source: files.source(path).with_context(context)?,
            format: username_format.as_deref().map(Template::parse).transpose().with_context(context)?,
        },
        conf::UserdbDriver::Static { allow_all_users } => {
            UserdbDriver::Static { allow_all_users: *allow_all_users }
        }
        conf::UserdbDriver::Passwd => UserdbDriver::Passwd,
        conf::UserdbDriver::Prefetch => UserdbDriver::Prefetch,
    };
    Ok(Userdb {
        name: userdb.name.clone(),
        defaults: templates(&userdb.rules.default_fields).with_context(context)?,
        overrides: templates(&userdb.rules.override_fields).with_context(context)?,
        rules: userdb.rules.clone(),
        driver,
    })
}

/// A uid or gid. Names are turned into numbers by who makes the slice: this process asks no name service.
fn id(text: &str) -> anyhow::Result<u32> {
    text.parse().map_err(|_| {
        anyhow::anyhow!("`{text}` is no number, and names are looked up before the daemon starts")
    })
}

/// The kernel tells a peer's primary group only, so the members of a group are among the users already.
fn acl(users: &[String], groups: &[String]) -> anyhow::Result<Option<Acl>> {
    if users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    let ids = |texts: &[String]| texts.iter().map(|text| id(text)).collect::<anyhow::Result<_>>();
    Ok(Some(Acl { users: ids(users)?, groups: ids(groups)? }))
}

/// libsodium, where it is built in.
fn fast_argon2(question: creds::Argon2Question<'_>, out: &mut [u8]) -> bool {
    let creds::Argon2Question { id, memory_kib, passes, salt, password } = question;
    system_auth::argon2(system_auth::Argon2 { id, memory_kib, passes, salt, password }, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(change: impl FnOnce(&mut AuthSlice)) -> anyhow::Result<Compiled> {
        let mut slice = crate::tests::harness::base_slice(std::path::Path::new("/nowhere"));
        slice.auth.mechanisms.retain(|name| name != "ANONYMOUS");
        change(&mut slice);
        Compiled::new(&slice, creds::NoCrypt, &Files::default())
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        type Change = fn(&mut AuthSlice);
        let cases: [(Change, &str); 9] = [
            (|s| s.auth.mechanisms = vec!["NTLM".into()], "NTLM"),
            (|s| s.auth.passdb.clear(), "no passdb of its chain"),
            (|s| s.auth.listener[0].passdb = Some(vec!["other".into()]), "auth.listener `client`"),
            (|s| s.auth.listener[0].allow_users = vec!["no-such-user".into()], "`no-such-user` is no number"),
            (
                |s| s.auth.listener[0].allow_groups = vec!["no-such-group".into()],
                "`no-such-group` is no number",
            ),
            (|s| s.mail.home = "%{nonsense}".into(), "mail.home"),
            (|s| s.auth.username_format = "%{user | rot13}".into(), "auth.username_format"),
            (|s| s.auth.passdb[0].rules.default_fields = vec![("a".into(), "%".into())], "field `a`"),
            (
                |s| {
                    s.auth.passdb[0].driver = conf::PassdbDriver::PasswdFile {
                        path: "/users".into(),
                        scheme: "ROT13".into(),
                        username_format: None,
                    };
                },
                "unknown scheme `ROT13`",
            ),
        ];
        for (change, want) in cases {
            let error = format!("{:#}", compile(change).unwrap_err());
            assert!(error.contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn channel_binding_needs_minor_three() {
        let names = |minor: u32| {
            let compiled = compile(|s| {
                s.auth.mechanisms = vec!["SCRAM-SHA-256".into(), "SCRAM-SHA-256-PLUS".into()];
                s.auth.listener[0].minor = minor;
            });
            compiled.unwrap().listeners["client"].mechanisms.len()
        };
        assert_eq!((names(2), names(3)), (1, 2));
    }

    #[test]
    fn who_may_connect_and_see_everything() {
        let us = nix::unistd::geteuid().as_raw();
        let compiled = compile(|s| {
            for listener in &mut s.auth.listener {
                listener.mode = 0o666;
                (listener.owner, listener.group) = (Some("2000".into()), Some("2001".into()));
            }
            s.auth.listener[0].allow_users = vec!["1000".into()];
            s.auth.listener[0].allow_groups = vec!["1001".into()];
        })
        .unwrap();
        let client = &compiled.listeners["client"];
        for (uid, gid, admitted) in
            [(0, 0, true), (us, 9, true), (1000, 9, true), (9, 1001, true), (9, 9, false)]
        {
            assert_eq!(client.admits(uid, gid), admitted, "{uid} {gid}");
        }
        let userdb = &compiled.listeners["userdb"];
        for (uid, gid, restricted) in [(0, 0, false), (2000, 9, false), (9, 2001, false), (9, 9, true)] {
            assert!(userdb.admits(uid, gid));
            assert_eq!(userdb.is_restricted(uid, gid), restricted, "{uid} {gid}");
        }
        let private = compile(|s| s.auth.listener[2].mode = 0o660).unwrap();
        assert!(!private.listeners["userdb"].is_restricted(9, 9));
    }
}
