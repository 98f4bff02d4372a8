//! `passdb` and `userdb` blocks.
//!
//! Source:    Dovecot 2.3 `args`, `default_fields`, `override_fields`; 2.4 named blocks, `fields { }`.
//! Trust:     another program's configuration, chosen by the administrator; what is not understood is listed, not
//!            guessed.
//! Never:     carry a password into our file.

use super::dovecot::Cx;
use super::reasons;
use super::text::Text;
use super::tree::{Node, is_yes, words};

const PASSDBS: &[&str] = &["passwd-file", "passwd", "shadow", "pam", "static", "imap"];
const USERDBS: &[&str] = &["passwd-file", "passwd", "static", "prefetch"];

/// What the entries say about whose mail it is.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Users are accounts of the system.
    pub system: bool,
    /// One account, as written.
    pub account: Option<String>,
    /// A passwd-file may give every user a uid of its own.
    pub by_file: bool,
}

/// Settings of one entry, from either version, under the names of 2.4 without prefixes.
struct Settings<'n> {
    node: &'n Node,
    driver: String,
    all: Vec<(String, String, usize)>,
}

impl Settings<'_> {
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.all.iter().rposition(|(known, ..)| known == name)?;
        let (_, value, _) = self.all.remove(at);
        self.all.retain(|(known, ..)| known != name);
        Some(value).filter(|value| !value.is_empty())
    }
}

/// One `passdb` block as a `[[auth.passdb]]`.
pub(super) fn passdb(cx: &mut Cx<'_>, node: &Node, out: &mut Text) {
    let mut settings = collect(node, PASSDBS);
    let title = title(node, &settings.driver);
    out.table("[[auth.passdb]]");
    name(&settings, out);
    let driver = settings.driver.clone();
    if !PASSDBS.contains(&driver.as_str()) {
        return unknown(cx, node, &title, &driver, "passdb", out);
    }
    out.text("driver", &driver);
    match driver.as_str() {
        "passwd-file" => passwd_file(cx, &mut settings, &title, out, true),
        "pam" => {
            let service = settings.take("service").or_else(|| settings.take("service_name"));
            // Dovecot's default; ours is another one.
            let service = service.unwrap_or_else(|| "dovecot".to_owned());
            let service = if service == "*" { "%{service}".to_owned() } else { service };
            if let Some(service) = cx.template(node, &title, "service", &service) {
                out.text("service", &service);
            }
            for (theirs, ours) in
                [("session", "session"), ("setcred", "setcred"), ("failure_show_msg", "show_messages")]
            {
                if settings.take(theirs).is_some_and(|value| is_yes(&value)) {
                    out.bare(ours, true);
                }
            }
        }
        "static" => {
            if settings.take("password").is_some() {
                let path = "/etc/postern/static-password";
                out.text("password_file", path);
                let why =
                    format!("secrets do not stand in the configuration: write it into {path}, mode 0600");
                cx.note(node, &title, "password", "", &why, true);
            }
            if settings.take("nopassword").is_some_and(|value| is_yes(&value)) {
                out.bare("nopassword", true);
            }
        }
        "imap" => {
            out.maybe("host", settings.take("host").as_deref());
            if let Some(port) = settings.take("port").and_then(|port| port.parse::<u16>().ok()) {
                out.bare("port", port);
            }
            if let Some(ssl) = settings.take("ssl").filter(|ssl| ssl != "no") {
                cx.note(
                    node,
                    &title,
                    "ssl",
                    &ssl,
                    "driver `imap` logs in without TLS; use a server of this machine",
                    true,
                );
            }
        }
        _ => {}
    }
    if settings.take("pass").is_some_and(|value| is_yes(&value)) {
        settings.all.push(("result_success".to_owned(), "continue".to_owned(), node.line));
    }
    rules(cx, &mut settings, &title, out);
    for flag in ["deny", "master"] {
        if settings.take(flag).is_some_and(|value| is_yes(&value)) {
            out.bare(flag, true);
        }
    }
    if let Some(list) = settings.take("mechanisms").or_else(|| settings.take("mechanisms_filter")) {
        let listed = words(&list);
        let listed = listed.iter().map(|mechanism| match mechanism.to_ascii_uppercase().as_str() {
            "NONE" | "LOOKUP" => "lookup".to_owned(),
            other => other.to_owned(),
        });
        out.list("mechanisms", &listed.collect::<Vec<_>>(), false);
    }
    fields(cx, &mut settings, &title, out, None);
    rest(cx, &settings, &title);
}

/// One `userdb` block as a `[[auth.userdb]]`.
pub(super) fn userdb(cx: &mut Cx<'_>, node: &Node, out: &mut Text, owners: &mut Owners) {
    let mut settings = collect(node, USERDBS);
    let title = title(node, &settings.driver);
    out.table("[[auth.userdb]]");
    name(&settings, out);
    let driver = settings.driver.clone();
    if !USERDBS.contains(&driver.as_str()) {
        return unknown(cx, node, &title, &driver, "userdb", out);
    }
    out.text("driver", &driver);
    match driver.as_str() {
        "passwd-file" => {
            owners.by_file = true;
            passwd_file(cx, &mut settings, &title, out, false);
        }
        "passwd" => owners.system = true,
        "static" if settings.take("allow_all_users").is_some_and(|value| is_yes(&value)) => {
            out.bare("allow_all_users", true);
        }
        _ => {}
    }
    rules(cx, &mut settings, &title, out);
    fields(cx, &mut settings, &title, out, Some(owners));
    rest(cx, &settings, &title);
}

fn title(node: &Node, driver: &str) -> String {
    if node.label.is_empty() { format!("{} {driver}", node.name) } else { node.title() }
}

fn name(settings: &Settings<'_>, out: &mut Text) {
    let label = &settings.node.label;
    if !label.is_empty() && *label != settings.driver {
        out.text("name", label);
    }
}

fn unknown(cx: &mut Cx<'_>, node: &Node, title: &str, driver: &str, kind: &str, out: &mut Text) {
    let why = reasons::driver(kind, driver);
    out.comment(&format!("{why}. Postern does not start until this entry is replaced."));
    out.text("driver", driver);
    cx.note(node, title, "driver", driver, &why, true);
    // What it was told may be worth having when it is replaced.
    for child in node.inner() {
        if !["driver", "passdb_driver", "userdb_driver"].contains(&child.name.as_str()) {
            cx.leave_within(child, title, "it belongs to that driver");
        }
    }
}

/// Reads the entry's settings; `args` of 2.3 are taken apart as its driver does.
fn collect<'n>(node: &'n Node, known: &[&str]) -> Settings<'n> {
    let kind = format!("{}_", node.name);
    let plain = |name: &str| name.strip_prefix(&kind).unwrap_or(name).to_owned();
    let named = node.get("driver").or_else(|| node.get(&format!("{kind}driver")));
    let driver = named.map_or_else(|| node.label.clone(), str::to_owned);
    let own = format!("{}_", driver.replace('-', "_"));
    let mut settings = Settings { node, driver, all: Vec::new() };
    for child in node.inner() {
        let mut name = plain(&child.name);
        if let Some(rest) = name.strip_prefix(&own).or_else(|| name.strip_prefix("imapc_")) {
            name = rest.to_owned();
        }
        let name = match name.as_str() {
            "driver" => continue,
            "default_password_scheme" => "scheme",
            "auth_username_format" => "username_format",
            other => other,
        };
        match &child.children {
            Some(inner) if name == "fields" => {
                settings.all.extend(inner.iter().map(|field| match field.name.strip_suffix(":default") {
                    Some(name) => (format!("default_fields {name}"), field.value.clone(), field.line),
                    None => (format!("override_fields {}", field.name), field.value.clone(), field.line),
                }));
            }
            // Lists of 2.4: `mechanisms_filter { plain = yes }`.
            Some(_) => settings.all.push((name.to_owned(), child.words().join(" "), child.line)),
            None => settings.all.push((name.to_owned(), child.value.clone(), child.line)),
        }
    }
    if !known.contains(&settings.driver.as_str()) {
        return settings;
    }
    for list in ["default_fields", "override_fields"] {
        if let Some(text) = settings.take(list) {
            for word in text.split_whitespace() {
                let (name, value) = word.split_once('=').unwrap_or((word, "yes"));
                settings.all.push((format!("{list} {name}"), value.to_owned(), node.line));
            }
        }
    }
    if let Some(args) = settings.take("args") {
        arguments(&mut settings, &args);
    }
    settings
}

fn arguments(settings: &mut Settings<'_>, args: &str) {
    let line = settings.node.line;
    let mut add = |name: &str, value: &str| settings.all.push((name.to_owned(), value.to_owned(), line));
    match settings.driver.as_str() {
        "passwd-file" => {
            let mut rest = args.trim_start();
            while let Some((word, after)) = rest.split_once(char::is_whitespace) {
                let Some((name @ ("scheme" | "username_format"), value)) = word.split_once('=') else {
                    break;
                };
                add(name, value);
                rest = after.trim_start();
            }
            add("path", rest.trim());
        }
        "pam" => {
            for word in args.split_whitespace() {
                match word.split_once('=') {
                    Some((name, value)) => add(name, value),
                    None if word == "-session" => add("session", "yes"),
                    None if word == "blocking" => {}
                    None => add("service", word),
                }
            }
        }
        "static" => {
            for word in args.split_whitespace() {
                let (name, value) = word.split_once('=').unwrap_or((word, "yes"));
                match name {
                    "password" | "nopassword" | "allow_all_users" => add(name, value),
                    _ => add(&format!("default_fields {name}"), value),
                }
            }
        }
        _ => {
            for word in args.split_whitespace() {
                let (name, value) = word.split_once('=').unwrap_or((word, "yes"));
                add(name, value);
            }
        }
    }
}

fn passwd_file(cx: &mut Cx<'_>, settings: &mut Settings<'_>, title: &str, out: &mut Text, passwords: bool) {
    let node = settings.node;
    match settings.take("path") {
        Some(path) => {
            if let Some(path) = cx.template(node, title, "path", &path) {
                out.text("path", &path);
                let remark = format!(
                    "{path} must be readable for the authentication daemon (account postern-auth, or `auth.run_as`)"
                );
                if !cx.remarks.contains(&remark) {
                    cx.remarks.push(remark);
                }
            }
        }
        None => cx.note(node, title, "path", "", "the entry names no file", true),
    }
    if let Some(scheme) = settings.take("scheme").filter(|_| passwords) {
        out.text("scheme", &scheme);
    }
    if let Some(format) = settings.take("username_format")
        && let Some(format) = cx.template(node, title, "username_format", &format)
    {
        out.text("username_format", &format);
    }
}

/// What passdbs and userdbs have in common.
fn rules(cx: &mut Cx<'_>, settings: &mut Settings<'_>, title: &str, out: &mut Text) {
    for rule in ["result_success", "result_failure", "result_internalfail", "skip"] {
        if let Some(value) = settings.take(rule) {
            let known: &[&str] = match rule {
                "skip" => &["never", "authenticated", "unauthenticated", "found", "notfound"],
                _ => &["return-ok", "return-fail", "return", "continue-ok", "continue-fail", "continue"],
            };
            if known.contains(&value.as_str()) {
                out.text(rule, &value);
            } else {
                cx.note(settings.node, title, rule, &value, "this word is not known", true);
            }
        }
    }
    if let Some(filter) = settings.take("username_filter") {
        out.list("username_filter", &words(&filter), false);
    }
}

/// `default_fields` and `override_fields`.
fn fields(
    cx: &mut Cx<'_>,
    settings: &mut Settings<'_>,
    title: &str,
    out: &mut Text,
    mut owners: Option<&mut Owners>,
) {
    let node = settings.node;
    for list in ["default_fields", "override_fields"] {
        let prefix = format!("{list} ");
        let mut made: Vec<(String, String)> = Vec::new();
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut settings.all).into_iter().partition(|(name, ..)| name.starts_with(&prefix));
        settings.all = others;
        for (name, value, line) in ours {
            let name = name.strip_prefix(&prefix).unwrap_or_default();
            let at = Node { line, ..node.clone() };
            if ["password", "password_noscheme", "pass"].contains(&name) {
                cx.note(
                    &at,
                    title,
                    name,
                    "",
                    "secrets do not stand in the configuration; use a passwd-file",
                    true,
                );
                continue;
            }
            let value = match (name, &mut owners) {
                ("uid" | "gid", Some(owners)) => {
                    if name == "uid" {
                        owners.account = Some(value.clone());
                    }
                    match number(cx, name, &value) {
                        Some(id) => id,
                        None => {
                            let what = if name == "uid" { "account" } else { "group" };
                            let why = format!(
                                "there is no {what} `{value}` on this machine; make it and import again"
                            );
                            cx.note(&at, title, name, &value, &why, false);
                            continue;
                        }
                    }
                }
                _ => value,
            };
            if let Some(value) = cx.template(&at, title, name, &value) {
                made.push((name.to_owned(), value));
            }
        }
        // The last one of a name counts.
        let mut seen = std::collections::BTreeSet::new();
        made.reverse();
        made.retain(|(name, _)| seen.insert(name.clone()));
        made.reverse();
        out.fields(list, &made);
    }
}

/// The number of a uid or gid; variables stay.
fn number(cx: &Cx<'_>, field: &str, value: &str) -> Option<String> {
    if value.parse::<u32>().is_ok() || value.contains('%') {
        return Some(value.to_owned());
    }
    let found = if field == "uid" { (cx.facts.uid)(value) } else { (cx.facts.gid)(value) };
    found.map(|id| id.to_string())
}

/// What nobody has asked for.
fn rest(cx: &mut Cx<'_>, settings: &Settings<'_>, title: &str) {
    for (name, value, line) in &settings.all {
        let why = match name.as_str() {
            "blocking" | "use_worker" | "max_requests" => {
                "look-ups that may block run in worker processes, see `[auth.worker]`"
            }
            "auth_verbose" | "use_cache" | "cache_key" | "auth_cache_key" => {
                "keys of our cache are made of everything that matters"
            }
            "name" | "args" => continue,
            "fields_import_all" => "all fields are taken",
            _ => "Postern's driver has no such setting",
        };
        let at = Node { line: *line, ..settings.node.clone() };
        cx.note(&at, title, name, value, why, false);
    }
}
