//! The load programs: clients that keep a number of operations in flight for a time and note how long each takes.
//!
//! Trust: what the measured servers answer; it is compared with what must come, nothing else.
//! Never: count an operation that began before the load was warm or whose answer was another one.

pub(crate) mod auth;
pub(crate) mod mail;
pub(crate) mod mux;
pub(crate) mod unread;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::proc::{self, Cpu};

/// What one window of measuring saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// Operations finished in the window.
    pub(crate) operations: u64,
    /// Their times, in units of 100 ns.
    pub(crate) times: Vec<u32>,
    /// Length of the window in seconds.
    pub(crate) seconds: f64,
    /// CPU seconds of the server.
    pub(crate) server_cpu: Cpu,
    /// CPU seconds of this program.
    pub(crate) own_cpu: f64,
    /// Memory of the server at the end of the window, connections still open.
    pub(crate) pss_kib: f64,
}

/// Notes a time in the unit of [`Window::times`].
pub(crate) fn note(times: &mut Vec<u32>, took: Duration) {
    times.push(u32::try_from(took.as_nanos() / 100).unwrap_or(u32::MAX));
}

/// When to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Load without measuring, before.
    pub(crate) warm: Duration,
    /// The window.
    pub(crate) window: Duration,
}

/// Times and CPU at the edges of a window.
pub(crate) struct Meter<'a> {
    server: &'a [u32],
    began: Instant,
    server_cpu: Cpu,
    own_cpu: f64,
}

impl<'a> Meter<'a> {
    /// The window begins.
    pub(crate) fn start(server: &'a [u32]) -> Meter<'a> {
        Meter { server, server_cpu: Cpu::of(server), own_cpu: proc::own_cpu_seconds(), began: Instant::now() }
    }

    /// The window ends.
    pub(crate) fn end(self, window: &mut Window) {
        window.seconds = self.began.elapsed().as_secs_f64();
        window.server_cpu = Cpu::of(self.server).since(self.server_cpu);
        window.own_cpu = proc::own_cpu_seconds() - self.own_cpu;
        window.pss_kib = proc::pss_kib(self.server);
    }
}

/// Threads that do the same again and again.
pub(crate) struct Crowd<'a> {
    /// How many.
    pub(crate) threads: usize,
    /// Load before the window, and the window.
    pub(crate) timing: Timing,
    /// The processes of the server.
    pub(crate) server: &'a [u32],
}

/// Waits until a server has done so many operations that it said yes to.
pub(crate) type Settled<'a> = &'a dyn Fn(usize) -> anyhow::Result<()>;

impl Crowd<'_> {
    /// Prepares every thread (`open`, by its number), then runs `operation` with what it prepared and a number that
    /// no other operation of the run has, and measures.
    ///
    /// Without `settled` the window begins after the load's first moments and counts what is answered within. With it
    /// everything from the first operation counts, and the window lasts until it returns.
    ///
    /// # Errors
    /// The first error of any operation: a run with errors is no measurement.
    pub(crate) fn run<T: Send>(
        &self,
        open: impl Fn(usize) -> anyhow::Result<T> + Sync,
        operation: impl Fn(&mut T, usize) -> anyhow::Result<()> + Sync,
        settled: Option<Settled<'_>>,
    ) -> anyhow::Result<Window> {
        let to_the_end = settled.is_some();
        let (measuring, over) = (AtomicBool::new(to_the_end), AtomicBool::new(false));
        let barrier = Barrier::new(self.threads + 1);
        let mut window = Window::default();
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..self.threads)
                .map(|thread| {
                    let (measuring, over, barrier) = (&measuring, &over, &barrier);
                    let (open, operation, threads) = (&open, &operation, self.threads);
                    scope.spawn(move || {
                        let opened = open(thread);
                        barrier.wait();
                        let (mut mine, mut times, mut count) = (opened?, Vec::new(), 0_usize);
                        while !over.load(Ordering::Relaxed) {
                            let began = Instant::now();
                            operation(&mut mine, thread + threads * count)?;
                            count += 1;
                            let within = to_the_end || !over.load(Ordering::Relaxed);
                            if within && measuring.load(Ordering::Relaxed) {
                                note(&mut times, began.elapsed());
                            }
                        }
                        Ok::<_, anyhow::Error>((times, mine))
                    })
                })
                .collect();
            barrier.wait();
            // These wait for nothing: they are the lengths of the load's first moments and of the window.
            if !to_the_end {
                std::thread::sleep(self.timing.warm);
            }
            measuring.store(true, Ordering::Relaxed);
            let meter = Meter::start(self.server);
            std::thread::sleep(self.timing.window);
            over.store(true, Ordering::Relaxed);
            let meter = match settled {
                Some(_) => Some(meter),
                None => {
                    meter.end(&mut window);
                    None
                }
            };
            let mut still_open = Vec::new();
            for handle in handles {
                let Ok(ended) = handle.join() else { anyhow::bail!("a load thread panicked") };
                let (times, mine) = ended?;
                window.times.extend(times);
                still_open.push(mine);
            }
            if let (Some(settled), Some(meter)) = (settled, meter) {
                settled(window.times.len())?;
                meter.end(&mut window);
            }
            Ok(())
        })?;
        window.operations = window.times.len() as u64;
        Ok(window)
    }
}
