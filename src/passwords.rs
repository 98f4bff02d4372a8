//! Passwords on their way in: standard input, a file, the terminal, or made up here; and into a stored string.
//!
//! Trust:     whoever types, or whoever wrote the file; longer input than `LONGEST` is refused.
//! Never:     from an argument, onto the screen while typed, or into a message.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use boot::exit::{self, Coded};
use creds::{Encoding, Generate, Scheme, Secret};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

/// Longer input is no password but a mistake.
const LONGEST: u64 = 64 * 1024;

/// A password from standard input; one trailing newline does not count.
pub(crate) fn from_stdin() -> anyhow::Result<Secret> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(Secret::new(one_line(bytes)?))
}

/// A password from a file; one trailing newline does not count.
pub(crate) fn from_file(path: &Path) -> anyhow::Result<Secret> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the password file {}; check the path", path.display()))?;
    Ok(Secret::new(one_line(bytes)?))
}

fn one_line(mut bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    if bytes.len() as u64 > LONGEST {
        return Err(
            Coded::new(exit::USAGE, "the password is longer than 64 KiB; is this the right file?").into()
        );
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(bytes)
}

/// Asks for an existing password on the terminal, without showing what is typed.
pub(crate) fn from_terminal_once() -> anyhow::Result<Secret> {
    needs_terminal()?;
    Ok(Secret::new(ask("Password: ")?))
}

fn needs_terminal() -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    let text = "there is no terminal to ask for the password; use --password-stdin";
    Err(Coded::new(exit::USAGE, text).into())
}

/// Asks twice for a new password on the terminal, without showing what is typed.
pub(crate) fn from_terminal() -> anyhow::Result<Secret> {
    needs_terminal()?;
    let first = ask("New password: ")?;
    let second = ask("Once more: ")?;
    if first != second {
        return Err(Coded::new(exit::FAILURE, "the two passwords differ; try again").into());
    }
    Ok(Secret::new(first))
}

fn ask(prompt: &str) -> anyhow::Result<Vec<u8>> {
    let stdin = std::io::stdin();
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{prompt}");
    let _ = err.flush();
    let shown = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    hidden.local_flags.insert(LocalFlags::ECHONL);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden).context("cannot hide what is typed")?;
    let mut line = Vec::new();
    let read = stdin.lock().take(LONGEST + 1).read_until(b'\n', &mut line);
    let restored = tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown);
    read.context("cannot read the terminal")?;
    restored.context("cannot restore the terminal's settings")?;
    one_line(line)
}

/// A new password: 20 letters and digits that cannot be mistaken for each other, about 98 bits.
pub(crate) fn generated() -> anyhow::Result<Secret> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let out =
        random_bytes::<20>()?.into_iter().filter_map(|byte| LETTERS.get(usize::from(byte % 32))).copied();
    Ok(Secret::new(out.collect()))
}

/// Random bytes of the system.
pub(crate) fn random_bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes)
}

/// A scheme by name, with an optional encoding: `SSHA256`, `ARGON2ID`, `SHA.HEX`.
pub(crate) fn scheme(name: &str) -> anyhow::Result<(Scheme, Encoding)> {
    let name = name.trim_start_matches('{').trim_end_matches('}');
    let (base, suffix) = name.split_once('.').map_or((name, None), |(base, suffix)| (base, Some(suffix)));
    let encoding = match suffix {
        None => Some(Encoding::Own),
        Some(suffix) => Encoding::from_name(suffix.as_bytes()),
    };
    match (Scheme::from_name(base.as_bytes()), encoding) {
        (Some(scheme), Some(encoding)) => Ok((scheme, encoding)),
        (Some(_), None) => {
            let text = format!("there is no encoding {}; use HEX or B64", suffix.unwrap_or_default());
            Err(Coded::new(exit::USAGE, text).into())
        }
        (None, _) => {
            let all: Vec<&str> = Scheme::all().map(Scheme::name).collect();
            let upper = base.to_ascii_uppercase();
            let near = conf::nearest(&upper, all.iter().copied());
            let help = match near {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known are: {}", all.join(", ")),
            };
            Err(Coded::new(exit::USAGE, format!("there is no scheme {base}; {help}")).into())
        }
    }
}

/// The stored string of a password.
pub(crate) fn stored(scheme_name: &str, user: &str, password: &Secret) -> anyhow::Result<Secret> {
    let (scheme, encoding) = scheme(scheme_name)?;
    let how = Generate { encoding, ..Generate::default() };
    Ok(creds::generate(scheme, user.as_bytes(), password.expose(), &how, &crypt)?)
}

/// crypt(3) of the system.
pub(crate) fn crypt(key: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
    system_auth::crypt(key, setting)
}

#[cfg(test)]
mod tests {
    use super::{generated, one_line, scheme};

    #[test]
    fn one_trailing_newline_does_not_count() {
        for (text, expected) in
            [("pw\n", "pw"), ("pw\r\n", "pw"), ("pw\n\n", "pw\n"), ("pw", "pw"), ("", ""), (" p ", " p ")]
        {
            assert_eq!(one_line(text.into()).expect("short"), expected.as_bytes());
        }
        assert!(one_line(vec![b'x'; 70_000]).is_err());
    }

    #[test]
    fn generated_passwords_differ() {
        let (a, b) = (generated().expect("made"), generated().expect("made"));
        assert_eq!(a.expose().len(), 20);
        assert_ne!(a.expose(), b.expose());
    }

    #[test]
    fn schemes_by_name() {
        assert!(scheme("ssha256").is_ok());
        assert!(scheme("{SHA512-CRYPT}").is_ok());
        assert!(scheme("SHA.hex").is_ok());
        let error = scheme("ARGON2DI").expect_err("no such scheme").to_string();
        assert!(error.contains("did you mean ARGON2"), "{error}");
        assert!(scheme("SHA.rot13").is_err());
    }
}
