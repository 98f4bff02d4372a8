//! Every mechanism with hostile responses and every kind of key: ends, never panics, never succeeds by noise.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sasl::{BindingType, Context, Credentials, Exchange, Name, Secret, Step};

const NAMES: [Name; 10] = [
    Name::Plain,
    Name::Login,
    Name::CramMd5,
    Name::DigestMd5,
    Name::ScramSha1,
    Name::ScramSha1Plus,
    Name::ScramSha256,
    Name::ScramSha256Plus,
    Name::Anonymous,
    Name::Apop,
];

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let name = NAMES[usize::from(first) % NAMES.len()];
    let mut counter = 0u8;
    let mut random = |bytes: &mut [u8]| {
        bytes.iter_mut().for_each(|b| {
            counter = counter.wrapping_add(7);
            *b = counter;
        });
    };
    let realms = ["realm".to_owned()];
    let mut context = Context {
        hostname: "mail.example.test",
        realms: &realms,
        secret: b"server secret",
        bindings: &[BindingType::TlsExporter],
        now: 1_700_000_000,
        apop: None,
        random: &mut random,
    };
    let mut responses = data.split(|&b| b == 0xff);
    let initial = if first & 0x80 == 0 { responses.next() } else { None };
    let (mut exchange, mut step) = Exchange::start(name, initial, &mut context);
    for _ in 0..16 {
        step = match step {
            Step::Challenge(_) => match responses.next() {
                Some(response) => exchange.respond(response, Some(b"binding"), &mut context),
                None => return,
            },
            Step::NeedCredentials(_) => {
                let credentials = if first & 0x40 == 0 {
                    Credentials::Unknown
                } else {
                    Credentials::Plain(Secret::new(b"an unguessable password".to_vec()))
                };
                exchange.credentials(&credentials, &mut context)
            }
            Step::Success(_) => {
                assert!(matches!(name, Name::Anonymous), "{name:?} succeeded");
                return;
            }
            Step::NeedVerify(_) | Step::Failure(_) => return,
        };
    }
    panic!("{name:?} does not end");
});
