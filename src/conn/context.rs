//! What the connections of a worker share.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::balance::{Inbox, Live, Load, Workers};
use super::cancel::Sessions;
use super::hello_bytes::HelloBytes;
use super::metrics::ListenerMetrics;
use super::registry::Registry as Connections;
use super::terminate::Handshakes;
use crate::guard::Guard;
use crate::http::{self, disk::Disk};
use crate::net::{InstanceId, Reactor, Scratch, Timers};
use crate::snapshot::Snapshot;
use crate::telemetry::{AccessLog, Registry};
use crate::tls::acme::Challenges;
use crate::tls::{Buffers, Crew};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// This process, as headers of the PROXY protocol call it.
    pub instance: InstanceId,
    /// The current generation of the configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// The limits.
    pub guard: ArcSwap<Guard>,
    /// Where finished connections are told of.
    pub access_log: ArcSwap<AccessLog>,
    /// Cancelled when no more connections shall be accepted.
    pub draining: CancellationToken,
    /// Cancelled when a worker fails: a proxy that does not serve must not look as if it did.
    pub failed: CancellationToken,
    /// Set when the time to drain is over: what is open then ends for that reason.
    pub drained: AtomicBool,
    /// Set before draining begins when a successor has the listening sockets, and with them their queues.
    pub replaced: AtomicBool,
    /// The workers.
    pub workers: Workers,
    /// The memory that unfinished hellos take.
    pub hello_bytes: HelloBytes,
    /// The handshakes that are under way.
    pub handshakes: Handshakes,
    /// What authorities of certificates are answered.
    pub challenges: Arc<Challenges>,
    /// Who works on those that would hold up other connections.
    pub crew: Crew,
    /// Who reads files that answer requests.
    pub disk: Disk,
    /// With which servers of PostgreSQL clients have sessions.
    pub sessions: Arc<Sessions>,
    /// How many pipes there are.
    pub pipes: Arc<AtomicUsize>,
}

/// What the connections of one worker share, on its thread.
#[derive(Debug)]
pub struct Context {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// What they wait on.
    pub reactor: Rc<Reactor>,
    /// Their deadlines, which the reactor keeps going.
    pub timers: Rc<Timers>,
    pub(super) scratch: Rc<Scratch>,
    /// Where records of TLS are made and taken apart.
    pub(super) tls: Rc<Buffers>,
    /// The same for connections of HTTP, and their connections to backends.
    pub(super) http: Rc<http::Thread>,
    /// Those that are open.
    pub(super) connections: Connections,
    worker: u16,
    load: Arc<Load>,
    /// A turn of the event loop, and how many handshakes were worked on in it.
    shaken: Cell<(u64, u32)>,
    /// Whose turn it is to be looked at as one who might take a connection.
    turn: Cell<usize>,
    next_id: Cell<u64>,
    rejections_told: Cell<(u64, u32)>,
    trouble_told: Cell<Option<Instant>>,
}

/// What the connections of a listener share.
#[derive(Debug)]
pub struct ListenerContext {
    /// Its name.
    pub name: Arc<str>,
    pub(super) metrics: ListenerMetrics,
}

/// A bound address: each worker has a socket of it.
#[derive(Debug)]
pub struct Address {
    listener: ArcSwap<ListenerContext>,
    pub(super) closing: CancellationToken,
}

/// A shortage of this machine is logged at most this often by a worker.
pub(super) const TROUBLE_INTERVAL: Duration = Duration::from_secs(10);
/// Rejected connections told of in the access log, a second and a worker; the rest are only counted, since
/// a flood must not cost a line each.
const REJECTIONS_TOLD: u32 = 100;

/// Handshakes that are worked on in one turn of the event loop, a quarter of a millisecond each; more would be felt by
/// the connections that wait for theirs.
const HANDSHAKES_A_TURN: u32 = 4;

impl Context {
    /// The context of the `worker`th of the workers, whose `inbox` this is, and which may have up to `pipes`
    /// pipes.
    pub fn new(shared: Arc<Shared>, reactor: Rc<Reactor>, worker: u16, inbox: &Inbox, pipes: usize) -> Self {
        let (timers, tls) = (Rc::new(Timers::new()), Buffers::new());
        let scratch = Rc::new(Scratch::new(pipes).counted_in(Arc::clone(&shared.pipes)));
        // Several proxies in a row are told apart by it.
        let pseudonym = format!("portcullis-{}", shared.instance).into();
        Self {
            http: http::Thread::new(&reactor, &timers, &tls, &scratch, &shared.disk, pseudonym),
            tls,
            scratch,
            shared,
            reactor,
            timers,
            connections: Connections::default(),
            worker,
            load: Arc::clone(inbox.load()),
            shaken: Cell::default(),
            turn: Cell::new(0),
            // Ids are unique in the process: the worker in the upper 16 bits.
            next_id: Cell::new(u64::from(worker) << 48),
            rejections_told: Cell::default(),
            trouble_told: Cell::default(),
        }
    }

    /// Waits until no connection of this worker is open.
    pub async fn all_gone(&self) {
        self.load.all_gone().await;
    }

    /// The worker that is to serve the next connection, when that is not this one.
    pub(super) fn less_loaded(&self) -> Option<&Arc<Load>> {
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        self.shared.workers.less_loaded_than(self.worker.into(), turn)
    }

    /// Whether there is time to work on a handshake in this turn of the event loop; if so it is counted.
    pub(super) fn may_shake_hands(&self) -> bool {
        let turn = self.reactor.turns();
        let (last, count) = self.shaken.get();
        let count = if last == turn { count } else { 0 };
        self.shaken.set((turn, count.saturating_add(1)));
        count < HANDSHAKES_A_TURN
    }

    /// Counts a connection of this worker.
    pub(super) fn begin(&self) -> Live {
        self.load.begin()
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    /// Whether trouble of this machine is told of now: every connection may meet it.
    pub(super) fn tells_trouble(&self) -> bool {
        let tells = self.trouble_told.get().is_none_or(|last| last.elapsed() >= TROUBLE_INTERVAL);
        if tells {
            self.trouble_told.set(Some(Instant::now()));
        }
        tells
    }

    /// Whether a rejection at `second` is told of in the log.
    pub(super) fn tells_rejection(&self, second: u64) -> bool {
        let (last, told) = self.rejections_told.get();
        let told = if last == second { told } else { 0 };
        self.rejections_told.set((second, told.saturating_add(1)));
        told < REJECTIONS_TOLD
    }
}

impl ListenerContext {
    /// The listener of this name.
    pub fn new(name: &Arc<str>, registry: &Registry) -> Arc<Self> {
        let metrics = ListenerMetrics::new(name, registry);
        Arc::new(Self { name: Arc::clone(name), metrics })
    }
}

impl Address {
    /// An address of `listener`, on which connections are accepted until draining begins or it is closed.
    pub fn new(listener: Arc<ListenerContext>, draining: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { listener: ArcSwap::new(listener), closing: draining.child_token() })
    }

    /// Whose it is now.
    pub fn listener(&self) -> Arc<ListenerContext> {
        self.listener.load_full()
    }

    /// Connections that are accepted from now on are those of `listener`.
    pub fn belongs_to(&self, listener: Arc<ListenerContext>) {
        self.listener.store(listener);
    }

    /// No more connections are accepted than those that wait to be.
    pub fn close(&self) {
        self.closing.cancel();
    }
}
