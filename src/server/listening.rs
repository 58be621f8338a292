//! The addresses that are listened on. A socket that stays is never closed: what waits in its queue would be
//! reset.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::StartError;
use crate::config::{Config, ListenerConfig};
use crate::conn::{Address, ListenerContext};
use crate::handover::{Inherited, Slot};
use crate::net::{self, ListenAddr, OwnListeners};
use crate::telemetry::Registry;
use crate::worker::WorkerSocket;

/// The sockets of an address, one a worker, bound and not yet accepted from.
#[derive(Debug)]
pub(super) struct Group {
    slot: Slot,
    pub(super) listener: Arc<str>,
    pub(super) bound: SocketAddr,
    sockets: Vec<Arc<TcpListener>>,
}

/// An address that is accepted on, and its sockets, which a successor is given.
#[derive(Debug)]
struct Open {
    address: Arc<Address>,
    sockets: Vec<Arc<TcpListener>>,
}

/// The addresses that the workers accept on.
#[derive(Debug)]
pub(super) struct Listening {
    workers: Vec<UnboundedSender<WorkerSocket>>,
    draining: CancellationToken,
    registry: Arc<Registry>,
    open: HashMap<Slot, Open>,
    own: Arc<OwnListeners>,
}

/// The addresses of `config` with the listeners that they are of.
fn wanted(config: &Config) -> Vec<(Slot, &ListenerConfig)> {
    let mut times: HashMap<ListenAddr, usize> = HashMap::new();
    let all =
        config.listeners.iter().flat_map(|listener| listener.bind.iter().map(move |at| (*at, listener)));
    all.map(|(address, listener)| {
        let times = times.entry(address).or_default();
        *times += 1;
        (Slot { address, nth: *times }, listener)
    })
    .collect()
}

/// Binds all addresses of `config`, for so many workers, but for those whose sockets are `inherited`.
pub(super) fn bind(
    config: &Config,
    workers: usize,
    inherited: &mut Inherited,
) -> Result<Vec<Group>, StartError> {
    bind_others(config, workers, &HashMap::new(), inherited)
}

/// Binds the addresses of `config` that are not open.
fn bind_others(
    config: &Config,
    workers: usize,
    open: &HashMap<Slot, Open>,
    inherited: &mut Inherited,
) -> Result<Vec<Group>, StartError> {
    let new: Vec<_> = wanted(config).into_iter().filter(|(slot, _)| !open.contains_key(slot)).collect();
    // Whether another program has one of the addresses: SO_REUSEPORT would let it share them. All before the
    // first is bound, so that an address and a wildcard over it do not find each other; and not those of a
    // port that this process has already, which it would find.
    for (slot, listener) in &new {
        let port = slot.address.socket().port();
        let ours = open.keys().any(|slot| slot.address.socket().port() == port) || inherited.has_port(port);
        if !ours {
            net::probe(slot.address).map_err(|error| not_bound(listener, &slot.address, error))?;
        }
    }
    let group = |(slot, listener): (Slot, &ListenerConfig)| {
        let given = inherited.take(&slot).unwrap_or_default();
        let (bound, sockets) = bind_group(slot.address, workers, given)
            .map_err(|error| not_bound(listener, &slot.address, error))?;
        Ok(Group { slot, listener: Arc::clone(&listener.name), bound, sockets })
    };
    new.into_iter().map(group).collect()
}

fn not_bound(listener: &ListenerConfig, address: &ListenAddr, source: io::Error) -> StartError {
    StartError::Bind { address: address.to_string(), listener: listener.name.to_string(), source }
}

/// At least a socket a worker: those `given`, if there are any.
fn bind_group(
    address: ListenAddr,
    workers: usize,
    given: Vec<TcpListener>,
) -> io::Result<(SocketAddr, Vec<Arc<TcpListener>>)> {
    given.iter().try_for_each(net::adopt)?;
    let mut sockets = given;
    if sockets.is_empty() {
        let first = net::bind(address)?;
        let port = first.local_addr()?.port();
        sockets.push(first);
        for _ in 1..workers {
            sockets.push(net::bind(address.with_port(port))?);
        }
    }
    let [first, ..] = sockets.as_slice() else { return Err(io::ErrorKind::NotFound.into()) };
    let bound = first.local_addr()?;
    // Where too few were given, workers share them: another one of the address would get its part of the clients at
    // once, long before anybody accepts here, and lose them if that never comes.
    let more = sockets.iter().cycle().take(workers.saturating_sub(sockets.len())).map(TcpListener::try_clone);
    let more = more.collect::<io::Result<Vec<_>>>()?;
    Ok((bound, sockets.into_iter().chain(more).map(Arc::new).collect()))
}

impl Listening {
    /// Nothing yet, for workers that find their sockets at the other ends of `workers`. What it is from time to time is
    /// told to `own`.
    pub(super) fn new(
        workers: Vec<UnboundedSender<WorkerSocket>>,
        draining: CancellationToken,
        registry: Arc<Registry>,
        own: Arc<OwnListeners>,
    ) -> Self {
        Self { workers, draining, registry, open: HashMap::new(), own }
    }

    /// The addresses that are listened on.
    pub(super) fn own(&self) -> &Arc<OwnListeners> {
        &self.own
    }

    /// Binds what `config` has and is not open.
    pub(super) fn bind(&self, config: &Config) -> Result<Vec<Group>, StartError> {
        bind_others(config, self.workers.len(), &self.open, &mut Inherited::default())
    }

    /// Accepts on the addresses of `config` and no others; `new` are those that were not open.
    pub(super) fn change(&mut self, config: &Config, new: Vec<Group>) {
        let mut new: HashMap<_, _> = new.into_iter().map(|group| (group.slot, group)).collect();
        let mut contexts: HashMap<Arc<str>, Arc<ListenerContext>> = HashMap::new();
        let mut left = std::mem::take(&mut self.open);
        for (slot, listener) in wanted(config) {
            let context = contexts
                .entry(Arc::clone(&listener.name))
                .or_insert_with(|| ListenerContext::new(&listener.name, &self.registry));
            if let Some(open) = left.remove(&slot) {
                if open.address.listener().name != listener.name {
                    open.address.belongs_to(Arc::clone(context));
                }
                self.open.insert(slot, open);
            } else if let Some(group) = new.remove(&slot) {
                let address = Address::new(Arc::clone(context), &self.draining);
                self.open.insert(slot, self.open_group(group, address));
            }
        }
        for (slot, Open { address, .. }) in left {
            info!(listener = %address.listener().name, address = %slot.address, "no longer listening");
            address.close();
        }
        // One whose address cannot be told is none that anybody could be led to.
        let bound = self.open.values().filter_map(|open| ListenAddr::of(open.sockets.first()?).ok());
        self.own.replace(bound.collect());
    }

    fn open_group(&self, group: Group, address: Arc<Address>) -> Open {
        info!(listener = %group.listener, address = %group.bound, "listening");
        // A predecessor with more workers leaves several sockets to some of these.
        for (worker, socket) in self.workers.iter().cycle().zip(&group.sockets) {
            let (socket, address) = (Arc::clone(socket), Arc::clone(&address));
            // A worker that is gone has sounded the alarm.
            let _ = worker.send(WorkerSocket { socket, address });
        }
        Open { address, sockets: group.sockets }
    }

    /// The sockets of all addresses, for a successor.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (Slot, Vec<BorrowedFd<'_>>)> {
        self.open.iter().map(|(slot, open)| (*slot, open.sockets.iter().map(AsFd::as_fd).collect()))
    }

    /// Lets go of the sockets: from here on they are closed when the workers have closed theirs.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    /// How many addresses there are.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
