//! How often each address was refused of late: what the rule for bans goes by.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::BanRule;
use crate::net::canonical;

/// Shards, a power of two.
const SHARDS: usize = 64;
/// Addresses counted per shard: 65,536 in all, about 5 MB. One for which there is no room goes uncounted: a count
/// shared by strangers would ban the innocent, and limits hold all the same.
const SHARD_CAPACITY: usize = 1024;
/// A full shard is searched for counts to forget at most this often: a flood of addresses must not cost 1,024 looks
/// a strike.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The counts under one rule.
#[derive(Debug)]
pub(super) struct Strikes {
    pub(super) rule: BanRule,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    start: Instant,
}

#[derive(Debug, Default)]
struct Shard {
    counts: HashMap<IpNet, Count>,
    /// Since the start.
    next_sweep: Duration,
}

/// Strikes in this window of time and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    window: u64,
    now: u32,
    before: u32,
}

impl Strikes {
    pub(super) fn new(rule: BanRule) -> Self {
        Self {
            rule,
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            start: Instant::now(),
        }
    }

    /// Counts a strike against the address; when it is one too many, gives the network to ban.
    pub(super) fn strike(&self, client: IpAddr, now: Instant) -> Option<IpNet> {
        let client = canonical(client);
        let length = if client.is_ipv4() { 32 } else { 64 };
        let network = IpNet::new(client, length).ok()?.trunc();
        let within = self.rule.within.as_nanos().max(1);
        let time = now.saturating_duration_since(self.start);
        let since = time.as_nanos();
        let window = u64::try_from(since / within).unwrap_or(u64::MAX);
        let index = usize::try_from(self.hasher.hash_one(network) % SHARDS as u64).unwrap_or(0);
        // A count that a panic left behind is a count.
        let mut shard = self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner);
        let count = shard.count(network, window, time)?;
        count.strike(window);
        // The part of the window before that is within the time that ends now.
        let part = u128::from(count.before) * (within - since % within) / within;
        if u128::from(count.now) + part < u128::from(self.rule.after) {
            return None;
        }
        shard.counts.remove(&network);
        Some(network)
    }
}

impl Shard {
    /// The count of `network`; `None` when there is no room for it.
    fn count(&mut self, network: IpNet, window: u64, time: Duration) -> Option<&mut Count> {
        if self.counts.len() >= SHARD_CAPACITY && !self.counts.contains_key(&network) {
            if time >= self.next_sweep {
                self.next_sweep = time + SWEEP_INTERVAL;
                self.counts.retain(|_, count| count.window + 1 >= window);
            }
            if self.counts.len() >= SHARD_CAPACITY {
                return None;
            }
        }
        Some(self.counts.entry(network).or_default())
    }
}

impl Count {
    fn strike(&mut self, window: u64) {
        if self.window != window {
            self.before = if self.window + 1 == window { self.now } else { 0 };
            (self.window, self.now) = (window, 0);
        }
        self.now = self.now.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn strikes(after: u32) -> Strikes {
        Strikes::new(BanRule { after, within: MINUTE, length: MINUTE })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn so_many_in_so_much_time() {
        let strikes = strikes(5);
        let struck = |client: &str, seconds: u64| {
            strikes
                .strike(ip(client), strikes.start + Duration::from_secs(seconds))
                .map(|net| net.to_string())
        };
        assert_eq!([0, 10, 20, 30].map(|at| struck("192.0.2.1", at)), [None, None, None, None]);
        assert_eq!(struck("192.0.2.2", 30), None, "another address");
        assert_eq!(struck("::ffff:192.0.2.1", 40), Some("192.0.2.1/32".to_owned()));
        assert_eq!(struck("192.0.2.1", 41), None, "the count begins anew");
        // Across the end of a window: what is long ago counts less and less.
        assert_eq!([55, 56, 57, 58].map(|at| struck("2001:db8::1", at)), [None, None, None, None]);
        assert_eq!(struck("2001:db8::2", 60), Some("2001:db8::/64".to_owned()));
        assert_eq!([200, 201, 202, 203].map(|at| struck("192.0.2.3", at)), [None, None, None, None]);
        assert_eq!(struck("192.0.2.3", 330), None, "two minutes later");
    }

    #[test]
    fn counting_is_bounded_and_bans_no_innocent() {
        let strikes = strikes(2);
        let source = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
        for n in 0..200_000 {
            assert_eq!(strikes.strike(source(n), strikes.start), None);
        }
        let counted: usize = strikes.shards.iter().map(|shard| shard.lock().unwrap().counts.len()).sum();
        assert!(counted <= SHARDS * SHARD_CAPACITY, "{counted}");
        // Two windows on all that is forgotten, and there is room again.
        let later = strikes.start + 2 * MINUTE;
        assert_eq!(strikes.strike(source(199_999), later), None);
        assert!(strikes.strike(source(199_999), later).is_some());
    }

    #[test]
    fn a_full_shard_is_searched_ten_times_a_second() {
        const WITHIN: Duration = Duration::from_millis(10);
        let strikes = Strikes::new(BanRule { after: 2, within: WITHIN, length: MINUTE });
        let source = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
        for n in 0..200_000 {
            strikes.strike(source(n), strikes.start);
        }
        let struck_twice_at = |ms: u64| {
            let at = strikes.start + Duration::from_millis(ms);
            [(); 2].map(|()| strikes.strike(source(300_000), at).is_some())
        };
        assert_eq!(struck_twice_at(99), [false, false], "searched a moment ago");
        assert_eq!(struck_twice_at(100), [false, true]);
    }
}
