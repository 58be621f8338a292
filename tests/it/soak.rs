//! A long mix of everything against one process: streams, aborts, silence, half-closes and refusals. Afterwards
//! it holds no more than at first.
//!
//! It lasts for some rounds; with `PORTCULLIS_SOAK_MINUTES` in the environment, for so many minutes.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, connect_from, loopback, outcome, read_to_end, reset};
use crate::support::hello::to;
use crate::support::pattern::{download, exchange, request, serve};
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, in_parallel, wait_for};

const MINUTES: &str = "PORTCULLIS_SOAK_MINUTES";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Connections of a round, and how many there are at once.
const ROUND: usize = 240;
const AT_ONCE: usize = 64;
/// Rounds before the first look, in which pools and tables reach their size, and rounds after it at least.
const WARM_UP: usize = 2;
const ROUNDS: usize = 3;
/// By how much the memory may grow from the first look to the last, however long that takes, in bytes.
const GROWTH: usize = 8 * MIB;
/// Pipes that the proxy may keep for the next streams: 128 for each of two workers, with two ends each.
const PIPE_ENDS: usize = 2 * 2 * 128;

/// How a connection is used.
#[derive(Clone, Copy, Debug)]
enum Use {
    Stream,
    /// Reset by the client in the middle.
    Abort,
    /// No byte after the answer's first.
    Idle,
    /// The client ends its stream early and reads nothing more.
    HalfClosed,
    /// The server name is no route's.
    Unknown,
    /// Half a hello, and a reset.
    Broken,
}

impl Use {
    const ALL: [Self; 8] = [
        Self::Stream,
        Self::Abort,
        Self::Stream,
        Self::Idle,
        Self::Stream,
        Self::HalfClosed,
        Self::Unknown,
        Self::Broken,
    ];
}

/// The soak: one proxy in front of one backend.
struct Soak {
    proxy: Proxy,
    hello: Vec<u8>,
    /// For the route whose limits are short: a machine at work may hold up any stream for a second.
    short: Vec<u8>,
    unknown: Vec<u8>,
    _backend: Backend,
}

impl Soak {
    fn new() -> Self {
        let (hello, short) = (to("soak.test"), to("idle.test"));
        let len = hello.len();
        assert_eq!(len, short.len(), "the backend tells a hello by its length");
        let backend = Backend::new(move |stream| serve(stream, len));
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\n[[route]]\nsni = 'soak.test'\nto = '{backend}'\n\
             [[route]]\nsni = 'idle.test'\nto = '{backend}'\n\
             timeouts = {{ idle = '1s', half_closed = '500ms' }}\n"
        ))
        .streaming();
        Self { proxy, hello, short, unknown: to("unknown.test"), _backend: backend }
    }

    fn round(&self, number: usize) {
        in_parallel(AT_ONCE, ROUND, |n| self.connection(number * ROUND + n));
    }

    /// One connection, with a number of its own.
    fn connection(&self, id: usize) {
        let mut random = Random::new(id as u64);
        let mut stream = connect_from(loopback(1 + (id % 200) as u8), self.proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        match Use::ALL[id % Use::ALL.len()] {
            Use::Stream => exchange(&stream, &self.hello, id, random.below(MIB), |_| ()),
            Use::Abort => {
                request(&stream, &self.hello, id, 1024 * MIB).unwrap();
                download(&stream, id, 0..random.below(MIB)).unwrap();
                reset(stream);
            }
            Use::Idle => {
                request(&stream, &self.short, id, KIB).unwrap();
                // Fails when nothing came within the limit, which ends it as well.
                let _ = download(&stream, id, 0..KIB);
                assert_ne!(read_to_end(&mut stream, SOON).end, End::Open);
            }
            Use::HalfClosed => {
                request(&stream, &self.short, id, 64 * MIB).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                // A reset is told once: when the read gets to know of it, there is nothing left to wait for.
                if download(&stream, id, 0..random.below(KIB)).is_ok() {
                    wait_for("the reset of what is not read", || stream.take_error().unwrap().is_some());
                }
            }
            Use::Unknown => assert_eq!(outcome(&mut stream, &self.unknown, SOON), Outcome::Alert(112)),
            Use::Broken => {
                use std::io::Write;
                stream.write_all(&self.hello[..random.below(self.hello.len())]).unwrap();
                reset(stream);
            }
        }
    }

    /// Waits until no connection is left; gives the descriptors by kind.
    fn settled(&self, sockets: usize) -> BTreeMap<String, usize> {
        wait_for("sockets to be given back", || self.proxy.process.sockets() <= sockets);
        self.proxy.process.descriptors()
    }
}

#[test]
fn a_long_mix_of_everything_leaves_nothing_behind() {
    let minutes = std::env::var(MINUTES).map_or(0.0, |text| text.parse::<f64>().expect(MINUTES));
    let mut soak = Soak::new();
    let sockets = soak.proxy.process.sockets();
    (0..WARM_UP).for_each(|number| soak.round(number));
    let (before, memory) = (soak.settled(sockets), soak.proxy.process.rss());
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS || start.elapsed() < Duration::from_secs_f64(minutes * 60.0) {
        soak.round(WARM_UP + rounds);
        rounds += 1;
    }
    let (mut after, grown) = (soak.settled(sockets), soak.proxy.process.rss().saturating_sub(memory));
    println!("{rounds} rounds in {:?}: {grown} bytes more; {before:?}, {after:?}", start.elapsed());
    let pipes = after.insert("pipe".to_owned(), before["pipe"]).unwrap_or(0);
    assert!(pipes <= before["pipe"] + PIPE_ENDS, "{pipes} ends of pipes");
    assert_eq!(before, after, "descriptors before and after {rounds} rounds");
    assert!(grown < GROWTH, "{grown} bytes more after {rounds} rounds");
    soak.proxy.assert_sound();
}
