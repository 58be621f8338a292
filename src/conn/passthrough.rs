//! Passing a connection through to a backend, untouched.

use std::error::Error;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Instant;

use tracing::{debug, warn};

use super::balance::Live;
use super::cancel::{Server, Session};
use super::context::Context;
use super::prelude::{self, PlayError};
use super::proxy::Told;
use super::record::ConnRecord;
use super::refuse::Refusal;
use super::termination::{Cause, Stage, Termination};
use crate::guard::ConnPermit;
use crate::net::{Direction, Relay, RelayEnd, Side, Socket, Timer, reset_on_close};
use crate::peek::{Protocol, ServerName};
use crate::prelude::Replay;
use crate::route::RouteId;
use crate::snapshot::{Backends, Snapshot};
use crate::tls::End;
use crate::upstream::{Caller, ConnectError, ConnectFailure, UpstreamConn};

/// A connection with its backend.
pub(super) struct Relayed<'a> {
    ends: Ends,
    relay: Relay<'a>,
    /// What it counts for, until dropped.
    _counted: Counted,
}

/// Both ends of a relay. Unless each has got all that there was, closing resets them: nobody must take a
/// broken stream for a whole one, least of all when the relay is dropped in the middle of it.
struct Ends {
    client: End,
    upstream: End,
    whole: bool,
}

/// A client that is to be passed on.
pub(super) struct Client<S = Socket> {
    pub(super) stream: S,
    /// What it has sent already.
    pub(super) said: Vec<u8>,
    /// What the proxy before tells of it.
    pub(super) told: Told,
    /// What its connection counts for.
    pub(super) counted: Counted,
}

impl From<Client> for Client<End> {
    fn from(client: Client) -> Self {
        let Client { stream, said, told, counted } = client;
        Self { stream: stream.into(), said, told, counted }
    }
}

/// What a connection counts for, until dropped.
pub(super) struct Counted {
    pub(super) permit: ConnPermit,
    #[expect(dead_code, reason = "it counts as long as it is there")]
    pub(super) live: Live,
    /// As a session that a client of PostgreSQL may want something of by another connection.
    pub(super) session: Option<Box<Session>>,
}

/// How a connection began.
pub(super) struct Begun {
    /// What a backend is played before it gets the hello.
    pub(super) replay: Option<Box<Replay>>,
    /// What the client is told when no backend can be reached.
    pub(super) without_backend: Refusal,
    /// What it is a connection of.
    pub(super) protocol: Protocol,
    /// Whether a second backend may be sent the same while the first has not answered.
    pub(super) may_move: bool,
}

/// A client without a backend, and how it is told.
pub(super) struct Alone {
    pub(super) stream: End,
    pub(super) refusal: Refusal,
    pub(super) why: Termination,
}

/// Connects to a backend of the route.
pub(super) async fn connect<'a>(
    client: Client<End>,
    begun: Begun,
    snapshot: &Snapshot,
    route: RouteId,
    record: &mut ConnRecord,
    cx: &'a Context,
    timer: &mut Timer<'_>,
) -> Result<Relayed<'a>, Alone> {
    let Client { stream, mut said, told, mut counted } = client;
    let Begun { replay, without_backend: refusal, protocol, may_move } = begun;
    let Some(backends) = snapshot.live(route).and_then(|live| live.backends.as_ref()) else {
        // The table and what belongs to its routes are built from the same configuration.
        let why = Termination { cause: Cause::Internal, stage: Stage::Route, reason: Some("no_backends") };
        return Err(Alone { stream, refusal, why });
    };
    record.connecting();
    // Where something is played to the backend, the hello has its time later.
    let hello = replay.as_ref().map(|replay| std::mem::replace(&mut said, replay.opening()));
    let header = match announce(&mut said, stream.socket(), &told, backends, record) {
        Ok(header) => header,
        Err(why) => return Err(Alone { stream, refusal, why }),
    };
    // What clients say goes inside TLS, once that is agreed on: until then a backend is sent the header and nothing else.
    let first = if backends.upstream.speaks_tls() { header } else { said.len() };
    let connected = {
        let server_name = backends.upstream.tells_names_apart().then(|| record.server_name()).flatten();
        let caller = caller(&stream, server_name.as_ref(), may_move, record, cx);
        backends.upstream.connect(said.get(..first).unwrap_or_default(), caller, &cx.reactor, timer).await
    };
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(failure) => {
            let why = Termination::from(&failure.error);
            tell_failure(failure, record, cx);
            return Err(Alone { stream, refusal, why });
        }
    };
    let mut left: Box<[u8]> = said.get(connection.sent..).unwrap_or_default().into();
    if let Some((replay, hello)) = replay.zip(hello) {
        let words = (std::mem::take(&mut left), hello);
        if let Err(why) = play(replay, &mut connection, words, snapshot, record, cx, timer).await {
            return Err(Alone { stream, refusal, why });
        }
    }
    counted.session = session(protocol, &connection, backends, record, cx);
    record.connected(connection.lease, connection.took, connection.named);
    record.hello_passed_on();
    let throttle = counted.permit.throttle(Instant::now());
    let relay = Relay::new(left, &cx.scratch, backends.idle, timer.now()).throttled(throttle);
    let upstream = End::new(connection.stream, connection.tls, &cx.tls);
    let ends = Ends { client: stream, upstream, whole: false };
    Ok(Relayed { ends, relay, _counted: counted })
}

/// Whose connection it is that needs a backend.
fn caller<'c>(
    stream: &'c End,
    server_name: Option<&'c ServerName>,
    may_move: bool,
    record: &ConnRecord,
    cx: &'c Context,
) -> Caller<'c> {
    Caller {
        client: record.client().ip(),
        server_name: server_name.map(ServerName::as_str),
        socket: Some(stream.socket()),
        ends_as_one: record.is_tls(),
        may_move,
        alpn: stream.alpn(),
        buffers: &cx.tls,
    }
}

/// The session of a client of PostgreSQL, which it may want something of by another connection: the end of a query. It asks for that
/// in clear, with a secret of the session, which is not for the network behind TLS.
fn session(
    protocol: Protocol,
    connection: &UpstreamConn,
    backends: &Backends,
    record: &ConnRecord,
    cx: &Context,
) -> Option<Box<Session>> {
    if protocol != Protocol::Postgres || connection.named.is_some() || connection.tls.is_some() {
        return None;
    }
    let endpoint = Arc::clone(connection.lease.endpoint());
    let route = Arc::clone(&backends.route);
    let server = Server { endpoint, route, proxy_protocol: backends.proxy_protocol };
    Some(cx.shared.sessions.begin(record.whose(), server))
}

/// Puts the header that the backend is to be sent before what is `said`: in one piece with the hello it is one write, and one segment.
/// Gives its length.
fn announce(
    said: &mut Vec<u8>,
    stream: &Socket,
    told: &Told,
    backends: &Backends,
    record: &ConnRecord,
) -> Result<usize, Termination> {
    let Some(version) = backends.proxy_protocol else { return Ok(0) };
    let destination = told.destination.map_or_else(|| stream.local_addr(), Ok);
    let destination = destination.map_err(|error| Termination::from(&ConnectError::Resource(error)))?;
    let header = record.header(version, destination, &told.hops);
    let len = header.len();
    said.splice(..0, header);
    Ok(len)
}

/// Plays what comes before TLS to the backend, and sends it the hello.
async fn play(
    replay: Box<Replay>,
    connection: &mut UpstreamConn,
    (left, hello): (Box<[u8]>, Vec<u8>),
    snapshot: &Snapshot,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<(), Termination> {
    let (words, deadline) = ((&*left, &*hello), snapshot.timeouts.hello);
    let played = prelude::play(replay, &mut connection.stream, words, deadline, &cx.scratch, timer);
    let Err(error) = Box::pin(played).await else { return Ok(()) };
    // A refusal may be of what the client said in clear, which is played to it.
    if !matches!(error, PlayError::Replay(_)) {
        connection.lease.unanswered();
    }
    let endpoint = connection.lease.endpoint();
    debug!(?error, endpoint = &*endpoint.name, "a backend did not begin TLS");
    record.tried(Some(Arc::clone(endpoint)));
    Err(Termination::from(&error))
}

/// Tells of a connection for which there is no backend.
fn tell_failure(failure: ConnectFailure, record: &mut ConnRecord, cx: &Context) {
    let ConnectFailure { error, endpoint } = failure;
    let source = error.source().map(ToString::to_string);
    let name = endpoint.as_ref().map(|endpoint| &*endpoint.name);
    match error {
        // Ours, and more than this connection will feel it.
        ConnectError::Resource(_) if cx.tells_trouble() => {
            warn!(%error, source, endpoint = name, "no connection to a backend");
        }
        _ => debug!(%error, source, endpoint = name, "no connection to a backend"),
    }
    record.tried(endpoint);
}

impl Relayed<'_> {
    /// Relays until the end.
    pub(super) fn poll(
        &mut self,
        cx: &mut task::Context<'_>,
        record: &ConnRecord,
        timer: &mut Timer<'_>,
    ) -> Poll<Termination> {
        let Ends { client, upstream, whole } = &mut self.ends;
        let end = ready!(self.relay.poll(cx, client, upstream, timer, &record.meter()));
        if is_broken_off(&end, self.relay.ended_first(), record.is_tls()) {
            record.broken_off();
        }
        *whole = match &end {
            RelayEnd::Done => true,
            RelayEnd::Fault(fault) => fault.delivered,
            RelayEnd::Idle { stalled, .. } => stalled.is_none(),
        };
        Poll::Ready(Termination::from(&end))
    }
}

/// Whether it was the backend that ended a connection, of its own accord: then it should have said something before. A
/// client that has ended its stream may get no answer. One of TLS always gets one otherwise, be it an alert; other
/// protocols may have a reason to close without a word, but none to reset.
fn is_broken_off(end: &RelayEnd, first: Option<Direction>, tls: bool) -> bool {
    match end {
        RelayEnd::Fault(fault) => fault.side == Side::Upstream && first != Some(Direction::Up),
        RelayEnd::Done => tls && first == Some(Direction::Down),
        RelayEnd::Idle { .. } => false,
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.whole {
            reset_on_close(self.client.socket());
            reset_on_close(self.upstream.socket());
        }
    }
}
