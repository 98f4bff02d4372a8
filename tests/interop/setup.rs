//! `postern setup` on machines as they come from the distribution: shown, done, used, done again, taken back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::private::{account, unpacked};
use crate::reference::self_signed;
use crate::stock::{PASSWORD, Stock, USER};
use crate::support::{have, run, show, stdout, wait_for};

/// What Debian's installation makes of its own pieces for an “Internet Site”.
fn debian_main_cf() -> String {
    let piece =
        |name: &str| fs::read_to_string(format!("/usr/share/postfix/{name}")).expect("Debian's Postfix");
    piece("main.cf.debian")
        + &piece("main.cf.tls")
        + "smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination\n\
           myhostname = mail.example.test\nalias_maps = hash:/etc/aliases\nalias_database = hash:/etc/aliases\n\
           myorigin = /etc/mailname\nmydestination = $myhostname, example.test, localhost\nrelayhost = \n\
           mynetworks = 127.0.0.0/8\nmailbox_size_limit = 0\nrecipient_delimiter = +\ninet_interfaces = all\n\
           inet_protocols = ipv4\n"
}

/// A machine with Postfix as installed, its queue as made at the installation.
fn with_postfix(main: &str) -> Option<Stock> {
    if !have(&["postfix", "swaks"]) {
        return None;
    }
    let stock = Stock::start(None)?;
    fs::write(stock.file("/etc/postfix/main.cf"), main).expect("main.cf");
    fs::copy("/etc/postfix/master.cf.proto", stock.file("/etc/postfix/master.cf")).expect("master.cf");
    fs::write(stock.file("/etc/mailname"), "example.test\n").expect("mailname");
    fs::write(stock.file("/etc/aliases"), "postmaster: root\n").expect("aliases");
    fs::create_dir(stock.file("/var/spool/postfix")).expect("queue");
    fs::create_dir(stock.file("/var/lib/postfix")).expect("data");
    chown(stock.file("/var/lib/postfix"), Some(account("postfix").0), None).expect("owner");
    // A certificate where ssl-cert puts it.
    let (key, cert) = ("/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/ssl/certs/ssl-cert-snakeoil.pem");
    fs::create_dir_all(stock.file("/etc/ssl/private")).expect("folder");
    stock.sure("openssl", &self_signed(key, cert));
    stock.sure("newaliases", &[]);
    Some(stock)
}

fn text(out: &std::process::Output) -> String {
    assert!(out.status.success(), "{}", show(out));
    stdout(out)
}

#[test]
fn stock_postfix_takes_logins_after_two_commands() {
    let main = debian_main_cf();
    let Some(mut stock) = with_postfix(&main) else { return };
    fs::set_permissions(stock.file("/etc/postfix/main.cf"), fs::Permissions::from_mode(0o640)).expect("mode");
    let master = stock.read("/etc/postfix/master.cf");
    stock.service("postfix", &["start"]);

    // Shown, and not done.
    let shown = text(&stock.postern("setup postfix"));
    for line in [
        "+smtpd_sasl_path = private/auth\n",
        "+path = \"/var/spool/postfix/private/auth\"\n",
        "+smtpd_tls_auth_only = yes\n",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    assert_eq!(stock.read("/etc/postfix/main.cf"), main);
    assert!(!stock.file("/etc/postern").exists());

    // The two commands.
    text(&stock.postern("setup postfix --apply"));
    stock.start_postern();
    for (mechanism, user, password, code, reply) in [
        ("PLAIN", USER, PASSWORD, 0, "235 "),
        ("LOGIN", "alice@example.test", PASSWORD, 0, "235 "),
        ("PLAIN", USER, "wrong", 28, "535 "),
    ] {
        let (ended, said) = stock.swaks(user, password, &["--tls", "--auth", mechanism]);
        assert!(
            ended == Some(code) && said.contains(reply),
            "{mechanism} {user}: {ended:?}\n{said}\n{}",
            stock.log()
        );
    }
    wait_for("the mail", || {
        fs::read_to_string(stock.file("/var/mail/alice")).ok().filter(|mail| mail.contains("Subject: test"))
    });
    assert!(stock.log().contains("user=alice@example.test"), "{}", stock.log());

    // Nothing more to do; port 587 on demand, with Postern running.
    assert_eq!(text(&stock.postern("setup postfix")), "nothing to do: everything is set up\n");
    let data: serde_json::Value =
        serde_json::from_str(&text(&stock.postern("setup postfix --json"))).expect("json");
    assert_eq!(data["nothing_to_do"], true);
    text(&stock.postern("setup postfix --submission --apply"));
    let (ended, said) = stock.swaks(USER, PASSWORD, &["--port", "587", "--tls", "--auth", "PLAIN"]);
    assert!(ended == Some(0) && said.contains("235 "), "{said}");

    // And back, although somebody has written into main.cf meanwhile.
    let extended = stock.read("/etc/postfix/main.cf") + "biff = yes\n";
    fs::write(stock.file("/etc/postfix/main.cf"), extended).expect("main.cf");
    text(&stock.postern("setup postfix --undo"));
    assert_eq!(stock.read("/etc/postfix/main.cf"), main.clone() + "biff = yes\n");
    assert_eq!(stock.read("/etc/postfix/master.cf"), master);
    let meta = fs::metadata(stock.file("/etc/postfix/main.cf")).expect("main.cf");
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o640, 0));
    assert!(!stock.file("/etc/postern/postern.toml").exists());
    let left: Vec<_> = fs::read_dir(stock.file("/etc/postfix")).expect("folder").flatten().collect();
    assert!(!left.iter().any(|entry| entry.file_name().to_string_lossy().contains("postern")), "{left:?}");
    assert!(text(&stock.postern("setup postfix --undo")).contains("nothing to do"));
}

#[test]
fn users_of_a_file_made_by_root_can_be_read_by_the_daemon() {
    let Some(mut stock) = with_postfix(&debian_main_cf()) else { return };
    text(&stock.postern("setup postfix --users /etc/postern/users --apply --no-reload"));
    let add = ["user", "add", "carol", "--password-stdin"];
    text(&run(stock.command(&stock.program(), &add), "pw3\n"));
    let made = fs::metadata(stock.file("/etc/postern/users")).expect("users");
    assert_eq!((made.mode() & 0o777, made.uid()), (0o640, 0));
    stock.start_postern();
    stock.service("postfix", &["start"]);
    let (ended, said) = stock.swaks("carol", "pw3", &["--tls", "--auth", "PLAIN", "--quit-after", "AUTH"]);
    assert!(ended == Some(0) && said.contains("235 "), "{said}\n{}", stock.log());
    // Rights that somebody has set stay.
    fs::set_permissions(stock.file("/etc/postern/users"), fs::Permissions::from_mode(0o644)).expect("mode");
    text(&stock.postern("user remove carol"));
    assert_eq!(fs::metadata(stock.file("/etc/postern/users")).expect("users").mode() & 0o777, 0o644);
}

#[test]
fn postfix_with_other_settings_is_set_right_or_left_alone() {
    // What Postfix cannot read stays.
    let Some(stock) = with_postfix(&debian_main_cf()) else { return };
    fs::write(stock.file("/etc/postfix/main.cf"), debian_main_cf() + "smtpd_sasl_type dovecot\n")
        .expect("main.cf");
    let refused = stock.postern("setup postfix --apply");
    assert!(!refused.status.success() && !stock.file("/etc/postern").exists(), "{}", show(&refused));

    // Another daemon, such as Dovecot, keeps its socket.
    fs::write(stock.file("/etc/postfix/main.cf"), debian_main_cf()).expect("main.cf");
    let taken = stock.file("/var/spool/postfix/private/auth");
    fs::create_dir_all(taken.parent().expect("private")).expect("folder");
    let other = std::os::unix::net::UnixListener::bind(&taken).expect("socket");
    let shown = text(&stock.postern("setup postfix"));
    assert!(
        shown.contains("+smtpd_sasl_path = private/postern\n")
            && shown.contains("+path = \"/var/spool/postfix/private/postern\"\n"),
        "{shown}"
    );
    drop(other);
    fs::remove_file(&taken).expect("socket");

    // Cyrus SASL until now, an absolute path in the chroot, options of a service, a file of ours with a wrong mode.
    let main = debian_main_cf()
        + "smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = cyrus\nsmtpd_sasl_path =\n   /run/dovecot/auth\n";
    fs::write(stock.file("/etc/postfix/main.cf"), &main).expect("main.cf");
    let master =
        stock.read("/etc/postfix/master.cf").replacen("smtpd\n", "smtpd -o smtpd_sasl_path=smtpd\n", 1);
    fs::write(stock.file("/etc/postfix/master.cf"), master).expect("master.cf");
    let ours = "version = 1\nhostname = \"mail.example.test\"\nrun_as = \"nobody\"\n\n# mine\n[[auth.listener]]\nname = \"mta\"\ntype = \"client\"\n\
                path = \"/var/spool/postfix/private/auth\"\nmode = \"0600\" # too narrow\n\n[[auth.passdb]]\ndriver = \"shadow\"\n";
    fs::create_dir(stock.file("/etc/postern")).expect("folder");
    fs::write(stock.file("/etc/postern/postern.toml"), ours).expect("ours");
    let out = stock.postern("setup postfix --apply --no-reload");
    let said = text(&out);
    assert!(!said.contains("useradd"), "{said}");
    let made = stock.read("/etc/postern/postern.toml");
    assert!(
        made.contains("mode = \"0660\"\n")
            && made.contains("owner = \"postfix\"\n")
            && made.contains("# mine\n"),
        "{made}"
    );
    assert!(
        stock.read("/etc/postfix/main.cf").ends_with(
            "smtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth\nsmtpd_tls_auth_only = yes\n"
        ) || stock.read("/etc/postfix/main.cf").contains("smtpd_sasl_path = private/auth\n")
    );
    assert!(stock.read("/etc/postfix/master.cf").contains("smtpd -o smtpd_sasl_path=private/auth\n"));
    assert!(text(&stock.postern("setup postfix")).contains("nothing to do"));
    assert!(text(&stock.postern("config check")).contains("is right"));
    text(&stock.postern("setup postfix --undo"));
    assert_eq!(stock.read("/etc/postfix/main.cf"), main);
    assert_eq!(stock.read("/etc/postern/postern.toml"), ours);
}

#[test]
fn saslauthds_place_is_taken_for_a_chrooted_postfix() {
    let main = debian_main_cf() + "smtpd_sasl_auth_enable = yes\nsmtpd_tls_auth_only = yes\n";
    let Some(mut stock) = with_postfix(&main) else { return };
    if !have(&["testsaslauthd"]) {
        return;
    }
    let defaults = stock.read("/etc/default/saslauthd").replace("#START", "START") + "START=yes\n";
    fs::write(stock.file("/etc/default/saslauthd"), &defaults).expect("defaults");
    for service in ["smtp", "other"] {
        let unix = "auth required pam_unix.so\naccount required pam_unix.so\n";
        fs::write(stock.file("/etc/pam.d").join(service), unix).expect("pam");
    }
    let printed = stock.path().join("imported.toml");
    fs::write(&printed, text(&stock.postern("setup saslauthd --import"))).expect("imported");
    assert!(
        text(&stock.postern(&format!("config check --config {}", printed.display()))).contains("is right")
    );
    text(&stock.postern("setup saslauthd --apply"));
    assert!(stock.read("/etc/default/saslauthd").ends_with("START=no\n"));
    assert!(stock.read("/etc/postfix/sasl/smtpd.conf").contains("saslauthd_path: /var/run/saslauthd/mux\n"));
    stock.start_postern();
    let mux = fs::metadata(stock.file("/run/saslauthd/mux")).expect("mux");
    assert_eq!(mux.mode() & 0o777, 0o660);
    let folder = fs::metadata(stock.file("/var/spool/postfix/var/run/saslauthd")).expect("folder");
    assert_eq!(folder.mode() & 0o7777, 0o710);
    let ask = |password: &str| stock.run("testsaslauthd", &["-u", USER, "-p", password, "-s", "smtp"]);
    assert!(ask(PASSWORD).status.success(), "{}\n{}", show(&ask(PASSWORD)), stock.log());
    assert!(!ask("wrong").status.success());
    stock.service("postfix", &["start"]);
    for (password, code, reply) in [(PASSWORD, 0, "235 "), ("wrong", 28, "535 ")] {
        let (ended, said) = stock.swaks(USER, password, &["--tls", "--auth", "PLAIN"]);
        assert!(ended == Some(code) && said.contains(reply), "{ended:?}\n{said}\n{}", stock.log());
    }
    assert!(text(&stock.postern("setup saslauthd")).contains("nothing to do"));
    text(&stock.postern("setup saslauthd --undo"));
    assert_eq!(stock.read("/etc/default/saslauthd"), defaults);
    assert!(!stock.file("/etc/postfix/sasl/smtpd.conf").exists());
}

/// Debian's Exim, unpacked, with the answers of its installation.
fn with_exim(split: bool) -> Option<Stock> {
    let packages = ["exim4-daemon-heavy", "exim4-base", "exim4-config", "libmariadb3", "libspf2-2"];
    if !have(&["swaks"]) {
        return None;
    }
    let root = unpacked(&packages)?;
    let stock = Stock::start(Some(&root))?;
    stock.sure(
        "useradd",
        &["--system", "--user-group", "--no-create-home", "--home-dir", "/var/spool/exim4", "Debian-exim"],
    );
    for folder in
        ["/var/spool/exim4", "/var/spool/exim4/input", "/var/log/exim4", "/var/lib/exim4", "/run/exim4"]
    {
        fs::create_dir_all(stock.file(folder)).expect("folder");
        stock.sure("chown", &["Debian-exim:Debian-exim", folder]);
    }
    let answers = format!(
        "dc_eximconfig_configtype='local'\ndc_other_hostnames='example.test'\ndc_local_interfaces='127.0.0.1'\ndc_readhost=''\n\
         dc_relay_domains=''\ndc_minimaldns='false'\ndc_relay_nets=''\ndc_smarthost=''\nCFILEMODE='644'\ndc_use_split_config='{split}'\n\
         dc_hide_mailname=''\ndc_mailname_in_oh='true'\ndc_localdelivery='mail_spool'\n"
    );
    fs::write(stock.file("/etc/exim4/update-exim4.conf.conf"), answers).expect("answers");
    fs::write(stock.file("/etc/mailname"), "example.test\n").expect("mailname");
    fs::write(stock.file("/etc/aliases"), "postmaster: root\n").expect("aliases");
    // TLS as Debian's manual has it.
    let (key, cert) = ("/etc/exim4/exim.key", "/etc/exim4/exim.crt");
    stock.sure("openssl", &self_signed(key, cert));
    stock.sure("chown", &["root:Debian-exim", key, cert]);
    stock.sure("chmod", &["640", key, cert]);
    fs::write(stock.file("/etc/exim4/exim4.conf.localmacros"), "MAIN_TLS_ENABLE = yes\n").expect("macros");
    stock.sure("update-exim4.conf", &[]);
    Some(stock)
}

fn exim_takes_logins(split: bool) {
    let Some(mut stock) = with_exim(split) else { return };
    stock.service("exim4", &["-bd", "-q30m"]);
    let template = stock.read("/etc/exim4/exim4.conf.template");
    let said = text(&stock.postern("setup exim --apply"));
    for line in ["Exim has read its files again", "systemctl enable --now postern"] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    stock.start_postern();
    // It was told to; when it does is its own affair.
    let log = || fs::read_to_string(stock.file("/var/log/exim4/mainlog")).unwrap_or_default();
    wait_for("Exim with its new files", || (log().matches("daemon started").count() > 1).then_some(()));
    for (mechanism, password, code, reply) in
        [("PLAIN", PASSWORD, 0, "235 "), ("LOGIN", PASSWORD, 0, "235 "), ("PLAIN", "wrong", 28, "535 ")]
    {
        let (ended, said) = stock.swaks(USER, password, &["--tls", "--auth", mechanism]);
        let log = log();
        assert!(
            ended == Some(code) && said.contains(reply),
            "{mechanism}: {ended:?}\n{said}\n{log}\n{}",
            stock.log()
        );
    }
    assert!(text(&stock.postern("setup exim")).contains("nothing to do"));
    text(&stock.postern("setup exim --undo"));
    assert_eq!(stock.read("/etc/exim4/exim4.conf.template"), template);
    assert!(!stock.file("/etc/exim4/conf.d/auth/20_postern").exists());
    assert!(!stock.read("/var/lib/exim4/config.autogenerated").contains("postern"));
}

#[test]
fn stock_exim_in_pieces_takes_logins_after_two_commands() {
    exim_takes_logins(true);
}

#[test]
fn stock_exim_in_one_file_takes_logins_after_two_commands() {
    exim_takes_logins(false);
}
