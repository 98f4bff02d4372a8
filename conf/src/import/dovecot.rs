//! From Dovecot's settings to our file.
//!
//! Trust: the text is what `doveconf` printed or a file says; all values that reach our file are quoted (`text.rs`)
//!        or parsed.
//! Never: show a value whose name says password, secret or passphrase.

use super::databases::{self, Owners};
use super::mail::{self, Mail};
use super::text::Text;
use super::tree::{self, Node, Tree, is_yes};
use super::{Error, Facts, Imported, Left, reasons, units, vars};
use crate::check::is_domain;

/// What is carried along: the machine, and what could not be carried over.
pub(super) struct Cx<'a> {
    /// The machine.
    pub facts: &'a Facts<'a>,
    /// What is left.
    pub left: Vec<Left>,
    /// What to know.
    pub remarks: Vec<String>,
}

impl Cx<'_> {
    /// Notes a setting that was not carried over.
    pub(super) fn note(
        &mut self,
        node: &Node,
        within: &str,
        setting: &str,
        value: &str,
        reason: &str,
        blocking: bool,
    ) {
        let setting = if within.is_empty() { setting.to_owned() } else { format!("{within}/{setting}") };
        let secret = ["password", "secret", "passphrase"].iter().any(|word| setting.contains(word));
        let value = if secret && !setting.ends_with("scheme") { String::new() } else { value.to_owned() };
        self.left.push(Left { line: node.line, setting, value, reason: reason.to_owned(), blocking });
    }

    /// Leaves a setting or a whole block.
    pub(super) fn leave_within(&mut self, node: &Node, within: &str, reason: &str) {
        let value = if node.children.is_some() { "" } else { node.value.as_str() };
        self.note(node, within, &node.title(), value, reason, false);
    }

    /// A value with our variables. One that we lack keeps the file from starting: somebody must decide.
    pub(super) fn template(
        &mut self,
        node: &Node,
        within: &str,
        setting: &str,
        value: &str,
    ) -> Option<String> {
        match vars::translate(value) {
            Ok(value) => Some(value),
            Err(variable) => {
                let why = format!("Postern has no variable {variable}");
                self.note(node, within, setting, value, &why, true);
                // Left as it is: whoever reads it later refuses it by name.
                Some(value.to_owned())
            }
        }
    }
}

/// An address to listen on.
#[derive(Debug)]
struct Door {
    name: String,
    addresses: Vec<String>,
    implicit: bool,
}

/// Everything that was found.
#[derive(Debug, Default)]
struct Found {
    ssl: bool,
    certificates: Vec<(String, String)>,
    minimum: Option<&'static str>,
    debug: bool,
    hostname: Option<String>,
    protocols: Vec<String>,
    auth: Text,
    cache: Text,
    workers: Option<u32>,
    sockets: Text,
    passdbs: Text,
    userdbs: Text,
    has_userdb: bool,
    owners: Owners,
    mail: Mail,
    first_uid: Option<u32>,
    last_uid: Option<u32>,
    imap: Vec<Door>,
    pop3: Vec<Door>,
    lmtp: Vec<Door>,
}

/// Reads the text and makes the file.
pub(super) fn import(text: &str, facts: &Facts<'_>) -> Result<Imported, Error> {
    let mut tree = tree::parse(text)?;
    tree.nodes = last_of_each(tree.nodes.into_iter().flat_map(ungrouped).collect());
    if !tree
        .nodes
        .iter()
        .any(|node| ["passdb", "userdb", "protocols", "dovecot_config_version"].contains(&node.name.as_str()))
    {
        return Err(Error::NotDovecot("it has no passdb, no userdb and no protocols"));
    }
    let mut cx = Cx { facts, left: Vec::new(), remarks: Vec::new() };
    let mut found = Found { ssl: true, ..Found::default() };
    found.protocols = match tree.nodes.iter().find(|node| node.name == "protocols") {
        Some(node) => node.words(),
        // Both versions' default.
        None => ["imap", "pop3", "lmtp"].map(str::to_owned).to_vec(),
    };
    found.ssl = tree.get("ssl") != Some("no");
    let has_mail = found.protocols.iter().any(|p| ["imap", "pop3", "lmtp"].contains(&p.as_str()));
    if has_mail {
        mail::location(&mut cx, &tree, &mut found.mail);
    }
    certificates(&mut cx, &tree, &mut found);
    for node in &tree.nodes {
        one(&mut cx, node, &mut found, has_mail);
    }
    doors(&mut cx, &tree, &mut found);
    let has_socket = tree
        .nodes
        .iter()
        .any(|node| node.name == "service" && node.label == "lmtp" && !node.inner().is_empty());
    for protocol in &found.protocols {
        let why = match protocol.as_str() {
            "lmtp" if found.lmtp.is_empty() && !has_socket => LMTP,
            "imap" | "pop3" | "lmtp" | "none" => continue,
            "sieve" => "Postern has no Sieve",
            "submission" => "Postern's submission server delivers itself; it has no relay host",
            _ => "Postern has no such protocol",
        };
        if let Some(node) = tree.nodes.iter().find(|node| node.name == "protocols") {
            cx.note(node, "", "protocols", protocol, why, false);
        }
    }
    let logs_in = !found.imap.is_empty() || !found.pop3.is_empty();
    if logs_in && !found.ssl {
        let why =
            "Postern takes passwords over TLS only; name a certificate in [[tls.certificate]]".to_owned();
        let line = tree.nodes.iter().find(|node| node.name == "ssl").map_or(1, |node| node.line);
        cx.left.push(Left {
            line,
            setting: "ssl".to_owned(),
            value: "no".to_owned(),
            reason: why,
            blocking: found.certificates.is_empty(),
        });
    }
    cx.left.sort_by_key(|left| left.line);
    let toml = write(&mut cx, &tree, &found, has_mail);
    Ok(Imported { toml, left: cx.left, remarks: cx.remarks })
}

/// The last setting of a name counts; blocks add up.
fn last_of_each(nodes: Vec<Node>) -> Vec<Node> {
    let mut seen = std::collections::BTreeSet::new();
    let keep = |node: &Node| node.children.is_some() || seen.insert(node.name.clone());
    let mut kept: Vec<Node> = nodes.into_iter().rev().filter(keep).collect();
    kept.reverse();
    kept
}

/// `ssl_server { cert_file = … }` of 2.4 is `ssl_server_cert_file = …`.
fn ungrouped(node: Node) -> Vec<Node> {
    let groups = ["ssl_server", "ssl_client", "auth_policy", "auth_oauth2", "mail_cache"];
    if !groups.contains(&node.name.as_str()) || !node.label.is_empty() {
        return vec![node];
    }
    let kind = node.name;
    let rename = |mut child: Node| {
        if !child.name.starts_with(&kind) {
            child.name = format!("{kind}_{}", child.name);
        }
        child
    };
    node.children.unwrap_or_default().into_iter().map(rename).collect()
}

/// One setting or block outside all others.
fn one(cx: &mut Cx<'_>, node: &Node, found: &mut Found, has_mail: bool) {
    let value = node.value.as_str();
    let auth = |found: &mut Found, key: &str| found.auth.text(key, value);
    match node.name.as_str() {
        // Looked at elsewhere, or about Dovecot itself.
        "protocols"
        | "ssl"
        | "listen"
        | "mail_location"
        | "mail_driver"
        | "mail_path"
        | "mailbox_list_layout"
        | "mail_inbox_path"
        | "mail_control_path"
        | "mailbox_list_utf8"
        | "dovecot_config_version"
        | "dovecot_storage_version"
        | "ssl_cert"
        | "ssl_key"
        | "ssl_server_cert_file"
        | "ssl_server_key_file"
        | "local_name" => {}
        "passdb" => databases::passdb(cx, node, &mut found.passdbs),
        "userdb" => {
            found.has_userdb = true;
            databases::userdb(cx, node, &mut found.userdbs, &mut found.owners);
        }
        "service" => service(cx, node, found),
        "namespace" if has_mail => mail::namespace(cx, node, &mut found.mail),
        "namespace" => {}
        "protocol" | "local" | "remote" | "plugin" => {
            for child in node.inner() {
                let why = if node.name == "plugin" || node.name == "protocol" {
                    reasons::of(&child.name)
                } else {
                    "settings are the same for all addresses".to_owned()
                };
                cx.leave_within(child, &node.title(), &why);
            }
        }
        "hostname" if is_domain(value) => found.hostname = Some(value.to_owned()),
        "ssl_min_protocol" => match value {
            "TLSv1.3" => found.minimum = Some("1.3"),
            "TLSv1.2" => found.minimum = Some("1.2"),
            _ => cx.leave_within(node, "", "TLS 1.2 is the oldest version that is spoken"),
        },
        "auth_mechanisms" => mechanisms(cx, node, found),
        "auth_username_format" => {
            if let Some(format) = cx.template(node, "", &node.name, value) {
                found.auth.text("username_format", &format);
            }
        }
        "auth_username_chars" => auth(found, "username_chars"),
        "auth_username_translation" => auth(found, "username_translation"),
        "auth_default_realm" | "auth_default_domain" if is_domain(value) => auth(found, "default_domain"),
        "auth_realms" => found.auth.list("realms", &node.words(), false),
        "auth_anonymous_username" => auth(found, "anonymous_username"),
        "auth_master_user_separator" => {
            if let Some(letter) = value.chars().next() {
                found.auth.text("master_user_separator", &letter.to_string());
            }
        }
        "auth_allow_weak_schemes" => found.auth.bare("allow_weak_schemes", is_yes(value)),
        "auth_failure_delay" => duration(cx, node, "failure_delay", |found| &mut found.auth, found),
        "auth_cache_ttl" => duration(cx, node, "ttl", |found| &mut found.cache, found),
        "auth_cache_negative_ttl" => duration(cx, node, "negative_ttl", |found| &mut found.cache, found),
        "auth_cache_size" => match units::size(value) {
            Some(size) => found.cache.text("size", &size),
            None => cx.leave_within(node, "", "this size is not understood"),
        },
        "auth_worker_max_count" => found.workers = value.parse().ok().filter(|count| *count > 0),
        "auth_worker_max_request_count" => cx.leave_within(node, "", "see `auth.worker.max_requests`"),
        "auth_debug" | "mail_debug" => found.debug |= is_yes(value),
        "mail_home" => {
            found.mail.home = cx.template(node, "", &node.name, value);
        }
        "mail_uid" => found.mail.account = Some(value.to_owned()).filter(|value| !value.is_empty()),
        "first_valid_uid" => found.first_uid = value.parse().ok(),
        "last_valid_uid" if has_mail => found.last_uid = value.parse().ok(),
        _ => cx.leave_within(node, "", &reasons::of(&node.name)),
    }
}

fn duration(
    cx: &mut Cx<'_>,
    node: &Node,
    key: &str,
    place: impl Fn(&mut Found) -> &mut Text,
    found: &mut Found,
) {
    match units::time(&node.value) {
        Some(time) => place(found).text(key, &time),
        None => cx.leave_within(node, "", "this time is not understood"),
    }
}

/// What is said of LMTP on a Unix socket.
const LMTP: &str = "LMTP listens on addresses here: add a [[smtp.listener]] of type `lmtp` at 127.0.0.1:24, and tell the \
                    sender `lmtp:inet:127.0.0.1:24`";

/// Mechanisms that both sides know.
const MECHANISMS: &[&str] =
    &["PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "ANONYMOUS", "APOP"];

fn mechanisms(cx: &mut Cx<'_>, node: &Node, found: &mut Found) {
    let mut carried = Vec::new();
    for mechanism in node.words() {
        let name = mechanism.to_ascii_uppercase();
        if MECHANISMS.contains(&name.as_str()) {
            carried.push(name);
        } else {
            cx.note(node, "", "auth_mechanisms", &mechanism, "Postern does not have this mechanism", false);
        }
    }
    found.auth.list("mechanisms", &carried, false);
}

/// Certificates: the server's, and those for names.
fn certificates(cx: &mut Cx<'_>, tree: &Tree, found: &mut Found) {
    let of = |nodes: &[Node], names: [&str; 2]| {
        nodes
            .iter()
            .rev()
            .find(|node| names.contains(&node.name.as_str()) && node.children.is_none())
            .cloned()
    };
    let mut pair = |cx: &mut Cx<'_>, nodes: &[Node], within: &str| {
        let Some(chain) = of(nodes, ["ssl_cert", "ssl_server_cert_file"]) else { return };
        let key = of(nodes, ["ssl_key", "ssl_server_key_file"]);
        let file = |text: &str| text.trim_start_matches('<').trim().to_owned();
        let chain_file = file(&chain.value);
        if !chain_file.starts_with('/') {
            return cx.note(
                &chain,
                within,
                &chain.name,
                "",
                "the certificate must stand in a file of its own",
                true,
            );
        }
        let named = key.as_ref().map(|key| file(&key.value)).filter(|path| path.starts_with('/'));
        let key_file = named.unwrap_or_else(|| {
            let guess = beside(&chain_file);
            let why = format!("doveconf hides it (`-P` shows it); {guess} is a guess");
            let at = key.as_ref().unwrap_or(&chain);
            cx.note(at, within, "ssl_key", "", &why, false);
            guess
        });
        found.certificates.push((chain_file, key_file));
    };
    pair(cx, &tree.nodes, "");
    for node in tree.nodes.iter().filter(|node| node.name == "local_name") {
        pair(cx, node.inner(), &node.title());
        for child in node.inner() {
            let known = ["ssl_cert", "ssl_key", "ssl_server_cert_file", "ssl_server_key_file"];
            if !known.contains(&child.name.as_str()) {
                cx.leave_within(child, &node.title(), "only certificates depend on the name");
            }
        }
    }
}

/// Where the key of a certificate usually is.
fn beside(chain: &str) -> String {
    let named = chain.replace("/certs/", "/private/");
    for (from, to) in
        [("fullchain.pem", "privkey.pem"), (".pem", ".key"), (".crt", ".key"), (".cert", ".key")]
    {
        if let Some(stem) = named.strip_suffix(from) {
            return format!("{stem}{to}");
        }
    }
    format!("{named}.key")
}

/// `service NAME { … }`: sockets and ports matter, the rest is about Dovecot's processes.
fn service(cx: &mut Cx<'_>, node: &Node, found: &mut Found) {
    let title = node.title();
    for child in node.inner() {
        match (node.label.as_str(), child.name.as_str()) {
            ("auth", "unix_listener") => auth_socket(cx, child, &title, found),
            ("auth", "inet_listener") => {
                let why = "use `postern auth-daemon forward`, which carries a socket over mutual TLS";
                cx.leave_within(child, &title, why);
            }
            // Looked at by `doors`.
            ("imap-login" | "pop3-login" | "lmtp", "inet_listener") => {}
            ("lmtp", "unix_listener") => {
                cx.leave_within(child, &title, LMTP);
            }
            ("auth-worker", "process_limit") => {
                found.workers = child.value.parse().ok().filter(|count| *count > 0);
            }
            (_, "unix_listener" | "inet_listener" | "fifo_listener") => {
                cx.leave_within(child, &title, "this is between Dovecot's own processes");
            }
            _ => cx.leave_within(child, &title, &reasons::of(&child.name)),
        }
    }
}

/// A socket of the auth service, under the name other programs know it by.
fn auth_socket(cx: &mut Cx<'_>, node: &Node, within: &str, found: &mut Found) {
    let setting = |name: &str| node.get(name).or_else(|| node.get(&format!("unix_listener_{name}")));
    let path = setting("path").unwrap_or(&node.label);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/run/dovecot/{path}") };
    let file = path.rsplit('/').next().unwrap_or_default();
    let mode = setting("mode").map(|mode| mode.trim_start_matches('0'));
    // Mode 0 switches a listener off.
    if mode == Some("") {
        return;
    }
    // Dovecot knows its sockets by the end of their names; 2.4 also by `type`.
    let kind = match setting("type").filter(|kind| !kind.is_empty()).unwrap_or(file) {
        kind if kind.ends_with("userdb") => "userdb",
        kind if kind.ends_with("master") => "master",
        kind if kind.ends_with("login") => "login",
        kind if kind.ends_with("token-login") || kind.ends_with("tokenlogin") || kind.ends_with("token") => {
            return cx.leave_within(node, within, "Postern has no token logins");
        }
        _ => "client",
    };
    let mut name: String = path
        .trim_start_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' })
        .collect();
    if path.ends_with("/private/auth") {
        name = "postfix".to_owned();
    }
    found.sockets.table("[[auth.listener]]");
    found.sockets.text("name", &name);
    found.sockets.text("type", kind);
    found.sockets.text("path", &path);
    for (theirs, ours) in [("user", "owner"), ("group", "group")] {
        if let Some(account) =
            setting(theirs).filter(|account| !account.is_empty() && !account.starts_with('$'))
        {
            found.sockets.text(ours, account);
        }
    }
    if let Some(mode) = mode {
        if mode.len() <= 4 && mode.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            found.sockets.text("mode", &format!("0{mode}"));
        } else {
            cx.note(node, within, "mode", mode, "this is no mode", true);
        }
    }
}

/// Addresses and ports of IMAP, POP3 and LMTP.
fn doors(cx: &mut Cx<'_>, tree: &Tree, found: &mut Found) {
    let listen = tree.nodes.iter().find(|node| node.name == "listen");
    let hosts = match listen {
        Some(node) => hosts(cx, node, "", &node.words()),
        None => vec!["0.0.0.0".to_owned(), "[::]".to_owned()],
    };
    for (protocol, service, defaults) in [
        ("imap", "imap-login", [("imap", 143, false), ("imaps", 993, true)].as_slice()),
        ("pop3", "pop3-login", [("pop3", 110, false), ("pop3s", 995, true)].as_slice()),
        ("lmtp", "lmtp", [].as_slice()),
    ] {
        if !found.protocols.iter().any(|known| known == protocol) {
            continue;
        }
        let mut all: Vec<(String, u16, bool, Vec<String>)> = defaults
            .iter()
            .filter(|(_, _, implicit)| found.ssl || !implicit)
            .map(|(name, port, implicit)| ((*name).to_owned(), *port, *implicit, hosts.clone()))
            .collect();
        let services = tree.nodes.iter().filter(|node| node.name == "service" && node.label == service);
        for node in services.flat_map(Node::inner).filter(|node| node.name == "inet_listener") {
            let get = |name: &str| node.get(name).or_else(|| node.get(&format!("inet_listener_{name}")));
            let port = get("port").map(str::parse::<u16>);
            let implicit = get("ssl").map(is_yes);
            let own = match get("address").or_else(|| get("listen")) {
                Some(text) => self::hosts(cx, node, &format!("service {service}"), &tree::words(text)),
                None => hosts.clone(),
            };
            match (all.iter_mut().find(|(name, ..)| *name == node.label), port) {
                (_, Some(Err(_))) => {
                    cx.note(
                        node,
                        service,
                        &node.title(),
                        get("port").unwrap_or_default(),
                        "this is no port",
                        true,
                    );
                }
                (Some(known), port) => {
                    known.1 = port.and_then(Result::ok).unwrap_or(known.1);
                    known.2 = implicit.unwrap_or(known.2);
                    if get("address").is_some() || get("listen").is_some() {
                        known.3 = own;
                    }
                }
                (None, Some(Ok(port))) => {
                    all.push((node.label.clone(), port, implicit.unwrap_or(false), own));
                }
                (None, None) => {}
            }
            for child in node.inner() {
                let plain = child.name.strip_prefix("inet_listener_").unwrap_or(&child.name);
                if !["port", "ssl", "address", "listen", "name"].contains(&plain) {
                    cx.leave_within(
                        child,
                        &format!("service {service}/{}", node.title()),
                        &reasons::of(plain),
                    );
                }
            }
        }
        // Port 0 switches a listener off.
        let made = all.into_iter().filter(|(_, port, _, hosts)| *port != 0 && !hosts.is_empty());
        let made = made.map(|(name, port, implicit, hosts)| Door {
            name,
            addresses: hosts.iter().map(|host| format!("{host}:{port}")).collect(),
            implicit,
        });
        match protocol {
            "imap" => found.imap = made.collect(),
            "pop3" => found.pop3 = made.collect(),
            _ => found.lmtp = made.collect(),
        }
    }
}

/// Addresses as they stand before a port.
fn hosts(cx: &mut Cx<'_>, node: &Node, within: &str, words: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    for word in words {
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        match (word.as_str(), bare.parse::<std::net::IpAddr>()) {
            ("*", _) => out.push("0.0.0.0".to_owned()),
            (_, Ok(std::net::IpAddr::V4(ip))) => out.push(ip.to_string()),
            (_, Ok(std::net::IpAddr::V6(ip))) => out.push(format!("[{ip}]")),
            _ => cx.note(node, within, "listen", word, "write the address, not a name", true),
        }
    }
    out
}

/// The file.
fn write(cx: &mut Cx<'_>, tree: &Tree, found: &Found, has_mail: bool) -> String {
    let mut out = Text::default();
    let version = tree.head.first().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let version =
        version.map_or_else(String::new, |line| format!(" {}", line.split(" (").next().unwrap_or(line)));
    out.comment(&format!("From the settings of Dovecot{version}, by `postern setup dovecot-import`."));
    out.comment("Every key: `postern config reference`.");
    if !cx.left.is_empty() {
        out.comment("");
        out.comment("Not carried over:");
        for left in &cx.left {
            out.comment(&format!("  {left}"));
        }
    }
    out.comment("");
    out.bare("version", crate::VERSION);
    let told = tree.head.iter().find_map(|line| line.strip_prefix("Hostname:")).map(str::trim);
    let told = told.filter(|name| is_domain(name) && name.contains('.')).map(str::to_owned);
    let hostname = found.hostname.clone().or(told).unwrap_or_else(|| cx.facts.hostname.clone());
    out.text("hostname", &hostname);
    if found.debug {
        out.table("[log]");
        out.text("level", "debug");
    }
    if let Some(minimum) = found.minimum {
        out.table("[tls]");
        out.text("minimum", minimum);
    }
    for (chain, key) in &found.certificates {
        out.table("[[tls.certificate]]");
        out.text("chain", chain);
        out.text("key", key);
    }
    out.table("[auth]");
    let auth = found.auth.as_str();
    if !auth.contains("default_domain = ") {
        // Dovecot leaves bare names bare.
        out.text("default_domain", "");
    }
    if !auth.contains("mechanisms = ") {
        out.list("mechanisms", &["PLAIN".to_owned()], false);
    }
    out.append_last(&found.auth);
    section(&mut out, "[auth.cache]", &found.cache);
    if let Some(count) = found.workers {
        out.table("[auth.worker]");
        out.bare("count", count.min(1000));
    }
    out.append(&found.sockets);
    out.append(&found.passdbs);
    out.append(&found.userdbs);
    if has_mail && !found.has_userdb {
        // 2.4 does without one: everything is in mail_uid, mail_home and the like.
        out.table("[[auth.userdb]]");
        out.text("driver", "static");
    }
    if has_mail {
        write_mail(cx, &mut out, found);
    }
    for (table, doors) in [("[[imap.listener]]", &found.imap), ("[[pop3.listener]]", &found.pop3)] {
        for door in doors {
            out.table(table);
            out.text("name", &door.name);
            out.list("address", &door.addresses, true);
            out.text("tls", if door.implicit { "implicit" } else { "starttls" });
        }
    }
    for door in &found.lmtp {
        out.table("[[smtp.listener]]");
        out.text("name", &format!("lmtp-{}", door.name));
        out.list("address", &door.addresses, true);
        out.text("type", "lmtp");
    }
    if !found.lmtp.is_empty() {
        cx.remarks.push("LMTP takes mail for `smtp.local_domains` only: name your domains there".to_owned());
    }
    out.finish()
}

fn write_mail(cx: &mut Cx<'_>, out: &mut Text, found: &Found) {
    let mail = &found.mail;
    out.table("[mail]");
    if let Some(format) = &mail.format {
        out.comment("Not possible as it is, see above; Postern does not start until this line is gone.");
        out.text("format", format);
    }
    out.maybe("location", mail.location.as_deref());
    out.maybe("home", mail.home.as_deref());
    let account = mail.account.clone().or_else(|| found.owners.account.clone());
    let account = account.filter(|account| !account.contains('%'));
    if found.owners.system && account.is_none() {
        out.text("mailboxes", "system");
    }
    if let Some(first) = found.first_uid {
        out.bare("first_valid_uid", first);
    }
    if let Some(last) = found.last_uid {
        out.bare("last_valid_uid", last);
    }
    out.list("create_folders", &mail.folders, false);
    out.table("[imap]");
    if let Some(account) = &account {
        out.text("run_as", account);
    } else if found.owners.by_file && !found.owners.system {
        cx.remarks.push("all mail must belong to one account; name it as `imap.run_as`".to_owned());
    }
    // Without a setting Dovecot shows Maildir's own separator.
    out.text("separator", mail.separator.as_deref().unwrap_or("."));
}

fn section(out: &mut Text, header: &str, inner: &Text) {
    if !inner.as_str().is_empty() {
        out.table(header);
        out.append_last(inner);
    }
}
