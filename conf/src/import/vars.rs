//! Dovecot's variables in our spelling.
//!
//! Source:    Dovecot 2.3 `lib/var-expand.c` (`%u`, `%Ln`, `%{login_user}`), 2.4 `lib-var-expand` (`%{user | domain}`).
//! Trust:     templates are another program's settings.
//! Never:     pass on a variable that nobody here expands.

/// One-letter variables of 2.3.
const LETTERS: &[(char, &str)] = &[
    ('u', "user"),
    ('n', "user | username"),
    ('d', "user | domain"),
    ('s', "service"),
    ('h', "home"),
    ('l', "lip"),
    ('r', "rip"),
    ('a', "lport"),
    ('b', "rport"),
    ('p', "pid"),
    ('m', "mech"),
    ('c', "secured"),
    ('k', "cert"),
];

/// Long names: Dovecot's, ours.
const NAMES: &[(&str, &str)] = &[
    ("user", "user"),
    ("username", "user | username"),
    ("domain", "user | domain"),
    ("service", "service"),
    ("protocol", "service"),
    ("home", "home"),
    ("lip", "lip"),
    ("local_ip", "lip"),
    ("rip", "rip"),
    ("remote_ip", "rip"),
    ("lport", "lport"),
    ("local_port", "lport"),
    ("rport", "rport"),
    ("remote_port", "rport"),
    ("session", "session"),
    ("mechanism", "mech"),
    ("secured", "secured"),
    ("local_name", "local_name"),
    ("login_user", "login_user"),
    ("login_username", "login_username"),
    ("login_domain", "login_domain"),
    ("master_user", "master_user"),
    ("orig_user", "orig_user"),
    ("orig_username", "orig_username"),
    ("orig_domain", "orig_domain"),
    ("original_user", "orig_user"),
    ("auth_user", "auth_user"),
    ("auth_username", "auth_username"),
    ("auth_domain", "auth_domain"),
];

/// Filters of 2.4 that we have.
const FILTERS: &[&str] = &["lower", "upper", "username", "domain"];

/// The text with our variables, or the variable that we do not have.
pub(super) fn translate(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push_str("%%");
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inner, after) = after.split_once('}').ok_or_else(|| format!("%{{{after}"))?;
            out.push_str(&long(inner).ok_or_else(|| format!("%{{{inner}}}"))?);
            rest = after;
        } else {
            let (variable, after) = short(after).ok_or_else(|| {
                let end = after.char_indices().nth(2).map_or(after.len(), |(at, _)| at);
                format!("%{}", after.get(..end).unwrap_or_default())
            })?;
            out.push_str(&variable);
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// `Lu` and what follows it.
fn short(text: &str) -> Option<(String, &str)> {
    let mut filter = "";
    let mut letters = text.chars();
    loop {
        match letters.next()? {
            'L' => filter = " | lower",
            'U' => filter = " | upper",
            letter => {
                let (_, name) = LETTERS.iter().find(|(known, _)| *known == letter)?;
                return Some((format!("%{{{name}{filter}}}"), letters.as_str()));
            }
        }
    }
}

fn long(inner: &str) -> Option<String> {
    // A field of a database: the same in both.
    if inner.starts_with("passdb:") || inner.starts_with("userdb:") {
        return Some(format!("%{{{inner}}}"));
    }
    let mut words = inner.split('|').map(str::trim);
    let first = words.next()?;
    let mut out = NAMES.iter().find(|(known, _)| *known == first)?.1.to_owned();
    for filter in words {
        let ours =
            FILTERS.contains(&filter) || filter.starts_with("default(") || filter.starts_with("substr(");
        if !ours {
            return None;
        }
        out.push_str(" | ");
        out.push_str(filter);
    }
    Some(format!("%{{{out}}}"))
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn both_spellings() {
        for (theirs, ours) in [
            ("/var/vmail/%d/%n", "/var/vmail/%{user | domain}/%{user | username}"),
            ("%Lu", "%{user | lower}"),
            ("%{user|domain}/%{user | username | lower}", "%{user | domain}/%{user | username | lower}"),
            ("%h/Maildir 50%%", "%{home}/Maildir 50%%"),
            ("%{protocol}", "%{service}"),
            ("%{passdb:x:y}", "%{passdb:x:y}"),
            ("plain", "plain"),
        ] {
            assert_eq!(translate(theirs).as_deref(), Ok(ours), "{theirs}");
        }
        for (theirs, named) in [
            ("/x/%1Mu", "%1M"),
            ("%{user | md5 | hexlify}", "%{user | md5 | hexlify}"),
            ("%{hostname}", "%{hostname}"),
            ("%", "%"),
            ("%{user", "%{user"),
        ] {
            assert_eq!(translate(theirs), Err(named.to_owned()), "{theirs}");
        }
    }
}
