//! The store's errors in the protocol's words, and conversions between the two vocabularies.
//!
//! Trust: nobody sends it bytes.
//! Never: tell a client a path of this machine.

use imap::{Code, Completion, FetchWriter, Flag, Response, SeqNum, SeqSet, Status, SystemFlag, Transition};
use maildir::{Flags, Keyword, KeywordNames, Message, SetRange, Uid};

/// The tagged line for an error of the store.
pub(super) fn refused(error: &maildir::Error) -> Completion {
    use maildir::Error as E;
    let (code, text) = match error {
        E::NoSuchFolder(_) => (Some(Code::NonExistent), "Mailbox doesn't exist"),
        E::AlreadyExists(_) => (Some(Code::AlreadyExists), "Mailbox already exists"),
        E::BadName(_) => (Some(Code::Cannot), "Mailbox name is not allowed"),
        E::Cannot(why) => (Some(Code::Cannot), *why),
        E::Locked(_) => (Some(Code::InUse), "Mailbox is locked, try again later"),
        E::NoSpace(_) | E::OverQuota => (Some(Code::OverQuota), "Not enough space"),
        E::Permission(_) => (Some(Code::NoPerm), "Permission denied"),
        E::ReadOnly => (Some(Code::ReadOnly), "Mailbox is read-only"),
        E::Gone(_) => (Some(Code::NonExistent), "Mailbox was deleted or renumbered, select it again"),
        E::Expunged(_) => (Some(Code::ExpungeIssued), "Some of the messages are gone"),
        E::Busy(_) => (Some(Code::InUse), "Message is being changed by others, try again later"),
        E::TooManyKeywords => (Some(Code::Limit), "Too many keywords in this mailbox"),
        E::BadKeyword => return Completion::bad("Invalid keyword"),
        E::BadSequence => return Completion::bad("Message number out of range"),
        E::EmptyMessage => (Some(Code::Cannot), "Can't save a zero byte message"),
        _ => (Some(Code::Unavailable), "Internal error, try again later"),
    };
    if error.is_temporary() {
        tracing::warn!(%error, "mailbox operation failed");
    }
    let completion = Completion::no(text);
    let completion = if let Some(code) = code { completion.code(code) } else { completion };
    if matches!(error, E::Gone(_)) { completion.then(Transition::Unselected) } else { completion }
}

/// The same for a target that the client could create (RFC 3501 §6.3.11, §6.4.7).
pub(super) fn refused_target(error: &maildir::Error) -> Completion {
    match error {
        maildir::Error::NoSuchFolder(_) => Completion::no("Mailbox doesn't exist").code(Code::TryCreate),
        error => refused(error),
    }
}

pub(super) fn ok_line(out: &mut Vec<u8>, code: Code, text: &str) {
    Response::Condition { status: Status::Ok, code: Some(code), text: text.to_owned() }.put(out);
}

/// A sequence set as the store takes it.
pub(super) fn ranges(set: &SeqSet) -> Vec<SetRange> {
    let end = |n: SeqNum| match n {
        SeqNum::Number(n) => Some(n.get()),
        SeqNum::Star => None,
    };
    set.ranges().map(|(from, to)| SetRange { from: end(from), to: end(to) }).collect()
}

pub(super) fn store_flag(flag: SystemFlag) -> Flags {
    match flag {
        SystemFlag::Answered => Flags::ANSWERED,
        SystemFlag::Deleted => Flags::DELETED,
        SystemFlag::Draft => Flags::DRAFT,
        SystemFlag::Flagged => Flags::FLAGGED,
        SystemFlag::Seen => Flags::SEEN,
    }
}

/// Flags of a command in the store's types.
pub(super) fn store_flags(flags: &[Flag]) -> Result<(Flags, Vec<Keyword>), maildir::Error> {
    let mut system = Flags::NONE;
    let mut keywords = Vec::new();
    for flag in flags {
        match flag {
            Flag::System(flag) => system = system | store_flag(*flag),
            Flag::Keyword(word) => keywords.push(Keyword::try_from(word.as_str())?),
        }
    }
    Ok((system, keywords))
}

/// Writes the flags of a message as the client sees them.
pub(super) fn put_message_flags(writer: &mut FetchWriter<'_>, message: &Message, names: &KeywordNames) {
    // Most messages have no keyword, and then nothing is allocated.
    let keywords: Vec<String> = names.names_of(message.keywords).collect();
    let set = |flag: &SystemFlag| message.flags.contains(store_flag(*flag));
    let system = SystemFlag::ALL.into_iter().filter(set).map(|flag| -> &str { flag.as_str() });
    writer.flags(system.chain(keywords.iter().map(String::as_str)), message.recent);
}

pub(super) fn numbers(uids: &[Uid]) -> Vec<u32> {
    uids.iter().map(|uid| uid.get()).collect()
}
