//! SCRAM-SHA-1 and SCRAM-SHA-256 with and without channel binding: RFC 5802, RFC 7677, RFC 9266.
//!
//! A user without usable keys gets a salt made from the server's secret and the name, always the same, and is
//! refused only after the proof. Keys derived from a stored password use the same salt, so the two kinds of
//! user cannot be told apart by it.
//!
//! Trust: every message is a stranger's until the proof matches.
//! Never: tell an unknown user from a wrong proof, or skip a binding that was asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    Challenge, Context, Credentials, Failure, KeyKind, Lookup, Secret, Step, Success, other_name, user_name,
};

/// Iterations for derived and invented keys; RFC 7677 §4 asks for at least 4096.
pub const SCRAM_ITERATIONS: u32 = 4096;
/// Length of salts we make.
const SALT: usize = 16;

/// The hash of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// A channel binding type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BindingType {
    /// RFC 9266, TLS 1.3 and TLS 1.2 with extended master secret.
    TlsExporter,
    /// RFC 5929 §4, a hash of the server's certificate.
    TlsServerEndPoint,
}

impl BindingType {
    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            BindingType::TlsExporter => "tls-exporter",
            BindingType::TlsServerEndPoint => "tls-server-end-point",
        }
    }

    fn parse(name: &[u8]) -> Option<BindingType> {
        [BindingType::TlsExporter, BindingType::TlsServerEndPoint]
            .into_iter()
            .find(|kind| kind.as_str().as_bytes() == name)
    }
}

/// Stored SCRAM keys, RFC 5802 §3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// The salt, decoded.
    pub salt: Vec<u8>,
    /// `H(ClientKey)`.
    pub stored_key: Secret,
    /// `HMAC(SaltedPassword, "Server Key")`.
    pub server_key: Secret,
}

impl ScramKeys {
    /// Makes the keys of a password; the password goes through SASLprep where that is defined for it.
    pub fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let salted = Secret::new(hash.salted_password(&prepared(password), salt, iterations));
        let client_key = Secret::new(hash.hmac(salted.expose(), b"Client Key"));
        ScramKeys {
            iterations,
            salt: salt.to_vec(),
            stored_key: Secret::new(hash.digest(client_key.expose())),
            server_key: Secret::new(hash.hmac(salted.expose(), b"Server Key")),
        }
    }
}

/// The password after SASLprep where that is defined for it, else as it is.
pub(crate) fn prepared(password: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    use std::borrow::Cow;
    match std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok()) {
        Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
        Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
        None => Cow::Borrowed(password),
    }
}

impl Hash {
    /// Length of a digest.
    pub fn size(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
        }
    }

    pub(crate) fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha1 => Sha1::digest(data).to_vec(),
            Hash::Sha256 => Sha256::digest(data).to_vec(),
        }
    }

    #[allow(clippy::expect_used)]
    pub(crate) fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        const ANY_KEY: &str = "RFC 2104 §2: HMAC takes keys of any length";
        match self {
            Hash::Sha1 => {
                let mut mac = Hmac::<Sha1>::new_from_slice(key).expect(ANY_KEY);
                mac.update(data);
                mac.finalize().into_bytes().to_vec()
            }
            Hash::Sha256 => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).expect(ANY_KEY);
                mac.update(data);
                mac.finalize().into_bytes().to_vec()
            }
        }
    }

    pub(crate) fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut out = vec![0; self.size()];
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, &mut out),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut out),
        }
        out
    }

    fn key_kind(self) -> KeyKind {
        match self {
            Hash::Sha1 => KeyKind::ScramSha1,
            Hash::Sha256 => KeyKind::ScramSha256,
        }
    }

    fn key_kind_label(self) -> &'static [u8] {
        match self {
            Hash::Sha1 => b"sha-1\0",
            Hash::Sha256 => b"sha-256\0",
        }
    }

    /// The salt of a user who has none of his own: unknown ones, and those whose keys are derived from a stored
    /// password (with [`SCRAM_ITERATIONS`]).
    pub fn invented_salt(self, secret: &[u8], user: &str) -> Vec<u8> {
        let label = [b"scram salt\0".as_slice(), self.key_kind_label(), user.as_bytes()].concat();
        let mut salt = Hash::Sha256.hmac(secret, &label);
        salt.truncate(SALT);
        salt
    }
}

#[derive(Debug)]
pub(crate) struct Scram {
    hash: Hash,
    plus: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    First,
    Lookup(ClientFirst),
    Final(Box<Expect>),
}

#[derive(Debug, Clone)]
struct ClientFirst {
    gs2_header: Vec<u8>,
    binding: Option<BindingType>,
    bare: Vec<u8>,
    user: String,
    authzid: Option<String>,
    nonce: Vec<u8>,
}

#[derive(Debug)]
struct Expect {
    first: ClientFirst,
    nonce: Vec<u8>,
    server_first: Vec<u8>,
    keys: ScramKeys,
    /// Keys made up for a user who has none: the proof is never accepted.
    invented: bool,
}

impl Scram {
    pub(crate) fn new(hash: Hash, plus: bool) -> Scram {
        Scram { hash, plus, stage: Stage::First }
    }

    pub(crate) fn respond(&mut self, data: &[u8], binding: Option<&[u8]>, ctx: &Context<'_>) -> Step {
        match std::mem::replace(&mut self.stage, Stage::First) {
            Stage::First => match self.client_first(data, ctx) {
                Ok(first) => {
                    let lookup = Lookup {
                        user: first.user.clone(),
                        authzid: first.authzid.clone(),
                        kind: self.hash.key_kind(),
                    };
                    self.stage = Stage::Lookup(first);
                    Step::NeedCredentials(lookup)
                }
                Err(failure) => Step::Failure(failure),
            },
            Stage::Lookup(_) => Step::Failure(Failure::OutOfOrder),
            Stage::Final(expect) => match self.client_final(data, binding, &expect) {
                Ok(success) => Step::Success(success),
                Err(failure) => Step::Failure(failure),
            },
        }
    }

    pub(crate) fn credentials(&mut self, credentials: &Credentials, ctx: &mut Context<'_>) -> Step {
        let Stage::Lookup(first) = std::mem::replace(&mut self.stage, Stage::First) else {
            return Step::Failure(Failure::OutOfOrder);
        };
        let size = self.hash.size();
        let (keys, invented) = match credentials {
            Credentials::Scram(keys)
                if keys.iterations > 0
                    && !keys.salt.is_empty()
                    && keys.stored_key.expose().len() == size
                    && keys.server_key.expose().len() == size =>
            {
                (keys.clone(), false)
            }
            Credentials::Plain(password) => {
                let salt = self.hash.invented_salt(ctx.secret, &first.user);
                (ScramKeys::derive(self.hash, password.expose(), &salt, SCRAM_ITERATIONS), false)
            }
            _ => {
                let salt = self.hash.invented_salt(ctx.secret, &first.user);
                let nobody = || Secret::new(vec![0; size]);
                (
                    ScramKeys {
                        iterations: SCRAM_ITERATIONS,
                        salt,
                        stored_key: nobody(),
                        server_key: nobody(),
                    },
                    true,
                )
            }
        };
        // RFC 5802 §5.1: printable, no comma. Base64 without padding is both.
        let mut random = [0; 24];
        (ctx.random)(&mut random);
        let mut nonce = first.nonce.clone();
        nonce.extend_from_slice(BASE64.encode(random).as_bytes());
        let server_first = [
            b"r=".as_slice(),
            &nonce,
            b",s=",
            BASE64.encode(&keys.salt).as_bytes(),
            b",i=",
            keys.iterations.to_string().as_bytes(),
        ]
        .concat();
        let challenge = Challenge { data: server_first.clone(), binding: first.binding };
        self.stage = Stage::Final(Box::new(Expect { first, nonce, server_first, keys, invented }));
        Step::Challenge(challenge)
    }

    /// `gs2-cbind-flag "," [ "a=" saslname ] "," [ "m=" … "," ] "n=" saslname ",r=" nonce [ "," extensions ]`
    fn client_first(&self, data: &[u8], ctx: &Context<'_>) -> Result<ClientFirst, Failure> {
        let mut commas = data.iter().enumerate().filter(|(_, b)| **b == b',').map(|(at, _)| at);
        let (Some(one), Some(two)) = (commas.next(), commas.next()) else {
            return Err(Failure::Malformed);
        };
        let (header, bare) = data.split_at(two + 1);
        let flag = header.get(..one).unwrap_or_default();
        let authzid = header.get(one + 1..two).unwrap_or_default();

        let binding = self.binding_of(flag, ctx)?;
        let authzid = match authzid {
            b"" => None,
            _ => Some(sasl_name(authzid.strip_prefix(b"a=").ok_or(Failure::Malformed)?)?),
        };
        if bare.starts_with(b"m=") {
            // RFC 5802 §5.1: a mandatory extension we do not know.
            return Err(Failure::Unsupported);
        }
        let mut attributes = bare.split(|&b| b == b',');
        let user = attributes.next().and_then(|a| a.strip_prefix(b"n=")).ok_or(Failure::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix(b"r=")).ok_or(Failure::Malformed)?;
        if nonce.is_empty() || !nonce.iter().all(u8::is_ascii_graphic) {
            return Err(Failure::Malformed);
        }
        if !attributes.all(|a| matches!(a, [name, b'=', ..] if name.is_ascii_alphabetic())) {
            return Err(Failure::Malformed);
        }
        let user = sasl_name(user)?;
        Ok(ClientFirst {
            gs2_header: header.to_vec(),
            binding,
            bare: bare.to_vec(),
            authzid: authzid.and_then(|name| other_name(&name, &user)),
            user,
            nonce: nonce.to_vec(),
        })
    }

    /// RFC 5802 §6: which flags go with which mechanism.
    fn binding_of(&self, flag: &[u8], ctx: &Context<'_>) -> Result<Option<BindingType>, Failure> {
        match flag {
            // The client could bind and thinks we cannot: a downgrade if we offered it.
            b"y" if !ctx.bindings.is_empty() => Err(Failure::ChannelBinding),
            b"n" | b"y" if self.plus => Err(Failure::ChannelBinding),
            b"n" | b"y" => Ok(None),
            _ => {
                let name = flag.strip_prefix(b"p=").ok_or(Failure::Malformed)?;
                let kind = BindingType::parse(name).ok_or(Failure::ChannelBinding)?;
                if self.plus && ctx.bindings.contains(&kind) {
                    Ok(Some(kind))
                } else {
                    Err(Failure::ChannelBinding)
                }
            }
        }
    }

    /// `"c=" base64 ",r=" nonce [ "," extensions ] ",p=" base64`
    fn client_final(&self, data: &[u8], binding: Option<&[u8]>, expect: &Expect) -> Result<Success, Failure> {
        let proof_at = data.windows(3).rposition(|w| w == b",p=").ok_or(Failure::Malformed)?;
        let (without_proof, proof) = data.split_at(proof_at);
        let proof = BASE64.decode(proof.get(3..).unwrap_or_default()).map_err(|_| Failure::Malformed)?;
        let mut attributes = without_proof.split(|&b| b == b',');
        let bound = attributes.next().and_then(|a| a.strip_prefix(b"c=")).ok_or(Failure::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix(b"r=")).ok_or(Failure::Malformed)?;
        if attributes.any(|a| a.starts_with(b"m=")) {
            return Err(Failure::Unsupported);
        }
        let bound = BASE64.decode(bound).map_err(|_| Failure::Malformed)?;
        let mut want = expect.first.gs2_header.clone();
        if expect.first.binding.is_some() {
            // Without data from the TLS layer nothing can be bound.
            want.extend_from_slice(binding.filter(|b| !b.is_empty()).ok_or(Failure::ChannelBinding)?);
        }
        if !bool::from(bound.ct_eq(&want)) {
            return Err(Failure::ChannelBinding);
        }
        if !bool::from(nonce.ct_eq(&expect.nonce)) || proof.len() != self.hash.size() {
            return Err(Failure::Mismatch);
        }
        self.check_proof(without_proof, &proof, expect)
    }

    /// RFC 5802 §3: recover ClientKey from the proof and compare its hash.
    fn check_proof(&self, without_proof: &[u8], proof: &[u8], expect: &Expect) -> Result<Success, Failure> {
        let auth_message =
            [&expect.first.bare, b",".as_slice(), &expect.server_first, b",", without_proof].concat();
        let signature = self.hash.hmac(expect.keys.stored_key.expose(), &auth_message);
        let client_key = Secret::new(proof.iter().zip(&signature).map(|(p, s)| p ^ s).collect());
        let stored = self.hash.digest(client_key.expose());
        let matches = bool::from(stored.ct_eq(expect.keys.stored_key.expose()));
        if !matches || expect.invented {
            return Err(Failure::Mismatch);
        }
        let verifier = self.hash.hmac(expect.keys.server_key.expose(), &auth_message);
        Ok(Success {
            user: expect.first.user.clone(),
            authzid: expect.first.authzid.clone(),
            final_data: Some(format!("v={}", BASE64.encode(verifier)).into_bytes()),
        })
    }
}

/// RFC 5802 §5.1 saslname: `=2C` and `=3D` are the only escapes, any other `=` is an error.
fn sasl_name(raw: &[u8]) -> Result<String, Failure> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'=' {
            out.push(byte);
            continue;
        }
        let (escape, tail) = rest.split_at_checked(2).ok_or(Failure::Malformed)?;
        out.push(match escape {
            b"2C" => b',',
            b"3D" => b'=',
            _ => return Err(Failure::Malformed),
        });
        rest = tail;
    }
    user_name(&out)
}

/// Runs an exchange whose server nonce is given, for published transcripts.
#[cfg(test)]
pub(crate) fn replay(
    hash: Hash,
    keys: ScramKeys,
    client_first: &[u8],
    nonce: &[u8],
    client_final: &[u8],
) -> Result<Success, Failure> {
    let scram = Scram::new(hash, false);
    let ctx = Context {
        hostname: "",
        realms: &[],
        secret: b"",
        bindings: &[],
        now: 0,
        apop: None,
        random: &mut |_| {},
    };
    let first = scram.client_first(client_first, &ctx)?;
    let server_first = [
        b"r=".as_slice(),
        nonce,
        b",s=",
        BASE64.encode(&keys.salt).as_bytes(),
        b",i=",
        keys.iterations.to_string().as_bytes(),
    ]
    .concat();
    let expect = Expect { first, nonce: nonce.to_vec(), server_first, keys, invented: false };
    scram.client_final(client_final, None, &expect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sasl_names() {
        let cases: [(&[u8], Result<&str, Failure>); 8] = [
            (b"user", Ok("user")),
            (b"a=2Cb=3Dc", Ok("a,b=c")),
            (b"=2c", Err(Failure::Malformed)),
            (b"a=", Err(Failure::Malformed)),
            (b"a=2", Err(Failure::Malformed)),
            (b"a=41", Err(Failure::Malformed)),
            (b"", Err(Failure::Malformed)),
            (b"\xff", Err(Failure::Malformed)),
        ];
        for (raw, want) in cases {
            assert_eq!(sasl_name(raw), want.map(str::to_owned), "{raw:?}");
        }
    }

    /// The stored form Dovecot writes for `pa$$wörd-1`.
    #[test]
    fn derived_keys_are_dovecots() {
        let salt = BASE64.decode("yd2P4U79dgaNpoggb+sGGA==").unwrap();
        let keys = ScramKeys::derive(Hash::Sha1, "pa$$wörd-1".as_bytes(), &salt, 4096);
        assert_eq!(BASE64.encode(keys.stored_key.expose()), "ZsCEO+3gizuMZW3g8ygNzwjcIOg=");
        assert_eq!(BASE64.encode(keys.server_key.expose()), "a+oWqmrMIHolQ7dMPUdpsc1C45I=");
    }

    #[test]
    fn invented_salts_are_stable_and_differ() {
        let salt = |secret: &[u8], user: &str| Hash::Sha256.invented_salt(secret, user);
        assert_eq!(salt(b"k", "a"), salt(b"k", "a"));
        assert_ne!(salt(b"k", "a"), salt(b"k", "b"));
        assert_ne!(salt(b"k", "a"), salt(b"l", "a"));
        assert_ne!(salt(b"k", "a"), Hash::Sha1.invented_salt(b"k", "a"));
    }
}
