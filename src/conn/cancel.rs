//! Requests to cancel a query of PostgreSQL (its manual, "Canceling Requests in Progress").
//!
//! They come in a connection of their own, in clear from most clients, without a server name, and with a key that was told
//! inside TLS: nobody but the server knows whose it is. What is known here is with which servers the client's address has
//! sessions. Each of those gets the request; those that do not know the key ignore it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::context::Context;
use super::metrics::Action;
use super::peek::read_more;
use super::record::ConnRecord;
use super::termination::{Cause, Stage, Termination};
use crate::net::{Hops, ProxyVersion, Socket, Timer, connect};
use crate::upstream::Endpoint;

/// Servers that one request is passed on to at most: more would make one connection cost as much as so many.
const MOST: usize = 16;

/// With which servers of PostgreSQL clients have sessions, by address.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<IpAddr, Vec<Counted>>>);

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
    client: IpAddr,
    endpoint: Arc<Endpoint>,
}

impl Sessions {
    /// Counts a session of `client` with `server`.
    pub(super) fn begin(self: &Arc<Self>, client: IpAddr, server: Server) -> Box<Session> {
        let endpoint = Arc::clone(&server.endpoint);
        let mut all = self.lock();
        let of_client = all.entry(client).or_default();
        match of_client.iter_mut().find(|counted| Arc::ptr_eq(&counted.server.endpoint, &endpoint)) {
            Some(counted) => counted.sessions += 1,
            None => of_client.push(Counted { server, sessions: 1 }),
        }
        drop(all);
        Box::new(Session { sessions: Arc::clone(self), client, endpoint })
    }

    fn of(&self, client: IpAddr) -> Vec<Server> {
        let all = self.lock();
        all.get(&client).into_iter().flatten().take(MOST).map(|counted| counted.server.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Vec<Counted>>> {
        // Whoever panicked with it left whole entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut all = self.sessions.lock();
        let Some(of_client) = all.get_mut(&self.client) else { return };
        if let Some(index) =
            of_client.iter().position(|counted| Arc::ptr_eq(&counted.server.endpoint, &self.endpoint))
        {
            match of_client.get_mut(index) {
                Some(counted) if counted.sessions > 1 => counted.sessions -= 1,
                _ => drop(of_client.swap_remove(index)),
            }
        }
        if of_client.is_empty() {
            all.remove(&self.client);
        }
    }
}

/// Passes the `request` of a client on to the servers that it has sessions with, and waits until they have taken it.
pub(super) async fn pass_on(
    client: Socket,
    request: &[u8],
    deadline: Duration,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let servers = cx.shared.sessions.of(record.client().ip());
    let Some(one) = servers.first() else {
        record.refused();
        return Termination { cause: Cause::Policy, stage: Stage::Route, reason: Some("cancels_nothing") };
    };
    record.routed(Action::Passthrough, &one.route, None);
    record.connecting();
    let until = timer.now() + deadline;
    for server in &servers {
        let mut words = match (server.proxy_protocol, client.local_addr()) {
            (Some(version), Ok(destination)) => record.header(version, destination, &Hops::default()),
            _ => Vec::new(),
        };
        words.extend_from_slice(request);
        // A server that does not take it has nothing that could be cancelled.
        timer.timeout_at(until, tell(server, &words, cx)).await;
    }
    Termination { cause: Cause::Done, stage: Stage::Relay, reason: Some("cancel") }
}

/// Sends the request; its end is the server's, which has acted on it then.
async fn tell(server: &Server, words: &[u8], cx: &Context) -> Option<()> {
    let place = server.endpoint.target.place()?;
    let (mut stream, sent) = connect(place, words, &cx.reactor).await.ok()?;
    stream.write_all(words.get(sent..)?).await.ok()?;
    let mut answer = Vec::new();
    // Servers say nothing.
    read_more(&mut stream, &mut answer, &cx.scratch, 1).await.ok()
}
