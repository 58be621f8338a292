//! Connecting to an endpoint of a pool, and to the next one when that fails.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::balance::{name_key, source_key};
use super::endpoint::{Attempt, Endpoint, Lease, Target};
use super::forward::Forward;
use super::members::{SEED, Shortage, Wanted};
use super::{ConnectError, ConnectFailure, LookupError, Pool, Upstream, UpstreamConn};
use crate::config::{Balance, ClientKey};
use crate::net::{Moment, Place, Reactor, Socket, Timer, connect};
use crate::tls::{Buffers, Handshake};

mod answer;
mod race;
mod secure;

pub(super) use secure::Securing;

/// Attempts together may take as long as so many: enough for two endpoints that say nothing, whether they are not
/// connected to or do not answer; endpoints that refuse at once cost no time.
const SILENT_ATTEMPTS: usize = 2;

/// Whose connection it is that needs a backend.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The server name that it asks for.
    pub server_name: Option<&'a str>,
    /// Its connection, where that is watched meanwhile.
    pub socket: Option<&'a Socket>,
    /// Whether it is of no use once the client's stream has ended, as in TLS, which needs an answer to its hello answered.
    pub ends_as_one: bool,
    /// Whether another endpoint may be sent the same first bytes while there is no answer.
    pub may_move: bool,
    /// The protocol inside TLS that was agreed on with it, where that has ended here.
    pub alpn: Option<&'a [u8]>,
    /// Where records of TLS with endpoints are taken apart.
    pub buffers: &'a Buffers,
}

/// The search of one connection for an endpoint that can be connected to.
struct Search<'a, 't> {
    upstream: &'a Upstream,
    /// What endpoints are sent at once.
    first: &'a [u8],
    /// The address to connect from, when it is not to be this host's own.
    source: Option<IpAddr>,
    /// Where clients name the server: how it is found, and its name.
    named: Option<(&'a Forward, &'a str)>,
    /// Whether there is a connection to an endpoint already.
    kept: &'a dyn Fn(&Arc<Endpoint>) -> bool,
    caller: Caller<'a>,
    wanted: Wanted,
    start: Instant,
    /// When all attempts end.
    budget: Moment,
    /// How long an endpoint that is connected to has for its first byte, where another one may be asked in its place.
    answer: Option<Duration>,
    reactor: &'a Rc<Reactor>,
    timer: &'a mut Timer<'t>,
}

/// A connection that was made, as far as TCP goes.
struct Reached {
    stream: Socket,
    /// How much of the first bytes it has taken.
    sent: usize,
    /// Where that is, of a server that the client names.
    named: Option<SocketAddr>,
}

/// What a request goes to.
#[derive(Debug)]
pub enum Leased {
    /// A connection that is kept, to this endpoint.
    Kept(Lease),
    /// A connection that was made.
    New(UpstreamConn),
}

/// What an attempt came to.
enum Made {
    Kept(Lease),
    New(Connected),
}

/// A connection that can be used.
struct Connected {
    reached: Reached,
    /// The TLS over it.
    tls: Option<Box<Handshake>>,
    lease: Lease,
}

/// The time of an attempt.
#[derive(Clone, Copy)]
struct Term {
    began: Instant,
    until: Moment,
    /// Whether that is as much as there is for one, and nothing is asked of the endpoint that it may have good reason to refuse.
    fair: bool,
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
    /// Connects to an endpoint and sends what it takes at once of `first`, all of it where TLS is then agreed on; when that fails, or no answer comes in time where
    /// `caller` may move, to the next one, until each was tried once or the time for all attempts is over. While all have as
    /// many connections as they may, it waits in the queue of the pool, if there is one. Cancel safe.
    ///
    /// # Errors
    /// The failure of the last attempt, or why there was none. No backend has taken anything then.
    pub async fn connect(
        &self,
        first: &[u8],
        caller: Caller<'_>,
        reactor: &Rc<Reactor>,
        timer: &mut Timer<'_>,
    ) -> Result<UpstreamConn, ConnectFailure> {
        match self.search(first, &|_| false, caller, reactor, timer).await? {
            Leased::New(connection) => Ok(connection),
            Leased::Kept(lease) => {
                let endpoint = Some(Arc::clone(lease.endpoint()));
                Err(ConnectFailure { error: ConnectError::NoEndpoint, endpoint })
            }
        }
    }

    /// The same for a request, which needs no connection of its own where `kept` has one to the endpoint that it is for.
    ///
    /// # Errors
    /// The failure of the last attempt, or why there was none.
    pub async fn lease(
        &self,
        first: &[u8],
        kept: &dyn Fn(&Arc<Endpoint>) -> bool,
        caller: Caller<'_>,
        reactor: &Rc<Reactor>,
        timer: &mut Timer<'_>,
    ) -> Result<Leased, ConnectFailure> {
        self.search(first, kept, caller, reactor, timer).await
    }

    async fn search(
        &self,
        first: &[u8],
        kept: &dyn Fn(&Arc<Endpoint>) -> bool,
        caller: Caller<'_>,
        reactor: &Rc<Reactor>,
        timer: &mut Timer<'_>,
    ) -> Result<Leased, ConnectFailure> {
        let start = Instant::now();
        // In TLS an endpoint has answered with its handshake.
        let answer = self.answer_timeout.filter(|_| caller.may_move && self.securing.is_none());
        let handshake = if self.securing.is_some() { self.connect_timeout } else { Duration::ZERO };
        let each = (self.connect_timeout + handshake).max(answer.unwrap_or_default());
        // Added one by one: each may be rounded up.
        let budget = (0..SILENT_ATTEMPTS).fold(timer.now(), |until, _| until + each);
        let source = self.transparent.then_some(caller.client);
        let client = self.pool.config().sticky.map(|(on, _)| caller.key(on));
        let wanted = self.pool.wanted(&caller, client, start);
        let named = self.forward.as_ref().zip(caller.server_name);
        let mut search = Search {
            upstream: self,
            first,
            source,
            named,
            kept,
            caller,
            wanted,
            start,
            budget,
            answer,
            reactor,
            timer,
        };
        let leased = search.run().await?;
        let (lease, took) = match &leased {
            Leased::New(connection) => (&connection.lease, Some(connection.took)),
            Leased::Kept(lease) => (lease, None),
        };
        self.pool.connected(client, lease, took, start);
        Ok(leased)
    }
}

impl Pool {
    /// What a connection of `caller` asks for; `client` is what that one is known by. It is counted.
    fn wanted(&self, caller: &Caller<'_>, client: Option<u64>, now: Instant) -> Wanted {
        if self.config().retry_budget.is_some() {
            self.state().retries.connection(now);
        }
        let key = match self.config().balance {
            Balance::Hash { on, .. } => Some(caller.key(on)),
            Balance::RoundRobin
            | Balance::LeastConnections
            | Balance::P2c
            | Balance::Random
            | Balance::First => None,
        };
        let before = client.and_then(|client| self.state().sticky()?.find(client, now));
        Wanted { key, before, ..Wanted::default() }
    }

    /// A connection was made, after so long from `start` on, or there was one.
    fn connected(&self, client: Option<u64>, lease: &Lease, took: Option<Duration>, start: Instant) {
        if let Some(took) = took {
            self.connect_time.record(took);
        }
        if let (Some(client), Some(sticky)) = (client, self.state().sticky()) {
            sticky.keep(client, lease.endpoint().id, start + took.unwrap_or_default());
        }
    }

    /// The next endpoint to try, with room for a connection.
    fn take(&self, wanted: &Wanted, now: Instant) -> Option<Attempt> {
        let endpoint = self.members().take(wanted, now)?;
        Some(Attempt::new(endpoint, Arc::clone(self.state())))
    }

    /// Whether a connection may try another endpoint.
    fn may_retry(&self) -> bool {
        let state = self.state();
        let may =
            self.config().retry_budget.is_none_or(|percent| state.retries.take(percent, Instant::now()));
        state.count_retry(may);
        may
    }

    /// The same for one that has a connection to a backend that is silent. When all are slow, these leave enough to those that
    /// have none.
    fn may_move(&self) -> bool {
        let state = self.state();
        let now = Instant::now();
        let may = self.config().retry_budget.is_none_or(|percent| state.retries.take_spare(percent, now));
        state.count_retry(may);
        may
    }
}

impl Search<'_, '_> {
    async fn run(&mut self) -> Result<Leased, ConnectFailure> {
        let mut last = ConnectError::NoEndpoint;
        // The one that has not answered while others are tried: it serves when none of these can be connected to.
        let mut silent: Option<Box<UpstreamConn>> = None;
        let mut next = self.next().await;
        loop {
            let attempt = match next {
                Ok(Some(attempt)) => attempt,
                Ok(None) => break,
                Err(error) => {
                    last = error;
                    break;
                }
            };
            next = match self.attempt(attempt).await {
                Ok(Made::Kept(lease)) => return Ok(Leased::Kept(lease)),
                Ok(Made::New(Connected { reached: Reached { stream, sent, named }, tls, lease })) => {
                    let took = self.start.elapsed();
                    let connection = UpstreamConn { stream, tls, sent, lease, named, took };
                    let left = silent.take().map(|left| answer::give_up(*left));
                    let Some(other) = self.awaits_in_vain(&connection, left).await else {
                        return Ok(Leased::New(connection));
                    };
                    silent = Some(Box::new(connection));
                    Ok(Some(other))
                }
                Err(error) => {
                    last = error;
                    match &silent {
                        _ if self.is_over() => break,
                        None => self.next().await,
                        Some(_) => Ok(self.spare()),
                    }
                }
            };
        }
        let failure = || ConnectFailure { error: last, endpoint: self.wanted.tried.last().cloned() };
        silent.map(|connection| Leased::New(*connection)).ok_or_else(failure)
    }

    fn is_over(&self) -> bool {
        self.timer.now() >= self.budget
    }

    fn term(&self) -> Term {
        let whole = self.timer.now() + self.upstream.connect_timeout;
        Term { began: Instant::now(), until: self.budget.min(whole), fair: whole <= self.budget }
    }

    /// The next endpoint to try; `None` when there is none left.
    async fn next(&mut self) -> Result<Option<Attempt>, ConnectError> {
        let pool = &self.upstream.pool;
        let attempt = match pool.take(&self.wanted, self.start) {
            Some(attempt) => attempt,
            None => {
                let shortage = pool.members().shortage(&self.wanted.tried);
                let Some(shortage) = shortage else { return Ok(None) };
                Box::pin(self.wait(shortage)).await?
            }
        };
        if self.wanted.tried.is_empty() || pool.may_retry() {
            Ok(Some(attempt))
        } else {
            Err(ConnectError::RetryBudget)
        }
    }

    /// Waits for an endpoint with room. The time in the queue is none of that for attempts.
    async fn wait(&mut self, shortage: Shortage) -> Result<Attempt, ConnectError> {
        let state = self.upstream.pool.state();
        let (most, until) = match (shortage, self.upstream.pool.config().queue) {
            (Shortage::Full, None) => (0, self.budget),
            (Shortage::Full, Some(queue)) => (queue.size as usize, self.timer.now() + queue.timeout),
            // Each of them is a connection, of which there are so many at most.
            (Shortage::Busy, _) => (usize::MAX, self.budget),
        };
        let began = Instant::now();
        let Some(mut turn) = state.queue.join(self.wanted.clone(), most) else {
            state.count_rejection(true);
            return Err(ConnectError::Full);
        };
        // There may be room by now, of which nobody tells.
        state.make_use_of_room();
        let Caller { socket, ends_as_one, .. } = self.caller;
        let given_or_gone = poll_fn(|cx| match Pin::new(&mut turn).poll(cx) {
            Poll::Ready(attempt) => Poll::Ready(Some(attempt)),
            Poll::Pending => match socket {
                Some(socket) => socket.poll_gone(cx, ends_as_one).map(|()| None),
                None => Poll::Pending,
            },
        });
        match (self.timer.timeout_at(until, given_or_gone).await, shortage) {
            (Some(None), _) => Err(ConnectError::Gone),
            (Some(Some(attempt)), Shortage::Full) => {
                self.budget = self.budget + began.elapsed();
                Ok(attempt)
            }
            (Some(Some(attempt)), Shortage::Busy) => Ok(attempt),
            (None, Shortage::Full) => {
                state.count_rejection(false);
                Err(ConnectError::QueueTimeout)
            }
            (None, Shortage::Busy) => Err(ConnectError::Timeout),
        }
    }

    /// Tries one endpoint, and where its name has addresses of the other family, one of those beside it.
    async fn attempt(&mut self, attempt: Attempt) -> Result<Made, ConnectError> {
        if (self.kept)(attempt.endpoint()) {
            return Ok(Made::Kept(attempt.spared()));
        }
        self.make(attempt).await.map(Made::New)
    }

    async fn make(&mut self, attempt: Attempt) -> Result<Connected, ConnectError> {
        let endpoint = attempt.endpoint();
        if endpoint.has_other_family() && !endpoint.is_own() && self.source.is_none() {
            return Box::pin(self.race(attempt)).await;
        }
        let term = self.term();
        let result = match &endpoint.target {
            _ if endpoint.is_own() => Err(ConnectError::Loop),
            // In a box of its own, which others do not have to carry.
            Target::ServerName(port) => Box::pin(self.find(*port)).await,
            Target::Tcp(addr) => self.reach(Place::Tcp(*addr), term).await,
            Target::Unix(path) => self.reach(Place::Unix(path), term).await,
        };
        match result {
            Ok(reached) if self.upstream.securing.is_none() => {
                Ok(Connected { reached, tls: None, lease: attempt.succeeded(term.began) })
            }
            Ok(reached) => Box::pin(self.complete(attempt, reached, term)).await,
            Err(error) => Err(self.failed(attempt, term, error)),
        }
    }

    /// What was reached, once it can be used.
    async fn complete(
        &mut self,
        attempt: Attempt,
        mut reached: Reached,
        term: Term,
    ) -> Result<Connected, ConnectError> {
        match self.secure(&mut reached, attempt.endpoint()).await {
            Ok(tls) => Ok(Connected { reached, tls, lease: attempt.succeeded(term.began) }),
            Err((error, fair)) => Err(self.failed(attempt, Term { fair, ..term }, error)),
        }
    }

    /// Tries the addresses of the server that the client names.
    async fn find(&mut self, port: u16) -> Result<Reached, ConnectError> {
        let Some((forward, name)) = self.named else { return Err(ConnectError::NoEndpoint) };
        let until = self.term().until;
        let found = self.timer.timeout_at(until, forward.find(name, port)).await;
        let mut last = ConnectError::NoEndpoint;
        for addr in found.unwrap_or(Err(ConnectError::Dns(LookupError::Timeout)))? {
            match self.reach(Place::Tcp(addr), self.term()).await {
                Ok(reached) => return Ok(Reached { named: Some(addr), ..reached }),
                Err(error) => last = error,
            }
            if self.is_over() {
                break;
            }
        }
        Err(last)
    }

    /// Tries one address.
    async fn reach(&mut self, place: Place<'_>, term: Term) -> Result<Reached, ConnectError> {
        let place = from_source(place, self.source)?;
        let connecting = connect(place, self.first, self.reactor);
        match self.timer.timeout_at(term.until, connecting).await {
            Some(Ok((stream, sent))) => Ok(Reached { stream, sent, named: None }),
            Some(Err(error)) => Err(ConnectError::from_io(error)),
            None => Err(ConnectError::Timeout),
        }
    }

    /// An attempt failed: its endpoint is not tried again.
    fn failed(&mut self, attempt: Attempt, term: Term, error: ConnectError) -> ConnectError {
        let endpoint = attempt.failed(&error, term.fair);
        self.wanted.tried.add(endpoint);
        error
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
