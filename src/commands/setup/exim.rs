//! `postern setup exim`: Exim asks Postern for passwords.
//!
//! Source:    Exim specification, chapter "The dovecot authenticator"; Debian's README.Debian of exim4-base.
//! Trust:     `exim4 -bV` has the last word: a configuration that it refuses is taken back.
//! Never:     leave Exim with a configuration that it does not take.

use std::path::{Path, PathBuf};

use boot::exit::{self, Coded};
use conf::AuthListenerKind;

use super::change::{self, Changes, FileChange};
use super::ours::{Fresh, Ours, Users, Wanted};
use crate::accounts;

/// Where the socket is, unless our file has it elsewhere.
const SOCKET: &str = "/run/postern/exim";
/// Our file among Debian's pieces: behind the header, before the examples.
const PIECE: &str = "conf.d/auth/20_postern";

/// What may be asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct EximArgs {
    #[command(flatten)]
    pub(crate) common: super::CommonArgs,
    /// Exim's configuration folder.
    #[arg(long, value_name = "DIR", default_value = "/etc/exim4")]
    pub(crate) config_dir: PathBuf,
    /// Offer AUTH also to clients that do not use TLS.
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Do not reload a running Exim.
    #[arg(long)]
    pub(crate) no_reload: bool,
}

/// Where authenticators go.
enum Place {
    /// A file of its own among Debian's pieces.
    Piece(PathBuf),
    /// Below `begin authenticators` of this file.
    Section(PathBuf),
}

/// Makes up the changes.
pub(super) fn plan(args: &EximArgs, ours: &Ours) -> anyhow::Result<(Changes, Vec<String>)> {
    let program = program();
    let version = change::run(&[program.clone(), "-bV".to_owned()]).unwrap_or_default();
    if version.is_empty() {
        let text = "cannot run Exim (`exim4 -bV`); on Debian: apt-get install exim4-daemon-heavy";
        return Err(Coded::new(exit::FAILURE, text).into());
    }
    let built = version.lines().find(|line| line.starts_with("Authenticators:")).unwrap_or_default();
    if !built.split_whitespace().any(|word| word.starts_with("dovecot")) {
        let text = "this Exim has no `dovecot` authenticator; on Debian exim4-daemon-light lacks it, so: apt-get install exim4-daemon-heavy";
        return Err(Coded::new(exit::FAILURE, text).into());
    }
    let mut changes = Changes::new("exim", &ours.path);
    let owner = account(&program)?;
    let mut wanted = Wanted {
        name: "exim",
        kind: AuthListenerKind::Client,
        paths: vec![SOCKET.into()],
        group: Some(super::primary_group(&owner)?),
        owner: Some(owner),
        mode: 0o660,
        more: Vec::new(),
    };
    // A listener that somebody has named for Exim is the one.
    let listeners = ours.settings.iter().flat_map(|settings| &settings.auth.listener);
    if let Some(path) =
        listeners.filter(|l| l.name == "exim" && l.kind == wanted.kind).find_map(|l| l.path.first())
    {
        wanted.paths = vec![path.clone()];
    }
    let hostname = option(&program, "primary_hostname").filter(|name| conf::is_domain(name));
    let hostname = hostname.unwrap_or_else(|| conf::Settings::defaults().hostname);
    let domain = option(&program, "qualify_domain").filter(|name| conf::is_domain(name) && *name != hostname);
    let fresh = Fresh {
        program: "Exim",
        hostname: hostname.to_ascii_lowercase(),
        domain: domain.map(|domain| domain.to_ascii_lowercase()),
        auth: Vec::new(),
        tables: None,
        users: Users::choose(args.common.users.as_deref())?,
    };
    ours.serve(&wanted, &fresh, &mut changes)?;

    let place = place(&args.config_dir)?;
    let socket = wanted.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
    let lines =
        authenticators(&socket, matches!(place, Place::Piece(_)) || debian(&args.config_dir), args.plaintext);
    match place {
        Place::Piece(path) => {
            let before = change::read(&path)?;
            if !before.as_deref().is_some_and(|text| text.contains(&socket)) {
                changes.file(FileChange::new(&path, before, lines, 0o644)?);
            }
        }
        Place::Section(path) => {
            let before = change::read(&path)?.unwrap_or_default();
            if !before.contains("postern_plain:") {
                let after = inserted(&before, &lines);
                changes.file(FileChange::new(&path, Some(before), after, 0o644)?);
            }
        }
    }
    if debian(&args.config_dir) && !args.plaintext && !tls(&args.config_dir) {
        changes.remarks.push(
            "Exim offers AUTH under TLS only, and its TLS is off: put `MAIN_TLS_ENABLE = yes` into \
             /etc/exim4/exim4.conf.localmacros and make a certificate with \
             /usr/share/doc/exim4-base/examples/exim-gencert"
                .to_owned(),
        );
    }
    let tls = if args.plaintext { "" } else { "--tls " };
    let next = vec![
        super::START.to_owned(),
        format!(
            "try it: swaks --server localhost {tls}--auth PLAIN --auth-user USER --to USER@{}",
            fresh.domain.unwrap_or(fresh.hostname)
        ),
    ];
    Ok((changes, next))
}

fn program() -> String {
    let known = ["exim4", "exim"]
        .into_iter()
        .find(|name| ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(name).is_file()));
    known.unwrap_or("exim4").to_owned()
}

/// The value of one of Exim's options.
fn option(program: &str, name: &str) -> Option<String> {
    let said = change::run(&[program.to_owned(), "-bP".to_owned(), name.to_owned()]).ok()?;
    let (_, value) = said.lines().find(|line| line.starts_with(name))?.split_once('=')?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Whom Exim runs as: its sockets must let this account in.
fn account(program: &str) -> anyhow::Result<String> {
    let told = option(program, "exim_user");
    for name in told.iter().map(String::as_str).chain(["Debian-exim", "exim", "mail"]) {
        if let Some(uid) = name.parse::<u32>().ok().filter(|uid| *uid != 0) {
            return Ok(accounts::name_of(uid));
        }
        if name != "root" && accounts::find(name)?.is_some() {
            return Ok(name.to_owned());
        }
    }
    Err(Coded::new(exit::FAILURE, "the account that Exim runs as cannot be found").into())
}

fn debian(folder: &Path) -> bool {
    folder.join("update-exim4.conf.conf").is_file() && whole_file(folder).is_none()
}

/// A file that Exim takes before Debian's generated one.
fn whole_file(folder: &Path) -> Option<PathBuf> {
    ["exim4.conf", "exim.conf", "configure"].iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn place(folder: &Path) -> anyhow::Result<Place> {
    if let Some(file) = whole_file(folder) {
        return Ok(Place::Section(file));
    }
    let Some(answers) = change::read(&folder.join("update-exim4.conf.conf"))? else {
        let text = format!(
            "there is no Exim configuration in {}; name the folder with --config-dir",
            folder.display()
        );
        return Err(Coded::new(exit::FAILURE, text).into());
    };
    let answers = conf::import::defaults(&answers);
    if answers.get("dc_use_split_config") == Some("true") {
        return Ok(Place::Piece(folder.join(PIECE)));
    }
    let template = folder.join("exim4.conf.template");
    if !template.is_file() {
        let text = format!("there is no {}; reinstall exim4-config", template.display());
        return Err(Coded::new(exit::FAILURE, text).into());
    }
    Ok(Place::Section(template))
}

/// Whether Debian's TLS macro is set.
fn tls(folder: &Path) -> bool {
    let files = ["exim4.conf.localmacros", "conf.d/main/000_localmacros", "conf.d/main/000_local"];
    files
        .iter()
        .filter_map(|name| change::read(&folder.join(name)).ok().flatten())
        .any(|text| text.lines().any(|line| line.trim_start().starts_with("MAIN_TLS_ENABLE")))
}

fn authenticators(socket: &str, debian: bool, plaintext: bool) -> String {
    let mut out = String::from("# Passwords are checked by Postern (postern setup exim).\n");
    let condition = match (plaintext, debian) {
        (true, _) => "",
        // Debian's own switch for the same in its examples.
        (false, true) => {
            ".ifndef AUTH_SERVER_ALLOW_NOTLS_PASSWORDS\n  server_advertise_condition = ${if def:tls_in_cipher}\n.endif\n"
        }
        (false, false) => "  server_advertise_condition = ${if def:tls_in_cipher}\n",
    };
    for (name, mechanism) in [("postern_plain", "PLAIN"), ("postern_login", "LOGIN")] {
        out.push_str(&format!(
            "{name}:\n  driver = dovecot\n  public_name = {mechanism}\n  server_socket = {socket}\n  server_set_id = $auth1\n{condition}\n"
        ));
    }
    out
}

/// The lines below `begin authenticators`; the section is made if there is none.
fn inserted(text: &str, lines: &str) -> String {
    let mut out = String::with_capacity(text.len() + lines.len());
    let mut done = false;
    for line in text.split_inclusive('\n') {
        out.push_str(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        if !done && words == ["begin", "authenticators"] {
            if !line.ends_with('\n') {
                out.push('\n');
            }
            out.push('\n');
            out.push_str(lines);
            done = true;
        }
    }
    if !done {
        if !(out.is_empty() || out.ends_with('\n')) {
            out.push('\n');
        }
        out.push_str("\nbegin authenticators\n\n");
        out.push_str(lines);
    }
    out
}

/// Generates Debian's file anew, lets Exim check it, and makes a running daemon read it. Names those that did.
pub(super) fn reload(args: &EximArgs) -> anyhow::Result<Vec<String>> {
    let program = program();
    let system = args.config_dir == Path::new("/etc/exim4");
    if debian(&args.config_dir) && system {
        change::run(&["update-exim4.conf".to_owned()])?;
    }
    let mut check = vec![program.clone(), "-bV".to_owned()];
    if let Some(file) = whole_file(&args.config_dir).filter(|_| !system) {
        check.extend(["-C".to_owned(), file.display().to_string()]);
    }
    change::run(&check)?;
    if args.no_reload {
        return Ok(Vec::new());
    }
    let pid_file = option(&program, "pid_file_path").unwrap_or_else(|| "/run/exim4/exim.pid".to_owned());
    let pid =
        change::read(Path::new(&pid_file)).ok().flatten().and_then(|text| text.trim().parse::<i32>().ok());
    let Some(pid) = pid.filter(|pid| *pid > 1) else { return Ok(Vec::new()) };
    let name = change::read(Path::new(&format!("/proc/{pid}/comm"))).ok().flatten().unwrap_or_default();
    if !name.starts_with("exim") {
        return Ok(Vec::new());
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)?;
    Ok(vec!["Exim".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn into_its_section() {
        let lines = authenticators("/s", true, false);
        assert_eq!(lines.matches(".ifndef").count(), 2);
        assert!(!authenticators("/s", true, true).contains("tls_in_cipher"));
        let made = inserted("begin acl\nx\nbegin authenticators\n\nold:\n  driver = plaintext\n", &lines);
        assert!(
            made.starts_with("begin acl\nx\nbegin authenticators\n\n# Pass")
                && made.ends_with("old:\n  driver = plaintext\n")
        );
        assert!(inserted("a = b", &lines).starts_with("a = b\n\nbegin authenticators\n\n# Pass"));
    }

    #[test]
    fn debians_two_layouts() {
        let folder = tempfile::tempdir().expect("folder");
        let w = folder.path();
        assert!(place(w).is_err());
        let answers = |split: &str| {
            std::fs::write(w.join("update-exim4.conf.conf"), format!("dc_use_split_config='{split}'\n"))
                .expect("written");
        };
        answers("true");
        assert!(matches!(place(w), Ok(Place::Piece(path)) if path.ends_with(PIECE)));
        answers("false");
        assert!(place(w).is_err());
        std::fs::write(w.join("exim4.conf.template"), "").expect("written");
        assert!(matches!(place(w), Ok(Place::Section(path)) if path.ends_with("exim4.conf.template")));
        std::fs::write(w.join("exim4.conf"), "").expect("written");
        assert!(matches!(place(w), Ok(Place::Section(path)) if path.ends_with("exim4.conf")));
    }
}
