//! What comes of a connection that has switched to another protocol: both streams, passed on as they are.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::failure::Failure;
use super::h1::message::write_response;
use super::reply::Reply;
use super::wire::Wire;
use crate::net::{Conduit, Direction, Filled, IdleLimits, Meter, Pipe, Relay, RelayEnd, Timer};

/// A connection of which nothing was read beyond what was used.
struct Tunnel(Rc<Wire>);

/// Counts what passes.
struct Passed<'a> {
    cx: &'a Connection,
    up: Cell<u64>,
    down: Cell<u64>,
}

/// Passes both streams on until they end. Gives how many bytes went up and down.
pub(super) async fn run(
    backend: Rc<Wire>,
    headers: HeaderMap,
    reply: &mut Reply,
    limits: IdleLimits,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(u64, u64), Failure> {
    // Nobody switches a stream of HTTP/2 in this way.
    let Reply::H1(reply) = reply else { return Err(Failure::MALFORMED) };
    reply.keep_alive = false;
    let client = &reply.wire;
    client.with_out(|out| {
        write_response(out, StatusCode::SWITCHING_PROTOCOLS, &headers, None, Some("upgrade"));
    });
    // What the backend says already goes first.
    let early = backend.take_read(usize::MAX);
    client.queue(&early);
    let sent = poll_fn(|task| client.poll_flush(task));
    let until = timer.now() + limits.open;
    match timer.timeout_at(until, sent).await {
        Some(Ok(())) => {}
        Some(Err(_)) => return Err(Failure::GONE),
        None => return Err(Failure::WRITE_TIMEOUT),
    }
    let said = client.take_read(usize::MAX);
    let passed = Passed { cx, up: Cell::new(said.len() as u64), down: Cell::new(early.len() as u64) };
    let mut relay = Relay::new(said.as_ref().into(), &cx.thread.scratch, limits, timer.now());
    let (mut down, mut up) = (Tunnel(Rc::clone(client)), Tunnel(Rc::clone(&backend)));
    let end = poll_fn(|task| relay.poll(task, &mut down, &mut up, timer, &passed)).await;
    match end {
        RelayEnd::Done => {}
        RelayEnd::Fault(_) | RelayEnd::Idle { .. } => {
            client.reset_on_close();
            backend.reset_on_close();
        }
    }
    Ok((passed.up.get(), passed.down.get()))
}

impl Meter for Passed<'_> {
    fn read(&self, direction: Direction, n: usize) {
        match direction {
            Direction::Up => {
                self.up.set(self.up.get() + n as u64);
                (self.cx.count)(Direction::Up, n);
            }
            Direction::Down => self.down.set(self.down.get() + n as u64),
        }
    }

    fn written(&self, direction: Direction, n: usize, _: bool) {
        if direction == Direction::Down {
            (self.cx.count)(Direction::Down, n);
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.with_end(|end| Pin::new(end).poll_read(cx, buf))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.with_end(|end| Pin::new(end).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with_end(|end| Pin::new(end).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with_end(|end| Pin::new(end).poll_shutdown(cx))
    }
}

impl Conduit for Tunnel {
    fn can_splice(&self) -> bool {
        self.0.with_end(|end| end.can_splice())
    }

    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Filled>> {
        self.0.with_end(|end| end.poll_fill(cx, pipe, most))
    }

    fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.0.with_end(|end| end.poll_drain(cx, pipe))
    }

    fn take_error(&self) -> Option<io::Error> {
        self.0.with_end(|end| end.take_error())
    }

    fn has_been_drained(&self) -> bool {
        self.0.with_end(|end| end.has_been_drained())
    }

    fn is_ended_by_closing(&self) -> bool {
        self.0.with_end(|end| end.is_ended_by_closing())
    }

    fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.with_end(|end| end.poll_write_more(cx, bytes))
    }

    fn keep_alive(&self) {
        self.0.with_end(|end| end.keep_alive());
    }
}
