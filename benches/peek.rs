//! What it costs to read a ClientHello.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::peek::Detector;
use rustls::pki_types::ServerName;

fn hello(post_quantum: bool) -> Vec<u8> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| post_quantum || group.name() != rustls::NamedGroup::X25519MLKEM768);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for the default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("app.example.com").expect("a valid name");
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a valid configuration");
    client.write_tls(&mut hello).expect("a vector takes all");
    hello
}

/// The same hello in records of `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |fragment: &[u8]| {
        let length = u16::try_from(fragment.len()).expect("a fragment fits a record").to_be_bytes();
        [&[22, 3, 1], length.as_slice(), fragment].concat()
    };
    hello.get(5..).unwrap_or_default().chunks(size).flat_map(record).collect()
}

fn benches(criterion: &mut Criterion) {
    let post_quantum = hello(true);
    let cases = [
        ("classic", hello(false)),
        ("post-quantum", post_quantum.clone()),
        ("post-quantum, two records", in_records(&post_quantum, 1000)),
        ("post-quantum, records of one byte", in_records(&post_quantum, 1)),
    ];
    let mut group = criterion.benchmark_group("client_hello");
    for (name, bytes) in &cases {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| Detector::new(16384).advance(black_box(bytes)));
        });
    }
    group.finish();
}

criterion_group!(peek, benches);
criterion_main!(peek);
