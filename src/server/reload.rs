//! What serves now, and how another configuration takes its place.
//!
//! A new configuration is read, checked, resolved and bound beside the one that serves; only when nothing can
//! fail any more does it take its place. Connections keep the generation that they began with.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::budget::Budget;
use super::listening::{Group, Listening};
use super::{StartError, probe_transparent, run_assertions};
use crate::admin::AdminSocket;
use crate::config::{self, Change, Config, Effective};
use crate::conn::Shared;
use crate::control::{Generation, Kept, Outcome};
use crate::drain::Signals;
use crate::handover::{Program, Successor};
use crate::net::UpstreamAddr;
use crate::service;
use crate::snapshot::Snapshot;
use crate::telemetry::{AccessLog, Family, Registry};
use crate::tls::acme::Acme;
use crate::tls::{Acceptors, Watching};
use crate::upstream::{self, Changed, Endpoint, Keepers, OperatorError, Resolver};

const RELOADS: Family = Family {
    name: "portcullis_config_reloads_total",
    help: "Configurations read again, and whether they were taken.",
    labels: &["result"],
};
const SUCCESSFUL: Family = Family {
    name: "portcullis_config_last_reload_successful",
    help: "Whether the last configuration read is the one that serves; 1 or 0.",
    labels: &[],
};
const SINCE: Family = Family {
    name: "portcullis_config_last_reload_success_timestamp_seconds",
    help: "When the configuration that serves was taken.",
    labels: &[],
};

/// Backends that went down and wait for their connections to be closed; more wait with their pools.
const WENT_DOWN: usize = 16;
/// How often it is looked whether a retired snapshot is still in use.
const RETIRE: Duration = Duration::from_secs(1);

/// The generation that serves, and what the next one is made with.
#[derive(Debug)]
pub(super) struct Live {
    file: Option<PathBuf>,
    serving: Arc<ArcSwap<Generation>>,
    /// The settings that hold until the process ends, as they were at its start.
    fixed: Vec<Effective>,
    resolver: Resolver,
    /// How TLS is ended.
    acceptors: Arc<Acceptors>,
    /// Files of certificates are looked at as long as it is there.
    watching: Watching,
    /// What keeps its pools up to date.
    keepers: Option<Keepers>,
    /// Where they tell whose connections are to be closed.
    down: mpsc::Sender<Arc<Endpoint>>,
    pub(super) listening: Listening,
    pub(super) admin: Option<AdminSocket>,
    /// What orders certificates.
    pub(super) acme: Acme,
    workers: usize,
    pub(super) shared: Arc<Shared>,
    registry: Arc<Registry>,
    runtime: Handle,
    metrics: Metrics,
    /// Told when another configuration serves.
    pub(super) changed: Arc<Notify>,
}

#[derive(Debug)]
struct Metrics {
    taken: Counter,
    refused: Counter,
    successful: Gauge,
    since: Gauge,
}

/// A generation that could take over.
struct Next {
    config: Config,
    snapshot: Snapshot,
    resolver: Resolver,
    acceptors: Acceptors,
    sockets: Vec<Group>,
    access_log: Option<AccessLog>,
}

/// What the first generation is made of.
pub(super) struct First {
    pub(super) acme: Acme,
    pub(super) file: Option<PathBuf>,
    pub(super) config: Config,
    pub(super) resolver: Resolver,
    pub(super) acceptors: Acceptors,
    pub(super) listening: Listening,
    pub(super) admin: Option<AdminSocket>,
    pub(super) workers: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<Registry>,
    pub(super) runtime: Handle,
}

impl Live {
    /// The first generation.
    pub(super) fn new(first: First) -> Self {
        let First {
            acme,
            file,
            config,
            resolver,
            acceptors,
            listening,
            admin,
            workers,
            shared,
            registry,
            runtime,
        } = first;
        let metrics = Metrics::new(&registry);
        metrics.taken_now();
        let fixed = config::fixed(&config.effective);
        let serving = Arc::new(ArcSwap::from_pointee(Generation { number: 1, config }));
        let keepers = None;
        let (down, went_down) = mpsc::channel(WENT_DOWN);
        runtime.spawn(close_connections(went_down, Arc::clone(&shared)));
        Self {
            file,
            serving,
            fixed,
            resolver,
            watching: acceptors.watch(&runtime, acme.issued()),
            acceptors: Arc::new(acceptors),
            keepers,
            down,
            listening,
            admin,
            acme,
            workers,
            shared,
            registry,
            runtime,
            metrics,
            changed: Arc::default(),
        }
    }

    /// The file of the configuration, if it is from one.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Where metrics are.
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The configuration that serves.
    pub(super) fn serving(&self) -> &Arc<ArcSwap<Generation>> {
        &self.serving
    }

    /// Waits until the names of its backends have been asked for once, a query's time at most, or until a signal asks
    /// to stop; gives that.
    pub(super) async fn first_answers_or_stop(&self, signals: &mut Signals) -> Option<&'static str> {
        let patience = self.serving.load().config.dns.timeout;
        tokio::select! {
            _ = timeout(patience, self.resolver.first_answers()) => None,
            signal = signals.stop() => Some(signal),
        }
    }

    /// Brings the pools that serve up to date, and keeps them so.
    pub(super) fn keep_pools(&mut self) {
        let snapshot = self.shared.snapshot.load();
        // Those of the generation before may not have the last word.
        self.keepers = None;
        snapshot.pools.refresh();
        self.keepers = Some(snapshot.pools.keep(&self.runtime, &self.down));
    }

    /// Reads the configuration again and serves by it, or says why not and goes on as before. Dropped before
    /// its end it changes nothing.
    pub(super) async fn reload(&mut self) -> Outcome {
        info!("reading the configuration again");
        // In a box of its own: what serves does not carry it.
        match Box::pin(self.prepare()).await {
            Ok(next) => {
                let (changes, overruled) = self.take(next);
                self.metrics.taken.increment(1);
                self.metrics.taken_now();
                let generation = self.serving.load().number;
                let (changed, overruled_by_it) = (changes.len(), overruled.len());
                info!(
                    generation,
                    changes = changed,
                    overruled = overruled_by_it,
                    "the new configuration serves"
                );
                for change in changes.iter().filter(|change| change.restart) {
                    warn!(%change, "takes effect when the process is started anew");
                }
                Outcome::Reloaded { generation, changes, overruled }
            }
            Err(error) => {
                self.metrics.refused.increment(1);
                self.metrics.successful.set(0.0);
                refused(&error)
            }
        }
    }

    async fn prepare(&self) -> Result<Next, StartError> {
        let file = self.file.clone().ok_or(StartError::NoFile)?;
        let (registry, dns) = (Arc::clone(&self.registry), self.resolver.answers());
        let (before, own) = (self.shared.snapshot.load_full(), Arc::clone(self.listening.own()));
        let acceptors = Arc::clone(&self.acceptors);
        // Large configurations take their time, and the control runtime has one thread.
        let built = tokio::task::spawn_blocking(move || {
            let config = Config::load(&file)?;
            run_assertions(&config)?;
            probe_transparent(&config)?;
            let mut resolver = Resolver::new(&config.dns, &registry);
            let acceptors = Acceptors::new(&config, Some(&acceptors), &registry)?;
            let snapshot =
                Snapshot::new(&config, Some(&before.pools), &mut resolver, (&own, &acceptors), &registry);
            resolver.begin_with(&dns);
            Ok::<_, StartError>((config, snapshot, resolver, acceptors))
        });
        let (config, snapshot, mut resolver, acceptors) =
            built.await.map_err(|error| StartError::Thread(error.into()))??;
        resolver.start(&self.runtime)?;
        let access_log = if config.access_log == self.serving.load().config.access_log {
            None
        } else {
            Some(self.open_log(&config).await?)
        };
        // As at the start: the first client finds its backend.
        let _ = timeout(config.dns.timeout, resolver.first_answers()).await;
        // Last, since from here on clients may be in their queues.
        let sockets = self.listening.bind(&config)?;
        Ok(Next { config, snapshot, resolver, acceptors, sockets, access_log })
    }

    /// From here on nothing fails and nothing waits. Gives what is different, and of which backends an operator had
    /// asked something that is forgotten.
    fn take(&mut self, next: Next) -> (Vec<Change>, Vec<String>) {
        let Next { config, snapshot, resolver, acceptors, sockets, access_log } = next;
        let before = self.serving.load_full();
        let mut changes = config::diff(&before.config.effective, &config.effective);
        changes.retain(|change| !change.restart);
        changes.extend(config::diff(&self.fixed, &config::fixed(&config.effective)));
        let addresses = self.listening.len() + sockets.len();
        let budget = Budget::new(&config, self.workers, addresses);
        budget.publish(&self.registry);
        self.shared.hello_bytes.resize(budget.hello_bytes);
        self.shared.handshakes.resize(budget.handshakes);
        let guard = self.shared.guard.load().renewed(&config.limits, budget.connections, &self.registry);
        self.shared.guard.store(Arc::new(guard));
        if let Some(access_log) = access_log {
            self.shared.access_log.store(Arc::new(access_log));
        }
        let overruled = snapshot.pools.take_over();
        for (upstream, backend) in &overruled {
            info!(%upstream, %backend, "the configuration says something else of it now than when an operator acted");
        }
        // Before anybody chooses by them.
        snapshot.pools.refresh();
        let retired = self.shared.snapshot.swap(Arc::new(snapshot));
        self.runtime.spawn(retire(retired));
        self.listening.change(&config, sockets);
        // Which of their endpoints are this process itself is known from here on.
        self.keep_pools();
        self.acme.apply(config.acme.as_ref());
        self.resolver = resolver;
        self.watching = acceptors.watch(&self.runtime, self.acme.issued());
        self.acceptors = Arc::new(acceptors);
        self.serving.store(Arc::new(Generation { number: before.number + 1, config }));
        self.changed.notify_one();
        (changes, overruled.iter().map(|(upstream, backend)| format!("{upstream} {backend}")).collect())
    }

    /// Does what `by` asks of a backend.
    pub(super) fn operate(
        &mut self,
        upstream: &str,
        change: &upstream::Change,
        by: &str,
    ) -> Result<Changed, OperatorError> {
        let snapshot = self.shared.snapshot.load_full();
        let pool = snapshot.pools.asked_for(upstream)?;
        let backend = change.backend();
        if let (upstream::Change::Add(..), UpstreamAddr::Ip(addr)) = (change, backend)
            && let Some(listener) = self.serving.load().config.own(*addr)
        {
            return Err(OperatorError::Own { backend: *addr, listener: Arc::clone(&listener.name) });
        }
        let changed = pool.operate(change, &mut self.resolver, &self.runtime)?;
        info!(upstream, %backend, %change, by, connections = changed.connections, "an operator changed a backend");
        Ok(changed)
    }

    /// Starts `program` with the sockets of this process and waits until it serves; says whether it does.
    /// Dropped before its end it ends the new process.
    pub(super) async fn hand_over(&self, program: Option<&Program>) -> bool {
        // The first process of a container takes all others with it when it ends.
        let first = rustix::process::getpid().is_init();
        let Some(program) = program.filter(|_| self.file.is_some() && !first) else {
            warn!(first, "this process cannot be replaced");
            return false;
        };
        info!("starting a new process");
        let admin = self.admin.as_ref().map(|admin| (&admin.bind, admin.descriptor.as_fd()));
        // It may have to wait for the new process to read.
        let start = || Successor::start(program, self.listening.sockets(), admin);
        let result = match tokio::task::block_in_place(start) {
            Ok(successor) => (Some(successor.id()), successor.ready().await),
            Err(error) => (None, Err(error)),
        };
        match result {
            (pid, Ok(())) => {
                info!(pid, "the new process serves");
                pid.iter().for_each(|pid| service::replaced_by(*pid));
                true
            }
            (pid, Err(error)) => {
                error!(pid, error = %chain(&error), "this process goes on");
                false
            }
        }
    }

    /// Opens the access log, which may take as long as the disk or the reader of a pipe does.
    async fn open_log(&self, config: &Config) -> Result<AccessLog, StartError> {
        let (log, registry) = (config.access_log.clone(), Arc::clone(&self.registry));
        let opened = tokio::task::spawn_blocking(move || super::open_access_log(&log, &registry));
        opened.await.map_err(|error| StartError::Thread(error.into()))?
    }

    /// Opens the access log again, for when its file was moved away.
    pub(super) async fn reopen_logs(&self) {
        match self.open_log(&self.serving.load_full().config).await {
            Ok(access_log) => {
                self.shared.access_log.store(Arc::new(access_log));
                info!("the access log is opened again");
            }
            Err(error) => error!(error = %chain(&error), "the access log stays as it is"),
        }
    }
}

/// Closes the connections of backends that went down.
async fn close_connections(mut went_down: mpsc::Receiver<Arc<Endpoint>>, shared: Arc<Shared>) {
    while let Some(endpoint) = went_down.recv().await {
        let closed = shared.workers.close_all(&endpoint).await;
        info!(backend = %endpoint.name, address = %endpoint.target, closed, "closed the connections of a backend");
    }
}

/// Keeps a snapshot until no connection begins with it any more: freeing a large one takes its time, which no
/// worker has.
async fn retire(snapshot: Arc<Snapshot>) {
    // Ends when they have connected or failed to, for which each has its deadlines.
    while Arc::strong_count(&snapshot) > 1 {
        tokio::time::sleep(RETIRE).await;
    }
    // Whether it ran does not matter.
    let _ = tokio::task::spawn_blocking(move || drop(snapshot)).await;
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let reloads = |result| registry.counter(&RELOADS, &[result]);
        Self {
            taken: reloads("taken"),
            refused: reloads("refused"),
            successful: registry.gauge(&SUCCESSFUL, &[]),
            since: registry.gauge(&SINCE, &[]),
        }
    }

    fn taken_now(&self) {
        self.successful.set(1.0);
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        self.since.set(jiff::Timestamp::now().as_second() as f64);
    }
}

/// Tells of a configuration that was not taken.
fn refused(error: &StartError) -> Outcome {
    let errors = match error {
        StartError::Config(errors) => {
            errors.iter().for_each(|error| error!("{error}"));
            errors.to_json()
        }
        StartError::Assertions(failed) => {
            failed.iter().for_each(|mismatch| error!("{mismatch}"));
            failed.iter().map(|mismatch| Value::String(mismatch.to_string())).collect()
        }
        error => {
            error!("{}", chain(error));
            Value::Array(vec![Value::String(chain(error))])
        }
    };
    error!("the configuration stays as it was");
    let text = match error {
        StartError::Assertions(failed) => {
            failed.iter().map(|mismatch| format!("error: {mismatch}\n")).collect()
        }
        StartError::Config(errors) => errors.render(false),
        error => format!("error: {}\n", chain(error)),
    };
    Outcome::Kept { why: error.why_kept(), text, errors }
}

impl StartError {
    fn why_kept(&self) -> Kept {
        match self {
            Self::Config(_) | Self::Assertions(_) | Self::Tls(_) => Kept::BadConfig,
            error if error.is_temporary() => Kept::Temporary,
            _ => Kept::Failed,
        }
    }
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
