//! What a client can ask for, one type per command.
//!
//! Trust: nobody; made by the parser from what a client sent, so what a type cannot hold was refused there.
//! Never: hold a password or a SASL response other than as a `Secret`.

use std::fmt;

use crate::date::{Date, DateTime};
use crate::name::{ListPattern, MailboxName};
use crate::secret::Secret;
use crate::seq::SeqSet;

/// A command's tag: 1 to 128 ASTRING characters other than `+`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tag(Box<str>);

impl Tag {
    /// Longest tag taken. Nobody needs more; it is echoed in every answer.
    pub const MAX: usize = 128;

    /// Checks the characters.
    #[must_use]
    pub fn new(raw: &[u8]) -> Option<Self> {
        let ok = !raw.is_empty()
            && raw.len() <= Self::MAX
            && raw.iter().all(|b| crate::parse::is_astring_char(*b) && *b != b'+');
        let text = std::str::from_utf8(raw).ok()?;
        ok.then(|| Self(text.into()))
    }

    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Flags the protocol itself defines and clients may store. `\Recent` is not one of them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SystemFlag {
    /// `\Answered`
    Answered,
    /// `\Deleted`
    Deleted,
    /// `\Draft`
    Draft,
    /// `\Flagged`
    Flagged,
    /// `\Seen`
    Seen,
}

impl SystemFlag {
    /// All five, in the order they are shown.
    pub const ALL: [Self; 5] = [Self::Answered, Self::Flagged, Self::Deleted, Self::Seen, Self::Draft];

    /// The name with its backslash.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "\\Answered",
            Self::Deleted => "\\Deleted",
            Self::Draft => "\\Draft",
            Self::Flagged => "\\Flagged",
            Self::Seen => "\\Seen",
        }
    }
}

/// A flag a client may store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Flag {
    /// `\Seen` and its like.
    System(SystemFlag),
    /// A keyword: an atom without backslash.
    Keyword(String),
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System(flag) => flag.as_str(),
            Self::Keyword(word) => word,
        })
    }
}

/// A parsed command.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// CAPABILITY
    Capability,
    /// NOOP
    Noop,
    /// LOGOUT
    Logout,
    /// STARTTLS
    StartTls,
    /// AUTHENTICATE, perhaps with an initial response (RFC 4959), already decoded.
    Authenticate {
        /// In upper case.
        mechanism: String,
        /// `=` is present but empty.
        initial: Option<Secret>,
    },
    /// LOGIN
    Login {
        /// User name as sent.
        user: Vec<u8>,
        /// Password as sent.
        password: Secret,
    },
    /// ID (RFC 2971): the pairs, empty for NIL.
    Id(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    /// ENABLE (RFC 5161), names in upper case.
    Enable(Vec<String>),
    /// SELECT or EXAMINE
    Select {
        /// Which mailbox.
        mailbox: MailboxName,
        /// EXAMINE: read-only.
        examine: bool,
    },
    /// CREATE
    Create(MailboxName),
    /// DELETE
    Delete(MailboxName),
    /// RENAME
    Rename {
        /// Old name.
        from: MailboxName,
        /// New name.
        to: MailboxName,
    },
    /// SUBSCRIBE
    Subscribe(MailboxName),
    /// UNSUBSCRIBE
    Unsubscribe(MailboxName),
    /// LIST, plain or extended (RFC 5258).
    List(ListCommand),
    /// LSUB
    Lsub {
        /// Reference name.
        reference: ListPattern,
        /// Pattern.
        pattern: ListPattern,
    },
    /// NAMESPACE (RFC 2342)
    Namespace,
    /// STATUS
    Status {
        /// Which mailbox.
        mailbox: MailboxName,
        /// What is asked.
        items: Vec<StatusItem>,
    },
    /// IDLE (RFC 2177)
    Idle,
    /// CHECK
    Check,
    /// CLOSE
    Close,
    /// UNSELECT (RFC 3691)
    Unselect,
    /// EXPUNGE, or UID EXPUNGE with a set (RFC 4315).
    Expunge(Option<SeqSet>),
    /// SEARCH
    Search(SearchCommand),
    /// FETCH
    Fetch {
        /// UID FETCH?
        uid: bool,
        /// Which messages.
        set: SeqSet,
        /// What of them, macros expanded.
        items: Vec<FetchItem>,
    },
    /// STORE
    Store(StoreCommand),
    /// COPY, or MOVE (RFC 6851)
    Copy {
        /// UID form?
        uid: bool,
        /// MOVE?
        remove: bool,
        /// Which messages.
        set: SeqSet,
        /// Where to.
        to: MailboxName,
    },
}

/// An APPEND up to its message literal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppendHead {
    /// The command's tag.
    pub tag: Tag,
    /// Where to.
    pub mailbox: MailboxName,
    /// Flags to set.
    pub flags: Vec<Flag>,
    /// INTERNALDATE to set.
    pub date: Option<DateTime>,
    /// Size of the message.
    pub size: u64,
    /// `{n+}`: the client does not wait for us.
    pub non_sync: bool,
}

/// LIST with everything RFC 5258, 5819 and 6154 add.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListCommand {
    /// Selection options.
    pub select: ListSelect,
    /// Reference name.
    pub reference: ListPattern,
    /// One pattern, or several in parentheses.
    pub patterns: Vec<ListPattern>,
    /// Return options.
    pub give: ListReturn,
    /// Was any extended syntax used? The plain form has a few older habits.
    pub extended: bool,
}

/// LIST selection options.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ListSelect {
    /// SUBSCRIBED
    pub subscribed: bool,
    /// REMOTE: there are none here.
    pub remote: bool,
    /// RECURSIVEMATCH
    pub recursive_match: bool,
    /// SPECIAL-USE (RFC 6154)
    pub special_use: bool,
}

/// LIST return options.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListReturn {
    /// SUBSCRIBED
    pub subscribed: bool,
    /// CHILDREN
    pub children: bool,
    /// SPECIAL-USE (RFC 6154)
    pub special_use: bool,
    /// STATUS (RFC 5819)
    pub status: Option<Vec<StatusItem>>,
}

/// What STATUS can be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StatusItem {
    /// MESSAGES
    Messages,
    /// RECENT
    Recent,
    /// UIDNEXT
    UidNext,
    /// UIDVALIDITY
    UidValidity,
    /// UNSEEN
    Unseen,
    /// SIZE (RFC 8438)
    Size,
    /// APPENDLIMIT (RFC 7889)
    AppendLimit,
}

/// One thing to fetch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FetchItem {
    /// ENVELOPE
    Envelope,
    /// FLAGS
    Flags,
    /// INTERNALDATE
    InternalDate,
    /// RFC822.SIZE
    Size,
    /// UID
    Uid,
    /// BODY without brackets
    Body,
    /// BODYSTRUCTURE
    BodyStructure,
    /// BODY[…], BODY.PEEK[…] and the RFC822 forms
    Section {
        /// Which part.
        section: Section,
        /// `<offset.count>`
        partial: Option<Partial>,
        /// Leaves `\Seen` alone.
        peek: bool,
        /// How the answer names it.
        style: SectionStyle,
    },
}

/// A partial fetch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Partial {
    /// First octet wanted.
    pub offset: u32,
    /// How many, never 0.
    pub count: u32,
}

/// How the answer names a section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SectionStyle {
    /// `BODY[…]`
    Body,
    /// `RFC822`
    Rfc822,
    /// `RFC822.HEADER`
    Rfc822Header,
    /// `RFC822.TEXT`
    Rfc822Text,
}

/// A section: path of part numbers, then what of that part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Section {
    /// `1.2` in `BODY[1.2.MIME]`.
    pub path: Vec<u32>,
    /// What of it.
    pub text: SectionText,
}

/// The last word of a section.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SectionText {
    /// Nothing: the whole part.
    Whole,
    /// HEADER
    Header,
    /// HEADER.FIELDS, names as written
    HeaderFields(Vec<Vec<u8>>),
    /// HEADER.FIELDS.NOT
    HeaderFieldsNot(Vec<Vec<u8>>),
    /// TEXT
    Text,
    /// MIME
    Mime,
}

/// SEARCH
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SearchCommand {
    /// UID SEARCH?
    pub uid: bool,
    /// RETURN options (RFC 4731); `None` is the old answer.
    pub give: Option<SearchReturn>,
    /// CHARSET in upper case, if given.
    pub charset: Option<String>,
    /// The condition.
    pub expr: SearchExpr,
}

/// ESEARCH return options.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SearchReturn {
    /// MIN
    pub min: bool,
    /// MAX
    pub max: bool,
    /// ALL
    pub all: bool,
    /// COUNT
    pub count: bool,
}

/// A search condition as a flat list in prefix order, so that neither building, walking nor dropping
/// it needs more stack than the depth cap allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SearchExpr {
    pub(crate) nodes: Vec<(SearchNode, usize)>,
}

/// One node; its operands follow it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SearchNode {
    /// A key.
    Key(SearchKey),
    /// The one operand does not hold.
    Not,
    /// One of the two operands holds.
    Or,
    /// All operands hold.
    And,
}

impl SearchExpr {
    /// Does the condition hold, when `key` decides the single keys? Stops as soon as it is decided.
    pub fn matches<E>(&self, mut key: impl FnMut(&SearchKey) -> Result<bool, E>) -> Result<bool, E> {
        self.eval(0, &mut key)
    }

    /// All keys in the expression.
    pub fn keys(&self) -> impl Iterator<Item = &SearchKey> {
        self.nodes.iter().filter_map(|(node, _)| match node {
            SearchNode::Key(key) => Some(key),
            _ => None,
        })
    }

    /// The nodes in prefix order.
    pub fn nodes(&self) -> impl Iterator<Item = &SearchNode> {
        self.nodes.iter().map(|(node, _)| node)
    }

    // Depth is capped by the parser (`parse::search::MAX_DEPTH`), and a frame is small.
    fn eval<E>(&self, at: usize, key: &mut impl FnMut(&SearchKey) -> Result<bool, E>) -> Result<bool, E> {
        let Some((node, end)) = self.nodes.get(at) else { return Ok(true) };
        if let SearchNode::Key(k) = node {
            return key(k);
        }
        let mut child = at + 1;
        while child < *end {
            let value = self.eval(child, key)?;
            match node {
                SearchNode::Not => return Ok(!value),
                SearchNode::Or if value => return Ok(true),
                SearchNode::And if !value => return Ok(false),
                _ => {}
            }
            child = self.nodes.get(child).map_or(*end, |(_, end)| *end);
        }
        Ok(!matches!(node, SearchNode::Or))
    }
}

/// One search key. Opposites (`UNSEEN`) are written as NOT of the positive key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SearchKey {
    /// ALL
    All,
    /// A message set in the numbers of this session.
    Seq(SeqSet),
    /// UID
    Uid(SeqSet),
    /// ANSWERED, DELETED, DRAFT, FLAGGED, SEEN
    Flag(SystemFlag),
    /// KEYWORD
    Keyword(String),
    /// RECENT
    Recent,
    /// NEW: recent and not seen
    New,
    /// BEFORE
    Before(Date),
    /// ON
    On(Date),
    /// SINCE
    Since(Date),
    /// SENTBEFORE
    SentBefore(Date),
    /// SENTON
    SentOn(Date),
    /// SENTSINCE
    SentSince(Date),
    /// LARGER
    Larger(u64),
    /// SMALLER
    Smaller(u64),
    /// HEADER, and FROM, TO, CC, BCC, SUBJECT
    Header(HeaderMatch),
    /// BODY
    Body(Vec<u8>),
    /// TEXT
    Text(Vec<u8>),
    /// YOUNGER (RFC 5032), seconds
    Younger(u32),
    /// OLDER (RFC 5032), seconds
    Older(u32),
}

/// A field name and the text that must occur in it; empty text: the field exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderMatch {
    /// Field name, lower case.
    pub name: Vec<u8>,
    /// Text.
    pub text: Vec<u8>,
}

/// How STORE changes flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreMode {
    /// FLAGS
    Replace,
    /// +FLAGS
    Add,
    /// -FLAGS
    Remove,
}

/// STORE
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoreCommand {
    /// UID STORE?
    pub uid: bool,
    /// Which messages.
    pub set: SeqSet,
    /// Replace, add or remove.
    pub mode: StoreMode,
    /// .SILENT
    pub silent: bool,
    /// The flags.
    pub flags: Vec<Flag>,
}
