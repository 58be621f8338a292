//! One generation of the configuration at work: immutable, shared by all workers, pinned by connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::config::{ActionConfig, Config, Timeouts};
use crate::guard::Acl;
use crate::net::{IdleLimits, OwnListeners, ProxyVersion};
use crate::route::{RouteId, RouteTable};
use crate::telemetry::{Family, Registry};
use crate::upstream::{Pools, Resolver, Upstream};

const RECEIVED: Family = Family {
    name: "portcullis_received_bytes_total",
    help: "Bytes received from clients, their hellos included.",
    labels: &["route"],
};
const SENT: Family =
    Family { name: "portcullis_sent_bytes_total", help: "Bytes sent to clients.", labels: &["route"] };
const SPLICED: Family = Family {
    name: "portcullis_spliced_bytes_total",
    help: "Bytes passed in either direction without being copied.",
    labels: &["route"],
};
const DURATION: Family = Family {
    name: "portcullis_connection_duration_seconds",
    help: "Time from accept to the end of a connection.",
    labels: &["route"],
};
/// The route label of connections that no route took.
const NO_ROUTE: &str = "none";

/// What a connection needs of one generation of the configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// The routes.
    pub table: RouteTable,
    /// The groups of backends.
    pub pools: Pools,
    /// Deadlines of the stages before a route is known.
    pub timeouts: Timeouts,
    /// The largest hello accepted, in bytes on the wire.
    pub max_hello: usize,
    /// Whether the fingerprints of clients are computed: for a route, or for the access log.
    pub wants_ja4: bool,
    /// Whether the access log tells them.
    pub tells_ja4: bool,
    live: Vec<LiveRoute>,
    unrouted: Arc<Traffic>,
    /// By listener, of those on which silence means something.
    silent_after: HashMap<Arc<str>, Duration>,
    /// By listener, the proxies that it trusts.
    trusted: HashMap<Arc<str>, Acl>,
}

/// What belongs to a route beside what its configuration says.
#[derive(Debug)]
pub struct LiveRoute {
    /// Its counters.
    pub traffic: Arc<Traffic>,
    /// Its backends; `None` for a route that refuses.
    pub backends: Option<Backends>,
}

/// The backends of a passthrough route.
#[derive(Debug)]
pub struct Backends {
    /// The endpoints.
    pub upstream: Upstream,
    /// The PROXY header that they are sent first.
    pub proxy_protocol: Option<ProxyVersion>,
    /// How long a relay to them may be idle.
    pub idle: IdleLimits,
}

/// The counters of a route.
#[derive(Debug)]
pub struct Traffic {
    /// Bytes from clients.
    pub received: Counter,
    /// Bytes to clients.
    pub sent: Counter,
    /// Bytes in either direction that were spliced.
    pub spliced: Counter,
    /// How long connections lasted, in seconds.
    pub duration: Histogram,
}

impl Snapshot {
    /// The snapshot of `config`, with what the pools of another one know; backends by name are asked of `resolver`,
    /// which is not started here, nor are the pools. `own` is what backends may not be.
    pub fn new(
        config: &Config,
        before: Option<&Pools>,
        resolver: &mut Resolver,
        own: &Arc<OwnListeners>,
        registry: &Arc<Registry>,
    ) -> Self {
        let pools = Pools::new(config, before, resolver, own, registry);
        let live = config.routes.iter().map(|route| {
            let backends = match &route.action {
                ActionConfig::Passthrough(passthrough) => {
                    pools.find(&passthrough.upstream.name).map(|pool| Backends {
                        upstream: Upstream::new(pool, passthrough, resolver),
                        proxy_protocol: passthrough.proxy_protocol,
                        idle: IdleLimits {
                            open: passthrough.idle_timeout,
                            half_closed: passthrough.half_closed_timeout,
                        },
                    })
                }
                ActionConfig::Reject(_) => None,
            };
            LiveRoute { traffic: Arc::new(Traffic::new(&route.name, registry)), backends }
        });
        let table = RouteTable::new(config);
        let silent = config.listeners.iter().filter(|listener| table.wants_silence(&listener.name));
        let silent_after =
            silent.map(|listener| (Arc::clone(&listener.name), listener.silent_after)).collect();
        let behind = config.listeners.iter().filter(|listener| !listener.proxy_protocol.is_empty());
        let trusted =
            behind.map(|listener| (Arc::clone(&listener.name), Acl::new(&listener.proxy_protocol, &[])));
        Self {
            live: live.collect(),
            pools,
            trusted: trusted.collect(),
            wants_ja4: config.access_log.ja4 || table.wants_ja4(),
            tells_ja4: config.access_log.ja4,
            table,
            timeouts: config.timeouts,
            max_hello: config.max_hello_size,
            unrouted: Arc::new(Traffic::new(NO_ROUTE, registry)),
            silent_after,
        }
    }

    /// What belongs to a route of [`Self::table`].
    pub fn live(&self, id: RouteId) -> Option<&LiveRoute> {
        self.live.get(id.index())
    }

    /// The counters for connections without a route.
    pub fn unrouted(&self) -> &Arc<Traffic> {
        &self.unrouted
    }

    /// How long a client of the listener may stay silent until that counts as a protocol of its own; `None`
    /// when no route cares.
    pub fn silent_after(&self, listener: &str) -> Option<Duration> {
        self.silent_after.get(listener).copied()
    }

    /// Whether connections of `peer` to the listener begin with a PROXY header, which is believed.
    pub fn trusts(&self, listener: &str, peer: IpAddr) -> bool {
        self.trusted.get(listener).is_some_and(|networks| networks.allows(peer))
    }
}

impl Traffic {
    fn new(route: &str, registry: &Registry) -> Self {
        Self {
            received: registry.counter(&RECEIVED, &[route]),
            sent: registry.counter(&SENT, &[route]),
            spliced: registry.counter(&SPLICED, &[route]),
            duration: registry.histogram(&DURATION, &[route]),
        }
    }
}
