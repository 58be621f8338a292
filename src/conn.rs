//! The life of a connection: accept → guard → peek → route → passthrough or refusal → one line in the log.
//!
//! Each stage takes what the one before it gives; `serve` is the whole path.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{ActionConfig, RejectWith};
use crate::net::{Socket, Timer};
use crate::peek::Preface;
use crate::route::{Decision, Query};
use crate::snapshot::Snapshot;

mod accept;
mod balance;
mod context;
mod limited;
mod metrics;
mod passthrough;
mod peek;
mod record;
mod refuse;
mod termination;

pub use accept::{accept_loop, take_over_loop};
use balance::Admitted;
pub use balance::{Inbox, Workers};
pub use context::{Context, ListenerContext, Shared};
use limited::Entering;
use metrics::Action;
use passthrough::{Client, Established};
use record::ConnRecord;
use refuse::Refusal;
pub use termination::{Cause, Stage, Termination};

/// An admitted connection with its listener, as the worker that serves it sees that.
#[derive(Debug)]
struct Accepted {
    admitted: Admitted,
    listener: Rc<ListenerContext>,
}

/// Serves one admitted connection to its end and tells of it.
async fn serve(accepted: Box<Accepted>, cx: Rc<Context>) {
    let mut timer = cx.timers.timer();
    let mut record = ConnRecord::open(&accepted, Rc::clone(&cx));
    // What only the first moments need is in a box of its own, freed before the relay, which may last for days.
    let mut established = match Box::pin(establish(accepted, &cx, &mut record, &mut timer)).await {
        Ok(established) => established,
        Err(ended) => return record.finish(ended),
    };
    let termination = poll_fn(|task| established.poll(task, &record, &mut timer)).await;
    drop(established);
    record.finish(termination);
}

/// Peeks, routes and connects; refuses what comes to nothing.
async fn establish<'a>(
    accepted: Box<Accepted>,
    cx: &'a Context,
    record: &mut ConnRecord,
    timer: &mut Timer<'_>,
) -> Result<Established<'a>, Termination> {
    let Accepted { admitted, listener } = *accepted;
    let Admitted { socket, waited, at, mut permit, live, .. } = admitted;
    let mut stream = Socket::accepted(socket, &cx.reactor);
    if waited {
        stream.expect_bytes();
    }
    let snapshot = cx.shared.snapshot.load_full();
    let limits = peek::Limits::new(&snapshot, listener.index, timer.now());
    let mut said = Vec::new();
    let peeked = peek::read_preface(&mut stream, &mut said, &cx.scratch, limits, timer).await;
    record.received(&said);
    let preface = match peeked {
        Ok(preface) => preface,
        Err(error) => {
            listener.metrics.hello_failed(&error);
            if matches!(error, peek::PeekError::Hello(_)) {
                cx.shared.guard.strike(record.client().ip(), Instant::now());
            }
            if error.is_refused() {
                record.refused();
            }
            refuse::refuse(stream, error.refusal(), record, &cx.scratch, timer).await;
            return Err(error.into());
        }
    };
    // From here on it may be closed at any time; and nothing has been done yet that would be in vain.
    stream.watch().map_err(|_| Termination::unwatched())?;
    permit.hello_done();
    listener.metrics.hello_read(at.elapsed());
    record.peeked(&preface);
    let tls = preface.hello().is_some();
    match route(&snapshot, &preface, &listener.name, record) {
        Routed::To(index) => {
            let name = snapshot.table.routes().get(index.index()).map_or("", |route| &route.config.name);
            let entering = Entering { permit: &mut permit, listener: &listener, route: name };
            if let Err((refusal, rejection)) = limited::enter_route(entering, record, cx, timer).await {
                refuse::refuse(stream, refusal, record, &cx.scratch, timer).await;
                return Err(Termination::limited(&rejection, Stage::Route));
            }
            let client = Client { stream, said, tls, counted: (permit, live) };
            passthrough::connect(client, &snapshot, index, record, cx, timer).await
        }
        Routed::Refuse(with, termination) => {
            listener.metrics.rejected(termination.reason);
            refuse::refuse(stream, Refusal::new(with, tls), record, &cx.scratch, timer).await;
            Err(termination)
        }
    }
}

/// What the route table's decision means for the connection.
enum Routed {
    To(crate::route::RouteId),
    Refuse(RejectWith, Termination),
}

fn route(snapshot: &Arc<Snapshot>, preface: &Preface, listener: &str, record: &mut ConnRecord) -> Routed {
    let query = Query { preface, client: record.client().ip(), listener };
    match snapshot.table.find(&query) {
        Decision::Route(route) => {
            let action = match route.action() {
                ActionConfig::Passthrough(_) => Action::Passthrough,
                ActionConfig::Reject(_) => Action::Reject,
            };
            record.routed(action, &route.config.name, snapshot.live(route.id));
            match route.action() {
                ActionConfig::Passthrough(_) => Routed::To(route.id),
                ActionConfig::Reject(with) => Routed::Refuse(*with, Termination::REJECTED),
            }
        }
        Decision::NoRoute(why, with) => {
            record.refused();
            Routed::Refuse(with, why.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output_size<A, F: Future>(_: impl Fn(A, Rc<Context>) -> F) -> usize {
        size_of::<F>()
    }

    /// It is held for each connection as long as that lasts.
    #[test]
    fn the_future_of_a_connection_is_small() {
        let size = output_size(serve);
        assert!(size <= 552, "{size} bytes");
    }
}
