//! Deadlines of connections: a coarse clock and a timer wheel for each thread.
//!
//! A runtime's own timers wake its event loop whenever a deadline is set that comes before all others, which
//! for connections is nearly always: a system call and a turn of the loop for a deadline that is almost never
//! met. Here deadlines fall on the ticks of a clock that runs anyway, and setting one costs a few
//! instructions. A deadline is never early, and late by at most two ticks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Add;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The time between two ticks: far below any limit that is worth configuring, and 20 wake-ups a second cost
/// a thread that has connections about 0.02 % of a core.
const TICK: Duration = Duration::from_millis(50);
/// Slots of the wheel: one turn takes 51 seconds, so that only idle limits are passed by before they are due.
const SLOTS: usize = 1024;
/// Ticks that count for one stop of the thread, at most: while it does not run it does not read either, so
/// that its peers must not be charged for it. One second.
const MOST: u64 = 20;
/// Ticks without a timer after which the clock stands still: starting it costs what this module is to save.
const REST: u32 = 20;

/// A moment of the coarse clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than any other.
    pub const NEVER: Self = Self(u64::MAX);
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// The first moment at which `duration` has certainly passed.
    fn add(self, duration: Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(TICK.as_nanos());
        // One more: the current tick began before now.
        Self(self.0.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)).saturating_add(1))
    }
}

/// The clock of a thread, and the timers that follow it.
#[derive(Debug)]
pub struct Timers {
    now: Cell<Moment>,
    /// When the current tick began.
    ticked: Cell<Instant>,
    wheel: RefCell<Wheel>,
    runs: Cell<bool>,
    start: Notify,
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
}

#[derive(Debug)]
struct Entry {
    due: Moment,
    /// Its place in its slot, while it is in one.
    place: Option<u32>,
    waker: Waker,
}

impl Timers {
    /// A clock that stands until [`run`](Self::run) is polled.
    pub fn new() -> Self {
        let wheel = Wheel { entries: Slab::new(), slots: vec![Vec::new(); SLOTS] };
        Self {
            now: Cell::new(Moment(0)),
            ticked: Cell::new(Instant::now()),
            wheel: RefCell::new(wheel),
            runs: Cell::new(false),
            start: Notify::new(),
        }
    }

    /// Keeps the clock going, for ever. It stands still while there are no timers.
    pub async fn run(&self) {
        loop {
            self.start.notified().await;
            let mut tick = pin!(sleep_until(self.ticked.get() + TICK));
            let mut rest = 0;
            while rest < REST {
                tick.as_mut().await;
                self.advance();
                tick.as_mut().reset(self.ticked.get() + TICK);
                rest = if self.wheel.borrow().entries.is_empty() { rest + 1 } else { 0 };
            }
            self.runs.set(false);
            self.wheel.borrow_mut().entries.shrink_to_fit();
        }
    }

    /// The current moment. It moves while there are timers.
    pub fn now(&self) -> Moment {
        self.now.get()
    }

    /// A timer; it must be polled by one task only.
    pub fn timer(&self) -> Timer<'_> {
        if !self.runs.replace(true) {
            self.ticked.set(Instant::now());
            self.start.notify_one();
        }
        let entry = Entry { due: Moment(0), place: None, waker: Waker::noop().clone() };
        Timer { timers: self, key: index(self.wheel.borrow_mut().entries.insert(entry)) }
    }

    /// Moves the clock to the present and wakes whose deadline has come.
    fn advance(&self) {
        let passed = Instant::now().saturating_duration_since(self.ticked.get());
        let ticks = u32::try_from(passed.as_nanos() / TICK.as_nanos()).unwrap_or(u32::MAX);
        self.ticked.set(self.ticked.get() + TICK * ticks);
        for _ in 0..u64::from(ticks).min(MOST) {
            let now = Moment(self.now.get().0 + 1);
            self.now.set(now);
            // Woken when the wheel is free again: what a waker does is not ours.
            let due = self.wheel.borrow_mut().take_due(now);
            due.into_iter().for_each(Waker::wake);
        }
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

    /// Ready once `at` has come. Until then the task is woken at `at`, or before it when it was already
    /// to be: a deadline that moves away again and again costs nothing.
    pub fn poll(&mut self, cx: &Context<'_>, at: Moment) -> Poll<()> {
        if self.now() >= at {
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
    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key as usize)
    }

    fn slot(&mut self, due: Moment) -> &mut Vec<Key> {
        let slot = usize::try_from(due.0 % SLOTS as u64).unwrap_or(0);
        self.slots.get_mut(slot).unwrap_or_else(|| unreachable!("the remainder is below the number of slots"))
    }

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
        if let Some(entry) = self.entry(key) {
            (entry.due, entry.place) = (at, place);
        }
    }

    /// Takes the entry out of its slot.
    fn unlink(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        let (due, Some(place)) = (entry.due, entry.place.take()) else { return };
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
        self.entries.try_remove(key as usize)
    }

    /// The wakers of what is due now; it leaves its slot.
    fn take_due(&mut self, now: Moment) -> Vec<Waker> {
        let keys = self.slot(now).clone();
        let mut due = Vec::new();
        for key in keys {
            if let Some(entry) = self.entry(key).filter(|entry| entry.due <= now) {
                due.push(entry.waker.clone());
                self.unlink(key);
            }
        }
        // What a burst of connections took is given back within a turn.
        self.slot(now).shrink_to_fit();
        due
    }
}

/// Entries are held by connections, of which a machine has room for far fewer.
fn index(count: usize) -> Key {
    Key::try_from(count).unwrap_or_else(|_| unreachable!("fewer than 4 billion connections"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `test` beside the clock.
    async fn with_clock<F: Future>(timers: &Timers, test: F) -> F::Output {
        tokio::select! {
            output = test => output,
            () = timers.run() => unreachable!("the clock never ends"),
        }
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
                assert!(took >= asked && took <= asked + 2 * TICK, "{took:?} instead of {asked:?}");
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
            let asked = TICK * u32::try_from(n % 3 + SLOTS as u64 * (n % 4)).unwrap();
            let timers = &timers;
            async move {
                if n % 7 == 0 {
                    let early = tokio::time::timeout(asked / 2, sleep(timers, asked)).await;
                    assert!(early.is_err() || asked < 4 * TICK, "{n}");
                } else {
                    let took = sleep(timers, asked).await;
                    assert!(took >= asked && took <= asked + 2 * TICK, "{n}: {took:?}, {asked:?}");
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
    async fn what_the_thread_slept_through_is_not_charged() {
        let timers = Timers::new();
        with_clock(&timers, async {
            let _other = timers.timer();
            let before = timers.now();
            tokio::time::advance(Duration::from_secs(3600)).await;
            tokio::time::sleep(2 * TICK).await;
            assert!(timers.now() <= before + Duration::from_millis(1200), "{:?}", timers.now());
        })
        .await;
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
