//! SEARCH: all keys of RFC 3501, ESEARCH answers (RFC 4731), YOUNGER and OLDER (RFC 5032).
//!
//! Trust: keys are the client's, their depth bounded by the parser; the messages are strangers'.
//! Never: read a file for what the table in memory knows.

use std::time::SystemTime;

use imap::{
    Code, Completion, Date, HeaderMatch, Ranges, Response, SearchCommand, SearchKey, SearchResult, SeqSet,
    Tag, compress,
};
use maildir::{Flags, KeywordNames, Mailbox, Message};

use super::content::Content;
use super::mail::{Mail, unix_time};
use super::reply::store_flag;
use super::text;
use crate::budget::Budget;

/// Runs the search and writes the answer.
pub(super) fn run(
    mail: &Mail,
    command: &SearchCommand,
    tag: &Tag,
    out: &mut Vec<u8>,
) -> Result<Completion, maildir::Error> {
    let Some(view) = &mail.view else { return Ok(Completion::bad("No mailbox is selected")) };
    let last = view.exists();
    let last_uid = view.uid(last).map_or(0, maildir::Uid::get);
    let mut sets = Vec::new();
    for key in command.expr.keys() {
        match key {
            SearchKey::Seq(set) => {
                // The same check as in FETCH: a number beyond the end is an error.
                if set.largest_number().is_some_and(|n| n > last) {
                    mail.pairs(set, false)?;
                }
                sets.push((set, set.resolve(last)));
            }
            SearchKey::Uid(set) => sets.push((set, set.resolve(last_uid))),
            _ => {}
        }
    }
    let mut searcher = Searcher {
        mailbox: view.mailbox(),
        keywords: view.mailbox().keywords(),
        budget: &mail.budget,
        needles: needles(command),
        sets,
        now: unix_time(SystemTime::now()),
        gone: false,
    };
    let pairs: Vec<_> = (1..=last).filter_map(|seq| view.uid(seq).map(|uid| (seq, uid))).collect();
    let mut found = Vec::new();
    for message in view.messages(&pairs) {
        let mut candidate = Candidate { message, content: None };
        if command.expr.matches(|key| searcher.holds(key, &mut candidate))? {
            found.push(if command.uid { candidate.message.uid.get() } else { candidate.message.seq });
        }
    }
    let gone = searcher.gone;
    match command.give {
        None => Response::Search(found).put(out),
        Some(give) => Response::ESearch(SearchResult {
            tag: tag.clone(),
            uid: command.uid,
            min: found.first().copied().filter(|_| give.min),
            max: found.last().copied().filter(|_| give.max),
            all: (give.all && !found.is_empty()).then(|| compress(&found)),
            count: give.count.then_some(found.len()),
        })
        .put(out),
    }
    let completion = Completion::ok("Search completed.");
    Ok(if gone { completion.code(Code::ExpungeIssued) } else { completion })
}

/// Texts to look for, folded once.
fn needles(command: &SearchCommand) -> Vec<(&[u8], String)> {
    command
        .expr
        .keys()
        .filter_map(|key| match key {
            SearchKey::Header(HeaderMatch { text, .. }) | SearchKey::Body(text) | SearchKey::Text(text) => {
                Some((text.as_slice(), text::fold(&String::from_utf8_lossy(text))))
            }
            _ => None,
        })
        .collect()
}

struct Candidate {
    message: Message,
    content: Option<Content>,
}

struct Searcher<'a> {
    mailbox: &'a Mailbox,
    keywords: KeywordNames,
    budget: &'a Budget,
    needles: Vec<(&'a [u8], String)>,
    sets: Vec<(&'a SeqSet, Ranges)>,
    now: i64,
    gone: bool,
}

impl Searcher<'_> {
    fn holds(&mut self, key: &SearchKey, candidate: &mut Candidate) -> Result<bool, maildir::Error> {
        let message = candidate.message;
        Ok(match key {
            SearchKey::All => true,
            SearchKey::Seq(set) => self.in_set(set, message.seq),
            SearchKey::Uid(set) => self.in_set(set, message.uid.get()),
            SearchKey::Flag(flag) => message.flags.contains(store_flag(*flag)),
            SearchKey::Keyword(name) => {
                self.keywords.find(name).is_some_and(|keyword| message.keywords.contains(keyword))
            }
            SearchKey::Recent => message.recent,
            SearchKey::New => message.recent && !message.flags.contains(Flags::SEEN),
            SearchKey::Before(day) => self.received(&message)?.is_some_and(|(d, _)| d < *day),
            SearchKey::On(day) => self.received(&message)?.is_some_and(|(d, _)| d == *day),
            SearchKey::Since(day) => self.received(&message)?.is_some_and(|(d, _)| d >= *day),
            SearchKey::Younger(age) => {
                self.received(&message)?.is_some_and(|(_, at)| self.now - at <= i64::from(*age))
            }
            SearchKey::Older(age) => {
                self.received(&message)?.is_some_and(|(_, at)| self.now - at >= i64::from(*age))
            }
            SearchKey::SentBefore(day) => self.sent(candidate)?.is_some_and(|d| d < *day),
            SearchKey::SentOn(day) => self.sent(candidate)?.is_some_and(|d| d == *day),
            SearchKey::SentSince(day) => self.sent(candidate)?.is_some_and(|d| d >= *day),
            SearchKey::Larger(size) => self.size(&message)?.is_some_and(|s| s > *size),
            SearchKey::Smaller(size) => self.size(&message)?.is_some_and(|s| s < *size),
            SearchKey::Header(wanted) => {
                let needle = self.needle(&wanted.text);
                match self.content(candidate)? {
                    Some(content) => header_has(content, &wanted.name, &needle)?,
                    None => false,
                }
            }
            SearchKey::Body(text) => {
                let needle = self.needle(text);
                let budget = self.budget.clone();
                match self.content(candidate)? {
                    Some(content) => body_has(content, &needle, &budget)?,
                    None => false,
                }
            }
            SearchKey::Text(text) => {
                let needle = self.needle(text);
                let budget = self.budget.clone();
                match self.content(candidate)? {
                    Some(content) => {
                        any_header_has(content, &needle)? || body_has(content, &needle, &budget)?
                    }
                    None => false,
                }
            }
        })
    }

    fn in_set(&self, set: &SeqSet, n: u32) -> bool {
        self.sets
            .iter()
            .find(|(known, _)| std::ptr::eq(*known, set))
            .is_some_and(|(_, ranges)| ranges.contains(n))
    }

    fn needle(&self, text: &[u8]) -> String {
        self.needles
            .iter()
            .find(|(raw, _)| *raw == text)
            .map(|(_, folded)| folded.clone())
            .unwrap_or_default()
    }

    /// What is gone matches nothing that has to be looked up.
    fn present<T>(&mut self, result: Result<T, maildir::Error>) -> Result<Option<T>, maildir::Error> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(maildir::Error::Expunged(_)) => {
                self.gone = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn received(&mut self, message: &Message) -> Result<Option<(Date, i64)>, maildir::Error> {
        let date = self.mailbox.internal_date(message.uid);
        Ok(self.present(date)?.map(|date| {
            let unix = unix_time(date);
            (Date::of_unix(unix), unix)
        }))
    }

    fn size(&mut self, message: &Message) -> Result<Option<u64>, maildir::Error> {
        let size = self.mailbox.virtual_size(message.uid);
        self.present(size)
    }

    fn content<'c>(
        &mut self,
        candidate: &'c mut Candidate,
    ) -> Result<Option<&'c mut Content>, maildir::Error> {
        if candidate.content.is_none() {
            let opened = Content::open(self.mailbox, candidate.message.uid, self.budget);
            candidate.content = self.present(opened)?;
        }
        Ok(candidate.content.as_mut())
    }

    fn sent(&mut self, candidate: &mut Candidate) -> Result<Option<Date>, maildir::Error> {
        let Some(content) = self.content(candidate)? else { return Ok(None) };
        let header = content.header().map_err(unreadable)?;
        let date = mime::fields(&header).find(|f| f.name.eq_ignore_ascii_case(b"date"));
        Ok(date.and_then(|field| text::sent_day(field.value)))
    }
}

fn unreadable(source: std::io::Error) -> maildir::Error {
    maildir::Error::Io { what: "read", path: "message".into(), source }
}

fn header_has(content: &mut Content, name: &[u8], needle: &str) -> Result<bool, maildir::Error> {
    let header = content.header().map_err(unreadable)?;
    Ok(mime::fields(&header)
        .filter(|field| field.name.eq_ignore_ascii_case(name))
        .any(|field| needle.is_empty() || text::fold(&text::header_value(field.value)).contains(needle)))
}

fn any_header_has(content: &mut Content, needle: &str) -> Result<bool, maildir::Error> {
    Ok(block_has(&content.header().map_err(unreadable)?, needle))
}

/// Does a field, with its name, have the text?
fn block_has(block: &[u8], needle: &str) -> bool {
    mime::fields(block).any(|field| {
        let line = format!("{}: {}", String::from_utf8_lossy(field.name), text::header_value(field.value));
        text::fold(&line).contains(needle)
    })
}

fn body_has(content: &mut Content, needle: &str, budget: &Budget) -> Result<bool, maildir::Error> {
    if needle.is_empty() {
        return Ok(true);
    }
    let (bytes, message) = content.parts(budget).map_err(unreadable)?;
    let found = part_has(bytes, &message.root, needle);
    // The next candidate is a message of its own: this one's bytes are not needed any more.
    content.release();
    Ok(found)
}

/// The scanner caps the depth.
fn part_has(bytes: &[u8], part: &mime::Part, needle: &str) -> bool {
    match &part.content {
        mime::Body::Multipart(children) => children.iter().any(|child| part_has(bytes, child, needle)),
        mime::Body::Message(inner) => {
            let header = bytes.get(inner.header.clone()).unwrap_or_default();
            block_has(header, needle) || part_has(bytes, inner, needle)
        }
        mime::Body::Leaf if part.content_type.is_kind(b"text") => {
            let body = bytes.get(part.body.clone()).unwrap_or_default();
            text::fold(&text::body_text(body, part)).contains(needle)
        }
        mime::Body::Leaf => false,
    }
}
