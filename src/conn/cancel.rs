//! Requests to cancel a query of PostgreSQL (its manual, "Canceling Requests in Progress").
//!
//! They come in a connection of their own, in clear from most clients, without a server name, and with a key that was told
//! inside TLS: nobody but the server knows whose it is. What is known here is with which servers the client's address has
//! sessions by the same listener. Each of those gets the request; those that do not know the key ignore it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::context::Context;
use super::limited::{self, Entering};
use super::metrics::Action;
use super::peek::read_more;
use super::proxy::Told;
use super::record::ConnRecord;
use super::refuse::refuse;
use super::termination::{Cause, Stage, Termination};
use crate::guard::ConnPermit;
use crate::net::{ProxyVersion, Socket, Timer, connect};
use crate::upstream::Endpoint;

/// Servers that one request is passed on to at most: more would make one connection cost as much as so many.
const MOST: usize = 16;

/// Whose sessions they are: a client's address, on a listener.
type Whose = (IpAddr, Arc<str>);

/// With which servers of PostgreSQL clients have sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<Whose, Vec<Counted>>>);

/// A server, and how many sessions with it there are.
#[derive(Clone, Debug)]
struct Counted {
    server: Server,
    sessions: usize,
}

/// A server as a route reaches it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) route: Arc<str>,
    pub(super) proxy_protocol: Option<ProxyVersion>,
}

/// A session, counted until dropped.
#[derive(Debug)]
pub(super) struct Session {
    sessions: Arc<Sessions>,
    whose: Whose,
    endpoint: Arc<Endpoint>,
}

/// A request of a client.
pub(super) struct Request<'a> {
    pub(super) bytes: &'a [u8],
    /// What the proxy before tells of the client.
    pub(super) told: &'a Told,
    /// How long passing it on may take.
    pub(super) deadline: Duration,
}

impl Sessions {
    /// Counts a session of a client with `server`.
    pub(super) fn begin(self: &Arc<Self>, whose: Whose, server: Server) -> Box<Session> {
        let endpoint = Arc::clone(&server.endpoint);
        let mut all = self.lock();
        let of_client = all.entry(whose.clone()).or_default();
        match of_client.iter_mut().find(|counted| Arc::ptr_eq(&counted.server.endpoint, &endpoint)) {
            Some(counted) => counted.sessions += 1,
            None => of_client.push(Counted { server, sessions: 1 }),
        }
        drop(all);
        Box::new(Session { sessions: Arc::clone(self), whose, endpoint })
    }

    fn of(&self, whose: &Whose) -> Vec<Server> {
        let all = self.lock();
        all.get(whose).into_iter().flatten().take(MOST).map(|counted| counted.server.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, Vec<Counted>>> {
        // Whoever panicked with it left whole entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut all = self.sessions.lock();
        let Some(of_client) = all.get_mut(&self.whose) else { return };
        if let Some(index) =
            of_client.iter().position(|counted| Arc::ptr_eq(&counted.server.endpoint, &self.endpoint))
        {
            match of_client.get_mut(index) {
                Some(counted) if counted.sessions > 1 => counted.sessions -= 1,
                _ => drop(of_client.swap_remove(index)),
            }
        }
        if of_client.is_empty() {
            all.remove(&self.whose);
        }
    }
}

/// Passes the request of a client on to the servers that it has sessions with, and waits until they have taken it.
pub(super) async fn pass_on(
    client: Socket,
    request: Request<'_>,
    entering: Entering<'_>,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let Entering { permit, listener } = entering;
    let mut servers = cx.shared.sessions.of(&record.whose());
    let Some(route) = servers.first().map(|server| Arc::clone(&server.route)) else {
        record.refused();
        listener.metrics.rejected(Termination::CANCELS_NOTHING.reason);
        return Termination::CANCELS_NOTHING;
    };
    record.routed(Action::Passthrough, &route, None);
    let enter =
        |permit: &mut ConnPermit, client| permit.enter_route(client, &listener.name, &route, Instant::now());
    let entered = limited::enter(Entering { permit, listener }, enter, record, cx, timer).await;
    if let Err((refusal, rejection)) = entered {
        refuse(client, refusal, record, &cx.scratch, timer).await;
        return Termination::limited(&rejection, Stage::Route);
    }
    record.connecting();
    let until = timer.now() + request.deadline;
    // None waits for the end of another: a server that stands still takes its request all the same.
    let share = request.deadline / u32::try_from(servers.len()).unwrap_or(1).max(1);
    let mut told = Vec::with_capacity(servers.len());
    for server in servers.drain(..) {
        let sent_by = until.min(timer.now() + share);
        let telling = tell(&server, &request, &client, record, cx);
        // A server that cannot be reached has nothing that could be cancelled.
        told.extend(timer.timeout_at(sent_by, telling).await.flatten());
    }
    for mut stream in told {
        // They act on it, and end the connection without a word.
        let mut answer = Vec::new();
        let _ = timer.timeout_at(until, read_more(&mut stream, &mut answer, &cx.scratch, 1)).await;
    }
    Termination { cause: Cause::Done, stage: Stage::Relay, reason: Some("cancel") }
}

/// Sends the request.
async fn tell(
    server: &Server,
    request: &Request<'_>,
    client: &Socket,
    record: &ConnRecord,
    cx: &Context,
) -> Option<Socket> {
    let place = server.endpoint.target.place()?;
    let mut words = match server.proxy_protocol {
        Some(version) => {
            let destination = request.told.destination.or_else(|| client.local_addr().ok())?;
            record.header(version, destination, &request.told.hops)
        }
        None => Vec::new(),
    };
    words.extend_from_slice(request.bytes);
    let (mut stream, sent) = connect(place, &words, &cx.reactor).await.ok()?;
    stream.write_all(words.get(sent..)?).await.ok()?;
    Some(stream)
}
