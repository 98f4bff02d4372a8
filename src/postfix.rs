//! Postfix's own files, `main.cf` and `master.cf`, as Postfix reads them.
//!
//! Purpose:   what is set and where it stands, for commands that look at Postfix or change it.
//! Format:    postconf(5), master(5): continuation lines, comments, `$name`, `-o name=value`, chroot column.
//! Trust:     the files belong to the administrator; nothing here is run but `postconf`, with fixed arguments.
//! Never:     write anything.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// Where Postfix keeps its files unless told otherwise.
pub(crate) const CONFIG_FOLDER: &str = "/etc/postfix";
/// Times a value may refer to another one before we give up: a circle has no end.
const DEPTH: usize = 20;

/// What holds where `main.cf` says nothing and `postconf` cannot be asked (postconf(5), Debian's build).
const DEFAULTS: &[(&str, &str)] = &[
    ("broken_sasl_auth_clients", "no"),
    ("command_directory", "/usr/sbin"),
    ("compatibility_level", "0"),
    ("cyrus_sasl_config_path", ""),
    ("daemon_directory", "/usr/lib/postfix/sbin"),
    ("data_directory", "/var/lib/postfix"),
    ("mail_owner", "postfix"),
    ("queue_directory", "/var/spool/postfix"),
    ("setgid_group", "postdrop"),
    ("smtpd_sasl_auth_enable", "no"),
    ("smtpd_sasl_local_domain", ""),
    ("smtpd_sasl_path", "smtpd"),
    ("smtpd_sasl_security_options", "noanonymous"),
    ("smtpd_sasl_service", "smtp"),
    ("smtpd_sasl_tls_security_options", "$smtpd_sasl_security_options"),
    ("smtpd_sasl_type", "cyrus"),
    ("smtpd_tls_auth_only", "no"),
    ("smtpd_tls_security_level", ""),
    ("smtpd_tls_wrappermode", "no"),
];

/// One Postfix: its folder with both files.
#[derive(Clone, Debug)]
pub(crate) struct Postfix {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// `main.cf`.
    pub(crate) main: MainCf,
    /// `master.cf`.
    pub(crate) master: MasterCf,
    /// Values with defaults, as `postconf` says; empty where it cannot be asked.
    effective: BTreeMap<String, String>,
}

/// The settings of a `main.cf`, as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MainCf {
    /// The whole file.
    pub(crate) text: String,
    /// Every `name = value`, in the order of the file; the last one of a name counts.
    pub(crate) settings: Vec<Setting>,
}

/// One `name = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The name.
    pub(crate) name: String,
    /// The value, continuation lines joined, references not expanded.
    pub(crate) value: String,
    /// Lines of the file, from 0.
    pub(crate) lines: Range<usize>,
}

/// The services of a `master.cf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MasterCf {
    /// The whole file.
    pub(crate) text: String,
    /// In the order of the file.
    pub(crate) services: Vec<Service>,
}

/// One service of `master.cf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// First column: port, name or path.
    pub(crate) name: String,
    /// Second column: `inet`, `unix`, `unix-dgram`, `fifo` or `pass`.
    pub(crate) kind: String,
    /// Fifth column as written: `y`, `n` or `-`.
    pub(crate) chroot: String,
    /// Eighth column: the program.
    pub(crate) command: String,
    /// Its arguments, without the `-o` options.
    pub(crate) arguments: Vec<String>,
    /// `-o name=value`, in order; the last one of a name counts.
    pub(crate) options: Vec<(String, String)>,
    /// Lines of the file, from 0.
    pub(crate) lines: Range<usize>,
}

impl Service {
    /// For messages: `submission/inet`, as `postconf -M` calls it.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.name, self.kind)
    }
}

/// Where a service asks for passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthPath {
    /// A socket: the path that the service says, and where that is, seen from outside.
    Socket {
        /// As in `smtpd_sasl_path`, without `unix:`.
        written: String,
        /// The file, with the queue folder or the chroot before it.
        real: PathBuf,
    },
    /// `inet:host:port`.
    Network(String),
}

impl Postfix {
    /// The Postfix of this machine: of `folder`, else of `$MAIL_CONFIG`, else of `/etc/postfix`. `None` where there is no
    /// `main.cf`.
    pub(crate) fn find(folder: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let named = || std::env::var_os("MAIL_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = folder.map(Path::to_owned).or_else(named).unwrap_or_else(|| CONFIG_FOLDER.into());
        match std::fs::symlink_metadata(folder.join("main.cf")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            _ => Self::read(&folder).map(Some),
        }
    }

    /// Reads both files of this folder, and asks `postconf` for what they do not say.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (main, master) = (MainCf::parse(text("main.cf")?), MasterCf::parse(text("master.cf")?));
        Ok(Self { folder: folder.to_owned(), main, master, effective: postconf(folder) })
    }

    /// The value that holds, expanded: of `main.cf`, else the default. Empty for names that nobody knows.
    pub(crate) fn value(&self, name: &str) -> String {
        self.look_up(name, &[], 0)
    }

    /// The value that holds for this service: its `-o` options come first.
    pub(crate) fn value_for(&self, service: &Service, name: &str) -> String {
        self.look_up(name, &service.options, 0)
    }

    /// Whether a `yes`/`no` value is `yes` for this service.
    pub(crate) fn is_yes(&self, service: &Service, name: &str) -> bool {
        self.value_for(service, name).eq_ignore_ascii_case("yes")
    }

    /// What Postfix cannot read in its own files, in its own words.
    pub(crate) fn complaint(&self) -> Option<String> {
        complaint(&self.folder)
    }

    /// `queue_directory`: where chrooted services live and where relative socket paths begin.
    pub(crate) fn queue_folder(&self) -> PathBuf {
        self.value("queue_directory").into()
    }

    /// `mail_owner`: the account that Postfix's daemons run as.
    pub(crate) fn owner(&self) -> String {
        self.value("mail_owner")
    }

    /// Whether the service runs in a chroot. `-` is `n` from compatibility level 1 on, before that `y` (master(5)).
    pub(crate) fn is_chrooted(&self, service: &Service) -> bool {
        match service.chroot.as_str() {
            "y" => true,
            "n" => false,
            _ => {
                let level = self.value("compatibility_level");
                level.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0) < 1
            }
        }
    }

    /// The SMTP servers of `master.cf`.
    pub(crate) fn smtpds(&self) -> impl Iterator<Item = &Service> {
        self.master.services.iter().filter(|service| service.command == "smtpd")
    }

    /// Where this service finds its auth socket (`smtpd_sasl_type = dovecot`).
    pub(crate) fn auth_path(&self, service: &Service) -> AuthPath {
        let written = self.value_for(service, "smtpd_sasl_path");
        if let Some(address) = written.strip_prefix("inet:") {
            return AuthPath::Network(address.to_owned());
        }
        let written = written.strip_prefix("unix:").unwrap_or(&written).to_owned();
        // Services run in the queue folder, in a chroot or not; an absolute path begins at the chroot.
        let real = match written.strip_prefix('/') {
            Some(inner) if self.is_chrooted(service) => self.queue_folder().join(inner),
            _ => self.queue_folder().join(&written),
        };
        AuthPath::Socket { written, real }
    }

    fn look_up(&self, name: &str, options: &[(String, String)], depth: usize) -> String {
        let option = options.iter().rev().find(|(option, _)| option == name).map(|(_, value)| value.as_str());
        let raw =
            option.or_else(|| self.main.raw(name)).or_else(|| self.effective.get(name).map(String::as_str));
        let default = || DEFAULTS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let raw = raw.or_else(default).unwrap_or_default();
        if depth >= DEPTH {
            return raw.to_owned();
        }
        expand(raw, &mut |inner| self.look_up(inner, options, depth + 1))
    }
}

/// What `postconf` complains of when it reads the files; `None` also where it cannot be asked.
fn complaint(folder: &Path) -> Option<String> {
    let ask = |program: &str| {
        Command::new(program)
            .arg("-c")
            .arg(folder)
            .arg("-n")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
    };
    let answer = ask("postconf").or_else(|_| ask("/usr/sbin/postconf")).ok()?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    let bad = said.lines().find(|line| line.contains("fatal:"))?;
    Some(bad.strip_prefix("postconf: ").unwrap_or(bad).to_owned())
}

/// What `postconf` says of every setting; nothing where it is missing or fails.
fn postconf(folder: &Path) -> BTreeMap<String, String> {
    let ask = |program: &str| {
        Command::new(program).arg("-c").arg(folder).stdin(Stdio::null()).stderr(Stdio::null()).output()
    };
    let answer = ask("postconf").or_else(|_| ask("/usr/sbin/postconf"));
    let Some(answer) = answer.ok().filter(|answer| answer.status.success()) else { return BTreeMap::new() };
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

impl MainCf {
    /// Reads the text of a `main.cf`.
    pub(crate) fn parse(text: String) -> Self {
        let mut settings = Vec::new();
        for (lines, line) in logical_lines(&text) {
            if let Some((name, value)) = line.split_once('=') {
                settings.push(Setting {
                    name: name.trim().to_owned(),
                    value: value.trim().to_owned(),
                    lines,
                });
            }
        }
        Self { text, settings }
    }

    /// The setting that counts.
    pub(crate) fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().rev().find(|setting| setting.name == name)
    }

    /// Its value as written.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|setting| setting.value.as_str())
    }
}

impl MasterCf {
    /// Reads the text of a `master.cf`. Lines that are no service are left out.
    pub(crate) fn parse(text: String) -> Self {
        let services =
            logical_lines(&text).into_iter().filter_map(|(lines, line)| service(&line, lines)).collect();
        Self { text, services }
    }
}

fn service(line: &str, lines: Range<usize>) -> Option<Service> {
    let mut words = words(line).into_iter();
    let mut column = || words.next();
    let (name, kind) = (column()?, column()?);
    let (_private, _unprivileged, chroot) = (column()?, column()?, column()?);
    let (_wakeup, _limit, command) = (column()?, column()?, column()?);
    let (mut arguments, mut options) = (Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        let option = match word.strip_prefix("-o") {
            Some("") => words.next(),
            Some(joined) => Some(joined.to_owned()),
            None => {
                arguments.push(word);
                continue;
            }
        };
        if let Some((name, value)) = option.as_deref().and_then(|option| option.split_once('=')) {
            options.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    Some(Service { name, kind, chroot, command, arguments, options, lines })
}

/// Words between blanks; `{ … }` holds a word with blanks, and its braces do not count (master(5)).
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let braced = rest.strip_prefix('{').and_then(|inner| {
            let mut open = 1;
            let end = inner.find(|letter| {
                open += match letter {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                open == 0
            })?;
            Some((inner.get(..end)?.trim(), inner.get(end + 1..)?))
        });
        let (word, after) = braced.unwrap_or_else(|| {
            rest.split_at(rest.find(|letter: char| letter.is_ascii_whitespace()).unwrap_or(rest.len()))
        });
        all.push(word.to_owned());
        rest = after.trim_start();
    }
    all
}

/// Lines as Postfix joins them, with the lines of the file they come from: a line that begins with a blank continues the
/// one before; empty lines and comments between them do not count.
fn logical_lines(text: &str) -> Vec<(Range<usize>, String)> {
    let mut all: Vec<(Range<usize>, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match all.last_mut() {
            Some((lines, joined)) if line.starts_with([' ', '\t']) => {
                lines.end = number + 1;
                joined.push(' ');
                joined.push_str(line.trim());
            }
            _ => all.push((number..number + 1, line.trim_end().to_owned())),
        }
    }
    all
}

/// Replaces `$name`, `${name}`, `$(name)`, `${name?text}`, `${name:text}` and `${name?{text}:{text}}`; `$$` is a dollar.
fn expand(raw: &str, value: &mut dyn FnMut(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if after.starts_with(['{', '(']) {
            let Some((inner, after)) = balanced(after) else {
                out.push('$');
                rest = after;
                continue;
            };
            out.push_str(&reference(inner, value));
            rest = after;
        } else {
            let end = name_end(after);
            let (name, after) = after.split_at(end);
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(&value(name));
            }
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn name_end(text: &str) -> usize {
    text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len())
}

/// What stands between the first bracket and its counterpart, and what follows.
fn balanced(text: &str) -> Option<(&str, &str)> {
    let mut open = 0;
    let end = text.find(|letter| {
        open += match letter {
            '{' | '(' => 1,
            '}' | ')' => -1,
            _ => 0,
        };
        open == 0
    })?;
    Some((text.get(1..end)?, text.get(end + 1..)?))
}

fn reference(inner: &str, value: &mut dyn FnMut(&str) -> String) -> String {
    let (name, choice) = inner.split_at(name_end(inner));
    let found = value(name);
    let (when_set, when_empty) = match choice.chars().next() {
        None => return found,
        Some('?') => {
            let then = choice.get(1..).unwrap_or_default();
            match balanced(then).filter(|_| then.starts_with('{')) {
                Some((yes, after)) => {
                    let no = after.trim_start().strip_prefix(':').map(str::trim_start).unwrap_or_default();
                    (yes, balanced(no).map_or(no, |(no, _)| no))
                }
                None => (then, ""),
            }
        }
        Some(':') => {
            let no = choice.get(1..).unwrap_or_default();
            if !found.is_empty() {
                return found;
            }
            ("", balanced(no).filter(|_| no.starts_with('{')).map_or(no, |(no, _)| no))
        }
        // A comparison or something newer: left as it is.
        Some(_) => return format!("${{{inner}}}"),
    };
    let chosen = if found.is_empty() { when_empty } else { when_set };
    expand(chosen.trim(), value)
}

#[cfg(test)]
mod tests {
    use super::{AuthPath, MainCf, MasterCf, Postfix, Service};
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    fn postfix(main: &str, master: &str) -> Postfix {
        Postfix {
            folder: "/etc/postfix".into(),
            main: MainCf::parse(main.to_owned()),
            master: MasterCf::parse(master.to_owned()),
            effective: BTreeMap::new(),
        }
    }

    #[test]
    fn main_cf_as_postfix_reads_it() {
        let text = "# a comment\n\nmyhostname = mail.example.org\nmynetworks = 127.0.0.0/8\n# between\n  [::1]/128\n\t10.0.0.0/8\n\
                    smtpd_sasl_type=cyrus\nsmtpd_sasl_type = dovecot\nempty =\n";
        let main = MainCf::parse(text.to_owned());
        assert_eq!(main.raw("mynetworks"), Some("127.0.0.0/8 [::1]/128 10.0.0.0/8"));
        assert_eq!(main.setting("mynetworks").map(|setting| setting.lines.clone()), Some(3..7));
        assert_eq!(main.raw("smtpd_sasl_type"), Some("dovecot"));
        assert_eq!((main.raw("empty"), main.raw("missing")), (Some(""), None));
    }

    #[test]
    fn references_are_followed() {
        let main = "a = 1\nb = $a-${a}-$(a) $$a ${a?yes} ${none?yes}${none:no} ${a:no} ${a?{x}:{y}} ${none?{x}:{y}}\nc = $d\nd = $c\n";
        let postfix = postfix(main, "");
        assert_eq!(postfix.value("b"), "1-1-1 $a yes no 1 x y");
        assert_eq!(postfix.value("c"), "$d", "a circle ends");
        assert_eq!(postfix.value("smtpd_sasl_tls_security_options"), "noanonymous");
        assert_eq!(postfix.value("mail_owner"), "postfix");
    }

    const MASTER: &str = "\
# service type  private unpriv  chroot  wakeup  maxproc command + args
smtp      inet  n       -       y       -       -       smtpd
submission inet n       -       n       -       -       smtpd
  -o syslog_name=postfix/submission
  # -o smtpd_sasl_type=cyrus
  -o { smtpd_sasl_path = /run/postern/auth }
  -osmtpd_sasl_auth_enable=yes -v
#smtps     inet  n       -       y       -       -       smtpd
1465      inet  n       -       -       -       -       smtpd -o smtpd_sasl_path=inet:127.0.0.1:12345
qmgr      unix  n       -       n       300     1       qmgr
broken line
";

    #[test]
    fn master_cf_as_postfix_reads_it() {
        let postfix = postfix("smtpd_sasl_path = private/auth\nqueue_directory = /q\n", MASTER);
        let found: Vec<String> = postfix.smtpds().map(Service::label).collect();
        assert_eq!(found, ["smtp/inet", "submission/inet", "1465/inet"]);
        let services: Vec<&Service> = postfix.smtpds().collect();
        assert_eq!(services[1].lines, 2..7);
        assert_eq!(services[1].arguments, ["-v"]);
        assert!(postfix.is_yes(services[1], "smtpd_sasl_auth_enable"));
        assert!(!postfix.is_yes(services[0], "smtpd_sasl_auth_enable"));
        assert_eq!(
            services.iter().map(|one| postfix.is_chrooted(one)).collect::<Vec<_>>(),
            [true, false, true]
        );
        let socket =
            |written: &str, real: &str| AuthPath::Socket { written: written.to_owned(), real: real.into() };
        assert_eq!(postfix.auth_path(services[0]), socket("private/auth", "/q/private/auth"));
        assert_eq!(postfix.auth_path(services[1]), socket("/run/postern/auth", "/run/postern/auth"));
        assert_eq!(postfix.auth_path(services[2]), AuthPath::Network("127.0.0.1:12345".to_owned()));
    }

    #[test]
    fn an_absolute_path_begins_at_the_chroot() {
        let main = "smtpd_sasl_path = unix:/run/auth\nqueue_directory = /q\ncompatibility_level = 3.6\n";
        let postfix = postfix(main, "a inet n - y - - smtpd\nb inet n - - - - smtpd\n");
        let real: Vec<PathBuf> = postfix
            .smtpds()
            .map(|one| match postfix.auth_path(one) {
                AuthPath::Socket { real, .. } => real,
                AuthPath::Network(address) => address.into(),
            })
            .collect();
        assert_eq!(real, [Path::new("/q/run/auth"), Path::new("/run/auth")]);
    }

    #[test]
    fn a_machine_without_postfix() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert!(Postfix::find(Some(folder.path())).expect("looked").is_none());
        std::fs::write(folder.path().join("main.cf"), "queue_directory = /q\n").expect("written");
        assert!(Postfix::find(Some(folder.path())).is_err(), "no master.cf");
        std::fs::write(folder.path().join("master.cf"), MASTER).expect("written");
        let found = Postfix::find(Some(folder.path())).expect("read").expect("there");
        assert_eq!(found.queue_folder(), Path::new("/q"));
        assert_eq!(found.owner(), "postfix");
    }
}
