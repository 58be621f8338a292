//! What it costs to choose an endpoint, by the number of them.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::upstream::balance::{Algorithm, Balancer, Load, Member, Sticky, name_key, source_key};

/// Connections open at a time.
const HELD: usize = 10_000;

/// So many members, of weights from 1 to 5.
fn members(count: u32) -> Vec<Member> {
    let member = |n: u32| Member {
        id: name_key(&format!("{}:443", Ipv4Addr::from_bits(0x0a00_0000 + n))),
        weight: (1 + n % 5) * 256,
        load: Arc::new(Load::new()),
    };
    (0..count).map(member).collect()
}

/// Each algorithm alone, among members that have connections and latencies.
fn choices(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("choose");
    for count in [3, 1_000] {
        for (name, algorithm) in [
            ("round robin", Algorithm::RoundRobin),
            ("least connections", Algorithm::LeastConnections),
            ("p2c", Algorithm::P2c),
            ("random", Algorithm::Random),
            ("first", Algorithm::First),
            ("hash", Algorithm::Hash { load: None }),
            ("hash, bounded", Algorithm::Hash { load: Some(125) }),
        ] {
            let members = members(count);
            for (member, n) in members.iter().zip(0..) {
                member.load.observed(Duration::from_micros(500 + n), now);
            }
            let balancer = Balancer::new(algorithm, members.clone(), 7);
            let full = |index: usize| members.get(index).is_none_or(|member| member.load.is_full());
            let mut key = 0u64;
            group.bench_function(format!("{name}, {count}"), |bencher| {
                bencher.iter(|| {
                    key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    black_box(balancer.choose(Some(key), now, |index| !full(index)))
                });
            });
        }
    }
    group.finish();
}

/// A connection that comes for one that goes: chosen, taken and told; released and told.
fn connections(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("choose, take, release");
    for count in [3, 1_000] {
        for (name, algorithm) in [
            ("least connections", Algorithm::LeastConnections),
            ("p2c", Algorithm::P2c),
            ("hash, bounded", Algorithm::Hash { load: Some(125) }),
        ] {
            let members = members(count);
            let balancer = Balancer::new(algorithm, members.clone(), 7);
            let mut key = 0u64;
            let mut take = || {
                key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let usable = |index: usize| members.get(index).is_some_and(|member| !member.load.is_full());
                let chosen = balancer.choose(Some(key), now, usable)?;
                members.get(chosen)?.load.try_take().then(|| balancer.changed(chosen))?;
                Some(chosen)
            };
            let mut open: VecDeque<usize> = (0..HELD).filter_map(|_| take()).collect();
            group.bench_function(format!("{name}, {count}"), |bencher| {
                bencher.iter(|| {
                    open.extend(take());
                    if let Some(ended) = open.pop_front()
                        && let Some(member) = members.get(ended)
                    {
                        member.load.release();
                        balancer.changed(ended);
                    }
                });
            });
        }
    }
    group.finish();
}

fn clients(criterion: &mut Criterion) {
    let now = Instant::now();
    let client = |n: u32| source_key(IpAddr::V4(Ipv4Addr::from_bits(n)), 7);
    let mut n = 0u32;
    criterion.bench_function("the key of a client", |bencher| {
        bencher.iter(|| {
            n = n.wrapping_add(1);
            black_box(client(n))
        });
    });
    let sticky = Sticky::new(Duration::from_secs(3600));
    (0..50_000).for_each(|n| sticky.keep(client(n), 1, now));
    criterion.bench_function("sticky/one of 50,000", |bencher| {
        bencher.iter(|| {
            n = (n + 7919) % 50_000;
            black_box(sticky.find(client(n), now))
        });
    });
    criterion.bench_function("sticky/another when it is full", |bencher| {
        bencher.iter(|| {
            n = n.wrapping_add(1);
            sticky.keep(client(n), 1, now);
        });
    });
}

/// What the control runtime does when endpoints change.
fn builds(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for count in [3, 500] {
        for (name, algorithm) in [
            ("round robin", Algorithm::RoundRobin),
            ("least connections", Algorithm::LeastConnections),
            ("hash", Algorithm::Hash { load: None }),
        ] {
            let members = members(count);
            group.bench_function(format!("{name}, {count}"), |bencher| {
                bencher.iter(|| black_box(Balancer::new(algorithm, members.clone(), 7)));
            });
        }
    }
    group.finish();
}

criterion_group!(balance, choices, connections, clients, builds);
criterion_main!(balance);
