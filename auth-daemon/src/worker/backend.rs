//! A worker process: reads questions, asks the system, answers.
//!
//! Trust: questions come from the daemon over the socket pair that is this process's standard input; their user
//!        names and passwords come from strangers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use conf::StateRule;
use creds::{Policy, Scheme, Scratch, Stored, Verdict, Verifier};
use system_auth::{PamRequest, PamText, PamVerdict, PasswordField, PasswordState, Shadow};

use super::record::{self, Asked, Reply};
use super::{Account, Answer, Checked, Effects, Facts, Question, StateRules, process};

/// The main of `daemon auth-worker`: answers until its standard input ends.
///
/// # Errors
/// Standard input is no channel to the daemon, or the daemon sent something else than questions.
pub fn worker_main() -> anyhow::Result<()> {
    let (stream, lifeline) = process::settle()?;
    let result = serve(stream.try_clone()?);
    // The channel has ended, or ends now. An exit could come before the helpers of modules are gone: the thread that kills
    // them ends the process as well.
    if stream.shutdown(Shutdown::Both).is_ok() {
        let _ = lifeline.join();
    }
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
            Err(why) => Reply::Answer(Answer::Unavailable(why).into()),
        },
        Asked::Accounts(first_uid) => accounts(first_uid),
        Asked::Group(name) => match system_auth::gid_of(&name) {
            Ok(gid) => Reply::Group(gid),
            Err(system_auth::Error::BadName) => Reply::Group(None),
            Err(error) => Reply::Answer(Answer::Unavailable(error.to_string()).into()),
        },
    }
}

fn verify(question: &Question, user: &str, password: &[u8], facts: &Facts) -> Checked {
    let mut checked = match question {
        Question::Pam { service, effects, messages, .. } => {
            let mut checked = pam(service, *effects, user, password, facts);
            checked.message = checked.message.filter(|_| *messages);
            checked
        }
        Question::Imap { host, port } => super::imap::check(host, *port, user, password).into(),
        Question::Shadow(rules) => shadow(*rules, user, password).into(),
        Question::Passwd(_) => passwd(user, password).into(),
    };
    // Told only to who knows the password.
    if let Answer::Ok(name) = &checked.answer
        && question.rules().nologin_shell == StateRule::Refuse
        && let Some(answer) = nologin(name.as_deref().unwrap_or(user))
    {
        checked.answer = answer;
    }
    checked
}

/// Why the login shell keeps this user out. Users that only a module knows have no shell.
fn nologin(user: &str) -> Option<Answer> {
    match system_auth::account(user) {
        Ok(Some(account)) if system_auth::is_nologin_shell(&account.shell) => {
            let shell = account.shell.display();
            Some(Answer::Disabled(format!("the login shell is {shell}; see `nologin_shell`")))
        }
        Ok(_) => None,
        Err(error) => Some(Answer::Unavailable(error.to_string())),
    }
}

fn pam(service: &str, effects: Effects, user: &str, password: &[u8], facts: &Facts) -> Checked {
    let some = |text: &'_ str| -> bool { !text.is_empty() };
    let report = system_auth::authenticate(&PamRequest {
        service,
        user,
        password,
        rhost: Some(facts.rhost.as_str()).filter(|text| some(text)),
        tty: Some(facts.service.as_str()).filter(|text| some(text)),
        ruser: Some(user),
        setcred: effects.setcred,
        session: effects.session,
    });
    let said: Vec<&str> = report
        .texts
        .iter()
        .filter_map(|text| match text {
            PamText::Info(text) | PamText::Error(text) => Some(text.trim()).filter(|text| some(text)),
            PamText::Prompt(_) => None,
        })
        .collect();
    let said: String = said.join(" ").chars().take(MOST_SAID).collect();
    let answer = match report.verdict {
        PamVerdict::Granted => Answer::Ok(report.user),
        PamVerdict::Refused | PamVerdict::Temporary if let Some(why) = blind(service, user) => {
            Answer::Unavailable(why)
        }
        PamVerdict::Refused => Answer::Refused(format!("PAM: {}", report.detail)),
        PamVerdict::UnknownUser => Answer::Unknown,
        PamVerdict::MustChangePassword => Answer::Expired("it must be changed".to_owned()),
        PamVerdict::PasswordExpired => {
            Answer::Expired("it was not changed within its days of grace".to_owned())
        }
        PamVerdict::AccountExpired | PamVerdict::AccountDenied => {
            Answer::Disabled(format!("PAM: {}", report.detail))
        }
        _ => Answer::Unavailable(format!("PAM: {}", report.detail)),
    };
    Checked { answer, message: Some(said).filter(|said| some(said)) }
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

/// Longest text of modules that a client is told, in characters: a reply is one line.
const MOST_SAID: usize = 300;
const SHADOW: &str = "/etc/shadow";

/// Why this process cannot see password hashes, with what to do.
pub(crate) fn shadow_is_closed() -> Option<String> {
    let error = File::open(SHADOW).err()?;
    (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
        format!(
            "uid {} cannot read {SHADOW}; put the account of the workers (`auth.worker.run_as`, else `run_as`) into the \
             group `shadow` (`adduser NAME shadow`) and start as root",
            nix::unistd::geteuid()
        )
    })
}

fn shadow(rules: StateRules, user: &str, password: &[u8]) -> Answer {
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
        Answer::Ok(_) => ruled_out(rules, &entry, today).unwrap_or(Answer::Ok(Some(entry.name))),
        other => other,
    }
}

/// What the rules have against a right password on this day.
fn ruled_out(rules: StateRules, entry: &Shadow, today: i64) -> Option<Answer> {
    let mut state = entry.state_on(today);
    if state == PasswordState::AccountExpired && rules.account_expired == StateRule::Accept {
        // The password's own age still counts.
        state = Shadow { expire: None, ..entry.clone() }.state_on(today);
    }
    let (rule, answer) = match state {
        PasswordState::Valid | PasswordState::ChangeSoon(_) => return None,
        PasswordState::MustChange => (rules.must_change, Answer::Expired("it must be changed".to_owned())),
        PasswordState::Inactive => {
            let why = "it was not changed within its days of grace";
            (rules.inactive, Answer::Expired(why.to_owned()))
        }
        PasswordState::AccountExpired => {
            (rules.account_expired, Answer::Disabled("the account has expired (shadow)".to_owned()))
        }
    };
    (rule == StateRule::Refuse).then_some(answer)
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
        Err(error) => return Reply::Answer(Answer::Unavailable(error.to_string()).into()),
    };
    for account in listed.into_iter().filter(|account| account.uid >= first_uid) {
        match room.checked_sub(account.name.len() + 4) {
            Some(rest) => room = rest,
            None => {
                let why = "there are too many accounts to list".to_owned();
                return Reply::Answer(Answer::Unavailable(why).into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_accepts_its_own_state_and_no_other() {
        const TODAY: i64 = 20_000;
        let (accept, refuse) = (StateRule::Accept, StateRule::Refuse);
        let rules = |must_change, inactive, account_expired| StateRules {
            must_change,
            inactive,
            account_expired,
            nologin_shell: accept,
        };
        let entry = |changed: i64, inactive: Option<i64>, expire: Option<i64>| Shadow {
            name: "u".into(),
            hash: system_auth::Secret::default(),
            last_change: Some(changed),
            min: None,
            max: Some(10),
            warn: None,
            inactive,
            expire,
        };
        let aged = entry(TODAY - 20, None, None);
        let inactive = entry(TODAY - 20, Some(5), None);
        let ended = entry(TODAY, None, Some(TODAY));
        let both = entry(TODAY - 20, None, Some(TODAY));
        for (rules, accepted) in [
            (rules(refuse, refuse, refuse), [false, false, false, false]),
            (rules(accept, refuse, refuse), [true, false, false, false]),
            (rules(refuse, accept, refuse), [false, true, false, false]),
            // An account that may go on in spite of its date does not make an old password younger.
            (rules(refuse, refuse, accept), [false, false, true, false]),
            (rules(accept, refuse, accept), [true, false, true, true]),
        ] {
            let found =
                [&aged, &inactive, &ended, &both].map(|entry| ruled_out(rules, entry, TODAY).is_none());
            assert_eq!(found, accepted, "{rules:?}");
        }
        let strict = rules(refuse, refuse, refuse);
        assert!(matches!(ruled_out(strict, &both, TODAY), Some(Answer::Disabled(_))));
        assert!(
            matches!(ruled_out(strict, &inactive, TODAY), Some(Answer::Expired(why)) if why.contains("grace"))
        );
        assert!(
            matches!(ruled_out(strict, &entry(0, None, None), TODAY), Some(Answer::Expired(why)) if why.contains("changed"))
        );
    }
}
