//! Which endpoint a connection goes to: sans-io, by the numbers of the endpoints alone.
//!
//! A [`Balancer`] is made for a set of [`Member`]s and never changes; what changes all the time is the [`Load`] of
//! each, which outlives it. All data-plane threads choose from the same one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod bounds;
mod key;
mod least;
mod load;
mod maglev;
mod rotation;
mod shares;
mod sticky;

pub use key::{name_key, source_key};
pub use load::Load;
pub use sticky::Sticky;

use bounds::Bounds;
use least::Least;
use maglev::Maglev;
use rotation::Rotation;
use shares::Shares;

/// The largest effective weight; more counts as this.
pub const MAX_WEIGHT: u32 = 1 << 16;
/// Of its weight a member has so much, one part in ten, when its slow start begins.
const RAMP_FROM: u32 = 10;
/// Members drawn before all of them are looked at: when half of them cannot be chosen, one look at all comes in four
/// thousand million choices.
const DRAWS: u32 = 32;

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// In turn: those of equal weight in their order, others evenly mixed.
    RoundRobin,
    /// The one with the fewest connections by its weight; of several, the one chosen longest ago.
    LeastConnections,
    /// Of two that are drawn, the one that connects faster and has fewer connections.
    P2c,
    /// Drawn.
    Random,
    /// The first that can be chosen.
    First,
    /// The one that the key of the connection belongs to, which stays the same while it is there.
    Hash {
        /// How many percent of its share of all connections a member may have, at least 100; others take what is
        /// beyond. `None` for no bound.
        load: Option<u32>,
    },
}

/// An endpoint that may be chosen.
#[derive(Clone, Debug)]
pub struct Member {
    /// Tells it from others, also in other processes: of its address, by [`name_key`].
    pub id: u64,
    /// The effective weight, from 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// Its live numbers.
    pub load: Arc<Load>,
}

/// Chooses among members. Shared by all threads.
#[derive(Debug)]
pub struct Balancer {
    members: Box<[Member]>,
    /// Ids with the places of their members, sorted.
    places: Box<[(u64, usize)]>,
    shares: Shares,
    draws: Draws,
    choice: Choice,
}

#[derive(Debug)]
enum Choice {
    RoundRobin(Rotation),
    LeastConnections(Least),
    P2c,
    Random,
    First,
    Hash(Maglev, Option<Bounds>),
}

/// Numbers that look random: splitmix64, whose state is a counter, so that threads share it without a lock.
#[derive(Debug)]
struct Draws {
    seed: u64,
    count: Counter,
}

/// A counter that many threads count on, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicU64);

impl Balancer {
    /// Among `members`, whose numbers in this order are what [`Self::choose`] gives. What is drawn follows from
    /// `seed`.
    pub fn new(algorithm: Algorithm, mut members: Vec<Member>, seed: u64) -> Self {
        members.iter_mut().for_each(|member| member.weight = member.weight.clamp(1, MAX_WEIGHT));
        let mut places: Vec<_> =
            members.iter().enumerate().map(|(place, member)| (member.id, place)).collect();
        places.sort_unstable();
        let shares = Shares::new(&members);
        let choice = match algorithm {
            Algorithm::RoundRobin => Choice::RoundRobin(Rotation::new(&members, &shares)),
            Algorithm::LeastConnections => Choice::LeastConnections(Least::new(&members)),
            Algorithm::P2c => Choice::P2c,
            Algorithm::Random => Choice::Random,
            Algorithm::First => Choice::First,
            Algorithm::Hash { load } => {
                Choice::Hash(Maglev::new(&members), load.map(|percent| Bounds::new(percent, &members)))
            }
        };
        let draws = Draws { seed, count: Counter::default() };
        Self { members: members.into(), places: places.into(), shares, draws, choice }
    }

    /// Goes on where `previous` is: whose turn it is, who was chosen longest ago. Without that, each new one would begin
    /// with its first members, and they would have too much where balancers follow each other fast.
    #[must_use]
    pub fn continuing(self, previous: &Self) -> Self {
        self.draws.count.follow(&previous.draws.count);
        match (&self.choice, &previous.choice) {
            (Choice::RoundRobin(new), Choice::RoundRobin(old)) => new.follow(old),
            (Choice::LeastConnections(new), Choice::LeastConnections(old)) => {
                new.follow(old, |place| previous.index_of(self.members.get(place)?.id));
            }
            _ => {}
        }
        self
    }

    /// The member to try, of those that are `usable`: not tried before, not full. `None` only when none is.
    ///
    /// `key` is the hash of what connections are told apart by; without one, a hash is drawn. `usable` is asked under a
    /// lock: it must be quick, and must not choose itself. What is chosen is not counted: that is [`Load::try_take`],
    /// which may fail when another thread was faster, and [`Self::changed`] after it.
    pub fn choose(&self, key: Option<u64>, now: Instant, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.choice {
            Choice::RoundRobin(rotation) => self.drawn(|| rotation.next(&self.shares), &usable),
            Choice::LeastConnections(least) => least.choose(&self.members, &usable),
            Choice::P2c => self.better_of_two(now, &usable),
            Choice::Random => self.drawn(|| self.random(), &usable),
            Choice::First => (0..self.len()).find(|index| usable(*index)),
            Choice::Hash(maglev, bounds) => {
                let key = key.unwrap_or_else(|| self.draws.next());
                let Some(bounds) = bounds else { return maglev.choose(key, &self.members, &usable) };
                bounds.look_around(&self.members);
                let has_room = |index| usable(index) && bounds.has_room(index, &self.members);
                // Only when others than the usable ones have all the room there is: some load must go beyond.
                maglev
                    .choose(key, &self.members, has_room)
                    .or_else(|| maglev.choose(key, &self.members, &usable))
            }
        }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member of this id.
    pub fn index_of(&self, id: u64) -> Option<usize> {
        let found = self.places.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.places.get(found).map(|(_, index)| *index)
    }

    /// The number of active connections of a member changed.
    ///
    /// To be told to the balancer that chooses now, which may be another than when the connection began
    /// ([`Self::index_of`]). What it is not told it finds out by itself, but only at one member a choice.
    pub fn changed(&self, index: usize) {
        match &self.choice {
            Choice::LeastConnections(least) => least.changed(index, &self.members),
            Choice::Hash(_, Some(bounds)) => bounds.changed(index, &self.members),
            Choice::RoundRobin(_) | Choice::P2c | Choice::Random | Choice::First | Choice::Hash(_, None) => {}
        }
    }

    /// The first usable one that `draw` gives. When it gives none for long, one of all that are usable, drawn by weight:
    /// no neighbour of those that are not has to take what was theirs.
    fn drawn(&self, draw: impl Fn() -> Option<usize>, usable: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..DRAWS {
            let index = draw()?;
            if usable(index) {
                return Some(index);
            }
        }
        let mut total = 0;
        let mut found = None;
        for (index, member) in self.members.iter().enumerate().filter(|(index, _)| usable(*index)) {
            let weight = u64::from(member.weight);
            total += weight;
            if self.draws.below(total) < weight {
                found = Some(index);
            }
        }
        found
    }

    /// By weight.
    fn random(&self) -> Option<usize> {
        self.shares.at(self.draws.below(self.shares.total()))
    }

    /// The power of two choices (Mitzenmacher) by the peak EWMA of latency, as in Finagle.
    fn better_of_two(&self, now: Instant, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.drawn(|| self.random(), &usable)?;
        let another = || {
            let position = self.draws.below(self.shares.without(first));
            self.shares.at_without(first, position)
        };
        let Some(second) = (0..DRAWS).map_while(|_| another()).find(|index| usable(*index)) else {
            return Some(first);
        };
        let (one, other) = (self.members.get(first)?, self.members.get(second)?);
        // One that is not known yet counts as fast as the one it is compared with.
        let (fast, faster) = match (one.load.latency(now), other.load.latency(now)) {
            (Some(one), Some(other)) => (one, other),
            (Some(known), None) | (None, Some(known)) => (known, known),
            (None, None) => (1.0, 1.0),
        };
        let cost = |member: &Member, latency: f32| latency * self.shares.crowding(member);
        Some(if cost(other, faster) < cost(one, fast) { second } else { first })
    }
}

impl Draws {
    fn next(&self) -> u64 {
        mix(self.seed.wrapping_add(self.count.next().wrapping_mul(GOLDEN)))
    }

    /// A number below `end`, or 0.
    fn below(&self, end: u64) -> u64 {
        high_product(self.next(), end)
    }
}

impl Counter {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn follow(&self, other: &Self) {
        self.0.store(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The golden ratio's fraction, in parts of 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The upper half of the product: `whole` times `fraction` / 2^64.
fn high_product(fraction: u64, whole: u64) -> u64 {
    u64::try_from((u128::from(fraction) * u128::from(whole)) >> 64).unwrap_or(0)
}

/// The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators): a bijection in which
/// each bit of the input changes half of the bits of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The order of fractions as one of integers: `count / weight`, where `weight` is at most [`MAX_WEIGHT`]. Two
/// different ones differ by 2^-32 at least, so that what is cut off changes no order.
fn rank(count: u32, weight: u32) -> u64 {
    (u64::from(count) << 32) / u64::from(weight.max(1))
}

/// The effective weight of an endpoint that is `since_up` after it became available, of a slow start of `length`: from a
/// tenth of its `full` effective weight to all of it.
pub fn ramp(full: u32, since_up: Duration, length: Duration) -> u32 {
    let full = full.clamp(1, MAX_WEIGHT);
    if since_up >= length {
        return full;
    }
    let first = full.div_ceil(RAMP_FROM);
    let gained = u128::from(full - first) * since_up.as_nanos() / length.as_nanos();
    // Below `full` since the time is below `length`.
    first + u32::try_from(gained).unwrap_or(0)
}

/// Effective weights of these `shares`, as fine as they can be: the largest is at most [`MAX_WEIGHT`]. A share of 0 stays
/// one, any other is at least 1.
pub fn effective(shares: &[u64]) -> Vec<u32> {
    let most = shares.iter().copied().max().unwrap_or(0).max(1);
    let scaled = |share: u64| {
        let weight = u128::from(share) * u128::from(MAX_WEIGHT) / u128::from(most);
        // At most `MAX_WEIGHT`.
        u32::try_from(weight).unwrap_or(MAX_WEIGHT).max(u32::from(share > 0))
    };
    // Whole multiples where that is possible, so that equal parts stay so.
    match u64::from(MAX_WEIGHT) / most {
        0 => shares.iter().map(|share| scaled(*share)).collect(),
        factor => shares.iter().map(|share| u32::try_from(share * factor).unwrap_or(MAX_WEIGHT)).collect(),
    }
}

#[cfg(test)]
mod tests;
