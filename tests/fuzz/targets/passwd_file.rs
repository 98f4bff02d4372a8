//! Any bytes as a passwd-file: every user is found again, with every field; and a new password changes one user's line.
#![no_main]

use std::fs;
use std::time::Duration;

use creds::passwd::{Editor, Index, NumericIds};
use creds::{KeyKind, Scheme, Secret};
use libfuzzer_sys::fuzz_target;

const DOMAIN: &str = "example.org";
const FRESH: &[u8] = b"{PLAIN}fresh";

fuzz_target!(|data: &[u8]| {
    let users = Index::build(data.to_vec(), None);
    let mut count = 0;
    for entry in users.entries() {
        count += 1;
        assert_eq!(users.lookup(entry.name()).map(|found| found.password()), Some(entry.password()));
        let _ = (entry.stored(Scheme::Crypt), entry.stored_for(KeyKind::ScramSha256, Scheme::Crypt));
        let fields = entry.extra_fields().count();
        assert!(
            entry.passdb_fields().count() + entry.userdb_fields().count() + entry.keys().count() >= fields
        );
    }
    assert_eq!(users.report().users, count);
    let _ = (users.lookup(data), users.lookup_user(data, DOMAIN.as_bytes()));
    let with_ids = Index::build(data.to_vec(), Some(&NumericIds));
    for entry in with_ids.entries() {
        assert!(with_ids.ids(&entry).is_ok());
    }

    let name = users.entries().find_map(|entry| std::str::from_utf8(entry.name()).ok());
    let Some(name) = name else { return };
    let base = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let Ok(scratch) = tempfile::tempdir_in(base) else { return };
    let file = scratch.path().join("users");
    fs::write(&file, data).expect("a file");
    let mut editor = Editor::open(&file, DOMAIN, Duration::from_secs(1)).expect("nobody else edits it");
    if editor.set_password(name, &Secret::new(FRESH.to_vec()), Some(&[])).is_err() {
        return;
    }
    editor.commit().expect("written");
    let changed = Index::build(fs::read(&file).expect("a file"), None);
    assert_eq!(changed.lookup(name.as_bytes()).map(|entry| entry.password()), Some(FRESH));
    let bare = |name: &[u8]| name.strip_suffix(format!("@{DOMAIN}").as_bytes()).unwrap_or(name).to_vec();
    for entry in users.entries().filter(|entry| bare(entry.name()) != bare(name.as_bytes())) {
        assert_eq!(changed.lookup(entry.name()).map(|found| found.password()), Some(entry.password()));
    }
});
