//! Members in turn, by their weights.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::shares::{Shares, gcd};
use super::{Counter, GOLDEN, Member, high_product, rank};

/// A period of at most so many turns is written down: 16 KiB.
const WRITTEN: u64 = 4096;

/// Whose turn it is. In a period of as many turns as there are positions, each member has as many as it has positions.
#[derive(Debug)]
pub(super) struct Rotation {
    turn: Counter,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// The turns of a period.
    Written(Box<[u32]>),
    /// Each turn is so many positions after the one before. That has no divisor in common with the number of positions,
    /// so each is met once in a period; as near to the golden section as that goes, so that they are met evenly (three-distance
    /// theorem).
    Steps(u64),
}

/// Turns by weight, without end: the next is whoever is due first, and a member is due in the middle of each of its shares
/// of a period. Of those due at once, the one with the smallest number.
pub(super) struct Turns<'a> {
    members: &'a [Member],
    due: BinaryHeap<Reverse<(u64, u32)>>,
    had: Vec<u32>,
}

impl Rotation {
    pub(super) fn new(members: &[Member], shares: &Shares) -> Self {
        let total = shares.total();
        let order = if total <= WRITTEN {
            let period = usize::try_from(total).unwrap_or(0);
            Order::Written(Turns::new(members).take(period).collect())
        } else if shares.weights().all(|weight| weight == 1) {
            Order::Steps(1)
        } else {
            Order::Steps(near_golden(total))
        };
        Self { turn: Counter::default(), order }
    }

    pub(super) fn next(&self, shares: &Shares) -> Option<usize> {
        let total = shares.total();
        let turn = self.turn.next().checked_rem(total)?;
        match &self.order {
            Order::Written(order) => order.get(usize::try_from(turn).ok()?).map(|index| *index as usize),
            // No overflow while there are at most 65,536 members of the largest weight.
            Order::Steps(step) => shares.at(turn.wrapping_mul(*step) % total),
        }
    }

    pub(super) fn follow(&self, previous: &Self) {
        self.turn.follow(&previous.turn);
    }
}

/// The number nearest to `total` divided by the golden ratio that has no divisor in common with it.
fn near_golden(total: u64) -> u64 {
    let golden = high_product(GOLDEN, total);
    let near = (0..golden).flat_map(|off| [golden - off, golden + off]);
    near.into_iter().find(|step| gcd(*step, total) == 1).unwrap_or(1)
}

impl<'a> Turns<'a> {
    pub(super) fn new(members: &'a [Member]) -> Self {
        let due = members.iter().zip(0..).map(|(member, index)| Reverse((rank(1, member.weight), index)));
        Self { members, due: due.collect(), had: vec![0; members.len()] }
    }
}

impl Iterator for Turns<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let mut first = self.due.peek_mut()?;
        let Reverse((_, index)) = *first;
        let had = self.had.get_mut(index as usize)?;
        *had = had.saturating_add(1);
        // In halves of a share: 1, 3, 5…
        let halves = had.saturating_mul(2).saturating_add(1);
        *first = Reverse((rank(halves, self.members.get(index as usize)?.weight), index));
        Some(index)
    }
}
