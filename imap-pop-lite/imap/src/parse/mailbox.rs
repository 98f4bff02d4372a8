//! LIST and STATUS arguments.
//!
//! Trust: every byte is a client's.
//! Never: keep more than `MAX_PATTERNS` patterns: each costs a walk over all folders.

use super::Problem;
use super::cursor::{Cursor, Res};
use crate::command::{Command, ListCommand, ListReturn, ListSelect, StatusItem};

/// Patterns in one extended LIST.
const MAX_PATTERNS: usize = 64;

/// RFC 3501 §6.3.8, RFC 5258 §3, RFC 5819, RFC 6154.
pub(super) fn list(c: &mut Cursor<'_>) -> Res<Command> {
    c.sp()?;
    let mut extended = false;
    let mut select = ListSelect::default();
    if c.eat(b'(') {
        extended = true;
        let start = c.at();
        options(c, |c, word, at| {
            match word {
                "SUBSCRIBED" => select.subscribed = true,
                "REMOTE" => select.remote = true,
                "RECURSIVEMATCH" => select.recursive_match = true,
                "SPECIAL-USE" => select.special_use = true,
                _ => return Err(c.error_at(at, Problem::Expected("a LIST selection option"))),
            }
            Ok(())
        })?;
        // RFC 5258 §3: RECURSIVEMATCH needs another option that selects; REMOTE is not one.
        if select.recursive_match && !select.subscribed && !select.special_use {
            return Err(c.error_at(start, Problem::Expected("another option besides RECURSIVEMATCH")));
        }
        c.sp()?;
    }
    let reference = c.list_pattern()?;
    c.sp()?;
    let mut patterns = Vec::new();
    if c.eat(b'(') {
        extended = true;
        loop {
            if patterns.len() == MAX_PATTERNS {
                return Err(c.expected("fewer patterns"));
            }
            patterns.push(c.list_pattern()?);
            if c.eat(b')') {
                break;
            }
            c.sp()?;
        }
    } else {
        patterns.push(c.list_pattern()?);
    }
    let mut give = ListReturn::default();
    if c.peek() == Some(b' ') {
        c.sp()?;
        let at = c.at();
        if c.word()? != "RETURN" {
            return Err(c.error_at(at, Problem::Expected("RETURN")));
        }
        c.sp()?;
        c.expect(b'(', "a list of return options")?;
        extended = true;
        options(c, |c, word, at| {
            match word {
                "SUBSCRIBED" => give.subscribed = true,
                "CHILDREN" => give.children = true,
                "SPECIAL-USE" => give.special_use = true,
                "STATUS" => {
                    c.sp()?;
                    give.status = Some(status_items(c)?);
                }
                _ => return Err(c.error_at(at, Problem::Expected("a LIST return option"))),
            }
            Ok(())
        })?;
    }
    Ok(Command::List(ListCommand { select, reference, patterns, give, extended }))
}

/// Words up to the closing parenthesis; an empty list is fine.
fn options<'a>(c: &mut Cursor<'a>, mut each: impl FnMut(&mut Cursor<'a>, &str, usize) -> Res<()>) -> Res<()> {
    if c.eat(b')') {
        return Ok(());
    }
    loop {
        let at = c.at();
        let word = c.word()?;
        each(c, &word, at)?;
        if c.eat(b')') {
            return Ok(());
        }
        c.sp()?;
    }
}

/// `(MESSAGES UNSEEN)`
pub(super) fn status_items(c: &mut Cursor<'_>) -> Res<Vec<StatusItem>> {
    c.expect(b'(', "a list of status items")?;
    let mut items = Vec::new();
    loop {
        let at = c.at();
        let item = match c.word()?.as_str() {
            "MESSAGES" => StatusItem::Messages,
            "RECENT" => StatusItem::Recent,
            "UIDNEXT" => StatusItem::UidNext,
            "UIDVALIDITY" => StatusItem::UidValidity,
            "UNSEEN" => StatusItem::Unseen,
            "SIZE" => StatusItem::Size,
            "APPENDLIMIT" => StatusItem::AppendLimit,
            _ => return Err(c.error_at(at, Problem::Expected("a status item"))),
        };
        if !items.contains(&item) {
            items.push(item);
        }
        if c.eat(b')') {
            return Ok(items);
        }
        c.sp()?;
    }
}
