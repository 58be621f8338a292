use std::cell::Cell;
use std::collections::HashSet;

use super::*;

mod properties;

const CHOICES: usize = 100_000;
const ALGORITHMS: [Algorithm; 7] = [
    Algorithm::RoundRobin,
    Algorithm::LeastConnections,
    Algorithm::P2c,
    Algorithm::Random,
    Algorithm::First,
    Algorithm::Hash { load: None },
    Algorithm::Hash { load: Some(125) },
];

fn members(weights: impl IntoIterator<Item = u32>) -> Vec<Member> {
    let member =
        |(n, weight)| Member { id: name_key(&format!("192.0.2.1:{n}")), weight, load: Arc::new(Load::new()) };
    weights.into_iter().enumerate().map(member).collect()
}

fn balancer(algorithm: Algorithm, weights: impl IntoIterator<Item = u32>) -> Balancer {
    Balancer::new(algorithm, members(weights), 7)
}

fn weights() -> [Vec<u32>; 5] {
    [vec![1, 1, 1], vec![5, 3, 2], (1..=10).collect(), vec![256; 40], (1..=40).map(|n| n * 201).collect()]
}

fn anyone(_: usize) -> bool {
    true
}

/// Keys that are all different.
fn keys() -> impl Iterator<Item = u64> {
    (0..CHOICES as u64).map(mix)
}

/// One of so many.
fn index(bits: u64, count: usize) -> usize {
    usize::try_from(bits % count as u64).unwrap()
}

/// How often each member is chosen.
fn shares(balancer: &Balancer, choose: impl FnMut(u64) -> Option<usize>) -> Vec<usize> {
    let mut counts = vec![0; balancer.len()];
    keys().map(choose).for_each(|chosen| counts[chosen.unwrap()] += 1);
    counts
}

/// Each count is its weight's share, and off by no more than `off` of that.
#[track_caller]
fn assert_by_weight(counts: &[usize], weights: &[u32], off: impl Fn(f64) -> f64) {
    let chosen: usize = counts.iter().sum();
    let weight: u32 = weights.iter().sum();
    for (count, own) in counts.iter().zip(weights) {
        let due = chosen as f64 * f64::from(*own) / f64::from(weight);
        let difference = (*count as f64 - due).abs();
        assert!(difference <= off(due), "{count} instead of {due} of {weights:?}: {counts:?}");
    }
}

/// Two parts in a hundred.
fn closely(due: f64) -> f64 {
    0.02 * due
}

/// What is drawn: two parts in a hundred of all, and five standard deviations.
fn by_chance(due: f64) -> f64 {
    (0.02 * CHOICES as f64).min(5.0 * due.sqrt())
}

#[test]
fn what_is_drawn_is_drawn_by_weight() {
    let now = Instant::now();
    for weights in weights() {
        for algorithm in [Algorithm::Random, Algorithm::P2c, Algorithm::Hash { load: None }] {
            let balancer = balancer(algorithm, weights.clone());
            let counts = shares(&balancer, |key| balancer.choose(Some(key), now, anyone));
            // Without connections and latencies, the first of two that are drawn.
            assert_by_weight(&counts, &weights, by_chance);
        }
    }
}

#[test]
fn a_rotation_is_exact_over_a_period() {
    let now = Instant::now();
    for weights in weights() {
        let balancer = balancer(Algorithm::RoundRobin, weights.clone());
        let divisor = weights.iter().fold(0, |divisor, weight| shares::gcd(divisor, u64::from(*weight)));
        let period = weights.iter().map(|weight| u64::from(*weight)).sum::<u64>() / divisor;
        for _ in 0..2 {
            let mut counts = vec![0; weights.len()];
            (0..period).for_each(|_| counts[balancer.choose(None, now, anyone).unwrap()] += 1);
            let due: Vec<_> = weights.iter().map(|weight| u64::from(*weight) / divisor).collect();
            assert_eq!(counts, due);
        }
        assert_by_weight(&shares(&balancer, |_| balancer.choose(None, now, anyone)), &weights, |due| {
            closely(due).max(3.0)
        });
    }
}

#[test]
fn equal_weights_take_strict_turns() {
    let now = Instant::now();
    for (count, weight) in [(1, 1), (3, 1), (3, 256), (1000, 65_536), (5000, 77)] {
        let balancer = balancer(Algorithm::RoundRobin, vec![weight; count]);
        for turn in 0..2 * count + 1 {
            assert_eq!(balancer.choose(None, now, anyone), Some(turn % count));
        }
    }
}

#[test]
fn turns_are_evenly_mixed() {
    let now = Instant::now();
    let names = |balancer: &Balancer, count: usize| -> String {
        (0..count).map(|_| ["A", "B", "C"][balancer.choose(None, now, anyone).unwrap()]).collect()
    };
    assert_eq!(names(&balancer(Algorithm::RoundRobin, [5, 3, 2]), 10), "ABCAABACBA");
    assert_eq!(names(&balancer(Algorithm::RoundRobin, [2, 1]), 9), "ABAABAABA");
    // Whatever stretch one looks at, nobody had clearly more than its share: written periods, and steps.
    for (weights, most) in [
        (vec![5, 3, 2], 1.5),
        ((1..=10).collect(), 2.0),
        (vec![1000, 1, 1], 2.0),
        (vec![65_536, 40_000, 6_554], 5.0),
        ((1..=300).map(|n| 25_600 + n).collect(), 5.0),
    ] {
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let balancer = balancer(Algorithm::RoundRobin, weights.clone());
        let mut counts = vec![0; weights.len()];
        let mut ahead = vec![(0f64, 0f64); weights.len()];
        for turn in 1..=50_000 {
            counts[balancer.choose(None, now, anyone).unwrap()] += 1;
            for ((count, weight), (least, most)) in counts.iter().zip(&weights).zip(&mut ahead) {
                let off = f64::from(*count) - f64::from(turn) * f64::from(*weight) / total as f64;
                (*least, *most) = (least.min(off), most.max(off));
            }
        }
        let worst = ahead.iter().map(|(least, most)| most - least).fold(0.0, f64::max);
        assert!(worst <= most, "{worst} turns off of {weights:?}");
    }
}

#[test]
fn what_is_due_to_one_that_is_gone_is_shared_by_all() {
    let now = Instant::now();
    for algorithm in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::Hash { load: None }] {
        for weights in [vec![1; 10], (1..=10).collect()] {
            let balancer = balancer(algorithm, weights.clone());
            let counts = shares(&balancer, |key| balancer.choose(Some(key), now, |index| index != 4));
            let mut left = weights.clone();
            left[4] = 0;
            assert_by_weight(&counts, &left, |due| 0.05 * due);
        }
    }
    // Nearly all: what is left is found without a turn for each.
    for algorithm in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::Hash { load: None }] {
        let balancer = balancer(algorithm, vec![3; 1000]);
        let asked = Cell::new(0);
        let counts = shares(&balancer, |key| {
            if key % 100 > 0 {
                return Some(998);
            }
            let usable = |index| {
                asked.set(asked.get() + 1);
                index == 17 || index == 18
            };
            balancer.choose(Some(key), now, usable)
        });
        assert_eq!(counts[17] + counts[18] + counts[998], CHOICES);
        assert!((0.8..1.25).contains(&(counts[17] as f64 / counts[18] as f64)), "{algorithm:?}");
        assert!(asked.get() < (counts[17] + counts[18]) * (1000 + 257), "{} times asked", asked.get());
    }
}

/// Takes and gives back connections, `held` of them at a time, each of which ends at random; counts choices.
fn churn(balancer: &Balancer, held: usize) -> Vec<usize> {
    let now = Instant::now();
    let mut open = Vec::new();
    shares(balancer, |key| {
        if open.len() >= held {
            let ended: usize = open.swap_remove(index(mix(key), held));
            balancer.members[ended].load.release();
            balancer.changed(ended);
        }
        let chosen = balancer.choose(Some(key), now, anyone)?;
        assert!(balancer.members[chosen].load.try_take());
        balancer.changed(chosen);
        open.push(chosen);
        Some(chosen)
    })
}

#[test]
fn connections_that_are_held_are_held_by_weight() {
    for weights in weights() {
        for algorithm in [Algorithm::LeastConnections, Algorithm::P2c] {
            for held in [1000, CHOICES] {
                let balancer = balancer(algorithm, weights.clone());
                // All that are chosen are held in the end, or connections end by chance.
                let exactly = |due: f64| closely(due).max(3.0);
                let counts = churn(&balancer, held);
                let off = if held == CHOICES { exactly } else { by_chance };
                assert_by_weight(&counts, &weights, off);
                let active: Vec<_> =
                    balancer.members.iter().map(|member| member.load.active() as usize).collect();
                assert_eq!(active.iter().sum::<usize>(), held);
                // Two that are drawn are not all.
                let loosely = |due: f64| (0.1 * due).max(5.0);
                let held_exactly = held == CHOICES || algorithm == Algorithm::LeastConnections;
                assert_by_weight(&active, &weights, if held_exactly { exactly } else { loosely });
            }
        }
    }
}

#[test]
fn of_equals_the_one_chosen_longest_ago() {
    let now = Instant::now();
    for count in [1, 2, 8, 9, 100, 1000] {
        let balancer = balancer(Algorithm::LeastConnections, vec![9; count]);
        for turn in 0..3 * count {
            assert_eq!(balancer.choose(None, now, anyone), Some(turn % count), "turn {turn} of {count}");
        }
    }
}

#[test]
fn two_that_are_drawn_are_told_apart_by_latency_and_load() {
    let now = Instant::now();
    let balancer = balancer(Algorithm::P2c, [1, 1]);
    let chosen = || (0..100).map(|_| balancer.choose(None, now, anyone).unwrap()).collect::<HashSet<_>>();
    assert_eq!(chosen(), HashSet::from([0, 1]), "nothing is known");
    let [one, other] = &*balancer.members else { panic!("two members") };
    one.load.observed(Duration::from_millis(10), now);
    assert_eq!(chosen(), HashSet::from([0, 1]), "one of them is known");
    other.load.observed(Duration::from_millis(25), now);
    assert_eq!(chosen(), HashSet::from([0]), "the faster");
    assert!(one.load.try_take());
    assert_eq!(chosen(), HashSet::from([0]), "twice as much to do, and still faster");
    assert!(one.load.try_take());
    assert_eq!(chosen(), HashSet::from([1]), "three times");
    assert_eq!(balancer.choose(None, now, |index| index == 0), Some(0));
}

#[test]
fn the_first_is_the_first() {
    let now = Instant::now();
    let balancer = balancer(Algorithm::First, [1, 9, 9]);
    let load = &balancer.members[0].load;
    load.set_limit(1);
    let choose = || balancer.choose(None, now, |index| !balancer.members[index].load.is_full());
    assert_eq!(choose(), Some(0));
    assert!(load.try_take());
    assert_eq!(choose(), Some(1));
    load.release();
    assert_eq!(choose(), Some(0));
}

/// How many in a hundred of the keys belong to other members, by id.
fn moved(before: &Balancer, after: &Balancer) -> f64 {
    let now = Instant::now();
    let owner = |balancer: &Balancer, key| {
        balancer.choose(Some(key), now, anyone).map(|index| balancer.members[index].id)
    };
    let moved = keys().filter(|key| owner(before, *key) != owner(after, *key)).count();
    moved as f64 * 100.0 / CHOICES as f64
}

#[test]
fn few_keys_move_when_a_member_comes_or_leaves() {
    let hash = Algorithm::Hash { load: None };
    for count in [3, 10, 100, 1000] {
        for weights in [vec![1; count], (1..=5).cycle().take(count).collect()] {
            let all = members(weights.clone());
            let mut left = all.clone();
            let gone = left.remove(count / 2);
            let share = f64::from(gone.weight) * 100.0 / f64::from(weights.iter().sum::<u32>());
            let (all, left) = (Balancer::new(hash, all, 1), Balancer::new(hash, left, 2));
            for moved in [moved(&all, &left), moved(&left, &all)] {
                assert!(moved >= 0.9 * share, "{moved} % of the keys of {count}");
                assert!(moved <= share + 5.0, "{moved} % of the keys of {count}");
            }
        }
    }
}

#[test]
fn the_order_of_members_does_not_matter_to_keys() {
    let hash = Algorithm::Hash { load: None };
    let members = members([5, 3, 2, 9]);
    let mut turned = members.clone();
    turned.reverse();
    let (one, other) = (Balancer::new(hash, members, 1), Balancer::new(hash, turned, 2));
    assert_eq!(moved(&one, &other), 0.0);
    let now = Instant::now();
    for key in keys().take(1000) {
        // The same for those whose member cannot be chosen.
        let [a, b] = [&one, &other].map(|balancer| {
            let gone = balancer.index_of(one.members[1].id);
            balancer.choose(Some(key), now, |index| Some(index) != gone).map(|at| balancer.members[at].id)
        });
        assert_eq!(a, b);
    }
}

#[test]
fn no_member_has_more_than_its_bound() {
    let now = Instant::now();
    for (weights, percent) in [(vec![1; 10], 125), ((1..=10).collect(), 110), (vec![7; 100], 100)] {
        let balancer = balancer(Algorithm::Hash { load: Some(percent) }, weights.clone());
        let weight: u32 = weights.iter().sum();
        // Half of all connections are of one client.
        for (turn, key) in keys().take(20_000).enumerate() {
            let key = if turn % 2 == 0 { 42 } else { key };
            let chosen = balancer.choose(Some(key), now, anyone).unwrap();
            let member = &balancer.members[chosen];
            assert!(member.load.try_take());
            balancer.changed(chosen);
            let share = (turn + 1) as f64 * f64::from(member.weight) / f64::from(weight);
            let most = (share * f64::from(percent) / 100.0 + 1e-9).ceil();
            assert!(f64::from(member.load.active()) <= most, "{chosen} after {turn}: above {most}");
        }
    }
    // Others than the usable one have all the room there is.
    let balancer = balancer(Algorithm::Hash { load: Some(100) }, [1, 1]);
    for _ in 0..10 {
        assert_eq!(balancer.choose(Some(3), now, |index| index == 1), Some(1));
        assert!(balancer.members[1].load.try_take());
        balancer.changed(1);
    }
    let other = (0..100).map(|key| balancer.choose(Some(key), now, anyone)).collect::<HashSet<_>>();
    assert_eq!(other, HashSet::from([Some(0)]));
}

#[test]
fn a_bounded_key_stays_where_it_is_while_there_is_room() {
    let now = Instant::now();
    let (bounded, free) = (
        balancer(Algorithm::Hash { load: Some(200) }, vec![1; 10]),
        balancer(Algorithm::Hash { load: None }, vec![1; 10]),
    );
    let same = keys().take(10_000).filter(|key| {
        let chosen = bounded.choose(Some(*key), now, anyone).unwrap();
        assert!(bounded.members[chosen].load.try_take());
        bounded.changed(chosen);
        Some(chosen) == free.choose(Some(*key), now, anyone)
    });
    assert!(same.count() > 9_900);
}

#[test]
fn changes_that_nobody_told_are_found_out() {
    let now = Instant::now();
    for algorithm in [Algorithm::LeastConnections, Algorithm::Hash { load: Some(100) }] {
        let balancer = balancer(algorithm, vec![1; 50]);
        for _ in 0..100 {
            balancer.members.iter().for_each(|member| assert!(member.load.try_take()));
        }
        (0..50).for_each(|index| balancer.changed(index));
        (0..100).for_each(|_| balancer.members[33].load.release());
        let chosen = (0..50).filter(|_| balancer.choose(Some(1), now, |index| index == 33).is_some());
        assert_eq!(chosen.count(), 50);
        match &balancer.choice {
            Choice::Hash(_, Some(bounds)) => assert_eq!(bounds.sum(), 4900),
            _ => assert_eq!(balancer.choose(None, now, anyone), Some(33)),
        }
    }
}

/// Chooses and takes, with twenty connections at a time, then gives all back; counts those taken.
fn take_and_release(balancer: &Balancer) -> Vec<usize> {
    let now = Instant::now();
    let mut counts = vec![0; balancer.len()];
    let mut open = Vec::new();
    let release = |ended: usize| {
        balancer.members[ended].load.release();
        balancer.changed(ended);
    };
    for key in keys().take(5000) {
        let usable = |index: usize| !balancer.members[index].load.is_full();
        let Some(chosen) = balancer.choose(Some(key), now, usable) else { continue };
        if balancer.members[chosen].load.try_take() {
            balancer.changed(chosen);
            counts[chosen] += 1;
            open.push(chosen);
        }
        if open.len() > 20 {
            release(open.swap_remove(index(key, open.len())));
        }
    }
    open.into_iter().for_each(release);
    counts
}

#[test]
fn threads_that_choose_at_once_share_alike_and_lose_no_count() {
    const THREADS: usize = 4;
    let now = Instant::now();
    for algorithm in ALGORITHMS {
        for count in [3, 50] {
            let balancer = balancer(algorithm, vec![2; count]);
            balancer.members.iter().for_each(|member| member.load.set_limit(40));
            let mut counts = vec![0; count];
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..THREADS).map(|_| scope.spawn(|| take_and_release(&balancer))).collect();
                for thread in threads {
                    let own = thread.join().unwrap();
                    counts.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                }
            });
            assert!(balancer.members.iter().all(|member| member.load.active() == 0));
            match algorithm {
                Algorithm::RoundRobin | Algorithm::Random | Algorithm::Hash { load: None } => {
                    assert_by_weight(&counts, &vec![2; count], |due| 0.3 * due);
                }
                // A thread that does not run for a while holds what it has, and others rightly go elsewhere meanwhile.
                Algorithm::LeastConnections | Algorithm::P2c | Algorithm::Hash { load: Some(_) } => {
                    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
                }
                Algorithm::First => {}
            }
            if let Choice::Hash(_, Some(bounds)) = &balancer.choice {
                assert_eq!(bounds.sum(), 0);
            }
            if algorithm == Algorithm::LeastConnections {
                // It knows all of them: each is chosen once before any is chosen again.
                let next: HashSet<_> = (0..count).map(|_| balancer.choose(None, now, anyone)).collect();
                assert_eq!(next.len(), count);
            }
        }
    }
}

#[test]
fn one_that_follows_goes_on_where_the_other_was() {
    let now = Instant::now();
    let choose = |balancer: &Balancer| balancer.choose(None, now, anyone);
    for (algorithm, count) in
        [(Algorithm::RoundRobin, 5), (Algorithm::LeastConnections, 5), (Algorithm::LeastConnections, 20)]
    {
        let members = members(vec![1; count]);
        let mut balancer = Balancer::new(algorithm, members.clone(), 1);
        for turn in 0..3 * count {
            balancer = Balancer::new(algorithm, members.clone(), 1).continuing(&balancer);
            assert_eq!(choose(&balancer), Some(turn % count), "{algorithm:?}");
        }
        // Of others: by their ids.
        if algorithm == Algorithm::LeastConnections {
            assert_eq!(choose(&balancer), Some(0));
            let fewer = Balancer::new(algorithm, members[..3].to_vec(), 1).continuing(&balancer);
            assert_eq!([choose(&fewer), choose(&fewer), choose(&fewer)], [Some(1), Some(2), Some(0)]);
        }
    }
    let random = || balancer(Algorithm::Random, vec![1; 1000]);
    let (first, again) = (random(), random());
    let drawn: Vec<_> = (0..10).map(|_| choose(&first)).collect();
    assert_eq!(drawn, (0..10).map(|_| choose(&again)).collect::<Vec<_>>(), "by the seed");
    let next = random().continuing(&first);
    assert_eq!(choose(&next), choose(&again));
}

#[test]
fn members_are_found_by_their_ids() {
    let balancer = balancer(Algorithm::First, vec![1; 100]);
    for (index, member) in balancer.members.iter().enumerate() {
        assert_eq!(balancer.index_of(member.id), Some(index));
    }
    assert_eq!(balancer.index_of(1), None);
    let empty = Balancer::new(Algorithm::First, Vec::new(), 1);
    assert!(empty.is_empty() && empty.index_of(1).is_none() && !balancer.is_empty());
}

#[test]
fn a_slow_start_goes_from_a_tenth_to_all() {
    let minute = Duration::from_secs(60);
    let ramp = |full, seconds| ramp(full, Duration::from_secs(seconds), minute);
    assert_eq!([ramp(256, 0), ramp(256, 30), ramp(256, 59), ramp(256, 60)], [26, 141, 252, 256]);
    assert_eq!([ramp(25_600, 0), ramp(25_600, 30), ramp(25_600, 600)], [2560, 14_080, 25_600]);
    assert_eq!([ramp(0, 60), ramp(MAX_WEIGHT, 60), ramp(u32::MAX, 60)], [1, MAX_WEIGHT, MAX_WEIGHT]);
    assert_eq!(super::ramp(3, Duration::ZERO, Duration::ZERO), 3, "none");
    let mut before = 0;
    for seconds in 0..=60 {
        assert!(ramp(700, seconds) > before);
        before = ramp(700, seconds);
    }
}

#[test]
fn shares_of_any_size_become_weights() {
    assert!(effective(&[]).is_empty());
    assert_eq!(effective(&[0, 0]), [0, 0]);
    assert_eq!(effective(&[1, 1]), [MAX_WEIGHT, MAX_WEIGHT]);
    assert_eq!(effective(&[5, 3, 0, 2]), [65_535, 39_321, 0, 26_214], "whole multiples");
    assert_eq!(effective(&[256 * 65_535 * 100, 1, 0]), [MAX_WEIGHT, 1, 0]);
    assert_eq!(effective(&[u64::MAX, u64::MAX / 2]), [MAX_WEIGHT, MAX_WEIGHT / 2 - 1]);
}

/// What other programs, which speak SipHash-2-4 as well, must find.
#[test]
fn keys_are_the_same_for_everybody() {
    let ip = |text: &str| text.parse().unwrap();
    assert_eq!(source_key(ip("192.0.2.1"), 0), 0x2484_3acd_d433_f594);
    assert_eq!(source_key(ip("192.0.2.1"), 7), 0xd038_1d67_e657_255b);
    assert_eq!(source_key(ip("2001:db8:1:2::"), 0), 0xcf76_6c81_d120_efe2);
    assert_eq!(name_key("10.0.0.1:5432"), 0xad2f_8775_5169_4bca);
    for (one, other, same) in [
        ("192.0.2.1", "::ffff:192.0.2.1", true),
        ("192.0.2.1", "192.0.2.2", false),
        ("2001:db8:1:2::", "2001:db8:1:2:ffff::1", true),
        ("2001:db8:1:2::", "2001:db8:1:3::", false),
    ] {
        assert_eq!(source_key(ip(one), 1) == source_key(ip(other), 1), same, "{one} and {other}");
    }
}
