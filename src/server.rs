//! The composition root: binds, builds what is shared, starts the workers and the control runtime, takes
//! other configurations, and ends it all again.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::{Admin, AdminSocket, State};
use crate::config::{AccessLogConfig, AdminConfig, Config, ConfigErrors, Origin, Watch};
use crate::conn::{Handshakes, HelloBytes, Inbox, Shared, Workers};
use crate::control::{Generation, REQUESTS, Request};
use crate::drain::{self, Hangup, Readiness, Signalled, Signals};
use crate::guard::Guard;
use crate::handover::{Inherited, Program};
use crate::http::disk::Disk;
use crate::net::{self, InstanceId, OwnListeners};
use crate::probe::{self, Scope};
use crate::route::{Mismatch, RouteTable, check_assertion};
use crate::service::{self, Heart};
use crate::snapshot::Snapshot;
use crate::telemetry::{AccessLog, Family, Registry};
use crate::tls::acme::Acme;
use crate::tls::{AcceptorError, Acceptors, Crew};
use crate::upstream::{ResolveError, Resolver};
use crate::worker::{Worker, WorkerConfig, WorkerSocket};

mod budget;
mod listening;
mod reload;

use budget::{Budget, Usage, raise_descriptor_limit, require_descriptors};
use listening::{Group, Listening};
use reload::{First, Live};

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
    /// The limit of open files leaves nothing for connections.
    #[error(
        "the limit of open files is {limit}, and with {workers} workers {needed} are needed: raise it (`ulimit -n`, `LimitNOFILE=`)"
    )]
    Descriptors {
        /// The limit.
        limit: u64,
        /// What is needed for one connection at a time.
        needed: u64,
        /// How many workers there are to be.
        workers: usize,
    },
    /// The admin address cannot be bound.
    #[error("cannot listen on the admin address {0}")]
    Admin(String, #[source] io::Error),
    /// The access log cannot be opened.
    #[error("cannot open the access log {0}")]
    AccessLog(String, #[source] io::Error),
    /// The sockets of a predecessor did not come.
    #[error("cannot take over the sockets of the process before")]
    Inherit(#[source] io::Error),
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// There is nothing to read again.
    #[error("the configuration is not from a file")]
    NoFile,
    /// The user of the configuration cannot be become.
    #[error("cannot become the user that the configuration names")]
    Identity(#[source] io::Error),
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
    /// A route asks for connections from its clients' addresses, and this process may make none.
    #[error("{}:{}: `transparent` needs CAP_NET_ADMIN or CAP_NET_RAW, which this process has not", .origin, .origin.column)]
    Transparent {
        /// Where the route asks for it.
        origin: Origin,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// TLS cannot be ended as a route says.
    #[error(transparent)]
    Tls(#[from] AcceptorError),
    /// Metrics cannot be set up.
    #[error("cannot set up metrics")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// A server whose sockets are bound and which serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    file: Option<PathBuf>,
    workers: usize,
    sockets: Vec<Group>,
    admin: Option<Admin>,
    inherited: Inherited,
    program: Option<Program>,
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
            | Self::Descriptors { .. }
            | Self::Config(_)
            | Self::Inherit(_)
            | Self::NoFile
            | Self::Identity(_)
            | Self::Resolve(_)
            | Self::Thread(_)
            | Self::Worker
            | Self::Assertions(_)
            | Self::Transparent { .. }
            | Self::Tls(_)
            | Self::Metrics(_) => false,
        }
    }
}

impl Server {
    /// Runs the assertions of `config` and binds its addresses, one socket a worker for each. `file` is where
    /// the configuration is read again when that is asked for.
    ///
    /// # Errors
    /// The assertions that fail, the first route that asks for what this process may not do, or the first
    /// address that cannot be bound.
    pub fn bind(
        config: Config,
        file: Option<PathBuf>,
        workers: Option<NonZeroUsize>,
    ) -> Result<Bound, StartError> {
        run_assertions(&config)?;
        probe_transparent(&config)?;
        raise_descriptor_limit();
        let workers = workers
            .or_else(|| config.workers.and_then(NonZeroUsize::new))
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        require_descriptors(workers, config.listeners.iter().map(|listener| listener.bind.len()).sum())?;
        let mut inherited = Inherited::receive().map_err(StartError::Inherit)?;
        let sockets = listening::bind(&config, workers, &mut inherited)?;
        inherited.close_others();
        // All that follows, reopened files included, is done by who the process stays.
        service::take_on(&config.identity).map_err(StartError::Identity)?;
        service::enter(&config);
        let admin = match &config.admin {
            Some(admin) => bind_admin(admin, &mut inherited)?,
            None => None,
        };
        // Found now: when it is asked for, another file may stand there.
        let program = Program::running().ok();
        Ok(Bound { admin, config, file, workers, sockets, inherited, program })
    }
}

/// Binds the admin address; one that nobody wrote down is done without when that fails.
fn bind_admin(config: &AdminConfig, inherited: &mut Inherited) -> Result<Option<Admin>, StartError> {
    match Admin::bind(config, inherited.take_admin(&config.bind)) {
        Ok(admin) => Ok(Some(admin)),
        Err(error) if config.by_default => {
            info!(bind = %config.bind, %error, "no admin socket");
            Ok(None)
        }
        Err(source) => Err(StartError::Admin(config.bind.to_string(), source)),
    }
}

/// Runs every `[[test]]` of `config`.
///
/// # Errors
/// All that fail.
pub fn run_assertions(config: &Config) -> Result<(), StartError> {
    let table = RouteTable::new(config);
    let first = config.listeners.first().map_or("", |listener| &*listener.name);
    let check = |case| check_assertion(case, &table, first, config.max_hello_size).err();
    let failed: Vec<_> = config.tests.iter().filter_map(check).collect();
    if failed.is_empty() { Ok(()) } else { Err(StartError::Assertions(failed)) }
}

fn open_access_log(config: &AccessLogConfig, registry: &Registry) -> Result<AccessLog, StartError> {
    AccessLog::open(config, registry).map_err(|source| StartError::AccessLog(config.to.to_string(), source))
}

/// Tries whether this process may do what `transparent` asks for, when a route does.
///
/// # Errors
/// [`StartError::Transparent`] with the place of the first that does.
pub fn probe_transparent(config: &Config) -> Result<(), StartError> {
    let mut all = config.routes.iter().flat_map(|route| route.action.backends());
    let asked = all.find_map(|to| to.transparent.as_ref());
    let Some(origin) = asked else { return Ok(()) };
    net::probe_transparent().map_err(|source| StartError::Transparent { origin: origin.clone(), source })
}

/// Reads the certificates of `config` as a start would.
///
/// # Errors
/// [`StartError::Tls`].
pub fn probe_certificates(config: &Config) -> Result<(), StartError> {
    Acceptors::new(config, None, &Arc::new(Registry::new()?))?;
    Ok(())
}

impl Bound {
    /// The bound addresses with the names of their listeners.
    pub fn addresses(&self) -> impl Iterator<Item = (&Arc<str>, SocketAddr)> {
        self.sockets.iter().map(|group| (&group.listener, group.bound))
    }

    /// Serves until told to stop by a signal, then drains.
    ///
    /// # Errors
    /// What keeps it from starting. Once it serves, nothing ends it but a signal or a defect in a worker.
    pub fn run(self, hangup: Hangup) -> Result<(), StartError> {
        let control = control_runtime().map_err(StartError::Thread)?;
        // Before all that takes its time: until then most of them end the process.
        let signals = control.block_on(async { Signals::listen(hangup) }).map_err(StartError::Thread)?;
        let registry = Arc::new(Registry::new()?);
        registry.gauge(&BUILD, &[env!("CARGO_PKG_VERSION")]).set(1.0);
        let Self { config, file, workers, sockets, admin, inherited, program } = self;
        let access_log = open_access_log(&config.access_log, &registry)?;
        let mut resolver = Resolver::new(&config.dns, &registry);
        let own = Arc::new(OwnListeners::default());
        let acceptors = Acceptors::new(&config, None, &registry)?;
        let snapshot = Snapshot::new(&config, None, &mut resolver, (&own, &acceptors), &registry);
        resolver.start(control.handle())?;
        let budget = Budget::new(&config, workers, sockets.len());
        budget.publish(&registry);
        let (loads, inboxes) = Workers::new(workers);
        let (pulses, hearts) = service::pulses(workers);
        control.spawn(service::watch(pulses));
        let guard = Guard::new(&config.limits, budget.connections, &registry);
        let shared = Arc::new(shared(snapshot, guard, access_log, loads, &budget));
        let (senders, configs) = worker_configs(inboxes.into_iter().zip(hearts), budget.pipes);
        let listening = Listening::new(senders, shared.draining.clone(), Arc::clone(&registry), own);
        let acme = Acme::start(Arc::clone(&shared.challenges), Arc::clone(&registry), control.handle());
        let first = First {
            acme,
            file,
            config,
            resolver,
            acceptors,
            listening,
            admin: admin.as_ref().and_then(|admin| admin.for_successor().ok()),
            workers,
            shared: Arc::clone(&shared),
            registry,
            runtime: control.handle().clone(),
        };
        let result =
            serve(Live::new(first), Start { sockets, configs, admin, inherited, program, signals }, &control);
        control.shutdown_timeout(Duration::from_millis(100));
        shared.access_log.load().flush();
        result
    }
}

/// What the workers are to share.
fn shared(
    snapshot: Snapshot,
    guard: Guard,
    access_log: AccessLog,
    workers: Workers,
    budget: &Budget,
) -> Shared {
    Shared {
        instance: InstanceId::random(),
        snapshot: ArcSwap::from_pointee(snapshot),
        guard: ArcSwap::from_pointee(guard),
        access_log: ArcSwap::from_pointee(access_log),
        draining: CancellationToken::new(),
        failed: CancellationToken::new(),
        drained: AtomicBool::new(false),
        replaced: AtomicBool::new(false),
        workers,
        hello_bytes: HelloBytes::new(budget.hello_bytes),
        handshakes: Handshakes::new(budget.handshakes),
        challenges: Arc::default(),
        crew: Crew::new(budget.workers),
        disk: Disk::new(budget.workers),
        sessions: Arc::default(),
        pipes: Arc::new(AtomicUsize::new(0)),
    }
}

/// Of one thread: DNS, the admin server, signals and upkeep.
fn control_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()
}

/// What each worker is given, and where it finds its sockets.
fn worker_configs(
    each: impl Iterator<Item = (Inbox, Heart)>,
    pipes: usize,
) -> (Vec<UnboundedSender<WorkerSocket>>, Vec<WorkerConfig>) {
    let config = |(id, (inbox, heart))| {
        let (sender, sockets) = unbounded_channel();
        (sender, WorkerConfig { id, sockets, inbox, heart, pipes })
    };
    (0u16..).zip(each).map(config).unzip()
}

/// What a server begins with.
struct Start {
    sockets: Vec<Group>,
    configs: Vec<WorkerConfig>,
    admin: Option<Admin>,
    inherited: Inherited,
    program: Option<Program>,
    signals: Signals,
}

fn serve(mut live: Live, start: Start, control: &Runtime) -> Result<(), StartError> {
    let Start { sockets, configs, admin, mut inherited, program, mut signals } = start;
    let readiness = Arc::new(Readiness::default());
    let (shared, registry) = (Arc::clone(&live.shared), Arc::clone(live.registry()));
    // Asked for before anybody is served, so that the first client finds its backend; a nameserver that
    // is down holds this up no longer than one query.
    if let Some(signal) = control.block_on(live.first_answers_or_stop(&mut signals)) {
        info!(signal, "stopped before it served");
        return Ok(());
    }
    let (requests, mut asked) = channel(REQUESTS);
    spawn_upkeep(control, &live, &requests);
    let admin = admin.map(|admin| {
        let address = admin.address();
        let server = admin.serve(State {
            registry,
            readiness: Arc::clone(&readiness),
            serving: Arc::clone(live.serving()),
            shared: Arc::clone(&shared),
            requests,
        });
        info!(%address, "admin listening");
        control.spawn(server)
    });
    let force = CancellationToken::new();
    let workers = spawn_workers(configs, &shared, &force)?;
    let serving = live.serving().load_full();
    // The first client finds its backend; which of them is this process itself is known once it listens.
    shared.snapshot.load().pools.refresh();
    live.listening.change(&serving.config, sockets);
    live.keep_pools();
    // Whoever looks whether a name is ours finds somebody who listens.
    live.acme.apply(serving.config.acme.as_ref());
    readiness.set_ready();
    info!(workers = workers.len(), connections = shared.guard.load().cap(), "ready");
    service::ready(workers.len());
    // A predecessor that has gone meanwhile needs no word.
    let _ = inherited.tell_ready();
    drop(inherited);
    live.admin.iter().for_each(AdminSocket::take_over);
    let why = control.block_on(until_stopped(&mut live, &mut signals, &mut asked, program.as_ref()));
    // Whoever still asks is told so.
    drop(asked);
    if why == REPLACED {
        shared.replaced.store(true, Ordering::Release);
        // From here on the new process answers on this address, too.
        live.admin.iter().for_each(AdminSocket::hand_over);
        admin.iter().for_each(JoinHandle::abort);
    } else {
        service::stopping(shared.guard.load().open());
    }
    live.acme.stop();
    live.listening.close();
    let deadline = live.serving().load().config.timeouts.drain;
    drain::begin(why, &readiness, &shared, deadline);
    force_after_workers(control, workers, &shared, &force, &mut signals, deadline);
    info!("stopped");
    if shared.failed.is_cancelled() { Err(StartError::Worker) } else { Ok(()) }
}

/// Starts what is done every few seconds.
fn spawn_upkeep(control: &Runtime, live: &Live, requests: &Sender<Request>) {
    control.spawn(upkeep(Arc::clone(live.registry()), Arc::clone(&live.shared)));
    control.spawn(watch_lists(Arc::clone(&live.shared)));
    let (serving, shared) = (Arc::clone(live.serving()), Arc::clone(&live.shared));
    let current = move || {
        let generation = serving.load();
        let scope = |interval| (interval, Scope::new(&generation.config, &shared.snapshot.load().pools));
        generation.config.probe.map(scope)
    };
    control.spawn(probe::Watch::new(Arc::clone(live.registry())).run(Arc::clone(&live.changed), current));
    if let Some(file) = live.file() {
        control.spawn(watch_files(file.to_owned(), Arc::clone(live.serving()), requests.clone()));
    }
}

fn spawn_workers(
    configs: Vec<WorkerConfig>,
    shared: &Arc<Shared>,
    force: &CancellationToken,
) -> Result<Vec<Worker>, StartError> {
    let spawn = |config| Worker::spawn(config, Arc::clone(shared), force.clone());
    configs.into_iter().map(spawn).collect::<io::Result<_>>().map_err(StartError::Thread)
}

/// Why a process stops whose successor serves.
const REPLACED: &str = "a new process serves";

/// Does what signals and the admin server ask for, until that is to stop, or a worker fails; says why.
async fn until_stopped(
    live: &mut Live,
    signals: &mut Signals,
    asked: &mut Receiver<Request>,
    program: Option<&Program>,
) -> &'static str {
    let shared = Arc::clone(&live.shared);
    loop {
        let reply = tokio::select! {
            signal = signals.next() => match signal {
                Signalled::Stop(name) => return name,
                Signalled::Reload => None,
                Signalled::Reopen => tokio::select! {
                    () = live.reopen_logs() => continue,
                    name = signals.stop() => return name,
                },
                Signalled::Upgrade => tokio::select! {
                    serves = live.hand_over(program) => match serves {
                        true => return REPLACED,
                        false => continue,
                    },
                    name = signals.stop() => return name,
                },
            },
            Some(request) = asked.recv() => match request {
                Request::Reload(reply) => Some(reply),
                Request::Operate { upstream, change, by, reply } => {
                    // Whoever asked may have gone.
                    let _ = reply.send(live.operate(&upstream, &change, &by));
                    continue;
                }
                Request::Drain => return "the admin server",
            },
            () = shared.failed.cancelled() => return "a worker failed",
        };
        // A reload that is given up changes nothing.
        let outcome = tokio::select! {
            outcome = live.reload() => outcome,
            name = signals.stop() => return name,
        };
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(outcome);
        }
    }
}

/// Waits for the workers to end by themselves until the deadline or a second signal, and then forces them.
fn force_after_workers(
    control: &Runtime,
    workers: Vec<Worker>,
    shared: &Shared,
    force: &CancellationToken,
    signals: &mut Signals,
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
        let guard = shared.guard.load_full();
        // A disk may be slow, and this runtime has one thread.
        let _ = tokio::task::spawn_blocking(move || guard.refresh_lists()).await;
    }
}

/// Asks for a reload when the files of the configuration change, if it says so.
async fn watch_files(file: PathBuf, serving: Arc<ArcSwap<Generation>>, requests: Sender<Request>) {
    let mut watch = Watch::new(&file);
    let mut interval = tokio::time::interval(LISTS);
    loop {
        interval.tick().await;
        if !serving.load().config.reload_on_change {
            continue;
        }
        // A disk may be slow, and this runtime has one thread.
        let look = tokio::task::spawn_blocking(move || (watch.changed(), watch)).await;
        let Ok((changed, back)) = look else { return };
        watch = back;
        // The log tells what came of it.
        if changed && requests.send(Request::Reload(oneshot::channel().0)).await.is_err() {
            return;
        }
    }
}

async fn upkeep(registry: Arc<Registry>, shared: Arc<Shared>) {
    let usage = Usage::new(&registry);
    let loads = (0..shared.workers.live().count()).map(|id| registry.gauge(&WORKER, &[&id.to_string()]));
    let loads = loads.collect::<Vec<_>>();
    let mut interval = tokio::time::interval(UPKEEP);
    #[allow(clippy::cast_precision_loss, reason = "counts of connections and sources are far below 2^52")]
    loop {
        interval.tick().await;
        registry.upkeep();
        shared.guard.load().upkeep(Instant::now());
        usage.update(&shared);
        for (load, live) in loads.iter().zip(shared.workers.live()) {
            load.set(live as f64);
        }
    }
}
