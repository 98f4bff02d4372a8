//! `postern setup dovecot-import` and `sasldb-import`: other programs' data as ours, on standard output or in a new file.
//!
//! Trust:     files and `doveconf` output are other programs'; sizes from standard input are limited.
//! Never:     replace an existing file, or print passwords on a terminal unasked.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use boot::ExitCode;
use boot::exit::{self, Coded};
use conf::import::{Facts, Imported};

use super::change;
use crate::{accounts, output};

/// Largest standard input that is taken.
const MOST_INPUT: u64 = 16 << 20;

/// What may be asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DovecotArgs {
    /// What `doveconf -n` printed; `-` is standard input [default: runs `doveconf -nP`].
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Write our file here instead of printing it; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// What may be asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SasldbArgs {
    /// The file.
    #[arg(value_name = "FILE", default_value = "/etc/sasldb2")]
    pub(crate) file: PathBuf,
    /// Write the passwd-file here instead of printing it; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Prints or writes our file; tells what is left on standard error.
pub(super) fn dovecot(args: &DovecotArgs, json: bool) -> anyhow::Result<ExitCode> {
    let text = match &args.file {
        Some(file) => text_of(file)?,
        // With the paths of keys, which it hides otherwise.
        None => {
            let out = change::command("doveconf").arg("-nP").output();
            let out = out.map_err(|error| {
                let text =
                    format!("cannot run doveconf ({error}); name a file with what `doveconf -n` printed");
                Coded::new(exit::FAILURE, text)
            })?;
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
                return Err(Coded::new(exit::FAILURE, format!("doveconf failed: {said}")).into());
            }
            String::from_utf8(out.stdout).context("what doveconf prints is no UTF-8")?
        }
    };
    let group = |name: &str| accounts::gid(name).ok();
    let account = |name: &str| accounts::uid(name).ok();
    let facts = Facts { hostname: conf::Settings::defaults().hostname, uid: &account, gid: &group };
    let imported =
        conf::import::dovecot(&text, &facts).map_err(|error| Coded::new(exit::FAILURE, error.to_string()))?;
    tell(&imported, args.output.as_deref(), json)
}

/// The text of a file or of standard input.
pub(super) fn text_of(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        return whole_text(std::io::stdin());
    }
    change::read_input(file)?
        .ok_or_else(|| Coded::new(exit::FAILURE, format!("there is no {}", file.display())).into())
}

/// All of standard input: a part of it would mean something else.
fn whole_text(input: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    input.take(MOST_INPUT + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > MOST_INPUT {
        let text = format!("standard input is larger than {} MiB", MOST_INPUT >> 20);
        return Err(Coded::new(exit::FAILURE, text).into());
    }
    String::from_utf8(bytes).context("standard input is no text in UTF-8")
}

/// The file, and what did not get into it.
pub(super) fn tell(imported: &Imported, output: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let path = output.unwrap_or(Path::new("/etc/postern/postern.toml"));
    let problems = match conf::load(&imported.toml, path) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems().iter().map(|problem| problem.title.clone()).collect::<Vec<_>>(),
    };
    if let Some(file) = output {
        create(file, imported.toml.as_bytes(), 0o644)?;
    }
    let starts = problems.is_empty() && !imported.blocked();
    if json {
        crate::output::json(&serde_json::json!({
            "toml": imported.toml, "left": imported.left, "remarks": imported.remarks, "problems": problems,
            "starts": starts, "output": output,
        }))?;
        return Ok(exit::OK);
    }
    if output.is_none() {
        crate::output::raw(&imported.toml);
    }
    let mut err = String::new();
    if !imported.left.is_empty() {
        err.push_str("not carried over:\n");
        for left in &imported.left {
            err.push_str(&format!("  {left}\n"));
        }
    }
    for remark in &imported.remarks {
        err.push_str(&format!("note: {remark}\n"));
    }
    if !starts {
        err.push_str("this file does not start as it is:\n");
        let blocking = imported
            .left
            .iter()
            .filter(|left| left.blocking)
            .map(|left| format!("{}: {}", left.setting, left.reason));
        // What blocks is what the problems are about; they count where nothing else explains them.
        let problems = problems.iter().filter(|_| !imported.blocked()).cloned();
        for line in blocking.chain(problems) {
            err.push_str(&format!("  {line}\n"));
        }
    }
    if let Some(file) = output {
        err.push_str(&format!(
            "wrote {}; look at it, then: postern config check --config {0}\n",
            file.display()
        ));
    }
    crate::output::error_text(err);
    Ok(exit::OK)
}

/// The users of a sasldb, with their passwords: for a file that nobody else reads.
pub(super) fn sasldb(args: &SasldbArgs, json: bool) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(&args.file).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => exit::NOPERM,
            _ => exit::FAILURE,
        };
        Coded::new(code, format!("cannot read {}: {error}", args.file.display()))
    })?;
    let made = creds::sasldb::to_passwd_file(&bytes)
        .map_err(|error| Coded::new(exit::FAILURE, format!("{}: {error}", args.file.display())))?;
    let users =
        made.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#")).count();
    match &args.output {
        Some(file) => {
            create(file, &made, 0o600)?;
            if json {
                output::json(&serde_json::json!({ "users": users, "output": file }))?;
            } else {
                output::line(format!(
                    "wrote {users} users into {}; the passwords stand there in clear. Name it as `path` of a [[auth.passdb]] \
                     with driver = \"passwd-file\" and give it to the account of the daemon",
                    file.display()
                ));
            }
        }
        None if json => {
            let text =
                "with --json name a file: --output FILE; passwords belong into one that nobody else reads";
            return Err(Coded::new(exit::USAGE, text).into());
        }
        None => output::raw(&*made),
    }
    Ok(exit::OK)
}

/// Makes a file that was not there.
fn create(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::io::Write as _;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = made.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|error| {
        let text = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("{} exists; choose another --output", path.display())
            }
            _ => format!("cannot write {}: {error}", path.display()),
        };
        Coded::new(exit::CANTCREAT, text).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_taken_whole_or_refused() {
        let spaces = |count| std::io::repeat(b' ').take(count);
        assert_eq!(whole_text(spaces(MOST_INPUT)).unwrap().len() as u64, MOST_INPUT);
        let error = whole_text(spaces(MOST_INPUT + 1)).unwrap_err();
        assert_eq!(error.to_string(), "standard input is larger than 16 MiB");
        assert!(whole_text(&b"a\xff"[..]).is_err());
    }
}
