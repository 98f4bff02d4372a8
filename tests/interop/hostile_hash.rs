//! Many expensive logins at once, and many guessers of one account: memory stays, others and the owner get in.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::hostile::{
    Client, Tuned, assert_same_processes, auth_line, bounded, log_in, memory, processes, start,
};
use crate::support::{PASSWORD, Stack, USER, show};

/// Memory of one hash as `user add` makes it, in KiB.
const ONE_HASH: u64 = 64 * 1024;

#[test]
fn two_hundred_argon2_logins_stay_within_the_memory_budget() {
    // More threads than the memory is for: only the budget keeps it.
    let tuned = Tuned::start(&[("threads = 0", "threads = 8"), ("memory = \"512M\"", "memory = \"256M\"")]);
    let stack = &tuned.stack;
    add_cheap(stack, "cheap", "pw");
    let before = processes(stack);
    bounded(async {
        let socket = stack.socket("auth-client");
        // The owner's verdict is kept from here on: her next login costs nothing.
        assert!(log_in(&socket, USER, PASSWORD, "rip=192.0.2.1\t").await.starts_with("OK"));
        let idle = memory(before["auth"]);
        let mut many = Client::auth(&socket).await;
        for id in 1..=200 {
            let rip = format!("rip=198.51.{}.{}\t", id % 4, id % 200);
            many.send(auth_line(id, USER, &format!("guess{id}"), &rip)).await;
        }
        let mut open: HashSet<String> = (1..=200).map(|id| id.to_string()).collect();
        let mut peak = 0;
        let end = Instant::now() + Duration::from_secs(40);
        while !open.is_empty() {
            assert!(Instant::now() < end, "{} are not answered", open.len());
            // Cached and cheap ones are answered all the while, long before the queue is empty.
            let started = Instant::now();
            for (user, password) in [("cheap", "pw"), (USER, PASSWORD)] {
                let line = log_in(&socket, user, password, "rip=192.0.2.1\t").await;
                assert!(line.starts_with("OK"), "{user}: {line}");
            }
            assert!(started.elapsed() < Duration::from_secs(4), "waited {:?}", started.elapsed());
            peak = peak.max(memory(before["auth"]));
            let line = many.line().await.expect("an answer to each");
            let mut fields = line.split('\t');
            assert_eq!(fields.next(), Some("FAIL"), "{line}");
            open.remove(fields.next().expect("an id"));
        }
        // The threads would take eight, the budget allows four.
        assert!(peak < idle + 5 * ONE_HASH, "{idle} KiB idle, {peak} KiB at the peak");
        assert!(peak > idle + 2 * ONE_HASH, "no more than two at a time: {idle} KiB idle, {peak} KiB");
        println!("{idle} KiB idle, {peak} KiB at the peak");
    });
    assert_same_processes(stack, &before);
}

#[test]
fn guessers_at_many_addresses_do_not_lock_the_owner_out() {
    let stack = start();
    add_cheap(&stack, "owner", "right");
    bounded(async {
        let socket = stack.socket("auth-client");
        let mut guessers = Client::auth(&socket).await;
        for id in 1..=300 {
            let rip = format!("rip=203.0.{}.{}\t", id / 100, id % 100);
            guessers.send(auth_line(id, "owner", &format!("guess{id}"), &rip)).await;
        }
        // From an address of his own, and from one that has just guessed wrong.
        for rip in ["192.0.2.7", "203.0.1.1"] {
            let started = Instant::now();
            let line = log_in(&socket, "owner", "right", &format!("rip={rip}\t")).await;
            assert!(line.starts_with("OK"), "{rip}: {line}");
            assert!(started.elapsed() < Duration::from_secs(2), "{rip} waited {:?}", started.elapsed());
        }
        let line = guessers.line().await.expect("an answer");
        assert!(line.starts_with("FAIL"), "{line}");
    });
}

/// A user whose password costs nothing to check.
fn add_cheap(stack: &Stack, name: &str, password: &str) {
    let out = stack.admin(&["user", "add", name, "--password-stdin", "--scheme", "PLAIN"], password);
    assert!(out.status.success(), "{}", show(&out));
}
