//! One PAM transaction: authenticate, account phase, optionally credentials or a session.
//!
//! Where:  in a worker process that can be killed; modules block, leak, fork and crash.
//! Trust:  modules are the administrator's; user name and password come from a stranger.
//! Never:  skips the account phase, sleeps for `pam_fail_delay` (the daemon's penalty is the delay), reads an answer
//!         it does not know as success, lets a panic unwind into libpam.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pam::{Context, ConversationHandler, ErrorCode, Flag};
use zeroize::Zeroizing;

/// What to ask PAM.
#[derive(Clone, Copy)]
pub struct PamRequest<'a> {
    /// The PAM service, a file name below `/etc/pam.d`.
    pub service: &'a str,
    /// The account.
    pub user: &'a str,
    /// The answer to every hidden prompt.
    pub password: &'a [u8],
    /// `PAM_RHOST`: the client's address.
    pub rhost: Option<&'a str>,
    /// `PAM_TTY`: what modules see as the terminal, such as the service's name.
    pub tty: Option<&'a str>,
    /// `PAM_RUSER`: the remote user.
    pub ruser: Option<&'a str>,
    /// Establish credentials after success (`pam_setcred`), and delete them at the end.
    pub setcred: bool,
    /// Open a session after success and close it at once. Implies `setcred`.
    pub session: bool,
}

impl std::fmt::Debug for PamRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PamRequest")
            .field("service", &self.service)
            .field("user", &self.user)
            .field("rhost", &self.rhost)
            .finish_non_exhaustive()
    }
}

/// The outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PamVerdict {
    /// Right password, and the account may be used.
    Granted,
    /// Wrong password, or refused before the password was found right (locked, too many tries).
    Refused,
    /// No such user.
    UnknownUser,
    /// Right password that must be changed first (`PAM_NEW_AUTHTOK_REQD`).
    MustChangePassword,
    /// Right password, expired beyond its grace period (`PAM_AUTHTOK_EXPIRED`).
    PasswordExpired,
    /// Right password, the account expired (`PAM_ACCT_EXPIRED`).
    AccountExpired,
    /// Right password, and the account phase says no (`PAM_PERM_DENIED`, `PAM_AUTH_ERR` …): time, place, lock.
    AccountDenied,
    /// PAM could not say: missing module, dead directory, bad configuration.
    Temporary,
}

/// Where a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PamPhase {
    /// Before `pam_authenticate`.
    Start,
    /// `pam_authenticate`
    Authenticate,
    /// `pam_acct_mgmt`
    Account,
    /// `pam_setcred`, `pam_open_session`
    Session,
    /// Everything was done.
    Done,
}

/// A text a module wanted the user to see. Shown only where the administrator asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PamText {
    /// `PAM_TEXT_INFO`
    Info(String),
    /// `PAM_ERROR_MSG`
    Error(String),
    /// The last hidden prompt, such as an OTP challenge.
    Prompt(String),
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PamReport {
    /// The outcome.
    pub verdict: PamVerdict,
    /// Where it was decided.
    pub phase: PamPhase,
    /// For the log: PAM's code and text, or what was wrong with the request.
    pub detail: String,
    /// `PAM_USER` as the modules left it; only after [`PamVerdict::Granted`].
    pub user: Option<String>,
    /// Texts of modules, in order.
    pub texts: Vec<PamText>,
}

/// Runs one transaction. Blocks for as long as the modules do.
pub fn authenticate(request: &PamRequest<'_>) -> PamReport {
    // A panic of ours stops here; libpam's frames are never unwound.
    catch_unwind(AssertUnwindSafe(|| run(request))).unwrap_or_else(|_| {
        ended(PamVerdict::Temporary, PamPhase::Start, "panic in the PAM client".to_owned())
    })
}

fn run(request: &PamRequest<'_>) -> PamReport {
    let refuse = |why: &str| ended(PamVerdict::Refused, PamPhase::Start, why.to_owned());
    if !crate::service::is_service(request.service) {
        let detail = format!("{:?} cannot be a PAM service", request.service);
        return ended(PamVerdict::Temporary, PamPhase::Start, detail);
    }
    // Empty names crash some modules; NUL would end the text for C.
    if crate::check_name(request.user).is_err() {
        return refuse("not a possible account name");
    }
    if request.password.contains(&0) || request.password.len() > MAX_PASSWORD {
        return refuse("the password holds a NUL or is too long");
    }
    keep_modules(request.service);
    let conversation = Conversation::new(request);
    let context = Context::new(request.service, Some(request.user), conversation);
    let mut context = match context {
        Ok(context) => context,
        Err(error) => return ended(PamVerdict::Temporary, PamPhase::Start, describe("pam_start", &error)),
    };
    let mut report = match transaction(&mut context, request) {
        Ok(user) => PamReport {
            verdict: PamVerdict::Granted,
            phase: PamPhase::Done,
            detail: String::new(),
            user: Some(user),
            texts: Vec::new(),
        },
        Err((verdict, phase, detail)) => ended(verdict, phase, detail),
    };
    report.texts = std::mem::take(&mut context.conversation_mut().texts);
    report
}

/// Services whose modules stay loaded in a process.
const MOST_KEPT: usize = 8;

/// Keeps a handle of the service open that is never asked anything: its modules and their libraries then stay loaded.
/// Loading and linking them takes as long as the hash, and would be done for each request. Changed files below
/// `/etc/pam.d` count at once all the same, and a replaced module is another file to the loader.
fn keep_modules(service: &str) {
    thread_local! {
        static KEPT: RefCell<Vec<(String, Context<Conversation>)>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        if kept.len() >= MOST_KEPT || kept.iter().any(|(known, _)| known == service) {
            return;
        }
        let silent = Conversation { user: String::new(), password: Zeroizing::default(), texts: Vec::new() };
        if let Ok(context) = Context::new(service, None, silent) {
            kept.push((service.to_owned(), context));
        }
    });
}

type End = (PamVerdict, PamPhase, String);

fn transaction(context: &mut Context<Conversation>, request: &PamRequest<'_>) -> Result<String, End> {
    let start =
        |call: &'static str| move |error| (PamVerdict::Temporary, PamPhase::Start, describe(call, &error));
    context.set_rhost(request.rhost).map_err(start("PAM_RHOST"))?;
    context.set_tty(request.tty).map_err(start("PAM_TTY"))?;
    context.set_ruser(request.ruser).map_err(start("PAM_RUSER"))?;
    let delay: extern "C" fn(c_int, c_uint, *mut c_void) = no_delay;
    // SAFETY: Linux-PAM takes the value of PAM_FAIL_DELAY as a pointer to a function of exactly this type and calls
    // it instead of sleeping; the function lives for ever.
    unsafe { context.set_item(PAM_FAIL_DELAY, delay as *const c_void) }.map_err(start("PAM_FAIL_DELAY"))?;

    // No network login without a password, whatever `nullok` says.
    context.authenticate(Flag::DISALLOW_NULL_AUTHTOK).map_err(|error| {
        (authentication_verdict(error.code()), PamPhase::Authenticate, describe("pam_authenticate", &error))
    })?;
    context.acct_mgmt(Flag::DISALLOW_NULL_AUTHTOK).map_err(|error| {
        (account_verdict(error.code()), PamPhase::Account, describe("pam_acct_mgmt", &error))
    })?;

    let session =
        |call: &'static str| move |error| (PamVerdict::Temporary, PamPhase::Session, describe(call, &error));
    // Both end when the value is dropped.
    if request.session {
        drop(context.open_session(Flag::SILENT).map_err(session("pam_open_session"))?);
    } else if request.setcred {
        drop(context.open_pseudo_session(Flag::SILENT).map_err(session("pam_setcred"))?);
    }

    // Modules may have changed the name.
    let user = context.user().map_err(session("PAM_USER"))?;
    if crate::check_name(&user).is_err() || user.contains(char::REPLACEMENT_CHARACTER) {
        let detail = "a module changed the user to an impossible name".to_owned();
        return Err((PamVerdict::Temporary, PamPhase::Session, detail));
    }
    Ok(user)
}

/// Linux-PAM's `PAM_MAX_RESP_SIZE` is 512 bytes with its NUL.
const MAX_PASSWORD: usize = 511;

/// `_pam_types.h`: the function called instead of a delay after a failure.
const PAM_FAIL_DELAY: c_int = 10;

extern "C" fn no_delay(_result: c_int, _microseconds: c_uint, _data: *mut c_void) {}

/// Before the password was found right, a client may only learn "no" or "not now".
fn authentication_verdict(code: ErrorCode) -> PamVerdict {
    match code {
        ErrorCode::USER_UNKNOWN => PamVerdict::UnknownUser,
        // A module only asks for a new password after it accepted the old one.
        ErrorCode::NEW_AUTHTOK_REQD => PamVerdict::MustChangePassword,
        ErrorCode::AUTH_ERR
        | ErrorCode::MAXTRIES
        | ErrorCode::PERM_DENIED
        | ErrorCode::ACCT_EXPIRED
        | ErrorCode::AUTHTOK_EXPIRED
        | ErrorCode::CRED_EXPIRED => PamVerdict::Refused,
        // AUTHINFO_UNAVAIL, CRED_INSUFFICIENT, SYSTEM_ERR, SERVICE_ERR, OPEN_ERR, SYMBOL_ERR, MODULE_UNKNOWN, ABORT,
        // BUF_ERR, CONV_ERR and whatever a later PAM adds.
        _ => PamVerdict::Temporary,
    }
}

/// The password was right.
fn account_verdict(code: ErrorCode) -> PamVerdict {
    match code {
        ErrorCode::NEW_AUTHTOK_REQD => PamVerdict::MustChangePassword,
        ErrorCode::AUTHTOK_EXPIRED | ErrorCode::CRED_EXPIRED => PamVerdict::PasswordExpired,
        ErrorCode::ACCT_EXPIRED => PamVerdict::AccountExpired,
        ErrorCode::PERM_DENIED | ErrorCode::AUTH_ERR | ErrorCode::MAXTRIES => PamVerdict::AccountDenied,
        ErrorCode::USER_UNKNOWN => PamVerdict::UnknownUser,
        _ => PamVerdict::Temporary,
    }
}

fn describe(call: &str, error: &pam::Error) -> String {
    format!("{call}: {:?} ({})", error.code(), error.message().unwrap_or("no text"))
}

fn ended(verdict: PamVerdict, phase: PamPhase, detail: String) -> PamReport {
    PamReport { verdict, phase, detail, user: None, texts: Vec::new() }
}

/// Answers the modules' prompts: hidden ones with the password, visible ones with the user name.
struct Conversation {
    user: String,
    password: Zeroizing<Vec<u8>>,
    texts: Vec<PamText>,
}

impl Conversation {
    /// Texts beyond this are dropped: a broken module may send for ever.
    const MAX_TEXTS: usize = 32;
    const MAX_TEXT: usize = 512;

    fn new(request: &PamRequest<'_>) -> Conversation {
        Conversation {
            user: request.user.to_owned(),
            password: Zeroizing::new(request.password.to_vec()),
            texts: Vec::new(),
        }
    }

    fn keep(&mut self, text: &CStr, kind: fn(String) -> PamText) {
        if self.texts.len() < Conversation::MAX_TEXTS {
            let shown: String = text
                .to_string_lossy()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(Conversation::MAX_TEXT)
                .collect();
            self.texts.push(kind(shown));
        }
    }
}

impl ConversationHandler for Conversation {
    fn prompt_echo_on(&mut self, _prompt: &CStr) -> Result<CString, ErrorCode> {
        CString::new(self.user.as_str()).map_err(|_| ErrorCode::CONV_ERR)
    }

    fn prompt_echo_off(&mut self, prompt: &CStr) -> Result<CString, ErrorCode> {
        self.texts.retain(|text| !matches!(text, PamText::Prompt(_)));
        self.keep(prompt, PamText::Prompt);
        CString::new(self.password.as_slice()).map_err(|_| ErrorCode::CONV_ERR)
    }

    fn text_info(&mut self, text: &CStr) {
        self.keep(text, PamText::Info);
    }

    fn error_msg(&mut self, text: &CStr) {
        self.keep(text, PamText::Error);
    }

    fn radio_prompt(&mut self, _prompt: &CStr) -> Result<bool, ErrorCode> {
        Err(ErrorCode::CONV_ERR)
    }

    fn binary_prompt(&mut self, _kind: u8, _data: &[u8]) -> Result<(u8, Vec<u8>), ErrorCode> {
        Err(ErrorCode::CONV_ERR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(service: &'a str, user: &'a str, password: &'a [u8]) -> PamRequest<'a> {
        PamRequest {
            service,
            user,
            password,
            rhost: None,
            tty: None,
            ruser: None,
            setcred: false,
            session: false,
        }
    }

    #[test]
    fn bad_requests_never_reach_pam() {
        let long = [b'a'; 600];
        let cases: [(&str, &str, &[u8], PamVerdict); 10] = [
            ("", "u", b"p", PamVerdict::Temporary),
            ("../su", "u", b"p", PamVerdict::Temporary),
            (".hidden", "u", b"p", PamVerdict::Temporary),
            ("Login", "u", b"p", PamVerdict::Temporary),
            ("a\0b", "u", b"p", PamVerdict::Temporary),
            ("login", "", b"p", PamVerdict::Refused),
            ("login", "a\0b", b"p", PamVerdict::Refused),
            ("login", "a\nb", b"p", PamVerdict::Refused),
            ("login", "u", b"a\0b", PamVerdict::Refused),
            ("login", "u", &long, PamVerdict::Refused),
        ];
        for (service, user, password, verdict) in cases {
            let report = authenticate(&request(service, user, password));
            assert_eq!((report.verdict, report.phase), (verdict, PamPhase::Start), "{service:?} {user:?}");
        }
    }

    #[test]
    fn nothing_unknown_is_a_success_and_secrets_stay_inside() {
        for code in 1..40 {
            if let Some(code) = ErrorCode::from_repr(code) {
                assert_ne!(authentication_verdict(code), PamVerdict::Granted);
                assert_ne!(account_verdict(code), PamVerdict::Granted);
            }
        }
        assert!(!format!("{:?}", request("login", "u", b"hunter2")).contains("hunter2"));
    }

    #[test]
    fn texts_are_bounded() {
        let mut conversation = Conversation::new(&request("login", "u", b"p"));
        for _ in 0..1000 {
            conversation.text_info(&CString::new(vec![b'\n'; 2000]).unwrap());
        }
        assert_eq!(conversation.texts.len(), Conversation::MAX_TEXTS);
        assert_eq!(conversation.texts[0], PamText::Info(" ".repeat(Conversation::MAX_TEXT)));
    }
}
