//! Password schemes, stored keys and passwd-files.
//!
//! Purpose:   understand every stored password form Dovecot knows, check passwords against it, make new ones,
//!            hand out what challenge-response mechanisms need, read and edit passwd-files, read Cyrus' sasldb.
//! Formats:   Dovecot's `password-scheme.c` and `db-passwd-file.c`, crypt(5), RFC 2195, 2831, 5802, 2289.
//! Trust:     stored strings may come from a file, SQL or LDAP, written by somebody else: every cost parameter
//!            is capped before anything is computed, every text is parsed strictly.
//! Never:     calls crypt(3) itself (it is handed in as [`Crypt`]), prints a password or a stored string,
//!            lets a text that is not understood verify.
//!
//! # Example
//!
//! ```
//! use creds::{NoCrypt, Policy, Scheme, Scratch, Stored, Verdict, Verifier};
//!
//! let verifier = Verifier::new(Policy::default(), NoCrypt);
//! let stored = Stored::parse(b"{SSHA}Z+RZcoKaNliQ6I0AsTOYmkoec3CdEaoy", Scheme::Crypt)?;
//! assert!(verifier.cost(&stored)?.is_cheap());
//! let verdict = verifier.verify(&stored, b"bob@example.org", b"summersun", &mut Scratch::default())?;
//! assert_eq!(verdict, Verdict::Match);
//! # Ok::<(), creds::Error>(())
//! ```

#![forbid(unsafe_code)]

mod argon;
mod cost;
mod crypt;
mod encode;
mod generate;
mod keys;
mod otp;
pub mod passwd;
pub mod sasldb;
mod scheme;
mod secret;
mod sha_crypt;
mod verify;

pub use argon::{Argon2Question, FastArgon2, Scratch};
pub use cost::{Caps, Cost};
pub use crypt::{Crypt, Method, NoCrypt};
pub use generate::{Generate, generate, generate_data};
pub use keys::{Key, KeyKind, ScramHash, ScramKeys, can_serve, cram_md5_states, digest_md5_key, key};
pub use scheme::{Encoding, Scheme, Stored};
pub use secret::{Secret, wipe_stack};
pub use verify::{Policy, Verdict, Verifier, check_password_bytes};

/// Why a stored string or a password cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `{NAME}` or its `.ENC` suffix is not known. The name is printable and short.
    #[error("unknown password scheme {{{0}}}")]
    UnknownScheme(String),
    /// The text does not have the form of its scheme.
    #[error("malformed {{{scheme}}} string: {why}")]
    Malformed {
        /// The scheme the text was read as.
        scheme: Scheme,
        /// What is wrong, never quoting the text.
        why: &'static str,
    },
    /// A weak scheme, and the policy does not allow those.
    #[error("{{{0}}} is a weak scheme and weak schemes are not allowed")]
    Weak(Scheme),
    /// A cost parameter is above its cap. Nothing was computed.
    #[error("{{{scheme}}} asks for {what} {asked}, the cap is {cap}")]
    OverCap {
        /// The scheme.
        scheme: Scheme,
        /// Which parameter.
        what: &'static str,
        /// Its value in the stored string.
        asked: u64,
        /// The largest value allowed.
        cap: u64,
    },
    /// The memory the hash needs could not be had. Temporary.
    #[error("not enough memory for {{{0}}}")]
    Memory(Scheme),
    /// No crypt(3) here, or it does not know the method.
    #[error("crypt(3) does not support this {{{0}}} string")]
    NoCrypt(Scheme),
    /// The scheme holds no key the mechanism could use.
    #[error("{{{0}}} cannot serve this mechanism")]
    CannotServe(Scheme),
    /// The scheme can be verified but not made.
    #[error("{{{0}}} strings cannot be made")]
    CannotGenerate(Scheme),
    /// The scheme's hash depends on the user name, and none was given.
    #[error("{{{0}}} needs the user name")]
    NeedsUser(Scheme),
    /// The password holds a byte no client can send (F1.7), or is too long for the scheme.
    #[error("the password {0}")]
    BadPassword(&'static str),
    /// The system's random source failed.
    #[error("no random bytes: {0}")]
    Random(String),
}
