//! Offset scanner for messages: headers, the MIME tree, envelope fields and section look-up.
//!
//! Purpose: answer IMAP's `ENVELOPE`, `BODYSTRUCTURE` and `BODY[…]` from the stored bytes, without
//!          decoding or copying bodies.
//! Trust:   every byte comes from strangers. Any input gives a tree; depth and number of parts are
//!          capped ([`Limits`]), running time is linear in the message.
//! Sizes:   offsets are positions in the stored bytes; `octets` count every bare LF as CRLF, which is
//!          how the bytes leave the server.
//! Never:   panic, recurse deeper than the cap, or decode text (encoded-words stay as they are).
#![forbid(unsafe_code)]

mod address;
mod envelope;
mod header;
mod params;
mod section;
mod tree;

pub use address::{Address, parse_addresses};
pub use envelope::{Envelope, envelope};
pub use header::{Field, Fields, fields, header_end, select_fields, unfold};
pub use params::{ContentType, Disposition, Param, content_languages};
pub use section::Selector;
pub use tree::{Body, Limits, Message, Part, Size, parse, parse_with};
