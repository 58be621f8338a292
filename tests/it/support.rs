//! What the tests stand on: the proxy as a process, clients, backends and real servers.

pub(crate) mod authority;
pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod frames;
pub(crate) mod headers;
pub(crate) mod hello;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod named;
pub(crate) mod nameserver;
pub(crate) mod netns;
pub(crate) mod pattern;
pub(crate) mod pebble;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod scripts;
pub(crate) mod secured;
pub(crate) mod servers;
pub(crate) mod sni;
pub(crate) mod stub_dns;
pub(crate) mod web;

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long something may take that should happen at once, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// How long a test waits for others that must not run beside it.
const PATIENCE: Duration = Duration::from_secs(100);
/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// No limits by address, for tests that open many connections from one.
pub(crate) const UNLIMITED: &str = "connection_limit = { per_ip = \"off\", before_hello = \"off\" }\n";

/// Looks again and again until there is a value; fails after `limit`.
pub(crate) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits for a condition, not longer than [`SOON`].
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, SOON, || holds().then_some(()));
}

/// Does `work` for every number below `count`, on `threads` threads.
pub(crate) fn in_parallel(threads: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// Keeps the one test away that uses up the user's pipe memory, as long as it is held: for tests that take some.
/// Other processes may run some of them, so it is a lock on the file that all of them run.
pub(crate) fn share_pipe_memory() -> File {
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    until("the pipe memory to be there again", PATIENCE, || file.try_lock_shared().ok());
    file
}

/// Waits until no test takes pipe memory, and keeps those away that would.
pub(crate) fn own_pipe_memory() -> File {
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    until("nobody to take pipe memory", PATIENCE, || file.try_lock().ok());
    file
}

/// A small generator of numbers (xorshift64*), the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            std::iter::repeat_with(|| self.next().to_le_bytes()).take(len / 8 + 1).flatten().collect();
        bytes.truncate(len);
        bytes
    }
}
