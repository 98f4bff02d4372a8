//! One-time password state (RFC 2289): `sha1 1024 seed 0123456789abcdef`.
//!
//! Trust: the state comes from whoever wrote the file or row.
//! Never: compute for a state that is not understood in full.

use md5::Digest as _;
use subtle::ConstantTimeEq as _;

use crate::encode::{to_hex, unhex};
use crate::{Error, Stored};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md4,
    Md5,
    Sha1,
}

/// A parsed state.
pub(crate) struct OtpState<'a> {
    algorithm: Algorithm,
    pub(crate) sequence: u32,
    seed: &'a [u8],
    hash: [u8; 8],
}

impl<'a> OtpState<'a> {
    pub(crate) fn parse(stored: &Stored<'_>, text: &'a [u8]) -> Result<OtpState<'a>, Error> {
        parse(text).ok_or_else(|| stored.malformed("not an OTP state"))
    }

    /// Whether `passphrase`, hashed as often as the sequence says, gives the stored hash.
    pub(crate) fn verify(&self, passphrase: &[u8]) -> bool {
        hash(self.algorithm, self.sequence, self.seed, passphrase).ct_eq(&self.hash).into()
    }
}

/// A new state with SHA-1.
pub(crate) fn generate(sequence: u32, seed: &[u8; 8], passphrase: &[u8]) -> String {
    let seed = to_hex(seed);
    let hash = hash(Algorithm::Sha1, sequence, seed.as_bytes(), passphrase);
    format!("sha1 {sequence} {seed} {}", to_hex(&hash))
}

fn parse(text: &[u8]) -> Option<OtpState<'_>> {
    let mut words = text.split(|&b| b == b' ');
    let algorithm = match words.next()?.to_ascii_lowercase().as_slice() {
        b"md4" => Algorithm::Md4,
        b"md5" => Algorithm::Md5,
        b"sha1" => Algorithm::Sha1,
        _ => return None,
    };
    let sequence = words.next()?;
    if sequence.is_empty() || sequence.len() > 9 || !sequence.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let sequence = std::str::from_utf8(sequence).ok()?.parse().ok().filter(|n| *n > 0)?;
    let seed = words.next()?;
    // RFC 2289 §6.0: 1 to 16 letters and digits.
    if !(1..=16).contains(&seed.len()) || !seed.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let hash = <[u8; 8]>::try_from(unhex(words.next()?)?).ok()?;
    if words.next().is_some() { None } else { Some(OtpState { algorithm, sequence, seed, hash }) }
}

fn hash(algorithm: Algorithm, sequence: u32, seed: &[u8], passphrase: &[u8]) -> [u8; 8] {
    let mut first = seed.to_ascii_lowercase();
    first.extend_from_slice(passphrase);
    let mut state = step(algorithm, &first);
    zeroize::Zeroize::zeroize(&mut first);
    for _ in 0..sequence {
        state = step(algorithm, &state);
    }
    state
}

/// One hash, folded to 64 bits (RFC 2289 appendix A).
fn step(algorithm: Algorithm, input: &[u8]) -> [u8; 8] {
    match algorithm {
        Algorithm::Md4 => fold16(md4::Md4::digest(input).into()),
        Algorithm::Md5 => fold16(md5::Md5::digest(input).into()),
        Algorithm::Sha1 => {
            let digest: [u8; 20] = sha1::Sha1::digest(input).into();
            let mut words = digest.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
            let mut word = || words.next().unwrap_or_default();
            let (a, b, c, d, e) = (word(), word(), word(), word(), word());
            (u64::from((a ^ c ^ e).swap_bytes()) << 32 | u64::from((b ^ d).swap_bytes())).to_be_bytes()
        }
    }
}

fn fold16(digest: [u8; 16]) -> [u8; 8] {
    let mut folded = [0; 8];
    for (slot, (high, low)) in folded.iter_mut().zip(digest.iter().zip(digest.iter().skip(8))) {
        *slot = high ^ low;
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2289 appendix C.
    #[test]
    fn published_vectors() {
        let cases = [
            (Algorithm::Md4, "This is a test.", "TeSt", 0, "d1854218ebbb0b51"),
            (Algorithm::Md5, "This is a test.", "TeSt", 0, "9e876134d90499dd"),
            (Algorithm::Md5, "This is a test.", "TeSt", 1, "7965e05436f5029f"),
            (Algorithm::Sha1, "This is a test.", "TeSt", 0, "bb9e6ae1979d8ff4"),
            (Algorithm::Sha1, "This is a test.", "TeSt", 1, "63d936639734385b"),
        ];
        for (algorithm, pass, seed, sequence, expected) in cases {
            let got = to_hex(&hash(algorithm, sequence, seed.as_bytes(), pass.as_bytes()));
            assert_eq!(got, expected, "{algorithm:?} {sequence}");
        }
    }

    #[test]
    fn malformed_states() {
        for text in [
            "",
            "sha9 1 x 00",
            "sha1 x seed 0123456789abcdef",
            "sha1 0 seed 0123456789abcdef",
            "sha1 1 seed 0123",
            "sha1 1 se:d 0123456789abcdef",
            "sha1 1 seed 0123456789abcdef x",
            "sha1 1",
        ] {
            assert!(parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
