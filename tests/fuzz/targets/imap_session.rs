//! Any bytes, in any pieces, to an IMAP session whose driver says yes to everything.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use imap::{Completion, Config, Limits, Outcome, Session, Step, TlsState, Transition};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let config = Config {
        hostname: "mail.example.test".into(),
        limits: Limits::default(),
        mechanisms: vec!["PLAIN".into()],
        login_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(1800),
        separator: '/',
    };
    let tls = if first & 1 == 0 { TlsState::Active } else { TlsState::Offered };
    let mut now = Instant::now();
    let mut session = Session::new(Arc::new(config), tls, now);
    for piece in data.chunks(usize::from(first >> 1).max(1)) {
        session.feed(piece, now);
        now += Duration::from_millis(200);
        while let Some(step) = session.next() {
            let outcome = match step {
                Step::Send(bytes) => {
                    assert!(bytes.len() < 1 << 20);
                    continue;
                }
                Step::Authenticate { .. } => Outcome::LoggedIn(None),
                Step::Respond(_) => Outcome::LoggedIn(None),
                Step::StartTls => {
                    session.tls_established(now);
                    continue;
                }
                Step::Run(_, _) => Outcome::Done(Completion::ok("done").then(Transition::Selected)),
                Step::Append(_) => Outcome::AppendAccepted,
                Step::AppendEnd | Step::IdleDone => Outcome::Done(Completion::ok("done")),
                Step::Close => return,
                _ => continue,
            };
            session.resume(outcome, now);
        }
    }
});
