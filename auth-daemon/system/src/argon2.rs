//! Argon2 through libsodium, whose code for AVX2 and AVX-512 takes two thirds of the time of portable code.
//!
//! Purpose: what libsodium makes itself: version 1.3, one lane, salts of 16 bytes. Everything else, and everything on
//!          systems without its development package at build time, is left to the caller.
//! Memory:  in huge pages where the kernel has some, which saves another quarter: the walk over it is random, and small
//!          pages are 16,384 for every login. libsodium has no way to be told so; the build gives it our mmap(2).
//! Trust:   passwords come from strangers, parameters from stored strings: the caller checks costs first.
//! Never:   keep memory or a password after the answer.

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

    // Linked by the build script.
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

/// What the build script puts in the place of libsodium's mmap(2).
///
/// # Safety
/// As mmap(2).
#[cfg(sodium_mmap)]
#[unsafe(no_mangle)]
unsafe extern "C" fn postern_sodium_mmap(
    address: *mut libc::c_void,
    length: usize,
    protection: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> *mut libc::c_void {
    // Populated below: before the advice it would be in small pages.
    let flags = flags & !libc::MAP_POPULATE;
    // SAFETY: the caller's own call, but for a flag that changes nothing in what is mapped.
    let memory = unsafe { libc::mmap(address, length, protection, flags, fd, offset) };
    if memory != libc::MAP_FAILED {
        #[cfg(test)]
        tests::MAPPED.fetch_add(length, std::sync::atomic::Ordering::Relaxed);
        // Both may fail, on kernels without huge pages and on those before 5.14: pages come one by one then.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
            // SAFETY: the range was mapped above and is nobody else's yet; neither advice changes what it holds.
            unsafe { libc::madvise(memory, length, advice) };
        }
    }
    memory
}

/// Not built in.
#[cfg(not(sodium))]
pub fn argon2(_: Argon2<'_>, _: &mut [u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[cfg(sodium_mmap)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Bytes that libsodium was given.
    #[cfg(sodium_mmap)]
    pub(super) static MAPPED: AtomicUsize = AtomicUsize::new(0);

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

    #[cfg(sodium_mmap)]
    #[test]
    fn libsodium_takes_its_memory_here() {
        let before = MAPPED.load(Ordering::Relaxed);
        let wanted =
            Argon2 { id: true, memory_kib: 8 << 10, passes: 1, salt: b"0123456789abcdef", password: b"pw" };
        assert!(argon2(wanted, &mut [0; 32]));
        assert!(MAPPED.load(Ordering::Relaxed) - before >= 8 << 20);
    }

    #[cfg(sodium_mmap)]
    #[test]
    fn memory_is_advised_to_be_of_huge_pages_and_is_there() {
        const LENGTH: usize = 8 << 20;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            postern_sodium_mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                private,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        // The kernel may have joined it to its like.
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds = |line: &&str| {
            let hex = |text: &str| usize::from_str_radix(text, 16).ok();
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            range
                .and_then(|(start, end)| Some(hex(start)?..hex(end)?))
                .is_some_and(|it| it.contains(&memory.addr()))
        };
        let field = |name: &str| {
            let mut ours = maps.lines().skip_while(|line| !holds(line));
            ours.find_map(|line| line.strip_prefix(name)).unwrap()
        };
        let resident = field("Rss:").trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        assert!(resident >= LENGTH >> 10, "{resident} KiB");
        let advised = field("VmFlags:").split(' ').any(|flag| flag == "hg");
        assert_eq!(advised, std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists());
        // SAFETY: mapped above, and nothing points into it.
        unsafe { libc::munmap(memory, LENGTH) };
    }
}
