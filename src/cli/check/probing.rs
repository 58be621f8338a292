//! `check --probe`: one round of handshakes with the backends.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::config::Config;
use crate::net::OwnListeners;
use crate::probe::{Findings, Scope, Seen, findings_to_json, lint, run, seen_to_json, table};
use crate::route::RouteId;
use crate::telemetry::Registry;
use crate::tls::inspect::Authorities;
use crate::upstream::{Pools, Resolver};

/// What a round came to.
pub(super) struct Probed {
    scope: Scope,
    seen: Vec<Seen>,
    findings: Findings,
    now: i64,
}

/// Makes a round.
pub(super) fn probe(config: &Config) -> anyhow::Result<Probed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let registry = Arc::new(Registry::new()?);
        let mut resolver = Resolver::new(&config.dns, &registry);
        // Which of them is a process that runs is nothing that this one knows.
        let own = Arc::new(OwnListeners::default());
        let pools = Pools::new(config, None, &mut resolver, &own, &registry);
        resolver.start(&Handle::current())?;
        // As at a start; names that have no address then are told.
        let _ = timeout(config.dns.timeout, resolver.first_answers()).await;
        pools.refresh();
        let scope = Scope::new(config, &pools);
        let seen = Box::pin(run(&scope.plan, &Arc::new(Authorities::of_the_system()))).await;
        let now = jiff::Timestamp::now().as_second();
        let findings = lint(&scope, &seen, now);
        Ok(Probed { scope, seen, findings, now })
    })
}

impl Probed {
    /// Whether something is wrong.
    pub(super) fn has_warnings(&self) -> bool {
        !self.findings.all.is_empty()
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::from("Backends as clients see them:\n");
        out.push_str(&table(&self.scope, &self.seen, self.now));
        let mut helped = HashSet::new();
        for finding in &self.findings.all {
            let kind = finding.what.kind();
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(out, "warning: {kind}: {finding}");
            if helped.insert(kind) {
                let _ = writeln!(out, "   help: {}", finding.what.ways_out());
            }
        }
        if self.findings.more > 0 {
            let _ =
                writeln!(out, "warning: coalescing: the same of {} more pairs of routes", self.findings.more);
        }
        for (id, why) in self.passed_over() {
            if let Some(route) = self.scope.route(id) {
                let _ =
                    writeln!(out, "note: route `{}` ({}) was not probed: {why}", route.name, route.origin);
            }
        }
        if self.scope.plan.left_out > 0 {
            let _ = writeln!(out, "note: {} more handshakes were left out", self.scope.plan.left_out);
        }
        let failed = self.seen.iter().filter(|seen| seen.outcome.is_err()).count();
        let (handshakes, warnings) = (self.seen.len(), self.findings.all.len() + self.findings.more);
        let _ = writeln!(out, "probed: {handshakes} handshakes, {failed} failed, {warnings} warnings");
        out
    }

    pub(super) fn json(&self) -> Value {
        let passed_over = self.passed_over().filter_map(|(id, why)| {
            let route = self.scope.route(id)?;
            Some(json!({ "route": &*route.name, "origin": route.origin.to_string(), "why": why }))
        });
        json!({
            "seen": seen_to_json(&self.scope, &self.seen),
            "warnings": findings_to_json(&self.findings),
            "more_warnings": self.findings.more,
            "passed_over": passed_over.collect::<Value>(),
            "left_out": self.scope.plan.left_out,
        })
    }

    fn passed_over(&self) -> impl Iterator<Item = (RouteId, &'static str)> {
        let plan = &self.scope.plan;
        let unnamed =
            plan.unnamed.iter().map(|id| (*id, "no name is known that it takes; write a `[[test]]`"));
        let unknown = plan.unknown.iter().map(|id| (*id, "no address of its backends is known"));
        unnamed.chain(unknown)
    }
}
