//! Leaving an endpoint that was connected to and does not answer: the kernel of a host goes on accepting for a program that is
//! stopped or stuck.
//!
//! A client that has said nothing that counts by itself (a ClientHello without early data, or nothing at all) may be led to
//! another endpoint as long as there is no answer: to that one nothing tells it from a client that came later.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::super::UpstreamConn;
use super::super::endpoint::Attempt;
use super::Search;
use crate::net::{Moment, reset_on_close};

impl Search<'_, '_> {
    /// Waits for the first byte of `connection`, or its end, or that the client goes on or ends itself: then it is this one for
    /// good. Gives another endpoint to try when nothing of that comes in time. When there is none, or none may be tried, it
    /// is this one for good as well: a slow one is better than nobody.
    pub(super) async fn awaits_in_vain(&mut self, connection: &UpstreamConn) -> Option<Attempt> {
        let until = self.answered_by(connection)?;
        let (backend, client) = (&connection.stream, self.caller.socket);
        // Nothing is read: what wakes this is what the relay waits for next, at no cost of its own.
        let heard = poll_fn(|cx| match backend.poll_heard(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => client.poll_heard(cx),
        });
        if self.timer.timeout_at(until, heard).await.is_some() {
            return None;
        }
        let endpoint = connection.lease.endpoint();
        self.wanted.tried.add(Arc::clone(endpoint));
        let other = self.spare()?;
        tracing::debug!(backend = %endpoint.name, address = %endpoint.target, "a backend has not answered in time");
        connection.lease.left();
        Some(other)
    }

    /// Until when `connection` has to be answered; `None` when it is not left in any case.
    fn answered_by(&self, connection: &UpstreamConn) -> Option<Moment> {
        let until = self.timer.now() + self.answer?;
        let whole = connection.sent == self.first.len();
        // Without time for another one there is nothing to wait for.
        let may = whole && until < self.budget;
        let members = self.upstream.pool.members();
        (may && members.has_others(connection.lease.endpoint(), &self.wanted.tried)).then_some(until)
    }

    /// Another endpoint that can be tried now.
    pub(super) fn spare(&self) -> Option<Attempt> {
        let pool = &self.upstream.pool;
        pool.take(&self.wanted, self.start).filter(|_| pool.may_retry())
    }
}

/// Closes a connection that another one has taken the place of. Its backend must not take what was broken off for whole. And one
/// that goes on later finds nobody's address on what was reset: MariaDB refuses hosts that close too often before they log in.
pub(super) fn give_up(connection: UpstreamConn) {
    reset_on_close(&connection.stream);
}
