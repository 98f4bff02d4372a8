//! Making stored strings.
//!
//! Trust: the password comes from the administrator, or from a user who changes it.
//! Never: reuse a salt, or make a string that could not be verified again.

use ::sha_crypt::{PasswordHasher as _, ShaCrypt};

use crate::crypt::{CryptText, classify};
use crate::encode::{CRYPT64, to_base64, to_bcrypt64, to_crypt64, to_hex};
use crate::{
    Crypt, Encoding, Error, Method, Scheme, ScramHash, ScramKeys, Secret, Stored, argon,
    check_password_bytes, cram_md5_states, digest_md5_key, otp,
};
use md5::Digest;

/// How to make a string. The default suits new accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generate {
    /// Encoding of the data; [`Encoding::Own`] is the scheme's usual one.
    pub encoding: Encoding,
    /// Rounds or iterations of sha-crypt (5,000), PBKDF2 (100,000), SCRAM (4,096), `$sha1$`, `$md5`, OTP sequence
    /// (1,024).
    pub rounds: Option<u32>,
    /// bcrypt cost, 10.
    pub bcrypt_cost: u32,
    /// argon2 memory in KiB, 64 MiB; for `{ARGON2I}` half of it, as doveadm does.
    pub argon2_memory: Option<u32>,
    /// argon2 passes, 3; for `{ARGON2I}` 4.
    pub argon2_passes: Option<u32>,
    /// argon2 lanes, 1.
    pub argon2_lanes: u32,
    /// Method of `{CRYPT}`: yescrypt, Debian's default.
    pub method: Method,
}

impl Default for Generate {
    fn default() -> Generate {
        Generate {
            encoding: Encoding::Own,
            rounds: None,
            bcrypt_cost: 10,
            argon2_memory: None,
            argon2_passes: None,
            argon2_lanes: 1,
            method: Method::Yescrypt,
        }
    }
}

/// Makes `{SCHEME}data` for a password. `user` is needed for DIGEST-MD5 only.
///
/// # Errors
/// The password cannot be transmitted or stored that way, the parameters are impossible, or crypt(3) does not know
/// the method.
pub fn generate(
    scheme: Scheme,
    user: &[u8],
    password: &[u8],
    how: &Generate,
    crypt: &dyn Crypt,
) -> Result<Secret, Error> {
    let data = generate_data(scheme, user, password, how, crypt)?;
    let suffix = match how.encoding {
        Encoding::Own => "",
        Encoding::Base64 => ".B64",
        Encoding::Hex => ".HEX",
    };
    let mut out = format!("{{{scheme}{suffix}}}").into_bytes();
    out.extend_from_slice(data.expose());
    Ok(Secret::new(out))
}

/// Like [`generate`], without the prefix.
///
/// # Errors
/// As [`generate`].
pub fn generate_data(
    scheme: Scheme,
    user: &[u8],
    password: &[u8],
    how: &Generate,
    crypt: &dyn Crypt,
) -> Result<Secret, Error> {
    check_password_bytes(password)?;
    let made = make(scheme, user, password, how, crypt)?;
    let (bytes, own) = match made {
        Made::Text(bytes) => (bytes, Encoding::Own),
        Made::Raw(bytes, own) => (bytes, own),
    };
    Ok(Secret::new(match (how.encoding, own) {
        (Encoding::Own, Encoding::Own) => bytes,
        (Encoding::Hex, _) | (Encoding::Own, Encoding::Hex) => to_hex(&bytes).into_bytes(),
        (Encoding::Base64, _) | (Encoding::Own, Encoding::Base64) => to_base64(&bytes).into_bytes(),
    }))
}

/// A text in the scheme's own form, or raw bytes and their usual encoding.
enum Made {
    Text(Vec<u8>),
    Raw(Vec<u8>, Encoding),
}

fn make(
    scheme: Scheme,
    user: &[u8],
    password: &[u8],
    how: &Generate,
    crypt: &dyn Crypt,
) -> Result<Made, Error> {
    let text = |text: String| Ok(Made::Text(text.into_bytes()));
    let by_crypt = |method| crypt_text(scheme, method, password, how, crypt);
    match scheme {
        Scheme::Plain => Ok(Made::Text(password.to_vec())),
        Scheme::PlainTrunc => {
            let mut out = format!("{}-", password.len()).into_bytes();
            out.extend_from_slice(password);
            Ok(Made::Text(out))
        }
        Scheme::Crypt => by_crypt(how.method),
        Scheme::DesCrypt => by_crypt(Method::Des),
        Scheme::Md5Crypt | Scheme::Md5 => by_crypt(Method::Md5),
        Scheme::Sha256Crypt => by_crypt(Method::Sha256),
        Scheme::Sha512Crypt => by_crypt(Method::Sha512),
        Scheme::BlfCrypt => by_crypt(Method::Bcrypt),
        Scheme::Argon2 | Scheme::Argon2i | Scheme::Argon2id => {
            let id = scheme != Scheme::Argon2i;
            let (memory, passes) = if id { (64 << 10, 3) } else { (32 << 10, 4) };
            let costs =
                (how.argon2_memory.unwrap_or(memory), how.argon2_passes.unwrap_or(passes), how.argon2_lanes);
            text(argon::generate(&Stored::new(scheme, b""), id, costs, &random()?, password)?)
        }
        Scheme::Pbkdf2 => {
            let rounds = how.rounds.unwrap_or(100_000).max(1);
            let salt = salt_text::<16>()?;
            let mut key = [0_u8; 20];
            pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt.as_bytes(), rounds, &mut key);
            text(format!("$1${salt}${rounds}${}", to_hex(&key)))
        }
        Scheme::Sha => raw::<sha1::Sha1>(password, &[]),
        Scheme::Sha256 => raw::<sha2::Sha256>(password, &[]),
        Scheme::Sha512 => raw::<sha2::Sha512>(password, &[]),
        Scheme::Ssha => raw::<sha1::Sha1>(password, &random::<8>()?),
        Scheme::Ssha256 => raw::<sha2::Sha256>(password, &random::<16>()?),
        Scheme::Ssha512 => raw::<sha2::Sha512>(password, &random::<16>()?),
        Scheme::Smd5 => raw::<md5::Md5>(password, &random::<8>()?),
        Scheme::PlainMd4 => Ok(Made::Raw(md4::Md4::digest(password).to_vec(), Encoding::Hex)),
        Scheme::PlainMd5 => Ok(Made::Raw(md5::Md5::digest(password).to_vec(), Encoding::Hex)),
        Scheme::LdapMd5 => raw::<md5::Md5>(password, &[]),
        Scheme::CramMd5 | Scheme::HmacMd5 => {
            Ok(Made::Raw(cram_md5_states(password).expose().to_vec(), Encoding::Hex))
        }
        Scheme::DigestMd5 if user.is_empty() => Err(Error::NeedsUser(scheme)),
        Scheme::DigestMd5 => Ok(Made::Raw(digest_md5_key(user, password).expose().to_vec(), Encoding::Hex)),
        Scheme::ScramSha1 | Scheme::ScramSha256 => {
            let hash = if scheme == Scheme::ScramSha1 { ScramHash::Sha1 } else { ScramHash::Sha256 };
            let iterations = how.rounds.unwrap_or(ScramKeys::MIN_ITERATIONS).max(ScramKeys::MIN_ITERATIONS);
            text(ScramKeys::derive(hash, password, &random::<16>()?, iterations).to_text())
        }
        Scheme::Otp => text(otp::generate(how.rounds.unwrap_or(1_024).max(1), &random()?, password)),
    }
}

fn raw<D: Digest>(password: &[u8], salt: &[u8]) -> Result<Made, Error> {
    let mut out = D::new().chain_update(password).chain_update(salt).finalize().to_vec();
    out.extend_from_slice(salt);
    Ok(Made::Raw(out, Encoding::Base64))
}

fn crypt_text(
    scheme: Scheme,
    method: Method,
    password: &[u8],
    how: &Generate,
    crypt: &dyn Crypt,
) -> Result<Made, Error> {
    if password.len() > 511 || (method == Method::Bcrypt && password.len() > 72) {
        return Err(Error::BadPassword("is longer than the scheme can hold"));
    }
    if matches!(method, Method::Sha256 | Method::Sha512) {
        return sha_text(method, password, how).ok_or(Error::CannotGenerate(scheme));
    }
    let setting = match method {
        Method::Yescrypt => format!("$y$j9T${}", to_crypt64(&random::<16>()?)),
        Method::GostYescrypt => format!("$gy$j9T${}", to_crypt64(&random::<16>()?)),
        Method::Scrypt => format!("$7$CU..../....{}", to_crypt64(&random::<16>()?)),
        Method::Bcrypt => {
            format!("$2y${:02}${}", how.bcrypt_cost.clamp(4, 31), to_bcrypt64(&random::<16>()?))
        }
        Method::Sha1 => format!("$sha1${}${}", how.rounds.unwrap_or(200_000).max(4), salt_text::<16>()?),
        Method::SunMd5 => {
            format!("$md5,rounds={}${}", how.rounds.unwrap_or(100_000).max(1), salt_text::<8>()?)
        }
        Method::Md5 => format!("$1${}", salt_text::<8>()?),
        Method::Nt => "$3$".to_owned(),
        Method::BsdDes => format!("_J9..{}", salt_text::<4>()?),
        Method::Des => salt_text::<2>()?,
        Method::Sha256 | Method::Sha512 => return Err(Error::CannotGenerate(scheme)),
    };
    let text = crypt.crypt(password, setting.as_bytes()).ok_or(Error::NoCrypt(scheme))?;
    match classify(&text) {
        Ok(CryptText::Hash(made, _)) if made == method => Ok(Made::Text(text)),
        _ => Err(Error::NoCrypt(scheme)),
    }
}

/// Twelve random bytes make exactly the sixteen salt characters the format allows; the crate's own salts are
/// longer and crypt(3) would shorten them.
fn sha_text(method: Method, password: &[u8], how: &Generate) -> Option<Made> {
    let params = ::sha_crypt::Params::new(how.rounds.unwrap_or(5_000)).ok()?;
    let algorithm = if method == Method::Sha256 {
        ::sha_crypt::Algorithm::Sha256Crypt
    } else {
        ::sha_crypt::Algorithm::Sha512Crypt
    };
    let salt = random::<12>().ok()?;
    let hash = ShaCrypt::new(algorithm, params).hash_password_with_salt(password, &salt).ok()?;
    Some(Made::Text(hash.as_str().as_bytes().to_vec()))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    Ok(bytes)
}

/// `N` random characters of the crypt alphabet.
fn salt_text<const N: usize>() -> Result<String, Error> {
    let bytes = random::<N>()?;
    Ok(bytes.iter().filter_map(|b| CRYPT64.get(usize::from(b & 63))).map(|b| char::from(*b)).collect())
}
