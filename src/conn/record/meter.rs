//! What is counted of a connection's bytes as they pass.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::Open;
use crate::net::{Direction, Meter};
use crate::peek::Answer;
use crate::snapshot::Traffic;

/// Bytes from and to the client.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
    pub(super) spliced: Cell<u64>,
    /// Whether the backend has sent a byte.
    pub(super) answered: Cell<bool>,
    /// Whether what the backend sends next is its answer to the ClientHello.
    pub(super) hello_open: Cell<bool>,
    /// The requests that were answered.
    pub(super) requests: Cell<u64>,
}

/// Counts the requests of a connection, and their bytes, for that and for its route.
#[derive(Clone, Debug)]
pub(in crate::conn) struct Requests {
    pub(super) open: Rc<Open>,
    pub(super) traffic: Option<Arc<Traffic>>,
}

impl Requests {
    /// So many bytes were read of the client or written to it.
    pub(in crate::conn) fn passed(&self, direction: Direction, n: usize) {
        let traffic = self.traffic.as_deref();
        let (count, counter) = match direction {
            Direction::Up => (&self.open.counts.received, traffic.map(|traffic| &traffic.received)),
            Direction::Down => (&self.open.counts.sent, traffic.map(|traffic| &traffic.sent)),
        };
        count.set(count.get() + n as u64);
        if let Some(counter) = counter {
            counter.increment(n as u64);
        }
    }

    /// A request is over.
    pub(in crate::conn) fn done(&self) {
        self.open.counts.requests.set(self.open.counts.requests.get() + 1);
    }
}

/// Counts bytes as they pass, for the connection and for its route.
pub(in crate::conn) struct TrafficMeter<'a> {
    pub(super) open: &'a Open,
    pub(super) traffic: Option<&'a Traffic>,
}

impl TrafficMeter<'_> {
    /// Counts what the backend chose, from what was read of it at once.
    fn answered(&self, bytes: &[u8]) {
        let Some(answer) = Answer::read(bytes) else { return };
        self.open.counts.hello_open.set(answer == Answer::Retry);
        if let Some(traffic) = self.traffic {
            traffic.handshakes.answered(answer);
        }
    }
}

impl Meter for TrafficMeter<'_> {
    fn read(&self, direction: Direction, n: usize) {
        if direction == Direction::Up {
            self.open.counts.received.set(self.open.counts.received.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.received.increment(n as u64);
            }
        } else if !self.open.counts.answered.replace(true)
            && let Some(lease) = self.open.story.borrow().reached.lease()
        {
            lease.answered();
        }
    }

    fn copied(&self, direction: Direction, bytes: &[u8]) {
        if direction == Direction::Down && self.open.counts.hello_open.get() {
            self.answered(bytes);
        }
        self.read(direction, bytes.len());
    }

    fn written(&self, direction: Direction, n: usize, spliced: bool) {
        if spliced {
            self.open.counts.spliced.set(self.open.counts.spliced.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.spliced.increment(n as u64);
            }
        }
        if direction == Direction::Down {
            self.open.counts.sent.set(self.open.counts.sent.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.sent.increment(n as u64);
            }
        }
    }
}
