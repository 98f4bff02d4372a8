//! SEARCH: keys, ESEARCH options, charset.
//!
//! Clients write chains of hundreds of ORs; the tree is built with an explicit stack.
//!
//! Trust: every byte is a client's.
//! Never: recurse while parsing, or nest deeper than `MAX_DEPTH`: whoever walks the tree recurses.

use super::Problem;
use super::cursor::{Cursor, Res};
use crate::command::{
    Command, HeaderMatch, SearchCommand, SearchExpr, SearchKey, SearchNode, SearchReturn, SystemFlag,
};

/// Deepest nesting taken.
const MAX_DEPTH: usize = 1000;

pub(super) fn search(c: &mut Cursor<'_>, uid: bool) -> Res<Command> {
    c.sp()?;
    let mut give = None;
    let mut charset = None;
    loop {
        let start = c.clone();
        let word = c.word().unwrap_or_default();
        match word.as_str() {
            "RETURN" if give.is_none() && charset.is_none() => {
                c.sp()?;
                give = Some(return_options(c)?);
                c.sp()?;
            }
            "CHARSET" if charset.is_none() => {
                c.sp()?;
                let at = c.at();
                let name = String::from_utf8_lossy(&c.astring()?).to_ascii_uppercase();
                if !matches!(name.as_str(), "US-ASCII" | "UTF-8" | "ASCII" | "UTF8") {
                    return Err(c.error_at(at, Problem::Charset));
                }
                charset = Some(name);
                c.sp()?;
            }
            _ => {
                *c = start;
                break;
            }
        }
    }
    Ok(Command::Search(SearchCommand { uid, give, charset, expr: expr(c)? }))
}

/// RFC 4731 §3.1; `RETURN ()` is `RETURN (ALL)`.
fn return_options(c: &mut Cursor<'_>) -> Res<SearchReturn> {
    let mut give = SearchReturn::default();
    c.expect(b'(', "a list of return options")?;
    if c.eat(b')') {
        return Ok(SearchReturn { all: true, ..give });
    }
    loop {
        let at = c.at();
        match c.word()?.as_str() {
            "MIN" => give.min = true,
            "MAX" => give.max = true,
            "ALL" => give.all = true,
            "COUNT" => give.count = true,
            _ => return Err(c.error_at(at, Problem::Expected("MIN, MAX, ALL or COUNT"))),
        }
        if c.eat(b')') {
            return Ok(give);
        }
        c.sp()?;
    }
}

/// A node whose operands are still coming.
enum Open {
    /// `(` … `)`, or the whole command.
    Group(usize),
    Not(usize),
    /// With how many operands complete.
    Or(usize, u8),
}

fn expr(c: &mut Cursor<'_>) -> Res<SearchExpr> {
    let mut nodes = vec![(SearchNode::And, 0)];
    let mut open = vec![Open::Group(0)];
    loop {
        // A key starts here.
        if open.len() > MAX_DEPTH {
            return Err(c.error_at(c.at(), Problem::TooDeep));
        }
        if c.eat(b'(') {
            open.push(Open::Group(nodes.len()));
            nodes.push((SearchNode::And, 0));
            continue;
        }
        match leaf(c)? {
            Leaf::Or => {
                open.push(Open::Or(nodes.len(), 0));
                nodes.push((SearchNode::Or, 0));
                c.sp()?;
                continue;
            }
            Leaf::Not => {
                open.push(Open::Not(nodes.len()));
                nodes.push((SearchNode::Not, 0));
                c.sp()?;
                continue;
            }
            Leaf::Key(key) => push(&mut nodes, key),
            Leaf::NotKey(key) => {
                let at = nodes.len();
                nodes.push((SearchNode::Not, 0));
                push(&mut nodes, key);
                close(&mut nodes, at);
            }
        }
        // A key is complete: close what waited for it.
        loop {
            match open.pop() {
                Some(Open::Not(at)) => close(&mut nodes, at),
                Some(Open::Or(at, 0)) => {
                    open.push(Open::Or(at, 1));
                    c.sp()?;
                    break;
                }
                Some(Open::Or(at, _)) => close(&mut nodes, at),
                Some(Open::Group(at)) if at > 0 && c.eat(b')') => close(&mut nodes, at),
                Some(Open::Group(at)) => {
                    if c.eat(b' ') {
                        // A stray space at the very end is forgiven.
                        if at == 0 && c.peek().is_none() {
                            close(&mut nodes, 0);
                            return Ok(SearchExpr { nodes });
                        }
                        open.push(Open::Group(at));
                        break;
                    }
                    if at == 0 {
                        close(&mut nodes, 0);
                        return Ok(SearchExpr { nodes });
                    }
                    return Err(c.expected("a space or )"));
                }
                None => return Ok(SearchExpr { nodes }),
            }
        }
    }
}

fn push(nodes: &mut Vec<(SearchNode, usize)>, key: SearchKey) {
    let end = nodes.len() + 1;
    nodes.push((SearchNode::Key(key), end));
}

fn close(nodes: &mut [(SearchNode, usize)], at: usize) {
    let end = nodes.len();
    if let Some(node) = nodes.get_mut(at) {
        node.1 = end;
    }
}

enum Leaf {
    Key(SearchKey),
    NotKey(SearchKey),
    Not,
    Or,
}

fn leaf(c: &mut Cursor<'_>) -> Res<Leaf> {
    if c.peek().is_some_and(|b| b.is_ascii_digit() || b == b'*') {
        return Ok(Leaf::Key(SearchKey::Seq(c.sequence_set()?)));
    }
    let at = c.at();
    let word = c.word().map_err(|_| c.error_at(at, Problem::Expected("a search key")))?;
    let flag = |f| Leaf::Key(SearchKey::Flag(f));
    let no_flag = |f| Leaf::NotKey(SearchKey::Flag(f));
    Ok(match word.as_str() {
        "NOT" => Leaf::Not,
        "OR" => Leaf::Or,
        "ALL" => Leaf::Key(SearchKey::All),
        "ANSWERED" => flag(SystemFlag::Answered),
        "DELETED" => flag(SystemFlag::Deleted),
        "DRAFT" => flag(SystemFlag::Draft),
        "FLAGGED" => flag(SystemFlag::Flagged),
        "SEEN" => flag(SystemFlag::Seen),
        "UNANSWERED" => no_flag(SystemFlag::Answered),
        "UNDELETED" => no_flag(SystemFlag::Deleted),
        "UNDRAFT" => no_flag(SystemFlag::Draft),
        "UNFLAGGED" => no_flag(SystemFlag::Flagged),
        "UNSEEN" => no_flag(SystemFlag::Seen),
        "RECENT" => Leaf::Key(SearchKey::Recent),
        "OLD" => Leaf::NotKey(SearchKey::Recent),
        "NEW" => Leaf::Key(SearchKey::New),
        "KEYWORD" | "UNKEYWORD" => {
            c.sp()?;
            let key = SearchKey::Keyword(c.atom_text()?);
            if word == "KEYWORD" { Leaf::Key(key) } else { Leaf::NotKey(key) }
        }
        "UID" => {
            c.sp()?;
            Leaf::Key(SearchKey::Uid(c.sequence_set()?))
        }
        "BEFORE" | "ON" | "SINCE" | "SENTBEFORE" | "SENTON" | "SENTSINCE" => {
            c.sp()?;
            let date = c.date()?;
            Leaf::Key(match word.as_str() {
                "BEFORE" => SearchKey::Before(date),
                "ON" => SearchKey::On(date),
                "SINCE" => SearchKey::Since(date),
                "SENTBEFORE" => SearchKey::SentBefore(date),
                "SENTON" => SearchKey::SentOn(date),
                _ => SearchKey::SentSince(date),
            })
        }
        "LARGER" | "SMALLER" => {
            c.sp()?;
            let size = c.number()?;
            Leaf::Key(if word == "LARGER" { SearchKey::Larger(size) } else { SearchKey::Smaller(size) })
        }
        "YOUNGER" | "OLDER" => {
            c.sp()?;
            let at = c.at();
            let seconds = c.number32()?;
            if seconds == 0 {
                return Err(c.error_at(at, Problem::Expected("an interval above 0")));
            }
            Leaf::Key(if word == "YOUNGER" { SearchKey::Younger(seconds) } else { SearchKey::Older(seconds) })
        }
        "FROM" | "TO" | "CC" | "BCC" | "SUBJECT" => {
            c.sp()?;
            let text = c.astring()?.into_owned();
            Leaf::Key(SearchKey::Header(HeaderMatch { name: word.to_ascii_lowercase().into_bytes(), text }))
        }
        "HEADER" => {
            c.sp()?;
            let name = c.astring()?.to_ascii_lowercase();
            c.sp()?;
            Leaf::Key(SearchKey::Header(HeaderMatch { name, text: c.astring()?.into_owned() }))
        }
        "BODY" => {
            c.sp()?;
            Leaf::Key(SearchKey::Body(c.astring()?.into_owned()))
        }
        "TEXT" => {
            c.sp()?;
            Leaf::Key(SearchKey::Text(c.astring()?.into_owned()))
        }
        _ => return Err(c.error_at(at, Problem::Expected("a search key"))),
    })
}
