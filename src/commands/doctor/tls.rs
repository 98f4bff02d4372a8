//! Certificates and keys: ours, and those of a Postfix that asks us.
//!
//! Trust:  certificate and key files that the settings, or Postfix, name.
//! Never:  print a key.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::check::{Advice, Cause, Check, Part, Trial};
use super::machine::Machine;
use super::paths::{self, quoted};
use super::system::words;
use crate::accounts::name_of;
use crate::postfix::Postfix;

/// One certificate with its key, and whose it is.
struct Pair {
    /// For messages: empty for ours.
    owner: &'static str,
    /// Files of the chain; for Postfix the key may stand in the same file.
    chain: PathBuf,
    key: PathBuf,
    /// What makes a change count.
    then: String,
    /// Names that clients connect to; one of them must be in the certificate. Empty: not checked.
    hostname: String,
}

/// All certificates.
pub(super) fn certificates(machine: &Machine) -> Vec<Check> {
    let settings = &machine.settings;
    let mut checks = Vec::new();
    let pairs = settings.tls.certificate.iter().map(|certificate| Pair {
        owner: "",
        chain: certificate.chain.clone(),
        key: certificate.key.clone(),
        then: machine.postern("reload"),
        hostname: String::new(),
    });
    let mut names = Vec::new();
    for pair in pairs {
        checks.extend(check(machine, &pair, &mut names));
    }
    if settings.tls.certificate.is_empty() {
        if settings.has_fronts() {
            let trial = Trial::new(Part::Certificate, "certificate", "look for one in the settings");
            checks.push(trial.note("there is none: no listener offers TLS", None));
        }
    } else if !names.is_empty() {
        checks.push(host_name(&settings.hostname, &names));
    }
    checks.extend(of_postfix(machine));
    checks
}

fn host_name(hostname: &str, names: &[String]) -> Check {
    let trial = Trial::new(Part::Certificate, "certificate", format!("look for {hostname} in its names"));
    if names.iter().any(|name| covers(name, hostname)) {
        return trial.ok(format!("it is for {}", names.join(", ")));
    }
    let advice = Advice::say(
        "get a certificate for this name, or set `hostname` to a name in the certificate that clients connect to",
    );
    trial.problem(
        Cause::CertificateName,
        format!("it is for {}, not for {hostname}: clients that check it will refuse it", names.join(", ")),
        advice,
    )
}

/// RFC 6125 §6.4.3: the wildcard stands for exactly one whole label.
fn covers(name: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    match name.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(label, parent)| !label.is_empty() && parent == rest),
        None => name == host,
    }
}

fn check(machine: &Machine, pair: &Pair, names: &mut Vec<String>) -> Vec<Check> {
    let of = if pair.owner.is_empty() { String::new() } else { format!("{}'s ", pair.owner) };
    let name = pair.chain.display().to_string();
    let trial = |tried: String| Trial::new(Part::Certificate, name.clone(), tried);
    let read = |path: &Path| std::fs::read(path).map_err(|error| (path.to_owned(), error));
    let loaded = read(&pair.chain).and_then(|chain| Ok((chain, read(&pair.key)?)));
    let (chain, key) = match loaded {
        Ok(both) => both,
        Err((path, error)) => {
            let trial = Trial::new(
                Part::Certificate,
                path.display().to_string(),
                format!("read {of}certificate and key"),
            );
            if machine.comes_later(&path) {
                return vec![trial.note("not there yet: the first start makes it", None)];
            }
            return vec![match error.kind() {
                std::io::ErrorKind::PermissionDenied if !machine.root => {
                    trial.cannot_tell("cannot tell: not root")
                }
                std::io::ErrorKind::NotFound => trial.problem(
                    Cause::CertificateUnusable,
                    "there is no such file",
                    Advice::say("put it there, or correct the path"),
                ),
                _ => {
                    let advice = Advice::say("let the account that starts the program read it");
                    trial.problem(Cause::CertificateUnusable, format!("cannot be read: {error}"), advice)
                }
            }];
        }
    };
    let chain = String::from_utf8_lossy(&chain).into_owned();
    let key = creds::Secret::new(key);
    let mut checks = Vec::new();
    match tls_config::check(&chain, key.expose(), machine.now) {
        Err(error) => checks.push(unusable(
            trial(format!("load {of}certificate with {}", pair.key.display())),
            pair,
            &error,
        )),
        Ok(report) => {
            checks.push(
                trial(format!("load {of}certificate with {}", pair.key.display()))
                    .ok("the key belongs to it"),
            );
            checks.push(dates(machine, trial(format!("compare {of}dates with the clock")), pair, &report));
            checks.push(complete(trial(format!("follow {of}chain")), pair, &chain, &report));
            if !pair.hostname.is_empty() {
                let trial = trial(format!("look for {} in its names", pair.hostname));
                checks.push(if report.names.iter().any(|name| covers(name, &pair.hostname)) {
                    trial.ok(format!("it is for {}", report.names.join(", ")))
                } else {
                    let text = format!("it is for {}, not for {}", report.names.join(", "), pair.hostname);
                    trial.note(text, Some(Advice::say("get one for the name that clients connect to")))
                });
            }
            names.extend(report.names);
        }
    }
    let keeper = std::fs::metadata(&machine.settings.state_dir).map_or(0, |meta| meta.uid());
    checks.push(key_file(&pair.key, keeper));
    checks
}

fn unusable(trial: Trial, pair: &Pair, error: &tls_config::Error) -> Check {
    match error {
        tls_config::Error::KeyMismatch => {
            let advice = Advice::run(
                format!(
                    "put the key that was made with this certificate at {}, then: {}; compare both with",
                    pair.key.display(),
                    pair.then
                ),
                format!(
                    "openssl x509 -in {} -noout -pubkey; openssl pkey -in {} -pubout",
                    quoted(&pair.chain),
                    quoted(&pair.key)
                ),
            );
            let text = format!("the key {} does not belong to the certificate", pair.key.display());
            trial.problem(Cause::KeyMismatch, text, advice)
        }
        other => {
            let advice = Advice::say(format!(
                "correct {} or {}, then: {}",
                pair.chain.display(),
                pair.key.display(),
                pair.then
            ));
            trial.problem(Cause::CertificateUnusable, other.to_string(), advice)
        }
    }
}

fn dates(machine: &Machine, trial: Trial, pair: &Pair, report: &tls_config::Report) -> Check {
    let renew = |text: &str| {
        if pair.owner.is_empty() && matches!(machine.place, crate::place::Place::Embedded(_)) {
            Advice::run(
                format!("{text}: every start renews the certificate of the embedded default"),
                machine.restart_command(),
            )
        } else if pair.chain.starts_with("/etc/letsencrypt") {
            Advice::run(text, format!("certbot renew && {}", pair.then))
        } else {
            Advice::run(format!("{text}: put a new one at {}, then", pair.chain.display()), pair.then.clone())
        }
    };
    if let Ok(since) = machine.now.duration_since(report.not_after) {
        return trial.problem(
            Cause::CertificateExpired,
            format!("the certificate expired {} ago", words(since)),
            renew("renew it"),
        );
    }
    if let Ok(until) = report.not_before.duration_since(machine.now)
        && !until.is_zero()
    {
        let text = format!("the certificate is valid only {} from now", words(until));
        return trial.problem(
            Cause::CertificateNotYetValid,
            text,
            Advice::run("look at the clock first", "date"),
        );
    }
    let left = report.not_after.duration_since(machine.now).unwrap_or_default();
    if report.warnings.iter().any(|warning| matches!(warning, tls_config::Warning::ExpiresSoon { .. })) {
        return trial.note(format!("it expires in {}", words(left)), Some(renew("renew it in time")));
    }
    trial.ok(format!("valid for {} more", words(left)))
}

fn complete(trial: Trial, pair: &Pair, chain: &str, report: &tls_config::Report) -> Check {
    let broken =
        report.warnings.iter().find(|warning| matches!(warning, tls_config::Warning::ChainOrder { .. }));
    if let Some(warning) = broken {
        let advice = Advice::say(format!(
            "put the server's certificate first into {}, and after each the one that issued it",
            pair.chain.display()
        ));
        return trial.problem(Cause::CertificateChain, warning.to_string(), advice);
    }
    let count = chain.matches("-----BEGIN CERTIFICATE-----").count();
    if count > 1 {
        return trial.ok(format!("{count} certificates, each issued by the next"));
    }
    if report.subject == report.issuer {
        return trial.ok("the server's certificate is self-signed: clients must be told to trust it");
    }
    // certbot's folder: `cert.pem` is the server's alone.
    let full = pair.chain.with_file_name("fullchain.pem");
    if full != pair.chain && full.exists() {
        let advice = Advice::say(format!("name {} in its place, then: {}", full.display(), pair.then));
        let text = "the file holds the server's certificate without the intermediate ones: many clients will refuse it";
        return trial.problem(Cause::CertificateChain, text, advice);
    }
    // A CA beside it, as the embedded default has it: clients are given that one.
    if pair.chain.with_file_name("ca.pem").exists() {
        return trial.ok(format!("one certificate, issued by {}", report.issuer));
    }
    let advice =
        Advice::say("if that is no root that clients know, add the intermediate certificates to the file");
    trial.note(format!("only the server's certificate, issued by {}", report.issuer), Some(advice))
}

/// `keeper` owns the state folder: an embedded default keeps its own certificate there.
fn key_file(key: &Path, keeper: u32) -> Check {
    let trial = Trial::new(Part::Certificate, key.display().to_string(), "look at the key's owner and mode");
    let meta = match std::fs::metadata(key) {
        Ok(meta) => meta,
        Err(error) => return trial.cannot_tell(format!("cannot tell: {error}")),
    };
    if meta.mode() & 0o007 != 0 {
        let advice = Advice::run(
            "close it, and think about a new key: somebody may have read it",
            format!("chmod 0600 {}", quoted(key)),
        );
        return trial.problem(
            Cause::KeyOpen,
            format!("everybody can read it: {}", paths::rights(&meta)),
            advice,
        );
    }
    let ours = [0, nix::unistd::geteuid().as_raw(), keeper];
    if !ours.contains(&meta.uid()) && meta.mode() & 0o200 != 0 {
        let text = format!("{}: {} can replace it", paths::rights(&meta), name_of(meta.uid()));
        return trial.note(text, None);
    }
    trial.ok(paths::rights(&meta))
}

/// The certificates of a Postfix that asks for logins: clients see that one.
fn of_postfix(machine: &Machine) -> Vec<Check> {
    let Some(postfix) = &machine.postfix else { return Vec::new() };
    if !postfix.smtpds().any(|service| super::postfix::uses_sasl(postfix, service)) {
        return Vec::new();
    }
    let mut checks = Vec::new();
    for (chain, key) in pairs_of(postfix) {
        let hostname = postfix.value("myhostname");
        let then = "postfix reload".to_owned();
        let pair = Pair { owner: "Postfix", chain, key, then, hostname };
        checks.extend(check(machine, &pair, &mut Vec::new()));
    }
    checks
}

/// Chain and key of each certificate in main.cf.
pub(super) fn pairs_of(postfix: &Postfix) -> Vec<(PathBuf, PathBuf)> {
    let files = |name: &str| {
        let value = postfix.value(name);
        let names = value.split([',', ' ', '\t']).filter(|word| !word.is_empty() && *word != "none");
        names.map(PathBuf::from).collect::<Vec<_>>()
    };
    let chains = files("smtpd_tls_chain_files");
    let mut pairs = Vec::new();
    if chains.is_empty() {
        for prefix in ["smtpd_tls_", "smtpd_tls_ec"] {
            let (chain, key) = (files(&format!("{prefix}cert_file")), files(&format!("{prefix}key_file")));
            if let Some(chain) = chain.first() {
                pairs.push((chain.clone(), key.first().unwrap_or(chain).clone()));
            }
        }
        return pairs;
    }
    // Key first, then its certificates, in one file or in following ones (postconf(5)).
    let holds = |path: &Path, mark: &str| std::fs::read_to_string(path).is_ok_and(|text| text.contains(mark));
    let mut key: Option<&PathBuf> = None;
    for path in &chains {
        if holds(path, "PRIVATE KEY-----") {
            key = Some(path);
        }
        if holds(path, "BEGIN CERTIFICATE-----")
            && let Some(key) = key.take()
        {
            pairs.push((path.clone(), key.clone()));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn names_in_certificates() {
        for (name, host, expected) in [
            ("mail.example.org", "Mail.Example.org", true),
            ("*.example.org", "mail.example.org", true),
            ("*.example.org", "a.mail.example.org", false),
            ("*.example.org", "example.org", false),
        ] {
            assert_eq!(covers(name, host), expected, "{name} {host}");
        }
    }
}
