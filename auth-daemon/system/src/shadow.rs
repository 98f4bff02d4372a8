//! The shadow database through NSS (`getspnam_r`).
//!
//! Needs a process that may read it: group `shadow`, or root.
//!
//! Trust: names come from strangers and are checked first; entries come from NSS modules.
//! Never: take a database that cannot be read for one without the user.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use zeroize::Zeroizing;

use crate::{Error, Secret, check_name};

/// A shadow entry. Days are counted from 1970-01-01; an empty field is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The name as the database spells it.
    pub name: String,
    /// The password field; see [`crate::PasswordField`].
    pub hash: Secret,
    /// Day of the last change; 0 demands a change.
    pub last_change: Option<i64>,
    /// Days before it may be changed.
    pub min: Option<i64>,
    /// Days after which it must be changed.
    pub max: Option<i64>,
    /// Days of warning before that.
    pub warn: Option<i64>,
    /// Days of grace after that.
    pub inactive: Option<i64>,
    /// Day on which the account expires.
    pub expire: Option<i64>,
}

/// Looks a name up; `None` when it has no shadow entry.
///
/// # Errors
/// [`Error::BadName`], or [`Error::System`] when the database cannot be read, which is not "unknown".
pub fn shadow(name: &str) -> Result<Option<Shadow>, Error> {
    const FIRST: usize = 1 << 10;
    const LARGEST: usize = 1 << 20;
    check_name(name)?;
    let name = CString::new(name).map_err(|_| Error::BadName)?;
    let mut size = FIRST;
    loop {
        let mut buffer: Zeroizing<Vec<u8>> = Zeroizing::new(vec![0; size]);
        let mut entry = MaybeUninit::<libc::spwd>::uninit();
        let mut found: *mut libc::spwd = ptr::null_mut();
        // SAFETY: the name ends with NUL; `entry` and `buffer` are writable and large enough for what their types and
        // `size` say; all four live until the entry was copied below.
        let code = unsafe {
            libc::getspnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr().cast::<c_char>(),
                size,
                &raw mut found,
            )
        };
        match code {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: the call succeeded and `found` is not null, so `entry` is initialised.
                let entry = unsafe { entry.assume_init_ref() };
                return copy(entry).map(Some);
            }
            libc::ENOENT | libc::ESRCH => return Ok(None),
            libc::EINTR => {}
            libc::ERANGE if size < LARGEST => size *= 2,
            code => return Err(failed(code)),
        }
    }
}

fn copy(entry: &libc::spwd) -> Result<Shadow, Error> {
    Ok(Shadow {
        name: String::from_utf8(text(entry.sp_namp)).map_err(|_| Error::BadName)?,
        hash: Secret::new(text(entry.sp_pwdp)),
        last_change: day(entry.sp_lstchg),
        min: day(entry.sp_min),
        max: day(entry.sp_max),
        warn: day(entry.sp_warn),
        inactive: day(entry.sp_inact),
        expire: day(entry.sp_expire),
    })
}

/// Empty fields are -1.
#[allow(clippy::useless_conversion, reason = "c_long has 32 bits on some machines")]
fn day(value: libc::c_long) -> Option<i64> {
    Some(i64::from(value)).filter(|day| *day >= 0)
}

/// A C string of an entry; missing ones are empty.
fn text(pointer: *const c_char) -> Vec<u8> {
    if pointer.is_null() {
        return Vec::new();
    }
    // SAFETY: NSS fills an entry with NUL-terminated strings inside the caller's buffer, which outlives this call.
    unsafe { CStr::from_ptr(pointer) }.to_bytes().to_vec()
}

fn failed(code: i32) -> Error {
    Error::System { call: "getspnam_r", source: io::Error::from_raw_os_error(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_refused_before_c() {
        for name in ["", "a\0b", "a:b", "a\nb", &"x".repeat(300)] {
            assert!(matches!(shadow(name), Err(Error::BadName)), "{name:?}");
        }
    }

    #[test]
    fn root_is_there_and_a_stranger_is_not() {
        // Without the right to read the file both are errors or absent, never a made-up entry.
        match shadow("root") {
            Ok(Some(entry)) => assert_eq!(entry.name, "root"),
            Ok(None) | Err(Error::System { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(!matches!(shadow("no-such-user-here"), Ok(Some(_))));
    }
}
