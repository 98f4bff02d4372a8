//! The stack proves itself: a message goes in by submission and comes out by IMAP and POP3.
//!
//! Purpose:   after the start, in the open, one line per step with its time.
//! User:      one made for this start only, with a random name, password and Maildir, known through a passdb that no
//!            file mentions; all of it is gone afterwards.
//! Trust:     what the stack answers is judged, with limits on length and time.
//! Never:     touch the mail or the password of a real user.

mod client;
mod message;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use boot::exit::{self, Coded};
use conf::{
    ListenerTls, Passdb, PassdbDriver, PassdbRules, Settings, SmtpKind, Userdb, UserdbDriver, UserdbRules,
};
use creds::Secret;
use creds::passwd::{Editor, NewUser};
use nix::unistd::{Uid, User};

use crate::roles::Accounts;
use crate::{accounts, output, passwords, state};

/// Longest a step may take.
const STEP: Duration = Duration::from_secs(20);
/// Name of the passdb and userdb of the proof user, and of its folder below the state folder.
const NAME: &str = "proof";

/// The proof user, while it exists.
#[derive(Debug)]
pub(crate) struct Proof {
    user: String,
    local: String,
    password: String,
    folder: PathBuf,
    /// With mailboxes of system users: an id that is no account's.
    uid: Option<u32>,
}

/// A step that was done.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Step {
    /// What was done.
    pub(crate) step: String,
    /// Whether it worked.
    pub(crate) ok: bool,
    /// How long it took.
    pub(crate) milliseconds: u128,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Where and how a protocol is reached.
#[derive(Clone, Debug)]
struct Door {
    protocol: &'static str,
    address: SocketAddr,
    tls: ListenerTls,
}

/// Whose the proof user's mail is where every user's mail is the user's own.
fn free_uid(settings: &Settings, who: &Accounts) -> anyhow::Result<Option<u32>> {
    let mail = &settings.mail;
    if mail.mailboxes != conf::Mailboxes::System {
        return Ok(None);
    }
    if !who.distinct() {
        let text = "a self-test with mail.mailboxes = \"system\" needs an account for each daemon";
        return Err(Coded::new(exit::CONFIG, text).into());
    }
    let last = if mail.last_valid_uid == 0 { 59_999 } else { mail.last_valid_uid };
    let unused = |uid: &u32| matches!(User::from_uid(Uid::from_raw(*uid)), Ok(None));
    let free = (mail.first_valid_uid.max(1)..=last).rev().take(1000).find(unused);
    free.map(Some)
        .context("no uid between mail.first_valid_uid and mail.last_valid_uid is free for the self-test")
}

impl Proof {
    /// Makes the user, before the daemons start.
    pub(crate) fn arrange(settings: &Settings, who: &Accounts) -> anyhow::Result<Self> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let local = format!("postern-proof-{}", hex(&passwords::random_bytes::<4>()?));
        let domain = settings.auth.default_domain.clone().unwrap_or_default();
        let domain = if domain.is_empty() { settings.hostname.clone() } else { domain };
        let password = hex(&passwords::random_bytes::<16>()?);
        let proof = Self {
            user: format!("{local}@{domain}"),
            local,
            password,
            folder: settings.state_dir.join(NAME),
            uid: free_uid(settings, who)?,
        };
        accounts::acting_as(who.owner(), || proof.make_files())??;
        proof.give_away(who).context("cannot give the proof user's files to the daemons")?;
        Ok(proof)
    }

    /// With an account for each daemon the folder is root's, so nobody can exchange what is given away here.
    fn give_away(&self, who: &Accounts) -> std::io::Result<()> {
        if !who.distinct() {
            return Ok(());
        }
        state::readable_for(&self.users(), who.auth.as_ref())?;
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o755))?;
        let imap = who.imap.as_ref().map(|owner| (owner.uid, owner.gid));
        let Some((uid, gid)) = self.uid.map(|uid| (uid, uid)).or(imap) else { return Ok(()) };
        std::os::unix::fs::lchown(self.folder.join("home"), Some(uid), Some(gid))
    }

    fn make_files(&self) -> anyhow::Result<()> {
        self.remove();
        let home = self.folder.join("home");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&home)
            .with_context(|| format!("cannot make {}", home.display()))?;
        // A fast scheme is enough for 128 random bits that live for a second.
        let password = Secret::new(self.password.clone().into_bytes());
        let user = NewUser {
            name: self.user.clone(),
            stored: passwords::stored("SSHA256", &self.user, &password)?,
            home: Some(home.to_string_lossy().into_owned()),
            uid: self.uid,
            gid: self.uid,
            ..NewUser::default()
        };
        let mut editor = Editor::open(&self.users(), "", Duration::from_secs(1))?;
        editor.add(&user)?;
        Ok(editor.commit()?)
    }

    fn users(&self) -> PathBuf {
        self.folder.join("users")
    }

    /// Makes the daemons know the user.
    pub(crate) fn admit(&self, settings: &mut Settings) {
        let path = self.users().to_string_lossy().into_owned();
        let only = vec![format!("{}*", self.local)];
        settings.auth.passdb.insert(
            0,
            Passdb {
                name: NAME.to_owned(),
                rules: PassdbRules { username_filter: only.clone(), ..PassdbRules::default() },
                driver: PassdbDriver::PasswdFile {
                    path: path.clone(),
                    scheme: "PLAIN".to_owned(),
                    username_format: None,
                },
            },
        );
        settings.auth.userdb.insert(
            0,
            Userdb {
                name: NAME.to_owned(),
                rules: UserdbRules { username_filter: only, ..UserdbRules::default() },
                driver: UserdbDriver::PasswdFile { path, username_format: None },
            },
        );
    }

    /// Removes the user with everything it had.
    pub(crate) fn remove(&self) {
        // Links in it are removed, not followed; what cannot be removed now is by the next start.
        let _ = std::fs::remove_dir_all(&self.folder);
    }

    /// Does all steps and tells each; stops at the first that fails. Answers whether all worked.
    pub(crate) fn run(&self, settings: &Settings, tell: &mut dyn FnMut(Step)) -> bool {
        let mut step = |what: &str, started: Instant, result: anyhow::Result<()>| {
            let ok = result.is_ok();
            tell(Step {
                step: what.to_owned(),
                ok,
                milliseconds: started.elapsed().as_millis(),
                error: result.err().map(|error| output::sentence(&error)),
            });
            ok
        };
        let started = Instant::now();
        let prepared = self.prepare(settings);
        let (runtime, trust) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return step("getting ready", started, Err(error)),
        };
        let message = message::compose(&self.user, &settings.hostname);
        let login = client::Login { user: self.user.clone(), password: self.password.clone() };
        let doors = doors(settings);
        if doors.is_empty() {
            return step(
                "finding a door",
                started,
                Err(anyhow::anyhow!("the configuration has no SMTP, IMAP or POP3 listener")),
            );
        }
        for door in &doors {
            let started = Instant::now();
            let what = format!("{} at {}", describe(door), door.address);
            let result = runtime.block_on(async {
                let work = one(door, &trust, &login, &message);
                tokio::time::timeout(STEP, work)
                    .await
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", STEP.as_secs())))
            });
            if !step(&what, started, result) {
                return false;
            }
        }
        true
    }

    fn prepare(&self, settings: &Settings) -> anyhow::Result<(tokio::runtime::Runtime, client::Trust)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // The embedded default has its CA beside the certificate; elsewhere the configured chain itself is trusted.
        let ca = settings.state_dir.join("tls/ca.pem");
        let (text, name) = match std::fs::read_to_string(&ca) {
            Ok(text) => (text, "localhost".to_owned()),
            Err(_) => {
                let chains = settings.tls_material()?.certificates;
                (chains.into_iter().map(|pair| pair.chain).collect(), settings.hostname.clone())
            }
        };
        let client = tls_config::Client::new(&text).context("the certificates cannot be trusted")?;
        Ok((runtime, client::Trust { client, name }))
    }
}

async fn one(
    door: &Door,
    trust: &client::Trust,
    login: &client::Login,
    message: &[u8],
) -> anyhow::Result<()> {
    match door.protocol {
        "submission" => client::submit(door.address, door.tls, trust, login, message).await,
        "IMAP" => {
            message::compare(message, &client::read_by_imap(door.address, door.tls, trust, login).await?)
        }
        _ => message::compare(message, &client::read_by_pop3(door.address, door.tls, trust, login).await?),
    }
}

fn describe(door: &Door) -> String {
    let tls = match (door.protocol, door.tls) {
        ("POP3", ListenerTls::Starttls) => "STLS",
        (_, ListenerTls::Starttls) => "STARTTLS",
        (_, ListenerTls::Implicit) => "TLS",
    };
    match door.protocol {
        "submission" => format!("send by submission ({tls}, AUTH PLAIN)"),
        protocol => format!("read back by {protocol} ({tls}), compare"),
    }
}

/// One door per protocol, submission first: with STARTTLS for sending (no AUTH may be offered before), with TLS from
/// the first byte for reading, where there is a choice.
fn doors(settings: &Settings) -> Vec<Door> {
    let mut doors = Vec::new();
    let door = |protocol: &'static str, address: &[SocketAddr], tls: ListenerTls| {
        address.first().map(|address| Door { protocol, address: reachable(*address), tls })
    };
    let smtp = |kind: SmtpKind, tls: ListenerTls| {
        let listener = settings.smtp.listener.iter().find(|l| l.kind == kind)?;
        door("submission", &listener.address, tls)
    };
    doors.extend(
        smtp(SmtpKind::Submission, ListenerTls::Starttls)
            .or_else(|| smtp(SmtpKind::Submissions, ListenerTls::Implicit)),
    );
    let imap = settings.imap.listener.iter();
    let imap = imap.min_by_key(|l| l.tls != ListenerTls::Implicit);
    doors.extend(imap.and_then(|l| door("IMAP", &l.address, l.tls)));
    let pop3 = settings.pop3.listener.iter();
    let pop3 = pop3.min_by_key(|l| l.tls != ListenerTls::Implicit);
    doors.extend(pop3.and_then(|l| door("POP3", &l.address, l.tls)));
    doors
}

/// Where to connect to for an address to listen on.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::{Proof, doors};
    use conf::{EmbeddedOptions, ListenerTls, embedded_default};

    #[test]
    fn the_user_comes_and_goes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let options = EmbeddedOptions {
            state_dir: folder.path().to_owned(),
            hostname: "mx.example.org".to_owned(),
            ..EmbeddedOptions::default()
        };
        let settings = embedded_default(&options);
        let proof = Proof::arrange(&settings, &crate::roles::Accounts::one(None)).expect("made");
        let text = std::fs::read_to_string(folder.path().join("proof/users")).expect("written");
        assert!(text.starts_with("postern-proof-") && text.contains("@mx.example.org:{SSHA256}"), "{text}");
        assert!(!text.contains(&proof.password));
        let mut with = settings.clone();
        proof.admit(&mut with);
        assert_eq!((with.auth.passdb.len(), with.auth.userdb.len()), (2, 2));
        assert_eq!(with.auth.passdb[1], settings.auth.passdb[0]);
        proof.remove();
        assert!(!folder.path().join("proof").exists());
    }

    #[test]
    fn doors_of_the_embedded_default() {
        let mut settings = embedded_default(&EmbeddedOptions::default());
        let found: Vec<_> = doors(&settings).iter().map(|d| (d.protocol, d.address.port(), d.tls)).collect();
        assert_eq!(
            found,
            [
                ("submission", 1587, ListenerTls::Starttls),
                ("IMAP", 1993, ListenerTls::Implicit),
                ("POP3", 1995, ListenerTls::Implicit)
            ]
        );
        settings.pop3.listener.clear();
        settings.imap.listener[1].address = vec!["0.0.0.0:993".parse().expect("an address")];
        let found: Vec<_> = doors(&settings).iter().map(|d| d.address.to_string()).collect();
        assert_eq!(found, ["127.0.0.1:1587", "127.0.0.1:993"]);
    }
}
