//! What is printed: answers on standard output, mistakes on standard error, both as data with `--json`.
//!
//! Trust: texts are printed as they are; who has them from a stranger makes them harmless first.
//! Never: mix remarks into an answer: standard output is for programs to read.

#![allow(clippy::print_stdout, clippy::print_stderr)] // The one place that prints.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

/// Prints a line of an answer. A reader that went away (`| head`) is no mistake of ours.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.as_ref());
    let _ = out.flush();
}

/// Prints text as it is.
pub(crate) fn raw(text: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_ref());
    let _ = out.flush();
}

/// Prints data for programs.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints data for programs on one line: one event among several.
pub(crate) fn json_line(value: &serde_json::Value) {
    line(value.to_string());
}

/// Prints a remark that does not belong to the answer.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "postern: {}", text.as_ref());
}

/// Prints text as it is on standard error.
pub(crate) fn error_text(text: impl AsRef<str>) {
    let _ = std::io::stderr().lock().write_all(text.as_ref().as_bytes());
}

/// Prints why a command failed, and answers its exit code.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> boot::ExitCode {
    if let Some(errors) = error.downcast_ref::<conf::Errors>() {
        configuration(errors, json);
        return boot::exit::CONFIG;
    }
    let code = boot::exit::code_of(error, boot::exit::FAILURE);
    let text = sentence(error);
    // Rights, folders, sockets: the reason is often somewhere else than where it hurts.
    let on_the_way = [boot::exit::UNAVAILABLE, boot::exit::CANTCREAT, boot::exit::NOPERM].contains(&code);
    let next = (on_the_way && !text.contains(DOCTOR)).then_some(DOCTOR);
    if json {
        let value = serde_json::json!({ "error": text, "exit_code": code.0, "next": next });
        let _ = writeln!(std::io::stdout().lock(), "{value:#}");
    } else {
        note(next.map_or_else(|| text.clone(), |next| format!("{text}; {next}")));
    }
    code
}

/// The next step where rights or sockets stand in the way.
pub(crate) const DOCTOR: &str = "run `postern doctor`";

/// An error and its causes, without those whose text an outer one has taken in already.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Prints all mistakes of a configuration.
pub(crate) fn configuration(errors: &conf::Errors, json: bool) {
    if json {
        let value = serde_json::json!({
            "ok": false,
            "file": errors.origin(),
            "problems": errors.problems(),
            "exit_code": boot::exit::CONFIG.0,
        });
        let _ = writeln!(std::io::stdout().lock(), "{value:#}");
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let _ = writeln!(std::io::stderr().lock(), "{}", errors.render(colour));
        if errors.problems().iter().any(|problem| problem.title.contains("Permission denied")) {
            note(DOCTOR);
        }
    }
}

/// A table with aligned columns.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head = header.iter().map(|cell| (*cell).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{sentence, table};

    #[test]
    fn causes_are_told_once() {
        let error = anyhow::anyhow!("no such file")
            .context("cannot read x: no such file; check it")
            .context("reading");
        assert_eq!(sentence(&error), "reading: cannot read x: no such file; check it");
    }

    #[test]
    fn columns_are_aligned() {
        let rows =
            vec![vec!["auth".to_owned(), "1".to_owned()], vec!["imap-pop3".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["ROLE", "PID"], &rows), "ROLE       PID\nauth       1\nimap-pop3  22\n");
    }
}
