//! A passwd-file of a million lines: found without reading again, at little more than its own size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use creds::passwd::{FileOptions, Freshness, PasswdFile};

#[test]
fn a_million_lines() {
    const LINES: usize = 1_000_000;
    let mut text = String::with_capacity(LINES * 64);
    for number in 0..LINES {
        writeln!(text, "user{number}@example.test:{{PLAIN}}secret{number}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, &text).unwrap();

    let file = PasswdFile::new(&path, FileOptions::default());
    let started = Instant::now();
    let index = file.reload().unwrap();
    let load = started.elapsed();
    assert_eq!(index.report().users, LINES);
    assert!(index.memory() < text.len() + (17 << 20), "{} bytes", index.memory());
    drop(index);

    let started = Instant::now();
    const LOOKUPS: usize = 200_000;
    for number in 0..LOOKUPS {
        let number = number * 7_919 % LINES;
        let index = file.current(started, Freshness::AtMostEvery(Duration::from_millis(50))).unwrap();
        let entry =
            index.lookup_user(format!("user{number}@example.test").as_bytes(), b"example.test").unwrap();
        assert!(entry.password().ends_with(number.to_string().as_bytes()));
    }
    let each = started.elapsed() / u32::try_from(LOOKUPS).unwrap();
    println!("load {load:?}, one look-up {each:?}");
    // A look-up that read the file, or walked it, would take milliseconds.
    assert!(each < Duration::from_micros(200), "{each:?}");
}
