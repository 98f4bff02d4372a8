//! Where mail is: location, home, namespaces.
//!
//! Source:    Dovecot 2.3 `mail_location`, 2.4 `mail_driver`, `mail_path`; `namespace` blocks of both.
//! Trust:     another program's configuration, chosen by the administrator.
//! Never:     make a file that starts although the mail is known to be in a form that we do not read.

use super::dovecot::Cx;
use super::tree::{Node, Tree};

/// What `[mail]` and `imap.separator` will say.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// A format that is not Maildir; the file must not start with it.
    pub format: Option<String>,
    /// Template of the Maildir.
    pub location: Option<String>,
    /// Template of the home.
    pub home: Option<String>,
    /// `mail_uid`, as written.
    pub account: Option<String>,
    /// Folders.
    pub folders: Vec<String>,
    /// Separator of the inbox namespace.
    pub separator: Option<String>,
}

/// `mail_location` or its successors. Without any, Dovecot looks what is there.
pub(super) fn location(cx: &mut Cx<'_>, tree: &Tree, mail: &mut Mail) {
    let node = |name: &str| tree.nodes.iter().rev().find(|node| node.name == name && node.children.is_none());
    if let Some(node) = node("mail_location").filter(|node| !node.value.is_empty()) {
        let mut parts = node.value.split(':');
        let driver = parts.next().unwrap_or_default();
        if driver != "maildir" {
            return format(cx, node, driver, mail);
        }
        path(cx, node, parts.next().unwrap_or("~/Maildir"), mail);
        for option in parts {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            layout(cx, node, name, value, mail);
        }
        return;
    }
    match node("mail_driver") {
        Some(driver) if driver.value != "maildir" => format(cx, driver, &driver.value, mail),
        Some(driver) => match node("mail_path") {
            Some(node) => path(cx, node, &node.value, mail),
            None => cx.note(driver, "", "mail_path", "", "there is none: Postern looks in ~/Maildir", false),
        },
        None => cx.remarks.push(
            "mail_location is not set: Dovecot looks what is there, Postern looks in ~/Maildir and nowhere else"
                .to_owned(),
        ),
    }
    for (name, option) in [
        ("mailbox_list_layout", "LAYOUT"),
        ("mail_inbox_path", "INBOX"),
        ("mail_control_path", "CONTROL"),
        ("mailbox_list_utf8", "UTF-8"),
    ] {
        if let Some(node) = node(name) {
            layout(cx, node, option, &node.value, mail);
        }
    }
}

fn format(cx: &mut Cx<'_>, node: &Node, driver: &str, mail: &mut Mail) {
    mail.format = Some(driver.to_owned());
    let why = format!(
        "Postern keeps mail in Maildirs only, not in `{driver}`; convert it (`doveadm sync -u USER maildir:~/Maildir`), then set mail.location"
    );
    cx.note(node, "", &node.name, &node.value, &why, true);
}

fn path(cx: &mut Cx<'_>, node: &Node, path: &str, mail: &mut Mail) {
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("%{{home}}{rest}"),
        _ => path.to_owned(),
    };
    mail.location = cx.template(node, "", &node.name, &path);
}

fn layout(cx: &mut Cx<'_>, node: &Node, option: &str, value: &str, mail: &mut Mail) {
    let (why, blocking) = match (option, value.to_ascii_lowercase().as_str()) {
        ("LAYOUT", "maildir++") => return,
        ("LAYOUT", _) => {
            ("folders are kept as Maildir++ has it (`.Sent` beside `cur`), in no other layout", true)
        }
        ("INBOX", _) => ("INBOX is the Maildir itself; move its `cur` and `new` there", true),
        ("CONTROL", _) => (
            "`dovecot-uidlist` must lie in the Maildirs: move it there, or clients fetch all mail again",
            true,
        ),
        ("UTF-8", "no") => return,
        ("UTF-8", _) => ("names of folders are kept in modified UTF-7", true),
        ("INDEX" | "INDEXPVT" | "VOLATILEDIR" | "INDEXCACHE", _) => {
            ("indexes are made anew, beside the mail", false)
        }
        _ => ("Postern has no such option", false),
    };
    if blocking && mail.format.is_none() {
        mail.format = Some(format!("{option}={value}"));
    }
    let within = if node.value.contains(':') { node.name.as_str() } else { "" };
    let name = if within.is_empty() { node.name.as_str() } else { option };
    cx.note(node, within, name, value, why, blocking);
}

/// Special uses that our folder names stand for.
const USES: &[(&str, &str)] = &[
    ("Drafts", "\\Drafts"),
    ("Sent", "\\Sent"),
    ("Junk", "\\Junk"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
];

/// One `namespace` block.
pub(super) fn namespace(cx: &mut Cx<'_>, node: &Node, mail: &mut Mail) {
    let title = node.title();
    let is_inbox = node.get("inbox").is_some_and(super::tree::is_yes) || node.label == "inbox";
    if !is_inbox {
        let kind = node.get("type").or_else(|| node.get("namespace_type")).unwrap_or("private");
        let why = match kind {
            "shared" | "public" => "Postern has no shared folders",
            _ => "there is one namespace, that of the inbox",
        };
        return cx.note(node, "", &title, "", why, false);
    }
    for child in node.inner() {
        let name = child.name.strip_prefix("namespace_").unwrap_or(&child.name);
        match name {
            "inbox" | "list" | "subscriptions" | "order" | "hidden" | "disabled" => {}
            "type" if child.value == "private" => {}
            "separator" if child.value == "/" || child.value == "." => {
                mail.separator = Some(child.value.clone());
            }
            "separator" => {
                cx.note(
                    child,
                    &title,
                    "separator",
                    &child.value,
                    "`/` and `.` are possible; it is `/` now",
                    false,
                );
                mail.separator = Some("/".to_owned());
            }
            "prefix" if child.value.is_empty() => {}
            "prefix" => {
                let why =
                    "folders appear without a prefix; mail programs may have to be told (“IMAP path prefix”)";
                cx.note(child, &title, "prefix", &child.value, why, false);
            }
            "location" if child.value.is_empty() => {}
            "location" | "mail_path" | "mail_driver" => {
                let why = "the inbox is where mail_location says; set mail.location to this";
                if mail.format.is_none() {
                    mail.format = Some(child.value.clone());
                }
                cx.note(child, &title, name, &child.value, why, true);
            }
            "mailbox" => mailbox(cx, child, &title, mail),
            _ => cx.leave_within(child, &title, "Postern's namespace has no such setting"),
        }
    }
}

fn mailbox(cx: &mut Cx<'_>, node: &Node, within: &str, mail: &mut Mail) {
    let setting =
        |name: &str| node.get(name).or_else(|| node.get(&format!("mailbox_{name}"))).unwrap_or_default();
    let name = node.label.as_str();
    let (auto, uses) = (setting("auto"), setting("special_use"));
    let known = USES.iter().find(|(ours, _)| *ours == name);
    let made = ["create", "subscribe"].contains(&auto);
    if name == "INBOX" {
        return;
    }
    if name.is_empty() || name.contains(['/', '.']) {
        if made {
            cx.note(
                node,
                within,
                &node.title(),
                auto,
                "folders made for everybody stand at the top level",
                false,
            );
        }
    } else if made || known.is_some() {
        mail.folders.push(name.to_owned());
    }
    if !uses.is_empty() && known.is_none_or(|(_, ours)| !uses.eq_ignore_ascii_case(ours)) {
        let why = "only the names Drafts, Sent, Junk, Trash and Archive tell mail programs what they are for";
        cx.note(node, within, &format!("{}/special_use", node.title()), uses, why, false);
    }
    for child in node.inner() {
        let plain = child.name.strip_prefix("mailbox_").unwrap_or(&child.name);
        if !["auto", "special_use", "name"].contains(&plain) {
            let within = format!("{within}/{}", node.title());
            cx.leave_within(child, &within, "Postern's folders have no such setting");
        }
    }
}
