//! How descriptors and memory are shared out among connections, pipes, hellos and the rest of the process.

use std::sync::atomic::Ordering;

use metrics::Gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use super::StartError;
use crate::config::Config;
use crate::conn::Shared;
use crate::telemetry::{Family, Registry};

/// Kept for logs, the control runtime and what libraries open; for 64 connections to the admin server; for
/// 32 names looked up at once over both families; for 64 health checks and 8 probes of backends at once.
const RESERVED: u64 = 64 + 64 + 64 + 64 + 8;
/// What a process has open that serves nobody yet, beside its workers: 13; and a connection to the admin server, and a
/// file of `/proc` for it.
const BASE: u64 = 16;
/// A worker's event loop has an epoll instance and an event descriptor.
const PER_WORKER: u64 = 2;
/// For each address a worker has a listening socket, and may hold one connection that waits for room.
const PER_ADDRESS: u64 = 2;
/// A relayed connection has the client's and the backend's.
const PER_CONNECTION: usize = 2;
/// A pipe has two ends.
const PER_PIPE: usize = 2;
/// Pipes of a worker, at most: each serves one direction that streams and has bytes on the way.
const PIPES: u64 = 128;
/// Of all descriptors pipes may take one in so many; relays without a pipe copy.
const PIPE_SHARE: u64 = 8;
/// One in so many of the connections that there may be at once may have a hello of the largest size under way.
const HELLO_SHARE: usize = 8;
/// But so many of them in any case,
const HELLOS_LEAST: usize = 64;
/// and not more bytes than these: 4,096 of the largest default size, 32,768 of post-quantum clients.
const HELLO_BYTES_MOST: usize = 64 << 20;

const CAP: Family =
    Family { name: "portcullis_connections_limit", help: "The cap on connections in all.", labels: &[] };
const DESCRIPTORS: Family = Family {
    name: "portcullis_descriptors_limit",
    help: "How the limit of open files is shared out; reserve: for logs, the admin server, DNS, checks and files.",
    labels: &["share"],
};
const DESCRIPTORS_IN_USE: Family = Family {
    name: "portcullis_descriptors_in_use",
    help: "Descriptors set aside for open connections, two each, and those of pipes.",
    labels: &["share"],
};
const PIPES_LIMIT: Family = Family {
    name: "portcullis_pipes_limit",
    help: "How many pipes to splice through there may be.",
    labels: &[],
};
const PIPES_IN_USE: Family = Family {
    name: "portcullis_pipes_in_use",
    help: "Pipes that there are, those that wait for the next stream included.",
    labels: &[],
};
const HELLO_BYTES: Family = Family {
    name: "portcullis_hello_bytes_limit",
    help: "Memory that unfinished hellos may take in all.",
    labels: &[],
};
const HELLO_BYTES_IN_USE: Family = Family {
    name: "portcullis_hello_bytes_in_use",
    help: "Memory that unfinished hellos take.",
    labels: &[],
};

/// A part of the connections may be in the middle of a TLS handshake, each with up to some 40 KB.
const HANDSHAKE_SHARE: u64 = 4;
/// The fewest and the most of them.
const HANDSHAKES: (usize, usize) = (16, 4096);

/// What there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Connections in all.
    pub(super) connections: usize,
    /// Pipes of each worker.
    pub(super) pipes: usize,
    /// Bytes of unfinished hellos.
    pub(super) hello_bytes: usize,
    /// TLS handshakes under way.
    pub(super) handshakes: usize,
    /// Data-plane threads.
    pub(super) workers: usize,
    /// Descriptors of all workers, for themselves and their addresses.
    listening: usize,
    files: usize,
}

/// What is used of it.
#[derive(Debug)]
pub(super) struct Usage {
    connections: Gauge,
    pipe_ends: Gauge,
    pipes: Gauge,
    hello_bytes: Gauge,
}

impl Budget {
    /// The budget under the current limit of open files, or with what the configuration sets.
    pub(super) fn new(config: &Config, workers: usize, addresses: usize) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let mut budget = Self::of(files, workers, addresses);
        if let Some(total) = config.limits.total {
            if total > budget.connections {
                let possible = budget.connections;
                warn!(total, possible, "connection_limit.total is more than the limit of open files allows");
            }
            budget.connections = total;
        }
        let hello = config.max_hello_size;
        budget.hello_bytes = config.hello_memory.unwrap_or_else(|| budget.hellos(hello));
        budget
    }

    fn of(files: u64, workers: usize, addresses: usize) -> Self {
        let workers = workers.max(1) as u64;
        let (per_pipe, per_connection) = (PER_PIPE as u64, PER_CONNECTION as u64);
        let pipes = (files / PIPE_SHARE / per_pipe / workers).min(PIPES);
        let listening = listening(workers, addresses);
        let taken = listening + workers * per_pipe * pipes;
        // On a machine with very few descriptors half of them are for connections, as far as the process itself can spare
        // them.
        let half = files.saturating_sub(BASE + taken).min(files / 2);
        let rest = files.saturating_sub(RESERVED + taken).max(half);
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            connections: count(rest / per_connection).max(1),
            pipes: count(pipes),
            hello_bytes: 0,
            handshakes: count(rest / per_connection / HANDSHAKE_SHARE).clamp(HANDSHAKES.0, HANDSHAKES.1),
            workers: count(workers),
            listening: count(listening),
            files: count(files),
        }
    }

    /// Bytes of hellos of up to `largest` bytes, by the number of connections.
    fn hellos(&self, largest: usize) -> usize {
        let most = (self.connections / HELLO_SHARE).max(HELLOS_LEAST);
        most.saturating_mul(largest).min(HELLO_BYTES_MOST)
    }

    /// Descriptors by what they are for.
    fn shares(&self) -> [(&'static str, usize); 4] {
        let connections = self.connections.saturating_mul(PER_CONNECTION);
        let pipes = self.workers * self.pipes * PER_PIPE;
        let taken = connections.saturating_add(pipes).saturating_add(self.listening);
        let reserve = self.files.saturating_sub(taken);
        [("connections", connections), ("pipes", pipes), ("workers", self.listening), ("reserve", reserve)]
    }

    /// Tells the limits.
    #[allow(clippy::cast_precision_loss, reason = "counts of descriptors and bytes are far below 2^52")]
    pub(super) fn publish(&self, registry: &Registry) {
        for (share, descriptors) in self.shares() {
            registry.gauge(&DESCRIPTORS, &[share]).set(descriptors as f64);
        }
        registry.gauge(&CAP, &[]).set(self.connections as f64);
        registry.gauge(&PIPES_LIMIT, &[]).set((self.workers * self.pipes) as f64);
        registry.gauge(&HELLO_BYTES, &[]).set(self.hello_bytes as f64);
    }
}

impl Usage {
    /// Nothing yet.
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            connections: registry.gauge(&DESCRIPTORS_IN_USE, &["connections"]),
            pipe_ends: registry.gauge(&DESCRIPTORS_IN_USE, &["pipes"]),
            pipes: registry.gauge(&PIPES_IN_USE, &[]),
            hello_bytes: registry.gauge(&HELLO_BYTES_IN_USE, &[]),
        }
    }

    /// Tells what is used now.
    #[allow(clippy::cast_precision_loss, reason = "counts of descriptors and bytes are far below 2^52")]
    pub(super) fn update(&self, shared: &Shared) {
        let pipes = shared.pipes.load(Ordering::Relaxed);
        self.connections.set((shared.guard.load().open() * PER_CONNECTION) as f64);
        self.pipe_ends.set((pipes * PER_PIPE) as f64);
        self.pipes.set(pipes as f64);
        self.hello_bytes.set(shared.hello_bytes.in_use() as f64);
    }
}

/// Descriptors of all workers, for themselves and their addresses.
fn listening(workers: u64, addresses: usize) -> u64 {
    workers * (PER_WORKER + PER_ADDRESS * addresses as u64)
}

/// Makes sure that there are descriptors for at least one connection: without them there would be none for it, or
/// something else would fail, now or later.
///
/// # Errors
/// [`StartError::Descriptors`].
pub(super) fn require_descriptors(workers: usize, addresses: usize) -> Result<(), StartError> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let needed = BASE + listening(workers as u64, addresses) + PER_CONNECTION as u64;
    if limit < needed { Err(StartError::Descriptors { limit, needed, workers }) } else { Ok(()) }
}

/// The soft limit of open files is a leftover of `select(2)`; the hard one is what the machine allows.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        warn!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_stay_below_the_limit() {
        for (files, workers, addresses) in [(1024, 1, 1), (4096, 64, 2), (20_000, 2, 2), (1 << 20, 1024, 4)] {
            let budget = Budget::of(files, workers, addresses);
            let each = 2 + 2 * addresses + 2 * budget.pipes;
            let used = 2 * budget.connections + workers * each;
            let files = usize::try_from(files).unwrap();
            assert!(used <= files, "{files} files, {workers} workers: {budget:?}");
            assert_eq!(budget.shares().iter().map(|(_, share)| share).sum::<usize>(), files);
        }
        let counts = |files| {
            let budget = Budget::of(files, 1, 1);
            (budget.connections, budget.pipes)
        };
        assert_eq!(counts(20_000), (9738, 128));
        assert_eq!(counts(64), (16, 4));
        // 16 for the process, 4 for the worker, and what is left.
        assert_eq!(counts(24), (1, 1));
    }

    #[test]
    fn hellos_take_their_share_of_memory_and_no_more() {
        let hellos = |files, largest| Budget::of(files, 2, 1).hellos(largest);
        assert_eq!(hellos(64, 16 << 10), 1 << 20, "64 of the largest");
        assert_eq!(hellos(20_000, 16 << 10), 9608 / 8 * (16 << 10));
        assert_eq!(hellos(1 << 20, 16 << 10), HELLO_BYTES_MOST);
        assert_eq!(hellos(1 << 20, usize::MAX), HELLO_BYTES_MOST);
    }
}
