//! CRAM-MD5, RFC 2195.
//!
//! A stored `{CRAM-MD5}` key is not the password but the two MD5 states after the padded key block, so the
//! HMAC is finished from those states.
//!
//! Trust: name and digest are a stranger's until they match.
//! Never: tell an unknown user from a wrong digest.

use md5::block_api::compress;
use subtle::ConstantTimeEq as _;

use crate::{
    Context, Credentials, Failure, KeyKind, Lookup, Secret, Step, Success, challenge, hex, unhex, user_name,
};

#[derive(Debug)]
pub(crate) struct Cram {
    challenge: Vec<u8>,
    pending: Option<(String, [u8; 16])>,
}

impl Cram {
    pub(crate) fn start(ctx: &mut Context<'_>) -> (Cram, Step) {
        let mut random = [0; 8];
        (ctx.random)(&mut random);
        let text = format!("<{}.{}@{}>", u64::from_le_bytes(random), ctx.now, ctx.hostname).into_bytes();
        (Cram { challenge: text.clone(), pending: None }, challenge(text))
    }

    pub(crate) fn respond(&mut self, data: &[u8]) -> Step {
        if self.pending.is_some() {
            return Step::Failure(Failure::OutOfOrder);
        }
        match parse(data) {
            Ok((user, digest)) => {
                self.pending = Some((user.clone(), digest));
                Step::NeedCredentials(Lookup { user, authzid: None, kind: KeyKind::CramMd5 })
            }
            Err(failure) => Step::Failure(failure),
        }
    }

    pub(crate) fn credentials(&mut self, credentials: &Credentials) -> Step {
        let Some((user, digest)) = self.pending.take() else {
            return Step::Failure(Failure::OutOfOrder);
        };
        let states = match credentials {
            Credentials::Plain(password) => key_states(password.expose()),
            Credentials::CramMd5(stored) => match <[u8; 32]>::try_from(stored.expose()) {
                Ok(states) => Secret::new(states.to_vec()),
                Err(_) => return Step::Failure(Failure::Mismatch),
            },
            _ => return Step::Failure(Failure::Mismatch),
        };
        match hmac_from_states(states.expose(), &self.challenge) {
            Some(expected) if bool::from(expected.ct_eq(&digest)) => {
                Step::Success(Success { user, authzid: None, final_data: None })
            }
            _ => Step::Failure(Failure::Mismatch),
        }
    }
}

/// `user SP 32 hex digits`; the user may contain spaces, so the last one separates.
fn parse(data: &[u8]) -> Result<(String, [u8; 16]), Failure> {
    let space = data.iter().rposition(|&b| b == b' ').ok_or(Failure::Malformed)?;
    let (user, rest) = data.split_at(space);
    let digest = unhex::<16>(rest.get(1..).unwrap_or_default()).ok_or(Failure::Malformed)?;
    Ok((user_name(user)?, digest))
}

/// The MD5 start value, RFC 1321 §3.3.
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The stored form of a password: outer state, then inner state (RFC 2195 §2 calls them precomputed contexts).
pub(crate) fn key_states(password: &[u8]) -> Secret {
    use md5::Digest as _;
    let mut key = [0_u8; 64];
    if password.len() > 64 {
        let digest = md5::Md5::digest(password);
        for (slot, byte) in key.iter_mut().zip(digest) {
            *slot = byte;
        }
    } else {
        for (slot, byte) in key.iter_mut().zip(password) {
            *slot = *byte;
        }
    }
    let mut out = Vec::with_capacity(32);
    for pad in [0x5c_u8, 0x36] {
        let mut state = START;
        compress(&mut state, &[key.map(|b| b ^ pad)]);
        out.extend(state.iter().flat_map(|word| word.to_le_bytes()));
    }
    zeroize::Zeroize::zeroize(&mut key);
    Secret::new(out)
}

pub(crate) fn hmac_from_states(states: &[u8], message: &[u8]) -> Option<[u8; 16]> {
    let (outer, inner) = states.split_at_checked(16)?;
    let digest = finish(inner, message)?;
    finish(outer, &digest)
}

/// MD5 of a message that follows one block already in `state`.
fn finish(state: &[u8], message: &[u8]) -> Option<[u8; 16]> {
    let mut words = [0_u32; 4];
    for (word, bytes) in words.iter_mut().zip(state.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().ok()?);
    }
    // RFC 1321 §3.1, §3.2: 0x80, zeros, length in bits.
    let bits = (64 + u64::try_from(message.len()).ok()?) * 8;
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend(bits.to_le_bytes());
    for block in padded.chunks_exact(64) {
        compress(&mut words, &[block.try_into().ok()?]);
    }
    let mut out = [0; 16];
    for (slot, byte) in out.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
        *slot = byte;
    }
    Some(out)
}

/// The stored `{CRAM-MD5}` text of a password, for tests and generators.
#[allow(dead_code)]
pub(crate) fn stored_text(password: &[u8]) -> String {
    hex(key_states(password).expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2195 §2.
    #[test]
    fn rfc_2195_example() {
        let states = key_states(b"tanstaaftanstaaf");
        let digest =
            hmac_from_states(states.expose(), b"<1896.697170952@postoffice.reston.mci.net>").unwrap();
        assert_eq!(hex(&digest), "b913a602c7eda7a495b4e6e7334d3890");
    }

    /// RFC 2202 §2, cases 1 to 3 and 6 (a key longer than the block).
    #[test]
    fn rfc_2202_cases() {
        let cases: [(Vec<u8>, Vec<u8>, &str); 4] = [
            (vec![0x0b; 16], b"Hi There".to_vec(), "9294727a3638bb1c13f48ef8158bfc9d"),
            (b"Jefe".to_vec(), b"what do ya want for nothing?".to_vec(), "750c783e6ab0b503eaa86e310a5db738"),
            (vec![0xaa; 16], vec![0xdd; 50], "56be34521d144c88dbb8c733f0e8b3f6"),
            (
                vec![0xaa; 80],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd",
            ),
        ];
        for (key, data, want) in cases {
            let got = hmac_from_states(key_states(&key).expose(), &data).unwrap();
            assert_eq!(hex(&got), want);
        }
    }

    /// The stored form Dovecot writes for `summersun`.
    #[test]
    fn stored_form_is_dovecots() {
        assert_eq!(
            stored_text(b"summersun"),
            "4e3771a1a672bdc8bd8db861c1f2a29a8e043c99300ca203a1a92bbea7506691"
        );
    }
}
