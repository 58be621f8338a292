//! Ten thousand damaged hellos (L4): no panic, and what arrives at a backend is a hello for that backend.

use rustls::server::Acceptor;

use crate::support::backend::Recorder;
use crate::support::client::{connect, probe, read_to_end, served};
use crate::support::hello::{Keys, in_records, real, to};
use crate::support::proxy::Proxy;
use crate::support::sni::{normal_name, server_name};
use crate::support::{Random, SOON, UNLIMITED, in_parallel};

const COUNT: usize = 10_000;

/// Sets, inserts or removes up to four bytes, mostly near the front, where lengths and names are.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let reach = [12, 64, 250, bytes.len()][random.below(4)].min(bytes.len());
        let at = random.below(reach);
        match random.below(8) {
            0 => bytes.insert(at, random.next() as u8),
            1 => drop(bytes.remove(at)),
            2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes.truncate(at.max(1)),
            4 => bytes[at] = [0, 1, 0x7f, 0xff][random.below(4)],
            5 => {
                // A run of bytes twice: whole extensions among them.
                let end = (at + random.below(60)).min(bytes.len());
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            _ => bytes[at] = random.next() as u8,
        }
        if bytes.is_empty() {
            bytes.push(22);
        }
    }
}

/// What rustls reads as the name; `None` when it finds fault with the hello, for any reason.
fn rustls_name(bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Some(accepted.client_hello().server_name().map(str::to_ascii_lowercase));
            }
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Whether a hello for `name` belongs to the backend called `tag`.
fn belongs(tag: &str, name: Option<&str>) -> bool {
    match name {
        Some("a.test") => tag == "a",
        Some("b.test") => tag == "b",
        Some(_) => tag == "rest",
        None => tag == "none",
    }
}

#[test]
fn mutated_hellos_never_reach_a_backend_they_do_not_name() {
    let backends = ["a", "b", "rest", "none"].map(|tag| (tag, Recorder::new(tag)));
    let [a, b, rest, none] = &backends;
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\naccess_log = 'off'\n{UNLIMITED}\
         [[route]]\nsni = 'a.test'\nto = '{}'\n[[route]]\nsni = 'b.test'\nto = '{}'\n\
         [[route]]\nsni = '*'\nto = '{}'\n[[route]]\nsni = 'none'\nto = '{}'\n",
        a.1.backend, b.1.backend, rest.1.backend, none.1.backend
    ));
    let hellos: Vec<Vec<u8>> = ["a.test", "b.test"]
        .iter()
        .flat_map(|name| [Keys::Classic, Keys::PostQuantum].map(|keys| real(Some(name), &["h2"], keys)))
        .collect();
    let addr = proxy.addr();
    in_parallel(16, COUNT, |number| {
        let mut random = Random::new(number as u64 + 1);
        let mut bytes = hellos[number % hellos.len()].clone();
        if random.below(3) == 0 {
            bytes = in_records(&bytes, 1 + random.below(300));
        }
        mutate(&mut bytes, &mut random);
        let mut stream = connect(addr);
        // Refused connections may be gone before all is written.
        let _ = std::io::Write::write_all(&mut stream, &bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let reply = read_to_end(&mut stream, SOON);
        assert_ne!(reply.end, crate::support::client::End::Open, "number {number} hangs: {bytes:02x?}");
        assert!(
            // Bytes that happen to be another protocol are refused in its words: SOCKS needs no more than three.
            reply.bytes.is_empty()
                || [&b"tag:"[..], &[21, 3], &[5, 0xff]].iter().any(|known| reply.bytes.starts_with(known)),
            "number {number}: {reply:?}"
        );
        if number % 500 == 0 {
            assert_eq!(probe(addr, &to("a.test")), served("a"), "the canary");
        }
    });
    let mut arrived = 0;
    for (tag, recorder) in &backends {
        for bytes in recorder.received() {
            arrived += 1;
            let name = normal_name(&bytes);
            let readable = name.is_some() || server_name(&bytes).is_none();
            assert!(readable && belongs(tag, name.as_deref()), "at {tag}: {name:?} in {bytes:02x?}");
            if let Some(name) = rustls_name(&bytes) {
                let name = name.map(|name| name.strip_suffix('.').map_or(name.clone(), str::to_owned));
                assert!(belongs(tag, name.as_deref()), "at {tag}: rustls reads {name:?} in {bytes:02x?}");
            }
        }
    }
    println!("{arrived} of {COUNT} mutated hellos were passed on");
    assert!(arrived > COUNT / 10, "too few to say anything: {arrived}");
    proxy.assert_sound();
}
