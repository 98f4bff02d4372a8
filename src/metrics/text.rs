//! Figures in Prometheus' text format, version 0.0.4.
//!
//! Trust: a daemon speaks for itself only. What it says about another one, and what it says twice, is left out.
//! Never: let the value of a label end its quotes or its line.

use std::collections::HashSet;
use std::fmt::Write as _;

use boot::admin::{Process, State, Status};
use boot::figures::{BOUNDS, Kind, METRICS, Metric, Number, Sample};

/// All metrics.
pub(super) fn render(status: &Status) -> String {
    let samples = samples(status);
    let mut out = String::with_capacity(32 << 10);
    for metric in METRICS {
        let mut seen = HashSet::new();
        let mut own = samples.iter().filter(|sample| sample.name == metric.name).peekable();
        if own.peek().is_none() {
            continue;
        }
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = write!(out, "# HELP {} {}\n# TYPE {} {kind}\n", metric.name, metric.help, metric.name);
        for sample in own {
            if sample.labels.len() == metric.labels.len() && seen.insert(&sample.labels) {
                series(&mut out, metric, sample);
            }
        }
    }
    out
}

/// What the daemons say, and what the supervisor knows of them.
pub(crate) fn samples(status: &Status) -> Vec<Sample> {
    let version = env!("CARGO_PKG_VERSION");
    let mut all = vec![
        Sample::new("postern_build_info", &[version], 1),
        Sample::new("postern_reloads_total", &[], status.reloads),
        Sample::new("postern_last_reload_successful", &[], u64::from(status.last_reload_error.is_none())),
    ];
    for process in &status.processes {
        let role = process.role.as_str();
        let mut add = |name: &str, value: Option<u64>| {
            all.extend(value.map(|value| Sample::new(name, &[role], value)));
        };
        let up = process.state == State::Ready && process.answers;
        add("postern_process_up", Some(u64::from(up)));
        add("postern_process_start_time_seconds", process.since);
        add("postern_process_restarts_total", Some(process.restarts));
        add("postern_process_memory_bytes", process.memory_kib.map(|kib| kib.saturating_mul(1024)));
        add("postern_connections", process.connections);
        add("postern_connections_total", process.total);
        all.extend(process.figures.iter().filter(|sample| speaks_for(process, sample)).cloned());
    }
    all
}

/// Whether a daemon may say this.
fn speaks_for(process: &Process, sample: &Sample) -> bool {
    let Some(metric) = boot::figures::metric_named(&sample.name) else { return false };
    let role = process.role.as_str();
    let own = |label: &&str| metric.labels.iter().position(|name| name == label);
    match own(&"role").and_then(|at| sample.labels.get(at)) {
        Some(named) => named == role && metric.name == "postern_connections_refused_total",
        None if metric.name.starts_with("postern_auth_") => role == "auth",
        None if metric.name.starts_with("postern_smtp_") => role == "smtp",
        None if metric.name.starts_with("postern_tls_") => true,
        None => false,
    }
}

fn series(out: &mut String, metric: &Metric, sample: &Sample) {
    let mut labels = String::new();
    for (name, value) in metric.labels.iter().zip(&sample.labels) {
        let _ = write!(labels, "{}{name}=\"{}\"", if labels.is_empty() { "" } else { "," }, escaped(value));
    }
    let name = metric.name;
    let braces = |more: &str| match (labels.is_empty(), more.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!("{{{labels}}}"),
        (true, false) => format!("{{{more}}}"),
        (false, false) => format!("{{{labels},{more}}}"),
    };
    match &sample.value {
        Number::Plain(value) => {
            let _ = writeln!(out, "{name}{} {value}", braces(""));
        }
        Number::Durations { counts, sum_micros } => {
            let mut below = 0_u64;
            let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain(["+Inf".to_owned()]);
            for (count, bound) in counts.iter().zip(bounds) {
                below = below.saturating_add(*count);
                let _ = writeln!(out, "{name}_bucket{} {below}", braces(&format!("le=\"{bound}\"")));
            }
            let _ = writeln!(out, "{name}_sum{} {}", braces(""), seconds(*sum_micros));
            let _ = writeln!(out, "{name}_count{} {below}", braces(""));
        }
    }
}

/// Microseconds as seconds, without the noise of binary fractions.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use boot::figures::Durations;
    use std::time::Duration;

    fn process(role: &str, figures: Vec<Sample>) -> Process {
        let text = format!(
            r#"{{"role":"{role}","pid":7,"uid":0,"since":1700000000,"restarts":2,"connections":3,"total":9,
                "memory_kib":4,"state":"ready","answers":true,"restricted":null,"sockets":[]}}"#
        );
        let mut process: Process = serde_json::from_str(&text).expect("a process");
        process.figures = figures;
        process
    }

    fn rendered(processes: Vec<Process>) -> String {
        render(&Status { processes, reloads: 1, last_reload_error: None })
    }

    #[test]
    fn the_format() {
        let durations = Durations::default();
        durations.observe(Duration::from_micros(120));
        durations.observe(Duration::from_secs(60));
        let text = rendered(vec![process(
            "auth",
            vec![
                Sample::new("postern_auth_logins_total", &["smtp", "PLAIN", "a\"b\\c\nd", "ok"], 5),
                durations.sample("postern_auth_login_duration_seconds", &["smtp"]),
            ],
        )]);
        for line in [
            "# TYPE postern_auth_logins_total counter",
            r#"postern_auth_logins_total{service="smtp",mechanism="PLAIN",driver="a\"b\\c\nd",result="ok"} 5"#,
            r#"postern_auth_login_duration_seconds_bucket{service="smtp",le="0.0001"} 0"#,
            r#"postern_auth_login_duration_seconds_bucket{service="smtp",le="0.00025"} 1"#,
            r#"postern_auth_login_duration_seconds_bucket{service="smtp",le="10"} 1"#,
            r#"postern_auth_login_duration_seconds_bucket{service="smtp",le="+Inf"} 2"#,
            r#"postern_auth_login_duration_seconds_sum{service="smtp"} 60.00012"#,
            r#"postern_auth_login_duration_seconds_count{service="smtp"} 2"#,
            r#"postern_process_memory_bytes{role="auth"} 4096"#,
            r#"postern_process_up{role="auth"} 1"#,
            "postern_reloads_total 1",
            "postern_last_reload_successful 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_daemon_speaks_for_itself_only() {
        let forged = vec![
            Sample::new("postern_auth_logins_total", &["smtp", "PLAIN", "users", "ok"], 1),
            Sample::new("postern_process_up", &["auth"], 0),
            Sample::new("postern_connections_refused_total", &["auth", "total"], 9),
            Sample::new("postern_connections_refused_total", &["smtp", "total"], 1),
            Sample::new("postern_connections_refused_total", &["smtp", "total"], 2),
            Sample::new("postern_build_info", &["9"], 1),
        ];
        let text = rendered(vec![process("smtp", forged)]);
        assert!(!text.contains("postern_auth_logins_total") && !text.contains("version=\"9\""), "{text}");
        assert_eq!(text.matches("\npostern_connections_refused_total").count(), 1, "{text}");
        assert!(
            text.contains("postern_connections_refused_total{role=\"smtp\",reason=\"total\"} 1\n"),
            "{text}"
        );
        assert!(!text.contains("postern_process_up{role=\"auth\"}"), "{text}");
    }

    #[test]
    fn seconds_are_exact() {
        for (micros, text) in
            [(0, "0"), (100, "0.0001"), (1_000_000, "1"), (10_000_000, "10"), (1_500_000, "1.5")]
        {
            assert_eq!(seconds(micros), text);
        }
    }
}
