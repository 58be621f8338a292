//! The life of a connection: accept → guard → (PROXY header) → peek → (prelude) → route → passthrough or refusal → one line in
//! the log.
//!
//! Each stage takes what the one before it gives; `serve` is the whole path.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{ActionConfig, RejectWith};
use crate::guard::ConnPermit;
use crate::net::{Socket, Timer};
use crate::peek::{ClientHello, Preface, Protocol};
use crate::prelude::{Replay, Why};
use crate::route::{Decision, Query, RouteId};
use crate::snapshot::Snapshot;
use crate::tls::End;

mod accept;
mod balance;
mod cancel;
mod census;
mod context;
mod hello_bytes;
mod http;
mod limited;
mod metrics;
mod passthrough;
mod peek;
mod prelude;
mod proxy;
mod record;
mod redirect;
mod refuse;
mod registry;
mod terminate;
mod termination;

pub use accept::{accept_loop, take_over_loop};
use balance::Admitted;
pub use balance::{Inbox, Workers};
pub use cancel::Sessions;
pub use context::{Address, Context, ListenerContext, Shared};
pub use hello_bytes::HelloBytes;
use limited::Entering;
use metrics::Action;
use passthrough::{Alone, Begun, Client, Counted, Relayed};
use peek::First;
use prelude::Opened;
use proxy::Told;
use record::ConnRecord;
pub use redirect::redirected;
use refuse::Refusal;
pub use terminate::Handshakes;
pub use termination::{Cause, Stage, Termination};

/// Serves one admitted connection to its end and tells of it.
async fn serve(admitted: Box<Admitted>, mut record: ConnRecord) {
    let cx = Rc::clone(record.context());
    let mut timer = cx.timers.timer();
    // What only the first moments need is in a box of its own, freed before the relay, which may last for days.
    let mut established = match Box::pin(establish(admitted, &cx, &mut record, &mut timer)).await {
        Ok(established) => established,
        Err(ended) => return record.finish(ended),
    };
    let termination = match &mut established {
        Established::Relay(relayed) => poll_fn(|task| relayed.poll(task, &record, &mut timer)).await,
        Established::Http(session) => session.await,
    };
    drop(established);
    record.finish(termination);
}

/// What a connection has come to.
#[expect(
    clippy::large_enum_variant,
    reason = "a relay lasts; a box for it would be one more allocation a connection"
)]
enum Established<'a> {
    /// Its streams are relayed.
    Relay(Relayed<'a>),
    /// Its requests are answered.
    Http(Pin<Box<dyn Future<Output = Termination>>>),
}

/// Finds out whose connection it is and what, routes and connects; refuses what comes to nothing.
async fn establish<'a>(
    admitted: Box<Admitted>,
    cx: &'a Rc<Context>,
    record: &mut ConnRecord,
    timer: &mut Timer<'_>,
) -> Result<Established<'a>, Termination> {
    let Admitted { socket, snapshot, named_later, waited, at, listener, mut permit, live, .. } = *admitted;
    let mut stream = Socket::accepted(socket, &cx.reactor);
    if waited {
        stream.expect_bytes();
    }
    let beginnings = snapshot.beginnings(&listener.name);
    let limits = peek::Limits::new(&snapshot, beginnings, timer.now());
    let mut said = Vec::new();
    let mut held = cx.shared.hello_bytes.hold();
    let mut told = Told::default();
    if named_later {
        let whose = (&mut *record, Entering { permit: &mut permit, listener: &listener });
        let first = First { bytes: &mut said, held: &mut held };
        match Box::pin(proxy::identify(&mut stream, first, limits, whose, cx, timer)).await {
            Ok(header) => told = header,
            Err(error) => return Err(proxy::turn_away(stream, error, &listener, record, cx, timer).await),
        }
    }
    let first = First { bytes: &mut said, held: &mut held };
    let patterns = snapshot.table.patterns(&listener.name, record.client().ip());
    let known = (limits, patterns);
    let opened = prelude::open(&mut stream, first, beginnings, known, record, cx, timer).await;
    drop(held);
    record.received(&said);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let entering = Entering { permit: &mut permit, listener: &listener };
            return Err(peek::turn_away((stream, &said), error, entering, record, cx, timer).await);
        }
    };
    // From here on it may be closed at any time; and nothing has been done yet that would be in vain.
    stream.watch().map_err(|_| Termination::unwatched())?;
    listener.metrics.hello_read(at.elapsed(), opened.preface.hello());
    let client = Client { stream, said, told, counted: Counted { permit, live, session: None } };
    Box::pin(proceed(client, opened, (&snapshot, &listener, limits), record, cx, timer)).await
}

/// The protocol of the connection; of TLS that is there from the first byte, what the client says is inside.
fn spoken(preface: &Preface) -> Protocol {
    let postgres = |hello: &ClientHello| hello.alpn.iter().any(|offer| offer == b"postgresql");
    match preface.hello() {
        Some(hello) if hello.within.is_none() && postgres(hello) => Protocol::Postgres,
        _ => preface.protocol(),
    }
}

/// Does with a connection what its first bytes ask for.
async fn proceed<'a>(
    mut client: Client,
    opened: Opened,
    (snapshot, listener, limits): (&Snapshot, &Arc<ListenerContext>, peek::Limits),
    record: &mut ConnRecord,
    cx: &'a Rc<Context>,
    timer: &mut Timer<'_>,
) -> Result<Established<'a>, Termination> {
    let Opened { preface, replay, cancels } = opened;
    record.peeked(&preface, snapshot.tells_ja4);
    if cancels {
        let deadline = snapshot.timeouts.connect;
        client.counted.permit.hello_done();
        let entering = Entering { permit: &mut client.counted.permit, listener };
        let request = cancel::Request { bytes: &client.said, told: &client.told, deadline };
        return Err(Box::pin(cancel::pass_on(client.stream, request, entering, record, cx, timer)).await);
    }
    let entering = Entering { permit: &mut client.counted.permit, listener };
    match route(snapshot, &preface, entering, record, cx, timer).await {
        Ok(Routed::To(route, ends)) => {
            let known = (preface, replay);
            let passing = pass(client, known, (route, ends), (snapshot, limits), record, cx, timer);
            match passing.await {
                Ok(relayed) => Ok(Established::Relay(relayed)),
                Err(alone) => Err(turn_away(alone, listener, record, cx, timer).await),
            }
        }
        Ok(Routed::Http(route, name)) => {
            let speaking =
                speak(client, preface, (route, name), (snapshot, listener, limits), record, cx, timer);
            match Box::pin(speaking).await {
                Ok(session) => Ok(Established::Http(Box::pin(session.run()))),
                Err(alone) => Err(turn_away(alone, listener, record, cx, timer).await),
            }
        }
        Ok(Routed::Redirect) => {
            let Client { mut stream, mut said, counted: _counted, .. } = client;
            let first = (&mut said, limits);
            let answering = redirect::answer(&mut stream, first, &snapshot.table, record, cx, timer);
            let answer = match Box::pin(answering).await {
                Ok(answer) => answer,
                Err(error) => return Err(error.into()),
            };
            refuse::refuse(stream, answer, record, &cx.scratch, timer).await;
            Err(Termination::REDIRECTED)
        }
        Err(Refused { with, why }) => {
            let tls = snapshot.beginnings(&listener.name).leads_to_tls(preface.protocol());
            let words = if tls { Why::TlsRequired } else { Why::NoRoute };
            let refusal = with.for_client(&preface, (words, &client.said), why);
            refuse::refuse(client.stream, refusal, record, &cx.scratch, timer).await;
            Err(why)
        }
    }
}

/// A connection with its backend.
async fn pass<'a>(
    client: Client,
    known: (Preface, Option<Box<Replay>>),
    (route, ends): (RouteId, bool),
    (snapshot, limits): (&Snapshot, peek::Limits),
    record: &mut ConnRecord,
    cx: &'a Context,
    timer: &mut Timer<'_>,
) -> Result<Relayed<'a>, Alone> {
    let beginning = begin(client, known, (route, ends), (snapshot, limits), record, cx, timer);
    let (client, begun) = beginning.await?;
    // In a box of its own, which is not there while first bytes are awaited.
    Box::pin(passthrough::connect(client, begun, snapshot, route, record, cx, timer)).await
}

/// Tells a client that there is no backend for it.
async fn turn_away(
    alone: Alone,
    listener: &ListenerContext,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let Alone { stream, refusal, why } = alone;
    listener.metrics.rejected(why.reason);
    refuse::refuse(stream, refusal, record, &cx.scratch, timer).await;
    why
}

/// A connection of which requests are answered here, once its TLS has ended where it has any.
async fn speak(
    mut client: Client,
    preface: Preface,
    (route, name): (RouteId, Arc<str>),
    (snapshot, listener, limits): (&Snapshot, &Arc<ListenerContext>, peek::Limits),
    record: &mut ConnRecord,
    cx: &Rc<Context>,
    timer: &mut Timer<'_>,
) -> Result<http::Session, Alone> {
    let client = match preface.hello() {
        Some(hello) => {
            let acceptor = snapshot.live(route).and_then(|live| live.acceptor.as_ref());
            terminate::terminate(client, hello, acceptor, limits, record, cx, timer).await?
        }
        None => {
            client.counted.permit.hello_done();
            client.into()
        }
    };
    Ok(http::Session::new(client, preface, &name, listener, record, cx))
}

/// What a backend is to be connected to for: the client as it is, or, where TLS ends here, what is inside that.
async fn begin(
    client: Client,
    (preface, replay): (Preface, Option<Box<Replay>>),
    (route, ends): (RouteId, bool),
    (snapshot, limits): (&Snapshot, peek::Limits),
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<(Client<End>, Begun), Alone> {
    let protocol = spoken(&preface);
    if let (true, Some(hello)) = (ends, preface.hello()) {
        let acceptor = snapshot.live(route).and_then(|live| live.acceptor.as_ref());
        let ending = terminate::terminate(client, hello, acceptor, limits, record, cx, timer);
        let client = Box::pin(ending).await?;
        let without_backend = Refusal::in_words(protocol, Why::NoBackend, &client.said);
        let begun = Begun { replay: None, without_backend, may_move: client.said.is_empty(), protocol };
        return Ok((client, begun));
    }
    // What is played to a backend first says nothing of the session.
    let may_move = replay.is_some() || preface.may_be_repeated(client.said.len());
    let without_backend = Refusal::unavailable(&preface, &client.said);
    Ok((client.into(), Begun { replay, without_backend, may_move, protocol }))
}

/// What a route makes of a connection that it does not refuse.
enum Routed {
    /// To a backend; whether TLS ends here before.
    To(RouteId, bool),
    /// By its requests.
    Http(RouteId, Arc<str>),
    Redirect,
}

/// A connection that no route takes, or one that refuses it, or lets no more in.
struct Refused {
    with: With,
    why: Termination,
}

/// How it is told.
enum With {
    Policy(RejectWith),
    Limit(Refusal),
}

impl With {
    /// What such a client sees that is refused with these words for what it said.
    fn for_client(self, preface: &Preface, words: (Why, &[u8]), why: Termination) -> Refusal {
        match self {
            Self::Policy(with) => Refusal::new(with, preface, words, why),
            Self::Limit(refusal) => refusal,
        }
    }
}

/// Chooses the route, and counts the connection for the limits of that.
async fn route(
    snapshot: &Snapshot,
    preface: &Preface,
    entering: Entering<'_>,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Routed, Refused> {
    let listener = entering.listener;
    let query = Query { preface, client: record.client().ip(), listener: &listener.name };
    let (with, why) = match snapshot.table.find(&query) {
        Decision::Route(route) => match route.action() {
            ActionConfig::Passthrough(_)
            | ActionConfig::Terminate(_)
            | ActionConfig::Http(_)
            | ActionConfig::Redirect => {
                let (action, routed) = match route.action() {
                    ActionConfig::Terminate(_) => (Action::Terminate, Routed::To(route.id, true)),
                    ActionConfig::Http(_) => {
                        (Action::Http, Routed::Http(route.id, Arc::clone(&route.config.name)))
                    }
                    ActionConfig::Redirect => (Action::Redirect, Routed::Redirect),
                    ActionConfig::Passthrough(_) | ActionConfig::Reject(_) => {
                        (Action::Passthrough, Routed::To(route.id, false))
                    }
                };
                // A handshake counts as part of the hello.
                if matches!(action, Action::Passthrough | Action::Redirect) {
                    entering.permit.hello_done();
                }
                record.routed(action, &route.config.name, snapshot.live(route.id));
                let enter = |permit: &mut ConnPermit, client| {
                    permit.enter_route(client, &listener.name, &route.config.name, Instant::now())
                };
                let entered = limited::enter(entering, enter, record, cx, timer).await;
                let refused = |(refusal, rejection)| Refused {
                    with: With::Limit(refusal),
                    why: Termination::limited(&rejection, Stage::Route),
                };
                return entered.map(|()| routed).map_err(refused);
            }
            ActionConfig::Reject(with) => {
                record.routed(Action::Reject, &route.config.name, snapshot.live(route.id));
                (*with, Termination::REJECTED)
            }
        },
        Decision::NoRoute(why, with) => {
            record.refused();
            (with, why.into())
        }
    };
    listener.metrics.rejected(why.reason);
    Err(Refused { with: With::Policy(with), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output_size<A, R, F: Future>(_: impl Fn(A, R) -> F) -> usize {
        size_of::<F>()
    }

    /// It is held for each connection as long as that lasts.
    #[test]
    fn the_future_of_a_connection_is_small() {
        let size = output_size(serve);
        assert!(size <= 552, "{size} bytes");
    }
}
