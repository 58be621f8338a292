//! Runs loads, and relates what they moved to what the proxy used meanwhile.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::load::{Load, Plan, Work};
use crate::process::{self, Cpu, Machine, Tree};
use crate::stats::percentile;

/// Load before a window, at most: allocators, caches and congestion windows find their size.
const WARM_UP: Duration = Duration::from_millis(300);
/// Until all idle connections are open.
const OPENING: Duration = Duration::from_secs(30);
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(250);
/// Change of the memory that counts as none: one part in so many.
const STILL: u64 = 200;
/// How long memory must stand still to be settled, and the longest wait for that.
const SETTLED: Duration = Duration::from_secs(1);
const SETTLING: Duration = Duration::from_secs(5);
/// How long a proxy may take to give memory back once all connections have closed: allocators do it by and by,
/// and timers that make them may be ten seconds apart.
const RETURNING: Duration = Duration::from_secs(15);
/// The share of the growth with which the wait for more is over.
const RETURNED: f64 = 0.95;

/// A name and a value, as they are printed.
pub(crate) type Figures = Vec<(String, f64)>;

/// What all loads of a run have in common.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) proxy: SocketAddr,
    pub(crate) listener: &'a OwnedFd,
    pub(crate) tree: Tree,
    pub(crate) window: Duration,
}

/// Times at one moment.
struct Sample {
    at: Instant,
    proxy: Cpu,
    own: Cpu,
    machine: Machine,
}

impl Bench<'_> {
    fn sample(&self) -> Sample {
        Sample {
            at: Instant::now(),
            proxy: self.tree.cpu(),
            own: process::own_cpu(),
            machine: process::machine(),
        }
    }

    /// The figures of one window under `plan`, their names behind `name`.
    pub(crate) fn window(&self, name: &str, plan: Plan) -> anyhow::Result<Figures> {
        let work = plan.work;
        let mut load = Load::new(self.proxy, self.listener, plan).context("cannot prepare the load")?;
        load.run(WARM_UP.min(self.window), |_| false)?;
        let before = self.sample();
        let units = load.units;
        load.record();
        load.run(self.window, |_| false)?;
        let after = self.sample();
        let units = load.units - units;
        let errors = load.errors + load.waiting_since(before.at) as u64;
        let mut latencies = std::mem::take(&mut load.latencies);
        let left = load.close()?;

        let mut figures = shares(&before, &after);
        figures.push(("errors".to_owned(), count(errors)));
        figures.push(("left_open".to_owned(), count(left as u64)));
        if units > 0 {
            // Nanoseconds a unit become microseconds a connection or exchange, milliseconds a GB (10^9 bytes).
            let scale = if matches!(work, Work::Stream { .. }) { 1e3 } else { 1e-3 };
            let each = |nanoseconds: u64| count(nanoseconds) / count(units) * scale;
            figures.push(("cpu".to_owned(), each(after.proxy.running.saturating_sub(before.proxy.running))));
            figures.push(("generator_cpu".to_owned(), each(after.own.running - before.own.running)));
            figures.push(("per_second".to_owned(), count(units) / (after.at - before.at).as_secs_f64()));
        }
        latencies.sort_unstable();
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            figures.extend(percentile(&latencies, share).map(|value| (name.to_owned(), count(value) / 1e3)));
        }
        Ok(figures.into_iter().map(|(figure, value)| (format!("{name}.{figure}"), value)).collect())
    }

    /// The memory that `clients` connections without traffic take, and what of it is given back.
    pub(crate) fn idle(&self, plan: Plan) -> anyhow::Result<Figures> {
        let clients = plan.clients;
        let mut nothing = Load::new(self.proxy, self.listener, Plan { clients: 0, ..plan.clone() })?;
        let before = self.settled(&mut nothing)?;
        drop(nothing);
        let mut load = Load::new(self.proxy, self.listener, plan).context("cannot prepare the load")?;
        load.run(OPENING, |load| load.held() == clients || load.errors > clients as u64)?;
        load.stop_opening();
        let held = load.held() as u64;
        let during = self.settled(&mut load)?;
        let errors = load.errors + held.saturating_sub(load.held() as u64);
        let left = load.close()?;
        let mut figures = vec![
            ("idle.held".to_owned(), count(held)),
            ("idle.errors".to_owned(), count(errors)),
            ("idle.left_open".to_owned(), count(left as u64)),
        ];
        let grown = during.saturating_sub(before);
        if held > 0 && grown > 0 {
            figures.push(("idle.bytes".to_owned(), count(grown) / count(held)));
            let returned = || count(during.saturating_sub(self.tree.memory())) / count(grown);
            let deadline = Instant::now() + RETURNING;
            while returned() < RETURNED && Instant::now() < deadline {
                load.run(LOOK, |_| false)?;
            }
            figures.push(("idle.returned".to_owned(), returned() * 100.0));
        }
        Ok(figures)
    }

    /// The proxy's memory once it stands still, while the load goes on.
    fn settled(&self, load: &mut Load<'_>) -> anyhow::Result<u64> {
        let deadline = Instant::now() + SETTLING;
        let (mut memory, mut since) = (self.tree.memory(), Instant::now());
        while since.elapsed() < SETTLED && Instant::now() < deadline {
            load.run(LOOK, |_| false)?;
            let now = self.tree.memory();
            if now.abs_diff(memory) > memory / STILL {
                (memory, since) = (now, Instant::now());
            }
        }
        Ok(self.tree.memory())
    }
}

/// Who had the cores in a window, in percent of one.
fn shares(before: &Sample, after: &Sample) -> Figures {
    let wall = (after.at - before.at).as_secs_f64() * 1e9;
    let proxy = after.proxy.running.saturating_sub(before.proxy.running);
    let own = after.own.running.saturating_sub(before.own.running);
    let busy = after.machine.busy.saturating_sub(before.machine.busy);
    // Ready to run and kept waiting is as busy as running: there was no room for more.
    let pressed = |before: Cpu, after: Cpu| {
        (after.running + after.waiting).saturating_sub(before.running + before.waiting)
    };
    [
        ("proxy_busy", pressed(before.proxy, after.proxy)),
        ("generator_busy", pressed(before.own, after.own)),
        ("others", busy.saturating_sub(proxy + own)),
        ("stolen", after.machine.stolen.saturating_sub(before.machine.stolen)),
    ]
    .map(|(name, nanoseconds)| (name.to_owned(), count(nanoseconds) / wall * 100.0))
    .into()
}

#[expect(clippy::cast_precision_loss, reason = "2^53 nanoseconds are a hundred days")]
fn count(value: u64) -> f64 {
    value as f64
}
