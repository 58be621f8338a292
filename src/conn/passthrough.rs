//! Passing a connection through to a backend, untouched.

use std::error::Error;
use std::sync::Arc;

use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::context::Context;
use super::record::ConnRecord;
use super::refuse::{Refusal, alert, refuse};
use super::termination::{Cause, Stage, Termination};
use crate::net::{RelayEnd, Upstream, relay, reset_on_close};
use crate::route::RouteId;
use crate::snapshot::Snapshot;
use crate::upstream::{ConnectError, ConnectFailure};

/// Connects to a backend of the route and relays until the end. `prefix` is what the client sent so far.
pub(super) async fn run(
    stream: TcpStream,
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
    let upstream = match Box::pin(backends.upstream.connect()).await {
        Ok(connection) => {
            record.connected(connection.endpoint);
            connection.stream
        }
        Err(ConnectFailure { error, endpoint }) => {
            let source = error.source().map(ToString::to_string);
            match error {
                // Ours, and more than this connection will feel it.
                ConnectError::Resource(_) if cx.tells_trouble() => {
                    warn!(%error, source, endpoint = endpoint.as_deref(), "no connection to a backend");
                }
                _ => debug!(%error, source, endpoint = endpoint.as_deref(), "no connection to a backend"),
            }
            record.tried(endpoint);
            let refusal = if tls { Refusal::Alert(alert::INTERNAL_ERROR) } else { Refusal::Close };
            Box::pin(refuse(stream, refusal, record, &cx.scratch)).await;
            return Termination::from(&error);
        }
    };
    let mut ends = Ends { client: stream, upstream, whole: false };
    let Ends { client, upstream, .. } = &mut ends;
    let end = relay(client, upstream, prefix, &cx.scratch, backends.idle, &record.meter()).await;
    ends.whole = match &end {
        RelayEnd::Done => true,
        RelayEnd::Fault(fault) => fault.delivered,
        RelayEnd::Idle { stalled, .. } => stalled.is_none(),
    };
    Termination::from(&end)
}

/// Both ends of a relay. Unless each has got all that there was, closing resets them: nobody must take a
/// broken stream for a whole one, least of all when the relay is dropped in the middle of it.
struct Ends {
    client: TcpStream,
    upstream: Upstream,
    whole: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.whole {
            reset_on_close(&self.client);
            reset_on_close(&self.upstream);
        }
    }
}
