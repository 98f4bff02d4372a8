//! `postern hash`: stored strings of passwords, made and checked.
//!
//! Trust:     files may hold anything; a stored string that would cost too much is refused.
//! Never:     a password among the arguments, or an empty one made into a stored string.
//!
//! Exit codes of `verify`: 0 the password matches, 1 it does not, 2 the stored string is malformed or refused.

use std::path::Path;

use boot::ExitCode;
use boot::exit::{self, Coded};
use creds::{Policy, Scheme, Scratch, Stored, Verdict, Verifier};

use crate::cli::{HashArgs, HashCommand};
use crate::{output, passwords};

/// A stored string longer than this is none.
const LONGEST: usize = 64 * 1024;

/// Makes or checks.
pub(crate) fn hash(args: &HashArgs, json: bool) -> anyhow::Result<ExitCode> {
    match (&args.command, &args.scheme) {
        (Some(HashCommand::Verify { user, stored_file }), _) => {
            verify(user.as_deref().unwrap_or_default(), stored_file, json)
        }
        (Some(HashCommand::VerifyTable { file }), _) => verify_table(file, json),
        (None, Some(scheme)) => generate(scheme, args.user.as_deref().unwrap_or_default(), json),
        (None, None) => Err(Coded::new(exit::USAGE, "name a scheme: postern hash --scheme ARGON2ID").into()),
    }
}

fn generate(scheme: &str, user: &str, json: bool) -> anyhow::Result<ExitCode> {
    passwords::scheme(scheme)?;
    let password = passwords::from_stdin()?;
    if password.expose().is_empty() {
        // doveadm pw makes a stored string of it; nobody who types that wants it.
        let text = "the password is empty; give one on standard input";
        return Err(Coded::new(exit::USAGE, text).into());
    }
    let stored = passwords::stored(scheme, user, &password)?;
    let text = String::from_utf8_lossy(stored.expose());
    if json {
        output::json(&serde_json::json!({ "stored": text }))?;
    } else {
        output::line(text);
    }
    Ok(exit::OK)
}

/// Weak schemes are checked here too: whoever asks has the string already.
fn verifier() -> Verifier {
    Verifier::new(Policy { allow_weak: true, ..Policy::default() }, passwords::crypt)
}

fn verify(user: &str, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let mut text = std::fs::read(file).map_err(|error| unreadable(file, &error))?;
    if text.len() > LONGEST {
        return Err(Coded::new(
            exit::USAGE,
            format!("{} is no stored string: it is too long", file.display()),
        )
        .into());
    }
    while text.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        text.pop();
    }
    let password = passwords::from_stdin()?;
    // As in column two of a passwd-file, whose old forms (`[34]` at the end) no crypt(3) text can be.
    let answer = Stored::parse_column(&text, Scheme::Crypt).and_then(|stored| {
        let verdict =
            verifier().verify(&stored, user.as_bytes(), password.expose(), &mut Scratch::default())?;
        Ok((stored.scheme(), verdict))
    });
    let (result, code, remark) = match &answer {
        Ok((scheme, verdict)) => {
            let remark =
                scheme.is_weak().then(|| format!("{scheme} is weak; make a new one with a better scheme"));
            match verdict {
                Verdict::Match => ("match", exit::OK, remark),
                Verdict::Mismatch => ("no match", exit::FAILURE, remark),
                Verdict::Locked => ("locked", exit::FAILURE, remark),
            }
        }
        Err(error) => ("refused", exit::USAGE, Some(error.to_string())),
    };
    if json {
        let scheme = answer.as_ref().ok().map(|(scheme, _)| scheme.to_string());
        output::json(&serde_json::json!({
            "result": result, "scheme": scheme, "remark": remark, "exit_code": code.0,
        }))?;
    } else {
        output::line(result);
        if let Some(remark) = remark {
            output::note(if code == exit::USAGE { remark } else { format!("warning: {remark}") });
        }
    }
    Ok(code)
}

/// Exit code 1 would mean that a password does not match.
fn unreadable(file: &Path, error: &std::io::Error) -> anyhow::Error {
    Coded::new(exit::USAGE, format!("cannot read {}: {error}; nothing was checked", file.display())).into()
}

/// A row whose answer is not the one it states.
#[derive(Debug, serde::Serialize)]
struct Wrong {
    line: usize,
    expected: String,
    answer: String,
    note: String,
}

fn verify_table(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    let (rows, wrong) = check_table(&text)?;
    if json {
        output::json(&serde_json::json!({ "rows": rows, "wrong": wrong }))?;
    } else {
        for row in &wrong {
            output::line(format!(
                "line {}: expected {}, found {} ({})",
                row.line, row.expected, row.answer, row.note
            ));
        }
        output::line(format!("{} of {rows} rows as stated", rows - wrong.len()));
    }
    Ok(if wrong.is_empty() { exit::OK } else { exit::FAILURE })
}

/// Number of rows, and those that are not as stated.
fn check_table(text: &str) -> anyhow::Result<(usize, Vec<Wrong>)> {
    let verifier = verifier();
    let mut scratch = Scratch::default();
    let (mut rows, mut wrong) = (0, Vec::new());
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') && i == 0 {
            continue;
        }
        let columns: Vec<&str> = line.split('\t').collect();
        let [password, stored, expected, rest @ ..] = columns.as_slice() else {
            let text = format!("line {} has no three columns: password, stored string, yes or no", i + 1);
            return Err(Coded::new(exit::USAGE, text).into());
        };
        let expected_match = match *expected {
            "yes" => true,
            "no" => false,
            other => {
                let text = format!("line {}: the third column is {other:?}, not yes or no", i + 1);
                return Err(Coded::new(exit::USAGE, text).into());
            }
        };
        rows += 1;
        let source = rest.first().copied().unwrap_or_default();
        let note = rest.get(1).copied().unwrap_or_default();
        let user =
            note.split([' ', ',', ';']).find_map(|word| word.strip_prefix("user=")).unwrap_or_default();
        let password = password.replace("\\t", "\t");
        let parsed = match source {
            // Column two of a passwd-file has further old forms.
            "passwd-file" => Stored::parse_column(stored.as_bytes(), Scheme::Crypt),
            _ => Stored::parse(stored.as_bytes(), Scheme::Crypt),
        };
        let answer =
            parsed.and_then(|s| verifier.verify(&s, user.as_bytes(), password.as_bytes(), &mut scratch));
        if matches!(answer, Ok(Verdict::Match)) != expected_match {
            let answer = match answer {
                Ok(Verdict::Match) => "match".to_owned(),
                Ok(Verdict::Mismatch) => "no match".to_owned(),
                Ok(Verdict::Locked) => "locked".to_owned(),
                Err(error) => error.to_string(),
            };
            wrong.push(Wrong {
                line: i + 1,
                expected: (*expected).to_owned(),
                answer,
                note: note.to_owned(),
            });
        }
    }
    Ok((rows, wrong))
}

#[cfg(test)]
mod tests {
    use super::check_table;

    #[test]
    fn tables_are_judged_row_by_row() {
        let table = "#password\tstored\tshould-verify\tsource\tnote\n\
                     summersun\t{PLAIN}summersun\tyes\tdovecot\t\n\
                     wrong\t{PLAIN}summersun\tno\tdovecot\twrong password\n\
                     summersun\t14cbfb845af1f030e372b1cb9275e6dd[34]\tyes\tpasswd-file\t\n\
                     summersun\t{DIGEST-MD5}16da8a4e7aab9fa2ea697dad7d840013\tyes\tdovecot\tuser=user@example.org\n\
                     summersun\t{NOSUCH}x\tno\tdovecot\tmalformed\n\
                     summersun\t{PLAIN}other\tyes\tdovecot\ta lie\n";
        let (rows, wrong) = check_table(table).expect("a table");
        assert_eq!(rows, 6);
        assert_eq!(wrong.len(), 1, "{wrong:#?}");
        assert_eq!((wrong[0].line, wrong[0].note.as_str()), (7, "a lie"));
        assert!(check_table("a\tb\n").is_err());
        assert!(check_table("a\tb\tmaybe\n").is_err());
    }
}
