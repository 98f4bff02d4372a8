//! The TOML blocks of the manual load, and every driver of the chains has one.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::Path;

use conf::{PassdbDriver, UserdbDriver};

/// The fenced `toml` blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("\n```toml\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn examples_of_logins_load() {
    let (mut passdbs, mut userdbs) = (Vec::new(), Vec::new());
    for block in blocks("auth.md") {
        let text = format!("version = 1\nhostname = \"mail.example.org\"\n{block}\n");
        let settings = conf::load(&text, Path::new("/etc/postern/postern.toml"))
            .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        passdbs.extend(settings.auth.passdb.into_iter().map(|passdb| match passdb.driver {
            PassdbDriver::PasswdFile { .. } => "passwd-file",
            PassdbDriver::Sasldb { .. } => "sasldb",
            PassdbDriver::Static { .. } => "static",
            PassdbDriver::Passwd { .. } => "passwd",
            PassdbDriver::Shadow { .. } => "shadow",
            PassdbDriver::Pam { .. } => "pam",
            PassdbDriver::Imap { .. } => "imap",
        }));
        userdbs.extend(settings.auth.userdb.into_iter().map(|userdb| match userdb.driver {
            UserdbDriver::PasswdFile { .. } => "passwd-file",
            UserdbDriver::Static { .. } => "static",
            UserdbDriver::Passwd => "passwd",
            UserdbDriver::Prefetch => "prefetch",
        }));
    }
    for driver in ["passwd-file", "sasldb", "static", "passwd", "shadow", "pam", "imap"] {
        assert!(passdbs.contains(&driver), "no example of the passdb {driver}");
    }
    for driver in ["passwd-file", "static", "passwd", "prefetch"] {
        assert!(userdbs.contains(&driver), "no example of the userdb {driver}");
    }
}
