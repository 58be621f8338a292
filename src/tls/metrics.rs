//! What is counted of handshakes.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::handshake::HandshakeError;
use crate::telemetry::{Family, Registry};

const TOOK: Family = Family {
    name: "portcullis_tls_handshake_duration_seconds",
    help: "Time from the hello of a client to the end of its handshake.",
    labels: &["route"],
};
const FAILURES: Family = Family {
    name: "portcullis_tls_handshake_failures_total",
    help: "Handshakes with clients that came to nothing.",
    labels: &["route", "reason"],
};

/// What is counted of the handshakes of a route.
#[derive(Debug)]
pub struct HandshakeMetrics {
    took: Histogram,
    failures: Vec<(&'static str, Counter)>,
}

impl HandshakeMetrics {
    pub(super) fn new(route: &str, registry: &Registry) -> Self {
        let reasons = HandshakeError::REASONS.into_iter().chain([HandshakeError::TIMEOUT]);
        let failures = reasons.map(|reason| (reason, registry.counter(&FAILURES, &[route, reason])));
        Self { took: registry.histogram(&TOOK, &[route]), failures: failures.collect() }
    }

    /// One is over, after so long.
    pub fn succeeded(&self, took: Duration) {
        self.took.record(took);
    }

    /// One has come to nothing, for a reason that [`HandshakeError`] has.
    pub fn failed(&self, reason: &str) {
        let found = self.failures.iter().find(|(known, _)| *known == reason);
        found.iter().for_each(|(_, counter)| counter.increment(1));
    }
}
