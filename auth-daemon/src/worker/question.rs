//! What workers are asked, and what they say.
//!
//! Trust: names and facts come from strangers; an answer comes from a process that ran other people's modules.
//! Never: hold the password; it travels beside the question.

use conf::StateRule;

/// What a driver in a worker is asked to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// PAM with this service file. `messages`: the remote user may read what the modules say.
    Pam { service: String, effects: Effects, rules: StateRules, messages: bool },
    /// A login at this IMAP server.
    Imap { host: String, port: u16 },
    /// The shadow entry.
    Shadow(StateRules),
    /// The hash in the passwd entry.
    Passwd(StateRules),
}

impl Question {
    /// In words; also the lane of the pool it is asked in.
    pub(super) fn describe(&self) -> String {
        match self {
            Question::Pam { service, .. } => format!("PAM service `{service}`"),
            Question::Imap { host, port } => format!("IMAP server {host} port {port}"),
            Question::Shadow(_) => "shadow".to_owned(),
            Question::Passwd(_) => "passwd".to_owned(),
        }
    }

    /// Its rules; an input of the verdict like any other.
    pub(crate) fn rules(&self) -> StateRules {
        match self {
            Question::Pam { rules, .. } | Question::Shadow(rules) | Question::Passwd(rules) => *rules,
            Question::Imap { .. } => StateRules::default(),
        }
    }
}

/// What PAM does beside checking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Open a session and close it.
    pub(crate) session: bool,
    /// Establish credentials and delete them.
    pub(crate) setcred: bool,
}

impl Effects {
    /// Whether there are any.
    pub(crate) fn any(self) -> bool {
        self.session || self.setcred
    }
}

/// What a right password is worth while its account is in one of these states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateRules {
    pub(crate) must_change: StateRule,
    pub(crate) inactive: StateRule,
    pub(crate) account_expired: StateRule,
    pub(crate) nologin_shell: StateRule,
}

impl Default for StateRules {
    fn default() -> StateRules {
        let (must_change, inactive, account_expired) = Default::default();
        StateRules { must_change, inactive, account_expired, nologin_shell: StateRule::Accept }
    }
}

impl StateRules {
    /// One bit for each state that is accepted.
    pub(crate) fn bits(self) -> u8 {
        let all = [self.must_change, self.inactive, self.account_expired, self.nologin_shell];
        all.iter().enumerate().fold(0, |bits, (at, rule)| bits | u8::from(*rule == StateRule::Accept) << at)
    }

    /// From [`StateRules::bits`]; bits that mean nothing are refused.
    pub(super) fn from_bits(bits: u8) -> Option<StateRules> {
        let rule = |at: u8| if bits >> at & 1 == 1 { StateRule::Accept } else { StateRule::Refuse };
        (bits < 16).then(|| StateRules {
            must_change: rule(0),
            inactive: rule(1),
            account_expired: rule(2),
            nologin_shell: rule(3),
        })
    }
}

/// Facts about the remote user that modules may look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Remote address.
    pub(crate) rhost: String,
    /// Mail service, what PAM modules see as terminal.
    pub(crate) service: String,
}

/// A worker's verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The password is right; the name as the system spells it.
    Ok(Option<String>),
    /// It is not.
    Mismatch,
    /// The same, with a reason for the log.
    Refused(String),
    /// There is no such user.
    Unknown,
    /// The password is locked: none would be right.
    Locked,
    /// The password is right, the account has expired or may not log in; why, for the log.
    Disabled(String),
    /// The password is right and has expired or must be changed; which, for the log.
    Expired(String),
    /// Nobody can say.
    Unavailable(String),
}

/// A verdict and what may be told the remote user beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) answer: Answer,
    pub(crate) message: Option<String>,
}

impl From<Answer> for Checked {
    fn from(answer: Answer) -> Checked {
        Checked { answer, message: None }
    }
}

/// A system account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}
