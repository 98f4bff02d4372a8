//! Figures of the daemons: what there is, and how a daemon keeps and reports them.
//!
//! Purpose: one table of all metrics, which `/metrics`, `postern status`, the dashboard and `docs/metrics.md` follow.
//! Speed:   a daemon counts with single atomic additions; text is made only when somebody asks.
//! Trust:   a daemon may be taken over. Its report is cut to size, holds numbers and short labels only, and what is
//!          not in the table is dropped before anybody sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What kind of number a metric is, in the words of the exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; begins anew with its process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations, counted by [`BOUNDS`].
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, in the order of [`Sample::labels`].
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

use Kind::{Counter, Gauge, Histogram};

/// Every metric there is, in the order they are shown.
pub const METRICS: &[Metric] = &[
    metric("postern_build_info", Gauge, &["version"], "Always 1; tells the version that runs."),
    metric(
        "postern_process_up",
        Gauge,
        &["role"],
        "1 while the process serves, 0 while it starts, stops or waits to be started again.",
    ),
    metric("postern_process_start_time_seconds", Gauge, &["role"], "When the process started, since 1970."),
    metric("postern_process_restarts_total", Counter, &["role"], "How often the process was started again."),
    metric(
        "postern_process_memory_bytes",
        Gauge,
        &["role"],
        "Memory of the process (proportional set size).",
    ),
    metric("postern_reloads_total", Counter, &[], "Reloads of the configuration."),
    metric(
        "postern_last_reload_successful",
        Gauge,
        &[],
        "0 when the last reload was refused and the configuration before it is still in force.",
    ),
    metric("postern_connections", Gauge, &["role"], "Connections open now."),
    metric("postern_connections_total", Counter, &["role"], "Connections accepted."),
    metric(
        "postern_connections_refused_total",
        Counter,
        &["role", "reason"],
        "Connections turned away by a limit: reason total (of the daemon) or address (of one address or account).",
    ),
    metric(
        "postern_tls_handshakes_total",
        Counter,
        &["service", "version", "resumed"],
        "TLS handshakes that succeeded.",
    ),
    metric(
        "postern_tls_failures_total",
        Counter,
        &["service", "reason"],
        "TLS handshakes that failed: reason timeout, closed (the client went away), tls or io.",
    ),
    metric(
        "postern_auth_logins_total",
        Counter,
        &["service", "mechanism", "driver", "result"],
        "Logins decided; driver is the passdb that decided, result as in the log line of a login.",
    ),
    metric(
        "postern_auth_login_duration_seconds",
        Histogram,
        &["service"],
        "Time the daemon worked on a login, without waiting for the client and without delays of refusals.",
    ),
    metric(
        "postern_auth_refusals_delayed_total",
        Counter,
        &[],
        "Refusals that were held back before they were answered.",
    ),
    metric("postern_auth_exchanges", Gauge, &[], "Logins that wait for their client's next answer."),
    metric("postern_auth_cache_hits_total", Counter, &[], "Verdicts answered by the cache."),
    metric("postern_auth_cache_misses_total", Counter, &[], "Verdicts the cache did not know."),
    metric("postern_auth_cache_entries", Gauge, &["verdict"], "Verdicts in the cache: positive or negative."),
    metric("postern_auth_cache_bytes", Gauge, &["verdict"], "Memory of the verdicts in the cache."),
    metric("postern_auth_cache_max_bytes", Gauge, &[], "Memory the cache may take."),
    metric("postern_auth_hash_threads", Gauge, &[], "Threads for password hashes that run."),
    metric("postern_auth_hash_running", Gauge, &[], "Password hashes being computed now."),
    metric("postern_auth_hash_waiting", Gauge, &[], "Password hashes that wait for a thread."),
    metric("postern_auth_hash_memory_bytes", Gauge, &[], "Memory of the password hashes being computed."),
    metric("postern_auth_hash_refused_total", Counter, &[], "Password hashes refused because too many wait."),
    metric("postern_auth_hash_duration_seconds", Histogram, &[], "Time to compute one password hash."),
    metric("postern_auth_workers_max", Gauge, &[], "Worker processes there may be."),
    metric("postern_auth_workers_busy", Gauge, &[], "Worker processes that answer a question now."),
    metric("postern_auth_workers_idle", Gauge, &[], "Worker processes that wait for a question."),
    metric("postern_auth_workers_waiting", Gauge, &[], "Questions that wait for a worker process."),
    metric("postern_auth_worker_questions_total", Counter, &[], "Questions put to worker processes."),
    metric(
        "postern_auth_worker_failures_total",
        Counter,
        &[],
        "Questions without an answer: the worker was killed at its time limit, died, or none was free.",
    ),
    metric(
        "postern_auth_penalties",
        Gauge,
        &["key"],
        "Counts against those who guess: by address, or by account at an address.",
    ),
    metric(
        "postern_smtp_messages_total",
        Counter,
        &["result"],
        "Messages at the end of DATA: delivered, refused (for good) or deferred (try again later).",
    ),
    metric("postern_smtp_deliveries_total", Counter, &[], "Copies of messages put into mailboxes."),
    metric("postern_smtp_recipients_refused_total", Counter, &[], "Recipients refused."),
];

/// Looks a metric up.
pub fn metric_named(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// Upper bounds of all histograms, in microseconds.
pub const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS.len() + 1;

/// Most samples one daemon may report, and the longest label.
const MAX_SAMPLES: usize = 1024;
const MAX_LABEL: usize = 96;

/// One series of a metric at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Values of the metric's labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The number.
    pub value: Number,
}

/// What a series stands at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// Of counters and gauges.
    Plain(u64),
    /// Of histograms: how many fell below each bound and above the one before, the last beyond all of them.
    Durations {
        /// As many as [`BOUNDS`] and one.
        counts: Vec<u64>,
        /// All of them together.
        sum_micros: u64,
    },
}

impl Sample {
    /// A number.
    pub fn new(name: &str, labels: &[&str], value: u64) -> Self {
        Self::with(name, labels, Number::Plain(value))
    }

    fn with(name: &str, labels: &[&str], value: Number) -> Self {
        Self { name: name.to_owned(), labels: labels.iter().map(ToString::to_string).collect(), value }
    }

    /// The number, if it is no histogram.
    pub fn plain(&self) -> Option<u64> {
        match self.value {
            Number::Plain(value) => Some(value),
            Number::Durations { .. } => None,
        }
    }
}

/// Counts durations.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The series at this moment.
    pub fn sample(&self, name: &str, labels: &[&str]) -> Sample {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let sum_micros = self.sum_micros.load(Ordering::Relaxed);
        Sample::with(name, labels, Number::Durations { counts, sum_micros })
    }
}

/// The series of one service's TLS handshakes: those that succeeded by version (1.2, 1.3) and resumption, and those that
/// failed by cause (time limit, client gone, TLS, connection lost).
pub fn handshakes(service: &str, done: &[[u64; 2]; 2], failed: &[u64; 4], to: &mut Vec<Sample>) {
    for (row, version) in done.iter().zip(["1.2", "1.3"]) {
        for (count, resumed) in row.iter().zip(["no", "yes"]) {
            to.push(Sample::new("postern_tls_handshakes_total", &[service, version, resumed], *count));
        }
    }
    for (count, reason) in failed.iter().zip(["timeout", "closed", "tls", "io"]) {
        to.push(Sample::new("postern_tls_failures_total", &[service, reason], *count));
    }
}

/// What remains of a daemon's report: known metrics with as many labels as they have, and not too many of them.
pub(crate) fn believable(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.retain(|sample| {
        let Some(metric) = metric_named(&sample.name) else { return false };
        let number = match (&sample.value, metric.kind) {
            (Number::Durations { counts, .. }, Histogram) => counts.len() == BUCKETS,
            (Number::Plain(_), Counter | Gauge) => true,
            _ => false,
        };
        let label = |label: &String| label.len() <= MAX_LABEL && !label.chars().any(char::is_control);
        number && sample.labels.len() == metric.labels.len() && sample.labels.iter().all(label)
    });
    samples.truncate(MAX_SAMPLES);
    samples
}

/// An estimate of the duration below which this share (`0.99`) of all lies: the upper bound of its bucket, in seconds.
/// `None` when there are none.
pub fn quantile(counts: &[u64], share: f64) -> Option<f64> {
    // A daemon that was taken over may say anything.
    let all = counts.iter().fold(0_u64, |all, count| all.saturating_add(*count));
    if all == 0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss)]
    let wanted = (all as f64 * share).ceil();
    let mut below = 0_u64;
    for (count, bound) in counts.iter().zip(BOUNDS.iter().chain([&u64::MAX])) {
        below = below.saturating_add(*count);
        #[allow(clippy::cast_precision_loss)]
        if below as f64 >= wanted {
            return Some(if *bound == u64::MAX { f64::INFINITY } else { *bound as f64 / 1e6 });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_keeps_the_rules_of_the_format() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(metric.name.starts_with("postern_") && plain(metric.name), "{}", metric.name);
            assert!(metric.labels.iter().all(|label| plain(label)), "{}", metric.name);
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Counter, "{}", metric.name);
            assert!(metric.kind != Histogram || metric.name.ends_with("_seconds"), "{}", metric.name);
            assert!(
                metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '|']),
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn durations_fall_into_their_buckets() {
        let durations = Durations::default();
        for micros in [1, 100, 101, 999, 1_000, 11_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let Number::Durations { counts, sum_micros } = durations.sample("x", &[]).value else { panic!() };
        assert_eq!((counts[0], counts[1], counts[3], counts[16]), (2, 1, 2, 1));
        assert_eq!(sum_micros, 1 + 100 + 101 + 999 + 1_000 + 11_000_000);
        assert_eq!(quantile(&counts, 0.5), Some(0.000_25));
        assert_eq!(quantile(&counts, 0.99), Some(f64::INFINITY));
        assert_eq!(quantile(&[0; 17], 0.5), None);
        assert_eq!(quantile(&[u64::MAX; 17], 0.5), Some(0.000_1));
    }

    #[test]
    fn reports_are_cut_to_what_can_be_true() {
        let good = Sample::new("postern_connections", &["smtp"], 1);
        let kept = believable(vec![
            good.clone(),
            Sample::new("postern_invented", &[], 1),
            Sample::new("postern_connections", &[], 1),
            Sample::new("postern_connections", &["a\nb"], 1),
            Sample::new("postern_connections", &[&"x".repeat(97)], 1),
            Sample::new("postern_auth_hash_duration_seconds", &[], 1),
        ]);
        assert_eq!(kept, std::slice::from_ref(&good));
        assert_eq!(believable(vec![good; 5000]).len(), MAX_SAMPLES);
    }

    #[test]
    fn samples_survive_the_way() {
        for sample in [
            Sample::new("postern_connections", &["smtp"], 7),
            Durations::default().sample("postern_auth_hash_duration_seconds", &[]),
        ] {
            let text = serde_json::to_string(&sample).unwrap();
            assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sample, "{text}");
        }
    }
}
