//! A hello cut at every byte, into segments or records, is the same hello: same backend, same bytes.

use crate::support::backend::Backend;
use crate::support::client::{End, exchange};
use crate::support::hello::{Keys, RECORD_HEADER, in_records, in_two_records, real};
use crate::support::proxy::Proxy;
use crate::support::{Random, UNLIMITED, in_parallel};

const THREADS: usize = 32;

struct Setup {
    right: Backend,
    catch_all: Backend,
    proxy: Proxy,
}

impl Setup {
    fn new() -> Self {
        let (right, catch_all) = (Backend::tagged("right"), Backend::tagged("catch-all"));
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\naccess_log = 'off'\n{UNLIMITED}\
             [[route]]\nsni = 'split.test'\nto = '{right}'\n\
             [[route]]\nsni = '*'\nto = '{catch_all}'\n"
        ));
        Self { right, catch_all, proxy }
    }

    /// Sends `chunks` and checks that the right backend got exactly these bytes.
    fn check(&self, what: &str, chunks: &[&[u8]]) {
        let reply = exchange(self.proxy.addr(), chunks);
        let expected = [b"tag:right\n", chunks.concat().as_slice()].concat();
        assert!(
            reply.bytes == expected && reply.end == End::Eof,
            "{what}: {:?}",
            String::from_utf8_lossy(&reply.bytes)
        );
    }

    fn finish(mut self, connections: usize) {
        assert_eq!(self.right.hits(), connections);
        assert_eq!(self.catch_all.hits(), 0, "the catch-all route took a hello that was split");
        self.proxy.assert_sound();
    }
}

fn every_segment_split(keys: Keys) {
    let setup = Setup::new();
    let hello = real(Some("split.test"), &["h2", "http/1.1"], keys);
    in_parallel(THREADS, hello.len() - 1, |index| {
        let (first, second) = hello.split_at(index + 1);
        setup.check(&format!("segments cut at {}", index + 1), &[first, second]);
    });
    setup.finish(hello.len() - 1);
}

fn every_record_split(keys: Keys) {
    let setup = Setup::new();
    let hello = real(Some("split.test"), &["h2", "http/1.1"], keys);
    let cuts = hello.len() - RECORD_HEADER - 1;
    in_parallel(THREADS, cuts, |index| {
        let cut = index + 1;
        let bytes = in_two_records(&hello, cut);
        setup.check(&format!("records cut at {cut}"), &[&bytes]);
    });
    // The same cuts where the two records also come in two segments, a byte before the second one begins.
    in_parallel(THREADS, cuts / 7, |index| {
        let cut = 7 * index + 1;
        let bytes = in_two_records(&hello, cut);
        let (first, second) = bytes.split_at(RECORD_HEADER + cut - 1);
        setup.check(&format!("records and segments cut at {cut}"), &[first, second]);
    });
    setup.finish(cuts + cuts / 7);
}

#[test]
fn classic_hello_in_two_segments() {
    every_segment_split(Keys::Classic);
}

#[test]
fn post_quantum_hello_in_two_segments() {
    every_segment_split(Keys::PostQuantum);
}

#[test]
fn classic_hello_in_two_records() {
    every_record_split(Keys::Classic);
}

#[test]
fn post_quantum_hello_in_two_records() {
    every_record_split(Keys::PostQuantum);
}

#[test]
fn hello_in_records_of_every_small_size() {
    let setup = Setup::new();
    let classic = real(Some("split.test"), &["h2"], Keys::Classic);
    let post_quantum = real(Some("split.test"), &["h2"], Keys::PostQuantum);
    in_parallel(THREADS, 128, |index| {
        let hello = if index % 2 == 0 { &classic } else { &post_quantum };
        let bytes = in_records(hello, index / 2 + 1);
        setup.check(&format!("records of {} bytes", index / 2 + 1), &[&bytes]);
    });
    setup.finish(128);
}

#[test]
fn hello_byte_by_byte_and_in_random_pieces() {
    let setup = Setup::new();
    let hello = real(Some("split.test"), &["h2"], Keys::Classic);
    let single: Vec<&[u8]> = hello.chunks(1).collect();
    setup.check("one byte a segment", &single);
    in_parallel(THREADS, 64, |seed| {
        let mut random = Random::new(seed as u64);
        let bytes = in_records(&hello, 1 + random.below(40));
        let mut rest = bytes.as_slice();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(1 + random.below(rest.len().min(60)));
            chunks.push(chunk);
            rest = after;
        }
        setup.check(&format!("seed {seed}"), &chunks);
    });
    setup.finish(65);
}
