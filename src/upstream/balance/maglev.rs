//! Consistent hashing by Maglev (Eisenbud et al., NSDI 2016, section 3.4), with weights.

use super::{GOLDEN, Member, mix, rotation::Turns};

/// Sizes of tables, primes: the smallest that has a hundred slots a member. Between one size and the next all keys
/// move, so the first is large enough for nearly everybody: 131 KB up to 655 members, then 2 MB up to 10,485.
const SIZES: [u64; 2] = [65_537, 1_048_583];
const LARGEST: u64 = 6_553_621;
const SLOTS_A_MEMBER: u64 = 100;
/// Slots looked at for a member that can be chosen, before all members are.
const WALK: usize = 256;

/// Which member a key belongs to. The order of the members does not matter, so that proxies that know the same ones
/// agree.
#[derive(Debug)]
pub(super) struct Maglev {
    /// The number of a member in each. Members beyond what a `u16` can count have no slots.
    slots: Box<[u16]>,
}

/// The slots that a member would like to have, the dearest first: all of them, since the size is a prime.
struct Wishes {
    next: u64,
    step: u64,
}

impl Maglev {
    pub(super) fn new(members: &[Member]) -> Self {
        let wanted = members.len() as u64 * SLOTS_A_MEMBER;
        let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(LARGEST);
        let mut by_id: Vec<_> = members.iter().zip(0..=u16::MAX).collect();
        by_id.sort_by_key(|(member, _)| member.id);
        let sorted: Vec<Member> = by_id.iter().map(|(member, _)| (*member).clone()).collect();
        let mut wishes: Vec<_> = sorted.iter().map(|member| Wishes::new(member.id, size)).collect();
        let mut slots = vec![None; usize::try_from(size).unwrap_or(0)];
        for turn in Turns::new(&sorted).take(slots.len()) {
            let turn = turn as usize;
            let (Some(wishes), Some((_, index))) = (wishes.get_mut(turn), by_id.get(turn)) else { break };
            // There is a free one: each turn has taken one, and there are as many turns as slots.
            while let Some(slot) = slots.get_mut(wishes.next(size)) {
                if slot.is_none() {
                    *slot = Some(*index);
                    break;
                }
            }
        }
        Self { slots: slots.into_iter().map_while(|slot| slot).collect() }
    }

    /// The member that `key` belongs to; when that is not usable, the one of the next slot whose is. Neighbours in the table
    /// are as good as drawn, so what one cannot take is shared by all.
    pub(super) fn choose(
        &self,
        key: u64,
        members: &[Member],
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = usize::try_from(key.checked_rem(self.slots.len() as u64)?).ok()?;
        let (before, after) = self.slots.split_at_checked(first)?;
        let walk = after.iter().chain(before).take(WALK).map(|index| usize::from(*index));
        let mut last = None;
        for index in walk {
            if last != Some(index) && usable(index) {
                return Some(index);
            }
            last = Some(index);
        }
        highest(key, members, usable)
    }
}

/// The usable member with the highest score for `key`, by weight (rendezvous hashing, Thaler and Ravishankar): a look
/// at each.
fn highest(key: u64, members: &[Member], usable: impl Fn(usize) -> bool) -> Option<usize> {
    let score = |member: &Member| {
        // In (0, 1): 53 bits are what a float has.
        let drawn = ((mix(key ^ mix(member.id)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        f64::from(member.weight) / -drawn.ln()
    };
    let usable = members.iter().enumerate().filter(|(index, _)| usable(*index));
    let scored = usable.map(|(index, member)| (index, score(member), member.id));
    let (index, ..) = scored.max_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)))?;
    Some(index)
}

impl Wishes {
    fn new(id: u64, size: u64) -> Self {
        let (first, second) = (mix(id), mix(id.wrapping_add(GOLDEN)));
        Self { next: first % size, step: second % (size - 1) + 1 }
    }

    fn next(&mut self, size: u64) -> usize {
        let slot = self.next;
        self.next = (slot + self.step) % size;
        usize::try_from(slot).unwrap_or(usize::MAX)
    }
}
