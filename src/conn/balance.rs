//! Which worker serves a connection: the one that accepted it, unless that has clearly more than another.
//!
//! The kernel shares connections out by a hash of their addresses. That is even in the long run, and uneven for the
//! few connections that last and carry much; what has been accepted by the one can be served by the other.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use super::context::ListenerContext;
use super::registry::{About, Question, ask, close_all, questions};
use crate::guard::ConnPermit;
use crate::snapshot::Snapshot;
use crate::upstream::Endpoint;

/// A worker may have so many connections more than another, and a share of what that one has, before it hands
/// one over: that wakes a thread, and connections that come and go are even enough by themselves. With these, one in
/// six of 64 that last a millisecond is handed over.
const SLACK: usize = 4;
const SHARE: usize = 4;
/// Connections on their way to a worker. When they are more it is behind, and gets no others: what is under way waits as
/// long as a worker stands still. One that turns takes them within a few accepts of another.
const INBOX: usize = 8;

/// The workers of a process.
#[derive(Debug)]
pub struct Workers(Box<[Arc<Load>]>);

/// What is known of a worker by the others. On cache lines of its own: it changes with every connection.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Load {
    live: AtomicUsize,
    all_gone: Notify,
    inbox: mpsc::Sender<Admitted>,
    questions: mpsc::Sender<Question>,
}

/// Where a worker finds what others have accepted for it.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Admitted>,
    questions: Option<mpsc::Receiver<Question>>,
    load: Arc<Load>,
}

/// A connection that was admitted, not yet on any event loop.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) socket: OwnedFd,
    pub(super) client: SocketAddr,
    /// The configuration that it keeps.
    pub(super) snapshot: Arc<Snapshot>,
    /// Whether that is a trusted proxy, which names its client by a header.
    pub(super) named_later: bool,
    /// Whether it waited to be accepted.
    pub(super) waited: bool,
    /// When it was accepted.
    pub(super) at: Instant,
    /// Where it came in.
    pub(super) listener: Arc<ListenerContext>,
    pub(super) permit: ConnPermit,
    pub(super) live: Live,
}

/// Counts a connection as one of a worker's until dropped.
#[derive(Debug)]
pub(super) struct Live(Arc<Load>);

impl Workers {
    /// So many, each with its inbox.
    pub fn new(count: usize) -> (Self, Vec<Inbox>) {
        let worker = |_| {
            let (inbox, receiver) = mpsc::channel(INBOX);
            let (asking, questions) = questions();
            let (live, all_gone) = (AtomicUsize::new(0), Notify::new());
            let load = Arc::new(Load { live, all_gone, inbox, questions: asking });
            (Arc::clone(&load), Inbox { receiver, questions: Some(questions), load })
        };
        let (loads, inboxes) = (0..count).map(worker).unzip::<_, _, Vec<_>, _>();
        (Self(loads.into()), inboxes)
    }

    /// How many connections each of them has.
    pub fn live(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|load| load.live.load(Ordering::Relaxed))
    }

    /// Open connections of all workers as objects, like lines of the access log; at most so many.
    pub async fn connections(&self, most: usize) -> Vec<Value> {
        let mut all = Vec::new();
        for load in &self.0 {
            all.extend(ask(&load.questions, About::All(most - all.len())).await);
        }
        all
    }

    /// Closes the connection of this number; gives what it was, or `None` when there is none.
    pub async fn close(&self, number: u64) -> Option<Value> {
        // The worker is in the upper bits.
        let load = self.0.get(usize::try_from(number >> 48).ok()?)?;
        ask(&load.questions, About::Close(number)).await.pop()
    }

    /// Closes the connections of all workers to the endpoint, which went down; gives how many there were.
    pub async fn close_all(&self, endpoint: &Arc<Endpoint>) -> usize {
        let mut closed = 0;
        for load in &self.0 {
            closed += close_all(&load.questions, endpoint).await;
        }
        closed
    }

    /// A worker that has clearly fewer connections than `worker`. Looks at one of the others, the `turn`th: to
    /// look at all would cost more than it brings.
    pub(super) fn less_loaded_than(&self, worker: usize, turn: usize) -> Option<&Arc<Load>> {
        let others = self.0.len().checked_sub(1).filter(|others| *others > 0)?;
        let other = self.0.get((worker + 1 + turn % others) % self.0.len())?;
        let live = |load: &Load| load.live.load(Ordering::Relaxed);
        is_uneven(live(self.0.get(worker)?), live(other)).then_some(other)
    }
}

fn is_uneven(mine: usize, other: usize) -> bool {
    mine > other + other / SHARE + SLACK
}

impl Load {
    /// Counts a connection of this worker.
    pub(super) fn begin(self: &Arc<Self>) -> Live {
        self.live.fetch_add(1, Ordering::Relaxed);
        Live(Arc::clone(self))
    }

    /// Sends the connection to this worker, or gives it back when that has no room for it or takes no more.
    pub(super) fn take_over(&self, admitted: Admitted) -> Result<(), Admitted> {
        self.inbox.try_send(admitted).map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Waits until no connection of this worker is open.
    pub(super) async fn all_gone(&self) {
        while self.live.load(Ordering::Acquire) > 0 {
            self.all_gone.notified().await;
        }
    }
}

impl Inbox {
    /// The load of the worker whose inbox this is.
    pub(super) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// The next connection; `None` when there are none left and no more will come.
    pub(super) async fn next(&mut self) -> Option<Admitted> {
        self.receiver.recv().await
    }

    /// Where questions about the worker's connections come in, for whoever takes it first.
    pub(super) fn take_questions(&mut self) -> Option<mpsc::Receiver<Question>> {
        self.questions.take()
    }

    /// From now on no more come.
    pub(super) fn close(&mut self) {
        self.receiver.close();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_gone.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_with_clearly_more_finds_the_one_with_less() {
        let (workers, inboxes) = Workers::new(3);
        let begin = |(inbox, count): (&Inbox, usize)| -> Vec<_> {
            (0..count).map(|_| inbox.load().begin()).collect()
        };
        let live = inboxes.iter().zip([30, 30, 10]).map(begin).collect::<Vec<_>>();
        let found = |worker| -> Vec<_> {
            (0..4)
                .map(|turn| {
                    workers.less_loaded_than(worker, turn).map(|load| load.live.load(Ordering::Relaxed))
                })
                .collect()
        };
        assert_eq!(found(0), [None, Some(10), None, Some(10)]);
        assert_eq!(found(1), [Some(10), None, Some(10), None]);
        assert_eq!(found(2), [None; 4]);
        drop(live);
        assert_eq!(workers.live().collect::<Vec<_>>(), [0; 3]);
    }

    #[test]
    fn a_single_worker_has_nobody_to_hand_over_to() {
        let (workers, inboxes) = Workers::new(1);
        let _live = (0..100).map(|_| inboxes[0].load().begin()).collect::<Vec<_>>();
        assert!(workers.less_loaded_than(0, 7).is_none());
    }

    #[test]
    fn a_few_more_and_a_quarter_are_even_enough() {
        assert!(!is_uneven(4, 0) && is_uneven(5, 0));
        assert!(!is_uneven(129, 100) && is_uneven(130, 100));
    }
}
