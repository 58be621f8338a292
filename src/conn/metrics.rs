//! What is counted of a listener's connections.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::census::Census;
use super::peek::PeekError;
use super::termination::Termination;
use crate::peek::ClientHello;
use crate::telemetry::{Family, Registry};

const CONNECTIONS: Family = Family {
    name: "portcullis_connections_total",
    help: "Connections that ended, by what became of them; none: they ended before that was decided.",
    labels: &["listener", "action"],
};
const ACTIVE: Family =
    Family { name: "portcullis_connections_active", help: "Connections open now.", labels: &["listener"] };
const REJECTED: Family = Family {
    name: "portcullis_connections_rejected_total",
    help: "Connections refused by a limit, a route, a policy, or for their PROXY header; bad hellos are counted on their own.",
    labels: &["listener", "reason"],
};
const ACCEPT_ERRORS: Family = Family {
    name: "portcullis_accept_errors_total",
    help: "Failed calls to accept a connection; shortage: descriptors or memory ran out.",
    labels: &["listener", "kind"],
};
const INTERNAL: Family = Family {
    name: "portcullis_internal_errors_total",
    help: "Connections that a defect of this program ended.",
    labels: &["listener"],
};
const HELLO_TIME: Family = Family {
    name: "portcullis_clienthello_duration_seconds",
    help: "Time from accept until the first bytes told what the connection is.",
    labels: &["listener"],
};
const HELLO_ERRORS: Family = Family {
    name: "portcullis_clienthello_errors_total",
    help: "Connections whose first bytes told nothing usable.",
    labels: &["listener", "reason"],
};

const HANDED_OVER: Family = Family {
    name: "portcullis_connections_handed_over_total",
    help: "Connections accepted by one worker and served by another that had clearly fewer.",
    labels: &["listener"],
};

/// The metrics of a listener.
#[derive(Debug)]
pub(super) struct ListenerMetrics {
    pub(super) active: Gauge,
    actions: [Counter; Action::ALL.len()],
    rejected: [Counter; Termination::REJECTIONS.len()],
    pub(super) accept_shortage: Counter,
    pub(super) accept_other: Counter,
    pub(super) handed_over: Counter,
    pub(super) internal: Counter,
    hello_time: Histogram,
    hello_errors: [Counter; PeekError::REASONS.len()],
    census: Census,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Passed through to a backend, or meant to be.
    Passthrough,
    /// Passed to a backend without its TLS, or meant to be.
    Terminate,
    /// Its requests are answered here, or passed on one by one.
    Http,
    /// Sent to https.
    Redirect,
    /// Refused, by a route or by a policy.
    Reject,
    /// It ended before that was decided.
    None,
}

impl ListenerMetrics {
    pub(super) fn new(listener: &str, registry: &Registry) -> Self {
        let counter = |family: &Family, value: &str| registry.counter(family, &[listener, value]);
        Self {
            active: registry.gauge(&ACTIVE, &[listener]),
            actions: Action::ALL.map(|action| counter(&CONNECTIONS, action.as_str())),
            rejected: Termination::REJECTIONS.map(|reason| counter(&REJECTED, reason)),
            accept_shortage: counter(&ACCEPT_ERRORS, "shortage"),
            accept_other: counter(&ACCEPT_ERRORS, "other"),
            handed_over: registry.counter(&HANDED_OVER, &[listener]),
            internal: registry.counter(&INTERNAL, &[listener]),
            hello_time: registry.histogram(&HELLO_TIME, &[listener]),
            hello_errors: PeekError::REASONS.map(|reason| counter(&HELLO_ERRORS, reason)),
            census: Census::new(listener, registry),
        }
    }

    pub(super) fn ended(&self, action: Action) {
        let counters = Action::ALL.iter().zip(&self.actions);
        counters.filter(|(which, _)| **which == action).for_each(|(_, counter)| counter.increment(1));
    }

    /// Counts a refusal; its reason is one of [`Termination::REJECTIONS`].
    pub(super) fn rejected(&self, reason: Option<&str>) {
        let counters = Termination::REJECTIONS.iter().zip(&self.rejected);
        counters.filter(|(word, _)| Some(**word) == reason).for_each(|(_, counter)| counter.increment(1));
    }

    /// It is known after so long what a connection is: of TLS, with this hello.
    pub(super) fn hello_read(&self, took: Duration, hello: Option<&ClientHello>) {
        self.hello_time.record(took);
        if let Some(hello) = hello {
            self.census.count(hello);
        }
    }

    pub(super) fn hello_failed(&self, error: &PeekError) {
        let counters = PeekError::REASONS.iter().zip(&self.hello_errors);
        counters
            .filter(|(reason, _)| **reason == error.reason())
            .for_each(|(_, counter)| counter.increment(1));
    }
}

impl Action {
    pub(super) const ALL: [Self; 6] =
        [Self::Passthrough, Self::Terminate, Self::Http, Self::Redirect, Self::Reject, Self::None];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Terminate => "terminate",
            Self::Http => "http",
            Self::Redirect => "redirect",
            Self::Reject => "reject",
            Self::None => "none",
        }
    }
}
