//! Whole exchanges of the server's mechanisms against stored keys, the client's part included.
//!
//! `cargo bench -p sasl`

// A benchmark may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use divan::Bencher;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sasl::{Context, Credentials, Exchange, Hash, Name, ScramKeys, Secret, Step};
use sha2::{Digest as _, Sha256};

fn main() {
    divan::main();
}

fn with_context<T>(run: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let mut random = |out: &mut [u8]| out.fill(7);
    run(&mut Context {
        hostname: "mail.example.test",
        realms: &[],
        secret: &[0; 32],
        bindings: &[],
        now: 1_800_000_000,
        apop: None,
        random: &mut random,
    })
}

#[divan::bench]
fn plain(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| {
        let (_, step) = with_context(|ctx| Exchange::start(Name::Plain, Some(b"\0bob\0summersun"), ctx));
        assert!(matches!(step, Step::NeedVerify(_)));
    });
}

#[divan::bench]
fn cram_md5(bencher: Bencher<'_, '_>) {
    let key = Credentials::Plain(Secret::new(b"summersun".to_vec()));
    bencher.bench_local(|| {
        with_context(|ctx| {
            let (mut exchange, step) = Exchange::start(Name::CramMd5, None, ctx);
            let Step::Challenge(challenge) = step else { panic!("no challenge") };
            let mut mac = Hmac::<md5::Md5>::new_from_slice(b"summersun").unwrap();
            mac.update(&challenge.data);
            let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let step = exchange.respond(format!("bob {hex}").as_bytes(), None, ctx);
            assert!(matches!(step, Step::NeedCredentials(_)));
            assert!(matches!(exchange.credentials(&key, ctx), Step::Success(_)));
        });
    });
}

#[divan::bench]
fn scram_sha_256(bencher: Bencher<'_, '_>) {
    let hmac = |key: &[u8], data: &[u8]| -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(data);
        mac.finalize().into_bytes().into()
    };
    let keys = ScramKeys::derive(Hash::Sha256, b"summersun", b"0123456789abcdef", 4096);
    let mut salted = [0; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(b"summersun", b"0123456789abcdef", 4096, &mut salted);
    let client_key = hmac(&salted, b"Client Key");
    let stored_key = Sha256::digest(client_key);
    let credentials = Credentials::Scram(keys);
    bencher.bench_local(|| {
        with_context(|ctx| {
            let (mut exchange, step) =
                Exchange::start(Name::ScramSha256, Some(b"n,,n=bob,r=abcdefghijkl"), ctx);
            assert!(matches!(step, Step::NeedCredentials(_)));
            let Step::Challenge(challenge) = exchange.credentials(&credentials, ctx) else {
                panic!("no challenge")
            };
            let first = String::from_utf8(challenge.data).unwrap();
            let nonce = first.split(',').next().unwrap();
            let without_proof = format!("c=biws,{nonce}");
            let message = format!("n=bob,r=abcdefghijkl,{first},{without_proof}");
            let signature = hmac(&stored_key, message.as_bytes());
            let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
            let last = format!("{without_proof},p={}", sasl_base64(&proof));
            assert!(matches!(exchange.respond(last.as_bytes(), None, ctx), Step::Success(_)));
        });
    });
}

fn sasl_base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
