//! FETCH, STORE, COPY and flag lists.
//!
//! Trust: every byte is a client's.
//! Never: keep more items, flags, header names or part numbers than the constants say.

use super::Problem;
use super::cursor::{Cursor, Res, is_atom_char};
use crate::command::{
    Command, FetchItem, Flag, Partial, Section, SectionStyle, SectionText, StoreCommand, StoreMode,
    SystemFlag,
};

/// Part numbers in one section, and field names in one HEADER.FIELDS.
const MAX_PATH: usize = 64;
const MAX_FIELDS: usize = 512;
/// Items of one FETCH.
const MAX_ITEMS: usize = 256;
/// Flags of one STORE or APPEND.
const MAX_FLAGS: usize = 256;

pub(super) fn fetch(c: &mut Cursor<'_>, uid: bool) -> Res<Command> {
    c.sp()?;
    let set = c.sequence_set()?;
    c.sp()?;
    let mut items = Vec::new();
    if c.eat(b'(') {
        loop {
            if items.len() >= MAX_ITEMS {
                return Err(c.expected("fewer items"));
            }
            items.push(item(c)?);
            if c.eat(b')') {
                break;
            }
            c.sp()?;
        }
    } else {
        let start = c.clone();
        match c.word()?.as_str() {
            // RFC 3501 §6.4.5: macros stand alone.
            "ALL" => items.extend([
                FetchItem::Flags,
                FetchItem::InternalDate,
                FetchItem::Size,
                FetchItem::Envelope,
            ]),
            "FAST" => items.extend([FetchItem::Flags, FetchItem::InternalDate, FetchItem::Size]),
            "FULL" => items.extend([
                FetchItem::Flags,
                FetchItem::InternalDate,
                FetchItem::Size,
                FetchItem::Envelope,
                FetchItem::Body,
            ]),
            _ => {
                *c = start;
                items.push(item(c)?);
            }
        }
    }
    if uid && !items.contains(&FetchItem::Uid) {
        items.insert(0, FetchItem::Uid);
    }
    Ok(Command::Fetch { uid, set, items })
}

fn item(c: &mut Cursor<'_>) -> Res<FetchItem> {
    let at = c.at();
    let whole = |text, peek, style| FetchItem::Section {
        section: Section { path: Vec::new(), text },
        partial: None,
        peek,
        style,
    };
    Ok(match c.word()?.as_str() {
        "ENVELOPE" => FetchItem::Envelope,
        "FLAGS" => FetchItem::Flags,
        "INTERNALDATE" => FetchItem::InternalDate,
        "RFC822.SIZE" => FetchItem::Size,
        "UID" => FetchItem::Uid,
        "BODYSTRUCTURE" => FetchItem::BodyStructure,
        "RFC822" => whole(SectionText::Whole, false, SectionStyle::Rfc822),
        "RFC822.HEADER" => whole(SectionText::Header, true, SectionStyle::Rfc822Header),
        "RFC822.TEXT" => whole(SectionText::Text, false, SectionStyle::Rfc822Text),
        "BODY" if c.peek() != Some(b'[') => FetchItem::Body,
        word @ ("BODY" | "BODY.PEEK") => {
            let section = section(c)?;
            let partial = partial(c)?;
            FetchItem::Section { section, partial, peek: word == "BODY.PEEK", style: SectionStyle::Body }
        }
        _ => return Err(c.error_at(at, Problem::Expected("a fetch item"))),
    })
}

fn section(c: &mut Cursor<'_>) -> Res<Section> {
    c.expect(b'[', "a section")?;
    let mut path = Vec::new();
    while c.peek().is_some_and(|b| b.is_ascii_digit()) {
        let at = c.at();
        let part = c.number32()?;
        if part == 0 || path.len() >= MAX_PATH {
            return Err(c.error_at(at, Problem::Expected("a part number")));
        }
        path.push(part);
        if !c.eat(b'.') {
            c.expect(b']', "the end of the section")?;
            return Ok(Section { path, text: SectionText::Whole });
        }
    }
    if path.is_empty() && c.eat(b']') {
        return Ok(Section { path, text: SectionText::Whole });
    }
    let at = c.at();
    let text = match c.word()?.as_str() {
        "HEADER" => SectionText::Header,
        "HEADER.FIELDS" => SectionText::HeaderFields(field_names(c)?),
        "HEADER.FIELDS.NOT" => SectionText::HeaderFieldsNot(field_names(c)?),
        "TEXT" => SectionText::Text,
        // RFC 3501 §6.4.5: MIME only behind a part number.
        "MIME" if !path.is_empty() => SectionText::Mime,
        _ => return Err(c.error_at(at, Problem::Expected("a section name"))),
    };
    c.expect(b']', "the end of the section")?;
    Ok(Section { path, text })
}

fn field_names(c: &mut Cursor<'_>) -> Res<Vec<Vec<u8>>> {
    c.sp()?;
    c.expect(b'(', "a list of field names")?;
    let mut names = Vec::new();
    loop {
        if names.len() >= MAX_FIELDS {
            return Err(c.expected("fewer field names"));
        }
        names.push(c.astring()?.into_owned());
        if c.eat(b')') {
            return Ok(names);
        }
        c.sp()?;
    }
}

fn partial(c: &mut Cursor<'_>) -> Res<Option<Partial>> {
    if !c.eat(b'<') {
        return Ok(None);
    }
    let offset = c.number32()?;
    c.expect(b'.', "the count of a partial")?;
    let at = c.at();
    let count = c.number32()?;
    if count == 0 {
        return Err(c.error_at(at, Problem::Expected("a count above 0")));
    }
    c.expect(b'>', "the end of the partial")?;
    Ok(Some(Partial { offset, count }))
}

pub(super) fn store(c: &mut Cursor<'_>, uid: bool) -> Res<Command> {
    c.sp()?;
    let set = c.sequence_set()?;
    c.sp()?;
    let mode = if c.eat(b'+') {
        StoreMode::Add
    } else if c.eat(b'-') {
        StoreMode::Remove
    } else {
        StoreMode::Replace
    };
    let at = c.at();
    let silent = match c.word()?.as_str() {
        "FLAGS" => false,
        "FLAGS.SILENT" => true,
        _ => return Err(c.error_at(at, Problem::Expected("FLAGS or FLAGS.SILENT"))),
    };
    c.sp()?;
    let flags = if c.peek() == Some(b'(') {
        flag_list(c)?
    } else {
        let mut flags = vec![flag(c)?];
        while c.eat(b' ') {
            if flags.len() >= MAX_FLAGS {
                return Err(c.expected("fewer flags"));
            }
            flags.push(flag(c)?);
        }
        flags
    };
    Ok(Command::Store(StoreCommand { uid, set, mode, silent, flags }))
}

pub(super) fn flag_list(c: &mut Cursor<'_>) -> Res<Vec<Flag>> {
    c.expect(b'(', "a list of flags")?;
    let mut flags = Vec::new();
    if c.eat(b')') {
        return Ok(flags);
    }
    loop {
        if flags.len() >= MAX_FLAGS {
            return Err(c.expected("fewer flags"));
        }
        flags.push(flag(c)?);
        if c.eat(b')') {
            return Ok(flags);
        }
        c.sp()?;
    }
}

fn flag(c: &mut Cursor<'_>) -> Res<Flag> {
    let at = c.at();
    let system = c.eat(b'\\');
    if !c.peek().is_some_and(is_atom_char) {
        return Err(c.error_at(at, Problem::Expected("a flag")));
    }
    let name = c.atom_text()?;
    if !system {
        return Ok(Flag::Keyword(name));
    }
    let found = SystemFlag::ALL
        .into_iter()
        .find(|f| f.as_str().strip_prefix('\\').is_some_and(|n| n.eq_ignore_ascii_case(&name)));
    match found {
        Some(flag) => Ok(Flag::System(flag)),
        None if name.eq_ignore_ascii_case("Recent") => Err(c.error_at(at, Problem::Recent)),
        None => Err(c.error_at(at, Problem::Expected("a known flag"))),
    }
}

pub(super) fn copy(c: &mut Cursor<'_>, uid: bool, remove: bool) -> Res<Command> {
    c.sp()?;
    let set = c.sequence_set()?;
    c.sp()?;
    Ok(Command::Copy { uid, remove, set, to: c.mailbox()? })
}
