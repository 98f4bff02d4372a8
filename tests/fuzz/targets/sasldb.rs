//! Any bytes as a Berkeley DB file: read or refused, and never more than a few times their size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(lines) = creds::sasldb::to_passwd_file(data) {
        assert!(lines.len() <= data.len() * 10 + (2 << 20));
        let users = creds::passwd::Index::build(lines.to_vec(), None);
        for entry in users.entries() {
            assert!(entry.name().contains(&b'@') && entry.password().starts_with(b"{PLAIN.B64}"));
        }
    }
});
