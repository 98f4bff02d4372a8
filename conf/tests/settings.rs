//! Settings on their way: file → settings → file, slices → JSON → slices, and the generated texts.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use conf::{
    AuthListenerKind, AuthSlice, EmbeddedOptions, ImapSlice, PassdbDriver, Settings, SmtpSlice,
    embedded_default, load,
};

const ORIGIN: &str = "/etc/postern/postern.toml";

fn embedded(state_dir: &Path) -> Settings {
    embedded_default(&EmbeddedOptions {
        state_dir: state_dir.to_owned(),
        hostname: "mx.example.org".to_owned(),
        port_base: 20_000,
        listen: vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        run_as: None,
        allow_users: vec!["1000".to_owned()],
    })
}

#[test]
fn a_file_with_everything() {
    let text = r#"
version = 1
hostname = "MX.example.org"
state_dir = "../../srv/mail"
grace_time = "1m30s"
[auth]
default_domain = ""
mechanisms = ["plain", "scram-sha-256"]
master_user_separator = "*"
[[auth.passdb]]
driver = "passwd-file"
path = "users"
result_failure = "return-fail"
[[auth.passdb]]
driver = "passwd-file"
path = "/etc/users/%{user | domain}"
default_fields = { zeta = "1", alpha = "%{user}", flag = true, uid = 1000 }
[[auth.passdb]]
name = "system"
driver = "pam"
session = true
[[auth.userdb]]
driver = "static"
override_fields = { uid = "vmail", home = "/srv/%{user}" }
[[auth.listener]]
name = "postfix"
type = "client"
path = ["/var/spool/postfix/private/auth", "sockets/auth"]
owner = "postfix"
mode = "0660"
passdb = ["system"]
reply_deadline = "4500ms"
[[tls.certificate]]
chain = "/etc/ssl/a.pem"
key = "/etc/ssl/a.key"
[[imap.listener]]
name = "imaps"
tls = "implicit"
address = "0.0.0.0:993"
"#;
    let settings = load(text, Path::new(ORIGIN)).expect("right");
    assert_eq!(settings.hostname, "mx.example.org");
    assert_eq!(settings.state_dir, Path::new("/etc/postern/../../srv/mail"));
    assert_eq!(settings.grace_time, Duration::from_secs(90));
    assert_eq!(settings.auth.default_domain.as_deref(), Some(""));
    assert_eq!(settings.auth.mechanisms, ["PLAIN", "SCRAM-SHA-256"]);
    assert_eq!(settings.auth.master_user_separator, Some('*'));
    assert_eq!(settings.smtp.local_domains, ["mx.example.org"]);
    assert_eq!(settings.mail.home, "/etc/postern/../../srv/mail/mail/%{user | without_default_domain}");
    let names: Vec<&str> = settings.auth.passdb.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["passwd-file", "passwd-file-2", "system"]);
    let paths: Vec<&str> = settings
        .auth
        .passdb
        .iter()
        .filter_map(|p| match &p.driver {
            PassdbDriver::PasswdFile { path, .. } => Some(path.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(paths, ["/etc/postern/../../srv/mail/users", "/etc/users/%{user | domain}"]);
    let fields: Vec<(&str, &str)> =
        settings.auth.passdb[1].rules.default_fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(fields, [("zeta", "1"), ("alpha", "%{user}"), ("flag", "yes"), ("uid", "1000")]);
    let postfix = &settings.auth.listener[0];
    assert_eq!((postfix.mode, postfix.reply_deadline), (0o660, Duration::from_millis(4500)));
    assert_eq!(postfix.path.len(), 2);
    // A front brings its own sockets to the daemon.
    let fronts: Vec<&str> = settings.auth.listener[1..].iter().map(|l| l.name.as_str()).collect();
    assert_eq!(fronts, ["fronts-login", "fronts-session", "fronts-userdb"]);
}

#[test]
fn what_show_prints_loads_to_the_same() {
    let texts = ["version = 1", "version = 1\n[log]\nlevel = \"auth=debug,info\"\n"];
    for text in texts {
        let settings = load(text, Path::new(ORIGIN)).expect("right");
        assert_eq!(load(&settings.to_toml(), Path::new(ORIGIN)).expect("right"), settings);
    }
    let settings = embedded(Path::new("/srv/p"));
    let shown = settings.to_toml();
    assert_eq!(load(&shown, Path::new(ORIGIN)).expect("right"), settings, "{shown}");
    let defaults = Settings::defaults();
    assert_eq!(load(&defaults.to_toml(), Path::new(ORIGIN)).expect("right"), defaults);
}

#[test]
fn embedded_default_is_what_the_manual_says() {
    let settings = embedded(Path::new("/srv/p"));
    let smtp: Vec<(String, u16)> =
        settings.smtp.listener.iter().map(|l| (l.name.clone(), l.address[0].port())).collect();
    assert_eq!(
        smtp,
        [("smtp".to_owned(), 20_025), ("submission".to_owned(), 20_587), ("submissions".to_owned(), 20_465)]
    );
    assert!(settings.imap.listener.iter().all(|l| l.address.len() == 2));
    assert_eq!(settings.limits.auth_connections, 3000);
    assert_eq!(settings.limits.connections_per_address, 100);
    assert_eq!(settings.auth.default_domain.as_deref(), Some("mx.example.org"));
    let modes: Vec<(&str, u32)> = settings.auth.listener.iter().map(|l| (l.name.as_str(), l.mode)).collect();
    assert_eq!(
        modes,
        [
            ("auth-client", 0o666),
            ("auth-login", 0o666),
            ("auth-userdb", 0o666),
            ("auth-master", 0o600),
            ("saslauthd", 0o666),
            ("fronts-login", 0o600),
            ("fronts-session", 0o600),
            ("fronts-userdb", 0o600),
        ]
    );
    let sockets = settings.auth_sockets();
    assert_eq!(sockets.login, Path::new("/srv/p/sockets/fronts-login"));
    assert_eq!(sockets.session, Path::new("/srv/p/sockets/fronts-session"));
    assert_eq!(sockets.userdb, Path::new("/srv/p/sockets/fronts-userdb"));
    assert_eq!(settings.auth.listener[5].kind, AuthListenerKind::Login);
}

#[test]
fn slices_survive_the_way_to_a_child() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut settings = embedded(folder.path());
    std::fs::create_dir(folder.path().join("tls")).expect("made");
    std::fs::write(folder.path().join("tls/cert.pem"), "chain").expect("written");
    std::fs::write(folder.path().join("tls/key.pem"), "the key").expect("written");
    std::fs::write(folder.path().join("pw"), "hunter2\n").expect("written");
    settings.auth.passdb[0].driver = PassdbDriver::Static {
        password_file: Some(folder.path().join("pw")),
        password_env: None,
        password: None,
        nopassword: false,
    };
    let auth = settings.auth_slice().expect("made");
    let PassdbDriver::Static { password: Some(password), .. } = &auth.auth.passdb[0].driver else {
        panic!("no password")
    };
    assert_eq!(password.expose(), "hunter2");
    assert!(!format!("{auth:?}").contains("hunter2"));
    assert!(!settings.to_toml().contains("hunter2"));
    assert_eq!(AuthSlice::from_json(&auth.to_json().expect("JSON")).expect("read"), auth);
    let smtp = settings.smtp_slice().expect("made");
    assert_eq!(smtp.tls.certificates[0].key.expose(), "the key");
    assert_eq!(SmtpSlice::from_json(&smtp.to_json().expect("JSON")).expect("read"), smtp);
    let imap = settings.imap_slice().expect("made");
    assert_eq!(ImapSlice::from_json(&imap.to_json().expect("JSON")).expect("read"), imap);
    assert!(ImapSlice::from_json(b"{}").is_err());
}

#[test]
fn missing_and_open_files_are_told_together() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("temporary folder");
    let settings = embedded(folder.path());
    let errors = conf::check_files(&settings, Path::new(ORIGIN)).expect_err("nothing is there");
    let titles: Vec<&str> = errors.problems().iter().map(|p| p.title.as_str()).collect();
    assert_eq!(titles.len(), 3, "{titles:#?}");
    assert!(titles[0].contains("the certificate") && titles[1].contains("the key"), "{titles:#?}");

    std::fs::create_dir(folder.path().join("tls")).expect("made");
    std::fs::write(folder.path().join("users"), "").expect("written");
    std::fs::write(folder.path().join("tls/cert.pem"), "not PEM").expect("written");
    let key = folder.path().join("tls/key.pem");
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("set");
    let errors = conf::check_files(&settings, Path::new(ORIGIN)).expect_err("wrong files");
    let report = errors.to_string();
    assert!(report.contains("not in PEM form") && report.contains("can be read by everybody"), "{report}");
    assert!(report.contains("chmod 0600"), "{report}");
}

#[test]
fn an_unreadable_file_is_a_mistake_like_others() {
    let errors = conf::load_file(Path::new("/nonexistent/postern.toml")).expect_err("not there");
    assert!(errors.to_string().contains("cannot read /nonexistent/postern.toml"), "{errors}");
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("p.toml");
    std::fs::write(&file, b"version = 1\n\xff\n").expect("written");
    let errors = conf::load_file(&file).expect_err("not UTF-8");
    assert_eq!(errors.problems()[0].line, 2);
}

#[test]
fn the_sample_loads_and_names_every_key() {
    let sample = conf::sample();
    let settings = load(&sample, Path::new(ORIGIN)).expect("the sample is right");
    assert_eq!(settings, Settings::defaults());
    for key in [
        "#grace_time = \"10s\"",
        "#mode = \"0600\"",
        "#[[auth.passdb]]",
        "driver = \"pam\"",
        "#max_message_size = \"25M\"",
    ] {
        assert!(sample.contains(key), "{key}");
    }
}

/// The committed texts are what the types say. `POSTERN_WRITE_GENERATED=1 cargo test -p conf` writes them.
#[test]
fn generated_files_are_fresh() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (path, text) in [("postern.toml", conf::sample()), ("../docs/configuration.md", conf::reference())] {
        let path = here.join(path);
        if std::env::var_os("POSTERN_WRITE_GENERATED").is_some() {
            std::fs::write(&path, &text).expect("written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{} is stale: run `POSTERN_WRITE_GENERATED=1 cargo test -p conf`",
            path.display()
        );
    }
}
