//! Connections that a limit refuses: at once, late, or without ever being told.

use std::future::pending;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

use super::accept::{Arriving, serve_admitted};
use super::context::{Context, ListenerContext};
use super::metrics::Action;
use super::record::{self, ConnRecord};
use super::refuse::Refusal;
use crate::config::LimitAction;
use crate::guard::{ConnPermit, Hold, Holding, Rejection};
use crate::net::{AcceptedSocket, Moment, Timer, hide_close, reset_on_close};

/// Refuses a connection of which nothing was read, as the limit says.
pub(super) fn refuse(
    accepted: AcceptedSocket,
    rejection: Rejection,
    listener: Arc<ListenerContext>,
    cx: &Rc<Context>,
) {
    let AcceptedSocket { socket, peer, .. } = &accepted;
    match rejection.action() {
        LimitAction::Delay { max } => {
            if let Some(hold) = cx.shared.guard.load().hold(Holding::Delayed) {
                let late = delay(accepted, rejection, max, hold, listener, Rc::clone(cx));
                drop(tokio::task::spawn_local(late));
                return;
            }
            reset_on_close(socket);
        }
        LimitAction::Tarpit { hold: time } => {
            tell(&rejection, &accepted, &listener, cx);
            if let Some(hold) = cx.shared.guard.load().hold(Holding::Tarpitted) {
                drop(tokio::task::spawn_local(tarpit(accepted.socket, time, hold, Rc::clone(cx))));
            } else {
                reset_on_close(socket);
            }
            return;
        }
        // With bytes unread the close would send a reset alone.
        LimitAction::Close => drop(shutdown(socket, Shutdown::Write)),
        LimitAction::Drop => hide_close(socket, *peer),
        // No FIN handshake, no state left in the kernel: the cheapest end for us.
        LimitAction::Reset => reset_on_close(socket),
    }
    tell(&rejection, &accepted, &listener, cx);
}

/// Counts the refusal and tells of it.
fn tell(rejection: &Rejection, accepted: &AcceptedSocket, listener: &ListenerContext, cx: &Context) {
    cx.shared.guard.load().refused(rejection, accepted.peer.ip(), Instant::now());
    listener.metrics.rejected(Some(rejection.reason().as_str()));
    listener.metrics.ended(Action::Reject);
    record::tell_rejection(rejection, accepted.peer, listener, cx);
}

/// Holds the connection until it is admitted, at most for `max`, and no longer than what refuses it may be waited
/// for: it may have been banned meanwhile.
async fn delay(
    accepted: AcceptedSocket,
    mut rejection: Rejection,
    max: Duration,
    hold: Hold,
    listener: Arc<ListenerContext>,
    cx: Rc<Context>,
) {
    let mut timer = cx.timers.timer();
    let deadline = timer.now() + max;
    while timer.now() < deadline && is_worth_waiting(&rejection) {
        let again = deadline.min(timer.now() + rejection.retry_after());
        if !pause(&cx, &mut timer, again).await {
            break;
        }
        let admission = cx.shared.guard.load().admit(accepted.peer.ip(), &listener.name, Instant::now());
        match admission {
            Ok(mut permit) => {
                permit.take_place_of(hold);
                // Whoever is trusted to name others is not limited.
                let snapshot = cx.shared.snapshot.load_full();
                let arriving = Arriving { accepted, snapshot, named_later: false, permit };
                return serve_admitted(arriving, listener, &cx).await;
            }
            Err(next) => rejection = next,
        }
    }
    reset_on_close(&accepted.socket);
    tell(&rejection, &accepted, &listener, &cx);
}

/// Whether what refuses the connection only puts it off.
fn is_worth_waiting(rejection: &Rejection) -> bool {
    matches!(rejection.action(), LimitAction::Delay { .. })
}

/// Holds the connection open and unread, and resets it. It is not even watched.
async fn tarpit(socket: OwnedFd, time: Duration, _hold: Hold, cx: Rc<Context>) {
    let mut timer = cx.timers.timer();
    let until = timer.now() + time;
    pause(&cx, &mut timer, until).await;
    reset_on_close(&socket);
}

/// Waits; not once draining has begun, which is what it says.
async fn pause(cx: &Context, timer: &mut Timer<'_>, until: Moment) -> bool {
    tokio::select! {
        biased;
        () = cx.shared.draining.cancelled() => false,
        _ = timer.timeout_at(until, pending::<()>()) => true,
    }
}

/// A connection on its way past limits that it met later than at accept.
pub(super) struct Entering<'a> {
    pub(super) permit: &'a mut ConnPermit,
    pub(super) listener: &'a ListenerContext,
}

/// Lets the connection past the limits that `enter` takes for its client, or says how it is refused and for which.
pub(super) async fn enter(
    entering: Entering<'_>,
    enter: impl Fn(&mut ConnPermit, IpAddr) -> Result<(), Rejection>,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<(), (Refusal, Rejection)> {
    let Entering { permit, listener } = entering;
    let client = record.client().ip();
    let enter = |permit: &mut ConnPermit| enter(permit, client);
    let Err(mut rejection) = enter(permit) else { return Ok(()) };
    let refusal = match rejection.action() {
        LimitAction::Reset => Refusal::Reset,
        LimitAction::Close => Refusal::Close,
        LimitAction::Drop => Refusal::Drop,
        LimitAction::Delay { max } => {
            let deadline = timer.now() + max;
            let hold = permit.hold(Holding::Delayed);
            while hold.is_some() && timer.now() < deadline && is_worth_waiting(&rejection) {
                let again = deadline.min(timer.now() + rejection.retry_after());
                if !pause(cx, timer, again).await {
                    break;
                }
                match enter(permit) {
                    Ok(()) => return Ok(()),
                    Err(next) => rejection = next,
                }
            }
            Refusal::Reset
        }
        LimitAction::Tarpit { hold: time } => {
            if let Some(_hold) = permit.hold(Holding::Tarpitted) {
                let until = timer.now() + time;
                pause(cx, timer, until).await;
            }
            Refusal::Reset
        }
    };
    cx.shared.guard.load().refused(&rejection, client, Instant::now());
    listener.metrics.rejected(Some(rejection.reason().as_str()));
    record.limited(rejection.limit().map(Arc::clone));
    Err((refusal, rejection))
}
