//! Any text as what `doveconf -n` prints: an answer, and what comes out is TOML in which nothing has broken out of its value.
#![no_main]

use std::path::Path;

use conf::import::{Facts, dovecot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let nobody = |_: &str| None;
    let facts = Facts { hostname: "mail.example.org".to_owned(), uid: &nobody, gid: &nobody };
    let _ = conf::import::defaults(text);
    let Ok(imported) = dovecot(text, &facts) else { return };
    let errors = match conf::load(&imported.toml, Path::new("/etc/postern/postern.toml")) {
        Ok(_) => return,
        Err(errors) => errors,
    };
    for problem in errors.problems() {
        assert!(!problem.title.contains("not valid TOML"), "{}: {}", problem.title, imported.toml);
    }
});
