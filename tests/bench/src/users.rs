//! The users of a run: passwd-files and the requests that go with them.
//!
//! Trust: nobody sends it bytes.
//! Never: give the sides different users.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use creds::{Generate, NoCrypt, Scheme};

use crate::load::auth::{ScramUser, plain};
use crate::servers::{DOMAIN, output};

/// Users with hashes: enough that no two requests in flight are the same.
const HASHED: usize = 24;
/// Requests are made for at most so many users of a large file, spread over all of it.
const SAMPLE: usize = 20_000;

/// Users of one passwd-file.
pub(crate) struct Users {
    /// The file.
    pub(crate) file: PathBuf,
    /// Name and password of each (of a sample of them).
    pub(crate) names: Vec<(String, String)>,
    /// PLAIN requests with the right password.
    pub(crate) right: Arc<Vec<Vec<u8>>>,
}

impl Users {
    /// `count` users with `{PLAIN}` passwords.
    pub(crate) fn plain(file: &Path, count: usize) -> anyhow::Result<Users> {
        let mut text = String::new();
        let mut names = Vec::new();
        let step = count.div_ceil(SAMPLE).max(1);
        for number in 0..count {
            let (name, password) = (format!("u{number:07}@{DOMAIN}"), format!("pw{number}"));
            let _ = writeln!(text, "{name}:{{PLAIN}}{password}");
            if number % step == 0 {
                names.push((name, password));
            }
        }
        Users::write(file, &text, names)
    }

    /// Users with hashes as Dovecot makes them: `scheme` and options of `doveadm pw`.
    pub(crate) fn hashed(file: &Path, prefix: &str, options: &[&str]) -> anyhow::Result<Users> {
        let mut text = String::new();
        let mut names = Vec::new();
        for number in 0..HASHED {
            let (name, password) =
                (format!("{prefix}{number}@{DOMAIN}"), format!("secret {prefix} {number}"));
            let mut command = Command::new("doveadm");
            // Its own configuration file may need what is not installed.
            command.args(["-O", "pw"]).args(options).args(["-p", &password]);
            let _ = writeln!(text, "{name}:{}", output(&mut command)?);
            names.push((name, password));
        }
        Users::write(file, &text, names)
    }

    /// Users with ARGON2ID hashes of 64 MiB and three passes. Debian's `doveadm pw` makes other sizes.
    pub(crate) fn argon2id(file: &Path) -> anyhow::Result<Users> {
        let how = Generate { argon2_memory: Some(64 * 1024), argon2_passes: Some(3), ..Generate::default() };
        let mut text = String::new();
        let mut names = Vec::new();
        for number in 0..HASHED {
            let (name, password) = (format!("a{number}@{DOMAIN}"), format!("secret {number}"));
            let hash = creds::generate(Scheme::Argon2id, b"", password.as_bytes(), &how, &NoCrypt)?;
            let _ = writeln!(text, "{name}:{}", String::from_utf8_lossy(hash.expose()));
            names.push((name, password));
        }
        Users::write(file, &text, names)
    }

    /// All these users in one file.
    pub(crate) fn together(file: &Path, parts: &[&Users]) -> anyhow::Result<Users> {
        let mut text = String::new();
        for part in parts {
            text += &fs::read_to_string(&part.file)?;
        }
        let names = parts.iter().flat_map(|part| part.names.clone()).collect();
        Users::write(file, &text, names)
    }

    fn write(file: &Path, text: &str, names: Vec<(String, String)>) -> anyhow::Result<Users> {
        fs::write(file, text)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
        let right = Arc::new(names.iter().map(|(name, password)| plain(name, password)).collect());
        Ok(Users { file: file.to_owned(), names, right })
    }

    /// A login that succeeds.
    pub(crate) fn proof(&self) -> &[u8] {
        self.right.last().map_or(&[], Vec::as_slice)
    }

    /// PLAIN requests with a wrong password.
    pub(crate) fn wrong(&self) -> Arc<Vec<Vec<u8>>> {
        Arc::new(self.names.iter().map(|(name, _)| plain(name, "wrong")).collect())
    }

    /// The bare names.
    pub(crate) fn bare(&self) -> Arc<Vec<String>> {
        Arc::new(self.names.iter().map(|(name, _)| name.clone()).collect())
    }

    /// What SCRAM clients keep; the file holds `{SCRAM-SHA-256}iterations,salt,StoredKey,ServerKey`.
    pub(crate) fn scram(&self) -> anyhow::Result<Arc<Vec<ScramUser>>> {
        let text = fs::read_to_string(&self.file)?;
        let mut users = Vec::new();
        for ((name, password), line) in self.names.iter().zip(text.lines()) {
            let (_, stored) = line.split_once('}').context("a scheme")?;
            let mut fields = stored.split(',');
            let iterations = fields.next().context("iterations")?.parse()?;
            let salt = STANDARD.decode(fields.next().context("salt")?)?;
            users.push(ScramUser::new(name, password, &salt, iterations));
        }
        Ok(Arc::new(users))
    }
}
