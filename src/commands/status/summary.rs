//! The figures of the stack as a person wants them: sums, shares, latencies, who fails most.
//!
//! Trust:  figures of our own daemons; names in them were typed by strangers.
//! Never:  a division by nothing, whatever the figures say.

use std::collections::BTreeMap;

use boot::admin::Status;
use boot::figures::{Number, Sample, quantile};
use serde::Serialize;
use serde_json::Value;

/// Sums over the whole stack since its daemons started.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Logins by result, as in the log line of a login.
    pub(crate) logins: BTreeMap<String, u64>,
    /// Logins by service.
    pub(crate) services: BTreeMap<String, u64>,
    /// Time to decide a login.
    pub(crate) latency: Latency,
    /// Verdicts of the cache.
    pub(crate) cache: CacheFigures,
    /// Password hashes.
    pub(crate) hashes: HashFigures,
    /// Worker processes.
    pub(crate) workers: WorkerFigures,
    /// Connections open now, and all since the start.
    pub(crate) connections: u64,
    pub(crate) connections_total: u64,
    pub(crate) connections_refused: u64,
    /// TLS handshakes by version, and those that failed.
    pub(crate) tls: BTreeMap<String, u64>,
    pub(crate) tls_failures: u64,
    /// Messages by result.
    pub(crate) messages: BTreeMap<String, u64>,
    /// Addresses that are counted as guessing.
    pub(crate) penalties: u64,
    /// The worst of them.
    pub(crate) guessing: Vec<Guessing>,
}

/// How long logins took. Upper bounds; `null`: none, or beyond the largest bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_seconds: Option<f64>,
    pub(crate) p99_seconds: Option<f64>,
    #[serde(skip)]
    pub(crate) counts: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CacheFigures {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct HashFigures {
    pub(crate) threads: u64,
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) refused: u64,
    pub(crate) computed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct WorkerFigures {
    pub(crate) max: u64,
    pub(crate) busy: u64,
    pub(crate) idle: u64,
    pub(crate) waiting: u64,
    pub(crate) questions: u64,
    pub(crate) failures: u64,
}

/// An address that guesses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Guessing {
    /// Address, `/64` of IPv6, or uid.
    pub(crate) peer: String,
    /// Its count, which halves every minute.
    pub(crate) count: f64,
}

/// Longest text shown for one, in characters.
const LONGEST_PEER: usize = 64;

impl Summary {
    /// Of this status, and what the authentication daemon answered to `penalty-list`.
    pub(crate) fn of(status: &Status, penalties: Option<&Value>) -> Self {
        let mut all = Self::default();
        for process in &status.processes {
            grow(&mut all.connections, process.connections.unwrap_or(0));
            grow(&mut all.connections_total, process.total.unwrap_or(0));
            for sample in &process.figures {
                all.add(sample);
            }
        }
        let of = |share| quantile(&all.latency.counts, share).filter(|seconds| seconds.is_finite());
        (all.latency.p50_seconds, all.latency.p99_seconds) = (of(0.5), of(0.99));
        let listed = penalties.and_then(|answer| answer.get("penalties")).and_then(Value::as_array);
        for entry in listed.into_iter().flatten() {
            if let (Some(peer), Some(count)) =
                (entry.get("peer").and_then(Value::as_str), entry.get("count").and_then(Value::as_f64))
            {
                // It goes to a terminal.
                let peer = peer.chars().filter(|c| !c.is_control()).take(LONGEST_PEER).collect();
                all.guessing.push(Guessing { peer, count });
            }
        }
        all
    }

    fn add(&mut self, sample: &Sample) {
        let label = |at: usize| sample.labels.get(at).cloned().unwrap_or_default();
        if let Number::Durations { counts, .. } = &sample.value {
            match sample.name.as_str() {
                "postern_auth_login_duration_seconds" => add_counts(&mut self.latency.counts, counts),
                "postern_auth_hash_duration_seconds" => {
                    counts.iter().for_each(|count| grow(&mut self.hashes.computed, *count));
                }
                _ => {}
            }
            return;
        }
        let value = sample.plain().unwrap_or(0);
        let to = match sample.name.as_str() {
            "postern_auth_logins_total" => {
                grow(self.services.entry(label(0)).or_default(), value);
                self.logins.entry(label(3)).or_default()
            }
            "postern_auth_cache_hits_total" => &mut self.cache.hits,
            "postern_auth_cache_misses_total" => &mut self.cache.misses,
            "postern_auth_cache_entries" => &mut self.cache.entries,
            "postern_auth_cache_bytes" => &mut self.cache.bytes,
            "postern_auth_cache_max_bytes" => &mut self.cache.max_bytes,
            "postern_auth_hash_threads" => &mut self.hashes.threads,
            "postern_auth_hash_running" => &mut self.hashes.running,
            "postern_auth_hash_waiting" => &mut self.hashes.waiting,
            "postern_auth_hash_refused_total" => &mut self.hashes.refused,
            "postern_auth_workers_max" => &mut self.workers.max,
            "postern_auth_workers_busy" => &mut self.workers.busy,
            "postern_auth_workers_idle" => &mut self.workers.idle,
            "postern_auth_workers_waiting" => &mut self.workers.waiting,
            "postern_auth_worker_questions_total" => &mut self.workers.questions,
            "postern_auth_worker_failures_total" => &mut self.workers.failures,
            "postern_auth_penalties" if label(0) == "address" => &mut self.penalties,
            "postern_connections_refused_total" => &mut self.connections_refused,
            "postern_tls_handshakes_total" => self.tls.entry(label(1)).or_default(),
            "postern_tls_failures_total" => &mut self.tls_failures,
            "postern_smtp_messages_total" => self.messages.entry(label(0)).or_default(),
            _ => return,
        };
        grow(to, value);
    }

    /// Logins with this result.
    pub(crate) fn logins_with(&self, result: &str) -> u64 {
        self.logins.get(result).copied().unwrap_or(0)
    }

    /// Logins that were refused for whatever reason.
    pub(crate) fn refused(&self) -> u64 {
        let refused = self.logins.iter().filter(|(result, _)| !matches!(result.as_str(), "ok" | "outage"));
        sum(refused.map(|(_, count)| count))
    }
}

/// Adds without overflow: a daemon that was taken over may say any number.
fn grow(to: &mut u64, by: u64) {
    *to = to.saturating_add(by);
}

/// All together, likewise.
pub(crate) fn sum<'a>(counts: impl Iterator<Item = &'a u64>) -> u64 {
    counts.fold(0, |all, count| all.saturating_add(*count))
}

/// Adds the counts of one histogram to another.
fn add_counts(to: &mut Vec<u64>, counts: &[u64]) {
    if to.len() < counts.len() {
        to.resize(counts.len(), 0);
    }
    for (sum, count) in to.iter_mut().zip(counts) {
        grow(sum, *count);
    }
}

/// What happened between two summaries, for each second of the time between. A daemon that was started anew counts from
/// its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(crate) ok: f64,
    pub(crate) refused: f64,
    pub(crate) undecided: f64,
    pub(crate) connections: f64,
    pub(crate) handshakes: f64,
    pub(crate) hashes: f64,
    pub(crate) messages: f64,
    /// Share of cache questions that were answered; `null`: there were none.
    pub(crate) cache_hits: Option<f64>,
    /// Of the logins between the two.
    pub(crate) latency: Latency,
    /// Logins by service.
    pub(crate) services: BTreeMap<String, f64>,
}

impl Rates {
    /// From one summary to a later one.
    pub(crate) fn between(before: &Summary, now: &Summary, seconds: f64) -> Self {
        #[allow(clippy::cast_precision_loss)]
        let rate = |before: u64, now: u64| grown(before, now) as f64 / seconds.max(0.001);
        let (hits, misses) =
            (grown(before.cache.hits, now.cache.hits), grown(before.cache.misses, now.cache.misses));
        let then = |at: usize| before.latency.counts.get(at).copied().unwrap_or(0);
        let counts: Vec<u64> =
            now.latency.counts.iter().enumerate().map(|(at, count)| grown(then(at), *count)).collect();
        let of = |share| quantile(&counts, share).filter(|seconds| seconds.is_finite());
        let service = |(name, count): (&String, &u64)| {
            (name.clone(), rate(before.services.get(name).copied().unwrap_or(0), *count))
        };
        #[allow(clippy::cast_precision_loss)]
        let cache_hits = (hits > 0 || misses > 0).then(|| hits as f64 / (hits as f64 + misses as f64));
        Self {
            ok: rate(before.logins_with("ok"), now.logins_with("ok")),
            refused: rate(before.refused(), now.refused()),
            undecided: rate(before.logins_with("outage"), now.logins_with("outage")),
            connections: rate(before.connections_total, now.connections_total),
            handshakes: rate(sum(before.tls.values()), sum(now.tls.values())),
            hashes: rate(before.hashes.computed, now.hashes.computed),
            messages: rate(sum(before.messages.values()), sum(now.messages.values())),
            cache_hits,
            latency: Latency { p50_seconds: of(0.5), p99_seconds: of(0.99), counts },
            services: now.services.iter().map(service).collect(),
        }
    }
}

/// How much a counter grew; after a restart it began anew.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_rates() {
        let mut before = Summary::default();
        let login = |result: &str, count| {
            Sample::new("postern_auth_logins_total", &["smtp", "PLAIN", "users", result], count)
        };
        for sample in [login("ok", 10), login("refused", 3), login("disabled", 1), login("outage", 2)] {
            before.add(&sample);
        }
        assert_eq!(
            (before.logins_with("ok"), before.refused(), before.services.get("smtp")),
            (10, 4, Some(&16))
        );
        let mut now = before.clone();
        now.add(&login("ok", 20));
        now.add(&Sample::new("postern_auth_cache_hits_total", &[], 3));
        now.add(&Sample::new("postern_auth_cache_misses_total", &[], 1));
        let rates = Rates::between(&before, &now, 2.0);
        assert_eq!((rates.ok, rates.refused, rates.cache_hits), (10.0, 0.0, Some(0.75)));
        // A daemon that was started anew.
        assert_eq!(Rates::between(&now, &before, 2.0).ok, 5.0);
        assert_eq!(Rates::between(&now, &now, 0.0).cache_hits, None);
    }

    #[test]
    fn numbers_beyond_all_bounds_are_shown() {
        let mut summary = Summary::default();
        for _ in 0..2 {
            for result in ["refused", "disabled"] {
                let labels = ["smtp", "PLAIN", "users", result];
                summary.add(&Sample::new("postern_auth_logins_total", &labels, u64::MAX));
            }
            for name in ["postern_auth_login_duration_seconds", "postern_auth_hash_duration_seconds"] {
                let value = Number::Durations { counts: vec![u64::MAX; 17], sum_micros: u64::MAX };
                summary.add(&Sample { name: name.to_owned(), labels: Vec::new(), value });
            }
            summary.add(&Sample::new("postern_auth_cache_hits_total", &[], u64::MAX));
            summary.add(&Sample::new("postern_auth_cache_misses_total", &[], u64::MAX));
        }
        assert_eq!((summary.refused(), summary.hashes.computed), (u64::MAX, u64::MAX));
        assert_eq!(Rates::between(&Summary::default(), &summary, 1.0).cache_hits, Some(0.5));
    }

    #[test]
    fn who_guesses() {
        let status = Status { processes: Vec::new(), reloads: 0, last_reload_error: None };
        let answer = serde_json::json!({"penalties": [{"peer": "192.0.2.9\u{1b}\n", "account": null, "count": 4.5}, {"peer": 3}]});
        let summary = Summary::of(&status, Some(&answer));
        assert_eq!(summary.guessing, [Guessing { peer: "192.0.2.9".into(), count: 4.5 }]);
    }
}
