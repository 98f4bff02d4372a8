//! Answers: untagged data, status lines, FETCH items.
//!
//! Trust: nobody sends it bytes; texts may carry what a client or a message said.
//! Never: let text for people hold a line end or anything but printable ASCII.

use std::io::Write as _;

use crate::command::{Flag, Section, SectionStyle, SectionText, StatusItem, Tag};
use crate::date::DateTime;
use crate::name::MailboxName;
use crate::print::{literal_header, put_astring, put_number, put_string};
use crate::structure::{Body, Envelope};

/// OK, NO or BAD.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// Done.
    Ok,
    /// Understood, but not done.
    No,
    /// Not understood.
    Bad,
}

/// Response codes (RFC 3501 §7.1, RFC 5530 and the extensions we have).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Code {
    /// CAPABILITY with the list
    Capability(String),
    /// ALREADYEXISTS
    AlreadyExists,
    /// APPENDUID
    AppendUid {
        /// UIDVALIDITY of the target.
        validity: u32,
        /// The new UID.
        uid: u32,
    },
    /// AUTHENTICATIONFAILED
    AuthenticationFailed,
    /// AUTHORIZATIONFAILED
    AuthorizationFailed,
    /// BADCHARSET with what we know
    BadCharset,
    /// CANNOT
    Cannot,
    /// CLIENTBUG
    ClientBug,
    /// CLOSED (RFC 7162): what follows belongs to the new mailbox
    Closed,
    /// COPYUID
    CopyUid {
        /// UIDVALIDITY of the target.
        validity: u32,
        /// Source UIDs, a set.
        from: String,
        /// New UIDs in the same order.
        to: String,
    },
    /// CONTACTADMIN
    ContactAdmin,
    /// EXPIRED
    Expired,
    /// EXPUNGEISSUED
    ExpungeIssued,
    /// INUSE
    InUse,
    /// LIMIT
    Limit,
    /// NONEXISTENT
    NonExistent,
    /// NOPERM
    NoPerm,
    /// OVERQUOTA
    OverQuota,
    /// PERMANENTFLAGS
    PermanentFlags {
        /// Flags that stay.
        flags: Vec<Flag>,
        /// `\*`: new keywords may be made.
        more: bool,
    },
    /// PRIVACYREQUIRED
    PrivacyRequired,
    /// READ-ONLY
    ReadOnly,
    /// READ-WRITE
    ReadWrite,
    /// SERVERBUG
    ServerBug,
    /// TOOBIG
    TooBig,
    /// TRYCREATE
    TryCreate,
    /// UIDNEXT
    UidNext(u32),
    /// UIDVALIDITY
    UidValidity(u32),
    /// UNAVAILABLE
    Unavailable,
    /// UNSEEN
    Unseen(u32),
}

impl Code {
    fn put(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = match self {
            Self::Capability(list) => write!(out, "CAPABILITY {list}"),
            Self::AlreadyExists => write!(out, "ALREADYEXISTS"),
            Self::AppendUid { validity, uid } => write!(out, "APPENDUID {validity} {uid}"),
            Self::AuthenticationFailed => write!(out, "AUTHENTICATIONFAILED"),
            Self::AuthorizationFailed => write!(out, "AUTHORIZATIONFAILED"),
            Self::BadCharset => write!(out, "BADCHARSET (US-ASCII UTF-8)"),
            Self::Cannot => write!(out, "CANNOT"),
            Self::ClientBug => write!(out, "CLIENTBUG"),
            Self::Closed => write!(out, "CLOSED"),
            Self::CopyUid { validity, from, to } => write!(out, "COPYUID {validity} {from} {to}"),
            Self::ContactAdmin => write!(out, "CONTACTADMIN"),
            Self::Expired => write!(out, "EXPIRED"),
            Self::ExpungeIssued => write!(out, "EXPUNGEISSUED"),
            Self::InUse => write!(out, "INUSE"),
            Self::Limit => write!(out, "LIMIT"),
            Self::NonExistent => write!(out, "NONEXISTENT"),
            Self::NoPerm => write!(out, "NOPERM"),
            Self::OverQuota => write!(out, "OVERQUOTA"),
            Self::PermanentFlags { flags, more } => {
                out.extend_from_slice(b"PERMANENTFLAGS ");
                put_flags(out, flags, if *more { Some("\\*") } else { None });
                Ok(())
            }
            Self::PrivacyRequired => write!(out, "PRIVACYREQUIRED"),
            Self::ReadOnly => write!(out, "READ-ONLY"),
            Self::ReadWrite => write!(out, "READ-WRITE"),
            Self::ServerBug => write!(out, "SERVERBUG"),
            Self::TooBig => write!(out, "TOOBIG"),
            Self::TryCreate => write!(out, "TRYCREATE"),
            Self::UidNext(n) => write!(out, "UIDNEXT {n}"),
            Self::UidValidity(n) => write!(out, "UIDVALIDITY {n}"),
            Self::Unavailable => write!(out, "UNAVAILABLE"),
            Self::Unseen(n) => write!(out, "UNSEEN {n}"),
        };
    }
}

/// What a finished command changes in the session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Transition {
    /// Nothing.
    #[default]
    Stay,
    /// A mailbox is selected now.
    Selected,
    /// None is selected now.
    Unselected,
}

/// The end of a command: its tagged line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Completion {
    /// OK, NO or BAD.
    pub status: Status,
    /// Response code.
    pub code: Option<Code>,
    /// Text for people.
    pub text: String,
    /// What changes.
    pub transition: Transition,
}

impl Completion {
    /// A tagged OK.
    #[must_use]
    pub fn ok(text: impl Into<String>) -> Self {
        Self { status: Status::Ok, code: None, text: text.into(), transition: Transition::Stay }
    }

    /// A tagged NO.
    #[must_use]
    pub fn no(text: impl Into<String>) -> Self {
        Self { status: Status::No, ..Self::ok(text) }
    }

    /// A tagged BAD.
    #[must_use]
    pub fn bad(text: impl Into<String>) -> Self {
        Self { status: Status::Bad, ..Self::ok(text) }
    }

    /// With a response code.
    #[must_use]
    pub fn code(self, code: Code) -> Self {
        Self { code: Some(code), ..self }
    }

    /// With a change of state.
    #[must_use]
    pub fn then(self, transition: Transition) -> Self {
        Self { transition, ..self }
    }

    /// Writes the line.
    pub fn put(&self, out: &mut Vec<u8>, tag: &Tag) {
        put_status(out, tag.as_str(), self.status, self.code.as_ref(), &self.text);
    }
}

pub(crate) fn put_status(out: &mut Vec<u8>, tag: &str, status: Status, code: Option<&Code>, text: &str) {
    let word = match status {
        Status::Ok => "OK",
        Status::No => "NO",
        Status::Bad => "BAD",
    };
    let _ = write!(out, "{tag} {word} ");
    if let Some(code) = code {
        out.push(b'[');
        code.put(out);
        out.extend_from_slice(b"] ");
    }
    put_text(out, text);
    out.extend_from_slice(b"\r\n");
}

/// Text for people is one line of printable ASCII (RFC 3501 §9 TEXT-CHAR).
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|b| if matches!(b, 0x20..=0x7e) { b } else { b'?' }));
}

/// One line of LIST or LSUB.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListEntry {
    /// Attributes, with backslash.
    pub attributes: Vec<&'static str>,
    /// Hierarchy separator.
    pub separator: Option<char>,
    /// Decoded name; empty only in the answer to `LIST "" ""`.
    pub name: String,
    /// `("CHILDINFO" ("SUBSCRIBED"))`: selection options that children meet (RFC 5258 §3.5).
    pub child_info: Vec<&'static str>,
}

/// The answer to STATUS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatusData {
    /// Which mailbox.
    pub mailbox: MailboxName,
    /// Items and their values in the order asked.
    pub items: Vec<(StatusItem, u64)>,
}

/// The answer to SEARCH with RETURN (RFC 4731).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SearchResult {
    /// Tag of the command.
    pub tag: Tag,
    /// UID SEARCH?
    pub uid: bool,
    /// MIN
    pub min: Option<u32>,
    /// MAX
    pub max: Option<u32>,
    /// ALL as a set; absent when nothing matched.
    pub all: Option<String>,
    /// COUNT
    pub count: Option<usize>,
}

/// An untagged answer.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Response {
    /// `* OK`, `* NO`, `* BAD`
    Condition {
        /// Which.
        status: Status,
        /// Response code.
        code: Option<Code>,
        /// Text for people.
        text: String,
    },
    /// `* BYE`
    Bye(Option<Code>, String),
    /// `* FLAGS`
    Flags(Vec<Flag>),
    /// `* n EXISTS`
    Exists(u32),
    /// `* n RECENT`
    Recent(u32),
    /// `* n EXPUNGE`
    Expunge(u32),
    /// `* LIST`
    List(ListEntry),
    /// `* LSUB`
    Lsub(ListEntry),
    /// `* STATUS`
    Status(StatusData),
    /// `* SEARCH`
    Search(Vec<u32>),
    /// `* ESEARCH`
    ESearch(SearchResult),
    /// `* NAMESPACE` with one personal namespace without prefix
    Namespace(char),
}

impl Response {
    /// Writes the line.
    pub fn put(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        match self {
            Self::Condition { status, code, text } => {
                put_status(out, "*", *status, code.as_ref(), text);
                return;
            }
            Self::Bye(code, text) => {
                out.extend_from_slice(b"* BYE ");
                if let Some(code) = code {
                    out.push(b'[');
                    code.put(out);
                    out.extend_from_slice(b"] ");
                }
                put_text(out, text);
            }
            Self::Flags(flags) => {
                out.extend_from_slice(b"* FLAGS ");
                put_flags(out, flags, None);
            }
            Self::Exists(n) => {
                let _ = write!(out, "* {n} EXISTS");
            }
            Self::Recent(n) => {
                let _ = write!(out, "* {n} RECENT");
            }
            Self::Expunge(n) => {
                let _ = write!(out, "* {n} EXPUNGE");
            }
            Self::List(entry) => entry.put(out, "LIST"),
            Self::Lsub(entry) => entry.put(out, "LSUB"),
            Self::Status(data) => {
                out.extend_from_slice(b"* STATUS ");
                put_astring(out, data.mailbox.to_wire().as_bytes());
                out.extend_from_slice(b" (");
                for (i, (item, value)) in data.items.iter().enumerate() {
                    let space = if i > 0 { " " } else { "" };
                    let _ = write!(out, "{space}{} {value}", item.as_str());
                }
                out.push(b')');
            }
            Self::Search(numbers) => {
                out.extend_from_slice(b"* SEARCH");
                for n in numbers {
                    let _ = write!(out, " {n}");
                }
            }
            Self::ESearch(result) => result.put(out),
            Self::Namespace(separator) => {
                let _ = write!(out, "* NAMESPACE ((\"\" \"{}\")) NIL NIL", escaped(*separator));
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn escaped(separator: char) -> String {
    if matches!(separator, '"' | '\\') { format!("\\{separator}") } else { separator.to_string() }
}

impl ListEntry {
    fn put(&self, out: &mut Vec<u8>, word: &str) {
        let _ = write!(out, "* {word} ({})", self.attributes.join(" "));
        let _ = match self.separator {
            Some(separator) => write!(out, " \"{}\" ", escaped(separator)),
            None => write!(out, " NIL "),
        };
        put_astring(out, crate::name::encode_mutf7(&self.name).as_bytes());
        if !self.child_info.is_empty() {
            let _ = write!(out, " (\"CHILDINFO\" (\"{}\"))", self.child_info.join("\" \""));
        }
    }
}

impl StatusItem {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "MESSAGES",
            Self::Recent => "RECENT",
            Self::UidNext => "UIDNEXT",
            Self::UidValidity => "UIDVALIDITY",
            Self::Unseen => "UNSEEN",
            Self::Size => "SIZE",
            Self::AppendLimit => "APPENDLIMIT",
        }
    }
}

impl SearchResult {
    fn put(&self, out: &mut Vec<u8>) {
        let _ = write!(out, "* ESEARCH (TAG \"{}\")", self.tag);
        if self.uid {
            out.extend_from_slice(b" UID");
        }
        if let Some(n) = self.min {
            let _ = write!(out, " MIN {n}");
        }
        if let Some(n) = self.max {
            let _ = write!(out, " MAX {n}");
        }
        if let Some(set) = &self.all {
            let _ = write!(out, " ALL {set}");
        }
        if let Some(n) = self.count {
            let _ = write!(out, " COUNT {n}");
        }
    }
}

fn put_flags(out: &mut Vec<u8>, flags: &[Flag], last: Option<&str>) {
    out.push(b'(');
    let mut first = true;
    for flag in flags {
        if !first {
            out.push(b' ');
        }
        first = false;
        let _ = write!(out, "{flag}");
    }
    if let Some(last) = last {
        if !first {
            out.push(b' ');
        }
        out.extend_from_slice(last.as_bytes());
    }
    out.push(b')');
}

/// Writes one `* n FETCH (…)` item by item; bodies may be streamed in between.
#[derive(Debug)]
pub struct FetchWriter<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
}

impl<'o> FetchWriter<'o> {
    /// Opens the answer for message `number`.
    pub fn start(out: &'o mut Vec<u8>, number: u32) -> Self {
        out.extend_from_slice(b"* ");
        put_number(out, u64::from(number));
        out.extend_from_slice(b" FETCH (");
        Self { out, first: true }
    }

    /// Goes on with an answer whose first items are already written.
    pub fn resume(out: &'o mut Vec<u8>) -> Self {
        Self { out, first: false }
    }

    fn name(&mut self, name: &str) {
        if !self.first {
            self.out.push(b' ');
        }
        self.first = false;
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b' ');
    }

    /// UID
    pub fn uid(&mut self, uid: u32) {
        self.name("UID");
        put_number(self.out, u64::from(uid));
    }

    /// FLAGS, by name.
    pub fn flags<'f>(&mut self, flags: impl IntoIterator<Item = &'f str>, recent: bool) {
        self.name("FLAGS");
        self.out.push(b'(');
        for (i, flag) in flags.into_iter().chain(recent.then_some("\\Recent")).enumerate() {
            if i > 0 {
                self.out.push(b' ');
            }
            self.out.extend_from_slice(flag.as_bytes());
        }
        self.out.push(b')');
    }

    /// INTERNALDATE
    pub fn internal_date(&mut self, date: DateTime) {
        self.name("INTERNALDATE");
        let _ = write!(self.out, "\"{date}\"");
    }

    /// RFC822.SIZE
    pub fn size(&mut self, size: u64) {
        self.name("RFC822.SIZE");
        put_number(self.out, size);
    }

    /// ENVELOPE
    pub fn envelope(&mut self, envelope: &Envelope<'_>) {
        self.name("ENVELOPE");
        envelope.put(self.out);
    }

    /// BODY or BODYSTRUCTURE
    pub fn structure(&mut self, body: &Body<'_>, extended: bool) {
        self.name(if extended { "BODYSTRUCTURE" } else { "BODY" });
        body.put(self.out, extended);
    }

    /// A section's name and literal header; exactly `size` octets must be appended next.
    pub fn section(&mut self, section: &Section, style: SectionStyle, origin: Option<u32>, size: u64) {
        self.section_name(section, style, origin);
        literal_header(self.out, size);
    }

    /// A section that is not there any more.
    pub fn section_nil(&mut self, section: &Section, style: SectionStyle, origin: Option<u32>) {
        self.section_name(section, style, origin);
        self.out.extend_from_slice(b"NIL");
    }

    fn section_name(&mut self, section: &Section, style: SectionStyle, origin: Option<u32>) {
        let mut name = Vec::new();
        match style {
            SectionStyle::Rfc822 => name.extend_from_slice(b"RFC822"),
            SectionStyle::Rfc822Header => name.extend_from_slice(b"RFC822.HEADER"),
            SectionStyle::Rfc822Text => name.extend_from_slice(b"RFC822.TEXT"),
            SectionStyle::Body => {
                name.extend_from_slice(b"BODY");
                put_section(&mut name, section);
                if let Some(origin) = origin {
                    let _ = write!(name, "<{origin}>");
                }
            }
        }
        if !self.first {
            self.out.push(b' ');
        }
        self.first = false;
        self.out.append(&mut name);
        self.out.push(b' ');
    }

    /// Closes the answer.
    pub fn end(self) {
        self.out.extend_from_slice(b")\r\n");
    }
}

/// Writes `[1.2.HEADER.FIELDS (From To)]`.
pub fn put_section(out: &mut Vec<u8>, section: &Section) {
    out.push(b'[');
    for (i, part) in section.path.iter().enumerate() {
        let _ = write!(out, "{}{part}", if i > 0 { "." } else { "" });
    }
    let dot: &[u8] = if section.path.is_empty() || section.text == SectionText::Whole { b"" } else { b"." };
    out.extend_from_slice(dot);
    let fields = |out: &mut Vec<u8>, word: &[u8], names: &[Vec<u8>]| {
        out.extend_from_slice(word);
        out.extend_from_slice(b" (");
        for (i, name) in names.iter().enumerate() {
            if i > 0 {
                out.push(b' ');
            }
            put_astring(out, name);
        }
        out.push(b')');
    };
    match &section.text {
        SectionText::Whole => {}
        SectionText::Header => out.extend_from_slice(b"HEADER"),
        SectionText::Text => out.extend_from_slice(b"TEXT"),
        SectionText::Mime => out.extend_from_slice(b"MIME"),
        SectionText::HeaderFields(names) => fields(out, b"HEADER.FIELDS", names),
        SectionText::HeaderFieldsNot(names) => fields(out, b"HEADER.FIELDS.NOT", names),
    }
    out.push(b']');
}

/// A quoted text for ID answers.
pub(crate) fn put_id(out: &mut Vec<u8>, pairs: &[(&str, &str)]) {
    out.extend_from_slice(b"* ID ");
    if pairs.is_empty() {
        out.extend_from_slice(b"NIL");
    } else {
        out.push(b'(');
        for (i, (name, value)) in pairs.iter().enumerate() {
            if i > 0 {
                out.push(b' ');
            }
            put_string(out, name.as_bytes());
            out.push(b' ');
            put_string(out, value.as_bytes());
        }
        out.push(b')');
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::SystemFlag;

    fn shown(response: &Response) -> String {
        let mut out = Vec::new();
        response.put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines() {
        let tag = Tag::new(b"a1").unwrap();
        for (response, want) in [
            (Response::Exists(3), "* 3 EXISTS\r\n"),
            (Response::Search(vec![]), "* SEARCH\r\n"),
            (Response::Search(vec![2, 5]), "* SEARCH 2 5\r\n"),
            (Response::Namespace('.'), "* NAMESPACE ((\"\" \".\")) NIL NIL\r\n"),
            (
                Response::Flags(vec![Flag::System(SystemFlag::Seen), Flag::Keyword("$Junk".into())]),
                "* FLAGS (\\Seen $Junk)\r\n",
            ),
            (
                Response::List(ListEntry {
                    attributes: vec!["\\HasNoChildren", "\\Sent"],
                    separator: Some('.'),
                    name: "Entwürfe".into(),
                    child_info: Vec::new(),
                }),
                "* LIST (\\HasNoChildren \\Sent) \".\" Entw&APw-rfe\r\n",
            ),
            (
                Response::List(ListEntry {
                    attributes: vec!["\\Noselect"],
                    separator: Some('.'),
                    name: String::new(),
                    child_info: Vec::new(),
                }),
                "* LIST (\\Noselect) \".\" \"\"\r\n",
            ),
            (
                Response::Status(StatusData {
                    mailbox: MailboxName::from_decoded("a b").unwrap(),
                    items: vec![(StatusItem::Messages, 2), (StatusItem::UidNext, 9)],
                }),
                "* STATUS \"a b\" (MESSAGES 2 UIDNEXT 9)\r\n",
            ),
            (
                Response::ESearch(SearchResult {
                    tag,
                    uid: true,
                    min: Some(2),
                    max: None,
                    all: Some("2,4:5".into()),
                    count: Some(3),
                }),
                "* ESEARCH (TAG \"a1\") UID MIN 2 ALL 2,4:5 COUNT 3\r\n",
            ),
            (
                Response::Condition {
                    status: Status::Ok,
                    code: Some(Code::PermanentFlags {
                        flags: vec![Flag::System(SystemFlag::Deleted)],
                        more: true,
                    }),
                    text: "Flags permitted.".into(),
                },
                "* OK [PERMANENTFLAGS (\\Deleted \\*)] Flags permitted.\r\n",
            ),
            (Response::Bye(Some(Code::Unavailable), "gone\r\nx".into()), "* BYE [UNAVAILABLE] gone??x\r\n"),
        ] {
            assert_eq!(shown(&response), want);
        }
    }

    #[test]
    fn fetch_items() {
        let mut out = Vec::new();
        let mut w = FetchWriter::start(&mut out, 4);
        w.uid(7);
        w.flags(["\\Seen"], true);
        w.internal_date(DateTime::utc(0));
        let section = Section {
            path: vec![1, 2],
            text: SectionText::HeaderFields(vec![b"From".to_vec(), b"a b".to_vec()]),
        };
        w.section(&section, SectionStyle::Body, Some(5), 2);
        out.extend_from_slice(b"xx");
        FetchWriter::resume(&mut out).size(9);
        FetchWriter::resume(&mut out).end();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "* 4 FETCH (UID 7 FLAGS (\\Seen \\Recent) INTERNALDATE \"01-Jan-1970 00:00:00 +0000\" \
             BODY[1.2.HEADER.FIELDS (From \"a b\")]<5> {2}\r\nxx RFC822.SIZE 9)\r\n"
        );
    }
}
