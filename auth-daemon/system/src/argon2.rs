//! Argon2 through libsodium, whose code for AVX2 and AVX-512 takes two thirds of the time of portable code.
//!
//! libsodium computes what it makes itself: version 1.3, one lane, salts of 16 bytes. Everything else, and everything on
//! systems without its development package at build time, is left to the caller. The caller checks cost parameters first.

#![allow(unsafe_code)]

/// One computation.
#[derive(Clone, Copy)]
pub struct Argon2<'a> {
    /// Argon2id, not Argon2i.
    pub id: bool,
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// The salt.
    pub salt: &'a [u8; 16],
    /// The password.
    pub password: &'a [u8],
}

/// Fills `out` with the hash. `false`: not possible here, `out` is worth nothing.
#[cfg(sodium)]
pub fn argon2(wanted: Argon2<'_>, out: &mut [u8]) -> bool {
    use std::ffi::{c_char, c_int, c_ulonglong};
    use std::sync::OnceLock;

    /// `crypto_pwhash_ALG_ARGON2I13` and `…ID13`.
    const ALGORITHMS: (c_int, c_int) = (1, 2);
    /// Below this libsodium refuses Argon2i (`crypto_pwhash_argon2i_OPSLIMIT_MIN`).
    const LEAST_PASSES_I: u32 = 3;

    #[link(name = "sodium", kind = "static")]
    unsafe extern "C" {
        /// Looks at the processor once; thread-safe.
        safe fn sodium_init() -> c_int;
        fn crypto_pwhash(
            out: *mut u8,
            out_length: c_ulonglong,
            password: *const c_char,
            password_length: c_ulonglong,
            salt: *const u8,
            passes: c_ulonglong,
            memory: usize,
            algorithm: c_int,
        ) -> c_int;
    }

    static READY: OnceLock<bool> = OnceLock::new();
    if !*READY.get_or_init(|| sodium_init() >= 0) || out.len() < 16 {
        return false;
    }
    let Argon2 { id, memory_kib, passes, salt, password } = wanted;
    if memory_kib < 8 || passes == 0 || (!id && passes < LEAST_PASSES_I) {
        return false;
    }
    let Some(memory) = usize::try_from(memory_kib).ok().and_then(|kib| kib.checked_mul(1024)) else {
        return false;
    };
    // SAFETY: `out` and `password` are valid for the lengths given, `salt` for the 16 bytes the function reads; all
    // outlive the call, and nothing is kept. It writes to `out` only.
    let status = unsafe {
        crypto_pwhash(
            out.as_mut_ptr(),
            out.len() as c_ulonglong,
            password.as_ptr().cast(),
            password.len() as c_ulonglong,
            salt.as_ptr(),
            c_ulonglong::from(passes),
            memory,
            if id { ALGORITHMS.1 } else { ALGORITHMS.0 },
        )
    };
    status == 0
}

/// Not built in.
#[cfg(not(sodium))]
pub fn argon2(_: Argon2<'_>, _: &mut [u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_libsodium_does_not_compute() {
        let wanted =
            Argon2 { id: true, memory_kib: 64, passes: 3, salt: b"0123456789abcdef", password: b"pw" };
        let mut out = [0; 32];
        assert_eq!(argon2(wanted, &mut out), cfg!(sodium));
        assert!(!argon2(wanted, &mut [0; 8]));
        assert!(!argon2(Argon2 { passes: 0, ..wanted }, &mut out));
        assert!(!argon2(Argon2 { memory_kib: 7, ..wanted }, &mut out));
        assert!(!argon2(Argon2 { id: false, passes: 2, ..wanted }, &mut out));
    }
}
