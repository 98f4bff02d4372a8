//! Fields of a line: `name` or `name=value`, TAB between them.
//!
//! Trust: names and values are the peer's; text that is no UTF-8 is repaired, or refused where it decides something.
//! Never: print a value.

use std::borrow::Cow;
use std::fmt;

use crate::escape::{escape_into, unescape};

/// The name of a field; ours are static text, received ones owned.
pub type FieldName = Cow<'static, str>;

/// One field of a reply or request.
#[derive(Clone, Eq, PartialEq)]
pub struct Field {
    /// What stands before the first `=`.
    pub name: FieldName,
    /// What stands behind it; `None` for a bare word.
    pub value: Option<String>,
}

impl Field {
    /// `name=value`
    pub fn new(name: impl Into<FieldName>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(value.into()) }
    }

    /// A bare word.
    pub fn flag(name: impl Into<FieldName>) -> Self {
        Self { name: name.into(), value: None }
    }

    pub(crate) fn parse(wire: &[u8]) -> Self {
        let (name, value) = split(wire);
        Self { name: Cow::Owned(text(name)), value: value.map(text) }
    }

    /// Appends TAB and the field.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.push(b'\t');
        escape_into(out, self.name.as_bytes());
        if let Some(value) = &self.value {
            out.push(b'=');
            escape_into(out, value.as_bytes());
        }
    }
}

/// Values may be passwords (`pass=`, SCRAM keys): only the name is printed.
impl fmt::Debug for Field {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", self.name, if self.value.is_some() { "=…" } else { "" })
    }
}

/// The fields of a line, TAB between them.
pub(crate) struct Fields<'a>(Option<&'a [u8]>);

impl<'a> Fields<'a> {
    pub(crate) fn of(line: &'a [u8]) -> Self {
        Self(Some(line))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        match memchr::memchr(b'\t', rest) {
            Some(at) => {
                self.0 = rest.get(at + 1..);
                rest.get(..at)
            }
            None => self.0.take(),
        }
    }
}

/// Splits a wire field at its first `=`.
pub(crate) fn split(wire: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'=', wire) {
        Some(at) => (wire.get(..at).unwrap_or_default(), Some(wire.get(at + 1..).unwrap_or_default())),
        None => (wire, None),
    }
}

/// Unescaped text; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn text(wire: &[u8]) -> String {
    match unescape(wire) {
        Cow::Borrowed(raw) => String::from_utf8_lossy(raw).into_owned(),
        Cow::Owned(raw) => String::from_utf8(raw)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

/// Unescaped text that must be UTF-8: names that decide something are never repaired.
pub(crate) fn strict_text(wire: &[u8]) -> Option<String> {
    String::from_utf8(unescape(wire).into_owned()).ok()
}

/// Appends TAB, `name=` and the escaped value.
pub(crate) fn write_pair(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b'\t');
    out.extend_from_slice(name.as_bytes());
    out.push(b'=');
    escape_into(out, value.as_bytes());
}

/// A decimal u32 without sign, space or surplus characters.
pub(crate) fn number(wire: &[u8]) -> Option<u32> {
    if wire.is_empty() || wire.len() > 10 {
        return None;
    }
    let mut value: u32 = 0;
    for byte in wire {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value = value.checked_mul(10)?.checked_add(u32::from(digit))?;
    }
    Some(value)
}

/// Appends a decimal number.
pub(crate) fn write_number(out: &mut Vec<u8>, value: u32) {
    let mut digits = [0u8; 10];
    let mut rest = value;
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(10 - used..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers() {
        for (wire, value) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("007", Some(7)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("94287000000000", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            (" 1", None),
            ("1x", None),
        ] {
            assert_eq!(number(wire.as_bytes()), value, "{wire}");
        }
    }

    #[test]
    fn fields() {
        for (wire, name, value) in [
            ("a", "a", None),
            ("a=", "a", Some("")),
            ("a=b=c", "a", Some("b=c")),
            ("=x", "", Some("x")),
            ("a=x\u{1}ty", "a", Some("x\ty")),
        ] {
            let field = Field::parse(wire.as_bytes());
            assert_eq!((field.name.as_ref(), field.value.as_deref()), (name, value), "{wire}");
            let mut out = Vec::new();
            field.write(&mut out);
            assert_eq!(out, [b"\t", wire.as_bytes()].concat());
        }
        assert_eq!(format!("{:?}", Field::new("pass", "hunter2")), "pass=…");
        assert_eq!(strict_text(b"a\xff"), None);
        assert_eq!(text(b"a\xff"), "a\u{fffd}");
    }

    proptest! {
        #[test]
        fn number_roundtrip(value: u32) {
            let mut out = Vec::new();
            write_number(&mut out, value);
            prop_assert_eq!(number(&out), Some(value));
            prop_assert_eq!(out, value.to_string().into_bytes());
        }
    }
}
