//! `Content-Type`, `Content-Disposition` and their parameters (RFC 2045 §5.1, RFC 2183).
//!
//! Parameters keep their order and raw names: `name*0*` of RFC 2231 is the client's to decode.
//!
//! Trust: every byte is a stranger's.
//! Never: decode RFC 2231 or RFC 2047: that is the client's to do.

use crate::header::unfold;

/// `attribute=value`, the value without quotes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Param {
    /// Attribute as written.
    pub name: Vec<u8>,
    /// Value, unquoted.
    pub value: Vec<u8>,
}

/// A parsed `Content-Type`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContentType {
    /// Top-level type as written, e.g. `text`.
    pub kind: Vec<u8>,
    /// Subtype as written.
    pub subtype: Vec<u8>,
    /// Parameters in order.
    pub params: Vec<Param>,
}

/// A parsed `Content-Disposition`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disposition {
    /// E.g. `attachment`.
    pub kind: Vec<u8>,
    /// Parameters in order.
    pub params: Vec<Param>,
}

impl ContentType {
    /// `text/plain; charset=us-ascii`, what RFC 2045 §5.2 assumes.
    pub fn text_plain() -> Self {
        ContentType {
            kind: b"text".to_vec(),
            subtype: b"plain".to_vec(),
            params: vec![Param { name: b"charset".to_vec(), value: b"us-ascii".to_vec() }],
        }
    }

    pub(crate) fn new(kind: &[u8], subtype: &[u8]) -> Self {
        ContentType { kind: kind.to_vec(), subtype: subtype.to_vec(), params: Vec::new() }
    }

    /// Parses a field value; `None` when there is no type at all.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut lexer = Lexer { rest: value };
        let kind = lexer.token();
        if kind.is_empty() {
            return None;
        }
        let mut subtype = Vec::new();
        if lexer.take(b'/') {
            subtype = lexer.token();
        }
        let mut out = ContentType { kind, subtype, params: lexer.params() };
        if out.is_kind(b"text") {
            if out.subtype.is_empty() {
                out.subtype = b"plain".to_vec();
            }
            if out.param(b"charset").is_none() {
                out.params.push(Param { name: b"charset".to_vec(), value: b"us-ascii".to_vec() });
            }
        }
        Some(out)
    }

    /// Is the top-level type `kind`, in any case?
    pub fn is_kind(&self, kind: &[u8]) -> bool {
        self.kind.eq_ignore_ascii_case(kind)
    }

    /// Is it `kind/subtype`, in any case?
    pub fn is(&self, kind: &[u8], subtype: &[u8]) -> bool {
        self.is_kind(kind) && self.subtype.eq_ignore_ascii_case(subtype)
    }

    /// First parameter of that name.
    pub fn param(&self, name: &[u8]) -> Option<&[u8]> {
        self.params.iter().find(|p| p.name.eq_ignore_ascii_case(name)).map(|p| p.value.as_slice())
    }
}

impl Disposition {
    /// Parses a field value; `None` when it is empty.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut lexer = Lexer { rest: value };
        let kind = lexer.token();
        (!kind.is_empty()).then(|| Disposition { kind, params: lexer.params() })
    }
}

/// `Content-Language: en, de` (RFC 3282).
pub fn content_languages(value: &[u8]) -> Vec<Vec<u8>> {
    let value = unfold(value);
    value.split(|&b| b == b',').map(|l| l.trim_ascii().to_vec()).filter(|l| !l.is_empty()).collect()
}

struct Lexer<'a> {
    rest: &'a [u8],
}

impl Lexer<'_> {
    fn skip_blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.rest.first() != Some(&b'(') {
                return;
            }
            let mut depth = 0usize;
            let mut at = 0;
            while at < self.rest.len() {
                match self.rest[at] {
                    b'(' => depth += 1,
                    b')' => depth -= 1,
                    b'\\' => at += 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    break;
                }
            }
            self.rest = self.rest.get(at..).unwrap_or_default();
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(&[byte]) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> Vec<u8> {
        self.skip_blanks();
        let end = self
            .rest
            .iter()
            .position(|&b| b.is_ascii_whitespace() || b.is_ascii_control() || is_tspecial(b))
            .unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token.to_vec()
    }

    fn quoted(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 1;
        while at < self.rest.len() {
            match self.rest[at] {
                b'"' => {
                    at += 1;
                    break;
                }
                b'\\' if at + 1 < self.rest.len() => {
                    at += 1;
                    out.push(self.rest[at]);
                }
                b'\r' | b'\n' => {}
                byte => out.push(byte),
            }
            at += 1;
        }
        self.rest = self.rest.get(at..).unwrap_or_default();
        out
    }

    fn params(&mut self) -> Vec<Param> {
        let mut out = Vec::new();
        loop {
            self.skip_blanks();
            match self.rest.first() {
                None => return out,
                Some(b';') => {
                    self.rest = &self.rest[1..];
                }
                Some(_) => {
                    let name = self.token();
                    if !name.is_empty() && self.take(b'=') {
                        self.skip_blanks();
                        let value =
                            if self.rest.first() == Some(&b'"') { self.quoted() } else { self.bare_value() };
                        out.push(Param { name, value });
                    }
                    // Whatever is left before the next `;` is no parameter.
                    let skip = self.rest.iter().position(|&b| b == b';').unwrap_or(self.rest.len());
                    self.rest = &self.rest[skip..];
                }
            }
        }
    }

    /// Unquoted values in the wild hold `/`, `=`, `@` and more: only white space and `;` end them.
    fn bare_value(&mut self) -> Vec<u8> {
        let end =
            self.rest.iter().position(|&b| b.is_ascii_whitespace() || b == b';').unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        value.to_vec()
    }
}

fn is_tspecial(byte: u8) -> bool {
    b"()<>@,;:\\\"/[]?=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: &str) -> String {
        ContentType::parse(value.as_bytes()).map_or("none".into(), |c| {
            let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
            let params: String =
                c.params.iter().map(|p| format!(";{}={}", text(&p.name), text(&p.value))).collect();
            format!("{}/{}{params}", text(&c.kind), text(&c.subtype))
        })
    }

    #[test]
    fn content_type_table() {
        for (value, want) in [
            (" text/html; charset=\"utf-8\"", "text/html;charset=utf-8"),
            ("text", "text/plain;charset=us-ascii"),
            ("TEXT/Plain", "TEXT/Plain;charset=us-ascii"),
            ("multipart/mixed;\r\n\tboundary=\"a b\"", "multipart/mixed;boundary=a b"),
            ("multipart/mixed; boundary=a=_b/c", "multipart/mixed;boundary=a=_b/c"),
            ("image/png (a comment); name*=utf-8''x; ; junk; n=1", "image/png;name*=utf-8''x;n=1"),
            ("application/x; n=\"a\\\"b\"", "application/x;n=a\"b"),
            ("", "none"),
            (";charset=x", "none"),
            ("image", "image/"),
        ] {
            assert_eq!(show(value), want, "{value}");
        }
    }

    #[test]
    fn languages() {
        assert_eq!(content_languages(b" en,\r\n de "), [b"en".to_vec(), b"de".to_vec()]);
    }
}
