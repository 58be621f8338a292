//! How many requests a client may send (GCRA), by its address, a cookie or a header field.
//!
//! One table for all workers. It is bounded: when a part of it is full, what no longer says anything is dropped; those for whom
//! there is still no room share one count, so that no flood of made-up clients is counted as nobody.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;

use super::template::cookie;
use crate::config::{RequestRateConfig, SplitKey};

/// Parts of the table, so that workers seldom meet, and what one of them holds.
const SHARDS: usize = 16;
const CAPACITY: usize = 8192;
/// What those share for whom there is no room.
const OTHERS: u64 = 0;

/// The limit of a rule.
#[derive(Debug)]
pub(super) struct RateLimiter {
    config: RequestRateConfig,
    /// Between two requests, and how far ahead of time one may come, in nanoseconds.
    interval: u64,
    tolerance: u64,
    start: Instant,
    hasher: RandomState,
    /// By client, when its next request would be in time (theoretical arrival time), in nanoseconds since the start.
    shards: [Mutex<HashMap<u64, u64>>; SHARDS],
}

impl RateLimiter {
    pub(super) fn new(config: &RequestRateConfig) -> Self {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let interval = nanoseconds(config.limit.rate.period) / u64::from(config.limit.rate.count.max(1));
        Self {
            interval: interval.max(1),
            tolerance: interval.saturating_mul(u64::from(config.limit.burst.saturating_sub(1))),
            config: config.clone(),
            start: Instant::now(),
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    /// Counts a request; an error when it is too many, with how long until the next one may come.
    pub(super) fn check(&self, headers: &HeaderMap, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let key = self.key(headers, client).max(OTHERS + 1);
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let index = usize::try_from(key % SHARDS as u64).unwrap_or_default();
        let Some(shard) = self.shards.get(index) else { return Ok(()) };
        let mut clients = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CAPACITY && !clients.contains_key(&key) {
            clients.retain(|_, arrival| *arrival > now);
        }
        let known = clients.len() < CAPACITY || clients.contains_key(&key);
        let arrival = clients.entry(if known { key } else { OTHERS }).or_insert(now);
        let early = arrival.saturating_sub(now);
        if early > self.tolerance {
            return Err(Duration::from_nanos(early - self.tolerance));
        }
        *arrival = (*arrival).max(now).saturating_add(self.interval);
        Ok(())
    }

    fn key(&self, headers: &HeaderMap, client: IpAddr) -> u64 {
        match &self.config.per {
            SplitKey::Source => self.of_source(client),
            SplitKey::Cookie(name) => match cookie(headers, name) {
                Some(value) => self.hash((1_u8, value)),
                None => self.of_source(client),
            },
            SplitKey::Header(name) => match headers.get(name) {
                Some(value) => self.hash((2_u8, value.as_bytes())),
                None => self.of_source(client),
            },
        }
    }

    /// An address of IPv4, or the network that one household or machine has of IPv6.
    fn of_source(&self, client: IpAddr) -> u64 {
        match client.to_canonical() {
            IpAddr::V4(ip) => self.hash((4_u8, ip)),
            IpAddr::V6(ip) => self.hash((6_u8, ip.to_bits() >> 64)),
        }
    }

    fn hash(&self, key: impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;

    use super::*;
    use crate::config::{Rate, RateLimit};

    fn limiter(count: u32, burst: u32, per: SplitKey) -> RateLimiter {
        let rate = Rate { count, period: Duration::from_secs(1) };
        RateLimiter::new(&RequestRateConfig { limit: RateLimit { rate, burst }, per })
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_burst_then_the_rate() {
        let limiter = limiter(10, 3, SplitKey::Source);
        let (none, start) = (HeaderMap::new(), Instant::now());
        for _ in 0..3 {
            assert_eq!(limiter.check(&none, ip(1), start), Ok(()));
        }
        let wait = limiter.check(&none, ip(1), start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(90), "{wait:?}");
        assert_eq!(limiter.check(&none, ip(2), start), Ok(()), "another client");
        assert_eq!(limiter.check(&none, ip(1), start + wait), Ok(()));
        assert!(limiter.check(&none, ip(1), start + wait).is_err());
    }

    #[test]
    fn clients_are_told_apart_by_what_is_asked_for() {
        let limiter = limiter(1, 1, SplitKey::Header(http::HeaderName::from_static("x-key")));
        let start = Instant::now();
        let with = |value| {
            HeaderMap::from_iter([(http::HeaderName::from_static("x-key"), HeaderValue::from_static(value))])
        };
        assert_eq!(limiter.check(&with("a"), ip(1), start), Ok(()));
        assert!(limiter.check(&with("a"), ip(2), start).is_err(), "the same key from elsewhere");
        assert_eq!(limiter.check(&with("b"), ip(1), start), Ok(()));
        assert_eq!(limiter.check(&HeaderMap::new(), ip(1), start), Ok(()), "by address");
        assert!(limiter.check(&HeaderMap::new(), ip(1), start).is_err());
    }

    #[test]
    fn a_full_table_waves_nobody_through() {
        let limiter = limiter(1, 1, SplitKey::Source);
        let (none, start) = (HeaderMap::new(), Instant::now());
        let clients = 4 * u32::try_from(SHARDS * CAPACITY).unwrap();
        let passed = (0..clients).filter(|n| limiter.check(&none, ip(*n), start).is_ok()).count();
        assert!(passed <= SHARDS * (CAPACITY + 1), "{passed}");
        let held = limiter.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
        assert!(held <= SHARDS * (CAPACITY + 1), "{held}");
        assert_eq!(limiter.check(&none, ip(clients), start + Duration::from_secs(2)), Ok(()));
    }
}
