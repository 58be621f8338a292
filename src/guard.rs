//! Limits by source address, before anything else is spent on a connection.
//!
//! [`Guard::admit`] is called with nothing but the address that `accept` gave: no byte was read, no task
//! started, nothing allocated. What it admits holds a [`ConnPermit`] that undoes every count when dropped.
//! A guard is the rules of one generation of the configuration over tables that outlive it: see
//! [`Guard::renewed`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{LimitAction, Limits};
use crate::net::Throttle;
use crate::telemetry::Registry;

mod acl;
mod cap;
mod lists;
mod rules;
mod table;

pub use acl::Acl;
use cap::Cap;
pub use cap::{Hold, Holding};
use lists::Lists;
use rules::{Rule, Rules, Taken};

/// All limits of one process and what is counted against them.
#[derive(Debug)]
pub struct Guard {
    lists: Lists,
    rules: Arc<Rules>,
}

/// Why a connection is refused, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its address is in a denied network, or in none of the allowed ones.
    Acl,
    /// Its source opened connections faster than allowed.
    RateLimit,
    /// Its source has as many connections as allowed.
    ConnLimit,
    /// Its source has as many connections without a hello as allowed.
    BeforeHello,
}

/// A connection that was not admitted.
#[derive(Debug)]
pub struct Rejection {
    reason: Reason,
    rule: Option<Arc<Rule>>,
    retry_after: Duration,
}

/// The right to be connected; dropping it gives back what it counts for.
#[derive(Debug)]
pub struct ConnPermit {
    rules: Arc<Rules>,
    taken: Taken,
    in_total: bool,
    /// No limit by source concerns it, of its route neither.
    exempt: bool,
}

/// A limit as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitStatus {
    /// Its name.
    pub name: String,
    /// Sources that are remembered.
    pub sources: usize,
    /// Connections refused so far.
    pub rejections: u64,
}

impl Guard {
    /// A guard with `limits`, of which `total` is how many connections there may be in all.
    pub fn new(limits: &Limits, total: usize, registry: &Registry) -> Self {
        let rules = Rules::new(&limits.by_source, Arc::new(Cap::new(total)), None, registry);
        Self { lists: Lists::new(limits, registry), rules: Arc::new(rules) }
    }

    /// The guard of the next generation: with `limits`, and what this one knows. A limit keeps its table when its
    /// name and all that the table depends on stay the same: `per`, `rate` and `bandwidth`. Permits given out
    /// before release what they took, in the tables where they took it.
    #[must_use]
    pub fn renewed(&self, limits: &Limits, total: usize, registry: &Registry) -> Self {
        self.rules.cap.resize(total);
        let cap = Arc::clone(&self.rules.cap);
        let rules = Rules::new(&limits.by_source, cap, Some(&self.rules), registry);
        Self { lists: Lists::new(limits, registry), rules: Arc::new(rules) }
    }

    /// Admits a connection from `client` at `now`, or says why not. Costs one lookup in the lists and one in the
    /// table of each limit for this `listener`, under the lock of one of its shards. It takes all of them or none.
    ///
    /// # Errors
    /// The first limit that it would break.
    pub fn admit(&self, client: IpAddr, listener: &str, now: Instant) -> Result<ConnPermit, Rejection> {
        if !self.lists.allows(client) {
            return Err(Rejection { reason: Reason::Acl, rule: None, retry_after: Duration::MAX });
        }
        let exempt = self.lists.exempts(client);
        let taken = match exempt {
            true => Taken::Nothing,
            false => self.rules.take_at_accept(client, listener, now)?,
        };
        Ok(ConnPermit { rules: Arc::clone(&self.rules), taken, in_total: false, exempt })
    }

    /// Counts a refusal, of which the client is told or not. One that is only put off is none yet.
    pub fn count(&self, rejection: &Rejection) {
        if let Some(rule) = &rejection.rule {
            rule.count_rejection();
        }
    }

    /// Room to hold a connection that a limit refuses; `None` when as many are held as may be.
    pub fn hold(&self, why: Holding) -> Option<Hold> {
        Cap::hold(&self.rules.cap, why, true)
    }

    /// Connections counted against the cap now.
    pub fn open(&self) -> usize {
        self.rules.cap.open()
    }

    /// The cap on connections in all.
    pub fn cap(&self) -> usize {
        self.rules.cap.max()
    }

    /// The limits by source, in the order in which they are looked at.
    pub fn limits(&self) -> Vec<LimitStatus> {
        self.rules.all().map(Rule::status).collect()
    }

    /// Looks at the files of the lists, and reads those that have changed. Takes as long as the disk does.
    pub fn refresh_lists(&self) {
        self.lists.refresh();
    }

    /// Sets the gauges; to be called every few seconds.
    pub fn upkeep(&self) {
        self.rules.all().for_each(Rule::upkeep);
    }
}

impl ConnPermit {
    /// Waits until the cap has room for this connection, and counts it. Whoever accepts waits here before
    /// accepting more, so that the excess stays in the kernel's queue. Cancel safe.
    pub async fn wait_for_room(&mut self) {
        if !self.in_total {
            self.rules.cap.wait().await;
            self.in_total = true;
        }
    }

    /// The hello is there: from now on the connection no longer counts among those without.
    pub fn hello_done(&mut self) {
        self.rules.hello_done(&mut self.taken);
    }

    /// The limits of the route that takes the connection: all of them or none. What it took before stays taken:
    /// a connection that was accepted and read has cost what those limits are for.
    ///
    /// # Errors
    /// The first limit that it would break.
    pub fn enter_route(
        &mut self,
        client: IpAddr,
        listener: &str,
        route: &str,
        now: Instant,
    ) -> Result<(), Rejection> {
        if self.exempt {
            return Ok(());
        }
        self.rules.take_of_route(&mut self.taken, client, listener, route, now)
    }

    /// Room to hold this connection although a limit of its route refuses it.
    pub fn hold(&self, why: Holding) -> Option<Hold> {
        Cap::hold(&self.rules.cap, why, !self.in_total)
    }

    /// What limits how fast its bytes may be relayed; `None` when nothing does.
    pub fn throttle(&self, now: Instant) -> Option<Box<Throttle>> {
        Throttle::new(self.rules.buckets(&self.taken, now))
    }
}

impl Drop for ConnPermit {
    fn drop(&mut self) {
        self.rules.release(&mut self.taken);
        if self.in_total {
            self.rules.cap.give_back();
        }
    }
}

impl Rejection {
    /// Why, in a word of a fixed list.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The name of the limit.
    pub fn limit(&self) -> Option<&Arc<str>> {
        self.rule.as_ref().map(|rule| &rule.limit.name)
    }

    /// What becomes of the connection.
    pub fn action(&self) -> LimitAction {
        self.rule.as_ref().map_or(LimitAction::Reset, |rule| rule.limit.action)
    }

    /// After which time it may be admitted, if nobody else comes.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Acl, Self::RateLimit, Self::ConnLimit, Self::BeforeHello];

    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::RateLimit => "rate_limit",
            Self::ConnLimit => "connection_limit",
            Self::BeforeHello => "before_hello",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
