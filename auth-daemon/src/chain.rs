//! The passdb chain.
//!
//! Purpose: ask one passdb after the other until one decides, as Dovecot does: six result actions, skip, deny, filters,
//!          default and override fields, per-user checks.
//! Source:  Dovecot `auth/auth-request.c`; reference note, section C.
//! Differs: a deny entry does not end the chain: the other entries still check the password, and only after a right one
//!          the client learns that the account is disabled. A wrong one looks like any wrong one.
//! Trust:   names and passwords are strangers'; entries and rules are the administrator's; workers' answers are
//!          checked when read.
//! Never:   keep fields of an entry that failed.

use conf::{PassdbSkip, ResultAction};
use creds::{Key, KeyKind, Scheme, Secret, Stored};

use crate::config::{Compiled, Passdb, PassdbDriver};
use crate::engine::Engine;
use crate::request::Request;
use crate::template::{self, Template};
use crate::{guards, username, worker};

/// What the chain is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask<'a> {
    /// Is this the password?
    Password(&'a [u8]),
    /// What is the key for this mechanism?
    Key(KeyKind),
    /// Is there such a user?
    Existence,
}

/// What one passdb said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// The password is right, or the key is there.
    Ok,
    /// The password is wrong.
    Mismatch(String),
    /// There is no such user here, or he may not come from there.
    Unknown(String),
    /// The stored password cannot serve this.
    NoScheme(String),
    /// The password is right, the account disabled.
    Disabled(String),
    /// The password is right, and it has expired or must be changed; which, for the log.
    Expired(String),
    /// The passdb cannot answer.
    Internal(String),
    /// Only fields, no verdict (`noauthenticate`).
    Next,
}

/// What the chain said.
#[derive(Debug)]
pub(crate) struct Walk {
    /// The verdict; [`Said::Next`] does not occur.
    pub(crate) said: Said,
    /// The key that was asked for.
    pub(crate) key: Option<Key>,
    /// The last entry matched with `continue…`. In a list of masters this means: now ask for the target, whatever
    /// `said` says.
    pub(crate) go_on: bool,
    /// Some entry knows the user.
    pub(crate) known: bool,
    /// No entry of the chain can look users up without a password.
    pub(crate) no_lookups: bool,
    /// Some entry was asked that can only answer with a password.
    pub(crate) blind: bool,
}

/// What an entry holds for a user.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The stored password.
    pub(crate) password: Option<Secret>,
    /// The key that was asked for, where the entry holds one.
    pub(crate) key: Option<Result<Key, creds::Error>>,
    /// Extra fields, values not expanded yet.
    pub(crate) fields: Vec<(String, Option<String>)>,
}

/// What an entry says of a name it does not hold.
const UNKNOWN: &str = "unknown user";

/// Walks a chain. `verified`: an earlier stage has checked the password.
pub(crate) async fn walk(
    engine: &Engine,
    compiled: &Compiled,
    chain: &[usize],
    request: &mut Request,
    ask: Ask<'_>,
    verified: bool,
) -> Walk {
    let mut walker =
        Walker { engine, compiled, ask, verified, key: None, known: false, no_lookups: true, blind: false };
    let (mut success, mut internal, mut denied, mut asked) = (false, None, None, false);
    let mut last = Said::Unknown(UNKNOWN.to_owned());
    // Whether the last entry only collected fields, and whether it matched and wants others to be asked as well.
    let (mut undecided, mut go_on) = (false, false);
    for at in chain {
        let Some(passdb) = compiled.passdbs.get(*at) else { continue };
        if let Some(why) = walker.skips(passdb, success, request) {
            request.note(|| format!("passdb {}: skipped, {why}", passdb.name));
            continue;
        }
        asked = true;
        // The name is none of it: only an entry that says yes may change that.
        let before = (request.fields.clone(), request.userdb.clone());
        if passdb.rules.deny {
            let deny = walker.deny(passdb, request).await;
            (request.fields, request.userdb) = before;
            match deny {
                Said::Ok => denied = Some(passdb.name.clone()),
                Said::Internal(why) => {
                    internal = Some(format!("passdb {}: {why}", passdb.name));
                    success = false;
                    break;
                }
                _ => {}
            }
            continue;
        }
        let said = walker.one(passdb, request).await;
        request.note(|| format!("passdb {}: {}", passdb.name, said.describe()));
        let rules = &passdb.rules;
        let action = match &said {
            Said::Ok => {
                request.driver.clone_from(&passdb.name);
                rules.result_success
            }
            // Its fields stay; somebody else has to decide.
            Said::Next => {
                undecided = true;
                continue;
            }
            Said::Disabled(_) | Said::Expired(_) => {
                request.driver.clone_from(&passdb.name);
                (request.fields, request.userdb) = before;
                return walker.done(said, false);
            }
            Said::Internal(why) => {
                (request.fields, request.userdb) = before;
                internal = Some(match internal {
                    Some(earlier) => format!("{earlier}; passdb {}: {why}", passdb.name),
                    None => format!("passdb {}: {why}", passdb.name),
                });
                rules.result_internalfail
            }
            Said::Mismatch(_) | Said::Unknown(_) | Said::NoScheme(_) => {
                (request.fields, request.userdb) = before;
                rules.result_failure
            }
        };
        undecided = false;
        let matched = said == Said::Ok;
        // The most telling failure is what the log shows.
        let less_telling = match (&said, &last) {
            (Said::Unknown(_), Said::Mismatch(_) | Said::NoScheme(_)) => true,
            // The user is known somewhere, but may not come from there.
            (Said::Unknown(why), Said::Unknown(before)) => why == UNKNOWN && before != UNKNOWN,
            _ => false,
        };
        if !matched && !less_telling {
            if matches!(&said, Said::Mismatch(_)) || matches!(&said, Said::Unknown(why) if why != UNKNOWN) {
                request.driver.clone_from(&passdb.name);
            }
            last = said;
        } else if matched {
            last = Said::Unknown("refused by a rule of the chain".to_owned());
        }
        match action {
            ResultAction::ReturnOk => {
                success = true;
                go_on = false;
                break;
            }
            ResultAction::ReturnFail => {
                success = false;
                break;
            }
            ResultAction::Return => break,
            ResultAction::ContinueOk => {
                success = true;
                walker.verified = true;
            }
            ResultAction::ContinueFail => {
                success = false;
                walker.verified = false;
            }
            ResultAction::Continue => walker.verified |= matched,
        }
        go_on = matched;
    }
    if !asked {
        internal = Some("all password databases were skipped".to_owned());
    } else if undecided && !success {
        internal = Some("noauthenticate is set, and no passdb follows that decides".to_owned());
    }
    if let Some(name) = &denied {
        request.driver.clone_from(name);
        go_on = false;
    }
    // The log line of a login tells why nobody could decide it; all others would leave that out.
    if let Some(why) = &internal
        && (success || matches!(ask, Ask::Existence))
    {
        tracing::warn!(target: "auth", user = request.user, why, "passdb cannot answer");
    }
    let said = match (success, denied.is_some(), internal) {
        (true, false, _) => Said::Ok,
        (true, true, _) => Said::Disabled("on a deny list".to_owned()),
        (false, _, Some(why)) => Said::Internal(why),
        (false, true, None) => Said::Mismatch("on a deny list, and the password is wrong".to_owned()),
        (false, false, None) => last,
    };
    walker.done(said, go_on)
}

struct Walker<'a> {
    engine: &'a Engine,
    compiled: &'a Compiled,
    ask: Ask<'a>,
    verified: bool,
    key: Option<Key>,
    known: bool,
    no_lookups: bool,
    blind: bool,
}

impl Walker<'_> {
    fn done(self, said: Said, go_on: bool) -> Walk {
        let Walker { key, known, no_lookups, blind, .. } = self;
        Walk { said, key, go_on, known, no_lookups, blind }
    }

    /// Why an entry is not asked.
    fn skips(&self, passdb: &Passdb, success: bool, request: &Request) -> Option<&'static str> {
        let rules = &passdb.rules;
        let authenticated = success || self.verified;
        if rules.skip == PassdbSkip::Authenticated && authenticated {
            return Some("already authenticated");
        }
        if rules.skip == PassdbSkip::Unauthenticated && !authenticated {
            return Some("not yet authenticated");
        }
        if !passdb.admits_mechanism(request.mechanism_name()) {
            return Some("not for this mechanism");
        }
        if !passdb.admits_service(&request.service) {
            return Some("not for this service");
        }
        if !username::filter_admits(&rules.username_filter, &request.user) {
            return Some("not for this user");
        }
        None
    }

    /// Whether a deny entry knows the user.
    async fn deny(&mut self, passdb: &Passdb, request: &mut Request) -> Said {
        let found = match self.record(passdb, request).await {
            Ok(Some(_)) => Said::Ok,
            Ok(None) => Said::Unknown(String::new()),
            Err(why) => Said::Internal(why),
        };
        request.note(|| format!("deny list {}: {}", passdb.name, found.describe()));
        found
    }

    /// Asks one entry.
    async fn one(&mut self, passdb: &Passdb, request: &mut Request) -> Said {
        if let Some(question) = worker_question(passdb, request) {
            // Boxed, as all that takes long is: the state of a cheap login stays small.
            return Box::pin(self.ask_worker(passdb, request, question)).await;
        }
        self.no_lookups = false;
        let record = match self.record(passdb, request).await {
            Ok(Some(record)) => record,
            Ok(None) => return Said::Unknown(UNKNOWN.to_owned()),
            Err(why) => return Said::Internal(why),
        };
        self.known = true;
        if let Err(why) = apply(passdb, request, &record.fields) {
            return Said::Internal(why);
        }
        if let Some(said) = guards::before_password(request) {
            return said;
        }
        let said = self.check_password(passdb, request, record).await;
        if said == Said::Ok {
            if let Some(why) = guards::expired(request) {
                return Said::Disabled(why);
            }
            rename(request);
        }
        said
    }

    /// What is left to do after a driver without fields of its own said yes.
    fn accept(&mut self, passdb: &Passdb, request: &mut Request, name: Option<String>) -> Said {
        self.known = true;
        if let Err(why) = apply(passdb, request, &[]) {
            return Said::Internal(why);
        }
        if let Some(said) = guards::before_password(request) {
            return said;
        }
        for unused in ["password", "password_noscheme", "nopassword"] {
            request.fields.take(unused);
        }
        if request.fields.take("noauthenticate").is_some() {
            return Said::Next;
        }
        if let Some(why) = guards::expired(request) {
            return Said::Disabled(why);
        }
        if let Some(name) = name.filter(|name| *name != local_name(request)) {
            match self.compiled.rules.canonical(&name) {
                Ok(user) => request.user = user,
                Err(why) => return Said::Internal(format!("the driver renamed the user: {why}")),
            }
        }
        rename(request);
        Said::Ok
    }

    /// The entry's record of the user.
    async fn record(&self, passdb: &Passdb, request: &Request) -> Result<Option<Record>, String> {
        match &passdb.driver {
            PassdbDriver::Sasldb { source, realm } => {
                let kind = if let Ask::Key(kind) = self.ask { Some(kind) } else { None };
                let verifier = &self.compiled.verifier;
                let found = source.find_realm(realm, request, |entry| Record {
                    password: Some(Secret::from(entry.password())),
                    key: kind.and_then(|kind| {
                        let stored = entry.stored_for(kind, Scheme::Plain)?;
                        Some(verifier.key(&stored, kind))
                    }),
                    fields: Vec::new(),
                });
                found.await
            }
            PassdbDriver::PasswdFile { source, scheme, format } => {
                let kind = if let Ask::Key(kind) = self.ask { Some(kind) } else { None };
                let verifier = &self.compiled.verifier;
                let key = |entry: &creds::passwd::Entry<'_>| {
                    let stored = entry.stored_for(kind?, *scheme)?;
                    Some(verifier.key(&stored, kind?))
                };
                let found = source.find(format.as_ref(), request, |_, entry| {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    Record {
                        password: Some(Secret::from(entry.password())),
                        key: key(&entry),
                        fields: entry
                            .extra_fields()
                            .filter(|(name, _)| *name != creds::passwd::KEY_FIELD.as_bytes())
                            .map(|(name, value)| (text(name), value.map(text)))
                            .collect(),
                    }
                });
                found.await
            }
            PassdbDriver::Static { password, .. } => {
                Ok(Some(Record { password: password.clone(), ..Record::default() }))
            }
            PassdbDriver::Passwd { .. }
            | PassdbDriver::Shadow { .. }
            | PassdbDriver::Pam { .. }
            | PassdbDriver::Imap { .. } => {
                let found = Box::pin(self.engine.account(request)).await?;
                Ok(found.map(|_| Record::default()))
            }
        }
    }

    async fn check_password(&mut self, passdb: &Passdb, request: &mut Request, record: Record) -> Said {
        let (default, nopassword) = match &passdb.driver {
            PassdbDriver::PasswdFile { scheme, .. } => (*scheme, false),
            PassdbDriver::Static { nopassword, .. } => (Scheme::Plain, *nopassword),
            _ => (Scheme::Crypt, false),
        };
        let own = request.fields.take("password").flatten().map(Secret::from);
        let bare = request.fields.take("password_noscheme").flatten().map(Secret::from);
        let nopassword = request.fields.take("nopassword").is_some() || nopassword;
        if request.fields.take("noauthenticate").is_some() {
            return Said::Next;
        }
        let no_scheme = own.is_none() && bare.is_some();
        let stored = own.or(bare).or(record.password);
        let has_password = stored.as_ref().is_some_and(|stored| !stored.expose().is_empty());
        if nopassword && has_password {
            tracing::error!(target: "auth", passdb = passdb.name, user = request.user,
                "nopassword is set, but there is a password: the password counts");
        }
        match self.ask {
            Ask::Existence => {
                let stored = stored.unwrap_or_default();
                let text = StoredText { text: &stored, default, no_scheme };
                request.note(|| {
                    crate::explain::stored(&self.compiled.verifier, passdb, text, nopassword && !has_password)
                });
                Said::Ok
            }
            Ask::Password(_) if self.verified => Said::Ok,
            Ask::Password(_) if nopassword && !has_password => Said::Ok,
            // libcs differ on an empty hash; only `nopassword` lets everybody in. A plain empty password is one, though.
            Ask::Password(given) => {
                let stored = stored.unwrap_or_default();
                let text = StoredText { text: &stored, default, no_scheme };
                self.verify(passdb, request, text, given).await
            }
            Ask::Key(kind) => {
                let stored = stored.unwrap_or_default();
                let text = StoredText { text: &stored, default, no_scheme };
                let key = record.key.unwrap_or_else(|| {
                    text.parse().and_then(|stored| self.compiled.verifier.key(&stored, kind))
                });
                match key {
                    Ok(key) => {
                        self.key = Some(key);
                        Said::Ok
                    }
                    Err(error) => Said::NoScheme(error.to_string()),
                }
            }
        }
    }

    async fn verify(
        &self,
        passdb: &Passdb,
        request: &mut Request,
        text: StoredText<'_>,
        given: &[u8],
    ) -> Said {
        let verdict = self.engine.check(self.compiled, request, text, given).await;
        match verdict {
            Ok(creds::Verdict::Match) => Said::Ok,
            Ok(creds::Verdict::Mismatch) => Said::Mismatch("wrong password".to_owned()),
            Ok(creds::Verdict::Locked) => Said::Mismatch("account is locked".to_owned()),
            Err(CheckError::Busy(why)) => Said::Internal(why),
            Err(CheckError::Unusable(why)) => {
                tracing::warn!(target: "auth", passdb = passdb.name, user = request.user, why,
                    "stored password cannot be used");
                Said::NoScheme(why)
            }
        }
    }

    /// A driver that lives in a worker process and only checks passwords.
    async fn ask_worker(
        &mut self,
        passdb: &Passdb,
        request: &mut Request,
        question: worker::Question,
    ) -> Said {
        let given = match self.ask {
            Ask::Key(_) => return Said::NoScheme("this driver can only check passwords".to_owned()),
            Ask::Existence => {
                let blind = match passdb.driver {
                    PassdbDriver::Pam { .. } => Some("PAM cannot look users up"),
                    PassdbDriver::Imap { .. } => Some("an IMAP server cannot look users up"),
                    _ => None,
                };
                if let Some(why) = blind {
                    self.blind = true;
                    return Said::NoScheme(why.to_owned());
                }
                self.no_lookups = false;
                return match self.engine.account(request).await {
                    Ok(Some(account)) => self.accept(passdb, request, Some(account.name)),
                    Ok(None) => Said::Unknown(UNKNOWN.to_owned()),
                    Err(why) => Said::Internal(why),
                };
            }
            // Somebody has checked it already; what is left are the fields of the settings.
            Ask::Password(_) if self.verified => return self.accept(passdb, request, None),
            Ask::Password(given) => given,
        };
        let checked = self.engine.ask_worker(self.compiled, request, &passdb.name, question, given).await;
        request.message = checked.message;
        match checked.answer {
            worker::Answer::Ok(name) => self.accept(passdb, request, name),
            worker::Answer::Mismatch => Said::Mismatch("wrong password".to_owned()),
            worker::Answer::Refused(why) => Said::Mismatch(format!("wrong password ({why})")),
            worker::Answer::Locked => Said::Mismatch("account is locked".to_owned()),
            worker::Answer::Unknown => Said::Unknown(UNKNOWN.to_owned()),
            worker::Answer::Disabled(why) => {
                Said::Disabled(format!("account is disabled or has expired ({why})"))
            }
            worker::Answer::Expired(why) => Said::Expired(why),
            worker::Answer::Unavailable(why) => Said::Internal(why),
        }
    }
}

/// A stored password before it is parsed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredText<'a> {
    /// The text.
    pub(crate) text: &'a Secret,
    /// Its scheme where it names none.
    pub(crate) default: Scheme,
    /// Braces mean nothing.
    pub(crate) no_scheme: bool,
}

impl<'a> StoredText<'a> {
    /// Splits scheme and data.
    pub(crate) fn parse(&self) -> Result<Stored<'a>, creds::Error> {
        if self.no_scheme {
            Ok(Stored::new(self.default, self.text.expose()))
        } else {
            Stored::parse_column(self.text.expose(), self.default)
        }
    }
}

/// Why a password could not be checked.
#[derive(Debug)]
pub(crate) enum CheckError {
    /// Not now: queue full, no memory.
    Busy(String),
    /// Never: unknown scheme, malformed, too expensive.
    Unusable(String),
}

impl Said {
    fn describe(&self) -> String {
        match self {
            Said::Ok => "ok".to_owned(),
            Said::Mismatch(why) | Said::Unknown(why) | Said::NoScheme(why) => format!("failure: {why}"),
            Said::Disabled(why) => format!("disabled: {why}"),
            Said::Expired(why) => format!("password expired: {why}"),
            Said::Internal(why) => format!("cannot answer: {why}"),
            Said::Next => "fields only".to_owned(),
        }
    }
}

/// The question for a worker, if the driver lives in one.
fn worker_question(passdb: &Passdb, request: &Request) -> Option<worker::Question> {
    Some(match &passdb.driver {
        PassdbDriver::Pam { service, effects, rules, messages } => worker::Question::Pam {
            service: match &request.pam_service {
                // A mux client may name only some PAM files, whatever else its service is good for.
                Some(name) => service.expand(&Request { service: name.clone(), ..request.clone() }),
                None => service.expand(request),
            },
            effects: *effects,
            rules: *rules,
            messages: *messages,
        },
        PassdbDriver::Imap { host, port } => worker::Question::Imap { host: host.clone(), port: *port },
        PassdbDriver::Shadow { rules } => worker::Question::Shadow(*rules),
        PassdbDriver::Passwd { rules } => worker::Question::Passwd(*rules),
        PassdbDriver::PasswdFile { .. } | PassdbDriver::Sasldb { .. } | PassdbDriver::Static { .. } => {
            return None;
        }
    })
}

/// System accounts have no domain: the default one is left out.
pub(crate) fn local_name(request: &Request) -> String {
    crate::template::without_domain(&request.user, request.default_domain.as_deref()).to_owned()
}

/// Applies default fields, the driver's and override fields.
fn apply(passdb: &Passdb, request: &mut Request, fields: &[(String, Option<String>)]) -> Result<(), String> {
    for (name, template) in &passdb.defaults {
        if let Some(value) = field_value(request, name, template)? {
            set_field(request, name, Some(&value));
        }
    }
    for (name, value) in fields {
        let value = match value {
            Some(text) if text.contains('%') => {
                let template = Template::parse(text).map_err(|error| format!("field `{name}`: {error}"))?;
                let Some(value) = field_value(request, name, &template)? else { continue };
                Some(value)
            }
            other => other.clone(),
        };
        set_field(request, name, value.as_deref());
    }
    for (name, template) in &passdb.overrides {
        if let Some(value) = field_value(request, name, template)? {
            set_field(request, name, Some(&value));
        }
    }
    Ok(())
}

/// `None`: it needs a home, which only the userdb knows. The userdb makes its own of the same field.
fn field_value(request: &Request, name: &str, template: &Template) -> Result<Option<String>, String> {
    let Some(own) = name.strip_prefix("userdb_") else { return Ok(Some(template.expand(request))) };
    match template.field(own, request) {
        Ok(value) => Ok(Some(value)),
        Err(template::Error::NoHome) => Ok(None),
        Err(error) => Err(format!("field `{name}`: {error}")),
    }
}

/// `userdb_` fields go to the user database's answer.
fn set_field(request: &mut Request, name: &str, value: Option<&str>) {
    match name.strip_prefix("userdb_") {
        Some("userdb_import") => {
            for item in value.unwrap_or_default().split('\t').filter(|item| !item.is_empty()) {
                match item.split_once('=') {
                    Some((name, value)) => request.userdb.apply(name, Some(value)),
                    None => request.userdb.apply(item, None),
                }
            }
        }
        Some(name) => request.userdb.apply(name, value),
        None if name == "nodelay" => {
            request.nodelay = true;
            request.fields.apply(name, value);
        }
        None => request.fields.apply(name, value),
    }
}

/// Fields that change the name.
pub(crate) fn rename(request: &mut Request) {
    let clean = |text: String| (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text);
    if let Some(name) = request.fields.take("user").flatten().and_then(clean) {
        request.user = name;
    }
    if let Some(local) = request.fields.take("username").flatten().and_then(clean) {
        request.user = match request.user.split_once('@') {
            Some((_, domain)) => format!("{local}@{domain}"),
            None => local,
        };
    }
    if let Some(domain) = request.fields.take("domain").flatten().and_then(clean) {
        request.user = format!("{}@{domain}", crate::template::before_at(&request.user));
    }
}
