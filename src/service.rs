//! Running as a service: what the supervisor is told (sd_notify(3)), whose rights the process keeps, and what
//! of the file system.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

mod identity;
mod pulse;
mod sandbox;

pub use identity::take_on;
pub use pulse::{Heart, Pulse, pulses};
pub use sandbox::enter;

/// Pings an interval that the supervisor allows: one may come late, and still be in time.
const PINGS: u32 = 3;

/// The service is ready.
pub fn ready(workers: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving with {workers} workers"))]);
}

/// The service ends once so many connections have.
pub fn stopping(open: usize) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&format!("draining {open} connections"))]);
}

/// The service is another process from now on.
pub fn replaced_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Status("serving after an upgrade")]);
}

/// Pings the supervisor for as long as all event loops turn, if it asks for that (WATCHDOG_USEC). One that is stuck
/// is a defect that nothing inside the process can mend.
pub async fn watch(pulses: Vec<Pulse>) {
    let Some(allowed) = sd_notify::watchdog_enabled() else { return };
    let each = (allowed / PINGS).max(Duration::from_millis(1));
    let mut interval = tokio::time::interval(each);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stuck = false;
    loop {
        interval.tick().await;
        let silent = silent(&pulses, Instant::now() + each).await;
        if silent.is_empty() {
            tell(&[NotifyState::Watchdog]);
        } else if !stuck {
            warn!(workers = ?silent, "event loops that do not turn: the supervisor is no longer told that all is well");
        }
        stuck = !silent.is_empty();
    }
}

/// The numbers of the workers that do not answer by `deadline`.
async fn silent(pulses: &[Pulse], deadline: Instant) -> Vec<usize> {
    let asked: Vec<_> = pulses.iter().map(Pulse::ask).collect();
    let mut silent = Vec::new();
    for (worker, answer) in asked.into_iter().enumerate() {
        if !timeout_at(deadline, answer).await.unwrap_or(false) {
            silent.push(worker);
        }
    }
    silent
}

/// Without a supervisor this does nothing; one that does not listen is no reason not to serve.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "cannot tell the supervisor");
    }
}
