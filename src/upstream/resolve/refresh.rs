//! The task of one name: asks, publishes, waits, asks again.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::Gauge;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::Metrics;
use super::ask::{LookupError, Questions};
use super::course::{Bounds, Course, Step};
use super::watched::{Failing, Found, Kind, State, Targets, Watched};

/// What the task has.
pub(super) struct Refresh {
    pub(super) name: Arc<Watched>,
    pub(super) questions: Questions,
    pub(super) bounds: Bounds,
    pub(super) metrics: Metrics,
}

/// What one question found.
struct Answered {
    found: Vec<Found>,
    ttl: Duration,
    targets: Targets,
    partly: Option<LookupError>,
}

impl Refresh {
    pub(super) async fn run(self) {
        let mut course = Course::new(self.bounds, self.name.state().valid_until);
        let (mut told, mut stale) = (false, None);
        loop {
            let answer = self.ask_in_time(&course).await;
            let step = match answer {
                Ok(answered) => self.answered(answered, &mut course),
                Err(error) => self.failed(error, &mut course),
            };
            self.name.was_asked();
            let is_stale = self.name.last_error().is_some() && !self.name.found().is_empty();
            stale = is_stale.then(|| stale.take().unwrap_or_else(|| Stale::new(&self.metrics.stale)));
            // Once, until they fit again: it is the same every time.
            if step.left_out > 0 && !told {
                let (name, left_out) = (self.name.name(), step.left_out);
                warn!(name, left_out, "too many addresses; the last ones in order are not used");
            }
            told = step.left_out > 0;
            sleep(step.pause).await;
        }
    }

    /// Asks, and gives the last addresses up meanwhile when their time is over.
    async fn ask_in_time(&self, course: &Course) -> Result<Answered, LookupError> {
        let start = Instant::now();
        let mut asking = Box::pin(self.ask());
        let in_time = match course.used_until().filter(|end| *end > start) {
            Some(end) => timeout_at(end, &mut asking).await,
            None => Ok(asking.as_mut().await),
        };
        let answer = match in_time {
            Ok(answer) => answer,
            Err(_) => {
                self.publish(&[]);
                asking.await
            }
        };
        self.metrics.count(answer.as_ref().err(), start.elapsed());
        answer
    }

    async fn ask(&self) -> Result<Answered, LookupError> {
        let (name, state) = (self.name.name(), self.name.state());
        match self.name.kind() {
            Kind::Host => {
                let before: Vec<IpAddr> = self.name.found().iter().map(|found| found.ip).collect();
                let addresses = self.questions.host(name, &before).await?;
                let found = addresses.answer.records.into_iter().map(Found::host).collect();
                let (ttl, partly) = (addresses.answer.ttl, addresses.partly);
                Ok(Answered { found, ttl, targets: Targets::new(), partly })
            }
            Kind::Service => {
                let instances = self.questions.service(name, &state.targets).await?;
                let (targets, partly) = (instances.targets, instances.partly);
                Ok(Answered { found: instances.answer.records, ttl: instances.answer.ttl, targets, partly })
            }
        }
    }

    fn answered(&self, answered: Answered, course: &mut Course) -> Step {
        let Answered { found, ttl, targets, partly } = answered;
        if let Some(error) = partly {
            let name = self.name.name();
            warn!(name, %error, "a part of a backend's addresses cannot be looked up; the last ones stay");
        }
        let step = course.answered(found, ttl, Instant::now(), random());
        self.name.set_state(State {
            valid_until: course.valid_until(),
            failing: None,
            targets: Arc::new(targets),
        });
        if let Some(found) = &step.found {
            self.publish(found);
        }
        step
    }

    fn failed(&self, error: LookupError, course: &mut Course) -> Step {
        let (name, stale) = (self.name.name(), self.name.found().len());
        warn!(name, %error, stale, "cannot resolve a backend");
        let step = course.failed(&error, Instant::now(), random());
        let state = self.name.state();
        let since = state.failing.as_ref().map_or_else(SystemTime::now, |failing| failing.since);
        let failing = Some(Arc::new(Failing { since, error }));
        self.name.set_state(State { failing, ..State::clone(&state) });
        if let Some(found) = &step.found {
            self.publish(found);
        }
        step
    }

    fn publish(&self, found: &[Found]) {
        let name = self.name.name();
        if self.name.publish(found) {
            let addresses = Vec::from_iter(found.iter().map(ToString::to_string));
            info!(name, ?addresses, "addresses of a backend");
        } else {
            debug!(name, "addresses of a backend unchanged");
        }
    }
}

/// That the last addresses of a name are used past their time, counted as long as it lasts.
struct Stale(Gauge);

impl Stale {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Nothing that anybody could foresee: the state of a new hasher.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
