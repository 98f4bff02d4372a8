//! One pass over the message: the tree of parts with offsets, line and octet counts (RFC 2046).
//!
//! Trust: every byte is a stranger's; `Limits` cap what they can make of the tree.
//! Never: refuse a message: beyond the caps, parts are opaque.

use std::ops::Range;

use crate::header::{fields, is_blank, line_end, unfold};
use crate::params::{ContentType, Disposition, content_languages};

/// Caps on what a hostile message can make of the tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Nesting of multiparts and messages; deeper parts are opaque.
    pub depth: usize,
    /// Number of parts in all; further ones are opaque.
    pub parts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { depth: 100, parts: 10_000 }
    }
}

/// Length of a region as it leaves the server.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Size {
    /// Bytes with every bare LF counted as CRLF.
    pub octets: u64,
    /// Number of newlines; an unfinished last line does not count.
    pub lines: u64,
}

/// A parsed message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// The message itself as a part: its header is the message header.
    pub root: Part,
    /// All of it, header included.
    pub size: Size,
}

/// One node of the MIME tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Header with its blank line.
    pub header: Range<usize>,
    /// What follows the header, without the line end that belongs to the next boundary.
    pub body: Range<usize>,
    /// Size of the header.
    pub header_size: Size,
    /// Size of the body.
    pub body_size: Size,
    /// Type and parameters; the default of the place when the field is missing or broken.
    pub content_type: ContentType,
    /// `Content-Transfer-Encoding` as written; `7bit` when missing.
    pub encoding: Vec<u8>,
    /// `Content-ID`.
    pub id: Option<Vec<u8>>,
    /// `Content-Description`, unfolded.
    pub description: Option<Vec<u8>>,
    /// `Content-MD5`.
    pub md5: Option<Vec<u8>>,
    /// `Content-Disposition`.
    pub disposition: Option<Disposition>,
    /// `Content-Language`.
    pub languages: Vec<Vec<u8>>,
    /// `Content-Location`.
    pub location: Option<Vec<u8>>,
    /// What the body is.
    pub content: Body,
}

/// Structure below a part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// No structure.
    Leaf,
    /// `multipart/*`; never empty.
    Multipart(Vec<Part>),
    /// `message/rfc822` or `message/global`.
    Message(Box<Part>),
}

/// Parses with the default [`Limits`].
pub fn parse(bytes: &[u8]) -> Message {
    parse_with(bytes, Limits::default())
}

/// Parses `bytes`, which may use LF, CRLF or both.
pub fn parse_with(bytes: &[u8], limits: Limits) -> Message {
    let mut scanner = Scanner { bytes, at: Mark::default(), boundaries: Vec::new(), limits, parts: 0 };
    let (root, _) = scanner.part(Place::Top, 0);
    let size = scanner.at.size_since(Mark::default());
    Message { root, size }
}

/// A line start together with what has been counted before it.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    pos: usize,
    lines: u64,
    bare_lf: u64,
    /// Bytes of the line end just before `pos`: 0, 1 or 2.
    line_end: usize,
}

impl Mark {
    /// The same place with the line end before it left out, but not before `floor`.
    fn without_line_end(self, floor: Mark) -> Mark {
        if self.line_end == 0 || self.pos - self.line_end < floor.pos {
            return self;
        }
        Mark {
            pos: self.pos - self.line_end,
            lines: self.lines - 1,
            bare_lf: self.bare_lf - u64::from(self.line_end == 1),
            line_end: 0,
        }
    }

    fn size_since(self, start: Mark) -> Size {
        Size {
            octets: (self.pos - start.pos) as u64 + (self.bare_lf - start.bare_lf),
            lines: self.lines - start.lines,
        }
    }
}

/// Why a region ended.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Eof,
    /// A delimiter line of `boundaries[level]`; the line is consumed.
    Boundary {
        level: usize,
        last: bool,
        /// Start of the delimiter line.
        line: Mark,
    },
}

/// Where a part stands decides its default type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Top,
    Digest,
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: Mark,
    boundaries: Vec<Vec<u8>>,
    limits: Limits,
    parts: usize,
}

impl Scanner<'_> {
    /// Consumes the next line; `false` at the end.
    fn line(&mut self) -> Option<Range<usize>> {
        let start = self.at.pos;
        if start >= self.bytes.len() {
            return None;
        }
        let end = line_end(self.bytes, start);
        let line = &self.bytes[start..end];
        self.at.pos = end;
        self.at.line_end = 0;
        if line.ends_with(b"\r\n") {
            self.at.lines += 1;
            self.at.line_end = 2;
        } else if line.ends_with(b"\n") {
            self.at.lines += 1;
            self.at.bare_lf += 1;
            self.at.line_end = 1;
        }
        Some(start..end)
    }

    /// Is this line a delimiter of an open multipart? Exact lines win, innermost first; otherwise the
    /// boundary at the beginning of the line is enough (RFC 2046 §5.1.1).
    fn delimiter(&self, line: &[u8]) -> Option<(usize, bool)> {
        let text = line.strip_prefix(b"--")?;
        if self.boundaries.is_empty() {
            return None;
        }
        let text = text.trim_ascii_end();
        let mut loose: Option<(usize, bool)> = None;
        for (level, boundary) in self.boundaries.iter().enumerate().rev() {
            let Some(tail) = text.strip_prefix(boundary.as_slice()) else { continue };
            match tail {
                b"" => return Some((level, false)),
                b"--" => return Some((level, true)),
                _ if loose.is_none_or(|(best, _)| self.boundaries[best].len() < boundary.len()) => {
                    loose = Some((level, tail.starts_with(b"--")));
                }
                _ => {}
            }
        }
        loose
    }

    /// Passes over lines up to the next delimiter.
    fn skip(&mut self) -> Stop {
        loop {
            let before = self.at;
            let Some(line) = self.line() else { return Stop::Eof };
            if let Some((level, last)) = self.delimiter(&self.bytes[line]) {
                return Stop::Boundary { level, last, line: before };
            }
        }
    }

    /// The header block: ends behind a blank line, at a delimiter, or at the end.
    fn header(&mut self) -> Option<Stop> {
        loop {
            let before = self.at;
            let Some(line) = self.line() else { return Some(Stop::Eof) };
            if is_blank(&self.bytes[line.clone()]) {
                return None;
            }
            if let Some((level, last)) = self.delimiter(&self.bytes[line]) {
                return Some(Stop::Boundary { level, last, line: before });
            }
        }
    }

    /// One part from its header on. The stop tells the caller whose delimiter ended it.
    fn part(&mut self, place: Place, depth: usize) -> (Part, Stop) {
        self.parts += 1;
        let start = self.at;
        let ended = self.header();
        let body_start = match ended {
            None | Some(Stop::Eof) => self.at,
            Some(Stop::Boundary { line, .. }) => line.without_line_end(start),
        };
        let mut part = self.described(start, body_start, place);
        let stop = match ended {
            Some(stop) => stop,
            None => self.body(&mut part, depth),
        };
        let end = match stop {
            Stop::Eof => self.at,
            Stop::Boundary { line, .. } => line.without_line_end(body_start),
        };
        part.body = body_start.pos..end.pos.max(body_start.pos);
        part.body_size = if end.pos < body_start.pos { Size::default() } else { end.size_since(body_start) };
        if part.content_type.is_kind(b"multipart") && matches!(part.content, Body::Leaf) {
            part.content = Body::Multipart(vec![empty_child(end.pos)]);
        }
        (part, stop)
    }

    fn body(&mut self, part: &mut Part, depth: usize) -> Stop {
        let nested = depth < self.limits.depth && self.parts < self.limits.parts;
        let ctype = &part.content_type;
        if ctype.is_kind(b"multipart") {
            let boundary = ctype.param(b"boundary").filter(|b| !b.is_empty()).map(<[u8]>::to_vec);
            match boundary {
                Some(boundary) if nested => {
                    let place = if ctype.subtype.eq_ignore_ascii_case(b"digest") {
                        Place::Digest
                    } else {
                        Place::Top
                    };
                    let (children, stop) = self.multipart(boundary, place, depth);
                    if !children.is_empty() {
                        part.content = Body::Multipart(children);
                    }
                    return stop;
                }
                Some(_) => part.content_type = ContentType::new(b"application", b"octet-stream"),
                None => {}
            }
        } else if ctype.is(b"message", b"rfc822") || ctype.is(b"message", b"global") {
            if nested {
                let (inner, stop) = self.part(Place::Top, depth + 1);
                part.content = Body::Message(Box::new(inner));
                return stop;
            }
            part.content_type = ContentType::new(b"application", b"octet-stream");
        }
        self.skip()
    }

    fn multipart(&mut self, boundary: Vec<u8>, place: Place, depth: usize) -> (Vec<Part>, Stop) {
        let level = self.boundaries.len();
        self.boundaries.push(boundary);
        let mut children = Vec::new();
        let mut stop = self.skip();
        loop {
            match stop {
                Stop::Boundary { level: at, last, .. } if at == level => {
                    if last || self.parts >= self.limits.parts {
                        // The epilogue, or what is beyond the cap: up to an outer delimiter.
                        self.boundaries.truncate(level);
                        return (children, self.skip());
                    }
                    let (child, next) = self.part(place, depth + 1);
                    children.push(child);
                    stop = next;
                }
                outer => {
                    self.boundaries.truncate(level);
                    return (children, outer);
                }
            }
        }
    }

    /// A part with everything its header says and no body yet.
    fn described(&self, start: Mark, body_start: Mark, place: Place) -> Part {
        let header = start.pos..body_start.pos;
        let mut part = Part {
            body: body_start.pos..body_start.pos,
            header_size: body_start.size_since(start),
            body_size: Size::default(),
            content_type: match place {
                Place::Top => ContentType::text_plain(),
                Place::Digest => ContentType::new(b"message", b"rfc822"),
            },
            encoding: b"7bit".to_vec(),
            id: None,
            description: None,
            md5: None,
            disposition: None,
            languages: Vec::new(),
            location: None,
            content: Body::Leaf,
            header,
        };
        let block = &self.bytes[part.header.clone()];
        let mut typed = false;
        for field in fields(block) {
            if field.name.len() < 8 || !field.name[..8].eq_ignore_ascii_case(b"content-") {
                continue;
            }
            let text = || Some(unfold(field.value).into_owned()).filter(|v| !v.is_empty());
            match field.name[8..].to_ascii_lowercase().as_slice() {
                b"type" if !typed => {
                    if let Some(found) = ContentType::parse(field.value) {
                        part.content_type = found;
                        typed = true;
                    }
                }
                b"transfer-encoding" => {
                    if let Some(value) = Disposition::parse(field.value) {
                        part.encoding = value.kind;
                    }
                }
                b"id" => part.id = text(),
                b"description" => part.description = text(),
                b"md5" => part.md5 = text(),
                b"disposition" => part.disposition = Disposition::parse(field.value),
                b"language" => part.languages = content_languages(field.value),
                b"location" => part.location = text(),
                _ => {}
            }
        }
        part
    }
}

/// The child IMAP needs below a multipart that has none.
fn empty_child(at: usize) -> Part {
    Part {
        header: at..at,
        body: at..at,
        header_size: Size::default(),
        body_size: Size::default(),
        content_type: ContentType::text_plain(),
        encoding: b"7bit".to_vec(),
        id: None,
        description: None,
        md5: None,
        disposition: None,
        languages: Vec::new(),
        location: None,
        content: Body::Leaf,
    }
}
