//! Noise on the pool's channel, in both directions, and from an IMAP server.
//!
//! Trust: a worker whose module was taken over may answer anything; a daemon that was taken over may ask anything.
//! Never: a panic, or a record that means something else when it is written again.

use std::io::{self, Cursor, Read, Write};

use super::imap::converse;
use super::record::{Asked, Reply, Wanted};
use super::{Account, Answer, Effects, Facts, Question, StateRules};

const ROUNDS: usize = 40_000;

/// xorshift64: the same noise in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }

    /// One of these with up to four mistakes: bytes changed, put in, taken away, the end cut off.
    fn spoil(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(5) {
            let at = self.below(bytes.len());
            let byte = u8::try_from(self.below(256)).unwrap();
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                3 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}

fn body(record: &[u8]) -> Vec<u8> {
    record[4..].to_vec()
}

#[test]
fn questions_are_understood_whole_or_not_at_all() {
    let facts = Facts { rhost: "192.0.2.1".into(), service: "smtp".into() };
    let rules = StateRules::default();
    let effects = Effects { session: true, setcred: true };
    let seeds: Vec<Vec<u8>> = [
        Question::Pam { service: "smtp".into(), effects, rules, messages: true },
        Question::Shadow(rules),
        Question::Passwd(rules),
        Question::Imap { host: "::1".into(), port: 143 },
    ]
    .iter()
    .map(|question| Wanted::verify(question, "bob", b"p\xff", &facts))
    .chain([Wanted::account("bob"), Wanted::accounts(1000), Wanted::group("mail")])
    .map(|wanted| body(wanted.bytes()))
    .collect();
    let mut noise = Noise(4711);
    let mut understood = 0;
    for _ in 0..ROUNDS {
        let spoilt = noise.spoil(&seeds);
        let Some(asked) = Asked::decode(&spoilt) else { continue };
        understood += 1;
        let again = match &asked {
            Asked::Verify { question, user, password, facts } => {
                Wanted::verify(question, user, password, facts)
            }
            Asked::Account(user) => Wanted::account(user),
            Asked::Accounts(first) => Wanted::accounts(*first),
            Asked::Group(name) => Wanted::group(name),
        };
        assert_eq!(Asked::decode(&body(again.bytes())), Some(asked), "{spoilt:?}");
    }
    // Neither all nor none: the noise reaches what lies behind the first checks.
    assert!(understood > ROUNDS / 20 && understood < ROUNDS, "{understood}");
}

#[test]
fn answers_are_understood_whole_or_not_at_all() {
    let account = Account { name: "bob".into(), uid: 1000, gid: 1000, home: "/home/bob".into() };
    let seeds: Vec<Vec<u8>> = [
        Reply::Answer(Answer::Ok(Some("bob".into())).into()),
        Reply::Answer(Answer::Expired("since yesterday".into()).into()),
        Reply::Account(Some(account)),
        Reply::Account(None),
        Reply::Names(vec!["alice".into(), "bob".into()]),
        Reply::Group(Some(8)),
        Reply::Ended("signal: 11".into()),
    ]
    .iter()
    .map(|reply| body(&reply.encode()))
    .collect();
    let mut noise = Noise(815);
    let mut understood = 0;
    for _ in 0..ROUNDS {
        let spoilt = noise.spoil(&seeds);
        let Some(reply) = Reply::decode(&spoilt) else { continue };
        understood += 1;
        assert_eq!(Reply::decode(&body(&reply.encode())), Some(reply), "{spoilt:?}");
    }
    assert!(understood > ROUNDS / 20 && understood < ROUNDS, "{understood}");
}

struct Wire {
    from: Cursor<Vec<u8>>,
    to: Vec<u8>,
}

impl Read for &mut Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer)
    }
}

impl Write for &mut Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn only_the_tagged_ok_of_an_imap_server_lets_in() {
    let seeds: Vec<Vec<u8>> = [
        "* OK hello\r\na OK in\r\n",
        "* OK hello\r\n* CAPABILITY IMAP4rev1\r\na NO [EXPIRED] old\r\n",
        "* OK hello\r\na NO [UNAVAILABLE] later\r\n",
        "* PREAUTH hello\r\na OK in\r\n",
        "* OK hello\r\nb OK in\r\n* a OK\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let mut noise = Noise(42);
    let mut granted = 0;
    for _ in 0..ROUNDS / 4 {
        let says = noise.spoil(&seeds);
        let user = String::from_utf8_lossy(&noise.spoil(&[b"b\"o\\b".to_vec()])).into_owned();
        let password = noise.spoil(&[b"p \r\n\"w".to_vec(), b"secret".to_vec()]);
        let mut wire = Wire { from: Cursor::new(says.clone()), to: Vec::new() };
        if matches!(converse(&mut wire, &user, &password), Ok(Answer::Ok(_))) {
            granted += 1;
            let ok = |line: &[u8]| line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"a OK"));
            assert!(says.split(|byte| *byte == b'\n').any(ok), "{says:?}");
        }
        // LOGIN and LOGOUT are two lines, whatever the name and the password hold.
        assert!(wire.to.iter().filter(|byte| **byte == b'\n').count() <= 2, "{user:?} {password:?}");
    }
    assert!(granted > 0);
}
