//! Names that are looked up when somebody wants them: for routes whose backends clients name.
//!
//! Whoever asks may be on any thread, also on those without a runtime: a question is a task of the control runtime,
//! of which one a name is under way; all who want the name wait for it.

mod cache;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::ask::{LookupError, Questions};
use super::course::{Bounds, MAX_ADDRESSES};
use super::source::Source;
use super::{Metrics, ResolveError};
use crate::config::DnsConfig;
use crate::telemetry::Registry;

use cache::{Cache, Known, Outcome};

/// Names that are asked for at once; beyond it clients are refused, since who asks for so many names is none.
const MAX_UNDER_WAY: usize = 128;

/// Addresses of names that were not known before. Its clones are one.
#[derive(Clone)]
pub struct OnDemand(Arc<Shared>);

struct Shared {
    config: DnsConfig,
    metrics: Metrics,
    names: Mutex<Cache<Told>>,
    running: OnceLock<Running>,
}

/// Who asks, once there is a runtime.
struct Running {
    runtime: Handle,
    questions: Questions,
}

/// Where all who wait for a name hear what was found.
type Told = watch::Receiver<Option<Outcome>>;

/// A question under way. When it ends, however it does, the next one may be asked.
struct Asking {
    host: Box<str>,
    shared: Arc<Shared>,
    tell: watch::Sender<Option<Outcome>>,
    /// Whether its answer has been kept.
    answered: bool,
}

impl OnDemand {
    /// Nothing is known, and nothing asked before [`OnDemand::start`].
    pub fn new(config: &DnsConfig, registry: &Registry) -> Self {
        Self::with(config, Metrics::new(registry))
    }

    pub(super) fn with(config: &DnsConfig, metrics: Metrics) -> Self {
        let names = Mutex::new(Cache::new(Bounds::new(config), MAX_UNDER_WAY));
        Self(Arc::new(Shared { config: config.clone(), metrics, names, running: OnceLock::new() }))
    }

    /// From now on names are asked for, on `runtime`.
    ///
    /// # Errors
    /// When no nameservers are known.
    pub fn start(&self, runtime: &Handle) -> Result<(), ResolveError> {
        self.start_with(runtime, Arc::new(Source::new(&self.0.config)?));
        Ok(())
    }

    pub(super) fn start_with(&self, runtime: &Handle, source: Arc<Source>) {
        let questions = Questions {
            source,
            // A query is a socket. For each name a connection waits, which does not use its backend's descriptor yet.
            slots: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            timeout: self.0.config.timeout,
            family: self.0.config.family,
        };
        let running = Running { runtime: runtime.clone(), questions };
        // A second start changes nothing.
        let _ = self.0.running.set(running);
    }

    /// Knows from the beginning what `other` knows.
    pub(super) fn begin_with(&self, other: &Self) {
        let known = other.0.names().known();
        self.0.names().adopt(known);
    }

    /// The addresses of `host`, at least one: those of an answer for as long as it holds, else those of a new one.
    /// While no nameserver answers, the last ones; a name that is said not to exist has none. A literal address is
    /// itself. It takes eight times `dns.timeout` at most: a look-up of four, and as long for room. Cancel safe: a
    /// question goes on for others, and its answer is kept.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn find(&self, host: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Arc::new([ip]));
        }
        let mut told = match self.begin(host) {
            Known::Outcome(outcome) => return outcome,
            Known::UnderWay(told) => told,
        };
        let outcome = told.wait_for(Option::is_some).await;
        // Without one when the task was dropped: the process is ending.
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(LookupError::Ended))
    }

    /// What is known of `host`, or else the answer to a question.
    fn begin(&self, host: &str) -> Known<Told> {
        let host: Box<str> = host.trim_end_matches('.').to_ascii_lowercase().into();
        let Some(running) = self.0.running.get() else { return Known::Outcome(Err(LookupError::Ended)) };
        let mut tell = None;
        let known = self.0.names().find(&host, Instant::now(), || {
            let (sender, told) = watch::channel(None);
            tell = Some(sender);
            told
        });
        if let Some(tell) = tell {
            let asking = Asking { host, shared: Arc::clone(&self.0), tell, answered: false };
            running.runtime.spawn(asking.run(running.questions.clone()));
        } else if matches!(known, Known::Outcome(Err(LookupError::Busy))) {
            self.0.metrics.busy.increment(1);
        }
        known
    }
}

impl Shared {
    /// Locked for a look at the table or a change of it, never while anything is waited for.
    fn names(&self) -> MutexGuard<'_, Cache<Told>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").finish_non_exhaustive()
    }
}

impl Asking {
    async fn run(mut self, questions: Questions) {
        let start = Instant::now();
        let before = self.shared.names().last(&self.host, start);
        let answer = Box::pin(questions.host(&self.host, &before)).await;
        self.shared.metrics.count(answer.as_ref().err(), start.elapsed());
        let answer = answer.map(|mut found| {
            found.answer.records.sort_unstable();
            found.answer.records.dedup();
            found.answer.records.truncate(MAX_ADDRESSES);
            found.answer
        });
        let outcome = self.shared.names().answered(&self.host, answer, Instant::now());
        self.answered = true;
        self.tell.send_replace(Some(outcome));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.names().ended(&self.host);
        }
    }
}

#[cfg(test)]
mod tests;
