//! The checks of an endpoint, one after the other.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::Target;
use super::agent::{AgentReport, AgentState};
use super::error::CheckError;
use super::metrics::HealthMetrics;
use super::probe::Probe;
use super::tally::{Change, Tally};
use crate::config::HealthConfig;

/// First checks are spread over so much time at most: who starts wants to know.
const FIRST: Duration = Duration::from_secs(1);
/// How often it is told that a certificate ends soon.
const REMIND: Duration = Duration::from_secs(86_400);

/// An endpoint that is checked.
pub struct Checked {
    /// Its address.
    pub target: Target,
    /// Its metrics, which know its names.
    pub metrics: HealthMetrics,
    /// What it was found before.
    pub before: Option<State>,
}

/// What an endpoint is by its checks and its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Up,
    /// It serves whom it has, and is to get nobody else.
    Draining,
    /// It does not serve.
    Down,
}

/// What a round of checks came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the endpoint is from now on.
    pub state: State,
    /// Whether that is something else than in the report before; of the first one it is.
    pub changed: bool,
    /// Why this check did not pass, in words, if it did not.
    pub error: Option<Arc<str>>,
    /// How long this check took.
    pub took: Duration,
    /// The share of its weight that its agent wants, in percent.
    pub weight: Option<u8>,
}

/// What is known of an endpoint.
struct Course {
    checked: Checked,
    tally: Tally,
    agent: AgentReport,
    /// What was reported last.
    state: Option<State>,
    expiry_warning: Option<Duration>,
    reminded: Option<Instant>,
    /// Whether the last check said nothing about the endpoint.
    unable: bool,
}

/// Checks an endpoint for as long as this is not dropped, and reports each check whose result says something about it.
/// A place of `slots` is held while a check is under way. Cancel safe: dropping it closes the socket.
pub async fn watch(
    checked: Checked,
    config: &HealthConfig,
    probe: &Probe,
    slots: &Semaphore,
    mut report: impl FnMut(Report),
) {
    let state = checked.before;
    let mut course = Course {
        checked,
        tally: Tally::new(config.rise, config.fall, state.map(|state| state != State::Down)),
        agent: AgentReport::default(),
        state,
        expiry_warning: config.check.tls().map(|tls| tls.expiry_warning),
        reminded: None,
        unable: false,
    };
    if let Some(state) = state {
        course.checked.metrics.set_up(state == State::Up);
    }
    sleep(share(config.interval.min(FIRST), 0, 1000)).await;
    loop {
        // It is never closed.
        let Ok(slot) = slots.acquire().await else { return };
        let start = Instant::now();
        let round = course.round(probe).await;
        drop(slot);
        round.into_iter().for_each(&mut report);
        sleep_until(start + share(config.interval, 900, 1100)).await;
    }
}

/// From `least` to `most` thousandths of `whole`, at random.
pub fn share(whole: Duration, least: u32, most: u32) -> Duration {
    // Each one has other keys.
    let random = RandomState::new().hash_one(()) % u64::from(most - least + 1);
    whole * (least + u32::try_from(random).unwrap_or(0)) / 1000
}

impl Course {
    /// One check, and the agent's word; `None` when it says nothing about the endpoint.
    async fn round(&mut self, probe: &Probe) -> Option<Report> {
        let start = Instant::now();
        let result = probe.run(&self.checked.target).await;
        let took = start.elapsed();
        self.checked.metrics.count(result.as_ref().err());
        if let Ok(passed) = &result {
            passed.not_after.into_iter().for_each(|end| self.note_certificate(end));
        }
        match probe.ask_agent(&self.checked.target).await {
            Some(Ok(said)) => self.agent.update(said),
            // Whether the host can be reached is what the check is for: its last word stays.
            Some(Err(error)) => self.debug("the agent of a backend said nothing", &error),
            None => {}
        }
        let error = result.err();
        if self.is_unable(error.as_ref()) {
            return None;
        }
        let change = self.tally.note(error.is_none());
        let told: Option<Arc<str>> = error.map(|error| error.told().into());
        let state = self.state();
        let changed = self.state.replace(state) != Some(state);
        if changed {
            self.checked.metrics.set_up(state == State::Up);
            self.tell(state, change, told.as_deref());
        }
        Some(Report { state, changed, error: told, took, weight: self.agent.weight })
    }

    fn state(&self) -> State {
        match (self.tally.up(), self.agent.state) {
            (Some(false), _) | (_, Some(AgentState::Down)) => State::Down,
            (_, Some(AgentState::Drain)) => State::Draining,
            (Some(true) | None, Some(AgentState::Up) | None) => State::Up,
        }
    }

    fn tell(&self, state: State, change: Change, error: Option<&str>) {
        let (upstream, backend) = (self.checked.metrics.upstream(), self.checked.metrics.backend());
        let address = &self.checked.target;
        // Of a check that passed, only the agent can have said otherwise.
        let by = if change == Change::None { "agent" } else { "check" };
        match state {
            State::Up => info!(upstream, backend, %address, by, "a backend is up"),
            State::Draining => info!(upstream, backend, %address, by, "a backend drains"),
            State::Down => warn!(upstream, backend, %address, by, error, "a backend is down"),
        }
    }

    /// Whether a check that came to this says nothing about the endpoint. Told when it begins and when it is over: many
    /// checks may lack the same.
    fn is_unable(&mut self, error: Option<&CheckError>) -> bool {
        let ours = error.filter(|error| error.is_ours());
        let before = std::mem::replace(&mut self.unable, ours.is_some());
        let (upstream, backend) = (self.checked.metrics.upstream(), self.checked.metrics.backend());
        let address = &self.checked.target;
        match ours {
            Some(error) if !before => {
                warn!(upstream, backend, %address, error = error.told(), "a backend cannot be checked");
            }
            None if before => info!(upstream, backend, %address, "a backend can be checked again"),
            Some(_) | None => {}
        }
        ours.is_some()
    }

    fn debug(&self, message: &'static str, error: &CheckError) {
        let (upstream, backend) = (self.checked.metrics.upstream(), self.checked.metrics.backend());
        debug!(upstream, backend, address = %self.checked.target, error = error.told(), "{message}");
    }

    /// Keeps the certificate's end, and warns of it once a day when it is near.
    fn note_certificate(&mut self, not_after: i64) {
        let metrics = &self.checked.metrics;
        metrics.set_not_after(not_after);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = not_after.saturating_sub_unsigned(now.as_secs());
        let near =
            self.expiry_warning.is_some_and(|warning| i128::from(left) < i128::from(warning.as_secs()));
        if !near {
            self.reminded = None;
            return;
        }
        if self.reminded.is_some_and(|last| last.elapsed() < REMIND) {
            return;
        }
        self.reminded = Some(Instant::now());
        let (upstream, backend) = (metrics.upstream(), metrics.backend());
        let not_after =
            jiff::Timestamp::from_second(not_after).map(|end| end.to_string()).unwrap_or_default();
        let address = &self.checked.target;
        if left <= 0 {
            warn!(upstream, backend, %address, not_after, "the certificate of a backend has ended");
        } else {
            warn!(upstream, backend, %address, not_after, "the certificate of a backend ends soon");
        }
    }
}
