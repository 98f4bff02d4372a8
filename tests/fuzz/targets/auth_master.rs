//! Any bytes, in any pieces, to master, userdb and session sockets.
#![no_main]

use std::sync::Arc;

use auth_wire::master::{Access, Config, Session, Step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let access = [Access::Master, Access::Userdb, Access::Session][usize::from(first % 3)];
    let mut session = Session::new(Arc::new(Config::new(access, 7)));
    for piece in data.chunks(usize::from(first >> 2).max(1)) {
        session.feed(piece);
        while let Some(step) = session.next() {
            match step {
                Step::User(lookup) => drop(session.user(lookup.ticket, "a@b", &[])),
                Step::Pass(lookup) => drop(session.not_found(lookup.ticket)),
                Step::Request(request) => drop(session.fail(request.ticket, Some("no\tway"))),
                Step::CacheFlush { ticket, .. } => drop(session.flushed(ticket, 3)),
                Step::Close(_) => return,
                _ => {}
            }
        }
        let length = session.output().len();
        session.wrote(length);
    }
});
