//! Two attempts beside each other at a name with addresses of both families (RFC 8305): where the way for one of them
//! is broken, which its own hosts often do not notice, the other one serves at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::super::ConnectError;
use super::super::endpoint::Attempt;
use super::{Connected, Reached, Search, Term};
use crate::net::{Moment, Socket, Timer, connect};

/// How long the first attempt is alone (RFC 8305 §5, the recommended Connection Attempt Delay).
const HEAD_START: Duration = Duration::from_millis(250);

/// An attempt that is under way.
struct Runner<'a> {
    attempt: Attempt,
    term: Term,
    connecting: Pin<Box<dyn Future<Output = io::Result<Socket>> + 'a>>,
}

/// The next thing that happens.
enum Event {
    /// The attempt of this number is done.
    Done(usize, io::Result<Socket>),
    /// A moment that was waited for has come.
    Due,
}

impl<'a> Search<'a, '_> {
    /// Tries the endpoint, and from a while later on, or once that has failed, one of its name and the other family
    /// beside it. What the client has said is sent to the first one that is connected, and to no other.
    pub(super) async fn race(&mut self, attempt: Attempt) -> Result<Connected, ConnectError> {
        let named = Arc::clone(attempt.endpoint());
        let mut second_at = Some(self.timer.now() + HEAD_START);
        let mut runners = vec![self.runner(attempt)];
        let mut last = ConnectError::NoEndpoint;
        loop {
            let now = match next(&mut runners, second_at, self.timer).await {
                Event::Done(index, result) => {
                    let Runner { attempt, term, .. } = runners.swap_remove(index);
                    let reached = result.and_then(|stream| {
                        Ok(Reached { sent: stream.send_now(self.first)?, stream, named: None })
                    });
                    let connected = match reached {
                        Ok(reached) => self.complete(attempt, reached, term).await,
                        Err(error) => Err(self.failed(attempt, term, ConnectError::from_io(error))),
                    };
                    match connected {
                        Ok(connected) => {
                            runners.into_iter().for_each(|loser| loser.lost(term.began));
                            return Ok(connected);
                        }
                        Err(error) => last = error,
                    }
                    None
                }
                Event::Due => Some(self.timer.now()),
            };
            let expired = |runner: &mut Runner<'_>| now.is_some_and(|now| now >= runner.term.until);
            for Runner { attempt, term, .. } in runners.extract_if(.., expired).collect::<Vec<_>>() {
                last = self.failed(attempt, term, ConnectError::Timeout);
            }
            // A failure is not waited out.
            if second_at.is_some_and(|at| now.is_none_or(|now| now >= at)) {
                second_at = None;
                let members = self.upstream.pool.members();
                if let Some(other) = members.take_other_family(&named, &self.wanted, Instant::now()) {
                    let attempt = Attempt::new(other, Arc::clone(self.upstream.pool.state()));
                    runners.push(self.runner(attempt));
                }
            }
            if runners.is_empty() {
                return Err(last);
            }
        }
    }

    fn runner(&self, attempt: Attempt) -> Runner<'a> {
        let (endpoint, reactor) = (Arc::clone(attempt.endpoint()), Rc::clone(self.reactor));
        let connecting = async move {
            // Of a name with addresses each endpoint is one.
            let place = endpoint.target.place().ok_or(io::ErrorKind::Unsupported)?;
            Ok(connect(place, &[], &reactor).await?.0)
        };
        Runner { attempt, term: self.term(), connecting: Box::pin(connecting) }
    }
}

impl Runner<'_> {
    /// One that began at `other` was connected before it. When that began later, this one is slow: a name whose one family
    /// leads nowhere costs each connection a head start, until that is passed over.
    fn lost(self, other: Instant) {
        if self.term.began < other {
            self.attempt.was_outrun();
        }
    }
}

/// Waits for one of `runners` to be done or out of time, until `at` at most.
async fn next(runners: &mut [Runner<'_>], at: Option<Moment>, timer: &mut Timer<'_>) -> Event {
    let ends = runners.iter().map(|runner| runner.term.until);
    let due = ends.chain(at).min().unwrap_or(Moment::NEVER);
    let mut step = |cx: &mut Context<'_>| {
        for (index, runner) in runners.iter_mut().enumerate() {
            if let Poll::Ready(result) = runner.connecting.as_mut().poll(cx) {
                return Poll::Ready(Event::Done(index, result));
            }
        }
        timer.poll(cx, due).map(|()| Event::Due)
    };
    poll_fn(|cx| step(cx)).await
}
