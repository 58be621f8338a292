//! When certificates are ordered: a core without clock and network.
//!
//! A name is due when there is no certificate for it, or when the one there is has a third of its time left, or when the authority
//! says so (RFC 9773). A name that fails waits, longer each time; what all would fail by makes all wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// From a failure to the next attempt: the first time, and at most. Authorities allow few failures an hour and name.
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
/// The same after what all names would fail by: nothing is lost by asking once an hour whether a server is back.
const OUTAGE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// The longest that an authority may ask one to stay away.
const STAY_AWAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often an authority is asked when to renew, unless it says so: RFC 9773 §4.3.2 has six hours as an example of its answer.
const ADVICE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
const ADVICE_EVERY: Duration = Duration::from_secs(6 * 3600);
/// In this time renewals that are due at the start begin, the one after the other.
const SPREAD: Duration = Duration::from_secs(3600);

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// To order a certificate for the name.
    Order(Arc<str>),
    /// To ask when the certificate for the name is to be renewed.
    Ask(Arc<str>),
}

/// When which name is due.
#[derive(Debug)]
pub(super) struct Schedule {
    names: BTreeMap<Arc<str>, Entry>,
    rules: Rules,
    busy: usize,
    /// What all wait for, after so many failures in a row.
    outage: Option<(SystemTime, u32)>,
    random: Random,
}

/// What the configuration says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// How many orders may be under way at once.
    pub(super) at_most: usize,
    /// How long before their end certificates are renewed at the latest.
    pub(super) renew_before: Option<Duration>,
}

#[derive(Debug)]
struct Entry {
    /// The certificate that there is.
    held: Option<Validity>,
    due: SystemTime,
    failures: u32,
    /// When it failed last.
    failed: SystemTime,
    busy: bool,
    /// When to ask the authority about it.
    ask: Option<SystemTime>,
    /// What it said last, and the moment that was chosen of that.
    window: Option<((SystemTime, SystemTime), SystemTime)>,
}

/// A small generator of numbers (xorshift64*).
#[derive(Debug)]
struct Random(u64);

impl Schedule {
    /// Of no names; equal seeds give equal times.
    pub(super) fn new(rules: Rules, seed: u64) -> Self {
        Self { names: BTreeMap::new(), rules, busy: 0, outage: None, random: Random(seed | 1) }
    }

    /// From now on by these rules.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Whether it has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Keeps these names alone, and for now those that something is under way for.
    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.names.retain(|name, entry| wanted(name) || entry.busy);
    }

    /// Tries again soon what has failed: who configures may have mended why. Not more often than a first failure would allow.
    pub(super) fn hasten(&mut self, now: SystemTime) {
        self.outage = None;
        for entry in self.names.values_mut().filter(|entry| entry.failures > 0) {
            entry.due = entry.due.min(now.max(entry.failed + RETRY.0));
        }
    }

    /// Adds a name with the certificate that there is for it, and whether another authority issued that.
    pub(super) fn add(&mut self, name: Arc<str>, held: Option<Validity>, elsewhere: bool, now: SystemTime) {
        let due = match held {
            None => now,
            Some(validity) => {
                let due = if elsewhere { now } else { self.renewal(validity) };
                // Those that are due already do not all begin at once, unless there is no time to lose.
                let left = validity.not_after.duration_since(now).unwrap_or_default();
                due.max(now + self.random.below(SPREAD.min(left / 8)))
            }
        };
        let ask = held.filter(|_| !elsewhere).map(|_| now + self.random.below(SPREAD));
        self.names.insert(
            name,
            Entry { held, due, failures: 0, failed: SystemTime::UNIX_EPOCH, busy: false, ask, window: None },
        );
    }

    /// What is to be done now; it counts as under way until it is told what came of it. Otherwise, when to ask again: `None` when
    /// only something else can change that.
    pub(super) fn next(&mut self, now: SystemTime) -> Result<Work, Option<SystemTime>> {
        let resume = self.outage.map(|(until, _)| until).filter(|until| *until > now);
        if let Some(until) = resume {
            return Err(Some(until));
        }
        if self.busy >= self.rules.at_most {
            return Err(None);
        }
        let free = self.names.iter_mut().filter(|(_, entry)| !entry.busy);
        let first = |entry: &Entry| entry.ask.map_or(entry.due, |ask| ask.min(entry.due));
        // Those without a certificate go before those that have time.
        let Some((name, entry)) =
            free.min_by_key(|(_, entry)| (first(entry) > now, entry.held.is_some(), first(entry)))
        else {
            return Err(None);
        };
        if first(entry) > now {
            // The one without a certificate may come before an earlier one with.
            let free = self.names.values().filter(|entry| !entry.busy);
            return Err(free.map(first).min());
        }
        entry.busy = true;
        self.busy += 1;
        if entry.due <= now { Ok(Work::Order(Arc::clone(name))) } else { Ok(Work::Ask(Arc::clone(name))) }
    }

    /// A certificate came; gives when it is renewed.
    pub(super) fn issued(&mut self, name: &str, validity: Validity, now: SystemTime) -> SystemTime {
        self.outage = None;
        // Even one that is good for no time at all is not ordered again and again.
        let due = self.renewal(validity).max(now + RETRY.0.min(life(validity) / 4));
        let ask = now + self.random.below(ADVICE.0);
        self.end(name, |entry| {
            entry.held = Some(validity);
            entry.due = due;
            entry.failures = 0;
            entry.ask = Some(ask);
            entry.window = None;
        });
        due
    }

    /// An order failed, and the authority may have said when to come back; gives when it is tried again.
    pub(super) fn failed(
        &mut self,
        name: &str,
        come_back: Option<SystemTime>,
        now: SystemTime,
    ) -> SystemTime {
        self.outage = None;
        let jitter = self.random.fraction();
        let mut again = now;
        self.end(name, |entry| {
            again = now + pause(RETRY, entry.failures, jitter);
            again = again.max(stay_away(come_back, now));
            entry.failures = entry.failures.saturating_add(1);
            entry.failed = now;
            entry.due = again;
        });
        again
    }

    /// What was begun for the name, or for none, failed by what all would fail by; gives when anything is tried again.
    pub(super) fn outage(
        &mut self,
        name: Option<&str>,
        come_back: Option<SystemTime>,
        now: SystemTime,
    ) -> SystemTime {
        if let Some(name) = name {
            self.end(name, |_| {});
        }
        // Several that were under way fail by the same.
        if let Some((until, _)) = self.outage.filter(|(until, _)| *until > now) {
            return until;
        }
        let failures = self.outage.map_or(0, |(_, failures)| failures);
        let until = now + pause(OUTAGE, failures, self.random.fraction());
        let until = until.max(stay_away(come_back, now));
        self.outage = Some((until, failures.saturating_add(1)));
        until
    }

    /// The authority said when to renew, or not, and when to ask again; gives the new moment if it is another one.
    pub(super) fn advised(
        &mut self,
        name: &str,
        window: Option<(SystemTime, SystemTime)>,
        again: Option<Duration>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let share = self.random.fraction();
        let latest = self.rules.renew_before;
        let mut changed = None;
        self.end(name, |entry| {
            let again = again.unwrap_or(ADVICE_EVERY).clamp(ADVICE.0, ADVICE.1);
            entry.ask = Some(now + again);
            let Some((start, end)) = window.filter(|(start, end)| start <= end) else { return };
            if entry.window.is_some_and(|(known, _)| known == (start, end)) {
                return;
            }
            // RFC 9773 §4.2: a moment within the window, the same until that changes.
            let mut chosen = start + end.duration_since(start).unwrap_or_default().mul_f64(share);
            let latest = latest.zip(entry.held).and_then(|(before, held)| held.not_after.checked_sub(before));
            if let Some(latest) = latest {
                chosen = chosen.min(latest);
            }
            entry.window = Some(((start, end), chosen));
            if entry.failures == 0 {
                entry.due = chosen.max(now);
                changed = Some(entry.due);
            }
        });
        changed
    }

    /// When each name is due.
    pub(super) fn due(&self) -> impl Iterator<Item = (&Arc<str>, SystemTime)> {
        self.names.iter().map(|(name, entry)| (name, entry.due))
    }

    fn end(&mut self, name: &str, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.names.get_mut(name) else { return };
        if std::mem::take(&mut entry.busy) {
            self.busy -= 1;
        }
        change(entry);
    }

    /// When a certificate is renewed if its authority says nothing.
    fn renewal(&mut self, validity: Validity) -> SystemTime {
        let life = life(validity);
        // Not before half of its time, whatever the configuration says: it would be ordered without end.
        let before = self.rules.renew_before.unwrap_or(life / 3).min(life / 2);
        // Certificates that were issued together are not renewed together.
        let early = self.random.below(life / 30);
        validity.not_after.checked_sub(before + early).unwrap_or(validity.not_before)
    }
}

fn life(validity: Validity) -> Duration {
    validity.not_after.duration_since(validity.not_before).unwrap_or_default()
}

/// Doubles with each failure, up to the most; a tenth more or less, so that what failed together is not tried together.
fn pause((first, most): (Duration, Duration), failures: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    doubled.min(most).mul_f64(0.9 + jitter / 5.0)
}

fn stay_away(come_back: Option<SystemTime>, now: SystemTime) -> SystemTime {
    come_back.map_or(now, |at| at.min(now + STAY_AWAY_MAX))
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, bound: Duration) -> Duration {
        bound.mul_f64(self.fraction())
    }
}

#[cfg(test)]
mod tests;
