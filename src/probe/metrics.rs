//! What the rounds of a running process found, as metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::lint::{Findings, What};
use super::plan::Scope;
use super::round::{Failure, Seen};
use crate::telemetry::{Family, Registry};

const NOT_AFTER: Family = Family {
    name: "portcullis_backend_certificate_not_after_timestamp_seconds",
    help: "When the certificate of a backend ends, as the last probe saw it; the first one of several.",
    labels: &["route", "backend"],
};
const INFO: Family = Family {
    name: "portcullis_backend_tls_info",
    help: "What the last probe of a backend agreed on; 1 while that is so.",
    labels: &["route", "backend", "version", "group", "alpn"],
};
const POST_QUANTUM: Family = Family {
    name: "portcullis_backend_tls_post_quantum",
    help: "Whether the key exchange of the last probe withstands a quantum computer, at each address; 1 or 0.",
    labels: &["route", "backend"],
};
const COALESCING: Family = Family {
    name: "portcullis_backend_coalescing",
    help: "Whether requests for names of the other route may come to the backends of this one; 1 or 0.",
    labels: &["route", "other"],
};
const FAILURES: Family = Family {
    name: "portcullis_backend_probe_failures_total",
    help: "Probes of backends that came to no handshake.",
    labels: &["route"],
};
const LAST_ROUND: Family = Family {
    name: "portcullis_backend_probe_last_round_timestamp_seconds",
    help: "When backends were probed last.",
    labels: &[],
};

/// Backends of a route that have a label of their own; all others are `other`.
const BACKENDS: usize = 200;
const OTHER: &str = "other";

/// The metrics of the rounds.
pub(super) struct Metrics {
    registry: Arc<Registry>,
    /// The backends that have labels, by route.
    labels: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// What stands since the last round.
    shown: Shown,
}

/// Values by labels.
#[derive(Default)]
struct Shown {
    not_after: BTreeMap<[Arc<str>; 2], f64>,
    info: BTreeSet<[Arc<str>; 5]>,
    post_quantum: BTreeMap<[Arc<str>; 2], f64>,
    coalescing: BTreeSet<[Arc<str>; 2]>,
}

impl Metrics {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, labels: HashMap::new(), shown: Shown::default() }
    }

    /// Shows what a round has found, and nothing of those before.
    pub(super) fn show(&mut self, scope: &Scope, seen: &[Seen], findings: &Findings, now: i64) {
        let mut next = Shown::default();
        for seen in seen {
            let Some(route) = scope.route(seen.aim.route) else { continue };
            let route = Arc::clone(&route.name);
            match &seen.outcome {
                Ok(facts) => {
                    let labels = [Arc::clone(&route), self.label(&route, &seen.aim.backend)];
                    next.add(labels, facts);
                }
                Err(Failure::Ours(_)) => {}
                Err(Failure::OldTls | Failure::Other(_)) => {
                    self.registry.counter(&FAILURES, &[&route]).increment(1);
                }
            }
        }
        for finding in &findings.all {
            if let What::Coalescing { other, .. } = &finding.what {
                next.coalescing.insert([Arc::clone(&finding.route.name), Arc::clone(&other.name)]);
            }
        }
        self.replace(next);
        #[allow(clippy::cast_precision_loss, reason = "seconds of Unix time are far below 2^52")]
        self.registry.gauge(&LAST_ROUND, &[]).set(now as f64);
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        self.replace(Shown::default());
    }

    fn label(&mut self, route: &Arc<str>, backend: &Arc<str>) -> Arc<str> {
        let known = self.labels.entry(Arc::clone(route)).or_default();
        if known.contains(backend) {
            return Arc::clone(backend);
        }
        if known.len() >= BACKENDS {
            return OTHER.into();
        }
        known.insert(Arc::clone(backend));
        Arc::clone(backend)
    }

    /// Series cannot be taken back: what is no more has a value that says so.
    fn replace(&mut self, next: Shown) {
        let set = |family: &Family, labels: &[Arc<str>], value: f64| {
            let labels: Vec<&str> = labels.iter().map(AsRef::as_ref).collect();
            self.registry.gauge(family, &labels).set(value);
        };
        let before = std::mem::take(&mut self.shown);
        // 0 would be an end long ago, which alerts would ring for.
        before.not_after.keys().for_each(|labels| set(&NOT_AFTER, labels, f64::NAN));
        before.post_quantum.keys().for_each(|labels| set(&POST_QUANTUM, labels, f64::NAN));
        before.info.difference(&next.info).for_each(|labels| set(&INFO, labels, 0.0));
        before.coalescing.difference(&next.coalescing).for_each(|labels| set(&COALESCING, labels, 0.0));
        next.not_after.iter().for_each(|(labels, end)| set(&NOT_AFTER, labels, *end));
        next.post_quantum.iter().for_each(|(labels, is)| set(&POST_QUANTUM, labels, *is));
        next.info.iter().for_each(|labels| set(&INFO, labels, 1.0));
        next.coalescing.iter().for_each(|labels| set(&COALESCING, labels, 1.0));
        self.shown = next;
    }
}

impl Shown {
    fn add(&mut self, labels: [Arc<str>; 2], facts: &super::Facts) {
        let agreed = &facts.agreed;
        let [route, backend] = labels.clone();
        // What was chosen is what was offered, which the configuration says.
        self.info.insert([
            route,
            backend,
            agreed.version.into(),
            agreed.group.into(),
            agreed.alpn_text().into(),
        ]);
        let post_quantum = self.post_quantum.entry(labels.clone()).or_insert(1.0);
        *post_quantum = post_quantum.min(f64::from(u8::from(agreed.post_quantum)));
        if let Some(certificate) = &facts.certificate {
            #[allow(clippy::cast_precision_loss, reason = "seconds of Unix time are far below 2^52")]
            let end = certificate.not_after as f64;
            let not_after = self.not_after.entry(labels).or_insert(end);
            *not_after = not_after.min(end);
        }
    }
}
