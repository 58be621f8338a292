//! The addresses that are listened on. A socket that stays is never closed: what waits in its queue would be
//! reset.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::StartError;
use crate::config::{Config, ListenerConfig};
use crate::conn::{Address, ListenerContext};
use crate::net::{self, ListenAddr};
use crate::telemetry::Registry;
use crate::worker::WorkerSocket;

/// An address of the configuration: with port 0 the same may stand there several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: ListenAddr,
    nth: usize,
}

/// The sockets of an address, one a worker, bound and not yet accepted from.
#[derive(Debug)]
pub(super) struct Group {
    key: Key,
    pub(super) listener: Arc<str>,
    pub(super) bound: SocketAddr,
    sockets: Vec<TcpListener>,
}

/// The addresses that the workers accept on.
#[derive(Debug)]
pub(super) struct Listening {
    workers: Vec<UnboundedSender<WorkerSocket>>,
    draining: CancellationToken,
    registry: Arc<Registry>,
    open: HashMap<Key, Arc<Address>>,
}

/// The addresses of `config` with the listeners that they are of.
fn wanted(config: &Config) -> Vec<(Key, &ListenerConfig)> {
    let mut times: HashMap<ListenAddr, usize> = HashMap::new();
    let all =
        config.listeners.iter().flat_map(|listener| listener.bind.iter().map(move |at| (*at, listener)));
    all.map(|(address, listener)| {
        let times = times.entry(address).or_default();
        *times += 1;
        (Key { address, nth: *times }, listener)
    })
    .collect()
}

/// Binds all addresses of `config`, for so many workers.
pub(super) fn bind(config: &Config, workers: usize) -> Result<Vec<Group>, StartError> {
    bind_others(config, workers, &HashMap::new())
}

/// Binds the addresses of `config` that are not open.
fn bind_others(
    config: &Config,
    workers: usize,
    open: &HashMap<Key, Arc<Address>>,
) -> Result<Vec<Group>, StartError> {
    let new: Vec<_> = wanted(config).into_iter().filter(|(key, _)| !open.contains_key(key)).collect();
    // Whether another program has one of the addresses: SO_REUSEPORT would let it share them. All before the
    // first is bound, so that an address and a wildcard over it do not find each other; and not those of a
    // port that this process has already, which it would find.
    let ours =
        |address: &ListenAddr| open.keys().any(|key| key.address.socket().port() == address.socket().port());
    for (key, listener) in new.iter().filter(|(key, _)| !ours(&key.address)) {
        net::probe(key.address).map_err(|error| not_bound(listener, &key.address, error))?;
    }
    new.into_iter()
        .map(|(key, listener)| {
            let (bound, sockets) =
                bind_group(key.address, workers).map_err(|error| not_bound(listener, &key.address, error))?;
            Ok(Group { key, listener: Arc::clone(&listener.name), bound, sockets })
        })
        .collect()
}

fn not_bound(listener: &ListenerConfig, address: &ListenAddr, source: io::Error) -> StartError {
    StartError::Bind { address: address.to_string(), listener: listener.name.to_string(), source }
}

fn bind_group(address: ListenAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = net::bind(address)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(net::bind(address.with_port(bound.port()))?);
    }
    Ok((bound, sockets))
}

impl Listening {
    /// Nothing yet, for workers that find their sockets at the other ends of `workers`.
    pub(super) fn new(
        workers: Vec<UnboundedSender<WorkerSocket>>,
        draining: CancellationToken,
        registry: Arc<Registry>,
    ) -> Self {
        Self { workers, draining, registry, open: HashMap::new() }
    }

    /// Binds what `config` has and is not open.
    pub(super) fn bind(&self, config: &Config) -> Result<Vec<Group>, StartError> {
        bind_others(config, self.workers.len(), &self.open)
    }

    /// Accepts on the addresses of `config` and no others; `new` are those that were not open.
    pub(super) fn change(&mut self, config: &Config, new: Vec<Group>) {
        let mut new: HashMap<_, _> = new.into_iter().map(|group| (group.key, group)).collect();
        let mut contexts: HashMap<Arc<str>, Arc<ListenerContext>> = HashMap::new();
        let mut left = std::mem::take(&mut self.open);
        for (key, listener) in wanted(config) {
            let context = contexts
                .entry(Arc::clone(&listener.name))
                .or_insert_with(|| ListenerContext::new(&listener.name, &self.registry));
            let address = match left.remove(&key) {
                Some(address) => {
                    if address.listener().name != listener.name {
                        address.belongs_to(Arc::clone(context));
                    }
                    address
                }
                None => Address::new(Arc::clone(context), &self.draining),
            };
            if let Some(group) = new.remove(&key) {
                self.open_group(group, &address);
            }
            self.open.insert(key, address);
        }
        for (key, address) in left {
            info!(listener = %address.listener().name, address = %key.address, "no longer listening");
            address.close();
        }
    }

    fn open_group(&self, group: Group, address: &Arc<Address>) {
        info!(listener = %group.listener, address = %group.bound, "listening");
        for (worker, socket) in self.workers.iter().zip(group.sockets) {
            // A worker that is gone has sounded the alarm.
            let _ = worker.send(WorkerSocket { socket, address: Arc::clone(address) });
        }
    }

    /// How many addresses there are.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
