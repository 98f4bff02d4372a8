//! Templates with Dovecot's variables.
//!
//! Purpose:  `%u`, `%Lu`, `%{user}`, `%{user | domain | lower}`, `%{passdb:field:default}`, `%%`.
//! Source:   Dovecot 2.3 `lib/var-expand.c` (short forms), 2.4 `lib-var-expand` (filters).
//! Trust:    templates are the administrator's, values may be strangers'.
//! Never:    expand a value again, or put a value with `/` into a path ([`Template::path`]).

use std::fmt::Write as _;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(Variable, Vec<Filter>),
}

/// What stands in for a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Variable {
    /// A named value.
    Named(&'static str),
    /// An earlier field of the password database, with a default.
    Passdb(String, Option<String>),
    /// An earlier field of the user database, with a default.
    Userdb(String, Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Lower,
    Upper,
    Username,
    Domain,
    DomainFirst,
    DomainLast,
    WithoutDefaultDomain,
    Default(String),
    Substr(usize, Option<usize>),
}

/// Why a template is no template, or cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `%` is followed by nothing that is known.
    #[error("unknown variable `{0}`; write `%%` for a percent sign")]
    Unknown(String),
    /// A filter that does not exist.
    #[error("unknown filter `{0}`")]
    Filter(String),
    /// `%{` without `}`.
    #[error("`%{{` is not closed")]
    Open,
    /// A value cannot be part of a path.
    #[error("a value cannot be part of a path")]
    NotAPath,
    /// The home is not known where a path is to be made of it.
    #[error("the home is not known yet: name it in the same entry")]
    NoHome,
}

/// Where values come from.
pub(crate) trait Values {
    /// The value of a named variable; unset ones are empty.
    fn named(&self, name: &str) -> String;
    /// An earlier field of the password database.
    fn passdb_field(&self, name: &str) -> Option<String>;
    /// An earlier field of the user database.
    fn userdb_field(&self, name: &str) -> Option<String>;
    /// The domain that bare names belong to.
    fn default_domain(&self) -> Option<&str>;
}

/// Long names, each with Dovecot's other spellings of the same value.
const NAMES: &[(&str, &[&str])] = &[
    ("user", &[]),
    ("username", &[]),
    ("domain", &["domain_first"]),
    ("domain_last", &[]),
    ("service", &["protocol"]),
    ("home", &[]),
    ("lip", &["local_ip"]),
    ("rip", &["remote_ip"]),
    ("lport", &["local_port"]),
    ("rport", &["remote_port"]),
    ("real_lip", &["real_local_ip"]),
    ("real_rip", &["real_remote_ip"]),
    ("pid", &[]),
    ("mech", &["mechanism"]),
    ("secured", &["secure"]),
    ("cert", &[]),
    ("session", &[]),
    ("session_pid", &[]),
    ("local_name", &[]),
    ("client_id", &[]),
    ("master_user", &[]),
    ("login_user", &[]),
    ("login_username", &[]),
    ("login_domain", &[]),
    ("orig_user", &["original_user"]),
    ("orig_username", &["original_username"]),
    ("orig_domain", &["original_domain"]),
    ("auth_user", &[]),
    ("auth_username", &[]),
    ("auth_domain", &[]),
];

/// Short names.
const LETTERS: &[(char, &str)] = &[
    ('u', "user"),
    ('n', "username"),
    ('d', "domain"),
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

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Template, Error> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(tail) = after.strip_prefix('%') {
                literal.push('%');
                rest = tail;
                continue;
            }
            let (piece, tail) = match after.strip_prefix('{') {
                Some(inner) => {
                    let (inner, tail) = inner.split_once('}').ok_or(Error::Open)?;
                    (long_form(inner)?, tail)
                }
                None => short_form(after)?,
            };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
            rest = tail;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Template(pieces))
    }

    /// Expands the template.
    pub(crate) fn expand(&self, values: &dyn Values) -> String {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(variable, filters) => out.push_str(&value_of(variable, filters, values)),
            }
        }
        out
    }

    /// Expands the template for a field of the user database. `home` and `mail`, also where `userdb_import` sets
    /// them, are paths: what a client tells, its name first of all, is one component there, or nothing.
    pub(crate) fn field(&self, name: &str, values: &dyn Values) -> Result<String, Error> {
        let places = |item: &str| is_place(item.split_once('=').map_or(item, |(name, _)| name));
        if !(is_place(name) || name == "userdb_import" && self.expand(values).split('\t').any(places)) {
            return Ok(self.expand(values));
        }
        self.checked(values, |origin, value| match origin {
            // Without a home the text behind it would be a place that all users share.
            Origin::Home if value.is_empty() => Err(Error::NoHome),
            Origin::Home | Origin::Field => Ok(()),
            Origin::Client if value.is_empty() || is_component(value) => Ok(()),
            Origin::Client => Err(Error::NotAPath),
        })
    }

    /// Expands the template for use as a path: a value other than the home, which was made or written as a path,
    /// must be one plain component.
    pub(crate) fn path(&self, values: &dyn Values) -> Result<String, Error> {
        self.checked(values, |origin, value| match origin {
            Origin::Home if value.is_empty() => Err(Error::NoHome),
            Origin::Home => Ok(()),
            Origin::Field | Origin::Client if is_component(value) => Ok(()),
            Origin::Field | Origin::Client => Err(Error::NotAPath),
        })
    }

    fn checked(
        &self,
        values: &dyn Values,
        check: impl Fn(Origin, &str) -> Result<(), Error>,
    ) -> Result<String, Error> {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(variable, filters) => {
                    let value = value_of(variable, filters, values);
                    if value.contains('\0') {
                        return Err(Error::NotAPath);
                    }
                    check(Origin::of(variable), &value)?;
                    out.push_str(&value);
                }
            }
        }
        Ok(out)
    }
}

/// Whose word a value is.
enum Origin {
    /// The home, found or written as a path.
    Home,
    /// An administrator's field.
    Field,
    /// The client's: its name, its address.
    Client,
}

impl Origin {
    fn of(variable: &Variable) -> Origin {
        match variable {
            Variable::Named(name) if *name == "home" => Origin::Home,
            Variable::Userdb(name, _) if name == "home" => Origin::Home,
            Variable::Userdb(..) | Variable::Passdb(..) => Origin::Field,
            Variable::Named(_) => Origin::Client,
        }
    }
}

/// Not empty, no separator, no hidden or parent name, no control characters; no colon, which ends the path in `mail`.
fn is_component(value: &str) -> bool {
    let unfit = |c: char| matches!(c, '/' | ':') || c.is_control();
    !value.is_empty() && !value.starts_with('.') && !value.contains(unfit)
}

/// Whether a field, whatever its suffix, says where something is.
fn is_place(name: &str) -> bool {
    matches!(name.rsplit_once(':').map_or(name, |(name, _)| name), "home" | "mail")
}

fn value_of(variable: &Variable, filters: &[Filter], values: &dyn Values) -> String {
    let mut value = match variable {
        Variable::Named(name) => values.named(name),
        Variable::Passdb(name, default) => {
            values.passdb_field(name).or_else(|| default.clone()).unwrap_or_default()
        }
        Variable::Userdb(name, default) => {
            values.userdb_field(name).or_else(|| default.clone()).unwrap_or_default()
        }
    };
    for filter in filters {
        value = filter.run(value, values);
    }
    value
}

impl Filter {
    fn run(&self, value: String, values: &dyn Values) -> String {
        match self {
            Filter::Lower => value.to_lowercase(),
            Filter::Upper => value.to_uppercase(),
            Filter::Username => before_at(&value).to_owned(),
            Filter::Domain | Filter::DomainFirst => after_first_at(&value).to_owned(),
            Filter::DomainLast => after_last_at(&value).to_owned(),
            Filter::WithoutDefaultDomain => without_domain(&value, values.default_domain()).to_owned(),
            Filter::Default(other) if value.is_empty() => other.clone(),
            Filter::Default(_) => value,
            Filter::Substr(from, length) => {
                value.chars().skip(*from).take(length.unwrap_or(usize::MAX)).collect()
            }
        }
    }

    fn parse(text: &str) -> Result<Filter, Error> {
        let text = text.trim();
        let (name, argument) = match text.split_once('(') {
            Some((name, rest)) => {
                (name.trim(), Some(rest.strip_suffix(')').ok_or_else(|| Error::Filter(text.to_owned()))?))
            }
            None => (text, None),
        };
        let unquoted = |text: &str| text.trim().trim_matches(['\'', '"']).to_owned();
        Ok(match (name, argument) {
            ("lower", None) => Filter::Lower,
            ("upper", None) => Filter::Upper,
            ("username", None) => Filter::Username,
            ("domain", None) => Filter::Domain,
            ("domain_first", None) => Filter::DomainFirst,
            ("domain_last", None) => Filter::DomainLast,
            ("without_default_domain", None) => Filter::WithoutDefaultDomain,
            ("default", Some(argument)) => Filter::Default(unquoted(argument)),
            ("default", None) => Filter::Default(String::new()),
            ("substr", Some(argument)) => {
                let mut numbers = argument.split(',').map(|n| n.trim().parse::<usize>());
                match (numbers.next(), numbers.next(), numbers.next()) {
                    (Some(Ok(from)), None, _) => Filter::Substr(from, None),
                    (Some(Ok(from)), Some(Ok(length)), None) => Filter::Substr(from, Some(length)),
                    _ => return Err(Error::Filter(text.to_owned())),
                }
            }
            _ => return Err(Error::Filter(text.to_owned())),
        })
    }
}

fn long_form(inner: &str) -> Result<Piece, Error> {
    let mut parts = inner.split('|');
    let name = parts.next().unwrap_or_default().trim();
    let field = |rest: &str| match rest.split_once(':') {
        Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
        None => (rest.to_owned(), None),
    };
    let mut filters = parts.map(Filter::parse).collect::<Result<Vec<_>, _>>()?;
    let variable = if let Some(rest) = name.strip_prefix("passdb:") {
        let (name, default) = field(rest);
        Variable::Passdb(name, default)
    } else if let Some(rest) = name.strip_prefix("userdb:") {
        let (name, default) = field(rest);
        Variable::Userdb(name, default)
    } else {
        // 2.3 also writes modifiers inside: `%{L user}` does not exist, `%{lower:user}` does not either.
        let known = NAMES
            .iter()
            .find(|(long, others)| *long == name || others.contains(&name))
            .map(|(long, _)| *long)
            .ok_or_else(|| Error::Unknown(format!("%{{{name}}}")))?;
        Variable::Named(known)
    };
    if variable == Variable::Named("domain_last") {
        filters.insert(0, Filter::DomainLast);
        return Ok(Piece::Variable(Variable::Named("user"), filters));
    }
    Ok(Piece::Variable(variable, filters))
}

/// `%[offset.]width[modifier…]letter`
fn short_form(text: &str) -> Result<(Piece, &str), Error> {
    let unknown =
        || Error::Unknown(format!("%{}", text.chars().next().map(String::from).unwrap_or_default()));
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (numbers, mut rest) = text.split_at(digits);
    let mut filters = Vec::new();
    loop {
        let mut chars = rest.chars();
        let letter = chars.next().ok_or_else(unknown)?;
        let tail = chars.as_str();
        match letter {
            'L' => filters.push(Filter::Lower),
            'U' => filters.push(Filter::Upper),
            _ => {
                let name = LETTERS
                    .iter()
                    .find(|(known, _)| *known == letter)
                    .map(|(_, name)| *name)
                    .ok_or_else(unknown)?;
                if !numbers.is_empty() {
                    filters.push(substring(numbers).ok_or_else(unknown)?);
                }
                return Ok((Piece::Variable(Variable::Named(name), filters), tail));
            }
        }
        rest = tail;
    }
}

fn substring(numbers: &str) -> Option<Filter> {
    match numbers.split_once('.') {
        Some((from, length)) => Some(Filter::Substr(from.parse().ok()?, Some(length.parse().ok()?))),
        None => Some(Filter::Substr(0, Some(numbers.parse().ok()?))),
    }
}

/// The local part: what stands before the first `@`.
pub(crate) fn before_at(name: &str) -> &str {
    name.split_once('@').map_or(name, |(local, _)| local)
}

/// The domain: what stands after the first `@`.
pub(crate) fn after_first_at(name: &str) -> &str {
    name.split_once('@').map_or("", |(_, domain)| domain)
}

fn after_last_at(name: &str) -> &str {
    name.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// The name without its domain when that is the default one.
pub(crate) fn without_domain<'a>(name: &'a str, domain: Option<&str>) -> &'a str {
    match (name.rsplit_once('@'), domain) {
        (Some((local, own)), Some(default)) if own.eq_ignore_ascii_case(default) && !local.is_empty() => {
            local
        }
        _ => name,
    }
}

/// The value of what stands between `%{` and `}`, or of a short form's letter.
pub(crate) fn variable(inner: &str, values: &dyn Values) -> Option<String> {
    let mut chars = inner.chars();
    let piece = match (chars.next(), chars.next()) {
        (Some(letter), None) if letter.is_ascii_alphabetic() => short_form(inner).ok()?.0,
        _ => long_form(inner).ok()?,
    };
    match piece {
        Piece::Variable(variable, filters) => Some(value_of(&variable, &filters, values)),
        Piece::Text(text) => Some(text),
    }
}

/// Values for templates that need nothing but a user name.
pub(crate) struct NameOnly<'a> {
    /// The name.
    pub(crate) user: &'a str,
    /// The domain of bare names.
    pub(crate) default_domain: Option<&'a str>,
}

impl Values for NameOnly<'_> {
    fn named(&self, name: &str) -> String {
        named_part(name, self.user).unwrap_or_default()
    }

    fn passdb_field(&self, _: &str) -> Option<String> {
        None
    }

    fn userdb_field(&self, _: &str) -> Option<String> {
        None
    }

    fn default_domain(&self) -> Option<&str> {
        self.default_domain
    }
}

/// The variables that are parts of the user name.
pub(crate) fn named_part(variable: &str, user: &str) -> Option<String> {
    Some(match variable {
        "user" => user.to_owned(),
        "username" => before_at(user).to_owned(),
        "domain" => after_first_at(user).to_owned(),
        "pid" => {
            let mut text = String::new();
            let _ = write!(text, "{}", std::process::id());
            text
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<'a>(user: &'a str) -> NameOnly<'a> {
        NameOnly { user, default_domain: Some("example.test") }
    }

    #[test]
    fn expansions() {
        let cases = [
            ("", ""),
            ("plain text", "plain text"),
            ("100%%", "100%"),
            ("%u|%n|%d", "Bob@example.test|Bob|example.test"),
            ("%Lu %Un %2n %1.2n", "bob@example.test BOB Bo ob"),
            ("%{user}", "Bob@example.test"),
            ("%{user | username}/%{user | domain}", "Bob/example.test"),
            ("%{user|lower|username}", "bob"),
            ("%{user | without_default_domain}", "Bob"),
            ("%{domain | upper}", "EXAMPLE.TEST"),
            ("%{session | default('none')}", "none"),
            ("%{user | substr(1, 2)}", "ob"),
            ("%{passdb:quota:5G}", "5G"),
            ("%{userdb:x}", ""),
            ("%{domain_last}", "example.test"),
        ];
        for (text, want) in cases {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.expand(&values("Bob@example.test")), want, "{text}");
        }
    }

    #[test]
    fn other_domains_keep_theirs() {
        let template = Template::parse("%{user | without_default_domain}").unwrap();
        assert_eq!(template.expand(&values("bob@other.test")), "bob@other.test");
        assert_eq!(template.expand(&values("bob")), "bob");
        assert_eq!(template.expand(&values("@example.test")), "@example.test");
    }

    #[test]
    fn mistakes() {
        for (text, want) in [
            ("50%off", Error::Unknown("%o".into())),
            ("%", Error::Unknown("%".into())),
            ("%{user", Error::Open),
            ("%{nothing}", Error::Unknown("%{nothing}".into())),
            ("%{password}", Error::Unknown("%{password}".into())),
            ("%w", Error::Unknown("%w".into())),
            ("%{user | rot13}", Error::Filter("rot13".into())),
            ("%{user | substr(x)}", Error::Filter("substr(x)".into())),
        ] {
            assert_eq!(Template::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn values_are_never_expanded_again() {
        let template = Template::parse("%u").unwrap();
        assert_eq!(template.expand(&values("%{user}%%")), "%{user}%%");
    }

    #[test]
    fn paths_take_plain_components_only() {
        let template = Template::parse("/users/%d/%n").unwrap();
        assert_eq!(template.path(&values("bob@example.test")).unwrap(), "/users/example.test/bob");
        for user in
            ["bob@../..", "../x@a", "bob@a/b", "bob", "bob@.hidden", "a\0b@c", "a\nb@c", "@c", "a:b@c"]
        {
            assert_eq!(template.path(&values(user)), Err(Error::NotAPath), "{user:?}");
        }
    }

    #[test]
    fn fields_that_are_places_are_paths() {
        for (name, text, is_path) in [
            ("home", "/srv/%u", true),
            ("mail:default", "maildir:/srv/%u", true),
            ("userdb_import", "uid=5\thome=/srv/%u", true),
            ("userdb_import", "mail:protected=/srv/%u", true),
            ("userdb_import", "note=%u", false),
            ("quota_rule", "%u", false),
        ] {
            let template = Template::parse(text).unwrap();
            assert!(template.field(name, &values("bob")).is_ok(), "{name}");
            assert_eq!(template.field(name, &values("../x")).is_err(), is_path, "{name} {text}");
        }
        // As with Dovecot: no domain is no component.
        let template = Template::parse("/srv/%d/%n").unwrap();
        assert_eq!(template.field("home", &values("bob")).unwrap(), "/srv//bob");
        let template = Template::parse("maildir:%h/Maildir").unwrap();
        assert_eq!(template.field("mail", &values("bob")), Err(Error::NoHome));
    }
}
