//! The store's side of an IMAP session: everything here blocks on the file system and on nothing else.
//!
//! Trust: the client has logged in, and reaches this one account.
//! Never: wait for the client; open a path that a client wrote.

use std::time::{Duration, SystemTime};

use imap::{
    AppendHead, Code, Command, Completion, Flag, Response, StatusData, StatusItem, StoreCommand, StoreMode,
    SystemFlag, Transition, compress,
};
use maildir::{
    Change, Delivery, FlagChange, FlagOp, FolderName, Message, Mode, Numbers, SpecialUse, Uid, View,
};

use super::fetch::{Fetch, Progress, Resume};
use super::reply::{numbers, ok_line, put_message_flags, ranges, refused, refused_target, store_flags};
use super::search;
use crate::account::Account;
use crate::budget::Budget;

/// An account as one session uses it.
pub(super) struct Mail {
    pub(super) account: Account,
    pub(super) budget: Budget,
    pub(super) view: Option<View>,
    /// Keywords the client has been told of.
    keywords: Vec<String>,
    /// Where the last partial fetch ended.
    pub(super) resume: Option<Resume>,
    /// Largest message APPEND takes, for STATUS.
    pub(super) append_limit: u64,
}

/// A command being run, in turns of bounded output.
pub(super) enum Work {
    Command(Box<Command>, imap::Tag),
    Fetch(Box<Fetch>),
}

/// What came of a turn.
pub(super) enum Turn {
    /// Write what there is, then call again.
    More(Work),
    Done(Completion),
    /// A literal was announced that cannot be completed: only closing the connection tells the client.
    Broken,
}

impl Work {
    /// Runs until done, or until there is much to write.
    pub(super) fn turn(self, mail: &mut Mail, out: &mut Vec<u8>) -> Turn {
        match self {
            Self::Command(command, tag) => match *command {
                Command::Fetch { uid, set, items } => match Fetch::start(mail, uid, &set, items, out) {
                    Ok(fetch) => Self::Fetch(Box::new(fetch)).turn(mail, out),
                    Err(completion) => Turn::Done(completion),
                },
                command => Turn::Done(mail.run(command, &tag, out)),
            },
            Self::Fetch(mut fetch) => match fetch.turn(mail, out) {
                Progress::More => Turn::More(Self::Fetch(fetch)),
                // RFC 3501 §7.4.1: no EXPUNGE while message numbers are in use; the UID form may.
                Progress::Done(completion) => Turn::Done(mail.sync(fetch.uid, out, completion)),
                Progress::Broken => Turn::Broken,
            },
        }
    }
}

/// A command that is done stays done when the look for changes fails: what is new will be told later.
fn after_refresh(result: Result<(), maildir::Error>, completion: Completion) -> Completion {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot look for changes");
    }
    completion
}

impl Mail {
    /// The folder of a name from the wire.
    pub(super) fn folder(&self, name: &imap::MailboxName) -> Result<FolderName, maildir::Error> {
        Ok(FolderName::from_utf8(name.as_str(), self.account.separator)?)
    }

    pub(super) fn new(account: Account, budget: Budget, append_limit: u64) -> Self {
        Self { account, budget, view: None, keywords: Vec::new(), resume: None, append_limit }
    }

    fn run(&mut self, command: Command, tag: &imap::Tag, out: &mut Vec<u8>) -> Completion {
        match command {
            Command::Noop | Command::Check => self.sync(true, out, Completion::ok("Completed.")),
            Command::Select { mailbox, examine } => {
                if self.view.take().is_some() {
                    // RFC 9051 §6.3.2: what follows belongs to the new mailbox.
                    ok_line(out, Code::Closed, "Previous mailbox closed.");
                }
                match self.folder(&mailbox).and_then(|name| self.select(&name, examine, out)) {
                    Ok(completion) => completion,
                    Err(error) => refused(&error).then(Transition::Unselected),
                }
            }
            Command::Create(name) => self
                .simple(out, "Create completed.", |mail| mail.account.maildir.create(&mail.folder(&name)?)),
            Command::Delete(name) => self
                .simple(out, "Delete completed.", |mail| mail.account.maildir.delete(&mail.folder(&name)?)),
            Command::Rename { from, to } => self.simple(out, "Rename completed.", |mail| {
                mail.account.maildir.rename(&mail.folder(&from)?, &mail.folder(&to)?)
            }),
            Command::Subscribe(name) => self.simple(out, "Subscribe completed.", |mail| {
                let name = mail.folder(&name)?;
                if !mail.account.maildir.exists(&name) {
                    return Err(maildir::Error::NoSuchFolder(name.to_string()));
                }
                mail.account.maildir.subscribe(&name)
            }),
            Command::Unsubscribe(name) => self.simple(out, "Unsubscribe completed.", |mail| {
                mail.account.maildir.unsubscribe(&mail.folder(&name)?)
            }),
            Command::List(list) => match self.list(&list, out) {
                Ok(()) => self.sync(true, out, Completion::ok("List completed.")),
                Err(error) => refused(&error),
            },
            Command::Lsub { reference, pattern } => match self.lsub(&reference, &pattern, out) {
                Ok(()) => self.sync(true, out, Completion::ok("Lsub completed.")),
                Err(error) => refused(&error),
            },
            Command::Status { mailbox, items } => {
                match self.folder(&mailbox).and_then(|name| self.status(&name, &items)) {
                    Ok(values) => {
                        Response::Status(StatusData { mailbox, items: values }).put(out);
                        self.sync(true, out, Completion::ok("Status completed."))
                    }
                    Err(error) => refused(&error),
                }
            }
            Command::Close => {
                let result = match self.view.as_mut() {
                    Some(view) if view.mode() == Mode::ReadWrite => view.expunge(None).map(drop),
                    _ => Ok(()),
                };
                self.view = None;
                match result {
                    // CLOSE always leaves the mailbox; what could not be removed stays marked.
                    Ok(()) | Err(maildir::Error::Gone(_)) => Completion::ok("Close completed."),
                    Err(error) => refused(&error),
                }
                .then(Transition::Unselected)
            }
            Command::Unselect => {
                self.view = None;
                Completion::ok("Unselect completed.").then(Transition::Unselected)
            }
            Command::Expunge(set) => self.expunge(set.as_ref(), out),
            Command::Search(command) => {
                let uid = command.uid;
                match search::run(self, &command, tag, out) {
                    Ok(completion) => self.sync(uid, out, completion),
                    Err(error) => refused(&error),
                }
            }
            Command::Store(command) => self.store(&command, out),
            Command::Copy { uid, remove, set, to } => self.copy(uid, remove, &set, &to, out),
            _ => Completion::bad("Command is not possible now"),
        }
    }

    /// A command that changes folders and says nothing but OK or NO.
    fn simple(
        &mut self,
        out: &mut Vec<u8>,
        text: &str,
        work: impl FnOnce(&mut Self) -> Result<(), maildir::Error>,
    ) -> Completion {
        if let Err(error) = work(self) {
            return refused(&error);
        }
        match self.refresh(true, out) {
            // The folder deleted or renamed was the selected one: the command is done, the selection has ended.
            Err(maildir::Error::Gone(_)) => {
                self.view = None;
                ok_line(out, Code::Closed, "Selected mailbox is gone.");
                Completion::ok(text).then(Transition::Unselected)
            }
            result => after_refresh(result, Completion::ok(text)),
        }
    }

    /// Tells what changed in the selected mailbox, then gives the completion back (or an error instead).
    pub(super) fn sync(&mut self, expunges: bool, out: &mut Vec<u8>, completion: Completion) -> Completion {
        match self.refresh(expunges, out) {
            Err(error @ maildir::Error::Gone(_)) => {
                self.view = None;
                refused(&error).then(Transition::Unselected)
            }
            result => after_refresh(result, completion),
        }
    }

    /// Writes the untagged answers for everything that changed.
    pub(super) fn refresh(&mut self, expunges: bool, out: &mut Vec<u8>) -> Result<(), maildir::Error> {
        let Some(view) = self.view.as_mut() else { return Ok(()) };
        let changes = view.refresh(expunges)?;
        if changes.is_empty() {
            return Ok(());
        }
        self.announce_keywords(out);
        for change in changes {
            match change {
                Change::Keywords => {}
                Change::Flags(message) => self.put_flags(&message, false, out),
                Change::Expunged { seq, .. } => Response::Expunge(seq).put(out),
                Change::Exists(n) => Response::Exists(n).put(out),
                Change::Recent(n) => Response::Recent(n).put(out),
            }
        }
        Ok(())
    }

    /// New keywords are named before a message shows them.
    pub(super) fn announce_keywords(&mut self, out: &mut Vec<u8>) {
        let Some(view) = &self.view else { return };
        let names = view.mailbox().keywords();
        if names.all().eq(self.keywords.iter().map(String::as_str)) {
            return;
        }
        self.keywords = names.all().map(str::to_owned).collect();
        self.put_keywords(out);
    }

    fn put_keywords(&self, out: &mut Vec<u8>) {
        let Some(view) = &self.view else { return };
        let mut flags: Vec<Flag> = SystemFlag::ALL.into_iter().map(Flag::System).collect();
        flags.extend(self.keywords.iter().cloned().map(Flag::Keyword));
        Response::Flags(flags.clone()).put(out);
        let read_only = view.mode() == Mode::ReadOnly;
        if read_only {
            flags.clear();
        }
        let more = !read_only && view.mailbox().keywords().has_room();
        let text = if read_only { "Read-only mailbox." } else { "Flags permitted." };
        ok_line(out, Code::PermanentFlags { flags, more }, text);
    }

    fn put_flags(&self, message: &Message, uid: bool, out: &mut Vec<u8>) {
        let Some(view) = &self.view else { return };
        let names = view.mailbox().keywords();
        let mut writer = imap::FetchWriter::start(out, message.seq);
        if uid {
            writer.uid(message.uid.get());
        }
        put_message_flags(&mut writer, message, &names);
        writer.end();
    }

    /// RFC 3501 §6.3.1: everything a client needs before it asks.
    fn select(
        &mut self,
        name: &FolderName,
        examine: bool,
        out: &mut Vec<u8>,
    ) -> Result<Completion, maildir::Error> {
        let mailbox = self.account.store.mailbox(self.account.maildir.root(), name)?;
        let view = mailbox.view(if examine { Mode::ReadOnly } else { Mode::ReadWrite })?;
        self.keywords = mailbox.keywords().all().map(str::to_owned).collect();
        let (exists, recent, unseen) = (view.exists(), view.recent(), view.first_unseen());
        self.view = Some(view);
        self.resume = None;
        self.put_keywords(out);
        Response::Exists(exists).put(out);
        Response::Recent(recent).put(out);
        if let Some(first) = unseen {
            ok_line(out, Code::Unseen(first), "First unseen.");
        }
        ok_line(out, Code::UidValidity(mailbox.uid_validity().get()), "UIDs valid");
        ok_line(out, Code::UidNext(mailbox.uid_next()), "Predicted next UID");
        let (code, text) = if examine {
            (Code::ReadOnly, "Examine completed.")
        } else {
            (Code::ReadWrite, "Select completed.")
        };
        Ok(Completion::ok(text).code(code).then(Transition::Selected))
    }

    /// The values of STATUS in the order asked.
    pub(super) fn status(
        &self,
        name: &FolderName,
        items: &[StatusItem],
    ) -> Result<Vec<(StatusItem, u64)>, maildir::Error> {
        let mailbox = self.account.store.mailbox(self.account.maildir.root(), name)?;
        let status = mailbox.status(items.contains(&StatusItem::Size))?;
        let value = |item: &StatusItem| match item {
            StatusItem::Messages => u64::from(status.messages),
            StatusItem::Recent => u64::from(status.recent),
            StatusItem::UidNext => u64::from(status.uid_next),
            StatusItem::UidValidity => u64::from(status.uid_validity.get()),
            StatusItem::Unseen => u64::from(status.unseen),
            StatusItem::Size => status.size.unwrap_or(0),
            StatusItem::AppendLimit => self.append_limit,
        };
        Ok(items.iter().map(|item| (*item, value(item))).collect())
    }

    /// The messages of a set, in the numbers the command uses.
    pub(super) fn pairs(&self, set: &imap::SeqSet, uid: bool) -> Result<Vec<(u32, Uid)>, maildir::Error> {
        let Some(view) = &self.view else { return Ok(Vec::new()) };
        if view.exists() == 0 {
            // `1:*` in an empty mailbox names nothing; a plain number is an error as ever.
            let beyond =
                !uid && set.ranges().any(|(a, b)| a != imap::SeqNum::Star && b != imap::SeqNum::Star);
            return if beyond { Err(maildir::Error::BadSequence) } else { Ok(Vec::new()) };
        }
        view.resolve(&ranges(set), if uid { Numbers::Uid } else { Numbers::Sequence })
    }

    fn store(&mut self, command: &StoreCommand, out: &mut Vec<u8>) -> Completion {
        let result = self.pairs(&command.set, command.uid).and_then(|pairs| {
            let (flags, keywords) = store_flags(&command.flags)?;
            let op = match command.mode {
                StoreMode::Add => FlagOp::Add,
                StoreMode::Remove => FlagOp::Remove,
                StoreMode::Replace => FlagOp::Replace,
            };
            let uids: Vec<Uid> = pairs.iter().map(|(_, uid)| *uid).collect();
            match self.view.as_mut() {
                Some(view) if !uids.is_empty() => {
                    let stored = view.store(&uids, &FlagChange { op, flags, keywords })?;
                    Ok((stored, uids.len()))
                }
                _ => Ok((Vec::new(), 0)),
            }
        });
        let (stored, asked) = match result {
            Ok(done) => done,
            Err(error) => return refused(&error),
        };
        self.announce_keywords(out);
        if !command.silent {
            for message in &stored {
                self.put_flags(message, command.uid, out);
            }
        }
        let completion = if stored.len() < asked {
            Completion::ok("Some messages were expunged already.").code(Code::ExpungeIssued)
        } else {
            Completion::ok("Store completed.")
        };
        self.sync(command.uid, out, completion)
    }

    fn expunge(&mut self, set: Option<&imap::SeqSet>, out: &mut Vec<u8>) -> Completion {
        let only = match set.map(|set| self.pairs(set, true)).transpose() {
            Ok(pairs) => pairs.map(|pairs| pairs.into_iter().map(|(_, uid)| uid).collect::<Vec<_>>()),
            Err(error) => return refused(&error),
        };
        let Some(view) = self.view.as_mut() else { return Completion::bad("No mailbox is selected") };
        match view.expunge(only.as_deref()) {
            Ok(_) => self.sync(true, out, Completion::ok("Expunge completed.")),
            Err(error) => refused(&error),
        }
    }

    fn copy(
        &mut self,
        uid: bool,
        remove: bool,
        set: &imap::SeqSet,
        to: &imap::MailboxName,
        out: &mut Vec<u8>,
    ) -> Completion {
        let pairs = match self.pairs(set, uid) {
            Ok(pairs) => pairs,
            Err(error) => return refused(&error),
        };
        let target =
            self.folder(to).and_then(|name| self.account.store.mailbox(self.account.maildir.root(), &name));
        let target = match target {
            Ok(target) => target,
            Err(error) => return refused_target(&error),
        };
        let text = if remove { "Move completed." } else { "Copy completed." };
        if pairs.is_empty() {
            return self.sync(true, out, Completion::ok(text));
        }
        let uids: Vec<Uid> = pairs.iter().map(|(_, uid)| *uid).collect();
        let Some(view) = self.view.as_mut() else { return Completion::bad("No mailbox is selected") };
        let copied = if remove { view.move_to(&uids, &target) } else { view.copy_to(&uids, &target) };
        let copied = match copied {
            Ok(copied) => copied,
            Err(error) => return refused_target(&error),
        };
        let (from, new): (Vec<Uid>, Vec<Uid>) = copied.uids.iter().copied().unzip();
        let code = Code::CopyUid {
            validity: copied.uid_validity.get(),
            from: compress(&numbers(&from)),
            to: compress(&numbers(&new)),
        };
        let completion = Completion::ok(text);
        if from.is_empty() {
            return self.sync(true, out, completion.code(Code::ExpungeIssued));
        }
        if remove {
            // RFC 6851 §4.3: COPYUID comes before the EXPUNGEs, which come before the tagged OK.
            ok_line(out, code, "Moved UIDs.");
            self.sync(true, out, completion)
        } else {
            self.sync(true, out, completion.code(code))
        }
    }

    /// The start of an APPEND; refusing here spares the client the message.
    pub(super) fn append(&self, head: &AppendHead) -> Result<Append, Completion> {
        let open = || {
            let name = self.folder(&head.mailbox)?;
            let mailbox = self.account.store.mailbox(self.account.maildir.root(), &name)?;
            let (flags, keywords) = store_flags(&head.flags)?;
            let mut delivery = mailbox.delivery()?;
            delivery.set_flags(flags, keywords);
            if let Some(date) = head.date {
                delivery.set_date(system_time(date.unix));
            }
            Ok(Append { mailbox, delivery, nul: false })
        };
        open().map_err(|error| refused_target(&error))
    }

    /// The end of an APPEND.
    pub(super) fn append_end(&mut self, append: Append, out: &mut Vec<u8>) -> Completion {
        if append.nul {
            return Completion::no("Message contains NUL").code(Code::Cannot);
        }
        let result = append.delivery.finish().and_then(|staged| append.mailbox.append(vec![staged]));
        match result {
            Ok(uids) => {
                let completion = Completion::ok("Append completed.");
                let validity = append.mailbox.uid_validity().get();
                let completion = match uids.first() {
                    Some(uid) => completion.code(Code::AppendUid { validity, uid: uid.get() }),
                    None => completion,
                };
                self.sync(true, out, completion)
            }
            Err(error) => refused_target(&error),
        }
    }
}

/// A message on its way in.
pub(super) struct Append {
    mailbox: std::sync::Arc<maildir::Mailbox>,
    delivery: Delivery,
    nul: bool,
}

impl Append {
    /// More of the message.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), maildir::Error> {
        // RFC 3501 §9: CHAR8 excludes NUL. The rest is still read, so that the dialogue stays in step.
        if memchr::memchr(0, bytes).is_some() {
            self.nul = true;
        }
        if self.nul { Ok(()) } else { self.delivery.write(bytes) }
    }
}

fn system_time(unix: i64) -> SystemTime {
    let seconds = Duration::from_secs(unix.unsigned_abs());
    let moment = if unix >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    };
    moment.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Seconds since 1970.
pub(super) fn unix_time(moment: SystemTime) -> i64 {
    match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            // A moment before 1970 belongs to the second that began before it.
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -seconds - i64::from(before.subsec_nanos() > 0)
        }
    }
}

/// The attribute of a special folder.
pub(super) fn attribute(special: SpecialUse) -> &'static str {
    match special {
        SpecialUse::All => "\\All",
        SpecialUse::Archive => "\\Archive",
        SpecialUse::Drafts => "\\Drafts",
        SpecialUse::Flagged => "\\Flagged",
        SpecialUse::Junk => "\\Junk",
        SpecialUse::Sent => "\\Sent",
        SpecialUse::Trash => "\\Trash",
    }
}
