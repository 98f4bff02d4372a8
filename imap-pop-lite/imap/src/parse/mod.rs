//! The command parser.
//!
//! Input is one whole command without its final line end; literals stand in it as they came
//! (`{5}` CRLF and five octets). Errors carry the position.
//!
//! Trust: every byte is a client's; the session has bounded how many there are.
//! Never: take half a command: what is left over at its end makes all of it wrong.

mod cursor;
mod fetch;
mod mailbox;
mod search;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::command::{AppendHead, Command, Flag, Tag};
use crate::date::DateTime;
use crate::name::MailboxName;
use crate::secret::Secret;
pub(crate) use cursor::is_astring_char;
use cursor::{Cursor, Res};

/// What is wrong with a command.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Something else was expected here.
    #[error("Expected {0}")]
    Expected(&'static str),
    /// No such command.
    #[error("Unknown command")]
    UnknownCommand,
    /// Text behind the end of the command.
    #[error("Unexpected text after the command")]
    Trailing,
    /// A mailbox name that cannot be. The command itself was well formed.
    #[error("{0}")]
    Mailbox(crate::name::BadName),
    /// A search nested beyond the cap.
    #[error("Search is nested too deeply")]
    TooDeep,
    /// A charset we do not know.
    #[error("Unknown charset")]
    Charset,
    /// `\Recent` cannot be stored.
    #[error("\\Recent cannot be stored")]
    Recent,
}

/// A syntax error and its place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{problem} (at position {})", .at + 1)]
pub struct Syntax {
    /// Offset from the start of the command, literals included.
    pub at: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// A command that could not be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// The tag, if at least that was there.
    pub tag: Option<Tag>,
    /// What is wrong and where.
    pub error: Syntax,
}

/// Reads one command.
///
/// # Errors
/// With the position of the first thing that is not understood, and the tag if it could be read.
pub fn parse(raw: &[u8]) -> Result<(Tag, Command), Rejected> {
    let mut c = Cursor::new(raw);
    let tag = c.tag().map_err(|error| Rejected { tag: None, error })?;
    match command(&mut c) {
        Ok(command) => Ok((tag, command)),
        Err(error) => Err(Rejected { tag: Some(tag), error }),
    }
}

/// Tag and command word (upper case, `UID` prefix removed), as far as they can be read.
pub(crate) fn peek_word(raw: &[u8]) -> (Option<Tag>, Option<String>) {
    let mut c = Cursor::new(raw);
    let Ok(tag) = c.tag() else { return (None, None) };
    let word = c.sp().and_then(|()| c.word()).ok();
    let word = match word.as_deref() {
        Some("UID") => c.sp().and_then(|()| c.word()).ok(),
        _ => word,
    };
    (Some(tag), word)
}

/// Is the word a command at all? Decides whether a literal of an unknown command is let in.
pub(crate) fn is_command(word: &str) -> bool {
    const WORDS: [&str; 32] = [
        "CAPABILITY",
        "NOOP",
        "LOGOUT",
        "STARTTLS",
        "AUTHENTICATE",
        "LOGIN",
        "ID",
        "ENABLE",
        "SELECT",
        "EXAMINE",
        "CREATE",
        "DELETE",
        "RENAME",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "LIST",
        "LSUB",
        "NAMESPACE",
        "STATUS",
        "APPEND",
        "IDLE",
        "CHECK",
        "CLOSE",
        "UNSELECT",
        "EXPUNGE",
        "SEARCH",
        "FETCH",
        "STORE",
        "COPY",
        "MOVE",
        "UID",
        "XLIST",
    ];
    WORDS.contains(&word)
}

fn command(c: &mut Cursor<'_>) -> Res<Command> {
    c.sp()?;
    let at = c.at();
    let word = c.word()?;
    let command = match word.as_str() {
        "CAPABILITY" => Command::Capability,
        "NOOP" => Command::Noop,
        "LOGOUT" => Command::Logout,
        "STARTTLS" => Command::StartTls,
        "NAMESPACE" => Command::Namespace,
        "IDLE" => Command::Idle,
        "CHECK" => Command::Check,
        "CLOSE" => Command::Close,
        "UNSELECT" => Command::Unselect,
        "EXPUNGE" => Command::Expunge(None),
        "AUTHENTICATE" => authenticate(c)?,
        "LOGIN" => {
            c.sp()?;
            let user = c.astring()?.into_owned();
            c.sp()?;
            Command::Login { user, password: Secret::new(c.astring()?.into_owned()) }
        }
        "ID" => id(c)?,
        "ENABLE" => {
            let mut names = Vec::new();
            c.sp()?;
            names.push(c.atom_text()?.to_ascii_uppercase());
            while c.eat(b' ') {
                names.push(c.atom_text()?.to_ascii_uppercase());
            }
            Command::Enable(names)
        }
        "SELECT" | "EXAMINE" => {
            c.sp()?;
            Command::Select { mailbox: c.mailbox()?, examine: word == "EXAMINE" }
        }
        "CREATE" => {
            c.sp()?;
            Command::Create(c.mailbox()?)
        }
        "DELETE" => {
            c.sp()?;
            Command::Delete(c.mailbox()?)
        }
        "SUBSCRIBE" => {
            c.sp()?;
            Command::Subscribe(c.mailbox()?)
        }
        "UNSUBSCRIBE" => {
            c.sp()?;
            Command::Unsubscribe(c.mailbox()?)
        }
        "RENAME" => {
            c.sp()?;
            let from = c.mailbox()?;
            c.sp()?;
            Command::Rename { from, to: c.mailbox()? }
        }
        "LIST" => mailbox::list(c)?,
        "LSUB" => {
            c.sp()?;
            let reference = c.list_pattern()?;
            c.sp()?;
            Command::Lsub { reference, pattern: c.list_pattern()? }
        }
        "STATUS" => {
            c.sp()?;
            let mailbox = c.mailbox()?;
            c.sp()?;
            Command::Status { mailbox, items: mailbox::status_items(c)? }
        }
        "SEARCH" => search::search(c, false)?,
        "FETCH" => fetch::fetch(c, false)?,
        "STORE" => fetch::store(c, false)?,
        "COPY" => fetch::copy(c, false, false)?,
        "MOVE" => fetch::copy(c, false, true)?,
        "UID" => {
            c.sp()?;
            let at = c.at();
            match c.word()?.as_str() {
                "SEARCH" => search::search(c, true)?,
                "FETCH" => fetch::fetch(c, true)?,
                "STORE" => fetch::store(c, true)?,
                "COPY" => fetch::copy(c, true, false)?,
                "MOVE" => fetch::copy(c, true, true)?,
                "EXPUNGE" => {
                    c.sp()?;
                    Command::Expunge(Some(c.sequence_set()?))
                }
                _ => return Err(c.error_at(at, Problem::UnknownCommand)),
            }
        }
        // An APPEND that comes here had no message literal.
        "APPEND" => {
            append_words(c)?;
            return Err(c.expected("a message literal"));
        }
        _ => return Err(c.error_at(at, Problem::UnknownCommand)),
    };
    c.end()?;
    c.deferred()?;
    Ok(command)
}

/// Reads an APPEND up to and including the literal header that ends `raw` (`… {42+}`), without line end.
/// `Ok(None)`: the command is well formed so far, but this literal is not the message.
///
/// # Errors
/// As [`parse`].
pub fn parse_append_head(raw: &[u8]) -> Result<Option<AppendHead>, Rejected> {
    let mut c = Cursor::new(raw);
    let tag = c.tag().map_err(|error| Rejected { tag: None, error })?;
    append_head(&mut c, &tag).map_err(|error| Rejected { tag: Some(tag), error })
}

fn append_head(c: &mut Cursor<'_>, tag: &Tag) -> Res<Option<AppendHead>> {
    c.sp()?;
    c.word()?;
    let Some((mailbox, flags, date)) = append_words_open(c)? else { return Ok(None) };
    let (size, non_sync) = c.literal_marker()?;
    c.end()?;
    c.deferred()?;
    Ok(Some(AppendHead { tag: tag.clone(), mailbox, flags, date, size, non_sync }))
}

type AppendWords = (MailboxName, Vec<Flag>, Option<DateTime>);

/// `None` when the mailbox name itself is the literal that is still to come.
fn append_words_open(c: &mut Cursor<'_>) -> Res<Option<AppendWords>> {
    let start = c.clone();
    c.sp()?;
    if c.pending_literal() {
        return Ok(None);
    }
    *c = start;
    append_words(c).map(Some)
}

fn append_words(c: &mut Cursor<'_>) -> Res<AppendWords> {
    c.sp()?;
    let mailbox = c.mailbox()?;
    c.sp()?;
    let flags = if c.peek() == Some(b'(') {
        let flags = fetch::flag_list(c)?;
        c.sp()?;
        flags
    } else {
        Vec::new()
    };
    let date = if c.peek() == Some(b'"') {
        let date = c.date_time()?;
        c.sp()?;
        Some(date)
    } else {
        None
    };
    Ok((mailbox, flags, date))
}

fn authenticate(c: &mut Cursor<'_>) -> Res<Command> {
    c.sp()?;
    let mechanism = c.atom_text()?.to_ascii_uppercase();
    let initial = if c.eat(b' ') {
        let at = c.at();
        let text = c.rest();
        let bytes = if text == b"=" {
            Vec::new()
        } else {
            STANDARD.decode(text).map_err(|_| c.error_at(at, Problem::Expected("base64")))?
        };
        Some(Secret::new(bytes))
    } else {
        None
    };
    Ok(Command::Authenticate { mechanism, initial })
}

/// RFC 2971 §3.1; what is too long or too many is cut off, not refused.
fn id(c: &mut Cursor<'_>) -> Res<Command> {
    const PAIRS: usize = 30;
    c.sp()?;
    if c.peek() != Some(b'(') {
        c.nil()?;
        return Ok(Command::Id(Vec::new()));
    }
    c.expect(b'(', "a list of ID fields")?;
    let mut pairs = Vec::new();
    if !c.eat(b')') {
        loop {
            let name = c.string()?.into_owned();
            c.sp()?;
            let value = if c.peek_is_nil() {
                c.nil()?;
                None
            } else {
                Some(c.string()?.into_owned())
            };
            if pairs.len() < PAIRS {
                pairs.push((name, value));
            }
            if c.eat(b')') {
                break;
            }
            c.sp()?;
        }
    }
    Ok(Command::Id(pairs))
}

#[cfg(test)]
mod tests;
