//! Words for `postern auth lookup` and `postern auth explain`: what an entry holds, and what both chains come to.
//!
//! Trust:     who asks administers the stack.
//! Never:     the stored password or any part of it; scheme and cost are all that is told.

use creds::Verifier;

use crate::chain::{Said, StoredText, Walk};
use crate::config::Passdb;
use crate::request::Request;
use crate::userdb::Found;

/// The stored password of an entry: its scheme and what checking it would cost.
pub(crate) fn stored(verifier: &Verifier, passdb: &Passdb, text: StoredText<'_>, nopassword: bool) -> String {
    let about = |what: String| format!("passdb {}: {what}", passdb.name);
    if nopassword {
        return about("any password is right (nopassword)".to_owned());
    }
    if text.text.expose().is_empty() {
        return about("the stored password is empty".to_owned());
    }
    let stored = match text.parse() {
        Ok(stored) => stored,
        Err(error) => return about(format!("the stored password cannot be used: {error}")),
    };
    let scheme = stored.scheme();
    match verifier.cost(&stored) {
        Ok(cost) if cost.is_cheap() => about(format!("password in {{{scheme}}}, checked at once")),
        Ok(cost) => about(format!(
            "password in {{{scheme}}}, checked on a hash thread: about {} ms, {} KiB of memory",
            cost.micros.div_ceil(1000),
            cost.memory / 1024
        )),
        Err(error) => about(format!("password in {{{scheme}}}, which is refused: {error}")),
    }
}

/// Whether the user exists, in one word: `yes`, `no` or `unavailable`.
pub(crate) fn found(passdb: &Said, userdb: &Found, without_userdb: bool) -> &'static str {
    match (passdb, userdb) {
        (_, Found::Yes) => "yes",
        (_, Found::No) => "no",
        // Only an authentication backend: who can log in exists.
        (Said::Ok, Found::Unavailable(_)) if without_userdb => "yes",
        (Said::Unknown(_) | Said::Mismatch(_), Found::Unavailable(_)) if without_userdb => "no",
        (_, Found::Unavailable(_)) => "unavailable",
    }
}

/// What a login with the right password would come to, and why.
pub(crate) fn result(walk: &Walk, request: &Request) -> (&'static str, Option<String>) {
    match &walk.said {
        Said::Ok if request.fields.has("nologin") => {
            let reason = request.fields.value("reason").map(|text| format!(": {text}")).unwrap_or_default();
            ("refused", Some(format!("nologin is set{reason}")))
        }
        Said::Ok => ("possible", None),
        Said::Internal(why) => ("unavailable", Some(why.clone())),
        Said::Next => ("unavailable", Some("no passdb decides".to_owned())),
        Said::Disabled(why) => ("refused", Some(why.clone())),
        Said::Expired(why) => ("refused", Some(format!("password expired ({why})"))),
        // The others may say no: who can only be asked with a password may still say yes.
        Said::Mismatch(why) | Said::Unknown(why) | Said::NoScheme(why) if walk.blind => {
            ("unknown", Some(format!("{why}; a passdb can only be asked with a password: postern auth test")))
        }
        Said::Mismatch(why) | Said::Unknown(why) | Said::NoScheme(why) => ("refused", Some(why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PassdbDriver;
    use creds::{NoCrypt, Policy, Scheme, Secret};

    #[test]
    fn scheme_and_cost_but_never_the_hash() {
        let passdb = Passdb {
            name: "users".into(),
            rules: conf::PassdbRules::default(),
            defaults: Vec::new(),
            overrides: Vec::new(),
            driver: PassdbDriver::Static { password: None, nopassword: false },
        };
        let verifier = Verifier::new(Policy::default(), NoCrypt);
        let argon = "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHRzYWx0$\
                     aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g";
        for (text, want) in [
            ("{PLAIN}hunter2", "password in {PLAIN}, checked at once"),
            ("", "the stored password is empty"),
            ("{ROT13}hunter2", "the stored password cannot be used: unknown password scheme {ROT13}"),
            (argon, "password in {ARGON2ID}, checked on a hash thread: about"),
            ("{PLAIN-MD5}hunter2", "password in {PLAIN-MD5}, which is refused"),
        ] {
            let secret = Secret::from(text.as_bytes());
            let text = StoredText { text: &secret, default: Scheme::Crypt, no_scheme: false };
            let shown = stored(&verifier, &passdb, text, false);
            assert!(shown.starts_with(&format!("passdb users: {want}")), "{shown}");
            assert!(!shown.contains("hunter2") && !shown.contains("aGFzaGhh"), "{shown}");
        }
    }

    #[test]
    fn one_word_for_both_chains() {
        let away = || Found::Unavailable("x".into());
        for (said, userdb, without, want) in [
            (Said::Ok, Found::Yes, false, "yes"),
            (Said::Unknown(String::new()), Found::No, false, "no"),
            (Said::Ok, Found::No, false, "no"),
            (Said::Ok, away(), true, "yes"),
            (Said::Ok, away(), false, "unavailable"),
            (Said::Unknown(String::new()), away(), true, "no"),
            (Said::Internal(String::new()), away(), true, "unavailable"),
        ] {
            assert_eq!(found(&said, &userdb, without), want);
        }
    }
}
