//! Tests of the passwd-file editor.

use super::*;

const WAIT: Duration = Duration::from_secs(5);

fn edit(
    before: &str,
    change: impl FnOnce(&mut Editor) -> Result<(), EditError>,
) -> Result<String, EditError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, before).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let mut editor = Editor::open(&path, "h.test", WAIT)?;
    let result = change(&mut editor).and_then(|()| editor.commit());
    let after = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
    if result.is_err() {
        assert_eq!(after, before);
    }
    result.map(|()| after)
}

fn user(name: &str, stored: &str) -> NewUser {
    NewUser { name: name.into(), stored: stored.to_owned().into(), ..NewUser::default() }
}

#[test]
fn add_appends_one_line() {
    let add = |before: &str, new: NewUser| edit(before, |editor| editor.add(&new));
    assert_eq!(add("", user("a", "{PLAIN}x")).unwrap(), "a:{PLAIN}x\n");
    assert_eq!(add("# c\r\nb:y", user("a", "x")).unwrap(), "# c\r\nb:y\na:x\n");
    assert_eq!(add("\n\n#x\n", user("a@x.test", "x")).unwrap(), "\n\n#x\na@x.test:x\n");
    let full = NewUser {
        uid: Some(1000),
        gid: Some(8),
        home: Some("/h".into()),
        fields: vec![("allow_nets".into(), Some("local".into())), ("nodelay".into(), None)],
        keys: vec!["{SCRAM-SHA-256}4096,a,b,c".to_owned().into()],
        ..user("a", "x")
    };
    let line = "a:x:1000:8::/h::allow_nets=local nodelay scram={SCRAM-SHA-256}4096,a,b,c\n";
    assert_eq!(add("", full).unwrap(), line);
    for (before, name) in [("a:x\n", "a"), ("a@h.test:x\n", "a"), ("a:x\n", "a@h.test")] {
        assert!(matches!(add(before, user(name, "y")), Err(EditError::Exists(_))), "{before} {name}");
    }
    assert!(add("#a:x\n", user("a", "y")).is_ok());
    for bad in [
        user("", "x"),
        user("#a", "x"),
        user("a:b", "x"),
        user("a\nb", "x"),
        user("a", "x:y"),
        user("a", "x\ny"),
        user(" a", "x"),
        NewUser { home: Some("/a:b".into()), ..user("a", "x") },
        NewUser { fields: vec![("a b".into(), None)], ..user("a", "x") },
    ] {
        assert!(matches!(add("", bad), Err(EditError::Invalid(_))));
    }
}

#[test]
fn remove_takes_every_line_of_the_user() {
    let remove = |before: &str, name: &str| edit(before, |editor| editor.remove(name).map(|_| ()));
    assert_eq!(remove("# a\na:1\nb:2\r\na:3\na@h.test:4\nab:5", "a").unwrap(), "# a\nb:2\r\nab:5");
    assert_eq!(remove("a:1", "a@h.test").unwrap(), "");
    assert!(matches!(remove("b:2\n", "a"), Err(EditError::Unknown(_))));
    assert!(matches!(remove("a@x.test:2\n", "a"), Err(EditError::Unknown(_))));
}

#[test]
fn password_change_touches_one_column() {
    let set = |before: &str, keys: Option<&[&str]>| {
        let keys: Option<Vec<Secret>> =
            keys.map(|keys| keys.iter().map(|key| Secret::from((*key).to_owned())).collect());
        edit(before, |editor| editor.set_password("a", &"NEW".to_owned().into(), keys.as_deref()))
    };
    let cases: [(&str, Option<&[&str]>, &str); 11] = [
        ("a:old\n", None, "a:NEW\n"),
        ("a", None, "a:NEW"),
        ("x:1\na:old:1:2:g:/h:/sh: k=a:b  q\r\ny:2", None, "x:1\na:NEW:1:2:g:/h:/sh: k=a:b  q\r\ny:2"),
        ("a:old::::::scram=K1 n\n", None, "a:NEW::::::scram=K1 n\n"),
        ("a:old::::::scram=K1 n\n", Some(&[]), "a:NEW::::::n\n"),
        ("a:old::::::n scram=K1\n", Some(&["K2"]), "a:NEW::::::n scram=K2\n"),
        ("a:old\n", Some(&["K2", "K3"]), "a:NEW::::::scram=K2 scram=K3\n"),
        ("a:old:1:2\n", Some(&["K2"]), "a:NEW:1:2::::scram=K2\n"),
        ("a:old\na:shadowed\n", None, "a:NEW\n"),
        ("a@h.test:old\n", None, "a@h.test:NEW\n"),
        ("a:old\n", Some(&[]), "a:NEW\n"),
    ];
    for (before, keys, after) in cases {
        assert_eq!(set(before, keys).unwrap(), after, "{before:?}");
    }
    assert!(matches!(set("b:1\n", None), Err(EditError::Unknown(_))));
}

#[test]
fn creates_private_files_and_keeps_links() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/users");
    let mut editor = Editor::open(&path, "", WAIT).unwrap();
    editor.add(&user("a", "x")).unwrap();
    editor.commit().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("deep/users", &link).unwrap();
    let mut editor = Editor::open(&link, "", WAIT).unwrap();
    editor.replace(&user("a", "y")).unwrap();
    editor.commit().unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a:y\n");
}

#[test]
fn editors_wait_for_each_other_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for number in 0..25 {
                    let mut editor = Editor::open(path, "", Duration::from_secs(30)).unwrap();
                    editor.add(&user(&format!("u{thread}-{number}"), "x")).unwrap();
                    editor.commit().unwrap();
                }
            });
        }
    });
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 100);
    let held = Editor::open(&path, "", WAIT).unwrap();
    assert!(matches!(Editor::open(&path, "", Duration::ZERO), Err(EditError::Busy(_))));
    drop(held);
    assert!(Editor::open(&path, "", Duration::ZERO).is_ok());
}

#[test]
fn links_of_strangers_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    std::fs::write(&target, "a:x\n").unwrap();
    std::os::unix::fs::symlink("target", &link).unwrap();
    assert!(Editor::open(&link, "", WAIT).is_ok());
    if std::os::unix::fs::lchown(&link, Some(12_345), None).is_err() {
        assert_ne!(std::env::var("POSTERN_TEST_SKIPS").as_deref(), Ok("fail"), "a skip is not allowed here");
        eprintln!("SKIPPED: needs root to make a link of somebody else");
        return;
    }
    assert!(matches!(Editor::open(&link, "", WAIT), Err(EditError::Invalid(_))));
}
