//! Names of message files: `base[:2,flags[,extra]]`.
//!
//! Format: reference note "maildir-imap-pop3", sections 2 and 4.5.
//! Trust:  names come from directories that others write to; anything may stand in them.
//! Never:  change the base of a delivered file, drop a flag letter or extra text that is not understood.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::flags::{Flags, KeywordSet};

/// What stands before the first `:` of a file name: the name the uidlist knows a message by.
///
/// Not empty, at most 255 bytes, no `/`, `:`, NUL or line end, no leading `.`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct BaseName(Arc<[u8]>);

impl BaseName {
    /// The base of a whole file name (or of a uidlist entry, where older writers left the flags).
    pub(crate) fn of(file: &[u8]) -> Option<Self> {
        let base = base_of(file);
        let bad = |b: &u8| matches!(b, b'/' | 0 | b'\r' | b'\n');
        if base.is_empty() || base.len() > 255 || base.first() == Some(&b'.') || base.iter().any(bad) {
            return None;
        }
        Some(Self(base.into()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What stands before the first `:`, unchecked.
pub(crate) fn base_of(file: &[u8]) -> &[u8] {
    let end = memchr::memchr(b':', file).unwrap_or(file.len());
    file.get(..end).unwrap_or(file)
}

impl Borrow<[u8]> for BaseName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for BaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Flags and keywords a file name carries. The last `:` counts; without `2,` behind it there are none.
pub(crate) fn parse_info(file: &[u8]) -> (Flags, KeywordSet) {
    let mut flags = Flags::NONE;
    let mut keywords = KeywordSet::NONE;
    for letter in split_info(file).1 {
        if let Some(flag) = Flags::from_letter(*letter) {
            flags = flags | flag;
        } else if let Some(keyword) = KeywordSet::from_letter(*letter) {
            keywords = keywords | keyword;
        }
    }
    (flags, keywords)
}

/// (everything before `:2,`, flag letters, `,extra` or nothing)
fn split_info(file: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let Some(colon) = memchr::memrchr(b':', file) else { return (file, b"", b"") };
    let (stem, info) = file.split_at(colon);
    let Some(info) = info.strip_prefix(b":2,") else { return (file, b"", b"") };
    let end = memchr::memchr(b',', info).unwrap_or(info.len());
    let (letters, extra) = info.split_at(end);
    (stem, letters, extra)
}

/// The file name with other flags: letters sorted, unknown letters and extra text kept.
pub(crate) fn with_info(file: &[u8], flags: Flags, keywords: KeywordSet) -> Vec<u8> {
    let (stem, old, extra) = split_info(file);
    let known = |l: &u8| Flags::from_letter(*l).is_some() || KeywordSet::from_letter(*l).is_some();
    let mut letters: Vec<u8> = old.iter().copied().filter(|l| !known(l)).collect();
    letters.extend(flags.letters());
    letters.extend(keywords.letters());
    letters.sort_unstable();
    letters.dedup();
    [stem, b":2,", &letters, extra].concat()
}

/// Size noted in the base name as `,S=n` (on disk) or `,W=n` (with CRLF). Digits must end at `,`, `:` or the end.
pub(crate) fn noted_size(base: &[u8], letter: u8) -> Option<u64> {
    let key = [b',', letter, b'='];
    let at = memchr::memmem::find(base, &key)?;
    let rest = base.get(at + key.len()..)?;
    let end = rest.iter().position(|b| matches!(b, b',' | b':')).unwrap_or(rest.len());
    parse_decimal(rest.get(..end)?)
}

/// Plain decimal digits, at least one, no sign.
pub(crate) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Order in which unknown files get their UIDs: seconds, microseconds when both have them, then the rest. Total:
/// only equal names are equal.
pub(crate) fn delivery_order(a: &[u8], b: &[u8]) -> Ordering {
    let (seconds_a, rest_a) = leading_number(a);
    let (seconds_b, rest_b) = leading_number(b);
    let by_micros = || match (micros(rest_a), micros(rest_b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => Ordering::Equal,
    };
    seconds_a.cmp(&seconds_b).then_with(by_micros).then_with(|| rest_a.cmp(rest_b)).then_with(|| a.cmp(b))
}

fn leading_number(text: &[u8]) -> (u64, &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let value = digits.iter().fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d - b'0')));
    (value, rest)
}

fn micros(rest: &[u8]) -> Option<u64> {
    let digits = rest.strip_prefix(b".M")?;
    digits.first()?.is_ascii_digit().then(|| leading_number(digits).0)
}

/// A base name no other delivery on this host uses: `<seconds>.M<micros>P<pid>R<process>.<host>`.
///
/// Microseconds grow with every name of this process. `R` is random per process: processes in two PID namespaces
/// may share host name and pid.
pub(crate) fn unique_base(now: SystemTime) -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static PROCESS: OnceLock<u32> = OnceLock::new();
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX / 2);
    let previous = LAST.fetch_max(now, Atomic::Relaxed);
    // Either the clock moved on and is ours alone, or the next free microsecond is taken.
    let stamp = if previous < now { now } else { LAST.fetch_add(1, Atomic::Relaxed) + 1 };
    let process = *PROCESS.get_or_init(|| getrandom::u32().unwrap_or_default());
    let pid = std::process::id();
    format!("{}.M{}P{pid}R{process:08x}.{}", stamp / 1_000_000, stamp % 1_000_000, host())
}

fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = nix::unistd::gethostname().unwrap_or_default();
        quote_host(&name.to_string_lossy())
    })
}

/// The Maildir specification's quoting, and nothing else that a name must not hold.
fn quote_host(name: &str) -> String {
    let mut quoted = String::new();
    for c in name.chars().take(100) {
        match c {
            '/' => quoted.push_str("\\057"),
            ':' => quoted.push_str("\\072"),
            '!'..='~' if c != ',' => quoted.push(c),
            _ => quoted.push('_'),
        }
    }
    if quoted.is_empty() { "localhost".to_owned() } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bases() {
        let cases: [(&[u8], Option<&[u8]>); 11] = [
            (b"1.M2P3.host:2,S", Some(b"1.M2P3.host")),
            (b"1.M2P3.host", Some(b"1.M2P3.host")),
            (b"a:b:2,S", Some(b"a")),
            (b"a b,S=1", Some(b"a b,S=1")),
            (b"", None),
            (b":2,S", None),
            (b".hidden", None),
            (b"a/b", None),
            (b"a\nb", None),
            (b"a\rb", None),
            (b"a\0b", None),
        ];
        for (file, expected) in cases {
            let got = BaseName::of(file);
            assert_eq!(got.as_ref().map(BaseName::bytes), expected, "{file:?}");
        }
        assert!(BaseName::of(&[b'x'; 256]).is_none());
    }

    #[test]
    fn infos() {
        let a = KeywordSet::single(0).unwrap();
        let cases: [(&[u8], Flags, KeywordSet); 9] = [
            (b"x:2,", Flags::NONE, KeywordSet::NONE),
            (b"x", Flags::NONE, KeywordSet::NONE),
            (b"x:2,FS", Flags::FLAGGED | Flags::SEEN, KeywordSet::NONE),
            (b"x:2,SaF", Flags::FLAGGED | Flags::SEEN, a),
            (b"x:2,SX9,Ta", Flags::SEEN, KeywordSet::NONE),
            (b"x:1,S", Flags::NONE, KeywordSet::NONE),
            (b"x:y:2,T", Flags::DELETED, KeywordSet::NONE),
            (b"x:2,S:y", Flags::NONE, KeywordSet::NONE),
            (b"x:", Flags::NONE, KeywordSet::NONE),
        ];
        for (file, flags, keywords) in cases {
            assert_eq!(parse_info(file), (flags, keywords), "{:?}", String::from_utf8_lossy(file));
        }
    }

    #[test]
    fn merging() {
        let a = KeywordSet::single(0).unwrap();
        let cases: [(&[u8], Flags, KeywordSet, &[u8]); 7] = [
            (b"x", Flags::SEEN, KeywordSet::NONE, b"x:2,S"),
            (b"x:2,S", Flags::NONE, KeywordSet::NONE, b"x:2,"),
            (b"x:2,TS", Flags::SEEN | Flags::DRAFT, a, b"x:2,DSa"),
            (b"x:2,SXB", Flags::FLAGGED, KeywordSet::NONE, b"x:2,BFX"),
            (b"x:2,S,extra,more", Flags::FLAGGED, KeywordSet::NONE, b"x:2,F,extra,more"),
            (b"x:1,odd", Flags::SEEN, KeywordSet::NONE, b"x:1,odd:2,S"),
            (b"x:2,SS", Flags::SEEN, KeywordSet::NONE, b"x:2,S"),
        ];
        for (file, flags, keywords, expected) in cases {
            let got = with_info(file, flags, keywords);
            assert_eq!(got, expected, "{:?}", String::from_utf8_lossy(file));
            assert_eq!(parse_info(&got), (flags, keywords));
        }
    }

    #[test]
    fn sizes() {
        let cases: [(&[u8], Option<u64>, Option<u64>); 7] = [
            (b"x,S=12,W=13", Some(12), Some(13)),
            (b"x,W=13:2,S", None, Some(13)),
            (b"x,S=", None, None),
            (b"x,S=1x,W=-2", None, None),
            (b"x,S=99999999999999999999999,W=1", None, Some(1)),
            (b"xS=1", None, None),
            (b"x", None, None),
        ];
        for (name, s, w) in cases {
            assert_eq!(
                (noted_size(name, b'S'), noted_size(name, b'W')),
                (s, w),
                "{:?}",
                String::from_utf8_lossy(name)
            );
        }
    }

    #[test]
    fn order() {
        let mut names: Vec<&[u8]> = vec![
            b"100.M5P1.h",
            b"99.x",
            b"100.M10P1.h",
            b"100.A",
            b"nonsense",
            b"100.M5P0.h",
            b"99999999999999999999999999.x",
        ];
        names.sort_by(|a, b| delivery_order(a, b));
        let expected: [&[u8]; 7] = [
            b"nonsense",
            b"99.x",
            b"100.A",
            b"100.M5P0.h",
            b"100.M5P1.h",
            b"100.M10P1.h",
            b"99999999999999999999999999.x",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn unique_in_a_process() {
        let now = SystemTime::now();
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(move || (0..1000).map(|_| unique_base(now)).collect::<Vec<_>>()))
            .collect();
        let mut all: Vec<String> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4000);
        assert!(all.iter().all(|n| BaseName::of(n.as_bytes()).is_some_and(|b| b.bytes() == n.as_bytes())));
        assert!(unique_base(SystemTime::UNIX_EPOCH - Duration::from_secs(5)).contains(".M"));
    }

    #[test]
    fn hosts() {
        assert_eq!(quote_host("a/b:c,d e"), "a\\057b\\072c_d_e");
        assert_eq!(quote_host(""), "localhost");
    }

    proptest! {
        #[test]
        fn order_is_total(a in "0?[1-2]{0,2}[.A-M]{0,3}0?[1-2]{0,2}", b in "0?[1-2]{0,2}[.A-M]{0,3}0?[1-2]{0,2}",
                c in "(1[.]M?)?[1-2M]{0,3}") {
            let (a, b, c) = (a.as_bytes(), b.as_bytes(), c.as_bytes());
            let mut all = [a, b, c];
            all.sort_by(|x, y| delivery_order(x, y));
            prop_assert!(delivery_order(all[0], all[2]).is_le());
            prop_assert_eq!(delivery_order(a, b), delivery_order(b, a).reverse());
            prop_assert_eq!(delivery_order(a, c).is_eq(), a == c);
        }

        #[test]
        fn info_survives(file in proptest::collection::vec(any::<u8>(), 0..60), bits in 0u32..(1 << 26), f in 0u8..64) {
            let keywords = (0..26).filter(|i| bits & (1 << i) != 0).filter_map(KeywordSet::single)
                .fold(KeywordSet::NONE, |a, b| a | b);
            let flags = (0..6).filter(|i| f & (1 << i) != 0)
                .filter_map(|i| Flags::from_letter(b"DFPRST"[i])).fold(Flags::NONE, |a, b| a | b);
            let renamed = with_info(&file, flags, keywords);
            prop_assert_eq!(parse_info(&renamed), (flags, keywords));
            prop_assert_eq!(base_of(&renamed), base_of(&file));
            let _ = (noted_size(&file, b'S'), parse_info(&file), BaseName::of(&file));
        }
    }
}
