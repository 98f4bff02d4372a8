//! The load programs: clients that keep a number of operations in flight for a time and note how long each takes.

pub(crate) mod auth;
pub(crate) mod mail;
pub(crate) mod mux;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::proc;

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
    pub(crate) server_cpu: f64,
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
    server_cpu: f64,
    own_cpu: f64,
}

impl<'a> Meter<'a> {
    /// The window begins.
    pub(crate) fn start(server: &'a [u32]) -> Meter<'a> {
        Meter {
            server,
            server_cpu: proc::cpu_seconds(server),
            own_cpu: proc::own_cpu_seconds(),
            began: Instant::now(),
        }
    }

    /// The window ends.
    pub(crate) fn end(self, window: &mut Window) {
        window.seconds = self.began.elapsed().as_secs_f64();
        window.server_cpu = proc::cpu_seconds(self.server) - self.server_cpu;
        window.own_cpu = proc::own_cpu_seconds() - self.own_cpu;
        window.pss_kib = proc::pss_kib(self.server);
    }
}

/// Runs `operation` in so many threads at once, each again and again, and measures.
///
/// # Errors
/// The first error of any operation: a run with errors is no measurement.
pub(crate) fn in_threads(
    threads: usize,
    timing: Timing,
    server: &[u32],
    operation: impl Fn(usize) -> anyhow::Result<()> + Send + Sync,
) -> anyhow::Result<Window> {
    let (measuring, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let barrier = Barrier::new(threads + 1);
    let mut window = Window::default();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (measuring, over) = (Arc::clone(&measuring), Arc::clone(&over));
                let (operation, barrier) = (&operation, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let (mut times, mut count) = (Vec::new(), 0_usize);
                    while !over.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        operation(thread + threads * count)?;
                        count += 1;
                        if measuring.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                            note(&mut times, began.elapsed());
                        }
                    }
                    Ok::<_, anyhow::Error>(times)
                })
            })
            .collect();
        barrier.wait();
        std::thread::sleep(timing.warm);
        measuring.store(true, Ordering::Relaxed);
        let meter = Meter::start(server);
        std::thread::sleep(timing.window);
        over.store(true, Ordering::Relaxed);
        meter.end(&mut window);
        for handle in handles {
            match handle.join() {
                Ok(times) => window.times.extend(times?),
                Err(_) => anyhow::bail!("a load thread panicked"),
            }
        }
        Ok(())
    })?;
    window.operations = window.times.len() as u64;
    Ok(window)
}
