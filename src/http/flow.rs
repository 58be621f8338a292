//! A body on its way from where it comes to where it goes.

use std::task::{Context, Poll};

use http::HeaderMap;

use super::sink::{Sink, SinkError};
use super::source::{Piece, Source, SourceError};
use super::spool::{Room, Spool};
use crate::net::Moment;

/// One direction of an exchange.
#[derive(Debug)]
pub(super) struct Flow {
    /// What was taken and not given.
    waiting: Spool,
    trailers: Option<HeaderMap>,
    state: State,
    /// Bytes that came in.
    pub(super) taken: u64,
    /// When something came in, or went out, last.
    pub(super) took: Moment,
    pub(super) gave: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// All is there.
    Taken,
    /// All is there and its end was told.
    Told,
    /// All is over.
    Done,
}

/// Which end of a flow failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlowError {
    /// Where it comes from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Where it goes.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// What lies on the disk cannot be read.
    #[error("what waits cannot be read")]
    Spool(#[source] std::io::Error),
    /// It is longer than it may be.
    #[error("the body is too large")]
    TooLarge,
}

impl Flow {
    /// A flow of which this much may wait here.
    pub(super) fn new(room: Room, now: Moment) -> Self {
        Self { waiting: Spool::new(room), trailers: None, state: State::Open, taken: 0, took: now, gave: now }
    }

    /// Whether all that is to come has come.
    pub(super) fn has_all(&self) -> bool {
        self.state != State::Open
    }

    /// Whether it is over.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether something waits for the sink.
    pub(super) fn is_held_up(&self, sink: &Sink) -> bool {
        !self.waiting.is_empty() || !sink.is_flushed()
    }

    /// Moves what can be moved; ready when all has gone. `limit` is how many bytes may come.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (source, sink): (&mut Source, &mut Sink),
        limit: Option<u64>,
        now: Moment,
    ) -> Poll<Result<(), FlowError>> {
        loop {
            // What is there goes out at once, with the head before it and the end behind it.
            let took = self.take_from(cx, source, sink.held(), now)?;
            if limit.is_some_and(|limit| self.taken > limit) {
                return Poll::Ready(Err(FlowError::TooLarge));
            }
            let gave = self.give_to(cx, sink, now)?;
            if (took || gave) && sink.has_room() && !self.has_all() {
                continue;
            }
            let (full, waited) = (!sink.has_room(), sink.waiting());
            let flushed = sink.poll_flushed(cx)?.is_ready();
            if sink.waiting() < waited {
                self.gave = now;
            }
            if self.state == State::Told && flushed {
                self.state = State::Done;
            }
            if self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            // Where there was no room and is now, what waits goes on: nobody would wake for that.
            let made_room = full && sink.has_room();
            if !took && !gave && !made_room {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next piece, if there is room beside what the sink has `held`, and one has come; whether it did.
    fn take_from(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Source,
        held: usize,
        now: Moment,
    ) -> Result<bool, FlowError> {
        self.waiting.poll_move(cx);
        if self.state != State::Open || !self.waiting.has_room(held) {
            return Ok(false);
        }
        match source.poll(cx)? {
            Poll::Ready(piece) => {
                self.take(piece, now);
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    /// Gives what waits, as far as there is room, and the end behind it; whether anything was given.
    fn give_to(&mut self, cx: &mut Context<'_>, sink: &mut Sink, now: Moment) -> Result<bool, FlowError> {
        let mut gave = false;
        while sink.has_room() {
            let Poll::Ready(Some(data)) = self.waiting.poll_pop(cx).map_err(FlowError::Spool)? else { break };
            sink.send(data);
            self.gave = now;
            gave = true;
        }
        if self.state == State::Taken && self.waiting.is_empty() && sink.may_finish() {
            sink.finish(self.trailers.take())?;
            self.state = State::Told;
            gave = true;
        }
        Ok(gave)
    }

    fn take(&mut self, piece: Piece, now: Moment) {
        self.took = now;
        match piece {
            Piece::Data(data) => {
                self.taken += data.len() as u64;
                self.waiting.push(data);
            }
            Piece::Trailers(trailers) => {
                self.trailers = Some(trailers);
                self.state = State::Taken;
            }
            Piece::End => self.state = State::Taken,
        }
    }
}
