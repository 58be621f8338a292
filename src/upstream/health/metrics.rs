//! What checks count.

use std::sync::Arc;

use metrics::{Counter, Gauge};

use super::error::CheckError;
use crate::telemetry::{Family, Registry};

const CHECKS: Family = Family {
    name: "portcullis_upstream_health_checks_total",
    help: "Health checks made, by what came of them.",
    labels: &["upstream", "backend", "result"],
};
const HEALTHY: Family = Family {
    name: "portcullis_upstream_healthy",
    help: "Addresses of a backend that its health checks find well.",
    labels: &["upstream", "backend"],
};
const NOT_AFTER: Family = Family {
    name: "portcullis_upstream_certificate_not_after_timestamp_seconds",
    help: "When the certificate of a backend ends, as its health check saw it last.",
    labels: &["upstream", "backend"],
};

/// The metrics of the checks of one endpoint. While it is not known to be down it counts as healthy; once this is
/// dropped it does not.
pub struct HealthMetrics {
    passed: Counter,
    failed: [Counter; CheckError::REASONS.len()],
    healthy: Gauge,
    up: bool,
    registry: Arc<Registry>,
    upstream: Arc<str>,
    backend: Arc<str>,
}

impl HealthMetrics {
    /// The metrics of `backend`, one of `upstream`.
    pub fn new(registry: &Arc<Registry>, upstream: &Arc<str>, backend: &Arc<str>) -> Self {
        let count = |result| registry.counter(&CHECKS, &[upstream, backend, result]);
        let healthy = registry.gauge(&HEALTHY, &[upstream, backend]);
        healthy.increment(1);
        Self {
            passed: count("passed"),
            failed: CheckError::REASONS.map(count),
            healthy,
            up: true,
            registry: Arc::clone(registry),
            upstream: Arc::clone(upstream),
            backend: Arc::clone(backend),
        }
    }

    /// The name of the upstream.
    pub(super) fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The name of the backend.
    pub(super) fn backend(&self) -> &str {
        &self.backend
    }

    pub(super) fn count(&self, error: Option<&CheckError>) {
        let counter = match error {
            None => Some(&self.passed),
            Some(error) => {
                let reason = CheckError::REASONS.iter().position(|why| *why == error.reason());
                reason.and_then(|index| self.failed.get(index))
            }
        };
        counter.into_iter().for_each(|counter| counter.increment(1));
    }

    pub(super) fn set_up(&mut self, up: bool) {
        match (self.up, up) {
            (false, true) => self.healthy.increment(1),
            (true, false) => self.healthy.decrement(1),
            (true, true) | (false, false) => {}
        }
        self.up = up;
    }

    /// Only backends with a certificate have the metric.
    #[allow(clippy::cast_precision_loss, reason = "seconds of Unix time are far below 2^52")]
    pub(super) fn set_not_after(&self, seconds: i64) {
        self.registry.gauge(&NOT_AFTER, &[&self.upstream, &self.backend]).set(seconds as f64);
    }
}

impl Drop for HealthMetrics {
    fn drop(&mut self) {
        self.set_up(false);
    }
}
