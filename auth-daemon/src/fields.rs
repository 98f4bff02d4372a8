//! Extra fields of a passdb or userdb answer.
//!
//! Purpose: an ordered list with unique names, and Dovecot's suffixes: `name:default` sets only what is unset,
//!          `name:protected` is its older spelling, `name:remove` deletes.
//! Trust:   names and values come from settings, user databases and workers; values may carry what a client typed.
//! Never:   print a value; one of them may be a password.

use std::fmt;

/// Ordered fields with unique names; a value of `None` is a bare word.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, Option<String>)>);

impl Fields {
    /// Sets a field, honouring a suffix of its name.
    pub(crate) fn apply(&mut self, name: &str, value: Option<&str>) {
        match name.rsplit_once(':') {
            Some((name, "remove")) => self.remove(name),
            Some((name, "default" | "protected")) => self.set_default(name, value),
            _ => self.set(name, value),
        }
    }

    /// Sets a field, replacing an older value in place.
    pub(crate) fn set(&mut self, name: &str, value: Option<&str>) {
        let value = value.map(str::to_owned);
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Sets a field that has no value yet.
    pub(crate) fn set_default(&mut self, name: &str, value: Option<&str>) {
        if !self.has(name) {
            self.0.push((name.to_owned(), value.map(str::to_owned)));
        }
    }

    /// Removes a field.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// Whether the field is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The value of a field that has one.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.as_deref())
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Option<String>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// All fields in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        let mut fields = Fields::default();
        for (name, value) in [
            ("a", Some("1")),
            ("b:default", Some("2")),
            ("a:default", Some("3")),
            ("b", Some("4")),
            ("c:protected", None),
            ("d", Some("5")),
            ("d:remove", None),
        ] {
            fields.apply(name, value);
        }
        let got: Vec<_> = fields.iter().collect();
        assert_eq!(got, [("a", Some("1")), ("b", Some("4")), ("c", None)]);
        assert_eq!(format!("{fields:?}"), r#"["a", "b", "c"]"#);
    }
}
