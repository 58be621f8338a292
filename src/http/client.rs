//! Connections to backends for requests: one that is kept, or a new one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::connection::{Connection, Thread};
use super::kept::Key;
use super::site::Destination;
use super::wire::Wire;
use crate::config::BackendHttp;
use crate::net::Timer;
use crate::peek::ServerName;
use crate::tls::End;
use crate::upstream::{Caller, ConnectError, ConnectFailure, Endpoint, Lease, Leased};

/// What a request is sent by.
pub(super) enum Link {
    H1(Rc<Wire>),
    H2(h2::client::SendRequest<Bytes>),
}

/// A connection for one request.
pub(super) struct Leash {
    pub(super) link: Link,
    pub(super) lease: Lease,
    pub(super) key: Key,
    /// Whether it was used before.
    pub(super) reused: bool,
}

/// How a request wants its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Whether one that was used before will do.
    pub(super) reuse: bool,
    /// Whether it should have been used a moment ago, if at all: what is sent cannot be repeated.
    pub(super) fresh: bool,
}

/// What a backend may send of a stream before it was taken, in bytes. All together may have any number: clients that take
/// nothing would hold up the others of their session.
const WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest list of fields in an answer.
const HEADER_LIST: u32 = 64 * 1024;

/// Has a connection to a backend of `target`.
pub(super) async fn lease(
    target: &Destination,
    wish: Wish,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<Leash, ConnectFailure> {
    let thread = &cx.thread;
    let found: RefCell<Option<Link>> = RefCell::new(None);
    let name = cx.server_name.as_ref().filter(|_| target.upstream.speaks_tls());
    let key = |endpoint: &Arc<Endpoint>| Key {
        endpoint: Arc::clone(endpoint),
        connector: target.upstream.connector().cloned(),
        name: name.map(|name| name.as_str().into()),
    };
    let kept = |endpoint: &Arc<Endpoint>| {
        if !wish.reuse || !target.is_shared() {
            return false;
        }
        let key = key(endpoint);
        let link = match target.version {
            BackendHttp::Http1 => thread.kept.take(&key, wish.fresh, thread.timers.now()).map(Link::H1),
            BackendHttp::Http2 => thread.kept.session(&key, thread.timers.now()).map(Link::H2),
        };
        let is_there = link.is_some();
        found.replace(link);
        is_there
    };
    let caller = caller(name, cx);
    let first = target.proxy_protocol.map(&cx.announcement).unwrap_or_default();
    match target.upstream.lease(&first, &kept, caller, &thread.reactor, timer).await? {
        Leased::Kept(lease) => {
            let key = key(lease.endpoint());
            let gone = || ConnectFailure {
                error: ConnectError::NoEndpoint,
                endpoint: Some(Arc::clone(&key.endpoint)),
            };
            let link = found.into_inner().ok_or_else(gone)?;
            Ok(Leash { link, lease, key, reused: true })
        }
        Leased::New(connection) => {
            let key = key(connection.lease.endpoint());
            let end = End::new(connection.stream, connection.tls, &thread.buffers);
            let unsent = first.get(connection.sent..).unwrap_or_default();
            let link = begin((end, unsent), &key, target, thread, timer).await?;
            Ok(Leash { link, lease: connection.lease, key, reused: false })
        }
    }
}

/// Whose requests they are.
fn caller<'a>(name: Option<&'a ServerName>, cx: &'a Connection) -> Caller<'a> {
    Caller {
        client: cx.client.ip(),
        server_name: name.map(ServerName::as_str),
        socket: None,
        ends_as_one: false,
        may_move: false,
        alpn: None,
        buffers: &cx.thread.buffers,
    }
}

/// What requests are sent by over a new connection.
async fn begin(
    (end, unsent): (End, &[u8]),
    key: &Key,
    target: &Destination,
    thread: &Rc<Thread>,
    timer: &mut Timer<'_>,
) -> Result<Link, ConnectFailure> {
    match target.version {
        BackendHttp::Http1 => {
            let wire = Wire::new(end, &[], &thread.scratch, None);
            wire.queue(unsent);
            Ok(Link::H1(Rc::new(wire)))
        }
        BackendHttp::Http2 => match Box::pin(session((end, unsent), key, thread, timer, target)).await {
            Ok(session) => Ok(Link::H2(session)),
            Err(error) => Err(ConnectFailure { error, endpoint: Some(Arc::clone(&key.endpoint)) }),
        },
    }
}

/// Begins a session of HTTP/2, which is driven by a task of its own until it ends.
async fn session(
    (mut end, unsent): (End, &[u8]),
    key: &Key,
    thread: &Rc<Thread>,
    timer: &mut Timer<'_>,
    target: &Destination,
) -> Result<h2::client::SendRequest<Bytes>, ConnectError> {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(super::wire::HIGH);
    let until = timer.now() + target.connect_timeout;
    let shaking = async {
        end.write_all(unsent).await.map_err(ConnectError::Refused)?;
        builder.handshake::<_, Bytes>(end).await.map_err(refused)
    };
    let shaken = timer.timeout_at(until, shaking).await;
    let (session, driver) = shaken.unwrap_or(Err(ConnectError::Timeout))?;
    // One of a single client is for nobody else.
    let number =
        target.is_shared().then(|| thread.kept.keep_session(key.clone(), session.clone(), &thread.timers));
    let (thread, key) = (Rc::clone(thread), key.clone());
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, backend = %key.endpoint.name, "a session of HTTP/2 ended");
        }
        if let Some(number) = number {
            thread.kept.forget_session(&key, number);
        }
    }));
    let until = timer.now() + target.connect_timeout;
    let ready = timer.timeout_at(until, session.ready()).await;
    ready.map_or(Err(ConnectError::Timeout), |ready| ready.map_err(refused))
}

/// What a session failed by.
fn refused(error: h2::Error) -> ConnectError {
    ConnectError::Refused(error.into_io().unwrap_or_else(|| std::io::ErrorKind::InvalidData.into()))
}
