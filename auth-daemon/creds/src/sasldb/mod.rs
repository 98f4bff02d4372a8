//! `sasldb2`: the user file of Cyrus SASL, as `saslpasswd2` makes it.
//!
//! Purpose:   read it as the passwd-file that says the same, so that everything which works on one works on the other.
//! Format:    Berkeley DB, hash (Debian) or btree; key `user NUL realm NUL property`, value of `userPassword` the
//!            password in clear. Source: Cyrus SASL `sasldb/allockey.c`, `sasldb/db_berkeley.c`.
//! Trust:     as any file of somebody else's; see `berkeley.rs`.
//! Never:     writes, or holds the library's locks: `saslpasswd2` takes none either.

mod berkeley;

use zeroize::Zeroizing;

/// Why a sasldb cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another format: gdbm, lmdb, text.
    #[error("not a Berkeley DB file (hash or btree)")]
    Foreign,
    /// Made by a much older or newer Berkeley DB.
    #[error("version {0} of the Berkeley DB format is not supported")]
    Version(u32),
    /// Something `saslpasswd2` never makes.
    #[error("{0} in a Berkeley DB file are not supported")]
    Unsupported(&'static str),
    /// The bytes contradict themselves, perhaps because somebody is writing them.
    #[error("damaged Berkeley DB file: {0}")]
    Damaged(&'static str),
}

/// The property that holds a password.
const PASSWORD: &[u8] = b"userPassword";

/// The passwd-file that says the same: `user@realm:{PLAIN.B64}…`, a line for each password. Names that cannot stand in
/// such a file, with colons or control characters, are left out, as are empty passwords; `saslpasswd2` makes none.
///
/// # Errors
/// [`Error`]; nothing of a damaged file is believed.
pub fn to_passwd_file(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = berkeley::File::open(bytes)?;
    // The size is known before: a growing vector would leave copies of passwords behind.
    let mut length = 0;
    file.each(|key, value| {
        length += entry(key, value).map_or(0, |(user, realm)| line_length(user, realm, value));
    })?;
    let mut out = Zeroizing::new(Vec::with_capacity(length));
    file.each(|key, value| {
        let Some((user, realm)) = entry(key, value) else { return };
        for part in [user, b"@", realm, PREFIX] {
            out.extend_from_slice(part);
        }
        let encoded = Zeroizing::new(crate::encode::to_base64(value));
        out.extend_from_slice(encoded.as_bytes());
        out.push(b'\n');
    })?;
    Ok(out)
}

const PREFIX: &[u8] = b":{PLAIN.B64}";

/// User and realm, if this is a password.
fn entry<'a>(key: &'a [u8], value: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mut parts = key.split(|byte| *byte == 0);
    let (user, realm, property) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = |name: &[u8]| !name.iter().any(|byte| *byte == b':' || byte.is_ascii_control());
    // The first `@` ends the user: with one in it two keys could be one line.
    let plain =
        !user.is_empty() && !user.starts_with(b"#") && !user.contains(&b'@') && fits(user) && fits(realm);
    // An empty password is what is left of a user without one.
    let is_password = property == PASSWORD && parts.next().is_none() && !value.is_empty();
    (plain && is_password).then_some((user, realm))
}

fn line_length(user: &[u8], realm: &[u8], value: &[u8]) -> usize {
    let encoded = value.len().div_ceil(3) * 4;
    user.len() + 1 + realm.len() + PREFIX.len() + encoded + 1
}

#[cfg(test)]
mod tests;
