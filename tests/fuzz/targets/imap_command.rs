//! Any bytes as one IMAP command.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = imap::parse(data);
    let _ = imap::parse_append_head(data);
});
