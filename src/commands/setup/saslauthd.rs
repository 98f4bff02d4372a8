//! `postern setup saslauthd`: a listener in the place of saslauthd's socket, with the settings of its defaults file.
//!
//! Source:    Debian's `/etc/default/saslauthd` and README.Debian of sasl2-bin; saslauthd(8); libsasl2's `smtpd.conf`.
//! Trust:     the defaults file is the administrator's; it is read as text, never run as the shell script it is.
//! Never:     open a socket to more accounts than the folder of the old one let in.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use boot::ExitCode;
use boot::exit::{self, Coded};
use conf::import::Left;
use conf::{AuthListenerKind, PassdbDriver, Settings};

use super::change::{self, AccountChange, Changes, FileChange, FolderChange};
use super::ours::{Fresh, Ours, Users, Wanted};
use crate::accounts;
use crate::postfix::Postfix;

/// The group that may ask saslauthd.
const GROUP: &str = "sasl";

/// What may be asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SaslauthdArgs {
    #[command(flatten)]
    pub(crate) common: super::CommonArgs,
    /// saslauthd's settings.
    #[arg(long, value_name = "FILE", default_value = "/etc/default/saslauthd")]
    pub(crate) defaults: PathBuf,
    /// Also make Postfix ask it (`smtpd_sasl_type = cyrus`), if it does not yet.
    #[arg(long)]
    pub(crate) postfix: bool,
    /// Postfix's configuration folder [default: $MAIL_CONFIG, else /etc/postfix].
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// Change nothing and print postern.toml as FILE would have it [default FILE: --defaults; `-`: standard input].
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["apply", "undo"])]
    pub(crate) import: Option<String>,
}

/// What the defaults file says.
struct Old {
    /// As saslauthd's own flags would be understood.
    settings: Settings,
    /// The folder of its socket.
    folder: PathBuf,
    /// What does not carry over.
    left: Vec<Left>,
    starts: bool,
}

impl Old {
    /// Reads the file's text. saslauthd's init script puts the values together in this order.
    fn read(text: &str) -> anyhow::Result<Self> {
        let defaults = conf::import::defaults(text);
        let mut left = Vec::new();
        let mut note = |line: usize, setting: &str, value: &str, reason: &str| {
            let (setting, value, reason) = (setting.to_owned(), value.to_owned(), reason.to_owned());
            left.push(Left { line, setting, value, reason, blocking: false });
        };
        for line in &defaults.strange {
            note(*line, "?", "", "this line is no plain assignment; a shell would run it");
        }
        for (name, value, line) in &defaults.values {
            match name.as_str() {
                "START" | "MECHANISMS" | "MECH_OPTIONS" | "THREADS" | "OPTIONS" | "NAME" | "DESC" => {}
                "PARAMS" | "SOCKETDIR" => note(*line, name, value, "it is made of the other settings"),
                _ => note(*line, name, value, "saslauthd's script has no such setting"),
            }
        }
        let value = |name: &str| defaults.get(name).unwrap_or_default();
        let mechanism = value("MECHANISMS").split_whitespace().next().unwrap_or("pam");
        let mut arguments: Vec<String> = vec!["-a".into(), mechanism.into()];
        if !value("MECH_OPTIONS").is_empty() {
            arguments.extend(["-O".to_owned(), value("MECH_OPTIONS").to_owned()]);
        }
        arguments.extend(value("OPTIONS").split_whitespace().map(str::to_owned));
        if !value("THREADS").is_empty()
            && !value("OPTIONS").split_whitespace().any(|word| word.starts_with("-n"))
        {
            arguments.extend(["-n".to_owned(), value("THREADS").to_owned()]);
        }
        let settings = crate::saslauthd::settings_for(arguments).map_err(|mistake| {
            Coded::new(exit::CONFIG, format!("saslauthd's settings cannot be carried over: {mistake}"))
        })?;
        let folder = settings.auth.listener.first().and_then(|listener| listener.path.first());
        let folder =
            folder.and_then(|path| path.parent()).unwrap_or(Path::new("/var/run/saslauthd")).to_owned();
        Ok(Self { settings, folder, left, starts: value("START") == "yes" })
    }

    fn joins(&self) -> bool {
        self.settings.auth.listener.first().is_some_and(|listener| listener.join_realm)
    }

    /// Lines of the listener that a mux needs.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.joins() {
            lines.push("join_realm = true".to_owned());
        }
        if self.asks_pam() {
            lines.push(
                "# The file below /etc/pam.d is the one that a program names, `other` without one."
                    .to_owned(),
            );
            lines.push("service = \"other\"\npam_services = [\"*\"]".to_owned());
        }
        lines
    }

    fn asks_pam(&self) -> bool {
        self.settings.auth.passdb.iter().any(|passdb| matches!(passdb.driver, PassdbDriver::Pam { .. }))
    }

    /// The passdb and what belongs to it.
    fn tables(&self) -> String {
        let auth = &self.settings.auth;
        let mut out = String::new();
        // saslauthd remembers successes, and only with -c.
        let seconds = auth.cache.ttl.as_secs();
        let _ = match auth.cache.size {
            0 => writeln!(out, "[auth.cache]\nsize = 0\n"),
            size => {
                writeln!(out, "[auth.cache]\nsize = {size}\nttl = \"{seconds}s\"\nnegative_ttl = \"0s\"\n")
            }
        };
        let _ = writeln!(out, "[auth.worker]\ncount = {}", auth.worker.count);
        if auth.worker.max_requests == 1 {
            let _ = writeln!(out, "max_requests = 1");
        }
        for passdb in &auth.passdb {
            let _ = match &passdb.driver {
                PassdbDriver::Pam { .. } => {
                    writeln!(out, "\n[[auth.passdb]]\ndriver = \"pam\"\nservice = \"%{{service}}\"")
                }
                PassdbDriver::Imap { host, port } => {
                    writeln!(out, "\n[[auth.passdb]]\ndriver = \"imap\"\nhost = \"{host}\"\nport = {port}")
                }
                PassdbDriver::Sasldb { path, .. } => {
                    writeln!(out, "\n[[auth.passdb]]\ndriver = \"sasldb\"\npath = \"{}\"", path.display())
                }
                other => writeln!(out, "\n[[auth.passdb]]\ndriver = \"{}\"", other.word()),
            };
        }
        out
    }

    fn fresh(&self) -> Fresh {
        Fresh {
            program: "programs that ask saslauthd",
            hostname: Settings::defaults().hostname,
            // Names are taken as they come, as saslauthd does.
            domain: Some(String::new()),
            auth: vec!["username_chars = \"\"\nusername_format = \"%{user}\"".to_owned()],
            tables: Some(self.tables()),
            users: Users::Shadow,
        }
    }
}

/// `--import`: our file on standard output.
pub(super) fn import(args: &SaslauthdArgs, json: bool) -> anyhow::Result<ExitCode> {
    let named = args.import.as_deref().filter(|name| !name.is_empty()).map(PathBuf::from);
    let text = super::import::text_of(&named.unwrap_or_else(|| args.defaults.clone()))?;
    let old = Old::read(&text)?;
    let wanted = wanted(&old, vec![old.folder.join("mux")]);
    let toml = super::ours::whole(&wanted, &old.fresh(), Path::new("/etc/postern/postern.toml"));
    super::import::tell(&conf::import::Imported { toml, left: old.left, remarks: Vec::new() }, None, json)
}

fn wanted(old: &Old, paths: Vec<PathBuf>) -> Wanted {
    // saslauthd's socket is open; its folder says who gets there. Ours says it itself.
    let meta = std::fs::metadata(&old.folder).ok();
    let open = meta.as_ref().is_some_and(|meta| meta.mode() & 0o001 != 0);
    let gid = meta.filter(|meta| meta.gid() != 0).map(|meta| meta.gid());
    let group =
        gid.and_then(|gid| nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)).ok().flatten());
    let group = group.map_or_else(|| GROUP.to_owned(), |group| group.name);
    Wanted {
        name: "saslauthd",
        kind: AuthListenerKind::Saslauthd,
        paths,
        owner: Some("root".to_owned()).filter(|_| accounts::is_root()),
        group: if open { None } else { Some(group) },
        mode: if open { 0o666 } else { 0o660 },
        more: old.lines(),
    }
}

/// Makes up the changes.
pub(super) fn plan(args: &SaslauthdArgs, ours: &Ours) -> anyhow::Result<(Changes, Vec<String>)> {
    let before = change::read(&args.defaults)?;
    let old = Old::read(before.as_deref().unwrap_or("MECHANISMS=\"pam\"\n"))?;
    let mut changes = Changes::new("saslauthd", &ours.path);
    if before.is_none() {
        let text = format!(
            "there is no {}: saslauthd's own defaults are taken (pam, /var/run/saslauthd)",
            args.defaults.display()
        );
        changes.remarks.push(text);
    }
    changes.remarks.extend(old.left.iter().map(|left| format!("{}: {left}", args.defaults.display())));

    let postfix = Postfix::find(args.config_dir.as_deref())?;
    let asks = |postfix: &Postfix| {
        postfix.value("smtpd_sasl_type") == "cyrus"
            && postfix.value("smtpd_sasl_auth_enable").eq_ignore_ascii_case("yes")
    };
    let postfix = match postfix {
        Some(postfix) if args.postfix || asks(&postfix) => Some(postfix),
        None if args.postfix => return Err(Coded::new(exit::FAILURE, "there is no Postfix to set up").into()),
        _ => None,
    };
    let (paths, inner) = paths(&old.folder, postfix.as_ref());
    let wanted = wanted(&old, paths.clone());
    if let (Some(settings), None) = (&ours.settings, ours.listener(&wanted)) {
        let drivers: Vec<&str> = settings.auth.passdb.iter().map(|passdb| passdb.driver.word()).collect();
        let asked = old.settings.auth.passdb.first().map_or("pam", |passdb| passdb.driver.word());
        if !drivers.contains(&asked) {
            changes.remarks.push(format!(
                "saslauthd asked `{asked}`; this listener asks the passdbs of {} ({})",
                ours.path.display(),
                drivers.join(", ")
            ));
        }
    }
    ours.serve(&wanted, &old.fresh(), &mut changes)?;
    if let Some(group) = &wanted.group {
        if accounts::find_group(group)?.is_none() {
            changes.accounts.push(AccountChange::Group(group.clone()));
        }
        for folder in paths.iter().filter_map(|path| path.parent()).filter(|folder| !folder.is_dir()) {
            let owner = ("root".to_owned(), group.clone());
            changes.folder(FolderChange { path: folder.to_owned(), owner, mode: 0o710 });
        }
    }
    if let Some(text) = before.filter(|_| old.starts) {
        let after = exchanged(&text, "START", "=", "no");
        changes.file(FileChange::new(&args.defaults, Some(text), after, 0o644)?);
    }
    if let Some(postfix) = &postfix {
        for_postfix(postfix, &inner, wanted.group.as_deref(), &mut changes)?;
    }
    let mux = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
    let mut next = vec![
        "stop saslauthd, which would keep the socket: service saslauthd stop (systemd: systemctl disable --now saslauthd)".to_owned(),
        super::START.to_owned(),
    ];
    if postfix.is_some() && (changes.touches("smtpd.conf") || changes.touches("main.cf")) {
        next.push("then: postfix reload".to_owned());
    }
    next.push(format!("try it: testsaslauthd -f {mux} -u USER -p PASSWORD"));
    Ok((changes, next))
}

/// Where the socket must be, and where Postfix's services see it.
fn paths(folder: &Path, postfix: Option<&Postfix>) -> (Vec<PathBuf>, PathBuf) {
    let outer = folder.join("mux");
    let Some(postfix) = postfix else { return (vec![outer.clone()], outer) };
    let queue = postfix.queue_folder();
    // Seen from inside of the chroot.
    let inner =
        outer.strip_prefix(&queue).map_or_else(|_| outer.clone(), |inside| Path::new("/").join(inside));
    let mut paths = vec![outer];
    let mut add = |path: PathBuf| {
        if !paths.contains(&path) {
            paths.push(path);
        }
    };
    for service in postfix.smtpds() {
        match (postfix.is_chrooted(service), inner.strip_prefix("/")) {
            (true, Ok(inside)) => add(queue.join(inside)),
            _ => add(inner.clone()),
        }
    }
    (paths, inner)
}

fn for_postfix(
    postfix: &Postfix,
    socket: &Path,
    group: Option<&str>,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    let owner = postfix.owner();
    if let Some(group) = group {
        let account = accounts::named(&owner)?;
        let member = accounts::find_group(group)?.is_some_and(|gid| account.groups.contains(&gid));
        if !member {
            changes.accounts.push(AccountChange::Member(owner, group.to_owned()));
        }
    }
    let path = postfix.folder.join("sasl/smtpd.conf");
    let before = change::read(&path)?;
    let mut text = before.clone().unwrap_or_default();
    let socket = socket.display().to_string();
    for (name, value) in
        [("pwcheck_method", "saslauthd"), ("saslauthd_path", socket.as_str()), ("mech_list", "PLAIN LOGIN")]
    {
        text = exchanged(&text, name, ": ", value);
    }
    changes.file(FileChange::new(&path, before, text, 0o644)?);
    let main = change::read(&postfix.folder.join("main.cf"))?.unwrap_or_default();
    let mut text = main.clone();
    for (name, value) in
        [("smtpd_sasl_auth_enable", "yes"), ("smtpd_sasl_type", "cyrus"), ("smtpd_sasl_path", "smtpd")]
    {
        if postfix.value(name) != value {
            text = exchanged(&text, name, " = ", value);
        }
    }
    changes.file(FileChange::new(&postfix.folder.join("main.cf"), Some(main), text, 0o644)?);
    Ok(())
}

/// The text with this setting, where it stood or at the end.
fn exchanged(text: &str, name: &str, between: &str, value: &str) -> String {
    let sign = between.trim();
    let mut done = false;
    let mut out = String::with_capacity(text.len() + 64);
    let mut dropping = false;
    for line in text.split_inclusive('\n') {
        let known = line
            .split_once(sign)
            .is_some_and(|(found, _)| found.trim() == name && !found.starts_with([' ', '\t']));
        if known {
            // A right line stays as it was written.
            let same =
                line.split_once(sign).is_some_and(|(_, found)| found.trim().trim_matches('"') == value);
            if same {
                out.push_str(line);
            } else if !done {
                out.push_str(&format!("{name}{between}{value}\n"));
            }
            dropping = !same;
            done = true;
        } else if dropping && between == " = " && line.starts_with([' ', '\t']) && !line.trim().is_empty() {
            // The rest of a longer value.
        } else {
            dropping = false;
            out.push_str(line);
        }
    }
    if !done {
        if !(out.is_empty() || out.ends_with('\n')) {
            out.push('\n');
        }
        out.push_str(&format!("{name}{between}{value}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_exchanged() {
        for (text, want) in [
            ("START=yes\nX=1\n", "START=no\nX=1\n"),
            ("# START=yes\nSTART = yes\nX", "# START=yes\nSTART=no\nX"),
            ("START=\"no\"\n", "START=\"no\"\n"),
            ("X=1", "X=1\nSTART=no\n"),
        ] {
            assert_eq!(exchanged(text, "START", "=", "no"), want);
        }
        assert_eq!(exchanged("a =\n  b,\n  c\nd = e\n", "a", " = ", "x"), "a = x\nd = e\n");
    }

    #[test]
    fn debians_file_as_ours() {
        let text = "START=yes\nDESC=\"x\"\nNAME=\"saslauthd\"\nMECHANISMS=\"pam\"\nMECH_OPTIONS=\"\"\nTHREADS=0\n\
                    OPTIONS=\"-c -r -t 60 -m /var/spool/postfix/var/run/saslauthd\"\nfoo bar\n";
        let old = Old::read(text).expect("read");
        assert!(old.starts && old.joins() && old.asks_pam());
        assert_eq!(old.folder, Path::new("/var/spool/postfix/var/run/saslauthd"));
        assert_eq!(old.left.iter().map(|left| left.line).collect::<Vec<_>>(), [8]);
        let wanted = wanted(&old, vec![old.folder.join("mux")]);
        let made = super::super::ours::whole(&wanted, &old.fresh(), Path::new("/x"));
        let settings = conf::load(&made, Path::new("/x")).map_err(|e| e.render(false)).expect("right");
        assert_eq!((settings.auth.worker.max_requests, settings.auth.cache.ttl.as_secs()), (1, 60));
        assert_eq!(settings.auth.listener[0].pam_services, ["*"]);
        assert!(Old::read("MECHANISMS=ldap\n").is_err_and(|e| e.to_string().contains("ldap")));
        let rimap =
            Old::read("MECHANISMS=rimap\nMECH_OPTIONS=localhost/144\nOPTIONS=\"-m /run/x\"\n").expect("read");
        assert!(
            rimap.tables().contains("host = \"localhost\"\nport = 144")
                && rimap.tables().contains("size = 0")
        );
    }
}
