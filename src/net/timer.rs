//! Deadlines of connections: a coarse clock and a timer wheel for each thread.
//!
//! A runtime's own timers wake its event loop whenever a deadline is set that comes before all others, which
//! for connections is nearly always: a system call and a turn of the loop for a deadline that is almost never
//! met. Here setting one costs a few instructions, and no more is woken than has become due. A deadline is
//! never early, counted from the look at the clock that it began with, and late by at most two ticks and a sixty-fourth of its length.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Add;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

/// The time between two ticks: far below any limit that is worth configuring.
const TICK: Duration = Duration::from_millis(TICK_MS);
const TICK_MS: u64 = 50;
/// Ticks in a thousand years: as far ahead as anyone counts.
const FAR: u64 = 1000 * 365 * 24 * 3600 * 1000 / TICK_MS;
/// Deadlines fall on multiples of this fraction of their length, so that ten thousand idle connections share
/// a few dozen wake-ups.
const GRAIN: u64 = 64;
/// Slots of the wheel: one turn takes 51 seconds, so that only idle limits are passed by before they are due.
const SLOTS: u64 = 1024;

/// A moment of the coarse clock, in ticks since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than any other.
    pub const NEVER: Self = Self(u64::MAX);

    /// The first moment that serves as one at which `duration` has certainly passed.
    fn after(self, duration: Duration) -> Self {
        let part = u64::from(duration.subsec_nanos().div_ceil(TICK.subsec_nanos()));
        let ticks = duration.as_secs().saturating_mul(1000 / TICK_MS).saturating_add(part);
        // One more: the current tick began before now.
        let sum = self.0.saturating_add(ticks).saturating_add(1);
        Self(sum.checked_next_multiple_of((ticks / GRAIN).max(1)).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        self.after(duration)
    }
}

/// The clock of a thread, and the timers that follow it.
#[derive(Debug)]
pub struct Timers {
    start: Instant,
    /// When the clock was read last.
    read: Cell<Moment>,
    wheel: RefCell<Wheel>,
}

/// A timer of a task.
#[derive(Debug)]
pub struct Timer<'a> {
    timers: &'a Timers,
    key: Key,
}

/// An entry of the wheel; there are never as many as this can count.
type Key = u32;

#[derive(Debug)]
struct Wheel {
    entries: Slab<Entry>,
    /// Keys of entries, each in the slot of the tick on which it is due.
    slots: Vec<Vec<Key>>,
    /// How many are in slots.
    armed: usize,
    /// All that was due until then has been woken.
    done: Moment,
    /// When there is something to do next.
    wake: Moment,
}

#[derive(Debug)]
struct Entry {
    due: Moment,
    /// Its place in its slot, while it is in one.
    place: Option<u32>,
    waker: Waker,
}

impl Timers {
    /// A clock that wakes nobody but when it is turned.
    pub fn new() -> Self {
        Self { start: Instant::now(), read: Cell::new(Moment(0)), wheel: RefCell::new(Wheel::new()) }
    }

    /// Wakes whose deadline has come.
    pub(super) fn turn(&self) {
        if self.wheel.borrow().wake > self.now() {
            return;
        }
        // Woken when the wheel is free again: what a waker does is not ours.
        let due = self.wheel.borrow_mut().advance(self.read.get());
        due.into_iter().for_each(Waker::wake);
    }

    /// How long until [`turn`](Self::turn) has something to do, if it ever has.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let wake = self.wheel.borrow().wake;
        let at = Duration::from_millis(wake.0.min(FAR).saturating_mul(TICK_MS));
        (wake != Moment::NEVER).then(|| at.saturating_sub(self.start.elapsed()))
    }

    /// The current moment.
    pub fn now(&self) -> Moment {
        let passed = self.start.elapsed();
        let ticks = passed.as_secs() * (1000 / TICK_MS) + u64::from(passed.subsec_millis()) / TICK_MS;
        self.read.set(Moment(ticks));
        self.read.get()
    }

    /// A timer; it is for one task.
    pub fn timer(&self) -> Timer<'_> {
        let entry = Entry { due: Moment(0), place: None, waker: Waker::noop().clone() };
        Timer { timers: self, key: index(self.wheel.borrow_mut().entries.insert(entry)) }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

impl Timer<'_> {
    /// The current moment.
    pub fn now(&self) -> Moment {
        self.timers.now()
    }

    /// The moment at which the event loop turned last: what happens until it turns again happens then, for
    /// whoever need not know better. Costs no look at the clock.
    pub fn turned(&self) -> Moment {
        self.timers.read.get()
    }

    /// Ready once `at` has come, as far as the clock was read: it is read before anyone is woken. Until then
    /// the task is woken at `at`, or before it when it was already to be: a deadline that moves away again
    /// and again costs nothing.
    pub fn poll(&mut self, cx: &Context<'_>, at: Moment) -> Poll<()> {
        if self.timers.read.get() >= at {
            return Poll::Ready(());
        }
        self.timers.wheel.borrow_mut().arm(self.key, at, cx.waker());
        Poll::Pending
    }

    /// What `future` gives, or `None` when it is not done by `at`.
    pub async fn timeout_at<F: Future>(&mut self, at: Moment, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(cx, at).map(|()| None),
        })
        .await
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let entry = self.timers.wheel.borrow_mut().remove(self.key);
        // The wheel is free again: its task's last trace may go with the waker.
        drop(entry);
    }
}

impl Wheel {
    fn new() -> Self {
        let slots = std::iter::repeat_with(Vec::new).take(usize::try_from(SLOTS).unwrap_or(0)).collect();
        Self { entries: Slab::new(), slots, armed: 0, done: Moment(0), wake: Moment::NEVER }
    }

    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key as usize)
    }

    fn slot(&mut self, due: Moment) -> &mut Vec<Key> {
        let slot = usize::try_from(due.0 % SLOTS).unwrap_or(0);
        self.slots.get_mut(slot).unwrap_or_else(|| unreachable!("the remainder is below the number of slots"))
    }

    /// Sees to it that the entry is woken at `at` or before.
    fn arm(&mut self, key: Key, at: Moment, waker: &Waker) {
        let Some(entry) = self.entry(key) else { return };
        entry.waker.clone_from(waker);
        if entry.place.is_some() {
            if entry.due <= at {
                return;
            }
            self.unlink(key);
        }
        let slot = self.slot(at);
        let place = Some(index(slot.len()));
        slot.push(key);
        self.armed += 1;
        if let Some(entry) = self.entry(key) {
            (entry.due, entry.place) = (at, place);
        }
        self.wake = self.wake.min(at);
    }

    /// Takes the entry out of its slot.
    fn unlink(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        let (due, Some(place)) = (entry.due, entry.place.take()) else { return };
        self.armed -= 1;
        let slot = self.slot(due);
        slot.swap_remove(place as usize);
        if let Some(moved) = slot.get(place as usize).copied()
            && let Some(moved) = self.entry(moved)
        {
            moved.place = Some(place);
        }
    }

    fn remove(&mut self, key: Key) -> Option<Entry> {
        self.unlink(key);
        let entry = self.entries.try_remove(key as usize);
        if self.entries.is_empty() {
            // What the last burst of connections took.
            self.entries.shrink_to_fit();
        }
        entry
    }

    /// The wakers of all that has become due by `now`; it leaves its slots.
    fn advance(&mut self, now: Moment) -> Vec<Waker> {
        let mut due = Vec::new();
        let first = self.done.0.max(now.0.saturating_sub(SLOTS)) + 1;
        for tick in first..=now.0 {
            for key in self.slot(Moment(tick)).clone() {
                if let Some(entry) = self.entry(key).filter(|entry| entry.due <= now) {
                    due.push(entry.waker.clone());
                    self.unlink(key);
                }
            }
            self.slot(Moment(tick)).shrink_to_fit();
        }
        self.done = self.done.max(now);
        self.wake = self.next();
        due
    }

    /// When something is due next, or a turn from now when that is later.
    fn next(&mut self) -> Moment {
        if self.armed == 0 {
            return Moment::NEVER;
        }
        let turn = self.done.0 + SLOTS;
        let is_due = |wheel: &mut Self, tick| {
            let slot = std::mem::take(wheel.slot(tick));
            let any = slot.iter().any(|key| wheel.entry(*key).is_some_and(|entry| entry.due <= tick));
            *wheel.slot(tick) = slot;
            any
        };
        let ticks = (self.done.0 + 1..turn).map(Moment);
        ticks.into_iter().find(|tick| is_due(self, *tick)).unwrap_or(Moment(turn))
    }
}

/// Entries are held by connections, of which a machine has room for far fewer.
fn index(count: usize) -> Key {
    Key::try_from(count).unwrap_or_else(|_| unreachable!("fewer than 4 billion connections"))
}

/// Runs `test` and turns the clock as an event loop does, on the runtime's time.
#[cfg(test)]
pub(super) async fn with_clock<F: Future>(timers: &Timers, test: F) -> F::Output {
    let mut test = pin!(test);
    let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        loop {
            timers.turn();
            if let Poll::Ready(output) = test.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            let Some(wait) = timers.until_next() else { return Poll::Pending };
            sleep.as_mut().reset(Instant::now() + wait);
            std::task::ready!(sleep.as_mut().poll(cx));
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How late a deadline may be.
    fn slack(asked: Duration) -> Duration {
        2 * TICK + asked / 64
    }

    async fn sleep(timers: &Timers, duration: Duration) -> Duration {
        let start = Instant::now();
        let mut timer = timers.timer();
        let at = timer.now() + duration;
        poll_fn(|cx| timer.poll(cx, at)).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_never_early_and_late_by_two_ticks_at_most() {
        let timers = Timers::new();
        with_clock(&timers, async {
            for ms in [0, 1, 49, 50, 51, 149, 1000, 5000, 51_150, 51_200, 51_250, 200_000] {
                // Somewhere between two ticks.
                tokio::time::advance(Duration::from_millis(7)).await;
                let asked = Duration::from_millis(ms);
                let took = sleep(&timers, asked).await;
                assert!(took >= asked && took <= asked + slack(asked), "{took:?} instead of {asked:?}");
            }
        })
        .await;
        assert!(timers.wheel.borrow().entries.is_empty());
        assert!(timers.wheel.borrow().slots.iter().all(Vec::is_empty));
    }

    #[tokio::test(start_paused = true)]
    async fn many_timers_in_the_same_slots_fire_each_at_its_time() {
        let timers = Timers::new();
        let tasks = (0..300_u64).map(|n| {
            // The same few slots in different turns of the wheel; some give up before.
            let asked = TICK * u32::try_from(n % 3 + SLOTS * (n % 4)).unwrap();
            let timers = &timers;
            async move {
                if n % 7 == 0 {
                    let early = tokio::time::timeout(asked / 2, sleep(timers, asked)).await;
                    assert!(early.is_err() || asked < 4 * TICK, "{n}");
                } else {
                    let took = sleep(timers, asked).await;
                    assert!(took >= asked && took <= asked + slack(asked), "{n}: {took:?}, {asked:?}");
                }
            }
        });
        let mut tasks = tasks.map(Box::pin).collect::<Vec<_>>();
        let all = poll_fn(|cx| {
            tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
            if tasks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        with_clock(&timers, all).await;
        assert!(timers.wheel.borrow().slots.iter().all(Vec::is_empty));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_either_way() {
        let timers = Timers::new();
        with_clock(&timers, async {
            let start = Instant::now();
            let mut timer = timers.timer();
            let (late, soon) = (timer.now() + Duration::from_secs(60), timer.now() + Duration::from_secs(1));
            poll_fn(|cx| {
                assert!(timer.poll(cx, late).is_pending());
                timer.poll(cx, soon)
            })
            .await;
            assert!(start.elapsed() < Duration::from_secs(2));
            poll_fn(|cx| timer.poll(cx, late)).await;
            assert!(start.elapsed() >= Duration::from_secs(60));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_stopped_catches_up() {
        let timers = Timers::new();
        with_clock(&timers, async {
            for hours in [1, 2] {
                let sleeping = sleep(&timers, Duration::from_secs(7));
                let stop = async {
                    tokio::task::yield_now().await;
                    tokio::time::advance(Duration::from_secs(3600 * hours)).await;
                };
                let (took, ()) = tokio::join!(sleeping, stop);
                assert!(took < Duration::from_secs(3600 * hours + 1), "{took:?}");
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_due_wakes_the_clock() {
        let timers = Timers::new();
        let due = |timers: &Timers| timers.wheel.borrow().wake;
        assert_eq!(due(&timers), Moment::NEVER);
        let mut far = (0..1000).map(|_| timers.timer()).collect::<Vec<_>>();
        let mut near = timers.timer();
        poll_fn(|cx| {
            for (ms, timer) in (0..).zip(&mut far) {
                // Over a second, as connections come in.
                let at = timers.now() + Duration::from_secs(300) + Duration::from_millis(ms);
                assert!(timer.poll(cx, at).is_pending());
            }
            assert!(near.poll(cx, timers.now() + Duration::from_secs(5)).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(due(&timers), timers.now() + Duration::from_secs(5));
        drop(near);
        let mut wakes = 0;
        while timers.wheel.borrow().armed > 0 {
            wakes += 1;
            let wake = due(&timers);
            timers.wheel.borrow_mut().advance(wake);
        }
        // Once for what was cancelled, once a turn, and once for each moment that the thousand fell on.
        assert!(wakes <= 1 + 7 + 22, "{wakes} wake-ups");
        assert_eq!(due(&timers), Moment::NEVER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_gives_what_was_done_in_time() {
        let timers = Timers::new();
        with_clock(&timers, async {
            let mut timer = timers.timer();
            let at = timer.now() + Duration::from_secs(1);
            assert_eq!(timer.timeout_at(at, std::future::ready(7)).await, Some(7));
            assert_eq!(timer.timeout_at(at, std::future::pending::<u8>()).await, None);
        })
        .await;
    }
}
