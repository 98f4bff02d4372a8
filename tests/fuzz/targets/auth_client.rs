//! A hostile auth server: both client halves take anything.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let mut client = auth_wire::client::Client::new(2, 4711);
    let mut master = auth_wire::master::Client::new();
    let mut mux = auth_wire::mux::ReplyParser::new();
    let _ = mux.feed(data);
    for piece in data.chunks(usize::from(first).max(1)) {
        client.feed(piece);
        master.feed(piece);
        while let Ok(Some(_)) = client.next() {}
        while let Ok(Some(_)) = master.next() {}
    }
});
