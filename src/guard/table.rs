//! The table of one limit: of each source its connections now, those without a hello, and the rate of new ones.
//!
//! One table for all workers, since a client's connections spread over them; its shards are locked for a few
//! dozen nanoseconds each. The table is bounded. When it is full, entries that no longer say anything are
//! dropped; a source for which there is still no room shares one entry with all others like it, so that
//! neither an offender is forgotten nor a newcomer goes uncounted.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Reason;
use crate::config::{LimitConfig, Per, RateLimit};
use crate::net::{Bucket, canonical};

/// Shards, a power of two: enough that the workers of a large machine seldom meet.
const SHARDS: usize = 64;
/// Sources remembered per shard: 224,000 in all, 17 MB when full. A hash table of 8,192 slots that is not more than
/// half full tidies up after entries that are gone where it is; with more it would double instead.
const SHARD_CAPACITY: usize = 3500;
/// A full shard is searched for entries to drop at most this often, so that a flood of new sources costs
/// no more than 3,500 looks a tenth of a second.
const SWEEP_INTERVAL: u64 = 100_000_000;
/// When to look again at a limit that time alone does not meet: a connection has to end first.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The table of one limit.
#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    start: Instant,
    per: Per,
    rate: Option<RateLimit>,
    gcra: Option<Gcra>,
    bandwidth: Option<u64>,
    capacity: usize,
    rejections: AtomicU64,
}

/// What a source may have open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) connections: u32,
    /// `None` of connections whose hello is there already: they are not counted among those without.
    pub(super) before_hello: Option<u32>,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Key, Entry, BuildHasherDefault<Unhashed>>,
    /// What all sources without an entry of their own count on.
    overflow: Entry,
    next_sweep: u64,
}

#[derive(Debug, Default)]
struct Entry {
    open: u32,
    before_hello: u32,
    /// Theoretical arrival time of GCRA, in nanoseconds since the start of the table.
    arrival: u64,
    /// What its connections read from, once one does.
    bucket: Option<Arc<Bucket>>,
}

/// The generic cell rate algorithm (ITU-T I.371): `interval` between arrivals, `tolerance` ahead of time, both in
/// nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Gcra {
    interval: u64,
    tolerance: u64,
}

/// A source: a hash of its prefix under a secret of the table. It takes 8 bytes instead of 17; of as many
/// sources as a table holds, two are the same once in a billion tables, and nobody can aim at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

/// Keys are hashes already.
#[derive(Debug, Default)]
struct Unhashed(u64);

/// What a connection counts for in the table.
#[derive(Debug)]
pub(super) struct Slot {
    key: Key,
    /// The place of the limit among the rules.
    pub(super) rule: u16,
    overflow: bool,
    before_hello: bool,
}

/// A limit that would be broken, and when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breach {
    pub(super) reason: Reason,
    pub(super) retry_after: Duration,
}

impl Table {
    pub(super) fn new(limit: &LimitConfig) -> Self {
        Self::with_capacity(limit, SHARD_CAPACITY)
    }

    pub(super) fn with_capacity(limit: &LimitConfig, capacity: usize) -> Self {
        let shards = if limit.per == Per::All { 1 } else { SHARDS };
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(shards).collect(),
            hasher: RandomState::new(),
            start: Instant::now(),
            per: limit.per,
            rate: limit.rate,
            gcra: limit.rate.map(Gcra::new),
            bandwidth: limit.bandwidth,
            capacity,
            rejections: AtomicU64::new(0),
        }
    }

    /// Whether what is remembered here means the same under `limit`. What may be open and what becomes of the
    /// excess are not remembered.
    pub(super) fn serves(&self, limit: &LimitConfig) -> bool {
        (self.per, self.rate, self.bandwidth) == (limit.per, limit.rate, limit.bandwidth)
    }

    /// Counts a connection of `client`, under the limit that is the `rule`th.
    pub(super) fn take(&self, client: IpAddr, rule: u16, caps: Caps, now: Instant) -> Result<Slot, Breach> {
        let key = self.key(client);
        let time = self.since_start(now);
        let mut shard = self.shard(key);
        let (entry, overflow) = shard.entry(key, now, time, self.capacity);
        if entry.open >= caps.connections {
            return Err(Breach { reason: Reason::ConnLimit, retry_after: LOOK_AGAIN });
        }
        if caps.before_hello.is_some_and(|most| entry.before_hello >= most) {
            return Err(Breach { reason: Reason::BeforeHello, retry_after: LOOK_AGAIN });
        }
        if let Some(gcra) = &self.gcra {
            let next = gcra.admit(entry.arrival, time);
            entry.arrival = next.map_err(|retry_after| Breach { reason: Reason::RateLimit, retry_after })?;
        }
        entry.open += 1;
        let before_hello = caps.before_hello.is_some();
        entry.before_hello += u32::from(before_hello);
        Ok(Slot { key, rule, overflow, before_hello })
    }

    /// Gives back all that was taken, as if it never had been.
    pub(super) fn give_back(&self, mut slot: Slot, now: Instant) {
        if let Some(gcra) = &self.gcra
            && let Some(entry) = self.shard(slot.key).held(&slot)
        {
            entry.arrival = entry.arrival.saturating_sub(gcra.interval);
        }
        self.release(&mut slot, now);
    }

    pub(super) fn hello_done(&self, slot: &mut Slot) {
        if std::mem::take(&mut slot.before_hello)
            && let Some(entry) = self.shard(slot.key).held(slot)
        {
            entry.before_hello = entry.before_hello.saturating_sub(1);
        }
    }

    /// The connection has ended.
    pub(super) fn release(&self, slot: &mut Slot, now: Instant) {
        let before_hello = std::mem::take(&mut slot.before_hello);
        let mut shard = self.shard(slot.key);
        let Some(entry) = shard.held(slot) else { return };
        entry.open = entry.open.saturating_sub(1);
        entry.before_hello = entry.before_hello.saturating_sub(u32::from(before_hello));
        // Nothing more to remember of a source that is gone.
        if !slot.overflow && entry.is_spent(now, self.since_start(now)) {
            shard.entries.remove(&slot.key);
        }
    }

    /// The bucket of the connection's source; `None` without a limit of bandwidth.
    pub(super) fn bucket(&self, slot: &Slot, now: Instant) -> Option<Arc<Bucket>> {
        let rate = self.bandwidth?;
        let mut shard = self.shard(slot.key);
        let bucket = &mut shard.held(slot)?.bucket;
        Some(Arc::clone(bucket.get_or_insert_with(|| Arc::new(Bucket::new(rate, now)))))
    }

    /// Sources remembered.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    /// Counts a refusal.
    pub(super) fn count_rejection(&self) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals so far.
    pub(super) fn rejections(&self) -> u64 {
        self.rejections.load(Ordering::Relaxed)
    }

    fn key(&self, client: IpAddr) -> Key {
        Key(match (self.per, canonical(client)) {
            (Per::All, _) => 0,
            (Per::Prefix { ipv4, .. }, IpAddr::V4(ip)) => {
                self.hasher.hash_one(ip.to_bits() & prefix_mask_v4(ipv4))
            }
            (Per::Prefix { ipv6, .. }, IpAddr::V6(ip)) => {
                self.hasher.hash_one(ip.to_bits() & prefix_mask_v6(ipv6))
            }
        })
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        // The lower bits choose the place within the shard.
        let index = usize::try_from((key.0 >> 32) % self.shards.len() as u64).unwrap_or(0);
        lock(self.shards.get(index).unwrap_or_else(|| unreachable!("the remainder is below the number")))
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

/// A panic while the lock is held leaves counts at worst one too high: better than no limits.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prefix_mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

fn prefix_mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

/// 584 years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Shard {
    /// The entry that `key` counts on, and whether that is the shared one.
    fn entry(&mut self, key: Key, now: Instant, time: u64, capacity: usize) -> (&mut Entry, bool) {
        if self.entries.len() >= capacity && !self.entries.contains_key(&key) {
            if time >= self.next_sweep {
                self.next_sweep = time + SWEEP_INTERVAL;
                self.entries.retain(|_, entry| !entry.is_spent(now, time));
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

impl Entry {
    /// Whether it says nothing that a new one would not.
    fn is_spent(&self, now: Instant, time: u64) -> bool {
        self.open == 0
            && self.arrival <= time
            && self.bucket.as_ref().is_none_or(|bucket| bucket.is_full(now))
    }
}

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Gcra {
    fn new(limit: RateLimit) -> Self {
        let interval = nanos(limit.rate.interval());
        Self { interval, tolerance: interval.saturating_mul(u64::from(limit.burst.saturating_sub(1))) }
    }

    /// The next theoretical arrival time when an arrival at `now` conforms, else how long until one does.
    fn admit(&self, arrival: u64, now: u64) -> Result<u64, Duration> {
        let arrival = arrival.max(now);
        match (arrival - now).checked_sub(self.tolerance) {
            None | Some(0) => Ok(arrival.saturating_add(self.interval)),
            Some(early) => Err(Duration::from_nanos(early)),
        }
    }
}

#[cfg(test)]
mod tests;
