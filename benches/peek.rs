//! What it costs to read a ClientHello, and to tell everything else.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::peek::{Detector, Pattern, Patterns};
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

/// First bytes of clients, one for each detector, and what is none of them.
const CLIENTS: [(&str, &[u8]); 20] = [
    ("http", b"GET / HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"),
    ("http, the last method", b"REPORT / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"),
    ("h2c", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0"),
    ("ssh", b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10\r\n"),
    ("postgres", b"\0\0\0\x08\x04\xd2\x16/"),
    ("smtp", b"EHLO mail.example.com\r\n"),
    ("imap", b"A001 CAPABILITY\r\n"),
    ("pop3", b"CAPA\r\n"),
    ("ldap", b"0\x1d\x02\x01\x01w\x18\x80\x161.3.6.1.4.1.1466.20037"),
    ("xmpp", b"<?xml version='1.0'?><stream:stream to='im.example.com'>"),
    ("mqtt", b"\x10\x11\0\x04MQTT\x04\x02\0<\0\x05probe"),
    ("amqp", b"AMQP\0\0\x09\x01"),
    ("redis", b"*1\r\n$4\r\nPING\r\n"),
    ("dns", b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01"),
    ("openvpn", b"\0\x0e8\x0c\n\xf2\x15\xe8R\x8e\xda\0\0\0\0\0"),
    ("rdp", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0"),
    ("socks", b"\x05\x02\0\x01"),
    ("unknown, binary", b"\xde\xad\xbe\xef\0\x01\x02\x03\x04\x05\x06\x07"),
    ("unknown, a word", b"STATISTICS please\r\n"),
    ("unknown, as late as can be", b"a23456789012345 AUTHENTICATION"),
];

/// The same in pieces of one byte, as the worst of clients sends it.
fn byte_by_byte(bytes: &[u8], patterns: Patterns<'_>) {
    let mut detector = Detector::new(16384).with_patterns(patterns);
    for end in 0..=bytes.len() {
        if black_box(detector.advance(bytes.get(..end).unwrap_or_default())) != Ok(None) {
            return;
        }
    }
}

fn protocols(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("protocol");
    for (name, bytes) in CLIENTS {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Detector::new(16384).advance(black_box(bytes)));
        });
        group.bench_function(format!("{name}, byte by byte"), |bencher| {
            bencher.iter(|| byte_by_byte(black_box(bytes), Patterns::default()));
        });
    }
    group.finish();
}

/// Eight patterns, of which the last matches.
fn patterns(criterion: &mut Criterion) {
    let text = |n: usize| format!("^\\xca\\xfe[\\x00-\\x7f]{{4}}\\x0{n}");
    let list: Vec<_> = (0..8).map(|n| Pattern::new(&text(n)).expect("a pattern")).collect();
    let bytes = b"\xca\xfeabcd\x07 and what follows";
    let mut group = criterion.benchmark_group("patterns");
    group.bench_function("the eighth of eight", |bencher| {
        bencher.iter(|| {
            let patterns = Patterns::of(black_box(&list), |_| true);
            Detector::new(16384).with_patterns(patterns).advance(black_box(bytes))
        });
    });
    group.bench_function("the eighth of eight, byte by byte", |bencher| {
        bencher.iter(|| byte_by_byte(black_box(bytes), Patterns::of(black_box(&list), |_| true)));
    });
    group.finish();
}

fn hellos(criterion: &mut Criterion) {
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

criterion_group!(peek, hellos, protocols, patterns);
criterion_main!(peek);
