//! Any bytes, in any pieces, to a POP3 session over a small maildrop.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use pop3::{Config, Maildrop, Message, Outcome, Session, Step, TlsState, Uidl};

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let tls = if first & 1 == 0 { TlsState::Active } else { TlsState::Offered };
    let mut now = Instant::now();
    let mut session = Session::new(Arc::new(Config::new("mail.example.test")), tls, None, now);
    for piece in data.chunks(usize::from(first >> 1).max(1)) {
        session.feed(piece, now);
        now += Duration::from_millis(200);
        while let Some(step) = session.next() {
            let outcome = match step {
                Step::Authenticate { .. } => Outcome::Challenge(b"x".to_vec()),
                Step::Respond(_) => Outcome::LoggedIn(None),
                Step::StartTls => {
                    session.tls_established(now);
                    continue;
                }
                Step::Open => Outcome::Opened(Maildrop::new(
                    (1..=3).map(|uid| Message { size: 7, uidl: Uidl::from_uid(uid, 9) }).collect(),
                )),
                Step::Retrieve { index, .. } => {
                    assert!(index < 3);
                    session.resume(Outcome::Retrieving, now);
                    session.message(b".a\nb\n");
                    session.message_end(now);
                    continue;
                }
                Step::Update { deleted } => {
                    assert!(deleted.len() <= 3);
                    Outcome::Updated { complete: true }
                }
                Step::Close => return,
                _ => continue,
            };
            session.resume(outcome, now);
        }
    }
});
