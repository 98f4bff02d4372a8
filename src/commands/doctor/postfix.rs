//! Postfix's side: which of its services ask for passwords, where, and whether that is where we listen.
//!
//! Trust:  what `postconf` prints and the files it names.
//! Never:  change Postfix; that is `postern setup postfix`.

use std::path::{Path, PathBuf};

use conf::{AuthListener, AuthListenerKind};

use super::check::{Advice, Cause, Check, Part, Trial};
use super::machine::Machine;
use super::paths::quoted;
use super::probe::{self, Protocol};
use super::sockets::{Consumer, same};
use crate::accounts::{self, Account};
use crate::postfix::{AuthPath, Postfix, Service};

/// What Postfix asks, for the sockets to be tried with; and what is wrong with its settings.
pub(super) struct View {
    pub(super) consumers: Vec<Consumer>,
    pub(super) checks: Vec<Check>,
}

/// Whether a service offers AUTH.
pub(super) fn uses_sasl(postfix: &Postfix, service: &Service) -> bool {
    postfix.is_yes(service, "smtpd_sasl_auth_enable")
}

/// Everything about Postfix; nothing where there is none.
pub(super) fn look(machine: &Machine) -> View {
    let mut view = View { consumers: Vec::new(), checks: Vec::new() };
    let Some(postfix) = &machine.postfix else { return view };
    let folder = postfix.folder.display().to_string();
    let trial = |tried: &str| Trial::new(Part::Postfix, format!("Postfix {folder}"), tried);
    if let Some(why) = postfix.complaint() {
        let advice = Advice::say("correct the line; Postfix does not work with it");
        view.checks.push(trial("let postconf read it").problem(
            Cause::PostfixSetting,
            format!("Postfix cannot read its own files: {why}"),
            advice,
        ));
    }
    let owner = postfix.owner();
    let account = match accounts::named(&owner) {
        Ok(account) => account,
        Err(error) => {
            let advice = Advice::say("correct `mail_owner` in main.cf, or install Postfix anew");
            view.checks.push(trial("look up mail_owner").problem(
                Cause::AccountMissing,
                crate::output::sentence(&error),
                advice,
            ));
            return view;
        }
    };
    let asking: Vec<&Service> = postfix.smtpds().filter(|service| uses_sasl(postfix, service)).collect();
    if asking.is_empty() {
        view.checks.push(not_enabled(
            machine,
            postfix,
            trial("look for services with smtpd_sasl_auth_enable = yes"),
        ));
        return view;
    }
    let labels: Vec<String> = asking.iter().map(|service| service.label()).collect();
    view.checks.push(trial("look for services with smtpd_sasl_auth_enable = yes").ok(labels.join(", ")));
    for service in asking {
        let kind = postfix.value_for(service, "smtpd_sasl_type");
        view.checks.extend(offered(machine, postfix, service, &kind));
        match kind.as_str() {
            "dovecot" => dovecot(machine, postfix, service, &account, &mut view),
            "cyrus" => cyrus(machine, postfix, service, &account, &mut view),
            other => {
                let advice = Advice::run(
                    "let Postfix ask Postern",
                    format!("postconf -c {folder} -e smtpd_sasl_type=dovecot"),
                );
                let text = format!("smtpd_sasl_type of {} is {other}", service.label());
                view.checks.push(trial("look at smtpd_sasl_type").problem(
                    Cause::PostfixSetting,
                    text,
                    advice,
                ));
            }
        }
    }
    view.checks.push(relays(postfix, trial("look for permit_sasl_authenticated")));
    view
}

/// Whether a path is in the queue folder: then it is there for Postfix.
fn is_for(postfix: &Postfix, listener: &AuthListener) -> bool {
    let queue = postfix.queue_folder();
    listener.path.iter().any(|path| path.starts_with(&queue))
}

fn not_enabled(machine: &Machine, postfix: &Postfix, trial: Trial) -> Check {
    let text = "no service offers AUTH";
    if machine.settings.auth.listener.iter().any(|listener| is_for(postfix, listener)) {
        let advice = Advice::run(
            "a listener of Postern is in Postfix's queue folder, so Postfix is meant to ask it",
            machine.postern("setup postfix --apply"),
        );
        return trial.problem(
            Cause::PostfixSetting,
            format!("{text}: smtpd_sasl_auth_enable is `no`"),
            advice,
        );
    }
    trial.note(format!("{text}: Postfix does not ask Postern"), None)
}

/// Settings under which Postfix offers no AUTH, whatever we answer.
fn offered(machine: &Machine, postfix: &Postfix, service: &Service, kind: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    let folder = postfix.folder.display();
    let trial = |tried: &str| Trial::new(Part::Postfix, format!("Postfix {}", service.label()), tried);
    let level = postfix.value_for(service, "smtpd_tls_security_level");
    let legacy = ["smtpd_use_tls", "smtpd_enforce_tls"].iter().any(|name| postfix.is_yes(service, name));
    let tls =
        postfix.is_yes(service, "smtpd_tls_wrappermode") || legacy || !(level.is_empty() || level == "none");
    if postfix.is_yes(service, "smtpd_tls_auth_only") && !tls {
        let advice = Advice::run(
            "give Postfix a certificate and let it speak TLS",
            format!("postconf -c {folder} -e smtpd_tls_security_level=may && postfix -c {folder} reload"),
        );
        let level = if level.is_empty() { "empty" } else { &*level };
        let text = format!(
            "AUTH is only offered after STARTTLS (smtpd_tls_auth_only), but there is no STARTTLS (smtpd_tls_security_level is {level})"
        );
        checks.push(trial("see whether AUTH is ever offered").problem(Cause::PostfixSetting, text, advice));
    }
    // Files that cannot be read are told with the certificates.
    let named =
        ["smtpd_tls_chain_files", "smtpd_tls_cert_file", "smtpd_tls_eccert_file", "smtpd_tls_dcert_file"];
    if tls && named.iter().all(|name| matches!(postfix.value_for(service, name).as_str(), "" | "none")) {
        let advice = Advice::run(
            "give Postfix a certificate",
            format!(
                "postconf -c {folder} -e smtpd_tls_chain_files=KEY,FULLCHAIN && postfix -c {folder} reload"
            ),
        );
        let text = "there is no certificate in main.cf: STARTTLS fails, and AUTH is not offered without it";
        if postfix.is_yes(service, "smtpd_tls_auth_only") {
            checks.push(trial("see whether AUTH is ever offered").problem(
                Cause::PostfixSetting,
                text,
                advice,
            ));
        }
    }
    // Most of our mechanisms are plaintext ones.
    let name = if tls { "smtpd_sasl_tls_security_options" } else { "smtpd_sasl_security_options" };
    let options = postfix.value_for(service, name);
    let only_plain = kind == "cyrus"
        || machine
            .settings
            .auth
            .mechanisms
            .iter()
            .all(|one| one.eq_ignore_ascii_case("PLAIN") || one.eq_ignore_ascii_case("LOGIN"));
    if only_plain && options.split([',', ' ']).any(|word| word == "noplaintext") {
        let advice = Advice::run(
            "allow them inside TLS",
            format!("postconf -c {folder} -e {name}=noanonymous && postfix -c {folder} reload"),
        );
        let text = format!(
            "{name} has noplaintext, but only PLAIN and LOGIN are there: Postfix says `no SASL authentication mechanisms`"
        );
        checks.push(trial("see whether AUTH is ever offered").problem(Cause::PostfixSetting, text, advice));
    }
    checks
}

fn relays(postfix: &Postfix, trial: Trial) -> Check {
    let names = ["smtpd_relay_restrictions", "smtpd_recipient_restrictions"];
    // Services may have their own; one that has is enough.
    let in_options = postfix
        .smtpds()
        .flat_map(|one| &one.options)
        .any(|(_, value)| value.contains("permit_sasl_authenticated"));
    if in_options || names.iter().any(|name| postfix.value(name).contains("permit_sasl_authenticated")) {
        return trial.ok("who has logged in may send anywhere");
    }
    let advice = Advice::say(
        "if users are to send to other servers, put permit_sasl_authenticated into smtpd_relay_restrictions",
    );
    trial.note("it is nowhere: who has logged in may send no further than anybody else", Some(advice))
}

/// Adds who asks on a socket; services that ask in the same way are one.
fn ask(view: &mut View, consumer: Consumer) {
    let known = view.consumers.iter_mut().find(|one| {
        one.real == consumer.real
            && one.chroot == consumer.chroot
            && one.service == consumer.service
            && one.written == consumer.written
    });
    match known {
        Some(one) => one.name = format!("{}, {}", one.name, consumer.name.trim_start_matches("Postfix ")),
        None => view.consumers.push(consumer),
    }
}

fn dovecot(machine: &Machine, postfix: &Postfix, service: &Service, account: &Account, view: &mut View) {
    let name = format!("Postfix {}", service.label());
    let trial = Trial::new(Part::Postfix, name.clone(), "follow smtpd_sasl_path");
    let (written, real) = match postfix.auth_path(service) {
        AuthPath::Socket { written, real } => (written, real),
        AuthPath::Network(address) => {
            let advice = Advice::say(
                "use a unix socket; to another machine, `postern auth-daemon forward` carries it over TLS",
            );
            view.checks.push(trial.note(format!("it asks inet:{address}, over plain TCP"), Some(advice)));
            return;
        }
    };
    let queue = postfix.queue_folder();
    let chroot = postfix.is_chrooted(service);
    let kinds = [AuthListenerKind::Client, AuthListenerKind::Login];
    let listeners =
        || machine.settings.auth.listener.iter().filter(|listener| kinds.contains(&listener.kind));
    if listeners().any(|listener| listener.path.iter().any(|path| same(path, &real))) {
        let inside = if chroot { format!(", in the chroot {}", queue.display()) } else { String::new() };
        view.checks.push(trial.ok(format!("{written}{inside} is {}, where Postern listens", real.display())));
        let consumer = Consumer {
            name,
            account: account.clone(),
            chroot: chroot.then(|| queue.clone()),
            folder: Some(queue),
            written: written.into(),
            real,
            service: postfix.value_for(service, "smtpd_sasl_service"),
        };
        ask(view, consumer);
        return;
    }
    let outside = |path: &Path| same(path, Path::new(&written)) || same(path, &queue.join(&written));
    // Not the sockets between our own daemons: Postfix has no business there.
    let paths: Vec<(&AuthListener, &PathBuf)> = listeners()
        .filter(|listener| !conf::is_fronts_socket(&listener.name))
        .flat_map(|listener| listener.path.iter().map(move |path| (listener, path)))
        .collect();
    if let Some((listener, path)) = paths.iter().find(|(_, path)| chroot && outside(path)) {
        view.checks.push(chroot_view(
            machine,
            postfix,
            trial,
            &Mismatch { written: &written, real: &real, listener, path },
        ));
        return;
    }
    let listening: Vec<String> = paths.iter().map(|(_, path)| path.display().to_string()).collect();
    let elsewhere = if listening.is_empty() {
        "Postern has no listener of type client".to_owned()
    } else {
        format!("Postern listens at {}", listening.join(", "))
    };
    let text = format!("it asks at {}, where Postern does not listen; {elsewhere}", real.display());
    if answers(&real) {
        view.checks.push(trial.note(format!("{text}; another program answers there"), None));
        return;
    }
    let inner = paths.iter().find_map(|(_, path)| path.strip_prefix(&queue).ok());
    let folder = postfix.folder.display();
    let advice = match inner {
        Some(inner) => Advice::run(
            "let Postfix ask where Postern listens",
            format!(
                "postconf -c {folder} -e smtpd_sasl_path={} && postfix -c {folder} reload",
                inner.display()
            ),
        ),
        None => Advice::run(
            format!("let Postern listen there: path = \"{}\" in a listener of type client", real.display()),
            machine.postern("setup postfix --apply"),
        ),
    };
    view.checks.push(trial.problem(Cause::WrongPath, text, advice));
}

/// A path that is right outside the chroot only.
struct Mismatch<'a> {
    written: &'a str,
    real: &'a Path,
    listener: &'a AuthListener,
    path: &'a Path,
}

fn chroot_view(machine: &Machine, postfix: &Postfix, trial: Trial, found: &Mismatch<'_>) -> Check {
    let Mismatch { written, real, listener, path } = found;
    let queue = postfix.queue_folder();
    let text = format!(
        "chroot mismatch: it runs in the chroot {} (master.cf, fifth column), where {written} is {}; Postern listens at {}",
        queue.display(),
        real.display(),
        path.display()
    );
    let folder = postfix.folder.display();
    let advice = match path.strip_prefix(&queue) {
        Ok(inner) => Advice::run(
            "name the path as the queue folder sees it, which is right with and without a chroot",
            format!(
                "postconf -c {folder} -e smtpd_sasl_path={} && postfix -c {folder} reload",
                inner.display()
            ),
        ),
        Err(_) => Advice::run(
            format!(
                "let Postern listen inside the chroot as well: in listener {}, path = [\"{}\", \"{}\"]; then",
                listener.name,
                path.display(),
                real.display()
            ),
            machine.postern("reload"),
        ),
    };
    trial.problem(Cause::ChrootView, text, advice)
}

fn cyrus(machine: &Machine, postfix: &Postfix, service: &Service, account: &Account, view: &mut View) {
    let name = format!("Postfix {}", service.label());
    let application = postfix.value_for(service, "smtpd_sasl_path");
    let file = sasl_file(postfix, &application);
    let trial = |tried: String| Trial::new(Part::Postfix, name.clone(), tried);
    let Some(file) = file else {
        let socket = postfix.queue_folder().join(&application);
        let ours = |listener: &AuthListener| listener.path.iter().any(|path| same(path, &socket));
        if !application.is_empty() && machine.settings.auth.listener.iter().any(ours) {
            let folder = postfix.folder.display();
            let advice = Advice::run(
                "let Postfix speak Postern's protocol there",
                format!("postconf -c {folder} -e smtpd_sasl_type=dovecot && postfix -c {folder} reload"),
            );
            let text = format!("smtpd_sasl_type is cyrus, but {application} is Postern's socket");
            view.checks.push(trial("look at smtpd_sasl_type".to_owned()).problem(
                Cause::PostfixSetting,
                text,
                advice,
            ));
            return;
        }
        let place = postfix.folder.join("sasl").join(format!("{application}.conf"));
        let advice = Advice::run(
            "make the file",
            format!(
                "mkdir -p {0} && printf 'pwcheck_method: saslauthd\\nmech_list: PLAIN LOGIN\\n' > {1}",
                quoted(place.parent().unwrap_or(Path::new("/"))),
                quoted(&place)
            ),
        );
        let text = format!(
            "there is no {application}.conf for libsasl2: it looks into /etc/sasldb2 and does not ask Postern"
        );
        view.checks.push(trial(format!("find {}", place.display())).problem(Cause::SaslFile, text, advice));
        return;
    };
    let text = match std::fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            let who = if machine.root { "" } else { "not root: " };
            let trial = trial(format!("read {}", file.display()));
            view.checks.push(trial.cannot_tell(format!("cannot tell: {who}{error}")));
            return;
        }
    };
    let option = |wanted: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == wanted)
            .map(|(_, value)| value.trim().to_owned())
    };
    let method = option("pwcheck_method").unwrap_or_else(|| "auxprop".to_owned());
    if !method.split_whitespace().any(|word| word == "saslauthd") {
        let advice = Advice::say(format!("write `pwcheck_method: saslauthd` into {}", file.display()));
        let text = format!("pwcheck_method is {method}: libsasl2 does not ask Postern");
        view.checks.push(trial(format!("read {}", file.display())).problem(Cause::SaslFile, text, advice));
        return;
    }
    // Debian's libsasl2 has this path built in.
    let written = PathBuf::from(option("saslauthd_path").unwrap_or_else(|| "/run/saslauthd/mux".to_owned()));
    let queue = postfix.queue_folder();
    let chroot = postfix.is_chrooted(service);
    let real = match written.strip_prefix("/") {
        Ok(inner) if chroot => queue.join(inner),
        _ => written.clone(),
    };
    let trial = trial(format!("follow saslauthd_path in {}", file.display()));
    if real.is_dir() {
        let advice = Advice::say(format!(
            "write the socket itself into {}: saslauthd_path: {}/mux",
            file.display(),
            written.display()
        ));
        view.checks.push(trial.problem(
            Cause::SaslFile,
            format!("{} is a folder, not the socket", written.display()),
            advice,
        ));
        return;
    }
    let listeners =
        || machine.settings.auth.listener.iter().filter(|one| one.kind == AuthListenerKind::Saslauthd);
    if listeners().any(|listener| listener.path.iter().any(|path| same(path, &real))) {
        view.checks.push(trial.ok(format!("{} is where Postern listens", real.display())));
        let service = postfix.value_for(service, "smtpd_sasl_service");
        let consumer = Consumer {
            name,
            account: account.clone(),
            chroot: chroot.then_some(queue),
            folder: None,
            written,
            real,
            service,
        };
        ask(view, consumer);
        return;
    }
    let paths: Vec<(&AuthListener, &PathBuf)> =
        listeners().flat_map(|listener| listener.path.iter().map(move |path| (listener, path))).collect();
    let words = written.to_string_lossy();
    if let Some((listener, path)) = paths.iter().find(|(_, path)| chroot && same(path, &written)) {
        view.checks.push(chroot_view(
            machine,
            postfix,
            trial,
            &Mismatch { written: &words, real: &real, listener, path },
        ));
        return;
    }
    let listening: Vec<String> = paths.iter().map(|(_, path)| path.display().to_string()).collect();
    let text = format!(
        "it asks at {}, where Postern does not listen; it listens at {}",
        real.display(),
        if listening.is_empty() { "no socket of type saslauthd".to_owned() } else { listening.join(", ") }
    );
    if answers(&real) {
        view.checks.push(trial.note(format!("{text}; another program answers there"), None));
        return;
    }
    let advice = Advice::run(
        format!("let Postern listen there: a listener of type saslauthd with path = \"{}\"", real.display()),
        machine.postern("setup saslauthd --apply"),
    );
    view.checks.push(trial.problem(Cause::WrongPath, text, advice));
}

/// Whether somebody listens on a socket. Tried by a child, which a program that hangs cannot hold up.
fn answers(socket: &Path) -> bool {
    let talk = probe::talk(&probe::Place::default(), socket, Protocol::Silent, None);
    talk.is_ok_and(|talk| talk.connect.is_ok())
}

/// Where libsasl2 finds the settings of an application: Postfix's own folders first.
fn sasl_file(postfix: &Postfix, application: &str) -> Option<PathBuf> {
    let listed = postfix.value("cyrus_sasl_config_path");
    let own = listed.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from);
    own.chain([postfix.folder.join("sasl"), "/etc/sasl2".into(), "/usr/lib/sasl2".into(), "/etc/sasl".into()])
        .map(|folder| folder.join(format!("{application}.conf")))
        .find(|file| file.is_file())
}
