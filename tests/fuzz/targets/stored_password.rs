//! Any text as a stored password: parsed, priced, and verified under small caps without panic.
#![no_main]

use creds::{Caps, NoCrypt, Policy, Scheme, Stored, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let caps = Caps {
        memory: 1 << 20,
        argon2_passes: 2,
        argon2_lanes: 2,
        bcrypt_cost: 5,
        crypt_rounds: 5000,
        pbkdf2_rounds: 5000,
        scram_iterations: 5000,
        otp_sequence: 50,
        block_work: 1 << 10,
    };
    let verifier = Verifier::new(Policy { allow_weak: true, caps }, NoCrypt);
    let Ok(stored) = Stored::parse_column(data, Scheme::Crypt) else { return };
    if verifier.cost(&stored).is_ok() {
        let mut scratch = creds::Scratch::default();
        let _ = verifier.verify(&stored, b"user@example.org", b"an unguessable password", &mut scratch);
    }
    for kind in [creds::KeyKind::CramMd5, creds::KeyKind::DigestMd5, creds::KeyKind::ScramSha256] {
        let _ = verifier.key(&stored, kind);
    }
});
