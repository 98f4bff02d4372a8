//! saslauthd requests in any pieces: bounded, and what is parsed prints back to what was read.
#![no_main]

use auth_wire::mux::Parser;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let mut parser = Parser::new();
    for piece in data.chunks(usize::from(first).max(1)) {
        match parser.feed(piece) {
            Err(_) => return,
            Ok(false) => continue,
            Ok(true) => {}
        }
        if let Ok(Some(request)) = parser.take() {
            let _ = (request.refusal(), request.joined_login());
            let printed = request.encode().expect("what was read fits");
            let mut again = Parser::new();
            assert!(matches!(again.feed(&printed), Ok(true)));
        }
        return;
    }
});
