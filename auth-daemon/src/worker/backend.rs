//! A worker process: reads questions, asks the system, answers.
//!
//! Trust: questions come from the daemon over the socket pair that is this process's standard input; their user
//!        names and passwords come from strangers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use creds::{Policy, Scheme, Scratch, Stored, Verdict, Verifier};
use system_auth::{PamRequest, PamVerdict, PasswordField, PasswordState};

use super::record::{self, Asked, Reply};
use super::{Account, Answer, Facts, Question, process};

/// The main of `daemon auth-worker`: answers until its standard input ends.
///
/// # Errors
/// Standard input is no channel to the daemon, or the daemon sent something else than questions.
pub fn worker_main() -> anyhow::Result<()> {
    let result = serve(process::settle()?);
    // The channel has ended. An exit now could come before the helpers of modules are gone.
    std::thread::sleep(process::ENDING);
    Ok(result?)
}

/// Answers questions on a stream until it ends.
pub(super) fn serve(mut stream: UnixStream) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > record::MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = zeroize::Zeroizing::new(vec![0; length]);
        stream.read_exact(&mut body)?;
        let asked = Asked::decode(&body).ok_or(io::ErrorKind::InvalidData)?;
        drop(body);
        stream.write_all(&answer(asked).encode())?;
    }
}

fn answer(asked: Asked) -> Reply {
    match asked {
        Asked::Verify { question, user, password, facts } => {
            Reply::Answer(verify(&question, &user, &password, &facts))
        }
        Asked::Account(user) => match account(&user) {
            Ok(account) => Reply::Account(account),
            Err(why) => Reply::Answer(Answer::Unavailable(why)),
        },
        Asked::Accounts(first_uid) => accounts(first_uid),
    }
}

fn verify(question: &Question, user: &str, password: &[u8], facts: &Facts) -> Answer {
    match question {
        Question::Pam { service, session, setcred } => {
            pam(service, *session, *setcred, user, password, facts)
        }
        Question::Imap { host, port } => super::imap::check(host, *port, user, password),
        Question::Shadow => shadow(user, password),
        Question::Passwd => passwd(user, password),
    }
}

fn pam(service: &str, session: bool, setcred: bool, user: &str, password: &[u8], facts: &Facts) -> Answer {
    let some = |text: &'_ str| -> bool { !text.is_empty() };
    let report = system_auth::authenticate(&PamRequest {
        service,
        user,
        password,
        rhost: Some(facts.rhost.as_str()).filter(|text| some(text)),
        tty: Some(facts.service.as_str()).filter(|text| some(text)),
        ruser: Some(user),
        setcred,
        session,
    });
    match report.verdict {
        PamVerdict::Granted => Answer::Ok(report.user),
        PamVerdict::Refused | PamVerdict::Temporary if let Some(why) = blind(service, user) => {
            Answer::Unavailable(why)
        }
        PamVerdict::Refused => Answer::Refused(format!("PAM: {}", report.detail)),
        PamVerdict::UnknownUser => Answer::Unknown,
        PamVerdict::MustChangePassword | PamVerdict::PasswordExpired => Answer::Expired,
        PamVerdict::AccountExpired | PamVerdict::AccountDenied => {
            Answer::Disabled(format!("PAM: {}", report.detail))
        }
        _ => Answer::Unavailable(format!("PAM: {}", report.detail)),
    }
}

/// Why a refusal of `pam_unix` says nothing: it cannot see hashes here, and calls that a wrong password.
fn blind(service: &str, user: &str) -> Option<String> {
    let why = shadow_is_closed()?;
    let shadowed = system_auth::account(user)
        .ok()
        .flatten()
        .is_some_and(|account| PasswordField::of(account.hash.expose()) == PasswordField::Shadowed);
    (shadowed && system_auth::service_uses(service, "pam_unix.so")).then_some(why)
}

const SHADOW: &str = "/etc/shadow";

/// Why this process cannot see password hashes, with what to do.
pub(crate) fn shadow_is_closed() -> Option<String> {
    let error = File::open(SHADOW).err()?;
    (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
        format!(
            "uid {} cannot read {SHADOW}; set `run_as` to an account in the group `shadow` (`adduser NAME shadow`) and \
             start as root",
            nix::unistd::geteuid()
        )
    })
}

fn shadow(user: &str, password: &[u8]) -> Answer {
    let entry = match system_auth::shadow(user) {
        Ok(Some(entry)) => entry,
        Err(system_auth::Error::BadName) => return Answer::Unknown,
        // A name service that is asked after the file says "unknown" even where the file is closed to us.
        Ok(None) => return shadow_is_closed().map_or(Answer::Unknown, Answer::Unavailable),
        Err(error) => {
            return Answer::Unavailable(shadow_is_closed().unwrap_or_else(|| error.to_string()));
        }
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let today = i64::try_from(seconds / 86_400).unwrap_or(i64::MAX);
    // The state of the account is told only to who knows the password.
    match compare(entry.hash.expose(), password) {
        Answer::Ok(_) => match entry.state_on(today) {
            PasswordState::Valid | PasswordState::ChangeSoon(_) => Answer::Ok(Some(entry.name)),
            PasswordState::MustChange | PasswordState::Inactive => Answer::Expired,
            PasswordState::AccountExpired => Answer::Disabled("the account has expired (shadow)".to_owned()),
        },
        other => other,
    }
}

fn passwd(user: &str, password: &[u8]) -> Answer {
    match system_auth::account(user) {
        Ok(None) | Err(system_auth::Error::BadName) => Answer::Unknown,
        Ok(Some(account)) => match compare(account.hash.expose(), password) {
            Answer::Ok(_) => Answer::Ok(Some(account.name)),
            other => other,
        },
        Err(error) => Answer::Unavailable(error.to_string()),
    }
}

/// Compares with a field of passwd or shadow. Whatever the distribution writes there counts, old methods included.
fn compare(field: &[u8], password: &[u8]) -> Answer {
    match PasswordField::of(field) {
        PasswordField::Disabled => return Answer::Locked,
        PasswordField::Shadowed => return Answer::Refused("the hash is not in this database".to_owned()),
        PasswordField::Hash => {}
    }
    let crypt = |key: &[u8], setting: &[u8]| system_auth::crypt(key, setting);
    let verifier = Verifier::new(Policy { allow_weak: true, ..Policy::default() }, crypt);
    let stored = Stored::new(Scheme::Crypt, field);
    match verifier.verify(&stored, b"", password, &mut Scratch::default()) {
        Ok(Verdict::Match) => Answer::Ok(None),
        Ok(Verdict::Mismatch) => Answer::Mismatch,
        Ok(Verdict::Locked) => Answer::Locked,
        Err(error @ (creds::Error::Memory(_) | creds::Error::Random(_))) => {
            Answer::Unavailable(error.to_string())
        }
        // What crypt(3) cannot take is how some tools lock a password.
        Err(error) => Answer::Refused(error.to_string()),
    }
}

fn accounts(first_uid: u32) -> Reply {
    let mut names = Vec::new();
    let mut room = record::MAX_REPLY / 2;
    let listed = match system_auth::accounts() {
        Ok(listed) => listed,
        Err(error) => return Reply::Answer(Answer::Unavailable(error.to_string())),
    };
    for account in listed.into_iter().filter(|account| account.uid >= first_uid) {
        match room.checked_sub(account.name.len() + 4) {
            Some(rest) => room = rest,
            None => {
                return Reply::Answer(Answer::Unavailable("there are too many accounts to list".to_owned()));
            }
        }
        names.push(account.name);
    }
    Reply::Names(names)
}

fn account(user: &str) -> Result<Option<Account>, String> {
    match system_auth::account(user) {
        Ok(found) => Ok(found.map(|found| Account {
            name: found.name,
            uid: found.uid,
            gid: found.gid,
            home: found.home.to_string_lossy().into_owned(),
        })),
        Err(system_auth::Error::BadName) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
