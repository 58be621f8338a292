//! Rounds of a running process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::lint::{Finding, Findings, Key, What, lint};
use super::metrics::Metrics;
use super::plan::Scope;
use super::round::{Failure, Seen, run};
use crate::telemetry::Registry;
use crate::tls::inspect::Authorities;
use crate::upstream::health::share;

/// The first round begins within so much time, and one after a reload: who changes something wants to know.
const FIRST: Duration = Duration::from_secs(1);
/// Nothing is due before another configuration comes.
const NEVER: Duration = Duration::from_secs(30 * 86_400);

/// What probes the backends again and again.
pub struct Watch {
    metrics: Metrics,
    /// What the last round found, of those that it could not ask what the ones before did.
    standing: BTreeMap<Key, Finding>,
}

/// By the names of route and backend.
type Failed = BTreeMap<(Arc<str>, Arc<str>), bool>;

/// A finding that is new, or is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    New(Finding),
    Gone(Finding),
}

impl Watch {
    /// Nothing is known.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { metrics: Metrics::new(registry), standing: BTreeMap::new() }
    }

    /// Makes a round now and then, in `current`'s time, give or take a tenth, and soon after `changed`; none while that gives
    /// none. Ends when dropped, which closes all connections.
    pub async fn run(mut self, changed: Arc<Notify>, current: impl Fn() -> Option<(Duration, Scope)>) {
        let mut due = Instant::now() + share(FIRST, 0, 1000);
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = changed.notified() => {
                    due = Instant::now() + share(FIRST, 0, 1000);
                    continue;
                }
            }
            let start = Instant::now();
            let Some((interval, scope)) = current() else {
                self.forget();
                due = start + NEVER;
                continue;
            };
            self.round(scope).await;
            due = start + share(interval, 900, 1100);
        }
    }

    async fn round(&mut self, scope: Scope) {
        // Read anew each time: an authority may have come. Files may be slow, and this runtime has one thread.
        let Ok(authorities) = tokio::task::spawn_blocking(Authorities::of_the_system).await else { return };
        let seen = run(&scope.plan, &Arc::new(authorities)).await;
        let now = jiff::Timestamp::now().as_second();
        // Thousands of names take their time.
        let looked = tokio::task::spawn_blocking(move || (lint(&scope, &seen, now), scope, seen)).await;
        let Ok((findings, scope, seen)) = looked else { return };
        let failed = failed(&scope, &seen);
        let Findings { all, more } = findings;
        let (standing, news) = compare(&self.standing, all, &failed);
        self.standing = standing;
        news.iter().for_each(tell);
        let all = self.standing.values().cloned().collect();
        self.metrics.show(&scope, &seen, &Findings { all, more }, now);
        let (left_out, unnamed) = (scope.plan.left_out, scope.plan.unnamed.len());
        info!(
            probes = seen.len(),
            failed = seen.iter().filter(|seen| seen.outcome.is_err()).count(),
            findings = self.standing.len() + more,
            left_out,
            unnamed,
            "the backends were probed"
        );
    }

    fn forget(&mut self) {
        self.standing.clear();
        self.metrics.forget();
    }
}

/// Backends with which there was no handshake, by route, and whether that is of this machine's making.
fn failed(scope: &Scope, seen: &[Seen]) -> Failed {
    let mut failed = Failed::new();
    for seen in seen {
        if let (Err(failure), Some(route)) = (&seen.outcome, scope.route(seen.aim.route)) {
            let backend = (Arc::clone(&route.name), Arc::clone(&seen.aim.backend));
            *failed.entry(backend).or_default() |= matches!(failure, Failure::Ours(_));
        }
    }
    failed
}

/// What stands after a round that has `found` this, and what is new. A backend that was not heard has not become better.
pub(super) fn compare(
    before: &BTreeMap<Key, Finding>,
    found: Vec<Finding>,
    failed: &Failed,
) -> (BTreeMap<Key, Finding>, Vec<News>) {
    let mut standing: BTreeMap<Key, Finding> = BTreeMap::new();
    let mut news = Vec::new();
    for finding in found {
        let key = finding.key();
        if !before.contains_key(&key) {
            news.push(News::New(finding.clone()));
        }
        standing.insert(key, finding);
    }
    for (key, finding) in before {
        if standing.contains_key(key) {
            continue;
        }
        // That there was no handshake is found again while it is so.
        let of_handshake = matches!(finding.what, What::NoHandshake { .. } | What::OldTls);
        let unknown = |backend: &Arc<str>| {
            let ours = failed.get(&(Arc::clone(&finding.route.name), Arc::clone(backend)));
            ours.is_some_and(|ours| *ours || !of_handshake)
        };
        if finding.backends.iter().any(unknown) {
            standing.insert(key.clone(), finding.clone());
        } else {
            news.push(News::Gone(finding.clone()));
        }
    }
    (standing, news)
}

fn tell(news: &News) {
    match news {
        News::New(finding) => {
            let (kind, route) = (finding.what.kind(), &finding.route.name);
            warn!(kind, %route, %finding, "something is wrong with the TLS of a backend");
        }
        News::Gone(finding) => {
            let (kind, route) = (finding.what.kind(), &finding.route.name);
            info!(kind, %route, %finding, "no longer wrong with the TLS of a backend");
        }
    }
}
