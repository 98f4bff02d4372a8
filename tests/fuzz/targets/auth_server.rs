//! Any bytes, in any pieces, to a login socket's session: at most one answer per id, bounded output, no panic.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_wire::server::{Config, Identity, Reply, Session, Step};
use auth_wire::{Cookie, FailCode, Kind, Mechanism};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let kind = if first & 1 == 0 { Kind::Client } else { Kind::Login };
    let mechanisms = ["PLAIN", "LOGIN", "SCRAM-SHA-256"].iter().filter_map(|m| Mechanism::known(m)).collect();
    let Ok(config) = Config::new(kind, 2, mechanisms) else { return };
    let identity = Identity { spid: 7, cuid: 1, cookie: Cookie::from_bytes([3; 16]) };
    let mut now = Instant::now();
    let mut session = Session::new(Arc::new(config), &identity);
    let greeting = session.output().len();
    assert!(greeting <= 1024);
    session.wrote(greeting);
    let size = usize::from(first >> 1).max(1);
    for (turn, piece) in data.chunks(size).enumerate() {
        session.feed(piece);
        now += Duration::from_millis(300);
        while let Some(step) = session.next(now) {
            let ticket = match step {
                Step::Start(request) => request.ticket,
                Step::Continue { ticket, .. } => ticket,
                Step::Close(_) => return,
                _ => continue,
            };
            let reply = match turn % 4 {
                0 => Reply::Challenge { data: b"more", channel_binding: None },
                1 => Reply::Ok { user: "a@b", fields: &[], final_data: None },
                2 => Reply::Fail { user: Some("a\tb"), code: Some(FailCode::TempFail), reason: Some("x\ny"), fields: &[] },
                _ => continue,
            };
            session.reply(ticket, reply, now);
        }
        let output = session.output();
        assert!(!output.contains(&b'\r'));
        let length = output.len();
        session.wrote(length);
    }
});
