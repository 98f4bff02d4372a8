//! Any bytes, in any pieces, to an SMTP, submission or LMTP session whose driver says yes to everything; what comes
//! out as a message has no line end but CRLF.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use smtp::{BareNewline, Config, Kind, Outcome, Session, Step};

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let kind = [Kind::Inbound, Kind::Submission, Kind::Lmtp][usize::from(first % 3)];
    let config = Config {
        hostname: "mail.example.test".into(),
        kind,
        starttls: true,
        max_message_size: 10_000,
        max_recipients: 5,
        max_bad_commands: 20,
        max_auth_failures: 3,
        bare_newline: if first & 1 == 0 { BareNewline::Normalize } else { BareNewline::Reject },
        timeout: Duration::from_secs(300),
    };
    let mut now = Instant::now();
    let mut session = Session::new(Arc::new(config), first & 0x80 != 0, now);
    session.set_mechanisms(["PLAIN".to_owned(), "LOGIN".to_owned()]);
    let mut recipients = 0;
    let mut body = Vec::new();
    for piece in data.chunks(usize::from(first >> 2 & 31).max(1)) {
        session.feed(piece, now);
        now += Duration::from_millis(200);
        while let Some(step) = session.next() {
            let outcome = match step {
                Step::Auth { .. } => Outcome::Challenge(b"more".to_vec()),
                Step::AuthResponse(_) => Outcome::Authenticated { final_data: None },
                Step::Mail(_) | Step::Data => Outcome::Accept,
                Step::Rcpt(_) => {
                    recipients += 1;
                    assert!(recipients <= 5);
                    Outcome::Accept
                }
                Step::Body(bytes) => {
                    body.extend(bytes);
                    assert!(body.len() <= 10_000, "more than the size limit");
                    continue;
                }
                Step::Message => {
                    let count = std::mem::take(&mut recipients);
                    let message = std::mem::take(&mut body);
                    assert!(message.is_empty() || message.ends_with(b"\r\n"));
                    let crs = message.iter().filter(|b| **b == b'\r').count();
                    let lfs = message.iter().filter(|b| **b == b'\n').count();
                    let both = message.windows(2).filter(|pair| pair == b"\r\n").count();
                    assert!(crs == both && lfs == both, "a bare CR or LF");
                    if kind == Kind::Lmtp {
                        Outcome::Each(vec![smtp::Reply::new(250, smtp::Status(2, 0, 0), "ok"); count])
                    } else {
                        Outcome::Accept
                    }
                }
                Step::Reset => {
                    recipients = 0;
                    body.clear();
                    continue;
                }
                Step::StartTls => {
                    session.tls_started(now);
                    continue;
                }
                Step::Close => return,
                _ => continue,
            };
            session.resume(outcome, now);
        }
    }
});
