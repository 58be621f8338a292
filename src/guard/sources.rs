//! The table of source addresses: connections now, connections without a hello, and the rate of new ones.
//!
//! One table for all workers, since a client's connections spread over them; its shards are locked for a few
//! dozen nanoseconds each. The table is bounded. When it is full, entries that no longer say anything are
//! dropped; a source for which there is still no room shares one entry with all others like it, so that
//! neither an offender is forgotten nor a newcomer goes uncounted.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Rejection;
use crate::config::{Limits, RateLimit};
use crate::net::ClientKey;

/// Shards, a power of two: enough that the workers of a large machine seldom meet.
const SHARDS: usize = 64;
/// Sources remembered per shard: 262,144 in all, about 12 MiB when full.
const SHARD_CAPACITY: usize = 4096;
/// A full shard is searched for entries to drop at most this often, so that a flood of new sources costs
/// no more than 4,096 looks a tenth of a second.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Sources {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    start: Instant,
    rate: Option<Gcra>,
    per_source: u32,
    before_hello: u32,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<ClientKey, Entry>,
    /// What all sources without an entry of their own count on.
    overflow: Entry,
    next_sweep: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    open: u32,
    before_hello: u32,
    /// Theoretical arrival time of GCRA, since the start of the table.
    arrival: Duration,
}

/// The generic cell rate algorithm (ITU-T I.371): `interval` between arrivals, `tolerance` ahead of time.
#[derive(Clone, Copy, Debug)]
struct Gcra {
    interval: Duration,
    tolerance: Duration,
}

/// What a connection counts for in the table.
#[derive(Debug)]
pub(super) struct Slot {
    key: ClientKey,
    overflow: bool,
    before_hello: bool,
}

impl Sources {
    /// `None` when no limit asks for a table.
    pub(super) fn new(limits: &Limits) -> Option<Self> {
        Self::with_capacity(limits, SHARD_CAPACITY)
    }

    pub(super) fn with_capacity(limits: &Limits, capacity: usize) -> Option<Self> {
        if limits.rate.is_none() && limits.per_ip.is_none() && limits.before_hello.is_none() {
            return None;
        }
        Some(Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            start: Instant::now(),
            rate: limits.rate.map(Gcra::new),
            per_source: limits.per_ip.unwrap_or(u32::MAX),
            before_hello: limits.before_hello.unwrap_or(u32::MAX),
            capacity,
        })
    }

    pub(super) fn admit(&self, key: ClientKey, now: Instant) -> Result<Slot, Rejection> {
        let now = now.saturating_duration_since(self.start);
        let mut shard = self.shard(key);
        let (entry, overflow) = shard.entry(key, now, self.capacity);
        if entry.open >= self.per_source {
            return Err(Rejection::ConnLimit);
        }
        if entry.before_hello >= self.before_hello {
            return Err(Rejection::BeforeHello);
        }
        if let Some(gcra) = &self.rate {
            entry.arrival = gcra.admit(entry.arrival, now).ok_or(Rejection::RateLimit)?;
        }
        entry.open += 1;
        entry.before_hello += 1;
        Ok(Slot { key, overflow, before_hello: true })
    }

    pub(super) fn hello_done(&self, slot: &mut Slot) {
        if std::mem::take(&mut slot.before_hello)
            && let Some(entry) = self.shard(slot.key).held(slot)
        {
            entry.before_hello = entry.before_hello.saturating_sub(1);
        }
    }

    pub(super) fn release(&self, slot: &mut Slot) {
        let before_hello = std::mem::take(&mut slot.before_hello);
        let mut shard = self.shard(slot.key);
        let Some(entry) = shard.held(slot) else { return };
        entry.open = entry.open.saturating_sub(1);
        entry.before_hello = entry.before_hello.saturating_sub(u32::from(before_hello));
        // Without a rate there is nothing to remember of a source that is gone.
        if self.rate.is_none() && entry.open == 0 && !slot.overflow {
            shard.entries.remove(&slot.key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    fn shard(&self, key: ClientKey) -> MutexGuard<'_, Shard> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        lock(
            self.shards
                .get(hash)
                .unwrap_or_else(|| unreachable!("the remainder is below the number of shards")),
        )
    }
}

/// A panic while the lock is held leaves counts at worst one too high: better than no limits.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// The entry that `key` counts on, and whether that is the shared one.
    fn entry(&mut self, key: ClientKey, now: Duration, capacity: usize) -> (&mut Entry, bool) {
        if self.entries.len() >= capacity && !self.entries.contains_key(&key) {
            if now >= self.next_sweep {
                self.next_sweep = now + SWEEP_INTERVAL;
                self.entries.retain(|_, entry| entry.open > 0 || entry.arrival > now);
            }
            if self.entries.len() >= capacity {
                return (&mut self.overflow, true);
            }
        }
        (self.entries.entry(key).or_default(), false)
    }

    /// The entry that an admitted connection counts on.
    fn held(&mut self, slot: &Slot) -> Option<&mut Entry> {
        if slot.overflow { Some(&mut self.overflow) } else { self.entries.get_mut(&slot.key) }
    }
}

impl Gcra {
    fn new(limit: RateLimit) -> Self {
        let interval = limit.rate.interval();
        Self { interval, tolerance: interval.saturating_mul(limit.burst.saturating_sub(1)) }
    }

    /// The next theoretical arrival time when an arrival at `now` conforms.
    fn admit(&self, arrival: Duration, now: Duration) -> Option<Duration> {
        let arrival = arrival.max(now);
        (arrival - now <= self.tolerance).then(|| arrival + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;

    fn limits(rate: Option<(u32, u32)>, per_ip: Option<u32>) -> Limits {
        let rate = rate
            .map(|(count, burst)| RateLimit { rate: Rate { count, period: Duration::from_secs(1) }, burst });
        Limits { allow: vec![], deny: vec![], rate, per_ip, before_hello: None, total: None }
    }

    fn key(n: u32) -> ClientKey {
        ClientKey::of(std::net::Ipv4Addr::from_bits(n).into())
    }

    #[test]
    fn a_burst_then_the_rate() {
        let sources = Sources::new(&limits(Some((10, 3)), None)).unwrap();
        let start = sources.start;
        let at = |ms: u64| sources.admit(key(1), start + Duration::from_millis(ms)).map(drop);
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!(at(0), Err(Rejection::RateLimit));
        assert_eq!(at(99), Err(Rejection::RateLimit), "refusals do not push the next arrival out");
        assert_eq!(at(100), Ok(()));
        assert_eq!(at(100), Err(Rejection::RateLimit));
        assert_eq!([at(1000), at(1000), at(1000)], [Ok(()); 3]);
        assert_eq!(at(1000), Err(Rejection::RateLimit), "no more than a burst is saved up");
        assert!(sources.admit(key(2), start).is_ok(), "another source has its own rate");
    }

    #[test]
    fn a_full_table_neither_forgets_nor_waves_through() {
        let sources = Sources::with_capacity(&limits(Some((1, 2)), None), 4).unwrap();
        let now = sources.start;
        let offender = key(0);
        while sources.admit(offender, now).is_ok() {}
        for n in 1..10_000 {
            drop(sources.admit(key(n), now));
        }
        assert!(sources.len() <= 4 * SHARDS);
        assert_eq!(
            sources.admit(offender, now).map(drop),
            Err(Rejection::RateLimit),
            "the offender is still known"
        );
        let fresh = (10_000..20_000).filter(|n| sources.admit(key(*n), now).is_ok()).count();
        assert_eq!(fresh, 0, "all newcomers share one spent entry a shard");
        let later = now + Duration::from_secs(60);
        assert!(sources.admit(key(20_000), later).is_ok(), "spent entries make room once they are old");
    }

    #[test]
    fn released_slots_leave_nothing_behind() {
        let sources = Sources::new(&limits(None, Some(2))).unwrap();
        let mut slots: Vec<_> = (0..2).map(|_| sources.admit(key(1), sources.start).unwrap()).collect();
        assert_eq!(sources.admit(key(1), sources.start).map(drop), Err(Rejection::ConnLimit));
        slots.iter_mut().for_each(|slot| sources.release(slot));
        assert_eq!(sources.len(), 0);
        assert!(sources.admit(key(1), sources.start).is_ok());
    }
}
