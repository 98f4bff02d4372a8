//! One line of a passwd-file.
//!
//! Trust: bytes of a file that other programs write.
//! Never: fail on any of them.

use memchr::memchr;

use crate::{Error, KeyKind, Scheme, Stored, can_serve};

/// Name of the extra field that holds a further stored string, such as SCRAM keys beside a hash:
/// `scram={SCRAM-SHA-256}4096,…`. It may come several times and is never handed to a client.
pub const KEY_FIELD: &str = "scram";

/// Number of columns before the extra fields.
const FIXED_COLUMNS: usize = 7;

/// A parsed line. Borrows the text.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    columns: [Option<&'a [u8]>; FIXED_COLUMNS],
    extra: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Splits a line without its LF. `None` for comments and empty lines.
    pub fn parse(line: &'a [u8]) -> Option<Entry<'a>> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if matches!(line.first(), None | Some(b'#' | b':')) {
            return None;
        }
        let mut columns = [None; FIXED_COLUMNS];
        let mut rest = Some(line);
        for column in &mut columns {
            let Some(text) = rest else { break };
            let (field, tail) = cut(text, b':');
            *column = Some(field);
            rest = tail;
        }
        // Whatever follows the seventh colon belongs to the extra fields, colons included.
        Some(Entry { columns, extra: rest.unwrap_or_default() })
    }

    /// The look-up key.
    pub fn name(&self) -> &'a [u8] {
        self.column(0)
    }

    /// Column two as it stands; empty when it is not there.
    pub fn password(&self) -> &'a [u8] {
        self.column(1)
    }

    /// Column two split into scheme and data.
    ///
    /// # Errors
    /// [`Error::UnknownScheme`].
    pub fn stored(&self, default: Scheme) -> Result<Stored<'a>, Error> {
        Stored::parse_column(self.password(), default)
    }

    /// The first stored string of this line that can serve a mechanism living on `kind`: column two, then the
    /// [`KEY_FIELD`]s.
    pub fn stored_for(&self, kind: KeyKind, default: Scheme) -> Option<Stored<'a>> {
        self.stored(default)
            .into_iter()
            .chain(self.keys().flatten())
            .find(|stored| can_serve(stored.scheme(), kind))
    }

    /// The stored strings in [`KEY_FIELD`]s.
    pub fn keys(&self) -> impl Iterator<Item = Result<Stored<'a>, Error>> + use<'a> {
        self.extra_fields()
            .filter(|(name, _)| *name == KEY_FIELD.as_bytes())
            .map(|(_, value)| Stored::parse(value.unwrap_or_default(), Scheme::Crypt))
    }

    /// Whether the line can answer userdb look-ups: it has a gid column (which may be empty).
    pub fn has_userdb(&self) -> bool {
        self.columns.get(3).is_some_and(Option::is_some)
    }

    /// The uid column, a number or a name, possibly empty.
    pub fn uid(&self) -> &'a [u8] {
        self.column(2)
    }

    /// The gid column, a number or a name, possibly empty.
    pub fn gid(&self) -> &'a [u8] {
        self.column(3)
    }

    /// The home column as written; `None` when empty.
    pub fn home(&self) -> Option<&'a [u8]> {
        Some(self.column(5)).filter(|home| !home.is_empty())
    }

    /// All extra fields in order: name, and value where there is a `=`. Values are not expanded.
    pub fn extra_fields(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        self.extra.split(|&b| b == b' ').filter(|word| !word.is_empty()).map(|word| cut(word, b'='))
    }

    /// Extra fields for the passdb reply: those without `userdb_`, [`KEY_FIELD`] left out.
    pub fn passdb_fields(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        self.extra_fields().filter(|(name, _)| !name.starts_with(b"userdb_") && *name != KEY_FIELD.as_bytes())
    }

    /// Extra fields for the userdb reply: those with `userdb_`, the prefix removed.
    pub fn userdb_fields(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        self.extra_fields().filter_map(|(name, value)| Some((name.strip_prefix(b"userdb_")?, value)))
    }

    fn column(&self, at: usize) -> &'a [u8] {
        self.columns.get(at).copied().flatten().unwrap_or_default()
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({:?}, …)", String::from_utf8_lossy(self.name()))
    }
}

/// Up to the separator, and what follows it where there is one.
pub(super) fn cut(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match memchr(separator, text) {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> Entry<'_> {
        Entry::parse(line.as_bytes()).unwrap()
    }

    fn fields<'a>(
        fields: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Vec<(&'a str, Option<&'a str>)> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        fields.map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn comments_and_quirks() {
        for line in ["", "#x:y", ":x", "\r"] {
            assert!(Entry::parse(line.as_bytes()).is_none(), "{line:?}");
        }
        assert_eq!(entry(" #x:y").name(), b" #x");
        assert_eq!(entry("b1: pw ").password(), b" pw ");
        assert_eq!(entry("b1:pw\r").password(), b"pw");
        assert_eq!(entry("b1").password(), b"");
        assert!(!entry("b1:x").has_userdb());
        assert!(!entry("b1:x:1000").has_userdb());
        assert!(entry("b1:x:1000:").has_userdb());
    }

    #[test]
    fn full_line() {
        let jo = entry(
            "jo:{SSHA256}x:1000:mail::/srv/mail/jo:: allow_nets=192.168.0.0/24,local  nodelay userdb_quota_rule=*:storage=1G k=a:b:c q=\"v 2\"",
        );
        assert_eq!((jo.uid(), jo.gid(), jo.home()), (&b"1000"[..], &b"mail"[..], Some(&b"/srv/mail/jo"[..])));
        assert_eq!(jo.stored(Scheme::Crypt).unwrap().scheme(), Scheme::Ssha256);
        assert_eq!(
            fields(jo.passdb_fields()),
            [
                ("allow_nets", Some("192.168.0.0/24,local")),
                ("nodelay", None),
                ("k", Some("a:b:c")),
                ("q", Some("\"v")),
                ("2\"", None)
            ]
        );
        assert_eq!(fields(jo.userdb_fields()), [("quota_rule", Some("*:storage=1G"))]);
    }

    #[test]
    fn keys_beside_the_hash() {
        let jo = entry("jo:{ARGON2ID}$x::::::scram={SCRAM-SHA-256}4096,a scram={SCRAM-SHA-1}4096,b nodelay");
        let scheme = |kind| jo.stored_for(kind, Scheme::Crypt).map(|stored| stored.scheme());
        assert_eq!(scheme(KeyKind::ScramSha256), Some(Scheme::ScramSha256));
        assert_eq!(scheme(KeyKind::ScramSha1), Some(Scheme::ScramSha1));
        assert_eq!(scheme(KeyKind::CramMd5), None);
        assert_eq!(fields(jo.passdb_fields()), [("nodelay", None)]);
        assert_eq!(format!("{jo:?}"), "Entry(\"jo\", …)");
    }
}
