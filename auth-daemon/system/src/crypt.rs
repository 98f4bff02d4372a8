//! crypt(3) through libxcrypt's thread-safe `crypt_ra`.
//!
//! Whatever the distribution accepts in `/etc/shadow` works: yescrypt, gost-yescrypt, scrypt, bcrypt, sha512crypt,
//! sha256crypt, md5crypt, DES. The caller checks cost parameters first; nothing here limits time or memory.
//!
//! Trust: passwords come from strangers, settings from the system's databases or stored strings.
//! Never: give C a string with a NUL in it, or leave a work area unwiped.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::ptr;

use zeroize::{Zeroize as _, Zeroizing};

#[link(name = "crypt")]
unsafe extern "C" {
    /// crypt(3): allocates `*data` when it is null and stores its size.
    fn crypt_ra(
        phrase: *const c_char,
        setting: *const c_char,
        data: *mut *mut c_void,
        size: *mut c_int,
    ) -> *mut c_char;
    /// `crypt_gensalt(3)`: the result is allocated with malloc.
    fn crypt_gensalt_ra(
        prefix: *const c_char,
        count: c_ulong,
        random: *const c_char,
        random_length: c_int,
    ) -> *mut c_char;
}

/// Hashes `key` as `setting` (a stored hash or a salt) says.
///
/// `None` when crypt(3) refuses: unknown method, bad setting, locked text (`!`, `*`), an empty setting, or a key that
/// is longer than 511 bytes or holds a NUL.
pub fn crypt(key: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
    if setting.is_empty() {
        return None;
    }
    let key = with_nul(key);
    let setting = with_nul(setting);
    let (key, setting) = (CStr::from_bytes_with_nul(&key).ok()?, CStr::from_bytes_with_nul(&setting).ok()?);
    let mut work = Work { data: ptr::null_mut(), size: 0 };
    // SAFETY: both strings end with NUL and outlive the call; `data` is null and `size` 0, so crypt_ra allocates the
    // work area itself with malloc and writes only through these two pointers, which are ours alone.
    let result = unsafe { crypt_ra(key.as_ptr(), setting.as_ptr(), &raw mut work.data, &raw mut work.size) };
    if result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null points to a NUL-terminated string inside the work area, which lives until
    // `work` is dropped.
    let hash = unsafe { CStr::from_ptr(result) }.to_bytes();
    // `*0` and `*1` are failure tokens; no hash begins so.
    (!hash.is_empty() && !hash.starts_with(b"*")).then(|| hash.to_vec())
}

/// Makes a setting for [`crypt()`] from a prefix such as `$y$`, a cost (0: the method's default) and random bytes (at
/// least 16).
pub fn gensalt(prefix: &[u8], cost: u32, random: &[u8]) -> Option<Vec<u8>> {
    let prefix = with_nul(prefix);
    let prefix = CStr::from_bytes_with_nul(&prefix).ok()?;
    let length = c_int::try_from(random.len()).ok().filter(|length| *length >= 16)?;
    // SAFETY: the prefix ends with NUL; `random` is valid for `length` bytes; neither is kept after the call.
    let result =
        unsafe { crypt_gensalt_ra(prefix.as_ptr(), c_ulong::from(cost), random.as_ptr().cast(), length) };
    if result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null is a NUL-terminated string, ours until it is freed below.
    let setting = unsafe { CStr::from_ptr(result) }.to_bytes().to_vec();
    // SAFETY: crypt_gensalt_ra allocated it with malloc, and nothing points to it any more.
    unsafe { libc::free(result.cast()) };
    (!setting.starts_with(b"*")).then_some(setting)
}

/// The work area of one computation: holds intermediate values and the result.
struct Work {
    data: *mut c_void,
    size: c_int,
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.data.is_null() {
            return;
        }
        if let Ok(size) = usize::try_from(self.size) {
            // SAFETY: crypt_ra allocated `size` bytes at `data` and initialised them (it clears what it allocates);
            // no other reference exists.
            unsafe { std::slice::from_raw_parts_mut(self.data.cast::<u8>(), size) }.zeroize();
        }
        // SAFETY: crypt_ra allocated it with malloc, and it is freed only here.
        unsafe { libc::free(self.data) };
    }
}

fn with_nul(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    out.extend_from_slice(bytes);
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash per method; the password of all is `summersun`.
    const HASHES: [&str; 12] = [
        "$y$j75$LCO3SRoFMgw7uWFPZq2Gm1$xlttnW5nPK.8MrGMCHCWziJOKKuolUfI0g75dG9UOQ.",
        "$gy$j9T$EWUVt.nyqZHn39Ha3GF2M.$LiKbJdCGoRWH31jP9l2UNBzGONunQqEHqM9CEIpt6.1",
        "$7$CU..../....btp.HUGB6LAlrEm.zghzq0$NbaTI0WPrQD4J1krfnFd3DFZCE1DJutC5lZcwqhATQD",
        "$2b$04$abcdefghijklmnopqrstuutiH7qAgHFjTuyXrYdhTJzI6mBSzxHVW",
        "$2y$04$abcdefghijklmnopqrstuutiH7qAgHFjTuyXrYdhTJzI6mBSzxHVW",
        "$6$uNrb5xmFXorQhWTt$vjW96cNajX/qCSvDZTFb3KkhqBpQaSeGmwRwJdym2MaDK/nzVDHM5W7NyfathwU.QW7zpxD6BVNQavZ6IIIwN1",
        "$5$ILvmgAfxH4edv/EU$C0znXWrhKVGDRzsHoISYNoT9Q8YOwxeTqoEmJTNUIG0",
        "$sha1$1000$abcdefgh$FEFaFW5I9OSA3TnAGj4/Ut9FNu5q",
        "$1$VPF6vfSh$djuk8mLVMQ7kqb5V9Xk0F0",
        "$3$$c589bf544426dd0dbc310b34320b9c28",
        "_J9..qa2fvyKUaw2VQk.",
        "fcd8T/LTN2P9w",
    ];

    #[test]
    fn every_method_of_the_system() {
        for hash in HASHES {
            assert_eq!(crypt(b"summersun", hash.as_bytes()).as_deref(), Some(hash.as_bytes()));
            assert_ne!(crypt(b"xummersun", hash.as_bytes()).as_deref(), Some(hash.as_bytes()), "{hash}");
        }
    }

    #[test]
    fn refusals() {
        for setting in [
            "",
            "!",
            "*",
            "*0",
            "*1",
            "x",
            "$9$a$b",
            "$2y$99$aaaaaaaaaaaaaaaaaaaaaa",
            "!$6$salt$",
            "$6$rounds=10$s$",
        ] {
            assert_eq!(crypt(b"pw", setting.as_bytes()), None, "{setting}");
        }
        assert_eq!(crypt(b"a\0b", b"$6$salt$"), None);
        assert_eq!(crypt(b"a", b"$6$sa\0lt$"), None);
        assert_eq!(crypt(&[b'a'; 512], b"$6$salt$"), None);
        assert!(crypt(&[b'a'; 511], b"$6$salt$").is_some());
        assert!(crypt(b"", b"$6$salt$").is_some());
    }

    #[test]
    fn settings() {
        for prefix in ["$y$", "$gy$", "$7$", "$2b$", "$6$", "$5$", "$1$"] {
            let setting = gensalt(prefix.as_bytes(), 0, &[7; 32]).unwrap();
            assert!(setting.starts_with(prefix.as_bytes()));
            let hash = crypt(b"pw", &setting).unwrap();
            assert_eq!(crypt(b"pw", &hash), Some(hash));
        }
        assert_eq!(gensalt(b"$9$", 0, &[7; 32]), None);
        assert_eq!(gensalt(b"$y$", 0, &[7; 4]), None);
        assert_eq!(gensalt(b"$y\0$", 0, &[7; 32]), None);
    }

    #[test]
    fn many_threads_at_once() {
        std::thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    let hash = HASHES[number % HASHES.len()].as_bytes();
                    for _ in 0..5 {
                        assert_eq!(crypt(b"summersun", hash).as_deref(), Some(hash));
                    }
                });
            }
        });
    }
}
