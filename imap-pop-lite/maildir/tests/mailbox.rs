//! The shared mailbox: sessions see each other's and other programs' changes in the order IMAP needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::panic)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use maildir::{
    Change, Error, FlagChange, FlagOp, Flags, FolderName, Keyword, Mailbox, Maildir, Mode, Numbers, Options,
    SetRange, Staged, Store, Uid, View,
};

struct Fixture {
    _dir: tempfile::TempDir,
    maildir: Maildir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let maildir = Maildir::open_or_create(&dir.path().join("Maildir")).unwrap();
        Self { _dir: dir, maildir, store: Store::new(Options::default()).unwrap() }
    }

    fn root(&self) -> &Path {
        self.maildir.root()
    }

    fn inbox(&self) -> Arc<Mailbox> {
        self.store.mailbox(self.root(), &FolderName::inbox()).unwrap()
    }

    fn folder(&self, text: &str) -> Arc<Mailbox> {
        self.store.mailbox(self.root(), &name(text)).unwrap()
    }

    fn deliver(&self, text: &str) {
        let mut delivery = self.maildir.delivery().unwrap();
        delivery.write(text.as_bytes()).unwrap();
        delivery.finish().unwrap().commit().unwrap();
    }

    /// Puts a file there as another program would.
    fn put(&self, path: &str) {
        fs::write(self.root().join(path), "Subject: x\n\nbody\n").unwrap();
    }

    fn uidlist(&self) -> String {
        fs::read_to_string(self.root().join("dovecot-uidlist")).unwrap()
    }

    /// Another program, or this one after a restart.
    fn elsewhere(&self) -> Arc<Mailbox> {
        Store::new(Options::default()).unwrap().mailbox(self.root(), &FolderName::inbox()).unwrap()
    }

    fn files(&self, sub: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(sub)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn name(text: &str) -> FolderName {
    FolderName::from_imap(text, '/').unwrap()
}

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn flags(op: FlagOp, flags: Flags, keywords: &[&str]) -> FlagChange {
    let keywords = keywords.iter().map(|k| Keyword::try_from(*k).unwrap()).collect();
    FlagChange { op, flags, keywords }
}

fn stage(mailbox: &Mailbox, text: &str) -> Staged {
    let mut delivery = mailbox.delivery().unwrap();
    delivery.write(text.as_bytes()).unwrap();
    delivery.finish().unwrap()
}

/// UIDs and flags of what a view shows.
fn shown(view: &View) -> Vec<String> {
    let all = view.resolve(&[SetRange { from: Some(1), to: None }], Numbers::Uid).unwrap();
    let names = view.mailbox().keywords();
    let one = |m: &maildir::Message| {
        let keywords: Vec<String> = names.names_of(m.keywords).collect();
        let gone = if m.expunged { "!" } else { "" };
        let recent = if m.recent { "*" } else { "" };
        format!("{}:{gone}{recent}{:?}{}", m.uid, m.flags, keywords.join(","))
    };
    view.messages(&all).iter().map(one).collect()
}

fn told(changes: &[Change]) -> Vec<String> {
    let one = |change: &Change| match change {
        Change::Keywords => "keywords".to_owned(),
        Change::Flags(m) => format!("flags {} {:?}", m.seq, m.flags),
        Change::Expunged { seq, uid } => format!("expunge {seq} ({uid})"),
        Change::Exists(n) => format!("exists {n}"),
        Change::Recent(n) => format!("recent {n}"),
    };
    changes.iter().map(one).collect()
}

#[test]
fn uids_are_given_in_delivery_order_and_kept() {
    let f = Fixture::new();
    for file in ["new/300.M2P1.h", "cur/100.a:2,S", "new/300.M1P1.h", "new/200.b"] {
        f.put(file);
    }
    let validity = f.inbox().uid_validity();
    let view = f.inbox().view(Mode::ReadOnly).unwrap();
    assert_eq!(shown(&view), ["1:*S", "2:*", "3:*", "4:*"]);
    let list = f.uidlist();
    assert!(list.starts_with(&format!("3 V{validity} N5 G")), "{list}");
    assert!(list.ends_with("\n1 :100.a\n2 :200.b\n3 :300.M1P1.h\n4 :300.M2P1.h\n"), "{list}");
    // Another process sees the same, and goes on from there.
    f.put("new/150.late");
    let again = f.elsewhere();
    assert_eq!((again.uid_validity(), again.uid_next()), (validity, 6));
    assert!(f.uidlist().ends_with("5 :150.late\n"));
    assert!(f.uidlist().contains(" N5 "));
    assert_eq!(again.guid(), f.inbox().guid());
}

#[test]
fn read_only_leaves_new_alone_and_read_write_takes_recent() {
    let f = Fixture::new();
    f.put("new/1.a");
    f.put("new/2.b");
    let examine = f.inbox().view(Mode::ReadOnly).unwrap();
    assert_eq!((examine.exists(), examine.recent()), (2, 2));
    assert_eq!(f.inbox().status(false).unwrap().recent, 2);
    assert_eq!(f.files("new").len(), 2);
    let mut first = f.inbox().view(Mode::ReadWrite).unwrap();
    let second = f.inbox().view(Mode::ReadWrite).unwrap();
    assert_eq!(f.files("cur"), ["1.a:2,", "2.b:2,"]);
    assert_eq!((first.recent(), second.recent()), (2, 0));
    assert_eq!(shown(&first), ["1:*", "2:*"]);
    assert_eq!(shown(&second), ["1:", "2:"]);
    assert_eq!(f.inbox().status(false).unwrap().recent, 0);
    f.put("new/3.c");
    assert_eq!(told(&first.refresh(false).unwrap()), ["exists 3", "recent 3"]);
}

#[test]
fn expunges_wait_until_they_are_allowed() {
    let f = Fixture::new();
    for n in 1..=5 {
        f.put(&format!("cur/{n}.m:2,"));
    }
    let mut a = f.inbox().view(Mode::ReadWrite).unwrap();
    let mut b = f.inbox().view(Mode::ReadWrite).unwrap();
    a.store(&[uid(2), uid(4)], &flags(FlagOp::Add, Flags::DELETED, &[])).unwrap();
    assert_eq!(a.expunge(None).unwrap(), [uid(2), uid(4)]);
    assert_eq!(told(&a.refresh(true).unwrap()), ["expunge 4 (4)", "expunge 2 (2)", "recent 3"]);
    f.put("new/6.m");
    // Without leave the numbers stay, and the messages are shown as they were last.
    let changes = b.refresh(false).unwrap();
    assert_eq!(told(&changes), ["exists 6", "recent 1"], "flags of messages that are gone are no news");
    assert_eq!(shown(&b)[1], "2:!T");
    assert_eq!(b.seq(uid(5)), Some(5));
    assert!(matches!(b.mailbox().open(uid(2)), Err(Error::Expunged(_))));
    b.store(&[uid(2), uid(5)], &flags(FlagOp::Add, Flags::SEEN, &[])).unwrap();
    assert_eq!(told(&b.refresh(true).unwrap()), ["expunge 4 (4)", "expunge 2 (2)"]);
    assert_eq!(b.seq(uid(5)), Some(3));
    assert_eq!(told(&a.refresh(true).unwrap()), ["flags 3 S", "exists 4"]);
    assert!(b.refresh(true).unwrap().is_empty());
}

#[test]
fn store_reports_to_others_and_not_to_itself() {
    let f = Fixture::new();
    f.put("new/1.a");
    f.put("cur/2.b:2,FX");
    let mut a = f.inbox().view(Mode::ReadWrite).unwrap();
    let mut b = f.inbox().view(Mode::ReadWrite).unwrap();
    let mut c = f.inbox().view(Mode::ReadOnly).unwrap();
    let result = a.store(&[uid(1), uid(2)], &flags(FlagOp::Add, Flags::SEEN, &["$Label1"])).unwrap();
    assert_eq!(result.len(), 2);
    assert_eq!(f.files("cur"), ["1.a:2,Sa", "2.b:2,FSXa"]);
    assert_eq!(told(&a.announce(false)), ["keywords"]);
    assert!(a.refresh(false).unwrap().is_empty());
    assert_eq!(told(&b.refresh(false).unwrap()), ["keywords", "flags 1 S", "flags 2 FS"]);
    assert_eq!(shown(&b), ["1:S$Label1", "2:FS$Label1"]);
    let c_says = told(&c.refresh(false).unwrap());
    assert_eq!(c_says, ["keywords", "flags 1 S", "flags 2 FS"]);
    b.store(&[uid(1)], &flags(FlagOp::Replace, Flags::NONE, &[])).unwrap();
    b.store(&[uid(2)], &flags(FlagOp::Remove, Flags::FLAGGED, &["$label1", "unknown"])).unwrap();
    assert_eq!(f.files("cur"), ["1.a:2,", "2.b:2,SX"]);
    assert_eq!(shown(&a), ["1:*", "2:*S"]);
    assert!(matches!(c.store(&[uid(1)], &flags(FlagOp::Add, Flags::SEEN, &[])), Err(Error::ReadOnly)));
    assert!(matches!(c.expunge(None), Err(Error::ReadOnly)));
}

#[test]
fn foreign_renames_are_followed() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    f.put("cur/2.b:2,");
    let mut view = f.inbox().view(Mode::ReadWrite).unwrap();
    let cur = f.root().join("cur");
    fs::rename(cur.join("1.a:2,"), cur.join("1.a:2,FS")).unwrap();
    // Opened by the old name first: found again.
    assert_eq!(view.mailbox().open(uid(1)).unwrap().size, 17);
    assert_eq!(told(&view.refresh(false).unwrap()), ["flags 1 FS"]);
    // Renamed and changed by us before we saw it.
    fs::rename(cur.join("2.b:2,"), cur.join("2.b:2,R")).unwrap();
    let result = view.store(&[uid(2)], &flags(FlagOp::Add, Flags::SEEN, &[])).unwrap();
    assert_eq!(result[0].flags, Flags::SEEN | Flags::ANSWERED);
    assert_eq!(f.files("cur"), ["1.a:2,FS", "2.b:2,RS"]);
    // An expunge does not take a message that lost its \Deleted meanwhile.
    view.store(&[uid(1)], &flags(FlagOp::Add, Flags::DELETED, &[])).unwrap();
    fs::rename(cur.join("1.a:2,FST"), cur.join("1.a:2,F")).unwrap();
    assert_eq!(view.expunge(None).unwrap(), []);
    fs::remove_file(cur.join("1.a:2,F")).unwrap();
    assert!(view.refresh(true).unwrap().contains(&Change::Expunged { seq: 1, uid: uid(1) }));
    assert!(matches!(view.mailbox().open(uid(1)), Err(Error::Expunged(_))));
}

#[test]
fn a_message_that_comes_back_is_a_new_one() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    f.put("cur/2.b:2,");
    let mut view = f.inbox().view(Mode::ReadWrite).unwrap();
    let (cur, away) = (f.root().join("cur"), f.root().join("away"));
    fs::rename(cur.join("1.a:2,"), &away).unwrap();
    assert_eq!(told(&view.refresh(true).unwrap()), ["expunge 1 (1)", "recent 1"]);
    fs::rename(&away, cur.join("1.a:2,")).unwrap();
    view.refresh(true).unwrap();
    assert_eq!(shown(&view), ["2:*", "3:*"]);
    assert!(f.uidlist().ends_with("2 :2.b\n3 :1.a\n"), "{}", f.uidlist());
}

#[test]
fn uids_of_other_programs_are_taken_over() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    let mut view = f.inbox().view(Mode::ReadWrite).unwrap();
    f.put("cur/9.z:2,S");
    f.put("cur/8.y:2,");
    let list = f.uidlist();
    fs::write(f.root().join("dovecot-uidlist"), format!("{list}7 W3 :9.z\n10 P Gabc :8.y\n")).unwrap();
    assert_eq!(told(&view.refresh(true).unwrap()), ["exists 3"], "{}", f.uidlist());
    assert_eq!(shown(&view), ["1:*", "7:S", "10:"]);
    assert_eq!(view.mailbox().message_guid(uid(10)).unwrap(), "abc");
    assert_eq!(view.mailbox().uid_next(), 11);
    // Its rewrite drops a message and gives another a new number.
    let header = list.lines().next().unwrap();
    fs::write(f.root().join("dovecot-uidlist.new"), format!("{header}\n1 :1.a\n12 :8.y\n")).unwrap();
    fs::rename(f.root().join("dovecot-uidlist.new"), f.root().join("dovecot-uidlist")).unwrap();
    view.refresh(true).unwrap();
    assert_eq!(shown(&view), ["1:*", "12:", "13:*S"]);
    assert!(f.uidlist().contains("12 :8.y\n13 :9.z\n"), "{}", f.uidlist());
}

#[test]
fn lost_and_spoiled_lists() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    f.put("cur/2.b:2,");
    let path = f.root().join("dovecot-uidlist");
    let mailbox = f.inbox();
    let mut view = mailbox.view(Mode::ReadWrite).unwrap();
    let validity = mailbox.uid_validity();
    // Lost below our feet: written again, nothing renumbered.
    fs::remove_file(&path).unwrap();
    f.put("cur/3.c:2,");
    view.refresh(true).unwrap();
    assert_eq!(shown(&view), ["1:*", "2:*", "3:*"]);
    assert!(f.uidlist().starts_with(&format!("3 V{validity} N4")), "{}", f.uidlist());
    // A bad line and a torn one cost only themselves, and never a number twice.
    let list = f.uidlist().replace("2 :2.b", "2 garbage/2.b");
    fs::write(&path, format!("{list}44 :4.")).unwrap();
    let other = f.elsewhere();
    assert_eq!(other.uid_validity(), validity);
    let view_of_other = other.view(Mode::ReadOnly).unwrap();
    assert_eq!(shown(&view_of_other), ["1:", "3:", "4:*"]);
    assert!(f.uidlist().ends_with("1 :1.a\n3 :3.c\n4 :2.b\n"), "{}", f.uidlist());
    // No header: all is lost, so the value must be another.
    fs::write(&path, "nonsense\n").unwrap();
    let last = f.elsewhere();
    assert!(last.uid_validity() > validity);
    assert!(matches!(view.refresh(true), Err(Error::Gone(_))));
    assert_eq!(f.inbox().uid_validity(), last.uid_validity());
}

#[test]
fn version_1_and_missing_guid_are_upgraded() {
    let f = Fixture::new();
    f.put("cur/1.a:2,S");
    f.put("cur/2.b:2,");
    fs::write(f.root().join("dovecot-uidlist"), "1 777 9\n3 1.a:2,\n8 2.b\n").unwrap();
    let mailbox = f.inbox();
    assert_eq!((mailbox.uid_validity().get(), mailbox.uid_next()), (777, 9));
    assert!(f.uidlist().starts_with("3 V777 N9 G"), "{}", f.uidlist());
    assert!(f.uidlist().ends_with("\n3 :1.a\n8 :2.b\n"));
    assert_eq!(mailbox.guid().len(), 32);
}

#[test]
fn out_of_uids() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    fs::write(f.root().join("dovecot-uidlist"), "3 V5 N1\n4294967294 :1.a\n").unwrap();
    let mailbox = f.inbox();
    assert_eq!(mailbox.uid_next(), u32::MAX);
    let mut view = mailbox.view(Mode::ReadWrite).unwrap();
    f.put("new/2.b");
    assert!(matches!(view.refresh(true), Err(Error::Gone(_))));
    let again = f.inbox();
    assert!(again.uid_validity().get() > 5);
    assert_eq!(shown(&again.view(Mode::ReadOnly).unwrap()), ["1:*", "2:*"]);
}

#[test]
fn append_copy_move() {
    let f = Fixture::new();
    f.maildir.create(&name("Sent")).unwrap();
    let (inbox, sent) = (f.inbox(), f.folder("Sent"));
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let mut delivery = inbox.delivery().unwrap();
    delivery.set_date(date);
    delivery.set_flags(Flags::SEEN, vec![Keyword::try_from("k").unwrap()]);
    delivery.write(b"one\r\n").unwrap();
    let staged = vec![delivery.finish().unwrap(), stage(&inbox, "two\r\n"), stage(&inbox, "three\r\n")];
    assert_eq!(inbox.append(staged).unwrap(), [uid(1), uid(2), uid(3)]);
    let mut view = inbox.view(Mode::ReadWrite).unwrap();
    assert_eq!(shown(&view), ["1:*Sk", "2:*", "3:*"]);
    assert_eq!(inbox.internal_date(uid(1)).unwrap(), date);
    assert_eq!(inbox.virtual_size(uid(2)).unwrap(), 5);

    let mut other = sent.view(Mode::ReadWrite).unwrap();
    let copied = view.copy_to(&[uid(3), uid(1), uid(9)], &sent).unwrap();
    assert_eq!(copied.uids, [(uid(3), uid(1)), (uid(1), uid(2))]);
    assert_eq!(copied.uid_validity, sent.uid_validity());
    assert_eq!(told(&other.refresh(false).unwrap()), ["keywords", "exists 2", "recent 2"]);
    assert_eq!(shown(&other), ["1:*", "2:*Sk"]);
    let (source, copy) = (inbox.open(uid(1)).unwrap(), sent.open(uid(2)).unwrap());
    assert_eq!(source.file.metadata().unwrap().ino(), copy.file.metadata().unwrap().ino());
    assert_eq!((copy.size, copy.virtual_size, copy.date), (4, 5, date));
    assert_eq!(sent.message_guid(uid(2)).unwrap(), inbox.message_guid(uid(1)).unwrap());

    let moved = view.move_to(&[uid(2)], &sent).unwrap();
    assert_eq!(moved.uids, [(uid(2), uid(3))]);
    assert_eq!(told(&view.refresh(true).unwrap()), ["expunge 2 (2)", "recent 2"]);
    // Into the same folder.
    view.move_to(&[uid(1)], &inbox).unwrap();
    assert_eq!(told(&view.refresh(true).unwrap()), ["expunge 1 (1)", "exists 2"]);
    assert_eq!(shown(&view), ["3:*", "4:*Sk"]);
    for sub in ["tmp", ".Sent/tmp"] {
        assert!(f.files(sub).is_empty());
    }
    // Staged for one folder is not appended to another; nothing is left of it.
    assert!(sent.append(vec![stage(&inbox, "x")]).is_err());
    assert!(f.files("tmp").is_empty());
}

#[test]
fn failed_append_leaves_nothing() {
    let f = Fixture::new();
    let inbox = f.inbox();
    let staged = vec![stage(&inbox, "one"), stage(&inbox, "two")];
    fs::rename(f.root().join("new"), f.root().join("hidden")).unwrap();
    assert!(inbox.append(staged).is_err());
    fs::rename(f.root().join("hidden"), f.root().join("new")).unwrap();
    assert!(f.files("tmp").is_empty() && f.files("new").is_empty() && f.files("cur").is_empty());
}

#[test]
fn deleted_and_renamed_folders_end_their_sessions() {
    let f = Fixture::new();
    f.maildir.create(&name("A")).unwrap();
    let mut view = f.folder("A").view(Mode::ReadWrite).unwrap();
    let validity = view.mailbox().uid_validity();
    f.maildir.rename(&name("A"), &name("B")).unwrap();
    assert!(matches!(view.refresh(true), Err(Error::Gone(_))));
    assert_eq!(f.folder("B").uid_validity(), validity);
    assert!(matches!(f.store.mailbox(f.root(), &name("A")), Err(Error::NoSuchFolder(_))));
    f.maildir.create(&name("A")).unwrap();
    assert!(f.folder("A").uid_validity() > validity);
    assert!(matches!(view.store(&[uid(1)], &flags(FlagOp::Add, Flags::SEEN, &[])), Err(Error::Gone(_))));
    let mut view = f.folder("A").view(Mode::ReadWrite).unwrap();
    f.maildir.delete(&name("A")).unwrap();
    f.maildir.create(&name("A")).unwrap();
    f.folder("A");
    assert!(matches!(view.refresh(true), Err(Error::Gone(_)) | Ok(_)));
}

#[test]
fn pop3() {
    let f = Fixture::new();
    f.put("new/1.a");
    f.put("cur/2.b:2,S");
    f.put("cur/3.c:2,S");
    f.put("cur/4.d,W=99:2,S");
    let list =
        "3 V5 N9 G6052a8040371006b3924000083ecc375\n1 :1.a\n2 PUID2-5 O2 :2.b\n3 P O1 :3.c\n4 :4.d,W=99\n";
    fs::write(f.root().join("dovecot-uidlist"), list).unwrap();
    let snapshot = f.inbox().pop3_snapshot().unwrap();
    let told: Vec<_> = snapshot.iter().map(|m| (m.uid.get(), m.size, m.uidl.as_deref())).collect();
    assert_eq!(told, [(3, 20, Some("3.c")), (2, 20, Some("UID2-5")), (1, 20, None), (4, 99, None)]);
    assert!(f.files("new").is_empty());
    // The sizes worked out are kept for next time.
    assert!(f.uidlist().contains("1 W20 :1.a\n2 PUID2-5 O2 W20 :2.b\n"), "{}", f.uidlist());
    f.inbox().store(&[uid(1)], &flags(FlagOp::Add, Flags::SEEN, &[])).unwrap();
    assert_eq!(f.inbox().remove(&[uid(1), uid(3), uid(77)]).unwrap(), [uid(1), uid(3)]);
    assert_eq!(f.files("cur"), ["2.b:2,S", "4.d,W=99:2,S"]);
    let status = f.inbox().status(true).unwrap();
    assert_eq!((status.messages, status.unseen, status.recent, status.size), (2, 0, 0, Some(119)));
}

#[test]
fn sequence_sets() {
    let f = Fixture::new();
    for n in 1..=5 {
        f.put(&format!("cur/{n}.m:2,"));
    }
    let mut view = f.inbox().view(Mode::ReadWrite).unwrap();
    view.store(&[uid(1), uid(3)], &flags(FlagOp::Add, Flags::DELETED, &[])).unwrap();
    view.expunge(Some(&[uid(1), uid(3), uid(5)])).unwrap();
    view.refresh(true).unwrap();
    let r = |from, to| SetRange { from, to };
    let resolve = |set: &[SetRange], numbers| {
        view.resolve(set, numbers).map(|l| l.iter().map(|(s, u)| (*s, u.get())).collect::<Vec<_>>()).ok()
    };
    // 1:2, 2:4, 3:5
    let all = Some(vec![(1, 2), (2, 4), (3, 5)]);
    assert_eq!(resolve(&[r(Some(1), None)], Numbers::Sequence), all);
    assert_eq!(resolve(&[r(None, Some(1))], Numbers::Sequence), all);
    assert_eq!(
        resolve(&[r(Some(3), Some(2)), r(Some(2), Some(2))], Numbers::Sequence),
        Some(vec![(2, 4), (3, 5)])
    );
    assert_eq!(resolve(&[r(Some(4), Some(4))], Numbers::Sequence), None);
    assert_eq!(resolve(&[r(Some(0), Some(1))], Numbers::Sequence), None);
    assert_eq!(resolve(&[r(Some(3), Some(99))], Numbers::Sequence), None);
    assert_eq!(resolve(&[r(Some(500), None)], Numbers::Uid), Some(vec![(3, 5)]));
    assert_eq!(resolve(&[r(Some(3), Some(4)), r(Some(99), Some(99))], Numbers::Uid), Some(vec![(2, 4)]));
    assert_eq!(resolve(&[r(Some(3), Some(3))], Numbers::Uid), Some(vec![]));
    assert_eq!(resolve(&[r(None, None)], Numbers::Uid), Some(vec![(3, 5)]));
    assert_eq!(view.uid(0), None);
    f.maildir.create(&name("empty")).unwrap();
    let empty = f.folder("empty").view(Mode::ReadOnly).unwrap();
    assert!(empty.resolve(&[r(Some(1), None)], Numbers::Sequence).is_err());
    assert_eq!(empty.resolve(&[r(Some(1), None)], Numbers::Uid).unwrap(), []);
}

#[test]
fn two_files_of_one_name() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    f.put("cur/1.a:2,S");
    f.put("new/1.a");
    f.put("cur/2.b:2,");
    fs::hard_link(f.root().join("cur/2.b:2,"), f.root().join("cur/2.b:2,F")).unwrap();
    let mut view = f.inbox().view(Mode::ReadWrite).unwrap();
    view.refresh(true).unwrap();
    assert_eq!(view.exists(), 4, "{}", f.uidlist());
    assert_eq!(f.uidlist().matches(":1.a\n").count(), 1);
    let messages = f.files("cur").len();
    assert_eq!(messages, 5, "{:?}", f.files("cur"));
}

fn wait_for(waker: &mpsc::Receiver<()>, view: &mut View, until: impl Fn(&View) -> bool) -> Duration {
    let start = Instant::now();
    while !until(view) {
        waker.recv_timeout(Duration::from_secs(10)).expect("a notification");
        view.refresh(true).unwrap();
    }
    start.elapsed()
}

fn subscribed(mailbox: &Arc<Mailbox>) -> (View, mpsc::Receiver<()>, maildir::Subscription) {
    let view = mailbox.view(Mode::ReadWrite).unwrap();
    let (sender, receiver) = mpsc::channel();
    let subscription = mailbox.subscribe(Box::new(move || sender.send(()).unwrap_or(()))).unwrap();
    (view, receiver, subscription)
}

#[test]
fn deliveries_wake_at_once() {
    let f = Fixture::new();
    let (mut view, waker, _subscription) = subscribed(&f.inbox());
    let mut slowest = Duration::ZERO;
    for n in 1..=50 {
        f.deliver("Subject: x\r\n\r\nbody\r\n");
        slowest = slowest.max(wait_for(&waker, &mut view, |v| v.exists() == n));
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    // A burst, with nothing after it that would wake again.
    for _ in 0..200 {
        f.deliver("x");
    }
    let took = wait_for(&waker, &mut view, |v| v.exists() == 250);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(view.recent(), 250);
}

#[test]
fn changes_of_other_sessions_and_programs_wake() {
    let f = Fixture::new();
    f.put("cur/1.a:2,");
    f.put("cur/2.b:2,");
    let inbox = f.inbox();
    let (mut view, waker, subscription) = subscribed(&inbox);
    let seen = |v: &View, n| v.message(uid(n)).is_some_and(|m| m.flags.contains(Flags::SEEN));
    let mut other = inbox.view(Mode::ReadWrite).unwrap();
    other.store(&[uid(1)], &flags(FlagOp::Add, Flags::SEEN, &[])).unwrap();
    wait_for(&waker, &mut view, |v| seen(v, 1));
    // Another program, with a lock of its own.
    let foreign = f.elsewhere();
    foreign.store(&[uid(2)], &flags(FlagOp::Add, Flags::SEEN, &[])).unwrap();
    let took = wait_for(&waker, &mut view, |v| seen(v, 2));
    assert!(took < Duration::from_secs(1), "{took:?}");
    foreign.remove(&[uid(1)]).unwrap();
    wait_for(&waker, &mut view, |v| v.exists() == 1);
    f.maildir.create(&name("A")).unwrap();
    let folder = f.folder("A");
    let (mut lost, bell, _other) = subscribed(&folder);
    while bell.try_recv().is_ok() {}
    f.maildir.rename(&name("A"), &name("B")).unwrap();
    bell.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(matches!(lost.refresh(true), Err(Error::Gone(_))));
    drop(subscription);
}

#[test]
fn foreign_lock_is_waited_for_and_reported() {
    let f = Fixture::new();
    let mut options = Options::default();
    options.lock_timeout = Duration::from_millis(50);
    let store = Store::new(options).unwrap();
    f.put("cur/1.a:2,");
    let mailbox = store.mailbox(f.root(), &FolderName::inbox()).unwrap();
    let mut view = mailbox.view(Mode::ReadWrite).unwrap();
    fs::write(f.root().join("dovecot-uidlist.lock"), "1:somewhere-else").unwrap();
    let result = view.store(&[uid(1)], &flags(FlagOp::Add, Flags::SEEN, &[]));
    assert!(matches!(result, Err(Error::Locked(_))), "{result:?}");
    // A look for news goes without.
    f.put("new/2.b");
    assert!(view.refresh(true).unwrap().is_empty());
    fs::remove_file(f.root().join("dovecot-uidlist.lock")).unwrap();
    assert_eq!(told(&view.refresh(true).unwrap()), ["exists 2", "recent 2"]);
}

/// Many sessions of two "programs" at once: every UID belongs to one file for ever, nothing is lost.
#[test]
fn concurrent_use_keeps_the_list_whole() {
    let f = Fixture::new();
    let end = Instant::now() + Duration::from_secs(2);
    let stores = [f.store.clone(), Store::new(Options::default()).unwrap()];
    let delivered = std::thread::scope(|scope| {
        for store in &stores {
            for n in 0..2 {
                let mailbox = store.mailbox(f.root(), &FolderName::inbox()).unwrap();
                scope.spawn(move || {
                    let mut view = mailbox.view(Mode::ReadWrite).unwrap();
                    let mut op = FlagOp::Add;
                    while Instant::now() < end {
                        view.refresh(true).unwrap();
                        let all =
                            view.resolve(&[SetRange { from: Some(1), to: None }], Numbers::Uid).unwrap();
                        let some: Vec<Uid> = all.iter().skip(n).step_by(7).map(|(_, uid)| *uid).collect();
                        view.store(&some, &flags(op, Flags::FLAGGED, &["k"])).unwrap();
                        op = if op == FlagOp::Add { FlagOp::Remove } else { FlagOp::Add };
                        if n == 0 {
                            mailbox.append(vec![stage(&mailbox, "appended")]).unwrap();
                        }
                    }
                });
            }
        }
        let deliverer = scope.spawn(|| {
            let mut count = 0;
            while Instant::now() < end {
                f.deliver("delivered");
                count += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            count
        });
        deliverer.join().unwrap()
    });
    let views: Vec<View> =
        [f.inbox(), f.elsewhere()].iter().map(|m| m.view(Mode::ReadWrite).unwrap()).collect();
    let uids =
        |v: &View| shown(v).iter().map(|s| s.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(uids(&views[0]), uids(&views[1]));
    assert!(views[0].exists() > delivered);
    let list = f.uidlist();
    let mut names: Vec<&str> =
        list.lines().skip(1).filter_map(|l| l.split_once(" :")).map(|(_, n)| n).collect();
    assert_eq!(names.len(), views[0].exists() as usize, "no file was listed twice or renumbered");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), views[0].exists() as usize);
    assert_eq!(f.files("tmp").len() + f.files("new").len(), 0);
}
