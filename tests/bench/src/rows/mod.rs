//! The pieces of work, in the order of the page: what is measured, and what is wanted of it.
//!
//! Trust: nobody sends it bytes.
//! Never: let one side run at another time, under another load or over other users than the other.

mod auth;
mod mail;
mod mailbox;
mod system;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::load::{Timing, Window};
use crate::report::{Growth, Measure, Report, Row, Settings, Target, figure, memory, time};
use crate::servers::Server;
use crate::stats::{exponent, median, percentile};
use crate::svg::{Chart, Series};

/// Our name in tables.
const OURS: &str = "Postern";
/// The peer's.
const DOVECOT: &str = "Dovecot";

/// A run.
pub(crate) struct Bench {
    /// Our program.
    pub(crate) program: PathBuf,
    /// Scratch folder.
    pub(crate) work: PathBuf,
    /// Further rows.
    pub(crate) long: bool,
    /// How often each side has its turn.
    pub(crate) rounds: usize,
    /// How much longer windows are than in the short form.
    pub(crate) factor: f64,
    /// Only rows with one of these (lower case) in their title; none: all.
    pub(crate) rows: Vec<String>,
    /// What was found.
    pub(crate) report: Report,
}

/// One turn of a side.
type Run<'a> = Box<dyn Fn(Timing) -> anyhow::Result<Window> + 'a>;
/// A side of a comparison.
type Side<'a> = (&'a str, Run<'a>);

impl Bench {
    fn timing(&self, seconds: f64) -> Timing {
        Timing { warm: Duration::from_millis(200), window: Duration::from_secs_f64(seconds * self.factor) }
    }

    /// Is this row asked for?
    fn wants(&self, title: &str) -> bool {
        let title = title.to_lowercase();
        self.rows.is_empty() || self.rows.iter().any(|words| title.contains(words))
    }

    /// Measures all sides in turn, and takes medians. A row that is not asked for has no sides.
    fn alternate(&mut self, title: &str, seconds: f64, sides: &[Side<'_>]) -> anyhow::Result<Row> {
        let timing = self.timing(seconds);
        let mut seen: Vec<Vec<Measure>> = vec![Vec::new(); sides.len()];
        if !self.wants(title) {
            return Ok(Row { title: title.to_owned(), sides: Vec::new() });
        }
        for round in 0..self.rounds {
            // There and back again: whoever comes first has no better place.
            let forth = (0..sides.len()).collect::<Vec<_>>();
            let order = if round % 2 == 0 { forth } else { forth.into_iter().rev().collect() };
            for at in order {
                if let (Some((name, run)), Some(seen)) = (sides.get(at), seen.get_mut(at)) {
                    let window = run(timing).map_err(|error| error.context(format!("{title}: {name}")))?;
                    seen.push(measure(name, window));
                }
            }
        }
        let row = Row { title: title.to_owned(), sides: seen.iter().map(|rounds| middle(rounds)).collect() };
        for side in &row.sides {
            println!(
                "{title:<58} {:<22} {:>9}/s  p50 {:>8}  p99 {:>8}  CPU {:>8}  {:>10}",
                side.name,
                figure(side.rate),
                time(side.p50),
                time(side.p99),
                time(side.cpu),
                memory(side.pss)
            );
        }
        self.report.rows.push(row.clone());
        Ok(row)
    }

    /// Measures a thread that says OK without looking under the load of a row; what that says of the row, in words.
    fn at_most(&mut self, title: &str, seconds: f64, run: Run<'_>, row: &Row) -> anyhow::Result<String> {
        let most = self.alternate(title, seconds, &[("says OK unread", run)])?;
        Ok(match (most.ours(), row.sides.get(1)) {
            (Some(most), Some(peer)) => format!(
                "; a thread that reads and says OK without looking makes {} per second here, {:.2} × the peer's rate",
                figure(most.rate),
                most.rate / peer.rate
            ),
            _ => String::new(),
        })
    }

    fn target(&mut self, wanted: String, measured: String, reached: bool, bound: String) {
        println!("    target: {wanted}: {measured}{}", if reached { "" } else { "  MISSED" });
        self.report.targets.push(Target { wanted, measured, reached, bound });
    }

    fn rate_target(&mut self, row: &Row, factor: f64) {
        self.rate_target_because(row, factor, bound(row));
    }

    fn rate_target_because(&mut self, row: &Row, factor: f64, why: String) {
        let Some(ratio) = row.rate_ratio() else { return };
        let (wanted, measured) = (format!("{}: ≥ {factor} × the rate", row.title), format!("{ratio:.2} ×"));
        self.target(wanted, measured, ratio >= factor, why);
    }

    fn cpu_target(&mut self, row: &Row, share: f64, text: &str, why: String) {
        let Some(ratio) = row.cpu_ratio() else { return };
        let (wanted, measured) =
            (format!("{}: ≤ {text} of the CPU per operation", row.title), format!("{ratio:.2}"));
        self.target(wanted, measured, ratio <= share, why);
    }

    fn settings(&mut self, title: &str, server: &Server) {
        let settings = Settings { title: title.to_owned(), text: server.settings.clone() };
        // Several groups start the same servers.
        if !self.report.settings.iter().any(|known| known.title == settings.title) {
            self.report.settings.push(settings);
        }
    }
    fn growth(
        &mut self,
        file: &'static str,
        (title, x, y, log_y): (&str, &str, &str, bool),
        lines: Vec<(&str, Vec<(f64, f64)>)>,
        what: &str,
        more: &str,
    ) {
        // A row that was not asked for.
        if lines.iter().any(|(_, points)| points.len() < 2) {
            return;
        }
        let slopes: Vec<String> = lines
            .iter()
            .map(|(name, points)| {
                let slope = exponent(points);
                // Per unit, from the ends: what a user or a connection adds.
                let each = match (points.first(), points.last()) {
                    (Some(a), Some(b)) if b.0 > a.0 => (b.1 - a.1) / (b.0 - a.0),
                    _ => 0.0,
                };
                let adds = if y.starts_with("MiB") {
                    format!(", {:.2} KiB each", each * 1024.0)
                } else {
                    String::new()
                };
                format!("{name}: {what} grows as n^{slope:.2}{adds}")
            })
            .collect();
        let series =
            lines.into_iter().map(|(name, points)| Series { name: name.to_owned(), points }).collect();
        let chart = Chart { title: title.to_owned(), x: x.to_owned(), y: y.to_owned(), log_y, series };
        let slope = format!("Slope (least squares over logarithms): {}. {more}", slopes.join("; "));
        self.report.growth.push(Growth { file, chart, slope: slope.trim_end().to_owned() });
    }
}

#[allow(clippy::cast_precision_loss)]
fn measure(name: &str, mut window: Window) -> Measure {
    let operations = window.operations as f64;
    let micros = |ticks: f64| ticks / 10.0;
    // Nothing finished, or in less than a tick: there is no cost to name.
    let each =
        |seconds: f64| if operations > 0.0 && seconds > 0.0 { seconds * 1e6 / operations } else { f64::NAN };
    let (cpu, own) = (each(window.server_cpu.all), each(window.own_cpu));
    Measure {
        name: name.to_owned(),
        rate: operations / window.seconds,
        p50: micros(percentile(&mut window.times, 0.5)),
        p99: micros(percentile(&mut window.times, 0.99)),
        cpu,
        system: each(window.server_cpu.system),
        own,
        pss: window.pss_kib,
    }
}

fn middle(rounds: &[Measure]) -> Measure {
    let of = |f: fn(&Measure) -> f64| median(&rounds.iter().map(f).collect::<Vec<_>>());
    Measure {
        name: rounds.first().map(|first| first.name.clone()).unwrap_or_default(),
        rate: of(|m| m.rate),
        p50: of(|m| m.p50),
        p99: of(|m| m.p99),
        cpu: of(|m| m.cpu),
        system: of(|m| m.system),
        own: of(|m| m.own),
        pss: of(|m| m.pss),
    }
}

/// Why a rate is not higher: where the CPU time of an operation goes.
fn bound(row: &Row) -> String {
    let Some(ours) = row.ours() else { return String::new() };
    #[allow(clippy::cast_precision_loss)]
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let busy = ours.rate * (ours.cpu + ours.own) / 1e6;
    format!(
        "an operation took {} of CPU on our side, {} of them in the kernel, and {} in the load program; together they used {busy:.2} of {cpus} CPUs",
        time(ours.cpu),
        time(ours.system),
        time(ours.own)
    )
}

/// Checks what must be there before anything is started.
pub(crate) fn check(program: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("the peers need root: run `make bench` as root or with sudo");
    }
    if !program.exists() {
        anyhow::bail!("{} is not there: build it first (make bench does)", program.display());
    }
    Ok(())
}
