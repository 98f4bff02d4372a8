//! What the daemon counts, for `/metrics` and `postern status`.
//!
//! Speed: a login costs one look-up in a table that is never locked for reading, and three atomic additions. Only the
//!        first login of a kind writes to the table.
//! Trust: the service name comes from a client. Odd ones count as `other`, and there are only so many kinds.
//! Never: let a client make the table grow without end, or put a user's name into it.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use boot::figures::{Durations, Sample};

use crate::engine::Engine;
use crate::outcome::Outcome;
use crate::request::Request;

/// Kinds of logins that are counted apart.
const MAX_KINDS: usize = 512;
/// Services that are counted apart.
const MAX_SERVICES: usize = 24;
/// Stands for whatever is not counted apart.
pub(crate) const OTHER: &str = "other";
/// Where no passdb decided.
const NO_DRIVER: &str = "none";

/// The counters that are not kept where the work is done.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    logins: Logins,
    delayed: AtomicU64,
}

#[derive(Debug, Default)]
struct Logins {
    kinds: ArcSwap<HashMap<u64, Arc<Kind>>>,
    /// For writers; the durations of each service.
    services: Mutex<HashMap<String, Arc<Durations>>>,
    hasher: RandomState,
}

/// One combination of labels.
#[derive(Debug)]
struct Kind {
    service: String,
    mechanism: &'static str,
    driver: String,
    result: &'static str,
    count: AtomicU64,
    durations: Arc<Durations>,
}

impl Figures {
    /// Counts the end of a login.
    pub(crate) fn login(
        &self,
        request: &Request,
        mechanism: &'static str,
        outcome: &Outcome,
        took: Duration,
    ) {
        let driver = if request.driver.is_empty() { NO_DRIVER } else { &request.driver };
        let result = outcome.decision.as_str();
        self.logins.count(label(&request.service), mechanism, driver, result, took);
        if outcome.not_before.is_some() && result != "ok" {
            self.delayed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A service name as it may be shown.
fn label(service: &str) -> &str {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if (1..=32).contains(&service.len()) && service.bytes().all(plain) { service } else { OTHER }
}

impl Logins {
    fn count(
        &self,
        service: &str,
        mechanism: &'static str,
        driver: &str,
        result: &'static str,
        took: Duration,
    ) {
        let key = self.hasher.hash_one((service, mechanism, driver, result));
        let kinds = self.kinds.load();
        match kinds.get(&key) {
            Some(kind) => kind.add(took),
            None => self.add(key, service, mechanism, driver, result).add(took),
        }
    }

    /// The first login of its kind.
    fn add(
        &self,
        key: u64,
        service: &str,
        mechanism: &'static str,
        driver: &str,
        result: &'static str,
    ) -> Arc<Kind> {
        // An interrupted insert leaves a service without logins.
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = self.kinds.load_full();
        if let Some(kind) = kinds.get(&key) {
            return Arc::clone(kind);
        }
        let crowded = !services.contains_key(service) && services.len() >= MAX_SERVICES;
        let service = if crowded { OTHER } else { service };
        let (mechanism, driver) = if kinds.len() >= MAX_KINDS { (OTHER, OTHER) } else { (mechanism, driver) };
        let same = |kind: &Kind| {
            (kind.service.as_str(), kind.mechanism, kind.driver.as_str(), kind.result)
                == (service, mechanism, driver, result)
        };
        let known = kinds.values().find(|kind| same(kind)).cloned();
        // There are only so many of those: services by results, beyond the limit.
        let is_new = known.is_none();
        let kind = known.unwrap_or_else(|| {
            Arc::new(Kind {
                service: service.to_owned(),
                mechanism,
                driver: driver.to_owned(),
                result,
                count: AtomicU64::new(0),
                durations: Arc::clone(services.entry(service.to_owned()).or_default()),
            })
        });
        // Beyond the limit the long way to a known kind is taken every time: the table does not grow further.
        if is_new || kinds.len() < 2 * MAX_KINDS {
            let mut next = HashMap::clone(&kinds);
            next.insert(key, Arc::clone(&kind));
            self.kinds.store(Arc::new(next));
        }
        kind
    }

    fn samples(&self, to: &mut Vec<Sample>) {
        let kinds = self.kinds.load_full();
        let mut shown: Vec<&Arc<Kind>> = kinds.values().collect();
        let labels =
            |kind: &&Arc<Kind>| (kind.service.clone(), kind.mechanism, kind.driver.clone(), kind.result);
        shown.sort_by_cached_key(labels);
        shown.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for kind in shown {
            let labels = [&kind.service, kind.mechanism, &kind.driver, kind.result];
            to.push(Sample::new("postern_auth_logins_total", &labels, kind.count.load(Ordering::Relaxed)));
        }
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let mut services: Vec<_> = services.iter().collect();
        services.sort_by_key(|(name, _)| *name);
        for (name, durations) in services {
            to.push(durations.sample("postern_auth_login_duration_seconds", &[name]));
        }
    }
}

impl Kind {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.durations.observe(took);
    }
}

/// All samples of the daemon.
pub(crate) fn report(engine: &Engine, to: &mut Vec<Sample>) {
    let figures = &engine.figures;
    figures.logins.samples(to);
    let mut plain = |name: &str, labels: &[&str], value: u64| to.push(Sample::new(name, labels, value));
    let delayed = figures.delayed.load(Ordering::Relaxed);
    plain("postern_auth_refusals_delayed_total", &[], delayed);
    plain("postern_auth_exchanges", &[], engine.exchanges.count());

    let cache = engine.cache.stats();
    plain("postern_auth_cache_hits_total", &[], cache.hits);
    plain("postern_auth_cache_misses_total", &[], cache.misses);
    plain("postern_auth_cache_entries", &["positive"], cache.positive);
    plain("postern_auth_cache_entries", &["negative"], cache.negative);
    plain("postern_auth_cache_bytes", &["positive"], cache.positive_bytes);
    plain("postern_auth_cache_bytes", &["negative"], cache.negative_bytes);
    plain("postern_auth_cache_max_bytes", &[], cache.max_bytes);

    let (addresses, accounts) = engine.penalties.sizes(Instant::now());
    plain("postern_auth_penalties", &["address"], addresses);
    plain("postern_auth_penalties", &["account"], accounts);

    let hashes = engine.hash_stats();
    plain("postern_auth_hash_threads", &[], hashes.threads);
    plain("postern_auth_hash_running", &[], hashes.running);
    plain("postern_auth_hash_waiting", &[], hashes.waiting);
    plain("postern_auth_hash_memory_bytes", &[], hashes.memory);
    plain("postern_auth_hash_refused_total", &[], hashes.refused);
    to.push(hashes.durations.sample("postern_auth_hash_duration_seconds", &[]));

    let workers = engine.workers.stats();
    let mut plain = |name: &str, value: u64| to.push(Sample::new(name, &[], value));
    plain("postern_auth_workers_max", workers.max);
    plain("postern_auth_workers_busy", workers.busy);
    plain("postern_auth_workers_idle", workers.idle);
    plain("postern_auth_workers_waiting", workers.waiting);
    plain("postern_auth_worker_questions_total", workers.questions);
    plain("postern_auth_worker_failures_total", workers.failures);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(logins: &Logins) -> Vec<(String, u64)> {
        let mut samples = Vec::new();
        logins.samples(&mut samples);
        samples.iter().filter_map(|s| Some((s.labels.join(" "), s.plain()?))).collect()
    }

    #[test]
    fn logins_are_counted_by_kind() {
        let logins = Logins::default();
        let took = Duration::from_millis(1);
        for (service, result) in [("smtp", "ok"), ("smtp", "refused"), ("imap", "ok"), ("smtp", "ok")] {
            logins.count(service, "PLAIN", "users", result, took);
        }
        let expected =
            [("imap PLAIN users ok", 1), ("smtp PLAIN users ok", 2), ("smtp PLAIN users refused", 1)];
        assert_eq!(shown(&logins), expected.map(|(text, count)| (text.to_owned(), count)));
    }

    #[test]
    fn strangers_cannot_make_the_table_grow() {
        let logins = Logins::default();
        for n in 0..3000 {
            logins.count(&format!("s{n}"), "PLAIN", &format!("d{}", n % 700), "ok", Duration::ZERO);
        }
        let shown = shown(&logins);
        assert!(shown.len() <= 2 * MAX_KINDS, "{}", shown.len());
        assert_eq!(shown.iter().map(|(_, count)| count).sum::<u64>(), 3000);
        let labels: std::collections::BTreeSet<_> = shown.iter().map(|(labels, _)| labels).collect();
        assert_eq!(labels.len(), shown.len(), "a series is shown twice");
        assert!(logins.services.lock().unwrap().len() <= MAX_SERVICES + 1);
        assert!(logins.kinds.load().len() <= 2 * MAX_KINDS);
        // Nor can they keep others from being counted.
        for result in ["refused", "outage"] {
            logins.count("s0", "PLAIN", "users", result, Duration::ZERO);
            let total: u64 = super::tests::shown(&logins)
                .iter()
                .filter_map(|(labels, count)| labels.ends_with(result).then_some(count))
                .sum();
            assert_eq!(total, 1, "{result}");
        }
    }

    #[test]
    fn only_plain_service_names_are_shown() {
        for (service, expected) in [
            ("smtp", "smtp"),
            ("", "other"),
            ("a b", "other"),
            ("SMTP", "other"),
            ("x\"} 1\n", "other"),
            (&"x".repeat(33), "other"),
        ] {
            assert_eq!(label(service), expected);
        }
    }

    #[test]
    fn logins_of_many_threads_are_all_counted() {
        let logins = Logins::default();
        std::thread::scope(|scope| {
            for n in 0..8_u64 {
                let logins = &logins;
                scope.spawn(move || {
                    for m in 0..1000_u64 {
                        let service = if (n + m) % 2 == 0 { "smtp" } else { "imap" };
                        logins.count(service, "PLAIN", "users", "ok", Duration::from_micros(m));
                    }
                });
            }
        });
        assert_eq!(shown(&logins).iter().map(|(_, count)| count).sum::<u64>(), 8000);
    }
}
