//! Who may be chosen: the available endpoints of a pool, group by group, at some moment.

use std::sync::Arc;
use std::time::Instant;

use super::balance::{Algorithm, Balancer, Member};
use super::endpoint::Endpoint;

/// What balancing draws and hashes with; fixed, so that several proxies choose alike.
pub(super) const SEED: u64 = 0x706f_7274_6375_6c6c;

/// An endpoint and what is said of it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) endpoint: Arc<Endpoint>,
    /// Its share, as balancing counts it; 0 for none.
    pub(super) weight: u32,
    /// Its group: those of a higher one are for when none of a lower one is to be had.
    pub(super) rank: Rank,
    /// Whether it stands in the zone of this proxy.
    pub(super) near: bool,
}

/// What decides which group an endpoint is in, most important first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// As it is configured.
    pub(super) tier: u32,
    /// By its SRV record (RFC 2782).
    pub(super) priority: u16,
    /// Whether it is in another zone, while there are enough in this one.
    pub(super) far: bool,
    /// Whether its name has addresses of the preferred family, too.
    pub(super) second_family: bool,
}

/// The endpoints that may be chosen. Immutable but for what balancing counts.
#[derive(Debug)]
pub(super) struct Members {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    rank: Rank,
    endpoints: Vec<Arc<Endpoint>>,
    balancer: Balancer,
}

/// What a connection asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The hash of what it is told apart by when it is balanced, if by anything.
    pub(super) key: Option<u64>,
    /// The id of the endpoint that its client was given before.
    pub(super) before: Option<u64>,
    /// Those that did not work.
    pub(super) tried: Tried,
}

/// Why there is nothing to take although there are endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// All have as many connections as they may.
    Full,
    /// Some have room, but many attempts to connect to them are under way.
    Busy,
}

/// Endpoints that a connection has tried.
#[derive(Clone, Debug, Default)]
pub(super) struct Tried(Vec<Arc<Endpoint>>);

impl Members {
    /// Nobody.
    pub(super) fn none() -> Self {
        Self { groups: Vec::new() }
    }

    /// Those of `listed` that are available, shared out by `algorithm`, going on from where `previous` ones are. Those
    /// of this zone go before others of their tier while at least half of their weight is available.
    pub(super) fn new(mut listed: Vec<Listed>, algorithm: Algorithm, previous: &Self) -> Self {
        prefer_near(&mut listed);
        listed.retain(|one| one.weight > 0 && one.endpoint.is_available());
        // Stable: within a group the order is that of the configuration.
        listed.sort_by_key(|one| one.rank);
        let groups = listed.chunk_by(|one, next| one.rank == next.rank).filter_map(|group| {
            let rank = group.first()?.rank;
            let member = |one: &Listed| Member {
                id: one.endpoint.id,
                weight: one.weight,
                load: Arc::clone(&one.endpoint.load),
            };
            let balancer = Balancer::new(algorithm, group.iter().map(member).collect(), SEED);
            let balancer = match previous.groups.iter().find(|previous| previous.rank == rank) {
                Some(previous) => balancer.continuing(&previous.balancer),
                None => balancer,
            };
            let endpoints = group.iter().map(|one| Arc::clone(&one.endpoint)).collect();
            Some(Group { rank, endpoints, balancer })
        });
        Self { groups: groups.collect() }
    }

    /// Whether nobody may be chosen.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The next one to try that has room for a connection, which is counted: the one that the client was given before if
    /// that can be had.
    pub(super) fn take(&self, wanted: &Wanted, now: Instant) -> Option<Arc<Endpoint>> {
        let before = wanted.before.and_then(|id| self.take_that(id, &wanted.tried));
        before.or_else(|| self.groups.iter().find_map(|group| group.take(wanted, now, |_| true)))
    }

    /// The same of those of the other family than `endpoint` and of its name.
    pub(super) fn take_other_family(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        now: Instant,
    ) -> Option<Arc<Endpoint>> {
        let suits = |other: &Endpoint| other.is_other_family_of(endpoint);
        self.groups.iter().find_map(|group| group.take(wanted, now, suits))
    }

    /// The one of this id, if it can be chosen.
    fn take_that(&self, id: u64, tried: &Tried) -> Option<Arc<Endpoint>> {
        let (group, index) = self.find(id)?;
        let endpoint = group.endpoints.get(index)?;
        let taken = endpoint.is_usable() && !tried.has(endpoint) && endpoint.try_take();
        taken.then(|| {
            group.balancer.changed(index);
            Arc::clone(endpoint)
        })
    }

    /// Why nothing can be taken by who has tried those; `None` when there is nothing else.
    pub(super) fn shortage(&self, tried: &Tried) -> Option<Shortage> {
        let all = self.groups.iter().flat_map(|group| &group.endpoints);
        let mut left = all.filter(|endpoint| endpoint.is_available() && !tried.has(endpoint)).peekable();
        left.peek()?;
        Some(if left.all(|endpoint| endpoint.load.is_full()) { Shortage::Full } else { Shortage::Busy })
    }

    /// Whether there is another one than `endpoint` that was not tried.
    pub(super) fn has_others(&self, endpoint: &Arc<Endpoint>, tried: &Tried) -> bool {
        let mut all = self.groups.iter().flat_map(|group| &group.endpoints);
        all.any(|other| !Arc::ptr_eq(other, endpoint) && other.is_available() && !tried.has(other))
    }

    /// The number of connections of `endpoint` has changed.
    pub(super) fn changed(&self, endpoint: &Endpoint) {
        if let Some((group, index)) = self.find(endpoint.id) {
            group.balancer.changed(index);
        }
    }

    fn find(&self, id: u64) -> Option<(&Group, usize)> {
        self.groups.iter().find_map(|group| Some((group, group.balancer.index_of(id)?)))
    }
}

impl Group {
    fn take(
        &self,
        wanted: &Wanted,
        now: Instant,
        suits: impl Fn(&Endpoint) -> bool,
    ) -> Option<Arc<Endpoint>> {
        let usable = |index: usize| {
            self.endpoints.get(index).is_some_and(|endpoint| {
                endpoint.is_usable() && !wanted.tried.has(endpoint) && suits(endpoint)
            })
        };
        // Others choose at the same time: the one that had room may be full by now, and is not usable then.
        for _ in 0..self.endpoints.len() {
            let index = self.balancer.choose(wanted.key, now, usable)?;
            let endpoint = self.endpoints.get(index)?;
            if endpoint.try_take() {
                self.balancer.changed(index);
                return Some(Arc::clone(endpoint));
            }
        }
        None
    }
}

impl Tried {
    /// Adds one.
    pub(super) fn add(&mut self, endpoint: Arc<Endpoint>) {
        self.0.push(endpoint);
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<&Arc<Endpoint>> {
        self.0.last()
    }
}

/// Ranks those in other zones behind those of this one, tier by tier, where enough of these are available.
fn prefer_near(listed: &mut [Listed]) {
    let near: Vec<_> = listed.iter().filter(|one| one.near).cloned().collect();
    for one in listed.iter_mut().filter(|one| !one.near) {
        let peers = near.iter().filter(|near| near.rank.tier == one.rank.tier);
        let weight = |available: bool| -> u64 {
            let counted = peers.clone().filter(|peer| !available || peer.endpoint.is_available());
            counted.map(|peer| u64::from(peer.weight)).sum()
        };
        one.rank.far = weight(true) > 0 && weight(true) * 2 >= weight(false);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv6Addr, SocketAddr};

    use super::super::endpoint::Target;
    use super::*;
    use crate::telemetry::Registry;

    fn endpoint(name: &str, addr: SocketAddr) -> Arc<Endpoint> {
        let registry = Registry::new().unwrap();
        Arc::new(Endpoint::new("pool", &Arc::from(name), Target::Tcp(addr), &registry))
    }

    /// Endpoints of tier 1, called by their places.
    fn list<const N: usize>() -> [Listed; N] {
        std::array::from_fn(|place| {
            let addr = SocketAddr::from(([10, 0, 0, 1], u16::try_from(place).unwrap()));
            let endpoint = endpoint(&place.to_string(), addr);
            Listed { endpoint, weight: 256, rank: Rank { tier: 1, ..Rank::default() }, near: false }
        })
    }

    fn members(listed: &[Listed]) -> Members {
        Members::new(listed.to_vec(), Algorithm::RoundRobin, &Members::none())
    }

    fn set(one: &Listed, available: bool) {
        one.endpoint.set_available(available, Instant::now());
    }

    /// Whom the next twelve connections are given.
    fn taken(members: &Members, wanted: &Wanted) -> BTreeMap<String, usize> {
        let mut taken = BTreeMap::new();
        for endpoint in (0..12).map_while(|_| members.take(wanted, Instant::now())) {
            *taken.entry(endpoint.name.to_string()).or_default() += 1;
        }
        taken
    }

    fn shares<const N: usize>(shares: [(&str, usize); N]) -> BTreeMap<String, usize> {
        shares.into_iter().map(|(name, share)| (name.to_owned(), share)).collect()
    }

    #[test]
    fn a_tier_is_for_when_those_before_it_have_nothing() {
        let mut listed = list::<3>();
        listed[2].rank.tier = 2;
        let wanted = Wanted::default();
        assert_eq!(taken(&members(&listed), &wanted), shares([("0", 6), ("1", 6)]));
        set(&listed[0], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("1", 12)]));
        set(&listed[1], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("2", 12)]));
        set(&listed[1], true);
        listed[1].endpoint.load.set_limit(listed[1].endpoint.load.active() + 2);
        assert_eq!(taken(&members(&listed), &wanted), shares([("1", 2), ("2", 10)]), "full");
    }

    #[test]
    fn other_zones_serve_while_less_than_half_of_this_one_is_there() {
        let mut listed = list::<5>();
        listed[..3].iter_mut().for_each(|one| one.near = true);
        let wanted = Wanted::default();
        assert_eq!(taken(&members(&listed), &wanted), shares([("0", 4), ("1", 4), ("2", 4)]));
        set(&listed[0], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("1", 6), ("2", 6)]));
        set(&listed[1], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("2", 4), ("3", 4), ("4", 4)]));
        set(&listed[2], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("3", 6), ("4", 6)]));
    }

    #[test]
    fn a_client_keeps_its_endpoint_while_that_can_be_had() {
        let listed = list::<3>();
        let mut wanted = Wanted { before: Some(listed[1].endpoint.id), ..Wanted::default() };
        assert_eq!(taken(&members(&listed), &wanted), shares([("1", 12)]));
        wanted.tried.add(Arc::clone(&listed[1].endpoint));
        assert_eq!(taken(&members(&listed), &wanted), shares([("0", 6), ("2", 6)]));
        wanted.tried = Tried::default();
        set(&listed[1], false);
        assert_eq!(taken(&members(&listed), &wanted), shares([("0", 6), ("2", 6)]));
    }

    #[test]
    fn why_there_is_nothing_to_take() {
        let listed = list::<2>();
        let members = members(&listed);
        let mut wanted = Wanted::default();
        listed.iter().for_each(|one| one.endpoint.load.set_limit(1));
        assert_eq!(taken(&members, &wanted).len(), 2);
        assert_eq!(members.shortage(&wanted.tried), Some(Shortage::Full));
        listed[1].endpoint.load.set_limit(0);
        // As many attempts as may be under way.
        while members.take(&wanted, Instant::now()).is_some() {}
        assert_eq!(members.shortage(&wanted.tried), Some(Shortage::Busy));
        wanted.tried.add(Arc::clone(&listed[1].endpoint));
        assert_eq!(members.shortage(&wanted.tried), Some(Shortage::Full));
        wanted.tried.add(Arc::clone(&listed[0].endpoint));
        assert_eq!(members.shortage(&wanted.tried), None);
        set(&listed[0], false);
        assert_eq!(Members::none().shortage(&Tried::default()), None);
    }

    #[test]
    fn the_other_family_is_one_of_the_same_name() {
        let at = |name, addr: SocketAddr| Listed { endpoint: endpoint(name, addr), ..list::<1>()[0].clone() };
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));
        let v4 = |last| SocketAddr::from(([127, 0, 0, last], 1));
        let listed = [at("a", v6), at("b", v4(1)), at("a", v4(2)), at("b", v6)];
        let members = members(&listed);
        let other = |place: usize, wanted: &Wanted| {
            let other = members.take_other_family(&listed[place].endpoint, wanted, Instant::now());
            other.map(|other| other.target.to_string())
        };
        let mut wanted = Wanted::default();
        assert_eq!(other(0, &wanted).as_deref(), Some("127.0.0.2:1"));
        assert_eq!(other(1, &wanted).as_deref(), Some("[::1]:1"));
        wanted.tried.add(Arc::clone(&listed[2].endpoint));
        assert_eq!(other(0, &wanted), None);
    }
}
