//! Where the body of a message goes.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::h1::chunked;
use super::wire::{HIGH, Wire};

/// A body that goes out.
#[derive(Debug)]
pub(super) enum Sink {
    /// Nothing is taken.
    Closed,
    /// By HTTP/1.1.
    H1(Rc<Wire>, Coding),
    /// By HTTP/2; with what waits for the peer to take it.
    H2(Box<h2::SendStream<Bytes>>, Bytes),
}

/// How the end of a body of HTTP/1.1 is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// By its length, or that of the stream.
    Plain,
    /// By chunks.
    Chunked,
}

/// Why a body cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SinkError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The stream or connection of HTTP/2 failed.
    #[error("the stream failed")]
    H2(#[from] h2::Error),
    /// The peer wants no more of it.
    #[error("the peer has given up the stream")]
    Closed,
}

impl Sink {
    /// Ready when more is taken. Drives what was given.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        match self {
            Self::Closed => Poll::Ready(Ok(())),
            Self::H1(wire, _) => {
                if wire.poll_flush(cx)?.is_pending() && wire.queued() >= HIGH {
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            }
            Self::H2(stream, waiting) => poll_send(stream, waiting, cx),
        }
    }

    /// Whether it takes more as it is.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::H1(wire, _) => wire.queued() < HIGH,
            Self::H2(_, waiting) => waiting.is_empty(),
        }
    }

    /// Whether the end may be told.
    pub(super) fn may_finish(&self) -> bool {
        match self {
            Self::Closed | Self::H1(..) => true,
            Self::H2(_, waiting) => waiting.is_empty(),
        }
    }

    /// Takes these, once it is ready.
    pub(super) fn send(&mut self, data: Bytes) {
        match self {
            Self::Closed => {}
            Self::H1(wire, Coding::Plain) => wire.queue(&data),
            Self::H1(wire, Coding::Chunked) => {
                // A chunk of nothing would be the last.
                let Some(len) = NonZeroU64::new(data.len() as u64) else { return };
                wire.with_out(|out| {
                    out.extend_from_slice(chunked::head(len).as_ref());
                    out.extend_from_slice(&data);
                    out.extend_from_slice(b"\r\n");
                });
            }
            Self::H2(_, waiting) => *waiting = data,
        }
    }

    /// Tells the end, with fields behind the body where there are some. Once it is ready.
    ///
    /// # Errors
    /// When the stream is gone.
    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), SinkError> {
        match self {
            Self::Closed | Self::H1(_, Coding::Plain) => {}
            Self::H1(wire, Coding::Chunked) => {
                wire.queue(chunked::last(trailers.as_ref().unwrap_or(&HeaderMap::new())).as_ref());
            }
            Self::H2(stream, _) => {
                match trailers.map(chunked::trailing).filter(|fields| !fields.is_empty()) {
                    Some(trailers) => stream.send_trailers(trailers)?,
                    None => stream.send_data(Bytes::new(), true)?,
                }
            }
        }
        Ok(())
    }

    /// Ready when all was written.
    pub(super) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        match self {
            Self::Closed => Poll::Ready(Ok(())),
            Self::H1(wire, _) => Poll::Ready(Ok(ready!(wire.poll_flush(cx))?)),
            Self::H2(stream, waiting) => poll_send(stream, waiting, cx),
        }
    }

    /// How many bytes wait for the peer of a stream to take them.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Closed | Self::H1(..) => 0,
            Self::H2(_, waiting) => waiting.len(),
        }
    }

    /// How many bytes were given and not passed on.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Closed => 0,
            Self::H1(wire, _) => wire.queued(),
            Self::H2(_, waiting) => waiting.len(),
        }
    }

    /// Whether everything given has been passed on.
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting() == 0
    }

    /// It is broken off, so that nobody takes it for whole.
    pub(super) fn break_off(&mut self) {
        match std::mem::replace(self, Self::Closed) {
            Self::Closed => {}
            Self::H1(wire, _) => wire.reset_on_close(),
            Self::H2(mut stream, _) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
}

/// Gives `waiting` to the stream, as far as its peer lets it. Ready when that is all.
fn poll_send(
    stream: &mut h2::SendStream<Bytes>,
    waiting: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<Result<(), SinkError>> {
    while !waiting.is_empty() {
        stream.reserve_capacity(waiting.len());
        let room = match stream.capacity() {
            0 => match ready!(stream.poll_capacity(cx)) {
                Some(room) => room?,
                None => return Poll::Ready(Err(SinkError::Closed)),
            },
            room => room,
        };
        if room > 0 {
            let part = waiting.split_to(room.min(waiting.len()));
            stream.send_data(part, false)?;
        }
    }
    Poll::Ready(Ok(()))
}
