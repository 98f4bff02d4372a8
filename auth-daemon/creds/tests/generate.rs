//! What we make, we verify; and Dovecot's `doveadm pw` and `mkpasswd` agree.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use creds::{
    Encoding, Error, Generate, Method, NoCrypt, Policy, Scheme, Scratch, Stored, Verdict, Verifier, generate,
};
use proptest::prelude::*;

const USER: &[u8] = b"user@example.org";

/// Low costs: many strings are made.
fn quick(encoding: Encoding) -> Generate {
    Generate {
        encoding,
        rounds: Some(4096),
        bcrypt_cost: 4,
        argon2_memory: Some(64),
        argon2_passes: Some(1),
        ..Generate::default()
    }
}

fn verifier() -> Verifier {
    Verifier::new(Policy { allow_weak: true, ..Policy::default() }, system_auth::crypt)
}

fn verify(stored: &[u8], password: &[u8]) -> Result<Verdict, Error> {
    let stored = Stored::parse(stored, Scheme::Plain)?;
    verifier().verify(&stored, USER, password, &mut Scratch::default())
}

#[test]
fn every_scheme_and_encoding_verifies_what_it_makes() {
    for scheme in Scheme::all() {
        for encoding in [Encoding::Own, Encoding::Base64, Encoding::Hex] {
            for password in ["summersun", "pa$$wörd-1", "x", "{x}y"] {
                let stored =
                    generate(scheme, USER, password.as_bytes(), &quick(encoding), &system_auth::crypt)
                        .unwrap();
                let shown = String::from_utf8_lossy(stored.expose()).into_owned();
                assert_eq!(verify(stored.expose(), password.as_bytes()), Ok(Verdict::Match), "{shown}");
                assert_ne!(verify(stored.expose(), b"other"), Ok(Verdict::Match), "{shown}");
                assert_ne!(verify(stored.expose(), b""), Ok(Verdict::Match), "{shown}");
            }
        }
    }
}

#[test]
fn every_crypt_method_verifies_what_it_makes() {
    for method in [
        Method::Yescrypt,
        Method::GostYescrypt,
        Method::Scrypt,
        Method::Bcrypt,
        Method::Sha512,
        Method::Sha256,
        Method::Sha1,
        Method::SunMd5,
        Method::Md5,
        Method::Nt,
        Method::BsdDes,
        Method::Des,
    ] {
        let how = Generate { method, ..quick(Encoding::Own) };
        let stored = generate(Scheme::Crypt, USER, b"summersun", &how, &system_auth::crypt).unwrap();
        assert_eq!(verify(stored.expose(), b"summersun"), Ok(Verdict::Match), "{method:?}");
        assert_eq!(verify(stored.expose(), b"xummersun"), Ok(Verdict::Mismatch), "{method:?}");
    }
}

#[test]
fn salts_differ() {
    for scheme in [Scheme::Ssha, Scheme::Sha512Crypt, Scheme::ScramSha256, Scheme::Argon2id, Scheme::BlfCrypt]
    {
        let make = || generate(scheme, USER, b"pw", &quick(Encoding::Own), &system_auth::crypt).unwrap();
        assert_ne!(make(), make());
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let make =
        |scheme, password: &[u8]| generate(scheme, USER, password, &Generate::default(), &system_auth::crypt);
    for bad in [&b"a\0b"[..], b"a\nb", b"a\tb", b"\x01"] {
        assert!(matches!(make(Scheme::Plain, bad), Err(Error::BadPassword(_))));
    }
    assert!(matches!(make(Scheme::BlfCrypt, &[b'a'; 73]), Err(Error::BadPassword(_))));
    assert!(matches!(make(Scheme::Sha512Crypt, &[b'a'; 512]), Err(Error::BadPassword(_))));
    let no_crypt = generate(Scheme::BlfCrypt, USER, b"pw", &Generate::default(), &NoCrypt);
    assert_eq!(no_crypt, Err(Error::NoCrypt(Scheme::BlfCrypt)));
    let no_user = generate(Scheme::DigestMd5, b"", b"pw", &Generate::default(), &NoCrypt);
    assert_eq!(no_user, Err(Error::NeedsUser(Scheme::DigestMd5)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cheap_schemes_round_trip_any_password(
        password in "[^\\x00\\x01\\t\\r\\n]{1,80}",
        which in 0_usize..64,
    ) {
        let cheap: Vec<Scheme> = Scheme::all()
            .filter(|scheme| !matches!(scheme, Scheme::Argon2 | Scheme::Argon2i | Scheme::Argon2id
                | Scheme::BlfCrypt | Scheme::Crypt | Scheme::DesCrypt))
            .collect();
        let scheme = cheap[which % cheap.len()];
        let stored = generate(scheme, USER, password.as_bytes(), &quick(Encoding::Own), &system_auth::crypt).unwrap();
        prop_assert_eq!(verify(stored.expose(), password.as_bytes()), Ok(Verdict::Match));
        let mut other = password.into_bytes();
        other.insert(0, b'#');
        let wrong = verify(stored.expose(), &other);
        prop_assert_ne!(wrong, Ok(Verdict::Match));
    }

    #[test]
    fn no_stored_text_makes_us_panic(text in proptest::collection::vec(any::<u8>(), 0..120), name in 0_usize..29) {
        let scheme = Scheme::all().nth(name).unwrap();
        let small = Policy { allow_weak: true, caps: creds::Caps {
            memory: 1 << 20, crypt_rounds: 5_000, pbkdf2_rounds: 5_000, scram_iterations: 5_000, bcrypt_cost: 4,
            block_work: 1 << 12, ..creds::Caps::default() } };
        let verifier = Verifier::new(small, system_auth::crypt);
        for stored in [Ok(Stored::new(scheme, &text)), Stored::parse(&text, scheme), Stored::parse_column(&text, scheme)] {
            let Ok(stored) = stored else { continue };
            let verdict = verifier.verify(&stored, USER, b"pw", &mut Scratch::default());
            if scheme != Scheme::Plain && scheme != Scheme::PlainTrunc {
                prop_assert_ne!(verdict, Ok(Verdict::Match));
            }
        }
    }
}

/// Runs a peer; `None` with a line on standard error when it is not installed.
fn peer(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        eprintln!("SKIPPED: {program} is not installed");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some((output.status.success(), String::from_utf8(output.stdout).unwrap().trim().to_owned()))
}

#[test]
fn doveadm_accepts_what_we_make() {
    for scheme in Scheme::all() {
        // Not in Debian's Dovecot: ARGON2 as a name (2.4).
        if scheme == Scheme::Argon2 {
            continue;
        }
        for password in ["summersun", "pa$$wörd-1"] {
            let stored =
                generate(scheme, USER, password.as_bytes(), &quick(Encoding::Own), &system_auth::crypt)
                    .unwrap();
            let stored = std::str::from_utf8(stored.expose()).unwrap();
            let user = std::str::from_utf8(USER).unwrap();
            let arguments = [
                "-c",
                "/dev/null",
                "-o",
                "stats_writer_socket_path=",
                "pw",
                "-t",
                stored,
                "-p",
                password,
                "-u",
                user,
            ];
            let Some((accepted, shown)) = peer("doveadm", &arguments, "") else { return };
            assert!(accepted && shown.contains("verified"), "{stored}: {shown}");
        }
    }
}

#[test]
fn we_accept_what_doveadm_makes() {
    for scheme in Scheme::all() {
        // PLAIN-TRUNC comes without its length from doveadm; OTP and ARGON2 differ by version.
        if matches!(scheme, Scheme::PlainTrunc | Scheme::Argon2) {
            continue;
        }
        let user = std::str::from_utf8(USER).unwrap();
        let arguments = [
            "-c",
            "/dev/null",
            "-o",
            "stats_writer_socket_path=",
            "pw",
            "-s",
            scheme.name(),
            "-p",
            "pa$$wörd-1",
            "-u",
            user,
        ];
        let Some((made, stored)) = peer("doveadm", &arguments, "") else { return };
        assert!(made, "{scheme}: {stored}");
        assert_eq!(verify(stored.as_bytes(), "pa$$wörd-1".as_bytes()), Ok(Verdict::Match), "{stored}");
        assert_ne!(verify(stored.as_bytes(), b"pa$$word-1"), Ok(Verdict::Match), "{stored}");
    }
}

#[test]
fn we_accept_what_mkpasswd_makes() {
    for method in [
        "yescrypt",
        "gost-yescrypt",
        "scrypt",
        "bcrypt",
        "bcrypt-a",
        "sha512crypt",
        "sha256crypt",
        "sunmd5",
        "md5crypt",
        "bsdicrypt",
        "descrypt",
        "nt",
    ] {
        let Some((made, stored)) = peer("mkpasswd", &["-s", "-m", method], "summersun") else { return };
        assert!(made, "{method}");
        assert_eq!(
            verify(format!("{{CRYPT}}{stored}").as_bytes(), b"summersun"),
            Ok(Verdict::Match),
            "{stored}"
        );
    }
}
