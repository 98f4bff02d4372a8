//! Names and reasons of strangers in the log: one event stays one line or one entry, with the fields it has.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| boot::fuzzing::event(text));
