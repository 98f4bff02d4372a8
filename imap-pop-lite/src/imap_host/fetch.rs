//! FETCH, in turns: a turn reads and formats a bounded amount, then the client is written to.
//!
//! Trust: the items are the client's, checked by the parser; the messages are strangers'.
//! Never: announce a size and send another one; format more than a turn ahead of the client.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use imap::{
    Code, Completion, DateTime, FetchItem, FetchWriter, Partial, Section, SectionStyle, SectionText, SeqSet,
};
use maildir::{FlagChange, FlagOp, Flags, Mailbox, Message, Mode, Uid};

use super::content::{Content, Region};
use super::mail::{Mail, unix_time};
use super::reply::{put_message_flags, refused};
use super::structure;
use crate::wire::{Place, Reader, to_wire};

/// Output of one turn.
const TURN: usize = 128 << 10;
/// Messages looked up together when only numbers and flags are wanted.
const BATCH: usize = 1000;
/// Messages marked `\Seen` together: one lock for many, and not far ahead of what the client has.
const MARK: usize = 32;

/// Where a partial fetch ended: a client that goes on from there finds the place at once.
pub(super) struct Resume {
    uid: Uid,
    section: Section,
    region: Region,
    place: Place,
}

/// What came of a turn.
pub(super) enum Progress {
    More,
    Done(Completion),
    /// A literal is announced and cannot be completed.
    Broken,
}

/// One FETCH on its way.
pub(super) struct Fetch {
    pub(super) uid: bool,
    items: Vec<FetchItem>,
    todo: VecDeque<(u32, Uid)>,
    /// Reading a body marks it.
    marks: bool,
    /// How many of `todo` are marked already.
    marked: usize,
    /// Messages this FETCH marked and has not told yet.
    newly: Vec<Uid>,
    mailbox: Arc<Mailbox>,
    current: Option<Current>,
    gone: bool,
}

/// The message whose answer is being written.
struct Current {
    message: Message,
    items: VecDeque<FetchItem>,
    content: Option<Content>,
    reader: Option<(Reader, Option<(Section, Region)>)>,
    /// Is anything written already?
    begun: bool,
}

impl Fetch {
    pub(super) fn start(
        mail: &mut Mail,
        uid: bool,
        set: &SeqSet,
        items: Vec<FetchItem>,
        out: &mut Vec<u8>,
    ) -> Result<Self, Completion> {
        let todo: VecDeque<_> = mail.pairs(set, uid).map_err(|error| refused(&error))?.into();
        mail.announce_keywords(out);
        let Some(view) = &mail.view else { return Err(Completion::bad("No mailbox is selected")) };
        let reads = items.iter().any(|item| matches!(item, FetchItem::Section { peek: false, .. }));
        Ok(Self {
            uid,
            items,
            todo,
            marks: reads && view.mode() == Mode::ReadWrite,
            marked: 0,
            newly: Vec::new(),
            mailbox: Arc::clone(view.mailbox()),
            current: None,
            gone: false,
        })
    }

    /// Goes on until all is written or there is much to send.
    pub(super) fn turn(&mut self, mail: &mut Mail, out: &mut Vec<u8>) -> Progress {
        if self.items.iter().all(|item| matches!(item, FetchItem::Uid | FetchItem::Flags)) {
            return self.numbers_and_flags(mail, out);
        }
        loop {
            if let Some(mut current) = self.current.take() {
                match current.go_on(self, mail, out) {
                    Ok(true) => {}
                    Ok(false) => {
                        if let Some(content) = current.content.as_mut() {
                            content.release();
                        }
                        self.current = Some(current);
                        return Progress::More;
                    }
                    Err(error) => {
                        tracing::error!(%error, uid = %current.message.uid, "cannot read a message");
                        if current.reader.is_some() {
                            return Progress::Broken;
                        }
                        if current.begun {
                            FetchWriter::resume(out).end();
                        }
                        let text = "Internal error while reading a message.";
                        return Progress::Done(Completion::no(text).code(Code::ServerBug));
                    }
                }
            } else if let Some((_, uid)) = self.todo.front().copied() {
                if self.marks && self.marked == 0 {
                    if let Err(error) = self.mark(mail) {
                        return Progress::Done(refused(&error));
                    }
                    mail.announce_keywords(out);
                }
                self.todo.pop_front();
                self.marked = self.marked.saturating_sub(1);
                self.current = mail.view.as_ref().and_then(|view| view.message(uid)).map(|message| {
                    let mut items: VecDeque<FetchItem> = self.items.iter().cloned().collect();
                    // What reading changed is told with the answer.
                    if self.newly.contains(&uid) && !items.contains(&FetchItem::Flags) {
                        items.push_back(FetchItem::Flags);
                    }
                    Current { message, items, content: None, reader: None, begun: false }
                });
            } else {
                return Progress::Done(if self.gone {
                    Completion::ok("Some messages were expunged.").code(Code::ExpungeIssued)
                } else {
                    Completion::ok("Fetch completed.")
                });
            }
            if out.len() >= TURN {
                return Progress::More;
            }
        }
    }

    /// What every client asks of every message when it opens a mailbox: no file is touched for it.
    fn numbers_and_flags(&mut self, mail: &mut Mail, out: &mut Vec<u8>) -> Progress {
        let Some(view) = &mail.view else { return Progress::Done(Completion::bad("No mailbox is selected")) };
        let names = self.mailbox.keywords();
        while !self.todo.is_empty() {
            let batch: Vec<_> = self.todo.drain(..self.todo.len().min(BATCH)).collect();
            for message in view.messages(&batch) {
                let mut writer = FetchWriter::start(out, message.seq);
                for item in &self.items {
                    match item {
                        FetchItem::Uid => writer.uid(message.uid.get()),
                        _ => put_message_flags(&mut writer, &message, &names),
                    }
                }
                writer.end();
            }
            if out.len() >= TURN && !self.todo.is_empty() {
                return Progress::More;
            }
        }
        Progress::Done(Completion::ok("Fetch completed."))
    }

    /// Sets `\Seen` on the next messages that lack it.
    fn mark(&mut self, mail: &mut Mail) -> Result<(), maildir::Error> {
        self.newly.clear();
        let Some(view) = mail.view.as_mut() else { return Ok(()) };
        self.marked = self.todo.len().min(MARK);
        for (_, uid) in self.todo.iter().take(MARK) {
            if view.message(*uid).is_some_and(|m| !m.flags.contains(Flags::SEEN) && !m.expunged) {
                self.newly.push(*uid);
            }
        }
        if self.newly.is_empty() {
            return Ok(());
        }
        view.store(&self.newly, &FlagChange { op: FlagOp::Add, flags: Flags::SEEN, keywords: Vec::new() })?;
        Ok(())
    }
}

impl Current {
    /// Writes items until all are (true) or the turn is full (false).
    fn go_on(&mut self, fetch: &mut Fetch, mail: &mut Mail, out: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            if let Some((reader, _)) = self.reader.as_mut() {
                let most = TURN.saturating_sub(out.len()).max(4096);
                reader.deliver(out, most)?;
                if reader.left() > 0 {
                    return Ok(false);
                }
                if let Some((reader, Some((section, region)))) = self.reader.take() {
                    mail.resume =
                        reader.place().map(|place| Resume { uid: self.message.uid, section, region, place });
                }
                if out.len() >= TURN {
                    return Ok(false);
                }
            }
            match self.items.pop_front() {
                Some(item) => self.item(item, fetch, mail, out)?,
                None => {
                    if self.begun {
                        FetchWriter::resume(out).end();
                    }
                    return Ok(true);
                }
            }
        }
    }

    fn writer<'o>(&mut self, out: &'o mut Vec<u8>) -> FetchWriter<'o> {
        if std::mem::replace(&mut self.begun, true) {
            FetchWriter::resume(out)
        } else {
            FetchWriter::start(out, self.message.seq)
        }
    }

    /// Opens the message; false when it is gone.
    fn open(&mut self, fetch: &mut Fetch, mail: &Mail) -> io::Result<bool> {
        if self.content.is_some() {
            return Ok(true);
        }
        match Content::open(&fetch.mailbox, self.message.uid, &mail.budget) {
            Ok(content) => {
                self.content = Some(content);
                Ok(true)
            }
            Err(maildir::Error::Expunged(_)) => {
                fetch.gone = true;
                Ok(false)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn item(
        &mut self,
        item: FetchItem,
        fetch: &mut Fetch,
        mail: &mut Mail,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let uid = self.message.uid;
        match item {
            FetchItem::Uid => self.writer(out).uid(uid.get()),
            FetchItem::Flags => {
                // Fresh, because reading may have set \Seen.
                if let Some(message) = mail.view.as_ref().and_then(|view| view.message(uid)) {
                    self.message = message;
                }
                let message = self.message;
                put_message_flags(&mut self.writer(out), &message, &fetch.mailbox.keywords());
            }
            FetchItem::InternalDate => match fetch.mailbox.internal_date(uid) {
                Ok(date) => self.writer(out).internal_date(DateTime::utc(unix_time(date))),
                Err(maildir::Error::Expunged(_)) => fetch.gone = true,
                Err(error) => return Err(io::Error::other(error)),
            },
            FetchItem::Size => {
                let size = match &self.content {
                    Some(content) => Ok(content.virtual_size),
                    None => fetch.mailbox.virtual_size(uid),
                };
                match size {
                    Ok(size) => self.writer(out).size(size),
                    Err(maildir::Error::Expunged(_)) => fetch.gone = true,
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            FetchItem::Envelope => {
                if self.open(fetch, mail)? {
                    let envelope = match self.content.as_mut() {
                        Some(content) => structure::envelope(&content.header()?),
                        None => return Ok(()),
                    };
                    self.writer(out).envelope(&envelope);
                }
            }
            FetchItem::Body | FetchItem::BodyStructure => {
                if self.open(fetch, mail)?
                    && let Some(mut content) = self.content.take()
                {
                    let (bytes, message) = content.parts(&mail.budget)?;
                    let body = structure::body(bytes, &message.root);
                    self.writer(out).structure(&body, item == FetchItem::BodyStructure);
                    drop(body);
                    self.content = Some(content);
                }
            }
            FetchItem::Section { section, partial, style, .. } => {
                if self.open(fetch, mail)? {
                    self.section(section, partial, style, mail, out)?;
                } else {
                    let origin = partial.map(|p| p.offset);
                    self.writer(out).section_nil(&section, style, origin);
                }
            }
        }
        Ok(())
    }

    fn section(
        &mut self,
        section: Section,
        partial: Option<Partial>,
        style: SectionStyle,
        mail: &mut Mail,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Some(mut content) = self.content.take() else { return Ok(()) };
        let origin = partial.map(|p| p.offset);
        let selector = match &section.text {
            SectionText::Whole => mime::Selector::All,
            SectionText::Text => mime::Selector::Text,
            SectionText::Mime => mime::Selector::Mime,
            _ => mime::Selector::Header,
        };
        let region = match mail.resume.as_ref().filter(|r| r.uid == self.message.uid && r.section == section)
        {
            Some(resume) => Some(resume.region.clone()),
            None => content.region(&section.path, selector, &mail.budget)?,
        };
        let names = match &section.text {
            SectionText::HeaderFields(names) => Some((names, false)),
            SectionText::HeaderFieldsNot(names) => Some((names, true)),
            _ => None,
        };
        match (region, names) {
            (Some(region), Some((names, not))) => {
                let block = content.slice(&region.range)?;
                let text = selected(&block, names, not);
                let text = cut(&text, partial);
                self.writer(out).section(&section, style, origin, text.len() as u64);
                out.extend_from_slice(text);
            }
            (Some(region), None) => {
                let offset = u64::from(partial.map_or(0, |p| p.offset)).min(region.octets);
                let count = partial.map_or(u64::MAX, |p| u64::from(p.count)).min(region.octets - offset);
                self.writer(out).section(&section, style, origin, count);
                let same = region.octets == region.range.end - region.range.start;
                let place = mail
                    .resume
                    .as_ref()
                    .filter(|r| r.uid == self.message.uid && r.section == section && r.place.wire <= offset)
                    .map_or(Place::start(region.range.start), |r| r.place);
                let reader =
                    Reader::new(Arc::clone(&content.file), place, region.range.end, offset, count, same);
                let remember = partial.is_some().then_some((section, region));
                self.reader = Some((reader, remember));
            }
            // No such part: the empty string (a client that asks again and again for NIL never ends).
            (None, names) => {
                // HEADER.FIELDS ends with the blank line even where nothing matches.
                let text: &[u8] = if names.is_some() { b"\r\n" } else { b"" };
                let text = cut(text, partial);
                self.writer(out).section(&section, style, origin, text.len() as u64);
                out.extend_from_slice(text);
            }
        }
        self.content = Some(content);
        Ok(())
    }
}

/// RFC 3501 §6.4.5: the fields in their order, then the blank line.
fn selected(block: &[u8], names: &[Vec<u8>], not: bool) -> Vec<u8> {
    let mut text = to_wire(&mime::select_fields(block, names, not));
    if !text.is_empty() && !text.ends_with(b"\r\n") {
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}

fn cut(text: &[u8], partial: Option<Partial>) -> &[u8] {
    let Some(partial) = partial else { return text };
    let start = usize::try_from(partial.offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(usize::try_from(partial.count).unwrap_or(usize::MAX)).min(text.len());
    text.get(start..end).unwrap_or_default()
}
