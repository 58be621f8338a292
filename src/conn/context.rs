//! What the connections of a worker share.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, Histogram};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::peek::PeekError;
use super::record::Action;
use crate::guard::{Guard, Rejection};
use crate::net::Scratch;
use crate::snapshot::Snapshot;
use crate::telemetry::{AccessLog, Family, Registry};

const CONNECTIONS: Family = Family {
    name: "portcullis_connections_total",
    help: "Connections that ended, by what became of them; none: they ended before that was decided.",
    labels: &["listener", "action"],
};
const ACTIVE: Family =
    Family { name: "portcullis_connections_active", help: "Connections open now.", labels: &["listener"] };
const REJECTED: Family = Family {
    name: "portcullis_connections_rejected_total",
    help: "Connections refused at accept by a limit on their address.",
    labels: &["listener", "reason"],
};
const ACCEPT_ERRORS: Family = Family {
    name: "portcullis_accept_errors_total",
    help: "Failed calls to accept a connection; shortage: descriptors or memory ran out.",
    labels: &["listener", "kind"],
};
const HELLO_TIME: Family = Family {
    name: "portcullis_clienthello_duration_seconds",
    help: "Time from accept until the first bytes told what the connection is.",
    labels: &["listener"],
};
const HELLO_ERRORS: Family = Family {
    name: "portcullis_clienthello_errors_total",
    help: "Connections whose first bytes told nothing usable.",
    labels: &["listener", "reason"],
};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The current generation of the configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// The limits.
    pub guard: Arc<Guard>,
    /// Where finished connections are told of.
    pub access_log: AccessLog,
    /// Cancelled when no more connections shall be accepted.
    pub draining: CancellationToken,
}

/// What the connections of one worker share, on its thread.
#[derive(Debug)]
pub struct Context {
    /// What all workers share.
    pub shared: Arc<Shared>,
    pub(super) scratch: Scratch,
    live: Cell<usize>,
    all_gone: Notify,
    next_id: Cell<u64>,
    rejections_told: Cell<(u64, u32)>,
}

/// One listener as a worker sees it.
#[derive(Debug)]
pub struct ListenerContext {
    /// Its place in the configuration.
    pub index: usize,
    /// Its name.
    pub name: Arc<str>,
    pub(super) metrics: ListenerMetrics,
}

/// The metrics of a listener.
#[derive(Debug)]
pub(super) struct ListenerMetrics {
    pub(super) active: Gauge,
    actions: [Counter; Action::ALL.len()],
    rejected: [Counter; Rejection::ALL.len()],
    pub(super) accept_shortage: Counter,
    pub(super) accept_other: Counter,
    hello_time: Histogram,
    hello_errors: [Counter; PeekError::REASONS.len()],
}

/// Counts a connection as live until dropped.
#[derive(Debug)]
pub(super) struct Live(Rc<Context>);

/// Rejected connections told of in the access log, a second and a worker; the rest are only counted, since
/// a flood must not cost a line each.
const REJECTIONS_TOLD: u32 = 100;

impl Context {
    /// The context of the `worker`th worker.
    pub fn new(shared: Arc<Shared>, worker: u16) -> Self {
        Self {
            shared,
            scratch: Scratch::default(),
            live: Cell::new(0),
            all_gone: Notify::new(),
            // Ids are unique in the process: the worker in the upper 16 bits.
            next_id: Cell::new(u64::from(worker) << 48),
            rejections_told: Cell::default(),
        }
    }

    /// Waits until no connection of this worker is open.
    pub async fn all_gone(&self) {
        while self.live.get() > 0 {
            self.all_gone.notified().await;
        }
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    pub(super) fn live(self: &Rc<Self>) -> Live {
        self.live.set(self.live.get() + 1);
        Live(Rc::clone(self))
    }

    /// Whether a rejection at `second` is told of in the log.
    pub(super) fn tells_rejection(&self, second: u64) -> bool {
        let (last, told) = self.rejections_told.get();
        let told = if last == second { told } else { 0 };
        self.rejections_told.set((second, told.saturating_add(1)));
        told < REJECTIONS_TOLD
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get() - 1);
        if self.0.live.get() == 0 {
            self.0.all_gone.notify_one();
        }
    }
}

impl ListenerContext {
    /// The `index`th listener of the configuration.
    pub fn new(index: usize, name: &Arc<str>, registry: &Registry) -> Self {
        let counter = |family: &Family, value: &str| registry.counter(family, &[name, value]);
        let metrics = ListenerMetrics {
            active: registry.gauge(&ACTIVE, &[name]),
            actions: Action::ALL.map(|action| counter(&CONNECTIONS, action.as_str())),
            rejected: Rejection::ALL.map(|rejection| counter(&REJECTED, rejection.as_str())),
            accept_shortage: counter(&ACCEPT_ERRORS, "shortage"),
            accept_other: counter(&ACCEPT_ERRORS, "other"),
            hello_time: registry.histogram(&HELLO_TIME, &[name]),
            hello_errors: PeekError::REASONS.map(|reason| counter(&HELLO_ERRORS, reason)),
        };
        Self { index, name: Arc::clone(name), metrics }
    }
}

impl ListenerMetrics {
    pub(super) fn ended(&self, action: Action) {
        let counters = Action::ALL.iter().zip(&self.actions);
        counters.filter(|(which, _)| **which == action).for_each(|(_, counter)| counter.increment(1));
    }

    pub(super) fn rejected(&self, rejection: Rejection) {
        let counters = Rejection::ALL.iter().zip(&self.rejected);
        counters.filter(|(which, _)| **which == rejection).for_each(|(_, counter)| counter.increment(1));
    }

    pub(super) fn hello_read(&self, took: Duration) {
        self.hello_time.record(took);
    }

    pub(super) fn hello_failed(&self, error: &PeekError) {
        let counters = PeekError::REASONS.iter().zip(&self.hello_errors);
        counters.filter(|(reason, _)| **reason == error.reason()).for_each(|(_, counter)| counter.increment(1));
    }
}
