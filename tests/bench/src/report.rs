//! The page: machine, method, table, targets, growth, settings. Rewritten as a whole by every run.
//!
//! Trust: nobody sends it bytes.
//! Never: leave a figure of an earlier run on the page, or a group that broke off unnamed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::svg::Chart;

/// One server's numbers for one piece of work: medians over the alternations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measure {
    /// The server.
    pub(crate) name: String,
    /// Operations per second.
    pub(crate) rate: f64,
    /// Median and 99th percentile of the time of an operation, in microseconds.
    pub(crate) p50: f64,
    /// See `p50`.
    pub(crate) p99: f64,
    /// CPU microseconds of the server per operation.
    pub(crate) cpu: f64,
    /// Those of them that the kernel took.
    pub(crate) system: f64,
    /// CPU microseconds of the load program per operation.
    pub(crate) own: f64,
    /// PSS of all its processes, in KiB.
    pub(crate) pss: f64,
}

/// A piece of work: ours first, then the peers.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What is done.
    pub(crate) title: String,
    /// The numbers.
    pub(crate) sides: Vec<Measure>,
}

impl Row {
    /// Ours.
    pub(crate) fn ours(&self) -> Option<&Measure> {
        self.sides.first()
    }

    /// Our rate over the best peer's.
    pub(crate) fn rate_ratio(&self) -> Option<f64> {
        let best = self.sides.iter().skip(1).map(|side| side.rate).fold(0.0, f64::max);
        self.ours().filter(|_| best > 0.0).map(|ours| ours.rate / best)
    }

    /// Our CPU per operation over the best peer's.
    pub(crate) fn cpu_ratio(&self) -> Option<f64> {
        let best = self
            .sides
            .iter()
            .skip(1)
            .map(|side| side.cpu)
            .filter(|cpu| cpu.is_finite())
            .fold(f64::MAX, f64::min);
        self.ours().filter(|_| best > 0.0 && best < f64::MAX).map(|ours| ours.cpu / best)
    }
}

/// What a server is without connections.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    /// The server.
    pub(crate) name: String,
    /// Seconds from its start to its first answer.
    pub(crate) start: f64,
    /// PSS in KiB.
    pub(crate) pss: f64,
    /// What of it no file stands behind.
    pub(crate) anonymous: f64,
}

/// What connections cost that wait.
#[derive(Debug, Clone)]
pub(crate) struct Idle {
    /// The server.
    pub(crate) name: String,
    /// How many there were.
    pub(crate) connections: usize,
    /// KiB of PSS that each added.
    pub(crate) kib: f64,
}

/// Something to reach.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// What, with the number.
    pub(crate) wanted: String,
    /// What was measured.
    pub(crate) measured: String,
    /// Whether that is enough.
    pub(crate) reached: bool,
    /// What bounds it where it is not reached, with the measurement that shows it.
    pub(crate) bound: String,
}

/// Settings of one side.
pub(crate) struct Settings {
    /// Whose.
    pub(crate) title: String,
    /// The file.
    pub(crate) text: String,
}

/// A chart with what is to be said about it.
pub(crate) struct Growth {
    /// Name of the file in the folder of the page.
    pub(crate) file: &'static str,
    /// The chart.
    pub(crate) chart: Chart,
    /// The slope in words.
    pub(crate) slope: String,
}

/// Everything of one run.
#[derive(Default)]
pub(crate) struct Report {
    /// How long windows were and how many alternations there were.
    pub(crate) method: String,
    /// The command.
    pub(crate) command: String,
    /// The table.
    pub(crate) rows: Vec<Row>,
    /// Start and idle memory.
    pub(crate) footprint: Vec<Footprint>,
    /// Memory of waiting connections.
    pub(crate) idle: Vec<Idle>,
    /// How long the run took.
    pub(crate) seconds: u64,
    /// The targets.
    pub(crate) targets: Vec<Target>,
    /// The charts.
    pub(crate) growth: Vec<Growth>,
    /// All settings.
    pub(crate) settings: Vec<Settings>,
    /// Groups of rows that broke off, and why.
    pub(crate) failures: Vec<String>,
    /// Load of the machine before and after.
    pub(crate) load: (String, String),
}

/// What can be measured without servers, and how.
const SMALLER: &str = "\
## Smaller measurements

Parts alone, without sockets or processes (divan prints fastest, slowest, median and mean):

    cargo bench -p auth-wire --bench codecs    # lines of Dovecot's protocol and saslauthd's requests, in and out
    cargo bench -p sasl --bench mechanisms     # whole exchanges of PLAIN, CRAM-MD5 and SCRAM-SHA-256
    cargo bench -p creds --bench passwords     # look-ups in a passwd-file of up to a million users; hashes

Instructions of a PLAIN login, client and server together, counted by callgrind. They do not depend on what else the
machine does; `make test` fails when they grow.

    cargo test --release -p auth-daemon --test instructions -- --nocapture

";

/// A number without needless zeros.
pub(crate) fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number with as many digits as mean something.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        v if v.is_nan() => "-".to_owned(),
        v if v >= 1000.0 => thousands(value),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in microseconds with its unit.
pub(crate) fn time(micros: f64) -> String {
    match micros {
        v if v.is_nan() => "-".to_owned(),
        v if v >= 1e6 => format!("{:.2} s", v / 1e6),
        v if v >= 10_000.0 => format!("{:.0} ms", v / 1e3),
        v if v >= 1000.0 => format!("{:.1} ms", v / 1e3),
        v if v >= 100.0 => format!("{v:.0} µs"),
        v if v >= 10.0 => format!("{v:.1} µs"),
        v => format!("{v:.2} µs"),
    }
}

/// KiB of memory with a unit. A server that is no process of its own has none to name.
pub(crate) fn memory(kib: f64) -> String {
    if kib > 0.0 { format!("{:.1} MiB", kib / 1024.0) } else { "-".to_owned() }
}

fn first_line(command: &mut Command) -> String {
    let Ok(out) = command.output() else { return "not there".to_owned() };
    let text =
        String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout }).into_owned();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once([':', '=']).map_or("", |(_, value)| value).trim().trim_matches('"').to_owned()
}

impl Report {
    /// The page.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::from(
            "# Benchmarks\n\nWritten by `make bench`; every run rewrites the whole page. Both sides ran in turn within one run, on the same\n\
             machine, with their settings at the end of the page. Compare ratios, not figures of different machines.\n\n",
        );
        let memory = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let _ = write!(
            out,
            "## Machine\n\n| | |\n| --- | --- |\n| Processor | {}, {cpus} CPUs |\n| Memory | {:.0} GiB |\n| System | {}, Linux {} |\n\
             | Peers | Dovecot {}, Postfix {}, {} |\n| Load before and after | {} and {} (1, 5, 15 minutes) |\n\n",
            field("/proc/cpuinfo", "model name"),
            memory / 1024.0 / 1024.0,
            field("/etc/os-release", "PRETTY_NAME"),
            // Behind the version stands what whoever built it likes.
            fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .split('-')
                .next()
                .unwrap_or_default(),
            first_line(Command::new("dovecot").arg("--version")),
            first_line(Command::new("postconf").args([
                "-c",
                "/usr/share/postfix",
                "-d",
                "-h",
                "mail_version"
            ])),
            first_line(Command::new("/usr/sbin/saslauthd").arg("-v")),
            self.load.0,
            self.load.1,
        );
        let _ = write!(
            out,
            "## Method\n\n    {}\n\n{}\n\n\
             - CPU per operation: user and system time of all processes of the server from `/proc/PID/stat`, ended children included,\n  \
             over the operations of the window. It is steadier than rates, which depend on what else the machine does.\n\
             - Memory: PSS of all its processes at the end of the window, with the load's connections open.\n\
             - The load program runs on the same CPUs. One thread drives the authentication sockets; its own cost is in the last column.\n\
             - TLS: version 1.3, TLS_AES_256_GCM_SHA384, X25519, a P-256 certificate and a full handshake for every connection, on both sides.\n\
             - A message counts when it lies in its Maildir. Both sides write it to disk (fsync) before they say yes to it.\n\
             - One unexpected answer, and the group of rows it belongs to breaks off: that is no measurement.\n\n",
            self.command, self.method
        );
        let _ = write!(
            out,
            "The run took {} min {} s. `make bench ARGS=--help` lists groups of rows that can be run alone, and the long form.\n\n",
            self.seconds / 60,
            self.seconds % 60
        );
        for failure in &self.failures {
            let _ = write!(out, "**Broke off:** {}\n\n", failure.lines().collect::<Vec<_>>().join(" "));
        }
        self.targets_table(&mut out);
        self.rows_table(&mut out);
        self.footprint_table(&mut out);
        out.push_str("## How cost grows\n\n");
        for growth in &self.growth {
            let _ = write!(out, "![{}]({})\n\n{}\n\n", growth.chart.title, growth.file, growth.slope);
        }
        out.push_str(SMALLER);
        out.push_str(
            "## Settings\n\n`$W` is a scratch folder, `$USERS` a passwd-file. Wrong passwords are answered at once on both sides: no\n\
             delay, no penalty. Limits stand above the load. No side logs successes but in the row that says so.\n\n",
        );
        for settings in &self.settings {
            let _ = write!(
                out,
                "<details><summary>{}</summary>\n\n```\n{}\n```\n\n</details>\n\n",
                settings.title,
                settings.text.trim_end()
            );
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    fn targets_table(&self, out: &mut String) {
        let reached = self.targets.iter().filter(|target| target.reached).count();
        let _ = write!(
            out,
            "## Targets\n\n{reached} of {} reached in this run.\n\n| Target | Measured | |\n| --- | --- | --- |\n",
            self.targets.len()
        );
        for Target { wanted, measured, reached, .. } in &self.targets {
            let _ = writeln!(
                out,
                "| {wanted} | {measured} | {} |",
                if *reached { "reached" } else { "**missed**" }
            );
        }
        out.push('\n');
        let missed: Vec<&Target> =
            self.targets.iter().filter(|target| !target.reached && !target.bound.is_empty()).collect();
        if !missed.is_empty() {
            out.push_str("What bounds those that were missed:\n\n");
            for target in missed {
                let _ = writeln!(out, "- {}: {}", target.wanted, target.bound);
            }
            out.push('\n');
        }
    }

    fn rows_table(&self, out: &mut String) {
        out.push_str(
            "## Table\n\nRatios are ours over the best peer's: rate (more is better), CPU per operation (less is better).\n\
             In the two rows with saturated hashes the CPU time is that of the guesses as well.\n\n\
             | Work | Server | per second | p50 | p99 | CPU per op. | memory | ratio: rate, CPU | load's CPU |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |\n",
        );
        for row in &self.rows {
            for (at, side) in row.sides.iter().enumerate() {
                let ratio = match (at, row.rate_ratio(), row.cpu_ratio()) {
                    (0, Some(rate), Some(cpu)) => {
                        let rate = if rate > 100.0 { "> 100".to_owned() } else { format!("{rate:.2}") };
                        let cpu = if cpu < 0.01 { "< 0.01".to_owned() } else { format!("{cpu:.2}") };
                        format!("{rate}, {cpu}")
                    }
                    _ => String::new(),
                };
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} | {} | {} | {ratio} | {} |",
                    if at == 0 { &row.title } else { "" },
                    side.name,
                    figure(side.rate),
                    time(side.p50),
                    time(side.p99),
                    time(side.cpu),
                    memory(side.pss),
                    time(side.own),
                );
            }
        }
        out.push('\n');
    }

    fn footprint_table(&self, out: &mut String) {
        out.push_str(
            "## Start and idle memory\n\nFrom the start of the program to the first answered login (whole stack: a login over IMAP, POP3 and SMTP each; Dovecot\n\
             and Postfix started at the same time), and memory of all processes without a connection, once it has stayed the same\n\
             for a second, at the earliest three seconds later. Dovecot is set up for little memory here: no process waits for work.\n\
             What is backed by files are pages of programs, which the system drops when memory is short.\n\n\
             | Server | start | PSS | of it not backed by files |\n| --- | ---: | ---: | ---: |\n",
        );
        for Footprint { name, start, pss, anonymous } in &self.footprint {
            let _ = writeln!(
                out,
                "| {name} | {} | {:.1} MiB | {:.1} MiB |",
                time(start * 1e6),
                pss / 1024.0,
                anonymous / 1024.0
            );
        }
        if !self.idle.is_empty() {
            out.push_str(
                "\nIMAP connections over TLS in IDLE, five of each user, ten messages in each mailbox: growth of the PSS of all\n\
                 processes once they have come to rest. The kernel's memory for sockets is in no figure. Dovecot hibernates them.\n\n\
                 | Server | connections | memory of each |\n| --- | ---: | ---: |\n",
            );
            for Idle { name, connections, kib } in &self.idle {
                #[allow(clippy::cast_precision_loss)]
                let count = figure(*connections as f64);
                let _ = writeln!(out, "| {name} | {count} | {kib:.1} KiB |");
            }
        }
        out.push('\n');
    }

    /// Writes page and charts.
    pub(crate) fn write(&self, docs: &Path) -> anyhow::Result<()> {
        for growth in &self.growth {
            fs::write(docs.join(growth.file), growth.chart.svg())?;
        }
        fs::write(docs.join("benchmarks.md"), self.markdown())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_times() {
        assert_eq!(
            [0.123, 12.34, 123.4, 1234.5, 1_234_567.0].map(figure),
            ["0.12", "12.3", "123", "1,234", "1,234,567"]
        );
        assert_eq!(
            [5.5, 12.34, 999.0, 1500.0, 62_000.0, 2e6].map(time),
            ["5.50 µs", "12.3 µs", "999 µs", "1.5 ms", "62 ms", "2.00 s"]
        );
    }

    #[test]
    fn ratios_are_against_the_best_peer() {
        let side = |rate, cpu| Measure { rate, cpu, ..Measure::default() };
        let row =
            Row { title: String::new(), sides: vec![side(300.0, 2.0), side(100.0, 8.0), side(150.0, 9.0)] };
        assert!((row.rate_ratio().unwrap_or_default() - 2.0).abs() < 1e-9);
        assert!((row.cpu_ratio().unwrap_or_default() - 0.25).abs() < 1e-9);
    }
}
