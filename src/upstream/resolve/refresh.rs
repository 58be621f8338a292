//! The task of one name: asks, publishes, waits, asks again.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
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
        let mut told = false;
        loop {
            let step = match Box::pin(self.ask()).await {
                Ok(answered) => self.answered(answered, &mut course),
                Err(error) => self.failed(error, &mut course),
            };
            self.name.was_asked();
            // Once, until they fit again: it is the same every time.
            if step.left_out > 0 && !told {
                let (name, left_out) = (self.name.name(), step.left_out);
                warn!(name, left_out, "too many addresses; the last ones in order are not used");
            }
            told = step.left_out > 0;
            sleep(step.pause).await;
        }
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
        self.metrics.ok.increment(1);
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
        self.publish(&step);
        step
    }

    fn failed(&self, error: LookupError, course: &mut Course) -> Step {
        let (name, stale) = (self.name.name(), self.name.found().len());
        warn!(name, %error, stale, "cannot resolve a backend");
        self.metrics.failed.increment(1);
        let step = course.failed(&error, random());
        let state = self.name.state();
        let since = state.failing.as_ref().map_or_else(SystemTime::now, |failing| failing.since);
        let failing = Some(Arc::new(Failing { since, error }));
        self.name.set_state(State { failing, ..State::clone(&state) });
        self.publish(&step);
        step
    }

    fn publish(&self, step: &Step) {
        let Some(found) = &step.found else { return };
        let name = self.name.name();
        if self.name.publish(found) {
            let addresses = Vec::from_iter(found.iter().map(ToString::to_string));
            info!(name, ?addresses, "addresses of a backend");
        } else {
            debug!(name, "addresses of a backend unchanged");
        }
    }
}

/// Nothing that anybody could foresee: the state of a new hasher.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
