//! Networks that may not connect for a time: banned by hand, or by the rule for addresses that are refused again
//! and again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::net::canonical;

/// Bans, at most: some 15 MB when full.
const MOST: usize = 65_536;
/// Bans lifted while the lock is held once: all workers look through it, and those of a flood end together.
const LIFTED: usize = 64;
/// Longest reason kept, in characters.
const REASON_LEN: usize = 200;

/// The bans of a process.
#[derive(Debug)]
pub(super) struct Bans {
    /// How many there are: nearly always none, and then nothing else is looked at.
    count: AtomicUsize,
    table: RwLock<Table>,
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    bans: HashMap<IpNet, Ban>,
    ends: BTreeSet<(Instant, IpNet)>,
    /// How many bans there are of each length of prefix, IPv4 and IPv6 apart: all that has to be looked for.
    lengths: BTreeMap<(bool, u8), usize>,
}

#[derive(Clone, Debug)]
struct Ban {
    until: Instant,
    reason: Arc<str>,
}

/// A ban as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BanStatus {
    /// The network.
    pub network: String,
    /// Whole seconds that are left of it, rounded up.
    pub seconds_left: u64,
    /// Who or what banned it, as was said then.
    pub reason: String,
}

/// Why a network was not banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    /// There are as many bans as there may be.
    #[error("there are {0} bans already, which is all that may be; lift some first")]
    Full(usize),
    /// Longer than time can be counted.
    #[error("the ban is too long")]
    TooLong,
}

impl Bans {
    pub(super) fn new() -> Self {
        Self::with_capacity(MOST)
    }

    fn with_capacity(most: usize) -> Self {
        Self { count: AtomicUsize::new(0), table: RwLock::default(), most }
    }

    /// Bans `network` until `length` from `now`, in the place of a ban that it has already.
    pub(super) fn ban(
        &self,
        network: IpNet,
        length: Duration,
        reason: &str,
        now: Instant,
    ) -> Result<(), BanError> {
        let until = now.checked_add(length).ok_or(BanError::TooLong)?;
        let network = canonical_network(network);
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(REASON_LEN).collect();
        let mut table = self.write();
        if table.bans.len() >= self.most && !table.bans.contains_key(&network) {
            table.lift_ended(now);
            if table.bans.len() >= self.most {
                self.count.store(table.bans.len(), Ordering::Release);
                return Err(BanError::Full(self.most));
            }
        }
        table.insert(network, Ban { until, reason: reason.into() });
        self.count.store(table.bans.len(), Ordering::Release);
        Ok(())
    }

    /// Bans a source by rule. A ban that lasts longer stays; when there is no room, the one that ends first goes.
    pub(super) fn ban_source(&self, network: IpNet, length: Duration, reason: &Arc<str>, now: Instant) {
        let Some(until) = now.checked_add(length) else { return };
        let mut table = self.write();
        if table.bans.get(&network).is_some_and(|ban| ban.until >= until) {
            return;
        }
        if table.bans.len() >= self.most && !table.bans.contains_key(&network) {
            table.lift_ended(now);
            if table.bans.len() >= self.most
                && let Some((_, first)) = table.ends.first().copied()
            {
                table.remove(first);
            }
        }
        table.insert(network, Ban { until, reason: Arc::clone(reason) });
        self.count.store(table.bans.len(), Ordering::Release);
    }

    /// Lifts the ban of exactly this network; whether there was one.
    pub(super) fn unban(&self, network: IpNet, now: Instant) -> bool {
        let mut table = self.write();
        let ban = table.remove(canonical_network(network));
        self.count.store(table.bans.len(), Ordering::Release);
        ban.is_some_and(|ban| ban.until > now)
    }

    /// Whether a ban concerns `client`.
    pub(super) fn concern(&self, client: IpAddr, now: Instant) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.read().concern(canonical(client), now)
    }

    /// All that are left, in the order in which they end.
    pub(super) fn all(&self, now: Instant) -> Vec<BanStatus> {
        // Workers wait for whoever waits to write: what takes long is done with a copy.
        let left = self.read().left(now);
        let status = |(network, ban): (IpNet, Ban)| {
            let left = ban.until.saturating_duration_since(now);
            BanStatus {
                network: network.to_string(),
                seconds_left: left.as_secs() + u64::from(left.subsec_nanos() > 0),
                reason: ban.reason.to_string(),
            }
        };
        left.into_iter().map(status).collect()
    }

    /// Forgets the bans that have ended; how many are left.
    pub(super) fn upkeep(&self, now: Instant) -> usize {
        if self.count.load(Ordering::Acquire) == 0 {
            return 0;
        }
        loop {
            let mut table = self.write();
            let lifted = table.lift_ended(now);
            let left = table.bans.len();
            self.count.store(left, Ordering::Release);
            drop(table);
            if lifted < LIFTED {
                return left;
            }
            std::thread::yield_now();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        // Each change is whole before anything can panic.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, network: IpNet, ban: Ban) {
        self.remove(network);
        self.ends.insert((ban.until, network));
        *self.lengths.entry(length_key(network)).or_default() += 1;
        self.bans.insert(network, ban);
    }

    fn remove(&mut self, network: IpNet) -> Option<Ban> {
        let ban = self.bans.remove(&network)?;
        self.ends.remove(&(ban.until, network));
        if let Some(count) = self.lengths.get_mut(&length_key(network)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length_key(network));
            }
        }
        Some(ban)
    }

    /// Forgets bans that have ended, up to [`LIFTED`]; how many.
    fn lift_ended(&mut self, now: Instant) -> usize {
        let ended = self.ends.iter().take_while(|(until, _)| *until <= now).take(LIFTED);
        let ended: Vec<_> = ended.map(|(_, network)| *network).collect();
        for network in &ended {
            self.remove(*network);
        }
        ended.len()
    }

    /// The bans that have not ended, in the order in which they do.
    fn left(&self, now: Instant) -> Vec<(IpNet, Ban)> {
        let left = self.ends.iter().filter(|(until, _)| *until > now);
        left.filter_map(|(_, network)| Some((*network, self.bans.get(network)?.clone()))).collect()
    }

    fn concern(&self, client: IpAddr, now: Instant) -> bool {
        let lengths = self.lengths.keys().filter(|(is_v6, _)| *is_v6 == client.is_ipv6());
        lengths.filter_map(|(_, length)| IpNet::new(client, *length).ok()).any(|network| {
            // One that has ended and is not lifted yet is none.
            self.bans.get(&network.trunc()).is_some_and(|ban| ban.until > now)
        })
    }
}

fn length_key(network: IpNet) -> (bool, u8) {
    (matches!(network, IpNet::V6(_)), network.prefix_len())
}

/// A network without bits behind its prefix, and as IPv4 when its addresses are IPv4 ones in IPv6 form.
fn canonical_network(network: IpNet) -> IpNet {
    let v4 = match (network, network.prefix_len().checked_sub(96), canonical(network.addr())) {
        (IpNet::V6(_), Some(length), IpAddr::V4(v4)) => Ipv4Net::new(v4, length).ok(),
        _ => None,
    };
    v4.map_or(network, IpNet::V4).trunc()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn concerned(bans: &Bans, client: &str, now: Instant) -> bool {
        bans.concern(client.parse().unwrap(), now)
    }

    #[test]
    fn a_ban_holds_for_its_network_and_its_time() {
        let (bans, now) = (Bans::new(), Instant::now());
        bans.ban(net("192.0.2.0/24"), MINUTE, "noise", now).unwrap();
        bans.ban(net("2001:db8:1::/48"), 2 * MINUTE, "more\nnoise", now).unwrap();
        bans.ban(net("64:ff9b::203.0.113.0/120"), 3 * MINUTE, "", now).unwrap();
        for (client, banned) in [
            ("192.0.2.7", true),
            ("::ffff:192.0.2.7", true),
            ("64:ff9b::192.0.2.7", true),
            ("192.0.3.7", false),
            ("2001:db8:1:2::3", true),
            ("2001:db8:2::3", false),
            ("203.0.113.1", true),
        ] {
            assert_eq!(concerned(&bans, client, now), banned, "{client}");
        }
        assert!(!concerned(&bans, "192.0.2.7", now + MINUTE));
        let left = bans.all(now + Duration::from_millis(59_500));
        let told: Vec<_> = left.iter().map(|ban| (&*ban.network, ban.seconds_left, &*ban.reason)).collect();
        let expected =
            [("192.0.2.0/24", 1, "noise"), ("2001:db8:1::/48", 61, "morenoise"), ("203.0.113.0/24", 121, "")];
        assert_eq!(told, expected);
        assert_eq!(bans.upkeep(now + MINUTE), 2);
        assert!(bans.unban(net("2001:db8:1::/48"), now) && !bans.unban(net("2001:db8:1::/48"), now));
        assert!(!concerned(&bans, "2001:db8:1:2::3", now));
        assert_eq!(bans.ban(net("192.0.2.1/32"), Duration::MAX, "", now), Err(BanError::TooLong));
        assert_eq!(bans.upkeep(now + 3 * MINUTE), 0);
        assert!(bans.read().lengths.is_empty() && bans.read().ends.is_empty());
    }

    #[test]
    fn a_second_ban_of_a_network_replaces_the_first() {
        let (bans, now) = (Bans::new(), Instant::now());
        let network = net("192.0.2.1/32");
        bans.ban(network, 5 * MINUTE, "long", now).unwrap();
        bans.ban_source(network, MINUTE, &Arc::from("rule"), now);
        assert!(concerned(&bans, "192.0.2.1", now + 2 * MINUTE), "a rule never shortens a ban");
        bans.ban(network, MINUTE, "short", now).unwrap();
        assert!(!concerned(&bans, "192.0.2.1", now + 2 * MINUTE));
        assert_eq!(bans.all(now).len(), 1);
    }

    #[test]
    fn a_full_table_refuses_by_hand_and_makes_room_by_rule() {
        let (bans, now) = (Bans::with_capacity(4), Instant::now());
        let at = |n: u32| IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(n)));
        for n in 0..4 {
            bans.ban(at(n), MINUTE * (n + 1), "", now).unwrap();
        }
        assert_eq!(bans.ban(at(9), MINUTE, "", now), Err(BanError::Full(4)));
        assert_eq!(bans.ban(at(3), MINUTE * 9, "", now), Ok(()), "one that is there already");
        bans.ban_source(at(5), MINUTE * 5, &Arc::from("rule"), now);
        let left: Vec<_> = bans.all(now).into_iter().map(|ban| ban.network).collect();
        assert_eq!(
            left,
            ["0.0.0.1/32", "0.0.0.2/32", "0.0.0.5/32", "0.0.0.3/32"],
            "0.0.0.0 would have ended first"
        );
        assert_eq!(bans.ban(at(9), MINUTE, "", now + 2 * MINUTE), Ok(()), "one has ended");
    }

    /// Whoever holds the lock keeps all workers from looking.
    #[test]
    fn bans_that_end_together_are_lifted_a_few_at_a_time() {
        const ALL: usize = 200;
        let (bans, now) = (Bans::with_capacity(ALL), Instant::now());
        let at = |n: u32| IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(n)));
        for n in 0..200 {
            bans.ban(at(n), MINUTE, "", now).unwrap();
        }
        let held = || bans.read().bans.len();
        let later = now + MINUTE;
        bans.ban_source(at(1000), MINUTE, &Arc::from("rule"), later);
        assert_eq!(held(), ALL - LIFTED + 1, "by the rule");
        bans.ban(at(1001), MINUTE, "", later).unwrap();
        assert_eq!(held(), ALL - LIFTED + 2, "there was room");
        // Those that are left are no bans, and those to whom they were do not notice.
        let left: Vec<_> = bans.all(later).into_iter().map(|ban| ban.network).collect();
        assert_eq!(left, ["0.0.3.232/32", "0.0.3.233/32"]);
        assert!((0..200).all(|n| !bans.concern(Ipv4Addr::from_bits(n).into(), later)));
        assert_eq!(bans.write().lift_ended(later), LIFTED, "at a time");
        assert_eq!(bans.upkeep(later), 2);
        assert_eq!((held(), bans.write().lift_ended(later)), (2, 0));
    }

    /// Bounded in number, and in time: 100,000 bans and as many looks in a debug build.
    #[test]
    fn many_bans_stay_within_their_bound() {
        let (bans, now) = (Bans::new(), Instant::now());
        let source = |n: u32| IpAddr::V6(Ipv6Addr::from_bits(u128::from(n) << 64));
        let rule = Arc::from("rule");
        for n in 0..100_000 {
            let network = IpNet::new(source(n), 64).unwrap();
            bans.ban_source(network, MINUTE + Duration::from_millis(n.into()), &rule, now);
        }
        assert_eq!(bans.all(now).len(), MOST);
        let banned = (0..100_000).filter(|n| bans.concern(source(*n), now)).count();
        assert_eq!(banned, MOST);
        assert!(bans.concern(source(99_999), now) && !bans.concern(source(0), now));
    }
}
