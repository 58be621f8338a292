//! One direction of a relay.
//!
//! `Idle` holds nothing. Bytes are copied through the thread's buffer; what the destination does not take at
//! once is `Parked` in an allocation of exactly that size, during which nothing more is read. Once reads are
//! large the direction streams: bytes are spliced through a pipe that is borrowed while it holds any.
//! A pipe is only filled when it is empty and only drained when it is not, so that `WouldBlock` is never
//! ambiguous. When little comes at a time, copying is cheaper again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncWrite, ReadBuf};

use super::{Conduit, Direction, Fault, Meter, Scratch, Side, Throttle};
use crate::net::pipe::{Filled, Lent};

/// Steps a direction may take before it lets other connections run: 1 MiB of full reads, well below a
/// millisecond of copying.
const ROUNDS: usize = 16;
/// A read of so many bytes is large: from here on splicing costs no more than copying (`cargo bench --bench
/// relay`: the same at 32 KiB, 20 % less at 64, half at 256). A full buffer would be too much to ask: what a
/// steady stream has for a reader that keeps up is often less.
const LARGE: usize = 32 * 1024;
/// The same for a direction of limited bandwidth, a read and what follows from it: those that share a limit take
/// turns.
const ROUNDS_THROTTLED: usize = 2;
/// Large reads in a row after which a direction streams: one is what an answer of a few pages looks like.
const LARGE_READS: u8 = 2;
/// A splice of fewer bytes than this is small: copying is 5 % cheaper here, more below, and needs no pipe. The
/// gap to `LARGE` keeps a stream from changing to and fro.
const SMALL: usize = 16 * 1024;
/// Small splices in a row after which a direction no longer streams.
const SMALL_SPLICES: u8 = 2;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    direction: Direction,
    state: State<'a>,
    mode: Mode,
    opposite: Opposite,
    /// Whether it ended while the other one went on.
    first: bool,
}

#[derive(Debug)]
enum State<'a> {
    /// Waits for bytes; holds none.
    Idle,
    /// The destination is slow: these bytes are written, and what it has taken is on its way, before more are read.
    Parked { bytes: Box<[u8]>, written: usize },
    /// The same for bytes in a pipe.
    Piped(Lent<'a>),
    /// The source has ended, the destination is to be told.
    Ending,
    /// The destination has failed after its own stream had been passed on whole: the source is read to its
    /// end and forgotten, since closing a connection with unread bytes would reset it and take away what is
    /// still on the way to the source.
    Discarding(Fault),
    /// Nothing more will pass.
    Ended(Option<Fault>),
}

/// What the other direction, whose source is this one's destination, has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opposite {
    /// It goes on.
    Open,
    /// It has passed its whole stream on.
    Done,
    /// It found that this one's source has failed.
    SourceFailed,
}

/// What bytes pass through, and who is asked before and told after.
pub(super) struct Passing<'p, 'a, M> {
    pub(super) scratch: &'a Scratch,
    /// What limits the bandwidth, if anything does.
    pub(super) throttle: Option<&'p mut Throttle>,
    pub(super) meter: &'p M,
}

/// How the next bytes are moved.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// By copying, after so many large reads in a row.
    Copy { large: u8 },
    /// By splicing, after so many small ones in a row.
    Splice { small: u8 },
    /// By copying: one of the two cannot be spliced.
    CopyOnly,
}

impl<'a> Flow<'a> {
    /// A direction that first passes `prefix` on.
    pub(super) fn new(direction: Direction, prefix: Box<[u8]>) -> Self {
        let state = if prefix.is_empty() { State::Idle } else { State::Parked { bytes: prefix, written: 0 } };
        Self { direction, state, mode: Mode::Copy { large: 0 }, opposite: Opposite::Open, first: false }
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether nothing more will pass.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Why it is over, when a connection failed.
    pub(super) fn take_fault(&mut self) -> Option<Fault> {
        if let State::Ended(fault) = &mut self.state { fault.take() } else { None }
    }

    /// Whether it waits for its destination, and so does not read its source.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(self.state, State::Parked { .. } | State::Piped(_))
    }

    /// Ends it when it waits for its destination in vain: its source has failed, found here or by the other
    /// direction (`opposite`). What is on the way is thrown away, as the kernel throws away what a reset
    /// connection still had to send.
    pub(super) fn notice_failure(&mut self, source: &impl Conduit, opposite: Opposite) {
        if !self.is_stalled() {
            return;
        }
        if opposite == Opposite::SourceFailed {
            self.state = State::Ended(None);
        } else if let Some(error) = source.take_error() {
            self.state = State::Ended(Some(self.source_fault(error)));
        }
    }

    /// It ended while the other one went on.
    pub(super) fn ends_first(&mut self) {
        self.first = true;
    }

    /// Whether it ended while the other one went on.
    pub(super) fn ended_first(&self) -> bool {
        self.first
    }

    /// Whether the source has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ending | State::Discarding(_) | State::Ended(_))
    }

    /// Whether it ended because the connection of `side` failed.
    pub(super) fn failed(&self, side: Side) -> bool {
        matches!(&self.state, State::Ended(Some(fault)) if fault.side == side)
    }

    /// What this direction means to the other one, whose destination is this one's source.
    pub(super) fn as_opposite(&self) -> Opposite {
        match &self.state {
            State::Ended(None) => Opposite::Done,
            State::Ended(Some(fault)) if fault.side == self.destination() => Opposite::SourceFailed,
            _ => Opposite::Open,
        }
    }

    /// Moves bytes until there is nothing to do; says whether anything passed, be it the end. When the other direction found
    /// the source failed already, the kernel has told so and now reports a mere end: that is no end of stream
    /// to pass on.
    pub(super) fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        destination: &mut D,
        passing: &mut Passing<'_, 'a, impl Meter>,
        opposite: Opposite,
    ) -> bool
    where
        S: Conduit,
        D: Conduit,
    {
        self.opposite = opposite;
        let mut passed = false;
        for _ in 0..if passing.throttle.is_some() { ROUNDS_THROTTLED } else { ROUNDS } {
            let step = match &mut self.state {
                State::Ended(_) => return passed,
                State::Idle if matches!(self.mode, Mode::Splice { .. }) => {
                    self.poll_fill(cx, source, passing)
                }
                State::Idle => self.poll_read(cx, source, destination, passing),
                State::Piped(_) => self.poll_drain(cx, destination, passing.meter),
                State::Parked { .. } => self.poll_parked(cx, destination, passing.meter),
                State::Discarding(_) => self.poll_discard(cx, source, passing),
                // Nothing is to be passed on of a failed source; and when the other direction is over, the
                // connection is closed next, which says the end as well, as a rule.
                State::Ending
                    if opposite == Opposite::SourceFailed
                        || opposite == Opposite::Done && destination.is_ended_by_closing() =>
                {
                    self.state = State::Ended(None);
                    return passed;
                }
                State::Ending => Pin::new(&mut *destination).poll_shutdown(cx).map(|result| {
                    self.state = State::Ended(result.err().map(|error| self.destination_fault(error)));
                    false
                }),
            };
            match step {
                Poll::Ready(moved) => passed |= moved,
                Poll::Pending => return passed,
            }
        }
        // There may be more: the others first.
        cx.waker().wake_by_ref();
        passed
    }

    fn poll_read<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        destination: &mut D,
        passing: &mut Passing<'_, 'a, impl Meter>,
    ) -> Poll<bool>
    where
        S: Conduit,
        D: Conduit,
    {
        let most = ready!(passing.poll_allowance());
        passing.scratch.with(|buffer| {
            let room = buffer.len().min(most);
            let buffer = buffer.get_mut(..room).unwrap_or_default();
            let mut buf = ReadBuf::new(buffer);
            if let Err(error) = ready!(Pin::new(&mut *source).poll_read(cx, &mut buf)) {
                self.state = State::Ended(Some(self.source_fault(error)));
                return Poll::Ready(false);
            }
            let bytes = buf.filled();
            if bytes.is_empty() {
                self.state = State::Ending;
                // The limit of a half-closed relay begins here.
                return Poll::Ready(true);
            }
            passing.copied(self.direction, bytes);
            let splices = source.can_splice() && destination.can_splice();
            self.mode = if splices { self.mode.after_read(bytes.len()) } else { Mode::CopyOnly };
            // The last bytes and the end of the stream leave in one segment. A reset is no end: it would throw
            // away what waits for one.
            let more =
                bytes.len() < room && self.opposite != Opposite::SourceFailed && source.has_been_drained();
            self.write_or_park(cx, destination, bytes, more, passing.meter);
            Poll::Ready(true)
        })
    }

    /// Reads and forgets. That is not activity: the limit of a half-closed relay runs.
    fn poll_discard<S: Conduit>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        passing: &mut Passing<'_, 'a, impl Meter>,
    ) -> Poll<bool> {
        let most = ready!(passing.poll_allowance());
        let read = passing.scratch.with(|buffer| {
            let room = buffer.len().min(most);
            let mut buf = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
            Pin::new(source).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
        });
        match ready!(read) {
            Ok(n @ 1..) => passing.read(self.direction, n),
            Ok(0) | Err(_) => {
                if let State::Discarding(fault) = std::mem::replace(&mut self.state, State::Ended(None)) {
                    self.state = State::Ended(Some(Fault { delivered: true, ..fault }));
                }
            }
        }
        Poll::Ready(false)
    }

    fn write_or_park<D: Conduit>(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut D,
        mut bytes: &[u8],
        more: bool,
        meter: &impl Meter,
    ) {
        while !bytes.is_empty() {
            let written = if more {
                destination.poll_write_more(cx, bytes)
            } else {
                Pin::new(&mut *destination).poll_write(cx, bytes)
            };
            match written {
                Poll::Ready(Ok(n @ 1..)) => {
                    meter.written(self.direction, n, false);
                    bytes = bytes.get(n..).unwrap_or_default();
                }
                Poll::Ready(Ok(0)) => return self.end_at_destination(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Err(error)) => return self.end_at_destination(error),
                Poll::Pending => {
                    self.state = State::Parked { bytes: bytes.into(), written: 0 };
                    return;
                }
            }
        }
        match Pin::new(destination).poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.end_at_destination(error),
            // The destination has it, and more would not fit.
            Poll::Pending => self.state = State::Parked { bytes: Box::default(), written: 0 },
        }
    }

    fn poll_parked<D: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut D,
        meter: &impl Meter,
    ) -> Poll<bool> {
        let State::Parked { bytes, written } = &mut self.state else { return Poll::Ready(false) };
        let rest = bytes.get(*written..).unwrap_or_default();
        if rest.is_empty() {
            let flushed = ready!(Pin::new(destination).poll_flush(cx));
            self.state = State::Idle;
            if let Err(error) = flushed {
                self.end_at_destination(error);
            }
            return Poll::Ready(true);
        }
        match ready!(Pin::new(destination).poll_write(cx, rest)) {
            Ok(n @ 1..) => {
                meter.written(self.direction, n, false);
                *written += n;
                Poll::Ready(true)
            }
            Ok(0) => {
                self.end_at_destination(io::ErrorKind::WriteZero.into());
                Poll::Ready(false)
            }
            Err(error) => {
                self.end_at_destination(error);
                Poll::Ready(false)
            }
        }
    }

    fn poll_fill<S: Conduit>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        passing: &mut Passing<'_, 'a, impl Meter>,
    ) -> Poll<bool> {
        let most = ready!(passing.poll_allowance());
        let Some(mut lent) = passing.scratch.pipes.borrow() else {
            self.mode = Mode::Copy { large: 0 };
            return Poll::Ready(false);
        };
        let Some(pipe) = lent.pipe() else { return Poll::Ready(false) };
        match ready!(source.poll_fill(cx, pipe, most)) {
            Ok(Filled::End) => {
                self.state = State::Ending;
                return Poll::Ready(true);
            }
            Ok(Filled::ByReading) => self.mode = Mode::Copy { large: 0 },
            Ok(Filled::Bytes(n)) => {
                passing.read(self.direction, n);
                self.mode = self.mode.after_splice(n);
                self.state = State::Piped(lent);
                return Poll::Ready(true);
            }
            Err(error) if cannot_splice(&error) => self.mode = Mode::CopyOnly,
            Err(error) => self.state = State::Ended(Some(self.source_fault(error))),
        }
        Poll::Ready(false)
    }

    fn poll_drain<D: Conduit>(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut D,
        meter: &impl Meter,
    ) -> Poll<bool> {
        let State::Piped(lent) = &mut self.state else { return Poll::Ready(false) };
        let Some(pipe) = lent.pipe() else { return Poll::Ready(false) };
        match ready!(destination.poll_drain(cx, pipe)) {
            Ok(n) => {
                meter.written(self.direction, n, true);
                if pipe.pending() == 0 {
                    self.state = State::Idle;
                }
                Poll::Ready(true)
            }
            Err(error) => {
                self.end_at_destination(error);
                Poll::Ready(false)
            }
        }
    }

    /// The destination takes nothing more. What it sent before may still be on its way, so the other
    /// direction goes on until it finds the end itself.
    fn end_at_destination(&mut self, error: io::Error) {
        let fault = self.destination_fault(error);
        self.state = match self.opposite {
            Opposite::Done => State::Discarding(fault),
            Opposite::Open | Opposite::SourceFailed => State::Ended(Some(fault)),
        };
    }

    fn destination_fault(&self, error: io::Error) -> Fault {
        Fault { side: self.destination(), error, delivered: false }
    }

    fn source_fault(&self, error: io::Error) -> Fault {
        let side = match self.direction {
            Direction::Up => Side::Downstream,
            Direction::Down => Side::Upstream,
        };
        Fault { side, error, delivered: false }
    }

    fn destination(&self) -> Side {
        match self.direction {
            Direction::Up => Side::Upstream,
            Direction::Down => Side::Downstream,
        }
    }
}

impl<M: Meter> Passing<'_, '_, M> {
    /// How much may be read now. Pending until the relay's timer has waited for what the throttle asks.
    fn poll_allowance(&mut self) -> Poll<usize> {
        match &mut self.throttle {
            None => Poll::Ready(usize::MAX),
            Some(throttle) => throttle.allowance(Instant::now()).map_or(Poll::Pending, Poll::Ready),
        }
    }

    fn copied(&mut self, direction: Direction, bytes: &[u8]) {
        self.meter.copied(direction, bytes);
        self.charge(direction, bytes.len());
    }

    fn read(&mut self, direction: Direction, n: usize) {
        self.meter.read(direction, n);
        self.charge(direction, n);
    }

    fn charge(&mut self, direction: Direction, n: usize) {
        if let Some(throttle) = &mut self.throttle {
            throttle.charge(direction, n, Instant::now());
        }
    }
}

impl Mode {
    fn after_read(self, n: usize) -> Self {
        match self {
            Self::CopyOnly => self,
            Self::Copy { large } if n >= LARGE && large + 1 >= LARGE_READS => Self::Splice { small: 0 },
            Self::Copy { large } if n >= LARGE => Self::Copy { large: large + 1 },
            Self::Copy { .. } | Self::Splice { .. } => Self::Copy { large: 0 },
        }
    }

    fn after_splice(self, n: usize) -> Self {
        match self {
            Self::Splice { small } if n < SMALL && small + 1 >= SMALL_SPLICES => Self::Copy { large: 0 },
            Self::Splice { small } if n < SMALL => Self::Splice { small: small + 1 },
            Self::Splice { .. } | Self::Copy { .. } => Self::Splice { small: 0 },
            Self::CopyOnly => self,
        }
    }
}

/// splice(2): EINVAL when a descriptor does not support it.
fn cannot_splice(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}
