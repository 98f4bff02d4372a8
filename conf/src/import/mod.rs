//! Other programs' configurations as ours.
//!
//! Purpose:   the text that `doveconf -n` prints (Dovecot 2.3 and 2.4), and Debian's `/etc/default/saslauthd`, become a
//!            `postern.toml` and a list of what it could not carry, with reasons.
//! Source:    Dovecot 2.3 and 2.4 documentation, "Settings"; saslauthd(8).
//! Trust:     any text. What comes out has been a value in a file of the administrator, and is quoted as one.
//! Never:     look at the machine (see [`Facts`]), drop a setting silently, or make a file that starts without a
//!            database it should have asked.

mod databases;
mod defaults;
mod dovecot;
mod mail;
mod reasons;
mod text;
mod tree;
mod units;
mod vars;

pub use defaults::{Defaults, defaults};

/// What only the machine knows.
pub struct Facts<'a> {
    /// Name of this machine, where the text tells none.
    pub hostname: String,
    /// The uid of an account.
    pub uid: &'a dyn Fn(&str) -> Option<u32>,
    /// The gid of a group.
    pub gid: &'a dyn Fn(&str) -> Option<u32>,
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// A configuration that was carried over.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// Our file.
    pub toml: String,
    /// What it does not carry, in the order of the text.
    pub left: Vec<Left>,
    /// What to know about what it does carry.
    pub remarks: Vec<String>,
}

impl Imported {
    /// Whether the file holds something that keeps it from starting.
    pub fn blocked(&self) -> bool {
        self.left.iter().any(|left| left.blocking)
    }
}

/// A setting that was not carried over.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    /// Line of the text, from 1.
    pub line: usize,
    /// Its name, with the blocks around it: `protocol imap/mail_plugins`.
    pub setting: String,
    /// Its value; nothing for what may be secret.
    pub value: String,
    /// Why.
    pub reason: String,
    /// The file does not start until somebody has decided: logins or mail would be missing without it.
    pub blocking: bool,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.blocking { "MUST BE SOLVED: " } else { "" };
        write!(f, "line {}: {}", self.line, self.setting)?;
        if !self.value.is_empty() {
            let value: String = self.value.chars().take(120).collect();
            write!(f, " = {value}")?;
        }
        write!(f, ": {mark}{}", self.reason)
    }
}

/// Why a text is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A bound was exceeded.
    #[error("this is no configuration: {0}")]
    TooLarge(&'static str),
    /// A line that is neither a setting nor a block.
    #[error("line {line}: neither `name = value` nor a block: {text}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// `}` without a block.
    #[error("line {line}: `}}` closes nothing")]
    Closing {
        /// The line.
        line: usize,
    },
    /// A block without its end.
    #[error("line {line}: the block `{block}` is not closed")]
    Open {
        /// Where it begins.
        line: usize,
        /// Its title.
        block: String,
    },
    /// Nothing in it that this program would know.
    #[error("this is not what `doveconf -n` prints: {0}")]
    NotDovecot(&'static str),
}

/// Carries over what `doveconf -n` prints.
///
/// # Errors
/// The text is not such a text.
pub fn dovecot(text: &str, facts: &Facts<'_>) -> Result<Imported, Error> {
    dovecot::import(text, facts)
}

#[cfg(test)]
mod tests {
    use super::{Facts, dovecot};
    use std::path::Path;

    fn imported(text: &str) -> super::Imported {
        let vmail = |name: &str| (name == "vmail").then_some(5000);
        let facts = Facts { hostname: "mail.example.org".to_owned(), uid: &vmail, gid: &vmail };
        dovecot(text, &facts).expect("a configuration")
    }

    #[test]
    fn the_last_of_two_counts() {
        let made = imported(
            "protocols = none\nauth_default_realm = a.example\nauth_default_realm = b.example\nauth_cache_size = 1M\n\
             auth_cache_size = 2M\nauth_mechanisms {\n plain = yes\n}\nauth_mechanisms {\n login = yes\n}\nauth_default_domain = b.example\npassdb {\n driver = passwd-file\n args = scheme=PLAIN /old\n args = /users\n}\n\
             userdb {\n driver = static\n args = uid=vmail uid=7 home=/a home=/b\n}\n",
        );
        let settings = conf_of(&made.toml);
        assert_eq!(settings.auth.default_domain.as_deref(), Some("b.example"));
        assert_eq!(
            (settings.auth.cache.size, settings.auth.mechanisms.as_slice()),
            (2 << 20, &["LOGIN".to_owned()][..])
        );
        let fields = &settings.auth.userdb[0].rules.default_fields;
        assert_eq!(fields.len(), 2, "{fields:?}");
        assert!(
            fields.contains(&("uid".to_owned(), "7".to_owned()))
                && fields.contains(&("home".to_owned(), "/b".to_owned()))
        );
    }

    fn conf_of(toml: &str) -> crate::Settings {
        crate::load(toml, Path::new("/etc/postern/postern.toml")).map_err(|e| e.render(false)).expect("right")
    }

    #[test]
    fn texts_stay_texts() {
        let made = imported(
            "protocols = none\nauth_username_chars = a\"b\\c\npassdb {\n driver = passwd-file\n args = /x\"]\\ny = 1\n}\n\
             strange\u{7}name = v\u{1}alue\nuserdb {\n driver = passwd\n}\n",
        );
        let settings = conf_of(&made.toml);
        assert_eq!(settings.auth.username_chars, "a\"b\\c");
        assert_eq!(made.left.len(), 1, "{:?}", made.left);
    }

    #[test]
    fn what_must_not_get_lost_blocks() {
        let users = "passdb {\n driver = passwd\n}\nuserdb {\n driver = passwd\n}\n";
        for (text, named) in [
            ("mail_location = mdbox:~/mdbox\n", "mdbox"),
            ("mail_location = maildir:~/Maildir:LAYOUT=fs\n", "Maildir++"),
            ("mail_location = maildir:~/Maildir:CONTROL=/c\n", "dovecot-uidlist"),
            ("mail_location = maildir:/v/%1Mu\n", "%1M"),
            ("mail_driver = sdbox\n", "sdbox"),
            ("passdb {\n driver = lua\n args = file=/x\n}\n", "`lua`"),
            ("userdb nis {\n}\n", "`nis`"),
            ("passdb {\n driver = passwd\n skip = perhaps\n}\n", "word"),
            ("listen = mail.example.org\n", "address"),
        ] {
            let made =
                imported(&format!("protocols = imap\nssl_cert = </c.pem\nssl_key = </k.pem\n{text}{users}"));
            assert!(
                made.blocked() && made.left.iter().any(|left| left.blocking && left.reason.contains(named)),
                "{text}\n{:?}",
                made.left
            );
        }
        assert!(
            dovecot("a = b\n", &Facts { hostname: String::new(), uid: &|_| None, gid: &|_| None }).is_err()
        );
    }
}
