//! Users and groups through NSS.
//!
//! Trust: names come from strangers and are checked first; entries come from NSS modules.
//! Never: take a database that cannot be read for one without the user.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString, c_char};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, User, getgrouplist};

use crate::{Account, Error, Secret, check_name};

/// Looks an account up by name; `None` when there is none.
///
/// # Errors
/// [`Error::BadName`], [`Error::System`].
pub fn account(name: &str) -> Result<Option<Account>, Error> {
    check_name(name)?;
    found("getpwnam_r", User::from_name(name)).map(|user| user.map(from_nss))
}

/// The gid of a group.
///
/// # Errors
/// [`Error::BadName`], [`Error::System`].
pub fn gid_of(name: &str) -> Result<Option<u32>, Error> {
    check_name(name)?;
    found("getgrnam_r", Group::from_name(name)).map(|group| group.map(|group| group.gid.as_raw()))
}

/// All groups of a user, the primary one included.
///
/// # Errors
/// [`Error::BadName`], [`Error::System`].
pub fn groups_of(name: &str, primary: u32) -> Result<Vec<u32>, Error> {
    check_name(name)?;
    let name = CString::new(name).map_err(|_| Error::BadName)?;
    let groups =
        getgrouplist(&name, Gid::from_raw(primary)).map_err(|errno| system("getgrouplist", errno))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// All accounts the system lists. Directory services may list none of theirs.
///
/// # Errors
/// [`Error::System`].
pub fn accounts() -> Result<Vec<Account>, Error> {
    // The position in the database is one for the whole process.
    static WALK: Mutex<()> = Mutex::new(());
    let _walk = WALK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut accounts = Vec::new();
    // SAFETY: no arguments; the lock keeps other walks of ours away.
    unsafe { libc::setpwent() };
    let result = loop {
        Errno::clear();
        // SAFETY: the lock keeps other walks of ours away, and the static entry it returns is copied before the next
        // call; worker processes run one look-up at a time.
        let entry = unsafe { libc::getpwent() };
        if entry.is_null() {
            break match Errno::last() {
                Errno::UnknownErrno | Errno::ENOENT => Ok(()),
                errno => Err(system("getpwent", errno)),
            };
        }
        // SAFETY: not null, so it points to a filled entry that stays as it is until the next call.
        let entry = unsafe { &*entry };
        // Names that are not text could not be looked up either.
        let Ok(name) = String::from_utf8(bytes(entry.pw_name)) else { continue };
        if check_name(&name).is_ok() {
            accounts.push(Account {
                name,
                hash: Secret::new(bytes(entry.pw_passwd)),
                uid: entry.pw_uid,
                gid: entry.pw_gid,
                home: PathBuf::from(OsString::from_vec(bytes(entry.pw_dir))),
                shell: PathBuf::from(OsString::from_vec(bytes(entry.pw_shell))),
            });
        }
    };
    // SAFETY: no arguments; the lock keeps other walks of ours away.
    unsafe { libc::endpwent() };
    result.map(|()| accounts)
}

/// A copy of a C string of an entry; missing ones are empty.
fn bytes(pointer: *const c_char) -> Vec<u8> {
    if pointer.is_null() {
        return Vec::new();
    }
    // SAFETY: NSS fills an entry with NUL-terminated strings that stay until the next call, which comes later.
    unsafe { CStr::from_ptr(pointer) }.to_bytes().to_vec()
}

fn from_nss(user: User) -> Account {
    Account {
        name: user.name,
        hash: Secret::new(user.passwd.into_bytes()),
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
        shell: user.shell,
    }
}

/// Several errors mean no more than "no such name" (getpwnam(3)).
fn found<T>(call: &'static str, result: nix::Result<Option<T>>) -> Result<Option<T>, Error> {
    match result {
        Ok(entry) => Ok(entry),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(errno) => Err(system(call, errno)),
    }
}

fn system(call: &'static str, errno: Errno) -> Error {
    Error::System { call, source: io::Error::from(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known() {
        let root = account("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(groups_of("root", 0).unwrap().contains(&0));
        assert_eq!(gid_of("root").unwrap(), Some(0));
        assert!(accounts().unwrap().iter().any(|account| account.name == "root"));
    }

    #[test]
    fn strangers_and_odd_names() {
        assert!(account("no-such-user-here").unwrap().is_none());
        assert!(gid_of("no-such-group-here").unwrap().is_none());
        for name in ["", "a\0", "a:b", "../root"] {
            assert!(!matches!(account(name), Ok(Some(_))), "{name:?}");
        }
    }
}
