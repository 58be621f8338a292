//! Leaving an endpoint that was connected to and does not answer: the kernel of a host goes on accepting for a program that is
//! stopped or stuck.
//!
//! A client that has said nothing that counts by itself (a ClientHello without early data, or nothing at all) may be led to
//! another endpoint as long as there is no answer: to that one nothing tells it from a client that came later.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::UpstreamConn;
use super::super::endpoint::{Attempt, Endpoint};
use super::Search;
use crate::net::{Moment, reset_on_close};

/// What is heard first.
enum Heard {
    /// The backend has sent something, and goes on.
    Answer,
    /// It has failed or ended without a word, as the kernel does for a program that was killed.
    Nothing,
    /// It has ended with its last words, or the client has sent something or ended.
    Other,
}

impl Search<'_, '_> {
    /// Waits for the first byte of `connection`, or that the client goes on or ends itself: then it is this one for
    /// good. Gives another endpoint to try when nothing of that comes in time, or it ends without a word. When there is none, or none may be tried, it
    /// is this one for good as well: a slow one is better than nobody. `left` is the one before it that was left.
    pub(super) async fn awaits_in_vain(
        &mut self,
        connection: &UpstreamConn,
        left: Option<Arc<Endpoint>>,
    ) -> Option<Attempt> {
        let until = self.timer.now() + self.answer?;
        let may_be_left = self.may_be_left(connection, until);
        if !may_be_left && left.is_none() {
            return None;
        }
        match (self.first_heard(connection, until).await, left) {
            (Some(Heard::Answer), Some(left)) => self.was_outdone(&left),
            (None | Some(Heard::Nothing), _) if may_be_left => return self.leave(connection),
            (Some(Heard::Answer | Heard::Nothing | Heard::Other) | None, _) => {}
        }
        None
    }

    /// Whether another endpoint may be tried when `connection` is not answered by `until`.
    fn may_be_left(&self, connection: &UpstreamConn, until: Moment) -> bool {
        let whole = connection.sent == self.first.len();
        // Without time for another one there is nothing to wait for.
        let in_time = until < self.budget;
        let members = self.upstream.pool.members();
        whole && in_time && members.has_others(connection.lease.endpoint(), &self.wanted.tried)
    }

    /// Nothing is read: what wakes this is what the relay waits for next, at no cost of its own.
    async fn first_heard(&mut self, connection: &UpstreamConn, until: Moment) -> Option<Heard> {
        let (backend, client) = (&connection.stream, self.caller.socket);
        let client_heard = |cx: &Context<'_>| client.map_or(Poll::Pending, |client| client.poll_heard(cx));
        let heard = poll_fn(|cx| match backend.poll_heard(cx) {
            Poll::Ready(()) if backend.poll_gone(cx, true).is_pending() => Poll::Ready(Heard::Answer),
            Poll::Ready(()) if backend.has_nothing_left() => Poll::Ready(Heard::Nothing),
            Poll::Ready(()) => Poll::Ready(Heard::Other),
            Poll::Pending => client_heard(cx).map(|()| Heard::Other),
        });
        self.timer.timeout_at(until, heard).await
    }

    fn leave(&mut self, connection: &UpstreamConn) -> Option<Attempt> {
        let endpoint = connection.lease.endpoint();
        self.wanted.tried.add(Arc::clone(endpoint));
        let other = self.spare()?;
        tracing::debug!(backend = %endpoint.name, address = %endpoint.target, "a backend has not answered in time");
        connection.lease.left();
        Some(other)
    }

    /// Another endpoint answers at once what `left` had not answered. Only that tells against it: where no server speaks before
    /// its client, one that says nothing would have them all passed over.
    fn was_outdone(&self, left: &Endpoint) {
        if left.strikes.unanswered() {
            self.upstream.pool.state().stir();
        }
    }

    /// Another endpoint that can be tried now.
    pub(super) fn spare(&self) -> Option<Attempt> {
        let pool = &self.upstream.pool;
        pool.take(&self.wanted, self.start).filter(|_| pool.may_move())
    }
}

/// Closes a connection that another one has taken the place of; gives whose it was. Its backend must not take what was broken off
/// for whole. And one that goes on later finds nobody's address on what was reset: MariaDB refuses hosts that close too often
/// before they log in.
pub(super) fn give_up(connection: UpstreamConn) -> Arc<Endpoint> {
    reset_on_close(&connection.stream);
    Arc::clone(connection.lease.endpoint())
}
