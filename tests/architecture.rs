//! The rules that keep the crates apart, checked over `cargo metadata` and the sources.

// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that speak a protocol and do no I/O: they depend on nothing of ours.
const PROTOCOLS: [&str; 7] = ["auth-wire", "sasl", "smtp", "imap", "pop3", "mime", "tls-config"];
/// Crates that keep things on disk: they depend on no protocol.
const STORES: [&str; 3] = ["creds", "maildir", "conf"];
/// Only these may depend on `boot`.
const PROGRAMS: [&str; 4] = ["postern", "auth-daemon", "smtp-frontend", "imap-pop-lite"];
/// The two rooms in which `unsafe` may stand.
const UNSAFE: [&str; 2] = ["boot", "system-auth"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name, folder and normal (not dev, not build) dependencies of each workspace member.
fn members() -> BTreeMap<String, (PathBuf, BTreeSet<String>)> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let text = |v: &serde_json::Value| v.as_str().expect("text").to_owned();
            let folder = PathBuf::from(text(&package["manifest_path"])).parent().expect("folder").to_owned();
            let dependencies = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|d| d["kind"].is_null())
                .map(|d| text(&d["name"]))
                .collect();
            (text(&package["name"]), (folder, dependencies))
        })
        .collect()
}

#[test]
fn dependency_rule() {
    let members = members();
    for (name, (_, dependencies)) in &members {
        let ours: BTreeSet<_> = dependencies.iter().filter(|d| members.contains_key(*d)).collect();
        if PROTOCOLS.contains(&name.as_str()) {
            assert!(ours.is_empty(), "protocol crate {name} depends on {ours:?}");
        }
        if STORES.contains(&name.as_str()) {
            let bad: Vec<_> = ours.iter().filter(|d| PROTOCOLS.contains(&d.as_str())).collect();
            assert!(bad.is_empty(), "store {name} depends on protocols {bad:?}");
        }
        if !PROGRAMS.contains(&name.as_str()) {
            assert!(!dependencies.contains("boot"), "{name} is no program but depends on boot");
        }
    }
    for name in PROTOCOLS.iter().chain(&STORES).chain(&PROGRAMS).chain(&UNSAFE) {
        assert!(members.contains_key(*name), "{name} is in a list here but not in the workspace");
    }
}

#[test]
fn unsafe_stands_in_two_rooms_only() {
    for (name, (folder, _)) in members() {
        let entry = ["src/lib.rs", "src/main.rs"]
            .iter()
            .map(|f| folder.join(f))
            .find(|f| f.exists())
            .expect("entry file");
        let text = fs::read_to_string(entry).expect("source");
        if !UNSAFE.contains(&name.as_str()) {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe");
        }
    }
}

#[test]
fn protocol_crates_do_no_io() {
    let members = members();
    for name in PROTOCOLS.iter().filter(|n| **n != "tls-config") {
        for file in sources(&members[*name].0.join("src")) {
            if file.file_name().is_some_and(|f| f == "tests.rs" || f == "testing.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).expect("source");
            for word in ["std::net::Tcp", "std::fs::", "tokio::", "SystemTime::now", "Instant::now"] {
                let outside_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
                let code = |line: &&str| !line.trim_start().starts_with("//");
                let used = outside_tests.lines().filter(code).any(|line| line.contains(word));
                assert!(!used, "{} uses {word}", file.display());
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (name, (folder, _)) in members() {
        for file in sources(&folder.join("src")) {
            let text = fs::read_to_string(&file).expect("source");
            assert!(text.starts_with("//!"), "{name}: {} has no header", file.display());
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out
}
