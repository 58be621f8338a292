//! Connecting to an endpoint of a pool, and to the next one when that fails.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balance::{name_key, source_key};
use super::endpoint::{Endpoint, Lease, Target};
use super::forward::Forward;
use super::members::{SEED, Tried};
use super::{ConnectError, ConnectFailure, LookupError, Pool, Upstream, UpstreamConn};
use crate::config::{Balance, ClientKey};
use crate::net::{Moment, Place, Reactor, Socket, Timer, connect};

/// Attempts together may take as long as so many: enough for two endpoints that say nothing; endpoints that
/// refuse at once cost no time.
const SILENT_ATTEMPTS: usize = 2;

/// Whose connection it is that needs a backend.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The server name that it asks for.
    pub server_name: Option<&'a str>,
}

/// What the attempts to connect of one connection have in common.
struct Attempts<'a, 't> {
    /// What the client has said already.
    first: &'a [u8],
    /// How long one may take.
    limit: Duration,
    /// The address to connect from, when it is not to be this host's own.
    source: Option<IpAddr>,
    /// Where clients name the server: how it is found, and its name.
    named: Option<(&'a Forward, &'a str)>,
    /// When all of them end.
    budget: Moment,
    reactor: &'a Rc<Reactor>,
    timer: &'a mut Timer<'t>,
}

impl Caller<'_> {
    fn key(&self, on: ClientKey) -> u64 {
        match (on, self.server_name) {
            (ClientKey::Sni, Some(name)) => name_key(name),
            (ClientKey::Source | ClientKey::Sni, _) => source_key(self.client, SEED),
        }
    }
}

impl Upstream {
    /// Connects to an endpoint and sends what it takes at once of `first`; when that fails, to the next one,
    /// until each was tried once or the time for all attempts is over. Cancel safe.
    ///
    /// # Errors
    /// The failure of the last attempt. No backend has taken anything then.
    pub async fn connect(
        &self,
        first: &[u8],
        caller: Caller<'_>,
        reactor: &Rc<Reactor>,
        timer: &mut Timer<'_>,
    ) -> Result<UpstreamConn, ConnectFailure> {
        let start = Instant::now();
        // Added one by one: each may be rounded up.
        let budget = (0..SILENT_ATTEMPTS).fold(timer.now(), |until, _| until + self.connect_timeout);
        let source = self.transparent.then_some(caller.client);
        let named = self.forward.as_ref().zip(caller.server_name);
        let limit = self.connect_timeout;
        let mut attempts = Attempts { first, limit, source, named, budget, reactor, timer };
        let key = match self.pool.config().balance {
            Balance::Hash { on, .. } => Some(caller.key(on)),
            Balance::RoundRobin
            | Balance::LeastConnections
            | Balance::P2c
            | Balance::Random
            | Balance::First => None,
        };
        let (mut tried, mut last) = (Tried::default(), ConnectError::NoEndpoint);
        loop {
            let Some(lease) = self.pool.take(key, start, &tried) else { break };
            match attempts.connect(lease.endpoint()).await {
                Ok((stream, sent)) => {
                    let took = start.elapsed();
                    self.pool.connect_time.record(took);
                    return Ok(UpstreamConn { stream, sent, lease, took });
                }
                Err(error) => last = error,
            }
            tried.add(Arc::clone(lease.endpoint()));
            if attempts.are_over() {
                break;
            }
        }
        Err(ConnectFailure { error: last, endpoint: tried.last().cloned() })
    }
}

impl Pool {
    /// The next endpoint to try, with room for a connection.
    fn take(&self, key: Option<u64>, now: Instant, tried: &Tried) -> Option<Lease> {
        let endpoint = self.members().take(key, now, tried)?;
        Some(Lease::new(endpoint, Arc::clone(self.state())))
    }
}

impl Attempts<'_, '_> {
    fn are_over(&self) -> bool {
        self.timer.now() >= self.budget
    }

    /// Tries one endpoint.
    async fn connect(&mut self, endpoint: &Endpoint) -> Result<(Socket, usize), ConnectError> {
        let start = Instant::now();
        let result = match &endpoint.target {
            _ if endpoint.is_own() => Err(ConnectError::Loop),
            // In a box of its own, which others do not have to carry.
            Target::ServerName(port) => Box::pin(self.find(*port)).await,
            Target::Tcp(addr) => self.attempt(Place::Tcp(*addr)).await,
            Target::Unix(path) => self.attempt(Place::Unix(path)).await,
        };
        match &result {
            Ok(_) => endpoint.connected(start.elapsed(), Instant::now()),
            Err(error) => endpoint.count_failure(error),
        }
        result
    }

    /// Tries the addresses of the server that the client names.
    async fn find(&mut self, port: u16) -> Result<(Socket, usize), ConnectError> {
        let Some((forward, name)) = self.named else { return Err(ConnectError::NoEndpoint) };
        let until = self.budget.min(self.timer.now() + self.limit);
        let found = self.timer.timeout_at(until, forward.find(name, port)).await;
        let mut last = ConnectError::NoEndpoint;
        for addr in found.unwrap_or(Err(ConnectError::Dns(LookupError::Timeout)))? {
            match self.attempt(Place::Tcp(addr)).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
            if self.are_over() {
                break;
            }
        }
        Err(last)
    }

    /// Tries one address.
    async fn attempt(&mut self, place: Place<'_>) -> Result<(Socket, usize), ConnectError> {
        let place = from_source(place, self.source)?;
        let until = self.budget.min(self.timer.now() + self.limit);
        let connecting = connect(place, self.first, self.reactor);
        match self.timer.timeout_at(until, connecting).await {
            Some(Ok(connected)) => Ok(connected),
            Some(Err(error)) => Err(ConnectError::from_io(error)),
            None => Err(ConnectError::Timeout),
        }
    }
}

/// `place` as it is connected to from `source`, if from any.
fn from_source(place: Place<'_>, source: Option<IpAddr>) -> Result<Place<'_>, ConnectError> {
    match (place, source) {
        (place, None) => Ok(place),
        (Place::Tcp(addr), Some(source)) if addr.is_ipv4() == source.is_ipv4() => {
            Ok(Place::Transparent(addr, source))
        }
        (Place::Tcp(_) | Place::Transparent(..) | Place::Unix(_), Some(_)) => Err(ConnectError::Family),
    }
}
