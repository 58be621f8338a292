//! When a name is asked for again, and what of it is used meanwhile. No clock and no network: time is an argument.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::ask::LookupError;
use super::watched::Found;
use crate::config::DnsConfig;

/// Pauses after failed questions: the first, doubled each time up to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Addresses of one name that are used.
pub(super) const MAX_ADDRESSES: usize = 256;

/// How long answers are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
    /// Of answers that there is nothing.
    pub(super) negative_ttl: Duration,
    /// How long beyond that the last answer is used while there is no other; `None`: for as long as it takes.
    pub(super) stale_max: Option<Duration>,
}

/// The course of one name from question to question.
#[derive(Debug)]
pub(super) struct Course {
    bounds: Bounds,
    retry: Duration,
    /// Until when the last answer holds.
    valid_until: Option<Instant>,
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The addresses that are used from now on, if they are not those from before.
    pub(super) found: Option<Vec<Found>>,
    /// Addresses that are not used because there are too many.
    pub(super) left_out: usize,
    /// Until the next question.
    pub(super) pause: Duration,
}

impl Bounds {
    /// As the configuration says.
    pub(super) fn new(config: &DnsConfig) -> Self {
        let DnsConfig { min_ttl, max_ttl, negative_ttl, stale_max, .. } = *config;
        Self { min_ttl, max_ttl, negative_ttl, stale_max }
    }

    /// How long an answer is kept.
    pub(super) fn clamp(&self, ttl: Duration) -> Duration {
        ttl.min(self.max_ttl).max(self.min_ttl)
    }

    /// How long an answer is kept that there is nothing.
    pub(super) fn clamp_negative(&self, ttl: Duration) -> Duration {
        ttl.min(self.negative_ttl).max(self.min_ttl)
    }
}

impl Course {
    /// The course of a name whose last answer holds until `valid_until`, if it has one.
    pub(super) fn new(bounds: Bounds, valid_until: Option<Instant>) -> Self {
        Self { bounds, retry: RETRY.0, valid_until }
    }

    /// Until when the last answer holds.
    pub(super) fn valid_until(&self) -> Option<Instant> {
        self.valid_until
    }

    /// Goes on by what was answered at `now`; `random` spreads the next question.
    pub(super) fn answered(&mut self, found: Vec<Found>, ttl: Duration, now: Instant, random: u64) -> Step {
        let ttl = self.bounds.clamp(ttl);
        self.retry = RETRY.0;
        self.valid_until = Some(now + ttl);
        let (found, left_out) = bounded(found);
        Step { found: Some(found), left_out, pause: spread(ttl, random) }
    }

    /// Until when the last answer is used at the latest, if not for as long as it takes.
    pub(super) fn used_until(&self) -> Option<Instant> {
        self.valid_until?.checked_add(self.bounds.stale_max?)
    }

    /// Goes on when there was no answer at `now`, or one that there is nothing. The last addresses stay: a name that is
    /// gone is a slip more often than a wish, and backends that are to go can be taken out of the configuration.
    pub(super) fn failed(&mut self, error: &LookupError, now: Instant, random: u64) -> Step {
        let pause = match error.ttl() {
            Some(ttl) => {
                self.retry = RETRY.0;
                self.bounds.clamp_negative(ttl)
            }
            // An answer without a time is not kept (RFC 2308 §5), nor is a failure.
            None => {
                let pause = self.retry;
                self.retry = (self.retry * 2).min(RETRY.1);
                pause
            }
        };
        let pause = spread(pause, random);
        match self.used_until().map(|end| end.saturating_duration_since(now)) {
            Some(Duration::ZERO) => Step { found: Some(Vec::new()), left_out: 0, pause },
            rest => Step { found: None, left_out: 0, pause: rest.map_or(pause, |rest| rest.min(pause)) },
        }
    }
}

/// Each address once, in order, and not too many; with how many were too many.
fn bounded(mut found: Vec<Found>) -> (Vec<Found>, usize) {
    // Nameservers rotate their answers; turns are taken by the balancer.
    found.sort_unstable_by(Found::order);
    let mut seen = HashSet::with_capacity(found.len());
    found.retain(|found| seen.insert((found.ip, found.port)));
    let left_out = found.len().saturating_sub(MAX_ADDRESSES);
    found.truncate(MAX_ADDRESSES);
    (found, left_out)
}

/// `pause` and up to a tenth of it, so that what was asked for together is not asked for together again.
fn spread(pause: Duration, random: u64) -> Duration {
    let parts = u32::try_from(random % 1024).unwrap_or(0);
    pause + pause / 10 * parts / 1024
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bounded_by(stale_max: Option<Duration>) -> Course {
        let (max_ttl, negative_ttl) = (300 * SECOND, 30 * SECOND);
        Course::new(Bounds { min_ttl: SECOND, max_ttl, negative_ttl, stale_max }, None)
    }

    fn course() -> Course {
        bounded_by(None)
    }

    fn host(last: u8) -> Found {
        Found::host(Ipv4Addr::new(192, 0, 2, last).into())
    }

    fn timeout() -> LookupError {
        LookupError::Timeout
    }

    #[test]
    fn an_answer_is_kept_for_its_time_within_the_bounds() {
        let now = Instant::now();
        for (ttl, kept) in [(0, 1), (1, 1), (60, 60), (300, 300), (86_400, 300)] {
            let mut course = course();
            let step = course.answered(vec![host(1)], ttl * SECOND, now, 0);
            assert_eq!((step.pause, step.found), (kept * SECOND, Some(vec![host(1)])), "{ttl}");
            assert_eq!(course.valid_until(), Some(now + kept * SECOND), "{ttl}");
        }
    }

    /// A thousand names that were asked for together, with one TTL.
    #[test]
    fn names_do_not_come_due_together() {
        let now = Instant::now();
        let pauses =
            (0..1000).map(|random| course().answered(vec![host(1)], 100 * SECOND, now, random).pause);
        let pauses: HashSet<Duration> = pauses.collect();
        assert!(pauses.len() > 900, "{}", pauses.len());
        let (first, last) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*first >= 100 * SECOND && *last < 110 * SECOND, "{first:?} to {last:?}");
        for second in 100..110 {
            let due = pauses.iter().filter(|pause| pause.as_secs() == second).count();
            assert!((50..200).contains(&due), "{due} in second {second}");
        }
        let retries: HashSet<Duration> =
            (0..1000).map(|random| course().failed(&timeout(), now, random).pause).collect();
        assert!(retries.len() > 900 && retries.iter().all(|pause| (SECOND..2 * SECOND).contains(pause)));
    }

    #[test]
    fn failures_are_repeated_more_and_more_seldom_until_the_next_answer() {
        let mut course = course();
        let now = Instant::now();
        let pauses: Vec<u64> = (0..7).map(|_| course.failed(&timeout(), now, 0).pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        course.answered(vec![host(1)], SECOND, now, 0);
        assert_eq!(course.failed(&timeout(), now, 0), Step { found: None, left_out: 0, pause: SECOND });
    }

    #[test]
    fn that_there_is_nothing_is_kept_for_its_time_within_the_bounds() {
        let now = Instant::now();
        for (ttl, pause) in [(0, 1), (5, 5), (3600, 30)] {
            let mut course = course();
            let gone = LookupError::NoName { ttl: Some(ttl * SECOND) };
            for _ in 0..3 {
                let step = course.failed(&gone, now, 0);
                assert_eq!(step, Step { found: None, left_out: 0, pause: pause * SECOND }, "{ttl}");
            }
        }
        let mut course = course();
        let pauses: Vec<u64> = (0..3)
            .map(|_| course.failed(&LookupError::NoRecord { ttl: None }, now, 0).pause.as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4], "without a time it is a failure like others");
    }

    #[test]
    fn the_last_addresses_stay_for_as_long_as_they_may() {
        let start = Instant::now();
        for error in [timeout(), LookupError::NoName { ttl: Some(20 * SECOND) }] {
            let mut course = bounded_by(Some(60 * SECOND));
            course.answered(vec![host(1)], 10 * SECOND, start, 0);
            let (mut now, end) = (start + 10 * SECOND, start + 70 * SECOND);
            assert_eq!(course.used_until(), Some(end));
            while now < end {
                let step = course.failed(&error, now, 1023);
                assert_eq!(step.found, None, "{:?} after the answer", now - start);
                now += step.pause;
            }
            assert_eq!(now, end, "not later, however long the pauses are");
            let step = course.failed(&error, now, 0);
            assert_eq!(step.found, Some(vec![]));
            assert!(step.pause >= SECOND, "{:?}", step.pause);
        }
        let mut course = course();
        course.answered(vec![host(1)], SECOND, start, 0);
        let year = start + 365 * 86_400 * SECOND;
        assert_eq!((course.used_until(), course.failed(&timeout(), year, 0).found), (None, None));
    }

    #[test]
    fn addresses_come_once_in_order_and_not_too_many() {
        let step = course().answered(vec![host(2), host(1), host(2)], SECOND, Instant::now(), 0);
        assert_eq!(step.found, Some(vec![host(1), host(2)]));
        let many = (0..=u16::MAX).rev().map(|last| Found::host(IpAddr::V4(Ipv4Addr::from_bits(last.into()))));
        let step = course().answered(many.collect(), SECOND, Instant::now(), 0);
        let found = step.found.unwrap();
        assert_eq!((found.len(), step.left_out), (MAX_ADDRESSES, 65_536 - MAX_ADDRESSES));
        assert_eq!(found.last().unwrap().ip.to_string(), "0.0.0.255");
    }

    #[test]
    fn what_is_used_sooner_comes_first_and_is_kept_when_there_are_too_many() {
        let instance = |last, priority, weight| Found { port: Some(1), priority, weight, ..host(last) };
        let given = vec![instance(9, 2, 1), instance(8, 1, 1), instance(9, 1, 5), instance(9, 1, 7)];
        let step = course().answered(given, SECOND, Instant::now(), 0);
        // An address that stands twice is used as it is used soonest and most.
        assert_eq!(step.found, Some(vec![instance(8, 1, 1), instance(9, 1, 7)]));
    }
}
