//! Berkeley DB files, read without the library: hash and btree, versions 8 to 10.
//!
//! Purpose:   hand out every key with its value, from the bytes of a closed file.
//! Format:    `db_page.h` of Berkeley DB 5.3: a metadata page, then pages of items, long items in chains of overflow pages.
//! How:       all pages are walked in file order; the hash function and the tree above the leaves are of no use to
//!            somebody who wants everything. Pages that are free say so.
//! Trust:     none; every offset is checked, an item has at most [`MAX_ITEM`] bytes, and all together at most a few
//!            times those of the file, so chains that share pages cost nothing.
//! Never:     follows a page twice within an item, reads encrypted or checksummed files, or duplicates.

use super::Error;

/// Longest key or value. A sasldb key is two names, a value one password.
pub(super) const MAX_ITEM: usize = 16 * 1024;

/// Page header: LSN, number, two links, counts, level, type.
const HEADER: usize = 26;
/// Metadata shared by all kinds of files.
const META: usize = 72;

/// What a page says it is.
mod page {
    pub(super) const INVALID: u8 = 0;
    pub(super) const HASH_UNSORTED: u8 = 2;
    pub(super) const BTREE_INTERNAL: u8 = 3;
    pub(super) const BTREE_LEAF: u8 = 5;
    pub(super) const OVERFLOW: u8 = 7;
    pub(super) const HASH_META: u8 = 8;
    pub(super) const BTREE_META: u8 = 9;
    pub(super) const HASH: u8 = 13;
}

/// The kinds of files that hold keys with values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hash,
    Btree,
}

/// A file.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    bytes: &'a [u8],
    kind: Kind,
    page_size: usize,
    /// Made on a machine with the other byte order than most of today.
    big_endian: bool,
}

/// A key or value as it stands on a page.
enum Item<'a> {
    Here(&'a [u8]),
    Elsewhere { page: u32, length: usize },
    Deleted,
}

impl<'a> File<'a> {
    /// Reads the metadata.
    pub(super) fn open(bytes: &'a [u8]) -> Result<File<'a>, Error> {
        let magic = number(bytes, 12, false).ok_or(Error::Foreign)?;
        let (kind, big_endian) = match magic {
            0x0006_1561 => (Kind::Hash, false),
            0x6115_0600 => (Kind::Hash, true),
            0x0005_3162 => (Kind::Btree, false),
            0x6231_0500 => (Kind::Btree, true),
            _ => return Err(Error::Foreign),
        };
        let version = number(bytes, 16, big_endian).unwrap_or_default();
        if !(8..=10).contains(&version) {
            return Err(Error::Version(version));
        }
        let page_size = number(bytes, 20, big_endian).unwrap_or_default() as usize;
        if !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) || bytes.len() < page_size {
            return Err(Error::Damaged("the page size makes no sense"));
        }
        let (cipher, type_, flags) = match bytes.get(24..META) {
            Some([cipher, type_, flags, ..]) => (*cipher, *type_, *flags),
            _ => return Err(Error::Foreign),
        };
        if cipher != 0 || flags & 1 != 0 {
            return Err(Error::Unsupported("encryption or checksums"));
        }
        let file = File { bytes, kind, page_size, big_endian };
        let (expected, duplicates_and_subdatabases) = match kind {
            Kind::Hash => (page::HASH_META, 0x01 | 0x02 | 0x04),
            Kind::Btree => (page::BTREE_META, 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20),
        };
        if type_ != expected {
            return Err(Error::Damaged("the first page is none of metadata"));
        }
        if file.number(48).unwrap_or_default() & duplicates_and_subdatabases != 0 {
            return Err(Error::Unsupported("duplicates, record numbers or several databases in one file"));
        }
        Ok(file)
    }

    /// Hands every key with its value to `take`.
    pub(super) fn each(&self, mut take: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let mut budget = self.bytes.len().saturating_mul(4).saturating_add(1 << 20);
        let (mut key, mut value) = (zeroize::Zeroizing::new(Vec::new()), zeroize::Zeroizing::new(Vec::new()));
        for (number, page) in self.bytes.chunks(self.page_size).enumerate().skip(1) {
            if page.len() < self.page_size {
                return Err(Error::Damaged("the last page is cut short"));
            }
            if !self.holds_items(page)? {
                continue;
            }
            if self.u32_of(page, 8).map(|number| number as usize) != Some(number) {
                return Err(Error::Damaged("a page stands in the wrong place"));
            }
            let entries = usize::from(self.u16_of(page, 20).unwrap_or_default());
            if entries % 2 != 0 {
                return Err(Error::Damaged("a key without a value"));
            }
            for at in (0..entries).step_by(2) {
                let there = self.item(page, at, entries, &mut key)?;
                let whole = self.item(page, at + 1, entries, &mut value)?;
                budget = budget
                    .checked_sub(key.len() + value.len())
                    .ok_or(Error::Damaged("more data than the file can hold"))?;
                if there && whole {
                    take(&key, &value);
                }
            }
        }
        Ok(())
    }

    fn holds_items(&self, page: &[u8]) -> Result<bool, Error> {
        match (self.kind, page.get(25).copied().unwrap_or_default()) {
            (Kind::Hash, page::HASH | page::HASH_UNSORTED) | (Kind::Btree, page::BTREE_LEAF) => Ok(true),
            (Kind::Btree, page::BTREE_INTERNAL) | (_, page::INVALID | page::OVERFLOW) => Ok(false),
            _ => Err(Error::Damaged("a page of an unknown kind")),
        }
    }

    /// Copies an item; false: it was deleted.
    fn item(&self, page: &[u8], at: usize, entries: usize, out: &mut Vec<u8>) -> Result<bool, Error> {
        out.clear();
        let item = match self.kind {
            Kind::Hash => self.hash_item(page, at, entries),
            Kind::Btree => self.btree_item(page, at, entries),
        };
        match item? {
            Item::Here(bytes) if bytes.len() <= MAX_ITEM => {
                out.extend_from_slice(bytes);
                Ok(true)
            }
            Item::Here(_) => Err(Error::Damaged("an item is too long")),
            Item::Elsewhere { page, length } => self.chain(page, length, out).map(|()| true),
            Item::Deleted => Ok(false),
        }
    }

    /// The offset of an item, behind the header and the table of offsets.
    fn offset(&self, page: &[u8], at: usize, entries: usize) -> Result<usize, Error> {
        let offset = self.u16_of(page, HEADER + 2 * at).map(usize::from);
        offset
            .filter(|offset| *offset >= HEADER + 2 * entries && *offset < page.len())
            .ok_or(Error::Damaged("an item outside its page"))
    }

    /// Items fill a hash page from its end: each ends where the one before it begins.
    fn hash_item<'p>(&self, page: &'p [u8], at: usize, entries: usize) -> Result<Item<'p>, Error> {
        let start = self.offset(page, at, entries)?;
        let end = match at.checked_sub(1) {
            Some(before) => self.offset(page, before, entries)?,
            None => page.len(),
        };
        match page.get(start..end) {
            Some([1, data @ ..]) => Ok(Item::Here(data)),
            Some(item @ [3, ..]) => self.elsewhere(item),
            Some([2 | 4, ..]) => Err(Error::Unsupported("duplicates")),
            _ => Err(Error::Damaged("an item of an unknown kind")),
        }
    }

    /// Items of a leaf carry their length.
    fn btree_item<'p>(&self, page: &'p [u8], at: usize, entries: usize) -> Result<Item<'p>, Error> {
        const DELETED: u8 = 0x80;
        let start = self.offset(page, at, entries)?;
        let item = page.get(start..).unwrap_or_default();
        let Some(kind) = item.get(2) else { return Err(Error::Damaged("an item outside its page")) };
        match kind & !DELETED {
            _ if kind & DELETED != 0 => Ok(Item::Deleted),
            1 => {
                let length = usize::from(self.u16_of(item, 0).unwrap_or_default());
                let data = item.get(3..3 + length);
                data.map(Item::Here).ok_or(Error::Damaged("an item outside its page"))
            }
            3 => self.elsewhere(item),
            2 => Err(Error::Unsupported("duplicates")),
            _ => Err(Error::Damaged("an item of an unknown kind")),
        }
    }

    fn elsewhere<'p>(&self, item: &[u8]) -> Result<Item<'p>, Error> {
        match (self.u32_of(item, 4), self.u32_of(item, 8)) {
            (Some(page), Some(length)) if length as usize <= MAX_ITEM => {
                Ok(Item::Elsewhere { page, length: length as usize })
            }
            (Some(_), Some(_)) => Err(Error::Damaged("an item is too long")),
            _ => Err(Error::Damaged("an item outside its page")),
        }
    }

    /// Collects an item from its overflow pages. Each gives at least a byte, so a circle ends by itself.
    fn chain(&self, first: u32, length: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        const BROKEN: Error = Error::Damaged("an item's pages do not fit together");
        let mut at = first as usize;
        while out.len() < length {
            let start = at.checked_mul(self.page_size).filter(|start| *start != 0).ok_or(BROKEN)?;
            let page = start
                .checked_add(self.page_size)
                .and_then(|end| self.bytes.get(start..end))
                .filter(|page| page.get(25) == Some(&page::OVERFLOW))
                .ok_or(BROKEN)?;
            let count = usize::from(self.u16_of(page, 22).unwrap_or_default());
            let data = page.get(HEADER..HEADER + count).filter(|data| !data.is_empty()).ok_or(BROKEN)?;
            if out.len() + data.len() > length {
                return Err(BROKEN);
            }
            out.extend_from_slice(data);
            at = self.u32_of(page, 16).unwrap_or_default() as usize;
        }
        Ok(())
    }

    fn number(&self, at: usize) -> Option<u32> {
        number(self.bytes, at, self.big_endian)
    }

    fn u32_of(&self, bytes: &[u8], at: usize) -> Option<u32> {
        number(bytes, at, self.big_endian)
    }

    fn u16_of(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let raw = *bytes.get(at..)?.first_chunk::<2>()?;
        Some(if self.big_endian { u16::from_be_bytes(raw) } else { u16::from_le_bytes(raw) })
    }
}

fn number(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let raw = *bytes.get(at..)?.first_chunk::<4>()?;
    Some(if big_endian { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) })
}
