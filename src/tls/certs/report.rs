//! What is told of certificates: metrics, and warnings before they end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use metrics::{Counter, Gauge};
use tracing::{error, warn};

use super::certificate::Certificate;
use super::error::CertificateError;
use super::store::Store;
use crate::telemetry::{Family, Registry};

const ERRORS: Family = Family {
    name: "portcullis_tls_certificate_errors_total",
    help: "Files of certificates that were found to be bad; a certificate that was good before stays.",
    labels: &[],
};
const CERTIFICATES: Family = Family {
    name: "portcullis_tls_certificates",
    help: "Certificates that were read and are good, expired ones included.",
    labels: &[],
};
const NOT_AFTER: Family = Family {
    name: "portcullis_tls_certificate_not_after_timestamp_seconds",
    help: "When the certificate with this first name ends; NaN when it is gone. Beyond 1,000 names: other, the first of them to end.",
    labels: &["certificate"],
};

/// Names with a series of their own. Series are never dropped, so that it counts those that are gone, too.
const MAX_SERIES: usize = 1000;
const OTHER: &str = "other";
/// Lines of a kind at one look: a folder may be full of them.
const MAX_LINES: usize = 20;
const DAY: i64 = 24 * 60 * 60;
/// Days before its end at which a certificate is warned of.
const DAYS: [i64; 4] = [1, 3, 7, 14];
/// It is not warned of before this share of its life is left: one of six days is not always about to end.
const LEFT: i64 = 3;

/// What has been told so far.
#[derive(Debug)]
pub(super) struct Report {
    registry: Arc<Registry>,
    errors: Counter,
    certificates: Gauge,
    /// How many of them are counted in it: there may be several stores.
    counted: usize,
    ends: HashMap<String, Gauge>,
    other: Option<Gauge>,
    /// What each certificate was last warned of, by its file and its end.
    warned: HashMap<(Box<Path>, i64), Term>,
}

/// Where in its life a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    /// Not valid yet.
    Early,
    Good,
    /// So many days before its end, or less.
    Ends(i64),
    Over,
}

impl Report {
    pub(super) fn new(registry: &Arc<Registry>) -> Self {
        Self {
            registry: Arc::clone(registry),
            errors: registry.counter(&ERRORS, &[]),
            certificates: registry.gauge(&CERTIFICATES, &[]),
            counted: 0,
            ends: HashMap::new(),
            other: None,
            warned: HashMap::new(),
        }
    }

    /// Tells of errors and warnings, and counts the former.
    pub(super) fn tell(&self, errors: &[CertificateError]) {
        for (index, problem) in errors.iter().enumerate() {
            let file = problem.path().display();
            if !problem.is_warning() {
                self.errors.increment(1);
            }
            if index >= MAX_LINES {
                continue;
            }
            if problem.is_warning() {
                warn!(%file, warning = problem.told(), "certificate");
            } else {
                error!(%file, error = problem.told(), "certificate not read; the one before stays, if there was one");
            }
        }
        if let Some(more @ 1..) = errors.len().checked_sub(MAX_LINES) {
            error!(more, "more files of certificates are bad; `portcullis check` tells of all");
        }
    }

    /// Shows how many there are and when they end.
    #[allow(clippy::cast_precision_loss, reason = "counts, and seconds of Unix time, are far below 2^52")]
    pub(super) fn show(&mut self, store: &Store) {
        self.certificates.increment(store.len() as f64 - self.counted as f64);
        self.counted = store.len();
        let (mut ends, mut other) = (BTreeMap::new(), None);
        let mut known = self.ends.len();
        // The first to end comes first, so that it is the one that counts of several with one name.
        for certificate in store.served() {
            let label = certificate.label();
            if ends.contains_key(&label) {
                continue;
            }
            if !self.ends.contains_key(&label) {
                if known >= MAX_SERIES {
                    other.get_or_insert(certificate.not_after());
                    continue;
                }
                known += 1;
            }
            ends.insert(label, certificate.not_after());
        }
        for (label, gauge) in &self.ends {
            if !ends.contains_key(label) {
                gauge.set(f64::NAN);
            }
        }
        for (label, end) in ends {
            let registry = &self.registry;
            let new = || registry.gauge(&NOT_AFTER, &[&label]);
            self.ends.entry(label.clone()).or_insert_with(new).set(end as f64);
        }
        if other.is_some() || self.other.is_some() {
            let gauge = self.other.get_or_insert_with(|| self.registry.gauge(&NOT_AFTER, &[OTHER]));
            gauge.set(other.map_or(f64::NAN, |end| end as f64));
        }
    }

    /// Warns of certificates that are about to end, or are not valid; of each once for each term.
    pub(super) fn warn(&mut self, store: &Store, now: i64) {
        let mut lines = 0;
        let mut all = HashSet::new();
        for certificate in store.served() {
            let term = Term::of(certificate, now);
            if term == Term::Good {
                continue;
            }
            let key = (Box::from(certificate.file()), certificate.not_after());
            if self.warned.insert(key.clone(), term) != Some(term) {
                lines += 1;
                if lines <= MAX_LINES {
                    term.tell(certificate, now);
                }
            }
            all.insert(key);
        }
        self.warned.retain(|key, _| all.contains(key));
        if let Some(more @ 1..) = lines.checked_sub(MAX_LINES) {
            warn!(more, "more certificates are about to end, or are not valid");
        }
    }
}

impl Drop for Report {
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn drop(&mut self) {
        self.certificates.decrement(self.counted as f64);
        self.ends.values().for_each(|gauge| gauge.set(f64::NAN));
    }
}

impl Term {
    pub(super) fn of(certificate: &Certificate, now: i64) -> Self {
        let (from, to) = (certificate.not_before(), certificate.not_after());
        let left = to.saturating_sub(now);
        if left < 0 {
            return Self::Over;
        }
        if now < from {
            return Self::Early;
        }
        let near = left <= to.saturating_sub(from) / LEFT;
        let days = DAYS.into_iter().find(|days| left <= days * DAY);
        days.filter(|_| near).map_or(Self::Good, Self::Ends)
    }

    fn tell(self, certificate: &Certificate, now: i64) {
        let (name, file) = (certificate.label(), certificate.file().display());
        let hours = |seconds: i64| seconds.unsigned_abs().div_ceil(60 * 60);
        match self {
            Self::Good => {}
            Self::Early => {
                let hours = hours(certificate.not_before().saturating_sub(now));
                warn!(certificate = name, %file, hours, "this certificate becomes valid only in so many hours");
            }
            Self::Ends(_) => {
                let left = certificate.not_after().saturating_sub(now);
                let (days, hours) = (left / DAY, hours(left));
                warn!(certificate = name, %file, days, hours, "this certificate is about to end");
            }
            Self::Over => {
                let hours = hours(certificate.not_after().saturating_sub(now));
                warn!(certificate = name, %file, hours, "this certificate has expired, so many hours ago, and is still served");
            }
        }
    }
}
