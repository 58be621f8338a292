//! Backends: the addresses of a route, shared in turn, and the connections to them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram};
use serde_json::Value;

use crate::config::PassthroughConfig;
use crate::net::{Moment, Place, Reactor, Socket, Timer, UpstreamAddr, connect};
use crate::telemetry::{Family, Registry};

pub mod balance;
mod resolve;

pub use resolve::{Answers, Failing, Found, LookupError, ResolveError, Resolver, Watched};

const CONNECTS: Family = Family {
    name: "portcullis_upstream_connects_total",
    help: "Connections made to backends.",
    labels: &["route", "backend"],
};
const FAILURES: Family = Family {
    name: "portcullis_upstream_connect_failures_total",
    help: "Attempts to connect to a backend that failed.",
    labels: &["route", "backend", "reason"],
};
const CONNECT_TIME: Family = Family {
    name: "portcullis_upstream_connect_duration_seconds",
    help: "Time from the choice of a backend to a connection, failed attempts included.",
    labels: &["route"],
};

/// Attempts together may take as long as so many: enough for two endpoints that say nothing; endpoints that
/// refuse at once cost no time.
const SILENT_ATTEMPTS: usize = 2;

/// The endpoints of a route.
#[derive(Debug)]
pub struct Upstream {
    endpoints: Vec<Endpoint>,
    next: AtomicUsize,
    connect_timeout: Duration,
    /// Whether they are connected to from the client's own address.
    transparent: bool,
    connect_time: Histogram,
}

/// One address of an upstream.
#[derive(Debug)]
pub struct Endpoint {
    /// The address as it was configured: its name in logs and metrics.
    pub name: Arc<str>,
    target: Target,
    connects: Counter,
    failures: [Counter; ConnectError::REASONS.len()],
}

#[derive(Debug)]
enum Target {
    Ip(SocketAddr),
    /// A name, and its port where that is not in its records.
    Name(Arc<Watched>, Option<u16>),
    Unix(Box<Path>),
}

/// A connection to a backend.
#[derive(Debug)]
pub struct UpstreamConn {
    /// The stream.
    pub stream: Socket,
    /// How much of the first bytes it has taken.
    pub sent: usize,
    /// The name of the endpoint.
    pub endpoint: Arc<str>,
    /// How long it took, failed attempts included.
    pub took: Duration,
}

/// What the attempts to connect of one connection have in common.
struct Attempts<'a, 't> {
    /// What the client has said already.
    first: &'a [u8],
    /// How long one may take.
    limit: Duration,
    /// The address to connect from, when it is not to be this host's own.
    source: Option<IpAddr>,
    /// When all of them end.
    budget: Moment,
    reactor: &'a Rc<Reactor>,
    timer: &'a mut Timer<'t>,
}

/// No endpoint could be connected to.
#[derive(Debug)]
pub struct ConnectFailure {
    /// Why the last attempt failed.
    pub error: ConnectError,
    /// The name of the endpoint that was tried last.
    pub endpoint: Option<Arc<str>>,
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint has an address: names that never resolved.
    #[error("no backend has an address")]
    NoEndpoint,
    /// Nobody answered in time.
    #[error("the backend did not answer in time")]
    Timeout,
    /// The backend or a host on the way said no.
    #[error("the backend refused")]
    Refused(#[source] io::Error),
    /// It is of another family than the client, from whose address it was to be connected to.
    #[error("the backend is of another family than the client")]
    Family,
    /// This machine could not: no descriptors, ports or memory left.
    #[error("no resources to connect")]
    Resource(#[source] io::Error),
}

impl Upstream {
    /// The upstream of `route`. Names are taken from `resolver`, which keeps them fresh.
    pub fn new(
        route: &str,
        config: &PassthroughConfig,
        resolver: &mut Resolver,
        registry: &Registry,
    ) -> Self {
        let endpoint = |addr: &UpstreamAddr| {
            let name = addr.to_string();
            Endpoint {
                target: match addr {
                    UpstreamAddr::Ip(socket) => Target::Ip(*socket),
                    UpstreamAddr::Name { host, port } => Target::Name(resolver.host(host), Some(*port)),
                    UpstreamAddr::Service(name) => Target::Name(resolver.service(name), None),
                    UpstreamAddr::Unix(path) => Target::Unix(path.as_path().into()),
                },
                connects: registry.counter(&CONNECTS, &[route, &name]),
                failures: ConnectError::REASONS.map(|why| registry.counter(&FAILURES, &[route, &name, why])),
                name: name.into(),
            }
        };
        Self {
            endpoints: config.to.iter().map(endpoint).collect(),
            next: AtomicUsize::new(0),
            connect_timeout: config.connect_timeout,
            transparent: config.transparent.is_some(),
            connect_time: registry.histogram(&CONNECT_TIME, &[route]),
        }
    }

    /// Its endpoints as objects: their names, and the addresses that those have now.
    pub fn to_json(&self) -> Vec<Value> {
        let endpoint = |endpoint: &Endpoint| {
            let addresses: Vec<String> = match &endpoint.target {
                Target::Ip(address) => vec![address.to_string()],
                Target::Unix(path) => vec![format!("unix:{}", path.display())],
                Target::Name(name, port) => {
                    let found = name.found();
                    found.iter().filter_map(|found| socket(found, *port)).map(|at| at.to_string()).collect()
                }
            };
            serde_json::json!({ "backend": &*endpoint.name, "addresses": addresses })
        };
        self.endpoints.iter().map(endpoint).collect()
    }

    /// Connects to the next endpoint in turn and sends what it takes at once of `first`; when that fails, to
    /// the one after it, until each was tried once or the time for all attempts is over. Cancel safe.
    ///
    /// # Errors
    /// The failure of the last attempt. No backend has taken anything then.
    pub async fn connect(
        &self,
        first: &[u8],
        client: IpAddr,
        reactor: &Rc<Reactor>,
        timer: &mut Timer<'_>,
    ) -> Result<UpstreamConn, ConnectFailure> {
        let start = Instant::now();
        // Added one by one: each may be rounded up.
        let budget = (0..SILENT_ATTEMPTS).fold(timer.now(), |until, _| until + self.connect_timeout);
        let source = self.transparent.then_some(client);
        let mut attempts = Attempts { first, limit: self.connect_timeout, source, budget, reactor, timer };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.endpoints.len();
        let mut last = ConnectFailure { error: ConnectError::NoEndpoint, endpoint: None };
        for endpoint in self.endpoints.iter().cycle().skip(turn % count.max(1)).take(count) {
            match endpoint.connect(turn / count, &mut attempts).await {
                Ok((stream, sent)) => {
                    let took = start.elapsed();
                    self.connect_time.record(took);
                    return Ok(UpstreamConn { stream, sent, endpoint: Arc::clone(&endpoint.name), took });
                }
                Err(error) => last = ConnectFailure { error, endpoint: Some(Arc::clone(&endpoint.name)) },
            }
            if attempts.are_over() {
                break;
            }
        }
        Err(last)
    }
}

impl Attempts<'_, '_> {
    fn are_over(&self) -> bool {
        self.timer.now() >= self.budget
    }
}

impl Endpoint {
    /// Tries the addresses of the endpoint, beginning with the `turn`th.
    async fn connect(
        &self,
        turn: usize,
        attempts: &mut Attempts<'_, '_>,
    ) -> Result<(Socket, usize), ConnectError> {
        let resolved = match &self.target {
            Target::Name(name, _) => Some(name.found()),
            Target::Ip(_) | Target::Unix(_) => None,
        };
        let count = resolved.as_ref().map_or(1, |addresses| addresses.len());
        let mut last = None;
        for index in in_turn(resolved.as_deref().unwrap_or_default(), turn).take(count) {
            let addresses = resolved.as_deref().unwrap_or_default();
            let Some(place) = self.place(addresses, index) else { break };
            match self.attempt(place, attempts).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = Some(error),
            }
            if attempts.are_over() {
                break;
            }
        }
        Err(last.unwrap_or_else(|| {
            self.count_failure(&ConnectError::NoEndpoint);
            ConnectError::NoEndpoint
        }))
    }

    /// Where an attempt goes: to the `index`th of the `addresses` that its name has, if it is one.
    fn place(&self, addresses: &[Found], index: usize) -> Option<Place<'_>> {
        match &self.target {
            Target::Ip(addr) => Some(Place::Tcp(*addr)),
            Target::Unix(path) => Some(Place::Unix(path)),
            Target::Name(_, port) => Some(Place::Tcp(socket(addresses.get(index)?, *port)?)),
        }
    }

    async fn attempt(
        &self,
        place: Place<'_>,
        attempts: &mut Attempts<'_, '_>,
    ) -> Result<(Socket, usize), ConnectError> {
        let until = attempts.budget.min(attempts.timer.now() + attempts.limit);
        let result = match from_source(place, attempts.source) {
            Ok(place) => {
                let connecting = connect(place, attempts.first, attempts.reactor);
                match attempts.timer.timeout_at(until, connecting).await {
                    Some(Ok(connected)) => Ok(connected),
                    Some(Err(error)) => Err(ConnectError::from_io(error)),
                    None => Err(ConnectError::Timeout),
                }
            }
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => self.connects.increment(1),
            Err(error) => self.count_failure(error),
        }
        result
    }

    fn count_failure(&self, error: &ConnectError) {
        let reason = ConnectError::REASONS.iter().position(|why| *why == error.reason());
        if let Some(counter) = reason.and_then(|index| self.failures.get(index)) {
            counter.increment(1);
        }
    }
}

/// The address of `found`, whose name has `port` unless its records have one.
fn socket(found: &Found, port: Option<u16>) -> Option<SocketAddr> {
    Some(SocketAddr::new(found.ip, found.port.or(port)?))
}

/// The order in which `addresses` are tried: those of the first priority in turn, beginning with the `turn`th, then
/// the others as they come.
fn in_turn(addresses: &[Found], turn: usize) -> impl Iterator<Item = usize> + use<> {
    let first = addresses.first().map(|found| found.priority);
    let equals = addresses.iter().take_while(|found| Some(found.priority) == first).count().max(1);
    (0..equals).map(move |n| (turn % equals + n) % equals).chain(equals..)
}

/// `place` as it is connected to from `source`, if from any.
fn from_source(place: Place<'_>, source: Option<IpAddr>) -> Result<Place<'_>, ConnectError> {
    match (place, source) {
        (place, None) => Ok(place),
        (Place::Tcp(addr), Some(source)) if addr.is_ipv4() == source.is_ipv4() => {
            Ok(Place::Transparent(addr, source))
        }
        (Place::Tcp(_) | Place::Transparent(..) | Place::Unix(_), Some(_)) => Err(ConnectError::Family),
    }
}

impl ConnectError {
    /// The words for the variants in logs and metrics.
    pub const REASONS: [&str; 5] = ["no_endpoint", "timeout", "refused", "family", "resource"];

    /// The word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::Timeout => "timeout",
            Self::Refused(_) => "refused",
            Self::Family => "family",
            Self::Resource(_) => "resource",
        }
    }

    fn from_io(error: io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(&error) {
            Some(Errno::TIMEDOUT) => Self::Timeout,
            Some(
                Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::NOSPC
                | Errno::ADDRNOTAVAIL
                // No port is left for a source that is bound.
                | Errno::ADDRINUSE
                | Errno::AGAIN,
            ) => Self::Resource(error),
            _ => Self::Refused(error),
        }
    }
}
