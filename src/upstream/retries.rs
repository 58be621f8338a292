//! How many attempts beyond the first the connections of a pool may make together.
//!
//! When most backends fail, each connection trying all of them would multiply the load of those that are left. So
//! retries are bounded by a part of the connections, and a few a second for pools that have few.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time that counts, in seconds: the current second and those before it.
const WINDOW: u64 = 10;
/// Retries that are free, a second.
const FLOOR: u64 = 10;
/// One for each second of the window.
const SLOTS: usize = 10;

/// What happened within the last seconds, counted by all threads at once.
#[derive(Debug)]
pub(super) struct Retries {
    start: Instant,
    /// Of a second each: which one, in the upper 24 bits; connections, in 24; retries, in 16. Together, so that a
    /// second is begun anew in one step.
    slots: [AtomicU64; SLOTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    connections: u64,
    retries: u64,
}

const NUMBER_MAX: u64 = (1 << 24) - 1;
const CONNECTIONS_MAX: u64 = (1 << 24) - 1;
const RETRIES_MAX: u64 = (1 << 16) - 1;

impl Retries {
    /// Nothing happened before `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self { start, slots: Default::default() }
    }

    /// There is a connection.
    pub(super) fn connection(&self, now: Instant) {
        self.count(now, |second| second.connections += 1);
    }

    /// Counts a retry if retries are at most so many `percent` of the connections then, beyond the free ones; whether it
    /// did.
    pub(super) fn take(&self, percent: u32, now: Instant) -> bool {
        self.take_below(percent, 1, now)
    }

    /// The same as long as they are at most half as many: for who can do without.
    pub(super) fn take_spare(&self, percent: u32, now: Instant) -> bool {
        self.take_below(percent, 2, now)
    }

    fn take_below(&self, percent: u32, part: u64, now: Instant) -> bool {
        let number = self.number(now);
        let (mut connections, mut retries) = (0, 0);
        for slot in &self.slots {
            let second = Second::unpack(slot.load(Ordering::Relaxed));
            // By the clock's last bits: another turn of them comes after half a year.
            if number.wrapping_sub(second.number) & NUMBER_MAX < WINDOW {
                connections += second.connections;
                retries += second.retries;
            }
        }
        // Other threads may take at the same time: each may be one too many.
        let allowed = retries < (FLOOR * WINDOW + connections * u64::from(percent) / 100) / part;
        if allowed {
            self.count(now, |second| second.retries += 1);
        }
        allowed
    }

    fn count(&self, now: Instant, count: impl Fn(&mut Second)) {
        let number = self.number(now);
        let index = usize::try_from(number % WINDOW).unwrap_or(0);
        let Some(slot) = self.slots.get(index) else { return };
        let counted = |packed: u64| {
            let mut second = Second::unpack(packed);
            if second.number != number & NUMBER_MAX {
                second = Second { number: number & NUMBER_MAX, ..Second::default() };
            }
            count(&mut second);
            Some(second.pack())
        };
        // Never fails: there is always another value.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Seconds since the start, and a window: what was never counted in is no second of it.
    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() + Duration::from_secs(WINDOW).as_secs()
    }
}

impl Second {
    fn unpack(packed: u64) -> Self {
        Self {
            number: packed >> 40,
            connections: packed >> 16 & CONNECTIONS_MAX,
            retries: packed & RETRIES_MAX,
        }
    }

    fn pack(self) -> u64 {
        self.number << 40 | self.connections.min(CONNECTIONS_MAX) << 16 | self.retries.min(RETRIES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(retries: &Retries, percent: u32, now: Instant) -> usize {
        (0..10_000).take_while(|_| retries.take(percent, now)).count()
    }

    #[test]
    fn a_part_of_the_connections_beside_the_free_ones() {
        let start = Instant::now();
        let retries = Retries::new(start);
        assert_eq!(taken(&retries, 20, start), 100, "free");
        (0..1000).for_each(|_| retries.connection(start));
        assert_eq!(taken(&retries, 20, start), 200);
        assert_eq!(taken(&retries, 50, start), 300);
        assert_eq!(taken(&retries, 0, start), 0);
    }

    #[test]
    fn half_of_them_are_for_those_that_cannot_do_without() {
        let start = Instant::now();
        let retries = Retries::new(start);
        (0..1000).for_each(|_| retries.connection(start));
        assert_eq!((0..10_000).take_while(|_| retries.take_spare(20, start)).count(), 150);
        assert_eq!(taken(&retries, 20, start), 150);
        assert!(!retries.take_spare(20, start));
    }

    #[test]
    fn what_was_ten_seconds_ago_is_forgotten() {
        let start = Instant::now();
        let retries = Retries::new(start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        (0..1000).for_each(|_| retries.connection(at(0)));
        assert_eq!(taken(&retries, 10, at(0)), 200);
        (0..500).for_each(|_| retries.connection(at(5)));
        assert_eq!(taken(&retries, 10, at(9)), 50, "both seconds count");
        assert_eq!(taken(&retries, 10, at(10)), 100, "the first one no longer does");
        assert_eq!(taken(&retries, 10, at(14)), 0);
        assert_eq!(taken(&retries, 10, at(1000)), 100);
        // The second in which the clock's last bits are what they were.
        assert_eq!(taken(&retries, 10, at(1 << 24)), 100);
    }

    #[test]
    fn counts_stay_within_their_bits() {
        let start = Instant::now();
        let retries = Retries::new(start);
        let full = Second { number: WINDOW, connections: CONNECTIONS_MAX, retries: RETRIES_MAX };
        retries.slots[0].store(full.pack(), Ordering::Relaxed);
        retries.connection(start);
        assert!(retries.take(100, start));
        let second = Second::unpack(retries.slots[0].load(Ordering::Relaxed));
        assert_eq!(
            (second.number, second.connections, second.retries),
            (WINDOW, CONNECTIONS_MAX, RETRIES_MAX)
        );
    }
}
