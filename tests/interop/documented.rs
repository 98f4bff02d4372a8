//! The table of `docs/interop.md`: which programs, which versions, which tests.
//!
//! `POSTERN_WRITE_GENERATED=1` writes it anew. A version other than the written one is told, not refused: the
//! distribution may be newer than the page.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- table: made by tests/interop/documented.rs -->\n";
const END: &str = "<!-- end of table -->";

/// Program, Debian package, way in, mechanisms, what is tested beyond right, wrong and unknown, test file.
const ROWS: &[[&str; 6]] = &[
    [
        "Postfix",
        "postfix",
        "`smtpd_sasl_type = dovecot`",
        "PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256",
        "chroot and not, 587 and 465, expired, disabled, outage (also after an aborted LOGIN), away, 1,000 sessions during reloads and \
         three deaths of the daemon, full restarts under socket activation, 50 wrong logins before a right one and 20 beside it, `reject_sender_login_mismatch`, `broken_sasl_auth_clients`, mail log",
        "postfix.rs, postfix_depth.rs",
    ],
    [
        "Postfix",
        "postfix",
        "`smtpd_sasl_type = cyrus`",
        "PLAIN LOGIN",
        "chroot and not, expired, outage, away, reload, restart",
        "cyrus.rs",
    ],
    [
        "Exim",
        "exim4-daemon-heavy",
        "`driver = dovecot`",
        "PLAIN LOGIN",
        "every state of a system account, disabled, outage, away, restart, death, reload",
        "exim.rs, account_peers.rs",
    ],
    [
        "Exim",
        "exim4-daemon-heavy",
        "`saslauthd` condition",
        "PLAIN LOGIN",
        "every state of a system account, disabled, outage, away, restart, death, reload",
        "exim.rs, account_peers.rs",
    ],
    [
        "Dovecot",
        "dovecot-core",
        "IMAP and POP3 login with our daemon as auth process",
        "PLAIN LOGIN APOP",
        "mail stored as the right user, expired, outage, away, death, reload; by arguments and by links",
        "dovecot_login.rs",
    ],
    [
        "Dovecot",
        "dovecot-lmtpd",
        "LMTP and `doveadm` on our userdb",
        "-",
        "delivery as the right user, unknown recipient, outage, away, death, reload, listing",
        "dovecot_lmtp.rs",
    ],
    [
        "chasquid",
        "chasquid",
        "its Dovecot authentication",
        "PLAIN",
        "STARTTLS and TLS, recipients, expired, outage, away, death, reload",
        "chasquid.rs",
    ],
    [
        "Prosody",
        "prosody",
        "`mod_auth_dovecot` of `prosody-modules`",
        "PLAIN",
        "every state of a system account, disabled, address, outage, away, restart, death, reload",
        "prosody.rs, account_peers.rs",
    ],
    [
        "Cyrus imtest, pop3test, smtptest",
        "cyrus-clients",
        "our IMAP, POP3 and submission",
        "PLAIN LOGIN CRAM-MD5 DIGEST-MD5 SCRAM-SHA-1 SCRAM-SHA-256",
        "STARTTLS and TLS, every state of a system account, outage, reload",
        "cyrus_clients.rs, account_peers.rs",
    ],
    [
        "doveadm",
        "dovecot-core",
        "`auth test`, `auth login`, `auth lookup`, `user`",
        "PLAIN",
        "listing",
        "auth_sockets.rs",
    ],
    [
        "testsaslauthd",
        "sasl2-bin",
        "the mux",
        "-",
        "realm, every state of a system account, expired, outage, away, restart, death, reload",
        "auth_sockets.rs, cyrus.rs, account_peers.rs",
    ],
    [
        "GNU SASL",
        "gsasl",
        "our IMAP and submission; Postfix",
        "PLAIN LOGIN CRAM-MD5 DIGEST-MD5 SCRAM-SHA-1 SCRAM-SHA-256 and both -PLUS",
        "stored keys",
        "mechanisms.rs, postfix_depth.rs",
    ],
    [
        "msmtp",
        "msmtp",
        "our submission; Postfix",
        "CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256",
        "stored keys",
        "mechanisms.rs, postfix_depth.rs",
    ],
    [
        "mpop",
        "mpop",
        "our POP3",
        "CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256",
        "APOP refused where not offered",
        "mechanisms.rs",
    ],
    [
        "offlineimap",
        "offlineimap3",
        "our IMAP",
        "PLAIN",
        "mirrors both ways: flags, deletions, folders and messages made here and there",
        "clients_more.rs",
    ],
    [
        "Mail::IMAPClient",
        "libmail-imapclient-perl",
        "our IMAP",
        "LOGIN",
        "every answer taken apart: envelopes, structures, searches, copies and moves, IDLE",
        "clients_more.rs",
    ],
];

/// The upstream part of a Debian package's version: of the installed one, else of the one to be had.
fn version(package: &str) -> Option<String> {
    let said = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).env("LC_ALL", "C.UTF-8").output().ok()?;
        Some(String::from_utf8_lossy(&out.stdout).into_owned()).filter(|text| !text.trim().is_empty())
    };
    let text = said("dpkg-query", &["-W", "-f", "${Version}", package]).or_else(|| {
        let text = said("apt-cache", &["show", "--no-all-versions", package])?;
        text.lines().find_map(|line| line.strip_prefix("Version: ").map(str::to_owned))
    })?;
    let text = text.split_once(':').map_or(text.as_str(), |(_, rest)| rest);
    let upstream = text.split(['-', '+']).next()?;
    Some(upstream.to_owned())
}

fn table(version: impl Fn(&str) -> String) -> String {
    let mut out = String::from(
        "| Program | Version | Way in | Mechanisms | Also tested | In `tests/interop` |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for [program, package, way, mechanisms, also, file] in ROWS {
        let version = version(package);
        let _ = writeln!(out, "| {program} | {version} | {way} | {mechanisms} | {also} | {file} |");
    }
    out
}

#[test]
fn the_manual_lists_what_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/interop.md");
    let page = fs::read_to_string(&path).expect("docs/interop.md");
    let (head, rest) = page.split_once(BEGIN).expect("begin of the table");
    let (written, tail) = rest.split_once(END).expect("end of the table");
    let fresh = table(|package| version(package).unwrap_or_else(|| "?".to_owned()));
    if std::env::var_os("POSTERN_WRITE_GENERATED").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{fresh}{END}{tail}")).expect("docs/interop.md");
        return;
    }
    let versionless = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                line.splitn(4, '|').enumerate().filter(|(i, _)| *i != 2).map(|(_, cell)| cell).collect()
            })
            .collect()
    };
    assert_eq!(
        versionless(written),
        versionless(&fresh),
        "docs/interop.md is out of date: POSTERN_WRITE_GENERATED=1 writes it"
    );
    if written != fresh {
        println!("other versions here than in docs/interop.md:\n{fresh}");
    }
    for [program, _, way, _, also, files] in ROWS {
        let read = |file: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(file);
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
        };
        let text: String = files.split(", ").map(read).collect();
        // What the row claims, its tests do.
        for (word, code) in [
            ("every state", "states()"),
            ("outage", "break_backend()"),
            ("away", "gate.stop()"),
            ("restart", "gate.launch()"),
            ("reload", "&[\"reload\"]"),
            ("death", "Signal::SIGKILL"),
        ] {
            assert!(!also.contains(word) || text.contains(code), "{program}, {way}: no test for {word}");
        }
    }
}
