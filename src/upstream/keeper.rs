//! What keeps a pool up to date: it brings together what is known whenever something has changed, ejects the endpoints
//! that fail, and probes them before clients come back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::endpoint::Endpoint;
use super::health::Checks;
use super::outlier::{has_room, probe};
use super::pool::Pool;

/// When nothing is due: a look from time to time costs nothing.
const IDLE_LOOK: Duration = Duration::from_secs(3600);
/// When many connections are closed already: the next ones have their turn soon.
const CLOSE_LOOK: Duration = Duration::from_secs(1);

/// Probes that run, and of which endpoints.
#[derive(Default)]
struct Probes {
    running: HashSet<u64>,
    tasks: JoinSet<(Arc<Endpoint>, bool)>,
}

impl Pool {
    /// Brings together what is known whenever something has changed, and checks endpoints, until dropped. Endpoints whose
    /// connections are to be closed are handed to `down`; a check takes one of `slots`.
    pub(super) async fn keep(self: Arc<Self>, down: mpsc::Sender<Arc<Endpoint>>, slots: Arc<Semaphore>) {
        let mut watches = JoinSet::new();
        for watched in self.names().values() {
            watches.spawn(Arc::clone(self.state()).tell_of(watched));
        }
        let mut probes = Probes::default();
        let mut checks = Checks::new(self.config().health.as_ref(), slots);
        loop {
            let due = self.refresh(Instant::now());
            checks.follow(self.state(), self.state().endpoints().iter());
            probes.start(&self);
            let look = if self.tell_down(&down) { IDLE_LOOK } else { CLOSE_LOOK };
            let due = due.into_iter().chain([Instant::now() + look]).min().unwrap_or_else(Instant::now);
            tokio::select! {
                () = self.state().stirred() => {}
                () = tokio::time::sleep_until(due.into()) => {}
                Some((endpoint, reached)) = probes.next() => self.probed(&endpoint, reached, Instant::now()),
            }
        }
    }

    /// Hands the endpoints whose connections are to be closed to `down`; says whether it took all. It is not waited for:
    /// a worker that stands still keeps no other from its backends.
    fn tell_down(&self, down: &mpsc::Sender<Arc<Endpoint>>) -> bool {
        let mut all = true;
        for endpoint in self.state().endpoints().values() {
            let mut status = endpoint.status();
            status.closing = status.closing && down.try_send(Arc::clone(endpoint)).is_err();
            all &= !status.closing;
        }
        all
    }

    /// Ejects those of `endpoints` that failed too often, as far as there may be more that are out.
    pub(super) fn judge<'e>(&self, endpoints: impl Iterator<Item = &'e Arc<Endpoint>> + Clone, now: Instant) {
        let config = self.config().eject.as_ref();
        let is_out = |endpoint: &&Arc<Endpoint>| {
            let status = endpoint.status();
            status.healthy == Some(false) || status.outlier.is_out()
        };
        let total = endpoints.clone().count();
        let mut out = endpoints.clone().filter(is_out).count();
        for endpoint in endpoints {
            let counted = is_out(&endpoint);
            // One that its health checks found to be down is out already.
            let room = counted || config.is_some_and(|config| has_room(total, out, config));
            let strikes = endpoint.strikes.count();
            let ejected = endpoint.status().outlier.look(strikes, config, room, now);
            if let Some(length) = ejected {
                out += usize::from(!counted);
                endpoint.count_ejection();
                tracing::warn!(upstream = %self.config().name, backend = %endpoint.name, address = %endpoint.target,
                    failures = strikes, for_s = length.as_secs_f64(), "a backend is passed over for its failures");
            }
        }
    }

    /// A probe has `reached` the endpoint or not.
    fn probed(&self, endpoint: &Endpoint, reached: bool, now: Instant) {
        let Some(config) = &self.config().eject else { return };
        let longer = endpoint.status().outlier.probed(reached, config, now);
        let length = longer.map(|length| length.as_secs_f64());
        if reached {
            endpoint.strikes.forget();
        }
        tracing::info!(upstream = %self.config().name, backend = %endpoint.name, address = %endpoint.target, reached,
            for_s = length, "a backend was probed");
    }
}

impl Probes {
    /// Probes those endpoints of `pool` whose time is over, unless they are probed already.
    fn start(&mut self, pool: &Pool) {
        for endpoint in pool.state().endpoints().values() {
            if endpoint.status().outlier.is_on_trial() && self.running.insert(endpoint.id) {
                let endpoint = Arc::clone(endpoint);
                self.tasks.spawn(async move {
                    let reached = probe(&endpoint.target).await;
                    (endpoint, reached)
                });
            }
        }
    }

    /// The next one that is done; `None` while there is none.
    async fn next(&mut self) -> Option<(Arc<Endpoint>, bool)> {
        // A probe does not panic, and is aborted only with the keeper.
        let (endpoint, reached) = self.tasks.join_next().await?.ok()?;
        self.running.remove(&endpoint.id);
        Some((endpoint, reached))
    }
}
