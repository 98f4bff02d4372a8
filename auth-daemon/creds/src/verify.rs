//! Checking a password against a stored string.
//!
//! Order: weakness, caps, form, computation, constant-time comparison.
//! Trust: the stored string comes from whoever wrote the file or row, the password from a stranger.
//! Never: say that a password is right because a text was not understood.

use std::sync::Arc;

use md5::Digest;
use subtle::ConstantTimeEq as _;

use crate::crypt::{CryptText, Method, classify};
use crate::encode::{CRYPT64, crypt64_value, raw, text, unhex};
use crate::otp::OtpState;
use crate::{
    Caps, Cost, Crypt, Error, FastArgon2, Key, KeyKind, Scheme, Scratch, Stored, argon, cost,
    cram_md5_states, digest_md5_key, keys, sha_crypt,
};

/// What stored strings may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Accept weak schemes.
    pub allow_weak: bool,
    /// Caps on cost parameters.
    pub caps: Caps,
}

/// The answer to "is this the password?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Match,
    /// It is not, or there is no password that is.
    Mismatch,
    /// The crypt(3) text begins with `!` or `*`: the account is locked, whatever the password.
    Locked,
}

/// Longest password crypt(3) takes (libxcrypt's `CRYPT_MAX_PASSPHRASE_SIZE`, with its NUL).
const CRYPT_MAX_PASSWORD: usize = 511;

/// Checks passwords under one policy. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Verifier {
    policy: Policy,
    crypt: Arc<dyn Crypt + Send + Sync>,
    argon2: Option<FastArgon2>,
}

impl Verifier {
    /// A verifier that computes crypt(3) hashes with `crypt`.
    pub fn new(policy: Policy, crypt: impl Crypt + Send + Sync + 'static) -> Verifier {
        Verifier { policy, crypt: Arc::new(crypt), argon2: None }
    }

    /// The same, computing Argon2 with `fast` where that can.
    #[must_use]
    pub fn with_argon2(self, fast: FastArgon2) -> Verifier {
        Verifier { argon2: Some(fast), ..self }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same crypt(3) under another policy.
    #[must_use]
    pub fn with_policy(&self, policy: Policy) -> Verifier {
        Verifier { policy, ..self.clone() }
    }

    /// What a verification of `stored` would cost. Computes nothing.
    ///
    /// # Errors
    /// Everything that makes the string unusable: [`Error::Weak`], [`Error::OverCap`], [`Error::Malformed`].
    pub fn cost(&self, stored: &Stored<'_>) -> Result<Cost, Error> {
        cost::cost(stored, &self.policy)
    }

    /// Checks a password. `user` is the name as typed; only DIGEST-MD5 strings depend on it.
    ///
    /// # Errors
    /// The string cannot be used; nothing is known about the password then.
    pub fn verify(
        &self,
        stored: &Stored<'_>,
        user: &[u8],
        password: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Verdict, Error> {
        let verdict = self.compute(stored, user, password, scratch);
        if stored.scheme() != Scheme::Plain {
            crate::secret::wipe_stack();
        }
        verdict
    }

    fn compute(
        &self,
        stored: &Stored<'_>,
        user: &[u8],
        password: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Verdict, Error> {
        self.cost(stored)?;
        match stored.scheme() {
            Scheme::Plain => Ok(equal(password, text(stored)?.bytes())),
            Scheme::PlainTrunc => plain_trunc(stored, text(stored)?.bytes(), password),
            Scheme::Crypt
            | Scheme::DesCrypt
            | Scheme::Md5Crypt
            | Scheme::Sha256Crypt
            | Scheme::Sha512Crypt
            | Scheme::BlfCrypt => self.crypt(stored, text(stored)?.bytes(), password),
            Scheme::Md5 if is_md5_crypt(stored) => self.crypt(stored, text(stored)?.bytes(), password),
            Scheme::Argon2 | Scheme::Argon2i | Scheme::Argon2id => {
                argon::verify(stored, text(stored)?.bytes(), password, self.argon2, scratch)
            }
            Scheme::Pbkdf2 => {
                let text = text(stored)?;
                let hash = pbkdf2(stored, text.bytes())?;
                let mut key = [0_u8; 20];
                pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, hash.salt, hash.rounds, &mut key);
                Ok(equal(&key, &hash.key))
            }
            Scheme::PlainMd4 => digest::<md4::Md4>(stored, password),
            Scheme::PlainMd5 | Scheme::LdapMd5 | Scheme::Md5 => digest::<md5::Md5>(stored, password),
            Scheme::Sha => digest::<sha1::Sha1>(stored, password),
            Scheme::Sha256 => digest::<sha2::Sha256>(stored, password),
            Scheme::Sha512 => digest::<sha2::Sha512>(stored, password),
            Scheme::Smd5 => salted::<md5::Md5>(stored, password),
            Scheme::Ssha => salted::<sha1::Sha1>(stored, password),
            Scheme::Ssha256 => salted::<sha2::Sha256>(stored, password),
            Scheme::Ssha512 => salted::<sha2::Sha512>(stored, password),
            Scheme::CramMd5 | Scheme::HmacMd5 => Ok(equal(cram_md5_states(password).expose(), &raw(stored)?)),
            Scheme::DigestMd5 => {
                let expected = raw(stored)?;
                if user.is_empty() {
                    return Err(Error::NeedsUser(Scheme::DigestMd5));
                }
                Ok(equal(digest_md5_key(user, password).expose(), &expected))
            }
            Scheme::ScramSha1 | Scheme::ScramSha256 => {
                Ok(verdict(keys::scram(stored, text(stored)?.bytes())?.verify(password)))
            }
            Scheme::Otp => Ok(verdict(OtpState::parse(stored, text(stored)?.bytes())?.verify(password))),
        }
    }

    /// The key of a stored string for a challenge-response mechanism; see [`crate::key()`].
    ///
    /// # Errors
    /// As [`crate::key()`].
    pub fn key(&self, stored: &Stored<'_>, kind: KeyKind) -> Result<Key, Error> {
        keys::key(stored, kind, &self.policy)
    }

    fn crypt(&self, stored: &Stored<'_>, text: &[u8], password: &[u8]) -> Result<Verdict, Error> {
        let method = match classify(text).map_err(|why| stored.malformed(why))? {
            CryptText::Empty => return Ok(Verdict::Mismatch),
            CryptText::Locked => return Ok(Verdict::Locked),
            CryptText::Hash(method, _) => method,
        };
        // To C a NUL ends the password; such a one must not match a shorter one.
        if password.len() > CRYPT_MAX_PASSWORD || password.contains(&0) {
            return Ok(Verdict::Mismatch);
        }
        if let Some(verdict) = by_sha_crypt(method, text, password) {
            return Ok(verdict);
        }
        match self.crypt.crypt(password, text) {
            // A result that begins with `*` is crypt's failure token.
            Some(result) if result.first().is_some_and(|b| *b != b'*') => Ok(equal(&result, text)),
            _ => Err(Error::NoCrypt(stored.scheme())),
        }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Refuses passwords no auth request can carry (rule F1.7): with NUL, 0x01, TAB, CR or LF.
///
/// # Errors
/// [`Error::BadPassword`].
pub fn check_password_bytes(password: &[u8]) -> Result<(), Error> {
    if password.iter().any(|b| matches!(b, 0 | 1 | b'\t' | b'\r' | b'\n')) {
        return Err(Error::BadPassword("holds a control byte that cannot be transmitted"));
    }
    Ok(())
}

fn verdict(matches: bool) -> Verdict {
    if matches { Verdict::Match } else { Verdict::Mismatch }
}

fn equal(left: &[u8], right: &[u8]) -> Verdict {
    verdict(left.ct_eq(right).into())
}

fn digest<D: Digest>(stored: &Stored<'_>, password: &[u8]) -> Result<Verdict, Error> {
    Ok(equal(&D::digest(password), &raw(stored)?))
}

/// Digest of password and salt, followed by the salt. Without a salt it is malformed, as in Dovecot.
fn salted<D: Digest>(stored: &Stored<'_>, password: &[u8]) -> Result<Verdict, Error> {
    let raw = raw(stored)?;
    match raw.split_at_checked(<D as Digest>::output_size()) {
        Some((expected, salt)) if !salt.is_empty() => {
            Ok(equal(&D::new().chain_update(password).chain_update(salt).finalize(), expected))
        }
        _ => Err(stored.malformed("no salt")),
    }
}

fn plain_trunc(stored: &Stored<'_>, text: &[u8], password: &[u8]) -> Result<Verdict, Error> {
    let split = text.iter().position(|&b| b == b'-').and_then(|dash| {
        let length = text.get(..dash)?;
        let digits = (1..=6).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
        let length: usize =
            if digits { std::str::from_utf8(length).ok()?.parse().ok()? } else { return None };
        Some((length, text.get(dash + 1..)?))
    });
    let (length, expected) = split.ok_or_else(|| stored.malformed("no length in front"))?;
    let given = if expected.len() == length { password.get(..length).unwrap_or(password) } else { password };
    Ok(equal(given, expected))
}

/// `{MD5}` holds a crypt text when it begins like one.
pub(crate) fn is_md5_crypt(stored: &Stored<'_>) -> bool {
    text(stored).is_ok_and(|text| text.bytes().starts_with(b"$1$"))
}

pub(crate) struct Pbkdf2Hash<'a> {
    pub(crate) rounds: u32,
    salt: &'a [u8],
    key: [u8; 20],
}

/// `$1$salt$rounds$hex`; the salt is taken as the ASCII text it is.
pub(crate) fn pbkdf2<'a>(stored: &Stored<'_>, text: &'a [u8]) -> Result<Pbkdf2Hash<'a>, Error> {
    let parse = || {
        let mut fields = text.strip_prefix(b"$1$")?.split(|&b| b == b'$');
        let salt = fields.next()?;
        let rounds = fields.next()?;
        if !rounds.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let rounds = std::str::from_utf8(rounds).ok()?.parse().ok().filter(|n| *n > 0)?;
        let key = <[u8; 20]>::try_from(unhex(fields.next()?)?).ok()?;
        if fields.next().is_some() { None } else { Some(Pbkdf2Hash { rounds, salt, key }) }
    };
    parse().ok_or_else(|| stored.malformed("not $1$salt$rounds$hex"))
}

/// `$5$` and `$6$` in Rust; `None` leaves the text to crypt(3).
///
/// Only texts crypt(3) itself would write are taken: what it makes of longer salts and of stray bits in the last digit
/// is its own affair.
fn by_sha_crypt(method: Method, text: &[u8], password: &[u8]) -> Option<Verdict> {
    let (digits, last_bits) = match method {
        Method::Sha256 => (43, 4),
        Method::Sha512 => (86, 2),
        _ => return None,
    };
    let mut fields = text.get(3..)?.split(|&b| b == b'$');
    let mut salt = fields.next()?;
    let mut rounds = sha_crypt::ROUNDS;
    if let Some(number) = salt.strip_prefix(b"rounds=") {
        rounds = std::str::from_utf8(number).ok()?.parse().ok()?;
        salt = fields.next()?;
    }
    let hash = fields.next()?;
    let canonical = (1..=16).contains(&salt.len())
        && salt.iter().all(|b| CRYPT64.contains(b))
        && hash.len() == digits
        && crypt64_value(*hash.last()?)? < 1 << last_bits
        && fields.next().is_none();
    if !canonical {
        return None;
    }
    let compute = if method == Method::Sha256 { sha_crypt::sha256 } else { sha_crypt::sha512 };
    Some(equal(compute(password, salt, rounds).as_bytes(), hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoCrypt;

    fn check(text: &str, password: &str) -> Result<Verdict, Error> {
        let verifier = Verifier::new(Policy::default(), NoCrypt);
        let stored = Stored::parse(text.as_bytes(), Scheme::Crypt)?;
        verifier.verify(&stored, b"", password.as_bytes(), &mut Scratch::default())
    }

    const SHA512: &str = "$6$PCFO1/GGChbHOVAv$ZCszAlCGdY0WXJq/aRPojk84tnyj1xLk0xs6fV2OZ.FRtujcaPXfbPWm2A2./mJWNPYhMac451cSvGSIDA4eM/";

    #[test]
    fn sha_crypt_without_crypt() {
        assert_eq!(check(SHA512, "summersun"), Ok(Verdict::Match));
        assert_eq!(check(SHA512, "summersu"), Ok(Verdict::Mismatch));
        // Stray bits in the last digit, a longer salt: left to crypt(3), which is not here.
        let stray = format!("{}B", &SHA512[..SHA512.len() - 1]);
        assert_eq!(check(&stray, "summersun"), Err(Error::NoCrypt(Scheme::Crypt)));
        let long = SHA512.replace("HOVAv$", "HOVAvx$");
        assert_eq!(check(&long, "summersun"), Err(Error::NoCrypt(Scheme::Crypt)));
    }

    #[test]
    fn verdicts() {
        let cases = [
            ("!", "x", Ok(Verdict::Locked)),
            ("*", "x", Ok(Verdict::Locked)),
            ("{CRYPT}*0", "", Ok(Verdict::Locked)),
            ("", "", Ok(Verdict::Mismatch)),
            ("{CRYPT}", "", Ok(Verdict::Mismatch)),
            ("{PLAIN}!x", "!x", Ok(Verdict::Match)),
            ("{PLAIN}", "", Ok(Verdict::Match)),
            ("{PLAIN-MD5}x", "", Err(Error::Weak(Scheme::PlainMd5))),
            ("{DIGEST-MD5}16da8a4e7aab9fa2ea697dad7d840013", "x", Err(Error::NeedsUser(Scheme::DigestMd5))),
            ("{NOSUCH}x", "x", Err(Error::UnknownScheme("NOSUCH".into()))),
        ];
        for (text, password, expected) in cases {
            assert_eq!(check(text, password), expected, "{text}");
        }
    }

    #[test]
    fn crypt_never_sees_what_c_would_cut() {
        let verifier = Verifier::new(Policy::default(), |_: &[u8], setting: &[u8]| Some(setting.to_vec()));
        let text = format!("$2y$05${}", "a".repeat(53));
        let stored = Stored::parse(text.as_bytes(), Scheme::Crypt).unwrap();
        let mut scratch = Scratch::default();
        assert_eq!(verifier.verify(&stored, b"", b"pw", &mut scratch), Ok(Verdict::Match));
        assert_eq!(verifier.verify(&stored, b"", b"pw\0x", &mut scratch), Ok(Verdict::Mismatch));
        assert_eq!(verifier.verify(&stored, b"", &[b'a'; 512], &mut scratch), Ok(Verdict::Mismatch));
    }

    #[test]
    fn crypt_failure_tokens_never_match() {
        let verifier = Verifier::new(Policy::default(), |_: &[u8], _: &[u8]| Some(b"*0".to_vec()));
        let stored = Stored::parse(b"$7$CU..../....s$h", Scheme::Crypt).unwrap();
        let result = verifier.verify(&stored, b"", b"pw", &mut Scratch::default());
        assert_eq!(result, Err(Error::NoCrypt(Scheme::Crypt)));
    }

    #[test]
    fn password_bytes() {
        assert!(check_password_bytes("pa$$wörd 1".as_bytes()).is_ok());
        for bad in [&b"a\0"[..], b"\x01", b"a\tb", b"a\r", b"a\n"] {
            assert!(check_password_bytes(bad).is_err());
        }
    }
}
