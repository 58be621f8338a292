//! The composition root: binds, builds what is shared, starts the workers and the control runtime, and ends
//! them again.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::Admin;
use crate::config::{AdminAddr, Config, ListenerConfig};
use crate::conn::{Shared, Workers};
use crate::drain::{self, Hangup, Readiness};
use crate::guard::Guard;
use crate::net::{self, ListenAddr};
use crate::route::{Mismatch, RouteTable, check_assertion};
use crate::snapshot::Snapshot;
use crate::telemetry::{AccessLog, Family, Registry};
use crate::upstream::{ResolveError, Resolver};
use crate::worker::{Worker, WorkerConfig, WorkerSocket};

mod budget;

use budget::{Budget, raise_descriptor_limit};

/// How often histograms are folded and gauges of bounded tables are set.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often files of networks are looked at.
const LISTS: Duration = Duration::from_secs(2);

const BUILD: Family =
    Family { name: "portcullis_build_info", help: "The version that runs; always 1.", labels: &["version"] };
const WORKER: Family = Family {
    name: "portcullis_worker_connections",
    help: "Connections that a worker has open; new ones go to another once it has clearly more.",
    labels: &["worker"],
};
const CAP: Family =
    Family { name: "portcullis_connections_limit", help: "The cap on connections in all.", labels: &[] };

/// Why the server did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address that cannot be bound.
    #[error("cannot listen on {address} (listener `{listener}`)")]
    Bind {
        /// The address.
        address: String,
        /// The listener's name.
        listener: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The admin address cannot be bound.
    #[error("cannot listen on the admin address {0}")]
    Admin(String, #[source] io::Error),
    /// The access log cannot be opened.
    #[error("cannot open the access log {0}")]
    AccessLog(String, #[source] io::Error),
    /// Names of backends cannot be resolved at all.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Threads or runtimes cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A worker failed while it served; the others were drained.
    #[error("a worker failed")]
    Worker,
    /// Assertions of the configuration fail.
    #[error("{} of the configuration's tests failed", .0.len())]
    Assertions(Vec<Mismatch>),
    /// Metrics cannot be set up.
    #[error("cannot set up metrics")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// A server whose sockets are bound and which serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    sockets: Vec<Vec<WorkerSocket>>,
    addresses: Vec<(Arc<str>, SocketAddr)>,
    admin: Option<Admin>,
}

/// Entry points.
#[derive(Debug)]
pub struct Server;

impl StartError {
    /// Whether it may go away by itself: an address that another program has.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Bind { source, .. } | Self::Admin(_, source) => source.kind() == io::ErrorKind::AddrInUse,
            Self::AccessLog(..)
            | Self::Resolve(_)
            | Self::Thread(_)
            | Self::Worker
            | Self::Assertions(_)
            | Self::Metrics(_) => false,
        }
    }
}

impl Server {
    /// Runs the assertions of `config` and binds its addresses, one socket a worker for each.
    ///
    /// # Errors
    /// The assertions that fail, or the first address that cannot be bound.
    pub fn bind(config: Config, workers: Option<NonZeroUsize>) -> Result<Bound, StartError> {
        run_assertions(&config)?;
        raise_descriptor_limit();
        let workers = workers
            .or_else(|| config.workers.and_then(NonZeroUsize::new))
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        let mut sockets: Vec<Vec<WorkerSocket>> = (0..workers.get()).map(|_| Vec::new()).collect();
        probe(&config)?;
        let mut addresses = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            for address in &listener.bind {
                let bound = bind_group(*address, workers.get())
                    .map_err(|error| not_bound(listener, address, error))?;
                addresses.push((Arc::clone(&listener.name), bound.address));
                for (worker, socket) in sockets.iter_mut().zip(bound.sockets) {
                    worker.push(WorkerSocket { socket, listener: index, name: Arc::clone(&listener.name) });
                }
            }
        }
        let admin = config.admin.as_ref().map(|admin| {
            Admin::bind(admin).map_err(|source| StartError::Admin(admin_name(&admin.bind), source))
        });
        Ok(Bound { sockets, addresses, admin: admin.transpose()?, config })
    }
}

/// The sockets of one address.
struct Group {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
}

/// Finds out whether another program has one of the addresses: SO_REUSEPORT would let it share them. All
/// before the first is bound, so that an address and a wildcard over it do not find each other.
fn probe(config: &Config) -> Result<(), StartError> {
    for listener in &config.listeners {
        for address in &listener.bind {
            net::probe(*address).map_err(|error| not_bound(listener, address, error))?;
        }
    }
    Ok(())
}

fn not_bound(listener: &ListenerConfig, address: &ListenAddr, source: io::Error) -> StartError {
    StartError::Bind { address: address.to_string(), listener: listener.name.to_string(), source }
}

fn bind_group(address: ListenAddr, workers: usize) -> io::Result<Group> {
    let first = net::bind(address)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(net::bind(address.with_port(bound.port()))?);
    }
    Ok(Group { address: bound, sockets })
}

fn admin_name(bind: &AdminAddr) -> String {
    match bind {
        AdminAddr::Tcp(addr) => addr.to_string(),
        AdminAddr::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Runs every `[[test]]` of `config`.
///
/// # Errors
/// All that fail.
pub fn run_assertions(config: &Config) -> Result<(), StartError> {
    let table = RouteTable::new(config);
    let first = config.listeners.first().map_or("", |listener| &*listener.name);
    let failed: Vec<_> =
        config.tests.iter().filter_map(|case| check_assertion(case, &table, first).err()).collect();
    if failed.is_empty() { Ok(()) } else { Err(StartError::Assertions(failed)) }
}

impl Bound {
    /// The bound addresses with the names of their listeners.
    pub fn addresses(&self) -> &[(Arc<str>, SocketAddr)] {
        &self.addresses
    }

    /// Serves until told to stop by a signal, then drains.
    ///
    /// # Errors
    /// What keeps it from starting. Once it serves, nothing ends it but a signal or a defect in a worker.
    pub fn run(mut self, hangup: Hangup) -> Result<(), StartError> {
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let registry = Arc::new(Registry::new()?);
        registry.gauge(&BUILD, &[env!("CARGO_PKG_VERSION")]).set(1.0);
        let access_log = AccessLog::open(&self.config.access_log, &registry)
            .map_err(|source| StartError::AccessLog(self.config.access_log.to.to_string(), source))?;
        let mut resolver = Resolver::new(&self.config.dns, &registry);
        let snapshot = Snapshot::new(&self.config, &mut resolver, &registry);
        resolver.start(control.handle())?;
        let budget = Budget::new(&self.config.limits, self.sockets.len(), self.addresses.len());
        let (workers, inboxes) = Workers::new(self.sockets.len());
        let sockets = (0u16..).zip(std::mem::take(&mut self.sockets)).zip(inboxes);
        let config = |((id, sockets), inbox)| WorkerConfig { id, sockets, inbox, pipes: budget.pipes };
        let configs = sockets.map(config).collect();
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            guard: Arc::new(Guard::new(&self.config.limits, budget.connections, &registry)),
            access_log,
            draining: CancellationToken::new(),
            failed: CancellationToken::new(),
            drained: AtomicBool::new(false),
            workers,
        });
        let result = self.serve(&control, &shared, &registry, &resolver, configs, hangup);
        drop(resolver);
        control.shutdown_timeout(Duration::from_millis(100));
        shared.access_log.flush();
        result
    }

    fn serve(
        self,
        control: &Runtime,
        shared: &Arc<Shared>,
        registry: &Arc<Registry>,
        resolver: &Resolver,
        configs: Vec<WorkerConfig>,
        hangup: Hangup,
    ) -> Result<(), StartError> {
        let readiness = Arc::new(Readiness::default());
        // Asked for before anybody is served, so that the first client finds its backend; a nameserver that
        // is down holds this up no longer than one query.
        let patience = self.config.dns.timeout;
        let _ = control.block_on(async { tokio::time::timeout(patience, resolver.first_answers()).await });
        control.spawn(upkeep(Arc::clone(registry), Arc::clone(shared)));
        control.spawn(watch_lists(Arc::clone(shared)));
        let mut signals =
            control.block_on(async { drain::Signals::listen(hangup) }).map_err(StartError::Thread)?;
        if let Some(admin) = self.admin {
            let address = admin.address();
            let server = admin.serve(Arc::clone(registry), Arc::clone(&readiness));
            control.spawn(server);
            info!(%address, "admin listening");
        }
        let force = CancellationToken::new();
        let mut workers = Vec::with_capacity(configs.len());
        for config in configs {
            let worker = Worker::spawn(config, Arc::clone(shared), Arc::clone(registry), force.clone());
            workers.push(worker.map_err(StartError::Thread)?);
        }
        for (listener, address) in &self.addresses {
            info!(%listener, %address, "listening");
        }
        readiness.set_ready();
        info!(workers = workers.len(), connections = shared.guard.cap(), "ready");
        control.block_on(drain::until_stopped(&mut signals, &readiness, shared, self.config.timeouts.drain));
        force_after_workers(control, workers, shared, &force, &mut signals, self.config.timeouts.drain);
        info!("stopped");
        if shared.failed.is_cancelled() { Err(StartError::Worker) } else { Ok(()) }
    }
}

/// Waits for the workers to end by themselves until the deadline or a second signal, and then forces them.
fn force_after_workers(
    control: &Runtime,
    workers: Vec<Worker>,
    shared: &Shared,
    force: &CancellationToken,
    signals: &mut drain::Signals,
    deadline: Duration,
) {
    let joined = CancellationToken::new();
    let all = joined.clone();
    // Not waited for: a worker that is stuck must not keep the process from ending.
    std::thread::spawn(move || {
        workers.into_iter().for_each(Worker::join);
        all.cancel();
    });
    control.block_on(drain::force_when_due(signals, &joined, shared, force, deadline));
}

/// Reads the files of networks again when they change.
async fn watch_lists(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(LISTS);
    loop {
        interval.tick().await;
        let guard = Arc::clone(&shared.guard);
        // A disk may be slow, and this runtime has one thread.
        let _ = tokio::task::spawn_blocking(move || guard.refresh_lists()).await;
    }
}

async fn upkeep(registry: Arc<Registry>, shared: Arc<Shared>) {
    #[allow(clippy::cast_precision_loss, reason = "a count of connections is far below 2^52")]
    registry.gauge(&CAP, &[]).set(shared.guard.cap() as f64);
    let loads = (0..shared.workers.live().count()).map(|id| registry.gauge(&WORKER, &[&id.to_string()]));
    let loads = loads.collect::<Vec<_>>();
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        registry.upkeep();
        shared.guard.upkeep(Instant::now());
        for (load, live) in loads.iter().zip(shared.workers.live()) {
            #[allow(clippy::cast_precision_loss, reason = "a count of connections is far below 2^52")]
            load.set(live as f64);
        }
    }
}
