//! What `tests/fuzz` drives of this crate's inside: the frames of daemons and admin commands, and the log.
//!
//! Trust: nobody; the bytes are the fuzzer's.
//! Never: part of a build without the feature `fuzzing`.

pub use crate::logging::fuzzing::event;

use crate::admin::{Request, Response};
use crate::channel::{Decoder, Descriptors, FromChild, ToChild};

/// What arrives on an internal channel, in pieces of this size: frames, or an end; and each body as everything it can be.
pub fn frames(bytes: &[u8], size: usize) {
    let mut decoder = Decoder::new(Descriptors::Refused);
    let mut taken = 0;
    for piece in bytes.chunks(size.max(1)) {
        decoder.feed(piece);
        loop {
            let frame = match decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                // The channel is given up.
                Err(_) => return,
            };
            taken += 8 + frame.body.len();
            assert!(taken <= bytes.len() && frame.fds.is_empty());
            drop((frame.parse::<FromChild>(), frame.parse::<ToChild>()));
            drop((frame.parse::<Request>(), frame.parse::<Response>()));
        }
    }
}
