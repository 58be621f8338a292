//! Backends: pools of endpoints, which of them a connection goes to, and how.
//!
//! A [`Pool`] is a group of backends; an [`Endpoint`] is one address of one of them. `balance` chooses (pure),
//! `members` is who may be chosen, `pool` makes that of what is known, `keeper` does so whenever that changes, `outlier`
//! decides who failed too often, `connect` connects, `resolve` asks for the addresses of names, `operator` is what was
//! asked for at run time (pure) and `operate` does it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{Balance, ClientKey, Config, PassthroughConfig};
use crate::net::{OwnListeners, Socket, UpstreamAddr};
use crate::telemetry::Registry;
use crate::tls::{Connector, Handshake, HandshakeError};

pub mod balance;
mod connect;
mod endpoint;
mod forward;
pub mod health;
mod keeper;
mod members;
mod operate;
mod operator;
mod outlier;
mod pool;
mod queue;
mod resolve;
mod retries;
mod vet;

use connect::Securing;
pub use connect::{Caller, Leased};
pub use endpoint::{Endpoint, Lease, Target};
pub use forward::Forward;
pub use operate::{Changed, Warning};
pub use operator::{Change, OperatorError, Said};
pub use pool::Pool;
pub use resolve::{Answers, Failing, Found, LookupError, OnDemand, ResolveError, Resolver, Watched};
pub use vet::{Why, vet};

/// The pools of one generation of the configuration, by name.
#[derive(Debug, Default)]
pub struct Pools(HashMap<Arc<str>, Arc<Pool>>);

/// What keeps pools up to date, until dropped.
#[derive(Debug)]
pub struct Keepers {
    _tasks: JoinSet<()>,
}

/// A pool as a route uses it.
#[derive(Debug)]
pub struct Upstream {
    pool: Arc<Pool>,
    connect_timeout: Duration,
    /// How long one that is connected to has for its first byte, if that is limited.
    answer_timeout: Option<Duration>,
    /// Whether endpoints are connected to from the client's own address.
    transparent: bool,
    /// Where clients name the server: how it is found.
    forward: Option<Forward>,
    /// How TLS is spoken with endpoints, where it is.
    securing: Option<Securing>,
}

/// A connection to a backend.
#[derive(Debug)]
pub struct UpstreamConn {
    /// The stream.
    pub stream: Socket,
    /// TLS over it, of backends that speak that: the handshake, which is over.
    pub tls: Option<Box<Handshake>>,
    /// How much of the first bytes it has taken.
    pub sent: usize,
    /// The endpoint, which counts it.
    pub lease: Lease,
    /// The address of the server that the client names, where the endpoint stands for all of those.
    pub named: Option<SocketAddr>,
    /// How long it took, failed attempts included.
    pub took: Duration,
}

/// No endpoint could be connected to.
#[derive(Debug)]
pub struct ConnectFailure {
    /// Why the last attempt failed.
    pub error: ConnectError,
    /// The endpoint that was tried last.
    pub endpoint: Option<Arc<Endpoint>>,
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint is available: they are down, or names that never resolved.
    #[error("no backend is available")]
    NoEndpoint,
    /// Nobody answered in time.
    #[error("the backend did not answer in time")]
    Timeout,
    /// It was connected to and said nothing.
    #[error("the backend accepted and did not answer in time")]
    Unanswered,
    /// The backend or a host on the way said no.
    #[error("the backend refused")]
    Refused(#[source] io::Error),
    /// Its certificate is not good.
    #[error("the backend's certificate is not good")]
    Certificate(#[source] HandshakeError),
    /// It was connected to, and TLS could not be agreed on.
    #[error("no TLS with the backend")]
    Handshake(#[source] HandshakeError),
    /// It was connected to, and TLS was not agreed on in time.
    #[error("no TLS with the backend in time")]
    HandshakeTimeout,
    /// It is of another family than the client, from whose address it was to be connected to.
    #[error("the backend is of another family than the client")]
    Family,
    /// It is one of this process's own listeners.
    #[error("the backend is this proxy itself")]
    Loop,
    /// The address of the server that the client names is none that clients may be led to.
    #[error("clients may not be led to the server's address")]
    Blocked(#[source] Why),
    /// Nobody could say in time which address the server has that the client names.
    #[error("the server's name could not be looked up")]
    Dns(#[source] LookupError),
    /// This machine could not: no descriptors, ports or memory left.
    #[error("no resources to connect")]
    Resource(#[source] io::Error),
    /// There are endpoints left, but too many attempts beyond the first were made of late.
    #[error("the backend failed, and too many connections try another one")]
    RetryBudget,
    /// All endpoints have as many connections as they may, and so has the queue.
    #[error("all backends have as many connections as they may")]
    Full,
    /// The same, for as long as a connection may wait.
    #[error("no backend had room in time")]
    QueueTimeout,
    /// The client went away while it waited.
    #[error("the client went away")]
    Gone,
}

impl Pools {
    /// The pools of `config`, with what `before` knows of those it has, too. Names are taken from `resolver`, which
    /// keeps them fresh; nobody may be chosen before [`Pools::refresh`].
    pub fn new(
        config: &Config,
        before: Option<&Self>,
        resolver: &mut Resolver,
        own: &Arc<OwnListeners>,
        registry: &Arc<Registry>,
    ) -> Self {
        let of_routes = config.routes.iter().flat_map(|route| route.action.backends()).map(|to| &to.upstream);
        let mut pools = HashMap::new();
        for upstream in config.upstreams.iter().chain(of_routes) {
            pools.entry(Arc::clone(&upstream.name)).or_insert_with(|| {
                let before = before.and_then(|before| before.0.get(&upstream.name)).map(Arc::as_ref);
                Arc::new(Pool::new(upstream, config.zone.as_ref(), before, resolver, own, registry))
            });
        }
        Self(pools)
    }

    /// The one of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Pool>> {
        self.0.get(name)
    }

    /// The one of this name, for an operator.
    ///
    /// # Errors
    /// That there is none, with those that there are.
    pub fn asked_for(&self, name: &str) -> Result<&Arc<Pool>, OperatorError> {
        self.find(name).ok_or_else(|| {
            let mut there: Vec<_> = self.0.keys().map(ToString::to_string).collect();
            there.sort_unstable();
            OperatorError::UnknownUpstream { name: name.to_owned(), there }
        })
    }

    /// Goes by what the configuration says from now on; what an operator asked of backends of which this now says
    /// something else is forgotten. Gives those, with their pools.
    pub fn take_over(&self) -> Vec<(Arc<str>, UpstreamAddr)> {
        let of = |(name, pool): (&Arc<str>, &Arc<Pool>)| {
            let name = Arc::clone(name);
            pool.take_over().into_iter().map(move |backend| (Arc::clone(&name), backend))
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Brings together what is known of all of them, from now on for new connections.
    pub fn refresh(&self) {
        let now = Instant::now();
        for pool in self.0.values() {
            pool.refresh(now);
        }
    }

    /// Keeps all of them up to date on `runtime`. Endpoints that went down and whose connections are to be closed for that
    /// are handed to `down`.
    pub fn keep(&self, runtime: &Handle, down: &mpsc::Sender<Arc<Endpoint>>) -> Keepers {
        let mut tasks = JoinSet::new();
        let slots = Arc::new(Semaphore::new(health::CONCURRENT));
        for pool in self.0.values() {
            tasks.spawn_on(Arc::clone(pool).keep(down.clone(), Arc::clone(&slots)), runtime);
        }
        Keepers { _tasks: tasks }
    }

    /// All of them as objects, by name.
    pub fn to_json(&self) -> Vec<Value> {
        let now = Instant::now();
        let mut pools: Vec<_> = self.0.iter().collect();
        pools.sort_by_key(|(name, _)| Arc::clone(name));
        pools.into_iter().map(|(_, pool)| pool.to_json(now)).collect()
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NobodyLeft => "no backend is left that takes new connections",
            Self::NoWeight => "its weight is 0, so that it gets no new connections",
        })
    }
}

impl Upstream {
    /// `pool` as the route of this name uses it.
    pub fn new(
        pool: &Arc<Pool>,
        (route, config): (&str, &PassthroughConfig),
        resolver: &mut Resolver,
        registry: &Registry,
    ) -> Self {
        let named = config.upstream.server_name();
        let forward = named.map(|_| pool.forward(resolver.on_demand(), config.internal.clone()));
        Self {
            pool: Arc::clone(pool),
            connect_timeout: config.connect_timeout,
            answer_timeout: config.answer_timeout,
            transparent: config.transparent.is_some(),
            forward,
            securing: Securing::new(pool, route, registry),
        }
    }

    /// Whether connections to it are those of one client.
    pub fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// How TLS is spoken with its endpoints, where it is.
    pub fn connector(&self) -> Option<&Arc<Connector>> {
        self.pool.connector()
    }

    /// Whether TLS is spoken with its endpoints.
    pub fn speaks_tls(&self) -> bool {
        self.securing.is_some()
    }

    /// Whether it matters which server name a client asks for.
    pub fn tells_names_apart(&self) -> bool {
        let config = self.pool.config();
        self.forward.is_some()
            || self.securing.is_some()
            || matches!(config.balance, Balance::Hash { on: ClientKey::Sni, .. })
            || matches!(config.sticky, Some((ClientKey::Sni, _)))
    }
}

impl ConnectError {
    /// The words for what an attempt at an endpoint fails by.
    const REASONS: [&str; 11] = [
        "timeout",
        "unanswered",
        "refused",
        "backend_certificate",
        "backend_handshake",
        "backend_handshake_timeout",
        "family",
        "loop",
        "blocked",
        "dns",
        "resource",
    ];

    /// The word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::Timeout => "timeout",
            Self::Unanswered => "unanswered",
            Self::Refused(_) => "refused",
            Self::Certificate(_) => "backend_certificate",
            Self::Handshake(_) => "backend_handshake",
            Self::HandshakeTimeout => "backend_handshake_timeout",
            Self::Family => "family",
            Self::Loop => "loop",
            Self::Blocked(_) => "blocked",
            Self::Dns(_) => "dns",
            Self::Resource(_) => "resource",
            Self::RetryBudget => "retry_budget",
            Self::Full => "full",
            Self::QueueTimeout => "queue_timeout",
            Self::Gone => "closed",
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
