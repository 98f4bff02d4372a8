//! `postern setup postfix`: Postfix asks Postern for passwords.
//!
//! Source:    SASL_README, TLS_README, postconf(5), master(5).
//! Trust:     Postfix's files are the administrator's; `postconf` has the last word on whether they can be read.
//! Never:     edit files that `postconf` itself finds fault with, or switch AUTH on without TLS silently.

use std::path::{Path, PathBuf};

use boot::exit::{self, Coded};
use conf::AuthListenerKind;

use super::change::{self, Changes, FileChange, FolderChange};
use super::ours::{Fresh, Ours, Users, Wanted};
use crate::postfix::Postfix;

/// What may be asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PostfixArgs {
    #[command(flatten)]
    pub(crate) common: super::CommonArgs,
    /// Postfix's configuration folder [default: $MAIL_CONFIG, else /etc/postfix].
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// Also open port 587 for mail programs (`submission` in master.cf).
    #[arg(long)]
    pub(crate) submission: bool,
    /// Also open port 465 for mail programs (`submissions` or `smtps` in master.cf).
    #[arg(long)]
    pub(crate) submissions: bool,
    /// Offer AUTH also to clients that do not use TLS.
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Do not reload a running Postfix.
    #[arg(long)]
    pub(crate) no_reload: bool,
}

/// The folder that is meant.
pub(super) fn folder(args: &PostfixArgs) -> PathBuf {
    let named = || std::env::var_os("MAIL_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    args.config_dir.clone().or_else(named).unwrap_or_else(|| crate::postfix::CONFIG_FOLDER.into())
}

/// Makes up the changes.
pub(super) fn plan(args: &PostfixArgs, ours: &Ours) -> anyhow::Result<(Changes, Vec<String>)> {
    let folder = folder(args);
    let (main, master) = sound(&folder)?;
    let postfix = Postfix::read(&folder)?;
    let mut changes = Changes::new("postfix", &ours.path);
    let owner = postfix.owner();
    let group = super::primary_group(&owner)?;

    let written = socket(&postfix, ours);
    let queue = postfix.queue_folder();
    let real = queue.join(&written);
    let wanted = Wanted {
        name: "postfix",
        kind: AuthListenerKind::Client,
        paths: vec![real.clone()],
        owner: Some(owner.clone()),
        group: Some(group),
        mode: 0o660,
        more: Vec::new(),
    };
    let hostname = Some(postfix.value("myhostname")).filter(|name| conf::is_domain(name));
    let hostname = hostname.unwrap_or_else(|| conf::Settings::defaults().hostname);
    let fresh = Fresh {
        program: "Postfix",
        domain: origin(&postfix).filter(|domain| *domain != hostname),
        hostname,
        auth: Vec::new(),
        tables: None,
        users: Users::choose(args.common.users.as_deref())?,
    };
    ours.serve(&wanted, &fresh, &mut changes)?;
    if written == Path::new(SOCKET) || written == Path::new(OTHER_SOCKET) {
        let private = queue.join("private");
        // Postfix makes it at its first start; until then it would become root's, and Postfix could not get in.
        if !private.is_dir() {
            changes.folder(FolderChange { path: private, owner: (owner, "root".to_owned()), mode: 0o700 });
        }
    }

    let after = main_cf(&postfix, &written, args.plaintext, &mut changes.remarks);
    changes.file(FileChange::new(&folder.join("main.cf"), Some(main), after, 0o644)?);
    let mut text = overrides(&postfix, &written, &mut changes.remarks);
    for (asked, names, port) in [
        (args.submission, &["submission", "587"][..], "587"),
        (args.submissions, &["submissions", "smtps", "465"], "465"),
    ] {
        if asked {
            text = opened(&postfix, text, names)?;
        } else if port == "587" && !has_service(&postfix, names) {
            changes
                .remarks
                .push("mail programs expect port 587: `postern setup postfix --submission`".to_owned());
        }
    }
    changes.file(FileChange::new(&folder.join("master.cf"), Some(master), text, 0o644)?);
    policies(&postfix, &mut changes.remarks);

    let mut next = vec![super::START.to_owned()];
    if args.no_reload {
        next.push(format!("then: postfix{} reload", option(&folder)));
    }
    let tls = if args.plaintext || !has_tls(&postfix) { "" } else { "--tls " };
    next.push(format!(
        "try it: swaks --server localhost {tls}--auth PLAIN --auth-user USER --to USER@{}",
        fresh.domain.unwrap_or(fresh.hostname)
    ));
    Ok((changes, next))
}

/// Where Dovecot's own manual puts the socket, below the queue folder.
const SOCKET: &str = "private/auth";
/// Where that is taken.
const OTHER_SOCKET: &str = "private/postern";

/// The socket, as Postfix writes it: what our file and Postfix agree on already, else what Postfix has, else the usual place.
fn socket(postfix: &Postfix, ours: &Ours) -> PathBuf {
    let queue = postfix.queue_folder();
    let listeners = ours.settings.iter().flat_map(|settings| &settings.auth.listener);
    let clients = listeners.filter(|listener| listener.kind == AuthListenerKind::Client);
    let served: Vec<&PathBuf> = clients.flat_map(|listener| &listener.path).collect();
    let chrooted = postfix.smtpds().any(|service| postfix.is_chrooted(service));
    let now = postfix.value("smtpd_sasl_path");
    let now = now.strip_prefix("unix:").unwrap_or(&now);
    if postfix.value("smtpd_sasl_type") == "dovecot" && !now.starts_with("inet:") {
        let relative = !now.starts_with('/');
        let real = queue.join(now);
        let inside = real.strip_prefix(&queue).ok().map(Path::to_owned);
        match inside {
            // Seen from the queue folder the same in and outside of a chroot.
            Some(inside) if served.contains(&&real) || !answers(&real) => return inside,
            None if !chrooted && !relative && (served.contains(&&real) || !answers(&real)) => return real,
            _ => {}
        }
    }
    let ours = served.iter().find_map(|path| path.strip_prefix(&queue).ok());
    if let Some(inside) = ours {
        return inside.to_owned();
    }
    if answers(&queue.join(SOCKET)) { OTHER_SOCKET.into() } else { SOCKET.into() }
}

/// Whether another daemon serves this socket.
fn answers(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// Both files, if Postfix itself can read them and every line is one we know.
fn sound(folder: &Path) -> anyhow::Result<(String, String)> {
    let (main, master) = (folder.join("main.cf"), folder.join("master.cf"));
    let Some(main_text) = change::read(&main)? else {
        let text = format!(
            "there is no {}; on Debian `dpkg-reconfigure postfix` makes it (choose “Internet Site”), or name another \
             folder with --config-dir",
            main.display()
        );
        return Err(Coded::new(exit::FAILURE, text).into());
    };
    let Some(master_text) = change::read(&master)? else {
        return Err(Coded::new(exit::FAILURE, format!("there is no {}", master.display())).into());
    };
    for arguments in [&["-n"][..], &["-M"]] {
        let out = change::command("postconf").arg("-c").arg(folder).args(arguments).output();
        let out = out.map_err(|error| {
            Coded::new(exit::FAILURE, format!("cannot run postconf ({error}); is Postfix installed?"))
        })?;
        let said = String::from_utf8_lossy(&out.stderr);
        let bad =
            said.lines().find(|line| ["fatal:", "error:", "panic:"].iter().any(|word| line.contains(word)));
        if !out.status.success() || bad.is_some() {
            let why = bad.or_else(|| said.lines().next()).unwrap_or("it failed").to_owned();
            let text = format!("Postfix cannot read its own files, so they stay as they are: {why}");
            return Err(Coded::new(exit::FAILURE, text).into());
        }
    }
    for (number, line) in main_text.lines().enumerate() {
        let begins = !line.starts_with([' ', '\t', '#']) && !line.trim().is_empty();
        if begins && !line.contains('=') {
            let text = format!(
                "{}, line {}: no `name = value`: {line}; the file stays as it is",
                main.display(),
                number + 1
            );
            return Err(Coded::new(exit::FAILURE, text).into());
        }
    }
    Ok((main_text, master_text))
}

/// `myorigin`: the domain of names without one. It may be the name of a file.
fn origin(postfix: &Postfix) -> Option<String> {
    let value = postfix.value("myorigin");
    let value = if value.starts_with('/') {
        change::read(Path::new(&value)).ok()??.lines().next()?.trim().to_owned()
    } else {
        value
    };
    Some(value.to_ascii_lowercase()).filter(|domain| conf::is_domain(domain) && domain.contains('.'))
}

fn has_tls(postfix: &Postfix) -> bool {
    let level = postfix.value("smtpd_tls_security_level");
    let on =
        !(level.is_empty() || level == "none") || postfix.value("smtpd_use_tls").eq_ignore_ascii_case("yes");
    let set = |name: &str| !["", "none"].contains(&postfix.value(name).as_str());
    on && ["smtpd_tls_cert_file", "smtpd_tls_eccert_file", "smtpd_tls_chain_files"].into_iter().any(set)
}

/// The new text of main.cf.
fn main_cf(postfix: &Postfix, socket: &Path, plaintext: bool, remarks: &mut Vec<String>) -> String {
    let socket = socket.display().to_string();
    let mut wanted = vec![
        ("smtpd_sasl_auth_enable", "yes".to_owned()),
        ("smtpd_sasl_type", "dovecot".to_owned()),
        ("smtpd_sasl_path", socket),
    ];
    let decided = postfix.main.raw("smtpd_tls_auth_only").is_some();
    if plaintext {
        wanted.push(("smtpd_tls_auth_only", "no".to_owned()));
    } else if has_tls(postfix) && !decided {
        wanted.push(("smtpd_tls_auth_only", "yes".to_owned()));
    } else if !has_tls(postfix) {
        remarks.push(
            "Postfix has no TLS: passwords would cross the network in clear. Give it a certificate (`postfix tls \
             enable-server` makes one), then run this again"
                .to_owned(),
        );
    }
    if postfix.main.raw("smtpd_sasl_type").is_some_and(|kind| kind == "cyrus")
        && postfix.value("smtpd_sasl_auth_enable") == "yes"
    {
        remarks.push(
            "Postfix asks Cyrus SASL until now; to keep that and replace only saslauthd: `postern setup saslauthd`".to_owned(),
        );
    }
    let mut lines: Vec<String> = postfix.main.text.split_inclusive('\n').map(str::to_owned).collect();
    let mut added = String::new();
    for (name, value) in wanted {
        if postfix.value(name) == value {
            continue;
        }
        match postfix.main.setting(name) {
            Some(setting) => {
                // Continuation lines belong to the old value; comments between them do not.
                for at in setting.lines.clone() {
                    let Some(line) = lines.get_mut(at) else { continue };
                    if at == setting.lines.start {
                        *line = format!("{name} = {value}\n");
                    } else if !(line.trim().is_empty() || line.trim_start().starts_with('#')) {
                        line.clear();
                    }
                }
            }
            None => added.push_str(&format!("{name} = {value}\n")),
        }
    }
    let mut text = lines.concat();
    if !added.is_empty() {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n# Passwords are checked by Postern (postern setup postfix).\n");
        text.push_str(&added);
    }
    text
}

/// master.cf with `-o` options that would send a service elsewhere set right.
fn overrides(postfix: &Postfix, socket: &Path, remarks: &mut Vec<String>) -> String {
    let mut lines: Vec<String> = postfix.master.text.split_inclusive('\n').map(str::to_owned).collect();
    for service in postfix.smtpds() {
        let mut exchange = |name: &str, value: &str| {
            for (_, old) in service.options.iter().filter(|(option, old)| option == name && old != value) {
                let mut done = false;
                for line in lines.get_mut(service.lines.clone()).unwrap_or_default() {
                    let (from, to) = (format!("{name}={old}"), format!("{name}={value}"));
                    if !line.trim_start().starts_with('#') && line.contains(&from) {
                        *line = line.replace(&from, &to);
                        done = true;
                    }
                }
                if !done {
                    remarks
                        .push(format!("service {} says `{name} = {old}`; make it {value}", service.label()));
                }
            }
        };
        exchange("smtpd_sasl_type", "dovecot");
        exchange("smtpd_sasl_path", &socket.display().to_string());
        if service.options.iter().any(|(name, value)| name == "smtpd_sasl_auth_enable" && value != "yes") {
            remarks.push(format!(
                "service {} has AUTH switched off by its own option; it stays off",
                service.label()
            ));
        }
    }
    lines.concat()
}

fn has_service(postfix: &Postfix, names: &[&str]) -> bool {
    postfix.smtpds().any(|service| {
        let port = service.name.rsplit(':').next().unwrap_or_default();
        names.contains(&port)
    })
}

/// master.cf with this service switched on: the commented block of the distribution, or a new one.
fn opened(postfix: &Postfix, text: String, names: &[&str]) -> anyhow::Result<String> {
    if has_service(postfix, names) {
        return Ok(text);
    }
    let Some(name) = names.first() else { return Ok(text) };
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let start = lines.iter().position(|line| {
        let bare = line.strip_prefix('#').unwrap_or_default();
        let mut words = bare.split_whitespace();
        words.next().is_some_and(|word| names.contains(&word)) && words.next() == Some("inet")
    });
    if let Some(start) = start {
        for (number, line) in lines.iter_mut().enumerate().skip(start) {
            let Some(bare) = line.strip_prefix('#') else { break };
            // Options are indented below the service; prose between them stays a comment.
            let option = bare.starts_with([' ', '\t']) && bare.trim_start().starts_with("-o ");
            if number != start && !bare.starts_with([' ', '\t']) {
                break;
            }
            if number == start || option {
                *line = bare.to_owned();
            }
        }
        return Ok(lines.concat());
    }
    let chroot =
        postfix.smtpds().next().map_or("n", |service| if postfix.is_chrooted(service) { "y" } else { "n" });
    let tls = if *name == "submission" {
        "  -o smtpd_tls_security_level=encrypt\n  -o smtpd_tls_auth_only=yes\n"
    } else {
        "  -o smtpd_tls_wrappermode=yes\n"
    };
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(format!(
        "{text}{gap}{name} inet n - {chroot} - - smtpd\n  -o syslog_name=postfix/{name}\n{tls}  -o smtpd_sasl_auth_enable=yes\n  \
         -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n"
    ))
}

/// What is somebody's policy and stays, but may get in the way.
fn policies(postfix: &Postfix, remarks: &mut Vec<String>) {
    let relay = postfix.value("smtpd_relay_restrictions") + &postfix.value("smtpd_recipient_restrictions");
    if !relay.contains("permit_sasl_authenticated") && !relay.is_empty() {
        remarks.push(
            "smtpd_relay_restrictions lacks permit_sasl_authenticated: users can log in, but not send"
                .to_owned(),
        );
    }
    let options =
        postfix.value("smtpd_sasl_security_options") + &postfix.value("smtpd_sasl_tls_security_options");
    if options.contains("noplaintext") {
        remarks.push(
            "smtpd_sasl_security_options has noplaintext: PLAIN and LOGIN are hidden from clients".to_owned(),
        );
    }
    if !postfix.value("smtpd_sasl_exceptions_networks").is_empty() {
        remarks.push("smtpd_sasl_exceptions_networks hides AUTH from some clients".to_owned());
    }
    if postfix.value("smtpd_discard_ehlo_keywords").to_ascii_lowercase().contains("auth") {
        remarks.push("smtpd_discard_ehlo_keywords hides AUTH from all clients".to_owned());
    }
}

fn option(folder: &Path) -> String {
    if folder == Path::new(crate::postfix::CONFIG_FOLDER) {
        String::new()
    } else {
        format!(" -c {}", folder.display())
    }
}

/// Makes a running Postfix read its files; `false` where none runs.
pub(super) fn reload(args: &PostfixArgs) -> anyhow::Result<bool> {
    let folder = folder(args);
    let mut status = change::command("postfix");
    let running = status.arg("-c").arg(&folder).arg("status").output().is_ok_and(|out| out.status.success());
    if !running {
        return Ok(false);
    }
    let folder = folder.to_string_lossy().into_owned();
    change::run(&["postfix".to_owned(), "-c".to_owned(), folder, "reload".to_owned()])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &str = "smtp      inet  n       -       y       -       -       smtpd\n\
                          #smtpd     pass  -       -       y       -       -       smtpd\n\
                          # Choose one: enable submission for loopback clients only, or for any client.\n\
                          #127.0.0.1:submission inet n -   y       -       -       smtpd\n\
                          #submission inet n       -       y       -       -       smtpd\n\
                          #  -o syslog_name=postfix/submission\n\
                          #  -o smtpd_sasl_auth_enable=yes\n\
                          #     Instead of specifying complex smtpd_<xxx>_restrictions here,\n\
                          #  -o smtpd_relay_restrictions=\n\
                          #  -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject\n\
                          # Choose one: enable submissions for loopback clients only, or for any client.\n\
                          #submissions     inet  n       -       y       -       -       smtpd\n\
                          #  -o smtpd_tls_wrappermode=yes\n\
                          #628       inet  n       -       y       -       -       qmqpd\n\
                          pickup    unix  n       -       y       60      1       pickup\n";

    fn postfix(main: &str, master: &str) -> Postfix {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("main.cf"), main).expect("written");
        std::fs::write(folder.path().join("master.cf"), master).expect("written");
        Postfix::read(folder.path()).expect("read")
    }

    #[test]
    fn lines_of_main_cf() {
        let main = "# mine\nsmtpd_sasl_type = cyrus\nsmtpd_sasl_path =\n  smtpd\n# between\nsmtpd_sasl_auth_enable=yes\n";
        let mut remarks = Vec::new();
        let made = main_cf(&postfix(main, MASTER), Path::new("private/auth"), false, &mut remarks);
        assert_eq!(
            made,
            "# mine\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth\n# between\nsmtpd_sasl_auth_enable=yes\n"
        );
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        let tls = "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = /c";
        let made = main_cf(&postfix(tls, MASTER), Path::new("private/auth"), false, &mut Vec::new());
        assert!(
            made.starts_with(tls)
                && made.ends_with("smtpd_sasl_path = private/auth\nsmtpd_tls_auth_only = yes\n"),
            "{made}"
        );
        assert_eq!(main_cf(&postfix(&made, MASTER), Path::new("private/auth"), false, &mut Vec::new()), made);
        let open = main_cf(&postfix(&made, MASTER), Path::new("private/auth"), true, &mut Vec::new());
        assert!(open.ends_with("smtpd_tls_auth_only = no\n"), "{open}");
    }

    #[test]
    fn ports_for_mail_programs() {
        let before = postfix("", MASTER);
        let made = opened(&before, MASTER.to_owned(), &["submission", "587"]).expect("made");
        let services = crate::postfix::MasterCf::parse(made.clone()).services;
        assert_eq!(
            services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["smtp", "submission", "pickup"]
        );
        assert_eq!(services[1].options.len(), 4, "{made}");
        assert!(made.contains("\n#     Instead of") && made.contains("\n#127.0.0.1:submission"));
        let made = opened(&before, made, &["submissions", "smtps", "465"]).expect("made");
        assert!(made.contains("\nsubmissions     inet") && made.contains("\n#628 "), "{made}");
        assert_eq!(opened(&postfix("", &made), made.clone(), &["submission", "587"]).expect("again"), made);
        let bare = "smtp inet n - y - - smtpd";
        let made = opened(&postfix("", bare), bare.to_owned(), &["submission", "587"]).expect("made");
        assert!(made.contains("smtpd\nsubmission inet n - y - - smtpd\n  -o"), "{made}");
    }

    #[test]
    fn options_of_services() {
        let master = "a inet n - y - - smtpd -o smtpd_sasl_type=cyrus\n  -o smtpd_sasl_path=smtpd\n\
                      b inet n - y - - smtpd\n  -o { smtpd_sasl_path = x y }\n  -o smtpd_sasl_auth_enable=no\n";
        let mut remarks = Vec::new();
        let made = overrides(&postfix("", master), Path::new("private/auth"), &mut remarks);
        assert!(made.starts_with(
            "a inet n - y - - smtpd -o smtpd_sasl_type=dovecot\n  -o smtpd_sasl_path=private/auth\n"
        ));
        assert_eq!(remarks.len(), 2, "{remarks:?}");
    }
}
