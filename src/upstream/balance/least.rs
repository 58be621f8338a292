//! The member with the fewest connections by its weight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Counter, Member, rank};

/// So many members are looked at one by one; of more, a tree knows the least loaded.
const FEW: usize = 8;
/// A look at the tree finds so many members changed behind its back at most: threads that take what they have chosen
/// must not keep another at it for ever.
const SURPRISES: usize = 8;

/// The least loaded of the members; of several, the one chosen longest ago.
#[derive(Debug)]
pub(super) enum Least {
    /// When each was chosen last, by the counter.
    Few(Box<[AtomicU64]>, Counter),
    /// The lock is held for as many steps as the number of members has bits.
    Many(Mutex<Tree>),
}

/// A tournament: each node knows the winner of its two below. A change of one member costs a way to the top.
#[derive(Debug)]
pub(super) struct Tree {
    /// The nodes, the top being 1 and those below node `n` being `2n` and `2n + 1`; members come after them.
    winners: Box<[u32]>,
    seats: Box<[Seat]>,
    /// Seats: a power of two. Those without a member lose against everybody.
    width: usize,
    clock: u64,
    /// The member that is looked at next in case its change was not told.
    suspect: usize,
}

/// What is known of a member; the smaller it is, the sooner it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    rank: u64,
    /// When it was chosen last.
    chosen: u64,
}

const EMPTY: Seat = Seat { rank: u64::MAX, chosen: u64::MAX };

impl Least {
    pub(super) fn new(members: &[Member]) -> Self {
        if members.len() <= FEW {
            // The clock begins at one: later than never.
            let clock = Counter(AtomicU64::new(1));
            return Self::Few(members.iter().map(|_| AtomicU64::new(0)).collect(), clock);
        }
        Self::Many(Mutex::new(Tree::new(members)))
    }

    pub(super) fn choose(&self, members: &[Member], usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Few(chosen, clock) => {
                let seats = members.iter().zip(chosen).enumerate().filter(|(index, _)| usable(*index));
                let (_, index, at) = seats
                    .map(|(index, (member, at))| {
                        let chosen = at.load(Ordering::Relaxed);
                        (Seat { rank: rank_of(member), chosen }, index, at)
                    })
                    .min_by_key(|(seat, ..)| *seat)?;
                at.store(clock.next(), Ordering::Relaxed);
                Some(index)
            }
            Self::Many(tree) => lock(tree).choose(members, &usable),
        }
    }

    pub(super) fn changed(&self, index: usize, members: &[Member]) {
        match self {
            Self::Few(..) => {}
            Self::Many(tree) => {
                lock(tree).look_at(index, members);
            }
        }
    }

    /// Takes over when members were chosen, each from the member of the previous one that `place` gives.
    pub(super) fn follow(&self, previous: &Self, place: impl Fn(usize) -> Option<usize>) {
        let (times, now) = previous.times();
        let time = |index| place(index).and_then(|old| times.get(old)).copied().unwrap_or(0);
        match self {
            Self::Few(chosen, clock) => {
                clock.0.store(now, Ordering::Relaxed);
                let all = chosen.iter().enumerate();
                all.for_each(|(index, at)| at.store(time(index), Ordering::Relaxed));
            }
            Self::Many(tree) => {
                let mut tree = lock(tree);
                tree.clock = now;
                let seats = tree.seats.iter_mut().enumerate().filter(|(_, seat)| **seat != EMPTY);
                seats.for_each(|(index, seat)| seat.chosen = time(index));
                tree.play_all();
            }
        }
    }

    /// When each member was chosen last, and what time it is now.
    fn times(&self) -> (Vec<u64>, u64) {
        match self {
            Self::Few(chosen, clock) => {
                let times = chosen.iter().map(|at| at.load(Ordering::Relaxed)).collect();
                (times, clock.0.load(Ordering::Relaxed))
            }
            Self::Many(tree) => {
                let tree = lock(tree);
                (tree.seats.iter().map(|seat| seat.chosen).collect(), tree.clock)
            }
        }
    }
}

/// A tree that a panic left behind is right, but for one member at most.
fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Its connections by its weight, with the one to come.
fn rank_of(member: &Member) -> u64 {
    rank(member.load.active().saturating_add(1), member.weight)
}

impl Tree {
    fn new(members: &[Member]) -> Self {
        let width = members.len().next_power_of_two();
        let mut seats = vec![EMPTY; width];
        for (seat, member) in seats.iter_mut().zip(members) {
            *seat = Seat { rank: rank_of(member), chosen: 0 };
        }
        let mut winners = vec![0; width];
        winners.extend((0..).take(width));
        let mut tree = Self { winners: winners.into(), seats: seats.into(), width, clock: 1, suspect: 0 };
        tree.play_all();
        tree
    }

    fn choose(&mut self, members: &[Member], usable: &impl Fn(usize) -> bool) -> Option<usize> {
        self.suspect = (self.suspect + 1) % members.len().max(1);
        self.look_at(self.suspect, members);
        for _ in 0..SURPRISES {
            if !self.look_at(self.winner(1), members) {
                break;
            }
        }
        let first = self.winner(1);
        let chosen = if usable(first) { first } else { self.search(1, Some(first), None, usable)? };
        self.clock += 1;
        if let Some(seat) = self.seats.get_mut(chosen) {
            seat.chosen = self.clock;
            self.play(chosen);
        }
        Some(chosen)
    }

    /// Looks how many connections the member has; whether it was something new.
    fn look_at(&mut self, index: usize, members: &[Member]) -> bool {
        let (Some(seat), Some(member)) = (self.seats.get_mut(index), members.get(index)) else {
            return false;
        };
        let rank = rank_of(member);
        if seat.rank == rank {
            return false;
        }
        seat.rank = rank;
        self.play(index);
        true
    }

    /// The first of those below `node` that is usable and before `found`, else `found`. That `refused` is not usable is
    /// known. Each member that is refused costs a way down; to refuse all of them, a look at each.
    fn search(
        &self,
        node: usize,
        refused: Option<usize>,
        found: Option<usize>,
        usable: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let winner = self.winner(node);
        let seat = self.seat(winner);
        if seat == EMPTY || found.is_some_and(|found| self.seat(found) <= seat) {
            return found;
        }
        if refused != Some(winner) && usable(winner) {
            return Some(winner);
        }
        if node >= self.width {
            return found;
        }
        // First where the refused one is not: what is found there spares most of the other side.
        let (left, right) = (2 * node, 2 * node + 1);
        let (other, its_own) = if self.winner(left) == winner { (right, left) } else { (left, right) };
        let found = self.search(other, Some(winner), found, usable);
        self.search(its_own, Some(winner), found, usable)
    }

    fn play_all(&mut self) {
        for node in (1..self.width).rev() {
            self.play_at(node);
        }
    }

    /// Plays the matches of a member that has changed.
    fn play(&mut self, index: usize) {
        let mut node = (self.width + index) / 2;
        while node > 0 {
            let before = self.winner(node);
            let winner = self.play_at(node);
            // Nobody above has heard of the member: neither before nor now.
            if winner == before && winner != index {
                break;
            }
            node /= 2;
        }
    }

    fn play_at(&mut self, node: usize) -> usize {
        let (left, right) = (self.winner(2 * node), self.winner(2 * node + 1));
        let winner = if self.seat(right) < self.seat(left) { right } else { left };
        if let (Some(slot), Ok(winner)) = (self.winners.get_mut(node), u32::try_from(winner)) {
            *slot = winner;
        }
        winner
    }

    fn winner(&self, node: usize) -> usize {
        self.winners.get(node).map_or(0, |winner| *winner as usize)
    }

    fn seat(&self, index: usize) -> Seat {
        self.seats.get(index).copied().unwrap_or(EMPTY)
    }
}
