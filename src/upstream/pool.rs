//! A pool: the endpoints of a group of backends, and who of them may be chosen.
//!
//! What is known of endpoints is brought together on the control runtime, by one task a pool ([`Pool::keep`]): what
//! the configuration lists, the addresses that names have, health, what an operator did. It makes new [`Members`] of
//! it whenever something has changed; the data plane reads those, and tells what came of its connections.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use metrics::{Counter, Histogram};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::ConnectError;
use super::balance::{Algorithm, Sticky, effective, ramp};
use super::endpoint::{Attempt, Endpoint, Target};
use super::forward::Forward;
use super::members::{Listed, Members, Rank, Wanted};
use super::operator::{Operator, Standing, Stated};
use super::queue::Queue;
use super::resolve::{Found, OnDemand, Resolver, Watched};
use super::retries::Retries;
use crate::config::{BackendConfig, BackendTls, Balance, OnDown, UpstreamConfig};
use crate::net::{OwnListeners, UpstreamAddr};
use crate::telemetry::{Family, Registry};
use crate::tls::Connector;

const CONNECT_TIME: Family = Family {
    name: "portcullis_upstream_connect_duration_seconds",
    help: "Time from the choice of a backend to a connection, failed attempts included.",
    labels: &["upstream"],
};

const RETRIES: Family = Family {
    name: "portcullis_upstream_retries_total",
    help: "Attempts to connect beyond the first one of a connection.",
    labels: &["upstream"],
};
const EXHAUSTED: Family = Family {
    name: "portcullis_upstream_retries_exhausted_total",
    help: "Connections that might have tried another backend, had there not been too many retries.",
    labels: &["upstream"],
};
const QUEUE_LENGTH: Family = Family {
    name: "portcullis_upstream_queue_length",
    help: "Connections that wait for a backend with room.",
    labels: &["upstream"],
};
const QUEUE_REJECTIONS: Family = Family {
    name: "portcullis_upstream_queue_rejections_total",
    help: "Connections that found no backend with room, nor room to wait, or waited too long.",
    labels: &["upstream", "reason"],
};

/// Effective weights are made anew so often while an endpoint starts slowly.
const RAMP_STEPS: u32 = 20;
/// But no more often than this.
const RAMP_STEP_MIN: Duration = Duration::from_millis(250);
/// How often it is asked again whether a host has an address.
const OWN_LOOK: Duration = Duration::from_secs(5);

/// A group of backends in one generation of the configuration.
#[derive(Debug)]
pub struct Pool {
    config: Arc<UpstreamConfig>,
    zone: Option<Arc<str>>,
    own: Arc<OwnListeners>,
    /// How TLS is spoken with its endpoints, where it is.
    connector: Option<Arc<Connector>>,
    /// What outlives generations.
    state: Arc<PoolState>,
    /// Those of the backends that are names.
    names: Mutex<HashMap<UpstreamAddr, Arc<Watched>>>,
    members: ArcSwap<Members>,
    pub(super) connect_time: Histogram,
}

/// What is known of a pool whatever the generation.
#[derive(Debug)]
pub(super) struct PoolState {
    pub(super) name: Arc<str>,
    endpoints: Mutex<HashMap<Key, Arc<Endpoint>>>,
    /// What the newest generation says of the backends, and an operator. Locked after `endpoints` where both are.
    operator: Mutex<Operator>,
    /// Those of the newest generation.
    newest: ArcSwap<Members>,
    /// Told when there is something new to bring together.
    pub(super) changed: Notify,
    /// Connections that wait for room.
    pub(super) queue: Queue<Wanted, Attempt>,
    /// Attempts beyond the first.
    pub(super) retries: Retries,
    /// Which endpoint each client was given, once that matters.
    sticky: OnceLock<Sticky>,
    metrics: Metrics,
    pub(super) registry: Arc<Registry>,
}

#[derive(Debug)]
struct Metrics {
    retries: Counter,
    exhausted: Counter,
    full: Counter,
    late: Counter,
}

/// What an endpoint is known by: the backend as it is written, and its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) name: Arc<str>,
    pub(super) target: Target,
}

/// An address of a backend, with what is said of it.
struct Aim {
    backend: Stated,
    target: Target,
    found: Option<Found>,
}

impl Pool {
    /// The pool of `config`, with what `before` knows of it. Names are taken from `resolver`.
    pub(super) fn new(
        config: &Arc<UpstreamConfig>,
        zone: Option<&Arc<str>>,
        before: Option<&Pool>,
        resolver: &mut Resolver,
        own: &Arc<OwnListeners>,
        registry: &Arc<Registry>,
    ) -> Self {
        let state = match before {
            Some(before) => Arc::clone(&before.state),
            None => Arc::new(PoolState::new(config, registry)),
        };
        if let Some((_, length)) = config.sticky {
            state.sticky.get_or_init(|| Sticky::new(length)).set_length(length);
        }
        let added = state.operator().backends().into_iter().filter(|stated| stated.added);
        let added = added.map(|stated| stated.config.address);
        let mut names = HashMap::new();
        for address in config.addresses().cloned().chain(added) {
            if let Some(name) = watched(&address, resolver) {
                names.insert(address, name);
            }
        }
        Self {
            config: Arc::clone(config),
            zone: zone.cloned(),
            own: Arc::clone(own),
            connector: config.tls.as_ref().map(|tls| connector(tls, before)),
            state,
            names: Mutex::new(names),
            members: ArcSwap::from_pointee(Members::none()),
            connect_time: registry.histogram(&CONNECT_TIME, &[&config.name]),
        }
    }

    /// How servers are found that clients name, when this pool stands for those.
    pub(super) fn forward(&self, names: OnDemand, internal: Vec<IpNet>) -> Forward {
        Forward::new(names, internal, Arc::clone(&self.own))
    }

    /// How TLS is spoken with its endpoints, where it is.
    pub(super) fn connector(&self) -> Option<&Arc<Connector>> {
        self.connector.as_ref()
    }

    /// What is written of it.
    pub(super) fn config(&self) -> &Arc<UpstreamConfig> {
        &self.config
    }

    pub(super) fn state(&self) -> &Arc<PoolState> {
        &self.state
    }

    /// Who may be chosen now.
    pub(super) fn members(&self) -> arc_swap::Guard<Arc<Members>> {
        self.members.load()
    }

    /// Brings together what is known, from now on for new connections. Gives when that will change by itself.
    pub(super) fn refresh(&self, now: Instant) -> Option<Instant> {
        let mut endpoints = self.state.endpoints();
        if !self.state.operator().follows(&self.config) {
            // Another generation has taken over; this one's task has not heard of it yet.
            return None;
        }
        self.judge(endpoints.values(), now);
        let first = endpoints.is_empty();
        let mut current = HashMap::new();
        let (mut listed, mut shares) = (Vec::new(), Vec::new());
        let mut due = None;
        let targets = self.targets();
        let (v4, v6) = (hosts_with(&targets, is_ipv4), hosts_with(&targets, is_ipv6));
        for Aim { backend: stated, target, found } in targets {
            let backend = &stated.config;
            let name: Arc<str> = backend.address.to_string().into();
            let mut rank = rank(backend, found.as_ref());
            let dual = v4.contains(&backend.address) && v6.contains(&backend.address);
            rank.second_family = dual && is_ipv4(&target);
            let key = Key { name, target };
            let endpoint = endpoints
                .get(&key)
                .or_else(|| current.get(&key))
                .map_or_else(|| Arc::new(self.state.endpoint(&key, !first, now)), Arc::clone);
            endpoint.set_other_family(dual);
            due = earliest(due, self.look_at(&endpoint, &stated, now));
            let share = share(backend, found.as_ref(), &endpoint);
            endpoint.status().weight = u32::try_from(share.div_ceil(100)).unwrap_or(u32::MAX);
            shares.push(share);
            let near = self.zone.is_some() && backend.zone == self.zone;
            listed.push(Listed { endpoint: Arc::clone(&endpoint), weight: 0, rank, near });
            current.insert(key, endpoint);
        }
        for (one, full) in listed.iter_mut().zip(effective(&shares)) {
            let until = self.weigh(one, full, now);
            due = earliest(due, until);
        }
        *endpoints = current;
        let members = Arc::new(Members::new(listed, self.algorithm(), &self.state.newest.load()));
        self.members.store(Arc::clone(&members));
        self.state.newest.store(members);
        // Not before: of two at the same time the later one knows more.
        drop(endpoints);
        self.state.make_use_of_room();
        due
    }

    /// Brings what is known of an endpoint up to date; gives when to look again.
    fn look_at(&self, endpoint: &Endpoint, stated: &Stated, now: Instant) -> Option<Instant> {
        let due = self.look_whose(endpoint, now);
        endpoint.load.set_limit(stated.config.max_connections.unwrap_or(0));
        // What clients name is no endpoint of its own: whom they name may fail as he likes.
        let is_one = !matches!(endpoint.target, Target::ServerName(_));
        endpoint.strikes.follow(self.config.eject.as_ref().filter(|_| is_one));
        endpoint.status().standing = stated.standing;
        if endpoint.set_available(is_available(endpoint), now) {
            self.changed(endpoint);
        }
        earliest(due, endpoint.status().outlier.until())
    }

    /// An endpoint may be chosen from now on, or no longer.
    fn changed(&self, endpoint: &Endpoint) {
        let mut status = endpoint.status();
        let available = endpoint.is_available();
        // Whatever makes it so (a check, failures, a probe, an operator, a reload) has its own line, which says why.
        tracing::debug!(upstream = %self.config.name, backend = %endpoint.name, address = %endpoint.target, available,
            "a backend changed");
        // Whom an operator takes out is left to those that it serves.
        let is_down = status.healthy == Some(false) || status.outlier.is_out();
        status.closing = !available && is_down && self.config.on_down == OnDown::Close;
    }

    /// Finds out whether the endpoint is this process itself; gives when to look again, where that may change.
    fn look_whose(&self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        let Target::Tcp(addr) = endpoint.target else { return None };
        let is_own = self.own.take(addr);
        if endpoint.set_own(is_own) {
            tracing::warn!(upstream = %self.config.name, backend = %endpoint.name, address = %addr, is_own,
                "whether a backend is this proxy itself has changed");
        }
        // Addresses come to hosts, and go.
        self.own.may_take(addr).then_some(now + OWN_LOOK)
    }

    /// The addresses of all backends, with what DNS says of those that are names, and an operator of all.
    fn targets(&self) -> Vec<Aim> {
        let (operator, names) = (self.state.operator(), self.names());
        let mut all = Vec::new();
        let mut add = |backend: &Stated, target, found| {
            let mut backend = backend.clone();
            if let Target::Tcp(addr) = target
                && backend.standing == Standing::Serves
                && operator.drains(&UpstreamAddr::Ip(addr))
            {
                backend.standing = Standing::Drained;
            }
            all.push(Aim { backend, target, found });
        };
        for backend in operator.backends() {
            match &backend.config.address {
                UpstreamAddr::Ip(addr) => add(&backend, Target::Tcp(*addr), None),
                UpstreamAddr::ServerName(port) => add(&backend, Target::ServerName(*port), None),
                UpstreamAddr::Unix(path) => add(&backend, Target::Unix(path.as_path().into()), None),
                address @ (UpstreamAddr::Name { .. } | UpstreamAddr::Service(_)) => {
                    let written = match address {
                        UpstreamAddr::Name { port, .. } => Some(*port),
                        UpstreamAddr::Ip(_)
                        | UpstreamAddr::Service(_)
                        | UpstreamAddr::ServerName(_)
                        | UpstreamAddr::Unix(_) => None,
                    };
                    let found = names.get(address).map(|watched| watched.found());
                    for found in found.iter().flat_map(|found| found.iter()) {
                        let Some(port) = found.port.or(written) else { continue };
                        let target = Target::Tcp(SocketAddr::new(found.ip, port));
                        add(&backend, target, Some(*found));
                    }
                }
            }
        }
        all
    }

    pub(super) fn names(&self) -> MutexGuard<'_, HashMap<UpstreamAddr, Arc<Watched>>> {
        // Nothing is done under the lock that could fail half-way.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an endpoint its weight of now, which is `full` once it has started; says when it changes by itself.
    fn weigh(&self, one: &mut Listed, full: u32, now: Instant) -> Option<Instant> {
        let status = one.endpoint.status();
        let length = self.config.slow_start;
        let since = now.saturating_duration_since(status.since);
        if full == 0 || !status.newcomer || since >= length {
            one.weight = full;
            return None;
        }
        one.weight = ramp(full, since, length);
        Some(now + (length / RAMP_STEPS).max(RAMP_STEP_MIN))
    }

    fn algorithm(&self) -> Algorithm {
        match self.config.balance {
            Balance::RoundRobin => Algorithm::RoundRobin,
            Balance::LeastConnections => Algorithm::LeastConnections,
            Balance::P2c => Algorithm::P2c,
            Balance::Random => Algorithm::Random,
            Balance::First => Algorithm::First,
            Balance::Hash { load, .. } => Algorithm::Hash { load },
        }
    }

    /// The endpoints that may get connections, down or not, by backend and address; what clients name is none.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let gets = |endpoint: &&Arc<Endpoint>| {
            let named = matches!(endpoint.target, Target::ServerName(_));
            !named && !endpoint.is_own() && endpoint.status().standing == Standing::Serves
        };
        let mut all: Vec<_> = self.state.endpoints().values().filter(gets).cloned().collect();
        all.sort_by_cached_key(|endpoint| (Arc::clone(&endpoint.name), endpoint.target.to_string()));
        all
    }

    /// As an object.
    pub fn to_json(&self, now: Instant) -> Value {
        let operator = self.state.operator().clone();
        let endpoints = self.state.endpoints();
        let backend = |stated: Stated| {
            let backend = stated.config;
            let name = backend.address.to_string();
            let mut of: Vec<_> = endpoints.values().filter(|endpoint| *endpoint.name == *name).collect();
            of.sort_by_key(|endpoint| endpoint.target.to_string());
            let addresses: Vec<_> = of.iter().map(|endpoint| endpoint.target.to_string()).collect();
            let endpoints: Vec<_> = of.iter().map(|endpoint| endpoint.to_json(now)).collect();
            json!({ "backend": name, "weight": backend.weight, "tier": backend.tier, "zone": backend.zone.as_deref(),
                "max_connections": backend.max_connections, "added": stated.added, "changed": stated.by_operator,
                "addresses": addresses, "endpoints": endpoints })
        };
        let backends: Vec<_> = operator.backends().into_iter().map(backend).collect();
        json!({ "upstream": &*self.config.name, "balance": self.config.balance.to_string(),
            "waiting": self.state.queue.len(), "backends": backends,
            "drained_addresses": operator.drained_addresses() })
    }
}

impl PoolState {
    fn new(config: &Arc<UpstreamConfig>, registry: &Arc<Registry>) -> Self {
        Self {
            name: Arc::clone(&config.name),
            endpoints: Mutex::default(),
            operator: Mutex::new(Operator::new(config)),
            newest: ArcSwap::from_pointee(Members::none()),
            changed: Notify::new(),
            queue: Queue::new(registry.gauge(&QUEUE_LENGTH, &[&config.name])),
            retries: Retries::new(Instant::now()),
            sticky: OnceLock::new(),
            metrics: Metrics::new(&config.name, registry),
            registry: Arc::clone(registry),
        }
    }

    pub(super) fn endpoints(&self) -> MutexGuard<'_, HashMap<Key, Arc<Endpoint>>> {
        // Nothing is done under the lock that could fail half-way.
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn operator(&self) -> MutexGuard<'_, Operator> {
        // As above.
        self.operator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whenever the addresses of `name` change, as long as there is one.
    pub(super) fn tell_of(self: Arc<Self>, name: &Watched) -> impl Future<Output = ()> + Send + 'static {
        let mut found = name.subscribe();
        async move {
            while found.changed().await.is_ok() {
                self.changed.notify_one();
            }
        }
    }

    fn endpoint(&self, key: &Key, newcomer: bool, now: Instant) -> Endpoint {
        let endpoint = Endpoint::new(&self.name, &key.name, key.target.clone(), &self.registry);
        let mut status = endpoint.status();
        (status.since, status.newcomer) = (now, newcomer);
        drop(status);
        endpoint
    }

    /// There is something new to bring together.
    pub(super) fn stir(&self) {
        self.changed.notify_one();
    }

    /// Ready when there is something new to bring together.
    pub(super) async fn stirred(&self) {
        self.changed.notified().await;
    }

    /// A connection to `endpoint` has ended.
    pub(super) fn released(self: &Arc<Self>, endpoint: &Endpoint) {
        self.newest.load().changed(endpoint);
        self.make_use_of_room();
    }

    /// There may be room: whoever waits for it is given it.
    pub(super) fn make_use_of_room(self: &Arc<Self>) {
        if !self.queue.has_waiters() {
            return;
        }
        let (members, now) = (self.newest.load(), Instant::now());
        self.queue.serve(|wanted| {
            let endpoint = members.take(wanted, now)?;
            Some(Attempt::new(endpoint, Arc::clone(self)))
        });
    }

    /// Which endpoint each client was given.
    pub(super) fn sticky(&self) -> Option<&Sticky> {
        self.sticky.get()
    }

    /// A connection might try another endpoint, and may or not.
    pub(super) fn count_retry(&self, may: bool) {
        let counter = if may { &self.metrics.retries } else { &self.metrics.exhausted };
        counter.increment(1);
    }

    /// A connection was not let into the queue, or left it in vain.
    pub(super) fn count_rejection(&self, full: bool) {
        let counter = if full { &self.metrics.full } else { &self.metrics.late };
        counter.increment(1);
    }
}

impl Metrics {
    fn new(upstream: &str, registry: &Registry) -> Self {
        let rejections = |why: ConnectError| registry.counter(&QUEUE_REJECTIONS, &[upstream, why.reason()]);
        Self {
            retries: registry.counter(&RETRIES, &[upstream]),
            exhausted: registry.counter(&EXHAUSTED, &[upstream]),
            full: rejections(ConnectError::Full),
            late: rejections(ConnectError::QueueTimeout),
        }
    }
}

/// The share of an endpoint beside others: by the configuration, by its SRV record, by what its agent asks for.
fn share(backend: &BackendConfig, found: Option<&Found>, endpoint: &Endpoint) -> u64 {
    let by_record = found.map_or(1, |found| u64::from(found.weight));
    let by_agent = u64::from(endpoint.status().agent.unwrap_or(100));
    u64::from(backend.weight) * by_record * by_agent
}

/// Whether connections may be made to it, by what is known.
fn is_available(endpoint: &Endpoint) -> bool {
    let status = endpoint.status();
    status.standing == Standing::Serves && status.healthy != Some(false) && !status.outlier.is_out()
}

/// What is known of a backend by name.
pub(super) fn watched(address: &UpstreamAddr, resolver: &mut Resolver) -> Option<Arc<Watched>> {
    match address {
        UpstreamAddr::Name { host, .. } => Some(resolver.host(host)),
        UpstreamAddr::Service(name) => Some(resolver.service(name)),
        UpstreamAddr::Ip(_) | UpstreamAddr::ServerName(_) | UpstreamAddr::Unix(_) => None,
    }
}

fn rank(backend: &BackendConfig, found: Option<&Found>) -> Rank {
    Rank { tier: backend.tier, priority: found.map_or(0, |found| found.priority), ..Rank::default() }
}

/// The hosts that have addresses `of` a family: their IPv4 ones are behind the others (RFC 6724, RFC 8305). Of a service
/// nothing tells which addresses are those of the same host.
/// The one of `before` while the rules are the same: with its sessions, which go on.
fn connector(tls: &BackendTls, before: Option<&Pool>) -> Arc<Connector> {
    let same = before.and_then(Pool::connector).filter(|connector| connector.is_of(tls));
    same.map_or_else(|| Arc::new(Connector::new(tls)), Arc::clone)
}

fn hosts_with(targets: &[Aim], of: fn(&Target) -> bool) -> HashSet<UpstreamAddr> {
    let hosts = targets
        .iter()
        .filter(|aim| matches!(aim.backend.config.address, UpstreamAddr::Name { .. }) && of(&aim.target));
    hosts.map(|aim| aim.backend.config.address.clone()).collect()
}

fn is_ipv4(target: &Target) -> bool {
    matches!(target, Target::Tcp(addr) if addr.is_ipv4())
}

fn is_ipv6(target: &Target) -> bool {
    matches!(target, Target::Tcp(addr) if addr.is_ipv6())
}

/// The earlier of two moments that may come.
fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
