//! Address lists as ENVELOPE wants them (RFC 9051 §2.3.5, RFC 5322 §3.4 with obsolete forms).
//!
//! Broken addresses still give an entry: a missing half becomes `MISSING_MAILBOX` or
//! `MISSING_DOMAIN`, because NIL there would mean the start or end of a group.
//!
//! Trust: every byte is a stranger's.
//! Never: lose the end of a group: clients count on it.

/// One element of an ENVELOPE address list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `name <mailbox@host>`; the source route is kept as written, e.g. `@a,@b`.
    Mailbox {
        /// Display name, or the comment behind a bare address; encoded-words stay undecoded.
        name: Option<Vec<u8>>,
        /// RFC 5322 §4.4 obsolete route.
        route: Option<Vec<u8>>,
        /// Local part without quotes.
        mailbox: Vec<u8>,
        /// Domain, or `MISSING_DOMAIN`.
        host: Vec<u8>,
    },
    /// `Name:` opens a group.
    GroupStart(Vec<u8>),
    /// `;` closes it.
    GroupEnd,
}

const MISSING_MAILBOX: &[u8] = b"MISSING_MAILBOX";
const MISSING_DOMAIN: &[u8] = b"MISSING_DOMAIN";

/// Parses the value of an address field; `value` may still be folded.
pub fn parse_addresses(value: &[u8]) -> Vec<Address> {
    let mut parser = Parser { rest: value, comment: Vec::new() };
    let mut out = Vec::new();
    let mut in_group = false;
    loop {
        parser.skip_blanks();
        match parser.peek() {
            None => break,
            Some(b',') => parser.bump(),
            Some(b';') => {
                parser.bump();
                if in_group {
                    out.push(Address::GroupEnd);
                    in_group = false;
                }
            }
            Some(_) => parser.entry(&mut out, &mut in_group),
        }
    }
    if in_group {
        out.push(Address::GroupEnd);
    }
    out
}

struct Parser<'a> {
    rest: &'a [u8],
    /// Text of the last comment passed over; a name when there is no other.
    comment: Vec<u8>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn bump(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    /// One mailbox or group start. Always consumes at least one byte.
    fn entry(&mut self, out: &mut Vec<Address>, in_group: &mut bool) {
        self.comment.clear();
        let mut words = Vec::new();
        loop {
            self.phrase(&mut words);
            match self.peek() {
                Some(b'<') => {
                    self.bump();
                    let (route, mailbox, host) = self.angle();
                    let name = self.name_from(&words);
                    return push(out, name, route, mailbox, host);
                }
                Some(b':') if !*in_group => {
                    self.bump();
                    *in_group = true;
                    return out.push(Address::GroupStart(join(&words, b" ")));
                }
                Some(b'@') => {
                    self.bump();
                    let host = self.domain();
                    self.skip_blanks();
                    let name = self.name_from(&[]);
                    return push(out, name, None, join(&words, b""), host);
                }
                None | Some(b',' | b';') => {
                    // A bare word: a local part with its domain missing.
                    let name = self.name_from(&[]);
                    return push(out, name, None, join(&words, b" "), Vec::new());
                }
                // A stray special such as `>`: pass over it and go on with the phrase.
                Some(_) => self.bump(),
            }
        }
    }

    /// Words up to the next special byte.
    fn phrase(&mut self, words: &mut Vec<Vec<u8>>) {
        loop {
            self.skip_blanks();
            match self.peek() {
                Some(b'"') => words.push(self.quoted()),
                Some(b) if !is_special(b) => words.push(self.atom()),
                _ => return,
            }
        }
    }

    /// What stands between `<` and `>`.
    fn angle(&mut self) -> (Option<Vec<u8>>, Vec<u8>, Vec<u8>) {
        self.skip_blanks();
        let mut route = None;
        if self.peek() == Some(b'@') {
            let end = self.rest.iter().position(|&b| matches!(b, b':' | b'>')).unwrap_or(self.rest.len());
            if self.rest.get(end) == Some(&b':') {
                let text = self.rest[..end].iter().copied().filter(|b| !b.is_ascii_whitespace());
                route = Some(text.collect());
                self.rest = &self.rest[end + 1..];
            }
        }
        let mut words = Vec::new();
        self.phrase(&mut words);
        let mut host = Vec::new();
        if self.peek() == Some(b'@') {
            self.bump();
            host = self.domain();
        }
        while let Some(byte) = self.peek() {
            self.bump();
            if byte == b'>' {
                break;
            }
        }
        self.skip_blanks();
        (route, join(&words, b""), host)
    }

    fn domain(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                Some(b'[') => {
                    let end = self.rest.iter().position(|&b| b == b']').map_or(self.rest.len(), |i| i + 1);
                    out.extend(self.rest[..end].iter().copied().filter(|b| !b.is_ascii_whitespace()));
                    self.rest = &self.rest[end..];
                }
                Some(b) if !is_special(b) && b != b'"' => out.extend(self.atom()),
                _ => return out,
            }
        }
    }

    fn atom(&mut self) -> Vec<u8> {
        let end = self
            .rest
            .iter()
            .position(|&b| is_special(b) || b.is_ascii_whitespace() || b == b'"' || b == b'(')
            .unwrap_or(self.rest.len());
        let (atom, rest) = self.rest.split_at(end);
        self.rest = rest;
        atom.to_vec()
    }

    fn quoted(&mut self) -> Vec<u8> {
        self.bump();
        let mut out = Vec::new();
        while let Some(byte) = self.peek() {
            self.bump();
            match byte {
                b'"' => break,
                b'\\' => {
                    if let Some(next) = self.peek() {
                        out.push(next);
                        self.bump();
                    }
                }
                b'\r' | b'\n' => {}
                _ => out.push(byte),
            }
        }
        out
    }

    /// White space and comments; comments nest (RFC 5322 §3.2.2) and are read without recursion.
    fn skip_blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.peek() != Some(b'(') {
                return;
            }
            self.bump();
            let mut text = Vec::new();
            let mut depth = 1usize;
            while let Some(byte) = self.peek() {
                self.bump();
                match byte {
                    b'(' => depth += 1,
                    b')' => depth -= 1,
                    b'\\' => {
                        if let Some(next) = self.peek() {
                            text.push(next);
                            self.bump();
                        }
                        continue;
                    }
                    b'\r' | b'\n' => continue,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                text.push(byte);
            }
            self.comment = text.trim_ascii().to_vec();
        }
    }

    fn name_from(&mut self, words: &[Vec<u8>]) -> Option<Vec<u8>> {
        let name = if words.is_empty() { std::mem::take(&mut self.comment) } else { join(words, b" ") };
        (!name.is_empty()).then_some(name)
    }
}

fn push(
    out: &mut Vec<Address>,
    name: Option<Vec<u8>>,
    route: Option<Vec<u8>>,
    mut mailbox: Vec<u8>,
    mut host: Vec<u8>,
) {
    if name.is_none() && mailbox.is_empty() && host.is_empty() && route.is_none() {
        return;
    }
    if mailbox.is_empty() {
        mailbox = MISSING_MAILBOX.to_vec();
    }
    if host.is_empty() {
        host = MISSING_DOMAIN.to_vec();
    }
    out.push(Address::Mailbox { name, route, mailbox, host });
}

fn join(words: &[Vec<u8>], by: &[u8]) -> Vec<u8> {
    words.join(by)
}

/// Bytes that end a word. `.` is not one: a local part or name may hold it unquoted.
fn is_special(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'@' | b',' | b';' | b':' | b'(' | b')' | b'[' | b']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: &str) -> String {
        let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        parse_addresses(value.as_bytes())
            .iter()
            .map(|a| match a {
                Address::Mailbox { name, route, mailbox, host } => format!(
                    "({}|{}|{}|{})",
                    name.as_deref().map_or("NIL".into(), text),
                    route.as_deref().map_or("NIL".into(), text),
                    text(mailbox),
                    text(host)
                ),
                Address::GroupStart(n) => format!("[{}:", text(n)),
                Address::GroupEnd => "]".into(),
            })
            .collect()
    }

    #[test]
    fn address_table() {
        for (value, want) in [
            ("a@b", "(NIL|NIL|a|b)"),
            ("A B <a@b>", "(A B|NIL|a|b)"),
            ("\"B, A\" <a.c@b.example>, x@y", "(B, A|NIL|a.c|b.example)(NIL|NIL|x|y)"),
            ("a@b (The Name)", "(The Name|NIL|a|b)"),
            ("a (x (y)) @ b", "(x (y)|NIL|a|b)"),
            ("<@r1,@r2:a@b>", "(NIL|@r1,@r2|a|b)"),
            ("G: a@b, c@d;", "[G:(NIL|NIL|a|b)(NIL|NIL|c|d)]"),
            ("undisclosed-recipients:;", "[undisclosed-recipients:]"),
            ("G: a@b", "[G:(NIL|NIL|a|b)]"),
            ("root", "(NIL|NIL|root|MISSING_DOMAIN)"),
            ("Name <>", "(Name|NIL|MISSING_MAILBOX|MISSING_DOMAIN)"),
            ("<@b>", "(NIL|NIL|MISSING_MAILBOX|b)"),
            ("\"a b\"@c", "(NIL|NIL|a b|c)"),
            ("a@[1.2.3.4]", "(NIL|NIL|a|[1.2.3.4])"),
            ("=?utf-8?q?J=C3=B6?= <j@x>", "(=?utf-8?q?J=C3=B6?=|NIL|j|x)"),
            ("A\r\n\tB <a@b>", "(A B|NIL|a|b)"),
            (",, ,", ""),
            ("", ""),
            ("> <a@b", "(NIL|NIL|a|b)"),
            ("(((", ""),
            ("a@[1.2.3.4]x\"y", "(NIL|NIL|a|[1.2.3.4]x)(NIL|NIL|y|MISSING_DOMAIN)"),
            ("J. Doe <j@x>", "(J. Doe|NIL|j|x)"),
        ] {
            assert_eq!(show(value), want, "{value}");
        }
    }

    #[test]
    fn deep_comments_are_linear() {
        let hostile = "(".repeat(1_000_000);
        assert!(parse_addresses(hostile.as_bytes()).is_empty());
    }
}
