//! `postern setup dovecot-import` on configurations as the how-tos have them (`tests/imports`): in the form of Dovecot 2.3,
//! printed by the real `doveconf -n`, and in that of 2.4. Those whose databases exist start and log a user in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::stock::{PASSWORD, Stock, USER};
use crate::support::{have, show, stderr};

/// Both forms.
const FORMS: [&str; 2] = ["2.3", "2.4"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/imports").join(name)
}

/// A machine with Dovecot's files and every account that the how-tos make.
fn machine() -> Option<Stock> {
    if !have(&["doveconf", "curl", "openssl"]) {
        return None;
    }
    let stock = Stock::start(None)?;
    stock.sure("groupadd", &["--system", "postern"]);
    for name in ["vmail", "postern-auth", "postern-authw", "postern-smtp", "postern-imap"] {
        stock.sure(
            "useradd",
            &["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
        );
    }
    for folder in ["/etc/dovecot/private", "/var/mail/vhosts", "/etc/postern"] {
        fs::create_dir_all(stock.file(folder)).expect("folder");
    }
    stock.sure("chown", &["vmail:vmail", "/var/mail/vhosts"]);
    let (key, cert) = ("/etc/dovecot/private/dovecot.key", "/etc/dovecot/private/dovecot.pem");
    let name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
    let args =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    stock.sure("openssl", &[&args[..], &name, &["-keyout", key, "-out", cert]].concat());
    stock.sure("chmod", &["600", key]);
    // Nothing of the installed configuration.
    fs::write(stock.file("/etc/hostname"), "mail\n").expect("hostname");
    Some(stock)
}

/// Imports one form into the system's file; what is left must be exactly what is written down.
fn import(stock: &Stock, name: &str, form: &str) -> String {
    let ours = stock.file("/etc/postern/postern.toml");
    let _ = fs::remove_file(&ours);
    let out = if form == "2.3" {
        fs::copy(folder(name).join("dovecot.conf"), stock.file("/etc/dovecot/dovecot.conf")).expect("copy");
        stock.postern("setup dovecot-import --output /etc/postern/postern.toml")
    } else {
        let text = stock.path().join("doveconf");
        fs::copy(folder(name).join("doveconf-2.4"), &text).expect("copy");
        stock.postern(&format!("setup dovecot-import {} --output /etc/postern/postern.toml", text.display()))
    };
    assert!(out.status.success(), "{name} {form}: {}", show(&out));
    let said = stderr(&out);
    // Numbers of lines are doveconf's.
    let left: String = said
        .lines()
        .filter_map(|line| Some(line.strip_prefix("  line ")?.split_once(": ")?.1.to_owned() + "\n"))
        .collect();
    let file = folder(name).join(format!("left-{form}"));
    if std::env::var_os("POSTERN_WRITE_GENERATED").is_some() {
        fs::write(&file, &left).expect("written");
    }
    assert_eq!(left, fs::read_to_string(&file).unwrap_or_default(), "{name} {form}: {said}");
    let made = fs::read_to_string(&ours).expect("postern.toml");
    for line in left.lines() {
        let line: String = line.chars().take(60).collect();
        assert!(made.contains(&line), "the file tells it, too: {line}\n{made}");
    }
    made
}

/// Starts what was imported and reads one message that was there before, over IMAP.
fn reads_mail(stock: &mut Stock, port: u16, user: &str, password: &str, maildir: &str, owner: &str) {
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(stock.file(maildir).join(sub)).expect("maildir");
    }
    let text = "From: a@example.test\r\nSubject: there before\r\n\r\nhello\r\n";
    fs::write(stock.file(maildir).join("cur/1700000000.1.mail:2,S"), text).expect("message");
    let top = maildir.split('/').take(4).collect::<Vec<_>>().join("/");
    stock.sure("chown", &["-R", owner, &top]);
    stock.start_postern();
    let url = format!("imaps://localhost:{port}/INBOX;MAILINDEX=1");
    let login = format!("{user}:{password}");
    let curl = |login: &str| {
        let args =
            ["--silent", "--show-error", "--max-time", "30", "--cacert", "/etc/dovecot/private/dovecot.pem"];
        stock.run("curl", &[&args[..], &["--user", login, &url]].concat())
    };
    let out = curl(&login);
    assert!(show(&out).contains("Subject: there before"), "{}\n{}", show(&out), stock.log());
    let out = curl(&format!("{user}:wrong"));
    assert_eq!(out.status.code(), Some(67), "{}\n{}", show(&out), stock.log());
    stop(stock);
}

fn stop(stock: &mut Stock) {
    let out = stock.postern("stop");
    assert!(out.status.success(), "{}\n{}", show(&out), stock.log());
    stock.ended();
}

/// What was imported does not start, and says why.
fn refuses(stock: &Stock, driver: &str) {
    let out = stock.postern("run");
    assert_eq!(out.status.code(), Some(78), "{}", show(&out));
    assert!(stderr(&out).contains(&format!("there is no driver `{driver}`")), "{}", show(&out));
}

fn passwd_file(stock: &Stock, path: &str, text: &str) {
    fs::write(stock.file(path), text).expect("users");
    fs::set_permissions(stock.file(path), fs::Permissions::from_mode(0o640)).expect("mode");
    stock.sure("chown", &["root:postern-auth", path]);
}

#[test]
fn system_users_by_pam() {
    let Some(mut stock) = machine() else { return };
    fs::write(
        stock.file("/etc/pam.d/dovecot"),
        "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n",
    )
    .expect("pam");
    for form in FORMS {
        let made = import(&stock, "pam-system-users", form);
        assert!(made.contains("mailboxes = \"system\""), "{made}");
        reads_mail(&mut stock, 993, USER, PASSWORD, "/home/alice/Maildir", USER);
    }
}

#[test]
fn virtual_users_in_a_passwd_file() {
    let Some(mut stock) = machine() else { return };
    passwd_file(&stock, "/etc/dovecot/users", "bob@example.test:{PLAIN}pw 1\n");
    for form in FORMS {
        let made = import(&stock, "passwd-file-virtual-users", form);
        assert!(made.contains("run_as = \"vmail\"") && !made.contains(":143"), "{made}");
        reads_mail(&mut stock, 993, "bob@example.test", "pw 1", "/var/mail/vhosts/example.test/bob", "vmail");
    }
}

#[test]
fn users_in_databases_that_postern_does_not_have() {
    let Some(stock) = machine() else { return };
    for driver in ["sql", "ldap"] {
        for form in FORMS {
            let made = import(&stock, driver, form);
            assert!(!made.contains("secret"), "{made}");
            refuses(&stock, driver);
        }
    }
    // Output is not overwritten.
    let again = stock.postern("setup dovecot-import --output /etc/postern/postern.toml");
    assert!(again.status.code() == Some(73) && stderr(&again).contains("exists"), "{}", show(&again));
}

#[test]
fn master_users() {
    let Some(mut stock) = machine() else { return };
    passwd_file(&stock, "/etc/dovecot/users-example.test", "bob:{PLAIN}pw\nmallory:{PLAIN}pw\n");
    passwd_file(&stock, "/etc/dovecot/master-users", "admin@example.test:{PLAIN}master\n");
    passwd_file(&stock, "/etc/dovecot/deny-users", "mallory@example.test\n");
    for form in FORMS {
        import(&stock, "master-users", form);
        let place = "/var/mail/vhosts/example.test/bob/Maildir";
        reads_mail(&mut stock, 993, "bob", "pw", place, "vmail");
        reads_mail(&mut stock, 993, "bob*admin", "master", place, "vmail");
    }
}

#[test]
fn in_a_container() {
    let Some(mut stock) = machine() else { return };
    for form in FORMS {
        import(&stock, "container", form);
        let refused = stock.postern("run");
        assert!(stderr(&refused).contains("/etc/postern/static-password"), "{}", show(&refused));
        fs::write(stock.file("/etc/postern/static-password"), "summersun\n").expect("password");
        fs::set_permissions(stock.file("/etc/postern/static-password"), fs::Permissions::from_mode(0o600))
            .expect("mode");
        reads_mail(&mut stock, 31993, "carol", "summersun", "/var/mail/vhosts/carol/Maildir", "vmail");
        fs::remove_file(stock.file("/etc/postern/static-password")).expect("removed");
    }
}

#[test]
fn users_of_a_sasldb() {
    if !have(&["saslpasswd2"]) {
        return;
    }
    let Some(stock) = machine() else { return };
    let mut command = stock.command("saslpasswd2", &["-p", "-c", "-u", "example.test", "carol"]);
    command.env("SASL_CONF_PATH", "/nonexistent");
    let out = crate::support::run(command, "sasl pw\n");
    assert!(out.status.success(), "{}", show(&out));
    let printed =
        stock.sure(&crate::support::postern().get_program().to_string_lossy(), &["setup", "sasldb-import"]);
    assert!(printed.contains("carol@example.test:{PLAIN"), "{printed}");
    let out = stock.postern("setup sasldb-import --output /etc/postern/users");
    assert!(out.status.success(), "{}", show(&out));
    let mode = fs::metadata(stock.file("/etc/postern/users")).expect("users").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}
