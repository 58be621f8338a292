//! When an endpoint is passed over for what its connections came to, and when clients come back to it.
//!
//! The data plane counts ([`Strikes`]); the keeper of the pool decides ([`Outlier`]), by the counts and the time alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::Target;
use crate::config::EjectConfig;

/// An ejection is at most so many times as long as the first one, as a power of two,
const DOUBLINGS: u32 = 6;
/// and no longer than this, unless the first one is.
const LONGEST: Duration = Duration::from_secs(300);
/// How long a probe waits for a connection.
const PROBE: Duration = Duration::from_secs(1);

/// Failures of an endpoint in a row.
///
/// Counted twice, since the kernel of a host accepts connections for a program that then resets each of them: what is
/// connected to says that the endpoint is reached, and only its first byte that it serves.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    /// Attempts that failed, or were slow.
    unreached: AtomicU32,
    /// Connections that the endpoint broke off before its first byte.
    unanswered: AtomicU32,
    /// How many are looked into; 0 for none.
    limit: AtomicU32,
    /// A connect that takes longer is slow, in nanoseconds; 0 when none is.
    slow: AtomicU64,
}

/// Whether an endpoint is passed over, and how often it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlier {
    phase: Phase,
    /// Ejections that count for the length of the next one.
    times: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// It serves; since when, when it was ejected before.
    In(Option<Instant>),
    /// It is passed over until then.
    Out(Instant),
    /// It is probed, and still passed over.
    Trial,
}

impl Strikes {
    /// Counts by what `config` says from now on.
    pub(super) fn follow(&self, config: Option<&EjectConfig>) {
        let slow = config.and_then(|config| config.slow).map_or(0, |slow| nanos(slow).max(1));
        self.slow.store(slow, Ordering::Relaxed);
        self.limit.store(config.map_or(0, |config| config.failures), Ordering::Relaxed);
    }

    /// An attempt failed; says whether the keeper must look at it.
    #[must_use]
    pub(super) fn failed(&self) -> bool {
        self.add(&self.unreached)
    }

    /// An attempt succeeded after so long; says whether the keeper must look at it.
    #[must_use]
    pub(super) fn connected(&self, took: Duration) -> bool {
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 && nanos(took) > slow {
            return self.failed();
        }
        clear(&self.unreached);
        false
    }

    /// The endpoint broke a connection off before its first byte; says whether the keeper must look at it.
    #[must_use]
    pub(super) fn unanswered(&self) -> bool {
        self.add(&self.unanswered)
    }

    /// The endpoint has sent the first byte of a connection.
    pub(super) fn answered(&self) {
        clear(&self.unanswered);
    }

    /// Failures in a row, of the kind of which there are more.
    pub(super) fn count(&self) -> u32 {
        self.unreached.load(Ordering::Relaxed).max(self.unanswered.load(Ordering::Relaxed))
    }

    /// Nothing that was counted counts any more.
    pub(super) fn forget(&self) {
        clear(&self.unreached);
        clear(&self.unanswered);
    }

    /// The one that makes them too many is told of. Those after it are not: when the keeper left it at that, as many as
    /// may be are ejected, and it looks again when one of those comes back.
    fn add(&self, count: &AtomicU32) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |count: u32| Some(count.saturating_add(1));
        limit > 0
            && count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_or(0, |n| n + 1) == limit
    }
}

/// What is 0 nearly always is left in the caches of all threads.
fn clear(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) > 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// 584 years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Outlier {
    /// One that never was.
    pub(super) fn never() -> Self {
        Self { phase: Phase::In(None), times: 0 }
    }

    /// Whether it is passed over.
    pub(super) fn is_out(&self) -> bool {
        !matches!(self.phase, Phase::In(_))
    }

    /// Whether it waits for what a probe says.
    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self.phase, Phase::Trial)
    }

    /// When its time is over.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Out(until) => Some(until),
            Phase::In(_) | Phase::Trial => None,
        }
    }

    /// Decides by so many failures in a row, where there is `room` for one more that is out or not. Gives for how long,
    /// when that is news.
    pub(super) fn look(
        &mut self,
        strikes: u32,
        config: Option<&EjectConfig>,
        room: bool,
        now: Instant,
    ) -> Option<Duration> {
        let Some(config) = config else {
            *self = Self::never();
            return None;
        };
        match self.phase {
            Phase::In(since) if strikes >= config.failures && room => {
                let last = length(config, self.times.saturating_sub(1));
                if since.is_some_and(|since| now.saturating_duration_since(since) >= last) {
                    self.times = 0;
                }
                Some(self.eject(config, now))
            }
            Phase::Out(until) if until <= now => {
                self.phase = Phase::Trial;
                None
            }
            Phase::In(_) | Phase::Out(_) | Phase::Trial => None,
        }
    }

    /// A probe has `reached` it or not: it is back, or out for longer. Gives for how long.
    pub(super) fn probed(&mut self, reached: bool, config: &EjectConfig, now: Instant) -> Option<Duration> {
        if !self.is_on_trial() {
            // Decided otherwise meanwhile, by another configuration.
            return None;
        }
        if !reached {
            return Some(self.eject(config, now));
        }
        self.phase = Phase::In(Some(now));
        None
    }

    fn eject(&mut self, config: &EjectConfig, now: Instant) -> Duration {
        let length = length(config, self.times);
        self.times = self.times.saturating_add(1);
        self.phase = Phase::Out(now + length);
        length
    }
}

/// How long it is out, after so many times before.
fn length(config: &EjectConfig, times: u32) -> Duration {
    let longest = LONGEST.max(config.length);
    config.length.saturating_mul(1 << times.min(DOUBLINGS)).min(longest)
}

/// Whether one more of `total` endpoints may be out when so many are out or down already.
pub(super) fn has_room(total: usize, out: usize, config: &EjectConfig) -> bool {
    (out + 1).saturating_mul(100) <= total.saturating_mul(config.at_most as usize)
}

/// Whether a connection can be made to `target`, which is closed at once.
pub(super) async fn probe(target: &Target) -> bool {
    let connected = async {
        match target {
            Target::Tcp(addr) => tokio::net::TcpStream::connect(addr).await.is_ok(),
            Target::Unix(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
            // Never ejected: it is as many servers as clients name.
            Target::ServerName(_) => true,
        }
    };
    tokio::time::timeout(PROBE, connected).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn config(failures: u32, seconds: u32, at_most: u32) -> EjectConfig {
        EjectConfig { failures, length: S * seconds, at_most, slow: Some(S) }
    }

    /// Ejected, probed in vain or not; gives how long it is out from then on.
    fn out(outlier: &mut Outlier, config: &EjectConfig, now: &mut Instant) -> Duration {
        let length = outlier.look(config.failures, Some(config), true, *now).expect("an ejection");
        assert!(outlier.is_out() && outlier.until() == Some(*now + length));
        length
    }

    fn back(outlier: &mut Outlier, config: &EjectConfig, now: &mut Instant) {
        *now = outlier.until().expect("an end");
        assert_eq!(outlier.look(0, Some(config), true, *now), None);
        assert!(outlier.is_on_trial() && outlier.is_out());
        assert_eq!(outlier.probed(true, config, *now), None);
        assert!(!outlier.is_out());
    }

    #[test]
    fn failures_in_a_row_count_and_others_do_not() {
        let strikes = Strikes::default();
        assert!(!strikes.failed(), "nothing is looked into");
        assert_eq!(strikes.count(), 0);
        strikes.follow(Some(&config(3, 10, 50)));
        assert_eq!([strikes.failed(), strikes.failed(), strikes.connected(S / 2)], [false; 3]);
        assert_eq!([strikes.failed(), strikes.connected(S * 2), strikes.failed()], [false, false, true]);
        assert!(!strikes.failed(), "told of once");
        assert_eq!(strikes.count(), 4);
        strikes.forget();
        assert_eq!(strikes.count(), 0);
    }

    #[test]
    fn a_connection_alone_is_no_answer() {
        let strikes = Strikes::default();
        strikes.follow(Some(&config(3, 10, 50)));
        let once = || [strikes.connected(S / 10), strikes.unanswered()];
        assert_eq!([once(), once(), once()], [[false, false], [false, false], [false, true]]);
        strikes.answered();
        assert_eq!((once(), strikes.count()), ([false, false], 1));
    }

    #[test]
    fn each_time_is_twice_as_long_up_to_a_bound() {
        let (short, mut now) = (config(5, 4, 50), Instant::now());
        let mut outlier = Outlier::never();
        assert_eq!(outlier.look(4, Some(&short), true, now), None);
        assert_eq!(outlier.look(9, Some(&short), false, now), None, "too many are out");
        let mut lengths = vec![out(&mut outlier, &short, &mut now)];
        for _ in 0..8 {
            now = outlier.until().unwrap();
            assert_eq!(outlier.look(0, Some(&short), true, now - S), None);
            assert!(!outlier.is_on_trial());
            outlier.look(0, Some(&short), true, now);
            lengths.push(outlier.probed(false, &short, now).expect("longer"));
        }
        let seconds: Vec<_> = lengths.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [4, 8, 16, 32, 64, 128, 256, 256, 256], "64 times");
        let minute = config(5, 60, 50);
        outlier.look(0, Some(&minute), true, outlier.until().unwrap());
        assert_eq!(outlier.probed(false, &minute, now), Some(S * 300), "five minutes");
        let hour = config(5, 3600, 50);
        let mut outlier = Outlier::never();
        assert_eq!(out(&mut outlier, &hour, &mut now), S * 3600);
    }

    #[test]
    fn what_has_worked_as_long_as_it_was_out_begins_anew() {
        let (config, mut now) = (config(5, 10, 50), Instant::now());
        let mut outlier = Outlier::never();
        assert_eq!(out(&mut outlier, &config, &mut now), S * 10);
        back(&mut outlier, &config, &mut now);
        now += S * 9;
        assert_eq!(out(&mut outlier, &config, &mut now), S * 20);
        back(&mut outlier, &config, &mut now);
        now += S * 20;
        assert_eq!(out(&mut outlier, &config, &mut now), S * 10);
        assert_eq!(outlier.look(9, None, true, now), None, "another configuration");
        assert!(!outlier.is_out());
        assert_eq!(outlier.probed(false, &config, now), None, "a probe of before");
        assert!(!outlier.is_out());
    }

    #[test]
    fn some_always_stay() {
        let room = |total: usize, at_most: u32| {
            let config = config(5, 10, at_most);
            (0..total).take_while(|out| has_room(total, *out, &config)).count()
        };
        assert_eq!([1, 2, 3, 4, 5, 10].map(|total| room(total, 50)), [0, 1, 1, 2, 2, 5]);
        assert_eq!([1, 3].map(|total| room(total, 100)), [1, 3]);
        assert_eq!([3, 9, 10, 25].map(|total| room(total, 10)), [0, 0, 1, 2]);
    }
}
