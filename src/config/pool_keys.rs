//! What is said of a group of backends, wherever it is written.

use std::time::Duration;

use super::backend_keys::{BackendAddr, BackendTls};
use super::checks::{Health, HealthWord};
use super::decode::{Either, OneOrMany, Setting, Whole};
use super::file::{Backend, Balance, Eject, Queue, Route, Sticky, Upstream};
use super::http_keys::{Rule, Variant};
use super::source::Place;
use super::upstream::{BalanceWord, OnDown, Percent};
use super::values::{Off, WordOr};

/// What a group of backends says of all of them, be it written in an `[[upstream]]` or in a route.
pub(super) struct PoolKeys<'f> {
    pub(super) to: &'f Setting<OneOrMany<Either<BackendAddr, Backend>>>,
    pub(super) balance: &'f Setting<Either<BalanceWord, Balance>>,
    pub(super) sticky: &'f Setting<Either<WordOr<Off, Duration>, Sticky>>,
    pub(super) slow_start: &'f Setting<WordOr<Off, Duration>>,
    pub(super) max_connections: &'f Setting<WordOr<Off, Whole<1, { u32::MAX }>>>,
    pub(super) queue: &'f Setting<Either<WordOr<Off, Whole<1, 65_536>>, Queue>>,
    pub(super) eject: &'f Setting<Either<WordOr<Off, Whole<1, 1000>>, Eject>>,
    pub(super) on_down: &'f Setting<OnDown>,
    pub(super) retry_budget: &'f Setting<WordOr<Off, Percent>>,
    pub(super) health: &'f Setting<Either<HealthWord, Health>>,
    pub(super) backend_tls: &'f Setting<BackendTls>,
}

/// For all shapes that have these keys.
macro_rules! pool_keys {
    ($($shape:ty),*) => {
        $(impl $shape {
            pub(super) fn pool_keys(&self) -> PoolKeys<'_> {
                PoolKeys {
                    to: &self.to,
                    balance: &self.balance,
                    sticky: &self.sticky,
                    slow_start: &self.slow_start,
                    max_connections: &self.max_connections,
                    queue: &self.queue,
                    eject: &self.eject,
                    on_down: &self.on_down,
                    retry_budget: &self.retry_budget,
                    health: &self.health,
                    backend_tls: &self.backend_tls,
                }
            }
        })*
    };
}
pool_keys!(Upstream, Route, Rule);

/// Says nothing of its backends but where they are.
impl Variant {
    pub(super) fn pool_keys(&self) -> PoolKeys<'_> {
        PoolKeys {
            to: &self.to,
            balance: &Setting::Absent,
            sticky: &Setting::Absent,
            slow_start: &Setting::Absent,
            max_connections: &Setting::Absent,
            queue: &Setting::Absent,
            eject: &Setting::Absent,
            on_down: &Setting::Absent,
            retry_budget: &Setting::Absent,
            health: &Setting::Absent,
            backend_tls: &Setting::Absent,
        }
    }
}

impl PoolKeys<'_> {
    /// Those beside `to` that are there, with where they are.
    pub(super) fn written(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let all = [
            ("balance", self.balance.place()),
            ("sticky", self.sticky.place()),
            ("slow_start", self.slow_start.place()),
            ("max_connections", self.max_connections.place()),
            ("queue", self.queue.place()),
            ("eject", self.eject.place()),
            ("on_down", self.on_down.place()),
            ("retry_budget", self.retry_budget.place()),
            ("health", self.health.place()),
            ("backend_tls", self.backend_tls.place()),
        ];
        all.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }

    /// Whether one of them cannot be used.
    pub(super) fn any_bad(&self) -> bool {
        self.to.is_bad()
            || self.balance.is_bad()
            || self.sticky.is_bad()
            || self.slow_start.is_bad()
            || self.max_connections.is_bad()
            || self.queue.is_bad()
            || self.eject.is_bad()
            || self.on_down.is_bad()
            || self.retry_budget.is_bad()
            || self.health.is_bad()
            || self.backend_tls.is_bad()
    }
}
