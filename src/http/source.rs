//! Where the body of a message comes from.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::files::{Body, FileStream};
use super::h1::chunked::{ChunkError, Decoded, Decoder, Limits};
use super::h1::framing::Framing;
use super::spool::{Room, Spool};
use super::wire::Wire;

/// What is taken of a body at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// A body that comes in.
#[derive(Debug)]
pub(super) enum Source {
    /// There is none, or no more of it.
    Done,
    /// By HTTP/1.1.
    H1(Rc<Wire>, Rest),
    /// By HTTP/2.
    H2(Box<h2::RecvStream>),
    /// It is there already.
    Ready(Bytes),
    /// From the disk.
    File(Box<FileStream>),
    /// It has failed: nobody knows what of the stream belongs to it.
    Broken,
    /// Taken before, with what is still to come.
    Spooled(Box<Spooled>),
}

/// A body of which a part, or all, was taken before anybody asked for it.
#[derive(Debug)]
pub(super) struct Spooled {
    spool: Spool,
    left: u64,
    trailers: Option<HeaderMap>,
    rest: Source,
}

/// What is to come of a body of HTTP/1.1.
#[derive(Debug)]
pub(super) enum Rest {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Box<Decoder>),
    /// All until the end of the stream.
    UntilClose,
}

/// A piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of it.
    Data(Bytes),
    /// Fields behind it.
    Trailers(HeaderMap),
    /// It is whole.
    End,
}

/// Why a body did not come in whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// The stream ended within it.
    #[error("the stream ended within a body")]
    Short,
    /// Its chunks are none.
    #[error("a malformed body")]
    Chunk(#[from] ChunkError),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The stream or connection of HTTP/2 failed.
    #[error("the stream failed")]
    H2(#[from] h2::Error),
    /// It has failed before.
    #[error("the body has failed before")]
    Broken,
}

impl Source {
    /// The body of a message that was read of `wire`.
    pub(super) fn of(wire: &Rc<Wire>, framing: Framing) -> Self {
        let rest = match framing {
            Framing::None | Framing::Length(0) => return Self::Done,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Box::new(Decoder::new(Limits::DEFAULT))),
            Framing::UntilClose => Rest::UntilClose,
        };
        Self::H1(Rc::clone(wire), rest)
    }

    /// Whether nothing is to come any more.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Whether it has failed; what follows in its stream is no message.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken)
    }

    /// How many bytes are to come, where that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::H1(_, Rest::Length(length)) => Some(*length),
            Self::H1(_, Rest::Chunked(_) | Rest::UntilClose) | Self::H2(_) | Self::Broken => None,
            Self::Ready(bytes) => Some(bytes.len() as u64),
            Self::File(stream) => Some(stream.len()),
            Self::Spooled(spooled) => {
                let whole = spooled.rest.is_done() && spooled.trailers.is_none();
                whole.then_some(spooled.left)
            }
        }
    }

    /// The next piece; [`Piece::End`] once, and nothing behind a failure.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, SourceError>> {
        let piece = ready!(self.poll_piece(cx));
        match piece {
            Ok(Piece::End | Piece::Trailers(_)) => *self = Self::Done,
            Ok(Piece::Data(_)) => {}
            Err(_) => *self = Self::Broken,
        }
        Poll::Ready(piece)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, SourceError>> {
        Poll::Ready(Ok(match self {
            Self::Done => Piece::End,
            Self::H1(wire, rest) => ready!(rest.poll(wire, cx))?,
            Self::H2(stream) => ready!(poll_h2(stream, cx))?,
            Self::Ready(bytes) if bytes.is_empty() => Piece::End,
            Self::Ready(bytes) => Piece::Data(std::mem::take(bytes)),
            Self::File(stream) => match ready!(stream.poll_chunk(cx)) {
                Some(data) => Piece::Data(data?),
                None => Piece::End,
            },
            Self::Spooled(spooled) => ready!(spooled.poll(cx))?,
            Self::Broken => return Poll::Ready(Err(SourceError::Broken)),
        }))
    }
}

impl Spooled {
    /// Takes `source` until it is whole, there is no room, or it has given more than `limit` bytes; what it was then.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        limit: Option<u64>,
    ) -> Poll<Result<(), SourceError>> {
        while !self.rest.is_done() && limit.is_none_or(|limit| self.left <= limit) {
            self.spool.poll_move(cx);
            if !self.spool.has_room(0) {
                // Unless the disk is at work to make some.
                return if self.spool.is_moving() { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            match ready!(self.rest.poll(cx))? {
                Piece::Data(data) => {
                    self.left += data.len() as u64;
                    self.spool.push(data);
                }
                Piece::Trailers(trailers) => self.trailers = Some(trailers),
                Piece::End => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What is to be taken of `source` before anybody asks for it.
    pub(super) fn new(source: Source, room: Room) -> Self {
        Self { spool: Spool::new(room), left: 0, trailers: None, rest: source }
    }

    /// How much was taken.
    pub(super) fn taken(&self) -> u64 {
        self.left
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, SourceError>> {
        if let Some(data) = ready!(self.spool.poll_pop(cx))? {
            self.left -= data.len() as u64;
            return Poll::Ready(Ok(Piece::Data(data)));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Ok(Piece::Trailers(trailers)));
        }
        self.rest.poll(cx)
    }
}

impl Rest {
    fn poll(&mut self, wire: &Wire, cx: &mut Context<'_>) -> Poll<Result<Piece, SourceError>> {
        loop {
            match self {
                Self::Length(0) => return Poll::Ready(Ok(Piece::End)),
                Self::Length(left) if wire.has_read() => {
                    let most = usize::try_from(*left).unwrap_or(PIECE).min(PIECE);
                    let data = wire.take_read(most);
                    *left -= data.len() as u64;
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                Self::Chunked(decoder) => match wire.with_read(|read| decoder.decode(read))? {
                    Decoded::Data(data) => return Poll::Ready(Ok(Piece::Data(data))),
                    Decoded::Trailers(trailers) if trailers.is_empty() => {
                        return Poll::Ready(Ok(Piece::End));
                    }
                    Decoded::Trailers(trailers) => return Poll::Ready(Ok(Piece::Trailers(trailers))),
                    Decoded::NeedMore => {}
                },
                Self::UntilClose if wire.has_read() => {
                    return Poll::Ready(Ok(Piece::Data(wire.take_read(PIECE))));
                }
                Self::Length(_) | Self::UntilClose => {}
            }
            if ready!(wire.poll_fill(cx))? == 0 {
                return Poll::Ready(match self {
                    Self::UntilClose => Ok(Piece::End),
                    Self::Length(_) | Self::Chunked(_) => Err(SourceError::Short),
                });
            }
        }
    }
}

fn poll_h2(stream: &mut h2::RecvStream, cx: &mut Context<'_>) -> Poll<Result<Piece, SourceError>> {
    match ready!(stream.poll_data(cx)) {
        Some(data) => {
            let data = data?;
            // What was taken may come anew; fails only when it was not counted, which it was.
            let _ = stream.flow_control().release_capacity(data.len());
            Poll::Ready(Ok(Piece::Data(data)))
        }
        None => Poll::Ready(Ok(match ready!(stream.poll_trailers(cx))? {
            Some(trailers) => Piece::Trailers(trailers),
            None => Piece::End,
        })),
    }
}

impl From<Body> for Source {
    fn from(body: Body) -> Self {
        match body {
            Body::None => Self::Done,
            Body::Bytes(bytes) => Self::Ready(bytes),
            Body::Stream(stream) => Self::File(Box::new(stream)),
        }
    }
}
