//! The two files were made by `db5.3_load` with pages of 512 bytes: 40 users, one password of 1,200 bytes on overflow
//! pages, and one property that is no password.

use super::{Error, berkeley, to_passwd_file};
use crate::passwd::Index;
use crate::{Scheme, Stored};

const HASH: &[u8] = include_bytes!("../../testdata/sasldb-hash.db");
const BTREE: &[u8] = include_bytes!("../../testdata/sasldb-btree.db");

fn password(index: &Index, name: &str) -> Option<Vec<u8>> {
    let entry = index.lookup(name.as_bytes())?;
    let stored = Stored::parse_column(entry.password(), Scheme::Crypt).expect("a stored string");
    match crate::key(&stored, crate::KeyKind::Plain, &crate::Policy::default()).expect("in clear") {
        crate::Key::Plain(secret) => Some(secret.expose().to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_password_of_both_kinds() {
    for (kind, bytes) in [("hash", HASH), ("btree", BTREE)] {
        let text = to_passwd_file(bytes).expect(kind);
        assert_eq!(text.capacity(), text.len(), "{kind}: nothing was copied while it grew");
        let index = Index::build(text.to_vec(), None);
        assert_eq!(index.report().users, 41, "{kind}");
        for number in 0..40 {
            let found = password(&index, &format!("user{number}@example.org"));
            assert_eq!(found.as_deref(), Some(format!("pass:{number}").as_bytes()), "{kind}");
        }
        assert_eq!(password(&index, "long@example.org"), Some(vec![b'x'; 1200]), "{kind}");
        assert_eq!(password(&index, "user1"), None);
    }
}

#[test]
fn what_is_no_sasldb_says_so() {
    let empty: &[u8] = b"";
    for foreign in [empty, b"alice:{PLAIN}x\n", &[0; 4096], &HASH[..12]] {
        assert_eq!(to_passwd_file(foreign).err(), Some(Error::Foreign));
    }
    let changed = |at: usize, byte: u8| {
        let mut bytes = HASH.to_vec();
        bytes[at] = byte;
        to_passwd_file(&bytes).expect_err("refused")
    };
    assert_eq!(changed(16, 7), Error::Version(7));
    assert!(matches!(changed(24, 1), Error::Unsupported(_)), "encrypted");
    assert!(matches!(changed(26, 1), Error::Unsupported(_)), "checksums");
    assert!(matches!(changed(48, 1), Error::Unsupported(_)), "duplicates");
    assert!(matches!(changed(21, 3), Error::Damaged(_)), "page size");
    assert!(matches!(changed(25, 9), Error::Damaged(_)), "metadata of another kind");
    assert!(matches!(to_passwd_file(&HASH[..HASH.len() - 1]).err(), Some(Error::Damaged(_))));
}

#[test]
fn the_other_byte_order() {
    // What a big-endian machine writes differs in every number; two pages with one entry are enough to see it.
    let mut file = vec![0; 1024];
    file[12..16].copy_from_slice(&0x0006_1561_u32.to_be_bytes());
    file[16..20].copy_from_slice(&9_u32.to_be_bytes());
    file[20..24].copy_from_slice(&512_u32.to_be_bytes());
    file[25] = 8;
    let (key, value) = (&b"\x01a\0r\0userPassword"[..], &b"\x01secret"[..]);
    let page = &mut file[512..];
    page[8..12].copy_from_slice(&1_u32.to_be_bytes());
    page[20..22].copy_from_slice(&2_u16.to_be_bytes());
    page[25] = 13;
    let starts = [512 - key.len(), 512 - key.len() - value.len()];
    for (at, (start, item)) in starts.into_iter().zip([key, value]).enumerate() {
        page[26 + 2 * at..28 + 2 * at].copy_from_slice(&u16::try_from(start).unwrap().to_be_bytes());
        page[start..start + item.len()].copy_from_slice(item);
    }
    let index = Index::build(to_passwd_file(&file).expect("read").to_vec(), None);
    assert_eq!(password(&index, "a@r"), Some(b"secret".to_vec()));
}

#[test]
fn names_that_could_pass_for_others_are_left_out() {
    let lines = |key: &[u8], value: &[u8]| super::entry(key, value).is_some();
    assert!(lines(b"a\0r\0userPassword", b"x"));
    assert!(lines(b"a\0\0userPassword", b"x"));
    for key in [
        &b"a@b\0r\0userPassword"[..],
        b"a:{PLAIN}x\0r\0userPassword",
        b"a\nroot\0r\0userPassword",
        b"a\0r:x\0userPassword",
        b"#a\0r\0userPassword",
        b"\0r\0userPassword",
        b"a\0r\0userPassword\0",
        b"a\0r\0cmusaslsecretPLAIN",
        b"a\0r",
        b"",
    ] {
        assert!(!lines(key, b"x"), "{}", key.escape_ascii());
    }
    assert!(!lines(b"a\0r\0userPassword", b""), "no password");
}

#[test]
fn damage_anywhere_ends_in_an_error_or_fewer_users() {
    for original in [HASH, BTREE] {
        let mut bytes = original.to_vec();
        for at in 0..bytes.len() {
            for wrong in [0, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(7)] {
                let right = std::mem::replace(&mut bytes[at], wrong);
                if let Ok(text) = to_passwd_file(&bytes) {
                    assert!(text.len() < 16 * 1024);
                }
                bytes[at] = right;
            }
        }
        for length in 0..original.len() {
            let _ = to_passwd_file(&original[..length]);
        }
    }
}

#[test]
fn chains_that_lead_in_circles_end() {
    // The overflow pages of the long password: the last one points at the first again.
    let mut bytes = HASH.to_vec();
    let overflow: Vec<usize> = (1..bytes.len() / 512).filter(|page| bytes[page * 512 + 25] == 7).collect();
    let (first, last) = (overflow[0], overflow[overflow.len() - 1]);
    bytes[last * 512 + 16..last * 512 + 20].copy_from_slice(&u32::try_from(first).unwrap().to_le_bytes());
    assert!(to_passwd_file(&bytes).is_ok(), "the length ends it");
    let too_long = u32::try_from(berkeley::MAX_ITEM + 1).unwrap().to_le_bytes();
    let at = bytes.windows(4).position(|four| four == 1200_u32.to_le_bytes()).expect("the length");
    bytes[at..at + 4].copy_from_slice(&too_long);
    assert_eq!(to_passwd_file(&bytes).err(), Some(Error::Damaged("an item is too long")));
}
