//! The checks of a pool: a task for each of its endpoints, for as long as it has that.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::metrics::HealthMetrics;
use super::probe::Probe;
use super::watch::{Checked, Report, State, watch};
use crate::config::HealthConfig;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::pool::{Key, PoolState};

/// The checks of a pool in one generation of the configuration. Dropping it ends them.
pub(in crate::upstream) struct Checks {
    /// What is asked, if anything.
    asked: Option<Arc<Asked>>,
    slots: Arc<Semaphore>,
    running: HashMap<Key, AbortOnDropHandle<()>>,
}

struct Asked {
    config: HealthConfig,
    probe: Probe,
}

impl Checks {
    /// Those that `config` describes; each takes one of `slots` while it is under way.
    pub(in crate::upstream) fn new(config: Option<&HealthConfig>, slots: Arc<Semaphore>) -> Self {
        let asked =
            config.map(|config| Arc::new(Asked { config: config.clone(), probe: Probe::new(config) }));
        Self { asked, slots, running: HashMap::new() }
    }

    /// Begins to check those of `endpoints` that are new, and ends the checks of those that have gone.
    pub(in crate::upstream) fn follow<'e>(
        &mut self,
        pool: &Arc<PoolState>,
        endpoints: impl Iterator<Item = (&'e Key, &'e Arc<Endpoint>)>,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for (key, endpoint) in endpoints {
            let Some(asked) = &self.asked else {
                forget(pool, endpoint);
                continue;
            };
            let task = before.remove(key).unwrap_or_else(|| self.start(asked, pool, endpoint));
            self.running.insert(key.clone(), task);
        }
    }

    fn start(
        &self,
        asked: &Arc<Asked>,
        pool: &Arc<PoolState>,
        endpoint: &Arc<Endpoint>,
    ) -> AbortOnDropHandle<()> {
        let (asked, slots) = (Arc::clone(asked), Arc::clone(&self.slots));
        let (pool, endpoint) = (Arc::clone(pool), Arc::clone(endpoint));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let checked = Checked {
                target: endpoint.target.clone(),
                metrics: HealthMetrics::new(&pool.registry, &pool.name, &endpoint.name),
                before: known(&endpoint),
            };
            let report = |report| take(&pool, &endpoint, report);
            watch(checked, &asked.config, &asked.probe, &slots, report).await;
        }))
    }
}

/// What checks of a generation before have found.
fn known(endpoint: &Endpoint) -> Option<State> {
    let status = endpoint.status();
    match (status.healthy?, status.agent) {
        (false, _) => Some(State::Down),
        (true, Some(0)) => Some(State::Draining),
        (true, _) => Some(State::Up),
    }
}

/// Keeps what a check has found, and says so when it is new.
fn take(pool: &PoolState, endpoint: &Endpoint, report: Report) {
    let weight = match report.state {
        State::Draining => Some(0),
        State::Up | State::Down => report.weight.map(u32::from),
    };
    let mut status = endpoint.status();
    let news = report.changed || status.agent != weight;
    status.healthy = Some(report.state != State::Down);
    status.agent = weight;
    // Of one that is down the last failure is told, also while it rises.
    if report.error.is_some() || report.state == State::Up {
        status.error = report.error;
    }
    drop(status);
    if news {
        pool.changed.notify_one();
    }
}

/// Forgets what checks of a generation before have found.
fn forget(pool: &PoolState, endpoint: &Endpoint) {
    let mut status = endpoint.status();
    let found = status.healthy.take().is_some();
    (status.error, status.agent) = (None, None);
    drop(status);
    if found {
        pool.changed.notify_one();
    }
}
