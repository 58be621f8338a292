//! Why the relay's constants stand where they do: the time to move what is there from one socket to another,
//! without the time to put it there and to take it away again.
//!
//! - `move`, `copy` against `splice`: where splicing begins to pay, `LARGE` and `SMALL` in
//!   `src/net/relay/flow.rs`; and how little one large read too many or too few matters, `LARGE_READS`.
//! - `scratch`: what a larger buffer for copying brings, `SCRATCH` in `src/net/relay.rs`; and how long others
//!   wait while one direction moves sixteen of them, `ROUNDS`.
//! - `pipe`: what a larger pipe brings by itself, `CAPACITY` in `src/net/pipe.rs`; what it spares the peers
//!   shows only in `benches/compare`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portcullis::net::{Filled, Pipe};

const KIB: usize = 1024;
/// Room for the largest piece on each side: nothing that is measured ever waits.
const ROOM: usize = 4 * KIB * KIB;

/// Two connections with the middle between them, which is what is measured.
struct Path {
    sender: TcpStream,
    source: TcpStream,
    destination: TcpStream,
    receiver: TcpStream,
    /// What is sent, and room to receive it.
    bytes: Vec<u8>,
}

impl Path {
    fn new() -> Self {
        let (sender, source) = pair();
        let (receiver, destination) = pair();
        Self { sender, source, destination, receiver, bytes: vec![7; ROOM] }
    }

    /// The time that `work` takes to move `len` bytes, `times` over. They are sent in segments of `segment`.
    fn time(
        &mut self,
        times: u64,
        len: usize,
        segment: usize,
        mut work: impl FnMut(&mut TcpStream, &mut TcpStream),
    ) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            for piece in self.bytes.get(..len).expect("no piece is larger than the room").chunks(segment) {
                self.sender.write_all(piece).expect("there is room");
            }
            // Loopback delivers before `write` returns, or nearly so: what is not there is waited for.
            let start = Instant::now();
            work(&mut self.source, &mut self.destination);
            took += start.elapsed();
            self.receiver.read_exact(self.bytes.get_mut(..len).expect("as above")).expect("all arrives");
        }
        took
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (far, _) = listener.accept().expect("a connection");
    for stream in [&near, &far] {
        let socket = socket2::SockRef::from(stream);
        socket.set_tcp_nodelay(true).expect("an option of TCP");
        socket.set_send_buffer_size(ROOM).expect("an option");
        socket.set_recv_buffer_size(ROOM).expect("an option");
    }
    (near, far)
}

fn copy(source: &mut TcpStream, destination: &mut TcpStream, scratch: &mut [u8], len: usize) {
    let mut left = len;
    while left > 0 {
        let n = source.read(scratch).expect("it is there");
        destination.write_all(scratch.get(..n).expect("no more than asked for")).expect("there is room");
        left -= n;
    }
}

fn splice(source: &mut TcpStream, destination: &mut TcpStream, pipe: &mut Pipe, len: usize) {
    let mut left = len;
    while left > 0 {
        match pipe.fill(&*source, usize::MAX, false) {
            Ok(Filled::Bytes(n)) => left -= n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            other => unreachable!("a connection with bytes in it: {other:?}"),
        }
        while pipe.pending() > 0 {
            pipe.drain(&*destination).expect("there is room");
        }
    }
}

fn copy_or_splice(criterion: &mut Criterion) {
    let mut path = Path::new();
    let mut scratch = vec![0; 64 * KIB];
    let mut pipe = Pipe::with_capacity(512 * KIB).expect("a pipe");
    for (kind, segment) in [("move", ROOM), ("move in segments of 1,448", 1448)] {
        let mut group = criterion.benchmark_group(kind);
        for len in [1, 4, 8, 16, 32, 64, 128, 256].map(|kib| kib * KIB) {
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new("copy", len / KIB), |bencher| {
                bencher.iter_custom(|times| {
                    path.time(times, len, segment, |from, to| copy(from, to, &mut scratch, len))
                });
            });
            group.bench_function(BenchmarkId::new("splice", len / KIB), |bencher| {
                bencher.iter_custom(|times| {
                    path.time(times, len, segment, |from, to| splice(from, to, &mut pipe, len))
                });
            });
        }
    }
}

fn sizes(criterion: &mut Criterion) {
    let mut path = Path::new();
    let len = KIB * KIB;
    let mut group = criterion.benchmark_group("scratch");
    group.throughput(Throughput::Bytes(len as u64));
    for kib in [16, 32, 64, 128, 256] {
        let mut scratch = vec![0; kib * KIB];
        group.bench_function(BenchmarkId::from_parameter(kib), |bencher| {
            bencher.iter_custom(|times| {
                path.time(times, len, ROOM, |from, to| copy(from, to, &mut scratch, len))
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("pipe");
    group.throughput(Throughput::Bytes(len as u64));
    for kib in [64, 128, 256, 512, 1024] {
        let mut pipe = Pipe::with_capacity(kib * KIB).expect("a pipe");
        group.bench_function(BenchmarkId::from_parameter(kib), |bencher| {
            bencher.iter_custom(|times| {
                path.time(times, len, ROOM, |from, to| splice(from, to, &mut pipe, len))
            });
        });
    }
    group.finish();
}

criterion_group!(all, copy_or_splice, sizes);
criterion_main!(all);
