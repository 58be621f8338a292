//! Which member each client was given last.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shards, a power of two: few enough that they fill nearly alike.
const SHARDS: usize = 16;
/// Clients remembered per shard: 65,536 in all, which take 5 MB when full and nothing when there are none. When there
/// are more, the shard of the next one forgets the client that was not seen for longest.
const SHARD_CAPACITY: usize = 4096;

/// The table of an upstream: clients with the members that they are to be given again.
#[derive(Debug)]
pub struct Sticky {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    start: Instant,
    /// In nanoseconds.
    length: AtomicU64,
}

/// Clients in the order in which they were seen last: a list within a vector.
#[derive(Debug, Default)]
struct Shard {
    places: HashMap<u64, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    newest: Option<u32>,
    oldest: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    client: u64,
    member: u64,
    /// When it was seen last, in nanoseconds since the start.
    seen: u64,
    newer: Option<u32>,
    older: Option<u32>,
}

impl Sticky {
    /// Remembers a client for `length` after it was seen last.
    pub fn new(length: Duration) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            start: Instant::now(),
            length: AtomicU64::new(nanos(length)),
        }
    }

    /// From now on so long, for those remembered already, too.
    pub fn set_length(&self, length: Duration) {
        self.length.store(nanos(length), Ordering::Relaxed);
    }

    /// The id of the member that the client was given last. The client is seen.
    pub fn find(&self, client: u64, now: Instant) -> Option<u64> {
        let now = self.since_start(now);
        let mut shard = self.shard(client);
        let place = *shard.places.get(&client)?;
        let entry = shard.entry(place)?;
        if self.is_over(entry, now) {
            shard.remove(place);
            return None;
        }
        shard.touch(place, now);
        Some(entry.member)
    }

    /// The client was given the member of this id.
    pub fn keep(&self, client: u64, member: u64, now: Instant) {
        let now = self.since_start(now);
        let mut shard = self.shard(client);
        if let Some(place) = shard.places.get(&client).copied() {
            shard.touch(place, now);
            if let Some(entry) = shard.entries.get_mut(place as usize) {
                entry.member = member;
            }
            return;
        }
        // Two go for one that comes, so that those whose time is over become few by themselves.
        for _ in 0..2 {
            if let Some(oldest) = shard.oldest
                && shard.entry(oldest).is_some_and(|entry| self.is_over(entry, now))
            {
                shard.remove(oldest);
            }
        }
        if shard.places.len() >= SHARD_CAPACITY
            && let Some(oldest) = shard.oldest
        {
            shard.remove(oldest);
        }
        shard.insert(client, member, now);
    }

    /// Clients remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).places.len()).sum()
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_over(&self, entry: Entry, now: u64) -> bool {
        now.saturating_sub(entry.seen) > self.length.load(Ordering::Relaxed)
    }

    fn shard(&self, client: u64) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(client) % SHARDS as u64).unwrap_or(0);
        lock(self.shards.get(index).unwrap_or_else(|| unreachable!("the remainder is below the number")))
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

/// A panic while the lock is held leaves a list that is short at worst.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 584 years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Shard {
    fn entry(&self, place: u32) -> Option<Entry> {
        self.entries.get(place as usize).copied()
    }

    fn insert(&mut self, client: u64, member: u64, now: u64) {
        let entry = Entry { client, member, seen: now, newer: None, older: None };
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let Ok(place) = u32::try_from(self.entries.len()) else { return };
                self.entries.push(entry);
                place
            }
        };
        if let Some(slot) = self.entries.get_mut(place as usize) {
            *slot = entry;
        }
        self.places.insert(client, place);
        self.put_first(place);
    }

    /// The client is seen, and the newest now.
    fn touch(&mut self, place: u32, now: u64) {
        self.unlink(place);
        self.put_first(place);
        if let Some(entry) = self.entries.get_mut(place as usize) {
            entry.seen = entry.seen.max(now);
        }
    }

    fn remove(&mut self, place: u32) {
        let Some(entry) = self.entry(place) else { return };
        self.unlink(place);
        self.places.remove(&entry.client);
        self.free.push(place);
    }

    fn put_first(&mut self, place: u32) {
        let second = self.newest.replace(place);
        if let Some(entry) = self.entries.get_mut(place as usize) {
            (entry.newer, entry.older) = (None, second);
        }
        match second.and_then(|second| self.entries.get_mut(second as usize)) {
            Some(second) => second.newer = Some(place),
            None => self.oldest = Some(place),
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(Entry { newer, older, .. }) = self.entry(place) else { return };
        match newer.and_then(|newer| self.entries.get_mut(newer as usize)) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match older.and_then(|older| self.entries.get_mut(older as usize)) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_client_is_remembered_for_so_long_after_it_was_seen_last() {
        let sticky = Sticky::new(MINUTE);
        let at = |seconds: u64| sticky.start + Duration::from_secs(seconds);
        assert_eq!(sticky.find(1, at(0)), None);
        sticky.keep(1, 10, at(0));
        sticky.keep(2, 20, at(0));
        assert_eq!([sticky.find(1, at(60)), sticky.find(2, at(61))], [Some(10), None]);
        assert_eq!(sticky.find(1, at(120)), Some(10), "seen a minute ago");
        sticky.keep(1, 11, at(130));
        assert_eq!([sticky.find(1, at(190)), sticky.find(1, at(251))], [Some(11), None]);
        assert!(sticky.is_empty());
        sticky.keep(1, 10, at(300));
        sticky.set_length(2 * MINUTE);
        assert_eq!(sticky.find(1, at(420)), Some(10));
    }

    #[test]
    fn a_full_table_forgets_who_was_not_seen_for_longest() {
        const CLIENTS: u64 = 200_000;
        let sticky = Sticky::new(60 * MINUTE);
        let at = |n: u64| sticky.start + Duration::from_micros(n);
        for n in 0..CLIENTS {
            sticky.keep(n, n + 1, at(n));
            // One that comes again and again.
            assert_eq!(sticky.find(0, at(n)), Some(1));
        }
        assert_eq!(sticky.len(), SHARDS * SHARD_CAPACITY);
        let now = at(CLIENTS);
        // Shards fill nearly alike: all of the last 60,000 are there, and none of those before the last 72,000.
        for n in CLIENTS - 60_000..CLIENTS {
            assert_eq!(sticky.find(n, now), Some(n + 1));
        }
        assert!((1..CLIENTS - 72_000).all(|n| sticky.find(n, now).is_none()));
        for shard in &sticky.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.entries.len() <= SHARD_CAPACITY && shard.places.capacity() <= 2 * SHARD_CAPACITY);
        }
    }

    #[test]
    fn those_whose_time_is_over_go_when_others_come() {
        let sticky = Sticky::new(MINUTE);
        (0..10_000).for_each(|n| sticky.keep(n, 1, sticky.start));
        let later = sticky.start + 2 * MINUTE;
        (10_000..25_000).for_each(|n| sticky.keep(n, 2, later));
        assert_eq!(sticky.len(), 15_000);
        assert_eq!([sticky.find(3, later), sticky.find(10_000, later)], [None, Some(2)]);
    }

    #[test]
    fn the_list_holds_through_any_order_of_steps() {
        let sticky = Sticky::new(MINUTE);
        let mut bits = 1u64;
        for step in 0..20_000u64 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (client, now) = (bits >> 57, sticky.start + Duration::from_millis(step * 37));
            if bits & 1 << 40 == 0 {
                sticky.keep(client, step, now);
                assert_eq!(sticky.find(client, now), Some(step));
            } else {
                sticky.find(client, now);
            }
        }
        for shard in &sticky.shards {
            let shard = shard.lock().unwrap();
            let mut listed = Vec::new();
            let mut next = shard.newest;
            while let Some(entry) = next.and_then(|place| shard.entry(place)) {
                listed.push((entry.client, entry.seen));
                next = entry.older;
            }
            assert_eq!(listed.len(), shard.places.len());
            assert!(listed.iter().all(|(client, _)| shard.places.contains_key(client)));
            assert!(listed.is_sorted_by(|newer, older| newer.1 >= older.1));
            assert_eq!(shard.entries.len(), listed.len() + shard.free.len());
        }
    }

    #[test]
    fn threads_keep_and_find_at_once() {
        let sticky = Sticky::new(MINUTE);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let sticky = &sticky;
                scope.spawn(move || {
                    for n in 0..10_000 {
                        let client = thread * 10_000 + n;
                        sticky.keep(client, client + 1, sticky.start);
                        assert_eq!(sticky.find(client, sticky.start), Some(client + 1));
                        sticky.keep(n, n + 1, sticky.start);
                    }
                });
            }
        });
        assert_eq!(sticky.len(), 40_000);
        assert!((0..40_000).all(|client| sticky.find(client, sticky.start) == Some(client + 1)));
    }
}
