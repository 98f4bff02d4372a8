//! `make bench` works: a few rows with the shortest windows, both sides real, the page in a scratch folder.
//!
//! Trust: the servers it starts, as every test here.
//! Never: judge a figure; a machine that runs tests is not quiet.

use std::fs;

use clap::Parser as _;

use crate::support::{have, is_root, run, show, skip};

/// Set in the process that measures: where the page goes.
const DOCS: &str = "POSTERN_TEST_BENCH_DOCS";
/// Titles of rows, and who stands in them beside Postern.
const ROWS: [(&str, &str); 5] = [
    ("PLAIN, 16 in flight (4 connections)", "Dovecot"),
    ("PLAIN, 10 connections with 1 in flight each", "Dovecot"),
    ("PLAIN, 100 connections with 1 in flight each", "Dovecot"),
    ("SMTP: connect, TLS, AUTH PLAIN, QUIT", "Postfix and Dovecot"),
    ("saslauthd: shadow, not cached, 4 in flight", "saslauthd"),
];

/// In a process of its own: the bench moves processes between CPUs and raises limits.
fn measure(docs: &str) {
    let mut words = vec!["postern-bench", "--program", env!("CARGO_BIN_EXE_postern"), "--docs", docs];
    words.extend(["--only", "auth,connections,mail,saslauthd", "--rounds", "1", "--windows", "0.1"]);
    words.extend(ROWS.iter().flat_map(|(title, _)| ["--rows", title]));
    postern_bench::run(&postern_bench::Args::parse_from(words)).expect("a run");
}

#[test]
fn the_bench_measures_both_sides_and_writes_its_page() {
    if let Ok(docs) = std::env::var(DOCS) {
        measure(&docs);
        return;
    }
    if !is_root() {
        skip("needs root: the peers switch accounts");
        return;
    }
    if !have(&["dovecot", "doveadm", "postfix", "saslauthd", "openssl", "taskset", "unshare"]) {
        return;
    }
    let scratch = tempfile::tempdir().expect("scratch folder");
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "bench::the_bench_measures_both_sides_and_writes_its_page", "--nocapture"])
        .env(DOCS, scratch.path());
    let out = run(command, "");
    assert!(out.status.success(), "{}", show(&out));

    let page = fs::read_to_string(scratch.path().join("benchmarks.md")).expect("the page");
    let headings: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(
        headings,
        [
            "Machine",
            "Method",
            "Targets",
            "Table",
            "Start and idle memory",
            "How cost grows",
            "Smaller measurements",
            "Settings"
        ]
    );
    assert!(!page.contains("Broke off"), "{page}");
    assert!(page.contains("make bench ARGS='--only auth,"), "the page does not name its command");
    for (title, peer) in ROWS {
        let first = page.lines().position(|line| line.starts_with(&format!("| {title} | Postern |")));
        let first = first.unwrap_or_else(|| panic!("no row {title:?}:\n{page}"));
        let second = page.lines().nth(first + 1).expect("a line");
        assert!(second.starts_with(&format!("|  | {peer} |")), "{second}");
        for line in [page.lines().nth(first).expect("a line"), second] {
            let rate = line.split('|').nth(3).expect("a rate").trim().replace(',', "");
            assert!(rate.parse::<f64>().is_ok_and(|rate| rate > 0.0), "{line}");
        }
    }
    let table = page.split("## Table").nth(1).expect("a table").split("\n## ").next().expect("its end");
    assert!(!table.contains("64 in flight"), "a row that was not asked for:\n{table}");
    for settings in ["# postern run --config FILE", "# dovecot -F -c FILE", "smtpd_sasl_type = dovecot"] {
        assert!(page.contains(settings), "the page does not show {settings:?}");
    }
    for chart in ["rate", "cpu", "memory"] {
        let file = scratch.path().join(format!("benchmarks-connections-{chart}.svg"));
        let text = fs::read_to_string(&file).expect("a chart");
        assert!(text.starts_with("<svg") && text.contains("Postern") && text.contains("Dovecot"), "{text}");
        assert!(page.contains(&format!("(benchmarks-connections-{chart}.svg)")));
    }
}
