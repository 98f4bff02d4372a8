//! From text to settings: parse, walk, resolve, check.
//!
//! Trust:     any text; all mistakes are collected before the answer.
//! Never:     give settings to run with while there is a mistake in the text.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::codec;
use crate::errors::{Errors, Problem};
use crate::schema::{Codec, Cx, Section};
use crate::slice::FRONTS;
use crate::{AuthListener, Settings, UserdbDriver, check};
use crate::{PassdbDriver, VERSION};

/// Settings from the text of a file; `origin` names it in messages and is where a relative `state_dir` begins.
///
/// # Errors
/// Every mistake in the text at once.
pub fn load(text: &str, origin: &Path) -> Result<Settings, Errors> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        // After a syntax error keys end up in the wrong tables; walking them would invent mistakes.
        let problems = syntax.into_iter().map(|error| syntax_problem(text, &error)).collect();
        return Err(Errors::new(origin.to_owned(), text, problems));
    }
    let table = document.get_ref();
    let mut cx = Cx { base: folder_of(origin), ..Cx::default() };
    let whole = 0..first_line(text);
    cx.places.insert(String::new(), whole.clone());
    version(&mut cx, table);

    // `state_dir` first: relative paths are below it.
    let mut quiet = Cx { base: cx.base.clone(), ..Cx::default() };
    let state_dir = table
        .get("state_dir")
        .and_then(|value| codec::Path::read(&mut quiet, "state_dir", value))
        .unwrap_or_else(|| Settings::default().state_dir);
    cx.base = state_dir.clone();
    cx.unknown_keys("", table, &[Settings::FIELDS]);
    let mut settings = Settings::read(&mut cx, "", table, whole);
    settings.state_dir = state_dir;
    settings.resolve();
    check::semantics(&mut cx, &settings);

    if cx.problems.is_empty() { Ok(settings) } else { Err(Errors::new(origin.to_owned(), text, cx.problems)) }
}

/// Reads and loads a file.
///
/// # Errors
/// The file cannot be read, or every mistake in it.
pub fn load_file(path: &Path) -> Result<Settings, Errors> {
    let bytes = std::fs::read(path).map_err(|error| {
        let problem = Problem::without_place(
            format!("cannot read {}: {error}", path.display()),
            "check the path and its permissions, or name another file with --config",
        );
        Errors::new(path.to_owned(), "", vec![problem])
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let problem = Problem::at(good..good + 1, "this is not UTF-8", "save the file as UTF-8");
        Errors::new(path.to_owned(), &text, vec![problem])
    })?;
    load(&text, path)
}

fn folder_of(origin: &Path) -> PathBuf {
    let absolute = std::path::absolute(origin).unwrap_or_else(|_| origin.to_owned());
    absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn first_line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or(0..first_line(text));
    let message = error.message().trim();
    let help = if message.contains("duplicate key") {
        "keep one of the two; a table that may stand several times has two brackets: `[[smtp.listener]]`"
    } else {
        "lines are `key = value`, `[table]`, `[[list of tables]]` or `# comment`; texts stand in quotes"
    };
    Problem::at(span, format!("not valid TOML: {message}"), help)
}

fn version(cx: &mut Cx, table: &DeTable<'_>) {
    // A missing or mistyped version is reported by its field.
    if let Some(value) = table.get("version")
        && let DeValue::Integer(number) = value.get_ref()
        && number.as_str() != VERSION.to_string()
    {
        cx.problem(
            value.span(),
            format!("version {number} of the file's format is not known"),
            format!("this program reads `version = {VERSION}`; a newer file needs a newer program"),
        );
    }
}

impl Settings {
    /// What holds without a file beside it: every default, names and paths filled in.
    pub fn defaults() -> Self {
        let mut settings = Self::default();
        settings.resolve();
        settings
    }

    /// Fills in what depends on other keys or on the machine.
    pub(crate) fn resolve(&mut self) {
        if self.hostname.is_empty() {
            self.hostname = machine_name();
        }
        self.hostname.make_ascii_lowercase();
        if self.auth.default_domain.is_none() {
            self.auth.default_domain = Some(self.hostname.clone());
        }
        if self.smtp.local_domains.is_empty() {
            self.smtp.local_domains = vec![self.hostname.clone()];
        }
        let base = self.state_dir.clone();
        below(&base, &mut self.mail.home);
        // `~/…` and `maildir:…` name their place themselves.
        if !self.mail.location.starts_with('~') && !self.mail.location.contains(':') {
            below(&base, &mut self.mail.location);
        }
        let mut names: Vec<String> = Vec::new();
        for passdb in &mut self.auth.passdb {
            if let PassdbDriver::PasswdFile { path, .. } = &mut passdb.driver {
                below(&base, path);
            }
            name(&mut passdb.name, passdb.driver.word(), &mut names);
        }
        names.clear();
        for userdb in &mut self.auth.userdb {
            if let UserdbDriver::PasswdFile { path, .. } = &mut userdb.driver {
                below(&base, path);
            }
            name(&mut userdb.name, userdb.driver.word(), &mut names);
        }
        if self.has_fronts() {
            self.add_front_sockets();
        }
    }

    /// The sockets between the fronts and the authentication daemon, where the file does not place them itself.
    fn add_front_sockets(&mut self) {
        for (name, kind) in FRONTS {
            if self.auth.listener.iter().any(|l| l.name == name) {
                continue;
            }
            self.auth.listener.push(AuthListener {
                name: name.to_owned(),
                path: vec![self.state_dir.join("sockets").join(name)],
                kind,
                minor: 3,
                mode: 0o600,
                ..AuthListener::default()
            });
        }
    }
}

/// Puts a relative path template below the state folder.
fn below(base: &Path, template: &mut String) {
    if !template.is_empty() && !template.starts_with('/') && !template.starts_with('%') {
        *template = format!("{}/{template}", base.display());
    }
}

/// Gives an entry without a name its driver's, made unique.
fn name(name: &mut String, driver: &str, taken: &mut Vec<String>) {
    if name.is_empty() {
        *name = driver.to_owned();
        let mut n = 2;
        while taken.contains(name) {
            *name = format!("{driver}-{n}");
            n += 1;
        }
    }
    taken.push(name.clone());
}

/// The machine's name, or a name that always works for mail to oneself.
pub(crate) fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    full_name(name.trim())
}

/// `name` if it is a full domain name, else one below `localhost` (RFC 6761 §6.3 keeps it on this machine).
fn full_name(name: &str) -> String {
    if check::is_domain(name) && name.contains('.') {
        name.to_ascii_lowercase()
    } else {
        "mail.localhost".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{Settings, full_name};

    #[test]
    fn mail_lies_below_the_state_folder_unless_it_says_where() {
        for (location, expected) in [
            ("mail/%{username}", "/srv/postern/mail/%{username}"),
            ("/mail/%{username}", "/mail/%{username}"),
            ("%{home}/Maildir", "%{home}/Maildir"),
            ("~/Mail", "~/Mail"),
            ("maildir:~/Mail", "maildir:~/Mail"),
        ] {
            let mut settings = Settings { state_dir: "/srv/postern".into(), ..Settings::default() };
            location.clone_into(&mut settings.mail.location);
            settings.resolve();
            assert_eq!(settings.mail.location, expected);
        }
    }

    #[test]
    fn machine_names_that_work_in_certificates() {
        for (name, expected) in [
            ("mx.Example.org", "mx.example.org"),
            ("vm", "mail.localhost"),
            ("", "mail.localhost"),
            ("bad_name.example", "mail.localhost"),
            ("(none)", "mail.localhost"),
        ] {
            assert_eq!(full_name(name), expected, "{name}");
        }
    }
}
