//! Stored bytes as they go over the wire: every line ends in CRLF, NUL becomes 0x80.
//!
//! A reader announces an exact size first and then delivers exactly that many bytes, whatever happens to
//! the file in between.
//!
//! Trust: stored bytes are strangers' messages.
//! Never: deliver another number of bytes than was announced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes read from the file at once.
const STEP: usize = 64 << 10;

/// Converts to CRLF, piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Crlf {
    after_cr: bool,
}

impl Crlf {
    /// Appends the wire form of `bytes`.
    pub(crate) fn convert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(at);
            let cr = line.last().map_or(self.after_cr, |b| *b == b'\r');
            out.extend_from_slice(line);
            out.extend_from_slice(if cr { b"\n" } else { b"\r\n" });
            self.after_cr = false;
            rest = after.get(1..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
        if let Some(last) = rest.last() {
            self.after_cr = *last == b'\r';
        }
        // Literals exclude NUL (RFC 3501 §9), and some clients hang on it.
        if memchr::memchr(0, bytes).is_some() {
            for byte in out.iter_mut().skip(start).filter(|b| **b == 0) {
                *byte = 0x80;
            }
        }
    }
}

/// Size of `bytes` on the wire.
pub(crate) fn wire_size(bytes: &[u8]) -> u64 {
    let before = |at: usize| at.checked_sub(1).and_then(|i| bytes.get(i));
    let bare = memchr::memchr_iter(b'\n', bytes).filter(|at| before(*at) != Some(&b'\r')).count();
    (bytes.len() + bare) as u64
}

/// The wire form of `bytes`.
pub(crate) fn to_wire(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    Crlf::default().convert(bytes, &mut out);
    out
}

/// A place in a file and in its wire form: where a later partial fetch may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// In the file.
    pub(crate) disk: u64,
    /// In the wire form of the region.
    pub(crate) wire: u64,
    state: Crlf,
}

impl Place {
    /// The start of a region.
    pub(crate) fn start(disk: u64) -> Self {
        Self { disk, wire: 0, state: Crlf::default() }
    }
}

/// Delivers part of the wire form of a region of a file.
#[derive(Debug)]
pub(crate) struct Reader {
    file: Arc<File>,
    at: Place,
    /// End of the region in the file.
    end: u64,
    /// Wire bytes still to be left out.
    skip: u64,
    /// Wire bytes still to be delivered.
    left: u64,
    /// Stored bytes are wire bytes: no conversion, and any offset can be jumped to.
    same: bool,
}

impl Reader {
    /// `count` wire bytes of the region `start..end` from wire offset `offset` on. `from` is a place in that
    /// region at or before `offset`; `same`: the region has no bare LF.
    pub(crate) fn new(file: Arc<File>, from: Place, end: u64, offset: u64, count: u64, same: bool) -> Self {
        let mut at = from;
        let mut skip = offset.saturating_sub(from.wire);
        if same {
            at.disk += skip;
            at.wire += skip;
            skip = 0;
        }
        Self { file, at, end, skip, left: count, same }
    }

    /// How much is still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Where the delivered bytes end, once all are delivered.
    pub(crate) fn place(&self) -> Option<Place> {
        (self.left == 0 && self.skip == 0).then_some(self.at)
    }

    /// Appends up to about `most` bytes. A file that ends early is filled up with spaces: the size is announced.
    pub(crate) fn deliver(&mut self, out: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let mut space = vec![0u8; STEP.min(most.max(512))];
        let goal = out.len() + most;
        while self.left > 0 && out.len() < goal {
            let want = self.end.saturating_sub(self.at.disk).min(space.len() as u64);
            // Never more than can be delivered, so that the place stays exact.
            let want = want.min(self.skip.saturating_add(self.left));
            let want = usize::try_from(want).unwrap_or(space.len());
            let got = match space.get_mut(..want) {
                Some(part) if want > 0 => read_at(&self.file, part, self.at.disk)?,
                _ => 0,
            };
            if got == 0 {
                tracing::warn!(missing = self.left, "message is shorter than its noted size");
                let fill = usize::try_from(self.left).unwrap_or(usize::MAX).min(goal - out.len());
                out.resize(out.len() + fill, b' ');
                self.left -= fill as u64;
                self.skip = 0;
                continue;
            }
            self.take(space.get(..got).unwrap_or_default(), out);
        }
        Ok(())
    }

    fn take(&mut self, stored: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        let mut converted = Vec::new();
        let wire: &[u8] = if self.same {
            if memchr::memchr(0, stored).is_some() {
                converted.extend(stored.iter().map(|b| if *b == 0 { 0x80 } else { *b }));
                &converted
            } else {
                stored
            }
        } else {
            self.at.state.convert(stored, &mut converted);
            &converted
        };
        self.at.disk += stored.len() as u64;
        self.at.wire += wire.len() as u64;
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(wire.len());
        self.skip -= skipped as u64;
        let rest = wire.get(skipped..).unwrap_or_default();
        let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
        out.extend_from_slice(rest.get(..taken).unwrap_or_default());
        self.left -= taken as u64;
        if taken < rest.len() {
            // The conversion made more than was wanted: the next fetch starts over instead of here.
            self.skip = 1;
        }
        debug_assert_eq!(out.len() - before, taken);
    }
}

fn read_at(file: &File, space: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(space, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads `start..end` of a file; shorter when the file is.
pub(crate) fn read_range(file: &File, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut bytes = vec![0u8; size];
    let mut filled = 0;
    while let Some(space) = bytes.get_mut(filled..).filter(|space| !space.is_empty()) {
        match read_at(file, space, start + filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn conversion_is_the_same_in_every_split() {
        let stored = b"a\nb\r\nc\r\r\nd\r\n\n\r\ne\rf\0g\n";
        let want = b"a\r\nb\r\nc\r\r\nd\r\n\r\n\r\ne\rf\x80g\r\n";
        for size in 1..=stored.len() {
            let mut out = Vec::new();
            let mut crlf = Crlf::default();
            for piece in stored.chunks(size) {
                crlf.convert(piece, &mut out);
            }
            assert_eq!(out, want, "{size}");
        }
        assert_eq!(wire_size(stored), want.len() as u64);
        assert_eq!(wire_size(b"\n"), 2);
        assert_eq!(to_wire(b""), b"");
    }

    #[test]
    fn every_partial_is_a_slice_of_the_whole() {
        let stored = b"Subject: x\n\nline\r\nmore\n\nend\r";
        let whole = to_wire(stored);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(stored).unwrap();
        let file = Arc::new(file);
        for offset in 0..=whole.len() {
            for count in 0..=(whole.len() - offset) {
                let mut reader = Reader::new(
                    Arc::clone(&file),
                    Place::start(0),
                    stored.len() as u64,
                    offset as u64,
                    count as u64,
                    false,
                );
                let mut out = Vec::new();
                while reader.left() > 0 {
                    reader.deliver(&mut out, 3).unwrap();
                }
                assert_eq!(out, &whole[offset..offset + count]);
                // Going on from the place gives the same bytes.
                if let Some(place) = reader.place() {
                    let rest = whole.len() as u64 - place.wire;
                    let mut next =
                        Reader::new(Arc::clone(&file), place, stored.len() as u64, place.wire, rest, false);
                    let mut tail = Vec::new();
                    while next.left() > 0 {
                        next.deliver(&mut tail, 1000).unwrap();
                    }
                    assert_eq!(tail, &whole[usize::try_from(place.wire).unwrap()..]);
                }
            }
        }
    }

    #[test]
    fn a_file_that_shrank_is_filled_up() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let mut reader = Reader::new(Arc::new(file), Place::start(0), 10, 0, 10, true);
        let mut out = Vec::new();
        reader.deliver(&mut out, 100).unwrap();
        assert_eq!(out, b"abc       ");
    }
}
