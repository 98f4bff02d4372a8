//! Argon2 PHC strings: `$argon2id$v=19$m=65536,t=3,p=1$salt$hash`.
//!
//! Parsed here rather than by the hashing crate, so that caps are checked on exactly what will be computed and
//! nothing but the form libsodium and the reference tool write is accepted.
//!
//! Trust: the text comes from whoever wrote the file or row; the caller has capped its costs.
//! Never: compute what was not parsed in full, or compare in a time that depends on the hash.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq as _;

use crate::{Error, Stored, Verdict};

/// Memory that a thread keeps between argon2 computations, so that 64 MiB are not mapped and faulted in for
/// every login. Starts empty.
#[derive(Default)]
pub struct Scratch {
    blocks: Vec<Block>,
}

impl Scratch {
    /// Bytes held.
    pub fn held(&self) -> u64 {
        self.blocks.capacity() as u64 * Block::SIZE as u64
    }

    /// Gives the memory back, for instance when a hash thread becomes idle.
    pub fn release(&mut self) {
        self.blocks = Vec::new();
    }

    fn blocks(&mut self, count: usize) -> Option<&mut [Block]> {
        let missing = count.saturating_sub(self.blocks.len());
        if missing > 0 {
            self.blocks.try_reserve_exact(missing).ok()?;
            self.blocks.resize(count, Block::new());
        }
        self.blocks.get_mut(..count)
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({} bytes)", self.held())
    }
}

/// What a faster implementation is asked: version 1.3, one lane.
#[derive(Clone, Copy)]
pub struct Argon2Question<'a> {
    /// Argon2id, not Argon2i.
    pub id: bool,
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// The salt.
    pub salt: &'a [u8; 16],
    /// The password.
    pub password: &'a [u8],
}

/// Another implementation of Argon2: fills the buffer with the hash, or returns `false` and is not needed.
pub type FastArgon2 = fn(Argon2Question<'_>, &mut [u8]) -> bool;

/// A parsed string.
pub(crate) struct Hash {
    algorithm: Algorithm,
    version: Version,
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
    salt: Vec<u8>,
    output: Vec<u8>,
}

pub(crate) fn parse(stored: &Stored<'_>, text: &[u8]) -> Result<Hash, Error> {
    fields(text).ok_or_else(|| stored.malformed("not an argon2 string"))
}

fn fields(text: &[u8]) -> Option<Hash> {
    let mut fields = text.strip_prefix(b"$")?.split(|&b| b == b'$');
    // The scheme's name is not compared with the variant, as in Dovecot. Argon2d is open to timing attacks and
    // libsodium has no such thing.
    let algorithm = match fields.next()? {
        b"argon2i" => Algorithm::Argon2i,
        b"argon2id" => Algorithm::Argon2id,
        _ => return None,
    };
    let version = match fields.next()? {
        b"v=19" => Version::V0x13,
        b"v=16" => Version::V0x10,
        _ => return None,
    };
    let mut costs = fields.next()?.split(|&b| b == b',');
    let memory_kib = number(costs.next()?.strip_prefix(b"m=")?)?;
    let passes = number(costs.next()?.strip_prefix(b"t=")?)?;
    let lanes = number(costs.next()?.strip_prefix(b"p=")?)?;
    let salt = STANDARD_NO_PAD.decode(fields.next()?).ok()?;
    let output = STANDARD_NO_PAD.decode(fields.next()?).ok()?;
    let sizes = (argon2::MIN_SALT_LEN..=64).contains(&salt.len()) && (16..=128).contains(&output.len());
    if costs.next().is_some() || fields.next().is_some() || !sizes {
        return None;
    }
    Some(Hash { algorithm, version, memory_kib, passes, lanes, salt, output })
}

fn number(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) || (text.len() > 1 && text.first() == Some(&b'0')) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The caller has checked the caps.
pub(crate) fn verify(
    stored: &Stored<'_>,
    text: &[u8],
    password: &[u8],
    fast: Option<FastArgon2>,
    scratch: &mut Scratch,
) -> Result<Verdict, Error> {
    let hash = parse(stored, text)?;
    let mut output = [0_u8; 128];
    let output = output.get_mut(..hash.output.len()).ok_or_else(|| stored.malformed("hash too long"))?;
    if !compute_fast(&hash, password, output, fast) {
        compute(&hash, password, output, scratch, stored)?;
    }
    Ok(if output.ct_eq(&hash.output).into() { Verdict::Match } else { Verdict::Mismatch })
}

fn compute_fast(hash: &Hash, password: &[u8], output: &mut [u8], fast: Option<FastArgon2>) -> bool {
    let (Some(fast), Ok(salt)) = (fast, hash.salt.as_slice().try_into()) else { return false };
    let Hash { memory_kib, passes, .. } = *hash;
    let id = hash.algorithm == Algorithm::Argon2id;
    hash.version == Version::V0x13
        && hash.lanes == 1
        && fast(Argon2Question { id, memory_kib, passes, salt, password }, output)
}

fn compute(
    hash: &Hash,
    password: &[u8],
    output: &mut [u8],
    scratch: &mut Scratch,
    stored: &Stored<'_>,
) -> Result<(), Error> {
    let params = Params::new(hash.memory_kib, hash.passes, hash.lanes, Some(output.len()))
        .map_err(|_| stored.malformed("impossible argon2 parameters"))?;
    let blocks = scratch.blocks(params.block_count()).ok_or(Error::Memory(stored.scheme()))?;
    Argon2::new(hash.algorithm, hash.version, params)
        .hash_password_into_with_memory(password, &hash.salt, output, blocks)
        .map_err(|_| stored.malformed("argon2 refused the parameters"))
}

/// Makes a string. `id` chooses Argon2id over Argon2i.
pub(crate) fn generate(
    stored: &Stored<'_>,
    id: bool,
    (memory_kib, passes, lanes): (u32, u32, u32),
    salt: &[u8; 16],
    password: &[u8],
) -> Result<String, Error> {
    let algorithm = if id { Algorithm::Argon2id } else { Algorithm::Argon2i };
    let hash = Hash {
        algorithm,
        version: Version::V0x13,
        memory_kib,
        passes,
        lanes,
        salt: salt.to_vec(),
        output: Vec::new(),
    };
    let mut output = [0_u8; 32];
    compute(&hash, password, &mut output, &mut Scratch::default(), stored)?;
    Ok(format!(
        "${}$v=19$m={memory_kib},t={passes},p={lanes}${}${}",
        algorithm.as_str(),
        STANDARD_NO_PAD.encode(salt),
        STANDARD_NO_PAD.encode(output)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    const GOOD: &str =
        "$argon2id$v=19$m=64,t=2,p=1$3+L499XhRrhMMwdmaWG8mA$/qPrNwZBHOv/d4HR7db336Zv5LHCsZmAoj/BmyxKn/c";

    fn check(text: &str) -> Result<Verdict, Error> {
        let stored = Stored::new(Scheme::Argon2id, text.as_bytes());
        verify(&stored, text.as_bytes(), b"summersun", None, &mut Scratch::default())
    }

    #[test]
    fn verifies_and_refuses() {
        assert_eq!(check(GOOD), Ok(Verdict::Match));
        for (from, to) in [
            ("v=19$", ""),
            ("v=19", "v=18"),
            ("argon2id", "argon2d"),
            ("m=64", "m=064"),
            ("m=64", "m=+64"),
            ("m=64", "m=4294967360"),
            ("m=64", "m=7"),
            ("t=2", "t=0"),
            ("p=1", "p=9"),
            ("p=1", "p=1,keyid=AA"),
            ("$3+L4", "$"),
            ("Kn/c", "Kn/c$"),
            ("Kn/c", "Kn/c="),
            ("Kn/c", "Kn/d"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert!(matches!(check(&text), Err(Error::Malformed { .. }) | Ok(Verdict::Mismatch)), "{text}");
        }
    }

    #[test]
    fn scratch_is_reused_and_given_back() {
        let stored = Stored::new(Scheme::Argon2, GOOD.as_bytes());
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            assert_eq!(
                verify(&stored, GOOD.as_bytes(), b"summersun", None, &mut scratch),
                Ok(Verdict::Match)
            );
            assert_eq!(scratch.held(), 64 << 10);
        }
        scratch.release();
        assert_eq!(scratch.held(), 0);
    }
}
