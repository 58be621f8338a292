//! The relay: bytes pass in both directions until each has ended.
//!
//! Each direction is a small state machine of its own, a [`Flow`]. It owns no buffer while it waits. A
//! direction ends with the end of its stream, which is passed on as such, while the other goes on. A reset
//! ends both.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::pipe::{Filled, Pipe, PipePool};
use super::timer::{Moment, Timer};

mod flow;
mod throttle;

use flow::{Flow, Passing};
pub use throttle::{Bucket, Throttle};

/// Size of a thread's scratch buffer in bytes: copying a MiB takes 12 % longer with half of it, and 20 % with
/// twice as much, which no longer stays in the processor's cache (`cargo bench --bench relay`).
const SCRATCH: usize = 64 * 1024;
/// How often a source is looked at that is not read because its destination is slow: its failure would
/// otherwise go unnoticed until the idle limit.
const STALL_CHECK: Duration = Duration::from_secs(5);
/// After this a relay counts as lasting, and the kernel is asked to look after its connections. Most end
/// before, and never pay for it.
const LASTING: Duration = Duration::from_secs(30);

/// What all relays of a thread share: the buffer that they read into, and the pipes that they splice through.
#[derive(Debug)]
pub struct Scratch {
    buffer: RefCell<Box<[u8]>>,
    pipes: PipePool,
}

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
    /// The same of bytes that are copied, before they are passed on; what is spliced nobody sees.
    fn copied(&self, direction: Direction, bytes: &[u8]) {
        self.read(direction, bytes.len());
    }
    /// `n` bytes were written to the destination of `direction`, `spliced` or copied.
    fn written(&self, direction: Direction, n: usize, spliced: bool);
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
        /// The direction with bytes that its destination did not take, if there were any.
        stalled: Option<Direction>,
    },
}

/// A failed connection.
#[derive(Debug)]
pub struct Fault {
    /// Whose connection failed.
    pub side: Side,
    /// What the kernel said.
    pub error: io::Error,
    /// Whether all that the side had sent was passed on before: the other one lacks nothing.
    pub delivered: bool,
}

/// A connection that can be relayed. Splicing is optional: what cannot be spliced is copied.
pub trait Conduit: AsyncRead + AsyncWrite + Unpin {
    /// Whether bytes may pass it in pipes.
    fn can_splice(&self) -> bool {
        true
    }
    /// Splices from the connection into the empty `pipe`, at most so many bytes.
    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Filled>>;
    /// Splices from the `pipe`, which holds something, into the connection.
    fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;
    /// Why the connection has failed, if it has; told once.
    fn take_error(&self) -> Option<io::Error>;
    /// Whether the peer has ended its stream and what was read last, with room to spare, was the rest of it.
    fn has_been_drained(&self) -> bool {
        false
    }
    /// Whether closing the connection says that the stream has ended; or else that has to be said before.
    fn is_ended_by_closing(&self) -> bool {
        true
    }
    /// Writes what is followed by more, or by the end of the stream, at once.
    fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }
    /// The connection lasts: from now on its peer is to be probed while nothing passes.
    fn keep_alive(&self) {}
}

impl Scratch {
    /// A buffer, and room for up to `pipes` pipes.
    pub fn new(pipes: usize) -> Self {
        Self { buffer: RefCell::new(vec![0; SCRATCH].into()), pipes: PipePool::new(pipes) }
    }

    /// Its pipes are counted in `made`, with those of other threads.
    #[must_use]
    pub fn counted_in(mut self, made: Arc<AtomicUsize>) -> Self {
        self.pipes = self.pipes.counted_in(made);
        self
    }

    /// Runs `f` on the buffer. Not to be called from within `f`.
    pub fn with<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        f(&mut self.buffer.borrow_mut())
    }
}

/// A relay between a client and a backend until both directions have ended, one connection has failed, or
/// nothing passes any more.
///
/// Both connections are left open: how they are closed is the caller's choice and follows from the end.
#[derive(Debug)]
pub struct Relay<'a> {
    up: Flow<'a>,
    down: Flow<'a>,
    scratch: &'a Scratch,
    /// What limits its bandwidth, if anything does.
    throttle: Option<Box<Throttle>>,
    clock: IdleClock,
}

/// When a relay is over for want of bytes, and when it is to be looked at before that.
#[derive(Debug)]
struct IdleClock {
    limits: IdleLimits,
    /// The turn of the event loop in which a byte passed last.
    active: Moment,
    /// When the relay was looked at last.
    looked: Moment,
    /// When the relay begins to last; `NEVER` once it does.
    lasts: Moment,
}

impl<'a> Relay<'a> {
    /// A relay that begins now. `prefix` are bytes that the client sent already; they go first.
    pub fn new(prefix: Box<[u8]>, scratch: &'a Scratch, limits: IdleLimits, now: Moment) -> Self {
        let clock = IdleClock { limits, active: now, looked: now, lasts: now + LASTING };
        let up = Flow::new(Direction::Up, prefix);
        Self { up, down: Flow::new(Direction::Down, Box::default()), scratch, throttle: None, clock }
    }

    /// The same, not faster than `throttle` lets it.
    #[must_use]
    pub fn throttled(self, throttle: Option<Box<Throttle>>) -> Self {
        Self { throttle, ..self }
    }

    /// The direction that ended while the other one went on, when they did not end together.
    pub fn ended_first(&self) -> Option<Direction> {
        [&self.up, &self.down].iter().find(|flow| flow.ended_first()).map(|flow| flow.direction())
    }

    /// Moves what can be moved. It is for one task, always with the same two connections.
    pub fn poll<C, U>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        upstream: &mut U,
        timer: &mut Timer<'_>,
        meter: &impl Meter,
    ) -> Poll<RelayEnd>
    where
        C: Conduit,
        U: Conduit,
    {
        let Self { up, down, scratch, throttle, clock } = self;
        let mut passing = Passing { scratch, throttle: throttle.as_deref_mut(), meter };
        let down_first = passing.throttle.as_ref().is_some_and(|throttle| throttle.is_downs_turn());
        let mut passed = down_first && down.poll(cx, upstream, client, &mut passing, up.as_opposite());
        passed |= up.poll(cx, client, upstream, &mut passing, down.as_opposite());
        passed |= !down_first && down.poll(cx, upstream, client, &mut passing, up.as_opposite());
        let wait = throttle.as_mut().and_then(|throttle| throttle.take_wait());
        let resume = wait.map_or(Moment::NEVER, |wait| timer.now() + wait);
        if passed {
            clock.active = timer.turned();
        }
        loop {
            if let Some(end) = finished(up, down) {
                return Poll::Ready(end);
            }
            match (up.has_ended(), down.has_ended()) {
                (true, false) => up.ends_first(),
                (false, true) => down.ends_first(),
                (true, true) | (false, false) => {}
            }
            let half_closed = [&*up, down].iter().find(|flow| flow.has_ended()).map(|flow| flow.direction());
            let stalled = [&*up, down].iter().find(|flow| flow.is_stalled()).map(|flow| flow.direction());
            let deadline = clock.deadline(half_closed.is_some());
            if timer.poll(cx, clock.wake(deadline, stalled.is_some()).min(resume)).is_pending() {
                return Poll::Pending;
            }
            let now = timer.now();
            if now >= deadline {
                return Poll::Ready(RelayEnd::Idle { half_closed, stalled });
            }
            if now >= resume {
                // The time to wait was over before the timer was set.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            clock.looked = now;
            if now >= clock.lasts {
                clock.lasts = Moment::NEVER;
                upstream.keep_alive();
            }
            up.notice_failure(client, down.as_opposite());
            down.notice_failure(upstream, up.as_opposite());
        }
    }
}

impl IdleClock {
    fn deadline(&self, half_closed: bool) -> Moment {
        self.active + if half_closed { self.limits.half_closed } else { self.limits.open }
    }

    fn wake(&self, deadline: Moment, stalled: bool) -> Moment {
        let stall = if stalled { self.looked.max(self.active) + STALL_CHECK } else { Moment::NEVER };
        deadline.min(stall).min(self.lasts)
    }
}

/// The end of the relay, if it has one: at once when a source failed, else when both directions are over.
fn finished<'a>(up: &mut Flow<'a>, down: &mut Flow<'a>) -> Option<RelayEnd> {
    for (flow, source) in [(&mut *up, Side::Downstream), (&mut *down, Side::Upstream)] {
        if flow.failed(source) {
            return flow.take_fault().map(RelayEnd::Fault);
        }
    }
    if !up.is_over() || !down.is_over() {
        return None;
    }
    Some(up.take_fault().or_else(|| down.take_fault()).map_or(RelayEnd::Done, RelayEnd::Fault))
}

#[cfg(test)]
mod tests;
