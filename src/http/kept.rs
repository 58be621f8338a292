//! Connections to backends between two requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::wire::Wire;
use crate::net::{Moment, Timers};
use crate::tls::Connector;
use crate::upstream::Endpoint;

/// How long a connection waits for another request: below what common servers give theirs.
const IDLE: Duration = Duration::from_secs(30);
/// What cannot be repeated goes to a connection that was used no longer ago than this, or to a new one: the backend may be
/// closing an older one just now.
const FRESH: Duration = Duration::from_secs(1);
/// Connections that wait for one endpoint.
const MOST: usize = 64;
/// Between two looks for those that have waited long enough.
const SWEEP: Duration = Duration::from_secs(5);

/// The connections of a thread to backends that are used again.
#[derive(Debug, Default)]
pub(super) struct Kept {
    waiting: RefCell<HashMap<Key, Vec<Waiting>>>,
    sessions: RefCell<HashMap<Key, Session>>,
    numbers: Cell<u64>,
    sweeping: Cell<bool>,
}

/// With whom, and how, a connection is.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) connector: Option<Arc<Connector>>,
    /// The name that the certificate was asked for by.
    pub(super) name: Option<Box<str>>,
}

#[derive(Debug)]
struct Waiting {
    wire: Rc<Wire>,
    since: Moment,
}

/// A session of HTTP/2, which is used by many at once. Without it here it ends after its last stream.
#[derive(Debug)]
struct Session {
    number: u64,
    requests: h2::client::SendRequest<Bytes>,
    /// When it was asked for last.
    used: Moment,
}

impl Key {
    fn identity(&self) -> (*const Endpoint, *const Connector, Option<&str>) {
        let connector = self.connector.as_ref().map_or(std::ptr::null(), Arc::as_ptr);
        (Arc::as_ptr(&self.endpoint), connector, self.name.as_deref())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl Kept {
    /// A connection that waits, if there is one that is still open; a fresh one where that matters.
    pub(super) fn take(&self, key: &Key, fresh: bool, now: Moment) -> Option<Rc<Wire>> {
        let mut waiting = self.waiting.borrow_mut();
        let wires = waiting.get_mut(key)?;
        let mut found = None;
        while let Some(Waiting { wire, since }) = wires.pop() {
            if fresh && since + FRESH < now {
                wires.push(Waiting { wire, since });
                break;
            }
            if is_quiet(&wire) {
                found = Some(wire);
                break;
            }
        }
        if wires.is_empty() {
            waiting.remove(key);
        }
        found
    }

    /// Keeps a connection for another request.
    pub(super) fn put(self: &Rc<Self>, key: Key, wire: Rc<Wire>, timers: &Rc<Timers>) {
        wire.rest();
        let mut waiting = self.waiting.borrow_mut();
        let wires = waiting.entry(key).or_default();
        if wires.len() >= MOST {
            wires.remove(0);
        }
        wires.push(Waiting { wire, since: timers.now() });
        drop(waiting);
        self.start_sweeping(timers);
    }

    /// The session of HTTP/2 with an endpoint, if there is one that takes more.
    pub(super) fn session(&self, key: &Key, now: Moment) -> Option<h2::client::SendRequest<Bytes>> {
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.get_mut(key)?;
        // Asked, not waited for: an error once the backend has said that it goes.
        let ready = session.requests.poll_ready(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(_)) = ready {
            sessions.remove(key);
            return None;
        }
        session.used = now;
        Some(session.requests.clone())
    }

    /// Keeps a session; gives its number.
    pub(super) fn keep_session(
        self: &Rc<Self>,
        key: Key,
        requests: h2::client::SendRequest<Bytes>,
        timers: &Rc<Timers>,
    ) -> u64 {
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        self.sessions.borrow_mut().insert(key, Session { number, requests, used: timers.now() });
        self.start_sweeping(timers);
        number
    }

    /// The session of this number is over.
    pub(super) fn forget_session(&self, key: &Key, number: u64) {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.get(key).is_some_and(|session| session.number == number) {
            sessions.remove(key);
        }
    }

    fn start_sweeping(self: &Rc<Self>, timers: &Rc<Timers>) {
        if !self.sweeping.replace(true) {
            drop(tokio::task::spawn_local(Rc::clone(self).sweep(Rc::clone(timers))));
        }
    }

    /// Closes connections that have waited long enough, or that their backend has closed, as long as any wait.
    async fn sweep(self: Rc<Self>, timers: Rc<Timers>) {
        let mut timer = timers.timer();
        loop {
            let next = timer.now() + SWEEP;
            std::future::poll_fn(|cx| timer.poll(cx, next)).await;
            let now = timer.now();
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|_, wires| {
                wires.retain(|waiting| waiting.since + IDLE > now && is_quiet(&waiting.wire));
                !wires.is_empty()
            });
            let mut sessions = self.sessions.borrow_mut();
            sessions.retain(|_, session| session.used + IDLE > now);
            if waiting.is_empty() && sessions.is_empty() {
                self.sweeping.set(false);
                return;
            }
        }
    }
}

/// Whether a connection that waits says nothing: whatever it said would be no answer.
fn is_quiet(wire: &Wire) -> bool {
    !wire.has_read() && !wire.has_ended() && {
        // Asked, not waited for.
        let cx = Context::from_waker(Waker::noop());
        matches!(wire.poll_heard(&cx), Poll::Pending)
    }
}
