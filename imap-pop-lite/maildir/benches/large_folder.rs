//! A folder of 100,000 messages: prints how long the usual things take.
//!
//! `cargo bench -p maildir --bench large_folder`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::panic)]

use std::fs;
use std::time::Instant;

use maildir::{FlagChange, FlagOp, Flags, FolderName, Maildir, Mode, Numbers, Options, SetRange, Store};

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("Maildir");
    let maildir = Maildir::open_or_create(&root).unwrap();
    for n in 0..100_000 {
        fs::write(root.join(format!("cur/1795191043.M{n}P9273.mail.example.test,S=17,W=20:2,S")), "")
            .unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let timed = |what: &str, from: Instant| eprintln!("{what:>28}: {:?}", from.elapsed());
    let inbox = FolderName::inbox();
    let all = [SetRange { from: Some(1), to: None }];
    for round in ["without a list", "with a list"] {
        let store = Store::new(Options::default()).unwrap();
        let start = Instant::now();
        let mailbox = store.mailbox(&root, &inbox).unwrap();
        timed(&format!("open {round}"), start);
        let start = Instant::now();
        let mut view = mailbox.view(Mode::ReadWrite).unwrap();
        timed("view", start);
        let start = Instant::now();
        let messages = view.messages(&view.resolve(&all, Numbers::Sequence).unwrap());
        timed(&format!("flags of {}", messages.len()), start);
        let uid = view.uid(50_000).unwrap();
        for op in [FlagOp::Add, FlagOp::Remove] {
            let start = Instant::now();
            view.store(&[uid], &FlagChange { op, flags: Flags::FLAGGED, keywords: Vec::new() }).unwrap();
            timed("store one", start);
        }
        let start = Instant::now();
        let mut delivery = maildir.delivery().unwrap();
        delivery.write(b"x\r\n").unwrap();
        delivery.finish().unwrap().commit().unwrap();
        timed("deliver", start);
        let start = Instant::now();
        view.refresh(true).unwrap();
        timed("notice the delivery", start);
        let start = Instant::now();
        mailbox.open(uid).unwrap();
        timed("open a message", start);
        let start = Instant::now();
        (0..100).for_each(|_| drop(view.refresh(true)));
        timed("100 refreshes", start);
        view.store(&[uid], &FlagChange { op: FlagOp::Add, flags: Flags::DELETED, keywords: Vec::new() })
            .unwrap();
        let start = Instant::now();
        view.expunge(None).unwrap();
        view.refresh(true).unwrap();
        timed("expunge one", start);
    }
}
