//! SHA-crypt: `$5$` and `$6$`, by Ulrich Drepper's "Unix crypt using SHA-256 and SHA-512", whose steps are named below.
//!
//! Purpose: checking a password. Stored strings are made by the `sha-crypt` crate, so nothing here can write a wrong one.
//! Speed:   the thousands of rounds hash one of eight messages, which differ from round to round in nothing but the digest
//!          of the round before. They are laid out and padded once; a round writes that digest and compresses blocks.
//! Trust:   passwords come from strangers, rounds and salts from whoever wrote the stored string: caps and form are checked
//!          by the caller.
//! Never:   leave anything made of the password in memory that is given back.

use sha2::block_api::{compress256, compress512};
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::encode::to_crypt64;

/// Rounds of a string that names none.
pub(crate) const ROUNDS: u32 = 5_000;

/// The digits behind the salt of a `$5$` string.
pub(crate) fn sha256(password: &[u8], salt: &[u8], rounds: u32) -> Zeroizing<String> {
    // "22. e": three bytes make four digits, which come from three thirds of the digest, every time another first.
    let order = (0..10).flat_map(|group| [20, 10, 0].map(|third| (21 * group + third) % 30));
    digits(&*rounds_of::<Sha256, 64, 32>(password, salt, rounds), order.chain([30, 31]))
}

/// The digits behind the salt of a `$6$` string.
pub(crate) fn sha512(password: &[u8], salt: &[u8], rounds: u32) -> Zeroizing<String> {
    let order = (0..21).flat_map(|group| [42, 21, 0].map(|third| (22 * group + third) % 63));
    digits(&*rounds_of::<Sha512, 128, 64>(password, salt, rounds), order.chain([63]))
}

fn digits(digest: &[u8], order: impl Iterator<Item = usize>) -> Zeroizing<String> {
    let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(order.filter_map(|at| digest.get(at).copied()).collect());
    Zeroizing::new(to_crypt64(&bytes))
}

/// A hash function whose blocks can be padded outside it.
trait Sha<const BLOCK: usize, const DIGEST: usize>: Digest {
    /// The digest of a message that is padded already.
    fn padded(blocks: &[[u8; BLOCK]]) -> [u8; DIGEST];
}

impl Sha<64, 32> for Sha256 {
    fn padded(blocks: &[[u8; 64]]) -> [u8; 32] {
        // FIPS 180-4 §5.3.3
        let mut state = [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        compress256(&mut state, blocks);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
            *bytes = u32::to_be_bytes(word);
        }
        digest
    }
}

impl Sha<128, 64> for Sha512 {
    fn padded(blocks: &[[u8; 128]]) -> [u8; 64] {
        // FIPS 180-4 §5.3.5
        let mut state = [
            0x6a09_e667_f3bc_c908,
            0xbb67_ae85_84ca_a73b,
            0x3c6e_f372_fe94_f82b,
            0xa54f_f53a_5f1d_36f1,
            0x510e_527f_ade6_82d1,
            0x9b05_688c_2b3e_6c1f,
            0x1f83_d9ab_fb41_bd6b,
            0x5be0_cd19_137e_2179,
        ];
        compress512(&mut state, blocks);
        let mut digest = [0; 64];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
            *bytes = u64::to_be_bytes(word);
        }
        digest
    }
}

/// A padded message with a place for a digest.
struct Message<const BLOCK: usize> {
    blocks: Zeroizing<Vec<[u8; BLOCK]>>,
    /// Where the digest stands.
    at: usize,
}

impl<const BLOCK: usize> Message<BLOCK> {
    /// `before`, a digest of `digest` bytes, `behind`.
    fn new(before: &[u8], digest: usize, behind: &[u8]) -> Message<BLOCK> {
        let length = before.len() + digest + behind.len();
        // FIPS 180-4 §5.1: a one bit, zeros, and the number of bits in an eighth of a block.
        let mut blocks = Zeroizing::new(vec![[0; BLOCK]; (length + 1 + BLOCK / 8).div_ceil(BLOCK)]);
        let bytes = blocks.as_flattened_mut();
        let parts =
            before.iter().copied().chain(std::iter::repeat_n(0, digest)).chain(behind.iter().copied());
        for (to, byte) in bytes.iter_mut().zip(parts.chain([0x80])) {
            *to = byte;
        }
        if let Some(end) = bytes.last_chunk_mut::<8>() {
            *end = (8 * length as u64).to_be_bytes();
        }
        Message { blocks, at: before.len() }
    }
}

/// Steps 1 to 21: the digest of the last round.
fn rounds_of<H: Sha<BLOCK, DIGEST>, const BLOCK: usize, const DIGEST: usize>(
    password: &[u8],
    salt: &[u8],
    rounds: u32,
) -> Zeroizing<[u8; DIGEST]> {
    // "4." to "8."
    let alternate = H::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    // "1." to "3.", "9." to "12."
    let mut first = H::new().chain_update(password).chain_update(salt);
    first.update(repeated(&alternate, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { alternate.as_slice() } else { password });
        bits >>= 1;
    }
    let mut digest = Zeroizing::new([0; DIGEST]);
    if let Some(bytes) = first.finalize().first_chunk() {
        *digest = *bytes;
    }

    // "13." to "20.": P and S, as long as password and salt.
    let times = |text: &[u8], times: usize| {
        let mut hash = H::new();
        (0..times).for_each(|_| hash.update(text));
        hash.finalize()
    };
    let p = repeated(&times(password, password.len()), password.len());
    let s = repeated(&times(salt, 16 + usize::from(digest.first().copied().unwrap_or(0))), salt.len());

    // "21.": what a round hashes depends on whether its number is odd, and whether 3 and 7 divide it.
    let mut messages: [Message<BLOCK>; 8] = std::array::from_fn(|form| {
        let (odd, salted, twice) = (form & 1 != 0, form & 2 != 0, form & 4 != 0);
        let mut between = Zeroizing::new(Vec::with_capacity(s.len() + 2 * p.len()));
        if odd {
            between.extend_from_slice(&p);
        }
        if salted {
            between.extend_from_slice(&s);
        }
        if twice {
            between.extend_from_slice(&p);
        }
        if odd {
            Message::new(&between, DIGEST, &[])
        } else {
            between.extend_from_slice(&p);
            Message::new(&[], DIGEST, &between)
        }
    });
    for round in 0..rounds {
        let form = round & 1 | u32::from(round % 3 != 0) << 1 | u32::from(round % 7 != 0) << 2;
        let Some(message) = messages.get_mut(form as usize) else { continue };
        let place = message.blocks.as_flattened_mut().get_mut(message.at..);
        if let Some(place) = place.and_then(<[u8]>::first_chunk_mut) {
            *place = *digest;
        }
        *digest = H::padded(&message.blocks);
    }
    digest
}

/// The bytes of `digest`, again and again.
fn repeated(digest: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(digest.iter().copied().cycle().take(length).collect())
}

#[cfg(test)]
mod tests {
    use ::sha_crypt::Params;

    use super::*;

    #[test]
    fn specified_examples() {
        // From the specification's own list.
        for (password, salt, rounds, want) in [
            (
                "Hello world!",
                "saltstring",
                5_000,
                "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
            (
                "a very much longer text to encrypt.  This one even stretches over morethan one line.",
                "anotherlongsalts",
                1_400,
                "POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1",
            ),
            (
                "we have a short salt string but not a short password",
                "short",
                77_777,
                "WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0",
            ),
        ] {
            assert_eq!(*sha512(password.as_bytes(), salt.as_bytes(), rounds), want);
        }
        let digits = sha256(b"Hello world!", b"saltstring", 5_000);
        assert_eq!(*digits, "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5");
    }

    #[test]
    fn agrees_with_another_implementation() {
        let bytes: Vec<u8> = (0..=u8::MAX).map(|n| n.wrapping_mul(131)).cycle().take(511).collect();
        // Around every length at which a message needs another block.
        let lengths = (0..=70).chain(90..=130).chain([200, 255, 256, 257, 300, 400, 500, 511]);
        for (length, rounds) in lengths.zip(1_000..) {
            let password = &bytes[..length];
            let salt = &bytes[length % 100..][..length % 17];
            let params = Params::new(rounds).unwrap();
            assert_eq!(
                *rounds_of::<Sha256, 64, 32>(password, salt, rounds),
                ::sha_crypt::sha256_crypt(password, salt, params),
                "{length}"
            );
            assert_eq!(
                *rounds_of::<Sha512, 128, 64>(password, salt, rounds),
                ::sha_crypt::sha512_crypt(password, salt, params),
                "{length}"
            );
        }
    }

    #[test]
    fn agrees_with_crypt() {
        for (at, salt) in ["a", "....", "saltsalt", "sixteencharacter"].into_iter().enumerate() {
            let password = "pässword".repeat(at * at + 1);
            let (setting, other) = (format!("$6$rounds=1001${salt}$"), format!("$5$rounds=1001${salt}$"));
            let made = [
                setting.clone() + &sha512(password.as_bytes(), salt.as_bytes(), 1_001),
                other.clone() + &sha256(password.as_bytes(), salt.as_bytes(), 1_001),
            ];
            for (made, setting) in made.iter().zip([setting, other]) {
                assert_eq!(
                    system_auth::crypt(password.as_bytes(), setting.as_bytes()).unwrap(),
                    made.as_bytes()
                );
            }
        }
    }
}
