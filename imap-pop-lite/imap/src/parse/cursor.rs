//! A reader over one command: the terminals of RFC 3501 §9.
//!
//! Trust: every byte is a client's.
//! Never: allocate by a number that the client wrote: a literal is a slice of what has come.

use std::borrow::Cow;

use super::{Problem, Syntax};
use crate::command::Tag;
use crate::date::{Date, DateTime};
use crate::name::{ListPattern, MailboxName};
use crate::seq::SeqSet;

pub(crate) type Res<T> = Result<T, Syntax>;

/// `ATOM-CHAR`: no control, no space, none of `(){%*"\]`.
pub(crate) fn is_atom_char(b: u8) -> bool {
    matches!(b, 0x21..=0x7e) && !matches!(b, b'(' | b')' | b'{' | b'%' | b'*' | b'"' | b'\\' | b']')
}

/// `ASTRING-CHAR`: an atom character or `]`.
pub(crate) fn is_astring_char(b: u8) -> bool {
    is_atom_char(b) || b == b']'
}

fn is_list_char(b: u8) -> bool {
    is_astring_char(b) || matches!(b, b'%' | b'*')
}

/// The reader. Bad mailbox names are remembered and reported only when the rest of the command is
/// well formed: syntax errors are BAD, names that cannot be are NO.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    raw: &'a [u8],
    at: usize,
    deferred: Option<Syntax>,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(raw: &'a [u8]) -> Self {
        Self { raw, at: 0, deferred: None }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn error_at(&self, at: usize, problem: Problem) -> Syntax {
        Syntax { at, problem }
    }

    pub(crate) fn expected(&self, what: &'static str) -> Syntax {
        self.error_at(self.at, Problem::Expected(what))
    }

    pub(crate) fn deferred(&mut self) -> Res<()> {
        self.deferred.take().map_or(Ok(()), Err)
    }

    fn tail(&self) -> &'a [u8] {
        self.raw.get(self.at..).unwrap_or_default()
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.raw.get(self.at).copied()
    }

    pub(crate) fn eat(&mut self, b: u8) -> bool {
        let hit = self.peek() == Some(b);
        self.at += usize::from(hit);
        hit
    }

    pub(crate) fn expect(&mut self, b: u8, what: &'static str) -> Res<()> {
        if self.eat(b) { Ok(()) } else { Err(self.expected(what)) }
    }

    pub(crate) fn sp(&mut self) -> Res<()> {
        self.expect(b' ', "a space")
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.tail();
        self.at = self.raw.len();
        rest
    }

    /// The end of the command. Clients that leave a space there are forgiven.
    pub(crate) fn end(&mut self) -> Res<()> {
        while self.eat(b' ') {}
        if self.at == self.raw.len() { Ok(()) } else { Err(self.error_at(self.at, Problem::Trailing)) }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let tail = self.tail();
        let len = tail.iter().position(|b| !accept(*b)).unwrap_or(tail.len());
        self.at += len;
        tail.get(..len).unwrap_or_default()
    }

    pub(crate) fn tag(&mut self) -> Res<Tag> {
        let start = self.at;
        let raw = self.take_while(|b| is_astring_char(b) && b != b'+');
        let ends = self.peek().is_none_or(|b| b == b' ');
        Tag::new(raw).filter(|_| ends).ok_or_else(|| self.error_at(start, Problem::Expected("a tag")))
    }

    /// A command or keyword, in upper case: letters, digits, `.`, `-`.
    pub(crate) fn word(&mut self) -> Res<String> {
        let raw = self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        if raw.is_empty() {
            return Err(self.expected("a word"));
        }
        Ok(raw.iter().map(|b| char::from(b.to_ascii_uppercase())).collect())
    }

    pub(crate) fn atom(&mut self) -> Res<&'a [u8]> {
        let raw = self.take_while(is_atom_char);
        if raw.is_empty() { Err(self.expected("an atom")) } else { Ok(raw) }
    }

    pub(crate) fn atom_text(&mut self) -> Res<String> {
        Ok(self.atom()?.iter().map(|b| char::from(*b)).collect())
    }

    pub(crate) fn number(&mut self) -> Res<u64> {
        let start = self.at;
        let raw = self.take_while(|b| b.is_ascii_digit());
        std::str::from_utf8(raw)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
            // number64 of RFC 9051 is 63 bits wide.
            .filter(|n| i64::try_from(*n).is_ok())
            .ok_or_else(|| self.error_at(start, Problem::Expected("a number")))
    }

    pub(crate) fn number32(&mut self) -> Res<u32> {
        let start = self.at;
        u32::try_from(self.number()?).map_err(|_| self.error_at(start, Problem::Expected("a 32-bit number")))
    }

    /// `{n}` or `{n+}`; returns the size and whether the client does not wait.
    pub(crate) fn literal_marker(&mut self) -> Res<(u64, bool)> {
        self.expect(b'{', "a literal")?;
        let size = self.number()?;
        let non_sync = self.eat(b'+');
        self.expect(b'}', "a literal")?;
        Ok((size, non_sync))
    }

    /// Is what stands here a literal header at the very end, its octets still to come?
    pub(crate) fn pending_literal(&self) -> bool {
        let mut c = self.clone();
        c.literal_marker().is_ok() && c.at == c.raw.len()
    }

    fn literal(&mut self) -> Res<&'a [u8]> {
        let (size, _) = self.literal_marker()?;
        let _ = self.eat(b'\r');
        self.expect(b'\n', "the literal's line end")?;
        let start = self.at;
        let octets = usize::try_from(size)
            .ok()
            .and_then(|n| self.tail().get(..n))
            .ok_or_else(|| self.error_at(start, Problem::Expected("the literal's octets")))?;
        // CHAR8 excludes NUL (RFC 3501 §9).
        if let Some(nul) = memchr::memchr(0, octets) {
            return Err(self.error_at(start + nul, Problem::Expected("a literal without NUL")));
        }
        self.at += octets.len();
        Ok(octets)
    }

    fn quoted(&mut self) -> Res<Cow<'a, [u8]>> {
        self.expect(b'"', "a quoted string")?;
        let mut owned: Option<Vec<u8>> = None;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let slice = self.raw.get(start..self.at).unwrap_or_default();
                    self.at += 1;
                    return Ok(owned.map_or(Cow::Borrowed(slice), Cow::Owned));
                }
                Some(b'\\') => {
                    let so_far = self.raw.get(start..self.at).unwrap_or_default();
                    let text = owned.get_or_insert_with(|| so_far.to_vec());
                    self.at += 1;
                    match self.peek() {
                        Some(b @ (b'"' | b'\\')) => text.push(b),
                        _ => return Err(self.expected("\" or \\ after a backslash")),
                    }
                    self.at += 1;
                }
                Some(b) if !matches!(b, 0 | b'\r' | b'\n') => {
                    if let Some(text) = owned.as_mut() {
                        text.push(b);
                    }
                    self.at += 1;
                }
                _ => return Err(self.expected("the closing quote")),
            }
        }
    }

    pub(crate) fn string(&mut self) -> Res<Cow<'a, [u8]>> {
        match self.peek() {
            Some(b'"') => self.quoted(),
            Some(b'{') => self.literal().map(Cow::Borrowed),
            _ => Err(self.expected("a string")),
        }
    }

    pub(crate) fn astring(&mut self) -> Res<Cow<'a, [u8]>> {
        match self.peek() {
            Some(b'"' | b'{') => self.string(),
            _ => {
                let raw = self.take_while(is_astring_char);
                if raw.is_empty() {
                    Err(self.expected("an atom or a string"))
                } else {
                    Ok(Cow::Borrowed(raw))
                }
            }
        }
    }

    pub(crate) fn mailbox(&mut self) -> Res<MailboxName> {
        let start = self.at;
        let raw = self.astring()?;
        MailboxName::from_wire(&raw).or_else(|bad| {
            let _ = self.deferred.get_or_insert(Syntax { at: start, problem: Problem::Mailbox(bad) });
            // Never seen by anybody: the deferred error wins.
            MailboxName::from_decoded("INBOX").map_err(|bad| self.error_at(start, Problem::Mailbox(bad)))
        })
    }

    pub(crate) fn list_pattern(&mut self) -> Res<ListPattern> {
        match self.peek() {
            Some(b'"' | b'{') => Ok(ListPattern::from_wire(&self.string()?)),
            _ => {
                let raw = self.take_while(is_list_char);
                if raw.is_empty() {
                    Err(self.expected("a mailbox pattern"))
                } else {
                    Ok(ListPattern::from_wire(raw))
                }
            }
        }
    }

    pub(crate) fn sequence_set(&mut self) -> Res<SeqSet> {
        let start = self.at;
        let raw = self.take_while(|b| b.is_ascii_digit() || matches!(b, b',' | b':' | b'*'));
        SeqSet::parse(raw).ok_or_else(|| self.error_at(start, Problem::Expected("a sequence set")))
    }

    pub(crate) fn date(&mut self) -> Res<Date> {
        let start = self.at;
        let quoted = self.eat(b'"');
        let raw = self.take_while(|b| b.is_ascii_alphanumeric() || b == b'-');
        let date = Date::parse(raw).ok_or_else(|| self.error_at(start, Problem::Expected("a date")))?;
        if quoted {
            self.expect(b'"', "the closing quote")?;
        }
        Ok(date)
    }

    pub(crate) fn date_time(&mut self) -> Res<DateTime> {
        let start = self.at;
        let raw = self.quoted()?;
        DateTime::parse(&raw).ok_or_else(|| self.error_at(start, Problem::Expected("a date and time")))
    }

    pub(crate) fn peek_is_nil(&self) -> bool {
        self.tail().get(..3).is_some_and(|t| t.eq_ignore_ascii_case(b"NIL"))
    }

    pub(crate) fn nil(&mut self) -> Res<()> {
        if self.peek_is_nil() {
            self.at += 3;
            Ok(())
        } else {
            Err(self.expected("NIL"))
        }
    }
}
