//! What is counted of requests.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram};

use crate::telemetry::{Family, Registry};

const REQUESTS: Family = Family {
    name: "portcullis_http_requests_total",
    help: "Requests of HTTP that were answered, by the class of the status; none: their client was gone before.",
    labels: &["route", "status"],
};
const ACTIVE: Family = Family {
    name: "portcullis_http_requests_active",
    help: "Requests that are being answered now.",
    labels: &["route"],
};
const DURATION: Family = Family {
    name: "portcullis_http_request_duration_seconds",
    help: "Time from the head of a request to the last byte of its answer.",
    labels: &["route"],
};
const RETRIES: Family = Family {
    name: "portcullis_http_retries_total",
    help: "Requests that were sent to a backend another time.",
    labels: &["route"],
};
const REUSED: Family = Family {
    name: "portcullis_http_backend_connections_total",
    help: "Requests that were sent to a backend, by whether their connection had been used before.",
    labels: &["route", "connection"],
};

const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// The metrics of a route.
#[derive(Debug)]
pub(super) struct Metrics {
    classes: [Counter; CLASSES.len()],
    pub(super) active: Gauge,
    duration: Histogram,
    pub(super) retries: Counter,
    reused: Counter,
    new: Counter,
}

impl Metrics {
    pub(super) fn new(route: &Arc<str>, registry: &Registry) -> Self {
        Self {
            classes: CLASSES.map(|class| registry.counter(&REQUESTS, &[route, class])),
            active: registry.gauge(&ACTIVE, &[route]),
            duration: registry.histogram(&DURATION, &[route]),
            retries: registry.counter(&RETRIES, &[route]),
            reused: registry.counter(&REUSED, &[route, "reused"]),
            new: registry.counter(&REUSED, &[route, "new"]),
        }
    }

    /// A request is over.
    pub(super) fn done(&self, status: Option<StatusCode>, took: Duration) {
        let class = status.map_or(CLASSES.len() - 1, |status| usize::from(status.as_u16() / 100) - 1);
        if let Some(counter) = self.classes.get(class).or(self.classes.last()) {
            counter.increment(1);
        }
        self.duration.record(took);
    }

    /// A request goes to a backend.
    pub(super) fn sent(&self, reused: bool) {
        if reused { self.reused.increment(1) } else { self.new.increment(1) }
    }
}
