//! The limits of one generation of the configuration, over tables that it may share with the one before.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use metrics::{Counter, Gauge};

use super::cap::Cap;
use super::table::{Breach, Caps, Slot, Table};
use super::{LimitStatus, Rejection};
use crate::config::LimitConfig;
use crate::net::Bucket;
use crate::telemetry::{Family, Registry};

const REJECTIONS: Family = Family {
    name: "portcullis_limit_rejections_total",
    help: "Connections refused by a limit.",
    labels: &["limit"],
};
const SOURCES: Family =
    Family { name: "portcullis_ratelimit_keys", help: "Sources that a limit remembers.", labels: &["limit"] };

/// All limits, those that act at accept and those of routes, and the cap on connections in all.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Box<[Arc<Rule>]>,
    /// Whether any limit waits for a route, or limits bandwidth: most configurations have neither.
    of_routes: bool,
    of_bandwidth: bool,
    pub(super) cap: Arc<Cap>,
}

/// A limit and its table.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) limit: LimitConfig,
    caps: Caps,
    table: Arc<Table>,
    rejections: Counter,
    sources: Gauge,
}

/// What a connection counts for. For one limit, which all have by default, it takes no allocation.
#[derive(Debug, Default)]
pub(super) enum Taken {
    #[default]
    Nothing,
    One(Slot),
    #[allow(
        clippy::box_collection,
        reason = "thin: it is in every connection, and seldom more than one slot"
    )]
    Many(Box<Vec<Slot>>),
}

impl Rules {
    /// The rules for `limits`, which keep what `before` remembers.
    pub(super) fn new(
        limits: &[LimitConfig],
        cap: Arc<Cap>,
        before: Option<&Self>,
        registry: &Registry,
    ) -> Self {
        let known = |limit: &LimitConfig| {
            let same = |rule: &&Rule| rule.limit.name == limit.name && rule.table.serves(limit);
            before?.all().find(same).map(|rule| Arc::clone(&rule.table))
        };
        let rule = |limit: &LimitConfig| {
            let table = known(limit).unwrap_or_else(|| Arc::new(Table::new(limit)));
            Arc::new(Rule::new(limit, table, registry))
        };
        let rules: Box<[_]> = limits.iter().map(rule).collect();
        for gone in before.into_iter().flat_map(Self::all) {
            if limits.iter().all(|limit| limit.name != gone.limit.name) {
                gone.sources.set(0.0);
            }
        }
        Self {
            of_routes: limits.iter().any(|limit| limit.routes.is_some()),
            of_bandwidth: limits.iter().any(|limit| limit.bandwidth.is_some()),
            rules,
            cap,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|rule| &**rule)
    }

    /// Counts a connection against all limits of the listener that wait for no route, or none.
    pub(super) fn take_at_accept(
        &self,
        client: IpAddr,
        listener: &str,
        now: Instant,
    ) -> Result<Taken, Rejection> {
        let mut taken = Taken::Nothing;
        self.take(&mut taken, client, now, |limit| {
            limit.routes.is_none() && limit.is_for_listener(listener)
        })?;
        Ok(taken)
    }

    /// Counts it against all limits of its route, or none of these.
    pub(super) fn take_of_route(
        &self,
        taken: &mut Taken,
        client: IpAddr,
        listener: &str,
        route: &str,
        now: Instant,
    ) -> Result<(), Rejection> {
        if !self.of_routes {
            return Ok(());
        }
        let concerns = |limit: &LimitConfig| limit.is_for_route(route) && limit.is_for_listener(listener);
        self.take(taken, client, now, concerns)
    }

    fn take(
        &self,
        taken: &mut Taken,
        client: IpAddr,
        now: Instant,
        concerns: impl Fn(&LimitConfig) -> bool,
    ) -> Result<(), Rejection> {
        let before = taken.len();
        for (index, rule) in (0u16..).zip(&self.rules) {
            if !concerns(&rule.limit) {
                continue;
            }
            match rule.table.take(client, index, rule.caps, now) {
                Ok(slot) => taken.push(slot),
                Err(Breach { reason, retry_after }) => {
                    while taken.len() > before
                        && let Some(slot) = taken.pop()
                    {
                        self.with_table(slot.rule, |table| table.give_back(slot, now));
                    }
                    return Err(Rejection { reason, rule: Some(Arc::clone(rule)), retry_after });
                }
            }
        }
        Ok(())
    }

    pub(super) fn hello_done(&self, taken: &mut Taken) {
        for slot in taken.slots_mut() {
            self.with_table(slot.rule, |table| table.hello_done(slot));
        }
    }

    /// The connection has ended.
    pub(super) fn release(&self, taken: &mut Taken) {
        let slots = taken.slots_mut();
        if slots.is_empty() {
            return;
        }
        let now = Instant::now();
        for slot in slots {
            self.with_table(slot.rule, |table| table.release(slot, now));
        }
    }

    /// What the connection's bytes are taken from.
    pub(super) fn buckets(&self, taken: &Taken, now: Instant) -> Vec<Arc<Bucket>> {
        if !self.of_bandwidth {
            return Vec::new();
        }
        let bucket = |slot: &Slot| self.rules.get(usize::from(slot.rule))?.table.bucket(slot, now);
        taken.slots().iter().filter_map(bucket).collect()
    }

    fn with_table(&self, rule: u16, work: impl FnOnce(&Table)) {
        if let Some(rule) = self.rules.get(usize::from(rule)) {
            work(&rule.table);
        }
    }
}

impl Rule {
    fn new(limit: &LimitConfig, table: Arc<Table>, registry: &Registry) -> Self {
        // A route is known by the hello only. The table may serve a limit that counts those without later on.
        let before_hello = limit.routes.is_none().then(|| limit.before_hello.unwrap_or(u32::MAX));
        Self {
            caps: Caps { connections: limit.connections.unwrap_or(u32::MAX), before_hello },
            table,
            rejections: registry.counter(&REJECTIONS, &[&limit.name]),
            sources: registry.gauge(&SOURCES, &[&limit.name]),
            limit: limit.clone(),
        }
    }

    pub(super) fn count_rejection(&self) {
        self.table.count_rejection();
        self.rejections.increment(1);
    }

    pub(super) fn status(&self) -> LimitStatus {
        LimitStatus {
            name: self.limit.name.to_string(),
            sources: self.table.len(),
            rejections: self.table.rejections(),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "the table is bounded")]
    pub(super) fn upkeep(&self) {
        self.sources.set(self.table.len() as f64);
    }
}

impl Taken {
    fn len(&self) -> usize {
        self.slots().len()
    }

    fn slots(&self) -> &[Slot] {
        match self {
            Self::Nothing => &[],
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        match self {
            Self::Nothing => &mut [],
            Self::One(slot) => std::slice::from_mut(slot),
            Self::Many(slots) => slots,
        }
    }

    fn push(&mut self, slot: Slot) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(slot),
            Self::One(first) => Self::Many(Box::new(vec![first, slot])),
            Self::Many(mut slots) => {
                slots.push(slot);
                Self::Many(slots)
            }
        };
    }

    fn pop(&mut self) -> Option<Slot> {
        match std::mem::take(self) {
            Self::Nothing => None,
            Self::One(slot) => Some(slot),
            Self::Many(mut slots) => {
                let slot = slots.pop();
                *self = Self::Many(slots);
                slot
            }
        }
    }
}
