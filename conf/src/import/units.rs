//! Dovecot's times and sizes in our spelling.
//!
//! Source:    Dovecot `lib-settings/settings-parser.c`: `1 hours`, `30 secs`, `10 M`.
//! Trust:     the text is another program's setting; one that is not understood gives nothing.

/// A time; a number alone counts seconds.
pub(super) fn time(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (text.get(..digits)?.parse::<u64>().ok()?, text.get(digits..)?.trim());
    let unit = unit.to_ascii_lowercase();
    let matches = |name: &str| !unit.is_empty() && name.starts_with(unit.as_str());
    let (factor, ours) = if number == 0 || unit.is_empty() || matches("seconds") || unit == "secs" {
        (1, "s")
    } else if matches("minutes") || unit == "mins" {
        (1, "m")
    } else if matches("hours") {
        (1, "h")
    } else if matches("days") {
        (1, "d")
    } else if matches("weeks") {
        (7, "d")
    } else if matches("milliseconds") || unit == "msecs" || unit == "ms" {
        (1, "ms")
    } else {
        return None;
    };
    Some(format!("{}{ours}", number.checked_mul(factor)?))
}

/// A size; a number alone counts bytes.
pub(super) fn size(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (text.get(..digits)?.parse::<u64>().ok()?, text.get(digits..)?.trim());
    let (factor, ours) = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => (1, ""),
        "K" | "KB" | "KIB" => (1, "K"),
        "M" | "MB" | "MIB" => (1, "M"),
        "G" | "GB" | "GIB" => (1, "G"),
        "T" | "TB" | "TIB" => (1024, "G"),
        _ => return None,
    };
    Some(format!("{}{ours}", number.checked_mul(factor)?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_and_sizes() {
        for (theirs, ours) in [
            ("1 hours", Some("1h")),
            ("30 secs", Some("30s")),
            ("2 mins", Some("2m")),
            ("1 weeks", Some("7d")),
            ("500 msecs", Some("500ms")),
            ("3600", Some("3600s")),
            ("0", Some("0s")),
            ("unlimited", None),
            ("3 fortnights", None),
        ] {
            assert_eq!(super::time(theirs).as_deref(), ours, "{theirs}");
        }
        for (theirs, ours) in [
            ("10 M", Some("10M")),
            ("1G", Some("1G")),
            ("2 T", Some("2048G")),
            ("0", Some("0")),
            ("10%", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(super::size(theirs).as_deref(), ours, "{theirs}");
        }
    }
}
