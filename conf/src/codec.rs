//! How each kind of value is read from the file and written into it.
//!
//! Purpose:   one small type per way of writing: durations, sizes, modes, addresses, paths, lists, words.
//! Trust:     values come from a parsed document; whatever does not fit is reported with what would.
//! Never:     read a secret out of the file: the key is refused with where to put it (`SecretText`).

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::Secret;
use crate::nearest::nearest;
use crate::schema::{Codec, Cx, Kind, Section, Written, join, leaf};

/// A text.
pub(crate) struct Text;
/// A text with `%{…}`; kept as it is. A relative path gets its folder in `resolve`.
pub(crate) struct Template;
/// `true` or `false`.
pub(crate) struct Flag;
/// A whole number.
pub(crate) struct Count;
/// A whole number between two bounds.
pub(crate) struct CountIn<const MIN: u32, const MAX: u32>;
/// A large whole number.
pub(crate) struct Wide;
/// A number of bytes: `25M`.
pub(crate) struct Size;
/// A duration: `30s`.
pub(crate) struct Time;
/// Permissions: `"0660"`.
pub(crate) struct Mode;
/// A path, absolute after reading.
pub(crate) struct Path;
/// An address with a port.
pub(crate) struct Address;
/// One character.
pub(crate) struct Letter;
/// A list of texts.
pub(crate) struct TextList;
/// A list of names in capitals.
pub(crate) struct Names;
/// A secret, which must not stand in the file.
pub(crate) struct SecretText;
/// A table of texts, in the order of the file.
pub(crate) struct Fields;
/// One of several words.
pub(crate) struct Choice<T>(PhantomData<T>);
/// A value that may be unset.
pub(crate) struct Opt<C>(PhantomData<C>);
/// One value or a list of them; not empty.
pub(crate) struct OneOrMore<C>(PhantomData<C>);
/// `[name]`.
pub(crate) struct Table<T>(PhantomData<T>);
/// `[[name]]`.
pub(crate) struct Tables<T>(PhantomData<T>);

/// An enumeration whose values are words.
pub(crate) trait Word: Sized + Copy + std::str::FromStr {
    /// All words.
    const ALL: &'static [&'static str];
    /// The word of this value.
    fn spell(&self) -> &'static str;
}

fn text<'a>(cx: &mut Cx, path: &str, value: &'a Spanned<DeValue<'_>>, expected: &str) -> Option<&'a str> {
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => {
            cx.problem(value.span(), format!("`{}` holds a NUL character", leaf(path)), "remove it");
            None
        }
        DeValue::String(text) => Some(text.as_ref()),
        _ => {
            cx.wrong_kind(path, value, expected);
            None
        }
    }
}

fn number(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>, min: u64, max: u64) -> Option<u64> {
    let DeValue::Integer(integer) = value.get_ref() else {
        cx.wrong_kind(path, value, &whole(min, max));
        return None;
    };
    let digits: String = integer.as_str().chars().filter(|c| *c != '_').collect();
    match i128::from_str_radix(&digits, integer.radix()).ok().and_then(|n| u64::try_from(n).ok()) {
        Some(n) if (min..=max).contains(&n) => Some(n),
        _ => {
            let expected = whole(min, max);
            cx.problem(
                value.span(),
                format!("`{}` is out of range", leaf(path)),
                format!("write {expected}"),
            );
            None
        }
    }
}

fn whole(min: u64, max: u64) -> String {
    match (min, max) {
        (0, u64::MAX) => "a whole number such as `100`".to_owned(),
        (0, m) if m == u64::from(u32::MAX) => "a whole number such as `100`".to_owned(),
        _ => format!("a whole number from {min} to {max}"),
    }
}

/// A TOML basic string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list(items: impl IntoIterator<Item = String>) -> Written {
    Written::Value(format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", ")))
}

impl Codec for Text {
    type Value = String;
    const KIND: Kind = Kind::Value("a text");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        text(cx, path, value, "a text in quotes").map(str::to_owned)
    }

    fn write(value: &String) -> Written {
        Written::Value(quote(value))
    }
}

impl Codec for Template {
    type Value = String;
    const KIND: Kind = Kind::Value("a text with `%{…}`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        let raw = text(cx, path, value, "a text in quotes")?;
        if raw.matches("%{").count() > raw.matches('}').count() {
            cx.problem(
                value.span(),
                format!("`{}` opens `%{{` without closing it", leaf(path)),
                "write variables as `%{user}` or `%{user | domain}`",
            );
            return None;
        }
        Some(raw.to_owned())
    }

    fn write(value: &String) -> Written {
        Text::write(value)
    }
}

impl Codec for Flag {
    type Value = bool;
    const KIND: Kind = Kind::Value("`true` or `false`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => {
                cx.wrong_kind(path, value, "`true` or `false`, without quotes");
                None
            }
        }
    }

    fn write(value: &bool) -> Written {
        Written::Value(value.to_string())
    }
}

impl<const MIN: u32, const MAX: u32> Codec for CountIn<MIN, MAX> {
    type Value = u32;
    const KIND: Kind = Kind::Value("a whole number");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u32> {
        number(cx, path, value, MIN.into(), MAX.into()).and_then(|n| u32::try_from(n).ok())
    }

    fn write(value: &u32) -> Written {
        Written::Value(value.to_string())
    }
}

impl Codec for Count {
    type Value = u32;
    const KIND: Kind = Kind::Value("a whole number");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u32> {
        CountIn::<0, { u32::MAX }>::read(cx, path, value)
    }

    fn write(value: &u32) -> Written {
        Written::Value(value.to_string())
    }
}

impl Codec for Wide {
    type Value = u64;
    const KIND: Kind = Kind::Value("a whole number");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u64> {
        number(cx, path, value, 0, u64::MAX)
    }

    fn write(value: &u64) -> Written {
        Written::Value(value.to_string())
    }
}

impl Codec for Size {
    type Value = u64;
    const KIND: Kind = Kind::Value("a size such as `25M`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u64> {
        if let DeValue::Integer(_) = value.get_ref() {
            return number(cx, path, value, 0, u64::MAX);
        }
        let raw = text(cx, path, value, "a size such as \"25M\"")?;
        let size = parse_size(raw);
        if size.is_none() {
            cx.problem(
                value.span(),
                format!("`{raw}` is not a size"),
                "write a number of bytes with an optional K, M or G, such as \"25M\"",
            );
        }
        size
    }

    fn write(value: &u64) -> Written {
        let unit = [(1_u64 << 30, 'G'), (1 << 20, 'M'), (1 << 10, 'K')];
        match unit.iter().find(|(unit, _)| *value > 0 && value.is_multiple_of(*unit)) {
            Some((unit, letter)) => Written::Value(format!("\"{}{letter}\"", value / unit)),
            None => Written::Value(value.to_string()),
        }
    }
}

fn parse_size(raw: &str) -> Option<u64> {
    let raw = raw.trim();
    let digits = raw.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = raw.get(digits.len()..)?.trim();
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KB" | "KiB" => 1 << 10,
        "M" | "m" | "MB" | "MiB" => 1 << 20,
        "G" | "g" | "GB" | "GiB" => 1 << 30,
        _ => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

impl Codec for Time {
    type Value = Duration;
    const KIND: Kind = Kind::Value("a duration such as `30s`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Duration> {
        let negative = |cx: &mut Cx| {
            let title = format!("`{}` cannot be negative", leaf(path));
            cx.problem(value.span(), title, "write a duration such as \"30s\"; the units are ms, s, m, h, d");
        };
        if let DeValue::Integer(number) = value.get_ref() {
            if number.as_str().starts_with('-') {
                negative(cx);
                return None;
            }
            cx.problem(
                value.span(),
                format!("`{}` needs a unit", leaf(path)),
                format!("write \"{number}s\" for seconds; the units are ms, s, m, h, d"),
            );
            return None;
        }
        let raw = text(cx, path, value, "a duration such as \"30s\"")?;
        let time = parse_time(raw);
        if time.is_none() && raw.trim().strip_prefix('-').is_some_and(|rest| parse_time(rest).is_some()) {
            negative(cx);
        } else if time.is_none() {
            cx.problem(
                value.span(),
                format!("`{raw}` is not a duration"),
                "write a number and a unit (ms, s, m, h, d), such as \"30s\" or \"1h30m\"",
            );
        }
        time
    }

    fn write(value: &Duration) -> Written {
        let ms = value.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        if ms == 0 {
            return Written::Value("\"0s\"".to_owned());
        }
        match units.iter().find(|(unit, _)| ms.is_multiple_of(*unit)) {
            Some((unit, name)) => Written::Value(format!("\"{}{name}\"", ms / unit)),
            None => Written::Value(format!("\"{ms}ms\"")),
        }
    }
}

fn parse_time(raw: &str) -> Option<Duration> {
    // Longer would overflow clocks that daemons add to; nobody means it.
    const LONGEST: u64 = 100 * 365 * 86_400_000;
    let mut rest = raw.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = tail.trim_start();
    }
    (sum <= LONGEST).then(|| Duration::from_millis(sum))
}

impl Codec for Mode {
    type Value = u32;
    const KIND: Kind = Kind::Value("permissions such as `\"0660\"`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u32> {
        let expected = "permissions in quotes, such as \"0660\"";
        if let DeValue::Integer(_) = value.get_ref() {
            cx.problem(
                value.span(),
                format!("`{}` must stand in quotes", leaf(path)),
                format!("write {expected}: a bare number would be read as decimal"),
            );
            return None;
        }
        let raw = text(cx, path, value, expected)?;
        let digits = raw.len() >= 3 && raw.len() <= 4 && raw.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(raw, 8) {
            Ok(mode) if digits && mode <= 0o777 => Some(mode),
            _ => {
                cx.problem(value.span(), format!("`{raw}` is not a mode"), format!("write {expected}"));
                None
            }
        }
    }

    fn write(value: &u32) -> Written {
        Written::Value(format!("\"{value:04o}\""))
    }
}

impl Codec for Path {
    type Value = PathBuf;
    const KIND: Kind = Kind::Value("a path");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<PathBuf> {
        let raw = text(cx, path, value, "a path in quotes")?;
        if raw.is_empty() {
            cx.problem(value.span(), format!("`{}` is empty", leaf(path)), "write a path");
            return None;
        }
        if raw == "~" || raw.starts_with("~/") {
            cx.problem(
                value.span(),
                format!("`{raw}` begins with `~`, which only a shell understands"),
                "write the whole path",
            );
            return None;
        }
        Some(cx.base.join(raw))
    }

    fn write(value: &PathBuf) -> Written {
        Written::Value(quote(&value.to_string_lossy()))
    }
}

impl Codec for Address {
    type Value = SocketAddr;
    const KIND: Kind = Kind::Value("an address with port such as `127.0.0.1:25` or `[::]:25`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<SocketAddr> {
        let expected = "an address with port in quotes, such as \"0.0.0.0:587\" or \"[::1]:587\"";
        let raw = text(cx, path, value, expected)?;
        match raw.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            _ => {
                let (title, help) = address_mistake(raw);
                cx.problem(value.span(), title, help);
                None
            }
        }
    }

    fn write(value: &SocketAddr) -> Written {
        Written::Value(quote(&value.to_string()))
    }
}

/// What is wrong with an address, and what would be right.
fn address_mistake(raw: &str) -> (String, String) {
    if let Ok(ip) = raw.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 587);
        return (format!("`{raw}` has no port"), format!("write \"{example}\""));
    }
    if let Some((host, port)) = raw.rsplit_once(':') {
        let in_range = port.parse::<u16>().is_ok_and(|port| port != 0);
        if !in_range {
            return (format!("`{port}` is not a port"), "ports are numbers from 1 to 65535".to_owned());
        }
        if host.is_empty() || host == "*" {
            return (
                format!("`{raw}` has no address"),
                format!("write both \"0.0.0.0:{port}\" and \"[::]:{port}\" for every address of the machine"),
            );
        }
    }
    (
        format!("`{raw}` is not an address"),
        "write numbers, not names: \"192.0.2.1:587\", or \"[2001:db8::1]:587\" with brackets".to_owned(),
    )
}

impl Codec for Letter {
    type Value = char;
    const KIND: Kind = Kind::Value("one character");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<char> {
        let raw = text(cx, path, value, "one character in quotes")?;
        let mut chars = raw.chars();
        match (chars.next(), chars.next()) {
            (Some(only), None) => Some(only),
            _ => {
                cx.problem(
                    value.span(),
                    format!("`{}` must be one character", leaf(path)),
                    "write one character in quotes, such as \"*\"",
                );
                None
            }
        }
    }

    fn write(value: &char) -> Written {
        Written::Value(quote(&value.to_string()))
    }
}

/// Reads every element of a list; `None` when one of them is wrong.
fn elements<C: Codec>(
    cx: &mut Cx,
    path: &str,
    value: &Spanned<DeValue<'_>>,
    expected: &str,
) -> Option<Vec<C::Value>> {
    let DeValue::Array(array) = value.get_ref() else {
        cx.wrong_kind(path, value, expected);
        return None;
    };
    let mut out = Vec::new();
    let mut whole = true;
    for (i, element) in array.iter().enumerate() {
        let place = format!("{path}[{i}]");
        cx.places.insert(place.clone(), element.span());
        match C::read(cx, &place, element) {
            Some(item) => out.push(item),
            None => whole = false,
        }
    }
    whole.then_some(out)
}

impl Codec for TextList {
    type Value = Vec<String>;
    const KIND: Kind = Kind::Value("a list of texts");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
        elements::<Text>(cx, path, value, "a list such as [\"one\", \"two\"]")
    }

    fn write(value: &Vec<String>) -> Written {
        list(value.iter().map(|item| quote(item)))
    }
}

impl Codec for Names {
    type Value = Vec<String>;
    const KIND: Kind = Kind::Value("a list of names");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
        let names = elements::<Text>(cx, path, value, "a list such as [\"PLAIN\", \"LOGIN\"]")?;
        Some(names.iter().map(|name| name.to_ascii_uppercase()).collect())
    }

    fn write(value: &Vec<String>) -> Written {
        TextList::write(value)
    }
}

impl Codec for SecretText {
    type Value = Option<Secret>;
    const KIND: Kind = Kind::Refused;

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Self::Value> {
        let name = leaf(path);
        cx.problem(
            value.span(),
            format!("`{name}` must not stand in this file"),
            format!("put it in a file of its own (mode 0600) and write `{name}_file = \"/path\"`"),
        );
        None
    }

    fn write(_: &Self::Value) -> Written {
        Written::Absent
    }
}

impl Codec for Fields {
    type Value = Vec<(String, String)>;
    const KIND: Kind = Kind::Value("a table such as `{ uid = \"1000\", home = \"/srv/%{user}\" }`");

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Self::Value> {
        let DeValue::Table(table) = value.get_ref() else {
            cx.wrong_kind(path, value, "a table such as { uid = \"1000\" }");
            return None;
        };
        let mut keys: Vec<_> = table.iter().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        let mut out = Vec::new();
        for (key, value) in keys {
            let name = key.get_ref().to_string();
            let text = match value.get_ref() {
                DeValue::String(_) => Template::read(cx, &join(path, &name), value),
                DeValue::Integer(number) => Some(number.to_string()),
                DeValue::Boolean(flag) => Some(if *flag { "yes" } else { "no" }.to_owned()),
                _ => {
                    cx.wrong_kind(&join(path, &name), value, "a text, a number, `true` or `false`");
                    None
                }
            };
            if let Some(text) = text {
                out.push((name, text));
            }
        }
        Some(out)
    }

    fn write(value: &Self::Value) -> Written {
        if value.is_empty() {
            return Written::Value("{}".to_owned());
        }
        let pairs: Vec<String> =
            value.iter().map(|(name, text)| format!("{} = {}", quote(name), quote(text))).collect();
        Written::Value(format!("{{ {} }}", pairs.join(", ")))
    }
}

impl<T: Word> Codec for Choice<T> {
    type Value = T;
    const KIND: Kind = Kind::Choice(T::ALL);

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<T> {
        let all = words(T::ALL);
        let raw = text(cx, path, value, &format!("one of {all}"))?;
        let found = raw.parse::<T>().ok();
        if found.is_none() {
            cx.problem(
                value.span(),
                format!("`{raw}` is not a value of `{}`", leaf(path)),
                did_you_mean(raw, T::ALL),
            );
        }
        found
    }

    fn write(value: &T) -> Written {
        Written::Value(quote(value.spell()))
    }
}

fn words(all: &[&str]) -> String {
    all.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

pub(crate) fn did_you_mean(raw: &str, all: &[&'static str]) -> String {
    match nearest(raw, all.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"? Allowed: {}", words(all)),
        None => format!("allowed: {}", words(all)),
    }
}

impl<C: Codec> Codec for Opt<C> {
    type Value = Option<C::Value>;
    const KIND: Kind = C::KIND;

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Self::Value> {
        C::read(cx, path, value).map(Some)
    }

    fn write(value: &Self::Value) -> Written {
        value.as_ref().map_or(Written::Absent, C::write)
    }
}

impl<C: Codec> Codec for OneOrMore<C> {
    type Value = Vec<C::Value>;
    const KIND: Kind = C::KIND;

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Self::Value> {
        let DeValue::Array(array) = value.get_ref() else {
            return C::read(cx, path, value).map(|one| vec![one]);
        };
        if array.is_empty() {
            cx.problem(value.span(), format!("`{}` is empty", leaf(path)), "write at least one");
            return None;
        }
        elements::<C>(cx, path, value, "a list")
    }

    fn write(value: &Self::Value) -> Written {
        let mut items: Vec<String> = value
            .iter()
            .filter_map(|item| match C::write(item) {
                Written::Value(text) => Some(text),
                _ => None,
            })
            .collect();
        match (items.len(), items.pop()) {
            (1, Some(only)) => Written::Value(only),
            (_, last) => list(items.into_iter().chain(last)),
        }
    }
}

impl<T: Section> Codec for Table<T> {
    type Value = T;
    const KIND: Kind = Kind::Table(T::info);

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<T> {
        let DeValue::Table(table) = value.get_ref() else {
            cx.wrong_kind(path, value, &format!("a table: a line `[{path}]` and its keys below"));
            return None;
        };
        cx.unknown_keys(path, table, &[T::info().fields]);
        Some(T::read(cx, path, table, value.span()))
    }

    fn write(value: &T) -> Written {
        Written::Table(value.write())
    }
}

impl<T: Section> Codec for Tables<T> {
    type Value = Vec<T>;
    const KIND: Kind = Kind::Tables(T::info);

    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<T>> {
        let DeValue::Array(array) = value.get_ref() else {
            let help = format!("write `[[{path}]]` with two brackets: there may be several");
            cx.problem(value.span(), format!("`{path}` must be a list of tables"), help);
            return None;
        };
        let mut out = Vec::new();
        for (i, element) in array.iter().enumerate() {
            let place = format!("{path}[{i}]");
            cx.places.insert(place.clone(), element.span());
            let DeValue::Table(table) = element.get_ref() else {
                cx.wrong_kind(&place, element, &format!("a table: `[[{path}]]` and its keys below"));
                continue;
            };
            let info = T::info();
            // Chain entries check their keys themselves: what is allowed depends on the driver.
            if info.variants.is_empty() {
                cx.unknown_keys(&place, table, &[info.fields]);
            }
            out.push(T::read(cx, &place, table, element.span()));
        }
        Some(out)
    }

    fn write(value: &Vec<T>) -> Written {
        Written::Tables(value.iter().map(T::write).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Codec, Size, Time, Written, parse_size, parse_time, quote};

    #[test]
    fn durations_as_people_write_them() {
        for (text, expected) in [
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("2d", Some(172_800_000)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("0", Some(0)),
            ("30", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("5 weeks", None),
            ("99999999999999999999s", None),
            ("9999999d", None),
        ] {
            assert_eq!(parse_time(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes_as_people_write_them() {
        for (text, expected) in [
            ("25M", Some(25 << 20)),
            ("4K", Some(4096)),
            ("1G", Some(1 << 30)),
            ("12", Some(12)),
            ("1 MiB", Some(1 << 20)),
            ("M", None),
            ("-1M", None),
            ("1T5", None),
            ("99999999999G", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

    #[test]
    fn written_text_is_read_back() {
        for ms in [0, 1, 500, 4500, 9000, 60_000, 90_000, 1_800_000, 3_600_000, 86_400_000, 90_061_001] {
            let Written::Value(text) = Time::write(&Duration::from_millis(ms)) else { panic!("no value") };
            assert_eq!(parse_time(text.trim_matches('"')), Some(Duration::from_millis(ms)), "{text}");
        }
        for size in [0, 1, 1023, 1024, 1025, 25 << 20, 1 << 30, (1 << 30) + 1] {
            let Written::Value(text) = Size::write(&size) else { panic!("no value") };
            assert_eq!(parse_size(text.trim_matches('"')), Some(size), "{text}");
        }
    }

    #[test]
    fn quoted_text_survives_toml() {
        for text in ["", "plain", "quote\" back\\slash", "line\nbreak\ttab", "\u{1}\u{7f}ü%{user}"] {
            let line = format!("k = {}", quote(text));
            let parsed: toml::Table = toml::from_str(&line).expect("valid TOML");
            assert_eq!(parsed.get("k").and_then(|v| v.as_str()), Some(text));
        }
    }
}
