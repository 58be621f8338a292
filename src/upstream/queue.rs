//! Who waits for room: first come, first served, by whoever makes room.
//!
//! Nobody is woken to look for itself: it is given what it waits for, and until then keeps its turn. So none wakes in
//! vain, and one that goes away with what it was given gives it back by dropping it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use metrics::Gauge;
use tokio::sync::oneshot;

/// How many at the front are looked at: what the first one cannot take, since it has tried that, another one may.
const LOOKS: usize = 8;

/// A line of those that want a `T`, each as its `W` says. Shared by all threads.
#[derive(Debug)]
pub(super) struct Queue<W, T> {
    line: Mutex<Line<W, T>>,
    /// How many there are, to be looked at without the lock.
    waiting: AtomicUsize,
    length: Gauge,
}

#[derive(Debug)]
struct Line<W, T> {
    /// By their numbers.
    waiters: VecDeque<Waiter<W, T>>,
    next: u64,
}

#[derive(Debug)]
struct Waiter<W, T> {
    number: u64,
    wanted: W,
    give: oneshot::Sender<T>,
}

/// A turn in line, given up when dropped. Gives what was waited for.
#[derive(Debug)]
pub(super) struct Turn<'q, W, T> {
    queue: &'q Queue<W, T>,
    number: u64,
    given: oneshot::Receiver<T>,
}

impl<W, T> Queue<W, T> {
    /// Nobody waits; `length` tells how many do.
    pub(super) fn new(length: Gauge) -> Self {
        let line = Line { waiters: VecDeque::new(), next: 0 };
        Self { line: Mutex::new(line), waiting: AtomicUsize::new(0), length }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether anybody waits, for whoever has made room before: that is seen by who joins after this looked.
    pub(super) fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.len() > 0
    }

    /// Waits behind all others, unless `most` wait already. Room that was made before may not be given to it: whoever
    /// joins must let [`Self::serve`] look once.
    pub(super) fn join(&self, wanted: W, most: usize) -> Option<Turn<'_, W, T>> {
        let (give, given) = oneshot::channel();
        let mut line = self.lock();
        if line.waiters.len() >= most {
            return None;
        }
        let number = line.next;
        line.next += 1;
        line.waiters.push_back(Waiter { number, wanted, give });
        self.count(&line);
        // What it looks at next was written before, or whoever writes it sees that somebody waits.
        fence(Ordering::SeqCst);
        Some(Turn { queue: self, number, given })
    }

    /// Gives those that wait what `take` finds for them, until it finds nothing. It is asked under the lock of the
    /// line, and must not come back here.
    pub(super) fn serve(&self, take: impl Fn(&W) -> Option<T>) {
        loop {
            let mut line = self.lock();
            let mut looks = line.waiters.iter().take(LOOKS).enumerate();
            let found = looks.find_map(|(index, waiter)| Some((index, take(&waiter.wanted)?)));
            let Some((index, value)) = found else { return };
            let waiter = line.waiters.remove(index);
            self.count(&line);
            drop(line);
            // One that goes away at this moment leaves it to whoever is next: what is dropped makes room again.
            let _ = waiter.map(|waiter| waiter.give.send(value));
        }
    }

    fn leave(&self, number: u64) {
        let mut line = self.lock();
        if let Ok(index) = line.waiters.binary_search_by_key(&number, |waiter| waiter.number) {
            line.waiters.remove(index);
            self.count(&line);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "connections are far fewer than 2^52")]
    fn count(&self, line: &Line<W, T>) {
        self.waiting.store(line.waiters.len(), Ordering::Relaxed);
        self.length.set(line.waiters.len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Line<W, T>> {
        // Nothing is done under the lock that could fail half-way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W, T> Future for Turn<'_, W, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.given).poll(cx) {
            Poll::Ready(Ok(value)) => Poll::Ready(value),
            // The sender stays in line as long as there is a turn: it is never dropped unused.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<W, T> Drop for Turn<'_, W, T> {
    fn drop(&mut self) {
        self.queue.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use super::*;

    /// Takes a piece of `stock` that is wanted.
    fn of(stock: &RefCell<Vec<u32>>) -> impl Fn(&u32) -> Option<u32> {
        |wanted| {
            let mut stock = stock.borrow_mut();
            let index = stock.iter().position(|piece| piece & wanted > 0)?;
            Some(stock.remove(index))
        }
    }

    fn now<W, T>(turn: &mut Turn<'_, W, T>) -> Option<T> {
        match Pin::new(turn).poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn first_come_first_served_and_no_more_than_there_is() {
        let queue: Queue<u32, u32> = Queue::new(Gauge::noop());
        let mut turns: Vec<_> = (0..4).map(|_| queue.join(1, 4).unwrap()).collect();
        assert!(queue.join(1, 4).is_none(), "a fifth of four");
        let stock = RefCell::new(vec![1, 1]);
        queue.serve(of(&stock));
        assert_eq!(turns.iter_mut().map(now).collect::<Vec<_>>(), [Some(1), Some(1), None, None]);
        assert_eq!((queue.len(), stock.borrow().len()), (2, 0));
        stock.borrow_mut().push(1);
        queue.serve(of(&stock));
        assert_eq!((now(&mut turns[2]), now(&mut turns[3])), (Some(1), None));
    }

    #[test]
    fn who_cannot_use_it_keeps_its_turn() {
        let queue: Queue<u32, u32> = Queue::new(Gauge::noop());
        let (mut first, mut second) = (queue.join(2, 9).unwrap(), queue.join(3, 9).unwrap());
        let stock = RefCell::new(vec![1]);
        queue.serve(of(&stock));
        assert_eq!((now(&mut first), now(&mut second)), (None, Some(1)));
        let mut third = queue.join(2, 9).unwrap();
        stock.borrow_mut().push(2);
        queue.serve(of(&stock));
        assert_eq!((now(&mut first), now(&mut third)), (Some(2), None));
    }

    #[test]
    fn who_goes_away_leaves_its_place_and_what_it_was_given() {
        struct Piece(Arc<AtomicUsize>);
        impl Drop for Piece {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let queue: Queue<(), Piece> = Queue::new(Gauge::noop());
        let stock = Arc::new(AtomicUsize::new(1));
        let take = |(): &()| {
            let less = |pieces: usize| pieces.checked_sub(1);
            let taken = stock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            taken.ok().map(|_| Piece(Arc::clone(&stock)))
        };
        let (gone, given, mut last) =
            (queue.join((), 9).unwrap(), queue.join((), 9).unwrap(), queue.join((), 9).unwrap());
        drop(gone);
        assert_eq!(queue.len(), 2);
        queue.serve(take);
        assert!((queue.len(), stock.load(Ordering::Relaxed)) == (1, 0) && now(&mut last).is_none());
        // It has been given its piece and never looks.
        drop(given);
        assert_eq!(stock.load(Ordering::Relaxed), 1);
        queue.serve(take);
        assert!(now(&mut last).is_some());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn nobody_waits_for_ever_among_threads() {
        let queue: Queue<(), u32> = Queue::new(Gauge::noop());
        let stock = AtomicUsize::new(0);
        let take = |(): &()| {
            let less = |pieces: usize| pieces.checked_sub(1);
            stock.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok().map(|_| 1)
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    runtime().block_on(async {
                        for _ in 0..500 {
                            let turn = queue.join((), usize::MAX).unwrap();
                            queue.serve(take);
                            let given = tokio::time::timeout(std::time::Duration::from_secs(10), turn).await;
                            assert_eq!(given.ok(), Some(1), "a wake-up was lost");
                        }
                    });
                });
            }
            scope.spawn(|| {
                for _ in 0..2000 {
                    stock.fetch_add(1, Ordering::SeqCst);
                    if queue.has_waiters() {
                        queue.serve(take);
                    }
                }
            });
        });
        assert_eq!((queue.len(), stock.load(Ordering::SeqCst)), (0, 0));
    }
}
