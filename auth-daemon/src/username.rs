//! User names: from what a client typed to the one name everything else uses.
//!
//! Purpose: Dovecot's order of steps: default domain, translation, allowed characters, format, not empty.
//! Source:  Dovecot `auth/auth-request-fields.c`; reference note, section D.
//! Trust:   names are strangers' words until every step has passed.
//! Never:   let a control character, a NUL or an over-long name pass, whatever the settings say.

use std::sync::Arc;

use crate::template::{NameOnly, Template};

/// Longest name: a local part of 64 and a domain of 255 octets fit (RFC 5321 §4.5.3.1), with room for masters.
const MAX_NAME: usize = 512;

/// The rules, made once from the settings.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    default_domain: Option<Arc<str>>,
    allowed: Option<[bool; 128]>,
    translation: Vec<(char, char)>,
    format: Template,
    separator: Option<char>,
    lower: bool,
}

/// Why a name was refused. Goes to the log, never to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("user name is empty")]
    Empty,
    #[error("user name is too long")]
    TooLong,
    #[error("user name has a character that is not allowed")]
    Character,
}

impl Rules {
    /// Compiles the rules.
    pub(crate) fn new(auth: &conf::Auth, hostname: &str) -> Result<Rules, crate::template::Error> {
        let default_domain = match auth.default_domain.as_deref() {
            None => Some(hostname),
            Some("") => None,
            Some(domain) => Some(domain),
        };
        let mut allowed = [false; 128];
        for c in auth.username_chars.chars() {
            if let Some(slot) = allowed.get_mut(u32::from(c) as usize) {
                *slot = true;
            }
        }
        let mut pairs = Vec::new();
        let mut chars = auth.username_translation.chars();
        while let (Some(from), Some(to)) = (chars.next(), chars.next()) {
            pairs.push((from, to));
        }
        Ok(Rules {
            default_domain: default_domain.map(|domain| domain.to_lowercase().into()),
            allowed: (!auth.username_chars.is_empty()).then_some(allowed),
            translation: pairs,
            lower: auth.username_format.split_whitespace().collect::<String>() == "%{user|lower}",
            format: Template::parse(&auth.username_format)?,
            separator: auth.master_user_separator,
        })
    }

    /// The domain bare names belong to.
    pub(crate) fn default_domain(&self) -> Option<Arc<str>> {
        self.default_domain.clone()
    }

    /// Splits `user*master`; the first separator counts.
    pub(crate) fn split_master<'a>(&self, typed: &'a str) -> Option<(&'a str, &'a str)> {
        typed.split_once(self.separator?)
    }

    /// Runs all steps: gives the canonical name.
    pub(crate) fn canonical(&self, typed: &str) -> Result<String, Refused> {
        if typed.is_empty() {
            return Err(Refused::Empty);
        }
        if typed.len() > MAX_NAME {
            return Err(Refused::TooLong);
        }
        let domain = self.default_domain.as_deref();
        let mut name = String::with_capacity(typed.len() + 1 + domain.map_or(0, str::len));
        name.push_str(typed);
        if !self.translation.is_empty() {
            name = name.chars().map(|c| self.translate(c)).collect();
        }
        // Dovecot adds the domain before it translates; then a translation that makes an `@` gives two of them.
        if let Some(domain) = domain.filter(|_| !name.contains('@')) {
            name.push('@');
            name.push_str(domain);
        }
        if !self.allows(&name) {
            return Err(Refused::Character);
        }
        let user = if self.lower {
            name.make_ascii_lowercase();
            if name.is_ascii() { name } else { name.to_lowercase() }
        } else {
            self.format.expand(&NameOnly { user: &name, default_domain: domain })
        };
        // `@domain` alone is nobody.
        if user.is_empty() || user.starts_with('@') {
            return Err(Refused::Empty);
        }
        if user.len() > MAX_NAME {
            return Err(Refused::TooLong);
        }
        Ok(user)
    }

    fn translate(&self, c: char) -> char {
        self.translation.iter().find(|(from, _)| *from == c).map_or(c, |(_, to)| *to)
    }

    fn allows(&self, name: &str) -> bool {
        match &self.allowed {
            // The table knows ASCII only, so a byte of any other character is not in it.
            Some(table) => name.bytes().all(|b| table.get(usize::from(b)).copied().unwrap_or(false)),
            // Clients that do not unescape would see another name: auth protocol, framing.
            None => name.chars().all(|c| !c.is_control() && c != '\u{fffd}'),
        }
    }
}

/// Dovecot's wildcard filters: `*` and `?`, `!pattern` excludes, excludes win, no includes means all.
pub(crate) fn filter_admits(patterns: &[String], user: &str) -> bool {
    let (mut any_include, mut included) = (false, false);
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(excluded) if wildcard(excluded, user) => return false,
            Some(_) => {}
            None => {
                any_include = true;
                included = included || wildcard(pattern, user);
            }
        }
    }
    included || !any_include
}

/// Case-insensitive match with `*` and `?`, without backtracking beyond the last star.
pub(crate) fn wildcard(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().flat_map(char::to_lowercase).collect();
    let text: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while let Some(&c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&want) if want == '?' || want == c => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    p = after;
                    t = from + 1;
                    star = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(change: impl FnOnce(&mut conf::Auth)) -> Rules {
        let mut auth = conf::Auth::default();
        change(&mut auth);
        Rules::new(&auth, "Mail.Example.test").unwrap()
    }

    #[test]
    fn canonical_names() {
        let standard = rules(|_| {});
        let bare = rules(|a| a.default_domain = Some(String::new()));
        let translating = rules(|a| a.username_translation = "#@/@".into());
        let local = rules(|a| a.username_format = "%{user | username | lower}".into());
        let open = rules(|a| a.username_chars = String::new());
        let cases: &[(&Rules, &str, Result<&str, Refused>)] = &[
            (&standard, "bob", Ok("bob@mail.example.test")),
            (&standard, "BOB@Example.ORG", Ok("bob@example.org")),
            (&standard, "", Err(Refused::Empty)),
            (&standard, "@example.org", Err(Refused::Empty)),
            (&standard, "al\"ice", Err(Refused::Character)),
            (&standard, "al ice", Err(Refused::Character)),
            (&standard, "../x", Err(Refused::Character)),
            (&standard, "%{home}", Err(Refused::Character)),
            (&standard, "a\nb", Err(Refused::Character)),
            (&standard, "jörg", Err(Refused::Character)),
            (&bare, "bob", Ok("bob")),
            (&translating, "bob#a.org", Ok("bob@a.org")),
            (&translating, "bob/a.org", Ok("bob@a.org")),
            (&local, "Bob@a.org", Ok("bob")),
            (&open, "Jörg", Ok("jörg@mail.example.test")),
            (&open, "a\tb", Err(Refused::Character)),
            (&open, "a\u{7f}b", Err(Refused::Character)),
        ];
        for (rules, typed, want) in cases {
            assert_eq!(rules.canonical(typed), want.map(str::to_owned), "{typed:?}");
        }
        assert_eq!(standard.canonical(&"a".repeat(65_536)), Err(Refused::TooLong));
    }

    #[test]
    fn masters_split_at_the_first_separator() {
        let rules = rules(|a| a.master_user_separator = Some('*'));
        assert_eq!(rules.split_master("bob*admin*x"), Some(("bob", "admin*x")));
        assert_eq!(rules.split_master("bob"), None);
    }

    #[test]
    fn filters() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&[], "a@b", true),
            (&["*@b"], "a@b", true),
            (&["*@b"], "a@c", false),
            (&["!*@c"], "a@b", true),
            (&["!*@c"], "a@c", false),
            (&["*", "!a*"], "ab@c", false),
            (&["?@B"], "a@b", true),
            (&["a*b*c"], "axxbxxbc", true),
            (&["a*b*c"], "axxbxxb", false),
        ];
        for (patterns, user, want) in cases {
            let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
            assert_eq!(filter_admits(&patterns, user), *want, "{patterns:?} {user}");
        }
    }

    #[test]
    fn wildcards_take_linear_time_on_hostile_patterns() {
        let pattern = "*a".repeat(200);
        assert!(!wildcard(&pattern, &"a".repeat(199)));
    }
}
