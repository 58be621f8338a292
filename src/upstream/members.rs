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

/// Endpoints that a connection has tried.
#[derive(Debug, Default)]
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

    /// The next one to try that has room for a connection, which is counted.
    pub(super) fn take(&self, key: Option<u64>, now: Instant, tried: &Tried) -> Option<Arc<Endpoint>> {
        self.groups.iter().find_map(|group| group.take(key, now, tried))
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
    fn take(&self, key: Option<u64>, now: Instant, tried: &Tried) -> Option<Arc<Endpoint>> {
        let usable = |index: usize| {
            self.endpoints.get(index).is_some_and(|endpoint| {
                endpoint.is_available() && !endpoint.load.is_full() && !tried.has(endpoint)
            })
        };
        // Others choose at the same time: the one that had room may be full by now, and is not usable then.
        for _ in 0..self.endpoints.len() {
            let index = self.balancer.choose(key, now, usable)?;
            let endpoint = self.endpoints.get(index)?;
            if endpoint.load.try_take() {
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
