//! HTTP/2 with clients (RFC 9113): each request a task.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::{cell::Cell, io};

use bytes::Bytes;
use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::ended::Ended;
use super::handle::{Incoming, handle};
use super::reply::Reply;
use super::source::Source;
use super::target::Spoken;
use super::wire::{Count, HIGH};
use crate::config::HttpLimits;
use crate::net::Direction;
use crate::tls::End;

/// What a client may send of a stream, and of all together, before it was taken, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The largest list of fields, each with 32 bytes beside its own (RFC 9113 §6.5.2).
const HEADER_LIST: u32 = 16 * 1024;
/// Streams that were reset before they were looked at, and that were reset for what they did: more end the connection.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;

/// A connection whose first bytes were read already, and whose bytes are counted.
struct Counted {
    said: Bytes,
    end: End,
    count: Count,
}

/// Streams of a connection that are open, until dropped.
struct Open(Rc<Cell<usize>>);

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
    let open = Rc::new(Cell::new(0));
    let mut draining = false;
    let mut idle_since = timer.now();
    let mut drained = pin!(cx.draining.cancelled());
    loop {
        let idle = idle_since + limits.keep_alive;
        let next = poll_fn(|task| {
            if !draining && drained.as_mut().poll(task).is_ready() {
                draining = true;
                connection.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = connection.poll_accept(task) {
                return Poll::Ready(Some(accepted));
            }
            match open.get() {
                0 => timer.poll(task, idle).map(|()| None),
                _ => Poll::Pending,
            }
        });
        match next.await {
            Some(Some(Ok((request, send)))) => begin(request, send, &open, &cx),
            Some(Some(Err(error))) => {
                return if error.is_io() { Ended::Gone } else { Ended::Refused("malformed") };
            }
            Some(None) => return if draining { Ended::Drained } else { Ended::Done },
            None if draining => return Ended::Idle,
            None => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
        idle_since = timer.now();
    }
}

fn builder(limits: &HttpLimits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(HIGH)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(LOCAL_RESETS));
    builder
}

/// Answers a request by a task of its own.
fn begin(
    request: http::Request<h2::RecvStream>,
    send: h2::server::SendResponse<Bytes>,
    open: &Rc<Cell<usize>>,
    cx: &Rc<Connection>,
) {
    open.set(open.get() + 1);
    let (cx, open) = (Rc::clone(cx), Open(Rc::clone(open)));
    drop(tokio::task::spawn_local(async move {
        Box::pin(answer(request, send, &cx)).await;
        drop(open);
    }));
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    send: h2::server::SendResponse<Bytes>,
    cx: &Connection,
) {
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
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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
