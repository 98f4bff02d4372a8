//! What the SMTP front counts.
//!
//! Trust: nobody sends it bytes; what is counted are decisions of the front.
//! Never: hold anything a client sent, such as a name or an address.

use std::sync::atomic::{AtomicU64, Ordering};

use boot::figures::Sample;

/// Counters of all connections.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    delivered: AtomicU64,
    refused: AtomicU64,
    deferred: AtomicU64,
    /// Copies put into mailboxes.
    deliveries: AtomicU64,
    recipients_refused: AtomicU64,
}

impl Figures {
    /// The end of a message's data: the code of the answer, and how many mailboxes have it.
    pub(crate) fn message(&self, code: u16, mailboxes: usize) {
        let count = match code {
            ..400 => &self.delivered,
            400..500 => &self.deferred,
            500.. => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.deliveries.fetch_add(mailboxes as u64, Ordering::Relaxed);
    }

    /// A recipient was refused.
    pub(crate) fn recipient_refused(&self) {
        self.recipients_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The series.
    pub(crate) fn samples(&self, to: &mut Vec<Sample>) {
        let results =
            [("delivered", &self.delivered), ("refused", &self.refused), ("deferred", &self.deferred)];
        for (result, count) in results {
            let value = count.load(Ordering::Relaxed);
            to.push(Sample::new("postern_smtp_messages_total", &[result], value));
        }
        for (name, count) in [
            ("postern_smtp_deliveries_total", &self.deliveries),
            ("postern_smtp_recipients_refused_total", &self.recipients_refused),
        ] {
            to.push(Sample::new(name, &[], count.load(Ordering::Relaxed)));
        }
    }
}
