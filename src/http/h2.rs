//! HTTP/2 with clients (RFC 9113): each request a task.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{cell::Cell, io};

use bytes::Bytes;
use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::ended::Ended;
use super::failure::Failure;
use super::handle::{Incoming, handle};
use super::reply::Reply;
use super::source::Source;
use super::target::Spoken;
use super::wire::{Count, HIGH};
use crate::config::HttpLimits;
use crate::net::{Direction, Moment};
use crate::tls::End;

/// What a client may send of a stream, and of all together, before it was taken, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that were reset before they were looked at, and that were reset for what they did: more end the connection.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;
/// A stream that its client gives up while it is answered costs this, which it has to wait for once it owes so much: a thousand
/// at once, and 33 a second. Each may have cost a backend the whole of an answer.
const GIVEN_UP: Duration = Duration::from_millis(30);
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection whose first bytes were read already, and whose bytes are counted.
struct Counted {
    said: Bytes,
    end: End,
    count: Count,
}

/// The streams of a connection.
struct Streams {
    open: Cell<usize>,
    /// When one ended last.
    ended: Cell<Moment>,
    /// Until when those are paid for that the client gave up.
    paid: Cell<Moment>,
}

/// A stream that is open, until dropped.
struct Open(Rc<Streams>, Rc<Connection>);

/// Serves requests until the connection ends.
pub(super) async fn serve(end: End, said: Bytes, cx: Rc<Connection>) -> Ended {
    let mut timer = cx.thread.timers.timer();
    let limits = (cx.site)().map_or(HttpLimits::DEFAULT, |site| site.config.limits.clone());
    let io = Counted { said, end, count: Rc::clone(&cx.count) };
    let until = timer.now() + limits.header_timeout;
    let shaking = Box::pin(builder(&limits).handshake::<_, Bytes>(io));
    let mut connection = match timer.timeout_at(until, shaking).await {
        Some(Ok(connection)) => connection,
        Some(Err(_)) => return Ended::Refused("malformed"),
        None => return Ended::Refused("header_timeout"),
    };
    let streams = Rc::new(Streams::new(timer.now()));
    let mut ending = None;
    let mut drained = pin!(cx.draining.cancelled());
    loop {
        let next = poll_fn(|task| {
            if ending.is_none() && drained.as_mut().poll(task).is_ready() {
                ending = Some(Ended::Drained);
                connection.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = connection.poll_accept(task) {
                return Poll::Ready(Some(accepted));
            }
            match streams.open.get() {
                0 => timer.poll(task, streams.ended.get() + limits.keep_alive).map(|()| None),
                _ => Poll::Pending,
            }
        });
        match next.await {
            Some(Some(Ok((request, send)))) => {
                if streams.paid.get() > timer.now() + PATIENCE {
                    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                } else {
                    begin(request, send, &streams, &cx);
                }
            }
            Some(Some(Err(error))) => {
                return if error.is_io() { Ended::Gone } else { Ended::Refused("malformed") };
            }
            Some(None) => return ending.unwrap_or(Ended::Done),
            None if ending.is_some() => return Ended::Idle,
            None => {
                ending = Some(Ended::Idle);
                connection.graceful_shutdown();
                streams.ended.set(timer.now());
            }
        }
    }
}

fn builder(limits: &HttpLimits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_size).unwrap_or(u32::MAX))
        .max_send_buffer_size(HIGH)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(LOCAL_RESETS));
    builder
}

/// Answers a request by a task of its own.
fn begin(
    request: http::Request<h2::RecvStream>,
    send: h2::server::SendResponse<Bytes>,
    streams: &Rc<Streams>,
    cx: &Rc<Connection>,
) {
    streams.open.set(streams.open.get() + 1);
    let open = Open(Rc::clone(streams), Rc::clone(cx));
    drop(tokio::task::spawn_local(async move {
        let answered = Box::pin(answer(request, send, &open.1)).await;
        if answered == Err(Failure::GONE) {
            open.give_up();
        }
    }));
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    send: h2::server::SendResponse<Bytes>,
    cx: &Connection,
) -> Result<(), Failure> {
    let mut timer = cx.thread.timers.timer();
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(ToString::to_string);
    let scheme = parts.uri.scheme_str().map(ToOwned::to_owned);
    let uri = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let mut source = if body.is_end_stream() { Source::Done } else { Source::H2(Box::new(body)) };
    let had_length = parts.headers.contains_key(http::header::CONTENT_LENGTH);
    let incoming =
        Incoming { method: parts.method, version: Version::HTTP_2, uri, headers: parts.headers, had_length };
    let spoken = Spoken::Http2 { authority: authority.as_deref(), scheme: scheme.as_deref() };
    let mut reply = Reply::H2(Box::new(send));
    let result = handle((&incoming, &mut source), spoken, &mut reply, cx, &mut timer).await;
    if result.is_err()
        && let Reply::H2(mut send) = reply
    {
        send.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    result
}

impl Streams {
    fn new(now: Moment) -> Self {
        Self { open: Cell::new(0), ended: Cell::new(now), paid: Cell::new(now) }
    }
}

impl Open {
    /// Its client wants no answer any more.
    fn give_up(&self) {
        let paid = self.0.paid.get().max(self.1.thread.timers.now());
        self.0.paid.set(paid + GIVEN_UP);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.ended.set(self.1.thread.timers.now());
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said.is_empty() {
            let n = this.said.len().min(buf.remaining());
            buf.put_slice(&this.said.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.end).poll_read(cx, buf);
        (this.count)(Direction::Up, buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.end).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = written {
            (this.count)(Direction::Down, n);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_shutdown(cx)
    }
}
