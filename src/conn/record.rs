//! What is told of a connection: its counters, and one line in the access log when it has ended.

use std::cell::{RefCell, RefMut};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::balance::Admitted;
use super::context::{Context, ListenerContext};
use super::metrics::Action;
use super::registry::Place;
use super::termination::{Cause, Stage, Termination};
use crate::guard::Rejection;
use crate::net::{Announcement, Hops, InstanceId, Opening, ProxyVersion};
use crate::peek::{Alpn, Detector, Ja4, Preface, Protocol, ServerName};
use crate::snapshot::{LiveRoute, Traffic};
use crate::tls::Negotiated;
use crate::upstream::{Endpoint, Lease};

mod line;
mod meter;

use line::{EndedTls, Line, milliseconds};
pub(super) use line::{format_time, logfmt};
pub(super) use meter::Requests;
use meter::{Counts, TrafficMeter};

/// The story of a connection. Dropped without an end, it was forced.
#[derive(Debug)]
pub(super) struct ConnRecord {
    cx: Rc<Context>,
    /// Its place among the open connections of the worker.
    place: Place,
    open: Rc<Open>,
    traffic: Option<Arc<Traffic>>,
    /// In a box, for the short time from the end on: its room would be held as long as the connection lasts.
    end: Option<Box<Termination>>,
}

/// What others of the same thread may look at while it is open.
#[derive(Debug)]
pub(super) struct Open {
    counts: Counts,
    story: RefCell<Story>,
}

#[derive(Debug)]
struct Story {
    id: u64,
    listener: Arc<ListenerContext>,
    client: SocketAddr,
    /// The proxy that named the client.
    via: Option<Box<SocketAddr>>,
    started: Instant,
    stage: Stage,
    action: Action,
    protocol: Option<Protocol>,
    tls: bool,
    sni: Option<ServerName>,
    alpn: Alpn,
    ja4: Option<Box<Ja4>>,
    /// What TLS came to that ended here.
    ended_tls: Option<Box<EndedTls>>,
    route: Option<Arc<str>>,
    reached: Reached,
    /// Whether the log tells of it.
    told: bool,
    /// Why somebody asked for its end.
    closed: Option<Asked>,
}

/// Why a connection ends that could go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// An operator wants it closed.
    Closed,
    /// Its backend went down.
    BackendDown,
}

/// How far it came on its way to a backend.
#[derive(Debug)]
enum Reached {
    /// None was looked for.
    Nothing,
    /// This limit of its route kept it from one.
    Limit(Arc<str>),
    /// None could be connected to; this one was tried last.
    Tried(Arc<Endpoint>),
    /// It was connected, after so long; the endpoint counts it until the end.
    Backend(Lease, Duration),
    /// The same, to the server that the client names, at this address.
    Named(Box<(Lease, Duration, SocketAddr)>),
}

impl ConnRecord {
    pub(super) fn open(admitted: &Admitted, cx: Rc<Context>) -> Self {
        let listener = &admitted.listener;
        listener.metrics.active.increment(1.0);
        let story = RefCell::new(Story {
            id: cx.next_id(),
            listener: Arc::clone(listener),
            client: admitted.client,
            via: None,
            started: admitted.at,
            stage: Stage::Peek,
            action: Action::None,
            protocol: None,
            tls: false,
            sni: None,
            alpn: Alpn::default(),
            ja4: None,
            ended_tls: None,
            route: None,
            reached: Reached::Nothing,
            told: true,
            closed: None,
        });
        let open = Rc::new(Open { counts: Counts::default(), story });
        Self { place: cx.connections.insert(Rc::clone(&open)), cx, open, traffic: None, end: None }
    }

    /// What the connections of its worker share.
    pub(super) fn context(&self) -> &Rc<Context> {
        &self.cx
    }

    /// Its place among the open connections of the worker.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The server name that the client asks for.
    pub(super) fn server_name(&self) -> Option<ServerName> {
        self.story().sni.clone()
    }

    fn story(&self) -> RefMut<'_, Story> {
        // Held by nobody for longer than a call of this module.
        self.open.story.borrow_mut()
    }

    /// The client's address, and the listener that it came in on.
    pub(super) fn whose(&self) -> (IpAddr, Arc<str>) {
        let story = self.story();
        (story.client.ip(), Arc::clone(&story.listener.name))
    }

    pub(super) fn client(&self) -> SocketAddr {
        self.story().client
    }

    /// Who is at the other end of the client's socket: the client, or the proxy that named it.
    pub(super) fn peer(&self) -> SocketAddr {
        let story = self.story();
        story.via.as_deref().copied().unwrap_or(story.client)
    }

    /// A header is awaited that names the client.
    pub(super) fn awaits_header(&mut self) {
        self.story().stage = Stage::Proxy;
    }

    /// There was a header: the connection is that of `client`, when it named one.
    pub(super) fn named(&mut self, client: Option<SocketAddr>) {
        if let Some(client) = client {
            let mut story = self.story();
            story.via = Some(Box::new(std::mem::replace(&mut story.client, client)));
        }
    }

    /// Whose connection it is has been looked into.
    pub(super) fn identified(&mut self) {
        self.story().stage = Stage::Peek;
    }

    /// These bytes were read to find out what the connection is.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        let received = &self.open.counts.received;
        received.set(received.get() + bytes.len() as u64);
        if Detector::begins_tls(bytes) {
            self.story().protocol = Some(Protocol::Tls);
        } else if Opening::of(bytes) == Opening::Header {
            self.story().protocol = Some(Protocol::Unknown);
        }
    }

    /// It is known what the connection is; whether the log `tells` its fingerprint is up to the configuration.
    pub(super) fn peeked(&mut self, preface: &Preface, tells: bool) {
        let mut story = self.story();
        story.stage = Stage::Route;
        story.protocol = Some(preface.protocol());
        if let Some(hello) = preface.hello() {
            story.tls = true;
            story.sni.clone_from(&hello.server_name);
            story.alpn = hello.alpn.clone();
            if tells {
                story.ja4.clone_from(&hello.ja4);
            }
        }
    }

    /// A route takes it.
    pub(super) fn routed(&mut self, action: Action, route: &Arc<str>, live: Option<&LiveRoute>) {
        let mut story = self.story();
        story.action = action;
        story.route = Some(Arc::clone(route));
        let tls = story.tls;
        drop(story);
        if matches!(action, Action::Terminate | Action::Http) && tls {
            // What is inside TLS is counted.
            self.open.counts.received.set(0);
            self.open.counts.sent.set(0);
        }
        self.traffic = live.map(|live| Arc::clone(&live.traffic));
        if let Some(traffic) = &self.traffic {
            traffic.received.increment(self.open.counts.received.get());
            traffic.sent.increment(self.open.counts.sent.get());
        }
    }

    /// It is refused without a route.
    pub(super) fn refused(&mut self) {
        self.story().action = Action::Reject;
    }

    pub(super) fn ends_tls(&mut self) {
        self.story().stage = Stage::Handshake;
    }

    /// What the handshake came to.
    pub(super) fn terminated(&mut self, negotiated: &Negotiated<'_>) {
        if let Some(traffic) = &self.traffic {
            traffic.handshakes.done(negotiated.as_handshake());
        }
        let mut story = self.story();
        story.tls = false;
        story.ended_tls = Some(Box::new(EndedTls::new(negotiated)));
    }

    /// Its requests are answered one by one: what counts them.
    pub(super) fn speaks_http(&mut self) -> Requests {
        self.story().stage = Stage::Http;
        Requests { open: Rc::clone(&self.open), traffic: self.traffic.clone() }
    }

    /// Its number, unique in the process.
    pub(super) fn number(&self) -> u64 {
        self.story().id
    }

    pub(super) fn connecting(&mut self) {
        self.story().stage = Stage::Connect;
    }

    /// It was connected, after so long: where the client names the server, to the one at the address that is `named`.
    pub(super) fn connected(&mut self, lease: Lease, took: Duration, named: Option<SocketAddr>) {
        let mut story = self.story();
        story.stage = Stage::Relay;
        story.reached = match named {
            None => Reached::Backend(lease, took),
            Some(addr) => Reached::Named(Box::new((lease, took, addr))),
        };
    }

    /// The hello of a client that speaks TLS was passed on: what its backend says next is the answer.
    pub(super) fn hello_passed_on(&self) {
        self.open.counts.hello_open.set(self.is_tls());
    }

    /// Whether the client speaks TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.story().tls
    }

    /// The backend ended it, which tells against that one if it had not said anything.
    pub(super) fn broken_off(&self) {
        let story = self.story();
        if let (false, Some(lease)) = (self.open.counts.answered.get(), story.reached.lease()) {
            lease.unanswered();
        }
    }

    /// No backend could be connected to; this one was tried last.
    pub(super) fn tried(&mut self, backend: Option<Arc<Endpoint>>) {
        self.story().reached = backend.map_or(Reached::Nothing, Reached::Tried);
    }

    /// A limit refuses it, or a list. There may be many like it, so it is told of like those at accept, of which
    /// some are.
    pub(super) fn limited(&mut self, limit: Option<Arc<str>>) {
        let told = self.cx.tells_rejection(Timestamp::now().as_second().unsigned_abs());
        let mut story = self.story();
        story.action = Action::Reject;
        story.reached = limit.map_or(Reached::Nothing, Reached::Limit);
        story.told = told;
    }

    pub(super) fn meter(&self) -> TrafficMeter<'_> {
        TrafficMeter { open: &self.open, traffic: self.traffic.as_deref() }
    }

    /// The header that tells a backend of the connection, and that its client connected to `destination`
    /// and came through `hops`.
    pub(super) fn header(&self, version: ProxyVersion, destination: SocketAddr, hops: &Hops) -> Vec<u8> {
        self.open.header(version, destination, hops, self.cx.shared.instance)
    }

    /// What makes that header for each connection to a backend of a client that has several.
    pub(super) fn announcing(
        &self,
        destination: SocketAddr,
        hops: Hops,
    ) -> Box<dyn Fn(ProxyVersion) -> Vec<u8>> {
        let (open, instance) = (Rc::clone(&self.open), self.cx.shared.instance);
        Box::new(move |version| open.header(version, destination, &hops, instance))
    }

    /// The end.
    pub(super) fn finish(mut self, termination: Termination) {
        self.end = Some(Box::new(termination));
    }
}

/// What a connection is called in logs.
fn id(number: u64) -> String {
    format!("{number:016x}")
}

impl Open {
    /// Its number, unique in the process.
    pub(super) fn number(&self) -> u64 {
        self.story.borrow().id
    }

    /// The header that tells a backend of the connection. Of several ALPN offers none is told: which it will be is for the
    /// backend to say.
    fn header(
        &self,
        version: ProxyVersion,
        destination: SocketAddr,
        hops: &Hops,
        instance: InstanceId,
    ) -> Vec<u8> {
        let story = self.story.borrow();
        let mut offers = story.alpn.iter();
        let alpn = offers.next().filter(|_| offers.next().is_none());
        // Where TLS ended here it is known what was agreed on.
        let ended = story.ended_tls.as_deref();
        let alpn = ended.map_or(alpn, |ended| ended.alpn().map(str::as_bytes));
        version.write(&Announcement {
            source: story.client,
            destination,
            authority: story.sni.as_ref().map(ServerName::as_str),
            alpn,
            tls: ended.map(EndedTls::announced),
            unique_id: &id(story.id),
            hops,
            instance,
        })
    }

    /// From now on its end is one that was asked for.
    pub(super) fn close(&self, why: Asked) {
        self.story.borrow_mut().closed.get_or_insert(why);
    }

    /// Whether it is connected to `endpoint`.
    pub(super) fn is_with(&self, endpoint: &Arc<Endpoint>) -> bool {
        let story = self.story.borrow();
        story.reached.lease().is_some_and(|lease| Arc::ptr_eq(lease.endpoint(), endpoint))
    }

    /// Its line of the access log as it is now, without an end.
    pub(super) fn to_json(&self) -> Value {
        let story = self.story.borrow();
        // No value can fail to serialise.
        serde_json::to_value(story.line(&self.counts, story.stage, None, story.started.elapsed()))
            .unwrap_or_default()
    }
}

impl Reached {
    /// What counts it as a connection to a backend, when it has come to one.
    fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Backend(lease, _) => Some(lease),
            Self::Named(named) => Some(&named.0),
            Self::Nothing | Self::Limit(_) | Self::Tried(_) => None,
        }
    }

    /// The address that it was connected to, when a backend's name does not say so.
    fn address(&self) -> Option<String> {
        let endpoint = match self {
            Self::Named(named) => return Some(named.2.to_string()),
            Self::Backend(lease, _) => lease.endpoint(),
            Self::Tried(endpoint) => endpoint,
            Self::Nothing | Self::Limit(_) => return None,
        };
        // Of one that is written as an address there is no more to say.
        Some(endpoint.target.to_string()).filter(|address| *endpoint.name != **address)
    }
}

impl Story {
    fn line(&self, counts: &Counts, stage: Stage, end: Option<Termination>, duration: Duration) -> Line<'_> {
        let (limit, backend, took) = match &self.reached {
            Reached::Nothing => (None, None, None),
            Reached::Limit(limit) => (Some(&**limit), None, None),
            Reached::Tried(endpoint) => (None, Some(endpoint), None),
            Reached::Backend(lease, took) => (None, Some(lease.endpoint()), Some(*took)),
            Reached::Named(named) => (None, Some(named.0.endpoint()), Some(named.1)),
        };
        Line {
            time: format_time(duration),
            id: id(self.id),
            listener: &self.listener.name,
            client: self.client,
            via: self.via.as_deref().copied(),
            sni: self.sni.as_ref().map(ServerName::as_str),
            alpn: self.alpn.iter().map(|name| name.escape_ascii().to_string()).collect(),
            ja4: self.ja4.as_deref().map(Ja4::as_str),
            protocol: self.protocol.map(Protocol::as_str),
            tls: self.ended_tls.as_deref(),
            route: self.route.as_deref(),
            action: self.action.as_str(),
            reason: end.and_then(|end| end.reason),
            limit,
            backend: backend.map(|endpoint| &*endpoint.name),
            address: self.reached.address(),
            connect_ms: took.map(milliseconds),
            duration_ms: milliseconds(duration),
            bytes_in: counts.received.get(),
            bytes_out: counts.sent.get(),
            bytes_spliced: counts.spliced.get(),
            requests: (self.action == Action::Http).then(|| counts.requests.get()),
            cause: end.map(|end| end.cause.as_str()),
            stage: stage.as_str(),
        }
    }
}

impl Drop for ConnRecord {
    fn drop(&mut self) {
        self.cx.connections.remove(self.place);
        let (story, counts) = (self.open.story.borrow(), &self.open.counts);
        let end = self.end.as_deref().copied().unwrap_or_else(|| {
            let drained = self.cx.shared.drained.load(Ordering::Acquire);
            match story.closed {
                Some(Asked::Closed) => Termination::closed(story.stage),
                Some(Asked::BackendDown) => Termination::backend_down(story.stage),
                None => Termination::dropped(story.stage, drained),
            }
        });
        let duration = story.started.elapsed();
        story.listener.metrics.active.decrement(1.0);
        story.listener.metrics.ended(story.action);
        if end.cause == Cause::Internal {
            story.listener.metrics.internal.increment(1);
        }
        match &self.traffic {
            Some(traffic) => traffic.duration.record(duration),
            None => {
                let snapshot = self.cx.shared.snapshot.load();
                snapshot.unrouted().received.increment(counts.received.get());
                snapshot.unrouted().sent.increment(counts.sent.get());
                snapshot.unrouted().duration.record(duration);
            }
        }
        let access_log = self.cx.shared.access_log.load();
        if let Some(format) = access_log.format().filter(|_| story.told) {
            access_log.write(story.line(counts, end.stage, Some(end), duration).render(format));
        }
    }
}

/// Tells of a connection that was refused at accept; of some, when there are many.
pub(super) fn tell_rejection(
    rejection: &Rejection,
    client: SocketAddr,
    listener: &ListenerContext,
    cx: &Context,
) {
    let access_log = cx.shared.access_log.load();
    let Some(format) = access_log.format() else { return };
    let now = Timestamp::now();
    if !cx.tells_rejection(now.as_second().unsigned_abs()) {
        return;
    }
    let end = Termination::limited(rejection, Stage::Accept);
    let line = Line {
        time: format_time(Duration::ZERO),
        id: id(cx.next_id()),
        listener: &listener.name,
        client,
        via: None,
        sni: None,
        alpn: Vec::new(),
        ja4: None,
        protocol: None,
        tls: None,
        route: None,
        action: Action::Reject.as_str(),
        reason: end.reason,
        limit: rejection.limit().map(|name| &**name),
        backend: None,
        address: None,
        connect_ms: None,
        duration_ms: 0.0,
        bytes_in: 0,
        bytes_out: 0,
        bytes_spliced: 0,
        requests: None,
        cause: Some(end.cause.as_str()),
        stage: end.stage.as_str(),
    };
    access_log.write(line.render(format));
}
