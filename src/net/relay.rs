//! The relay: bytes pass in both directions until each has ended.
//!
//! Each direction is a small state machine of its own. It owns no buffer while it waits: bytes go through
//! the thread's scratch buffer, and only what the other side does not take at once is parked in an
//! allocation of exactly that size, during which nothing more is read. A direction ends with the end of its
//! stream, which is passed on as such, while the other goes on. A reset ends both.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// Size of a thread's scratch buffer in bytes: one read takes what a socket's default receive buffer holds.
const SCRATCH: usize = 64 * 1024;
/// Reads a direction may do before it lets other connections run: 1 MiB of full reads, well below a
/// millisecond of copying.
const ROUNDS: usize = 16;

/// The buffer that all relays of a thread read into.
#[derive(Debug)]
pub struct Scratch(RefCell<Box<[u8]>>);

/// One end of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The backend.
    Upstream,
}

/// One of the two directions of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// How long a relay may go without a byte in either direction.
#[derive(Clone, Copy, Debug)]
pub struct IdleLimits {
    /// While both directions are open.
    pub open: Duration,
    /// Once one has ended.
    pub half_closed: Duration,
}

/// Who is told of bytes as they pass.
pub trait Meter {
    /// `n` bytes were read from the source of `direction`.
    fn read(&self, direction: Direction, n: usize);
    /// `n` bytes were written to the destination of `direction`.
    fn written(&self, direction: Direction, n: usize);
}

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both streams ended.
    Done,
    /// A connection failed: reset by its peer, or given up by the kernel.
    Fault(Fault),
    /// No byte passed for the idle limit.
    Idle {
        /// The direction that had ended before, if one had.
        half_closed: Option<Direction>,
    },
}

/// A failed connection.
#[derive(Debug)]
pub struct Fault {
    /// Whose connection failed.
    pub side: Side,
    /// What the kernel said.
    pub error: io::Error,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    direction: Direction,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for bytes; holds none.
    Idle,
    /// The destination is slow: these bytes are written before more are read.
    Parked { bytes: Box<[u8]>, written: usize },
    /// The source has ended, the destination is to be told.
    Ending,
    /// Nothing more will pass.
    Ended(Option<Fault>),
}

impl Default for Scratch {
    fn default() -> Self {
        Self(RefCell::new(vec![0; SCRATCH].into()))
    }
}

impl Scratch {
    /// Runs `f` on the buffer. Not to be called from within `f`.
    pub fn with<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}

/// Relays between `client` and `upstream` until both directions have ended, one connection has failed, or
/// nothing passes any more. `prefix` are bytes that the client sent already; they go first.
///
/// Both connections are left open: how they are closed is the caller's choice and follows from the end.
pub async fn relay<C, U>(
    client: &mut C,
    upstream: &mut U,
    prefix: Box<[u8]>,
    scratch: &Scratch,
    limits: IdleLimits,
    meter: &impl Meter,
) -> RelayEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let first = if prefix.is_empty() { State::Idle } else { State::Parked { bytes: prefix, written: 0 } };
    let mut up = Flow { direction: Direction::Up, state: first };
    let mut down = Flow { direction: Direction::Down, state: State::Idle };
    let mut active = Instant::now();
    let mut timer = pin!(sleep_until(active + limits.open));
    poll_fn(move |cx| {
        let upward = up.poll(cx, client, upstream, scratch, meter, down.failed(Side::Downstream));
        let downward = down.poll(cx, upstream, client, scratch, meter, up.failed(Side::Upstream));
        if let Some(end) = finished(&mut up, &mut down) {
            return Poll::Ready(end);
        }
        let half_closed = [&up, &down].iter().find(|flow| flow.has_ended()).map(|flow| flow.direction);
        let limit = if half_closed.is_some() { limits.half_closed } else { limits.open };
        if upward || downward {
            active = Instant::now();
        }
        let deadline = active + limit;
        // The timer is only ever late, and moved when it fires; earlier when a direction has ended.
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= deadline {
                return Poll::Ready(RelayEnd::Idle { half_closed });
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}

/// The end of the relay, if it has one: at once when a source failed, else when both directions are over.
fn finished(up: &mut Flow, down: &mut Flow) -> Option<RelayEnd> {
    for (flow, source) in [(&mut *up, Side::Downstream), (&mut *down, Side::Upstream)] {
        if flow.failed(source)
            && let State::Ended(fault) = &mut flow.state
        {
            return fault.take().map(RelayEnd::Fault);
        }
    }
    match (&mut up.state, &mut down.state) {
        (State::Ended(one), State::Ended(other)) => {
            Some(one.take().or_else(|| other.take()).map_or(RelayEnd::Done, RelayEnd::Fault))
        }
        _ => None,
    }
}

impl Flow {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ending | State::Ended(_))
    }

    /// Whether it ended because the connection of `side` failed.
    fn failed(&self, side: Side) -> bool {
        matches!(&self.state, State::Ended(Some(fault)) if fault.side == side)
    }

    /// Moves bytes until there is nothing to do; says whether anything passed. When the other direction found
    /// the source failed already, the kernel has told so and now reports a mere end: that is no end of stream
    /// to pass on.
    fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        destination: &mut D,
        scratch: &Scratch,
        meter: &impl Meter,
        source_failed: bool,
    ) -> bool
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        let mut passed = false;
        for _ in 0..ROUNDS {
            let step = match &mut self.state {
                State::Ended(_) => return passed,
                State::Idle => self.poll_read(cx, source, destination, scratch, meter),
                State::Parked { .. } => self.poll_parked(cx, destination, meter),
                State::Ending if source_failed => {
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
        scratch: &Scratch,
        meter: &impl Meter,
    ) -> Poll<bool>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        scratch.with(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            if let Err(error) = ready!(Pin::new(source).poll_read(cx, &mut buf)) {
                self.state = State::Ended(Some(Fault { side: self.source(), error }));
                return Poll::Ready(false);
            }
            let bytes = buf.filled();
            if bytes.is_empty() {
                self.state = State::Ending;
                return Poll::Ready(false);
            }
            meter.read(self.direction, bytes.len());
            self.write_or_park(cx, destination, bytes, meter);
            Poll::Ready(true)
        })
    }

    fn write_or_park<D: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut D,
        mut bytes: &[u8],
        meter: &impl Meter,
    ) {
        while !bytes.is_empty() {
            match Pin::new(&mut *destination).poll_write(cx, bytes) {
                Poll::Ready(Ok(n @ 1..)) => {
                    meter.written(self.direction, n);
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
    }

    fn poll_parked<D: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut D,
        meter: &impl Meter,
    ) -> Poll<bool> {
        let State::Parked { bytes, written } = &mut self.state else { return Poll::Ready(false) };
        let rest = bytes.get(*written..).unwrap_or_default();
        match ready!(Pin::new(destination).poll_write(cx, rest)) {
            Ok(n @ 1..) => {
                meter.written(self.direction, n);
                *written += n;
                if *written >= bytes.len() {
                    self.state = State::Idle;
                }
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

    /// The destination takes nothing more. What it sent before may still be on its way, so the other
    /// direction goes on until it finds the end itself.
    fn end_at_destination(&mut self, error: io::Error) {
        self.state = State::Ended(Some(self.destination_fault(error)));
    }

    fn destination_fault(&self, error: io::Error) -> Fault {
        let side = match self.direction {
            Direction::Up => Side::Upstream,
            Direction::Down => Side::Downstream,
        };
        Fault { side, error }
    }

    fn source(&self) -> Side {
        match self.direction {
            Direction::Up => Side::Downstream,
            Direction::Down => Side::Upstream,
        }
    }
}

#[cfg(test)]
mod tests;
