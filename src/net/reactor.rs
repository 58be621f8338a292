//! The event loop of a data-plane thread: it runs a future, waits in epoll(7) for the descriptors and deadlines
//! that this waits for, and wakes whoever a waker is handed to.
//!
//! A general runtime registers each socket for reading and writing, and takes that back before it closes it.
//! Here a socket is watched for reading only, until a write has to wait, and closing it is all that is needed:
//! for each socket a system call and an event fewer, and a sixth of the memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use slab::Slab;

use super::timer::Timers;

/// Events fetched at once: more wait for the next turn.
const EVENTS: usize = 256;
/// The longest wait, far below what epoll_wait(2) can count in milliseconds.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What tells a reader: bytes, urgent ones among them, and the end of the stream.
const READ: EventFlags = EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP);
/// The key of the descriptor by which other threads wake this one; sources have smaller ones.
const WAKE: u64 = u64::MAX;

/// The event loop of a thread.
#[derive(Debug)]
pub struct Reactor {
    epoll: OwnedFd,
    sources: RefCell<Sources>,
    unpark: Arc<Unpark>,
    turns: Cell<u64>,
}

#[derive(Debug)]
struct Sources {
    slab: Slab<Source>,
    /// Tells a source from those that had its place before.
    generation: u32,
    /// The slab is cut to size when it holds no more than so many, for half of them next time.
    shrink_at: usize,
}

/// What is known of a descriptor, and who waits for it.
#[derive(Debug)]
struct Source {
    generation: u32,
    watched: Interest,
    ready: Ready,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Nothing,
    Read,
    ReadWrite,
}

/// How the kernel tells of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// When something changes.
    Edge,
    /// As long as there is something.
    Level,
}

/// What can be done with a descriptor, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready(u8);

/// A descriptor that tasks wait for. It is watched from the first wait on, until it is dropped.
#[derive(Debug)]
pub(super) struct Watched<T: AsFd> {
    io: T,
    trigger: Trigger,
    key: u64,
    reactor: Rc<Reactor>,
}

/// Wakes the loop, from any thread.
#[derive(Debug)]
struct Unpark {
    woken: AtomicBool,
    parked: AtomicBool,
    eventfd: OwnedFd,
}

impl Reactor {
    /// A loop for this thread.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Rc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &eventfd, EventData::new_u64(WAKE), EventFlags::IN)?;
        let unpark = Unpark { woken: AtomicBool::new(false), parked: AtomicBool::new(false), eventfd };
        Ok(Rc::new(Self {
            epoll,
            sources: RefCell::new(Sources { slab: Slab::new(), generation: 0, shrink_at: 0 }),
            unpark: Arc::new(unpark),
            turns: Cell::new(0),
        }))
    }

    /// Runs `future` to its end, and the clock of `timers` with it.
    ///
    /// # Errors
    /// When waiting fails, which it does not on a descriptor of ours.
    pub fn run<F: Future>(&self, timers: &Timers, future: F) -> io::Result<F::Output> {
        let waker = Waker::from(Arc::clone(&self.unpark));
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.unpark.woken.store(false, SeqCst);
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return Ok(output);
            }
            self.turn(&mut events, timers)?;
        }
    }

    /// How often events have been fetched.
    pub fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Waits until something happens, unless something has, and wakes whom it concerns.
    fn turn(&self, events: &mut Vec<Event>, timers: &Timers) -> io::Result<()> {
        // Whoever wakes the loop after this writes to the eventfd; whoever did before is seen here.
        self.unpark.parked.store(true, SeqCst);
        let wait = if self.unpark.woken.load(SeqCst) { Some(Duration::ZERO) } else { timers.until_next() };
        let timeout = wait.and_then(|wait| Timespec::try_from(wait.min(LONGEST)).ok());
        let fetched = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref());
        self.unpark.parked.store(false, SeqCst);
        match fetched {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.turns.set(self.turns.get() + 1);
        for event in events.drain(..) {
            self.dispatch(event.data.u64(), event.flags);
        }
        timers.turn();
        Ok(())
    }

    fn dispatch(&self, key: u64, flags: EventFlags) {
        if key == WAKE {
            // Its value does not matter; should reading fail, the loop turns once more.
            let _ = rustix::io::read(&self.unpark.eventfd, &mut [0; 8]);
            return;
        }
        // A source that is gone may still have had an event.
        if let Some(source) = self.sources.borrow_mut().get(key) {
            let ready = Ready::from(flags);
            source.ready = source.ready.and(ready);
            // Wakers put a task into a queue: they do not come back here.
            for waker in [(Ready::READABLE, &source.reader), (Ready::WRITABLE, &source.writer)] {
                if let (bits, Some(waker)) = waker
                    && ready.any(bits)
                {
                    waker.wake_by_ref();
                }
            }
        }
    }
}

impl Sources {
    fn insert(&mut self, ready: Ready) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let source = Source { generation, watched: Interest::Nothing, ready, reader: None, writer: None };
        self.shrink_at = self.shrink_at.max(self.slab.len() / 4);
        // Far fewer than 4 billion: each has a descriptor.
        u64::from(generation) << 32 | self.slab.insert(source) as u64
    }

    fn get(&mut self, key: u64) -> Option<&mut Source> {
        let index = usize::try_from(key & u64::from(u32::MAX)).ok()?;
        self.slab.get_mut(index).filter(|source| u64::from(source.generation) == key >> 32)
    }

    fn remove(&mut self, key: u64) -> Option<Source> {
        self.get(key)?;
        let source = self.slab.try_remove(usize::try_from(key & u64::from(u32::MAX)).ok()?);
        // What the last burst of connections took; seldom enough to cost nothing.
        if self.slab.len() <= self.shrink_at {
            self.slab.shrink_to_fit();
            self.shrink_at = self.slab.len() / 2;
        }
        source
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, SeqCst) && self.parked.load(SeqCst) {
            // Fails only when it has been written to 2⁶⁴ times, which would wake as well.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }
}

impl<T: AsFd> Watched<T> {
    /// `io`, which does not block and is known to be `ready`.
    pub(super) fn new(io: T, trigger: Trigger, ready: Ready, reactor: &Rc<Reactor>) -> Self {
        let key = reactor.sources.borrow_mut().insert(ready);
        Self { io, trigger, key, reactor: Rc::clone(reactor) }
    }

    pub(super) fn io(&self) -> &T {
        &self.io
    }

    pub(super) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Watches for `interest` at least.
    ///
    /// # Errors
    /// When the kernel cannot watch more descriptors (epoll(7), `max_user_watches`).
    pub(super) fn watch(&self, interest: Interest) -> io::Result<()> {
        let watched = self.source(|source| source.watched);
        match (watched, interest) {
            (_, Interest::Nothing) | (Interest::ReadWrite, _) | (Interest::Read, Interest::Read) => {
                return Ok(());
            }
            (Interest::Nothing, Interest::Read | Interest::ReadWrite) => {
                epoll::add(
                    &self.reactor.epoll,
                    &self.io,
                    EventData::new_u64(self.key),
                    self.flags(interest),
                )?;
            }
            (Interest::Read, Interest::ReadWrite) => {
                let flags = self.flags(interest);
                epoll::modify(&self.reactor.epoll, &self.io, EventData::new_u64(self.key), flags)?;
            }
        }
        self.source(|source| source.watched = interest);
        Ok(())
    }

    /// No longer watches it, until somebody waits for it again.
    ///
    /// # Errors
    /// When it is not watched.
    pub(super) fn unwatch(&self) -> io::Result<()> {
        epoll::delete(&self.reactor.epoll, &self.io)?;
        self.source(|source| source.watched = Interest::Nothing);
        Ok(())
    }

    /// Ready when reading may give something, be it an end or an error.
    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let wait = self.source(|source| {
            let wait = !source.ready.any(Ready::READABLE);
            if wait {
                remember(&mut source.reader, cx);
            }
            wait
        });
        self.wait_for(Interest::Read, wait)
    }

    /// Ready when writing may get something away, or tell of an error.
    pub(super) fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let wait = self.source(|source| {
            let wait = !source.ready.any(Ready::WRITABLE);
            if wait {
                remember(&mut source.writer, cx);
            }
            wait
        });
        self.wait_for(Interest::ReadWrite, wait)
    }

    fn wait_for(&self, interest: Interest, wait: bool) -> Poll<io::Result<()>> {
        if !wait {
            return Poll::Ready(Ok(()));
        }
        match self.watch(interest) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// What `read` gives as soon as it does not say `WouldBlock`.
    pub(super) fn poll_read_with<R>(
        &self,
        cx: &Context<'_>,
        mut read: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            ready!(self.poll_readable(cx))?;
            match read(&self.io) {
                // Whatever was said before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.forget(Ready::READABLE),
                result => return Poll::Ready(result),
            }
        }
    }

    /// What `write` gives as soon as it does not say `WouldBlock`.
    pub(super) fn poll_write_with<R>(
        &self,
        cx: &Context<'_>,
        mut write: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            ready!(self.poll_writable(cx))?;
            match write(&self.io) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.forget(Ready::WRITABLE),
                result => return Poll::Ready(result),
            }
        }
    }

    /// An operation showed that `bits` are no longer so: only an event tells when they are.
    pub(super) fn forget(&self, bits: Ready) {
        self.source(|source| source.ready = source.ready.without(bits));
    }

    /// An operation showed that `bits` are so.
    pub(super) fn learn(&self, bits: Ready) {
        self.source(|source| source.ready = source.ready.and(bits));
    }

    /// Whether it has urgent data, or had when all was last read.
    pub(super) fn is_urgent(&self) -> bool {
        self.source(|source| source.ready.any(Ready::URGENT))
    }

    /// Whether the peer has ended its stream, and not failed.
    pub(super) fn is_ending(&self) -> bool {
        self.source(|source| source.ready.any(Ready::READ_CLOSED) && !source.ready.any(Ready::ERROR))
    }

    /// Ready when the connection has failed or, where that counts, the peer has ended its stream; for who waits for nothing
    /// else of it.
    pub(super) fn poll_gone(&self, cx: &Context<'_>, ended: bool) -> Poll<()> {
        let gone = Ready::ERROR.and(Ready::WRITE_CLOSED);
        let gone = if ended { gone.and(Ready::READ_CLOSED) } else { gone };
        self.source(|source| {
            if source.ready.any(gone) {
                return Poll::Ready(());
            }
            remember(&mut source.reader, cx);
            Poll::Pending
        })
    }

    fn source<R>(&self, f: impl FnOnce(&mut Source) -> R) -> R {
        let mut sources = self.reactor.sources.borrow_mut();
        f(sources.get(self.key).unwrap_or_else(|| unreachable!("a source is removed when it is dropped")))
    }

    fn flags(&self, interest: Interest) -> EventFlags {
        let trigger = match self.trigger {
            Trigger::Edge => EventFlags::ET,
            Trigger::Level => EventFlags::empty(),
        };
        trigger
            | match interest {
                Interest::Nothing => EventFlags::empty(),
                Interest::Read => READ,
                Interest::ReadWrite => READ | EventFlags::OUT,
            }
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        // The kernel forgets a descriptor that is closed, since it has no duplicates (epoll(7)).
        let source = self.reactor.sources.borrow_mut().remove(self.key);
        // The sources are free again: its task's last trace may go with a waker.
        drop(source);
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

impl Ready {
    pub(super) const NOTHING: Self = Self(0);
    pub(super) const READ: Self = Self(1);
    pub(super) const WRITE: Self = Self(2);
    const READ_CLOSED: Self = Self(4);
    const WRITE_CLOSED: Self = Self(8);
    const ERROR: Self = Self(16);
    const URGENT: Self = Self(32);
    pub(super) const READABLE: Self = Self(1 | 4 | 16 | 32);
    const WRITABLE: Self = Self(2 | 8 | 16);

    fn any(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    fn and(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }
}

impl From<EventFlags> for Ready {
    fn from(flags: EventFlags) -> Self {
        let bits = [
            (EventFlags::IN, Self::READ),
            (EventFlags::OUT, Self::WRITE),
            (EventFlags::RDHUP, Self::READ_CLOSED),
            (EventFlags::HUP, Self::READ_CLOSED.and(Self::WRITE_CLOSED)),
            (EventFlags::ERR, Self::ERROR),
            (EventFlags::PRI, Self::URGENT),
        ];
        let bits = bits.into_iter().filter(|(flag, _)| flags.contains(*flag));
        bits.fold(Self::NOTHING, |ready, (_, bits)| ready.and(bits))
    }
}

#[cfg(test)]
mod tests;
