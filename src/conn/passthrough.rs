//! Passing a connection through to a backend, untouched.

use std::sync::Arc;

use tokio::net::TcpStream;
use tracing::debug;

use super::context::Context;
use super::record::ConnRecord;
use super::refuse::{Refusal, alert, refuse};
use super::termination::{Cause, Stage, Termination};
use crate::net::{RelayEnd, relay, reset_on_close};
use crate::route::RouteId;
use crate::snapshot::Snapshot;

/// Connects to a backend of the route and relays until the end. `prefix` is what the client sent so far.
pub(super) async fn run(
    mut stream: TcpStream,
    prefix: Box<[u8]>,
    tls: bool,
    snapshot: Arc<Snapshot>,
    route: RouteId,
    record: &mut ConnRecord,
    cx: &Context,
) -> Termination {
    let Some(backends) = snapshot.live(route).and_then(|live| live.backends.as_ref()) else {
        // The table and what belongs to its routes are built from the same configuration.
        return Termination { cause: Cause::Internal, stage: Stage::Route, reason: Some("no_backends") };
    };
    record.connecting();
    let mut upstream = match Box::pin(backends.upstream.connect()).await {
        Ok(connection) => {
            record.connected(connection.endpoint);
            connection.stream
        }
        Err(error) => {
            debug!(%error, source = ?std::error::Error::source(&error), "no connection to a backend");
            let refusal = if tls { Refusal::Alert(alert::INTERNAL_ERROR) } else { Refusal::Close };
            Box::pin(refuse(stream, refusal, record, &cx.scratch)).await;
            return Termination::from(&error);
        }
    };
    let end = relay(&mut stream, &mut upstream, prefix, &cx.scratch, backends.idle, &record.meter()).await;
    if matches!(end, RelayEnd::Fault(_)) {
        // Whoever is left must not take a broken stream for a whole one.
        reset_on_close(&stream);
        reset_on_close(&upstream);
    }
    Termination::from(&end)
}
