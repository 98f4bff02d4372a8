//! Files with mistakes and what is said about them: place, text and help; all mistakes at once.

use std::path::Path;

use conf::{Problem, load};

/// A file that is right, to which a mistake is added.
const GOOD: &str = r#"version = 1
hostname = "mail.example.org"
state_dir = "/srv/postern"
[[tls.certificate]]
chain = "tls/cert.pem"
key = "tls/key.pem"
[[auth.passdb]]
driver = "passwd-file"
path = "users"
[[auth.userdb]]
driver = "passwd-file"
path = "users"
[[smtp.listener]]
name = "submission"
type = "submission"
address = ["192.0.2.1:587", "[2001:db8::1]:587"]
"#;

fn problems(text: &str) -> Vec<Problem> {
    match load(text, Path::new("/etc/postern/postern.toml")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems().to_vec(),
    }
}

/// Text of the file → the one mistake in it: line, column, part of the title, part of the help.
#[test]
fn one_mistake_each() {
    let cases: &[(&str, usize, usize, &str, &str)] = &[
        // Syntax.
        ("version = 1\nhostname = mail\n", 2, 12, "not valid TOML", "texts stand in quotes"),
        ("version = 1\n[auth\n", 2, 6, "not valid TOML", "lines are"),
        ("version = 1\nversion = 1\n", 2, 1, "duplicate key", "keep one"),
        ("version = 1\n[log]\n[log]\n", 3, 2, "duplicate key", "keep one"),
        // Version.
        ("", 1, 1, "`version` is missing in the top of the file", "version = 1"),
        ("version = 2\n", 1, 11, "version 2 of the file's format is not known", "version = 1"),
        ("version = \"1\"\n", 1, 11, "`version` is a text", "a whole number"),
        // Keys.
        (
            "version = 1\nhostnam = \"a.b\"\n",
            2,
            1,
            "unknown key `hostnam` in the top of the file",
            "`hostname`",
        ),
        (
            "version = 1\n[log]\nlevle = \"info\"\n",
            3,
            1,
            "unknown key `levle` in [log]",
            "did you mean `level`?",
        ),
        (
            "version = 1\n[log]\ncolour = true\n",
            3,
            1,
            "unknown key `colour`",
            "the keys here are: level, format",
        ),
        ("version = 1\nlog.format.x = 1\n", 2, 5, "`format` is a table", "one of \"auto\""),
        (
            "version = 1\n[imap.listener]\nname = \"x\"\n",
            2,
            1,
            "must be a list of tables",
            "[[imap.listener]]",
        ),
        ("version = 1\nlog = 5\n", 2, 7, "`log` is a number", "[log]"),
        // Values.
        ("version = 1\ngrace_time = 10\n", 2, 14, "`grace_time` needs a unit", "\"10s\""),
        ("version = 1\ngrace_time = -5\n", 2, 14, "`grace_time` cannot be negative", "\"30s\""),
        ("version = 1\ngrace_time = \"-5s\"\n", 2, 14, "`grace_time` cannot be negative", "\"30s\""),
        ("version = 1\ngrace_time = \"10 fortnights\"\n", 2, 14, "is not a duration", "\"30s\""),
        ("version = 1\ngrace_time = true\n", 2, 14, "`grace_time` is true or false", "a duration"),
        ("version = 1\n[smtp]\nmax_message_size = \"25X\"\n", 3, 20, "`25X` is not a size", "\"25M\""),
        ("version = 1\n[smtp]\nmax_message_size = -1\n", 3, 20, "out of range", "whole number"),
        ("version = 1\n[smtp]\nmax_recipients = 0\n", 3, 18, "out of range", "from 1 to 100000"),
        (
            "version = 1\n[log]\nformat = \"jsn\"\n",
            3,
            10,
            "`jsn` is not a value of `format`",
            "did you mean \"json\"?",
        ),
        ("version = 1\n[log]\nlevel = \"loud\"\n", 3, 9, "`loud` is not a log level", "error, warn, info"),
        (
            "version = 1\n[log]\nlevel = \"auth=loud,info\"\n",
            3,
            9,
            "`auth=loud` is not a log level",
            "\"auth=debug,info\"",
        ),
        ("version = 1\n[log]\nlevel = \"auth,info\"\n", 3, 9, "`auth` is not a log level", "trace"),
        ("version = 1\n[tls]\nminimum = \"1.1\"\n", 3, 11, "`1.1` is not a value", "\"1.2\", \"1.3\""),
        ("version = 1\n[tls]\nminimum = 1.2\n", 3, 11, "`minimum` is a decimal number", "\"1.2\""),
        ("version = 1\nstate_dir = \"~/mail\"\n", 2, 13, "begins with `~`", "whole path"),
        ("version = 1\nstate_dir = \"\"\n", 2, 13, "`state_dir` is empty", "path"),
        ("version = 1\nhostname = \"a b\"\n", 2, 12, "`a b` is not a host name", "mail.example.org"),
        (
            "version = 1\n[auth]\nmechanisms = [\"PLAIN\", \"SCRAM-SHA256\"]\n",
            3,
            24,
            "no mechanism `SCRAM-SHA256`",
            "SCRAM-SHA-256",
        ),
        ("version = 1\n[auth]\nmechanisms = \"PLAIN\"\n", 3, 14, "`mechanisms` is a text", "a list"),
        ("version = 1\n[auth]\nmaster_user_separator = \"**\"\n", 3, 25, "must be one character", "\"*\""),
        ("version = 1\n[auth]\nusername_translation = \"#@/\"\n", 3, 24, "without its counterpart", "pairs"),
        ("version = 1\n[auth]\nusername_format = \"%{user\"\n", 3, 19, "without closing", "%{user}"),
        ("version = 1\n[auth.hash]\nmax_memory = \"1G\"\n", 3, 14, "more memory", "raise `memory`"),
        (
            "version = 1\n[mail]\ncreate_folders = [\"Sent\", \"a/b\"]\n",
            3,
            27,
            "`a/b` is not a folder name",
            "without",
        ),
        ("version = 1\n[imap]\nidle_timeout = \"0s\"\n", 3, 16, "`imap.idle_timeout` is zero", "60s"),
    ];
    for (text, line, column, title, help) in cases {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        let only = &found[0];
        assert_eq!((only.line, only.column), (*line, *column), "{text}\n{only:#?}");
        assert!(only.title.contains(title), "{text}\n{only:#?}");
        assert!(only.help.contains(help), "{text}\n{only:#?}");
    }
}

/// Text added to a right file → line below it (1 is the first added one), title, help.
#[test]
fn one_mistake_beside_what_is_right() {
    assert_eq!(problems(GOOD), []);
    let cases: &[(&str, usize, &str, &str)] = &[
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbond\"\naddress = \"0.0.0.0:25\"\n",
            3,
            "`inbond`",
            "\"inbound\"",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\naddress = \"0.0.0.0:25\"\n",
            1,
            "`type` is missing in [[smtp.listener]]",
            "type =",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbound\"\naddress = \"0.0.0.0:99999\"\n",
            4,
            "`99999` is not a port",
            "1 to 65535",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbound\"\naddress = \"0.0.0.0\"\n",
            4,
            "has no port",
            "0.0.0.0:587",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbound\"\naddress = \"*:25\"\n",
            4,
            "has no address",
            "[::]:25",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbound\"\naddress = \"mail:25\"\n",
            4,
            "is not an address",
            "numbers, not names",
        ),
        (
            "[[smtp.listener]]\nname = \"mx\"\ntype = \"inbound\"\naddress = []\n",
            4,
            "`address` is empty",
            "at least one",
        ),
        (
            "[[smtp.listener]]\nname = \"submission\"\ntype = \"inbound\"\naddress = \"0.0.0.0:25\"\n",
            2,
            "two listeners are called `submission`",
            "own name",
        ),
        (
            "[[imap.listener]]\nname = \"imap\"\ntls = \"implicit\"\naddress = \"0.0.0.0:587\"\n",
            4,
            "taken by 192.0.2.1:587 of listener `submission`",
            "own address",
        ),
        ("[[auth.passdb]]\ndriver = \"pma\"\n", 2, "there is no driver `pma`", "\"pam\""),
        ("[[auth.passdb]]\ndriver = \"ldap\"\n", 2, "there is no driver `ldap`", "allowed: \"passwd-file\""),
        ("[[auth.passdb]]\nname = \"x\"\n", 1, "`driver` is missing in [[auth.passdb]]", "passwd-file"),
        ("[[auth.passdb]]\ndriver = \"pam\"\npath = \"users\"\n", 3, "unknown key `path`", "service"),
        ("[[auth.passdb]]\ndriver = \"passwd-file\"\n", 1, "`path` is missing", "users"),
        (
            "[[auth.passdb]]\ndriver = \"pam\"\nresult_success = \"continue_ok\"\n",
            3,
            "`continue_ok`",
            "\"continue-ok\"",
        ),
        (
            "[[auth.passdb]]\ndriver = \"static\"\npassword = \"secret\"\n",
            3,
            "`password` must not stand in this file",
            "password_file",
        ),
        ("[[auth.passdb]]\ndriver = \"static\"\n", 1, "exactly one of `password_file`", "one of them"),
        ("[[auth.userdb]]\ndriver = \"prefetch\"\n", 2, "must be the first userdb", "move it up"),
        (
            "[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"c\"\npassdb = [\"passwd-fil\"]\n",
            5,
            "there is no passdb `passwd-fil`",
            "\"passwd-file\"",
        ),
        (
            "[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"c\"\nmode = 660\n",
            5,
            "must stand in quotes",
            "\"0660\"",
        ),
        (
            "[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"c\"\nmode = \"0880\"\n",
            5,
            "is not a mode",
            "\"0660\"",
        ),
        (
            "[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"c\"\njoin_realm = true\n",
            5,
            "no meaning",
            "saslauthd",
        ),
        (
            "[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = [\"c\", \"c\"]\n",
            4,
            "share the path /srv/postern/c",
            "own path",
        ),
    ];
    let above = GOOD.lines().count();
    for (text, line, title, help) in cases {
        let found = problems(&format!("{GOOD}{text}"));
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        let only = &found[0];
        assert_eq!(only.line, above + line, "{text}\n{only:#?}");
        assert!(only.title.contains(title), "{text}\n{only:#?}");
        assert!(only.help.contains(help), "{text}\n{only:#?}");
    }
}

/// As docs/logging.md has them.
#[test]
fn log_levels() {
    for level in ["warn", "INFO", "off", "", "auth=debug,info", "info, auth::ok=warn", "smtp=trace"] {
        let found = problems(&format!("version = 1\n[log]\nlevel = \"{level}\"\n"));
        assert_eq!(found, [], "{level}");
    }
}

/// Sockets that the administrator did not write have names that say nothing to him.
#[test]
fn sockets_between_the_daemons_are_not_named() {
    let front = "[[pop3.listener]]\nname = \"p\"\naddress = \"127.0.0.1:110\"\n";
    for above in ["version = 1\n", "version = 1\nauth.passdb = []\n"] {
        let found = problems(&format!("{above}{front}"));
        assert!(found.iter().all(|p| !p.title.contains("fronts-")), "{found:#?}");
        let told: Vec<_> = found.iter().filter(|p| p.title.contains("without a passdb")).collect();
        assert!(told.len() == 1 && told[0].help.contains("[[auth.passdb]]"), "{found:#?}");
    }
    let found = problems(&format!("version = 1\n{front}[auth.passdb]\ndriver = \"pam\"\n"));
    let about = |p: &&Problem| p.title.contains("passdb");
    assert_eq!(found.iter().filter(about).count(), 1, "{found:#?}");
}

#[test]
fn listeners_without_what_they_need() {
    let text =
        "version = 1\n[[smtp.listener]]\nname = \"s\"\ntype = \"submission\"\naddress = \"127.0.0.1:587\"\n";
    let titles: Vec<String> = problems(text).into_iter().map(|p| p.title).collect();
    for part in ["needs a certificate", "without a userdb", "without a passdb"] {
        assert!(titles.iter().any(|t| t.contains(part)), "{part}: {titles:#?}");
    }
    let text = "version = 1\n[[auth.listener]]\nname = \"c\"\ntype = \"client\"\npath = \"c\"\n";
    let found = problems(text);
    assert!(found.iter().any(|p| p.title.contains("has no passdb") && p.line == 2), "{found:#?}");
    let long = format!(
        "version = 1\nstate_dir = \"/{}\"\n[[auth.listener]]\nname = \"m\"\ntype = \"master\"\npath = \"m\"\n",
        "d".repeat(120)
    );
    let found = problems(&long);
    assert!(found.iter().any(|p| p.title.contains("the system allows 105") && p.line == 6), "{found:#?}");
}

#[test]
fn all_mistakes_at_once() {
    let text = r#"version = 1
hostnam = "x"
grace_time = "5 parsecs"
[smtp]
max_message_size = "huge"
[[smtp.listener]]
name = "a"
type = "submision"
address = "127.0.0.1:0"
[[auth.passdb]]
driver = "shadoww"
[limits]
connections = "many"
"#;
    let found = problems(text);
    let lines: Vec<usize> = found.iter().map(|p| p.line).collect();
    for line in [2, 3, 5, 8, 9, 11, 13] {
        assert!(lines.contains(&line), "line {line} in {found:#?}");
    }
    let mut sorted = lines.clone();
    sorted.sort_unstable();
    assert_eq!(lines, sorted, "ordered by place");
    let report = load(text, Path::new("p.toml")).expect_err("has mistakes").to_string();
    for part in ["p.toml:2:1", "hostnam = \"x\"", "did you mean `hostname`?", "mistakes in p.toml"] {
        assert!(report.contains(part), "{part}\n{report}");
    }
}

#[test]
fn hostile_texts_are_answered() {
    let deep = "[".repeat(20_000);
    let many = (0..2000).map(|n| format!("key{n} = 1\n")).collect::<String>();
    let nested = format!("a = {}", "{ b = ".repeat(5_000));
    let texts = [
        "\0",
        "\u{feff}version = 1",
        "= = =",
        "version = 1e999",
        "version = 99999999999999999999",
        "version=0x1_",
        "\"\\u0000\" = 1",
        "version = 1\nhostname = \"a\\u0000b\"",
        "[[auth]]",
        "[auth.passdb.x]",
        "auth = [1]",
        "version = 1\n[[auth.passdb]]\ndriver = 5",
        "version = 1\nauth.listener = [5]",
        "ä = \"ö",
        &deep,
        &many,
        &nested,
    ];
    for text in texts {
        let answer = load(text, Path::new("x"));
        if let Err(errors) = answer {
            assert!(!errors.problems().is_empty());
            let _ = errors.to_string();
        }
    }
}
