//! Looking users up and checking passwords.
//!
//! `cargo bench -p creds`

// A benchmark may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use creds::passwd::Index;
use creds::{Generate, Policy, Scheme, Scratch, Stored, Verdict, Verifier};
use divan::Bencher;

fn main() {
    divan::main();
}

#[divan::bench(args = [1_000, 100_000, 1_000_000])]
fn passwd_file_lookup(bencher: Bencher<'_, '_>, users: usize) {
    let text: String = (0..users).map(|n| format!("u{n:07}@example.test:{{PLAIN}}pw{n}\n")).collect();
    let index = Index::build(text.into_bytes(), None);
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 7_919) % users;
        index.lookup(format!("u{next:07}@example.test").as_bytes()).is_some()
    });
}

#[divan::bench]
fn passwd_file_read_100k(bencher: Bencher<'_, '_>) {
    let text: String = (0..100_000).map(|n| format!("u{n:07}@example.test:{{PLAIN}}pw{n}\n")).collect();
    bencher
        .with_inputs(|| text.clone().into_bytes())
        .bench_local_values(|text| Index::build(text, None).entries().count());
}

fn fast(question: creds::Argon2Question<'_>, out: &mut [u8]) -> bool {
    let creds::Argon2Question { id, memory_kib, passes, salt, password } = question;
    system_auth::argon2(system_auth::Argon2 { id, memory_kib, passes, salt, password }, out)
}

fn verify(bencher: Bencher<'_, '_>, verifier: &Verifier, scheme: Scheme) {
    let made =
        creds::generate(scheme, b"bob", b"summersun", &Generate::default(), &system_auth::crypt).unwrap();
    let stored = Stored::parse(made.expose(), scheme).unwrap();
    let mut scratch = Scratch::default();
    bencher.bench_local(|| {
        assert_eq!(verifier.verify(&stored, b"bob", b"summersun", &mut scratch), Ok(Verdict::Match));
    });
}

const SCHEMES: [Scheme; 5] =
    [Scheme::Plain, Scheme::Ssha256, Scheme::Sha512Crypt, Scheme::BlfCrypt, Scheme::Argon2id];

#[divan::bench(args = SCHEMES)]
fn check(bencher: Bencher<'_, '_>, scheme: Scheme) {
    verify(bencher, &Verifier::new(Policy::default(), system_auth::crypt).with_argon2(fast), scheme);
}

#[divan::bench]
fn check_argon2id_portable(bencher: Bencher<'_, '_>) {
    verify(bencher, &Verifier::new(Policy::default(), system_auth::crypt), Scheme::Argon2id);
}
