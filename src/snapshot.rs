//! One generation of the configuration at work: immutable, shared by all workers, pinned by connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::config::{ActionConfig, Config, ListenerConfig, RejectWith, RouteKey, Timeouts};
use crate::guard::Acl;
use crate::http::Site;
use crate::net::{IdleLimits, OwnListeners, ProxyVersion};
use crate::peek::Protocol;
use crate::prelude::{Greeting, Prelude};
use crate::route::{RouteId, RouteTable};
use crate::telemetry::{Family, Registry};
use crate::tls::{Acceptor, Acceptors};
use crate::upstream::{Pools, Resolver, Upstream};

mod handshakes;

pub use handshakes::Handshakes;

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
    /// By route, what becomes of requests.
    sites: HashMap<Arc<str>, Arc<Site>>,
    unrouted: Arc<Traffic>,
    /// By listener, what its clients may begin with.
    beginnings: HashMap<Arc<str>, Beginnings>,
    /// The same of one that this generation does not have.
    unlisted: Beginnings,
    /// By listener, the proxies that it trusts.
    trusted: HashMap<Arc<str>, Acl>,
}

/// What clients of a listener may begin with.
#[derive(Debug, Default)]
pub struct Beginnings {
    /// How long a client may stay silent until that counts as a protocol of its own; `None` when no route cares.
    pub silent_after: Option<Duration>,
    /// How long a client may pause until what it has sent is all that it is known by.
    pub pause: Option<Duration>,
    /// The protocol whose servers speak first that is spoken here, by clients that say nothing for so long.
    pub server_first: Option<(Protocol, Duration)>,
    /// Protocols within which TLS may begin.
    within: Vec<Protocol>,
    /// Whether routes look at what clients of PostgreSQL ask for in clear.
    startups: bool,
    greeting: Greeting,
}

/// What belongs to a route beside what its configuration says.
#[derive(Debug)]
pub struct LiveRoute {
    /// Its counters.
    pub traffic: Arc<Traffic>,
    /// Its backends; `None` for a route that refuses.
    pub backends: Option<Backends>,
    /// How TLS ends here, where it does.
    pub acceptor: Option<Arc<Acceptor>>,
}

/// The backends of a passthrough route.
#[derive(Debug)]
pub struct Backends {
    /// The endpoints.
    pub upstream: Upstream,
    /// The route's name.
    pub route: Arc<str>,
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
    /// Handshakes of TLS.
    pub handshakes: Handshakes,
}

impl Snapshot {
    /// The snapshot of `config`, with what the pools of another one know; backends by name are asked of `resolver`,
    /// which is not started here, nor are the pools. `own` is what backends may not be, `acceptors` how TLS is ended.
    pub fn new(
        config: &Config,
        before: Option<&Pools>,
        resolver: &mut Resolver,
        (own, acceptors): (&Arc<OwnListeners>, &Acceptors),
        registry: &Arc<Registry>,
    ) -> Self {
        let pools = Pools::new(config, before, resolver, own, registry);
        let live = config.routes.iter().map(|route| {
            let backends = route.action.stream_to().and_then(|to| {
                let pool = pools.find(&to.upstream.name)?;
                Some(Backends {
                    upstream: Upstream::new(pool, (&route.name, to), resolver, registry),
                    route: Arc::clone(&route.name),
                    proxy_protocol: to.proxy_protocol,
                    idle: IdleLimits { open: to.idle_timeout, half_closed: to.half_closed_timeout },
                })
            });
            let traffic = Arc::new(Traffic::new(&route.name, registry));
            LiveRoute { traffic, backends, acceptor: acceptors.find(&route.name).cloned() }
        });
        let live = live.collect();
        let sites = config.routes.iter().filter_map(|route| {
            let ActionConfig::Http(http) = &route.action else { return None };
            let site = Site::new(&route.name, http, &pools, resolver, registry);
            Some((Arc::clone(&route.name), Arc::new(site)))
        });
        let sites = sites.collect();
        let table = RouteTable::new(config);
        let beginnings = |listener: &ListenerConfig| {
            (Arc::clone(&listener.name), Beginnings::new(listener, config, &table))
        };
        let beginnings = config.listeners.iter().map(beginnings).collect();
        let behind = config.listeners.iter().filter(|listener| !listener.proxy_protocol.is_empty());
        let trusted =
            behind.map(|listener| (Arc::clone(&listener.name), Acl::new(&listener.proxy_protocol, &[])));
        Self {
            live,
            sites,
            pools,
            trusted: trusted.collect(),
            wants_ja4: config.access_log.ja4 || table.wants_ja4(),
            tells_ja4: config.access_log.ja4,
            table,
            timeouts: config.timeouts,
            max_hello: config.max_hello_size,
            unrouted: Arc::new(Traffic::new(&NO_ROUTE.into(), registry)),
            beginnings,
            unlisted: Beginnings::default(),
        }
    }

    /// What belongs to a route of [`Self::table`].
    pub fn live(&self, id: RouteId) -> Option<&LiveRoute> {
        self.live.get(id.index())
    }

    /// What becomes of the requests of a route.
    pub fn site(&self, route: &str) -> Option<&Arc<Site>> {
        self.sites.get(route)
    }

    /// The counters for connections without a route.
    pub fn unrouted(&self) -> &Arc<Traffic> {
        &self.unrouted
    }

    /// What clients of the listener may begin with.
    pub fn beginnings(&self, listener: &str) -> &Beginnings {
        self.beginnings.get(listener).unwrap_or(&self.unlisted)
    }

    /// Whether connections of `peer` to the listener begin with a PROXY header, which is believed.
    pub fn trusts(&self, listener: &str, peer: IpAddr) -> bool {
        self.trusted.get(listener).is_some_and(|networks| networks.allows(peer))
    }
}

/// Whether clients of PostgreSQL without TLS say first what they want: for routes that look at it, or to be told there that no
/// route is for them. In place of the answer to their request for TLS they would not understand it.
fn looks_at_startups(listener: &ListenerConfig, config: &Config) -> bool {
    let mut routes = config.routes.iter();
    let mut takes = config.routes.iter().filter(|route| route.conditions.listens_on(&listener.name));
    let taken = takes.any(|route| {
        route
            .keys
            .iter()
            .any(|key| matches!(key, RouteKey::Protocol(Protocol::Postgres) | RouteKey::Anything))
    });
    let told = config.policies.unknown_protocol == RejectWith::Answer;
    routes.any(|route| route.wants_startup(&listener.name)) || (told && !taken)
}

impl Beginnings {
    fn new(listener: &ListenerConfig, config: &Config, table: &RouteTable) -> Self {
        let led = |protocol: &Protocol| {
            config.routes.iter().any(|route| route.begins_tls_within(*protocol, &listener.name))
        };
        Self {
            silent_after: match listener.server_first {
                Some((_, after)) => Some(after),
                None => table.wants_silence(&listener.name).then_some(listener.silent_after),
            },
            pause: Some(listener.silent_after),
            server_first: listener.server_first,
            within: Protocol::ALL.into_iter().filter(led).collect(),
            startups: looks_at_startups(listener, config),
            greeting: listener.greeting.clone(),
        }
    }

    /// Whether TLS may begin within the protocol.
    pub fn leads_to_tls(&self, protocol: Protocol) -> bool {
        self.within.contains(&protocol)
    }

    /// What is spoken with a client of this protocol until it begins TLS, or says what it wants in clear; `None` when it is passed
    /// on as it is.
    pub fn prelude(&self, protocol: Protocol) -> Option<Prelude> {
        if self.leads_to_tls(protocol) {
            return Prelude::new(protocol, &self.greeting);
        }
        (self.startups && protocol == Protocol::Postgres).then(Prelude::of_postgres_in_clear)
    }
}

impl Traffic {
    fn new(route: &Arc<str>, registry: &Arc<Registry>) -> Self {
        let handshakes = Handshakes::new(route, registry);
        Self {
            handshakes,
            received: registry.counter(&RECEIVED, &[route]),
            sent: registry.counter(&SENT, &[route]),
            spliced: registry.counter(&SPLICED, &[route]),
            duration: registry.histogram(&DURATION, &[route]),
        }
    }
}
