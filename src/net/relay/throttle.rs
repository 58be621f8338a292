//! How fast bytes may be relayed: a bucket that connections share, on any thread, and what a relay asks of
//! those that it takes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Direction;

/// What may be read at once after a pause, as time at the full rate. Wake-ups come up to two ticks late (100 ms),
/// which must not cost rate; over three seconds this much at the start makes 7 %.
const DEPTH: Duration = Duration::from_millis(200);
/// The least depth in bytes: a hello, or an answer of a page, passes at once at any rate.
const DEPTH_BYTES: u64 = 4096;
/// Less than so much time's worth is not worth a read, but for a wait: else a stream at its limit would be read
/// in crumbs.
const LEAST: Duration = Duration::from_millis(50);

const NANOS: u128 = 1_000_000_000;

/// Bytes a second, shared by all who hold it: the generic cell rate algorithm (ITU-T I.371) in one atomic.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    /// How far ahead of time may be paid for, in nanoseconds.
    depth: u64,
    start: Instant,
    /// Until when what was read is paid for, in nanoseconds since the start.
    paid: AtomicU64,
}

/// The buckets that a relay takes from, and what it waits for.
#[derive(Debug)]
pub struct Throttle {
    buckets: Box<[Arc<Bucket>]>,
    wait: Option<Duration>,
    /// The direction that read last: the other one goes first.
    last: Direction,
}

impl Bucket {
    /// A full bucket of `rate` bytes a second, at least 1.
    pub fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        let depth = nanos(DEPTH).max(cost(DEPTH_BYTES, rate));
        Self { rate, depth, start: now, paid: AtomicU64::new(0) }
    }

    /// How many bytes may be read at `now`; when that is too little, how long to wait.
    ///
    /// # Errors
    /// The time after which to ask again.
    pub fn allowance(&self, now: Instant) -> Result<usize, Duration> {
        let ahead = self.ahead(now);
        let least = nanos(LEAST);
        let room = self.depth.saturating_sub(ahead);
        if room < least {
            return Err(Duration::from_nanos(ahead.saturating_add(least) - self.depth));
        }
        let bytes = u128::from(room) * u128::from(self.rate) / NANOS;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX).max(1))
    }

    /// Takes what was read. Others may have read since the allowance was asked for: what is too much is
    /// waited for later.
    pub fn charge(&self, bytes: usize, now: Instant) {
        let now = self.since_start(now);
        let cost = cost(bytes as u64, self.rate);
        let pay = |paid: u64| Some(paid.max(now).saturating_add(cost));
        // Never fails: there is always a next value.
        let _ = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
    }

    /// Whether nothing is known of what was read before `now`: another bucket would do as well.
    pub fn is_full(&self, now: Instant) -> bool {
        self.ahead(now) == 0
    }

    fn ahead(&self, now: Instant) -> u64 {
        self.paid.load(Ordering::Relaxed).saturating_sub(self.since_start(now))
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

impl Throttle {
    /// Of all `buckets` together; `None` when there are none.
    pub fn new(buckets: Vec<Arc<Bucket>>) -> Option<Box<Self>> {
        (!buckets.is_empty())
            .then(|| Box::new(Self { buckets: buckets.into(), wait: None, last: Direction::Down }))
    }

    /// How much may be read now; `None` when nothing may: see [`Self::take_wait`].
    pub(super) fn allowance(&mut self, now: Instant) -> Option<usize> {
        let mut least = usize::MAX;
        for bucket in &self.buckets {
            match bucket.allowance(now) {
                Ok(bytes) => least = least.min(bytes),
                Err(wait) => {
                    self.wait = Some(self.wait.map_or(wait, |other| other.min(wait)));
                    return None;
                }
            }
        }
        Some(least)
    }

    pub(super) fn charge(&mut self, direction: Direction, bytes: usize, now: Instant) {
        self.last = direction;
        self.buckets.iter().for_each(|bucket| bucket.charge(bytes, now));
    }

    /// Whether it is the turn of the direction down to be asked first.
    pub(super) fn is_downs_turn(&self) -> bool {
        self.last == Direction::Up
    }

    /// How long to wait when a direction was told to since the last time.
    pub(super) fn take_wait(&mut self) -> Option<Duration> {
        self.wait.take()
    }
}

/// The time that `bytes` take, in nanoseconds.
fn cost(bytes: u64, rate: u64) -> u64 {
    let cost = (u128::from(bytes) * NANOS).div_ceil(u128::from(rate));
    u64::try_from(cost).unwrap_or(u64::MAX)
}

/// 584 years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as much as it may for `time`, woken `late` each time; gives the bytes.
    fn read_for(bucket: &Bucket, start: Instant, time: Duration, late: Duration) -> usize {
        let (mut now, mut bytes) = (start, 0);
        while now < start + time {
            match bucket.allowance(now) {
                Ok(n) => {
                    bucket.charge(n, now);
                    bytes += n;
                }
                Err(wait) => now += wait + late,
            }
        }
        bytes
    }

    #[test]
    fn over_three_seconds_the_average_is_the_rate() {
        for rate in [50_000, 1 << 20, 1 << 30] {
            for late in [0, 50, 100] {
                let start = Instant::now();
                let bucket = Bucket::new(rate, start);
                let bytes = read_for(&bucket, start, Duration::from_secs(3), Duration::from_millis(late));
                let share = bytes as f64 / (3.0 * rate as f64);
                assert!((0.9..=1.1).contains(&share), "{share} of {rate} when {late} ms late");
            }
        }
    }

    #[test]
    fn a_small_message_passes_at_once_at_the_lowest_rate() {
        let now = Instant::now();
        let bucket = Bucket::new(1024, now);
        assert_eq!(bucket.allowance(now), Ok(4096));
        bucket.charge(4096, now);
        let wait = bucket.allowance(now).unwrap_err();
        assert_eq!(wait, LEAST);
        assert!(bucket.allowance(now + wait).is_ok_and(|bytes| bytes == 51));
        assert!(
            !bucket.is_full(now + Duration::from_millis(3999))
                && bucket.is_full(now + Duration::from_secs(4))
        );
    }

    #[test]
    fn what_was_read_beyond_the_allowance_is_waited_for() {
        let now = Instant::now();
        let bucket = Bucket::new(1 << 20, now);
        bucket.charge(1 << 20, now);
        assert_eq!(bucket.allowance(now), Err(Duration::from_millis(850)));
    }

    #[test]
    fn of_several_buckets_the_strictest_decides() {
        let now = Instant::now();
        let buckets = [1 << 20, 1 << 16].map(|rate| Arc::new(Bucket::new(rate, now)));
        let mut throttle = Throttle::new(buckets.to_vec()).unwrap();
        assert_eq!(throttle.allowance(now), Some((1 << 16) / 5));
        throttle.charge(Direction::Up, 1 << 16, now);
        assert_eq!((throttle.allowance(now), throttle.take_wait().is_some()), (None, true));
        assert!(throttle.take_wait().is_none() && buckets[0].allowance(now).is_ok());
        assert!(Throttle::new(Vec::new()).is_none());
    }
}
