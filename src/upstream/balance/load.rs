//! The live numbers of an endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seconds in which what is left of a slow connect falls to a third (1/e).
const DECAY: f32 = 10.0;
/// Milliseconds after which a latency that no other followed is no longer believed. An endpoint that was slow once is
/// not chosen, so nothing would ever be known of it again. Forgotten at once instead of fading: one that seems faster and
/// faster would be flooded before its first connection told how slow it is.
const FORGET: u32 = 30_000;

/// The live numbers of an endpoint, shared by all who choose it. It outlives balancers and configurations.
///
/// On a cache line of its own: it changes with every connection.
#[derive(Debug)]
#[repr(align(64))]
pub struct Load {
    active: AtomicU32,
    /// 0 for none.
    limit: AtomicU32,
    /// The peak EWMA: seconds as an `f32` in the upper half, 0 for unknown; when it was told last, in milliseconds since
    /// the start, in the lower one. Together, so that neither is read without the other.
    latency: AtomicU64,
    start: Instant,
}

impl Load {
    /// Of an endpoint without connections, limit or known latency.
    pub fn new() -> Self {
        Self {
            active: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Counts a connection unless there are as many as there may be; whether it did.
    pub fn try_take(&self) -> bool {
        let limit = self.limit();
        let below = |active: u32| if limit == 0 || active < limit { active.checked_add(1) } else { None };
        self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok()
    }

    /// A connection that was counted has ended.
    pub fn release(&self) {
        let less = |active: u32| active.checked_sub(1);
        let released = self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        debug_assert!(released.is_ok(), "released more often than taken");
    }

    /// Connections counted.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// How many connections there may be; 0 for any number.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// From now on so many; those above it stay.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Whether there are as many connections as there may be.
    pub fn is_full(&self) -> bool {
        let limit = self.limit();
        limit > 0 && self.active() >= limit
    }

    /// It took so long to connect, or to fail to. A longer time than known is taken at once, a shorter one bit by bit.
    pub fn observed(&self, latency: Duration, now: Instant) {
        // A latency of nothing would stand for an unknown one.
        let sample = latency.as_secs_f32().max(f32::MIN_POSITIVE);
        let now = self.millis(now);
        let renewed = |packed: u64| {
            let (known, at) = unpack(packed);
            let value = match age(at, now) {
                age if known < sample || age > FORGET => sample,
                age => sample + (known - sample) * (-(age as f32) / (1000.0 * DECAY)).exp(),
            };
            Some(u64::from(value.to_bits()) << 32 | u64::from(latest(at, now)))
        };
        // Never fails: there is always a next value.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, renewed);
    }

    /// The latency in seconds, unless nothing is known of it or for too long.
    pub(super) fn latency(&self, now: Instant) -> Option<f32> {
        let (known, at) = unpack(self.latency.load(Ordering::Relaxed));
        (known > 0.0 && age(at, self.millis(now)) <= FORGET).then_some(known)
    }

    /// Since the start; begins anew after 49 days, when one that was told nothing since is believed once more.
    fn millis(&self, now: Instant) -> u32 {
        let millis = now.saturating_duration_since(self.start).as_millis();
        u32::try_from(millis % (1 << 32)).unwrap_or(0)
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

fn unpack(packed: u64) -> (f32, u32) {
    let [a, b, c, d, e, f, g, h] = packed.to_be_bytes();
    (f32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// The time from `at` to `now`, which may have been looked up before by another thread.
fn age(at: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(at);
    if age > u32::MAX / 2 { 0 } else { age }
}

fn latest(at: u32, now: u32) -> u32 {
    at.wrapping_add(age(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_limit_is_kept() {
        let load = Load::new();
        assert!(load.try_take() && load.try_take() && !load.is_full(), "without a limit");
        load.set_limit(3);
        assert_eq!([load.try_take(), load.try_take()], [true, false]);
        assert!(load.is_full() && load.active() == 3);
        load.set_limit(1);
        load.release();
        assert!(!load.try_take() && load.active() == 2, "those above a new limit stay");
        load.set_limit(0);
        assert!(load.try_take() && !load.is_full());
    }

    #[test]
    fn a_limit_is_kept_among_threads() {
        let load = Load::new();
        load.set_limit(100);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| load.try_take()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, load.active()), (100, 100));
    }

    /// Seconds as milliseconds, rounded.
    fn known(load: &Load, at: Duration) -> Option<f32> {
        load.latency(load.start + at).map(|seconds| (seconds * 1000.0).round())
    }

    #[test]
    fn slower_at_once_and_faster_bit_by_bit() {
        let load = Load::new();
        assert_eq!(known(&load, ms(0)), None);
        let observed = |latency: u64, at: u64| load.observed(ms(latency), load.start + ms(at));
        observed(10, 0);
        observed(100, 1);
        assert_eq!(known(&load, ms(1)), Some(100.0), "a peak");
        // Of the 90 ms between, a third is left after ten seconds.
        observed(10, 10_001);
        assert_eq!(known(&load, ms(10_001)), Some(43.0));
        observed(10, 10_001);
        assert_eq!(known(&load, ms(10_001)), Some(43.0), "at the same moment");
        observed(10, 9_000);
        assert_eq!(known(&load, ms(10_001)), Some(43.0), "by a clock that was read before");
    }

    #[test]
    fn many_samples_fade_a_peak_as_fast_as_few() {
        let load = Load::new();
        load.observed(ms(100), load.start);
        (0..=20_000).for_each(|at| load.observed(ms(10), load.start + ms(at)));
        assert_eq!(known(&load, ms(20_000)), Some(22.0), "10 and 90 times 0.135");
    }

    #[test]
    fn what_was_long_ago_says_nothing() {
        let load = Load::new();
        load.observed(ms(500), load.start);
        assert_eq!(known(&load, ms(30_000)), Some(500.0));
        assert_eq!(known(&load, ms(30_001)), None);
        load.observed(ms(20), load.start + ms(30_001));
        assert_eq!(known(&load, ms(30_001)), Some(20.0));
        load.observed(Duration::ZERO, load.start + ms(90_000));
        assert!(load.latency(load.start + ms(90_000)).is_some(), "no time is a time");
    }
}
