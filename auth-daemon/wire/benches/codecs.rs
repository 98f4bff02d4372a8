//! What the protocol costs: lines in, lines out, without sockets and without checking anything.
//!
//! `cargo bench -p auth-wire`

// A benchmark may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use auth_wire::server::{Config, Identity, Reply, Session, Step};
use auth_wire::{Cookie, Kind, Mechanism, mux};
use divan::Bencher;

fn main() {
    divan::main();
}

/// AUTH lines of 100 logins, and their OK lines.
#[divan::bench]
fn auth_plain_and_ok(bencher: Bencher<'_, '_>) {
    let mechanisms = vec![Mechanism::known("PLAIN").unwrap()];
    let config = Arc::new(Config::new(Kind::Client, 2, mechanisms).unwrap());
    let identity = Identity { spid: 1, cuid: 1, cookie: Cookie::from_bytes([0; 16]) };
    let mut session = Session::new(config, &identity);
    session.feed(b"VERSION\t1\t1\nCPID\t1\n");
    let now = Instant::now();
    while session.next(now).is_some() {}
    session.wrote(session.output().len());
    let lines: String = (1..=100)
        .map(|id| format!("AUTH\t{id}\tPLAIN\tservice=smtp\tsecured\trip=192.0.2.1\tresp=AHVzZXI3QGV4YW1wbGUudGVzdABwdzc=\n"))
        .collect();
    bencher.counter(divan::counter::ItemsCount::new(100_u32)).bench_local(|| {
        session.feed(lines.as_bytes());
        while let Some(step) = session.next(now) {
            if let Step::Start(request) = step {
                let reply = Reply::Ok { user: "user7@example.test", fields: &[], final_data: None };
                session.reply(request.ticket, reply, now);
            }
        }
        session.wrote(session.output().len());
    });
}

/// A request on saslauthd's socket.
#[divan::bench]
fn mux_request(bencher: Bencher<'_, '_>) {
    let mut request = Vec::new();
    for text in ["user7@example.test", "secret", "smtp", ""] {
        request.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        request.extend_from_slice(text.as_bytes());
    }
    bencher.bench_local(|| {
        let mut parser = mux::Parser::new();
        assert!(parser.feed(&request).unwrap());
        parser.take().unwrap()
    });
}
