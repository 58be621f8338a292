//! What requests need of the connection that they come by, and of the thread that this is served on.

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::kept::Kept;
use super::record::Line;
use super::site::Site;
use super::wire::Count;
use crate::net::{ProxyVersion, Reactor, Scratch, Timers};
use crate::peek::ServerName;
use crate::tls::Buffers;
use crate::tls::acme::Challenges;

/// What the connections of a thread share.
#[derive(Debug)]
pub struct Thread {
    /// What they wait on.
    pub reactor: Rc<Reactor>,
    /// Their deadlines.
    pub timers: Rc<Timers>,
    /// Where records of TLS are made and taken apart.
    pub buffers: Rc<Buffers>,
    /// What they are read into, and the pipes of relays.
    pub scratch: Rc<Scratch>,
    /// Who reads files.
    pub disk: Disk,
    /// What this process is called in `Via`.
    pub pseudonym: Box<str>,
    pub(super) kept: Rc<Kept>,
}

/// A client's connection.
pub struct Connection {
    /// What it shares with others.
    pub thread: Rc<Thread>,
    /// What it is called in logs.
    pub id: u64,
    /// The listener that it came in on.
    pub listener: Arc<str>,
    /// The client.
    pub client: SocketAddr,
    /// The address that it was accepted at.
    pub local: Option<SocketAddr>,
    /// Whether it is inside TLS.
    pub tls: bool,
    /// The server name that the client has asked for by TLS.
    pub server_name: Option<ServerName>,
    /// The certificate that the client has shown, as RFC 9440 has it.
    pub client_certificate: Option<HeaderValue>,
    /// The header of the PROXY protocol that tells of it.
    pub announcement: Box<dyn Fn(ProxyVersion) -> Vec<u8>>,
    /// The route that took it.
    pub route: Arc<str>,
    /// Finds what becomes of requests by the configuration of now; `None` when the route is gone.
    pub site: Box<dyn Fn() -> Option<Arc<Site>>>,
    /// Whether requests for this host may come by this connection: they would have come to the same route.
    pub takes: Box<dyn Fn(&str) -> bool>,
    /// Tells of a request that is over.
    pub tell: Box<dyn Fn(&Line<'_>)>,
    /// Counts the bytes that pass.
    pub count: Count,
    /// What authorities of certificates are answered.
    pub challenges: Arc<Challenges>,
    /// Cancelled when no more requests are to come.
    pub draining: CancellationToken,
    /// How many requests have come.
    pub requests: Cell<u64>,
}

impl Thread {
    /// What connections of HTTP share on this thread.
    pub fn new(
        reactor: &Rc<Reactor>,
        timers: &Rc<Timers>,
        buffers: &Rc<Buffers>,
        scratch: &Rc<Scratch>,
        disk: &Disk,
        pseudonym: Box<str>,
    ) -> Rc<Self> {
        Rc::new(Self {
            reactor: Rc::clone(reactor),
            timers: Rc::clone(timers),
            buffers: Rc::clone(buffers),
            scratch: Rc::clone(scratch),
            disk: disk.clone(),
            pseudonym,
            kept: Rc::default(),
        })
    }
}

impl Connection {
    /// What the next request is called in logs.
    pub(super) fn next_id(&self) -> String {
        let number = self.requests.get();
        self.requests.set(number + 1);
        format!("{:016x}-{number}", self.id)
    }

    /// The address of its client.
    pub(super) fn ip(&self) -> IpAddr {
        self.client.ip()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("client", &self.client).finish_non_exhaustive()
    }
}
