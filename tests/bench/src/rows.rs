//! The pieces of work, in the order of the page.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::load::auth::{self, Load, Work};
use crate::load::mail::{self, Protocol};
use crate::load::{Timing, Window, mux};
use crate::proc;
use crate::report::{Growth, Measure, Report, Row, Settings, Target, figure, time};
use crate::servers::{
    AuthOptions, AuthServer, certificates, dovecot_and_postfix, dovecot_auth, postern_auth, postern_stack,
    private_etc, saslauthd,
};
use crate::stats::{exponent, median, percentile};
use crate::svg::{Chart, Series};
use crate::users::Users;

/// Our name in tables.
const OURS: &str = "Postern";
/// The peer's.
const DOVECOT: &str = "Dovecot";
/// Threads of the mail and mux loads.
const CLIENTS: usize = 16;

/// A run.
pub(crate) struct Bench {
    /// Our program.
    pub(crate) program: PathBuf,
    /// Scratch folder.
    pub(crate) work: PathBuf,
    /// Long windows, more alternations.
    pub(crate) long: bool,
    /// What was found.
    pub(crate) report: Report,
}

/// A side of a comparison.
type Side<'a> = (&'a str, Box<dyn Fn(Timing) -> anyhow::Result<Window> + 'a>);

impl Bench {
    fn timing(&self, seconds: f64) -> Timing {
        let factor = if self.long { 4.0 } else { 1.0 };
        Timing { warm: Duration::from_millis(200), window: Duration::from_secs_f64(seconds * factor) }
    }

    /// How often each side has its turn.
    pub(crate) fn rounds(&self) -> usize {
        if self.long { 5 } else { 3 }
    }

    /// Measures all sides in turn, and takes medians.
    fn alternate(&mut self, title: &str, seconds: f64, sides: &[Side<'_>]) -> anyhow::Result<Row> {
        let timing = self.timing(seconds);
        let mut seen: Vec<Vec<Measure>> = vec![Vec::new(); sides.len()];
        for _ in 0..self.rounds() {
            for ((name, run), seen) in sides.iter().zip(&mut seen) {
                let window = run(timing).map_err(|error| error.context(format!("{title}: {name}")))?;
                seen.push(measure(name, window));
            }
        }
        let row = Row { title: title.to_owned(), sides: seen.iter().map(|rounds| middle(rounds)).collect() };
        for side in &row.sides {
            println!(
                "{title:<58} {:<22} {:>9}/s  p50 {:>8}  p99 {:>8}  CPU {:>8}  {:>6.1} MiB",
                side.name,
                figure(side.rate),
                time(side.p50),
                time(side.p99),
                time(side.cpu),
                side.pss / 1024.0
            );
        }
        self.report.rows.push(row.clone());
        Ok(row)
    }

    fn target(&mut self, wanted: String, measured: String, reached: bool, bound: String) {
        println!("    target: {wanted}: {measured}{}", if reached { "" } else { "  MISSED" });
        self.report.targets.push(Target { wanted, measured, reached, bound });
    }

    fn rate_target(&mut self, row: &Row, factor: f64) {
        let Some(ratio) = row.rate_ratio() else { return };
        let (wanted, measured) = (format!("{}: ≥ {factor} × the rate", row.title), format!("{ratio:.2} ×"));
        self.target(wanted, measured, ratio >= factor, bound(row));
    }

    fn cpu_target(&mut self, row: &Row, share: f64, text: &str, why: String) {
        let Some(ratio) = row.cpu_ratio() else { return };
        let (wanted, measured) =
            (format!("{}: ≤ {text} of the CPU per operation", row.title), format!("{ratio:.2}"));
        self.target(wanted, measured, ratio <= share, why);
    }

    fn settings(&mut self, title: &str, server: &crate::servers::Server) {
        self.report.settings.push(Settings { title: title.to_owned(), text: server.settings.clone() });
    }

    /// The Dovecot auth protocol with cheap passwords.
    pub(crate) fn auth(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-1k"), 1000)?;
        let options = options(&users);
        let ours = postern_auth(&self.program, &self.work.join("ours"), options)?;
        let peer = dovecot_auth(&self.work.join("peer"), options)?;
        self.settings("Postern: authentication (passwd-file)", &ours.server);
        self.settings("Dovecot: authentication (passwd-file)", &peer.server);

        let plain = |connections, each| load(&users, connections, each, Work::Plain(users.right.clone()));
        let mut shared = 0.0;
        for (in_flight, each) in [(16, 4), (64, 16), (256, 64)] {
            let title = format!("PLAIN, {in_flight} in flight (4 connections)");
            let row = self.pair(&title, 0.8, &ours, &peer, &plain(4, each))?;
            self.rate_target(&row, 2.0);
            self.cpu_target(&row, 1.0 / 3.0, "1/3", bound(&row));
            shared = row.ours().map_or(0.0, |ours| ours.cpu);
        }
        let row =
            self.pair("PLAIN, 16 connections with 1 in flight each", 0.8, &ours, &peer, &plain(16, 1))?;
        let why = row.ours().map_or(String::new(), |ours| {
            format!(
                "every login has a read, a write and its share of a wake-up to itself; of {} they take {}, for where 64 requests share them a login costs {}",
                time(ours.cpu),
                time(ours.cpu - shared),
                time(shared)
            )
        });
        self.cpu_target(&row, 1.0 / 3.0, "1/3", why);
        let row =
            self.pair("PLAIN, 1 in flight, where the scheduler likes", 0.8, &ours, &peer, &plain(1, 1))?;
        self.rate_target(&row, 1.3);
        let row = pinned(&[&ours, &peer], || {
            self.pair("PLAIN, 1 in flight, all on one CPU", 0.8, &ours, &peer, &plain(1, 1))
        })?;
        self.rate_target(&row, 1.3);
        let wrong = load(&users, 16, 256, Work::Wrong(users.wrong()));
        let row =
            self.pair("wrong passwords, 4,096 in flight (16 connections)", 1.5, &ours, &peer, &wrong)?;
        self.rate_target(&row, 5.0);
        drop((ours, peer));

        for (mechanism, scheme) in [("CRAM-MD5", "CRAM-MD5"), ("SCRAM-SHA-256", "SCRAM-SHA-256")] {
            let users = Users::hashed(&self.work.join(scheme), "k", &["-s", scheme])?;
            let proof = users.proof().to_vec();
            let options = AuthOptions { proof: &proof, ..self::options(&users) };
            let ours = postern_auth(&self.program, &self.work.join(format!("ours-{scheme}")), options)?;
            let peer = dovecot_auth(&self.work.join(format!("peer-{scheme}")), options)?;
            let work = match mechanism {
                "CRAM-MD5" => Work::Cram(std::sync::Arc::new(users.names.clone())),
                _ => Work::Scram(users.scram()?),
            };
            let title = format!("{mechanism}, stored keys, 64 in flight (4 connections)");
            let row = self.pair(&title, 0.8, &ours, &peer, &load(&users, 4, 16, work))?;
            self.rate_target(&row, 2.0);
        }

        // What the log costs: ours writes a line for each login, Dovecot's auth process cannot.
        let logging = AuthOptions { audit: true, ..options };
        let ours = postern_auth(&self.program, &self.work.join("ours-log"), logging)?;
        let title = "PLAIN, 64 in flight, a log line for each login";
        self.alternate(title, 0.8, &[side(OURS, &ours, plain(4, 16))])?;
        Ok(())
    }

    fn pair(
        &mut self,
        title: &str,
        seconds: f64,
        ours: &AuthServer,
        peer: &AuthServer,
        load: &Load,
    ) -> anyhow::Result<Row> {
        self.alternate(title, seconds, &[side(OURS, ours, load.clone()), side(DOVECOT, peer, load.clone())])
    }

    /// Hash-bound logins, and cheap ones while the hash threads are busy.
    pub(crate) fn hashes(&mut self) -> anyhow::Result<()> {
        let sha = Users::hashed(&self.work.join("sha512"), "s", &["-s", "SHA512-CRYPT"])?;
        let argon = Users::argon2id(&self.work.join("argon2id"))?;
        let cheap = Users::plain(&self.work.join("users-cheap"), 100)?;
        let all = Users::together(&self.work.join("users-hashes"), &[&sha, &argon, &cheap])?;
        let options = options(&all);
        let sql = AuthOptions { sql: true, ..options };
        {
            let ours = postern_auth(&self.program, &self.work.join("ours-hash"), options)?;
            let file = dovecot_auth(&self.work.join("peer-hash"), options)?;
            let workers = dovecot_auth(&self.work.join("peer-sql"), sql)?;
            self.settings("Dovecot: hash-bound (SQL, a worker per CPU)", &workers.server);
            for (title, users, seconds) in [
                ("SHA512-CRYPT (5,000 rounds), 16 in flight", &sha, 1.5),
                ("ARGON2ID (64 MiB, t=3), 16 in flight", &argon, 2.5),
            ] {
                let load = load(users, 4, 4, Work::Plain(users.right.clone()));
                let sides = [
                    side(OURS, &ours, load.clone()),
                    side("Dovecot, SQL workers", &workers, load.clone()),
                    side("Dovecot, passwd-file", &file, load.clone()),
                ];
                let row = self.alternate(title, seconds, &sides)?;
                self.hash_target(&row);
            }
        }
        let cached = AuthOptions { cache: true, ..options };
        let cached_sql = AuthOptions { cache: true, ..sql };
        let ours = postern_auth(&self.program, &self.work.join("ours-mixed"), cached)?;
        let file = dovecot_auth(&self.work.join("peer-mixed"), cached)?;
        let workers = dovecot_auth(&self.work.join("peer-mixed-sql"), cached_sql)?;
        self.settings("Postern: hashes with a cache", &ours.server);
        self.settings("Dovecot: hashes with a cache (SQL)", &workers.server);
        for (title, users) in [
            ("cheap logins while ARGON2ID guesses saturate the hashes", &cheap),
            ("cached SHA512-CRYPT logins, the same", &sha),
        ] {
            let mixed = |name, server| mixed(name, server, users, &argon);
            let sides = [
                mixed(OURS, &ours),
                mixed("Dovecot, SQL workers", &workers),
                mixed("Dovecot, passwd-file", &file),
            ];
            let row = self.alternate(title, 2.0, &sides)?;
            if let Some(p99) = row.ours().map(|ours| ours.p99) {
                let wanted = format!("{title}: p99 ≤ 10 ms");
                let why = "the hash threads and the load program take all CPUs, so the socket thread waits for its turn; \
                           the time is the scheduler's slice, not work of ours";
                self.target(wanted, time(p99), p99 <= 10_000.0, why.to_owned());
            }
        }
        Ok(())
    }

    fn hash_target(&mut self, row: &Row) {
        let cost =
            row.sides.iter().map(|side| side.cpu).filter(|cpu| cpu.is_finite()).fold(f64::MAX, f64::min);
        let Some(ours) = row.ours() else { return };
        #[allow(clippy::cast_precision_loss)]
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let possible = cpus * 1e6 / cost;
        let share = ours.rate / possible;
        let wanted = format!(
            "{}: ≥ 95 % of CPUs ÷ cost of one hash ({} each, the least of all sides)",
            row.title,
            time(cost)
        );
        let measured = format!("{:.0} % of {}/s", share * 100.0, figure(possible));
        let why = format!(
            "our hash takes {} of CPU; the threads had {:.2} CPUs of {cpus} in the window, the rest went to the load program and to other work of the machine",
            time(ours.cpu),
            ours.rate * ours.cpu / 1e6
        );
        self.target(wanted, measured, share >= 0.95, why);
    }

    /// 1,000, 100,000 and a million users.
    pub(crate) fn users(&mut self) -> anyhow::Result<()> {
        let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); 4];
        let mut starts = Vec::new();
        for count in [1_000_u32, 100_000, 1_000_000] {
            let users = Users::plain(&self.work.join("users-many"), count as usize)?;
            let options = options(&users);
            let ours = postern_auth(&self.program, &self.work.join(format!("ours-{count}")), options)?;
            let peer = dovecot_auth(&self.work.join(format!("peer-{count}")), options)?;
            starts.push((count, ours.server.start_seconds, peer.server.start_seconds));
            let title = format!("PLAIN, 64 in flight, {} users", figure(f64::from(count)));
            let load = load(&users, 4, 16, Work::Plain(users.right.clone()));
            let row = self.pair(&title, 0.8, &ours, &peer, &load)?;
            for (at, side) in row.sides.iter().enumerate() {
                let pair = [side.cpu, side.pss / 1024.0];
                for (kind, value) in pair.into_iter().enumerate() {
                    if let Some(line) = points.get_mut(kind * 2 + at) {
                        line.push((f64::from(count), value));
                    }
                }
            }
        }
        let [cpu_ours, cpu_peer, memory_ours, memory_peer] = points.try_into().unwrap_or_default();
        let starts: Vec<String> = starts
            .iter()
            .map(|(count, ours, peer)| {
                format!("{} users: {}, {}", figure(f64::from(*count)), time(ours * 1e6), time(peer * 1e6))
            })
            .collect();
        self.growth(
            "benchmarks-users-cpu.svg",
            (
                "CPU per login over the number of users",
                "users in the passwd-file",
                "µs of CPU per login",
                false,
            ),
            vec![(OURS, cpu_ours), (DOVECOT, cpu_peer)],
            "CPU per login",
            &format!("Start until the first answer (ours, Dovecot): {}.", starts.join("; ")),
        );
        self.growth(
            "benchmarks-users-memory.svg",
            ("Memory over the number of users", "users in the passwd-file", "MiB (PSS)", true),
            vec![(OURS, memory_ours), (DOVECOT, memory_peer)],
            "memory",
            "",
        );
        Ok(())
    }

    fn growth(
        &mut self,
        file: &'static str,
        (title, x, y, log_y): (&str, &str, &str, bool),
        lines: Vec<(&str, Vec<(f64, f64)>)>,
        what: &str,
        more: &str,
    ) {
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

    /// 1 to 3,000 connections with one request in flight each.
    pub(crate) fn connections(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-1k"), 1000)?;
        let options = options(&users);
        let ours = postern_auth(&self.program, &self.work.join("ours-conn"), options)?;
        let peer = dovecot_auth(&self.work.join("peer-conn"), options)?;
        let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); 6];
        for count in [1_u32, 10, 100, 1000, 3000] {
            let title = format!(
                "PLAIN, {} connections with 1 in flight each",
                figure(f64::from(count)).replace(".00", "").replace(".0", "")
            );
            let load = load(&users, count as usize, 1, Work::Plain(users.right.clone()));
            let row = self.pair(&title, 0.8, &ours, &peer, &load)?;
            for (at, side) in row.sides.iter().enumerate() {
                for (kind, value) in [side.cpu, side.pss / 1024.0, side.rate].into_iter().enumerate() {
                    if let Some(line) = points.get_mut(kind * 2 + at) {
                        line.push((f64::from(count), value));
                    }
                }
            }
        }
        let [cpu_ours, cpu_peer, memory_ours, memory_peer, rate_ours, rate_peer] =
            points.try_into().unwrap_or_default();
        let x = "connections, one request in flight on each";
        self.growth(
            "benchmarks-connections-rate.svg",
            ("Logins per second over the number of connections", x, "logins per second", false),
            vec![(OURS, rate_ours), (DOVECOT, rate_peer)],
            "the rate",
            "",
        );
        self.growth(
            "benchmarks-connections-cpu.svg",
            ("CPU per login over the number of connections", x, "µs of CPU per login", false),
            vec![(OURS, cpu_ours), (DOVECOT, cpu_peer)],
            "CPU per login",
            "",
        );
        self.growth(
            "benchmarks-connections-memory.svg",
            ("Memory over the number of connections", x, "MiB (PSS)", true),
            vec![(OURS, memory_ours), (DOVECOT, memory_peer)],
            "memory",
            "",
        );
        Ok(())
    }

    /// Logins over SMTP, IMAP and POP3 with TLS.
    pub(crate) fn mail(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-mail"), 50)?;
        let tls = self.work.join("tls");
        certificates(&tls)?;
        let client = mail::tls(&tls.join("ca.pem"))?;
        let ours = postern_stack(&self.program, &self.work.join("stack"), &users.file, &tls)?;
        let peer = dovecot_and_postfix(&self.work.join("peers"), &users.file, &tls)?;
        for server in &ours.servers {
            self.settings("Postern: whole stack", server);
        }
        for (title, server) in ["Dovecot: IMAP and POP3", "Postfix: submission"].iter().zip(&peer.servers) {
            self.settings(title, server);
        }
        // Every mailbox exists before anything is measured.
        for (name, password) in &users.names {
            for (protocol, ports) in
                [(Protocol::Imap, [ours.imap, peer.imap]), (Protocol::Pop3, [ours.pop3, peer.pop3])]
            {
                for port in ports {
                    mail::login(protocol, port, &client, name, password)?;
                }
            }
        }
        let (our_roots, peer_roots) = (ours.roots(), peer.roots());
        for (title, protocol, ports, peer_name, factor) in [
            (
                "SMTP: connect, TLS, AUTH PLAIN, QUIT",
                Protocol::Smtp,
                [ours.smtp, peer.smtp],
                "Postfix and Dovecot",
                1.0,
            ),
            ("IMAP: connect, TLS, LOGIN, LOGOUT", Protocol::Imap, [ours.imap, peer.imap], DOVECOT, 2.0),
            ("POP3: connect, TLS, PASS, QUIT", Protocol::Pop3, [ours.pop3, peer.pop3], DOVECOT, 1.0),
        ] {
            let (client, names) = (&client, &users.names);
            let run = |port: u16, roots: &'_ [u32]| {
                let roots = roots.to_vec();
                move |timing: Timing| mail::run(protocol, port, client, names, CLIENTS, timing, &roots)
            };
            let sides: [Side<'_>; 2] = [
                (OURS, Box::new(run(ports[0], &our_roots))),
                (peer_name, Box::new(run(ports[1], &peer_roots))),
            ];
            let row = self.alternate(title, 1.5, &sides)?;
            self.rate_target(&row, factor);
        }
        Ok(())
    }

    /// saslauthd's socket.
    pub(crate) fn mux(&mut self) -> anyhow::Result<()> {
        let etc = self.work.join("private");
        private_etc(&etc)?;
        let etc = etc.join("etc");
        let work = self.work.join("mux");
        for (title, name, flags, seconds, factor) in [
            ("saslauthd: pam_unix, not cached", "pam", "-a pam -n 8", 1.5, 1.1),
            ("saslauthd: shadow, not cached", "shadow", "-a shadow -n 8", 1.5, 1.3),
            ("saslauthd: pam_unix, cached", "cached", "-a pam -n 8 -c -t 3600 -s 4096", 1.0, 2.0),
        ] {
            let ours = saslauthd(Some(&self.program), &work, &etc, &format!("ours-{name}"), flags)?;
            let peer = saslauthd(None, &work, &etc, &format!("peer-{name}"), flags)?;
            self.settings(&format!("{title}: both sides"), &peer.server);
            let requests = vec![mux::request("tester", "pw1", "smtp")];
            let run = |server: &AuthServer| {
                let (socket, roots) = (server.socket.clone(), server.server.roots().to_vec());
                let requests = requests.clone();
                move |timing: Timing| mux::run(&socket, &requests, 4, timing, &roots)
            };
            let sides: [Side<'_>; 2] = [(OURS, Box::new(run(&ours))), ("saslauthd", Box::new(run(&peer)))];
            let row = self.alternate(&format!("{title}, 4 in flight"), seconds, &sides)?;
            self.rate_target(&row, factor);
        }
        Ok(())
    }

    /// Start-up time and memory without connections.
    pub(crate) fn footprint(&mut self) -> anyhow::Result<()> {
        let users = Users::plain(&self.work.join("users-1k"), 1000)?;
        let options = options(&users);
        // Idle is what has had nothing to do for a moment, not what has just started.
        let settle = || std::thread::sleep(Duration::from_secs(2));
        let idle = |server: &crate::servers::Server| {
            settle();
            (proc::pss_kib(server.roots()), proc::anonymous_kib(server.roots()))
        };
        let mut ours = Vec::new();
        let mut peer = Vec::new();
        for round in 0..3 {
            let server =
                postern_auth(&self.program, &self.work.join(format!("ours-idle-{round}")), options)?.server;
            let (pss, dirty) = idle(&server);
            ours.push((server.start_seconds, pss, dirty));
            drop(server);
            let server = dovecot_auth(&self.work.join(format!("peer-idle-{round}")), options)?.server;
            let (pss, dirty) = idle(&server);
            peer.push((server.start_seconds, pss, dirty));
        }
        let ours = self.footprint_row("Postern, authentication alone", &ours);
        self.footprint_row("Dovecot, authentication alone", &peer);
        let tls = self.work.join("tls");
        certificates(&tls)?;
        let stack = postern_stack(&self.program, &self.work.join("stack-idle"), &users.file, &tls)?;
        settle();
        let roots = stack.roots();
        let start = stack.servers.iter().map(|server| server.start_seconds).sum();
        let whole = (start, proc::pss_kib(&roots), proc::anonymous_kib(&roots));
        let whole = self.footprint_row("Postern, whole stack", &[whole]);
        drop(stack);
        let peers = dovecot_and_postfix(&self.work.join("peers-idle"), &users.file, &tls)?;
        settle();
        let roots = peers.roots();
        let start = peers.servers.iter().map(|server| server.start_seconds).sum();
        self.footprint_row(
            "Dovecot and Postfix",
            &[(start, proc::pss_kib(&roots), proc::anonymous_kib(&roots))],
        );
        for (title, pss, dirty, limit) in
            [("authentication alone", ours.0, ours.1, 6.0), ("whole stack", whole.0, whole.1, 25.0)]
        {
            let mib = pss / 1024.0;
            let why = format!(
                "{:.1} MiB of it are memory of the processes; the rest are pages of the one program file that all roles share, \
                 which the kernel maps in windows of 64 KiB and drops when memory is short",
                dirty / 1024.0
            );
            self.target(
                format!("idle memory, {title}: ≤ {limit} MiB (PSS)"),
                format!("{mib:.1} MiB"),
                mib <= limit,
                why,
            );
        }
        Ok(())
    }

    fn footprint_row(&mut self, name: &str, rounds: &[(f64, f64, f64)]) -> (f64, f64) {
        let of = |f: fn(&(f64, f64, f64)) -> f64| median(&rounds.iter().map(f).collect::<Vec<_>>());
        let (start, pss, dirty) = (of(|r| r.0), of(|r| r.1), of(|r| r.2));
        println!(
            "{name:<58} start {:>8}  {:.1} MiB, not of files {:.1} MiB",
            time(start * 1e6),
            pss / 1024.0,
            dirty / 1024.0
        );
        self.report.footprint.push((name.to_owned(), start, pss, dirty));
        (pss, dirty)
    }
}

/// All servers on CPU 0 together with the load, and back again.
fn pinned<T>(servers: &[&AuthServer], run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let everybody: Vec<u32> = servers
        .iter()
        .flat_map(|server| server.server.roots().to_vec())
        .chain(std::iter::once(std::process::id()))
        .collect();
    proc::pin(&everybody, "0");
    let result = run();
    proc::pin(&everybody, &proc::all_cpus());
    result
}

fn options(users: &Users) -> AuthOptions<'_> {
    AuthOptions { users: &users.file, cache: false, sql: false, audit: false, proof: users.proof() }
}

fn load(_: &Users, connections: usize, per_connection: usize, work: Work) -> Load {
    Load { socket: PathBuf::new(), connections, per_connection, work }
}

fn side<'a>(name: &'a str, server: &'a AuthServer, load: Load) -> Side<'a> {
    let load = Load { socket: server.socket.clone(), ..load };
    (name, Box::new(move |timing| auth::run(&load, timing, server.server.roots())))
}

/// Logins of `users` while guesses at `victims` keep every hash thread busy.
fn mixed<'a>(name: &'a str, server: &'a AuthServer, users: &Users, victims: &Users) -> Side<'a> {
    let to = |connections, per_connection, work| Load {
        socket: server.socket.clone(),
        connections,
        per_connection,
        work,
    };
    let front = to(8, 1, Work::Plain(users.right.clone()));
    let guesses = to(4, 4, Work::Guesses(victims.bare()));
    let run = move |timing: Timing| {
        // What can be cached is.
        let warm = Timing { warm: Duration::from_millis(300), window: Duration::ZERO };
        auth::run(&front, warm, &[])?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guessing = scope.spawn(|| auth::background(&guesses, &stop));
            let settle = Timing { warm: Duration::from_millis(500), ..timing };
            let window = auth::run(&front, settle, server.server.roots());
            stop.store(true, Ordering::Relaxed);
            match guessing.join() {
                Ok(result) => result?,
                Err(_) => anyhow::bail!("the guessing load panicked"),
            }
            window
        })
    };
    (name, Box::new(run))
}

#[allow(clippy::cast_precision_loss)]
fn measure(name: &str, mut window: Window) -> Measure {
    let operations = window.operations as f64;
    let micros = |ticks: f64| ticks / 10.0;
    // Nothing finished: there is no cost to name.
    let each = |seconds: f64| if window.operations == 0 { f64::NAN } else { seconds * 1e6 / operations };
    let (cpu, own) = (each(window.server_cpu), each(window.own_cpu));
    Measure {
        name: name.to_owned(),
        rate: operations / window.seconds,
        p50: micros(percentile(&mut window.times, 0.5)),
        p99: micros(percentile(&mut window.times, 0.99)),
        cpu,
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
        "an operation took {} of CPU on our side and {} in the load program; together they used {busy:.2} of {cpus} CPUs",
        time(ours.cpu),
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
