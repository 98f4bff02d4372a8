//! Replies: three digits, an enhanced status code where one belongs, printable text.
//!
//! Standard:  RFC 5321 §4.2, RFC 2034 §4, RFC 3463.
//! Trust:     text may carry what a client or a backend said, so everything but printable ASCII becomes `?`
//!            and lines are cut: a reply can neither hold a line break of its own nor exceed 512 bytes a line.

use std::borrow::Cow;

/// Longest reply line with code and CRLF (RFC 5321 §4.5.3.1.5).
const MAX_LINE: usize = 512;

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status(pub u8, pub u8, pub u8);

/// One complete reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    code: u16,
    status: Option<Status>,
    text: Cow<'static, str>,
    more: Vec<Cow<'static, str>>,
}

impl Reply {
    /// A reply with an enhanced code: every 2xx, 4xx and 5xx but the greeting and the answer to EHLO (RFC 2034 §4).
    pub const fn new(code: u16, status: Status, text: &'static str) -> Self {
        Self { code, status: Some(status), text: Cow::Borrowed(text), more: Vec::new() }
    }

    /// The same with a text made at run time.
    pub fn with_text(code: u16, status: Status, text: String) -> Self {
        Self { code, status: Some(status), text: Cow::Owned(text), more: Vec::new() }
    }

    /// A reply without an enhanced code: greeting, answer to EHLO or HELO, 334, 354.
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, status: None, text: text.into(), more: Vec::new() }
    }

    /// Adds one more line.
    #[must_use]
    pub fn line(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.more.push(text.into());
        self
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced code.
    pub fn status(&self) -> Option<Status> {
        self.status
    }

    /// The first line's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// 2xx or 3xx.
    pub fn is_positive(&self) -> bool {
        matches!(self.code, 200..=399)
    }

    /// Appends the wire form.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let last = self.more.len();
        for (index, text) in std::iter::once(&self.text).chain(&self.more).enumerate() {
            let start = out.len();
            let code = self.code.clamp(200, 599);
            out.extend_from_slice(code.to_string().as_bytes());
            out.push(if index == last { b' ' } else { b'-' });
            if let Some(Status(class, subject, detail)) = self.status {
                out.extend_from_slice(format!("{class}.{subject}.{detail} ").as_bytes());
            }
            for character in text.chars() {
                if out.len() - start >= MAX_LINE - 2 {
                    break;
                }
                let printable = matches!(character, ' '..='~');
                out.push(if printable { u8::try_from(character).unwrap_or(b'?') } else { b'?' });
            }
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The wire form on its own.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.write_to(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_forms() {
        let table: [(Reply, &str); 4] = [
            (Reply::new(250, Status(2, 0, 0), "Ok"), "250 2.0.0 Ok\r\n"),
            (Reply::plain(354, "Go on"), "354 Go on\r\n"),
            (
                Reply::plain(250, "host").line("PIPELINING").line("SIZE 5"),
                "250-host\r\n250-PIPELINING\r\n250 SIZE 5\r\n",
            ),
            (Reply::new(214, Status(2, 0, 0), "a").line("b"), "214-2.0.0 a\r\n214 2.0.0 b\r\n"),
        ];
        for (reply, wire) in table {
            assert_eq!(String::from_utf8(reply.to_bytes()).unwrap(), wire);
        }
    }

    #[test]
    fn text_cannot_break_the_line_or_grow() {
        let hostile = format!("a\r\n250 ok\u{0}\u{7f}é{}", "x".repeat(5000));
        let wire = Reply::with_text(550, Status(5, 1, 1), hostile).to_bytes();
        assert_eq!(wire.len(), MAX_LINE);
        assert!(wire.starts_with(b"550 5.1.1 a??250 ok???x"));
        assert_eq!(wire.iter().filter(|b| **b == b'\n').count(), 1);
    }
}
