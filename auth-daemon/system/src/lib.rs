//! PAM, crypt(3), shadow and NSS behind a safe interface.
//!
//! Purpose:  the only way to the system's own accounts; with process start the only code that contains `unsafe`.
//! Where:    [`crypt()`] and [`argon2()`] may run in any process. Everything else blocks, loads foreign code (PAM and NSS modules) and
//!           belongs into a worker process that can be killed and replaced.
//! Trust:    names and passwords come from strangers: NUL and empty names are refused before any C code sees them.
//! Never:    lets a panic cross into C, logs a password, or turns an unknown answer into a success.

mod account;
mod argon2;
mod crypt;
mod pam;
mod secret;
mod service;
mod shadow;
mod users;

pub use account::{Account, PasswordField, PasswordState, is_nologin_shell};
pub use argon2::{Argon2, argon2};
pub use crypt::{crypt, gensalt};
pub use pam::{PamPhase, PamReport, PamRequest, PamText, PamVerdict, authenticate};
pub use secret::Secret;
pub use service::{service_exists, service_uses};
pub use shadow::{Shadow, shadow};
pub use users::{account, accounts, gid_of, groups_of};

/// Why the system could not be asked. All of these are temporary failures for a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is empty, too long, or holds a NUL or a colon.
    #[error("not a possible account name")]
    BadName,
    /// The look-up failed, which is not the same as an unknown name.
    #[error("{call}: {source}")]
    System {
        /// The function that failed.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

/// Longest account name looked up. Linux allows 32 characters; directory services more.
const MAX_NAME: usize = 255;

/// Refuses what no account can be called, before C code sees it.
fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.bytes().any(|b| b == b':' || b.is_ascii_control()) {
        return Err(Error::BadName);
    }
    Ok(())
}
