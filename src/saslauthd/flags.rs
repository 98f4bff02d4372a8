//! The command line of Cyrus `saslauthd` 2.1.28, and the `-f` of its successor.
//!
//! Source:    saslauthd(8); reference note "auth-protocols", D4.
//! Differs:   a mistake ends with code 1, not 0, so that an init script notices.
//! Trust:     the arguments are root's, or those of who starts it for himself.
//! Never:     take a flag that is not understood for one that may be left out.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// Debian's run folder.
pub(super) const RUN_DIR: &str = "/var/run/saslauthd";
/// Where libsasl2 is built to look.
const SASLDB: &str = "/etc/sasldb2";
/// Worker processes unless `-n` says otherwise.
const WORKERS: u32 = 5;
/// `-n 0` is a new process for every request; this many at a time.
const FORKING_WORKERS: u32 = 64;
/// Seconds a cached success is believed (`-t`).
const CACHE_SECONDS: u64 = 28_800;
/// Size of the cache in KiB (`-s`).
const CACHE_KIB: u64 = 1024;

/// What `-v` and the usage say can be asked for.
pub(super) const MECHANISMS: &str = "getpwent pam rimap sasldb shadow";

/// How passwords are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    /// PAM, with the request's service as the name of the file.
    Pam,
    /// Shadow passwords with their expiry dates.
    Shadow,
    /// The hash in the passwd entry.
    Getpwent,
    /// Cyrus SASL's own user file.
    Sasldb {
        /// Where it is.
        path: PathBuf,
    },
    /// By a login at an IMAP server.
    Rimap {
        /// Name or address of the server.
        host: String,
        /// Its port.
        port: u16,
    },
}

impl Mechanism {
    /// Its name as `-a` takes it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Pam => "pam",
            Self::Shadow => "shadow",
            Self::Getpwent => "getpwent",
            Self::Sasldb { .. } => "sasldb",
            Self::Rimap { .. } => "rimap",
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    /// `-a` with its `-O`.
    pub(super) mechanism: Mechanism,
    /// `-m`: where `mux` and `saslauthd.pid` are.
    pub(super) run_dir: PathBuf,
    /// `-n`: processes for look-ups.
    pub(super) workers: u32,
    /// `-n 0`: a new process for every look-up.
    pub(super) process_per_request: bool,
    /// `-c`: bytes and seconds of the cache.
    pub(super) cache: Option<(u64, u64)>,
    /// `-r`: the realm belongs to the name.
    pub(super) join_realm: bool,
    /// `-d` or `-f`: no detaching.
    pub(super) foreground: bool,
    /// `-d`: everything is told on standard error, and no pid file is written.
    pub(super) debug: bool,
    /// `-V`: successes are logged as well.
    pub(super) verbose: bool,
}

/// What follows from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The daemon.
    Run(Flags),
    /// `-v`.
    Version,
    /// `-h`.
    Help,
}

/// A mistake, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake(String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn mistake<T>(text: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake(text.into()))
}

/// Reads the arguments behind the program's name as getopt(3) does.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Wanted, Mistake> {
    let mut seen = Seen::default();
    let mut arguments = arguments.into_iter().map(OsString::into_vec);
    while let Some(argument) = arguments.next() {
        let Some(letters) = argument.strip_prefix(b"-").filter(|letters| !letters.is_empty()) else {
            return mistake(format!("{} stands there without a flag", shown(&argument)));
        };
        match letters {
            b"-" => break,
            // The original has no long options; who types one wants an answer.
            b"-version" => return Ok(Wanted::Version),
            b"-help" => return Ok(Wanted::Help),
            _ => {}
        }
        let mut rest = letters;
        while let Some((letter, behind)) = rest.split_first() {
            rest = behind;
            if b"amnstO".contains(letter) {
                let value = if rest.is_empty() { arguments.next() } else { Some(rest.to_vec()) };
                match value {
                    Some(value) => seen.value(*letter, value)?,
                    None => return mistake(format!("-{} needs a value behind it", char::from(*letter))),
                }
                break;
            }
            match letter {
                b'v' => return Ok(Wanted::Version),
                b'h' => return Ok(Wanted::Help),
                b'c' => seen.cache = true,
                b'r' => seen.join_realm = true,
                b'd' => seen.debug = true,
                b'f' => seen.foreground = true,
                b'V' => seen.verbose = true,
                // There is no accept lock to do without.
                b'l' => {}
                other => return mistake(format!("there is no flag -{}", other.escape_ascii())),
            }
        }
    }
    seen.finish().map(Wanted::Run)
}

#[derive(Default)]
struct Seen {
    mechanism: Option<String>,
    option: Option<String>,
    run_dir: Option<PathBuf>,
    workers: Option<u32>,
    cache: bool,
    cache_kib: Option<u64>,
    cache_seconds: Option<u64>,
    join_realm: bool,
    debug: bool,
    foreground: bool,
    verbose: bool,
}

impl Seen {
    fn value(&mut self, letter: u8, value: Vec<u8>) -> Result<(), Mistake> {
        match letter {
            b'm' => {
                let path = PathBuf::from(OsString::from_vec(value));
                if !path.is_absolute() {
                    return mistake("-m requires an absolute pathname");
                }
                self.run_dir = Some(path);
            }
            b'a' if self.mechanism.is_some() => return mistake("-a may be given only once"),
            b'a' => self.mechanism = Some(text(letter, value)?),
            b'O' => self.option = Some(text(letter, value)?),
            b'n' => self.workers = Some(number(letter, value, 1_000)?.try_into().unwrap_or(1_000)),
            b's' => self.cache_kib = Some(number(letter, value, 1 << 22)?),
            _ => self.cache_seconds = Some(number(letter, value, 1 << 31)?),
        }
        Ok(())
    }

    fn finish(self) -> Result<Flags, Mistake> {
        let Some(name) = &self.mechanism else {
            return mistake(format!(
                "no authentication mechanism specified; choose one with -a: {MECHANISMS}"
            ));
        };
        let mechanism = mechanism(name, self.option.as_deref())?;
        let workers = self.workers.unwrap_or(WORKERS);
        let (kib, seconds) =
            (self.cache_kib.unwrap_or(CACHE_KIB), self.cache_seconds.unwrap_or(CACHE_SECONDS));
        Ok(Flags {
            mechanism,
            run_dir: self.run_dir.unwrap_or_else(|| PathBuf::from(RUN_DIR)),
            workers: if workers == 0 { FORKING_WORKERS } else { workers },
            process_per_request: workers == 0,
            cache: self.cache.then_some((kib * 1024, seconds)),
            join_realm: self.join_realm,
            foreground: self.foreground || self.debug,
            debug: self.debug,
            verbose: self.verbose || self.debug,
        })
    }
}

fn mechanism(name: &str, option: Option<&str>) -> Result<Mechanism, Mistake> {
    match name.to_ascii_lowercase().as_str() {
        "pam" => Ok(Mechanism::Pam),
        "shadow" => Ok(Mechanism::Shadow),
        "getpwent" => Ok(Mechanism::Getpwent),
        "rimap" => rimap(option),
        "sasldb" => sasldb(option),
        "ldap" => mistake("-a ldap is not supported: use -a pam with pam_ldap or pam_sss"),
        "kerberos5" => mistake("-a kerberos5 is not supported: use -a pam with pam_krb5 or pam_sss"),
        "httpform" => mistake("-a httpform is not supported"),
        other => mistake(format!(
            "unknown authentication mechanism: {}; known are {MECHANISMS}",
            other.escape_default()
        )),
    }
}

/// Nothing, or another file than the system's.
fn sasldb(option: Option<&str>) -> Result<Mechanism, Mistake> {
    let path = PathBuf::from(option.filter(|option| !option.is_empty()).unwrap_or(SASLDB));
    if !path.is_absolute() {
        return mistake("-O of -a sasldb is the absolute path of the file");
    }
    Ok(Mechanism::Sasldb { path })
}

/// `host` or `host/port`.
fn rimap(option: Option<&str>) -> Result<Mechanism, Mistake> {
    let Some(option) = option.filter(|option| !option.is_empty()) else {
        return mistake("-a rimap needs the server: -O host or -O host/port");
    };
    let (host, port) = option.split_once('/').unwrap_or((option, "143"));
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return mistake(format!("-O {}: the port must be a number", option.escape_default()));
    };
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b)) {
        return mistake(format!("-O {}: that is no host name", option.escape_default()));
    }
    Ok(Mechanism::Rimap { host: host.to_owned(), port })
}

fn text(letter: u8, value: Vec<u8>) -> Result<String, Mistake> {
    match String::from_utf8(value) {
        Ok(text) => Ok(text),
        Err(bad) => mistake(format!("-{} {}: not text", char::from(letter), shown(bad.as_bytes()))),
    }
}

fn number(letter: u8, value: Vec<u8>, most: u64) -> Result<u64, Mistake> {
    let text = text(letter, value)?;
    match text.parse::<u64>() {
        Ok(number) if number <= most => Ok(number),
        _ => mistake(format!(
            "-{} {}: a number from 0 to {most} is needed",
            char::from(letter),
            text.escape_default()
        )),
    }
}

fn shown(bytes: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(bytes).as_bytes().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Wanted, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|mistake| mistake.to_string())
    }

    fn run(line: &str) -> Flags {
        match parsed(line) {
            Ok(Wanted::Run(flags)) => flags,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults_and_debians_line() {
        let plain = run("-a pam");
        assert_eq!(
            plain,
            Flags {
                mechanism: Mechanism::Pam,
                run_dir: PathBuf::from(RUN_DIR),
                workers: 5,
                process_per_request: false,
                cache: None,
                join_realm: false,
                foreground: false,
                debug: false,
                verbose: false,
            }
        );
        // The init script's: -a MECHANISMS OPTIONS -n THREADS
        let debian = run("-a pam -c -m /var/run/saslauthd -n 5");
        assert_eq!(debian, Flags { cache: Some((1 << 20, 28_800)), ..plain });
    }

    #[test]
    fn flags_together_and_apart() {
        let flags = run("-lcrm/run/x -aSHADOW -s 64 -t60 -n 0 -V");
        assert_eq!(flags.mechanism, Mechanism::Shadow);
        assert_eq!(flags.run_dir, PathBuf::from("/run/x"));
        assert_eq!(flags.cache, Some((65_536, 60)));
        assert!(flags.join_realm && flags.verbose && flags.process_per_request && !flags.foreground);
        assert_eq!(flags.workers, FORKING_WORKERS);
        assert!(run("-a getpwent -d").foreground && run("-a getpwent -f").foreground);
        assert!(run("-a getpwent -d").verbose && !run("-a getpwent -f").debug);
        assert_eq!(
            run("-a rimap -O mail.example.org/1143").mechanism,
            Mechanism::Rimap { host: "mail.example.org".into(), port: 1143 }
        );
        assert_eq!(run("-O ::1 -a rimap").mechanism, Mechanism::Rimap { host: "::1".into(), port: 143 });
        assert_eq!(run("-a SASLDB").mechanism, Mechanism::Sasldb { path: "/etc/sasldb2".into() });
        assert_eq!(run("-a sasldb -O /srv/x").mechanism, Mechanism::Sasldb { path: "/srv/x".into() });
        // Sizes without -c mean nothing.
        assert_eq!(run("-a pam -s 64").cache, None);
    }

    #[test]
    fn answers_that_start_nothing() {
        assert_eq!(parsed("-v"), Ok(Wanted::Version));
        assert_eq!(parsed("-a pam -cvr"), Ok(Wanted::Version));
        assert_eq!(parsed("-h"), Ok(Wanted::Help));
        assert_eq!(parsed("--version"), Ok(Wanted::Version));
        assert_eq!(parsed("--help"), Ok(Wanted::Help));
    }

    #[test]
    fn mistakes_are_told_in_one_sentence() {
        for (line, part) in [
            ("", "no authentication mechanism specified"),
            ("-c", "no authentication mechanism specified"),
            ("-a", "-a needs a value"),
            ("-a pam -a shadow", "only once"),
            ("-a pam -m run/x", "absolute"),
            ("-a pam -n many", "-n many"),
            ("-a pam -n -1", "-n -1"),
            ("-a pam -t 99999999999999999999", "-t 9"),
            ("-a pam -Z", "no flag -Z"),
            ("-a pam extra", "extra stands there"),
            ("-a ldap", "ldap is not supported"),
            ("-a Kerberos5", "kerberos5 is not supported"),
            ("-a httpform", "httpform is not supported"),
            ("-a sasldb -O users.db", "absolute"),
            ("-a nope", "unknown authentication mechanism: nope"),
            ("-a rimap", "-O host"),
            ("-a rimap -O h/x", "port"),
            ("-a rimap -O h/0", "port"),
            ("-a rimap -O [h]", "host name"),
        ] {
            let text = parsed(line).expect_err(line);
            assert!(text.contains(part) && !text.contains('\n'), "{line}: {text}");
        }
    }
}
