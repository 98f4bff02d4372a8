//! Tables of commands.

use super::*;
use crate::command::*;
use crate::name::{ListPattern, MailboxName};
use crate::seq::SeqSet;

fn ok(text: &str) -> Command {
    let (tag, command) = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    assert_eq!(tag.as_str(), "a1");
    command
}

fn error_at(text: &str) -> usize {
    parse(text.as_bytes()).expect_err(text).error.at
}

fn name(text: &str) -> MailboxName {
    MailboxName::from_decoded(text).unwrap()
}

fn set(text: &str) -> SeqSet {
    SeqSet::parse(text.as_bytes()).unwrap()
}

fn section(path: &[u32], text: SectionText, partial: Option<(u32, u32)>, peek: bool) -> FetchItem {
    FetchItem::Section {
        section: Section { path: path.to_vec(), text },
        partial: partial.map(|(offset, count)| Partial { offset, count }),
        peek,
        style: SectionStyle::Body,
    }
}

#[test]
fn plain_commands() {
    for (text, want) in [
        ("a1 CAPABILITY", Command::Capability),
        ("a1 noop", Command::Noop),
        ("a1 NOOP ", Command::Noop),
        ("a1 Logout", Command::Logout),
        ("a1 STARTTLS", Command::StartTls),
        ("a1 IDLE", Command::Idle),
        ("a1 CLOSE", Command::Close),
        ("a1 UNSELECT", Command::Unselect),
        ("a1 CHECK", Command::Check),
        ("a1 EXPUNGE", Command::Expunge(None)),
        ("a1 UID EXPUNGE 1:3", Command::Expunge(Some(set("1:3")))),
        ("a1 NAMESPACE", Command::Namespace),
        ("a1 ENABLE condstore X", Command::Enable(vec!["CONDSTORE".into(), "X".into()])),
        ("a1 SELECT inbox", Command::Select { mailbox: name("INBOX"), examine: false }),
        ("a1 EXAMINE \"a b\"", Command::Select { mailbox: name("a b"), examine: true }),
        ("a1 SELECT {3}\r\nfoo", Command::Select { mailbox: name("foo"), examine: false }),
        ("a1 CREATE {3+}\r\nf]o", Command::Create(name("f]o"))),
        ("a1 CREATE lists.", Command::Create(name("lists."))),
        ("a1 DELETE Entw&APw-rfe", Command::Delete(name("Entwürfe"))),
        ("a1 RENAME a b", Command::Rename { from: name("a"), to: name("b") }),
        ("a1 SUBSCRIBE NIL", Command::Subscribe(name("NIL"))),
        ("a1 UNSUBSCRIBE x", Command::Unsubscribe(name("x"))),
        (
            "a1 LOGIN {4+}\r\nuser \"pa\\\"ss\\\\\"",
            Command::Login { user: b"user".to_vec(), password: Secret::new(b"pa\"ss\\".to_vec()) },
        ),
        ("a1 LOGIN u \"\"", Command::Login { user: b"u".to_vec(), password: Secret::default() }),
        ("a1 AUTHENTICATE plain", Command::Authenticate { mechanism: "PLAIN".into(), initial: None }),
        (
            "a1 AUTHENTICATE PLAIN =",
            Command::Authenticate { mechanism: "PLAIN".into(), initial: Some(Secret::default()) },
        ),
        (
            "a1 AUTHENTICATE PLAIN AGEAYg==",
            Command::Authenticate {
                mechanism: "PLAIN".into(),
                initial: Some(Secret::new(b"\0a\0b".to_vec())),
            },
        ),
        ("a1 ID NIL", Command::Id(vec![])),
        ("a1 ID ()", Command::Id(vec![])),
        (
            "a1 ID (\"name\" \"x\" \"version\" NIL)",
            Command::Id(vec![(b"name".to_vec(), Some(b"x".to_vec())), (b"version".to_vec(), None)]),
        ),
        (
            "a1 STATUS inbox (MESSAGES UNSEEN SIZE appendlimit)",
            Command::Status {
                mailbox: name("INBOX"),
                items: vec![
                    StatusItem::Messages,
                    StatusItem::Unseen,
                    StatusItem::Size,
                    StatusItem::AppendLimit,
                ],
            },
        ),
        ("a1 COPY 2:4 Sent", Command::Copy { uid: false, remove: false, set: set("2:4"), to: name("Sent") }),
        ("a1 UID MOVE 7 Trash", Command::Copy { uid: true, remove: true, set: set("7"), to: name("Trash") }),
    ] {
        assert_eq!(ok(text), want, "{text}");
    }
}

#[test]
fn listing() {
    let p = |s: &str| ListPattern::from_wire(s.as_bytes());
    let plain = |reference: &str, pattern: &str| ListCommand {
        select: ListSelect::default(),
        reference: p(reference),
        patterns: vec![p(pattern)],
        give: ListReturn::default(),
        extended: false,
    };
    for (text, want) in [
        ("a1 LIST \"\" *", plain("", "*")),
        ("a1 LIST \"\" \"\"", plain("", "")),
        ("a1 LIST a. %.b", plain("a.", "%.b")),
        (
            "a1 LIST (SUBSCRIBED RECURSIVEMATCH) \"\" (\"INBOX\" Sent.%) RETURN (CHILDREN STATUS (MESSAGES UNSEEN) SPECIAL-USE)",
            ListCommand {
                select: ListSelect { subscribed: true, recursive_match: true, ..ListSelect::default() },
                reference: p(""),
                patterns: vec![p("INBOX"), p("Sent.%")],
                give: ListReturn {
                    children: true,
                    special_use: true,
                    status: Some(vec![StatusItem::Messages, StatusItem::Unseen]),
                    ..ListReturn::default()
                },
                extended: true,
            },
        ),
        ("a1 LIST () \"\" % RETURN ()", ListCommand { extended: true, ..plain("", "%") }),
    ] {
        assert_eq!(ok(text), Command::List(want), "{text}");
    }
    assert_eq!(ok("a1 LSUB \"\" *"), Command::Lsub { reference: p(""), pattern: p("*") });
    for (text, at) in [
        ("a1 LIST (RECURSIVEMATCH) \"\" *", 9),
        ("a1 LIST (FOO) \"\" *", 9),
        ("a1 LIST \"\"", 10),
        ("a1 LIST \"\" * RETURN", 19),
        ("a1 LIST \"\" * BACK ()", 13),
        ("a1 LIST \"\" ()", 12),
    ] {
        assert_eq!(error_at(text), at, "{text}");
    }
}

#[test]
fn fetching() {
    use FetchItem as F;
    for (text, uid, items) in [
        ("a1 FETCH 1 ALL", false, vec![F::Flags, F::InternalDate, F::Size, F::Envelope]),
        ("a1 FETCH 1 fast", false, vec![F::Flags, F::InternalDate, F::Size]),
        ("a1 FETCH 1 FULL", false, vec![F::Flags, F::InternalDate, F::Size, F::Envelope, F::Body]),
        ("a1 UID FETCH 1 FLAGS", true, vec![F::Uid, F::Flags]),
        ("a1 UID FETCH 1 (FLAGS UID)", true, vec![F::Flags, F::Uid]),
        ("a1 FETCH 1 (BODY BODYSTRUCTURE)", false, vec![F::Body, F::BodyStructure]),
        ("a1 FETCH 1 BODY[]", false, vec![section(&[], SectionText::Whole, None, false)]),
        (
            "a1 FETCH 1 BODY.PEEK[1.2]<0.2048>",
            false,
            vec![section(&[1, 2], SectionText::Whole, Some((0, 2048)), true)],
        ),
        ("a1 FETCH 1 BODY[1.MIME]", false, vec![section(&[1], SectionText::Mime, None, false)]),
        ("a1 FETCH 1 body[header]", false, vec![section(&[], SectionText::Header, None, false)]),
        (
            "a1 FETCH 1 (UID BODY.PEEK[HEADER.FIELDS (From \"To\")] BODY[2.TEXT])",
            false,
            vec![
                F::Uid,
                section(&[], SectionText::HeaderFields(vec![b"From".to_vec(), b"To".to_vec()]), None, true),
                section(&[2], SectionText::Text, None, false),
            ],
        ),
        (
            "a1 FETCH 1 BODY[3.HEADER.FIELDS.NOT (X)]",
            false,
            vec![section(&[3], SectionText::HeaderFieldsNot(vec![b"X".to_vec()]), None, false)],
        ),
        (
            "a1 FETCH 1 RFC822.HEADER",
            false,
            vec![F::Section {
                section: Section { path: vec![], text: SectionText::Header },
                partial: None,
                peek: true,
                style: SectionStyle::Rfc822Header,
            }],
        ),
    ] {
        assert_eq!(ok(text), Command::Fetch { uid, set: set("1"), items }, "{text}");
    }
    for (text, at) in [
        ("a1 FETCH 0 FLAGS", 9),
        ("a1 FETCH 1 (ALL)", 12),
        ("a1 FETCH 1 BODY[MIME]", 16),
        ("a1 FETCH 1 BODY[0]", 16),
        ("a1 FETCH 1 BODY[]<0.0>", 20),
        ("a1 FETCH 1 BODY[]<0>", 19),
        ("a1 FETCH 1 BINARY[1]", 11),
        ("a1 FETCH 1 ()", 12),
        ("a1 FETCH 1 FLAGS x", 17),
        ("a1 FETCH", 8),
        ("a1 FETCH 1 BODY[1.]", 18),
        ("a1 FETCH 4294967296 FLAGS", 9),
    ] {
        assert_eq!(error_at(text), at, "{text}");
    }
}

#[test]
fn storing() {
    let seen = Flag::System(SystemFlag::Seen);
    for (text, mode, silent, flags) in [
        ("a1 STORE 1 FLAGS (\\Seen)", StoreMode::Replace, false, vec![seen.clone()]),
        (
            "a1 STORE 1 +FLAGS.SILENT \\seen $Junk",
            StoreMode::Add,
            true,
            vec![seen, Flag::Keyword("$Junk".into())],
        ),
        ("a1 STORE 1 -flags ()", StoreMode::Remove, false, vec![]),
    ] {
        let want = StoreCommand { uid: false, set: set("1"), mode, silent, flags };
        assert_eq!(ok(text), Command::Store(want), "{text}");
    }
    assert_eq!(parse(b"a1 STORE 1 FLAGS (\\Recent)").unwrap_err().error.problem, Problem::Recent);
    for (text, at) in
        [("a1 STORE 1 FLAGS (\\Foo)", 18), ("a1 STORE 1 FLAG (\\Seen)", 11), ("a1 STORE 1 FLAGS \\", 17)]
    {
        assert_eq!(error_at(text), at, "{text}");
    }
}

#[test]
fn appending() {
    let head = |text: &str| parse_append_head(text.as_bytes());
    let whole = head("a1 APPEND Sent (\\Seen $x) \" 1-Jan-2020 10:00:00 +0100\" {310+}").unwrap().unwrap();
    assert_eq!(whole.mailbox, name("Sent"));
    assert_eq!(whole.flags, [Flag::System(SystemFlag::Seen), Flag::Keyword("$x".into())]);
    assert_eq!((whole.size, whole.non_sync), (310, true));
    assert_eq!(whole.date.map(|d| d.unix), Some(1_577_869_200));
    assert_eq!(head("a1 APPEND {5}").unwrap(), None);
    assert_eq!(head("a1 APPEND {3}\r\nabc {7}").unwrap().unwrap().mailbox, name("abc"));
    assert_eq!(head("a1 append INBOX {1}").unwrap().unwrap().size, 1);
    for (text, at) in [
        ("a1 APPEND INBOX (\\Foo) {1}", 17),
        ("a1 APPEND INBOX \"32-Jan-2020 10:00:00 +0000\" {1}", 16),
        ("a1 APPEND INBOX () () {1}", 19),
        ("a1 APPEND INBOX ~{1}", 16),
        ("a1 APPEND bad& {1}", 10),
    ] {
        assert_eq!(head(text).expect_err(text).error.at, at, "{text}");
    }
    assert_eq!(
        parse(b"a1 APPEND INBOX x").unwrap_err().error.problem,
        Problem::Expected("a message literal")
    );
}

fn shape(expr: &SearchExpr) -> String {
    expr.nodes()
        .map(|node| match node {
            SearchNode::And => "and".to_owned(),
            SearchNode::Or => "or".to_owned(),
            SearchNode::Not => "not".to_owned(),
            SearchNode::Key(key) => format!("{key:?}"),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn search_of(text: &str) -> SearchCommand {
    match ok(text) {
        Command::Search(search) => search,
        other => panic!("{other:?}"),
    }
}

#[test]
fn searching() {
    for (text, want) in [
        ("a1 SEARCH ALL", "and All"),
        ("a1 SEARCH UNSEEN", "and not Flag(Seen)"),
        ("a1 SEARCH OR SEEN NOT DELETED", "and or Flag(Seen) not Flag(Deleted)"),
        ("a1 SEARCH (OR SEEN (DRAFT NEW)) OLD", "and and or Flag(Seen) and Flag(Draft) New not Recent"),
        ("a1 SEARCH NOT NOT (SEEN)", "and not not and Flag(Seen)"),
        (
            "a1 SEARCH LARGER 5 SMALLER 9 KEYWORD $x UNKEYWORD y",
            "and Larger(5) Smaller(9) Keyword(\"$x\") not Keyword(\"y\")",
        ),
        ("a1 SEARCH YOUNGER 60", "and Younger(60)"),
    ] {
        assert_eq!(shape(&search_of(text).expr), want, "{text}");
    }
    let search = search_of(
        "a1 UID SEARCH RETURN (MIN COUNT) CHARSET utf-8 1:* SUBJECT {4}\r\n\u{fc}x\" SINCE 1-Feb-2024",
    );
    assert_eq!(search.charset.as_deref(), Some("UTF-8"));
    assert_eq!(search.give, Some(SearchReturn { min: true, count: true, ..SearchReturn::default() }));
    assert!(search.uid);
    assert_eq!(search.expr.keys().count(), 3);
    assert!(search_of("a1 SEARCH RETURN () ALL").give.unwrap().all);
    assert_eq!(parse(b"a1 SEARCH CHARSET koi8-r ALL").unwrap_err().error.problem, Problem::Charset);
    for (text, at) in [
        ("a1 SEARCH", 9),
        ("a1 SEARCH FOO", 10),
        ("a1 SEARCH (SEEN", 15),
        ("a1 SEARCH SEEN)", 14),
        ("a1 SEARCH OR SEEN", 17),
        ("a1 SEARCH NOT", 13),
        ("a1 SEARCH ()", 11),
        ("a1 SEARCH SINCE 30-Feb-2020", 16),
        ("a1 SEARCH 0", 10),
        ("a1 SEARCH RETURN (SAVE) ALL", 18),
        ("a1 SEARCH SUBJECT", 17),
    ] {
        assert_eq!(error_at(text), at, "{text}");
    }
}

#[test]
fn search_values() {
    let value = |text: &str, truths: &[SystemFlag]| {
        search_of(text)
            .expr
            .matches(|key| {
                Ok::<bool, ()>(match key {
                    SearchKey::Flag(flag) => truths.contains(flag),
                    SearchKey::All => true,
                    _ => false,
                })
            })
            .unwrap()
    };
    use SystemFlag::{Deleted, Draft, Seen};
    for (text, truths, want) in [
        ("a1 SEARCH SEEN DELETED", &[Seen][..], false),
        ("a1 SEARCH SEEN DELETED", &[Seen, Deleted], true),
        ("a1 SEARCH OR SEEN DELETED DRAFT", &[Deleted], false),
        ("a1 SEARCH OR SEEN DELETED DRAFT", &[Deleted, Draft], true),
        ("a1 SEARCH OR SEEN OR DELETED DRAFT", &[Draft], true),
        ("a1 SEARCH NOT (SEEN DELETED)", &[Seen], true),
        ("a1 SEARCH OR (SEEN NOT DRAFT) NOT ALL", &[Seen, Draft], false),
        ("a1 SEARCH UNSEEN", &[], true),
    ] {
        assert_eq!(value(text, truths), want, "{text} {truths:?}");
    }
}

#[test]
fn deep_searches_are_read_up_to_the_cap() {
    let chain = |n: usize| format!("a1 SEARCH {}SEEN", "OR SEEN ".repeat(n));
    let groups = |n: usize| format!("a1 SEARCH {}SEEN{}", "(".repeat(n), ")".repeat(n));
    let nots = |n: usize| format!("a1 SEARCH {}SEEN", "NOT ".repeat(n));
    for n in [100, 900] {
        for text in [chain(n), groups(n), nots(n)] {
            let search = search_of(&text);
            assert!(search.expr.matches(|_| Ok::<bool, ()>(true)).is_ok());
        }
    }
    assert!(search_of(&nots(101)).expr.matches(|_| Ok::<bool, ()>(false)).unwrap());
    for text in [chain(5000), groups(5000), nots(5000)] {
        assert_eq!(parse(text.as_bytes()).unwrap_err().error.problem, Problem::TooDeep);
    }
}

#[test]
fn errors_carry_tag_and_place() {
    let e = parse(b"a1 FROB x").unwrap_err();
    assert_eq!(e.tag, Tag::new(b"a1"));
    assert_eq!(e.error.to_string(), "Unknown command (at position 4)");
    for text in ["", " NOOP", "+a NOOP", "a(b NOOP", "\"a\" NOOP", "* NOOP"] {
        assert_eq!(parse(text.as_bytes()).unwrap_err().tag, None, "{text}");
    }
    for (text, at) in [
        ("a1", 2),
        ("a1 ", 3),
        ("a1  NOOP", 3),
        ("a1 NOOP x", 8),
        ("a1 LOGIN u", 10),
        ("a1 LOGIN \"u p", 13),
        ("a1 LOGIN \"a\\b\" p", 12),
        ("a1 LOGIN {3}\r\na\0b p", 15),
        ("a1 LOGIN {9}\r\nab", 14),
        ("a1 UID NOOP", 7),
        ("a1 AUTHENTICATE PLAIN a", 22),
        ("a1 STATUS INBOX ()", 17),
        ("a1 STATUS INBOX (FOO)", 17),
        ("a1 SELECT a\rb", 11),
        ("a1 ID (\"a\")", 10),
    ] {
        assert_eq!(error_at(text), at, "{text}");
    }
    // A name that cannot be is reported only when all else is right.
    assert_eq!(
        parse(b"a1 SELECT x&").unwrap_err().error.problem,
        Problem::Mailbox(crate::name::BadName::Encoding)
    );
    assert_eq!(parse(b"a1 SELECT x& y").unwrap_err().error.problem, Problem::Trailing);
}

/// The comparison parser agrees on the commands both know.
#[test]
fn agrees_with_another_parser() {
    use imap_codec::CommandCodec;
    use imap_codec::decode::Decoder;
    for text in [
        "a1 NOOP",
        "a1 LOGIN alice \"pass word\"",
        "a1 AUTHENTICATE PLAIN AGEAYg==",
        "a1 SELECT INBOX",
        "a1 EXAMINE \"x y\"",
        "a1 LIST \"\" %",
        "a1 LSUB \"\" \"*\"",
        "a1 STATUS inbox (MESSAGES UIDNEXT UIDVALIDITY UNSEEN RECENT)",
        "a1 FETCH 1:*,7 (FLAGS UID BODY.PEEK[HEADER.FIELDS (DATE FROM)]<0.100>)",
        "a1 UID FETCH 1:4 BODYSTRUCTURE",
        "a1 STORE 1 +FLAGS.SILENT (\\Seen \\Deleted x)",
        "a1 SEARCH OR FROM a NOT (SUBJECT \"b c\" SINCE 1-Feb-1994) UNSEEN",
        "a1 SEARCH CHARSET UTF-8 TEXT abc",
        "a1 COPY 2:4 MEETING",
        "a1 UID MOVE 1 x",
        "a1 UID EXPUNGE 1:9",
        "a1 ENABLE CONDSTORE",
        "a1 UNSELECT",
        "a1 RENAME a b",
        // Both refuse these.
        "a1 FETCH 0 FLAGS",
        "a1 SEARCH",
        "a1 STORE 1 FLAGS (\\Seen",
        "a1 LOGIN a",
        "a1 SELECT",
        "a1 FETCH 1 BODY[MIME]",
        "a1 LIST \"\"",
        "a1 SEARCH SINCE 1-Foo-1994",
        "a1 COPY x y",
    ] {
        let theirs = CommandCodec::default().decode(format!("{text}\r\n").as_bytes()).is_ok();
        assert_eq!(parse(text.as_bytes()).is_ok(), theirs, "{text}");
    }
}

mod hostile {
    use proptest::prelude::*;

    use crate::command::*;

    fn path() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(1u32..99, 0..5)
    }

    fn text() -> impl Strategy<Value = SectionText> {
        let names = || proptest::collection::vec(proptest::collection::vec(1u8..=255, 0..8), 1..4);
        prop_oneof![
            Just(SectionText::Whole),
            Just(SectionText::Header),
            Just(SectionText::Text),
            names().prop_map(SectionText::HeaderFields),
            names().prop_map(SectionText::HeaderFieldsNot),
        ]
    }

    proptest! {
        #[test]
        fn printed_sections_read_back(path in path(), text in text()) {
            let section = Section { path, text };
            let mut command = b"a FETCH 1 BODY".to_vec();
            crate::put_section(&mut command, &section);
            let parsed = super::super::parse(&command).unwrap().1;
            let Command::Fetch { items, .. } = parsed else { panic!() };
            let FetchItem::Section { section: got, .. } = items.first().unwrap() else { panic!() };
            prop_assert_eq!(got, &section);
        }

        #[test]
        fn printed_names_read_back(name in "[^\\p{Cc}]{1,40}") {
            let name = crate::MailboxName::from_decoded(&name).unwrap();
            let mut command = b"a SELECT ".to_vec();
            crate::put_astring(&mut command, name.to_wire().as_bytes());
            let parsed = super::super::parse(&command).unwrap().1;
            prop_assert_eq!(parsed, Command::Select { mailbox: name, examine: false });
        }

        #[test]
        fn any_bytes(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = super::super::parse(&raw);
            let _ = super::super::parse_append_head(&raw);
        }

        #[test]
        fn nearly_commands(words in proptest::collection::vec(proptest::sample::select(vec![
            "a1", "UID", "FETCH", "SEARCH", "STORE", "LIST", "1:*", "(", ")", "BODY[", "]", "<0.1>", "{3}\r\n", "\"", "OR",
            "NOT", "SEEN", "RETURN", "*", "%", "\\Seen", "FLAGS", "+", "HEADER.FIELDS", " ", " ", " ", "STATUS", "APPEND", "INBOX",
        ]), 0..40)) {
            let text = words.concat();
            let _ = super::super::parse(text.as_bytes());
            let _ = super::super::parse_append_head(text.as_bytes());
        }
    }
}
