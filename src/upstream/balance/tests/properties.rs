//! What holds of any members, loads and orders of choices.

use proptest::prelude::*;

use super::*;

/// The least loaded of those usable, by a look at each.
fn least_loaded(balancer: &Balancer, usable: impl Fn(usize) -> bool) -> Option<u64> {
    let members = balancer.members.iter().enumerate().filter(|(index, _)| usable(*index));
    members.map(|(_, member)| rank(member.load.active() + 1, member.weight)).min()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_one_that_is_not_usable_and_none_only_if_none_is(
        all in prop::collection::vec((1..=MAX_WEIGHT, 0..4u32, prop::bool::weighted(0.3)), 0..80),
        keys in prop::collection::vec(prop::option::of(any::<u64>()), 1..20),
        seed in any::<u64>(),
    ) {
        let now = Instant::now();
        for algorithm in ALGORITHMS {
            let balancer = Balancer::new(algorithm, members(all.iter().map(|(weight, ..)| *weight)), seed);
            for (member, (_, active, _)) in balancer.members.iter().zip(&all) {
                (0..*active).for_each(|_| assert!(member.load.try_take()));
            }
            let usable = |index: usize| all[index].2;
            for key in &keys {
                let chosen = balancer.choose(*key, now, usable);
                prop_assert_eq!(chosen.is_some(), all.iter().any(|(.., usable)| *usable));
                prop_assert!(chosen.is_none_or(usable));
                prop_assert_eq!(balancer.choose(*key, now, |_| false), None);
                if let Some(chosen) = chosen {
                    assert!(balancer.members[chosen].load.try_take());
                    balancer.changed(chosen);
                }
            }
        }
    }

    #[test]
    fn fewest_connections_is_exact(
        weights in prop::collection::vec(1..=300u32, 1..70),
        steps in prop::collection::vec((any::<usize>(), any::<u32>(), 0..8u32), 1..300),
    ) {
        let now = Instant::now();
        let balancer = balancer(Algorithm::LeastConnections, weights);
        let mut open = Vec::new();
        for (pick, mask, kind) in steps {
            if kind < 3 && !open.is_empty() {
                let ended: usize = open.swap_remove(pick % open.len());
                balancer.members[ended].load.release();
                balancer.changed(ended);
                continue;
            }
            // Now and then only some of them.
            let usable = |index: usize| kind < 6 || mask >> (index % 32) & 1 == 1;
            let chosen = balancer.choose(None, now, usable);
            let rank = chosen.map(|chosen| {
                let member = &balancer.members[chosen];
                rank(member.load.active() + 1, member.weight)
            });
            prop_assert_eq!(rank, least_loaded(&balancer, usable));
            if let Some(chosen) = chosen {
                assert!(balancer.members[chosen].load.try_take());
                balancer.changed(chosen);
                open.push(chosen);
            }
        }
    }

    #[test]
    fn ranks_order_fractions(a in 0..u32::MAX, v in 1..=MAX_WEIGHT, b in 0..u32::MAX, w in 1..=MAX_WEIGHT) {
        let exact = (u64::from(a) * u64::from(w)).cmp(&(u64::from(b) * u64::from(v)));
        prop_assert_eq!(rank(a, v).cmp(&rank(b, w)), exact);
        // Neighbours: what is nearest to each other.
        let next = (u64::from(a) * u64::from(w)).div_ceil(u64::from(v));
        if let Ok(next) = u32::try_from(next) {
            let exact = (u64::from(a) * u64::from(w)).cmp(&(u64::from(next) * u64::from(v)));
            prop_assert_eq!(rank(a, v).cmp(&rank(next, w)), exact);
        }
    }
}
