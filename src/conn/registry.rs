//! The open connections of a worker, for whoever asks: to be listed, and to be closed.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;
use slab::Slab;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::record::{Asked, Open};
use crate::upstream::Endpoint;

/// Places looked at for one question: well below a tenth of a millisecond, since connections wait meanwhile.
const LOOKS: usize = 256;
/// Connections told of in one answer, for the same reason: each costs a microsecond or two.
const TOLD: usize = 32;
/// Questions that wait to be answered.
const QUESTIONS: usize = 16;

/// The open connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Registry(RefCell<Slab<Entry>>);

#[derive(Debug)]
struct Entry {
    open: Rc<Open>,
    /// What serves it; `None` until that has begun.
    task: Option<AbortHandle>,
}

/// Where a connection is in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

/// A question about the connections from the place `from` on.
#[derive(Debug)]
pub(super) struct Question {
    from: usize,
    about: About,
    answer: oneshot::Sender<Answer>,
}

#[derive(Clone, Debug)]
pub(super) enum About {
    /// What there is, this many at most.
    All(usize),
    /// The connection of this number is to be closed.
    Close(u64),
    /// Those with this backend, which went down, are to be closed.
    Down(Arc<Endpoint>),
}

/// What was found.
#[derive(Debug, Default)]
struct Answer {
    found: Vec<Value>,
    /// How many are closed since their backend went down.
    closed: usize,
    /// Where to ask on; `None` at the end.
    next: Option<usize>,
}

impl Registry {
    pub(super) fn insert(&self, open: Rc<Open>) -> Place {
        let place = self.0.borrow_mut().insert(Entry { open, task: None });
        // Each connection has a descriptor, so there are fewer.
        Place(u32::try_from(place).unwrap_or(u32::MAX))
    }

    pub(super) fn served_by(&self, place: Place, task: AbortHandle) {
        if let Some(entry) = self.0.borrow_mut().get_mut(place.index()) {
            entry.task = Some(task);
        }
    }

    pub(super) fn remove(&self, place: Place) {
        let mut entries = self.0.borrow_mut();
        let removed = entries.try_remove(place.index());
        if entries.is_empty() {
            // What a burst took.
            entries.shrink_to_fit();
        }
        drop(entries);
        drop(removed);
    }

    fn answer(&self, from: usize, about: &About) -> Answer {
        let entries = self.0.borrow();
        let (mut found, mut closed, mut place) = (Vec::new(), 0, from);
        while place < entries.capacity() && place < from.saturating_add(LOOKS) {
            if let Some(entry) = entries.get(place) {
                match about {
                    About::All(most) if found.len() < TOLD.min(*most) => found.push(entry.open.to_json()),
                    About::All(_) => break,
                    About::Close(number) if entry.open.number() == *number => {
                        entry.close(Asked::Closed);
                        found.push(entry.open.to_json());
                        break;
                    }
                    About::Down(endpoint) if entry.open.is_with(endpoint) => {
                        entry.close(Asked::BackendDown);
                        closed += 1;
                    }
                    About::Close(_) | About::Down(_) => {}
                }
            }
            place += 1;
        }
        Answer { found, closed, next: Some(place).filter(|place| *place < entries.capacity()) }
    }
}

impl Entry {
    /// Ends what serves it, at its next turn.
    fn close(&self, why: Asked) {
        self.open.close(why);
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Place {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a worker is asked, and where it finds the questions.
pub(super) fn questions() -> (mpsc::Sender<Question>, mpsc::Receiver<Question>) {
    mpsc::channel(QUESTIONS)
}

/// Answers questions as long as anybody could ask.
pub(super) async fn answer_all(mut questions: mpsc::Receiver<Question>, registry: &Registry) {
    while let Some(Question { from, about, answer }) = questions.recv().await {
        // Whoever asked may have gone.
        let _ = answer.send(registry.answer(from, &about));
        // Connections have their turn between two answers.
        tokio::task::yield_now().await;
    }
}

/// Asks a worker until it has answered for all its connections, or `about` has been found. Nothing of a worker that
/// has ended.
pub(super) async fn ask(worker: &mpsc::Sender<Question>, about: About) -> Vec<Value> {
    let mut all = Vec::new();
    let mut from = Some(0);
    while let Some(place) = from {
        let about = match &about {
            About::All(most) if all.len() >= *most => break,
            About::All(most) => About::All(most - all.len()),
            About::Close(_) if !all.is_empty() => break,
            about @ (About::Close(_) | About::Down(_)) => about.clone(),
        };
        let Answer { found, next, .. } = ask_from(worker, place, about).await;
        all.extend(found);
        from = next;
    }
    all
}

/// Lets a worker close all its connections to the endpoint, which went down; gives how many.
pub(super) async fn close_all(worker: &mpsc::Sender<Question>, endpoint: &Arc<Endpoint>) -> usize {
    let (mut all, mut from) = (0, Some(0));
    while let Some(place) = from {
        let Answer { closed, next, .. } = ask_from(worker, place, About::Down(Arc::clone(endpoint))).await;
        all += closed;
        from = next;
    }
    all
}

async fn ask_from(worker: &mpsc::Sender<Question>, from: usize, about: About) -> Answer {
    let (answer, answered) = oneshot::channel();
    if worker.send(Question { from, about, answer }).await.is_err() {
        return Answer::default();
    }
    answered.await.unwrap_or_default()
}
