//! What it costs to find a route, by the number of names.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::config::Config;
use portcullis::peek::{ClientHello, Preface, ServerName};
use portcullis::route::{Query, RouteTable};

/// `names` exact names and one wildcard, each on a route of its own.
fn table(names: usize) -> RouteTable {
    let mut toml =
        String::from("listen = \":443\"\n[[route]]\nsni = \"*.wild.test\"\nto = \"10.0.0.1:443\"\n");
    for name in 0..names {
        let _ = write!(toml, "[[route]]\nsni = \"app{name}.example.com\"\nto = \"10.0.0.1:443\"\n");
    }
    RouteTable::new(&Config::parse(Path::new("bench.toml"), &toml).expect("a valid configuration"))
}

fn preface(name: &str) -> Preface {
    let server_name = Some(ServerName::parse(name.as_bytes()).expect("a valid name"));
    Preface::Tls(Box::new(ClientHello { server_name, ..ClientHello::default() }))
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for names in [10, 1_000, 100_000] {
        let table = table(names);
        // Many names in turn, as in traffic: a single one would always be in the processor's cache.
        let prefaces: Vec<_> =
            (0..1024).map(|i| preface(&format!("app{}.example.com", i * 7919 % names))).collect();
        let cases = [
            ("exact", prefaces),
            ("wildcard", vec![preface("a.b.wild.test")]),
            ("none", vec![preface("x.y.z.test")]),
        ];
        for (kind, prefaces) in cases {
            let mut turn = prefaces.iter().cycle();
            group.bench_function(format!("{kind}, {names} names"), |bencher| {
                bencher.iter(|| {
                    let preface = turn.next().expect("a cycle never ends");
                    let query =
                        Query { preface, client: IpAddr::V4(Ipv4Addr::LOCALHOST), listener: "default" };
                    black_box(table.find(black_box(&query)));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(route, benches);
criterion_main!(route);
