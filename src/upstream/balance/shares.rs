//! The weights of all members laid side by side, for whoever points at a place among them.

use super::Member;

/// Members have as many positions of all as their weights say.
#[derive(Debug)]
pub(super) struct Shares {
    /// Where the positions of each member end, in their order; without common divisor.
    ends: Box<[u64]>,
    /// The mean effective weight.
    mean: f32,
}

impl Shares {
    pub(super) fn new(members: &[Member]) -> Self {
        let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, u64::from(member.weight)));
        let mut end = 0;
        let ends: Box<[u64]> = members
            .iter()
            .map(|member| {
                end += u64::from(member.weight) / divisor.max(1);
                end
            })
            .collect();
        let total: f32 = members.iter().map(|member| member.weight as f32).sum();
        Self { ends, mean: total / members.len().max(1) as f32 }
    }

    /// Positions in all.
    pub(super) fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whose position it is.
    pub(super) fn at(&self, position: u64) -> Option<usize> {
        let index = self.ends.partition_point(|end| *end <= position);
        (index < self.ends.len()).then_some(index)
    }

    /// How many positions are not those of `index`.
    pub(super) fn without(&self, index: usize) -> u64 {
        let (start, end) = self.range(index);
        self.total() - (end - start)
    }

    /// Whose position it is when those of `index` are left out.
    pub(super) fn at_without(&self, index: usize, position: u64) -> Option<usize> {
        let (start, end) = self.range(index);
        self.at(if position < start { position } else { position + (end - start) })
    }

    /// The weight of each member, without common divisor.
    pub(super) fn weights(&self) -> impl Iterator<Item = u64> {
        (0..self.ends.len()).map(|index| {
            let (start, end) = self.range(index);
            end - start
        })
    }

    /// How many connections a member has by its weight, the one to come included, in parts of what that is for one of
    /// mean weight. Members without connections are equal, whatever their weight: they are drawn by it already.
    pub(super) fn crowding(&self, member: &Member) -> f32 {
        member.load.active() as f32 * self.mean / member.weight as f32 + 1.0
    }

    fn range(&self, index: usize) -> (u64, u64) {
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        (start, self.ends.get(index).copied().unwrap_or(start))
    }
}

/// The greatest common divisor.
pub(super) fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}
