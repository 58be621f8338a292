//! What an operator asks of a pool, done.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;

use super::endpoint::{Endpoint, Target};
use super::operator::{Change, OperatorError};
use super::pool::{Pool, watched};
use super::resolve::Resolver;
use crate::net::UpstreamAddr;

/// What came of what an operator asked.
#[derive(Debug)]
pub struct Changed {
    /// Connections that the backend, or the one address, has.
    pub connections: u64,
    /// What the operator may not have meant.
    pub warning: Option<Warning>,
}

/// What an operator may not have meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Nobody is left who takes new connections.
    NobodyLeft,
    /// It has no weight, so that it gets no connections.
    NoWeight,
}

impl Pool {
    /// Does what an operator asks, from now on for new connections. Names that are added are looked up by `resolver`
    /// on `runtime`. Nothing else may change the pool meanwhile but its own task.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn operate(
        &self,
        change: &Change,
        resolver: &mut Resolver,
        runtime: &Handle,
    ) -> Result<Changed, OperatorError> {
        let address = change.backend();
        let mut operator = self.state().operator().clone();
        operator.take(change, self.name_with(address))?;
        resolver.forget_unused();
        let unknown = matches!(change, Change::Add(..)) && !self.names().contains_key(address);
        if let Some(name) = unknown.then(|| watched(address, resolver)).flatten() {
            resolver.start(runtime)?;
            runtime.spawn(Arc::clone(self.state()).tell_of(&name));
            self.names().insert(address.clone(), name);
        }
        let backends = operator.backends();
        self.names().retain(|name, _| backends.iter().any(|stated| stated.config.address == *name));
        let has_weight =
            backends.iter().all(|stated| stated.config.address != *address || stated.config.weight > 0);
        *self.state().operator() = operator;
        // Those that are forgotten count, too, and none comes after.
        let endpoints = self.endpoints_of(address);
        self.refresh(Instant::now());
        let connections = endpoints.iter().map(|endpoint| u64::from(endpoint.load.active())).sum();
        // Its task is to know when the next change is due.
        self.state().changed.notify_one();
        let warning = match change {
            Change::Undrain(_) if !has_weight => Some(Warning::NoWeight),
            Change::Remove(_) | Change::Weigh(..) | Change::Drain(_) if self.members().is_empty() => {
                Some(Warning::NobodyLeft)
            }
            Change::Add(..)
            | Change::Remove(_)
            | Change::Weigh(..)
            | Change::Drain(_)
            | Change::Undrain(_) => None,
        };
        Ok(Changed { connections, warning })
    }

    /// The backend that has this address, where that is a name.
    fn name_with(&self, address: &UpstreamAddr) -> Option<Arc<str>> {
        let UpstreamAddr::Ip(addr) = address else { return None };
        let (target, written) = (Target::Tcp(*addr), address.to_string());
        let endpoints = self.state().endpoints();
        let name = endpoints.keys().find(|key| key.target == target && *key.name != *written);
        name.map(|key| Arc::clone(&key.name))
    }

    /// The endpoints of a backend, or at one address.
    fn endpoints_of(&self, address: &UpstreamAddr) -> Vec<Arc<Endpoint>> {
        let written = address.to_string();
        let endpoints = self.state().endpoints();
        let of = endpoints.values().filter(|one| *one.name == *written || one.target.to_string() == written);
        of.map(Arc::clone).collect()
    }

    /// Goes by what the configuration says from now on, where that is not what it said when an operator acted. Gives
    /// the backends of which it is not.
    pub(super) fn take_over(&self) -> Vec<UpstreamAddr> {
        // The task of the generation before has done what it does, or will do nothing.
        let _endpoints = self.state().endpoints();
        self.state().operator().follow(self.config())
    }
}
