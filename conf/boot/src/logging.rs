//! Logging of supervisor and daemons: stderr for people, JSON lines, or the journal.
//!
//! Trust:  names and texts in events come from strangers. On stderr control characters are escaped, so nobody can
//!         forge a line or talk to the terminal.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod journal;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use journal::Journal;

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// A filter: `info`, or with other levels for one daemon or module: `auth=debug,info`.
    pub level: String,
    /// Where and in which form.
    pub format: LogFormat,
    /// The daemon's role, shown in every line. [`crate::child_main`] fills it in.
    pub role: String,
}

/// Where lines go and how they look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal when stderr is connected to it, else for people.
    #[default]
    Auto,
    /// One compact line per event on stderr.
    Human,
    /// One JSON object per line on stderr.
    Json,
    /// The journal by its own protocol, with fields; falls back to [`LogFormat::Human`].
    Journald,
}

impl LogOptions {
    /// Level and format, for the role.
    pub fn new(role: impl Into<String>, level: impl Into<String>, format: LogFormat) -> Self {
        Self { level: level.into(), format, role: role.into() }
    }
}

type Filter = reload::Handle<EnvFilter, Registry>;
static FILTER: OnceLock<Filter> = OnceLock::new();

/// Sets logging up for this process. Called again (after a reload) it changes the level and keeps the rest.
///
/// # Errors
/// The level is not a filter; one sentence, nothing is changed.
pub fn init(options: &LogOptions) -> Result<(), String> {
    let filter = filter(&options.level, &options.role)?;
    if let Some(known) = FILTER.get() {
        return known.reload(filter).map_err(|error| format!("the log level cannot be changed: {error}"));
    }
    let (filter, handle) = reload::Layer::new(filter);
    let (journal, problem) = match wants_journal(options.format).then(|| Journal::connect(&options.role)) {
        Some(Ok(journal)) => (Some(journal), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let writer = match journal {
        Some(journal) => Writer::Journal(journal),
        None => Writer::Lines(Lines::new(options)),
    };
    if tracing_subscriber::registry().with(filter).with(writer).try_init().is_err() {
        return Err("logging was set up by something else in this program".to_owned());
    }
    let _ = FILTER.set(handle);
    log_panics();
    if let Some(error) = problem {
        tracing::warn!(%error, "the journal cannot be reached; logging to stderr");
    }
    Ok(())
}

/// Whether [`init`] was called with success.
pub(crate) fn is_set_up() -> bool {
    FILTER.get().is_some()
}

/// In its own process a role's name stands for everything; elsewhere it is the beginning of module names, as usual.
fn filter(level: &str, role: &str) -> Result<EnvFilter, String> {
    let own = |directive: &&str| directive.split_once('=').is_some_and(|(target, _)| target.trim() == role);
    let directives: Vec<&str> = level.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let text = match directives.iter().find(|one| own(one)).and_then(|one| one.split_once('=')) {
        Some((_, level)) => {
            let rest = directives.iter().filter(|one| !own(one) && one.contains('='));
            std::iter::once(&level).chain(rest).copied().collect::<Vec<_>>().join(",")
        }
        None => directives.join(","),
    };
    let text = if text.is_empty() { "info" } else { text.as_str() };
    let words = ["off", "error", "warn", "info", "debug", "trace"];
    let wrong = text.split(',').find(|one| {
        let level = one.rsplit_once('=').map_or(*one, |(_, level)| level);
        !words.contains(&level.trim().to_ascii_lowercase().as_str())
    });
    let refused = |what: &str| {
        format!("{what:?} is not a log level; use error, warn, info, debug or trace, as in `auth=debug,info`")
    };
    match wrong {
        Some(wrong) => Err(refused(wrong)),
        None => EnvFilter::try_new(text).map_err(|_| refused(level)),
    }
}

/// systemd.exec(5), `$JOURNAL_STREAM`: device and inode of the stream stderr is connected to.
fn wants_journal(format: LogFormat) -> bool {
    match format {
        LogFormat::Journald => true,
        LogFormat::Human | LogFormat::Json => false,
        LogFormat::Auto => {
            let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
            std::fs::metadata("/proc/self/fd/2")
                .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
        }
    }
}

/// Panics become log events instead of loose text between them.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, "internal error (panic): {text}");
    }));
}

/// Where events go.
enum Writer {
    Lines(Lines),
    Journal(Journal),
}

/// Writes events as lines to stderr.
struct Lines {
    role: String,
    json: bool,
    colour: bool,
}

/// Fields of a span, kept with it.
struct SpanFields(Fields);

#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Lines {
    fn new(options: &LogOptions) -> Self {
        let json = options.format == LogFormat::Json;
        let colour = !json && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { role: options.role.clone(), json, colour }
    }

    fn line(&self, time: SystemTime, level: Level, target: &str, fields: Fields) -> String {
        if self.json { self.json(time, level, target, fields) } else { self.human(time, level, &fields) }
    }

    fn human(&self, time: SystemTime, level: Level, fields: &Fields) -> String {
        let mut line = timestamp(time, ' ');
        let colour = match level {
            Level::ERROR => "31",
            Level::WARN => "33",
            Level::INFO => "32",
            _ => "2",
        };
        // Writing to a String cannot fail.
        let _ = if self.colour {
            write!(line, " \x1b[{colour}m{level:>5}\x1b[0m {}:", self.role)
        } else {
            write!(line, " {level:>5} {}:", self.role)
        };
        fields.text(&mut line);
        line.push('\n');
        line
    }

    fn json(&self, time: SystemTime, level: Level, target: &str, fields: Fields) -> String {
        let mut object = Map::new();
        object.insert("time".into(), timestamp(time, 'T').into());
        object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
        object.insert("daemon".into(), self.role.as_str().into());
        object.insert("target".into(), target.into());
        for (name, value) in fields.0 {
            object.insert(name.to_owned(), value);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Writer {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(known) = span.extensions_mut().get_mut::<SpanFields>()
        {
            values.record(&mut known.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flatten().collect::<Vec<_>>().into_iter().rev() {
            if let Some(known) = span.extensions().get::<SpanFields>() {
                fields.0.extend(known.0.0.iter().cloned());
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        match self {
            Writer::Journal(journal) => journal.write(*metadata.level(), metadata.target(), &fields),
            Writer::Lines(lines) => {
                let line = lines.line(SystemTime::now(), *metadata.level(), metadata.target(), fields);
                // There is nowhere to report that stderr is gone.
                let _ = io::stderr().lock().write_all(line.as_bytes());
            }
        }
    }
}

impl Fields {
    /// Message and fields as people read them; whatever they hold stays on this line and in its field.
    fn text(&self, line: &mut String) {
        if let Some((_, message)) = self.0.iter().find(|(name, _)| *name == "message") {
            line.push(' ');
            escape(line, message.as_str().unwrap_or_default());
        }
        for (name, value) in self.0.iter().filter(|(name, _)| *name != "message") {
            // Writing to a String cannot fail.
            let _ = match value {
                Value::String(text) if is_word(text) => write!(line, " {name}={text}"),
                Value::String(text) => write!(line, " {name}={text:?}"),
                other => write!(line, " {name}={other}"),
            };
        }
    }

    /// A name said twice (by a span and its event) keeps the last value.
    fn set(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

/// Control characters, and those that change how the characters around them are shown.
fn is_unprintable(character: char) -> bool {
    character.is_control() || (!character.is_ascii() && character.escape_debug().len() > 1)
}

/// Whether a value needs no quotes.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| matches!(c, ' ' | '"' | '=' | '\\') || is_unprintable(c))
}

fn escape(line: &mut String, text: &str) {
    for character in text.chars() {
        if is_unprintable(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(time: SystemTime, between: char) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second, milli) = (second / 3600, second / 60 % 60, second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The date of a day since 1970-01-01. Years are counted from March, so the leap day is the last of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let january = month >= 10;
    (era * 400 + year + u64::from(january), if january { month - 9 } else { month + 3 }, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: bool) -> Lines {
        Lines { role: "smtp".into(), json, colour: false }
    }

    fn sample() -> Fields {
        let hostile = "a\nERROR forged \x1b[2J";
        Fields(vec![
            ("message", hostile.into()),
            ("user", "bob".into()),
            ("text", "x y".into()),
            ("n", 3.into()),
        ])
    }

    #[test]
    fn human_lines_cannot_be_forged() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_789);
        assert_eq!(
            lines(false).line(time, Level::WARN, "t", sample()),
            "2024-02-29 12:34:56.789Z  WARN smtp: a\\nERROR forged \\u{1b}[2J user=bob text=\"x y\" n=3\n"
        );
    }

    #[test]
    fn values_stay_in_their_fields() {
        for (value, shown) in [
            ("bob", "bob"),
            ("", "\"\""),
            ("a b=c", "\"a b=c\""),
            ("a\" rip=192.0.2.9 x=\"", "\"a\\\" rip=192.0.2.9 x=\\\"\""),
            ("a\\nb", "\"a\\\\nb\""),
            ("a\nb", "\"a\\nb\""),
            ("a\u{2028}b\u{202e}c\u{85}", "\"a\\u{2028}b\\u{202e}c\\u{85}\""),
            ("jürgen", "jürgen"),
        ] {
            let mut line = String::new();
            Fields(vec![("user", value.into())]).text(&mut line);
            assert_eq!(line, format!(" user={shown}"));
        }
    }

    #[test]
    fn json_lines_parse() {
        let line = lines(true).line(SystemTime::UNIX_EPOCH, Level::INFO, "t", sample());
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["daemon"], &value["n"]), (&"smtp".into(), &3.into()));
        assert_eq!(value["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn calendar() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_777, (2026, 11, 20)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn filters_by_role() {
        let shown = |level, role| filter(level, role).map(|filter| filter.to_string());
        assert_eq!(shown("auth=debug,info", "auth").unwrap(), "debug");
        assert_eq!(shown("auth=debug,info", "smtp").unwrap(), "auth=debug,info");
        assert_eq!(shown("", "smtp").unwrap(), "info");
        for wrong in ["chatty", "auth=loud,info"] {
            assert!(shown(wrong, "smtp").unwrap_err().contains("is not a log level"));
        }
    }
}
