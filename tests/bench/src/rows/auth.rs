//! Rows of the authentication daemon: mechanisms, hashes, users, connections.
//!
//! Trust: nobody sends it bytes.
//! Never: compare with a Dovecot that could do better: hashes are also measured with SQL, where it has workers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Bench, DOVECOT, OURS, Run, Side, bound};
use crate::load::Timing;
use crate::load::auth::{self, Load, Work};
use crate::load::unread::Unread;
use crate::proc;
use crate::report::{Row, figure, time};
use crate::servers::auth::{AuthOptions, AuthServer, dovecot_auth, postern_auth};
use crate::users::Users;

impl Bench {
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
                "every login has a read, a write and its share of a wake-up to itself; of {} the kernel takes {}, and where 64 requests share them a login costs {}",
                time(ours.cpu),
                time(ours.system),
                time(shared)
            )
        });
        self.cpu_target(&row, 1.0 / 3.0, "1/3", why);
        let one = plain(1, 1);
        let row = self.pair("PLAIN, 1 in flight, where the scheduler likes", 0.8, &ours, &peer, &one)?;
        let socket = self.work.join("unread");
        let unread = Unread::auth(socket.clone())?;
        let alone = Load { socket, ..one };
        let run: Run<'_> = Box::new(|timing| auth::run(&alone, timing, &[]));
        let why = bound(&row) + &self.at_most("PLAIN, no check, 1 in flight", 0.8, run, &row)?;
        drop(unread);
        self.rate_target_because(&row, 1.3, why);
        let row = pinned(&[&ours, &peer], || {
            self.pair("PLAIN, 1 in flight, all on one CPU", 0.8, &ours, &peer, &plain(1, 1))
        })?;
        self.rate_target(&row, 1.3);
        let wrong = load(&users, 16, 256, Work::Wrong(users.wrong()));
        let row =
            self.pair("wrong passwords, 4,096 in flight (16 connections)", 1.5, &ours, &peer, &wrong)?;
        self.rate_target(&row, 5.0);
        drop((ours, peer));

        for mechanism in ["CRAM-MD5", "SCRAM-SHA-256"] {
            let title = format!("{mechanism}, stored keys, 64 in flight (4 connections)");
            if !self.wants(&title) {
                continue;
            }
            let users = Users::hashed(&self.work.join(mechanism), "k", &["-s", mechanism])?;
            let proof = users.proof().to_vec();
            let options = AuthOptions { proof: &proof, ..self::options(&users) };
            let ours = postern_auth(&self.program, &self.work.join(format!("ours-{mechanism}")), options)?;
            let peer = dovecot_auth(&self.work.join(format!("peer-{mechanism}")), options)?;
            let work = match mechanism {
                "CRAM-MD5" => Work::Cram(std::sync::Arc::new(users.names.clone())),
                _ => Work::Scram(users.scram()?),
            };
            let row = self.pair(&title, 0.8, &ours, &peer, &load(&users, 4, 16, work))?;
            self.rate_target(&row, 2.0);
        }

        // What the log costs: ours writes a line for each login, Dovecot's auth process cannot.
        let logging = AuthOptions { audit: true, ..options };
        let title = "PLAIN, 64 in flight, a log line for each login";
        if !self.wants(title) {
            return Ok(());
        }
        let ours = postern_auth(&self.program, &self.work.join("ours-log"), logging)?;
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
                let mut sides = vec![
                    side(OURS, &ours, load.clone()),
                    side("Dovecot, SQL workers", &workers, load.clone()),
                ];
                if self.long {
                    // One process computes all hashes: never its best, but what many run.
                    sides.push(side("Dovecot, passwd-file", &file, load.clone()));
                }
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
            let mut sides = vec![mixed(OURS, &ours), mixed("Dovecot, SQL workers", &workers)];
            if self.long {
                sides.push(mixed("Dovecot, passwd-file", &file));
            }
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

/// Everything off that the row does not name.
pub(super) fn options(users: &Users) -> AuthOptions<'_> {
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
