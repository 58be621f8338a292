//! A connection that HTTP/1.1 is spoken over: what was read and not used, and what waits to be written.
//!
//! While nothing passes it holds no buffer: it is read into one that all connections of a thread share, and what is not used at
//! once is kept in allocations of its size.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{Direction, Scratch, reset_on_close};
use crate::tls::End;

/// What may wait to be written before more is asked for, in bytes: a few socket buffers' worth.
pub(super) const HIGH: usize = 64 * 1024;

/// Counts bytes that pass.
pub type Count = Rc<dyn Fn(Direction, usize)>;

/// A connection of HTTP/1.1. Both of its halves are used by one task.
pub(super) struct Wire {
    inner: RefCell<Inner>,
    scratch: Rc<Scratch>,
    count: Option<Count>,
}

struct Inner {
    end: End,
    read: BytesMut,
    /// The peer has ended its stream.
    ended: bool,
    out: BytesMut,
    /// Something was written that may wait in TLS.
    unflushed: bool,
}

impl Wire {
    /// A connection of which `said` was read already.
    pub(super) fn new(end: End, said: &[u8], scratch: &Rc<Scratch>, count: Option<Count>) -> Self {
        let inner =
            Inner { end, read: BytesMut::from(said), ended: false, out: BytesMut::new(), unflushed: false };
        Self { inner: RefCell::new(inner), scratch: Rc::clone(scratch), count }
    }

    /// Reads what there is; 0 when the peer has ended its stream.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.ended {
            return Poll::Ready(Ok(0));
        }
        let n = self.scratch.with(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut inner.end).poll_read(cx, &mut buffer))?;
            inner.read.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        });
        let n = ready!(n)?;
        inner.ended = n == 0;
        if let Some(count) = &self.count {
            count(Direction::Up, n);
        }
        Poll::Ready(Ok(n))
    }

    /// Runs `f` on what was read and not used.
    pub(super) fn with_read<R>(&self, f: impl FnOnce(&mut BytesMut) -> R) -> R {
        f(&mut self.inner.borrow_mut().read)
    }

    /// Whether something was read that is not used yet.
    pub(super) fn has_read(&self) -> bool {
        !self.inner.borrow().read.is_empty()
    }

    /// Takes up to so many bytes of what was read.
    pub(super) fn take_read(&self, most: usize) -> Bytes {
        let read = &mut self.inner.borrow_mut().read;
        let n = most.min(read.len());
        read.split_to(n).freeze()
    }

    /// Whether the peer has ended its stream.
    pub(super) fn has_ended(&self) -> bool {
        self.inner.borrow().ended
    }

    /// Lets go of memory that nothing is in.
    pub(super) fn rest(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.read.is_empty() {
            inner.read = BytesMut::new();
        }
        if inner.out.is_empty() {
            inner.out = BytesMut::new();
        }
    }

    /// Puts these behind what waits to be written.
    pub(super) fn queue(&self, bytes: &[u8]) {
        self.inner.borrow_mut().out.extend_from_slice(bytes);
    }

    /// Runs `f` on what waits to be written.
    pub(super) fn with_out<R>(&self, f: impl FnOnce(&mut BytesMut) -> R) -> R {
        f(&mut self.inner.borrow_mut().out)
    }

    /// How much waits to be written.
    pub(super) fn queued(&self) -> usize {
        self.inner.borrow().out.len()
    }

    /// Writes what waits, all of it.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        while !inner.out.is_empty() {
            let n = ready!(Pin::new(&mut inner.end).poll_write(cx, &inner.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            inner.unflushed = true;
            inner.out.advance(n);
            if let Some(count) = &self.count {
                count(Direction::Down, n);
            }
        }
        if inner.unflushed {
            ready!(Pin::new(&mut inner.end).poll_flush(cx))?;
            inner.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what waits, and says that no more comes.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.inner.borrow_mut().end).poll_shutdown(cx)
    }

    /// Ready when there is something to read, an end or a failure; for who does not read.
    pub(super) fn poll_heard(&self, cx: &Context<'_>) -> Poll<()> {
        self.inner.borrow().end.socket().poll_heard(cx)
    }

    /// Ready when the peer can take nothing any more.
    pub(super) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.inner.borrow().end.socket().poll_gone(cx, false)
    }

    /// When it is closed its peer is told that it broke.
    pub(super) fn reset_on_close(&self) {
        reset_on_close(self.inner.borrow().end.socket());
    }

    /// Runs `f` on the connection, past what was read of it or waits to be written.
    pub(super) fn with_end<R>(&self, f: impl FnOnce(&mut End) -> R) -> R {
        f(&mut self.inner.borrow_mut().end)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}
