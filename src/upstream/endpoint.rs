//! An endpoint: one address of a backend, with what is known of it.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge};
use serde_json::{Value, json};

use super::ConnectError;
use super::balance::{Load, name_key};
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
const ACTIVE: Family = Family {
    name: "portcullis_upstream_connections_active",
    help: "Connections that a backend has.",
    labels: &["upstream", "backend"],
};

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
    /// It is passed over until then.
    pub(super) ejected_until: Option<Instant>,
    /// The percentage of its weight that its agent asks for.
    pub(super) agent: Option<u32>,
}

/// A connection to an endpoint, counted until dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    state: Arc<PoolState>,
}

#[derive(Debug)]
struct Metrics {
    connects: Counter,
    active: Gauge,
    failures: [Counter; ConnectError::REASONS.len()],
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
            failures,
        };
        let status = Status {
            since: Instant::now(),
            newcomer: false,
            healthy: None,
            error: None,
            ejected_until: None,
            agent: None,
        };
        Self {
            id: name_key(&format!("{name} {target}")),
            name: Arc::clone(name),
            target,
            load: Arc::new(Load::new()),
            available: AtomicBool::new(true),
            own: AtomicBool::new(false),
            status: Mutex::new(status),
            metrics,
        }
    }

    /// Whether it may be chosen.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
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
        status.since = now;
        status.newcomer = available;
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

    /// A connection to it was made, after so long.
    pub(super) fn connected(&self, took: Duration, now: Instant) {
        self.metrics.connects.increment(1);
        self.load.observed(took, now);
    }

    /// Counts an attempt to connect that failed.
    pub(super) fn count_failure(&self, error: &ConnectError) {
        let reason = ConnectError::REASONS.iter().position(|why| *why == error.reason());
        if let Some(counter) = reason.and_then(|index| self.metrics.failures.get(index)) {
            counter.increment(1);
        }
    }

    /// As an object.
    pub fn to_json(&self, now: Instant) -> Value {
        let status = self.status().clone();
        let state = match (self.is_available(), status.healthy, status.ejected_until) {
            (true, ..) => "up",
            (false, Some(false), _) => "down",
            (false, _, Some(_)) => "ejected",
            (false, _, None) => "drained",
        };
        json!({
            "address": self.target.to_string(),
            "state": state,
            "since_s": now.saturating_duration_since(status.since).as_secs(),
            "connections": self.load.active(),
            "error": status.error.as_deref(),
        })
    }
}

impl Lease {
    /// A connection to `endpoint`, which has counted it.
    pub(super) fn new(endpoint: Arc<Endpoint>, state: Arc<PoolState>) -> Self {
        endpoint.metrics.active.increment(1.0);
        Self { endpoint, state }
    }

    /// Whose it is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.load.release();
        self.endpoint.metrics.active.decrement(1.0);
        self.state.released(&self.endpoint);
    }
}
