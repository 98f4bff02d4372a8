//! The tree against hand-made cases, against mail-parser's offsets, and against noise.

use mime::{Body, Limits, Part, parse, parse_with};
use proptest::prelude::*;

fn shape(part: &Part) -> String {
    let kind = format!(
        "{}/{}",
        String::from_utf8_lossy(&part.content_type.kind),
        String::from_utf8_lossy(&part.content_type.subtype)
    );
    match &part.content {
        Body::Leaf => format!("{kind}:{}", part.body_size.octets),
        Body::Message(inner) => format!("{kind}({})", shape(inner)),
        Body::Multipart(children) => {
            format!("{kind}[{}]", children.iter().map(shape).collect::<Vec<_>>().join(" "))
        }
    }
}

#[test]
fn shapes() {
    for (message, want) in [
        ("", "text/plain:0"),
        ("A: b", "text/plain:0"),
        ("A: b\n\nhello\n", "text/plain:7"),
        ("\nhello", "text/plain:5"),
        ("Content-Type: image/png\n\nx", "image/png:1"),
        ("Content-Type: multipart/mixed\n\nno boundary\n", "multipart/mixed[text/plain:0]"),
        ("Content-Type: multipart/mixed; boundary=b\n\nno part\n", "multipart/mixed[text/plain:0]"),
        ("Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n", "multipart/mixed[text/plain:1]"),
        ("Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n", "multipart/mixed[text/plain:3]"),
        (
            "Content-Type: multipart/mixed; boundary=b\n\n--b\n--b\nX: y\n--b--",
            "multipart/mixed[text/plain:0 text/plain:0]",
        ),
        (
            "Content-Type: multipart/digest; boundary=b\n\n--b\n\nA: b\n\nhi\n--b--\n",
            "multipart/digest[message/rfc822(text/plain:2)]",
        ),
        (
            "Content-Type: multipart/a; boundary=x\n\n--x\nContent-Type: multipart/b; boundary=xy\n\n--xy\n\n1\n--xy\n\n2\n--xy--\n--x\n\n3\n--x--\n",
            "multipart/a[multipart/b[text/plain:1 text/plain:1] text/plain:1]",
        ),
        (
            "Content-Type: multipart/a; boundary=x\n\n--x\nContent-Type: multipart/b; boundary=y\n\n--y\n\n1\n--x\n\n3\n--x--\n",
            "multipart/a[multipart/b[text/plain:1] text/plain:1]",
        ),
    ] {
        assert_eq!(shape(&parse(message.as_bytes()).root), want, "{message:?}");
    }
}

#[test]
fn depth_and_part_caps_hold() {
    let mut bomb = Vec::new();
    for i in 0..5_000 {
        bomb.extend(format!("Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n").into_bytes());
    }
    let message = parse(&bomb);
    let mut depth = 0;
    let mut part = &message.root;
    while let Body::Multipart(children) = &part.content {
        depth += 1;
        part = &children[0];
    }
    assert_eq!(depth, Limits::default().depth);

    let many = format!("Content-Type: multipart/mixed; boundary=b\n\n{}", "--b\n\n".repeat(50_000));
    let Body::Multipart(children) = parse(many.as_bytes()).root.content else { panic!("multipart") };
    assert!(children.len() < Limits::default().parts);
}

#[test]
fn offsets_agree_with_mail_parser() {
    let raw: &[u8] = b"From: a@b\r\nContent-Type: multipart/mixed; boundary=\"q\"\r\n\r\npre\r\n--q\r\n\r\none\r\ntwo\r\n--q\r\nContent-Type: text/html\r\n\r\n<p>\r\n--q--\r\n";
    let ours = parse(raw);
    let theirs = mail_parser::MessageParser::default().parse(raw).expect("parses");
    let Body::Multipart(children) = &ours.root.content else { panic!("multipart") };
    for (mine, other) in children.iter().zip(theirs.parts.iter().skip(1)) {
        assert_eq!(mine.header.end, other.offset_body as usize);
        assert_eq!(mine.body.end, other.offset_end as usize);
    }
}

fn check(part: &Part, len: usize) {
    assert!(part.header.start <= part.header.end && part.header.end <= part.body.start);
    assert!(part.body.start <= part.body.end);
    // An empty part between two delimiters may stand on the line end that belongs to the second one.
    assert!(part.body.is_empty() || part.body.end <= len);
    assert!(part.body_size.octets >= part.body.len() as u64);
    match &part.content {
        Body::Leaf => {}
        Body::Message(inner) => check(inner, part.body.end),
        Body::Multipart(children) => {
            assert!(!children.is_empty());
            children.iter().for_each(|c| check(c, part.body.end));
        }
    }
}

proptest! {
    #[test]
    fn noise_never_panics_and_stays_inside(bytes in proptest::collection::vec(
        prop_oneof![
            Just(b"--b\n".to_vec()), Just(b"--b--\r\n".to_vec()), Just(b"--c".to_vec()), Just(b"\n".to_vec()), Just(b"\r\n".to_vec()),
            Just(b"Content-Type: multipart/mixed; boundary=b\n".to_vec()),
            Just(b"Content-Type: multipart/x; boundary=\"c\"\r\n".to_vec()),
            Just(b"Content-Type: message/rfc822\n".to_vec()), Just(b"A: (\"<@".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..8),
        ], 0..40), depth in 0usize..5, parts in 1usize..8) {
        let raw = bytes.concat();
        let message = parse_with(&raw, Limits { depth, parts });
        check(&message.root, raw.len());
        let _ = mime::envelope(&raw);
        let _ = message.section(&[1, 1], mime::Selector::All);
    }
}
