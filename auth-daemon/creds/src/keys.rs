//! Keys for challenge-response mechanisms: what is stored, and how it is derived from a password.
//!
//! A stored scheme serves a mechanism when it holds that mechanism's key, or the password itself.
//!
//! Trust: stored keys come from whoever wrote the file or row.
//! Never: hand out a key of a scheme that the policy does not allow.

use hmac::digest::{Digest, KeyInit};
use hmac::{EagerHash, Hmac, Mac};
use md5::block_api::compress;
use zeroize::Zeroizing;

use crate::encode::{base64, raw, text, to_base64};
use crate::{Error, Policy, Scheme, Secret, Stored, cost};

/// The kind of key a mechanism lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// The password in clear (APOP).
    Plain,
    /// The MD5 states of CRAM-MD5.
    CramMd5,
    /// The hash of DIGEST-MD5.
    DigestMd5,
    /// SCRAM keys for SHA-1.
    ScramSha1,
    /// SCRAM keys for SHA-256.
    ScramSha256,
}

/// A key from a stored string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The password itself; whatever the mechanism needs is derived from it.
    Plain(Secret),
    /// 32 bytes: outer, then inner MD5 state (see [`cram_md5_states`]).
    CramMd5(Secret),
    /// 16 bytes: `MD5(user:realm:password)`.
    DigestMd5(Secret),
    /// SCRAM keys.
    Scram(ScramKeys),
}

/// The hash of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// SCRAM-SHA-1
    Sha1,
    /// SCRAM-SHA-256
    Sha256,
}

impl ScramHash {
    /// Length of both keys.
    pub fn length(self) -> usize {
        match self {
            ScramHash::Sha1 => 20,
            ScramHash::Sha256 => 32,
        }
    }
}

/// What a SCRAM server stores (RFC 5802 §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// Which hash.
    pub hash: ScramHash,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// The salt, raw.
    pub salt: Vec<u8>,
    /// `H(HMAC(SaltedPassword, "Client Key"))`.
    pub stored_key: Secret,
    /// `HMAC(SaltedPassword, "Server Key")`.
    pub server_key: Secret,
}

impl ScramKeys {
    /// Smallest iteration count accepted (RFC 7677 §4 recommends it as the minimum, Dovecot enforces it).
    pub const MIN_ITERATIONS: u32 = 4096;

    /// Derives keys from a password. The password is taken byte for byte: Dovecot does no SASLprep either, and
    /// what is stored and what is checked must agree.
    pub fn derive(hash: ScramHash, password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let (stored_key, server_key) = match hash {
            ScramHash::Sha1 => derive::<sha1::Sha1, 20>(password, salt, iterations),
            ScramHash::Sha256 => derive::<sha2::Sha256, 32>(password, salt, iterations),
        };
        ScramKeys { hash, iterations, salt: salt.to_vec(), stored_key, server_key }
    }

    /// Whether these are the keys of `password`. Constant time but for the derivation.
    pub fn verify(&self, password: &[u8]) -> bool {
        let derived = ScramKeys::derive(self.hash, password, &self.salt, self.iterations);
        // `&`: both are always compared.
        (derived.stored_key == self.stored_key) & (derived.server_key == self.server_key)
    }

    /// The stored form: `iterations,salt,StoredKey,ServerKey`.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "{},{},{},{}",
            self.iterations,
            to_base64(&self.salt),
            to_base64(self.stored_key.expose()),
            to_base64(self.server_key.expose())
        )
    }
}

fn derive<D: EagerHash + Digest, const N: usize>(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
) -> (Secret, Secret)
where
    Hmac<D>: Mac + KeyInit,
{
    let mut salted = Zeroizing::new([0_u8; N]);
    pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, salted.as_mut());
    let keyed = |label: &[u8]| {
        <Hmac<D> as KeyInit>::new_from_slice(salted.as_ref())
            .map(|mac| mac.chain_update(label).finalize().into_bytes().to_vec())
            .unwrap_or_default()
    };
    let client_key = Zeroizing::new(keyed(b"Client Key"));
    (Secret::new(D::digest(&client_key[..]).to_vec()), Secret::new(keyed(b"Server Key")))
}

/// Parses `iterations,salt,StoredKey,ServerKey`.
pub(crate) fn scram(stored: &Stored<'_>, text: &[u8]) -> Result<ScramKeys, Error> {
    let hash = if stored.scheme() == Scheme::ScramSha1 { ScramHash::Sha1 } else { ScramHash::Sha256 };
    scram_fields(hash, text).ok_or_else(|| stored.malformed("not SCRAM keys"))
}

fn scram_fields(hash: ScramHash, text: &[u8]) -> Option<ScramKeys> {
    let mut fields = text.split(|&b| b == b',');
    let iterations = fields.next()?;
    if !iterations.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let iterations = std::str::from_utf8(iterations).ok()?.parse().ok()?;
    let salt = base64(fields.next()?)?;
    let stored_key = Secret::new(base64(fields.next()?)?);
    let server_key = Secret::new(base64(fields.next()?)?);
    let length = hash.length();
    let good = iterations >= ScramKeys::MIN_ITERATIONS
        && (1..=256).contains(&salt.len())
        && stored_key.expose().len() == length
        && server_key.expose().len() == length
        && fields.next().is_none();
    good.then_some(ScramKeys { hash, iterations, salt, stored_key, server_key })
}

/// Whether strings of `scheme` can serve a mechanism that lives on `kind`.
pub fn can_serve(scheme: Scheme, kind: KeyKind) -> bool {
    match scheme {
        Scheme::Plain => true,
        Scheme::CramMd5 | Scheme::HmacMd5 => kind == KeyKind::CramMd5,
        Scheme::DigestMd5 => kind == KeyKind::DigestMd5,
        Scheme::ScramSha1 => kind == KeyKind::ScramSha1,
        Scheme::ScramSha256 => kind == KeyKind::ScramSha256,
        _ => false,
    }
}

/// Takes the key of the given kind out of a stored string. Computes no slow hash: a `{PLAIN}` string gives
/// [`Key::Plain`].
///
/// # Errors
/// [`Error::CannotServe`] when the scheme holds no such key, and what a verification could say.
pub fn key(stored: &Stored<'_>, kind: KeyKind, policy: &Policy) -> Result<Key, Error> {
    let scheme = stored.scheme();
    if !can_serve(scheme, kind) {
        return Err(Error::CannotServe(scheme));
    }
    cost::cost(stored, policy)?;
    match scheme {
        Scheme::CramMd5 | Scheme::HmacMd5 => Ok(Key::CramMd5(Secret::new(raw(stored)?))),
        Scheme::DigestMd5 => Ok(Key::DigestMd5(Secret::new(raw(stored)?))),
        Scheme::ScramSha1 | Scheme::ScramSha256 => Ok(Key::Scram(scram(stored, text(stored)?.bytes())?)),
        _ => Ok(Key::Plain(Secret::from(text(stored)?.bytes()))),
    }
}

/// The MD5 start value, RFC 1321 §3.3.
const MD5_START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The `{CRAM-MD5}` form of a password: the MD5 states after the padded key block (RFC 2104 §4 calls this
/// precomputation), outer then inner, each word little endian.
pub fn cram_md5_states(password: &[u8]) -> Secret {
    let mut block = Zeroizing::new([0_u8; 64]);
    let digest: [u8; 16];
    let short = if password.len() > block.len() {
        digest = md5::Md5::digest(password).into();
        &digest[..]
    } else {
        password
    };
    for (slot, byte) in block.iter_mut().zip(short) {
        *slot = *byte;
    }
    let mut out = Vec::with_capacity(32);
    for pad in [0x5c_u8, 0x36] {
        let mut state = MD5_START;
        let padded = Zeroizing::new(block.map(|byte| byte ^ pad));
        compress(&mut state, &[*padded]);
        out.extend(state.iter().flat_map(|word| word.to_le_bytes()));
    }
    Secret::new(out)
}

/// `MD5(user:realm:password)`. The user is what stands before the last `@` of the name as typed, the realm what
/// follows it.
pub fn digest_md5_key(name: &[u8], password: &[u8]) -> Secret {
    let (user, realm) = match name.iter().rposition(|&b| b == b'@') {
        Some(at) => (name.get(..at).unwrap_or_default(), name.get(at + 1..).unwrap_or_default()),
        None => (name, &b""[..]),
    };
    let mut hash = md5::Md5::new();
    for part in [user, b":", realm, b":", password] {
        Digest::update(&mut hash, part);
    }
    Secret::new(hash.finalize().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::to_hex;

    fn get(text: &str, kind: KeyKind) -> Result<Key, Error> {
        key(&Stored::parse(text.as_bytes(), Scheme::Crypt).unwrap(), kind, &Policy::default())
    }

    #[test]
    fn who_serves_what() {
        for kind in
            [KeyKind::Plain, KeyKind::CramMd5, KeyKind::DigestMd5, KeyKind::ScramSha1, KeyKind::ScramSha256]
        {
            assert!(can_serve(Scheme::Plain, kind));
            assert!(!can_serve(Scheme::Argon2id, kind));
            assert!(!can_serve(Scheme::PlainTrunc, kind));
            assert_eq!(get("{PLAIN.b64}cHc=", kind), Ok(Key::Plain(Secret::from(&b"pw"[..]))));
        }
        assert_eq!(
            get(
                "{SCRAM-SHA-1}4096,AQ==,nL9Jn08VqiT0KngbiEafG3NJvIw=,vktRN0ZhfhYsQBb/1LABBBo3rWU=",
                KeyKind::Plain
            ),
            Err(Error::CannotServe(Scheme::ScramSha1))
        );
    }

    #[test]
    fn stored_keys_come_out_whole() {
        let Ok(Key::Scram(keys)) = get(
            "{SCRAM-SHA-1}4096,AQ==,nL9Jn08VqiT0KngbiEafG3NJvIw=,vktRN0ZhfhYsQBb/1LABBBo3rWU=",
            KeyKind::ScramSha1,
        ) else {
            panic!("no keys");
        };
        assert_eq!((keys.iterations, keys.salt.as_slice()), (4096, &[1][..]));
        assert!(keys.verify(b"summersun"));
        assert!(!keys.verify(b"summersu"));
        let Ok(Key::CramMd5(states)) = get(
            "{CRAM-MD5}4e3771a1a672bdc8bd8db861c1f2a29a8e043c99300ca203a1a92bbea7506691",
            KeyKind::CramMd5,
        ) else {
            panic!("no states");
        };
        assert_eq!(states, cram_md5_states(b"summersun"));
    }

    /// RFC 5802 §5 and RFC 7677 §3: the example user's `StoredKey` follows from password `pencil`.
    #[test]
    fn published_scram_parameters() {
        let salt = base64(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = ScramKeys::derive(ScramHash::Sha256, b"pencil", &salt, 4096);
        assert_eq!(to_base64(keys.stored_key.expose()), "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        assert_eq!(to_base64(keys.server_key.expose()), "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
    }

    #[test]
    fn digest_realm_is_behind_the_last_at() {
        let cases = [
            ("user@example.org", "16da8a4e7aab9fa2ea697dad7d840013"),
            ("user", "416d4ec0f03e973a1460441c8857be98"),
            ("user@dom.tld@realm", "8f88234d46e6d24c113c7ab715943376"),
        ];
        for (name, expected) in cases {
            assert_eq!(to_hex(digest_md5_key(name.as_bytes(), b"summersun").expose()), expected);
        }
    }
}
