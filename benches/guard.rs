//! What it costs to let a connection in: the lists, the limits.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use portcullis::config::Config;
use portcullis::guard::{Acl, Guard};
use portcullis::telemetry::Registry;

const PREFIXES: u32 = 100_000;

fn guard(limits: &str) -> Guard {
    let text = format!("listen = ':443'\n{limits}\n[[route]]\nsni = 'a.test'\nto = '10.0.0.1:443'\n");
    let config = Config::parse(Path::new("bench.toml"), &text).expect("a configuration");
    Guard::new(&config.limits, 1_000_000, &Registry::new().expect("a registry"))
}

fn lists(c: &mut Criterion) {
    let v4 = (0..PREFIXES).map(|n| IpAddr::V4(Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1))));
    let v6 =
        (0..PREFIXES).map(|n| IpAddr::V6(Ipv6Addr::from_bits(u128::from(n.wrapping_mul(0x9e37_79b1)) << 80)));
    let nets: Vec<IpNet> = v4
        .map(|ip| (ip, 24))
        .chain(v6.map(|ip| (ip, 48)))
        .filter_map(|(ip, len)| IpNet::new(ip, len).ok())
        .map(|net| net.trunc())
        .collect();
    let acl = Acl::new(&[], &nets);
    let mut n = 0u32;
    c.bench_function("lists/100,000 IPv4 prefixes", |b| {
        b.iter(|| {
            n = n.wrapping_add(0x6180_3399);
            black_box(acl.allows(IpAddr::V4(Ipv4Addr::from_bits(n))))
        });
    });
    c.bench_function("lists/100,000 IPv6 prefixes", |b| {
        b.iter(|| {
            n = n.wrapping_add(0x6180_3399);
            black_box(acl.allows(IpAddr::V6(Ipv6Addr::from_bits(u128::from(n) << 80))))
        });
    });
}

fn limits(c: &mut Criterion) {
    let now = Instant::now();
    let client = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n % 100_000));
    for (name, text) in [
        ("admit/no limit", "connection_limit = { per_ip = 'off', before_hello = 'off' }"),
        ("admit/one limit", "connection_limit = 256"),
        ("admit/two limits", "connection_limit = 256\nrate_limit = '1000/s'"),
    ] {
        let guard = guard(text);
        let mut n = 0u32;
        c.bench_function(name, |b| {
            b.iter(|| {
                n = n.wrapping_add(1);
                black_box(guard.admit(client(n), "default", now).is_ok())
            });
        });
    }
    let banned = guard("connection_limit = { per_ip = 'off', before_hello = 'off' }");
    for n in 0..10_000 {
        let network = IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)));
        banned.ban(network, Duration::from_secs(3600), "bench", now).expect("there is room");
    }
    c.bench_function("admit/no limit, 10,000 bans", |b| {
        b.iter(|| black_box(banned.admit(client(7), "default", now).is_ok()));
    });
    let guard = guard("rate_limit = '1/h'\nconnection_limit = { per_ip = 'off', before_hello = 'off' }");
    let offender = client(7);
    drop(guard.admit(offender, "default", now));
    c.bench_function("admit/refused", |b| {
        b.iter(|| black_box(guard.admit(offender, "default", now).is_err()));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = lists, limits
}
criterion_main!(benches);
