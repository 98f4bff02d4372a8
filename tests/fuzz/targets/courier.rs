//! What a front may send to the broker and to mailbox processes, and what they may answer: read record by record, as
//! they do; what was understood is written and read again without a difference.
#![no_main]

use boot::courier::{Answer, Ask, HEADER, Kind, MAX_DATA, decode, encode, read_blocking};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut stream = data;
    let mut taken = 0;
    while let Ok(Some((kind, body))) = read_blocking(&mut stream) {
        assert!(body.len() <= MAX_DATA);
        taken += HEADER + body.len();
        // Never a byte more than the record: what follows belongs to somebody else.
        assert_eq!(stream.len(), data.len() - taken);
        match kind {
            Kind::Ask => stable::<Ask>(kind, &body),
            Kind::Answer => stable::<Answer>(kind, &body),
            _ => {}
        }
    }
});

fn stable<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(kind: Kind, body: &[u8]) {
    let Ok(understood) = decode::<T>(body) else { return };
    // Escapes may make the written form longer than a record may be.
    let Ok(written) = encode(kind, &understood) else { return };
    let (again, body) = read_blocking(&mut written.as_slice()).expect("a record").expect("one");
    assert_eq!((again, decode::<T>(&body).expect("a body")), (kind, understood));
}
