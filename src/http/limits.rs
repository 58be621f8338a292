//! Deadlines of an exchange.

use std::task::{Context, Poll};
use std::time::Duration;

use super::failure::{Failure, Fault};
use super::flow::Flow;
use super::sink::Sink;
use crate::config::HttpLimits;
use crate::net::{Moment, Timer};

/// A body has so long until its rate counts.
const GRACE: Duration = Duration::from_secs(10);

/// Until when the next piece of a body must come.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyDeadline {
    /// When it began.
    began: Moment,
    /// When something came last.
    came: Moment,
    taken: u64,
    pause: Duration,
    rate: Option<u64>,
}

impl BodyDeadline {
    /// Of a body that begins now.
    pub(super) fn new(limits: &HttpLimits, now: Moment) -> Self {
        Self { began: now, came: now, taken: 0, pause: limits.body_timeout, rate: limits.min_body_rate }
    }

    /// So many bytes have come, the last of them now.
    pub(super) fn came(&mut self, taken: u64, now: Moment) {
        self.came = now;
        self.taken = taken;
    }

    /// When it is too late.
    pub(super) fn until(&self) -> Moment {
        let pause = self.came + self.pause;
        match self.rate {
            // What has come pays for so much time.
            Some(rate) => pause.min(self.began + GRACE + Duration::from_secs(self.taken / rate.max(1))),
            None => pause,
        }
    }
}

/// What an exchange may take of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// Of the body of the request.
    body: BodyDeadline,
    /// How long a client may take nothing of its answer.
    pub(super) write: Duration,
    /// How long a backend has to begin its answer, once it has the whole request.
    pub(super) response: Duration,
    /// How long it may pause in it.
    pub(super) idle: Duration,
}

impl Deadlines {
    /// Those of an exchange that begins now.
    pub(super) fn new(limits: &HttpLimits, response: Duration, idle: Duration, now: Moment) -> Self {
        Self { body: BodyDeadline::new(limits, now), write: limits.write_timeout, response, idle }
    }

    /// While the answer has not begun: what the request is waited for.
    pub(super) fn poll_request(
        &self,
        cx: &mut Context<'_>,
        up: &Flow,
        sink: &Sink,
        timer: &mut Timer<'_>,
    ) -> Poll<Failure> {
        let (at, failure) = if up.is_done() || up.is_held_up(sink) {
            (up.gave.max(up.took) + self.response, Failure::backend(Fault::Timeout, false))
        } else {
            let mut body = self.body;
            body.came(up.taken, up.took);
            (body.until(), Failure::BODY_TIMEOUT)
        };
        timer.poll(cx, at).map(|()| failure)
    }

    /// While the answer passes.
    pub(super) fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        down: &Flow,
        sink: &Sink,
        timer: &mut Timer<'_>,
    ) -> Poll<Failure> {
        let (at, failure) = if down.is_held_up(sink) {
            (down.gave + self.write, Failure::WRITE_TIMEOUT)
        } else {
            (down.took + self.idle, Failure::backend(Fault::Timeout, false))
        };
        timer.poll(cx, at).map(|()| failure)
    }
}
