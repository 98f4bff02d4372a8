//! IMAP without I/O: types, parser, printer and the server's session.
//!
//! Purpose:   turn what a client sends into typed commands, and typed answers into bytes.
//! Standard:  RFC 3501, and RFC 9051 where it only clarifies; extensions are named where they are met.
//! Trust:     every byte comes from strangers; the parser works on slices, bounded and without recursion.
//! Never:     touch a socket, a clock or a file; advertise a capability before all of it works.

#![forbid(unsafe_code)]

mod command;
mod date;
mod name;
mod parse;
mod print;
mod response;
mod secret;
mod seq;
mod session;
mod structure;

pub use command::{
    AppendHead, Command, FetchItem, ListCommand, ListReturn, ListSelect, Partial, SearchCommand,
    SearchReturn, Section, SectionStyle, SectionText, StatusItem, StoreCommand, StoreMode, Tag,
};
pub use command::{Flag, HeaderMatch, SearchExpr, SearchKey, SearchNode, SystemFlag};
pub use date::{Date, DateTime};
pub use name::{BadName, ListPattern, MailboxName, decode_mutf7, encode_mutf7};
pub use parse::{Problem, Rejected, Syntax, parse, parse_append_head};
pub use print::{literal_header, put_astring, put_nstring, put_string};
pub use response::{
    Code, Completion, FetchWriter, ListEntry, Response, SearchResult, Status, StatusData, Transition,
    put_section,
};
pub use secret::Secret;
pub use seq::{Ranges, SeqNum, SeqSet, compress};
pub use session::{Config, Limits, LoginFailure, LoginFailureCode, Outcome, Session, Step, TlsState};
pub use structure::{Address, Body, BodyKind, Disposition, Envelope, Fields, MultiPart, SinglePart};
