//! Names of backends: resolved in the background, so that no connection ever waits for DNS.
//!
//! Each name has one task that asks, keeps the answer for its TTL (within the configured bounds) and asks
//! again. When DNS fails, the last answer stays in use and the task asks again, more and more seldom.

mod ask;
mod course;
mod on_demand;
mod refresh;
mod source;
mod watched;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::net::NetError;
use metrics::{Counter, Gauge, Histogram};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::DnsConfig;
use crate::telemetry::{Family, Registry};

pub use ask::LookupError;
pub use on_demand::OnDemand;
pub use watched::{Failing, Found, Watched};

use ask::Questions;
use course::Bounds;
use refresh::Refresh;
use source::Source;
use watched::{Kind, State};

/// Queries under way at once: a configuration of a thousand names does not flood its nameserver.
const CONCURRENT: usize = 32;

const LOOKUPS: Family = Family {
    name: "portcullis_dns_lookups_total",
    help: "Names of backends looked up.",
    labels: &["result"],
};

const LOOKUP_TIME: Family = Family {
    name: "portcullis_dns_lookup_duration_seconds",
    help: "Time to look up the name of a backend, with or without success.",
    labels: &[],
};
const STALE: Family = Family {
    name: "portcullis_dns_stale_names",
    help: "Names whose last addresses are used past their time, for want of an answer.",
    labels: &[],
};

/// The names of a configuration. Dropping it ends their tasks.
pub struct Resolver {
    config: DnsConfig,
    names: HashMap<Key, Arc<Watched>>,
    /// Made when it is first asked for.
    on_demand: Option<OnDemand>,
    metrics: Metrics,
    tasks: JoinSet<()>,
    /// Those of names that are looked up.
    started: HashMap<Key, AbortHandle>,
}

/// What is known of names at some time.
#[derive(Debug)]
pub struct Answers {
    names: HashMap<Key, (Arc<[Found]>, Arc<State>)>,
    on_demand: Option<OnDemand>,
}

/// A name as it is asked for.
type Key = (Kind, Box<str>);

/// Why names cannot be resolved at all.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No nameserver is known, or the system's configuration cannot be read.
    #[error(
        "the DNS configuration of the system cannot be used; set `dns = {{ servers = [\"192.0.2.53\"] }}`"
    )]
    System(#[source] NetError),
}

#[derive(Clone)]
struct Metrics {
    ok: Counter,
    negative: Counter,
    failed: Counter,
    busy: Counter,
    seconds: Histogram,
    stale: Gauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let [ok, negative, failed, busy] =
            ["ok", "negative", "failed", "busy"].map(|result| registry.counter(&LOOKUPS, &[result]));
        let seconds = registry.histogram(&LOOKUP_TIME, &[]);
        Self { ok, negative, failed, busy, seconds, stale: registry.gauge(&STALE, &[]) }
    }

    /// Counts a look-up and how long it `took`.
    fn count(&self, error: Option<&LookupError>, took: Duration) {
        match error {
            None => self.ok.increment(1),
            Some(error) if error.is_negative() => self.negative.increment(1),
            Some(_) => self.failed.increment(1),
        }
        self.seconds.record(took);
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver without names.
    pub fn new(config: &DnsConfig, registry: &Registry) -> Self {
        let metrics = Metrics::new(registry);
        Self {
            config: config.clone(),
            names: HashMap::new(),
            on_demand: None,
            metrics,
            tasks: JoinSet::new(),
            started: HashMap::new(),
        }
    }

    /// The shared entry of the host `name`; it has no addresses before [`Resolver::start`].
    pub fn host(&mut self, name: &str) -> Arc<Watched> {
        self.name(Kind::Host, name)
    }

    /// The same of the service `name`, as in `_db._tcp.example.com`: its records `SRV` are asked for (RFC 2782), and
    /// the addresses of the hosts that they lead to.
    pub fn service(&mut self, name: &str) -> Arc<Watched> {
        self.name(Kind::Service, name)
    }

    fn name(&mut self, kind: Kind, name: &str) -> Arc<Watched> {
        let entry = self.names.entry((kind, name.into()));
        Arc::clone(entry.or_insert_with(|| Arc::new(Watched::new(kind, name))))
    }

    /// Look-ups of names that are not known before; none is asked for before [`Resolver::start`].
    pub fn on_demand(&mut self) -> OnDemand {
        let on_demand =
            self.on_demand.get_or_insert_with(|| OnDemand::with(&self.config, self.metrics.clone()));
        on_demand.clone()
    }

    /// Starts to resolve all names on `runtime` that are not resolved yet, and goes on until dropped.
    ///
    /// # Errors
    /// When there are names and no nameservers are known.
    pub fn start(&mut self, runtime: &Handle) -> Result<(), ResolveError> {
        if self.names.len() == self.started.len() && self.on_demand.is_none() {
            return Ok(());
        }
        let source = Arc::new(Source::new(&self.config)?);
        if let Some(on_demand) = &self.on_demand {
            on_demand.start_with(runtime, Arc::clone(&source));
        }
        let questions = Questions {
            source,
            slots: Arc::new(Semaphore::new(CONCURRENT)),
            timeout: self.config.timeout,
            family: self.config.family,
        };
        let bounds = Bounds::new(&self.config);
        for (key, name) in &self.names {
            if self.started.contains_key(key) {
                continue;
            }
            let refresh = Refresh {
                name: Arc::clone(name),
                questions: questions.clone(),
                bounds,
                metrics: self.metrics.clone(),
            };
            self.started.insert(key.clone(), self.tasks.spawn_on(refresh.run(), runtime));
        }
        Ok(())
    }

    /// Goes on without the names that nobody else holds any more.
    pub fn forget_unused(&mut self) {
        self.names.retain(|key, name| {
            let task = self.started.get(key);
            // One is here, the other with the task.
            let used = Arc::strong_count(name) > 1 + usize::from(task.is_some());
            if !used && let Some(task) = self.started.remove(key) {
                task.abort();
            }
            used
        });
        // What has ended takes no memory then.
        while self.tasks.try_join_next().is_some() {}
    }

    /// What is known of all names now.
    pub fn answers(&self) -> Answers {
        let known = |(key, name): (&Key, &Arc<Watched>)| (key.clone(), (name.found(), name.state()));
        Answers { names: self.names.iter().map(known).collect(), on_demand: self.on_demand.clone() }
    }

    /// Begins with the `answers` of another resolver, so that names which both have are never without.
    pub fn begin_with(&mut self, answers: &Answers) {
        for (key, name) in &self.names {
            if let Some((found, state)) = answers.names.get(key).filter(|(found, _)| !found.is_empty()) {
                name.begin_with(found, State::clone(state));
            }
        }
        if let (Some(on_demand), Some(known)) = (&self.on_demand, &answers.on_demand) {
            on_demand.begin_with(known);
        }
    }

    /// Waits until each name has been asked for once, with or without success.
    pub async fn first_answers(&self) {
        for name in self.names.values() {
            name.first_answer().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DnsFamily;

    fn config() -> DnsConfig {
        DnsConfig {
            servers: vec![],
            timeout: Duration::from_secs(1),
            family: DnsFamily::Both,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(300),
            negative_ttl: Duration::from_secs(30),
            stale_max: None,
        }
    }

    #[test]
    fn a_name_is_resolved_once_however_many_routes_use_it() {
        let config = config();
        let mut resolver = Resolver::new(&config, &Registry::new().unwrap());
        let (one, two) = (resolver.host("app.internal"), resolver.host("app.internal"));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.name(), "app.internal");
        assert!(one.found().is_empty());
        let service = resolver.service("app.internal");
        assert!(!Arc::ptr_eq(&one, &service), "a host and a service may have one name");
    }

    #[test]
    fn names_that_nobody_holds_are_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = DnsConfig { servers: vec!["127.0.0.1:9".parse().unwrap()], ..config() };
        let mut resolver = Resolver::new(&config, &Registry::new().unwrap());
        let _held = resolver.host("held.internal");
        resolver.host("early.internal");
        resolver.forget_unused();
        for round in 0..100 {
            let late = resolver.host(&format!("late{round}.internal"));
            resolver.start(runtime.handle()).unwrap();
            assert_eq!((resolver.names.len(), resolver.started.len()), (2, 2), "{round}");
            drop(late);
            resolver.forget_unused();
            runtime.block_on(tokio::task::yield_now());
            assert_eq!((resolver.names.len(), resolver.started.len()), (1, 1), "{round}");
        }
        resolver.forget_unused();
        assert_eq!(resolver.tasks.len(), 1);
    }
}
