//! What shadow's fields mean: pure rules, no I/O.
//!
//! Source: shadow(5), and the order of checks in Linux-PAM's `pam_unix` (`check_shadow_expiry`).
//! Trust:  the fields come from NSS modules.
//! Never:  take an empty or odd password field for "no password needed".

use std::path::{Path, PathBuf};

use crate::{Secret, Shadow};

/// An account as NSS knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name as the database spells it, which may differ in case from what was asked.
    pub name: String,
    /// The password field: nearly always `x`.
    pub hash: Secret,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home folder.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// What a password field says before any password is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordField {
    /// Empty, or begins with `!` or `*`: disabled, whatever the password.
    Disabled,
    /// `x`: the hash is in shadow.
    Shadowed,
    /// A crypt(3) text to compare with.
    Hash,
}

impl PasswordField {
    /// Classifies a field of passwd or shadow. An empty one means "no password needed" to login(1); a network
    /// service lets nobody in that way.
    pub fn of(field: &[u8]) -> PasswordField {
        match field {
            [] | [b'!' | b'*', ..] => PasswordField::Disabled,
            b"x" => PasswordField::Shadowed,
            _ => PasswordField::Hash,
        }
    }
}

/// State of a password and its account on a given day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordState {
    /// Usable.
    Valid,
    /// Usable, and must be changed in so many days.
    ChangeSoon(i64),
    /// Must be changed before it can be used (`PAM_NEW_AUTHTOK_REQD`).
    MustChange,
    /// Expired, and its grace period is over (`PAM_AUTHTOK_EXPIRED`).
    Inactive,
    /// The account expired (`PAM_ACCT_EXPIRED`).
    AccountExpired,
}

impl Shadow {
    /// Evaluates the ageing fields on a day (days since 1970-01-01, UTC).
    ///
    /// `pam_unix` order: account expiry, change demanded, inactivity, age, warning.
    pub fn state_on(&self, today: i64) -> PasswordState {
        if self.expire.is_some_and(|day| today >= day) {
            return PasswordState::AccountExpired;
        }
        let changed = match self.last_change {
            Some(0) => return PasswordState::MustChange,
            // Empty: ageing is off (shadow(5)). In the future: the clock is wrong, so age says nothing.
            None => return PasswordState::Valid,
            Some(day) if today < day => return PasswordState::Valid,
            Some(day) => day,
        };
        let age = today.saturating_sub(changed);
        let Some(max) = self.max else { return PasswordState::Valid };
        if let Some(inactive) = self.inactive
            && age > inactive
            && age > max.saturating_add(inactive)
        {
            return PasswordState::Inactive;
        }
        if age > max {
            return PasswordState::MustChange;
        }
        match self.warn {
            Some(warn) if age > max.saturating_sub(warn) => PasswordState::ChangeSoon(max - age),
            _ => PasswordState::Valid,
        }
    }
}

/// Whether the shell is one of those that mean "no login". Whether that also means "no mail" is configuration.
pub fn is_nologin_shell(shell: &Path) -> bool {
    shell.file_name().is_some_and(|name| name == "nologin" || name == "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ageing_in_pam_unix_order() {
        const TODAY: i64 = 20_000;
        // last change, max, warn, inactive, expire
        type Fields = (Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
        let cases: [(Fields, PasswordState); 21] = [
            ((Some(TODAY), Some(99_999), Some(7), None, None), PasswordState::Valid),
            ((None, None, None, None, None), PasswordState::Valid),
            ((None, Some(1), None, Some(0), None), PasswordState::Valid),
            ((Some(TODAY), None, None, None, Some(TODAY)), PasswordState::AccountExpired),
            ((Some(TODAY), None, None, None, Some(TODAY - 1)), PasswordState::AccountExpired),
            ((Some(TODAY), None, None, None, Some(TODAY + 1)), PasswordState::Valid),
            ((Some(0), None, None, None, Some(TODAY)), PasswordState::AccountExpired),
            ((Some(TODAY), None, None, None, Some(0)), PasswordState::AccountExpired),
            ((Some(0), Some(99_999), None, None, None), PasswordState::MustChange),
            ((Some(TODAY - 10), Some(10), None, None, None), PasswordState::Valid),
            ((Some(TODAY - 11), Some(10), None, None, None), PasswordState::MustChange),
            ((Some(TODAY - 11), Some(10), None, Some(5), None), PasswordState::MustChange),
            ((Some(TODAY - 15), Some(10), None, Some(5), None), PasswordState::MustChange),
            ((Some(TODAY - 16), Some(10), None, Some(5), None), PasswordState::Inactive),
            ((Some(TODAY - 11), Some(10), None, Some(0), None), PasswordState::Inactive),
            ((Some(TODAY - 16), None, None, Some(5), None), PasswordState::Valid),
            ((Some(TODAY - 8), Some(10), Some(7), None, None), PasswordState::ChangeSoon(2)),
            ((Some(TODAY - 3), Some(10), Some(7), None, None), PasswordState::Valid),
            ((Some(TODAY - 10), Some(10), Some(7), None, None), PasswordState::ChangeSoon(0)),
            ((Some(TODAY + 5), Some(0), None, None, None), PasswordState::Valid),
            ((Some(TODAY - 1), Some(i64::MAX), None, Some(i64::MAX), None), PasswordState::Valid),
        ];
        for ((last_change, max, warn, inactive, expire), expected) in cases {
            let shadow = Shadow {
                name: "u".into(),
                hash: Secret::default(),
                last_change,
                min: None,
                max,
                warn,
                inactive,
                expire,
            };
            assert_eq!(shadow.state_on(TODAY), expected, "{shadow:?}");
        }
    }

    #[test]
    fn password_fields() {
        for (field, expected) in [
            ("", PasswordField::Disabled),
            ("!", PasswordField::Disabled),
            ("!!", PasswordField::Disabled),
            ("*", PasswordField::Disabled),
            ("*LK*", PasswordField::Disabled),
            ("!$6$a$b", PasswordField::Disabled),
            ("x", PasswordField::Shadowed),
            ("$6$a$b", PasswordField::Hash),
            ("xy", PasswordField::Hash),
        ] {
            assert_eq!(PasswordField::of(field.as_bytes()), expected, "{field}");
        }
    }

    #[test]
    fn shells() {
        for (shell, expected) in [
            ("/usr/sbin/nologin", true),
            ("/bin/false", true),
            ("/bin/bash", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(is_nologin_shell(Path::new(shell)), expected, "{shell}");
        }
    }
}
