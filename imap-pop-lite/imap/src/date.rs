//! Dates as IMAP writes them: `1-Jan-2020` and `" 1-Jan-2020 10:00:00 +0100"`.
//!
//! Trust: text of a client; the numbers of the writing side are the caller's.
//! Never: take a day that the calendar does not have.

use std::fmt;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY: i64 = 86_400;

/// A calendar day, proleptic Gregorian.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Date {
    /// Four digits.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl Date {
    /// A day that exists, or nothing.
    #[must_use]
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return None,
        };
        ((1..=days).contains(&day) && year <= 9999).then_some(Self { year, month, day })
    }

    /// Reads `d-Mon-yyyy`, one or two digits for the day (RFC 3501 §9 `date-text`).
    #[must_use]
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let mut pieces = raw.split(|b| *b == b'-');
        let (day, month, year) = (pieces.next()?, pieces.next()?, pieces.next()?);
        if pieces.next().is_some() || !(1..=2).contains(&day.len()) || year.len() != 4 {
            return None;
        }
        Self::new(u16::try_from(digits(year)?).ok()?, month_number(month)?, u8::try_from(digits(day)?).ok()?)
    }

    /// The day of a moment in UTC.
    #[must_use]
    pub fn of_unix(seconds: i64) -> Self {
        civil(seconds.div_euclid(DAY))
    }

    /// Days since 1970-01-01.
    #[must_use]
    pub fn days(self) -> i64 {
        // Days-from-civil: count from 1 March so that the leap day is the last one of the year.
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let of_era = year.rem_euclid(400);
        let month = (i64::from(self.month) + 9) % 12;
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
    }
}

fn civil(days: i64) -> Date {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Date {
        year: u16::try_from(year.clamp(0, 9999)).unwrap_or(0),
        month: u8::try_from(month).unwrap_or(1),
        day: u8::try_from(day).unwrap_or(1),
    }
}

/// A moment with the zone it was written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DateTime {
    /// Seconds since 1970 in UTC.
    pub unix: i64,
    /// Zone in minutes east of UTC.
    pub offset_minutes: i16,
}

impl DateTime {
    /// A moment shown in UTC.
    #[must_use]
    pub fn utc(unix: i64) -> Self {
        Self { unix, offset_minutes: 0 }
    }

    /// Reads the text between the quotes: `dd-Mon-yyyy hh:mm:ss +zzzz`, the day two characters wide
    /// (RFC 3501 §9 `date-time`); one-digit days without the space are taken too.
    #[must_use]
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let raw = raw.strip_prefix(b" ").unwrap_or(raw);
        let mut pieces = raw.split(|b| *b == b' ');
        let (date, time, zone) = (pieces.next()?, pieces.next()?, pieces.next()?);
        if pieces.next().is_some() {
            return None;
        }
        let date = Date::parse(date)?;
        let [h1, h2, b':', m1, m2, b':', s1, s2] = *time else { return None };
        let (hour, minute, second) = (digits(&[h1, h2])?, digits(&[m1, m2])?, digits(&[s1, s2])?);
        // A leap second is legal on the wire.
        if hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let [sign, z1, z2, z3, z4] = *zone else { return None };
        let minutes = digits(&[z1, z2])? * 60 + digits(&[z3, z4])?;
        if digits(&[z3, z4])? > 59 {
            return None;
        }
        let minutes = i16::try_from(minutes).ok()?;
        let offset_minutes = match sign {
            b'+' => minutes,
            b'-' => -minutes,
            _ => return None,
        };
        let local = date.days() * DAY + i64::from(hour * 3600 + minute * 60 + second);
        Some(Self { unix: local - i64::from(offset_minutes) * 60, offset_minutes })
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.unix + i64::from(self.offset_minutes) * 60;
        let date = Date::of_unix(local);
        let second = local.rem_euclid(DAY);
        let month = MONTHS.get(usize::from(date.month.saturating_sub(1))).copied().unwrap_or("Jan");
        let (sign, zone) =
            if self.offset_minutes < 0 { ('-', -self.offset_minutes) } else { ('+', self.offset_minutes) };
        write!(
            f,
            "{:02}-{month}-{:04} {:02}:{:02}:{:02} {sign}{:02}{:02}",
            date.day,
            date.year,
            second / 3600,
            second / 60 % 60,
            second % 60,
            zone / 60,
            zone % 60
        )
    }
}

fn month_number(raw: &[u8]) -> Option<u8> {
    let at = MONTHS.iter().position(|m| m.as_bytes().eq_ignore_ascii_case(raw))?;
    u8::try_from(at + 1).ok()
}

fn digits(raw: &[u8]) -> Option<u32> {
    if raw.is_empty() || raw.len() > 9 {
        return None;
    }
    raw.iter().try_fold(0u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_times_round_trip() {
        for (text, unix) in [
            ("01-Jan-1970 00:00:00 +0000", 0),
            ("17-Jul-1996 02:44:25 -0700", 837_596_665),
            ("29-Feb-2024 23:59:59 +0530", 1_709_231_399),
            ("31-Dec-1969 23:59:59 +0000", -1),
            ("01-Jan-2000 00:00:00 +1400", 946_634_400),
        ] {
            let parsed = DateTime::parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.unix, unix, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!(
            DateTime::parse(b" 1-Jan-2020 10:00:00 +0000"),
            DateTime::parse(b"01-Jan-2020 10:00:00 +0000")
        );
    }

    #[test]
    fn every_day_for_centuries_round_trips() {
        for days in -100_000..100_000 {
            assert_eq!(civil(days).days(), days);
        }
    }

    #[test]
    fn refuses_impossible_dates() {
        for text in [
            "30-Feb-2020",
            "1-Foo-2020",
            "0-Jan-2020",
            "32-Jan-2020",
            "1-Jan-20",
            "1-Jan-2020-",
            "",
            "001-Jan-2020",
        ] {
            assert!(Date::parse(text.as_bytes()).is_none(), "{text}");
        }
        for text in [
            "01-Jan-2020",
            "01-Jan-2020 24:00:00 +0000",
            "01-Jan-2020 1:00:00 +0000",
            "01-Jan-2020 10:00:00 0000",
            "01-Jan-2020 10:00:00 +0060",
            "  1-Jan-2020 10:00:00 +0000",
            "01-Jan-2020 10:00:00 +0000 ",
        ] {
            assert!(DateTime::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
