//! Any bytes, in any pieces, from a daemon to the supervisor, and on the admin socket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    boot::fuzzing::frames(data, usize::from(first));
});
