//! A hostile server's challenges to our SASL client: answers or an error, and no proof that the server has not given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sasl::{BindingType, Client, Name};

const NAMES: [Name; 7] = [
    Name::Plain,
    Name::Login,
    Name::CramMd5,
    Name::DigestMd5,
    Name::ScramSha1,
    Name::ScramSha256,
    Name::ScramSha256Plus,
];

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let name = NAMES[usize::from(first) % NAMES.len()];
    let (user, password) = (b"user@example.org", b"an unguessable password");
    let client = match name {
        Name::ScramSha256Plus => {
            Client::bound(name, user, password, "abcdefgh", BindingType::TlsExporter, b"binding")
        }
        _ => Client::new(name, user, password, "abcdefgh"),
    };
    let mut client = client.expect("a client of this mechanism").service("imap", "mail.example.org");
    let _ = client.initial();
    let proves = !matches!(name, Name::Plain | Name::Login | Name::CramMd5);
    let mut challenges = data.split(|&byte| byte == 0xff);
    // The last one comes with the success itself.
    let last = if first & 0x80 == 0 { challenges.next_back() } else { None };
    let mut answered = 0;
    for challenge in challenges.take(8) {
        match client.respond(challenge) {
            Ok(_) => answered += 1,
            Err(_) => return,
        }
        // SCRAM and DIGEST-MD5 are one challenge, and one proof that only who knows the password can make.
        assert!(!proves || answered < 2, "{name:?} took noise for a proof");
    }
    assert!(client.finish(last).is_err() || !proves, "{name:?} took noise for a proof");
});
