//! Any text as `postern.toml`: errors or settings, and what is accepted prints to something accepted.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(settings) = conf::load(text, Path::new("/etc/postern/postern.toml")) {
        let printed = settings.to_toml();
        let again = conf::load(&printed, Path::new("/etc/postern/postern.toml"));
        assert!(again.is_ok(), "printed settings are refused: {printed}");
    }
});
