//! `conf/samples/system-users.toml` and the lines of `docs/system-users.md`, on a machine as it is after the installation.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::hostile::{Client, base64, bounded};
use crate::machine::Machine;
use crate::support::{run, show};

const PASSWORD: &str = "correct horse 7";

/// The block of the page below `<!-- tested: NAME -->`.
fn block(name: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/system-users.md");
    let page = fs::read_to_string(page).expect("the page");
    let marker = format!("<!-- tested: {name} -->\n```sh\n");
    let (_, rest) = page.split_once(&marker).unwrap_or_else(|| panic!("the page has no block {name}"));
    rest.split_once("\n```").expect("a fenced block").0.to_owned() + "\n"
}

/// Runs lines of the page as root on the machine.
fn play(machine: &Machine, lines: &str) -> Option<()> {
    let mut command = machine.command("sh")?;
    command.args(["-e", "-c", lines, "sh"]);
    let out = run(command, "");
    assert!(out.status.success(), "{lines}\n{}", show(&out));
    Some(())
}

/// The sample with the ports of the test.
fn write_sample(machine: &Machine, change: impl Fn(String) -> String) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/samples/system-users.toml");
    let mut text = fs::read_to_string(sample).expect("the sample");
    for offset in [25, 587, 465, 143, 993, 110, 995] {
        let address = format!("\"0.0.0.0:{offset}\"");
        assert!(text.contains(&address), "{address}");
        text = text.replace(&address, &format!("\"127.0.0.1:{}\"", machine.port(offset)));
    }
    fs::write(machine.path("etc/postern/postern.toml"), change(text)).expect("settings");
}

fn message(marker: &str) -> String {
    format!(
        "From: alice@mail.example.org\r\nTo: alice@mail.example.org\r\nSubject: {marker}\r\n\r\nHello.\r\n"
    )
}

async fn send(client: &mut Client, marker: &str) {
    for command in ["MAIL FROM:<alice@mail.example.org>", "RCPT TO:<alice@mail.example.org>"] {
        let answer = client.ask(command).await;
        assert!(answer.starts_with("250"), "{command}: {answer}");
    }
    assert!(client.ask("DATA").await.starts_with("354"));
    let answer = client.ask(&format!("{}.", message(marker))).await;
    assert!(answer.starts_with("250"), "{answer}");
}

async fn imap(machine: &Machine, password: &str) -> (Client, String) {
    let mut client = Client::tls_at(machine.address(993), machine.ca()).await;
    client.expect("* OK").await;
    client.send(format!("a LOGIN alice \"{password}\"\r\n")).await;
    let answer = client.until("a ").await.pop().expect("an answer");
    (client, answer)
}

/// Everything below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.symlink_metadata().expect("metadata").is_dir() {
            found.extend(fs::read_dir(&path).expect("folder").flatten().map(|entry| entry.path()));
        }
    }
    found
}

#[test]
fn the_sample_serves_system_users_on_a_clean_machine() {
    let Some(mut machine) = Machine::clean() else { return };
    let Some(()) = play(&machine, &block("accounts")) else { return };
    // What `maildirmake` put there is used as it is.
    let skel = "umask 077; rm -rf /etc/skel/Maildir; mkdir -p /etc/skel/Maildir/.Work; cd /etc/skel/Maildir\n\
                mkdir cur new tmp .Work/cur .Work/new .Work/tmp; touch .Work/maildirfolder\n";
    play(&machine, skel);
    play(&machine, &block("user"));
    let shadow = fs::read_to_string(machine.path("etc/shadow")).expect("shadow");
    assert!(shadow.contains("\nalice:$y$"), "not yescrypt: {shadow}");
    write_sample(&machine, |text| text);
    play(
        &machine,
        &format!("{} config check --config /etc/postern/postern.toml", env!("CARGO_BIN_EXE_postern")),
    );
    assert!(machine.launch(&[]));
    bounded(async {
        let mut smtp = Client::tls_at(machine.address(465), machine.ca()).await;
        smtp.expect("220").await;
        smtp.ask("EHLO client.test").await;
        let answer = smtp.ask(&format!("AUTH PLAIN {}", base64(format!("\0alice\0{PASSWORD}")))).await;
        assert!(answer.starts_with("235"), "{answer}\n{}", machine.log());
        send(&mut smtp, "submitted").await;
        let stream = tokio::net::TcpStream::connect(machine.address(25)).await.expect("port 25");
        let mut inbound = Client::over(stream);
        inbound.expect("220").await;
        inbound.ask("EHLO elsewhere.test").await;
        send(&mut inbound, "from outside").await;
        let answer = inbound.ask("MAIL FROM:<x@elsewhere.test>").await;
        assert!(answer.starts_with("250"), "{answer}");
        // Daemons and root get no mail, and nobody is told more about them.
        for user in ["root", "postern-auth", "daemon", "nobody-here"] {
            let answer = inbound.ask(&format!("RCPT TO:<{user}@mail.example.org>")).await;
            assert!(answer.starts_with("550"), "{user}: {answer}");
        }

        let (mut client, answer) = imap(&machine, PASSWORD).await;
        assert!(answer.starts_with("a OK"), "{answer}\n{}", machine.log());
        client
            .send("b SELECT INBOX\r\nc FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]\r\nd LIST \"\" *\r\n")
            .await;
        let lines = client.until("d ").await.join("\n");
        for part in ["* 2 EXISTS", "Subject: submitted", "Subject: from outside", "d OK"] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
        for (folder, attribute) in [
            ("Sent", "\\Sent"),
            ("Drafts", "\\Drafts"),
            ("Templates", ""),
            ("Junk", "\\Junk"),
            ("Trash", "\\Trash"),
            ("Work", ""),
        ] {
            let line = lines.lines().find(|line| line.starts_with("* LIST") && line.ends_with(folder));
            assert!(line.is_some_and(|line| line.contains(attribute)), "{folder}: {lines}");
        }
        let mut pop3 = Client::tls_at(machine.address(995), machine.ca()).await;
        pop3.expect("+OK").await;
        pop3.send(format!("USER alice\r\nPASS {PASSWORD}\r\nSTAT\r\n")).await;
        for answer in ["+OK", "+OK", "+OK 2 "] {
            pop3.expect(answer).await;
        }
        let (_, answer) = imap(&machine, "wrong").await;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
    });
    // Everything is hers, and nobody else can read it.
    let passwd = fs::read_to_string(machine.path("etc/passwd")).expect("passwd");
    let line = passwd.lines().find(|line| line.starts_with("alice:")).expect("alice");
    let uid: u32 = line.split(':').nth(2).and_then(|uid| uid.parse().ok()).expect("a uid");
    let mut messages = 0;
    for path in tree(&machine.path("home/alice")) {
        let meta = path.symlink_metadata().expect("metadata");
        assert_eq!(meta.uid(), uid, "{}", path.display());
        if path.starts_with(machine.path("home/alice/Maildir")) {
            let mode = meta.mode() & 0o7777;
            assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{} {mode:o}", path.display());
            let parent = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
            messages += usize::from(meta.is_file() && matches!(parent, Some("new" | "cur")));
        }
    }
    assert_eq!(messages, 2);
    machine.stop();
    with_pam_and_faillock(machine);
}

/// The same machine with the service file of the page.
fn with_pam_and_faillock(mut machine: Machine) {
    play(&machine, &block("faillock"));
    write_sample(&machine, |text| {
        let text = text.replace("[[auth.passdb]]\ndriver = \"shadow\"\n", "");
        text.replace(
            "# [[auth.passdb]]\n# driver = \"pam\"\n# service",
            "[[auth.passdb]]\ndriver = \"pam\"\nservice",
        ) + "\n[auth]\nfailure_delay = \"20ms\"\n[auth.penalty]\nenabled = false\n[auth.cache]\nsize = \"0\"\n"
    });
    assert!(machine.launch(&[]));
    bounded(async {
        let (_, answer) = imap(&machine, PASSWORD).await;
        assert!(answer.starts_with("a OK"), "{answer}\n{}", machine.log());
        for number in 0..5 {
            let (_, answer) = imap(&machine, &format!("guess {number}")).await;
            assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}\n{}", machine.log());
        }
        let (_, answer) = imap(&machine, PASSWORD).await;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "not locked: {answer}\n{}", machine.log());
    });
    play(&machine, "faillock --dir /var/lib/postern-faillock --user alice --reset");
    bounded(async {
        let (_, answer) = imap(&machine, PASSWORD).await;
        assert!(answer.starts_with("a OK"), "{answer}\n{}", machine.log());
    });
    assert!(machine.log().contains("driver=pam"));
    machine.stop();
}
