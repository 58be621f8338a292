//! The cap on connections in all, and the few of them that are held although a limit refuses them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Connections held of each kind, at most, in the whole process: what they take is a descriptor and a task.
const MOST_HELD: usize = 1024;
/// And no more than one in so many of the cap: what is refused must not take the place of what is served.
const HELD_SHARE: usize = 8;

/// The cap on connections in all.
#[derive(Debug)]
pub(super) struct Cap {
    max: AtomicUsize,
    open: AtomicUsize,
    freed: Notify,
    delayed: AtomicUsize,
    tarpitted: AtomicUsize,
}

/// Why a connection is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Until it conforms.
    Delayed,
    /// To waste its client's time.
    Tarpitted,
}

/// Room for a connection that is held; dropping it gives that back.
#[derive(Debug)]
pub struct Hold {
    cap: Arc<Cap>,
    why: Holding,
    in_total: bool,
}

impl Cap {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            open: AtomicUsize::new(0),
            freed: Notify::new(),
            delayed: AtomicUsize::new(0),
            tarpitted: AtomicUsize::new(0),
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// From now on `max`; what is open above it stays.
    pub(super) fn resize(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
        // All of them: one that finds no room waits on.
        self.freed.notify_waiters();
    }

    /// Waits until there is room, and takes it. Cancel safe.
    pub(super) async fn wait(&self) {
        loop {
            let mut freed = pin!(self.freed.notified());
            // In the queue before the look at the cap, so that no release in between is missed.
            freed.as_mut().enable();
            if self.take() {
                return;
            }
            freed.await;
        }
    }

    fn take(&self) -> bool {
        let max = self.max();
        let below = |open| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).is_ok()
    }

    pub(super) fn give_back(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.freed.notify_one();
    }

    /// Room for a connection that is held; one that is not counted `in_total` yet is from now on.
    pub(super) fn hold(cap: &Arc<Self>, why: Holding, in_total: bool) -> Option<Hold> {
        let most = MOST_HELD.min(cap.max() / HELD_SHARE);
        let below = |held| (held < most).then_some(held + 1);
        cap.held(why).fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        // From here on dropping it undoes the count.
        let mut hold = Hold { cap: Arc::clone(cap), why, in_total: false };
        hold.in_total = in_total && cap.take();
        (hold.in_total == in_total).then_some(hold)
    }

    fn held(&self, why: Holding) -> &AtomicUsize {
        match why {
            Holding::Delayed => &self.delayed,
            Holding::Tarpitted => &self.tarpitted,
        }
    }
}

impl Hold {
    /// Ends it without giving back its place in the cap; whether it had one.
    pub(super) fn give_place(mut self) -> bool {
        std::mem::take(&mut self.in_total)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.cap.held(self.why).fetch_sub(1, Ordering::Relaxed);
        if self.in_total {
            self.cap.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_connections_are_few_and_leave_room_for_others() {
        let cap = Arc::new(Cap::new(40));
        let held: Vec<_> = std::iter::from_fn(|| Cap::hold(&cap, Holding::Tarpitted, true)).collect();
        assert_eq!((held.len(), cap.open()), (5, 5));
        assert!(Cap::hold(&cap, Holding::Delayed, true).is_some(), "the two kinds are counted apart");
        drop(held);
        assert_eq!(cap.open(), 0);
        let place = Cap::hold(&cap, Holding::Delayed, true).unwrap();
        assert!(place.give_place() && cap.open() == 1 && cap.delayed.load(Ordering::Relaxed) == 0);
        cap.give_back();
        let held: Vec<_> = std::iter::from_fn(|| Cap::hold(&cap, Holding::Delayed, false)).collect();
        assert_eq!((held.len(), cap.open()), (5, 0), "those that are counted already are not counted again");
        while cap.take() {}
        assert!(Cap::hold(&cap, Holding::Tarpitted, true).is_none(), "there is no room in all");
        assert_eq!(cap.tarpitted.load(Ordering::Relaxed), 0);
        let large = Arc::new(Cap::new(1_000_000));
        let held: Vec<_> = std::iter::from_fn(|| Cap::hold(&large, Holding::Delayed, true)).collect();
        assert_eq!(held.len(), 1024);
    }
}
