//! What is known of one name, for those who use it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::ask::LookupError;

/// One address that a name has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// The address.
    pub ip: IpAddr,
    /// The port, where the name is of a service; never 0.
    pub port: Option<u16>,
    /// The lower, the sooner it is used (RFC 2782); 0 for hosts.
    pub priority: u16,
    /// Its share among those of one priority; at least 1, which it is for hosts.
    pub weight: u16,
}

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A host: records `A` and `AAAA`.
    Host,
    /// A service: records `SRV`, whose targets are hosts.
    Service,
}

/// Since when a name cannot be resolved.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The first failure after the last answer.
    pub since: SystemTime,
    /// The last one.
    pub error: LookupError,
}

/// A name that is looked up again and again.
pub struct Watched {
    name: Box<str>,
    kind: Kind,
    found: watch::Sender<Arc<[Found]>>,
    state: ArcSwap<State>,
    /// Gets its one permit with the first answer or failure.
    asked: Semaphore,
}

/// What the task of a name goes on from after a reload.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Until when the last answer holds.
    pub(super) valid_until: Option<Instant>,
    pub(super) failing: Option<Arc<Failing>>,
    /// Of a service: the addresses that its targets have.
    pub(super) targets: Arc<Targets>,
}

/// Addresses by the name of a host.
pub(super) type Targets = HashMap<Box<str>, Vec<IpAddr>>;

impl Found {
    /// An address of a host.
    pub(super) fn host(ip: IpAddr) -> Self {
        Self { ip, port: None, priority: 0, weight: 1 }
    }

    /// What is used sooner first; beyond that an order that does not change from answer to answer.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let key = |found: &Self| (found.priority, found.ip, found.port, std::cmp::Reverse(found.weight));
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Watched {
    pub(super) fn new(kind: Kind, name: &str) -> Self {
        Self {
            name: name.into(),
            kind,
            found: watch::Sender::new(Arc::new([])),
            state: ArcSwap::default(),
            asked: Semaphore::new(0),
        }
    }

    /// The name, as it was configured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses that are to be used now, what is used sooner first; empty before the first answer.
    pub fn found(&self) -> Arc<[Found]> {
        Arc::clone(&self.found.borrow())
    }

    /// The same for who wants to know of each change. It goes on as long as the name does, which
    /// [`Resolver`](super::Resolver) and all who hold the name decide.
    pub fn subscribe(&self) -> watch::Receiver<Arc<[Found]>> {
        self.found.subscribe()
    }

    /// Since when, and why, the name could not be resolved; nothing while it can.
    pub fn last_error(&self) -> Option<Arc<Failing>> {
        self.state.load().failing.clone()
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(Arc::new(state));
    }

    /// Publishes other addresses; nobody is woken by the same ones. Says whether they are others.
    pub(super) fn publish(&self, found: &[Found]) -> bool {
        self.found.send_if_modified(|current| {
            let changes = **current != *found;
            if changes {
                *current = found.into();
            }
            changes
        })
    }

    /// Begins with what another resolver knows of the name.
    pub(super) fn begin_with(&self, found: &[Found], state: State) {
        self.publish(found);
        self.set_state(state);
        self.was_asked();
    }

    /// From now on nobody waits for the first answer.
    pub(super) fn was_asked(&self) {
        if self.asked.available_permits() == 0 {
            self.asked.add_permits(1);
        }
    }

    /// Waits until the name has been asked for once, with or without success.
    pub(super) async fn first_answer(&self) {
        // Never closed; and the permit stays for others who wait.
        let _ = self.asked.acquire().await;
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("name", &self.name)
            .field("found", &self.found())
            .finish_non_exhaustive()
    }
}
