//! Every row of the vectors file gives the stated answer, with the system's crypt(3).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use creds::passwd::Index;
use creds::{Error, KeyKind, Policy, Scheme, Scratch, Stored, Verdict, Verifier};

const VECTORS: &str = include_str!("../testdata/password-vectors.tsv");

struct Row<'a> {
    line: usize,
    password: String,
    stored: &'a str,
    matches: bool,
    source: &'a str,
    note: &'a str,
}

fn rows() -> impl Iterator<Item = Row<'static>> {
    VECTORS.split('\n').enumerate().skip(1).filter(|(_, line)| !line.is_empty()).map(|(at, line)| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [password, stored, matches, source, note] = columns[..] else {
            panic!("line {}: not five columns", at + 1);
        };
        Row {
            line: at + 1,
            password: password.replace("\\t", "\t"),
            stored,
            matches: matches == "yes",
            source,
            note,
        }
    })
}

fn verifier() -> Verifier {
    Verifier::new(Policy { allow_weak: true, ..Policy::default() }, system_auth::crypt)
}

fn user(note: &str) -> &str {
    note.split(' ').find_map(|word| word.strip_prefix("user=")).unwrap_or("user@example.org")
}

#[test]
fn every_row_gives_the_stated_answer() {
    let verifier = verifier();
    let mut scratch = Scratch::default();
    let mut counts = (0, 0);
    for row in rows() {
        let line = format!("u:{}", row.stored);
        let index = Index::build(line.into_bytes(), None);
        let entry = index.lookup(b"u").unwrap();
        let stored = match row.source {
            "passwd-file" => entry.stored(Scheme::Crypt),
            _ => Stored::parse(row.stored.as_bytes(), Scheme::Crypt),
        };
        let user = user(row.note).as_bytes();
        let verdict =
            stored.and_then(|stored| verifier.verify(&stored, user, row.password.as_bytes(), &mut scratch));
        let found = verdict == Ok(Verdict::Match);
        assert_eq!(found, row.matches, "line {}: {} ({}): {verdict:?}", row.line, row.stored, row.note);
        if found {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
        // A text that verifies has a cost within the caps, known beforehand.
        if row.matches {
            let stored = Stored::parse_column(row.stored.as_bytes(), Scheme::Crypt).unwrap();
            assert!(verifier.cost(&stored).is_ok(), "line {}", row.line);
        }
    }
    assert_eq!(counts, (210, 236));
}

#[test]
fn rows_that_fit_into_a_passwd_file_give_the_same_answer_from_there() {
    let verifier = verifier();
    let mut scratch = Scratch::default();
    for row in rows().filter(|row| !row.stored.contains(':') && !row.note.contains("user=")) {
        let index =
            Index::build(format!("# users\nu:{}:1000:1000::/home/u::", row.stored).into_bytes(), None);
        let verdict = index
            .lookup(b"u")
            .unwrap()
            .stored(Scheme::Crypt)
            .and_then(|stored| verifier.verify(&stored, b"u", row.password.as_bytes(), &mut scratch));
        assert_eq!(verdict == Ok(Verdict::Match), row.matches, "line {}: {}", row.line, row.stored);
    }
}

#[test]
fn malformed_rows_never_match_under_any_default() {
    let verifier = verifier();
    let mut scratch = Scratch::default();
    for row in rows().filter(|row| row.note.contains("malformed") && row.stored.starts_with('{')) {
        for password in ["", "x", "summersun", row.stored] {
            let verdict = Stored::parse(row.stored.as_bytes(), Scheme::Crypt)
                .and_then(|stored| verifier.verify(&stored, b"u", password.as_bytes(), &mut scratch));
            assert_ne!(verdict, Ok(Verdict::Match), "line {}: {}", row.line, row.stored);
        }
    }
}

#[test]
fn weak_rows_are_refused_without_the_switch() {
    let strict = Verifier::new(Policy::default(), system_auth::crypt);
    let mut scratch = Scratch::default();
    for row in rows().filter(|row| row.matches) {
        let stored = Stored::parse_column(row.stored.as_bytes(), Scheme::Crypt).unwrap();
        let user = user(row.note).as_bytes();
        let verdict = strict.verify(&stored, user, row.password.as_bytes(), &mut scratch);
        let weak = stored.scheme().is_weak() || is_weak_text(row.stored);
        match verdict {
            Ok(Verdict::Match) => assert!(!weak, "line {}: {}", row.line, row.stored),
            Err(Error::Weak(_)) => assert!(weak, "line {}: {}", row.line, row.stored),
            other => panic!("line {}: {}: {other:?}", row.line, row.stored),
        }
    }
}

fn is_weak_text(stored: &str) -> bool {
    let text = stored.strip_prefix("{CRYPT}").unwrap_or(stored);
    !text.starts_with('{')
        && (["$1$", "$3$", "_"].iter().any(|prefix| text.starts_with(prefix)) || !text.starts_with('$'))
}

#[test]
fn keys_of_stored_rows_are_the_keys_of_their_passwords() {
    let policy = Policy { allow_weak: true, ..Policy::default() };
    for row in rows().filter(|row| row.matches && row.source == "dovecot") {
        let stored = Stored::parse(row.stored.as_bytes(), Scheme::Crypt).unwrap();
        for (kind, scheme) in [
            (KeyKind::ScramSha1, Scheme::ScramSha1),
            (KeyKind::ScramSha256, Scheme::ScramSha256),
            (KeyKind::CramMd5, Scheme::CramMd5),
            (KeyKind::DigestMd5, Scheme::DigestMd5),
        ] {
            let served = creds::key(&stored, kind, &policy).is_ok();
            let holds = stored.scheme() == scheme
                || stored.scheme() == Scheme::Plain
                || (stored.scheme() == Scheme::HmacMd5 && kind == KeyKind::CramMd5);
            assert_eq!(served, holds, "line {}: {}", row.line, row.stored);
        }
    }
}

/// libsodium's code and the portable one are the same function, and the choice between them shows nowhere.
#[test]
fn both_implementations_of_argon2_agree() {
    fn fast(question: creds::Argon2Question<'_>, out: &mut [u8]) -> bool {
        let creds::Argon2Question { id, memory_kib, passes, salt, password } = question;
        system_auth::argon2(system_auth::Argon2 { id, memory_kib, passes, salt, password }, out)
    }
    let (portable, faster) = (verifier(), verifier().with_argon2(fast));
    let mut scratch = Scratch::default();
    let mut checked = 0;
    for row in rows().filter(|row| row.stored.contains("$argon2")) {
        let Ok(stored) = Stored::parse_column(row.stored.as_bytes(), Scheme::Crypt) else { continue };
        let mut ask = |verifier: &Verifier| {
            verifier.verify(&stored, user(row.note).as_bytes(), row.password.as_bytes(), &mut scratch)
        };
        assert_eq!(ask(&portable), ask(&faster), "line {}", row.line);
        checked += 1;
    }
    assert!(checked > 3, "{checked}");
}
