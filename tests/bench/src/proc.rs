//! What the kernel tells about a server's processes: who they are, CPU time, memory.
//!
//! Source: proc(5). CPU time comes in ticks of 10 ms, so windows are a second or longer.
//! Trust:  the kernel. A process that ends while it is looked at counts as nothing.
//! Never:  count one process of a server and forget another: all descendants belong to it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::servers::patiently;

/// Ticks per second of the times in `/proc/PID/stat`: `USER_HZ`, 100 on every Linux we build for.
const TICKS: f64 = 100.0;

/// Processes of a server: those it was started as, and all their descendants.
pub(crate) fn tree(roots: &[u32]) -> BTreeSet<u32> {
    let mut all: BTreeSet<u32> = BTreeSet::new();
    let mut next: Vec<u32> = roots.to_vec();
    while let Some(pid) = next.pop() {
        if !all.insert(pid) {
            continue;
        }
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            next.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}

/// How many of a server's processes bear this name.
pub(crate) fn named(roots: &[u32], name: &str) -> usize {
    let is_it =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    tree(roots).iter().filter(|pid| is_it(pid)).count()
}

/// CPU seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    /// User and system.
    pub(crate) all: f64,
    /// System alone.
    pub(crate) system: f64,
}

impl Cpu {
    /// Of these processes and of those of their children that have ended.
    pub(crate) fn of(roots: &[u32]) -> Cpu {
        tree(roots).into_iter().fold(Cpu::default(), |sum, pid| {
            let [user, system, ended_user, ended_system] = ticks(pid).map(|ticks| ticks / TICKS);
            Cpu {
                all: sum.all + user + system + ended_user + ended_system,
                system: sum.system + system + ended_system,
            }
        })
    }

    /// What came on top since then.
    pub(crate) fn since(self, then: Cpu) -> Cpu {
        Cpu { all: self.all - then.all, system: self.system - then.system }
    }
}

/// utime, stime, cutime, cstime.
fn ticks(pid: u32) -> [f64; 4] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut times = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split_ascii_whitespace().skip(11);
    [(); 4].map(|()| times.next().and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0))
}

/// CPU seconds of this program.
pub(crate) fn own_cpu_seconds() -> f64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return 0.0 };
    let Some((_, rest)) = stat.rsplit_once(") ") else { return 0.0 };
    let times = rest.split_ascii_whitespace().skip(11).take(2);
    times.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Proportional set size of all processes, in KiB: shared pages count once.
pub(crate) fn pss_kib(roots: &[u32]) -> f64 {
    tree(roots).into_iter().filter_map(|pid| rollup(pid, "Pss:")).sum()
}

/// The same once a server has come to rest: some give back after seconds what only a start or a login needed.
pub(crate) fn settled_pss_kib(roots: &[u32]) -> f64 {
    let pause = Duration::from_secs(1);
    let mut seen: Vec<f64> = Vec::new();
    patiently(30 * pause, pause, || {
        seen.push(pss_kib(roots));
        // Three seconds, and the last of them without a change.
        matches!(seen.as_slice(), [_, _, .., before, last] if (last - before).abs() <= before * 0.002)
    });
    seen.last().copied().unwrap_or_default()
}

/// Keeps all threads of these processes on these CPUs.
pub(crate) fn pin(roots: &[u32], cpus: &str) {
    for pid in tree(roots) {
        let _ =
            std::process::Command::new("taskset").args(["-a", "-c", "-p", cpus, &pid.to_string()]).output();
    }
}

/// `0-1` or whatever this machine has.
pub(crate) fn all_cpus() -> String {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    if online.trim().is_empty() { "0".to_owned() } else { online.trim().to_owned() }
}

/// Of the PSS, memory that no file stands behind, in KiB: what the system cannot drop.
pub(crate) fn anonymous_kib(roots: &[u32]) -> f64 {
    tree(roots).into_iter().filter_map(|pid| rollup(pid, "Pss_Anon:")).sum()
}

fn rollup(pid: u32, name: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
