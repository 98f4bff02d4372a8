//! Exchanges as tables, an independent client (rsasl), hostile inputs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;

use super::*;

struct Server {
    random: Vec<u8>,
    bindings: Vec<BindingType>,
}

impl Server {
    fn new() -> Server {
        Server { random: vec![7; 64], bindings: Vec::new() }
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let bytes = self.random.clone();
        let mut random = move |out: &mut [u8]| {
            for (slot, byte) in out.iter_mut().zip(bytes.iter().cycle()) {
                *slot = *byte;
            }
        };
        call(&mut Context {
            hostname: "mail.example.test",
            realms: &[],
            secret: b"server secret",
            bindings: &self.bindings,
            now: 1_000,
            apop: Some(ApopSeed { spid: 0x1f, cuid: 2, started: 0x10 }),
            random: &mut random,
        })
    }

    fn start(&mut self, name: Name, initial: Option<&[u8]>) -> (Exchange, Step) {
        self.with(|ctx| Exchange::start(name, initial, ctx))
    }

    fn respond(&mut self, exchange: &mut Exchange, data: &[u8]) -> Step {
        self.with(|ctx| exchange.respond(data, None, ctx))
    }

    fn credentials(&mut self, exchange: &mut Exchange, credentials: &Credentials) -> Step {
        self.with(|ctx| exchange.credentials(credentials, ctx))
    }
}

fn challenge_of(step: Step) -> Vec<u8> {
    match step {
        Step::Challenge(challenge) => challenge.data,
        other => panic!("no challenge: {other:?}"),
    }
}

fn plain(password: &str) -> Credentials {
    Credentials::Plain(Secret::new(password.as_bytes().to_vec()))
}

#[test]
fn plain_table() {
    type Want = Option<(&'static str, Option<&'static str>, &'static [u8])>;
    let cases: [(&[u8], Want); 11] = [
        (b"\0tim\0tanstaaftanstaaf", Some(("tim", None, b"tanstaaftanstaaf"))), // RFC 4616 §4
        (b"Ursel\0Kurt\0xipj3plmq", Some(("Kurt", Some("Ursel"), b"xipj3plmq"))), // RFC 4616 §4
        (b"bob\0bob\0pw", Some(("bob", None, b"pw"))),
        (b"\0bob\0", Some(("bob", None, b""))),
        (b"\0bob\0\xff\xfe", Some(("bob", None, b"\xff\xfe"))),
        (b"", None),
        (b"bob", None),
        (b"\0bob", None),
        (b"\0bob\0pw\0", None),
        (b"\0\0pw", None),
        (b"\0b\xffb\0pw", None),
    ];
    for (response, want) in cases {
        let (_, step) = Server::new().start(Name::Plain, Some(response));
        match (step, want) {
            (Step::NeedVerify(verify), Some((authcid, authzid, password))) => {
                assert_eq!(verify.authcid, authcid);
                assert_eq!(verify.authzid.as_deref(), authzid);
                assert_eq!(verify.password.expose(), password);
            }
            (Step::Failure(Failure::Malformed), None) => {}
            (step, _) => panic!("{response:?}: {step:?}"),
        }
    }
}

#[test]
fn client_first_mechanisms_prompt_with_an_empty_challenge() {
    for name in [Name::Plain, Name::ScramSha1, Name::ScramSha256, Name::Anonymous, Name::Apop] {
        let (_, step) = Server::new().start(name, None);
        assert_eq!(challenge_of(step), b"", "{name:?}");
    }
}

#[test]
fn login_with_and_without_initial_response() {
    for initial in [None, Some(b"".as_slice()), Some(b"bob".as_slice())] {
        let mut server = Server::new();
        let (mut exchange, mut step) = server.start(Name::Login, initial);
        if initial.is_none_or(<[u8]>::is_empty) {
            assert_eq!(challenge_of(step), b"Username:");
            step = server.respond(&mut exchange, b"bob");
        }
        assert_eq!(challenge_of(step), b"Password:");
        let Step::NeedVerify(verify) = server.respond(&mut exchange, b"p w") else { panic!() };
        assert_eq!((verify.authcid.as_str(), verify.password.expose()), ("bob", b"p w".as_slice()));
        assert!(matches!(server.respond(&mut exchange, b"x"), Step::Failure(Failure::OutOfOrder)));
    }
}

#[test]
fn cram_md5_ignores_the_initial_response_and_takes_both_keys() {
    let stored = cram::stored_text(b"pw");
    for (credentials, good) in [
        (plain("pw"), true),
        (Credentials::CramMd5(Secret::new(unhex::<32>(stored.as_bytes()).unwrap().to_vec())), true),
        (plain("pW"), false),
        (Credentials::CramMd5(Secret::new(vec![0; 3])), false),
        (Credentials::Unknown, false),
    ] {
        let mut server = Server::new();
        let (mut exchange, step) = server.start(Name::CramMd5, Some(b"noise"));
        let challenge = challenge_of(step);
        assert!(challenge.starts_with(b"<") && challenge.ends_with(b"@mail.example.test>"));
        let digest = hmac_md5(b"pw", &challenge);
        let Step::NeedCredentials(lookup) =
            server.respond(&mut exchange, format!("bob the user {digest}").as_bytes())
        else {
            panic!()
        };
        assert_eq!(lookup.user, "bob the user");
        let step = server.credentials(&mut exchange, &credentials);
        assert_eq!(matches!(step, Step::Success(_)), good, "{credentials:?}");
    }
    for bad in ["", "bob", "bob ", "bob 12", " 00112233445566778899aabbccddeeff"] {
        let mut server = Server::new();
        let (mut exchange, _) = server.start(Name::CramMd5, None);
        assert!(matches!(server.respond(&mut exchange, bad.as_bytes()), Step::Failure(_)), "{bad}");
    }
}

fn hmac_md5(key: &[u8], data: &[u8]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(key).unwrap();
    mac.update(data);
    hex(&mac.finalize().into_bytes())
}

#[test]
fn apop_checks_the_numbers_of_the_greeting() {
    use md5::Digest as _;
    let good = "<1f.2.11@host>";
    let cases = [
        (good, "pw", true),
        (good, "no", false),
        ("<1e.2.11@host>", "pw", false),
        ("<1f.3.11@host>", "pw", false),
        ("<1f.2.f@host>", "pw", false),
        ("<1f.2@host>", "pw", false),
        // As pop3-login of Dovecot writes it.
        ("<1f.2.11.Zm9v+/8=@host>", "pw", true),
        ("<1f.2.f.Zm9v@host>", "pw", false),
        ("<1f.2.Zm9v.11@host>", "pw", false),
        ("1f.2.11@host", "pw", false),
        ("<+1f.2.zz@host>", "pw", false),
    ];
    for (challenge, password, want) in cases {
        let digest = md5::Md5::digest(format!("{challenge}pw").as_bytes());
        let response = [challenge.as_bytes(), b"\0bob\0", &digest].concat();
        let mut server = Server::new();
        let (mut exchange, mut step) = server.start(Name::Apop, Some(&response));
        if matches!(step, Step::NeedCredentials(_)) {
            step = server.credentials(&mut exchange, &plain(password));
        }
        assert_eq!(matches!(step, Step::Success(_)), want, "{challenge}");
    }
}

#[test]
fn anonymous_limits_the_trace() {
    let (_, step) = Server::new().start(Name::Anonymous, Some(b"sirhc"));
    assert!(matches!(step, Step::Success(_)));
    let (_, step) = Server::new().start(Name::Anonymous, Some(&[b'a'; 256]));
    assert!(matches!(step, Step::Failure(Failure::Malformed)));
}

/// RFC 5802 §5 and RFC 7677 §3, with the server's part of the nonce fixed by its random bytes: the client
/// side is computed here from the RFC's formulas.
struct Client {
    hash: Hash,
    bare: String,
    header: String,
    binding: Vec<u8>,
}

impl Client {
    fn first(&self) -> Vec<u8> {
        format!("{}{}", self.header, self.bare).into_bytes()
    }

    fn last(&self, server_first: &[u8], password: &str) -> Vec<u8> {
        let text = std::str::from_utf8(server_first).unwrap();
        let mut parts = text.split(',');
        let nonce = parts.next().unwrap().strip_prefix("r=").unwrap();
        let salt = BASE64.decode(parts.next().unwrap().strip_prefix("s=").unwrap()).unwrap();
        let iterations: u32 = parts.next().unwrap().strip_prefix("i=").unwrap().parse().unwrap();
        let mut bound = self.header.clone().into_bytes();
        bound.extend_from_slice(&self.binding);
        let without = format!("c={},r={nonce}", BASE64.encode(bound));
        let message = format!("{},{text},{without}", self.bare);
        let proof = proof(self.hash, password, &salt, iterations, message.as_bytes());
        format!("{without},p={}", BASE64.encode(proof)).into_bytes()
    }
}

fn proof(hash: Hash, password: &str, salt: &[u8], iterations: u32, message: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    fn mac<M: hmac::Mac + hmac::KeyInit>(key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut mac = <M as hmac::KeyInit>::new_from_slice(key).unwrap();
        mac.update(data);
        mac.finalize().into_bytes().to_vec()
    }
    type S1 = hmac::Hmac<sha1::Sha1>;
    type S2 = hmac::Hmac<sha2::Sha256>;
    let mut salted = vec![0; hash.size()];
    let (client_key, signature);
    match hash {
        Hash::Sha1 => {
            pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password.as_bytes(), salt, iterations, &mut salted);
            client_key = mac::<S1>(&salted, b"Client Key");
            signature = mac::<S1>(&sha1::Sha1::digest(&client_key), message);
        }
        Hash::Sha256 => {
            pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password.as_bytes(), salt, iterations, &mut salted);
            client_key = mac::<S2>(&salted, b"Client Key");
            signature = mac::<S2>(&sha2::Sha256::digest(&client_key), message);
        }
    }
    client_key.iter().zip(signature).map(|(k, s)| k ^ s).collect()
}

/// The proofs printed in RFC 5802 §5 and RFC 7677 §3 come out of our client, and the printed verifiers out of
/// our keys.
#[test]
fn rfc_examples() {
    let cases = [
        (
            Hash::Sha1,
            "QSXCR+Q6sek8bf92",
            "n=user,r=fyko+d2lbbFgONRv9qkxdawL,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,\
             s=QSXCR+Q6sek8bf92,i=4096,c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j",
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            Hash::Sha256,
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ];
    for (hash, salt, message, want_proof, want_verifier) in cases {
        let salt = BASE64.decode(salt).unwrap();
        assert_eq!(BASE64.encode(proof(hash, "pencil", &salt, 4096, message.as_bytes())), want_proof);
        // The server half: replay the dialogue with the RFC's nonce.
        let keys = ScramKeys::derive(hash, b"pencil", &salt, 4096);
        let got = scram_replay(hash, keys, message, want_proof);
        assert_eq!(got, format!("v={want_verifier}"));
    }
}

/// Runs the server with a nonce taken from a transcript.
fn scram_replay(hash: Hash, keys: ScramKeys, message: &str, proof: &str) -> String {
    let (bare, rest) = message.split_at(message.find(",r=").unwrap());
    let client_nonce = rest.strip_prefix(",r=").unwrap().split(',').next().unwrap();
    let server_nonce = rest.split(",r=").nth(2).unwrap().split(',').next().unwrap();
    let without_proof = message.split_at(message.find(",c=").unwrap() + 1).1;
    let success = scram::replay(
        hash,
        keys,
        format!("n,,{bare},r={client_nonce}").as_bytes(),
        server_nonce.as_bytes(),
        format!("{without_proof},p={proof}").as_bytes(),
    );
    String::from_utf8(success.unwrap().final_data.unwrap()).unwrap()
}

#[test]
fn scram_flag_table() {
    use BindingType::{TlsExporter, TlsServerEndPoint};
    // header, mechanism, offered bindings, data from the TLS layer, data the client binds, accepted
    type Case<'a> = (&'a str, Name, &'a [BindingType], Option<&'a [u8]>, &'a [u8], bool);
    let both: &[BindingType] = &[TlsExporter, TlsServerEndPoint];
    let cases: &[Case<'_>] = &[
        ("n,,", Name::ScramSha256, &[], None, b"", true),
        ("n,,", Name::ScramSha256, both, None, b"", true),
        ("y,,", Name::ScramSha256, &[], None, b"", true),
        ("y,,", Name::ScramSha256, both, None, b"", false),
        ("n,,", Name::ScramSha256Plus, both, None, b"", false),
        ("y,,", Name::ScramSha256Plus, both, None, b"", false),
        ("p=tls-exporter,,", Name::ScramSha256, both, Some(b"cb"), b"cb", false),
        ("p=tls-exporter,,", Name::ScramSha256Plus, both, Some(b"cb"), b"cb", true),
        ("p=tls-exporter,,", Name::ScramSha1Plus, both, Some(b"cb"), b"cb", true),
        ("p=tls-server-end-point,,", Name::ScramSha1Plus, both, Some(b"cb"), b"cb", true),
        ("p=tls-exporter,,", Name::ScramSha256Plus, both, Some(b"cb"), b"cB", false),
        ("p=tls-exporter,,", Name::ScramSha256Plus, both, None, b"", false),
        ("p=tls-exporter,,", Name::ScramSha256Plus, both, Some(b""), b"", false),
        ("p=tls-unique,,", Name::ScramSha256Plus, both, Some(b"cb"), b"cb", false),
        ("p=tls-exporter,,", Name::ScramSha256Plus, &[TlsServerEndPoint], Some(b"cb"), b"cb", false),
        ("n,a=other,", Name::ScramSha256, &[], None, b"", true),
        ("n,other,", Name::ScramSha256, &[], None, b"", false),
        ("x,,", Name::ScramSha256, &[], None, b"", false),
    ];
    for &(header, name, offered, tls, bound, want) in cases {
        let hash =
            if matches!(name, Name::ScramSha1 | Name::ScramSha1Plus) { Hash::Sha1 } else { Hash::Sha256 };
        let client =
            Client { hash, bare: "n=bob,r=abc".into(), header: header.into(), binding: bound.to_vec() };
        let mut server = Server { bindings: offered.to_vec(), ..Server::new() };
        let (mut exchange, step) = server.start(name, Some(&client.first()));
        let got = match step {
            Step::NeedCredentials(lookup) => {
                assert_eq!(lookup.authzid.as_deref(), header.contains("a=other").then_some("other"));
                let Step::Challenge(challenge) = server.credentials(&mut exchange, &plain("pw")) else {
                    panic!()
                };
                let binding = challenge.binding.and(tls);
                let last = client.last(&challenge.data, "pw");
                matches!(server.with(|ctx| exchange.respond(&last, binding, ctx)), Step::Success(_))
            }
            _ => false,
        };
        assert_eq!(got, want, "{header} {name:?}");
    }
}

#[test]
fn scram_unknown_user_looks_like_a_wrong_password() {
    let run = |credentials: &Credentials, user: &str, password: &str| {
        let client = Client {
            hash: Hash::Sha256,
            bare: format!("n={user},r=abc"),
            header: "n,,".into(),
            binding: Vec::new(),
        };
        let mut server = Server::new();
        let (mut exchange, _) = server.start(Name::ScramSha256, Some(&client.first()));
        let first = challenge_of(server.credentials(&mut exchange, credentials));
        let step = server.respond(&mut exchange, &client.last(&first, password));
        (first, step)
    };
    let (unknown, step) = run(&Credentials::Unknown, "bob", "pw");
    assert!(matches!(step, Step::Failure(Failure::Mismatch)));
    let (again, _) = run(&Credentials::Unknown, "bob", "other");
    let (known, step) = run(&plain("pw"), "bob", "pw");
    assert!(matches!(step, Step::Success(_)));
    assert_eq!(unknown, again, "the invented salt is stable");
    assert_eq!(unknown, known, "known and unknown users send the same first message");
    let (other, _) = run(&Credentials::Unknown, "eve", "pw");
    assert_ne!(unknown, other);
}

#[test]
fn scram_refusals() {
    let firsts: &[&[u8]] = &[
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=bob",
        b"n,,n=,r=x",
        b"n,,n=bob,r=",
        b"n,,n=bob,r=a b",
        b"n,,n=bob,r=a\xff",
        b"n,,r=x,n=bob",
        b"n,,n=b=ob,r=x",
        b"n,,m=ext,n=bob,r=x",
        b"n,,n=bob,r=x,,",
        b"n,a=,n=bob,r=x",
        b"p=,,n=bob,r=x",
    ];
    for first in firsts {
        let (_, step) = Server::new().start(Name::ScramSha1, Some(first));
        assert!(matches!(step, Step::Failure(_)), "{first:?}: {step:?}");
    }
    let client =
        Client { hash: Hash::Sha1, bare: "n=bob,r=abc".into(), header: "n,,".into(), binding: Vec::new() };
    let tampers: &[fn(&str) -> String] = &[
        |_| String::new(),
        |good| good.replace("c=biws", "c=eSws"),
        |good| good.replace("r=abc", "r=abd"),
        |good| good.replace(",p=", ",q="),
        |good| format!("{good}AAAA"),
        |good| format!("{good},x=1"),
        |good| good.replace(",p=", ",m=1,p="),
        |good| good.split(",p=").next().map(|head| format!("{head},p=AAAA")).unwrap(),
    ];
    for (at, tamper) in tampers.iter().enumerate() {
        let mut server = Server::new();
        let (mut exchange, _) = server.start(Name::ScramSha1, Some(&client.first()));
        let first = challenge_of(server.credentials(&mut exchange, &plain("pw")));
        let good = String::from_utf8(client.last(&first, "pw")).unwrap();
        let step = server.respond(&mut exchange, tamper(&good).as_bytes());
        assert!(matches!(step, Step::Failure(_)), "{at}: {step:?}");
    }
}

/// rsasl as a client nobody here wrote.
#[test]
fn rsasl_clients_agree() {
    use rsasl::prelude::*;
    let cases = [
        ("PLAIN", Name::Plain),
        ("LOGIN", Name::Login),
        ("SCRAM-SHA-1", Name::ScramSha1),
        ("SCRAM-SHA-256", Name::ScramSha256),
    ];
    for (mechanism, name) in cases {
        for (typed, want) in [("p,w=ä", true), ("wrong", false)] {
            let config = SASLConfig::with_credentials(None, "bo,b=".to_owned(), typed.to_owned()).unwrap();
            let offered = Mechname::parse(mechanism.as_bytes()).unwrap();
            let mut client = SASLClient::new(config).start_suggested([&offered]).unwrap();
            let mut server = Server::new();
            let mut out = Vec::new();
            let initial = client.are_we_first().then(|| {
                let _ = client.step(None, &mut out).unwrap();
                std::mem::take(&mut out)
            });
            let (mut exchange, mut step) = server.start(name, initial.as_deref());
            let accepted = loop {
                step = match step {
                    Step::Challenge(challenge) => {
                        let _ = client.step(Some(&challenge.data), &mut out).unwrap();
                        let answer = std::mem::take(&mut out);
                        server.respond(&mut exchange, &answer)
                    }
                    Step::NeedVerify(verify) => {
                        assert_eq!(verify.authcid, "bo,b=");
                        break verify.password.expose() == "p,w=ä".as_bytes();
                    }
                    Step::NeedCredentials(lookup) => {
                        assert_eq!(lookup.user, "bo,b=");
                        server.credentials(&mut exchange, &plain("p,w=ä"))
                    }
                    Step::Success(success) => {
                        // The client checks the server's signature, RFC 5802 §3.
                        let state = client.step(success.final_data.as_deref(), &mut out).unwrap();
                        assert!(state.is_finished());
                        break true;
                    }
                    Step::Failure(_) => break false,
                };
            };
            assert_eq!(accepted, want, "{mechanism} {typed}");
        }
    }
}

proptest! {
    /// Whatever arrives in whatever order: no panic, and nobody gets in.
    #[test]
    fn hostile_responses(
        which in 0..Name::ALL.len(),
        initial in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..80)),
        answers in proptest::collection::vec((any::<bool>(), "[ -~]{0,60}"), 0..5),
    ) {
        let name = Name::ALL[which];
        let mut server = Server { bindings: vec![BindingType::TlsExporter], ..Server::new() };
        let (mut exchange, mut step) = server.start(name, initial.as_deref());
        for (feed_key, text) in answers {
            prop_assert!(name == Name::Anonymous || !matches!(step, Step::Success(_)));
            step = if feed_key {
                server.credentials(&mut exchange, &plain("pw"))
            } else {
                server.with(|ctx| exchange.respond(text.as_bytes(), Some(b"cb"), ctx))
            };
        }
    }
}
