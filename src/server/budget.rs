//! How the limit of open files is shared out.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config::Limits;

/// Kept for logs, the control runtime and what libraries open; for 64 connections to the admin server; for
/// 32 names looked up at once over both families.
const RESERVED: u64 = 64 + 64 + 64;
/// A worker's event loop has an epoll instance and an event descriptor.
const PER_WORKER: u64 = 2;
/// For each address a worker has a listening socket, and may hold one connection that waits for room.
const PER_ADDRESS: u64 = 2;
/// A relayed connection has the client's and the backend's.
const PER_CONNECTION: u64 = 2;
/// A pipe has two ends.
const PER_PIPE: u64 = 2;
/// Pipes of a worker, at most: each serves one direction that streams and has bytes on the way.
const PIPES: u64 = 128;
/// Of all descriptors pipes may take one in so many; relays without a pipe copy.
const PIPE_SHARE: u64 = 8;

/// What there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Connections in all.
    pub(super) connections: usize,
    /// Pipes of each worker.
    pub(super) pipes: usize,
}

impl Budget {
    /// The budget under the current limit of open files, or with the cap that the configuration sets.
    pub(super) fn new(limits: &Limits, workers: usize, addresses: usize) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let mut budget = Self::of(files, workers, addresses);
        if let Some(total) = limits.total {
            if total > budget.connections {
                let possible = budget.connections;
                warn!(total, possible, "connection_limit.total is more than the limit of open files allows");
            }
            budget.connections = total;
        }
        budget
    }

    fn of(files: u64, workers: usize, addresses: usize) -> Self {
        let workers = workers.max(1) as u64;
        let pipes = (files / PIPE_SHARE / PER_PIPE / workers).min(PIPES);
        let a_worker = PER_WORKER + PER_ADDRESS * addresses as u64 + PER_PIPE * pipes;
        // On a machine with very few descriptors at least half of them are for connections.
        let rest = files.saturating_sub(RESERVED + workers * a_worker).max(files / 2);
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { connections: count(rest / PER_CONNECTION).max(1), pipes: count(pipes) }
    }
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
            assert!(used <= usize::try_from(files).unwrap(), "{files} files, {workers} workers: {budget:?}");
        }
        assert_eq!(Budget::of(20_000, 2, 1), Budget { connections: 9644, pipes: 128 });
        assert_eq!(Budget::of(64, 1, 1), Budget { connections: 16, pipes: 4 });
    }
}
