//! Hostile side files and file names in a Maildir that other programs write to: opened, never a panic.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use maildir::{FolderName, Maildir, Options, Store};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = FolderName::from_imap(text, '/') {
            assert!(!name.dir().contains('/'));
            assert_eq!(FolderName::from_imap(&name.to_imap('/'), '/').as_ref(), Ok(&name));
        }
        let _ = FolderName::from_dir(text);
    }
    let Some((&first, data)) = data.split_first() else { return };
    let base = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let Ok(scratch) = tempfile::tempdir_in(base) else { return };
    let root = scratch.path().join("Maildir");
    let Ok(maildir) = Maildir::open_or_create(&root) else { return };
    let file = ["dovecot-uidlist", "dovecot-keywords", "subscriptions", "dovecot-uidvalidity"][usize::from(first % 4)];
    let _ = fs::write(root.join(file), data);
    let _ = fs::write(root.join("cur/1700000000.M1P1.host,S=3:2,Sa"), b"a\nb");
    let _ = maildir.subscriptions();
    let Ok(store) = Store::new(Options::default()) else { return };
    if let Ok(mailbox) = store.mailbox(&root, &FolderName::inbox()) {
        let _ = mailbox.sync();
        let _ = mailbox.status(true);
    }
});
