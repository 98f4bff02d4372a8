//! The userdb chain: who the user is to the mail programs.
//!
//! Purpose: uid, gid, home, mail and further fields, from the entries in order, as Dovecot does.
//! Source:  Dovecot `auth/auth-request.c` (userdb part); reference note, sections B, C, E.
//! Trust:   the name has passed the rules of `username.rs`; entries and templates are the administrator's.
//! Never:   make a home or mail path out of a name that is not one plain path component.

use std::time::Instant;

use conf::{ResultAction, UserdbSkip};

use crate::chain::{self, Ask, Said};
use crate::config::{Compiled, Listener, Userdb, UserdbDriver};
use crate::engine::Engine;
use crate::ids::Id;
use crate::request::Request;
use crate::template::{self, Template};
use crate::username;

/// What the user databases said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The request's `userdb` fields are complete.
    Yes,
    /// There is no such user.
    No,
    /// Nobody can say; the text is for the asker.
    Unavailable(String),
}

impl Found {
    /// For administrators.
    pub(crate) fn words(&self) -> String {
        match self {
            Found::Yes => "found".to_owned(),
            Found::No => "unknown user".to_owned(),
            Found::Unavailable(why) => format!("cannot answer: {why}"),
        }
    }
}

/// Walks the chain. `authenticated`: a passdb has just accepted this user.
pub(crate) async fn walk(
    engine: &Engine,
    compiled: &Compiled,
    listener: &Listener,
    request: &mut Request,
    authenticated: bool,
) -> Found {
    let prefetched = !request.userdb.is_empty();
    let (mut found, mut internal, mut asked) = (false, None, false);
    for userdb in &compiled.userdbs {
        let skip = match userdb.rules.skip {
            UserdbSkip::Never => false,
            UserdbSkip::Found => found,
            UserdbSkip::NotFound => !found,
        };
        if skip || !username::filter_admits(&userdb.rules.username_filter, &request.user) {
            request.note(|| format!("userdb {}: skipped", userdb.name));
            continue;
        }
        asked = true;
        let before = (request.userdb.clone(), request.user.clone());
        let said = one(engine, compiled, listener, userdb, request, authenticated, prefetched).await;
        request.note(|| format!("userdb {}: {}", userdb.name, said.words()));
        let action = match &said {
            Found::Yes => userdb.rules.result_success,
            other => {
                (request.userdb, request.user) = before;
                if let Found::Unavailable(why) = other {
                    tracing::warn!(target: "auth", userdb = userdb.name, why, "userdb cannot answer");
                    internal = Some(why.clone());
                    userdb.rules.result_internalfail
                } else {
                    userdb.rules.result_failure
                }
            }
        };
        match action {
            ResultAction::ReturnOk => {
                found = true;
                break;
            }
            ResultAction::ReturnFail => {
                found = false;
                break;
            }
            ResultAction::Return => break,
            ResultAction::ContinueOk => found = true,
            ResultAction::ContinueFail => found = false,
            ResultAction::Continue => found |= said == Found::Yes,
        }
    }
    if !asked {
        return Found::Unavailable("no user database is configured for this user".to_owned());
    }
    match (found, internal) {
        (true, _) => finish(engine, compiled, request).await,
        (false, Some(_)) => Found::Unavailable("Temporary failure".to_owned()),
        (false, None) => Found::No,
    }
}

async fn one(
    engine: &Engine,
    compiled: &Compiled,
    listener: &Listener,
    userdb: &Userdb,
    request: &mut Request,
    authenticated: bool,
    prefetched: bool,
) -> Found {
    let fields: Vec<(String, Option<String>)> = match &userdb.driver {
        UserdbDriver::Prefetch if prefetched => Vec::new(),
        UserdbDriver::Prefetch => return Found::No,
        UserdbDriver::PasswdFile { source, format } => {
            let found = source.find(format.as_ref(), request, |index, entry| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let mut out = Vec::new();
                // A file whose ids do not resolve was rejected line by line when it was read.
                let ids = index.ids(&entry).unwrap_or_default();
                out.extend(ids.uid.map(|uid| ("uid".to_owned(), Some(uid.to_string()))));
                out.extend(ids.gid.map(|gid| ("gid".to_owned(), Some(gid.to_string()))));
                // Field 6 is taken as written: a percent sign in it means itself.
                out.extend(entry.home().map(|home| ("home".to_owned(), Some(text(home).replace('%', "%%")))));
                out.extend(entry.userdb_fields().map(|(name, value)| (text(name), value.map(text))));
                out
            });
            match found.await {
                Ok(Some(fields)) => fields,
                Ok(None) => return Found::No,
                Err(why) => return Found::Unavailable(why),
            }
        }
        UserdbDriver::Static { allow_all_users } => {
            if !authenticated && !allow_all_users {
                match exists(engine, compiled, listener, request).await {
                    Found::Yes => {}
                    other => return other,
                }
            }
            Vec::new()
        }
        UserdbDriver::Passwd => match engine.account(request).await {
            Ok(Some(account)) => {
                // Directory services may spell a name in another way than it was asked for.
                if account.name != chain::local_name(request) {
                    match compiled.rules.canonical(&account.name) {
                        Ok(user) => request.user = user,
                        Err(why) => return Found::Unavailable(format!("the system renamed the user: {why}")),
                    }
                }
                vec![
                    ("system_groups_user".to_owned(), Some(account.name)),
                    ("uid".to_owned(), Some(account.uid.to_string())),
                    ("gid".to_owned(), Some(account.gid.to_string())),
                    ("home".to_owned(), Some(account.home.replace('%', "%%"))),
                ]
            }
            Ok(None) => return Found::No,
            Err(why) => return Found::Unavailable(why),
        },
    };
    match apply(userdb, request, &fields) {
        Ok(()) if request.userdb.has("tempfail") => Found::Unavailable(
            request.userdb.value("reason").unwrap_or("temporary failure of this user").to_owned(),
        ),
        Ok(()) => Found::Yes,
        Err(Unfit::Entry(why)) => Found::Unavailable(why),
        Err(Unfit::Name) => Found::No,
    }
}

/// A static userdb knows nobody; whether a user exists is known to the passdbs.
async fn exists(engine: &Engine, compiled: &Compiled, listener: &Listener, request: &mut Request) -> Found {
    let mut probe = request.clone();
    probe.mechanism = None;
    let walk = chain::walk(engine, compiled, &listener.chain, &mut probe, Ask::Existence, false).await;
    match walk.said {
        Said::Ok | Said::Expired(_) => Found::Yes,
        Said::Internal(why) => Found::Unavailable(why),
        _ if walk.no_lookups => {
            Found::Unavailable("the passdbs cannot look users up; set allow_all_users".to_owned())
        }
        _ if walk.known => Found::Yes,
        _ => Found::No,
    }
}

/// Why the fields of an entry cannot be had.
enum Unfit {
    /// The name cannot be part of a path: it is nobody's here.
    Name,
    /// What the entry says makes no sense.
    Entry(String),
}

impl Unfit {
    fn field(name: &str, why: &template::Error) -> Unfit {
        match why {
            template::Error::NotAPath => Unfit::Name,
            _ => Unfit::Entry(format!("field `{name}`: {why}")),
        }
    }
}

fn apply(userdb: &Userdb, request: &mut Request, fields: &[(String, Option<String>)]) -> Result<(), Unfit> {
    let mut unset = Vec::new();
    for (name, template) in &userdb.defaults {
        // A default never replaces what an earlier entry or the passdb said.
        if request.userdb.has(name) {
            continue;
        }
        match template.field(name, request) {
            Ok(value) => request.userdb.set_default(name, Some(&value)),
            // The entry may say better, or where the home is.
            Err(_) => unset.push((name, template)),
        }
    }
    for (name, value) in fields {
        let value = match value {
            Some(text) if text.contains('%') => {
                let template = Template::parse(text)
                    .map_err(|error| Unfit::Entry(format!("field `{name}`: {error}")))?;
                Some(template.field(name, request).map_err(|why| Unfit::field(name, &why))?)
            }
            other => other.clone(),
        };
        request.userdb.apply(name, value.as_deref());
    }
    for (name, template) in &userdb.overrides {
        let value = template.field(name, request).map_err(|why| Unfit::field(name, &why))?;
        request.userdb.apply(name, Some(&value));
    }
    if let Some(list) = request.userdb.take("userdb_import").flatten() {
        for item in list.split('\t').filter(|item| !item.is_empty()) {
            match item.split_once('=') {
                Some((name, value)) => request.userdb.apply(name, Some(value)),
                None => request.userdb.apply(item, None),
            }
        }
    }
    for (name, template) in unset {
        if !request.userdb.has(name) {
            let value = template.field(name, request).map_err(|why| Unfit::field(name, &why))?;
            request.userdb.set_default(name, Some(&value));
        }
    }
    Ok(())
}

/// Renames, resolves ids, and adds home and mail.
async fn finish(engine: &Engine, compiled: &Compiled, request: &mut Request) -> Found {
    std::mem::swap(&mut request.fields, &mut request.userdb);
    chain::rename(request);
    std::mem::swap(&mut request.fields, &mut request.userdb);
    for kind in [Id::Uid, Id::Gid] {
        let Some(value) = request.userdb.value(kind.field()) else { continue };
        if value.parse::<u32>().is_ok() {
            continue;
        }
        match engine.ids.find(kind, value).await {
            Ok(Some(id)) => request.userdb.set(kind.field(), Some(&id.to_string())),
            Ok(None) => {
                let why = format!("{} `{value}` is not known to the system", kind.field());
                tracing::warn!(target: "auth", user = request.user, why, "userdb cannot answer");
                return Found::Unavailable("Temporary failure".to_owned());
            }
            Err(why) => {
                tracing::warn!(target: "auth", user = request.user, why, "userdb cannot answer");
                return Found::Unavailable("Temporary failure".to_owned());
            }
        }
    }
    let home = match request.userdb.value("home").filter(|home| !home.is_empty()) {
        Some(home) => home.to_owned(),
        None => match compiled.home.path(request) {
            Ok(home) => home,
            Err(_) => return Found::No,
        },
    };
    if home.contains('\0') || !home.starts_with('/') {
        return Found::Unavailable("home is not an absolute path".to_owned());
    }
    request.home = Some(home.clone());
    request.userdb.set("home", Some(&home));
    let path = match request.userdb.value("mail") {
        Some(mail) => {
            let path = mail.strip_prefix("maildir:").unwrap_or(mail);
            match path.strip_prefix('~') {
                Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
                _ => path.to_owned(),
            }
        }
        None => match compiled.location.path(request) {
            Ok(path) => path,
            Err(_) => return Found::No,
        },
    };
    // Dovecot's notation: its imap takes a bare path for an ambiguous location and ends the session.
    let mail = if path.starts_with('/') { format!("maildir:{path}") } else { path };
    request.userdb.set("mail", Some(&mail));
    Found::Yes
}

/// A request for a look-up by name.
pub(crate) fn named(
    compiled: &Compiled,
    mut request: Request,
    name: &str,
) -> Result<Request, username::Refused> {
    request.arrived = Instant::now();
    request.default_domain = compiled.rules.default_domain();
    request.user = compiled.rules.canonical(name)?;
    name.clone_into(&mut request.original);
    Ok(request)
}
