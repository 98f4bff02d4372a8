//! What no single key can tell: names that clash, listeners without a certificate, files that are not there.
//!
//! Trust: settings are the administrator's; files they name may be anybody's and are opened by `guarded.rs`.
//! Never: ask the machine anything in `semantics`, or stop at the first mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;

use crate::errors::{Errors, Problem};
use crate::nearest::nearest;
use crate::schema::{Cx, join};
use crate::{AuthListenerKind, PassdbDriver, Settings, SmtpKind, UserdbDriver};

/// Longest path of a Unix socket: 107 bytes (`unix(7)`), less two for the temporary name it is bound under.
pub(crate) const SOCKET_PATH: usize = 105;

/// Mechanisms the daemon knows.
const MECHANISMS: &[&str] = &[
    "PLAIN",
    "LOGIN",
    "CRAM-MD5",
    "DIGEST-MD5",
    "SCRAM-SHA-1",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
    "ANONYMOUS",
    "APOP",
];

/// Everything that can be said without looking at the machine.
pub(crate) fn semantics(cx: &mut Cx, settings: &Settings) {
    names_and_domains(cx, settings);
    log_level(cx, &settings.log.level);
    let mut seen = Listeners::default();
    for (i, listener) in settings.auth.listener.iter().enumerate() {
        seen.name(cx, &format!("auth.listener[{i}]"), &listener.name);
        auth_listener(cx, settings, i);
    }
    socket_paths(cx, settings);
    for (i, listener) in settings.smtp.listener.iter().enumerate() {
        let path = format!("smtp.listener[{i}]");
        seen.name(cx, &path, &listener.name);
        seen.addresses(cx, &path, &listener.name, &listener.address);
        if matches!(listener.kind, SmtpKind::Submission | SmtpKind::Submissions) {
            needs_certificate(cx, settings, &path, &format!("a `{}` listener", listener.kind));
        }
    }
    let imap = settings.imap.listener.iter().map(|l| (&l.name, &l.address));
    let pop3 = settings.pop3.listener.iter().map(|l| (&l.name, &l.address));
    for (front, listeners) in [("imap", imap.collect::<Vec<_>>()), ("pop3", pop3.collect())] {
        for (i, (name, addresses)) in listeners.into_iter().enumerate() {
            let path = format!("{front}.listener[{i}]");
            seen.name(cx, &path, name);
            seen.addresses(cx, &path, name, addresses);
            needs_certificate(cx, settings, &path, &format!("an {front} listener"));
        }
    }
    if let Some(crate::MetricsEndpoint::Tcp(address)) = settings.metrics_endpoint() {
        seen.addresses(cx, "metrics", "metrics", &[address]);
    }
    fronts_need_users(cx, settings);
    chains(cx, settings);
    limits(cx, settings);
    crate::metrics::check(cx, settings);
}

fn names_and_domains(cx: &mut Cx, settings: &Settings) {
    if !is_domain(&settings.hostname) {
        cx.problem_at(
            "hostname",
            format!("`{}` is not a host name", settings.hostname),
            "write a domain name such as \"mail.example.org\"",
        );
    }
    if let Some(domain) = &settings.auth.default_domain
        && !domain.is_empty()
        && !is_domain(domain)
        && cx.places.contains_key("auth.default_domain")
    {
        cx.problem_at(
            "auth.default_domain",
            format!("`{domain}` is not a domain"),
            "write a domain such as \"example.org\", or \"\" to keep names bare",
        );
    }
    for (i, domain) in settings.smtp.local_domains.iter().enumerate() {
        // Where it is the host name's copy, the host name has been told.
        if !is_domain(domain) && cx.places.contains_key("smtp.local_domains") {
            cx.problem_at(
                &format!("smtp.local_domains[{i}]"),
                format!("`{domain}` is not a domain"),
                "write domains such as \"example.org\"; others than ASCII in their xn-- form",
            );
        }
    }
    if !settings.auth.username_translation.chars().count().is_multiple_of(2) {
        cx.problem_at(
            "auth.username_translation",
            "`username_translation` has a character without its counterpart",
            "write pairs of from and to, such as \"#@/@\"",
        );
    }
    for (i, folder) in settings.mail.create_folders.iter().enumerate() {
        if folder.is_empty() || folder.eq_ignore_ascii_case("INBOX") || folder.contains(['/', '.']) {
            cx.problem_at(
                &format!("mail.create_folders[{i}]"),
                format!("`{folder}` is not a folder name"),
                "write names without `/` and `.`; INBOX is always there",
            );
        }
    }
    mechanisms(cx, "auth.mechanisms", &settings.auth.mechanisms, &[]);
}

/// The rule of the daemons (`boot::logging`): each part is a level, alone or behind a name and `=`.
fn log_level(cx: &mut Cx, level: &str) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |part: &str| {
        let word = part.rsplit_once('=').map_or(part, |(_, word)| word).trim();
        LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word))
    };
    let mut parts = level.split(',').map(str::trim).filter(|part| !part.is_empty());
    if let Some(wrong) = parts.find(|part| !known(part)) {
        cx.problem_at(
            "log.level",
            format!("`{wrong}` is not a log level"),
            "write off, error, warn, info, debug or trace, or levels by daemon such as \"auth=debug,info\"",
        );
    }
}

fn mechanisms(cx: &mut Cx, path: &str, listed: &[String], also: &[&'static str]) {
    for (i, name) in listed.iter().enumerate() {
        let known = || MECHANISMS.iter().chain(also).copied();
        if !known().any(|m| m.eq_ignore_ascii_case(name)) {
            let help = match nearest(name, known()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known are: {}", MECHANISMS.join(", ")),
            };
            cx.problem_at(&format!("{path}[{i}]"), format!("there is no mechanism `{name}`"), help);
        }
    }
}

fn auth_listener(cx: &mut Cx, settings: &Settings, i: usize) {
    let Some(listener) = settings.auth.listener.get(i) else { return };
    let path = format!("auth.listener[{i}]");
    if let Some(wanted) = &listener.passdb {
        for (n, name) in wanted.iter().enumerate() {
            let known: Vec<&str> = settings.auth.passdb.iter().map(|p| p.name.as_str()).collect();
            if !known.contains(&name.as_str()) {
                let help = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None if known.is_empty() => "add an `[[auth.passdb]]` with this name".to_owned(),
                    None => format!("there are: {}", known.join(", ")),
                };
                cx.problem_at(&format!("{path}.passdb[{n}]"), format!("there is no passdb `{name}`"), help);
            }
        }
    }
    if let Some(listed) = &listener.mechanisms {
        mechanisms(cx, &format!("{path}.mechanisms"), listed, &[]);
    }
    if listener.kind != AuthListenerKind::Saslauthd {
        for (key, set) in
            [("join_realm", listener.join_realm), ("pam_services", !listener.pam_services.is_empty())]
        {
            if set {
                cx.problem_at(
                    &join(&path, key),
                    format!("`{key}` has no meaning on a listener of type \"{}\"", listener.kind),
                    "remove the line, or set `type = \"saslauthd\"`",
                );
            }
        }
    }
    let kinds = [AuthListenerKind::Client, AuthListenerKind::Login, AuthListenerKind::Saslauthd];
    // A socket that the file does not place serves the fronts, and fronts_need_users() tells of these.
    if cx.places.contains_key(&path) && kinds.contains(&listener.kind) && settings.auth.passdb.is_empty() {
        cx.problem_at(
            &path,
            format!("listener `{}` has no passdb to ask", listener.name),
            "add an `[[auth.passdb]]`, for example with `driver = \"pam\"`",
        );
    }
}

fn socket_paths(cx: &mut Cx, settings: &Settings) {
    let mut paths: BTreeMap<&Path, &str> = BTreeMap::new();
    for (i, listener) in settings.auth.listener.iter().enumerate() {
        for path in &listener.path {
            let at = format!("auth.listener[{i}].path");
            let length = path.as_os_str().len();
            if length > SOCKET_PATH {
                cx.problem_at(
                    &at,
                    format!(
                        "the socket path {} has {length} bytes; the system allows {SOCKET_PATH}",
                        path.display()
                    ),
                    "choose a shorter path or a shorter `state_dir`",
                );
            }
            if let Some(other) = paths.insert(path, &listener.name) {
                cx.problem_at(
                    &at,
                    format!(
                        "the listeners `{other}` and `{}` share the path {}",
                        listener.name,
                        path.display()
                    ),
                    "give each its own path",
                );
            }
        }
    }
}

/// Names and addresses seen so far.
#[derive(Default)]
struct Listeners {
    names: BTreeSet<String>,
    addresses: BTreeMap<SocketAddr, String>,
}

impl Listeners {
    fn name(&mut self, cx: &mut Cx, path: &str, name: &str) {
        // An empty name is a missing one: reported already, or a mistake of its own.
        if name.is_empty() {
            if cx.places.contains_key(&join(path, "name")) {
                cx.problem_at(&join(path, "name"), "`name` is empty", "give the listener a name");
            }
        } else if !self.names.insert(name.to_owned()) {
            cx.problem_at(
                &join(path, "name"),
                format!("two listeners are called `{name}`"),
                "give each listener of the file its own name",
            );
        }
    }

    fn addresses(&mut self, cx: &mut Cx, path: &str, name: &str, addresses: &[SocketAddr]) {
        for address in addresses {
            let clash = self.addresses.iter().find(|(other, _)| overlap(**other, *address));
            if let Some((other, owner)) = clash {
                cx.problem_at(
                    &join(path, "address"),
                    format!("{address} of listener `{name}` is taken by {other} of listener `{owner}`"),
                    "give each listener its own address or port",
                );
            }
            self.addresses.insert(*address, name.to_owned());
        }
    }
}

/// Whether both cannot be bound at a time. `[::]` takes only IPv6 here, so it does not clash with `0.0.0.0`.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (a.ip() == b.ip() || any)
}

fn needs_certificate(cx: &mut Cx, settings: &Settings, path: &str, what: &str) {
    if settings.tls.certificate.is_empty() && !cx.places.contains_key("tls.certificate") {
        cx.problem_at(
            path,
            format!("{what} needs a certificate, but there is none"),
            "add `[[tls.certificate]]` with `chain` and `key`",
        );
    }
}

fn fronts_need_users(cx: &mut Cx, settings: &Settings) {
    if !settings.has_fronts() {
        return;
    }
    let front = ["smtp.listener[0]", "imap.listener[0]", "pop3.listener[0]"]
        .into_iter()
        .find(|path| cx.places.contains_key(*path))
        .unwrap_or_default();
    if settings.auth.userdb.is_empty() && !cx.places.contains_key("auth.userdb") {
        cx.problem_at(
            front,
            "mail cannot be delivered or read without a userdb",
            "add `[[auth.userdb]]`, for example with `driver = \"passwd-file\"` and `path = \"users\"`",
        );
    }
    // Empty also where what stands there could not be read.
    let told = cx.places.get("auth.passdb").is_some_and(|at| cx.problems.iter().any(|p| p.is_within(at)));
    if settings.auth.passdb.is_empty() && !told {
        cx.problem_at(
            front,
            "nobody can log in without a passdb",
            "add `[[auth.passdb]]`, for example with `driver = \"passwd-file\"` and `path = \"users\"`",
        );
    }
}

fn chains(cx: &mut Cx, settings: &Settings) {
    let mut names = BTreeSet::new();
    for (i, passdb) in settings.auth.passdb.iter().enumerate() {
        let path = format!("auth.passdb[{i}]");
        if !names.insert(&passdb.name) {
            cx.problem_at(
                &join(&path, "name"),
                format!("two passdbs are called `{}`", passdb.name),
                "give each its own name",
            );
        }
        if let Some(listed) = &passdb.rules.mechanisms {
            mechanisms(cx, &format!("{path}.mechanisms"), listed, &["LOOKUP", "NONE"]);
        }
        if passdb.rules.deny && passdb.rules.master {
            cx.problem_at(
                &join(&path, "deny"),
                "a passdb cannot be a deny list and hold master users at once",
                "make two `[[auth.passdb]]` of it",
            );
        }
        if let PassdbDriver::Static { password_file, password_env, nopassword, .. } = &passdb.driver {
            let ways = [password_file.is_some(), password_env.is_some(), *nopassword];
            // A `password` in the file has been refused with what to do.
            let told = cx.places.contains_key(&join(&path, "password"));
            if ways.iter().filter(|way| **way).count() != 1 && !told {
                cx.problem_at(
                    &path,
                    "a static passdb needs exactly one of `password_file`, `password_env` and `nopassword = true`",
                    "write one of them",
                );
            }
        }
    }
    let mut names = BTreeSet::new();
    for (i, userdb) in settings.auth.userdb.iter().enumerate() {
        let path = format!("auth.userdb[{i}]");
        if !names.insert(&userdb.name) {
            cx.problem_at(
                &join(&path, "name"),
                format!("two userdbs are called `{}`", userdb.name),
                "give each its own name",
            );
        }
        if userdb.driver == UserdbDriver::Prefetch && i > 0 {
            cx.problem_at(
                &join(&path, "driver"),
                "`prefetch` must be the first userdb",
                "move it up: it takes what the passdb has just given",
            );
        }
    }
}

fn limits(cx: &mut Cx, settings: &Settings) {
    let hash = &settings.auth.hash;
    if hash.max_memory > hash.memory {
        cx.problem_at(
            "auth.hash.max_memory",
            "one hash may take more memory (`max_memory`) than all together (`memory`)",
            "lower `max_memory` or raise `memory`",
        );
    }
    let mail = &settings.mail;
    if mail.last_valid_uid != 0 && mail.last_valid_uid < mail.first_valid_uid {
        cx.problem_at(
            "mail.last_valid_uid",
            "no uid lies between `first_valid_uid` and `last_valid_uid`",
            "raise `last_valid_uid`, or write 0 for no limit",
        );
    }
    let limits = &settings.limits;
    if limits.connections_per_address > limits.connections {
        cx.problem_at(
            "limits.connections_per_address",
            "one address may have more connections than all together",
            "lower `connections_per_address` or raise `connections`",
        );
    }
    for (path, time) in [
        ("smtp.timeout", settings.smtp.timeout),
        ("imap.login_timeout", settings.imap.login_timeout),
        ("imap.idle_timeout", settings.imap.idle_timeout),
        ("pop3.login_timeout", settings.pop3.login_timeout),
        ("pop3.idle_timeout", settings.pop3.idle_timeout),
        ("auth.worker.timeout", settings.auth.worker.timeout),
    ] {
        if time.is_zero() {
            cx.problem_at(path, format!("`{path}` is zero"), "write a duration such as \"60s\"");
        }
    }
}

/// Whether `name` is a domain name: letters, digits and inner hyphens in labels of 63 bytes, 253 in all.
pub fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Looks at the files the settings name: certificates, keys and secrets that cannot be read or are open to all.
///
/// # Errors
/// All of them at once.
pub fn check_files(settings: &Settings, origin: &Path) -> Result<(), Errors> {
    let mut problems = Vec::new();
    for certificate in &settings.tls.certificate {
        readable(&mut problems, "certificate", &certificate.chain, Some("CERTIFICATE-----"));
        if readable(&mut problems, "key", &certificate.key, Some("PRIVATE KEY-----")) {
            closed(&mut problems, "key", &certificate.key);
        }
    }
    for passdb in &settings.auth.passdb {
        match &passdb.driver {
            PassdbDriver::Static { password_file: Some(path), .. }
                if readable(&mut problems, "password file", path, None) =>
            {
                closed(&mut problems, "password file", path);
            }
            PassdbDriver::Static { password_env: Some(name), .. } if std::env::var_os(name).is_none() => {
                problems.push(Problem::without_place(
                    format!("the environment variable {name} of passdb `{}` is not set", passdb.name),
                    "set it where the program is started",
                ));
            }
            PassdbDriver::PasswdFile { path, .. } if !path.contains('%') => {
                readable(&mut problems, "passwd-file", Path::new(path), None);
            }
            _ => {}
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Errors::new(origin.to_owned(), "", problems)) }
}

fn readable(problems: &mut Vec<Problem>, what: &str, path: &Path, marker: Option<&str>) -> bool {
    let read = match marker {
        // However long it is.
        None => crate::guarded::open(path).and_then(|mut file| file.read(&mut [0])).map(|_| String::new()),
        Some(_) => crate::guarded::read_to_string(path),
    };
    // Bytes that are no text are no PEM either.
    let read = match read {
        Err(error) if marker.is_some() && error.kind() == std::io::ErrorKind::InvalidData => {
            Ok(String::new())
        }
        other => other,
    };
    match read {
        Ok(text) => {
            if marker.is_some_and(|marker| !text.contains(marker)) {
                problems.push(Problem::without_place(
                    format!("the {what} {} is not in PEM form", path.display()),
                    "PEM files begin with a line `-----BEGIN …-----`; convert the file with openssl",
                ));
                return false;
            }
            true
        }
        Err(error) => {
            let help = match error.kind() {
                std::io::ErrorKind::NotFound => "create the file, or correct the path",
                _ => "let the account that starts the program read it",
            };
            problems.push(Problem::without_place(
                format!("the {what} {} cannot be read: {error}", path.display()),
                help,
            ));
            false
        }
    }
}

fn closed(problems: &mut Vec<Problem>, what: &str, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0);
    if open {
        problems.push(Problem::without_place(
            format!("the {what} {} can be read by everybody", path.display()),
            format!("run `chmod 0600 {}`", path.display()),
        ));
    }
}
