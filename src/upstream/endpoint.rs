//! An endpoint: one address of a backend, with what is known of it.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::{Counter, Gauge};
use serde_json::{Value, json};

use super::ConnectError;
use super::balance::{Load, name_key};
use super::operator::Standing;
use super::outlier::{Outlier, Strikes};
use super::pool::PoolState;
use crate::net::Place;
use crate::telemetry::{Family, Registry};

const CONNECTS: Family = Family {
    name: "portcullis_upstream_connects_total",
    help: "Connections made to backends.",
    labels: &["upstream", "backend"],
};
const FAILURES: Family = Family {
    name: "portcullis_upstream_connect_failures_total",
    help: "Attempts to connect to a backend that failed.",
    labels: &["upstream", "backend", "reason"],
};
const EJECTIONS: Family = Family {
    name: "portcullis_upstream_ejections_total",
    help: "Times that a backend was passed over for what its connections came to.",
    labels: &["upstream", "backend"],
};
const ACTIVE: Family = Family {
    name: "portcullis_upstream_connections_active",
    help: "Connections that a backend has.",
    labels: &["upstream", "backend"],
};

/// Attempts at one endpoint that may be under way at once, of all threads: what is more waits, or goes on to another one.
/// When a backend comes back for which a thousand connections wait, no more of them knock at once than half of what waits
/// to be accepted by the commonest servers (511 by nginx, Apache and Redis), so that two proxies may do so.
const UNDER_WAY: u32 = 256;

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// At an address.
    Tcp(SocketAddr),
    /// Wherever the server is that the client names, at this port.
    ServerName(u16),
    /// At a Unix socket.
    Unix(Arc<Path>),
}

/// One address of a backend. Lives on while the configuration, DNS or an operator have it, over reloads.
#[derive(Debug)]
pub struct Endpoint {
    /// The backend as it is written in the configuration: its name in logs and metrics.
    pub name: Arc<str>,
    /// Where it is.
    pub target: Target,
    /// What it is told apart by: the same in every process that has this backend.
    pub id: u64,
    /// Its connections and how fast it connects.
    pub load: Arc<Load>,
    /// Whether it may be chosen; what the data plane looks at.
    available: AtomicBool,
    /// Whether its name has addresses of both families.
    dual: AtomicBool,
    /// Attempts that are under way.
    under_way: AtomicU32,
    /// What its connections came to.
    pub(super) strikes: Strikes,
    /// Whether it is this process itself: then it is not connected to.
    own: AtomicBool,
    status: Mutex<Status>,
    metrics: Metrics,
}

/// What is known of an endpoint, and looked at on the control runtime only.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// Since when it may be chosen, or may not.
    pub(super) since: Instant,
    /// Whether it came, or came back, while others served: then it starts slowly.
    pub(super) newcomer: bool,
    /// What its health checks say; `None` before the first, and without any.
    pub(super) healthy: Option<bool>,
    /// What the last check saw that failed.
    pub(super) error: Option<Arc<str>>,
    /// Whether it is passed over for what its connections came to.
    pub(super) outlier: Outlier,
    /// Whether its connections are to be closed, since it went down.
    pub(super) closing: bool,
    /// The percentage of its weight that its agent asks for.
    pub(super) agent: Option<u32>,
    /// Whether it is to get connections, whatever else is known.
    pub(super) standing: Standing,
    /// Its share once it has started: what is configured or asked for, by its record and its agent.
    pub(super) weight: u32,
}

/// A connection to an endpoint, counted until dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    state: Arc<PoolState>,
}

/// An attempt to connect to an endpoint, counted as a connection and as one that is under way until dropped.
#[derive(Debug)]
pub(super) struct Attempt {
    // Dropped before the lease, which tells of the room.
    under_way: UnderWay,
    lease: Lease,
}

#[derive(Debug)]
struct UnderWay(Arc<Endpoint>);

#[derive(Debug)]
struct Metrics {
    connects: Counter,
    active: Gauge,
    failures: [Counter; ConnectError::REASONS.len()],
    ejections: Counter,
}

impl Target {
    /// Where that is, to be connected to; nowhere before a client names it.
    pub fn place(&self) -> Option<Place<'_>> {
        match self {
            Self::Tcp(addr) => Some(Place::Tcp(*addr)),
            Self::ServerName(_) => None,
            Self::Unix(path) => Some(Place::Unix(path)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::ServerName(port) => write!(f, "sni:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// The endpoint of `upstream` at `target`, which the configuration calls `name`.
    pub(super) fn new(upstream: &str, name: &Arc<str>, target: Target, registry: &Registry) -> Self {
        let labels = [upstream, &**name];
        let failures =
            ConnectError::REASONS.map(|why| registry.counter(&FAILURES, &[upstream, &**name, why]));
        let metrics = Metrics {
            connects: registry.counter(&CONNECTS, &labels),
            active: registry.gauge(&ACTIVE, &labels),
            ejections: registry.counter(&EJECTIONS, &labels),
            failures,
        };
        let status = Status {
            since: Instant::now(),
            newcomer: false,
            healthy: None,
            error: None,
            outlier: Outlier::never(),
            closing: false,
            agent: None,
            standing: Standing::Serves,
            weight: 1,
        };
        Self {
            id: name_key(&format!("{name} {target}")),
            name: Arc::clone(name),
            target,
            load: Arc::new(Load::new()),
            available: AtomicBool::new(true),
            dual: AtomicBool::new(false),
            under_way: AtomicU32::new(0),
            strikes: Strikes::default(),
            own: AtomicBool::new(false),
            status: Mutex::new(status),
            metrics,
        }
    }

    /// Whether it may be chosen.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Whether it may be chosen, and has room.
    pub(super) fn is_usable(&self) -> bool {
        self.is_available()
            && !self.load.is_full()
            && self.under_way.load(Ordering::Relaxed) < self.most_under_way()
    }

    /// Counts a connection, which is to be made, if there is room; whether it did.
    pub(super) fn try_take(&self) -> bool {
        let most = self.most_under_way();
        let more = |attempts: u32| (attempts < most).then_some(attempts + 1);
        if self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let taken = self.load.try_take();
        if !taken {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// Attempts that may be under way at once. Those at servers that clients name are at as many hosts.
    fn most_under_way(&self) -> u32 {
        match self.target {
            Target::Tcp(_) | Target::Unix(_) => UNDER_WAY,
            Target::ServerName(_) => u32::MAX,
        }
    }

    /// Whether its name has addresses of the other family, too.
    pub(super) fn has_other_family(&self) -> bool {
        self.dual.load(Ordering::Relaxed)
    }

    /// Whether its name has addresses of the other family.
    pub(super) fn set_other_family(&self, dual: bool) {
        self.dual.store(dual, Ordering::Relaxed);
    }

    /// Whether it is of the other family than `other` and of its name, and not this process itself.
    pub(super) fn is_other_family_of(&self, other: &Self) -> bool {
        match (&self.target, &other.target) {
            (Target::Tcp(one), Target::Tcp(two)) => {
                one.is_ipv4() != two.is_ipv4() && self.name == other.name && !self.is_own()
            }
            (Target::Tcp(_) | Target::Unix(_) | Target::ServerName(_), _) => false,
        }
    }

    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        // Nothing is done under the lock that could fail half-way.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets it be chosen, or not; says whether that is news.
    pub(super) fn set_available(&self, available: bool, now: Instant) -> bool {
        if self.available.swap(available, Ordering::Relaxed) == available {
            return false;
        }
        let mut status = self.status();
        (status.since, status.newcomer, status.closing) = (now, available, false);
        true
    }

    /// Whether it is one of this process's own listeners.
    pub(super) fn is_own(&self) -> bool {
        self.own.load(Ordering::Relaxed)
    }

    /// Says whether it is; tells whether that is news.
    pub(super) fn set_own(&self, own: bool) -> bool {
        self.own.swap(own, Ordering::Relaxed) != own
    }

    /// Counts an attempt to connect that failed.
    fn count_failure(&self, error: &ConnectError) {
        let reason = ConnectError::REASONS.iter().position(|why| *why == error.reason());
        if let Some(counter) = reason.and_then(|index| self.metrics.failures.get(index)) {
            counter.increment(1);
        }
    }

    /// It was ejected.
    pub(super) fn count_ejection(&self) {
        self.metrics.ejections.increment(1);
    }

    /// As an object.
    pub fn to_json(&self, now: Instant) -> Value {
        let status = self.status().clone();
        let state = match (status.standing, self.is_available(), status.healthy) {
            (Standing::Removed, ..) => "removed",
            (Standing::Drained, ..) => "drained",
            (Standing::Serves, true, _) => "up",
            (Standing::Serves, false, Some(false)) => "down",
            (Standing::Serves, false, _) => "ejected",
        };
        json!({
            "address": self.target.to_string(),
            "state": state,
            "since_s": now.saturating_duration_since(status.since).as_secs(),
            "weight": status.weight,
            "connections": self.load.active(),
            "error": status.error.as_deref(),
        })
    }
}

impl Lease {
    /// A connection to `endpoint`, which has counted it.
    fn new(endpoint: Arc<Endpoint>, state: Arc<PoolState>) -> Self {
        endpoint.metrics.active.increment(1.0);
        Self { endpoint, state }
    }

    /// Whose it is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint has sent its first byte.
    pub fn answered(&self) {
        self.endpoint.strikes.answered();
    }

    /// The endpoint broke the connection off before its first byte.
    pub fn unanswered(&self) {
        self.look_into(self.endpoint.strikes.unanswered());
    }

    /// The endpoint did not answer in time, and another one is tried in its place.
    pub(super) fn left(&self) {
        self.endpoint.count_failure(&ConnectError::Unanswered);
    }

    fn look_into(&self, suspicious: bool) {
        if suspicious {
            self.state.stir();
        }
    }
}

impl Attempt {
    /// An attempt at `endpoint`, which has counted it.
    pub(super) fn new(endpoint: Arc<Endpoint>, state: Arc<PoolState>) -> Self {
        Self { under_way: UnderWay(Arc::clone(&endpoint)), lease: Lease::new(endpoint, state) }
    }

    /// At whom.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.lease.endpoint
    }

    /// The connection was made, with an attempt that began then.
    pub(super) fn succeeded(self, began: Instant) -> Lease {
        let Self { under_way, lease } = self;
        drop(under_way);
        let (now, endpoint) = (Instant::now(), &lease.endpoint);
        let took = now.saturating_duration_since(began);
        endpoint.metrics.connects.increment(1);
        endpoint.load.observed(took, now);
        lease.look_into(endpoint.strikes.connected(took));
        lease.state.make_use_of_room();
        lease
    }

    /// There was a connection already.
    pub(super) fn spared(self) -> Lease {
        let Self { under_way, lease } = self;
        drop(under_way);
        lease.state.make_use_of_room();
        lease
    }

    /// It failed. `fair`: if that was for want of time, it had all that there is for one; if in the handshake, that asked for nothing
    /// of a client's choice. Gives the endpoint.
    pub(super) fn failed(self, error: &ConnectError, fair: bool) -> Arc<Endpoint> {
        let endpoint = &self.lease.endpoint;
        endpoint.count_failure(error);
        let blamed = match error {
            ConnectError::Timeout
            | ConnectError::HandshakeTimeout
            | ConnectError::Certificate(_)
            | ConnectError::Handshake(_) => fair,
            ConnectError::Refused(_) => true,
            // Nothing that the endpoint could do about; or counted elsewhere, once it is connected to.
            ConnectError::NoEndpoint
            | ConnectError::Unanswered
            | ConnectError::Family
            | ConnectError::Loop
            | ConnectError::Blocked(_)
            | ConnectError::Dns(_)
            | ConnectError::Resource(_)
            | ConnectError::RetryBudget
            | ConnectError::Full
            | ConnectError::QueueTimeout
            | ConnectError::Gone => false,
        };
        self.lease.look_into(blamed && endpoint.strikes.failed());
        Arc::clone(endpoint)
    }

    /// Another one that began later was faster by more than that.
    pub(super) fn was_outrun(self) {
        self.lease.look_into(self.lease.endpoint.strikes.failed());
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.load.release();
        self.endpoint.metrics.active.decrement(1.0);
        self.state.released(&self.endpoint);
    }
}
