//! Debian's `/etc/default/NAME`: shell assignments.
//!
//! Trust:     the file is a shell script for init; only plain assignments are understood, anything else is told.
//! Never:     run it, or expand a variable.

/// Longer files are no defaults.
const MOST_BYTES: usize = 256 << 10;

/// The assignments of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Name, value, line from 1; the last one of a name counts.
    pub values: Vec<(String, String, usize)>,
    /// Lines that are no plain assignment.
    pub strange: Vec<usize>,
}

impl Defaults {
    /// The value that counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, ..)| known == name).map(|(_, value, _)| value.as_str())
    }
}

/// Reads a file.
pub fn defaults(text: &str) -> Defaults {
    let mut out = Defaults::default();
    if text.len() > MOST_BYTES {
        out.strange.push(1);
        return out;
    }
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        match assignment(line) {
            Some((name, value)) => out.values.push((name, value, number + 1)),
            None => out.strange.push(number + 1),
        }
    }
    out
}

fn assignment(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.split_once('=')?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    let (value, behind) = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest.get(1..)?.split_once(quote)?,
        _ => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
    };
    let behind = behind.trim_start();
    // Variables, commands and the like are for a shell.
    if value.contains(['$', '`', '\\', ';', '&', '|']) || !(behind.is_empty() || behind.starts_with('#')) {
        return None;
    }
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::defaults;

    #[test]
    fn plain_assignments_only() {
        let text = "# comment\nSTART=yes\nMECHANISMS=\"pam\"  # behind\nOPTIONS='-c -m /run/x'\nX=$(id)\nif true; then\nSTART=no\nEMPTY=\"\"\n";
        let made = defaults(text);
        assert_eq!((made.get("START"), made.get("MECHANISMS")), (Some("no"), Some("pam")));
        assert_eq!((made.get("OPTIONS"), made.get("EMPTY")), (Some("-c -m /run/x"), Some("")));
        assert_eq!(made.strange, [5, 6]);
    }
}
