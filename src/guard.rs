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

use ipnet::IpNet;
use metrics::{Counter, Gauge};
use serde::Serialize;
use tracing::debug;

use crate::config::{BanRule, LimitAction, Limits};
use crate::net::Throttle;
use crate::telemetry::{Family, Registry};

mod acl;
mod bans;
mod cap;
mod lists;
mod rules;
mod strikes;
mod table;

pub use acl::Acl;
use bans::Bans;
pub use bans::{BanError, BanStatus};
use cap::Cap;
pub use cap::{Hold, Holding};
use lists::Lists;
use rules::{Rule, Rules, Taken};
use strikes::Strikes;

const BANS: Family = Family {
    name: "portcullis_bans_total",
    help: "Networks banned, by the rule or by hand.",
    labels: &["by"],
};
const BANS_ACTIVE: Family =
    Family { name: "portcullis_bans_active", help: "Networks that are banned now.", labels: &[] };

/// All limits of one process and what is counted against them.
#[derive(Debug)]
pub struct Guard {
    lists: Lists,
    bans: Arc<Bans>,
    banning: Banning,
    rules: Arc<Rules>,
}

/// Why a connection is refused, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its address is in a denied network, or in none of the allowed ones.
    Acl,
    /// Its address is banned.
    Banned,
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
    /// No limit by source concerns it, of its route neither: its address is exempt, or it is a proxy's own.
    exempt: bool,
}

/// Who is banned by rule, and what is counted of bans.
#[derive(Debug)]
struct Banning {
    strikes: Option<Arc<Strikes>>,
    reason: Arc<str>,
    active: Gauge,
    by_rule: Counter,
    by_hand: Counter,
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
        Self {
            lists: Lists::new(limits, registry),
            bans: Arc::new(Bans::new()),
            banning: Banning::new(limits.ban, None, registry),
            rules: Arc::new(rules),
        }
    }

    /// The guard of the next generation: with `limits`, and what this one knows. A limit keeps its table when its
    /// name and all that the table depends on stay the same: `per`, `rate` and `bandwidth`. Permits given out
    /// before release what they took, in the tables where they took it. The cap on connections in all is `total` from
    /// now on, for both; bans are those of both.
    #[must_use]
    pub fn renewed(&self, limits: &Limits, total: usize, registry: &Registry) -> Self {
        self.rules.cap.resize(total);
        let cap = Arc::clone(&self.rules.cap);
        let rules = Rules::new(&limits.by_source, cap, Some(&self.rules), registry);
        Self {
            lists: Lists::new(limits, registry),
            bans: Arc::clone(&self.bans),
            banning: Banning::new(limits.ban, Some(&self.banning), registry),
            rules: Arc::new(rules),
        }
    }

    /// Admits a connection from `client` at `now`, or says why not. Costs one lookup in the lists, one in the bans if
    /// there are any, and one in the table of each limit for this `listener`, under the lock of one of its shards.
    /// It takes all of them or none.
    ///
    /// # Errors
    /// The first limit that it would break.
    pub fn admit(&self, client: IpAddr, listener: &str, now: Instant) -> Result<ConnPermit, Rejection> {
        self.allows(client, now)?;
        let exempt = self.lists.exempts(client);
        let taken = match exempt {
            true => Taken::Nothing,
            false => self.rules.take_at_accept(client, listener, now)?,
        };
        Ok(ConnPermit { rules: Arc::clone(&self.rules), taken, in_total: false, exempt })
    }

    /// Counts a refusal by a limit, which may earn the client a ban. One that is only put off is none yet.
    pub fn refused(&self, rejection: &Rejection, client: IpAddr, now: Instant) {
        if let Some(rule) = &rejection.rule {
            rule.count_rejection();
            self.strike(client, now);
        }
    }

    /// Counts a malformed hello, or what is as bad: it may earn the client a ban.
    pub fn strike(&self, client: IpAddr, now: Instant) {
        if let Some(strikes) = &self.banning.strikes
            && !self.lists.exempts(client)
            && let Some(network) = strikes.strike(client, now)
        {
            debug!(%network, "banned by rule");
            self.bans.ban_source(network, strikes.rule.length, &self.banning.reason, now);
            self.banning.by_rule.increment(1);
        }
    }

    /// Bans a network for a time, in the place of a ban that it has already.
    ///
    /// # Errors
    /// When there are as many bans as there may be.
    pub fn ban(&self, network: IpNet, length: Duration, reason: &str, now: Instant) -> Result<(), BanError> {
        self.bans.ban(network, length, reason, now)?;
        self.banning.by_hand.increment(1);
        Ok(())
    }

    /// Lifts the ban of exactly this network; whether there was one.
    pub fn unban(&self, network: IpNet, now: Instant) -> bool {
        self.bans.unban(network, now)
    }

    /// The bans that are left, in the order in which they end.
    pub fn bans(&self, now: Instant) -> Vec<BanStatus> {
        self.bans.all(now)
    }

    /// Room to hold a connection that a limit refuses; `None` when as many are held as may be.
    pub fn hold(&self, why: Holding) -> Option<Hold> {
        Cap::hold(&self.rules.cap, why, true)
    }

    /// Admits a connection of a trusted proxy, whose client is not known yet: it counts in all, and on no address until
    /// [`ConnPermit::count_for`].
    pub fn admit_unnamed(&self) -> ConnPermit {
        ConnPermit { rules: Arc::clone(&self.rules), taken: Taken::Nothing, in_total: false, exempt: false }
    }

    /// Whether the lists and the bans allow `client`, which is counted nowhere.
    ///
    /// # Errors
    /// [`Reason::Acl`] or [`Reason::Banned`].
    pub fn allows(&self, client: IpAddr, now: Instant) -> Result<(), Rejection> {
        let refused = |reason| Err(Rejection { reason, rule: None, retry_after: Duration::MAX });
        match () {
            () if !self.lists.allows(client) => refused(Reason::Acl),
            () if !self.lists.exempts(client) && self.bans.concern(client, now) => refused(Reason::Banned),
            () => Ok(()),
        }
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

    /// Sets the gauges and forgets the bans that have ended; to be called every few seconds.
    pub fn upkeep(&self, now: Instant) {
        self.rules.all().for_each(Rule::upkeep);
        #[allow(clippy::cast_precision_loss, reason = "the table is bounded")]
        self.banning.active.set(self.bans.upkeep(now) as f64);
    }
}

impl Banning {
    /// The same rule goes on with what it has counted.
    fn new(rule: Option<BanRule>, before: Option<&Self>, registry: &Registry) -> Self {
        let known = before.and_then(|before| before.strikes.clone());
        let strikes = rule.map(|rule| match known.filter(|known| known.rule == rule) {
            Some(known) => known,
            None => Arc::new(Strikes::new(rule)),
        });
        Self {
            strikes,
            reason: Arc::from("rule"),
            active: registry.gauge(&BANS_ACTIVE, &[]),
            by_rule: registry.counter(&BANS, &["rule"]),
            by_hand: registry.counter(&BANS, &["hand"]),
        }
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

    /// The client is known: from now on the connection counts on its address as if that had connected.
    ///
    /// # Errors
    /// The limit that it would break.
    pub fn count_for(
        &mut self,
        guard: &Guard,
        client: IpAddr,
        listener: &str,
        now: Instant,
    ) -> Result<(), Rejection> {
        // What it was counted on before, if on anything, goes with the other permit.
        let mut other = guard.admit(client, listener, now)?;
        std::mem::swap(&mut self.taken, &mut other.taken);
        std::mem::swap(&mut self.rules, &mut other.rules);
        self.exempt = other.exempt;
        Ok(())
    }

    /// The trusted proxy names nobody: the connection is its own, which no limit by source concerns, since its address
    /// is that of everybody behind it. The lists and the bans do.
    ///
    /// # Errors
    /// [`Reason::Acl`] or [`Reason::Banned`].
    pub fn count_for_nobody(&mut self, guard: &Guard, proxy: IpAddr, now: Instant) -> Result<(), Rejection> {
        guard.allows(proxy, now)?;
        self.exempt = true;
        Ok(())
    }

    /// Counts a malformed hello of this connection, unless nobody was named whose it is: see [`Guard::strike`].
    pub fn strike(&self, guard: &Guard, client: IpAddr, now: Instant) {
        if !self.exempt {
            guard.strike(client, now);
        }
    }

    /// Takes over the place in the cap that the connection had while it was held.
    pub fn take_place_of(&mut self, hold: Hold) {
        self.in_total |= hold.give_place();
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
    pub const ALL: [Self; 5] = [Self::Acl, Self::Banned, Self::RateLimit, Self::ConnLimit, Self::BeforeHello];

    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::Banned => "banned",
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
