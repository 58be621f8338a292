//! Limits by source address, before anything else is spent on a connection.
//!
//! [`Guard::admit`] is called with nothing but the address that `accept` gave: no byte was read, no task
//! started, nothing allocated. What it admits holds a [`ConnPermit`] that undoes every count when dropped.

use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use crate::config::Limits;
use crate::net::ClientKey;

mod acl;
mod sources;

pub use acl::Acl;
use sources::{Slot, Sources};

/// All limits of one process and what is counted against them.
#[derive(Debug)]
pub struct Guard {
    acl: Acl,
    sources: Option<Sources>,
    cap: Cap,
}

/// Why a connection was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Its address is in a denied network, or in none of the allowed ones.
    Acl,
    /// Its address opened connections faster than allowed.
    RateLimit,
    /// Its address has as many connections as allowed.
    ConnLimit,
    /// Its address has as many connections without a hello as allowed.
    BeforeHello,
}

/// The right to be connected; dropping it gives back what it counts for.
#[derive(Debug)]
pub struct ConnPermit {
    guard: Arc<Guard>,
    slot: Option<Slot>,
    in_total: bool,
}

/// The cap on connections in all.
#[derive(Debug)]
struct Cap {
    max: usize,
    open: AtomicUsize,
    freed: Notify,
}

impl Guard {
    /// A guard with `limits`, of which `total` is how many connections there may be in all.
    pub fn new(limits: &Limits, total: usize) -> Self {
        Self {
            acl: Acl::new(&limits.allow, &limits.deny),
            sources: Sources::new(limits),
            cap: Cap { max: total, open: AtomicUsize::new(0), freed: Notify::new() },
        }
    }

    /// Admits a connection from `client` at `now`, or says why not. Costs one lookup in the lists and one in
    /// the table of sources, under the lock of one of its shards.
    ///
    /// # Errors
    /// The limit that it would break.
    pub fn admit(self: &Arc<Self>, client: IpAddr, now: Instant) -> Result<ConnPermit, Rejection> {
        if !self.acl.allows(client) {
            return Err(Rejection::Acl);
        }
        let slot = match &self.sources {
            Some(sources) => Some(sources.admit(ClientKey::of(client), now)?),
            None => None,
        };
        Ok(ConnPermit { guard: Arc::clone(self), slot, in_total: false })
    }

    /// Admits a connection of a trusted proxy, whose client is not known yet: it counts in all, and on no address until
    /// [`ConnPermit::count_for`].
    pub fn admit_unnamed(self: &Arc<Self>) -> ConnPermit {
        ConnPermit { guard: Arc::clone(self), slot: None, in_total: false }
    }

    /// Whether the lists allow `client`, which is counted nowhere.
    ///
    /// # Errors
    /// [`Rejection::Acl`].
    pub fn allows(&self, client: IpAddr) -> Result<(), Rejection> {
        if self.acl.allows(client) { Ok(()) } else { Err(Rejection::Acl) }
    }

    /// Connections counted against the cap now.
    pub fn open(&self) -> usize {
        self.cap.open.load(Ordering::Relaxed)
    }

    /// The cap on connections in all.
    pub fn cap(&self) -> usize {
        self.cap.max
    }

    /// Source addresses that are remembered now.
    pub fn known_sources(&self) -> usize {
        self.sources.as_ref().map_or(0, Sources::len)
    }
}

impl ConnPermit {
    /// Waits until the cap has room for this connection, and counts it. Whoever accepts waits here before
    /// accepting more, so that the excess stays in the kernel's queue. Cancel safe.
    pub async fn wait_for_room(&mut self) {
        while !self.in_total {
            let mut freed = pin!(self.guard.cap.freed.notified());
            // In the queue before the look at the cap, so that no release in between is missed.
            freed.as_mut().enable();
            if self.guard.cap.take() {
                self.in_total = true;
            } else {
                freed.await;
            }
        }
    }

    /// The client is known: from now on the connection counts on its address as if that had connected.
    ///
    /// # Errors
    /// The limit that it would break.
    pub fn count_for(&mut self, client: IpAddr, now: Instant) -> Result<(), Rejection> {
        // What it was counted on before, if on anything, goes with the other permit.
        std::mem::swap(&mut self.slot, &mut self.guard.admit(client, now)?.slot);
        Ok(())
    }

    /// The hello is there: from now on the connection no longer counts among those without.
    pub fn hello_done(&mut self) {
        if let (Some(slot), Some(sources)) = (&mut self.slot, &self.guard.sources) {
            sources.hello_done(slot);
        }
    }
}

impl Drop for ConnPermit {
    fn drop(&mut self) {
        if let (Some(slot), Some(sources)) = (&mut self.slot, &self.guard.sources) {
            sources.release(slot);
        }
        if self.in_total {
            self.guard.cap.give_back();
        }
    }
}

impl Cap {
    fn take(&self) -> bool {
        let below = |open| (open < self.max).then_some(open + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).is_ok()
    }

    fn give_back(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.freed.notify_one();
    }
}

impl Rejection {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Acl, Self::RateLimit, Self::ConnLimit, Self::BeforeHello];

    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::RateLimit => "rate_limit",
            Self::ConnLimit => "connection_limit",
            Self::BeforeHello => "before_hello",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
