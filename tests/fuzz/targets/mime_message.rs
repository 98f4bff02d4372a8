//! Any bytes as a message: the tree stays inside, sections stay inside, nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mime::{Body, Limits, Part, Selector};

fn check(part: &Part, len: usize) {
    assert!(part.header.end <= len && part.body.end <= len && part.body.start <= part.body.end);
    assert!(part.body_size.octets >= part.body.len() as u64);
    match &part.content {
        Body::Leaf => {}
        Body::Message(inner) => check(inner, len),
        Body::Multipart(children) => children.iter().for_each(|c| check(c, len)),
    }
}

fuzz_target!(|data: &[u8]| {
    let message = mime::parse_with(data, Limits { depth: 8, parts: 64 });
    check(&message.root, data.len());
    let _ = mime::envelope(data);
    for path in [&[][..], &[1], &[1, 1], &[2, 1]] {
        for selector in [Selector::All, Selector::Header, Selector::Text, Selector::Mime] {
            if let Some((range, size)) = message.section(path, selector) {
                assert!(range.end <= data.len() && size.octets >= range.len() as u64);
            }
        }
    }
});
