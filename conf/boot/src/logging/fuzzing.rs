//! What `tests/fuzz` drives of the log: words of strangers in the fields of an event, in every form it is written in.
//!
//! Trust: nobody; the text is the fuzzer's.
//! Never: part of a build without the feature `fuzzing`.

// A surprise is what is looked for.
#![allow(clippy::expect_used)]

use std::time::SystemTime;

use serde_json::Value;
use tracing::Level;

use super::{Fields, Lines, journal};

const NAMES: [&str; 3] = ["user", "reason", "peer"];

/// Values of fields, a NUL between them: each stays in its field, and each event on its line.
pub fn event(text: &str) {
    let values: Vec<&str> = text.splitn(NAMES.len(), '\0').collect();
    let fields = || {
        let message = ("message", Value::from("login refused"));
        Fields(
            std::iter::once(message)
                .chain(NAMES.into_iter().zip(values.iter().map(|value| Value::from(*value))))
                .collect(),
        )
    };
    let line = |json| {
        let lines = Lines { role: "auth".to_owned(), json, colour: false };
        lines.line(SystemTime::UNIX_EPOCH, Level::INFO, "target", fields())
    };
    let human = line(false);
    let (human, rest) = human.split_once('\n').unwrap_or_default();
    assert!(rest.is_empty() && !human.chars().any(char::is_control), "{human:?}");
    let (_, shown) = human.split_once("login refused").unwrap_or_default();
    assert_eq!(names(shown), NAMES.get(..values.len()).unwrap_or_default(), "{human:?}");

    let json = line(true);
    let (json, rest) = json.split_once('\n').unwrap_or_default();
    let object: Value = serde_json::from_str(json).unwrap_or_default();
    assert!(
        rest.is_empty() && NAMES.iter().zip(&values).all(|(name, value)| object[*name] == **value),
        "{json}"
    );

    let entry = journal::entry("auth", Level::INFO, "target", &fields());
    let read = read_entry(&entry);
    for (name, value) in NAMES.iter().zip(&values) {
        let name = format!("POSTERN_{}", name.to_ascii_uppercase());
        let mut found = read.iter().filter(|(known, _)| *known == name.as_bytes());
        let (first, second) = (found.next(), found.next());
        assert!(
            first.is_some_and(|(_, found)| value.as_bytes().starts_with(found)) && second.is_none(),
            "{name}"
        );
    }
    // Five of every event, and no field that a value has made up.
    assert_eq!(read.len(), 5 + values.len());
}

/// Names of ` name=value` as a log reader takes them apart: a value is a word, or stands in quotes.
fn names(mut rest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((name, value)) = rest.strip_prefix(' ').and_then(|field| field.split_once('=')) {
        names.push(name);
        let mut escaped = false;
        let end = match value.strip_prefix('"') {
            None => value.find(' '),
            Some(quoted) => {
                let closes = |c: char| {
                    let literal = escaped;
                    escaped = c == '\\' && !literal;
                    c == '"' && !literal
                };
                quoted.find(closes).map(|at| at + 2)
            }
        };
        rest = end.and_then(|end| value.get(end..)).unwrap_or_default();
    }
    assert!(rest.is_empty(), "left over: {rest:?}");
    names
}

/// Fields of an entry as the journal reads them.
fn read_entry(mut entry: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut fields = Vec::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| *byte == b'\n').expect("the end of a field");
        let (line, rest) = entry.split_at(end);
        let field = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                entry = &rest[1..];
                (&line[..at], &line[at + 1..])
            }
            None => {
                let (length, rest) = rest[1..].split_first_chunk::<8>().expect("a length");
                let length = usize::try_from(u64::from_le_bytes(*length)).expect("a length");
                assert_eq!(rest[length], b'\n');
                entry = &rest[length + 1..];
                (line, &rest[..length])
            }
        };
        fields.push(field);
    }
    fields
}
