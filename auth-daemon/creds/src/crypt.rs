//! crypt(3) texts: which method, which cost, locked or not. Computes nothing.
//!
//! Format: crypt(5) of libxcrypt; yescrypt parameters as in its `alg-yescrypt-common.c`.
//! Trust:  the text comes from whoever wrote the file or row.
//! Never:  hand crypt(3) a text whose method and cost are not known.

use crate::encode::{CRYPT64, crypt64_value};

/// crypt(3), handed in because this crate contains no `unsafe`.
///
/// Any `Fn(&[u8], &[u8]) -> Option<Vec<u8>>` is one, such as `system_auth::crypt`.
pub trait Crypt {
    /// Hashes `key` as `setting` says. `None` when the setting is refused or the method unknown.
    fn crypt(&self, key: &[u8], setting: &[u8]) -> Option<Vec<u8>>;
}

impl<F: Fn(&[u8], &[u8]) -> Option<Vec<u8>>> Crypt for F {
    fn crypt(&self, key: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
        self(key, setting)
    }
}

/// No crypt(3): only what is built in (`$5$` and `$6$`) works.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCrypt;

impl Crypt for NoCrypt {
    fn crypt(&self, _key: &[u8], _setting: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// A crypt(3) method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// `$y$`
    Yescrypt,
    /// `$gy$`
    GostYescrypt,
    /// `$7$`
    Scrypt,
    /// `$2a$ $2b$ $2x$ $2y$`
    Bcrypt,
    /// `$6$`
    Sha512,
    /// `$5$`
    Sha256,
    /// `$sha1$`
    Sha1,
    /// `$md5`
    SunMd5,
    /// `$1$`
    Md5,
    /// `$3$`
    Nt,
    /// `_`
    BsdDes,
    /// 13 characters (bigcrypt: longer).
    Des,
}

impl Method {
    /// Methods too weak to accept unless the administrator says so: Dovecot 2.4 names DES and `$1$`; extended
    /// DES and the unsalted NT hash are no better.
    pub fn is_weak(self) -> bool {
        matches!(self, Method::Md5 | Method::Nt | Method::BsdDes | Method::Des)
    }
}

/// What a crypt text asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Cost does not vary.
    Fixed,
    /// `$5$ $6$ $sha1$ $md5 _`: rounds.
    Rounds(u32),
    /// bcrypt: log2 of the rounds.
    Log2(u32),
    /// yescrypt and scrypt.
    Blocks(Blocks),
}

/// Parameters of the scrypt family: `N` blocks of `128 * r` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) n_log2: u32,
    pub(crate) r: u32,
    pub(crate) p: u32,
    pub(crate) t: u32,
}

/// A classified text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CryptText {
    /// Empty: nobody gets in.
    Empty,
    /// Begins with `!` or `*`.
    Locked,
    /// A method and its cost.
    Hash(Method, Asked),
}

/// Finds the method and the cost of a stored crypt text.
pub(crate) fn classify(text: &[u8]) -> Result<CryptText, &'static str> {
    match text.first() {
        None => return Ok(CryptText::Empty),
        Some(b'!' | b'*') => return Ok(CryptText::Locked),
        Some(_) => {}
    }
    // crypt(5): hashes are printable ASCII without colon, backslash, blank and these.
    if text.len() > 384 || !text.iter().all(|b| b.is_ascii_graphic() && !b"!*:;\\".contains(b)) {
        return Err("not a crypt(3) text");
    }
    let hash = |method, asked| Ok(CryptText::Hash(method, asked));
    if let Some(rest) = text.strip_prefix(b"$6$") {
        return hash(Method::Sha512, sha_rounds(rest)?);
    }
    if let Some(rest) = text.strip_prefix(b"$5$") {
        return hash(Method::Sha256, sha_rounds(rest)?);
    }
    if let Some(rest) = text.strip_prefix(b"$y$") {
        return hash(Method::Yescrypt, Asked::Blocks(yescrypt(rest)?));
    }
    if let Some(rest) = text.strip_prefix(b"$gy$") {
        return hash(Method::GostYescrypt, Asked::Blocks(yescrypt(rest)?));
    }
    if let Some(rest) = text.strip_prefix(b"$7$") {
        return hash(Method::Scrypt, Asked::Blocks(scrypt(rest)?));
    }
    if text.starts_with(b"$2") {
        return hash(Method::Bcrypt, Asked::Log2(bcrypt_cost(text)?));
    }
    if let Some(rest) = text.strip_prefix(b"$sha1$") {
        let rounds = decimal(field(rest).0).filter(|n| *n > 0).ok_or("bad round count")?;
        return hash(Method::Sha1, Asked::Rounds(rounds));
    }
    if let Some(rest) = text.strip_prefix(b"$md5") {
        return hash(Method::SunMd5, Asked::Rounds(sun_rounds(rest)?));
    }
    if text.starts_with(b"$1$") {
        return hash(Method::Md5, Asked::Fixed);
    }
    if text.starts_with(b"$3$") {
        return hash(Method::Nt, Asked::Fixed);
    }
    if let Some(rest) = text.strip_prefix(b"_") {
        let count = rest.get(..4).and_then(little_number).filter(|n| *n > 0);
        return match count {
            Some(count) if text.len() == 20 => hash(Method::BsdDes, Asked::Rounds(count)),
            _ => Err("bad bsdicrypt text"),
        };
    }
    if text.first() == Some(&b'$') {
        return Err("unknown crypt(3) method");
    }
    // Traditional: 2 salt digits and 11 per 8 characters of password.
    if text.len() >= 13 && text.len() % 11 == 2 && text.iter().all(|b| CRYPT64.contains(b)) {
        return hash(Method::Des, Asked::Fixed);
    }
    Err("not a crypt(3) text")
}

/// Up to the next `$`, and what follows it.
fn field(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&b| b == b'$') {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        None => (text, None),
    }
}

/// A decimal number as crypt wants it: no sign, no leading zero.
fn decimal(text: &[u8]) -> Option<u32> {
    if text.is_empty()
        || text.len() > 10
        || text.first() == Some(&b'0')
        || !text.iter().all(u8::is_ascii_digit)
    {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn sha_rounds(rest: &[u8]) -> Result<Asked, &'static str> {
    let Some(rest) = rest.strip_prefix(b"rounds=") else {
        return if field(rest).1.is_some_and(|hash| !hash.is_empty()) {
            Ok(Asked::Rounds(5_000))
        } else {
            Err("setting without a hash")
        };
    };
    match (decimal(field(rest).0), field(rest).1) {
        (Some(rounds @ 1_000..=999_999_999), Some(_)) => Ok(Asked::Rounds(rounds)),
        _ => Err("bad round count"),
    }
}

fn bcrypt_cost(text: &[u8]) -> Result<u32, &'static str> {
    let head = text.get(..7).filter(|_| text.len() == 60).ok_or("wrong length for bcrypt")?;
    match *head {
        [b'$', b'2', b'a' | b'b' | b'x' | b'y', b'$', tens @ b'0'..=b'3', ones @ b'0'..=b'9', b'$'] => {
            let cost = u32::from(tens - b'0') * 10 + u32::from(ones - b'0');
            if (4..=31).contains(&cost) { Ok(cost) } else { Err("bcrypt cost out of range") }
        }
        _ => Err("bad bcrypt text"),
    }
}

/// `$md5$salt$…` or `$md5,rounds=N$salt$…`; 4096 rounds are always added.
fn sun_rounds(rest: &[u8]) -> Result<u32, &'static str> {
    const BASE: u32 = 4_096;
    if rest.starts_with(b"$") {
        return Ok(BASE);
    }
    let rounds = rest.strip_prefix(b",rounds=").and_then(|rest| decimal(field(rest).0));
    rounds.and_then(|rounds| rounds.checked_add(BASE)).ok_or("bad round count")
}

/// Six bits per digit, low digits first.
fn little_number(digits: &[u8]) -> Option<u32> {
    digits.iter().rev().try_fold(0_u32, |value, digit| Some(value << 6 | crypt64_value(*digit)?))
}

fn scrypt(rest: &[u8]) -> Result<Blocks, &'static str> {
    const BAD: &str = "bad scrypt parameters";
    let (head, _) = rest.split_at_checked(11).ok_or(BAD)?;
    let (n_log2, numbers) = head.split_first().ok_or(BAD)?;
    let (r, p) = numbers.split_at_checked(5).ok_or(BAD)?;
    let blocks = Blocks {
        n_log2: crypt64_value(*n_log2).ok_or(BAD)?,
        r: little_number(r).ok_or(BAD)?,
        p: little_number(p).ok_or(BAD)?,
        t: 0,
    };
    if blocks.n_log2 == 0 || blocks.r == 0 || blocks.p == 0 { Err(BAD) } else { Ok(blocks) }
}

/// Parameters between `$y$` and the next `$`: flavour, log2 N, r, and optionally p and t.
fn yescrypt(rest: &[u8]) -> Result<Blocks, &'static str> {
    const BAD: &str = "bad yescrypt parameters";
    let (mut digits, salt) = field(rest);
    if salt.is_none_or(<[u8]>::is_empty) {
        return Err("setting without a hash");
    }
    let mut number = |minimum| variable_number(&mut digits, minimum).ok_or(BAD);
    let _flavour = number(0)?;
    let mut blocks = Blocks { n_log2: number(1)?, r: number(1)?, p: 1, t: 0 };
    if !digits.is_empty() {
        let mut number = |minimum| variable_number(&mut digits, minimum).ok_or(BAD);
        let have = number(1)?;
        if have & 1 != 0 {
            blocks.p = number(2)?;
        }
        if have & 2 != 0 {
            blocks.t = number(1)?;
        }
        if have > 3 || !digits.is_empty() {
            // Hash upgrades and ROM are not supported by libxcrypt either.
            return Err("unsupported yescrypt parameters");
        }
    }
    if blocks.n_log2 > 63 { Err(BAD) } else { Ok(blocks) }
}

/// yescrypt's variable-length number: the first digit tells how many follow.
fn variable_number(digits: &mut &[u8], minimum: u32) -> Option<u32> {
    let mut next = || {
        let (first, rest) = digits.split_first()?;
        *digits = rest;
        crypt64_value(*first)
    };
    let first = next()?;
    let (mut value, mut start, mut end, mut more, mut bits) = (minimum, 0_u32, 47_u32, 0_u32, 0_u32);
    while first > end {
        value = value.checked_add((end + 1 - start).checked_shl(bits)?)?;
        start = end + 1;
        end = start + (62 - end) / 2;
        more += 1;
        bits += 6;
    }
    value = value.checked_add((first - start).checked_shl(bits)?)?;
    for _ in 0..more {
        bits -= 6;
        value = value.checked_add(next()?.checked_shl(bits)?)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(n_log2: u32, r: u32, p: u32, t: u32) -> Asked {
        Asked::Blocks(Blocks { n_log2, r, p, t })
    }

    #[test]
    fn methods_and_costs() {
        let hash43 = "a".repeat(43);
        let cases: [(&str, CryptText); 21] = [
            ("", CryptText::Empty),
            ("!", CryptText::Locked),
            ("!!", CryptText::Locked),
            ("*", CryptText::Locked),
            ("*0", CryptText::Locked),
            ("*LK*", CryptText::Locked),
            ("!$6$abc$def", CryptText::Locked),
            ("$6$salt$x", CryptText::Hash(Method::Sha512, Asked::Rounds(5_000))),
            ("$6$$x", CryptText::Hash(Method::Sha512, Asked::Rounds(5_000))),
            ("$5$rounds=77777$short$x", CryptText::Hash(Method::Sha256, Asked::Rounds(77_777))),
            ("$y$j9T$salt$hash", CryptText::Hash(Method::Yescrypt, blocks(12, 32, 1, 0))),
            ("$y$j75$salt$hash", CryptText::Hash(Method::Yescrypt, blocks(10, 8, 1, 0))),
            ("$gy$j9T$salt$hash", CryptText::Hash(Method::GostYescrypt, blocks(12, 32, 1, 0))),
            ("$y$jTT$salt$hash", CryptText::Hash(Method::Yescrypt, blocks(32, 32, 1, 0))),
            ("$7$CU..../....salt$hash", CryptText::Hash(Method::Scrypt, blocks(14, 32, 1, 0))),
            ("$sha1$1000$abcdefgh$x", CryptText::Hash(Method::Sha1, Asked::Rounds(1_000))),
            ("$md5,rounds=76949$CySNjNfq$$l6", CryptText::Hash(Method::SunMd5, Asked::Rounds(81_045))),
            ("$1$s$h", CryptText::Hash(Method::Md5, Asked::Fixed)),
            ("$3$$c589", CryptText::Hash(Method::Nt, Asked::Fixed)),
            ("_J9..qa2fvyKUaw2VQk.", CryptText::Hash(Method::BsdDes, Asked::Rounds(725))),
            ("fcd8T/LTN2P9w", CryptText::Hash(Method::Des, Asked::Fixed)),
        ];
        for (text, expected) in cases {
            assert_eq!(classify(text.as_bytes()), Ok(expected), "{text}");
        }
        let bcrypt = format!("$2y$12${hash43}{}", "b".repeat(10));
        assert_eq!(classify(bcrypt.as_bytes()), Ok(CryptText::Hash(Method::Bcrypt, Asked::Log2(12))));
    }

    #[test]
    fn refused_texts() {
        for text in [
            "x",
            "ab",
            "summersun",
            "$6$",
            "$6$abcdefghijklmnop$",
            "$6$rounds=10$abc$x",
            "$6$rounds=01000$abc$x",
            "$6$rounds=99999999999$a$b",
            "$6$rounds=-1000$a$b",
            "$6$rounds=5000",
            "$y$",
            "$y$j9T$",
            "$y$j9",
            "$9$abc$def",
            "$2y$04$short",
            "$2y$99$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "$7$C",
            "$md5,rounds=x$y",
            "_....qa2fvyKUaw2VQk.",
            "_J9..",
            "$sha1$0$a$b",
            "with blank123",
            "fcd8T/LTN2P9w\0",
            "$y$zzzzzzzzzzzz$a$b",
            "$7$CU....=....salt$hash",
            "$",
            "$$",
            "pass:word1234",
        ] {
            assert!(classify(text.as_bytes()).is_err(), "{text}");
        }
        assert!(classify(&[b'a'; 400]).is_err());
        assert!(classify(b"$6$\xff$x").is_err());
    }
}
