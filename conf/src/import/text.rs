//! The lines of the file that is made.
//!
//! Trust: keys and table names are ours, but for those of fields; values come from another program's configuration.
//! Never: let a value end its line or its quotes, or a comment become a setting.

use std::fmt::Write as _;

use crate::codec::quote;

/// A TOML text in the making.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// A comment; an empty one is an empty line.
    pub(super) fn comment(&mut self, text: &str) {
        if text.is_empty() {
            self.0.push('\n');
        }
        for line in text.lines() {
            // A control character would end or spoil the comment.
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(self.0, "# {}", line.trim_end());
        }
    }

    /// `[name]` or `[[name]]`, with the brackets.
    pub(super) fn table(&mut self, header: &str) {
        let _ = writeln!(self.0, "\n{header}");
    }

    /// A key with a text.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.0, "{key} = {}", quote(value));
    }

    /// A key with a text, if there is one.
    pub(super) fn maybe(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// A key with a number, `true` or `false`.
    pub(super) fn bare(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    /// A key with a list of texts; one alone stands without brackets if `single`.
    pub(super) fn list(&mut self, key: &str, values: &[String], single: bool) {
        match values {
            [only] if single => self.text(key, only),
            _ => {
                let quoted: Vec<String> = values.iter().map(|value| quote(value)).collect();
                let _ = writeln!(self.0, "{key} = [{}]", quoted.join(", "));
            }
        }
    }

    /// A key with a table on one line, unless it is empty.
    pub(super) fn fields(&mut self, key: &str, fields: &[(String, String)]) {
        if fields.is_empty() {
            return;
        }
        let bare = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        let all: Vec<String> = fields
            .iter()
            .map(|(name, value)| {
                let name = if bare(name) { name.clone() } else { quote(name) };
                format!("{name} = {}", quote(value))
            })
            .collect();
        let _ = writeln!(self.0, "{key} = {{ {} }}", all.join(", "));
    }

    /// The lines of another text.
    pub(super) fn append(&mut self, other: &Text) {
        self.0.push_str(&other.0);
    }

    /// The lines of another text, where one table may have been given a key twice: the last one counts.
    pub(super) fn append_last(&mut self, other: &Text) {
        let mut seen = std::collections::BTreeSet::new();
        let key = |line: &&str| line.split(" = ").next().is_some_and(|key| seen.insert(key.to_owned()));
        let mut lines: Vec<&str> = other.0.lines().rev().filter(key).collect();
        lines.reverse();
        for line in lines {
            self.0.push_str(line);
            self.0.push('\n');
        }
    }

    /// The text so far.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}
