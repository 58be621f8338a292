//! How many connections members may have when keys would give some of them too many: consistent hashing with
//! bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Counter, Member};

/// No member gets more than so much of its share. There is always one below it.
#[derive(Debug)]
pub(super) struct Bounds {
    /// At least 100.
    percent: u64,
    weight: u64,
    /// Connections of each member as they are contained in the sum.
    counted: Box<[AtomicU32]>,
    /// Those of all members: known without a look at each. Wraps below zero for a moment when threads tell changes in
    /// another order than they happened.
    sum: AtomicU64,
    suspect: Counter,
}

impl Bounds {
    pub(super) fn new(percent: u32, members: &[Member]) -> Self {
        let bounds = Self {
            percent: u64::from(percent.max(100)),
            weight: members.iter().map(|member| u64::from(member.weight)).sum(),
            counted: members.iter().map(|_| AtomicU32::new(0)).collect(),
            sum: AtomicU64::new(0),
            suspect: Counter::default(),
        };
        (0..members.len()).for_each(|index| bounds.changed(index, members));
        bounds
    }

    /// Whether the member may have another connection.
    pub(super) fn has_room(&self, index: usize, members: &[Member]) -> bool {
        let Some(member) = members.get(index) else { return false };
        let all = self.sum.load(Ordering::Relaxed).saturating_add(1);
        let most = all.saturating_mul(u64::from(member.weight)).saturating_mul(self.percent);
        u64::from(member.load.active()) < most.div_ceil(self.weight.saturating_mul(100).max(1))
    }

    pub(super) fn changed(&self, index: usize, members: &[Member]) {
        let (Some(counted), Some(member)) = (self.counted.get(index), members.get(index)) else { return };
        let now = member.load.active();
        let before = counted.swap(now, Ordering::Relaxed);
        if now != before {
            self.sum.fetch_add(u64::from(now).wrapping_sub(u64::from(before)), Ordering::Relaxed);
        }
    }

    /// Looks at one member, each time another, in case its change was not told.
    pub(super) fn look_around(&self, members: &[Member]) {
        let suspect = self.suspect.next().checked_rem(members.len() as u64);
        if let Some(index) = suspect.and_then(|index| usize::try_from(index).ok()) {
            self.changed(index, members);
        }
    }

    /// Connections of all members.
    #[cfg(test)]
    pub(super) fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}
